# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Masks that are not right: larger, smaller and shifted ones, and those of another photo."""

from __future__ import annotations

import numpy as np
from PIL import Image


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Adds every pixel that has one of the region at most `radius` rows and columns away.

    Takes time O(height x width), whatever the radius.

    Args:
        mask: Array of shape (height, width), bool.
        radius: Pixels, 0 or more.

    Returns:
        Array of shape (height, width), bool.

    Example:
        >>> dilate(np.array([[0, 0, 0, 1]], dtype=bool), 2).astype(int)
        array([[0, 1, 1, 1]])
    """
    sums = np.pad(mask, radius).astype(np.int32)
    for axis in (0, 1):
        sums = np.moveaxis(sums, axis, 0)
        totals = np.concatenate([np.zeros_like(sums[:1]), np.cumsum(sums, axis=0, dtype=np.int32)])
        sums = np.moveaxis(totals[2 * radius + 1 :] - totals[: len(totals) - 2 * radius - 1], 0, axis)
    return sums > 0


def erode(mask: np.ndarray, radius: int) -> np.ndarray:
    """Takes away every pixel that has one outside the region at most `radius` rows and columns away.

    Beyond the photo's edge counts as region: an object that the edge cuts off keeps its pixels there.

    Args:
        mask: Array of shape (height, width), bool.
        radius: Pixels, 0 or more.

    Returns:
        Array of shape (height, width), bool; empty where the region is nowhere thicker than twice the radius.

    Example:
        >>> erode(np.array([[0, 1, 1, 1, 1]], dtype=bool), 1).astype(int)
        array([[0, 0, 1, 1, 1]])
    """
    return ~dilate(~mask, radius)


def shift(mask: np.ndarray, right: int, down: int) -> np.ndarray:
    """Moves the region; what leaves the photo is lost.

    Args:
        mask: Array of shape (height, width), bool.
        right: Columns; negative ones go left.
        down: Rows; negative ones go up.

    Returns:
        Array of shape (height, width), bool.

    Example:
        >>> shift(np.array([[1, 1, 0], [0, 0, 0]], dtype=bool), right=1, down=0).astype(int)
        array([[0, 1, 1],
               [0, 0, 0]])
    """
    moved = np.zeros_like(mask)
    height, width = mask.shape
    rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
    from_row, from_column, to_row, to_column = max(0, -down), max(0, -right), max(0, down), max(0, right)
    moved[to_row : to_row + rows, to_column : to_column + columns] = mask[
        from_row : from_row + rows, from_column : from_column + columns
    ]
    return moved


def erode_some(mask: np.ndarray, radius: int) -> tuple[np.ndarray, int]:
    """Erodes by `radius` or, where nothing would be left, by half of it, and so on.

    Returns:
        The mask, never empty, and the radius that was taken; 0 for thin regions.

    Example:
        >>> erode_some(np.array([[0, 1, 1, 1, 0]], dtype=bool), 3)[1]
        1
    """
    while radius:
        eroded = erode(mask, radius)
        if eroded.any():
            return eroded, radius
        radius //= 2
    return mask, 0


def shift_by_share(mask: np.ndarray, share: float, direction: int) -> np.ndarray:
    """Moves a region by a share of its box, to where it stays in the photo.

    Args:
        mask: Array of shape (height, width), bool, not empty.
        share: Of the width or height of the tight box; the move is at least one pixel.
        direction: 0 to 3: right, down, left, up. The opposite one is taken where more of the region stays in the photo.

    Returns:
        Array of shape (height, width), bool.

    Raises:
        ValueError: If nothing stays in the photo either way.

    Example:
        >>> shift_by_share(np.array([[0, 0, 1, 1]], dtype=bool), 0.5, direction=0).astype(int)
        array([[0, 1, 1, 0]])
    """
    axis = 1 - direction % 2
    occupied = np.flatnonzero(mask.any(axis=1 - axis))
    step = max(1, round(share * (occupied[-1] + 1 - occupied[0])))
    step = -step if direction >= 2 else step
    moved = [shift(mask, *((way, 0) if axis else (0, way))) for way in (step, -step)]
    kept = [int(part.sum()) for part in moved]
    if not any(kept):
        raise ValueError(f"share is {share}; nothing of the region stays in the photo, accepted is a smaller share.")
    return moved[int(kept[1] > kept[0])]


def fit_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Stretches a mask to another photo's size. Every pixel that the region reaches counts, so that something is left.

    Args:
        mask: Array of shape (height, width) of its own photo, bool.
        height: Of the other photo.
        width: Of the other photo.

    Returns:
        Array of shape (height, width), bool.

    Example:
        >>> fit_mask(np.array([[0, 1], [0, 0]], dtype=bool), height=2, width=4).astype(int)
        array([[0, 0, 1, 1],
               [0, 0, 0, 0]])
    """
    picture = Image.fromarray(mask.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX)) > 0
