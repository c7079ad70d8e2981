# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Checkpoints with an EVA02 tower or an adaptor for vectors of an LLM: EVA-CLIP, LLM2CLIP, PixCLIP.

`fixtures/pixclip_eva02_tiny` holds a tiny checkpoint with random weights in the layout of the official PixCLIP code
(github.com/StuHude/PixCLIP), inputs, and what the official forward made of them in float32 on a CPU. The other layouts are
compared with the straight-line references of `conversion_references`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conversion_references import (
    clip_text,
    clip_text_shapes,
    eva02_rope_buffers,
    eva02_shapes,
    eva02_vision,
    gelu,
    openai_vision,
    openai_vision_shapes,
    quick_gelu,
    random_tensors,
    text_adaptor,
    text_adaptor_shapes,
    transformers_vision,
    transformers_vision_shapes,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_models import assert_same_weights, backbone_config, random_images, random_masks, random_tokens, randomise
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast, T5Config

from modeling_pixclip import PixCLIPConfig, PixCLIPModel, get_objective_preset
from modeling_pixclip.conversion import (
    CHECKPOINT_SOURCES,
    build_config,
    complete_state,
    convert_checkpoint,
    read_tensors,
)
from modeling_pixclip.conversion_folder import convert_to_folder
from modeling_pixclip.conversion_rules import ConversionError, SourceFacts


FOLDER = Path(__file__).parent / "fixtures" / "pixclip_eva02_tiny"
CONFIG = json.loads((FOLDER / "config.json").read_text())
HEADS = {"head_width": 8}
LIVE, REPOSITORY, HUB = "text.text_proj.text_adaptor.", "text.text_adaptor.", "text_adapter.adaptor."
LLAMA_3 = "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> user a red cup dog".split()


def convert(source, state, folder, config=None, **options):
    """The conversion of a state dict that is in a file, with `config` as what its project says of it."""
    path = folder / "checkpoint.pt"
    torch.save(state, path)
    return convert_checkpoint(source, [path], source_config=config, **options)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def image_features(model, grid=4, mask=None):
    return model.get_image_features(random_images(2, grid * 8, grid * 8), mask).pooler_output


@torch.no_grad()
def vector_features(model, embeds):
    return model.get_text_features(backbone_embeds=embeds).pooler_output


def vectors(width=40):
    return torch.randn(3, width, generator=torch.Generator().manual_seed(3)) * 4


def temperature():
    return {"logit_scale": torch.tensor(3.1)}


def eva_state(grid=4, embed=24, **options):
    shapes = eva02_shapes(grid=grid, embed=embed, **options) | text_adaptor_shapes(embed=embed)
    return random_tensors(shapes) | temperature()


def hub_state(grid=4, mask=False):
    shapes = transformers_vision_shapes(grid=grid, mask=mask) | text_adaptor_shapes(prefix=HUB)
    return random_tensors(shapes) | temperature()


def official_config(grid):
    """In the form of EVA-CLIP's model configurations."""
    vision = {"image_size": grid * 8, "layers": 2, "width": 32, "patch_size": 8, "head_width": 8, "mlp_ratio": 2.6667}
    vision |= {"eva_model_name": "eva02", "rope": True, "pt_hw_seq_len": 16, "intp_freq": True, "naiveswiglu": True}
    text = {"context_length": 20, "vocab_size": 60, "width": 32, "heads": 4, "layers": 2}
    return {"embed_dim": 24, "vision_cfg": {**vision, "subln": True}, "text_cfg": text}


def save_llm(folder, name="llama", **fields):
    # As large a vocabulary as tells the kind of the LLM, which costs little at this width.
    fields = {"hidden_size": 40, "num_attention_heads": 2, "head_dim": 20, "vocab_size": 128256, **fields}
    backbone = randomise(AutoModel.from_config(backbone_config(name, **fields)), seed=4).to(torch.bfloat16)
    backbone.save_pretrained(folder)
    return backbone


def save_tokenizer(folder):
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(LLAMA_3)}, unk_token="user"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|eot_id|>", bos_token=LLAMA_3[0])
    tokenizer.add_special_tokens({"additional_special_tokens": LLAMA_3[1:4]})
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("container", ["pth", "safetensors"])
def test_the_official_numbers_of_pixclip(container, tmp_path):
    path = FOLDER / "checkpoint.pth"
    if container == "safetensors":
        save_file(torch.load(path, weights_only=True), tmp_path / "checkpoint.safetensors")
        path = tmp_path / "checkpoint.safetensors"
    conversion = convert_checkpoint("pixclip", [path], source_config=CONFIG)
    model, expected = conversion.model, load_file(FOLDER / "expected.safetensors")
    pixels, masks, embeds = (expected[name] for name in ("pixel_values", "mask_values", "llm_embeddings"))
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            tower = model.vision_model(pixels, masks, return_dense=True)
            outputs = model(pixel_values=pixels, mask_values=masks, backbone_embeds=embeds)
            found = {
                "image_cls_before_head": tower.pooler_output,
                "patch_feature_map": tower.dense_state.transpose(1, 2).unflatten(2, (4, 4)),
                "image_features": model.get_image_features(pixels, masks).pooler_output,
                "image_features_without_mask": model.get_image_features(pixels).pooler_output,
                "text_features": model.get_text_features(backbone_embeds=embeds).pooler_output,
                "logits_per_image": outputs.logits_per_image,
            }
        assert found.keys() | {"pixel_values", "mask_values", "llm_embeddings"} == expected.keys()
        for name, tensor in found.items():
            assert_close(tensor, expected[name])
    # All of it was used, and nothing made up.
    report = conversion.report
    assert not report["filled"] and set(report["dropped"]) == {"rotary positions"}
    tensors = torch.load(FOLDER / "checkpoint.pth", weights_only=True)
    dropped = report["dropped"]["rotary positions"]["tensors"]
    assert sorted(dropped) == sorted(name for name in tensors if ".rope." in name)
    assert sum(report["taken"].values()) == len(tensors) - len(dropped)
    assert report["parameters"] == sum(tensor.numel() for name, tensor in tensors.items() if name not in dropped)
    assert conversion.processor is None and conversion.image_processor.size == {"height": 32, "width": 32}
    assert (conversion.image_processor.mask_mean, conversion.image_processor.mask_std) == (0.5, 0.26)
    written = convert_to_folder("pixclip", [path], tmp_path / "saved", source_config=CONFIG)
    assert written == report
    # Nothing of it is kept for a way back, which there is not.
    assert not (tmp_path / "saved" / "conversion.safetensors").exists()
    loaded, info = PixCLIPModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values()), info
    assert_same_weights(loaded, model)
    assert_close(vector_features(loaded, embeds), expected["text_features"])


