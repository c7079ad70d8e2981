# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The text tower: attention in both directions, indifference to padding, pooling, the adapter, the frozen backbone."""

import math

import pytest
import torch
from tiny_models import (
    EOS,
    PAD,
    assert_same_weights,
    backbone_config,
    check_initialisation_of_missing_weights,
    random_tokens,
    randomise,
    text_config,
)
from transformers import CONFIG_MAPPING

from modeling_pixclip import PixCLIPTextModel


DECODERS = ["llama", "qwen3", "mistral"]
ENCODERS = ["bert"]
BACKENDS = ["eager", "sdpa"]


def tower(backbone="llama", attention="sdpa", backbone_fields=None, **fields):
    config = text_config(backbone_config(backbone, **(backbone_fields or {})), **fields)
    return randomise(PixCLIPTextModel._from_config(config, attn_implementation=attention))


def first_states(model, ids, mask=None):
    """State of the first token, before and after the last token of the row is another one."""
    changed = ids.clone()
    changed[0, -1] = 5 if ids[0, -1] != 5 else 6
    with torch.no_grad():
        return (
            model(input_ids=ids, attention_mask=mask).last_hidden_state[0, 0],
            model(input_ids=changed, attention_mask=mask).last_hidden_state[0, 0],
        )


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("backbone", DECODERS + ENCODERS)
def test_every_token_sees_the_last_one(backbone, attention):
    model = tower(backbone, attention)
    ids, mask = random_tokens([9, 5])
    for inputs in ((ids[:1], None), (ids[:1], mask[:1]), (ids, mask)):
        before, after = first_states(model, *inputs)
        assert (before - after).abs().max() > 1e-3


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("backbone", DECODERS)
def test_decoders_stay_causal_on_request(backbone, attention):
    model = tower(backbone, attention, bidirectional=False)
    ids, mask = random_tokens([9, 5])
    for inputs in ((ids[:1], None), (ids[:1], mask[:1]), (ids, mask)):
        torch.testing.assert_close(*first_states(model, *inputs))
    with torch.no_grad():
        causal = model(input_ids=ids, attention_mask=mask).pooler_output
        other = tower(backbone, attention)(input_ids=ids, attention_mask=mask).pooler_output
    assert (causal - other).abs().max() > 1e-3


TINY = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 48,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
TINY_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION_LANGUAGE = {
    "gemma3": {
        "text_config": TINY,
        "vision_config": {**TINY_VISION, "image_size": 32, "patch_size": 8},
        "mm_tokens_per_image": 4,
    },
    "llava": {
        "text_config": {**TINY, "model_type": "llama"},
        "vision_config": {**TINY_VISION, "model_type": "clip_vision_model", "image_size": 32, "patch_size": 8},
        "image_token_index": 59,
    },
    "qwen2_5_vl": {
        "text_config": {
            **TINY,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
        },
        "image_token_id": 59,
        "video_token_id": 58,
        "vision_start_token_id": 57,
        "vision_end_token_id": 56,
    },
}
OBEYING = (
    "llama mistral qwen2 qwen3 qwen2_moe gemma gemma2 gemma3_text phi phi3 smollm3 olmo olmo2 granite starcoder2 cohere "
    "glm helium gpt2 gpt_neox opt bloom"
).split()


def tower_of_type(model_type, **fields):
    """With the attention that the type has by default."""
    backbone = CONFIG_MAPPING[model_type](**VISION_LANGUAGE.get(model_type, TINY))
    return randomise(PixCLIPTextModel(text_config(backbone, **fields)))


@pytest.mark.parametrize("model_type", OBEYING + list(VISION_LANGUAGE))
def test_backbones_of_many_types_are_bidirectional(model_type):
    model = tower_of_type(model_type)
    model.check_bidirectional()
    ids, mask = random_tokens([9, 5])
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).last_hidden_state
        for row, length in enumerate((9, 5)):
            alone = ids[row : row + 1, :length]
            before, after = first_states(model, alone)
            assert (before - after).abs().max() > 1e-3
            torch.testing.assert_close(together[row, 0], before, atol=1e-5, rtol=1e-4)
    # Causal by the same switch.
    causal = tower_of_type(model_type, bidirectional=False)
    torch.testing.assert_close(*first_states(causal, ids[:1]))


