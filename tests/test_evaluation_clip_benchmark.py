# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The loader for CLIP_benchmark: its signature, its vectors, and CLIP_benchmark itself where it is installed."""

import inspect

import numpy as np
import pytest
import torch
from encoders_for_tests import family_pair, gradient_photo, pixclip_pair, save_pair
from evaluation_for_tests import PHOTOS, ToldEncoder, heldout_records
from PIL import Image
from torch.utils.data import default_collate

from processing_pixclip.evaluation.clip_benchmark_loader import (
    ClipBenchmarkModel,
    PixelTransform,
    TextPacker,
    load_pixclip,
)
from processing_pixclip.evaluation.clip_encoder import ClipEncoder
from processing_pixclip.evaluation.loading import open_encoder
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder


# Parameters of the loading functions that CLIP_benchmark 1.6 documents and calls by name (clip_benchmark/models).
DOCUMENTED = ["model_name", "pretrained", "cache_dir", "device"]


def test_the_signature_is_the_documented_one():
    assert list(inspect.signature(load_pixclip).parameters) == DOCUMENTED
    assert list(inspect.signature(ClipBenchmarkModel.encode_image).parameters) == ["self", "images"]
    assert list(inspect.signature(ClipBenchmarkModel.encode_text).parameters) == ["self", "tokens"]


def photos_and_captions(count=4):
    records = heldout_records(count)
    return [Image.open(PHOTOS / record["image"]) for record in records], [record["captions"] for record in records]


@pytest.mark.parametrize("pair", [pixclip_pair, *(lambda name=name: family_pair(name) for name in ("clip", "siglip"))])
def test_vectors_are_those_of_the_encoder(tmp_path, pair):
    folder = save_pair(pair(), tmp_path / "model")
    model, transform, tokenizer = load_pixclip(model_name=folder, pretrained="", cache_dir=None, device="cpu")
    encoder, (images, captions) = open_encoder(folder, device="cpu"), photos_and_captions()
    model.eval()
    batch = default_collate([transform(image) for image in images]).to("cpu")
    texts = [caption for group in captions for caption in group]
    tokens = tokenizer(texts).to("cpu")
    assert isinstance(tokens, torch.Tensor) and len(tokens) == len(texts)
    with torch.no_grad():
        image_vectors, text_vectors = model.encode_image(batch), model.encode_text(tokens)
    rgb = [image.convert("RGB") for image in images]
    np.testing.assert_allclose(image_vectors.numpy(), encoder.encode_images(rgb), atol=1e-6)
    np.testing.assert_array_equal(text_vectors.numpy(), encoder.encode_texts(texts, "caption"))


@pytest.mark.parametrize("kind", [PixCLIPEncoder, ClipEncoder])
@pytest.mark.parametrize(("dtype", "amp"), [(torch.float32, True), (torch.bfloat16, False), (torch.bfloat16, True)])
def test_vectors_of_images_and_texts_multiply_in_half_precision(kind, dtype, amp):
    model, processor = pixclip_pair() if kind is PixCLIPEncoder else family_pair("clip")
    wrapped = ClipBenchmarkModel(kind(model.to(dtype), processor))
    pixels = PixelTransform(processor.image_processor)(gradient_photo())
    with torch.autocast("cpu", enabled=amp):
        images, texts = wrapped.encode_image(pixels[None]), wrapped.encode_text(TextPacker()(["a red dog"]))
    assert images.dtype == texts.dtype == torch.float32
    assert (images @ texts.T).shape == (1, 1)


def test_dropout_is_off_though_the_model_is_in_training_mode():
    wrapped = ClipBenchmarkModel(PixCLIPEncoder(*pixclip_pair())).train()
    seen = []
    wrapped.model.vision_model.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    vectors = wrapped.encode_image(PixelTransform(wrapped.encoder.image_processor)(gradient_photo())[None])
    assert seen == [False]
    assert wrapped.model.training
    assert not vectors.requires_grad


def test_images_of_many_shapes_are_refused(tmp_path):
    folder = save_pair(family_pair("siglip2"), tmp_path / "naflex")
    with pytest.raises(ValueError, match=r"Siglip2ImageProcessor\w* makes tensors of shape .*\(3, height, width\)"):
        load_pixclip(folder)


def test_texts_that_are_cut_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(
        "processing_pixclip.evaluation.text_encoder.logger.warning", lambda *args: told.append(args[1:3])
    )
    ClipBenchmarkModel(ClipEncoder(*family_pair("clip"))).encode_text(TextPacker()(["a dog", "a dog " * 90]))
    assert told == [(1, 2)]


@pytest.mark.parametrize(
    "texts",
    [["a dog"], ["", "a"], ["naïve 犬 \N{DOG FACE}", "a\x00b", "line\nbreak  "], "one text", []],
)
def test_packed_texts_come_back_as_they_were(texts):
    packer = TextPacker()
    packed = packer(texts)
    assert packed.dtype == torch.int16
    assert packer.unpack(packed) == ([texts] if isinstance(texts, str) else texts)


