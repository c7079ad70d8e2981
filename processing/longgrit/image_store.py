# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reads image files of a source by their location."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..region_records import check_relative_path
from ..region_shards import MAX_MEMBER_BYTES


# Row groups whose images are held; those of one image after the other are mostly in the same.
_HELD_GROUPS = 2


class ImageStore:
    """Reads image files of a source, from any thread and process.

    A location is one of

    * `{"path": "images/1.jpg"}`: a file below `root`;
    * `{"tar": "00000.tar", "offset": 1536, "size": 90210}`: a part of a tar below `shard_root`, in bytes;
    * `{"parquet": "00000.parquet", "row": 17, "column": "jpg"}`: a cell of a parquet file below `shard_root`, the bytes
      of the image file or a struct with `bytes`.

    Paths come from data, so none leads out of its folder by `..` or by starting at the root of the file system.

    Args:
        root (`str` or `os.PathLike`):
            Folder of image files.
        shard_root (`str` or `os.PathLike`, *optional*, defaults to `root`):
            Folder of tar and parquet files.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "1.jpg").write_bytes(b"content")
        >>> ImageStore(folder).read({"path": "1.jpg"})
        b'content'
    """

    def __init__(self, root: str | os.PathLike, shard_root: str | os.PathLike | None = None):
        self.root = Path(root)
        self.shard_root = self.root if shard_root is None else Path(shard_root)
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[str, str, int], tuple[int, Any]] = OrderedDict()
        self._starts: dict[str, list[int]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "shard_root": self.shard_root}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def read(self, location: Mapping[str, Any]) -> bytes:
        """Returns the bytes of an image file.

        Raises:
            FileNotFoundError: If there is no such file.
            OSError: If it cannot be read.
            ValueError: If the location leads out of the folder, or there is nothing at it; names it.
        """
        if "path" in location:
            return self._file(self.root, location, "path").read_bytes()
        if "tar" in location:
            return self._read_tar(location)
        if "parquet" in location:
            return self._read_parquet(location)
        raise ValueError(
            f"location {dict(location)!r:.200} has none of the keys 'path', 'tar' and 'parquet' that say what to read."
        )

    def size(self, location: Mapping[str, Any]) -> int | None:
        """Bytes of an image file, without reading it; `None` where it is a part of another file, or is not there."""
        try:
            return self._file(self.root, location, "path").stat().st_size if "path" in location else None
        except (OSError, ValueError):
            return None

    def _file(self, root: Path, location: Mapping[str, Any], key: str) -> Path:
        check_relative_path(location[key], f"location {dict(location)!r:.200}: key {key!r}", str(root))
        return root / location[key]

    def _read_tar(self, location: Mapping[str, Any]) -> bytes:
        offset, size = location["offset"], location["size"]
        if not 0 < size <= MAX_MEMBER_BYTES:
            raise ValueError(
                f"location {dict(location)!r:.200}: size is {size}; accepted are 1 to {MAX_MEMBER_BYTES} bytes."
            )
        with open(self._file(self.shard_root, location, "tar"), "rb") as file:
            file.seek(offset)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(
                f"location {dict(location)!r:.200}: the tar file ends after {len(content)} of these bytes."
            )
        return content

    def _read_parquet(self, location: Mapping[str, Any]) -> bytes:
        path, row, column = self._file(self.shard_root, location, "parquet"), location["row"], location["column"]
        with self._lock:
            first, cells = self._group(path, row, column, location)
            cell = cells[row - first].as_py()
        content = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not isinstance(content, bytes):
            raise ValueError(f"location {dict(location)!r:.200} holds no bytes.")
        return content

    def _group(self, path: Path, row: int, column: str, location: Mapping[str, Any]) -> tuple[int, Any]:
        import pyarrow.parquet as parquet

        name = str(path)
        if name not in self._starts:
            metadata = parquet.read_metadata(path)
            starts = [0]
            for group in range(metadata.num_row_groups):
                starts.append(starts[-1] + metadata.row_group(group).num_rows)
            self._starts[name] = starts
        starts = self._starts[name]
        if not 0 <= row < starts[-1]:
            raise ValueError(f"location {dict(location)!r:.200}: the file has {starts[-1]} rows.")
        group = next(number for number, stop in enumerate(starts[1:]) if row < stop)
        key = (name, column, group)
        if key not in self._groups:
            with parquet.ParquetFile(path, pre_buffer=False) as file:
                cells = file.read_row_group(group, columns=[column], use_threads=False).column(0)
            self._groups[key] = (starts[group], cells)
            if len(self._groups) > _HELD_GROUPS:
                self._groups.popitem(last=False)
        self._groups.move_to_end(key)
        return self._groups[key]
