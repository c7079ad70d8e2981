# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pictures of regions, pixel by pixel."""

from pathlib import Path

import numpy as np
import pytest
from encoders_for_tests import gradient_photo
from evaluation_for_tests import PHOTOS, heldout_records
from PIL import Image, ImageFilter

from processing_pixclip import encode_rle
from processing_pixclip.evaluation.items import EvaluationImage, EvaluationRegion
from processing_pixclip.evaluation.region_views import (
    VIEWS,
    RegionPictures,
    check_view,
    padded_crop_window,
    region_box,
    region_mask,
)


IMAGE = EvaluationImage("1.jpg", Path("1.jpg"))
HEIGHT, WIDTH = 40, 60
# An L: its box is not its mask.
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[10:30, 20:24] = MASK[26:30, 20:40] = True
BOX = (20, 10, 40, 30)


def region(box=None, mask=None):
    return EvaluationRegion("1.jpg#7", IMAGE, mask if mask is None else encode_rle(mask), box)


def pixels(picture):
    return np.asarray(picture).astype(int)


@pytest.fixture(scope="module")
def photo():
    return gradient_photo(WIDTH, HEIGHT)


def test_mask_and_box_come_from_each_other():
    both = region(BOX, MASK)
    np.testing.assert_array_equal(region_mask(both, HEIGHT, WIDTH), MASK)
    np.testing.assert_array_equal(region_box(region(mask=MASK), HEIGHT, WIDTH), BOX)
    boxed = region_mask(region(box=BOX), HEIGHT, WIDTH)
    assert boxed.sum() == 20 * 20
    assert boxed[10:30, 20:40].all()
    # The box that is given counts, also beside a mask.
    np.testing.assert_array_equal(region_box(region((0, 0, 60, 40), MASK), HEIGHT, WIDTH), [0, 0, 60, 40])


def test_whole_image_with_and_without_mask(photo):
    picture, mask = RegionPictures(photo).render(region(mask=MASK), "full+mask")
    np.testing.assert_array_equal(pixels(picture), pixels(photo))
    np.testing.assert_array_equal(mask, MASK)
    picture, mask = RegionPictures(photo).render(region(mask=MASK), "full")
    np.testing.assert_array_equal(pixels(picture), pixels(photo))
    assert mask is None


def test_blur_keeps_the_region_and_blurs_the_rest(photo):
    picture, mask = RegionPictures(photo).render(region(mask=MASK), "blur+mask")
    blurred = pixels(photo.filter(ImageFilter.GaussianBlur(100)))
    expected = np.where(MASK[..., None], pixels(photo), blurred)
    np.testing.assert_array_equal(pixels(picture), expected)
    np.testing.assert_array_equal(mask, MASK)
    # So wide a blur leaves nearly one colour of this photo.
    assert pixels(picture)[~MASK].std(axis=0).max() < 5 < pixels(photo)[~MASK].std(axis=0).min()
    same, no_mask = RegionPictures(photo).render(region(mask=MASK), "blur")
    np.testing.assert_array_equal(pixels(same), expected)
    assert no_mask is None


def test_an_image_is_blurred_once(photo, monkeypatch):
    blurs = []
    filtered = Image.Image.filter
    monkeypatch.setattr(Image.Image, "filter", lambda self, kind: blurs.append(kind) or filtered(self, kind))
    pictures = RegionPictures(photo)
    for view in ("blur", "blur+mask", "box-crop"):
        pictures.render(region(mask=MASK), view)
    assert len(blurs) == 1
    assert blurs[0].radius == 100


def test_box_crop_has_a_margin_of_15_percent(photo):
    picture, mask = RegionPictures(photo).render(region(mask=MASK), "box-crop")
    # 20 pixels wide and high: 3 on each side.
    np.testing.assert_array_equal(pixels(picture), pixels(photo)[7:33, 17:43])
    assert mask is None


def test_box_crop_ends_at_the_image(photo):
    picture, _ = RegionPictures(photo).render(region(box=(50, 0, 60, 40)), "box-crop")
    np.testing.assert_array_equal(pixels(picture), pixels(photo)[:, 48:])


def test_masked_crop_has_the_mean_colour_outside_the_mask(photo):
    picture, mask = RegionPictures(photo, mean_colour=(1, 2, 3)).render(region(mask=MASK), "masked-crop")
    expected = np.where(MASK[..., None], pixels(photo), [1, 2, 3])[7:33, 17:43]
    np.testing.assert_array_equal(pixels(picture), expected)
    assert mask is None


