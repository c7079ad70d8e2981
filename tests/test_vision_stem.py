# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A vision tower on a frozen convolutional network: values, what trains, saving, and the parts of the library around it."""

import json
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from test_parameter_groups import by_parameter
from test_remote_code import run_python
from tiny_models import (
    assert_same_weights,
    backbone_config,
    pixclip_config,
    random_images,
    random_masks,
    vision_config,
)
from training_for_tests import make_trainer, objective_model
from transformers import AutoModel, EfficientNetConfig, LlamaModel, ResNetConfig

import modeling_pixclip as pixclip
from modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel, PixCLIPVisionConfig, PixCLIPVisionModel
from modeling_pixclip import PixCLIPVisionModelWithProjection as PixCLIPVisionProjected


EFFICIENTNET = {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "hidden_act": "relu6"}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"}
STEMS = {"efficientnet": (EfficientNetConfig, EFFICIENTNET, 320), "resnet": (ResNetConfig, RESNET, 24)}


def hybrid(stem="efficientnet", **fields):
    config_class, own, channels = STEMS[stem]
    return {"image_size": 64, "patch_size": 32, "stem_config": config_class(**own), "stem_channels": channels} | fields


def part(model, name):
    return next(module for module in model.modules() if type(module).__name__ == f"PixCLIPVision{name}")


