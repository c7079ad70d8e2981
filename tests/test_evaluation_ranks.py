# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Ranks of retrieval against a naive loop, and the overlap of boxes."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_pixclip.evaluation.boxes import box_iou
from processing_pixclip.evaluation.retrieval_ranks import (
    bidirectional_ranks,
    median_rank,
    recall_at,
    retrieval_ranks,
)


TIES = ("pessimistic", "optimistic")


def naive_ranks(queries, gallery, relevant, ties):
    """One pair at a time, by the definition."""
    ranks = []
    for query, right in zip(queries, relevant, strict=True):
        scores = [float(np.dot(query.astype(np.float64), item.astype(np.float64))) for item in gallery]
        best = max(scores[index] for index in right)
        rank = 1
        for index, score in enumerate(scores):
            if index not in right:
                rank += score >= best if ties == "pessimistic" else score > best
        ranks.append(rank)
    return ranks


@st.composite
def retrieval_cases(draw):
    """Small whole numbers: products are exact, and many are equal."""
    queries, gallery, width = draw(st.integers(1, 9)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    numbers = st.integers(-2, 2)

    def vectors(rows):
        values = draw(st.lists(numbers, min_size=rows * width, max_size=rows * width))
        return np.array(values, dtype=np.float32).reshape(rows, width)

    items = st.lists(st.integers(0, gallery - 1), min_size=1, max_size=4)
    relevant = draw(st.lists(items, min_size=queries, max_size=queries))
    return vectors(queries), vectors(gallery), relevant


@settings(max_examples=200, deadline=None)
@given(retrieval_cases(), st.sampled_from(TIES), st.sampled_from([1, 7, 1000]))
def test_ranks_are_those_of_a_naive_loop(case, ties, chunk):
    queries, gallery, relevant = case
    ranks = retrieval_ranks(queries, gallery, relevant, ties=ties, chunk=chunk)
    assert ranks.dtype == np.int64
    assert ranks.tolist() == naive_ranks(queries, gallery, relevant, ties)


@settings(max_examples=100, deadline=None)
@given(retrieval_cases(), st.sampled_from(TIES), st.sampled_from([1, 7, 1000]))
def test_both_ways_are_those_of_a_naive_loop(case, ties, chunk):
    queries, gallery, relevant = case
    answered = sorted({index for row in relevant for index in row})
    gallery, relevant = gallery[answered], [[answered.index(index) for index in row] for row in relevant]
    queries_of = [[q for q, row in enumerate(relevant) if item in row] for item in range(len(gallery))]
    ranks, other_way = bidirectional_ranks(queries, gallery, relevant, ties=ties, chunk=chunk)
    assert ranks.tolist() == naive_ranks(queries, gallery, relevant, ties)
    assert other_way.tolist() == naive_ranks(gallery, queries, queries_of, ties)


@pytest.mark.parametrize("ties", TIES)
def test_real_sized_vectors_rank_the_same_in_every_tile(ties):
    generator = np.random.default_rng(0)
    queries = generator.standard_normal((41, 512), dtype=np.float32)
    gallery = np.repeat(generator.standard_normal((60, 512), dtype=np.float32), 3, axis=0)
    gallery = gallery[generator.permutation(len(gallery))]
    relevant = [generator.integers(len(gallery), size=size).tolist() for size in generator.integers(1, 4, size=41)]
    expected = naive_ranks(queries, gallery, relevant, ties)
    for chunk in (1, 7, 40, 1024):
        ranks = retrieval_ranks(queries, gallery, relevant, ties=ties, chunk=chunk)
        # Two of three copies are wrong items unless drawn too: the naive products of copies are equal as they are one loop.
        assert ranks.tolist() == expected


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(("spread", "scale"), [(1.0, 1.0), (0.02, 1.0), (1.0, 1e-7), (1.0, 1e-18), (1.0, 1e18)])
def test_float32_vectors_rank_as_in_float64(ties, spread, scale):
    """Vectors apart; so close that float32 products tell few of them apart; so short or long that products do not fit."""
    generator = np.random.default_rng(6)
    gallery = (1 + spread * generator.standard_normal((1500, 256))).astype(np.float32) * np.float32(scale)
    gallery[[7, 700]] = gallery[[30, 1400]]
    queries = gallery[:300] + np.float32(spread * scale) * generator.standard_normal((300, 256), dtype=np.float32)
    targets = np.arange(300)
    expected = naive_ranks(queries[:40], gallery, targets[:40, None].tolist(), ties)
    assert expected[7] != 1 or ties == "optimistic"
    ranks, other_way = bidirectional_ranks(queries, gallery[:300], targets, ties, chunk=128)
    assert other_way[:40].tolist() == naive_ranks(gallery[:40], queries, targets[:40, None].tolist(), ties)
    assert ranks[:40].tolist() == naive_ranks(queries[:40], gallery[:300], targets[:40, None].tolist(), ties)
    for chunk in (100, 1024):
        assert retrieval_ranks(queries, gallery, targets, ties, chunk)[:40].tolist() == expected


def test_copies_of_a_vector_tie_wherever_they_lie():
    # A plain float32 product gives copies different last bits at the edge of a tile; a rank by == would miss them.
    generator = np.random.default_rng(1)
    for width in (3, 33, 512, 4096):
        vector = generator.standard_normal(width, dtype=np.float32)
        gallery = np.tile(vector / np.linalg.norm(vector), (211, 1))
        queries = generator.standard_normal((5, width), dtype=np.float32)
        targets = np.array([0, 7, 100, 209, 210])
        for chunk in (1, 13, 64, 1024):
            assert retrieval_ranks(queries, gallery, targets, chunk=chunk).tolist() == [211] * 5
            assert retrieval_ranks(queries, gallery, targets, "optimistic", chunk).tolist() == [1] * 5


def test_vectors_one_float32_step_apart_do_not_tie():
    query = np.zeros((1, 512), dtype=np.float32)
    query[0, 0] = 1
    gallery = np.zeros((2, 512), dtype=np.float32)
    gallery[:, 0] = 1, np.nextafter(np.float32(1), np.float32(0))
    assert retrieval_ranks(query, gallery, np.array([0])).tolist() == [1]
    assert retrieval_ranks(query, gallery, np.array([1]), ties="optimistic").tolist() == [2]


def test_zero_vectors_tie():
    zeros, targets = np.zeros((3, 4), dtype=np.float32), np.array([0, 1, 2])
    assert retrieval_ranks(zeros, zeros, targets).tolist() == [3, 3, 3]
    assert retrieval_ranks(zeros, zeros, targets, ties="optimistic").tolist() == [1, 1, 1]


def test_relevant_items_in_all_forms():
    generator = np.random.default_rng(2)
    queries, gallery = generator.standard_normal((4, 8)), generator.standard_normal((9, 8))
    one_each = retrieval_ranks(queries, gallery, np.array([3, 0, 8, 3]))
    assert retrieval_ranks(queries, gallery, [[3], [0], [8], [3]]).tolist() == one_each.tolist()
    lists = [[3, 1], [0], [8, 2, 5], [3]]
    csr = np.array([0, 2, 3, 6, 7]), np.array([3, 1, 0, 8, 2, 5, 3])
    assert retrieval_ranks(queries, gallery, csr).tolist() == retrieval_ranks(queries, gallery, lists).tolist()


def test_random_vectors_rank_in_the_middle():
    generator = np.random.default_rng(3)
    queries, gallery = generator.standard_normal((2000, 32)), generator.standard_normal((400, 32))
    ranks = retrieval_ranks(queries, gallery, generator.integers(400, size=2000))
    # Uniform on 1..400: five standard deviations of the mean.
    assert abs(ranks.mean() - 200.5) < 5 * 400 / np.sqrt(12 * 2000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, g, r: (np.where(np.arange(4)[:, None] == 2, np.nan, q), g, r), "row 2 of queries is not finite"),
        (lambda q, g, r: (q, np.where(np.arange(6)[:, None] == 5, np.inf, g), r), "row 5 of gallery is not finite"),
        (lambda q, g, r: (q, g[:, :2], r), "queries have 3 dimensions, the gallery 2"),
        (lambda q, g, r: (q, g[:0], r), "gallery has shape"),
        (lambda q, g, r: (q, g, [[0], [1], [], [2]]), "query 2 has no relevant item"),
        (lambda q, g, r: (q, g, [[0], [1], [2, 6], [2]]), "relevant item 6 of query 2 is not in the gallery"),
        (lambda q, g, r: (q, g, np.array([0, -1, 2, 3])), "relevant item -1 of query 1"),
        (lambda q, g, r: (q, g, np.array([0, 1])), "relevant is for 2 queries"),
        (lambda q, g, r: (q, g, np.array([0.0, 1.0, 2.0, 3.0])), "float64"),
        (lambda q, g, r: (q, g, (np.array([0, 2, 1, 3, 4]), np.arange(4))), "indptr does not fit"),
    ],
)
def test_what_does_not_fit_is_told(change, message):
    generator = np.random.default_rng(4)
    arguments = generator.standard_normal((4, 3)), generator.standard_normal((6, 3)), np.array([0, 1, 2, 3])
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(*change(*arguments), chunk=2)


