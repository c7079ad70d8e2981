# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checks of what models write: length, language, repetition, markup, and talk about anything but the object."""

from __future__ import annotations

import re
from functools import cache

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from .asking import AnswerRefused
from .config import TextSettings


# A sign of a script that puts no spaces between words counts as a word.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+(?:['’.-][^\W_]+)*")
_OTHER_SCRIPT = re.compile(r"[\u0370-\u1dff\u2e80-\ud7ff\uf900-\ufdff\ufe70-\ufeff]")
_LETTER = re.compile(r"[^\W\d_]")

_MARKUP = (
    (re.compile(r"`{3}|`[^`]+`"), "code marks"),
    (re.compile(r"\*\*|(?:^|\s)__?\w[^_]*_(?:\s|$)"), "marks of bold or italic text"),
    (re.compile(r"^\s{0,3}#{1,6}\s", re.MULTILINE), "a heading"),
    (re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s", re.MULTILINE), "a list"),
    (re.compile(r"</?[A-Za-z|][^<>]{0,200}>|&[a-z]{2,6};"), "tags"),
    (re.compile(r"<\|"), "marks of a chat"),
    (re.compile(r"https?://|\]\("), "a link"),
    (re.compile(r"[{}]|\\[a-z]+"), "code or JSON"),
    (re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ufffd]"), "characters that are no text"),
)
# Whatever one of these finds holds one of those; looking for them first takes a tenth of the time.
_MARKUP_SIGNS = re.compile(r"[`*_#<&{}\\\]\x00-\x08\x0b-\x1f\x7f\ufffd]|://|^\s*(?:[-•]|\d{1,2}[.)])", re.MULTILINE)
# Not in quotation marks either.
_NEVER = tuple(pattern for pattern, name in _MARKUP if name in ("characters that are no text", "marks of a chat"))
# About the task instead of the object; narrow, for a real box may be red and a real person wear a mask.
_ABOUT_THE_TASK = re.compile(
    r"\bas an AI\b|\b(?:AI|language) (?:assistant|model)\b"
    r"|\bI(?:'m| am) (?:sorry|unable|not able)\b|\bI (?:cannot|can't|can not|apologi[sz]e|do not see|don't see)\b"
    r"|^(?:sure|certainly|of course|okay)[,!.:]|^here(?: is|'s| are) (?:\w+ ){0,4}(?:descriptions?|captions?|text|copies)\b"
    r"|\b(?:both|two|these|given|provided|object|context) (?:captions|descriptions)\b|\b(?:object|context) (?:caption|notes)\b"
    r"|\b(?:the|both|first|second) (?:captions?|notes|descriptions?) (?:says?|states?|mentions?|describes?|suggests?|indicates?)\b"
    r"|\b(?:based on|according to|from) the (?:captions?|notes|descriptions?)\b|\bas follows\b"
    r"|\b(?:provided|given|supplied|attached) (?:pictures?|images?|photos?|crops?|views?|text)\b"
    r"|\bbounding box|\bsegmentation mask|\bmasked (?:region|area|object|image|crop|part)\b|\bcropped (?:image|photo|picture)\b"
    r"|\b(?:outlined|highlighted|circled) in red\b"
    r"|\b(?:outlined|highlighted|circled|marked) (?:with|by) (?:an? |the )?(?:\w+ )?red (?:outline|contour|box|rectangle|line)\b"
    r"|\bgr[ea]yed[ -]out\b|\b(?:rest|background|surroundings) (?:\w+ ){0,5}painted over\b"
    r"|\[[a-z ]*\b(?:object|descriptions?|captions?|text|image|insert)\b[a-z ]*\]|\b(?-i:N/A)\b"
    r"|\bred (?:outline|contour) (?:around|of|marks|shows)\b"
    r"|\b(?:in|inside|within) the red (?:box|outline|rectangle|contour)\b"
    r"|^(?:description|caption|answer|text|rewrite)\s*:",
    re.IGNORECASE,
)
# Whatever it finds holds one of these or begins with one; looking for them first takes a tenth of the time.
_TASK_PARTS = (
    "as an ai", "assistant", "model", "i'm ", "i am ", "i can", "i apolog", "i do", "caption", "description", "note", "bounding box",
    "segmentation mask", "masked", "cropped", "in red", "the red ", "red outline", "red box", "red rectangle", "red line",
    "red contour", "as follows", "provided", "given", "supplied", "attached", "greyed", "grayed", "painted over", "[", "n/a",
)  # fmt: skip
_TASK_BEGINNINGS = (
    "sure",
    "certainly",
    "of course",
    "okay",
    "here",
    "description",
    "caption",
    "answer",
    "text",
    "rewrite",
)
_UNFINISHED = re.compile(r"(?:[,;:(\[–—-]|\b(?:a|an|the|and|or|of|with|in|on|at|to|from|its|is|are))$", re.IGNORECASE)
# Numbers may come again, on a scoreboard.
_SAME_AGAIN = re.compile(r"\b([^\W\d]\w*)(?:\W+\1\b){3}|([^\W\d])\2{5}|(.)\3{11}", re.IGNORECASE)

# What is written on things: anything may stand there. Letters around it, so that no whole answer hides in quotation marks.
_LEAST_UNQUOTED = 5
_QUOTATION_MARKS = "\"'‘“«"
_QUOTED = re.compile(
    r"\"[^\"]{1,120}\"|“[^”]{1,120}”|«[^»]{1,120}»|(?<!\w)['‘](?!\s)[^'‘’]{0,60}(?:(?<=\w)['’]\w[^'‘’]{0,60})?(?<!\s)['’](?!\w)"
)

_SEQUENCE = 4
# Of 97 languages; a text full of foreign names keeps more than this share of the likeliest one's probability.
_LEAST_LIKELIHOOD = 0.05
_MOST_OF_OTHER_SCRIPTS = 0.1
_LATIN = frozenset(
    "af az bs ca cs cy da de en eo es et eu fi fr ga gl hr ht hu id is it la lb lt lv ms mt nb nl nn no pl pt ro sk sl sq sv "
    "sw tl tr vi".split()
)


def words_of(text: str) -> list[str]:
    """The words of a text without punctuation; in scripts without spaces, its characters.

    Example:
        >>> words_of("A well-worn, 2.5 m long dog's lead.")
        ['A', 'well-worn', '2.5', 'm', 'long', "dog's", 'lead']
    """
    return _WORD.findall(text)


def clean_text(text: str) -> str:
    """The text as one paragraph, without quotation marks around the whole of it.

    Example:
        >>> clean_text(' "A red kite\\n over the sea." ')
        'A red kite over the sea.'
    """
    text = " ".join(text.split())
    for opening, closing in ('""', "“”", "''", "«»"):
        inner = text[1:-1]
        if len(text) > 2 and text[0] == opening and text[-1] == closing and not {opening, closing} & set(inner):
            return inner.strip()
    return text


def check_text(text: str, settings: TextSettings) -> None:
    """Checks a long description.

    Args:
        text: The description.
        settings: What it must be.

    Raises:
        AnswerRefused: With the reason
            * `"markup"`: there is a heading, list, tag, link, code or control character in it;
            * `"about_the_task"`: it speaks of captions, outlines, crops or of the model instead of the object (in English);
            * `"too_short"`, `"too_long"`: not of `min_words` to `max_words` words;
            * `"repetition"`: more than `max_repetition` of its 4-word sequences came before, or a word comes four times running;
            * `"wrong_language"`: not in `language`;
            * `"unfinished"`: it ends in the middle of a sentence.

    Example:
        >>> check_text("A small black dog with a white chest, standing in a corner by the door.", TextSettings())
        >>> try:
        ...     check_text("A dog.", TextSettings())
        ... except AnswerRefused as refused:
        ...     print(refused.reason, refused.message)
        too_short The text has 2 words; write 12 to 300.
    """
    check_form(text)
    words = words_of(text)
    if not settings.min_words <= len(words) <= settings.max_words:
        reason = "too_short" if len(words) < settings.min_words else "too_long"
        accepted = f"{settings.min_words} to {settings.max_words}"
        raise AnswerRefused(reason, f"The text has {len(words)} words; write {accepted}.")
    _check_repetition(text, words, settings.max_repetition)
    if settings.language is not None:
        _check_language(text, settings.language)
    unfinished = _UNFINISHED.search(text.rstrip())
    if unfinished:
        raise AnswerRefused(
            "unfinished", f"The text ends with {unfinished[0]!r}; write it to the end of its sentence."
        )


def check_form(text: str) -> None:
    """Checks that a text of any length is plain and about the object: the first two reasons of `check_text`.

    What stands in quotation marks is written on things and may be anything, unless it is the whole text.

    Raises:
        AnswerRefused: With the reason `"markup"` or `"about_the_task"`.

    Example:
        >>> check_form("A shirt with the words “I'm sorry”, next to a screen that shows “https://example.com”.")
    """
    whole = text
    if any(mark in text for mark in _QUOTATION_MARKS):
        unquoted = _QUOTED.sub("''", text)
        text = unquoted if len(_LETTER.findall(unquoted)) > _LEAST_UNQUOTED else text
    for pattern, name in _MARKUP if _MARKUP_SIGNS.search(whole) else ():
        found = pattern.search(whole if pattern in _NEVER else text)
        if found:
            raise AnswerRefused("markup", f"The text holds {name}, {found[0].strip()!r:.60}; write plain sentences.")
    text = text.replace("’", "'")
    lower = text.casefold()
    suspicious = lower.startswith(_TASK_BEGINNINGS) or any(part in lower for part in _TASK_PARTS)
    found = _ABOUT_THE_TASK.search(text) if suspicious else None
    if found:
        raise AnswerRefused(
            "about_the_task",
            f"The text says {found[0].strip()!r:.60}; describe the object alone, not the task, the notes or what was drawn.",
        )


def _check_repetition(text: str, words: list[str], most: float) -> None:
    again = _SAME_AGAIN.search(text)
    if again:
        raise AnswerRefused("repetition", f"The text repeats itself, {again[0]!r:.60}; say everything once.")
    lower = [word.casefold() for word in words]
    sequences = list(zip(*(lower[start:] for start in range(_SEQUENCE))))
    if not sequences:
        return
    share = 1 - len(set(sequences)) / len(sequences)
    if share > most:
        raise AnswerRefused(
            "repetition",
            f"{share:.0%} of the text's {_SEQUENCE}-word sequences came before in it, accepted are {most:.0%}; "
            f"say everything once.",
        )


@cache
def _identifier() -> LanguageIdentifier:
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def languages() -> frozenset[str]:
    """ISO 639-1 codes of the languages that can be told."""
    return frozenset(_identifier().labels)


def _check_language(text: str, language: str) -> None:
    identifier = _identifier()
    found, likelihood = identifier.classify(text)
    if found != language and dict(identifier.rank(text))[language] < _LEAST_LIKELIHOOD * likelihood:
        raise AnswerRefused("wrong_language", f"The text seems to be in {found!r}; write it in {language!r}.")
    if language in _LATIN:
        foreign = len(_OTHER_SCRIPT.findall(text))
        if foreign > _MOST_OF_OTHER_SCRIPTS * len(_LETTER.findall(text)):
            raise AnswerRefused(
                "wrong_language",
                f"{foreign} letters of the text are of another script; write all of it in {language!r}.",
            )
