# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""PixCLIPModel: features, logits and loss, building from two checkpoints, saving and loading."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import (
    EVA02,
    assert_same_weights,
    backbone_config,
    box_masks,
    check_initialisation_of_missing_weights,
    clip_vision_config,
    normalised,
    pixclip_config,
    random_boxes,
    random_images,
    random_masks,
    random_tokens,
    randomise,
    text_config,
    vision_config,
)
from torch.nn import functional as F
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    LlamaForCausalLM,
    StableLmConfig,
)

from modeling_pixclip import (
    PixCLIPForPreTraining,
    PixCLIPModel,
    PixCLIPTextModel,
    PixCLIPVisionModel,
    PixCLIPVisionModelWithProjection,
)


OWNERS = torch.tensor([1, 0, 1])


def tiny_model(model_class=PixCLIPModel, **fields):
    return randomise(model_class(pixclip_config(**fields)))


def region_batch(texts=3):
    """2 images, 3 regions, `texts` texts."""
    boxes = random_boxes(3)
    ids, mask = random_tokens([8, 5, 6, 3][:texts])
    return {
        "pixel_values": random_images(2),
        "mask_values": normalised(box_masks(boxes)),
        "region_image_index": OWNERS,
        "region_boxes": boxes,
        "input_ids": ids,
        "attention_mask": mask,
    }


def features(model, batch):
    """Logits and embeddings, whichever class the model is of."""
    with torch.no_grad():
        if isinstance(model, PixCLIPModel):
            outputs = model(**batch, return_loss=False)
            return [outputs.logits_per_image, outputs.image_embeds, outputs.text_embeds]
        if isinstance(model, PixCLIPTextModel):
            return [model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output]
        outputs = model(*(batch[name] for name in ("pixel_values", "mask_values", "region_image_index")))
        return [outputs[0], outputs.last_hidden_state]


def test_image_features_are_the_projected_class_token():
    model, batch = tiny_model(vision=EVA02), region_batch()
    with torch.no_grad():
        for inputs in ((batch["pixel_values"],), (batch["pixel_values"], batch["mask_values"], OWNERS)):
            tower = model.vision_model(*inputs)
            outputs = model.get_image_features(*inputs)
            expected = F.linear(tower.pooler_output, model.visual_projection.weight, model.visual_projection.bias)
            assert outputs.pooler_output.shape == (len(tower.pooler_output), 16)
            torch.testing.assert_close(outputs.pooler_output, expected)
            torch.testing.assert_close(outputs.last_hidden_state, tower.last_hidden_state)


def test_text_features_are_those_of_the_text_tower():
    model = tiny_model()
    ids, mask = random_tokens([8, 5])
    pooling_mask = mask.clone()
    pooling_mask[:, :2] = 0
    with torch.no_grad():
        expected = model.text_model(input_ids=ids, attention_mask=mask, pooling_mask=pooling_mask)
        outputs = model.get_text_features(ids, mask, pooling_mask)
        cached = model.get_text_features(backbone_embeds=outputs.backbone_embeds)
    torch.testing.assert_close(outputs.pooler_output, expected.pooler_output)
    torch.testing.assert_close(cached.pooler_output, expected.pooler_output)


def test_dense_features_are_the_projected_dense_map():
    model, batch = tiny_model(), region_batch()
    inputs = (batch["pixel_values"], batch["mask_values"], OWNERS)
    with torch.no_grad():
        tower = model.vision_model(*inputs, return_dense=True)
        outputs = model.get_dense_features(*inputs)
        assert model.get_dense_features(batch["pixel_values"]).last_hidden_state.shape == (2, 16, 16)
    assert outputs.last_hidden_state.shape == (3, 16, 16)
    torch.testing.assert_close(outputs.last_hidden_state, model.visual_projection(tower.dense_state))
    torch.testing.assert_close(outputs.pooler_output, model.get_image_features(*inputs).pooler_output)


