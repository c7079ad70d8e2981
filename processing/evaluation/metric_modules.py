# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where the `evaluate` modules of this package lie."""

from __future__ import annotations

from pathlib import Path


METRICS = ("fine_grained_accuracy", "referring_accuracy", "region_classification", "region_retrieval")


def metric_path(name: str) -> str:
    """The folder of a metric, for `evaluate.load`, which needs no network for it.

    Args:
        name: One of `METRICS`.

    Raises:
        ValueError: If there is no such metric.

    Example:
        >>> import evaluate
        >>> metric = evaluate.load(metric_path("region_classification"))
        >>> metric.compute(predictions=[[0.9, 0.1], [0.8, 0.2]], references=[0, 1], ks=[1])
        {'top_1': 0.5, 'mean_class_top_1': 0.5, 'count': 2}
    """
    if name not in METRICS:
        raise ValueError(f"{name!r} is no metric of this package; accepted are {', '.join(METRICS)}.")
    return str(Path(__file__).with_name("metrics") / name)
