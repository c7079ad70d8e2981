# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Region inputs: masks, COCO RLE, polygons and boxes become one canonical form, or a `ValueError` that says why not.

The canonical mask is a float32 array of shape (height, width) with values in 0..1, where 1 is the region.
A box is xyxy in pixels: pixel column `c` covers the interval from `c` to `c + 1`, so a box over the whole image is
`[0, 0, width, height]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from PIL import Image


try:
    from pycocotools import mask as coco_mask
except ImportError:
    coco_mask = None


BOX_TOLERANCE = 1e-3
"""Pixels by which a coordinate may lie outside the image (rounding of a detector), and the least side of a box."""

MASK_FORMS = (
    "a (height, width) array or tensor (bool; integers 0/1 or 0..255; floats 0..1), a PIL image of mode '1' or 'L', "
    "a COCO RLE dict, or a list of polygons [x1, y1, x2, y2, ...]"
)


def to_mask(mask: Any, height: int, width: int, name: str = "mask", allow_empty: bool = False) -> np.ndarray:
    """Converts any accepted form of a region mask to the canonical mask.

    Args:
        mask: One region, as one of
            * a (height, width) array or `torch.Tensor`: bool; integers that are all 0/1, or 0..255 with a maximum of
              255; floats in 0..1 (soft masks are kept);
            * a `PIL.Image.Image` of mode "1" or "L" (same rule as integers);
            * a COCO RLE dict `{"size": [height, width], "counts": ...}`, compressed (str or bytes) or not (integers);
            * polygons: a list of flat lists `[x1, y1, x2, y2, ...]` or of (N, 2) arrays, in pixels. Their union is the
              region, rasterised by pycocotools.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        name: How error messages call this mask, for example `"masks[2][0]"`.
        allow_empty: Whether a mask without a pixel is accepted.

    Returns:
        Array of shape (height, width), float32, values in 0..1.

    Raises:
        ValueError: If the mask has another size than the image, is empty, holds NaN or values out of range, is a map
            of several ids, or is malformed.
        ImportError: If polygons are given and pycocotools is not installed.

    Example:
        >>> to_mask([[1, 1, 4, 1, 4, 3, 1, 3]], height=4, width=6).sum()
        np.float32(6.0)
        >>> to_mask({"size": [2, 3], "counts": [2, 2, 2]}, height=2, width=3)
        array([[0., 1., 0.],
               [0., 1., 0.]], dtype=float32)
    """
    if isinstance(mask, dict) or is_polygons(mask):
        runs = mask_runs(mask, height, width, name)
        values = (np.arange(len(runs)) % 2).astype(np.float32)
        canonical = np.ascontiguousarray(np.repeat(values, runs).reshape(width, height).T)
    elif isinstance(mask, Image.Image):
        if mask.mode not in ("1", "L"):
            raise ValueError(
                f"{name} is a PIL image of mode {mask.mode!r}; only '1' and 'L' are masks. "
                f"Take the region out of it first, for example `np.array(image) == id`."
            )
        if mask.size == (width, height):
            try:
                mask = np.asarray(mask)
            # Decoders of damaged files raise OSError, SyntaxError, ValueError and others.
            except Exception as error:
                raise ValueError(f"{name} cannot be read, its file is damaged or closed: {error}.") from error
        else:
            mask = np.empty((mask.height, mask.width), dtype=bool)
        canonical = _array_to_mask(mask, height, width, name)
    elif isinstance(mask, (np.ndarray, torch.Tensor)):
        canonical = _array_to_mask(to_numpy(mask, name), height, width, name)
    else:
        raise ValueError(f"{name} has type {type(mask).__name__}; a mask is {MASK_FORMS}.")
    if not allow_empty and not canonical.any():
        raise ValueError(f"{name} is empty: not one of its {height}x{width} pixels is set. Remove the region.")
    return canonical


def _array_to_mask(mask: np.ndarray, height: int, width: int, name: str) -> np.ndarray:
    if mask.shape != (height, width):
        raise ValueError(
            f"{name} has shape {mask.shape}, but its image is {height} pixels high and {width} wide: "
            f"a mask must have shape ({height}, {width})."
        )
    if mask.dtype == np.bool_:
        return mask.astype(np.float32)
    if mask.dtype.kind not in "iuf":
        raise ValueError(f"{name} has dtype {mask.dtype}; a mask is {MASK_FORMS}.")
    low, high = mask.min(), mask.max()
    if mask.dtype.kind == "f":
        if np.isnan(low):
            raise ValueError(f"{name} contains NaN; a float mask must have values in 0..1.")
        if low < 0 or high > 1:
            raise ValueError(
                f"{name} has values from {low!s} to {high!s}; a float mask must have values in 0..1. "
                f"Apply a sigmoid to logits, divide 8-bit values by 255."
            )
        return mask.astype(np.float32)
    if low >= 0 and high <= 1:
        return mask.astype(np.float32)
    if low >= 0 and high == 255:
        return mask.astype(np.float32) / np.float32(255)
    raise ValueError(
        f"{name} has integer values from {low} to {high}; an integer mask is 0/1, or 0..255 with a maximum of 255. "
        f"For a map of ids pass `map == id`, one mask per region."
    )


def to_numpy(array: Any, name: str) -> Any:
    """Returns a tensor of any device and dtype (those that numpy lacks as float32) as an array; the rest as it is.

    Raises:
        ValueError: If the tensor has no values to read, as a sparse or meta one; calls it `name`.
    """
    if not isinstance(array, torch.Tensor):
        return array
    try:
        array = array.detach().cpu()
        known = not array.is_floating_point() or array.dtype in (torch.float16, torch.float32, torch.float64)
        return (array if known else array.float()).numpy()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{name} is a tensor of layout {array.layout} and dtype {array.dtype} on {array.device}, which numpy cannot "
            f"read; pass a dense tensor: {error}"
        ) from error


def _to_numbers(values: Any, name: str, accepted: str) -> np.ndarray:
    """Returns real numbers as a float64 array; numpy would also take strings, bools and halves of complex numbers."""
    try:
        array = np.asarray(to_numpy(values, name))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} is not {accepted}: {error}.") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name} is not {accepted}, received {values!r:.200}.")
    return array.astype(np.float64)


def is_polygons(value: Any) -> bool:
    """Whether a value is one mask in polygon form: a list of flat coordinate lists or of (N, 2) arrays.

    A bool or uint8 array is always a mask, whatever its shape; bools are no coordinates.
    """
    if not isinstance(value, (list, tuple)) or len(value) == 0:
        return False
    first = value[0]
    if isinstance(first, (list, tuple)):
        return len(first) > 0 and isinstance(first[0], Real) and not isinstance(first[0], bool)
    if isinstance(first, np.ndarray) and first.dtype.kind in "if":
        return first.ndim == 1 or (first.ndim == 2 and first.shape[1] == 2)
    return False


def mask_runs(mask: Any, height: int, width: int, name: str = "mask") -> np.ndarray:
    """Checks an RLE or polygons as `to_mask` does, except for emptiness, without building the array.

    Args:
        mask: COCO RLE dict or polygons, see `to_mask`.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        name: How error messages call this mask.

    Returns:
        Lengths of the runs in pixels, int64, down one column after the other; every second run is the region.

    Raises:
        ValueError: If the mask is malformed or does not fit the image.

    Example:
        >>> runs = mask_runs({"size": [2, 3], "counts": [2, 2, 2]}, height=2, width=3)
        >>> int(runs[1::2].sum())
        2
    """
    return _rle_runs(
        mask if isinstance(mask, dict) else _polygons_to_rle(mask, height, width, name), height, width, name
    )


def polygon_points(polygon: Any, name: str) -> np.ndarray:
    """Returns the points of one polygon, float64 of shape (N, 2), wherever they lie.

    Raises:
        ValueError: If it is neither [x1, y1, x2, y2, ...] nor an (N, 2) array of finite numbers.
    """
    points = _to_numbers(polygon, name, "a list of numbers [x1, y1, x2, y2, ...]")
    if points.ndim == 1 and points.size % 2:
        raise ValueError(f"{name} has {points.size} coordinates; x and y come in pairs [x1, y1, x2, y2, ...].")
    if points.ndim not in (1, 2) or (points.ndim == 2 and points.shape[1] != 2):
        raise ValueError(f"{name} has shape {points.shape}; accepted are [x1, y1, x2, y2, ...] and (N, 2) arrays.")
    if not np.isfinite(points).all():
        raise ValueError(f"{name} contains NaN or infinite coordinates.")
    return points.reshape(-1, 2)


def encloses_area(points: np.ndarray) -> bool:
    """Whether points (N, 2) are at least three that do not all lie on one line."""
    if len(points) < 3:
        return False
    spread = points - points[0]
    far = spread[np.argmax((spread**2).sum(axis=1))]
    return bool((spread[:, 0] * far[1] != spread[:, 1] * far[0]).any())


def _polygons_to_rle(polygons: Any, height: int, width: int, name: str) -> dict:
    if coco_mask is None:
        raise ImportError(f"{name} is given as polygons, which need pycocotools: pip install pycocotools")
    flat = []
    for index, polygon in enumerate(polygons):
        where = f"{name}, polygon {index},"
        numbers = _to_numbers(polygon, where, "a list of numbers [x1, y1, x2, y2, ...]")
        if len(polygons) == height and numbers.shape == (width,) and ((numbers >= 0) & (numbers <= 1)).all():
            raise ValueError(
                f"{name} is a list of {height} lists of {width} numbers, which reads as polygons; pass such a mask as "
                f"an array, `np.array(mask)`."
            )
        points = polygon_points(numbers, where)
        if len(points) < 3:
            raise ValueError(
                f"{where} has {len(points)} points; a polygon is a flat list [x1, y1, x2, y2, ...] of at least 3."
            )
        if (points < -BOX_TOLERANCE).any() or (points > np.array([width, height]) + BOX_TOLERANCE).any():
            raise ValueError(
                f"{where} spans x {points[:, 0].min():.9g}..{points[:, 0].max():.9g} and "
                f"y {points[:, 1].min():.9g}..{points[:, 1].max():.9g}, outside its image of width {width} and height "
                f"{height}. Clip it, or check that mask and image belong together."
            )
        if not encloses_area(points):
            raise ValueError(f"{where} has no area: all its points lie on one line.")
        flat.append(points.ravel().tolist())
    return coco_mask.merge(coco_mask.frPyObjects(flat, height, width))


def _rle_runs(rle: dict, height: int, width: int, name: str) -> np.ndarray:
    # pycocotools leaves memory unset where the counts add up to less than the mask, hence a decoder that checks.
    if not {"size", "counts"} <= rle.keys():
        raise ValueError(f"{name} is a dict with the keys {sorted(map(str, rle))}; COCO RLE has 'size' and 'counts'.")
    size, counts = rle["size"], rle["counts"]
    sides = [*size] if isinstance(size, (list, tuple, np.ndarray)) else []
    if not all(isinstance(side, Real) for side in sides) or sides != [height, width]:
        raise ValueError(
            f"{name} is an RLE of size {size} (height, width), but its image is {height} pixels high and {width} wide."
        )
    if isinstance(counts, (str, bytes)):
        runs = _decompress_counts(counts, name)
    elif isinstance(counts, (list, tuple, np.ndarray)) and all(
        isinstance(run, Integral) and abs(int(run)) < 2**40 for run in counts
    ):
        runs = np.array(counts, dtype=np.int64)
    else:
        raise ValueError(f"{name} is an RLE whose counts are neither a COCO string nor a list of pixel counts (int).")
    if (runs < 0).any() or (runs > height * width).any() or runs.sum() != height * width:
        raise ValueError(
            f"{name} is a malformed RLE: its {len(runs)} runs must be positive and add up to "
            f"{height} * {width} = {height * width}, but they add up to {runs.sum()}."
        )
    return runs


def _decompress_counts(counts: str | bytes, name: str) -> np.ndarray:
    """Decodes COCO's run lengths: 5 bits a character, low bits first, from the 4th on as difference to run n - 2."""
    try:
        code = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64)
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} is a malformed RLE: its counts are not ASCII.") from error
    code -= 48
    if code.size == 0 or (code < 0).any() or (code > 63).any() or code[-1] & 32:
        raise ValueError(f"{name} is a malformed RLE: its counts are not a complete compressed COCO string.")
    last = np.flatnonzero(code < 32)
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    if length.max() > 8:
        raise ValueError(f"{name} is a malformed RLE: a run of {length.max()} characters is longer than any mask.")
    shift = 5 * (np.arange(code.size) - np.repeat(first, length))
    values = np.add.reduceat((code & 31) << shift, first)
    values -= np.where(code[last] & 16, np.int64(1) << (5 * length), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def encode_rle(mask: np.ndarray) -> dict:
    """Encodes a binary mask as compressed COCO RLE, ready for JSON.

    Args:
        mask: Array of shape (height, width), bool or integers 0/1.

    Returns:
        `{"size": [height, width], "counts": str}`, the same string as `pycocotools.mask.encode` makes.

    Raises:
        ValueError: If the mask is not a 2-D binary array. Threshold a soft mask first.

    Example:
        >>> encode_rle(np.array([[0, 1, 0], [0, 1, 0]], dtype=bool))
        {'size': [2, 3], 'counts': '222'}
    """
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"encode_rle takes a (height, width) array, received {_describe(mask)}.")
    if mask.dtype.kind not in "biu" or mask.min() < 0 or mask.max() > 1:
        raise ValueError(
            f"encode_rle takes a bool array or integers 0/1, received {_describe(mask)} with values "
            f"{mask.min()}..{mask.max()}. Threshold it first, for example `mask > 0.5`."
        )
    pixels = mask.ravel(order="F").astype(bool)
    edges = np.concatenate(([0], np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, [pixels.size]))
    runs = np.diff(edges).tolist()
    return encode_runs([0, *runs] if pixels[0] else runs, *mask.shape)


def encode_runs(runs: Sequence[int], height: int, width: int) -> dict:
    """Encodes runs, as `mask_runs` gives them, as compressed COCO RLE, ready for JSON.

    Example:
        >>> encode_runs([2, 2, 2], height=2, width=3)
        {'size': [2, 3], 'counts': '222'}
    """
    characters = []
    for index, run in enumerate(runs):
        value = run - runs[index - 2] if index > 2 else run
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + (32 if more else 0)))
    return {"size": [int(height), int(width)], "counts": "".join(characters)}


def runs_to_box(runs: np.ndarray, height: int) -> np.ndarray:
    """Returns the tight box of a mask, as `mask_to_box` does, of its runs.

    Args:
        runs: Lengths of the runs as `mask_runs` gives them, with at least one pixel in the region.
        height: Height of the image in pixels.

    Example:
        >>> runs_to_box(np.array([3, 1, 1, 1]), height=2)
        array([1., 1., 3., 2.])
    """
    ends = np.cumsum(runs)[1::2]
    lengths = runs[1::2][: len(ends)]
    first, last = (ends - lengths)[lengths > 0], ends[lengths > 0] - 1
    left, right = first // height, last // height
    # A run over the end of a column has a pixel in the last row and one in the first.
    top = np.where(left == right, first % height, 0).min()
    bottom = np.where(left == right, last % height, height - 1).max()
    return np.array([left.min(), top, right.max() + 1, bottom + 1], dtype=np.float64)


def check_box(box: Any, height: int, width: int, name: str = "box", allow_empty: bool = False) -> np.ndarray:
    """Checks a box against its image.

    Args:
        box: Four numbers x1, y1, x2, y2 in pixels (list, array or tensor).
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        name: How error messages call this box, for example `"boxes[2][0]"`.
        allow_empty: Whether a box without area is accepted.

    Returns:
        Array of shape (4,), float64, xyxy in pixels, inside the image. Coordinates up to `BOX_TOLERANCE` (1e-3
        pixels) outside, which is rounding, are set onto the image's edge.

    Raises:
        ValueError: If the box is not four finite numbers, lies outside the image, or has no area (a side of less
            than `BOX_TOLERANCE`).

    Example:
        >>> check_box([1, 1, 4.0004, 3], height=3, width=4)
        array([1., 1., 4., 3.])
    """
    corners = _to_numbers(box, name, "four numbers x1, y1, x2, y2")
    if corners.shape != (4,):
        raise ValueError(f"{name} has shape {corners.shape}; a box is four numbers x1, y1, x2, y2 in pixels.")
    received = f"{name} is [{', '.join(f'{value:.9g}' for value in corners)}]"
    if not np.isfinite(corners).all():
        raise ValueError(f"{received}; the coordinates must be finite.")
    limits = np.array([width, height, width, height], dtype=np.float64)
    if (corners < -BOX_TOLERANCE).any() or (corners > limits + BOX_TOLERANCE).any():
        raise ValueError(
            f"{received}, outside its image of width {width} and height {height}. Boxes are x1, y1, x2, y2 in pixels "
            f"of that image (not x, y, width, height, and not fractions of it)."
        )
    corners = np.clip(corners, 0, limits)
    if not allow_empty and (corners[2:] - corners[:2] < BOX_TOLERANCE).any():
        raise ValueError(f"{received} has no area; a box needs x2 > x1 and y2 > y1 (x1, y1, x2, y2 in pixels).")
    return corners


def box_to_mask(box: Any, height: int, width: int, name: str = "box", allow_empty: bool = False) -> np.ndarray:
    """Draws a box as a canonical mask, each pixel with the share of its area that the box covers.

    Exact at pixel edges; a fractional box gives fractional values along its border, so even a box smaller than a
    pixel is never an empty mask.

    Args:
        box: Four numbers x1, y1, x2, y2 in pixels.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        name: How error messages call this box.
        allow_empty: Whether a box without area is accepted, as a mask of zeros.

    Returns:
        Array of shape (height, width), float32, values in 0..1.

    Raises:
        ValueError: As `check_box`.

    Example:
        >>> box_to_mask([0.5, 0, 2, 1], height=2, width=3)
        array([[0.5, 1. , 0. ],
               [0. , 0. , 0. ]], dtype=float32)
    """
    left, top, right, bottom = check_box(box, height, width, name, allow_empty)
    if min(right - left, bottom - top) < BOX_TOLERANCE:
        return np.zeros((height, width), dtype=np.float32)
    rows, columns = np.arange(height), np.arange(width)
    covered_rows = np.clip(np.minimum(rows + 1, bottom) - np.maximum(rows, top), 0, 1)
    covered_columns = np.clip(np.minimum(columns + 1, right) - np.maximum(columns, left), 0, 1)
    return np.outer(covered_rows, covered_columns).astype(np.float32)


def mask_to_box(mask: np.ndarray) -> np.ndarray:
    """Returns the tight box of a mask.

    Args:
        mask: Array of shape (height, width); every value other than 0 belongs to the region.

    Returns:
        Array of shape (4,), float64: x1, y1, x2, y2 at pixel edges (x2 and y2 are exclusive pixel indices).

    Raises:
        ValueError: If the mask is empty.

    Example:
        >>> mask_to_box(np.array([[0, 0, 0], [0, 1, 1]]))
        array([1., 1., 3., 2.])
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        raise ValueError("an empty mask has no box.")
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)


def as_mask_list(masks: Any, name: str = "masks") -> list:
    """Splits the masks of one image into a list, one entry a region, without converting them.

    Args:
        masks: One mask in any form of `to_mask`, a list of masks, or an (N, height, width) array or tensor. An empty
            list means no region.
        name: How error messages call these masks.

    Returns:
        List of N masks for `to_mask`.

    Raises:
        ValueError: If this is neither a mask nor masks.

    Example:
        >>> len(as_mask_list(np.ones((3, 8, 8), dtype=bool))), len(as_mask_list([[1, 1, 4, 1, 4, 3]]))
        (3, 1)
    """
    if isinstance(masks, (dict, Image.Image)) or is_polygons(masks):
        return [masks]
    if isinstance(masks, (list, tuple)):
        return list(masks)
    if isinstance(masks, (np.ndarray, torch.Tensor)) and masks.ndim in (2, 3):
        return [masks] if masks.ndim == 2 else list(masks)
    raise ValueError(
        f"{name} is {_describe(masks)}; the masks of one image are one mask, a list of masks (empty for no region) or "
        f"an (N, height, width) array, where a mask is {MASK_FORMS}."
    )


def as_box_list(boxes: Any, name: str = "boxes") -> list:
    """Splits the boxes of one image into a list, one entry a region, without checking them.

    Args:
        boxes: One box of four numbers, a list of boxes, or an (N, 4) array or tensor. An empty list means no region.
        name: How error messages call these boxes.

    Returns:
        List of N boxes for `check_box`.

    Raises:
        ValueError: If this is neither a box nor boxes.

    Example:
        >>> as_box_list([0, 0, 4, 4])
        [[0, 0, 4, 4]]
    """
    if isinstance(boxes, (list, tuple)):
        flat = len(boxes) > 0 and all(isinstance(value, Real) for value in boxes)
        return [boxes] if flat else list(boxes)
    if isinstance(boxes, (np.ndarray, torch.Tensor)) and boxes.ndim in (1, 2):
        flat = boxes.ndim == 1 and math.prod(boxes.shape) > 0
        return [boxes] if flat else list(boxes)
    raise ValueError(
        f"{name} is {_describe(boxes)}; the boxes of one image are four numbers x1, y1, x2, y2 in pixels, a list of "
        f"such boxes (empty for no region) or an (N, 4) array."
    )


def _describe(value: Any) -> str:
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, (np.ndarray, torch.Tensor)) else ""
    dtype = f" and dtype {value.dtype}" if isinstance(value, np.ndarray) else ""
    return f"a {type(value).__name__}{shape}{dtype}"
