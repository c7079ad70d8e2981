# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""RefCOCO, RefCOCO+ and RefCOCOg: files, candidates, masks, scores and presets."""

import builtins
import json
import pickle
import shutil
import sys
from fractions import Fraction

import numpy as np
import pytest
from encoders_for_tests import clip_pair, pixclip_pair
from evaluation_for_tests import PHOTOS, SHARED, RandomEncoder, ToldEncoder, heldout_records
from layouts_referring import write_refcoco, write_refcoco_plus, write_refcocog
from tiny_sam2 import tiny_sam2

from processing_pixclip.evaluation.clip_encoder import ClipEncoder
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.model_identity import weights_hash
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder
from processing_pixclip.evaluation.referring_expressions import RefCoco, RefCocoG, RefCocoPlus
from processing_pixclip.evaluation.referring_files import load_plain_pickle, read_detections, read_reclip, read_unc
from processing_pixclip.regions import to_mask


WRITERS = {RefCoco: write_refcoco, RefCocoPlus: write_refcoco_plus, RefCocoG: write_refcocog}
BENCHMARKS = sorted(WRITERS, key=lambda benchmark: benchmark.name)
PAIR = "full+mask + blur+mask"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data folder with the three data sets."""
    out = tmp_path_factory.mktemp("referring")
    for write in WRITERS.values():
        write(out)
    return out


def protocol(benchmark=RefCoco, preset="default", **fields):
    return benchmark.presets[preset].changed({"bootstrap": 0, **fields})


def measured(benchmark, folder, encoder, **fields):
    result = benchmark(folder, protocol(benchmark, **fields)).evaluate(quiet(encoder))
    return {name: figure.value for name, figure in result.figures.items()}, result


def quiet(encoder):
    return FeatureExtractor(encoder, progress=False)


def overlap(box, other):
    sides = [min(box[axis + 2], other[axis + 2]) - max(box[axis], other[axis]) for axis in (0, 1)]
    shared = max(sides[0], 0) * max(sides[1], 0)
    return shared / (sum((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)) - shared)


def told(benchmark):
    """Knows which candidate overlaps best with the object of each sentence."""
    benchmark.load()
    texts = {}
    for expression, referred in zip(benchmark.expressions, benchmark.referred):
        candidates = benchmark.candidates[expression.image_id]
        best = max(candidates, key=lambda region: overlap(region.box, referred), default=None)
        texts[benchmark.protocol.prompt.format(expression.text.lower())] = best and best.key
    regions = {region.key: region.key for candidates in benchmark.candidates.values() for region in candidates}
    return ToldEncoder(texts, regions)


# ------------------------------------------------------------------------------------ chance and the known answers


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize("preset", ["default", "detector-boxes"])
def test_random_vectors_are_at_chance_and_told_ones_find_all_that_can_be_found(folder, benchmark, preset):
    own = benchmark(folder, protocol(benchmark, preset, limit=16, views="full+mask"))
    results = [own.evaluate(quiet(RandomEncoder(seed))) for seed in range(10)]
    chance = results[0].figures["accuracy"].chance
    sentences = results[0].counts["sentences"]
    shares = [own.right[place].mean() if len(own.right[place]) else 0 for place in range(sentences)]
    assert chance == pytest.approx(np.mean(shares))
    # Sentences of a photo share its candidates, so that they are not independent, but uncorrelated.
    deviation = np.sqrt(sum(share * (1 - share) for share in shares) / len(results)) / sentences
    mean = np.mean([result.figures["accuracy"].value for result in results])
    assert abs(mean - chance) < 4 * deviation
    result = own.evaluate(quiet(told(own)))
    found = Fraction(result.counts["sentences with a right candidate"], sentences)
    assert result.figures["accuracy"].value == pytest.approx(float(found), abs=1e-12)
    assert (found == 1) == (preset == "default")


@pytest.mark.slow
def test_random_and_told_vectors_on_sentences_that_people_wrote(tmp_path):
    if not (SHARED / "refcocos-mini").is_dir():
        pytest.skip("needs refcocos-mini and coco-mini in the shared data")
    write_refcoco(tmp_path, SHARED)
    for fields in ({}, {"source": "reclip"}, {"candidates": "detector", "masks": "box"}):
        own = RefCoco(tmp_path, protocol(views="full+mask", **fields))
        results = [own.evaluate(quiet(RandomEncoder(seed))) for seed in range(10)]
        chance = results[0].figures["accuracy"].chance
        mean = np.mean([result.figures["accuracy"].value for result in results])
        sentences = results[0].counts["sentences"]
        assert sentences == 25 and results[0].counts["images"] == 24
        assert abs(mean - chance) < 4 * np.sqrt(chance / 10 / sentences)
        result = own.evaluate(quiet(told(own)))
        assert result.figures["accuracy"].value == result.counts["sentences with a right candidate"] / sentences
    # Of 25 sentences, 18 objects have a mask, 5 more one of a lower overlap, 2 none.
    own = RefCoco(tmp_path, protocol())
    own.load()
    assert own.counts["candidates shown as boxes, their annotation has no usable mask"] == 2
    _, result = measured(RefCoco, tmp_path, RandomEncoder(), parser=True)
    assert result.counts["sentences with spatial words"] == 5


def test_two_runs_with_one_seed_are_byte_identical(folder):
    runs = [
        RefCocoPlus(folder, RefCocoPlus.presets["default"].changed({"parser": True}))
        .evaluate(quiet(RandomEncoder()))
        .to_json()
        for _ in range(2)
    ]
    assert runs[0] == runs[1] and str(folder) not in runs[0]
    figure = json.loads(runs[0])["figures"]["accuracy"]
    assert figure["low"] < figure["value"] < figure["high"]


@pytest.mark.parametrize("make", [pixclip_pair, clip_pair])
def test_a_real_model_is_scored_as_a_loop_scores_it(folder, make):
    encoder = (PixCLIPEncoder if make is pixclip_pair else ClipEncoder)(*make())
    own = RefCoco(folder, protocol(limit=4))
    result = own.evaluate(quiet(encoder))
    views = PAIR if make is pixclip_pair else "box-crop + blur"
    assert result.protocol["views"] == [views]
    features = quiet(encoder)
    right = []
    for expression, referred in zip(own.expressions, own.referred):
        text = features.texts([f"a photo of {expression.text.lower()}"], "region")[0]
        candidates = own.candidates[expression.image_id]
        scores = np.zeros(len(candidates))
        for view in views.split(" + "):
            for place, vector in enumerate(features.regions(candidates, view)):
                scores[place] += vector @ text / np.linalg.norm(vector) / np.linalg.norm(text)
        right.append(overlap(candidates[int(scores.argmax())].box, referred) > 0.5)
    assert result.figures["accuracy"].value == np.mean(right)
    assert [item["correct"] for item in result.items] == right


# ------------------------------------------------------------------------------------------------ a photo by hand

RECORD = heldout_records(1)[0]
IMAGE_ID = int(RECORD["image_id"])


class Vectors(RandomEncoder):
    """Gives each region and text the vector that is written for it; the views are equal unless they are named."""

    logit_scale = 1.0

    def __init__(self, regions, texts, **views):
        super().__init__()
        self.regions, self.texts, self.of_views = regions, texts, views
        self.asked = []

    def fingerprint(self):
        return f"vectors-{id(self)}"

    def text_vector(self, text, kind):
        assert kind == "region"
        self.asked.append(text)
        return np.float32(self.texts[text.removeprefix("a photo of ")])

    def region_vector(self, region, view):
        name = region.key.rpartition("#")[2].removeprefix("detection ")
        return np.float32(self.of_views.get(view.partition("+")[0], self.regions)[name])


def write_one(folder, boxes, sentences, detections=None, referred=0):
    """ReCLIP's layout with one photo, whose objects have the ids 0, 1, 2, ... and one of which is meant."""
    (folder / "train2014").mkdir()
    (folder / "reclip_data").mkdir()
    shutil.copy(PHOTOS / RECORD["image"], folder / "train2014" / f"COCO_train2014_{IMAGE_ID:012d}.jpg")
    entry = {
        "image_id": IMAGE_ID,
        "file_name": f"COCO_train2014_{IMAGE_ID:012d}_0.jpg",
        "ann_id": referred,
        "anns": [{"id": number, "bbox": box} for number, box in enumerate(boxes)],
        "sentences": [{"raw": raw, "sent": sent} for raw, sent in sentences],
    }
    (folder / "reclip_data" / "refcoco_val.jsonl").write_text(json.dumps(entry) + "\n")
    if detections is not None:
        (folder / "reclip_data" / "refcoco_dets_dict.json").write_text(json.dumps(detections))


