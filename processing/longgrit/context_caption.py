# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The context caption: where the region is in the photo, and how it relates to its surroundings."""

from __future__ import annotations

from .asking import Asker
from .config import LongGritSettings
from .records import RegionWork
from .text_checks import check_form


class ContextCaption:
    """Writes `work.context_text`, from the whole photo with the region's box drawn, and a closer look at it with its outline.

    The model is told what the region is by `work.object_text`, where there is one.

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
        >>> work = RegionWork(ImageWork(image, lambda: store.read(image.location)), image.regions[0])
        >>> asker = Asker(settings, {"rules": RuleEngine(settings)}, {"context_caption": load_prompt("context_caption")})
        >>> asyncio.run(ContextCaption(asker, settings)(work))
        >>> print(work.context_text)
        The potted plant lies ...
    """

    name = "context_caption"

    def __init__(self, asker: Asker, settings: LongGritSettings):
        self.asker = asker

    async def __call__(self, work: RegionWork) -> None:
        """Describes a region's surroundings.

        Raises:
            Rejected: If there is no usable answer; see `Asker.ask` and `check_form` for the reasons.
        """
        variables = {"object_text": work.object_text}
        answer = await self.asker.ask(self.name, work, variables, lambda answer: check_form(answer.text))
        work.context_text = answer.text
