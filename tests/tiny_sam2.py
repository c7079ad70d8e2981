# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Builder of a tiny real SAM 2."""

import torch
from transformers import Sam2Config, Sam2Model


def tiny_sam2(seed=0, side=64):
    """A real SAM 2 of 120 thousand random weights."""
    levels = [[side // stride] * 2 for stride in (4, 8, 16)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [side, side],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 4, 4],
        "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": levels,
        "fpn_hidden_size": 32,
    }
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    prompts = {"hidden_size": 32, "image_size": side, "patch_size": 16, "mask_input_channels": 4}
    torch.manual_seed(seed)
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    model = Sam2Model(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                # As they are drawn, they are so small that photos hardly change the masks.
                weights *= 5
    return model
