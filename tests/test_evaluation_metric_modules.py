# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The `evaluate` modules, loaded by path without a network, against the plain functions and figures worked out by hand."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
from evaluate.utils.file_utils import DownloadConfig

from processing_pixclip.evaluation.classification_scores import accuracy_at, target_ranks
from processing_pixclip.evaluation.metric_modules import METRICS, metric_path
from processing_pixclip.evaluation.retrieval_ranks import median_rank, recall_at, retrieval_ranks


def forget_loaded_modules():
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate_modules"]:
        del sys.modules[name]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`evaluate.load` with code and data in folders of this test."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    # Without the folders that others have loaded modules from: those would be looked into first.
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not Path(path, "evaluate_modules").is_dir()])
    forget_loaded_modules()

    def load_metric(name):
        return evaluate.load(
            metric_path(name),
            download_config=DownloadConfig(cache_dir=tmp_path / "downloads", local_files_only=True),
        )

    yield load_metric
    # Others must not look for theirs in this test's folder.
    forget_loaded_modules()


LOADED_IN_A_FRESH_PROCESS = """
import evaluate
from processing_pixclip.evaluation.metric_modules import METRICS, metric_path
for name in METRICS:
    print(evaluate.load(metric_path(name)).name)
metric = evaluate.load(metric_path("referring_accuracy"))
metric.add_batch(predictions=[[0, 0, 4, 4]], references=[[0, 0, 4, 4]])
metric.add_batch(predictions=[[0, 0, 4, 4]], references=[[5, 5, 6, 6]])
print(metric.compute())
"""


