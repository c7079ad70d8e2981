# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Vectors by text in a folder: memory-mapped, each row with a checksum, written by any number of processes at once."""

import contextlib
import hashlib
import json
import math
import os
import re
import time
import uuid
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from .disk_sync import sync_path


_ROW = np.dtype([("text_end", "<u8"), ("checksum", "<u4")])
_SEGMENT, _WRITING, _REMOVED = "segment-", ".writing-", ".removed-"
_SEGMENT_NAME = re.compile(_SEGMENT + "[0-9a-f]{32}")
# Eight segments of about one size become one: at most seven of a size are left, and a row is copied once per power of 8.
_MERGED_AT_ONCE = 8
_BYTES_AT_ONCE = 8 << 20
_ROWS_AT_ONCE = 8192
# The unfinished folder of a live process has been written to a moment ago, that of a killed one is no longer.
_ABANDONED_AFTER_SECONDS = 24 * 3600


class TextVectorFiles:
    """
    Rows of (text, vector) in the segments of a folder; the storage below [`TextFeatureStore`].

    A segment is a folder `segment-*` whose files are never changed:

    | file | content, little-endian, one entry a row |
    |---|---|
    | `hashes` | 16 bytes of BLAKE2b of the text, ascending |
    | `rows` | end of the text within `texts` (uint64), CRC-32 of text and vector (uint32) |
    | `texts` | UTF-8 |
    | `vectors` | the vectors, one after the other, and nothing else: `numpy.memmap` opens them |
    | `segment.json` | number of rows, 1 or more; CRC-32 of `hashes` and of `rows` |

    It is written under another name, synced, and renamed, so that it is there as a whole or not at all. Segments that
    are merged are removed only after the merged one is there: whoever reads or writes meanwhile misses nothing, and a
    text that two processes computed is there twice until then. Needs a file system of POSIX semantics; on a network
    file system, do not read a folder while another machine writes to it.

    What a damaged file still holds intact is used. Damage is counted, warned about once, and never returned. A file is
    never shortened here; whatever else does so while it is mapped ends the processes that read it (SIGBUS), as with
    every memory map. Entries of the folder under other names are left alone. What a killed process left half written
    takes its space until a day later.

    Args:
        folder (`pathlib.Path`): Folder of the segments; it need not be there before the first row is added.
        row_bytes (`int`): Bytes of a vector.

    Attributes:
        damaged (`collections.Counter`): What was found damaged since the object was made: `"vectors"`, rows that do not
            fit their checksum, and `"segments"`, whose index is damaged and none of whose rows are read.

    Example:
        >>> import tempfile
        >>> from modeling_pixclip.text_vector_files import TextVectorFiles
        >>> files = TextVectorFiles(Path(tempfile.mkdtemp()), row_bytes=8)
        >>> files.add(["a red kite"], np.ones((1, 2), dtype="<f4"))
        >>> files.get("a red kite").view("<f4")
        array([1., 1.], dtype=float32)
    """

    def __init__(self, folder: Path, row_bytes: int):
        self.folder = folder
        self.row_bytes = row_bytes
        self.damaged: Counter[str] = Counter()
        self._warned = False
        self._segments: list[_Segment] = []
        self._unreadable: set[str] = set()
        self._size: int | None = None
        self.refresh()

    def __len__(self) -> int:
        if self._size is None:
            self._size = sum(
                int((~self._in_segments(hashes, self._segments[:place])).sum())
                for place, segment in enumerate(self._segments)
                for hashes in segment.sound_hashes()
            )
        return self._size

    def get(self, text: str) -> np.ndarray | None:
        """The vector's bytes, copied, (row_bytes,) uint8; `None` where there is none, or only a damaged one."""
        found = self._find(np.array([text_hash(text)], dtype="S16"))
        return None if found is None else found[0].vectors[found[1]].copy()

    def contains(self, texts: Sequence[str]) -> np.ndarray:
        """Which of T texts have a vector that fits its checksum, bool (T,)."""
        hashes = np.array([text_hash(text) for text in texts], dtype="S16")
        found = np.zeros(len(texts), dtype=bool)
        for segment in self._segments:
            open_places = np.flatnonzero(~found)
            rows = segment.rows_of(hashes[open_places])
            for place, row in zip(open_places[rows >= 0], rows[rows >= 0]):
                found[place] = self._is_sound(segment, int(row))
        return found

    def texts(self) -> Iterator[str]:
        """Every text once, in no order that means anything."""
        for segment in self._segments:
            for row in range(len(segment.hashes)):
                if self._find(segment.hashes[row : row + 1]) == (segment, row):
                    yield segment.text(row).decode("utf-8")

    def add(self, texts: Sequence[str], vectors: np.ndarray) -> None:
        """
        Adds rows; when it returns they are on the disk.

        Args:
            texts (`Sequence[str]`): T texts without whitespace around them.
            vectors (`np.ndarray` of shape `(T, ...)`): Their vectors, `row_bytes` each.
        """
        raw = np.ascontiguousarray(vectors).reshape(len(texts), -1).view(np.uint8)
        hashes = np.array([text_hash(text) for text in texts], dtype="S16")
        hashes, order = np.unique(hashes, return_index=True)
        with _SegmentWriter(self.folder) as writer:
            writer.append(hashes, [texts[place].encode("utf-8") for place in order], raw[order])
        self.refresh()
        while (crowd := self._crowded_segments()) is not None:
            self._rewrite(crowd)

    def refresh(self) -> None:
        """Takes notice of what other processes added and merged."""
        known = {segment.name: segment for segment in self._segments}
        names = self._names()
        while True:
            for name in names - known.keys() - self._unreadable:
                try:
                    known[name] = _Segment(self.folder / name, self.row_bytes)
                except (IsADirectoryError, NotADirectoryError) as error:
                    self._set_aside(name, f"{error.filename} is a folder in place of a file, or the other way round")
                except FileNotFoundError as error:
                    # Merged and removed by another process, unless its folder is still there.
                    if (self.folder / name).is_dir():
                        self._set_aside(name, f"{Path(error.filename).name} is missing")
                except _DamagedSegment as error:
                    self._set_aside(name, str(error))
            # A listing that is read while another process merges may lack both what is merged and the result.
            before, names = names, self._names()
            if names == before:
                break
        segments = [segment for name, segment in known.items() if name in names]
        self._segments = sorted(segments, key=lambda segment: (-len(segment.hashes), segment.name))
        self._size = None

    def repair(self) -> None:
        """Drops damaged rows and segments from the disk, and what killed processes left half written."""
        for name in self._unreadable & self._names():
            self._remove(name)
        for segment in [segment for segment in self._segments if segment.damaged]:
            self._rewrite([segment])
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.startswith(_REMOVED) or (path.name.startswith(_WRITING) and _is_abandoned(path)):
                    _delete(path)
        self.refresh()

    def _names(self) -> set[str]:
        try:
            return {name for name in os.listdir(self.folder) if _SEGMENT_NAME.fullmatch(name)}
        except FileNotFoundError:
            return set()

    def _find(self, text_hash_: np.ndarray) -> "tuple[_Segment, int] | None":
        for segment in self._segments:
            row = int(segment.rows_of(text_hash_)[0])
            if row >= 0 and self._is_sound(segment, row):
                return segment, row
        return None

    def _in_segments(self, hashes: np.ndarray, segments: "list[_Segment]") -> np.ndarray:
        found = np.zeros(len(hashes), dtype=bool)
        for segment in segments:
            rows = segment.rows_of(hashes)
            found |= (rows >= 0) & ~np.isin(rows, list(segment.damaged))
        return found

    def _is_sound(self, segment: "_Segment", row: int) -> bool:
        if row in segment.damaged:
            return False
        if segment.fits_checksum(row):
            return True
        segment.damaged.add(row)
        self._size = None
        self._report("vectors", f"row {row} of {segment.name} does not fit its checksum")
        return False

    def _set_aside(self, name: str, reason: str) -> None:
        self._unreadable.add(name)
        self._report("segments", f"{name}: {reason}")

    def _report(self, kind: str, what: str) -> None:
        self.damaged[kind] += 1
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"text vectors in {self.folder} are damaged ({what}). Damaged ones are not used and count as missing; "
                "`TextFeatureStore.embed` computes them again. `damaged` counts them; this warning comes once.",
                stacklevel=2,
            )

    def _crowded_segments(self) -> "list[_Segment] | None":
        tiers = defaultdict(list)
        for segment in self._segments:
            tiers[(len(segment.hashes).bit_length() - 1) // 3].append(segment)
        return next((tier for tier in tiers.values() if len(tier) >= _MERGED_AT_ONCE), None)

    def _rewrite(self, segments: "list[_Segment]") -> None:
        """Makes one segment of several, without double and damaged rows."""
        rows = sum(len(segment.hashes) for segment in segments)
        # Ranges of the hashes, which are evenly spread, bound what is in memory at a time.
        parts = math.ceil(max(rows * self.row_bytes / _BYTES_AT_ONCE, rows / _ROWS_AT_ONCE))
        bounds = np.array([(part * 2**64 // parts).to_bytes(8, "big") for part in range(parts)], dtype="S16")
        cuts = [[*np.searchsorted(segment.hashes, bounds).tolist(), len(segment.hashes)] for segment in segments]
        with _SegmentWriter(self.folder) as writer:
            for part in range(parts):
                chosen: dict[bytes, tuple[_Segment, int]] = {}
                for segment, cut in zip(segments, cuts):
                    for row in range(cut[part], cut[part + 1]):
                        key = segment.hashes[row : row + 1].tobytes()
                        if key not in chosen and self._is_sound(segment, row):
                            chosen[key] = (segment, row)
                if chosen:
                    keys = sorted(chosen)
                    writer.append(
                        np.frombuffer(b"".join(keys), dtype="S16"),
                        [chosen[key][0].text(chosen[key][1]) for key in keys],
                        np.stack([chosen[key][0].vectors[chosen[key][1]] for key in keys]),
                    )
        for segment in segments:
            self._remove(segment.name)
        self.refresh()

    def _remove(self, name: str) -> None:
        removed = self.folder / f"{_REMOVED}{uuid.uuid4().hex}"
        try:
            os.rename(self.folder / name, removed)
        except FileNotFoundError:
            # Another process merged the same segments and was faster.
            return
        _delete(removed)


class _DamagedSegment(Exception):
    pass


class _Segment:
    def __init__(self, path: Path, row_bytes: int):
        self.name = path.name
        self.damaged: set[int] = set()
        try:
            header = json.loads((path / "segment.json").read_bytes())
            count, checksums = header["rows"], {name: header[f"{name}_crc32"] for name in ("hashes", "rows")}
            if not count >= 1:
                raise ValueError(f"{count} rows")
        except (ValueError, KeyError, TypeError) as error:
            raise _DamagedSegment(f"segment.json is damaged ({error})") from error
        index = {name: _map(path / name) for name in checksums}
        for name, size in (("hashes", 16), ("rows", _ROW.itemsize)):
            if len(index[name]) != count * size or zlib.crc32(index[name]) != checksums[name]:
                raise _DamagedSegment(f"the file {name} does not fit its size and checksum")
        self.hashes, self.rows = index["hashes"].view("S16"), index["rows"].view(_ROW)
        self._texts = _map(path / "texts")
        vectors = _map(path / "vectors")
        whole = len(vectors) // row_bytes
        # Of a file that was cut short, the rows before the cut are as good as ever.
        self.vectors = vectors[: whole * row_bytes].reshape(whole, row_bytes)

    def rows_of(self, hashes: np.ndarray) -> np.ndarray:
        """Row of each hash, -1 where there is none."""
        rows = np.searchsorted(self.hashes, hashes)
        rows[rows == len(self.hashes)] = 0
        rows[self.hashes[rows] != hashes] = -1
        return rows

    def sound_hashes(self) -> Iterator[np.ndarray]:
        """The hashes, piece by piece, without those of rows that are known to be damaged."""
        for start in range(0, len(self.hashes), _ROWS_AT_ONCE):
            hashes = self.hashes[start : start + _ROWS_AT_ONCE]
            lost = [row - start for row in self.damaged if start <= row < start + len(hashes)]
            yield np.delete(hashes, lost) if lost else hashes

    def text(self, row: int) -> bytes:
        start = int(self.rows[row - 1]["text_end"]) if row else 0
        return self._texts[start : int(self.rows[row]["text_end"])].tobytes()

    def fits_checksum(self, row: int) -> bool:
        return row < len(self.vectors) and _checksum(self.text(row), self.vectors[row]) == self.rows[row]["checksum"]


class _SegmentWriter:
    """Appends rows in ascending order of their hashes; the segment appears when the block ends without an error."""

    def __init__(self, folder: Path):
        self._folder = folder

    def __enter__(self) -> "_SegmentWriter":
        self._folder.mkdir(parents=True, exist_ok=True)
        self._scratch = self._folder / f"{_WRITING}{uuid.uuid4().hex}"
        self._scratch.mkdir()
        self._files = {name: open(self._scratch / name, "wb") for name in ("hashes", "rows", "texts", "vectors")}
        self._count = self._text_end = 0
        self._crc = {"hashes": 0, "rows": 0}
        return self

    def append(self, hashes: np.ndarray, texts: list[bytes], vectors: np.ndarray) -> None:
        rows = np.empty(len(texts), dtype=_ROW)
        rows["text_end"] = self._text_end + np.cumsum([len(text) for text in texts])
        rows["checksum"] = [_checksum(text, vector) for text, vector in zip(texts, vectors, strict=True)]
        self._text_end = int(rows["text_end"][-1])
        self._count += len(texts)
        for name, content in (
            ("hashes", hashes.tobytes()),
            ("rows", rows.tobytes()),
            ("texts", b"".join(texts)),
            ("vectors", np.ascontiguousarray(vectors)),
        ):
            self._files[name].write(content)
            if name in self._crc:
                self._crc[name] = zlib.crc32(content, self._crc[name])

    def __exit__(self, error_type: type | None, error: BaseException | None, traceback: object) -> None:
        finished = False
        try:
            for file in self._files.values():
                if error is None:
                    _sync(file)
                file.close()
            if error is None and self._count:
                header = {"rows": self._count, **{f"{name}_crc32": crc for name, crc in self._crc.items()}}
                _write_json(self._scratch / "segment.json", header)
                sync_path(self._scratch)
                os.rename(self._scratch, self._folder / f"{_SEGMENT}{uuid.uuid4().hex}")
                sync_path(self._folder)
                finished = True
        finally:
            if not finished:
                _delete(self._scratch)


def text_hash(text: str) -> bytes:
    """The key of a text: whitespace around it does not count, as in the processor."""
    # Half a surrogate pair cannot be stored, but asking for it is no error.
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=16).digest()


def write_description(path: Path, description: dict) -> None:
    """Writes a JSON file that is there as a whole or not at all; of several processes that do, the last one counts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f"{_WRITING}{uuid.uuid4().hex}"
    scratch.mkdir()
    try:
        _write_json(scratch / path.name, description)
        os.replace(scratch / path.name, path)
        sync_path(path.parent)
    finally:
        _delete(scratch)


def _write_json(path: Path, content: dict) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        _sync(file)


def _sync(file: IO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _checksum(text: bytes, vector: np.ndarray) -> int:
    return zlib.crc32(vector, zlib.crc32(text))


def _map(path: Path) -> np.ndarray:
    # An empty file cannot be mapped.
    return np.asarray(np.memmap(path, dtype=np.uint8, mode="r")) if path.stat().st_size else np.empty(0, np.uint8)


def _is_abandoned(scratch: Path) -> bool:
    try:
        newest = max(path.stat().st_mtime for path in [scratch, *scratch.rglob("*")])
    except FileNotFoundError:
        # It was renamed or removed meanwhile.
        return False
    return time.time() - newest > _ABANDONED_AFTER_SECONDS


def _delete(path: Path) -> None:
    """Deletes a file or folder that another process may be deleting as well."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return
        for inner in list(path.iterdir()):
            _delete(inner)
        path.rmdir()


__all__ = ["TextVectorFiles", "text_hash", "write_description"]
