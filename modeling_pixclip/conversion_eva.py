# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Layout of EVA-CLIP's EVA02 checkpoints, and what LLM2CLIP and PixCLIP share with it: the EVA02 vision tower.

What shapes cannot tell, by the names that `--source_config` takes (the official ones, also below `vision_cfg` and
`text_cfg`), and what holds without: `head_width` (64, as in every released size), `pt_hw_seq_len` (16), `intp_freq`
(true), `norm_eps_vision` (1e-6), and for the text tower `text_heads` (64 wide each) and `text_hidden_act` (exact GELU, or
QuickGELU with `quick_gelu: true`); the vision tower's activation is that of its SwiGLU. The tables of rotary positions, which official files hold once for each block, are compared with those that these numbers give.
"""

import math
from typing import Any

import torch

from .configuration_pixclip import PixCLIPConfig, PixCLIPVisionConfig
from .conversion_clip import (
    BACKBONE,
    HEAD_WIDTH,
    bound_of_temperature,
    clip_text_config,
    openai_blocks,
    plain_text_options,
    read_image_size,
)
from .conversion_rules import (
    MASK_CONVOLUTION_ZERO,
    SCALAR,
    STRIP_ONE_AXIS,
    STRIP_TWO_AXES,
    TRANSPOSE,
    ConversionError,
    Rule,
    Shapes,
    SourceFacts,
    SourceLayout,
    SourcePart,
    count_blocks,
)
from .modeling_vision_pixclip import rotary_tables
from .objective_presets import get_objective_preset


_EMBEDDINGS = "vision_model.embeddings"
# Rounding of the float32 tables, which may be stored in half precision.
_ROPE_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def check_rope(name: str, table: torch.Tensor, config: PixCLIPConfig):
    """Refuses a table of rotary positions (N, head width) that is not the one the configuration gives."""
    vision = config.vision_config
    expected = rotary_tables(vision, *vision.grid_size, torch.zeros(()))[name.endswith("freqs_sin")]
    described = (
        f"{vision.grid_size[0]}x{vision.grid_size[1]} patches, rope_grid_size {vision.rope_grid_size} and heads "
        f"{expected.shape[1]} wide"
    )
    remedy = "Give its 'pt_hw_seq_len', 'intp_freq', 'image_size' and 'head_width' in --source_config."
    if table.shape != expected.shape:
        raise ConversionError(
            f"{name} has shape {tuple(table.shape)}, the tables for {described} have {tuple(expected.shape)}. {remedy}"
        )
    difference = float((table.float() - expected).abs().max())
    if not difference <= _ROPE_TOLERANCE.get(table.dtype, 0.0):
        raise ConversionError(
            f"{name} differs by {difference:.2g} from the rotary positions of {described}: the checkpoint was made with "
            f"another grid. {remedy}"
        )


def eva02_vision() -> tuple[Rule, ...]:
    """The rules of the EVA02 tower, `visual.*`."""
    theirs, ours = "visual.blocks.{block}", "vision_model.encoder.layers.{block}"
    remade = "the configuration gives the same table, which is checked"
    return (
        Rule("class token", "visual.cls_token", f"{_EMBEDDINGS}.class_embedding", STRIP_TWO_AXES),
        Rule("vision positions", "visual.pos_embed", f"{_EMBEDDINGS}.position_embedding.weight", STRIP_ONE_AXIS),
        Rule("patch convolution", "visual.patch_embed.proj.{kind}", f"{_EMBEDDINGS}.patch_embedding.{{kind}}"),
        Rule("norm before attention", f"{theirs}.norm1.{{kind}}", f"{ours}.layer_norm1.{{kind}}"),
        Rule("query", f"{theirs}.attn.q_proj.{{kind}}", f"{ours}.self_attn.q_proj.{{kind}}"),
        Rule("key", f"{theirs}.attn.k_proj.weight", f"{ours}.self_attn.k_proj.weight"),
        Rule("value", f"{theirs}.attn.v_proj.{{kind}}", f"{ours}.self_attn.v_proj.{{kind}}"),
        # EVA-CLIP's own names; LLM2CLIP folds them into the layers.
        Rule("query bias", f"{theirs}.attn.q_bias", f"{ours}.self_attn.q_proj.bias", alias=True),
        Rule("value bias", f"{theirs}.attn.v_bias", f"{ours}.self_attn.v_proj.bias", alias=True),
        Rule(
            "inner norm of attention",
            f"{theirs}.attn.inner_attn_ln.{{kind}}",
            f"{ours}.self_attn.inner_layer_norm.{{kind}}",
        ),
        Rule("attention output", f"{theirs}.attn.proj.{{kind}}", f"{ours}.self_attn.out_proj.{{kind}}"),
        Rule("norm before MLP", f"{theirs}.norm2.{{kind}}", f"{ours}.layer_norm2.{{kind}}"),
        Rule("MLP gate", f"{theirs}.mlp.w1.{{kind}}", f"{ours}.mlp.gate_proj.{{kind}}"),
        Rule("MLP in", f"{theirs}.mlp.w2.{{kind}}", f"{ours}.mlp.up_proj.{{kind}}"),
        Rule("inner norm of MLP", f"{theirs}.mlp.ffn_ln.{{kind}}", f"{ours}.mlp.inner_layer_norm.{{kind}}"),
        Rule("MLP out", f"{theirs}.mlp.w3.{{kind}}", f"{ours}.mlp.down_proj.{{kind}}"),
        Rule("norm after the vision blocks", "visual.norm.{kind}", "vision_model.post_layernorm.{kind}"),
        Rule("visual projection", "visual.head.{kind}", "visual_projection.{kind}"),
        *(
            Rule("rotary positions", f"{place}.freqs_{part}", reason=remade, check=check_rope)
            for place in ("visual.rope", f"{theirs}.attn.rope")
            for part in ("cos", "sin")
        ),
    )


def eva02_vision_config(shapes: Shapes, facts: SourceFacts, **fields: Any) -> PixCLIPVisionConfig:
    """The vision tower's configuration; `fields` are those that differ from one project to the next."""
    layers = "vision_model.encoder.layers"
    width, _, patch, _ = shapes[f"{_EMBEDDINGS}.patch_embedding.weight"]
    patches = shapes[f"{_EMBEDDINGS}.position_embedding.weight"][0] - 1
    projection, _ = shapes["visual_projection.weight"]
    names = ("head_width", "vision_cfg.head_width")
    tables = [shape for name, shape in facts.source_shapes.items() if name.endswith(".rope.freqs_cos")]
    head_width = (
        facts.agree(*names, found=tables[0][-1])
        if tables
        else facts.take(*names, default=HEAD_WIDTH, why="every released size")
    )
    if type(head_width) is not int or head_width < 1 or width % head_width:
        raise ConversionError(f"heads {head_width!r} wide do not divide the vision tower, which is {width} wide.")
    if facts.take("postnorm", "vision_cfg.postnorm", default=False, why="every released EVA02"):
        raise ConversionError(
            "the source configuration says postnorm = True; blocks with norms before them are accepted."
        )
    for name in ("subln", "naiveswiglu", "qkv_bias"):
        facts.agree(name, f"vision_cfg.{name}", found=True)
    image_size = read_image_size(shapes, facts, patch)
    rope = {"use_rope": facts.take("rope", "vision_cfg.rope", default=True, why="every released EVA02")}
    scale = facts.take("pt_hw_seq_len", "vision_cfg.pt_hw_seq_len", default=16, why="every released EVA02")
    if rope["use_rope"]:
        scaled = facts.take("intp_freq", "vision_cfg.intp_freq", default=True, why="every released EVA02")
        # Positions that are not scaled to a grid are those of their own.
        rope["rope_grid_size"] = scale if scaled else math.isqrt(patches)
    return PixCLIPVisionConfig(
        hidden_size=facts.agree("width", "vision_cfg.width", found=width),
        intermediate_size=shapes[f"{layers}.0.mlp.gate_proj.weight"][0],
        num_hidden_layers=facts.agree(
            "layers", "vision_cfg.layers", found=count_blocks(shapes, f"{layers}.{{block}}.layer_norm1.weight")
        ),
        num_attention_heads=width // head_width,
        image_size=image_size,
        patch_size=facts.agree("patch_size", "vision_cfg.patch_size", found=patch),
        projection_dim=facts.agree("embed_dim", found=projection),
        hidden_act="silu",
        mlp_type="swiglu",
        layer_norm_eps=facts.take("norm_eps_vision", default=1e-6, why="a constant of the official code"),
        pre_layer_norm=False,
        sub_layer_norm=True,
        key_bias=False,
        patch_bias=True,
        mask_patch_bias=True,
        projection_bias=True,
        **rope,
        **fields,
    )


