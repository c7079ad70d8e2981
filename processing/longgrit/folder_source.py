# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A folder of images with JSON lines, or with a table of mask files, as a source."""

from __future__ import annotations

import json
import logging
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..region_folders import TABLES, RegionFolderDataset, read_mask_file
from ..region_records import RECORD_KEYS, REGION_KEYS
from .config import SourceSettings
from .file_source import FileSource
from .records import MASK_SOURCES, SourceImage, SourceRegion
from .source_regions import (
    BadImage,
    ImagePlace,
    boxed_region,
    checked_path,
    checked_size,
    cleaned_text,
    cleaned_texts,
    file_below,
    is_score,
    masked_region,
    unusable_region,
)
from .sources import SourceError, matching_files


logger = logging.getLogger(__name__)

_READ_OF_REGIONS = {*REGION_KEYS, "score"}


class FolderSource(FileSource):
    """Reads images of a folder, one a position, by JSON lines or a table.

    JSON lines are those of `RegionJsonlDataset`, one image a line, with these differences: regions need no text; texts that
    they have are not read; `image_id` may be missing (the image's path), as may `width` and `height`
    (the file says); a region may have a `phrase` and a `score` 0..1; where it has both mask and box, the mask counts. Blank
    captions are left out. A region with an unknown key, or a value of the wrong kind, is dropped alone (`"malformed_region"`).

        {"image": "images/1.jpg", "regions": [{"mask": {"size": [336, 448], "counts": "..."}, "category": "dog"}]}

    A table is that of `RegionFolderDataset`, its text column optional. Lines are read when they are asked for; of a file of
    lines, 16 bytes a line are held. A table is held whole.

    Args:
        settings (`SourceSettings`):
            `path` (a JSON lines file or a pattern of them; a table, or the folder of one), `image_root` and `licence` are
            read.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If the columns of a table are not accepted, it has no good row, or files of lines hold no line.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "1.png")
        >>> record = {"image": "1.png", "regions": [{"box": [0, 0, 20, 30], "phrase": "the left half"}]}
        >>> _ = (folder / "data.jsonl").write_text(json.dumps(record))
        >>> source = FolderSource(SourceSettings(format="folder", path=str(folder / "data.jsonl")))
        >>> (image,) = source.read(0, len(source))
        >>> image.image_id, image.width, image.regions[0].phrase
        ('1.png', 40, 'the left half')
    """

    def __init__(self, settings: SourceSettings):
        path = Path(settings.path)
        tables = [path / name for name in TABLES] if path.is_dir() else []
        is_table = any(table.is_file() for table in tables) or path.suffix == ".csv" or path.name in TABLES
        if is_table:
            super().__init__(settings, [table for table in tables if table.is_file()] or [path])
            self._images: _Table | _Lines = _Table(self._files[0], self._root)
        else:
            super().__init__(settings, matching_files(settings, (".jsonl",)))
            self._images = _Lines(self._files, self._root)
            self._check_not_empty()

    def __len__(self) -> int:
        return len(self._images)

    def _read(self, start: int, stop: int) -> Iterator[SourceImage | SourceError]:
        for position in range(start, stop):
            yield self._images.item(position, self._settings.licence)


