# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The objectives of the presets under the modes of the plain Trainer: bf16, checkpointing, compilation, accumulation."""

import pytest
import torch
from training_for_tests import make_trainer, objective_model, ragged_batch, weights_of
from transformers import TrainerCallback

from modeling_pixclip import LossTermsCallback


PRESETS = ["pixclip", "fg-clip-stage2", "pixclip+fg"]


class Gradients(TrainerCallback):
    """Of every step, before the optimiser takes them; and the names of parameters without one."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(
            {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
        )


def train(folder, preset, model=None, **arguments):
    """Losses and gradients of a few steps of plain gradient descent, over batches with and without regions."""
    watch = Gradients()
    arguments = {"batch_size": 2, "max_steps": 4, "optim": "sgd", "max_grad_norm": 0, "weight_decay": 0.0, **arguments}
    trainer = make_trainer(folder, model or objective_model(preset), callbacks=[watch], **arguments)
    LossTermsCallback().add_to(trainer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, losses, watch.steps


def compare(found, expected, atol, rtol):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.keys() == other.keys()
        largest = max(float(gradient.abs().max()) for gradient in other.values())
        for name, gradient in other.items():
            # The bias of the keys shifts all scores alike: its gradient is the rounding of others.
            scale = max(float(gradient.abs().max()), 0.01 * largest)
            torch.testing.assert_close(one[name], gradient, atol=atol * scale, rtol=rtol, msg=name)


@pytest.mark.parametrize("preset", PRESETS)
def test_bf16(preset, tmp_path):
    _, expected, _ = train(tmp_path, preset, max_steps=2, batch_size=4)
    trainer, losses, gradients = train(tmp_path, preset, max_steps=2, batch_size=4, bf16=True)
    assert losses == pytest.approx(expected, rel=0.05) and losses != expected
    for name, weight in trainer.model.named_parameters():
        # Master weights stay as they are.
        assert weight.dtype == torch.float32 and weight.isfinite().all(), name
    for step in gradients:
        assert step.keys() == dict(trainer.model.named_parameters()).keys()
        assert all(gradient.isfinite().all() for gradient in step.values())


@pytest.mark.parametrize("settings", [None, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_checkpointing_changes_nothing(preset, settings, tmp_path):
    passes = []

    def counted():
        model, calls = objective_model(preset), []
        for layer in (
            model.vision_model.encoder.layers[0].layer_norm1,
            model.text_model.backbone.layers[0].input_layernorm,
        ):
            # Texts are packed by trial in eval mode.
            layer.register_forward_hook(lambda module, args, outputs: calls.append(1) if module.training else None)
        passes.append(calls)
        return model

    _, expected, gradients = train(tmp_path, preset, counted(), max_steps=3)
    fields = {} if settings is None else {"gradient_checkpointing_kwargs": settings}
    _, losses, found = train(tmp_path, preset, counted(), max_steps=3, gradient_checkpointing=True, **fields)
    assert losses == pytest.approx(expected, rel=1e-6)
    compare(found, gradients, atol=1e-5, rtol=1e-4)
    # Again in the backward pass.
    assert len(passes[1]) == 2 * len(passes[0]) > 0


def test_gradient_checkpointing_over_a_frozen_backbone_and_vision_embeddings(tmp_path):
    """Nothing below the first block asks for a gradient: the kind that the Trainer uses must not lose those above."""

    def model():
        model = objective_model("pixclip", backbone_training="frozen")
        model.vision_model.embeddings.requires_grad_(False)
        model.vision_model.pre_layrnorm.requires_grad_(False)
        return model

    _, expected, gradients = train(tmp_path, "pixclip", model(), max_steps=2, batch_size=4)
    _, losses, found = train(tmp_path, "pixclip", model(), max_steps=2, batch_size=4, gradient_checkpointing=True)
    assert losses == pytest.approx(expected, rel=1e-6)
    compare(found, gradients, atol=1e-5, rtol=1e-4)
    assert float(found[0]["vision_model.encoder.layers.0.mlp.fc1.weight"].abs().max()) > 0


@pytest.mark.parametrize("preset", PRESETS)
def test_gradient_accumulation_is_the_mean_of_its_batches(preset, tmp_path):
    fields = {"max_steps": 2, "lr_scheduler_type": "constant", "gradient_accumulation_steps": 2}
    trainer, losses, found = train(tmp_path, preset, **fields)
    batches = iter(trainer.get_train_dataloader())
    model = objective_model(preset)
    for loss, gradients in zip(losses, found):
        parts = []
        model.zero_grad()
        for _ in range(2):
            part = model(**next(batches)).loss
            (part / 2).backward()
            parts.append(float(part.detach()))
        assert loss == pytest.approx(sum(parts) / 2, rel=1e-5)
        compare([gradients], [{n: w.grad for n, w in model.named_parameters() if w.grad is not None}], 1e-5, 1e-4)
        with torch.no_grad():
            for weight in model.parameters():
                weight -= 1e-3 * weight.grad


@pytest.mark.parametrize("preset", PRESETS)
def test_batches_without_regions_train(preset, tmp_path):
    model = objective_model(preset)
    before = weights_of(model)
    trainer, losses, gradients = train(tmp_path, preset, model, max_steps=2, regions=0)
    assert all(loss == loss for loss in losses)
    for step in gradients:
        assert all(gradient.isfinite().all() for gradient in step.values())
    moved = [name for name, weight in weights_of(model).items() if not torch.equal(weight, before[name])]
    # Captions need no regions.
    assert bool(moved) == (preset != "pixclip")
    entry = trainer.state.log_history[0]
    assert ("loss_caption_long" in entry) == (preset != "pixclip") and "loss_global" not in entry


COMPILED = [
    pytest.param("pixclip", "eager", id="pixclip-eager"),
    pytest.param("pixclip+fg", "aot_eager", id="pixclip+fg-aot_eager", marks=pytest.mark.slow),
    pytest.param("fg-clip-stage2", "eager", id="fg-clip-stage2-eager", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("preset, backend", COMPILED)
def test_torch_compile(preset, backend, tmp_path):
    """Batches of other numbers of regions and texts each, of no region among them."""
    torch._dynamo.reset()
    steps = 2 if preset == "pixclip" else 5
    _, expected, gradients = train(tmp_path, preset, max_steps=steps, batch_size=1)
    fields = {"torch_compile": True, "torch_compile_backend": backend}
    trainer, losses, found = train(tmp_path, preset, max_steps=steps, batch_size=1, **fields)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert losses == pytest.approx(expected, rel=1e-5)
    compare(found, gradients, atol=1e-4, rtol=1e-3)
    counts = {len(batch["region_image_index"]) for batch, _ in zip(trainer.get_train_dataloader(), range(steps))}
    assert len(counts) > 1 and (0 in counts or preset == "pixclip")
    terms = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert any("loss_global" in entry or "loss_region" in entry for entry in terms)


def test_sample_batches_differ_in_every_size():
    shapes = {tuple(len(ragged_batch([sample])[name]) for name in ("input_ids", "mask_values")) for sample in range(6)}
    assert len(shapes) >= 4