def _text_rules(prefix: str) -> tuple[Rule, ...]:
    embeddings = f"{BACKBONE}.embeddings"
    return (
        Rule("token embedding", f"{prefix}token_embedding.weight", f"{embeddings}.token_embedding.weight"),
        Rule("text positions", f"{prefix}positional_embedding", f"{embeddings}.position_embedding.weight"),
        Rule("final norm of the text tower", f"{prefix}ln_final.{{kind}}", f"{BACKBONE}.final_layer_norm.{{kind}}"),
        Rule("text projection", f"{prefix}text_projection", "text_model.projection.weight", TRANSPOSE),
        *openai_blocks(f"{prefix}transformer", f"{BACKBONE}.encoder"),
    )


def _eva_clip_config(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    vision = eva02_vision_config(shapes, facts, default_mask="none")
    quick = facts.take("quick_gelu", default=False, why="every released EVA02-CLIP")
    text = clip_text_config(
        shapes,
        facts,
        activation="quick_gelu" if quick else "gelu",
        activation_names=("text_hidden_act", "hidden_act", "text_config.hidden_act"),
    )
    activation = text.backbone_config.hidden_act
    if quick and activation != "quick_gelu":
        raise ConversionError(
            f"the source configuration contradicts itself: quick_gelu = {quick!r}, text_hidden_act = {activation!r}."
        )
    return PixCLIPConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=vision.projection_dim,
        multi_positive=False,
        logit_scale_max=bound_of_temperature(facts),
        **get_objective_preset("clip"),
    )


# Towers with fused query, key and value (EVA01, the largest EVA02) have other blocks.
EVA02_PART = SourcePart(
    "checkpoint with an EVA02 tower, its query, key and value apart",
    ("visual.cls_token", "visual.blocks.0.mlp.w1.weight"),
    absent=("visual.blocks.0.attn.qkv.weight",),
)
EVA_CLIP = (
    SourceLayout(
        source="eva-clip",
        variant="EVA02 vision tower and CLIP text tower",
        parts=(EVA02_PART,),
        rules=(
            *eva02_vision(),
            *_text_rules("text."),
            # Models that the official code builds without `custom_text`.
            *_text_rules(""),
            Rule("temperature", "logit_scale", "logit_scale", SCALAR),
        ),
        build_config=_eva_clip_config,
        objective="clip",
        image_processor={"resize_mode": "shortest_edge"},
        fills=(MASK_CONVOLUTION_ZERO,),
        text_options=plain_text_options,
    ),
)


__all__ = ["EVA02_PART", "EVA_CLIP", "check_rope", "eva02_vision", "eva02_vision_config"]