@pytest.mark.parametrize("mask_input", [True, False])
def test_region_features_under_masks(mask_input):
    """Patches weighted by the share of them that the mask covers."""
    model, batch = tiny_model(vision={"projection_bias": True}), region_batch()
    batch["pixel_values"] = random_images(2, 32, 48)
    masks = box_masks(batch["region_boxes"], 32, 48)
    with torch.no_grad():
        outputs = model.get_region_features(
            batch["pixel_values"], normalised(masks), OWNERS, mask_input=mask_input
        ).pooler_output
        for row, owner in enumerate(OWNERS):
            mask = normalised(masks[row : row + 1]) if mask_input else None
            dense = model.vision_model(batch["pixel_values"][owner : owner + 1], mask, return_dense=True).dense_state
            shares = torch.stack(
                [masks[row, 0, y : y + 8, x : x + 8].mean() for y in range(0, 32, 8) for x in range(0, 48, 8)]
            )
            pooled = (shares[:, None] * dense[0]).sum(0) / shares.sum()
            torch.testing.assert_close(outputs[row], model.visual_projection(pooled), atol=1e-5, rtol=1e-4)


def test_region_features_of_boxes_without_masks():
    """A box on whole patches is the mean of its patches, in the map of the image without a mask."""
    model = tiny_model()
    images = random_images(2, 32, 64)
    boxes = torch.tensor([[0.25, 0.25, 0.75, 0.75], [0.0, 0.5, 0.5, 1.0], [0.125, 0.0, 0.375, 0.25]])
    with torch.no_grad():
        outputs = model.get_region_features(images, region_boxes=boxes, region_image_index=OWNERS).pooler_output
        dense = model.get_dense_features(images).last_hidden_state.unflatten(1, (4, 8))
    for row, (rows, columns) in enumerate([((1, 3), (2, 6)), ((2, 4), (0, 4)), ((0, 1), (1, 3))]):
        expected = dense[OWNERS[row], slice(*rows), slice(*columns)].mean((0, 1))
        torch.testing.assert_close(outputs[row], expected, atol=1e-5, rtol=1e-4)


