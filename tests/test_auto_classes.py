# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Saved folders load by the Auto classes: with the package installed, and by remote code where it is not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from modeling_pixclip import (
    PixCLIPConfig,
    PixCLIPForPreTraining,
    PixCLIPImageProcessor,
    PixCLIPModel,
    PixCLIPProcessor,
    PixCLIPTextModel,
    PixCLIPVisionModel,
)
from processing_pixclip import PixCLIPDataCollator, PixCLIPImageProcessorKwargs, RegionJsonlDataset


WORDS = "[pad] [unk] user : end a the red blue cup dog photo of This is . left on table".split()
SIZES = [(40, 60), (50, 30)]
TEXTS = ["a red cup on the table", "the blue dog", "a dog left of a cup ."]
LABELS = ["red cup", "blue dog", "table"]
MODEL_CLASSES = {
    AutoModel: PixCLIPModel,
    AutoModelForPreTraining: PixCLIPForPreTraining,
    AutoModelForZeroShotImageClassification: PixCLIPModel,
}


def build_tokenizer():
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]", model_max_length=64)


def build_processor(**options):
    image_processor = PixCLIPImageProcessor(size={"height": 24, "width": 32}, resize_mode="letterbox", **options)
    return PixCLIPProcessor(image_processor, build_tokenizer(), text_template="user : {text} end", text_max_length=20)


def build_model(model_class):
    config = PixCLIPConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [24, 32],
            "patch_size": 8,
        },
        text_config={
            "backbone_config": LlamaConfig(
                vocab_size=len(WORDS),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=256,
            ),
            "adapter_layers": 1,
        },
        projection_dim=12,
        local_weight=0.5,
    )
    model = model_class(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # A fresh mask convolution is zero: then no test would see whether masks arrive.
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build_images():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in SIZES]


def build_masks():
    masks = [np.zeros((2, *SIZES[0]), np.uint8), np.zeros((1, *SIZES[1]), np.uint8)]
    masks[0][0, 4:20, 8:30] = masks[0][1, 20:40, 33:59] = masks[1][0, 9:33, 2:21] = 1
    return [list(image_masks) for image_masks in masks]


def build_batch(processor):
    return processor(images=build_images(), masks=build_masks(), text=TEXTS, return_tensors="pt")


def outputs_of(model, batch):
    with torch.no_grad():
        outputs = model(**batch, return_loss=False)
    return {name: outputs[name] for name in ("image_embeds", "text_embeds", "logits_per_image")}


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted), [
        name for name in wanted if not torch.equal(found[name], wanted[name])
    ]


@pytest.fixture(scope="module", params=[PixCLIPModel, PixCLIPForPreTraining], ids=lambda cls: cls.__name__)
def saved(request, tmp_path_factory):
    """(folder, model, processor) saved with one class or the other."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    model, processor = build_model(request.param), build_processor()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoint folder of a Trainer, and the model as it was when the Trainer saved it."""
    model = build_model(PixCLIPForPreTraining)
    processor = build_processor()
    processor.text_max_length = 256
    arguments = TrainingArguments(
        output_dir=str(tmp_path_factory.mktemp("trained")),
        max_steps=1,
        per_device_train_batch_size=2,
        save_steps=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=RegionJsonlDataset("examples/data/coco_regions/train.jsonl"),
        data_collator=PixCLIPDataCollator(processor, max_regions_per_image=2),
        processing_class=processor,
    )
    trainer.train()
    return Path(arguments.output_dir) / "checkpoint-1", model.eval(), processor


def test_the_auto_classes_give_the_right_classes(saved):
    folder = saved[0]
    assert type(AutoConfig.from_pretrained(folder)) is PixCLIPConfig
    assert type(AutoProcessor.from_pretrained(folder)) is PixCLIPProcessor
    assert type(AutoImageProcessor.from_pretrained(folder)) is PixCLIPImageProcessor
    assert AutoConfig.from_pretrained(folder).to_diff_dict() == saved[1].config.to_diff_dict()
    for auto, model_class in MODEL_CLASSES.items():
        assert type(auto.from_pretrained(folder)) is model_class
        assert type(auto.from_config(saved[1].config)) is model_class


def test_an_installed_package_wins_over_the_code_in_the_folder(saved):
    folder = saved[0]
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=True)) is PixCLIPModel
    assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=True)) is PixCLIPProcessor
    assert type(AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)) is PixCLIPImageProcessor


