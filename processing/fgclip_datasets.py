# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""FG-CLIP's training data: captioned images, and FineHARD's boxes with expressions and hard negatives."""

import codecs
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
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
from .regions import BOX_TOLERANCE, box_to_mask
from .training_epochs import EpochDataset, epoch_generator


logger = logging.get_logger(__name__)


_EXPRESSIONS = ("random", "long", "short")
# Detectors put a box a little over the edge; what lies further out belongs to another image, or is not normalised.
_CLIPPED = 0.02
_SMALLEST_SIDE = 1e-4
# An item of a list is read whole; what is longer has lost its end.
_LONGEST_ITEM = 1 << 24


class FGCLIPDataset(EpochDataset):
    """Reads the training files of FG-CLIP: long and short captions (stage 1), and boxes with expressions (stage 2).

    One item an image:

        {"f_path": "grit-20m/data-12m/coyo_image_0/1.jpg",   path of the image, see `path_prefix`
         "caption": "The photo shows a dog that ...",        the long caption
         "short_caption": "a dog on a lawn",
         "bbox_info": [                                      regions; none in stage 1
            {"bbox": [0.1, 0.2, 0.5, 0.9],                   x1, y1, x2, y2 as shares of the image; more is ignored
             "short_expr": "a dog",                          two texts of the region, of which one may be missing
             "long_expr": "a brown dog with a red collar",
             "flag_short_neg": 1,                            optional; 0: do not use the hard negatives
             "short_expr_negs": {"0": "a grey dog", ...}}]}  hard negatives of `short_expr`, any number, or a list

    Other keys are ignored. A file holds a JSON list of items, or one item a line.

    A region's `texts` entry is one of its two expressions, its `object_texts` entry the short one, which the hard
    negatives belong to. All regions are read; the authors' code takes the first four of an image and no others, for
    which `PixCLIPDataCollator(max_regions_per_image=4)` takes a random four. What is left out is counted by reason in
    `rejected`:

    * `"box without area"`: no wider or no higher than a 1/10000 of the image, or turned round;
    * `"box outside the image"`: a side more than 2 % of the image outside;
    * `"region without text"`: both expressions are missing or blank;
    * `"blank hard negative"`: without a letter;
    * `"hard negatives without short_expr"`: all those of a region, which describe a text that is missing.

    Boxes that reach less than that outside are cut at the edge and counted in `repaired` as `"clipped to the image"`.

    Every item is held in memory, some 5 kB each. For millions of images write shards, see `iter_fgclip_records`.

    Args:
        path (`str` or `os.PathLike`):
            A `.json` or `.jsonl` file, a `.txt` file that lists such files (one a line, relative to its own folder), or
            a folder of such files.
        image_root (`str` or `os.PathLike`, *optional*, defaults to the folder of `path`):
            Folder that the images' paths are relative to.
        path_prefix (`str`, defaults to `"grit-20m/data-12m/"`):
            Taken off the start of every `f_path` that has it.
        caption_prefix (`str`, defaults to `"a photo of "`):
            Put in front of every short caption, as FG-CLIP does.
        expressions (`str`, defaults to `"random"`):
            Which expression is the region's text: `"long"`, `"short"` (the other where that one is missing), or
            `"random"`, drawn anew each epoch, as FG-CLIP does.
        seed (`int`, defaults to 0):
            Seed of that draw, which hangs on the epoch and the image besides.
        bad_samples (`BadSampleLog`, *optional*):
            Where items that are malformed, or whose image file is missing, are counted and written down; they are left
            out then. Of a JSON list that is cut or broken the rest is left out, as one bad item. For images that cannot be read when they are indexed see `SkipBadSamples`.

    Attributes:
        rejected (`collections.Counter`): How many regions and hard negatives were left out, by reason.
        repaired (`collections.Counter`): How many boxes were changed, by repair.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is not JSON, an item is malformed or its image file is missing, or, when indexed, the image
            cannot be read; names file, item, key and what is accepted.
        TooManyBadSamplesError: See `BadSampleLog`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "1.jpg")
        >>> region = {"bbox": [0.1, 0.2, 0.5, 0.9], "short_expr": "a dog", "long_expr": "a brown dog", "flag_short_neg": 1,
        ...           "short_expr_negs": {"0": "a cat", "1": "a horse"}}
        >>> item = {"f_path": "grit-20m/data-12m/1.jpg", "caption": "A brown dog stands on a lawn and looks up.",
        ...         "short_caption": "a dog on a lawn", "bbox_info": [region]}
        >>> _ = (folder / "data.json").write_text(json.dumps([item]))
        >>> sample = FGCLIPDataset(folder / "data.json", expressions="long")[0]
        >>> sample["captions"], sample["texts"], sample["hard_negatives"], sample["boxes"]
        (['a photo of a dog on a lawn'], ['a brown dog'], [['a cat', 'a horse']], [[4.0, 6.0, 20.0, 27.0]])
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_root: str | os.PathLike | None = None,
        path_prefix: str = "grit-20m/data-12m/",
        caption_prefix: str = "a photo of ",
        expressions: Literal["random", "long", "short"] = "random",
        seed: int = 0,
        bad_samples: BadSampleLog | None = None,
    ):
        _check_expressions(expressions)
        super().__init__()
        self.path = Path(path)
        reader = _ItemReader(self.path, image_root, path_prefix, caption_prefix)
        self.image_root = reader.image_root
        self.expressions = expressions
        self.seed = seed
        self.rejected = reader.rejected
        self.repaired = reader.repaired
        self.records: list[dict[str, Any]] = []
        bad: list[tuple[str, Exception, str | None]] = []
        for where, record in reader.records():
            if not isinstance(record, Exception):
                self.records.append(record)
            elif bad_samples is None:
                raise record
            else:
                bad.append((where, record, None))
        if bad_samples is not None:
            bad_samples.add_checked(str(self.path), len(self.records) + len(bad), bad)
        if not self.records:
            raise _no_item(self.path)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> RegionSample:
        record = self.records[index]
        image = open_stored_image(self.image_root / record["image"], f"{record['where']}: {record['image']}")
        width, height = image.size
        boxes = [_to_pixels(region["box"], width, height) for region in record["regions"]]
        epoch = self.epoch
        return {
            "image": image,
            "image_id": record["image_id"],
            "captions": list(record["captions"]),
            "long_captions": list(record["long_captions"]),
            # In an image of a few pixels a box that is not empty here may be.
            "masks": [box_to_mask(box, height, width, allow_empty=True) for box in boxes],
            "boxes": boxes,
            "texts": _texts_of(record, self.expressions, self.seed, epoch),
            "object_texts": [region["short"] for region in record["regions"]],
            "categories": [None] * len(boxes),
            "hard_negatives": [list(region["hard_negatives"]) for region in record["regions"]],
            "epoch": epoch,
        }


def iter_fgclip_records(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    path_prefix: str = "grit-20m/data-12m/",
    caption_prefix: str = "a photo of ",
    expressions: Literal["random", "long", "short"] = "random",
    seed: int = 0,
    bad_samples: BadSampleLog | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields FG-CLIP's items as records for `write_region_webdataset` and `write_region_parquet`, one after the other.

    One item is in memory at a time, also of a JSON list, so that 12 million images become shards without a machine that
    holds them. Of the images only the headers are read. A region is a box with the text `expressions`, the short
    expression as its object text and its hard negatives. What is left out or changed is counted as in `FGCLIPDataset`,
    and logged when the last item has been read; so is a `"box without area"` of an image of a few pixels.

    The samples of a `RegionStream` over the shards equal those of `FGCLIPDataset` with the same settings in epoch 0. A
    random expression is drawn once, when the record is made.

    Args:
        path, image_root, path_prefix, caption_prefix, expressions, seed:
            As for `FGCLIPDataset`.
        bad_samples: Where items that are malformed, or whose image file is missing or has no readable header, are counted
            and written down; they are left out then. A log of its own, not that of a training.

    Yields:
        Records of the form that `RegionJsonlDataset` describes; their image paths are relative to `image_root`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an item cannot be used and there is no `bad_samples`; names file, item, key and what is accepted.
        TooManyBadSamplesError: See `BadSampleLog`.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> from processing_pixclip import write_region_webdataset
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "1.jpg")
        >>> region = {"bbox": [0.1, 0.2, 0.5, 0.9], "short_expr": "a dog", "long_expr": "a brown dog"}
        >>> item = {"f_path": "1.jpg", "short_caption": "a dog on a lawn", "bbox_info": [region]}
        >>> _ = (folder / "data.json").write_text(json.dumps([item]))
        >>> records = iter_fgclip_records(folder / "data.json", expressions="long")
        >>> [file.name for file in write_region_webdataset(records, folder / "shards", image_root=folder)]
        ['00000.tar']
    """
    _check_expressions(expressions)
    reader = _ItemReader(Path(path), image_root, path_prefix, caption_prefix)
    items = 0
    for where, record in reader.records():
        items += 1
        try:
            if isinstance(record, Exception):
                raise record
            file = reader.image_root / record["image"]
            (width, height), _ = read_image_header(file, f"{where}: {file}")
            check_image_size(width, height, f"{where}: {file}")
        except BAD_DATA_ERRORS as error:
            if bad_samples is None:
                raise
            bad_samples.add_bad(where, error, None if isinstance(record, Exception) else record["image_id"])
            continue
        if bad_samples is not None:
            bad_samples.add_good()
        regions = []
        for region, text in zip(record["regions"], _texts_of(record, expressions, seed, 0)):
            box = _to_pixels(region["box"], width, height)
            if min(box[2] - box[0], box[3] - box[1]) < BOX_TOLERANCE:
                reader.rejected["box without area"] += 1
                continue
            negatives = region["hard_negatives"]
            regions.append({"box": box, "text": text, "object_text": region["short"], "hard_negatives": negatives})
        yield {
            "image": record["image"],
            "image_id": record["image_id"],
            "width": width,
            "height": height,
            "captions": record["captions"],
            "long_captions": record["long_captions"],
            "regions": regions,
        }
    if not items:
        raise _no_item(reader.path)
    if reader.rejected or reader.repaired:
        logger.warning(f"{path}: left out: {dict(reader.rejected)}; changed: {dict(reader.repaired)}.")


