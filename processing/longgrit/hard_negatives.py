# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Hard negatives: copies of the long description with one attribute changed and the object kept, as in FG-CLIP."""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import Any

from .answers import whole_items
from .asking import AnswerRefused, Asker
from .config import LongGritSettings
from .kept_nouns import find_kept_nouns, plain_words
from .prompts import Prompt
from .records import RegionWork, Rejected
from .text_checks import check_form, clean_text


# Least and share of the words of a description.
_MOST_CHANGED = (3, 0.2)
_LENGTH_SLACK = (3, 0.2)
# A cap for long descriptions: one attribute takes no more words.
_MOST_CHANGED_WORDS = 12

# Words by which the object's noun may move: further, and it has changed places with another noun.
_MOST_MOVED = 3

# Changed alone, they change no attribute.
_EMPTY_WORDS = frozenset("a an the and is are was were be been its it this that there also very quite just".split())
_DENIALS = frozenset("not no never isn't aren't wasn't doesn't don't nor".split())
_GIVEAWAYS = ("instead of", "rather than", "no longer", "not the original", "unlike the original", "was changed")
# Words of a line may stand for each other without making a description false; so may shades of a colour.
_SYNONYMS = """
grey gray silver silvery charcoal|blue navy azure cobalt|red scarlet crimson ruby maroon burgundy|purple violet|turquoise teal cyan aqua
beige tan cream khaki|white ivory|yellow golden gold blond blonde|green emerald olive|black dark ebony|brown chestnut|pink magenta
colour color|colourful colorful|coloured colored|centre center middle|large big huge giant enormous|small little tiny
photo picture image photograph|couch sofa settee|bicycle bike|motorcycle motorbike|airplane aeroplane plane|car automobile
tv television|woman lady|man guy gentleman|child kid|people persons|mug cup|bag purse handbag|hat cap|trousers pants|jeans denims
sidewalk pavement|curb kerb|street road|stopped parked halted|cloudy overcast|sand beach|sea ocean|field meadow pasture|grass lawn
rests lies lays|holds contains carries|looks gazes stares|messy cluttered untidy|tidy neat|cracked broken|old elderly aged
round circular|thin slim slender|tall high|empty vacant|closed shut|stone rock|metal metallic|fluffy furry|trash rubbish garbage
advertising advertisements ads adverts|beside alongside adjacent by|near nearby close|under beneath below underneath|above over
on upon atop|in inside within|while whilst|windowsill sill|filled full|displays shows|fridge refrigerator|phone smartphone
"""
_IRREGULAR_VERBS = {
    "sat": "sit",
    "stood": "stand",
    "lay": "lie",
    "held": "hold",
    "worn": "wear",
    "wore": "wear",
    "hung": "hang",
}
# Shown to the model again.
_MOST_SHOWN = 10


class HardNegatives:
    """Writes `work.hard_negatives`: up to `count` rewrites of `work.text`, each checked by `RewriteCheck`.

    As long as there are fewer good ones than `count`, the model is told what was wrong with the others and asked for the
    missing ones, up to `max_attempts` times or until nothing new comes. The good ones of all answers are kept, also those that
    are whole in an answer that was cut off; after such a one, fewer are asked for at a time.

    Args:
        asker: Asks the model.
        settings: The run; its stage `hard_negatives` says `count` and `min_count`.

    Example:
        >>> import asyncio
        >>> from processing_pixclip.longgrit import (
        ...     Fuse, ImageWork, RegionWork, RuleEngine, load_prompt, open_image_store, open_source, read_settings
        ... )
        >>> settings = read_settings("examples/configs/longgrit_coco_regions.yaml")
        >>> image = next(open_source(settings.source).read(0, 1))
        >>> store = open_image_store(settings.source)
        >>> work = RegionWork(ImageWork(image, lambda: store.read(image.location)), image.regions[0])
        >>> engines = {"rules": RuleEngine(settings)}
        >>> prompts = {name: load_prompt(name) for name in ("fuse", "hard_negatives")}
        >>> work.object_text, work.context_text = "A light grey and green potted plant.", "It is in the centre."
        >>> asker = Asker(settings, engines, prompts)
        >>> asyncio.run(Fuse(asker, settings)(work))
        >>> asyncio.run(HardNegatives(asker, settings)(work))
        >>> len(work.hard_negatives), work.text in work.hard_negatives
        (6, False)
    """

    name = "hard_negatives"

    def __init__(self, asker: Asker, settings: LongGritSettings):
        stage = settings.stage(self.name)
        self.asker, self.count, self.min_count = asker, stage.count, stage.min_count
        self.english = settings.texts.language in ("en", None)
        # The built-in annotator has no more to say when it is asked again.
        self.asks_for_more = settings.engine_of(self.name) != "rules"

    async def __call__(self, work: RegionWork) -> None:
        """Rewrites a region's description.

        Raises:
            Rejected: If fewer than `min_count` rewrites are good (`"too_few_negatives"`), no answer was well formed, or none came.
        """
        check = RewriteCheck(work, self.english)
        variables = {
            "object_text": work.object_text,
            "context_text": work.context_text,
            "text": work.text,
            "count": self.count,
            "noun": ", ".join(noun.word for noun in check.nouns) or None,
        }
        answers = _Answers(check, self.count, self.asks_for_more)
        try:
            await self.asker.ask(self.name, work, variables, answers.judge, answers.judge_cut)
        except Rejected as error:
            # What was good in an earlier answer stays good; but a failed request may be made up for by a later run.
            if error.reason == "request_failed" or not answers.complaints_by_answer:
                raise
        if len(check.kept) < self.min_count:
            complaints = "\n".join(sum(answers.complaints_by_answer, []))
            raise Rejected(
                self.name,
                "too_few_negatives",
                f"{len(check.kept)} rewrites are good, at least {self.min_count} are wanted.\n{complaints:.3000}",
            )
        work.hard_negatives = list(check.kept)


