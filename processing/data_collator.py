# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Collator for the Trainer: samples of the region readers become PixCLIP's three-branch batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .region_datasets import RegionSample


class PixCLIPDataCollator:
    """Makes the batch of the `global`, `crop` and `local` branches: full images, context crops, masks and texts.

    Texts are de-duplicated into T rows, without regard to whitespace around them, so that one text in two regions of a
    batch is no negative of itself. An image without regions enters as a whole image if it has captions. Samples of
    `EvaluationRegions` are taken as they are: all regions, no whole images, no augmentation. All randomness is from
    torch's global generator, which the Trainer seeds, also in the workers of a data loader.

    Give the Trainer `remove_unused_columns=False`: it would otherwise take the samples apart before they get here.

    Args:
        processor (`PixCLIPProcessor`):
            Makes tensors of images, masks and texts.
        crops (`bool`, defaults to `True`):
            Whether the batch has context crops; they are what the `crop` and `local` branches read.
        whole_image_share (`float`, defaults to 0.1):
            Probability that an image with captions enters as one whole-image sample (a mask of ones and one of its
            captions, at random) in place of its regions. 0.1 is what Alpha-CLIP trained with.
        max_regions_per_image (`int`, *optional*):
            Most regions of an image in one batch, a random subset of them; all by default.
        augmentation (`Callable`, *optional*):
            Takes a sample with the chosen regions, returns one; see `RegionAugmentation`.
        text_embeddings (`Mapping[str, torch.Tensor]`, *optional*):
            Pooled vectors (W,) of the text backbone by text, as the samples hold it. If given, the batch has
            `backbone_embeds` in place of tokens.

    Raises:
        ValueError: If a setting is out of its limits.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from processing_pixclip import PixCLIPDataCollator, PixCLIPImageProcessor, PixCLIPProcessor, RegionJsonlDataset
        >>> backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1}, unk_token="[unk]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
        >>> dataset = RegionJsonlDataset("examples/data/coco_regions/train.jsonl")
        >>> collator = PixCLIPDataCollator(PixCLIPProcessor(PixCLIPImageProcessor(), tokenizer), max_regions_per_image=1)
        >>> batch = collator([dataset[0], dataset[1]])
        >>> batch["mask_values"].shape, batch["region_image_index"]
        (torch.Size([2, 1, 224, 224]), tensor([0, 1]))
    """

    def __init__(
        self,
        processor: Any,
        crops: bool = True,
        whole_image_share: float = 0.1,
        max_regions_per_image: int | None = None,
        augmentation: Callable[[RegionSample], RegionSample] | None = None,
        text_embeddings: Mapping[str, torch.Tensor] | None = None,
    ):
        if not 0 <= whole_image_share <= 1:
            raise ValueError(f"whole_image_share is {whole_image_share}; accepted is a probability, 0 to 1.")
        if max_regions_per_image is not None and max_regions_per_image < 1:
            raise ValueError(f"max_regions_per_image is {max_regions_per_image}; accepted are 1 and more, or None.")
        self.processor = processor
        self.crops = crops
        self.whole_image_share = whole_image_share
        self.max_regions_per_image = max_regions_per_image
        self.augmentation = augmentation
        self.text_embeddings = text_embeddings

    def __call__(self, samples: Sequence[RegionSample]) -> dict[str, Any]:
        """Builds the batch of B images with R regions and T texts.

        Args:
            samples: B samples as the region readers yield them.

        Returns:
            Dictionary with
                pixel_values (B, 3, H, W), mask_values (R, 1, H, W), region_image_index (R,), region_boxes (R, 4);
                crop_pixel_values (R, 3, h, w) and crop_mask_values (R, 1, h, w), if `crops`;
                input_ids, attention_mask, pooling_mask (T, L), or backbone_embeds (T, W) if `text_embeddings`;
                region_text_index and object_text_index (R,), int64: the rows of each region's long text and of its
                object text, which is the long text where there is no object text;
                return_loss: `True`.

        Raises:
            ValueError: If no region is left, a sample is malformed, or `text_embeddings` lacks a text. Names the
                sample by its place in the batch and by its `image_id`.
        """
        chosen = [self._choose(sample, position) for position, sample in enumerate(samples)]
        if not any(sample["masks"] for sample in chosen):
            raise ValueError(
                f"none of the {len(chosen)} samples of this batch has a region, nor a caption to enter as a whole "
                f"image; filter such samples out of the data set."
            )
        if self.augmentation is not None:
            chosen = [sample if sample.get("evaluation") else self.augmentation(sample) for sample in chosen]

        # Stripped texts, as the processor sees them, tell rows apart; vectors are filed under a text as it is given.
        given: dict[str, str] = {}
        region_keys, object_keys = [], []
        for position, sample in enumerate(chosen):
            for text, object_text in zip(sample["texts"], sample["object_texts"]):
                for keys, item in ((region_keys, text), (object_keys, text if object_text is None else object_text)):
                    if not isinstance(item, str) or not item.strip():
                        raise ValueError(
                            f"samples[{position}] (image {sample['image_id']!r}) has the text {item!r}; a text is a "
                            f"non-empty string."
                        )
                    keys.append(item.strip())
                    given.setdefault(item.strip(), item)
        row_of = {key: row for row, key in enumerate(given)}
        texts = list(given.values())
        try:
            batch = self.processor(
                images=[sample["image"] for sample in chosen],
                masks=[sample["masks"] for sample in chosen],
                text=texts if self.text_embeddings is None else None,
                crops=self.crops,
                return_tensors="pt",
            )
        except ValueError as error:
            raise ValueError(_name_images(str(error), chosen)) from error
        batch = dict(batch)
        if self.text_embeddings is not None:
            batch["backbone_embeds"] = torch.stack([self._embedding(text) for text in texts])
        batch["region_text_index"] = torch.tensor([row_of[key] for key in region_keys])
        batch["object_text_index"] = torch.tensor([row_of[key] for key in object_keys])
        batch["return_loss"] = True
        return batch

    def _choose(self, sample: RegionSample, position: int) -> RegionSample:
        missing = RegionSample.__required_keys__ - sample.keys()
        if missing:
            raise ValueError(
                f"samples[{position}] lacks {sorted(missing)} and has {sorted(sample)}; the collator takes the samples "
                f"of the region readers. If the Trainer removed keys, set remove_unused_columns=False."
            )
        counts = {key: len(sample[key]) for key in ("masks", "texts", "object_texts", "categories")}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"samples[{position}] (image {sample['image_id']!r}) has lists of different length: {counts}; they "
                f"hold one entry a region."
            )
        if sample.get("evaluation"):
            return sample
        regions = len(sample["masks"])
        if sample["captions"] and (regions == 0 or torch.rand(()).item() < self.whole_image_share):
            return _as_whole_image(sample)
        if self.max_regions_per_image is None or regions <= self.max_regions_per_image:
            return sample
        kept = torch.randperm(regions)[: self.max_regions_per_image].sort().values.tolist()
        return {**sample, **{key: [sample[key][i] for i in kept] for key in counts}}

    def _embedding(self, text: str) -> torch.Tensor:
        try:
            return self.text_embeddings[text]
        except KeyError as error:
            raise ValueError(
                f"text_embeddings has no vector for the text {text!r}; embed every region text, object text and "
                f"caption of the data set first."
            ) from error


def _name_images(message: str, samples: Sequence[RegionSample]) -> str:
    """Adds whose image an `images[3]` or `masks[3][0]` of a message is: places in a shuffled batch say nothing."""
    places = dict.fromkeys(map(int, re.findall(r"\b(?:images|masks)\[(\d+)\]", message)))
    names = [f"images[{i}] is image {samples[i]['image_id']!r}" for i in places if i < len(samples)]
    return f"{message} ({', '.join(names)})" if names else message


def _as_whole_image(sample: RegionSample) -> RegionSample:
    image, captions = sample["image"], sample["captions"]
    return {
        **sample,
        "masks": [np.ones((image.height, image.width), dtype=bool)],
        "texts": [captions[int(torch.randint(len(captions), ()))]],
        "object_texts": [None],
        "categories": [None],
    }
