# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Configurations: round trips, defaults, and errors that name what does not fit."""

import json
import math

import pytest
from huggingface_hub.errors import StrictDataclassError
from tiny_models import EVA02, backbone_config, pixclip_config, text_config, vision_config
from transformers import (
    AutoConfig,
    BartConfig,
    CLIPConfig,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    T5Config,
)

from modeling_pixclip import PixCLIPConfig, PixCLIPTextConfig, PixCLIPVisionConfig


BACKBONES = ["llama", "qwen3", "bert", "clip_text"]
CONFIGS = {
    "vision": lambda: vision_config(**EVA02, image_size=[32, 48], default_mask="none"),
    **{f"text-{name}": lambda name=name: text_config(name, pooling="last", adapter_layers=2) for name in BACKBONES},
    **{
        f"whole-{name}": lambda name=name: pixclip_config(
            vision=EVA02, text={"backbone": name, "backbone_training": "full"}, local_pooling="roi", crop_weight=0.5
        )
        for name in BACKBONES
    },
}


def plain(config):
    """Content without the folder that it was loaded from."""
    return {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}


@pytest.mark.parametrize("build", CONFIGS.values(), ids=CONFIGS)
def test_round_trips(build, tmp_path):
    config = build()
    again = type(config).from_dict(config.to_dict())
    assert type(again) is type(config) and again.to_dict() == config.to_dict()
    config.save_pretrained(tmp_path)
    for loaded in (type(config).from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert type(loaded) is type(config) and plain(loaded) == plain(config)
        for name in type(config).sub_configs:
            assert type(getattr(loaded, name)) is type(getattr(config, name))
    assert plain(type(config)(**json.loads((tmp_path / "config.json").read_text()))) == plain(config)


def test_parts_load_out_of_a_whole_config(tmp_path):
    config = pixclip_config(vision=EVA02, text={"backbone": "qwen3"})
    config.save_pretrained(tmp_path)
    assert plain(PixCLIPVisionConfig.from_pretrained(tmp_path)) == plain(config.vision_config)
    assert plain(PixCLIPTextConfig.from_pretrained(tmp_path)) == plain(config.text_config)


@pytest.mark.parametrize("backbone", ["llama", "qwen3", "mistral"])
def test_direction_of_a_decoder_is_written_down(backbone, tmp_path):
    for bidirectional in (True, False):
        config = pixclip_config(text={"backbone": backbone, "bidirectional": bidirectional})
        config.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text())["text_config"]["backbone_config"]
        assert saved["is_causal"] is not bidirectional
    # The field of the text tower decides, also where the backbone's own says otherwise.
    assert text_config(backbone_config(backbone, is_causal=True)).backbone_config.is_causal is False
    again = text_config(backbone_config(backbone, is_causal=False), bidirectional=False)
    assert again.backbone_config.is_causal is True


@pytest.mark.parametrize("config_class", [Gemma3Config, LlavaConfig, Qwen2_5_VLConfig])
def test_direction_of_a_vision_language_model_is_written_to_its_text_part(config_class):
    for bidirectional in (True, False):
        config = text_config(config_class(), bidirectional=bidirectional).backbone_config
        assert config.text_config.is_causal is not bidirectional
        # The text part taken alone.
        alone = text_config(config_class().text_config, bidirectional=bidirectional).backbone_config
        assert alone.is_causal is not bidirectional


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_the_config_passed_in_is_left_alone(backbone):
    given = backbone_config(backbone)
    before = given.to_dict()
    config = text_config(given)
    assert given.to_dict() == before and config.backbone_config is not given


