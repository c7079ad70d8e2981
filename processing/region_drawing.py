# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures for reports: a region drawn on its photo."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter


_LINE, _HALO = (255, 32, 110), (255, 255, 255)


def outline_region(picture: Image.Image, mask: np.ndarray, longest_side: int) -> Image.Image:
    """Draws the outline of a region on its photo, and all else paler.

    Args:
        picture: The photo, RGB.
        mask: Of the region, (H, W), 0 to 1, of the photo's size.
        longest_side: Of the result, in pixels; a smaller photo keeps its size.

    Example:
        >>> mask = np.zeros((48, 64), np.float32)
        >>> mask[8:40, 8:40] = 1
        >>> outline_region(Image.new("RGB", (64, 48), "green"), mask, longest_side=32).size
        (32, 24)
    """
    picture = shrink(picture, longest_side)
    region = Image.fromarray((mask * 255).astype(np.uint8)).resize(picture.size, Image.Resampling.BILINEAR)
    region = region.point(lambda value: 255 if value > 96 else 0)
    greyer = Image.blend(picture, picture.convert("L").convert("RGB"), 0.7)
    paler = Image.blend(greyer, Image.new("RGB", picture.size, (246, 246, 246)), 0.4)
    return draw_outline(Image.composite(picture, paler, region), region)


def shrink(picture: Image.Image, longest_side: int) -> Image.Image:
    """A copy, its longer side at most so many pixels."""
    scale = min(1.0, longest_side / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def draw_outline(picture: Image.Image, region: Image.Image, line: tuple[int, int, int] = _LINE) -> Image.Image:
    """Draws a line around a region, given as a picture of 0 and 255 of the same size; the picture is changed."""
    for colour, spread in ((_HALO, 9), (line, 5)):
        # Around the region, not on it.
        around = region.filter(ImageFilter.MaxFilter(spread))
        outline = Image.fromarray(np.asarray(around) & ~np.asarray(region))
        picture.paste(colour, (0, 0), outline)
    return picture
