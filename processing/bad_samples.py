# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Samples that cannot be read: skipped, counted, written down with their reason, and an error when they are too many."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import TrainerCallback
from transformers.utils import logging


try:
    import fcntl
except ImportError:
    # Windows has no such locks; two processes that meet one bad sample at once may then both write it down.
    fcntl = None


logger = logging.get_logger(__name__)

# What readers raise for data that is not as it should be; anything else is a mistake in a program and must show.
BAD_DATA_ERRORS = (ValueError, OSError)
# A reason may hold what it is about, and that may be megabytes.
_LONGEST_REASON = 1000
_LONGEST_ID = 200
# A process holds back the count of at most so many good samples, and of one in so many of those counted.
_LARGEST_BLOCK, _BLOCK_SHARE = 64, 1000


class TooManyBadSamplesError(RuntimeError):
    """The share of bad samples has passed `max_bad_fraction` of a `BadSampleLog`.

    Example:
        >>> import tempfile
        >>> log = BadSampleLog(Path(tempfile.mkdtemp()) / "bad_samples.jsonl", max_bad_fraction=0.1, min_samples=1)
        >>> log.add_bad("data.jsonl, line 1", ValueError("not JSON"))
        Traceback (most recent call last):
        ...
        processing_pixclip.bad_samples.TooManyBadSamplesError: 1 of the 1 samples read are bad (100.0%), ...
    """


