# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What every benchmark stands on: figures with intervals, results as files, checks of the data folder."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_for_tests import RandomEncoder

from processing_pixclip.evaluation.benchmark import Benchmark, SourceFile, package_versions
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.items import EvaluationImage, EvaluationRegion, box_corners, place
from processing_pixclip.evaluation.protocols import Protocol
from processing_pixclip.evaluation.results import BenchmarkResult, Figure
from processing_pixclip.evaluation.scores import mean_figure, shown, unit


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
    figure = mean_figure(values, range(len(values)), bootstrap=4000, seed=0, chance=0.1)
    assert figure.value == pytest.approx(values.mean()) and figure.count == len(values) and figure.chance == 0.1
    spread = values.std() / len(values) ** 0.5
    np.testing.assert_allclose([figure.low, figure.high], plain_bootstrap(values, 4000, 1), atol=0.2 * spread)


def test_photos_are_drawn_with_all_their_items():
    photos = np.arange(40).repeat(5)
    values = (photos % 2).astype(float)
    figure = mean_figure(values, [f"{photo}.jpg" for photo in photos], bootstrap=4000, seed=0)
    assert figure.count == 200
    # As if there were 40 values, not 200.
    np.testing.assert_allclose([figure.low, figure.high], plain_bootstrap(values[::5], 4000, 1), atol=0.016)


def test_a_photo_with_many_items_weighs_as_many():
    photos, values = np.array([0] * 90 + list(range(1, 11))), np.array([1.0] * 90 + [0.0] * 10)
    figure = mean_figure(values, photos, bootstrap=2000, seed=0)
    generator = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        drawn = np.concatenate([values[photos == photo] for photo in generator.integers(11, size=11)])
        means.append(drawn.mean())
    np.testing.assert_allclose([figure.low, figure.high], np.quantile(means, [0.025, 0.975]), atol=0.02)


def test_a_mean_of_classes_weighs_each_class_alike():
    values, groups = np.array([1.0] * 90 + [0.0] * 10 + [0, 1]), np.array(["many"] * 100 + ["few"] * 2)
    figure = mean_figure(values, range(102), bootstrap=2000, seed=0, groups=groups)
    assert figure.value == pytest.approx((0.9 + 0.5) / 2) and figure.count == 102
    # What is uncertain are the two items of the small class.
    assert figure.low < 0.5 and figure.high > 0.9
    # Classes of one item each: the chance is in which there are.
    values = np.arange(50) % 2.0
    alone, plain = (mean_figure(values, range(50), 500, 0, groups=groups) for groups in (range(50), None))
    assert alone == plain and 0.3 < alone.low < 0.4 and 0.6 < alone.high < 0.7


@pytest.mark.parametrize("per_class", [False, True])
def test_intervals_hold_the_truth_as_often_as_they_say(per_class):
    """Photos of different difficulty; of 200 classes many have one item or none."""

    def items_of(generator):
        photos = np.arange(100).repeat(1 + generator.poisson(5, 100))
        right = generator.random(len(photos)) < generator.random(100)[photos]
        return right, photos, (200 * generator.random(len(photos)) ** 2).astype(int)

    held = 0
    for seed in range(200):
        values, photos, classes = items_of(np.random.default_rng(seed))
        figure = mean_figure(values, photos, 300, seed, groups=classes if per_class else None)
        held += figure.low <= 0.5 <= figure.high
    assert 180 <= held <= 198


def test_all_right_or_all_wrong_is_not_certain():
    for value in (0.0, 1.0):
        # Ten photos of three items each count as ten.
        figure = mean_figure(np.full(30, value), np.arange(10).repeat(3), 100, 0)
        ends = (1 / (1 + 1.959964**2 / 10), 1.0) if value else (0.0, 1.959964**2 / (10 + 1.959964**2))
        assert (figure.low, figure.high) == pytest.approx(ends) and figure.value == value
    # Nine photos of one item, and one of 91, count as little more than one.
    uneven = mean_figure(np.ones(100), np.array([0] * 91 + list(range(1, 10))), 100, 0)
    assert uneven.low == pytest.approx(1 - 1.959964**2 / (1 / (0.91**2 + 9 * 0.01**2) + 1.959964**2))
    # Not a share.
    same = mean_figure(np.full(30, 0.25), range(30), 100, 0)
    assert (same.low, same.high) == (0.25, 0.25)
    one_photo = mean_figure(np.array([0.0, 1.0]), ["a", "a"], 100, 0)
    assert (one_photo.low, one_photo.value, one_photo.high) == (None, 0.5, None)


