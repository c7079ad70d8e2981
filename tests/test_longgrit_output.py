# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Shards, summaries and card of the LongGRIT pipeline: what is written is what `datasets` and our training read."""

import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import traceback

import pytest
import torch
from datasets import DatasetInfo, load_dataset, load_dataset_builder
from huggingface_hub import DatasetCard
from longgrit_for_tests import ScriptedEngine, make_photos, rejected_of, rows_of
from longgrit_for_tests import settings_for as run_settings
from longgrit_results import COCO_REGIONS, PhotoStore, results_of_photos, settings_for
from tiny_pretraining import losses, make_workspace, pretrain

from processing_pixclip import RegionJsonlDataset, RegionStream, StreamedRecords, encode_rle, write_region_jsonl
from processing_pixclip.longgrit.config import read_settings
from processing_pixclip.longgrit.dataset_card import write_card
from processing_pixclip.longgrit.dataset_writer import dataset_features, finish_dataset, record_of_result, write_shard
from processing_pixclip.longgrit.engines import EngineUnavailable, RequestFailed
from processing_pixclip.longgrit.push import files_to_push
from processing_pixclip.longgrit.records import RegionResult
from processing_pixclip.longgrit.run_summary import merge_summaries, summarise_shard
from processing_pixclip.longgrit.runner import run_pipeline
from processing_pixclip.longgrit.sources import SourceError
from processing_pixclip.region_records import check_record


PHOTOS = 9
ERRORS = [SourceError("train.jsonl, line 99", "missing_image", "there is no x.jpg", "99")]


def write(folder, results=None, errors=(), **output):
    """Three shards of results, and all that ends a run; returns the summary."""
    results = results_of_photos(PHOTOS) if results is None else results
    settings = settings_for(folder, **output)
    summaries = []
    for number in range(3):
        part = results[number::3]
        found = errors if number == 0 else ()
        write_shard(number, part, settings, PhotoStore(), found)
        summaries.append(json.loads(json.dumps(summarise_shard(part, found))))
    summary = merge_summaries(summaries)
    write_card(folder, summary, settings)
    return summary


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("longgrit")
    return folder, write(folder, errors=ERRORS, formats=["parquet", "webdataset"])


def expected_records():
    results = results_of_photos(PHOTOS)
    return [record_of_result(result) for number in range(3) for result in results[number::3]]


def test_datasets_loads_the_folder_as_it_is(written, tmp_path):
    folder, _ = written
    rows = load_dataset(str(folder), split="train", cache_dir=str(tmp_path))
    assert rows.features == dataset_features()
    records = expected_records()
    for row, record in zip(rows, records, strict=True):
        assert row["image"].size == (record["width"], record["height"])
        assert {key: row[key] for key in row if key != "image"} == {key: record[key] for key in row if key != "image"}
    assert any(region["mask"] is None for record in records for region in record["regions"])


def test_image_files_are_copied_as_they_are(written, tmp_path):
    rows = load_dataset(str(written[0]), split="train", cache_dir=str(tmp_path)).with_format(None)
    from datasets import Image

    row = rows.cast_column("image", Image(decode=False))[0]
    path = next(iter(results_of_photos(1))).image.location["path"]
    assert row["image"]["bytes"] == (COCO_REGIONS / path).read_bytes()


@pytest.mark.parametrize("pattern", ["data/*.parquet", "webdataset/*.tar"])
def test_the_stream_reads_every_shard(written, pattern):
    records = expected_records()
    for sample, record in zip(RegionStream(str(written[0] / pattern), shuffle_buffer=0), records, strict=True):
        regions = record["regions"]
        assert sample["image_id"] == record["image_id"]
        assert sample["captions"] == record["captions"] and sample["long_captions"] == record["long_captions"]
        assert sample["texts"] == [region["text"] for region in regions]
        assert sample["object_texts"] == [region["object_text"] for region in regions]
        assert sample["hard_negatives"] == [region["hard_negatives"] for region in regions]
        # The box of a region with a mask is not what gives the region.
        assert sample["boxes"] == [region["box"] if region["mask"] is None else None for region in regions]
        masks = [mask for mask, region in zip(sample["masks"], regions) if region["mask"] is not None]
        assert masks == [region["mask"] for region in regions if region["mask"] is not None]


