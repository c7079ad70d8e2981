# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The vision tower against CLIP's, and against EVA02 written down formula by formula."""

import math

import pytest
import torch
from tiny_models import (
    EVA02,
    assert_same_statistics,
    check_initialisation_of_missing_weights,
    clip_vision_config,
    normalised,
    random_images,
    random_masks,
    randomise,
    vision_config,
)
from torch.nn import functional as F
from transformers import CLIPVisionModelWithProjection

from modeling_pixclip import PixCLIPVisionModel, PixCLIPVisionModelWithProjection


NEW_WEIGHTS = ["vision_model.embeddings.mask_patch_embedding.weight"]


def clip_pair(**fields):
    """A random CLIP tower and a fresh PixCLIP tower with its weights."""
    parent = randomise(CLIPVisionModelWithProjection(clip_vision_config(**fields)), seed=1)
    model = PixCLIPVisionModelWithProjection(vision_config(**fields)).eval()
    missing, unexpected = model.load_state_dict(parent.state_dict(), strict=False)
    assert (missing, unexpected) == (NEW_WEIGHTS, [])
    return parent, model


def eva_tower(attention="sdpa", **fields):
    config = vision_config(**{**EVA02, **fields})
    return randomise(PixCLIPVisionModelWithProjection._from_config(config, attn_implementation=attention))


def rotated(vector, row, column, rows, columns):
    """One head's vector at one patch: pairs are complex numbers, turned by the row in its first half, then the column."""
    numbers = torch.view_as_complex(vector.reshape(-1, 2).contiguous())
    quarter = len(vector) // 4
    angles = [
        position / count * 16 * 10000.0 ** (-2 * pair / (2 * quarter))
        for position, count in ((row, rows), (column, columns))
        for pair in range(quarter)
    ]
    turns = torch.polar(torch.ones(len(angles)), torch.tensor(angles))
    return torch.view_as_real(numbers * turns).flatten()


