# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a run would ask and about what it would cost, without asking any model."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from PIL import Image

from .asking import Asker
from .config import LongGritSettings, TextSettings
from .engines import Answer, Request
from .pipeline import annotate_image
from .prompts import load_prompt
from .records import SourceImage
from .region_filters import filter_regions
from .region_views import render_view
from .rule_engine import RuleEngine
from .sources import Source, open_image_store, open_source
from .stages import build_stages


# Of English text in the tokenizers of today's LLMs.
CHARACTERS_PER_TOKEN = 4
# What one visual token covers in Qwen2.5-VL and InternVL2.5, in pixels a side.
PIXELS_PER_TOKEN = 28
# Images that the number of regions is extrapolated from.
IMAGES_LOOKED_AT = 50


@dataclass
class DryRun:
    """What `dry_run` found.

    Attributes:
        requests: The first request of each stage about each sampled region, in their order.
        answers: What the rule-based annotator answered to each, in place of the models.
        images: Images of the source.
        regions: Regions of the source that the filters would leave, extrapolated from the first images.
        samples: Regions that the requests are about.
        tokens: By stage: `requests`, first ones only, and tokens `read` and `written` by them, estimated.
        refused: By stage, samples whose stand-in answer was not good enough, so that later stages saw less of them.
        cost: US dollars for `regions`, where the settings hold prices.
    """

    requests: list[Request] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    images: int = 0
    regions: int = 0
    samples: int = 0
    tokens: dict[str, Counter[str]] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    cost: float | None = None

    def to_text(self) -> str:
        """The same for people: prompts, then a table of tokens, then the estimate."""
        parts = []
        for request, answer in zip(self.requests, self.answers, strict=True):
            parts.append(f"=== {request.item_id}, {request.stage}, model {request.model} ===")
            for message in request.messages:
                shown = f" [pictures: {', '.join(message.images)}]" if message.images else ""
                parts.append(f"--- {message.role}{shown}\n{message.text}")
                parts.append(f"--- stand-in answer, by rules\n{answer.text}")
        parts.append(f"\nEstimate from {self.samples} regions, for one attempt a stage:")
        parts.append(f"{'stage':<18}{'requests':>9}{'read, a request':>17}{'written, a request':>20}")
        for stage, counts in self.tokens.items():
            read, written = (round(counts[key] / counts["requests"]) for key in ("read", "written"))
            parts.append(f"{stage:<18}{counts['requests']:>9}{read:>17}{written:>20}")
        for stage, count in self.refused.items():
            parts.append(
                f"{count} stand-in answers were refused by {stage}; of those regions no later stage is counted."
            )
        read, written = (self.tokens_in_all(key) for key in ("read", "written"))
        parts.append(
            f"The run has {self.images} images with about {self.regions} regions after the filters (duplicates across "
            f"images not taken out): about {read:,} tokens read and {written:,} written"
            + (f", {self.cost:,.2f} US dollars." if self.cost is not None else "; set price_per_million for a cost.")
        )
        parts.append(
            f"Assumed: {CHARACTERS_PER_TOKEN} characters a token, one token for {PIXELS_PER_TOKEN}x{PIXELS_PER_TOKEN} "
            f"pixels, answers as long as the stand-in's; reasoning models write many times as much."
        )
        return "\n".join(parts)

    def tokens_in_all(self, key: str) -> int:
        """Tokens of the whole run, `"read"` or `"written"`: of each stage, the mean of its requests for all that it is asked about."""
        asked_about = {"image_caption": self.images}
        means = {stage: counts[key] / counts["requests"] for stage, counts in self.tokens.items()}
        return round(sum(mean * asked_about.get(stage, self.regions) for stage, mean in means.items()))


