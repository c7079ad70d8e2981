# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The field's benchmarks of region-aware image-text models: protocols, scorers, metrics.

Running them and writing the report is in `evaluation_run`, which needs the extra `evaluation`.
"""

from .benchmark import Benchmark, SourceFile
from .boxes import box_iou, paired_iou
from .classification_scores import accuracy_at, confusion, target_ranks
from .clip_benchmark_loader import load_pixclip
from .clip_encoder import ClipEncoder
from .encoders import Encoder
from .features import FeatureExtractor
from .items import EvaluationImage, EvaluationRegion
from .loading import open_encoder
from .metric_modules import metric_path
from .mteb_encoder import MtebEncoder
from .pixclip_encoder import PixCLIPEncoder
from .protocols import Protocol
from .registry import BENCHMARKS, get_benchmark, get_protocol
from .results import BenchmarkResult, Figure
from .retrieval_ranks import bidirectional_ranks, median_rank, recall_at, retrieval_ranks
from .text_encoder import TextEncoder


__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkResult",
    "ClipEncoder",
    "Encoder",
    "EvaluationImage",
    "EvaluationRegion",
    "FeatureExtractor",
    "Figure",
    "MtebEncoder",
    "PixCLIPEncoder",
    "Protocol",
    "SourceFile",
    "TextEncoder",
    "accuracy_at",
    "bidirectional_ranks",
    "box_iou",
    "confusion",
    "get_benchmark",
    "get_protocol",
    "load_pixclip",
    "median_rank",
    "metric_path",
    "open_encoder",
    "paired_iou",
    "recall_at",
    "retrieval_ranks",
    "target_ranks",
]
