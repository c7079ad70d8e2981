# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
import re

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from processing_pixclip import PixCLIPImageProcessor, PixCLIPImageProcessorPil, mask_to_box
from processing_pixclip.image_reading import read_image


MODES = ("squash", "shortest_edge", "letterbox")
RED = (200, 30, 40)
INSIDE, OUTSIDE = (1 - 0.5) / 0.26, (0 - 0.5) / 0.26


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def painted(height, width, box):
    """Grey picture with a red box, and the mask of the box."""
    x1, y1, x2, y2 = box
    pixels = np.full((height, width, 3), 128, dtype=np.uint8)
    pixels[y1:y2, x1:x2] = RED
    mask = np.zeros((height, width), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return pixels, mask


def colours(pixel_values):
    """Undoes the normalisation: (H, W, 3) in 0..255."""
    values = np.moveaxis(np.asarray(pixel_values), 0, -1)
    return (values * OPENAI_CLIP_STD + OPENAI_CLIP_MEAN) * 255


@pytest.fixture
def image_processor():
    return PixCLIPImageProcessor(size={"height": 32, "width": 32})


@pytest.mark.parametrize("size", [(480, 640), (333, 251), (20, 77), (224, 224)])
def test_squash_is_pil_bicubic_and_clip_normalisation_bit_for_bit(size):
    image = Image.fromarray(noise(*size))
    resized = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC))
    scaled = (resized * (1 / 255)).astype(np.float32)
    expected = (scaled - np.array(OPENAI_CLIP_MEAN, np.float32)) / np.array(OPENAI_CLIP_STD, np.float32)
    processed = PixCLIPImageProcessor()(image)["pixel_values"][0]
    np.testing.assert_array_equal(processed, np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize("size", [(480, 640), (333, 251), (20, 77), (101, 30), (224, 224)])
def test_shortest_edge_is_clips_processor(size):
    image = Image.fromarray(noise(*size))
    expected = CLIPImageProcessor()(image, return_tensors="np")["pixel_values"]
    processed = PixCLIPImageProcessor(resize_mode="shortest_edge")(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(processed, expected, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(60, 90), (90, 60), (64, 64), (12, 20)])
def test_image_mask_and_box_stay_aligned(mode, size):
    height, width = size
    box = (width // 2 - width // 8, height // 2 - height // 4, width // 2 + width // 6, height // 2 + height // 8)
    pixels, mask = painted(height, width, box)
    processor = PixCLIPImageProcessor(size=48, resize_mode=mode, resample=Image.Resampling.BILINEAR)
    batch = processor(pixels, masks=mask, crops=True)
    for image_key, mask_key in (("pixel_values", "mask_values"), ("crop_pixel_values", "crop_mask_values")):
        values = batch[mask_key][0, 0]
        inside, outside = values > INSIDE - 1e-4, values < OUTSIDE + 1e-4
        assert inside.any() and outside.any()
        found = colours(batch[image_key][0])
        np.testing.assert_allclose(found[inside], np.broadcast_to(RED, (inside.sum(), 3)), atol=1)
        assert (np.abs(found[outside] - RED).max(axis=-1) > 50).all()
    x1, y1, x2, y2 = batch["region_boxes"][0] * 48
    core = batch["mask_values"][0, 0] > 0
    assert np.abs(mask_to_box(core) - [x1, y1, x2, y2]).max() <= 1


def test_letterbox_pads_with_the_mean_and_no_mask(image_processor):
    batch = image_processor(noise(16, 32), masks=np.ones((16, 32), bool), resize_mode="letterbox")
    assert (batch["pixel_values"][0][:, :8] == 0).all() and (batch["pixel_values"][0][:, 24:] == 0).all()
    assert (batch["mask_values"][0, 0, 8:24] > INSIDE - 1e-5).all()
    assert (batch["mask_values"][0, 0, [*range(8), *range(24, 32)]] < OUTSIDE + 1e-5).all()
    np.testing.assert_allclose(batch["region_boxes"][0], [0, 0.25, 1, 0.75])
    raw = image_processor(noise(16, 32), resize_mode="letterbox", do_normalize=False)["pixel_values"][0]
    np.testing.assert_allclose(raw[:, 0, 0], OPENAI_CLIP_MEAN, rtol=1e-6)


def test_boxes_are_mapped_exactly_and_become_the_mask(image_processor):
    batch = image_processor(noise(40, 80), boxes=[[20, 10, 60, 30], [0, 0, 80, 40]])
    np.testing.assert_allclose(batch["region_boxes"], [[0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1]])
    assert batch["mask_values"][0, 0, 16, 16] == pytest.approx(INSIDE, abs=1e-5)
    assert batch["mask_values"][0, 0, 2, 2] == pytest.approx(OUTSIDE, abs=1e-5)
    assert (batch["mask_values"][1] > INSIDE - 1e-5).all()


def test_masks_and_boxes_together_report_the_given_boxes(image_processor):
    mask = np.zeros((32, 32), bool)
    mask[4:8, 4:8] = True
    batch = image_processor(noise(32, 32), masks=[mask], boxes=[[0, 0, 16, 16]])
    np.testing.assert_allclose(batch["region_boxes"], [[0, 0, 0.5, 0.5]])
    only_mask = image_processor(noise(32, 32), masks=[mask])
    np.testing.assert_array_equal(batch["mask_values"], only_mask["mask_values"])
    np.testing.assert_allclose(only_mask["region_boxes"], [[4 / 32, 4 / 32, 8 / 32, 8 / 32]])


def test_a_mask_without_a_box_reports_its_tight_box(image_processor):
    masks = [painted(64, 32, (8, 16, 24, 32))[1]] * 2
    batch = image_processor(noise(64, 32), masks=masks, boxes=[None, [0, 0, 16, 32]])
    np.testing.assert_allclose(batch["region_boxes"], [[0.25, 0.25, 0.75, 0.5], [0, 0, 0.5, 0.5]])


def test_one_pixel_never_vanishes():
    mask = np.zeros((900, 1300), bool)
    mask[411, 977] = True
    batch = PixCLIPImageProcessor(size=32)(np.zeros((900, 1300, 3), np.uint8), masks=mask, crops=True)
    values = batch["mask_values"][0, 0]
    row, column = np.unravel_index(values.argmax(), values.shape)
    assert values.max() > OUTSIDE and (row, column) == (411 * 32 // 900, 977 * 32 // 1300)
    assert batch["crop_mask_values"].max() > 0


def test_centre_crop_keeps_what_is_visible_and_refuses_what_is_not(image_processor):
    left, across = np.zeros((32, 96), bool), np.zeros((32, 96), bool)
    left[:, :20] = True
    across[8:16, 20:48] = True
    image = noise(32, 96)
    batch = image_processor(image, masks=[across], resize_mode="shortest_edge")
    np.testing.assert_allclose(batch["region_boxes"][0], [0, 0.25, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"masks\[1\].*no visible part.*'letterbox'"):
        image_processor(image, masks=[across, left], resize_mode="shortest_edge")
    with pytest.raises(ValueError, match=r"boxes\[0\]\[1\].*no visible part"):
        image_processor([image], boxes=[[[20, 8, 48, 16], [0, 0, 20, 32]]], resize_mode="shortest_edge")


def test_a_mask_just_outside_the_frame_is_not_visible_with_a_visible_box_either(image_processor):
    mask = np.zeros((8, 14), bool)
    mask[4, 2] = True
    image = noise(8, 14)
    assert image_processor(image, masks=np.roll(mask, 1), resize_mode="shortest_edge")["mask_values"].max() > OUTSIDE
    for boxes in (None, [[2, 2, 9, 6]]):
        with pytest.raises(ValueError, match=r"^masks\[0\] has no visible part"):
            image_processor(image, masks=mask, boxes=boxes, resize_mode="shortest_edge")


def test_box_of_a_half_visible_mask_ignores_its_hidden_part(image_processor):
    mask = np.zeros((32, 96), bool)
    mask[0:4, 0:10] = True
    mask[8:16, 40:48] = True
    batch = image_processor(noise(32, 96), masks=mask, resize_mode="shortest_edge")
    np.testing.assert_allclose(batch["region_boxes"][0], [0.25, 0.25, 0.5, 0.5])


def test_regions_that_show_nothing_are_refused_or_empty(image_processor):
    image = noise(32, 96)
    seen, left, empty = (np.zeros((32, 96), bool) for _ in range(3))
    left[:, :20], seen[8:16, 40:48] = True, True
    regions = {"masks": [seen, left, empty, seen], "boxes": [None, None, None, [50, 3, 50, 9]]}
    options = {"resize_mode": "shortest_edge", "crops": True}
    for row in (1, 2, 3):
        with pytest.raises(ValueError, match=r"(masks|boxes)\[0\]"):
            image_processor(image, **{name: values[row : row + 1] for name, values in regions.items()}, **options)
    batch = image_processor(image, **regions, **options, allow_empty=True)
    plain = image_processor(image, masks=[seen], **options)
    for name, values in plain.items():
        np.testing.assert_array_equal(batch[name][0], values[0])
    for row in (1, 2, 3):
        for name in ("mask_values", "crop_mask_values"):
            np.testing.assert_allclose(batch[name][row], OUTSIDE, rtol=1e-6)
        assert not batch["region_boxes"][row].any() and not batch["crop_pixel_values"][row].any()
    assert batch["region_image_index"].tolist() == [0] * 4
    boxes = image_processor(image, boxes=[[40, 8, 48, 16], [9, 9, 4, 20]], allow_empty=True)
    assert boxes["mask_values"][0].max() > 0 and (boxes["mask_values"][1] < 0).all()
    # What is malformed stays an error.
    for regions in ({"masks": [seen[:4]]}, {"boxes": [[0, 0, 200, 9]]}, {"masks": [seen], "boxes": [[0, 0, 9, "x"]]}):
        with pytest.raises(ValueError, match=r"(masks|boxes)\[0\]"):
            image_processor(image, **regions, allow_empty=True)


def test_context_crop_is_a_square_around_the_mask():
    pixels = noise(100, 200)
    mask = np.zeros((100, 200), bool)
    mask[40:50, 90:110] = True
    processor = PixCLIPImageProcessor(size=32, crop_size=30, resample=Image.Resampling.BOX)
    batch = processor(pixels, masks=mask, crops=True)
    # 1.5 * 20 = 30 pixels a side, centred on (100, 45): a crop of size 30 is then a copy.
    np.testing.assert_allclose(colours(batch["crop_pixel_values"][0]), pixels[30:60, 85:115], atol=1e-3)
    np.testing.assert_array_equal(batch["crop_mask_values"][0, 0] > 0, mask[30:60, 85:115])


def test_context_crop_over_the_edge_shows_mean_and_no_mask():
    pixels, mask = noise(40, 40), np.zeros((40, 40), bool)
    mask[0:20, 0:20] = True
    batch = PixCLIPImageProcessor(size=30, resample=Image.Resampling.BOX)(pixels, masks=mask, crops=True)
    crop = batch["crop_pixel_values"][0]
    assert (crop[:, :5] == 0).all() and (crop[:, :, :5] == 0).all()
    np.testing.assert_allclose(colours(crop)[5:, 5:], pixels[:25, :25], atol=1e-3)
    assert (batch["crop_mask_values"][0, 0, :5] < OUTSIDE + 1e-5).all()


def test_context_crop_is_at_most_the_longer_side():
    pixels, mask = noise(20, 30), np.zeros((20, 30), bool)
    mask[:, 2:28] = True
    crop = PixCLIPImageProcessor(size=30, resample=Image.Resampling.BOX)(pixels, masks=mask, crops=True)
    np.testing.assert_allclose(colours(crop["crop_pixel_values"][0])[5:25], pixels, atol=1e-3)


def test_regions_are_ragged_and_flat(image_processor):
    images = [Image.fromarray(noise(*size)) for size in ((20, 30), (40, 25), (16, 16), (33, 44))]
    masks = [np.ones((2, 20, 30), bool), [], Image.new("1", (16, 16), 1), [np.ones((33, 44))] * 3]
    batch = image_processor(images, masks=masks, crops=True, return_tensors="pt")
    assert batch["pixel_values"].shape == (4, 3, 32, 32) and batch["pixel_values"].dtype == torch.float32
    assert batch["mask_values"].shape == (6, 1, 32, 32) and batch["mask_values"].dtype == torch.float32
    assert batch["region_image_index"].tolist() == [0, 0, 2, 3, 3, 3]
    assert batch["region_image_index"].dtype == torch.int64
    assert batch["region_boxes"].tolist() == [[0, 0, 1, 1]] * 6
    assert batch["crop_pixel_values"].shape == (6, 3, 32, 32) and batch["crop_mask_values"].shape == (6, 1, 32, 32)


def test_a_batch_is_its_items(image_processor):
    images, masks = [noise(20, 30), noise(50, 20, 1)], [np.ones((20, 30), bool), np.eye(50, 20, dtype=bool)]
    batch = image_processor(images, masks=masks, crops=True)
    for index in range(2):
        single = image_processor(images[index], masks=masks[index], crops=True)
        for key in ("pixel_values", "mask_values", "region_boxes", "crop_pixel_values", "crop_mask_values"):
            np.testing.assert_array_equal(batch[key][index], single[key][0])


def test_no_regions_are_an_empty_batch_and_images_alone_have_no_region_keys(image_processor):
    batch = image_processor([noise(20, 30)], masks=[[]], crops=True, return_tensors="pt")
    assert batch["mask_values"].shape == (0, 1, 32, 32) and batch["region_boxes"].shape == (0, 4)
    assert batch["crop_pixel_values"].shape == (0, 3, 32, 32)
    assert list(image_processor(noise(20, 30))) == ["pixel_values"]


def test_every_image_form_of_one_picture_agrees(image_processor, tmp_path):
    pixels = noise(24, 36)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    tensor = torch.from_numpy(pixels)
    forms = [
        Image.fromarray(pixels),
        pixels,
        np.moveaxis(pixels, -1, 0),
        pixels / 255,
        tensor,
        tensor.permute(2, 0, 1),
        tensor.permute(2, 0, 1).float() / 255,
        tmp_path / "photo.png",
        str(tmp_path / "photo.png"),
        np.dstack([pixels, np.zeros((24, 36), np.uint8)]),
        Image.fromarray(pixels).convert("RGBA"),
    ]
    batch = image_processor(forms)["pixel_values"]
    for index in range(1, len(forms)):
        np.testing.assert_array_equal(batch[index], batch[0])
    stacked = image_processor(np.stack([pixels, pixels]))["pixel_values"]
    np.testing.assert_array_equal(stacked, batch[:2])


def test_grey_and_palette_images_become_rgb(image_processor):
    grey = noise(24, 36)[..., 0]
    palette = Image.fromarray(grey).convert("P")
    batch = image_processor([grey, grey[..., None], Image.fromarray(grey), palette, np.repeat(grey[..., None], 3, -1)])
    for index in range(4):
        np.testing.assert_array_equal(batch["pixel_values"][index], batch["pixel_values"][4])


def test_files_are_turned_upright_so_that_masks_fit(image_processor, tmp_path):
    pixels = noise(24, 36)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    mask = np.zeros((36, 24), bool)
    mask[3:9, 4:8] = True
    turned = image_processor(tmp_path / "turned.png", masks=mask)
    upright = image_processor(np.rot90(pixels, -1).copy(), masks=mask)
    np.testing.assert_array_equal(turned["pixel_values"], upright["pixel_values"])


def _truncated(folder):
    Image.fromarray(noise(64, 64)).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    return folder / "cut.jpg"


def _closed(folder):
    image = Image.fromarray(noise(20, 20))
    image.close()
    return image


def _broken_png(folder):
    Image.fromarray(noise(256, 256)).save(folder / "broken.png")
    content = bytearray((folder / "broken.png").read_bytes())
    # The type of the second chunk with pixels, which PIL reads when it loads them and answers with a SyntaxError.
    content[content.index(b"IDAT", content.index(b"IDAT") + 4)] = 0
    (folder / "broken.png").write_bytes(content)
    return Image.open(folder / "broken.png")


def _text_file(folder):
    (folder / "text.png").write_text("no image")
    return folder / "text.png"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.png", "FileNotFoundError"),
        (lambda folder: str(folder), "IsADirectoryError"),
        (_truncated, "truncated"),
        (_text_file, "UnidentifiedImageError"),
        (lambda folder: Image.open(_truncated(folder)), "damaged or closed"),
        (_broken_png, "damaged or closed"),
        (_closed, "damaged or closed"),
        (lambda folder: torch.from_numpy(noise(20, 20)).to_sparse(), "layout torch.sparse_coo"),
        (lambda folder: np.full((20, 20, 3), np.float32(1.0000001)), "values from 1.0000001 to 1.0000001"),
        (lambda folder: "https://example.org/photo.jpg", "load_image"),
        (lambda folder: "data:image/png;base64,AAAA", "load_image"),
        (lambda folder: noise(20, 20).astype(np.int32), "dtype int32"),
        (lambda folder: noise(20, 20).astype(np.float32), "must be in 0..1"),
        (lambda folder: np.full((20, 20, 3), np.nan), "must be in 0..1"),
        (lambda folder: np.zeros((20, 20, 2), np.uint8), "shape (20, 20, 2)"),
        (lambda folder: np.zeros((3, 20, 3), np.uint8), "input_data_format"),
        (lambda folder: np.zeros((0, 20, 3), np.uint8), "shape (0, 20, 3)"),
        (lambda folder: Image.new("I;16", (20, 20)), "mode 'I;16'"),
        (lambda folder: Image.new("F", (20, 20)), "mode 'F'"),
        (lambda folder: None, "NoneType"),
        (lambda folder: [noise(20, 20)], "is a list"),
    ],
)
def test_an_unusable_image_is_named(image_processor, tmp_path, make, message):
    with pytest.raises(ValueError, match=r"^images\[1\].*" + re.escape(message)):
        image_processor([noise(20, 20), make(tmp_path)])


def test_bytes_are_read_as_the_file_is(tmp_path):
    path = tmp_path / "1.png"
    Image.fromarray(noise(20, 30)).save(path)
    assert read_image(path.read_bytes(), "photo") == read_image(path, "photo")
    with pytest.raises(ValueError, match="photo cannot be read as an image from its 9 bytes: UnidentifiedImageError"):
        read_image(path.read_bytes()[:9], "photo")


def test_ambiguous_channels_follow_input_data_format(image_processor):
    pixels = noise(3, 20)
    batch = image_processor(pixels, input_data_format="channels_last")
    np.testing.assert_array_equal(batch["pixel_values"], image_processor(Image.fromarray(pixels))["pixel_values"])


def test_images_are_bounded_in_pixels(image_processor):
    with pytest.raises(ValueError, match=r"images\[0\] is 20x30 .*600 pixels.*max_image_pixels"):
        image_processor(noise(20, 30), max_image_pixels=599)
    with pytest.raises(ValueError, match=r"images\[0\].*blow it up to 32x9600"):
        image_processor(noise(2, 600), resize_mode="shortest_edge", max_image_pixels=100_000)
    # The bound is for what an image brings along, not for the frame that the user asked for.
    for mode in MODES:
        batch = image_processor(noise(24, 24), resize_mode=mode, max_image_pixels=600)
        assert batch["pixel_values"].shape == (1, 3, 32, 32)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"masks": [np.ones((20, 20))]}, "masks has 1 entries, but images has 2"),
        ({"boxes": [[0, 0, 4, 4]] * 3}, "boxes has 3 entries, but images has 2"),
        ({"masks": {"size": [20, 20], "counts": [0, 400]}}, "masks is a dict, but images is a list of 2"),
        ({"masks": [[], np.ones((20, 21))]}, "masks[1][0] has shape (20, 21)"),
        (
            {"masks": [[np.ones((20, 20))] * 2, []], "boxes": [[0, 0, 4, 4], []]},
            "masks[0] has 2 regions, but boxes[0]",
        ),
        ({"boxes": [[], [[0, 0, 4, 4], [0, 0, 40, 4]]]}, "boxes[1][1] is [0, 0, 40, 4]"),
        ({"masks": [None, []]}, "masks[0] is a NoneType"),
        ({"crops": True}, "crops=True needs masks or boxes"),
    ],
)
def test_regions_that_do_not_fit_the_images_are_named(image_processor, regions, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        image_processor([noise(20, 20), noise(20, 20)], **regions)


def test_without_resizing_all_images_must_have_one_size(image_processor):
    batch = image_processor([noise(20, 30), noise(20, 30, 1)], boxes=[[0, 0, 15, 10], []], do_resize=False)
    assert batch["pixel_values"].shape == (2, 3, 20, 30)
    np.testing.assert_allclose(colours(batch["pixel_values"][1]), noise(20, 30, 1), atol=1e-3)
    assert (batch["mask_values"][0, 0] > 0).sum() == 150
    with pytest.raises(ValueError, match=r"images\[1\] is 30x20 .*images\[0\] is 20x30"):
        image_processor([noise(20, 30), noise(30, 20)], do_resize=False)


def test_rescaling_and_normalisation_can_be_switched_off(image_processor):
    pixels = noise(32, 32)
    raw = image_processor(pixels, do_rescale=False, do_normalize=False, boxes=[0, 0, 32, 16])
    np.testing.assert_array_equal(raw["pixel_values"][0], np.moveaxis(pixels, -1, 0))
    np.testing.assert_array_equal(raw["mask_values"][0, 0, [0, 15, 16, 31], 5], [1, 1, 0, 0])
    scaled = image_processor(pixels, do_normalize=False)["pixel_values"]
    assert scaled.min() >= 0 and scaled.max() <= 1


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ({"resise_mode": "letterbox"}, TypeError),
        ({"resize_mode": "stretch"}, ValueError),
        ({"size": {"shortest_edge": 224}}, ValueError),
        ({"size": 0}, ValueError),
        ({"size": [224]}, ValueError),
        ({"crop_size": (1, 2, 3)}, ValueError),
        ({"resample": 17}, ValueError),
        ({"image_std": (0.2, 0.0, 0.2)}, ValueError),
        ({"image_mean": (0.5, 0.5)}, ValueError),
        ({"mask_std": 0}, ValueError),
        ({"crop_scale": 0.9}, ValueError),
        ({"do_resize": "yes"}, ValueError),
        ({"input_data_format": "hwc"}, ValueError),
    ],
)
def test_bad_options_are_refused_at_construction_and_per_call(image_processor, option, error):
    (name,) = option
    with pytest.raises(error, match=name):
        PixCLIPImageProcessor(**option)
    with pytest.raises(error, match=name):
        image_processor(noise(20, 20), **option)


def test_options_survive_saving(tmp_path):
    options = {"size": 48, "resize_mode": "letterbox", "crop_size": 24, "crop_scale": 2.0, "mask_mean": 0.0}
    processor = PixCLIPImageProcessor(**options)
    processor.save_pretrained(tmp_path)
    loaded = PixCLIPImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    arguments = {"images": noise(20, 30), "masks": np.eye(20, 30), "crops": True}
    for key, values in processor(**arguments).items():
        np.testing.assert_array_equal(loaded(**arguments)[key], values)
    overridden = PixCLIPImageProcessor.from_pretrained(tmp_path, size={"height": 16, "width": 8})
    assert overridden(noise(20, 30))["pixel_values"].shape == (1, 3, 16, 8)


def test_a_class_does_not_take_a_backend(tmp_path, image_processor):
    image_processor.save_pretrained(tmp_path)
    for image_processor_class in (PixCLIPImageProcessor, PixCLIPImageProcessorPil):
        with pytest.raises(TypeError, match="does not take backend='pil'.* Load by AutoImageProcessor"):
            image_processor_class.from_pretrained(tmp_path, backend="pil")
