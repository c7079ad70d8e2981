# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Readers of the LongGRIT pipeline: what each format gives, good and damaged, and where the image files are."""

import io
import json
import pickle
import tarfile
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from region_shards_for_tests import HEIGHT, WIDTH, decompression_bomb, make_jsonl, photo, record

from processing_pixclip import (
    CocoRegionDataset,
    RegionJsonlDataset,
    encode_rle,
    mask_to_box,
    to_mask,
    write_region_webdataset,
)
from processing_pixclip.longgrit.config import SourceSettings
from processing_pixclip.longgrit.image_store import ImageStore
from processing_pixclip.longgrit.records import MASK_SOURCES, ImageWork, SourceImage
from processing_pixclip.longgrit.rule_engine import image_captions
from processing_pixclip.longgrit.rule_facts import ImageFacts
from processing_pixclip.longgrit.sources import SourceError, open_image_store, open_source
from processing_pixclip.regions import encode_runs, mask_runs, runs_to_box


COCO_MINI = Path(__file__).parents[2] / "shared" / "data" / "coco-mini"
BUNDLED = Path(__file__).parents[1] / "examples" / "data" / "coco_regions"
SQUARE = [2, 2, 10, 2, 10, 10, 2, 10]


def check_item(item, folder):
    content = item.to_json()
    # As manifests are written: strict JSON in UTF-8.
    text = json.dumps(content, allow_nan=False, ensure_ascii=False).encode().decode()
    assert type(item).from_json(json.loads(text)) == item
    if isinstance(item, SourceError):
        assert str(folder) not in text and item.where and item.detail
        return
    assert item.image_id and not Path(item.file).is_absolute() and ".." not in Path(item.file).parts
    assert item.width > 0 and item.height > 0
    assert [region.region_id for region in item.regions] == [f"{item.image_id}#{n}" for n in range(len(item.regions))]
    for region in item.regions:
        assert region.mask_source in MASK_SOURCES
        x1, y1, x2, y2 = region.box
        if not region.placed:
            assert region.box == (0, 0, 0, 0) and region.dropped is not None and region.mask is None
            continue
        assert 0 <= x1 < x2 <= item.width and 0 <= y1 < y2 <= item.height
        assert (region.mask is None) == (region.mask_source == "box")
        if region.mask is not None:
            assert isinstance(region.mask["counts"], str)
            mask = to_mask(region.mask, item.height, item.width)
            np.testing.assert_array_equal(mask_to_box(mask), region.box)


def read_all(folder, **settings):
    """Everything that a source gives, after what is true of every source was checked."""
    settings = SourceSettings(**settings)
    source = open_source(settings)
    items = list(source.read(0, len(source)))
    assert len(items) == len(source)
    for item in items:
        check_item(item, folder)
    # The same in parts, in any order, and of a source that is opened anew.
    again = open_source(settings)
    assert again.fingerprint() == source.fingerprint()
    assert [item for start in range(0, len(items), 2) for item in again.read(start, start + 2)] == items
    for position in [*range(len(items))[::-3], *range(len(items))]:
        assert list(again.read(position, position + 1)) == items[position : position + 1]
    store = open_image_store(settings)
    for item in items:
        if isinstance(item, SourceImage):
            with Image.open(io.BytesIO(store.read(item.location))) as image:
                assert image.size == (item.width, item.height)
    return items


def reasons(items):
    """Reason of each error, and what is dropped of each image."""
    return [
        item.reason if isinstance(item, SourceError) else [region.dropped for region in item.regions] for item in items
    ]


def test_runs_give_the_box_and_the_rle_of_their_mask():
    random = np.random.default_rng(0)
    for _ in range(200):
        height, width = random.integers(1, 9, 2)
        mask = random.random((height, width)) < random.choice([0.1, 0.5, 0.9])
        if mask.any():
            runs = mask_runs(encode_rle(mask), height, width)
            np.testing.assert_array_equal(runs_to_box(runs, height), mask_to_box(mask))
            assert encode_runs(runs.tolist(), height, width) == encode_rle(mask)


# COCO


def entry(number, **changes):
    return {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT, "license": 4, **changes}


def instance(image_id, segmentation=None, **changes):
    return {"image_id": image_id, "category_id": 1, "segmentation": segmentation or [SQUARE], "iscrowd": 0, **changes}


CATEGORIES = [{"id": 1, "name": "dog", "isthing": 1}, {"id": 2, "name": "grass-merged", "isthing": 0}]
CROWD = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 3, HEIGHT * (WIDTH - 3)]}


