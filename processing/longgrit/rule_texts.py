# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Texts of the built-in annotator: sentences of measured facts, each with what would be false in its place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..region_colours import COLOUR_NAMES, ColourShare
from ..region_description import FRACTIONS, PLACES, Wording, count_word, fraction_word, join_words, percent_word
from ..region_description import order_phrase as rank_word
from ..region_facts import SKIN_NAMES, Neighbour
from ..region_nouns import indefinite_article
from .rule_facts import RegionFacts


MOST_WORDS = 90

SHAPES = {
    "tall": ("much taller than wide", "tall and narrow"),
    "high": ("somewhat taller than wide", "a little taller than it is wide"),
    "square": ("about as tall as it is wide", "roughly equal in width and height"),
    "wide": ("somewhat wider than tall", "a little wider than it is tall"),
    "long": ("much wider than tall", "long and low"),
}
SHAPE_CLASSES = tuple(SHAPES)

# Names that one and the same thing may be given, by another eye or in other light.
CLOSE_COLOURS = {
    "black": {"grey"},
    "grey": {"black", "white", "beige"},
    "white": {"grey", "beige"},
    "red": {"orange", "pink", "brown", "purple"},
    "orange": {"red", "yellow", "brown", "beige", "pink"},
    "brown": {"red", "orange", "beige", "yellow", "black"},
    "beige": {"white", "yellow", "brown", "grey", "pink", "orange"},
    "yellow": {"orange", "beige", "green", "brown"},
    "green": {"yellow", "turquoise"},
    "turquoise": {"green", "blue"},
    "blue": {"turquoise", "purple"},
    "purple": {"blue", "pink", "red"},
    "pink": {"red", "purple", "beige", "orange"},
}
# A colour below the first share is not there; one from the second on makes those close to it doubtful.
_ABSENT, _PRESENT = 0.02, 0.08

_INVERSE = {
    "to the left of": "to {its} right",
    "to the right of": "to {its} left",
    "above": "below {it}",
    "below": "above {it}",
    "above and to the left of": "below {it}, to the right",
    "above and to the right of": "below {it}, to the left",
    "below and to the left of": "above {it}, to the right",
    "below and to the right of": "above {it}, to the left",
    "surrounded by": "all around {it}",
    "touching": "right next to {it}",
    "next to": "right next to {it}",
    "close to": "close by",
}
# Direction, its axis, and the sign of the region's centre less that of the other one.
_DIRECTIONS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}

_SIZES = (1, 3, 8, 20, 45, 75, 95)
_EDGES = ("left", "right", "top", "bottom")
# Stands for "a" or "an" until the words after it are known; no text can hold it.
_ARTICLE = "\ufdd0"


@dataclass(frozen=True)
class Slot:
    """Words that tell one attribute, and what would be false in their place.

    Attributes:
        text: The words.
        group: Name of the attribute, such as `"colour:brown"`; slots of one group change together.
        options: Replacements, parallel to those of the other slots of the group.
    """

    text: str
    group: str
    options: tuple[str, ...] = ()


Part = str | Slot


class Composition:
    """A text whose attributes can be exchanged.

    Args:
        sentences: The sentences as parts; without capitals and full stops, which they are given.
        verbatim: Whether the parts are whole sentences already, to be left as they are.
    """

    def __init__(self, sentences: Sequence[Sequence[Part]], verbatim: bool = False):
        self.sentences = [(list(sentence), verbatim) for sentence in sentences]

    def __add__(self, other: Composition) -> Composition:
        both = Composition([])
        both.sentences = self.sentences + other.sentences
        return both

    def text(self, changes: Mapping[str, int] | None = None) -> str:
        """The text.

        Args:
            changes: For each group to exchange the number of the option that stands in its place.
        """
        return " ".join(_written(sentence, verbatim, changes or {}) for sentence, verbatim in self.sentences)

    def slots(self) -> dict[str, Slot]:
        """The first slot of each group that has options, in the order of the text."""
        slots = [part for sentence, _ in self.sentences for part in sentence if isinstance(part, Slot)]
        found: dict[str, Slot] = {}
        for slot in slots:
            if slot.options:
                found.setdefault(slot.group, slot)
        return found


