# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Converts checkpoints of other projects, strictly: every tensor of theirs is taken or dropped by a named rule, every one of
ours is filled.

The layouts are tables in `conversion_clip` and its siblings, in the vocabulary of `conversion_rules`. The way back is in
`conversion_export`.
"""

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import safetensors
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPConfig

from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor

from .checkpoint_files import CheckpointFile, read_checkpoint
from .configuration_pixclip import PixCLIPConfig
from .conversion_alpha import ALPHA_CLIP
from .conversion_clip import FG_CLIP, LONG_CLIP, OPENAI_CLIP
from .conversion_eva import EVA_CLIP
from .conversion_llm import LLM2CLIP, PIXCLIP
from .conversion_processors import check_text_preset, make_processors
from .conversion_rules import ConversionError, Rule, Shapes, SourceFacts, SourceLayout, SourcePart
from .modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel


CHECKPOINT_SOURCES: dict[str, tuple[SourceLayout, ...]] = {
    "alpha-clip": ALPHA_CLIP,
    "eva-clip": EVA_CLIP,
    "fg-clip": FG_CLIP,
    "llm2clip": LLM2CLIP,
    "long-clip": LONG_CLIP,
    "openai-clip": OPENAI_CLIP,
    "pixclip": PIXCLIP,
}
_LISTED = 8
_CAST_PARTS = 4


@dataclass
class Conversion:
    """
    A converted checkpoint, in memory; [`convert_to_folder`] writes one.

    Args:
        model ([`PixCLIPModel`] or [`PixCLIPForPreTraining`]): In eval mode.
        image_processor (`PixCLIPImageProcessor`): As the source's project prepares images.
        processor (`PixCLIPProcessor`, *optional*): With the tokenizer, if there is one.
        report (`dict`): What was read, taken, dropped, filled and assumed; JSON.
        leftovers (`dict[str, torch.Tensor]`): What the model has no place for, for the way back.
        record (`dict`): Names, dtypes, shapes and files of the source, for the way back; JSON.
    """

    model: PixCLIPModel
    image_processor: PixCLIPImageProcessor
    processor: PixCLIPProcessor | None
    report: dict[str, Any]
    leftovers: dict[str, torch.Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)


@dataclass
class Source:
    """The tensors of a source by its names, adapters merged."""

    files: list[CheckpointFile]
    layout: SourceLayout
    parts: list[tuple[SourcePart, CheckpointFile]]
    tensors: dict[str, torch.Tensor]
    originals: dict[str, torch.Tensor]

    def release(self):
        """Forgets the tensors."""
        for tensors in (self.tensors, self.originals, *(file.tensors for file in self.files)):
            tensors.clear()


@dataclass
class Reading:
    """What the rules of a layout made of a source: our tensors, and what became of each of theirs."""

    state: dict[str, torch.Tensor]
    taken: Counter
    dropped: dict[str, tuple[Rule, list[str]]]
    leftovers: dict[str, torch.Tensor]


def convert_checkpoint(
    source: str,
    checkpoints: list[str | os.PathLike],
    source_config: dict[str, Any] | None = None,
    text_backbone: str | None = None,
    tokenizer: str | os.PathLike | None = None,
    text_preset: str | None = None,
    dtype: torch.dtype | None = None,
) -> Conversion:
    """
    Converts a checkpoint of another project into a model and its processor.

    Args:
        source (`str`): One of [`list_checkpoint_sources`].
        checkpoints (list of `str` or `os.PathLike`): Its files, or folders of Transformers, in any order.
        source_config (`dict`, *optional*): What the tensors cannot tell, such as the number of heads, or the project's own
            configuration. The `config.json` of a folder is read without; where they differ, this holds.
        text_backbone (`str`, *optional*): Folder or Hub id of the LLM, for sources whose texts are vectors of one.
        tokenizer (`str` or `os.PathLike`, *optional*): Folder or Hub id; defaults to the tokenizer in the source's folder.
        text_preset (`str`, *optional*): How the LLM's texts are made, see [`get_text_preset`]; needs a tokenizer.
        dtype (`torch.dtype`, *optional*): Of all weights. Defaults to the widest of the source's tensors, which changes no
            value: a file of float16 and float32, as OpenAI's are, becomes a float32 model, larger than the file. Single
            numbers, such as the temperature, make it float32 at most; the report names those that are wider.

    Returns:
        [`Conversion`]

    Raises:
        ConversionError: If the files are not of this source, tensors are missing, left over or of a wrong shape, a number
            is not known, or `source_config` has a misspelt field. The message lists them.

    Example:
        >>> import os, tempfile
        >>> from transformers import CLIPConfig, CLIPModel
        >>> from modeling_pixclip import convert_checkpoint
        >>> shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = CLIPConfig(
        ...     text_config={**shape, "vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97},
        ...     vision_config={**shape, "image_size": 32, "patch_size": 16},
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> CLIPModel(config).save_pretrained(folder)
        >>> conversion = convert_checkpoint("openai-clip", [folder])
        >>> conversion.model.config.vision_config.num_attention_heads
        2
        >>> conversion.report["filled"]
        {'mask convolution: zeros': ['vision_model.embeddings.mask_patch_embedding.weight']}
    """
    if isinstance(checkpoints, (str, os.PathLike)):
        checkpoints = [checkpoints]
    # Before big files are read.
    source_layouts(source)
    check_text_preset(text_preset, checkpoints, tokenizer)
    given = read_source(source, checkpoints)
    layout, parts, tensors = given.layout, given.parts, given.tensors
    record = describe_source(layout, parts)
    reading = read_tensors(layout, tensors)
    facts = SourceFacts.from_dict(source_config, text_backbone, _folder_config(given.files))
    config = build_config(layout, reading, tensors, facts)
    facts.check_names(source_config)
    if text_backbone is not None and config.text_config.backbone_source is None:
        raise ConversionError(
            f"the text backbone {os.fspath(text_backbone)!r} is given, but a {source!r} checkpoint has its own text tower. "
            "Leave --text_backbone out."
        )
    for rule, names in reading.dropped.values():
        for name in names if rule.check is not None else ():
            rule.check(name, tensors[name], config)
    state, filled = complete_state(layout, reading, config)
    notes = []
    if dtype is None:
        dtype = widest_dtype(state.values())
        notes += _rounded_numbers(layout, state, dtype)
    given, reading = cast_tensors(given, checkpoints, reading, state, config, dtype)
    parts = given.parts
    notes += _not_finite(layout, state)
    model = build_model(layout, config, state, dtype)
    if config.text_config.backbone_source is not None:
        # It has no LLM here, and a saved one loads the LLM that it names.
        model.config.text_config.backbone_embeds_only = False
    image_processor, processor, more = make_processors(layout, config, given.files, tokenizer, text_preset)
    report = {
        "source": source,
        "variant": layout.variant,
        "files": [{"part": part.name, **described} for part, file in parts for described in file.describe()],
        "unwrapped": {part.name: file.unwrapped for part, file in parts if file.unwrapped},
        "beside_the_weights": {part.name: file.beside for part, file in parts if file.beside},
        "taken": dict(reading.taken),
        "merged": sorted(given.originals),
        "dropped": {
            name: {"reason": rule.reason, "tensors": names} for name, (rule, names) in reading.dropped.items()
        },
        "filled": filled,
        "source_config": {"read": facts.used, "assumed": facts.assumed, "not_read": facts.unread(source_config)},
        "model": type(model).__name__,
        "objective": layout.objective,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "notes": facts.notes + notes + more,
        "versions": {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "safetensors": safetensors.__version__,
        },
    }
    leftovers = {**reading.leftovers, **{f"original:{name}": tensor for name, tensor in given.originals.items()}}
    return Conversion(model, image_processor, processor, report, leftovers, record)


def list_checkpoint_sources() -> dict[str, list[str]]:
    """
    The sources that [`convert_checkpoint`] knows, with the layouts that each of them has.

    Example:
        >>> from modeling_pixclip import list_checkpoint_sources
        >>> list_checkpoint_sources()["openai-clip"]
        ['OpenAI state dict', 'CLIPModel of Transformers']
    """
    return {source: [layout.variant for layout in layouts] for source, layouts in CHECKPOINT_SOURCES.items()}


def source_layouts(source: str) -> tuple[SourceLayout, ...]:
    if source not in CHECKPOINT_SOURCES:
        raise ConversionError(
            f"there is no checkpoint source {source!r}; accepted are {', '.join(map(repr, CHECKPOINT_SOURCES))}."
        )
    return CHECKPOINT_SOURCES[source]


def read_source(source: str, checkpoints: list[str | os.PathLike]) -> Source:
    """Opens the files of a source and merges its adapters."""
    files = [read_checkpoint(path) for path in checkpoints]
    layout, parts = choose_layout(source, files)
    tensors = {part.prefix + name: tensor for part, file in parts for name, tensor in file.tensors.items()}
    originals: dict[str, torch.Tensor] = {}
    if layout.prepare is not None:
        tensors, originals = layout.prepare(tensors)
    return Source(files, layout, parts, tensors, originals)


def choose_layout(
    source: str, files: list[CheckpointFile]
) -> tuple[SourceLayout, list[tuple[SourcePart, CheckpointFile]]]:
    """The layout of a source that the files have, and which file is which part of it."""
    complaints = []
    for layout in source_layouts(source):
        parts, complaint = _assign_parts(layout, files)
        if complaint is None:
            return layout, parts
        complaints.append(f"{layout.variant}: {complaint}")
    raise ConversionError(
        f"the {'files are' if len(files) > 1 else 'file is'} not what {source!r} takes. " + " ".join(complaints)
    )


def _assign_parts(layout: SourceLayout, files: list[CheckpointFile]):
    parts, left = [], list(files)
    for part in layout.parts:
        found = [file for file in left if part.recognises(file.tensors)]
        if len(found) > 1:
            return [], f"{[file.path.name for file in found]} are all {part.name!r}; give one."
        if found:
            parts.append((part, found[0]))
            left.remove(found[0])
    if len(parts) == len(layout.parts) and not left:
        return parts, None
    taken = {part.name for part, _ in parts}
    complaint = ""
    if parts:
        complaint = "found " + ", ".join(f"{file.path.name} as {part.name!r}" for part, file in parts) + "; "
    missing = []
    for part in layout.parts:
        if part.name not in taken:
            unlike = [
                f"{file.path.name} ({len(file.tensors)} tensors, first {next(iter(file.tensors))!r}) lacks "
                f"{[name for name in part.markers if name not in file.tensors]}"
                if any(name not in file.tensors for name in part.markers)
                else f"{file.path.name} has {[name for name in part.absent if name in file.tensors]}"
                for file in left
            ]
            without = f" and not {list(part.absent)}" if part.absent else ""
            missing.append(
                f"{part.name!r} is missing, a file with {list(part.markers)}{without}"
                + (f": {'; '.join(unlike)}" if unlike else "")
            )
    if not missing:
        missing = [f"{[file.path.name for file in left]} belong to nothing"]
    return [], complaint + "; ".join(missing) + "."


def _file_name(file: CheckpointFile) -> str:
    """Of a file, or of that which a folder of Transformers has, in one piece."""
    if not file.path.is_dir():
        return file.path.name
    return "model.safetensors" if file.container == "safetensors" else "pytorch_model.bin"


def describe_source(layout: SourceLayout, parts: list[tuple[SourcePart, CheckpointFile]]) -> dict[str, Any]:
    """What is needed to write the source's files again, beside values."""
    return {
        "source": layout.source,
        "variant": layout.variant,
        "files": [
            {
                "part": part.name,
                "name": _file_name(file),
                "container": file.container,
                "config": file.config,
                "tensors": [
                    [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
                    for name, tensor in file.tensors.items()
                ],
            }
            for part, file in parts
        ],
    }


def read_tensors(layout: SourceLayout, tensors: dict[str, torch.Tensor]) -> Reading:
    """Applies a layout's rules: our tensors by our names."""
    taken: Counter = Counter()
    dropped: dict[str, tuple[Rule, list[str]]] = {}
    leftovers: dict[str, torch.Tensor] = {}
    pieces: dict[str, list[tuple[int, str, torch.Tensor]]] = {}
    problems = []
    order = {id(rule): place for place, rule in enumerate(layout.rules)}
    for name, tensor in tensors.items():
        found = layout.find_rule(name)
        if found is None:
            problems.append(f"unexpected: {name!r} {tuple(tensor.shape)}, for which there is no rule")
            continue
        rule, match = found
        if not rule.targets:
            dropped.setdefault(rule.name, (rule, []))[1].append(name)
            leftovers[f"dropped:{name}"] = tensor
            continue
        try:
            parts = rule.operation.read(tensor)
        except ValueError as error:
            problems.append(f"wrong shape: {name!r} {error} (rule {rule.name!r})")
            continue
        if rule.rows is not None:
            rows = rule.rows.taken(len(tensor))
            if len(rows) < len(tensor):
                leftovers[f"rows:{name}"] = torch.cat([tensor[: rows.start], tensor[rows.stop :]])
            parts = [tensor[rows.start : rows.stop]]
        taken[rule.name] += 1
        for template, part in zip(rule.targets, parts, strict=True):
            pieces.setdefault(template.format(**match.groupdict()), []).append((order[id(rule)], name, part))
    state = {}
    for target, found in pieces.items():
        found.sort(key=lambda piece: piece[0])
        several = [name for _, name, _ in found]
        if len(found) > 1 and (len({place for place, _, _ in found}) < len(found) or not _are_rows(layout, several)):
            problems.append(f"twice: {several} all make {target!r}")
        elif len({part.shape[1:] for _, _, part in found}) > 1:
            problems.append(f"wrong shape: {[(name, tuple(tensors[name].shape)) for name in several]} make one table")
        else:
            state[target] = found[0][2] if len(found) == 1 else torch.cat([part for _, _, part in found])
        made_by = {layout.find_rule(name)[0].name for name in several}
        problems += [
            f"missing: {rule.source!r}, rows of {target!r} beside {several}"
            for rule in layout.rules
            if rule.rows is not None and rule.targets == (target,) and rule.name not in made_by
        ]
    if problems:
        raise _listing(layout, problems)
    return Reading(state, taken, dropped, leftovers)


def _are_rows(layout: SourceLayout, names: list[str]) -> bool:
    return all(layout.find_rule(name)[0].rows is not None for name in names)


def _listing(layout: SourceLayout, problems: list[str]) -> ConversionError:
    kinds = Counter(problem.split(":")[0] for problem in problems)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    shown: Counter = Counter()
    lines = []
    for problem in problems:
        kind = problem.split(":")[0]
        shown[kind] += 1
        if shown[kind] <= _LISTED:
            lines.append(f"  {problem}")
        elif shown[kind] == _LISTED + 1:
            lines.append(f"  {kind}: ... ({kinds[kind] - _LISTED} more)")
    return ConversionError(
        f"the checkpoint does not fit {layout.source!r} ({layout.variant}): {counted}.\n" + "\n".join(lines)
    )


def _folder_config(files: list[CheckpointFile]) -> dict[str, Any]:
    """The configuration of the source's folder."""
    config: dict[str, Any] = {}
    for file in files:
        config.update(complete_source_config(file.config or {}))
    return config


def complete_source_config(config: dict[str, Any]) -> dict[str, Any]:
    """A `config.json` of `CLIPModel` with what Transformers takes for fields that are left out; another as it is."""
    if config.get("model_type") != "clip":
        return config
    full = CLIPConfig(**{name: value for name, value in config.items() if name != "model_type"}).to_dict()
    return {name: full[name] for name in ("projection_dim", "text_config", "vision_config")}


def build_config(
    layout: SourceLayout, reading: Reading, tensors: dict[str, torch.Tensor], facts: SourceFacts
) -> PixCLIPConfig:
    """The configuration that a layout gives to what was read."""
    facts.source_shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    facts.values = {name: float(tensor) for name, tensor in reading.state.items() if tensor.numel() == 1}
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in reading.state.items()}, layout)
    try:
        return layout.build_config(shapes, facts)
    except ConversionError:
        raise
    except (StrictDataclassError, ValueError, TypeError) as error:
        raise ConversionError(f"the checkpoint's shapes make no model: {error}") from error


def empty_model(layout: SourceLayout, config: PixCLIPConfig, dtype: torch.dtype = torch.float32) -> PixCLIPModel:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return (PixCLIPForPreTraining if layout.pretraining else PixCLIPModel)._from_config(config, dtype=dtype)


def complete_state(
    layout: SourceLayout, reading: Reading, config: PixCLIPConfig
) -> tuple[dict[str, torch.Tensor], dict[str, list[str]]]:
    """What was read and what is filled: every tensor of the model, each of its shape."""
    own = empty_model(layout, config).state_dict()
    state, filled, problems = {}, {}, []
    dtype = widest_dtype(reading.state.values())
    for name, tensor in own.items():
        if name in reading.state:
            state[name] = reading.state[name]
            if state[name].shape != tensor.shape:
                problems.append(
                    f"wrong shape: {' + '.join(map(repr, layout.sources_of(name)))} make {name!r} "
                    f"{tuple(state[name].shape)}; the model has {tuple(tensor.shape)}"
                )
            elif tensor.is_floating_point() and not state[name].is_floating_point():
                problems.append(
                    f"wrong dtype: {' + '.join(map(repr, layout.sources_of(name)))} make {name!r} of {state[name].dtype}; "
                    "weights are floating-point numbers"
                )
            continue
        fill = next((fill for fill in layout.fills if fill.target_pattern.fullmatch(name)), None)
        if fill is None:
            sources = " or ".join(map(repr, layout.sources_of(name))) or "nothing in this layout"
            problems.append(f"missing: {sources}, which makes {name!r} {tuple(tensor.shape)}")
        else:
            state[name] = fill.value(reading.state, tensor.shape, dtype)
            filled.setdefault(fill.name, []).append(name)
    problems += [
        f"unexpected: {' + '.join(map(repr, layout.sources_of(name)))} make {name!r}, which the model does not have"
        for name in reading.state
        if name not in own
    ]
    if problems:
        raise _listing(layout, problems)
    return state, filled


def widest_dtype(tensors) -> torch.dtype:
    """The floating-point dtype that holds all of them exactly, but for numbers of more than float32."""
    widest = None
    for tensor in tensors:
        if tensor.is_floating_point():
            # One Python float that became a tensor must not make all weights float64.
            dtype = torch.float32 if tensor.numel() == 1 and tensor.dtype == torch.float64 else tensor.dtype
            widest = dtype if widest is None else torch.promote_types(widest, dtype)
    return widest or torch.float32


def _rounded_numbers(layout: SourceLayout, state: dict[str, torch.Tensor], dtype: torch.dtype) -> list[str]:
    return [
        f"{' + '.join(layout.sources_of(name))} is {float(tensor):.9g} of {tensor.dtype}, which does not widen the "
        f"model; it becomes {float(tensor.to(dtype)):.9g} of {dtype} unless --dtype says otherwise"
        for name, tensor in state.items()
        if tensor.numel() == 1 and torch.promote_types(tensor.dtype, dtype) != dtype
    ]


def _not_finite(layout: SourceLayout, state: dict[str, torch.Tensor]) -> list[str]:
    wrong = [
        " + ".join(layout.sources_of(name)) or name
        for name, tensor in state.items()
        # No number is not finite where the least and the most are not; this needs no memory of the tensor's size.
        if not all(bound.isfinite() for bound in tensor.aminmax())
    ]
    if not wrong:
        return []
    listed = ", ".join(wrong[:_LISTED]) + (f", ... ({len(wrong) - _LISTED} more)" if len(wrong) > _LISTED else "")
    return [f"{len(wrong)} tensors hold NaN or infinite numbers: {listed}"]


def cast_tensors(
    given: Source,
    checkpoints: list[str | os.PathLike],
    reading: Reading,
    state: dict[str, torch.Tensor],
    config: PixCLIPConfig,
    dtype: torch.dtype,
) -> tuple[Source, Reading]:
    """
    Gives the tensors of `state` one dtype, in place, without the whole file beside them in memory.

    Pages that were read of a mapped file stay in memory as long as its mapping. Part by part the files are therefore let go
    of and mapped anew; what is not cast then belongs to the newest mapping, of which nothing is read.
    """
    pending = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.dtype != dtype]
    share = sum(state[name].nbytes for name in pending) / _CAST_PARTS
    done: dict[str, torch.Tensor] = {}
    while pending:
        read = 0
        while pending and read < share:
            name = pending.pop()
            read += state[name].nbytes
            done[name] = state[name].to(dtype)
        for tensors in (state, reading.state, reading.leftovers):
            tensors.clear()
        given.release()
        given = read_source(given.layout.source, checkpoints)
        reading = read_tensors(given.layout, given.tensors)
        state.update(complete_state(given.layout, reading, config)[0])
    state.update(done)
    return given, reading


def build_model(
    layout: SourceLayout, config: PixCLIPConfig, state: dict[str, torch.Tensor], dtype: torch.dtype
) -> PixCLIPModel:
    """The model around its tensors of one dtype, which are not copied."""
    model = empty_model(layout, config, dtype)
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.load_state_dict(state, strict=True, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])
        # What Transformers then does not initialise.
        parameter._is_hf_initialized = True
    saved = set(state)
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if f"{path}.{name}" not in saved and buffer.is_meta:
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
            else:
                buffer._is_hf_initialized = True
    # Buffers that no checkpoint holds (positions counted) get their values, as in from_pretrained.
    model.initialize_weights()
    model.text_model.remember_weights()
    return model.eval()


__all__ = [
    "CHECKPOINT_SOURCES",
    "Conversion",
    "convert_checkpoint",
    "list_checkpoint_sources",
]