@pytest.mark.parametrize("grid", [4, 3])
@pytest.mark.parametrize("old_names", [False, True])
def test_eva_clip(grid, old_names, tmp_path):
    prefix = "" if old_names else "text."
    shapes = eva02_shapes(grid=grid, old_names=old_names) | clip_text_shapes(prefix=prefix)
    state = random_tensors(shapes) | temperature()
    buffers = {} if old_names else eva02_rope_buffers(grid)
    conversion = convert("eva-clip", {**state, **buffers}, tmp_path, official_config(grid))
    assert conversion.report["source_config"]["not_read"] == ["vision_cfg.eva_model_name", "vision_cfg.mlp_ratio"]
    model = conversion.model
    expected = eva02_vision(state, random_images(2, grid * 8, grid * 8), heads=4)
    assert_close(image_features(model, grid), expected[1])
    ids, mask = random_tokens([9, 5])
    ids[[0, 1], [8, 4]] = 59
    with torch.no_grad():
        found = model.get_text_features(ids, mask).pooler_output
    assert_close(found, clip_text(state, ids, 4, gelu, prefix))
    assert not torch.allclose(found, clip_text(state, ids, 4, quick_gelu, prefix), atol=1e-3)
    assert float(model.logit_scale) == state["logit_scale"]
    # The mask's convolution is new, and says nothing yet.
    assert conversion.report["filled"] == {
        "mask convolution: zeros": [
            f"vision_model.embeddings.mask_patch_embedding.{kind}" for kind in ("weight", "bias")
        ]
    }
    assert_close(image_features(model, grid, random_masks(2, grid * 8, grid * 8)), expected[1])
    assert conversion.image_processor.resize_mode == "shortest_edge"
    for name, value in get_objective_preset("clip").items():
        assert getattr(model.config, name) == value


