# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Runs the LongGRIT pipeline on many machines by Ray Data: the same stages, the same files, shard by shard."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .config import LongGritSettings
from .engines import EngineUnavailable
from .pipeline import ShardAnnotator
from .records import SourceImage
from .run_folder import RunFolder
from .runner import build_engines, cause_of, finish_run, load_prompts, plan_run
from .source_stage import read_manifest_shard
from .sources import Source, SourceError, open_image_store


# Shards of which the images are read at a time, for each process that annotates.
_READERS = 2
# What a shard's row tells the progress.
_COUNTS = ("accepted", "rejected", "requests", "tokens")


def run_pipeline_on_ray(
    settings: LongGritSettings,
    limit: int | None = None,
    repeat: Iterable[str] = (),
    retry_failed: bool = False,
    source: Source | None = None,
    progress: Any = None,
    address: str | None = None,
    workers: int = 2,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
) -> dict[str, Any]:
    """Makes a dataset as `run_pipeline` does, and the same one, with the shards spread over a Ray cluster.

    The source stage and the report run here. One row of a Ray dataset is one shard: a task reads its images into the
    object store, an actor takes it through the stages and commits it; Ray starts reading further shards as long as there
    is room. The output folder, image files and prompt files must be where all machines see them under the same paths.
    Either runner goes on with what the other has left.

    Keys are read where the models are asked, so the environment variables that `api_key_env` names must be set on every machine
    when Ray is started there (`ray start`), or by `ray.init(runtime_env={"env_vars": ...})` before this call.

    Args:
        settings: The whole run. `images_in_flight`, `open_shards` and the servers' `max_concurrency` are those of each actor.
        limit, repeat, retry_failed, source: As in `run_pipeline`.
        progress: Told of shards as they are committed, see `RunProgress`; or `None`.
        address: Of the cluster, see `ray.init`; by default what `RAY_ADDRESS` names, else one is started on this machine.
            Not read where Ray is connected already.
        workers: Processes that annotate.
        num_cpus: CPUs of each of them.
        num_gpus: GPUs of each of them, for the engine `"transformers"`.

    Returns:
        The summary of the dataset, see `merge_summaries`.

    Raises:
        ImportError: If Ray is not installed.
        EngineUnavailable: As in `run_pipeline`.
        RuntimeError, ValueError: As in `run_pipeline`, and if an engine cannot be made on a worker, as without its key.

    Example:
        >>> settings = LongGritSettings(
        ...     output_dir="out",
        ...     source={"format": "folder", "path": "examples/data/coco_regions/heldout.jsonl"},
        ...     engine="rules",
        ... )
        >>> summary = run_pipeline_on_ray(settings, address="auto", workers=8)  # doctest: +SKIP
    """
    try:
        import ray.data
    except ImportError as error:
        raise ImportError("Ray is not installed; get it by `pip install pixclip[ray]`.") from error
    folder = RunFolder(settings.output_dir)
    with folder.lock():
        plan = plan_run(settings, folder, limit, repeat, retry_failed, source, progress)
        if plan.todo:
            with _connected(address):
                # Ray's own bars would cross with the run's.
                ray.data.DataContext.get_current().enable_progress_bars = progress is None
                compute = ray.data.ActorPoolStrategy(
                    size=workers,
                    max_concurrent_calls_per_actor=settings.open_shards,
                    # One more than are open: its images are there when it is needed.
                    max_tasks_in_flight_per_actor=settings.open_shards + 1,
                )
                everywhere = _with_absolute_paths(settings)
                rows = [{"number": number} for number in plan.todo]
                rows = ray.data.from_items(rows, override_num_blocks=len(rows))
                # Reading waits for disks; without a CPU of its own it cannot be kept from running by the workers.
                rows = rows.map(_read_images, fn_args=[everywhere], num_cpus=0, concurrency=_READERS * workers)
                rows = rows.map(
                    _AnnotateShard,
                    fn_constructor_args=[everywhere, plan.generations],
                    compute=compute,
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                )
                # Closed, the workers are ended before the folder is free for another run.
                with contextlib.closing(iter(rows.iter_rows())) as told:
                    for row in told:
                        if row["problem"] is not None:
                            raise RuntimeError(row["problem"])
                        if row["unavailable"] is not None:
                            raise EngineUnavailable(row["unavailable"])
                        if progress is not None:
                            progress.update(**{key: row[key] for key in _COUNTS})
        return finish_run(settings, folder, plan)


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connects to a cluster, where that is not done, and leaves it again."""
    import ray

    if ray.is_initialized():
        yield
        return
    if address is None and "RAY_ADDRESS" not in os.environ:
        # A cluster for one run, on this machine: it serves no pages and tells nobody.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(include_dashboard=False)
    else:
        ray.init(address=address)
    try:
        yield
    finally:
        ray.shutdown()


def _read_images(row: dict[str, Any], settings: LongGritSettings) -> dict[str, Any]:
    """Adds the image files of a shard to its row, in the order of the manifest; or why one cannot be read."""
    store = open_image_store(settings.source)
    contents, problems = [], []
    for image in _images_to_annotate(read_manifest_shard(settings.output_dir, row["number"])):
        try:
            content, problem = store.read(image.location), ""
        except (OSError, ValueError) as error:
            content, problem = b"", f"{type(error).__name__}: {error}"
        contents.append(content)
        problems.append(problem)
    return {**row, "contents": contents, "problems": problems}


class _ReadImages:
    """Stands in for an `ImageStore`: the images of one shard, read before."""

    def __init__(self, images: Sequence[SourceImage], contents: Sequence[bytes], problems: Sequence[str]):
        keys = [_key(image.location) for image in images]
        self._read = {key: (bytes(content), problem) for key, content, problem in zip(keys, contents, problems)}

    def read(self, location: Mapping[str, Any]) -> bytes:
        content, problem = self._read[_key(location)]
        if problem:
            raise OSError(problem)
        return content

    def size(self, location: Mapping[str, Any]) -> int | None:
        # Of a picture without regions, nothing was read.
        content, problem = self._read.get(_key(location), (b"", "not read"))
        return None if problem else len(content)


class _AnnotateShard:
    """Annotates and commits shards, several at a time: Ray runs the calls of an actor in one event loop."""

    def __init__(self, settings: LongGritSettings, generations: Mapping[str, int]):
        self.settings = settings
        self.counts = {"requests": 0, "tokens": 0}
        self.problem = None
        try:
            engines = build_engines(settings)
        except (ValueError, ImportError) as error:
            # Raised here, it would be told as the death of an actor, pages long.
            self.problem = (
                f"The Ray worker on {socket.gethostname()} cannot ask the models: {error} Variables and packages of the "
                f"driver are not those of the workers: set them where Ray is started on each machine, or by the "
                f"runtime_env of ray.init."
            )
            return
        self.annotator = ShardAnnotator(
            settings,
            RunFolder(settings.output_dir),
            engines,
            load_prompts(settings),
            generations,
            progress=self,
        )

    def update(self, requests: int = 0, tokens: int = 0, **regions: int) -> None:
        """Counts what the annotator tells; regions are counted from its results."""
        self.counts["requests"] += requests
        self.counts["tokens"] += tokens

    async def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        told = {"number": row["number"], "accepted": 0, "rejected": 0, "unavailable": None, "problem": self.problem}
        if self.problem is not None:
            return {**told, **self.counts}
        items = read_manifest_shard(self.settings.output_dir, row["number"])
        store = _ReadImages(list(_images_to_annotate(items)), row["contents"], row["problems"])
        try:
            state = await self.annotator.annotate(row["number"], items, store)
        except ExceptionGroup as group:
            error = cause_of(group)
            if not isinstance(error, EngineUnavailable):
                raise error from group
            told["unavailable"] = str(error)
        else:
            told |= {"accepted": state["accepted"], "rejected": state["regions"] - state["accepted"]}
        # Those of other open shards among them: each is told once.
        counts, self.counts = self.counts, {"requests": 0, "tokens": 0}
        return {**told, **counts}


def _images_to_annotate(items: Iterable[SourceImage | SourceError]) -> Iterable[SourceImage]:
    for item in items:
        if isinstance(item, SourceImage) and any(region.dropped is None for region in item.regions):
            yield item


def _key(location: Mapping[str, Any]) -> str:
    return json.dumps(location, sort_keys=True)


def _with_absolute_paths(settings: LongGritSettings) -> LongGritSettings:
    """The same for a process with another working directory."""
    content = settings.model_dump()
    content["output_dir"] = os.path.abspath(content["output_dir"])
    for key in ("path", "image_root", "instances", "panoptic", "captions"):
        if content["source"][key] is not None:
            content["source"][key] = os.path.abspath(content["source"][key])
    for stage in content["stages"].values():
        if stage["prompt"] is not None:
            stage["prompt"] = os.path.abspath(stage["prompt"])
    return LongGritSettings(**content)
