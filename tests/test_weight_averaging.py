# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Moving averages of weights under the plain Trainer: against their definition, saved, resumed and evaluated."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_for_tests import FSDP2, make_trainer, objective_model, ragged_batch, run_in_processes, weights_of
from transformers import TrainerCallback

from modeling_pixclip import (
    CheckpointIntegrityCallback,
    FreezingSchedule,
    PixCLIPForPreTraining,
    WeightAveragingCallback,
    checkpoint_damage,
    load_weight_averages,
    read_checkpoint_manifest,
)
from modeling_pixclip.weight_averaging import _put_in_place


class Watch(TrainerCallback):
    def __init__(self):
        self.weights = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.weights = [weights_of(model)]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(weights_of(model))


def averaged_trainer(folder, *, model=None, callbacks=(), resume_from=None, **arguments):
    names = ("decay", "start_step", "update_every", "evaluate")
    options = {name: arguments.pop(name) for name in names if name in arguments}
    averaging = WeightAveragingCallback(**{"decay": 0.5, **options}, resume_from=resume_from)
    arguments = {"max_steps": 6, "lr_scheduler_type": "constant", **arguments}
    trainer = make_trainer(folder, model or objective_model(), callbacks=[averaging, *callbacks], **arguments)
    return trainer, averaging


@pytest.mark.parametrize("start_step, update_every", [(0, 1), (2, 1), (1, 2)])
def test_averages_equal_their_definition(start_step, update_every, tmp_path):
    watch = Watch()
    model = objective_model(backbone_training="frozen")
    trainer, averaging = averaged_trainer(
        tmp_path, model=model, callbacks=[watch], start_step=start_step, update_every=update_every, decay=0.75
    )
    trainer.train()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert averaging.averages.keys() == trained and not any("backbone" in name for name in trained)
    for name in trained:
        expected = watch.weights[start_step][name].double()
        for weights in watch.weights[start_step + update_every :: update_every]:
            expected = 0.75 * expected + 0.25 * weights[name].double()
        torch.testing.assert_close(averaging.averages[name].double(), expected, atol=1e-6, rtol=1e-5, msg=name)
        # Training goes its own way.
        assert torch.equal(model.get_parameter(name), watch.weights[-1][name])


def test_averages_of_bfloat16_weights_are_float32(tmp_path):
    trainer, averaging = averaged_trainer(tmp_path, model=objective_model().to(torch.bfloat16), max_steps=3)
    trainer.train()
    assert {average.dtype for average in averaging.averages.values()} == {torch.float32}
    name = "visual_projection.weight"
    assert not torch.equal(averaging.averages[name], averaging.averages[name].bfloat16().float())
    saved = PixCLIPForPreTraining.from_pretrained(tmp_path / "ema").get_parameter(name)
    assert torch.equal(saved, averaging.averages[name].bfloat16())


def test_the_averaged_model_is_saved_at_the_end(tmp_path):
    trainer, averaging = averaged_trainer(tmp_path)
    # What an earlier run left is replaced as a whole.
    (tmp_path / "ema").mkdir()
    (tmp_path / "ema" / "left-over").touch()
    trainer.train()
    loaded = PixCLIPForPreTraining.from_pretrained(tmp_path / "ema")
    for name, weight in loaded.named_parameters():
        assert torch.equal(weight, averaging.averages[name]), name
    assert not (tmp_path / "ema" / "left-over").exists() and not (tmp_path / "ema.tmp").exists()
    assert not torch.equal(trainer.model.visual_projection.weight, loaded.visual_projection.weight)


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("start_step", [0, 2])
def test_resumed_averages_are_bit_equal(step, start_step, tmp_path):
    schedule = {"vision": (0, 3)}
    options = {"start_step": start_step, "update_every": 2}
    whole, expected = averaged_trainer(tmp_path / "whole", callbacks=[FreezingSchedule(schedule)], **options)
    whole.train()
    # The order of the two callbacks does not matter.
    part, _ = averaged_trainer(tmp_path / "part", save_strategy="steps", save_steps=step, **options)
    part.callback_handler.callbacks.insert(0, FreezingSchedule(schedule))
    part.train()
    assert (tmp_path / "part" / f"checkpoint-{step}" / "weight_averages.safetensors").exists() == (step >= start_step)
    resumed, found = averaged_trainer(tmp_path / "part", callbacks=[FreezingSchedule(schedule)], **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / f"checkpoint-{step}"))
    assert found.averages.keys() == expected.averages.keys()
    for name, average in expected.averages.items():
        assert torch.equal(found.averages[name], average), name


