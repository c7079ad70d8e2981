# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
The vocabulary that layouts of checkpoints are written in: rules both ways, fills, facts that shapes cannot tell.

A layout ([`SourceLayout`]) is a table of [`Rule`]s. Both sides of a rule are templates of tensor names: `{block}` stands for a
number, `{kind}` for `weight` or `bias`, `{rest}` for anything. Reading goes from `source` to `targets`, writing back the
other way; an [`Operation`] says what happens to the values. Tensors of ours without a rule have a [`Fill`]. What shapes
cannot tell (heads, activation, epsilons) `build_config` asks of [`SourceFacts`]. To add a layout, write its table and
`build_config` in a module of its own and list it in `conversion.CHECKPOINT_SOURCES`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import torch
from transformers import CLIPTextConfig

from .configuration_pixclip import PixCLIPConfig


# Likeness of a name and its misspelling: above are "vision_head" and "eos_token"; below, all fields of official
# configurations ("vision_config_dict" of old ones has 0.84), but for "bos_token_id".
_CLOSE = 0.85
_CLIP_FIELDS = {field.name for field in fields(CLIPTextConfig)}
_PLACEHOLDERS = {"block": r"\d+", "kind": r"weight|bias", "rest": r".+"}


class ConversionError(ValueError):
    """
    A checkpoint that cannot be converted as it is; the message lists what does not fit, with both sides.

    Example:
        >>> from modeling_pixclip import ConversionError, convert_checkpoint
        >>> try:
        ...     convert_checkpoint("open-clip", ["weights.pt"])
        ... except ConversionError as error:
        ...     print(str(error).split(";")[0])
        there is no checkpoint source 'open-clip'
    """


def compile_template(template: str) -> re.Pattern:
    """The regular expression of a template of names, a placeholder that occurs twice standing for the same text."""
    seen: set[str] = set()
    pattern = ""
    for part in re.split(r"(\{\w+\})", template):
        name = part[1:-1] if part.startswith("{") else None
        if name is None:
            pattern += re.escape(part)
        elif name in seen:
            pattern += f"(?P={name})"
        else:
            seen.add(name)
            pattern += f"(?P<{name}>{_PLACEHOLDERS[name]})"
    return re.compile(pattern)


@dataclass(frozen=True)
class Operation:
    """
    What a rule does to values, and its inverse.

    Args:
        name (`str`): For reports.
        read (`Callable`): From a source tensor to one tensor for each target. `ValueError` with a reason if it has no
            shape that it can read.
        write (`Callable`): From the tensors of the targets to the source tensor.
    """

    name: str
    read: Callable[[torch.Tensor], list[torch.Tensor]]
    write: Callable[[list[torch.Tensor]], torch.Tensor]


