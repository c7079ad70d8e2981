# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Caption-to-caption retrieval: the benchmark, and that the training example prints the same figures."""

import json
import math
import statistics
import sys
from pathlib import Path

import layouts_retrieval
import numpy as np
import pytest
import torch
from encoders_for_tests import pixclip_pair
from evaluation_for_tests import SHARED, RandomEncoder, ToldEncoder

from processing_pixclip.evaluation.caption_pairs import (
    CaptionPairs,
    CaptionPairsProtocol,
    caption_ranks,
    read_captions,
)
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.text_encoder import TextEncoder


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import caption_retrieval


DEFAULT = CaptionPairs.presets["default"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caption_pairs")
    layouts_retrieval.write_caption_pairs(folder)
    return folder


def measure(folder, encoder, **changes):
    return CaptionPairs(folder, DEFAULT.changed(changes)).evaluate(FeatureExtractor(encoder, progress=False))


def values(result):
    return {name.removeprefix("caption to caption "): figure.value for name, figure in result.figures.items()}


def told(path):
    captions = read_captions(path)
    return ToldEncoder(texts=dict(zip(captions.texts, captions.image.tolist(), strict=True)))


def write_lines(folder, lines):
    lines = [json.dumps({"image_id": image, "captions": captions}) for image, captions in lines]
    (folder / "captions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def ranks_by_loops(vectors, image, text, ties):
    rows = range(len(text))
    ranks = []
    for query in rows:
        right = {row for row in rows if image[row] == image[query] and row != query}
        if not right:
            continue
        images = {image[row] for row in rows if text[row] == text[query]}
        related = {text[row] for row in rows if image[row] in images}
        wrong = {row for row in rows if text[row] not in related}
        # Rounded, so that what is equal but for the last bits is equal.
        scored = sorted(
            (-round(float(vectors[query] @ vectors[row]), 9), (row in right) == (ties == "pessimistic"), row in right)
            for row in right | wrong
        )
        ranks.append([is_right for _, _, is_right in scored].index(True) + 1)
    return ranks


def awkward_captions(count=70, seed=0):
    """Images with one to many captions, and texts that several images share, chains of them too."""
    generator = np.random.default_rng(seed)
    image = np.unique(generator.integers(0, 24, size=count), return_inverse=True)[1]
    text = np.arange(count)
    for one, other in generator.integers(0, count, size=(9, 2)):
        if image[one] != image[other]:
            text[other] = text[one]
    # An image has a text once.
    kept = np.sort(np.unique(image * count + text, return_index=True)[1])
    return image[kept], text[kept]


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("whole", [False, True], ids=["unequal scores", "equal scores"])
def test_ranks_equal_plain_loops_and_those_of_the_training_example(ties, whole):
    for seed in range(3):
        image, text = awkward_captions(seed=seed)
        assert len(set(text)) < len(text) and (np.bincount(image) == 1).any()
        vectors = np.random.default_rng(seed).standard_normal((len(text), 4))
        vectors = np.round(vectors) if whole else vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        found = caption_ranks(vectors, image, text, ties, chunk=13)
        assert found.ranks.tolist() == ranks_by_loops(vectors, image.tolist(), text.tolist(), ties)
        assert found.queries.tolist() == [row for row in range(len(image)) if (image == image[row]).sum() > 1]
        if ties == "pessimistic":
            captions = caption_retrieval.Captions(
                [str(number) for number in text], torch.from_numpy(image), torch.from_numpy(text)
            )
            assert (
                caption_retrieval.caption_ranks(torch.from_numpy(vectors), captions).tolist() == found.ranks.tolist()
            )
            metrics = caption_retrieval.caption_retrieval_metrics(torch.from_numpy(vectors), captions)
            normalised = torch.nn.functional.normalize(torch.from_numpy(vectors).float(), dim=-1).numpy()
            ranks = caption_ranks(normalised, image, text).ranks
            assert metrics == {f"r{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}


def test_ties_move_the_ranks():
    image, text = awkward_captions()
    vectors = np.round(np.random.default_rng(0).standard_normal((len(text), 4)))
    pessimistic, optimistic = (
        caption_ranks(vectors, image, text, ties).ranks for ties in ("pessimistic", "optimistic")
    )
    assert (optimistic <= pessimistic).all() and optimistic.mean() < pessimistic.mean() - 1


def test_the_benchmark_and_the_training_example_give_the_same_figures(folder):
    """The table of the README is of this protocol: one file, one encoder, both ways to the numbers."""
    encoder = RandomEncoder(3)
    for name in ("annotations/captions_val2017.json", "captions.jsonl"):
        captions = caption_retrieval.read_captions(folder / name)
        embeds = torch.from_numpy(encoder.encode_texts(captions.texts, "caption"))
        metrics = caption_retrieval.caption_retrieval_metrics(embeds, captions)
        figures = values(measure(folder, encoder, captions_file=name))
        assert metrics == {f"r{k}": figures[f"R@{k}"] for k in (1, 5, 10)}


def test_a_random_model_is_at_chance(folder):
    results = [measure(folder, RandomEncoder(seed), bootstrap=0) for seed in range(20)]
    for k, relevant, gallery in ((1, 4, 99), (5, 4, 99), (10, 4, 99)):
        figures = [result.figures[f"caption to caption R@{k}"] for result in results]
        chance = 1 - math.comb(gallery - relevant, k) / math.comb(gallery, k)
        assert figures[0].chance == pytest.approx(chance) and figures[0].count == 100
        mean = statistics.fmean(figure.value for figure in figures)
        assert abs(mean - chance) < 4 * math.sqrt(chance * (1 - chance) / 2000)


def test_a_model_that_knows_the_answers_is_always_right(folder):
    for name in ("annotations/captions_val2017.json", "captions.jsonl"):
        result = measure(folder, told(folder / name), captions_file=name)
        assert set(values(result).values()) == {1.0} and all(item["correct"] for item in result.items)
        # Wilson's interval of 20 photos; the median rank is 1 in each draw.
        lows = [figure.low for figure in result.figures.values()]
        assert lows == pytest.approx([20 / (20 + 1.959964**2)] * 3 + [1])
        assert result.main_figure == "caption to caption R@1" and result.dataset.endswith(name)


def test_equal_vectors_earn_nothing(folder):
    class Constant(RandomEncoder):
        def text_vector(self, text, kind):
            return np.ones(3, dtype=np.float32)

    assert values(measure(folder, Constant())) == {"R@1": 0, "R@5": 0, "R@10": 0, "median rank": 96}
    assert set(values(measure(folder, Constant(), ties="optimistic")).values()) == {1.0}


class UnevenEncoder(RandomEncoder):
    """Another vector and another length of it for each kind of text."""

    def text_vector(self, text, kind):
        return self.draw("text", text, kind)[:6] * np.float32(1 + len(text) % 5)


@pytest.mark.parametrize(
    "change",
    [
        {"normalize": False},
        {"text_kind": "long"},
        {"recall_at": (2,)},
        {"limit": 6},
        {"captions_file": "captions.jsonl"},
    ],
    ids=str,
)
def test_each_field_of_the_protocol_tells(folder, tmp_path, change):
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    write_lines(tmp_path, [(line["image_id"], line["captions"][: 2 + row % 4]) for row, line in enumerate(lines)])
    layouts_retrieval.write(tmp_path / DEFAULT.captions_file, json.loads((folder / DEFAULT.captions_file).read_text()))
    encoder = UnevenEncoder()
    protocol = DEFAULT.changed({**change, "bootstrap": 0})
    captions = read_captions(tmp_path / protocol.captions_file)
    rows = [row for row in range(len(captions.texts)) if captions.image[row] < (protocol.limit or 1000)]
    vectors = np.float64([encoder.text_vector(captions.texts[row], protocol.text_kind) for row in rows])
    if protocol.normalize:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ranks = ranks_by_loops(vectors, captions.image[rows].tolist(), captions.text[rows].tolist(), "pessimistic")
    found = values(measure(tmp_path, encoder, **change, bootstrap=0))
    expected = {f"R@{k}": statistics.fmean(rank <= k for rank in ranks) for k in protocol.recall_at}
    assert found == pytest.approx({**expected, "median rank": statistics.median(ranks)})
    assert found != values(measure(tmp_path, encoder, bootstrap=0))


def test_counts_and_items(tmp_path):
    write_lines(tmp_path, [("a", ["A dog.", "Brown dog", "a  dog"]), ("b", ["One cat", "a dog"]), ("c", ["Alone"])])
    result = measure(tmp_path, RandomEncoder(), captions_file="captions.jsonl", bootstrap=10)
    assert result.counts == {
        "images read": 3,
        "captions left out, twice under one image": 1,
        "images": 3,
        "captions": 5,
        "captions that are no query, alone with their image": 1,
    }
    assert [(item["key"], item["text"], item["truth"]) for item in result.items] == [
        ("a#0", "A dog.", "Brown dog"),
        ("a#1", "Brown dog", "A dog."),
        ("b#2", "One cat", "a dog"),
        ("b#3", "a dog", "One cat"),
    ]
    for item in result.items:
        assert item["correct"] == (item["rank"] == 1) and item["predicted"] not in (item["text"], "a  dog")
    # Of "A dog.", which "b" has too, "One cat" is no wrong answer: only "Alone" is.
    assert result.items[0]["rank"] in (1, 2) and result.figures["caption to caption R@1"].chance == pytest.approx(
        statistics.fmean([1 / 2, 1 / 3, 1 / 3, 1 / 2])
    )
    again = measure(tmp_path, RandomEncoder(), captions_file="captions.jsonl", bootstrap=10)
    assert again.to_json() == result.to_json() and str(tmp_path) not in result.to_json()


@pytest.mark.parametrize("name", ["annotations/captions_val2017.json", "captions.jsonl"])
def test_text_is_utf_8_with_or_without_a_byte_order_mark(tmp_path, name):
    layouts_retrieval.write_caption_pairs(tmp_path)
    path = tmp_path / name
    text = path.read_text(encoding="utf-8")
    expected = read_captions(path).texts
    # U+2028 separates lines elsewhere, and may stand in a text of JSON.
    path.write_text(text.replace(" a ", " a\u2028", 1), encoding="utf-8-sig")
    assert [" ".join(caption.split()) for caption in read_captions(path).texts] == [
        " ".join(caption.split()) for caption in expected
    ]
    path.write_bytes(text.replace("a", "é", 1).encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path.name} is not UTF-8"):
        read_captions(path)


def test_what_is_missing_or_wrong_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="captions_val2017.json: captions.*cocodataset.org") as caught:
        CaptionPairs(tmp_path).load()
    assert str(tmp_path / "annotations") in str(caught.value)
    with pytest.raises(ValueError, match="captions_file is '../a.json'; accepted is a path below"):
        CaptionPairs(tmp_path, CaptionPairsProtocol(captions_file="../a.json"))
    write_lines(tmp_path, [("a", ["A dog."]), ("b", ["One cat"])])
    with pytest.raises(ValueError, match="no image has two captions"):
        measure(tmp_path, RandomEncoder(), captions_file="captions.jsonl")
    with pytest.raises(ValueError, match="vector 1 is not finite"):
        caption_ranks(np.array([[1.0], [np.nan]]), [0, 0], [0, 1])


def test_a_real_text_model_gets_the_figures_of_its_own_vectors(folder):
    model, processor = pixclip_pair()
    encoder = TextEncoder(model.text_model.backbone, processor.tokenizer)
    captions = caption_retrieval.read_captions(folder / "captions.jsonl")
    embeds = torch.from_numpy(np.concatenate([encoder.encode_texts([text], "caption") for text in captions.texts]))
    metrics = caption_retrieval.caption_retrieval_metrics(embeds, captions)
    figures = values(measure(folder, encoder, captions_file="captions.jsonl"))
    assert metrics == pytest.approx({f"r{k}": figures[f"R@{k}"] for k in (1, 5, 10)}, abs=0.021)
    assert 0 < metrics["r10"] < 1


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the captions in {SHARED}")
def test_the_larger_set_of_real_captions(tmp_path):
    layouts_retrieval.write_caption_pairs(tmp_path, SHARED)
    # As the README's table is measured: the file as it lies there, by the example's function.
    path = SHARED / "coco-mini" / "annotations" / "captions_val2017.json"
    captions = caption_retrieval.read_captions(path)
    encoder = RandomEncoder(1)
    embeds = torch.from_numpy(encoder.encode_texts(captions.texts, "caption"))
    metrics = caption_retrieval.caption_retrieval_metrics(embeds, captions)
    for folder, file in ((SHARED / "coco-mini", DEFAULT.captions_file), (tmp_path, "captions.jsonl")):
        result = measure(folder, encoder, captions_file=file)
        assert result.counts["captions"] == 1656 and result.counts["images"] == 331
        assert metrics == {f"r{k}": values(result)[f"R@{k}"] for k in (1, 5, 10)}
    figure = result.figures["caption to caption R@10"]
    assert abs(figure.value - figure.chance) < 4 * math.sqrt(figure.chance / 1656)
    # Two photos share a text, which is told to be of the second; of it and of the first photo's others it is left out.
    assert values(measure(tmp_path, told(path)))["R@1"] >= 1 - 1 / 1656
