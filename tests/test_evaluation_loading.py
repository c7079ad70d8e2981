# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Folders of every kind open as encoders, or an error says what is wrong with them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from encoders_for_tests import family_pair, gradient_photo, pixclip_pair, save_pair, word_tokenizer
from safetensors.torch import load_file, save_file
from tiny_models import backbone_config, randomise, text_config
from transformers import (
    BertForMaskedLM,
    BertModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
    LlamaForCausalLM,
)

from modeling_pixclip import PixCLIPTextModel, convert_to_folder
from processing_pixclip.evaluation.clip_encoder import ClipEncoder
from processing_pixclip.evaluation.loading import open_encoder
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder
from processing_pixclip.evaluation.text_encoder import TextEncoder


TEXTS = ["a photo of the red dog .", "two people"]


@pytest.fixture(scope="module")
def pixclip(tmp_path_factory):
    pair = pixclip_pair()
    return pair, save_pair(pair, tmp_path_factory.mktemp("runs") / "my_run")


def test_a_trained_folder_opens_with_its_processor(pixclip):
    (model, processor), folder = pixclip
    encoder = open_encoder(folder, device="cpu")
    assert isinstance(encoder, PixCLIPEncoder)
    expected = PixCLIPEncoder(model, processor)
    np.testing.assert_allclose(
        encoder.encode_texts(TEXTS, "region"), expected.encode_texts(TEXTS, "region"), rtol=1e-4, atol=1e-6
    )
    photo = gradient_photo()
    np.testing.assert_allclose(encoder.encode_images([photo]), expected.encode_images([photo]), rtol=1e-4, atol=1e-6)
    told = encoder.describe()
    assert told["name"] == "my_run"
    assert str(Path(folder).parent) not in json.dumps(told)
    assert not encoder.model.training


def test_the_same_model_elsewhere_has_the_same_fingerprint(pixclip, tmp_path):
    _, folder = pixclip
    shutil.copytree(folder, tmp_path / "copy")
    assert open_encoder(tmp_path / "copy").fingerprint() == open_encoder(folder).fingerprint()
    photo = gradient_photo()
    one, other = (open_encoder(place).encode_images([photo]) for place in (folder, tmp_path / "copy"))
    # Bit for bit: what one run writes, another one reads.
    np.testing.assert_array_equal(one, other)
    half = open_encoder(folder, dtype="bfloat16")
    assert half.describe()["dtype"] == "bfloat16"
    assert half.fingerprint() != open_encoder(folder).fingerprint()
    vectors = half.encode_images([gradient_photo()])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, open_encoder(folder).encode_images([gradient_photo()]), atol=0.1)


def test_of_a_run_without_a_model_of_its_own_the_last_checkpoint(pixclip, tmp_path):
    _, folder = pixclip
    run = tmp_path / "cut_off"
    shutil.copytree(folder, run / "checkpoint-9")
    shutil.copytree(folder, run / "checkpoint-20")
    assert open_encoder(run).describe()["name"] == "cut_off/checkpoint-20"
    # Once the run has ended, its own model.
    shutil.copytree(folder, run, dirs_exist_ok=True)
    assert open_encoder(run).describe()["name"] == "cut_off"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds neither config.json nor checkpoint-"):
        open_encoder(tmp_path / "empty")


@pytest.mark.parametrize("name", ["clip", "siglip", "chinese_clip", "align"])
def test_models_of_transformers_open(name, tmp_path):
    model, processor = family_pair(name)
    encoder = open_encoder(save_pair((model, processor), tmp_path / "other"), device="cpu")
    assert isinstance(encoder, ClipEncoder)
    expected = ClipEncoder(model, processor)
    np.testing.assert_allclose(
        encoder.encode_texts(TEXTS, "region"), expected.encode_texts(TEXTS, "region"), rtol=1e-4, atol=1e-6
    )
    photo = gradient_photo()
    np.testing.assert_allclose(encoder.encode_images([photo]), expected.encode_images([photo]), rtol=1e-4, atol=1e-6)
    assert encoder.views == expected.views


