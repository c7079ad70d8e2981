# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""LongGRIT's filters: which regions are left out and why, and near duplicates among their crops."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from processing_pixclip.longgrit.config import FilterSettings
from processing_pixclip.longgrit.crop_hashes import HashIndex, crop_hash
from processing_pixclip.longgrit.records import ImageWork, SourceImage, SourceRegion
from processing_pixclip.longgrit.region_filters import filter_regions
from processing_pixclip.regions import encode_rle, mask_to_box


ALL = FilterSettings(min_area=0, max_aspect=1000, max_iou=1, hash_distance=None)


def image_with(regions, width=100, height=80):
    numbered = tuple(dataclasses.replace(region, region_id=f"1#{i}") for i, region in enumerate(regions))
    return SourceImage("1", "1.jpg", {"path": "1.jpg"}, width, height, numbered)


def box(*sides, **fields):
    return SourceRegion("", sides, **{"mask_source": "box", **fields})


def masked(mask, **fields):
    return SourceRegion("", (0, 0, 1, 1), encode_rle(mask), **fields)


def rectangle(left, top, right, bottom, width=100, height=80):
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def reasons(regions, **settings):
    filtered = filter_regions(image_with(regions), ALL.model_copy(update=settings))
    return [region.dropped for region in filtered.regions]


def test_each_limit_drops_what_is_beyond_it_and_keeps_what_is_on_it():
    # 8,000 pixels: a 1 % region has 80 of them.
    assert reasons([box(10, 10, 20, 18), box(10, 10, 20, 17.9)], min_area=0.01) == [None, "too_small"]
    assert reasons([box(0, 0, 50, 80), box(0, 0, 51, 80)], max_area=0.5) == [None, "too_large"]
    assert reasons([box(10, 10, 50, 20), box(10, 10, 51, 20), box(10, 10, 20, 51)], max_aspect=4) == [
        None,
        "aspect",
        "aspect",
    ]
    # The left side is 20 of 60 pixels of outline.
    assert reasons([box(0, 10, 10, 30), box(0.6, 10, 10.6, 30)], max_border=0.3) == ["border", None]
    assert reasons([box(0, 10, 10, 30)], max_border=0.34) == [None]
    assert reasons([box(0, 0, 100, 80)], max_border=0.99) == ["border"]
    assert reasons([box(0, 0, 9, 9, score=score) for score in (0.5, 0.49, None)], min_score=0.5) == [
        None,
        "low_score",
        None,
    ]
    assert reasons([box(0, 0, 9, 9, score=float("nan"))]) == ["low_score"]


def test_area_shape_and_place_are_those_of_the_mask_and_not_of_the_box_beside_it():
    ring = rectangle(0, 0, 100, 80) & ~rectangle(1, 1, 99, 79)
    region = dataclasses.replace(masked(ring), box=(40, 40, 42, 42))
    filtered = filter_regions(image_with([region]), ALL.model_copy(update={"min_area": 0.03, "max_area": 0.05}))
    assert filtered.regions[0].dropped is None
    assert filtered.regions[0].box == (0, 0, 100, 80)


def test_the_largest_regions_stay_and_of_equal_ones_the_earlier():
    regions = [
        box(0, 0, 5, 5),
        box(20, 0, 26, 6),
        box(40, 0, 45, 5),
        masked(rectangle(60, 0, 70, 9)),
        box(80, 0, 81, 1),
    ]
    assert reasons(regions, max_regions=3) == [None, None, "over_max_regions", None, "over_max_regions"]


