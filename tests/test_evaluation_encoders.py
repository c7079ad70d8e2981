# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Encoders equal their models called by hand, under every view and for every kind of text."""

import json
import tracemalloc

import numpy as np
import pytest
import torch
from encoders_for_tests import FAMILIES, SIZE, family_pair, gradient_photo, pixclip_pair, word_tokenizer
from PIL import Image
from tiny_models import backbone_config
from transformers import (
    BertModel,
)

from modeling_pixclip import (
    PixCLIPImageProcessor,
    PixCLIPModel,
    mask_pool,
    roi_align,
)
from processing_pixclip import encode_rle
from processing_pixclip.evaluation.clip_encoder import ClipEncoder
from processing_pixclip.evaluation.items import EvaluationImage, EvaluationRegion
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder
from processing_pixclip.evaluation.region_views import VIEWS, RegionPictures
from processing_pixclip.evaluation.text_encoder import TextEncoder


TEXTS = ["a photo of the red dog .", "two people", "cat"]


def masks_of(height, width):
    """Three regions that are not their boxes."""
    masks = np.zeros((3, height, width), dtype=bool)
    masks[0, 4:20, 6:30] = masks[1, 20:38, 30:58] = masks[2, 2:36, 40:44] = True
    masks[0, 4:10, 6:10] = False
    masks[1, 30:38, 50:58] = False
    masks[2, 2:8, 44:50] = True
    return masks


@pytest.fixture(scope="module")
def photos():
    return [gradient_photo(60, 40, seed=0), gradient_photo(64, 48, seed=1)]


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    """Three regions of the first photo, two of the second, of which one is a box."""
    folder = tmp_path_factory.mktemp("photos")
    one, two = (EvaluationImage(name, folder / name) for name in ("one.png", "two.png"))
    first = [EvaluationRegion(f"one#{n}", one, encode_rle(mask)) for n, mask in enumerate(masks_of(40, 60))]
    mask = encode_rle(masks_of(48, 64)[1])
    second = [
        EvaluationRegion("two#0", two, box=(3.5, 4, 40, 44)),
        EvaluationRegion("two#1", two, mask, box=(28, 18, 60, 40)),
    ]
    return [first, second]


@pytest.fixture(scope="module")
def pixclip():
    model, processor = pixclip_pair()
    return PixCLIPEncoder(model, processor)


def by_hand(encoder, photo, region, view):
    """The model called for one region alone, by its documented methods."""
    model, processor = encoder.model, encoder.processor
    given = {"boxes": [region.box]} if region.mask is None else {"masks": [region.mask]}
    with torch.no_grad():
        if view in ("full", "blur", "box-crop", "masked-crop"):
            colour = tuple(int(round(value * 255)) for value in processor.image_processor.image_mean)
            picture, _ = RegionPictures(photo, colour).render(region, view)
            pixels = processor(images=picture)["pixel_values"]
            return model.get_image_features(pixels).pooler_output[0]
        if view in ("blur+mask", "padded-crop+mask"):
            picture, mask = RegionPictures(photo).render(region, view)
            inputs = processor(images=picture, masks=[mask])
            return model.get_image_features(inputs["pixel_values"], inputs["mask_values"]).pooler_output[0]
        if region.mask is not None and region.box is not None:
            given["boxes"] = [region.box]
        inputs = processor(images=photo, **given, crops=True)
        if view == "crop+mask":
            return model.get_image_features(inputs["crop_pixel_values"], inputs["crop_mask_values"]).pooler_output[0]
        if view == "full+mask":
            return model.get_image_features(inputs["pixel_values"], inputs["mask_values"]).pooler_output[0]
        pooling, conditioned = {
            "mask-pooled": ("mask", False),
            "conditioned-mask-pooled": ("mask", True),
            "roi": ("roi", False),
        }[view]
        return model.get_region_features(
            inputs["pixel_values"],
            inputs["mask_values"],
            region_boxes=inputs["region_boxes"],
            pooling=pooling,
            mask_input=conditioned,
        ).pooler_output[0]


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_of_pixclip_is_the_model_called_by_hand(pixclip, photos, groups, view):
    found = pixclip.encode_regions(photos, groups, view)
    expected = [
        by_hand(pixclip, photo, region, view) for photo, group in zip(photos, groups, strict=True) for region in group
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, torch.stack(expected), atol=2e-6)
    # Not normalised, and each region another one, except where the model is not told which it is.
    assert abs(np.linalg.norm(found, axis=1) - 1).max() > 1e-3
    assert len(np.unique(found.round(4), axis=0)) == (2 if view == "full" else 5)