@pytest.mark.parametrize("backbone", ["bert", "clip_text"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_encoders_are_left_as_they_are(backbone, bidirectional):
    config = text_config(backbone, bidirectional=bidirectional)
    assert config.backbone_config.to_dict() == backbone_config(backbone).to_dict()


def test_defaults_are_clip_and_smollm():
    config = PixCLIPConfig()
    vision, backbone = config.vision_config, config.text_config.backbone_config
    assert isinstance(vision, PixCLIPVisionConfig) and isinstance(config.text_config, PixCLIPTextConfig)
    assert (vision.hidden_size, vision.patch_size, vision.image_size, vision.hidden_act) == (
        768,
        16,
        224,
        "quick_gelu",
    )
    assert vision.grid_size == (14, 14)
    assert isinstance(backbone, LlamaConfig) and config.text_config.hidden_size == backbone.hidden_size == 576
    assert config.projection_dim == vision.projection_dim == config.text_config.projection_dim == 512
    assert config.term_weights == {"global": 1.0, "crop": 1.0, "local": 1.0}


def test_towers_given_as_dicts_take_the_projection_dim():
    backbone = backbone_config("qwen3").to_dict()
    config = PixCLIPConfig(
        projection_dim=24, vision_config={"patch_size": 32}, text_config={"backbone_config": backbone}
    )
    assert config.vision_config.projection_dim == config.text_config.projection_dim == 24
    assert config.vision_config.patch_size == 32 and config.text_config.backbone_config.model_type == "qwen3"


def test_branches_of_weight_zero_are_left_out():
    assert pixclip_config(crop_weight=0, local_weight=0.25).term_weights == {"global": 1.0, "local": 0.25}


def test_grid_of_an_oblong_image():
    assert vision_config(image_size=(32, 48)).grid_size == vision_config(image_size=[32, 48]).grid_size == (4, 6)


@pytest.mark.parametrize(
    "build, fields",
    [
        (vision_config, {"hidden_size": "64"}),
        (vision_config, {"patch_size": 8.0}),
        (vision_config, {"pre_layer_norm": "yes"}),
        (vision_config, {"image_size": "32"}),
        (vision_config, {"mlp_type": "glu"}),
        (vision_config, {"default_mask": "ones"}),
        (vision_config, {"dense_features": "last"}),
        (text_config, {"pooling": "max"}),
        (text_config, {"projection_type": "mlp"}),
        (text_config, {"bidirectional": "no"}),
        (text_config, {"adapter_layers": 1.5}),
        (pixclip_config, {"projection_dim": "16"}),
        (pixclip_config, {"global_weight": "1"}),
        (pixclip_config, {"crop_text": "caption"}),
        (pixclip_config, {"local_pooling": "box"}),
        (pixclip_config, {"local_target": "image"}),
        (pixclip_config, {"local_stop_gradient": "yes"}),
    ],
)
def test_wrong_types_and_choices_are_refused(build, fields):
    with pytest.raises(StrictDataclassError, match=next(iter(fields))):
        build(**fields)


@pytest.mark.parametrize(
    "build, fields, message",
    [
        (vision_config, {"hidden_size": 30}, r"hidden_size \(30\).*num_attention_heads \(4\)"),
        (
            vision_config,
            {"hidden_size": 24, "use_rope": True},
            r"use_rope=True.*hidden_size \(24\).*num_attention_heads \(4\) = 6",
        ),
        (vision_config, {"image_size": 36}, r"image_size \(36\).*patch_size \(8\)"),
        (vision_config, {"image_size": 0}, r"image_size \(0\).*patch_size \(8\)"),
        (vision_config, {"image_size": [32, 36]}, r"image_size \(\[32, 36\]\).*patch_size \(8\)"),
        (vision_config, {"image_size": [32]}, r"image_size \(\[32\]\).*patch_size \(8\)"),
        (vision_config, {"image_size": [32, 32, 32]}, r"image_size \(\[32, 32, 32\]\).*patch_size \(8\)"),
        (vision_config, {"patch_size": 0}, r"patch_size \(0\)"),
        (vision_config, {"num_attention_heads": 0}, r"num_attention_heads \(0\)"),
        (vision_config, {"num_hidden_layers": 0}, r"num_hidden_layers.*0"),
        (vision_config, {"mask_std": 0.0}, r"mask_std must be positive, got 0.0"),
        (text_config, {"adapter_layers": -1}, r"adapter_layers \(-1\).*adapter_expansion \(2\)"),
        (text_config, {"adapter_expansion": 0}, r"adapter_layers \(4\).*adapter_expansion \(0\)"),
        (pixclip_config, {"projection_dim": 24}, r"vision_config.projection_dim \(16\).*projection_dim \(24\)"),
        (pixclip_config, {"text": {"projection_dim": 8}}, r"text_config.projection_dim \(8\).*projection_dim \(16\)"),
        (
            pixclip_config,
            {"logit_scale_init_value": 5},
            r"logit_scale_init_value \(5\).*logit_scale_max \(100.0\)",
        ),
        (pixclip_config, {"logit_scale_max": 0.0}, r"logit_scale_init_value \(2.6592\).*logit_scale_max \(0.0\)"),
        (pixclip_config, {"global_weight": -1.0}, r"global_weight must be finite and >= 0, got -1.0"),
        (pixclip_config, {"crop_weight": -0.5}, r"crop_weight must be finite and >= 0, got -0.5"),
        (pixclip_config, {"local_weight": math.inf}, r"local_weight must be finite and >= 0, got inf"),
        (pixclip_config, {"local_weight": math.nan}, r"local_weight must be finite and >= 0, got nan"),
    ],
)
def test_fields_that_do_not_fit_each_other_are_named(build, fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        build(**fields)


@pytest.mark.parametrize("fields", [{}, {"is_encoder_decoder": False}])
@pytest.mark.parametrize("config_class", [T5Config, BartConfig])
def test_encoder_decoders_are_refused(config_class, fields):
    with pytest.raises((ValueError, StrictDataclassError), match="is an encoder-decoder. Accepted: a decoder"):
        PixCLIPTextConfig(backbone_config=config_class(d_model=32, **fields))


def test_backbones_that_do_not_run_on_text_alone_are_refused():
    with pytest.raises((ValueError, StrictDataclassError), match="'clip' does not run on text alone.*clip_text_model"):
        PixCLIPTextConfig(backbone_config=CLIPConfig())


def test_pooling_the_end_of_text_needs_one():
    for backbone in (backbone_config("bert", eos_token_id=None), backbone_config("llama", eos_token_id=None)):
        with pytest.raises((ValueError, StrictDataclassError), match="pooling='eos' needs.*eos_token_id"):
            text_config(backbone, pooling="eos")
        assert text_config(backbone, pooling="last").end_of_text_id is None
    # A vision-language model keeps it in its text part.
    assert (
        text_config(LlavaConfig(text_config={"model_type": "llama", "eos_token_id": 7}), pooling="eos").end_of_text_id
        == 7
    )


def test_temperature_may_start_at_its_bound():
    config = pixclip_config(logit_scale_init_value=math.log(100))
    assert config.logit_scale_init_value == math.log(100)


def test_a_config_that_no_longer_fits_is_not_saved(tmp_path):
    config = pixclip_config()
    config.text_config.projection_dim = 8
    with pytest.raises((ValueError, StrictDataclassError), match=r"text_config.projection_dim \(8\)"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize("text", [{"model_type": "llama"}, backbone_config("llama")])
def test_a_bare_text_backbone_is_told_where_it_goes(text):
    with pytest.raises(ValueError, match=r"text_config is of model type 'llama'.*backbone_config"):
        PixCLIPConfig(text_config=text)
