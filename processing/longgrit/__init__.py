# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""LongGRIT: turns images with regions into long region descriptions, by models behind OpenAI-compatible servers.

Needs the extra `longgrit` (`pip install "pixclip[longgrit]"`), and `ray` for many machines.
"""

from .config import STAGES, LongGritSettings, read_settings
from .dataset_writer import write_shard
from .dry_run import DryRun, dry_run
from .engines import Answer, Engine, EngineUnavailable, Message, Request, RequestFailed
from .openai_engine import OpenAIEngine
from .progress import RunProgress
from .prompts import Prompt, load_prompt
from .push import push_dataset
from .ray_runner import run_pipeline_on_ray
from .records import ImageResult, Provenance, RegionResult, Rejected, SourceImage, SourceRegion
from .rule_engine import RuleEngine
from .runner import run_pipeline
from .sources import Source, open_source
from .transformers_engine import TransformersEngine


__all__ = [
    "STAGES",
    "Answer",
    "DryRun",
    "Engine",
    "EngineUnavailable",
    "ImageResult",
    "LongGritSettings",
    "Message",
    "OpenAIEngine",
    "Prompt",
    "Provenance",
    "RegionResult",
    "Rejected",
    "Request",
    "RequestFailed",
    "RuleEngine",
    "RunProgress",
    "Source",
    "SourceImage",
    "SourceRegion",
    "TransformersEngine",
    "dry_run",
    "load_prompt",
    "open_source",
    "push_dataset",
    "read_settings",
    "run_pipeline",
    "run_pipeline_on_ray",
    "write_shard",
]