def test_regions_come_in_parts_and_in_order(photos, groups):
    model, processor = pixclip_pair()
    whole, parts = PixCLIPEncoder(model, processor), PixCLIPEncoder(model, processor, region_batch_size=2)
    for view in whole.views:
        found = whole.encode_regions(photos, groups, view)
        np.testing.assert_allclose(parts.encode_regions(photos, groups, view), found, atol=2e-6)
        backwards = whole.encode_regions(photos[::-1], [group[::-1] for group in groups[::-1]], view)
        np.testing.assert_allclose(backwards[::-1], found, atol=2e-6)
        alone = whole.encode_regions(photos, [groups[0], []], view)
        np.testing.assert_allclose(alone, found[:3], atol=2e-6)


def test_an_image_with_many_regions_is_prepared_once(pixclip, photos, groups, monkeypatch):
    calls = []
    prepare = type(pixclip.image_processor).preprocess
    monkeypatch.setattr(
        type(pixclip.image_processor),
        "preprocess",
        lambda self, images, *args, **kwargs: calls.append(images) or prepare(self, images, *args, **kwargs),
    )
    for view in ("full+mask", "mask-pooled", "roi", "crop+mask", "full"):
        pixclip.encode_regions(photos, groups, view)
    assert [len(images) for images in calls] == [2] * 5


def test_pooled_views_pass_each_image_through_the_tower_once(pixclip, photos, groups):
    seen = []
    handle = pixclip.model.vision_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    try:
        pixclip.encode_regions(photos, groups, "roi")
    finally:
        handle.remove()
    assert seen == [2]


def test_a_region_that_the_frame_does_not_show_is_zero_and_the_others_are_right(photos):
    model, processor = pixclip_pair(resize_mode="shortest_edge")
    encoder = PixCLIPEncoder(model, processor)
    wide = gradient_photo(200, 40)
    image = EvaluationImage("wide.png", "wide.png")
    cut, shown = (EvaluationRegion(f"wide#{x}", image, box=(x, 4, x + 20, 30)) for x in (0, 95))
    for view in ("full+mask", "mask-pooled", "conditioned-mask-pooled", "roi", "blur+mask"):
        found = encoder.encode_regions([wide], [[cut, shown]], view)
        assert not found[0].any()
        np.testing.assert_allclose(found[1], by_hand(encoder, wide, shown, view), atol=2e-6)
    # Crops show every region, whatever the whole image is cut to.
    for view in ("crop+mask", "padded-crop+mask", "box-crop"):
        assert encoder.encode_regions([wide], [[cut, shown]], view).any(1).all()
    square = PixCLIPEncoder(*pixclip_pair(resize_mode="squash"))
    np.testing.assert_allclose(
        encoder.encode_regions([wide], [[cut]], "crop+mask"),
        square.encode_regions([wide], [[cut]], "crop+mask"),
        atol=2e-6,
    )


def test_errors_of_the_processor_name_the_region(pixclip, photos, groups):
    foreign = EvaluationRegion("two#9", groups[1][0].image, encode_rle(np.ones((3, 3), dtype=bool)))
    for view in ("full+mask", "blur+mask"):
        with pytest.raises(ValueError, match="two#9"):
            pixclip.encode_regions(photos, [groups[0], [groups[1][0], foreign]], view)
    with pytest.raises(ValueError, match="view is 'whole', which there is not; PixCLIPModel|PixCLIPForPreTraining"):
        pixclip.encode_regions(photos, groups, "whole")


def test_whole_images_and_no_regions(pixclip, photos):
    with torch.no_grad():
        expected = pixclip.model.get_image_features(pixclip.processor(images=photos)["pixel_values"]).pooler_output
    np.testing.assert_allclose(pixclip.encode_images(photos), expected, atol=1e-6)
    assert pixclip.encode_regions(photos, [[], []], "full+mask").shape == (0, 16)


@pytest.mark.parametrize("two_paths", [False, True])
def test_texts_of_pixclip_take_the_path_of_their_kind(two_paths):
    model, processor = pixclip_pair(two_paths)
    encoder = PixCLIPEncoder(model, processor)
    long_text = " ".join(["a photo of the red dog and two people ."] * 6)
    for kind in ("region", "caption", "long"):
        expected = model.encode_text(
            [*TEXTS, long_text], processor, long_text=kind == "long", normalize=False, output="numpy"
        )
        np.testing.assert_allclose(encoder.encode_texts([*TEXTS, long_text], kind), expected, atol=2e-6)
        lengths = encoder.text_lengths([*TEXTS, long_text], kind)
        assert lengths[:3] == [8, 3, 2]
        assert lengths[3] == (61 if two_paths and kind == "long" else 24)
    same = np.allclose(encoder.encode_texts(TEXTS, "region"), encoder.encode_texts(TEXTS, "long"), atol=1e-4)
    assert same != two_paths
    with pytest.raises(ValueError, match="kind of text is 'short'; accepted are 'region', 'caption', 'long'"):
        encoder.encode_texts(TEXTS, "short")