def test_streamed_rows_and_json_lines_are_read_too(written, tmp_path):
    rows = load_dataset(str(written[0]), split="train", streaming=True, cache_dir=str(tmp_path))
    streamed = list(StreamedRecords(rows))
    from processing_pixclip.longgrit.dataset_writer import without_nulls

    write_region_jsonl(map(without_nulls, expected_records()), tmp_path / "records.jsonl")
    lines = RegionJsonlDataset(tmp_path / "records.jsonl", COCO_REGIONS)
    for sample, line in zip(streamed, lines, strict=True):
        assert sample["texts"] == line["texts"] and sample["boxes"] == line["boxes"]


def test_rejected_regions_are_kept_with_their_reason(written):
    folder, summary = written
    lines = [json.loads(line) for path in sorted((folder / "rejected").iterdir()) for line in path.open()]
    results = results_of_photos(PHOTOS)
    expected = {}
    for result in results:
        expected |= {region.region_id: "source" for region in result.image.regions if region.dropped}
        expected |= {region.region_id: region.stage for region in result.regions if region.reason}
    assert {line["region_id"]: line["stage"] for line in lines if line["region_id"]} == expected
    (error,) = [line for line in lines if line["region_id"] is None]
    assert error["image_id"] == "99" and "line 99" in error["detail"] and error["reason"] == "missing_image"
    verified = next(line for line in lines if line["stage"] == "verify")
    assert verified["reason"] == "inconsistent" and "colour" in verified["detail"] and verified["object_text"]
    assert {line["detail"] for line in lines if line["reason"] == "too_small"} == {
        "It covers too little of the image."
    }


def test_every_region_is_counted_once(written):
    _, summary = written
    results = results_of_photos(PHOTOS)
    regions = sum(len(result.image.regions) for result in results)
    rejected = sum(sum(reasons.values()) for reasons in summary["rejected"].values())
    assert summary["regions"] == regions == summary["accepted"] + rejected
    assert summary["images"] == PHOTOS + 1 and summary["source_errors"] == {"missing_image": 1}
    assert sum(summary["words"]["histogram"].values()) == sum(summary["mask_sources"].values()) == summary["accepted"]
    stages = summary["stages"]
    assert stages["source"]["entered"] == regions
    assert stages["source"]["left"] == stages["object_caption"]["entered"] == stages["verify"]["entered"]
    assert stages["verify"]["left"] == stages["fuse"]["left"] == summary["accepted"]
    tokens = summary["models"]["verify"]["vendor/model-7b"]
    assert tokens["prompt_tokens"] == 700 * stages["verify"]["entered"] == 700 * tokens["answers"]


def test_summaries_add_up_in_any_order():
    results = results_of_photos(PHOTOS)
    whole = summarise_shard(results, ERRORS, seed=3)
    parts = [summarise_shard(results[start : start + 2], (), 3) for start in range(0, PHOTOS, 2)]
    parts.append(summarise_shard([], ERRORS, 3))
    assert merge_summaries(parts) == merge_summaries(parts[::-1]) == whole
    # Any grouping, as Ray's actors or a later merge make it.
    assert merge_summaries([merge_summaries(parts[:3]), merge_summaries(parts[3:])]) == whole
    other = summarise_shard(results, ERRORS, seed=4)
    assert [sample["region_id"] for sample in other["samples"]] != [sample["region_id"] for sample in whole["samples"]]