@pytest.mark.parametrize(
    "model_type, reason",
    [
        ("stablelm", "its first token does not see the last one"),
        ("nemotron", "its first token does not see the last one"),
        ("mamba", "(its first token does not see the last one|its layers .* are causal)"),
        ("mpt", "it fails with AttributeError"),
        ("qwen3_next", r"its layers \['linear_attention'\] are causal"),
    ],
)
def test_backbones_that_cannot_be_bidirectional_are_named(model_type, reason):
    message = rf"type '{model_type}' .* cannot be made bidirectional: {reason}.*Set bidirectional=False"
    with pytest.raises(ValueError, match=message):
        tower_of_type(model_type).check_bidirectional()


@pytest.mark.parametrize("model_type", ["stablelm", "nemotron", "mamba"])
def test_backbones_that_stay_causal_work_as_such(model_type):
    model = tower_of_type(model_type, bidirectional=False)
    model.check_bidirectional()
    ids, mask = random_tokens([9, 5])
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).pooler_output
        alone = model(input_ids=ids[1:, :5]).pooler_output
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


def test_a_backbone_that_padding_changes_is_named(monkeypatch):
    model = tower()
    run = model._run_backbone

    def sensitive(input_ids, attention_mask):
        outputs = run(input_ids, attention_mask)
        outputs.last_hidden_state = outputs.last_hidden_state * input_ids.shape[1]
        return outputs

    monkeypatch.setattr(model, "_run_backbone", sensitive)
    with pytest.raises(ValueError, match="'llama'.*other states alone than beside a longer one"):
        model.check_bidirectional()


@pytest.mark.parametrize("backbone", ENCODERS + ["clip_text"])
def test_encoders_are_not_checked(backbone):
    tower(backbone).check_bidirectional()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backbone", DECODERS)
def test_rounding_is_no_leak(backbone, dtype):
    model = tower(backbone).train()
    model.to(dtype).check_bidirectional()
    assert model.training and model.adapter.training


@pytest.mark.parametrize("backbone", DECODERS + ENCODERS + ["clip_text"])
def test_no_keys_and_values_are_kept(backbone):
    model = tower(backbone)
    kept = []
    model.backbone.register_forward_hook(lambda module, args, outputs: kept.append(outputs.get("past_key_values")))
    ids, mask = random_tokens([8, 5])
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    assert kept and all(cache is None for cache in kept)