def eva_reference(model, pixels, mask):
    """EVA02 with a mask for one image: token after token, head after head. Returns the embedding and all states."""
    config = model.config
    weights = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    patch, heads = config.patch_size, config.num_attention_heads
    rows, columns = pixels.shape[-2] // patch, pixels.shape[-1] // patch
    places = [(row, column) for row in range(rows) for column in range(columns)]

    def linear(name, value):
        return weights[name + ".weight"] @ value + weights.get(name + ".bias", 0)

    def norm(name, value):
        centred = value - value.mean()
        return centred / (centred.square().mean() + 1e-6).sqrt() * weights[name + ".weight"] + weights[name + ".bias"]

    def convolution(name, image, row, column):
        window = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        return (weights[name + ".weight"] * window).sum((1, 2, 3)) + weights[name + ".bias"]

    positions = weights["embeddings.position_embedding.weight"]
    if (rows, columns) != config.grid_size:
        table = positions[1:].T.reshape(1, -1, *config.grid_size)
        table = F.interpolate(table, (rows, columns), mode="bicubic")[0].flatten(1).T
        positions = torch.cat([positions[:1], table])
    tokens = [weights["embeddings.class_embedding"]]
    for row, column in places:
        token = convolution("embeddings.patch_embedding", pixels, row, column)
        tokens.append(token + convolution("embeddings.mask_patch_embedding", mask, row, column))
    tokens = [token + position for token, position in zip(tokens, positions, strict=True)]
    states = [tokens]
    for layer in range(config.num_hidden_layers):
        name = f"encoder.layers.{layer}."
        inputs = [norm(name + "layer_norm1", token) for token in tokens]
        attended = [[] for _ in tokens]
        for head in range(heads):
            width = config.hidden_size // heads
            part = slice(head * width, (head + 1) * width)
            query, key, value = (
                [linear(f"{name}self_attn.{which}_proj", token)[part] for token in inputs] for which in "qkv"
            )
            for vectors in (query, key):
                vectors[1:] = [
                    rotated(vector, *place, rows, columns) for vector, place in zip(vectors[1:], places, strict=True)
                ]
            for i in range(len(tokens)):
                scores = torch.stack([query[i] @ other / math.sqrt(width) for other in key]).exp()
                attended[i].append(sum(score * other for score, other in zip(scores / scores.sum(), value)))
        for i, heads_of_token in enumerate(attended):
            joined = norm(name + "self_attn.inner_layer_norm", torch.cat(heads_of_token))
            tokens[i] = tokens[i] + linear(name + "self_attn.out_proj", joined)
            inner = norm(name + "layer_norm2", tokens[i])
            gate = linear(name + "mlp.gate_proj", inner)
            inner = gate * torch.sigmoid(gate) * linear(name + "mlp.up_proj", inner)
            tokens[i] = tokens[i] + linear(name + "mlp.down_proj", norm(name + "mlp.inner_layer_norm", inner))
        states.append(list(tokens))
    pooled = norm("post_layernorm", tokens[0])
    embedding = model.visual_projection.weight @ pooled + model.visual_projection.bias
    return embedding, torch.stack(tokens)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_fresh_tower_equals_its_clip_parent_whatever_the_mask(attention):
    parent, model = clip_pair()
    model.set_attn_implementation(attention)
    images = random_images(3)
    with torch.no_grad():
        expected = parent(images)
        for mask in (None, random_masks(3), torch.randn(3, 1, 32, 32), torch.zeros(3, 1, 32, 32)):
            outputs = model(images, mask)
            torch.testing.assert_close(outputs.image_embeds, expected.image_embeds, atol=1e-5, rtol=0)
            torch.testing.assert_close(outputs.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
        owners = torch.tensor([2, 0, 2, 1, 2])
        several = model(images, random_masks(5), owners).image_embeds
    torch.testing.assert_close(several, expected.image_embeds[owners], atol=1e-5, rtol=0)


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_openai_layout_follows_the_activation_of_the_config(hidden_act):
    parent, model = clip_pair(hidden_act=hidden_act)
    with torch.no_grad():
        torch.testing.assert_close(
            model(random_images(2)).image_embeds, parent(random_images(2)).image_embeds, atol=1e-5, rtol=0
        )


def test_recorded_states_are_those_of_clip():
    parent, model = clip_pair()
    for tower in (parent, model):
        tower.set_attn_implementation("eager")
    with torch.no_grad():
        expected = parent(random_images(2), output_hidden_states=True, output_attentions=True)
        outputs = model(random_images(2), output_hidden_states=True, output_attentions=True)
        assert model(random_images(2)).hidden_states is None
    assert len(outputs.hidden_states) == len(expected.hidden_states) == 3
    assert len(outputs.attentions) == len(expected.attentions) == 2
    for one, other in zip(outputs.hidden_states + outputs.attentions, expected.hidden_states + expected.attentions):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_one_mask_for_each_of_several_regions_of_an_image():
    """R masks of one image give the rows that R passes of one mask give."""
    model = randomise(PixCLIPVisionModelWithProjection(vision_config()))
    images, masks = random_images(2), random_masks(4)
    owners = torch.tensor([1, 0, 1, 1])
    with torch.no_grad():
        together = model(images, masks, owners).image_embeds
        for row, owner in enumerate(owners):
            alone = model(images[owner : owner + 1], masks[row : row + 1]).image_embeds
            torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("image_size, height, width", [(32, 32, 32), (32, 24, 40), ([32, 48], 32, 48)])
def test_eva02_tower_equals_the_formulas(attention, image_size, height, width):
    model = eva_tower(attention, image_size=image_size)
    images, masks = random_images(2, height, width), random_masks(2, height, width)
    with torch.no_grad():
        outputs = model(images, masks)
        for row in range(2):
            embedding, states = eva_reference(model, images[row], masks[row])
            torch.testing.assert_close(outputs.image_embeds[row], embedding, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(outputs.last_hidden_state[row], states, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("height, width", [(16, 16), (48, 64), (64, 32), (8, 40)])
def test_positions_interpolate_as_in_clip(height, width):
    parent, model = clip_pair()
    images = random_images(2, height, width)
    with torch.no_grad():
        expected = parent(images, interpolate_pos_encoding=True).image_embeds
        outputs = model(images, random_masks(2, height, width)).image_embeds
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("height, width", [(36, 32), (32, 36)])
def test_sizes_that_are_no_multiple_of_the_patch_are_refused(height, width):
    model = PixCLIPVisionModel(vision_config())
    with pytest.raises(ValueError, match=f"{height} x {width} pixels.*multiples of the patch size 8"):
        model(random_images(1, height, width))


def test_masks_that_do_not_fit_are_refused():
    model = PixCLIPVisionModel(vision_config())
    with pytest.raises(ValueError, match=r"\(2, 1, 16, 16\).*\(R, 1, 32, 32\)"):
        model(random_images(2), random_masks(2, 16, 16))
    with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\).*\(R, 1, 32, 32\)"):
        model(random_images(2), torch.ones(2, 3, 32, 32))
    with pytest.raises(ValueError, match="3 masks for 2 images.*region_image_index"):
        model(random_images(2), random_masks(3))
    with pytest.raises(ValueError, match="3 masks for 4 entries of region_image_index"):
        model(random_images(2), random_masks(3), torch.tensor([0, 0, 1, 1]))


@pytest.mark.parametrize("fields", [{}, EVA02], ids=["clip", "eva02"])
def test_mask_convolution_starts_at_zero(fields):
    for model in (
        PixCLIPVisionModel(vision_config(**fields)).embeddings,
        PixCLIPVisionModelWithProjection(vision_config(**fields)).vision_model.embeddings,
    ):
        parameters = list(model.mask_patch_embedding.parameters())
        assert len(parameters) == 1 + bool(fields)
        assert all(not parameter.any() for parameter in parameters)


def test_mask_convolution_starts_at_zero_when_a_clip_checkpoint_is_loaded(tmp_path):
    parent = randomise(CLIPVisionModelWithProjection(clip_vision_config()))
    parent.save_pretrained(tmp_path)
    model, info = PixCLIPVisionModelWithProjection.from_pretrained(
        tmp_path, config=vision_config(), output_loading_info=True
    )
    assert sorted(info["missing_keys"]) == NEW_WEIGHTS and not info["unexpected_keys"]
    assert not model.vision_model.embeddings.mask_patch_embedding.weight.any()
    with torch.no_grad():
        torch.testing.assert_close(
            model(random_images(2), random_masks(2)).image_embeds,
            parent(random_images(2)).image_embeds,
            atol=1e-5,
            rtol=0,
        )


def test_the_mask_matters_once_its_convolution_has_learnt():
    _, model = clip_pair()
    images, masks = random_images(1), random_masks(2)
    loss = model(images.expand(2, -1, -1, -1), masks).image_embeds.square().sum()
    loss.backward()
    convolution = model.vision_model.embeddings.mask_patch_embedding.weight
    assert convolution.grad.abs().max() > 0
    with torch.no_grad():
        convolution.sub_(0.1 * convolution.grad / convolution.grad.norm())
        outputs = model(images, masks, torch.tensor([0, 0])).image_embeds
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("height, width", [(32, 32), (16, 48)])
def test_no_mask_means_a_mask_of_ones(height, width):
    model = eva_tower(default_mask="full")
    images = random_images(2, height, width)
    ones = normalised(torch.ones(2, 1, height, width))
    with torch.no_grad():
        torch.testing.assert_close(model(images).image_embeds, model(images, ones).image_embeds, atol=1e-5, rtol=0)
        different = model(images, random_masks(2, height, width)).image_embeds
        assert (model(images).image_embeds - different).abs().max() > 1e-3


def test_default_mask_follows_the_normalisation_of_the_config():
    model = eva_tower(mask_mean=0.25, mask_std=0.5)
    with torch.no_grad():
        expected = model(random_images(1), torch.full((1, 1, 32, 32), (1 - 0.25) / 0.5)).image_embeds
        torch.testing.assert_close(model(random_images(1)).image_embeds, expected, atol=1e-5, rtol=0)


def test_no_mask_can_mean_no_mask_tokens():
    model = eva_tower(default_mask="none")
    silent = eva_tower(default_mask="none")
    with torch.no_grad():
        for parameter in silent.vision_model.embeddings.mask_patch_embedding.parameters():
            parameter.zero_()
        without = model(random_images(2)).image_embeds
        torch.testing.assert_close(without, silent(random_images(2), random_masks(2)).image_embeds, atol=1e-5, rtol=0)
        ones = model(random_images(2), normalised(torch.ones(2, 1, 32, 32))).image_embeds
    assert (without - ones).abs().max() > 1e-3


@pytest.mark.parametrize("fields", [{}, EVA02], ids=["clip", "eva02"])
def test_eager_equals_sdpa_in_value_and_gradient(fields):
    results = {}
    for attention in ("eager", "sdpa"):
        model = randomise(
            PixCLIPVisionModelWithProjection._from_config(vision_config(**fields), attn_implementation=attention)
        )
        outputs = model(random_images(2), random_masks(2))
        outputs.image_embeds.square().mean().backward()
        results[attention] = [outputs.image_embeds] + [parameter.grad for parameter in model.parameters()]
    for one, other in zip(results["eager"], results["sdpa"], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [{}, EVA02], ids=["clip", "eva02"])
def test_gradient_checkpointing_recomputes_and_changes_nothing(fields):
    results = []
    for checkpointing in (False, True):
        model = randomise(PixCLIPVisionModel(vision_config(**fields))).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        passes = []
        for layer in model.encoder.layers:
            layer.layer_norm1.register_forward_hook(lambda *_: passes.append(1))
        outputs = model(random_images(2), random_masks(2), return_dense=True)
        loss = outputs.pooler_output.square().mean() + outputs.dense_state.square().mean()
        loss.backward()
        results.append((len(passes), loss, [parameter.grad for parameter in model.parameters()]))
    (passes, loss, gradients), (more_passes, same_loss, same_gradients) = results
    # Two blocks and the value path of the last one.
    assert (passes, more_passes) == (3, 6)
    torch.testing.assert_close(same_loss, loss)
    for one, other in zip(same_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("fields", [{}, EVA02], ids=["clip", "eva02"])
@pytest.mark.parametrize("kind", ["value", "plain"])
def test_dense_features(fields, kind):
    model = randomise(PixCLIPVisionModel(vision_config(dense_features=kind, **fields)))
    with torch.no_grad():
        outputs = model(random_images(2), random_masks(2), return_dense=True, output_hidden_states=True)
        assert model(random_images(2), random_masks(2)).dense_state is None
        states = outputs.last_hidden_state
        if kind == "value":
            # The last block where every token attends to itself alone.
            layer = model.encoder.layers[-1]
            states = outputs.hidden_states[-2]
            values = F.linear(layer.layer_norm1(states), layer.self_attn.v_proj.weight, layer.self_attn.v_proj.bias)
            if fields:
                values = layer.self_attn.inner_layer_norm(values)
            states = states + F.linear(values, layer.self_attn.out_proj.weight, layer.self_attn.out_proj.bias)
            states = states + layer.mlp(layer.layer_norm2(states))
        expected = F.layer_norm(
            states[:, 1:],
            (32,),
            model.post_layernorm.weight,
            model.post_layernorm.bias,
            model.config.layer_norm_eps,
        )
    assert outputs.dense_state.shape == (2, 16, 32)
    torch.testing.assert_close(outputs.dense_state, expected, atol=1e-5, rtol=0)


def test_one_block_of_the_value_path_mixes_no_patches():
    model = randomise(PixCLIPVisionModel(vision_config(num_hidden_layers=1, dense_features="value")))
    images = random_images(1)
    changed = images.clone()
    changed[:, :, :8, :8] += 1
    with torch.no_grad():
        before = model(images, return_dense=True).dense_state
        after = model(changed, return_dense=True).dense_state
    # Only the changed patch moves.
    assert (before[:, 0] - after[:, 0]).abs().max() > 1e-3
    torch.testing.assert_close(before[:, 1:], after[:, 1:])


def test_tuple_output():
    model = randomise(PixCLIPVisionModelWithProjection(vision_config()))
    with torch.no_grad():
        outputs = model(random_images(1))
        as_tuple = model(random_images(1), return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs.image_embeds)


def test_fresh_weights_have_the_statistics_of_a_fresh_clip():
    torch.manual_seed(0)
    fields = {"hidden_size": 64, "intermediate_size": 256, "initializer_factor": 0.5}
    model = PixCLIPVisionModelWithProjection(vision_config(**fields))
    parent = dict(CLIPVisionModelWithProjection(clip_vision_config(**fields)).named_parameters())
    for name, parameter in model.named_parameters():
        if name not in NEW_WEIGHTS:
            assert_same_statistics(name, parameter, parent[name])


def test_fresh_swiglu_keeps_the_scale_of_its_input():
    torch.manual_seed(0)
    config = vision_config(hidden_size=64, intermediate_size=128, num_hidden_layers=8, **EVA02)
    mlp = PixCLIPVisionModel(config).encoder.layers[0].mlp
    for projection, expected in ((mlp.gate_proj, 1 / 8), (mlp.up_proj, 1 / 8), (mlp.down_proj, 1 / 32)):
        assert 0.9 < float(projection.weight.detach().std()) / expected < 1.1


@pytest.mark.parametrize("fields", [{}, EVA02], ids=["clip", "eva02"])
@pytest.mark.parametrize("model_class", [PixCLIPVisionModel, PixCLIPVisionModelWithProjection])
def test_weights_missing_from_a_checkpoint_are_initialised(tmp_path, model_class, fields):
    torch.manual_seed(0)
    check_initialisation_of_missing_weights(model_class, vision_config(**fields), tmp_path)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("fields", [{}, EVA02], ids=["clip", "eva02"])
def test_no_regions_give_no_rows(fields, attention):
    model = (
        eva_tower(attention)
        if fields
        else randomise(PixCLIPVisionModelWithProjection._from_config(vision_config(), attn_implementation=attention))
    )
    nothing = torch.zeros(0, 1, 32, 32), torch.zeros(0, dtype=torch.int64)
    with torch.no_grad():
        assert model(random_images(1), *nothing).image_embeds.shape == (0, 16)
        assert model.vision_model(random_images(1), *nothing, return_dense=True).dense_state.shape == (0, 16, 32)


@pytest.mark.parametrize("kind", ["value", "plain"])
def test_recorded_states_are_those_of_the_blocks(kind):
    model = randomise(PixCLIPVisionModel(vision_config(dense_features=kind)))
    with torch.no_grad():
        dense, sparse = (
            model(random_images(2), random_masks(2), return_dense=return_dense, output_hidden_states=True)
            for return_dense in (True, False)
        )
    assert len(dense.hidden_states) == len(sparse.hidden_states) == 3
    for one, other in zip(dense.hidden_states, sparse.hidden_states):
        assert torch.equal(one, other)
    assert torch.equal(dense.hidden_states[-1], dense.last_hidden_state)


def test_unknown_arguments_are_named():
    for model_class in (PixCLIPVisionModel, PixCLIPVisionModelWithProjection):
        with pytest.raises(TypeError, match=r"unexpected arguments \['pixel_mask'\].*mask_values"):
            model_class(vision_config())(random_images(1), pixel_mask=random_masks(1))


@pytest.mark.slow
def test_dense_features_of_a_sharded_tower(tmp_path):
    """With each block sharded (FSDP2), all of a block's parameters are used inside its forward."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = randomise(PixCLIPVisionModel(vision_config()))
    results = []
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        for sharded in (False, True):
            if sharded:
                mesh = init_device_mesh("cpu", (1,))
                for layer in model.encoder.layers:
                    fully_shard(layer, mesh=mesh)
                fully_shard(model, mesh=mesh)
            model.zero_grad()
            outputs = model(random_images(2), random_masks(2), return_dense=True)
            outputs.dense_state.square().sum().backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            gradients = [g.full_tensor() if sharded else g.clone() for g in gradients]
            results.append([outputs.dense_state.detach(), *gradients])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    finally:
        distributed.destroy_process_group()
