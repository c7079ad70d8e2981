# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which regions of an image are worth a long description: by form, score, area, shape, place and overlap."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .config import FilterSettings
from .records import SourceImage, SourceRegion
from .source_regions import boxed_region, masked_region, unusable_region


# Pixels by which a side of a box may be off the image's border and still lies on it.
_BORDER = 0.5


def filter_regions(image: SourceImage, settings: FilterSettings) -> SourceImage:
    """Marks the regions that are not to be annotated; decodes neither the image nor a mask.

    The first reason that holds is the one that is given, in this order:

    * what the source gave, such as `"crowd"`;
    * `"malformed_mask"`, `"empty_mask"`, `"malformed_box"`, `"empty_box"`: see `check_form`;
    * `"low_score"`: the source is less sure than `min_score`;
    * `"too_small"`, `"too_large"`: by the area of the mask, or of the box where there is none;
    * `"aspect"`: the box is longer than `max_aspect` times its other side;
    * `"border"`: more than `max_border` of the box's outline lies on the image's border;
    * `"duplicate_mask"`: the IoU with an earlier region that stays is larger than `max_iou`; a box beside masks counts as
      its rectangle of pixels;
    * `"over_max_regions"`: `max_regions` larger ones stay; of two as large the earlier one.

    Args:
        image: The image with its regions.
        settings: The limits.

    Returns:
        The image with `dropped` set, every mask as compressed RLE and `box` the bounding box of the mask.

    Example:
        >>> boxes = [(0, 0, 50, 50), (0, 0, 50, 49), (60, 60, 61, 61)]
        >>> regions = tuple(
        ...     SourceRegion(f"1#{number}", box, mask_source="box") for number, box in enumerate(boxes)
        ... )
        >>> image = SourceImage("1", "1.jpg", {"path": "1.jpg"}, width=100, height=100, regions=regions)
        >>> [region.dropped for region in filter_regions(image, FilterSettings()).regions]
        [None, 'duplicate_mask', 'too_small']
    """
    regions = [check_form(region, image.width, image.height) for region in image.regions]
    areas = _areas(regions)
    reasons = [
        region.dropped or _refusal(region, area, image, settings) for region, area in zip(regions, areas, strict=True)
    ]
    kept: list[int] = []
    for number in [number for number, reason in enumerate(reasons) if reason is None]:
        if settings.max_iou < 1 and kept and _largest_iou(regions, number, kept) > settings.max_iou:
            reasons[number] = "duplicate_mask"
        else:
            kept.append(number)
    if settings.max_regions is not None:
        for number in sorted(kept, key=lambda number: -areas[number])[settings.max_regions :]:
            reasons[number] = "over_max_regions"
    return dataclasses.replace(
        image,
        regions=tuple(
            region if region.dropped == reason else dataclasses.replace(region, dropped=reason)
            for region, reason in zip(regions, reasons, strict=True)
        ),
    )


def check_form(region: SourceRegion, width: int, height: int) -> SourceRegion:
    """Brings a region into the one form that later steps take, as the readers of this package do already.

    A valid mask becomes compressed RLE, and the box its bounding box. A box that is up to a pixel outside of the image, by
    rounding, is cut at the edge; one that is further outside, or reversed, is malformed. A region without a usable mask or
    box is dropped and loses its place, see `SourceRegion.placed`: as `"malformed_mask"`, `"empty_mask"`,
    `"malformed_box"`, or `"empty_box"` where it covers no pixel by half.

    Args:
        region: The region.
        width: Width of the image in pixels.
        height: Height of the image in pixels.

    Returns:
        The region; a reason that it was dropped for before stays.

    Example:
        >>> region = SourceRegion("1#0", (0, 0, 9, 9), mask={"size": [2, 3], "counts": [2, 2, 2]})
        >>> check_form(region, width=3, height=2).box
        (1.0, 0.0, 2.0, 2.0)
    """
    if region.mask is None:
        checked = boxed_region(region.region_id, region.box, height, width)
        # The mask of a box is the pixels that it covers at least half; later steps need one.
        if checked.dropped is None and _largest_cover(*checked.box[::2]) * _largest_cover(*checked.box[1::2]) < 0.5:
            checked = unusable_region(region.region_id, "empty_box")
    else:
        # pycocotools, which counts and compares below, checks nothing by itself.
        checked = masked_region(region.region_id, region.mask, height, width)
    return dataclasses.replace(
        region,
        box=checked.box,
        mask=checked.mask,
        mask_source="box" if checked.mask is None else region.mask_source,
        dropped=region.dropped or checked.dropped,
    )