def write_coco(folder, images, annotations, panoptic=None, captions=None):
    for number in range(4):
        (folder / f"{number}.jpg").write_bytes(photo(number))
    licences = [{"id": 4, "name": "Attribution License", "url": "http://creativecommons.org/licenses/by/2.0/"}]
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES[:1], "licenses": licences}
    (folder / "instances.json").write_text(json.dumps(content))
    settings = {"format": "coco", "instances": str(folder / "instances.json")}
    for name, content in (("panoptic", panoptic), ("captions", captions)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
            settings[name] = str(folder / f"{name}.json")
    return settings


def write_panoptic(folder, *photos, **changes):
    """Panoptic maps: grass in the lower half, a dog on the left above it."""
    ids = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    ids[HEIGHT // 2 :] = (5, 1, 0)
    ids[: HEIGHT // 2, :4] = (7, 0, 2)
    (folder / "panoptic").mkdir()
    segments = [
        {"id": 5 + 256, "category_id": 2, "area": WIDTH * HEIGHT // 2, "iscrowd": 0},
        {"id": 7 + 2 * 65536, "category_id": 1, "area": 2 * HEIGHT, "iscrowd": 0},
    ]
    for number in photos:
        Image.fromarray(ids).save(folder / "panoptic" / f"{number}.png")
    annotations = [{"image_id": n, "file_name": f"{n}.png", "segments_info": segments} for n in photos]
    return {"images": [entry(n) for n in photos], "annotations": annotations, "categories": CATEGORIES, **changes}


def test_coco_regions_are_instances_and_panoptic_segments(tmp_path):
    captions = {"annotations": [{"image_id": 1, "caption": "A  dog.\n"}, {"image_id": 1, "caption": " "}]}
    annotations = [instance(1), instance(1, CROWD, iscrowd=1)]
    settings = write_coco(tmp_path, [entry(1)], annotations, write_panoptic(tmp_path, 1, 2), captions)
    first, second = read_all(tmp_path, licence="unknown", **settings)
    assert [(r.category, r.dropped) for r in first.regions] == [
        ("dog", None),
        ("dog", "crowd"),
        ("grass-merged", None),
    ]
    assert first.regions[0].box == (2, 2, 10, 10) and first.regions[1].box == (0, 0, 3, HEIGHT)
    assert first.grouped == ("dog",) and first.captions == ("A dog.",) and first.licence == "Attribution License"
    # The instances file does not list it, so that its things are those of the panoptic map.
    assert [(r.category, r.box) for r in second.regions] == [
        ("grass-merged", (0, HEIGHT // 2, WIDTH, HEIGHT)),
        ("dog", (0, 0, 4, HEIGHT // 2)),
    ]
    assert second.licence == "unknown"


@pytest.mark.parametrize(
    "segmentation, dropped",
    [
        ([[1, 2, 3, 4]], "degenerate_polygon"),
        ([[0, 0, 0, 0, WIDTH + 3, 5]], "outside_image"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "empty_mask"),
        ({"size": [HEIGHT, WIDTH], "counts": [3]}, "malformed_region"),
        ({"size": [WIDTH, HEIGHT], "counts": [0, HEIGHT * WIDTH]}, "malformed_region"),
        ({"counts": [0, HEIGHT * WIDTH]}, "malformed_region"),
        ([[1, 2, float("nan"), 4, 5, 6]], "malformed_region"),
        ([[1, 2, 10**400, 4, 5.5, 6]], "malformed_region"),
        (["x"], "malformed_region"),
        (7, "malformed_region"),
    ],
)
def test_a_coco_region_that_is_wrong_is_dropped_alone(tmp_path, segmentation, dropped):
    (image,) = read_all(tmp_path, **write_coco(tmp_path, [entry(1)], [instance(1, segmentation), instance(1)]))
    assert [region.dropped for region in image.regions] == [dropped, None]
    assert image.regions[0].category == "dog"


def test_coco_instances_without_a_segmentation_are_boxes(tmp_path):
    without = {"image_id": 1, "category_id": 1, "bbox": [2, 3, 5.5, 4]}
    annotations = [
        without,
        {**without, "segmentation": None},
        {**without, "segmentation": []},
        {**without, "segmentation": [[]]},
        {**without, "iscrowd": 1},
        # The mask counts; what is wrong with it is no reason to take the box.
        {**without, "segmentation": [SQUARE]},
        {**without, "segmentation": [[1, 2, 3, 4]]},
        {**without, "bbox": [-0.6, 0, WIDTH + 1, HEIGHT]},
        {**without, "bbox": [2, 3, 0, 4]},
        {**without, "bbox": [2, 3, 4, -1]},
        {**without, "bbox": [2, 3, 4]},
        {**without, "bbox": [2, 3, 10**400, 0.5]},
        {**without, "bbox": "2 3 4 5"},
        {"image_id": 1, "category_id": 1},
        {"image_id": 1, "category_id": 1, "segmentation": []},
    ]
    settings = write_coco(tmp_path, [entry(1)], annotations)
    (image,) = read_all(tmp_path, **settings)
    assert [(region.box, region.mask_source, region.dropped) for region in image.regions[:8]] == [
        *[((2, 3, 7.5, 7), "box", None)] * 4,
        ((2, 3, 7.5, 7), "box", "crowd"),
        ((2, 2, 10, 10), "annotation", None),
        ((0, 0, 0, 0), "box", "degenerate_polygon"),
        ((0, 0, WIDTH, HEIGHT), "box", None),
    ]
    dropped = ["empty_box", *["malformed_box"] * 4, "malformed_region", "empty_mask"]
    assert [region.dropped for region in image.regions[8:]] == dropped
    assert {region.category for region in image.regions} == {"dog"} and image.grouped == ("dog",)
    with pytest.raises(ValueError, match=r"annotations\[0\]: key 'segmentation' is missing"):
        CocoRegionDataset(tmp_path, settings["instances"])


def test_the_files_of_lvis(tmp_path):
    images = [entry(number, not_exhaustive_category_ids=[1, 77] if number == 2 else []) for number in (1, 2)]
    for number, image in enumerate(images, start=1):
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
    images += [
        {**images[0], "id": 3, "coco_url": 3},
        {**images[0], "id": 4, "coco_url": "http://localhost/x/../.."},
        {**images[0], "id": 5, "not_exhaustive_category_ids": 1},
    ]
    dogs = [[x, 2, x + 3, 2, x + 3, 8, x, 8] for x in (0, 5, 10)]
    settings = write_coco(tmp_path, images, [instance(number, [dog]) for number in (1, 2) for dog in dogs])
    (tmp_path / "train2017").mkdir()
    for number in (1, 2):
        (tmp_path / f"{number}.jpg").rename(tmp_path / "train2017" / f"{number}.jpg")
    all_dogs, some_dogs, *bad = read_all(tmp_path, **settings)
    assert (all_dogs.file, all_dogs.uncounted, all_dogs.grouped) == ("train2017/1.jpg", (), ())
    assert (some_dogs.file, some_dogs.uncounted, some_dogs.grouped) == ("train2017/2.jpg", ("dog",), ())
    assert reasons(bad) == ["malformed_annotation", "unsafe_path", "malformed_annotation"]
    # There may be more dogs, so they are neither counted nor put in an order.
    store = open_image_store(SourceSettings(**settings))
    captions, orders = [], []
    for image in (all_dogs, some_dogs):
        facts = ImageFacts(ImageWork(image, lambda: store.read(image.location)), complete=True)
        captions.append(image_captions(facts)[0])
        orders.append(facts.of(image.regions[1]).order)
    assert captions == ["A photo of three dogs.", "A photo of dogs."]
    assert orders[0].count == 3 and orders[1] is None
    dataset = CocoRegionDataset(tmp_path, settings["instances"], min_area_fraction=0, image_ids=[1, 2])
    assert len(dataset) == 2


def test_a_coco_image_that_is_wrong_is_an_error_at_its_position(tmp_path):
    images = [
        entry(0),
        {"id": 1, "width": WIDTH, "height": HEIGHT},
        entry(2, width=16.0),
        {"file_name": "2.jpg"},
        entry(3, file_name=None),
        7,
        entry(3),
        entry(1),
    ]
    settings = write_coco(tmp_path, images, [instance(number) for number in (0, 1, 1, 2, 3)])
    items = read_all(tmp_path, **settings)
    assert reasons(items) == [[None], *["malformed_annotation"] * 5]
    assert [item.image_id for item in items] == ["0", "1", "2", "3", None, None]
    assert [item.where for item in items[1:]] == [f"instances.json: images[{number}]" for number in (1, 2, 4, 3, 5)]
    with pytest.raises(ValueError, match=r"images\[3\]: key 'id' is missing"):
        CocoRegionDataset(tmp_path, settings["instances"])
    with pytest.raises(ValueError, match=r"images\[0\]: key 'width' is 16.0"):
        CocoRegionDataset(tmp_path, write_coco(tmp_path, images[2:3], [])["instances"])


def test_coco_entries_that_are_wrong(tmp_path):
    images = [
        entry(0),
        entry(1, file_name="missing.jpg"),
        entry(2, file_name="../2.jpg"),
        entry(3, width=0),
        entry(4, file_name="x" * 5000),
        entry(5, width=10**9, height=10**9),
        entry("\ud800", file_name="0.jpg"),
    ]
    annotations = [
        instance(0, category_id=9),
        {"image_id": 0, "category_id": 1},
        instance(99),
        {"category_id": 1},
        "text",
        instance([0]),
    ]
    items = read_all(tmp_path, **write_coco(tmp_path, images, annotations))
    bad_images = ["missing_image", "unsafe_path", "image_size", "missing_image", "image_size", "malformed_annotation"]
    assert reasons(items) == [["malformed_region"] * 2, *bad_images, *["malformed_annotation"] * 4]
    assert [item.image_id for item in items[:6]] == ["0", "1", "2", "3", "4", "5"]
    assert items[7].where == "instances.json: annotations[2]" and "image_id' is 99" in items[7].detail


def test_coco_panoptic_maps_that_are_wrong(tmp_path):
    panoptic = write_panoptic(tmp_path, 0, 1, 2, 3)
    (tmp_path / "panoptic" / "0.png").unlink()
    (tmp_path / "panoptic" / "1.png").write_bytes(b"no image")
    panoptic["annotations"][2] = {"image_id": 2, "file_name": "../0.jpg", "segments_info": [3]}
    segments = panoptic["annotations"][3]["segments_info"] = json.loads(
        json.dumps(panoptic["annotations"][3]["segments_info"])
    )
    segments[0]["id"] = 99
    segments += [{**segments[1], "iscrowd": 1}, {**segments[1], "area": 0}, {"id": 3}]
    settings = write_coco(tmp_path, [], [], panoptic)
    assert reasons(read_all(tmp_path, **settings)) == [
        ["malformed_region"] * 2,
        ["unreadable_panoptic"] * 2,
        ["malformed_region"],
        ["empty_mask", None, "crowd", "empty_mask", "malformed_region"],
    ]


@pytest.mark.parametrize("split, instances, crowds", [("train2017", 2148, 23), ("val2017", 987, 10)])
def test_real_coco_is_read_as_by_the_training_reader(split, instances, crowds):
    if not COCO_MINI.is_dir():
        pytest.skip(f"{COCO_MINI} is not there; it is a small copy of COCO 2017")
    annotations = COCO_MINI / "annotations"
    files = {key: str(annotations / f"{key}_{split}.json") for key in ("instances", "panoptic", "captions")}
    root = str(COCO_MINI / "images" / split)
    only = open_source(SourceSettings(format="coco", image_root=root, instances=files["instances"]))
    dropped = Counter(region.dropped for image in only.read(0, len(only)) for region in image.regions)
    assert dropped == {None: instances - crowds, "crowd": crowds}

    source = open_source(SourceSettings(format="coco", image_root=root, **files))
    dataset = CocoRegionDataset(
        root,
        files["instances"],
        files["panoptic"],
        captions_file=files["captions"],
        min_area_fraction=0,
        compose_texts=False,
    )
    images = list(source.read(0, len(source)))
    for image in images:
        check_item(image, COCO_MINI)
        assert image.licence
    with_regions = [image for image in images if any(region.dropped is None for region in image.regions)]
    assert Counter(r.dropped for i in images for r in i.regions)["crowd"] == dataset.rejected["crowd"]
    assert len(with_regions) == len(dataset) == len(source) - dataset.rejected["photo without region"]
    for number in range(0, len(dataset), 20):
        sample, image = dataset[number], with_regions[number]
        regions = [region for region in image.regions if region.dropped is None]
        assert (sample["image_id"], sample["captions"]) == (image.image_id, list(image.captions))
        assert [region.category for region in regions] == sample["categories"]
        for region, mask in zip(regions, sample["masks"], strict=True):
            size = (image.height, image.width)
            np.testing.assert_array_equal(to_mask(region.mask, *size), to_mask(mask, *size))


# Folders


def write_lines(folder, *lines):
    (folder / "images").mkdir(exist_ok=True)
    for number in range(3):
        (folder / "images" / f"{number:04d}.jpg").write_bytes(photo(number))
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "data.jsonl").write_bytes(b"\n".join(lines))
    return {"format": "folder", "path": str(folder / "data.jsonl")}


def test_the_bundled_regions_are_read_as_by_the_training_reader():
    dataset = RegionJsonlDataset(BUNDLED / "train.jsonl")
    images = read_all(BUNDLED, format="folder", path=str(BUNDLED / "train.jsonl"))
    assert [image.image_id for image in images] == [line["image_id"] for line in dataset.records]
    for image, line in zip(images, dataset.records):
        assert (image.file, list(image.captions)) == (line["image"], line["captions"])
        assert [region.category for region in image.regions] == [region["category"] for region in line["regions"]]
        assert not any(region.dropped for region in image.regions)
        for region, stored in zip(image.regions, line["regions"], strict=True):
            size = (image.height, image.width)
            np.testing.assert_array_equal(to_mask(region.mask, *size), to_mask(stored["mask"], *size))


def test_a_line_needs_an_image_and_regions_only(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:6, 4:8] = True
    regions = [
        {"mask": encode_rle(mask), "box": [0, 0, 1, 1], "category": " a  dog ", "mask_source": "sam2"},
        {"mask": None, "box": [1, 2, 9.5, 8], "phrase": "the left part", "score": 0.25, "text": "not read"},
        {"mask": [SQUARE]},
    ]
    line = {"image": "images/0001.jpg", "regions": regions, "licence": "CC0-1.0"}
    (image,) = read_all(tmp_path, **write_lines(tmp_path, b"", line, b"  "))
    assert (image.image_id, image.width, image.height) == ("images/0001.jpg", WIDTH, HEIGHT)
    assert image.location == {"path": "images/0001.jpg"} and image.licence == "CC0-1.0"
    first, second, third = image.regions
    assert (first.box, first.category, first.mask_source) == ((4, 3, 8, 6), "a dog", "sam2")
    assert (second.box, second.phrase, second.score) == ((1, 2, 9.5, 8), "the left part", 0.25)
    assert (second.mask, second.mask_source) == (None, "box")
    assert third.mask_source == "annotation"


@pytest.mark.parametrize(
    "region, dropped",
    [
        ({"box": [0, 0, float("nan"), 5]}, "malformed_box"),
        ({"box": [0, 0, 10**400, 5.5]}, "malformed_box"),
        ({"box": [0, 0, 5]}, "malformed_box"),
        ({"box": [0, 0, WIDTH + 1.1, 5]}, "malformed_box"),
        ({"box": [[0, 0, 5, 5]]}, "malformed_box"),
        ({"box": 3}, "malformed_box"),
        ({"box": [-1, 0, 0, 5]}, "empty_box"),
        ({"box": [0, 0, 5, "5"]}, "malformed_box"),
        ({"box": {"x": 1}}, "malformed_box"),
        ({"box": [3, 3, 3, 5]}, "empty_box"),
        ({"box": [5, 5, 3, 3]}, "malformed_box"),
        ({"box": [0, 0, 5, 5], "id": 3}, "malformed_region"),
        ({"box": [0, 0, 5, 5], "phrase": 3}, "malformed_region"),
        ({"box": [0, 0, 5, 5], "mask_source": "sam"}, "malformed_region"),
        ({"box": [0, 0, 5, 5], "mask_source": []}, "malformed_region"),
        ({"mask": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}, "empty_mask"),
        ({"mask": {"size": [HEIGHT, WIDTH], "counts": "?"}}, "malformed_mask"),
        ({"mask": {"size": [HEIGHT + 1, WIDTH], "counts": [0, (HEIGHT + 1) * WIDTH]}}, "malformed_mask"),
        ({"mask": {"counts": [3]}}, "malformed_mask"),
        ({"mask": 3}, "malformed_mask"),
        ({"mask": []}, "malformed_mask"),
        ({"mask": [[1, 2, 10**400, 4, 5.5, 6]]}, "malformed_mask"),
        ({}, "no_mask_or_box"),
        ({"box": [0, 0, 5, 5], "score": float("nan")}, "malformed_score"),
        ({"box": [0, 0, 5, 5], "score": 3}, "malformed_score"),
    ],
)
def test_a_region_of_a_line_that_is_wrong_is_dropped_alone(tmp_path, region, dropped):
    line = {**record(1), "regions": [{**region, "category": "dog"}, {"box": [0, 0, 5, 5]}]}
    (image,) = read_all(tmp_path, **write_lines(tmp_path, line))
    assert [r.dropped for r in image.regions] == [dropped, None] and image.regions[0].category == "dog"


def test_regions_of_a_line_that_are_no_regions_are_dropped_and_told(tmp_path, caplog):
    regions = [3, None, {"box": [0, 0, 5, 5], "category": 5}, {"boxes": [0, 0, 5, 5]}, {"box": [0, 0, 5, 5]}]
    lines = [{**record(number), "regions": regions} for number in range(2)]
    with caplog.at_level("WARNING"):
        items = read_all(tmp_path, **write_lines(tmp_path, *lines))
    assert reasons(items) == [[*["malformed_region"] * 4, None]] * 2
    assert caplog.text.count("has the unknown keys ['boxes']; accepted are ['box', ") == 1


def test_captions_of_a_line_are_a_list(tmp_path):
    lines = [{**record(0), "captions": [" A  dog. ", "", None], "long_captions": None}]
    for captions in ("A dog.", {"a": "dog"}, ["A dog.", 5], 5):
        lines += [{**record(0), key: captions} for key in ("captions", "long_captions")]
    first, *errors = read_all(tmp_path, **write_lines(tmp_path, *lines))
    assert (first.captions, first.long_captions) == (("A dog.",), ())
    assert reasons(errors) == ["malformed_record"] * 8 and "key 'captions' is 'A dog.'" in errors[0].detail


def test_lines_that_are_wrong(tmp_path):
    good = record(0)
    wrong = {
        "malformed_record": [
            b"{",
            b"[" * 100_000,
            b'{"image": "\xff"}',
            b"3",
            {**good, "imageid": "1"},
            {**good, "regions": None},
            {**good, "regions": {}},
            {**good, "licence": 4},
            {**good, "image_id": ["1"]},
            {**good, "image_id": "\ud800"},
        ],
        "unsafe_path": [
            {**good, "image": "../images/0000.jpg"},
            {**good, "image": str(tmp_path / "images" / "0000.jpg")},
            {**good, "image": "C:\\0000.jpg"},
            {**good, "image": "images\\..\\..\\0000.jpg"},
            {**good, "image": ""},
            {**good, "image": 3},
            {**good, "image": "images/0000.jpg\0"},
            {"regions": []},
        ],
        "missing_image": [{**good, "image": "images/9999.jpg"}, {**good, "image": "images"}],
        "image_size": [
            {**good, "width": 0},
            {**good, "height": None},
            {**good, "width": 10**9},
            {**good, "width": 2.5},
        ],
        "unreadable_image": [{"image": "images/damaged.jpg", "regions": []}],
    }
    lines = [(reason, line) for reason, lines in wrong.items() for line in lines]
    settings = write_lines(tmp_path, good, *(line for _, line in lines), record(1))
    (tmp_path / "images" / "damaged.jpg").write_bytes(b"no image")
    first, *errors, last = read_all(tmp_path, **settings)
    assert [error.reason for error in errors] == [reason for reason, _ in lines]
    assert (first.image_id, last.image_id) == ("0", "1")
    assert errors[0].where == "data.jsonl, line 2" and errors[4].image_id == "0"


def test_an_image_that_claims_too_many_pixels_is_an_error(tmp_path):
    settings = write_lines(tmp_path, {"image": "images/bomb.png", "regions": []})
    (tmp_path / "images" / "bomb.png").write_bytes(decompression_bomb())
    (error,) = read_all(tmp_path, **settings)
    assert error.reason in ("unreadable_image", "image_size")


def test_several_files_of_lines(tmp_path):
    write_lines(tmp_path, record(0), record(1))
    (tmp_path / "more.jsonl").write_text(json.dumps(record(2)) + "\n")
    for path in (tmp_path, tmp_path / "*.jsonl"):
        assert [image.image_id for image in read_all(tmp_path, format="folder", path=str(path))] == ["0", "1", "2"]


def test_lines_are_not_held_in_memory(tmp_path):
    (tmp_path / "0.png").write_bytes(photo(0, "PNG"))
    line = {"image": "0.png", "width": WIDTH, "height": HEIGHT, "captions": ["x" * 2000], "regions": []}
    with open(tmp_path / "data.jsonl", "w") as file:
        for number in range(5000):
            file.write(json.dumps({**line, "image_id": str(number)}) + "\n")
    tracemalloc.start()
    try:
        source = open_source(SourceSettings(format="folder", path=str(tmp_path / "data.jsonl")))
        assert sum(len(image.captions) for image in source.read(0, len(source))) == 5000
        # Of 10 MB.
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_a_table_of_mask_files_needs_no_texts(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(photo(number))
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "empty.png")
    mask[3:6, 4:8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.new("L", (3, 3)).save(tmp_path / "small.png")
    (tmp_path / "metadata.csv").write_text(
        "file_name,mask_file_name,category,caption\n"
        "0.jpg,mask.png,dog,A dog.\n0.jpg,empty.png,cat,\n1.jpg,small.png,dog,\n2.jpg,mask.png,,\n../3.jpg,mask.png,,\n"
    )
    for path in (tmp_path, tmp_path / "metadata.csv"):
        items = read_all(tmp_path, format="folder", path=str(path))
        assert reasons(items) == [[None, "empty_mask"], [None], "malformed_record", "malformed_record"]
        assert items[0].regions[0].box == (4, 3, 8, 6) and items[0].captions == ("A dog.",)
        assert [region.category for region in items[0].regions] == ["dog", "cat"]
        assert (items[2].where, items[2].image_id) == ("metadata.csv, line 4", "1.jpg")


# GRIT

CAPTION = "a red kite over green grass"
KITE, GRASS = [2.0, 10.0, 0.25, 0.0, 0.5, 0.5, 0.9], [16.0, 27.0, 0.0, 0.5, 1.0, 1.0, 0.8]


def grit(number, **changes):
    key = f"00003{number:04d}"
    return {"id": 1795296605919 + number, "key": key, "caption": CAPTION, "ref_exps": [KITE, GRASS], **changes}


def write_grit(folder, *rows, **options):
    keys = dict.fromkeys(key for row in rows for key in row)
    table = pyarrow.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows])
    pyarrow.parquet.write_table(table, folder / "coyo_0.parquet", **options)
    return {"format": "grit", "path": str(folder / "coyo_0.parquet")}


def test_grit_phrases_and_boxes(tmp_path):
    settings = write_grit(tmp_path, grit(0, width=2 * WIDTH, height=2 * HEIGHT))
    (tmp_path / "1795296605919.jpg").write_bytes(photo(0))
    (image,) = read_all(tmp_path, licence="CC-BY-4.0", **settings)
    assert (image.image_id, image.file, image.captions) == ("1795296605919", "1795296605919.jpg", (CAPTION,))
    assert (image.width, image.height, image.licence) == (WIDTH, HEIGHT, "CC-BY-4.0")
    kite, grass = image.regions
    assert (kite.phrase, kite.box, kite.score) == ("red kite", (4, 0, 8, 6), 0.9)
    assert (grass.phrase, grass.box, grass.mask_source) == ("green grass", (0, 6, 16, 12), "box")


@pytest.mark.parametrize(
    "file",
    ["1795296605919.jpg", "000030000.png", "00003/000030000.jpg", "00003/1795296605919.webp", "000030000.jpeg"],
)
def test_grit_images_by_id_or_key_and_in_the_folders_of_img2dataset(tmp_path, file):
    root = tmp_path / "images"
    (root / file).parent.mkdir(parents=True)
    (root / file).write_bytes(photo(0, "JPEG" if file.endswith(("jpg", "jpeg")) else Path(file).suffix[1:].upper()))
    (image,) = read_all(tmp_path, image_root=str(root), **write_grit(tmp_path, grit(0)))
    assert image.file == file and image.location == {"path": file}


@pytest.mark.parametrize(
    "expression, dropped",
    [
        ([2.0, 10.0, 0.25, 0.0, 0.5, 0.5], "malformed_region"),
        ([], "malformed_region"),
        ([2.0, 10.0, 0.25, 0.0, 0.5, 0.5, 0.9, 1.0], "malformed_region"),
        ([2.0, 10.0, float("nan"), 0.0, 0.5, 0.5, 0.9], "malformed_region"),
        ([2.0, 10.0, 0.25, 0.0, float("inf"), 0.5, 0.9], "malformed_region"),
        ([float("nan"), 10.0, 0.25, 0.0, 0.5, 0.5, 0.9], "malformed_region"),
        ([2.0, 10.0, 0.25, 0.0, 0.5, 0.5, float("nan")], "malformed_region"),
        ([2.0, 10.0, 0.25, 0.0, 0.5, 0.5, 7.0], "malformed_region"),
        ([2.0, 10.0, 0.25, None, 0.5, 0.5, 0.9], "malformed_region"),
        (None, "malformed_region"),
        ([10.0, 2.0, 0.25, 0.0, 0.5, 0.5, 0.9], "blank_phrase"),
        ([100.0, 200.0, 0.25, 0.0, 0.5, 0.5, 0.9], "blank_phrase"),
        ([1.0, 2.0, 0.25, 0.0, 0.5, 0.5, 0.9], "blank_phrase"),
        ([2.0, 10.0, 0.5, 0.0, 0.5, 0.5, 0.9], "empty_box"),
        ([2.0, 10.0, 0.5, 0.0, 0.25, 0.5, 0.9], "malformed_box"),
        ([2.0, 10.0, 1.5, 0.0, 2.0, 0.5, 0.9], "empty_box"),
        ([2.0, 10.0, -0.5, -1.0, 7.0, 0.5, 0.9], None),
    ],
)
def test_a_grit_region_that_is_wrong_is_dropped_alone(tmp_path, expression, dropped):
    (tmp_path / "000030000.jpg").write_bytes(photo(0))
    (image,) = read_all(tmp_path, **write_grit(tmp_path, grit(0, ref_exps=[expression, GRASS])))
    assert [region.dropped for region in image.regions] == [dropped, None]
    if dropped is None:
        assert image.regions[0].box == (0, 0, WIDTH, HEIGHT / 2)


def test_grit_rows_that_are_wrong(tmp_path):
    for number in range(12):
        (tmp_path / f"00003{number:04d}.jpg").write_bytes(photo(number))
    (tmp_path / "000030001.jpg").unlink()
    (tmp_path / "000030002.jpg").write_bytes(b"no image")
    rows = [
        grit(0, ref_exps=[]),
        grit(1),
        grit(2),
        grit(3, ref_exps=None),
        grit(4, caption=None),
        # Padded to a square, or another image.
        grit(5, width=WIDTH, height=WIDTH),
        grit(6, width=WIDTH, height=HEIGHT, original_width=1000, original_height=1000),
        # A pixel off, by rounding.
        grit(7, width=1000, height=800),
        grit(8, key="../000030008"),
        grit(9, id=None, key=None),
        grit(10, key=" "),
        grit(11, width=0, height=0),
        grit(12, key="x" * 5000),
    ]
    items = read_all(tmp_path, **write_grit(tmp_path, *rows))
    assert reasons(items) == [
        [],
        "missing_image",
        "unreadable_image",
        "malformed_record",
        ["blank_phrase"] * 2,
        "other_proportions",
        "other_proportions",
        [None, None],
        "unsafe_path",
        "malformed_record",
        "missing_image",
        [None, None],
        "missing_image",
    ]
    assert items[1].where == "coyo_0.parquet, row 1" and items[1].image_id == "1795296605920"
    assert "1795296605920.jpg" in items[1].detail and "--resize_mode" in items[5].detail


def test_grit_with_the_masks_of_alpha_clip(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:6, 4:8] = True
    for number in range(5):
        (tmp_path / f"00003{number:04d}.jpg").write_bytes(photo(number))
    beside = {"caption": "a kite on green grass", "ref_exps": [[10.0, 21.0, *GRASS[2:]], [2.0, 6.0, *KITE[2:]]]}
    masks = [encode_rle(mask), {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}]
    files = [{**beside, "seudo_masks": masks}, {"seudo_masks": masks[:1]}, {**beside, "caption": CAPTION}, [3], b"{"]
    for number, content in enumerate(files):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (tmp_path / f"00003{number:04d}.json").write_bytes(content)
    items = read_all(tmp_path, **write_grit(tmp_path, *map(grit, range(5))))
    expected = [[None, "empty_mask"], "mask_count", [None, None], "malformed_record", "malformed_record"]
    assert reasons(items) == expected
    grass, kite = items[0].regions
    assert (grass.phrase, grass.box, grass.mask_source) == ("green grass", (4, 3, 8, 6), "annotation")
    assert (kite.phrase, kite.score) == ("kite", 0.9) and items[0].captions == ("a kite on green grass",)
    # What img2dataset writes beside an image has no masks and says what the row says.
    assert items[2].captions == (CAPTION,)


@pytest.mark.parametrize(
    "beside, same",
    [
        ({"id": 1795296605919, "url": "http://localhost/1.jpg", "caption": "another"}, True),
        ({"id": "1795296605919"}, True),
        ({"id": 17, "url": "http://localhost/0.jpg", "caption": CAPTION}, False),
        ({"id": 17, "seudo_masks": []}, False),
        ({"url": "http://localhost/0.jpg", "caption": "another"}, True),
        ({"id": None, "url": "http://localhost/1.jpg", "caption": CAPTION}, False),
        ({"key": "000030001", "caption": f" {CAPTION}\n"}, True),
        ({"caption": "two dogs on a beach"}, False),
        ({"caption": None}, True),
        ({}, True),
    ],
)
def test_grit_images_of_another_download_are_errors(tmp_path, beside, same):
    (tmp_path / "000030000.jpg").write_bytes(photo(0))
    (tmp_path / "000030000.json").write_text(json.dumps(beside))
    row = grit(0, url="http://localhost/0.jpg", width=2 * WIDTH, height=2 * HEIGHT)
    items = read_all(tmp_path, **write_grit(tmp_path, row))
    assert reasons(items) == ([[None, None]] if same else ["other_image"])
    assert same or "000030000.json says that" in items[0].detail


def test_grit_with_images_in_the_rows(tmp_path):
    rows = [grit(0, jpg=photo(0)), grit(1, jpg=b"no image"), grit(2, jpg=photo(2))]
    first, bad, last = read_all(tmp_path, **write_grit(tmp_path, *rows, row_group_size=2))
    assert bad.reason == "unreadable_image"
    assert (last.file, last.location) == (
        "1795296605921.jpg",
        {"parquet": "coyo_0.parquet", "row": 2, "column": "jpg"},
    )
    store = ImageStore(tmp_path)
    assert [store.read(image.location) for image in (last, first)] == [photo(2), photo(0)]
    rows = [grit(0, image={"bytes": photo(0, "PNG"), "path": "some/0.png"}), grit(1, image=None)]
    first, bad = read_all(tmp_path, **write_grit(tmp_path, *rows))
    assert first.file == "1795296605919.png" and bad.reason == "missing_image"
    assert store.read(first.location) == photo(0, "PNG")


def test_damaged_parquet_files(tmp_path):
    for number in range(6):
        (tmp_path / f"00003{number:04d}.jpg").write_bytes(photo(number))
    settings = write_grit(tmp_path, *map(grit, range(6)), row_group_size=2, compression="none", use_dictionary=False)
    path = tmp_path / "coyo_0.parquet"
    whole = path.read_bytes()
    group = pyarrow.parquet.read_metadata(path).row_group(1)
    start = min(group.column(number).data_page_offset for number in range(group.num_columns))
    path.write_bytes(whole[:start] + b"\xff" * 60 + whole[start + 60 :])
    assert reasons(read_all(tmp_path, **settings)) == [[None] * 2] * 2 + ["damaged_shard"] * 2 + [[None] * 2] * 2
    # Without its end nothing is known of it.
    path.write_bytes(whole[:-100])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([grit(5)]), tmp_path / "coyo_1.parquet")
    items = read_all(tmp_path, format="grit", path=str(tmp_path / "*.parquet"))
    assert reasons(items) == ["damaged_shard", [None, None]]
    assert items[0].where == "coyo_0.parquet, row 0"


def test_grit_files_lack_columns(tmp_path):
    for row in ({"id": 1, "caption": "x"}, {"caption": "x", "ref_exps": [KITE]}):
        with pytest.raises(ValueError, match="coyo_0.parquet has the columns .*save_additional_columns"):
            open_source(SourceSettings(**write_grit(tmp_path, row)))


def test_grit_is_read_on_without_a_search(tmp_path, monkeypatch):
    for number in range(30):
        (tmp_path / f"00003{number:04d}.jpg").write_bytes(photo(number))
    settings = write_grit(tmp_path, *map(grit, range(30)), row_group_size=30)
    source = open_source(SourceSettings(**settings))
    passes = []
    original = pyarrow.parquet.ParquetFile.iter_batches
    monkeypatch.setattr(
        pyarrow.parquet.ParquetFile, "iter_batches", lambda *args, **kw: passes.append(1) or original(*args, **kw)
    )
    ids = [image.image_id for start in range(0, 30, 7) for image in source.read(start, start + 7)]
    assert ids == [str(1795296605919 + number) for number in range(30)] and len(passes) == 1


# WebDataset


def write_tar(path, *samples):
    """A tar of (key, image, record) or of (member, content)."""
    with tarfile.open(path, "w") as tar:
        for key, *contents in samples:
            names = [f"{key}.jpg", f"{key}.json"] if len(contents) == 2 else [key]
            for name, content in zip(names, contents):
                content = content if isinstance(content, bytes) else json.dumps(content).encode()
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"format": "webdataset", "path": str(path)}


def test_tars_of_our_records_of_img2dataset_and_of_alpha_clip(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[3:6, 4:8] = True
    ours = {"regions": [{"mask": encode_rle(mask), "category": "dog"}], "captions": ["A dog."]}
    img2dataset = {**grit(1), "status": "success", "width": WIDTH, "height": HEIGHT, "exif": "{}"}
    alpha_clip = {"caption": CAPTION, "ref_exps": [KITE], "seudo_masks": [encode_rle(mask)]}
    settings = write_tar(
        tmp_path / "00000.tar",
        ("a/0000", photo(0), {**record(0), **ours}),
        ("a/0001", photo(1), ours),
        ("000030001", photo(2), img2dataset),
        ("000030001.txt", CAPTION.encode()),
        ("1795296605919", photo(3), alpha_clip),
    )
    first, second, third, last = read_all(tmp_path, **settings)
    assert (first.image_id, first.file) == ("0", "images/0000.jpg")
    assert (second.image_id, second.file, second.captions) == ("a/0001", "a/0001.jpg", ("A dog.",))
    assert (third.image_id, third.regions[0].box) == ("1795296605920", (4, 0, 8, 6))
    assert (last.image_id, last.regions[0].box, last.regions[0].phrase) == ("1795296605919", (4, 3, 8, 6), "red kite")
    store = open_image_store(SourceSettings(**settings))
    assert [store.read(image.location) for image in (last, first)] == [photo(3), photo(0)]


def test_tar_folders_with_a_dot_are_part_of_the_key(tmp_path):
    ours = {"regions": [{"box": [0, 0, 5, 5]}]}
    names = ["train.v2/0001", "train.v2/0002", "./0003"]
    items = read_all(tmp_path, **write_tar(tmp_path / "0.tar", *((name, photo(0), ours) for name in names)))
    assert [image.image_id for image in items] == ["train.v2/0001", "train.v2/0002", "0003"]


def test_tar_samples_that_are_wrong(tmp_path):
    settings = write_tar(
        tmp_path / "00000.tar",
        ("../0000", photo(0), record(0)),
        ("/0001", photo(1), record(1)),
        ("0002", photo(2), {**record(2), "image": "../../0002.jpg"}),
        ("0003", photo(3), b"{"),
        ("0004", photo(4), [3]),
        ("0005.jpg", photo(5)),
        ("0006", b"no image", {"regions": []}),
        ("0007", b"no image", grit(7)),
        ("0008", photo(8), grit(8, ref_exps=3)),
        ("0009", photo(9), grit(9, ref_exps=[[10**400] * 7])),
        ("0010", photo(10), record(10)),
    )
    items = read_all(tmp_path, **settings)
    assert reasons(items) == [
        "unsafe_path",
        "unsafe_path",
        "unsafe_path",
        "malformed_record",
        "malformed_record",
        "damaged_shard",
        "unreadable_image",
        "unreadable_image",
        "malformed_record",
        ["malformed_region"],
        [None, None],
    ]
    assert items[3].where == "00000.tar, sample 3 ('0003')"


def test_cut_tars(tmp_path):
    samples = [(f"{number:04d}", photo(number), record(number)) for number in range(4)]
    settings = write_tar(tmp_path / "00000.tar", *samples)
    content = (tmp_path / "00000.tar").read_bytes()
    with tarfile.open(tmp_path / "00000.tar") as tar:
        (cut,) = [member.offset_data for member in tar if member.name == "0002.jpg"]
    (tmp_path / "00000.tar").write_bytes(content[: cut + 100])
    write_tar(tmp_path / "00001.tar", *samples[3:])
    items = read_all(tmp_path, format="webdataset", path=str(tmp_path))
    assert reasons(items) == [[None, None]] * 2 + ["damaged_shard"] + [[None, None]]
    (tmp_path / "00000.tar").write_bytes(b"no tar")
    assert reasons(read_all(tmp_path, **settings)) == ["damaged_shard"]


def test_tars_in_folders(tmp_path):
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "00000.tar", (f"{number:04d}", photo(number), record(number)))
    items = read_all(tmp_path, format="webdataset", path=str(tmp_path / "*" / "00000.tar"))
    assert [image.location["tar"] for image in items] == ["a/00000.tar", "b/00000.tar"]


def test_shards_of_our_own_writer(tmp_path):
    dataset = RegionJsonlDataset(make_jsonl(tmp_path / "files", 5))
    write_region_webdataset(dataset.records, tmp_path / "tars", dataset.image_root, samples_per_shard=2)
    items = read_all(tmp_path, format="webdataset", path=str(tmp_path / "tars"))
    assert [image.image_id for image in items] == list("01234") and reasons(items) == [[None, None]] * 5
    # A wrong count of samples is told, not passed over.
    sizes = json.loads((tmp_path / "tars" / "sizes.json").read_text())
    (tmp_path / "tars" / "sizes.json").write_text(json.dumps({**sizes, "00000.tar": 3, "00001.tar": 1}))
    items = read_all(tmp_path, format="webdataset", path=str(tmp_path / "tars"))
    assert reasons(items) == [[None, None]] * 2 + ["damaged_shard"] * 2 + [[None, None]]


# What all have in common


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"format": "coco"}, "neither source.instances nor source.panoptic is set"),
        ({"format": "coco", "path": "x", "instances": "x.json"}, "source.path is not read"),
        ({"format": "grit"}, "source.path is not set"),
        ({"format": "folder", "path": "x", "captions": "x.json"}, "source.captions is read only where"),
        ({"format": "webdataset", "path": "x", "image_root": "x"}, "source.image_root is not read"),
    ],
)
def test_settings_that_a_format_lacks_or_does_not_read(settings, message):
    for function in (open_source, open_image_store):
        with pytest.raises(ValueError, match=message):
            function(SourceSettings(**settings))


