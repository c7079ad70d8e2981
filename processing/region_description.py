# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Long region texts composed from measured facts, without a language model."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .region_colours import ColourShare, erode, measure_colours
from .region_nouns import Noun, noun_of
from .regions import mask_to_box, to_mask


@dataclass(frozen=True)
class RegionDescription:
    """Texts about one region.

    Attributes:
        object_text: What it is, for example `"a brown and white dog"`.
        text: What it is, its place, size, shape, colours and neighbours, 35 to 80 words.
    """

    object_text: str
    text: str


@dataclass(frozen=True)
class _Region:
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


# Names that skin and hair have: of a person they would say nothing about the clothes.
_SKIN_NAMES = {"brown", "beige", "pink", "orange"}

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")

# Upper limit of a fraction and what it is called.
_FRACTIONS = (
    (0.07, "a small part"),
    (0.14, "a tenth"),
    (0.225, "a fifth"),
    (0.29, "a quarter"),
    (0.37, "a third"),
    (0.45, "two fifths"),
    (0.55, "half"),
    (0.63, "three fifths"),
    (0.71, "two thirds"),
    (0.775, "three quarters"),
    (0.85, "four fifths"),
    (0.97, "nine tenths"),
    (1.0, "all"),
)

_PLACES = {
    ("top", "left"): "in the top left of the {photo}",
    ("top", "centre"): "at the top centre of the {photo}",
    ("top", "right"): "in the top right of the {photo}",
    ("middle", "left"): "on the left of the {photo}, about halfway up",
    ("middle", "centre"): "in the centre of the {photo}",
    ("middle", "right"): "on the right of the {photo}, about halfway up",
    ("bottom", "left"): "in the bottom left of the {photo}",
    ("bottom", "centre"): "at the bottom centre of the {photo}",
    ("bottom", "right"): "in the bottom right of the {photo}",
}

_MAX_WORDS = 80
# Annotated outlines often end a few pixels short of an edge that cuts the object off. Shares of the photo's longer side.
_EDGE = 0.007
_CLEAR_OF_EDGE = 0.02
_MIN_NEIGHBOUR_SHARE = 0.003


def describe_region(
    image: Any,
    masks: Sequence[Any],
    categories: Sequence[str | None],
    index: int,
    grouped: Collection[str] = (),
) -> RegionDescription:
    """Composes texts about one region from what can be measured; see `describe_regions`.

    Args:
        image: The photo: array of shape (H, W, 3), uint8, or a PIL image.
        masks: N masks of this photo, in any form of `to_mask`.
        categories: N names, `None` where unknown.
        index: Which of the N regions to describe.
        grouped: Categories of which the photo also shows a group under one mask (COCO's `iscrowd`).

    Returns:
        The two texts.

    Raises:
        ValueError: As `describe_regions`, or if the index is not one of the regions.

    Example:
        >>> image = np.full((60, 90, 3), 255, dtype=np.uint8)
        >>> image[20:40, 5:25] = (200, 20, 20)
        >>> mask = (image[..., 1] == 20)
        >>> describe_region(image, [mask], ["kite"], 0).object_text
        'a red kite'
    """
    if not 0 <= index < len(masks):
        raise ValueError(f"index {index} is not one of the {len(masks)} regions; use 0 to {len(masks) - 1}.")
    return describe_regions(image, masks, categories, grouped)[index]


