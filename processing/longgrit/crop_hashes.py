# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Near-duplicate regions by the perceptual hash of what they show: the hash, and a search over millions of them."""

from __future__ import annotations

from functools import cache
from itertools import combinations

import imagehash
import numpy as np
from PIL import Image

from ..regions import mask_to_box


HASH_BITS = 64
# What is not the region is painted in this grey, so that two objects in one place do not look alike by their background.
_GREY = 128
# Standard deviation of the grey values, 0..255, below which a crop has nothing that a hash could hold on to.
_FLAT = 1.0
_BAND_BITS = 16
_BANDS = HASH_BITS // _BAND_BITS
# Hashes are put in order when so many are new; until then a search looks at each of them, in about 20 microseconds.
_UNSORTED = 16384


def crop_hash(picture: Image.Image, mask: np.ndarray) -> int | None:
    """Perceptual hash (`imagehash.phash`) of a region's crop, with all but the region painted grey.

    Args:
        picture: The image, of mode RGB or L.
        mask: Array of shape (height, width), bool; not empty.

    Returns:
        64 bits. Crops that look alike differ in few of them; a copy in another size or JPEG quality in 0 to about 4. `None`
        of a crop of one colour, which would look like every other one.

    Raises:
        ValueError: If the mask is empty.

    Example:
        >>> ramp = Image.linear_gradient("L")
        >>> mask = np.zeros((256, 256), dtype=bool)
        >>> mask[40:200, 60:220] = True
        >>> darker = ramp.point(lambda value: value * 0.9)
        >>> bin(crop_hash(ramp, mask) ^ crop_hash(darker, mask)).count("1") <= 4
        True
    """
    left, top, right, bottom = (int(side) for side in mask_to_box(mask))
    pixels = np.asarray(picture.crop((left, top, right, bottom)).convert("L"))
    pixels = np.where(mask[top:bottom, left:right], pixels, np.uint8(_GREY))
    if pixels.std() < _FLAT:
        return None
    bits = imagehash.phash(Image.fromarray(pixels), hash_size=8).hash
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


class HashIndex:
    """Finds whether any of millions of 64-bit hashes is near a given one. Exact: nothing near is missed.

    Two hashes at most `distance` bits apart are at most `distance // bands` bits apart in one of their 16-bit bands, so
    it is enough to look, for each band, at the hashes with almost the same band.

    A million hashes take 35 MB (10 MB with `distance=0`), twice as much while they are put in order. A search among them
    takes 10 to 50 microseconds up to a distance of 7, and below 0.5 ms up to 16.

    Args:
        distance: Number of bits, 0..16, up to which two hashes are near.

    Raises:
        ValueError: If `distance` is not in 0..16.

    Example:
        >>> index = HashIndex(distance=1)
        >>> index.add(0b1100)
        >>> index.near(0b1101), index.near(0b1111), len(index)
        (True, False, 1)
    """

    def __init__(self, distance: int):
        if not 0 <= distance <= 16:
            raise ValueError(f"distance is {distance!r}; accepted are 0 to 16 of the {HASH_BITS} bits.")
        self.distance = distance
        bands = min(_BANDS, distance + 1)
        self._flips = _flips(distance // bands)
        self._tail = np.empty(_UNSORTED, dtype=np.uint64)
        self._in_tail = 0
        # One copy of all sorted hashes a band, by that band, and where each of its 65,536 values begins.
        self._sorted = [np.empty(0, dtype=np.uint64) for _ in range(bands)]
        self._starts = [np.zeros((1 << _BAND_BITS) + 1, dtype=np.int64) for _ in range(bands)]

    def __len__(self) -> int:
        return len(self._sorted[0]) + self._in_tail

    def add(self, value: int) -> None:
        """Adds a hash."""
        if self._in_tail == len(self._tail):
            self._sort(self._tail)
            self._in_tail = 0
        self._tail[self._in_tail] = value
        self._in_tail += 1

    def extend(self, values: np.ndarray) -> None:
        """Adds hashes, many at once, uint64 of shape (N,)."""
        self._sort(np.concatenate((self._tail[: self._in_tail], values)))
        self._in_tail = 0

    def near(self, value: int) -> bool:
        """Whether a hash was added that differs from `value` in at most `distance` bits."""
        searched = np.uint64(value)
        if self._any_near(self._tail[: self._in_tail], searched):
            return True
        for band, (copies, starts) in enumerate(zip(self._sorted, self._starts)):
            keys = self._flips ^ ((value >> (band * _BAND_BITS)) & 0xFFFF)
            if len(keys) == 1:
                key = int(keys[0])
                candidates = copies[starts[key] : starts[key + 1]]
            else:
                candidates = copies[_ranges(starts[keys], starts[keys + 1])]
            if self._any_near(candidates, searched):
                return True
        return False

    def _any_near(self, candidates: np.ndarray, searched: np.uint64) -> bool:
        return len(candidates) > 0 and bool((np.bitwise_count(candidates ^ searched) <= self.distance).any())

    def _sort(self, new: np.ndarray) -> None:
        everything = np.concatenate((self._sorted[0], new))
        for band in range(len(self._sorted)):
            keys = ((everything >> np.uint64(band * _BAND_BITS)) & np.uint64(0xFFFF)).astype(np.uint16)
            self._sorted[band] = everything[np.argsort(keys, kind="stable")]
            self._starts[band][1:] = np.cumsum(np.bincount(keys, minlength=1 << _BAND_BITS))


@cache
def _flips(radius: int) -> np.ndarray:
    """All values of a band with at most `radius` bits set."""
    bits = [1 << bit for bit in range(_BAND_BITS)]
    return np.array([sum(chosen) for count in range(radius + 1) for chosen in combinations(bits, count)])


def _ranges(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The numbers of all ranges `starts[i]..stops[i]`, one after the other."""
    lengths = stops - starts
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
