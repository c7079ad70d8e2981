# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The main job as a user runs it, and the retrieval figures that it prints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import backbone_config, clip_vision_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    AutoProcessor,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
)

import modeling_pixclip  # noqa: F401


ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data" / "coco_regions"
sys.path.insert(0, str(ROOT / "examples"))
from region_retrieval import RegionEmbeddings, region_retrieval_metrics, text_rank  # noqa: E402


TERMS = {"loss", "loss_global", "loss_crop", "loss_local"}


def naive_metrics(shown, wrong, texts, photo):
    """By plain loops: R@1, R@5 and right-of-two where region i is shown as `shown(i)`, or `wrong(i, rival)`."""
    hits = {1: [], 5: []}
    right = []
    regions = range(len(texts))
    for i in regions:
        rivals = [j for j in regions if j != i and photo[j] == photo[i]]
        for rival in [None] if wrong is None else rivals:
            embed = shown(i) if wrong is None else wrong(i, rival)
            better = sum(float(embed @ texts[j]) > float(embed @ texts[i]) for j in regions if j != i)
            for k, list_ in hits.items():
                list_.append(better < k)
        for rival in rivals:
            embed = shown(i) if wrong is None else wrong(i, rival)
            right.append(float(embed @ texts[i]) > float(embed @ texts[rival]))
    return {
        "r1": sum(hits[1]) / len(hits[1]),
        "r5": sum(hits[5]) / len(hits[5]),
        "right_of_two": sum(right) / len(right),
    }


def test_retrieval_metrics_equal_plain_loops():
    torch.manual_seed(0)
    photo = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 3])
    normal = torch.nn.functional.normalize
    texts = normal(torch.randn(10, 6), dim=-1)
    masked, unmasked = (normal(texts + torch.randn(10, 6), dim=-1) for _ in range(2))
    metrics = region_retrieval_metrics(RegionEmbeddings(masked, unmasked, texts, photo))
    expected = {
        "true mask": naive_metrics(lambda i: masked[i], None, texts, photo),
        "other region's mask": naive_metrics(None, lambda i, rival: masked[rival], texts, photo),
        "no mask": naive_metrics(lambda i: unmasked[i], None, texts, photo),
        "chance": {"r1": 0.1, "r5": 0.5, "right_of_two": 0.5},
    }
    for row, values in expected.items():
        assert metrics[row] == pytest.approx(values), row


