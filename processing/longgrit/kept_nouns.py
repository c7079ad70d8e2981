# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The words by which a description calls its object, which a rewrite must keep. English; found by rules, without a parser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..region_nouns import noun_of
from .text_checks import words_of


_IRREGULAR = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "person": "people",
    "mouse": "mice",
    "foot": "feet",
    "tooth": "teeth",
    "goose": "geese",
    "ox": "oxen",
    **{
        f"{stem}f": f"{stem}ves" for stem in ("lea", "shel", "loa", "hal", "wol", "cal", "scar", "hoo", "shea", "thie")
    },
    **{f"{stem}fe": f"{stem}ves" for stem in ("kni", "wi", "li")},
    **{f"{stem}man": f"{stem}men" for stem in ("fire", "police", "sports", "fisher", "snow", "post", "work")},
    **{name: f"{name}es" for name in ("potato", "tomato", "hero", "mango")},
}
_SINGULAR = {plural: singular for singular, plural in _IRREGULAR.items()}

# What models call a category otherwise.
OTHER_NAMES = {
    "person": "man woman child boy girl baby lady guy gentleman kid toddler player rider skier surfer snowboarder "
    "skateboarder adult teenager pedestrian cyclist spectator",
    "airplane": "plane aeroplane jet aircraft airliner",
    "bicycle": "bike",
    "motorcycle": "motorbike scooter",
    "car": "vehicle automobile sedan hatchback suv van taxi",
    "truck": "lorry pickup van",
    "bus": "coach",
    "boat": "ship sailboat ferry canoe kayak",
    "tv": "television screen monitor",
    "couch": "sofa settee",
    "cell phone": "phone smartphone mobile",
    "laptop": "computer notebook",
    "refrigerator": "fridge",
    "donut": "doughnut",
    "sandwich": "burger hamburger",
    "sports ball": "ball football baseball basketball",
    "tie": "necktie",
    "hair drier": "dryer hairdryer",
    "handbag": "bag purse",
    "suitcase": "bag luggage",
    "remote": "controller",
    "cow": "bull calf cattle",
    "dog": "puppy",
    "cat": "kitten",
    "horse": "pony foal",
    "sheep": "lamb ram",
    "chair": "armchair stool seat",
}

_NUMBERS = "two three four five six seven eight nine ten several some many few both these those".split()
_SINGULAR_DETERMINERS = frozenset("a an one this that another each".split())
_DETERMINERS = _SINGULAR_DETERMINERS | frozenset(_NUMBERS) | frozenset("the its his her their our".split())
# After these and "of" comes what they consist of or show.
_GROUPS = frozenset(
    "pair piece herd flock bunch group slice stack row set flight couple area patch cluster kind type sort section part portion "
    "view close-up closeup image picture photo photograph half pile collection number lot series pack team".split()
)
_PREPOSITIONS = frozenset(
    "of in on at with without by near next behind under over above below beneath beside besides between among from to for against "
    "inside outside into onto across along around through towards toward up down off out atop like than as".split()
)
_ENDS = _PREPOSITIONS | frozenset(
    "is are was were has have had that which who whose whom where when while can could will may but or so because it he she "
    "they there seen made cut held worn hung shown set built lit left standing sitting lying coming going wearing holding facing "
    "looking hanging leaning riding walking running playing resting".split()
)
_NO_BEGINNING = _PREPOSITIONS | frozenset("is are was were has have had there it he she they".split())
_AFTER_VERBS = (
    _PREPOSITIONS
    | _DETERMINERS
    | frozenset("partly slightly just directly only down up away out toward his her".split())
)
# Nouns that end like a participle.
_NO_PARTICIPLES = frozenset(
    "bed shed sled seed weed reed building ceiling painting clothing railing ring king wing string swing wedding earring "
    "drawing awning siding lighting bedding fencing flooring thing being morning evening crossing landing".split()
)
# A leading noun that is a place or the photo, and not the object.
_NO_OBJECTS = frozenset(
    "image picture photo photograph scene view left right centre center middle top bottom foreground background side corner "
    "front edge half object region area thing item subject description".split()
)


@dataclass(frozen=True)
class KeptNoun:
    """A noun, or a compound noun, that a text calls its object by.

    Attributes:
        word: As it stands in the text, in lower case.
        forms: Its singular and plural, each as a tuple of words.
        position: Number of its last word in the text.
    """

    word: str
    forms: frozenset[tuple[str, ...]]
    position: int

    def find(self, words: Sequence[str]) -> list[int]:
        """Numbers of the last word of each of its occurrences in a text, in any form.

        Args:
            words: The words of the text, by `plain_words`.
        """
        size = len(next(iter(self.forms)))
        last = {form[-1] for form in self.forms}
        ends = [end for end, word in enumerate(words) if word in last]
        return ends if size == 1 else [end for end in ends if tuple(words[end - size + 1 : end + 1]) in self.forms]


def plain_words(text: str) -> list[str]:
    """The words of a text in lower case, without a possessive s.

    Example:
        >>> plain_words("The dog's bowl, half-empty.")
        ['the', 'dog', 'bowl', 'half-empty']
    """
    words = map(str.casefold, words_of(text))
    return [re.sub(r"['’]s?$", "", word) if "'" in word or "’" in word else word for word in words]