@pytest.mark.parametrize(
    "region, reason",
    [
        (box(5, 5, 5, 9), "empty_box"),
        (box(9, 9, 5, 5), "malformed_box"),
        (box(-1.5, 5, 50, 9), "malformed_box"),
        (box(-1, 5, 0, 9), "empty_box"),
        (box(5.4, 5, 5.7, 9), "empty_box"),
        (box(5, 5, 500, 9), "malformed_box"),
        (box(float("nan"), 5, 6, 9), "malformed_box"),
        (box(5, 5, 6), "malformed_box"),
        (SourceRegion("", (1, 1, 9, 9), {"size": [80, 100], "counts": "!"}), "malformed_mask"),
        (SourceRegion("", (1, 1, 9, 9), {"size": [80, 100], "counts": [10, 10]}), "malformed_mask"),
        (SourceRegion("", (1, 1, 9, 9), {"size": [100, 80], "counts": [8000]}), "malformed_mask"),
        (SourceRegion("", (1, 1, 9, 9), {"counts": [8000]}), "malformed_mask"),
        (SourceRegion("", (1, 1, 9, 9), {"size": [80, 100], "counts": [8000]}), "empty_mask"),
    ],
)
def test_a_malformed_region_is_dropped_and_its_image_goes_on(region, reason):
    first, second = filter_regions(image_with([region, box(1, 1, 50, 50)]), ALL).regions
    assert (first.dropped, first.placed, second.dropped, second.placed) == (reason, False, None, True)
    # What it leaves behind is harmless to whoever still looks at it.
    assert first.mask is None and first.mask_source == "box" and first.box == (0, 0, 0, 0)


def test_a_box_up_to_a_pixel_outside_by_rounding_is_cut_at_the_edge():
    regions = [box(-0.3, -1, 10.25, 10), box(90, 70, 101, 80.4)]
    filtered = filter_regions(image_with(regions), ALL).regions
    assert [region.dropped for region in filtered] == [None, None]
    assert [region.box for region in filtered] == [(0, 0, 10.25, 10), (90, 70, 100, 80)]


def test_a_box_counts_from_half_a_pixel_on():
    thin = [box(5.5, 5, 6, 9), box(5.6, 5, 6, 9), box(5.75, 5, 6.25, 9), box(5.2, 5.2, 5.95, 5.95), box(5, 5, 6, 6)]
    image = filter_regions(image_with(thin), ALL)
    assert [region.dropped for region in image.regions] == [None, "empty_box", "empty_box", None, None]
    for region in image.regions:
        assert region.dropped or ImageWork(image, bytes).mask(region).any()


def test_what_the_source_dropped_keeps_its_reason_and_hides_no_duplicate():
    crowd = masked(rectangle(10, 10, 50, 50), dropped="crowd")
    malformed = SourceRegion("", (1, 1, 9, 9), {"size": [1, 1], "counts": "x"}, dropped="crowd")
    assert reasons([crowd, masked(rectangle(10, 10, 50, 50)), malformed], max_iou=0.5) == ["crowd", None, "crowd"]


def test_every_form_of_rle_becomes_a_compressed_one_with_its_bounding_box():
    mask = rectangle(3, 4, 20, 30) | rectangle(15, 20, 60, 40)
    rle = encode_rle(mask)
    runs = np.diff([0, *(np.flatnonzero(np.diff(mask.ravel(order="F"))) + 1).tolist(), mask.size]).tolist()
    forms = [rle["counts"], rle["counts"].encode(), runs, np.array(runs)]
    regions = [SourceRegion("", (0, 0, 1, 1), {"size": [80, 100], "counts": counts}) for counts in forms]
    for region in filter_regions(image_with(regions), ALL).regions:
        assert region.mask == rle
        assert region.box == tuple(mask_to_box(mask)) and region.dropped is None


def naive_duplicates(masks, max_iou):
    kept, found = [], []
    for number, mask in enumerate(masks):
        ious = [(mask & masks[other]).sum() / (mask | masks[other]).sum() for other in kept]
        found.append("duplicate_mask" if any(iou > max_iou for iou in ious) else None)
        if found[-1] is None:
            kept.append(number)
    return found


@pytest.mark.parametrize("kind", ["masks", "boxes", "both"])
def test_duplicates_by_overlap_are_those_of_a_naive_comparison_of_pixels(kind):
    random = np.random.default_rng(0)
    total = 0
    for max_iou in (0.3, 0.6, 0.9):
        for _ in range(15):
            sides = random.integers(0, 24, size=(12, 2))
            sizes = random.integers(8, 14, size=(12, 2))
            corners = np.concatenate((sides, sides + sizes), axis=1).tolist()
            masks = [rectangle(*corner, width=40, height=40) for corner in corners]
            regions = []
            for number, corner in enumerate(corners):
                if kind == "boxes" or (kind == "both" and number % 2):
                    regions.append(box(*corner))
                else:
                    masks[number] &= random.random((40, 40)) < 0.97
                    regions.append(masked(masks[number]))
            filtered = filter_regions(image_with(regions, 40, 40), ALL.model_copy(update={"max_iou": max_iou}))
            found = [region.dropped for region in filtered.regions]
            assert found == naive_duplicates(masks, max_iou)
            total += sum(reason is not None for reason in found)
    assert total > 40