@pytest.mark.parametrize("told", [{"text_hidden_act": "quick_gelu"}, {"quick_gelu": True}])
def test_eva_clip_with_another_activation_of_texts(told, tmp_path):
    state = random_tensors(eva02_shapes() | clip_text_shapes()) | temperature()
    model = convert("eva-clip", state, tmp_path, {**official_config(4), **told}).model
    ids, mask = random_tokens([9, 5])
    ids[[0, 1], [8, 4]] = 59
    with torch.no_grad():
        found = model.get_text_features(ids, mask).pooler_output
    assert_close(found, clip_text(state, ids, 4, quick_gelu, "text."))
    # The vision tower has its own.
    assert_close(image_features(model), eva02_vision(state, random_images(2), heads=4)[1])
    with pytest.raises(ConversionError, match="quick_gelu = True, text_hidden_act = 'gelu'"):
        convert("eva-clip", state, tmp_path, {**official_config(4), "quick_gelu": True, "text_hidden_act": "gelu"})


def test_heads_that_are_no_width(tmp_path):
    for width in (0, -8, 7, "8"):
        with pytest.raises(ConversionError, match=f"heads {width!r} wide do not divide the vision tower"):
            convert("pixclip", eva_state(mask=True), tmp_path, {"head_width": width})


@pytest.mark.parametrize("grid", [4, 3])
@pytest.mark.parametrize("prefix", [REPOSITORY, LIVE])
def test_llm2clip_of_the_repository_with_eva02(grid, prefix, tmp_path):
    state = random_tensors(eva02_shapes(grid=grid) | text_adaptor_shapes(prefix=prefix)) | temperature()
    conversion = convert("llm2clip", {**state, **eva02_rope_buffers(grid)}, tmp_path)
    assert_close(
        image_features(conversion.model, grid), eva02_vision(state, random_images(2, grid * 8, grid * 8), heads=4)[1]
    )
    # A model that ran its LLM inside does not scale what comes out of it.
    scaled = prefix == REPOSITORY
    found = vector_features(conversion.model, vectors())
    assert_close(found, text_adaptor(state, vectors(), prefix, normalise=scaled))
    assert not torch.allclose(found, text_adaptor(state, vectors(), prefix, normalise=not scaled), atol=1e-2)
    other = convert("llm2clip", state, tmp_path, {**HEADS, "normalize_pooled": not scaled})
    assert_close(vector_features(other.model, vectors()), text_adaptor(state, vectors(), prefix, normalise=not scaled))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_llm2clip_of_the_repository_with_openai(activation, tmp_path):
    """QuickGELU, as in the weights that it started from, unless told otherwise."""
    state = random_tensors(openai_vision_shapes(grid=3) | text_adaptor_shapes()) | temperature()
    config = {"vision_heads": 4, **({} if activation == "quick_gelu" else {"hidden_act": activation})}
    model = convert("llm2clip", state, tmp_path, config).model
    expected = openai_vision(state, random_images(2, 24, 24), 4, {"gelu": gelu, "quick_gelu": quick_gelu}[activation])
    assert_close(image_features(model, 3), expected)
    assert_close(vector_features(model, vectors()), text_adaptor(state, vectors(), REPOSITORY))


@pytest.mark.parametrize("grid", [4, 3])
def test_llm2clip_of_the_hub(grid, tmp_path):
    state = hub_state(grid)
    counted = {"vision_model.embeddings.position_ids": torch.arange(1 + grid**2)[None]}
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({**state, **counted}, folder / "model.safetensors")
    config = {"model_type": "clip", "projection_dim": 24, "vision_config": {"num_attention_heads": 4}}
    config["vision_config"] |= {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "patch_size": 8}
    config["vision_config"]["image_size"] = grid * 8
    (folder / "config.json").write_text(json.dumps(config))
    model = convert_checkpoint("llm2clip", [folder]).model
    expected = transformers_vision(state, random_images(2, grid * 8, grid * 8), 4, quick_gelu)
    assert_close(image_features(model, grid), expected)
    assert_close(vector_features(model, vectors()), text_adaptor(state, vectors(), HUB))


@pytest.mark.parametrize("grid", [4, 3])
def test_pixclip_with_openai(grid, tmp_path):
    """Its mask is mandatory: without one there is a mask of ones."""
    state = hub_state(grid, mask=True)
    model = convert("pixclip", state, tmp_path, {"vision_heads": 4}).model
    pixels, mask = random_images(2, grid * 8, grid * 8), random_masks(2, grid * 8, grid * 8)
    assert_close(image_features(model, grid, mask), transformers_vision(state, pixels, 4, quick_gelu, mask))
    ones = torch.full_like(mask, (1 - 0.5) / 0.26)
    assert_close(image_features(model, grid), transformers_vision(state, pixels, 4, quick_gelu, ones))
    assert_close(vector_features(model, vectors()), text_adaptor(state, vectors(), HUB))


