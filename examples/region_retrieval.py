# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Region-to-text retrieval: does the mask decide which text a region finds?"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BatchFeature

from modeling_pixclip import EvaluationRegions


TEXT_INPUTS = ("input_ids", "attention_mask", "pooling_mask", "backbone_embeds")


@dataclass
class RegionEmbeddings:
    """
    L2-normalised embeddings of all regions of a data set, in its order.

    Attributes:
        masked: (R, D), each region by its image and its mask.
        unmasked: (R, D), each region by its image alone.
        texts: (R, D), the text of each region.
        photo: (R,), the photo of each region.
    """

    masked: torch.Tensor
    unmasked: torch.Tensor
    texts: torch.Tensor
    photo: torch.Tensor


@torch.inference_mode()
def embed_regions(model, collator, dataset, batch_size: int = 8) -> RegionEmbeddings:
    """
    Embeds every region of a reader with its mask and without it, and its text.

    Args:
        model: A `PixCLIPModel`; it is used in eval mode.
        collator: A `PixCLIPDataCollator`.
        dataset: A region reader, e.g. `RegionJsonlDataset`.
        batch_size: Photos of a forward pass.
    """
    training = model.training
    model.eval()
    loader = DataLoader(EvaluationRegions(dataset), batch_size, collate_fn=collator)
    masked, unmasked, texts, photo = [], [], [], []
    for position, batch in enumerate(loader):
        batch = BatchFeature(batch).to(model.device)
        regions = batch["region_image_index"]
        masked.append(model.get_image_features(batch["pixel_values"], batch["mask_values"], regions).pooler_output)
        unmasked.append(model.get_image_features(batch["pixel_values"]).pooler_output[regions])
        tokens = {name: batch[name] for name in TEXT_INPUTS if name in batch}
        texts.append(model.get_text_features(**tokens).pooler_output[batch["region_text_index"]])
        photo.append(regions.cpu() + position * batch_size)
    model.train(training)
    masked, unmasked, texts = (
        nn.functional.normalize(torch.cat(embeds).float(), dim=-1).cpu() for embeds in (masked, unmasked, texts)
    )
    return RegionEmbeddings(masked, unmasked, texts, torch.cat(photo))


def text_rank(image_embeds: torch.Tensor, text_embeds: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """
    Rank, from 1, of one text for each row, among all texts by cosine similarity: (N,).

    A text that ties with another counts as behind it, so that equal embeddings earn nothing.

    Args:
        image_embeds: (N, D), L2-normalised.
        text_embeds: (T, D), L2-normalised.
        own: (N,), the text whose rank is asked.
    """
    ranks = []
    for rows, texts in zip(image_embeds.split(1024), own.split(1024), strict=True):
        similarity = rows @ text_embeds.T
        ranks.append((similarity >= similarity.gather(1, texts[:, None])).sum(-1))
    return torch.cat(ranks)


def region_retrieval_metrics(embeddings: RegionEmbeddings) -> dict[str, dict[str, float | None]]:
    """
    R@1, R@5 and "the right one of two", given the region's own mask, that of another region of its photo, or none.

    R@k is the share of regions whose own text is among the k nearest of all texts. Right-of-two asks, for a region and
    another one of its photo, whether the region's own text is nearer than the other's; ties count half. It is a mean
    over all ordered pairs of two regions of one photo, so that without a mask it is 0.5 by construction, and with the
    other region's mask 1 minus its value with the true mask: a model that follows the mask is misled by it. R@k with
    the other region's mask is a mean over the same pairs.

    Returns:
        `{"true mask" | "other region's mask" | "no mask" | "chance": {"r1": ..., "r5": ..., "right_of_two": ...}}`;
        where no photo has two regions, without the second row and with `None` for right-of-two.
    """
    texts = embeddings.texts
    same = embeddings.photo[:, None] == embeddings.photo[None, :]
    region, rival = same.fill_diagonal_(False).nonzero(as_tuple=True)
    everyone = torch.arange(len(texts))
    # What is shown: embeddings, the rows looked up and whose texts are asked for, the row shown for each pair.
    shown = {
        "true mask": (embeddings.masked, everyone, everyone, region),
        "other region's mask": (embeddings.masked, rival, region, rival),
        "no mask": (embeddings.unmasked, everyone, everyone, region),
    }
    if not len(region):
        del shown["other region's mask"]
    metrics = {}
    for name, (embeds, row, asked, row_of_pair) in shown.items():
        ranks = text_rank(embeds[row], texts, asked)
        gap = (embeds[row_of_pair] * texts[region]).sum(-1) - (embeds[row_of_pair] * texts[rival]).sum(-1)
        metrics[name] = {
            "r1": (ranks <= 1).float().mean().item(),
            "r5": (ranks <= 5).float().mean().item(),
            "right_of_two": ((gap > 0).float() + 0.5 * (gap == 0).float()).mean().item() if len(region) else None,
        }
    metrics["chance"] = {"r1": 1 / len(texts), "r5": min(1.0, 5 / len(texts)), "right_of_two": 0.5}
    return metrics


def format_metric(value: float | None) -> str:
    """A metric as tables print it."""
    return "-" if value is None else f"{value:.3f}"
