# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Ranks of right classes among scores, accuracies, and confusion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np


# Units in the last place.
_TIE_UNITS = 16


def tie_rule(
    ties: Literal["pessimistic", "optimistic"],
    equal: str = f"scores of a row are equal that differ by at most {_TIE_UNITS} units in the last place of its greatest",
) -> str:
    """A tie rule in words, for results.

    Args:
        ties: Of the protocol.
        equal: Which scores are equal; by default those of `target_ranks`.

    Example:
        >>> tie_rule("optimistic", "scores are equal that are the same")
        'scores are equal that are the same; a wrong one that equals the right one ranks after it'
    """
    return f"{equal}; a wrong one that equals the right one ranks {'before' if ties == 'pessimistic' else 'after'} it"


def target_ranks(
    scores: np.ndarray, targets: np.ndarray, ties: Literal["pessimistic", "optimistic"] = "pessimistic"
) -> np.ndarray:
    """The rank of the right class (or candidate) of each row, 1 for the top: top-k accuracy is the share of ranks <= k.

    Two scores of a row tie where they differ by at most 16 units in the last place of the row's greatest score:
    `16 * eps * max(abs(row))`, where `eps` is that of the dtype, 1.2e-7 for float32. Products of equal vectors can differ
    by some units, since their last bits depend on the place in the matrix. So one score that is far greater than the others
    makes small ones tie: give cosines or logits, not their exponentials. float16, whose units are a thousandth, is taken as
    float32. Whole numbers tie where they are equal.

    Args:
        scores: (N, C); minus infinity stands for no candidate (rows with fewer).
        targets: (N,), index of the right class.
        ties: Whether a wrong class with the score of the right one ranks before it ("pessimistic") or after it.

    Returns:
        Ranks (N,), int64.

    Raises:
        ValueError: If a score is NaN or plus infinity, or a right class has no finite score, the row is named; or shapes
            do not fit.

    Example:
        >>> scores = np.array([[0.2, 0.9, 0.1], [0.5, 0.5, 0.3]])
        >>> target_ranks(scores, np.array([0, 0])), target_ranks(scores, np.array([0, 0]), ties="optimistic")
        (array([2, 2]), array([2, 1]))
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    if scores.dtype == np.float16:
        scores = scores.astype(np.float32)
    if ties not in ("pessimistic", "optimistic"):
        raise ValueError(f"ties is {ties!r}; accepted is 'pessimistic' or 'optimistic'.")
    if scores.ndim != 2 or targets.shape != scores.shape[:1] or not np.issubdtype(targets.dtype, np.integer):
        raise ValueError(
            f"scores have shape {scores.shape}, targets {targets.shape} of {targets.dtype}; accepted is (N, C) and (N,) of whole "
            f"numbers."
        )
    if not len(scores):
        return np.zeros(0, dtype=np.int64)
    wrong = (targets < 0) | (targets >= scores.shape[1])
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"target {row} is {targets[row]}; accepted is 0 to {scores.shape[1] - 1}.")
    right = np.take_along_axis(scores, targets[:, None], axis=1)
    bad = np.isnan(scores).any(axis=1) | np.isposinf(scores).any(axis=1) | ~np.isfinite(right[:, 0])
    if bad.any():
        raise ValueError(
            f"row {int(np.argmax(bad))} of scores is not finite; accepted are numbers, and minus infinity for a candidate that "
            f"is not there and not the right one."
        )
    if np.issubdtype(scores.dtype, np.floating):
        greatest = np.where(np.isfinite(scores), np.abs(scores), 0).max(axis=1, keepdims=True)
        tolerance = _TIE_UNITS * np.finfo(scores.dtype).eps * greatest
    else:
        tolerance = 0
    before = scores >= right - tolerance if ties == "pessimistic" else scores > right + tolerance
    np.put_along_axis(before, targets[:, None], False, axis=1)
    return 1 + before.sum(axis=1, dtype=np.int64)


def accuracy_at(ranks: np.ndarray, k: int, groups: np.ndarray | None = None) -> float:
    """Top-k accuracy: the share of rows whose right class is among the first k.

    Args:
        ranks: (N,), as of `target_ranks`.
        k: How many classes count.
        groups: (N,), class of each row: the mean is then over the means of the classes that occur.

    Raises:
        ValueError: If there are no ranks, or groups are not as many.

    Example:
        >>> ranks = np.array([1, 1, 3, 2])
        >>> accuracy_at(ranks, 1), accuracy_at(ranks, 1, groups=np.array([7, 7, 7, 9]))
        (0.5, 0.3333333333333333)
    """
    right = np.asarray(ranks) <= k
    if not len(right):
        raise ValueError("there are no ranks to take an accuracy of.")
    if groups is None:
        return float(right.mean())
    if np.shape(groups) != right.shape:
        raise ValueError(f"groups have shape {np.shape(groups)}; accepted is {right.shape}, one for each rank.")
    _, places = np.unique(groups, return_inverse=True)
    return float((np.bincount(places, weights=right) / np.bincount(places)).mean())


def pad_scores(rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Rows of different length as one matrix for `target_ranks`: minus infinity where a row has ended.

    Args:
        rows: Scores of the candidates of each row, at least one row.

    Returns:
        (N, longest), float32.

    Raises:
        ValueError: If there are no rows.

    Example:
        >>> pad_scores([[0.5, 0.25], [1.0]])
        array([[0.5 , 0.25],
               [1.  , -inf]], dtype=float32)
    """
    if not len(rows):
        raise ValueError("there are no rows of scores; accepted is one or more.")
    padded = np.full((len(rows), max(map(len, rows))), -np.inf, dtype=np.float32)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


def confusion(targets: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """How often each class was taken for each: rows are right classes, columns predicted ones.

    Args:
        targets: (N,), index of the right class.
        predicted: (N,), index of the predicted class.
        classes: How many classes there are.

    Returns:
        Counts (classes, classes), int64.

    Example:
        >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2)
        array([[1, 1],
               [0, 1]])
    """
    targets, predicted = np.asarray(targets, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    if targets.ndim != 1 or targets.shape != predicted.shape:
        raise ValueError(
            f"targets have shape {targets.shape}, predicted {predicted.shape}; accepted is (N,) for both."
        )
    for name, values in (("targets", targets), ("predicted", predicted)):
        wrong = (values < 0) | (values >= classes)
        if wrong.any():
            place = int(np.argmax(wrong))
            raise ValueError(f"{name}[{place}] is {values[place]}; accepted is 0 to {classes - 1}.")
    return np.bincount(targets * classes + predicted, minlength=classes**2).reshape(classes, classes)