class BadSampleLog:
    """Counts good and bad samples, writes down each bad one once, and stops the run when too many are bad.

    Each bad sample is one JSON line of `path`:

        {"where": "shards/00003.tar, sample 17 ('00003017')", "image_id": "581", "error": "ValueError", "reason": "..."}

    The files are the truth, so that the workers of a data loader, the processes of one machine and a resumed run count
    together: bad samples are the lines of `path` with different `where`, which makes a sample that is met again in the
    next epoch one sample; beside them `<path>.seen` holds a byte for each good one, up to the size of the data set.
    Both are appended to, whole lines at a time, and continued where they exist: remove them for a new run, and when the
    data have been mended. Good samples are appended in blocks, up to 64 and a thousandth of those so far, and the rest
    when a bad one comes, an epoch ends or the process does; one that is killed loses its block. Machines that share a network file system need a path each, because appending is not atomic
    there; each then judges what it has read.

    Two shares make up the one that is judged. Readers of tables check all entries when they are made (`add_checked`), long
    before images are decoded, so that an entry that passes is not yet a good sample: with the share c of entries left
    out, and the share r of bad ones among the samples read since, c + (1 - c) r is bad.

    Args:
        path (`str` or `os.PathLike`):
            The file, by convention `bad_samples.jsonl` in the output folder. Its folder is made.
        max_bad_fraction (`float`, defaults to 0.01):
            Largest share of bad samples, 0 to 1.
        min_samples (`int`, defaults to 1000):
            The share is first judged when so many samples have been read, or as many as the data set has if that is
            less, so that one bad sample at the start stops nothing; then at every sample. `BadSamplesCallback` judges
            it once more at the end of each epoch, however many were read.

    Raises:
        ValueError: If a setting is out of its limits.

    Example:
        >>> import tempfile
        >>> log = BadSampleLog(Path(tempfile.mkdtemp()) / "bad_samples.jsonl")
        >>> log.add_good()
        >>> log.add_bad("data.jsonl, line 2", ValueError("line 2 is not JSON"))
        >>> log.num_good, log.num_bad
        (1, 1)
    """

    def __init__(self, path: str | os.PathLike, max_bad_fraction: float = 0.01, min_samples: int = 1000):
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}; accepted is a share, 0 to 1.")
        if min_samples < 1:
            raise ValueError(f"min_samples is {min_samples}; accepted are 1 and more.")
        self.path = Path(path)
        self.max_bad_fraction = max_bad_fraction
        self.min_samples = min_samples
        self._sizes: dict[str, int] = {}
        self._left_out: set[str] = set()
        self._block: _Block | None = None
        self._judged = False
        self._seen_path = self.path.with_name(f"{self.path.name}.seen")
        self._known: set[str] = set()
        self._read_to = 0
        self._last_line = ""
        self.path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def num_bad(self) -> int:
        """Bad samples so far, each once, of all processes that write to `path`."""
        self._refresh()
        return len(self._known)

    @property
    def num_good(self) -> int:
        """Good samples so far, no more than the data sets hold, so that further epochs do not dilute the share."""
        good = _size(self._seen_path) + self._own_block().count
        return min(good, max(self._total - self.num_bad, 0)) if self._sizes else good

    @property
    def _total(self) -> int:
        return sum(self._sizes.values())

    def add_source(self, name: str, num_samples: int) -> None:
        """Tells the number of samples of a data set that the log is for; its readers call it.

        Args:
            name: The data set, equal for two readers of which one reads the other.
            num_samples: Its samples, bad ones included.
        """
        self._sizes[name] = max(num_samples, self._sizes.get(name, 0))

    def add_checked(
        self, name: str, num_samples: int, bad: Iterable[tuple[str, Exception, str | None]], what: str = "entries"
    ) -> None:
        """Tells what a reader found that has checked all entries of its table, but decoded no image; readers call it.

        Args:
            name: The data set, as for `add_source`.
            num_samples: Its entries, bad ones included.
            bad: For each bad one, which the reader leaves out, what `add_bad` takes.
            what: How messages call the entries.

        Raises:
            TooManyBadSamplesError: If the share of bad ones is too high.
        """
        self.add_source(name, num_samples)
        found = list(bad)
        self._left_out |= {where for where, *_ in found}
        for where, error, image_id in found:
            self._note(where, error, image_id)
        if len(found) > self.max_bad_fraction * num_samples:
            raise TooManyBadSamplesError(
                f"{len(found)} of the {num_samples} {what} of {name} are bad ({len(found) / num_samples:.1%}), more than "
                f"{self._remedy()}"
            )

    def add_good(self, count: int = 1) -> None:
        """Counts samples that were read.

        Raises:
            TooManyBadSamplesError: If the share of bad ones is now judged for the first time, and too high.
        """
        block = self._own_block()
        block.count += count
        # One more good sample lowers the share: it is judged when enough were read, then at every bad one.
        if block.count >= block.size or not self._judged:
            self.flush()
            if not self._judged:
                self.check()

    def flush(self) -> None:
        """Writes down the good samples of this process that were counted, but held back."""
        block = self._own_block()
        # Not longer than the data set, however many epochs are read.
        if self._sizes and _size(self._seen_path) >= self._total:
            block.count = 0
        block.write()

    def _own_block(self) -> _Block:
        # What the parent of a forked worker holds back, the parent writes.
        if self._block is None or self._block.process != os.getpid():
            self._block = _Block(self._seen_path)
            # Unlike atexit, also at the end of a worker of multiprocessing; and when the log is thrown away.
            Finalize(self, self._block.write, exitpriority=10)
        return self._block

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_block": None}

    def add_bad(self, where: str, error: Exception, image_id: str | None = None) -> None:
        """Writes down a bad sample, unless it has been before.

        Args:
            where: The sample's place in its file, equal whenever it is met.
            error: What reading it raised.
            image_id: Identifier of the image, where it is known.

        Raises:
            TooManyBadSamplesError: If the share of bad ones is too high.
        """
        self._note(where, error, image_id)
        self.flush()
        self.check()

    def _note(self, where: str, error: Exception, image_id: str | None) -> None:
        self._refresh()
        if where not in self._known:
            with _locked(self.path) as descriptor:
                # Another process may have been first.
                self._refresh()
                if where not in self._known:
                    self._write_down(descriptor, where, error, image_id)

    def _write_down(self, descriptor: int, where: str, error: Exception, image_id: str | None) -> None:
        reason = _cut(str(error), _LONGEST_REASON)
        image_id = None if image_id is None else _cut(image_id, _LONGEST_ID)
        if not self._known:
            logger.warning(f"{where} is bad and skipped ({reason}); this and further ones are listed in {self.path}.")
        line = {"where": where, "image_id": image_id, "error": type(error).__name__, "reason": reason}
        # A process that was killed while it wrote may have left half a line.
        start = b"\n" if _size(self.path) > self._read_to else b""
        _write(descriptor, start + json.dumps(line).encode() + b"\n", self.path)

    def check(self, final: bool = False) -> None:
        """Judges the share of bad samples, once enough were read.

        Args:
            final: Whether to judge it however few were read, as at the end of an epoch.

        Raises:
            TooManyBadSamplesError: If it is too high.
        """
        self._refresh()
        left_out = len(self._left_out)
        bad, good = len(self._known) - left_out, self.num_good
        enough = min(self.min_samples, self._total - left_out) if self._sizes else self.min_samples
        self._judged = self._judged or bad + good >= enough
        if not bad or not (final or self._judged):
            return
        share = bad / (bad + good)
        if left_out:
            share = left_out / self._total + (1 - left_out / self._total) * share
        if share > self.max_bad_fraction:
            before = f" beside the {left_out} of {self._total} that were left out before" if left_out else ""
            raise TooManyBadSamplesError(
                f"{bad} of the {bad + good} samples read are bad{before} ({share:.1%}), more than {self._remedy()}"
            )

    def _remedy(self) -> str:
        last = json.loads(self._last_line)
        return (
            f"max_bad_fraction={self.max_bad_fraction}. They are listed in {self.path}; mend the data and remove that "
            f"file, or raise max_bad_fraction. The last is {last['where']}: {last['reason']}"
        )

    def _refresh(self) -> None:
        """Reads the lines that were appended since, by whichever process."""
        if _size(self.path) <= self._read_to:
            return
        with open(self.path, "rb") as file:
            file.seek(self._read_to)
            lines = file.read()
        lines = lines[: lines.rfind(b"\n") + 1]
        self._read_to += len(lines)
        for line in lines.decode().splitlines():
            try:
                self._known.add(json.loads(line)["where"])
            except ValueError:
                logger.warning(f"{self.path} holds a line that is not JSON and is left out: {line!r:.100}")
                continue
            self._last_line = line


