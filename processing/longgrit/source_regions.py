# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Makes regions of what sources hold; one that is wrong is marked as dropped, with the reason."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..region_records import check_image_size, check_relative_path, is_text, read_image_header
from ..regions import (
    _to_numbers,
    check_box,
    encode_rle,
    encode_runs,
    is_polygons,
    mask_runs,
    mask_to_box,
    runs_to_box,
)
from .records import SourceRegion
from .sources import SourceError


NO_BOX = (0.0, 0.0, 0.0, 0.0)
# Pixels by which a box may be off its image, by rounding; it is cut at the edge.
_OFF_BY_ROUNDING = 1


class BadImage(Exception):
    """Raised where an image cannot be used.

    Args:
        reason: Short name of the reason.
        detail: What is wrong, in words.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail

    def error(self, where: str, image_id: str | None = None) -> SourceError:
        """What the source gives in place of the image."""
        return SourceError(where, self.reason, self.detail, image_id)


@dataclass(frozen=True)
class ImagePlace:
    """Where the file of an image is.

    Attributes:
        file: Its relative path, or name, see `SourceImage.file`.
        location: Its location, see `ImageStore`.
        content: Path of the file, or its bytes.
    """

    file: str
    location: dict[str, Any]
    content: Path | bytes

    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as stored, by the header of the file.

        Raises:
            BadImage: If it is no image, or not one that is opened.
        """
        content = io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content
        try:
            size, _ = read_image_header(content, self.file)
        except ValueError as error:
            # Not its text, which holds the address of an object in memory.
            kind = type(error.__cause__).__name__
            raise BadImage("unreadable_image", f"{self.file} cannot be read as an image ({kind}).") from error
        return checked_size(*size)


def file_below(root: Path, path: str) -> ImagePlace:
    """Place of a file below a folder, by a path that `checked_path` gave.

    Raises:
        BadImage: If it is missing.
    """
    # Not an error of the file system either, as for a name of a thousand characters.
    if not os.path.isfile(root / path):
        raise BadImage("missing_image", f"{root / path} is not a file; check source.image_root.")
    return ImagePlace(path, {"path": path}, root / path)


def masked_region(region_id: str, mask: Any, height: int, width: int, **facts: Any) -> SourceRegion:
    """Makes a region of a mask: COCO RLE, polygons, or an array of bool; without one pixel or malformed it is dropped.

    Args:
        region_id: Identifier.
        mask: The mask.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        **facts: Further attributes of the region.
    """
    try:
        if isinstance(mask, np.ndarray):
            if not mask.any():
                return unusable_region(region_id, "empty_mask", **facts)
            rle, box = encode_rle(mask), mask_to_box(mask)
        elif not isinstance(mask, dict) and not is_polygons(mask):
            return unusable_region(region_id, "malformed_mask", **facts)
        else:
            runs = mask_runs(mask, height, width, f"mask of {region_id}")
            if not runs[1::2].any():
                return unusable_region(region_id, "empty_mask", **facts)
            box = runs_to_box(runs, height)
            counts = mask["counts"] if isinstance(mask, dict) else None
            rle = (
                {"size": [height, width], "counts": counts}
                if isinstance(counts, str)
                else encode_runs(runs.tolist(), height, width)
            )
    except (ValueError, TypeError):
        return unusable_region(region_id, "malformed_mask", **facts)
    return SourceRegion(region_id, tuple(box.tolist()), rle, **facts)


def boxed_region(region_id: str, box: Any, height: int, width: int, **facts: Any) -> SourceRegion:
    """Makes a region of a box, xyxy in pixels; what lies up to a pixel outside of the image is cut off.

    A malformed box, one that is reversed or lies further outside, or one without area is dropped.
    """
    try:
        numbers = _to_numbers(box, "the box", "four numbers")
        inside = np.clip(numbers, 0, [width, height, width, height])
    except (ValueError, TypeError):
        return unusable_region(region_id, "malformed_box", **facts)
    is_box = numbers.shape == (4,) and (numbers[:2] <= numbers[2:]).all()
    if not is_box or np.abs(numbers - inside).max() > _OFF_BY_ROUNDING:
        return unusable_region(region_id, "malformed_box", **facts)
    try:
        corners = check_box(inside, height, width)
    except ValueError:
        return unusable_region(region_id, "empty_box", **facts)
    return SourceRegion(region_id, tuple(corners.tolist()), mask_source="box", **facts)


def unusable_region(region_id: str, reason: str, **facts: Any) -> SourceRegion:
    """Makes a region that is no place in the image, dropped for that reason."""
    return SourceRegion(region_id, NO_BOX, **{**facts, "mask_source": "box", "dropped": reason})


def cleaned_text(text: Any) -> str | None:
    """Text with single spaces, `None` where it is no text or shows nothing."""
    return " ".join(text.split()) if isinstance(text, str) and is_text(text) else None


def cleaned_texts(texts: Any) -> tuple[str, ...]:
    """Those of a list that show something."""
    return tuple(filter(None, map(cleaned_text, texts))) if isinstance(texts, Sequence) else ()


def is_finite(value: Any) -> bool:
    """Whether it is a number that can be calculated with."""
    # An integer of any length is no float.
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) < 2**53


def is_score(score: Any) -> bool:
    """Whether it is a confidence 0..1, or `None` for none."""
    return score is None or (isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1)


def checked_size(width: Any, height: Any) -> tuple[int, int]:
    """Width and height in pixels, as integers.

    Raises:
        BadImage: If they are none, or those of an image that is not opened.
    """
    for key, side in (("width", width), ("height", height)):
        if not isinstance(side, int) or isinstance(side, bool) or side < 1:
            raise BadImage("image_size", f"key {key!r} is {side!r:.200}; accepted is a positive integer, in pixels.")
    try:
        check_image_size(width, height, "its size")
    except ValueError as error:
        raise BadImage("image_size", str(error)) from error
    return width, height


def checked_path(path: Any, root: str = "image_root") -> str:
    """A path from data, with `/` between its folders.

    Raises:
        BadImage: If it is none, or leads out of its folder.
    """
    try:
        if not isinstance(path, str) or not is_text(path) or "\0" in path:
            raise ValueError(f"the path of the image is {path!r:.200}; accepted is a path below {root}.")
        check_relative_path(path, "the path of the image", root)
    except ValueError as error:
        raise BadImage("unsafe_path", str(error)) from error
    return str(PurePosixPath(path))
