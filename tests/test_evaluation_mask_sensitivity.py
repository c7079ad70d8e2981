# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Mask sensitivity: figures of models whose use of the mask is known, on real photos and masks."""

import json
from dataclasses import replace

import numpy as np
import pytest
from evaluation_for_tests import SHARED, RandomEncoder, ToldEncoder, heldout_records
from layouts_fine_grained import write_mask_sensitivity
from PIL import Image, ImageFilter

from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.mask_jitter import dilate, erode, erode_some, fit_mask, shift, shift_by_share
from processing_pixclip.evaluation.mask_sensitivity import MaskSensitivity
from processing_pixclip.evaluation.region_views import region_mask
from processing_pixclip.evaluation.scores import NOT_SHOWN
from processing_pixclip.regions import encode_rle, mask_to_box, to_mask


DEFAULT = MaskSensitivity.presets["default"]
QUICK = replace(DEFAULT, bootstrap=0)
VARIANTS = ["dilated 10 %", "eroded 10 %", "shifted 10 %", "shifted 20 %", "box for mask"]
COUNT = 16
RIGHT = "right region of two"
WRONG = ["another region's mask", "another photo's mask", "no mask", "all-ones mask"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("mask-sensitivity") / "data"
    write_mask_sensitivity(path, image_count=COUNT)
    return path


def features(encoder):
    return FeatureExtractor(encoder, progress=False)


def measure(folder, encoder, protocol=QUICK):
    return MaskSensitivity(folder, protocol).evaluate(features(encoder))


def cosine(one, other):
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


def told(benchmark, variants=VARIANTS, kind=ToldEncoder):
    """Knows each region under its mask, and under inexact ones."""
    benchmark.load()
    regions = {}
    for described in benchmark.regions:
        for key in ("", *(f"|{variant}" for variant in variants)):
            regions[described.region.key + key] = described.text
    return kind(texts={text: text for text in regions.values()}, regions=regions)


class BlindEncoder(RandomEncoder):
    """Does not look at the mask."""

    def region_vector(self, region, view):
        return self.draw("image", region.image.key)


class ColourEncoder(RandomEncoder):
    """Sees a coarse histogram of the colours under the mask: a model that uses its mask."""

    views = ("full+mask", "full")

    def encode_regions(self, images, regions, view):
        rows = []
        for image, group in zip(images, regions, strict=True):
            codes = (np.asarray(image).astype(np.int64) // 64) @ [16, 4, 1]
            for region in group:
                mask = region_mask(region, image.height, image.width) if view == "full+mask" else np.ones(codes.shape)
                rows.append(np.bincount(codes.ravel(), mask.ravel(), minlength=64)[:64].astype(np.float32))
        return np.stack(rows)

    def encode_images(self, images):
        return self.encode_regions(images, [[None]] * len(images), "full")

    def text_vector(self, text, kind):
        return self.draw("text", text)[:64]


class TextsOfCategories(ColourEncoder):
    """Knows of each class the mean colours of its regions: a model that is right sometimes, and by its mask."""

    def __init__(self, folder):
        super().__init__()
        benchmark = MaskSensitivity(folder, QUICK)
        benchmark.load()
        vectors = {}
        for described in benchmark.regions:
            image = Image.open(described.region.image.path).convert("RGB")
            vector = self.encode_regions([image], [[described.region]], "full+mask")[0]
            vectors.setdefault(described.text, []).append(vector / np.linalg.norm(vector))
        self.texts = {text: np.mean(some, axis=0) for text, some in vectors.items()}

    def text_vector(self, text, kind):
        return self.texts[text]


def test_figures_are_those_of_a_plain_loop(folder):
    benchmark, encoder = MaskSensitivity(folder, DEFAULT), RandomEncoder()
    result = benchmark.evaluate(features(encoder))
    scores = {name: [] for name in (RIGHT, "cosine")}
    for pair in benchmark.pairs:
        (first, second) = [benchmark.regions[index] for index in pair]
        texts = [encoder.text_vector(described.text, "region") for described in (first, second)]
        vectors = [encoder.region_vector(described.region, "full+mask") for described in (first, second)]
        for this in (0, 1):
            scores[RIGHT].append(cosine(texts[this], vectors[this]) > cosine(texts[this], vectors[1 - this]))
        scores["cosine"].append(cosine(*vectors))
    value = result.figures[RIGHT].value
    assert value == pytest.approx(np.mean(scores[RIGHT]))
    assert result.figures["two regions: cosine"].value == pytest.approx(np.mean(scores["cosine"]), abs=1e-6)
    for variant in ("dilated 10 %", "shifted 20 %"):
        cosines = []
        for described in benchmark.regions:
            changed = described.variant(variant, described.region.mask)
            vectors = [encoder.region_vector(region, "full+mask") for region in (described.region, changed)]
            cosines.append(cosine(*vectors))
        assert result.figures[f"{variant}: cosine"].value == pytest.approx(np.mean(cosines), abs=1e-6)
    assert result.figures[RIGHT].count == len(benchmark.pairs) == result.counts["pairs"]
    assert result.figures[RIGHT].low < value < result.figures[RIGHT].high
    assert [item["correct"] for item in result.items] == scores[RIGHT]
    assert result.main_figure == RIGHT
    assert set(result.images) == {item["image"] for item in result.items}


def test_controls_are_those_of_a_plain_loop(folder):
    """With real pictures of the wrong masks: the vectors are computed here anew."""
    benchmark, encoder = MaskSensitivity(folder, QUICK), TextsOfCategories(folder)
    result = benchmark.evaluate(features(encoder))
    texts = sorted({described.text for described in benchmark.regions})
    right = {name: [] for name in ("own", *WRONG)}

    def is_right(described, *masks):
        image = Image.open(described.region.image.path).convert("RGB")
        regions = [described.variant("test", encode_rle(mask)) for mask in masks]
        vectors = encoder.encode_regions([image], [regions], "full+mask")
        found = [max(texts, key=lambda text: cosine(vector, encoder.texts[text])) for vector in vectors]
        return np.mean([text == described.text for text in found])

    strange = benchmark._masks()["another photo's mask"]
    for number, described in enumerate(benchmark.regions):
        partners = [
            benchmark.regions[pair[1 - list(pair).index(number)]] for pair in benchmark.pairs if number in pair
        ]
        assert all(partner.region.image == described.region.image for partner in partners)
        right["own"].append(is_right(described, described.decoded()))
        right["another region's mask"].append(is_right(described, *(partner.decoded() for partner in partners)))
        right["another photo's mask"].append(is_right(described, to_mask(strange[number].mask, *described.size) > 0))
        for name in ("no mask", "all-ones mask"):
            right[name].append(is_right(described, np.ones(described.size, dtype=bool)))
    figures = result.figures
    assert figures["right text"].value == pytest.approx(np.mean(right["own"]))
    assert figures["right text"].chance == 1 / len(texts) == 1 / result.counts["texts"]
    for name in WRONG:
        assert figures[f"{name}: right text"].value == pytest.approx(np.mean(right[name])), name
        assert figures[f"{name}: right text"].chance == 1 / len(texts)
        gain = figures[f"gain over {name}"]
        assert gain.value == pytest.approx(np.mean(right["own"]) - np.mean(right[name])) and gain.value > 0.1
        assert (gain.chance, gain.count) == (0, len(benchmark.regions))
    # None is decided by the others: in a model that is right sometimes, and sometimes without its mask, all differ.
    assert 0 < figures["another region's mask: right text"].value < figures["no mask: right text"].value
    assert len({round(figures[f"{name}: right text"].value, 6) for name in WRONG[:3]}) == 3


def test_masks_of_another_photo_are_of_one_and_drawn_by_the_seed(folder):
    drawn = []
    for seed in (0, 1):
        benchmark = MaskSensitivity(folder, replace(QUICK, seed=seed, max_pairs=1))
        benchmark.load()
        donors = []
        for described, region in zip(benchmark.regions, benchmark._masks()["another photo's mask"], strict=True):
            assert region.image == described.region.image
            mask = to_mask(region.mask, *described.size) >= 0.5
            found = [
                other.region.image.key
                for other in benchmark.regions
                if np.array_equal(fit_mask(other.decoded(), *described.size), mask)
            ]
            assert found and described.region.image.key not in found
            donors.append(found[0])
        drawn.append(donors)
    assert drawn[0] != drawn[1] and len(set(drawn[0])) > COUNT / 2


def test_every_figure_is_there(folder):
    names = [RIGHT, "right text", *(f"{name}: right text" for name in WRONG), *(f"gain over {name}" for name in WRONG)]
    names += ["two regions: cosine", *(f"{name}: cosine" for name in WRONG[1:]), "all-ones mask to no mask: cosine"]
    for variant in VARIANTS:
        names += [f"{variant}: {RIGHT}", f"{variant}: cosine"]
    assert list(measure(folder, RandomEncoder()).figures) == names
    # There is no other photo.
    of_one = measure(folder, RandomEncoder(), replace(QUICK, limit=1)).figures
    assert list(of_one) == [name for name in names if "another photo's mask" not in name]


def test_a_region_of_which_the_frame_shows_nothing_is_wrong(folder):
    def is_hidden(region):
        return sum(map(ord, region.key.partition("|")[0])) % 3 == 0

    class Cropping(RandomEncoder):
        def region_vector(self, region, view):
            return super().region_vector(region, view) * (not is_hidden(region))

    class ToldAndCropping(ToldEncoder):
        def region_vector(self, region, view):
            return super().region_vector(region, view) * (not is_hidden(region))

    benchmark = MaskSensitivity(folder, QUICK)
    result, full = benchmark.evaluate(features(Cropping())), measure(folder, RandomEncoder())
    hidden = np.array([is_hidden(described.region) for described in benchmark.regions])
    assert result.counts[NOT_SHOWN] == result.counts[f"dilated 10 %: {NOT_SHOWN}"] == hidden.sum() > 3
    assert full.counts[NOT_SHOWN] == 0
    right = np.array([item["correct"] for item in full.items]).reshape(-1, 2)
    of_pairs = hidden[benchmark.pairs]
    # What is not shown is not chosen, be it the right one or the wrong one.
    expected = np.where(of_pairs, False, np.where(of_pairs[:, ::-1], True, right))
    assert [item["correct"] for item in result.items] == expected.ravel().tolist()
    assert result.figures[RIGHT].value == pytest.approx(expected.mean())
    both = ~of_pairs.any(axis=1)
    vectors = [Cropping().region_vector(described.region, "full+mask") for described in benchmark.regions]
    found = [cosine(vectors[first], vectors[second]) for first, second in benchmark.pairs[both]]
    assert result.figures["two regions: cosine"].value == pytest.approx(np.mean(found), abs=1e-6)
    assert result.figures["two regions: cosine"].count == both.sum()
    figures = benchmark.evaluate(features(told(benchmark, kind=ToldAndCropping))).figures
    assert figures["right text"].value == pytest.approx(1 - hidden.mean())


def test_intervals_draw_photos(folder):
    protocol = replace(DEFAULT, bootstrap=400, max_pairs=100)
    benchmark = MaskSensitivity(folder, protocol)
    result = benchmark.evaluate(features(RandomEncoder()))
    generator, by_photo = np.random.default_rng(7), {}
    for item in result.items:
        by_photo.setdefault(item["image"], []).append(item["correct"])
    photos = list(by_photo.values())
    means = []
    for _ in range(2000):
        drawn = [photos[place] for place in generator.integers(len(photos), size=len(photos))]
        means.append(np.mean([value for photo in drawn for value in photo]))
    low, high = np.quantile(means, [0.025, 0.975])
    figure = result.figures[RIGHT]
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_results_of_one_seed_are_equal_and_another_draws_other_pairs(folder):
    results = [measure(folder, RandomEncoder(), replace(DEFAULT, bootstrap=50)) for _ in range(2)]
    assert results[0].to_json() == results[1].to_json()
    pairs = []
    for seed in (0, 1):
        benchmark = MaskSensitivity(folder, replace(QUICK, seed=seed))
        benchmark.load()
        pairs.append([[benchmark.regions[index].region.key for index in pair] for pair in benchmark.pairs])
    assert pairs[0] != pairs[1] and len(pairs[0]) == len(pairs[1])


def test_a_model_that_knows_nothing_is_at_chance(folder):
    results = [measure(folder, RandomEncoder(seed)) for seed in range(5)]
    for name, figure in results[0].figures.items():
        if figure.chance is not None:
            # The two decisions of a pair count as one, which is more than enough.
            error = 0.5 / np.sqrt(figure.count * len(results))
            assert abs(np.mean([result.figures[name].value for result in results]) - figure.chance) < 4 * error, name


@pytest.mark.parametrize("preset", MaskSensitivity.presets)
def test_a_model_that_is_told_the_answers_has_all_right(folder, preset):
    benchmark = MaskSensitivity(folder, replace(MaskSensitivity.presets[preset], bootstrap=0))
    result = benchmark.evaluate(features(told(benchmark)))
    values = {name: figure.value for name, figure in result.figures.items()}
    assert values[RIGHT] == values["right text"] == 1.0
    # The mask of another region shows the other text.
    assert values["another region's mask: right text"] == 0.0
    assert values["gain over another region's mask"] == 1.0
    for name in WRONG[1:]:
        assert values[f"{name}: right text"] < 0.5 and values[f"gain over {name}"] > 0.5
    assert abs(values["two regions: cosine"]) < 0.1
    for variant in VARIANTS:
        assert values[f"{variant}: {RIGHT}"] == 1.0
        assert values[f"{variant}: cosine"] == pytest.approx(1)


def test_a_model_that_ignores_its_mask_is_found_out(folder):
    """And knows each photo: its vector is that of the text of one of its regions."""

    class Blind(BlindEncoder):
        def region_vector(self, region, view):
            return self.draw("text", main[region.image.key])

    benchmark = MaskSensitivity(folder, replace(DEFAULT, bootstrap=50))
    benchmark.load()
    main = {described.region.image.key: described.text for described in reversed(benchmark.regions)}
    figures = benchmark.evaluate(features(Blind())).figures
    share = np.mean([main[described.region.image.key] == described.text for described in benchmark.regions])
    assert share > 0.3
    for name, figure in figures.items():
        if name.startswith("gain"):
            assert figure.value == 0 and -0.5 < figure.low == -figure.high < 0, name
        elif name.endswith("right text"):
            assert figure.value == pytest.approx(share), name
        else:
            assert figure.value == pytest.approx(0.5 if RIGHT in name else 1.0), name


def test_inexact_masks_reach_the_model(folder):
    benchmark, encoder = MaskSensitivity(folder, replace(QUICK, limit=4)), ColourEncoder()
    figures = benchmark.evaluate(features(encoder)).figures
    expected = {variant: [] for variant in ("box for mask", "dilated 10 %", "all-ones mask")}
    for described in benchmark.regions:
        image, mask = Image.open(described.region.image.path).convert("RGB"), described.decoded()
        radius = max(1, round(0.1 * np.sqrt(mask.sum())))
        left, top, right, bottom = mask_to_box(mask).astype(int)
        box = np.zeros_like(mask)
        box[top:bottom, left:right] = True
        masks = {"box for mask": box, "dilated 10 %": dilate(mask, radius), "all-ones mask": np.ones_like(mask)}
        regions = [described.variant(name, encode_rle(changed)) for name, changed in masks.items()]
        true, *changed = encoder.encode_regions([image], [[described.region, *regions]], "full+mask")
        for name, vector in zip(masks, changed, strict=True):
            expected[name].append(cosine(true, vector))
    for name, cosines in expected.items():
        assert figures[f"{name}: cosine"].value == pytest.approx(np.mean(cosines), abs=1e-5)
    # A model that pools colours sees little of a moved edge and much of the whole photo.
    assert figures["two regions: cosine"].value < figures["all-ones mask: cosine"].value < 0.9
    for variant in ("dilated 10 %", "eroded 10 %", "shifted 10 %"):
        assert figures["all-ones mask: cosine"].value < figures[f"{variant}: cosine"].value < 0.999
    assert figures["shifted 20 %: cosine"].value < figures["shifted 10 %: cosine"].value
    assert figures["all-ones mask to no mask: cosine"].value == pytest.approx(1)
    assert figures["no mask: cosine"].value == pytest.approx(figures["all-ones mask: cosine"].value)


def test_no_mask_is_the_whole_image_where_there_is_no_such_view(folder):
    class WithoutFull(ColourEncoder):
        views = ("full+mask",)

    few = QUICK.changed({"limit": 3})
    full, whole = (measure(folder, encoder(), few).figures for encoder in (ColourEncoder, WithoutFull))
    assert whole["no mask: cosine"].value == pytest.approx(full["no mask: cosine"].value)
    assert whole["no mask: right text"] == full["no mask: right text"]


def test_equals(folder):
    class Same(BlindEncoder):
        def text_vector(self, text, kind):
            return self.draw("text")

    figures = measure(folder, Same()).figures
    assert figures[RIGHT].value == 0.5 and figures["right text"].value == 0
    # Rounding makes no difference.

    class Noisy(BlindEncoder):
        def region_vector(self, region, view):
            return super().region_vector(region, view) + 1e-7 * self.draw(region.key)

    assert measure(folder, Noisy()).figures[RIGHT].value == 0.5


def test_pairs_are_of_different_texts_and_not_too_many(folder):
    for most in (1, 3, 100):
        benchmark = MaskSensitivity(folder, replace(QUICK, max_pairs=most))
        benchmark.load()
        by_photo = {}
        for pair in benchmark.pairs:
            first, second = [benchmark.regions[index] for index in pair]
            assert first.region.image == second.region.image and first.text != second.text
            by_photo.setdefault(first.region.image.key, set()).add((first.region.key, second.region.key))
        wanted = {}
        for record in heldout_records(COUNT):
            names = [region["category"] for region in record["regions"]]
            different = sum(one != other for place, one in enumerate(names) for other in names[:place])
            if different:
                wanted["val2017/" + record["image"].removeprefix("images/")] = min(most, different)
        assert {key: len(pairs) for key, pairs in by_photo.items()} == wanted
        # All that is shown is in a pair.
        assert set(benchmark.pairs.ravel().tolist()) == set(range(len(benchmark.regions)))


def test_texts_template_and_least_share(folder):
    texts = {}
    for name, protocol in {
        "class": replace(QUICK, template="one {} here"),
        "class in braces": replace(QUICK, template="{one} {} here"),
        "object": replace(MaskSensitivity.presets["object-texts"], min_share=0.05),
        "long": MaskSensitivity.presets["long-texts"],
        "class of records": replace(MaskSensitivity.presets["long-texts"], texts="category"),
    }.items():
        benchmark = MaskSensitivity(folder, protocol)
        benchmark.load()
        texts[name] = {described.text for described in benchmark.regions}
        if name == "object":
            assert min(described.decoded().mean() for described in benchmark.regions) >= 0.05
            small = sum(
                to_mask(region["mask"], record["height"], record["width"]).mean() < 0.05
                for record in heldout_records(COUNT)
                for region in record["regions"]
            )
            assert benchmark.counts["regions left out, smaller than min_share"] == small > 0
    regions = [region for record in heldout_records(COUNT) for region in record["regions"]]
    assert texts["class"] <= {f"one {region['category']} here" for region in regions}
    assert texts["class in braces"] == {text.replace("one", "{one}", 1) for text in texts["class"]}
    assert texts["object"] <= {region["object_text"] for region in regions}
    assert texts["long"] <= {region["text"] for region in regions}
    assert texts["class of records"] == {f"a photo of a {text[4:-5]}." for text in texts["class"]}


def test_views_are_figures_of_their_own(folder):
    result = measure(folder, RandomEncoder(), replace(QUICK, views=("roi", "roi + blur+mask")))
    assert result.main_figure == f"roi: {RIGHT}"
    assert result.figures[f"roi: {RIGHT}"] != result.figures[f"roi + blur+mask: {RIGHT}"]
    assert len(result.figures) == 50
    assert list(result.protocol["view_summaries"]) == ["roi", "blur+mask"]
    alone = measure(folder, RandomEncoder(), replace(QUICK, views=("roi",)))
    assert alone.figures[RIGHT] == result.figures[f"roi: {RIGHT}"]


def test_limit_and_other_shares(folder):
    benchmark = MaskSensitivity(folder, replace(QUICK, limit=2, dilate=(0.05, 0.3), erode=(0.02,), shift=(0.5,)))
    result = benchmark.evaluate(features(ColourEncoder()))
    assert result.counts["images"] == 2
    names = [name.split(":")[0] for name in result.figures if name.endswith(f": {RIGHT}")]
    assert names[:-1] == ["dilated 5 %", "dilated 30 %", "eroded 2 %", "shifted 50 %"]
    assert result.figures["dilated 30 %: cosine"].value < result.figures["dilated 5 %: cosine"].value


def test_missing_and_malformed_files(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)instances_val2017\.json.*cocodataset\.org.*val2017"):
        MaskSensitivity(tmp_path).load()
    with pytest.raises(FileNotFoundError, match=r"regions\.jsonl.*RegionJsonlDataset"):
        MaskSensitivity(tmp_path, MaskSensitivity.presets["long-texts"]).load()
    lines = (folder / "regions.jsonl").read_text().splitlines()
    (tmp_path / "regions.jsonl").write_text("\n".join(lines[:3]) + "\n{\n")
    with pytest.raises(ValueError, match=r"regions\.jsonl, line 4 is not JSON"):
        MaskSensitivity(tmp_path, MaskSensitivity.presets["long-texts"]).load()
    record = json.loads(lines[0])
    del record["regions"][0]["mask"]
    (tmp_path / "regions.jsonl").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"line 1: regions\[0\] has neither a 'mask' nor a 'box'"):
        MaskSensitivity(tmp_path, MaskSensitivity.presets["long-texts"]).load()
    (tmp_path / "regions.jsonl").write_text("\n".join(lines[:3]))
    with pytest.raises(FileNotFoundError, match=r"3 image files are missing.*skip_missing"):
        MaskSensitivity(tmp_path, MaskSensitivity.presets["long-texts"]).load()
    (tmp_path / "images").mkdir()
    name = json.loads(lines[1])["image"]
    (tmp_path / name).symlink_to(folder / name)
    benchmark = MaskSensitivity(tmp_path, replace(MaskSensitivity.presets["long-texts"], skip_missing=True))
    benchmark.load()
    assert (benchmark.counts["images"], benchmark.counts["images left out, file missing"]) == (1, 2)
    with pytest.raises(ValueError, match="texts is 'text' with source 'coco'"):
        MaskSensitivity(folder, replace(QUICK, texts="text"))
    with pytest.raises(ValueError, match="limit"):
        MaskSensitivity(folder, replace(QUICK, limit=0)).load()
    with pytest.raises(ValueError, match="template is 'a dog'"):
        MaskSensitivity(folder, replace(QUICK, template="a dog"))
    with pytest.raises(ValueError, match="no pair of regions is left"):
        MaskSensitivity(folder, replace(QUICK, min_share=0.99)).load()


def test_dilate_and_erode_are_those_of_plain_filters():
    for record in heldout_records(3):
        mask = to_mask(record["regions"][0]["mask"], record["height"], record["width"]) >= 0.5
        for radius in (0, 1, 6):
            image = Image.fromarray(mask).convert("L")
            assert np.array_equal(
                dilate(mask, radius), np.asarray(image.filter(ImageFilter.MaxFilter(2 * radius + 1))) > 0
            )
            assert np.array_equal(
                erode(mask, radius), np.asarray(image.filter(ImageFilter.MinFilter(2 * radius + 1))) > 0
            )
    # Also where the radius is greater than the mask.
    assert dilate(np.eye(3, dtype=bool), 5).all() and not erode(np.eye(3, dtype=bool), 5).any()
    assert erode(np.ones((3, 4), dtype=bool), 5).all()


def test_erosion_leaves_something():
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:12, 3:17] = True
    eroded, radius = erode_some(mask, 8)
    assert radius == 2 and np.array_equal(eroded, erode(mask, 2))
    line = np.zeros((20, 20), dtype=bool)
    line[:, 4] = True
    assert erode_some(line, 8)[1] == 0 and np.array_equal(erode_some(line, 8)[0], line)


