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


def text_ranks(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """
    Rank, from 1, of every text for every row, by cosine similarity: (R, T).

    A text that ties with another counts as behind it, so that equal embeddings earn nothing.
    """
    similarity = image_embeds @ text_embeds.T
    return (similarity[:, None, :] >= similarity[:, :, None]).sum(-1)


def region_retrieval_metrics(embeddings: RegionEmbeddings) -> dict[str, dict[str, float]]:
    """
    R@1, R@5 and "the right one of two", given the region's own mask, that of another region of its photo, or none.

    R@k is the share of regions whose own text is among the k nearest of all texts. Right-of-two asks, for a region and
    another one of its photo, whether the region's own text is nearer than the other's; ties count half. Both are means
    over all pairs of two regions of one photo where another region's mask is used.

    Returns:
        `{"true mask" | "other region's mask" | "no mask" | "chance": {"r1": ..., "r5": ..., "right_of_two": ...}}`.
    """
    region, rival = _pairs(embeddings.photo)
    everyone = torch.arange(len(embeddings.photo))
    # What is shown: embeddings, the row shown for each region of a single look-up, and for each pair.
    shown = {
        "true mask": (embeddings.masked, everyone, everyone, region),
        "other region's mask": (embeddings.masked, region, rival, rival),
        "no mask": (embeddings.unmasked, everyone, everyone, region),
    }
    metrics = {}
    for name, (embeds, asked, row, row_of_pair) in shown.items():
        ranks = text_ranks(embeds, embeddings.texts)[row, asked]
        similarity = embeds @ embeddings.texts.T
        gap = similarity[row_of_pair, region] - similarity[row_of_pair, rival]
        metrics[name] = {
            "r1": (ranks <= 1).float().mean().item(),
            "r5": (ranks <= 5).float().mean().item(),
            "right_of_two": ((gap > 0).float() + 0.5 * (gap == 0).float()).mean().item(),
        }
    texts = len(embeddings.texts)
    metrics["chance"] = {"r1": 1 / texts, "r5": min(1.0, 5 / texts), "right_of_two": 0.5}
    return metrics


def _pairs(photo: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All ordered pairs of two regions of one photo."""
    same = photo[:, None] == photo[None, :]
    return same.fill_diagonal_(False).nonzero(as_tuple=True)