def by_hand(folder, encoder, **fields):
    return measured(RefCoco, folder, encoder, source="reclip", **{"masks": "box", **fields})


ROW = [[0, 0, 50, 50], [100, 0, 50, 50], [200, 0, 50, 50]]
PLANE = {"0": [1, 0], "1": [0, 1], "2": [-1, 0]}


@pytest.mark.parametrize(("iou", "accuracy"), [("0.5", 0), ("0.49", 1)])
def test_an_overlap_has_to_exceed_the_threshold(tmp_path, iou, accuracy):
    # The detected box is twice the referred one: an overlap of exactly a half.
    write_one(tmp_path, [[0, 0, 50, 50]], [("cup", "cup")], {IMAGE_ID: [[0, 0, 100, 50], [200, 200, 20, 20]]})
    encoder = Vectors({"0": [1, 0], "1": [0, 1]}, {"cup": [1, 0]})
    values, result = by_hand(tmp_path, encoder, candidates="detector", iou=iou)
    assert values == {"accuracy": accuracy}
    assert result.counts["sentences with a right candidate"] == accuracy
    assert result.figures["accuracy"].chance == accuracy / 2


@pytest.mark.parametrize(("ties", "accuracy"), [("pessimistic", 0), ("optimistic", 1)])
def test_equal_candidates_are_told_apart_by_the_tie_rule(tmp_path, ties, accuracy):
    write_one(tmp_path, ROW, [("cup", "cup")], referred=1)
    encoder = Vectors({"0": [1, 0], "1": [1, 0], "2": [0, 1]}, {"cup": [1, 0]})
    values, result = by_hand(tmp_path, encoder, ties=ties)
    assert values == {"accuracy": accuracy}
    assert result.items[0]["predicted_box"] == ((100, 0, 150, 50) if accuracy else (0, 0, 50, 50))
    assert result.items[0]["correct"] == bool(accuracy) and result.items[0]["box"] == (100, 0, 150, 50)


