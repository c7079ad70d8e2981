# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Ranks of right classes, accuracies and confusion against naive loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_pixclip.evaluation.boxes import box_iou, paired_iou
from processing_pixclip.evaluation.classification_scores import accuracy_at, confusion, pad_scores, target_ranks


TIES = ("pessimistic", "optimistic")


def naive_rank(row, target, ties):
    before = 0
    for place, score in enumerate(row):
        if place != target:
            before += score >= row[target] if ties == "pessimistic" else score > row[target]
    return 1 + before


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(TIES), st.sampled_from([np.float32, np.float64, np.int64]))
def test_ranks_are_those_of_a_naive_loop(data, ties, dtype):
    rows, classes = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    numbers = st.lists(st.integers(-3, 3), min_size=classes, max_size=classes)
    scores = np.array(data.draw(st.lists(numbers, min_size=rows, max_size=rows)), dtype=dtype)
    targets = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    before = scores.copy()
    ranks = target_ranks(scores, targets, ties)
    assert ranks.dtype == np.int64
    assert ranks.tolist() == [naive_rank(row, target, ties) for row, target in zip(scores, targets, strict=True)]
    assert (scores == before).all()


def test_equal_class_vectors_tie_in_a_plain_float32_product():
    generator = np.random.default_rng(0)
    classes = np.repeat(generator.standard_normal((37, 512), dtype=np.float32), 3, axis=0)
    classes = classes[generator.permutation(len(classes))]
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    regions = generator.standard_normal((67, 512), dtype=np.float32)
    scores, targets = regions @ classes.T, generator.integers(len(classes), size=67)
    pessimistic = target_ranks(scores, targets)
    assert (pessimistic % 3 == 0).all()
    assert (target_ranks(scores, targets, "optimistic") == pessimistic - 2).all()


def test_scores_that_differ_do_not_tie():
    for dtype, step in ((np.float32, 1e-5), (np.float64, 1e-13)):
        scores = np.array([[0.5, 0.5 - step, 0.5 + step]], dtype=dtype)
        assert target_ranks(scores, np.array([0])).tolist() == [2]
        assert target_ranks(scores, np.array([0]), ties="optimistic").tolist() == [2]


def test_rows_with_fewer_candidates():
    scores = pad_scores([[0.3, 0.1, 0.2], [0.5, 0.5], [0.4]])
    assert target_ranks(scores, np.zeros(3, dtype=int)).tolist() == [1, 2, 1]
    with pytest.raises(ValueError, match="row 2 of scores is not finite"):
        target_ranks(scores, np.array([0, 1, 1]))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(wrong):
    scores = np.zeros((3, 4))
    scores[1, 2] = wrong
    with pytest.raises(ValueError, match="row 1 of scores is not finite"):
        target_ranks(scores, np.zeros(3, dtype=int))


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="target 1 is 4; accepted is 0 to 3"):
        target_ranks(np.zeros((2, 4)), np.array([0, 4]))
    with pytest.raises(ValueError, match="shape"):
        target_ranks(np.zeros((2, 4)), np.array([0]))
    with pytest.raises(ValueError, match="'pessimistic' or 'optimistic'"):
        target_ranks(np.zeros((2, 4)), np.array([0, 0]), ties="half")
    with pytest.raises(ValueError, match=r"predicted\[1\] is 2; accepted is 0 to 1"):
        confusion(np.array([0, 1]), np.array([0, 2]), 2)
    with pytest.raises(ValueError, match="no ranks"):
        accuracy_at(np.zeros(0), 1)
    assert target_ranks(np.zeros((0, 4)), np.zeros(0, dtype=int)).shape == (0,)


def test_accuracy_over_all_and_over_classes():
    generator = np.random.default_rng(1)
    ranks, classes = generator.integers(1, 6, size=200), generator.integers(3, 9, size=200)
    for k in (1, 3, 5):
        assert accuracy_at(ranks, k) == sum(rank <= k for rank in ranks) / 200
        means = [(ranks[classes == name] <= k).mean() for name in sorted(set(classes.tolist()))]
        assert accuracy_at(ranks, k, groups=classes) == pytest.approx(sum(means) / len(means), abs=1e-12)


def test_confusion_counts_every_row():
    generator = np.random.default_rng(2)
    targets, predicted = generator.integers(5, size=300), generator.integers(5, size=300)
    counts = confusion(targets, predicted, 7)
    expected = np.zeros((7, 7), dtype=int)
    for target, guess in zip(targets, predicted, strict=True):
        expected[target, guess] += 1
    assert (counts == expected).all()
    assert counts.trace() == (targets == predicted).sum()


def test_paired_overlap_is_the_diagonal():
    generator = np.random.default_rng(3)
    corners = generator.uniform(0, 50, size=(2, 20, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0, 40, size=(2, 20, 2))], axis=2)
    np.testing.assert_array_equal(paired_iou(*boxes), box_iou(*boxes).diagonal())
    with pytest.raises(ValueError, match="20 boxes and 19 others"):
        paired_iou(boxes[0], boxes[1, :19])


def test_half_precision_scores_tie_where_they_are_equal():
    scores = np.array([[0.9, 0.895, 0.9], [0.5, 0.501, 0.2]], dtype=np.float16)
    assert target_ranks(scores, np.array([0, 0])).tolist() == [2, 2]
    assert target_ranks(scores, np.array([0, 1])).tolist() == [2, 1]


def test_accuracies_of_nothing_and_of_other_groups_are_told():
    with pytest.raises(ValueError, match=r"groups have shape \(1,\); accepted is \(2,\), one for each rank"):
        accuracy_at(np.array([1, 2]), 1, groups=np.array([0]))
    with pytest.raises(ValueError, match="there are no rows of scores"):
        pad_scores([])
