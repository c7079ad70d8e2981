# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Region samples from a streamed data set of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import IterableDataset

from .bad_samples import BAD_DATA_ERRORS, BadSampleLog
from .region_records import RegionSample
from .region_shards import record_of_row
from .region_streams import accelerate_loader, refuse_dispatched_batches


class StreamedRecords(IterableDataset):
    """Region samples from a `datasets.IterableDataset`, such as `load_dataset(..., streaming=True)` gives.

    Its rows have the keys of `RegionJsonlDataset`'s records, with the image file's bytes: "image" is a column of the
    feature `Image` of `datasets`, or a struct with `bytes` and maybe `path`; "regions" is JSON or a list of structs, in
    which a null is a missing key. Bring other rows into that form with its `map`, and mix them with its `shuffle`, before.

    Give it to the plain Trainer as `train_dataset`, with `max_steps`, because it has no length, and
    `TrainingArguments(accelerator_config={"dispatch_batches": False}, remove_unused_columns=False)`. Every epoch is
    shuffled, and drawn by the collator, anew. For large trainings write shards (`write_region_parquet`) and take
    `RegionStream`, which has none of these limits:

    - In several processes each reads and decodes the whole stream and takes its own batches of it, so that more
      processes do not load faster. Do not split it with `datasets.distributed.split_dataset_by_node`: accelerate would
      split it once more.
    - More workers than the data set has files stand idle, as `datasets` warns.
    - The Trainer resumes it by reading again what came before in the epoch. That is exact, but takes the time of it. Its
      position is that of `dataset.state_dict()`, which `datasets` resumes exactly where nothing is shuffled only.
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
        TypeError: If `dataset` is another kind of data set.
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
        self.dataset = dataset.decode(False)
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
        number = 0
        for row in self.dataset:
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


def _where(row: dict[str, Any]) -> str:
    # A shuffled stream has no positions, but the log must know a sample that it meets again.
    identifier = row.get("image_id")
    if isinstance(identifier, str):
        return f"streamed record with image_id {identifier!r:.100}"
    return (
        f"streamed record {blake2b(repr(row).encode('utf-8', 'replace'), digest_size=8).hexdigest()}, without image_id"
    )
