# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Asks a stage's model about a region until the answer is usable, or the region is rejected."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from .answers import MalformedAnswer, parse_answer, without_reasoning
from .config import LongGritSettings
from .engines import Answer, Engine, Message, Request, RequestFailed
from .prompts import Prompt, as_data, storable
from .records import Provenance, RegionWork, Rejected
from .redaction import extra_bodies, published_model, published_server
from .region_views import size_of_view


# Of a rejected text, in the reject file.
KEPT_CHARACTERS = 4000
# Of a malformed answer, when the model is shown it again.
SHOWN_CHARACTERS = 2000
# Of the names of other objects.
MOST_OTHER_OBJECTS = 20


class AnswerRefused(Exception):
    """Raised by the check of a stage for an answer that is well formed and not good enough.

    Args:
        reason: Short name, counted in the report if no better answer comes, such as `"too_short"`.
        message: What is wrong and what is accepted, for the model to read.

    Example:
        >>> AnswerRefused("too_short", "The text has 3 words; write at least 12.").reason
        'too_short'
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason, self.message = reason, message


class Journal(Protocol):
    """Keeps answers, so that no request is answered twice."""

    async def ask(self, engine: Engine, request: Request) -> Answer:
        """The kept answer, or the engine's."""


class Unjournaled:
    """A journal that keeps nothing, for stages that are used alone."""

    async def ask(self, engine: Engine, request: Request) -> Answer:
        """The engine's answer."""
        return await engine.ask(request)


