# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Runs of several benchmarks: data are checked before the model works, files are whole and equal for equal runs."""

import hashlib
import json
import os

import numpy as np
import pytest
from accelerate import PartialState
from distributed_for_tests import run_processes
from evaluation_for_tests import RandomEncoder
from layouts_all import write_layouts

from processing_pixclip.evaluation.coco_region_classification import CocoRegions
from processing_pixclip.evaluation.evaluation_run import (
    evaluate_benchmarks,
    load_benchmarks,
    make_benchmarks,
    read_results,
    run_benchmarks,
)
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.registry import BENCHMARKS


NAMES = ["coco-regions", "flickr30k", "caption-pairs"]
QUICK = {"bootstrap": 50, "limit": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("data"), NAMES)


class SilentEncoder(RandomEncoder):
    """Must not be asked."""

    def encode_texts(self, texts, kind):
        raise AssertionError("the model worked")

    encode_images = encode_regions = encode_texts


def measure(folders, out, encoder=None, names=NAMES, **options):
    encoder = RandomEncoder() if encoder is None else encoder
    options = {"settings": QUICK, "features": FeatureExtractor(encoder, progress=False), **options}
    return run_benchmarks(encoder, names, folders, out, **options)


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "new" / "folder"
    return out, measure(folders, out)


def test_a_run_writes_what_it_found(finished):
    out, results = finished
    assert [result.benchmark for result in results] == NAMES
    files = files_of(out)
    plots = {"coco-regions/confusion.png", "coco-regions/per_class.png", "flickr30k/retrieval.png"}
    plots |= {"caption-pairs/retrieval.png"}
    each = {f"{name}/{file}" for name in NAMES for file in ("results.json", "items.jsonl")}
    assert files.keys() == plots | each | {"results.json", "report.html", "run_info.json"}
    together = json.loads(files["results.json"].read_text())
    for result in results:
        assert together[result.benchmark] == json.loads(files[f"{result.benchmark}/results.json"].read_text())
        items = [json.loads(line) for line in files[f"{result.benchmark}/items.jsonl"].read_text().splitlines()]
        assert [item["key"] for item in items] == [item["key"] for item in result.items]
        assert all(isinstance(item["correct"], bool) for item in items)
    right = np.mean([item["correct"] for item in results[0].items])
    assert right == results[0].figures["top-1"].value
    info = json.loads(files["run_info.json"].read_text())
    assert info["processes"] == 1 and list(info["seconds"]) == NAMES and min(info["seconds"].values()) > 0


def test_results_read_back_from_either_file(finished):
    out, results = finished
    for path, expected in ((out / "results.json", results), (out / "flickr30k" / "results.json", results[1:2])):
        assert [result.to_dict() for result in read_results(path)] == [result.to_dict() for result in expected]
    for content in ("[1]", "{", '{"a": {"figures": {}}}'):
        (out.parent / "wrong.json").write_text(content)
        with pytest.raises(ValueError, match="wrong.json is no results file"):
            read_results(out.parent / "wrong.json")


def test_two_runs_write_equal_bytes_and_only_the_run_info_tells_them_apart(finished, folders, tmp_path):
    out, _ = finished
    measure(folders, tmp_path / "again")
    first, again = files_of(out), files_of(tmp_path / "again")
    assert first.keys() == again.keys()
    differing = {name for name in first if first[name].read_bytes() != again[name].read_bytes()}
    assert differing <= {"run_info.json"}
    for name in first.keys() - {"run_info.json"}:
        # A page with photos in itself may hold any letters by chance.
        if not name.endswith((".png", ".html")):
            assert str(folders["flickr30k"].parent) not in first[name].read_text()


def test_another_seed_or_model_gives_other_results(finished, folders, tmp_path):
    out, _ = finished
    before = (out / "caption-pairs" / "results.json").read_bytes()
    for place, options in enumerate([{"settings": {**QUICK, "seed": 5}}, {"encoder": RandomEncoder(1)}]):
        measure(folders, tmp_path / str(place), names=["caption-pairs"], **options)
        assert (tmp_path / str(place) / "caption-pairs" / "results.json").read_bytes() != before