def test_the_mode_of_the_model_stays_and_dropout_is_off(photos):
    model, processor = pixclip_pair()
    encoder = PixCLIPEncoder(model.train(), processor)
    before = encoder.encode_images(photos)
    assert model.training
    model.eval()
    np.testing.assert_array_equal(encoder.encode_images(photos), before)


def test_description_of_pixclip_has_what_affects_a_number(tmp_path):
    model, processor = pixclip_pair(two_paths=True)
    model.save_pretrained(tmp_path / "secret" / "my_run")
    told = PixCLIPEncoder(model, processor, tmp_path / "secret" / "my_run").describe()
    assert told["name"] == "my_run"
    assert "secret" not in json.dumps(told)
    assert told["class"] == "PixCLIPForPreTraining"
    assert told["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert told["image_size"] == [SIZE, SIZE]
    assert (told["patch_size"], told["resize_mode"], told["crop_scale"]) == (8, "squash", 1.5)
    assert (told["mask_mean"], told["mask_std"], told["default_mask"]) == (0.5, 0.26, "full")
    assert (told["text_max_length"], told["long_text_max_length"]) == (24, 96)
    assert (told["text_template"], told["dtype"], told["attention"]) == ("{text}", "float32", "sdpa")
    assert told["commit"] is None


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_equals_its_model_called_by_hand(name, photos):
    model, processor = family_pair(name)
    encoder = ClipEncoder(model, processor)
    padding = {"siglip": ("max_length", 64), "siglip2": ("max_length", 64), "align": ("max_length", 52)}.get(
        name, (True, None)
    )
    # One at a time: no vector hangs on the batch.
    for kind in ("region", "caption", "long"):
        found = encoder.encode_texts(TEXTS, kind)
        for text, vector in zip(TEXTS, found, strict=True):
            tokens = processor.tokenizer([text], padding=padding[0], max_length=padding[1], return_tensors="pt")
            if name in ("siglip", "siglip2"):
                del tokens["attention_mask"]
                assert tokens["input_ids"].shape == (1, 64)
            with torch.no_grad():
                expected = model.get_text_features(**tokens).pooler_output[0]
            np.testing.assert_allclose(vector, expected, atol=1e-5)
    with torch.no_grad():
        images = processor.image_processor(images=photos, return_tensors="pt")
        expected = model.get_image_features(**images).pooler_output
    found = encoder.encode_images(photos)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape[1] == encoder.encode_texts(TEXTS, "region").shape[1]
    with torch.no_grad():
        tokens = processor.tokenizer(["cat"], return_tensors="pt", padding="max_length", max_length=24)
        outputs = model(**{key: values[:1] for key, values in images.items()}, **tokens)
    text, image = outputs.text_embeds[0], outputs.image_embeds[0]
    cosine = torch.nn.functional.cosine_similarity(text, image, dim=0)
    bias = model.logit_bias.item() if name in ("siglip", "siglip2") else 0.0
    assert outputs.logits_per_image.item() == pytest.approx(float(cosine) * encoder.logit_scale + bias, abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_views_of_each_family(name, photos, groups):
    model, processor = family_pair(name)
    encoder = ClipEncoder(model, processor)
    pooled = name not in ("siglip", "siglip2", "align")
    assert encoder.views == ("full", "blur", "box-crop", "masked-crop") + (("mask-pooled", "roi") if pooled else ())
    colour = tuple(int(round(value * 255)) for value in processor.image_processor.image_mean)
    for view in ("full", "blur", "box-crop", "masked-crop"):
        pictures = [
            RegionPictures(photo, colour).render(region, view)[0]
            for photo, group in zip(photos, groups, strict=True)
            for region in group
        ]
        with torch.no_grad():
            inputs = processor.image_processor(images=pictures, return_tensors="pt")
            expected = model.get_image_features(**inputs).pooler_output
        found = encoder.encode_regions(photos, groups, view)
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, abs(found).max()))
        few = ClipEncoder(model, processor, region_batch_size=2).encode_regions(photos, groups, view)
        np.testing.assert_allclose(few, found, atol=1e-5 * max(1, abs(found).max()))
    with pytest.raises(
        ValueError, match=f"{type(model).__name__} does not support the view 'full.mask'.*'full', 'blur'"
    ):
        encoder.encode_regions(photos, groups, "full+mask")
    if not pooled:
        with pytest.raises(ValueError, match="does not support the view 'roi'"):
            encoder.encode_regions(photos, groups, "roi")