def test_missing_files_are_errors_when_a_source_is_opened(tmp_path):
    for format in ("grit", "folder", "webdataset"):
        for path in (tmp_path / "missing", tmp_path / "*.x", tmp_path):
            with pytest.raises(FileNotFoundError, match="names no file; accepted are"):
                open_source(SourceSettings(format=format, path=str(path)))
    with pytest.raises(FileNotFoundError, match="missing.json"):
        open_source(SourceSettings(format="coco", instances=str(tmp_path / "missing.json")))
    settings = write_lines(tmp_path, record(0))
    with pytest.raises(FileNotFoundError, match="source.image_root is .*nowhere"):
        open_source(SourceSettings(image_root=str(tmp_path / "nowhere"), **settings))
    for content in ("{", "[]", '{"images": 3}', '{"images": [], "annotations": [], "categories": {}}'):
        (tmp_path / "instances.json").write_text(content)
        with pytest.raises(ValueError, match="instances.json is no"):
            open_source(SourceSettings(format="coco", instances=str(tmp_path / "instances.json")))


def test_a_source_without_an_image_is_an_error_when_it_is_opened(tmp_path):
    lines = write_lines(tmp_path, b"\n  ")
    columns = {"id": pyarrow.int64(), "caption": pyarrow.string(), "ref_exps": pyarrow.list_(pyarrow.float64())}
    pyarrow.parquet.write_table(pyarrow.schema(columns).empty_table(), tmp_path / "0.parquet")
    grit = {"format": "grit", "path": str(tmp_path / "0.parquet")}
    for settings in (lines, grit, write_tar(tmp_path / "0.tar"), write_coco(tmp_path, [], [])):
        with pytest.raises(ValueError, match="the source holds no image: .* list none"):
            open_source(SourceSettings(**settings))
    # One of several files may be empty.
    (tmp_path / "more.jsonl").write_text(json.dumps(record(1)))
    assert len(open_source(SourceSettings(format="folder", path=str(tmp_path / "*.jsonl")))) == 1


