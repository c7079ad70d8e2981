# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Runs the LongGRIT pipeline on one machine: source, annotation shard by shard, report; resumed by the same call.

Folder and journals are locked by `fcntl`, which is there on POSIX systems only: Linux and macOS, not Windows.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import LongGritSettings
from .dataset_card import write_card
from .engines import Engine, EngineUnavailable
from .pipeline import ShardAnnotator
from .prompts import Prompt, load_prompt
from .run_folder import RunFolder
from .run_report import write_report
from .run_summary import merge_summaries
from .source_stage import manifest_shards, read_manifest_shard, run_source_stage
from .sources import Source, open_image_store


logger = logging.getLogger(__name__)


@dataclass
class RunPlan:
    """What is left to do of a run.

    Attributes:
        shards: Numbers of all shards of this run.
        todo: Those that are not done, in their order.
        regions: Regions of all of them that are annotated.
        done: Regions of those that are done.
        prompts: Prompts of the enabled stages.
        generations: How often each stage was repeated on purpose.
    """

    shards: list[int]
    todo: list[int]
    regions: int
    done: int
    prompts: dict[str, Prompt]
    generations: dict[str, int]


def run_pipeline(
    settings: LongGritSettings,
    limit: int | None = None,
    repeat: Iterable[str] = (),
    retry_failed: bool = False,
    source: Source | None = None,
    engines: Mapping[str, Engine] | None = None,
    progress: Any = None,
) -> dict[str, Any]:
    """Makes a dataset, or goes on making it: what is done already, and every answer that came, is kept.

    Args:
        settings: The whole run.
        limit: Regions after which no further shard is begun; all by default.
        repeat: Names of stages whose models are asked again although the request is the same.
        retry_failed: Whether regions that were rejected as `"request_failed"`, `"unreadable_image"` or `"changed_image"` are
            tried again.
        source: Images and regions; opened by the settings by default.
        engines: Engines by name, left open at the end; made by the settings by default.
        progress: Told of what happens, see `RunProgress`; or `None`.

    Returns:
        The summary of the dataset, see `merge_summaries`.

    Raises:
        EngineUnavailable: If no model can be asked any more. The same call goes on from there.
        KeyboardInterrupt: On SIGINT, likewise.
        RuntimeError: If another process works on the same folder.
        ValueError: If the folder was begun with another source, or a limited run would leave shards in it that were made
            with other settings.

    Example:
        >>> import tempfile
        >>> settings = LongGritSettings(
        ...     output_dir=tempfile.mkdtemp(),
        ...     source={"format": "folder", "path": "examples/data/coco_regions/heldout.jsonl"},
        ...     engine="rules",
        ...     output={"images_per_shard": 1},
        ... )
        >>> summary = run_pipeline(settings, limit=1)
        >>> summary["images"], summary["accepted"] > 0
        (1, True)
    """
    folder = RunFolder(settings.output_dir)
    with folder.lock():
        plan = plan_run(settings, folder, limit, repeat, retry_failed, source, progress)
        failed = None
        if plan.todo:
            try:
                asyncio.run(_annotate(settings, folder, plan, engines, progress))
            except ExceptionGroup as group:
                failed = cause_of(group)
        if failed is not None:
            # Not within `except`: a traceback of the whole group would follow.
            raise failed
        return finish_run(settings, folder, plan)


