# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Tests that need torchvision, of both backends in one process; run by test_image_processing_torchvision.py."""

import doctest
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerFast
from transformers.image_processing_backends import PilBackend, TorchvisionBackend

from modeling_pixclip import PixCLIPImageProcessor, PixCLIPImageProcessorPil, PixCLIPProcessor
from processing_pixclip import RegionJsonlDataset, image_processing_pixclip


MODES = ("squash", "shortest_edge", "letterbox")
BICUBIC, BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
# Tolerances on photos, of the 255 levels of a pixel; the docstring of PixCLIPImageProcessor says them.
MAX_LEVELS, MEAN_LEVELS = {BICUBIC: 16, BILINEAR: 2}, 0.3
LEVELS = {"do_rescale": False, "do_normalize": False}
# Smaller than the photos in both directions, larger in both, and of another aspect ratio.
FRAMES = ((224, 224), (32, 32), (560, 500), (96, 336))


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def both(images, options=None, **arguments):
    """What the torchvision backend gives and what PIL's gives."""
    options = options or {}
    return (cls(**options)(images, **arguments) for cls in (PixCLIPImageProcessor, PixCLIPImageProcessorPil))


def assert_masks_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - {"pixel_values", "crop_pixel_values"}:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def assert_levels_agree(found, wanted, resample, factor=1):
    """Checks images (B, 3, H, W) against the tolerances, times `factor`; returns how they differ."""
    difference = np.abs(found - wanted)
    assert difference.max() <= factor * MAX_LEVELS[resample]
    assert difference.mean(axis=(1, 2, 3)).max() <= factor * MEAN_LEVELS
    return difference


@pytest.fixture(scope="module")
def photos():
    """8 photos with up to two masks each."""
    dataset = RegionJsonlDataset("examples/data/coco_regions/train.jsonl")
    samples = [dataset[index] for index in range(8)]
    return [sample["image"] for sample in samples], [list(sample["masks"])[:2] for sample in samples]


def test_there_is_a_class_for_each_backend():
    assert image_processing_pixclip.BACKENDS == {
        "torchvision": PixCLIPImageProcessor,
        "pil": PixCLIPImageProcessorPil,
    }
    assert issubclass(PixCLIPImageProcessor, TorchvisionBackend) and issubclass(PixCLIPImageProcessorPil, PilBackend)
    assert (PixCLIPImageProcessor().backend, PixCLIPImageProcessorPil().backend) == ("torchvision", "pil")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("resample", MAX_LEVELS)
def test_photos_agree_and_masks_are_equal(photos, mode, frame, resample):
    images, masks = photos
    options = {"size": frame, "resize_mode": mode, "resample": resample, **LEVELS}
    found, wanted = both(images, options, masks=masks, allow_empty=True)
    assert_masks_equal(found, wanted)
    difference = assert_levels_agree(found["pixel_values"], wanted["pixel_values"], resample)
    assert difference.any(), "torchvision is not used"
    assert (difference > 1).mean() <= 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(480, 640), (61, 37), (20, 300)])
@pytest.mark.parametrize("resample", MAX_LEVELS)
def test_noise_agrees(mode, size, resample):
    for frame in ((224, 224), (48, 32)):
        found, wanted = both(noise(*size), {"size": frame, "resize_mode": mode, "resample": resample, **LEVELS})
        # The worst case: neighbours differ as much as they can, and bicubic overshoots everywhere.
        assert_levels_agree(found["pixel_values"], wanted["pixel_values"], resample, factor=2)


def test_normalised_pixels_agree(photos):
    found, wanted = both(photos[0])
    # In units of the normalised image a level is 1 / 255 / std.
    assert_levels_agree(found["pixel_values"], wanted["pixel_values"], BICUBIC, factor=1 / 255 / 0.26)


@pytest.mark.parametrize("resample", set(Image.Resampling) - set(MAX_LEVELS))
def test_the_other_filters_are_pils(photos, resample):
    found, wanted = both(photos[0], {"resample": resample})
    np.testing.assert_array_equal(found["pixel_values"], wanted["pixel_values"])


