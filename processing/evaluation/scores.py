# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pieces that every scorer takes: unit vectors, and figures with their intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from .results import Figure


# Of the normal distribution, 97.5 %.
_Z = 1.959964


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1, float32; a zero vector stays zero.

    Raises:
        ValueError: If a vector has a NaN or an infinity, which would rank as if it meant something.

    Example:
        >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if not np.isfinite(vectors).all():
        rows = np.flatnonzero(~np.isfinite(vectors).reshape(len(vectors), -1).all(axis=1))
        raise ValueError(
            f"{len(rows)} of {len(vectors)} vectors have a NaN or an infinity, the first is number {rows[0]}; accepted are "
            "finite numbers. In half precision some models overflow: try float32 or bfloat16."
        )
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def shown(vectors: np.ndarray) -> np.ndarray:
    """Which regions have a vector: not those of which the model's frame shows nothing, whose vector is zero.

    Their cosine with anything is 0, which is above that of what fits wherever cosines are negative, and a tie where
    several are. So a scorer counts them as wrong, and tells how many there were, as `NOT_SHOWN`.

    Args:
        vectors: (R, D), a row a region.

    Returns:
        (R,), bool.

    Example:
        >>> shown(np.array([[0.6, 0.8], [0.0, 0.0]])).tolist()
        [True, False]
    """
    return np.asarray(vectors).any(axis=1)


NOT_SHOWN = "regions of which the frame shows nothing"
"""Under this name `counts` of a result tells how many regions have no vector, see `shown`."""


def mean_figure(
    values: np.ndarray,
    clusters: Sequence[Hashable],
    bootstrap: int,
    seed: int,
    chance: float | None = None,
    groups: Sequence[Hashable] | None = None,
) -> Figure:
    """The mean of one number an item, with its 95 % interval by a percentile bootstrap of photos.

    Photos are drawn with replacement, each with all its items: the regions of one photo are hard or easy together, and
    taken as independent they would make the interval too narrow. In a mean of classes each item keeps its weight, 1 / (classes
    x items of its class), in all draws. To take the means of classes anew on each draw, without those of which nothing was
    drawn, would hide the chance in classes of one item: of those, any draw has the same mean.

    Where all values are 0, or all are 1, all draws are equal; the interval is then Wilson's, see `constant_interval`. Where
    all are another same number, it has no width. Of a single photo there is none. With few photos (below some 50) or few items
    that differ from the rest, any resampling gives intervals that are somewhat too narrow.

    Args:
        values: One number an item, (N,).
        clusters: Of each item what it is drawn with, the key of its photo, (N,).
        bootstrap: Resamples; 0 for no interval.
        seed: Of the resamples.
        chance: See `Figure`.
        groups: Class of each item, (N,): the mean is then over the means of the classes.

    Raises:
        ValueError: If there are no items, or not one cluster and one group an item.

    Example:
        >>> mean_figure(np.array([1.0, 0.0, 1.0, 1.0]), ["a.jpg", "a.jpg", "b.jpg", "c.jpg"], bootstrap=0, seed=0)
        Figure(value=0.75, low=None, high=None, count=4, chance=None)
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("there are no items to take a mean of.")
    photo = _numbers(clusters, len(values), "clusters")
    group = np.zeros(len(values), dtype=np.int64) if groups is None else _numbers(groups, len(values), "groups")
    sizes = np.bincount(group)
    value = float((np.bincount(group, weights=values) / sizes).mean())
    photos = int(photo.max()) + 1
    if not bootstrap or photos == 1:
        return Figure(value, count=len(values), chance=chance)
    weights = 1 / (len(sizes) * sizes[group])
    shares = np.bincount(photo, weights=weights)
    if (values == values[0]).all() and values[0] in (0, 1):
        low, high = constant_interval(value, 1 / float((shares**2).sum()))
        return Figure(value, low, high, len(values), chance)
    sums = np.bincount(photo, weights=weights * values)
    generator = np.random.default_rng(seed)
    means = np.empty(bootstrap)
    for draw in range(bootstrap):
        times = np.bincount(generator.integers(photos, size=photos), minlength=photos)
        means[draw] = (times @ sums) / (times @ shares)
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(value, float(low), float(high), len(values), chance)


def constant_interval(value: float, photos: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of which nothing but 0, or nothing but 1, was seen.

    Args:
        value: 0 or 1.
        photos: How many there are. Photos of unequal weight w, which sum to 1, count as 1 / sum(w^2).

    Example:
        >>> [round(end, 3) for end in constant_interval(1.0, 100)]
        [0.963, 1.0]
    """
    width = _Z**2 / (photos + _Z**2)
    return (1 - width, 1.0) if value else (0.0, width)


def _numbers(labels: Sequence[Hashable], count: int, name: str) -> np.ndarray:
    """Whole numbers from 0, (N,), the same for the same label, in the order in which labels come."""
    if len(labels) != count:
        raise ValueError(f"{name} has {len(labels)} entries for {count} values; accepted is one each.")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels])