def _largest_cover(start: float, stop: float) -> float:
    """Largest share of a pixel row, or column, that lies between two coordinates."""
    first, last = math.ceil(start), math.floor(stop)
    return 1.0 if last - first >= 1 else max(min(first, stop) - start, stop - max(last, start))


def _areas(regions: list[SourceRegion]) -> list[float]:
    """Areas in pixels, of the mask or of the box."""
    masks = [region.mask for region in regions if region.mask is not None]
    of_masks = iter(coco_mask.area(masks).tolist() if masks else ())
    return [
        (region.box[2] - region.box[0]) * (region.box[3] - region.box[1]) if region.mask is None else next(of_masks)
        for region in regions
    ]


def _refusal(region: SourceRegion, area: float, image: SourceImage, settings: FilterSettings) -> str | None:
    if region.score is not None and not region.score >= settings.min_score:
        return "low_score"
    share = area / (image.width * image.height)
    if share < settings.min_area:
        return "too_small"
    if share > settings.max_area:
        return "too_large"
    left, top, right, bottom = region.box
    width, height = right - left, bottom - top
    if max(width, height) > settings.max_aspect * min(width, height):
        return "aspect"
    beside = (left <= _BORDER) + (right >= image.width - _BORDER)
    above = (top <= _BORDER) + (bottom >= image.height - _BORDER)
    if (beside * height + above * width) / (2 * (width + height)) > settings.max_border:
        return "border"
    return None


def _largest_iou(regions: list[SourceRegion], number: int, earlier: list[int]) -> float:
    left, top, right, bottom = regions[number].box
    boxes = np.array([regions[other].box for other in earlier])
    sides = np.minimum(boxes[:, 2:], (right, bottom)) - np.maximum(boxes[:, :2], (left, top))
    # Masks overlap only where their bounding boxes do.
    shared = np.clip(sides, 0, None).prod(axis=1)
    if not shared.any():
        return 0.0
    near = [earlier[index] for index in np.flatnonzero(shared)]
    masked = [other for other in near if regions[other].mask is not None]
    largest = 0.0
    if regions[number].mask is not None or masked:
        compared = near if regions[number].mask is not None else masked
        sizes = next(regions[other].mask["size"] for other in (number, *near) if regions[other].mask is not None)
        rles = [_as_rle(regions[other], sizes) for other in (number, *compared)]
        largest = float(coco_mask.iou(rles[:1], rles[1:], [0] * len(compared)).max())
    if regions[number].mask is None:
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
        union = areas + (right - left) * (bottom - top) - shared
        of_boxes = [regions[other].mask is None for other in earlier]
        largest = max(largest, float((shared / union)[of_boxes].max(initial=0)))
    return largest


def _as_rle(region: SourceRegion, size: list[int]) -> dict[str, Any]:
    """The region's mask, or the rectangle of pixels next to its box, at least one pixel."""
    if region.mask is not None:
        return region.mask
    height, width = size
    left, top = min(round(region.box[0]), width - 1), min(round(region.box[1]), height - 1)
    right, bottom = max(round(region.box[2]), left + 1), max(round(region.box[3]), top + 1)
    columns = np.zeros((width, height), dtype=np.uint8)
    columns[left:right, top:bottom] = 1
    return coco_mask.encode(columns.T)