def test_the_fingerprint_is_that_of_what_is_read(tmp_path):
    settings = SourceSettings(**write_lines(tmp_path, record(0), record(1)))
    before = open_source(settings).fingerprint()
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    write_lines(moved, record(0), record(1))
    assert open_source(SourceSettings(format="folder", path=str(moved / "data.jsonl"))).fingerprint() == before
    assert open_source(settings.model_copy(update={"licence": "CC0-1.0"})).fingerprint() != before
    write_lines(tmp_path, record(0), {**record(1), "captions": ["photo 2"]})
    assert open_source(settings).fingerprint() != before


def test_the_store_reads_below_its_folders_only(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for path in (tmp_path / "secret.txt", folder / "0.jpg"):
        path.write_bytes(b"content")
    store = ImageStore(folder)
    for name in ("../secret.txt", str(tmp_path / "secret.txt"), "x/../../secret.txt", "..\\secret.txt", ""):
        for location in (
            {"path": name},
            {"tar": name, "offset": 0, "size": 3},
            {"parquet": name, "row": 0, "column": "x"},
        ):
            with pytest.raises(ValueError, match="accepted is a path below"):
                store.read(location)
    with pytest.raises(FileNotFoundError):
        store.read({"path": "1.jpg"})
    with pytest.raises(ValueError, match="none of the keys 'path', 'tar' and 'parquet'"):
        store.read({"url": "http://localhost"})
    with pytest.raises(ValueError, match="ends after 4 of these bytes"):
        store.read({"tar": "0.jpg", "offset": 3, "size": 10})
    for size in (-1, 0, 1 << 40):
        with pytest.raises(ValueError, match=f"size is {size}"):
            store.read({"tar": "0.jpg", "offset": 0, "size": size})


def test_the_store_reads_from_many_threads_and_in_other_processes(tmp_path):
    settings = write_grit(tmp_path, *(grit(number, jpg=photo(number)) for number in range(20)), row_group_size=3)
    source = open_source(SourceSettings(**settings))
    locations = [image.location for image in source.read(0, 20)]
    store = pickle.loads(pickle.dumps(open_image_store(SourceSettings(**settings))))
    with ThreadPoolExecutor(4) as threads:
        order = [number % 20 for number in range(0, 60, 7)]
        assert list(threads.map(lambda n: store.read(locations[n]), order)) == [photo(number) for number in order]
    for change in ({"row": 20}, {"row": -1}, {"column": "caption"}):
        with pytest.raises(ValueError, match="the file has 20 rows|holds no bytes"):
            store.read({**locations[0], **change})
