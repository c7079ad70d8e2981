# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What all testers share: which of our classes are base models, and tests that no model of ours is the subject of."""

from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES


MODEL_MAPPING_NAMES.update(
    {
        "pixclip": "PixCLIPModel",
        "pixclip_text_model": "PixCLIPTextModel",
        "pixclip_vision_model": ("PixCLIPVisionModel", "PixCLIPVisionModelWithProjection"),
    }
)

NOT_OF_THIS_KIND = {
    "MODEL_MAPPING_NAMES": (
        "ours are in no table of the library; it says which are base models, of which tests of training want no loss, as "
        "of CLIPModel"
    ),
    "test_can_load_from_already_mapped_keys": "no renaming of weights is registered; examples/convert_checkpoint.py converts",
    "test_reverse_loading_mapping": "no renaming of weights is registered; examples/convert_checkpoint.py converts",
    "test_causal_lm_loss_honors_shift_labels": "no language modelling head",
    "test_eager_matches_batched_and_grouped_inference_*": "no experts",
    "test_encoder_decoder_loss_no_double_shift": "no language modelling head",
    "test_keep_in_fp32_modules*": "all modules run in half precision; what needs float32 casts itself",
    "test_model_rope_scaling_*": "no RoPE that `rope_parameters` configures; that of a text backbone is the backbone's",
    "test_model_rope_with_partial_rotation": "no RoPE that `rope_parameters` configures",
    "test_moe_models_record_router_logits": "no experts",
    "test_output_router_logits_from_config": "no experts",
    "test_resize_position_vector_embeddings": (
        "the vision table is interpolated at run time, a text table is the backbone's; "
        "tests/test_position_stretching.py resizes it"
    ),
    "test_sliding_window_mask": "no sliding window of our own",
    "test_tied_head_has_a_tp_plan_entry": "no tensor parallel plan; DDP and FSDP are tested in tests/test_distributed_*.py",
    "test_tp_plan_matches_params": "no tensor parallel plan; DDP and FSDP are tested in tests/test_distributed_*.py",
    "test_vision_axial_rope": "RoPE of the vision tower is a function without a layer; its goldens test it",
}