class _ItemReader:
    """Makes the items of annotation files into records, whose boxes are shares of the image."""

    def __init__(self, path: Path, image_root: str | os.PathLike | None, path_prefix: str, caption_prefix: str):
        self.path = path
        folder = path if path.is_dir() else path.parent
        self.image_root = folder if image_root is None else Path(image_root)
        self.rejected: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self._path_prefix = path_prefix
        self._caption_prefix = caption_prefix

    def records(self) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
        """Gives the place of each item, and its record or why there is none."""
        for file in _annotation_files(self.path):
            for where, item in _items(file):
                try:
                    yield where, self._read_item(_parsed(item, where), where)
                except BAD_DATA_ERRORS as error:
                    yield where, error

    def _read_item(self, item: Any, where: str) -> dict[str, Any]:
        if not isinstance(item, dict):
            raise ValueError(f"{where} is a {type(item).__name__}; accepted is an object with the key 'f_path'.")
        image = item.get("f_path")
        if not isinstance(image, str):
            raise ValueError(f"{where}: key 'f_path' is {image!r:.200}; accepted is the path of an image file.")
        image = image.removeprefix(self._path_prefix)
        check_relative_path(image, f"{where}: key 'f_path'", "image_root")
        if not (self.image_root / image).is_file():
            raise ValueError(
                f"{where}: key 'f_path' names {self.image_root / image}, which is not a file; check image_root and "
                f"path_prefix."
            )
        captions = {key: _text(item, key, where) for key in ("short_caption", "caption")}
        regions = item.get("bbox_info")
        if regions is None:
            regions = []
        if not isinstance(regions, list):
            raise ValueError(f"{where}: key 'bbox_info' is {regions!r:.200}; accepted is a list of regions.")
        read = [self._read_region(region, f"{where}: bbox_info[{number}]") for number, region in enumerate(regions)]
        return {
            "image": image,
            "image_id": image,
            "where": where,
            "captions": [self._caption_prefix + text for text in [captions["short_caption"]] if text],
            "long_captions": [text for text in [captions["caption"]] if text],
            "regions": [region for region in read if region is not None],
        }

    def _read_region(self, region: Any, where: str) -> dict[str, Any] | None:
        if not isinstance(region, dict):
            raise ValueError(f"{where} is a {type(region).__name__}; accepted is an object with the key 'bbox'.")
        box = self._read_box(region.get("bbox"), where)
        texts = {kind: _text(region, f"{kind}_expr", where) for kind in ("long", "short")}
        negatives = self._read_negatives(region, where)
        if box is None:
            return None
        if not any(texts.values()):
            self.rejected["region without text"] += 1
            return None
        if negatives and not texts["short"]:
            self.rejected["hard negatives without short_expr"] += 1
            negatives = []
        return {"box": box, **texts, "hard_negatives": negatives}

    def _read_box(self, box: Any, where: str) -> list[float] | None:
        numbers = box[:4] if isinstance(box, list) else []
        if len(numbers) != 4 or not all(isinstance(n, (int, float)) and -math.inf < n < math.inf for n in numbers):
            raise ValueError(
                f"{where}: key 'bbox' is {box!r:.200}; accepted are [x1, y1, x2, y2], shares of the image, 0 to 1."
            )
        if min(numbers) < -_CLIPPED or max(numbers) > 1 + _CLIPPED:
            self.rejected["box outside the image"] += 1
            return None
        clipped = np.clip(numbers, 0, 1)
        if (clipped[2:] - clipped[:2] < _SMALLEST_SIDE).any():
            self.rejected["box without area"] += 1
            return None
        self.repaired["clipped to the image"] += int((clipped != numbers).any())
        return clipped.tolist()

    def _read_negatives(self, region: dict[str, Any], where: str) -> list[str]:
        negatives = region.get("short_expr_negs")
        if negatives is None:
            negatives = []
        if not isinstance(negatives, (dict, list)):
            raise ValueError(
                f"{where}: key 'short_expr_negs' is {negatives!r:.200}; accepted are texts by number, {{'0': text, ...}}, "
                f"or a list of them."
            )
        if not region.get("flag_short_neg", 1):
            return []
        texts = list(negatives.values() if isinstance(negatives, dict) else negatives)
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"{where}: key 'short_expr_negs' holds {text!r:.200}; a hard negative is a string.")
        kept = [text.strip() for text in texts if is_text(text)]
        if len(kept) < len(texts):
            self.rejected["blank hard negative"] += len(texts) - len(kept)
        return kept


