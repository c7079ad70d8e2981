# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Vectors of everything that a benchmark shows: each computed once, by all processes together."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.utils import logging

from ..image_reading import read_image
from .encoders import TEXT_KINDS, Encoder
from .feature_cache import FeatureCache
from .items import EvaluationImage, EvaluationRegion
from .region_views import check_view


logger = logging.get_logger(__name__)

# Batches of images that are opened beside the one that the model works on.
_BATCHES_AHEAD = 2
# Rows of a message between processes.
_ROWS_AT_ONCE = 32768


class FeatureExtractor:
    """Asks an encoder for vectors.

    Equal texts, images of equal bytes and equal regions of them are computed once, also when several benchmarks ask, and
    with `cache_dir` once for all runs: an interrupted evaluation goes on where it was, up to 30 seconds before. What a
    cached vector is found by: the encoder's fingerprint, the releases of the packages that compute, the view or kind of
    text, and hashes of the text, of the image file's bytes, of mask and box.

    Batches do not hang on the number of processes, so vectors of several are those of one, bit for bit on equal devices.
    Which other items are in a batch moves a vector by its last digits, about 1e-7 of its greatest number in float32 and
    4e-3 in bfloat16: another order of requests, or a cache that another benchmark has filled in part, may do so. (Text
    backbones whose rotary positions change with the longest text, as Phi-3's, are moved by more.)

    Args:
        encoder: The model; one that is trained on needs a new extractor.
        cache_dir: Folder of the cache, for any number of models; `None` keeps vectors in memory, for the time of this
            object. It is made where it is missing.
        batch_size: Most images of a batch.
        batch_tokens: Most tokens of a batch of texts, padding included.
        batch_regions: Most regions of a batch.
        accelerator: An `accelerate.Accelerator` or `PartialState`: each process computes its share, and all get all vectors. All have to
            ask for the same, in the same order.
        num_workers: Threads that read and decode images ahead of the model; 0 decodes between the batches.
        progress: Show progress bars, in the main process; or a function that is called with a description, the items
            done and their number, of this process.

    Raises:
        ValueError: If a number is out of range, or nothing can be written into `cache_dir`.

    Example:
        >>> from processing_pixclip.evaluation.loading import open_encoder
        >>> features = FeatureExtractor(open_encoder("runs/coco_regions"), cache_dir="features")  # doctest: +SKIP
        >>> features.texts(["a photo of a dog.", "a photo of a cat."], "region").shape  # doctest: +SKIP
        (2, 512)
    """

    def __init__(
        self,
        encoder: Encoder,
        cache_dir: str | os.PathLike | None = None,
        batch_size: int = 16,
        batch_tokens: int = 8192,
        batch_regions: int = 64,
        accelerator: Any = None,
        num_workers: int = 2,
        progress: bool | Callable[[str, int, int], None] = True,
    ):
        least = {"batch_size": 1, "batch_tokens": 1, "batch_regions": 1, "num_workers": 0}
        given = {
            "batch_size": batch_size,
            "batch_tokens": batch_tokens,
            "batch_regions": batch_regions,
            "num_workers": num_workers,
        }
        for name, value in given.items():
            if type(value) is not int or value < least[name]:
                raise ValueError(f"{name} is {value!r}; accepted are whole numbers from {least[name]}.")
        self.encoder = encoder
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.batch_regions = batch_regions
        self.num_workers = num_workers
        self.progress = progress
        self._processes = _Processes(accelerator)
        # Of a large model a fingerprint takes a while, and memory holds the vectors of this encoder alone.
        self._cache = FeatureCache(cache_dir, "" if cache_dir is None else encoder.fingerprint())
        self._file_hashes: dict[tuple, bytes] = {}

    def texts(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """Vectors of texts.

        Args:
            texts: T texts.
            kind: One of `TEXT_KINDS`.

        Returns:
            (T, D), float32, not normalised, in order.

        Raises:
            ValueError: If there are no texts, the encoder refuses one, or a vector is not finite.
        """
        if kind not in TEXT_KINDS:
            raise ValueError(f"kind of text is {kind!r}; accepted are {', '.join(map(repr, TEXT_KINDS))}.")
        unique = list(dict.fromkeys(texts))
        keys = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in unique]

        def plan() -> list[list[int]]:
            from modeling_pixclip.encoding import WINDOW, token_batches

            lengths: list[int] = []
            for start in range(0, len(unique), WINDOW):
                lengths += self.encoder.text_lengths(unique[start : start + WINDOW], kind)
            return list(token_batches(lengths, self.batch_tokens))

        found = self._collect(
            f"text-{kind}",
            keys,
            plan,
            lambda rows, _: self.encoder.encode_texts([unique[row] for row in rows], kind),
            name=lambda row: f"the text {unique[row][:80]!r}",
        )
        place = {text: row for row, text in enumerate(unique)}
        return found[[place[text] for text in texts]]

    def images(self, images: Sequence[EvaluationImage]) -> np.ndarray:
        """Vectors of whole images, turned upright by their EXIF orientation.

        Args:
            images: B images.

        Returns:
            (B, D), float32, not normalised, in order.

        Raises:
            ValueError: If there are no images, one cannot be read, or a vector is not finite; names the file.
        """
        hashes = self._hash_files(images)
        first = dict(reversed(list(zip(hashes, images, strict=True))))
        keys = list(dict.fromkeys(hashes))
        found = self._collect(
            "image",
            keys,
            lambda: [
                list(range(start, min(start + self.batch_size, len(keys))))
                for start in range(0, len(keys), self.batch_size)
            ],
            lambda rows, opened: self.encoder.encode_images(opened),
            name=lambda row: f"the image {first[keys[row]].path}",
            open_of=lambda rows: [(first[keys[row]], True) for row in rows],
        )
        place = {key: row for row, key in enumerate(keys)}
        return found[[place[digest] for digest in hashes]]

    def regions(self, regions: Sequence[EvaluationRegion], view: str) -> np.ndarray:
        """Vectors of regions under one view.

        Their images are read as stored, without regard to an EXIF orientation: masks and boxes of data sets are drawn on
        those pixels.

        Args:
            regions: R regions, in any order.
            view: One of the encoder's `views`.

        Returns:
            (R, D), float32, not normalised, in order. Zeros for a region of which the model's frame shows nothing; a
            warning tells how many.

        Raises:
            ValueError: If there are no regions, the encoder lacks the view, an image cannot be read, a region does not
                fit its image, or a vector is not finite; names file or region.
        """
        check_view(view, self.encoder.views, "the model")
        hashes = self._hash_files([region.image for region in regions])
        given = [_region_key(region, digest) for region, digest in zip(regions, hashes, strict=True)]
        first: dict[bytes, tuple[EvaluationRegion, bytes]] = {}
        for key, region, digest in zip(given, regions, hashes, strict=True):
            first.setdefault(key, (region, digest))
        keys = list(first)

        def groups(rows: Sequence[int]) -> list[list[int]]:
            """Rows by image."""
            by_image: dict[bytes, list[int]] = {}
            for row in rows:
                by_image.setdefault(first[keys[row]][1], []).append(row)
            return list(by_image.values())

        def compute(rows: Sequence[int], opened: list[Image.Image]) -> np.ndarray:
            of_images = groups(rows)
            vectors = self.encoder.encode_regions(
                opened, [[first[keys[row]][0] for row in group] for group in of_images], view
            )
            order = [row for group in of_images for row in group]
            where = {row: place for place, row in enumerate(order)}
            return vectors[[where[row] for row in rows]] if len(vectors) == len(order) else vectors

        found = self._collect(
            f"region-{view}",
            keys,
            lambda: self._region_batches(groups(range(len(keys)))),
            compute,
            name=lambda row: f"region {first[keys[row]][0].key!r} of {first[keys[row]][0].image.path}",
            open_of=lambda rows: [(first[keys[group[0]]][0].image, False) for group in groups(rows)],
        )
        hidden = int((found == 0).all(1).sum())
        if hidden and self._processes.is_main:
            logger.warning(
                "%d of %d regions have a vector of zeros under the view %r, as the model's frame shows nothing of them.",
                hidden,
                len(found),
                view,
            )
        place = {key: row for row, key in enumerate(keys)}
        return found[[place[key] for key in given]]

    def _region_batches(self, groups: list[list[int]]) -> list[list[int]]:
        """Rows of batches, whole images together where they fit."""
        batches: list[list[int]] = []
        images = 0
        for group in groups:
            for start in range(0, len(group), self.batch_regions):
                part = group[start : start + self.batch_regions]
                full = not batches or images == self.batch_size or len(batches[-1]) + len(part) > self.batch_regions
                if full:
                    batches.append([])
                    images = 0
                batches[-1] += part
                images += 1
        return batches

    def _collect(
        self,
        space: str,
        keys: list[bytes],
        plan: Callable[[], list[list[int]]],
        compute: Callable[[list[int], list[Image.Image]], np.ndarray],
        name: Callable[[int], str],
        open_of: Callable[[list[int]], list[tuple[EvaluationImage, bool]]] | None = None,
    ) -> np.ndarray:
        """Vectors of distinct keys: those that the cache lacks are computed, batch by batch, by all processes."""
        if not keys:
            raise ValueError(f"there is nothing to compute vectors of ({space}).")
        if not all(self._processes.gather(not self._cache.missing(space, keys))):
            batches = plan()
            processes = self._processes
            shares = [
                [row for batch in batches[rank :: processes.count] for row in batch] for rank in range(processes.count)
            ]
            error: Exception | None = None
            try:
                self._compute(space, keys, batches[processes.rank :: processes.count], compute, name, open_of)
            except Exception as caught:
                # Kept until all know: the others would wait for this process for ever.
                error = caught
            told = processes.gather(None if error is None else f"{type(error).__name__}: {error}")
            if error is not None:
                raise error
            for rank, message in enumerate(told):
                if message is not None:
                    raise RuntimeError(f"process {rank} failed, and its share of {space} is missing: {message}")
            self._exchange(space, keys, shares)
        return self._cache.vectors(space, keys)

    def _compute(self, space, keys, batches, compute, name, open_of) -> None:
        missing = set(self._cache.missing(space, keys))
        batches = [rows for rows in ([row for row in batch if row in missing] for batch in batches) if rows]
        total, done = sum(map(len, batches)), 0
        bar = self.progress is True and self._processes.is_main and total > 0
        try:
            with logging.tqdm(total=total, desc=space, disable=not bar) as shown:
                for rows, opened in self._opened(batches, open_of):
                    vectors = np.asarray(compute(rows, opened), dtype=np.float32)
                    _check_vectors(vectors, rows, name)
                    self._cache.add(space, [keys[row] for row in rows], vectors)
                    done += len(rows)
                    shown.update(len(rows))
                    if callable(self.progress):
                        self.progress(space, done, total)
        finally:
            # Also of a run that is interrupted here.
            self._cache.flush()

    def _opened(self, batches, open_of) -> Iterator[tuple[list[int], list[Image.Image]]]:
        """Batches with their images, which threads open ahead."""
        if open_of is None or not self.num_workers:
            for rows in batches:
                yield rows, [] if open_of is None else [_open(*image) for image in open_of(rows)]
            return
        threads = ThreadPoolExecutor(self.num_workers)
        try:
            waiting: deque[tuple[list[int], list[Future]]] = deque()
            rest = iter(batches)

            def submit(count: int) -> None:
                for rows in islice(rest, count):
                    waiting.append((rows, [threads.submit(_open, *image) for image in open_of(rows)]))

            submit(1 + _BATCHES_AHEAD)
            while waiting:
                rows, futures = waiting.popleft()
                opened = [future.result() for future in futures]
                del futures
                yield rows, opened
                del opened
                submit(1)
        finally:
            threads.shutdown(cancel_futures=True)

    def _exchange(self, space: str, keys: list[bytes], shares: list[list[int]]) -> None:
        """Gives each process the vectors that others computed."""
        if self._processes.count == 1:
            return
        own = shares[self._processes.rank]
        for start in range(0, max(map(len, shares)), _ROWS_AT_ONCE):
            part = [keys[row] for row in own[start : start + _ROWS_AT_ONCE]]
            sent = self._cache.vectors(space, part) if part else None
            for rank, vectors in enumerate(self._processes.gather(sent)):
                if rank != self._processes.rank and vectors is not None:
                    rows = shares[rank][start : start + _ROWS_AT_ONCE]
                    self._cache.add(space, [keys[row] for row in rows], vectors, write=False)

    def _hash_files(self, images: Sequence[EvaluationImage]) -> list[bytes]:
        """SHA-256 of the bytes of each file, each file read once as long as it does not change."""
        files = {image.path: image for image in images}
        if self.num_workers:
            with ThreadPoolExecutor(self.num_workers) as threads:
                hashes = dict(zip(files, threads.map(self._hash_file, files.values()), strict=True))
        else:
            hashes = {path: self._hash_file(image) for path, image in files.items()}
        return [hashes[image.path] for image in images]

    def _hash_file(self, image: EvaluationImage) -> bytes:
        try:
            facts = Path(image.path).stat()
            version = (image.path, facts.st_size, facts.st_mtime_ns)
            if version not in self._file_hashes:
                with open(image.path, "rb") as file:
                    self._file_hashes[version] = hashlib.file_digest(file, "sha256").digest()
            return self._file_hashes[version]
        except OSError as error:
            raise ValueError(f"image {image.key!r} cannot be read from {str(image.path)!r}: {error}") from error


