# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The shards of a LongGRIT dataset: parquet and WebDataset for what was accepted, JSON lines for what was rejected."""

from __future__ import annotations

import io
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow
import pyarrow.parquet
from datasets import Features, Image, List, Value

from ..atomic_files import open_atomic
from ..region_records import check_record
from ..region_shards import IMAGE_EXTENSIONS, ROW_GROUP_SIZE, SIZES_FILE, WebDatasetShard
from .config import LongGritSettings
from .records import ImageResult, Provenance, RegionResult, SourceImage, SourceRegion
from .redaction import published_model, published_server
from .run_folder import write_atomically
from .run_summary import check_ended, dropped_region


if TYPE_CHECKING:
    from .image_store import ImageStore
    from .sources import SourceError


CARD_FILE = "README.md"

TEXT_SOURCE = "longgrit"
"""Key `text_source` of every region."""

SHARDS = {"parquet": "data", "webdataset": "webdataset"}
"""Folder of each format."""

_EXTENSIONS = {"parquet": ".parquet", "webdataset": ".tar"}


def dataset_features(images: str = "bytes") -> Features:
    """Columns of the parquet shards, as `datasets` knows them.

    Args:
        images: As in `OutputSettings`; with `"path"` the column `image` is a string.

    Example:
        >>> dataset_features()["regions"].feature["box"]
        List(Value('float64'))
    """
    text, texts, integer = Value("string"), List(Value("string")), Value("int32")
    provenance = List(
        {
            **dict.fromkeys(("stage", "model", "server", "prompt", "time"), text),
            **dict.fromkeys(("prompt_tokens", "completion_tokens", "attempts"), Value("int64")),
        }
    )
    region = {
        "region_id": text,
        "mask": {"size": List(integer), "counts": text},
        "box": List(Value("float64")),
        **dict.fromkeys(("mask_source", "category", "phrase", "object_text", "context_text", "text"), text),
        "text_source": text,
        "hard_negatives": texts,
        "provenance": provenance,
    }
    return Features(
        {
            "image": Image() if images == "bytes" else text,
            "image_id": text,
            "width": integer,
            "height": integer,
            "captions": texts,
            "long_captions": texts,
            "licence": text,
            "regions": List(region),
            "provenance": provenance,
        }
    )


def record_of_result(result: ImageResult) -> dict[str, Any] | None:
    """The record of an image with its accepted regions, `None` if it has none.

    It is one of the form that `RegionJsonlDataset` describes, with the keys of `dataset_features`; what is missing has
    the value `None`.

    Example:
        >>> from processing_pixclip.longgrit.records import ImageResult, RegionResult, SourceImage, SourceRegion
        >>> region = SourceRegion("7#0", (0.0, 0.0, 4.0, 4.0), mask_source="box", category="dog")
        >>> image = SourceImage("7", "7.jpg", {"path": "7.jpg"}, 8, 8, (region,))
        >>> record = record_of_result(ImageResult(image, [RegionResult("7#0", text="A dog in a meadow.")]))
        >>> record["regions"][0]["text"], record["regions"][0]["mask"]
        ('A dog in a meadow.', None)
    """
    image = result.image
    source = {region.region_id: region for region in image.regions}
    ended = check_ended(result).values()
    regions = [_region(source[end.region_id], end) for end in ended if end.reason is None]
    if not regions:
        return None
    return {
        "image": image.file,
        "image_id": image.image_id,
        "width": image.width,
        "height": image.height,
        "captions": list(result.captions),
        "long_captions": list(result.long_captions),
        "licence": image.licence,
        "regions": regions,
        "provenance": _provenance(result.provenance),
    }


def _region(region: SourceRegion, result: RegionResult) -> dict[str, Any]:
    return {
        "region_id": region.region_id,
        "mask": region.mask,
        "box": list(region.box),
        "mask_source": region.mask_source,
        "category": region.category,
        "phrase": region.phrase,
        "object_text": result.object_text,
        "context_text": result.context_text,
        "text": result.text,
        "text_source": TEXT_SOURCE,
        "hard_negatives": list(result.hard_negatives),
        "provenance": _provenance(result.provenance),
    }


def _provenance(entries: Sequence[Provenance]) -> list[dict[str, Any]]:
    return [asdict(entry) for entry in entries]