def describe_regions(
    image: Any, masks: Sequence[Any], categories: Sequence[str | None], grouped: Collection[str] = ()
) -> list[RegionDescription]:
    """Composes texts about every region of a photo from what can be measured.

    A text tells the category, the main colours under the mask (shares of names in CIELAB), the place of the mask's
    centroid (thirds of the photo, "mainly" for a large region), its share of the photo, the proportions of its box, the photo's edges that it
    touches, the nearest other regions with the direction from them, and, where several regions have the same noun,
    which one it is in reading order. Depth, pose and material cannot be measured from masks and are not mentioned.
    Left and right are those of the viewer. The same input gives the same text; the wording varies with the facts.
    Regions of one photo get different texts: another noun, or another number in the order.

    The order is only as true as the list is complete: give all regions of a category, small ones too.

    Args:
        image: The photo: array of shape (H, W, 3), uint8, or a PIL image.
        masks: N masks of this photo, in any form of `to_mask`; a soft mask counts from 0.5 on.
        categories: N names, `None` where unknown.
        grouped: Categories of which the photo also shows a group under one mask (COCO's `iscrowd`); the order of their
            regions is then said not to count that group.

    Returns:
        N descriptions.

    Raises:
        ValueError: If the image is no RGB image, a mask does not fit it or is empty, or the counts differ.

    Example:
        >>> image = np.full((60, 90, 3), 255, dtype=np.uint8)
        >>> image[20:40, 5:25] = (200, 20, 20)
        >>> left, right = np.zeros((2, 60, 90), dtype=bool)
        >>> left[20:40, 5:25] = right[20:40, 60:80] = True
        >>> [first, second] = describe_regions(image, [left, right], ["kite", "kite"])
        >>> first.object_text, second.object_text
        ('a red kite', 'a white kite')
        >>> "first of two kites from the left" in first.text
        True
    """
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"image has shape {pixels.shape} and dtype {pixels.dtype}; a (height, width, 3) uint8 RGB image is accepted."
        )
    if len(masks) != len(categories):
        raise ValueError(f"{len(masks)} masks but {len(categories)} categories; give one category (or None) a mask.")
    regions = [
        _measure(pixels, mask, category, f"masks[{i}]") for i, (mask, category) in enumerate(zip(masks, categories))
    ]
    grouped_nouns = {noun_of(category).singular for category in grouped}
    return [_describe(regions, index, grouped_nouns) for index in range(len(regions))]


def _measure(pixels: np.ndarray, mask: Any, category: str | None, name: str) -> _Region:
    height, width = pixels.shape[:2]
    region = to_mask(mask, height, width, name) >= 0.5
    if not region.any():
        raise ValueError(f"{name} has no pixel of 0.5 or more; remove the region, or threshold its mask lower.")
    x1, y1, x2, y2 = mask_to_box(region)
    ys, xs = np.nonzero(region)
    return _Region(
        noun=noun_of(category),
        mask=region,
        box=(x1 / width, y1 / height, x2 / width, y2 / height),
        centre=((xs.mean() + 0.5) / width, (ys.mean() + 0.5) / height),
        share=float(region.mean()),
        colours=measure_colours(pixels, region),
    )


class _Wording:
    """Chooses among wordings by a checksum of the facts, so that the same facts are always worded the same."""

    def __init__(self, region: _Region):
        self.key = f"{region.noun.singular} {region.box} {region.centre} {region.share}"

    def choose(self, slot: str, options: Sequence[str]) -> str:
        return options[zlib.crc32(f"{self.key} {slot}".encode()) % len(options)]


