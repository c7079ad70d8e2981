# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Stream of region samples from shards, shared out over ranks and workers, which resumes where a checkpoint left off."""

from __future__ import annotations

import copy
import glob
import itertools
import json
import os
import posixpath
import random
import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from .bad_samples import BAD_DATA_ERRORS, BadSampleLog
from .region_records import RegionSample
from .region_shards import SHARD_FORMATS, StoredRecord, open_shards


try:
    import fsspec
except ImportError:
    fsspec = None

logger = logging.get_logger(__name__)

# More samples than that are a training.
_LOOKED_AT = 1000
_EXTENSIONS = {".parquet": "parquet", ".tar": "webdataset"}


class _Loader(NamedTuple):
    """What a data loader takes: from which batch on, and in several processes full batches of each rank."""

    first_batch: int = 0
    batch_size: int = 1
    rank: int = 0
    ranks: int = 1
    drop_last: bool = False

    def length_of_rank(self, length: int) -> int:
        """Samples that each rank takes of the `length` of an epoch."""
        if self.ranks == 1:
            return length
        step = self.ranks * self.batch_size
        return (length // step if self.drop_last else -(-length // step)) * self.batch_size


class RegionStream(IterableDataset):
    """Streams region samples from parquet or WebDataset shards, for data sets that are too large for random access.

    Give it to the plain Trainer as `train_dataset`, with
    `TrainingArguments(accelerator_config={"dispatch_batches": False}, remove_unused_columns=False)`. accelerate's own
    way of sending the batches of one process to the others cuts every tensor to the number of images, which is wrong for
    batches of regions; the stream refuses it with an error.

    **Sharing out.** The number of samples of every shard is known beforehand, so that an epoch is a fixed sequence: the
    shards in an order drawn from `seed` and the epoch, one after the other. It is cut into contiguous parts, one for
    each worker of each rank, at any sample, so that any number of shards is right for any number of ranks and workers,
    and each reads its own part only. In several processes every rank takes the same number of full batches, so that none
    waits for another: what is missing for the last step (less than one batch of each rank) is taken again from the
    beginning of the epoch, as accelerate does for every data set, and a warning says how many; with
    `dataloader_drop_last=True` the samples that do not fill a step are left out of the epoch in place of it. In one
    process the last batch is as short as it comes out.

    **Why not `datasets`.** A shuffled `IterableDataset` of `datasets` (5.2) cannot be resumed exactly: its
    `load_state_dict` loses the examples in the shuffle buffer, as its documentation says. And it shares out whole shards,
    or lets every rank read everything, so that shards of uneven size leave ranks with uneven numbers of steps. For a
    data set that exists only in that form there is `StreamedRecords`.

    **Resuming.** Which sample comes when depends on `seed`, the epoch and the numbers of ranks, workers and samples a
    batch alone. The `global_step` of a checkpoint's `trainer_state.json` is therefore the position: with
    `resume_from_checkpoint` and the same numbers, the next batch is precisely the one that would have come. The
    batches before it are not read; of the records in the shuffle buffer at that point, those still to come are.
    `StreamResumeCallback` makes sure that the numbers are the same. Outside of the Trainer, `state_dict` and
    `load_state_dict` do the same.

    **Bad data.** With `bad_samples`, a sample that cannot be read is counted and written down, and another one, half an
    epoch away, takes its place, so that batches keep their size, ranks their number of steps, and a resumed run its
    position. Without it, the error is raised.

    Args:
        paths (`str`, `os.PathLike` or a sequence of them):
            Shards or patterns such as `"shards/*.tar"`; also addresses that fsspec knows, such as
            `"hf://datasets/<user>/<name>/*.parquet"`.
        format (`str`, *optional*, defaults to that of the shards' extension):
            `"parquet"` or `"webdataset"`; see `write_region_parquet` and `write_region_webdataset` for the layout.
        shuffle_buffer (`int`, defaults to 1000):
            Number of undecoded samples, of about 100 kB each, that every worker holds to draw the next one from. 0:
            neither samples nor shards are shuffled.
        seed (`int`, defaults to 0):
            Seed of the shuffling; the same on all ranks.
        bad_samples (`BadSampleLog`, *optional*):
            Where samples that cannot be read are counted and written down.
        image_root (`str` or `os.PathLike`, *optional*, defaults to the folder of each shard):
            Folder of the image files, for parquet shards that hold paths in place of images.

    Raises:
        FileNotFoundError: If no file matches, or one is missing.
        ValueError: If a setting is out of its limits, or a shard cannot be opened and there is no `bad_samples`; with
            it, one sample stands for such a shard, or as many as its `sizes.json` says. While iterating: if accelerate
            would cut the batches, or a sample cannot be read and there is no `bad_samples`.
        OSError: The same, where the file system is the reason.
        TooManyBadSamplesError: While iterating, see `BadSampleLog`.

    Example:
        >>> import tempfile
        >>> from processing_pixclip import RegionJsonlDataset, RegionStream, write_region_webdataset
        >>> dataset = RegionJsonlDataset("examples/data/coco_regions/heldout.jsonl")
        >>> folder = Path(tempfile.mkdtemp()) / "shards"
        >>> _ = write_region_webdataset(dataset.records[:6], folder, dataset.image_root, samples_per_shard=2)
        >>> stream = RegionStream(f"{folder}/*.tar", seed=1)
        >>> stream.set_epoch(3)
        >>> len(stream), sum(1 for _ in stream), next(iter(stream))["epoch"]
        (6, 6, 3)
    """

    # accelerate cuts predictions to this length modulo the batch; they have one row a region, not a sample, so that no
    # cut is right.
    total_dataset_length = 0

    def __init__(
        self,
        paths: str | os.PathLike | Sequence[str | os.PathLike],
        format: str | None = None,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        bad_samples: BadSampleLog | None = None,
        image_root: str | os.PathLike | None = None,
    ):
        if shuffle_buffer < 0:
            raise ValueError(f"shuffle_buffer is {shuffle_buffer}; accepted are 0 and more.")
        if format is not None and format not in SHARD_FORMATS:
            raise ValueError(f"format is {format!r}; accepted are {sorted(SHARD_FORMATS)}.")
        self.paths = _find_shards(paths)
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.bad_samples = bad_samples
        root = None if image_root is None else Path(image_root).as_posix()
        self._shards = open_shards(self.paths, _format_of if format is None else lambda path: format, root)
        self._length = sum(shard.size for shard in self._shards)
        if bad_samples is None:
            for shard in self._shards:
                if shard.error is not None:
                    raise shard.error
        if self._length == 0:
            raise ValueError(f"none of the {len(self.paths)} shards, {self.paths[0]} and so on, holds a sample.")
        if bad_samples is not None:
            bad_samples.add_source(self.paths[0], self._length)
        # What set_epoch finds out: the epoch, and `_Loader`. Shared with the workers of a data loader that keeps them
        # (`persistent_workers`).
        self._plan = torch.tensor([0, *_Loader()]).share_memory_()
        self._node: tuple[int, int] | None = None
        self._position = 0
        self._resume_at = 0

    def __len__(self) -> int:
        """Number of samples of an epoch, over all ranks."""
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch to iterate next; the Trainer calls it.

        It also looks at the data loader of accelerate that is about to iterate the stream, if there is one: for its
        rank, whose samples alone are then read, and for the batches that a resumed training skips.

        Raises:
            ValueError: If that loader would cut the batches.
        """
        if epoch != int(self._plan[0]):
            self._resume_at = self._position = 0
        loader = self._look_at_loader()
        if loader.rank == 0:
            self._tell_repeats(loader.length_of_rank(self._length) * loader.ranks)
        self._plan.copy_(torch.tensor([epoch, *loader]))

    def split_by_node(self, rank: int, world_size: int) -> RegionStream:
        """Returns the stream of one rank, for a loop of your own; under the Trainer, accelerate's rank is found.

        Args:
            rank: Index of this process.
            world_size: Number of processes. Each gets the same number of samples, ceil(samples / processes); what is
                missing for it is taken again from the beginning of the epoch, and a warning says how many.

        Raises:
            ValueError: If there is no such rank.
        """
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank} of {world_size} processes; accepted are 0 to world_size - 1.")
        if rank == 0:
            self._tell_repeats(-(-self._length // world_size) * world_size)
        part = copy.copy(self)
        part._plan = self._plan.clone().share_memory_()
        part._node = (rank, world_size)
        return part

    def fingerprint(self) -> str:
        """Names the shards by their file names and sizes: equal for the same shards in another folder."""
        shards = [[posixpath.basename(shard.path), shard.size] for shard in self._shards]
        return blake2b(json.dumps(shards).encode(), digest_size=8).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """Position of this stream, for a loop of your own without the Trainer and without workers.

        torchdata's `StatefulDataLoader` asks each of its workers for it.

        Returns:
            The epoch, the number of samples that were taken in it, and what must be equal when it is loaded. After the
            last sample of an epoch nothing is left of it: go on with `set_epoch`.
        """
        return {"epoch": int(self._plan[0]), "position": self._position, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a `state_dict` at the next iteration, without reading what came before.

        Raises:
            ValueError: If the state is of a stream with other shards, another seed, shuffle buffer, rank or number of samples.
        """
        for key, value in self._identity().items():
            if state[key] != value:
                raise ValueError(f"the state has {key}={state[key]!r}, but this stream has {value!r}.")
        self._plan[0] = state["epoch"]
        self._position = self._resume_at = state["position"]

    def _identity(self) -> dict[str, Any]:
        rank, world_size = self._node or (0, 1)
        return {
            "seed": self.seed,
            "shuffle_buffer": self.shuffle_buffer,
            "num_samples": self._length,
            "shards": self.fingerprint(),
            "rank": rank,
            "world_size": world_size,
        }

    def stored_records(self) -> Iterator[StoredRecord]:
        """All records of all shards in their order, not yet checked or decoded; `sample()` of each does that."""
        yield from (record for _, record in _Sequence(self._shards).read(0, self._length))

    def _look_at_loader(self) -> _Loader:
        """Returns what the accelerate loader that begins will take from this stream."""
        loader = accelerate_loader()
        if loader is None:
            return _Loader()
        loaders = sys.modules["accelerate.data_loader"]
        dataset, rank, ranks, drop_last = loader.dataset, 0, 1, False
        if isinstance(dataset, loaders.IterableDatasetShard):
            rank, ranks, drop_last = dataset.process_index, dataset.num_processes, dataset.drop_last
            # Its length is another than what it yields, so that a Trainer would count wrong steps an epoch.
            if dataset.split_batches and ranks > 1 and dataset.dataset is self:
                raise ValueError(
                    "accelerate is set to split batches over the processes; set split_batches=False, for the Trainer "
                    'with TrainingArguments(accelerator_config={"split_batches": False, "dispatch_batches": False}).'
                )
            dataset = dataset.dataset
        if dataset is not self:
            return _Loader()
        refuse_dispatched_batches(loader)
        if ranks > 1 and self._node is not None:
            raise ValueError(
                "the stream is split by split_by_node, and accelerate would split it again; leave it out."
            )
        # The loader would read, decode and discard the batches that a resumed training skips.
        first_batch, loader.skip_batches = loader.skip_batches, 0
        found = _Loader(first_batch, loader.batch_size, rank, ranks, drop_last)
        if found.length_of_rank(self._length) == 0:
            raise ValueError(
                f"drop_last leaves nothing of {self._length} samples, which do not fill a step of {ranks} processes "
                f"with {loader.batch_size} each; take smaller batches, or drop_last=False."
            )
        return found

    def _tell_repeats(self, taken: int) -> None:
        if taken > self._length:
            logger.warning_once(
                f"{taken - self._length} of the {self._length} samples come twice, or more often, in an epoch, so that "
                f"all processes take the same number of them."
            )
        elif taken < self._length:
            logger.warning_once(f"{self._length - taken} of the {self._length} samples are left out of each epoch.")

    def __iter__(self) -> Iterator[RegionSample]:
        epoch, *plan = self._plan.tolist()
        loader = _Loader(*plan)
        worker = get_worker_info()
        index, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        resume_at, self._resume_at = self._resume_at, 0
        if loader.ranks == 1 and self._node is not None:
            loader = loader._replace(rank=self._node[0], ranks=self._node[1])
        self._position = resume_at
        samples = self._counted(self._read_lane(epoch, loader, index, workers, resume_at))
        if loader.ranks > 1 and self._node is None:
            return _between_those_of_other_ranks(samples, loader)
        if self._node is None and _processes() > 1 and accelerate_loader() is None:
            return _tell_unsplit(samples)
        return samples

    def _counted(self, samples: Iterator[RegionSample]) -> Iterator[RegionSample]:
        for sample in samples:
            self._position += 1
            yield sample

    def _read_lane(
        self, epoch: int, loader: _Loader, worker: int, workers: int, resume_at: int
    ) -> Iterator[RegionSample]:
        """Reads the samples of one worker of one rank, from its first batch and `resume_at` of its own on."""
        batch_size, first_batch = loader.batch_size, loader.first_batch
        length = loader.length_of_rank(self._length)
        batches = -(-length // batch_size)
        # A data loader takes batch k of a rank from worker k modulo workers, beginning anew where a run is resumed.
        lane = (first_batch + worker) % workers
        sizes = [len(range(other, batches, workers)) * batch_size for other in range(workers)]
        sizes[(batches - 1) % workers] -= batches * batch_size - length
        start = loader.rank * length + sum(sizes[:lane])
        skipped = len(range(lane, first_batch, workers)) * batch_size + resume_at

        order = list(range(len(self._shards)))
        if self.shuffle_buffer:
            random.Random(f"{self.seed} {epoch}").shuffle(order)
        sequence = _Sequence([self._shards[shard] for shard in order])
        places = _shuffled(sizes[lane], self.shuffle_buffer, f"{self.seed} {epoch} {start}")
        for place, record in _in_order(sequence, start, sizes[lane], places, skipped):
            sample = self._sample_of(record)
            if sample is None:
                sample = self._sample_in_place_of(sequence, start + place)
            elif self.bad_samples is not None:
                self.bad_samples.add_good()
            yield {**sample, "epoch": epoch}

    def _sample_of(self, record: StoredRecord) -> RegionSample | None:
        if self.bad_samples is None:
            return record.sample()
        try:
            return record.sample()
        except BAD_DATA_ERRORS as error:
            self.bad_samples.add_bad(record.where, error, record.image_id)
            return None

    def _sample_in_place_of(self, sequence: _Sequence, place: int) -> RegionSample:
        # From far away, so that it is hardly ever in the same batch as itself.
        for step in range(self._length):
            ((_, record),) = sequence.read(place + self._length // 2 + step, 1)
            sample = self._sample_of(record)
            if sample is not None:
                return sample
        raise ValueError(
            f"not one of the {self._length} samples can be read; they are listed in {self.bad_samples.path}."
        )


class StreamResumeCallback(TrainerCallback, ExportableState):
    """Keeps in each checkpoint of a Trainer what the order of a `RegionStream` hangs on, and checks it on resume.

    With another number of processes, workers or samples a step, or other shards, the same `global_step` is another
    place in another order: samples would come twice and others not at all. It lies in `trainer_state.json`, so that it
    is as whole as that.

    Raises:
        ValueError: As the training begins, if its training set is no `RegionStream`, or if it is resumed with other
            numbers or shards than the checkpoint was written with, unless `ignore_data_skip` is set.

    Example:
        >>> import tempfile
        >>> from transformers import Trainer, TrainingArguments
        >>> from processing_pixclip import (
        ...     RegionJsonlDataset, RegionStream, StreamResumeCallback, write_region_webdataset
        ... )
        >>> dataset = RegionJsonlDataset("examples/data/coco_regions/heldout.jsonl")
        >>> folder = Path(tempfile.mkdtemp()) / "shards"
        >>> _ = write_region_webdataset(dataset.records[:6], folder, dataset.image_root)
        >>> arguments = TrainingArguments(
        ...     tempfile.mkdtemp(),
        ...     report_to="none",
        ...     remove_unused_columns=False,
        ...     accelerator_config={"dispatch_batches": False},
        ... )
        >>> trainer = Trainer(
        ...     torch.nn.Linear(1, 1),
        ...     arguments,
        ...     train_dataset=RegionStream(f"{folder}/*.tar"),
        ...     callbacks=[StreamResumeCallback()],
        ... )
    """

    def __init__(self):
        self.order: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into the checkpoint."""
        return {"args": {}, "attributes": {"order": self.order}}

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        dataset = train_dataloader.dataset
        # accelerate wraps it in several processes.
        stream = dataset if isinstance(dataset, RegionStream) else getattr(dataset, "dataset", None)
        if not isinstance(stream, RegionStream):
            raise ValueError(
                f"StreamResumeCallback is for a RegionStream, but the training set is a {type(dataset).__name__}, which "
                f"the Trainer resumes by its sampler; leave the callback out."
            )
        self.order = {
            "processes": args.world_size,
            "workers": max(args.dataloader_num_workers, 1),
            "batch_size": train_dataloader.batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "drop_last": args.dataloader_drop_last,
            "seed": stream.seed,
            "shuffle_buffer": stream.shuffle_buffer,
            "samples": len(stream),
            "shards": stream.fingerprint(),
        }
        stored = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {}).get("order", {})
        if state.global_step and not args.ignore_data_skip:
            self._compare(stored, state.global_step)
        # The Trainer only replaces what is there.
        state.stateful_callbacks[type(self).__name__] = self.state()

    def _compare(self, stored: dict[str, Any], step: int) -> None:
        if not stored:
            logger.warning(
                f"The checkpoint of step {step} was written without StreamResumeCallback; whether the stream goes on "
                f"where it stopped cannot be checked."
            )
            return
        other = [
            f"{key} {stored.get(key)!r}, now {value!r}"
            for key, value in self.order.items()
            if stored.get(key) != value
        ]
        if other:
            raise ValueError(
                f"the checkpoint of step {step} was written with {'; '.join(other)}: its step is another place in this "
                f"stream, so that samples would come twice and others not at all. Resume with what it was written with, "
                f"or set ignore_data_skip=True to begin an epoch anew."
            )


class _Sequence:
    """The samples of shards one after the other, and again from the beginning."""

    def __init__(self, shards: list[Any]):
        self._shards = shards
        self._ends = list(itertools.accumulate(shard.size for shard in shards))

    def read(self, start: int, size: int, wanted=lambda offset: True) -> Iterator[tuple[int, StoredRecord]]:
        """Yields offset from `start` and record of those of the next `size` samples that are wanted."""
        offset = 0
        while offset < size:
            place = (start + offset) % self._ends[-1]
            number = bisect_right(self._ends, place)
            shard = self._shards[number]
            first = place - (self._ends[number] - shard.size)
            count = min(size - offset, shard.size - first)
            # `first` in the shard is `offset` in the sequence.
            shift = offset - first
            for index, record in shard.read(first, first + count, lambda i, shift=shift: wanted(i + shift)):
                yield index + shift, record
            offset += count


def _in_order(
    sequence: _Sequence, start: int, size: int, places: Iterator[int], skipped: int
) -> Iterator[tuple[int, StoredRecord]]:
    """Yields the samples of a part in the order of `places` but the first `skipped`, which are not read."""
    done = bytearray(size)
    for place in itertools.islice(places, skipped):
        done[place] = True
    first = done.find(0)
    if first < 0:
        return
    held: dict[int, StoredRecord] = {}
    reader = sequence.read(start + first, size - first, lambda offset: not done[first + offset])
    for place in places:
        while place not in held:
            offset, record = next(reader)
            held[first + offset] = record
        yield place, held.pop(place)


def _shuffled(size: int, buffer_size: int, seed: str) -> Iterator[int]:
    """Yields 0 to size - 1 as a buffer of that size mixes them: each is a random one of those in the buffer."""
    generator = random.Random(seed)
    coming = iter(range(size))
    buffer = list(itertools.islice(coming, max(buffer_size, 1)))
    for following in coming:
        drawn = generator.randrange(len(buffer))
        yield buffer[drawn]
        buffer[drawn] = following
    if buffer_size:
        generator.shuffle(buffer)
    yield from buffer


def accelerate_loader() -> Any:
    """Returns the data loader of accelerate that is being iterated, or `None`."""
    # Whoever iterates through accelerate has imported it.
    loaders = sys.modules.get("accelerate.data_loader")
    return None if loaders is None else loaders.GradientState().active_dataloader


def refuse_dispatched_batches(loader: Any) -> None:
    """Raises a `ValueError` if a data loader of accelerate cuts batches, which it does for a stream if not told else."""
    if isinstance(loader, sys.modules["accelerate.data_loader"].DataLoaderDispatcher):
        raise ValueError(
            "accelerate is set to dispatch the batches of one process to the others, which cuts the tensors of a "
            "batch of regions to the number of its images; set dispatch_batches=False, for the Trainer with "
            'TrainingArguments(accelerator_config={"dispatch_batches": False}).'
        )


def _processes() -> int:
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if running else 1


def _tell_unsplit(samples: Iterator[RegionSample]) -> Iterator[RegionSample]:
    # Whoever looks at the first few only may well do so in every process.
    yield from itertools.islice(samples, _LOOKED_AT)
    logger.warning_once(
        f"{_processes()} processes run, and each reads the whole stream, so that every sample comes as often; give it to "
        f"the Trainer, or take stream.split_by_node(rank, world_size), for the whole stream split_by_node(0, 1)."
    )
    yield from samples


def _between_those_of_other_ranks(samples: Iterator[RegionSample], loader: _Loader) -> Iterator[RegionSample | None]:
    """Sets samples where accelerate takes those of this rank, and `None` where it takes, and discards, the others'."""
    while batch := list(itertools.islice(samples, loader.batch_size)):
        yield from itertools.repeat(None, loader.rank * loader.batch_size)
        yield from batch
        yield from itertools.repeat(None, (loader.ranks - 1 - loader.rank) * loader.batch_size)


def _find_shards(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    patterns = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: list[str] = []
    for pattern in patterns:
        pattern = os.fspath(pattern)
        if "://" in pattern:
            system, path = fsspec.core.url_to_fs(pattern)
            matches = [system.unstrip_protocol(match) for match in system.glob(path)]
        elif os.path.isfile(pattern):
            # A name may hold characters that a pattern gives a meaning.
            matches = [Path(pattern).as_posix()]
        else:
            matches = [Path(match).as_posix() for match in glob.glob(pattern, recursive=True)]
        if not matches:
            raise FileNotFoundError(f"no file matches {pattern!r}; accepted are paths and patterns of shards.")
        found += sorted(matches)
    doubled = sorted({path for path in found if found.count(path) > 1}) if len(set(found)) < len(found) else []
    if doubled:
        raise ValueError(f"paths name {doubled[0]!r} more than once; its samples would come as often.")
    if not found:
        raise FileNotFoundError("paths is empty; accepted are paths and patterns of shards.")
    return found


def _format_of(path: str) -> str:
    extension = os.path.splitext(path)[1]
    if extension not in _EXTENSIONS:
        raise ValueError(f"{path} has none of the extensions {sorted(_EXTENSIONS)}; name its format.")
    return _EXTENSIONS[extension]
