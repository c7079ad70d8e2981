# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Classification by foreground on folders of ImageNet-S's layout, of real photos."""

import numpy as np
import pytest
from evaluation_for_tests import SHARED, RandomEncoder, ToldEncoder, heldout_records
from layouts_classification import write_imagenet_s
from PIL import Image

from processing_pixclip.evaluation.class_prompts import TEMPLATES, class_texts
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.imagenet_s import ImageNetS
from processing_pixclip.regions import to_mask


PHOTOS = 12
FIGURES = {"top-1", "top-5", "top-1, mean per class", "top-5, mean per class"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Classes that are shown have numbers above 255, which take the green channel."""
    made = tmp_path_factory.mktemp("imagenet-s")
    write_imagenet_s(made, count=PHOTOS, unseen=280)
    return made


@pytest.fixture
def own(tmp_path):
    write_imagenet_s(tmp_path, count=3, size=50)
    return tmp_path


def changed(preset="default", **fields):
    return ImageNetS.presets[preset].changed({"bootstrap": 0, **fields})


def small(**fields):
    return changed(size=50, **fields)


def told_encoder(benchmark):
    benchmark.load()
    templates = TEMPLATES[benchmark.protocol.templates]
    texts = {text: name for name in benchmark.classes for text in class_texts(name, templates)}
    answers = (benchmark.classes[target] for target in benchmark.targets)
    return ToldEncoder(texts, {region.key: answer for region, answer in zip(benchmark.regions, answers, strict=True)})


def test_masks_are_the_pixels_of_the_folders_class(folder):
    benchmark = ImageNetS(folder)
    benchmark.load()
    records = {record["image_id"]: record for record in heldout_records(PHOTOS)}
    assert len(benchmark.regions) == PHOTOS and min(benchmark.targets) >= 280
    for region, target in zip(benchmark.regions, benchmark.targets, strict=True):
        record = records[str(int(region.image.path.stem))]
        size = record["height"], record["width"]
        found = to_mask(region.mask, *size) > 0
        masks = [(own["category"], to_mask(own["mask"], *size) > 0) for own in record["regions"]]
        category, largest = max(masks, key=lambda pair: pair[1].sum())
        assert benchmark.classes[target] == category
        assert not (largest & ~found).any()
        # Nothing of other classes, of the border that is to be ignored, or of the background.
        same = np.logical_or.reduce([mask for name, mask in masks if name == category])
        assert not (found & ~same).any()
        number = np.asarray(
            Image.open(
                str(region.image.path).replace("validation", "validation-segmentation").replace(".JPEG", ".png")
            )
        )
        assert (number[..., 0] + 256 * number[..., 1].astype(int) == target + 1).sum() == found.sum()
    assert benchmark.counts["classes"] == 280 + len(
        {r["category"] for record in records.values() for r in record["regions"]}
    )
    assert benchmark.dataset == "ImageNet-S-919 validation"


def test_names_are_the_first_of_the_mapping(folder):
    benchmark = ImageNetS(folder)
    benchmark.load()
    assert benchmark.classes[3] == "unseen thing 3"
    near = ImageNetS(folder, changed("near-alphaclip"))
    near.load()
    assert near.classes[3] == "unseen_thing_3"


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(name, marks=pytest.mark.slow if protocol.templates == "imagenet-80" else ())
        for name, protocol in ImageNetS.presets.items()
    ],
)
def test_a_told_model_scores_one(folder, preset):
    benchmark = ImageNetS(folder, changed(preset))
    result = benchmark.evaluate(FeatureExtractor(told_encoder(benchmark)))
    assert set(result.figures) == FIGURES
    assert {figure.value for figure in result.figures.values()} == {1.0}
    assert result.main_figure == "top-1, mean per class"
    assert all(item["truth"] == item["predicted"] and "mask" in item for item in result.items)


def test_random_vectors_score_at_chance(tmp_path):
    write_imagenet_s(tmp_path, count=PHOTOS)
    benchmark = ImageNetS(tmp_path, changed())
    found = [benchmark.evaluate(FeatureExtractor(RandomEncoder(seed))).figures["top-5"] for seed in range(12)]
    chance = 5 / len(benchmark.classes)
    assert found[0].chance == chance and found[0].count == PHOTOS
    deviation = np.sqrt(chance * (1 - chance) / PHOTOS / len(found))
    assert abs(np.mean([figure.value for figure in found]) - chance) < 4.5 * deviation


def test_missing_files_are_named_with_their_source(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        ImageNetS(tmp_path).load()
    for part in (
        "ImageNetS919/validation: folder of the images",
        "ImageNetS919/validation-segmentation: folder of the masks",
        "ImageNetS_categories_im919.txt",
        "github.com/LUSSeg/ImageNet-S",
        "LOC_synset_mapping.txt",
        "kaggle.com",
    ):
        assert part in str(error.value)


def test_size_and_split_name_the_folders(own):
    benchmark = ImageNetS(own, small())
    benchmark.load()
    assert benchmark.counts["images"] == 3 and benchmark.dataset == "ImageNet-S-50 validation"
    for kind in ("", "-segmentation"):
        (own / "ImageNetS50" / f"validation{kind}").rename(own / "ImageNetS50" / f"train-semi{kind}")
    with pytest.raises(FileNotFoundError, match="ImageNetS50/validation"):
        ImageNetS(own, small()).load()
    benchmark = ImageNetS(own, small(split="train-semi"))
    benchmark.load()
    assert all(image.key.startswith("train-semi/n") for image in benchmark.images)


def test_missing_photo(own):
    next((own / "ImageNetS50" / "validation").glob("*/*.JPEG")).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 image files are missing.*\.JPEG"):
        ImageNetS(own, small()).load()
    benchmark = ImageNetS(own, small(skip_missing=True))
    benchmark.load()
    assert benchmark.counts["images left out, file missing"] == 1 and benchmark.counts["images"] == 2


def test_limit_and_min_area(own):
    whole = ImageNetS(own, small())
    whole.load()
    limited = ImageNetS(own, small(limit=2))
    limited.load()
    assert [region.key for region in limited.regions] == [region.key for region in whole.regions[:2]]
    areas = []
    for region in whole.regions:
        height, width = region.mask["size"]
        areas.append(int(to_mask(region.mask, height, width).sum()))
    large = ImageNetS(own, small(min_area=max(areas)))
    large.load()
    assert len(large.regions) == 1 and large.counts["images left out, below min_area"] == 2
    # What the protocol leaves out is there all the same.
    large.published = {large.dataset: {"images": 3}}
    assert large.measured_dataset() == large.dataset


def test_an_image_without_its_class_is_left_out_and_counted(own):
    file = sorted((own / "ImageNetS50" / "validation-segmentation").glob("*/*.png"))[0]
    with Image.open(file) as image:
        Image.new("RGB", image.size).save(file)
    benchmark = ImageNetS(own, small())
    benchmark.load()
    assert benchmark.counts["images left out, no pixel of their class"] == 1 and benchmark.counts["images"] == 2


def test_names_of_an_own_file(own):
    benchmark = ImageNetS(own, small())
    benchmark.load()
    ids = sorted((own / "ImageNetS_categories_im50.txt").read_text().split())
    with pytest.raises(FileNotFoundError, match="ImageNetS_names.txt: names of classes.*Prompt_Engineering"):
        ImageNetS(own, small(names="file")).load()
    # More than the classes, as a list of all 1,000 is; with a byte order mark; a comma is part of the name.
    lines = [f"{wordnet_id}\town, {place}_x" for place, wordnet_id in enumerate(ids)]
    (own / "ImageNetS_names.txt").write_text("\n".join([*lines, "n99999999\tother"]), encoding="utf-8-sig")
    (own / "LOC_synset_mapping.txt").unlink()
    named = ImageNetS(own, small(names="file"))
    named.load()
    assert named.classes == [f"own, {place} x" for place in range(len(ids))]
    np.testing.assert_array_equal(named.targets, benchmark.targets)
    (own / "ImageNetS_names.txt").write_text("\n".join(lines[1:]))
    with pytest.raises(
        ValueError, match="names none of 1 classes of .*accepted are lines of a WordNet id, a tab and a"
    ):
        ImageNetS(own, small(names="file")).load()


def test_wrong_files_are_refused(own):
    file = sorted((own / "ImageNetS50" / "validation-segmentation").glob("*/*.png"))[0]
    with Image.open(file) as image:
        pixels = image.copy()
    pixels.convert("L").save(file)
    with pytest.raises(ValueError, match=r"\.png has PIL mode 'L'; accepted is 'RGB'"):
        ImageNetS(own, small()).load()
    pixels.save(file)
    mapping = own / "LOC_synset_mapping.txt"
    lines = mapping.read_text()
    mapping.write_text("\n".join(lines.splitlines()[1:]))
    with pytest.raises(ValueError, match="names none of 1 classes of .*'n00001000'; accepted are lines"):
        ImageNetS(own, small()).load()
    mapping.write_text(lines)
    file.parent.rename(file.parents[1] / "n99999999")
    with pytest.raises(ValueError, match="n99999999 is no class of .*ImageNetS_categories_im50.txt"):
        ImageNetS(own, small()).load()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "coco-mini").is_dir(), reason="needs the photos of COCO beside the repository")
def test_layout_of_the_shared_photos(tmp_path):
    write_imagenet_s(tmp_path, SHARED)
    benchmark = ImageNetS(tmp_path, changed())
    result = benchmark.evaluate(FeatureExtractor(told_encoder(benchmark)))
    assert {figure.value for figure in result.figures.values()} == {1.0}
    assert result.counts["images"] > 100
