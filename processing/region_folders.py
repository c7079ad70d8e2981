# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reader of a plain folder: images, one mask file a region, and a table of their texts."""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging

from .bad_samples import BAD_DATA_ERRORS, BadSampleLog
from .region_records import (
    RegionSample,
    check_image_size,
    check_relative_path,
    is_text,
    open_stored_image,
    read_image_header,
)
from .regions import encode_rle, to_mask
from .training_epochs import EpochDataset


logger = logging.get_logger(__name__)

_COLUMNS = {
    "file_name": "path of the image",
    "mask_file_name": "path of the region's mask",
    "text": "text of the region",
    "object_text": "short text that names the region's object only",
    "category": "category of the region",
    "caption": "short caption of the whole image",
    "long_caption": "long caption of the whole image",
    "hard_negatives": "texts that nearly describe the region",
}
_OF_REGION = ("text", "object_text", "category", "hard_negatives")
TABLES = ("metadata.csv", "metadata.jsonl")
_MASK_MODES = ("1", "L", "P", "LA", "RGB", "RGBA", "I", "I;16")


class RegionFolderDataset(EpochDataset):
    """Reads a folder of images and masks with a table of texts, as `datasets` reads an `ImageFolder`.

        my_data/
            metadata.csv            or metadata.jsonl
            images/dog.jpg          any names and folders, as the table says
            masks/dog_head.png
            masks/dog_tail.png

    The table is UTF-8 and has one row a region. Rows with the same `file_name` are regions of one image:

        file_name,mask_file_name,text,object_text
        images/dog.jpg,masks/dog_head.png,"The head of a brown dog, its tongue out.",a dog's head
        images/dog.jpg,masks/dog_tail.png,"A brown tail that curls up.",a tail

    | column | |
    |---|---|
    | `file_name` | path of the image, relative to the folder |
    | `mask_file_name` | path of the region's mask, an image of the same size: the region is white (255, or 1), the rest 0 |
    | `text` | the region's text, long or short |
    | `object_text` | optional; short text that names the object only |
    | `category` | optional; category name |
    | `caption`, `long_caption` | optional; short and long caption of the whole image, in one of its rows or in all |
    | `hard_negatives` | optional; texts that nearly describe the region: a list in JSON, in CSV separated by `\\|` |

    An image without regions has a row without `mask_file_name`. An empty cell, or `null`, is as good as none. Other
    columns are an error, so that a misspelt one shows.

    Rows, files and the sizes of the masks are checked when the data set is made. Pixels are read when a sample is
    indexed, as stored, without regard to EXIF orientation. A mask without a pixel is passed on: `PixCLIPDataCollator`
    warns of it, and the model leaves the region out and counts it.

    For a stream of shards see `iter_region_folder_records`.

    Args:
        folder (`str` or `os.PathLike`):
            The folder.
        table (`str` or `os.PathLike`, *optional*, defaults to the folder's `metadata.csv` or `metadata.jsonl`):
            Another table, for example one a split, with the ending `.csv` or `.jsonl`.
        bad_samples (`BadSampleLog`, *optional*):
            Where rows that are malformed, or whose image or mask is missing, damaged or of the wrong size, are counted
            and written down; they are left out then, and with the last row of an image the image. For files whose
            pixels cannot be read when they are indexed see `SkipBadSamples`.
        require_text (`bool`, defaults to `True`):
            Whether each region must have a text. Without it, `records` can be read, but samples not.

    Raises:
        FileNotFoundError: If there is no table.
        TooManyBadSamplesError: See `BadSampleLog`.
        ValueError: If the table, a row or a file is not as above, or, when indexed, a file cannot be read; names the
            table, its line, the column and what is accepted.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "dog.jpg")
        >>> mask = np.zeros((30, 40), dtype=np.uint8)
        >>> mask[5:20, 10:25] = 255
        >>> Image.fromarray(mask).save(folder / "dog_mask.png")
        >>> rows = "file_name,mask_file_name,text\\ndog.jpg,dog_mask.png,A brown dog.\\n"
        >>> _ = (folder / "metadata.csv").write_text(rows)
        >>> dataset = RegionFolderDataset(folder)
        >>> dataset[0]["texts"], int(dataset[0]["masks"][0].sum())
        (['A brown dog.'], 225)
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        table: str | os.PathLike | None = None,
        bad_samples: BadSampleLog | None = None,
        require_text: bool = True,
    ):
        super().__init__()
        self.require_text = require_text
        self.folder = Path(folder)
        self.path = _find_table(self.folder) if table is None else Path(table)
        images: dict[str, dict[str, Any]] = {}
        rows = 0
        bad: list[tuple[str, Exception, str | None]] = []
        for where, row in _read_rows(self.path):
            rows += 1
            try:
                self._add_row(_checked(row, where), where, images)
            except BAD_DATA_ERRORS as error:
                if bad_samples is None:
                    raise
                name = row.get("file_name") if isinstance(row, dict) else None
                bad.append((where, error, name if isinstance(name, str) else None))
        if bad_samples is not None:
            bad_samples.add_checked(str(self.path), rows, bad, "rows")
        self.records = list(images.values())
        if not self.records:
            which = "good row" if rows else "row"
            raise ValueError(
                f"{self.path} has no {which}; it has one a region, with the columns {', '.join(_COLUMNS)}."
            )

    def _add_row(self, row: dict[str, Any], where: str, images: dict[str, dict[str, Any]]) -> None:
        if "file_name" not in row:
            raise ValueError(f"{where}: column 'file_name' is empty; it is the {_COLUMNS['file_name']}.")
        name = row["file_name"]
        record = images.get(name)
        if record is None:
            file = self._existing(row, "file_name", where)
            size, _ = read_image_header(file, f"{where}: {file}")
            check_image_size(*size, f"{where}: {file}")
            record = {
                "image_id": name,
                "where": where,
                "size": size,
                "captions": [],
                "long_captions": [],
                "regions": [],
            }
        if "mask_file_name" in row:
            self._check_region(row, where, record)
        else:
            of_region = [column for column in _OF_REGION if column in row]
            if of_region:
                raise ValueError(
                    f"{where}: column 'mask_file_name' is empty, but {of_region[0]!r} is not; a region has a mask, and "
                    f"what is true of the whole image goes into 'caption' or 'long_caption'."
                )
        # Now that all of the row is good.
        images[name] = record
        for column, captions in (("caption", "captions"), ("long_caption", "long_captions")):
            if column in row and row[column] not in record[captions]:
                record[captions].append(row[column])
        if "mask_file_name" in row:
            record["regions"].append({**row, "where": where})

    def _check_region(self, row: dict[str, Any], where: str, record: dict[str, Any]) -> None:
        if self.require_text and "text" not in row:
            raise ValueError(f"{where}: column 'text' is empty; a region with a mask has a text.")
        file = self._existing(row, "mask_file_name", where)
        size, mode = read_image_header(file, f"{where}: {file}")
        if size != record["size"]:
            raise ValueError(
                f"{where}: mask {file} is {size[0]} pixels wide and {size[1]} high, but its image {row['file_name']} is "
                f"{record['size'][0]} wide and {record['size'][1]} high; a mask has the size of its image."
            )
        if mode not in _MASK_MODES:
            raise ValueError(f"{where}: mask {file} has PIL mode {mode!r}; accepted are {', '.join(_MASK_MODES)}.")

    def _existing(self, row: dict[str, Any], column: str, where: str) -> Path:
        check_relative_path(row[column], f"{where}: column {column!r}", "the folder")
        file = self.folder / row[column]
        if not file.is_file():
            raise ValueError(f"{where}: column {column!r} names {file}, which is not a file.")
        return file

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> RegionSample:
        record = self.records[index]
        name = record["image_id"]
        image = open_stored_image(self.folder / name, f"{record['where']}: {name}", record["size"])
        regions = record["regions"]
        return {
            "image": image,
            "image_id": name,
            "captions": list(record["captions"]),
            "long_captions": list(record["long_captions"]),
            "masks": [read_mask_file(self.folder / region["mask_file_name"], region["where"]) for region in regions],
            "texts": [region["text"] for region in regions],
            "object_texts": [region.get("object_text") for region in regions],
            "categories": [region.get("category") for region in regions],
            "hard_negatives": [list(region.get("hard_negatives", [])) for region in regions],
            "epoch": self.epoch,
        }


def iter_region_folder_records(
    folder: str | os.PathLike,
    table: str | os.PathLike | None = None,
    bad_samples: BadSampleLog | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the images of such a folder as records for `write_region_webdataset` and `write_region_parquet`.

    The table is held in memory; mask files are read one image at a time and become RLE. A soft mask is cut at one half.
    Regions whose mask has no pixel then are left out, and counted in a warning at the end.

    Args:
        folder, table:
            As for `RegionFolderDataset`.
        bad_samples: Where bad rows, and images of which a mask cannot be read, are counted and written down; they are
            left out then. A log of its own, not that of a training.

    Yields:
        Records of the form that `RegionJsonlDataset` describes; their image paths are relative to `folder`.

    Raises:
        FileNotFoundError, ValueError, TooManyBadSamplesError: As `RegionFolderDataset` does.

    Example:
        >>> import tempfile
        >>> from processing_pixclip import write_region_webdataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "dog.jpg")
        >>> Image.new("L", (40, 30), 255).save(folder / "dog_mask.png")
        >>> rows = "file_name,mask_file_name,text\\ndog.jpg,dog_mask.png,A brown dog.\\n"
        >>> _ = (folder / "metadata.csv").write_text(rows)
        >>> records = iter_region_folder_records(folder)
        >>> [file.name for file in write_region_webdataset(records, folder / "shards", image_root=folder)]
        ['00000.tar']
    """
    dataset = RegionFolderDataset(folder, table, bad_samples)
    rejected: Counter[str] = Counter()
    for record in dataset.records:
        width, height = record["size"]
        regions = []
        try:
            for region in record["regions"]:
                mask = read_mask_file(dataset.folder / region["mask_file_name"], region["where"]) >= 0.5
                if not mask.any():
                    rejected["empty mask"] += 1
                    continue
                texts = {key: region[key] for key in _OF_REGION if key in region}
                regions.append({"mask": encode_rle(mask), **texts})
        except BAD_DATA_ERRORS as error:
            if bad_samples is None:
                raise
            bad_samples.add_bad(record["where"], error, record["image_id"])
            continue
        if bad_samples is not None:
            bad_samples.add_good()
        yield {
            "image": record["image_id"],
            "image_id": record["image_id"],
            "width": width,
            "height": height,
            "captions": record["captions"],
            "long_captions": record["long_captions"],
            "regions": regions,
        }
    if rejected:
        logger.warning(f"{dataset.path}: left out: {dict(rejected)}.")


