# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Top-k accuracy of classified regions, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np

from processing_pixclip.evaluation.classification_scores import accuracy_at, target_ranks


_DESCRIPTION = """
Top-k accuracy of classified regions, over all regions and as the mean over classes, with a stated rule for ties.
"""

_INPUTS = """
Args:
    predictions: for each region its scores of all classes, a list of numbers, equally long for all.
    references: for each region the index of its class.
    ks (list of int, [1, 5]): how many classes count.
    ties ("pessimistic" or "optimistic"): whether a wrong class with the score of the right one ranks before or after it.
        Scores are taken as float32 and tie where they differ by at most 16 units in the last place of the row's greatest.

Returns:
    top_K: share of regions whose class is among the first K, for each K.
    mean_class_top_K: the mean of that share over the classes that occur.
    count: number of regions.

Example:
    >>> import evaluate
    >>> from processing_pixclip.evaluation.metric_modules import metric_path
    >>> metric = evaluate.load(metric_path("region_classification"))
    >>> scores = [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]
    >>> metric.compute(predictions=scores, references=[0, 1, 1, 1], ks=[1, 2])
    {'top_1': 0.75, 'mean_class_top_1': 0.8333333333333333, 'top_2': 1.0, 'mean_class_top_2': 1.0, 'count': 4}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RegionClassification(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, ks=(1, 5), ties="pessimistic"):
        if not len(predictions):
            raise ValueError("predictions are empty; accepted is one region or more.")
        lengths = {len(row) for row in predictions}
        if len(lengths) > 1:
            raise ValueError(f"predictions have {sorted(lengths)} scores; accepted are equally many for all regions.")
        targets = np.asarray(references)
        ranks = target_ranks(np.asarray(predictions, dtype=np.float32), targets, ties)
        results = {}
        for k in ks:
            results[f"top_{k}"] = accuracy_at(ranks, k)
            results[f"mean_class_top_{k}"] = accuracy_at(ranks, k, groups=targets)
        return {**results, "count": len(ranks)}