class RewriteCheck:
    """Judges rewrites of a description and keeps the good ones.

    Args:
        work: The region with its `text`.
        english: Whether the text may be English, see `find_kept_nouns`.

    Attributes:
        nouns: What each rewrite must keep, see `find_kept_nouns`.
        kept: The good ones so far.

    Example:
        >>> from .records import ImageWork, SourceImage, SourceRegion
        >>> image = ImageWork(SourceImage("1", "1.jpg", {"path": "1.jpg"}, width=64, height=48), bytes)
        >>> work = RegionWork(image, SourceRegion("1#0", (0, 0, 9, 9), category="dog"), text="A black dog by a white door.")
        >>> check = RewriteCheck(work)
        >>> check.add("A brown dog by a white door"), check.kept
        (None, ['A brown dog by a white door.'])
        >>> check.add("A black cat by a white door.")
        "the object's noun 'dog' is gone; keep the object and change an attribute"
    """

    def __init__(self, work: RegionWork, english: bool = True):
        self.text = work.text
        region = work.region
        category, phrase = (None, None) if region is None else (region.category, region.phrase)
        self.nouns = find_kept_nouns(self.text, category, phrase, work.object_text, english)
        self.kept: list[str] = []
        self._plain = plain_words(self.text)
        self._times = [len(noun.find(self._plain)) for noun in self.nouns]
        self._words = _meaning_of(self._plain)
        self._counts = Counter(self._words)
        self._known: dict[str, str] = {"".join(self._words): "the description itself"}

    def add(self, text: str) -> str | None:
        """Judges one rewrite, and keeps it if it is good, with the first letter and the end mark of the description.

        A good one
            * is plain text about the object, without a line break;
            * differs in more than spelling, hyphens, articles, word forms ("grazes", "is grazing"), the order around "and" and "or", and
              synonyms or shades such as "grey" and "silver";
            * differs from the description and all that are kept, whatever the case and punctuation;
            * holds the object's nouns as often as the description, first at the same place, give or take 3 words;
            * has as many words as the description, give or take a fifth or 3;
            * differs in at most a fifth of the words or 3, and never in more than 12;
            * does not deny ("not"), and does not name what it replaced ("instead of").

        Args:
            text: The rewrite.

        Returns:
            What is wrong with it, or `None` if it was kept.
        """
        text = _in_the_same_style(clean_text(text), self.text)
        try:
            check_form(text)
        except AnswerRefused as refused:
            return refused.message
        plain = plain_words(text)
        words = _meaning_of(plain)
        # Joined, since "sea side" is "seaside".
        key = "".join(words)
        if key in self._known:
            return f"it says the same as {self._known[key]}"
        problem = self._problem_of_noun(plain) or self._problem_of_words(text, words)
        if problem is None:
            self.kept.append(text)
            self._known[key] = f"copy {len(self.kept)} of the good ones"
        return problem

    def _problem_of_noun(self, plain: list[str]) -> str | None:
        for noun, before in zip(self.nouns, self._times):
            found = noun.find(plain)
            if len(found) < before:
                times = f"is there {len(found)} times, not {before}" if found else "is gone"
                return f"the object's noun {noun.word!r} {times}; keep the object and change an attribute"
            if abs(found[0] - noun.position) > _MOST_MOVED:
                return f"the object's noun {noun.word!r} is in another place; keep the order of the description"
        return None

    def _problem_of_words(self, text: str, words: list[str]) -> str | None:
        length = len(self._words)
        slack = max(_LENGTH_SLACK[0], int(_LENGTH_SLACK[1] * length))
        if abs(len(words) - length) > slack:
            return f"it has {len(words)} words and the description {length}; copy all but the changed words"
        most = min(_MOST_CHANGED_WORDS, max(_MOST_CHANGED[0], int(_MOST_CHANGED[1] * length)))
        added, removed = _difference(Counter(words), self._counts)
        changed = max(len(added), len(removed))
        if not changed:
            # The same words in another order: two attributes that changed places.
            changed = sum(new != old for new, old in zip(words, self._words))
        if changed > most:
            return f"{changed} words differ from the description, at most {most} may; change one attribute only"
        differing = {*added, *removed}
        if differing and differing <= _EMPTY_WORDS:
            return f"only {', '.join(sorted(differing))} differ, which changes no attribute"
        denials = _DENIALS.intersection(added) or ({*removed} if {*differing} <= _DENIALS | _EMPTY_WORDS else None)
        if denials:
            return f"it denies ({', '.join(sorted(denials))}); put another attribute in its place"
        lower, before = text.casefold(), self.text.casefold()
        giveaway = next((words for words in _GIVEAWAYS if words in lower and words not in before), None)
        return None if giveaway is None else f"it says {giveaway!r}; write it as if it were true"


