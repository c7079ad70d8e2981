# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The training script in several processes: DDP and FSDP2 train as one process does on the joined batch."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from tiny_pretraining import ROOT, losses, make_workspace, pretrain
from training_for_tests import FSDP2 as SHARDED
from training_for_tests import make_trainer, objective_model, ragged_batch, run_in_processes
from transformers import AutoModel, AutoModelForPreTraining

import modeling_pixclip  # noqa: F401
from modeling_pixclip import autocast_under_fsdp, read_checkpoint_manifest, write_region_webdataset
from processing_pixclip import RegionJsonlDataset


sys.path.insert(0, str(ROOT / "examples"))
from run_pretraining import main


CONFIGS = ROOT / "examples" / "configs"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
ACCELERATE = ("-m", "accelerate.commands.accelerate_cli", "launch", "--config_file")
# accelerate shards on accelerators alone: the wrapper lets it do so here.
ON_CPU = Path(__file__).with_name("fsdp_on_cpu.py")
FSDP2_BF16 = (*ACCELERATE, CONFIGS / "fsdp2_8gpu.yaml", "--num_processes", 2)
FSDP2 = (*FSDP2_BF16, "--mixed_precision", "no", ON_CPU)
FSDP2_BF16 = (*FSDP2_BF16, ON_CPU)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Data with captions and hard negatives; all terms of both papers."""
    return make_workspace(
        tmp_path_factory.mktemp("launching"),
        photos=(("train", 8), ("heldout", 5)),
        rich=True,
        preset="pixclip+fg",
        per_device_train_batch_size=4,
        warmup_steps=0,
        # Adam makes steps of the size of the learning rate out of gradients that are zero but for rounding.
        optim="sgd",
        learning_rate=0.01,
    )


@pytest.fixture(scope="module")
def one_process(workspace):
    run = pretrain(workspace / "config.json", "--output_dir", workspace / "one")
    assert run.returncode == 0, run.stderr[-3000:]
    return workspace / "one"


def assert_same_training(folder, expected, loss=5e-6, weight=2e-6):
    one, other = losses(expected), losses(folder)
    assert one.keys() == other.keys() and len(one) == 4
    terms = {key for key in one[1] if key.startswith("loss")}
    assert len(terms) == 8
    for step in one:
        for term in terms:
            assert other[step][term] == pytest.approx(one[step][term], abs=loss), (step, term)
    ones, others = (load_file(run / "model.safetensors") for run in (expected, folder))
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        torch.testing.assert_close(others[name], tensor, atol=weight, rtol=0, msg=name)
    metrics = [json.loads((run / "region_retrieval.json").read_text()) for run in (expected, folder)]
    assert metrics[0] == metrics[1]
    histories = [json.loads((run / "trainer_state.json").read_text())["log_history"] for run in (expected, folder)]
    retrieval = [
        [{key: entry[key] for key in entry if "_to_" in key} for entry in history if "eval_loss" in entry]
        for history in histories
    ]
    assert retrieval[0] == retrieval[1] and len(retrieval[0]) == 2 and len(retrieval[0][0]) == 6


def two_processes(workspace, folder, launcher, *options):
    run = pretrain(
        workspace / "config.json",
        *("--output_dir", workspace / folder, "--per_device_train_batch_size", 2, *options),
        launcher=launcher,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return workspace / folder, run


def test_ddp_trains_as_one_process_does_on_the_joined_batch(workspace, one_process):
    folder, run = two_processes(workspace, "ddp", TORCHRUN)
    assert_same_training(folder, one_process)
    # One process reports.
    assert run.stdout.count("Report: ") == 1 and run.stderr.count("of 8 samples") == 1
    assert read_checkpoint_manifest(folder / "checkpoint-4")["processes"] == 2
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (folder / "checkpoint-4").iterdir()}


def with_narrow_boxes(workspace):
    """Training data whose first photo has five regions more, so narrow that most have no width in bfloat16."""
    records = [json.loads(line) for line in (workspace / "train.jsonl").read_text().splitlines()]
    width, height = records[0]["width"], records[0]["height"]
    for number in range(5):
        left = (0.6 + 0.0321 * number) * width
        box = [left, 0.3 * height, left + 0.001 * width, 0.7 * height]
        records[0]["regions"].append({"box": box, "text": f"pole {number}"})
    file = workspace / "narrow.jsonl"
    file.write_text("\n".join(map(json.dumps, records)))
    return file


def test_fsdp2_as_shipped_rounds_no_more_than_one_process_in_bf16_does(workspace):
    """bf16 by the configuration: boxes, inverse temperatures and losses stay float32."""
    options = ("--objective", json.dumps({"logit_scale_init_value": 4.59}), "--num_train_epochs", 1)
    # Random crops leave such regions out.
    options += ("--train_file", with_narrow_boxes(workspace), "--augment_crop_scale", 1.0)
    one = workspace / "one_bf16"
    run = pretrain(workspace / "config.json", "--output_dir", one, "--bf16", "--use_cpu", *options)
    assert run.returncode == 0, run.stderr[-3000:]
    folder, _ = two_processes(workspace, "fsdp2_bf16", FSDP2_BF16, *options)
    one, other = losses(one), losses(folder)
    terms = {key for key in one[1] if key.startswith("loss")}
    assert one.keys() == other.keys() == {1, 2} and len(terms) == 8
    # Rounding of activations differs with their number, so steps part from the second on.
    for step, tolerance in ((1, 1e-5), (2, 0.2)):
        for term in terms:
            assert other[step][term] == pytest.approx(one[step][term], abs=tolerance), (step, term)
        assert other[step]["skipped_empty_boxes"] == one[step]["skipped_empty_boxes"] == 0
    states = [load_file(run / "model.safetensors") for run in (workspace / "one_bf16", folder)]
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-4, rtol=0, msg=name)


def test_fsdp2_trains_as_one_process_does_and_saves_the_model_whole(workspace, one_process):
    folder, _ = two_processes(workspace, "fsdp2", FSDP2)
    assert_same_training(folder, one_process)
    # The optimiser's states were shared out, so this was FSDP.
    parts = {path.name for path in (folder / "checkpoint-4" / "optimizer_0").iterdir()}
    assert {"__0_0.distcp", "__1_0.distcp"} <= parts
    assert json.loads((folder / "config.json").read_text()) == json.loads((one_process / "config.json").read_text())
    code = {path.name for path in folder.glob("*.py")}
    assert code == {path.name for path in one_process.glob("*.py")}
    assert type(AutoModelForPreTraining.from_pretrained(folder)).__name__ == "PixCLIPForPreTraining"


def train_in_bf16(folder):
    options = {"bf16": True, "max_steps": 2, "learning_rate": 1e-4, "optim": "sgd", "ddp_backend": "gloo"}
    model = objective_model("fg-clip-stage2", logit_scale_init_value=4.59)
    trainer = make_trainer(folder, model, batch_size=2, regions=2, **options, **SHARDED)
    # The second call finds it done.
    autocast_under_fsdp(trainer)
    autocast_under_fsdp(trainer)
    inside = []
    linear = next(module for module in trainer.model.vision_model.modules() if isinstance(module, torch.nn.Linear))
    linear.register_forward_hook(lambda module, inputs, outputs: inside.append(outputs.dtype))
    trainer.train()
    assert all(hasattr(weight, "device_mesh") for weight in trainer.model.parameters())
    assert {*inside} == {torch.bfloat16}
    batch = ragged_batch([1, 2])
    boxes = batch["region_boxes"]
    boxes[:, 0], boxes[:, 2] = 0.8966, 0.9003
    logs = {
        name: log.full_tensor() for name, log in trainer.model.named_parameters() if name.startswith("logit_scale")
    }
    with torch.no_grad():
        outputs = trainer.model(**batch)
        embeddings = trainer.model(**batch, return_embeddings=True)
    assert {value.dtype for value in (outputs.loss, *outputs.loss_terms.values())} == {torch.float32}
    assert len(logs) == len(embeddings.scales) == 3
    assert embeddings.skipped["empty_boxes"] == 0 and len(embeddings.pooled_embeds) == len(boxes) == 3
    for name, scale in embeddings.scales.items():
        assert scale.dtype == embeddings.text_embeds.dtype == torch.float32
        torch.testing.assert_close(scale, logs[name].clamp(max=math.log(100)).exp().squeeze(), rtol=1e-6, atol=0)


def test_plain_trainer_keeps_boxes_scales_and_losses_exact_under_fsdp2_in_bf16(tmp_path):
    run_in_processes(2, train_in_bf16, str(tmp_path))


@pytest.mark.parametrize("name", ["ddp_2cpu", "ddp_8gpu", "fsdp2_8gpu"])
def test_launch_configurations_are_those_of_the_installed_accelerate(name):
    # Unknown keys are an error there.
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.num_processes == int(name.split("_")[-1][0])
    assert config.distributed_type.value == ("FSDP" if name.startswith("fsdp2") else "MULTI_GPU")


def test_fsdp_without_an_accelerator_is_refused(workspace, monkeypatch):
    """accelerate itself would train by DDP, or on one process, without a word."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP was asked for, but accelerate shards on accelerators alone"):
        main([str(workspace / "config.json"), "--output_dir", str(workspace / "refused"), "--use_cpu"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "launcher"), [("ddp", (*ACCELERATE, CONFIGS / "ddp_2cpu.yaml")), ("fsdp2", FSDP2)], ids=["ddp", "fsdp2"]
)
def test_several_processes_go_on_from_a_checkpoint(workspace, one_process, name, launcher):
    """Stopped after the first epoch, whose checkpoint is then the last one, and started again."""
    folder, _ = two_processes(workspace, f"{name}_resumed", launcher, "--save_total_limit", 5)
    # As if it had been killed while it wrote the second checkpoint.
    (folder / "checkpoint-4" / "checkpoint_manifest.json").unlink()
    before = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    folder, run = two_processes(workspace, f"{name}_resumed", launcher, "--save_total_limit", 5)
    assert "checkpoint-4 is incomplete" in run.stderr and "Going on from" in run.stderr
    assert_same_training(folder, one_process)
    for tensor_name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, before[tensor_name]), tensor_name