def test_equal_embeddings_earn_nothing():
    same = torch.ones(8, 1)
    metrics = region_retrieval_metrics(RegionEmbeddings(same, same, same, torch.arange(8) // 2))
    assert metrics["true mask"] == {"r1": 0.0, "r5": 0.0, "right_of_two": 0.5}
    assert text_rank(same, same, torch.arange(8)).tolist() == [8] * 8


def test_metrics_without_two_regions_of_a_photo():
    torch.manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(2000, 4), dim=-1)
    metrics = region_retrieval_metrics(RegionEmbeddings(embeds, embeds, embeds, torch.arange(2000)))
    assert set(metrics) == {"true mask", "no mask", "chance"}
    assert metrics["true mask"] == {"r1": 1.0, "r5": 1.0, "right_of_two": None}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with a tiny text backbone, the first photos of the sample, and a configuration."""
    folder = tmp_path_factory.mktemp("pretraining")
    torch.manual_seed(0)
    words = sorted({word for line in (DATA / "train.jsonl").open(encoding="utf-8") for word in line.split()})[:55]
    vocabulary = {word: index for index, word in enumerate(["[pad]", "[unk]", *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(folder / "llm")
    AutoModel.from_config(backbone_config("llama", max_position_embeddings=512)).save_pretrained(folder / "llm")
    for name, count in (("train", 6), ("heldout", 5)):
        lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:count]
        for line in lines:
            file = json.loads(line)["image"]
            (folder / "images").mkdir(exist_ok=True)
            (folder / file).write_bytes((DATA / file).read_bytes())
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    config = json.loads((ROOT / "examples/configs/coco_regions.json").read_text(encoding="utf-8"))
    config["vision_config"].update(
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    )
    config.update(
        {
            "text_backbone": str(folder / "llm"),
            "text_template": "{text}",
            "cache_dir": str(folder / "cache"),
            "train_file": str(folder / "train.jsonl"),
            "eval_file": str(folder / "heldout.jsonl"),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 3,
            "logging_steps": 1,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
        }
    )
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def pretrain(*arguments, timeout=600):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / "run_pretraining.py"), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def finished(workspace):
    run = pretrain(workspace / "config.json", "--output_dir", workspace / "run", "--whole_image_share", "0.5")
    assert run.returncode == 0, run.stderr
    return workspace / "run", run.stdout


def test_run_leaves_everything_that_it_promises(finished):
    folder, printed = finished
    metrics = json.loads((folder / "region_retrieval.json").read_text())
    assert set(metrics) == {"train", "held-out"}
    for split, rows in metrics.items():
        assert set(rows) == {"true mask", "other region's mask", "no mask", "chance"}
        for row, values in rows.items():
            line = next(line for line in printed.splitlines() if line.startswith(f"{split:<11}{row:<22}"))
            assert line.split()[-3:] == [f"{values[key]:.3f}" for key in ("r1", "r5", "right_of_two")]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if entry.keys() >= TERMS]) == 4
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert len(evaluations) == 2 and "eval_region_to_text_r1" in evaluations[0]
    # The Trainer's evaluation and the final one agree on the 22 held-out regions, but for a tie broken by rounding.
    assert evaluations[-1]["eval_region_to_text_r5"] == pytest.approx(
        metrics["held-out"]["true mask"]["r5"], abs=1.01 / 22
    )
    assert evaluations[-1]["eval_region_to_text_r5"] * 22 == pytest.approx(
        round(evaluations[-1]["eval_region_to_text_r5"] * 22)
    )
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/jpeg;base64,") == 10 and "<svg" in report and "held-out" in report
    assert not list(folder.glob("*.tmp"))


def test_trained_folder_loads_through_the_auto_classes(finished):
    folder, _ = finished
    model = AutoModel.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == "PixCLIPModel"
    assert type(AutoModelForPreTraining.from_pretrained(folder)).__name__ == "PixCLIPForPreTraining"
    record = json.loads((DATA / "heldout.jsonl").open(encoding="utf-8").readline())
    masks = [region["mask"] for region in record["regions"]]
    batch = processor(images=DATA / record["image"], masks=masks, text=["a dog", "a red kite"])
    assert model(**batch).logits_per_image.shape == (len(masks), 2)


def test_readme_example_runs(finished):
    folder, _ = finished
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line]) <= 15 and "runs/coco_regions" in example
    run = subprocess.run(
        [sys.executable, "-c", example.replace("runs/coco_regions", str(folder))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    record = json.loads((DATA / "train.jsonl").open(encoding="utf-8").readline())
    assert [line.split("  ")[0].strip() for line in run.stdout.splitlines()] == [
        region["category"] for region in record["regions"]
    ]


def test_a_second_run_goes_on_where_the_first_ended(finished, workspace):
    folder, _ = finished
    run = pretrain(
        workspace / "config.json", "--output_dir", folder, "--whole_image_share", "0.5", "--num_train_epochs", "3"
    )
    assert run.returncode == 0, run.stderr
    assert "Going on from" in run.stderr and "Text vectors" not in run.stderr
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text_template", "about: {text}"], "text_template was '{text}' and is 'about: {text}'"),
        (["--objective", '{"local_weight": 0.0}'], "objective was {} and is {'local_weight': 0.0}"),
    ],
)
def test_a_run_does_not_go_on_as_another_one(finished, workspace, arguments, message):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run = pretrain(
        workspace / "config.json",
        "--output_dir",
        folder,
        "--whole_image_share",
        "0.5",
        "--num_train_epochs",
        "9",
        *arguments,
    )
    assert run.returncode != 0 and message in run.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_starts_from_a_clip_checkpoint(workspace):
    """The README's command for own data, with folders in place of Hub ids."""
    clip = CLIPModel(
        CLIPConfig(vision_config=clip_vision_config(), text_config=backbone_config("clip_text"), projection_dim=16)
    )
    clip.save_pretrained(workspace / "clip")
    run = pretrain(
        ROOT / "examples/configs/from_clip.json",
        *("--train_file", workspace / "train.jsonl", "--eval_file", workspace / "heldout.jsonl"),
        *("--output_dir", workspace / "from_clip", "--cache_dir", workspace / "cache", "--num_train_epochs", "1"),
        *("--vision_model", workspace / "clip", "--text_backbone", workspace / "llm", "--learning_rate", "0"),
    )
    assert run.returncode == 0, run.stderr
    model = AutoModel.from_pretrained(workspace / "from_clip")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.eval().get_image_features(pixels).pooler_output
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected, atol=1e-5, rtol=0)


