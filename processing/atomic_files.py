# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Files that are there as a whole or not at all, whenever the process or the machine stops."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


_WRITING = ".writing-"


@contextlib.contextmanager
def open_atomic(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file for writing that takes its name only when all of it is on the disk.

    Args:
        path: The file; its folder must be there. An earlier one is replaced.

    Yields:
        A binary file. If the block raises, nothing stays of it.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> with open_atomic(folder / "a.txt") as file:
        ...     _ = file.write(b"whole")
        >>> [file.name for file in folder.iterdir()]
        ['a.txt']
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f"{_WRITING}{path.name}-", delete=False) as file:
        temporary = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temporary.unlink()
            raise
    # A temporary file is private to its owner; what is written is meant to be read like any other file.
    temporary.chmod(0o644)
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: str | os.PathLike) -> None:
    """Waits until the names of a folder's files are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Removes what killed processes left of files that they were writing. Only for the one process that writes there."""
    for path in Path(folder).glob(f"{_WRITING}*"):
        path.unlink(missing_ok=True)