def test_pixclip_with_its_llm_in_the_file_and_wrappers_around_it(tmp_path):
    state = eva_state(mask=True)
    llm = {f"l2v.model.layers.{number}.weight": torch.ones(3) for number in range(2)}
    wrapped = {"state_dict": {f"module.{name}": tensor for name, tensor in {**state, **llm}.items()}, "epoch": 3}
    conversion = convert("pixclip", wrapped, tmp_path, HEADS)
    assert conversion.report["dropped"]["LLM"]["tensors"] == list(llm)
    pixels, mask = random_images(2), random_masks(2)
    assert_close(image_features(conversion.model, 4, mask), eva02_vision(state, pixels, 4, mask)[1])
    assert_close(image_features(conversion.model, 4), eva02_vision(state, pixels, 4)[1])


def test_the_llm_is_named_and_not_loaded(tmp_path, monkeypatch):
    backbone = save_llm(tmp_path / "llm")
    save_tokenizer(tmp_path / "llm")
    state = eva_state(mask=True)
    with monkeypatch.context() as patch:
        patch.setattr(AutoModel, "from_config", lambda *_, **__: pytest.fail("the LLM is made"))
        patch.setattr(AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("the LLM is loaded"))
        conversion = convert(
            "pixclip", state, tmp_path, HEADS, text_backbone=str(tmp_path / "llm"), tokenizer=tmp_path / "llm"
        )
        conversion.model.save_pretrained(tmp_path / "alone")
    with monkeypatch.context() as patch:
        # Written and read back without it.
        patch.setattr(AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("the LLM is loaded"))
        options = {"source_config": HEADS, "text_backbone": str(tmp_path / "llm"), "tokenizer": tmp_path / "llm"}
        convert_to_folder("pixclip", [tmp_path / "checkpoint.pt"], tmp_path / "saved", **options)
    assert vector_features(conversion.model, vectors()).shape == (3, 24)
    processor = conversion.processor
    assert (processor.text_pooling, processor.text_max_length) == ("text", 512)
    assert processor.text_template == "<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>"
    text_config = json.loads((tmp_path / "saved" / "config.json").read_text())["text_config"]
    assert not text_config["backbone_in_checkpoint"] and not text_config["backbone_embeds_only"]
    assert text_config["backbone_source"]["folder"] == "../llm"
    alone = json.loads((tmp_path / "alone" / "config.json").read_text())["text_config"]
    assert alone["backbone_source"] == text_config["backbone_source"]
    assert not any("backbone." in name for name in load_file(tmp_path / "saved" / "model.safetensors"))
    model, info = PixCLIPModel.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values()), info
    model.text_model.check_bidirectional()
    assert model.text_model.backbone.dtype == torch.bfloat16
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(model.text_model.backbone.state_dict()[name], tensor), name
    batch = processor(text=["a red cup", "a dog"])
    with torch.no_grad():
        outputs = model.get_text_features(**batch)
    assert_close(outputs.pooler_output, text_adaptor(state, outputs.backbone_embeds, REPOSITORY))


def test_an_llm_that_does_not_fit_is_refused(tmp_path):
    save_llm(tmp_path / "wide", hidden_size=64, head_dim=16, num_attention_heads=4)
    T5Config(d_model=40).save_pretrained(tmp_path / "t5")
    save_llm(tmp_path / "other", vocab_size=99)
    save_tokenizer(tmp_path / "tokenizer")
    state = eva_state(mask=True)
    for name, message in {
        "wide": r"'.*wide' \(llama\) is 64 wide, the checkpoint's adaptor text.text_adaptor.\* takes vectors 40 wide",
        "t5": r"'.*t5' does not go with the adaptor text.text_adaptor.\*: (.|\n)*type 't5' is an encoder-decoder",
        "nothing": r"'.*nothing' has no configuration that can be read",
    }.items():
        with pytest.raises(ConversionError, match=message):
            convert("pixclip", state, tmp_path, HEADS, text_backbone=str(tmp_path / name))
    options = {"text_backbone": str(tmp_path / "other"), "tokenizer": tmp_path / "tokenizer"}
    with pytest.raises(ConversionError, match="LLM of type 'llama' is not known. Give --text_preset"):
        convert("pixclip", state, tmp_path, HEADS, **options)
    processor = convert("pixclip", state, tmp_path, HEADS, text_preset="plain", **options).processor
    assert processor.text_template == "{text}"


