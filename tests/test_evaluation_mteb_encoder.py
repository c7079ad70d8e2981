# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The wrapper for MTEB and MIEB: its signatures, its vectors, and mteb itself where it is installed."""

import inspect
import sys
import types

import numpy as np
import pytest
import torch
from encoders_for_tests import family_pair, pixclip_pair, save_pair
from evaluation_for_tests import PHOTOS, RandomEncoder, heldout_records
from PIL import Image
from torch.utils.data import DataLoader

from processing_pixclip.evaluation.clip_encoder import ClipEncoder
from processing_pixclip.evaluation.mteb_encoder import MtebEncoder
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder


# Parameters that mteb 2.26 documents: `EncoderProtocol` in models/models_protocols.py. "*" stands before keyword-only ones.
DOCUMENTED = {
    "__init__": ["model_name", "revision", "*", "device", "**kwargs"],
    "encode": ["inputs", "*", "task_metadata", "hf_split", "hf_subset", "prompt_type", "**kwargs"],
    "similarity": ["embeddings1", "embeddings2"],
    "similarity_pairwise": ["embeddings1", "embeddings2"],
}
OURS_BESIDE = {"__init__": ["encoder", "text_kind"]}
METADATA = {"task_metadata": None, "hf_split": "test", "hf_subset": "default", "show_progress_bar": False}


def parameters(method):
    found, keyword_only = [], False
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            found.append("*")
        found.append(f"**{name}" if parameter.kind is parameter.VAR_KEYWORD else name)
    return [name for name in found if name != "self"]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_signatures_are_the_documented_ones(name):
    ours = [part for part in parameters(getattr(MtebEncoder, name)) if part not in OURS_BESIDE.get(name, [])]
    assert ours == DOCUMENTED[name]


def photos_and_captions():
    records = heldout_records(5)
    images = [Image.open(PHOTOS / record["image"]).convert("RGB") for record in records]
    return images, [record["captions"][0] for record in records]


def loader(batch_size=2, **columns):
    """Batches as mteb makes them: a list for each column."""
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return DataLoader(
        rows, batch_size=batch_size, collate_fn=lambda batch: {name: [row[name] for row in batch] for name in columns}
    )


@pytest.fixture(params=["pixclip", "clip"])
def encoder(request):
    if request.param == "pixclip":
        return PixCLIPEncoder(*pixclip_pair())
    return ClipEncoder(*family_pair("clip"))


def test_vectors_are_those_of_the_encoder(encoder):
    model, (images, texts) = MtebEncoder("me/model", encoder=encoder), photos_and_captions()
    text = np.concatenate([encoder.encode_texts(texts[start : start + 2], "caption") for start in (0, 2, 4)])
    image = np.concatenate([encoder.encode_images(images[start : start + 2]) for start in (0, 2, 4)])
    found = {
        "text": model.encode(loader(text=texts, title=texts), **METADATA),
        "image": model.encode(loader(image=images), **METADATA, batch_size=2),
        "both": model.encode(loader(image=images, text=texts), **METADATA, prompt_type="query"),
    }
    for name, expected in {"text": text, "image": image, "both": text + image}.items():
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == np.float32


def test_it_opens_a_folder_as_mteb_would(tmp_path):
    folder = save_pair(pixclip_pair(), tmp_path / "model")
    model = MtebEncoder(folder, None, device="cpu", text_kind="region")
    assert isinstance(model.encoder, PixCLIPEncoder)
    expected = PixCLIPEncoder(*pixclip_pair()).encode_texts(["a red dog"], "region")
    found = model.encode(loader(text=["a red dog"]), **METADATA)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_kind_of_text_reaches_the_model():
    encoder = PixCLIPEncoder(*pixclip_pair(two_paths=True))
    texts = loader(text=["a red dog and two people on the street ."])
    vectors = [
        MtebEncoder("m", encoder=encoder, text_kind=kind).encode(texts, **METADATA) for kind in ("caption", "long")
    ]
    assert not np.allclose(*vectors, atol=1e-3)


def test_similarity_is_the_cosine():
    model, generator = MtebEncoder("m", encoder=RandomEncoder()), np.random.default_rng(0)
    left, right = generator.standard_normal((3, 5)), generator.standard_normal((4, 5))
    cosines = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in right] for a in left])
    found = model.similarity(left, torch.from_numpy(right))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found, cosines, atol=1e-6)
    np.testing.assert_allclose(model.similarity(left[0], right), cosines[:1], atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(left, right[:3]), cosines.diagonal(), atol=1e-6)


