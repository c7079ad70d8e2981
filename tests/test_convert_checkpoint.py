# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""`examples/convert_checkpoint.py` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_conversion import tokenizer


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from convert_checkpoint import main  # noqa: E402

from modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel  # noqa: E402


FIXTURES = Path(__file__).parent / "fixtures"
ALPHA, FG = FIXTURES / "alphaclip_tiny", FIXTURES / "fgclip_tiny"


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "convert_checkpoint.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        check=False,
    )


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def test_alpha_clip_goes_there_and_back_in_processes_of_their_own(tmp_path):
    files = [ALPHA / "openai_clip.safetensors", ALPHA / "alpha_visual.pth"]
    config = ["--source_config", ALPHA / "config.json"]
    process = run("--source", "alpha-clip", "--checkpoint", *files, *config, "--output_dir", tmp_path / "ours")
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[-1].startswith("done: ")
    assert json.loads(process.stdout.rsplit("\n", 2)[0]) == json.loads(
        (tmp_path / "ours" / "conversion_report.json").read_text()
    )
    golden = load_file(ALPHA / "expected.safetensors")
    model = PixCLIPModel.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        outputs = model(
            pixel_values=golden["pixel_values"], mask_values=golden["mask_values"], input_ids=golden["input_ids"]
        )
    torch.testing.assert_close(outputs.logits_per_image, golden["logits_per_image"], atol=1e-5, rtol=0)
    process = run("--to", "alpha-clip", "--checkpoint", tmp_path / "ours", "--output_dir", tmp_path / "back")
    assert process.returncode == 0, process.stderr
    assert_same_tensors(load_file(tmp_path / "back" / files[0].name), load_file(files[0]))
    assert_same_tensors(
        torch.load(tmp_path / "back" / files[1].name, weights_only=True), torch.load(files[1], weights_only=True)
    )
    # With what is written beside them they come in again, without any other configuration.
    again = main(
        ["--source", "alpha-clip", "--checkpoint", *(str(tmp_path / "back" / file.name) for file in files)]
        + ["--source_config", str(tmp_path / "back" / "source_config.json"), "--output_dir", str(tmp_path / "again")]
    )
    assert again == 0
    assert_same_tensors(
        load_file(tmp_path / "again" / "model.safetensors"), load_file(tmp_path / "ours" / "model.safetensors")
    )


def test_fg_clip_goes_there_and_back(tmp_path, capsys):
    checkpoint = str(FG / "checkpoint.safetensors")
    config = '{"vision_heads": 2, "text_heads": 2}'
    arguments = ["--source", "fg-clip", "--checkpoint", checkpoint, "--source_config", config]
    assert main([*arguments, "--output_dir", str(tmp_path / "ours")]) == 0
    assert "no tokenizer" in capsys.readouterr().out
    model, info = PixCLIPForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (
        main(["--to", "fg-clip", "--checkpoint", str(tmp_path / "ours"), "--output_dir", str(tmp_path / "back")]) == 0
    )
    assert "note: checkpoint.safetensors is written as model.safetensors" in capsys.readouterr().err
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), load_file(checkpoint))
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == "clip"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--source", "openai-clip", "--checkpoint", "absent.pt"], "there is no checkpoint 'absent.pt'"),
        (["--source", "siglip", "--checkpoint", "absent.pt"], "no checkpoint source 'siglip'"),
        (["--checkpoint", "absent.pt"], "give either --source"),
        (["--source", "fg-clip", "--to", "fg-clip", "--checkpoint", "absent.pt"], "give either --source"),
        (["--to", "fg-clip", "--checkpoint", "one", "two"], "--to takes one saved folder, got 2"),
        (["--to", "fg-clip", "--dtype", "float16", "--checkpoint", "one"], "--dtype belong to --source"),
        (["--to", "fg-clip", "--checkpoint", str(FIXTURES)], "is no folder of a saved PixCLIP model"),
        (["--source", "fg-clip", "--to_layout", "folder", "--checkpoint", "x"], "--to_layout belongs to --to"),
        (["--to", "fg-clip", "--to_layout", "state_dict", "--checkpoint", "x"], "'state_dict'; accepted are 'folder'"),
        (["--source", "fg-clip", "--checkpoint", "x", "--source_config", "{"], "Expecting property name"),
        (["--source", "fg-clip", "--checkpoint", "x", "--source_config", "absent.json"], "absent.json"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message, tmp_path, capsys):
    assert main([*arguments, "--output_dir", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and message in printed.err
    assert "done" not in printed.out and not any(tmp_path.iterdir())


def test_what_transformers_refuses_is_one_line_and_a_bug_is_not(tmp_path, capsys, monkeypatch):
    tokenizer(tmp_path / "words", end=98)
    files = [str(ALPHA / "openai_clip.safetensors"), str(ALPHA / "alpha_visual.pth")]
    arguments = ["--source", "alpha-clip", "--checkpoint", *files, "--source_config", str(ALPHA / "config.json")]
    arguments += ["--output_dir", str(tmp_path / "out")]
    assert main([*arguments, "--tokenizer", str(tmp_path / "words"), "--text_preset", "nonsense"]) == 1
    printed = capsys.readouterr().err
    assert "error: " in printed and "nonsense" in printed and "Traceback" not in printed
    assert main([*arguments, "--tokenizer", str(tmp_path)]) == 1
    assert "error: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["words"]
    monkeypatch.setattr("convert_checkpoint.convert", lambda options: options.no_such_option)
    with pytest.raises(AttributeError):
        main(arguments)


def test_output_folders_that_nothing_can_take_the_place_of_are_refused_first(tmp_path, capsys, monkeypatch):
    """Before anything is read: the checkpoint is not there."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for given in (".", str(tmp_path / "empty")):
        assert main(["--source", "fg-clip", "--checkpoint", "absent.pt", "--output_dir", given]) == 1
        assert "is the folder that you are in" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["--source", "fg-clip", "--checkpoint", "absent.pt", "--output_dir", str(tmp_path / "file")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err


def test_empty_folders_and_links_to_one_are_filled(tmp_path):
    config = ["--source_config", '{"vision_heads": 2, "text_heads": 2}']
    (tmp_path / "real").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("empty", "link"):
        arguments = ["--source", "fg-clip", "--checkpoint", str(FG / "checkpoint.safetensors"), *config]
        assert main([*arguments, "--output_dir", str(tmp_path / name)]) == 0
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in (tmp_path / "real").iterdir()} == {
        path.name for path in (tmp_path / "empty").iterdir()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link", "real"]
