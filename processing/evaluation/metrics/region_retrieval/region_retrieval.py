# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Recall of retrieval between regions (or images) and texts, as a module of `evaluate`."""

import datasets
import evaluate
import numpy as np

from processing_pixclip.evaluation.retrieval_ranks import bidirectional_ranks, median_rank, recall_at
from processing_pixclip.evaluation.scores import unit


_DESCRIPTION = """
Recall at k of retrieval between regions (or images) and texts, both ways, from pairs of vectors that belong together. Scores
are cosines. Ranks are computed in tiles, without a matrix of all scores.
"""

_INPUTS = """
Args:
    predictions: vectors of the regions, one for each pair.
    references: vectors of the texts, one for each pair.
    region_ids: which region a pair has, whole numbers. A region with five texts is in five pairs under one number.
    text_ids: which text a pair has.
    ks (list of int, [1, 5, 10]): how many items count.
    ties ("pessimistic" or "optimistic"): whether a wrong item with the score of the best right one ranks before or after it.
    normalize (bool, True): bring vectors to length 1; otherwise scores are the dot products as they are.

Returns:
    region_to_text_R@K: share of regions with one of their texts among the first K, for each K.
    text_to_region_R@K: share of texts with one of their regions among the first K.
    region_to_text_median_rank, text_to_region_median_rank: medians of the best right item's rank.
    regions, texts: how many there are of each.

Example:
    >>> import evaluate
    >>> from processing_pixclip.evaluation.metric_modules import metric_path
    >>> metric = evaluate.load(metric_path("region_retrieval"))
    >>> metric.add_batch(  # One region with two texts.
    ...     predictions=[[1.0, 0.0], [1.0, 0.0]], references=[[0.9, 0.1], [0.2, 0.8]], region_ids=[0, 0], text_ids=[0, 1]
    ... )
    >>> metric.add_batch(predictions=[[0.0, 1.0]], references=[[0.1, 0.9]], region_ids=[1], text_ids=[2])
    >>> results = metric.compute(ks=[1])
    >>> results["region_to_text_R@1"], round(results["text_to_region_R@1"], 3), results["regions"], results["texts"]
    (1.0, 0.667, 2, 3)
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _INPUTS)
class RegionRetrieval(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Sequence(datasets.Value("float32")),
                    "region_ids": datasets.Value("int64"),
                    "text_ids": datasets.Value("int64"),
                }
            ),
        )

    def _compute(
        self,
        predictions,
        references,
        region_ids,
        text_ids,
        ks=(1, 5, 10),
        ties="pessimistic",
        normalize=True,
    ):
        regions, region_places = _distinct(predictions, region_ids, "predictions", "region_ids")
        texts, text_places = _distinct(references, text_ids, "references", "text_ids")
        if normalize:
            regions, texts = unit(regions), unit(texts)
        order = np.argsort(region_places, kind="stable")
        indptr = np.searchsorted(region_places[order], np.arange(len(regions) + 1))
        ranks = bidirectional_ranks(regions, texts, (indptr, text_places[order]), ties)
        results = {}
        for direction, found in zip(("region_to_text", "text_to_region"), ranks, strict=True):
            results.update({f"{direction}_R@{k}": recall_at(found, k) for k in ks})
            results[f"{direction}_median_rank"] = median_rank(found)
        return {**results, "regions": len(regions), "texts": len(texts)}


def _distinct(vectors, ids, name, ids_name):
    """One vector an id, in the order of the ids, and the place of each pair among them."""
    if not len(vectors):
        raise ValueError(f"{name} are empty; accepted is one pair or more.")
    lengths = {len(vector) for vector in vectors}
    if len(lengths) > 1:
        raise ValueError(f"{name} have {sorted(lengths)} dimensions; accepted are equally many for all pairs.")
    vectors = np.asarray(vectors, dtype=np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{name}[{int(np.argmin(finite))}] is not finite; accepted are vectors without NaN and infinity."
        )
    found, first, places = np.unique(ids, return_index=True, return_inverse=True)
    differs = (vectors != vectors[first][places]).any(axis=1)
    if differs.any():
        pair = int(np.argmax(differs))
        raise ValueError(
            f"{name}[{pair}] is another vector than that of an earlier pair, and both have {found[places[pair]]} in {ids_name}; "
            f"accepted is one vector a number."
        )
    return vectors[first], places