class MaskIgnoring(RandomEncoder):
    """Sees the photo and not the region; its vectors differ by what rounding leaves."""

    def __init__(self, noise):
        super().__init__()
        self.noise = np.float32(noise)

    def region_vector(self, region, view):
        vector = self.draw(region.image.key, view)
        return vector / np.linalg.norm(vector) + self.noise * self.draw(region.key, view)


@pytest.mark.parametrize("parser", [False, True])
def test_what_rounding_leaves_decides_nothing(folder, tmp_path, parser):
    fields = {"parser": parser, "limit": 16}
    for ties in ("pessimistic", "optimistic"):
        exact, noisy = (measured(RefCoco, folder, MaskIgnoring(noise), ties=ties, **fields)[0] for noise in (0, 1e-7))
        assert exact == noisy
    # One above the other, so that "left" says nothing; in cosines the two differ by 2e-7.
    write_one(tmp_path, [[0, 0, 50, 50], [0, 100, 50, 50], [200, 0, 50, 50]], [("left cup", "-")])
    equal = [[0.6, 0.8], [0.6000002, 0.79999985]]
    for vectors in (equal, equal[::-1]):
        encoder = Vectors({**dict(zip("01", vectors)), "2": [-1, 0]}, {"left cup": [1, 0], "cup": [1, 0]})
        encoder.logit_scale = 100.0
        for ties, accuracy in (("pessimistic", 0), ("optimistic", 1)):
            assert by_hand(tmp_path, encoder, ties=ties, parser=parser)[0]["accuracy"] == accuracy
    # A difference of 1e-5 is one.
    for first, accuracy in ((0.60001, 1), (0.59999, 0)):
        encoder = Vectors({"0": [first, np.sqrt(1 - first**2)], "1": [0.6, 0.8], "2": [-1, 0]}, encoder.texts)
        for ties in ("pessimistic", "optimistic"):
            assert by_hand(tmp_path, encoder, ties=ties, parser=parser)[0]["accuracy"] == accuracy


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
@pytest.mark.parametrize("parser", [False, True])
def test_a_candidate_of_which_nothing_is_shown_is_never_the_answer(tmp_path, ties, parser):
    write_one(tmp_path, ROW, [("left cup", "-")])
    texts = {"left cup": [1, 0], "cup": [1, 0]}
    regions = {"0": [-0.6, 0.8], "1": [0, 0], "2": [-0.8, 0.6]}
    fields = {"ties": ties, "parser": parser}
    # Of negative cosines its zero would be the greatest.
    values, result = by_hand(tmp_path, Vectors(regions, texts), **fields)
    assert values["accuracy"] == 1 and result.counts["regions of which the frame shows nothing"] == 1
    assert result.items[0]["predicted_box"] == (0, 0, 50, 50)
    # The object itself: not found, whatever the tie rule.
    values, _ = by_hand(tmp_path, Vectors({**regions, "0": [0, 0], "1": [-1, 0]}, texts), **fields)
    assert values["accuracy"] == 0
    # One of two views shows it: its sum would be that of fewer cosines.
    shown, hidden = {**regions, "1": [-0.7, 0.7]}, {**regions, "1": [0, 0]}
    for views in ({"full": hidden, "blur": shown}, {"full": shown, "blur": hidden}):
        values, result = by_hand(tmp_path, Vectors({}, texts, **views), **fields)
        assert values["accuracy"] == 1 and result.counts["regions of which the frame shows nothing"] == 1
    _, result = by_hand(tmp_path, Vectors({}, texts, full=hidden, blur=shown), views="blur+mask,full+mask", **fields)
    assert result.counts["blur+mask: regions of which the frame shows nothing"] == 0
    assert result.counts["full+mask: regions of which the frame shows nothing"] == 1
    # None is shown: there is no answer.
    values, result = by_hand(tmp_path, Vectors(dict.fromkeys("012", [0, 0]), texts), **fields)
    assert values["accuracy"] == 0 and "predicted_box" not in result.items[0] and result.items[0]["score"] == 0


