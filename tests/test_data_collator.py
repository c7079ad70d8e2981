# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The collator's batch: shapes, indices, captions, hard negatives, seeded draws, empty regions, augmentation."""

import json
import warnings
from hashlib import blake2b

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from tiny_models import pixclip_config, randomise
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from modeling_pixclip import PixCLIPForPreTraining, get_objective_preset
from processing_pixclip import (
    BadSampleLog,
    EvaluationRegions,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    RegionAugmentation,
    RegionJsonlDataset,
    mask_to_box,
    to_mask,
    write_region_jsonl,
)
from processing_pixclip.training_epochs import EpochDataset


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
        batch = PixCLIPDataCollator(processor, whole_image_share=1.0, seed=seed)(samples)
        assert batch["region_image_index"].tolist() == [0, 1, 1]
        torch.testing.assert_close(batch["mask_values"][0], torch.full((1, 32, 32), INSIDE))
        assert batch["mask_values"][1].min() < 0
        text = decode(processor, batch, "region_text_index")[0]
        assert batch["region_text_index"][0] == batch["object_text_index"][0]
        seen.add(text)
    assert seen == set(captions)


def test_share_of_whole_images(processor):
    samples = [make_sample(str(i), 2, ["the whole photo"]) for i in range(200)]

    def whole_images(**options):
        batch = PixCLIPDataCollator(processor, crops=False, **options)(samples)
        return 400 - len(batch["region_image_index"])

    assert 30 <= whole_images(whole_image_share=0.25) <= 72
    assert 8 <= whole_images() <= 35
    # Caption terms see whole images anyway.
    assert whole_images(captions=True) == 0


def test_image_without_regions_enters_as_a_whole_image(processor):
    batch = PixCLIPDataCollator(processor, whole_image_share=0.0)([make_sample("0", 0, ["the whole photo"])])
    assert decode(processor, batch, "region_text_index") == ["the whole photo"]


def test_image_with_neither_regions_nor_captions_adds_no_region(processor):
    batch = PixCLIPDataCollator(processor)([make_sample("0", 0), make_sample("1", 2)])
    assert batch["region_image_index"].tolist() == [1, 1]


def test_batch_without_any_region_has_tensors_without_rows(processor):
    samples = [make_sample("0", 0), make_sample("1", 0)]
    batch = PixCLIPDataCollator(processor, captions=True, hard_negatives=True)(samples)
    full = PixCLIPDataCollator(processor, captions=True, hard_negatives=True)([make_sample("0", 1)])
    assert batch.keys() == full.keys()
    of_images = {"pixel_values": 2, "short_caption_index": 2, "long_caption_index": 2}
    for key in batch.keys() - {"return_loss"}:
        assert batch[key].dtype == full[key].dtype, key
        assert len(batch[key]) == of_images.get(key, 0), key
        if key not in ("input_ids", "attention_mask", "pooling_mask"):
            assert batch[key].shape[1:] == full[key].shape[1:], key
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["pooling_mask"].shape == (0, 1)
    assert batch["short_caption_index"].tolist() == batch["long_caption_index"].tolist() == [-1, -1]
    vectors = {"a car": torch.zeros(4)}
    assert PixCLIPDataCollator(processor, text_embeddings=vectors)(samples)["backbone_embeds"].shape == (0, 4)


def test_random_subset_keeps_mask_and_text_together(processor):
    subsets = set()
    for seed in range(20):
        collator = PixCLIPDataCollator(processor, max_regions_per_image=2, crops=False, seed=seed)
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


def rich_sample(image_id, regions=2, **fields):
    sample = make_sample(image_id, regions, ["the whole photo", "a photo"])
    sample["long_captions"] = ["a red kite on the left of the car", "a blue car on the right of a kite"]
    sample["hard_negatives"] = [[f"region {i} of {number}" for number in range(2, 8)] for i in range(regions)]
    return {**sample, **fields}