class Asker:
    """Asks the stages' models.

    Args:
        settings: The run.
        engines: The engines by name, those that the enabled stages use.
        prompts: The prompts by stage.
        journal: Where answers are kept; nowhere by default.
        generations: How often each stage was repeated on purpose, by stage; 0 by default.

    Example:
        >>> import asyncio
        >>> from processing_pixclip.longgrit.prompts import load_prompt
        >>> from processing_pixclip.longgrit.records import ImageWork, SourceImage, SourceRegion
        >>> class Always:
        ...     async def ask(self, request):
        ...         return Answer('{"text": "A red mug."}', server="none", time="2026-01-01T00:00:00+00:00")
        >>> region = SourceRegion("1#0", box=(4, 4, 20, 20), mask_source="box", category="mug")
        >>> image = SourceImage("1", "1.jpg", {"path": "1.jpg"}, width=64, height=48, regions=(region,))
        >>> work = RegionWork(ImageWork(image, read=lambda: b""), region)
        >>> source = {"format": "folder", "path": "regions"}
        >>> settings = LongGritSettings(output_dir="out", source=source, engine="rules")
        >>> asker = Asker(settings, {"rules": Always()}, {"object_caption": load_prompt("object_caption")})
        >>> asyncio.run(asker.ask("object_caption", work, {})).text, work.provenance[0].attempts
        ('A red mug.', 1)
    """

    def __init__(
        self,
        settings: LongGritSettings,
        engines: Mapping[str, Engine],
        prompts: Mapping[str, Prompt],
        journal: Journal | None = None,
        generations: Mapping[str, int] | None = None,
    ):
        self.settings = settings
        self.engines = engines
        self.prompts = prompts
        self.journal = Unjournaled() if journal is None else journal
        self.generations = {} if generations is None else generations
        self._extra_bodies = {stage: extra_bodies(settings, stage) for stage in prompts}

    def first_request(self, stage: str, work: RegionWork, variables: Mapping[str, Any]) -> Request:
        """What a stage asks first about a region.

        Args:
            stage: Name of the stage.
            work: The region, or the image.
            variables: What the stage's prompt needs beside the shared ones.
        """
        prompt, settings = self.prompts[stage], self.settings
        side = settings.stage(stage).image_side
        shared = {**region_variables(work, side), **text_variables(settings), "schema": json.dumps(prompt.schema)}
        return Request(
            item_id=work.item_id,
            stage=stage,
            model=settings.model_of(stage),
            messages=prompt.render({**shared, **variables}),
            prompt_hash=prompt.hash,
            schema=prompt.schema,
            parameters=settings.stage(stage).parameters,
            image_side=side,
            generation=self.generations.get(stage, 0),
            extra_bodies=self._extra_bodies[stage],
            work=work,
        )

    async def ask(
        self,
        stage: str,
        work: RegionWork,
        variables: Mapping[str, Any],
        check: Callable[[Any], None] | None = None,
        cut: Callable[[str, Prompt], Any] | None = None,
    ) -> Any:
        """Asks until an answer is valid. A bad answer goes back to the model with what is wrong about it.

        Adds one `Provenance` to `work`, also where the region is rejected.

        Args:
            stage: Name of the stage.
            work: The region, or the image.
            variables: What the stage's prompt needs beside the shared ones.
            check: Called with each valid answer; raises `AnswerRefused` if it is not good enough.
            cut: Called with the text of an answer that was cut off, and the prompt; returns what is usable of it, or raises
                `AnswerRefused`. By default no part is.

        Returns:
            The answer, an instance of the prompt's `output`; or what `cut` returned.

        Raises:
            Rejected: If there was no answer (`"request_failed"`), the model or its server refused to give one (`"refused"`), the
                last one was malformed (`"malformed_answer"`), cut off (`"answer_too_long"`) or an example of the prompt
                (`"copied_example"`), or it was refused, with the reason of the check.
            EngineUnavailable: If the engine cannot go on.
        """
        request = self.first_request(stage, work, variables)
        engine = self.engines[self.settings.engine_of(stage)]
        answers: list[Answer] = []
        attempts = 0
        try:
            while True:
                attempts += 1
                try:
                    answer = await self.journal.ask(engine, request)
                except RequestFailed as error:
                    raise Rejected(stage, "request_failed", _kept(str(error))) from error
                answers.append(answer)
                if answer.finish_reason == "content_filter":
                    # It would do so again.
                    raise Rejected(stage, "refused", _kept(answer.text))
                try:
                    return self._usable(answer, self.prompts[stage], check, cut)
                except AnswerRefused as error:
                    refused = error
                if attempts == self.settings.stage(stage).max_attempts:
                    detail = f"{storable(refused.message)}\nThe answer was: {_kept(answer.text)}"
                    raise Rejected(stage, refused.reason, detail) from refused
                request = _once_more(request, answer, refused)
        finally:
            if answers or attempts:
                work.provenance.append(self._provenance(stage, answers, attempts))

    def _usable(
        self,
        answer: Answer,
        prompt: Prompt,
        check: Callable[[Any], None] | None,
        cut: Callable[[str, Prompt], Any] | None,
    ) -> Any:
        if answer.finish_reason == "length":
            if cut is not None:
                return cut(answer.text, prompt)
            raise AnswerRefused("answer_too_long", "The answer was cut off before its end. Answer again, and shorter.")
        try:
            parsed = parse_answer(answer.text, prompt)
        except MalformedAnswer as error:
            raise AnswerRefused("malformed_answer", str(error)) from error
        if parsed in prompt.examples:
            raise AnswerRefused(
                "copied_example", "That is the example, which is of something else. Answer what was asked."
            )
        if check is not None:
            check(parsed)
        return parsed

    def _provenance(self, stage: str, answers: list[Answer], attempts: int) -> Provenance:
        return Provenance(
            stage=stage,
            model=published_model(self.settings.model_of(stage)),
            server=published_server(answers[-1].server) if answers else "",
            prompt=self.prompts[stage].hash,
            time=answers[-1].time if answers else "",
            prompt_tokens=sum(answer.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.completion_tokens for answer in answers),
            attempts=attempts,
        )


