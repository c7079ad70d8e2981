# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a model knows of regions that it has not seen: readouts of its towers, and metrics on scenes and photos."""

from collections.abc import Iterable, Sequence

import torch
from scene_texts import ATTRIBUTES, noun_phrase
from torch import nn
from transformers import BatchFeature

from processing_pixclip import RegionSample


# How a region is read out of the image, see `embed_regions`.
READOUTS = ("mask", "dense", "roi", "crop", "box", "whole")
HARD_NEGATIVES = 10


def full_masks(batch: dict) -> dict:
    """A batch whose masks are all ones: the same data without what the masks say."""
    ones = {name: torch.ones_like(batch[name]) for name in ("mask_values", "crop_mask_values") if name in batch}
    # Normalised as the processor's default mask_mean and mask_std do.
    return {**batch, **{name: mask * (1 - 0.5) / 0.26 for name, mask in ones.items()}}


def batches_of(processor, samples: Iterable[RegionSample], size: int = 32) -> list[BatchFeature]:
    """Images, masks and context crops of the samples, as `embed_regions` takes them."""
    samples = list(samples)
    chunks = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [
        processor(
            images=[sample["image"] for sample in chunk],
            masks=[list(sample["masks"]) for sample in chunk],
            crops=True,
            return_tensors="pt",
        )
        for chunk in chunks
    ]


@torch.inference_mode()
def embed_regions(model, batches: Sequence[BatchFeature], without_masks: bool = False) -> dict[str, torch.Tensor]:
    """
    L2-normalised embeddings (R, D) of the regions by each readout.

    | readout | embedding |
    |---|---|
    | `mask` | CLS of the image with the region's mask (Alpha-CLIP; PixCLIP's `global`) |
    | `dense` | the dense map of the same, pooled under the mask (PixCLIP's `local`) |
    | `roi` | the dense map of the image without a mask, RoIAlign of the box (FG-CLIP) |
    | `crop` | CLS of the context crop with the mask in it (PixCLIP's `crop`) |
    | `box` | CLS of the context crop without a mask (CLIP) |
    | `whole` | CLS of the whole image, the same for all of its regions |

    With `without_masks` every mask is all ones.
    """
    model.eval()
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in READOUTS}
    for batch in batches:
        batch = BatchFeature(full_masks(batch) if without_masks else dict(batch)).to(model.device)
        pixels, index = batch["pixel_values"], batch["region_image_index"]
        masks, crops = batch["mask_values"], batch["crop_pixel_values"]
        features = {
            "mask": model.get_image_features(pixels, masks, index),
            "dense": model.get_region_features(pixels, masks, index, pooling="mask"),
            "roi": model.get_region_features(
                pixels, region_image_index=index, region_boxes=batch["region_boxes"], pooling="roi"
            ),
            "crop": model.get_image_features(crops, batch["crop_mask_values"]),
            "box": model.get_image_features(crops),
        }
        for name, output in features.items():
            rows[name].append(output.pooler_output)
        rows["whole"].append(model.get_image_features(pixels).pooler_output[index])
    return {name: nn.functional.normalize(torch.cat(parts).float(), dim=-1).cpu() for name, parts in rows.items()}


@torch.inference_mode()
def embed_texts(model, processor, texts: Sequence[str], size: int = 256) -> dict[str, torch.Tensor]:
    """L2-normalised embedding (D,) of each distinct text."""
    model.eval()
    texts = sorted(set(texts))
    rows = []
    for start in range(0, len(texts), size):
        tokens = processor(text=texts[start : start + size], return_tensors="pt").to(model.device)
        rows.append(model.get_text_features(**tokens).pooler_output)
    embeds = nn.functional.normalize(torch.cat(rows).float(), dim=-1).cpu()
    return dict(zip(texts, embeds))


def class_text(category: str) -> str:
    return noun_phrase(category)


def texts_of(scenes: Sequence[RegionSample], categories: Sequence[str]) -> list[str]:
    """All texts that the metrics ask for."""
    texts = [class_text(category) for category in categories]
    for scene in scenes:
        texts += [*scene["texts"], *scene["object_texts"], *scene["captions"], *scene["long_captions"]]
        texts += [text for negatives in scene["hard_negatives"] for text in negatives]
    return texts


