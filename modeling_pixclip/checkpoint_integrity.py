# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checkpoints of the Trainer that are known to be whole: a manifest of every file, written last, and checked on resume."""

import json
import os
import re
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging


logger = logging.get_logger(__name__)

MANIFEST = "checkpoint_manifest.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_FORMAT = 1
_READ_AT_ONCE = 8 << 20
_THREADS = 8


class CheckpointIntegrityCallback(TrainerCallback):
    """
    Makes the checkpoints of the plain [`Trainer`] safe against being killed at any moment.

    When all processes have written their part of a checkpoint, its files go to the disk and `checkpoint_manifest.json`,
    their sizes and CRC-32, appears in the folder, as a whole or not at all; [`last_complete_checkpoint`] believes no
    folder without it. It takes `save_total_limit` over from the Trainer, which deletes old checkpoints before the new one
    is known to be complete: here they go after the manifest is there, so that with a limit of 1, too, there is always a
    complete checkpoint to go on from. First to go are folders that are incomplete or of a later step than the run is at.
    The best checkpoint of `load_best_model_at_end` stays, beside the newest.

    Add it as the last callback, so that the manifest covers what others write on `on_save`. The cost is that of reading
    the checkpoint once and of waiting for the disk: about half a second a GB for the checksum (one thread a file).
    It does not support `hyperparameter_search`, whose checkpoints lie in folders of their own.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import Trainer, TrainingArguments
        >>> from modeling_pixclip import CheckpointIntegrityCallback, last_complete_checkpoint
        >>> folder = tempfile.mkdtemp()
        >>> arguments = TrainingArguments(folder, save_total_limit=2, report_to="none")
        >>> trainer = Trainer(torch.nn.Linear(1, 1), arguments, callbacks=[CheckpointIntegrityCallback()])
        >>> last_complete_checkpoint(folder) is None  # for trainer.train(resume_from_checkpoint=...)
        True
    """

    def __init__(self):
        self._limit: int | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        # A run that ended by an exception has left the limit here.
        if args.save_total_limit is not None:
            self._limit, args.save_total_limit = args.save_total_limit, None

    def on_train_end(self, args, state, control, **kwargs):
        args.save_total_limit = self._limit

    def on_save(self, args, state, control, **kwargs):
        # Each process writes the state of its random numbers.
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if not args.should_save:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_checkpoint_manifest(folder, processes=args.world_size)
        if self._limit is not None and self._limit > 0:
            # The output folder may have been moved since the best checkpoint was written down.
            best = Path(state.best_model_checkpoint or folder).name
            _delete_surplus(self._limit, newest=folder, best=folder.with_name(best))