def test_views_are_summed_or_figures_of_their_own(tmp_path):
    write_one(tmp_path, ROW[:2], [("cup", "cup")])
    # The whole image says 0 by a little, the blurred one 1 by much.
    full, blur = {"0": [1, 0.1], "1": [1, 0.2]}, {"0": [0.5, 1], "1": [1, 0]}
    encoder = Vectors({}, {"cup": [1, 0]}, full=full, blur=blur)
    values, result = by_hand(tmp_path, encoder, views="full+mask,blur+mask")
    assert values == {"full+mask: accuracy": 1, "blur+mask: accuracy": 0}
    assert result.main_figure == "full+mask: accuracy"
    values, result = by_hand(tmp_path, encoder, views=PAIR)
    assert values == {"accuracy": 0} and result.main_figure == "accuracy"
    cosines = [sum(v[0] / np.hypot(*v) for v in (full[name], blur[name])) for name in "01"]
    assert result.items[0]["score"] == pytest.approx(np.exp(cosines[1]) / np.exp(cosines).sum(), rel=1e-5)


def test_the_prompt_takes_the_sentence_raw_or_cleaned_in_lower_case(tmp_path):
    write_one(tmp_path, ROW, [("The LEFT Cup!", "left cup")])
    texts = {"the left cup!": [1, 0], "left cup": [0, 1], "{} the left cup!": [1, 0]}
    for fields, accuracy, asked in (
        ({}, 1, "a photo of the left cup!"),
        ({"expression": "sent"}, 0, "a photo of left cup"),
        ({"prompt": "{}"}, 1, "the left cup!"),
    ):
        encoder = Vectors(PLANE, texts)
        values, _ = by_hand(tmp_path, encoder, **fields)
        assert values == {"accuracy": accuracy} and encoder.asked == [asked]
    with pytest.raises(ValueError, match=r"prompt is 'a photo'; accepted is a text with \{\}"):
        RefCoco(tmp_path, protocol(prompt="a photo"))


def test_the_parser_multiplies_what_spatial_words_say_into_the_softmax(tmp_path):
    # The model takes the rightmost for the cup; of two cups that it likes, the left one is meant.
    write_one(tmp_path, ROW, [("cup left of the plate", "-"), ("red cup", "-")])
    texts = {"cup left of the plate": [0, 1], "cup": [0.6, 0.8], "plate": [-1, 0], "red cup": [1, 0]}
    encoder = Vectors({"0": [0.6, 0.8], "1": [0, 1], "2": [-1, 0]}, texts)
    values, result = by_hand(tmp_path, encoder, parser="true")

    def softmax(text):
        # Two views, each a cosine.
        powers = np.exp([2 * np.dot(vector, texts[text]) for vector in ([0.6, 0.8], [0, 1], [-1, 0])])
        return powers / powers.sum()

    plate = softmax("plate")
    cup = softmax("cup") * [plate[1] + plate[2], plate[2], 0]
    expected = softmax("cup left of the plate") * cup
    expected /= expected.sum()
    assert result.items[0]["score"] == pytest.approx(expected[0], rel=1e-5)
    assert [item["correct"] for item in result.items] == [True, True]
    # Without, the second is taken for it. By the words alone the first box is twice as probable as the second.
    assert values == {
        "accuracy": 1,
        "accuracy without the parser": 0.5,
        "accuracy of the spatial words alone": (1 + 1 / 3) / 2,
    }
    assert result.counts["sentences with spatial words"] == 1
    assert result.figures["accuracy"].chance is None
    assert result.figures["accuracy without the parser"].chance == pytest.approx(1 / 3)
    without, _ = by_hand(tmp_path, Vectors(encoder.regions, texts))
    assert without == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("box", "no_boxes", "accuracy", "candidates"),
    [
        ([0, 0, RECORD["width"], RECORD["height"]], "wrong", 0, 0),
        ([0, 0, RECORD["width"], RECORD["height"]], "whole image", 1, 1),
        ([0, 0, 20, 20], "whole image", 0, 1),
    ],
)
@pytest.mark.parametrize("detections", [{}, {IMAGE_ID: []}])
def test_a_photo_without_detections(tmp_path, box, no_boxes, accuracy, candidates, detections):
    write_one(tmp_path, [box], [("cup", "cup")], detections)
    encoder = Vectors({"whole image": [0, 1]}, {"cup": [1, 0]})
    values, result = by_hand(tmp_path, encoder, candidates="detector", no_boxes=no_boxes)
    assert values == {"accuracy": accuracy}
    assert result.counts["candidates"] == candidates
    assert result.counts["sentences without a candidate"] == 1 - candidates
    assert ("predicted_box" in result.items[0]) == bool(candidates)


