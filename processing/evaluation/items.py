# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a benchmark shows to a model: images and regions of them, by keys that are the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
