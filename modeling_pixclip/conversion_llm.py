# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Layouts with an adaptor for vectors of an LLM: LLM2CLIP (repository and Hub), PixCLIP (EVA02 and OpenAI).

The LLM is in none of these files. Without `--text_backbone` the text tower takes its vectors (`backbone_embeds_only`); with
it, the converted checkpoint names the LLM and loads it from there.

What shapes cannot tell, beside what `conversion_eva` lists for the EVA02 tower: of OpenAI's tower `vision_heads` (64 wide
each) and `hidden_act`, which is QuickGELU for the weights that OpenAI's own were the start of, all that are released
(`{"hidden_act": "gelu"}` for a tower that the official code built from a path without `force_quick_gelu`);
`normalize_pooled`, whether vectors have length 1 before the adaptor (true; false for the names of a model that ran its LLM
inside, `text.text_proj.text_adaptor.*`).
"""

import os
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, LlamaConfig

from .configuration_pixclip import PixCLIPConfig, PixCLIPTextConfig, PixCLIPVisionConfig
from .conversion_clip import HUB_VISION, bound_of_temperature, clip_vision_config, openai_vision
from .conversion_eva import EVA02_PART, eva02_vision, eva02_vision_config
from .conversion_rules import (
    MASK_CONVOLUTION_ZERO,
    SCALAR,
    ConversionError,
    Rule,
    Shapes,
    SourceFacts,
    SourceLayout,
    SourcePart,
)
from .objective_presets import get_objective_preset
from .text_backbone_reference import backbone_source


_EMBEDDINGS = "vision_model.embeddings"
# In all official code; numbers 4 and 5 are the last norm and the projection.
_ADAPTOR_BLOCKS = 4
LIVE = "text.text_proj.text_adaptor."
REPOSITORY = "text.text_adaptor."
HUB = "text_adapter.adaptor."
# LLMs of the released checkpoints, by their width.
_LLAMA_3_8B = {
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}
_LLAMA_3_2_1B = {
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
_RELEASED = {4096: ("Llama-3-8B", _LLAMA_3_8B), 2048: ("Llama-3.2-1B", _LLAMA_3_2_1B)}
_LLAMA_3_VOCABULARY = 128256


def adaptor_rules(prefix: str, alias: bool = False) -> tuple[Rule, ...]:
    """The rules of the adaptor on an LLM's vectors, under a prefix of theirs."""
    theirs, ours = f"{prefix}{{block}}", "text_model.adapter.layers.{block}"
    table = (
        ("norm of an adaptor block", f"{theirs}.ln.{{kind}}", f"{ours}.layer_norm.{{kind}}"),
        ("adaptor block in", f"{theirs}.fn.0.{{kind}}", f"{ours}.fc1.{{kind}}"),
        ("adaptor block out", f"{theirs}.fn.3.{{kind}}", f"{ours}.fc2.{{kind}}"),
        ("last norm of the adaptor", f"{prefix}{_ADAPTOR_BLOCKS}.{{kind}}", "text_model.adapter.layer_norm.{kind}"),
        ("text projection", f"{prefix}{_ADAPTOR_BLOCKS + 1}.{{kind}}", "text_model.projection.{kind}"),
    )
    return tuple(Rule(*line, alias=alias) for line in table)


def _named_llm(facts: SourceFacts, width: int, adaptor: str) -> dict[str, Any]:
    """Fields of the text configuration for an LLM that the user names; it is not loaded."""
    name = os.fspath(facts.text_backbone)
    try:
        found = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"the text backbone {name!r} has no configuration that can be read: {str(error).rstrip('.')}. Give the folder or "
            "the Hub id of the LLM, or leave --text_backbone out."
        ) from error
    own_width = getattr(found.get_text_config(), "hidden_size", None)
    if own_width != width:
        raise ConversionError(
            f"the text backbone {name!r} ({found.model_type}) is {own_width} wide, the checkpoint's adaptor {adaptor} takes "
            f"vectors {width} wide. Give the LLM that the adaptor was trained on."
        )
    dtype = str(found.dtype or "").removeprefix("torch.")
    return {
        "backbone_config": found,
        "backbone_source": backbone_source(name, found),
        "backbone_in_checkpoint": False,
        # That of its own checkpoint, whatever the other weights have.
        "backbone_dtype": dtype if dtype in ("float32", "float16", "bfloat16") else None,
    }


