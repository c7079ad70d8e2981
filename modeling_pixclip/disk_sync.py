# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What has been written goes to the disk before anything that relies on it does."""

import os


def sync_path(path: str | os.PathLike) -> None:
    """
    Waits until a file's content, or a folder's entries, are on the disk.

    Args:
        path (`str` or `os.PathLike`): A file that nobody holds unwritten data of, or a folder.

    Example:
        >>> import tempfile
        >>> from modeling_pixclip.disk_sync import sync_path
        >>> sync_path(tempfile.mkdtemp())
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = ["sync_path"]
