# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The source stage: every image and region of a source once, filtered, as manifest shards that the other stages read."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..atomic_files import open_atomic, remove_unfinished
from .config import LongGritSettings
from .crop_hashes import HashIndex, crop_hash
from .image_store import ImageStore
from .records import ImageWork, SourceImage
from .region_filters import check_form, filter_regions
from .sources import Source, SourceError, open_image_store, open_source


logger = logging.getLogger(__name__)

_In, _Out = TypeVar("_In"), TypeVar("_Out")

# Raised when the same source and settings give another manifest than before.
MANIFEST_VERSION = 3
# Settings that the manifest does not hang on.
_NOT_COMPARED = {"sam2_device", "licence"}
_PATHS = ("path", "image_root", "instances", "panoptic", "captions")
_THREADS = min(8, os.cpu_count() or 1)


@dataclass(slots=True)
class SourceSummary:
    """Counts over the manifest shards that are there, of this and earlier calls.

    Attributes:
        shards: Manifest shards.
        images: Images in them.
        regions: Regions in them.
        accepted: Regions that are to be annotated.
        complete: Whether the source is read to its end.
        dropped: Regions that are not, by reason.
        errors: Positions of the source without a usable image, by reason.
        mask_sources: Accepted regions by where their mask is from.
    """

    shards: int = 0
    images: int = 0
    regions: int = 0
    accepted: int = 0
    complete: bool = False
    dropped: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    mask_sources: Counter[str] = field(default_factory=Counter)


