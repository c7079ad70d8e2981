# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Writes a model in the layout of another project, from the same tables that read it."""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import save_file
from transformers.configuration_utils import PreTrainedConfig

from .checkpoint_files import read_checkpoint
from .configuration_pixclip import PixCLIPConfig, PixCLIPTextConfig, PixCLIPVisionConfig
from .conversion import (
    CHECKPOINT_SOURCES,
    build_config,
    complete_source_config,
    complete_state,
    read_tensors,
    source_layouts,
)
from .conversion_folder import (
    REPORT_FILE,
    check_record,
    damaged_record,
    new_folder,
    read_leftovers,
    tensor_digests,
    whole_tensor,
    write_json,
)
from .conversion_rules import ConversionError, Rule, SourceFacts, SourceLayout
from .modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel


# What of our configurations another project has no field for, and its forward pass no use.
_OURS = {
    *(field.name for field in fields(PreTrainedConfig)),
    *("backbone_config backbone_training backbone_lora backbone_dtype backbone_source backbone_in_checkpoint".split()),
    *("padding_free adapter_layers adapter_expansion adapter_layer_norm_eps bidirectional".split()),
    *("initializer_range initializer_factor attention_dropout default_mask dense_features image_size".split()),
    *("stem_config stem_stride stem_channels".split()),
}
_BACKBONE = "model_type hidden_act layer_norm_eps num_attention_heads num_hidden_layers eos_token_id".split()
_SAFETENSORS = "safetensors"
_HUB_FILES = {"safetensors": "model.safetensors", "torch": "pytorch_model.bin"}
_LAYOUTS = {"state_dict": False, "folder": True}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_LISTED = 20


@dataclass
class SourceFile:
    """
    One file in another project's layout.

    Args:
        name (`str`): File name.
        container (`str`): `"safetensors"`, or `"torch"` for `torch.save`.
        tensors (`dict[str, torch.Tensor]`): By the project's names.
    """

    name: str
    container: str
    tensors: dict[str, torch.Tensor]


def to_source(
    model: PixCLIPModel,
    to: str,
    record: dict[str, Any] | None = None,
    leftovers: dict[str, torch.Tensor] | None = None,
    layout: str | None = None,
) -> tuple[list[SourceFile], dict[str, Any], list[str]]:
    """
    A model's tensors in the layout of another project.

    With what [`convert_checkpoint`] has kept of the same source (`record`, `leftovers`) names, shapes, dtypes and, where
    nothing was trained, values are those that came in. Without, the project's usual names are written in the model's dtype,
    and what the model has no place for is filled: rows of a table that are never read with those of the model's table, the
    vision tower of Alpha-CLIP's first file with that of the second, FG-CLIP's temperatures with the model's.

    Args:
        model ([`PixCLIPModel`]): The model.
        to (`str`): A source with a way back: `"openai-clip"`, `"alpha-clip"`, `"fg-clip"`, `"long-clip"`.
        record (`dict`, *optional*), leftovers (`dict`, *optional*): From [`Conversion`].
        layout (`"state_dict"` or `"folder"`, *optional*): The project's own, or that of Transformers with its
            `config.json`. Defaults to what came in, and without a record to the project's own, where it has one.

    Returns:
        `tuple`: The files, what shapes cannot tell (`--source_config` of the way in, or `config.json` of a folder), and
        notes on what was filled or left out.

    Raises:
        ConversionError: If the layout has no place for a weight of the model, a tensor of the layout cannot be made, the
            project's code would compute something else, or the record is none that a conversion has made.

    Example:
        >>> import tempfile
        >>> from transformers import CLIPConfig, CLIPModel
        >>> from modeling_pixclip import convert_checkpoint, to_source
        >>> shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 1}
        >>> config = CLIPConfig(
        ...     text_config={**shape, "vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97},
        ...     vision_config={**shape, "image_size": 32, "patch_size": 16},
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> CLIPModel(config).save_pretrained(folder)
        >>> model = convert_checkpoint("openai-clip", [folder]).model
        >>> [file], source_config, notes = to_source(model, "openai-clip")
        >>> file.tensors["visual.transformer.resblocks.0.attn.in_proj_weight"].shape
        torch.Size([192, 64])
    """
    if model.config.vision_config.stem_config is not None:
        raise ConversionError(
            f"the vision tower has a stem (stem_config of type {model.config.vision_config.stem_config.model_type!r}), which "
            "no other project's layout has a place for. Save the model with save_pretrained."
        )
    if record is not None:
        check_record(record, leftovers or {})
    target, record, notes = _choose_layout(to, record, layout)
    state = model.state_dict()
    files = _Writer(target, model.config, state, record, (leftovers or {}) if record else {}, notes).files()
    given = [file["config"] for file in (record or {}).get("files", ()) if file["config"]]
    source_config = given[0] if target.hub_folder and given else target.source_config(model.config)
    try:
        _check_way_in(target, model.config, state, files, source_config)
    except ConversionError:
        raise
    except (AttributeError, KeyError, RecursionError, StrictDataclassError, TypeError, ValueError) as error:
        if not given:
            raise
        raise damaged_record(f"its config.json makes no model ({error})") from error
    return [file for _, file in files], source_config, notes


