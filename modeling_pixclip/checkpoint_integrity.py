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
from transformers import TrainerCallback, TrainingArguments
from transformers.utils import logging

from .disk_sync import sync_path
from .distributed_features import barrier, process_rank, world_size


logger = logging.get_logger(__name__)

MANIFEST = "checkpoint_manifest.json"
# What the Trainer writes last.
_STATE = "trainer_state.json"
# The manifest before it is whole, and while the checkpoint is deleted.
_MARK = f"{MANIFEST}.tmp"
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
    complete checkpoint to go on from. First to go are folders that are incomplete or of a later step than the run is at,
    each with a warning. Checkpoints that a Trainer without this callback has finished are neither counted nor deleted.
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
        # Those of the run that the limit was taken from, until it ends.
        self._taken_from: TrainingArguments | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        # A run that ended by an exception has left its limit here, and its arguments without one.
        aborted = self._taken_from is args and args.save_total_limit is None
        if not aborted:
            self._limit, args.save_total_limit = args.save_total_limit, None
        self._taken_from = args

    def on_train_end(self, args, state, control, **kwargs):
        args.save_total_limit = self._limit
        self._limit = self._taken_from = None

    def on_save(self, args, state, control, **kwargs):
        # Each process writes the state of its random numbers.
        barrier()
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
        sync_path(below)
    manifest = {
        "format": _FORMAT,
        "processes": processes,
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": size, "crc32": checksum}
            for path, (size, checksum) in zip(files, checksums)
        },
    }
    temporary = folder / _MARK
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / MANIFEST)
    sync_path(folder)


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
    if process_rank() == 0:
        found = [_last_complete(Path(output_dir))]
    if world_size() > 1:
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
    # Those of a plain Trainer, whole but for a manifest, are not this run's to delete.
    checkpoints = [folder for folder in _checkpoints(newest.parent) if _has_manifest(folder) or _is_torn(folder)]
    kept = {newest, best} & set(checkpoints)
    # Nobody goes on from an incomplete one, and a later step is of a course that this run has left.
    checkpoints.sort(key=lambda folder: (_has_manifest(folder) and _step(folder) <= _step(newest), _step(folder)))
    surplus = len(checkpoints) - max(limit, len(kept))
    for folder in [folder for folder in checkpoints if folder not in kept][: max(surplus, 0)]:
        if not _has_manifest(folder):
            logger.warning("%s is incomplete and is deleted (save_total_limit is %d).", folder, limit)
        elif _step(folder) > _step(newest):
            logger.warning(
                "%s is deleted, for the run is at step %d (save_total_limit is %d).", folder, _step(newest), limit
            )
        else:
            logger.info("%s is deleted (save_total_limit is %d).", folder, limit)
        try:
            # First, so that what is half deleted does not pass for damaged, nor for that of a plain Trainer.
            if _has_manifest(folder):
                (folder / MANIFEST).replace(folder / _MARK)
            (folder / _STATE).unlink(missing_ok=True)
            shutil.rmtree(folder)
        except OSError as error:
            logger.warning("%s could not be deleted, though save_total_limit is %d: %s", folder, limit, error)


def _has_manifest(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def _is_torn(folder: Path) -> bool:
    """Whether saving was cut off: the Trainer writes its state last, and then comes the manifest."""
    return (folder / _MARK).exists() or not (folder / _STATE).is_file()


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _sync_and_checksum(path: Path) -> tuple[int, int]:
    sync_path(path)
    return path.stat().st_size, _checksum(path)


__all__ = [
    "CheckpointIntegrityCallback",
    "checkpoint_damage",
    "last_complete_checkpoint",
    "read_checkpoint_manifest",
    "write_checkpoint_manifest",
]