def _unnamed_llm(facts: SourceFacts, width: int) -> dict[str, Any]:
    name, shape = _RELEASED.get(width, ("an LLM of this width", {"num_attention_heads": 1, "num_key_value_heads": 1}))
    facts.assumed["backbone_config"] = (
        f"{name} (vectors {width} wide; no LLM is made, and nothing but its width counts)"
    )
    return {
        "backbone_config": LlamaConfig(
            vocab_size=_LLAMA_3_VOCABULARY, hidden_size=width, bos_token_id=128000, eos_token_id=128009, **shape
        )
    }


def adaptor_config(shapes: Shapes, facts: SourceFacts, prefixes: tuple[str, ...]) -> PixCLIPTextConfig:
    """The text tower's configuration, of an adaptor under one of `prefixes`."""
    first, last = "text_model.adapter.layers.0.fc1.weight", "text_model.projection.weight"
    there = [prefix for prefix in prefixes if any(name.startswith(prefix) for name in facts.source_shapes)]
    if not there:
        raise ConversionError(
            f"the checkpoint has no text adaptor: no tensor is named {' or '.join(f'{prefix}*' for prefix in prefixes)}. A "
            "file of the vision tower alone makes no model for texts; take the complete one, such as the repository's .pt."
        )
    inner, width = shapes[first]
    projection, given = shapes[last]
    if inner % width or given != width:
        raise ConversionError(
            f"the text adaptor {there[0]}* contradicts itself: its first block has {inner} x {width} numbers, its "
            f"projection {projection} x {given}; both take vectors of one width, and a block is a multiple of it inside."
        )
    facts.agree("llm_embedding_dim", "text_cfg.llm_embedding_dim", found=width)
    facts.agree("text_adaptor_layers", found=_ADAPTOR_BLOCKS)
    facts.agree("text_adaptor_expansion", found=inner // width)
    llm = _named_llm(facts, width, f"{there[0]}*") if facts.text_backbone is not None else _unnamed_llm(facts, width)
    live = there[0] == LIVE
    try:
        return PixCLIPTextConfig(
            **llm,
            # Also with an LLM that is named: it is not loaded to convert.
            backbone_embeds_only=True,
            bidirectional=True,
            pooling="mean",
            normalize_pooled=facts.take(
                "normalize_pooled",
                default=not live,
                why="the official code does not scale vectors of an LLM inside"
                if live
                else "the official code's default",
            ),
            projection_type="adapter",
            adapter_layers=_ADAPTOR_BLOCKS,
            adapter_expansion=inner // width,
            adapter_layer_norm_eps=facts.take("norm_eps_text", default=1e-5, why="a constant of the official code"),
            projection_bias=True,
            projection_dim=projection,
        )
    except (ValueError, StrictDataclassError) as error:
        raise ConversionError(
            f"the text backbone {facts.text_backbone!r} does not go with the adaptor {there[0]}*: {error}"
        ) from error


def _join(vision: PixCLIPVisionConfig, text: PixCLIPTextConfig, facts: SourceFacts) -> PixCLIPConfig:
    if vision.projection_dim != text.projection_dim:
        raise ConversionError(
            f"the vision tower's projection gives {vision.projection_dim} numbers, the text adaptor's "
            f"{text.projection_dim}; the towers of one checkpoint share a space."
        )
    return PixCLIPConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=vision.projection_dim,
        logit_scale_max=bound_of_temperature(facts),
        **get_objective_preset("pixclip"),
    )


def _check_mask(facts: SourceFacts, *names: str):
    missing = [name for name in names if name not in facts.source_shapes]
    if missing:
        raise ConversionError(
            f"a PixCLIP checkpoint has a mask convolution, but {missing} are not in this one. If it is LLM2CLIP's, which "
            "PixCLIP starts from, take --source llm2clip."
        )


