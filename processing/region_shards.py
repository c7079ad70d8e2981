# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Shards of records with their image files: parquet and WebDataset tar, their writers and readers by position."""

from __future__ import annotations

import io
import json
import os
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .region_records import RegionSample, check_record, sample_of_record


try:
    import fsspec
except ImportError:
    fsspec = None

try:
    import pyarrow
    import pyarrow.parquet as parquet
except ImportError:
    pyarrow = parquet = None

logger = logging.get_logger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
SIZES_FILE = "sizes.json"
# Rows that are read at once: with photos of 100 kB about 10 MB.
ROW_GROUP_SIZE = 100
# A row group is held whole, about twice, by each worker that reads in it, and read from its start for any sample of it.
LARGE_ROW_GROUP_BYTES = 1 << 27
# A sparse member of a tar can claim any size without taking it.
MAX_MEMBER_BYTES = 1 << 28
# Headers that hold a long name or pax records; tarfile reads them whole, whatever size a damaged one claims.
MAX_EXTENDED_HEADER_BYTES = 1 << 16


@dataclass
class StoredRecord:
    """What a shard holds at one position, not yet checked or decoded.

    Attributes:
        where: How messages and logs call it, equal whenever it is read.
        record: The record, or the bytes of its JSON.
        image: Bytes of the image file, `None` where the record has a path only.
        image_root: Folder that such a path is relative to.
        error: Why nothing could be read at this position.
        member: Name, offset and size in bytes of the image file in its tar.
    """

    where: str
    record: bytes | dict[str, Any] | None = None
    image: bytes | None = None
    image_root: str = ""
    error: Exception | None = None
    member: tuple[str, int, int] | None = None

    def sample(self) -> RegionSample:
        """Checks the record and decodes the image.

        Raises:
            ValueError, OSError: If nothing could be read, or `sample_of_record` does not accept it.
        """
        return sample_of_record(self.parsed(), self.where, self._image_of)

    def parsed(self) -> Any:
        """Returns the record as it is, not checked.

        Raises:
            ValueError, OSError: If nothing could be read, or it is not JSON.
        """
        if self.error is not None:
            raise self.error
        if isinstance(self.record, bytes):
            self.record = _parse(self.record, self.where)
        return self.record

    @property
    def image_id(self) -> str | None:
        """Identifier of the image, as far as the record could be read."""
        identifier = self.record.get("image_id") if isinstance(self.record, dict) else None
        return identifier if isinstance(identifier, str) else None

    def _image_of(self, name: str) -> bytes | str:
        return posixpath.join(self.image_root, name) if self.image is None else self.image