def write_shard(
    number: int,
    results: Sequence[ImageResult],
    settings: LongGritSettings,
    store: ImageStore,
    errors: Sequence[SourceError] = (),
) -> list[Path]:
    """Writes the files of one shard, each of them whole or not at all; those of an earlier attempt are replaced.

    `data/NNNNN.parquet` and `webdataset/NNNNN.tar` hold the images with at least one accepted region, as far as the
    settings ask for them and there are any, `rejected/NNNNN.jsonl` each region that was not accepted, and each source
    position without an image.

    Args:
        number: Number of the shard.
        results: Its images.
        settings: Of the run: where to write, and what.
        store: Reads the image files.
        errors: Source positions without an image.

    Returns:
        The files that were written.

    Raises:
        ValueError: If an accepted region is none that training would read, or the image files have no path or no known
            extension where one is needed; names it.
        OSError: If an image cannot be read, or a file not be written.

    Example:
        >>> import tempfile
        >>> from processing_pixclip.longgrit import ImageResult, RegionResult, open_image_store, open_source, read_settings
        >>> changes = {"output_dir": tempfile.mkdtemp()}
        >>> settings = read_settings("examples/configs/longgrit_coco_regions.yaml", changes)
        >>> image = next(open_source(settings.source).read(0, 1))
        >>> regions = [RegionResult(region.region_id, text="A thing.") for region in image.regions]
        >>> written = write_shard(0, [ImageResult(image, regions)], settings, open_image_store(settings.source))
        >>> [path.name for path in written]
        ['00000.parquet', '00000.tar', '00000.jsonl']
    """
    output, where = settings.output, f"shard {number}, image"
    records = []
    for result in results:
        record = record_of_result(result)
        if record is not None:
            record = _in_unicode(record)
            check_record(without_nulls(record), f"{where} {result.image.image_id!r}")
            records.append((record, result.image))
    _reopen(settings.output_dir)
    writers = {"parquet": _write_parquet, "webdataset": _write_tar}
    written = []
    for name, write in writers.items():
        path = shard_path(settings.output_dir, name, number)
        if name in output.formats and records:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_atomic(path) as file:
                write(file, number, records, output.images, store)
            written.append(path)
        else:
            # Left by an earlier attempt with other settings or answers.
            path.unlink(missing_ok=True)
    path = settings.output_dir / "rejected" / f"{number:05d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_atomic(path) as file:
        for line in hide_folders(list(_rejected(results, errors)), settings):
            # Escaped, because a rejected text may hold what has no UTF-8 form.
            file.write(json.dumps(line).encode() + b"\n")
    return [*written, path]


def _reopen(output_dir: Path) -> None:
    """Takes away what says that a dataset is finished: from now on its shards are of two runs, until the second has ended."""
    for file in (CARD_FILE, *(f"{folder}/{SIZES_FILE}" for folder in SHARDS.values())):
        (output_dir / file).unlink(missing_ok=True)


def _in_unicode(item: Any) -> Any:
    """The same with a question mark for half a surrogate pair, which JSON can hold and parquet cannot."""
    if isinstance(item, str):
        return item.encode("utf-8", "replace").decode("utf-8")
    if isinstance(item, Mapping):
        return {key: _in_unicode(value) for key, value in item.items()}
    return [_in_unicode(entry) for entry in item] if isinstance(item, (list, tuple)) else item


def shard_path(output_dir: str | os.PathLike, name: str, number: int) -> Path:
    """Path of a shard in a format, `"parquet"` or `"webdataset"`.

    Example:
        >>> shard_path("out", "webdataset", 7).as_posix()
        'out/webdataset/00007.tar'
    """
    return Path(output_dir) / SHARDS[name] / f"{number:05d}{_EXTENSIONS[name]}"


