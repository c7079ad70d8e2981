# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Distilling a teacher's feature maps into a vision tower, on real photos with a teacher of random weights."""

import json
import shutil
import sys
import time

import pytest
import torch
from PIL import Image
from tiny_pretraining import DATA, ROOT, make_text_backbone, make_workspace, pretrain
from torch import nn
from transformers import AutoConfig, AutoModel, AutoProcessor


sys.path.insert(0, str(ROOT / "examples"))
import distill_vision_tower
import pretraining_arguments
import run_pretraining
from coco_region_file import main as write_region_file
from distill_vision_tower import (
    ARGUMENTS,
    STATE,
    UNFINISHED,
    Training,
    initialise_locally,
    initialise_patches,
    main,
    parse_arguments,
)
from distillation_parts import text_vectors
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
    assert model.config.text_config.backbone_source["folder"] == str(workspace / "llm")
    assert not [*(workspace / "distilled").glob(".*"), *workspace.glob(f"*{UNFINISHED}")]


def test_interrupted_save_is_made_again(workspace, monkeypatch):
    options = {"photos": "images", "max_steps": 1, "probe": {"views": 0, "steps": 0}, "optimizer": "adamw"}
    options |= {"batch_size": 2, "teacher_size": 64}

    class Interrupted(Exception):
        pass

    def interrupted(*arguments):
        raise Interrupted

    monkeypatch.setattr(distill_vision_tower, "build_processor", interrupted)
    with pytest.raises(Interrupted):
        distill(workspace, "again", **options)
    monkeypatch.undo()
    assert distill(workspace, "again", **options)["steps"] == 1
    assert not [path.name for path in (workspace / "again").iterdir() if path.name in (STATE, UNFINISHED)]


def test_arguments_beside_the_model_tell_no_folder_of_this_machine(workspace, distilled):
    text = (workspace / "distilled" / ARGUMENTS).read_text(encoding="utf-8")
    assert str(workspace) not in text
    assert json.loads(text)["photos"] == "train.jsonl"