class ParquetShard:
    """A parquet file with a row an image: the keys of `RegionJsonlDataset`'s records are its columns.

    `image` is a struct of `bytes` and `path` (the `Image` feature of `datasets`), or a path alone. `regions` is the JSON
    of the list, because masks have two forms, or a list of structs, in which a null is a missing key. Where `sizes.json`
    is wrong, samples that cannot be read stand for those that it counts too many, and the last one for those too few.

    Attributes:
        size: Number of samples; as given, from `sizes.json`, or by the file's footer.
        error: Why the footer could not be read; one sample then stands for what is lost.
    """

    def __init__(self, path: str, image_root: str | None = None, size: int | None = None):
        self.path = path
        self.image_root = posixpath.dirname(path) if image_root is None else image_root
        self.error: Exception | None = None
        self.size = size
        if size is None:
            try:
                self.size = sum(self._group_sizes())
            except _UNREADABLE as error:
                self.size, self.error = 1, _named(error, path)

    def read(self, start: int, stop: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, StoredRecord]]:
        """Yields index and content of the wanted positions from `start` to below `stop`; reads only their row groups."""
        try:
            with open_shard(self.path) as file:
                yield from self._read(file, start, stop, wanted)
        except _UNREADABLE as error:
            yield from self._lost(range(start, stop), wanted, _named(error, self.path))

    def _group_sizes(self) -> list[int]:
        with open_shard(self.path) as file:
            return _group_sizes(_parquet_file(file, self.path))

    def _read(
        self, file: Any, start: int, stop: int, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, StoredRecord]]:
        shard = _parquet_file(file, self.path)
        group_sizes = _group_sizes(shard)
        surplus = sum(group_sizes) > self.size
        first = 0
        for group, size in enumerate(group_sizes):
            indices = range(max(first, start), min(first + size, stop))
            if any(map(wanted, indices)):
                for index, record in self._read_group(shard, group, first, indices, wanted):
                    if surplus and index == self.size - 1:
                        record.error = _more_than_listed(self.path, self.size)
                    yield index, record
            first += size
        yield from self._lost(range(max(first, start), stop), wanted, _less_than_listed(self.path, self.size))

    def _read_group(
        self, shard: Any, group: int, first: int, indices: range, wanted: Callable[[int], bool]
    ) -> Iterator[tuple[int, StoredRecord]]:
        self._tell_large(shard.metadata.row_group(group).total_byte_size)
        where, index = f"{self.path}, row group {group}", first
        reason: Exception = ValueError(f"{where} ends before its last row.")
        try:
            for batch in shard.iter_batches(ROW_GROUP_SIZE, row_groups=[group], use_threads=False):
                for row in range(batch.num_rows):
                    if index in indices and wanted(index):
                        yield index, self._record_of(batch, row, index)
                    index += 1
        except _UNREADABLE as error:
            reason = _named(error, where)
        yield from self._lost(range(max(index, indices.start), indices.stop), wanted, reason)

    def _tell_large(self, size: int) -> None:
        if size > LARGE_ROW_GROUP_BYTES:
            # Once a folder, because it says nothing of the file.
            logger.warning_once(
                f"{posixpath.dirname(self.path)} has parquet files with row groups of more than "
                f"{LARGE_ROW_GROUP_BYTES >> 20} MiB, about twice of which each worker holds in memory; write them in row "
                f"groups of {ROW_GROUP_SIZE} images, as write_region_parquet does."
            )

    def _record_of(self, batch: Any, row: int, index: int) -> StoredRecord:
        where = f"{self.path}, row {index}"
        try:
            columns = {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns)}
        # A text that is no UTF-8, for example.
        except _UNREADABLE as error:
            return StoredRecord(where, error=_named(error, where))
        return record_of_row(columns, where, self.image_root)

    def _lost(self, indices: range, wanted: Callable[[int], bool], error: Exception):
        for index in filter(wanted, indices):
            yield index, StoredRecord(f"{self.path}, row {index}", error=error)


