# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the built-in annotator knows of an image: measured once, for all of its regions."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ..region_colours import COLOUR_NAMES, name_pixels, srgb_to_lab
from ..region_facts import (
    SKIN_NAMES,
    MeasuredRegion,
    Neighbour,
    RankInOrder,
    find_neighbours,
    measure_region,
    rank_in_order,
)
from ..region_nouns import Noun, has_name, noun_of
from .asking import AnswerRefused
from .kept_nouns import OTHER_NAMES, leading_noun
from .records import ImageWork, Rejected, SourceRegion
from .text_checks import check_form


# Regions that the source stage dropped for what they are; the rest of the dropped ones still are things in the photo.
_NO_THING = ("crowd", "duplicate_mask", "low_score")
_UNREADABLE = ("malformed_mask", "malformed_box", "empty_mask", "empty_box")

# Heads of phrases that are not what their last letters say.
_PAIRS = frozenset(
    "pants jeans trousers shorts scissors glasses sunglasses goggles leggings tights skis binoculars".split()
)
_PLURALS = frozenset("people men women children feet teeth mice geese".split())
_PEOPLE = frozenset(
    f"person people mother father son daughter sister brother husband wife bride groom parent friend {OTHER_NAMES['person']}".split()
)
_SINGULARS = frozenset("lens stairs series headquarters gas canvas christmas atlas".split())
_MASS = frozenset(
    "hair clothing furniture food equipment jewelry jewellery smoke ice wood metal bread rice cheese meat milk coffee tea "
    "beer wine text writing fabric foliage vegetation scenery concrete traffic luggage footwear glassware".split()
)

# "A man and a woman", "mother and child": neither of them alone.
_SEVERAL_PEOPLE = re.compile(
    rf"(?:(?:an?|the|one|her|his|their) )?(?:\w+ ){{0,2}}?(?:{'|'.join(sorted(_PEOPLE))}) and (?:\w+ ){{0,3}}?(?:{'|'.join(sorted(_PEOPLE))})\b",
    re.IGNORECASE,
)

# Pixels that parts of a region are measured on, at most; more would not change a main colour.
_PART_PIXELS = 20_000


@dataclass(frozen=True)
class Parts:
    """Main colours of the two halves of a region's box, where each half has one and they differ.

    Attributes:
        upper: Colour name of the upper half.
        lower: Colour name of the lower half.
    """

    upper: str
    lower: str