def test_boxes_are_cut_at_the_photo_and_those_outside_are_counted(tmp_path):
    width, height = RECORD["width"], RECORD["height"]
    boxes = [[-50, -50, 100, 100], [width - 20.5, height - 20, 30, 40], [width + 5, 0, 20, 20], [5, 5, 0, 30]]
    write_one(tmp_path, ROW, [("cup", "cup")], {IMAGE_ID: boxes})
    benchmark = RefCoco(tmp_path, protocol(source="reclip", candidates="detector", masks="box"))
    benchmark.load()
    shown = [region.box for region in benchmark.candidates[IMAGE_ID]]
    assert shown == [(0, 0, 50, 50), (width - 20.5, height - 20, width, height)]
    assert benchmark.counts["candidates left out, no area within the image"] == 2
    # The overlap is that of the boxes as they were detected, a quarter, and not of what is shown.
    assert benchmark.right[0].tolist() == [False, False]


# ------------------------------------------------------------------------------------------------ masks


def test_annotations_are_shown_by_their_mask_or_their_box(folder):
    records = {int(record["image_id"]): record for record in heldout_records()}
    for source in ("unc", "reclip"):
        shown = {}
        for masks in ("annotation", "box"):
            benchmark = RefCoco(folder, protocol(masks=masks, source=source))
            benchmark.load()
            shown[masks] = benchmark.candidates
        for image_id, regions in shown["annotation"].items():
            record = records[image_id]
            size = record["height"], record["width"]
            assert len(regions) == len(record["regions"])
            for region, of_box, expected in zip(regions, shown["box"][image_id], record["regions"], strict=True):
                assert np.array_equal(to_mask(region.mask, *size), to_mask(expected["mask"], *size))
                assert of_box.mask is None and region.box == of_box.box


def test_sam2_makes_masks_of_the_boxes(folder, tmp_path):
    from processing_pixclip.image_reading import read_image
    from processing_pixclip.longgrit.box_masks import BoxMasks

    tiny_sam2().save_pretrained(tmp_path / "sam2")
    fields = {"masks": "sam2", "mask_model": str(tmp_path / "sam2"), "limit": 6}
    for candidates in ("detector", "ground-truth"):
        benchmark = RefCoco(folder, protocol(candidates=candidates, **fields))
        benchmark.load()
        maker = BoxMasks(tiny_sam2())
        nothing = 0
        for regions in filter(None, benchmark.candidates.values()):
            picture = read_image(regions[0].image.path, "photo")
            (masks,) = maker.segment([picture], [[region.box for region in regions]])
            for region, mask in zip(regions, masks, strict=True):
                nothing += not mask.any()
                found = np.zeros_like(mask) if region.mask is None else to_mask(region.mask, *mask.shape) > 0
                # Logits next to the threshold may fall on either side.
                assert (found == mask).mean() > 0.999
        assert benchmark.counts["candidates shown as boxes, SAM 2 found nothing in them"] == nothing
        assert len(benchmark.candidates) == 6


def test_sam2_without_its_packages_says_what_to_install(folder, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pydantic" or name.startswith("pydantic."):
            raise ImportError("No module named 'pydantic'")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("processing_pixclip.longgrit")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r'refcoco: masks is \'sam2\'.*pip install "pixclip\[longgrit\]"'):
        RefCoco(folder, protocol(masks="sam2", limit=1)).load()


def test_detected_boxes_have_no_annotated_masks(folder):
    with pytest.raises(
        ValueError, match="masks is 'annotation'.*accepted with candidates=detector are 'box' and 'sam2'"
    ):
        RefCoco(folder, protocol(candidates="detector"))


# ------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize(
    ("fields", "missing", "source"),
    [
        ({}, "{0}/refs({1}).p", "lichengunc/refer"),
        ({}, "{0}/instances.json", "lichengunc/refer"),
        ({"source": "reclip"}, "reclip_data/{0}_val.jsonl", "allenai/reclip"),
        ({"source": "reclip"}, "{0}/instances.json", "lichengunc/refer"),
        ({"candidates": "detector", "masks": "box"}, "reclip_data/{0}_dets_dict.json", "allenai/reclip"),
        ({}, "train2014", "https://cocodataset.org/#download"),
    ],
)
def test_a_missing_file_is_named_with_its_source(tmp_path, benchmark, fields, missing, source):
    WRITERS[benchmark](tmp_path)
    path = tmp_path / missing.format(benchmark.name, "umd" if benchmark is RefCocoG else "unc")
    path.rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError) as error:
        RefCoco.load(benchmark(tmp_path, protocol(benchmark, **fields)))
    assert str(path) in str(error.value) and source in str(error.value)
    assert str(error.value).count("\n") == 1