def test_what_does_not_fit_is_told():
    encoder = RandomEncoder()
    model, image = MtebEncoder("m", encoder=encoder), Image.new("RGB", (4, 4))
    with pytest.raises(
        ValueError, match="batch 0 has the columns audio; accepted are batches with text, image or both"
    ):
        model.encode([{"audio": [1]}], **METADATA)
    with pytest.raises(
        ValueError, match="batch 1 has the columns text, image; accepted are batches with text, all alike"
    ):
        model.encode([{"text": ["a"]}, {"text": ["a"], "image": [image]}], **METADATA)
    with pytest.raises(ValueError, match="precision is 'int8'"):
        model.encode([{"text": ["a"]}], **METADATA, precision="int8")
    with pytest.raises(ValueError, match="no batches"):
        model.encode([], **METADATA)
    with pytest.raises(ValueError, match="text_kind is 'document'"):
        MtebEncoder("m", encoder=encoder, text_kind="document")
    with pytest.raises(ValueError, match="device, dtype would open a model"):
        MtebEncoder("m", encoder=encoder, device="cpu", dtype="float32")


def test_the_signatures_and_protocol_of_the_installed_mteb():
    protocols = pytest.importorskip("mteb.models.models_protocols")
    for name in ("__init__", "encode", "similarity", "similarity_pairwise"):
        assert parameters(getattr(protocols.EncoderProtocol, name)) == DOCUMENTED[name]
    model = MtebEncoder("runs/coco_regions/", encoder=RandomEncoder(3))
    assert isinstance(model, protocols.EncoderProtocol)
    meta = model.mteb_model_meta
    told = (meta.name, meta.revision, meta.modalities)
    assert told == ("local/coco_regions", "RandomEncoder-3-caption", ["image", "text"])


class StubMeta(types.ModuleType):
    """The one function of mteb that a description calls, where mteb is not installed."""

    class ModelMeta:
        create_empty = staticmethod(lambda overwrites: types.SimpleNamespace(**overwrites))


def test_names_and_revisions_keep_different_vectors_apart(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb.models.model_meta", StubMeta("mteb.models.model_meta"))
    monkeypatch.chdir(tmp_path)
    model, processor = pixclip_pair()
    save_pair((model, processor), tmp_path / "runs" / "coco_regions")

    def told(name, revision=None, encoder=None, **options):
        meta = MtebEncoder(name, revision, encoder=encoder, **options).mteb_model_meta
        return meta.name, meta.revision

    encoder = PixCLIPEncoder(model, processor)
    print_of_weights = encoder.fingerprint()
    for name, expected in {
        "runs/coco_regions": "local/coco_regions",
        "runs/coco_regions/": "local/coco_regions",
        "C:\\runs\\coco_regions": "local/coco_regions",
        "./coco_regions": "local/coco_regions",
        "me/coco_regions": "me/coco_regions",
    }.items():
        assert told(name, encoder=encoder) == (expected, f"{print_of_weights}-caption-float32")
    assert told("me/model", "main", encoder) == ("me/model", "main-caption-float32")
    assert told("me/model", "main", encoder, text_kind="long") == ("me/model", "main-long-float32")
    half = told("runs/coco_regions", "main", device="cpu", dtype="bfloat16")
    assert half == ("local/coco_regions", "main-caption-bfloat16")


def test_texts_that_are_cut_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(
        "processing_pixclip.evaluation.text_encoder.logger.warning", lambda *args: told.append(args[1:3])
    )
    model = MtebEncoder("m", encoder=ClipEncoder(*family_pair("clip")))
    model.encode([{"text": ["a dog", "a dog " * 90]}, {"text": ["cat"]}], **METADATA)
    assert told == [(1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pixclip", "clip"])
def test_the_installed_mteb_runs_its_mock_tasks(kind):
    mteb = pytest.importorskip("mteb")
    encoder = PixCLIPEncoder(*pixclip_pair()) if kind == "pixclip" else ClipEncoder(*family_pair("clip"))
    results = mteb.mock_run(MtebEncoder("me/model", encoder=encoder)).task_results
    assert {name: result for name, result in results.items() if type(result).__name__ == "TaskError"} == {}
    # Text alone, images alone, one for the other, and both fused; tasks of sound and video are not for us.
    wanted = {"MockRetrievalTask", "MockImageClassification", "MockAny2AnyRetrievalT2I", "MockVisionCentricQA"}
    assert wanted <= {name for name, result in results.items() if result is not None}
