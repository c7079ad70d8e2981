# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Takes images and shards through the stages: every region ends once, accepted or rejected with a reason."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from .asking import Asker
from .config import REGION_STAGES, LongGritSettings
from .dataset_writer import write_shard
from .engines import Answer, Engine, EngineUnavailable
from .image_store import ImageStore
from .journal import AnswerJournal
from .prompts import Prompt
from .records import ImageResult, ImageWork, RegionResult, RegionWork, Rejected, SourceImage, SourceRegion
from .run_folder import RunFolder
from .run_summary import summarise_shard
from .sources import SourceError
from .stages import Stage, build_stages


logger = logging.getLogger(__name__)

# How regions end that may end otherwise when they are tried again: nothing of it is in the journal.
RETRIED_REASONS = ("request_failed", "unreadable_image", "changed_image")

# The built-in annotator keeps what it measured of each image that is worked on, pixels and masks, and does not wait.
_IMAGES_OF_RULES = 8
# What decoded pictures may take, of all images that are worked on: hundreds of small photos, or five of 12 megapixels.
_PICTURE_BYTES = 256 * 2**20


class PictureBudget:
    """Drops the decoded pictures that nobody has looked at for longest where all of them take too much memory.

    Args:
        limit: Bytes. The picture that was looked at last is kept even if it takes more.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        # The one looked at last is the last.
        self._sizes: WeakKeyDictionary[ImageWork, int] = WeakKeyDictionary()

    def looked_at(self, work: ImageWork) -> None:
        """Tells that the picture is decoded, and drops others where that is too much."""
        with self._lock:
            self._sizes.pop(work, None)
            # Pillow takes four bytes a pixel for RGB.
            self._sizes[work] = 4 * work.source.width * work.source.height
            *others, _ = self._sizes.items()
            excess = sum(self._sizes.values()) - self._limit
            for other, size in others:
                if excess <= 0:
                    break
                other.drop_picture()
                del self._sizes[other]
                excess -= size


_budget = PictureBudget(_PICTURE_BYTES)


class CheckedImage(ImageWork):
    """An image whose unreadable file or mask rejects the regions that need it, and whose picture may be dropped.

    The source stage has read most files, but a file may be gone or damaged since, and a run must not end for it.
    """

    def file_content(self) -> bytes:
        """Bytes of the image file.

        Raises:
            Rejected: If it cannot be read.
        """
        try:
            return super().file_content()
        except (OSError, ValueError) as error:
            raise Rejected("source", "unreadable_image", f"{type(error).__name__}: {error}") from error

    def picture(self) -> Image.Image:
        """The decoded image.

        Raises:
            Rejected: If it cannot be read, or is not of the size that the source says.
        """
        try:
            picture = super().picture()
        except (OSError, ValueError) as error:
            raise Rejected("source", "unreadable_image", f"{type(error).__name__}: {error}") from error
        _budget.looked_at(self)
        return picture

    def mask(self, region: SourceRegion) -> np.ndarray:
        """The region's mask.

        Raises:
            Rejected: If it is damaged.
        """
        try:
            return super().mask(region)
        except ValueError as error:
            raise Rejected("source", "unreadable_mask", str(error)) from error


async def annotate_image(
    image: SourceImage,
    stages: Mapping[str, Stage],
    read: Callable[[], bytes],
    on_region: Callable[[RegionResult], None] | None = None,
    rejected: Rejected | None = None,
) -> ImageResult:
    """Runs the stages over an image and its regions, all regions at the same time.

    Args:
        image: The image; its regions with `dropped` set are left out.
        stages: Stages by name, in the order of `STAGES`, each called with the work and adding to it.
        read: Gives the bytes of the image's file.
        on_region: Called with each region's result as it comes.
        rejected: How all of its regions end, whatever the stages would say.

    Returns:
        `ImageResult` with one result for each region that is not dropped. If the stage on the whole image rejects, that
        is how all of its regions end.

    Raises:
        EngineUnavailable: From an engine.
        Exception: Whatever else than `Rejected` a stage raises; such an error is ours and not the region's.
    """
    work = CheckedImage(image, read)
    result = ImageResult(image, [], list(image.captions), list(image.long_captions))
    regions = [region for region in image.regions if region.dropped is None]
    if "image_caption" in stages and regions and rejected is None:
        whole = RegionWork(work, captions=result.captions, long_captions=result.long_captions)
        try:
            await _run(stages["image_caption"], whole)
        except Rejected as error:
            rejected = _without_frames(error)
        result.captions, result.long_captions = whole.captions, whole.long_captions
        result.provenance = whole.provenance

    async def annotate(region: SourceRegion) -> RegionResult:
        ended = await _annotate_region(RegionWork(work, region), stages, rejected)
        work.forget(region)
        if on_region is not None:
            on_region(ended)
        return ended

    if len(regions) == 1:
        result.regions = [await annotate(regions[0])]
    elif regions:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(annotate(region)) for region in regions]
        result.regions = [task.result() for task in tasks]
    return result


async def _annotate_region(work: RegionWork, stages: Mapping[str, Stage], rejected: Rejected | None) -> RegionResult:
    try:
        for name, stage in stages.items():
            if name in REGION_STAGES and rejected is None:
                await _run(stage, work)
    except Rejected as error:
        rejected = _without_frames(error)
    ended = RegionResult(
        work.item_id,
        object_text=work.object_text,
        context_text=work.context_text,
        text=work.text,
        hard_negatives=work.hard_negatives,
        provenance=work.provenance,
    )
    if rejected is not None:
        ended.reason, ended.stage, ended.detail = rejected.reason, rejected.stage, rejected.detail
    return ended


def _without_frames(error: Rejected) -> Rejected:
    """The error without its traceback, which holds itself and the image in memory for as long as no garbage is looked for."""
    return error.with_traceback(None)


async def _run(stage: Stage, work: RegionWork) -> None:
    try:
        await stage(work)
    except (Rejected, EngineUnavailable):
        raise
    except Exception as error:
        error.add_note(f"This happened in the stage {stage.name!r} with {work.item_id!r}.")
        raise


class ShardAnnotator:
    """Takes whole shards through the stages and commits them; several at a time, in one process and event loop.

    Args:
        settings: Of the run.
        folder: Its folder.
        engines: Engines by name, see `build_engines`.
        prompts: Prompts of the enabled stages by name.
        generations: How often each stage was repeated on purpose, see `RunFolder.generations`.
        progress: Told of each region and answer, see `RunProgress`; or `None`.
    """

    def __init__(
        self,
        settings: LongGritSettings,
        folder: RunFolder,
        engines: Mapping[str, Engine],
        prompts: Mapping[str, Prompt],
        generations: Mapping[str, int],
        progress: Any = None,
    ):
        self.settings, self.folder, self.engines = settings, folder, engines
        self.prompts, self.generations, self.progress = prompts, generations, progress
        self._hashes = {name: prompt.hash for name, prompt in prompts.items()}
        most = settings.images_in_flight
        self._in_flight = asyncio.Semaphore(min(most, _IMAGES_OF_RULES) if set(engines) == {"rules"} else most)
        self._commits = asyncio.Lock()
        self._last_commit = time.monotonic()

    async def annotate(
        self,
        number: int,
        items: Sequence[SourceImage | SourceError],
        store: ImageStore,
        all_begun: asyncio.Event | None = None,
    ) -> dict[str, Any]:
        """Annotates the images of a shard, at most `images_in_flight` of all shards at a time, and commits it.

        The regions of an image whose file is not of the size that it had in the source stage end as `"changed_image"`: answers
        in the journal, and masks, are of the earlier picture. A file that was replaced by one of the very same size is
        not noticed, and neither is one whose shard is done.

        Args:
            number: The shard.
            items: What the source stage wrote of it.
            store: Reads image files by their location.
            all_begun: Set when the last image has begun, so that the next shard may.

        Returns:
            The state that `RunFolder.write_state` wrote: `fingerprint`, `regions`, `accepted`, `to_retry` and
            `summary`.

        Raises:
            EngineUnavailable: From an engine, in an `ExceptionGroup`; what was answered is in the journal.
        """
        images = [_licensed(item, self.settings) for item in items if isinstance(item, SourceImage)]
        errors = [item for item in items if not isinstance(item, SourceImage)]
        changed = await asyncio.to_thread(_changed_images, images, store)
        journal = await asyncio.to_thread(AnswerJournal, self.folder.answers(number), self._count_answer)
        try:
            stages = build_stages(
                self.settings, Asker(self.settings, self.engines, self.prompts, journal, self.generations)
            )
            tasks = []
            async with asyncio.TaskGroup() as group:
                for image in images:
                    await self._in_flight.acquire()
                    task = group.create_task(self._annotate_image(image, stages, store, changed))
                    # Not within the task: one that is cancelled before its first step runs nothing.
                    task.add_done_callback(lambda _: self._in_flight.release())
                    tasks.append(task)
                if all_begun is not None:
                    all_begun.set()
            results = [task.result() for task in tasks]
        finally:
            journal.close()
        # One at a time: a shard with its images is the largest thing in memory.
        async with self._commits:
            return await asyncio.to_thread(self._commit, number, results, errors, store)

    async def _annotate_image(
        self, image: SourceImage, stages: Mapping[str, Stage], store: ImageStore, changed: Mapping[str, Rejected]
    ) -> ImageResult:
        read = partial(store.read, image.location)
        return await annotate_image(image, stages, read, self._count_region, changed.get(image.image_id))

    def _count_answer(self, answer: Answer) -> None:
        if self.progress is not None:
            self.progress.update(requests=1, tokens=answer.prompt_tokens + answer.completion_tokens)

    def _count_region(self, result: RegionResult) -> None:
        if self.progress is not None:
            accepted = result.reason is None
            self.progress.update(accepted=int(accepted), rejected=int(not accepted))

    def _commit(
        self, number: int, results: Sequence[ImageResult], errors: Sequence[SourceError], store: ImageStore
    ) -> dict[str, Any]:
        # Of other settings, maybe; from here on its files are no longer what it says.
        self.folder.remove_state(number)
        write_shard(number, results, self.settings, store, errors)
        # The seconds of all shards add up to those of the process.
        now = time.monotonic()
        seconds, self._last_commit = now - self._last_commit, now
        regions = [region for result in results for region in result.regions]
        state = {
            "fingerprint": self.folder.fingerprint(number, self.settings, self._hashes, self.generations),
            "regions": len(regions),
            "accepted": sum(region.reason is None for region in regions),
            "to_retry": sum(region.reason in RETRIED_REASONS for region in regions),
            "summary": summarise_shard(results, errors, seed=self.settings.seed, seconds=seconds),
        }
        self.folder.write_state(number, state)
        return state


def _licensed(image: SourceImage, settings: LongGritSettings) -> SourceImage:
    """The image with the licence of the settings where the source does not say."""
    return image if image.licence else dataclasses.replace(image, licence=settings.source.licence)


def _changed_images(images: Sequence[SourceImage], store: ImageStore) -> dict[str, Rejected]:
    changed = {}
    for image in images:
        size = None if image.file_size is None else store.size(image.location)
        if size is not None and size != image.file_size:
            detail = f"The file has {size} bytes, and had {image.file_size} when the source was read."
            changed[image.image_id] = Rejected("source", "changed_image", detail)
            logger.warning(
                "%s: %s Its regions are rejected as changed_image; put the earlier file back and retry the failed ones, or "
                "set another output_dir.",
                image.file,
                detail,
            )
    return changed
