# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every benchmark: a model of random weights is at chance, one that is told the answers is always right."""

import numpy as np
import pytest
import test_evaluation_caption_pairs
import test_evaluation_coco_regions
import test_evaluation_fg_ovd
import test_evaluation_imagenet_s
import test_evaluation_mask_sensitivity
import test_evaluation_referring
import test_evaluation_retrieval
from evaluation_for_tests import RandomEncoder
from layouts_all import LAYOUTS, write_layouts
from tiny_models import backbone_config, pixclip_config, randomise
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_pixclip import PixCLIPImageProcessor, PixCLIPModel, PixCLIPProcessor
from processing_pixclip.evaluation.evaluation_run import make_benchmarks
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder
from processing_pixclip.evaluation.registry import BENCHMARKS
from processing_pixclip.evaluation.report import is_share


LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,'-"
# In each fast run; the slow ones take all.
FEW = ("coco-regions", "refcoco", "flickr30k")
# The weights of its figures are controls themselves: of them only this one is to be 1.
ONE_OF = {"mask-sensitivity": "right region of two"}
REGION_CLASSES = ("coco-regions", "lvis-regions")
REFERRING = ("refcoco", "refcoco+", "refcocog")


def told(benchmark):
    """The encoder that knows the answers of a benchmark."""
    if benchmark.name in REGION_CLASSES:
        return test_evaluation_coco_regions.told_encoder(benchmark)
    if benchmark.name in REFERRING:
        return test_evaluation_referring.told(benchmark)
    if benchmark.name == "caption-pairs":
        return test_evaluation_caption_pairs.told(benchmark.path(benchmark.layout[0]))
    modules = {
        "imagenet-s": test_evaluation_imagenet_s.told_encoder,
        "fg-ovd": test_evaluation_fg_ovd.told,
        "mask-sensitivity": test_evaluation_mask_sensitivity.told,
    }
    return modules.get(benchmark.name, test_evaluation_retrieval.told)(benchmark)


def random_model(seed):
    """A real model whose weights are drawn; it reads letters, so that no two texts are alike to it."""
    backend = Tokenizer(
        models.WordLevel({"[pad]": 0, "[unk]": 1} | {a: 2 + n for n, a in enumerate(LETTERS)}, "[unk]")
    )
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    backbone = backbone_config("llama", max_position_embeddings=192)
    model = randomise(PixCLIPModel(pixclip_config(text={"backbone": backbone})), seed)
    processor = PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer, text_max_length=160)
    return PixCLIPEncoder(model, processor, f"random weights {seed}")


def check_chance(name, folders, seeds, **settings):
    (benchmark,) = make_benchmarks([name], folders, settings={"bootstrap": 0, **settings})
    # Captions of one photo share words, which a text model of random weights does see.
    make = RandomEncoder if name == "caption-pairs" else random_model
    results = [benchmark.evaluate(FeatureExtractor(make(seed), progress=False)) for seed in range(seeds)]
    main = results[0].main_figure
    values = [result.figures[main].value for result in results]
    chance, count = results[0].figures[main].chance, results[0].figures[main].count
    # A model may answer all items alike: then they stand and fall together, and the spread over models is what counts.
    spread = max(np.std(values, ddof=1), (chance * (1 - chance) / count) ** 0.5) / seeds**0.5
    assert 0 < chance < 1 and abs(np.mean(values) - chance) < 4.5 * spread, (main, chance, values)
    assert not any(result.figures[main].value == 1 for result in results)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("controls"), LAYOUTS)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return write_layouts(tmp_path_factory.mktemp("controls"), FEW)


@pytest.mark.parametrize("name", FEW)
def test_random_weights_are_at_chance(name, few):
    check_chance(name, few, seeds=2 if name == "refcoco" else 3, limit=6)


@pytest.mark.parametrize("name", FEW)
def test_the_answers_are_all_right(name, few):
    check_told(name, few, limit=6)


def check_told(name, folders, **settings):
    (benchmark,) = make_benchmarks([name], folders, settings={"bootstrap": 0, **settings})
    result = benchmark.evaluate(FeatureExtractor(told(benchmark), progress=False))
    figures = {name: figure.value for name, figure in result.figures.items() if is_share(name)}
    if name in ONE_OF:
        figures = {ONE_OF[name]: figures[ONE_OF[name]]}
    assert figures and set(figures.values()) == {1.0}, figures
    assert all(item["correct"] for item in result.items)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_random_weights_are_at_chance_in_every_benchmark(name, folders):
    check_chance(name, folders, seeds=5, limit=12)


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_answers_are_all_right_in_every_benchmark(name, folders):
    check_told(name, folders, limit=12)