def parts_of(batch):
    """What the batch has of each image, with texts by their tokens, so that images of other batches compare."""
    parts = []
    tokens = [
        (ids[mask.bool()].tolist(), number)
        for ids, mask, number in zip(batch["input_ids"], batch["attention_mask"], batch["text_ids"].tolist())
    ]
    for image, (short, long) in enumerate(zip(batch["short_caption_index"], batch["long_caption_index"])):
        regions = (batch["region_image_index"] == image).nonzero().flatten().tolist()
        negatives = [
            tokens[text]
            for text, owner in zip(batch["hard_negative_text_index"], batch["hard_negative_region_index"].tolist())
            if owner in regions
        ]
        names = ("mask_values", "region_boxes", "crop_pixel_values", "crop_mask_values")
        tensors = [batch["pixel_values"][image], *(batch[name][regions] for name in names)]
        texts = [tokens[batch["region_text_index"][region]] for region in regions]
        parts.append(([tensor.tolist() for tensor in tensors], texts, negatives, tokens[short], tokens[long]))
    return parts


class ListOfSamples(EpochDataset):
    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return {**self.samples[index], "epoch": self.epoch}


def test_draws_hang_on_seed_epoch_and_image_alone(processor):
    samples = [rich_sample(f"photo {i}", 6) for i in range(6)]
    dataset = ListOfSamples(samples)

    def load(batch_size, workers=0, epoch=0, order=None, seed=0, loader=DataLoader):
        collator = PixCLIPDataCollator(
            processor,
            captions=True,
            hard_negatives=True,
            max_hard_negatives=2,
            whole_image_share=0.3,
            max_regions_per_image=2,
            augmentation=RegionAugmentation(min_visible=0.3),
            seed=seed,
        )
        dataset.set_epoch(epoch)
        order = range(6) if order is None else order
        batches = loader(dataset, batch_size=batch_size, sampler=order, collate_fn=collator, num_workers=workers)
        parts = [part for batch in batches for part in parts_of(batch)]
        return dict(zip(order, parts))

    torch.manual_seed(0)
    expected = load(2)
    torch.manual_seed(1)
    np.random.seed(1)
    assert load(2, workers=2) == expected
    assert load(6) == expected
    assert load(3, workers=1, order=[5, 0, 3, 2, 4, 1]) == expected
    for other in (load(2, epoch=1), load(2, seed=1)):
        assert sum(other[i] != expected[i] for i in range(6)) >= 5
    assert load(4, epoch=1) == load(2, epoch=1)