class WebDatasetShard:
    """A tar file in the WebDataset layout: an image file `<key>.jpg` (or .png, ...) and its record `<key>.json`.

    Members with the same key, the name up to its first dot, are one sample and stand next to each other. Where a tar is
    cut or damaged, one more sample, which cannot be read, stands for what is lost; where `sizes.json` is wrong, see
    `ParquetShard`.

    Attributes:
        size: Number of samples; as given, from `sizes.json`, or counted by reading the headers of all members.
        error: What is wrong with the tar, as far as counting found out.
    """

    def __init__(self, path: str, image_root: str | None = None, size: int | None = None):
        if image_root is not None:
            raise ValueError(f"image_root is {image_root!r}, but {path} holds its images itself; leave it out.")
        self.path = path
        self.error: Exception | None = None
        self.size = size
        if size is None:
            self.size = 0
            try:
                with open_shard(path) as file:
                    for sample in _samples_of_tar(file):
                        self.size += 1
                        if isinstance(sample, ValueError):
                            self.error = ValueError(f"{path}: {sample}")
            except OSError as error:
                self.size, self.error = self.size + 1, _named(error, path)

    def read(self, start: int, stop: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, StoredRecord]]:
        """Yields index and content of the wanted positions from `start` to below `stop`; skips the data of others."""
        index = 0
        reason: Exception = _less_than_listed(self.path, self.size)
        try:
            with open_shard(self.path) as file:
                # The one in place of a bad sample; the next bad one is mostly replaced from the same shard.
                samples = iter(_headers_of(self)) if stop - start == 1 else _samples_of_tar(file)
                for sample in samples:
                    if isinstance(sample, ValueError):
                        reason = ValueError(f"{self.path}: {sample}")
                        break
                    if index == self.size - 1 and isinstance(next(samples, None), tuple):
                        reason = _more_than_listed(self.path, self.size)
                        break
                    if start <= index < stop and wanted(index):
                        yield index, self._record_of(file, index, *sample)
                    index += 1
                    if index == stop:
                        return
        except OSError as error:
            reason = _named(error, self.path)
        for lost in filter(wanted, range(max(index, start), stop)):
            yield lost, StoredRecord(f"{self.path}, sample {lost}", error=reason)

    def _record_of(self, file: Any, index: int, key: str, members: dict[str, list[tarfile.TarInfo]]) -> StoredRecord:
        where = f"{self.path}, sample {index} ({key!r})"
        content: dict[str, bytes] = {}
        images = [extension for extension in members if extension in IMAGE_EXTENSIONS]
        for extension, same in members.items():
            if len(same) > 1:
                found = (
                    f"{len(same)} members .{extension} stand next to each other under this key; a key is one sample's."
                )
                return StoredRecord(where, error=ValueError(f"{where}: {found}"))
        if len(images) != 1 or "json" not in members:
            found = f"it has the members {sorted(members)}; accepted is one image file, one of {IMAGE_EXTENSIONS}"
            return StoredRecord(where, error=ValueError(f"{where}: {found}, and one .json."))
        for extension in (images[0], "json"):
            (member,) = members[extension]
            if member.issparse() or member.size > MAX_MEMBER_BYTES:
                reason = f"{where}: member {member.name!r} is sparse or has more than {MAX_MEMBER_BYTES} bytes."
                return StoredRecord(where, error=ValueError(reason))
            file.seek(member.offset_data)
            content[extension] = file.read(member.size)
        (member,) = members[images[0]]
        place = (member.name, member.offset_data, member.size)
        return StoredRecord(where, content["json"], content[images[0]], member=place)


@lru_cache(maxsize=1)
def _headers_of(shard: WebDatasetShard) -> list[tuple[str, dict[str, list[tarfile.TarInfo]]] | ValueError]:
    with open_shard(shard.path) as file:
        return list(_samples_of_tar(file))


SHARD_FORMATS = {"parquet": ParquetShard, "webdataset": WebDatasetShard}
# What reading a damaged parquet file raises; most errors of Arrow are one of the first two.
_UNREADABLE = (OSError, ValueError) if pyarrow is None else (OSError, ValueError, pyarrow.ArrowException)


# What tarfile raises for damaged headers besides its own errors, such as for a pax record of 10^19 bytes.
_DAMAGED_HEADER = (
    tarfile.TarError,
    ValueError,
    OverflowError,
    MemoryError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)


def record_of_row(row: Mapping[str, Any], where: str, image_root: str = "") -> StoredRecord:
    """Makes a record of a row of a table, in the form that `ParquetShard` describes."""
    record = {key: value for key, value in row.items() if value is not None}
    image = record.get("image")
    content = None
    try:
        if isinstance(image, Mapping):
            content, path = image.get("bytes"), image.get("path")
            if not isinstance(content, bytes) and (content is not None or path is None):
                raise ValueError(
                    f"{where}: column 'image' holds {sorted(map(str, image))} and in them neither bytes nor a path; "
                    f"accepted is the file's content as 'bytes', or its 'path'."
                )
            record["image"] = path or str(record.get("image_id"))
        if isinstance(record.get("regions"), str):
            record["regions"] = _parse(record["regions"], f"{where}: column 'regions'")
        elif isinstance(record.get("regions"), list):
            record["regions"] = [_without_nulls(region) for region in record["regions"]]
    except ValueError as error:
        return StoredRecord(where, record, error=error)
    return StoredRecord(where, record, content, image_root)