@pytest.mark.parametrize("change", ["unknown", "twice", "missing"])
def test_a_region_that_does_not_end_exactly_once_is_an_error(change, tmp_path):
    (result,) = results_of_photos(1)
    region = RegionResult("nobody#1", text="Nothing.") if change == "unknown" else result.regions[0]
    if change == "missing":
        result.regions.remove(region)
    else:
        result.regions.append(region)
    with pytest.raises(ValueError, match=region.region_id):
        summarise_shard([result])
    with pytest.raises(ValueError, match=region.region_id):
        write_shard(0, [result], settings_for(tmp_path), PhotoStore())
    assert not list(tmp_path.iterdir())


def test_a_shard_without_accepted_regions_leaves_no_file_behind(tmp_path):
    results = results_of_photos(3)
    write(tmp_path, results, formats=["parquet", "webdataset"])
    for result in results:
        for region in result.regions:
            region.reason, region.stage = "inconsistent", "verify"
    write(tmp_path, results, formats=["parquet", "webdataset"])
    assert not list(tmp_path.glob("data/*")) and not list(tmp_path.glob("webdataset/*"))
    assert len(list(tmp_path.glob("rejected/*.jsonl"))) == 3
    assert "configs" not in DatasetCard.load(tmp_path / "README.md").data.to_dict()


def test_a_format_that_is_no_longer_asked_for_is_removed(tmp_path):
    write(tmp_path, formats=["webdataset"])
    write(tmp_path, formats=["parquet"])
    assert not list(tmp_path.glob("webdataset/*"))


def test_paths_in_place_of_bytes(tmp_path):
    write(tmp_path, images="path")
    stream = RegionStream(str(tmp_path / "data/*.parquet"), shuffle_buffer=0, image_root=COCO_REGIONS)
    assert len(list(stream)) == PHOTOS
    assert load_dataset_builder(str(tmp_path), cache_dir=str(tmp_path / "c")).info.features == dataset_features("path")
    result = results_of_photos(1)[0]
    image = dataclasses.replace(result.image, location={"tar": "0.tar", "offset": 512, "size": 9})
    with pytest.raises(ValueError, match="has no path; set output.images to 'bytes'"):
        write_shard(0, [dataclasses.replace(result, image=image)], settings_for(tmp_path, images="path"), PhotoStore())


def test_the_same_results_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, formats=["parquet", "webdataset"])
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 12
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_an_image_that_cannot_be_read_leaves_the_old_shard(tmp_path):
    class Broken(PhotoStore):
        def read(self, location):
            raise OSError("the disk is gone")

    settings = settings_for(tmp_path)
    (path, _) = write_shard(0, results_of_photos(2), settings, PhotoStore())
    before = path.read_bytes()
    with pytest.raises(OSError, match="the disk is gone"):
        write_shard(0, results_of_photos(4), settings, Broken())
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


class KillingStore(PhotoStore):
    """Kills the process with its sixth photo: in the midst of the tar of four, when the parquet file is written."""

    reads = 0

    def read(self, location):
        self.reads += 1
        if self.reads == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(location)


