# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The built-in annotator: answers every stage from annotations and pixels, without a model."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from ..region_description import PLACES, count_word, join_words, percent_word
from .config import LongGritSettings
from .engines import Answer, Request
from .records import ImageWork, RegionWork
from .rule_facts import ImageFacts
from .rule_negatives import false_rewrites
from .rule_texts import MOST_WORDS, RegionTexts
from .rule_verification import verify_caption


# Regions of an image that its long caption speaks of.
_MOST_DESCRIBED = 5
_MOST_LISTED = 6


class RuleEngine:
    """An engine that knows what the annotations say and what can be measured under the masks.

    It answers the stages as a model would: the look of a region, whether a caption fits it, its place and neighbours, one
    text of these, rewrites of it that are false, and captions of the whole image. What it writes is as true as the masks and
    categories are; pose, action and material it never mentions. Things are counted only where the source is COCO, which
    annotates every thing of its categories. It writes English. Equal requests get equal answers.

    Args:
        settings: The run.

    Raises:
        ValueError: If texts are to be in another language than English.

    Example:
        >>> settings = LongGritSettings(output_dir="out", source={"format": "folder", "path": "regions"}, engine="rules")
        >>> engine = RuleEngine(settings)
        >>> asyncio.run(engine.close())
    """

    def __init__(self, settings: LongGritSettings):
        if settings.texts.language not in ("en", None):
            raise ValueError(
                f"texts.language is {settings.texts.language!r}, but the built-in annotator (engine 'rules') writes English; "
                f"accepted are 'en' and null, or use another engine."
            )
        self._complete = settings.source.format == "coco"
        self._least_words = settings.texts.min_words
        self._most_words = min(MOST_WORDS, settings.texts.max_words)
        self._count = settings.stages.hard_negatives.count
        self._images: WeakKeyDictionary[ImageWork, _MeasuredImage] = WeakKeyDictionary()
        self._lock = threading.Lock()

    async def ask(self, request: Request) -> Answer:
        """Answers one request, in a thread.

        Args:
            request: The request. Its `work` is what is looked at, its messages are not read.

        Returns:
            The answer: JSON with the fields of the stage's own prompt, or the bare text where no schema is asked for.

        Raises:
            ValueError: If the request comes without `work`, or is of an unknown stage.
            Rejected: If the image or the region's mask cannot be read.
        """
        if request.work is None:
            raise ValueError(
                f"request {request.item_id!r} has no work; the built-in annotator needs the region itself."
            )
        fields = await asyncio.to_thread(self._fields, request.stage, request.work)
        bare = request.schema is None and "text" in fields
        text = fields["text"] if bare else json.dumps(fields, ensure_ascii=False)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return Answer(text, server="rules", time=now, finish_reason="stop")

    async def close(self) -> None:
        """Forgets what was measured."""
        self._images.clear()

    def _fields(self, stage: str, work: RegionWork) -> dict[str, Any]:
        answers = {
            "image_caption": self._image_caption,
            "object_caption": self._object_caption,
            "verify": self._verify,
            "context_caption": self._context_caption,
            "fuse": self._fuse,
            "hard_negatives": self._hard_negatives,
        }
        if stage not in answers:
            raise ValueError(f"stage is {stage!r}; the built-in annotator answers {', '.join(answers)}.")
        return answers[stage](work)

    def _measured(self, image: ImageWork) -> _MeasuredImage:
        with self._lock:
            measured = self._images.get(image)
            if measured is None:
                measured = self._images[image] = _MeasuredImage()
        return measured

    def _facts(self, image: ImageWork) -> ImageFacts:
        return self._measured(image).facts(image, self._complete)

    def _texts(self, work: RegionWork) -> RegionTexts:
        measured = self._measured(work.image)
        facts = measured.facts(work.image, self._complete)
        # Two threads may make it at the same time, and then both make the same.
        texts = measured.texts.get(work.item_id)
        if texts is None:
            texts = measured.texts[work.item_id] = RegionTexts(
                facts.of(work.region), self._least_words, self._most_words
            )
        return texts

    def _object_caption(self, work: RegionWork) -> dict[str, Any]:
        return {"text": self._texts(work).object_caption.text()}

    def _context_caption(self, work: RegionWork) -> dict[str, Any]:
        return {"text": self._texts(work).context_caption.text()}

    def _verify(self, work: RegionWork) -> dict[str, Any]:
        verdict, reason = verify_caption(work.object_text or "", self._texts(work).facts)
        return {"reason": reason, "verdict": verdict}

    def _fuse(self, work: RegionWork) -> dict[str, Any]:
        texts = self._texts(work)
        known_looks = (texts.object_caption.text(), work.region.category, work.region.phrase, None)
        known_places = (texts.context_caption.text(), None)
        if work.object_text in known_looks and work.context_text in known_places:
            return {"text": texts.description.text()}
        return {"text": merge_texts(work.object_text or "", work.context_text or "", self._most_words)}

    def _hard_negatives(self, work: RegionWork) -> dict[str, Any]:
        rewrites = false_rewrites(self._texts(work), work.text or "", self._count)
        return {"negatives": [{"changed": changed, "text": text} for changed, text in rewrites]}

    def _image_caption(self, work: RegionWork) -> dict[str, Any]:
        short, long = image_captions(self._facts(work.image))
        return {"short_caption": short, "long_caption": long}


