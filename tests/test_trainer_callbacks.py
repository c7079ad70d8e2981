# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the plain Trainer logs of the objective, as a real event file of TensorBoard has it."""

import pytest
import torch
from training_for_tests import make_trainer, objective_model, ragged_batch, run_in_processes
from transformers import TrainerCallback

from modeling_pixclip import LossTermsCallback, optimizer_for_trainer


TERMS = {
    "pixclip": ["crop", "global", "local"],
    "fg-clip-stage2": ["caption_long", "caption_short", "hard_negative", "region"],
    "pixclip+fg": ["caption_long", "caption_short", "crop", "global", "hard_negative", "local", "region"],
}


def spoil(trainer):
    """The first region of each batch gets an empty mask."""
    collate = trainer.data_collator

    def collate_spoiled(samples):
        batch = collate(samples)
        batch["mask_values"][:1] = -0.5 / 0.26
        return batch

    trainer.data_collator = collate_spoiled
    return trainer


def logged_trainer(folder, preset="pixclip", **arguments):
    trainer = make_trainer(folder, objective_model(preset), **arguments)
    LossTermsCallback().add_to(trainer)
    return trainer


class SeenTerms(TrainerCallback):
    """The terms of every batch, as the model gives them in training."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        model.register_forward_hook(
            lambda module, args, outputs: self.seen.append(outputs) if module.training else None
        )


def train_entries(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def test_tensorboard_gets_terms_rates_and_metrics(tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = logged_trainer(
        tmp_path,
        "pixclip+fg",
        report_to="tensorboard",
        max_steps=4,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        compute_metrics=lambda prediction: {
            "cosine": float((prediction.predictions[0] * prediction.predictions[1]).sum(-1).mean())
        },
        optimizer=lambda args: optimizer_for_trainer(args, group_learning_rates={"vision": 1e-4}, layer_decay=0.5),
    )
    spoil(trainer).train()
    events = event_accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    expected = {f"loss_{name}" for name in TERMS["pixclip+fg"]} | {"loss", "skipped_empty_masks"}
    expected |= {
        f"learning_rate_{name}" for name in ("adapter", "vision", "mask_embedding", "text_backbone", "scales")
    }
    tags = set(events.Tags()["scalars"])
    assert {f"train/{name}" for name in expected} <= tags and {"eval/loss", "eval/cosine"} <= tags
    for name in expected:
        points = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        entries = [(entry["step"], pytest.approx(entry[name], rel=1e-6)) for entry in train_entries(trainer)]
        assert points == entries and len(points) == 2, name
    # Of the step itself, and of the highest layer.
    rates = [event.value for event in events.Scalars("train/learning_rate_vision")]
    assert rates == pytest.approx([1e-4 * 0.75, 1e-4 * 0.25])
    assert [event.value for event in events.Scalars("train/learning_rate_adapter")] == pytest.approx([7.5e-4, 2.5e-4])


def test_means_over_batches_since_the_last_log(tmp_path):
    """Over accumulation too; a batch without pairs for a term is not in its mean."""
    watch = SeenTerms()
    trainer = logged_trainer(
        tmp_path,
        "pixclip+fg",
        batch_size=1,
        samples=24,
        max_steps=6,
        logging_steps=2,
        gradient_accumulation_steps=2,
        callbacks=[watch],
    )
    spoil(trainer).train()
    entries = train_entries(trainer)
    assert len(entries) == 3 and len(watch.seen) == 12
    missing = 0
    for number, entry in enumerate(entries):
        outputs = watch.seen[4 * number : 4 * number + 4]
        for name in TERMS["pixclip+fg"]:
            values = [float(output.loss_terms[name]) for output in outputs if name in output.loss_terms]
            missing += len(values) < 4
            assert (f"loss_{name}" in entry) == bool(values)
            if values:
                assert entry[f"loss_{name}"] == pytest.approx(sum(values) / len(values), rel=1e-5), name
        skipped = sum(output.skipped.get("empty_masks", 0) for output in outputs)
        assert entry["skipped_empty_masks"] == skipped
    assert missing and sum(entry["skipped_empty_masks"] for entry in entries) > 3
    assert not any(name.startswith("learning_rate_") for entry in entries for name in entry)


def test_a_second_run_starts_anew(tmp_path):
    class Abort(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    watch = SeenTerms()
    trainer = logged_trainer(tmp_path, callbacks=[Abort()], max_steps=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Abort)
    trainer.add_callback(watch)
    trainer.train()
    for entry, outputs in zip(train_entries(trainer), watch.seen, strict=True):
        assert entry["loss_global"] == pytest.approx(float(outputs.loss_terms["global"]), rel=1e-5)


COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.mark.parametrize("wrapping", [{"bf16": True}, pytest.param(COMPILED, marks=pytest.mark.slow)])
def test_wrapped_forward(wrapping, tmp_path):
    if "torch_compile" in wrapping:
        torch._dynamo.reset()
    trainer = logged_trainer(tmp_path, max_steps=3, regions=2, **wrapping)
    trainer.train()
    trainer.train()
    for entry in train_entries(trainer):
        expected = entry["loss_global"] + entry["loss_crop"] + entry["loss_local"]
        assert entry["loss"] == pytest.approx(expected, rel=2e-3)
    assert len(train_entries(trainer)) == 3


def test_terms_that_are_added_by_hand(tmp_path):
    trainer = make_trainer(tmp_path, objective_model(), max_steps=1)
    callback = LossTermsCallback()
    callback.add_to(trainer)
    trainer.add_callback(AddsTerm(callback))
    trainer.train()
    assert train_entries(trainer)[0]["loss_own"] == 3.0 and train_entries(trainer)[0]["skipped_own"] == 4


class AddsTerm(TrainerCallback):
    def __init__(self, callback):
        self.callback = callback

    def on_step_end(self, args, state, control, **kwargs):
        self.callback.add({"own": torch.tensor(2.0)})
        self.callback.add({"own": torch.tensor(4.0)}, {"own": 4})


def train_distributed(folder):
    trainer = spoil(logged_trainer(folder, batch_size=1, max_steps=6, logging_steps=1))
    trainer.train()
    torch.save(trainer.state.log_history, f"{folder}/rank{trainer.args.process_index}.pt")


@pytest.mark.slow
def test_two_processes_log_alike(tmp_path):
    run_in_processes(2, train_distributed, str(tmp_path))
    first, second = ([e for e in torch.load(tmp_path / f"rank{rank}.pt") if "loss" in e] for rank in range(2))
    assert first == second and len(first) == 6
    for entry in first:
        terms = sum(entry.get(f"loss_{name}", 0.0) for name in TERMS["pixclip"])
        assert entry["loss"] == pytest.approx(terms, abs=2e-3)
    # One region of each process whose image has regions.
    assert {1, 2} <= {entry["skipped_empty_masks"] for entry in first} <= {0, 1, 2}


def test_batches_of_the_tests_are_ragged():
    counts = {len(ragged_batch([sample])["region_image_index"]) for sample in range(3)}
    assert counts == {0, 1, 2}
