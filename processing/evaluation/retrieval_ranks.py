# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Ranks of retrieval in tiles: no matrix of all scores, no sort, the same ranks whatever the tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np


# Two float64 products of the same vectors differ by less than this share of the product of their lengths, in whatever
# order they are summed, up to 4,500 dimensions (each is off by at most D * 2**-53 of it).
TIE_TOLERANCE = 1e-12

Relevant = np.ndarray | Sequence[Sequence[int]] | tuple[np.ndarray, np.ndarray]


def retrieval_ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    relevant: Relevant,
    ties: Literal["pessimistic", "optimistic"] = "pessimistic",
    chunk: int = 1024,
) -> np.ndarray:
    """The rank of each query's best relevant item, 1 for the top.

    Scores are dot products (of unit vectors: cosines) in float64, in tiles of `chunk` queries by `chunk` items; of float32
    vectors, a float32 product decides all pairs but those that are closer than its greatest possible error. Two scores tie
    where they differ by at most 1e-12 times the lengths of the query and of the longest vector of the gallery. That is
    above the rounding by which equal vectors get unequal products from BLAS, whose last bits depend on the place in a
    tile, and far below what float32 vectors can tell apart. So duplicates always tie, and ranks depend neither on `chunk`
    nor on the machine.

    Beyond the arguments and the ranks, memory is at most `9 * chunk**2 + 24 * chunk * D + 32 * (Q + G + pairs)` bytes, where
    `pairs` counts relevant items of all queries: 24 MB for 5,000 x 25,000 vectors of 512 dimensions, where the matrix of
    scores alone has 500.

    Args:
        queries: (Q, D), any real dtype.
        gallery: (G, D).
        relevant: Items that answer each query: an array (Q,) of one index each, a list of Q lists of indices, or the pair
            `(indptr, indices)` of a CSR matrix, two arrays, whose row q has the indices
            `indices[indptr[q]:indptr[q + 1]]`.
        ties: Whether a wrong item with the score of the best relevant one ranks before it ("pessimistic") or after it.
            Other relevant items never rank before it.
        chunk: Queries, and items, of a tile.

    Returns:
        Ranks (Q,), int64.

    Raises:
        ValueError: If a vector is not finite, a query has no relevant item, an index is not in the gallery, or shapes do
            not fit. The row is named.

    Example:
        >>> texts = np.array([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8]])
        >>> images = np.array([[0.8, 0.6], [0.0, 1.0]])
        >>> retrieval_ranks(images, texts, [[0], [1, 2]])
        array([3, 1])
        >>> retrieval_ranks(texts, images, np.array([0, 1, 0]))
        array([1, 2, 1])
    """
    queries, gallery, pairs = _checked(queries, gallery, relevant, ties, chunk)
    return 1 + _count_before(queries, gallery, pairs, ties, chunk, both=False)[0]


def bidirectional_ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    relevant: Relevant,
    ties: Literal["pessimistic", "optimistic"] = "pessimistic",
    chunk: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """`retrieval_ranks` both ways, each product computed once: half the time of two calls.

    Args:
        queries: (Q, D), for example images.
        gallery: (G, D), for example captions.
        relevant: As in `retrieval_ranks`; each item of the gallery must answer some query too.
        ties: As in `retrieval_ranks`.
        chunk: As in `retrieval_ranks`.

    Returns:
        Ranks of queries in the gallery (Q,), and of the gallery's items among the queries (G,).

    Raises:
        ValueError: As `retrieval_ranks`, and if an item of the gallery answers no query.

    Example:
        >>> images, texts = np.eye(2), np.array([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2]])
        >>> image_to_text, text_to_image = bidirectional_ranks(images, texts, [[0, 1], [2]])
        >>> image_to_text, text_to_image
        (array([1, 1]), array([1, 1, 2]))
    """
    queries, gallery, pairs = _checked(queries, gallery, relevant, ties, chunk)
    answers = np.bincount(pairs[1], minlength=len(gallery))
    if not answers.all():
        raise ValueError(
            f"item {int(np.argmin(answers))} of the gallery answers no query, so it has no rank the other way; leave it out, "
            f"or take retrieval_ranks for the one direction."
        )
    before, before_other_way = _count_before(queries, gallery, pairs, ties, chunk, both=True)
    return 1 + before, 1 + before_other_way


def recall_at(ranks: np.ndarray, k: int) -> float:
    """The share of queries with a relevant item among the first k, R@k.

    Args:
        ranks: (Q,), 1 for the top, as of `retrieval_ranks`.
        k: How many items count.

    Example:
        >>> recall_at(np.array([1, 3, 6, 2]), 5)
        0.75
    """
    return float((_checked_ranks(ranks) <= k).mean())