def test_pooled_views_of_clip_are_patch_tokens_through_norm_and_projection(photos, groups):
    model, processor = family_pair("clip")
    encoder = ClipEncoder(model, processor)
    squashed = [photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC) for photo in photos]
    with torch.no_grad():
        # Of the size that it wants, so that its own processor neither resizes nor crops.
        pixels = processor(images=squashed, return_tensors="pt")["pixel_values"]
        states = model.vision_model(pixels).last_hidden_state[:, 1:]
        grid = model.visual_projection(model.vision_model.post_layernorm(states)).transpose(1, 2).unflatten(2, (4, 4))
        image = torch.tensor([0, 0, 0, 1, 1])
        regions = PixCLIPImageProcessor(size=SIZE, do_normalize=False)(
            photos,
            masks=[
                [region.mask if region.mask else np.asarray(_box_mask(region.box)) for region in group]
                for group in groups
            ],
            boxes=[[region.box for region in group] for group in groups],
            return_tensors="pt",
        )
        masks = regions["mask_values"]
        # Less than half a step of 8 bits is rounding.
        by_mask = mask_pool(grid, masks.masked_fill(masks < 1 / 512, 0), image)
        by_box = roi_align(grid, regions["region_boxes"] * 4, image).flatten(1)
    np.testing.assert_allclose(encoder.encode_regions(photos, groups, "mask-pooled"), by_mask, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_regions(photos, groups, "roi"), by_box, atol=1e-5)


def _box_mask(box):
    mask = np.zeros((48, 64), dtype=np.float32)
    mask[int(box[1]) : int(box[3]), int(box[0]) : int(box[2])] = 1
    # 3.5: half of its column is inside.
    mask[int(box[1]) : int(box[3]), int(box[0])] = 1 - box[0] % 1
    return mask


def test_descriptions_say_how_images_and_texts_are_prepared():
    modes = {
        "clip": "shortest_edge and centre crop",
        "siglip": "squash",
        "siglip2": "aspect ratio kept, at most 16 patches",
    }
    for name, mode in modes.items():
        told = ClipEncoder(*family_pair(name), name=f"someone/{name}").describe()
        assert (told["name"], told["resize_mode"]) == (f"someone/{name}", mode)
        assert told["text_padding"] == ("longest" if name == "clip" else "to 64")
        assert told["pooling"] == "the model's own"
        assert ("pooled_views" in told) == (name == "clip")
        json.dumps(told, allow_nan=False)
    assert ClipEncoder(*family_pair("clip")).describe()["image_size"] == {"height": SIZE, "width": SIZE}


def test_features_that_are_tensors_are_taken_too(photos):
    """As in releases before 5, and in models whose code lies beside their weights."""
    model, processor = family_pair("clip")
    expected = ClipEncoder(model, processor).encode_images(photos)
    whole = model.get_image_features

    def get_image_features(pixel_values):
        return whole(pixel_values=pixel_values).pooler_output

    model.get_image_features = get_image_features
    np.testing.assert_array_equal(ClipEncoder(model, processor).encode_images(photos), expected)


def test_a_long_text_is_cut_at_the_positions_of_the_model(monkeypatch):
    told = []
    monkeypatch.setattr(
        "processing_pixclip.evaluation.text_encoder.logger.warning", lambda *args: told.append(args[1:4])
    )
    for name, length in (("clip", 77), ("chinese_clip", 52), ("altclip", 30), ("siglip", 64)):
        encoder = ClipEncoder(*family_pair(name))
        assert encoder.text_lengths(["a photo of the red dog " * 40], "long") == [length]
        assert np.isfinite(encoder.encode_texts(["a photo of the red dog " * 40], "long")).all()
        assert encoder.describe()["text_max_length"] == length
        encoder.text_lengths(["cat"], "long")
        assert told == [(1, 1, length)]
        told.clear()


