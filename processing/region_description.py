# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Long region texts composed from measured facts, without a language model."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .region_facts import MeasuredRegion, Neighbour, find_neighbours, measure_region, rank_in_order
from .region_nouns import noun_of


@dataclass(frozen=True)
class RegionDescription:
    """Texts about one region.

    Attributes:
        object_text: What it is, for example `"a brown and white dog"`.
        text: What it is, its place, size, shape, colours and neighbours, 35 to 80 words.
    """

    object_text: str
    text: str


NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")

# Upper limit of a fraction and what it is called.
FRACTIONS = (
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

PLACES = {
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

SHAPES = {
    "tall": ("much taller than wide", "a tall, narrow shape"),
    "high": ("somewhat taller than wide", "higher than it is wide"),
    "square": ("about as tall as it is wide", "roughly equal in width and height"),
    "wide": ("somewhat wider than tall", "broader than it is high"),
    "long": ("much wider than tall", "a long, low shape"),
}

_MAX_WORDS = 80


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
        measure_region(pixels, mask, noun_of(category), f"masks[{i}]")
        for i, (mask, category) in enumerate(zip(masks, categories))
    ]
    grouped_nouns = {noun_of(category).singular for category in grouped}
    return [_describe(regions, index, grouped_nouns) for index in range(len(regions))]


class Wording:
    """Chooses among wordings by a checksum of the facts, so that the same facts are always worded the same."""

    def __init__(self, region: MeasuredRegion):
        self.key = f"{region.noun.singular} {region.box} {region.centre} {region.share}"

    def choose(self, slot: str, options: Sequence[str]) -> str:
        return options[zlib.crc32(f"{self.key} {slot}".encode()) % len(options)]


def _describe(regions: list[MeasuredRegion], index: int, grouped_nouns: set[str]) -> RegionDescription:
    region = regions[index]
    wording = Wording(region)
    photo = wording.choose("photo", ["photo", "picture", "image"])
    subject = f"The {region.noun.singular}" if region.is_person else "It"
    object_text = region.phrase
    place = PLACES[region.thirds]
    mainly = "mainly " if max(region.width, region.height) > 0.6 else ""
    opening = f"{object_text} {mainly}{place.format(photo=photo)}"
    order = _order(regions, index, grouped_nouns)
    first = f"{opening}{f', {order}' if order else ''}."
    size = f"{subject} {_size_and_shape(region, wording, photo)}."
    extent = f"{_extent_and_edges(region, wording, photo, subject)}."
    colours = f"{_colour_sentence(region, wording)}."
    neighbours = find_neighbours(regions, index)[:2]
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


def _colour_sentence(region: MeasuredRegion, wording: Wording) -> str:
    largest = [colour for colour in region.colours if colour.share >= 0.15][:3]
    if not largest:
        return "no single colour dominates"
    whom = f"the {region.noun.singular}" if region.is_person else "it"
    shares = join_words([f"{colour.shade} ({percent_word(colour.share)})" for colour in largest])
    together = sum(colour.share for colour in largest)
    most = f"most of what one sees of {whom} is" if together > 0.5 else f"what one sees of {whom} is partly"
    kind = f"{whom} is largely" if largest[0].share > 0.4 else f"{whom} is a mix, with"
    plural = "is" if len(largest) == 1 else "are"
    main = f"measured over the whole area, the main {'colour' if len(largest) == 1 else 'colours'} {plural}"
    return f"{wording.choose('colours', [most, f'by colour {kind}', main])} {shares}"


def percent_word(share: float) -> str:
    """A share as words: "about 12 percent"."""
    return "under 1 percent" if share < 0.01 else f"about {round(100 * share)} percent"


def _size_and_shape(region: MeasuredRegion, wording: Wording, photo: str) -> str:
    shape = wording.choose("shape", SHAPES[region.shape])
    size = wording.choose("size", ["takes up", "covers", "fills"])
    return f"{size} {percent_word(region.share)} of the {photo} and is {shape}"


def _extent_and_edges(region: MeasuredRegion, wording: Wording, photo: str, subject: str) -> str:
    touched = region.touched_edges
    extent = f"{fraction_word(region.width)} of the width and {fraction_word(region.height)} of the height"
    spans = wording.choose("extent", [f"{subject} spans {extent}", f"{subject} reaches over {extent}"])
    if region.is_clear_of_edges:
        return f"{spans}, {wording.choose('edges', ['clear of all edges', f'wholly inside the {photo}'])}"
    if not touched:
        return spans
    if len(touched) == 4:
        return f"{spans} and meets all four edges of the {photo}"
    cut = "is cut off by" if region.noun.countable else "runs on beyond"
    return f"{spans} and {cut} the {join_words(touched)} {'edge' if len(touched) == 1 else 'edges'}"


def fraction_word(value: float) -> str:
    """A share of a length as words: "about a third", "all"."""
    name = next(name for limit, name in FRACTIONS if value <= limit + 1e-9)
    return name if name in ("all", "a small part") else f"about {name}"


def join_words(words: Sequence[str]) -> str:
    """Words as a list in a sentence: "left, right and top"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _order(regions: list[MeasuredRegion], index: int, grouped_nouns: set[str]) -> str:
    noun = regions[index].noun
    group = f", not counting a larger group of {noun.plural}" if noun.singular in grouped_nouns else ""
    order = rank_in_order(regions, index, ends=len(ORDINALS))
    if order is None:
        return group.removeprefix(", ")
    return f"{order_phrase(order.rank)} of {count_word(order.count)} {noun.plural} from the {order.side}{group}"


def order_phrase(rank: int) -> str:
    """A rank from 0 as words: "the first", "number 12"."""
    return f"the {ORDINALS[rank]}" if rank < len(ORDINALS) else f"number {rank + 1}"


def count_word(count: int) -> str:
    """A number as a word up to ten."""
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _join_relations(neighbours: Sequence[Neighbour]) -> str:
    relations = [neighbour.relation for neighbour in neighbours]
    if len(neighbours) == 2 and relations[0] == relations[1]:
        return f"{relations[0]} {neighbours[0].phrase} and {neighbours[1].phrase}"
    return ", and ".join(f"{neighbour.relation} {neighbour.phrase}" for neighbour in neighbours)