def _check_expressions(expressions: str) -> None:
    if expressions not in _EXPRESSIONS:
        raise ValueError(f"expressions is {expressions!r}; accepted are {', '.join(map(repr, _EXPRESSIONS))}.")


def _no_item(path: Path) -> ValueError:
    return ValueError(f"{path} holds no item; an item is an object with the key 'f_path', one an image.")


def _to_pixels(box: list[float], width: int, height: int) -> list[float]:
    return np.multiply(box, [width, height, width, height]).tolist()


def _texts_of(record: dict[str, Any], expressions: str, seed: int, epoch: int) -> list[str]:
    long = torch.full((len(record["regions"]),), expressions == "long")
    if expressions == "random":
        long = torch.rand(len(long), generator=epoch_generator(seed, epoch, record["image_id"], "expressions")) < 0.5
    return [
        (region["long"] if of_long else region["short"]) or region["long"] or region["short"]
        for region, of_long in zip(record["regions"], long.tolist())
    ]


def _annotation_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
        if not files:
            raise FileNotFoundError(f"{path} holds no .json or .jsonl file.")
    elif path.suffix == ".txt":
        lines = path.read_text(encoding="utf-8").splitlines()
        files = [path.parent / line.strip() for line in lines if line.strip()]
        if not files:
            raise FileNotFoundError(f"{path} lists no file; it holds the path of a .json or .jsonl file a line.")
    else:
        files = [path]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is not a file{'' if file == path else f', but {path} lists it'}.")
    return files