@pytest.mark.slow
def test_pretraining_goes_on_from_the_folder(workspace, distilled):
    ran = pretrain(
        workspace / "config.json",
        *(
            "--initial_model",
            str(workspace / "distilled"),
            "--vision_config",
            "{}",
            "--text_backbone",
            "",
            "--max_steps",
            "1",
        ),
        *("--output_dir", str(workspace / "trained"), "--learning_rate", "1e-9", "--eval_strategy", "no"),
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    before, after = (AutoModel.from_pretrained(workspace / name).state_dict() for name in ("distilled", "trained"))
    for name in before:
        torch.testing.assert_close(before[name], after[name], msg=name)


def test_interrupted_training_goes_on_where_it_was(workspace, monkeypatch):
    options = {"max_steps": 6, "reuse": 3, "held_batches": 3, "logging_steps": 1, "probe": {"views": 0, "steps": 10}}
    options |= {"batch_size": 4, "teacher_size": 64, "photos": "few_train.jsonl"}
    for name in ("train", "heldout"):
        lines = (workspace / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:3]
        (workspace / f"few_{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    whole = distill(workspace, "whole", **options)
    # Photos that are measured at the end have texts of their own, and change nothing in training.
    options["held_out"] = str(workspace / "few_heldout.jsonl")
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
        distill(workspace, "parts", save_minutes=0, **options)
    assert torch.load(workspace / "parts" / STATE, weights_only=True)["step"] == 4
    monkeypatch.undo()
    # What else lies in the folder is nobody's to remove.
    kept = {"thesis.txt": "mine", "other/model.safetensors": "mine too"}
    (workspace / "parts" / "other").mkdir()
    for name, content in kept.items():
        (workspace / "parts" / name).write_text(content, encoding="utf-8")
    parts = distill(workspace, "parts", **options)
    assert parts["steps"] == 6
    for name in ("features", "dense", "token", "texts", "ranking"):
        assert parts["log"][-1][name] == pytest.approx(whole["log"][-1][name], abs=1e-4), name
    assert not (workspace / "parts" / STATE).exists()
    assert {name: (workspace / "parts" / name).read_text(encoding="utf-8") for name in kept} == kept
    assert AutoModel.from_pretrained(workspace / "parts").config.vision_config.hidden_size == 32


def test_start_after_an_interruption_counts_as_time(workspace, distilled):
    shutil.copy(workspace / "distilled.json", workspace / "late.json")
    options = parse_arguments([str(workspace / "late.json"), "--output_dir", str(workspace / "late")])
    bank = read_photos(workspace / "train.jsonl", side=64)
    training = Training(options, bank, torch.eye(len(bank.texts), 32), torch.device("cpu"))
    training.probe = distill_vision_tower.TextProbe(distill_vision_tower.FEATURES, 32)
    training.elapsed, training.before = 60.0, 30.0
    training.save_state()
    assert training.load_state()
    # An hour of reading leaves none of ten minutes.
    training.train(time.monotonic() - 3600)
    assert training.step == 0 and training.before > 3600


def test_no_model_is_saved_where_no_time_was_left_to_train(workspace):
    with pytest.raises(RuntimeError, match="no step was trained"):
        distill(workspace, "hasty", photos="images", minutes=1e-9, teacher_size=64, probe={"views": 0, "steps": 0})
    assert not (workspace / "hasty").exists()


def test_folder_of_images_without_texts(workspace):
    found = distill(workspace, "plain", photos="images", max_steps=6, optimizer="adamw")
    assert found["log"][-1]["dense"] < 0.9 * found["log"][0]["dense"]
    assert AutoModel.from_pretrained(workspace / "plain").config.vision_config.hidden_size == 32


def test_photos_of_a_folder_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_photos(tmp_path, side=64).sizes.tolist() == [[40, 20]]


def test_photos_beyond_this_machines_memory_are_refused(tmp_path):
    Image.new("RGB", (40, 20)).save(tmp_path / "photo.png")
    with pytest.raises(MemoryError, match="--photo_size"):
        read_photos(tmp_path, side=10**7)


def test_vectors_of_another_backbone_are_refused(workspace, tmp_path):
    (tmp_path / "other").mkdir()
    make_text_backbone(tmp_path / "other")
    weights = AutoModel.from_pretrained(tmp_path / "other")
    nn.init.normal_(weights.get_input_embeddings().weight)
    weights.save_pretrained(tmp_path / "other")
    arguments = ["--photos", "x", "--output_dir", str(tmp_path / "new"), "--text_vectors", str(tmp_path / "texts.pt")]
    arguments += ["--optimizer", "adamw"]
    own = parse_arguments([*arguments, "--text_backbone", str(workspace / "llm")])
    first = text_vectors(own, ["a dog"])
    torch.testing.assert_close(text_vectors(own, ["a cat", "a dog"])[1], first[0])
    torch.testing.assert_close(text_vectors(parse_arguments(arguments), ["a dog"]), first)
    other = parse_arguments([*arguments, "--text_backbone", str(tmp_path / "other")])
    for texts in (["a dog"], ["a horse"]):
        with pytest.raises(ValueError, match="holds another vector of 'a dog'"):
            text_vectors(other, texts)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--optimizer", "sgd"], "accepted are 'muon' and 'adamw'"),
        (["--weights", '{"sparse": 1}'], "--weights has the unknown sparse"),
        (["--views", '{"x": 1}'], "--views has the unknown x"),
        (["--probe", '{"y": 1}'], "--probe has the unknown y"),
        (["--vision_config", '{"nothing": 3}'], "--vision_config has the unknown nothing"),
        (["--probe", "{"], "is not JSON"),
        (["--probe", "[1]"], "accepted is a JSON object"),
        (["--batch_size", "0"], "--batch_size is 0; accepted are 1 and more"),
        (["--minutes", "0"], "--minutes is 0.0; accepted are numbers above 0"),
        (["--output_dir", str(ROOT / "examples")], "holds other things than this script's"),
    ],
)
def test_wrong_options_are_told(workspace, distilled, capsys, arguments, message):
    with pytest.raises(SystemExit):
        main([str(workspace / "distilled.json"), *arguments])
    assert message in capsys.readouterr().err


def test_initial_model_has_a_backbone_of_its_own(workspace, capsys):
    arguments = [str(workspace / "config.json"), "--initial_model", "x", "--vision_config", "{}"]
    with pytest.raises(SystemExit):
        pretraining_arguments.parse_arguments(arguments, "")
    assert "leave text_backbone out" in capsys.readouterr().err


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


def test_region_file_of_coco_annotations(tmp_path, capsys):
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
    with pytest.raises(SystemExit):
        write_region_file(
            [
                *("--images", str(DATA), "--instances", str(tmp_path / "instances.json"), "--held_out_share", "0.1"),
                *("--output", str(tmp_path / "none.jsonl"), "--held_out_output", str(tmp_path / "none_held.jsonl")),
            ]
        )
    assert "0.1 of 4 photos keeps 0 apart" in capsys.readouterr().err
    assert not (tmp_path / "none.jsonl").exists()
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
    arguments = [
        str(workspace / "config.json"),
        "--initial_model",
        str(tmp_path),
        "--vision_config",
        "{}",
        "--text_backbone",
        "",
    ]
    model_arguments, data_arguments, _ = pretraining_arguments.parse_arguments(arguments, "")
    model = AutoModel.from_pretrained(workspace / "distilled")
    built = run_pretraining.build_processor(data_arguments, model, str(tmp_path), model_arguments.initial_model)
    assert list(built.image_processor.image_mean) == [0.1, 0.2, 0.3]


def test_the_settings_of_the_recipe_are_read():
    configs = ROOT / "examples" / "configs"
    distilled = distill_vision_tower.parse_arguments([str(configs / "coco_mini_distill.json"), "--text_backbone", "x"])
    _, data, training = pretraining_arguments.parse_arguments([str(configs / "coco_mini.json")], "")
    assert data.train_file == distilled.photos
    assert PixCLIPVisionConfig(**distilled.vision_config).grid_size == (14, 14)
    assert training.output_dir != distilled.output_dir
