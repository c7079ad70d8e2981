# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The text encoding job as a user runs it: kinds of files, bad lines, interruptions, two jobs on one store."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import backbone_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast

from modeling_pixclip import RegionJsonlDataset, TextFeatureStore


ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data" / "coco_regions"
sys.path.insert(0, str(ROOT / "examples"))
import run_pretraining  # noqa: E402
from encode_texts import main  # noqa: E402


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    words = "a red blue kite car on the left right".split()
    vocabulary = {word: index for index, word in enumerate(["[pad]", "[unk]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]").save_pretrained(folder)
    AutoModel.from_config(backbone_config("llama", max_position_embeddings=512)).save_pretrained(folder)
    return folder


def encode(llm, store, *files, options=()):
    return main(["--texts", *map(str, files), "--store", str(store), "--text_backbone", str(llm), *options])


def numbers_in(printed):
    """The count that each line of the report begins with, by what follows it."""
    lines = re.findall(r"^ +([\d,]+) (.*)$", printed, re.MULTILINE)
    return {text: int(count.replace(",", "")) for count, text in lines}


def test_text_lines_good_and_bad(llm, tmp_path, capsys):
    file = tmp_path / "captions.txt"
    file.write_bytes(b"\xef\xbb\xbfa red kite\r\n\n  a car \na red kite\ncaf\xe9\n \nthe blue car")
    assert encode(llm, tmp_path / "store", file) == 0
    printed = capsys.readouterr().out
    found = numbers_in(printed)
    assert found[f"texts read from {file}"] == 7
    assert found[f"rejected, blank; the first: {file}, line 2"] == 2
    assert found[f"rejected, not UTF-8; the first: {file}, line 5"] == 1
    assert found["were there, or are repeated"] == 1
    assert re.search(r"^ +3 computed in [\d.]+ s: [\d,]+ tokens/s$", printed, re.MULTILINE)
    assert sorted(TextFeatureStore.open(tmp_path / "store")) == ["a car", "a red kite", "the blue car"]
    assert encode(llm, tmp_path / "store", file) == 0
    assert re.search(r"^ +0 computed in ", capsys.readouterr().out, re.MULTILINE)


def test_json_lines(llm, tmp_path, capsys):
    file = tmp_path / "captions.jsonl"
    lines = [
        '{"caption": "a red kite"}',
        "{broken",
        '{"caption": 7}',
        '{"other": "a car"}',
        "",
        '["a car"]',
        '{"caption": "half \\ud83d"}',
        '{"caption": "a car"}',
    ]
    file.write_text("\n".join(lines))
    assert encode(llm, tmp_path / "store", file, options=["--text_field", "caption"]) == 0
    found = numbers_in(capsys.readouterr().out)
    assert found[f"rejected, no field 'caption'; the first: {file}, line 4"] == 2
    for reason in (f"not JSON; the first: {file}, line 2", f"not a string; the first: {file}, line 3"):
        assert found[f"rejected, {reason}"] == 1
    [refused] = [text for text in found if text.startswith("rejected, refused by the processor")]
    assert f"{file}, line 7" in refused and "not Unicode" in refused
    assert sorted(TextFeatureStore.open(tmp_path / "store")) == ["a car", "a red kite"]


def test_coco_captions_and_several_files(llm, tmp_path, capsys):
    annotations = [{"caption": "a red kite\n"}, {"caption": "a car"}, {"id": 3}]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": annotations}))
    (tmp_path / "more.txt").write_text("a car\nthe left car\n")
    assert encode(llm, tmp_path / "store", tmp_path / "captions.json", tmp_path / "more.txt") == 0
    assert (
        numbers_in(capsys.readouterr().out)[
            f"rejected, no 'caption'; the first: {tmp_path / 'captions.json'}: annotations[2]"
        ]
        == 1
    )
    assert sorted(TextFeatureStore.open(tmp_path / "store")) == ["a car", "a red kite", "the left car"]
    (tmp_path / "instances.json").write_text("[]")
    with pytest.raises(ValueError, match=r"instances\.json is not a captions file of COCO"):
        encode(llm, tmp_path / "store", tmp_path / "instances.json")


def test_region_records_give_every_text_of_the_data_set(llm, tmp_path):
    assert encode(llm, tmp_path / "store", DATA / "heldout.jsonl") == 0
    store = TextFeatureStore.open(tmp_path / "store")
    wanted = set()
    for record in RegionJsonlDataset(DATA / "heldout.jsonl").records:
        wanted.update(record["captions"])
        wanted.update(region["text"] for region in record["regions"])
        wanted.update(region["object_text"] for region in record["regions"] if region.get("object_text"))
    assert set(store) == wanted and len(wanted) > 300


def test_options_reach_model_processor_and_store(llm, tmp_path):
    (tmp_path / "captions.txt").write_text("a red kite")
    options = ["--text_template", "the {text}", "--text_max_length", "9", "--dtype", "bfloat16"]
    encode(llm, tmp_path, tmp_path / "captions.txt", options=[*options, "--text_config", '{"pooling": "last"}'])
    last = TextFeatureStore.open(tmp_path)
    assert last.description["text_template"] == "the {text}" and last.description["text_max_length"] == 9
    assert last.description["dtype"] == "bfloat16"
    encode(llm, tmp_path, tmp_path / "captions.txt", options=options)
    encode(llm, tmp_path, tmp_path / "captions.txt", options=["--text_preset", "plain"])
    stores = [TextFeatureStore.open(folder.parent) for folder in tmp_path.glob("*/store.json")]
    assert len(stores) == 3
    assert [store.description["text_pooling"] for store in stores].count("all") == 1
    assert len({tuple(store["a red kite"].tolist()) for store in stores}) == 3


@pytest.mark.parametrize("options", [[], ["--text_preset", "plain", "--backbone_dtype", "float32"]])
def test_training_finds_the_vectors(llm, tmp_path, options):
    shutil.copytree(llm, tmp_path / "llm")
    AutoModel.from_pretrained(llm).to(torch.bfloat16).save_pretrained(tmp_path / "llm")
    files = [str(DATA / name) for name in ("heldout.jsonl", "train.jsonl")]
    encode(tmp_path / "llm", tmp_path, *files, options=options)
    arguments = ["--train_file", files[0], "--output_dir", str(tmp_path), "--text_backbone", str(tmp_path / "llm")]
    model_arguments, data_arguments, _ = run_pretraining.parse_arguments([*arguments, *options], "")
    model = run_pretraining.build_model(model_arguments, str(tmp_path / "llm"))
    processor = run_pretraining.build_processor(data_arguments, model, str(tmp_path / "llm"))
    store = TextFeatureStore(tmp_path, model.text_model, processor, dtype=model_arguments.text_vector_dtype)
    assert store.folder == TextFeatureStore.open(tmp_path).folder
    assert store.description["backbone"] == str(tmp_path / "llm")
    for file in files:
        dataset = RegionJsonlDataset(file)
        texts = run_pretraining.texts_of(dataset, captions=True, long_captions=True, hard_negatives=True)
        assert len(texts) > 100 and not list(store.missing(texts))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--texts", "captions.csv"], "captions.csv is no file of texts; accepted are .txt, .jsonl, .json"),
        (["--texts", "absent.txt"], "absent.txt is not a file"),
        (["--texts", __file__, "--text_config", "{wrong"], "cannot be used"),
        (["--texts", __file__, "--text_preset", "llama"], "text_preset is 'llama'; accepted are"),
        (
            ["--texts", str(DATA / "heldout.jsonl"), "--text_backbone", "./absent"],
            "--text_backbone ./absent is not a folder; accepted",
        ),
        (
            ["--texts", str(DATA / "heldout.jsonl"), "--text_backbone", "/absent"],
            "--text_backbone /absent is not a folder",
        ),
        (
            ["--texts", str(DATA / "heldout.jsonl"), "--text_backbone", "runs/absent/model"],
            "runs/absent/model is not a folder",
        ),
        (
            ["--texts", str(DATA / "heldout.jsonl"), "--text_backbone", "absent/"],
            "--text_backbone absent/ is not a folder",
        ),
        (
            ["--texts", str(DATA / "heldout.jsonl"), "--text_backbone", "~/absent"],
            "--text_backbone ~/absent is not a folder",
        ),
        ([], "--texts"),
    ],
)
def test_wrong_arguments_say_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_file_without_a_text_fails(llm, tmp_path, capsys):
    (tmp_path / "captions.txt").write_text("\n \n")
    assert encode(llm, tmp_path, tmp_path / "captions.txt") == 1


