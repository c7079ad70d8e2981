# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Freezing and unfreezing by step under the plain Trainer, on one process and on two."""

import pytest
import torch
from training_for_tests import FSDP2, make_trainer, objective_model, run_in_processes, weights_of
from transformers import TrainerCallback

from modeling_pixclip import FreezingSchedule, find_group_parameters


SCHEDULE = {
    "vision": (0, 2),
    "text_backbone.layers.0": (1, 3),
    # As JSON has it.
    "adapter": [4, None],
}


class Watch(TrainerCallback):
    """Weights before the first step and after each, and gradients as the optimiser gets them."""

    def __init__(self):
        self.weights, self.norms = [], []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = [weights_of(model)]

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))


def frozen_at(model, step):
    """Names that the schedule freezes at a step, written out."""
    names = set()
    for name, (first, end) in SCHEDULE.items():
        if first <= step and (end is None or step < end):
            names |= find_group_parameters(model, name).keys()
    return names


def scheduled_trainer(folder, *callbacks, schedule=SCHEDULE, **arguments):
    arguments = {"max_steps": 6, "lr_scheduler_type": "constant", "weight_decay": 0.1, **arguments}
    callbacks = [FreezingSchedule(schedule), *callbacks] if schedule else callbacks
    return make_trainer(folder, objective_model(), callbacks=callbacks, **arguments)


def test_frozen_parameters_stay_and_others_move(tmp_path):
    watch = Watch()
    trainer = scheduled_trainer(tmp_path, watch)
    trainer.train()
    seen = set()
    for step, (before, after) in enumerate(zip(watch.weights, watch.weights[1:])):
        frozen = frozen_at(trainer.model, step)
        seen.add(len(frozen))
        for name, weight in after.items():
            # Also those with momentum of the steps before.
            assert torch.equal(weight, before[name]) == (name in frozen), (step, name)
    assert len(seen) == 5 and len(watch.weights) == 7
    assert all(weight.requires_grad for weight in trainer.model.parameters())
    states = trainer.optimizer.state
    steps = {name: int(states[weight]["step"]) for name, weight in trainer.model.named_parameters()}
    assert steps["vision_model.post_layernorm.weight"] == 4 and steps["logit_scale"] == 6
    assert steps["text_model.backbone.layers.0.mlp.up_proj.weight"] == 4 and steps["visual_projection.weight"] == 4


def test_clipping_does_not_count_what_is_frozen(tmp_path):
    """A schedule for all steps equals what was frozen before the Trainer was made."""
    whole = {"vision": (0, None), "text_backbone": (0, None)}
    scheduled = scheduled_trainer(tmp_path / "a", schedule=whole, max_grad_norm=0.05)
    scheduled.train()
    before = scheduled_trainer(tmp_path / "b", schedule=None, max_grad_norm=0.05)
    for name in whole:
        for weight in find_group_parameters(before.model, name).values():
            weight.requires_grad_(False)
    before.train()
    for name, weight in weights_of(before.model).items():
        assert torch.equal(scheduled.model.get_parameter(name), weight), name
    norms = [[entry["grad_norm"] for entry in trainer.state.log_history[:-1]] for trainer in (scheduled, before)]
    assert norms[0] == norms[1] and min(norms[0]) > 0.05


@pytest.mark.parametrize("step", [1, 2, 4])
def test_resumed_run_ends_bit_equal(step, tmp_path):
    whole = scheduled_trainer(tmp_path / "whole")
    whole.train()
    scheduled_trainer(tmp_path / "part", save_strategy="steps", save_steps=step).train()
    resumed = scheduled_trainer(tmp_path / "part")
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{step}"))
    for name, weight in weights_of(whole.model).items():
        assert torch.equal(resumed.model.get_parameter(name), weight), name


def test_gradient_accumulation_and_checkpointing(tmp_path):
    runs = []
    for name, fields in {"a": {}, "b": {"gradient_checkpointing": True}}.items():
        watch = Watch()
        scheduled_trainer(tmp_path / name, watch, batch_size=2, gradient_accumulation_steps=2, **fields).train()
        runs.append(watch.weights)
    for step, (before, after) in enumerate(zip(runs[0], runs[0][1:])):
        frozen = frozen_at(objective_model(), step)
        for name, weight in after.items():
            assert torch.equal(weight, before[name]) == (name in frozen), (step, name)
            torch.testing.assert_close(runs[1][step + 1][name], weight, atol=2e-6, rtol=1e-4)