def _parquet_file(file: Any, path: str) -> Any:
    if parquet is None:
        raise ImportError(f"{path} needs pyarrow to be read; install it with `pip install pyarrow`.")
    # Not ahead, which would hold all row groups that are asked for.
    return parquet.ParquetFile(file, pre_buffer=False)


def _group_sizes(shard: Any) -> list[int]:
    return [shard.metadata.row_group(group).num_rows for group in range(shard.metadata.num_row_groups)]


def open_shards(paths: list[str], format_of: Callable[[str], str], image_root: str | None) -> list[Any]:
    """Opens shards, 16 at a time; those that `sizes.json` in their folder lists, `{"00000.tar": 1000}`, only when read.

    Raises:
        ValueError: If `sizes.json` is malformed, or `image_root` is given for a WebDataset.
    """
    sizes = {folder: _read_sizes(folder) for folder in {posixpath.dirname(path) for path in paths}}

    def open_one(path: str) -> Any:
        size = sizes[posixpath.dirname(path)].get(posixpath.basename(path))
        return SHARD_FORMATS[format_of(path)](path, image_root, size)

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(open_one, paths))


def _named(error: Exception, where: str) -> Exception:
    # The kind that a reader may skip, and an OSError's own, because a missing file is another matter than a damaged one.
    kind = (
        type(error) if isinstance(error, FileNotFoundError) else OSError if isinstance(error, OSError) else ValueError
    )
    return kind(f"{where} cannot be read ({type(error).__name__}: {str(error).strip()}).")


def _more_than_listed(path: str, size: int) -> ValueError:
    # Left out silently, the others would never be trained on.
    return ValueError(
        f"{path} has more samples than the {size} that {SIZES_FILE} beside it counts; correct or remove {SIZES_FILE}."
    )


def _less_than_listed(path: str, size: int) -> ValueError:
    return ValueError(f"{path} has no such sample, though {SIZES_FILE} beside it counts {size}.")


def open_shard(path: str) -> Any:
    """Opens a local path, or whatever fsspec knows by its protocol, such as `hf://` and `https://`, for reading."""
    return fsspec.open(path, "rb").open() if "://" in path else open(path, "rb")


