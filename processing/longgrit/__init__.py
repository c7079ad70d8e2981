# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""LongGRIT: turns images with regions into long region descriptions, by models behind OpenAI-compatible servers.

Needs the extra `longgrit` (`pip install "pixclip[longgrit]"`), and `ray` for many machines.
"""

from . import required_packages  # noqa: F401
from .asking import Asker
from .config import LongGritSettings, read_settings
from .context_caption import ContextCaption
from .dataset_writer import write_shard
from .dry_run import DryRun, dry_run
from .engines import Answer, Engine, EngineUnavailable, Message, Request, RequestFailed
from .fuse import Fuse
from .hard_negatives import HardNegatives
from .image_caption import ImageCaption
from .object_caption import ObjectCaption
from .openai_engine import OpenAIEngine
from .progress import RunProgress
from .prompts import Prompt, load_prompt
from .push import push_dataset
from .ray_runner import run_pipeline_on_ray
from .records import ImageResult, ImageWork, Provenance, RegionResult, RegionWork, Rejected, SourceImage, SourceRegion
from .rule_engine import RuleEngine
from .runner import run_pipeline
from .source_stage import run_source_stage
from .sources import Source, open_image_store, open_source
from .stages import build_stages
from .transformers_engine import TransformersEngine
from .verify import Verify


__all__ = [
    "Answer",
    "Asker",
    "ContextCaption",
    "DryRun",
    "Engine",
    "EngineUnavailable",
    "Fuse",
    "HardNegatives",
    "ImageCaption",
    "ImageResult",
    "ImageWork",
    "LongGritSettings",
    "Message",
    "ObjectCaption",
    "OpenAIEngine",
    "Prompt",
    "Provenance",
    "RegionResult",
    "RegionWork",
    "Rejected",
    "Request",
    "RequestFailed",
    "RuleEngine",
    "RunProgress",
    "Source",
    "SourceImage",
    "SourceRegion",
    "TransformersEngine",
    "Verify",
    "build_stages",
    "dry_run",
    "load_prompt",
    "open_image_store",
    "open_source",
    "push_dataset",
    "read_settings",
    "run_pipeline",
    "run_pipeline_on_ray",
    "run_source_stage",
    "write_shard",
]
