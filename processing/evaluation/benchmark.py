# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A benchmark: where its files lie, the protocol, and the scorer."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .features import FeatureExtractor
from .protocols import Protocol
from .results import BenchmarkResult, Figure


# Packages of which another version can give another number.
_PACKAGES = ("pixclip", "transformers", "torch", "numpy", "pillow", "tokenizers", "pycocotools")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file or folder that a benchmark reads.

    Attributes:
        path: Below the data folder; may hold fields of the protocol in braces, for example "captions_{split}.json".
        what: What it is, in a few words.
        where: Where it is to be had.
        optional: Whether the benchmark does without it.
    """

    path: str
    what: str
    where: str
    optional: bool = False


class Benchmark(ABC):
    """Base of the benchmarks. One instance measures any number of models under one protocol.

    A subclass says what it is by the class attributes, reads its files in `load` and scores in `evaluate`.

    Args:
        data_dir: Folder with the files of `layout`.
        protocol: Default: that of the preset "default".

    Attributes:
        name: Its name on the command line.
        summary: One line for `--list`: task and metric.
        task: For the Hub's model index, e.g. "zero-shot-image-classification" or "image-text-retrieval".
        main_figure: Name of the figure that stands for it.
        presets: Protocols by name, "default" first.
        layout: What it reads.
        counts: Filled by `load`.

    Raises:
        FileNotFoundError: By `load`: names each file of the layout that is missing, and where it is to be had.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    task: ClassVar[str]
    dataset: ClassVar[str]
    main_figure: ClassVar[str]
    presets: ClassVar[Mapping[str, Protocol]]
    layout: ClassVar[tuple[SourceFile, ...]]

    def __init__(self, data_dir: str | os.PathLike, protocol: Protocol | None = None):
        self.data_dir = Path(data_dir)
        self.protocol = self.presets["default"] if protocol is None else protocol
        self.counts: dict[str, int] = {}

    @abstractmethod
    def load(self) -> None:
        """Checks the layout and reads it, once; fills `counts`. A second call does nothing."""

    @abstractmethod
    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        """Loads what is not loaded yet, asks for vectors and scores them."""

    def path(self, source: SourceFile) -> Path:
        return self.data_dir / source.path.format(**self.protocol.to_dict())

    def sources(self) -> tuple[SourceFile, ...]:
        """What of the layout this protocol reads: all of it, unless a subclass says otherwise."""
        return self.layout

    def check_layout(self) -> None:
        """Raises an error that names everything that is missing."""
        sources = self.sources()
        missing = [source for source in sources if not source.optional and not self.path(source).exists()]
        if missing:
            lines = [f"  {self.path(source)}: {source.what}. {source.where}" for source in missing]
            raise FileNotFoundError(
                f"{self.name} reads {len(sources)} files and folders below {self.data_dir}; missing are\n"
                + "\n".join(lines)
            )

    def check_images(self, images: Iterable[Any]) -> set[str]:
        """Keys of the images whose file is missing: an error that names them, or, by `skip_missing`, counted."""
        missing = [image for image in images if not image.path.is_file()]
        if missing and not self.protocol.skip_missing:
            some = ", ".join(str(image.path) for image in missing[:5])
            raise FileNotFoundError(
                f"{self.name}: {len(missing)} image files are missing, the first are {some}. Get them, or evaluate on the rest "
                f"by skip_missing=true; the result tells how many were left out. "
                + " ".join(dict.fromkeys(source.where for source in self.layout))
            )
        self.counts["images left out, file missing"] = len(missing)
        return {image.key for image in missing}

    def result(
        self,
        features: FeatureExtractor,
        figures: Mapping[str, Figure],
        items: list[dict[str, Any]],
        images: Iterable[Any],
        main_figure: str | None = None,
    ) -> BenchmarkResult:
        """Puts together what `evaluate` returns."""
        return BenchmarkResult(
            benchmark=self.name,
            task=self.task,
            dataset=self.dataset,
            main_figure=main_figure or self.main_figure,
            protocol=self.protocol.to_dict(),
            model=features.encoder.describe(),
            figures=dict(figures),
            counts=dict(self.counts),
            versions=package_versions(),
            items=items,
            images={image.key: str(image.path) for image in images},
        )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
