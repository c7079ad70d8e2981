# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A benchmark: where its files lie, the protocol, and the scorer."""

from __future__ import annotations

import dataclasses
import hashlib
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


_NO_FILE = "images left out, file missing"
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
        annotations: Of a folder, whether its files say what is measured, as those with captions or masks do. They are
            hashed like a file of annotations; photos are not.
    """

    path: str
    what: str
    where: str
    optional: bool = False
    annotations: bool = False


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
        dataset: Name of the data, with its split once there is an instance.
        published: By `dataset` of an instance, how many of what in `counts` the published data have, where that is known;
            see `measured_dataset`.
        main_figure: Name of the figure that stands for it.
        presets: Protocols by name, "default" first.
        layout: What it reads.
        counts: Filled by `load`.

    Raises:
        FileNotFoundError: By `load`: names each file of the layout that is missing, and where it is to be had.

    Example:
        >>> from processing_pixclip.evaluation import BENCHMARKS
        >>> BENCHMARKS["urban1k"]("no_folder").load()
        Traceback (most recent call last):
        ...
        FileNotFoundError: urban1k reads 2 files and folders below no_folder; missing are...
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    task: ClassVar[str]
    dataset: str
    published: ClassVar[Mapping[str, Mapping[str, int]]] = {}
    main_figure: ClassVar[str]
    presets: ClassVar[Mapping[str, Protocol]]
    layout: ClassVar[tuple[SourceFile, ...]]

    def __init__(self, data_dir: str | os.PathLike, protocol: Protocol | None = None):
        self.data_dir = Path(data_dir)
        self.protocol = self.presets["default"] if protocol is None else protocol
        self.counts: dict[str, int] = {}
        self._data_files: dict[str, dict[str, Any]] | None = None

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
        self.counts[_NO_FILE] = len(missing)
        return {image.key for image in missing}

    def changed_fields(self) -> dict[str, Any]:
        """Fields of the protocol with another value than in the preset that it is called after, plain values."""
        preset = self.presets.get(self.protocol.name, self.presets["default"]).to_dict()
        plain = self.protocol.to_dict()
        return {name: value for name, value in plain.items() if name != "name" and value != preset.get(name)}

    def measured_dataset(self) -> str:
        """`dataset`, and whether it is less or other than what was published, by `counts`; after `load`.

        "part of ..." where there is less of something, by a limit or in the files, and "not the published ..." where there
        is more. What was read and left out by the protocol counts as there, not so what has no image file.
        """
        published = self.published.get(self.dataset, {})
        there = {name: self._count(name) for name in published if name in self.counts}
        if any(there[name] > published[name] for name in there):
            return f"not the published {self.dataset}"
        less = any(there[name] < published[name] for name in there) or self.counts.get(_NO_FILE, 0)
        # Where it is not known how many there should be, a limit may have cut something off.
        limit = self.protocol.limit
        cut = not there and limit is not None and self.counts.get("images read", limit + 1) > limit
        return f"part of {self.dataset}" if less or cut else self.dataset

    def _count(self, name: str) -> int:
        """How many there are in `counts`, those too that were left out for another reason than a missing file."""
        left_out = [key for key in self.counts if key.startswith(f"{name} left out, ") and key != _NO_FILE]
        return self.counts[name] + sum(self.counts[key] for key in left_out)

    def data_files(self) -> dict[str, dict[str, Any]]:
        """SHA-256 and size in bytes of each file of the layout that the protocol reads, by its path below the data folder.

        A folder of annotations, see `SourceFile`, is one entry: the hash is that of its files' names and hashes. They are
        read once for all models.
        """
        if self._data_files is None:
            found = {}
            for source in self.sources():
                path = self.path(source)
                if path.is_file():
                    found[self._relative(path)] = {"sha256": _sha256(path), "bytes": path.stat().st_size}
                elif path.is_dir() and source.annotations:
                    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] != ".")
                    lines = [f"{_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
                    found[self._relative(path)] = {
                        "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
                        "bytes": sum(file.stat().st_size for file in files),
                        "files": len(files),
                    }
            self._data_files = found
        return {name: dict(facts) for name, facts in self._data_files.items()}

    def _relative(self, path: Path) -> str:
        """Path below the data folder, no other path of the machine."""
        return path.relative_to(self.data_dir).as_posix() if path.is_relative_to(self.data_dir) else path.name

    def result(
        self,
        features: FeatureExtractor,
        figures: Mapping[str, Figure],
        items: list[dict[str, Any]],
        images: Iterable[Any],
        main_figure: str | None = None,
        views: Iterable[str] | None = None,
    ) -> BenchmarkResult:
        """Puts together what `evaluate` returns; `views` are those of the protocol without "auto", if it has views."""
        used = self.protocol if views is None else dataclasses.replace(self.protocol, views=tuple(views))
        return BenchmarkResult(
            benchmark=self.name,
            task=self.task,
            dataset=self.measured_dataset(),
            main_figure=main_figure or self.main_figure,
            protocol=used.to_dict() | used.details(),
            changed=self.changed_fields(),
            data=self.data_files(),
            model=features.encoder.describe(),
            figures=dict(figures),
            counts=dict(self.counts),
            versions=package_versions(),
            items=items,
            images={image.key: str(image.path) for image in images},
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