def naive_padded_crop(photo, mask, box):
    """As the evaluation of PixCLIP describes it: pad by 600, cut, where the window ends at the border."""
    padded = np.pad(pixels(photo), ((600, 600), (600, 600), (0, 0)), constant_values=255)
    padded_mask = np.pad(mask.astype(float), 600)
    side = 1.5 * max(box[2] - box[0], box[3] - box[1])
    x, y = (box[0] + box[2]) / 2 + 600, (box[1] + box[3]) / 2 + 600
    left, top = (max(0, round(centre - side / 2)) for centre in (x, y))
    right, bottom = min(padded.shape[1], round(x + side / 2)), min(padded.shape[0], round(y + side / 2))
    return padded[top:bottom, left:right], padded_mask[top:bottom, left:right]


@pytest.mark.parametrize("box", [BOX, (0, 0, 60, 40), (0, 30, 8, 40), (59, 0, 60, 1)])
def test_padded_crop_of_a_small_image(photo, box):
    x0, y0, x1, y1 = box
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    picture, cut = RegionPictures(photo).render(region(box, mask), "padded-crop+mask")
    expected, expected_mask = naive_padded_crop(photo, mask, box)
    np.testing.assert_array_equal(pixels(picture), expected)
    np.testing.assert_array_equal(cut, expected_mask)
    assert cut.sum() == mask.sum()


def test_padded_crop_is_clipped_at_the_border():
    # Of 2600 pixels the window would have 3900, the image has 2600 and twice 600.
    assert padded_crop_window(np.array([0, 0, 2600, 10]), 10, 2600) == (-600, -600, 3200, 610)
    large = Image.new("RGB", (2600, 10), (5, 6, 7))
    whole = EvaluationRegion("1.jpg#8", IMAGE, box=(0, 0, 2600, 10))
    picture, cut = RegionPictures(large).render(whole, "padded-crop+mask")
    assert picture.size == (3800, 1210)
    assert (pixels(picture)[600:610, 600:3200] == [5, 6, 7]).all()
    # All the rest is white, and no part of the mask.
    assert pixels(picture).sum() == 255 * 3 * (3800 * 1210 - 2600 * 10) + 18 * 2600 * 10
    assert cut[600:610, 600:3200].all()
    assert cut.sum() == 2600 * 10


def test_views_of_real_regions_show_something():
    record = heldout_records(1)[0]
    with Image.open(PHOTOS / record["image"]) as photo:
        pictures = RegionPictures(photo.convert("RGB"))
    for number, entry in enumerate(record["regions"]):
        item = EvaluationRegion(f"{record['image']}#{number}", IMAGE, entry["mask"])
        for view in (view for view in VIEWS if VIEWS[view].picture):
            picture, mask = pictures.render(item, view)
            assert pixels(picture).std() > 0
            assert (mask is not None) == VIEWS[view].mask
            if mask is not None:
                assert mask.shape == (picture.height, picture.width)
                assert mask.any()


def test_what_is_no_picture_is_refused(photo):
    for view in ("roi", "mask-pooled", "crop+mask", "something"):
        with pytest.raises(ValueError, match=f"{view!r} is no picture".replace("+", r"\+")):
            RegionPictures(photo).render(region(mask=MASK), view)


def test_a_region_that_does_not_fit_names_itself(photo):
    with pytest.raises(ValueError, match="box of region '1.jpg#7' is .*outside its image of width 60 and height 40"):
        RegionPictures(photo).render(region(box=(50, 0, 70, 40)), "box-crop")
    with pytest.raises(ValueError, match="mask of region '1.jpg#7' is an RLE of size"):
        RegionPictures(photo).render(region(mask=MASK[:, :50]), "full+mask")


def test_a_view_that_a_model_lacks_is_told_with_those_it_has():
    check_view("roi", ("full", "roi"), "CLIPModel")
    with pytest.raises(
        ValueError, match=r"CLIPModel does not support the view 'full\+mask'.* it supports 'full', 'roi'"
    ):
        check_view("full+mask", ("full", "roi"), "CLIPModel")
    with pytest.raises(ValueError, match="view is 'half', which there is not; CLIPModel supports 'full'"):
        check_view("half", ("full",), "CLIPModel")