def median_rank(ranks: np.ndarray) -> float:
    """The median of ranks, "MedR"; of an even number, the mean of the middle two.

    Args:
        ranks: (Q,), 1 for the top, as of `retrieval_ranks`.

    Example:
        >>> median_rank(np.array([1, 3, 6, 2]))
        2.5
    """
    return float(np.median(_checked_ranks(ranks)))


def _checked_ranks(ranks: np.ndarray) -> np.ndarray:
    ranks = np.asarray(ranks)
    if ranks.ndim != 1 or not len(ranks):
        raise ValueError(f"ranks have shape {ranks.shape}; accepted is (Q,) with at least one.")
    if ranks.min() < 1:
        raise ValueError(f"rank {int(np.argmin(ranks))} is {ranks.min()}; accepted is 1, the top, and more.")
    return ranks


def _checked(
    queries: np.ndarray, gallery: np.ndarray, relevant: Relevant, ties: str, chunk: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The vectors, and the relevant pairs as (query, item), queries ascending."""
    if ties not in ("pessimistic", "optimistic"):
        raise ValueError(f"ties is {ties!r}; accepted is 'pessimistic' or 'optimistic'.")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; accepted is 1 or more.")
    queries, gallery = np.asarray(queries), np.asarray(gallery)
    for name, vectors in (("queries", queries), ("gallery", gallery)):
        if vectors.ndim != 2 or not len(vectors):
            raise ValueError(f"{name} has shape {vectors.shape}; accepted is (rows, D) with at least one row.")
        for start in range(0, len(vectors), chunk):
            finite = np.isfinite(vectors[start : start + chunk]).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise ValueError(f"row {row} of {name} is not finite; accepted are vectors without NaN and infinity.")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}; both must be the same."
        )
    return queries, gallery, _pairs(relevant, len(queries), len(gallery))


def _pairs(relevant: Relevant, queries: int, items: int) -> tuple[np.ndarray, np.ndarray]:
    """Relevant pairs as (query, item), queries ascending."""
    if isinstance(relevant, tuple) and len(relevant) == 2 and all(isinstance(part, np.ndarray) for part in relevant):
        indptr, indices = relevant
        if (
            indptr.shape != (queries + 1,)
            or indptr[0] != 0
            or indptr[-1] != len(indices)
            or (np.diff(indptr) < 0).any()
        ):
            raise ValueError(
                f"relevant is a pair (indptr, indices) whose indptr does not fit; accepted are {queries + 1} ascending numbers "
                f"from 0 to the number of indices, {len(indices)}."
            )
        counts = np.diff(indptr)
    elif isinstance(relevant, np.ndarray):
        indices, counts = relevant, np.ones(len(relevant), dtype=np.int64)
    else:
        for place, row in enumerate(relevant):
            if not isinstance(row, (Sequence, np.ndarray)) or isinstance(row, str):
                raise ValueError(
                    f"relevant[{place}] is {row!r}; accepted are a list of lists of indices, an array (Q,) with one index for "
                    "each query, or a pair of arrays (indptr, indices)."
                )
        counts = np.array([len(row) for row in relevant], dtype=np.int64)
        indices = np.array([index for row in relevant for index in row], dtype=np.int64)
    if len(counts) != queries or indices.ndim != 1 or not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(
            f"relevant is for {len(counts)} queries, as {indices.dtype} of shape {indices.shape}; accepted are {queries} whole "
            f"numbers, {queries} lists of them, or a pair (indptr, indices)."
        )
    if not counts.all():
        raise ValueError(f"query {int(np.argmin(counts))} has no relevant item; leave it out, or give at least one.")
    rows = np.repeat(np.arange(queries), counts)
    wrong = (indices < 0) | (indices >= items)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise ValueError(
            f"relevant item {indices[place]} of query {rows[place]} is not in the gallery; accepted is 0 to {items - 1}."
        )
    return rows, indices.astype(np.int64, copy=False)


def _starts(length: int, chunk: int) -> Iterator[slice]:
    return (slice(start, min(start + chunk, length)) for start in range(0, length, chunk))


def _count_before(
    queries: np.ndarray,
    gallery: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
    ties: str,
    chunk: int,
    both: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """How many wrong items rank before the best relevant one of each query, and the other way round where `both`."""
    rows, columns = pairs
    best_of_query = np.full(len(queries), -np.inf)
    best_of_item = np.full(len(gallery), -np.inf)
    for part in _starts(len(rows), chunk):
        left, right = queries[rows[part]].astype(np.float64), gallery[columns[part]].astype(np.float64)
        scores = np.einsum("nd,nd->n", left, right)
        np.maximum.at(best_of_query, rows[part], scores)
        np.maximum.at(best_of_item, columns[part], scores)
    # From here the score that a wrong item must reach, or exceed. A zero vector has no tolerance: ties must stay ties there.
    reaches = np.greater_equal if ties == "pessimistic" else np.greater
    sign = -1.0 if ties == "pessimistic" else 1.0
    query_lengths, item_lengths = _lengths(queries, chunk), _lengths(gallery, chunk)
    query_reach, item_reach = query_lengths * item_lengths.max(), item_lengths * query_lengths.max()
    best_of_query += sign * TIE_TOLERANCE * query_reach
    best_of_item += sign * TIE_TOLERANCE * item_reach

    single = all(_fits_single(*vectors) for vectors in ((queries, query_lengths), (gallery, item_lengths)))
    # What a float32 product is off by at most, in whatever order it is summed, and what rounding the limits adds.
    slack = 1.01 * (queries.shape[1] + 2) * 2.0**-24
    before = np.zeros(len(queries), dtype=np.int64)
    before_other_way = np.zeros(len(gallery), dtype=np.int64)
    ends = np.searchsorted(rows, np.arange(len(queries) + 1))
    for part in _starts(len(queries), chunk):
        pair_rows = rows[ends[part.start] : ends[part.stop]] - part.start
        pair_columns = columns[ends[part.start] : ends[part.stop]]
        for tile in _starts(len(gallery), chunk):
            inside = (pair_columns >= tile.start) & (pair_columns < tile.stop)
            right = pair_rows[inside], pair_columns[inside] - tile.start
            sides = [(before[part], best_of_query[part, None], slack * query_reach[part, None], 1)]
            if both:
                sides.append((before_other_way[tile], best_of_item[None, tile], slack * item_reach[None, tile], 0))
            # Vectors that lie too close in one tile do so in the next.
            single = single and _count_in_single(queries[part], gallery[tile], right, sides, reaches)
            if single:
                continue
            scores = queries[part].astype(np.float64) @ gallery[tile].astype(np.float64).T
            scores[right] = -np.inf
            for counts, limit, _, axis in sides:
                counts += _count(reaches(scores, limit), axis)
            del scores  # Before the next product is made: two tiles at once would double the memory.
    return before, before_other_way


def _count_in_single(
    left: np.ndarray, right: np.ndarray, relevant: tuple[np.ndarray, np.ndarray], sides: list[tuple], reaches: np.ufunc
) -> bool:
    """Counts one tile by a float32 product, half the time, and the pairs that it leaves open one by one in float64.

    Returns:
        False where it leaves open so many that the whole tile is faster in float64; then nothing was counted.
    """
    scores = left.astype(np.float32, copy=False) @ right.astype(np.float32, copy=False).T
    scores[relevant] = -np.inf
    found = []
    for _, limit, slack, axis in sides:
        sure = _count(scores > (limit + slack).astype(np.float32), axis)
        possible = _count(scores >= (limit - slack).astype(np.float32), axis)
        if (possible - sure).sum() > scores.size // 100:
            return False
        found.append((sure, possible))
    for (counts, limit, slack, axis), (sure, possible) in zip(sides, found, strict=True):
        counts += sure
        for line in np.flatnonzero(possible > sure):
            values = scores[line] if axis == 1 else scores[:, line]
            own = (line, 0) if axis == 1 else (0, line)
            low, high = (limit - slack)[own].astype(np.float32), (limit + slack)[own].astype(np.float32)
            open_places = np.flatnonzero((values >= low) & ~(values > high))
            vector, others = (left[line], right) if axis == 1 else (right[line], left)
            exact = others[open_places].astype(np.float64) @ vector.astype(np.float64)
            counts[line] += np.count_nonzero(reaches(exact, limit[own]))
    return True


def _fits_single(vectors: np.ndarray, lengths: np.ndarray) -> bool:
    """Whether float32 holds the vectors as they are, and products of them without over- or underflow."""
    lengths = lengths[lengths > 0]
    return np.can_cast(vectors.dtype, np.float32) and bool(((lengths > 1e-10) & (lengths < 1e10)).all())


def _lengths(vectors: np.ndarray, chunk: int) -> np.ndarray:
    return np.concatenate(
        [np.linalg.norm(vectors[part].astype(np.float64), axis=1) for part in _starts(len(vectors), chunk)]
    )


def _count(true: np.ndarray, axis: int) -> np.ndarray:
    # Faster than np.count_nonzero along an axis.
    return true.view(np.int8).sum(axis=axis, dtype=np.int32)