def test_region_features_of_boxes_with_masks():
    """With pooling="roi" the mask may still enter the tower."""
    model, batch = tiny_model(), region_batch()
    box = torch.tensor([[0.25, 0.25, 0.75, 0.75]]).expand(3, 4)
    inputs = (batch["pixel_values"], batch["mask_values"], OWNERS, box)
    with torch.no_grad():
        conditioned = model.get_region_features(*inputs, pooling="roi").pooler_output
        plain = model.get_region_features(*inputs, pooling="roi", mask_input=False).pooler_output
        dense = model.get_dense_features(*inputs[:3]).last_hidden_state.unflatten(1, (4, 4))
        plain_dense = model.get_dense_features(inputs[0]).last_hidden_state.unflatten(1, (4, 4))
    torch.testing.assert_close(conditioned, dense[:, 1:3, 1:3].mean((1, 2)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain, plain_dense[OWNERS, 1:3, 1:3].mean((1, 2)), atol=1e-5, rtol=1e-4)


def test_region_features_need_their_inputs():
    model, batch = tiny_model(), region_batch()
    images, masks, boxes = batch["pixel_values"], batch["mask_values"], batch["region_boxes"]
    with torch.no_grad():
        one_each = model.get_region_features(images, masks[:2]).pooler_output
        indexed = model.get_region_features(images, masks[:2], torch.tensor([0, 1])).pooler_output
    torch.testing.assert_close(one_each, indexed)
    with pytest.raises(ValueError, match="pooling='mask' needs mask_values"):
        model.get_region_features(images, region_boxes=boxes, pooling="mask")
    with pytest.raises(ValueError, match="pooling='roi' needs region_boxes"):
        model.get_region_features(images)
    with pytest.raises(ValueError, match="3 regions for 2 images.*region_image_index"):
        model.get_region_features(images, masks)
    with pytest.raises(ValueError, match="3 regions for 2 images.*region_image_index"):
        model.get_region_features(images, region_boxes=boxes)
    with pytest.raises(ValueError, match=r"masks \[1\] cover nothing"):
        model.get_region_features(images, normalised(torch.stack([torch.ones(1, 32, 32), torch.zeros(1, 32, 32)])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_background_of_rounded_masks_does_not_leak(dtype):
    model, batch = tiny_model(), region_batch()
    masks = box_masks(batch["region_boxes"])
    assert torch.equal(model._soft_masks(normalised(masks).to(dtype)) == 0, masks == 0)
    # One step of an 8-bit mask still counts.
    assert (model._soft_masks(normalised(torch.full((1, 1, 8, 8), 1 / 255)).to(dtype)) > 0).all()
    with pytest.raises(ValueError, match=r"masks \[0\] cover nothing"):
        model.get_region_features(batch["pixel_values"][:1], normalised(torch.zeros(1, 1, 32, 32)).to(dtype))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_no_regions_give_no_rows(attention):
    model, batch = tiny_model(), region_batch()
    model.set_attn_implementation(attention)
    none = {name: batch[name][:0] for name in ("mask_values", "region_image_index", "region_boxes")}
    with torch.no_grad():
        outputs = model(**{**batch, **none})
        assert outputs.image_embeds.shape == (0, 16) and outputs.logits_per_image.shape == (0, 3)
        inputs = (batch["pixel_values"], none["mask_values"], none["region_image_index"])
        assert model.get_dense_features(*inputs).last_hidden_state.shape == (0, 16, 16)
        for pooling in ("mask", "roi"):
            regions = model.get_region_features(*inputs, none["region_boxes"], pooling)
            assert regions.pooler_output.shape == (0, 16)
    with pytest.raises(ValueError, match="no image rows"):
        model(**{**batch, **none}, return_loss=True)


def test_logits_are_float32_under_autocast():
    model, batch = tiny_model(logit_scale_init_value=4.6), region_batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    expected = model.logit_scale.detach().exp() * outputs.image_embeds.float() @ outputs.text_embeds.float().T
    assert outputs.logits_per_image.dtype == torch.float32
    torch.testing.assert_close(outputs.logits_per_image, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["masks", "mask_value", "pixel_mask", "boxes"])
def test_misspelt_inputs_are_named(name):
    model, batch = tiny_model(), region_batch()
    given = {name: batch["mask_values"]}
    with pytest.raises(TypeError, match=rf"unexpected arguments \['{name}'\].*mask_values"):
        model(**batch, **given)
    for method in (model.get_image_features, model.get_dense_features):
        with pytest.raises(TypeError, match=name):
            method(batch["pixel_values"], **given)
    with pytest.raises(TypeError, match=name):
        model.get_region_features(batch["pixel_values"], batch["mask_values"], OWNERS, **given)
    with pytest.raises(TypeError, match=name):
        model.get_text_features(batch["input_ids"], **given)


def test_further_inputs_of_pretraining_are_taken():
    model, batch = tiny_model(), region_batch()
    further = {"crop_pixel_values": random_images(3), "crop_mask_values": random_masks(3), "object_text_index": OWNERS}
    for one, two in zip(features(model, {**batch, **further}), features(model, batch)):
        assert torch.equal(one, two)


@pytest.mark.parametrize("texts", [1, 3, 4])
def test_logits_are_scaled_cosines(texts):
    model, batch = tiny_model(), region_batch(texts)
    with torch.no_grad():
        outputs = model(**batch)
        images = model.get_image_features(batch["pixel_values"], batch["mask_values"], OWNERS).pooler_output
        words = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    assert outputs.logits_per_image.shape == (3, texts) and outputs.loss is None
    for row, image in enumerate(images):
        for column, text in enumerate(words):
            cosine = float(image @ text / image.norm() / text.norm())
            assert float(outputs.logits_per_image[row, column]) == pytest.approx(cosine / 0.07, abs=1e-3)
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.T)
    torch.testing.assert_close(outputs.image_embeds, images / images.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(outputs.text_embeds, words / words.norm(dim=-1, keepdim=True))


def test_inverse_temperature_is_bounded():
    model, batch = tiny_model(logit_scale_max=20.0), region_batch()
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
        outputs = model(**batch)
    expected = 20 * outputs.image_embeds @ outputs.text_embeds.T
    torch.testing.assert_close(outputs.logits_per_image, expected, atol=1e-4, rtol=1e-4)
    # Above the bound it can still be lowered.
    model(**batch).logits_per_image.sum().abs().backward()
    assert float(model.logit_scale.grad) > 0


def test_loss_pairs_rows_by_the_index():
    model, batch = tiny_model(), region_batch()
    outputs = model(**batch, return_loss=True)
    rows = torch.arange(3)
    expected = (F.cross_entropy(outputs.logits_per_image, rows) + F.cross_entropy(outputs.logits_per_text, rows)) / 2
    torch.testing.assert_close(outputs.loss, expected)
    batch = region_batch(4)
    index = torch.tensor([3, 1, 0])
    outputs = model(**batch, region_text_index=index, return_loss=True)
    logits = outputs.logits_per_image[:, index]
    expected = (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    assert model.logit_scale.grad is not None and model.visual_projection.weight.grad.any()
    with pytest.raises(ValueError, match="3 image rows and 4 texts.*region_text_index"):
        model(**batch, return_loss=True)
    with pytest.raises(ValueError, match="region_text_index has 2 entries for 3 image rows"):
        model(**batch, region_text_index=index[:2], return_loss=True)
    with pytest.raises(ValueError, match="pixel_values are missing"):
        model(input_ids=batch["input_ids"])


def test_tuples_and_recorded_states():
    model, batch = tiny_model(), region_batch()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**batch, output_hidden_states=True, output_attentions=True)
        as_tuple = model(**batch, return_dict=False)
    assert torch.equal(as_tuple[0], outputs.logits_per_image) and isinstance(outputs.to_tuple()[-1], tuple)
    for tower, layers in ((outputs.vision_model_output, 2), (outputs.text_model_output, 2)):
        assert len(tower.hidden_states) == layers + 1 and len(tower.attentions) == layers


def test_attention_implementation_reaches_both_towers(tmp_path):
    model, batch = tiny_model(), region_batch()
    expected = features(model, batch)
    model.save_pretrained(tmp_path)
    eager = PixCLIPModel.from_pretrained(tmp_path, attn_implementation="eager")
    switched = PixCLIPModel.from_pretrained(tmp_path, attn_implementation="sdpa")
    switched.set_attn_implementation("eager")
    for other in (eager, switched):
        with torch.no_grad():
            outputs = other(**batch, output_attentions=True)
        # Only eager attention has weights to show.
        assert len(outputs.vision_model_output.attentions) == len(outputs.text_model_output.attentions) == 2
        assert all(weights is not None for weights in outputs.vision_model_output.attentions)
        for one, two in zip(features(other, batch), expected, strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    eager.set_attn_implementation({"vision_config": "sdpa"})
    assert eager.config.vision_config._attn_implementation == "sdpa"
    assert eager.config.text_config.backbone_config._attn_implementation == "eager"
    for one, two in zip(features(eager, batch), expected, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("vision", [{}, EVA02], ids=["clip", "eva02"])
def test_bfloat16_stays_near_float32(vision):
    model, batch = tiny_model(vision=vision), region_batch()
    expected = features(model, batch)
    loss = float(model(**batch, return_loss=True).loss.detach())
    model.to(torch.bfloat16)
    for one, two in zip(features(model, batch)[1:], expected[1:], strict=True):
        assert one.dtype == torch.bfloat16
        assert F.cosine_similarity(one.float(), two).min() > 0.99
    outputs = model(**batch, return_loss=True)
    outputs.loss.backward()
    assert float(outputs.loss.detach()) == pytest.approx(loss, abs=0.3)
    with torch.no_grad():
        for pooling in ("mask", "roi"):
            regions = model.get_region_features(
                batch["pixel_values"], batch["mask_values"], OWNERS, batch["region_boxes"], pooling
            ).pooler_output
            assert regions.dtype == torch.bfloat16 and regions.isfinite().all()


def save_text_backbone(folder, name="llama"):
    model = randomise(AutoModel.from_config(backbone_config(name)), seed=5)
    model.save_pretrained(folder)
    return model


def clip_parent(kind):
    if kind == "clip":
        config = CLIPConfig(
            vision_config=clip_vision_config(projection_dim=99).to_dict(),
            text_config=backbone_config("clip_text").to_dict(),
            projection_dim=16,
        )
        return randomise(CLIPModel(config), seed=4)
    return randomise(CLIPVisionModelWithProjection(clip_vision_config()), seed=4)


@pytest.mark.parametrize("kind", ["clip", "clip_vision_model"])
def test_built_from_a_clip_folder_and_a_text_folder(tmp_path, kind):
    parent = clip_parent(kind)
    parent.save_pretrained(tmp_path / "vision")
    backbone = save_text_backbone(tmp_path / "text")
    model = PixCLIPModel.from_vision_text_pretrained(str(tmp_path / "vision"), str(tmp_path / "text"))
    assert not model.training and model.config.projection_dim == 16
    images = random_images(2)
    with torch.no_grad():
        expected = parent.get_image_features(images).pooler_output if kind == "clip" else parent(images).image_embeds
        for inputs in ((images,), (images, random_masks(2)), (images, random_masks(3), OWNERS)):
            outputs = model.get_image_features(*inputs).pooler_output
            wanted = expected if len(inputs) < 3 else expected[OWNERS]
            torch.testing.assert_close(outputs, wanted, atol=1e-5, rtol=0)
    assert_same_weights(model.text_model.backbone, backbone)
    assert not any(parameter.requires_grad for parameter in model.text_model.backbone.parameters())
    ids, mask = random_tokens([8, 5])
    with torch.no_grad():
        backbone.config.is_causal = False
        states = backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(
            model.get_text_features(ids, mask).backbone_embeds[1], states[1, :5].mean(0), atol=1e-5, rtol=1e-5
        )
    model.save_pretrained(tmp_path / "saved")
    for one, two in zip(
        features(PixCLIPModel.from_pretrained(tmp_path / "saved"), region_batch()), features(model, region_batch())
    ):
        assert torch.equal(one, two)


def test_built_with_settings(tmp_path):
    clip_parent("clip").save_pretrained(tmp_path / "vision")
    save_text_backbone(tmp_path / "text")
    model = PixCLIPForPreTraining.from_vision_text_pretrained(
        str(tmp_path / "vision"),
        str(tmp_path / "text"),
        text_kwargs={"pooling": "last", "backbone_training": "full", "bidirectional": False},
        vision_kwargs={"mask_patch_bias": True, "default_mask": "none"},
        local_weight=0.0,
    )
    assert isinstance(model, PixCLIPForPreTraining) and model.config.term_weights == {"global": 1.0, "crop": 1.0}
    assert model.config.text_config.pooling == "last" and model.config.text_config.backbone_config.is_causal
    assert all(parameter.requires_grad for parameter in model.parameters())
    bias = model.vision_model.embeddings.mask_patch_embedding.bias
    assert bias is not None and not bias.any() and model.config.vision_config.default_mask == "none"


def test_built_around_a_vision_tower_from_scratch(tmp_path):
    backbone = save_text_backbone(tmp_path / "text")
    given = vision_config(**EVA02)
    model = PixCLIPModel.from_vision_text_pretrained(
        given, str(tmp_path / "text"), vision_kwargs={"default_mask": "none"}, logit_scale_init_value=1.0
    )
    assert model.config.projection_dim == 16 and model.config.vision_config.default_mask == "none"
    assert given.default_mask == "full"
    assert_same_weights(model.text_model.backbone, backbone)
    assert float(model.logit_scale.detach()) == 1.0
    assert model.vision_model.encoder.layers[0].mlp.gate_proj.weight.std() > 0
    assert not model.vision_model.embeddings.mask_patch_embedding.weight.any()


@pytest.mark.parametrize("model_class", [PixCLIPModel, PixCLIPVisionModelWithProjection])
def test_built_from_a_pixclip_folder_keeps_what_the_mask_has_learnt(tmp_path, model_class):
    config = pixclip_config(vision=EVA02) if model_class is PixCLIPModel else vision_config(**EVA02)
    parent = randomise(model_class(config))
    parent.save_pretrained(tmp_path / "vision")
    save_text_backbone(tmp_path / "text", "qwen3")
    model = PixCLIPModel.from_vision_text_pretrained(str(tmp_path / "vision"), str(tmp_path / "text"))
    inputs = (random_images(2), random_masks(3), OWNERS)
    with torch.no_grad():
        expected = (
            parent.get_image_features(*inputs).pooler_output
            if model_class is PixCLIPModel
            else parent(*inputs).image_embeds
        )
        torch.testing.assert_close(model.get_image_features(*inputs).pooler_output, expected, atol=1e-5, rtol=0)
    assert model.config.text_config.backbone_config.model_type == "qwen3"


def test_built_from_a_causal_language_model(tmp_path):
    clip_parent("clip").save_pretrained(tmp_path / "vision")
    language_model = randomise(LlamaForCausalLM(backbone_config("llama")))
    language_model.to(torch.bfloat16).save_pretrained(tmp_path / "text")
    model = PixCLIPModel.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), dtype=torch.float32
    )
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert_same_weights(model.text_model.backbone, language_model.model.float())


def test_built_in_another_dtype(tmp_path):
    parent = clip_parent("clip")
    parent.save_pretrained(tmp_path / "vision")
    backbone = save_text_backbone(tmp_path / "text").bfloat16()
    model = PixCLIPModel.from_vision_text_pretrained(
        str(tmp_path / "vision"), str(tmp_path / "text"), dtype=torch.bfloat16
    )
    assert model.dtype == model.config.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert_same_weights(model.text_model.backbone, backbone)
    weight = parent.visual_projection.weight
    assert torch.equal(model.visual_projection.weight, weight.bfloat16())
    # Rotary frequencies keep their precision, as when loading.
    rope = model.text_model.backbone.rotary_emb.inv_freq
    assert rope.dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    loaded = PixCLIPModel.from_pretrained(tmp_path / "saved")
    for one, two in zip(features(loaded, region_batch()), features(model, region_batch()), strict=True):
        assert torch.equal(one, two)


def test_the_backbone_is_loaded_and_not_made_twice(tmp_path, monkeypatch):
    clip_parent("clip").save_pretrained(tmp_path / "vision")
    save_text_backbone(tmp_path / "text")
    monkeypatch.setattr(AutoModel, "from_config", lambda *_, **__: pytest.fail("a second backbone is made"))
    model = PixCLIPModel.from_vision_text_pretrained(str(tmp_path / "vision"), str(tmp_path / "text"))
    assert model.text_model.backbone.config is model.config.text_config.backbone_config
    assert model.config.text_config.backbone_config._attn_implementation == "pixclip_varlen"
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**region_batch(), output_attentions=True)
    assert all(weights is not None for weights in outputs.text_model_output.attentions)


def test_options_without_effect_are_refused(tmp_path):
    clip_parent("clip").save_pretrained(tmp_path / "vision")
    save_text_backbone(tmp_path / "text")
    folders = str(tmp_path / "vision"), str(tmp_path / "text")
    for options, message in (
        ({"device_map": "cpu"}, r"PixCLIPModel has unexpected names \['device_map'\].*global_weight"),
        ({"revision": "main", "trust_remote_code": True}, r"\['revision', 'trust_remote_code'\]"),
        ({"text_kwargs": {"poolin": "last"}}, r"text_kwargs has unexpected names \['poolin'\].*'pooling'"),
        ({"text_kwargs": {"dtype": "bfloat16"}}, r"text_kwargs has unexpected names \['dtype'\]"),
        ({"text_kwargs": {"backbone_config": {}}}, r"text_kwargs has unexpected names \['backbone_config'\]"),
        ({"vision_kwargs": {"mask_bias": True}}, r"vision_kwargs has unexpected names \['mask_bias'\]"),
    ):
        with pytest.raises(TypeError, match=message):
            PixCLIPModel.from_vision_text_pretrained(*folders, **options)


def test_a_backbone_that_stays_causal_is_refused_unless_asked_for(tmp_path):
    clip_parent("clip").save_pretrained(tmp_path / "vision")
    fields = backbone_config("llama").to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads",)
    config = StableLmConfig(**{name: fields[name] for name in names}, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    randomise(AutoModel.from_config(config)).save_pretrained(tmp_path / "text")
    folders = str(tmp_path / "vision"), str(tmp_path / "text")
    for model_class in (PixCLIPModel, PixCLIPForPreTraining):
        with pytest.raises(ValueError, match="type 'stablelm'.*bidirectional=False"):
            model_class.from_vision_text_pretrained(*folders)
    model = PixCLIPModel.from_vision_text_pretrained(*folders, text_kwargs={"bidirectional": False})
    assert model.config.text_config.backbone_config.is_causal


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    vision, text, bare = (str(tmp_path / name) for name in ("vision", "text", "bare"))
    clip_parent("clip").save_pretrained(vision)
    save_text_backbone(text)
    with pytest.raises(ValueError, match=r"projection_dim \(8\) follows from the vision tower"):
        PixCLIPModel.from_vision_text_pretrained(vision, text, projection_dim=8)
    with pytest.raises(ValueError, match="type 'llama'; accepted vision checkpoints: clip"):
        PixCLIPModel.from_vision_text_pretrained(text, text)
    with pytest.raises(ValueError, match=r"does not fit the tower: missing \[.*inner_layer_norm"):
        PixCLIPModel.from_vision_text_pretrained(vision, text, vision_kwargs={"sub_layer_norm": True})
    with pytest.raises(ValueError, match=r"does not fit the tower: .*unexpected \[.*pre_layrnorm"):
        PixCLIPModel.from_vision_text_pretrained(vision, text, vision_kwargs={"pre_layer_norm": False})
    with pytest.raises(ValueError, match=r"does not fit.*fc1.weight \(64, 32\) instead of \(48, 32\)"):
        PixCLIPModel.from_vision_text_pretrained(vision, text, vision_kwargs={"intermediate_size": 48})
    # Vision towers without a projection, which would otherwise get a random one.
    for tower in (CLIPVisionModel(clip_vision_config()), PixCLIPVisionModel(vision_config())):
        tower.save_pretrained(bare)
        with pytest.raises(ValueError, match="does not fit the tower: missing.*visual_projection.weight"):
            PixCLIPModel.from_vision_text_pretrained(bare, text)


CLASSES = {
    PixCLIPModel: pixclip_config,
    PixCLIPForPreTraining: pixclip_config,
    PixCLIPVisionModel: vision_config,
    PixCLIPVisionModelWithProjection: vision_config,
    PixCLIPTextModel: text_config,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model_class", CLASSES)
def test_saved_model_loads_bit_equal(tmp_path, model_class, dtype):
    randomise(model_class(CLASSES[model_class]())).save_pretrained(tmp_path / "first")
    model = model_class.from_pretrained(tmp_path / "first", dtype=dtype)
    model.save_pretrained(tmp_path)
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and not loaded.training
    assert_same_weights(loaded, model)
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == {
        name: p.requires_grad for name, p in model.named_parameters()
    }
    for one, two in zip(features(loaded, region_batch()), features(model, region_batch()), strict=True):
        # Logits are float32, whatever the weights.
        assert one.dtype in (dtype, torch.float32) and torch.equal(one, two)


@pytest.mark.parametrize("backbone", ["llama", "bert", "clip_text"])
def test_parts_load_out_of_a_whole_checkpoint(tmp_path, backbone):
    model = randomise(PixCLIPModel(pixclip_config(vision=EVA02, text={"backbone": backbone})))
    model.save_pretrained(tmp_path)
    with open(tmp_path / "config.json") as file:
        assert json.load(file)["model_type"] == "pixclip"
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    for part_class, part in (
        (PixCLIPModel, model),
        (PixCLIPForPreTraining, model),
        (PixCLIPVisionModel, model.vision_model),
        (PixCLIPTextModel, model.text_model),
    ):
        loaded, info = part_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values()), (part_class, info)
        assert_same_weights(loaded, part)
    loaded, info = PixCLIPVisionModelWithProjection.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    inputs = (random_images(2), random_masks(3), OWNERS)
    with torch.no_grad():
        assert torch.equal(loaded(*inputs).image_embeds, model.get_image_features(*inputs).pooler_output)


def test_fresh_model_ignores_masks_and_starts_at_clips_temperature():
    model = PixCLIPModel(pixclip_config()).eval()
    with torch.no_grad():
        one, other = (model.get_image_features(random_images(2), random_masks(2, seed=seed)) for seed in (0, 1))
    assert torch.equal(one.pooler_output, other.pooler_output)
    assert float(model.logit_scale.detach().exp()) == pytest.approx(1 / 0.07, rel=1e-4)
    assert 0.6 < float(model.visual_projection.weight.detach().std()) * 32**0.5 < 1.5


def test_weights_missing_from_a_checkpoint_are_initialised(tmp_path):
    torch.manual_seed(0)
    config = pixclip_config(vision={"projection_bias": True, "num_hidden_layers": 1}, text={"adapter_layers": 1})
    check_initialisation_of_missing_weights(PixCLIPModel, config, tmp_path, frozen=["text_model.backbone.layers"])


def test_input_embeddings_are_the_backbones():
    model = PixCLIPModel(pixclip_config())
    assert model.get_input_embeddings() is model.text_model.backbone.embed_tokens
    other = torch.nn.Embedding(7, 32)
    model.set_input_embeddings(other)
    assert model.text_model.backbone.embed_tokens is other