class _Header(tarfile.TarInfo):
    """A header whose size is looked at before tarfile believes it."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        extended = header.type in (
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.SOLARIS_XHDTYPE,
        )
        if header.size < 0 or (extended and header.size > MAX_EXTENDED_HEADER_BYTES):
            raise tarfile.ReadError(f"a header claims {header.size} bytes")
        return header


def _samples_of_tar(file: Any) -> Iterator[tuple[str, dict[str, list[tarfile.TarInfo]]] | ValueError]:
    """Yields key and members of each sample; then, if the tar does not end as a tar does, what is wrong with it."""
    key, members = None, {}
    try:
        tar = tarfile.open(fileobj=file, mode="r:", tarinfo=_Header)
    except _DAMAGED_HEADER as error:
        yield ValueError(f"it is no tar file ({_told(error)}).")
        return
    with tar:
        end = 0
        while True:
            try:
                member = tar.next()
                # Pax records can make a size negative; tarfile would go back and find the same members for ever.
                if member is not None and (member.size < 0 or tar.offset <= end):
                    raise tarfile.ReadError(f"member {member.name!r} claims {member.size} bytes")
            except _DAMAGED_HEADER as error:
                # The last member that was read is cut, and with it this sample.
                yield ValueError(f"the tar file is cut or damaged in sample {key!r} ({_told(error)}).")
                return
            end = tar.offset
            if member is None:
                break
            folder, _, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            if not member.isreg() or not stem or not dot:
                continue
            if key is not None and key != posixpath.join(folder, stem):
                yield key, members
                members = {}
            key = posixpath.join(folder, stem)
            members.setdefault(extension.lower(), []).append(member)
            # tarfile would hold on to every member it has seen.
            tar.members = []
    if key is not None:
        yield key, members
    # tarfile takes whatever is no header, or one of zeros, for the end.
    file.seek(end)
    block = file.read(tarfile.RECORDSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        yield ValueError(f"the tar file is cut after sample {key!r}, at byte {end}.")
        return
    while block:
        if any(block):
            yield ValueError(f"the tar file is damaged after sample {key!r}, at byte {end}.")
            return
        block = file.read(tarfile.RECORDSIZE)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error):.200}" if str(error) else type(error).__name__


def _read_sizes(folder: str) -> dict[str, int]:
    path = posixpath.join(folder, SIZES_FILE)
    try:
        with open_shard(path) as file:
            sizes = _parse(file.read(), path)
    except FileNotFoundError:
        return {}
    if not isinstance(sizes, dict) or not all(isinstance(size, int) and size >= 0 for size in sizes.values()):
        raise ValueError(f"{path} is {sizes!r:.200}; accepted is an object of the number of samples by file name.")
    return sizes


def _parse(content: bytes | str, where: str) -> Any:
    try:
        return json.loads(content)
    # The latter where brackets are nested by the thousand.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}).") from error


def _without_nulls(region: Any) -> Any:
    if not isinstance(region, Mapping):
        return region
    region = {key: value for key, value in region.items() if value is not None}
    if isinstance(region.get("mask"), str):
        region["mask"] = _parse(region["mask"], "a mask")
    return region


def write_region_parquet(
    records: Iterable[Mapping[str, Any]],
    folder: str | os.PathLike,
    image_root: str | os.PathLike = ".",
    samples_per_shard: int = 1000,
) -> list[Path]:
    """Writes records and their image files as parquet shards for `RegionStream`, all of them or none.

    The files are `00000.parquet`, `00001.parquet`, ..., in row groups of 100, and `sizes.json` with the number of samples
    by file name, which saves a stream from opening them all. Image files are copied as they are, in the form that
    `datasets` reads as its `Image` feature, so that such a folder is a data set on the Hub as well. The order is that of
    `records`: shuffle them first if that is sorted, because a stream mixes only near samples.

    Args:
        records: Records as in the docstring of `RegionJsonlDataset`, for example its `records`.
        folder: Folder to make; it must not exist, or be empty.
        image_root: Folder that the images' paths are relative to.
        samples_per_shard: Number of samples of each file but the last.

    Returns:
        The parquet files.

    Raises:
        ValueError: If a record is not valid, there is none, or a setting is out of its limits; names the position.
        FileExistsError: If the folder is not empty.
        FileNotFoundError: If an image file is missing.

    Example:
        >>> from processing_pixclip import RegionJsonlDataset
        >>> dataset = RegionJsonlDataset("examples/data/coco_regions/heldout.jsonl")
        >>> folder = Path(tempfile.mkdtemp()) / "shards"
        >>> [file.name for file in write_region_parquet(dataset.records[:5], folder, dataset.image_root, 3)]
        ['00000.parquet', '00001.parquet']
    """
    from datasets import Features, Image, List, Value

    texts = List(Value("string"))
    names = {"image_id": Value("string"), "width": Value("int32"), "height": Value("int32")}
    columns = {"image": Image(), **names, "captions": texts, "long_captions": texts, "regions": Value("string")}
    schema = Features(columns).arrow_schema

    def write(shard: list[tuple[Mapping[str, Any], Path]], path: Path) -> None:
        with parquet.ParquetWriter(path, schema) as writer:
            for start in range(0, len(shard), ROW_GROUP_SIZE):
                rows = []
                for record, file in shard[start : start + ROW_GROUP_SIZE]:
                    image = {"bytes": file.read_bytes(), "path": file.name}
                    rows.append({**record, "image": image, "regions": _dump(record["regions"])})
                writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))

    return _write_shards(records, Path(folder), Path(image_root), samples_per_shard, ".parquet", write)


def write_region_webdataset(
    records: Iterable[Mapping[str, Any]],
    folder: str | os.PathLike,
    image_root: str | os.PathLike = ".",
    samples_per_shard: int = 1000,
) -> list[Path]:
    """Writes records and their image files as WebDataset tar shards for `RegionStream`, all of them or none.

    The files are `00000.tar`, `00001.tar`, ..., each with `<key>.jpg` (or the extension of the image file) and
    `<key>.json` for every sample, and `sizes.json` with the number of samples by file name, which saves a stream from
    counting them. Image files are copied as they are. The order is that of `records`: shuffle them first if that is
    sorted, because a stream mixes only near samples.

    Args:
        records: Records as in the docstring of `RegionJsonlDataset`, for example its `records`.
        folder: Folder to make; it must not exist, or be empty.
        image_root: Folder that the images' paths are relative to.
        samples_per_shard: Number of samples of each file but the last.

    Returns:
        The tar files.

    Raises:
        ValueError: If a record is not valid, there is none, an image file has no extension of an image, or a setting
            is out of its limits; names the position.
        FileExistsError: If the folder is not empty.
        FileNotFoundError: If an image file is missing.

    Example:
        >>> from processing_pixclip import RegionJsonlDataset
        >>> dataset = RegionJsonlDataset("examples/data/coco_regions/heldout.jsonl")
        >>> folder = Path(tempfile.mkdtemp()) / "shards"
        >>> _ = write_region_webdataset(dataset.records[:5], folder, dataset.image_root, samples_per_shard=3)
        >>> (folder / "sizes.json").read_text()
        '{"00000.tar": 3, "00001.tar": 2}'
    """
    number = 0

    def write(shard: list[tuple[Mapping[str, Any], Path]], path: Path) -> None:
        nonlocal number
        with tarfile.open(path, "w") as tar:
            for record, file in shard:
                extension = file.suffix[1:].lower()
                if extension not in IMAGE_EXTENSIONS:
                    raise ValueError(f"records[{number}]: {file} has none of the extensions {IMAGE_EXTENSIONS}.")
                for suffix, content in ((extension, file.read_bytes()), ("json", _dump(record).encode())):
                    member = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                number += 1

    return _write_shards(records, Path(folder), Path(image_root), samples_per_shard, ".tar", write)


def _dump(item: Any) -> str:
    return json.dumps(item, ensure_ascii=False)


def _write_shards(
    records: Iterable[Mapping[str, Any]],
    folder: Path,
    image_root: Path,
    samples_per_shard: int,
    suffix: str,
    write: Callable[[list[tuple[Mapping[str, Any], Path]], Path], None],
) -> list[Path]:
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard is {samples_per_shard}; accepted are 1 and more.")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; shards are written into a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    sizes: dict[str, int] = {}
    shard = []

    def flush() -> None:
        path = temporary / f"{len(sizes):05d}{suffix}"
        write(shard, path)
        _sync(path)
        sizes[path.name] = len(shard)
        shard.clear()

    try:
        for number, record in enumerate(records):
            check_record(record, f"records[{number}]")
            shard.append((record, image_root / record["image"]))
            if len(shard) == samples_per_shard:
                flush()
        if shard:
            flush()
        if not sizes:
            raise ValueError(f"there are no records to write to {folder}.")
        (temporary / SIZES_FILE).write_text(json.dumps(sizes), encoding="utf-8")
        _sync(temporary / SIZES_FILE)
        # A temporary folder is private to its owner; the data set is meant to be read like any other.
        temporary.chmod(0o755)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    return [folder / name for name in sizes]


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