class _Recorder:
    """Answers by rules, in the form that a prompt asks for, keeps what was asked, and counts tokens as a server would, about."""

    def __init__(self, settings: LongGritSettings):
        self._rules = RuleEngine(settings)
        self.asked: list[tuple[Request, Answer]] = []

    async def ask(self, request: Request) -> Answer:
        answer = await self._rules.ask(request)
        text = _in_form(json.loads(answer.text), request.schema)
        read = sum(len(message.text) for message in request.messages) // CHARACTERS_PER_TOKEN
        for message in request.messages:
            for view in message.images:
                picture = Image.open(io.BytesIO(render_view(request.work, view, request.image_side)))
                read += -(-picture.width // PIXELS_PER_TOKEN) * -(-picture.height // PIXELS_PER_TOKEN)
        written = -(-len(text) // CHARACTERS_PER_TOKEN)
        answer = replace(answer, text=text, prompt_tokens=read, completion_tokens=written)
        self.asked.append((request, answer))
        return answer

    async def close(self) -> None:
        await self._rules.close()


def _in_form(answer: dict[str, Any], schema: Mapping[str, Any] | None) -> str:
    """An answer of the rules for a prompt of the user's own: plain text, or with the fields that rules know nothing of."""
    if schema is None:
        return next(value for value in answer.values() if isinstance(value, str))
    blanks = {"string": "(of this stand-in, nothing)", "boolean": True, "array": [], "object": {}}
    for name, kind in schema["properties"].items():
        if name not in answer:
            answer[name] = kind["enum"][0] if "enum" in kind else blanks.get(kind.get("type"), 0)
    return json.dumps(answer, ensure_ascii=False)


def dry_run(
    settings: LongGritSettings, samples: int = 3, source: Source | None = None, limit: int | None = None
) -> DryRun:
    """Renders the prompts of the first regions and estimates the tokens of the whole run. Asks no model, writes nothing.

    Answers that later prompts quote are those of the rule-based annotator.

    Args:
        settings: The run.
        samples: Regions whose prompts are rendered.
        source: Images and regions; opened by the settings by default.
        limit: Regions that the run would be limited to.

    Returns:
        Requests and estimate; `to_text` shows them.

    Raises:
        ValueError: If `samples` is not positive, or none of the first images has a region that the filters leave.

    Example:
        >>> from processing_pixclip.longgrit import dry_run, read_settings
        >>> found = dry_run(read_settings("examples/configs/longgrit_coco_regions.yaml"), samples=2)
        >>> found.samples, sorted(found.tokens)[0]
        (2, 'context_caption')
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; accepted are 1 and more.")
    source = open_source(settings.source) if source is None else source
    store = open_image_store(settings.source)
    # What stands in is neither as long as the models' texts nor in their language.
    lenient = settings.model_copy(update={"texts": TextSettings(min_words=1, max_words=10**6, language=None)})
    recorder = _Recorder(lenient)
    engines = {settings.engine_of(stage): recorder for stage in settings.enabled_stages}
    prompts = {stage: load_prompt(stage, settings.stage(stage).prompt) for stage in settings.enabled_stages}
    stages = build_stages(lenient, Asker(settings, engines, prompts))
    found, looked_at, left = DryRun(images=len(source)), 0, 0
    for item in source.read(0, min(IMAGES_LOOKED_AT, len(source))):
        looked_at += 1
        if not isinstance(item, SourceImage):
            continue
        image = filter_regions(item, settings.filters)
        kept = [region for region in image.regions if region.dropped is None]
        left += len(kept)
        if not kept or found.samples == samples:
            continue
        surplus = {region.region_id for region in kept[samples - found.samples :]}
        regions = [replace(r, dropped="not sampled") if r.region_id in surplus else r for r in image.regions]
        image = replace(image, regions=tuple(regions))
        ended = asyncio.run(annotate_image(image, stages, partial(store.read, image.location)))
        found.refused.update(region.stage for region in ended.regions if region.reason is not None)
        found.samples += len(kept) - len(surplus)
    if not found.samples:
        raise ValueError(
            f"none of the first {looked_at} images of the source has a region that the filters leave; see `filters`."
        )
    found.regions = round(left * found.images / looked_at)
    if limit is not None and limit < found.regions:
        found.images, found.regions = -(-found.images * limit // found.regions), limit
    seen = set()
    for request, answer in recorder.asked:
        if (request.item_id, request.stage) in seen:
            continue
        seen.add((request.item_id, request.stage))
        found.requests.append(request)
        found.answers.append(answer)
        counts = found.tokens.setdefault(request.stage, Counter())
        counts.update(requests=1, read=answer.prompt_tokens, written=answer.completion_tokens)
    prices = settings.price_per_million
    if prices:
        parts = {"input": "read", "output": "written"}
        found.cost = sum(prices.get(price, 0) * found.tokens_in_all(key) for price, key in parts.items()) / 1e6
    return found