def test_rotary_positions_of_another_grid_are_an_error(tmp_path):
    state = eva_state(mask=True)
    buffers = eva02_rope_buffers(scale=14)
    with pytest.raises(
        ConversionError, match=r"freqs_(cos|sin) differs by .* of 4x4 patches, rope_grid_size 16 and heads 8"
    ):
        convert("pixclip", {**state, **buffers}, tmp_path)
    model = convert("pixclip", {**state, **buffers}, tmp_path, {"pt_hw_seq_len": 14}).model
    assert_close(image_features(model), eva02_vision(state, random_images(2), 4, rope_scale=14)[1])
    # Positions that are not scaled are those of the grid itself.
    unscaled = convert("pixclip", {**state, **eva02_rope_buffers(scale=4)}, tmp_path, {"intp_freq": False}).model
    assert_close(image_features(unscaled), eva02_vision(state, random_images(2), 4, rope_scale=4)[1])
    half = {name: table.half() for name, table in eva02_rope_buffers().items()}
    assert convert("pixclip", {**state, **half}, tmp_path).model.dtype == torch.float32
    with pytest.raises(ConversionError, match="head_width = 16, but the tensors have 8"):
        convert("pixclip", {**state, **buffers}, tmp_path, {"head_width": 16})
    with pytest.raises(ConversionError, match=r"has shape \(9, 8\), the tables for 4x4 patches, .* have \(16, 8\)"):
        convert("pixclip", {**state, **eva02_rope_buffers(grid=3)}, tmp_path)


def test_what_is_missing_or_too_much_is_named(tmp_path):
    state = eva_state(mask=True)

    def without(*parts):
        return {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}

    cases = {
        r"no text adaptor: no tensor is named text.text_adaptor.\* or text.text_proj": ("pixclip", without("text.")),
        r"mask convolution, but \['visual.alpha_patch_embed.proj.weight', .*llm2clip": ("pixclip", without("alpha_")),
        r"but \['visual.alpha_patch_embed.proj.bias'\] are not": ("pixclip", without("alpha_patch_embed.proj.bias")),
        r"unexpected: 'visual.alpha_patch_embed.proj.weight'": ("llm2clip", state),
        r"missing: 'visual.blocks.1.mlp.w3.bias'": ("pixclip", without("blocks.1.mlp.w3.bias")),
        r"missing: 'text.text_adaptor.4.bias'": ("pixclip", without("text_adaptor.4.bias")),
        r"unexpected: 'visual.fc_norm.weight' \(32,\)": (
            "pixclip",
            {**state, "visual.fc_norm.weight": torch.ones(32)},
        ),
        r"twice: .*q_proj.bias.*q_bias": ("pixclip", {**state, "visual.blocks.0.attn.q_bias": torch.ones(32)}),
        r"not \['visual.blocks.0.attn.qkv.weight'\]": (
            "pixclip",
            {**state, "visual.blocks.0.attn.qkv.weight": torch.ones(96, 32)},
        ),
        r"projection gives 24 numbers, the text adaptor's 16": (
            "pixclip",
            {**state, "text.text_adaptor.5.weight": torch.ones(16, 40), "text.text_adaptor.5.bias": torch.ones(16)},
        ),
        r"wrong shape: 'text.text_adaptor.1.ln.bias'": (
            "pixclip",
            {**state, "text.text_adaptor.1.ln.bias": torch.ones(8)},
        ),
        r"eva-clip.*text.token_embedding.weight": ("eva-clip", without("text", "alpha_")),
    }
    for message, (source, given) in cases.items():
        with pytest.raises(ConversionError, match=message):
            convert(source, given, tmp_path, HEADS)
    own = random_tensors(eva02_shapes() | clip_text_shapes()) | temperature()
    with pytest.raises(
        ConversionError, match="'some-llm' is given, but a 'eva-clip' checkpoint has its own text tower"
    ):
        convert("eva-clip", own, tmp_path, official_config(4), text_backbone="some-llm")
    for config, message in {
        "postnorm": "postnorm = True",
        "subln": "subln = False, but the tensors have True",
        "llm_embedding_dim": "llm_embedding_dim = 2048, but the tensors have 40",
    }.items():
        value = {"postnorm": True, "subln": False, "llm_embedding_dim": 2048}[config]
        with pytest.raises(ConversionError, match=message):
            convert("pixclip", state, tmp_path, {**HEADS, config: value})