def test_all_that_is_missing_is_named_before_the_model_works(folders, tmp_path):
    empty = tmp_path / "empty"
    with pytest.raises(FileNotFoundError) as error:
        measure(
            {**folders, "docci": empty, "urban1k": empty},
            tmp_path / "out",
            SilentEncoder(),
            ["flickr30k", "docci", "urban1k"],
        )
    assert str(error.value).count(f"below {empty}") == 2
    for name in ("docci", "urban1k"):
        assert f"{name} reads" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_photos_of_several_benchmarks_are_named_together(tmp_path):
    folders = write_layouts(tmp_path, ["coco-regions", "flickr30k"])
    photos = [next(folders["coco-regions"].rglob("*.jpg")), *(folders["flickr30k"] / "flickr30k-images").iterdir()]
    for path in photos:
        path.unlink()
    with pytest.raises(FileNotFoundError) as error:
        load_benchmarks(make_benchmarks(list(folders), folders))
    assert photos[0].name in str(error.value) and "flickr30k-images" in str(error.value)


def test_a_view_that_the_model_lacks_is_told_before_it_works(folders, tmp_path):
    class WholeImages(SilentEncoder):
        views = ("full",)

    settings = {**QUICK, "views": "full,mask-pooled"}
    with pytest.raises(ValueError, match="^coco-regions: .*'mask-pooled'.*'full'"):
        measure(folders, tmp_path / "out", WholeImages(), ["caption-pairs", "coco-regions"], settings=settings)


def test_what_finished_before_an_error_is_kept(folders, tmp_path):
    class BlindEncoder(RandomEncoder):
        def encode_images(self, images):
            raise ValueError("no images today")

    with pytest.raises(ValueError, match="no images today"):
        measure(folders, tmp_path, BlindEncoder(), ["caption-pairs", "flickr30k"])
    assert read_results(tmp_path / "caption-pairs" / "results.json")[0].benchmark == "caption-pairs"
    assert not (tmp_path / "results.json").exists() and not list(tmp_path.rglob(".writing-*"))


