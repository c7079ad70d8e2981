# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Prompts of classes and their vectors."""

import numpy as np
import pytest
from evaluation_for_tests import ROOT, RandomEncoder

from processing_pixclip.evaluation.class_prompts import TEMPLATES, class_embeddings, class_texts, readable_name
from processing_pixclip.evaluation.features import FeatureExtractor


@pytest.fixture
def features():
    return FeatureExtractor(RandomEncoder())


def test_template_sets():
    assert TEMPLATES["single"] == ("a photo of a {}.",)
    assert TEMPLATES["plain"] == ("{}",)
    many = TEMPLATES["imagenet-80"]
    assert len(many) == len(set(many)) == 80
    assert all(template.count("{}") == 1 for template in many)
    # The seven that CLIP's authors picked out of the 80, and the ends of the list.
    picked = ["itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."]
    picked += ["a {} in a video game.", "art of the {}.", "a photo of the small {}."]
    assert set(picked) <= set(many)
    assert (many[0], many[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")


def test_templates_name_their_source():
    head = (ROOT / "processing/evaluation/templates/imagenet_80.txt").read_text(encoding="utf-8").splitlines()[:2]
    assert "github.com/openai/CLIP" in head[0] and "MIT" in head[1]


@pytest.mark.parametrize("templates", ["single", "imagenet-80", "plain", ["{}", "one {} here"]])
def test_class_vector_is_the_normalised_mean_of_normalised_prompts(features, templates):
    names = ["cat", "bow (weapon)"]
    found = class_embeddings(features, names, templates)
    assert found.shape == (2, 256) and found.dtype == np.float32
    for name, vector in zip(names, found, strict=True):
        total = np.zeros(256)
        for template in TEMPLATES[templates] if isinstance(templates, str) else templates:
            prompt = features.encoder.text_vector(template.replace("{}", name), "region").astype(float)
            total += prompt / np.sqrt((prompt**2).sum())
        np.testing.assert_allclose(vector, total / np.sqrt((total**2).sum()), atol=1e-6)


def test_long_prompts_count_no_more_than_short_ones(features):
    class Loud(RandomEncoder):
        def text_vector(self, text, kind):
            return super().text_vector(text, kind) * len(text) ** 2

    quiet, loud = (
        class_embeddings(found, ["cat", "dog"], "imagenet-80") for found in (features, FeatureExtractor(Loud()))
    )
    np.testing.assert_allclose(quiet, loud, atol=1e-6)


def test_kind_of_the_prompts_reaches_the_model():
    class Heard(RandomEncoder):
        def text_vector(self, text, kind):
            return self.draw(text, kind)

    features = FeatureExtractor(Heard())
    region, caption = (class_embeddings(features, ["cat"], "single", kind) for kind in ("region", "caption"))
    assert not np.allclose(region, caption)
    np.testing.assert_array_equal(region, class_embeddings(features, ["cat"]))


def test_a_template_stays_as_it_is():
    assert class_texts("apple", ("a photo of a {}.", "the {}.")) == ["a photo of a apple.", "the apple."]


def test_readable_names():
    assert readable_name("flip-flop_(sandal)") == "flip-flop (sandal)"
    assert readable_name("great white shark", "underscores") == "great_white_shark"
    assert class_texts("a {brace}", ["{}!"]) == ["a {brace}!"]


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        (["cat"], "double", "'single', 'imagenet-80', 'plain'"),
        (["cat"], ["a photo."], r"\['a photo.'\]; accepted is one or more, each with one '\{\}'"),
        (["cat"], ["{} and {}"], "each with one"),
        (["cat"], [], "accepted is one or more"),
        ([], "single", "names is empty"),
    ],
)
def test_what_is_refused(features, names, templates, message):
    with pytest.raises(ValueError, match=message):
        class_embeddings(features, names, templates)