def plan_run(
    settings: LongGritSettings,
    folder: RunFolder,
    limit: int | None = None,
    repeat: Iterable[str] = (),
    retry_failed: bool = False,
    source: Source | None = None,
    progress: Any = None,
) -> RunPlan:
    """Runs the source stage and finds which shards are left to annotate; arguments as those of `run_pipeline`."""
    prompts = load_prompts(settings)
    run_source_stage(settings, limit=limit, source=source, progress=progress)
    generations = folder.generations(repeat)
    plan = RunPlan([], [], 0, 0, prompts, generations)
    hashes = {name: prompt.hash for name, prompt in prompts.items()}
    stale = []
    for number in range(manifest_shards(settings.output_dir)):
        state = folder.read_state(number)
        same = state is not None and state["fingerprint"] == folder.fingerprint(number, settings, hashes, generations)
        if limit is not None and plan.regions >= limit:
            # Not of this run, but the dataset holds it.
            if same:
                plan.shards.append(number)
            elif state is not None:
                stale.append(number)
            continue
        plan.shards.append(number)
        regions = folder.accepted_by_source(number)
        plan.regions += regions
        if same and not (retry_failed and state["to_retry"]):
            plan.done += regions
        else:
            plan.todo.append(number)
    if stale:
        raise ValueError(
            f"{settings.output_dir} holds {len(stale)} shards beyond the limit of {limit} regions that other settings or "
            f"prompts made, the first is {stale[0]:05d}; a dataset of both would result. Run without a limit, or set "
            f"another output_dir."
        )
    folder.write_settings(settings)
    folder.begin_repeats(repeat, generations)
    if progress is not None:
        progress.start(plan.regions, plan.done)
    return plan


def load_prompts(settings: LongGritSettings) -> dict[str, Prompt]:
    """The prompts of the enabled stages, by name."""
    return {name: load_prompt(name, settings.stage(name).prompt) for name in settings.enabled_stages}


def build_engines(settings: LongGritSettings) -> dict[str, Engine]:
    """The engines that the stages of a run ask, by name."""
    engines: dict[str, Engine] = {}
    for name in sorted({settings.engine_of(stage) for stage in settings.enabled_stages}):
        if name == "openai":
            from .openai_engine import OpenAIEngine

            engines[name] = OpenAIEngine(settings)
        elif name == "transformers":
            from .transformers_engine import TransformersEngine

            engines[name] = TransformersEngine(settings)
        else:
            from .rule_engine import RuleEngine

            engines[name] = RuleEngine(settings)
    return engines


def finish_run(settings: LongGritSettings, folder: RunFolder, plan: RunPlan) -> dict[str, Any]:
    """Writes what stands beside the shards when all are done, and returns the summary of the dataset."""
    summary = merge_summaries(folder.read_state(number)["summary"] for number in plan.shards)
    write_report(settings.output_dir, summary, settings, open_image_store(settings.source))
    # The last one, for it says that the dataset is finished.
    write_card(settings.output_dir, summary, settings)
    folder.end_repeats()
    return summary


async def _annotate(
    settings: LongGritSettings,
    folder: RunFolder,
    plan: RunPlan,
    engines: Mapping[str, Engine] | None,
    progress: Any,
) -> None:
    own = build_engines(settings) if engines is None else {}
    annotator = ShardAnnotator(settings, folder, engines or own, plan.prompts, plan.generations, progress)
    store = open_image_store(settings.source)
    slots = asyncio.Semaphore(settings.open_shards)

    async def annotate(number: int, all_begun: asyncio.Event) -> None:
        items = await asyncio.to_thread(read_manifest_shard, settings.output_dir, number)
        await annotator.annotate(number, items, store, all_begun)
        slots.release()

    try:
        async with asyncio.TaskGroup() as group:
            for number in plan.todo:
                await slots.acquire()
                all_begun = asyncio.Event()
                group.create_task(annotate(number, all_begun))
                await all_begun.wait()
    finally:
        for engine in own.values():
            await engine.close()


def cause_of(group: BaseExceptionGroup) -> BaseException:
    """The one error that ended all the tasks; of the others, the first of those that are equal but for numbers is logged."""
    errors = list(_leaves(group))
    # A server that is down says less than a mistake of ours.
    errors.sort(key=lambda error: isinstance(error, EngineUnavailable))
    told = {_kind_of(errors[0])}
    for error in errors[1:]:
        if _kind_of(error) not in told:
            logger.error("The run also met %r.", error)
            told.add(_kind_of(error))
    return errors[0]


def _kind_of(error: BaseException) -> str:
    return re.sub(r"\d+", "0", repr(error))


def _leaves(group: BaseExceptionGroup) -> Iterable[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