class BadSamplesCallback(TrainerCallback):
    """Lets a Trainer judge the bad samples at the end of each epoch, and say how many there are.

    The readers judge while they read, from `min_samples` on. This catches what they leave open: an epoch with fewer
    samples, or one whose last batches are dropped. An epoch that is cut short, by `max_steps` or a stop, is not judged.

    Args:
        log (`BadSampleLog`):
            The log of the training set.

    Raises:
        TooManyBadSamplesError: At the end of an epoch, on every process, if the share is too high.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import Trainer, TrainingArguments
        >>> from processing_pixclip import BadSampleLog, BadSamplesCallback, RegionJsonlDataset, SkipBadSamples
        >>> folder = tempfile.mkdtemp()
        >>> log = BadSampleLog(Path(folder) / "bad_samples.jsonl")
        >>> dataset = SkipBadSamples(RegionJsonlDataset("examples/data/coco_regions/train.jsonl", bad_samples=log), log)
        >>> trainer = Trainer(
        ...     torch.nn.Linear(1, 1),
        ...     TrainingArguments(folder, report_to="none", remove_unused_columns=False),
        ...     train_dataset=dataset,
        ...     callbacks=[BadSamplesCallback(log)],
        ... )
    """

    def __init__(self, log: BadSampleLog):
        self.log = log
        self._told = 0

    def on_epoch_end(self, args, state, control, **kwargs):
        self.log.flush()
        self._tell(args)
        if float(state.epoch or 0).is_integer():
            self.log.check(final=True)

    def on_train_end(self, args, state, control, **kwargs):
        self.log.flush()
        self._tell(args)

    def _tell(self, args: Any) -> None:
        bad = self.log.num_bad
        # Each machine has a log of its own.
        if bad > self._told and args.local_process_index == 0:
            logger.warning(
                f"{bad} of the {bad + self.log.num_good} samples read so far are bad and were skipped; they are listed "
                f"in {self.log.path}."
            )
            self._told = bad