@torch.no_grad()
def vivid(model):
    """A stem whose map depends on the image, where EfficientNet's fresh norms are near 0, and a mask that counts."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in part(model, "Stem").state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(std=(2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif tensor.is_floating_point():
            centre = 1.0 if name.endswith(("weight", "var")) else 0.0
            tensor.uniform_(centre - 0.2, centre + 0.2, generator=generator)
    part(model, "Embeddings").mask_patch_embedding.weight.normal_(std=0.05, generator=generator)
    return model.eval()


def tower(stem="efficientnet", **fields):
    return vivid(PixCLIPVisionModel(vision_config(**hybrid(stem, **fields))))


@torch.no_grad()
def run(model, *inputs, output="pooler_output", **keywords):
    return model(*inputs, **keywords)[output]


def assert_frozen(model):
    stem = part(model, "Stem")
    assert not any(module.training for module in stem.modules())
    frozen = {id(parameter) for parameter in stem.parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (id(parameter) not in frozen and ".backbone." not in name), name


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize(("patch", "height", "width"), [(32, 64, 64), (32, 96, 64), (64, 128, 64)])
@torch.no_grad()
def test_tokens_are_the_patch_embedding_of_the_networks_last_map(stem, patch, height, width):
    model, pixels = tower(stem, patch_size=patch, default_mask="none"), random_images(2, height, width)
    network = AutoModel.from_config(STEMS[stem][0](**STEMS[stem][1])).eval()
    network.load_state_dict(part(model, "Stem").network.state_dict())
    maps = run(network, pixels, output="last_hidden_state")
    assert maps.std() > 0.05 and (maps[0] - maps[1]).abs().max() > 0.05
    embeddings = model.embeddings
    expected = torch.nn.functional.conv2d(maps, embeddings.patch_embedding.weight, stride=patch // 32)
    positions = embeddings.interpolated_positions(height // patch, width // patch)
    found = embeddings(pixels)[:, 1:] - positions[1:]
    torch.testing.assert_close(found, expected.flatten(2).mT, rtol=1e-4, atol=1e-5)
    states = run(model, pixels, output_hidden_states=True, output="hidden_states")
    assert [state.shape for state in states] == [(2, len(positions), 32)] * 3


def test_the_stem_runs_once_an_image_and_masks_change_the_output():
    model, seen = tower(), []
    part(model, "Stem").network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    pixels, masks, index = random_images(2, 64, 64), random_masks(5, 64, 64), torch.tensor([1, 0, 1, 1, 0])
    together = run(model, pixels, masks, index)
    assert seen == [2]
    for row, image in enumerate(index):
        alone = run(model, pixels[image : image + 1], masks[row : row + 1])
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)
    assert (together[2] - together[3]).abs().max() > 1e-3 and (together[0] - together[1]).abs().max() > 1e-3


def test_training_moves_everything_but_the_stem(tmp_path):
    model = vivid(objective_model(vision=hybrid(image_size=32))).train()
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    averages, thaws = pixclip.WeightAveragingCallback(decay=0.5), pixclip.FreezingSchedule({"vision": (0, 1)})
    make_trainer(tmp_path, model, max_steps=3, callbacks=[averages, thaws]).train()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in names), name
    assert averages.averages.keys() == names and not any(".stem." in name for name in names)
    stem = part(model, "Stem")
    assert model.training and not any(module.training for module in stem.modules())
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in stem.parameters())
    assert_same_weights(part(PixCLIPForPreTraining.from_pretrained(tmp_path / "ema"), "Stem"), stem)


def test_gradients_reach_pixels_that_need_them_and_checkpointing_does_not_change_any():
    model, kept, found = tower().train(), [], []
    part(model, "Stem").register_forward_hook(lambda module, inputs, output: kept.append(output.requires_grad))
    masks, names = random_masks(2, 64, 64), {name for name, p in model.named_parameters() if p.requires_grad}
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        for saliency in (False, True):
            model.zero_grad()
            pixels = random_images(2, 64, 64).requires_grad_(saliency)
            model(pixels, masks).pooler_output[:, :3].sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        found[-1]["pixels"] = pixels.grad
    # Without the need no graph of the stem is kept.
    assert kept == [False, True] * 2 and found[0].keys() == names | {"pixels"}
    assert all(found[0][name].abs().max() > 1e-4 for name in ("pixels", "embeddings.patch_embedding.weight"))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("kind", [PixCLIPVisionModel, PixCLIPVisionProjected, PixCLIPModel, PixCLIPForPreTraining])
def test_a_loaded_model_is_equal_and_its_stem_is_frozen(tmp_path, kind, stem):
    config = pixclip_config(vision=hybrid(stem))
    model = vivid(kind(config.vision_config if kind.config_class is PixCLIPVisionConfig else config))
    assert_frozen(model)
    model.save_pretrained(tmp_path)
    inputs = (random_images(2, 64, 64), random_masks(2, 64, 64))
    for loader in (kind, AutoModel):
        loaded = loader.from_pretrained(tmp_path)
        assert_frozen(loaded)
        assert_frozen(loaded.train())
        for tensor in (*loaded.parameters(), *loaded.buffers()):
            # Mapped from the file they are not aligned, with which some kernels round otherwise.
            tensor.data = tensor.data.clone()
        found, expected = (getattr(one, "vision_model", one).eval() for one in (loaded, model))
        assert_same_weights(found, expected)
        assert torch.equal(run(found, *inputs), run(expected, *inputs))
    loaded.set_attn_implementation("sdpa")  # which networks of convolutions do not support
    assert_frozen(type(loaded)(loaded.config))  # in training mode, as new modules are
    half = kind.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in half.state_dict().values()} == {torch.bfloat16, torch.int64}
    assert run(getattr(half, "vision_model", half), *inputs).isfinite().all()


@pytest.mark.parametrize("stem", STEMS)
def test_a_configuration_comes_back(tmp_path, stem):
    config_class, own, _ = STEMS[stem]
    given = config_class(**own, dtype="float32", _name_or_path="/home/someone/network")
    for form in (given, given.to_dict(), {"model_type": stem, **own}):
        config = vision_config(**hybrid(stem, stem_config=form))
        config.save_pretrained(tmp_path)
        assert "someone" not in (tmp_path / "config.json").read_text()
        for back in (PixCLIPVisionConfig.from_pretrained(tmp_path), PixCLIPVisionConfig.from_dict(config.to_dict())):
            assert type(back.stem_config) is config_class and back.to_dict() == config.to_dict()
            assert all(getattr(back.stem_config, name) == value for name, value in own.items())
        model = PixCLIPVisionModel._from_config(config, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert given._name_or_path == "/home/someone/network" and given.dtype == torch.float32


def test_what_does_not_fit_is_refused():
    with pytest.raises(StrictDataclassError, match=r"patch_size \(48\) must be a multiple of stem_stride \(32\)"):
        vision_config(**hybrid(patch_size=48, image_size=96))
    for given, named in (({"model_type": "nonsense"}, "'nonsense'"), (EFFICIENTNET, "None")):
        with pytest.raises(ValueError, match=f"stem_config has model_type {named}; accepted is .* 'resnet'"):
            vision_config(**hybrid(stem_config=given))
    for wrong, message in (({"stem_channels": 0}, "stem_channels"), ({"num_channels": 1}, r"stem_config \(3\)")):
        with pytest.raises(StrictDataclassError, match=message):
            vision_config(**hybrid(**wrong))
    with pytest.raises(ValueError, match="'bert', whose input is input_ids; accepted are convolutional networks"):
        PixCLIPVisionModel(vision_config(**hybrid(stem_config=backbone_config("bert"))))
    for wrong in ({"stem_channels": 24}, {"stem_stride": 16}):
        with pytest.raises(ValueError, match=r"\(320, 2, 2\).*stem_channels.*stem_stride.*'efficientnet'"):
            PixCLIPVisionModel(vision_config(**hybrid(**wrong)))(random_images(1, 64, 64))
    with pytest.raises(pixclip.ConversionError, match="stem_config of type 'efficientnet'.*save_pretrained"):
        pixclip.to_source(PixCLIPModel(pixclip_config(vision=hybrid(), text={"backbone": "clip_text"})), "openai-clip")


def test_a_tower_without_a_stem_is_as_before():
    model = PixCLIPVisionModel(vision_config())
    assert not any("stem" in name for name in model.state_dict())
    written = json.loads(model.config.to_json_string())
    stem = {name: written.pop(name) for name in ("stem_config", "stem_stride", "stem_channels")}
    assert list(stem.values()) == [None, 32, 1280] and not any("stem" in name for name in written)
    assert PixCLIPVisionConfig.from_dict(written).to_dict() == model.config.to_dict()


def test_groups_of_parameters_do_not_count_the_stems_blocks():
    rates = []
    for vision in (hybrid(), {"image_size": 64, "patch_size": 32}):
        model = PixCLIPForPreTraining(pixclip_config(vision=vision))
        groups = by_parameter(model, pixclip.get_parameter_groups(model, 1e-3, 0.1, layer_decay=0.5))
        rates.append({name: (own["group"], own["lr"], own["weight_decay"]) for name, own in groups.items()})
        assert all(".layers.1." in name for name in pixclip.find_group_parameters(model, "vision.layers.1"))
        with pytest.raises(ValueError, match="vision has 2"):
            pixclip.find_group_parameters(model, "vision.layers.2")
    assert rates[0] == rates[1] and len(rates[0]) > 30


def test_a_model_starts_from_a_hybrid_tower(tmp_path):
    parent = vivid(PixCLIPVisionProjected(vision_config(**hybrid())))
    parent.save_pretrained(tmp_path / "tower")
    LlamaModel(pixclip_config().text_config.backbone_config).save_pretrained(tmp_path / "llm")
    model = PixCLIPModel.from_vision_text_pretrained(str(tmp_path / "tower"), str(tmp_path / "llm"))
    assert_same_weights(model.vision_model, parent.vision_model)
    assert_frozen(model)
    rows = dict(pixclip.card_sections.architecture_rows(model.config, None, "scratch"))
    assert rows["Stem of the vision tower"].startswith("efficientnet, frozen: its last map, 320 channels")
    limits = pixclip.card_sections.limits(model.config, pixclip.CardDetails(vision_origin="x"), {}, None)
    assert "What the stem of the vision tower was trained on was not recorded." in limits
    assert rows["Vision tower started from"] == "random weights; its stem not recorded"


def test_an_exported_tower_takes_every_size(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = vivid(PixCLIPModel(pixclip_config(vision=hybrid())))
    pixclip.export_model(model, tmp_path, parts=["regions"])
    session = onnxruntime.InferenceSession(tmp_path / "regions.onnx", providers=["CPUExecutionProvider"])
    for sides in ((64, 64), (32, 96), (160, 128)):
        inputs = (random_images(2, *sides), random_masks(3, *sides), torch.tensor([1, 0, 1]))
        (found,) = session.run(None, {node.name: tensor.numpy() for node, tensor in zip(session.get_inputs(), inputs)})
        expected = torch.nn.functional.normalize(run(model.get_image_features, *inputs), dim=-1)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=0, atol=1e-5)


LOAD = """
import sys, torch
from load_by_remote_code import AutoModel, AutoModelForPreTraining
for loader in (AutoModel, AutoModelForPreTraining):
    model = loader.from_pretrained(f"{sys.argv[1]}/{loader.__name__}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert {weight.requires_grad for name, weight in model.named_parameters() if ".stem." in name} == {False}
    *inputs, expected = torch.load(f"{sys.argv[1]}/{loader.__name__}.pt")
    with torch.no_grad():
        assert torch.equal(getattr(model, "vision_model", model)(*inputs).pooler_output, expected)
"""


def test_a_saved_hybrid_loads_by_the_code_beside_it(tmp_path):
    inputs = (random_images(2, 64, 64), random_masks(2, 64, 64))
    whole = vivid(PixCLIPForPreTraining(pixclip_config(vision=hybrid())))
    for name, model in {"AutoModel": tower(), "AutoModelForPreTraining": whole}.items():
        model.save_pretrained(tmp_path / name)
        model = type(model).from_pretrained(tmp_path / name)
        torch.save([*inputs, run(getattr(model, "vision_model", model), *inputs)], tmp_path / f"{name}.pt")
    run_python(sys.executable, "-c", LOAD, tmp_path, home=tmp_path)
