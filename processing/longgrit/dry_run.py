# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a run would ask and about what it would cost, without asking any model."""

from __future__ import annotations

import asyncio
import io
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial

from PIL import Image

from .asking import Asker
from .config import LongGritSettings
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
        tokens: By stage, tokens read and written for the samples, estimated.
        cost: US dollars for `regions`, where the settings hold prices.
    """

    requests: list[Request] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    images: int = 0
    regions: int = 0
    samples: int = 0
    tokens: dict[str, Counter[str]] = field(default_factory=dict)
    cost: float | None = None

    def to_text(self) -> str:
        """The same for people: prompts, then a table of tokens, then the estimate."""
        parts = []
        for request, answer in zip(self.requests, self.answers):
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
        read, written = (self._tokens_in_all(key) for key in ("read", "written"))
        parts.append(
            f"The source has {self.images} images, about {self.regions} regions after the filters (duplicates across "
            f"images not counted): about {read:,} tokens read and {written:,} written"
            + (f", {self.cost:,.2f} US dollars." if self.cost is not None else "; set price_per_million for a cost.")
        )
        parts.append(
            f"Assumed: {CHARACTERS_PER_TOKEN} characters a token, one token for {PIXELS_PER_TOKEN}x{PIXELS_PER_TOKEN} "
            f"pixels, answers as long as the stand-in's; reasoning models write many times as much."
        )
        return "\n".join(parts)

    def _tokens_in_all(self, key: str) -> int:
        total = sum(counts[key] for counts in self.tokens.values())
        return round(total * self.regions / self.samples) if self.samples else 0


class _Recorder:
    """Answers by rules, keeps what was asked, and counts tokens as a server would, about."""

    def __init__(self, settings: LongGritSettings):
        self._rules = RuleEngine(settings)
        self.asked: list[tuple[Request, Answer]] = []

    async def ask(self, request: Request) -> Answer:
        answer = await self._rules.ask(request)
        read = sum(len(message.text) for message in request.messages) // CHARACTERS_PER_TOKEN
        for message in request.messages:
            for view in message.images:
                picture = Image.open(io.BytesIO(render_view(request.work, view, request.image_side)))
                read += -(-picture.width // PIXELS_PER_TOKEN) * -(-picture.height // PIXELS_PER_TOKEN)
        written = -(-len(answer.text) // CHARACTERS_PER_TOKEN)
        answer = replace(answer, prompt_tokens=read, completion_tokens=written)
        self.asked.append((request, answer))
        return answer

    async def close(self) -> None:
        await self._rules.close()


def dry_run(settings: LongGritSettings, samples: int = 3, source: Source | None = None) -> DryRun:
    """Renders the prompts of the first regions and estimates the tokens of the whole run. Asks no model, writes nothing.

    Answers that later prompts quote are those of the rule-based annotator.

    Args:
        settings: The run.
        samples: Regions whose prompts are rendered.
        source: Images and regions; opened by the settings by default.

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
    recorder = _Recorder(settings)
    engines = {settings.engine_of(stage): recorder for stage in settings.enabled_stages}
    prompts = {stage: load_prompt(stage, settings.stage(stage).prompt) for stage in settings.enabled_stages}
    stages = build_stages(settings, Asker(settings, engines, prompts))
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
        asyncio.run(annotate_image(image, stages, partial(store.read, image.location)))
        found.samples += len(kept) - len(surplus)
    if not found.samples:
        raise ValueError(
            f"none of the first {looked_at} images of the source has a region that the filters leave; see `filters`."
        )
    found.regions = round(left * found.images / looked_at)
    seen = set()
    for request, answer in recorder.asked:
        counts = found.tokens.setdefault(request.stage, Counter())
        counts.update(requests=1, read=answer.prompt_tokens, written=answer.completion_tokens)
        if (request.item_id, request.stage) not in seen:
            found.requests.append(request)
            found.answers.append(answer)
        seen.add((request.item_id, request.stage))
    prices = settings.price_per_million
    if prices:
        parts = {"input": "read", "output": "written"}
        found.cost = sum(prices.get(price, 0) * found._tokens_in_all(key) for price, key in parts.items()) / 1e6
    return found