def _split_thirds(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.ndim == 0 or len(tensor) % 3:
        raise ValueError(f"{tuple(tensor.shape)} does not split into query, key and value")
    return list(tensor.chunk(3))


def _transposed(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.ndim != 2:
        raise ValueError(f"{tuple(tensor.shape)} is no matrix to transpose")
    return tensor.T.contiguous()


def _one_entry(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.numel() != 1:
        raise ValueError(f"{tuple(tensor.shape)} is no single number")
    return tensor.reshape(1)


def _strip(axes: int) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    def read(tensor: torch.Tensor) -> list[torch.Tensor]:
        if tuple(tensor.shape[:axes]) != (1,) * axes:
            raise ValueError(f"{tuple(tensor.shape)} does not start with {axes} axes of length 1")
        return [tensor.reshape(tensor.shape[axes:])]

    return read


COPY = Operation("copy", lambda tensor: [tensor], lambda tensors: tensors[0])
TRANSPOSE = Operation("transpose", lambda tensor: [_transposed(tensor)], lambda tensors: _transposed(tensors[0]))
SPLIT_QKV = Operation("split into query, key, value", _split_thirds, torch.cat)
# Our temperatures have one entry, those of other projects mostly none; `write` gives the latter.
SCALAR = Operation("number", lambda tensor: [_one_entry(tensor)], lambda tensors: tensors[0].reshape(()))
STRIP_ONE_AXIS = Operation("strip an axis", _strip(1), lambda tensors: tensors[0][None])
STRIP_TWO_AXES = Operation("strip two axes", _strip(2), lambda tensors: tensors[0][None, None])


@dataclass(frozen=True)
class Rows:
    """
    The rows of a source table that a rule takes, for a target that several tables make up, in the order of their rules.

    Args:
        start (`int`), stop (`int`, *optional*): Rows that are taken; the others are never read by the source's own code.
        count (`Callable`): Rows that the source's table has, from our configuration. Written without a record of the
            rows that were not taken, these are those of the target at the same place.
    """

    start: int
    stop: int | None
    count: Callable[[PixCLIPConfig], int]

    def taken(self, rows: int) -> range:
        """Those taken of a table of so many rows."""
        return range(rows)[self.start : self.stop]


@dataclass(frozen=True)
class Rule:
    """
    One line of a layout's table.

    Args:
        name (`str`): What the tensors are, for reports.
        source (`str`): Template of the names in the source.
        targets (`str` or tuple of `str`, *optional*): Templates of our names, as many as the operation has parts. Without
            any the tensors are dropped.
        operation ([`Operation`], *optional*, defaults to `COPY`): What happens to the values.
        reason (`str`, *optional*): Why tensors are dropped.
        rows ([`Rows`], *optional*): Which rows of a table are taken.
        alias (`bool`, *optional*, defaults to `False`): Another spelling of what another rule has; read, never written.
        written_from (`str`, *optional*): Parameter of ours that is written where the model lacks the target.
        check (`Callable`, *optional*): Of tensors that are dropped because the configuration makes them anew: takes name,
            tensor and configuration, and raises a [`ConversionError`] where the configuration makes others.
    """

    name: str
    source: str
    targets: str | tuple[str, ...] = ()
    operation: Operation = COPY
    reason: str = ""
    rows: Rows | None = None
    alias: bool = False
    written_from: str | None = None
    check: Callable[[str, torch.Tensor, PixCLIPConfig], None] | None = None

    def __post_init__(self):
        if isinstance(self.targets, str):
            object.__setattr__(self, "targets", (self.targets,))
        if not self.targets and not self.reason:
            raise ValueError(f"the rule {self.name!r} drops tensors without a reason.")

    @cached_property
    def source_pattern(self) -> re.Pattern:
        return compile_template(self.source)

    @cached_property
    def target_pattern(self) -> re.Pattern:
        """Of the first target, by which a source name is found from ours."""
        return compile_template(self.targets[0])


@dataclass(frozen=True)
class Fill:
    """
    Where a parameter of ours comes from that the source does not have.

    Args:
        name (`str`): What is filled, and with what, for reports.
        target (`str`): Template of our names.
        value (`Callable`): From the tensors read so far, the target's shape and the dtype, to the tensor. Another value
            than this is refused when written back.
    """

    name: str
    target: str
    value: Callable[[dict[str, torch.Tensor], torch.Size, torch.dtype], torch.Tensor]

    @cached_property
    def target_pattern(self) -> re.Pattern:
        return compile_template(self.target)


MASK_CONVOLUTION_ZERO = Fill(
    "mask convolution: zeros",
    "vision_model.embeddings.mask_patch_embedding.{kind}",
    lambda state, shape, dtype: torch.zeros(shape, dtype=dtype),
)


@dataclass(frozen=True)
class SourcePart:
    """
    One of the files (or folders) that make up a checkpoint.

    Args:
        name (`str`): What it is, for messages.
        markers (tuple of `str`): Tensors by which it is recognised: it has all of them.
        absent (tuple of `str`, *optional*): Tensors that it must not have.
        prefix (`str`, *optional*): Put before its names, which keeps those of several files apart in the rules.
        file_name (`str`, *optional*): Where it is written to when its own name is not known.
    """

    name: str
    markers: tuple[str, ...]
    absent: tuple[str, ...] = ()
    prefix: str = ""
    file_name: str = "checkpoint.pt"

    def recognises(self, names: set[str] | dict) -> bool:
        return all(name in names for name in self.markers) and not any(name in names for name in self.absent)


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value})
    return flat


@dataclass
class SourceFacts:
    """
    What the configuration that belongs to a checkpoint says, and who asked for it.

    Args:
        given (`dict`): The user's `--source_config`. Fields of parts have dotted names
            (`vision_config.num_attention_heads`).
        folder (`dict`): The `config.json` of the source's folder, which `given` overrides under any of a field's names.
        text_backbone (`str`, *optional*): Folder or Hub id of the text backbone that the user named.
        source_shapes (`dict`): Shapes of the source's tensors, by the names that the rules have.
        values (`dict`): Our parameters of one number, such as the temperature.
        used (`dict`), assumed (`dict`), notes (`list`): For the report: facts from `given`, defaults with the reason, and
            what else a layout has to say.
    """

    given: dict[str, Any] = field(default_factory=dict)
    folder: dict[str, Any] = field(default_factory=dict)
    text_backbone: str | None = None
    source_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    used: dict[str, Any] = field(default_factory=dict)
    assumed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _read: set[str] = field(default_factory=set)

    @classmethod
    def from_dict(
        cls,
        config: dict[str, Any] | None,
        text_backbone: str | None = None,
        folder: dict[str, Any] | None = None,
    ) -> "SourceFacts":
        return cls(_flatten(config or {}), _flatten(folder or {}), text_backbone)

    def _find(self, names: tuple[str, ...]) -> tuple[str, Any] | None:
        self._read.update(names)
        told = []
        for config in (self.given, self.folder):
            found = {name: config[name] for name in names if config.get(name) is not None}
            if len({repr(value) for value in found.values()}) > 1:
                raise ConversionError(f"the source configuration contradicts itself: {found} mean the same.")
            told += list(found.items())[:1]
        if len(told) == 2 and told[0][1] != told[1][1]:
            (name, value), (other, theirs) = told
            self._note(
                f"{name} = {value!r} of --source_config holds over {other} = {theirs!r} of the folder's config.json"
            )
        return told[0] if told else None

    def _note(self, note: str):
        # Both towers ask for some of the fields.
        if note not in self.notes:
            self.notes.append(note)

    def take(self, *names: str, default: Any = None, why: str = "") -> Any:
        """
        A fact under any of its names, or its default.

        Args:
            *names (`str`): Names of the field, ours first.
            default (`Any`, *optional*): What holds without it; without one the field is required.
            why (`str`): Why the default holds, or why there is none.
        """
        found = self._find(names)
        if found is not None:
            self.used[names[0]] = found[1]
            return found[1]
        if default is None:
            raise ConversionError(
                f"{why}. The tensors cannot tell it: give {names[0]!r} in --source_config"
                + (f" (also read: {', '.join(map(repr, names[1:]))})." if names[1:] else ".")
            )
        self.assumed[names[0]] = f"{default!r} ({why})"
        return default

    def agree(self, *names: str, found: Any, loose: tuple[Any, ...] = ()) -> Any:
        """What the tensors say, which the source configuration must not contradict; of `loose` values there is a note."""
        said = self._find(names)
        if said is not None and said[1] != found and said[1] in loose:
            self._note(
                f"the source configuration says {said[0]} = {said[1]!r}; the tensors have {found!r}, which holds"
            )
        elif said is not None and said[1] != found:
            raise ConversionError(
                f"the source configuration says {said[0]} = {said[1]!r}, but the tensors have {found!r}. Take the "
                "configuration that belongs to this checkpoint, or leave the field out."
            )
        return found

    def unread(self, config: dict[str, Any] | None) -> list[str]:
        """Fields of a configuration that nothing asked for."""
        return sorted(set(_flatten(config or {})) - self._read)

    def check_names(self, config: dict[str, Any] | None):
        """
        Refuses a field at the top of the user's configuration that nothing asked for and that is almost the name of one that
        something did; a note names the others, which whole configurations of a project have.
        """
        accepted = sorted({name.split(".")[0] for name in self._read})
        unknown = [name for name, value in (config or {}).items() if name not in accepted and value is not None]
        for name in unknown:
            close = get_close_matches(name, accepted, n=1, cutoff=_CLOSE)
            if close and name not in _CLIP_FIELDS:
                raise ConversionError(
                    f"nothing reads the field {name!r} of --source_config; did you mean {close[0]!r}? Accepted for this "
                    f"source are {', '.join(accepted)}."
                )
        if unknown:
            self._note(f"fields of --source_config that nothing reads: {', '.join(unknown)}")


class Shapes(dict[str, tuple[int, ...]]):
    """
    Shapes of what the source has, by our names. A name that is missing is a [`ConversionError`] that tells what makes it.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], layout: "SourceLayout"):
        super().__init__(shapes)
        self.layout = layout

    def __missing__(self, name: str) -> tuple[int, ...]:
        made_from = " or ".join(map(repr, self.layout.sources_of(name))) or "nothing"
        raise ConversionError(
            f"this is no {self.layout.source} checkpoint ({self.layout.variant}): it has no {made_from}, which makes "
            f"{name!r} of ours."
        )


@dataclass(frozen=True)
class SourceLayout:
    """
    How a project lays its checkpoints out.

    Args:
        source (`str`): Name of the source, for `--source`.
        variant (`str`): Which of the source's layouts it is, for reports and messages.
        parts (tuple of [`SourcePart`]): The files it takes.
        rules (tuple of [`Rule`]): The table.
        build_config (`Callable`): From the [`Shapes`] of what the rules have read, by our names, and the [`SourceFacts`] to
            the [`PixCLIPConfig`]. Errors are [`ConversionError`]s that name the field.
        write_only (tuple of [`Rule`], *optional*): By which dropped tensors are written where the originals are not at hand.
        objective (`str`): Preset of the objective, see [`get_objective_preset`], for the report.
        image_processor (`dict`): Options of `PixCLIPImageProcessor` other than its size.
        fills (tuple of [`Fill`], *optional*): Parameters of ours that the source does not have.
        pretraining (`bool`, *optional*, defaults to `False`): Whether the model is a [`PixCLIPForPreTraining`], because
            the source has parameters of the objective.
        prepare (`Callable`, *optional*): Changes the source's tensors before the rules (merges adapters); returns the
            tensors, and the originals of what it changed or took away, which the way back needs.
        text_options (`Callable`, *optional*): From the configuration to options of `PixCLIPProcessor`.
        source_config (`Callable`, *optional*): From our configuration to a source configuration with all that shapes
            cannot tell, by which a written checkpoint is checked, and which is written beside it. Layouts without it are
            read only.
        hub_folder (`bool`, *optional*, defaults to `False`): Whether `source_config` is the `config.json` of a folder.
    """

    source: str
    variant: str
    parts: tuple[SourcePart, ...]
    rules: tuple[Rule, ...]
    build_config: Callable[[Shapes, SourceFacts], PixCLIPConfig]
    objective: str
    image_processor: dict[str, Any]
    write_only: tuple[Rule, ...] = ()
    fills: tuple[Fill, ...] = ()
    pretraining: bool = False
    prepare: Callable[[dict[str, torch.Tensor]], tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] | None = None
    text_options: Callable[[PixCLIPConfig], dict[str, Any]] = lambda config: {}
    source_config: Callable[[PixCLIPConfig], dict[str, Any]] | None = None
    hub_folder: bool = False

    def find_rule(self, name: str) -> tuple[Rule, re.Match] | None:
        """The one rule that takes a source tensor."""
        found = [(rule, match) for rule in self.rules if (match := rule.source_pattern.fullmatch(name))]
        if len(found) > 1:
            raise ConversionError(
                f"the table of {self.source!r} ({self.variant}) is wrong: {[rule.name for rule, _ in found]} all take "
                f"{name!r}."
            )
        return found[0] if found else None

    def sources_of(self, target: str) -> list[str]:
        """Names in the source that make a parameter of ours."""
        found = [
            (rule, compile_template(template).fullmatch(target)) for rule in self.rules for template in rule.targets
        ]
        return [rule.source.format(**match.groupdict()) for rule, match in found if match]


def count_blocks(shapes: Shapes, template: str) -> int:
    """Number of blocks, from a template with `{block}` of a tensor of ours that each block has."""
    pattern = compile_template(template)
    found = {int(match["block"]) for name in shapes if (match := pattern.fullmatch(name))}
    # A gap is a block of which nothing is there; its tensors are then listed as missing.
    return max(found, default=-1) + 1


__all__ = [
    "COPY",
    "MASK_CONVOLUTION_ZERO",
    "SCALAR",
    "SPLIT_QKV",
    "STRIP_ONE_AXIS",
    "STRIP_TWO_AXES",
    "TRANSPOSE",
    "ConversionError",
    "Fill",
    "Operation",
    "Rows",
    "Rule",
    "Shapes",
    "SourceFacts",
    "SourceLayout",
    "SourcePart",
    "compile_template",
    "count_blocks",
]
