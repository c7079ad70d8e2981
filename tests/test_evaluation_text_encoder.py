# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Text backbones and text towers alone as encoders."""

import numpy as np
import pytest
import torch
from encoders_for_tests import family_pair, gradient_photo, pixclip_pair, word_tokenizer
from tiny_models import backbone_config, randomise, text_config
from transformers import (
    BertModel,
    BloomConfig,
    BloomModel,
    LlamaModel,
    MPNetConfig,
    MPNetModel,
)

from modeling_pixclip import (
    PixCLIPTextModel,
)
from processing_pixclip.evaluation.text_encoder import TextEncoder


TEXTS = ["a photo of the red dog .", "two people", "cat"]


def test_text_backbones_alone(monkeypatch):
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    bert = BertModel(backbone_config("bert")).eval()
    told = []
    monkeypatch.setattr(
        "processing_pixclip.evaluation.text_encoder.logger.warning", lambda *args: told.append(args[1:])
    )
    encoder = TextEncoder(bert, tokenizer)
    assert (encoder.views, encoder.describe()["pooling"]) == ((), "mean")
    # A guess is told, a choice is not.
    assert told == [("BertModel", "mean")]
    first = TextEncoder(bert, tokenizer, pooling="cls")
    assert len(told) == 1
    for text, vector in zip(TEXTS, first.encode_texts(TEXTS, "caption"), strict=True):
        with torch.no_grad():
            expected = bert(input_ids=tokenizer([text], return_tensors="pt")["input_ids"]).last_hidden_state[0, 0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    found = encoder.encode_texts(TEXTS, "caption")
    for text, vector in zip(TEXTS, found, strict=True):
        tokens = tokenizer([text], return_tensors="pt")
        with torch.no_grad():
            expected = bert(input_ids=tokens["input_ids"]).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    llama = LlamaModel(backbone_config("llama")).eval()
    encoder = TextEncoder(llama, tokenizer)
    assert encoder.describe()["pooling"] == "last"
    for text, vector in zip(TEXTS, encoder.encode_texts(TEXTS, "caption"), strict=True):
        with torch.no_grad():
            expected = llama(**tokenizer([text], return_tensors="pt")).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    assert TextEncoder(llama, tokenizer, pooling="mean").fingerprint() != encoder.fingerprint()
    with pytest.raises(ValueError, match="LlamaModel reads texts alone.*caption-pairs"):
        encoder.encode_images([gradient_photo()])
    with pytest.raises(ValueError, match="LlamaModel reads texts alone"):
        encoder.encode_regions([gradient_photo()], [[]], "full")


def test_text_tower_of_pixclip_alone():
    _, processor = pixclip_pair()
    model = randomise(PixCLIPTextModel(text_config()))
    encoder = TextEncoder(model, processor)
    expected = model.encode_text(TEXTS, processor, normalize=False) if hasattr(model, "encode_text") else None
    batch = processor(text=TEXTS)
    with torch.no_grad():
        by_hand = model(**batch).pooler_output
    np.testing.assert_allclose(encoder.encode_texts(TEXTS, "caption"), by_hand, atol=2e-6)
    assert expected is None or np.allclose(expected, by_hand, atol=2e-6)
    assert encoder.describe()["pooling"] == model.config.pooling
    with pytest.raises(ValueError, match="needs the PixCLIPProcessor of its model, which holds the template"):
        TextEncoder(model, processor.tokenizer)


@pytest.mark.parametrize("name", ["clip", "metaclip2"])
def test_text_towers_that_have_a_vector_of_their_own(name):
    model, processor = family_pair(name)
    encoder = TextEncoder(model.text_model, processor.tokenizer)
    assert encoder.pooling == "own"
    for text, vector in zip(TEXTS, encoder.encode_texts(TEXTS, "caption"), strict=True):
        with torch.no_grad():
            expected = model.text_model(**processor.tokenizer([text], return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_limits_of_text_backbones():
    tokenizer, text = word_tokenizer(), "a photo of the red dog " * 40
    tokenizer.model_max_length = int(1e30)
    sizes = {"hidden_size": 32, "vocab_size": 60}
    bloom = TextEncoder(BloomModel(BloomConfig(**sizes, n_layer=1, n_head=2)), tokenizer, pooling="last")
    # As many as there are: no limit anywhere.
    assert bloom.text_lengths([text], "long") == [241]
    assert bloom.describe()["text_max_length"] is None
    assert np.isfinite(bloom.encode_texts([text, "cat"], "long")).all()
    more = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 20}
    mpnet = TextEncoder(MPNetModel(MPNetConfig(**sizes, **more)), tokenizer, pooling="mean")
    # Its positions start behind the padding token, at 2.
    assert mpnet.text_lengths([text], "long") == [18]
    assert np.isfinite(mpnet.encode_texts([text, "cat"], "long")).all()
    short = TextEncoder(mpnet.model, tokenizer, pooling="mean", max_length=5)
    assert short.text_lengths([text, "cat"], "long") == [5, 2]
    assert short.describe()["text_max_length"] == 5
    assert short.fingerprint() != mpnet.fingerprint()
    np.testing.assert_allclose(
        short.encode_texts([text], "long"), short.encode_texts(["a photo of the"], "long"), atol=1e-5
    )


def test_a_text_without_tokens_is_refused():
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    for pooling in ("mean", "last", "cls"):
        encoder = TextEncoder(LlamaModel(backbone_config("llama")), tokenizer, pooling=pooling)
        with pytest.raises(ValueError, match="the text '' has no tokens, and so no vector"):
            encoder.encode_texts(["cat", ""], "caption")
