# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checks what a caption says of a region against its pixels and its name, without a model."""

from __future__ import annotations

import itertools
import re

from ..region_colours import COLOUR_NAMES, ColourShare
from ..region_nouns import Noun, noun_of
from .asking import AnswerRefused
from .kept_nouns import OTHER_NAMES, PHRASE_ENDS, leading_noun, plain_words
from .rule_facts import RegionFacts
from .rule_texts import CLOSE_COLOURS, SHAPE_CLASSES, SHAPES
from .text_checks import check_form


# Other words for a colour, and what it then may be called.
_COLOUR_WORDS = {
    **{name: (name,) for name in COLOUR_NAMES},
    "gray": ("grey",),
    "silver": ("grey", "white"),
    "golden": ("yellow", "orange", "brown"),
    "gold": ("yellow", "orange", "brown"),
    "blond": ("yellow", "beige", "brown"),
    "tan": ("beige", "brown"),
    "cream": ("beige", "white"),
    "crimson": ("red",),
    "maroon": ("red", "brown"),
    "navy": ("blue", "black"),
    "teal": ("turquoise",),
    "cyan": ("turquoise", "blue"),
    "violet": ("purple",),
    "magenta": ("pink", "purple"),
}
_COLOURS = re.compile(rf"\b({'|'.join(_COLOUR_WORDS)})(?:ish)?\b")

# Greys are close to black or white by their lightness alone: what is measured, what it might be called, and from where to where.
_LIGHTNESS = {
    ("grey", "white"): (62, 100),
    ("grey", "black"): (0, 42),
    ("black", "grey"): (15, 100),
    ("white", "grey"): (0, 90),
}

# Words for things beside those of `OTHER_NAMES`.
_MORE_NAMES = {
    "person": "men women children boys girls people kids snowboarder motorcyclist worker chef driver athlete batter pitcher catcher "
    "umpire individual figure",
    "bird": "gull seagull duck goose pigeon parrot owl swan hen",
    "potted plant": "plant houseplant flowers flower",
    "dining table": "table desk",
    "cup": "mug glass",
    "wine glass": "glass goblet",
    "skis": "skis ski",
    "train": "locomotive tram",
    "building-other-merged": "building buildings house houses",
    "tree-merged": "tree trees foliage bush bushes",
}
# Kinds that are not each other. Whatever else a caption calls a thing of these may be right: a Labrador, a sparrow.
_KNOWN = frozenset(
    noun_of(name)
    for name in (
        "person bicycle car motorcycle airplane bus train truck boat bench bird cat dog horse sheep cow elephant bear zebra "
        "giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard kite skateboard surfboard bottle cup fork knife "
        "spoon bowl banana apple sandwich orange broccoli carrot pizza donut cake chair couch bed toilet tv laptop mouse remote "
        "keyboard microwave oven toaster sink refrigerator book clock vase scissors toothbrush fire_hydrant traffic_light "
        "stop_sign parking_meter sports_ball baseball_bat baseball_glove tennis_racket wine_glass hot_dog potted_plant "
        "dining_table cell_phone teddy_bear hair_drier"
    ).split()
)
# Stuff of COCO that holds things of other kinds.
_WIDE = ("food", "fruit", "furniture", "vegetable", "clothes", "blossom", "cabinetry")
# Colours after these are those of parts, of what is on it, or of other things.
_OF_PARTS = re.compile(
    r"\b(?:with|wearing|holding|carrying|has|have|having|featuring|filled|topped|covered|decorated|full of|on|by|near|next to|beside|"
    r"behind|under|against|above|below|between|among|inside|around)\b[^.;]*"
)
# "Beside a car, a brown dog rests."
_LEADING_CLAUSE = re.compile(
    r"^(?:in|on|at|by|with|beside|behind|near|next to|under|above|below|between|among|against|inside|outside|surrounded|set|seen|placed)\b"
    r"[^,.;]*,\s*"
)

_NAMES: dict[str, set[str]] = {}
for _table in (OTHER_NAMES, _MORE_NAMES):
    for _category, _words in _table.items():
        _NAMES.setdefault(noun_of(_category).singular, set()).update(_words.split())


def verify_caption(caption: str, facts: RegionFacts) -> tuple[str, str]:
    """Checks a caption.

    It must not be about a thing of another kind: another region's, or one of COCO's. A word of which neither is known, such as
    "Labrador", cannot be judged. Each colour that it gives the thing as a whole must be found under the mask, by that name or by
    one close to it; colours of its parts and of other regions are not looked at. Proportions and shares of the photo in the words
    that `RegionTexts` uses are compared too. Whatever else it says is let pass.

    Args:
        caption: The caption.
        facts: What is known of the region.

    Returns:
        `"consistent"`, `"inconsistent"` or `"invalid"`, and why.
    """
    text = " ".join(caption.split())
    if not re.search(r"[^\W\d_]{2}", text):
        return "invalid", "There is no word in it."
    try:
        check_form(text)
    except AnswerRefused as refused:
        return "invalid", refused.message
    lower = _LEADING_CLAUSE.sub("", text.lower())
    for problem in (_wrong_noun(lower, facts), _wrong_colour(lower, facts), _wrong_size(lower, facts)):
        if problem is not None:
            return "inconsistent", problem
    return "consistent", "Its noun, colours and measures agree with the annotation and the pixels."