def test_a_converted_checkpoint_equals_its_source(tmp_path):
    model, processor = family_pair("clip")
    source = save_pair((model, processor), tmp_path / "clip")
    convert_to_folder("openai-clip", source, tmp_path / "converted", tokenizer=source)
    encoder, parent = open_encoder(tmp_path / "converted"), open_encoder(source)
    assert isinstance(encoder, PixCLIPEncoder)
    np.testing.assert_allclose(
        encoder.encode_texts(TEXTS, "caption"), parent.encode_texts(TEXTS, "caption"), atol=1e-5
    )
    photo = gradient_photo(64, 64)
    np.testing.assert_allclose(encoder.encode_images([photo]), parent.encode_images([photo]), atol=1e-4)


def change_weights(folder, change):
    file = Path(folder) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def test_weights_that_are_missing_or_left_over_are_an_error(pixclip, tmp_path):
    _, folder = pixclip
    shutil.copytree(folder, tmp_path / "missing")
    change_weights(tmp_path / "missing", lambda tensors: tensors.pop("visual_projection.weight"))
    with pytest.raises(ValueError, match="PixCLIPModel .*1 missing: visual_projection.weight"):
        open_encoder(tmp_path / "missing")
    shutil.copytree(folder, tmp_path / "more")
    change_weights(tmp_path / "more", lambda tensors: tensors.update(something=torch.ones(2)))
    with pytest.raises(ValueError, match="1 unexpected: something"):
        open_encoder(tmp_path / "more")


def test_a_model_without_a_processor_is_told_the_remedy(pixclip, tmp_path):
    (model, processor), folder = pixclip
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no processor can be loaded from .*bare.*Pass processor=.*save_pretrained"):
        open_encoder(tmp_path / "bare")
    for given in (processor, folder):
        encoder = open_encoder(tmp_path / "bare", processor=given)
        assert encoder.encode_texts(TEXTS, "region").shape == (2, 16)


def test_text_backbones_open_without_images(tmp_path):
    tokenizer = word_tokenizer()
    for name, model, pooling in (
        ("bert", BertForMaskedLM(backbone_config("bert")), "mean"),
        ("llama", LlamaForCausalLM(backbone_config("llama")), "last"),
    ):
        save_pair((model, tokenizer), tmp_path / name)
        encoder = open_encoder(tmp_path / name)
        assert isinstance(encoder, TextEncoder)
        assert (encoder.describe()["pooling"], encoder.describe()["name"]) == (pooling, name)
        own = TextEncoder(getattr(model, name if name == "bert" else "model").eval(), tokenizer)
        np.testing.assert_allclose(
            encoder.encode_texts(TEXTS, "caption"), own.encode_texts(TEXTS, "caption"), atol=1e-6
        )
    change_weights(tmp_path / "llama", lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match="1 missing: layers.1.mlp.up_proj.weight"):
        open_encoder(tmp_path / "llama")


def test_a_text_tower_of_pixclip_opens_alone(pixclip, tmp_path):
    (_, processor), folder = pixclip
    model = randomise(PixCLIPTextModel(text_config()))
    model.save_pretrained(tmp_path / "tower")
    for given in (processor, folder):
        encoder = open_encoder(tmp_path / "tower", processor=given)
        assert isinstance(encoder, TextEncoder)
        with torch.no_grad():
            expected = model(**processor(text=TEXTS)).pooler_output
        np.testing.assert_allclose(encoder.encode_texts(TEXTS, "caption"), expected, atol=2e-6)
    processor.save_pretrained(tmp_path / "tower")
    assert open_encoder(tmp_path / "tower").fingerprint() == encoder.fingerprint()


def test_a_model_of_images_alone_is_refused(tmp_path):
    model, processor = family_pair("clip")
    vision = CLIPVisionModelWithProjection(model.config.vision_config)
    save_pair((vision, processor), tmp_path / "vision")
    with pytest.raises(ValueError, match="reads images alone; benchmarks compare them with texts"):
        open_encoder(tmp_path / "vision")
    with pytest.raises(OSError, match="no_such_model"):
        open_encoder(str(tmp_path / "no_such_model"))


