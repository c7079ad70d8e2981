# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a benchmark measured: figures, the protocol that they hang on, and what became of each item."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        value: A share, 0 to 1, unless the name says otherwise.
        low: Lower end of the 95 % interval (bootstrap over photos, or Wilson's where all items are right or all are wrong), or `None`
            where none was computed.
        high: Upper end.
        count: How many items it is a mean of.
        chance: What a model that guesses gets, or `None` where that is not known.

    Example:
        >>> Figure(0.5, 0.4, 0.6, count=120, chance=0.1).value
        0.5
    """

    value: float
    low: float | None = None
    high: float | None = None
    count: int = 0
    chance: float | None = None


@dataclass(slots=True)
class BenchmarkResult:
    """What one benchmark measured of one model.

    Attributes:
        benchmark: Its name.
        task: What is measured, in words of the Hub's model index, e.g. "image-text-retrieval".
        dataset: Name and split of the data, e.g. "COCO val2017"; "part of ..." or "not the published ..." where that is so.
        main_figure: Name of the figure that stands for the benchmark.
        protocol: All fields of the protocol, and what those that are names stand for; see `Protocol`.
        model: What the encoder told of itself.
        figures: By name, e.g. "top-1", "full+mask: top-5", "text to image R@1".
        counts: How much there was of everything: images, regions, classes, texts, what was left out and why.
        versions: Of the packages that can change a number.
        items: For each item a plain dict: `key`, `correct` (bool), `score` (how sure, greater is surer), and for the
            report `image` (key), `mask` or `box`, `predicted_mask` or `predicted_box`, `truth`, `predicted`, `text`, `rank`, `direction` (or split, as the figures name
            it), `chance` (that a guess is right, where items differ in it). Not in the results file.
        images: Files of the images by key, for the report. Not in the results file.
        changed: Fields of the protocol with another value than in the preset that it is called after.
        data: SHA-256 and size of each file of annotations that was read, by its path below the data folder.
    """

    benchmark: str
    task: str
    dataset: str
    main_figure: str
    protocol: dict[str, Any]
    model: dict[str, Any]
    figures: dict[str, Figure]
    counts: dict[str, int]
    versions: dict[str, str]
    items: list[dict[str, Any]] = field(default_factory=list, repr=False)
    images: dict[str, str] = field(default_factory=dict, repr=False)
    changed: dict[str, Any] = field(default_factory=dict)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.main_figure not in self.figures:
            raise ValueError(
                f"main_figure of {self.benchmark} is {self.main_figure!r}; accepted are its figures, {list(self.figures)}."
            )
        for name, figure in self.figures.items():
            if not math.isfinite(figure.value):
                raise ValueError(
                    f"figure {name!r} of {self.benchmark} is {figure.value}: it has no items, or vectors are not finite."
                )

    @property
    def protocol_label(self) -> str:
        """Name of the preset, and what was changed: "default, limit=100"."""
        return protocol_label(self.protocol["name"], self.changed)

    def to_dict(self) -> dict[str, Any]:
        """What the results file holds: nothing that differs between two runs with one seed.

        Numbers of figures have six digits after the point: further ones hang on batch sizes and threads.
        """
        content = {
            each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("items", "images")
        }
        return content | {"figures": {name: _rounded(figure) for name, figure in self.figures.items()}}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=False, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> BenchmarkResult:
        """Reads what `to_dict` made."""
        figures = {name: Figure(**figure) for name, figure in content["figures"].items()}
        return cls(**{**content, "figures": figures})


def _rounded(figure: Figure) -> dict[str, Any]:
    return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(figure).items()}


def protocol_label(name: str, changed: Mapping[str, Any]) -> str:
    """A preset and what was changed of it, as the command line sets it.

    Example:
        >>> protocol_label("default", {"limit": 100, "views": ["roi", "full"]})
        'default, limit=100, views=roi,full'
    """
    values = {
        field: ",".join(map(str, value)) if isinstance(value, list) else value for field, value in changed.items()
    }
    return ", ".join([name, *(f"{field}={value}" for field, value in values.items())])
