# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""PixCLIP and FG-CLIP for Hugging Face Transformers. Importing this package registers the Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from processing_pixclip import (
    CocoRegionDataset,
    EvaluationRegions,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    RegionAugmentation,
    RegionJsonlDataset,
    describe_region,
    describe_regions,
    get_text_preset,
)

from .configuration_pixclip import PixCLIPConfig, PixCLIPTextConfig, PixCLIPVisionConfig
from .losses import caption_contrastive_loss, contrastive_loss, cosine_distance
from .modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel, PixCLIPOutput, PixCLIPPreTrainedModel
from .modeling_text_pixclip import PixCLIPTextModel, PixCLIPTextModelOutput
from .modeling_vision_pixclip import PixCLIPVisionModel, PixCLIPVisionModelOutput, PixCLIPVisionModelWithProjection
from .position_stretching import stretch_positions
from .region_pooling import mask_pool, roi_align
from .text_feature_store import TextFeatureStore
from .trainer_callbacks import LossTermsCallback


for _config, _model in (
    (PixCLIPConfig, PixCLIPModel),
    (PixCLIPVisionConfig, PixCLIPVisionModel),
    (PixCLIPTextConfig, PixCLIPTextModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
AutoModelForPreTraining.register(PixCLIPConfig, PixCLIPForPreTraining)
AutoModelForZeroShotImageClassification.register(PixCLIPConfig, PixCLIPModel)
AutoImageProcessor.register(PixCLIPConfig, image_processor_classes={"pil": PixCLIPImageProcessor})
AutoProcessor.register(PixCLIPConfig, PixCLIPProcessor)

# Saved folders carry the code, so that they load where this package is not installed (trust_remote_code=True).
PixCLIPConfig.register_for_auto_class()
PixCLIPModel.register_for_auto_class("AutoModel")
PixCLIPForPreTraining.register_for_auto_class("AutoModelForPreTraining")
PixCLIPImageProcessor.register_for_auto_class()
PixCLIPProcessor.register_for_auto_class()

__all__ = [
    "CocoRegionDataset",
    "EvaluationRegions",
    "LossTermsCallback",
    "PixCLIPConfig",
    "PixCLIPDataCollator",
    "PixCLIPForPreTraining",
    "PixCLIPImageProcessor",
    "PixCLIPModel",
    "PixCLIPOutput",
    "PixCLIPPreTrainedModel",
    "PixCLIPProcessor",
    "PixCLIPTextConfig",
    "PixCLIPTextModel",
    "PixCLIPTextModelOutput",
    "PixCLIPVisionConfig",
    "PixCLIPVisionModel",
    "PixCLIPVisionModelOutput",
    "PixCLIPVisionModelWithProjection",
    "RegionAugmentation",
    "RegionJsonlDataset",
    "TextFeatureStore",
    "caption_contrastive_loss",
    "contrastive_loss",
    "cosine_distance",
    "describe_region",
    "describe_regions",
    "get_text_preset",
    "mask_pool",
    "roi_align",
    "stretch_positions",
]
