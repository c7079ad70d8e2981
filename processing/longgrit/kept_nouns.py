# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The words by which a description calls its object, which a rewrite must keep. English; found by rules, without a parser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
# Words that do not belong to the noun phrase before them.
PHRASE_ENDS = _PREPOSITIONS | frozenset(
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
    "drawing awning siding lighting bedding fencing flooring thing being morning evening crossing landing pudding icing frosting "
    "duckling dumpling sapling sibling darling carving engraving writing".split()
)
# They stand before a noun and belong to it.
_BEFORE_NOUNS = frozenset(
    "dining folding swimming rocking fishing sewing washing sleeping shopping parking sailing rowing racing serving cutting "
    "frying mixing baking drinking running hiking riding climbing steering living wedding building boxing chewing "
    "sports glasses sunglasses news christmas bus gas glass grass brass dress cross address lens canvas swiss jeans".split()
)
# Verbs of a person or thing that look like a plural.
_VERBS = frozenset(
    "wears holds stands sits lies lays hangs rises contains shows has is does rests leans rides walks runs plays looks faces "
    "carries sleeps eats drinks grazes perches flies floats grows leads covers fills spans stretches extends reaches "
    "towers hovers soars glides jumps leaps kicks throws catches swings swims smiles laughs waits works reads writes points "
    "pulls pushes drives waves bends kneels crouches watches moves turns glows shines winds flows overlooks "
    "dominates features displays depicts reflects occupies surrounds emerges appears gazes poses balances crosses "
    "climbs sings dances cooks serves cuts pours makes gathers clutches grips lounges curls peers peeks".split()
)
# Never what an object is called by.
_NO_NOUNS = frozenset(
    "high low wide open closed close near far up down upright overturned alone asleep awake aloft ajar visible full empty ready typical similar "
    "adjacent parallel bent spread loose tight still there here together apart forward backward straight half very "
    "black white grey gray red green blue yellow orange brown pink purple beige golden silver dark light bright pale big large "
    "small little tall short long narrow thin thick round square old young new elderly bald male female wooden metal plastic "
    "slender calm quiet first second third last other same different such more most less least much only also "
    "busy dirty happy pretty ugly lovely shiny cloudy sunny rainy snowy sandy rocky grassy leafy fluffy furry heavy tiny messy dusty "
    "rusty muddy crowded cluttered".split()
)
_ADJECTIVE = re.compile(r"(?:ed|en|y|ful|ish|ous|ive|al|ic|less|able|ing|ern|striped|-\w+)$")
_ADVERB = re.compile(r"(?<!^fami)(?<!^li)(?<!^butterf)(?<!^dragonf)(?<!^bel)(?<!^jel)(?<!^trol)(?<!^f)ly$")
# The last noun before a comma, or one that a verb without an ending follows, is certain only where it is known.
_KNOWN_NOUNS = frozenset(
    f"{' '.join(OTHER_NAMES.values())} person people men women children couple bicycle car motorcycle airplane bus train truck boat bench "
    "bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee kite bottle cup "
    "fork knife spoon bowl banana apple sandwich orange broccoli carrot pizza donut cake chair couch bed table toilet tv laptop mouse "
    "remote keyboard microwave oven toaster sink refrigerator book clock vase scissors toothbrush house building tree "
    "church tower wall door window lamp sign box hat shirt jacket dress plate pot rug towel pillow mirror".split()
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
    """Finds by which nouns a description calls its object, where that is certain.

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
    """The noun that a text begins with, where that is certain without a dictionary.

    Args:
        text: A text ("A boy kicks a ball.") or a phrase ("brown dog on the left").
        needs_determiner: Whether it must begin with an article or number, as a sentence does; a phrase may do without.

    Example:
        >>> leading_noun("A shaggy brown dog sleeps on a rug.").word
        'dog'
        >>> leading_noun("A plate piled high with pancakes.") is None
        True
    """
    start = re.match(r"\s*(?:this|that|it|there|these|here) (?:is|are) ", text, re.IGNORECASE)
    offset = 0
    if start is not None:
        offset, text, needs_determiner = len(plain_words(start[0])), text[start.end() :], True
    text = re.split(r"[.!?:;(]", text, maxsplit=1)[0]
    words = plain_words(text)
    if not words or (needs_determiner and words[0] not in _DETERMINERS):
        return None
    # Numbers of the words that a comma follows.
    commas, count = set(), 0
    for part in text.split(",")[:-1]:
        count += len(words_of(part))
        commas.add(count - 1)
    head = _head(words, commas)
    if (
        head is None
        or words[head] in _NO_OBJECTS | _NO_NOUNS
        or _ADVERB.search(words[head])
        or words[head][0].isdigit()
    ):
        return None
    return KeptNoun(words[head], _forms((words[head],)), head + offset)


def _head(words: list[str], commas: set[int]) -> int | None:
    """Number of the last word of the noun phrase that words begin with; `None` where it is uncertain."""

    def plurals(end: int) -> Iterator[int]:
        return (i for i in range(end) if _is_plural(words[i]))

    head, number = None, None
    for position, word in enumerate(words):
        following = words[position + 1] if position + 1 < len(words) else ""
        before = words[head] if head is not None else ""
        if head is None:
            if word in _DETERMINERS or word[0].isdigit():
                number = "one" if word in _SINGULAR_DETERMINERS else "many" if word in _NUMBERS else number
            elif word in _NO_BEGINNING:
                return None
            else:
                head = position
        elif word == "of" and not _GROUPS.isdisjoint({before, before.removesuffix("s")}):
            head, number = None, None
        elif word == "and" and following not in _DETERMINERS and following not in PHRASE_ENDS:
            # "Black and white", but not "a bride and groom dance".
            if not _is_adjective(before) and not _ends_surely(words, position + 2):
                return None
        elif word in _DETERMINERS:
            # What stands before an article is a verb.
            return next(plurals(head), None) if number == "many" else None
        elif word == "set" or (before in _SINGULAR and word not in PHRASE_ENDS | _VERBS):
            # "A table set for two" and "a train set"; "the people wait for" and "the men's room".
            return None
        elif word in PHRASE_ENDS or word == "and" or word in _VERBS:
            break
        elif before == "couple" or _is_verb(word, following, number == "one"):
            break
        elif number == "one" and re.search(r"[^suia]s$", word) and word not in _BEFORE_NOUNS:
            # "A kite soars high", but not "an airways plane".
            if before in _KNOWN_NOUNS or following in _PREPOSITIONS | _NO_NOUNS or _ADVERB.search(following):
                break
            return None
        elif _ADVERB.search(word) and re.search(r"(?:ing|ed)$", before):
            return head - 1 if head and words[head - 1] not in _DETERMINERS else None
        elif re.search(r"ing$", word) and word not in _NO_PARTICIPLES | _BEFORE_NOUNS:
            # "A sign reading STOP", but also "a wooden sliding door".
            if following and not _is_adjective(before):
                return None
            head = position if following else head
        else:
            head = position
        if head == position and head in commas:
            if word in _KNOWN_NOUNS:
                break
            if not _is_adjective(word):
                return None
    if head is None:
        return None
    if number == "many" and not _is_plural(words[head]):
        # "Two dogs sit by the door": the verb has no ending.
        return next(plurals(head), None)
    after = words[head + 1] if head + 1 < len(words) else "of"
    if number is None and head and _is_plural(words[head]) and after in _PREPOSITIONS - {"of"}:
        # "The dog barks at" ends like "the red boats on".
        return head if _is_adjective(words[head - 1]) else None
    return head


def _is_plural(word: str) -> bool:
    return word in _SINGULAR or word in ("sheep", "deer", "fish") or bool(re.search(r"[^sui]s$", word))


def _is_adjective(word: str) -> bool:
    return word in _NO_NOUNS or word in _DETERMINERS or bool(_ADJECTIVE.search(word) and word not in _NO_PARTICIPLES)


def _ends_surely(words: list[str], position: int) -> bool:
    return position >= len(words) or words[position] in PHRASE_ENDS


def _is_verb(word: str, following: str, singular: bool) -> bool:
    if word in _NO_PARTICIPLES or (following and following not in _AFTER_VERBS):
        return False
    participle = r"(?:ing|ed)$" if following else r"ing$"
    return bool(re.search(participle, word) or (singular and re.search(r"[^suia]s$", word)))
