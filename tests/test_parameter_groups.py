# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Groups of parameters, and the plain Trainer's optimiser over them on one process, under DDP and under FSDP2."""

import pytest
import torch
from tiny_models import EVA02, backbone_config, pixclip_config, text_config, vision_config
from training_for_tests import FSDP2, make_trainer, objective_model, run_in_processes, weights_of
from transformers import AutoConfig

from modeling_pixclip import (
    PixCLIPForPreTraining,
    PixCLIPTextModel,
    PixCLIPVisionModel,
    find_group_parameters,
    get_parameter_groups,
    optimizer_for_trainer,
)


RATES = {"mask_embedding": 3e-3, "vision": 1e-4, "text_backbone": 2e-4, "scales": 5e-4}


def by_parameter(model, groups):
    """Group of each parameter by its name; a parameter in two groups is refused."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in groups:
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = group
    return found


@pytest.mark.parametrize("layer_decay", [None, 0.5])
@pytest.mark.parametrize("backbone", ["llama", "bert", "clip_text"])
def test_every_trainable_parameter_is_in_one_group_with_its_rate(backbone, layer_decay):
    text = {"backbone": backbone, "long_text_projection": True}
    fields = {"hard_negative_weight": 0.5, "region_weight": 0.1, "loss_type": "sigmoid"}
    model = PixCLIPForPreTraining(pixclip_config(vision=EVA02, text=text, **fields))
    model.set_text_backbone_trainable("full")
    model.vision_model.post_layernorm.requires_grad_(False)
    found = by_parameter(
        model, get_parameter_groups(model, 1e-3, 0.1, group_learning_rates=RATES, layer_decay=layer_decay)
    )
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    prefixes = {
        "vision_model.embeddings.mask_patch_embedding.": ("mask_embedding", None),
        "vision_model.": ("vision", RATES["vision"]),
        "text_model.backbone.": ("text_backbone", RATES["text_backbone"]),
        "text_model.": ("adapter", 1e-3),
        "visual_projection.": ("adapter", 1e-3),
        "logit_": ("scales", RATES["scales"]),
    }
    tables = ("position_embedding", "class_embedding", "token", "embed_tokens", "word_embeddings", "token_type")
    for name, group in found.items():
        prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
        expected, rate = prefixes[prefix]
        assert group["group"] == expected, name
        if expected == "mask_embedding":
            assert group["lr"] == RATES["mask_embedding"]
        elif layer_decay is None or expected not in ("vision", "text_backbone"):
            assert group["lr"] == rate, name
        else:
            layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
            if layer is not None:
                height = 2 - layer
            else:
                height = 3 if "embed" in name or "pre_layrnorm" in name else 0
            assert group["lr"] == pytest.approx(rate * 0.5**height), name
        one_dimensional = model.get_parameter(name).ndim < 2
        table = any(word in name for word in tables) and "patch" not in name
        assert group["weight_decay"] == (0 if one_dimensional or table else 0.1), name
    # What was named here is what is meant: of each kind there is one.
    decays = {name for name, group in found.items() if group["weight_decay"]}
    assert "vision_model.embeddings.mask_patch_embedding.weight" in decays
    assert not any(part in name for name in decays for part in ("norm", "Norm", "bias", "logit"))


def test_rates_of_the_patch_convolution_and_of_what_never_trained():
    model = PixCLIPForPreTraining(pixclip_config())
    found = by_parameter(model, get_parameter_groups(model, 1e-3, layer_decay=0.5))
    assert found["vision_model.embeddings.mask_patch_embedding.weight"]["lr"] == 1e-3
    assert found["vision_model.embeddings.patch_embedding.weight"]["lr"] == 1e-3 * 0.5**3
    assert not any(name.startswith("text_model.backbone.") for name in found)
    # The first is what the Trainer logs as its learning rate.
    assert get_parameter_groups(model, 1e-3)[0]["group"] == "adapter"


def test_towers_alone_and_lora():
    vision = PixCLIPVisionModel(vision_config())
    found = by_parameter(vision, get_parameter_groups(vision, 1e-3))
    assert {group["group"] for group in found.values()} == {"vision", "mask_embedding"}
    text = PixCLIPTextModel(text_config(backbone_lora={"rank": 2}, backbone_training="lora"))
    found = by_parameter(text, get_parameter_groups(text, 1e-3, 0.1, layer_decay=0.5))
    lora = {name: group for name, group in found.items() if ".lora_" in name}
    assert lora and {group["group"] for group in lora.values()} == {"text_backbone"}
    for name, group in lora.items():
        assert group["lr"] == pytest.approx(1e-3 * (0.5 if ".layers.1." in name else 0.25)), name
        assert group["weight_decay"] == 0.1


def test_parts_of_groups():
    model = PixCLIPForPreTraining(pixclip_config(vision={"num_hidden_layers": 4}))

    def numbers(name):
        names = find_group_parameters(model, name)
        return sorted({int(name.split("layers.")[1].split(".")[0]) for name in names})

    assert numbers("vision.layers.1-2") == [1, 2] and numbers("vision.layers.3") == [3]
    assert numbers("text_backbone.layers.0-1") == [0, 1]
    assert len(find_group_parameters(model, "vision.layers.0")) == 16
    embeddings = find_group_parameters(model, "vision.embeddings")
    assert "vision_model.embeddings.position_embedding.weight" in embeddings
    assert not any("mask_patch" in name for name in embeddings)
    assert embeddings.keys() < find_group_parameters(model, "vision").keys()
    for name in ("visions", "vision.layers", "adapter.layers.0", "vision.layers.a", "vision.encoder"):
        with pytest.raises(ValueError, match=f"no group of parameters '{name}'.*'mask_embedding'"):
            find_group_parameters(model, name)
    for name in ("vision.layers.4", "vision.layers.2-1", "vision.layers.0-4"):
        with pytest.raises(ValueError, match="vision has 4; accepted are numbers from 0 to 3"):
            find_group_parameters(model, name)
    with pytest.raises(ValueError, match="no parameters in 'text_backbone'"):
        find_group_parameters(PixCLIPVisionModel(vision_config()), "text_backbone")


def test_wrong_settings_are_named(caplog):
    model = PixCLIPForPreTraining(pixclip_config())
    with pytest.raises(ValueError, match=r"unknown groups \['visio'\]; accepted are 'adapter'"):
        get_parameter_groups(model, 1e-3, group_learning_rates={"visio": 1e-3})
    with pytest.raises(ValueError, match="rate of 'vision' is 0;.*requires_grad_"):
        get_parameter_groups(model, 1e-3, group_learning_rates={"vision": 0})
    with pytest.raises(ValueError, match="layer_decay 1.5"):
        get_parameter_groups(model, 1e-3, layer_decay=1.5)
    with pytest.raises(ValueError, match="weight_decay is -1"):
        get_parameter_groups(model, 1e-3, -1)
    get_parameter_groups(model, 1e-3, group_learning_rates={"text_backbone": 1e-3})
    assert "['text_backbone'], of which no parameter trains" in caplog.text
    with pytest.raises(ValueError, match="no parameter of the model trains"):
        get_parameter_groups(model.requires_grad_(False), 1e-3)


def with_groups(**options):
    return lambda args: optimizer_for_trainer(args, **options)


def test_trainer_steps_with_the_groups(tmp_path):
    """Every parameter moves by its own rate at the first step of Adam, whose size is the rate."""
    model = objective_model(backbone_training="full")
    before = weights_of(model)
    trainer = make_trainer(
        tmp_path,
        model,
        max_steps=1,
        max_grad_norm=0,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        optimizer=with_groups(group_learning_rates=RATES),
    )
    trainer.train()
    assert len(trainer.optimizer.param_groups) > 5
    rates = {name: group["lr"] for name, group in by_parameter(model, trainer.optimizer.param_groups).items()}
    assert set(rates.values()) == {1e-3, *RATES.values()}
    for name, weight in weights_of(model).items():
        moved = float((weight - before[name]).abs().max())
        # A bias of the keys shifts all scores alike: its gradient is rounding, near Adam's epsilon.
        assert moved < 1.01 * rates[name] and (moved > 0.95 * rates[name] or name.endswith("k_proj.bias")), name


def test_schedule_multiplies_every_rate_and_a_resumed_run_ends_bit_equal(tmp_path):
    options = {"optimizer": with_groups(group_learning_rates=RATES, layer_decay=0.5)}
    options |= {"max_steps": 4, "warmup_steps": 2}
    whole = make_trainer(tmp_path / "whole", objective_model(), **options)
    whole.train()
    make_trainer(tmp_path / "part", objective_model(), save_strategy="steps", save_steps=2, **options).train()
    resumed = make_trainer(tmp_path / "part", objective_model(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-2"))
    for name, weight in weights_of(whole.model).items():
        assert torch.equal(weight, resumed.model.get_parameter(name)), name
    groups = whole.optimizer.param_groups
    assert all(group["lr"] == 0 and group["initial_lr"] > 0 for group in groups)
    assert len({group["initial_lr"] for group in groups}) >= 8


def test_model_init_makes_new_groups_for_each_model(tmp_path):
    trainer = make_trainer(
        tmp_path,
        None,
        max_steps=1,
        model_init=objective_model_for_init,
        optimizer=with_groups(layer_decay=0.5),
    )
    trainer.train()
    assert by_parameter(trainer.model, trainer.optimizer.param_groups)


def objective_model_for_init(trial=None):
    return objective_model()


def test_an_optimiser_that_makes_groups_of_its_own_is_refused(tmp_path):
    trainer = make_trainer(
        tmp_path,
        objective_model(),
        optim="galore_adamw",
        optim_target_modules=["q_proj"],
        optimizer=with_groups(),
    )
    with pytest.raises((ValueError, ImportError), match="makes groups of its own|galore"):
        trainer.train()


def train_distributed(folder, fsdp):
    for resume in (False, True):
        train_once_distributed(folder, fsdp, resume)


def train_once_distributed(folder, fsdp, resume):
    trainer = make_trainer(
        folder,
        objective_model(),
        batch_size=2,
        max_steps=3,
        adam_epsilon=1e-3,
        save_strategy="steps",
        save_steps=2,
        optimizer=with_groups(group_learning_rates=RATES, layer_decay=0.5),
        **(FSDP2 if fsdp else {}),
    )
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-2" if resume else None)
    weights = {}
    for name, weight in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
        weights[name] = weight.full_tensor() if hasattr(weight, "full_tensor") else weight.detach()
    assert any(hasattr(weight, "device_mesh") for weight in trainer.model.parameters()) == fsdp
    rates = sorted({(group["group"], group["initial_lr"]) for group in trainer.optimizer.param_groups})
    torch.save((weights, rates), f"{folder}/rank{trainer.args.process_index}{'-resumed' * resume}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_train_as_one(fsdp, tmp_path):
    one = make_trainer(
        tmp_path / "one",
        objective_model(),
        max_steps=3,
        adam_epsilon=1e-3,
        optimizer=with_groups(group_learning_rates=RATES, layer_decay=0.5),
    )
    one.train()
    run_in_processes(2, train_distributed, str(tmp_path), fsdp)
    parts = [torch.load(tmp_path / f"rank{rank}{kind}.pt") for rank in range(2) for kind in ("", "-resumed")]
    for name, expected in weights_of(one.model).items():
        for weights, _ in parts:
            torch.testing.assert_close(weights[name], expected, atol=2e-6, rtol=1e-4, msg=name)
            assert torch.equal(weights[name], parts[0][0][name]), name
    assert all(rates == parts[0][1] and len(rates) > 8 for _, rates in parts)


def test_config_of_other_backbones_is_not_needed():
    """Blocks are found by the names of parameters."""
    config = backbone_config("bert", num_hidden_layers=3)
    assert isinstance(config, type(AutoConfig.for_model("bert")))
    model = PixCLIPTextModel(text_config(config))
    model.set_backbone_trainable("full")
    assert len({group["lr"] for group in get_parameter_groups(model, 1.0, layer_decay=0.5)}) == 5