@pytest.mark.slow
def test_gradient_caching_in_two_processes_trains_as_the_big_batch(workspace, one_process):
    folder, _ = two_processes(
        workspace, "cached", TORCHRUN, "--per_device_train_batch_size", 1, "--contrastive_batch_size", 4
    )
    assert_same_training(folder, one_process, loss=2e-5, weight=1e-5)


@pytest.mark.slow
def test_shards_in_two_processes(workspace):
    """The frozen LLM runs in each step, and a run that stopped in the middle of an epoch goes on to the same end."""
    dataset = RegionJsonlDataset(workspace / "train.jsonl")
    write_region_webdataset(dataset.records, workspace / "shards", dataset.image_root, samples_per_shard=3)
    options = ("--train_file", workspace / "shards" / "*.tar", "--save_steps", 1, "--save_strategy", "steps")
    folder, run = two_processes(workspace, "shards_whole", TORCHRUN, *options)
    assert "The text backbone runs in each step: train_file are shards" in run.stderr
    assert len(losses(folder)) == 4
    two_processes(workspace, "shards_resumed", TORCHRUN, *options, "--save_total_limit", 5)
    again = workspace / "shards_resumed"
    (again / "checkpoint-4" / "checkpoint_manifest.json").unlink()
    two_processes(workspace, "shards_resumed", TORCHRUN, *options, "--save_total_limit", 5)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(tensor, load_file(again / "model.safetensors")[name]), name
    # One process with the same samples a step is in another place.
    run = pretrain(workspace / "config.json", "--output_dir", again, *options)
    assert run.returncode != 0 and "was written with processes 2, now 1" in run.stderr
    assert AutoModel.from_pretrained(again).config.caption_long_weight == 1.0
