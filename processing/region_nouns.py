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
    return "an" if re.match(r"([aeiou]|hour|honest|heir|x-)", first) else "a"


def _mass(**nouns: str) -> dict[str, Noun]:
    return {name.replace("_", "-"): Noun(noun, f"areas of {noun}", countable=False) for name, noun in nouns.items()}


def _plural(singular: str) -> str:
    irregular = re.search(r"(?:^|[ -])(mouse|foot|tooth|goose)$", singular)
    if irregular:
        plural = {"mouse": "mice", "foot": "feet", "tooth": "teeth", "goose": "geese"}[irregular[1]]
        return singular[: irregular.start(1)] + plural
    if re.search(r"(?:^|[ -]|[a-z])(?:wo)?man$", singular) and not re.search(r"(?:hu|ger|ro)man$", singular):
        return f"{singular[:-2]}en"
    if re.search(r"(s|sh|ch|x|z)$", singular):
        return f"{singular}es"
    if re.search(r"[^aeiou]y$", singular):
        return f"{singular[:-1]}ies"
    return f"{singular}s"


# Names of any source that do not read well or are no plain countable nouns.
_NOUNS = {
    "person": Noun("person", "people"),
    "man": Noun("man", "men"),
    "woman": Noun("woman", "women"),
    "child": Noun("child", "children"),
    "sheep": Noun("sheep", "sheep"),
    "knife": Noun("knife", "knives"),
    "scissors": Noun("pair of scissors", "pairs of scissors", before_of="pair of"),
    "skis": Noun("pair of skis", "pairs of skis", before_of="pair of"),
    "glasses": Noun("pair of glasses", "pairs of glasses", before_of="pair of"),
    "broccoli": Noun("piece of broccoli", "pieces of broccoli", before_of="piece of"),
    "orange": Noun("orange fruit", "orange fruits"),
    "tv": Noun("TV", "TVs"),
    "hair drier": Noun("hair dryer", "hair dryers"),
    "stairs": Noun("flight of stairs", "flights of stairs", before_of="flight of"),
    **_mass(sand="sand", snow="snow", gravel="gravel", cardboard="cardboard", water="water", grass="grass", sky="sky"),
}

# What a name means in COCO only. A stuff segment holds all of its kind in a photo, one tree or twenty: hence nouns that
# say neither.
_COCO_NOUNS = {
    "mouse": Noun("computer mouse", "computer mice"),
    "remote": Noun("remote control", "remote controls"),
    "sports ball": Noun("ball", "balls"),
    "tie": Noun("necktie", "neckties"),
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
        sea="sea water",
        river="river water",
        fruit="fruit",
        net="netting",
    ),
}
# Those that no other source would use.
_COCO_NAMES = frozenset(name for name in _COCO_NOUNS if re.search(r"-(?:merged|other|wood|tile)|[a-z]-blind", name))

_DROPPED_PARTS = {"merged", "other", "stuff"}
# "wall-brick" is a brick wall, but "t-shirt" no shirt t.
_TURNED_ROUND = re.compile(
    r"(?:wall|floor|ceiling)-(?:brick|concrete|marble|metal|panel|stone|tile|wood)\b", re.IGNORECASE
)


def has_name(category: str | None) -> bool:
    """Whether a category name holds a letter or digit, so that `noun_of` can make a noun of it.

    Example:
        >>> has_name("dog"), has_name("_"), has_name(None)
        (True, False, False)
    """
    return category is not None and re.search(r"[^\W_]", category) is not None


def noun_of(category: str | None, coco: bool = True) -> Noun:
    """Turns a category name into a noun.

    The names that do not read well are in a table. Any other name is taken as a countable noun: "-merged", "-other" and
    "-stuff" go, names of walls and floors turn round ("wall-brick" is a brick wall), underscores become spaces, and what
    stands in brackets ("bow_(ribbons)") and punctuation at the ends go.

    Args:
        category: Name of the category; `None` is called an object.
        coco: Whether the name is one of COCO's, where "mouse" is a computer mouse and "house" may be several.

    Returns:
        The noun.

    Raises:
        ValueError: If the name holds no letter or digit.

    Example:
        >>> [noun_of(name).phrase("grey") for name in ("wall-brick", "grass-merged", "scissors", None)]
        ['a grey brick wall', 'grey grass', 'a pair of grey scissors', 'a grey object']
        >>> noun_of("mouse").singular, noun_of("mouse", coco=False).singular
        ('computer mouse', 'mouse')
    """
    if category is None:
        return Noun("object", "objects")
    if not has_name(category):
        raise ValueError(
            f"category {category!r} holds no letter or digit; give a name, or None for an unnamed object."
        )
    name = category.replace("_", " ")
    outside = re.sub(r"\([^()]*\)", " ", name)
    name = " ".join((outside if has_name(outside) else name).split())
    name = re.sub(r"^\W+|\W+$", "", name)
    lower = name.lower()
    if lower in _NOUNS:
        return _NOUNS[lower]
    if lower in _COCO_NOUNS and (coco or lower in _COCO_NAMES):
        return _COCO_NOUNS[lower]
    parts = [part for part in name.split("-") if part and part not in _DROPPED_PARTS]
    if not parts:
        return Noun(name, _plural(name))
    singular = " ".join(reversed(parts)) if _TURNED_ROUND.match(name) else "-".join(parts)
    return Noun(singular, _plural(singular))
