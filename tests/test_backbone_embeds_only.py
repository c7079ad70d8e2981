# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A text tower without a backbone, for vectors that an LLM made elsewhere, and the backbone that it is given later."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from objective_batches import ragged_batch
from safetensors.torch import load_file
from tiny_models import (
    assert_same_weights,
    backbone_config,
    pixclip_config,
    random_images,
    random_masks,
    random_tokens,
    randomise,
    text_config,
)
from transformers import AutoModel, AutoModelForPreTraining, LlamaForCausalLM, Trainer, TrainingArguments

from modeling_pixclip import (
    PixCLIPForPreTraining,
    PixCLIPModel,
    PixCLIPTextConfig,
    PixCLIPTextModel,
    TextFeatureStore,
)


ONLY = {"backbone_embeds_only": True}
CLASSES = [PixCLIPModel, PixCLIPForPreTraining, PixCLIPTextModel]


def build(model_class=PixCLIPModel, text=None, **fields):
    text = {**ONLY, **(text or {})}
    config = text_config(**text) if model_class is PixCLIPTextModel else pixclip_config(text=text, **fields)
    return randomise(model_class(config))


def tower_of(model):
    return getattr(model, "text_model", model)


def save_backbone(folder, name="llama", dtype=torch.float32, **fields):
    backbone = randomise(AutoModel.from_config(backbone_config(name, **fields)), seed=5).to(dtype)
    backbone.save_pretrained(folder)
    return backbone


def vectors(count=3, width=32):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def features(model, **inputs):
    return tower_of(model)(**inputs).pooler_output


@pytest.mark.parametrize("model_class", CLASSES)
def test_it_is_saved_and_loaded_bit_equal_without_a_backbone(model_class, tmp_path, monkeypatch):
    monkeypatch.setattr(AutoModel, "from_config", lambda *_, **__: pytest.fail("a backbone is made"))
    model = build(model_class)
    assert tower_of(model).backbone is None
    assert not any("backbone" in name for name, _ in model.named_parameters())
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_weights(loaded, model)
    assert torch.equal(features(loaded, backbone_embeds=vectors()), features(model, backbone_embeds=vectors()))
    automatic = (AutoModelForPreTraining if model_class is PixCLIPForPreTraining else AutoModel).from_pretrained(
        tmp_path
    )
    assert type(automatic) is model_class
    assert_same_weights(automatic, model)
    # Loaded, it saves as before.
    loaded.save_pretrained(tmp_path / "again")
    again = model_class.from_pretrained(tmp_path / "again")
    assert_same_weights(again, model)
    assert tower_of(again).config.backbone_embeds_only


def test_its_vectors_are_those_of_a_tower_with_a_backbone():
    whole = randomise(PixCLIPTextModel(text_config()))
    alone = PixCLIPTextModel(text_config(**ONLY)).eval()
    alone.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if "backbone." not in name})
    ids, mask = random_tokens([9, 5])
    with torch.no_grad():
        expected = whole(input_ids=ids, attention_mask=mask)
    found = features(alone, backbone_embeds=expected.backbone_embeds)
    assert torch.equal(found, expected.pooler_output)


