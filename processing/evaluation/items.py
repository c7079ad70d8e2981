# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a benchmark shows to a model: images and regions of them, by keys that are the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..regions import BOX_TOLERANCE


@dataclass(frozen=True, slots=True)
class EvaluationImage:
    """One image file.

    Attributes:
        key: Name within its benchmark, the same on every machine, for example the path below the data folder.
        path: The file.

    Example:
        >>> EvaluationImage("val2017/000000000139.jpg", Path("coco/val2017/000000000139.jpg")).key
        'val2017/000000000139.jpg'
    """

    key: str
    path: Path


@dataclass(frozen=True, slots=True)
class EvaluationRegion:
    """One region of an image, as a mask, a box, or both.

    Attributes:
        key: Name within its benchmark, for example that of its image and its annotation's id.
        image: Its image.
        mask: In any form of `processing_pixclip.regions.to_mask` that is made of plain values (COCO RLE or polygons), of
            the size of the image; or `None`: the region is its box.
        box: xyxy in pixels; or `None`: the tight box of the mask.

    Example:
        >>> image = EvaluationImage("1.jpg", Path("1.jpg"))
        >>> EvaluationRegion("1.jpg#7", image, box=(10, 20, 110, 220)).mask is None
        True
    """

    key: str
    image: EvaluationImage
    mask: Any = None
    box: tuple[float, float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.mask is None and self.box is None:
            raise ValueError(f"region {self.key!r} has neither mask nor box; accepted is one of them, or both.")


def place(data_dir: str | os.PathLike, relative: str, folders: Sequence[str] = ("", "images")) -> Path:
    """Where a file or folder of a benchmark's layout is: in the first of `folders` that has it, or else in the first.

    Args:
        data_dir: The data folder.
        relative: Path in the layout.
        folders: Where to look, below the data folder.

    Example:
        >>> place("coco", "val2017/000000000139.jpg").as_posix()
        'coco/val2017/000000000139.jpg'
    """
    paths = [Path(data_dir, folder, relative) for folder in folders]
    return next((path for path in paths if path.exists()), paths[0])


def box_corners(box: Any, width: int, height: int) -> tuple[float, float, float, float] | None:
    """xyxy of COCO's [x, y, width, height], cut at the photo.

    Args:
        box: As the file has it, of any type.
        width: Of the photo, in pixels.
        height: Of the photo, in pixels.

    Returns:
        Numbers in pixels, or `None` where `box` is malformed or has no area inside the photo.

    Example:
        >>> box_corners([10, 20, 100, 50], width=80, height=60), box_corners([90, 0, 5, 5], width=80, height=60)
        ((10.0, 20.0, 80.0, 60.0), None)
    """
    try:
        x, y, across, down = (float(value) for value in box)
    except (TypeError, ValueError):
        return None
    left, top, right, bottom = np.clip([x, y, x + across, y + down], 0, [width, height, width, height]).tolist()
    # A NaN fails both.
    if not (right - left >= BOX_TOLERANCE and bottom - top >= BOX_TOLERANCE):
        return None
    return left, top, right, bottom
