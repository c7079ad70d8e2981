# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Torn checkpoints are recognised, and there is a complete one at every moment."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from modeling_pixclip import (
    CheckpointIntegrityCallback,
    checkpoint_damage,
    last_complete_checkpoint,
    read_checkpoint_manifest,
    write_checkpoint_manifest,
)
from modeling_pixclip.checkpoint_integrity import MANIFEST


class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Linear(4, 1)

    def forward(self, x, return_loss=True):
        return {"loss": (self.slope(x) - x.sum(-1, keepdim=True)).square().mean()}


class Vectors(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return {"x": torch.full((4,), index / 40)}


def trainer(folder, *callbacks, **arguments):
    torch.manual_seed(0)
    arguments = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.1} | arguments
    return Trainer(
        Slope(),
        TrainingArguments(str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **arguments),
        train_dataset=Vectors(),
        eval_dataset=Vectors(),
        callbacks=list(callbacks),
    )


def checkpoints(folder):
    return sorted(path.name for path in Path(folder).glob("checkpoint-*"))


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


DAMAGES = {
    "truncated weights": (lambda folder: truncate(folder / "model.safetensors"), "model.safetensors has"),
    "missing optimizer": (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    "half-written state": (lambda folder: truncate(folder / "trainer_state.json"), "trainer_state.json has"),
    "flipped byte": (lambda folder: flip_a_byte(folder / "model.safetensors"), "model.safetensors has the CRC-32"),
    "empty folder": (
        lambda folder: [path.unlink() for path in folder.iterdir()],
        f"it has no {MANIFEST}, so it was not written to its end",
    ),
    "leftover of the manifest": (
        lambda folder: (folder / MANIFEST).rename(folder / f"{MANIFEST}.tmp"),
        f"it has no {MANIFEST}",
    ),
    "damaged manifest": (lambda folder: truncate(folder / MANIFEST), f"{MANIFEST} is damaged"),
    "manifest of nothing": (lambda folder: (folder / MANIFEST).write_text("[]"), "it lists no files"),
    "manifest without sizes": (
        lambda folder: (folder / MANIFEST).write_text('{"format": 1, "files": {"optimizer.pt": {}}}'),
        "a file has no size or no CRC-32",
    ),
    "manifest of the future": (
        lambda folder: (folder / MANIFEST).write_text('{"format": 2, "files": {}}'),
        "has the format 2; this version reads 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_torn_checkpoint_is_passed_over_with_a_message(damage, tmp_path, caplog):
    trainer(tmp_path, CheckpointIntegrityCallback()).train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6") and not caplog.records
    change, reason = DAMAGES[damage]
    change(tmp_path / "checkpoint-6")
    assert reason in checkpoint_damage(tmp_path / "checkpoint-6")
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    message = caplog.records[-1].getMessage()
    assert str(tmp_path / "checkpoint-6") in message and reason in message

    # From the one before, the run comes to the same end, and mends what was torn.
    for file in (tmp_path / "checkpoint-4").iterdir():
        assert file.stat().st_size > 0
    expected = trainer(tmp_path / "whole")
    expected.train()
    resumed = trainer(tmp_path, CheckpointIntegrityCallback())
    resumed.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path))
    assert torch.equal(resumed.model.slope.weight, expected.model.slope.weight)
    assert checkpoint_damage(tmp_path / "checkpoint-6") is None


def test_what_else_lies_in_the_folders_is_no_damage(tmp_path):
    trainer(tmp_path, CheckpointIntegrityCallback()).train()
    (tmp_path / "checkpoint-6" / ".model.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").touch()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-6")


def test_nothing_to_go_on_from(tmp_path, caplog):
    assert last_complete_checkpoint(tmp_path / "absent") is None and not caplog.records
    trainer(tmp_path).train()
    assert last_complete_checkpoint(tmp_path) is None
    assert len(caplog.records) == 3


class Recorder(TrainerCallback):
    """Before and after the manifest: what there is to go on from if the run is killed now."""

    def __init__(self):
        self.seen = []

    def on_save(self, args, state, control, **kwargs):
        last = last_complete_checkpoint(args.output_dir)
        self.seen.append((state.global_step, last and Path(last).name, checkpoints(args.output_dir)))


@pytest.mark.parametrize("limit", [1, 2])
def test_the_last_complete_checkpoint_goes_after_the_next_one_is_complete(limit, tmp_path):
    before, after = Recorder(), Recorder()
    run = trainer(tmp_path, before, CheckpointIntegrityCallback(), after, save_total_limit=limit, max_steps=8)
    run.train()
    assert [last for _, last, _ in before.seen] == [None, "checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert [last for _, last, _ in after.seen] == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]
    assert [len(there) for *_, there in after.seen] == [min(limit, count) for count in (1, 2, 3, 4)]
    assert run.args.save_total_limit == limit


def test_incomplete_and_later_checkpoints_go_first(tmp_path):
    trainer(tmp_path, CheckpointIntegrityCallback(), max_steps=4).train()
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-100").mkdir()
    write_checkpoint_manifest(tmp_path / "checkpoint-100")
    (tmp_path / "checkpoint-100-copy").mkdir()
    run = trainer(tmp_path, CheckpointIntegrityCallback(), save_total_limit=3)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert checkpoints(tmp_path) == ["checkpoint-100-copy", "checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_what_is_deleted_is_said(tmp_path, caplog):
    trainer(tmp_path, CheckpointIntegrityCallback(), max_steps=4).train()
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-100").mkdir()
    write_checkpoint_manifest(tmp_path / "checkpoint-100")
    trainer(tmp_path, CheckpointIntegrityCallback(), save_total_limit=1).train()
    messages = "\n".join(record.getMessage() for record in caplog.records)
    assert "checkpoint-3 is incomplete and is deleted (save_total_limit is 1)" in messages
    assert "checkpoint-100 is deleted, for the run is at step 2" in messages
    assert checkpoints(tmp_path) == ["checkpoint-6"]


def test_checkpoints_of_a_plain_trainer_stay(tmp_path):
    trainer(tmp_path).train()
    run = trainer(tmp_path, CheckpointIntegrityCallback(), save_total_limit=2, max_steps=12)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    plain = ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert checkpoints(tmp_path) == sorted([*plain, "checkpoint-10", "checkpoint-12"])
    for name in plain:
        assert (tmp_path / name / "model.safetensors").is_file()


def test_a_deletion_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    run = trainer(tmp_path, CheckpointIntegrityCallback(), save_total_limit=1, max_steps=4)

    def killed(folder):
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        run.train()
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert "was not written to its end" in checkpoint_damage(tmp_path / "checkpoint-2")
    trainer(tmp_path, CheckpointIntegrityCallback(), save_total_limit=1).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-4")
    )
    assert checkpoints(tmp_path) == ["checkpoint-6"]


def test_the_best_checkpoint_stays(tmp_path):
    class Worse(TrainerCallback):
        """The loss is best at step 2."""

        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step > 2:
                nn.init.constant_(model.slope.weight, float(state.global_step))

    run = trainer(
        tmp_path,
        Worse(),
        CheckpointIntegrityCallback(),
        save_total_limit=1,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
    )
    run.train()
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-6"]
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert torch.equal(run.model.slope.weight, best["slope.weight"])


def test_the_manifest_covers_what_other_callbacks_write(tmp_path):
    class Writer(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "average").mkdir()
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "average" / "weights").write_text("1")

    trainer(tmp_path, Writer(), CheckpointIntegrityCallback()).train()
    manifest = read_checkpoint_manifest(tmp_path / "checkpoint-6")
    assert manifest["processes"] == 1
    assert {"average/weights", "model.safetensors", "optimizer.pt", "rng_state.pth"} <= manifest["files"].keys()
    (tmp_path / "checkpoint-6" / "average" / "weights").write_text("2")
    assert "average/weights has the CRC-32" in checkpoint_damage(tmp_path / "checkpoint-6")


def test_files_are_on_the_disk_before_the_manifest_appears(tmp_path, monkeypatch):
    (tmp_path / "weights").write_bytes(bytes(100))
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda file: (events.append(Path(os.readlink(f"/proc/self/fd/{file}"))), fsync(file))
    )
    monkeypatch.setattr(Path, "replace", lambda self, target: (events.append("replace"), replace(self, target)))
    write_checkpoint_manifest(tmp_path)
    before, after = events[: events.index("replace")], events[events.index("replace") + 1 :]
    assert {tmp_path / "weights", tmp_path, tmp_path.parent, tmp_path / f"{MANIFEST}.tmp"} == set(before)
    assert after == [tmp_path]


