# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Overlap of boxes."""

from __future__ import annotations

import numpy as np


def box_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every box with every other.

    Args:
        boxes: (N, 4), xyxy; the edges are positions, so a box is x2 - x1 wide. N may be 0.
        others: (M, 4), xyxy in the same units.

    Returns:
        (N, M), float64; 0 where both boxes have no area.

    Raises:
        ValueError: If a box is not finite, or its second corner lies before the first; the box is named.

    Example:
        >>> box_iou(np.array([[0, 0, 10, 10]]), np.array([[0, 0, 10, 10], [5, 0, 15, 10]])).round(3)
        array([[1.   , 0.333]])
    """
    boxes, others = _checked(boxes, "boxes"), _checked(others, "others")
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    size = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - corner
    return _share(np.clip(size, 0, None).prod(axis=2), box_areas(boxes)[:, None] + box_areas(others)[None])


def paired_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each box with the one at the same place.

    Args:
        boxes: (N, 4), as in `box_iou`.
        others: (N, 4).

    Returns:
        (N,), float64.

    Raises:
        ValueError: As `box_iou`, and if there are not as many others as boxes.

    Example:
        >>> paired_iou(np.array([[0, 0, 10, 10]]), np.array([[0, 0, 10, 5]]))
        array([0.5])
    """
    boxes, others = _checked(boxes, "boxes"), _checked(others, "others")
    if len(boxes) != len(others):
        raise ValueError(f"there are {len(boxes)} boxes and {len(others)} others; accepted is one other a box.")
    size = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    return _share(np.clip(size, 0, None).prod(axis=1), box_areas(boxes) + box_areas(others))


def _share(shared: np.ndarray, both: np.ndarray) -> np.ndarray:
    union = both - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _checked(boxes: np.ndarray, name: str) -> np.ndarray:
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.size == 0:
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name} have shape {boxes.shape}; accepted is (N, 4), xyxy.")
    bad = ~np.isfinite(boxes).all(axis=1) | (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if bad.any():
        place = int(np.argmax(bad))
        raise ValueError(
            f"{name}[{place}] is {boxes[place].tolist()}; accepted are finite numbers x1, y1, x2, y2 with x1 <= x2 and y1 <= y2 "
            f"(COCO's x, y, width, height have to be added up)."
        )
    return boxes


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (N,) of boxes (N, 4), xyxy.

    Example:
        >>> box_areas(np.array([[0, 0, 10, 5]]))
        array([50])
    """
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
