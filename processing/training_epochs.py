# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which epoch a sample is drawn in: random draws that a resumed training repeats hang on it."""

from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainerCallback


class EpochDataset(Dataset):
    """Base of the map-style readers: holds the epoch that they put into their samples.

    The epoch lies in shared memory, so that it reaches the workers of a data loader that keeps them
    (`persistent_workers`).

    Attributes:
        epoch (`int`): What `set_epoch` set last, 0 at first.
    """

    # accelerate cuts predictions to this length modulo the batch; they have one row a region, not a sample, so that no
    # cut is right.
    total_dataset_length = 0

    def __init__(self):
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the samples that are indexed from now on, in the workers of a data loader too."""
        self._epoch.fill_(epoch)


class SetEpochCallback(TrainerCallback):
    """Tells the training set of a Trainer which epoch begins.

    What `PixCLIPDataCollator` draws at random for an image hangs on the epoch. accelerate (1.15) passes the epoch to a
    data set with `set_epoch` in one process, but not in several, nor in an epoch that is resumed in the middle; without
    this callback every epoch would then draw the same, and a resumed training something else than the uninterrupted
    one. A reader inside torch's `Subset` and `ConcatDataset` is found. Of streams accelerate calls `set_epoch`; here it is
    only checked that there is one that puts the epoch into the samples.

    Raises:
        ValueError: As the training begins, if no reader with `set_epoch` is found, or the training set is a bare
            `datasets.IterableDataset`, whose samples have no epoch.

    Example:
        >>> import tempfile
        >>> from transformers import Trainer, TrainingArguments
        >>> from processing_pixclip import RegionJsonlDataset, SetEpochCallback
        >>> trainer = Trainer(
        ...     torch.nn.Linear(1, 1),
        ...     TrainingArguments(tempfile.mkdtemp(), report_to="none", remove_unused_columns=False),
        ...     train_dataset=RegionJsonlDataset("examples/data/coco_regions/train.jsonl"),
        ...     callbacks=[SetEpochCallback()],
        ... )
    """

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        dataset = train_dataloader.dataset
        streamed = isinstance(dataset, IterableDataset)
        # What accelerate wraps a stream in has a set_epoch also where the stream has none.
        if streamed and hasattr(dataset, "process_index") and hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        if type(dataset).__module__.partition(".")[0] == "datasets" and streamed:
            raise ValueError(
                "the training set is a datasets.IterableDataset, whose samples do not hold the epoch, so that every "
                "epoch would draw the same regions and texts; give StreamedRecords(dataset) to the Trainer."
            )
        readers = _readers(dataset)
        if not readers:
            raise ValueError(
                f"SetEpochCallback found no set_epoch in the training set, a {type(dataset).__name__}; train on a "
                f"reader of this package or give the data set set_epoch(epoch), which puts 'epoch' into its samples."
            )
        for reader in [] if streamed else readers:
            reader.set_epoch(int(state.epoch or 0))


def epoch_generator(seed: int, epoch: int, image_id: str, purpose: str = "") -> torch.Generator:
    """Source of the random draws for one image in one epoch, the same in every process, run and batch.

    Args:
        seed: Seed of the training.
        epoch: Epoch of the sample.
        image_id: Identifier of the image within its data set.
        purpose: What is drawn, so that several draws for one image do not hang together.

    Example:
        >>> draws = [torch.rand((), generator=epoch_generator(0, epoch, "photo 7")).item() for epoch in (0, 1, 0)]
        >>> draws[0] == draws[2], draws[0] == draws[1]
        (True, False)
    """
    key = "\0".join(map(str, (seed, epoch, purpose, image_id)))
    digest = blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def _readers(dataset: Any) -> list[Any]:
    if hasattr(dataset, "set_epoch"):
        return [dataset]
    inner = [dataset.dataset] if hasattr(dataset, "dataset") else getattr(dataset, "datasets", [])
    return [reader for part in inner for reader in _readers(part)]


__all__ = ["EpochDataset", "SetEpochCallback", "epoch_generator"]