def run_source_stage(
    settings: LongGritSettings,
    limit: int | None = None,
    source: Source | None = None,
    progress: Any = None,
) -> SourceSummary:
    """Reads the source, gives boxes their masks, filters regions and writes the manifest, shard by shard.

    A shard is there as a whole or not at all. A later call goes on behind the last one, and the manifest is the same,
    byte for byte, however often it was stopped and however many threads decode. One process at a time may write to a
    folder; `run_pipeline` sees to that. Images are decoded only where `filters.hash_distance` is set or SAM 2 needs them.
    Regions whose image cannot be read are dropped as `"unreadable_image"`, near duplicates of the crop of an earlier
    region, in whichever image, as `"duplicate_crop"`; the other reasons are those of `filter_regions` and of the source.
    Answers and texts are kept by identifier, so an image whose `image_id` an earlier one has is an error, as
    `"duplicate_image_id"`, and one with two regions of the same `region_id` as `"duplicate_region_id"`.

    Args:
        settings: Of the run; `output_dir`, `source`, `filters` and `output.images_per_shard` are read.
        limit: Stops behind the shard with which so many regions are accepted; by default it reads to the end.
        source: The source, if it is open already.
        progress: Has `source(images, total_images)`, called after each shard.

    Returns:
        `SourceSummary` of all shards.

    Raises:
        ValueError: If the folder holds a manifest of another source or of other settings; names what differs.
        FileNotFoundError: As `open_source`.

    Example:
        >>> import tempfile
        >>> settings = LongGritSettings(
        ...     output_dir=tempfile.mkdtemp(),
        ...     source={"format": "folder", "path": "examples/data/coco_regions/heldout.jsonl"},
        ...     engine="rules",
        ... )
        >>> summary = run_source_stage(settings, limit=1)
        >>> summary.shards == manifest_shards(settings.output_dir), summary.accepted > 0
        (True, True)
    """
    if source is None:
        # The licence of all images is added where shards are written, and may be changed without reading them again.
        source = open_source(settings.source.model_copy(update={"licence": None}))
    folder = _manifest_folder(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _check_settings(folder, settings, source)
    remove_unfinished(folder)
    distance = settings.filters.hash_distance
    index = None if distance is None else HashIndex(distance)
    summary = SourceSummary()
    total, size = len(source), settings.output.images_per_shard
    # Exact hashes: a million of them take 10 MB.
    image_ids = HashIndex(0)
    earlier, earlier_ids = [], []
    for number in range(manifest_shards(settings.output_dir)):
        header = _read_header(folder, number)
        _count(summary, header)
        earlier.append(base64.b64decode(header["hashes"]))
        earlier_ids.append(base64.b64decode(header["image_ids"]))
    image_ids.extend(np.frombuffer(b"".join(earlier_ids), dtype="<u8"))
    if index is not None:
        index.extend(np.frombuffer(b"".join(earlier), dtype="<u8"))
    with contextlib.closing(_Preparation(settings, open_image_store(settings.source))) as preparation:
        while summary.shards * size < total and (limit is None or summary.accepted < limit):
            start = summary.shards * size
            added_ids: list[int] = []
            items = _unique(source.read(start, min(start + size, total)), start, image_ids, added_ids)
            header, lines = _make_shard(preparation(items), index)
            # A later call needs them to know images that come again.
            header["image_ids"] = _packed(added_ids)
            _check_length(lines, start, min(start + size, total))
            with open_atomic(_manifest_path(folder, summary.shards)) as file:
                file.write("\n".join([json.dumps(header), *lines, ""]).encode())
            _count(summary, header)
            if progress is not None:
                progress.source(min(start + size, total), total)
    summary.complete = summary.shards * size >= total
    return summary


def manifest_shards(output_dir: str | os.PathLike) -> int:
    """Number of manifest shards that are there; they are numbered from 0 without a gap.

    Args:
        output_dir: `output_dir` of the run.

    Example:
        >>> import tempfile
        >>> manifest_shards(tempfile.mkdtemp())
        0
    """
    folder = _manifest_folder(output_dir)
    return next(number for number in count() if not _manifest_path(folder, number).exists())


def read_manifest_shard(output_dir: str | os.PathLike, number: int) -> list[SourceImage | SourceError]:
    """Reads one manifest shard.

    Args:
        output_dir: `output_dir` of the run.
        number: Number of the shard, from 0.

    Returns:
        One item for each of its positions in the source, in their order.

    Raises:
        FileNotFoundError: If the source stage has not written it.

    Example:
        >>> import tempfile
        >>> settings = LongGritSettings(
        ...     output_dir=tempfile.mkdtemp(),
        ...     source={"format": "folder", "path": "examples/data/coco_regions/heldout.jsonl"},
        ...     filters={"hash_distance": None},
        ...     engine="rules",
        ... )
        >>> _ = run_source_stage(settings)
        >>> read_manifest_shard(settings.output_dir, 0)[0].image_id
        '6818'
    """
    path = _manifest_path(_manifest_folder(output_dir), number)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; run the source stage first, `run_source_stage(settings)`.")
    with open(path, encoding="utf-8") as file:
        next(file)
        contents = [json.loads(line) for line in file]
    return [
        SourceImage.from_json(content["image"]) if "image" in content else SourceError.from_json(content["error"])
        for content in contents
    ]


class _Preparation:
    """What is done with each image alone: form, masks, filters, hashes. Yields image and hashes in the order of items."""

    def __init__(self, settings: LongGritSettings, store: ImageStore):
        self._filters = settings.filters
        self._source = settings.source
        self._store = store
        self._pool: ThreadPoolExecutor | None = None
        self._box_masks: Any = None

    def __call__(
        self, items: Iterable[SourceImage | SourceError]
    ) -> Iterator[tuple[SourceImage | SourceError, dict[str, int]]]:
        if self._source.masks == "sam2":
            works = self._with_masks(self._in_threads(self._decode_for_masks, items))
            return self._in_threads(self._filter, works)
        if self._filters.hash_distance is not None:
            return self._in_threads(self._filter, map(self._open, items))
        return map(self._filter, map(self._open, items))

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _open(self, item: SourceImage | SourceError) -> ImageWork | SourceError:
        if isinstance(item, SourceError):
            return item
        return ImageWork(item, lambda: self._store.read(item.location))

    def _filter(self, work: ImageWork | SourceError) -> tuple[SourceImage | SourceError, dict[str, int]]:
        if isinstance(work, SourceError):
            return work, {}
        image = filter_regions(work.source, self._filters)
        # Its answers are of this file, see `ShardAnnotator`.
        image = dataclasses.replace(image, file_size=self._store.size(image.location))
        kept = [region for region in image.regions if region.dropped is None]
        if self._filters.hash_distance is None or not kept:
            return image, {}
        try:
            grey = work.picture().convert("L")
        except (OSError, ValueError) as error:
            return _without_picture(image, error), {}
        hashes = {region.region_id: crop_hash(grey, work.mask(region)) for region in kept}
        return image, {region_id: value for region_id, value in hashes.items() if value is not None}

    def _decode_for_masks(self, item: SourceImage | SourceError) -> ImageWork | SourceError:
        """Decodes an image in which a box needs a mask."""
        work = self._open(item)
        if isinstance(work, SourceError):
            return work
        regions = tuple(check_form(region, item.width, item.height) for region in item.regions)
        work.source = dataclasses.replace(item, regions=regions)
        if any(region.mask is None and region.dropped is None for region in regions):
            try:
                work.picture()
            except (OSError, ValueError) as error:
                work.source = _without_picture(work.source, error)
        return work

    def _with_masks(self, works: Iterable[ImageWork | SourceError]) -> Iterator[ImageWork | SourceError]:
        from .box_masks import BoxMasks

        if self._box_masks is None:
            self._box_masks = BoxMasks(self._source.sam2_model, self._source.sam2_device)
        return self._box_masks(works)

    def _in_threads(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
        """`map`, with a few items at work or waiting at a time, so that few decoded images are in memory."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="longgrit-source")
        waiting = deque()
        for item in items:
            waiting.append(self._pool.submit(function, item))
            if len(waiting) > _THREADS + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _without_picture(image: SourceImage, error: Exception) -> SourceImage:
    logger.warning("Image %r is left out: %s: %s", image.image_id, type(error).__name__, error)
    regions = tuple(
        dataclasses.replace(region, dropped=region.dropped or "unreadable_image") for region in image.regions
    )
    # A decoder's message may hold the address of an object, and the manifest is the same each time.
    problem = re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")
    return dataclasses.replace(image, regions=regions, problem=problem)


def _make_shard(
    prepared: Iterable[tuple[SourceImage | SourceError, dict[str, int]]], index: HashIndex | None
) -> tuple[dict[str, Any], list[str]]:
    """Decides on duplicate crops, in the order of the source; returns the header of a shard and its other lines."""
    header = {"version": MANIFEST_VERSION, "images": 0, "regions": 0, "accepted": 0}
    header |= {"dropped": Counter(), "errors": Counter(), "mask_sources": Counter()}
    added, lines = [], []
    for item, hashes in prepared:
        if isinstance(item, SourceError):
            header["errors"][item.reason] += 1
            lines.append(json.dumps({"error": item.to_json()}))
            continue
        regions = list(item.regions)
        for number, region in enumerate(regions):
            if region.region_id in hashes:
                value = hashes[region.region_id]
                if index.near(value):
                    regions[number] = region = dataclasses.replace(region, dropped="duplicate_crop")
                else:
                    index.add(value)
                    added.append(value)
            if region.dropped is None:
                header["accepted"] += 1
                header["mask_sources"][region.mask_source] += 1
            else:
                header["dropped"][region.dropped] += 1
        header["images"] += 1
        header["regions"] += len(regions)
        lines.append(json.dumps({"image": dataclasses.replace(item, regions=tuple(regions)).to_json()}))
    # A later call needs them to know duplicates of these crops.
    header["hashes"] = _packed(added)
    return header, lines


def _packed(hashes: list[int]) -> str:
    return base64.b64encode(np.array(hashes, dtype="<u8").tobytes()).decode()


def _unique(
    items: Iterable[SourceImage | SourceError], start: int, image_ids: HashIndex, added: list[int]
) -> Iterator[SourceImage | SourceError]:
    """Makes errors of images whose identifiers would give equal requests for what is not equal; notes the others."""
    for position, item in enumerate(items, start):
        if isinstance(item, SourceError):
            yield item
            continue
        name = item.image_id.encode(errors="surrogatepass")
        value = int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")
        counts = Counter(region.region_id for region in item.regions)
        repeated = next((name for name, times in counts.items() if times > 1), None)
        if image_ids.near(value):
            reason = "duplicate_image_id"
            detail = (
                f"image_id {item.image_id!r:.200} is that of an earlier image of the source; each must have its own."
            )
        elif repeated is not None:
            reason = "duplicate_region_id"
            detail = f"{counts[repeated]} regions have the region_id {repeated!r:.200}; each must have its own."
        else:
            image_ids.add(value)
            added.append(value)
            yield item
            continue
        # The path as the data gives it, and with it the tar or parquet file that holds it.
        holder = item.location.get("tar") or item.location.get("parquet")
        file = item.file if holder is None else f"{item.file} in {holder}"
        yield SourceError(f"position {position} of the source, {file}", reason, detail, item.image_id)


def _check_length(lines: list[str], start: int, stop: int) -> None:
    if len(lines) != stop - start:
        raise ValueError(
            f"the source gave {len(lines)} items for the positions {start} to {stop}; it must give {stop - start}, one "
            f"for each."
        )


def _count(summary: SourceSummary, header: dict[str, Any]) -> None:
    summary.shards += 1
    for key in ("images", "regions", "accepted"):
        setattr(summary, key, getattr(summary, key) + header[key])
    for key in ("dropped", "errors", "mask_sources"):
        getattr(summary, key).update(header[key])


def _check_settings(folder: Path, settings: LongGritSettings, source: Source) -> None:
    """Compares with what the manifest in the folder was made of, or writes that down where there is none."""
    current = {
        "version": MANIFEST_VERSION,
        "fingerprint": source.fingerprint(),
        "images": len(source),
        "images_per_shard": settings.output.images_per_shard,
        "source": settings.source.model_dump(mode="json", exclude=_NOT_COMPARED),
        "filters": settings.filters.model_dump(mode="json"),
        "places": {
            name: os.path.realpath(path) for name in _PATHS if (path := getattr(settings.source, name)) is not None
        },
    }
    path = folder / "made_of.json"
    if not path.exists():
        with open_atomic(path) as file:
            file.write(json.dumps(current, indent=1).encode())
        return
    earlier = json.loads(path.read_text(encoding="utf-8"))
    # A path may be written in another way; and one that is written the same was moved with all the rest.
    places, earlier_places = current.pop("places"), earlier.pop("places", {})
    same = {f"source.{name}" for name, place in places.items() if earlier_places.get(name) == place}
    made_of, now = _flat(earlier), _flat(current)
    differ = [
        f"{key} was {made_of.get(key)!r} and is {now.get(key)!r}"
        for key in sorted({*made_of, *now} - same)
        if made_of.get(key) != now.get(key)
    ]
    if differ:
        raise ValueError(
            f"{folder} holds regions of another source or of other settings: {'; '.join(differ)}. Set them back, or "
            f"choose another output_dir."
        )


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, value in content.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _manifest_folder(output_dir: str | os.PathLike) -> Path:
    return Path(output_dir) / "run" / "source"


def _manifest_path(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.jsonl"


def _read_header(folder: Path, number: int) -> dict[str, Any]:
    with open(_manifest_path(folder, number), encoding="utf-8") as file:
        return json.loads(next(file))
