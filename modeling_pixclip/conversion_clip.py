# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Layouts of the CLIP family: OpenAI's CLIP and Transformers' `CLIPModel`, Alpha-CLIP, FG-CLIP, Long-CLIP.

What shapes cannot tell, by the names that `--source_config` takes, and what holds without: `vision_heads`, `text_heads`
(a head is 64 wide, as in every released size), `hidden_act` (QuickGELU), `layer_norm_eps` (1e-5), `eos_token_id` (the last
of the vocabulary), `image_size` (a square). A folder's `config.json` is read too, and `--source_config` holds over it.

FG-CLIP's temperatures of regions and of hard negatives belong to its objective: `PixCLIPForPreTraining` has them and is the
class to train on with, as a `PixCLIPModel` (what `AutoModel` gives) saves without them.
"""

import math
from typing import Any

from transformers import CLIPTextConfig

from .configuration_pixclip import PixCLIPConfig, PixCLIPTextConfig, PixCLIPVisionConfig
from .conversion_rules import (
    MASK_CONVOLUTION_ZERO,
    SCALAR,
    SPLIT_QKV,
    TRANSPOSE,
    ConversionError,
    Rows,
    Rule,
    Shapes,
    SourceFacts,
    SourceLayout,
    SourcePart,
    count_blocks,
)
from .objective_presets import get_objective_preset


HEAD_WIDTH = 64
BACKBONE = "text_model.backbone"
_TEXT_TABLE = f"{BACKBONE}.embeddings.position_embedding.weight"
# Their rows 0 to 19 are those of CLIP, which Long-CLIP and FG-CLIP keep.
_KEPT_ROWS = 20


def openai_blocks(source: str, target: str, linear: bool = False) -> tuple[Rule, ...]:
    """
    The rules of OpenAI's transformer blocks, under a prefix of theirs and one of ours.

    With `linear` the projection of queries, keys and values is written as a layer of its own (`in_proj.weight`), as in
    Alpha-CLIP's vision tower; OpenAI has bare parameters (`in_proj_weight`). Read are both.
    """
    theirs, ours = f"{source}.resblocks.{{block}}", f"{target}.layers.{{block}}"
    qkv = tuple(f"{ours}.self_attn.{name}_proj.{{kind}}" for name in "qkv")
    return (
        Rule("query, key, value", f"{theirs}.attn.in_proj_{{kind}}", qkv, SPLIT_QKV, alias=linear),
        Rule("query, key, value", f"{theirs}.attn.in_proj.{{kind}}", qkv, SPLIT_QKV, alias=not linear),
        Rule("attention output", f"{theirs}.attn.out_proj.{{kind}}", f"{ours}.self_attn.out_proj.{{kind}}"),
        Rule("norm before attention", f"{theirs}.ln_1.{{kind}}", f"{ours}.layer_norm1.{{kind}}"),
        Rule("norm before MLP", f"{theirs}.ln_2.{{kind}}", f"{ours}.layer_norm2.{{kind}}"),
        Rule("MLP in", f"{theirs}.mlp.c_fc.{{kind}}", f"{ours}.mlp.fc1.{{kind}}"),
        Rule("MLP out", f"{theirs}.mlp.c_proj.{{kind}}", f"{ours}.mlp.fc2.{{kind}}"),
    )


def openai_vision(prefix: str, linear: bool = False) -> tuple[Rule, ...]:
    """The rules of OpenAI's vision tower, `prefix` before its names."""
    embeddings = "vision_model.embeddings"
    return (
        Rule("class token", f"{prefix}class_embedding", f"{embeddings}.class_embedding"),
        Rule("vision positions", f"{prefix}positional_embedding", f"{embeddings}.position_embedding.weight"),
        Rule("patch convolution", f"{prefix}conv1.weight", f"{embeddings}.patch_embedding.weight"),
        Rule("norm before the vision blocks", f"{prefix}ln_pre.{{kind}}", "vision_model.pre_layrnorm.{kind}"),
        Rule("norm after the vision blocks", f"{prefix}ln_post.{{kind}}", "vision_model.post_layernorm.{kind}"),
        Rule("visual projection", f"{prefix}proj", "visual_projection.weight", TRANSPOSE),
        *openai_blocks(f"{prefix}transformer", "vision_model.encoder", linear),
    )


