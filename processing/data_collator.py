# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Collator for the Trainer: samples of the region readers become the flat, ragged batch of PixCLIP's objectives."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch

from .bad_samples import BadSampleLog
from .region_records import RegionSample, is_text
from .training_epochs import epoch_generator


_PER_REGION = ("masks", "texts", "object_texts", "categories")
_PER_REGION_OPTIONAL = ("boxes", "hard_negatives")


class PixCLIPDataCollator:
    """Makes the batch of all objectives: images, region masks and boxes, context crops, captions, hard negatives, texts.

    Texts are de-duplicated into T rows, without regard to whitespace around them, so that one text in two regions of a
    batch is encoded once and is no negative of itself. Samples of `EvaluationRegions` are taken as they are: all
    regions and hard negatives, the first of several captions, no whole images, no augmentation.

    Every random draw for an image hangs on `seed`, the epoch of the sample (see `SetEpochCallback`) and its
    `image_id`, and on nothing else: neither on the batch it is in, nor on workers, nor on what was drawn before. A
    resumed training thus draws what the uninterrupted one does.

    Give the Trainer `remove_unused_columns=False`: it would otherwise take the samples apart before they get here.

    Args:
        processor (`PixCLIPProcessor`):
            Makes tensors of images, masks and texts.
        crops (`bool`, defaults to `True`):
            Whether the batch has context crops; they are what the `crop` and `local` terms read.
        captions (`bool`, defaults to `False`):
            Whether the batch has one short caption (of `captions`) and one long caption (of `long_captions`) an image,
            at random; they are what the `caption_short` and `caption_long` terms read. The long ones take the long
            path of a text tower that has one.
        hard_negatives (`bool`, defaults to `False`):
            Whether the batch has the hard negatives of its regions; they are what the `hard_negative` and
            `ranking_margin` terms read. A negative that equals a text of its own region is left out, with a warning.
        max_hard_negatives (`int`, *optional*):
            Most hard negatives of a region, a random subset of them; all by default.
        whole_image_share (`float`, *optional*, defaults to 0.1, or 0.0 with `captions`):
            Probability that an image with captions enters as one whole-image region (a mask of ones and one of its
            `captions`, at random) in place of its regions. 0.1 is what Alpha-CLIP trained with; with `captions` the
            objective sees whole images anyway. Without, an image that has no regions always enters so.
        max_regions_per_image (`int`, *optional*):
            Most regions of an image in one batch, a random subset of them; all by default.
        short_text_max_length (`int`, *optional*, defaults to the processor's `text_max_length`):
            Longest text that is no long caption, in tokens, template included; longer ones are cut. 77 for FG-CLIP.
        augmentation (`Callable`, *optional*):
            Takes a sample with the chosen regions and a `torch.Generator`, returns a sample; see `RegionAugmentation`.
        text_embeddings (`Mapping[str, torch.Tensor]`, *optional*):
            Pooled vectors (W,) of the text backbone by text, as the samples hold it. If given, the batch has
            `backbone_embeds` in place of tokens.
        long_text_embeddings (`Mapping[str, torch.Tensor]`, *optional*, defaults to `text_embeddings`):
            Those of long captions, for a text tower with positions of their own for these: a `TextFeatureStore` made
            with `long_text=True`.
        seed (`int`, defaults to 0):
            Seed of all random draws.
        bad_samples (`BadSampleLog`, *optional*):
            Where texts that the tokenizer cannot encode are counted and written down, such as one that spells a control
            token; the region, caption or hard negative is then left out of the batch. Without, they are an error.

    Attributes:
        dropped_hard_negatives (`int`): How many negatives were left out since the collator was made, in this process.
        empty_regions (`int`): How many regions that show nothing were given to the model since the collator was made,
            in this process: a mask without a pixel, a box without area, a region that the frame cuts off. The model
            leaves them out of the loss and counts them too; the collator warns once and tells their images.

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
        captions: bool = False,
        hard_negatives: bool = False,
        max_hard_negatives: int | None = None,
        whole_image_share: float | None = None,
        max_regions_per_image: int | None = None,
        short_text_max_length: int | None = None,
        augmentation: Callable[[RegionSample, torch.Generator], RegionSample] | None = None,
        text_embeddings: Mapping[str, torch.Tensor] | None = None,
        long_text_embeddings: Mapping[str, torch.Tensor] | None = None,
        seed: int = 0,
        bad_samples: BadSampleLog | None = None,
    ):
        if whole_image_share is None:
            whole_image_share = 0.0 if captions else 0.1
        if not 0 <= whole_image_share <= 1:
            raise ValueError(f"whole_image_share is {whole_image_share}; accepted is a probability, 0 to 1.")
        limits = {
            "max_regions_per_image": max_regions_per_image,
            "max_hard_negatives": max_hard_negatives,
            "short_text_max_length": short_text_max_length,
        }
        for name, limit in limits.items():
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; accepted are 1 and more, or None.")
        self.processor = processor
        self.crops = crops
        self.captions = captions
        self.hard_negatives = hard_negatives
        self.max_hard_negatives = max_hard_negatives
        self.whole_image_share = whole_image_share
        self.max_regions_per_image = max_regions_per_image
        self.short_text_max_length = short_text_max_length
        self.augmentation = augmentation
        self.text_embeddings = text_embeddings
        self.long_text_embeddings = text_embeddings if long_text_embeddings is None else long_text_embeddings
        _check_text_paths(self.text_embeddings, self.long_text_embeddings, captions)
        self.seed = seed
        self.bad_samples = bad_samples
        self.dropped_hard_negatives = 0
        self.empty_regions = 0

    def __call__(self, samples: Sequence[RegionSample]) -> dict[str, Any]:
        """Builds the batch of B images with R regions, M hard negatives and T texts.

        Args:
            samples: B samples as the region readers yield them.

        Returns:
            Dictionary with
                pixel_values (B, 3, H, W), mask_values (R, 1, H, W), region_image_index (R,), region_boxes (R, 4) xyxy
                in 0..1: the box of a region that is given by one, else the tight box of its mask;
                crop_pixel_values (R, 3, h, w) and crop_mask_values (R, 1, h, w), if `crops`;
                input_ids, attention_mask, pooling_mask (T, L), or backbone_embeds (T, W) if `text_embeddings`;
                text_ids (T,), int64: equal for equal texts, in every batch and process;
                long_text_mask (T,), bool, if `captions`: which texts are long captions;
                region_text_index and object_text_index (R,), int64: the rows of each region's long text and of its
                object text, which is the long text where there is no object text;
                short_caption_index and long_caption_index (B,), int64, if `captions`: the rows of each image's
                captions, -1 where it has none;
                hard_negative_text_index and hard_negative_region_index (M,), int64, if `hard_negatives`: the row of
                each hard negative, and the region it is one of;
                return_loss: `True`.
            R, M and T may be 0; the tensors then have no rows and all their other sides.

        Raises:
            ValueError: If a sample is malformed, `text_embeddings` lacks a text, or the tokenizer cannot encode one and
                there is no `bad_samples`. Names the sample by its place in the batch and by its `image_id`.
            TooManyBadSamplesError: See `BadSampleLog`.
        """
        chosen, generators = [], []
        for position, sample in enumerate(samples):
            per_region = _check_sample(sample, position)
            evaluation = sample.get("evaluation", False)
            generator = None if evaluation else epoch_generator(self.seed, sample.get("epoch", 0), sample["image_id"])
            generators.append(generator)
            chosen.append(sample if evaluation else self._choose(sample, per_region, generator))

        texts = _TextRows()
        indices, dropped = self._index_texts(chosen, generators, texts)
        try:
            encoded = self._tokenize(texts) if self.text_embeddings is None else self._embed(texts)
        except ValueError:
            refused = {} if self.bad_samples is None or self.text_embeddings is not None else self._refused(texts)
            if not refused:
                raise
            # From the start, so that the other samples draw what they draw in any batch.
            return self([self._without(sample, refused) for sample in samples])
        self._count_dropped(dropped)
        try:
            batch = dict(
                self.processor.image_processor(
                    [sample["image"] for sample in chosen],
                    masks=[sample["masks"] for sample in chosen],
                    boxes=[sample.get("boxes", [None] * len(sample["masks"])) for sample in chosen],
                    crops=self.crops,
                    allow_empty=True,
                    return_tensors="pt",
                )
            )
        except ValueError as error:
            raise ValueError(_name_images(str(error), chosen)) from error
        self._count_empty_regions(batch, chosen)
        batch |= encoded
        batch["text_ids"] = torch.tensor([_text_id(text) for text, _ in texts.given], dtype=torch.int64)
        if self.captions:
            # Also where no text is long: the two paths of a text tower must run on every rank alike.
            batch["long_text_mask"] = torch.tensor([is_long for _, is_long in texts.given], dtype=torch.bool)
        batch |= {name: torch.tensor(rows, dtype=torch.int64) for name, rows in indices.items()}
        batch["return_loss"] = True
        return batch

    def _choose(self, sample: RegionSample, per_region: Sequence[str], generator: torch.Generator) -> RegionSample:
        regions = len(sample["masks"])
        whole = bool(sample["captions"]) and torch.rand((), generator=generator).item() < self.whole_image_share
        if whole or (sample["captions"] and not regions and not self.captions):
            sample = _as_whole_image(sample, _draw(sample["captions"], generator))
        elif self.max_regions_per_image is not None and regions > self.max_regions_per_image:
            kept = _subset(regions, self.max_regions_per_image, generator)
            sample = {**sample, **{key: [sample[key][i] for i in kept] for key in per_region}}
        return sample if self.augmentation is None else self.augmentation(sample, generator)

    def _index_texts(
        self, chosen: Sequence[RegionSample], generators: Sequence[torch.Generator | None], texts: _TextRows
    ) -> tuple[dict[str, list[int]], Counter[str]]:
        indices: dict[str, list[int]] = {"region_text_index": [], "object_text_index": []}
        if self.captions:
            indices |= {"short_caption_index": [], "long_caption_index": []}
        if self.hard_negatives:
            indices |= {"hard_negative_text_index": [], "hard_negative_region_index": []}
        dropped: Counter[str] = Counter()
        for position, (sample, generator) in enumerate(zip(chosen, generators)):
            name = f"samples[{position}] (image {sample['image_id']!r})"
            negatives = sample.get("hard_negatives", [[]] * len(sample["texts"]))
            for text, object_text, others in zip(sample["texts"], sample["object_texts"], negatives):
                region = len(indices["region_text_index"])
                own = [text, text if object_text is None else object_text]
                for key, item in zip(("region_text_index", "object_text_index"), own):
                    indices[key].append(texts.row(item, name))
                if not self.hard_negatives:
                    continue
                own = {item.strip() for item in own}
                # A negative that is a text of the region is a choice without a right answer.
                wrong = [other for other in others if not isinstance(other, str) or other.strip() not in own]
                if len(wrong) < len(others):
                    dropped[sample["image_id"]] += len(others) - len(wrong)
                if generator is not None and self.max_hard_negatives is not None:
                    wrong = [wrong[i] for i in _subset(len(wrong), self.max_hard_negatives, generator)]
                indices["hard_negative_text_index"] += [texts.row(other, name) for other in wrong]
                indices["hard_negative_region_index"] += [region] * len(wrong)
            if self.captions:
                for key, kind in (("short_caption_index", "captions"), ("long_caption_index", "long_captions")):
                    of_image = sample.get(kind, [])
                    row = texts.row(_draw(of_image, generator), name, kind == "long_captions") if of_image else -1
                    indices[key].append(row)
        return indices, dropped

    def _count_dropped(self, dropped: Counter[str]) -> None:
        if dropped and not self.dropped_hard_negatives:
            warnings.warn(
                f"{dropped.total()} hard negatives in a batch equal a text of their own region and are left out, "
                f"because such a choice has no right answer; they are of the images {', '.join(map(repr, dropped))}. "
                f"This collator warns once and goes on counting in dropped_hard_negatives.",
                stacklevel=3,
            )
        self.dropped_hard_negatives += dropped.total()

    def _refused(self, texts: _TextRows) -> dict[str, ValueError]:
        """The texts, stripped, that the tokenizer cannot encode, and why."""
        refused = {}
        for text, _ in texts.given:
            try:
                self.processor.tokenize_text([text])
            except ValueError as error:
                refused[text] = error
        return refused

    def _without(self, sample: RegionSample, refused: Mapping[str, ValueError]) -> RegionSample:
        """Takes regions, captions and hard negatives with such texts out of a sample, and writes them down."""
        found: dict[str, ValueError] = {}

        def accepted(text: Any) -> bool:
            reason = refused.get(text.strip()) if isinstance(text, str) else None
            if reason is not None:
                found[text.strip()] = reason
            return reason is None

        per_region = [*_PER_REGION, *(key for key in _PER_REGION_OPTIONAL if key in sample)]
        kept = [number for number, text in enumerate(sample["texts"]) if accepted(text)]
        cleaned = {**sample, **{key: [sample[key][number] for number in kept] for key in per_region}}
        cleaned["object_texts"] = [text if accepted(text) else None for text in cleaned["object_texts"]]
        if "hard_negatives" in sample:
            cleaned["hard_negatives"] = [list(filter(accepted, texts)) for texts in cleaned["hard_negatives"]]
        for key in ("captions", "long_captions"):
            if key in sample:
                cleaned[key] = list(filter(accepted, sample[key]))
        image_id = str(sample["image_id"])
        for text, error in found.items():
            self.bad_samples.add_bad(f"image {image_id!r:.200}, text {text!r:.200}", error, image_id)
        return cleaned

    def _count_empty_regions(self, batch: Mapping[str, torch.Tensor], samples: Sequence[RegionSample]) -> None:
        boxes = batch["region_boxes"]
        empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        if empty.any() and not self.empty_regions:
            images = dict.fromkeys(samples[i]["image_id"] for i in batch["region_image_index"][empty].tolist())
            warnings.warn(
                f"{int(empty.sum())} regions in a batch show nothing (a mask without a pixel, a box without area, or "
                f"outside of the centre crop of resize_mode='shortest_edge'); the model leaves them out of its loss. "
                f"They are of the images {', '.join(map(repr, images))}. This collator warns once and goes on counting "
                f"in empty_regions.",
                stacklevel=3,
            )
        self.empty_regions += int(empty.sum())

    def _tokenize(self, texts: _TextRows) -> dict[str, torch.Tensor]:
        given = list(texts.given.values())
        if not given:
            names = ("input_ids", "attention_mask", "pooling_mask")
            return {name: torch.zeros(0, 1, dtype=torch.int64) for name in names}
        long_rows = [row for row, (_, is_long) in enumerate(texts.given) if is_long]
        if self.short_text_max_length is None or not long_rows:
            tokens = self.processor.tokenize_text(given, self.short_text_max_length)
        else:
            short_rows = sorted(set(range(len(given))) - set(long_rows))
            tokens = self.processor.tokenize_text([given[row] for row in long_rows])
            if short_rows:
                short = self.processor.tokenize_text([given[row] for row in short_rows], self.short_text_max_length)
                order = np.argsort(long_rows + short_rows)
                tokens = {name: [(rows + short[name])[place] for place in order] for name, rows in tokens.items()}
        return {name: torch.from_numpy(rows) for name, rows in self.processor.pad_tokens(tokens).items()}

    def _embed(self, texts: _TextRows) -> dict[str, torch.Tensor]:
        # Some text gives the width of the vectors where the batch has none.
        given = texts.given or {("", False): next(iter(self.text_embeddings))}
        vectors = [self._embedding(text, is_long) for (_, is_long), text in given.items()]
        return {"backbone_embeds": torch.stack(vectors)[: len(texts.given)]}

    def _embedding(self, text: str, is_long: bool) -> torch.Tensor:
        try:
            return (self.long_text_embeddings if is_long else self.text_embeddings)[text]
        except KeyError as error:
            raise ValueError(
                f"{'long_' if is_long else ''}text_embeddings has no vector for the text {text!r}; embed every region "
                f"text, object text, caption and hard negative of the data set first."
            ) from error


class _TextRows:
    """The T texts of a batch: by stripped text, as the processor sees it, and path, the text as it is given."""

    def __init__(self):
        self.given: dict[tuple[str, bool], str] = {}
        self._rows: dict[tuple[str, bool], int] = {}

    def row(self, text: Any, name: str, is_long: bool = False) -> int:
        if not isinstance(text, str) or not is_text(text):
            raise ValueError(f"{name} has the text {text!r}; a text is a non-empty string of Unicode characters.")
        key = (text.strip(), is_long)
        # Vectors are filed under a text as it is given.
        self.given.setdefault(key, text)
        return self._rows.setdefault(key, len(self._rows))


def _check_text_paths(short: Any, long: Any, captions: bool):
    """A text has another vector on each path of a text tower with two tables of positions; a store tells which."""
    if short is None and long is not None:
        raise ValueError("long_text_embeddings go with text_embeddings, which are missing; pass both.")
    wrong = {"text_embeddings": (short, "long"), "long_text_embeddings": (long, "short")}
    for name, (vectors, path) in wrong.items():
        if getattr(vectors, "text_path", None) == path and (captions or name == "text_embeddings"):
            raise ValueError(
                f"{name} are vectors of the text tower's path for {path} texts: {vectors!r}. Pass text_embeddings of a "
                "TextFeatureStore made with long_text=False and long_text_embeddings of one made with long_text=True."
            )


def _check_sample(sample: RegionSample, position: int) -> list[str]:
    """Names the keys that hold one entry a region."""
    missing = RegionSample.__required_keys__ - sample.keys()
    if missing:
        raise ValueError(
            f"samples[{position}] lacks {sorted(missing)} and has {sorted(sample)}; the collator takes the samples "
            f"of the region readers. If the Trainer removed keys, set remove_unused_columns=False."
        )
    per_region = [*_PER_REGION, *(key for key in _PER_REGION_OPTIONAL if key in sample)]
    counts = {key: len(sample[key]) for key in per_region}
    if len(set(counts.values())) > 1:
        raise ValueError(
            f"samples[{position}] (image {sample['image_id']!r}) has lists of different length: {counts}; they "
            f"hold one entry a region."
        )
    return per_region


def _draw(texts: Sequence[str], generator: torch.Generator | None) -> str:
    return texts[0 if generator is None else int(torch.randint(len(texts), (), generator=generator))]


def _subset(count: int, most: int, generator: torch.Generator) -> list[int]:
    return sorted(torch.randperm(count, generator=generator)[:most].tolist())


def _text_id(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _name_images(message: str, samples: Sequence[RegionSample]) -> str:
    """Adds whose image an `images[3]` or `masks[3][0]` of a message is: places in a shuffled batch say nothing."""
    places = dict.fromkeys(map(int, re.findall(r"\b(?:images|masks|boxes)\[(\d+)\]", message)))
    names = [f"images[{i}] is image {samples[i]['image_id']!r}" for i in places if i < len(samples)]
    return f"{message} ({', '.join(names)})" if names else message


def _as_whole_image(sample: RegionSample, caption: str) -> RegionSample:
    image = sample["image"]
    whole = {
        "masks": [np.ones((image.height, image.width), dtype=bool)],
        "texts": [caption],
        "object_texts": [None],
        "categories": [None],
        "boxes": [None],
        "hard_negatives": [[]],
    }
    return {**sample, **{key: value for key, value in whole.items() if key in sample}}