def test_unknown_ties_and_chunks_are_told():
    vectors = np.eye(2)
    with pytest.raises(ValueError, match="'pessimistic' or 'optimistic'"):
        retrieval_ranks(vectors, vectors, np.array([0, 1]), ties="random")
    with pytest.raises(ValueError, match="chunk is 0"):
        retrieval_ranks(vectors, vectors, np.array([0, 1]), chunk=0)
    with pytest.raises(ValueError, match="item 1 of the gallery answers no query"):
        bidirectional_ranks(vectors, vectors, np.array([0, 0]))


def test_recall_and_median():
    ranks = np.array([1, 5, 2, 11])
    assert [recall_at(ranks, k) for k in (1, 2, 5, 10, 11)] == [0.25, 0.5, 0.75, 0.75, 1.0]
    assert median_rank(ranks) == 3.5
    assert median_rank(ranks[:3]) == 2
    for wrong in (np.array([]), np.array([[1]]), np.array([0, 1])):
        with pytest.raises(ValueError, match="rank"):
            recall_at(wrong, 1)
        with pytest.raises(ValueError, match="rank"):
            median_rank(wrong)


def test_memory_stays_within_the_stated_bound():
    generator = np.random.default_rng(5)
    images, texts, width, chunk = 2000, 6000, 64, 256
    queries = generator.standard_normal((images, width), dtype=np.float32)
    gallery = generator.standard_normal((texts, width), dtype=np.float32)
    relevant = np.arange(0, texts + 1, 3), np.arange(texts)
    tracemalloc.start()
    try:
        bidirectional_ranks(queries, gallery, relevant, chunk=chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    bound = 9 * chunk**2 + 24 * chunk * width + 32 * (images + texts + texts)
    assert peak <= bound < images * texts


def naive_iou(box, other):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    shared = max(width, 0) * max(height, 0)
    union = (box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared
    return shared / union if union > 0 else 0.0


BOXES = st.lists(
    st.tuples(*[st.integers(0, 8)] * 4).map(
        lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
    ),
    max_size=4,
)


@settings(max_examples=100, deadline=None)
@given(BOXES, BOXES)
def test_iou_is_that_of_a_naive_loop(boxes, others):
    found = box_iou(np.array(boxes), np.array(others))
    assert found.shape == (len(boxes), len(others))
    expected = [[naive_iou(box, other) for other in others] for box in boxes]
    np.testing.assert_allclose(found, np.array(expected).reshape(found.shape), atol=1e-12)


@pytest.mark.parametrize("box", [[0, 0, np.nan, 1], [5, 0, 4, 1], [0, 5, 1, 4]])
def test_a_box_that_is_none_is_named(box):
    with pytest.raises(ValueError, match=r"boxes\[1\]"):
        box_iou(np.array([[0, 0, 1, 1], box]), np.array([[0, 0, 1, 1]]))
    with pytest.raises(ValueError, match="shape"):
        box_iou(np.zeros((2, 5)), np.zeros((1, 4)))


def test_a_tuple_of_lists_is_a_list_of_lists():
    eye = np.eye(2, dtype=np.float32)
    for relevant in (([0], [1]), ((0,), (1,)), [np.array([0]), np.array([1])]):
        assert retrieval_ranks(eye, eye, relevant).tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"relevant\[0\] is 0; accepted are a list of lists of indices"):
        retrieval_ranks(eye, eye, [0, 1])
