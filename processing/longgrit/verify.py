# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The check of object captions: a second model compares them with the photo."""

from __future__ import annotations

from .asking import Asker
from .config import LongGritSettings
from .records import RegionWork, Rejected


class Verify:
    """Rejects regions whose `work.object_text` does not fit the photo (`"inconsistent"`) or is no description (`"invalid"`).

    Args:
        asker: Asks the model.
        settings: The run.

    Example:
        >>> import asyncio
        >>> from processing_pixclip.longgrit.config import read_settings
        >>> from processing_pixclip.longgrit.prompts import load_prompt
        >>> from processing_pixclip.longgrit.records import ImageWork
        >>> from processing_pixclip.longgrit.rule_engine import RuleEngine
        >>> from processing_pixclip.longgrit.sources import open_image_store, open_source
        >>> settings = read_settings("examples/configs/longgrit_coco_regions.yaml")
        >>> image = next(open_source(settings.source).read(0, 1))
        >>> store = open_image_store(settings.source)
        >>> work = RegionWork(ImageWork(image, lambda: store.read(image.location)), image.regions[0], object_text="A bright red car.")
        >>> asker = Asker(settings, {"rules": RuleEngine(settings)}, {"verify": load_prompt("verify")})
        >>> try:
        ...     asyncio.run(Verify(asker, settings)(work))
        ... except Rejected as rejected:
        ...     print(rejected.reason)
        inconsistent
    """

    name = "verify"

    def __init__(self, asker: Asker, settings: LongGritSettings):
        self.asker = asker

    async def __call__(self, work: RegionWork) -> None:
        """Checks a region's object caption; one without any, as when that stage is skipped, has nothing to check.

        Raises:
            Rejected: If the verdict is not `"consistent"`, or there is no usable answer.
        """
        if work.object_text is None:
            return
        answer = await self.asker.ask(self.name, work, {"object_text": work.object_text})
        if answer.verdict != "consistent":
            raise Rejected(self.name, answer.verdict, f"{answer.reason}\nThe text was: {work.object_text}")