def test_there_is_an_averaged_model_while_the_next_one_is_put_in_its_place(tmp_path, monkeypatch):
    averaging = WeightAveragingCallback(decay=0.5)
    trainer = make_trainer(tmp_path, objective_model(), callbacks=[averaging], max_steps=1)
    trainer.train()
    first = (tmp_path / "ema" / "model.safetensors").read_bytes()
    seen = []

    def watched(function):
        def watch(*arguments, **options):
            seen.append((tmp_path / "ema" / "model.safetensors").read_bytes())
            result = function(*arguments, **options)
            seen.append((tmp_path / "ema" / "model.safetensors").read_bytes())
            return result

        return watch

    monkeypatch.setattr(shutil, "rmtree", watched(shutil.rmtree))
    monkeypatch.setattr(Path, "replace", watched(Path.replace))
    trainer.args.max_steps = 2
    trainer.train()
    assert seen[0] == first and seen[-1] != first and set(seen) == {seen[0], seen[-1]}


def test_the_averaged_model_is_put_in_place_where_folders_cannot_be_exchanged(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "other")
    made, folder = tmp_path / "made", tmp_path / "ema"
    for path in (made, folder, tmp_path / "ema.old"):
        path.mkdir()
        (path / path.name).touch()
    _put_in_place(made, folder)
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["ema", "ema/made"]


def test_checkpoints_hold_raw_weights_and_averages_and_a_manifest_of_both(tmp_path):
    watch = Watch()
    callbacks = [watch, CheckpointIntegrityCallback()]
    trainer, _ = averaged_trainer(
        tmp_path, callbacks=callbacks, save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=3
    )
    trainer.train()
    checkpoint = tmp_path / "checkpoint-3"
    assert checkpoint_damage(checkpoint) is None
    assert "weight_averages.safetensors" in read_checkpoint_manifest(checkpoint)["files"]
    assert not list(checkpoint.glob("*.tmp"))
    model = PixCLIPForPreTraining.from_pretrained(checkpoint)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, watch.weights[3][name]), name
    averages = load_file(checkpoint / "weight_averages.safetensors")
    load_weight_averages(model, checkpoint)
    for name, weight in model.named_parameters():
        assert torch.equal(weight, averages[name]), name
        if weight.numel() > 16:
            assert not torch.equal(weight, watch.weights[3][name]), name


@pytest.mark.parametrize("evaluate", [True, False])
def test_evaluation_during_training_uses_the_averages(evaluate, tmp_path):
    trainer, averaging = averaged_trainer(
        tmp_path, evaluate=evaluate, max_steps=3, eval_strategy="steps", eval_steps=3
    )
    # A dictionary of data is evaluated part by part.
    trainer.eval_dataset = {"one": [24, 25], "two": [26, 27]}
    trainer.train()
    logged = {name: value for entry in trainer.state.log_history for name, value in entry.items()}

    def losses():
        with torch.no_grad():
            model = trainer.model.eval()
            return [float(model(**ragged_batch(rows)).loss) for rows in ([24, 25], [26, 27])]

    raw = losses()
    with averaging.applied(trainer.model):
        averaged = losses()
    assert raw == losses() and abs(raw[0] - averaged[0]) > 1e-3
    found = [logged["eval_one_loss"], logged["eval_two_loss"]]
    assert found == pytest.approx(averaged if evaluate else raw, abs=1e-5)
    # After training an evaluation is of the model as it is.
    assert trainer.evaluate({"one": [24, 25]})["eval_one_loss"] == pytest.approx(raw[0], abs=1e-5)


def test_an_error_in_evaluation_leaves_the_weights_as_they_were(tmp_path):
    trainer, averaging = averaged_trainer(tmp_path, max_steps=2)
    averaging.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    for average in averaging.averages.values():
        average.add_(1)
    before = weights_of(trainer.model)
    with pytest.raises(ValueError, match="pixel_values are missing"):
        trainer.model.eval()(input_ids=torch.ones(1, 3, dtype=torch.int64))
    for name, weight in weights_of(trainer.model).items():
        assert torch.equal(weight, before[name]), name