class _Answers:
    """Judges a model's answers one after the other; the last one that helps nothing ends the asking."""

    def __init__(self, check: RewriteCheck, count: int, asks_for_more: bool):
        self.check, self.count, self.asks_for_more = check, count, asks_for_more
        self.complaints_by_answer: list[list[str]] = []
        # That fit into an answer, as far as is known.
        self._most = count

    def judge(self, answer: Any) -> None:
        """Judges a whole answer."""
        stuck = not self._judge(answer.negatives, []) and len(self.complaints_by_answer) > 1
        if self._missing and self.asks_for_more and not stuck:
            self._ask_for_more(self.complaints_by_answer[-1])

    def judge_cut(self, text: str, prompt: Prompt) -> None:
        """Judges what is whole in an answer that was cut off before its end."""
        whole = whole_items(text, prompt, "negatives")
        # As many as there was room for, or half of what was asked for.
        self._most = max(1, min(len(whole) or self._most // 2, self._most))
        self._judge(whole, [f"The answer was cut off before its end; write no more than {self._most} at a time."])
        if self._missing and self.asks_for_more:
            self._ask_for_more(self.complaints_by_answer[-1])

    @property
    def _missing(self) -> int:
        return self.count - len(self.check.kept)

    def _judge(self, negatives: list[Any], complaints: list[str]) -> bool:
        """Whether any was good."""
        before = len(self.check.kept)
        for number, negative in enumerate(negatives, start=1):
            if not self._missing:
                break
            problem = self.check.add(negative.text)
            if problem is not None:
                complaints.append(f"Copy {number} is not good: {problem}.")
        self.complaints_by_answer.append(complaints)
        return len(self.check.kept) > before

    def _ask_for_more(self, complaints: list[str]) -> None:
        more = min(self._missing, self._most)
        wanted = f"{more} more {'copies are' if more > 1 else 'copy is'} needed, other than all that you have written."
        raise AnswerRefused("too_few_negatives", " ".join([*complaints[:_MOST_SHOWN], wanted]))


def _meaning_of(words: list[str]) -> list[str]:
    """One word for all that mean the same, and those around "and" and "or" in one order."""
    meaning = []
    for word in words:
        if word == "to" and meaning and meaning[-1] in ("next", _meaning("close")):
            meaning[-1] = _meaning("beside" if meaning[-1] == "next" else "near")
        elif "-" in word:
            meaning += map(_meaning, filter(None, word.split("-")))
        else:
            meaning.append(_meaning(word))
    for position in range(1, len(meaning) - 1):
        if meaning[position] in ("and", "or") and meaning[position - 1] > meaning[position + 1]:
            meaning[position - 1], meaning[position + 1] = meaning[position + 1], meaning[position - 1]
    return meaning


@lru_cache(maxsize=65_536)
def _meaning(word: str) -> str:
    stem = _stem(word)
    return _SAME_MEANING.get(stem, stem)


def _stem(word: str) -> str:
    """A word without the ends of plurals and verbs; no word of a language, but the same for all forms of a word."""
    word = _IRREGULAR_VERBS.get(word, word)
    if len(word) < 4 or word in _EMPTY_WORDS | _DENIALS:
        return word
    word = re.sub(r"(?<=\w)ies?$", "y", word)
    word = re.sub(r"(?<=ss|sh|ch|.x)es$|(?<=[^sui])s$", "", word)
    word = re.sub(r"(?<=[aeiouy])(\w*?)(?:ing|ed)$", r"\1", word)
    word = re.sub(r"([^aeiouls])\1$", r"\1", word)
    return word.removesuffix("e")


_SAME_MEANING = {
    _stem(word): _stem(group.split()[0])
    for group in _SYNONYMS.strip().replace("\n", "|").split("|")
    for word in group.split()
}


def _difference(counts: Counter, others: Counter) -> tuple[list[str], list[str]]:
    """Words that are in the first text only and in the second only, as often as they are."""
    differing = sorted({word for word, _ in counts.items() ^ others.items()})
    added = [word for word in differing for _ in range(counts[word] - others[word])]
    removed = [word for word in differing for _ in range(others[word] - counts[word])]
    return added, removed


def _in_the_same_style(text: str, model: str) -> str:
    """A model must not tell a negative by its first letter or its end mark."""
    end = model[-1] if model[-1] in ".!?" else ""
    text = text.rstrip(".!? ") + end
    if model[:1].isupper() != text[:1].isupper() and len(text) > 1 and not text[1].isupper():
        text = (text[0].upper() if model[0].isupper() else text[0].lower()) + text[1:]
    return text
