# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""`encode_text` and `encode_image`: the vectors of single calls, in order, whatever the batches and the kind of input."""

import numpy as np
import pytest
import torch
from tiny_models import backbone_config, pixclip_config, randomise
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_pixclip import PixCLIPImageProcessor, PixCLIPModel, PixCLIPProcessor, encoding
from modeling_pixclip.encoding import token_batches


WORDS = "[pad] [unk] [eos] a red blue kite car on the left right user says".split()


@pytest.fixture(scope="module")
def processor():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    return PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer, text_template="user says {text}")


@pytest.fixture(scope="module")
def model():
    return randomise(PixCLIPModel(pixclip_config()))


@pytest.fixture(scope="module")
def texts():
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS[3:], size)) for size in random.integers(1, 40, 50)]


@pytest.fixture(scope="module")
def photos():
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (20 + 3 * i, 40, 3), dtype=np.uint8) for i in range(7)]


def expected_texts(model, processor, texts):
    with torch.no_grad():
        rows = [model.get_text_features(**processor(text=text)).pooler_output[0] for text in texts]
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_texts_in_any_batches_equal_single_calls(model, processor, texts, batch_tokens):
    found = model.encode_text(texts, processor, batch_tokens=batch_tokens, output="tensor")
    assert found.dtype == torch.float32 and not found.requires_grad
    torch.testing.assert_close(found, expected_texts(model, processor, texts), atol=1e-5, rtol=0)


def test_windows_do_not_show(model, processor, texts, monkeypatch):
    expected = model.encode_text(texts, processor)
    monkeypatch.setattr(encoding, "WINDOW", 8)
    np.testing.assert_allclose(model.encode_text(texts, processor), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"text\[41\] is empty"):
        model.encode_text([*texts[:41], " ", *texts[41:]], processor)


def test_any_iterable_of_texts(model, processor, texts):
    expected = model.encode_text(texts, processor)
    for given in (tuple(texts), iter(texts), (text for text in texts), np.array(texts, dtype=object)):
        np.testing.assert_array_equal(model.encode_text(given, processor), expected)
    np.testing.assert_allclose(model.encode_text(texts[3], processor), expected[3], atol=1e-5)
    assert model.encode_text(texts[3], processor).shape == (16,)
    assert model.encode_text([], processor).shape == (0, 16)


def test_each_text_is_tokenised_once(model, processor, texts, monkeypatch):
    seen = []
    tokenize = processor.tokenize_text
    monkeypatch.setattr(processor, "tokenize_text", lambda texts, *args: seen.extend(texts) or tokenize(texts, *args))
    model.encode_text(iter(texts), processor, batch_tokens=64)
    assert seen == texts


def test_vectors_are_scaled_on_request_only(model, processor, texts):
    scaled, plain = (model.encode_text(texts, processor, normalize=given) for given in (True, False))
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(plain / np.linalg.norm(plain, axis=-1, keepdims=True), scaled, atol=1e-6)


def test_backbone_vectors_are_what_the_text_tower_takes(model, processor, texts):
    vectors = model.text_model.encode_backbone(texts, processor, batch_tokens=100)
    assert vectors.shape == (50, 32) and vectors.device.type == "cpu"
    with torch.no_grad():
        embeds = model.get_text_features(backbone_embeds=vectors).pooler_output
    torch.testing.assert_close(
        torch.nn.functional.normalize(embeds, dim=-1), expected_texts(model, processor, texts), atol=1e-5, rtol=0
    )


def test_training_mode_and_gradients_are_as_before(model, processor, texts):
    model.train()
    model.encode_text(texts[:2], processor)
    model.encode_image(np.zeros((32, 32, 3), np.uint8), processor)
    model.text_model.encode_backbone(texts[:2], processor)
    assert model.training and model.vision_model.training and torch.is_grad_enabled()
    model.vision_model.eval()
    model.encode_text(texts[:2], processor)
    assert model.training and not model.vision_model.training
    model.eval()


