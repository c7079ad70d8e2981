# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A real training run, killed by SIGKILL and started again by the same command, ends as one that was left alone."""

import contextlib
import json
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_pretraining import ENVIRONMENT, ROOT, command, losses, make_workspace, pretrain
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from modeling_pixclip import (
    checkpoint_damage,
    last_complete_checkpoint,
    read_checkpoint_manifest,
    write_region_webdataset,
)
from processing_pixclip import RegionJsonlDataset


MANIFEST = "checkpoint_manifest.json"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
# The configuration for GPUs, by the wrapper with which accelerate shards on CPUs too.
FSDP2 = ("-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", 2, "--mixed_precision", "no")
FSDP2 += ("--config_file", ROOT / "examples/configs/fsdp2_8gpu.yaml", Path(__file__).with_name("fsdp_on_cpu.py"))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """All terms of both papers, with dropout, augmentation, random whole images, averaged weights and evaluations."""
    folder = make_workspace(
        tmp_path_factory.mktemp("killed"),
        rich=True,
        preset="pixclip+fg",
        whole_image_share=0.3,
        max_regions_per_image=3,
        max_hard_negatives=1,
        augment_crop_scale=0.7,
        ema_decay=0.9,
        eval_strategy="steps",
        eval_steps=5,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=2,
        per_device_train_batch_size=2,
        report_to="none",
    )
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["attention_dropout"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    # Averages need whole weights.
    (folder / "sharded.json").write_text(json.dumps({**config, "ema_decay": None}))
    dataset = RegionJsonlDataset(folder / "train.jsonl")
    write_region_webdataset(dataset.records, folder / "shards", dataset.image_root, samples_per_shard=2)
    return folder


def processes_of(folder):
    """All live processes whose command line names a run's folder: its launcher, trainers and workers."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        live = process.info["status"] != psutil.STATUS_ZOMBIE
        if live and str(folder) in (process.info["cmdline"] or ()):
            found.append(process)
    return found


def kill_all(launcher):
    """SIGKILL to a launcher and all that it has started, workers first: each has a session of its own."""
    # Nothing starts in the meantime.
    launcher.send_signal(signal.SIGSTOP)
    for process in psutil.Process(launcher.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    launcher.kill()
    launcher.wait()


def run_and_kill(arguments, folder, is_time, launcher=()):
    """Starts the run and kills it when `is_time(new checkpoints)` says so; returns whether it was killed."""
    before = set(folder.glob("checkpoint-*"))
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        process = subprocess.Popen(
            command(*arguments, launcher=launcher), cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log
        )
        while process.poll() is None and not is_time(set(folder.glob("checkpoint-*")) - before):
            # Without a pause, beside one process: a checkpoint is written within milliseconds.
            time.sleep(0.001 if launcher else 0)
        killed = process.poll() is None
        if killed:
            kill_all(process)
    end = time.monotonic() + 60
    while left := processes_of(folder):
        # SIGKILL takes effect when a write to the disk is over.
        assert time.monotonic() < end, f"{left} outlived their launcher"
        time.sleep(0.01)
    return killed


def while_a_checkpoint_is_written(count, delay):
    """Kills a moment after the folder of the `count`-th new checkpoint has appeared, before its manifest."""
    appeared = []

    def is_time(new):
        if not appeared and len(new) >= count and not (max(new, key=number) / MANIFEST).exists():
            appeared.append(time.monotonic())
        return bool(appeared) and time.monotonic() >= appeared[0] + delay

    return is_time


def after_a_checkpoint(delay):
    """Kills some time after a new checkpoint is complete: in a step, an evaluation, or the next checkpoint."""
    complete = []

    def is_time(new):
        if not complete and any((folder / MANIFEST).exists() for folder in new):
            complete.append(time.monotonic())
        return bool(complete) and time.monotonic() >= complete[0] + delay

    return is_time


def after(delay):
    """Kills some time after the start: in the import, the encoding of texts, the loading of a checkpoint."""
    start = time.monotonic()
    return lambda new: time.monotonic() >= start + delay


def number(folder):
    return int(folder.name.split("-")[1])


def torn(folder):
    return [path for path in folder.glob("checkpoint-*") if checkpoint_damage(path) is not None]


def optimizer_state(checkpoint):
    """By parameter; of a sharded checkpoint that of all processes together."""
    file = checkpoint / "optimizer.pt"
    if (checkpoint / "optimizer_0").is_dir():
        file = checkpoint.parent / "whole_optimizer.pt"
        dcp_to_torch_save(checkpoint / "optimizer_0", file)
        return torch.load(file, weights_only=True)["optimizer"]["state"]
    return torch.load(file, weights_only=True)["state"]


def assert_same_end(folder, expected, steps):
    averages = ["ema/model.safetensors"] if (expected / "ema").exists() else []
    for name in ("model.safetensors", *averages):
        weights = load_file(folder / name)
        for key, tensor in load_file(expected / name).items():
            assert torch.equal(weights[key], tensor), f"{name}: {key}"
    one, other = losses(expected), losses(folder)
    assert list(other) == list(range(1, steps + 1))
    for step in one:
        assert one[step] == other[step]
    last = f"checkpoint-{steps}"
    states = [optimizer_state(run / last) for run in (expected, folder)]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        for name, value in state.items():
            assert torch.equal(value, states[1][key][name]), (key, name)
    assert (folder / last / "scheduler.pt").read_bytes() == (expected / last / "scheduler.pt").read_bytes()
    assert (folder / "region_retrieval.json").read_bytes() == (expected / "region_retrieval.json").read_bytes()


def left_alone(workspace, name, *options, launcher=(), config="config.json"):
    """Trains without interruption; returns the folder, and arguments for a run that is killed in another one."""
    arguments = [workspace / config, "--cache_dir", workspace / f"{name}_cache", *options]
    run = pretrain(*arguments, "--output_dir", workspace / f"{name}_left_alone", launcher=launcher, timeout=3000)
    assert run.returncode == 0, run.stderr[-3000:]
    arguments = [workspace / config, "--cache_dir", workspace / f"{name}_cache2", *options]
    return workspace / f"{name}_left_alone", [*arguments, "--output_dir", workspace / f"{name}_killed"]


def test_killed_while_it_writes_a_checkpoint_a_run_ends_as_one_left_alone(workspace):
    expected, arguments = left_alone(workspace, "once", "--num_train_epochs", 3)
    folder = workspace / "once_killed"
    assert run_and_kill(arguments, folder, while_a_checkpoint_is_written(3, 0.0))
    if not torn(folder):
        # The disk was faster; what is torn is then the newest one, of which the end is missing.
        newest = max(folder.glob("checkpoint-*"), key=number)
        (newest / MANIFEST).unlink()
    assert [number(path) for path in torn(folder)] == [6]
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-4")
    run = pretrain(*arguments)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "checkpoint-6 is incomplete and is passed over" in run.stderr
    assert f"Going on from {folder / 'checkpoint-4'}" in run.stderr
    assert_same_end(folder, expected, 9)
    # The torn one was written anew, or has gone with the limit.
    assert not torn(folder) and len(list(folder.glob("checkpoint-*"))) == 2


def kill_again_and_again(folder, arguments, kills, launcher=(), start=12):
    """
    Kills a run at random moments, half of them while a checkpoint is written, and lets it come to its end.

    Returns how often it left a torn checkpoint, and all that it logged.
    """
    draw = random.Random(0)
    found_torn = 0
    for kill in range(kills):
        moments = [
            while_a_checkpoint_is_written(draw.randint(1, 2), draw.choice([0, 0, 0.005, 0.01, 0.02])),
            after_a_checkpoint(draw.uniform(0, 0.5)),
            while_a_checkpoint_is_written(1, draw.uniform(0, 0.03)),
            after(draw.uniform(0.5, start)),
        ]
        complete = last_complete_checkpoint(folder)
        assert run_and_kill(arguments, folder, moments[kill % 4], launcher), f"the run ended before kill {kill}"
        found_torn += bool(torn(folder))
        # What was complete stays until something newer is.
        assert complete is None or number(folder / last_complete_checkpoint(folder)) >= number(folder / complete)
    run = pretrain(*arguments, launcher=launcher, timeout=3000)
    assert run.returncode == 0, run.stderr[-3000:]
    return found_torn, (folder.parent / f"{folder.name}.log").read_text() + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("data", "kills"), [("records", 24), ("shards", 8)])
def test_killed_again_and_again_a_run_ends_as_one_left_alone(workspace, data, kills):
    options = ["--num_train_epochs", 2 + 5 * kills]
    if data == "shards":
        options += ["--train_file", workspace / "shards" / "*.tar", "--shuffle_buffer", 4]
    expected, arguments = left_alone(workspace, data, *options)
    folder = workspace / f"{data}_killed"
    found_torn, log = kill_again_and_again(folder, arguments, kills)
    messages = log.count("is incomplete and is passed over")
    assert found_torn >= kills // 8 and messages >= found_torn // 2
    assert_same_end(folder, expected, 3 * (2 + 5 * kills))
    assert not torn(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "launcher", "config", "kills"),
    [("ddp", TORCHRUN, "config.json", 6), ("fsdp2", FSDP2, "sharded.json", 1)],
    ids=["ddp", "fsdp2"],
)
def test_two_processes_that_are_killed_end_as_two_left_alone(workspace, name, launcher, config, kills):
    epochs = 2 + 5 * kills
    options = ["--num_train_epochs", epochs, "--per_device_train_batch_size", 1]
    expected, arguments = left_alone(workspace, name, *options, launcher=launcher, config=config)
    last = expected / f"checkpoint-{3 * epochs}"
    assert read_checkpoint_manifest(last)["processes"] == 2
    assert (last / "optimizer_0").is_dir() == (name == "fsdp2")
    folder = workspace / f"{name}_killed"
    found_torn, log = kill_again_and_again(folder, arguments, kills, launcher, start=25)
    # One process tells of it.
    assert found_torn and 1 <= log.count("is incomplete and is passed over") <= found_torn
    assert log.count("Going on from") >= kills // 2
    assert_same_end(folder, expected, 3 * epochs)
    assert not torn(folder)