@pytest.mark.parametrize("auto", MODEL_CLASSES, ids=lambda auto: auto.__name__)
def test_weights_and_outputs_survive_saving_bit_for_bit(saved, auto):
    folder, model, processor = saved
    loaded, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_equal(loaded.state_dict(), model.state_dict())
    batch = build_batch(processor)
    batch["region_text_index"] = torch.arange(3)
    wanted = outputs_of(model, batch)
    assert_equal(outputs_of(loaded, build_batch(AutoProcessor.from_pretrained(folder))), wanted)
    # Two regions of one image: the masks matter.
    assert not torch.allclose(wanted["image_embeds"][0], wanted["image_embeds"][1], atol=1e-3)


def test_the_tokenizer_loads_from_the_folder(saved):
    folder, _, processor = saved
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(TEXTS)["input_ids"] == processor.tokenizer(TEXTS)["input_ids"]
    assert (tokenizer.model_max_length, tokenizer.pad_token) == (64, "[pad]")


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_the_stock_pipeline_classifies(saved, trust_remote_code):
    folder, _, processor = saved
    model = PixCLIPModel.from_pretrained(folder)
    classify = pipeline(
        "zero-shot-image-classification", model=str(folder), trust_remote_code=trust_remote_code, device="cpu"
    )
    images = build_images()
    answers = classify(images, candidate_labels=LABELS, hypothesis_template="a photo of {}")
    inputs = processor.tokenizer([f"a photo of {label}" for label in LABELS], padding=True, return_tensors="pt")
    for image, answer in zip(images, answers, strict=True):
        with torch.no_grad():
            logits = model(
                pixel_values=processor.image_processor(image, return_tensors="pt")["pixel_values"],
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
            ).logits_per_image
        scores = dict(zip(LABELS, logits[0].softmax(-1).tolist(), strict=True))
        assert [entry["label"] for entry in answer] == sorted(LABELS, key=lambda label: -scores[label])
        assert {entry["label"]: entry["score"] for entry in answer} == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize(
    ("attribute", "model_class"), [("vision_model", PixCLIPVisionModel), ("text_model", PixCLIPTextModel)]
)
def test_a_tower_saved_alone_loads_as_auto_model(tmp_path, attribute, model_class):
    tower = getattr(build_model(PixCLIPModel), attribute)
    tower.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is model_class
    assert_equal(loaded.state_dict(), tower.state_dict())


# A value other than the default for every option of the image processor.
IMAGE_OPTIONS = {
    "do_resize": False,
    "size": {"height": 16, "width": 40},
    "resize_mode": "shortest_edge",
    "resample": Image.Resampling.BILINEAR,
    "do_rescale": False,
    "rescale_factor": 1 / 127,
    "do_normalize": False,
    "image_mean": (0.1, 0.2, 0.3),
    "image_std": [0.3, 0.2, 0.1],
    "mask_mean": 0.25,
    "mask_std": 2,
    "crop_scale": 2.5,
    "crop_size": {"height": 12, "width": 20},
    "do_convert_rgb": False,
    "max_image_pixels": 5000,
    "input_data_format": "channels_last",
}


def test_every_image_option_is_tried():
    assert set(IMAGE_OPTIONS) == set(PixCLIPImageProcessorKwargs.__annotations__)


@pytest.mark.parametrize("option", IMAGE_OPTIONS)
@pytest.mark.parametrize("kind", ["processor", "image processor alone"])
def test_every_image_option_survives_saving(tmp_path, option, kind):
    image_processor = PixCLIPImageProcessor(**{option: IMAGE_OPTIONS[option]})
    assert getattr(image_processor, option) != getattr(PixCLIPImageProcessor(), option)
    if kind == "processor":
        PixCLIPProcessor(image_processor, build_tokenizer()).save_pretrained(tmp_path)
        loaded = [
            AutoProcessor.from_pretrained(tmp_path).image_processor,
            AutoImageProcessor.from_pretrained(tmp_path),
        ]
    else:
        image_processor.save_pretrained(tmp_path)
        loaded = [AutoImageProcessor.from_pretrained(tmp_path), PixCLIPImageProcessor.from_pretrained(tmp_path)]
    arguments = {"images": build_images()[:1], "masks": build_masks()[:1], "crops": True, "return_tensors": "pt"}
    wanted = image_processor(**arguments)
    for other in loaded:
        assert type(other) is PixCLIPImageProcessor
        assert other.to_dict() == image_processor.to_dict()
        np.testing.assert_array_equal(getattr(other, option), getattr(image_processor, option))
        assert_equal(other(**arguments), wanted)


