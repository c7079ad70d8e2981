# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The object caption: what is visible of the region itself."""

from __future__ import annotations

from .asking import Asker
from .config import LongGritSettings
from .records import RegionWork
from .text_checks import check_form


class ObjectCaption:
    """Writes `work.object_text`, from the region cut out and the same part of the photo with its outline.

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
        >>> asker = Asker(settings, {"rules": RuleEngine(settings)}, {"object_caption": load_prompt("object_caption")})
        >>> asyncio.run(ObjectCaption(asker, settings)(work))
        >>> work.object_text
        'A light grey and green potted plant, ...'
    """

    name = "object_caption"

    def __init__(self, asker: Asker, settings: LongGritSettings):
        self.asker = asker

    async def __call__(self, work: RegionWork) -> None:
        """Describes a region.

        Raises:
            Rejected: If there is no usable answer; see `Asker.ask` and `check_form` for the reasons.
        """
        work.object_text = (await self.asker.ask(self.name, work, {}, lambda answer: check_form(answer.text))).text