@pytest.mark.parametrize("frame", [24, 224])
def test_crops_agree_and_those_inside_the_image_are_equal(photos, frame):
    images, _ = photos
    height, width = images[0].height, images[0].width
    inside, over_the_edge = np.zeros((2, height, width), bool)
    inside[height // 2 - 20 : height // 2 + 20, width // 2 - 30 : width // 2 + 30] = True
    over_the_edge[:90, :50] = True
    found, wanted = both(
        images[0], {"size": frame, **LEVELS}, masks=[inside, over_the_edge], crops=True, return_tensors="np"
    )
    assert_masks_equal(found, wanted)
    np.testing.assert_array_equal(found["crop_pixel_values"][0], wanted["crop_pixel_values"][0])
    assert_levels_agree(found["crop_pixel_values"][1:], wanted["crop_pixel_values"][1:], BICUBIC)


def test_without_resizing_all_is_equal():
    mask = np.zeros((40, 60), bool)
    mask[3:20, 5:9] = True
    found, wanted = both(noise(40, 60), {"do_resize": False, "crop_size": 30}, masks=mask)
    np.testing.assert_array_equal(found["pixel_values"], wanted["pixel_values"])
    assert_masks_equal(found, wanted)


def test_letterbox_pads_alike():
    found, wanted = both(noise(16, 32), {"size": 32, "resize_mode": "letterbox"})
    assert not found["pixel_values"][0][:, [*range(8), *range(24, 32)]].any()
    found, wanted = both(noise(16, 32), {"size": 32, "resize_mode": "letterbox", **LEVELS})
    np.testing.assert_array_equal(found["pixel_values"][0][:, :8], wanted["pixel_values"][0][:, :8])


def test_every_image_form_gives_the_same(tmp_path):
    pixels = noise(40, 60)
    exif = Image.Exif()
    exif[274] = 6
    sideways = Image.fromarray(np.rot90(pixels))
    sideways.save(tmp_path / "sideways.png", exif=exif)
    processor = PixCLIPImageProcessor(size=32)
    wanted = processor(Image.fromarray(pixels))["pixel_values"]
    forms = (pixels, pixels / 255, torch.from_numpy(pixels).permute(2, 0, 1), np.moveaxis(pixels, -1, 0))
    for form in (*forms, str(tmp_path / "sideways.png")):
        np.testing.assert_array_equal(processor(form)["pixel_values"], wanted)
    rgba = Image.fromarray(pixels).convert("RGBA")
    np.testing.assert_array_equal(processor(rgba)["pixel_values"], wanted)
    grey = processor(Image.fromarray(pixels[..., 0]), do_normalize=False)["pixel_values"][0]
    np.testing.assert_array_equal(grey, processor(pixels[..., [0] * 3], do_normalize=False)["pixel_values"][0])
    batch = processor(pixels, return_tensors="pt")
    assert isinstance(batch["pixel_values"], torch.Tensor) and batch["pixel_values"].dtype == torch.float32


IMAGE = noise(32, 96)
LEFT = np.zeros((32, 96), bool)
LEFT[:, :20] = True
BAD_CALLS = {
    "no image": ([], {}),
    "a URL": ("https://example.com/a.png", {}),
    "no file": ("nowhere.png", {}),
    "not an image": (object(), {}),
    "16 bits": (Image.fromarray(np.zeros((4, 4), np.uint16)), {}),
    "floats over 1": (IMAGE.astype(np.float32), {}),
    "which axis": (np.zeros((3, 9, 3), np.uint8), {}),
    "too large": (IMAGE, {"max_image_pixels": 50}),
    "blown up": (IMAGE, {"resize_mode": "shortest_edge", "max_image_pixels": 3072, "size": 48}),
    "not RGB": (Image.fromarray(IMAGE[..., 0]), {"do_convert_rgb": False}),
    "two sizes": ([IMAGE, IMAGE[:9]], {"do_resize": False}),
    "no such mode": (IMAGE, {"resize_mode": "stretch"}),
    "no such filter": (IMAGE, {"resample": 17}),
    "no such option": (IMAGE, {"colour": 1}),
    "no device": (IMAGE, {"device": "cpu"}),
    "bad size": (IMAGE, {"size": {"shortest_edge": 9}}),
    "crops of nothing": (IMAGE, {"crops": True}),
    "mask of another size": (IMAGE, {"masks": LEFT[:9]}),
    "empty mask": (IMAGE, {"masks": LEFT & False}),
    "hidden mask": (IMAGE, {"masks": LEFT, "resize_mode": "shortest_edge"}),
    "box outside": (IMAGE, {"boxes": [0, 0, 200, 9]}),
    "one box for two masks": (IMAGE, {"masks": [LEFT, LEFT], "boxes": [[0, 0, 9, 9]]}),
    "masks of one image for two": ([IMAGE, IMAGE], {"masks": [[LEFT]]}),
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_errors_are_the_same(call):
    images, arguments = BAD_CALLS[call]
    errors = []
    for cls in (PixCLIPImageProcessor, PixCLIPImageProcessorPil):
        with pytest.raises((ValueError, TypeError)) as caught:
            cls()(images, **arguments)
        errors.append((caught.type, str(caught.value).replace(cls.__name__, "")))
    assert errors[0] == errors[1]


def saved_files(processor, folder):
    processor.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_both_backends_save_the_same_folder(tmp_path):
    options = {"size": {"height": 24, "width": 32}, "resize_mode": "letterbox", "mask_mean": 0.25}
    first = saved_files(PixCLIPImageProcessor(**options), tmp_path / "torchvision")
    assert first == saved_files(PixCLIPImageProcessorPil(**options), tmp_path / "pil")
    assert {"preprocessor_config.json", "image_processing_pixclip.py", "frame_geometry.py"} < first.keys()


@pytest.mark.parametrize("saver", [PixCLIPImageProcessor, PixCLIPImageProcessorPil])
def test_the_backend_can_be_chosen_when_a_folder_is_loaded(tmp_path, saver):
    saver(size=24, crop_scale=2.5).save_pretrained(tmp_path)
    for backend, wanted in (
        (None, PixCLIPImageProcessor),
        ("torchvision", PixCLIPImageProcessor),
        ("pil", PixCLIPImageProcessorPil),
    ):
        for trust_remote_code in (False, True):
            loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend, trust_remote_code=trust_remote_code)
            assert type(loaded) is wanted and (loaded.size["height"], loaded.crop_scale) == (24, 2.5)
    for cls in (PixCLIPImageProcessor, PixCLIPImageProcessorPil):
        assert type(cls.from_pretrained(tmp_path)) is cls


def test_a_processor_takes_either_backend(tmp_path, photos):
    tokens = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1}, unk_token="[unk]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[pad]", unk_token="[unk]")
    images, masks = photos
    for cls in (PixCLIPImageProcessor, PixCLIPImageProcessorPil):
        processor = PixCLIPProcessor(cls(size=64), tokenizer, text_template="{text}", text_max_length=8)
        processor.save_pretrained(tmp_path)
        assert type(AutoProcessor.from_pretrained(tmp_path).image_processor) is PixCLIPImageProcessor
        loaded = AutoProcessor.from_pretrained(tmp_path, backend=processor.image_processor.backend)
        assert type(loaded.image_processor) is cls
        batch, again = (each(images=images[:2], masks=masks[:2]) for each in (processor, loaded))
        for name in batch:
            np.testing.assert_array_equal(batch[name], again[name])


def test_folders_from_before_there_were_two_backends_load(tmp_path):
    PixCLIPImageProcessorPil(size=24).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    config = json.loads(file.read_text())
    config["auto_map"]["AutoImageProcessor"] = "image_processing_pixclip.PixCLIPImageProcessor"
    file.write_text(json.dumps(config))
    for backend, wanted in ((None, PixCLIPImageProcessor), ("pil", PixCLIPImageProcessorPil)):
        loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend, trust_remote_code=True)
        assert type(loaded) is wanted and loaded.size["height"] == 24
    # Saved again, the folder is one of today.
    shutil.rmtree(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert set(json.loads(file.read_text())["auto_map"]["AutoImageProcessor"]) == {"torchvision", "pil"}


def test_the_examples_of_both_classes_run():
    results = doctest.testmod(image_processing_pixclip, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0 and results.attempted
