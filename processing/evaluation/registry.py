# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The benchmarks by name, what each is and reads, and what its protocol decides."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from .benchmark import Benchmark
from .caption_pairs import CaptionPairs
from .coco_region_classification import CocoRegions, LvisRegions
from .fg_ovd import FgOvd
from .imagenet_s import ImageNetS
from .mask_sensitivity import MaskSensitivity
from .protocols import Protocol
from .referring_expressions import RefCoco, RefCocoG, RefCocoPlus
from .retrieval_benchmarks import CocoRetrieval, Dci, Docci, Flickr30k, ShareGpt4v, Urban1k


BENCHMARKS: dict[str, type[Benchmark]] = {
    benchmark.name: benchmark
    for benchmark in (
        CocoRegions,
        LvisRegions,
        ImageNetS,
        RefCoco,
        RefCocoPlus,
        RefCocoG,
        FgOvd,
        Flickr30k,
        CocoRetrieval,
        Docci,
        Dci,
        Urban1k,
        ShareGpt4v,
        CaptionPairs,
        MaskSensitivity,
    )
}


def get_benchmark(name: str) -> type[Benchmark]:
    """The class of a benchmark.

    Args:
        name: On the command line, one of `BENCHMARKS`.

    Raises:
        ValueError: If there is none of this name; names the nearest and all.

    Example:
        >>> get_benchmark("coco-regions").name
        'coco-regions'
        >>> get_benchmark("coco-region")
        Traceback (most recent call last):
        ...
        ValueError: 'coco-region' is no benchmark; did you mean coco-regions? Accepted are coco-regions, ...
    """
    if name not in BENCHMARKS:
        raise ValueError(f"{name!r} is no benchmark; {accepted(name, BENCHMARKS)}")
    return BENCHMARKS[name]


def accepted(name: str, names: Iterable[str]) -> str:
    """The end of an error: what is like the name that was given, and all that is accepted.

    Example:
        >>> accepted("defalt", ["default", "fast"])
        'did you mean default? Accepted are default, fast.'
    """
    names = list(names)
    lower = {each.lower(): each for each in reversed(names)}
    near = difflib.get_close_matches(name.lower(), lower, n=1) or [
        each for each in lower if name and name.lower() in each
    ]
    return (
        f"did you mean {lower[near[0]]}? Accepted are {', '.join(names)}."
        if near
        else f"accepted are {', '.join(names)}."
    )


def get_protocol(benchmark: type[Benchmark], preset: str | None, settings: Mapping[str, Any]) -> Protocol:
    """A preset of a benchmark with some of its fields changed.

    Args:
        benchmark: Its class.
        preset: One of its `presets`; "default" if `None`.
        settings: Fields of its protocol; strings are read as the field's type.

    Raises:
        ValueError: If there is no such preset or field, or a value is none of those that the field accepts.

    Example:
        >>> get_protocol(get_benchmark("coco-regions"), None, {"limit": "10"}).limit
        10
    """
    preset = "default" if preset is None else preset
    if preset not in benchmark.presets:
        raise ValueError(f"{benchmark.name} has no preset {preset!r}; {accepted(preset, benchmark.presets)}")
    try:
        return benchmark.presets[preset].changed(settings)
    except ValueError as error:
        raise ValueError(f"{benchmark.name}: {error}") from None


def protocol_fields(benchmark: type[Benchmark]) -> list[str]:
    """Names of the fields of a benchmark's protocol that can be set."""
    return [name for name in get_type_hints(type(benchmark.presets["default"])) if name != "name"]


def list_benchmarks() -> str:
    """What `--list` prints: of each benchmark its task, main figure, presets, files and where they are to be had.

    Example:
        >>> list_benchmarks().splitlines()[0].split(":")[0]
        'coco-regions'
    """
    parts = []
    for name, benchmark in BENCHMARKS.items():
        lines = [
            f"{name}: {benchmark.summary}",
            f"  data         {benchmark.dataset}",
            f"  main figure  {benchmark.main_figure}",
            f"  protocols    {', '.join(benchmark.presets)}",
            "  reads, below its data folder",
        ]
        for source in benchmark.layout:
            text = f"{source.path}{' (optional)' if source.optional else ''}: {source.what}. {source.where}"
            lines += textwrap.wrap(
                text, 116, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def describe_protocol(protocol: Protocol) -> str:
    """All fields of a protocol with their values, what they decide and what else they accept, and what they stand for.

    Args:
        protocol: Of any benchmark.

    Example:
        >>> print(describe_protocol(Protocol(limit=3)))
        name = "default"
            Of the preset, "default" or for example "official-pixclip". It stays when fields are changed; a result lists those
            that were.
        limit = 3
            Only so many items (images, in the order of the files), to try things; `None` for all.
        skip_missing = false
            Leave out items whose image file is missing, counted, in place of the error.
        bootstrap = 1000
            Resamples for the 95 % intervals; 0 for none.
        seed = 0
            Of the resamples and of everything else that is drawn.
    """
    meanings = _documented_fields(type(protocol))
    hints = get_type_hints(type(protocol))
    lines = []
    for name, value in protocol.to_dict().items():
        lines.append(f"{name} = {json.dumps(value, ensure_ascii=False)}")
        text = meanings.get(name, "")
        choices = _choices(hints[name])
        if choices:
            text = f"{text} Accepted: {', '.join(choices)}.".strip()
        lines += textwrap.wrap(text, 116, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    lines += [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in protocol.details().items()]
    return "\n".join(lines)


def describe_presets(benchmark: type[Benchmark]) -> str:
    """One line a preset of a benchmark: its fields that differ from the default.

    Args:
        benchmark: Its class.

    Example:
        >>> describe_presets(get_benchmark("caption-pairs"))
        'preset default'
    """
    default = benchmark.presets["default"].to_dict()
    lines = []
    for name, protocol in benchmark.presets.items():
        changed = [
            f"{field} = {json.dumps(value, ensure_ascii=False)}"
            for field, value in protocol.to_dict().items()
            if field != "name" and value != default[field]
        ]
        lines.append(f"preset {name}{': ' if changed else ''}{', '.join(changed)}")
    return "\n".join(lines)


def _choices(hint: Any) -> list[str]:
    """Values of the `Literal` in a type."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [choice for part in get_args(hint) for choice in _choices(part)]


def _documented_fields(protocol: type[Protocol]) -> dict[str, str]:
    """By field, what the docstrings of a protocol's classes say of it under "Attributes:" or "Args:"."""
    found: dict[str, str] = {}
    for each in reversed(protocol.__mro__):
        name = None
        section = re.search(
            r"^(?:Attributes|Args):\n(.*?)(?=^\S|\Z)", inspect.cleandoc(each.__doc__ or ""), re.M | re.S
        )
        for line in section.group(1).splitlines() if section else ():
            start = re.match(r" {4}(\w+): (.*)", line)
            if start:
                name = start.group(1)
                found[name] = start.group(2)
            elif name and line.startswith(" " * 8):
                found[name] += f" {line.strip()}"
    return found
