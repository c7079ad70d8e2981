# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Spatial words of referring expressions ("the cup left of the plate", "biggest dog"), and what they say of boxes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .boxes import box_areas


@dataclass(frozen=True, slots=True)
class ReferringPhrase:
    """One thing that an expression names, and where it says that it is.

    Attributes:
        text: The words without the spatial ones, or "" where no word tells what it is ("the leftmost one").
        positions: Where it is among its like, names of `POSITIONS`, e.g. `("top", "left")`.
        relations: Where it is seen from another thing: a name of `RELATIONS` and that thing.
    """

    text: str
    positions: tuple[str, ...] = ()
    relations: tuple[tuple[str, ReferringPhrase], ...] = ()

    @property
    def is_spatial(self) -> bool:
        """Whether a spatial word was understood."""
        return bool(self.positions or self.relations)

    def texts(self) -> list[str]:
        """Texts of this thing and of those that it is seen from, without the empty ones."""
        own = [self.text] if self.text else []
        return own + [text for _, other in self.relations for text in other.texts()]


def _centres(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2


def _less(values: np.ndarray) -> np.ndarray:
    return (values[:, None] < values[None, :]).astype(np.float64)


def _left(boxes: np.ndarray, width: float) -> np.ndarray:
    return _less(_centres(boxes)[0])


def _right(boxes: np.ndarray, width: float) -> np.ndarray:
    return _left(boxes, width).T


def _above(boxes: np.ndarray, width: float) -> np.ndarray:
    return _less(_centres(boxes)[1])


def _below(boxes: np.ndarray, width: float) -> np.ndarray:
    return _above(boxes, width).T


def _smaller(boxes: np.ndarray, width: float) -> np.ndarray:
    return _less(box_areas(boxes))


def _bigger(boxes: np.ndarray, width: float) -> np.ndarray:
    return _smaller(boxes, width).T


def _middle(boxes: np.ndarray, width: float) -> np.ndarray:
    return _less(np.abs(_centres(boxes)[0] - width / 2))


def _within(boxes: np.ndarray, width: float) -> np.ndarray:
    corner = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    sides = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corner
    return np.prod(np.maximum(sides, 0), axis=-1) / box_areas(boxes)[:, None]


_Geometry = Callable[[np.ndarray, float], np.ndarray]

RELATIONS: dict[str, _Geometry] = {
    "left of": _left,
    "right of": _right,
    "above": _above,
    "behind": _above,
    "below": _below,
    "in front of": _below,
    "bigger than": _bigger,
    "smaller than": _smaller,
    "inside": _within,
}
"""Relations: boxes (N, 4) and the image's width give the probability (N, N) that box i stands so to box j."""

POSITIONS: dict[str, _Geometry] = {
    "left": _left,
    "right": _right,
    "top": _above,
    "back": _above,
    "bottom": _below,
    "front": _below,
    "middle": _middle,
    "biggest": _bigger,
    "smallest": _smaller,
}
"""Positions: boxes (N, 4) and the image's width give the probability (N, N) that box i is more so than box j."""

# Words for the picture itself and for parts of it: "left of the picture" is a place, no relation to a thing.
_PICTURE = r"(?:image|picture|photo|photograph|pic|frame|scene|shot|screen)"
_OF_PICTURE = rf"(?: (?:of|in|on) (?:the |this )?{_PICTURE}\b)"
_HAND = r"hand (?:side|half|end|edge|corner)\b"
_PART = rf"(?:side|half|part|section|region|portion|end|edge|corner|most|{_HAND})"
_VIEWER = r"(?:camera|us|me|you|viewer|photographer|front)"
_OF_ALL = r"(?: of (?:the |them )?(?:two|three|four|five|all|bunch|group|pair)\b)?"
_BODY = (
    r"(?:hands?|arms?|legs?|foot|feet|eyes?|ears?|shoulders?|knees?|elbows?|wrists?|wings?|paws?|shoes?|turn|handed)"
)
_AT = r"(?:(?:on|to|at|in|from|towards?) )?(?:the )?"
_ADJECTIVE = r"(?<![a-z] )(?:the )?(?:very )?|(?<=the )(?:very )?"
# What may follow an adjective: a word that is none of those that end a noun phrase.
_NOUN_NEXT = (
    r"(?= (?!(?:of|in|on|at|to|with|and|or|but|is|that|who|which|has|from|by|near|next|wearing|holding|hat)\b)[a-z])"
)

_SKIP, _RELATION, _POSITION = "skip", "relation", "position"

# The first that matches at a word decides. Words that are skipped stay in the text of their thing.
_PATTERNS: tuple[tuple[str, str, str], ...] = (
    # Counted places, and what is no place at all.
    (
        _SKIP,
        "",
        rf"{_AT}(?:first|second|third|fourth|fifth|sixth|1st|2nd|3rd|[4-9]th|one|two|three|four|next) (?:[a-z]+ ){{0,2}}?"
        r"(?:from|to|on) (?:the )?(?:far )?(?:left|right|top|bottom|front|back)",
    ),
    *(
        # "right hand man", but "right hand holding a cup".
        (
            _POSITION,
            side,
            rf"(?:{_ADJECTIVE}){side} (?!{_HAND})hand{_NOUN_NEXT}(?! (?:up|down|out|raised|[a-z]+ing)\b)",
        )
        for side in ("left", "right")
    ),
    (_SKIP, "", rf"{_AT}(?:left|right) (?!{_HAND}){_BODY}"),
    (_SKIP, "", r"left (?:over|behind|alone|open)|leftovers?|all right"),
    (
        _SKIP,
        "",
        r"(?:facing|looking|turned|turning|pointing|heading|going|leaning|moving) (?:to )?(?:the )?(?:left|right)",
    ),
    (_SKIP, "", r"(?:his|her|their|its|your) (?:left|right)"),
    (_SKIP, "", rf"(?:the )?(?:closest|closer|nearest|nearer) to(?! (?:the )?{_VIEWER}\b)"),
    (_SKIP, "", rf"{_AT}(?:middle|center|centre) of(?! (?:the )?{_PICTURE}\b)"),
    (
        _SKIP,
        "",
        rf"{_AT}(?:bottom|top|back|front|left|right) (?:hand )?(?:half|part|section|portion|end|edge) of(?! (?:the )?{_PICTURE}\b)",
    ),
    # Sizes, and distances from the camera, which ReCLIP takes for sizes.
    (_POSITION, "left", r"(?:to )?(?:the )?(?:furthest|farthest) (?:to )?(?:the )?left"),
    (_POSITION, "right", r"(?:to )?(?:the )?(?:furthest|farthest) (?:to )?(?:the )?right"),
    (_RELATION, "bigger than", r"(?:bigger|larger|taller) than"),
    (_RELATION, "smaller than", r"(?:smaller|tinier|shorter) than"),
    (
        _POSITION,
        "biggest",
        rf"(?:biggest|bigger|largest|larger){_OF_ALL}|(?:closest|closer|nearest|nearer)(?: to (?:the )?{_VIEWER}\b)?",
    ),
    (
        _POSITION,
        "smallest",
        rf"(?:smallest|smaller|tiniest|tinier){_OF_ALL}|(?:furthest|farthest|further|farther)"
        rf"(?: (?:away|back))?(?: from (?:the )?{_VIEWER}\b)?",
    ),
    # Left and right.
    *(
        rule
        for side, names in (("left", "left|west|western"), ("right", "right|east|eastern"))
        for rule in (
            (_POSITION, side, rf"(?:{side}most|{side} most|most {side})(?: {_PART})?(?:{_OF_PICTURE}|{_OF_ALL})"),
            (_POSITION, side, rf"{_AT}(?:far |very |extreme |our )?(?:{names})(?: {_PART})?{_OF_PICTURE}"),
            (
                _RELATION,
                f"{side} of",
                rf"{_AT}(?:far |immediate |direct )?(?:{names})(?: side| hand side)? (?:of|from)",
            ),
            (
                _SKIP,
                "",
                r"right (?:by|next|behind|in|at|under|above|below|beside|near|up|over|before|after|there|here|now)",
            ),
            (_POSITION, side, rf"{_AT}(?:far |very |extreme |our )?(?:{names})(?: {_PART})?"),
        )
    ),
    # Above and below.
    (_RELATION, "above", r"on top of|(?:directly |just )?above|atop|north of"),
    (_RELATION, "behind", r"(?:directly |just )?behind|in back of"),
    (_RELATION, "in front of", rf"in (?:the )?front of(?! (?:the )?{_VIEWER}\b)"),
    (_RELATION, "below", r"(?:directly |just )?(?:below|underneath|under|beneath)|south of"),
    (_RELATION, "inside", r"inside of|inside|within|contained in"),
    (
        _POSITION,
        "top",
        rf"(?:topmost|top most|uppermost|highest){_OF_ALL}|upper|{_AT}(?:very )?top(?= left| right)|^top$",
    ),
    (_POSITION, "top", rf"(?:on|at|in|to) (?:the )?(?:very )?top(?: {_PART})?(?:{_OF_PICTURE}|(?! of))"),
    (_POSITION, "top", rf"top(?: {_PART})?{_OF_PICTURE}|(?:{_ADJECTIVE})top{_NOUN_NEXT}"),
    (
        _POSITION,
        "bottom",
        rf"(?:bottommost|bottom most|lowest){_OF_ALL}|lower|{_AT}(?:very )?bottom(?= left| right)|bottom$",
    ),
    (_POSITION, "bottom", rf"(?:on|at|in|to) (?:the )?(?:very )?bottom(?: {_PART})?(?:{_OF_PICTURE}|(?! of))"),
    (_POSITION, "bottom", rf"bottom(?: {_PART})?{_OF_PICTURE}|(?:{_ADJECTIVE})bottom{_NOUN_NEXT}"),
    (_POSITION, "back", rf"(?:in|at) (?:the )?(?:very |far )?(?:back|rear)(?:ground)?(?:{_OF_PICTURE}|(?! of))"),
    (_POSITION, "back", r"in (?:the )?background"),
    (
        _POSITION,
        "front",
        rf"(?:in|at) (?:the )?(?:very |far )?front(?:{_OF_PICTURE}| of (?:the )?{_VIEWER}\b|(?! of))",
    ),
    (_POSITION, "front", rf"in (?:the )?foreground|frontmost|(?:{_ADJECTIVE})front{_NOUN_NEXT}"),
    (_POSITION, "middle", rf"{_AT}(?:very )?(?:middle|center|centre|central)(?: most)?{_OF_PICTURE}?"),
)
_COMPILED = tuple((kind, name, re.compile(rf"(?:{pattern})(?!\w)")) for kind, name, pattern in _PATTERNS)
# A relation with nothing behind it is a position: "the one above".
_ALONE = {
    "left of": "left",
    "right of": "right",
    "above": "top",
    "behind": "back",
    "below": "bottom",
    "in front of": "front",
    "bigger than": "biggest",
    "smaller than": "smallest",
}

_NEGATIONS = frozenset(
    ["not", "no", "neither", "nor", "never", "without", "isn't", "aren't", "doesn't", "don't", "wasn't"]
)
_CLAUSE = frozenset([",", ";", ".", "who", "that", "which", "is", "are", "was", "were", "has", "nor", "but", "not"])
_LEADS_CLAUSE = re.compile(r"(?:not|is|are|was|were|has|have|with|wearing|holding|in|on|[a-z]+ing)")
_LEADING = frozenset(["and", "or", "but", "of", "who", "that", "which", "is", "are", "was", ",", ";", "."])
_TRAILING = _LEADING | frozenset(["the", "a", "an", "to", "on", "at", "in", "of", "from", "far", "very"])
_NO_THING = frozenset(["the", "a", "an", "one", "ones", "it", "that", "this", "thing", "object", ""])
# Whether the thing of a relation follows it.
_FOLLOWS = re.compile(r" (?!(?:and|or|but|is|who|that|with|in|on)\b)[a-z0-9]")
# Words whose noun has an adjective of its own.
_BINDS = re.compile(r"(?:with|in|on|of|by|near|outside|beside|to|from|at|[a-z]{2,}ing)(?![a-z])")


@dataclass(frozen=True, slots=True)
class _Element:
    kind: str
    name: str
    words: str


def parse_expression(text: str) -> ReferringPhrase:
    """Takes the spatial words out of a referring expression, by rules, the same on every machine.

    Understood are

    * positions among the like: left, leftmost, on the right side, right-hand, far left, top, bottom, upper, lower,
      middle, centre, in the back, in the background, in front; biggest, largest, closest (to the camera) and their
      comparatives, which ReCLIP takes for size; smallest, furthest;
    * relations to another thing: left of, to the right of, above, on top of, below, under, underneath, beneath,
      behind, in front of, inside, within, bigger than, smaller than. The other thing reaches to the end of the clause
      and may have positions and relations of its own;
    * "of the picture", "side", "half" and the like, as no things of their own.

    Left in the text, without effect on the boxes, are next to, near, beside, in, on, over, between (off in ReCLIP's
    command too), counted places ("second from left"), distances from things ("closest to the cake"), what is denied
    ("not under the tree"), a body's left and right ("left hand", "his left", "facing right"), adjectives of other
    nouns ("person holding the bigger umbrella"), parts ("middle of the street") and words that look spatial only ("a
    white top", "right next to").

    The published figures rest on spaCy's dependency parse (ReCLIP, Subramanian et al. 2022; methods/parse.py of
    allenai/reclip), which attaches some words otherwise and keeps them in the noun phrase; so figures of the two
    parsers differ. Words that stand for relations and positions are ReCLIP's; added are bottom, upper, lower, middle,
    back and their synonyms.

    Args:
        text: An expression in English, in any case.

    Returns:
        What it names, with positions and relations.

    Example:
        >>> phrase = parse_expression("The red cup to the left of the biggest plate")
        >>> phrase.text, phrase.relations[0][0], phrase.relations[0][1].positions
        ('red cup', 'left of', ('biggest',))
        >>> parse_expression("bottom right pizza").positions
        ('bottom', 'right')
        >>> parse_expression("woman in a white top next to the car").is_spatial
        False
    """
    phrase, _ = _read(_elements(text), 0, inside=False)
    return phrase


def _elements(text: str) -> list[_Element]:
    text = text.lower().replace("’", "'")
    # Written so, no hand is meant: "left-hand man", "the lefthand one". And "L side".
    text = re.sub(r"\b(left|right)-?hand\b(?:[- ]side\b)?", r"\1 side", text)
    text = re.sub(r"\b[lr](?= side\b)", lambda letter: {"l": "left", "r": "right"}[letter[0]], text)
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?|[,;.]", text)
    line = " ".join(words)
    elements, place = [], 0
    while place < len(line):
        for kind, name, pattern in _COMPILED:
            if match := pattern.match(line, place):
                break
        else:
            kind, name, match = "word", "", re.compile(r"\S+").match(line, place)
        found, rest = match[0], line[match.end() :]
        if kind == _RELATION and not _FOLLOWS.match(rest):
            kind, name = (_POSITION, _ALONE[name]) if name in _ALONE else (_SKIP, "")
        if kind in (_RELATION, _POSITION) and _is_denied(elements):
            kind = _SKIP
        if kind == _POSITION and _is_of_another(elements, found, rest):
            kind = _SKIP
        parts = found.split() if kind in ("word", _SKIP) else [found]
        elements += [_Element("word" if kind == _SKIP else kind, name, part) for part in parts]
        place = match.end()
        while line[place : place + 1] == " ":
            place += 1
    return elements


def _is_denied(before: Sequence[_Element]) -> bool:
    for element in reversed(before[-3:]):
        if element.words in _NEGATIONS:
            return True
        if element.kind != "word" or element.words in (",", ";", ".", "but", "and"):
            return False
    return False


def _is_of_another(before: Sequence[_Element], found: str, rest: str) -> bool:
    """Whether a position is the adjective of another noun, as in "person holding the bigger umbrella"."""
    if _BINDS.match(found) or not re.match(_NOUN_NEXT, rest) or not before or before[-1].kind != "word":
        return False
    words = [element.words for element in before if element.words not in ("the", "a", "very")]
    return bool(words) and _BINDS.fullmatch(words[-1]) is not None


def _read(elements: Sequence[_Element], start: int, inside: bool) -> tuple[ReferringPhrase, int]:
    """The thing from an element on, and where it ends; a thing that is another's reference ends with its clause."""
    words, positions, relations = [], [], []
    place = start
    while place < len(elements):
        element = elements[place]
        if inside and words and _ends_clause(elements, place):
            break
        place += 1
        if element.kind == _POSITION:
            positions.append(element.name)
        elif element.kind == _RELATION:
            other, place = _read(elements, place, inside=True)
            relations.append((element.name, other))
        else:
            words.append(element.words)
    return ReferringPhrase(_thing(words), tuple(dict.fromkeys(positions)), tuple(relations)), place


def _ends_clause(elements: Sequence[_Element], place: int) -> bool:
    element = elements[place]
    if element.kind != "word":
        return False
    if element.words in ("and", "or"):
        following = elements[place + 1] if place + 1 < len(elements) else None
        return following is not None and (
            following.kind != "word" or _LEADS_CLAUSE.fullmatch(following.words) is not None
        )
    return element.words in _CLAUSE


def _thing(words: Sequence[str]) -> str:
    words = list(words)
    while words and words[0] in _LEADING:
        words.pop(0)
    while words and words[-1] in _TRAILING:
        words.pop()
    if all(word in _NO_THING for word in words):
        return ""
    if words[0] in ("the", "a", "an"):
        words.pop(0)
    return " ".join(words).replace(" ,", ",").replace(" ;", ";").replace(" .", ".")


def spatial_probabilities(
    phrase: ReferringPhrase, boxes: np.ndarray, width: float, probability: Callable[[str], np.ndarray]
) -> np.ndarray:
    """How probable each box is by an expression's things, positions and relations.

    ReCLIP's rule (methods/parse.py and interpreter.py of allenai/reclip): with p the probability of the boxes by the
    text of the thing, a relation to another thing with probability q multiplies p_i by the sum over j of q_j R(i, j),
    and a position by the sum over j of p_j P(i, j); after each, p is divided by its sum. Left, right, above and below
    compare centres; bigger and smaller areas; inside is the share of box i within box j; behind counts as above and in
    front of as below, as further things stand higher in a photo; middle, our own, is nearer to the upright line
    through the middle of the image. A factor that leaves no box any probability is left out.

    Args:
        phrase: By `parse_expression`.
        boxes: xyxy in pixels, (N, 4).
        width: Of the image, in pixels.
        probability: Gives the probability (N,) of the boxes by a text, with sum 1.

    Returns:
        Probability of each box, (N,), float64, with sum 1.

    Example:
        >>> boxes = np.array([[0, 0, 10, 10], [50, 0, 60, 10], [90, 0, 99, 10]])
        >>> even = lambda text: np.full(3, 1 / 3)
        >>> spatial_probabilities(parse_expression("right cup"), boxes, 100, even).round(3).tolist()
        [0.0, 0.333, 0.667]
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if phrase.text:
        result = np.asarray(probability(phrase.text), dtype=np.float64)
    else:
        result = np.full(len(boxes), 1 / len(boxes))
    for name, other in phrase.relations:
        others = spatial_probabilities(other, boxes, width, probability)
        result = _multiplied(result, RELATIONS[name](boxes, width) @ others)
    for name in phrase.positions:
        result = _multiplied(result, POSITIONS[name](boxes, width) @ result)
    return result


def _multiplied(probabilities: np.ndarray, factor: np.ndarray) -> np.ndarray:
    product = probabilities * factor
    return product / product.sum() if product.sum() > 0 else probabilities