def test_batches_hold_texts_of_like_lengths():
    lengths = [3, 100, 4, 4, 50, 90, 1]
    batches = list(token_batches(lengths, 200))
    assert sorted(place for batch in batches for place in batch) == list(range(7))
    assert batches[0] == [1, 5] and all(
        len(batch) * max(lengths[i] for i in batch) <= 200 or len(batch) == 1 for batch in batches
    )
    assert list(token_batches([500, 2], 200)) == [[0], [1]]


def test_progress_bar_counts_texts(model, processor, texts, capsys):
    model.encode_text(texts, processor, show_progress_bar=True)
    assert "50/50" in capsys.readouterr().err
    model.encode_text(texts, processor)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_images_equal_single_calls(model, processor, photos, batch_size):
    found = model.encode_image(photos, processor, batch_size=batch_size, output="tensor")
    with torch.no_grad():
        rows = [model.get_image_features(**processor(images=photo)).pooler_output[0] for photo in photos]
    expected = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(model.encode_image(iter(photos), processor, batch_size=batch_size), found, atol=1e-6)
    alone = model.encode_image(photos[2], processor)
    assert alone.shape == (16,)
    np.testing.assert_allclose(alone, found[2], atol=1e-5)


@pytest.mark.parametrize("kind", ["masks", "boxes"])
def test_regions_come_image_by_image(model, processor, photos, kind):
    boxes = [[[2 * i, 3, 2 * i + 15, 18] for i in range(1 + place % 3)] for place in range(len(photos))]
    regions = boxes
    if kind == "masks":
        regions = []
        for photo, rows in zip(photos, boxes):
            masks = np.zeros((len(rows), *photo.shape[:2]), dtype=bool)
            for mask, (x0, y0, x1, y1) in zip(masks, rows):
                mask[y0:y1, x0:x1] = True
            regions.append(list(masks))
    found = model.encode_image(photos, processor, **{kind: regions}, batch_size=2)
    rows = []
    for photo, given in zip(photos, regions):
        for region in given:
            inputs = processor(images=[photo], **{kind: [[region]]})
            inputs.pop("region_boxes", None)
            with torch.no_grad():
                rows.append(model.get_image_features(**inputs).pooler_output[0])
    expected = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    alone = model.encode_image(photos[1], processor, **{kind: regions[1]})
    np.testing.assert_allclose(alone, found[1:3], atol=1e-5)


def test_wrong_inputs_are_named(model, processor, photos, texts):
    box = [[0, 0, 5, 5]]
    with pytest.raises(ValueError, match="boxes are given for 2 images, but there are more images"):
        model.encode_image(photos, processor, boxes=[box, box], batch_size=3)
    with pytest.raises(ValueError, match="boxes are given for more than the 7 images"):
        model.encode_image(photos, processor, boxes=[box] * 8, batch_size=3)
    with pytest.raises(ValueError, match=r"boxes\[5\]"):
        model.encode_image(photos, processor, boxes=[box] * 5 + [[[5, 5, 1, 1]], box], batch_size=2)
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        model.encode_text(texts, processor, batch_tokens=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.encode_image(photos, processor, batch_size=0)
    with pytest.raises(ValueError, match="output is 'list'"):
        model.encode_text(texts, processor, output="list")
    with pytest.raises(ValueError, match=r"texts are \d+ tokens long, the backbone \(llama\) takes at most 48"):
        model.encode_text([" ".join(["a"] * 100)], processor)


def test_backbone_that_does_not_pack_gives_the_same(processor, texts):
    config = pixclip_config(text={"backbone": backbone_config("llama"), "padding_free": False})
    padded = randomise(PixCLIPModel(config))
    packed = randomise(PixCLIPModel(pixclip_config()))
    np.testing.assert_allclose(
        padded.encode_text(texts, processor, batch_tokens=300), packed.encode_text(texts, processor), atol=1e-5
    )