def test_a_text_tower_keeps_its_projection(tmp_path):
    model, processor = family_pair("clip")
    tower = CLIPTextModelWithProjection(model.config.text_config).eval()
    save_pair((tower, processor.tokenizer), tmp_path / "tower")
    encoder = open_encoder(tmp_path / "tower", device="cpu")
    assert isinstance(encoder, TextEncoder)
    for text, vector in zip(TEXTS, encoder.encode_texts(TEXTS, "caption"), strict=True):
        with torch.no_grad():
            expected = tower(**processor.tokenizer([text], return_tensors="pt")).text_embeds[0]
        np.testing.assert_allclose(vector, expected, atol=1e-5)
    # Of a class that the library does not know, its projection must not be lost either.
    config = json.loads((tmp_path / "tower" / "config.json").read_text())
    (tmp_path / "tower" / "config.json").write_text(json.dumps(config | {"architectures": ["MyTextTower"]}))
    with pytest.raises(ValueError, match="1 unexpected: text_projection.weight"):
        open_encoder(tmp_path / "tower", device="cpu")


def write_sentence_files(folder, pooling, modules=("Transformer", "Pooling", "Normalize"), max_seq_length=None):
    """What sentence-transformers writes beside a model."""
    paths = ["", "1_Pooling", "2_Normalize", "3_Dense"]
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{module}"}
        for place, (module, path) in enumerate(zip(modules, paths, strict=False))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if max_seq_length is not None:
        settings = {"max_seq_length": max_seq_length, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))


def test_the_pooling_of_sentence_transformers_is_read(tmp_path, monkeypatch):
    tokenizer, folder = word_tokenizer(), tmp_path / "sentences"
    bert = BertModel(backbone_config("bert")).eval()
    save_pair((bert, tokenizer), folder)
    told = []
    monkeypatch.setattr("processing_pixclip.evaluation.text_encoder.logger.warning", lambda *args: told.append(args))
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")

    def legacy(*chosen):
        modes = {f"pooling_mode_{name}": name in chosen for name in names}
        return {"word_embedding_dimension": 32, **modes, "include_prompt": True}

    for pooling, expected in (
        (legacy("cls_token"), "cls"),
        (legacy("mean_tokens"), "mean"),
        (legacy("lasttoken"), "last"),
        ({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}, "cls"),
    ):
        write_sentence_files(folder, pooling, max_seq_length=6)
        encoder = open_encoder(folder, device="cpu")
        assert (encoder.pooling, encoder.describe()["text_max_length"]) == (expected, 6)
        by_hand = TextEncoder(bert, tokenizer, pooling=expected, max_length=6)
        long = [*TEXTS, "a photo of the red dog and two people ."]
        np.testing.assert_allclose(
            encoder.encode_texts(long, "caption"), by_hand.encode_texts(long, "caption"), atol=1e-6
        )
    # What is told is no guess.
    assert [args for args in told if "Nothing says" in args[0]] == []
    for pooling in (legacy("max_tokens"), legacy("cls_token", "mean_tokens"), {"pooling_mode": "max"}):
        write_sentence_files(folder, pooling)
        with pytest.raises(
            ValueError, match="the pooling of .*sentences' is (max|cls . mean); accepted are cls, mean"
        ):
            open_encoder(folder, device="cpu")
        assert open_encoder(folder, device="cpu", pooling="mean").pooling == "mean"
    write_sentence_files(folder, legacy("mean_tokens"), ("Transformer", "Pooling", "Normalize", "Dense"))
    with pytest.raises(ValueError, match="through Dense too, which there is not here"):
        open_encoder(folder, device="cpu")
    assert open_encoder(folder, device="cpu", pooling="cls").pooling == "cls"


def test_models_of_images_take_no_pooling(pixclip):
    _, folder = pixclip
    with pytest.raises(ValueError, match="pooling is 'mean', but a PixCLIPModel has vectors of its own"):
        open_encoder(folder, device="cpu", pooling="mean")