class _Lines:
    """Images of JSON lines files by position."""

    def __init__(self, files: list[Path], root: Path):
        self._files, self._root = files, root
        self._offsets, self._numbers = array("Q"), array("Q")
        sizes = []
        for path in files:
            before, offset = len(self._offsets), 0
            with open(path, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        self._offsets.append(offset)
                        self._numbers.append(number)
                    offset += len(line)
            sizes.append(len(self._offsets) - before)
        self._ends = list(accumulate(sizes))

    def __len__(self) -> int:
        return len(self._offsets)

    def item(self, position: int, licence: str | None) -> SourceImage | SourceError:
        path = self._files[bisect_right(self._ends, position)]
        where = f"{path}, line {self._numbers[position]}"
        with open(path, "rb") as file:
            file.seek(self._offsets[position])
            line = file.readline()
        try:
            record = json.loads(line)
        # Brackets nested without end are no ValueError.
        except (ValueError, RecursionError) as error:
            return SourceError(where, "malformed_record", f"the line is not JSON ({error}).")
        return item_of_record(record, where, licence, lambda name: file_below(self._root, checked_path(name)))


class _Table:
    """Images of a table of mask files by position; its bad rows are errors at the last positions."""

    def __init__(self, path: Path, root: Path):
        self._root = root
        self._errors: list[SourceError] = []
        self._records = RegionFolderDataset(root, path, self, require_text=False).records

    def add_checked(self, path: str, rows: int, bad: list[tuple[str, Exception, str | None]], unit: str) -> None:
        """Called by `RegionFolderDataset` in place of a `BadSampleLog`, with its bad rows."""
        self._errors = [SourceError(where, "malformed_record", str(error), name) for where, error, name in bad]

    def __len__(self) -> int:
        return len(self._records) + len(self._errors)

    def item(self, position: int, licence: str | None) -> SourceImage | SourceError:
        if position >= len(self._records):
            return self._errors[position - len(self._records)]
        record = self._records[position]
        image_id = record["image_id"]
        try:
            place = file_below(self._root, checked_path(image_id))
        except BadImage as bad:
            return bad.error(record["where"], image_id)
        width, height = record["size"]
        return SourceImage(
            image_id=image_id,
            file=place.file,
            location=place.location,
            width=width,
            height=height,
            regions=tuple(self._region(f"{image_id}#{n}", row) for n, row in enumerate(record["regions"])),
            captions=tuple(record["captions"]),
            long_captions=tuple(record["long_captions"]),
            licence=licence,
        )

    def _region(self, region_id: str, row: dict[str, Any]) -> SourceRegion:
        try:
            mask = read_mask_file(self._root / row["mask_file_name"], row["where"]) >= 0.5
        except ValueError:
            return unusable_region(region_id, "malformed_mask", category=row.get("category"))
        return masked_region(region_id, mask, *mask.shape, category=row.get("category"))


def item_of_record(
    record: Any, where: str, licence: str | None, place_of: Callable[[Any], ImagePlace], image_id: str | None = None
) -> SourceImage | SourceError:
    """Makes an image of a record of `FolderSource`, or the error that stands for it.

    Args:
        record: What a line of JSON holds.
        where: How errors call it.
        licence: Licence of an image that names none.
        place_of: Gives the place of the image by the record's key "image"; raises `BadImage`.
        image_id: Identifier of an image that has none, by default the path of its file.
    """
    found = record.get("image_id") if isinstance(record, Mapping) else None
    identified = isinstance(found, (str, int)) and not isinstance(found, bool) and cleaned_text(str(found)) is not None
    image_id = str(found) if identified else image_id
    try:
        _check_record(record)
        if found is not None and not identified:
            raise BadImage("malformed_record", f"key 'image_id' is {found!r:.200}; accepted is a string.")
        place = place_of(record.get("image"))
        image_id = place.file if image_id is None else image_id
        sides = record.get("width"), record.get("height")
        width, height = place.size() if sides == (None, None) else checked_size(*sides)
        if not isinstance(record.get("regions"), list):
            raise BadImage("malformed_record", f"key 'regions' is {record.get('regions')!r:.200}; accepted is a list.")
        regions = [_region(f"{image_id}#{n}", region, height, width) for n, region in enumerate(record["regions"])]
    except BadImage as bad:
        return bad.error(where, image_id)
    return SourceImage(
        image_id=image_id,
        file=place.file,
        location=place.location,
        width=width,
        height=height,
        regions=tuple(regions),
        captions=cleaned_texts(record.get("captions")),
        long_captions=cleaned_texts(record.get("long_captions")),
        licence=cleaned_text(record.get("licence")) or licence,
    )


def _region(region_id: str, region: Any, height: int, width: int) -> SourceRegion:
    texts = {key: region.get(key) for key in ("category", "phrase")} if isinstance(region, Mapping) else {}
    facts = {key: cleaned_text(text) for key, text in texts.items()}
    wrong = _fault_of_region(region)
    if wrong is not None:
        _warn(wrong)
        return unusable_region(region_id, "malformed_region", **facts)
    if not is_score(region.get("score")):
        return unusable_region(region_id, "malformed_score", **facts)
    facts["score"] = region.get("score")
    if region.get("mask") is not None:
        source = "sam2" if region.get("mask_source") == "sam2" else "annotation"
        return masked_region(region_id, region["mask"], height, width, mask_source=source, **facts)
    if region.get("box") is not None:
        return boxed_region(region_id, region["box"], height, width, **facts)
    return unusable_region(region_id, "no_mask_or_box", **facts)


def _fault_of_region(region: Any) -> str | None:
    """What is wrong with a region apart from its place and score."""
    if not isinstance(region, Mapping):
        return f"is {region!r:.200}; accepted is an object."
    if unknown := sorted(set(region) - _READ_OF_REGIONS):
        return f"has the unknown keys {unknown!r:.200}; accepted are {sorted(_READ_OF_REGIONS)}."
    for key in ("category", "phrase"):
        if not isinstance(region.get(key), (str, type(None))):
            return f"has the {key} {region[key]!r:.200}; accepted is a string or null."
    if region.get("mask_source") not in (None, *MASK_SOURCES):
        return f"has the mask_source {region['mask_source']!r:.200}; accepted are {MASK_SOURCES}."
    return None


@lru_cache(100)
def _warn(wrong: str) -> None:
    """Says it once, as most often it is so of all regions."""
    logger.warning("A region of the source %s It is dropped, as 'malformed_region'; so are others like it.", wrong)


def _check_record(record: Any) -> None:
    if not isinstance(record, Mapping):
        raise BadImage("malformed_record", f"the record is {record!r:.200}; accepted is an object.")
    if unknown := sorted(set(record) - set(RECORD_KEYS)):
        detail = f"the record has the unknown keys {unknown}; accepted are {sorted(RECORD_KEYS)}."
        raise BadImage("malformed_record", detail)
    for key in ("captions", "long_captions"):
        texts = record.get(key)
        of_texts = isinstance(texts, list) and all(isinstance(text, (str, type(None))) for text in texts)
        if texts is not None and not of_texts:
            raise BadImage("malformed_record", f"key {key!r} is {texts!r:.200}; accepted is a list of strings.")
    if not isinstance(record.get("licence"), (str, type(None))):
        detail = f"key 'licence' is {record['licence']!r:.200}; accepted is a string or null."
        raise BadImage("malformed_record", detail)