def test_a_killed_writer_leaves_no_torn_shard(tmp_path):
    # Forked: a new interpreter takes longer to import the package than to write the shard.
    arguments = (0, results_of_photos(4), settings_for(tmp_path, formats=["parquet", "webdataset"]), KillingStore())
    process = multiprocessing.get_context("fork").Process(target=write_shard, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert finish_dataset(tmp_path) == {"parquet": {"00000.parquet": 4}}


def test_no_folder_of_this_machine_is_told(tmp_path):
    result = results_of_photos(1)[0]
    for region in result.regions:
        region.reason, region.stage, region.detail = "unreadable_image", "crop", f"{COCO_REGIONS}/images/1.jpg is cut."
    write_shard(0, [result], settings_for(tmp_path), PhotoStore(), [SourceError(f"{tmp_path}/a.json", "x", "y")])
    text = (tmp_path / "rejected/00000.jsonl").read_text()
    assert "images/1.jpg is cut." in text
    assert str(COCO_REGIONS) not in text and str(tmp_path) not in text


def test_nothing_published_tells_of_folders_models_or_paths_of_servers(tmp_path):
    real = tmp_path / "real"
    make_photos(real / "photos", images=3, regions=2)
    (tmp_path / "link").symlink_to(real)
    (real / "photos/00002.jpg").write_bytes(b"no image")
    model, url = "/data/of-ours/vlm-7b", "http://127.0.0.1:1/k-9a8b7c/v1"

    class Server(ScriptedEngine):
        async def ask(self, request):
            answer = await super().ask(request)
            return dataclasses.replace(answer, server=url)

    def fail(request):
        if request.stage == "verify" and request.work.region.region_id == "00000#0":
            raise RequestFailed(f"{url}: {model} is not in {real}/photos, nor in '{tmp_path}/link/photos'")

    settings = run_settings(
        tmp_path / "link/photos/regions.jsonl",
        tmp_path / "out",
        model=model,
        servers={"here": {"base_url": url}},
        filters={"hash_distance": 0},
    )
    run_pipeline(settings, engines={"openai": Server(fail)})
    out = tmp_path / "out"
    rejected = rejected_of(out)
    files = [(out / name).read_text() for name in ("README.md", "report.html", "report.json")]
    published = "\n".join([json.dumps(rows_of(out), default=repr), json.dumps(rejected), *files])
    for secret in ("of-ours", "k-9a8b7c", str(tmp_path), str(real)):
        assert secret not in published, secret
    assert published.count('"model": "vlm-7b"') > 4 and published.count('"server": "http://127.0.0.1:1"') > 4
    (failed,) = [line for line in rejected if line["reason"] == "request_failed"]
    assert failed["detail"].startswith("http://127.0.0.1:1: vlm-7b is not in ")
    causes = {line["detail"] for line in rejected if line["reason"] == "unreadable_image"}
    assert len(causes) == 1 and "UnidentifiedImageError" in causes.pop() and "0x" not in published


def test_another_licence_or_spelling_of_a_path_is_no_other_source(tmp_path, monkeypatch):
    photos = make_photos(tmp_path / "photos", images=2, regions=1)
    run_pipeline(run_settings(photos, tmp_path / "out"), engines={"openai": ScriptedEngine()})
    assert {row["licence"] for row in rows_of(tmp_path / "out").values()} == {None}
    monkeypatch.chdir(tmp_path)
    source = {"format": "folder", "path": "photos/../photos/regions.jsonl", "licence": "CC0-1.0"}
    engine = ScriptedEngine()
    summary = run_pipeline(run_settings(photos, "out", source=source), engines={"openai": engine})
    assert {row["licence"] for row in rows_of("out").values()} == {"CC0-1.0"} == set(summary["licences"])
    assert not engine.asked
    make_photos(tmp_path / "others", images=2, regions=1)
    with pytest.raises(ValueError, match="source.image_root was None and is 'others'"):
        run_pipeline(
            run_settings(photos, "out", source={**source, "image_root": "others"}), engines={"openai": engine}
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output.formats": []}, "output.formats: .* at least 1 item"),
        ({"texts.min_words": 20, "texts.max_words": 10}, "min_words is 20 and max_words 10"),
        ({"filters.min_area": 0.5, "filters.max_area": 0.5}, "min_area is 0.5 and max_area 0.5"),
        ({"stages.hard_negatives.min_count": 11}, "stages.hard_negatives: .*min_count is 11 and count 10"),
        ({"texts.language": "english"}, "texts.language: .*'english'; accepted are null and .*, en,"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_run(changes, message):
    good = {
        "output_dir": "out",
        "engine": "rules",
        "source.format": "folder",
        "source.path": "a",
        "texts.language": "de",
    }
    assert read_settings(changes=good).texts.language == "de"
    with pytest.raises(ValueError, match=message):
        read_settings(changes={**good, **changes})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("key: 'sk-1234567\nb: [", "is not YAML: see line"),
        ("sk-1234567", "holds a str; accepted is a mapping"),
        ("- sk-1234567", "holds a list; accepted is a mapping"),
        ("servers: sk-1234567", "'servers' is a str"),
    ],
)
def test_no_message_shows_what_a_file_of_settings_holds(tmp_path, content, message):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_settings(tmp_path / "config.yaml", {"servers.here.base_url": "http://localhost/v1"})
    shown = "".join(traceback.format_exception(caught.value))
    assert "sk-" not in shown


def test_text_without_a_unicode_form_does_not_stop_a_run(tmp_path):
    result = results_of_photos(1)[0]
    result.regions[0].context_text = "a \ud83d dog"
    result.regions[1].reason, result.regions[1].stage, result.regions[1].detail = "wrong", "fuse", "\udc00"
    write_shard(0, [result], settings_for(tmp_path), PhotoStore())
    finish_dataset(tmp_path)
    assert len(list(RegionStream(str(tmp_path / "data/*.parquet")))) == 1


def region_with(mask, box):
    return {"mask": mask, "box": box, "text": "A part of the picture."}


@pytest.mark.parametrize("seed", range(30))
def test_a_box_beside_a_mask_is_the_one_around_it(seed):
    generator = torch.Generator().manual_seed(seed)
    height, width = torch.randint(1, 9, (2,), generator=generator).tolist()
    mask = torch.rand(height, width, generator=generator) < 0.3
    mask[torch.randint(height, (), generator=generator), torch.randint(width, (), generator=generator)] = True
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    box = [float(side) for side in box]
    record = {"image": "1.png", "image_id": "1", "width": width, "height": height}
    rle = encode_rle(mask.numpy())
    check_record({**record, "regions": [region_with(rle, box)]}, "record")
    for place in range(4):
        for by in (-2, 2):
            moved = [side + by * (index == place) for index, side in enumerate(box)]
            inside = 0 <= moved[0] < moved[2] <= width and 0 <= moved[1] < moved[3] <= height
            with pytest.raises(ValueError, match="both a 'mask' and a 'box'" if inside else "record"):
                check_record({**record, "regions": [region_with(rle, moved)]}, "record")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licence": 3}, "key 'licence' is 3"),
        ({"provenance": [{"model": 3}]}, r"provenance\[0\]: key 'model' is 3"),
        ({"provenance": [{"cost": 3}]}, r"provenance\[0\]: key 'cost' is unknown"),
        ({"regions": [{"region_id": 1}]}, "key 'region_id' is 1"),
        ({"regions": [{"context_text": 1}]}, "key 'context_text' is 1"),
    ],
)
def test_the_new_keys_are_checked(change, message):
    record = {"image": "1.png", "image_id": "1", "width": 3, "height": 2, **change}
    given = change.get("regions", [{}])
    record["regions"] = [{"box": [0, 0, 2, 2], "text": "A part.", **region} for region in given]
    with pytest.raises(ValueError, match=message):
        check_record(record, "record")


