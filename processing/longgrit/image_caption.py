# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The image captions: the whole photo in a sentence, and at length."""

from __future__ import annotations

from typing import Any

from .asking import Asker
from .config import LongGritSettings
from .records import RegionWork
from .text_checks import check_form


class ImageCaption:
    """Adds to `work.captions` and `work.long_captions`; `work` has no region.

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
        >>> work = RegionWork(ImageWork(image, lambda: store.read(image.location)))
        >>> asker = Asker(settings, {"rules": RuleEngine(settings)}, {"image_caption": load_prompt("image_caption")})
        >>> asyncio.run(ImageCaption(asker, settings)(work))
        >>> work.captions
        ['A photo of ...']
    """

    name = "image_caption"

    def __init__(self, asker: Asker, settings: LongGritSettings):
        self.asker = asker

    async def __call__(self, work: RegionWork) -> None:
        """Describes an image.

        Raises:
            Rejected: If there is no usable answer; see `Asker.ask` and `check_form` for the reasons.
        """

        def check(answer: Any) -> None:
            check_form(answer.short_caption)
            check_form(answer.long_caption)

        answer = await self.asker.ask(self.name, work, {}, check)
        work.captions.append(answer.short_caption)
        work.long_captions.append(answer.long_caption)