def write_checkpoint_manifest(folder: str | os.PathLike, processes: int = 1) -> None:
    """
    Declares a folder complete: syncs its files and writes down size and CRC-32 of each.

    Args:
        folder (`str` or `os.PathLike`): A checkpoint that nothing writes to any more.
        processes (`int`, *optional*, defaults to 1): How many processes the run has.

    Raises:
        FileNotFoundError: If there is no such folder.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from modeling_pixclip import checkpoint_damage, write_checkpoint_manifest
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "weights").write_bytes(bytes(100))
        >>> write_checkpoint_manifest(folder)
        >>> checkpoint_damage(folder) is None
        True
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))
    with ThreadPoolExecutor(_THREADS) as threads:
        checksums = list(threads.map(_sync_and_checksum, files))
    for below in {path.parent for path in files} | {folder, folder.parent}:
        _sync(below)
    manifest = {
        "format": _FORMAT,
        "processes": processes,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": size, "crc32": checksum}
            for path, (size, checksum) in zip(files, checksums)
        },
    }
    temporary = folder / f"{MANIFEST}.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)
    _sync(folder)


def read_checkpoint_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """
    The manifest of a checkpoint, not compared with its files.

    Args:
        folder (`str` or `os.PathLike`): A checkpoint.

    Returns:
        `dict`: `processes`, how many processes the run had, and `files`, their `bytes` and `crc32` by path.

    Raises:
        ValueError: If there is none, or it is damaged or of another version.

    Example:
        >>> import tempfile
        >>> from modeling_pixclip import read_checkpoint_manifest, write_checkpoint_manifest
        >>> folder = tempfile.mkdtemp()
        >>> write_checkpoint_manifest(folder, processes=2)
        >>> read_checkpoint_manifest(folder)["processes"]
        2
    """
    file = Path(folder) / MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"it has no {MANIFEST}, so it was not written to its end") from error
    except ValueError as error:
        raise ValueError(f"{MANIFEST} is damaged ({error})") from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError(f"{MANIFEST} is damaged (it lists no files)")
    if manifest.get("format") != _FORMAT:
        raise ValueError(f"{MANIFEST} has the format {manifest.get('format')!r}; this version reads {_FORMAT}")
    return manifest


def checkpoint_damage(folder: str | os.PathLike) -> str | None:
    """
    What keeps a checkpoint from being complete, by its manifest.

    Reads all of its files, about 2 GB a second and file; files that the manifest does not list are no damage.

    Args:
        folder (`str` or `os.PathLike`): A checkpoint.

    Returns:
        `str`, *optional*: The damage, `None` if the checkpoint is complete.

    Example:
        >>> import tempfile
        >>> from modeling_pixclip import checkpoint_damage
        >>> checkpoint_damage(tempfile.mkdtemp())
        'it has no checkpoint_manifest.json, so it was not written to its end'
    """
    folder = Path(folder)
    try:
        files = read_checkpoint_manifest(folder)["files"]
        for name, expected in files.items():
            size = (folder / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not {expected['bytes']}"
        with ThreadPoolExecutor(_THREADS) as threads:
            checksums = list(threads.map(_checksum, [folder / name for name in files]))
        for (name, expected), checksum in zip(files.items(), checksums):
            if checksum != expected["crc32"]:
                return f"{name} has the CRC-32 {checksum:08x}, not {expected['crc32']:08x}"
    except FileNotFoundError as error:
        return f"{os.path.relpath(error.filename, folder)} is missing"
    except (OSError, ValueError) as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{MANIFEST} is damaged (a file has no size or no CRC-32)"
    return None


def last_complete_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """
    The checkpoint of the highest step that is complete; a warning names those that are passed over, and why.

    In several processes all of them call it, the main one looks, and all get its answer.

    Args:
        output_dir (`str` or `os.PathLike`): That of the Trainer, trained with [`CheckpointIntegrityCallback`].

    Returns:
        `str`, *optional*: The folder, for `trainer.train(resume_from_checkpoint=...)`; `None` if there is none.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from modeling_pixclip import last_complete_checkpoint, write_checkpoint_manifest
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (10, 20):
        ...     (folder / f"checkpoint-{step}").mkdir()
        >>> write_checkpoint_manifest(folder / "checkpoint-10")
        >>> Path(last_complete_checkpoint(folder)).name
        'checkpoint-10'
    """
    found = [None]
    distributed = torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_rank() == 0:
        found = [_last_complete(Path(output_dir))]
    if distributed:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def _last_complete(output_dir: Path) -> str | None:
    for folder in sorted(_checkpoints(output_dir), key=_step, reverse=True):
        damage = checkpoint_damage(folder)
        if damage is None:
            return str(folder)
        logger.warning("%s is incomplete and is passed over: %s.", folder, damage)
    return None


def _checkpoints(output_dir: Path) -> list[Path]:
    return [path for path in output_dir.glob("checkpoint-*") if _CHECKPOINT.fullmatch(path.name) and path.is_dir()]


def _step(folder: Path) -> int:
    return int(_CHECKPOINT.fullmatch(folder.name).group(1))


def _delete_surplus(limit: int, newest: Path, best: Path) -> None:
    checkpoints = _checkpoints(newest.parent)
    kept = {newest, best} & set(checkpoints)
    # Nobody goes on from an incomplete one, and a later step is of a course that this run has left.
    checkpoints.sort(
        key=lambda folder: ((folder / MANIFEST).is_file() and _step(folder) <= _step(newest), _step(folder))
    )
    surplus = len(checkpoints) - max(limit, len(kept))
    for folder in [folder for folder in checkpoints if folder not in kept][: max(surplus, 0)]:
        try:
            # First, so that what is half deleted does not pass for damaged.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except OSError as error:
            logger.warning("%s could not be deleted, though save_total_limit is %d: %s", folder, limit, error)


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _sync_and_checksum(path: Path) -> tuple[int, int]:
    _sync(path)
    return path.stat().st_size, _checksum(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "CheckpointIntegrityCallback",
    "checkpoint_damage",
    "last_complete_checkpoint",
    "read_checkpoint_manifest",
    "write_checkpoint_manifest",
]