class SkipBadSamples(Dataset):
    """A map-style data set in which a sample that cannot be read is replaced by the next one that can.

    Batches keep their size, and the same sample takes the bad one's place in every run and epoch. Which errors count
    as bad data: `ValueError`, which all readers of this package raise, and `OSError`; anything else passes through.

    Args:
        dataset (`torch.utils.data.Dataset`):
            A region reader, or another data set whose samples have `image_id`.
        log (`BadSampleLog`):
            Where bad samples are counted and written down.
        name (`str`, *optional*, defaults to the `path` or `image_dir` of `dataset`, else the name of its class):
            How the log calls the data set.

    Raises:
        TooManyBadSamplesError: When a sample is read and the share of bad ones is too high.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import Dataset
        >>> class Photos(Dataset):
        ...     def __len__(self):
        ...         return 3
        ...     def __getitem__(self, index):
        ...         if index == 1:
        ...             raise ValueError("photo 1 is truncated")
        ...         return {"image_id": str(index)}
        >>> log = BadSampleLog(Path(tempfile.mkdtemp()) / "bad_samples.jsonl", max_bad_fraction=0.5)
        >>> [sample["image_id"] for sample in SkipBadSamples(Photos(), log)], log.num_bad
        (['0', '2', '2'], 1)
    """

    def __init__(self, dataset: Sequence[Any], log: BadSampleLog, name: str | None = None):
        self.dataset = dataset
        self.log = log
        place = getattr(dataset, "path", getattr(dataset, "image_dir", type(dataset).__name__))
        self.name = str(place) if name is None else name
        log.add_source(self.name, len(dataset))
        if hasattr(dataset, "total_dataset_length"):
            self.total_dataset_length = dataset.total_dataset_length
        if hasattr(dataset, "set_epoch"):
            self.set_epoch = dataset.set_epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        size = len(self.dataset)
        if not -size <= index < size:
            raise IndexError(f"index {index} is out of range for {size} samples.")
        for offset in range(size):
            place = (index + offset) % size
            try:
                sample = self.dataset[place]
            except BAD_DATA_ERRORS as error:
                self.log.add_bad(f"{self.name}, sample {place}", error, _image_id(self.dataset, place))
            else:
                if offset == 0:
                    self.log.add_good()
                return sample
        raise ValueError(
            f"not one of the {size} samples of {self.name} can be read; they are listed in {self.log.path}."
        )


def _image_id(dataset: Any, index: int) -> str | None:
    records = getattr(dataset, "records", None)
    return None if records is None else records[index]["image_id"]


class _Block:
    """Good samples that one process has counted and not yet written down; it writes them when it ends.

    Attributes:
        count: Their number.
        size: Number at which they are to be written.
        process: The process.
    """

    def __init__(self, path: Path):
        self.path = path
        self.count = 0
        self.size = 1
        self.process = os.getpid()

    def write(self) -> None:
        if self.count:
            _append(self.path, b"." * self.count)
            self.count = 0
            self.size = min(_LARGEST_BLOCK, max(_size(self.path) // _BLOCK_SHARE, 1))


@contextlib.contextmanager
def _locked(path: Path):
    """Opens a file for appending while no other process of this class does."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        if fcntl is not None:
            # Some network file systems have no locks; a line may then come twice, and is counted once.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _append(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _write(descriptor, content, path)
    finally:
        os.close(descriptor)


def _write(descriptor: int, content: bytes, path: Path) -> None:
    # One call, so that those of several processes do not mix.
    written = os.write(descriptor, content)
    if written != len(content):
        raise OSError(f"{path} took {written} of {len(content)} bytes; is the disk full?")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]} ... ({len(text)} characters)"
