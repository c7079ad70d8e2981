# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""`examples/build_longgrit.py`, from its arguments to the dataset: by rules on real photos, and against a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from faulty_openai_server import running_server
from longgrit_for_tests import assert_all_ended_once, rejected_of, rows_of
from tiny_pretraining import make_workspace, pretrain

from processing_pixclip import RegionJsonlDataset
from processing_pixclip.longgrit import dry_run, read_settings


ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples/data/coco_regions"
CONFIG = ROOT / "examples/configs/longgrit_coco_regions.yaml"

sys.path.insert(0, str(ROOT / "examples"))
import build_longgrit  # noqa: E402


@pytest.fixture(scope="module")
def few_photos(tmp_path_factory):
    """The first photos of the real sample, as a file of records beside a link to the images."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").symlink_to(PHOTOS / "images")
    lines = (PHOTOS / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (folder / "regions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "regions.jsonl"


def build(few_photos, output, *arguments):
    return build_longgrit.main(
        [str(CONFIG), "--set", f"source.path={few_photos}", "--output_dir", str(output), *arguments]
    )


def texts_of(output, key="text"):
    return {region["region_id"]: region[key] for row in rows_of(output).values() for region in row["regions"]}


def count_answers(output):
    return sum(len(path.read_bytes().splitlines()) for path in (output / "run/answers").glob("*.jsonl"))


def test_rules_describe_real_photos_and_a_second_call_changes_nothing(few_photos, tmp_path, capsys):
    assert build(few_photos, tmp_path / "out") == 0
    ended = assert_all_ended_once(tmp_path / "out")
    told = capsys.readouterr().out
    accepted = sum(end[0] == "accepted" for end in ended.values())
    assert f"{accepted} of {len(ended)} regions accepted" in told and accepted >= 0.8 * len(ended)
    for name in ("report.html", "README.md", "data/sizes.json", "run/settings.yaml"):
        assert (tmp_path / "out" / name).is_file()
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.parquet")}
    journals = {path: path.read_bytes() for path in (tmp_path / "out/run/answers").iterdir()}
    assert build(few_photos, tmp_path / "out") == 0
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.read_bytes() for path in journals} == journals


def test_a_dry_run_shows_each_stages_prompt_and_writes_nothing(few_photos, tmp_path, capsys):
    prices = ["price_per_million={input: 1, output: 2}"]
    assert build(few_photos, tmp_path / "out", "--dry_run", "2", "--set", *prices) == 0
    told = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    for stage in ("object_caption", "verify", "context_caption", "fuse", "hard_negatives"):
        assert len(re.findall(rf"=== \S+, {stage}, model", told)) == 2
    assert "pictures: masked_crop" in told and "US dollars" in told
    records = RegionJsonlDataset(few_photos).records
    total = re.search(r"4 images with about (\d+) regions", told)
    assert int(total[1]) <= sum(len(record["regions"]) for record in records)


def test_a_dry_run_takes_other_languages_prompts_and_limits(few_photos, tmp_path, capsys):
    prompt = (ROOT / "processing/longgrit/prompts/object_caption.jinja").read_text(encoding="utf-8")
    custom = tmp_path / "object_caption.jinja"
    custom.write_text(prompt.replace("output:\n", "output:\n  colour: string\n", 1), encoding="utf-8")
    changes = ["texts.language=de", "texts.min_words=200", f"stages.object_caption.prompt={custom}"]
    assert build(few_photos, tmp_path / "out", "--dry_run", "2", "--limit", "5", "--set", *changes) == 0
    told = capsys.readouterr().out
    assert "ISO 639-1 code de" in told and "refused" not in told
    for stage in ("verify", "context_caption", "fuse", "hard_negatives"):
        assert len(re.findall(rf"=== \S+, {stage}, model", told)) == 2
    assert re.search(r"The run has [12] images with about 5 regions", told)


def test_the_estimate_is_that_of_the_real_requests(few_photos):
    settings = read_settings(CONFIG, {"source.path": str(few_photos)})
    regions = sum(len(record["regions"]) for record in RegionJsonlDataset(few_photos).records)
    found = dry_run(settings, samples=regions)
    assert (found.images, found.samples) == (4, found.regions)
    for key in ("read", "written"):
        assert found.tokens_in_all(key) == sum(counts[key] for counts in found.tokens.values())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--limit", "0"], "--limit is 0"),
        (["--private"], "--private is of"),
        (["--ray_gpus", "1"], "--ray_gpus is 1"),
        (["--ray_workers", "2"], "together with --ray"),
        (["--dry_run", "--repeat", "fuse"], "leave out --repeat"),
        (["--push_to_hub", "not/a/name"], "--push_to_hub: "),
    ],
)
def test_options_that_say_nothing_together_are_refused(few_photos, tmp_path, capsys, arguments, told):
    with pytest.raises(SystemExit):
        build(few_photos, tmp_path / "out", *arguments)
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_repeat_of_what_does_not_run_is_refused(few_photos, tmp_path, capsys):
    assert build(few_photos, tmp_path / "out", "--skip", "fuse", "--repeat", "fuse") == 1
    assert "--repeat names fuse, which does not run" in capsys.readouterr().err


def test_without_the_extra_it_is_named():
    code = "import sys; sys.modules['openai'] = None; import processing_pixclip.longgrit"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and "pixclip[longgrit]" in run.stderr.splitlines()[-1]


def test_a_skipped_stage_leaves_nothing_and_can_be_run_later(few_photos, tmp_path):
    out = tmp_path / "out"
    assert build(few_photos, out, "--skip", "hard_negatives", "verify") == 0
    assert not any(texts_of(out, "hard_negatives").values())
    before = texts_of(out)
    asked = count_answers(out)
    assert build(few_photos, out, "--skip", "verify") == 0
    assert texts_of(out) == before and all(texts_of(out, "hard_negatives").values())
    new = count_answers(out)
    assert new - asked == len(before), "only the stage that was missing is asked"


def test_a_repeated_stage_is_asked_again_alone(few_photos, tmp_path):
    out = tmp_path / "out"
    assert build(few_photos, out) == 0
    before = count_answers(out)
    texts = texts_of(out)
    assert build(few_photos, out, "--repeat", "hard_negatives") == 0
    assert count_answers(out) - before == len(texts)
    assert texts_of(out) == texts


def test_a_limited_run_goes_on(few_photos, tmp_path):
    out = tmp_path / "out"
    one_image = ["--set", "output.images_per_shard=1"]
    assert build(few_photos, out, "--limit", "1", *one_image) == 0
    first = texts_of(out)
    assert len(rows_of(out)) == 1
    assert build(few_photos, out, *one_image) == 0
    assert len(rows_of(out)) == 4 and first.items() <= texts_of(out).items()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "sources.path=x"], "sources: there is no such setting"),
        (["--set", "filters.min_area=2"], "filters.min_area: Input should be less than 1"),
        (["--set", "engine=openai"], "`servers` is empty"),
        (["--set", "nonsense"], "no NAME=VALUE"),
        (["--set", "source.path=absent.jsonl"], "absent.jsonl"),
        (["--set", "stages.fuse.prompt=absent.jinja"], "absent.jinja"),
        (["--set", "output_dir.deeper=x"], "output_dir: 'output_dir' is"),
        (["--dry_run", "0"], "samples is 0"),
    ],
)
def test_what_is_wrong_is_named(few_photos, tmp_path, capsys, arguments, told):
    code = build(few_photos, tmp_path / "out", *arguments)
    if "output_dir.deeper=x" in arguments:
        told = "output_dir"
    assert code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and "Traceback" not in error


def test_a_missing_file_of_settings_is_named(capsys):
    assert build_longgrit.main(["absent.yaml"]) == 1
    assert "absent.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        build_longgrit.main([])
    assert "give a file of settings" in capsys.readouterr().err


def grit_of_photos(folder):
    """The photos as GRIT: a parquet file of boxes that are parts of the image, and image files by key."""
    rows = []
    for number, record in enumerate(RegionJsonlDataset(PHOTOS / "heldout.jsonl").records[:3]):
        caption = "A photo of a thing and of another thing."
        boxes = [[11, 16, 0.1, 0.2, 0.5, 0.7, 0.9], [24, 39, 0.4, 0.3, 0.95, 0.9, 0.8]]
        rows.append({"key": f"{number:09d}", "id": number, "caption": caption, "ref_exps": boxes, "url": "x"})
        rows[-1] |= {"width": record["width"], "height": record["height"]}
        (folder / "images").mkdir(parents=True, exist_ok=True)
        os.link(PHOTOS / record["image"], folder / "images" / f"{number:09d}.jpg")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "part.parquet")


def test_ten_lines_are_enough_for_a_server_and_its_key_is_nowhere(tmp_path):
    lines = (ROOT / "examples/configs/longgrit_vllm.yaml").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 10
    settings = yaml.safe_load("\n".join(lines))
    grit_of_photos(tmp_path / "grit")
    secret = "sk-not-to-be-seen-0123456789"
    with running_server(tmp_path / "server") as server:
        settings["servers"]["vllm"] |= {"base_url": server.url, "api_key_env": "SOME_KEY"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
        run = subprocess.run(
            [sys.executable, ROOT / "examples/build_longgrit.py", "config.yaml"],
            cwd=tmp_path,
            env={**os.environ, "SOME_KEY": secret},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        assert server.stats()["last"]["authorization"] == f"Bearer {secret}"
    assert len(assert_all_ended_once(tmp_path / settings["output_dir"])) == 6
    assert secret not in run.stdout + run.stderr
    output = tmp_path / settings["output_dir"]
    for path in output.rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path
            assert str(tmp_path).encode() not in path.read_bytes() or "run" in path.relative_to(output).parts, path
    assert not rejected_of(output) or all(line["reason"] for line in rejected_of(output))


def test_without_its_server_a_run_stops_and_says_so(few_photos, tmp_path):
    server = {"base_url": "http://127.0.0.1:9/v1", "outage_timeout": 0.5, "breaker_wait": 0.1, "min_wait": 0.05}
    changes = ["engine=openai", "model=tiny", f"servers={json.dumps({'gone': server})}"]
    run = subprocess.run(
        [sys.executable, ROOT / "examples/build_longgrit.py", CONFIG, "--output_dir", tmp_path / "out"]
        + ["--set", f"source.path={few_photos}", *changes],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "http://127.0.0.1:9/v1" in run.stderr and "goes on from here" in run.stderr
    assert not list((tmp_path / "out/run/shards").iterdir())


@pytest.mark.slow
def test_the_whole_sample_becomes_a_dataset_that_the_script_trains_on(tmp_path):
    """`make longgrit`, then `run_pretraining.py --dataset`, for a few steps of a tiny model."""
    goal = subprocess.run(["make", "-n", "longgrit"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "examples/build_longgrit.py examples/configs/longgrit_coco_regions.yaml" in goal
    assert build_longgrit.main([str(CONFIG), "--output_dir", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 65 and sum(len(row["regions"]) for row in rows.values()) >= 350
    workspace = make_workspace(tmp_path / "pretraining")
    # Its held-out photos have neither long captions nor hard negatives.
    config = json.loads((workspace / "config.json").read_text())
    (workspace / "config.json").write_text(json.dumps({**config, "eval_file": None, "eval_strategy": "no"}))
    options = ["--dataset", tmp_path / "out", "--preset", "pixclip+fg", "--max_steps", "3"]
    run = pretrain(workspace / "config.json", "--output_dir", workspace / "run", *options)
    assert run.returncode == 0, run.stderr
    assert json.loads((workspace / "run" / "trainer_state.json").read_text())["global_step"] == 3