def openai_text() -> tuple[Rule, ...]:
    """The rules of OpenAI's text tower, but for its positions."""
    return (
        Rule("token embedding", "token_embedding.weight", f"{BACKBONE}.embeddings.token_embedding.weight"),
        Rule("final norm of the text tower", "ln_final.{kind}", f"{BACKBONE}.final_layer_norm.{{kind}}"),
        Rule("text projection", "text_projection", "text_model.projection.weight", TRANSPOSE),
        Rule("temperature", "logit_scale", "logit_scale", SCALAR),
        *openai_blocks("transformer", f"{BACKBONE}.encoder"),
        *(
            Rule("sizes stored as tensors", name, reason="the shapes of the weights say the same")
            for name in ("input_resolution", "context_length", "vocab_size")
        ),
    )


_VISION, _TEXT = "vision_model", "text_model"
_COUNTED = "0, 1, 2, ..., which every model counts itself"
HUB_VISION = (
    Rule("class token", f"{_VISION}.embeddings.class_embedding", f"{_VISION}.embeddings.class_embedding"),
    Rule(
        "patch convolution",
        f"{_VISION}.embeddings.patch_embedding.weight",
        f"{_VISION}.embeddings.patch_embedding.weight",
    ),
    Rule(
        "vision positions",
        f"{_VISION}.embeddings.position_embedding.weight",
        f"{_VISION}.embeddings.position_embedding.weight",
    ),
    Rule("norm before the vision blocks", f"{_VISION}.pre_layrnorm.{{kind}}", f"{_VISION}.pre_layrnorm.{{kind}}"),
    Rule("norm after the vision blocks", f"{_VISION}.post_layernorm.{{kind}}", f"{_VISION}.post_layernorm.{{kind}}"),
    Rule("vision blocks", f"{_VISION}.encoder.{{rest}}", f"{_VISION}.encoder.{{rest}}"),
    Rule("visual projection", "visual_projection.weight", "visual_projection.weight"),
    Rule("positions counted", f"{_VISION}.embeddings.position_ids", reason=_COUNTED),
)
HUB_TEXT = (
    Rule(
        "token embedding",
        f"{_TEXT}.embeddings.token_embedding.weight",
        f"{BACKBONE}.embeddings.token_embedding.weight",
    ),
    Rule("text blocks", f"{_TEXT}.encoder.{{rest}}", f"{BACKBONE}.encoder.{{rest}}"),
    Rule(
        "final norm of the text tower", f"{_TEXT}.final_layer_norm.{{kind}}", f"{BACKBONE}.final_layer_norm.{{kind}}"
    ),
    Rule("text projection", "text_projection.weight", "text_model.projection.weight"),
    Rule("temperature", "logit_scale", "logit_scale", SCALAR),
    Rule("positions counted", f"{_TEXT}.embeddings.position_ids", reason=_COUNTED),
)
HUB_TEXT_POSITIONS = Rule("text positions", f"{_TEXT}.embeddings.position_embedding.weight", _TEXT_TABLE)
OPENAI_TEXT_POSITIONS = Rule("text positions", "positional_embedding", _TEXT_TABLE)


def count_heads(facts: SourceFacts, tower: str, width: int, *names: str) -> int:
    """Attention heads of a tower ("vision" or "text"): told, or as many as are 64 wide."""
    heads = facts.take(
        f"{tower}_heads",
        *names,
        default=width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else None,
        why=f"heads are {HEAD_WIDTH} wide in every released size"
        if width % HEAD_WIDTH == 0
        else f"the {tower} tower is {width} wide, no multiple of {HEAD_WIDTH}, the width of a head in every released size",
    )
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ConversionError(
            f"the source configuration says {heads!r} attention heads for the {tower} tower, which is {width} wide: no "
            "whole width for a head."
        )
    return heads