def test_only_the_files_of_the_protocol_are_needed(tmp_path):
    write_refcoco(tmp_path)
    shutil.rmtree(tmp_path / "refcoco")
    fields = {"source": "reclip", "masks": "box"}
    measured(RefCoco, tmp_path, RandomEncoder(), **fields, candidates="detector")
    (tmp_path / "reclip_data" / "refcoco_dets_dict.json").unlink()
    measured(RefCoco, tmp_path, RandomEncoder(), **fields)


def test_splits_are_those_of_the_file_whatever_the_case_of_its_name(folder, tmp_path):
    counts = {}
    for source in ("unc", "reclip"):
        for split in ("val", "testA", "testB"):
            benchmark = RefCoco(folder, protocol(source=source, split=split))
            benchmark.load()
            counts[source, split] = benchmark.counts
            assert benchmark.dataset == f"RefCOCO {split}"
    assert all(counts["unc", split] == counts["reclip", split] for split in ("val", "testA", "testB"))
    assert sum(counts["unc", split]["images"] for split in ("val", "testA", "testB")) <= len(heldout_records())
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    lines = tmp_path / "reclip_data" / "refcoco_testa.jsonl"
    lines.rename(lines.with_name("refcoco_testA.jsonl"))
    benchmark = RefCoco(tmp_path, protocol(source="reclip", split="testA"))
    benchmark.load()
    assert benchmark.counts == counts["reclip", "testA"]
    with pytest.raises(ValueError, match="split is 'testA'; accepted is one of 'val', 'test'"):
        protocol(RefCocoG, split="testA")


def test_photos_of_2017_are_those_of_2014(folder, tmp_path):
    expected, _ = measured(RefCoco, folder, RandomEncoder(), limit=5)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "images").mkdir()
    (tmp_path / "train2014").rename(tmp_path / "images" / "train2017")
    for path in (tmp_path / "images" / "train2017").iterdir():
        path.rename(path.with_name(path.name.removeprefix("COCO_train2014_")))
    _, result = measured(RefCoco, tmp_path, RandomEncoder(), limit=5)
    # Keys are other ones, and so are vectors that are drawn by them.
    assert result.figures["accuracy"].count > 0
    assert all(key.startswith("images/train2017/0000") for key in result.images)
    assert set(result.images) == {item["image"] for item in result.items}


def test_missing_photos_are_an_error_or_counted(tmp_path):
    write_refcoco(tmp_path)
    paths = sorted((tmp_path / "train2014").iterdir())
    for path in paths[: len(paths) // 2]:
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"image files are missing.*COCO_train2014_.*skip_missing=true"):
        RefCoco(tmp_path, protocol()).load()
    _, result = measured(RefCoco, tmp_path, RandomEncoder(), skip_missing="true")
    counts = result.counts
    assert counts["images left out, file missing"] > 0 and counts["images"] > 0
    assert counts["images"] + counts["images left out, file missing"] == 35
    assert result.figures["accuracy"].count == counts["sentences"]


def test_limit_takes_the_first_photos(folder):
    whole, some = (RefCoco(folder, protocol(limit=limit)) for limit in ("none", "3"))
    whole.load()
    some.load()
    assert list(some.candidates) == list(whole.candidates)[:3]
    assert some.expressions == [each for each in whole.expressions if each.image_id in some.candidates]


class Danger:
    def __reduce__(self):
        return (eval, ("1 + 1",))


@pytest.mark.parametrize("value", [Danger(), np.float64(1), {1, 2}.union, Fraction(1, 2)])
def test_pickles_hold_plain_values_alone(tmp_path, value):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([{"split": value}], protocol=2))
    with pytest.raises(
        ValueError, match=r"refs\(unc\).p cannot be read as a pickle of plain values: it holds .*run code"
    ):
        load_plain_pickle(path)


def test_pickles_of_python_2_are_read(tmp_path):
    path = tmp_path / "refs(unc).p"
    # [{'raw': 'caf\xe9', u'n': 3L}], by the protocols 0 and 2 of Python 2.
    for content in (
        b"(lp0\n(dp1\nS'raw'\np2\nS'caf\\xe9'\np3\nsVn\np4\nL3L\nsa.",
        b"\x80\x02]q\x00}q\x01(U\x03rawq\x02U\x04caf\xe9q\x03X\x01\x00\x00\x00nq\x04\x8a\x01\x03ua.",
    ):
        path.write_bytes(content)
        assert load_plain_pickle(path) == [{"raw": "café", "n": 3}]
    path.write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match="cannot be read as a pickle"):
        load_plain_pickle(path)