def _items(file: Path) -> Iterator[tuple[str, Any]]:
    """Gives each item with its place: parsed, or why it cannot be, if the file is one JSON list, else a line of it."""
    try:
        with open(file, "rb") as content:
            start = content.read(256).lstrip(b"\xef\xbb\xbf \t\r\n")
            content.seek(0)
            if start.startswith(b"["):
                yield from _items_of_list(content, file)
            else:
                yield from ((f"{file}, line {number}", line) for number, line in enumerate(content, 1) if line.strip())
    except OSError as error:
        yield str(file), error


def _items_of_list(content: Any, file: Path) -> Iterator[tuple[str, Any]]:
    """Reads a list item by item, so that none but the item is in memory."""
    # Bytes that are no UTF-8 become halves of surrogate pairs: one bad item, not a bad file.
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    parser = json.JSONDecoder()
    text, place, ended, chunk = "", 0, False, 1 << 18

    def more() -> None:
        nonlocal text, place, ended
        read = content.read(max(chunk, len(text) - place))
        ended = not read
        text, place = text[place:] + decode(read, ended), 0

    def skip_blanks() -> str:
        nonlocal place
        while True:
            while place < len(text) and text[place] in " \t\r\n":
                place += 1
            if place < len(text) or ended:
                return text[place : place + 1]
            more()

    skip_blanks()
    place += 1
    number = 0
    while True:
        where = f"{file}, item {number}"
        character = skip_blanks()
        if character == "]":
            place += 1
            break
        if number:
            if character != ",":
                yield where, _lost(where, f"',' or ']' is missing before {text[place : place + 20]!r}")
                return
            place += 1
            skip_blanks()
        while True:
            reason, complete = None, ended or len(text) - place > _LONGEST_ITEM
            try:
                item, end = parser.raw_decode(text, place)
            except RecursionError as error:
                reason, complete = str(error), True
            except ValueError as error:
                # Most likely the rest of the item is still in the file. Its places count from here, not from the start.
                reason = getattr(error, "msg", str(error))
            else:
                # A number may go on in the next piece of the file.
                complete = complete or end < len(text)
            if complete:
                break
            more()
        if reason is not None:
            yield where, _lost(where, reason)
            return
        try:
            text[place:end].encode()
        except UnicodeEncodeError:
            item = ValueError(f"{where} is not UTF-8.")
        yield where, item
        place, number = end, number + 1
    if skip_blanks():
        yield f"{file}, item {number}", _lost(f"{file}, item {number}", f"{text[place : place + 20]!r} after the list")


def _lost(where: str, reason: str) -> ValueError:
    message = f"{where} is not JSON ({reason}); a file holds a list of items, or one item a line."
    logger.warning(f"{message} What follows in this file cannot be read.")
    return ValueError(f"{message} It and what follows in the file cannot be read.")


def _parsed(item: Any, where: str) -> Any:
    if isinstance(item, Exception):
        raise item
    if not isinstance(item, bytes):
        return item
    try:
        return json.loads(item)
    # The latter where brackets are nested by the thousand.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}); an item is one JSON object a line.") from error


def _text(item: dict[str, Any], key: str, where: str) -> str | None:
    text = item.get(key)
    if text is not None and not isinstance(text, str):
        raise ValueError(f"{where}: key {key!r} is {text!r:.200}; accepted is a string.")
    return text.strip() if text and is_text(text) else None


__all__ = ["FGCLIPDataset", "iter_fgclip_records"]