def region_variables(work: RegionWork, image_side: int = 768) -> dict[str, Any]:
    """What every prompt may say of a region and its image.

    Args:
        work: The region, or the image, for which all that is of a region is `None`.
        image_side: Most pixels of the longer side of pictures that are sent.

    Returns:
        `category` and `phrase` of the source, `name`: the category, else the phrase, else `"object"`; `box`: xyxy in whole pixels
        of the image as stored, `box_1000`: the same from 0 to 1000 across its width and height, `sent_box`: the same in pixels of the
        picture that is sent of the whole image, of `sent_width` and `sent_height`; `width`, `height`, `mask_source`, `captions`,
        `long_captions`, and `other_objects`: the names of what else the source says is in the image.

    Example:
        >>> from processing_pixclip.longgrit.records import ImageWork, SourceImage, SourceRegion
        >>> regions = (SourceRegion("1#0", box=(16, 12, 32, 48), category="mug"), SourceRegion("1#1", (0, 0, 9, 9), category="pen"))
        >>> image = SourceImage("1", "1.jpg", {"path": "1.jpg"}, width=64, height=48, regions=regions)
        >>> variables = region_variables(RegionWork(ImageWork(image, read=lambda: b""), regions[0]))
        >>> variables["name"], variables["box_1000"], variables["other_objects"]
        ('mug', [250, 250, 500, 1000], ['pen'])
    """
    image, region = work.image.source, work.region
    size = (image.width, image.height)
    sent = size_of_view((image.width, image.height), image_side)
    box = None if region is None else region.box
    others = [other.category or other.phrase for other in image.regions if other.region_id != work.item_id]
    return {
        "category": None if region is None else region.category,
        "phrase": None if region is None else region.phrase,
        "name": "object" if region is None else region.category or region.phrase or "object",
        "box": None if box is None else [round(edge) for edge in box],
        "box_1000": None if box is None else _scaled(box, size, (1000, 1000)),
        "sent_box": None if box is None else _scaled(box, size, sent),
        "sent_width": sent[0],
        "sent_height": sent[1],
        "width": image.width,
        "height": image.height,
        "mask_source": None if region is None else region.mask_source,
        "captions": list(image.captions),
        "long_captions": list(image.long_captions),
        "other_objects": list(dict.fromkeys(filter(None, [*others, *image.grouped])))[:MOST_OTHER_OBJECTS],
    }


def _scaled(box: tuple[float, ...], size: tuple[int, int], to: tuple[int, int]) -> list[int]:
    return [min(new, max(0, round(new * edge / old))) for edge, old, new in zip(box, size * 2, to * 2)]


def text_variables(settings: LongGritSettings) -> dict[str, Any]:
    """What every prompt may say of the texts that are wanted: `language` in words or `None`, `min_words`, `max_words`.

    Args:
        settings: The run.

    Example:
        >>> source = {"format": "folder", "path": "regions"}
        >>> text_variables(LongGritSettings(output_dir="out", source=source, engine="rules"))
        {'language': 'English', 'min_words': 12, 'max_words': 300}
    """
    texts = settings.texts
    language = "English" if texts.language == "en" else f"the language with the ISO 639-1 code {texts.language}"
    return {
        "language": language if texts.language else None,
        "min_words": texts.min_words,
        "max_words": texts.max_words,
    }


def _kept(text: str) -> str:
    """A text for the reject file; of a long one the beginning and the end, which tells whether it was cut off."""
    text = storable(text)
    if len(text) <= KEPT_CHARACTERS:
        return text
    left_out = len(text) - KEPT_CHARACTERS
    return f"{text[: KEPT_CHARACTERS - 1000]}\n[... {left_out} characters left out ...]\n{text[-1000:]}"


def _once_more(request: Request, answer: Answer, refused: AnswerRefused) -> Request:
    """The same request with the bad answer and what is wrong with it; all earlier ones stay, so that it is another request."""
    form = "one JSON object of the form that was asked for" if request.schema else "the text"
    # Without its reasoning, as the makers of such models advise.
    text = as_data(without_reasoning(answer.text)).strip()
    shown = Message("assistant", text[:SHOWN_CHARACTERS] or "(nothing)")
    told = Message("user", as_data(f"{refused.message} Answer again with {form} and nothing else."))
    return replace(request, messages=(*request.messages, shown, told))