def test_what_does_not_fit_is_named(tmp_path, caplog):
    for options in ({"decay": 1.0}, {"start_step": -1}, {"update_every": 0}):
        with pytest.raises(ValueError, match="accepted are a decay in"):
            WeightAveragingCallback(**options)
    make_trainer(tmp_path, objective_model(), max_steps=2, save_strategy="steps", save_steps=2).train()
    without, _ = averaged_trainer(tmp_path)
    with pytest.raises(ValueError, match="checkpoint-2 has no weight_averages.safetensors.*start_step.*resume_from"):
        without.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    # Averages can begin where the run is resumed.
    late, averaging = averaged_trainer(tmp_path, start_step=2, max_steps=3, save_strategy="steps", save_steps=3)
    late.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert averaging.averages
    # The output folder has a checkpoint of this step, of another run.
    other, _ = averaged_trainer(tmp_path / "other", seed=7, max_steps=3, save_strategy="steps", save_steps=3)
    other.train()
    wrong, _ = averaged_trainer(tmp_path / "other")
    with pytest.raises(ValueError, match="are not those of the weights that are resumed"):
        wrong.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    right, averaging = averaged_trainer(tmp_path / "other", resume_from=str(tmp_path / "checkpoint-3"), max_steps=4)
    right.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    file = tmp_path / "checkpoint-3" / "weight_averages.safetensors"
    averages = load_file(file)
    averages["head.weight"] = averages.pop("logit_scale")
    save_file(averages, file)
    differing, _ = averaged_trainer(tmp_path)
    with pytest.raises(ValueError, match=r"only one of the two has \['head.weight', 'logit_scale'\]"):
        differing.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    never, averaging = averaged_trainer(tmp_path / "never", start_step=99, max_steps=1)
    never.train()
    assert "there are no averaged weights: training ended at step 1" in caplog.text
    with pytest.raises(ValueError, match="there are no averaged weights"), averaging.applied(never.model):
        pass
    with pytest.raises(ValueError, match="do not fit the model"):
        load_weight_averages(torch.nn.Linear(1, 1), tmp_path / "checkpoint-3")


def test_a_torn_write_of_averages_is_no_checkpoint(tmp_path):
    trainer, _ = averaged_trainer(
        tmp_path, callbacks=[CheckpointIntegrityCallback()], max_steps=1, save_strategy="steps", save_steps=1
    )
    trainer.train()
    file = tmp_path / "checkpoint-1" / "weight_averages.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "weight_averages.safetensors has" in checkpoint_damage(tmp_path / "checkpoint-1")


def train_distributed(folder, fsdp):
    fields = {"batch_size": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "adam_epsilon": 1e-3}
    trainer, averaging = averaged_trainer(folder, **fields, **(FSDP2 if fsdp else {}))
    if fsdp:
        with pytest.raises(ValueError, match="FSDP or DeepSpeed distribute them"):
            trainer.train()
        return
    trainer.train()
    rank = trainer.args.process_index
    torch.distributed.barrier()
    resumed, found = averaged_trainer(folder, **fields)
    resumed.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    torch.save((averaging.averages, found.averages), f"{folder}/rank{rank}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_average_as_one(fsdp, tmp_path):
    run_in_processes(2, train_distributed, str(tmp_path / "two"), fsdp)
    if fsdp:
        return
    one, averaging = averaged_trainer(tmp_path / "one", batch_size=4, max_steps=4, adam_epsilon=1e-3)
    one.train()
    parts = [averages for rank in range(2) for averages in torch.load(tmp_path / "two" / f"rank{rank}.pt")]
    for name, expected in averaging.averages.items():
        torch.testing.assert_close(parts[0][name], expected, atol=5e-6, rtol=1e-4, msg=name)
        for averages in parts:
            assert torch.equal(averages[name], parts[0][name]), name
    saved = load_file(tmp_path / "two" / "checkpoint-4" / "weight_averages.safetensors")
    assert all(torch.equal(saved[name], average) for name, average in parts[0].items())
    shutil.rmtree(tmp_path / "two")
