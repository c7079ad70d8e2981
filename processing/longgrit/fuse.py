# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The long description: object and context caption, merged by a language model."""

from __future__ import annotations

from typing import Any

from .asking import Asker
from .config import LongGritSettings
from .records import RegionWork, Rejected
from .text_checks import check_text, clean_text


class Fuse:
    """Writes `work.text` from `work.object_text` and `work.context_text`, checked by `check_text`.

    The model reads texts only. Where one of the two is missing, since its stage was skipped, it rewrites the other.

    Args:
        asker: Asks the model.
        settings: The run.

    Example:
        >>> import asyncio
        >>> from processing_pixclip.longgrit import (
        ...     ImageWork, RegionWork, RuleEngine, load_prompt, open_image_store, open_source, read_settings
        ... )
        >>> settings = read_settings("examples/configs/longgrit_coco_regions.yaml")
        >>> image = next(open_source(settings.source).read(0, 1))
        >>> store = open_image_store(settings.source)
        >>> work = RegionWork(ImageWork(image, lambda: store.read(image.location)), image.regions[0])
        >>> work.object_text, work.context_text = "A light grey and green potted plant.", "It is in the centre."
        >>> asker = Asker(settings, {"rules": RuleEngine(settings)}, {"fuse": load_prompt("fuse")})
        >>> asyncio.run(Fuse(asker, settings)(work))
        >>> work.text.count(".")
        2
    """

    name = "fuse"

    def __init__(self, asker: Asker, settings: LongGritSettings):
        self.asker, self.texts = asker, settings.texts

    async def __call__(self, work: RegionWork) -> None:
        """Describes a region at length.

        Raises:
            Rejected: If there is nothing to merge (`"no_text"`), or no usable answer, with the reason of the last check.
        """
        if not (work.object_text or work.context_text):
            raise Rejected(self.name, "no_text", "The region has no object text, no context text and no name.")
        variables = {"object_text": work.object_text, "context_text": work.context_text}
        answer = await self.asker.ask(self.name, work, variables, self._check)
        work.text = clean_text(answer.text)

    def _check(self, answer: Any) -> None:
        check_text(clean_text(answer.text), self.texts)
