# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The stages of a run, in their order, and what stands in for those that are skipped."""

from __future__ import annotations

from typing import Protocol

from .asking import Asker
from .config import STAGES, LongGritSettings
from .context_caption import ContextCaption
from .fuse import Fuse
from .hard_negatives import HardNegatives
from .image_caption import ImageCaption
from .object_caption import ObjectCaption
from .records import RegionWork, Rejected
from .verify import Verify


class Stage(Protocol):
    """Works on a region, or on a whole image: reads what earlier stages left in `work` and adds its own.

    Attributes:
        name: One of `STAGES`.
    """

    name: str

    async def __call__(self, work: RegionWork) -> None:
        """Does the work.

        Raises:
            Rejected: If the region, or the image, ends here.
            EngineUnavailable: If no model can be asked any more.
        """


class SourceTextAsObjectCaption:
    """Stands in for a skipped object caption: what the source says of the region, its phrase, else its category."""

    name = "object_caption"

    async def __call__(self, work: RegionWork) -> None:
        """Sets `work.object_text`; a region without either keeps `None`."""
        work.object_text = work.region.phrase or work.region.category


class JoinedTexts:
    """Stands in for a skipped fusion: the object text, then the context text."""

    name = "fuse"

    async def __call__(self, work: RegionWork) -> None:
        """Sets `work.text`.

        Raises:
            Rejected: As `"nothing_to_fuse"`, if there is neither.
        """
        parts = [as_sentence(text) for text in (work.object_text, work.context_text) if text]
        if not parts:
            raise Rejected(self.name, "nothing_to_fuse", "The region has no object text, no context text and no name.")
        work.text = " ".join(parts)


_STAGES = {stage.name: stage for stage in (ImageCaption, ObjectCaption, Verify, ContextCaption, Fuse, HardNegatives)}


def build_stages(settings: LongGritSettings, asker: Asker) -> dict[str, Stage]:
    """The stages to run on each image and region, by name and in their order.

    Those that are not enabled are left out, but for two that later ones build on: without an object caption, a region has the
    words of its source, and without a fusion, its texts are joined.

    Args:
        settings: The run.
        asker: Asks the models.

    Example:
        >>> settings = LongGritSettings(
        ...     output_dir="out",
        ...     source={"format": "folder", "path": "regions"},
        ...     engine="rules",
        ...     stages={"object_caption": {"enabled": False}, "verify": {"enabled": False}},
        ... )
        >>> list(build_stages(settings, Asker(settings, engines={}, prompts={})))
        ['object_caption', 'context_caption', 'fuse', 'hard_negatives']
    """
    skipped = {stage.name: stage for stage in (SourceTextAsObjectCaption, JoinedTexts)}
    stages: dict[str, Stage] = {}
    for name in STAGES:
        if settings.stage(name).enabled:
            stages[name] = _STAGES[name](asker, settings)
        elif name in skipped:
            stages[name] = skipped[name]()
    return stages


def as_sentence(text: str) -> str:
    """A phrase such as `"a red mug"` as a sentence: `"A red mug."`

    Args:
        text: A phrase, or whole sentences, which are left as they are.

    Example:
        >>> as_sentence("a red mug"), as_sentence("It stands on a desk.")
        ('A red mug.', 'It stands on a desk.')
    """
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "\u3002", "\u2026")) else ".")