def names_of(noun: Noun) -> set[str]:
    """Words that name a noun, in lower case."""
    head = noun.singular.removeprefix(noun.before_of).strip()
    names = {noun.singular, noun.plural, head, f"{head}s"}
    return {name.lower() for name in names} | _NAMES.get(noun.singular, set())


def own_names_of(noun: Noun) -> set[str]:
    """The same with the last word, which is the kind of thing: a brick wall is a wall."""
    return names_of(noun) | {noun.singular.split()[-1].lower(), noun.plural.split()[-1].lower()}


def _wrong_noun(text: str, facts: RegionFacts) -> str | None:
    noun = facts.region.noun
    if noun == noun_of(None):
        return None
    own = own_names_of(noun)
    is_known = noun in _KNOWN or (facts.image.complete and noun.singular not in _WIDE)
    kinds = [*_other_nouns(facts), *(_KNOWN - {noun} if is_known else ())]
    others = {name for kind in kinds for name in names_of(kind)} - own
    subject = _subject(text)
    # The longest that the subject ends with: a "hot dog" is no dog.
    named = next((name for name in sorted(own | others, key=len, reverse=True) if _ends_with(subject, name)), None)
    if named is None or named in own:
        return None
    return f"It speaks of {named!r} first, but this is the {noun.singular}."


def _subject(text: str) -> str:
    """What a text begins with, up to its leading noun or, where that is not certain, up to the first word that ends it."""
    words = plain_words(re.split(r"[.!?:;(,]", text, maxsplit=1)[0])
    leading = leading_noun(text, needs_determiner=False)
    if leading is not None:
        return " ".join(plain_words(text)[: leading.position + 1])
    return " ".join(itertools.takewhile(lambda word: word not in PHRASE_ENDS, words))


def _ends_with(subject: str, name: str) -> bool:
    return subject.endswith(name) and (len(subject) == len(name) or subject[-len(name) - 1] == " ")


def _other_nouns(facts: RegionFacts) -> list[Noun]:
    own = facts.region.noun.singular
    return [other.noun for other in facts.image.regions if other.noun.singular not in (own, "object")]


def _wrong_colour(text: str, facts: RegionFacts) -> str | None:
    # Colours that are part of names, "orange fruit", "orange": no statement.
    text = re.sub(rf"(?<!\w){re.escape(facts.region.noun.singular.lower())}(?!\w)", "thing", text)
    text = _OF_PARTS.sub("", text)
    others = "|".join(re.escape(name) for other in _other_nouns(facts) for name in names_of(other))
    shares = {colour.name: colour.share for colour in facts.region.colours}
    for match in _COLOURS.finditer(text):
        if others and re.match(rf"(?:(?:[\s,-]+| and )\w+){{0,2}}?\s+(?:{others})(?!\w)", text[match.end() :]):
            continue
        names = _COLOUR_WORDS[match[1]]
        own = sum(shares.get(name, 0.0) for name in names)
        close = sum(
            colour.share for colour in facts.region.colours if any(_may_be_called(colour, name) for name in names)
        )
        if own < 0.03 and close < 0.35:
            seen = ", ".join(f"{colour.name} {colour.share:.0%}" for colour in facts.region.colours[:3])
            return f"It says {match[0]!r}, but the pixels are {seen}."
    return None


def _may_be_called(colour: ColourShare, name: str) -> bool:
    """Whether someone else might give these pixels this name."""
    if colour.name == name:
        return True
    low, high = _LIGHTNESS.get((colour.name, name), (0, 100))
    return colour.name in CLOSE_COLOURS[name] and low <= colour.lightness <= high


def _wrong_size(text: str, facts: RegionFacts) -> str | None:
    own = SHAPE_CLASSES.index(facts.region.shape)
    for number, name in enumerate(SHAPE_CLASSES):
        said = next((words for words in SHAPES[name] if re.search(rf"\b{words}\b", text)), None)
        if said and abs(number - own) >= 2:
            return f"It says {said!r}, but the shape is {SHAPES[facts.region.shape][0]}."
    share = max(100 * facts.region.share, 0.5)
    for match in re.finditer(r"\b(\d+(?:\.\d+)?) ?(?:percent|%) of the (?:photo|picture|image)\b", text):
        said_share = max(float(match[1]), 0.5)
        if max(share / said_share, said_share / share) >= 1.9 and abs(share - said_share) > 1:
            return f"It says {match[0]!r}, but it is {100 * facts.region.share:.1f} percent."
    return None
