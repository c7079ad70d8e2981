# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Region-to-text retrieval: does the mask decide which text a region finds? During training, and at its end."""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset
from transformers import BatchFeature, TrainerCallback

from modeling_pixclip import EvaluationRegions


TEXT_INPUTS = ("input_ids", "attention_mask", "pooling_mask", "backbone_embeds", "long_text_mask")
CAPTIONS = {"short caption": "short_caption_index", "long caption": "long_caption_index"}


@dataclass
class RegionEmbeddings:
    """
    L2-normalised embeddings of all regions of a data set, in its order.

    Attributes:
        masked: (R, D), each region by its image and its mask.
        unmasked: (R, D), each region by its image alone.
        texts: (R, D), the text of each region.
        photo: (R,), the photo of each region.
        whole: (B, D), each photo, if the objective reads captions.
        captions: By kind, the photo (C,) and the embedding (C, D) of each caption.
    """

    masked: torch.Tensor
    unmasked: torch.Tensor
    texts: torch.Tensor
    photo: torch.Tensor
    whole: torch.Tensor | None = None
    captions: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def pools_regions(config: Any) -> bool:
    """Whether an objective sees a region by pooling the whole image's dense map, and not by a mask that enters the tower."""
    terms = config.term_weights
    hard = {"hard_negative", "ranking_margin"} & terms.keys() and config.hard_negative_features == "global"
    return not ({"global", "crop", "local"} & terms.keys() or hard)


@torch.no_grad()
def embed_regions(model, collator, dataset, batch_size: int = 8, unmasked: bool = True) -> RegionEmbeddings:
    """
    Embeds every region of a reader with its mask and without it, and its text; whole photos and captions if `collator`
    gives them.

    In several processes each embeds its part of the photos, with as many forward passes as the others, and all return
    the embeddings of all.

    Args:
        model: A `PixCLIPForPreTraining`; it is used in eval mode. Its objective says how it sees a region.
        collator: A `PixCLIPDataCollator`.
        dataset: A region reader, e.g. `RegionJsonlDataset`.
        batch_size: Photos of a forward pass.
        unmasked: Whether regions are embedded without their mask too; otherwise `unmasked` is `masked`.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    starts = list(range(0, len(dataset), batch_size))
    rounds = -(-len(starts) // ranks)
    # Sharded weights are gathered in each pass, so that a process without a batch left repeats one.
    own = [starts[(turn * ranks + rank) % len(starts)] for turn in range(rounds)]
    order = [index for start in own for index in range(start, min(start + batch_size, len(dataset)))]
    sizes = [min(start + batch_size, len(dataset)) - start for start in own]
    places = [list(range(end - size, end)) for size, end in zip(sizes, torch.tensor(sizes).cumsum(0).tolist())]
    loader = DataLoader(EvaluationRegions(Subset(dataset, order)), batch_sampler=places, collate_fn=collator)
    training = model.training
    model.eval()
    found = {}
    with _unsharded_for(model, "get_image_features", "get_region_features", "get_text_features"):
        for turn, (start, batch) in enumerate(zip(own, loader, strict=True)):
            part = _embed_batch(model, BatchFeature(batch).to(model.device), start, unmasked)
            if turn * ranks + rank < len(starts):
                found[start] = part
    model.train(training)
    if distributed:
        parts = [None] * ranks
        torch.distributed.all_gather_object(parts, found)
        found = {start: part for of_rank in parts for start, part in of_rank.items()}
    parts = [found[start] for start in starts]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    captions = {
        kind: (joined.pop(f"{kind} photo"), joined.pop(kind)) for kind in CAPTIONS if f"{kind} photo" in parts[0]
    }
    return RegionEmbeddings(**joined, captions={kind: rows for kind, rows in captions.items() if len(rows[0])})


@contextmanager
def _unsharded_for(model, *methods: str):
    """Within, methods gather sharded weights as `forward` does; afterwards not, for `forward` calls them in training."""
    methods = methods if isinstance(model, torch.distributed.fsdp.FSDPModule) else ()
    for name in methods:
        torch.distributed.fsdp.register_fsdp_forward_method(model, name)
    try:
        yield
    finally:
        for name in methods:
            delattr(model, name)


def _embed_batch(model, batch, start: int, unmasked: bool) -> dict[str, torch.Tensor]:
    """Embeddings of the photos from number `start` on."""
    regions = batch["region_image_index"]
    captions = {kind: batch[key] for kind, key in CAPTIONS.items() if key in batch}
    if pools_regions(model.config):
        masked = model.get_region_features(
            batch["pixel_values"],
            batch["mask_values"],
            regions,
            batch["region_boxes"],
            pooling=model.config.region_pooling,
            mask_input=False,
        )
    else:
        masked = model.get_image_features(batch["pixel_values"], batch["mask_values"], regions)
    texts = model.get_text_features(**{name: batch[name] for name in TEXT_INPUTS if name in batch}).pooler_output
    embeds = {"masked": masked.pooler_output, "texts": texts[batch["region_text_index"]]}
    if unmasked or captions:
        whole = model.get_image_features(batch["pixel_values"]).pooler_output
    embeds["unmasked"] = whole[regions] if unmasked else embeds["masked"]
    if captions:
        embeds["whole"] = whole
    embeds |= {kind: texts[index[index >= 0]] for kind, index in captions.items()}
    embeds = {name: nn.functional.normalize(rows.float(), dim=-1).cpu() for name, rows in embeds.items()}
    photos = {"photo": regions} | {f"{kind} photo": (row >= 0).nonzero().flatten() for kind, row in captions.items()}
    return embeds | {name: photo.cpu() + start for name, photo in photos.items()}


def text_rank(image_embeds: torch.Tensor, text_embeds: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """
    Rank, from 1, of one text for each row, among all texts by cosine similarity: (N,).

    A text that ties with another counts as behind it, so that equal embeddings earn nothing.

    Args:
        image_embeds: (N, D), L2-normalised.
        text_embeds: (T, D), L2-normalised.
        own: (N,), the text whose rank is asked.
    """
    ranks = [own[:0]]
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

    Where there are captions, R@k of whole photos among the captions of their kind.

    Returns:
        `{"true mask" | "other region's mask" | "no mask" | "chance": {"r1": ..., "r5": ..., "right_of_two": ...}}`, and
        `"short caption"` and `"long caption"` where there are any; where no photo has two regions, without the second
        row and with `None` for right-of-two; where there are no regions, with the captions alone.
    """
    metrics = {}
    if len(embeddings.texts):
        metrics |= _metrics_of_regions(embeddings)
    for kind, (photo, captions) in embeddings.captions.items():
        ranks = text_rank(embeddings.whole[photo], captions, torch.arange(len(captions)))
        metrics[kind] = {**_recall(ranks), "right_of_two": None}
    return metrics