def _find_table(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    found = [folder / name for name in TABLES if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} has neither {' nor '.join(TABLES)}; one of them is the table of the regions."
        )
    if len(found) > 1:
        raise ValueError(f"{folder} has both {' and '.join(TABLES)}; remove one, or say which by table=.")
    return found[0]


def _read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Gives the rows with their place, and in place of one that cannot be read the error."""
    if path.suffix not in (".csv", ".jsonl"):
        raise ValueError(f"{path} ends in {path.suffix!r}; a table is a .csv or a .jsonl file.")
    # Spreadsheets put a mark at the start of UTF-8. What is no UTF-8 becomes halves of surrogate pairs, in its row.
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield from (_csv_rows if path.suffix == ".csv" else _jsonl_rows)(file, path)


def _csv_rows(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(file, strict=True)
    try:
        names = reader.fieldnames or []
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV in line 1: {error}.") from error
    _check_unicode(names, f"{path}, line 1")
    _check_columns(names, f"{path}, line 1")
    while True:
        line = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            return
        # The reader goes on with the next line.
        except csv.Error as error:
            yield f"{path}, line {line + 1}", ValueError(f"{path} is not CSV after line {line}: {error}.")
            continue
        where = f"{path}, line {reader.line_num}"
        try:
            yield where, _cells_of(row, where, len(names))
        except ValueError as error:
            yield where, error


def _cells_of(row: dict[str | None, Any], where: str, columns: int) -> dict[str, Any]:
    if None in row or None in row.values():
        cells = "more" if None in row else "fewer"
        raise ValueError(
            f'{where} has {cells} cells than the {columns} columns; a text with a comma goes into "double quotes".'
        )
    _check_unicode(list(row.values()), where)
    row["hard_negatives"] = [text for text in row.get("hard_negatives", "").split("|") if text.strip()]
    return row


def _jsonl_rows(file: Any, path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(file, start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            _check_unicode([line], where)
            yield where, json.loads(line)
        # The latter where brackets are nested by the thousand.
        except (ValueError, RecursionError) as error:
            yield where, ValueError(f"{where} is not JSON ({error}); a row is one JSON object a line.")


def _check_unicode(texts: list[str], where: str) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} is not UTF-8; save the table as UTF-8.") from error


def _check_columns(names: list[str], where: str) -> None:
    for name in names:
        if name not in _COLUMNS:
            raise ValueError(f"{where}: column {name!r:.200} is unknown; accepted are {', '.join(_COLUMNS)}.")
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise ValueError(f"{where}: column {sorted(repeated)[0]!r} is there twice.")
    if "file_name" not in names:
        raise ValueError(f"{where}: column 'file_name' is missing; it is the {_COLUMNS['file_name']}.")


def _checked(row: Any, where: str) -> dict[str, Any]:
    """Returns the row without empty cells, its texts without the whitespace around them."""
    if isinstance(row, Exception):
        raise row
    if not isinstance(row, dict):
        raise ValueError(f"{where} is a {type(row).__name__}; a row is one JSON object a line.")
    _check_columns(list(row), where)
    checked: dict[str, Any] = {}
    for column, value in row.items():
        several = column == "hard_negatives"
        texts = [] if value is None else value if several else [value]
        for text in texts if isinstance(texts, list) else [texts]:
            proper = isinstance(text, str) and not isinstance(texts, str)
            if not proper or (text.strip() and not is_text(text)) or (several and not text.strip()):
                accepted = "a list of non-empty strings" if several else "a string"
                raise ValueError(
                    f"{where}: column {column!r} is {value!r:.200}; it is {accepted} of Unicode characters, the "
                    f"{_COLUMNS[column]}."
                )
        texts = [text.strip() for text in texts if text.strip()]
        if texts:
            checked[column] = texts if several else texts[0]
    return checked


def read_mask_file(file: Path, where: str) -> np.ndarray:
    """Reads a mask file as float32 of shape (height, width); error messages call its row `where`."""
    name = f"{where}: mask {file}"
    try:
        with Image.open(file) as image:
            # A palette is about colours; what counts is the number of each pixel.
            mask = np.asarray(image)
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an image: {type(error).__name__}: {error}") from error
    if mask.ndim == 3:
        colours = mask[..., :3] if mask.shape[2] > 2 else mask[..., :1]
        opaque = mask.shape[2] == 3 or bool((mask[..., -1] == 255).all())
        if not opaque or (colours != colours[..., :1]).any():
            raise ValueError(
                f"{name} has {'colours' if opaque else 'transparent pixels'}; a mask is an image of one channel, 255 (or "
                f"1) where the region is and 0 elsewhere."
            )
        mask = colours[..., 0]
    return to_mask(mask, *mask.shape, name, allow_empty=True)


__all__ = ["RegionFolderDataset", "iter_region_folder_records"]