class _MeasuredImage:
    """Facts of one image, measured by the first thread that needs them while others wait."""

    def __init__(self):
        self._lock = threading.Lock()
        self._facts: ImageFacts | None = None
        self.texts: dict[str, RegionTexts] = {}

    def facts(self, image: ImageWork, complete: bool) -> ImageFacts:
        with self._lock:
            if self._facts is None:
                self._facts = ImageFacts(image, complete)
            return self._facts


def merge_texts(object_text: str, context_text: str, most_words: int) -> str:
    """Joins two texts about a region, sentence by sentence; those that were said before are left out.

    Args:
        object_text: About its look; comes first.
        context_text: About its place.
        most_words: Most words. Later sentences that do not fit are left out, but never the first.

    Returns:
        The text.

    Example:
        >>> merge_texts("A red mug", "It is on a desk. A red mug.", most_words=20)
        'A red mug. It is on a desk.'
    """
    kept: dict[str, str] = {}
    words = 0
    for sentence in [*_sentences(object_text), *_sentences(context_text)]:
        words_of_it = len(sentence.split())
        key = sentence.casefold()
        if key not in kept and (not kept or words + words_of_it <= most_words):
            kept[key] = sentence
            words += words_of_it
    return " ".join(kept.values())


def _sentences(text: str) -> Iterator[str]:
    for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])", " ".join(text.split())):
        if sentence:
            yield sentence[0].upper() + sentence[1:] + ("" if sentence.endswith((".", "!", "?")) else ".")


def image_captions(facts: ImageFacts) -> tuple[str, str]:
    """Captions of a whole image from its regions.

    Args:
        facts: Of the image.

    Returns:
        What it shows in a sentence, and at length with the largest regions.
    """
    # What has no name is not worth a mention.
    regions = [region for region in facts.regions if region.noun.singular != "object"]
    regions.sort(key=lambda region: -region.share)
    counts = Counter(region.noun.singular for region in regions)
    listed, described = [], []
    for region in regions:
        noun = region.noun
        count = counts.pop(noun.singular, 0)
        if not count or len(listed) == _MOST_LISTED:
            continue
        counted = facts.complete and noun.singular not in facts.grouped | facts.uncounted
        many = f"{count_word(count)} {noun.plural}" if counted else noun.plural
        listed.append(noun.phrase() if count == 1 and noun.singular not in facts.grouped else many)
    if not listed:
        return "A photo.", "A photo in which nothing was annotated."
    short = f"A photo of {join_words(listed)}."
    for region in regions[:_MOST_DESCRIBED]:
        plain = facts.boxes[next(i for i, other in enumerate(facts.regions) if other is region)]
        name = region.noun.phrase() if plain else region.phrase
        place = PLACES[region.thirds].format(photo="photo")
        described.append(f"{name[0].upper()}{name[1:]}, {percent_word(region.share)} of the photo, is {place}.")
    return short, " ".join([short, *described])
