# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""An engine in process whose answers a test writes, and an image with regions to ask it about."""

import io
import json
from collections import defaultdict

import numpy as np
from PIL import Image, ImageDraw

from processing_pixclip import encode_rle
from processing_pixclip.longgrit.asking import Asker
from processing_pixclip.longgrit.config import LongGritSettings
from processing_pixclip.longgrit.engines import Answer
from processing_pixclip.longgrit.prompts import load_prompt
from processing_pixclip.longgrit.records import ImageWork, RegionWork, SourceImage, SourceRegion
from processing_pixclip.longgrit.region_views import render_view


class ScriptedEngine:
    """Answers each stage by its script, one entry after the other; draws all pictures that it is shown.

    Args:
        scripts: By stage, texts, `(text, finish_reason)`, JSON-able objects, or exceptions to raise.
    """

    def __init__(self, **scripts):
        self.scripts = {stage: list(script) for stage, script in scripts.items()}
        self.requests = defaultdict(list)
        self.pictures = {}

    async def ask(self, request):
        self.requests[request.stage].append(request)
        for message in request.messages:
            for name in message.images:
                content = render_view(request.work, name, request.image_side)
                self.pictures[request.stage, name] = Image.open(io.BytesIO(content)).convert("RGB")
        entry = self.scripts[request.stage].pop(0)
        if isinstance(entry, Exception):
            raise entry
        text, finish = entry if isinstance(entry, tuple) else (entry, "stop")
        text = text if isinstance(text, str) else json.dumps(text)
        number = len(self.requests[request.stage])
        return Answer(text, "scripted", f"2026-01-01T00:00:{number:02d}+00:00", 100, 10, finish)

    async def close(self):
        pass


def settings_for(**fields):
    """Settings of a run whose engine is the scripted one."""
    source = {"format": "folder", "path": "regions"}
    return LongGritSettings(**{"output_dir": "out", "source": source, "engine": "rules", **fields})


def asker_for(settings, engine, **options):
    """An asker of a scripted engine, with the prompts of the settings."""
    prompts = {stage: load_prompt(stage, settings.stage(stage).prompt) for stage in settings.enabled_stages}
    return Asker(settings, {"rules": engine}, prompts, **options)


def red_disk():
    """A grey image with a red disk, whose mask is the first region, and a blue square, known by its box."""
    picture = Image.new("RGB", (200, 100), (128, 128, 128))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((20, 20, 79, 79), fill=(220, 20, 20))
    draw.rectangle((120, 30, 159, 69), fill=(20, 20, 220))
    file = io.BytesIO()
    picture.save(file, "PNG")
    rows, columns = np.mgrid[:100, :200]
    mask = (rows - 49.5) ** 2 + (columns - 49.5) ** 2 <= 30**2
    regions = (
        SourceRegion("7#0", (20, 20, 80, 80), mask=encode_rle(mask), category="disk", phrase="the red disk"),
        SourceRegion("7#1", (120, 30, 160, 70), mask_source="box", phrase="a blue square"),
        SourceRegion("7#2", (0, 0, 1, 1), mask_source="box", category="speck", dropped="too_small"),
    )
    location = {"path": "7.png"}
    source = SourceImage("7", "7.png", location, 200, 100, regions, captions=("Shapes.",), grouped=("dots",))
    image = ImageWork(source, file.getvalue)
    return image, [RegionWork(image, region) for region in regions]
