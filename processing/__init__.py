# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data side of PixCLIP: images, region masks and long texts become the batches of the model."""

from transformers import AutoImageProcessor

from .augmentation import RegionAugmentation
from .data_collator import PixCLIPDataCollator
from .frame_geometry import FrameGeometry
from .image_processing_pixclip import PixCLIPImageProcessor, PixCLIPImageProcessorKwargs
from .processing_pixclip import PixCLIPProcessor, PixCLIPProcessorKwargs
from .region_datasets import (
    CocoRegionDataset,
    EvaluationRegions,
    RegionJsonlDataset,
    RegionSample,
    write_region_jsonl,
)
from .region_description import RegionDescription, describe_region, describe_regions
from .regions import (
    as_box_list,
    as_mask_list,
    box_to_mask,
    check_box,
    encode_rle,
    mask_to_box,
    to_mask,
)
from .text_presets import TextPreset, get_text_preset


# PixCLIPProcessor.from_pretrained finds its image processor by name in this registry, which is keyed by config class;
# the model side registers its config, the class itself stands in where only the data side is imported.
AutoImageProcessor.register(PixCLIPImageProcessor, image_processor_classes={"pil": PixCLIPImageProcessor})

__all__ = [
    "CocoRegionDataset",
    "EvaluationRegions",
    "FrameGeometry",
    "PixCLIPDataCollator",
    "PixCLIPImageProcessor",
    "PixCLIPImageProcessorKwargs",
    "PixCLIPProcessor",
    "PixCLIPProcessorKwargs",
    "RegionAugmentation",
    "RegionDescription",
    "RegionJsonlDataset",
    "RegionSample",
    "TextPreset",
    "as_box_list",
    "as_mask_list",
    "box_to_mask",
    "check_box",
    "describe_region",
    "describe_regions",
    "encode_rle",
    "get_text_preset",
    "mask_to_box",
    "to_mask",
    "write_region_jsonl",
]