def _written(parts: Sequence[Part], verbatim: bool, changes: Mapping[str, int]) -> str:
    words = "".join(
        part if isinstance(part, str) else part.options[changes[part.group]] if part.group in changes else part.text
        for part in parts
    )
    if verbatim:
        return words
    words = re.sub(
        f"{_ARTICLE}(.)", lambda found: f"{indefinite_article(words[found.start() + 1 :])} {found[1]}", words
    )
    words = words[0].upper() + words[1:]
    return words if words.endswith((".", "!", "?")) else f"{words}."


class RegionTexts:
    """The texts about one region.

    Args:
        facts: What is known of it.
        least_words: Words that the long text should have at least, if there is so much to say.
        most_words: Most words of the long text.
    """

    def __init__(self, facts: RegionFacts, least_words: int = 0, most_words: int = MOST_WORDS):
        self.facts, self.region, self.noun = facts, facts.region, facts.region.noun
        self.wording = Wording(facts.region)
        # Not all texts are as long as they can be.
        self.most_words = min(
            most_words, MOST_WORDS if least_words > 50 else self._choose("length", 60, 75, MOST_WORDS)
        )
        self.photo = self._choose("photo", "photo", "picture", "image")
        person = self.region.is_person
        self.it = f"the {self.noun.singular}" if person else "it"
        self.its = f"the {self.noun.singular}'s" if person else "its"

    def _choose(self, slot: str, *options):
        return self.wording.choose(slot, options)

    @cached_property
    def object_caption(self) -> Composition:
        """What it is and how it looks."""
        shape, size = self._shape(), self._size()
        verb = self._choose("size", "takes up", "covers", "fills")
        covers = [f"{verb} ", size, f" of the {self.photo}"]
        if self.facts.is_box:
            first = [*self._phrase(), " is found within a rectangle that is ", shape, " and ", *covers]
        else:
            first = self._choose(
                "object",
                [*self._phrase(), " is ", shape, " and ", *covers],
                [*self._phrase(), ", ", shape, ", ", *covers],
                ["this is ", *self._phrase(), ", ", shape, f", and {self.it} ", *covers],
            )
        return Composition([first, *self._look()])

    @cached_property
    def context_caption(self) -> Composition:
        """Where it is and what is around it."""
        name = f"the {self.noun.singular}"
        verb = self._choose("place", "is", "can be seen", "lies" if not self.region.is_person else "is seen")
        first = [f"{name} {verb} {self._mainly()}", self._place(), *self._order()]
        return Composition([first, *self._beside(), self._extent(), *self._among()])

    @cached_property
    def description(self) -> Composition:
        """All of it as one text."""
        phrase, place, order = self._phrase(), self._place(), self._order()
        first = self._choose(
            "opening",
            [*phrase, f" is {self._mainly()}", place, *order],
            [self._mainly(), *self._without_commas(place), " is ", *phrase, *order],
            [*phrase, f" can be seen {self._mainly()}", place, *order],
            ["there is ", *phrase, f" {self._mainly()}", place, *order],
        )
        whom = f"the rectangle around {self.it}" if self.facts.is_box else self.it
        verb = self._choose("size", "takes up", "covers", "fills")
        size = [f"{whom} {verb} ", self._size(), f" of the {self.photo} and is ", self._shape()]
        look, beside, extent, among = self._look(), self._beside(), self._extent(), self._among()
        rest = self._choose(
            "sequence",
            [size, *look, *beside, extent, *among],
            [*look, size, *beside, extent, *among],
            [*beside, *look, size, extent, *among],
            [*among, *beside, extent, size, *look],
        )
        # What is said first is kept first where it does not all fit; size and extent make up the least length.
        needed, kept = [size, extent], [first, size, extent]
        for sentence in rest:
            if sentence not in needed and self._length([*kept, sentence]) <= self.most_words:
                kept.append(sentence)
        return Composition([first, *(sentence for sentence in rest if sentence in kept)])

    @staticmethod
    def _length(sentences: Sequence[Sequence[Part]]) -> int:
        return len(Composition(sentences).text().split())

    @staticmethod
    def _without_commas(slot: Slot) -> list[Part]:
        return [Slot(slot.text.replace(",", ""), slot.group, tuple(words.replace(",", "") for words in slot.options))]

    # Parts of sentences.

    def _phrase(self) -> list[Part]:
        head = self.noun.singular.removeprefix(self.noun.before_of).lstrip()
        colours = [] if self.facts.is_box or head.split()[0] in COLOUR_NAMES else self.region.main_colours
        named = self._join([self._colour(colour) for colour in colours])
        article = _ARTICLE if self.noun.countable else ""
        if self.region.is_person:
            return [f"{article}{self.noun.singular}", *([" in ", *named, " tones"] if named else [])]
        before = f"{self.noun.before_of} " if self.noun.before_of else ""
        return [f"{article}{before}", *named, f" {head}" if named else head]

    @staticmethod
    def _join(parts: Sequence[Part]) -> list[Part]:
        joined: list[Part] = []
        for number, part in enumerate(parts):
            joined += [part] if number == 0 else [" and " if number == len(parts) - 1 else ", ", part]
        return joined

    def _colour(self, colour: ColourShare | str) -> Slot:
        name, shade = (colour, colour) if isinstance(colour, str) else (colour.name, colour.shade)
        return Slot(shade, f"colour:{name}", absent_colours(self.facts, self.wording, name))

    def _shape(self) -> Slot:
        own = SHAPE_CLASSES.index(self.region.shape)
        # The second ones say "it".
        number = 0 if self.region.is_person else self._choose("shape", 0, 1)
        far = [name for i, name in enumerate(SHAPE_CLASSES) if abs(i - own) >= 2]
        return Slot(SHAPES[self.region.shape][number], "shape", tuple(SHAPES[name][number] for name in far))

    def _size(self) -> Slot:
        percent = max(100 * self.region.share, 0.4)
        far = [size for size in _SIZES if max(size / percent, percent / size) >= 2 and abs(size - percent) >= 2]
        # A nearer one is harder to tell from the truth.
        far.sort(key=lambda size: max(size / percent, percent / size))
        return Slot(percent_word(self.region.share), "size", tuple(f"about {size} percent" for size in far[:3]))

    def _mainly(self) -> str:
        return "mainly " if max(self.region.width, self.region.height) > 0.6 else ""

    def _place(self) -> Slot:
        def words(place: tuple[str, str]) -> str:
            return PLACES[place].format(photo=self.photo)

        return Slot(words(self.region.thirds), "place", tuple(map(words, self.false_places)))

    def _order(self) -> list[Part]:
        order, noun = self.facts.order, self.noun
        grouped = noun.singular in self.facts.image.grouped
        group = f", not counting a larger group of {noun.plural}" if grouped and self.facts.image.complete else ""
        if order is None:
            return [group] if group else []
        ranks = [rank for rank in range(min(order.count, 10)) if rank != order.rank]
        # At least so many were seen: fewer is surely wrong, more only if they are many more.
        counts = [count for count in (order.count - 1,) if count > order.rank and count > 1]
        counts += [] if grouped or order.count > 3 else [2 * order.count + 1]
        opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[order.side]
        flips = () if 2 * order.rank == order.count - 1 else (opposite,)
        return [
            ", ",
            Slot(rank_word(order.rank), "order", tuple(rank_word(rank) for rank in ranks)),
            " of ",
            Slot(count_word(order.count), "count", tuple(map(count_word, counts))),
            f" {noun.plural} from the ",
            Slot(order.side, "side", flips),
            group,
        ]

    @cached_property
    def false_places(self) -> list[tuple[str, str]]:
        """Ninths of the photo that the centroid is clearly not in and that hold little of the region, nearest first."""
        mask, centre = self.region.mask, self.region.centre
        rows, columns = ([round(size * third / 3) for third in range(4)] for size in mask.shape)
        total = mask.sum()
        found = []
        for place in PLACES:
            row, column = ("top", "middle", "bottom").index(place[0]), ("left", "centre", "right").index(place[1])
            away = [
                max(third / 3 - position, position - (third + 1) / 3) for third, position in zip((column, row), centre)
            ]
            held = mask[rows[row] : rows[row + 1], columns[column] : columns[column + 1]].sum()
            if max(away) >= 0.12 and held <= 0.3 * total:
                found.append((max(away), place))
        return [place for _, place in sorted(found)]

    # Sentences.

    def _look(self) -> list[list[Part]]:
        """Colours beyond those of the phrase, contrast and outline."""
        if self.facts.is_box:
            return []
        sentences: list[list[Part]] = []
        main = {colour.name for colour in self.region.main_colours}
        others = [colour for colour in self.region.colours if colour.share >= 0.12 and colour.name not in main]
        if self.region.is_person:
            others = [colour for colour in others if colour.name not in SKIN_NAMES]
        named = self._join([self._colour(colour) for colour in others[:3]])
        parts = self.facts.parts
        if parts is not None:
            upper, lower = (Slot(words, "part", (other,)) for words, other in (("upper", "lower"), ("lower", "upper")))
            tones = [self._colour(parts.upper), self._colour(parts.lower)]
            half = self._choose("half", "half", "part")
            sentences.append(
                self._choose(
                    "parts",
                    [
                        f"{self.its} ",
                        upper,
                        f" {half} is mainly ",
                        tones[0],
                        ", the ",
                        lower,
                        " one mainly ",
                        tones[1],
                    ],
                    [
                        "mostly ",
                        tones[0],
                        " fills the ",
                        upper,
                        f" {half} of {self.it} and mostly ",
                        tones[1],
                        " the ",
                        lower,
                    ],
                )
            )
        elif named and main:
            sentences.append(
                self._choose(
                    "others",
                    ["there is also some ", *named, f" on {self.it}"],
                    [f"{self.it} also shows some ", *named],
                    [f"parts of {self.it} are ", *named],
                )
            )
        elif len(others) > 1 and not self.region.is_person:
            sentences.append([f"{self.it} is a mix of ", *named])
        contrast, slant = self.facts.contrast, self.facts.slant
        if contrast is not None:
            slot = Slot(contrast, "contrast", ("darker" if contrast == "lighter" else "lighter",))
            around = self._choose("around", "what is around it", "its surroundings", "the area next to it")
            sentences.append([f"{self.it} is ", slot, f" than {around}"])
        if slant is not None:
            words = ("lower left to the upper right", "upper left to the lower right")
            slot = Slot(slant, "slant", (words[1 - words.index(slant)],))
            verb = self._choose("slant", "runs slantwise", "stretches diagonally", "extends at a slant")
            sentences.append([f"{self.it} {verb} from the ", slot])
        elif self.facts.fill < 0.42:
            sentences.append([f"{self.its} outline leaves more than half of the rectangle around it empty"])
        elif self.facts.fill > 0.88:
            sentences.append([f"{self.it} fills the rectangle around it almost wholly"])
        return sentences

    def _beside(self) -> list[list[Part]]:
        """The nearest neighbours."""
        neighbours = self.facts.neighbours[:2]
        relations = [
            Slot(neighbour.relation, f"relation:{number}", false_relations(self.facts, neighbour))
            for number, neighbour in enumerate(neighbours)
        ]
        if not neighbours:
            return []
        directed = all("touching" not in slot.text and "surrounded" not in slot.text for slot in relations)
        verb = self._choose("beside", "is", "can be seen", "is seen") if directed else "is"
        if len(neighbours) == 2 and neighbours[0].relation == neighbours[1].relation:
            # One direction for both: changed, it must be false of both.
            options = tuple(option for option in relations[0].options if option in relations[1].options)
            slot = Slot(relations[0].text, "relation", options)
            return [[f"{self.it} {verb} ", slot, f" {neighbours[0].phrase} and {neighbours[1].phrase}"]]
        if self._choose("inverse", True, False):
            sentences = []
            for slot, neighbour in zip(relations, neighbours):
                said = Slot(self._inverse(slot.text), slot.group, tuple(map(self._inverse, slot.options)))
                sentences.append([f"{neighbour.phrase} is ", said])
            joined = sentences[0] if len(sentences) == 1 else [*sentences[0], ", and ", *sentences[1]]
            return [joined]
        parts: list[Part] = [f"{self.it} {verb} ", relations[0], f" {neighbours[0].phrase}"]
        return [[*parts, ", and ", relations[1], f" {neighbours[1].phrase}"] if len(neighbours) == 2 else parts]

    def _inverse(self, relation: str) -> str:
        return _INVERSE[relation].format(it=self.it, its=self.its)

    def _extent(self) -> list[Part]:
        """How far it reaches, and the edges."""
        touched = self.region.touched_edges
        verb = self._choose("extent", "spans", "stretches over", "extends over")
        width, height = (
            # What goes from edge to edge has the whole length, whatever is put in its place.
            Slot(fraction_word(value), f"extent:{axis}", () if sides <= set(touched) else far_fractions(value))
            for axis, value, sides in (
                ("width", self.region.width, {"left", "right"}),
                ("height", self.region.height, {"top", "bottom"}),
            )
        )
        said = [f"{self.it} {verb} ", width, f" of the {self.photo}'s width and ", height, " of its height"]
        height_px, width_px = self.region.mask.shape
        clear = [edge for edge in _EDGES if self.region.margins[edge] > 0.06 * max(height_px, width_px)]
        if self.region.is_clear_of_edges:
            words = self._choose("edges", "clear of all edges", "without touching an edge")
            return [*said, ", ", Slot(words, "edge", tuple(f"right up to the {edge} edge" for edge in clear))]
        if not touched:
            return said
        if len(touched) == 4:
            return [*said, f", up to all four edges of the {self.photo}"]
        verb = self._choose("touches", "reaches", "touches", "meets")
        named = f"{join_words(touched)} {'edge' if len(touched) == 1 else 'edges'}"
        return [*said, f" and {verb} the ", Slot(named, "edge", tuple(f"{edge} edge" for edge in clear))]

    def _among(self) -> list[list[Part]]:
        """How it compares with others of its noun, or where more of them are."""
        if self.facts.bulk is not None:
            other = "smallest" if self.facts.bulk == "largest" else "largest"
            # "the largest of the two" is not English.
            two = self.facts.order.count == 2
            words = {"largest": "larger", "smallest": "smaller"} if two else {}
            slot = Slot(words.get(self.facts.bulk, self.facts.bulk), "bulk", (words.get(other, other),))
            total = f"the two {self.noun.plural}" if two else f"these {self.noun.plural}"
            return [[f"{self.it} is the ", slot, f" of {total}, as far as they show"]]
        if self.facts.order is not None or not self.noun.countable or self.noun.singular == "object":
            return []
        said = []
        for side, count in sorted(self.facts.others.items()):
            noun = f"another {self.noun.singular}" if count == 1 else f"{count_word(count)} other {self.noun.plural}"
            said.append(f"{noun} to {self.its} {side}")
        if not said:
            return []
        first = list(self.facts.others.values())[0] if len(said) == 1 else self.facts.others["left"]
        return [[f"there {'is' if first == 1 else 'are'} {join_words(said)}"]]


