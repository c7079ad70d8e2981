# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""examples/run_evaluation.py as users run it, on tiny saved models."""

import contextlib
import importlib.util
import io
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from encoders_for_tests import clip_pair, pixclip_pair, save_pair
from evaluation_for_tests import ROOT
from huggingface_hub import ModelCard
from layouts_all import LAYOUTS, write_layouts

from processing_pixclip.evaluation.evaluation_run import read_results
from processing_pixclip.evaluation.registry import BENCHMARKS, protocol_fields


SCRIPT = ROOT / "examples" / "run_evaluation.py"
NAMES = ["coco-regions", "flickr30k"]
QUICK = ["--limit", "3", "--set", "bootstrap=20"]


def load_script():
    spec = importlib.util.spec_from_file_location("run_evaluation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run_evaluation = load_script()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    write_layouts(out / "data", NAMES)
    save_pair(pixclip_pair(), out / "pixclip")
    save_pair(clip_pair(), out / "clip")
    return out


def arguments_for(workspace, model="pixclip", names=NAMES, out="out", data=None):
    data = [f"{name}={workspace / 'data' / name}" for name in names] if data is None else data
    return ["--model", str(workspace / model), "--benchmark", ",".join(names), "--data_dir", *data] + [
        *("--output_dir", str(workspace / out), "--device", "cpu"),
        *QUICK,
    ]


def run_script(*arguments, launcher=(sys.executable,)):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, SCRIPT, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    # As the scripts that are started: another number may change the last digits of a score.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(workspace, one_thread):
    """What a run printed."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert run_evaluation.main(arguments_for(workspace)) == 0
    return told.getvalue()


def test_a_run_prints_protocol_and_table_and_writes_all(workspace, finished):
    results = read_results(workspace / "out" / "results.json")
    assert [result.benchmark for result in results] == NAMES
    told = finished
    for benchmark in map(BENCHMARKS.get, NAMES):
        for field in protocol_fields(benchmark):
            assert re.search(rf"^{field} = ", told, re.M)
    assert "limit = 3\n" in told
    for part in (
        "== coco-regions: part of COCO val2017\nprotocol default, limit=3, bootstrap=20\n",
        "a photo of a {}.",
    ):
        assert part in told
    for result in results:
        assert result.protocol["tie_rule"] in told and result.changed == {"limit": 3, "bootstrap": 20}
        for path, facts in result.data.items():
            assert f"file {path}: {json.dumps(facts)}" in told
    table = [line for line in told.splitlines() if line.startswith("| coco-regions")]
    assert len(table) == len(results[0].figures)
    assert f"{results[0].figures['top-1'].value:.3f}" in table[0]
    assert told.rstrip().endswith(str(workspace / "out" / "report.html"))
    info = json.loads((workspace / "out" / "run_info.json").read_text())
    assert info["command"].startswith("examples/run_evaluation.py --model pixclip --benchmark coco-regions,flickr30k")
    assert str(workspace) not in (workspace / "out" / "results.json").read_text()


def test_another_run_gives_equal_bytes_also_from_its_cache(workspace, finished):
    cached = [*arguments_for(workspace, out="again"), "--cache_dir", str(workspace / "cache")]
    for _ in range(2):
        assert run_evaluation.main(cached) == 0
        for name in ("results.json", "report.html", "coco-regions/items.jsonl", "flickr30k/retrieval.png"):
            assert (workspace / "again" / name).read_bytes() == (workspace / "out" / name).read_bytes(), name


def test_a_clip_model_of_transformers_is_measured_and_put_into_a_card(workspace, capsys):
    card = workspace / "clip" / "README.md"
    card.write_text("---\nlicense: mit\n---\nMine.\n")
    arguments = [*arguments_for(workspace, "clip", out="clip-out"), "--add_to_card", str(workspace / "clip")]
    assert run_evaluation.main([*arguments, "--set", "coco-regions.views=box-crop,full"]) == 0
    assert "class: CLIPModel" in capsys.readouterr().out
    results = read_results(workspace / "clip-out" / "results.json")
    assert "box-crop: top-1" in results[0].figures and results[0].protocol["views"] == ["box-crop", "full"]
    entries = ModelCard.load(card).data.eval_results
    values = {(entry.dataset_type, entry.metric_name): entry.metric_value for entry in entries}
    assert values == {
        (result.benchmark, name): round(figure.value, 6)
        for result in results
        for name, figure in result.figures.items()
    }
    assert card.read_text().endswith("---\nMine.\n")


def test_the_list_needs_nothing_else():
    run = run_script("--list")
    assert run.returncode == 0, run.stderr
    told = run.stdout
    assert [line.split(":")[0] for line in told.splitlines() if line and line[0] != " "] == list(BENCHMARKS)
    assert list(LAYOUTS) == list(BENCHMARKS)


def test_the_readme_lists_the_same_benchmarks():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^#+ Evaluate\n(.*?)(?=^#+ |\Z)", readme, re.M | re.S)
    assert section, "README.md has no section 'Evaluate'"
    cells = re.findall(r"^\| ((?:`[\w+-]+`(?:, )?)+) \|", section.group(1), re.M)
    assert [name for cell in cells for name in re.findall(r"`([\w+-]+)`", cell)] == list(BENCHMARKS)


def test_the_protocol_alone_is_printed_without_data_and_model(capsys):
    assert run_evaluation.main(["--benchmark", "fg-ovd,docci", "--protocol", "--set", "docci.captions=first"]) == 0
    told = capsys.readouterr().out
    parts = {re.match(r"== ([\w+-]+)", part).group(1): part for part in told.strip().split("\n\n")}
    for name in ("fg-ovd", "docci"):
        for field in protocol_fields(BENCHMARKS[name]):
            assert re.search(rf"^{field} = .*\n    \S", parts[name], re.M), field
        for preset in BENCHMARKS[name].presets:
            assert re.search(rf"^preset {preset}\b", parts[name], re.M)
    assert 'captions = "first"' in parts["docci"] and "torch: " in parts["versions"]


def test_the_protocol_alone_tells_counts_and_the_models_part_where_they_are_given(workspace, capsys):
    arguments = arguments_for(workspace, out="nothing")
    assert run_evaluation.main([*arguments, "--protocol"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^regions: \d+", told, re.M) and re.search(r"^captions: 15", told, re.M)
    model = told[told.index("== model") :]
    for part in ("resize_mode: ", "image_size: [32, 32]", "text_template: ", "dtype: float32", "text_max_length: 24"):
        assert part in model
    assert not (workspace / "nothing").exists()


def test_presets_by_benchmark(workspace, finished, capsys):
    arguments = [*arguments_for(workspace, out="presets"), "--protocol", "coco-regions=official-pixclip"]
    assert run_evaluation.main(arguments) == 0
    coco, flickr = read_results(workspace / "presets" / "results.json")
    assert coco.protocol["views"] == ["padded-crop+mask"] and coco.protocol["crowd"] == "include"
    assert flickr.protocol == read_results(workspace / "out" / "results.json")[1].protocol


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--benchmark", "flickr"], "'flickr' is no benchmark; did you mean flickr30k? Accepted are coco-regions, "),
        (
            ["--protocol", "official-fgclp"],
            "coco-regions has no preset 'official-fgclp'; did you mean official-fgclip",
        ),
        (["--protocol", "docci=default"], "--protocol names 'docci', which --benchmark does not"),
        (
            ["--set", "viewz=roi"],
            "'viewz' is no field of the protocol of coco-regions or flickr30k; did you mean views",
        ),
        (["--set", "views"], "--set 'views' is no KEY=VALUE"),
        (["--limit", "0"], "--limit is 0; accepted are 1 and more"),
        (["--data_dir", "coco-regions=x"], "--data_dir names no folder for flickr30k"),
        (["--data_dir", "x", "docci=y"], "--data_dir names docci, which --benchmark does not"),
        (["--data_dir", "x", "y"], "--data_dir names x and y for all benchmarks"),
        (["--data_dir", "flikr30k=y"], "'flikr30k' is no benchmark; did you mean flickr30k"),
        (["--model", "./nowhere"], "--model ./nowhere is not a folder"),
        (["--add_to_card", "nowhere"], "--add_to_card nowhere is not a folder"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--output_dir", ""], "--output_dir is empty"),
        (["--cache_dir", ""], "--cache_dir is empty"),
        (["--revision", "main"], "--revision is of a model on the Hub"),
        (["--set", "limit=7"], "--limit 3 and --set limit=7 are both given"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_told(workspace, capsys, change, message):
    with pytest.raises(SystemExit) as stop:
        run_evaluation.main([*arguments_for(workspace, out="wrong"), *change])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (workspace / "wrong").exists()


def test_what_is_lacking_is_told(capsys):
    with pytest.raises(SystemExit):
        run_evaluation.main(["--benchmark", "docci"])
    assert "give --data_dir, --model, --output_dir; --list shows" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["data", "file", "view", "weights", "hub"])
def test_what_cannot_be_used_ends_without_a_traceback(workspace, capsys, change, tmp_path):
    arguments = arguments_for(workspace, out="wrong-data")
    if change == "data":
        arguments += ["--data_dir", str(tmp_path)]
        messages = ["coco-regions reads", "instances_val2017.json", "flickr30k reads", "dataset_flickr30k.json"]
    elif change == "file":
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "instances_val2017.json").write_text("{")
        (tmp_path / "val2017").mkdir()
        arguments += ["--data_dir", f"coco-regions={tmp_path}", "--benchmark", "coco-regions"]
        messages = ["instances_val2017.json"]
    elif change == "view":
        arguments += ["--set", "views=nothing"]
        messages = ["coco-regions: ", "'nothing'", "'mask-pooled'"]
    elif change == "weights":
        arguments += ["--model", str(tmp_path)]
        messages = [str(tmp_path), "config.json"]
    else:
        arguments += ["--model", "nobody/nothing-of-this-name"]
        messages = ["nobody/nothing-of-this-name"]
    assert run_evaluation.main(arguments) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told and "error: " in told
    for message in messages:
        assert message in told
    assert not any((workspace / "wrong-data").iterdir())


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda"])
def test_a_device_that_cannot_be_used_is_told(workspace, capsys, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if device == "cuda" and torch.version.cuda is not None:
        pytest.skip("of this PyTorch, cuda may be usable")
    assert run_evaluation.main([*arguments_for(workspace, out="no-device"), "--device", device]) == 1
    assert f"error: --device {device} cannot be used: " in capsys.readouterr().err
    assert not (workspace / "no-device").exists()


@pytest.mark.parametrize("name", ["output_dir", "cache_dir"])
def test_a_folder_that_cannot_be_written_is_told_before_the_data_are_read(workspace, capsys, name, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    arguments = [*arguments_for(workspace, out="unwritten"), "--data_dir", str(tmp_path / "none")]
    assert run_evaluation.main([*arguments, f"--{name}", str(file)]) == 1
    assert f"error: --{name} {file} cannot be written into: " in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_a_preset_is_printed_without_data_and_model(capsys):
    assert run_evaluation.main(["--benchmark", "coco-regions", "--protocol", "official-fgclip"]) == 0
    told = capsys.readouterr().out
    assert "protocol official-fgclip\n" in told and 'views = ["roi"]' in told
    assert run_evaluation.main(["--benchmark", "coco-regions", "--protocol", "--set", "views=nothing"]) == 1
    assert "'nothing'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_evaluation.main(["--benchmark", "coco-regions", "--protocol", "default", "--model", "x"])


def test_a_card_of_another_model_is_told(workspace, capsys, caplog):
    other = workspace / "other"
    other.mkdir()
    arguments = arguments_for(workspace, names=["flickr30k"], out="other-out")
    with caplog.at_level("WARNING"):
        assert run_evaluation.main([*arguments, "--add_to_card", str(workspace / "pixclip")]) == 0
        assert "is not the folder of" not in caplog.text
        assert run_evaluation.main([*arguments, "--add_to_card", str(other)]) == 0
    assert f"--add_to_card {other} is not the folder of --model {workspace / 'pixclip'}" in caplog.text
    (workspace / "pixclip" / "README.md").unlink()


def test_an_interruption_tells_of_cached_vectors_where_there_are(workspace, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_evaluation, "load_benchmarks", interrupt)
    arguments = arguments_for(workspace, out="interrupted")
    assert run_evaluation.main(arguments) == 130
    assert capsys.readouterr().err == "interrupted; what finished is in its folder\n"
    assert run_evaluation.main([*arguments, "--cache_dir", str(workspace / "kept")]) == 130
    assert f", and vectors stay in {workspace / 'kept'}" in capsys.readouterr().err


@pytest.mark.slow
def test_launchers_start_it_and_two_processes_write_the_same_once(workspace, finished):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    # Without GPUs and MPI it starts one.
    accelerate = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    for launcher, processes in ((torchrun, 2), (accelerate, 1)):
        folder = workspace / f"out-{processes}"
        run = run_script(*arguments_for(workspace, out=folder.name), launcher=launcher)
        assert run.returncode == 0, run.stderr
        assert run.stderr.count("1 of 2: coco-regions") == 1 and "100%" in run.stderr
        assert run.stdout.count("| coco-regions | default, limit=3, bootstrap=20 | top-1 ") == 1
        for name in ("results.json", "report.html", "flickr30k/items.jsonl"):
            assert (folder / name).read_bytes() == (workspace / "out" / name).read_bytes()
        assert json.loads((folder / "run_info.json").read_text())["processes"] == processes
