# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reads the statements of the built-in annotator's texts and measures whether they are true, by code of its own."""

import re
from collections import Counter

import numpy as np
from PIL import Image, ImageFilter

from processing_pixclip.region_colours import COLOUR_NAMES, name_pixels, srgb_to_lab
from processing_pixclip.region_nouns import noun_of
from processing_pixclip.regions import to_mask


COLOURS = "black grey white red orange brown beige yellow green turquoise blue purple pink".split()
# Hue in degrees, saturation and value in percent: all that a name may stand for, and what nobody calls otherwise.
MAYBE = {
    "black": lambda h, s, v: v < 45,
    "grey": lambda h, s, v: (s < 45) & (v > 12),
    "white": lambda h, s, v: (s < 35) & (v > 60),
    "red": lambda h, s, v: ((h < 30) | (h > 325)) & (s > 35),
    "orange": lambda h, s, v: (h < 55) & (s > 40) & (v > 40),
    "brown": lambda h, s, v: ((h < 75) | (h > 320)) & (v < 92),
    "beige": lambda h, s, v: ((h < 90) | (h > 330)) & (v > 50) & (s < 70),
    "yellow": lambda h, s, v: (h > 28) & (h < 85) & (v > 45),
    "green": lambda h, s, v: (h > 35) & (h < 185),
    "turquoise": lambda h, s, v: (h > 140) & (h < 225),
    "blue": lambda h, s, v: (h > 175) & (h < 285),
    "purple": lambda h, s, v: (h > 220) & (h < 350),
    "pink": lambda h, s, v: ((h < 35) | (h > 280)) & (v > 45),
}
CLEARLY = {
    "black": lambda h, s, v: v < 10,
    "grey": lambda h, s, v: (s < 5) & (v > 35) & (v < 70),
    "white": lambda h, s, v: (s < 5) & (v > 95),
    "red": lambda h, s, v: ((h < 6) | (h > 352)) & (s > 75) & (v > 50),
    "orange": lambda h, s, v: (h > 24) & (h < 34) & (s > 80) & (v > 80),
    "brown": lambda h, s, v: (h > 18) & (h < 32) & (s > 50) & (s < 75) & (v > 30) & (v < 50),
    "beige": lambda h, s, v: (h > 30) & (h < 45) & (s > 18) & (s < 30) & (v > 80),
    "yellow": lambda h, s, v: (h > 50) & (h < 62) & (s > 60) & (v > 75),
    "green": lambda h, s, v: (h > 95) & (h < 145) & (s > 45) & (v > 35),
    "turquoise": lambda h, s, v: (h > 172) & (h < 188) & (s > 55) & (v > 45),
    "blue": lambda h, s, v: (h > 215) & (h < 240) & (s > 60) & (v > 40),
    "purple": lambda h, s, v: (h > 275) & (h < 300) & (s > 45) & (v > 35),
    "pink": lambda h, s, v: (h > 325) & (h < 350) & (s > 20) & (s < 50) & (v > 85),
}
FRACTIONS = {
    "a small part": (0, 0.08),
    "about a tenth": (0.06, 0.15),
    "about a fifth": (0.13, 0.24),
    "about a quarter": (0.21, 0.3),
    "about a third": (0.28, 0.38),
    "about two fifths": (0.36, 0.46),
    "about half": (0.44, 0.56),
    "about three fifths": (0.54, 0.64),
    "about two thirds": (0.62, 0.72),
    "about three quarters": (0.7, 0.79),
    "about four fifths": (0.76, 0.86),
    "about nine tenths": (0.84, 0.98),
    "all": (0.96, 1),
}
SHAPES = {
    "much taller than wide": (2, 99),
    "tall and narrow": (2, 99),
    "somewhat taller than wide": (1.14, 2.01),
    "a little taller than it is wide": (1.14, 2.01),
    "about as tall as it is wide": (0.86, 1.16),
    "roughly equal in width and height": (0.86, 1.16),
    "somewhat wider than tall": (0.49, 0.88),
    "a little wider than it is tall": (0.49, 0.88),
    "much wider than tall": (0, 0.51),
    "long and low": (0, 0.51),
}
PLACES = {
    "in the top left of": (0, 0),
    "at the top centre of": (0, 1),
    "in the top right of": (0, 2),
    "on the left of": (1, 0),
    "in the centre of": (1, 1),
    "on the right of": (1, 2),
    "in the bottom left of": (2, 0),
    "at the bottom centre of": (2, 1),
    "in the bottom right of": (2, 2),
}
NUMBERS = "zero one two three four five six seven eight nine ten".split()
RANKS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