def start(llm, store, file, *options):
    return subprocess.Popen(
        [
            sys.executable,
            ROOT / "examples" / "encode_texts.py",
            "--texts",
            file,
            "--store",
            store,
            "--text_backbone",
            llm,
        ]
        + list(options),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        # A shell in the background hands down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_segments(process, store, count):
    seen = set()
    while process.poll() is None and len(seen) < count:
        seen.update(store.glob("*/segment-*"))


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_job_goes_on(llm, tmp_path, signal_number, capsys):
    texts = [f"the kite {' car' * (i % 50)} on the left {i}" for i in range(9000)]
    (tmp_path / "captions.txt").write_text("\n".join(texts))
    process = start(llm, tmp_path / "store", tmp_path / "captions.txt", "--block_size", "8")
    wait_for_segments(process, tmp_path / "store", 4)
    process.send_signal(signal_number)
    out, err = process.communicate()
    if signal_number == signal.SIGINT:
        assert process.returncode == 130, err[-1000:]
        assert "The same command goes on from there" in out and "Traceback" not in err
    else:
        assert process.returncode == -signal.SIGKILL
    kept = len(TextFeatureStore.open(tmp_path / "store"))
    assert 16 <= kept < 9000
    assert encode(llm, tmp_path / "store", tmp_path / "captions.txt") == 0
    assert re.search(rf"^ +{9000 - kept:,} computed in ", capsys.readouterr().out, re.MULTILINE)
    store = TextFeatureStore.open(tmp_path / "store")
    assert len(store) == 9000 and all(text in store for text in texts)


def test_two_jobs_fill_one_store(llm, tmp_path):
    texts = [f"the kite {' car' * (i % 50)} on the left {i}" for i in range(900)]
    (tmp_path / "one.txt").write_text("\n".join(texts[:600]))
    (tmp_path / "two.txt").write_text("\n".join(texts[300:]))
    jobs = [start(llm, tmp_path / "store", tmp_path / f"{name}.txt", "--block_size", "16") for name in ("one", "two")]
    for job in jobs:
        _, err = job.communicate()
        assert job.returncode == 0, err
    store = TextFeatureStore.open(tmp_path / "store")
    assert sorted(store) == sorted(texts) and not store.damaged
    encode(llm, tmp_path / "alone", tmp_path / "one.txt", tmp_path / "two.txt")
    alone = TextFeatureStore.open(tmp_path / "alone")
    for text in texts:
        torch.testing.assert_close(store[text], alone[text], rtol=1e-3, atol=1e-5)
    assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]