# Of the released sizes: width, layers, hidden, patch, grid, tensors of the visual tower with the mask convolution.
SIZES = {
    "EVA02-B/16": (768, 12, 2048, 16, 14, 288),
    "EVA02-L/14": (1024, 24, 2730, 14, 16, 564),
    "EVA02-L/14-336": (1024, 24, 2730, 14, 24, 564),
}


def on_no_device(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()} | temperature()


def shape_of(source, tensors, variant):
    """Model without memory of a layout, and what it assumed, from tensors without memory."""
    layout = next(layout for layout in CHECKPOINT_SOURCES[source] if variant in layout.variant)
    reading = read_tensors(layout, tensors)
    facts = SourceFacts.from_dict({})
    config = build_config(layout, reading, tensors, facts)
    complete_state(layout, reading, config)
    return config


@pytest.mark.parametrize("size", SIZES)
def test_the_released_sizes_need_no_configuration(size):
    width, layers, hidden, patch, grid, count = SIZES[size]
    shapes = eva02_shapes(width, layers, hidden, patch, grid, embed=1280, mask=True)
    shapes |= {
        f"visual.{place}rope.freqs_{part}": (grid**2, 64)
        for place in ("", *(f"blocks.{number}.attn." for number in range(layers)))
        for part in ("cos", "sin")
    }
    assert len(shapes) == count
    config = shape_of("pixclip", on_no_device(shapes | text_adaptor_shapes(4096, embed=1280)), "EVA02")
    vision, text = config.vision_config, config.text_config
    assert vision.num_attention_heads == width // 64 and vision.image_size == grid * patch
    assert (vision.rope_grid_size, vision.layer_norm_eps, config.projection_dim) == (16, 1e-6, 1280)
    assert (text.hidden_size, text.adapter_layers, text.adapter_expansion) == (4096, 4, 2)
    assert text.backbone_embeds_only and text.backbone_config.num_hidden_layers == 32


@pytest.mark.parametrize("source", ["llm2clip", "pixclip"])
def test_the_openai_l_14_needs_no_configuration(source):
    shapes = transformers_vision_shapes(1024, 24, 14, 16, 1280, mask=source == "pixclip")
    shapes |= text_adaptor_shapes(4096, embed=1280, prefix=HUB)
    config = shape_of(source, on_no_device(shapes), "Hub" if source == "llm2clip" else "OpenAI")
    vision = config.vision_config
    assert (vision.num_attention_heads, vision.image_size, vision.hidden_act) == (16, 224, "quick_gelu")
    repository = openai_vision_shapes(1024, 24, 14, 16, 1280) | text_adaptor_shapes(2048, embed=1280)
    config = shape_of("llm2clip", on_no_device(repository), "OpenAI")
    assert config.text_config.backbone_config.num_hidden_layers == 16


@pytest.mark.slow
def test_a_file_that_is_widened_is_converted_in_little_memory(tmp_path):
    """OpenAI's CLIP ViT-B/16 in float16 and float32, whose model is float32 throughout and larger than the file."""
    script = Path(__file__).parent / "benchmarks" / "bench_conversion.py"
    command = [sys.executable, script, "--sizes", "clip-b16", "--folder", tmp_path]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert 0.3 < figures["gigabytes"] < 0.4 and 1.5 < figures["output_over_file"] < 1.8
    # The file whole beside the model would be 2.2.
    assert figures["peak_over_file"] <= 2.0


@pytest.mark.slow
def test_the_full_size_is_converted_in_little_memory(tmp_path):
    """EVA02-B/16 and an adaptor for vectors 4,096 wide, 1.44 GB of float32, in a process of its own."""
    script = Path(__file__).parent / "benchmarks" / "bench_conversion.py"
    command = [sys.executable, script, "--sizes", "eva02-b16", "--folder", tmp_path]
    figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert 1.4 < figures["gigabytes"] < 1.5 and 0.99 < figures["output_over_file"] < 1.01
    assert figures["peak_over_file"] <= 2.2
    folder = tmp_path / "eva02-b16" / "converted"
    with torch.device("meta"):
        model = PixCLIPModel(PixCLIPConfig.from_pretrained(folder))
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    assert found == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # 87,051,008 of the vision tower with its mask convolution, 273,769,728 of the adaptor, the temperature.
    assert sum(tensor.numel() for tensor in model.parameters()) == 87_051_008 + 273_769_728 + 1
