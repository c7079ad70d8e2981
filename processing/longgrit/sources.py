# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What every reader of images with regions does, and which one reads what the settings name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from glob import glob
from pathlib import Path
from typing import Any, Protocol

from .config import SourceSettings
from .image_store import ImageStore
from .records import SourceImage


# Files up to this size count into a fingerprint whole, larger ones with their ends.
_WHOLE_FILE_BYTES = 1 << 26
_END_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceError:
    """What a source gives at a position whose image cannot be used.

    Attributes:
        where: File and line, row or sample.
        reason: Short name, counted in the report, such as `"missing_image"`.
        detail: What is wrong, in words.
        image_id: Identifier of the image, `None` where even that could not be read.
    """

    where: str
    reason: str
    detail: str
    image_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SourceError:
        """The error that `to_json` was called on."""
        return cls(**content)


class Source(Protocol):
    """Images with regions by position. The same position always gives the same. `run_pipeline(source=...)` takes any.

    Example:
        >>> from processing_pixclip.longgrit import SourceRegion
        >>> class OnePhoto:
        ...     def __len__(self):
        ...         return 1
        ...
        ...     def fingerprint(self):
        ...         return "0" * 32
        ...
        ...     def read(self, start, stop):
        ...         for _ in range(start, stop):
        ...             region = SourceRegion("1#0", (0.0, 0.0, 20.0, 10.0), mask_source="box", category="dog")
        ...             yield SourceImage("1", "1.jpg", {"path": "1.jpg"}, 40, 30, (region,))
        >>> next(OnePhoto().read(0, 1)).regions[0].category
        'dog'
    """

    def __len__(self) -> int:
        """Number of positions."""

    def fingerprint(self) -> str:
        """Hash of what is read, 32 hex digits; another one where files have changed."""

    def read(self, start: int, stop: int) -> Iterator[SourceImage | SourceError]:
        """Yields what is at the positions from `start` to below `stop`, one item each, in their order.

        A region that is wrong in itself is no error of its image: it has `dropped` set.
        """


def open_source(settings: SourceSettings) -> Source:
    """Opens the reader that the settings name.

    Args:
        settings: Format and files.

    Returns:
        The source: `len()`, `fingerprint()` and `read(start, stop)`.

    Raises:
        FileNotFoundError: If an annotation file or folder is missing, or a pattern matches none.
        ValueError: If a setting that the format needs is missing, or one is given that it does not read, or a file is
            not of this format at all; names it and what is accepted.

    Example:
        >>> from processing_pixclip.longgrit.config import SourceSettings
        >>> source = open_source(SourceSettings(format="folder", path="examples/data/coco_regions/heldout.jsonl"))
        >>> image = next(source.read(0, 1))
        >>> image.image_id, image.width, image.height, image.regions[0].category
        ('6818', 299, 448, 'toilet')
    """
    from .coco_source import CocoSource
    from .folder_source import FolderSource
    from .grit_source import GritSource
    from .webdataset_source import WebDatasetSource

    check_source_settings(settings)
    kinds = {"coco": CocoSource, "folder": FolderSource, "grit": GritSource, "webdataset": WebDatasetSource}
    return kinds[settings.format](settings)


def open_image_store(settings: SourceSettings) -> ImageStore:
    """Opens what reads the image files of a source by `SourceImage.location`, without opening the source itself.

    Args:
        settings: Format and files.

    Raises:
        ValueError: As `open_source`, of the settings.

    Example:
        >>> from processing_pixclip.longgrit.config import SourceSettings
        >>> settings = SourceSettings(format="folder", path="examples/data/coco_regions/heldout.jsonl")
        >>> image = next(open_source(settings).read(0, 1))
        >>> open_image_store(settings).read(image.location)[:2]
        b'\\xff\\xd8'
    """
    check_source_settings(settings)
    folder = annotation_folder(settings)
    return ImageStore(folder if settings.image_root is None else settings.image_root, folder)


def check_source_settings(settings: SourceSettings) -> None:
    """Raises a `ValueError` if the settings lack what their format needs, or hold what it does not read."""
    coco_files = {"instances": settings.instances, "panoptic": settings.panoptic, "captions": settings.captions}
    if settings.format == "coco":
        if settings.instances is None and settings.panoptic is None:
            raise ValueError(
                "source.format is 'coco', but neither source.instances nor source.panoptic is set; regions come from at "
                "least one of these files."
            )
        if settings.path is not None:
            raise ValueError("source.path is not read where source.format is 'coco'; set source.instances instead.")
        return
    if settings.path is None:
        raise ValueError(f"source.format is {settings.format!r}, but source.path is not set; it names the files.")
    for name, value in coco_files.items():
        if value is not None:
            raise ValueError(f"source.{name} is read only where source.format is 'coco'; it is {settings.format!r}.")
    if settings.format == "webdataset" and settings.image_root is not None:
        raise ValueError(
            "source.image_root is not read where source.format is 'webdataset'; the tars hold the images."
        )


def annotation_folder(settings: SourceSettings) -> Path:
    """Folder of the annotation files: of a pattern, the part before the first folder with a wildcard."""
    path = Path(settings.path or settings.instances or settings.panoptic)
    if path.is_dir() or path.is_file():
        return path if path.is_dir() else path.parent
    parts = path.parts[:-1]
    plain = next((number for number, part in enumerate(parts) if _is_pattern(part)), len(parts))
    return Path(*parts[:plain])


def matching_files(settings: SourceSettings, endings: tuple[str, ...]) -> list[Path]:
    """Files that `source.path` names, in the order of their names: itself, those of a folder, or those of a pattern.

    Raises:
        FileNotFoundError: If there is none.
    """
    path = Path(settings.path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and file.name.lower().endswith(endings))
    elif path.is_file():
        files = [path]
    else:
        files = sorted(file for file in map(Path, glob(settings.path, recursive=True)) if file.is_file())
    if not files:
        raise FileNotFoundError(
            f"source.path is {settings.path!r}, which names no file; accepted are a file, a pattern such as 'data/*.tar', or "
            f"a folder with files that end in {' or '.join(endings)}."
        )
    return files


def fingerprint_of(files: Iterable[Path], *settings: Any) -> str:
    """Hash of names and contents of files, and of settings that change what is read of them; 32 hex digits."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr(settings).encode())
    for path in files:
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            if size <= _WHOLE_FILE_BYTES:
                while block := file.read(_END_BYTES):
                    digest.update(block)
            else:
                digest.update(file.read(_END_BYTES))
                file.seek(-_END_BYTES, 2)
                digest.update(file.read(_END_BYTES))
    return digest.hexdigest()


def _is_pattern(part: str) -> bool:
    return any(character in part for character in "*?[")
