# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The start of a tower on EfficientNet-Lite0, made from real photos with a network of random weights."""

import copy
import json
import sys
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from tiny_models import assert_same_weights
from tiny_pretraining import DATA, ROOT, make_workspace, pretrain
from torch import nn
from transformers import AutoModel, AutoProcessor


sys.path.insert(0, str(ROOT / "examples"))
sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
import coco_mini_ablation
import hybrid_vision_tower
import pretraining_arguments
from distillation_parts import text_vectors
from efficientnet_lite0 import STRIDE, EfficientNetLite0, lite0_config, lite0_state, load_efficientnet_lite0
from hybrid_vision_tower import hybrid_config, main, parse_arguments

from modeling_pixclip import RegionJsonlDataset


SIDE = 96
PATCHES = SIDE // STRIDE
# Patches that masks cover, counted row by row.
GROUPS = [(0,), (4, 5), (1, 3, 6, 8)]
# One that the linear map is trained on, and one of others.
PHOTOS = [RegionJsonlDataset(DATA / f"{name}.jsonl")[0]["image"] for name in ("train", "heldout")]
SQUARES = [photo.resize((SIDE, SIDE)) for photo in PHOTOS]
PIXELS = torch.stack([torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255 for square in SQUARES])
cosine = partial(nn.functional.cosine_similarity, dim=-1)
PATCH_EMBEDDING = "vision_model.embeddings.patch_embedding.weight"


def mask_of(*patches):
    cells = np.zeros(PATCHES**2)
    cells[list(patches)] = 1
    return np.kron(cells.reshape(PATCHES, PATCHES), np.ones((STRIDE, STRIDE))) > 0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = make_workspace(tmp_path_factory.mktemp("hybrid"), photos=(("train", 3), ("heldout", 1)), rich=True)
    torch.manual_seed(0)
    teacher = EfficientNetLite0()
    # Statistics of photos: with those of a fresh network the maps would hardly depend on the image.
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    teacher(PIXELS)
    torch.save(teacher.state_dict(), folder / "teacher.pth")
    return folder


def make_hybrid(folder, name, *arguments, **options):
    options = {
        "photos": str(folder / "train.jsonl"),
        "output_dir": str(folder / name),
        "teacher_weights": str(folder / "teacher.pth"),
        "text_backbone": str(folder / "llm"),
        "photo_size": 128,
        "image_size": SIDE,
        "num_hidden_layers": 1,
        "probe": {"views": 8, "steps": 30},
        **options,
    }
    (folder / f"{name}.json").write_text(json.dumps(options), encoding="utf-8")
    main([str(folder / f"{name}.json"), *arguments])


@pytest.fixture(scope="module")
def probe(workspace):
    """The linear map that the folder `hybrid` is made with."""
    made, train = [], hybrid_vision_tower.train_probe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid_vision_tower, "train_probe", lambda *given: made.append(train(*given)) or made[0])
        make_hybrid(workspace, "hybrid")
    return made[0]


@pytest.fixture(scope="module")
def model(workspace, probe):
    return AutoModel.from_pretrained(workspace / "hybrid").eval()


@pytest.fixture(scope="module")
def processor(workspace, probe):
    return AutoProcessor.from_pretrained(workspace / "hybrid")


@pytest.fixture(scope="module")
def said(workspace, probe):
    """What the linear map says of each patch of each photo."""
    return probe.linear(probe.standardise(load_efficientnet_lite0(workspace / "teacher.pth")(PIXELS)))