def test_a_mask_is_fitted_to_another_photo():
    mask = np.zeros((20, 30), dtype=bool)
    mask[4:10, 6:18] = True
    assert np.array_equal(fit_mask(mask, 40, 30), np.repeat(mask, 2, axis=0))
    assert np.array_equal(fit_mask(mask, 20, 30), mask)
    # One pixel of a large photo is left in a small one.
    point = np.zeros((400, 600), dtype=bool)
    point[399, 300] = True
    assert np.argwhere(fit_mask(point, 4, 6)).tolist() == [[3, 3]]


def test_shift_moves_the_region_within_the_photo():
    mask = np.zeros((10, 12), dtype=bool)
    mask[2:6, 1:9] = True
    for direction, (right, down) in enumerate([(4, 0), (0, 2), (-4, 0), (0, -2)]):
        moved = shift_by_share(mask, 0.5, direction)
        # To the left half of it would leave the photo.
        expected = (-right, down) if direction == 2 else (right, down)
        assert np.array_equal(moved, shift(mask, *expected)), direction
    assert np.array_equal(shift(mask, 0, 0), mask)
    assert not shift(mask, 12, 0).any() and not shift(mask, 0, -30).any()
    rolled = np.zeros_like(mask)
    rolled[3:7, 0:8] = True
    assert np.array_equal(shift(mask, -1, 1), rolled)
    with pytest.raises(ValueError, match="accepted is a smaller share"):
        shift_by_share(np.ones((4, 4), dtype=bool), 1.0, 0)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs coco-mini, beside the repository")
@pytest.mark.parametrize(("preset", "pairs"), [("default", 302), ("long-texts", 12)])
def test_all_photos_of_coco_mini(tmp_path, preset, pairs):
    write_mask_sensitivity(tmp_path / "data", SHARED)
    benchmark = MaskSensitivity(tmp_path / "data", replace(MaskSensitivity.presets[preset], bootstrap=0))
    result = benchmark.evaluate(features(told(benchmark)))
    assert result.counts["pairs"] == pairs
    assert result.figures[RIGHT].value == result.figures["right text"].value == 1.0
    assert result.figures["another region's mask: right text"].value == 0.0
    blind = measure(tmp_path / "data", BlindEncoder(), benchmark.protocol).figures
    assert blind[RIGHT].value == 0.5 and blind["two regions: cosine"].value == pytest.approx(1.0)
    assert {figure.value for name, figure in blind.items() if name.startswith("gain")} == {0.0}
