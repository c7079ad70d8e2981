# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data of `run_pretraining.py`: readers by format, the sample that is evaluated, and whether the objective finds its parts."""

import copy
import fnmatch
import glob
import json
import logging
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from torch.utils.data import Dataset, IterableDataset

from modeling_pixclip import BadSampleLog, RegionJsonlDataset, RegionStream, SkipBadSamples
from processing_pixclip import FGCLIPDataset, RegionFolderDataset
from processing_pixclip.bad_samples import BAD_DATA_ERRORS
from processing_pixclip.region_shards import StoredRecord


logger = logging.getLogger(__name__)

# By the extension of the file, or of the shards; a folder has none.
_FORMATS = {
    ".jsonl": "jsonl",
    ".tar": "webdataset",
    ".parquet": "parquet",
    ".json": "fgclip",
    ".csv": "folder",
    "": "folder",
}
_SHARDS = ("webdataset", "parquet")
DATA_FORMATS = ("auto", *dict.fromkeys(_FORMATS.values()))
# Samples that are looked at to find out whether the data have what the objective reads.
_LOOKED_AT = 200


def data_format_of(path: str, data_format: str) -> str:
    """Format of a file or of a pattern of shards, by its extension if `data_format` is `"auto"`."""
    if data_format != "auto":
        return data_format
    extension = "" if os.path.isdir(path) else os.path.splitext(path)[1]
    if extension not in _FORMATS:
        accepted = ", ".join(f"{extension or 'a folder'} ({name})" for extension, name in _FORMATS.items())
        raise ValueError(
            f"the format of {path!r} cannot be told by its extension {extension!r}; accepted are {accepted}, or "
            f"--data_format with one of these names."
        )
    return _FORMATS[extension]


def shards_of_dataset(dataset: str) -> str:
    """
    Pattern of the shards of a data set of the LongGRIT pipeline, parquet before WebDataset.

    Args:
        dataset: Its folder, or its id on the Hub.

    Raises:
        FileNotFoundError: If it is neither, or has no shards; says what is there.
        ValueError: If it is a folder whose run has not ended.
    """
    patterns = ("data/*.parquet", "webdataset/*.tar")
    if os.path.isdir(dataset):
        root, files = (
            glob.escape(dataset),
            [path.relative_to(dataset).as_posix() for path in Path(dataset).glob("*/*")],
        )
    else:
        try:
            root, files = f"hf://datasets/{dataset}", HfApi().list_repo_files(dataset, repo_type="dataset")
        except (httpx.HTTPError, HFValidationError, OfflineModeIsEnabled) as error:
            raise FileNotFoundError(
                f"{dataset!r} is neither a folder (a relative path is one from {os.getcwd()}) nor a data set on the Hub that "
                f"can be read: {str(error).splitlines()[0]}"
            ) from error
    for pattern in patterns:
        shards = fnmatch.filter(files, pattern)
        if shards:
            if os.path.isdir(dataset):
                _check_finished(Path(dataset) / os.path.dirname(pattern), shards)
            return f"{root}/{pattern}"
    if os.path.isdir(dataset) and any(list(Path(dataset).glob(os.path.basename(pattern))) for pattern in patterns):
        raise FileNotFoundError(
            f"{dataset!r} holds the shards themselves; accepted is the folder around it, {str(Path(dataset).absolute().parent)!r}."
        )
    raise FileNotFoundError(
        f"{dataset!r} has none of {' and '.join(patterns)}, which examples/build_longgrit.py writes, but "
        f"{', '.join(sorted(files)[:10]) or 'nothing'}. For other shards and files there is train_file."
    )


def _check_finished(folder: Path, shards: list[str]) -> None:
    """Raises an error if `sizes.json`, which a run writes at its end and takes away as it begins anew, is of other shards."""
    listing = folder / "sizes.json"
    listed = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else {}
    if sorted(listed) != sorted(map(os.path.basename, shards)):
        raise ValueError(
            f"{folder} holds {len(shards)} shards and sizes.json lists {len(listed)}: the run of examples/build_longgrit.py has "
            f"not ended, and the shards may be of two runs. Start it again; or name them as train_file, "
            f"'{folder}/*{os.path.splitext(shards[0])[1]}'."
        )


