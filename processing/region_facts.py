# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What can be measured of the regions of a photo: colours, place, order, edges and neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .region_colours import ColourShare, erode, measure_colours
from .region_nouns import Noun
from .regions import mask_to_box, to_mask


# Names that skin and hair have: of a person they would say nothing about the clothes.
SKIN_NAMES = {"brown", "beige", "pink", "orange"}

# Annotated outlines often end a few pixels short of an edge that cuts the object off. Shares of the photo's longer side.
_EDGE = 0.007
_CLEAR_OF_EDGE = 0.02
_MIN_NEIGHBOUR_SHARE = 0.003


@dataclass(frozen=True)
class MeasuredRegion:
    """One region of a photo.

    Attributes:
        noun: What it is.
        mask: Array of shape (height, width), bool.
        box: Bounding box of the mask, xyxy in shares of the photo's width and height.
        centre: Centroid of the mask, x and y in the same shares.
        share: Part of the photo's pixels that it has.
        colours: Named colours under the mask, largest share first.
    """

    noun: Noun
    mask: np.ndarray
    box: tuple[float, float, float, float]
    centre: tuple[float, float]
    share: float
    colours: list[ColourShare]

    @property
    def width(self) -> float:
        return self.box[2] - self.box[0]

    @property
    def height(self) -> float:
        return self.box[3] - self.box[1]

    @property
    def is_person(self) -> bool:
        return self.noun.plural in ("people", "men", "women", "children")

    @property
    def shape(self) -> str:
        """Proportions of the box in pixels: `"long"`, `"wide"`, `"square"`, `"high"` or `"tall"`, from low to tall."""
        height, width = self.mask.shape
        ratio = (self.height * height) / (self.width * width)
        if ratio >= 2:
            return "tall"
        if ratio >= 1.15:
            return "high"
        return "square" if ratio > 1 / 1.15 else "wide" if ratio > 0.5 else "long"

    @property
    def thirds(self) -> tuple[str, str]:
        """Third of the photo that the centroid is in, down and across, such as `("top", "left")`."""
        names = (("top", "middle", "bottom"), ("left", "centre", "right"))
        return tuple(names[axis][min(int(self.centre[1 - axis] * 3), 2)] for axis in (0, 1))

    @property
    def main_colours(self) -> list[ColourShare]:
        """One or two colours that together tell the look; none where no colour stands out."""
        colours = self.colours
        if self.is_person:
            colours = [colour for colour in colours if colour.name not in SKIN_NAMES]
        colours = [colour for colour in colours if colour.share >= 0.22][:2]
        if len(colours) == 2 and colours[1].share < 0.4 * colours[0].share:
            colours = colours[:1]
        return colours if colours and sum(colour.share for colour in colours) >= 0.3 else []

    @property
    def phrase(self) -> str:
        """The noun with its colours and article, such as `"a brown and white dog"`."""
        names = " and ".join(colour.shade for colour in self.main_colours)
        if not self.is_person:
            return self.noun.phrase(names)
        return f"{self.noun.phrase()} in {names} tones" if names else self.noun.phrase()

    @property
    def margins(self) -> dict[str, float]:
        """Pixels between the box and each edge of the photo."""
        height, width = self.mask.shape
        x1, y1, x2, y2 = self.box
        return {"left": x1 * width, "right": (1 - x2) * width, "top": y1 * height, "bottom": (1 - y2) * height}

    @property
    def touched_edges(self) -> list[str]:
        """Edges of the photo that it reaches."""
        limit = max(1, _EDGE * max(self.mask.shape))
        return [side for side, margin in self.margins.items() if margin <= limit]

    @property
    def is_clear_of_edges(self) -> bool:
        """Whether it lies inside beyond doubt. A region may neither be so nor touch an edge."""
        return not self.touched_edges and min(self.margins.values()) > _CLEAR_OF_EDGE * max(self.mask.shape)


@dataclass(frozen=True)
class RankInOrder:
    """Which one a region is of the regions of its noun.

    Attributes:
        rank: From 0, counted from `side`.
        count: How many there are.
        side: `"left"` or `"top"`; `"right"` or `"bottom"` where that end is nearer than ten.
    """

    rank: int
    count: int
    side: str


@dataclass(frozen=True)
class Neighbour:
    """Another region near a region.

    Attributes:
        relation: Where the region is as seen from it, such as `"to the left of"` or `"surrounded by"`.
        phrase: What it is called, such as `"a red car"` or `"one of the cars"`.
        index: Its number among the regions of the photo.
    """

    relation: str
    phrase: str
    index: int


def measure_region(pixels: np.ndarray, mask: Any, noun: Noun, name: str) -> MeasuredRegion:
    """Measures one region.

    Args:
        pixels: Array of shape (height, width, 3), uint8, sRGB.
        mask: The region in any form of `to_mask`; a soft mask counts from 0.5 on.
        noun: What it is.
        name: How error messages call the mask.

    Returns:
        What was measured.

    Raises:
        ValueError: If the mask does not fit the photo or is empty.
    """
    height, width = pixels.shape[:2]
    region = to_mask(mask, height, width, name) >= 0.5
    if not region.any():
        raise ValueError(f"{name} has no pixel of 0.5 or more; remove the region, or threshold its mask lower.")
    x1, y1, x2, y2 = mask_to_box(region)
    ys, xs = np.nonzero(region)
    return MeasuredRegion(
        noun=noun,
        mask=region,
        box=(x1 / width, y1 / height, x2 / width, y2 / height),
        centre=((xs.mean() + 0.5) / width, (ys.mean() + 0.5) / height),
        share=float(region.mean()),
        colours=measure_colours(pixels, region),
    )