def absent_colours(facts: RegionFacts, wording: Wording, instead_of: str) -> tuple[str, ...]:
    """Colour names that no part of a region has or could be given, in an order that varies."""
    shares = {colour.name: colour.share for colour in facts.region.colours}
    present = [name for name, share in shares.items() if share >= _PRESENT]
    doubtful = set(present).union(*(CLOSE_COLOURS[name] for name in present))
    absent = [name for name in COLOUR_NAMES if shares.get(name, 0.0) < _ABSENT and name not in doubtful]
    start = wording.choose(f"instead of {instead_of}", range(len(absent))) if absent else 0
    return tuple(absent[start:] + absent[:start])


def false_relations(facts: RegionFacts, neighbour: Neighbour) -> tuple[str, ...]:
    """Relations to a neighbour that hold of no region of its noun."""
    words = neighbour.relation.replace("to the ", "").removesuffix(" of").split(" and ")
    if not set(words) <= set(_DIRECTIONS):
        return ()
    regions = facts.image.regions
    noun = regions[neighbour.index].noun.singular
    if noun in facts.image.grouped or noun in facts.image.uncounted:
        return ()
    others = [other for other in regions if other.noun.singular == noun and other is not facts.region]

    def is_false(direction: str) -> bool:
        axis, sign = _DIRECTIONS[direction]
        return all(sign * (facts.region.centre[axis] - other.centre[axis]) < -0.03 for other in others)

    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    flipped = [opposite[word] for word in words]
    if len(words) == 1:
        candidates = [flipped]
    else:
        candidates = [flipped, [words[0], flipped[1]], [flipped[0], words[1]]]
    found = []
    for candidate in candidates:
        changed = [new for new, old in zip(candidate, words) if new != old]
        if any(is_false(direction) for direction in changed):
            said = [word if word in ("above", "below") else f"to the {word} of" for word in candidate]
            found.append(" and ".join(said))
    return tuple(found)


def far_fractions(value: float) -> tuple[str, ...]:
    """Fractions of a length that are clearly wrong, nearest first."""
    limits = [limit for limit, _ in FRACTIONS]
    far = []
    for number, (limit, _) in enumerate(FRACTIONS):
        lower = limits[number - 1] if number else 0.0
        away = max(lower - value, value - limit)
        if away >= 0.15:
            far.append((away, fraction_word(limit)))
    return tuple(words for _, words in sorted(far)[:3])
