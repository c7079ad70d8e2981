# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The pictures that models are shown: the region is in them, large enough, and what is drawn stands out and hides nothing."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from processing_pixclip import encode_rle
from processing_pixclip.longgrit.records import ImageWork, RegionWork, SourceImage, SourceRegion
from processing_pixclip.longgrit.region_views import VIEWS, data_url, render_view


def region_of(pixels, mask=None, box=None):
    """Work on one region of an image, by its mask or its box."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    height, width = pixels.shape[:2]
    if mask is not None:
        ys, xs = np.nonzero(mask)
        box = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    rle = None if mask is None else encode_rle(mask)
    box = tuple(float(edge) for edge in box)
    region = SourceRegion("1#0", box, mask=rle, mask_source="box" if mask is None else "annotation")
    source = SourceImage("1", "1.png", {"path": "1.png"}, width, height, (region,))
    return RegionWork(ImageWork(source, file.getvalue), region)


def view(work, name, side=768):
    return np.asarray(Image.open(io.BytesIO(render_view(work, name, side))).convert("RGB")).astype(int)


def flat(colour, height=300, width=400):
    return np.full((height, width, 3), colour, dtype=np.uint8)


def disk(height, width, y, x, radius):
    rows, columns = np.mgrid[:height, :width]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def near(pixels, colour, tolerance=60):
    return (np.abs(pixels - np.array(colour)) < tolerance).all(axis=-1)


def red(pixels):
    return (pixels[..., 0] > 170) & (pixels[..., 1:] < 100).all(axis=-1)


def share_of(pixels, colour):
    return near(pixels, colour).mean()


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (399, 299, 400, 300), (0, 0, 400, 300), (0, 100, 400, 101), (50.4, 20.6, 90.2, 70.9)]
)
@pytest.mark.parametrize("side", [28, 336, 768])
def test_every_region_gives_a_jpeg_within_the_side(name, box, side):
    content = render_view(region_of(flat((20, 120, 20)), box=box), name, side)
    picture = Image.open(io.BytesIO(content))
    assert (picture.format, picture.mode) == ("JPEG", "RGB")
    assert 28 <= min(picture.size) and max(picture.size) <= max(side, 28)


def test_a_crop_shows_the_region_with_some_of_its_surroundings():
    pixels = flat((20, 120, 20))
    pixels[100:200, 150:250] = (30, 30, 220)
    work = region_of(pixels, box=(150, 100, 250, 200))
    shares = {name: share_of(view(work, name), (30, 30, 220)) for name in ("crop", "overlay", "image")}
    # Margins of 15 % and 50 % on each side.
    assert shares["crop"] == pytest.approx(1 / 1.3**2, abs=0.03)
    assert shares["overlay"] == pytest.approx(1 / 2**2, abs=0.03)
    assert shares["image"] == pytest.approx(10_000 / 120_000, abs=0.01)


def test_small_regions_are_enlarged_and_large_images_reduced():
    small = region_of(flat((20, 120, 20), 600, 900), box=(300, 300, 340, 320))
    assert max(view(small, "crop").shape) == 384
    tiny = region_of(flat((20, 120, 20), 600, 900), box=(300, 300, 304, 304))
    assert max(view(tiny, "crop").shape) == 8 * 20
    assert max(view(small, "image").shape) == 768
    assert max(view(small, "crop", 200).shape) == 200


def test_a_long_region_does_not_become_a_strip():
    height, width = view(region_of(flat((20, 120, 20), 600, 900), box=(10, 300, 890, 304)), "crop").shape[:2]
    assert width / height < 3.1


def test_the_isolated_region_keeps_its_pixels_and_nothing_else():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    mask = disk(300, 400, 150, 200, 60)
    pixels[mask] = (20, 60, 200)
    shown = view(region_of(pixels, mask), "masked_crop")
    inside = near(shown, (20, 60, 200))
    assert inside.mean() == pytest.approx(mask.sum() / (121 * 1.3) ** 2, rel=0.05)
    # What is left is the one plain grey, but for a thin edge.
    assert (inside | near(shown, (236, 236, 236), 30)).mean() > 0.97


@pytest.mark.parametrize("lightness", [0, 128, 255])
def test_the_isolated_region_stands_out_from_its_background(lightness):
    shown = view(region_of(flat(lightness), disk(300, 400, 150, 200, 60)), "masked_crop")
    assert abs(shown[shown.shape[0] // 2, shown.shape[1] // 2] - shown[2, 2]).min() > 70


BACKGROUNDS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (255, 0, 0),
    "pink": (255, 170, 170),
    "green": (0, 160, 0),
    "grey": (128, 128, 128),
}


@pytest.mark.parametrize("background", BACKGROUNDS.values(), ids=BACKGROUNDS.keys())
@pytest.mark.parametrize("name", ["overlay", "boxed_image"])
def test_what_is_drawn_stands_out_from_every_background(name, background):
    shown = view(region_of(flat(background), disk(300, 400, 150, 200, 60)), name)
    # From the middle outwards: first as it was, then a line that differs much, then as it was.
    row = shown[shown.shape[0] // 2, shown.shape[1] // 2 :]
    differing = np.abs(row - np.array(background)).max(axis=-1) > 100
    assert not differing[: len(row) // 4].any() and not differing[-len(row) // 5 :].any()
    assert 2 <= differing.sum() <= 12


def test_the_outline_follows_the_mask_and_covers_nothing_of_it():
    mask = disk(300, 400, 150, 200, 60)
    pixels = flat((20, 120, 20))
    pixels[mask] = (30, 30, 220)
    shown = view(region_of(pixels, mask), "overlay")
    rows, columns = np.nonzero(red(shown))
    scale = shown.shape[0] / 242
    distance = np.hypot(rows - shown.shape[0] / 2, columns - shown.shape[1] / 2) / scale
    assert len(rows) > 300 and 59 < distance.min() and distance.max() < 68
    assert near(shown, (30, 30, 220)).sum() == pytest.approx(mask.sum() * scale**2, rel=0.06)


@pytest.mark.parametrize("name", ["overlay", "boxed_image"])
def test_a_region_that_the_image_cuts_off_is_still_surrounded(name):
    whole = view(region_of(flat((20, 120, 20)), box=(0, 0, 400, 300)), name)
    for edge in (whole[:8, 50:-50], whole[-8:, 50:-50], whole[50:-50, :8], whole[50:-50, -8:]):
        assert red(edge).mean() > 0.2
    assert not red(whole[20:-20, 20:-20]).any()


def test_the_box_is_drawn_around_the_region():
    pixels = flat((20, 120, 20))
    pixels[100:200, 150:250] = (30, 30, 220)
    shown = view(region_of(pixels, box=(150, 100, 250, 200)), "boxed_image")
    rows, columns = np.nonzero(red(shown))
    assert (rows.min(), columns.min()) > (90, 140) and (rows.max(), columns.max()) < (210, 260)
    assert near(shown, (30, 30, 220)).sum() == pytest.approx(10_000, rel=0.03)


def test_narrow_gaps_of_a_mask_are_not_painted_over():
    mask = disk(300, 400, 150, 200, 100)
    mask[:, ::6] = False
    pixels = flat((30, 30, 220))
    shown = view(region_of(pixels, mask), "overlay")
    middle = shown[shown.shape[0] // 2 - 40 :, shown.shape[1] // 2 - 40 :][:80, :80]
    assert near(middle, (30, 30, 220)).all()


def test_views_are_kept_for_each_region_and_drawn_once():
    pixels = flat((20, 120, 20))
    work = region_of(pixels, box=(10, 10, 50, 50))
    other = RegionWork(work.image, SourceRegion("1#1", (200.0, 100.0, 300.0, 290.0), mask_source="box"))
    first = render_view(work, "overlay")
    assert render_view(work, "overlay") is first
    assert render_view(other, "overlay") != first and render_view(work, "overlay", 300) != first
    assert render_view(other, "image") is render_view(work, "image") is render_view(RegionWork(work.image), "image")


def test_a_region_that_has_ended_takes_no_memory():
    work = region_of(flat((20, 120, 20)), disk(300, 400, 150, 200, 60))
    before = {name: render_view(work, name) for name in VIEWS}
    work.image.forget(work.region)
    assert list(work.image.views.values()) == [before["image"]]
    assert {name: render_view(work, name) for name in VIEWS} == before


def test_a_work_without_a_region_has_the_image_alone():
    work = RegionWork(region_of(flat(128), box=(1, 1, 5, 5)).image)
    with pytest.raises(ValueError, match="'crop' shows a region, but the work on '1' has none; accepted is 'image'"):
        render_view(work, "crop")
    with pytest.raises(ValueError, match="view 'crops' is unknown; accepted are crop, masked_crop"):
        render_view(work, "crops")


def test_a_data_url_holds_the_file():
    content = render_view(region_of(flat(128), box=(1, 1, 50, 50)), "crop")
    head, body = data_url(content).split(",")
    assert head == "data:image/jpeg;base64" and base64.b64decode(body) == content