def test_masks_overlap_by_pixels_where_their_boxes_are_the_same():
    upper = np.triu(np.ones((80, 80), dtype=bool))
    one, other = np.zeros((80, 100), dtype=bool), np.zeros((80, 100), dtype=bool)
    one[:, :80], other[:, :80] = upper, ~upper
    other[0, 0] = other[79, 79] = True
    assert reasons([masked(one), masked(other)], max_iou=0.5) == [None, None]
    assert coco_mask.iou([encode_rle(one)], [encode_rle(other)], [0])[0, 0] < 0.01


# ------------------------------------------------------------------------------------------------ crops


def photo(seed, size=(160, 120)):
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def distance(a, b):
    return (a ^ b).bit_count()


def test_copies_of_a_crop_have_near_hashes_and_other_crops_far_ones():
    mask = rectangle(20, 10, 140, 110, 160, 120)
    original = crop_hash(photo(0), mask)
    file = io.BytesIO()
    photo(0).save(file, "JPEG", quality=50)
    doubled = np.repeat(np.repeat(mask, 2, axis=0), 2, axis=1)
    assert distance(original, crop_hash(Image.open(file), mask)) <= 4
    assert distance(original, crop_hash(photo(0).resize((320, 240)), doubled)) <= 4
    assert min(distance(original, crop_hash(photo(seed), mask)) for seed in range(1, 20)) > 8


def test_a_crop_hash_does_not_hang_on_what_is_outside_of_the_mask():
    mask = rectangle(20, 10, 140, 110, 160, 120) & ~rectangle(60, 40, 90, 80, 160, 120)
    one, other = np.asarray(photo(0)), np.asarray(photo(1))
    changed = Image.fromarray(np.where(mask[..., None], one, other))
    assert crop_hash(photo(0), mask) == crop_hash(changed, mask)
    assert crop_hash(photo(0), mask) == crop_hash(photo(0).convert("L"), mask)
    with pytest.raises(ValueError, match="empty mask"):
        crop_hash(photo(0), np.zeros((120, 160), dtype=bool))


def test_a_crop_of_one_colour_has_no_hash():
    mask = rectangle(10, 10, 60, 60)
    noise = np.random.default_rng(0).integers(0, 2, (80, 100), dtype=np.uint8)
    for grey in (0, 50, 128, 255):
        assert crop_hash(Image.new("RGB", (100, 80), (grey,) * 3), mask) is None
    assert crop_hash(Image.fromarray(200 + noise), mask) is None
    # What is outside of the mask shows the form of the region.
    assert crop_hash(Image.new("L", (100, 80)), mask & ~rectangle(20, 20, 50, 60)) is not None
    assert crop_hash(Image.fromarray(20 * noise), mask) is not None


@pytest.mark.parametrize("bits", range(17))
def test_the_index_finds_what_comparing_with_each_finds(bits, monkeypatch):
    monkeypatch.setattr("processing_pixclip.longgrit.crop_hashes._UNSORTED", 64)
    random = np.random.default_rng(bits)
    index, added, found = HashIndex(bits), [], 0
    # Few centres with flips around them, so that many pairs lie just within or just beyond the distance.
    centres = random.integers(0, 2**64, size=12, dtype=np.uint64)
    for number in range(700):
        flips = random.choice(64, size=random.integers(0, bits + 6), replace=False)
        value = int(centres[random.integers(12)]) ^ sum(1 << int(bit) for bit in flips)
        near = any(distance(value, other) <= bits for other in added)
        assert index.near(value) == near
        found += near
        if not near:
            index.add(value)
            added.append(value)
        if number == 300:
            resumed = HashIndex(bits)
            resumed.extend(np.array(added, dtype=np.uint64))
            index = resumed
    assert len(index) == len(added) > 64 and found > 20


def test_an_index_of_another_distance_than_bits_allow_is_refused():
    with pytest.raises(ValueError, match="17; accepted are 0 to 16"):
        HashIndex(17)