def test_dataset_info_of_the_card_is_that_of_the_data(written, tmp_path):
    folder, _ = written
    card = DatasetCard.load(folder / "README.md")
    told = DatasetInfo._from_yaml_dict(card.data.dataset_info)
    built = load_dataset_builder(str(folder), cache_dir=str(tmp_path)).info
    assert told.features == built.features == dataset_features()
    assert told.splits["train"].num_examples == PHOTOS
    assert told.download_size == sum(path.stat().st_size for path in folder.glob("data/*.parquet"))
    assert card.data.configs == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}
    ]


def test_a_dataset_of_tars_alone_loads(tmp_path):
    write(tmp_path, formats=["webdataset"])
    rows = load_dataset(str(tmp_path), split="train", streaming=True, cache_dir=str(tmp_path / "cache"))
    assert sum(1 for _ in rows) == PHOTOS


@pytest.mark.parametrize("formats", [["parquet"], pytest.param(["webdataset"], marks=pytest.mark.slow)])
def test_the_script_trains_on_a_dataset_folder(tmp_path, formats):
    make_workspace(tmp_path, photos=(("train", 1), ("heldout", 2)), num_train_epochs=1, whole_image_share=0.0)
    write(tmp_path / "longgrit", formats=formats)
    options = ["--dataset", tmp_path / "longgrit", "--eval_strategy", "no", "--max_eval_regions", "8"]
    done = pretrain(tmp_path / "config.json", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    # Nine photos, three a step: not the one photo of the configuration's train_file.
    assert len(losses(tmp_path / "run")) == 3


def test_the_script_says_what_is_no_dataset(tmp_path, capsys):
    sys.path.insert(0, str(COCO_REGIONS.parents[1]))
    from run_pretraining import main

    (tmp_path / "empty").mkdir()
    cases = {
        str(tmp_path / "empty"): "has none of data/*.parquet and webdataset/*.tar",
        str(tmp_path / "missing"): "is neither a folder",
    }
    for dataset, message in cases.items():
        with pytest.raises(SystemExit):
            main(["--dataset", dataset, "--output_dir", str(tmp_path / "run")])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--dataset", str(tmp_path), "--train_file", "a.jsonl", "--output_dir", str(tmp_path / "run")])
    assert "accepted is one of them" in capsys.readouterr().err
    write(tmp_path / "longgrit", results_of_photos(1))
    with pytest.raises(SystemExit):
        main(["--dataset", str(tmp_path / "longgrit/data"), "--output_dir", str(tmp_path / "run")])
    assert f"accepted is the folder around it, {str(tmp_path / 'longgrit')!r}" in capsys.readouterr().err
    chosen = ["--dataset", str(tmp_path / "longgrit"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit):
        main([*chosen, "--data_format", "jsonl"])
    assert "--data_format is 'jsonl', but --dataset" in capsys.readouterr().err
    # A format that the configuration has for its own train_file says nothing of this one.
    (tmp_path / "config.json").write_text('{"train_file": "a.jsonl", "data_format": "jsonl"}')
    from pretraining_arguments import parse_arguments

    _, data, _ = parse_arguments([str(tmp_path / "config.json"), *chosen], "")
    assert (data.train_file, data.data_format) == (f"{tmp_path}/longgrit/data/*.parquet", "auto")
    (tmp_path / "longgrit/data/sizes.json").unlink()
    with pytest.raises(SystemExit):
        main(chosen)
    assert "has not ended" in capsys.readouterr().err


def test_a_dataset_that_is_half_made_anew_is_not_taken_for_a_finished_one(tmp_path):
    sys.path.insert(0, str(COCO_REGIONS.parents[1]))
    from pretraining_data import shards_of_dataset

    photos, folder = make_photos(tmp_path / "photos", images=4, regions=1), tmp_path / "out"
    options = {"open_shards": 1, "images_in_flight": 1, "output": {"formats": ["parquet", "webdataset"]}}
    run_pipeline(run_settings(photos, folder, **options), engines={"openai": ScriptedEngine()})
    files = files_to_push(folder)
    other = run_settings(photos, folder, stages={"fuse": {"parameters": {"temperature": 0.5}}}, **options)
    # Only the fusion is asked anew: once for each of the two regions of the first shard.
    engine = ScriptedEngine()

    def stop(request):
        if request.stage == "fuse" and engine.stages["fuse"] == 2:
            raise EngineUnavailable("no server is left")

    engine.script = stop
    before = {path.name: path.read_bytes() for path in (folder / "data").glob("*.parquet")}
    with pytest.raises(EngineUnavailable):
        run_pipeline(other, engines={"openai": engine})
    now = {path.name: path.read_bytes() for path in (folder / "data").glob("*.parquet")}
    assert [now[name] == before[name] for name in ("00000.parquet", "00001.parquet")] == [False, True]
    with pytest.raises(ValueError, match="The run has not ended: start it again, then push"):
        files_to_push(folder)
    with pytest.raises(ValueError, match="may be of two runs. Start it again"):
        shards_of_dataset(str(folder))
    run_pipeline(other, engines={"openai": ScriptedEngine()})
    assert files_to_push(folder) == files and shards_of_dataset(str(folder)).endswith("data/*.parquet")