def without_nulls(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without the keys of itself and of its regions that are `None`: in JSON these are left out."""
    kept = {key: value for key, value in record.items() if value is not None}
    regions = [{key: value for key, value in region.items() if value is not None} for region in record["regions"]]
    return {**kept, "regions": regions}


def hide_folders(item: Any, settings: LongGritSettings) -> Any:
    """Takes out of all texts of an item, such as those of error messages, what tells of this machine.

    That are the folders of the source, of the output and of models, and the paths of servers' addresses.
    """
    source = settings.source
    files = (source.path, source.instances, source.panoptic, source.captions)
    named = [settings.output_dir, source.image_root, *(Path(file).parent for file in files if file is not None)]
    folders = {
        place(folder) for folder in named if folder is not None for place in (os.path.abspath, os.path.realpath)
    }
    # A folder is left out before what is in it; alone, its name is left.
    shorter = {folder + os.sep: "" for folder in folders - {os.sep}}
    shorter |= {folder: os.path.basename(folder) for folder in folders - {os.sep}}
    models = {settings.model_of(name) for name in settings.enabled_stages}
    shorter |= {model: published_model(model) for model in models}
    shorter |= {server.base_url: published_server(server.base_url) for server in settings.servers.values()}
    shorter = {text: short for text, short in shorter.items() if text != short}
    ordered = sorted(map(re.escape, shorter), key=len, reverse=True)
    pattern = re.compile("|".join(text if text.endswith("/") else rf"{text}(?![\w-])" for text in ordered))
    return _shortened(item, pattern, shorter) if shorter else item


def _shortened(item: Any, pattern: re.Pattern[str], shorter: Mapping[str, str]) -> Any:
    if isinstance(item, str):
        return pattern.sub(lambda found: shorter[found[0]], item)
    if isinstance(item, Mapping):
        # Names of models are keys.
        return {_shortened(key, pattern, shorter): _shortened(value, pattern, shorter) for key, value in item.items()}
    return [_shortened(entry, pattern, shorter) for entry in item] if isinstance(item, (list, tuple)) else item


def _write_parquet(
    file: IO[bytes], number: int, records: list[tuple[dict[str, Any], SourceImage]], images: str, store: ImageStore
) -> None:
    schema = dataset_features(images).arrow_schema
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(records), ROW_GROUP_SIZE):
            rows = []
            for record, image in records[start : start + ROW_GROUP_SIZE]:
                if images == "bytes":
                    stored = {"bytes": store.read(image.location), "path": image.file}
                elif "path" in image.location:
                    stored = image.location["path"]
                else:
                    raise ValueError(
                        f"shard {number}, image {image.image_id!r}: it is in a shard of the source, "
                        f"{sorted(image.location)}, and has no path; set output.images to 'bytes'."
                    )
                rows.append({**record, "image": stored})
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def _write_tar(
    file: IO[bytes], number: int, records: list[tuple[dict[str, Any], SourceImage]], images: str, store: ImageStore
) -> None:
    with tarfile.open(fileobj=file, mode="w") as tar:
        for position, (record, image) in enumerate(records):
            extension = posixpath.splitext(image.file)[1][1:].lower()
            if extension not in IMAGE_EXTENSIONS:
                raise ValueError(
                    f"shard {number}, image {image.image_id!r}: file {image.file!r} has none of the extensions "
                    f"{IMAGE_EXTENSIONS}."
                )
            text = json.dumps(without_nulls(record), ensure_ascii=False)
            for suffix, content in ((extension, store.read(image.location)), ("json", text.encode())):
                member = tarfile.TarInfo(f"{number:05d}-{position:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _rejected(results: Sequence[ImageResult], errors: Sequence[SourceError]) -> Iterator[dict[str, Any]]:
    for error in errors:
        yield {
            "image_id": error.image_id,
            "region_id": None,
            "stage": "source",
            "reason": error.reason,
            "detail": f"{error.where}: {error.detail}",
        }
    for result in results:
        image = result.image
        ended = check_ended(result)
        for region in image.regions:
            end = ended.get(region.region_id) or dropped_region(region, image)
            if end.reason is None:
                continue
            yield {
                "image_id": image.image_id,
                "region_id": region.region_id,
                "stage": end.stage,
                "reason": end.reason,
                "detail": end.detail,
                "location": dict(image.location),
                "box": list(region.box),
                "category": region.category,
                "phrase": region.phrase,
                "object_text": end.object_text,
                "context_text": end.context_text,
                "text": end.text,
                "provenance": _provenance(end.provenance),
            }


def finish_dataset(output_dir: str | os.PathLike) -> dict[str, dict[str, int]]:
    """Writes `sizes.json` beside the shards of each format: how many images each holds, which saves readers counting.

    Args:
        output_dir: Output folder of a run whose shards are all written.

    Returns:
        By format the number of images by file name; formats without a shard are left out, and their `sizes.json` is
        removed.

    Example:
        >>> import tempfile
        >>> finish_dataset(tempfile.mkdtemp())
        {}
    """
    found = {}
    for name, folder in SHARDS.items():
        paths = sorted((Path(output_dir) / folder).glob(f"[0-9]*{_EXTENSIONS[name]}"))
        sizes = {path.name: _size_of(path, name) for path in paths}
        listing = Path(output_dir) / folder / SIZES_FILE
        if sizes:
            write_atomically(listing, json.dumps(sizes))
            found[name] = sizes
        else:
            listing.unlink(missing_ok=True)
    return found


def _size_of(path: Path, name: str) -> int:
    if name == "parquet":
        return pyarrow.parquet.read_metadata(path).num_rows
    shard = WebDatasetShard(str(path))
    if shard.error is not None:
        raise shard.error
    return shard.size