def _llm2clip_eva(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    vision = eva02_vision_config(shapes, facts, default_mask="none")
    return _join(vision, adaptor_config(shapes, facts, (REPOSITORY, LIVE)), facts)


def _llm2clip_openai(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    vision = clip_vision_config(shapes, facts, default_mask="none")
    return _join(vision, adaptor_config(shapes, facts, (REPOSITORY, LIVE)), facts)


def _llm2clip_hub(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    vision = clip_vision_config(shapes, facts, default_mask="none")
    return _join(vision, adaptor_config(shapes, facts, (HUB,)), facts)


# The official code's EVA02 tower runs without mask tokens where no mask is given, which is not the same as a mask of ones;
# the OpenAI one always takes a mask. Their patch maps come out of the whole last block.
def _pixclip_eva(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    _check_mask(facts, "visual.alpha_patch_embed.proj.weight", "visual.alpha_patch_embed.proj.bias")
    vision = eva02_vision_config(shapes, facts, default_mask="none", dense_features="plain")
    return _join(vision, adaptor_config(shapes, facts, (REPOSITORY, LIVE)), facts)


def _pixclip_openai(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    _check_mask(facts, f"{_EMBEDDINGS}.alpha_patch_embedding.weight")
    vision = clip_vision_config(shapes, facts, default_mask="full", dense_features="plain")
    return _join(vision, adaptor_config(shapes, facts, (HUB,)), facts)


def is_llama_3(config: PixCLIPConfig) -> bool:
    """Whether the LLM is of Llama-3 kind, by its architecture and vocabulary."""
    llm = config.text_config.backbone_text_config
    return llm.model_type == "llama" and llm.vocab_size == _LLAMA_3_VOCABULARY


def llm_text_options(config: PixCLIPConfig) -> dict[str, Any]:
    """Options of the processor for the LLM's texts."""
    # Official code tells by the LLM's name; its kind says as much and stays when a folder is renamed.
    return {"text_preset": "llm2vec-llama3" if is_llama_3(config) else None}


_TEMPERATURE = Rule("temperature", "logit_scale", "logit_scale", SCALAR)
_REPOSITORY_ADAPTOR = (*adaptor_rules(REPOSITORY), *adaptor_rules(LIVE, alias=True))
_ALPHA = Rule(
    "mask convolution", "visual.alpha_patch_embed.proj.{kind}", f"{_EMBEDDINGS}.mask_patch_embedding.{{kind}}"
)
_HUB_ALPHA = Rule(
    "mask convolution", f"{_EMBEDDINGS}.alpha_patch_embedding.weight", f"{_EMBEDDINGS}.mask_patch_embedding.weight"
)
_LLM = Rule("LLM", "l2v.{rest}", reason="the LLM is loaded from where it comes from (--text_backbone)")

LLM2CLIP = (
    SourceLayout(
        source="llm2clip",
        variant="repository, EVA02 vision tower",
        parts=(EVA02_PART,),
        rules=(*eva02_vision(), *_REPOSITORY_ADAPTOR, _TEMPERATURE),
        build_config=_llm2clip_eva,
        objective="pixclip",
        image_processor={"resize_mode": "shortest_edge"},
        fills=(MASK_CONVOLUTION_ZERO,),
        text_options=llm_text_options,
    ),
    SourceLayout(
        source="llm2clip",
        variant="repository, OpenAI vision tower",
        parts=(SourcePart("checkpoint", ("visual.conv1.weight",)),),
        rules=(*openai_vision("visual."), *_REPOSITORY_ADAPTOR, _TEMPERATURE),
        build_config=_llm2clip_openai,
        objective="pixclip",
        image_processor={"resize_mode": "shortest_edge"},
        fills=(MASK_CONVOLUTION_ZERO,),
        text_options=llm_text_options,
    ),
    SourceLayout(
        source="llm2clip",
        variant="Hub, names of Transformers",
        parts=(SourcePart("checkpoint", (f"{_EMBEDDINGS}.patch_embedding.weight",)),),
        rules=(*HUB_VISION, *adaptor_rules(HUB), _TEMPERATURE),
        build_config=_llm2clip_hub,
        objective="pixclip",
        image_processor={"resize_mode": "shortest_edge"},
        fills=(MASK_CONVOLUTION_ZERO,),
        text_options=llm_text_options,
    ),
)

PIXCLIP = (
    SourceLayout(
        source="pixclip",
        variant="EVA02 vision tower",
        parts=(EVA02_PART,),
        rules=(*eva02_vision(), _ALPHA, *_REPOSITORY_ADAPTOR, _TEMPERATURE, _LLM),
        build_config=_pixclip_eva,
        objective="pixclip",
        image_processor={},
        text_options=llm_text_options,
    ),
    SourceLayout(
        source="pixclip",
        variant="OpenAI vision tower",
        parts=(SourcePart("checkpoint", (f"{_EMBEDDINGS}.patch_embedding.weight",)),),
        rules=(*HUB_VISION, _HUB_ALPHA, *adaptor_rules(HUB), _TEMPERATURE, _LLM),
        build_config=_pixclip_openai,
        objective="pixclip",
        image_processor={},
        text_options=llm_text_options,
    ),
)


__all__ = ["LLM2CLIP", "PIXCLIP", "adaptor_config", "adaptor_rules", "is_llama_3", "llm_text_options"]