def unc_files(folder, change_ref=None, change_instances=None):
    refs = [
        {
            "ref_id": 7,
            "image_id": 1,
            "ann_id": 11,
            "split": "val",
            "sentences": [{"sent_id": 3, "raw": "The Cup", "sent": "the cup"}],
        }
    ]
    square = [[0, 0, 10, 0, 10, 10, 0, 10]]
    instances = {
        "images": [{"id": 1, "width": 40, "height": 30, "file_name": "1.jpg"}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [
            {"id": 11, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "segmentation": square, "iscrowd": 0},
            {"id": 12, "image_id": 1, "category_id": 1, "bbox": [5, 5, 8, 9], "segmentation": [[1, 1, 2, 2]]},
            {
                "id": 13,
                "image_id": 1,
                "category_id": 1,
                "bbox": [0, 0, 40, 30],
                "segmentation": {"size": [30, 40], "counts": [0, 1200]},
                "iscrowd": 1,
            },
        ],
    }
    (change_ref or (lambda refs: None))(refs)
    (change_instances or (lambda instances: None))(instances)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(instances))
    return folder / "refs(unc).p", folder / "instances.json"


def test_objects_of_a_photo_are_its_annotations_without_groups(tmp_path):
    data = read_unc(*unc_files(tmp_path), "val", "sent")
    (expression,) = data.expressions
    assert (expression.key, expression.text, expression.referred) == ("7#3", "the cup", (11,))
    first, second = data.objects[1]
    assert first.box == (0, 0, 10, 10) and first.mask is not None
    # A polygon of two points is no mask; its object stays a candidate.
    assert second.box == (5, 5, 13, 14) and second.mask is None
    assert data.left_out == {"objects left out, crowd": 1}
    # A group to which a sentence refers is a candidate.
    data = read_unc(*unc_files(tmp_path, lambda refs: refs[0].update(ann_id=13)), "val", "raw")
    assert [each.annotation_id for each in data.objects[1]] == [11, 12, 13] and not data.left_out
    assert to_mask(data.objects[1][2].mask, 30, 40).all()


@pytest.mark.parametrize(
    ("ref", "instances", "message"),
    [
        (lambda refs: refs[0].pop("ann_id"), None, r"reference 0: key 'ann_id' is missing"),
        (lambda refs: refs.append(3), None, r"reference 1 is 3; accepted is an object"),
        (lambda refs: refs[0].update(sentences="cup"), None, r"'sentences' is 'cup'; accepted is a list"),
        (lambda refs: refs[0]["sentences"][0].pop("raw"), None, r"sentences\[0\]: key 'raw' is missing"),
        (lambda refs: refs[0]["sentences"][0].update(raw=" "), None, r"key 'raw' is ' '; accepted is a sentence"),
        (lambda refs: refs[0].update(split="train"), None, r"no reference of the split 'val'; it has \{'train': 1\}"),
        (lambda refs: refs[0].update(ann_id=99), None, r"lists no annotation 99, to which expression 7#3 refers"),
        (lambda refs: refs[0].update(image_id=2), None, r"lists no image 2"),
        (lambda refs: refs[0].update(image_id=None), None, r"'image_id' is None; accepted is the id of an image"),
        (None, lambda content: content["images"][0].pop("width"), r"key 'width' is missing"),
        (
            None,
            lambda content: content["annotations"][0].update(bbox=[1, 2, 3]),
            r"annotation 11: key 'bbox' is \[1, 2",
        ),
    ],
)
def test_malformed_entries_are_named(tmp_path, ref, instances, message):
    with pytest.raises(ValueError, match=message):
        read_unc(*unc_files(tmp_path, ref, instances), "val", "raw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ann_id": 9}, r"line 1: key 'ann_id' is \[9\]; accepted are ids of its 'anns', \[5, 6\]"),
        ({"ann_id": []}, r"line 1: key 'ann_id' is \[\]"),
        ({"anns": [{"id": 5}]}, r"anns\[0\]: key 'bbox' is missing"),
        ({"anns": [{"id": 5, "bbox": [0, 0, -1, 4]}]}, r"key 'bbox' is \[0, 0, -1, 4\]; accepted is \[x, y, width"),
        ({"sentences": []}, r"key 'sentences' is empty"),
    ],
)
def test_malformed_lines_are_named(tmp_path, change, message):
    anns = [{"id": 5, "bbox": [0, 0, 5, 5]}, {"id": 6, "bbox": [5, 5, 5, 5]}]
    entry = {"image_id": "1", "ann_id": [5, 6], "anns": anns, "sentences": [{"raw": "cups"}]}
    path = tmp_path / "refcoco_val.jsonl"
    path.write_text(json.dumps(entry) + "\n\n")
    data = read_reclip(path, "raw")
    assert data.expressions[0].referred == (5, 6) and list(data.objects) == [1]
    path.write_text(json.dumps({**entry, **change}) + "\n")
    with pytest.raises(ValueError, match=message):
        read_reclip(path, "raw")


