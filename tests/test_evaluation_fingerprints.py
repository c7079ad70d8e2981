# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Fingerprints of encoders follow all that vectors hang on, and nothing else."""

import copy

import pytest
import torch
from encoders_for_tests import FAMILIES, SIZE, family_pair, gradient_photo, pixclip_pair, word_tokenizer
from tiny_models import backbone_config
from transformers import (
    BertModel,
    PreTrainedTokenizer,
)

from modeling_pixclip import (
    PixCLIPImageProcessor,
    PixCLIPProcessor,
)
from processing_pixclip.evaluation.clip_encoder import ClipEncoder
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder
from processing_pixclip.evaluation.text_encoder import TextEncoder


TEXTS = ["a photo of the red dog .", "two people", "cat"]


@pytest.fixture(scope="module")
def photos():
    return [gradient_photo(60, 40, seed=0), gradient_photo(64, 48, seed=1)]


def test_fingerprints_follow_weights_configuration_preprocessing_and_dtype():
    model, processor = pixclip_pair()

    def fingerprint(model=model, processor=processor):
        return PixCLIPEncoder(model, processor).fingerprint()

    first = fingerprint()
    assert fingerprint(copy.deepcopy(model), copy.deepcopy(processor)) == first
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.vision_model.get_parameter(next(n for n, _ in model.vision_model.named_parameters())).flatten()[0] += (
            1e-3
        )
    other_image = PixCLIPProcessor(
        PixCLIPImageProcessor(size=SIZE, resize_mode="letterbox"), word_tokenizer(), text_max_length=24
    )
    other_template = PixCLIPProcessor(
        PixCLIPImageProcessor(size=SIZE), word_tokenizer(), text_template="a {text}", text_max_length=24
    )
    other_words = PixCLIPProcessor(PixCLIPImageProcessor(size=SIZE), word_tokenizer(), text_max_length=24)
    other_words.tokenizer.add_tokens(["zebra"])
    other_config = copy.deepcopy(model)
    other_config.config.vision_config.default_mask = "none"
    found = {
        first,
        fingerprint(changed),
        fingerprint(processor=other_image),
        fingerprint(processor=other_template),
        fingerprint(processor=other_words),
        fingerprint(other_config),
        fingerprint(copy.deepcopy(model).to(torch.bfloat16)),
    }
    assert len(found) == 7


@pytest.mark.parametrize("name", [*FAMILIES, "bert", "pixclip"])
def test_encoding_leaves_the_fingerprint_as_it_was(name, photos):
    if name == "bert":
        encoder = TextEncoder(BertModel(backbone_config("bert")), word_tokenizer(), pooling="mean")
    elif name == "pixclip":
        encoder = PixCLIPEncoder(*pixclip_pair())
    else:
        encoder = ClipEncoder(*family_pair(name))
    first = encoder.fingerprint()
    for kind in ("region", "long"):
        encoder.text_lengths(TEXTS, kind)
        assert encoder.fingerprint() == first
        encoder.encode_texts(TEXTS, kind)
        assert encoder.fingerprint() == first
    if encoder.views:
        encoder.encode_images(photos)
        assert encoder.fingerprint() == first


class SlowTokenizer(PreTrainedTokenizer):
    """One without a fast backend, which has an option of its own."""

    def __init__(self, lower=False, **options):
        self.lower = lower
        super().__init__(unk_token="[unk]", lower=lower, **options)

    @property
    def vocab_size(self):
        return 3

    def get_vocab(self):
        return {"[unk]": 0, "cat": 1, "Cat": 2}

    def _tokenize(self, text):
        return (text.lower() if self.lower else text).split()

    def _convert_token_to_id(self, token):
        return self.get_vocab().get(token, 0)


def test_fingerprints_follow_slow_tokenizers_attention_of_a_tower_and_rules_of_views(monkeypatch):
    bert = BertModel(backbone_config("bert"))
    slow = [TextEncoder(bert, SlowTokenizer(lower), pooling="mean").fingerprint() for lower in (True, False, False)]
    assert slow[0] != slow[1] == slow[2]
    model, processor = family_pair("clip")
    encoder = ClipEncoder(model, processor)
    first, of_pixclip = encoder.fingerprint(), PixCLIPEncoder(*pixclip_pair()).fingerprint()
    model.set_attn_implementation({"vision_config": "eager"})
    assert model.config._attn_implementation == "sdpa"
    assert encoder.fingerprint() != first
    model.set_attn_implementation("sdpa")
    assert encoder.fingerprint() == first
    monkeypatch.setattr("processing_pixclip.evaluation.region_views.BLUR_RADIUS", 50)
    assert encoder.fingerprint() != first
    assert PixCLIPEncoder(*pixclip_pair()).fingerprint() != of_pixclip


def test_trained_weights_are_seen_by_the_same_encoder():
    tokenizer = word_tokenizer()
    for encoder in (
        PixCLIPEncoder(*pixclip_pair()),
        ClipEncoder(*family_pair("clip")),
        TextEncoder(BertModel(backbone_config("bert")), tokenizer, pooling="mean"),
    ):
        first, told = encoder.fingerprint(), encoder.describe()["weights_sha256"]
        # As some optimizers do, behind autograd's back.
        next(encoder.model.parameters()).data.mul_(2)
        assert encoder.fingerprint() != first
        assert encoder.describe()["weights_sha256"] != told
