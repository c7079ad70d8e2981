# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Distilling a teacher's feature maps into a vision tower, on real photos with a teacher of random weights."""

import json
import sys

import pytest
import torch
from tiny_pretraining import DATA, ROOT, make_workspace, pretrain
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor


sys.path.insert(0, str(ROOT / "examples"))
import distill_vision_tower
import pretraining_arguments
import run_pretraining
from coco_region_file import main as write_region_file
from distill_vision_tower import STATE, initialise_locally, initialise_patches, main, parse_arguments, text_vectors
from distillation_views import ViewOptions, ViewSampler, read_photos
from efficientnet_lite0 import EfficientNetLite0, load_efficientnet_lite0

from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModelWithProjection, RegionJsonlDataset


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 16,
    "image_size": 48,
    "hidden_act": "gelu",
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = make_workspace(tmp_path_factory.mktemp("distillation"), rich=True)
    torch.manual_seed(0)
    torch.save(EfficientNetLite0().state_dict(), folder / "teacher.pth")
    return folder


def distill(folder, name, *arguments, photos="train.jsonl", **options):
    options = {
        "photos": str(folder / photos),
        "output_dir": str(folder / name),
        "teacher_weights": str(folder / "teacher.pth"),
        "text_backbone": str(folder / "llm"),
        "photo_size": 128,
        "teacher_size": 96,
        "vision_config": VISION,
        "probe": {"views": 8, "steps": 30},
        "batch_size": 8,
        "held_batches": 2,
        "minutes": 10,
        "max_steps": 12,
        "warmup_share": 0.0,
        "learning_rate": 0.005,
        "logging_steps": 3,
        "device": "cpu",
        **options,
    }
    (folder / f"{name}.json").write_text(json.dumps(options), encoding="utf-8")
    return main([str(folder / f"{name}.json"), *arguments])


@pytest.fixture(scope="module")
def distilled(workspace):
    return distill(workspace, "distilled", held_out=str(workspace / "heldout.jsonl"))


def test_losses_go_down_and_what_is_held_out_is_measured(distilled):
    first, *_, last = distilled["log"]
    for name in ("dense", "pooled", "token", "texts", "ranking"):
        assert last[name] < 0.9 * first[name], name
    assert last["features"] < first["features"]
    assert distilled["steps"] == last["step"] == 12
    assert set(distilled["held_out"]) >= {"teacher, mask-pooled", "mask", "mask-pooled", "crop, mask"}


def test_folder_is_a_model_whose_texts_are_the_backbones(workspace, distilled):
    model, processor = (kind.from_pretrained(workspace / "distilled") for kind in (AutoModel, AutoProcessor))
    dataset = RegionJsonlDataset(workspace / "train.jsonl")
    texts = dataset[0]["texts"]
    options = parse_arguments([str(workspace / "distilled.json")])
    # Those that the tower was trained for.
    expected = text_vectors(options, texts)
    torch.testing.assert_close(model.encode_text(texts, processor, output="tensor"), expected, atol=1e-5, rtol=1e-4)
    regions = model.encode_image([dataset[0]["image"]], processor, masks=[dataset[0]["masks"]], output="tensor")
    assert regions.shape == (len(texts), AutoConfig.from_pretrained(workspace / "llm").hidden_size)
    assert not list(workspace.glob(".distilled-*"))