def test_lines_of_one_photo_have_the_same_candidates_in_any_order(tmp_path):
    anns = [{"id": 5, "bbox": [0, 0, 5, 5]}, {"id": 6, "bbox": [5, 5, 5, 5]}]
    # A separator of lines that JSON may have within texts, and a byte order mark.
    lines = [{"image_id": 1, "ann_id": 5, "anns": anns, "sentences": [{"raw": "red\u2028cup"}]}]
    lines.append({**lines[0], "ann_id": 6, "anns": anns[::-1]})
    path = tmp_path / "refcoco_val.jsonl"

    def write():
        path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines), encoding="utf-8-sig")

    write()
    data = read_reclip(path, "raw")
    assert [each.referred for each in data.expressions] == [(5,), (6,)]
    assert [each.annotation_id for each in data.objects[1]] == [5, 6]
    for other in (anns[1:], [anns[1], {"id": 5, "bbox": [0, 0, 5, 6]}], [*anns, {"id": 7, "bbox": [0, 0, 1, 1]}]):
        lines[1]["anns"] = other
        write()
        with pytest.raises(ValueError, match="line 2: its 'anns' are others than those of an earlier line of image 1"):
            read_reclip(path, "raw")


def test_detections_are_a_dict_or_a_list(tmp_path):
    path = tmp_path / "dets.json"
    path.write_text(json.dumps({"7": [[1, 2, 3, 4], [0, 0, 5, 5]], "8": []}))
    assert read_detections(path) == {7: [(1, 2, 4, 6), (0, 0, 5, 5)], 8: []}
    path.write_text(json.dumps([{"image_id": 7, "box": [1, 2, 3, 4]}, {"image_id": 7, "box": [0, 0, 5, 5]}]))
    assert read_detections(path) == {7: [(1, 2, 4, 6), (0, 0, 5, 5)]}
    for content, message in (
        ("{", "is not JSON"),
        ('{"a": []}', "key 'a' is 'a'; accepted is the id of an image"),
        ('{"7": [[1, 2, 3]]}', r"key '7' is \[1, 2, 3\]; accepted is \[x, y, width, height\]"),
        ("3", "dets.json is 3; accepted is a list"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_detections(path)


# ------------------------------------------------------------------------------------------------ presets


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_presets_are_those_of_the_facts(benchmark):
    assert list(benchmark.presets) == ["default", "official-pixclip", "detector-boxes"]
    assert all(name == preset.name for name, preset in benchmark.presets.items())
    official = benchmark.presets["official-pixclip"].to_dict()
    expected = {
        "source": "reclip",
        "candidates": "detector",
        "iou": 0.5,
        "masks": "sam2",
        "views": [PAIR],
        "prompt": "a photo of {}",
        "expression": "raw",
        "parser": True,
        "no_boxes": "whole image",
    }
    assert expected.items() <= official.items()
    default = benchmark.presets["default"].to_dict()
    assert (default["candidates"], default["masks"], default["parser"]) == ("ground-truth", "annotation", False)


def test_the_official_preset_runs_and_multiplies_the_parse(folder, tmp_path):
    model = tiny_sam2()
    model.save_pretrained(tmp_path / "sam2")
    fields = {"mask_model": str(tmp_path / "sam2"), "limit": 5, "bootstrap": 0}
    own = RefCoco(folder, RefCoco.presets["official-pixclip"].changed(fields))
    result = own.evaluate(quiet(told(own)))
    assert result.figures["accuracy without the parser"].value == pytest.approx(
        result.counts["sentences with a right candidate"] / result.counts["sentences"]
    )
    assert result.counts["sentences without a candidate"] == 0
    assert all("predicted_mask" in item or "predicted_box" in item for item in result.items)
    # The result says which SAM, and not where it lies.
    assert str(tmp_path) not in result.to_json()
    assert result.protocol["mask_model"] == "sam2" and result.protocol["mask_model_sha256"] == weights_hash(model)


def test_a_folder_of_the_machine_is_not_told(folder):
    _, result = measured(RefCoco, folder, RandomEncoder(), mask_model="/home/me/models/sam", limit=2)
    assert "/home/me" not in result.to_json() and result.protocol["mask_model"] == "sam"


@pytest.mark.parametrize("iou", ["1", "1.5", "-0.5"])
def test_an_overlap_that_nothing_can_exceed_is_refused(iou):
    with pytest.raises(ValueError, match="iou is"):
        protocol(iou=iou)