def test_a_run_without_a_limit_keeps_all(tmp_path):
    run = trainer(tmp_path, CheckpointIntegrityCallback())
    run.train()
    assert checkpoints(tmp_path) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert json.loads((tmp_path / "checkpoint-6" / MANIFEST).read_text())["format"] == 1


def test_the_limit_survives_a_run_that_fails(tmp_path):
    class Fail(TrainerCallback):
        failing = True

        def on_step_end(self, args, state, control, **kwargs):
            if self.failing and state.global_step == 3:
                raise RuntimeError("power")

    fail = Fail()
    run = trainer(tmp_path, CheckpointIntegrityCallback(), fail, save_total_limit=1)
    with pytest.raises(RuntimeError, match="power"):
        run.train()
    fail.failing = False
    run.train(resume_from_checkpoint=last_complete_checkpoint(tmp_path))
    assert checkpoints(tmp_path) == ["checkpoint-6"] and run.args.save_total_limit == 1


def test_a_limit_that_is_taken_back_deletes_nothing(tmp_path):
    """A limit is that of one run, of one that failed too if other arguments come after it."""
    integrity = CheckpointIntegrityCallback()
    run = trainer(tmp_path / "a", integrity, save_total_limit=1)
    run.train()
    run.args.save_total_limit = None
    run.train()
    assert checkpoints(tmp_path / "a") == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    assert run.args.save_total_limit is None

    class Fail(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        trainer(tmp_path / "b", integrity, Fail(), save_total_limit=1).train()
    trainer(tmp_path / "c", integrity).train()
    assert checkpoints(tmp_path / "c") == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


def test_without_torch_distributed(tmp_path, monkeypatch):
    """A PyTorch that was built without it has `is_available` alone."""
    integrity = CheckpointIntegrityCallback()
    run = trainer(tmp_path, integrity, max_steps=2)
    run.train()
    (tmp_path / "checkpoint-2" / MANIFEST).unlink()
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    for name in ("is_initialized", "barrier", "get_rank", "get_world_size"):
        monkeypatch.delattr(torch.distributed, name)
    assert last_complete_checkpoint(tmp_path) is None
    integrity.on_save(run.args, run.state, run.control)
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