def _describe(regions: list[_Region], index: int, grouped_nouns: set[str]) -> RegionDescription:
    region = regions[index]
    wording = _Wording(region)
    photo = wording.choose("photo", ["photo", "picture", "image"])
    subject = f"The {region.noun.singular}" if region.is_person else "It"
    object_text = _object_phrase(region)
    place = _PLACES[
        _third(region.centre[1], ("top", "middle", "bottom")), _third(region.centre[0], ("left", "centre", "right"))
    ]
    mainly = "mainly " if max(region.width, region.height) > 0.6 else ""
    opening = f"{object_text} {mainly}{place.format(photo=photo)}"
    order = _order(regions, index, grouped_nouns)
    first = f"{opening}{f', {order}' if order else ''}."
    size = f"{subject} {_size_and_shape(region, wording, photo)}."
    extent = f"{_extent_and_edges(region, wording, photo, subject)}."
    colours = f"{_colour_sentence(region, wording)}."
    neighbours = _neighbours(regions, index)
    verb = wording.choose("neighbours", ["is", "can be seen", "is seen"])
    beside = [f"{subject} {verb} {_join_relations(neighbours[:count])}." for count in range(len(neighbours), 0, -1)]
    # Fullest first; the last is short whatever the order and the neighbours are.
    candidates = [[first, colours, size, sentence, extent] for sentence in beside]
    candidates += [[first, size, sentence, extent] for sentence in beside]
    candidates += [[first, colours, size, extent], [first, size, extent]]
    fitting = (sentences for sentences in candidates if len(" ".join(sentences).split()) <= _MAX_WORDS)
    sentences = next(fitting, candidates[-1])
    if wording.choose("sequence", ["as listed", "reversed"]) == "reversed":
        sentences = [first, *reversed(sentences[1:])]
    return RegionDescription(object_text, " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences))


def _third(position: float, names: tuple[str, str, str]) -> str:
    return names[min(int(position * 3), 2)]


def _main_colours(region: _Region) -> list[ColourShare]:
    """One or two colours that together tell the look; none where no colour stands out."""
    colours = region.colours
    if region.is_person:
        colours = [colour for colour in colours if colour.name not in _SKIN_NAMES]
    colours = [colour for colour in colours if colour.share >= 0.22][:2]
    if len(colours) == 2 and colours[1].share < 0.4 * colours[0].share:
        colours = colours[:1]
    return colours if colours and sum(colour.share for colour in colours) >= 0.3 else []


def _object_phrase(region: _Region) -> str:
    names = " and ".join(colour.shade for colour in _main_colours(region))
    if not region.is_person:
        return region.noun.phrase(names)
    return f"{region.noun.phrase()} in {names} tones" if names else region.noun.phrase()


def _colour_sentence(region: _Region, wording: _Wording) -> str:
    largest = [colour for colour in region.colours if colour.share >= 0.15][:3]
    if not largest:
        return "no single colour dominates"
    whom = f"the {region.noun.singular}" if region.is_person else "it"
    shares = _join([f"{colour.shade} ({_percent(colour.share)})" for colour in largest])
    together = sum(colour.share for colour in largest)
    most = f"most of what one sees of {whom} is" if together > 0.5 else f"what one sees of {whom} is partly"
    kind = f"{whom} is largely" if largest[0].share > 0.4 else f"{whom} is a mix, with"
    plural = "is" if len(largest) == 1 else "are"
    main = f"measured over the whole area, the main {'colour' if len(largest) == 1 else 'colours'} {plural}"
    return f"{wording.choose('colours', [most, f'by colour {kind}', main])} {shares}"


def _percent(share: float) -> str:
    return "under 1 percent" if share < 0.01 else f"about {round(100 * share)} percent"


def _size_and_shape(region: _Region, wording: _Wording, photo: str) -> str:
    height, width = region.mask.shape
    ratio = (region.height * height) / (region.width * width)
    if ratio >= 2:
        shape = wording.choose("shape", ["much taller than wide", "a tall, narrow shape"])
    elif ratio >= 1.15:
        shape = wording.choose("shape", ["somewhat taller than wide", "higher than it is wide"])
    elif ratio > 1 / 1.15:
        shape = wording.choose("shape", ["about as tall as it is wide", "roughly equal in width and height"])
    elif ratio > 0.5:
        shape = wording.choose("shape", ["somewhat wider than tall", "broader than it is high"])
    else:
        shape = wording.choose("shape", ["much wider than tall", "a long, low shape"])
    size = wording.choose("size", ["takes up", "covers", "fills"])
    return f"{size} {_percent(region.share)} of the {photo} and is {shape}"


def _extent_and_edges(region: _Region, wording: _Wording, photo: str, subject: str) -> str:
    height, width = region.mask.shape
    x1, y1, x2, y2 = region.box
    margins = {"left": x1 * width, "right": (1 - x2) * width, "top": y1 * height, "bottom": (1 - y2) * height}
    touched = [side for side, margin in margins.items() if margin <= max(1, _EDGE * max(height, width))]
    extent = f"{_fraction(region.width)} of the width and {_fraction(region.height)} of the height"
    spans = wording.choose("extent", [f"{subject} spans {extent}", f"{subject} reaches over {extent}"])
    if not touched and min(margins.values()) <= _CLEAR_OF_EDGE * max(height, width):
        return spans
    if not touched:
        return f"{spans}, {wording.choose('edges', ['clear of all edges', f'wholly inside the {photo}'])}"
    if len(touched) == 4:
        return f"{spans} and meets all four edges of the {photo}"
    cut = "is cut off by" if region.noun.countable else "runs on beyond"
    return f"{spans} and {cut} the {_join(touched)} {'edge' if len(touched) == 1 else 'edges'}"


def _fraction(value: float) -> str:
    name = next(name for limit, name in _FRACTIONS if value <= limit + 1e-9)
    return name if name in ("all", "a small part") else f"about {name}"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _order(regions: list[_Region], index: int, grouped_nouns: set[str]) -> str:
    region = regions[index]
    same = [i for i, other in enumerate(regions) if other.noun.singular == region.noun.singular]
    group = f", not counting a larger group of {region.noun.plural}" if region.noun.singular in grouped_nouns else ""
    if len(same) == 1:
        return group.removeprefix(", ")

    # Of left-right and top-bottom, the one in which the closest two lie further apart is the clearer order.
    def smallest_gap(axis: int) -> float:
        return float(np.diff(sorted(regions[i].centre[axis] for i in same)).min())

    axis = 1 if smallest_gap(1) > 2 * smallest_gap(0) else 0
    ranked = sorted(same, key=lambda i: (regions[i].centre[axis], regions[i].centre[1 - axis], i))
    rank, count, side = ranked.index(index), len(ranked), ("left", "top")[axis]
    if rank >= len(_ORDINALS):
        rank, side = count - 1 - rank, ("right", "bottom")[axis]
    ordinal = _ORDINALS[rank] if rank < len(_ORDINALS) else f"number {rank + 1}"
    total = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    article = "" if ordinal.startswith("number") else "the "
    return f"{article}{ordinal} of {total} {region.noun.plural} from the {side}{group}"


def _join_relations(neighbours: Sequence[tuple[str, str]]) -> str:
    relations = [relation for relation, _ in neighbours]
    if len(neighbours) == 2 and relations[0] == relations[1]:
        return f"{relations[0]} {neighbours[0][1]} and {neighbours[1][1]}"
    return ", and ".join(f"{relation} {other}" for relation, other in neighbours)


def _neighbours(regions: list[_Region], index: int) -> list[tuple[str, str]]:
    """Up to two pairs such as ("to the left of", "a red car"), nearest and largest regions first, each noun once."""
    region = regions[index]
    ring = _ring(region.mask)
    candidates = []
    for other in regions:
        if other.noun.singular == region.noun.singular or other.share < _MIN_NEIGHBOUR_SHARE:
            continue
        relation = _relation(region, other, ring)
        gap = np.hypot(*(max(0.0, _gap(region, other, axis)) for axis in (0, 1)))
        candidates.append((gap - 0.3 * np.sqrt(other.share), relation, other))
    candidates.sort(key=lambda candidate: candidate[0])
    counts = Counter(other.noun.singular for other in regions)
    nearest: dict[str, tuple[str, str]] = {}
    for _, relation, other in candidates:
        several = counts[other.noun.singular] > 1
        phrase = f"one of the {other.noun.plural}" if several else _object_phrase(other)
        nearest.setdefault(other.noun.singular, (relation, phrase))
    return list(nearest.values())[:2]


def _ring(mask: np.ndarray) -> np.ndarray:
    grown = mask
    for _ in range(3):
        grown = ~erode(~grown)
    return grown & ~mask


def _gap(region: _Region, other: _Region, axis: int) -> float:
    """Space between the boxes along an axis, as a fraction of the photo; negative where they overlap."""
    return max(other.box[axis] - region.box[axis + 2], region.box[axis] - other.box[axis + 2])


def _lies_within(region: _Region, other: _Region, axis: int) -> bool:
    return other.box[axis] < region.box[axis] and region.box[axis + 2] < other.box[axis + 2]


def _relation(region: _Region, other: _Region, ring: np.ndarray) -> str:
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
