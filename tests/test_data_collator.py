# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The collator's batch: shapes, indices, whole-image samples, subsets, cached text vectors, augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from processing_pixclip import (
    EvaluationRegions,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    RegionAugmentation,
    to_mask,
)


WORDS = "[pad] [unk] a red blue kite car on the left right of whole photo region 0 1 2 3 4 5 6 7".split()
INSIDE = (1 - 0.5) / 0.26


@pytest.fixture(scope="module")
def processor():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    return PixCLIPProcessor(PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def make_sample(image_id, regions, captions=(), width=60, height=40, object_texts=None):
    masks = [np.zeros((height, width), dtype=bool) for _ in range(regions)]
    for i, mask in enumerate(masks):
        mask[10:30, 5 * i : 5 * i + 5] = True
    return {
        "image": Image.new("RGB", (width, height), (200, 20, 20)),
        "image_id": image_id,
        "captions": list(captions),
        "masks": masks,
        "texts": [f"region {i} of {image_id}" for i in range(regions)],
        "object_texts": [None] * regions if object_texts is None else object_texts,
        "categories": [None] * regions,
    }


def decode(processor, batch, index):
    return [processor.tokenizer.decode(batch["input_ids"][row], skip_special_tokens=True) for row in batch[index]]


def test_three_branch_batch(processor):
    samples = [
        make_sample("0", 2, object_texts=["a red kite", None]),
        make_sample("1", 3, object_texts=["a red kite", "a car", "a blue car"], width=40),
    ]
    batch = PixCLIPDataCollator(processor, whole_image_share=0.0)(samples)
    assert batch["return_loss"] is True
    assert batch["pixel_values"].shape == (2, 3, 32, 32) and batch["mask_values"].shape == (5, 1, 32, 32)
    assert batch["crop_pixel_values"].shape == (5, 3, 32, 32) and batch["crop_mask_values"].shape == (5, 1, 32, 32)
    assert batch["region_image_index"].tolist() == [0, 0, 1, 1, 1] and batch["region_boxes"].shape == (5, 4)
    assert batch["region_text_index"].dtype == batch["object_text_index"].dtype == torch.int64
    long_texts = ["region 0 of 0", "region 1 of 0", "region 0 of 1", "region 1 of 1", "region 2 of 1"]
    assert decode(processor, batch, "region_text_index") == long_texts
    assert decode(processor, batch, "object_text_index") == [
        "a red kite",
        "region 1 of 0",
        "a red kite",
        "a car",
        "a blue car",
    ]
    # 5 long texts and 3 different object texts.
    assert batch["input_ids"].shape[0] == batch["pooling_mask"].shape[0] == 8


def test_batch_without_crops(processor):
    batch = PixCLIPDataCollator(processor, crops=False)([make_sample("0", 2)])
    assert "crop_pixel_values" not in batch and "crop_mask_values" not in batch


def test_whole_image_sample(processor):
    captions = ["the whole photo", "a whole photo"]
    samples = [make_sample("0", 3, captions), make_sample("1", 2)]
    seen = set()
    for seed in range(10):
        torch.manual_seed(seed)
        batch = PixCLIPDataCollator(processor, whole_image_share=1.0)(samples)
        assert batch["region_image_index"].tolist() == [0, 1, 1]
        torch.testing.assert_close(batch["mask_values"][0], torch.full((1, 32, 32), INSIDE))
        assert batch["mask_values"][1].min() < 0
        text = decode(processor, batch, "region_text_index")[0]
        assert batch["region_text_index"][0] == batch["object_text_index"][0]
        seen.add(text)
    assert seen == set(captions)


def test_share_of_whole_images(processor):
    torch.manual_seed(0)
    collator = PixCLIPDataCollator(processor, whole_image_share=0.25, crops=False)
    samples = [make_sample("0", 2, ["the whole photo"])] * 200
    batch = collator(samples)
    whole = 400 - len(batch["region_image_index"])
    assert 30 <= whole <= 72


def test_image_without_regions_enters_as_a_whole_image(processor):
    batch = PixCLIPDataCollator(processor, whole_image_share=0.0)([make_sample("0", 0, ["the whole photo"])])
    assert decode(processor, batch, "region_text_index") == ["the whole photo"]


def test_image_with_neither_regions_nor_captions_adds_no_region(processor):
    batch = PixCLIPDataCollator(processor)([make_sample("0", 0), make_sample("1", 2)])
    assert batch["region_image_index"].tolist() == [1, 1]


def test_batch_without_any_region_is_an_error(processor):
    with pytest.raises(ValueError, match="none of the 2 samples"):
        PixCLIPDataCollator(processor)([make_sample("0", 0), make_sample("1", 0)])


def test_random_subset_keeps_mask_and_text_together(processor):
    collator = PixCLIPDataCollator(processor, max_regions_per_image=2, crops=False)
    subsets = set()
    for seed in range(20):
        torch.manual_seed(seed)
        batch = collator([make_sample("0", 6)])
        texts = decode(processor, batch, "region_text_index")
        numbers = [int(text.split()[1]) for text in texts]
        torch.testing.assert_close(batch["region_boxes"][:, 0], torch.tensor(numbers) * 5 / 60)
        subsets.add(tuple(numbers))
    assert all(len(subset) == 2 for subset in subsets) and len(subsets) > 5


def test_text_embeddings_replace_tokens(processor):
    texts = ["region 0 of 0", "region 1 of 0", "a red kite"]
    embeddings = {text: torch.full((4,), float(i)) for i, text in enumerate(texts)}
    sample = make_sample("0", 2, object_texts=["a red kite", None])
    batch = PixCLIPDataCollator(processor, text_embeddings=embeddings)([sample])
    assert not {"input_ids", "attention_mask", "pooling_mask"} & batch.keys()
    assert batch["backbone_embeds"].shape == (3, 4)
    assert batch["backbone_embeds"][batch["region_text_index"], 0].tolist() == [0.0, 1.0]
    assert batch["backbone_embeds"][batch["object_text_index"], 0].tolist() == [2.0, 1.0]
    del embeddings["a red kite"]
    with pytest.raises(ValueError, match="no vector for the text 'a red kite'"):
        PixCLIPDataCollator(processor, text_embeddings=embeddings)([sample])


def test_whitespace_around_texts_makes_no_other_text(processor):
    samples = [make_sample("0", 1, object_texts=[" a car"]), make_sample("1", 1, object_texts=["a car\n"])]
    samples[1]["texts"] = [f" {samples[0]['texts'][0]} "]
    batch = PixCLIPDataCollator(processor)(samples)
    assert batch["region_text_index"].tolist() == [0, 0] and batch["object_text_index"].tolist() == [1, 1]
    assert batch["input_ids"].shape[0] == 2
    embeddings = {text: torch.zeros(4) for sample in samples for text in sample["texts"] + sample["object_texts"]}
    assert PixCLIPDataCollator(processor, text_embeddings=embeddings)(samples)["backbone_embeds"].shape == (2, 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_follow_the_seed(processor, workers):
    samples = [make_sample(str(i), 6, ["the whole photo", "a photo"]) for i in range(4)]
    collator = PixCLIPDataCollator(
        processor, whole_image_share=0.5, max_regions_per_image=2, augmentation=RegionAugmentation(min_visible=0.3)
    )

    def load(seed):
        torch.manual_seed(seed)
        return list(DataLoader(samples, batch_size=2, shuffle=True, collate_fn=collator, num_workers=workers))

    first, second, other = load(1), load(1), load(2)
    for one, two in zip(first, second):
        assert one.keys() == two.keys()
        for key in one.keys() - {"return_loss"}:
            torch.testing.assert_close(one[key], two[key])
    assert any(
        one["mask_values"].shape != two["mask_values"].shape or not one["mask_values"].equal(two["mask_values"])
        for one, two in zip(first, other)
    )


def test_malformed_samples_and_settings_are_named(processor):
    collator = PixCLIPDataCollator(processor)
    with pytest.raises(ValueError, match=r"samples\[1\] lacks \['image'\].*remove_unused_columns=False"):
        collator([make_sample("0", 1), {k: v for k, v in make_sample("1", 1).items() if k != "image"}])
    with pytest.raises(ValueError, match=r"samples\[0\] \(image '0'\).*'texts': 1"):
        collator([{**make_sample("0", 2), "texts": ["region"]}])
    for text in (" ", 7):
        with pytest.raises(ValueError, match=rf"samples\[1\] \(image '1'\) has the text {text!r}"):
            collator([make_sample("0", 2), {**make_sample("1", 1), "texts": [text]}])
    with pytest.raises(ValueError, match=r"^masks\[1\]\[0\] is empty.* \(images\[1\] is image 'photo 7'\)$"):
        collator([make_sample("0", 2), {**make_sample("photo 7", 1), "masks": [np.zeros((40, 60), dtype=bool)]}])
    with pytest.raises(ValueError, match=r"^images\[0\] cannot be read .* \(images\[0\] is image 'photo 7'\)$"):
        collator([{**make_sample("photo 7", 1), "image": "no such file.png"}])
    with pytest.raises(ValueError, match="whole_image_share is 2"):
        PixCLIPDataCollator(processor, whole_image_share=2)
    with pytest.raises(ValueError, match="max_regions_per_image is 0"):
        PixCLIPDataCollator(processor, max_regions_per_image=0)


def coloured_sample(text="a car"):
    """Two regions that are the only red pixels and the only blue pixels."""
    pixels = np.zeros((60, 90, 3), dtype=np.uint8)
    pixels[20:30, 20:35] = (255, 0, 0)
    pixels[35:50, 60:70] = (0, 0, 255)
    return {
        "image": Image.fromarray(pixels),
        "image_id": "0",
        "captions": [],
        "masks": [pixels[..., 0] > 0, pixels[..., 2] > 0],
        "texts": [text, "a kite"],
        "object_texts": [None, None],
        "categories": [None, None],
    }


def check_masks_lie_on_their_colours(sample):
    pixels = np.asarray(sample["image"])
    for mask, channel in zip(sample["masks"], (0, 2)):
        mask = to_mask(mask, sample["image"].height, sample["image"].width)
        np.testing.assert_array_equal(mask > 0.5, pixels[..., channel] > 0)


def test_crop_keeps_masks_on_their_regions_and_visible():
    augmentation = RegionAugmentation(crop_scale=(0.3, 0.9), min_visible=0.7)
    sizes = set()
    for seed in range(40):
        torch.manual_seed(seed)
        sample = augmentation(coloured_sample())
        check_masks_lie_on_their_colours(sample)
        for mask, area in zip(sample["masks"], (150, 150)):
            assert mask.sum() >= 0.7 * area
        sizes.add(sample["image"].size)
        share = sample["image"].width * sample["image"].height / (60 * 90)
        assert 0.28 <= share <= 0.92 or sample["image"].size == (90, 60)
    assert len(sizes) > 10


def test_image_stays_whole_where_no_crop_keeps_its_regions():
    sample = coloured_sample()
    sample["masks"][0] = np.ones((60, 90), dtype=bool)
    augmented = RegionAugmentation(crop_scale=(0.3, 0.5), min_visible=0.9)(sample)
    assert augmented["image"].size == (90, 60)


def test_flip_moves_image_and_masks_together():
    augmentation = RegionAugmentation((1.0, 1.0), (1.0, 1.0), horizontal_flip=1.0)
    sample = coloured_sample()
    flipped = augmentation(sample)
    check_masks_lie_on_their_colours(flipped)
    np.testing.assert_array_equal(np.asarray(flipped["image"]), np.asarray(sample["image"])[:, ::-1])


@pytest.mark.parametrize("text", ["a car on the left of the photo", "The RIGHT car", "a right-hand door", "leftmost"])
def test_texts_with_sides_are_never_flipped(text):
    augmentation = RegionAugmentation((1.0, 1.0), (1.0, 1.0), horizontal_flip=1.0)
    sample = coloured_sample(text)
    np.testing.assert_array_equal(np.asarray(augmentation(sample)["image"]), np.asarray(sample["image"]))


def test_no_flip_by_default():
    augmentation = RegionAugmentation((1.0, 1.0), (1.0, 1.0))
    sample = coloured_sample()
    for seed in range(10):
        torch.manual_seed(seed)
        np.testing.assert_array_equal(np.asarray(augmentation(sample)["image"]), np.asarray(sample["image"]))


@pytest.mark.parametrize(
    "options", [{"crop_scale": (0.0, 1.0)}, {"crop_ratio": (2.0, 1.0)}, {"horizontal_flip": 1.5}, {"min_visible": 0.0}]
)
def test_augmentation_settings_are_checked(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RegionAugmentation(**options)


def test_evaluation_samples_are_taken_as_they_are(processor):
    samples = [make_sample(str(i), 3, captions=["a whole photo"]) for i in range(3)]
    collator = PixCLIPDataCollator(
        processor, whole_image_share=1.0, max_regions_per_image=1, augmentation=RegionAugmentation((0.5, 0.5))
    )
    [batch] = DataLoader(EvaluationRegions(samples), batch_size=3, collate_fn=collator)
    plain = PixCLIPDataCollator(processor, whole_image_share=0.0)(samples)
    assert batch.keys() == plain.keys()
    assert all(torch.equal(torch.as_tensor(batch[key]), torch.as_tensor(plain[key])) for key in plain)
