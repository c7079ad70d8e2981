# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Vectors by what they are of, in memory and on disk: no run computes what another one has."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from transformers.utils import logging


logger = logging.get_logger(__name__)

_FORMAT = "pixclip-features-1"
# Packages of which another release may prepare or compute something in another way.
_PACKAGES = ("pixclip", "transformers", "torch", "tokenizers", "pillow", "numpy")
_SECONDS_OF_A_BLOCK = 30.0


class FeatureCache:
    """Vectors of one encoder.

    On disk there is a folder for the encoder (its fingerprint, and the releases of the packages that prepare and compute),
    in it one for each space, in that blocks of vectors. A block is written beside its place and moved there at once, under
    a name that is its content's hash: any number of processes may write, and a killed one leaves whole blocks.
    A file that is damaged, or none of ours, is passed over with a warning.

    Args:
        folder: For all encoders; `None` keeps vectors in memory alone.
        fingerprint: See `Encoder.fingerprint`.

    Raises:
        ValueError: If the folder cannot be made or written into.

    Example:
        >>> cache = FeatureCache(None, "a model")
        >>> cache.add("text-region", [b"k" * 32], np.ones((1, 4), dtype=np.float32))
        >>> cache.missing("text-region", [b"k" * 32, b"l" * 32])
        [1]
    """

    def __init__(self, folder: str | os.PathLike | None, fingerprint: str):
        self.folder: Path | None = None
        if folder is not None:
            identity = hashlib.sha256(repr((fingerprint, _releases(), _FORMAT)).encode()).hexdigest()
            self.folder = Path(folder) / identity[:32]
            # Before hours of work, not behind them.
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
            except OSError as error:
                raise ValueError(
                    f"cache_dir is {str(folder)!r}, in which nothing can be written: {error}. Accepted is a folder that can "
                    "be written into, or None for a cache in memory."
                ) from error
        self._spaces: dict[str, dict[bytes, np.ndarray]] = {}
        self._pending: dict[str, list[tuple[Sequence[bytes], np.ndarray]]] = {}
        self._written = time.monotonic()

    def missing(self, space: str, keys: Sequence[bytes]) -> list[int]:
        """Places of the keys that have no vector."""
        known = self._space(space)
        return [place for place, key in enumerate(keys) if key not in known]

    def vectors(self, space: str, keys: Sequence[bytes]) -> np.ndarray:
        """Vectors (N, D), float32, of keys that are all known."""
        known = self._space(space)
        return np.stack([known[key] for key in keys])

    def add(self, space: str, keys: Sequence[bytes], vectors: np.ndarray, write: bool = True) -> None:
        """Takes vectors up; writes a block if the last one was written 30 seconds ago.

        Args:
            space: What they are of, and how; a name that a folder can have.
            keys: 32 bytes for each.
            vectors: (N, D), float32.
            write: Whether they go to the disk.
        """
        self._space(space).update(zip(keys, vectors, strict=True))
        if self.folder is None or not write:
            return
        self._pending.setdefault(space, []).append((keys, vectors))
        if time.monotonic() - self._written >= _SECONDS_OF_A_BLOCK:
            self.flush()

    def flush(self) -> None:
        """Writes what is not on the disk yet."""
        for space, parts in self._pending.items():
            keys = np.frombuffer(b"".join(key for part, _ in parts for key in part), np.uint8).reshape(-1, 32)
            self._write(space, keys, np.concatenate([vectors for _, vectors in parts]))
        self._pending.clear()
        self._written = time.monotonic()

    def _write(self, space: str, keys: np.ndarray, vectors: np.ndarray) -> None:
        metadata = {"format": _FORMAT, "space": space, "sha256": _checksum(keys, vectors)}
        content = save({"keys": keys, "vectors": np.ascontiguousarray(vectors, np.float32)}, metadata)
        folder = self.folder / space
        folder.mkdir(parents=True, exist_ok=True)
        name = metadata["sha256"][:32]
        beside = folder / f"{name}.{os.getpid()}.tmp"
        beside.write_bytes(content)
        beside.replace(folder / f"{name}.safetensors")

    def _space(self, space: str) -> dict[bytes, np.ndarray]:
        """Vectors of a space by key; reads its blocks the first time."""
        if space not in self._spaces:
            self._spaces[space] = {}
            files = [] if self.folder is None else sorted((self.folder / space).glob("*.safetensors"))
            for file in files:
                try:
                    keys, vectors = _read_block(file, space)
                except (SafetensorError, OSError, ValueError) as error:
                    logger.warning("%s is no whole block of features and is passed over: %s", file, error)
                    continue
                self._spaces[space].update(zip(map(bytes, keys), vectors, strict=True))
        return self._spaces[space]


def _read_block(file: Path, space: str) -> tuple[np.ndarray, np.ndarray]:
    with safe_open(file, framework="numpy") as block:
        metadata = block.metadata() or {}
        if (
            metadata.get("format") != _FORMAT
            or metadata.get("space") != space
            or {*block.keys()} != {"keys", "vectors"}
        ):
            raise ValueError(f"it is of another kind ({metadata}).")
        keys, vectors = block.get_tensor("keys"), block.get_tensor("vectors")
    if metadata.get("sha256") != _checksum(keys, vectors):
        raise ValueError("its content has changed.")
    return keys, vectors


def _checksum(keys: np.ndarray, vectors: np.ndarray) -> str:
    digest = hashlib.sha256(f"{keys.shape} {vectors.shape} ".encode())
    digest.update(np.ascontiguousarray(keys))
    digest.update(np.ascontiguousarray(vectors))
    return digest.hexdigest()


def _releases() -> list[str | None]:
    releases: list[str | None] = []
    for package in _PACKAGES:
        try:
            releases.append(importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            releases.append(None)
    return releases


__all__ = ["FeatureCache"]
