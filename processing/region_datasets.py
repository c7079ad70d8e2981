# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""JSON lines of images with region masks and texts: their reader and writer, and the mark of held-out samples."""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .bad_samples import BAD_DATA_ERRORS, BadSampleLog
from .region_records import RegionSample, check_record, clean_record, sample_of_clean_record
from .training_epochs import EpochDataset


class RegionJsonlDataset(EpochDataset):
    """Reads JSON lines of images with region masks and texts.

    One image a line, UTF-8, blank lines allowed:

        {"image": "images/1.jpg",            path below image_root, relative to it, "/" between folders
         "image_id": "1",
         "width": 448, "height": 336,        pixels of the image file
         "captions": ["Two dogs play."],     optional; captions of the whole image, the short ones
         "long_captions": ["Two dogs ..."],  optional; long captions of the whole image
         "regions": [
            {"mask": {"size": [336, 448], "counts": "..."},   COCO RLE at the image's size, or polygons in its pixels
             "box": [12, 30.5, 200, 310],    in place of "mask" where there is none: x1, y1, x2, y2 in pixels; beside
                                             one it must be the box around it, within a pixel
             "category": "dog",              optional, may be null
             "object_text": "a brown dog",   optional, may be null; names the object only
             "text": "A brown dog ...",      the long region text
             "hard_negatives": ["A grey dog ..."],            optional; the text with details changed, any number
             "text_source": "written"}]}     optional; who wrote the text, for the record only

    A region of a box only has the box's rectangle for its mask, and the sample's `boxes` say so.

    Not read, but known, are the keys that the LongGRIT pipeline adds: "licence" (of the image) and "provenance" of an
    image; "region_id", "mask_source", "phrase", "context_text" and "provenance" of a region.

    Every record is checked when the data set is made, its masks too, except for the pixels of the images: these open
    when they are indexed, by the rules of `PixCLIPImageProcessor` but as stored, without regard to EXIF orientation.
    Other keys are an error, so that a misspelt one shows. Texts and captions lose the whitespace around them.

    Args:
        path (`str` or `os.PathLike`):
            The JSON lines file.
        image_root (`str` or `os.PathLike`, *optional*, defaults to the folder of `path`):
            Folder that the images' paths are relative to.
        bad_samples (`BadSampleLog`, *optional*):
            Where lines that are not such records, or whose image file is missing, are counted and written down; they
            are left out then. For images that cannot be read when they are indexed see `SkipBadSamples`.

    Raises:
        ValueError: If a line is not such a record or its image file is missing, or, when indexed, the image cannot
            be read; names file, line, key and what is accepted.
        TooManyBadSamplesError: See `BadSampleLog`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (3, 2)).save(folder / "1.png")
        >>> region = {"mask": {"size": [2, 3], "counts": [2, 2, 2]}, "text": "The middle column of a black image."}
        >>> record = {"image": "1.png", "image_id": "1", "width": 3, "height": 2, "regions": [region]}
        >>> write_region_jsonl([record], folder / "data.jsonl")
        >>> RegionJsonlDataset(folder / "data.jsonl")[0]["texts"]
        ['The middle column of a black image.']
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_root: str | os.PathLike | None = None,
        bad_samples: BadSampleLog | None = None,
    ):
        super().__init__()
        self.path = Path(path)
        self.image_root = self.path.parent if image_root is None else Path(image_root)
        self.records: list[dict[str, Any]] = []
        self._line_numbers: list[int] = []
        bad: list[tuple[str, Exception, str | None]] = []
        # In bytes, so that a line that is not UTF-8 is one bad line.
        with open(self.path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{self.path}, line {number}"
                try:
                    self.records.append(self._read_line(line, where))
                except BAD_DATA_ERRORS as error:
                    if bad_samples is None:
                        raise
                    bad.append((where, error, None))
                else:
                    self._line_numbers.append(number)
        if bad_samples is not None:
            bad_samples.add_checked(str(self.path), len(self.records) + len(bad), bad)
        if not self.records:
            raise ValueError(f"{self.path} holds no record; a record is one JSON object a line.")

    def _read_line(self, line: bytes, where: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        # Brackets nested without end are no ValueError.
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}); a record is one JSON object a line.") from error
        check_record(record, where)
        file = self.image_root / record["image"]
        if not file.is_file():
            raise ValueError(f"{where}: key 'image' names {file}, which is not a file; check image_root.")
        return clean_record(record)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> RegionSample:
        where = f"{self.path}, line {self._line_numbers[index]}"
        sample = sample_of_clean_record(self.records[index], where, lambda name: self.image_root / name)
        return {**sample, "epoch": self.epoch}


class EvaluationRegions(Dataset):
    """Marks the samples of a reader as held out: `PixCLIPDataCollator` then takes every region, unchanged.

    The Trainer has one collator for training and evaluation; what that draws at random (whole images, a subset of the
    regions, augmentation) would make an evaluation noisy. Around a wrapper of a reader, such as torch's `Subset`, it
    also keeps accelerate from cutting the last batch's rows to the number of its samples.

    Args:
        samples (`Sequence[RegionSample]`):
            A region reader, or a list of its samples.

    Example:
        >>> dataset = RegionJsonlDataset("examples/data/coco_regions/heldout.jsonl")
        >>> EvaluationRegions(dataset)[0]["evaluation"]
        True
    """

    total_dataset_length = EpochDataset.total_dataset_length

    def __init__(self, samples: Sequence[RegionSample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> RegionSample:
        return {**self.samples[index], "evaluation": True}


def write_region_jsonl(records: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes records for `RegionJsonlDataset`: all of them, or, if one is wrong or writing fails, none.

    An existing file is replaced only once the new one is complete.

    Args:
        records: Records as in the docstring of `RegionJsonlDataset`.
        path: File to write. Its folder must exist.

    Raises:
        ValueError: If a record is not valid; names its position, the key and what is accepted. Image files are not
            looked for.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "data.jsonl"
        >>> write_region_jsonl([{"image": "1.png", "image_id": "1", "width": 3, "height": 2, "regions": []}], path)
        >>> path.read_text()
        '{"image": "1.png", "image_id": "1", "width": 3, "height": 2, "regions": []}\\n'
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            for number, record in enumerate(records):
                check_record(record, f"records[{number}]")
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temporary.unlink()
            raise
    # A temporary file is private to its owner; the data set is meant to be read like any other file.
    temporary.chmod(0o644)
    temporary.replace(path)
