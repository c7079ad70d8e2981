# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data side of PixCLIP: images, region masks and long texts become the batches of the model."""

from transformers import AutoImageProcessor

from .augmentation import RegionAugmentation
from .bad_samples import BadSampleLog, BadSamplesCallback, SkipBadSamples, TooManyBadSamplesError
from .coco_region_datasets import CocoRegionDataset
from .data_collator import PixCLIPDataCollator
from .fgclip_datasets import FGCLIPDataset, iter_fgclip_records
from .frame_geometry import FrameGeometry
from .image_processing_base_pixclip import PixCLIPImageProcessorKwargs
from .image_processing_pixclip import BACKENDS, PixCLIPImageProcessor, PixCLIPImageProcessorPil
from .processing_pixclip import PixCLIPProcessor, PixCLIPProcessorKwargs
from .region_datasets import EvaluationRegions, RegionJsonlDataset, write_region_jsonl
from .region_description import RegionDescription, describe_region, describe_regions
from .region_folders import RegionFolderDataset, iter_region_folder_records
from .region_records import RegionSample, check_record, sample_of_record
from .region_shards import write_region_parquet, write_region_webdataset
from .region_streams import RegionStream, StreamResumeCallback
from .regions import (
    as_box_list,
    as_mask_list,
    box_to_mask,
    check_box,
    encode_rle,
    mask_to_box,
    to_mask,
)
from .streamed_records import StreamedRecords
from .text_presets import TextPreset, get_text_preset
from .training_epochs import SetEpochCallback


# PixCLIPProcessor.from_pretrained finds its image processor by name in this registry, which is keyed by config class;
# the model side registers its config, the class itself stands in where only the data side is imported.
AutoImageProcessor.register(PixCLIPImageProcessorPil, image_processor_classes=BACKENDS)

__all__ = [
    "BadSampleLog",
    "BadSamplesCallback",
    "CocoRegionDataset",
    "EvaluationRegions",
    "FGCLIPDataset",
    "FrameGeometry",
    "PixCLIPDataCollator",
    "PixCLIPImageProcessor",
    "PixCLIPImageProcessorKwargs",
    "PixCLIPImageProcessorPil",
    "PixCLIPProcessor",
    "PixCLIPProcessorKwargs",
    "RegionAugmentation",
    "RegionDescription",
    "RegionFolderDataset",
    "RegionJsonlDataset",
    "RegionSample",
    "RegionStream",
    "SetEpochCallback",
    "SkipBadSamples",
    "StreamResumeCallback",
    "StreamedRecords",
    "TextPreset",
    "TooManyBadSamplesError",
    "as_box_list",
    "as_mask_list",
    "box_to_mask",
    "check_box",
    "check_record",
    "describe_region",
    "describe_regions",
    "encode_rle",
    "get_text_preset",
    "iter_fgclip_records",
    "iter_region_folder_records",
    "mask_to_box",
    "sample_of_record",
    "to_mask",
    "write_region_jsonl",
    "write_region_parquet",
    "write_region_webdataset",
]