def test_every_option_of_the_processor_survives_saving_twice(tmp_path):
    processor = PixCLIPProcessor(
        PixCLIPImageProcessor(**{**IMAGE_OPTIONS, "do_resize": True}),
        build_tokenizer(),
        text_template="This is : {text} .\n",
        text_max_length=9,
    )
    arguments = {"images": build_images(), "masks": build_masks(), "text": TEXTS, "crops": True}
    with pytest.warns(UserWarning, match="longer than 9 tokens"):
        wanted = processor(**arguments)
    options = {name: processor.image_processor.to_dict()[name] for name in IMAGE_OPTIONS}
    for folder in ("first", "second"):
        processor.save_pretrained(tmp_path / folder)
        processor = AutoProcessor.from_pretrained(tmp_path / folder)
        loaded = processor.image_processor.to_dict()
        assert {name: loaded[name] for name in options} == options
        assert (processor.text_template, processor.text_max_length) == ("This is : {text} .\n", 9)
        with pytest.warns(UserWarning, match="longer than 9 tokens"):
            assert_equal(processor(**arguments), wanted)


def test_a_folder_of_the_trainer_loads(trained):
    folder, model, processor = trained
    for auto, model_class in MODEL_CLASSES.items():
        loaded = auto.from_pretrained(folder)
        assert type(loaded) is model_class
        assert_equal(loaded.state_dict(), model.state_dict())
    assert_equal(build_batch(AutoProcessor.from_pretrained(folder)), build_batch(processor))


def put_into_hub_cache(folder, cache, repository):
    """What a download of `folder`, pushed as `repository`, leaves in the Hub's cache."""
    repository_folder = cache / f"models--{repository.replace('/', '--')}"
    revision = "0" * 40
    shutil.copytree(folder, repository_folder / "snapshots" / revision)
    (repository_folder / "refs").mkdir()
    (repository_folder / "refs" / "main").write_text(revision)


def write_expectations(folder, into):
    """Inputs and what a saved folder makes of them, as files; what `check` of load_by_remote_code.py compares with."""
    batch = build_batch(AutoProcessor.from_pretrained(folder))
    outputs = outputs_of(PixCLIPModel.from_pretrained(folder), batch)
    expected = {**batch, **outputs, "region_text_index": torch.arange(3)}
    mask_names = []
    for i, image_masks in enumerate(build_masks()):
        mask_names.append([f"mask {i} {j}" for j in range(len(image_masks))])
        expected.update({name: torch.from_numpy(mask) for name, mask in zip(mask_names[-1], image_masks, strict=True)})
    save_file({name: value.contiguous() for name, value in expected.items()}, into / "expected.safetensors")
    for i, image in enumerate(build_images()):
        image.save(into / f"{i}.png")
    classify = pipeline("zero-shot-image-classification", model=str(folder), device="cpu")
    return {
        "expected": str(into / "expected.safetensors"),
        "images": [str(into / f"{i}.png") for i in range(len(SIZES))],
        "masks": mask_names,
        "texts": TEXTS,
        "labels": LABELS,
        "scores": classify(build_images()[0], candidate_labels=LABELS),
    }


def test_remote_code_gives_the_same_bits_where_the_package_is_not_installed(saved, trained, tmp_path):
    folder, model, processor = saved
    home, repository = tmp_path / "home", "somebody/pixclip-tiny"
    put_into_hub_cache(folder, home / "hub", repository)
    # The Trainer's weights go into the comparison as they are, so all folders get those of one model.
    trainer_folder = tmp_path / "trainer_folder"
    shutil.copytree(trained[0], trainer_folder)
    shutil.copy(folder / "model.safetensors", trainer_folder / "model.safetensors")
    build_processor().image_processor.save_pretrained(tmp_path / "image_processor")

    batch = build_batch(processor)
    plain = PixCLIPModel.from_pretrained(folder)
    sources = [str(folder), str(trainer_folder), repository]
    request = {
        **write_expectations(folder, tmp_path),
        "sources": sources,
        "weights": dict.fromkeys(sources, str(folder / "model.safetensors")),
        "image_processor": str(tmp_path / "image_processor"),
        "saved": str(tmp_path / "saved again"),
    }
    (tmp_path / "request.json").write_text(json.dumps(request))

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    script = Path(__file__).with_name("load_by_remote_code.py")
    process = subprocess.run(
        [sys.executable, "-I", str(script), str(tmp_path / "request.json")],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "checked 3"

    # What the other process saved is complete for this one too, and names no repository of its origin.
    for source in sources:
        again = tmp_path / "saved again" / source.replace("/", "_")
        assert_equal(load_file(again / "model.safetensors"), load_file(folder / "model.safetensors"))
        assert_equal(outputs_of(AutoModel.from_pretrained(again), batch), outputs_of(plain, batch))
        assert_equal(build_batch(AutoProcessor.from_pretrained(again)), batch)
        for name in ("config.json", "processor_config.json"):
            assert "--" not in (again / name).read_text()