def find_kept_nouns(
    text: str,
    category: str | None = None,
    phrase: str | None = None,
    object_text: str | None = None,
    english: bool = True,
) -> list[KeptNoun]:
    """Finds by which nouns a description calls its object.

    These are the first of the words that the category, the phrase or the object caption name the object by; and, where
    the description begins with another noun ("a baseball pitcher", "the back of a bus"), that one too. Only where it uses none
    of the former, other names of the category count, such as "man" for "person".

    Args:
        text: The description.
        category: Category name of the object.
        phrase: Phrase of the source about it, such as "a brown dog on the grass".
        object_text: Object caption.
        english: Whether the text may be English. If not, only the category as it is counts.

    Returns:
        None to two nouns; none where it cannot be told, as in a text that is not English.

    Example:
        >>> [noun.word for noun in find_kept_nouns("Two small dogs sit by a dining table.", "dog")]
        ['dogs']
        >>> [noun.word for noun in find_kept_nouns("A man in red holds a pair of scissors.", "person")]
        ['man']
        >>> [noun.word for noun in find_kept_nouns("The roof of a red bus, seen from above.", "bus")]
        ['bus', 'roof']
    """
    words = plain_words(text)
    if not english:
        whole = tuple(plain_words(category or ""))
        found = _first([whole], words) if whole else None
        return [] if found is None else [found]
    leading = leading_noun(text)
    named = [*_category_names(category)]
    for source in (phrase, object_text):
        head = leading_noun(source, needs_determiner=False) if source else None
        named += [] if head is None else [(head.word,)]
    found = _first(named, words)
    if found is not None:
        # In "a flower pot", or "a wooden folding chair", what stands before the noun belongs to it.
        between = [] if leading is None else words[leading.position + 1 : found.position]
        return [found, leading] if _PREPOSITIONS.intersection(between) else [found]
    others = [(name,) for name in OTHER_NAMES.get((category or "").casefold(), "").split()]
    candidates = [noun for noun in (leading, _first(others, words)) if noun is not None]
    return [min(candidates, key=lambda noun: noun.position)] if candidates else []


def _category_names(category: str | None) -> list[tuple[str, ...]]:
    raw = (category or "").casefold().replace("_", " ")
    if not re.search(r"\w", raw):
        return []
    whole = tuple(raw.split())
    # "wall-brick" is a wall, "dining table" is a table: names with hyphens are turned round.
    first_part = next(part for part in raw.split("-") if part.strip()) if "-" in raw else raw
    return [whole, (first_part.split()[-1],), (noun_of(category).singular.casefold().split()[-1],)]


def _first(names: list[tuple[str, ...]], words: list[str]) -> KeptNoun | None:
    """The name whose last word comes first; of several that end there, the longest."""
    found = []
    for name in names:
        size, forms = len(name), _forms(name)
        for start in range(len(words) - size + 1):
            if tuple(words[start : start + size]) in forms:
                found.append(KeptNoun(" ".join(words[start : start + size]), forms, start + size - 1))
                break
    return min(found, key=lambda noun: (noun.position, -len(noun.word.split())), default=None)


def _forms(name: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    *before, word = name
    return frozenset((*before, form) for form in _forms_of_word(word))


def _forms_of_word(word: str) -> set[str]:
    forms = {word, _SINGULAR.get(word, word)}
    if word not in _SINGULAR and re.search(r"[^s]s$", word):
        forms.add(word[:-1])
        if re.search(r"(?:s|x|z|ch|sh|o)es$", word):
            forms.add(word[:-2])
        if re.search(r"[^aeiou]ies$", word):
            forms.add(f"{word[:-3]}y")
        return forms
    for singular in tuple(forms):
        if singular in _IRREGULAR:
            forms.add(_IRREGULAR[singular])
        elif re.search(r"(?:s|x|z|ch|sh)$", singular):
            forms.add(f"{singular}es")
        elif re.search(r"[^aeiou]y$", singular):
            forms.add(f"{singular[:-1]}ies")
        else:
            forms.add(f"{singular}s")
    return forms


def leading_noun(text: str, needs_determiner: bool = True) -> KeptNoun | None:
    """The last word of the noun phrase that a text begins with, as far as can be told without a dictionary."""
    words = plain_words(re.split(r"[.!?:;(]", text, maxsplit=1)[0])
    position, singular = 0, False
    if not words or (needs_determiner and words[0] not in _DETERMINERS):
        return None
    head = None
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        if word in _DETERMINERS and head is None:
            singular = word in _SINGULAR_DETERMINERS
            continue
        if word == "of" and head is not None and not _GROUPS.isdisjoint({words[head], words[head].removesuffix("s")}):
            head, singular = None, False
            continue
        if word == "and" and following not in _DETERMINERS and following not in _ENDS:
            continue
        if head is not None and (
            word in _ENDS or word in _DETERMINERS or word == "and" or _is_verb(word, following, singular)
        ):
            break
        if head is None and word in _NO_BEGINNING:
            return None
        head = position
    if head is None or words[head] in _NO_OBJECTS:
        return None
    return KeptNoun(words[head], _forms((words[head],)), head)


def _is_verb(word: str, following: str, singular: bool) -> bool:
    if following not in _AFTER_VERBS or word in _NO_PARTICIPLES:
        return False
    return bool(re.search(r"(?:ing|ed)$", word) or (singular and re.search(r"[^suia]s$", word)))