class RegionFacts:
    """A region among all regions of its image.

    Args:
        image: Facts of the image.
        index: Number of the region among those that were measured.
    """

    def __init__(self, image: ImageFacts, index: int):
        self.image, self.index = image, index
        self.region = image.regions[index]
        self.is_box = image.boxes[index]

    @cached_property
    def neighbours(self) -> list[Neighbour]:
        """Regions of other nouns, nearest first. Of boxes it is known neither what touches nor which colours are the thing's."""
        regions, boxes = self.image.regions, self.image.boxes
        found = []
        for neighbour in find_neighbours(regions, self.index):
            relation, phrase = neighbour.relation, neighbour.phrase
            if (self.is_box or boxes[neighbour.index]) and relation in ("touching", "surrounded by"):
                relation = "close to"
            elif relation == "touching" and not (
                self.region.noun.countable and regions[neighbour.index].noun.countable
            ):
                # Nothing touches the sky.
                relation = "next to"
            if boxes[neighbour.index] and not phrase.startswith("one of the "):
                phrase = regions[neighbour.index].noun.phrase()
            found.append(Neighbour(relation, phrase, neighbour.index))
        return found

    @cached_property
    def order(self) -> RankInOrder | None:
        """Its rank among regions of its noun, where the image is known to show no more than those; else `None`."""
        if not self.image.complete or self.region.noun.singular in self.image.uncounted:
            return None
        return rank_in_order(self.image.regions, self.index, ends=10)

    @cached_property
    def others(self) -> dict[str, int]:
        """How many regions of its noun are clearly to its left and right."""
        places = Counter()
        for other in self.image.regions:
            if other is self.region or other.noun.singular != self.region.noun.singular:
                continue
            if other.box[0] >= self.region.box[2]:
                places["right"] += 1
            elif other.box[2] <= self.region.box[0]:
                places["left"] += 1
        return dict(places)

    @cached_property
    def bulk(self) -> str | None:
        """`"largest"` or `"smallest"` of the regions of its noun, beyond doubt; else `None`."""
        same = [other.share for other in self.image.regions if other.noun.singular == self.region.noun.singular]
        rest = [share for share in same if share != self.region.share]
        if self.order is None or len(rest) != len(same) - 1:
            return None
        if self.region.share >= 1.3 * max(rest):
            return "largest"
        return "smallest" if self.region.share <= min(rest) / 1.3 else None

    @cached_property
    def parts(self) -> Parts | None:
        """Colours of the upper and lower half, where they differ; of a person without those of skin and hair."""
        lab, rows, _ = self._pixels
        if len(lab) < 64:
            return None
        names = name_pixels(lab)
        middle = self.region.mask.shape[0] * (self.region.box[1] + self.region.box[3]) / 2
        upper = rows < middle
        if min(upper.sum(), (~upper).sum()) < 32:
            return None
        shares = [np.bincount(names[half], minlength=len(COLOUR_NAMES)) / half.sum() for half in (upper, ~upper)]
        first, second = (int(share.argmax()) for share in shares)
        # Each is most of its half and little of the other, so that they cannot change places.
        if min(shares[0][first], shares[1][second]) < 0.5 or max(shares[1][first], shares[0][second]) > 0.3:
            return None
        found = COLOUR_NAMES[first], COLOUR_NAMES[second]
        skin = self.region.is_person and not SKIN_NAMES.isdisjoint(found)
        return None if skin else Parts(*found)

    @cached_property
    def contrast(self) -> str | None:
        """`"lighter"` or `"darker"` than the pixels around it, beyond doubt; else `None`."""
        height, width = self.region.mask.shape
        x1, y1, x2, y2 = (int(round(v * s)) for v, s in zip(self.region.box, (width, height, width, height)))
        across, down = max(4, (x2 - x1) // 6), max(4, (y2 - y1) // 6)
        window = np.s_[max(0, y1 - down) : y2 + down, max(0, x1 - across) : x2 + across]
        outside = ~self.region.mask[window]
        if outside.sum() < 64:
            return None
        around = _thinned(self.image.pixels[window][outside])
        difference = float(self._pixels[0][:, 0].mean() - srgb_to_lab(around)[:, 0].mean())
        return "lighter" if difference >= 12 else "darker" if difference <= -12 else None

    @cached_property
    def slant(self) -> str | None:
        """`"lower left to the upper right"` or `"upper left to the lower right"`, if it is long that way; else `None`."""
        _, rows, columns = self._pixels
        if len(rows) < 64 or min(rows.std(), columns.std()) < 2:
            return None
        correlation = float(np.corrcoef(rows, columns)[0, 1])
        if abs(correlation) < 0.65:
            return None
        return "lower left to the upper right" if correlation < 0 else "upper left to the lower right"

    @cached_property
    def fill(self) -> float:
        """Part of its bounding box that it covers."""
        return self.region.share / (self.region.width * self.region.height)

    @cached_property
    def _pixels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """CIELAB colours, rows and columns of the region's pixels, evenly thinned out where they are many."""
        rows, columns = np.nonzero(self.region.mask)
        rows, columns = _thinned(rows), _thinned(columns)
        return srgb_to_lab(self.image.pixels[rows, columns]), rows, columns


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: -(-len(values) // _PART_PIXELS)]


class ImageFacts:
    """The regions of an image, measured.

    Args:
        work: The image.
        complete: Whether the source is COCO, which names every thing of its categories, so that things can be counted.

    Attributes:
        pixels: Array of shape (height, width, 3), uint8.
        regions: What was measured of each region that is a thing in the photo, dropped ones too.
        boxes: Whether each of them is no more than a box.
        grouped: Singulars of the nouns of which the photo also shows a group that is no region.
        uncounted: Singulars of the nouns of which a region could not be read, or the source does not name each thing.
    """

    def __init__(self, work: ImageWork, complete: bool):
        self.pixels = np.asarray(work.picture())
        self.complete = complete
        self.grouped = {noun_of_category(category, complete).singular for category in work.source.grouped}
        self.uncounted = {noun_of_category(category, complete).singular for category in work.source.uncounted}
        # Things without a name are not of one kind.
        self.uncounted.add(noun_of(None).singular)
        self.grouped.discard(noun_of(None).singular)
        self.regions: list[MeasuredRegion] = []
        self.boxes: list[bool] = []
        self._numbers: dict[str, int] = {}
        # As they were said: an exception would keep the image alive by its traceback.
        self._unreadable: dict[str, tuple[str, str, str]] = {}
        for region in work.source.regions:
            noun = noun_of_region(region, coco=complete)
            if region.dropped in _UNREADABLE or not region.placed:
                self.uncounted.add(noun.singular)
                continue
            if region.dropped in _NO_THING:
                continue
            try:
                measured = measure_region(self.pixels, work.mask(region), noun, f"mask of {region.region_id!r}")
            except Rejected as error:
                self.uncounted.add(noun.singular)
                self._unreadable[region.region_id] = (error.stage, error.reason, error.detail)
                continue
            except ValueError as error:
                self.uncounted.add(noun.singular)
                self._unreadable[region.region_id] = ("source", "unreadable_mask", str(error))
                continue
            self._numbers[region.region_id] = len(self.regions)
            self.regions.append(measured)
            self.boxes.append(region.mask is None)

    def of(self, region: SourceRegion) -> RegionFacts:
        """Facts of a region.

        Raises:
            Rejected: If its mask cannot be read.
            KeyError: If the source stage dropped it as no thing.
        """
        if region.region_id in self._unreadable:
            raise Rejected(*self._unreadable[region.region_id])
        return RegionFacts(self, self._numbers[region.region_id])


@lru_cache(maxsize=65_536)
def noun_of_category(category: str | None, coco: bool = False) -> Noun:
    """A category name of any source as a noun.

    Args:
        category: The name. Of several, as in "person, woman", the first counts, without its article. What cannot stand in a
            sentence, such as "_", an emoji, a lone colour or markup, is called an object.
        coco: Whether the name is one of COCO's.

    Returns:
        The noun.

    Example:
        >>> [noun_of_category(name).singular for name in ("french_fries", "a dog", "t-shirt", "_")]
        ['group of french fries', 'dog', 't-shirt', 'object']
    """
    if not has_name(category):
        return noun_of(None)
    try:
        check_form(" ".join(category.replace("_", " ").split()))
    except AnswerRefused:
        return noun_of(None)
    first = next(part for part in re.split(r"[,;/|]", category) if has_name(part))
    first = re.sub(r"^\s*(?:an?|the)[\s_]+(?=\w)", "", first, flags=re.IGNORECASE)
    noun = noun_of(first, coco)
    if noun.singular.casefold() in COLOUR_NAMES:
        return noun_of(None)
    return _noun_of_words(noun.singular) if noun == Noun(noun.singular, noun.plural) else noun


def _noun_of_words(words: str) -> Noun:
    """Words of which the last one tells the number, such as "french fries"."""
    head = words.split()[-1].casefold()
    if head in _PAIRS:
        return Noun(f"pair of {words}", f"pairs of {words}", before_of="pair of")
    if head in _MASS:
        return Noun(words, f"areas of {words}", countable=False)
    if head in _PLURALS or (re.search(r"[^sui']s$", head) and head not in _SINGULARS):
        return Noun(f"group of {words}", f"groups of {words}", before_of="group of")
    return noun_of(words, coco=False)


def noun_of_region(region: SourceRegion, coco: bool = False) -> Noun:
    """What a region is: its category, or the head of the phrase that the source has of it, or an object.

    Args:
        region: The region.
        coco: Whether its category is one of COCO's.

    Returns:
        The noun.

    Example:
        >>> region = SourceRegion("1#0", (0, 0, 9, 9), phrase="The two small brown dogs on a sofa")
        >>> noun_of_region(region).singular
        'group of dogs'
    """
    if has_name(region.category):
        return noun_of_category(region.category, coco)
    if region.phrase is None:
        return noun_of(None)
    if _SEVERAL_PEOPLE.match(region.phrase):
        return _noun_of_words("people")
    leading = leading_noun(region.phrase, needs_determiner=False)
    if leading is None or len(leading.word) > 30:
        return noun_of(None)
    return _noun_of_words(leading.word)
