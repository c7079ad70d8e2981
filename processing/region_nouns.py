# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Category names of data sets ("wall-brick", "scissors") as English nouns that fit into a sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """An English noun.

    Attributes:
        singular: The noun without its adjective slot, for example `"dog"`, `"grass"`, `"pair of scissors"`.
        plural: For example `"dogs"`, `"areas of grass"`.
        countable: Whether the singular takes "a" or "an".
        before_of: Words that stand before the adjectives, `"pair of"` in "a pair of red scissors"; else empty.
    """

    singular: str
    plural: str
    countable: bool = True
    before_of: str = ""

    def phrase(self, adjectives: str = "") -> str:
        """The noun with its adjectives and article: "a red dog", "green grass", "a pair of black scissors"."""
        head = self.singular.removeprefix(self.before_of).lstrip()
        words = f"{adjectives} {head}".strip()
        if self.before_of:
            words = f"{self.before_of} {words}"
        return f"{indefinite_article(words)} {words}" if self.countable else words


def indefinite_article(words: str) -> str:
    """Returns "a" or "an" for the words that follow.

    Example:
        >>> indefinite_article("umbrella"), indefinite_article("unicycle"), indefinite_article("TV")
        ('an', 'a', 'a')
    """
    first = words.lower()
    if re.match(r"(uni(?!n)|use|usu|ute|eu|one\b|once\b)", first):
        return "a"
    return "an" if re.match(r"([aeiou]|hour|honest|heir)", first) else "a"


def _mass(**nouns: str) -> dict[str, Noun]:
    return {name.replace("_", "-"): Noun(noun, f"areas of {noun}", countable=False) for name, noun in nouns.items()}


def _plural(singular: str) -> str:
    if re.search(r"(s|sh|ch|x|z)$", singular):
        return f"{singular}es"
    if re.search(r"[^aeiou]y$", singular):
        return f"{singular[:-1]}ies"
    return f"{singular}s"


# A stuff segment holds all of its kind in a photo, one tree or twenty: hence nouns that say neither.
_NOUNS = {
    "person": Noun("person", "people"),
    "man": Noun("man", "men"),
    "woman": Noun("woman", "women"),
    "child": Noun("child", "children"),
    "sheep": Noun("sheep", "sheep"),
    "knife": Noun("knife", "knives"),
    "mouse": Noun("computer mouse", "computer mice"),
    "scissors": Noun("pair of scissors", "pairs of scissors", before_of="pair of"),
    "skis": Noun("pair of skis", "pairs of skis", before_of="pair of"),
    "glasses": Noun("pair of glasses", "pairs of glasses", before_of="pair of"),
    "broccoli": Noun("piece of broccoli", "pieces of broccoli", before_of="piece of"),
    "orange": Noun("orange fruit", "orange fruits"),
    "tv": Noun("TV", "TVs"),
    "remote": Noun("remote control", "remote controls"),
    "sports ball": Noun("ball", "balls"),
    "tie": Noun("necktie", "neckties"),
    "hair drier": Noun("hair dryer", "hair dryers"),
    "stairs": Noun("flight of stairs", "flights of stairs", before_of="flight of"),
    "playingfield": Noun("playing field", "playing fields"),
    "railroad": Noun("railway track", "railway tracks"),
    "rug-merged": Noun("rug", "rugs"),
    "wall-wood": Noun("wooden wall", "wooden walls"),
    "wall-tile": Noun("tiled wall", "tiled walls"),
    "floor-wood": Noun("wooden floor", "wooden floors"),
    "mountain-merged": Noun("mountain landscape", "mountain landscapes"),
    "window-blind": Noun("window blind", "window blinds"),
    **_mass(
        grass_merged="grass",
        dirt_merged="bare earth",
        pavement_merged="pavement",
        paper_merged="paper",
        rock_merged="rock",
        fence_merged="fencing",
        cabinet_merged="cabinetry",
        tree_merged="tree cover",
        building_other_merged="building facade",
        food_other_merged="food",
        sky_other_merged="sky",
        water_other="water",
        window_other="window glass",
        light="lighting",
        shelf="shelving",
        curtain="curtain fabric",
        towel="towel fabric",
        flower="blossom",
        house="house facade",
        pillow="pillow fabric",
        blanket="blanket fabric",
        sand="sand",
        sea="sea water",
        snow="snow",
        river="river water",
        gravel="gravel",
        cardboard="cardboard",
        fruit="fruit",
        net="netting",
        water="water",
        grass="grass",
        sky="sky",
    ),
}

_DROPPED_PARTS = {"merged", "other", "stuff"}


def noun_of(category: str | None) -> Noun:
    """Turns a category name into a noun.

    The COCO names that do not read well are in a table. Any other name is taken as a countable noun: "-merged",
    "-other" and "-stuff" go, the parts around the remaining hyphens turn round ("wall-brick" is a brick wall) and
    underscores become spaces.

    Args:
        category: Name of the category; `None` is called an object.

    Returns:
        The noun.

    Raises:
        ValueError: If the name holds no letter or digit.

    Example:
        >>> [noun_of(name).phrase("grey") for name in ("wall-brick", "grass-merged", "scissors", None)]
        ['a grey brick wall', 'grey grass', 'a pair of grey scissors', 'a grey object']
    """
    if category is None:
        return Noun("object", "objects")
    name = " ".join(category.replace("_", " ").split())
    if not re.search(r"\w", name):
        raise ValueError(
            f"category {category!r} holds no letter or digit; give a name, or None for an unnamed object."
        )
    if name.lower() in _NOUNS:
        return _NOUNS[name.lower()]
    parts = [part for part in name.split("-") if part and part not in _DROPPED_PARTS]
    singular = " ".join(reversed(parts)) if parts else name
    return Noun(singular, _plural(singular))