@torch.no_grad()
def test_transformers_network_gives_the_maps_of_the_teacher(workspace):
    network = AutoModel.from_config(lite0_config()).eval()
    network.load_state_dict(lite0_state(workspace / "teacher.pth"))
    images = torch.rand(2, 3, 64, 96).double()
    expected = load_efficientnet_lite0(workspace / "teacher.pth").double()(images)
    # Maps that do not depend on the image would be equal whatever it is.
    assert expected.std(0).mean() > 0.1
    found = network.double()((images * 255 - 127) / 128).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_processor_makes_what_the_stem_takes(workspace, model, processor):
    pixels = processor(images=PHOTOS[1], return_tensors="pt")["pixel_values"]
    levels = pixels * 128 + 127
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert levels.shape == (1, 3, SIDE, SIDE) and levels.max() > 192
    expected = load_efficientnet_lite0(workspace / "teacher.pth")(levels / 255)
    torch.testing.assert_close(model.vision_model.embeddings.stem(pixels), expected, atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_dense_map_says_what_the_linear_map_says(model, processor, said):
    inputs = processor(images=SQUARES, masks=[[mask_of(*group) for group in GROUPS]] * 2, return_tensors="pt")
    expected = torch.stack([patches[list(group)].mean(0) for patches in said for group in GROUPS])
    for mask_input in (True, False):
        found = model.get_region_features(**inputs, mask_input=mask_input).pooler_output
        assert cosine(found, expected).min() > 0.99
    dense = model.get_dense_features(inputs["pixel_values"]).last_hidden_state
    assert cosine(dense, said).min() > 0.99


def test_class_token_says_it_of_what_is_under_the_mask(model, processor, said):
    masks = [mask_of(*group) for group in GROUPS]
    for photo, patches in zip(SQUARES, said):
        found = model.encode_image(photo, processor, masks=masks, output="tensor")
        expected = torch.stack([patches[list(group)].mean(0) for group in GROUPS])
        similarities = cosine(found[:, None], expected[None])
        assert similarities.diagonal().min() > 0.98
        # Of what is under another mask it says another thing.
        assert similarities.fill_diagonal_(-1).max() < 0.9
    # Without a mask, of the whole image.
    assert cosine(model.encode_image(SQUARES, processor, output="tensor"), said.mean(1)).min() > 0.98


def test_more_blocks_add_nothing(workspace, model, processor):
    make_hybrid(workspace, "deep", num_hidden_layers=3)
    deep = AutoModel.from_pretrained(workspace / "deep")
    assert len(deep.vision_model.encoder.layers) == 3
    for options in ({}, {"masks": [[mask_of(0, 1)], [mask_of(4), mask_of(7, 8)]]}):
        expected, found = (one.encode_image(SQUARES, processor, output="tensor", **options) for one in (model, deep))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_all_of_the_first_block_trains(model, processor):
    tower = copy.deepcopy(model).train()
    attention = tower.vision_model.encoder.layers[0].self_attn
    before = {name: value.clone() for name, value in attention.state_dict().items()}
    inputs = processor(images=SQUARES, masks=[[mask_of(*group) for group in GROUPS]] * 2, return_tensors="pt")
    inputs.pop("region_boxes")
    optimizer = torch.optim.SGD(attention.parameters(), lr=0.1)
    torch.manual_seed(0)
    target = torch.randn(6, model.config.projection_dim)
    for _ in range(3):
        (1 - cosine(tower.get_image_features(**inputs).pooler_output, target)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        changed = attention.state_dict()[f"{name}.weight"] != before[f"{name}.weight"]
        assert changed.any(1).all(), name


def test_texts_are_the_backbones(workspace, model, processor):
    texts = ["a dog", "a woman with a red umbrella"]
    expected = text_vectors(parse_arguments([str(workspace / "hybrid.json"), "--output_dir", "x"]), texts)
    torch.testing.assert_close(model.encode_text(texts, processor, output="tensor"), expected, atol=1e-5, rtol=1e-4)


def test_the_seed_decides_all(workspace, model):
    for name, seed in (("again", 0), ("other", 1)):
        make_hybrid(workspace, name, seed=seed)
    again, other = (AutoModel.from_pretrained(workspace / name) for name in ("again", "other"))
    assert_same_weights(again, model)
    assert not torch.equal(other.state_dict()[PATCH_EMBEDDING], model.state_dict()[PATCH_EMBEDDING])


@pytest.mark.slow
def test_pretraining_goes_on_from_the_folder(workspace, model):
    ran = pretrain(
        workspace / "config.json",
        *("--initial_model", str(workspace / "hybrid"), "--vision_config", "{}", "--text_backbone", ""),
        *("--max_steps", "2", "--output_dir", str(workspace / "trained"), "--eval_strategy", "no"),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    before, after = model.state_dict(), AutoModel.from_pretrained(workspace / "trained").state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before[PATCH_EMBEDDING], after[PATCH_EMBEDDING])
    assert all(torch.equal(before[name], after[name]) for name in before if ".stem." in name)


def test_interrupted_save_leaves_nothing(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(hybrid_vision_tower, "build_processor", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make_hybrid(workspace, "interrupted", "--output_dir", str(tmp_path / "folder" / "model"))
    assert not list((tmp_path / "folder").iterdir())


def test_folder_knows_where_its_text_backbone_is(workspace, model):
    assert model.config.text_config.backbone_source["folder"] == str(workspace / "llm")


@pytest.mark.parametrize("lines", ["heldout.jsonl", "images"])
def test_photos_that_teach_nothing_are_refused(workspace, lines):
    with pytest.raises(ValueError, match=f"{lines} has . photos .*; accepted are 2 photos or more with captions"):
        make_hybrid(workspace, "untaught", photos=str(workspace / lines))


def test_the_settings_of_the_recipe_are_read(tmp_path):
    config = str(ROOT / "examples" / "configs" / "coco_mini_hybrid.json")
    options = parse_arguments([config, "--text_backbone", "x", "--output_dir", str(tmp_path)])
    assert hybrid_config(options, 384).grid_size == (14, 14)
    # Contrastive training goes on from it.
    config = json.loads((ROOT / "examples" / "configs" / "coco_mini.json").read_text(encoding="utf-8"))
    made = json.loads((ROOT / "examples" / "configs" / "coco_mini_hybrid.json").read_text(encoding="utf-8"))
    assert config["initial_model"] == made["output_dir"] and config["train_file"] == made["photos"]


@pytest.mark.parametrize("name", coco_mini_ablation.VARIANTS)
def test_the_settings_of_the_ablation_are_read(tmp_path, name):
    made, trained = coco_mini_ablation.settings_of(name, tmp_path, tmp_path, tmp_path)
    (tmp_path / "made.json").write_text(json.dumps(made), encoding="utf-8")
    options = parse_arguments([str(tmp_path / "made.json"), "--text_backbone", "x"])
    assert options.photos == str(tmp_path / "train.jsonl")
    if trained is not None:
        (tmp_path / "trained.json").write_text(json.dumps(trained), encoding="utf-8")
        model, data, training = pretraining_arguments.parse_arguments([str(tmp_path / "trained.json")], "")
        assert model.initial_model == options.output_dir and training.max_steps == 40
        assert data.train_file.endswith("train_described.jsonl") == name.endswith("composed sentences")


@pytest.mark.parametrize(
    "options, arguments, message",
    [
        ({"layers": 3}, [], "wrong.json has the unknown options layers; see --help"),
        ({}, ["--output_dir", str(ROOT / "examples")], "accepted is a new or empty folder"),
        ({}, ["--image_size", "100"], "--image_size is 100; accepted are multiples of 32"),
        ({}, ["--crop_size", "100"], "--crop_size is 100; accepted are multiples of 32"),
        ({}, ["--photo_size", "0"], "--photo_size is 0; accepted are 1 and more"),
        ({}, ["--num_hidden_layers", "0"], "--num_hidden_layers is 0; accepted are 1 and more"),
        ({}, ["--probe", '{"nothing": 1}'], "--probe has the unknown nothing; accepted are views, steps"),
        ({}, ["--views", "{"], "--views is not JSON"),
        ({"photos": ""}, [], "photos left out; see"),
    ],
)
def test_wrong_options_are_told(workspace, capsys, options, arguments, message):
    with pytest.raises(SystemExit):
        make_hybrid(workspace, "wrong", *arguments, **options)
    assert message in capsys.readouterr().err
