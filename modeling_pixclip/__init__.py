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
from transformers.pipelines import PIPELINE_REGISTRY

from processing_pixclip import (
    BadSampleLog,
    BadSamplesCallback,
    CocoRegionDataset,
    EvaluationRegions,
    FGCLIPDataset,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPImageProcessorPil,
    PixCLIPProcessor,
    RegionAugmentation,
    RegionFolderDataset,
    RegionJsonlDataset,
    RegionStream,
    SetEpochCallback,
    SkipBadSamples,
    StreamedRecords,
    StreamResumeCallback,
    TooManyBadSamplesError,
    describe_region,
    describe_regions,
    get_text_preset,
    iter_fgclip_records,
    iter_region_folder_records,
    write_region_jsonl,
    write_region_parquet,
    write_region_webdataset,
)
from processing_pixclip.image_processing_pixclip import BACKENDS as IMAGE_PROCESSOR_BACKENDS

from .checkpoint_integrity import (
    CheckpointIntegrityCallback,
    checkpoint_damage,
    last_complete_checkpoint,
    read_checkpoint_manifest,
    write_checkpoint_manifest,
)
from .configuration_pixclip import PixCLIPConfig, PixCLIPTextConfig, PixCLIPVisionConfig
from .conversion import Conversion, convert_checkpoint, list_checkpoint_sources
from .conversion_export import SourceFile, export_checkpoint, to_source
from .conversion_folder import convert_to_folder
from .conversion_rules import ConversionError
from .export_pixclip import (
    TextAdapterForExport,
    TextForExport,
    VisionForExport,
    VisionWithoutMask,
    export_model,
)
from .fine_grained_losses import hard_negative_loss, ranking_margin_loss, text_intra_loss
from .freezing_schedule import FreezingSchedule
from .gradient_caching import GradientCachingTrainer
from .losses import caption_contrastive_loss, contrastive_loss, cosine_distance
from .model_card import CardDetails, render_model_card, write_model_card
from .model_card_callback import ModelCardCallback
from .modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel, PixCLIPPreTrainedModel
from .modeling_text_pixclip import PixCLIPTextModel, PixCLIPTextModelOutput
from .modeling_vision_pixclip import PixCLIPVisionModel, PixCLIPVisionModelOutput, PixCLIPVisionModelWithProjection
from .objective_presets import get_objective_preset
from .outputs_pixclip import PixCLIPOutput, PretrainingEmbeddings
from .parameter_groups import (
    describe_parameter_groups,
    find_group_parameters,
    get_parameter_groups,
    optimizer_for_trainer,
)
from .pipeline_pixclip import RegionFeatureExtractionPipeline, ZeroShotRegionClassificationPipeline
from .position_stretching import stretch_positions
from .region_pooling import mask_pool, roi_align
from .sharded_precision import autocast_under_fsdp
from .text_feature_store import TextFeatureStore
from .trainer_callbacks import LossTermsCallback
from .weight_averaging import WeightAveragingCallback, load_weight_averages


for _config, _model in (
    (PixCLIPConfig, PixCLIPModel),
    (PixCLIPVisionConfig, PixCLIPVisionModel),
    (PixCLIPTextConfig, PixCLIPTextModel),
):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
AutoModelForPreTraining.register(PixCLIPConfig, PixCLIPForPreTraining)
AutoModelForZeroShotImageClassification.register(PixCLIPConfig, PixCLIPModel)
AutoImageProcessor.register(PixCLIPConfig, image_processor_classes=IMAGE_PROCESSOR_BACKENDS)
AutoProcessor.register(PixCLIPConfig, PixCLIPProcessor)

for _task, _pipeline in (
    ("zero-shot-region-classification", ZeroShotRegionClassificationPipeline),
    ("region-feature-extraction", RegionFeatureExtractionPipeline),
):
    PIPELINE_REGISTRY.register_pipeline(
        _task, pipeline_class=_pipeline, pt_model=AutoModelForPreTraining, type="multimodal"
    )

# Saved folders carry the code, so that they load where this package is not installed (trust_remote_code=True).
PixCLIPConfig.register_for_auto_class()
PixCLIPModel.register_for_auto_class("AutoModel")
PixCLIPForPreTraining.register_for_auto_class("AutoModelForPreTraining")
for _image_processor in IMAGE_PROCESSOR_BACKENDS.values():
    _image_processor.register_for_auto_class()
PixCLIPProcessor.register_for_auto_class()

__all__ = [
    "BadSampleLog",
    "BadSamplesCallback",
    "CardDetails",
    "CheckpointIntegrityCallback",
    "CocoRegionDataset",
    "Conversion",
    "ConversionError",
    "EvaluationRegions",
    "FGCLIPDataset",
    "FreezingSchedule",
    "GradientCachingTrainer",
    "LossTermsCallback",
    "ModelCardCallback",
    "PixCLIPConfig",
    "PixCLIPDataCollator",
    "PixCLIPForPreTraining",
    "PixCLIPImageProcessor",
    "PixCLIPImageProcessorPil",
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
    "PretrainingEmbeddings",
    "RegionAugmentation",
    "RegionFeatureExtractionPipeline",
    "RegionFolderDataset",
    "RegionJsonlDataset",
    "RegionStream",
    "SetEpochCallback",
    "SkipBadSamples",
    "SourceFile",
    "StreamResumeCallback",
    "StreamedRecords",
    "TextAdapterForExport",
    "TextFeatureStore",
    "TextForExport",
    "TooManyBadSamplesError",
    "VisionForExport",
    "VisionWithoutMask",
    "WeightAveragingCallback",
    "ZeroShotRegionClassificationPipeline",
    "autocast_under_fsdp",
    "caption_contrastive_loss",
    "checkpoint_damage",
    "contrastive_loss",
    "convert_checkpoint",
    "convert_to_folder",
    "cosine_distance",
    "describe_parameter_groups",
    "describe_region",
    "describe_regions",
    "export_model",
    "export_checkpoint",
    "find_group_parameters",
    "get_objective_preset",
    "get_parameter_groups",
    "get_text_preset",
    "hard_negative_loss",
    "iter_fgclip_records",
    "iter_region_folder_records",
    "last_complete_checkpoint",
    "list_checkpoint_sources",
    "load_weight_averages",
    "mask_pool",
    "optimizer_for_trainer",
    "ranking_margin_loss",
    "read_checkpoint_manifest",
    "render_model_card",
    "roi_align",
    "stretch_positions",
    "text_intra_loss",
    "to_source",
    "write_checkpoint_manifest",
    "write_model_card",
    "write_region_jsonl",
    "write_region_parquet",
    "write_region_webdataset",
]
