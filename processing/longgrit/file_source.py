# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the readers of files have in common."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

from ..region_shards import StoredRecord, open_shards
from .config import SourceSettings
from .records import SourceImage
from .sources import SourceError, annotation_folder, fingerprint_of


class FileSource:
    """Base of the readers. Errors name files relative to the folder of the annotation files or images.

    Args:
        settings: Format and files.
        files: The annotation files.

    Raises:
        FileNotFoundError: If a file or the folder of images is missing.
    """

    def __init__(self, settings: SourceSettings, files: list[Path]):
        self._settings = settings
        self._files = files
        self._folder = annotation_folder(settings)
        self._root = self._folder if settings.image_root is None else Path(settings.image_root)
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(f"the source's file {file} is missing.")
        if not self._root.is_dir():
            raise FileNotFoundError(f"source.image_root is {str(self._root)!r}, which is not a folder.")

    def _check_not_empty(self) -> None:
        """Raises a `ValueError` if there is no position; readers call it when they know how many there are."""
        if len(self) == 0:
            names = ", ".join(map(str, self._files[:3])) + (", ..." if len(self._files) > 3 else "")
            raise ValueError(f"the source holds no image: {names} list none. Check the source's path or files.")

    def fingerprint(self) -> str:
        """See `Source`."""
        names = [os.path.relpath(file, self._folder) for file in self._files]
        return fingerprint_of(self._files, type(self).__name__, names, self._settings.licence)

    def read(self, start: int, stop: int) -> Iterator[SourceImage | SourceError]:
        """See `Source`."""
        if not 0 <= start <= stop:
            raise ValueError(f"positions {start} to {stop} are asked for; accepted is 0 <= start <= stop.")
        for item in self._read(start, min(stop, len(self))):
            yield self._published(item) if isinstance(item, SourceError) else item

    def _published(self, error: SourceError) -> SourceError:
        # What is written says nothing of the machine that wrote it.
        where, detail = error.where, error.detail
        folders = {str(folder) for folder in (self._root, self._folder, *(file.parent for file in self._files))}
        for folder in sorted(filter(os.path.isabs, folders), key=len, reverse=True):
            where, detail = (text.replace(folder.rstrip(os.sep) + os.sep, "") for text in (where, detail))
        # Nor does it hold halves of surrogate pairs, which have no UTF-8 form.
        where, detail = (text.encode(errors="replace").decode() for text in (where, detail))
        image_id = error.image_id and error.image_id.encode(errors="replace").decode()
        return replace(error, where=where, detail=detail, image_id=image_id)


class ShardSource(FileSource):
    """Base of the readers of shards, one after the other; reading on where the last call ended costs no search.

    Args:
        settings: Format and files.
        files: The shards.
        shard_format: One of `SHARD_FORMATS`.

    Raises:
        FileNotFoundError: As `FileSource`.
        ValueError: If there is no image in any of them.
    """

    def __init__(self, settings: SourceSettings, files: list[Path], shard_format: str):
        super().__init__(settings, files)
        self._shards = open_shards([str(file) for file in files], lambda path: shard_format, None)
        self._ends = list(accumulate(shard.size for shard in self._shards))
        self._cursor: tuple[int, Iterator[tuple[str, int, StoredRecord]]] | None = None
        self._check_not_empty()

    def __len__(self) -> int:
        return self._ends[-1]

    def _read(self, start: int, stop: int) -> Iterator[SourceImage | SourceError]:
        cursor, self._cursor = self._cursor, None
        stored = cursor[1] if cursor is not None and cursor[0] == start else self._stored(start)
        for _ in range(start, stop):
            shard, index, record = next(stored)
            yield self._item(shard, index, record)
        self._cursor = (stop, stored)

    def _stored(self, start: int) -> Iterator[tuple[str, int, StoredRecord]]:
        """Yields shard, index in it and content of the positions from `start` on."""
        number = bisect_right(self._ends, start)
        first = start - (self._ends[number - 1] if number else 0)
        for shard in self._shards[number:]:
            name = Path(os.path.relpath(shard.path, self._folder)).as_posix()
            for index, record in shard.read(first, shard.size, lambda index: True):
                yield name, index, record
            first = 0
