# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What every benchmark stands on: figures with intervals, results as files, checks of the data folder."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_for_tests import RandomEncoder

from processing_pixclip.evaluation.benchmark import Benchmark, SourceFile, package_versions
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.items import EvaluationImage, EvaluationRegion
from processing_pixclip.evaluation.protocols import Protocol
from processing_pixclip.evaluation.results import BenchmarkResult, Figure
from processing_pixclip.evaluation.scores import mean_figure, unit


def a_result(**fields):
    content = {
        "benchmark": "b",
        "task": "t",
        "dataset": "d",
        "main_figure": "top-1",
        "protocol": {"name": "default", "views": ["roi"]},
        "model": {"name": "m"},
        "figures": {"top-1": Figure(0.5, 0.25, 0.75, 8, 0.1), "rank": Figure(3.0)},
        "counts": {"regions": 8},
        "versions": {"numpy": "2"},
        "items": [{"key": "1", "correct": True}],
        "images": {"1": "/somewhere/1.jpg"},
    }
    return BenchmarkResult(**{**content, **fields})


def test_a_result_file_reads_back_and_holds_neither_items_nor_paths():
    result = a_result()
    content = json.loads(result.to_json())
    assert "items" not in content and "somewhere" not in result.to_json()
    again = BenchmarkResult.from_dict(content)
    assert again.to_json() == result.to_json() and again.figures == result.figures
    assert again.items == [] and again.images == {}


def test_the_plain_form_is_a_copy_of_no_item():
    class Uncopied(dict):
        def __deepcopy__(self, memo):
            raise AssertionError("items may be gigabytes")

    assert a_result(items=[Uncopied()]).to_dict()["counts"] == {"regions": 8}


def test_a_result_without_its_main_figure_or_with_an_empty_mean_is_refused():
    with pytest.raises(ValueError, match="main_figure of b is 'top-2'; accepted are its figures"):
        a_result(main_figure="top-2")
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="figure 'top-1' of b is (nan|inf)"):
            a_result(figures={"top-1": Figure(value)})


def test_unit_vectors():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]])
    found = unit(vectors)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="1 of 2 vectors have a NaN or an infinity, the first is number 1"):
            unit(np.array([[1.0, 0.0], [bad, 1.0]]))


def plain_bootstrap(values, resamples, seed):
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, size=len(values)).mean() for _ in range(resamples)]
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("values", [np.repeat([0.0, 1.0], [140, 60]), np.linspace(0, 1, 150) ** 2])
def test_intervals_are_those_of_a_plain_bootstrap(values):
    figure = mean_figure(values, bootstrap=4000, seed=0, chance=0.1)
    assert figure.value == pytest.approx(values.mean()) and figure.count == len(values) and figure.chance == 0.1
    spread = values.std() / len(values) ** 0.5
    np.testing.assert_allclose([figure.low, figure.high], plain_bootstrap(values, 4000, 1), atol=0.2 * spread)


def test_a_mean_of_classes_weighs_each_class_alike_and_draws_within_it():
    values, groups = np.array([1.0] * 90 + [0.0] * 10 + [0, 1]), np.array(["many"] * 100 + ["few"] * 2)
    figure = mean_figure(values, bootstrap=2000, seed=0, groups=groups)
    assert figure.value == pytest.approx((0.9 + 0.5) / 2) and figure.count == 102
    # The two items of the small class are what is uncertain: 0, 1/2 or 1, with 1/4, 1/2, 1/4.
    assert 0.41 < figure.low < 0.46 and 0.94 < figure.high < 0.99
    alone = mean_figure(np.array([1.0, 0.0]), bootstrap=500, seed=0, groups=np.array([3, 5]))
    assert (alone.low, alone.value, alone.high) == (0.5, 0.5, 0.5)


def test_figures_hang_on_their_seed_alone():
    values = np.repeat([0.0, 1.0], [30, 20])
    assert mean_figure(values, 200, 3) == mean_figure(values, 200, 3)
    assert mean_figure(values, 200, 3) != mean_figure(values, 200, 4)
    assert mean_figure(values, 0, 3) == Figure(0.4, count=50)
    with pytest.raises(ValueError, match="no items"):
        mean_figure(np.array([]), 200, 0)


def test_a_region_needs_a_mask_or_a_box():
    with pytest.raises(ValueError, match="region 'k' has neither mask nor box"):
        EvaluationRegion("k", EvaluationImage("i", Path("i")))


@dataclass(frozen=True)
class NumbersProtocol(Protocol):
    split: str = "val"


class Numbers(Benchmark):
    name, summary, task, dataset, main_figure = "numbers", "s", "t", "d", "accuracy"
    presets = {"default": NumbersProtocol()}
    layout = (
        SourceFile("numbers_{split}.json", "the numbers", "They are at https://example.org/numbers."),
        SourceFile("photos", "the photos", "They are at https://example.org/photos."),
        SourceFile("more.json", "more of them", "Nowhere.", optional=True),
    )

    def load(self):
        self.check_layout()

    def evaluate(self, features):
        self.load()
        return self.result(features, {"accuracy": Figure(1.0)}, [], [EvaluationImage("a", Path("/x/a"))])


def test_a_layout_names_all_that_is_missing_and_where_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        Numbers(tmp_path).load()
    told = str(error.value)
    assert f"{tmp_path / 'numbers_val.json'}: the numbers. They are at https://example.org/numbers." in told
    assert f"{tmp_path / 'photos'}: the photos" in told and "more" not in told
    (tmp_path / "photos").mkdir()
    (tmp_path / "numbers_val.json").touch()
    Numbers(tmp_path).load()
    with pytest.raises(FileNotFoundError, match="numbers_test.json"):
        Numbers(tmp_path, NumbersProtocol(split="test")).load()


def test_missing_images_are_an_error_or_are_counted(tmp_path):
    images = [EvaluationImage(name, tmp_path / name) for name in ("a.jpg", "b.jpg")]
    (tmp_path / "a.jpg").touch()
    benchmark = Numbers(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"numbers: 1 image files are missing, the first are .*b\.jpg.*skip_missing"
    ):
        benchmark.check_images(images)
    benchmark = Numbers(tmp_path, replace(benchmark.protocol, skip_missing=True))
    assert benchmark.check_images(images) == {"b.jpg"}
    assert benchmark.counts == {"images left out, file missing": 1}


def test_a_result_tells_protocol_model_and_versions(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "numbers_val.json").touch()
    result = Numbers(tmp_path).evaluate(FeatureExtractor(RandomEncoder(4)))
    assert result.protocol == NumbersProtocol().to_dict()
    assert result.model == {"name": "RandomEncoder", "seed": 4}
    assert result.images == {"a": "/x/a"}
    assert result.versions == package_versions() and {"python", "torch", "numpy"} <= result.versions.keys()