class _Processes:
    """Who else takes part."""

    def __init__(self, accelerator: Any):
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.is_main = self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """That of each process, in the order of ranks."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])


def _open(image: EvaluationImage, upright: bool) -> Image.Image:
    return read_image(image.path, f"image {image.key!r}", upright=upright)


def _region_key(region: EvaluationRegion, image: bytes) -> bytes:
    """Hash of what a region is: its image's bytes, its mask and its box."""
    mask = region.mask
    if isinstance(mask, dict):
        counts = mask.get("counts")
        mask = {**mask, "counts": counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts}
    box = None if region.box is None else [float(edge) for edge in region.box]
    content = json.dumps([mask, box], sort_keys=True, default=_plain)
    return hashlib.sha256(image + content.encode()).digest()


def _plain(value: Any) -> Any:
    """Arrays, tensors and PIL images in a mask, as JSON has them."""
    array = np.asarray(value)
    if array.ndim == 2:
        return [str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array)).hexdigest()]
    return array.tolist()


def _check_vectors(vectors: np.ndarray, rows: list[int], name: Callable[[int], str]) -> None:
    if vectors.ndim != 2 or len(vectors) != len(rows):
        raise ValueError(
            f"the encoder gave vectors of shape {vectors.shape} for {len(rows)} items, the first is {name(rows[0])}; "
            "accepted is one vector an item, (N, D)."
        )
    wrong = np.flatnonzero(~np.isfinite(vectors).all(1))
    if len(wrong):
        raise ValueError(
            f"the vectors of {len(wrong)} of {len(rows)} items of a batch are not finite, the first is that of "
            f"{name(rows[wrong[0]])}. Half precision may overflow: open the model in float32 or bfloat16."
        )


__all__ = ["FeatureExtractor"]