def read_image_size(shapes: Shapes, facts: SourceFacts, patch: int) -> int | list[int]:
    """Pixels that the table of positions was made for: a square, unless told."""
    patches = shapes[f"{_VISION}.embeddings.position_embedding.weight"][0] - 1
    side = math.isqrt(patches)
    square = side * side == patches
    size = facts.take(
        "image_size",
        "image_resolution",
        "vision_config.image_size",
        "vision_cfg.image_size",
        default=side * patch if square else None,
        why="the grid is a square" if square else f"the table of positions has {patches} patches, which are no square",
    )
    sides = [size, size] if isinstance(size, int) else size
    if (
        not isinstance(sides, (list, tuple))
        or len(sides) != 2
        or any(type(side) is not int or side < 1 for side in sides)
    ):
        raise ConversionError(
            f"the source configuration says image_size = {size!r}; accepted are pixels of a square, or [height, width]."
        )
    height, width = sides
    if (height // patch) * (width // patch) != patches:
        raise ConversionError(
            f"the source configuration says image_size = {size!r}, {(height // patch) * (width // patch)} patches of {patch} "
            f"pixels, but the table of positions has {patches}."
        )
    return size


def clip_vision_config(shapes: Shapes, facts: SourceFacts, **fields: Any) -> PixCLIPVisionConfig:
    """The vision tower of OpenAI's CLIP."""
    width, channels, patch, _ = shapes[f"{_VISION}.embeddings.patch_embedding.weight"]
    layer = f"{_VISION}.encoder.layers.{{block}}"
    layers = count_blocks(shapes, f"{layer}.layer_norm1.weight")
    inner = shapes[f"{_VISION}.encoder.layers.0.mlp.fc1.weight"][0]
    # Of Transformers' configurations the towers' own projection_dim is not read: it is left at its default in many.
    projection = shapes["visual_projection.weight"][0]
    return PixCLIPVisionConfig(
        hidden_size=facts.agree("vision_width", "vision_config.hidden_size", "vision_cfg.width", found=width),
        intermediate_size=facts.agree("vision_config.intermediate_size", found=inner),
        num_hidden_layers=facts.agree(
            "vision_layers", "vision_config.num_hidden_layers", "vision_cfg.layers", found=layers
        ),
        num_attention_heads=count_heads(facts, "vision", width, "vision_config.num_attention_heads"),
        num_channels=facts.agree("vision_config.num_channels", found=channels),
        patch_size=facts.agree("vision_patch_size", "vision_config.patch_size", "vision_cfg.patch_size", found=patch),
        image_size=read_image_size(shapes, facts, patch),
        projection_dim=facts.agree("projection_dim", "embed_dim", found=projection),
        hidden_act=facts.take("hidden_act", "vision_config.hidden_act", default="quick_gelu", why="CLIP's activation"),
        layer_norm_eps=facts.take(
            "layer_norm_eps", "vision_config.layer_norm_eps", default=1e-5, why="CLIP's epsilon"
        ),
        **fields,
    )


def clip_text_config(
    shapes: Shapes,
    facts: SourceFacts,
    short_rows: int | None = None,
    activation: str = "quick_gelu",
    activation_names: tuple[str, ...] = ("hidden_act", "text_config.hidden_act"),
    **fields: Any,
) -> PixCLIPTextConfig:
    """The text tower of OpenAI's CLIP; `short_rows` of its positions belong to short texts."""
    vocabulary, width = shapes[f"{BACKBONE}.embeddings.token_embedding.weight"]
    rows = shapes[_TEXT_TABLE][0]
    layers = count_blocks(shapes, f"{BACKBONE}.encoder.layers.{{block}}.layer_norm1.weight")
    inner = shapes[f"{BACKBONE}.encoder.layers.0.mlp.fc1.weight"][0]
    facts.agree(
        "context_length",
        "text_config.max_position_embeddings",
        "text_cfg.context_length",
        found=short_rows or rows,
        # Of a model with two tables the length of the other one.
        loose=() if short_rows is None else (rows - short_rows,),
    )
    end = facts.take(
        "eos_token_id", "text_config.eos_token_id", default=vocabulary - 1, why="the end of text is CLIP's last token"
    )
    if end == 2:
        # In old configurations of Transformers, for which it pools at the highest id of a text.
        end = vocabulary - 1
        facts.notes.append(f"eos_token_id 2 stands for the highest id of a text; {end} is written")
    backbone = CLIPTextConfig(
        vocab_size=facts.agree("vocab_size", "text_config.vocab_size", "text_cfg.vocab_size", found=vocabulary),
        hidden_size=facts.agree("transformer_width", "text_config.hidden_size", "text_cfg.width", found=width),
        intermediate_size=facts.agree("text_config.intermediate_size", found=inner),
        num_hidden_layers=facts.agree(
            "transformer_layers", "text_config.num_hidden_layers", "text_cfg.layers", found=layers
        ),
        num_attention_heads=count_heads(
            facts, "text", width, "transformer_heads", "text_config.num_attention_heads", "text_cfg.heads"
        ),
        max_position_embeddings=rows,
        projection_dim=shapes["text_model.projection.weight"][0],
        hidden_act=facts.take(*activation_names, default=activation, why="the project's activation"),
        layer_norm_eps=facts.take("layer_norm_eps", "text_config.layer_norm_eps", default=1e-5, why="CLIP's epsilon"),
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    return PixCLIPTextConfig(
        backbone_config=backbone,
        projection_dim=facts.agree("projection_dim", "embed_dim", found=shapes["text_model.projection.weight"][0]),
        **{
            "pooling": "eos",
            "normalize_pooled": False,
            "projection_type": "linear",
            "projection_bias": False,
            "backbone_training": "full",
            # CLIP's text tower does not take texts end to end.
            "padding_free": False,
            **fields,
        },
    )


def bound_of_temperature(facts: SourceFacts) -> float:
    """CLIP's bound of 100, or what the checkpoint has where that is more, so that its logits stay what they are."""
    highest = max(
        (math.exp(value) for name, value in facts.values.items() if name.startswith("logit_scale")), default=0
    )
    if highest <= 100 * (1 + 1e-6):
        return 100.0
    facts.notes.append(f"logit_scale_max is raised from 100 to the checkpoint's inverse temperature of {highest:.6g}")
    return math.ceil(highest * 1e4 + 1) / 1e4


def clip_config(
    shapes: Shapes, facts: SourceFacts, objective: str, vision=None, text=None, **fields: Any
) -> PixCLIPConfig:
    """
    A model of CLIP's towers with the objective of a preset.

    Without a trained mask convolution there are no mask tokens by default, which is what its zeros would give. Equal texts
    are negatives of each other, as in all these projects.
    """
    sides = {name: shapes[f"{name}.weight"][0] for name in ("visual_projection", "text_model.projection")}
    if len(set(sides.values())) > 1:
        made_from = {shapes.layout.sources_of(f"{name}.weight")[0]: width for name, width in sides.items()}
        raise ConversionError(
            f"the towers map to spaces of different widths: {made_from}. Take the files of one size of the model."
        )
    vision_config = clip_vision_config(shapes, facts, **{"default_mask": "none", **(vision or {})})
    return PixCLIPConfig(
        vision_config=vision_config,
        text_config=clip_text_config(shapes, facts, **(text or {})),
        projection_dim=vision_config.projection_dim,
        **{
            **get_objective_preset(objective),
            "multi_positive": False,
            "logit_scale_max": bound_of_temperature(facts),
            **fields,
        },
    )


def openai_source_config(config: PixCLIPConfig) -> dict[str, Any]:
    """What shapes cannot tell, by OpenAI's names where it has some."""
    vision, backbone = config.vision_config, config.text_config.backbone_text_config
    return {
        "vision_heads": vision.num_attention_heads,
        "transformer_heads": backbone.num_attention_heads,
        "hidden_act": vision.hidden_act,
        "layer_norm_eps": vision.layer_norm_eps,
        "image_size": vision.image_size,
        "eos_token_id": backbone.eos_token_id,
    }


def hub_source_config(config: PixCLIPConfig) -> dict[str, Any]:
    """The `config.json` of Transformers' `CLIPModel`."""
    vision, text = config.vision_config, config.text_config
    backbone = text.backbone_text_config
    shared = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_act",
        "layer_norm_eps",
    )
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection_dim,
        "text_config": {
            **{name: getattr(backbone, name) for name in shared},
            "vocab_size": backbone.vocab_size,
            "max_position_embeddings": text.max_text_positions(long_text=False),
            "projection_dim": config.projection_dim,
            **{name: getattr(backbone, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        },
        "vision_config": {
            **{name: getattr(vision, name) for name in shared},
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "num_channels": vision.num_channels,
            "projection_dim": config.projection_dim,
        },
    }


def plain_text_options(config: PixCLIPConfig) -> dict[str, Any]:
    """CLIP's texts: no template, all tokens (the model pools the end of text), as many as there are positions."""
    return {"text_preset": "plain", "text_max_length": config.text_config.max_text_positions(long_text=False)}


def _clip_config(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    return clip_config(shapes, facts, "clip")


CROP = {"resize_mode": "shortest_edge"}

OPENAI_CLIP = (
    SourceLayout(
        source="openai-clip",
        variant="OpenAI state dict",
        parts=(
            SourcePart(
                "OpenAI CLIP",
                ("visual.conv1.weight", "token_embedding.weight"),
                absent=("visual.conv1_alpha.weight", "positional_embedding_res"),
                file_name="openai_clip.pt",
            ),
        ),
        rules=(
            *openai_vision("visual."),
            *openai_text(),
            OPENAI_TEXT_POSITIONS,
        ),
        build_config=_clip_config,
        objective="clip",
        image_processor=CROP,
        fills=(MASK_CONVOLUTION_ZERO,),
        text_options=plain_text_options,
        source_config=openai_source_config,
    ),
    SourceLayout(
        source="openai-clip",
        variant="CLIPModel of Transformers",
        parts=(
            SourcePart(
                "CLIPModel",
                (f"{_VISION}.embeddings.patch_embedding.weight", f"{_TEXT}.embeddings.token_embedding.weight"),
                absent=("text_filip_projection.weight",),
                file_name="model.safetensors",
            ),
        ),
        rules=(*HUB_VISION, *HUB_TEXT, HUB_TEXT_POSITIONS),
        build_config=_clip_config,
        objective="clip",
        image_processor=CROP,
        fills=(MASK_CONVOLUTION_ZERO,),
        text_options=plain_text_options,
        source_config=hub_source_config,
        hub_folder=True,
    ),
)


def _long_rows(config: PixCLIPConfig) -> int:
    return config.text_config.max_text_positions(long_text=True)


def _short_rows(config: PixCLIPConfig) -> int:
    return config.text_config.max_text_positions(long_text=False)


def _rows_of_both(facts: SourceFacts, kept: str, stretched: str) -> int:
    """Rows of the two tables that a table of long texts is made of, which are the same in both."""
    rows = {name: facts.source_shapes[name][0] for name in (kept, stretched)}
    if rows[kept] != rows[stretched]:
        raise ConversionError(
            f"the two tables of long texts have different lengths: {rows}. Take a checkpoint as its project saved it."
        )
    return rows[kept]


_FG_TABLE = f"{_TEXT}.embeddings.position_embedding"


def _fg_config(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    long = _rows_of_both(facts, f"{_FG_TABLE}_ori.weight", f"{_FG_TABLE}_res.weight")
    config = clip_config(
        shapes,
        facts,
        "fg-clip-stage2",
        text={
            "short_rows": facts.source_shapes[f"{_FG_TABLE}.weight"][0],
            "long_text_projection": True,
            "long_text_positions": long,
        },
    )
    # FG-CLIP's temperatures have no bound; this one is out of reach.
    config.logit_scale_max = max(config.logit_scale_max, 10000.0)
    facts.notes.append(
        "FG-CLIP does not bound its inverse temperatures (logit_scale_max is 10000 here), and contrasts regions within a "
        "process only, captions over all; here gather holds for both"
    )
    facts.notes.append(
        "train on with PixCLIPForPreTraining: the temperatures of regions and of hard negatives are the objective's, and a "
        "PixCLIPModel, which AutoModel gives, saves without them"
    )
    return config


FG_CLIP = (
    SourceLayout(
        source="fg-clip",
        variant="FG-CLIP v1",
        parts=(
            SourcePart(
                "FG-CLIP",
                (f"{_VISION}.embeddings.patch_embedding.weight", f"{_FG_TABLE}_ori.weight"),
                file_name="model.safetensors",
            ),
        ),
        rules=(
            *HUB_VISION,
            *HUB_TEXT,
            # The long path reads rows 0 to 19 of one table and the others of the second.
            Rule("positions of short texts", f"{_FG_TABLE}.weight", _TEXT_TABLE, rows=Rows(0, None, _short_rows)),
            Rule(
                "positions of long texts, kept",
                f"{_FG_TABLE}_ori.weight",
                _TEXT_TABLE,
                rows=Rows(0, _KEPT_ROWS, _long_rows),
            ),
            Rule(
                "positions of long texts, stretched",
                f"{_FG_TABLE}_res.weight",
                _TEXT_TABLE,
                rows=Rows(_KEPT_ROWS, None, _long_rows),
            ),
            Rule("projection of long texts", "text_filip_projection.weight", "text_model.long_projection.weight"),
            # Every start of FG-CLIP's training sets them to the temperature.
            Rule(
                "temperature of regions",
                "logit_scale_finegraind",
                "logit_scale_region",
                SCALAR,
                written_from="logit_scale",
            ),
            Rule(
                "temperature of hard negatives",
                "logit_scale_hardneg",
                "logit_scale_hard_negative",
                SCALAR,
                written_from="logit_scale",
            ),
        ),
        build_config=_fg_config,
        objective="fg-clip-stage2",
        image_processor={"resize_mode": "squash"},
        fills=(MASK_CONVOLUTION_ZERO,),
        pretraining=True,
        text_options=plain_text_options,
        source_config=hub_source_config,
        hub_folder=True,
    ),
)


def _long_config(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    _rows_of_both(facts, "positional_embedding", "positional_embedding_res")
    facts.notes.append(
        "Long-CLIP trains its short captions against 32 principal components of the images' vectors, with label smoothing "
        "0.1; the objective here has neither"
    )
    return clip_config(shapes, facts, "fg-clip-stage1")


LONG_CLIP = (
    SourceLayout(
        source="long-clip",
        variant="Long-CLIP",
        parts=(
            SourcePart(
                "Long-CLIP",
                ("visual.conv1.weight", "token_embedding.weight", "positional_embedding_res"),
                file_name="longclip.pt",
            ),
        ),
        rules=(
            *openai_vision("visual."),
            *openai_text(),
            Rule("positions, kept", "positional_embedding", _TEXT_TABLE, rows=Rows(0, _KEPT_ROWS, _long_rows)),
            Rule(
                "positions, stretched",
                "positional_embedding_res",
                _TEXT_TABLE,
                rows=Rows(_KEPT_ROWS, None, _long_rows),
            ),
        ),
        build_config=_long_config,
        objective="fg-clip-stage1",
        image_processor=CROP,
        fills=(MASK_CONVOLUTION_ZERO,),
        text_options=plain_text_options,
        source_config=openai_source_config,
    ),
)


__all__ = [
    "FG_CLIP",
    "LONG_CLIP",
    "OPENAI_CLIP",
    "bound_of_temperature",
    "clip_config",
    "clip_text_config",
    "clip_vision_config",
    "count_heads",
]
