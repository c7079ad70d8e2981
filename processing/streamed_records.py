# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Region samples from a streamed data set of `datasets`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info
from transformers.utils import logging

from .bad_samples import BAD_DATA_ERRORS, BadSampleLog
from .region_records import RegionSample
from .region_shards import record_of_row
from .region_streams import accelerate_loader, refuse_dispatched_batches


logger = logging.get_logger(__name__)

# The last process that read such a stream; a forked worker finds its parent here.
_reader: int | None = None


class StreamedRecords(IterableDataset):
    """Region samples from a `datasets.IterableDataset`, such as `load_dataset(..., streaming=True)` gives.

    Its rows have the keys of `RegionJsonlDataset`'s records, with the image file's bytes: "image" is a column of the
    feature `Image` of `datasets`, or a struct with `bytes` and maybe `path`; "regions" is JSON or a list of structs, in
    which a null is a missing key. Bring other rows into that form with `dataset.decode(False).map(...)`, because without
    `decode(False)` its `map` decodes the images, and mix them with its `shuffle`, before.

    Give it to the plain Trainer as `train_dataset`, with `max_steps`, because it has no length, and
    `TrainingArguments(accelerator_config={"dispatch_batches": False}, remove_unused_columns=False)`. Every epoch is
    shuffled, and drawn by the collator, anew. For large trainings write shards (`write_region_parquet`) and take
    `RegionStream`, which has none of these limits:

    - In several processes each reads and decodes the whole stream and takes its own batches of it, so that more
      processes do not load faster. Do not split it with `datasets.distributed.split_dataset_by_node`: accelerate would
      split it once more.
    - More workers than the data set has files stand idle, as `datasets` warns.
    - The Trainer resumes it by reading again what came before, which takes the time of it, and only in the first epoch
      at the right place: of later ones it knows no length, and goes on somewhere else. Of its position,
      `dataset.state_dict()`, `datasets` loses the shuffle buffer.
    - Parquet and JSON that were read in a process before hang its forked workers, because the threads of Arrow do not
      come along: look at samples in another process, or take no workers. A warning tells.
    - Files that `datasets` cannot read stop the run, for it cannot go on behind them; only samples are skipped.

    Args:
        dataset (`datasets.IterableDataset`):
            The rows.
        bad_samples (`BadSampleLog`, *optional*):
            Where samples that cannot be read are counted and written down, by their `image_id`; they are left out.
            Without it, the error is raised.

    Attributes:
        dataset (`datasets.IterableDataset`): The same rows, whose images are not decoded by `datasets`.

    Raises:
        TypeError: If `dataset` is another kind of data set. While iterating, if its rows hold decoded images.
        ValueError: While iterating, if accelerate would cut the batches, or a sample cannot be read and there is no
            `bad_samples`.
        OSError: The same, where the file system is the reason.
        TooManyBadSamplesError: While iterating, see `BadSampleLog`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from datasets import load_dataset
        >>> from processing_pixclip import RegionJsonlDataset, StreamedRecords, write_region_parquet
        >>> records = RegionJsonlDataset("examples/data/coco_regions/heldout.jsonl")
        >>> folder = Path(tempfile.mkdtemp()) / "shards"
        >>> files = [str(file) for file in write_region_parquet(records.records[:6], folder, records.image_root, 2)]
        >>> rows = load_dataset("parquet", data_files=files, split="train", streaming=True)
        >>> samples = StreamedRecords(rows.shuffle(seed=0, buffer_size=4))
        >>> samples.set_epoch(1)
        >>> sum(1 for _ in samples), next(iter(samples))["epoch"]
        (6, 1)
    """

    # accelerate cuts predictions to this length modulo the batch; they have one row a region, not a sample, so that no
    # cut is right.
    total_dataset_length = 0

    def __init__(self, dataset: Any, bad_samples: BadSampleLog | None = None):
        from datasets import IterableDataset as Rows

        if not isinstance(dataset, Rows):
            raise TypeError(
                f"dataset is a {type(dataset).__name__}; accepted is a datasets.IterableDataset, as load_dataset(..., "
                f"streaming=True) gives, or to_iterable_dataset() of another data set of datasets."
            )
        # The checks of the image come first, and `datasets` knows nothing of them.
        # After `map` the features are unknown, and nothing is decoded.
        self.dataset = dataset if dataset.features is None else dataset.decode(False)
        self.bad_samples = bad_samples
        # Epoch, rank and number of processes; shared with the workers of a data loader that keeps them.
        self._plan = torch.tensor([0, 0, 1]).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch to iterate next; the Trainer calls it.

        Raises:
            ValueError: If the data loader of accelerate that is about to iterate would cut the batches.
        """
        loader = accelerate_loader()
        shard = getattr(loader, "dataset", None)
        if loader is not None and self in (shard, getattr(shard, "dataset", None)):
            refuse_dispatched_batches(loader)
        rank, ranks = getattr(shard, "process_index", 0), getattr(shard, "num_processes", 1)
        self.dataset.set_epoch(epoch)
        self._plan.copy_(torch.tensor([epoch, rank, ranks]))

    def __iter__(self) -> Iterator[RegionSample]:
        epoch, rank, ranks = self._plan.tolist()
        _tell_forked()
        number = 0
        for row in self.dataset:
            if not isinstance(row.get("image"), (Mapping, str, type(None))):
                raise TypeError(
                    f"the rows hold decoded images, a {type(row['image']).__name__}, not the bytes of their files; call "
                    f"decode(False) on the data set before map."
                )
            record = record_of_row(row, _where(row))
            try:
                sample = record.sample()
            except BAD_DATA_ERRORS as error:
                if self.bad_samples is None:
                    raise
                self.bad_samples.add_bad(record.where, error, record.image_id)
                continue
            # All processes see the same; a bad one is written down once, so each counts its share of the good ones.
            if self.bad_samples is not None and number % ranks == rank:
                self.bad_samples.add_good()
            number += 1
            yield {**sample, "epoch": epoch}


def _tell_forked() -> None:
    global _reader
    if get_worker_info() is not None and _reader not in (None, os.getpid()):
        logger.warning(
            "The process that started this worker has read a streamed data set before; if its files are parquet or JSON, "
            "the worker may now wait for threads of Arrow for ever. Look at samples in another process, or take no workers."
        )
    _reader = os.getpid()


def _where(row: dict[str, Any]) -> str:
    # A shuffled stream has no positions, but the log must know a sample that it meets again.
    identifier = row.get("image_id")
    if isinstance(identifier, str):
        return f"streamed record with image_id {identifier!r:.100}"
    return (
        f"streamed record {blake2b(repr(row).encode('utf-8', 'replace'), digest_size=8).hexdigest()}, without image_id"
    )