def _metrics_of_regions(embeddings: RegionEmbeddings) -> dict[str, dict[str, float | None]]:
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
            **_recall(ranks),
            "right_of_two": ((gap > 0).float() + 0.5 * (gap == 0).float()).mean().item() if len(region) else None,
        }
    metrics["chance"] = {"r1": 1 / len(texts), "r5": min(1.0, 5 / len(texts)), "right_of_two": 0.5}
    return metrics


def _recall(ranks: torch.Tensor) -> dict[str, float]:
    return {f"r{k}": (ranks <= k).float().mean().item() for k in (1, 5)}


class RetrievalCallback(TrainerCallback):
    """
    Adds retrieval to each evaluation of the Trainer: `eval_region_to_text_r1`, `_r5`, and, where the objective reads
    captions, `eval_image_to_short_caption_r1` and so on.

    The Trainer itself would gather embeddings with as many rows in each process, which regions do not have. What it
    holds is one embedding for each region of `dataset`. Put it before reporters, so that they see the figures too;
    `metric_for_best_model` may name them.

    Args:
        collator: A `PixCLIPDataCollator`.
        dataset: A region reader, small enough to be embedded at each evaluation.
        batch_size: Photos of a forward pass.
        averages: A `WeightAveragingCallback` whose averages are measured in place of the model's own weights.
    """

    def __init__(self, collator, dataset, batch_size: int, averages=None):
        self._collator = collator
        self._dataset = dataset
        self._batch_size = batch_size
        self._averages = averages

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        if "eval_loss" not in logs:
            return
        with averaged(model, self._averages):
            embeddings = embed_regions(model, self._collator, self._dataset, self._batch_size, unmasked=False)
        metrics = region_retrieval_metrics(embeddings)
        rows = {"true mask": "region_to_text"} | {kind: f"image_to_{kind.replace(' ', '_')}" for kind in CAPTIONS}
        found = {
            f"eval_{name}_{k}": metrics[row][k] for row, name in rows.items() if row in metrics for k in ("r1", "r5")
        }
        logs.update(found)
        state.log_history[-1].update(found)


def averaged(model, averages):
    """A context in which the model has the averaged weights, if there are any yet."""
    return averages.applied(model) if averages is not None and averages.averages else nullcontext()


def format_metric(value: float | None) -> str:
    """A metric as tables print it."""
    return "-" if value is None else f"{value:.3f}"
