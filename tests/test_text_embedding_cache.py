# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The disk cache of text vectors: same vectors, computed once, never those of another model or template."""

import pytest
import torch
from tiny_models import backbone_config, randomise, text_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_pixclip import PixCLIPTextModel, TextEmbeddingCache
from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor


WORDS = "[pad] [unk] [eos] a red blue kite car on the left right user".split()
TEXTS = ["a red kite", "a blue car on the left", "a car", "the blue kite on the right", "red"]


def make_processor(**options):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    return PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer, **options)


def make_model(seed=0, **fields):
    torch.manual_seed(seed)
    return randomise(PixCLIPTextModel(text_config(backbone_config("llama"), **fields))).eval()


class CountingModel:
    """Counts the texts that really go through a model."""

    def __init__(self, model):
        self.texts = 0
        model.backbone.register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs, outputs):
        self.texts += len(kwargs["input_ids"])


def test_vectors_are_those_of_the_model(tmp_path):
    model, processor = make_model(), make_processor()
    cache = TextEmbeddingCache(tmp_path, model, processor)
    cache.embed([*TEXTS, TEXTS[0]], batch_size=2)
    assert sorted(cache) == sorted(TEXTS) and len(cache) == len(TEXTS)
    for text in TEXTS:
        expected = model(**processor(text=text)).backbone_embeds[0]
        assert torch.allclose(cache[text], expected, atol=1e-6)
    with pytest.raises(KeyError):
        cache["a text that was never embedded"]


def test_a_second_run_reads_and_adds_only_what_is_missing(tmp_path):
    model, processor = make_model(), make_processor()
    first = TextEmbeddingCache(tmp_path, model, processor)
    first.embed(TEXTS[:3])
    counter = CountingModel(model)
    second = TextEmbeddingCache(tmp_path, model, processor)
    second.embed(TEXTS)
    assert counter.texts == 2
    assert all(torch.equal(second[text], first[text]) for text in TEXTS[:3])
    assert len(TextEmbeddingCache(tmp_path, model, processor)) == len(TEXTS)


@pytest.mark.parametrize("change", ["weights", "pooling", "direction", "template", "length"])
def test_another_model_or_template_reads_nothing(tmp_path, change):
    TextEmbeddingCache(tmp_path, make_model(), make_processor()).embed(TEXTS)
    model, processor = make_model(), make_processor()
    if change == "weights":
        with torch.no_grad():
            model.backbone.embed_tokens.weight[5, 3] += 1e-3
    elif change == "pooling":
        model = make_model(pooling="last")
    elif change == "direction":
        model = make_model(bidirectional=False)
    elif change == "template":
        processor = make_processor(text_template="user {text}")
    else:
        processor = make_processor(text_max_length=3)
    assert len(TextEmbeddingCache(tmp_path, model, processor)) == 0


def test_the_adapter_does_not_matter(tmp_path):
    model = make_model()
    TextEmbeddingCache(tmp_path, model, make_processor()).embed(TEXTS)
    torch.nn.init.normal_(model.projection.weight)
    assert len(TextEmbeddingCache(tmp_path, model, make_processor())) == len(TEXTS)


def test_an_interrupted_run_keeps_its_finished_files(tmp_path):
    model, processor = make_model(), make_processor()
    cache = TextEmbeddingCache(tmp_path, model, processor)
    hook = model.backbone.register_forward_pre_hook(_FailAt(3))
    with pytest.raises(KeyboardInterrupt):
        cache.embed(TEXTS, batch_size=1, shard_size=2)
    hook.remove()
    again = TextEmbeddingCache(tmp_path, model, processor)
    assert len(again) == 2
    again.embed(TEXTS)
    assert len(TextEmbeddingCache(tmp_path, model, processor)) == len(TEXTS)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


class _FailAt:
    def __init__(self, call):
        self.calls, self.call = 0, call

    def __call__(self, module, args):
        self.calls += 1
        if self.calls == self.call:
            raise KeyboardInterrupt


def test_damaged_file_is_named(tmp_path):
    cache = TextEmbeddingCache(tmp_path, make_model(), make_processor())
    cache.embed(TEXTS)
    [file] = cache.folder.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=file.name):
        TextEmbeddingCache(tmp_path, make_model(), make_processor())


def test_training_mode_is_restored(tmp_path):
    model = make_model().train()
    TextEmbeddingCache(tmp_path, model, make_processor()).embed(TEXTS)
    assert model.training and not model.backbone.training