def scene_metrics(
    embeds: torch.Tensor, texts: dict[str, torch.Tensor], scenes: Sequence[RegionSample], categories: Sequence[str]
) -> dict[str, float | None]:
    """
    Metrics of one readout on composed scenes, all in 0 to 1; `None` where the scenes hold no case of it.

    Returns:
        Dictionary with
            scene_r1: is a region's own text the nearest of the texts of its scene;
            scene_object_r1: the same with the object texts ("a red bus"), which tell nothing of size and place; an
                equal text counts as the own;
            r1_of_500: is it the nearest of 500 distinct texts, those of the first 500 such regions;
            right_of_two: share of other texts of the scene that it is nearer than, pair by pair;
            class_accuracy: 80-way, mean over the classes; class_accuracy_all: mean over the regions;
            hard_negative_pair: is it nearer than a hard negative, mean over all; hard_negative_pair_{attribute}: that of
                the negatives with this attribute swapped;
            hard_negative: is it nearer than ten hard negatives at once, over the regions that have ten.
    """
    own = torch.stack([texts[text] for scene in scenes for text in scene["texts"]])
    counts = [len(scene["texts"]) for scene in scenes]
    found, found_object, of_two = [], [], []
    for scene, rows, wanted in zip(scenes, embeds.split(counts), own.split(counts)):
        similarity = rows @ wanted.T
        best = similarity.argmax(1)
        found += (best == torch.arange(len(best))).tolist()
        gap = similarity.diagonal()[:, None] - similarity
        of_two += [_win(value) for value in gap[~torch.eye(len(gap), dtype=torch.bool)].tolist()]
        objects = scene["object_texts"]
        nearest = (rows @ torch.stack([texts[text] for text in objects]).T).argmax(1)
        found_object += [objects[i] == objects[j] for i, j in enumerate(nearest.tolist())]

    metrics = {
        "scene_r1": _mean(found),
        "scene_object_r1": _mean(found_object),
        "r1_of_500": _recall_of_distinct(embeds, own, [text for scene in scenes for text in scene["texts"]]),
        "right_of_two": _mean(of_two),
        **class_metrics(embeds, texts, [category for scene in scenes for category in scene["categories"]], categories),
    }
    wins: dict[str, list[float]] = {attribute: [] for attribute in ATTRIBUTES}
    all_ten = []
    negatives = [pair for scene in scenes for pair in zip(scene["hard_negatives"], scene["hard_negative_attributes"])]
    for row, wanted, (wrong, attributes) in zip(embeds, own, negatives):
        if not wrong:
            continue
        gaps = (row @ wanted - torch.stack([texts[text] for text in wrong]) @ row).tolist()
        for attribute, gap in zip(attributes, gaps):
            wins[attribute].append(_win(gap))
        if len(gaps) >= HARD_NEGATIVES:
            all_ten.append(min(gaps[:HARD_NEGATIVES]) > 0)
    metrics["hard_negative"] = _mean(all_ten)
    metrics["hard_negative_pair"] = _mean([win for values in wins.values() for win in values])
    metrics |= {f"hard_negative_pair_{attribute}": _mean(values) for attribute, values in wins.items()}
    return metrics


def scene_chances(scenes: Sequence[RegionSample], categories: Sequence[str]) -> dict[str, float | None]:
    """What blind guessing earns in `scene_metrics`."""
    objects = [scene["object_texts"] for scene in scenes]
    return {
        "scene_r1": _mean([1 / len(texts) for texts in objects for _ in texts]),
        "scene_object_r1": _mean([texts.count(text) / len(texts) for texts in objects for text in texts]),
        "r1_of_500": 1 / 500,
        "right_of_two": 0.5,
        "class_accuracy": 1 / len(categories),
        "hard_negative": 1 / (1 + HARD_NEGATIVES),
        "hard_negative_pair": 0.5,
    }


def photo_metrics(
    embeds: torch.Tensor, texts: dict[str, torch.Tensor], photos: Sequence[RegionSample], categories: Sequence[str]
) -> dict[str, float | None]:
    """
    Metrics of one readout on photos with class names only.

    Returns:
        Dictionary with
            class_accuracy, class_accuracy_all: as in `scene_metrics`;
            right_of_two: of two objects of different classes of a photo, is a region nearer to its own class than to
                the other's, over all such pairs.
    """
    counts = [len(photo["categories"]) for photo in photos]
    of_two = []
    for photo, rows in zip(photos, embeds.split(counts)):
        named = photo["categories"]
        similarity = rows @ torch.stack([texts[class_text(category)] for category in named]).T
        for i, mine in enumerate(named):
            of_two += [_win(float(similarity[i, i] - similarity[i, j])) for j, its in enumerate(named) if its != mine]
    named = [category for photo in photos for category in photo["categories"]]
    return {**class_metrics(embeds, texts, named, categories), "right_of_two": _mean(of_two)}


def class_metrics(
    embeds: torch.Tensor, texts: dict[str, torch.Tensor], named: Sequence[str], categories: Sequence[str]
) -> dict[str, float | None]:
    """`class_accuracy`, the mean over the classes that occur, and `class_accuracy_all`, the mean over all regions."""
    nearest = (embeds @ torch.stack([texts[class_text(category)] for category in categories]).T).argmax(1)
    hits = [categories[best] == name for best, name in zip(nearest.tolist(), named)]
    by_class = [[hit for hit, name in zip(hits, named) if name == category] for category in set(named)]
    return {"class_accuracy": _mean([_mean(values) for values in by_class]), "class_accuracy_all": _mean(hits)}


def caption_recall(
    embeds: torch.Tensor, texts: dict[str, torch.Tensor], scenes: Sequence[RegionSample]
) -> dict[str, float]:
    """Whole image to the captions of all scenes, R@1; `embeds` are those of the readout `whole`, one row a region."""
    first = torch.tensor([0, *[len(scene["texts"]) for scene in scenes[:-1]]]).cumsum(0)
    images = embeds[first]
    metrics = {}
    for key in ("captions", "long_captions"):
        given = [scene[key][0] for scene in scenes]
        metrics[f"{key}_r1"] = _recall_of_distinct(
            images, torch.stack([texts[text] for text in given]), given, len(given)
        )
    return metrics


def _recall_of_distinct(embeds, own, given: Sequence[str], most: int = 500) -> float:
    """R@1 of the first `most` rows with distinct texts, among the texts of just these rows."""
    rows = sorted({text: row for row, text in reversed(list(enumerate(given)))}.values())[:most]
    return ((embeds[rows] @ own[rows].T).argmax(1) == torch.arange(len(rows))).float().mean().item()


def _win(gap: float) -> float:
    return 0.5 if gap == 0 else float(gap > 0)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if len(values) else None
