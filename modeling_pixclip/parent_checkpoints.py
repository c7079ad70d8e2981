# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What [`PixCLIPModel.from_vision_text_pretrained`] takes over: the vision tower of one checkpoint, the LLM of another."""

from dataclasses import fields
from typing import Any

import torch
from transformers import AutoConfig, CLIPVisionModelWithProjection
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_utils import PreTrainedModel

from .configuration_pixclip import PixCLIPTextConfig, PixCLIPVisionConfig
from .modeling_vision_pixclip import PixCLIPVisionModelWithProjection
from .text_backbone_reference import backbone_source, load_complete


def check_fields(
    given: dict[str, Any], config_class: type[PreTrainedConfig], argument: str, own: tuple[str, ...] = ()
):
    """Refuses names that are no fields of a configuration, which would become attributes without effect."""
    inherited = {field.name for field in fields(PreTrainedConfig)} | set(own)
    accepted = [field.name for field in fields(config_class) if field.name not in inherited]
    unknown = [name for name in given if name not in accepted]
    if unknown:
        raise TypeError(
            f"{argument} has unexpected names {unknown}; accepted are the fields of {config_class.__name__}: {accepted}. "
            "Options of from_pretrained are not passed on: for another revision, download the checkpoint and pass its "
            "folder."
        )


def load_vision_parent(vision: str, fields: dict[str, Any]) -> tuple[PixCLIPVisionConfig, dict[str, torch.Tensor]]:
    """Configuration and weights (`vision_model.*`, `visual_projection.*`) of a CLIP or PixCLIP checkpoint."""
    config = AutoConfig.from_pretrained(vision)
    if config.model_type in ("clip", "clip_vision_model"):
        if config.model_type == "clip":
            # The composite's projection_dim is the one its weights were made with.
            config.vision_config.projection_dim = config.projection_dim
            config = config.vision_config
        model, info = CLIPVisionModelWithProjection.from_pretrained(
            vision, config=config, dtype=torch.float32, output_loading_info=True
        )
        own = PixCLIPVisionConfig().to_dict()
        given = {key: value for key, value in config.to_dict().items() if key in own and key != "model_type"}
    elif config.model_type in ("pixclip", "pixclip_vision_model"):
        model, info = PixCLIPVisionModelWithProjection.from_pretrained(
            vision, dtype=torch.float32, output_loading_info=True
        )
        given = model.config.to_dict()
    else:
        raise ValueError(
            f"{vision!r} is a checkpoint of type {config.model_type!r}; accepted vision checkpoints: clip, "
            "clip_vision_model, pixclip, pixclip_vision_model."
        )
    state = {key: value for key, value in model.state_dict().items() if key not in info["missing_keys"]}
    # Where the parent lies here is nothing to publish with the model.
    given.pop("_name_or_path", None)
    return PixCLIPVisionConfig(**{**given, **fields}), state


def load_backbone(
    text: str, config: PixCLIPTextConfig, dtype: torch.dtype | None, backbone_dtype: torch.dtype | str | None
) -> PreTrainedModel:
    """The text backbone, whose origin the tower's configuration then tells."""
    if backbone_dtype is None:
        backbone_dtype = dtype or (torch.float32 if config.backbone_training == "full" else "auto")
    backbone = load_complete(text, config.backbone_config, dtype=backbone_dtype)
    config.backbone_source = backbone_source(text, config.backbone_config)
    return backbone


def fill_vision_tower(model: PreTrainedModel, state: dict[str, torch.Tensor], name: str):
    """Loads `vision_model.*` and `visual_projection.*`, all but the mask's weights of which must be there."""
    own = model.state_dict()
    missing = [
        key
        for key in own
        if key not in state
        and key.startswith(("vision_model.", "visual_projection."))
        and ".mask_patch_embedding." not in key
    ]
    unexpected = [key for key in state if key not in own]
    mismatched = [
        f"{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if missing or unexpected or mismatched:
        raise ValueError(
            f"The vision checkpoint {name!r} does not fit the tower: missing {missing}, unexpected {unexpected}, of "
            f"another shape {mismatched}."
        )
    model.load_state_dict({**own, **state})


__all__ = ["check_fields", "fill_vision_tower", "load_backbone", "load_vision_parent"]