@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("bidirectional", [True, False])
def test_encoders_are_not_concerned_by_the_direction(bidirectional, attention):
    """BERT always looks both ways, CLIP's text tower never does, batch of one or not."""
    ids, mask = random_tokens([9, 5])
    for inputs in ((ids[:1], None), (ids, mask)):
        before, after = first_states(tower("bert", attention, bidirectional=bidirectional), *inputs)
        assert (before - after).abs().max() > 1e-3
        torch.testing.assert_close(*first_states(tower("clip_text", attention, bidirectional=bidirectional), *inputs))


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("backbone", DECODERS + ENCODERS + ["clip_text"])
def test_batch_of_one_equals_batch_of_eight(backbone, attention, bidirectional):
    model = tower(backbone, attention, bidirectional=bidirectional)
    lengths = [3, 12, 7, 1, 9, 5, 12, 2]
    ids, mask = random_tokens(lengths)
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask)
        for row, length in enumerate(lengths):
            # Without padding and without a mask, then with both.
            alone = model(input_ids=ids[row : row + 1, :length])
            torch.testing.assert_close(together.pooler_output[row], alone.pooler_output[0], atol=2e-6, rtol=1e-5)
            alone = model(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1])
            torch.testing.assert_close(together.backbone_embeds[row], alone.backbone_embeds[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last", "first", "eos"])
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("backbone", DECODERS)
def test_padding_on_either_side_changes_nothing(backbone, attention, pooling):
    model = tower(backbone, attention, pooling=pooling)
    ids, mask = random_tokens([6])
    ids[0, 4] = EOS
    # Padding by the end-of-text token too, as GPT-like tokenizers do.
    for filler in (PAD, EOS, 7):
        padding, none = torch.full((1, 3), filler), torch.zeros(1, 3, dtype=torch.int64)
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).pooler_output
            right = model(
                input_ids=torch.cat([ids, padding], 1), attention_mask=torch.cat([mask, none], 1)
            ).pooler_output
            left = model(
                input_ids=torch.cat([padding, ids], 1), attention_mask=torch.cat([none, mask], 1)
            ).pooler_output
        torch.testing.assert_close(right, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(left, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
@pytest.mark.parametrize("pooling", ["mean", "last", "first", "eos"])
def test_pooling_over_the_pooling_mask(pooling, dtype):
    model = tower(pooling=pooling)
    ids, mask = random_tokens([8, 6, 7, 3])
    # A prompt with an end-of-text token of its own, the text, its end, then something else.
    pooled = [[3, 4, 5, 6], [2, 3], [1, 2, 3, 4, 5], [2]]
    pooling_mask = torch.zeros_like(mask)
    for row, positions in enumerate(pooled):
        pooling_mask[row, positions] = 1
        ids[row, 0] = ids[row, positions[-1]] = EOS
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask, pooling_mask=pooling_mask.to(dtype))
    for row, positions in enumerate(pooled):
        states = outputs.last_hidden_state[row]
        expected = {
            "mean": sum(states[position] for position in positions) / len(positions),
            "last": states[positions[-1]],
            "first": states[positions[0]],
            "eos": states[positions[-1]],
        }[pooling]
        torch.testing.assert_close(outputs.backbone_embeds[row], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last", "first"])
def test_pooling_mask_defaults_to_the_attention_mask_then_to_all_tokens(pooling):
    model = tower(pooling=pooling)
    ids, mask = random_tokens([8, 5])
    everything = torch.ones_like(ids)
    with torch.no_grad():
        for given, expected in (
            ({"attention_mask": mask}, {"attention_mask": mask, "pooling_mask": mask}),
            ({}, {"attention_mask": everything, "pooling_mask": everything}),
        ):
            torch.testing.assert_close(
                model(input_ids=ids, **given).pooler_output, model(input_ids=ids, **expected).pooler_output
            )


def test_first_of_several_ends_of_text_is_pooled():
    model = tower(pooling="eos", backbone_fields={"eos_token_id": [EOS, 3]})
    ids, mask = random_tokens([7, 7])
    ids[0, 3] = ids[0, 6] = EOS
    ids[1, 5] = 3
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(outputs.backbone_embeds[0], outputs.last_hidden_state[0, 3])
    torch.testing.assert_close(outputs.backbone_embeds[1], outputs.last_hidden_state[1, 5])


@pytest.mark.parametrize("eos_token_id", [2, 59])
def test_clip_text_backbone_pools_as_clip_does(eos_token_id):
    """Also with the wrong end-of-text id 2 of OpenAI's configs, where CLIP takes the highest id."""
    model = tower("clip_text", pooling="eos", backbone_fields={"eos_token_id": eos_token_id})
    ids, mask = random_tokens([6, 4])
    ids = ids.clamp(max=50)
    ids[0, 5] = ids[1, 3] = 59
    ids[1, 4:] = 59
    with torch.no_grad():
        expected = model.backbone(input_ids=ids, attention_mask=mask).pooler_output
        outputs = model(input_ids=ids, attention_mask=mask)
    torch.testing.assert_close(outputs.backbone_embeds, expected)


def test_adapter_is_the_papers():
    model = tower(projection_dim=24)
    ids, mask = random_tokens([8, 5, 3])
    weights = model.state_dict()

    def linear(name, value):
        return value @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(name, value):
        centred = value - value.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[name + ".weight"] + weights[name + ".bias"]

    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask)
        embeds = outputs.backbone_embeds / outputs.backbone_embeds.square().sum(-1, keepdim=True).sqrt()
        for block in range(4):
            name = f"adapter.layers.{block}."
            inner = linear(name + "fc1", norm(name + "layer_norm", embeds))
            assert inner.shape[-1] == 2 * embeds.shape[-1]
            inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
            embeds = embeds + linear(name + "fc2", inner)
        expected = linear("projection", norm("adapter.layer_norm", embeds))
    assert outputs.pooler_output.shape == (3, 24) and "adapter.layers.4.fc1.weight" not in weights
    torch.testing.assert_close(outputs.pooler_output, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("normalize_pooled", [True, False])
def test_linear_projection(normalize_pooled):
    model = tower(projection_type="linear", normalize_pooled=normalize_pooled, projection_bias=False)
    ids, mask = random_tokens([8, 5])
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask)
    embeds = outputs.backbone_embeds
    if normalize_pooled:
        embeds = embeds / embeds.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(outputs.pooler_output, embeds @ model.projection.weight.detach().T)
    trained = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert trained == {"projection.weight"}


def test_vectors_of_an_earlier_run_stand_in_for_tokens():
    model = tower()
    ids, mask = random_tokens([8, 5, 3])
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask)
        again = model(backbone_embeds=outputs.backbone_embeds)
    assert outputs.backbone_embeds.dtype == torch.float32
    assert torch.equal(again.pooler_output, outputs.pooler_output) and again.last_hidden_state is None


def train_steps(model, steps=2):
    optimiser = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    ids, mask = random_tokens([8, 5])
    model.train()
    for _ in range(steps):
        model(input_ids=ids, attention_mask=mask).pooler_output.square().mean().backward()
        optimiser.step()


def test_frozen_backbone_neither_changes_nor_drops_out(tmp_path):
    dropout = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    model = tower("bert", backbone_fields=dropout)
    model.save_pretrained(tmp_path)
    for frozen in (model, PixCLIPTextModel.from_pretrained(tmp_path)):
        before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
        frozen.train()
        assert not any(module.training for module in frozen.backbone.modules())
        assert frozen.adapter.training and frozen.training
        ids, mask = random_tokens([8, 5])
        assert torch.equal(*(frozen(input_ids=ids, attention_mask=mask).pooler_output for _ in range(2)))
        train_steps(frozen)
        for name, parameter in frozen.named_parameters():
            in_backbone = name.startswith("backbone.")
            assert parameter.requires_grad != in_backbone and (parameter.grad is None) == in_backbone, name
            assert torch.equal(parameter, before[name]) == in_backbone, name


def test_trainable_backbone_changes_and_drops_out(tmp_path):
    model = tower("bert", backbone_training="full", backbone_fields={"hidden_dropout_prob": 0.5})
    model.save_pretrained(tmp_path)
    for free in (model, PixCLIPTextModel.from_pretrained(tmp_path)):
        before = {name: tensor.clone() for name, tensor in free.state_dict().items()}
        free.train()
        ids, mask = random_tokens([8, 5])
        assert not torch.equal(*(free(input_ids=ids, attention_mask=mask).pooler_output for _ in range(2)))
        train_steps(free)
        for name, parameter in free.named_parameters():
            # BERT's own pooler is no part of the output.
            if not name.startswith("backbone.pooler.") and not name.endswith("key.bias"):
                assert not torch.equal(parameter, before[name]), name


def test_freezing_can_be_switched_and_is_saved(tmp_path):
    model = tower()
    model.set_backbone_trainable("full")
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.save_pretrained(tmp_path / "free")
    assert all(
        parameter.requires_grad for parameter in PixCLIPTextModel.from_pretrained(tmp_path / "free").parameters()
    )
    model.train()
    model.set_backbone_trainable("frozen")
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert not model.backbone.training and model.adapter.training
    model.save_pretrained(tmp_path / "frozen")
    loaded = PixCLIPTextModel.from_pretrained(tmp_path / "frozen")
    assert not any(parameter.requires_grad for parameter in loaded.backbone.parameters())


@pytest.mark.parametrize("backbone", DECODERS)
def test_gradients_reach_every_token_of_a_trainable_backbone(backbone):
    model = tower(backbone, backbone_training="full", pooling="first")
    ids, mask = random_tokens([6])
    model(input_ids=ids, attention_mask=mask).pooler_output.square().sum().backward()
    gradient = model.get_input_embeddings().weight.grad
    assert (gradient[ids[0]].abs().amax(-1) > 0).all()


@pytest.mark.parametrize("backbone", DECODERS + ENCODERS)
def test_eager_equals_sdpa(backbone):
    ids, mask = random_tokens([8, 5])
    with torch.no_grad():
        one, other = (
            tower(backbone, attention)(input_ids=ids, attention_mask=mask).pooler_output for attention in BACKENDS
        )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_recorded_states_are_those_of_the_backbone():
    model = tower(attention="eager")
    ids, mask = random_tokens([8, 5])
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
    torch.testing.assert_close(outputs.hidden_states[-1], outputs.last_hidden_state)
    attention = outputs.attentions[0]
    torch.testing.assert_close(attention.sum(-1)[0], torch.ones(4, 8))
    # Both triangles are used, the padding is not.
    assert (attention[0] > 0).all() and (attention[1, :, :5, :5] > 0).all() and not attention[1, :, :5, 5:].any()


def test_token_embeddings_are_those_of_the_backbone():
    model = tower()
    assert model.get_input_embeddings() is model.backbone.get_input_embeddings()
    model.set_input_embeddings(torch.nn.Embedding(70, 32))
    assert model.backbone.get_input_embeddings().num_embeddings == 70


def test_wrong_inputs_are_named():
    model = tower()
    ids, mask = random_tokens([8, 5])
    with pytest.raises(ValueError, match="exactly one of input_ids and backbone_embeds"):
        model()
    with pytest.raises(ValueError, match="exactly one of input_ids and backbone_embeds"):
        model(input_ids=ids, backbone_embeds=torch.zeros(2, 32))
    with pytest.raises(ValueError, match=r"49 tokens long.*\(llama\).*at most 48.*text_max_length"):
        model(input_ids=torch.full((1, 49), 5))
    empty = mask.clone()
    empty[1] = 0
    with pytest.raises(ValueError, match=r"no token in rows \[1\]"):
        model(input_ids=ids, attention_mask=mask, pooling_mask=empty)
    with pytest.raises(ValueError, match="31 wide.*32 wide"):
        model(backbone_embeds=torch.zeros(2, 31))
    with pytest.raises(TypeError, match=r"unexpected arguments \['mask'\]"):
        model(input_ids=ids, mask=mask)
    ids[0, 3] = EOS
    with pytest.raises(ValueError, match=r"no end-of-text token \(id 2\) in rows \[1\]"):
        tower(pooling="eos")(input_ids=ids, attention_mask=mask)


def test_longest_text_that_the_backbone_takes():
    model = tower()
    with torch.no_grad():
        assert model(input_ids=torch.full((1, 48), 5)).pooler_output.isfinite().all()


@pytest.mark.parametrize("backbone", DECODERS + ENCODERS + ["clip_text"])
def test_saved_tower_loads_bit_equal(tmp_path, backbone):
    model = tower(backbone)
    model.save_pretrained(tmp_path)
    loaded, info = PixCLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_weights(loaded, model)
    ids, mask = random_tokens([8, 5])
    with torch.no_grad():
        assert torch.equal(
            loaded(input_ids=ids, attention_mask=mask).pooler_output,
            model(input_ids=ids, attention_mask=mask).pooler_output,
        )


def test_fresh_projection_keeps_the_scale_of_its_input():
    torch.manual_seed(0)
    config = text_config(backbone_config("llama", hidden_size=64), adapter_layers=8, projection_dim=64)
    model = PixCLIPTextModel(config)
    spread = {
        name: (float(parameter.detach().std()), bool(parameter.any()))
        for name, parameter in model.named_parameters()
        if not name.startswith("backbone.")
    }
    for block in range(8):
        assert 0.9 < spread[f"adapter.layers.{block}.fc1.weight"][0] * 64**0.5 < 1.1
        # Sixteen such layers add up in a tower of eight blocks.
        assert 0.9 < spread[f"adapter.layers.{block}.fc2.weight"][0] * (16 * 128) ** 0.5 < 1.1
    assert 0.9 < spread["projection.weight"][0] * 64**0.5 < 1.1
    assert not any(nonzero for name, (_, nonzero) in spread.items() if name.endswith("bias"))


@pytest.mark.parametrize(
    # CLIP sets weights through layers that have none of their own.
    "fields",
    [{}, {"projection_type": "linear"}, {"backbone": "clip_text"}],
    ids=["adapter", "linear", "clip_text"],
)
def test_weights_missing_from_a_checkpoint_are_initialised(tmp_path, fields):
    torch.manual_seed(0)
    check_initialisation_of_missing_weights(PixCLIPTextModel, text_config(**fields), tmp_path)


def test_states_asked_for_by_the_configuration():
    model = tower(attention="eager")
    model.config.output_hidden_states = model.config.output_attentions = True
    ids, mask = random_tokens([6])
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask)
        assert len(outputs.hidden_states) == 3 and len(outputs.attentions) == 2
        assert model(input_ids=ids, attention_mask=mask, output_hidden_states=False).hidden_states is None


def test_states_of_some_layers():
    model = tower()
    ids, mask = random_tokens([6, 3])
    with torch.no_grad():
        # What the numbers count changed between releases; those of the backbone are right.
        own = model.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=[0]).hidden_states
        some = model(input_ids=ids, attention_mask=mask, output_hidden_states=[0]).hidden_states
    assert [states is None for states in some] == [states is None for states in own]
    assert some[0] is not None and some[1] is None
    torch.testing.assert_close(some[0] * mask[..., None], own[0] * mask[..., None])


def test_vocabulary_is_the_backbones():
    model = tower()
    assert model.config.vocab_size == model.config.backbone_config.vocab_size
    model.resize_token_embeddings(model.config.vocab_size + 4)
    assert model.vocab_size == model.config.vocab_size == model.config.backbone_config.vocab_size == 64
    assert "vocab_size" not in model.config.to_dict()