class Checker:
    """Reads statements out of texts about one region and measures whether they are true."""

    def __init__(self, work):
        image = work.image
        self.regions = [region for region in image.source.regions if region.dropped is None]
        size = (image.source.height, image.source.width)
        self.masks = {region.region_id: to_mask(region.mask, *size) >= 0.5 for region in self.regions}
        self.pixels = np.asarray(image.picture())
        self.region, self.mask = work.region, self.masks[work.region.region_id]
        self.noun = noun_of(work.region.category)
        rows, columns = np.nonzero(self.mask)
        self.rows, self.columns = rows, columns
        self.height, self.width = np.ptp(rows) + 1, np.ptp(columns) + 1
        hsv = np.asarray(Image.fromarray(self.pixels).convert("HSV")).astype(float)[self.mask]
        self.hsv = hsv[:, 0] * 360 / 255, hsv[:, 1] * 100 / 255, hsv[:, 2] * 100 / 255
        self.light = np.asarray(Image.fromarray(self.pixels).convert("L")).astype(float)

    def centre(self, mask):
        rows, columns = np.nonzero(mask)
        return (rows.mean() + 0.5) / mask.shape[0], (columns.mean() + 0.5) / mask.shape[1]

    def same(self):
        return [r for r in self.regions if noun_of(r.category).singular == self.noun.singular]

    def statements(self, text):
        """Pairs (kind, value); values are compared and judged by `holds`."""
        found = []
        for sentence in re.split(r"(?<=\.) ", text):
            relations = self._relations(sentence)
            found += relations
            if not relations:
                words = sentence.lower().replace(self.noun.singular.lower(), "thing")
                halves = re.search(r"(upper|lower) (?:part|half)", words)
                if not halves:
                    found += [("colour", name) for name in COLOURS if re.search(rf"\b{name}\b", words)]
            found += self._measures(sentence)
        return Counter(found)

    def _measures(self, sentence):
        found = []
        lower = sentence.lower()
        found += [("place", ninth) for words, ninth in PLACES.items() if f"{words} the " in lower]
        found += [("size", int(m[1])) for m in re.finditer(r"about (\d+) percent of the", lower)]
        found += [("size", 0) for _ in re.finditer("under 1 percent of the", lower)]
        found += [("shape", words) for words in SHAPES if words in lower]
        extent = re.search(r"(?:spans|over) (.+) of the (?:photo|picture|image)'s width and (.+) of its height", lower)
        if extent:
            found += [("width", extent[1]), ("height", extent[2])]
        edges = re.search(r"(?:reaches|touches|meets|right up to) the ([a-z, ]+?) edges?\b", lower)
        if edges:
            found += [("edge", side) for side in re.findall("left|right|top|bottom", edges[1])]
        if re.search("clear of all edges|without touching an edge", lower):
            found.append(("edge", "none"))
        order = re.search(r"(?:the (\w+)|number (\d+)) of (\w+) [\w ]+ from the (left|right|top|bottom)", lower)
        if order:
            rank = int(order[2]) - 1 if order[2] else RANKS.index(order[1])
            count = NUMBERS.index(order[3]) if order[3] in NUMBERS else int(order[3])
            found.append(("order", (rank, count, order[4])))
        found += [("bulk", m[1]) for m in re.finditer(r"\b(larg|small)(?:est|er) of ", lower)]
        found += [("contrast", m[1]) for m in re.finditer(r"\bis (lighter|darker) than", lower)]
        slant = re.search(r"from the (lower|upper) left to the (lower|upper) right", lower)
        found += [("slant", slant[1])] if slant else []
        halves = re.search(r"(upper|lower) (?:part|half) is mainly (\w+), the (upper|lower) one mainly (\w+)", lower)
        if halves:
            found += [("half", (halves[1], halves[2])), ("half", (halves[3], halves[4]))]
        halves = re.search(r"mostly (\w+) fills the (upper|lower) \w+ of .+ and mostly (\w+) the (upper|lower)", lower)
        if halves:
            found += [("half", (halves[2], halves[1])), ("half", (halves[4], halves[3]))]
        found += [("fill", "low")] if "more than half of the rectangle around it empty" in lower else []
        found += [("fill", "high")] if "fills the rectangle around it almost wholly" in lower else []
        for count, side in re.findall(r"(another|\w+ other) [\w ]+? to (?:its|the \w+'s) (left|right)", lower):
            number = 1 if count == "another" else NUMBERS.index(count.split()[0])
            found.append(("others", (number, side)))
        return found

    def _relations(self, sentence):
        lower = re.sub(r"\b(one of )?the (?=\w)", "", sentence.lower())
        if re.search("percent|edge|rectangle|slant|diagonal|other ", lower):
            return []
        nouns = {}
        for region in self.regions:
            noun = noun_of(region.category)
            if noun.singular != self.noun.singular:
                nouns |= {noun.singular.lower(): noun.singular, noun.plural.lower(): noun.singular}
                nouns[noun.singular.removeprefix(noun.before_of).strip().lower()] = noun.singular
        found = []
        patterns = {
            r"\b(?:is|seen|and) (above|below) and to (left|right) of (.+?)(?=, and |\.|$)": False,
            r"\b(?:is|seen|and) (above|below) ([^i].+?)(?=, and |\.|$)": False,
            r"\b(?:is|seen|and) to (left|right) of (.+?)(?=, and |\.|$)": False,
            r"\b(?:is|seen|and) (touching|next to|surrounded by|close to) (.+?)(?=, and |\.|$)": False,
            r"([\w ]+?) is (above|below) (?:it|\w+), to (left|right)": True,
            r"([\w ]+?) is (above|below) (?:it|\w+)(?=, and |\.|$)": True,
            r"([\w ]+?) is (all around|right next to|close by)\b": True,
            r"([\w ]+?) is to (?:its|\w+'s) (left|right)": True,
        }
        for pattern, inverse in patterns.items():
            for match in re.finditer(pattern, lower):
                groups = list(match.groups())
                phrase = groups.pop(0) if inverse else groups.pop()
                if "and to " in phrase:
                    continue
                directions = tuple(OPPOSITE.get(word, word) for word in groups) if inverse else tuple(groups)
                names = sorted((name for name in nouns if re.search(rf"\b{re.escape(name)}\b", phrase)), key=len)
                names = [name for name in names if not any(name != other and name in other for other in names)]
                found += [("relation", (directions, nouns[name])) for name in names]
        return found

    def holds(self, kind, value):
        """Whether a statement is true."""
        return getattr(self, f"_{kind}")(value)

    def _colour(self, name):
        return MAYBE[name](*self.hsv).mean() >= 0.1

    def is_false(self, kind, value):
        if kind != "half":
            return not self.holds(kind, value)
        half, name = value
        upper = self.rows < (self.rows.min() + self.rows.max() + 1) / 2
        pixels = self.pixels[self.mask][upper if half == "upper" else ~upper]
        return (name_pixels(srgb_to_lab(pixels)) == COLOUR_NAMES.index(name)).mean() < 0.35

    def lacks(self, name):
        return CLEARLY[name](*self.hsv).mean() <= 0.05

    def _place(self, ninth):
        return all(int(min(position, 0.9999) * 3) == third for position, third in zip(self.centre(self.mask), ninth))

    def _size(self, percent):
        share = 100 * self.mask.mean()
        return abs(share - percent) <= 0.51 if percent else share < 1

    def _shape(self, words):
        low, high = SHAPES[words]
        return low <= self.height / self.width <= high

    def _width(self, words):
        return FRACTIONS[words][0] <= self.width / self.mask.shape[1] <= FRACTIONS[words][1]

    def _height(self, words):
        return FRACTIONS[words][0] <= self.height / self.mask.shape[0] <= FRACTIONS[words][1]

    def _edge(self, side):
        near = max(1, round(0.007 * max(self.mask.shape)))
        strips = {
            "left": np.s_[:, : near + 1],
            "right": np.s_[:, -near - 1 :],
            "top": np.s_[: near + 1],
            "bottom": np.s_[-near - 1 :],
        }
        return (
            not any(self.mask[s].any() for s in strips.values()) if side == "none" else self.mask[strips[side]].any()
        )

    def _order(self, value):
        rank, count, side = value
        axis = 1 if side in ("left", "right") else 0
        centres = sorted(self.centre(self.masks[region.region_id])[axis] for region in self.same())
        own = self.centre(self.mask)[axis]
        place = sum(centre < own - 1e-9 for centre in centres)
        place = len(centres) - 1 - place if side in ("right", "bottom") else place
        return count == len(centres) and (rank == place or np.diff(centres).min() < 1e-9)

    def _bulk(self, word):
        sizes = [self.masks[region.region_id].sum() for region in self.same()]
        return self.mask.sum() == (max(sizes) if word == "larg" else min(sizes))

    def _contrast(self, word):
        margins = max(4, self.height // 6), max(4, self.width // 6)
        window = np.zeros_like(self.mask)
        top, left = max(0, self.rows.min() - margins[0]), max(0, self.columns.min() - margins[1])
        window[top : self.rows.max() + margins[0] + 1, left : self.columns.max() + margins[1] + 1] = True
        difference = self.light[self.mask].mean() - self.light[window & ~self.mask].mean()
        return difference > 8 if word == "lighter" else difference < -8

    def _slant(self, start):
        slope = np.corrcoef(self.rows, self.columns)[0, 1]
        return slope < -0.5 if start == "lower" else slope > 0.5

    def _half(self, value):
        half, name = value
        middle = (self.rows.min() + self.rows.max() + 1) / 2
        upper = self.rows < middle
        return MAYBE[name](*(channel[upper if half == "upper" else ~upper] for channel in self.hsv)).mean() >= 0.45

    def _fill(self, value):
        share = self.mask.sum() / (self.height * self.width)
        return share < 0.5 if value == "low" else share > 0.85

    def _others(self, value):
        count, side = value
        rest = [self.masks[r.region_id] for r in self.same() if r.region_id != self.region.region_id]
        own = self.centre(self.mask)[1]
        beside = [m for m in rest if (self.centre(m)[1] < own) == (side == "left")]
        return len(beside) >= count

    def _relation(self, value):
        directions, noun = value
        others = [m for r, m in zip(self.regions, self.masks.values()) if noun_of(r.category).singular == noun]
        return any(all(self._stands(direction, other) for direction in directions) for other in others)

    def _stands(self, direction, other):
        (row, column), (other_row, other_column) = self.centre(self.mask), self.centre(other)
        if direction in ("close to", "close by"):
            return True
        other_rows, other_columns = np.nonzero(other)
        if direction in ("surrounded by", "all around"):
            inside = [
                (a.min() <= b.min() and b.max() <= a.max())
                for a, b in ((other_rows, self.rows), (other_columns, self.columns))
            ]
            return all(inside)
        if direction in ("touching", "next to", "right next to"):
            grown = np.array(Image.fromarray(other).convert("L").filter(ImageFilter.MaxFilter(9))) > 0
            return (grown & self.mask).any()
        return {
            "left": column < other_column,
            "right": column > other_column,
            "above": row < other_row,
            "below": row > other_row,
        }[direction]