def open_training_data(
    path: str, data_format: str, image_root: str | None, bad_samples: BadSampleLog, shuffle_buffer: int, seed: int
) -> Dataset:
    """
    The reader of a data set, which skips bad samples: a `RegionStream` for shards, else map-style.

    Args:
        path: A file, a folder with a table, a table of a folder, or a pattern of shards.
        data_format: One of `DATA_FORMATS`.
        image_root: Folder that paths of images are relative to, if not that of `path`.
        bad_samples: Where bad samples are counted.
        shuffle_buffer, seed: Of shards; `seed` also draws the expressions of FG-CLIP's regions.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the format is not known, or the data cannot be read.
    """
    data_format = data_format_of(path, data_format)
    if data_format in _SHARDS:
        return RegionStream(path, data_format, shuffle_buffer, seed, bad_samples, image_root)
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no {path!r}; a relative path is one from {os.getcwd()}.")
    if data_format == "folder":
        is_folder = os.path.isdir(path)
        folder = image_root or (path if is_folder else Path(path).parent)
        reader = RegionFolderDataset(folder, None if is_folder else path, bad_samples)
    elif data_format == "fgclip":
        reader = FGCLIPDataset(path, image_root, seed=seed, bad_samples=bad_samples)
        if reader.rejected or reader.repaired:
            logger.warning("%s: left out: %s; changed: %s", path, dict(reader.rejected), dict(reader.repaired))
    else:
        reader = RegionJsonlDataset(path, image_root, bad_samples)
    return SkipBadSamples(reader, bad_samples)


def bad_sample_log_path(output_dir: str, split: str) -> Path:
    """
    File for the bad samples of a split, one a machine; all processes call it together.

    Args:
        output_dir: That of the run, which machines may share.
        split: `"train"`, whose file is `bad_samples.jsonl`, or another name, which is part of the file's.
    """
    # torchrun numbers what it starts; of other launchers the name of the machine tells.
    machine = (os.environ.get("GROUP_RANK"), socket.gethostname())
    machines = [machine]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        machines = [machine] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(machines, machine)
    number = list(dict.fromkeys(machines)).index(machine)
    name = "bad_samples" if split == "train" else f"bad_samples_{split.replace('-', '_')}"
    return Path(output_dir) / f"{name}{f'_machine{number}' if number else ''}.jsonl"


class UncountedReadings:
    """In the place of a `BadSampleLog` where samples are read that another reading counts: tells of bad ones once."""

    def __init__(self):
        self.path = "the messages above"
        self._told: set[str] = set()

    def add_source(self, name: str, num_samples: int) -> None:
        pass

    def add_good(self, count: int = 1) -> None:
        pass

    def add_bad(self, where: str, error: Exception, image_id: str | None = None) -> None:
        if where not in self._told:
            logger.info("%s is bad and skipped: %s", where, error)
            self._told.add(where)


def uncounted(dataset: Dataset) -> Dataset:
    """A reader of `open_training_data`, whose readings by another name count for no share of bad samples."""
    if isinstance(dataset, IterableDataset):
        dataset = copy.copy(dataset)
        dataset.bad_samples = UncountedReadings()
        return dataset
    return SkipBadSamples(dataset.dataset, UncountedReadings(), dataset.name)


class FirstSamples(Dataset):
    """Samples of a stream, held in memory as they are stored, about 100 kB each, and decoded when they are indexed."""

    def __init__(self, records: list[Any]):
        self.stored = records

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int) -> Any:
        return {**self.stored[index].sample(), "epoch": 0}


class ChosenSamples(Dataset):
    """Some samples of a map-style data set, read when they are indexed."""

    def __init__(self, dataset: Dataset, indices: list[int]):
        self.dataset = dataset
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]


def evaluation_sample(dataset: Dataset, max_regions: int, captions: bool, log: Any = None, seed: int = 0) -> Dataset:
    """
    Images to measure retrieval on, always the same ones: all of them, or at random as many as have `max_regions`.

    Of shards the first images are taken, and held in memory as they are stored. Bad samples are left out.

    Args:
        dataset: A reader of `open_training_data`.
        max_regions: Most regions in all, at least one image; images without regions count as one.
        captions: Whether images without regions are of use, for their captions.
        log: The `BadSampleLog` in which this first reading counts, if it does; further ones never do.
        seed: Of the random choice.

    Raises:
        ValueError: If there is no image of use.
        TooManyBadSamplesError: See `BadSampleLog`.
    """
    log = UncountedReadings() if log is None else log
    stream = isinstance(dataset, IterableDataset)
    chosen, regions = [], 0
    for place, where, read in _stored_samples(dataset) if stream else _samples_at_random(dataset, seed):
        try:
            sample = read()
        except BAD_DATA_ERRORS as error:
            log.add_bad(where, error, place.image_id if stream else _records(dataset)[place]["image_id"])
            continue
        log.add_good()
        has_captions = bool(sample["captions"] or sample.get("long_captions"))
        if not sample["masks"] and not (captions and has_captions):
            continue
        regions += max(1, len(sample["masks"]))
        if chosen and regions > max_regions:
            break
        chosen.append(place)
    if not chosen:
        raise ValueError(f"no sample of {_name(dataset)} has a region{' or a caption' if captions else ''}.")
    return FirstSamples(chosen) if stream else ChosenSamples(uncounted(dataset), sorted(chosen))