def _choose_layout(
    to: str, record: dict[str, Any] | None, layout: str | None
) -> tuple[SourceLayout, dict[str, Any] | None, list[str]]:
    """The layout to write, the record where it is of it, and notes."""
    targets = [target for target in source_layouts(to) if target.source_config is not None]
    if not targets:
        accepted = [
            name for name, others in CHECKPOINT_SOURCES.items() if any(other.source_config for other in others)
        ]
        raise ConversionError(f"there is no way back to {to!r}; accepted are {', '.join(map(repr, accepted))}.")
    if layout is not None:
        accepted = [
            name for name, folder in _LAYOUTS.items() if any(target.hub_folder == folder for target in targets)
        ]
        if layout not in accepted:
            raise ConversionError(f"{to!r} has no layout {layout!r}; accepted are {', '.join(map(repr, accepted))}.")
        targets = [target for target in targets if target.hub_folder == _LAYOUTS[layout]]
    if record is None:
        return targets[0], None, []
    if record["source"] == to:
        for target in targets:
            if target.variant == record["variant"]:
                return target, record, []
    came = f"{record['source']!r} ({record['variant']})"
    return targets[0], None, [f"what the folder keeps of its source is of {came} and was not used"]


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """NaN is NaN here, and 0 is not -0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    kind = _INTEGERS[one.element_size()]
    return torch.equal(one.reshape(-1).view(kind), other.reshape(-1).view(kind))


class _Writer:
    """Turns the rules of a layout round."""

    def __init__(self, layout: SourceLayout, config: PixCLIPConfig, state, record, leftovers, notes: list[str]):
        self.layout, self.config, self.state = layout, config, state
        self.record, self.leftovers, self.notes = record, leftovers, notes
        self.used: set[str] = set()
        self.problems: list[str] = []
        self.rounded: list[str] = []
        self.wider: list[str] = []

    def files(self) -> list[tuple[str, SourceFile]]:
        """The files, each with the prefix of its names in the rules."""
        names = self._wanted()
        written = {name: self._tensor(name, dtype, shape) for name, (dtype, shape) in names.items()}
        self._check_places()
        if self.problems:
            lines = "\n".join(f"  {problem}" for problem in self.problems[:_LISTED])
            if len(self.problems) > _LISTED:
                lines += f"\n  ... ({len(self.problems) - _LISTED} more)"
            raise ConversionError(
                f"the model cannot be written as {self.layout.source!r} ({self.layout.variant}), "
                f"{len(self.problems)} problems:\n{lines}"
            )
        self._restore_merged(written)
        for names, what in (
            (self.rounded, "were of a wider dtype in the source and come back as the model has rounded them"),
            (self.wider, "are written in the model's dtype and not in the source's, as their values now need it"),
        ):
            if names:
                self.notes.append(f"{len(names)} tensors {what}: {', '.join(names[:3])}{', ...' if names[3:] else ''}")
        files, taken = [], set()
        prefixes = tuple(part.prefix for part in self.layout.parts if part.prefix)
        for part in self.layout.parts:
            described = next((file for file in (self.record or {}).get("files", ()) if file["part"] == part.name), {})
            file_name = described.get("name", part.file_name)
            container = described.get("container", _SAFETENSORS if file_name.endswith(_SAFETENSORS) else "torch")
            if container == "torchscript":
                self.notes.append(f"{file_name} was a TorchScript archive; its state dict is written")
                container = "torch"
            if self.layout.hub_folder and not part.prefix and file_name != _HUB_FILES[container]:
                self.notes.append(f"{file_name} is written as {_HUB_FILES[container]}, as Transformers looks for it")
                file_name = _HUB_FILES[container]
            if file_name.casefold() in taken:
                given, number = Path(file_name), 2
                while file_name.casefold() in taken:
                    file_name, number = f"{given.stem}-{number}{given.suffix}", number + 1
                self.notes.append(f"two files are named {given.name}; {part.name!r} is written as {file_name}")
            taken.add(file_name.casefold())
            own = {
                name.removeprefix(part.prefix): tensor
                for name, tensor in written.items()
                if (name.startswith(part.prefix) if part.prefix else not name.startswith(prefixes))
            }
            files.append((part.prefix, SourceFile(file_name, container, own)))
        return files

    def _wanted(self) -> dict[str, tuple[torch.dtype | None, tuple | None]]:
        """Names of the source's tensors, with dtype and shape where these are known."""
        if self.record is not None:
            prefixes = {part.name: part.prefix for part in self.layout.parts}
            return {
                prefixes[file["part"]] + name: (getattr(torch, dtype), tuple(shape))
                for file in self.record["files"]
                for name, dtype, shape in file["tensors"]
            }
        names: dict[str, tuple[None, None]] = {}
        for rule in (*self.layout.rules, *self.layout.write_only):
            if rule.alias or not rule.targets:
                continue
            found = [
                rule.source.format(**match.groupdict())
                for own in self.state
                if (match := rule.target_pattern.fullmatch(own))
            ]
            if not found and "{" not in rule.source:
                # Made from another parameter, or missing, which is told when it is to be written.
                found = [rule.source]
            names.update(dict.fromkeys(found, (None, None)))
        return names

    def _tensor(self, name: str, dtype: torch.dtype | None, shape: tuple | None) -> torch.Tensor | None:
        if f"original:{name}" in self.leftovers:
            # Merged in the model; see _restore_merged.
            return self.leftovers[f"original:{name}"]
        if f"dropped:{name}" in self.leftovers:
            return self.leftovers[f"dropped:{name}"]
        rule, match = self._rule(name)
        targets = [template.format(**match.groupdict()) for template in rule.targets]
        missing = [target for target in targets if target not in self.state]
        if missing and rule.written_from in self.state:
            self.notes.append(f"{name} is written from {rule.written_from}")
            targets = [rule.written_from]
        elif missing:
            self.problems.append(f"{name!r} needs {missing}, which the model does not have")
            return None
        self.used.update(targets)
        if rule.rows is not None:
            tensor = self._rows(name, rule)
        else:
            tensor = rule.operation.write([self.state[target] for target in targets])
        if missing:
            # Files of tensors hold none twice.
            tensor = tensor.clone()
        if shape is not None and tensor.shape != shape:
            if tensor.numel() != torch.Size(shape).numel():
                self.problems.append(f"{name!r} was {shape}; the model makes {tuple(tensor.shape)} of it")
                return None
            tensor = tensor.reshape(shape)
        if dtype is None or tensor.dtype == dtype:
            return tensor
        if torch.promote_types(tensor.dtype, dtype) != tensor.dtype:
            self.rounded.append(name)
        cast = tensor.to(dtype)
        if _same_bits(cast.to(tensor.dtype), tensor):
            return cast
        self.wider.append(name)
        return tensor

    def _rule(self, name: str):
        # What the source has instead of a dropped tensor comes from the rules made for writing.
        for rule in self.layout.write_only:
            if match := rule.source_pattern.fullmatch(name):
                return rule, match
        found = self.layout.find_rule(name)
        if found is None or not found[0].targets:
            raise damaged_record(f"nothing makes {name!r}")
        return found

    def _rows(self, name: str, rule: Rule) -> torch.Tensor:
        target = rule.targets[0]
        table, first = self.state[target], 0
        for other in self.layout.rules:
            if other is rule:
                break
            if other.rows is not None and other.targets == rule.targets:
                first += len(other.rows.taken(other.rows.count(self.config)))
        rows = rule.rows.count(self.config)
        taken = rule.rows.taken(rows)
        kept = table[first : first + len(taken)]
        unread = self.leftovers.get(f"rows:{name}")
        if unread is None:
            start = first - taken.start
            if len(taken) < rows:
                self.notes.append(f"rows of {name} that are never read are those of {target}")
            return table[start : start + rows]
        if unread.shape != (rows - len(taken), *kept.shape[1:]):
            raise damaged_record(f"it has {tuple(unread.shape)} of the rows of {name!r}")
        unread = unread.to(kept.dtype)
        return torch.cat([unread[: taken.start], kept, unread[taken.start :]])

    def _check_places(self):
        """Each parameter of ours is written, or is what it would be filled with on the way in."""
        for name, tensor in self.state.items():
            if name in self.used or self._is_merged(name):
                continue
            fill = next((fill for fill in self.layout.fills if fill.target_pattern.fullmatch(name)), None)
            if fill is None:
                if name.startswith("logit_") or name == "ranking_margin":
                    self.notes.append(f"{name} of the objective is left out")
                else:
                    self.problems.append(f"{name!r} {tuple(tensor.shape)} has no place in this layout")
            elif not torch.equal(tensor, fill.value(self.state, tensor.shape, tensor.dtype)):
                self.problems.append(
                    f"{name!r} has no place in this layout, and is not what it stands for ({fill.name})"
                )

    def _is_merged(self, name: str) -> bool:
        return any(f"original:{source}" in self.leftovers for source in self.layout.sources_of(name))

    def _restore_merged(self, written: dict[str, torch.Tensor]):
        """Adapters that were merged are written as they were, if their weights still are what merging made of them."""
        originals = {name for name in written if f"original:{name}" in self.leftovers}
        if not originals:
            return
        try:
            merged, _ = self.layout.prepare({name: written[name] for name in originals})
            own = {}
            for name in merged:
                rule, match = self._rule(name)
                targets = [template.format(**match.groupdict()) for template in rule.targets]
                own[name] = rule.operation.write([self.state[target] for target in targets])
        except (ConversionError, IndexError, KeyError, RuntimeError) as error:
            raise damaged_record(f"its adapters are none of this model ({error})") from error
        if all(_same_bits(merged[name].to(own[name].dtype), own[name]) for name in merged):
            return
        self.notes.append("weights with adapters have been trained since; they are written with the adapters merged")
        for name in originals:
            del written[name]
        written.update(own)


