# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""GRIT as a source: parquet files with captions and boxes, and the images that img2dataset fetched for them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..region_shards import IMAGE_EXTENSIONS, StoredRecord
from .config import SourceSettings
from .file_source import ShardSource
from .records import SourceImage, SourceRegion
from .source_regions import (
    BadImage,
    ImagePlace,
    boxed_region,
    checked_path,
    cleaned_text,
    cleaned_texts,
    file_below,
    is_finite,
    is_score,
    masked_region,
    unusable_region,
)
from .sources import SourceError, matching_files


# Formats that img2dataset writes, its default first.
_EXTENSIONS = ("jpg", "png", "webp", "jpeg")
# Digits of the folder, img2dataset's shard, at the start of a key.
_SHARD_DIGITS = 5
# Pixels by which a side of an image may differ from what its proportions were before it was made smaller.
_ROUNDING = 1.5


class GritSource(ShardSource):
    """Reads GRIT's parquet files, one image a row, with the images in a folder or in the rows themselves.

    Columns that are read: `caption`, `ref_exps`, and `id` or `key`. A row of `ref_exps` is
    `[start, end, x1, y1, x2, y2, score]`; `caption[start:end]` is the region's phrase, its box is given in shares of the image
    and cut at the edges. The image is a column `jpg`, `png`, `webp` or `image`, or a file below `image_root`: `<id>.jpg` or
    `<key>.jpg` (or .png, .webp, .jpeg), there or in the folder of the key's first five digits, as img2dataset writes them.
    An image whose proportions are not those that the row says (`original_width` and `original_height`, or `width` and
    `height`) is an error: boxes would be off, because it was padded or cropped, or is another image, as where keys are those
    of another download. So is one (`"other_image"`) of which img2dataset's `<id or key>.json` beside it has another `id`, or else
    `url`, or else `caption` than the row.

    Where Alpha-CLIP's `<id>.json` stands beside the image and has `seudo_masks` (COCO RLE in the order of its own `ref_exps`),
    its caption, regions and masks are taken in place of the row's.

    Args:
        settings (`SourceSettings`):
            `path` (a parquet file, a folder of them, or a pattern), `image_root` and `licence` are read.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a file lacks the columns.

    Example:
        >>> import tempfile
        >>> import pyarrow, pyarrow.parquet
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 20)).save(folder / "17.jpg")
        >>> row = {"id": 17, "caption": "a red kite", "ref_exps": [[2.0, 10.0, 0.25, 0.0, 0.5, 1.0, 0.9]]}
        >>> pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "coyo_0.parquet")
        >>> source = GritSource(SourceSettings(format="grit", path=str(folder / "coyo_0.parquet")))
        >>> (image,) = source.read(0, len(source))
        >>> image.regions[0].phrase, image.regions[0].box, image.regions[0].score
        ('red kite', (10.0, 0.0, 20.0, 20.0), 0.9)
    """

    def __init__(self, settings: SourceSettings):
        files = matching_files(settings, (".parquet",))
        super().__init__(settings, files, "parquet")
        for file in files:
            _check_columns(file)

    def _item(self, shard: str, index: int, stored: StoredRecord) -> SourceImage | SourceError:
        image_id = None
        try:
            row = parsed_record(stored)
            image_id = grit_identifier(row)
            if image_id is None:
                raise BadImage("malformed_record", "the row has neither 'id' nor 'key'; one of them names the image.")
            place, beside = self._place(shard, index, stored, row)
            return image_of_grit({**row, **beside}, image_id, place, self._settings.licence)
        except BadImage as bad:
            return bad.error(stored.where, image_id)

    def _place(
        self, shard: str, index: int, stored: StoredRecord, row: Mapping[str, Any]
    ) -> tuple[ImagePlace, dict[str, Any]]:
        """Returns the place of a row's image, and what Alpha-CLIP's file beside it says."""
        name = grit_identifier(row)
        if stored.image is not None:
            stored_name = row.get("image")
            extension = Path(stored_name).suffix[1:].lower() if isinstance(stored_name, str) else ""
            extension = extension if extension in IMAGE_EXTENSIONS else "jpg"
            return _cell(f"{name}.{extension}", shard, index, "image", stored.image), {}
        for column in (*_EXTENSIONS, "image"):
            if isinstance(row.get(column), bytes):
                extension = "jpg" if column == "image" else column
                return _cell(f"{name}.{extension}", shard, index, column, row[column]), {}
        names = _names(row)
        # An id has no digits of a shard; it is in the folder of the key.
        folder = names[-1][:_SHARD_DIGITS]
        stems = [checked_path(path) for stem in names for path in (stem, f"{folder}/{stem}")]
        for extension in _EXTENSIONS:
            for stem in stems:
                if os.path.isfile(f"{self._root}/{stem}.{extension}"):
                    return file_below(self._root, f"{stem}.{extension}"), _read_beside(
                        self._root / f"{stem}.json", row
                    )
        raise BadImage(
            "missing_image",
            f"there is none of the files {[f'{stem}.{_EXTENSIONS[0]}' for stem in stems]}, also not with the extensions "
            f"{_EXTENSIONS[1:]}; check source.image_root.",
        )