def _stored_samples(stream: RegionStream) -> Iterator[tuple[StoredRecord, str, Callable]]:
    for record in stream.stored_records():
        yield record, record.where, record.sample


def _samples_at_random(dataset: SkipBadSamples, seed: int) -> Iterator[tuple[int, str, Callable]]:
    order = list(range(len(dataset)))
    random.Random(seed).shuffle(order)
    for index in order:
        yield index, f"{dataset.name}, sample {index}", lambda index=index: dataset.dataset[index]


def first_samples(dataset: Dataset, count: int = _LOOKED_AT) -> Iterator[dict[str, Any]]:
    """The first samples of a data set, or its records where reading them needs no image."""
    if not isinstance(dataset, IterableDataset):
        for record in _records(dataset):
            regions = record["regions"]
            yield {
                "captions": record.get("captions", []),
                "long_captions": record.get("long_captions", []),
                "regions": len(regions),
                "hard_negatives": [text for region in regions for text in region.get("hard_negatives", [])],
            }
        return
    for _, sample in zip(range(count), dataset):
        yield {
            "captions": sample["captions"],
            "long_captions": sample.get("long_captions", []),
            "regions": len(sample["masks"]),
            "hard_negatives": [text for texts in sample.get("hard_negatives", []) for text in texts],
        }


# What the terms read, beside texts of regions.
_READERS = {
    "captions": ("caption_short",),
    "long_captions": ("caption_long",),
    "regions": ("global", "crop", "local", "region", "text_intra"),
    "hard_negatives": ("hard_negative", "ranking_margin"),
}


def check_parts(dataset: Dataset, config: Any, preset: str) -> None:
    """
    Compares a data set with what the objective reads; reports how many samples have each part.

    Args:
        dataset: A reader; of one that must open images only the first samples are looked at.
        config: The `PixCLIPConfig`.
        preset: How messages call the objective.

    Raises:
        ValueError: If no sample has a part that a term of the objective reads.
    """
    counts, looked_at = Counter(), 0
    for sample in first_samples(dataset):
        looked_at += 1
        counts.update(part for part in _READERS if sample[part])
    shares = ", ".join(f"{counts[part]} have {part}" for part in _READERS)
    logger.info("%s: of %d samples %s", _name(dataset), looked_at, shares)
    if not config.batch_parts["captions"]:
        # An image without regions enters whole, with a caption.
        counts["regions"] += counts["captions"]
    missing = {
        part: [term for term in terms if term in config.term_weights]
        for part, terms in _READERS.items()
        if not counts[part]
    }
    missing = {part: terms for part, terms in missing.items() if terms}
    if missing:
        parts = ", ".join(f"{part} (for {', '.join(terms)})" for part, terms in missing.items())
        weights = ", ".join(f'"{term}_weight": 0' for terms in missing.values() for term in terms)
        raise ValueError(
            f"the objective (--preset {preset}) reads what the data do not have: none of the {looked_at} samples of "
            f"{_name(dataset)} that were looked at has {parts}. Add it to the data, choose another preset, or leave the "
            f"terms out: --objective '{{{weights}}}'."
        )


def texts_of(dataset: Dataset, captions: bool, long_captions: bool, hard_negatives: bool) -> list[str]:
    """Every text that the collator may ask the text vectors for; the whole data set's of one with records."""
    texts: dict[str | None, None] = {}
    for record in dataset if isinstance(dataset, FirstSamples) else _records(dataset):
        regions = record.get("regions", [])
        for region in regions:
            # FG-CLIP's regions have a long and a short text, of which either may be the region's.
            texts |= dict.fromkeys(region.get(key) for key in ("text", "object_text", "long", "short"))
        texts |= dict.fromkeys([*record.get("texts", []), *record.get("object_texts", [])])
        if hard_negatives:
            negatives = [region.get("hard_negatives", []) for region in regions] + record.get("hard_negatives", [])
            texts |= dict.fromkeys(text for of_region in negatives for text in of_region)
        texts |= dict.fromkeys(record.get("captions", []) if captions else [])
        texts |= dict.fromkeys(record.get("long_captions", []) if long_captions else [])
    return [text for text in texts if text is not None]


def _records(dataset: Dataset) -> list[dict[str, Any]]:
    """Of the reader under the wrappers of this module and of `SkipBadSamples`."""
    while not hasattr(dataset, "records"):
        dataset = dataset.dataset
    return dataset.records


def _name(dataset: Any) -> str:
    inner = getattr(dataset, "dataset", dataset)
    paths = getattr(inner, "paths", None)
    return str(
        getattr(inner, "path", None) or (paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more")
    )