@pytest.mark.slow
def test_all_load_without_a_network_into_an_empty_cache(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment["HF_MODULES_CACHE"] = str(tmp_path / "modules")
    command = [sys.executable, "-c", LOADED_IN_A_FRESH_PROCESS]
    found = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split("\n")[:-1] == [*METRICS, "{'accuracy': 0.5, 'mean_iou': 0.5, 'count': 2}"]
    assert list((tmp_path / "modules").rglob("region_retrieval.py"))


@pytest.mark.parametrize("name", METRICS)
def test_the_description_has_an_example_that_runs(load, name, tmp_path):
    metric = load(name)
    assert metric.name == name
    assert list((tmp_path / "modules").rglob(f"{name}.py"))
    assert metric.description.strip()
    example = doctest.DocTestParser().get_doctest(metric.inputs_description, {}, name, name, 0)
    results = doctest.DocTestRunner().run(example)
    assert results.attempted > 2
    assert results.failed == 0


def test_every_metric_of_the_folder_is_listed():
    folder = Path(metric_path("region_retrieval")).parent
    assert sorted(path.stem for path in folder.glob("*/*.py")) == sorted(METRICS)
    with pytest.raises(ValueError, match="'recall' is no metric of this package; accepted are fine_grained_accuracy"):
        metric_path("recall")


def retrieval_pairs(seed=0, regions=12, texts_each=3, width=6):
    generator = np.random.default_rng(seed)
    region_vectors = generator.standard_normal((regions, width), dtype=np.float32)
    text_vectors = generator.standard_normal((regions * texts_each, width), dtype=np.float32)
    text_vectors += region_vectors.repeat(texts_each, axis=0)
    text_ids = generator.permutation(regions * texts_each)
    return region_vectors, text_vectors, text_ids, text_ids // texts_each


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
def test_retrieval_is_that_of_the_plain_functions_in_batches_and_at_once(load, normalize, ties):
    regions, texts, text_ids, region_ids = retrieval_pairs()
    texts[4] = texts[9]
    metric = load("region_retrieval")
    columns = {
        "predictions": regions[region_ids],
        "references": texts[text_ids],
        "region_ids": region_ids * 10 + 5,
        "text_ids": text_ids,
    }
    for start in range(0, len(text_ids), 7):
        metric.add_batch(**{name: column[start : start + 7] for name, column in columns.items()})
    in_batches = metric.compute(ks=[1, 4], ties=ties, normalize=normalize)
    at_once = metric.compute(**columns, ks=[1, 4], ties=ties, normalize=normalize)
    if normalize:
        regions = regions / np.linalg.norm(regions, axis=1, keepdims=True)
        texts = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    relevant = [[3 * region, 3 * region + 1, 3 * region + 2] for region in range(12)]
    there = retrieval_ranks(regions, texts, relevant, ties)
    back = retrieval_ranks(texts, regions, np.arange(36) // 3, ties)
    expected = {
        "region_to_text_R@1": recall_at(there, 1),
        "region_to_text_R@4": recall_at(there, 4),
        "region_to_text_median_rank": median_rank(there),
        "text_to_region_R@1": recall_at(back, 1),
        "text_to_region_R@4": recall_at(back, 4),
        "text_to_region_median_rank": median_rank(back),
        "regions": 12,
        "texts": 36,
    }
    assert in_batches == at_once == expected


def test_two_vectors_under_one_number_are_told(load):
    columns = {"predictions": [[1.0, 0.0], [0.0, 1.0]], "references": [[1.0, 0.0], [0.0, 1.0]], "text_ids": [0, 1]}
    with pytest.raises(ValueError, match=r"predictions\[1\] is another vector .* both have 3 in region_ids"):
        load("region_retrieval").compute(**columns, region_ids=[3, 3])
    columns["references"] = [[1.0, 0.0], [float("nan"), 1.0]]
    with pytest.raises(ValueError, match=r"references\[1\] is not finite"):
        load("region_retrieval").compute(**columns, region_ids=[3, 4])
    columns["references"] = [[1.0, 0.0], [1.0]]
    with pytest.raises(ValueError, match=r"references have \[1, 2\] dimensions"):
        load("region_retrieval").compute(**columns, region_ids=[3, 4])


def test_classification_is_that_of_the_plain_functions(load):
    generator = np.random.default_rng(1)
    scores, targets = generator.standard_normal((40, 7), dtype=np.float32), generator.integers(7, size=40)
    scores[:, 3] = scores[:, 2]
    metric = load("region_classification")
    for ties in ("pessimistic", "optimistic"):
        for start in range(0, 40, 16):
            metric.add_batch(predictions=scores[start : start + 16], references=targets[start : start + 16])
        ranks = target_ranks(scores, targets, ties)
        expected = {"top_1": accuracy_at(ranks, 1), "mean_class_top_1": accuracy_at(ranks, 1, targets)}
        expected |= {"top_5": accuracy_at(ranks, 5), "mean_class_top_5": accuracy_at(ranks, 5, targets), "count": 40}
        assert metric.compute(ties=ties) == expected
    with pytest.raises(ValueError, match=r"predictions have \[1, 2\] scores"):
        metric.compute(predictions=[[1.0], [1.0, 2.0]], references=[0, 0])


def test_fine_grained_accuracy_keeps_and_counts_rows_with_fewer_negatives(load):
    metric = load("fine_grained_accuracy")
    metric.add_batch(predictions=[[0.9, 0.2, 0.3], [0.5, 0.5, 0.1]], references=[0, 0])
    metric.add_batch(predictions=[[0.1, 0.4]], references=[1])
    results = metric.compute()
    assert results == {
        "accuracy": 2 / 3,
        "chance": pytest.approx((1 / 3 + 1 / 3 + 1 / 2) / 3),
        "count": 3,
        "candidates": {2: 1, 3: 2},
    }
    rows = {"predictions": [[0.5, 0.5], [0.2, 0.3]], "references": [0, 0]}
    assert [metric.compute(**rows, ties=ties)["accuracy"] for ties in ("pessimistic", "optimistic")] == [0, 0.5]
    with pytest.raises(ValueError, match="row 1 of predictions has 1 scores"):
        metric.compute(predictions=[[0.5, 0.5], [0.2]], references=[0, 0])
    with pytest.raises(ValueError, match="row 0 of predictions is not finite"):
        metric.compute(predictions=[[0.5, float("-inf")], [0.2, 0.1]], references=[0, 0])


def test_referring_accuracy_at_a_threshold(load):
    metric = load("referring_accuracy")
    boxes = {"predictions": [[0, 0, 10, 10]] * 3, "references": [[0, 0, 10, 5], [0, 0, 10, 9], [0, 0, 10, 2]]}
    assert metric.compute(**boxes) == {"accuracy": 2 / 3, "mean_iou": pytest.approx(1.6 / 3), "count": 3}
    assert metric.compute(**boxes, strict=True)["accuracy"] == 1 / 3
    assert metric.compute(**boxes, threshold=0.95)["accuracy"] == 0
    with pytest.raises(ValueError, match=r"others\[0\]"):
        metric.compute(predictions=[[0, 0, 1, 1]], references=[[5, 5, 1, 1]])


@pytest.mark.parametrize("name", METRICS)
def test_nothing_to_measure_is_told(load, name):
    columns = {"predictions": [], "references": []}
    if name == "region_retrieval":
        columns |= {"region_ids": [], "text_ids": []}
    with pytest.raises(ValueError, match="predictions are empty; accepted is one"):
        load(name).compute(**columns)