def test_a_frozen_backbone_runs_without_gradients(tmp_path):
    """While it is frozen the backbone's states hang on no graph: by its own setting, and by the schedule."""

    class States(TrainerCallback):
        def __init__(self):
            self.seen, self.step = {}, None

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            model.text_model.backbone.register_forward_hook(self.look)

        def on_step_begin(self, args, state, control, **kwargs):
            self.step = state.global_step

        def look(self, module, args, outputs):
            # The last of a step: before the first one, texts are packed by trial.
            self.seen[self.step] = (outputs.last_hidden_state.requires_grad, module.training)

    by_schedule, by_setting = States(), States()
    scheduled_trainer(tmp_path, by_schedule, schedule={"text_backbone": (0, 2)}, max_steps=3).train()
    # The schedule keeps dropout and the like, the setting does not.
    assert by_schedule.seen == {0: (False, True), 1: (False, True), 2: (True, True)}
    make_trainer(tmp_path, objective_model(backbone_training="frozen"), callbacks=[by_setting], max_steps=1).train()
    assert by_setting.seen == {0: (False, False)}


def test_wrong_schedules_are_named(tmp_path):
    for steps in ((5, 5), (-1, 3), (0,), 500, ("0", 3), (None, 3)):
        with pytest.raises(ValueError, match="'vision' is frozen for .*accepted are two steps"):
            FreezingSchedule({"vision": steps})

    def train(schedule, backbone_training="full"):
        model = objective_model(backbone_training=backbone_training)
        make_trainer(tmp_path, model, callbacks=[FreezingSchedule(schedule)], max_steps=2).train()

    with pytest.raises(ValueError, match="no group of parameters 'visual'"):
        train({"visual": (0, 1)})
    with pytest.raises(ValueError, match="'text_backbone' is scheduled, but none of its parameters trains"):
        train({"text_backbone": (0, 1)}, "frozen")
    everything = dict.fromkeys(("vision", "mask_embedding", "adapter", "scales"), (1, None))
    with pytest.raises(ValueError, match="at step 1 all parameters that train would be frozen"):
        train(everything, "frozen")


def test_an_aborted_run_leaves_a_schedule_that_can_start_again(tmp_path):
    class Abort(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    trainer = scheduled_trainer(tmp_path / "a", Abort(), schedule={"vision": (0, 1)}, max_steps=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Abort)
    watch = Watch()
    trainer.add_callback(watch)
    trainer.train()
    name = "vision_model.post_layernorm.weight"
    assert torch.equal(watch.weights[0][name], watch.weights[1][name])
    assert not torch.equal(watch.weights[1][name], watch.weights[2][name])


def two_process_options(**options):
    """With an epsilon of Adam that does not blow up the rounding of gradients near zero."""
    return {"max_grad_norm": 0.5, "adam_epsilon": 1e-3, "gradient_accumulation_steps": 2, **options}


def train_alone(folder):
    trainer = scheduled_trainer(folder, batch_size=2, ddp_find_unused_parameters=False, **two_process_options())
    trainer.train()
    assert torch.distributed.get_world_size() == 1 and trainer.model_wrapped is not trainer.model
    torch.save(weights_of(trainer.model), f"{folder}/weights.pt")


def test_one_process_under_ddp(tmp_path):
    """`torchrun --nproc_per_node 1`: DDP waits for the gradients of all that it wrapped there too."""
    plain = scheduled_trainer(tmp_path / "plain", batch_size=2, **two_process_options())
    plain.train()
    run_in_processes(1, train_alone, str(tmp_path))
    wrapped = torch.load(tmp_path / "weights.pt")
    for name, expected in weights_of(plain.model).items():
        torch.testing.assert_close(wrapped[name], expected, atol=5e-6, rtol=1e-4, msg=name)


def train_distributed(folder, fsdp):
    trainer = scheduled_trainer(folder, batch_size=1, **two_process_options(**(FSDP2 if fsdp else {})))
    trainer.train()
    weights = {}
    for name, weight in trainer.model.named_parameters():
        weights[name] = weight.full_tensor() if fsdp else weight.detach()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history[:-1]]
    torch.save((weights, norms), f"{folder}/rank{trainer.args.process_index}.pt")


@pytest.mark.parametrize("fsdp", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["ddp", "fsdp2"])
def test_two_processes_train_as_one(fsdp, tmp_path):
    # The batches of two processes at one time are one batch of this one.
    one = scheduled_trainer(tmp_path / "one", batch_size=2, **two_process_options())
    one.train()
    run_in_processes(2, train_distributed, str(tmp_path), fsdp)
    (first, norms), (second, _) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for name, expected in weights_of(one.model).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], expected, atol=5e-6, rtol=1e-4, msg=name)
    assert norms == pytest.approx([entry["grad_norm"] for entry in one.state.log_history[:-1]], rel=1e-3)
