# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Accuracy of choosing one right text among hard wrong ones, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np

from processing_pixclip.evaluation.classification_scores import accuracy_at, pad_scores, target_ranks


_DESCRIPTION = """
The share of regions whose right text scores above all its wrong ones: one positive and n negatives, as in FG-OVD. Rows may
have fewer negatives than others; the results say how many there are of each.
"""

_CITATION = """
@inproceedings{bianchi2024devil,
  title={The devil is in the fine-grained details: Evaluating open-vocabulary object detectors for fine-grained understanding},
  author={Bianchi, Lorenzo and Carrara, Fabio and Messina, Nicola and Gennaro, Claudio and Falchi, Fabrizio},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2024}
}
"""

_INPUTS = """
Args:
    predictions: for each region the scores of its candidate texts, a list of two numbers or more.
    references: for each region the index of the right text, 0 where the positive comes first.
    ties ("pessimistic" or "optimistic"): whether a wrong text with the score of the right one makes the region wrong.
        Scores are taken as float32 and tie where they differ by at most 16 units in the last place of the row's greatest.

Returns:
    accuracy: share of regions whose right text ranks first.
    chance: what guessing gets, the mean of 1 / candidates.
    count: number of regions.
    candidates: how many regions have how many candidates, as a dict.

Example:
    >>> import evaluate
    >>> from processing_pixclip.evaluation.metric_modules import metric_path
    >>> metric = evaluate.load(metric_path("fine_grained_accuracy"))
    >>> metric.compute(predictions=[[0.9, 0.1, 0.3, 0.2], [0.5, 0.5]], references=[0, 0])
    {'accuracy': 0.5, 'chance': 0.375, 'count': 2, 'candidates': {2: 1, 4: 1}}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class FineGrainedAccuracy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
            reference_urls=["https://arxiv.org/abs/2311.17518"],
        )

    def _compute(self, predictions, references, ties="pessimistic"):
        if not len(predictions):
            raise ValueError("predictions are empty; accepted is one region or more.")
        lengths = np.array([len(row) for row in predictions])
        if lengths.min() < 2:
            raise ValueError(
                f"row {int(np.argmin(lengths))} of predictions has {lengths.min()} scores; accepted are 2 or more, the right "
                f"text and a wrong one."
            )
        for place, row in enumerate(predictions):
            if not np.isfinite(row).all():
                raise ValueError(f"row {place} of predictions is not finite; accepted are numbers.")
        ranks = target_ranks(pad_scores(predictions), np.asarray(references), ties)
        sizes, counts = np.unique(lengths, return_counts=True)
        return {
            "accuracy": accuracy_at(ranks, 1),
            "chance": float((1 / lengths).mean()),
            "count": len(ranks),
            "candidates": dict(zip(sizes.tolist(), counts.tolist(), strict=True)),
        }
