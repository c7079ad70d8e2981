# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Accuracy of referring expressions by the overlap of boxes, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np

from processing_pixclip.evaluation.boxes import paired_iou


_DESCRIPTION = """
The share of expressions whose predicted box overlaps the referred one: the accuracy of RefCOCO, RefCOCO+ and RefCOCOg.
"""

_INPUTS = """
Args:
    predictions: for each expression the predicted box, four numbers, xyxy.
    references: for each expression the referred box, xyxy in the same units.
    threshold (float, 0.5): the intersection over union from which a box is right.
    strict (bool, False): a box at the threshold itself is wrong, as in ReCLIP's and PixCLIP's code.

Returns:
    accuracy: share of expressions whose box is right.
    mean_iou: mean of the intersection over union.
    count: number of expressions.

Example:
    >>> import evaluate
    >>> from processing_pixclip.evaluation.metric_modules import metric_path
    >>> metric = evaluate.load(metric_path("referring_accuracy"))
    >>> boxes = [[0, 0, 10, 10], [0, 0, 10, 10]]
    >>> metric.compute(predictions=boxes, references=[[0, 0, 10, 5], [20, 20, 30, 30]])
    {'accuracy': 0.5, 'mean_iou': 0.25, 'count': 2}
    >>> metric.compute(predictions=boxes, references=[[0, 0, 10, 5], [20, 20, 30, 30]], strict=True)["accuracy"]
    0.0
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class ReferringAccuracy(evaluate.Metric):
    def _info(self):
        box = datasets.Sequence(datasets.Value("float64"), length=4)
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": box, "references": box}),
        )

    def _compute(self, predictions, references, threshold=0.5, strict=False):
        if not len(predictions):
            raise ValueError("predictions are empty; accepted is one expression or more.")
        overlap = paired_iou(np.asarray(predictions), np.asarray(references))
        right = overlap > threshold if strict else overlap >= threshold
        return {"accuracy": float(right.mean()), "mean_iou": float(overlap.mean()), "count": len(overlap)}