@pytest.mark.parametrize("model_class", CLASSES)
def test_it_is_given_a_backbone(model_class, tmp_path):
    backbone = save_backbone(tmp_path / "llm", dtype=torch.bfloat16)
    model = build(model_class)
    model.save_pretrained(tmp_path / "saved")
    ids, mask = random_tokens([9, 5])
    reference = randomise(PixCLIPTextModel(text_config()))
    reference.backbone.load_state_dict(backbone.state_dict())
    assert not reference.load_state_dict(tower_of(model).state_dict(), strict=False).unexpected_keys
    language_model = LlamaForCausalLM(backbone_config("llama"))
    language_model.model.load_state_dict(backbone.state_dict())
    for given in (str(tmp_path / "llm"), tmp_path / "llm", language_model):
        loaded, info = model_class.from_pretrained(
            tmp_path / "saved", text_backbone=given, output_loading_info=True, dtype=torch.float32
        )
        assert not any(info.values()), info
        config = tower_of(loaded).config
        assert not config.backbone_embeds_only and config.backbone_text_config.is_causal is False
        assert torch.equal(
            features(loaded, input_ids=ids, attention_mask=mask),
            features(reference, input_ids=ids, attention_mask=mask),
        )
        assert torch.equal(features(loaded, backbone_embeds=vectors()), features(model, backbone_embeds=vectors()))
        assert not any(parameter.requires_grad for parameter in tower_of(loaded).backbone.parameters())
    assert tower_of(loaded).backbone is language_model.model and config.backbone_source is None
    # An LLM as large as they are is not widened by itself.
    loaded = model_class.from_pretrained(tmp_path / "saved", text_backbone=tmp_path / "llm")
    assert (tower_of(loaded).backbone.dtype, tower_of(loaded).dtype) == (torch.bfloat16, torch.float32)
    # From here on it is a checkpoint as any other, with and without the weights of its backbone.
    for included in (True, False):
        folder = tmp_path / f"attached-{included}"
        loaded.save_pretrained(folder, include_text_backbone=included)
        assert any("backbone." in name for name in load_file(folder / "model.safetensors")) == included
        assert_same_weights(model_class.from_pretrained(folder), loaded)
    # One that names its backbone can also be loaded without.
    config = model_class.config_class.from_pretrained(tmp_path / "attached-False")
    getattr(config, "text_config", config).backbone_embeds_only = True
    without = model_class.from_pretrained(tmp_path / "attached-False", config=config)
    assert_same_weights(without, model)
    without.save_pretrained(tmp_path / "without")
    assert_same_weights(model_class.from_pretrained(tmp_path / "without"), model)
    again = model_class.from_pretrained(tmp_path / "without", text_backbone=tmp_path / "llm")
    assert_same_weights(again, loaded)


def test_a_backbone_that_does_not_fit_is_refused(tmp_path):
    save_backbone(tmp_path / "wide", hidden_size=64, head_dim=16)
    build().save_pretrained(tmp_path / "saved")
    pattern = r"The text backbone {} is 64 wide, the text tower of '.*saved' takes vectors 32 wide"
    with pytest.raises(ValueError, match=pattern.format("'.*wide'")):
        PixCLIPModel.from_pretrained(tmp_path / "saved", text_backbone=tmp_path / "wide")
    with pytest.raises(ValueError, match=pattern.format("of type LlamaModel")):
        PixCLIPModel.from_pretrained(tmp_path / "saved", text_backbone=AutoModel.from_pretrained(tmp_path / "wide"))
    with pytest.raises(TypeError, match="text_backbone is a int"):
        PixCLIPModel.from_pretrained(tmp_path / "saved", text_backbone=3)
    with pytest.raises(OSError, match="nowhere"):
        PixCLIPModel.from_pretrained(tmp_path / "saved", text_backbone=str(tmp_path / "nowhere"))


def test_another_kind_of_backbone_of_the_same_width_is_taken(tmp_path):
    """Its configuration is not part of the checkpoint: only the width is known to be right."""
    backbone = save_backbone(tmp_path / "qwen", "qwen3")
    build().save_pretrained(tmp_path / "saved")
    model = PixCLIPModel.from_pretrained(tmp_path / "saved", text_backbone=tmp_path / "qwen")
    assert model.config.text_config.backbone_config.model_type == "qwen3"
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(model.text_model.backbone.state_dict()[name], tensor), name