def image_of_grit(row: Mapping[str, Any], image_id: str, place: ImagePlace, licence: str | None) -> SourceImage:
    """Makes an image of a row of GRIT, of img2dataset's JSON of it, or of Alpha-CLIP's.

    Args:
        row: Caption, `ref_exps` and, in Alpha-CLIP's, `seudo_masks`.
        image_id: Identifier.
        place: Place of the image.
        licence: Licence of the image.

    Raises:
        BadImage: If the image cannot be used.
    """
    ref_exps, masks = row.get("ref_exps"), row.get("seudo_masks")
    if not _is_list(ref_exps):
        raise BadImage(
            "malformed_record", f"'ref_exps' is {ref_exps!r:.200}; accepted is a list of rows of 7 numbers."
        )
    if masks is not None and (not _is_list(masks) or len(masks) != len(ref_exps)):
        found = len(masks) if _is_list(masks) else f"{masks!r:.200}"
        raise BadImage(
            "mask_count", f"'ref_exps' has {len(ref_exps)} rows, 'seudo_masks' {found}; each row has one mask."
        )
    width, height = place.size()
    _check_proportions(row, width, height)
    caption = row.get("caption") if isinstance(row.get("caption"), str) else ""
    regions = [
        _region(f"{image_id}#{n}", expression, caption, None if masks is None else masks[n], height, width)
        for n, expression in enumerate(ref_exps)
    ]
    return SourceImage(
        image_id=image_id,
        file=place.file,
        location=place.location,
        width=width,
        height=height,
        regions=tuple(regions),
        captions=cleaned_texts([caption]),
        licence=licence,
    )


def parsed_record(stored: StoredRecord) -> Mapping[str, Any]:
    """The record of a shard at one position, as it is.

    Raises:
        BadImage: If nothing could be read there, or it is no object.
    """
    if stored.error is not None:
        raise BadImage("damaged_shard", str(stored.error))
    try:
        record = stored.parsed()
    except ValueError as error:
        raise BadImage("malformed_record", str(error)) from error
    if not isinstance(record, Mapping):
        raise BadImage("malformed_record", f"the record is {record!r:.200}; accepted is an object.")
    return record


def _region(region_id: str, expression: Any, caption: str, mask: Any, height: int, width: int) -> SourceRegion:
    numbers = list(expression) if _is_list(expression) else []
    if len(numbers) != 7 or not all(is_finite(number) for number in numbers) or not is_score(numbers[6]):
        return unusable_region(region_id, "malformed_region")
    start, end = (max(int(number), 0) for number in numbers[:2])
    facts = {"phrase": cleaned_text(caption[start:end]), "score": float(numbers[6])}
    if facts["phrase"] is None:
        return unusable_region(region_id, "blank_phrase", **facts)
    if mask is not None:
        return masked_region(region_id, mask, height, width, **facts)
    # As shares, so that a pixel more or less is no matter.
    left, top, right, bottom = (min(max(float(share), 0.0), 1.0) for share in numbers[2:6])
    box = [left * width, top * height, right * width, bottom * height]
    return boxed_region(region_id, box, height, width, **facts)


def _check_proportions(row: Mapping[str, Any], width: int, height: int) -> None:
    for keys in (("original_width", "original_height"), ("width", "height")):
        sides = [row.get(key) for key in keys]
        if all(is_finite(side) and side > 0 for side in sides):
            expected_width, expected_height = height * sides[0] / sides[1], width * sides[1] / sides[0]
            if min(abs(width - expected_width), abs(height - expected_height)) > _ROUNDING:
                raise BadImage(
                    "other_proportions",
                    f"the image is {width} pixels wide and {height} high, but {keys[0]!r} and {keys[1]!r} are {sides[0]:g} and "
                    f"{sides[1]:g}: it was padded or cropped, which moves the boxes, or is another image. Fetch images with "
                    f"img2dataset's --resize_mode keep_ratio or no.",
                )
            return


def grit_identifier(row: Mapping[str, Any]) -> str | None:
    """Identifier of a row's image: its `id`, or else its `key`."""
    return next(iter(_names(row)), None)


def _names(row: Mapping[str, Any]) -> list[str]:
    values = [row.get(key) for key in ("id", "key")]
    return [str(value) for value in values if _comparable(value) is not None]


def _comparable(value: Any) -> str | None:
    return cleaned_text(str(value)) if isinstance(value, (str, int)) and not isinstance(value, bool) else None


def _cell(file: str, shard: str, index: int, column: str, content: bytes) -> ImagePlace:
    return ImagePlace(checked_path(file), {"parquet": shard, "row": index, "column": column}, content)


def _read_beside(path: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """What Alpha-CLIP's file says of caption, regions and masks; nothing where there is none.

    Raises:
        BadImage: If it is no JSON object, or that of another image than the row's.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BadImage("malformed_record", f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BadImage("malformed_record", f"{path} is {content!r:.200}; accepted is an object.")
    with_masks = content.get("seudo_masks") is not None
    # Alpha-CLIP's caption may be another one of the same image.
    for key in ("id", "url") if with_masks else ("id", "url", "caption"):
        theirs, ours = _comparable(content.get(key)), _comparable(row.get(key))
        if theirs is not None and ours is not None:
            if theirs != ours:
                raise BadImage(
                    "other_image",
                    f"{path} says that {key!r} of the image is {theirs!r:.200}, but the row has {ours!r:.200}: the image was "
                    f"fetched for another row, as where keys are those of another download. Check source.image_root.",
                )
            break
    if not with_masks:
        return {}
    return {key: content[key] for key in ("caption", "ref_exps", "seudo_masks") if key in content}


def _check_columns(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        names = parquet.read_schema(path).names
    except (OSError, pyarrow.ArrowException):
        # A damaged file is an error at the positions that it stands for.
        return
    missing = [name for name in ("caption", "ref_exps") if name not in names]
    if missing or not {"id", "key"} & set(names):
        raise ValueError(
            f"{path} has the columns {names}; GRIT's files have 'caption', 'ref_exps', and 'id' or 'key'. Where img2dataset "
            f"wrote them, name the columns in --save_additional_columns."
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))