def _architecture(config: PixCLIPConfig) -> dict[str, Any]:
    """What a forward pass depends on, beside the weights."""
    facts = {}
    for tower, kind in (("vision_config", PixCLIPVisionConfig), ("text_config", PixCLIPTextConfig)):
        own = getattr(config, tower)
        names = [field.name for field in fields(kind) if field.name not in _OURS]
        facts.update({f"{tower}.{name}": getattr(own, name) for name in names})
    facts["vision_config.grid_size"] = config.vision_config.grid_size
    backbone = config.text_config.backbone_text_config
    facts.update({f"backbone_config.{name}": getattr(backbone, name, None) for name in _BACKBONE})
    return facts


def _check_way_in(
    layout: SourceLayout,
    config: PixCLIPConfig,
    state: dict[str, torch.Tensor],
    files: list[tuple[str, SourceFile]],
    source_config: dict[str, Any],
):
    """Reads what is to be written, which has to give the model back."""
    tensors = {prefix + name: tensor for prefix, file in files for name, tensor in file.tensors.items()}
    if layout.prepare is not None:
        tensors, _ = layout.prepare(tensors)
    reading = read_tensors(layout, tensors)
    back = build_config(layout, reading, tensors, SourceFacts.from_dict(complete_source_config(source_config)))
    ours, theirs = _architecture(config), _architecture(back)
    differ = [f"{name} is {ours[name]!r}, there {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
    if differ:
        raise ConversionError(
            f"as {layout.source!r} the model would compute something else: {'; '.join(differ)}. Nothing was written."
        )
    complete_state(layout, reading, back)
    changed = [
        name
        for name, tensor in reading.state.items()
        if name in state and not _same_bits(tensor.to(state[name].dtype), state[name])
    ]
    if changed:
        raise ConversionError(
            f"{changed[:5]} do not come back as they are from {layout.source!r}. Nothing was written."
        )


def export_checkpoint(
    checkpoint: str | os.PathLike, to: str, output_dir: str | os.PathLike, layout: str | None = None
) -> dict[str, Any]:
    """
    Writes a saved model in the layout of another project, see [`to_source`].

    Args:
        checkpoint (`str` or `os.PathLike`): Folder of a saved PixCLIP model; one of [`convert_to_folder`] gives back what
            came in, bit by bit. What it keeps of its source is checked and trusted in nothing.
        to (`str`): `"openai-clip"`, `"alpha-clip"`, `"fg-clip"` or `"long-clip"`.
        output_dir (`str` or `os.PathLike`): New or empty folder. Beside the files there are `conversion_report.json` and
            what shapes cannot tell, as `config.json` or `source_config.json`.
        layout (`"state_dict"` or `"folder"`, *optional*): As in [`to_source`].

    Returns:
        `dict`: The report.

    Raises:
        ConversionError: As in [`to_source`], or if `output_dir` is not empty, the current folder or a mount point.

    Example:
        >>> import os, tempfile
        >>> from transformers import CLIPConfig, CLIPModel
        >>> from modeling_pixclip import convert_to_folder, export_checkpoint
        >>> shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> config = CLIPConfig(
        ...     text_config={**shape, "vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97},
        ...     vision_config={**shape, "image_size": 32, "patch_size": 16},
        ... )
        >>> folder = tempfile.mkdtemp()
        >>> CLIPModel(config).save_pretrained(folder)
        >>> report = convert_to_folder("openai-clip", [folder], os.path.join(folder, "pixclip"))
        >>> report = export_checkpoint(os.path.join(folder, "pixclip"), "openai-clip", os.path.join(folder, "back"))
        >>> model = CLIPModel.from_pretrained(os.path.join(folder, "back"))
    """
    with new_folder(output_dir) as folder:
        record, leftovers = read_leftovers(checkpoint)
        if record is not None:
            check_record(record, leftovers)
        target, used, _ = _choose_layout(to, record, layout)
        model = _load(Path(checkpoint), target.pretraining)
        files, source_config, notes = to_source(model, to, record, leftovers, layout)
        del model, leftovers
        report = {
            "to": to,
            "variant": target.variant,
            "files": {file.name: len(file.tensors) for file in files},
            "from_record": used is not None,
            "notes": notes,
        }
        written = []
        while files:
            # One file in memory at a time, and what is read back beside none.
            file = files.pop(0)
            tensors = {name: whole_tensor(tensor) for name, tensor in file.tensors.items()}
            if file.container == _SAFETENSORS:
                save_file(tensors, folder / file.name, metadata={"format": "pt"})
            else:
                torch.save(tensors, folder / file.name)
            written.append((file.name, tensor_digests(tensors)))
            del file, tensors
        for name, digests in written:
            if tensor_digests(read_checkpoint(folder / name).tensors) != digests:
                raise ConversionError(
                    f"{name} does not read back as it was written. The disk may be faulty; nothing was kept."
                )
        if target.hub_folder:
            notes.append(_what_to_add(target, source_config))
        write_json(folder / ("config.json" if target.hub_folder else "source_config.json"), source_config)
        write_json(folder / REPORT_FILE, report)
    return report


def _what_to_add(layout: SourceLayout, source_config: dict[str, Any]) -> str:
    """What a folder has beside weights and `config.json`."""
    others = ["its tokenizer's files", "preprocessor_config.json"]
    code = source_config.get("auto_map")
    if code:
        others.insert(0, f"the code that config.json names ({json.dumps(code)})")
    elif layout.source == "fg-clip":
        others.insert(0, "its code (modeling_fgclip.py and auto_map in config.json), without which it is a CLIPModel")
    return f"weights and config.json are written; a complete folder also has {', '.join(others)}: take them from the source"


def _load(folder: Path, pretraining: bool) -> PixCLIPModel:
    if not (folder / "config.json").is_file():
        raise ConversionError(f"{os.fspath(folder)!r} is no folder of a saved PixCLIP model: it has no config.json.")
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if model_type != "pixclip":
        raise ConversionError(f"{os.fspath(folder)!r} is a model of type {model_type!r}; accepted is 'pixclip'.")
    model_class = PixCLIPForPreTraining if pretraining else PixCLIPModel
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    for name in info["missing_keys"]:
        # Not the model's, but what a new objective starts with.
        if not name.startswith("logit_scale_"):
            raise ConversionError(f"{os.fspath(folder)!r} lacks the weight {name!r}.")
        delattr(model, name)
    return model


__all__ = ["SourceFile", "export_checkpoint", "to_source"]
