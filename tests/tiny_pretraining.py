# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A folder in which `examples/run_pretraining.py` trains a tiny model in seconds, and ways to start it."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from tiny_models import backbone_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast


ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data" / "coco_regions"
SCRIPT = ROOT / "examples" / "run_pretraining.py"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def make_text_backbone(folder):
    torch.manual_seed(0)
    records = [json.loads(line) for name in ("train", "heldout") for line in (DATA / f"{name}.jsonl").open()]
    texts = [region["text"] for record in records for region in record["regions"]]
    words = [word for word, _ in Counter(re.findall(r"\w+", " ".join(texts))).most_common(400)]
    vocabulary = {word: index for index, word in enumerate(["[pad]", "[unk]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    AutoModel.from_config(backbone_config("llama", vocab_size=410, max_position_embeddings=512)).save_pretrained(
        folder
    )


def rich_record(record, number):
    """A record with all that an objective can read."""
    record["captions"] = [f"a photo of a {record['regions'][0]['category']} and more", f"photo number {number}"]
    record["long_captions"] = [" ".join(region["text"] for region in record["regions"])]
    for place, region in enumerate(record["regions"]):
        region["hard_negatives"] = [f"no {region['text']}", f"another {region['text']}"][: place % 3]
    return record


def make_workspace(folder, photos=(("train", 6), ("heldout", 5)), rich=False, **options):
    """Writes a text backbone, the first photos of the sample and a configuration; returns the folder."""
    make_text_backbone(folder / "llm")
    (folder / "images").mkdir()
    for name, count in photos:
        lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        records = [json.loads(line) for line in lines]
        for number, record in enumerate(records):
            (folder / record["image"]).write_bytes((DATA / record["image"]).read_bytes())
            if rich:
                rich_record(record, number)
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    config = json.loads((ROOT / "examples/configs/coco_regions.json").read_text(encoding="utf-8"))
    # It is of the default run's model.
    del config["card"]
    config["vision_config"].update(
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    )
    config.update(
        {
            "text_backbone": str(folder / "llm"),
            "text_template": "{text}",
            "cache_dir": str(folder / "cache"),
            "output_dir": str(folder / "run"),
            "train_file": str(folder / "train.jsonl"),
            "eval_file": str(folder / "heldout.jsonl"),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 3,
            "logging_steps": 1,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            **options,
        }
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def command(*arguments, launcher=()):
    return [sys.executable, *map(str, launcher), str(SCRIPT), *map(str, arguments)]


def pretrain(*arguments, launcher=(), timeout=600):
    """Runs the script to its end, under `launcher` (arguments of python) if there is one."""
    return subprocess.run(
        command(*arguments, launcher=launcher),
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def losses(folder):
    """Step and logged losses of a finished run."""
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return {entry["step"]: entry for entry in history if "loss" in entry}