def test_more_than_one_process_is_refused(workspace):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [*command, ROOT / "examples/run_pretraining.py", workspace / "config.json", "--output_dir", workspace / "two"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0 and "the run has 2 processes" in run.stderr and not (workspace / "two").exists()


@pytest.mark.slow
def test_killed_runs_go_on_and_end(workspace):
    """Killed again and again, at moments that fall into training, evaluation and the writing of checkpoints."""
    folder = workspace / "killed"
    arguments = [workspace / "config.json", "--output_dir", folder, "--num_train_epochs", 30]
    for _ in range(4):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples/run_pretraining.py"), *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = set(folder.glob("checkpoint-*"))
        while process.poll() is None and not set(folder.glob("checkpoint-*")) - before:
            pass
        process.kill()
        process.wait()
    # Whatever the kills hit, one folder is surely incomplete now.
    (folder / "checkpoint-59").mkdir()
    run = pretrain(*arguments)
    assert run.returncode == 0, run.stderr
    assert "checkpoint-59 was not written to its end" in run.stderr
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 60
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == list(range(1, 61))


def test_trainable_backbone_reads_tokens(workspace):
    run = pretrain(
        workspace / "config.json",
        *("--output_dir", workspace / "full", "--text_config", '{"backbone_training": "full"}'),
        *("--num_train_epochs", "1", "--save_strategy", "no", "--augment_crop_scale", "0.7"),
    )
    assert run.returncode == 0, run.stderr
    trained = AutoModel.from_pretrained(workspace / "full").text_model.backbone.state_dict()
    before = AutoModel.from_pretrained(workspace / "llm").state_dict()
    assert not torch.equal(trained["layers.0.mlp.up_proj.weight"], before["layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output_dir", "run"], "train_file and output_dir are needed"),
        (["config.json", "--no_such_option", "1"], "no_such_option"),
        (["wrong.json"], "unknown options colour"),
        (["absent.json"], "absent.json cannot be read as JSON"),
        (["config.json", "--vision_config", "{wrong"], "--vision_config is not JSON"),
        (["config.json", "--vision_config", '{"hiden_size": 64}'], "hiden_size"),
        (["config.json", "--objective", '{"local_wieght": 0}'], "local_wieght"),
        (["config.json", "--train_file", "absent.jsonl"], "absent.jsonl"),
        (["config.json", "--text_template", "no slot"], "text_template is 'no slot'"),
    ],
)
def test_wrong_input_says_what_is_wrong(workspace, arguments, message):
    (workspace / "wrong.json").write_text('{"colour": "red"}')
    paths = [str(workspace / argument) if argument.endswith(".json") else argument for argument in arguments]
    run = pretrain(*paths)
    assert run.returncode != 0 and message in run.stderr


@pytest.mark.slow
def test_default_run_learns_that_the_mask_decides(tmp_path):
    """The figures of the README: on the training photos the mask decides which text a region finds."""
    run = pretrain(
        ROOT / "examples/configs/coco_regions.json",
        *("--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"),
        timeout=3000,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    metrics = json.loads((tmp_path / "run" / "region_retrieval.json").read_text())
    train = metrics["train"]
    assert train["true mask"]["r1"] >= 0.8 and train["true mask"]["right_of_two"] >= 0.95
    assert train["other region's mask"]["right_of_two"] <= 0.2
    # Without its mask a region does not find its text.
    assert train["no mask"]["r1"] <= 0.1 and train["other region's mask"]["r1"] <= 0.1
    # Above chance on photos never seen.
    assert metrics["held-out"]["true mask"]["right_of_two"] >= 0.6
    assert metrics["held-out"]["true mask"]["r5"] >= 3 * metrics["held-out"]["chance"]["r5"]