def test_what_is_no_model_of_both_is_refused():
    model, processor = pixclip_pair()
    with pytest.raises(ValueError, match="PixCLIPTextModel; PixCLIPEncoder takes a whole PixCLIP model"):
        PixCLIPEncoder(model.text_model, processor)
    with pytest.raises(ValueError, match="accepted is a PixCLIPProcessor"):
        PixCLIPEncoder(model, processor.tokenizer)
    for name in ("siglip", "siglip2", "align", "chinese_clip", "altclip"):
        whole, family = family_pair(name)
        with pytest.raises(
            ValueError, match="TextModel is the text tower of a model of images and texts.*whole model"
        ):
            TextEncoder(whole.text_model, family.tokenizer)
    with pytest.raises(ValueError, match="BertModel has no vector of a text of its own"):
        TextEncoder(BertModel(backbone_config("bert")), word_tokenizer(), pooling="own")
    with pytest.raises(ValueError, match="pooling is 'max'; accepted are 'own', 'cls', 'mean', 'last' and None"):
        TextEncoder(BertModel(backbone_config("bert")), word_tokenizer(), pooling="max")
    with pytest.raises(ValueError, match="BertModel has no get_image_features"):
        ClipEncoder(BertModel(backbone_config("bert")), processor)
    with pytest.raises(ValueError, match="without image_processor"):
        ClipEncoder(family_pair("clip")[0], word_tokenizer())
    assert PixCLIPEncoder(PixCLIPModel(model.config), processor).logit_scale == pytest.approx(np.exp(2.6592), rel=1e-4)


@pytest.mark.parametrize("kind", [PixCLIPEncoder, ClipEncoder])
def test_empty_regions_are_told_and_no_regions_have_no_vectors(kind, photos, groups):
    encoder = kind(*(pixclip_pair(resize_mode="shortest_edge") if kind is PixCLIPEncoder else family_pair("clip")))
    image = groups[0][0].image
    empty = EvaluationRegion("one#empty", image, {"size": [40, 60], "counts": [2400]})
    boxed = EvaluationRegion("one#empty", image, {"size": [40, 60], "counts": [2400]}, box=(2, 2, 30, 30))
    for view in encoder.views:
        width = encoder.encode_images(photos).shape[1]
        assert encoder.encode_regions(photos, [[], []], view).shape == (0, width)
        if view == "full":
            continue
        with pytest.raises(ValueError, match="one#empty.*is empty"):
            encoder.encode_regions(photos, [[groups[0][0], empty], groups[1]], view)
        if view not in ("box-crop", "roi"):
            with pytest.raises(ValueError, match="one#empty.*is empty"):
                encoder.encode_regions(photos, [[boxed], groups[1]], view)


def test_masks_and_pictures_of_clip_are_made_one_at_a_time(photos, monkeypatch):
    encoder = ClipEncoder(*family_pair("clip"))
    photo, image = gradient_photo(900, 700), EvaluationImage("large", "large.png")
    masks = [{"size": [700, 900], "counts": [700 * 20 * n, 700 * 20, 700 * (900 - 20 * (n + 1))]} for n in range(24)]
    regions = [EvaluationRegion(f"large#{n}", image, mask) for n, mask in enumerate(masks)]
    tracemalloc.start()
    try:
        encoder.encode_regions([photo], [regions], "mask-pooled")
        # Of 24 masks of 2.5 MB each, a few.
        assert tracemalloc.get_traced_memory()[1] < 24e6
    finally:
        tracemalloc.stop()
    processor, given = encoder.processor.image_processor, []
    prepare = type(processor).preprocess
    monkeypatch.setattr(
        type(processor),
        "preprocess",
        lambda self, images, *args, **options: given.append(len(images)) or prepare(self, images, *args, **options),
    )
    encoder.encode_regions([photo], [regions[:5]], "blur")
    assert given == [1] * 5


def test_pooled_views_of_clip_scale_pixels_as_its_processor_does(photos, groups):
    model, processor = family_pair("clip")
    plain = ClipEncoder(model, processor).encode_regions(photos, groups, "mask-pooled")
    options = processor.image_processor
    # The same numbers by other options.
    options.rescale_factor = 1.0
    options.image_mean = [value * 255 for value in options.image_mean]
    options.image_std = [value * 255 for value in options.image_std]
    np.testing.assert_allclose(
        ClipEncoder(model, processor).encode_regions(photos, groups, "mask-pooled"), plain, atol=1e-5
    )
    options.do_normalize = False
    options.rescale_factor = 1 / 255
    found = ClipEncoder(model, processor).encode_regions(photos, groups, "roi")
    options.do_normalize = True
    options.image_mean, options.image_std = [0.0] * 3, [1.0] * 3
    np.testing.assert_allclose(found, ClipEncoder(model, processor).encode_regions(photos, groups, "roi"), atol=1e-5)
    assert abs(found - plain).max() > 1e-3