def test_texts_are_not_cut_before_the_model_cuts_them():
    encoder = PixCLIPEncoder(*pixclip_pair())
    model, packer, long = ClipBenchmarkModel(encoder), TextPacker(), "a red dog on the table . " * 400
    assert packer.unpack(packer([long, "a dog"])) == [long, "a dog"]
    np.testing.assert_array_equal(model.encode_text(packer([long])).numpy(), encoder.encode_texts([long], "caption"))


def test_the_kind_of_text_reaches_the_model():
    encoder = PixCLIPEncoder(*pixclip_pair(two_paths=True))
    tokens = TextPacker()(["a red dog and two people on the street ."])
    vectors = [ClipBenchmarkModel(encoder, kind).encode_text(tokens).numpy() for kind in ("caption", "long")]
    assert not np.allclose(*vectors, atol=1e-3)


def test_it_moves_and_switches_modes_as_a_module():
    wrapped = ClipBenchmarkModel(ClipEncoder(*family_pair("clip")))
    assert len(list(wrapped.parameters())) == len(list(wrapped.model.parameters()))
    wrapped.train()
    assert wrapped.model.training
    assert not wrapped.eval().model.training


def test_what_does_not_fit_is_told():
    encoder = PixCLIPEncoder(*pixclip_pair())
    with pytest.raises(ValueError, match="text_kind is 'title'"):
        ClipBenchmarkModel(encoder, "title")
    with pytest.raises(
        ValueError, match=r"tokens are torch.int64 of shape \(1, 77\); accepted is what TextPacker makes"
    ):
        ClipBenchmarkModel(encoder).encode_text(torch.zeros(1, 77, dtype=torch.int64))
    told = ToldEncoder()
    told.views = ()
    with pytest.raises(ValueError, match="ToldEncoder has texts alone"):
        ClipBenchmarkModel(told)


def test_the_installed_clip_benchmark_loads_and_classifies(tmp_path, monkeypatch):
    models = pytest.importorskip("clip_benchmark.models")
    classification = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    folder = save_pair(pixclip_pair(), tmp_path / "model")
    monkeypatch.setitem(models.TYPE2FUNC, "pixclip", load_pixclip)
    monkeypatch.setattr(models, "MODEL_TYPES", [*models.MODEL_TYPES, "pixclip"])
    model, transform, tokenizer = models.load_clip("pixclip", folder, "", None, device="cpu")
    names, templates = ["dog", "cat", "red cup"], ["a photo of a {c} .", "the {c} on the table ."]
    for amp, tolerance in ((False, 1e-5), (True, 0.05)):
        weights = classification.zero_shot_classifier(model, tokenizer, names, templates, "cpu", amp=amp)
        vectors = [model.encoder.encode_texts([t.format(c=name) for t in templates], "caption") for name in names]
        means = [np.mean([v / np.linalg.norm(v) for v in group], axis=0) for group in vectors]
        expected = np.stack([mean / np.linalg.norm(mean) for mean in means], axis=1)
        np.testing.assert_allclose(weights.float().numpy(), expected, atol=tolerance)
        batches = [(torch.stack([transform(image) for image in photos_and_captions(3)[0]]), torch.tensor([0, 1, 2]))]
        logits, truth = classification.run_classification(model, weights, batches, "cpu", amp=amp)
        assert logits.shape == (3, 3) and truth.tolist() == [0, 1, 2]


def test_the_installed_clip_benchmark_measures_what_we_measure():
    models = pytest.importorskip("clip_benchmark.models")
    retrieval = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    from processing_pixclip.evaluation.retrieval_ranks import bidirectional_ranks, recall_at
    from processing_pixclip.evaluation.scores import unit

    assert list(inspect.signature(models.load_open_clip).parameters) == DOCUMENTED
    encoder = ClipEncoder(*family_pair("clip"))
    model, transform, tokenizer = (
        ClipBenchmarkModel(encoder),
        PixelTransform(encoder.processor.image_processor),
        TextPacker(),
    )
    images, captions = photos_and_captions(8)
    pixels = torch.stack([transform(image) for image in images])
    batches = [(pixels[start : start + 3], captions[start : start + 3]) for start in range(0, 8, 3)]
    found = retrieval.evaluate(model, batches, tokenizer, "cpu", amp=False, recall_k_list=[1, 3])
    # By default it runs under autocast, and models may have half precision themselves.
    half = ClipBenchmarkModel(ClipEncoder(family_pair("clip")[0].to(torch.bfloat16), encoder.processor))
    for wrapped, amp in ((model, True), (half, False), (half, True)):
        rough = retrieval.evaluate(wrapped, batches, tokenizer, "cpu", amp=amp, recall_k_list=[1, 3])
        assert rough.keys() == found.keys()
    texts = [caption for group in captions for caption in group]
    relevant = np.cumsum([0, *map(len, captions)]), np.arange(len(texts))
    image_vectors = unit(encoder.encode_images([image.convert("RGB") for image in images]))
    there, back = bidirectional_ranks(image_vectors, unit(encoder.encode_texts(texts, "caption")), relevant)
    for k in (1, 3):
        assert found[f"text_retrieval_recall@{k}"] == pytest.approx(recall_at(there, k))
        assert found[f"image_retrieval_recall@{k}"] == pytest.approx(recall_at(back, k))
