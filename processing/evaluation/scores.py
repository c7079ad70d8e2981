# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pieces that every scorer takes: unit vectors, and figures with their intervals."""

from __future__ import annotations

import numpy as np

from .results import Figure


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


def mean_figure(
    values: np.ndarray, bootstrap: int, seed: int, chance: float | None = None, groups: np.ndarray | None = None
) -> Figure:
    """The mean of one number an item, with its 95 % percentile bootstrap interval.

    Args:
        values: One number an item, (N,).
        bootstrap: Resamples; 0 for no interval.
        seed: Of the resamples.
        chance: See `Figure`.
        groups: Class of each item, (N,): the mean is then over the means of the classes, and items are drawn within them.

    Example:
        >>> mean_figure(np.array([1.0, 0.0, 1.0, 1.0]), bootstrap=0, seed=0)
        Figure(value=0.75, low=None, high=None, count=4, chance=None)
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0:
        raise ValueError("there are no items to take a mean of.")
    if groups is None:
        parts = [values]
    else:
        groups = np.asarray(groups)
        parts = [values[groups == group] for group in np.unique(groups)]
    value = float(np.mean([part.mean() for part in parts]))
    if not bootstrap:
        return Figure(value, count=len(values), chance=chance)
    generator = np.random.default_rng(seed)
    means = sum(_resampled_means(part, bootstrap, generator) for part in parts) / len(parts)
    low, high = np.quantile(means, [0.025, 0.975])
    return Figure(value, float(low), float(high), len(values), chance)


def _resampled_means(values: np.ndarray, bootstrap: int, generator: np.random.Generator) -> np.ndarray:
    """Means of as many samples, drawn with replacement, (bootstrap,)."""
    count = len(values)
    if np.isin(values, (0, 1)).all():
        # How often 1 is drawn is binomial: the same distribution, without the draws.
        return generator.binomial(count, values.mean(), size=bootstrap) / count
    # One at a time: a matrix of all draws would take gigabytes.
    return np.array([values[generator.integers(count, size=count)].mean() for _ in range(bootstrap)])