def test_figures_hang_on_their_seed_alone():
    values, photos = np.repeat([0.0, 1.0], [30, 20]), range(50)
    assert mean_figure(values, photos, 200, 3) == mean_figure(values, photos, 200, 3)
    assert mean_figure(values, photos, 200, 3) != mean_figure(values, photos, 200, 4)
    assert mean_figure(values, photos, 0, 3) == Figure(0.4, count=50)
    with pytest.raises(ValueError, match="no items"):
        mean_figure(np.array([]), [], 200, 0)
    for name, arguments in (("clusters", {"clusters": [1]}), ("groups", {"clusters": photos, "groups": [1]})):
        with pytest.raises(ValueError, match=f"{name} has 1 entries for 50 values; accepted is one each"):
            mean_figure(values, bootstrap=200, seed=0, **arguments)


def test_what_is_shown():
    np.testing.assert_array_equal(shown(np.array([[0.0, -1e-30], [0.0, 0.0]])), [True, False])


def test_place_looks_below_images_too(tmp_path):
    assert place(tmp_path, "a/b.jpg") == tmp_path / "a" / "b.jpg"
    (tmp_path / "images" / "a").mkdir(parents=True)
    assert place(tmp_path, "a") == tmp_path / "images" / "a"
    (tmp_path / "a").mkdir()
    assert place(tmp_path, "a") == tmp_path / "a"
    assert place(tmp_path, "a", ("images", "")) == tmp_path / "images" / "a"


@pytest.mark.parametrize(
    ("box", "corners"),
    [
        ([10, 20, 30, 40], (10, 20, 40, 60)),
        ((-5, -5, 500, 500), (0, 0, 100, 80)),
        ([100, 0, 5, 5], None),
        ([10, 10, 0, 5], None),
        ([10, 10, 1e-4, 5], None),
        ([10, 10, -5, 5], None),
        ([float("nan"), 0, 5, 5], None),
        ([1, 2, 3], None),
        ("abcd", None),
        (None, None),
    ],
)
def test_box_corners(box, corners):
    assert box_corners(box, width=100, height=80) == corners


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


class Counted(Numbers):
    published = {"d": {"images": 10, "texts read": 20}}

    def __init__(self, data_dir, protocol=None, **counts):
        super().__init__(data_dir, protocol)
        self.counts = {name.replace("_", " "): count for name, count in counts.items()}


@pytest.mark.parametrize(
    ("counts", "label"),
    [
        ({"images": 10, "texts_read": 20}, "d"),
        ({"images": 9, "texts_read": 20}, "part of d"),
        ({"images": 10, "texts_read": 19}, "part of d"),
        ({"images": 11, "texts_read": 20}, "not the published d"),
        ({"images": 9, "texts_read": 21}, "not the published d"),
        ({"images": 9, "texts_read": 20, "images left out, no caption": 1}, "d"),
        ({"images": 9, "texts_read": 20, "images left out, file missing": 1}, "part of d"),
        ({"images": 10, "texts_read": 20, "images left out, file missing": 1}, "part of d"),
        ({"other": 3}, "d"),
    ],
)
def test_a_dataset_is_called_what_it_is_by_its_counts(tmp_path, counts, label):
    assert Counted(tmp_path, **counts).measured_dataset() == label


def test_a_limit_makes_part_of_what_has_no_published_count(tmp_path):
    for limit, read, label in ((5, None, "part of d"), (5, 6, "part of d"), (5, 5, "d"), (None, None, "d")):
        benchmark = Numbers(tmp_path, NumbersProtocol(limit=limit))
        benchmark.counts = {} if read is None else {"images read": read}
        assert benchmark.measured_dataset() == label


def test_a_result_names_the_files_that_were_read_and_what_was_changed(tmp_path):
    class WithFolder(Numbers):
        layout = (*Numbers.layout, SourceFile("texts", "the texts", "Nowhere.", annotations=True))

    for name, content in (("photos/a.jpg", b"photo"), ("texts/1.txt", b"one"), ("texts/._1.txt", b"of macOS")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "numbers_test.json").write_bytes(b"[1, 2]")
    result = WithFolder(tmp_path, NumbersProtocol(split="test", seed=3)).evaluate(FeatureExtractor(RandomEncoder()))
    sums = f"{hashlib.sha256(b'one').hexdigest()}  1.txt\n"
    assert result.data == {
        "numbers_test.json": {"sha256": hashlib.sha256(b"[1, 2]").hexdigest(), "bytes": 6},
        "texts": {"sha256": hashlib.sha256(sums.encode()).hexdigest(), "bytes": 3, "files": 1},
    }
    assert result.changed == {"seed": 3, "split": "test"} and result.protocol["name"] == "default"
    assert result.protocol_label == "default, seed=3, split=test"
    assert json.loads(result.to_json())["data"] == result.data and str(tmp_path) not in result.to_json()
    (tmp_path / "texts" / "1.txt").write_bytes(b"two")
    assert WithFolder(tmp_path, NumbersProtocol(split="test")).data_files()["texts"] != result.data["texts"]