@pytest.mark.slow
def test_pretraining_goes_on_from_the_folder(workspace, distilled):
    ran = pretrain(
        workspace / "config.json",
        *("--initial_model", str(workspace / "distilled"), "--vision_config", "{}", "--max_steps", "1"),
        *("--output_dir", str(workspace / "trained"), "--learning_rate", "1e-9", "--eval_strategy", "no"),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    before, after = (AutoModel.from_pretrained(workspace / name).state_dict() for name in ("distilled", "trained"))
    for name in before:
        torch.testing.assert_close(before[name], after[name], msg=name)


def test_interrupted_training_goes_on_where_it_was(workspace, monkeypatch):
    whole = distill(workspace, "whole", max_steps=6, reuse=1, held_batches=1, logging_steps=1)
    steps = []

    class Interrupted(Exception):
        pass

    def losses(*arguments):
        steps.append(len(steps))
        if len(steps) == 5:
            raise Interrupted
        return unchanged(*arguments)

    unchanged = distill_vision_tower.distillation_losses
    monkeypatch.setattr(distill_vision_tower, "distillation_losses", losses)
    with pytest.raises(Interrupted):
        distill(workspace, "parts", max_steps=6, reuse=1, held_batches=1, logging_steps=1, save_minutes=0)
    assert torch.load(workspace / "parts" / STATE, weights_only=True)["step"] == 4
    monkeypatch.undo()
    parts = distill(workspace, "parts", max_steps=6, reuse=1, held_batches=1, logging_steps=1)
    assert parts["steps"] == 6
    for name in ("features", "dense", "token"):
        assert parts["log"][-1][name] == pytest.approx(whole["log"][-1][name], abs=1e-4), name
    assert not (workspace / "parts" / STATE).exists()


def test_folder_of_images_without_texts(workspace):
    found = distill(workspace, "plain", photos="images", max_steps=6, optimizer="adamw")
    assert found["log"][-1]["features"] < found["log"][0]["features"]
    assert AutoModel.from_pretrained(workspace / "plain").config.vision_config.hidden_size == 32


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--optimizer", "sgd"], "accepted are 'muon' and 'adamw'"),
        (["--weights", '{"sparse": 1}'], "unknown losses sparse"),
        (["--probe", "{"], "is not JSON"),
    ],
)
def test_wrong_options_are_told(workspace, distilled, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main([str(workspace / "distilled.json"), *arguments])
    assert message in capsys.readouterr().err


def test_folded_batch_norms_change_nothing(workspace):
    plain = EfficientNetLite0()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    torch.save(plain.state_dict(), workspace / "norms.pth")
    images = torch.rand(2, 3, 75, 96)
    with torch.no_grad():
        expected, found = plain.eval()(images), load_efficientnet_lite0(workspace / "norms.pth")(images)
    assert found.shape == (2, 1280, 3, 3)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_heads_start_with_their_neighbours():
    config = PixCLIPVisionConfig(
        **{**VISION, "hidden_size": 160, "num_attention_heads": 5, "image_size": 112, "use_rope": True},
        rope_theta=20.0,
        rope_grid_size=7,
        initializer_factor=0.1,
    )
    config._attn_implementation = "eager"
    tower = PixCLIPVisionModelWithProjection(config).eval()
    initialise_locally(tower, 4.0)
    weights = tower.vision_model(torch.randn(1, 3, 112, 112), output_attentions=True).attentions[0][0]
    centre = 1 + 3 * 7 + 3
    for head, (down, right) in enumerate([(-1, 0), (1, 0), (0, -1), (0, 1)]):
        seen = weights[head, centre, 1:].view(7, 7)
        assert divmod(int(seen.argmax()), 7) == (3 + down, 3 + right)
    assert weights[4, centre].max() < 0.1


def test_patch_embedding_starts_with_uncorrelated_features(workspace):
    tower = PixCLIPVisionModelWithProjection(PixCLIPVisionConfig(**VISION))
    bank = read_photos(workspace / "train.jsonl", side=160)
    images, _ = ViewSampler(bank, 64, ViewOptions(), torch.Generator()).whole_photos(torch.arange(6))
    initialise_patches(tower, images)
    features = tower.vision_model.embeddings.patch_embedding(images).flatten(2).transpose(1, 2).flatten(0, 1)
    correlation = torch.corrcoef(features[:, :8].T) - torch.eye(8)
    assert correlation.abs().max() < 0.05


def test_views_know_which_region_is_where(workspace):
    bank = read_photos(workspace / "train.jsonl", side=160)
    generator = torch.Generator().manual_seed(0)
    sampler = ViewSampler(bank, 96, ViewOptions(paste=0.0, cut=0.0, mix=0.0), generator)
    images, regions = sampler.whole_photos(torch.arange(6))
    dataset = RegionJsonlDataset(workspace / "train.jsonl")
    for place in range(6):
        shown = set(regions[place].unique().tolist()) - {-1}
        assert {bank.texts[bank.labels[region]] for region in shown} <= set(dataset[place]["object_texts"])
        assert all(bank.photos[region] == place for region in shown)
    views = sampler.draw(16)
    for place in range(16):
        chosen = [region for region in views.chosen[place].tolist() if region >= 0]
        assert len(set(chosen)) == len(chosen)
        assert all((views.regions[place] == region).any() for region in chosen)
        # Nothing of other photos was asked for.
        assert {int(bank.photos[region]) for region in chosen} <= {int(views.photos[place])}
    pasted = ViewSampler(bank, 96, ViewOptions(focus=1.0, paste=1.0), generator).draw(16)
    photos = [{int(bank.photos[region]) for region in row.unique().tolist() if region >= 0} for row in pasted.regions]
    assert any(len(of_view) > 1 for of_view in photos)
    assert pasted.images.min() >= 0 and pasted.images.max() <= 1


def test_region_file_of_coco_annotations(tmp_path):
    lines = (DATA / "heldout.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    records = [json.loads(line) for line in lines]
    names = sorted({region["category"] for record in records for region in record["regions"]})
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    for number, record in enumerate(records):
        content["images"].append(
            {"id": number, "file_name": record["image"], "width": record["width"], "height": record["height"]}
        )
        content["annotations"] += [
            {"image_id": number, "category_id": names.index(region["category"]), "segmentation": region["mask"]}
            for region in record["regions"]
        ]
    for number, annotation in enumerate(content["annotations"]):
        annotation |= {"id": number, "iscrowd": 0}
    (tmp_path / "instances.json").write_text(json.dumps(content), encoding="utf-8")
    write_region_file(
        [
            *("--images", str(DATA), "--instances", str(tmp_path / "instances.json"), "--least_share", "0"),
            *("--output", str(tmp_path / "train.jsonl"), "--held_out_share", "0.25"),
            *("--held_out_output", str(tmp_path / "held_out.jsonl")),
        ]
    )
    found = {
        sample["image_id"]: sample
        for name in ("train", "held_out")
        for sample in (
            RegionJsonlDataset(tmp_path / f"{name}.jsonl", DATA)[i] for i in range(3 if name == "train" else 1)
        )
    }
    assert sorted(found) == ["0", "1", "2", "3"]
    for number, record in enumerate(records):
        categories = [region["category"] for region in record["regions"]]
        assert found[str(number)]["object_texts"] == [f"a photo of a {category}" for category in categories]
        assert found[str(number)]["masks"] == [region["mask"] for region in record["regions"]]


def test_images_are_normalised_as_those_the_initial_model_was_trained_on(workspace, distilled, tmp_path):
    processor = AutoProcessor.from_pretrained(workspace / "distilled")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path)
    arguments = [str(workspace / "config.json"), "--initial_model", str(tmp_path), "--vision_config", "{}"]
    model_arguments, data_arguments, _ = pretraining_arguments.parse_arguments(arguments, "")
    model = AutoModel.from_pretrained(workspace / "distilled")
    built = run_pretraining.build_processor(data_arguments, model, str(tmp_path), model_arguments.initial_model)
    assert list(built.image_processor.image_mean) == [0.1, 0.2, 0.3]