def test_what_needs_a_backbone_is_refused_with_the_remedy(tmp_path):
    model = build()
    ids, mask = random_tokens([9, 5])
    remedy = "has no backbone .* vectors 32 wide, or load the checkpoint with text_backbone="
    tower = model.text_model
    for call in (
        lambda: model(pixel_values=random_images(2), input_ids=ids, attention_mask=mask),
        lambda: model.get_text_features(ids, mask),
        lambda: model.encode_text(["a dog"], None),
        lambda: tower.encode_backbone(["a dog"], None),
        lambda: model.set_text_backbone_trainable("lora"),
        lambda: model.set_text_backbone_trainable("full"),
        lambda: model.resize_token_embeddings(64),
        lambda: tower.resize_position_embeddings(64),
        lambda: tower.get_position_embeddings(),
        lambda: tower.add_long_text_path(positions=64),
        lambda: model.save_pretrained(tmp_path, include_text_backbone=True),
        lambda: TextFeatureStore(tmp_path, tower, None),
    ):
        with pytest.raises(ValueError, match=remedy):
            call()
    with pytest.raises(ValueError, match="backbone_embeds are 16 wide, the backbone of this model is 32 wide"):
        model.get_text_features(backbone_embeds=vectors(width=16))
    with pytest.raises(ValueError, match="has no LoRA adapters"):
        model.merge_text_backbone_lora()
    for fields in ({"backbone_training": "full"}, {"backbone_lora": {"rank": 2}}):
        with pytest.raises(
            StrictDataclassError, match=f"backbone_embeds_only=True makes no backbone.*{next(iter(fields))}"
        ):
            text_config(**ONLY, **fields)
    with pytest.raises(TypeError, match="unexpected names .'backbone_embeds_only'"):
        PixCLIPTextModel.from_backbone_pretrained("anything", backbone_embeds_only=True)


def test_what_needs_none_works(tmp_path):
    model = build()
    model.text_model.check_bidirectional()
    model.set_text_backbone_trainable("frozen")
    assert model.config.text_config.backbone_training == "frozen"
    assert not model.text_model.weights_changed()
    model.set_attn_implementation("eager")
    expected = model(pixel_values=random_images(3), mask_values=random_masks(3), backbone_embeds=vectors())
    model.set_attn_implementation("sdpa")
    found = model(pixel_values=random_images(3), mask_values=random_masks(3), backbone_embeds=vectors())
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image)
    model.save_pretrained(tmp_path / "half", include_text_backbone=False)
    assert_same_weights(PixCLIPModel.from_pretrained(tmp_path / "half"), model)
    half = PixCLIPModel.from_pretrained(tmp_path / "half", dtype=torch.float16, attn_implementation="eager")
    assert half.dtype == torch.float16 and half.config.vision_config._attn_implementation == "eager"
    # A second projection needs no table of positions.
    model.text_model.add_long_text_path()
    model.save_pretrained(tmp_path / "long")
    assert_same_weights(PixCLIPModel.from_pretrained(tmp_path / "long"), model)
    assert PixCLIPTextConfig.from_pretrained(tmp_path / "long").backbone_embeds_only


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_class", [PixCLIPModel, PixCLIPForPreTraining])
def test_it_trains_on_vectors(model_class, checkpointing, tmp_path):
    model = build(model_class).train()
    batch = {"pixel_values": random_images(3), "mask_values": random_masks(3), "backbone_embeds": vectors()}
    if model_class is PixCLIPForPreTraining:
        batch = ragged_batch()
        texts = len(batch.pop("input_ids"))
        del batch["attention_mask"]
        batch["backbone_embeds"] = vectors(texts)
    else:
        batch["return_loss"] = True
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arguments = TrainingArguments(
        tmp_path, max_steps=2, report_to="none", gradient_checkpointing=checkpointing, use_cpu=True, learning_rate=1e-2
    )
    trainer = Trainer(model, arguments, train_dataset=[0, 1], data_collator=lambda rows: dict(batch))
    assert trainer.train().training_loss > 0
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
        assert not torch.equal(tensor, before[name]), name
    trainer.save_model(tmp_path / "saved")
    assert_same_weights(model_class.from_pretrained(tmp_path / "saved"), model)


def test_remote_code_loads_it(tmp_path):
    """In a process of its own, which cannot import the package."""
    model = build()
    model.save_pretrained(tmp_path / "saved")
    torch.save((vectors(), features(model, backbone_embeds=vectors())), tmp_path / "expected.pt")
    script = """
        import sys, torch
        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "modeling_pixclip":
                    raise ModuleNotFoundError(name)
        sys.meta_path.insert(0, Blocker())
        from transformers import AutoModel
        model = AutoModel.from_pretrained(sys.argv[1] + "/saved", trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        embeds, expected = torch.load(sys.argv[1] + "/expected.pt")
        assert torch.equal(model.get_text_features(backbone_embeds=embeds).pooler_output, expected)
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