def test_draws_follow_the_epoch_in_workers_that_stay(processor):
    dataset = ListOfSamples([rich_sample(f"photo {i}", 6) for i in range(4)])
    collator = PixCLIPDataCollator(processor, captions=True, hard_negatives=True, max_regions_per_image=2)
    loader = DataLoader(dataset, batch_size=4, collate_fn=collator, num_workers=1, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        [batch] = loader
        epochs.append(parts_of(batch))
    assert epochs[0] == epochs[2] != epochs[1]


def test_captions_take_their_paths_and_are_encoded_once(processor):
    samples = [
        rich_sample("0", captions=["a photo"], long_captions=["the whole photo"]),
        make_sample("1", 1, ["the whole photo"]),
        {**make_sample("2", 1), "long_captions": [" the whole photo"]},
    ]
    batch = PixCLIPDataCollator(processor, captions=True)(samples)
    short, long = batch["short_caption_index"], batch["long_caption_index"]
    assert short.dtype == long.dtype == torch.int64 and batch["long_text_mask"].dtype == torch.bool
    assert short[2] == -1 and long[1] == -1
    assert decode(processor, {**batch, "index": short[:2]}, "index") == ["a photo", "the whole photo"]
    assert decode(processor, {**batch, "index": long[[0, 2]]}, "index") == ["the whole photo"] * 2
    # One text is one row a path: short and long are encoded in different ways.
    assert long[0] == long[2] != short[1]
    assert batch["text_ids"][long[0]] == batch["text_ids"][short[1]]
    assert batch["long_text_mask"].nonzero().flatten().tolist() == [int(long[0])]
    assert len(batch["input_ids"]) == len(batch["text_ids"]) == 4 + 2 + 1
    assert "short_caption_index" not in PixCLIPDataCollator(processor)(samples)


def test_several_captions_take_turns(processor):
    batches = [
        PixCLIPDataCollator(processor, captions=True, crops=False)([rich_sample("0", epoch=epoch)])
        for epoch in range(12)
    ]
    for kind in ("short_caption_index", "long_caption_index"):
        assert len({int(batch["text_ids"][batch[kind][0]]) for batch in batches}) == 2


def test_text_ids_are_those_of_every_process(processor):
    batch = PixCLIPDataCollator(processor, crops=False)([make_sample("0", 1, object_texts=[" a car "])])
    expected = [
        int.from_bytes(blake2b(text, digest_size=8).digest(), "little", signed=True)
        for text in (b"region 0 of 0", b"a car")
    ]
    assert batch["text_ids"].tolist() == expected and batch["text_ids"].dtype == torch.int64


def test_short_texts_are_cut_and_long_ones_are_not(processor):
    sample = rich_sample("0", 1, captions=["a photo of a red kite"])
    batch = PixCLIPDataCollator(processor, captions=True, short_text_max_length=3)([sample])
    lengths = batch["attention_mask"].sum(1)
    # The collator marks long captions; everything else is short.
    assert lengths[batch["long_text_mask"]].tolist() == [9]
    assert lengths[~batch["long_text_mask"]].tolist() == [3, 3]
    assert decode(processor, {**batch, "index": batch["short_caption_index"]}, "index") == ["a photo of"]
    assert decode(processor, {**batch, "index": batch["region_text_index"]}, "index") == ["region 0 of"]
    assert PixCLIPDataCollator(processor, short_text_max_length=3)([sample])["input_ids"].shape == (1, 3)


def test_hard_negatives_belong_to_their_regions(processor):
    samples = [
        rich_sample("0", 2, hard_negatives=[["a blue kite", "a red car"], []], object_texts=["a red kite", None]),
        make_sample("1", 1),
        rich_sample("2", 1, hard_negatives=[["a red car"]]),
    ]
    batch = PixCLIPDataCollator(processor, hard_negatives=True, whole_image_share=0.0)(samples)
    assert decode(processor, batch, "hard_negative_text_index") == ["a blue kite", "a red car", "a red car"]
    assert batch["hard_negative_region_index"].tolist() == [0, 0, 3]
    assert batch["hard_negative_text_index"][1] == batch["hard_negative_text_index"][2]
    assert batch["hard_negative_region_index"].dtype == torch.int64
    without = PixCLIPDataCollator(processor, hard_negatives=True)(samples[1:2])
    for name in ("hard_negative_text_index", "hard_negative_region_index"):
        assert without[name].shape == (0,) and without[name].dtype == torch.int64
    assert not any("negative" in name for name in PixCLIPDataCollator(processor)(samples))


def test_most_hard_negatives_of_a_region_are_drawn(processor):
    chosen = set()
    options = {"hard_negatives": True, "max_hard_negatives": 2, "whole_image_share": 0.0, "crops": False}
    collator = PixCLIPDataCollator(processor, **options)
    for epoch in range(12):
        batch = collator([rich_sample("0", 2, epoch=epoch, hard_negatives=[["a", "red", "blue", "kite"], ["car"]])])
        assert batch["hard_negative_region_index"].tolist() == [0, 0, 1]
        chosen.add(tuple(decode(processor, batch, "hard_negative_text_index")[:2]))
        held_out = collator([rich_sample("0", 1, evaluation=True, hard_negatives=[["a", "red", "blue", "kite"]])])
        assert len(held_out["hard_negative_text_index"]) == 4
    assert len(chosen) > 2


def test_a_hard_negative_that_is_the_positive_is_dropped_with_a_warning(processor):
    sample = rich_sample("photo 7", 2, object_texts=["a red kite", None])
    sample["hard_negatives"] = [["a red kite ", "a blue kite", "region 0 of photo 7"], ["a red kite"]]
    collator = PixCLIPDataCollator(processor, hard_negatives=True, whole_image_share=0.0)
    with pytest.warns(UserWarning, match="2 hard negatives .* equal a text of their own region .* 'photo 7'"):
        batch = collator([sample])
    assert decode(processor, batch, "hard_negative_text_index") == ["a blue kite", "a red kite"]
    assert batch["hard_negative_region_index"].tolist() == [0, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator([sample])
    assert collator.dropped_hard_negatives == 4


def test_a_box_is_a_region_of_its_own(processor):
    sample = make_sample("0", 2)
    sample["boxes"] = [[3.0, 12.0, 30.0, 28.0], None]
    batch = PixCLIPDataCollator(processor)([sample, make_sample("1", 1)])
    expected = [
        [3 / 60, 12 / 40, 30 / 60, 28 / 40],
        [5 / 60, 10 / 40, 10 / 60, 30 / 40],
        [0, 10 / 40, 5 / 60, 30 / 40],
    ]
    torch.testing.assert_close(batch["region_boxes"], torch.tensor(expected))


def regions_that_show_nothing():
    """An empty mask, a box without area, and a mask that the centre crop of 'shortest_edge' cuts off; one is fine."""
    sample = make_sample("photo 7", 4)
    sample["masks"][0] = np.zeros((40, 60), dtype=bool)
    sample["masks"][1] = np.zeros((40, 60), dtype=bool)
    sample["masks"][3] = sample["masks"][3] * False
    sample["masks"][3][:, 25:30] = True
    sample["boxes"] = [None, [10.0, 10.0, 10.0, 30.0], None, None]
    sample["masks"][2] = np.zeros((40, 60), dtype=bool)
    sample["masks"][2][10:30, :5] = True
    return sample


def test_regions_that_show_nothing_are_empty_and_counted(processor):
    image_processor = PixCLIPImageProcessor(size={"height": 32, "width": 32}, resize_mode="shortest_edge")
    collator = PixCLIPDataCollator(PixCLIPProcessor(image_processor, processor.tokenizer))
    samples = [regions_that_show_nothing(), make_sample("1", 0), make_sample("2", 4)]
    samples[2]["masks"][0][:, 25:30] = True
    samples[2]["masks"] = [samples[2]["masks"][0]] * 4
    with pytest.warns(UserWarning, match="3 regions in a batch show nothing .* of the images 'photo 7'"):
        batch = collator(samples)
    assert collator.empty_regions == 3 and len(batch["mask_values"]) == 8
    outside = -INSIDE
    for row in range(3):
        torch.testing.assert_close(batch["mask_values"][row], torch.full((1, 32, 32), outside))
        torch.testing.assert_close(batch["crop_mask_values"][row], torch.full((1, 32, 32), outside))
        assert not batch["region_boxes"][row].any() and not batch["crop_pixel_values"][row].any()
    assert (batch["mask_values"][3:].flatten(1).amax(1) > 0).all()
    assert (batch["region_boxes"][3:, 2:] > batch["region_boxes"][3:, :2]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator(samples)
    assert collator.empty_regions == 6


def test_augmentation_passes_empty_regions_on(processor):
    collator = PixCLIPDataCollator(processor, augmentation=RegionAugmentation(crop_scale=(0.5, 0.8), min_visible=0.1))
    with pytest.warns(UserWarning, match="show nothing"):
        batch = collator([regions_that_show_nothing()])
    assert len(batch["mask_values"]) == 4 and collator.empty_regions == 2


PRESETS = ("pixclip", "fg-clip-stage1", "fg-clip-stage2", "pixclip+fg", "alpha-clip", "clip")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_objective_takes_every_batch(processor, preset):
    model = randomise(PixCLIPForPreTraining(pixclip_config(**get_objective_preset(preset)))).train()
    collator = PixCLIPDataCollator(processor, **model.config.batch_parts)
    lone = rich_sample("0", 1, captions=["a photo"], hard_negatives=[["a blue car"]])
    batches = {
        "full": [rich_sample("0"), rich_sample("1", 3)],
        "nothing": [make_sample("0", 0), make_sample("1", 0)],
        "an image without regions": [make_sample("0", 0), rich_sample("1", 2)],
        "no captions": [make_sample("0", 1), make_sample("1", 2)],
        "one region": [lone],
        "regions that show nothing": [regions_that_show_nothing(), rich_sample("1")],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = {name: collator(samples) for name, samples in batches.items()}
    for name, batch in batches.items():
        model.zero_grad()
        output = model(**batch)
        output.loss.backward()
        assert torch.isfinite(output.loss), name
        gradients = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
        assert all(gradient.isfinite().all() for gradient in gradients.values()), name
        if name == "full":
            assert output.loss_terms.keys() == model.config.term_weights.keys()
        if name == "nothing":
            assert output.loss == 0 and not any(gradient.any() for gradient in gradients.values())
        if name == "regions that show nothing" and "global_weight" in get_objective_preset(preset):
            skipped = max(output.skipped.values(), default=0)
            assert skipped == (0 if preset in ("clip", "fg-clip-stage1") else 2)


@pytest.mark.parametrize("regions", [1, 5])
def test_an_image_is_decoded_and_resized_once(processor, tmp_path, monkeypatch, regions):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    boxes = [[10, 5, 30, 25], [0, 0, 60, 40], [40, 20, 60, 40], [2, 2, 9, 9], [30, 8, 50, 30]]
    record = {
        "image": "1.png",
        "image_id": "1",
        "width": 60,
        "height": 40,
        "regions": [{"box": boxes[i], "text": f"region {i}"} for i in range(regions)],
    }
    write_region_jsonl([record], tmp_path / "data.jsonl")
    dataset = RegionJsonlDataset(tmp_path / "data.jsonl")
    decodes, resizes = [], []
    load, resize = ImageFile.ImageFile.load, Image.Image.resize

    def counted_load(self):
        # Later calls on a decoded image find nothing left to do.
        if self.tile:
            decodes.append(self.size)
        return load(self)

    def counted_resize(self, *arguments, **options):
        if self.mode == "RGB":
            resizes.append((self.size, options.get("box")))
        return resize(self, *arguments, **options)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted_load)
    monkeypatch.setattr(Image.Image, "resize", counted_resize)
    PixCLIPDataCollator(processor, crops=False)([dataset[0]])
    assert decodes == [(60, 40)] and len(resizes) == 1
    decodes.clear(), resizes.clear()
    batch = PixCLIPDataCollator(processor)([dataset[0]])
    assert decodes == [(60, 40)] and len(resizes) == 1 + regions
    # Crops are cut from the decoded photo, at its own resolution: a square of 1.5 times 20 pixels around the first box.
    crop = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC, box=(5, 0, 35, 30))
    expected = (np.asarray(crop) / 255 - np.array(OPENAI_CLIP_MEAN)) / np.array(OPENAI_CLIP_STD)
    torch.testing.assert_close(
        batch["crop_pixel_values"][0], torch.from_numpy(expected).permute(2, 0, 1).float(), rtol=1e-5, atol=1e-5
    )


def test_texts_that_the_tokenizer_refuses_are_dropped_and_written_down(tmp_path):
    backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1, "</s>": 2}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    # Takes more away than whitespace and marks: what a reader cannot know of.
    backend.normalizer = normalizers.Replace(Regex("[0-9]"), "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    processor = PixCLIPProcessor(PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    good = rich_sample("good", hard_negatives=[["a", "b", "c"], ["d"]], captions=["one", "two", "three"])
    spoiled = {
        **rich_sample("spoiled"),
        "texts": ["123", "a dog"],
        "object_texts": ["a cat", " 4 "],
        "hard_negatives": [["a cow"], ["a bag", "56"]],
        "captions": ["7"],
        "long_captions": ["8 8"],
    }
    options = {"captions": True, "hard_negatives": True, "max_hard_negatives": 2}
    with pytest.raises(ValueError, match="no character that the tokenizer keeps"):
        PixCLIPDataCollator(processor, **options)([good, spoiled])
    log = BadSampleLog(tmp_path / "bad_samples.jsonl", max_bad_fraction=1.0)
    collator = PixCLIPDataCollator(processor, **options, bad_samples=log)
    batch = collator([spoiled, good])
    assert batch["region_image_index"].tolist() == [0, 1, 1]
    # The object text of the region that is left is its text.
    assert batch["region_text_index"][0] == batch["object_text_index"][0]
    assert batch["short_caption_index"][0] == batch["long_caption_index"][0] == -1
    assert batch["hard_negative_region_index"].tolist() == [0, 1, 1, 2]
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert {line["where"] for line in lines} == {
        f"image 'spoiled', text {t!r}" for t in ("123", "4", "56", "7", "8 8")
    }
    # The draws of the other image are what they are alone.
    alone = collator([good])

    def texts_of_good(batch, name, rows):
        return batch["text_ids"][batch[name][rows]].tolist()

    assert texts_of_good(batch, "short_caption_index", [1]) == texts_of_good(alone, "short_caption_index", [0])
    assert texts_of_good(batch, "hard_negative_text_index", [1, 2, 3]) == texts_of_good(
        alone, "hard_negative_text_index", [0, 1, 2]
    )
    assert collator([spoiled, good]).keys() == alone.keys() and log.num_bad == 5


def test_malformed_samples_and_settings_are_named(processor):
    collator = PixCLIPDataCollator(processor)
    with pytest.raises(ValueError, match=r"samples\[1\] lacks \['image'\].*remove_unused_columns=False"):
        collator([make_sample("0", 1), {k: v for k, v in make_sample("1", 1).items() if k != "image"}])
    with pytest.raises(ValueError, match=r"samples\[0\] \(image '0'\).*'texts': 1"):
        collator([{**make_sample("0", 2), "texts": ["region"]}])
    for text in (" ", 7):
        with pytest.raises(ValueError, match=rf"samples\[1\] \(image '1'\) has the text {text!r}"):
            collator([make_sample("0", 2), {**make_sample("1", 1), "texts": [text]}])
    with pytest.raises(ValueError, match=r"^masks\[1\]\[0\] has shape.* \(images\[1\] is image 'photo 7'\)$"):
        collator([make_sample("0", 2), {**make_sample("photo 7", 1), "masks": [np.zeros((4, 6), dtype=bool)]}])
    with pytest.raises(ValueError, match=r"^boxes\[0\]\[0\] is .* outside its image.*'photo 7'"):
        collator([{**make_sample("photo 7", 1), "boxes": [[0, 0, 99, 9]]}])
    with pytest.raises(ValueError, match=r"^images\[0\] cannot be read .* \(images\[0\] is image 'photo 7'\)$"):
        collator([{**make_sample("photo 7", 1), "image": "no such file.png"}])
    with pytest.raises(ValueError, match="whole_image_share is 2"):
        PixCLIPDataCollator(processor, whole_image_share=2)
    for name in ("max_regions_per_image", "max_hard_negatives", "short_text_max_length"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            PixCLIPDataCollator(processor, **{name: 0})


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


@pytest.mark.parametrize("key, value", [("captions", ["A left hand."]), ("long_captions", ["Turn right."])])
def test_captions_and_hard_negatives_with_sides_stop_the_flip_too(key, value):
    augmentation = RegionAugmentation((1.0, 1.0), (1.0, 1.0), horizontal_flip=1.0)
    for sample in ({**coloured_sample(), key: value}, {**coloured_sample(), "hard_negatives": [[], value]}):
        np.testing.assert_array_equal(np.asarray(augmentation(sample)["image"]), np.asarray(sample["image"]))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_boxes_move_with_their_regions(flip):
    augmentation = RegionAugmentation(crop_scale=(0.3, 0.9), min_visible=0.7, horizontal_flip=flip)
    for seed in range(10):
        sample = {**coloured_sample(), "boxes": [[20.0, 20.0, 35.0, 30.0], None]}
        augmented = augmentation(sample, torch.Generator().manual_seed(seed))
        np.testing.assert_allclose(augmented["boxes"][0], mask_to_box(augmented["masks"][0]))
        assert augmented["boxes"][1] is None
        again = augmentation(sample, torch.Generator().manual_seed(seed))
        assert again["boxes"] == augmented["boxes"] and again["image"] == augmented["image"]


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