def test_every_benchmark_names_its_data_and_claims_no_more_than_it_read(tmp_path):
    folders = write_layouts(tmp_path, BENCHMARKS)
    benchmarks = make_benchmarks(list(BENCHMARKS), folders)
    load_benchmarks(benchmarks)
    for benchmark in benchmarks:
        assert (benchmark.measured_dataset() == f"part of {benchmark.dataset}") == bool(benchmark.published), (
            benchmark.name
        )
        found = benchmark.data_files()
        assert found, benchmark.name
        for name, facts in found.items():
            path = folders[benchmark.name] / name
            assert path.exists() and not any(file.suffix == ".jpg" for file in path.rglob("*"))
            if path.is_file():
                assert facts["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_the_protocol_leaves_out_of_an_image_is_there_and_a_limit_is_not(folders, monkeypatch):
    file = folders["coco-regions"] / "annotations" / "instances_val2017.json"
    count = len(json.loads(file.read_text())["annotations"])
    monkeypatch.setattr(CocoRegions, "published", {"COCO val2017": {"regions": count}})
    for settings in ({}, {"crowd": "include"}, {"min_area": 2000}, {"regions": "boxes"}, {"limit": 3}):
        (benchmark,) = made = make_benchmarks(["coco-regions"], folders, settings=settings)
        load_benchmarks(made)
        assert benchmark.measured_dataset() == ("part of COCO val2017" if "limit" in settings else "COCO val2017")


def test_settings_go_to_the_benchmarks_that_have_them():
    made = make_benchmarks(
        ["coco-regions", "flickr30k", "coco-regions"],
        "data",
        {"coco-regions": "official-fgclip"},
        {"limit": "3", "crowd": "exclude", "flickr30k.limit": "7"},
    )
    coco, flickr = (benchmark.protocol for benchmark in made)
    assert (coco.limit, coco.crowd, coco.views, flickr.limit) == (3, "exclude", ("roi",), 7)
    assert make_benchmarks(["coco-regions"], "data", "official-pixclip")[0].protocol.name == "official-pixclip"
    assert isinstance(made[0], CocoRegions) and str(made[0].data_dir) == "data"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": []}, "there is no benchmark to run"),
        ({"names": ["flickr"]}, "'flickr' is no benchmark; did you mean flickr30k"),
        ({"names": ["COCO-regions"]}, "'COCO-regions' is no benchmark; did you mean coco-regions"),
        ({"settings": {"views": "roi,full,roi"}}, "coco-regions: views names roi more than once"),
        ({"protocol": "official"}, "coco-regions has no preset 'official'"),
        ({"protocol": {"flickr30k": "nothing"}}, "flickr30k has no preset 'nothing'"),
        (
            {"settings": {"view": "roi"}},
            "'view' is no field of the protocol of coco-regions or flickr30k; did you mean views",
        ),
        ({"settings": {"flickr30k.views": "roi"}}, "'views' is no field of the protocol of flickr30k"),
        (
            {"settings": {"docci.limit": "1"}},
            "'docci.limit' names 'docci', which does not run; accepted are coco-regions, ",
        ),
        ({"settings": {"limit": "few"}}, "coco-regions: limit is 'few'; accepted is a whole number, or none"),
        ({"data_dir": {"coco-regions": "x"}}, "data_dir names no folder for flickr30k; it names coco-regions"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    options = {"names": ["coco-regions", "flickr30k"], "data_dir": "data", **options}
    with pytest.raises(ValueError, match=f"^{message}" if "names '" not in message else message):
        make_benchmarks(**options)


def measure_together(folders, out):
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    state = PartialState(cpu=True)
    features = FeatureExtractor(RandomEncoder(), accelerator=state, progress=False)
    benchmarks = make_benchmarks(NAMES, folders, settings=QUICK)
    results = evaluate_benchmarks(benchmarks, features, out)
    return [result.to_json() for result in results], sorted(files_of(out))


@pytest.mark.slow
def test_two_processes_find_the_same_and_one_writes(finished, folders, tmp_path):
    out, results = finished
    (first, seen), (second, also_seen) = run_processes(measure_together, folders, tmp_path / "two", processes=2)
    assert first == second == [result.to_json() for result in results]
    assert seen == also_seen == sorted(files_of(out))
    for name in set(seen) - {"run_info.json"}:
        assert (tmp_path / "two" / name).read_bytes() == (out / name).read_bytes(), name
    assert json.loads((tmp_path / "two" / "run_info.json").read_text())["processes"] == 2


def test_an_interrupted_run_leaves_nothing_of_an_earlier_one(folders, tmp_path, caplog):
    measure(folders, tmp_path, names=["coco-regions", "caption-pairs"])
    (tmp_path / "notes.txt").write_text("mine")

    class Interrupted(RandomEncoder):
        def encode_texts(self, texts, kind):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(folders, tmp_path, Interrupted(), ["coco-regions"])
    assert files_of(tmp_path).keys() == {
        *("notes.txt", "caption-pairs/items.jsonl", "caption-pairs/results.json", "caption-pairs/retrieval.png")
    }
    (told,) = [record.getMessage() for record in caplog.records if "earlier run" in record.getMessage()]
    assert "holds caption-pairs of an earlier run" in told


def test_written_numbers_have_six_digits(finished):
    out, results = finished
    for name, figure in json.loads((out / "coco-regions" / "results.json").read_text())["figures"].items():
        exact = results[0].figures[name]
        for key in ("value", "low", "high", "chance"):
            assert figure[key] == round(getattr(exact, key), 6)
    assert any(figure.low != round(figure.low, 6) for figure in results[0].figures.values())