def rank_in_order(regions: Sequence[MeasuredRegion], index: int, ends: int) -> RankInOrder | None:
    """Ranks a region among those of its noun, from the left or, where that is clearer, from the top.

    Args:
        regions: All regions of the photo.
        index: Which one to rank.
        ends: A rank from this one on is counted from the other end.

    Returns:
        The rank, or `None` where there is no other region of this noun.
    """
    region = regions[index]
    same = [i for i, other in enumerate(regions) if other.noun.singular == region.noun.singular]
    if len(same) == 1:
        return None

    # Of left-right and top-bottom, the one in which the closest two lie further apart is the clearer order.
    def smallest_gap(axis: int) -> float:
        return float(np.diff(sorted(regions[i].centre[axis] for i in same)).min())

    axis = 1 if smallest_gap(1) > 2 * smallest_gap(0) else 0
    ranked = sorted(same, key=lambda i: (regions[i].centre[axis], regions[i].centre[1 - axis], i))
    rank, count, side = ranked.index(index), len(ranked), ("left", "top")[axis]
    if rank >= ends:
        rank, side = count - 1 - rank, ("right", "bottom")[axis]
    return RankInOrder(rank, count, side)


def find_neighbours(regions: Sequence[MeasuredRegion], index: int) -> list[Neighbour]:
    """Finds the other regions near a region, nearest and largest first, each noun once.

    Args:
        regions: All regions of the photo.
        index: The region.

    Returns:
        Neighbours, those of another noun that are not tiny.
    """
    region = regions[index]
    ring = _ring(region.mask)
    candidates = []
    for i, other in enumerate(regions):
        if other.noun.singular == region.noun.singular or other.share < _MIN_NEIGHBOUR_SHARE:
            continue
        relation = relation_between(region, other, ring)
        gap = np.hypot(*(max(0.0, _gap(region, other, axis)) for axis in (0, 1)))
        candidates.append((gap - 0.3 * np.sqrt(other.share), relation, i))
    candidates.sort(key=lambda candidate: candidate[0])
    counts = Counter(other.noun.singular for other in regions)
    nearest: dict[str, Neighbour] = {}
    for _, relation, i in candidates:
        noun = regions[i].noun
        phrase = f"one of the {noun.plural}" if counts[noun.singular] > 1 else regions[i].phrase
        nearest.setdefault(noun.singular, Neighbour(relation, phrase, i))
    return list(nearest.values())


def _ring(mask: np.ndarray) -> np.ndarray:
    grown = mask
    for _ in range(3):
        grown = ~erode(~grown)
    return grown & ~mask


def _gap(region: MeasuredRegion, other: MeasuredRegion, axis: int) -> float:
    """Space between the boxes along an axis, as a fraction of the photo; negative where they overlap."""
    return max(other.box[axis] - region.box[axis + 2], region.box[axis] - other.box[axis + 2])


def _lies_within(region: MeasuredRegion, other: MeasuredRegion, axis: int) -> bool:
    return other.box[axis] < region.box[axis] and region.box[axis + 2] < other.box[axis + 2]


def relation_between(region: MeasuredRegion, other: MeasuredRegion, ring: np.ndarray) -> str:
    """Says where a region is as seen from another one.

    Args:
        region: The region.
        other: The other one.
        ring: Mask of the three pixels around the region.

    Returns:
        `"to the left of"`, `"above and to the left of"` and the like, `"surrounded by"`, or, where no direction is clear,
        `"touching"` or `"close to"`.
    """
    contact = float((ring & other.mask).sum() / max(1, ring.sum()))
    within = all(_lies_within(region, other, axis) for axis in (0, 1))
    if within and contact >= 0.75:
        return "surrounded by"
    offsets = [region.centre[axis] - other.centre[axis] for axis in (0, 1)]
    sides = [("to the left of", "to the right of"), ("above", "below")]
    directions = {}
    for axis, smaller in ((0, min(region.width, other.width)), (1, min(region.height, other.height))):
        apart = _gap(region, other, axis) > -0.35 * smaller
        if apart and abs(offsets[axis]) >= 0.05:
            directions[axis] = sides[axis][int(offsets[axis] > 0)]
    if len(directions) == 2:
        height, width = region.mask.shape
        across, down = abs(offsets[0]) * width, abs(offsets[1]) * height
        if max(across, down) >= 2 * min(across, down):
            del directions[1 if across > down else 0]
    if len(directions) == 2:
        return f"{directions[1]} and {directions[0]}"
    if directions:
        return next(iter(directions.values()))
    return "touching" if contact > 0.02 or (region.mask & other.mask).any() else "close to"
