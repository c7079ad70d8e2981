# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The map from a teacher's features to texts, and the losses of `distill_vision_tower.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from distillation_views import PhotoBank, ViewSampler, student_pixels, tower_size
from torch import nn


@dataclass(frozen=True)
class ProbeOptions:
    """
    Training of the linear map from the teacher's features to the vectors of texts.

    Args:
        views: Random views whose regions it is trained on, beside the photos themselves.
        steps: Steps of 256 regions and 128 captions.
        learning_rate, weight_decay, dropout: Of these steps.
        caption_weight: Weight of the captions' loss.
    """

    views: int = 1024
    steps: int = 600
    learning_rate: float = 1e-3
    weight_decay: float = 0.2
    dropout: float = 0.3
    caption_weight: float = 1.0


class TextProbe(nn.Module):
    """A linear map from standardised features of the teacher to text vectors, with an inverse temperature."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))
        self.linear = nn.Linear(features, width)
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    def standardise(self, maps: torch.Tensor) -> torch.Tensor:
        """Feature maps (B, C, h, w) as (B, h * w, C) with mean 0 and deviation 1."""
        return (maps.flatten(2).transpose(1, 2) - self.mean) / self.std

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Unit vectors (..., width) of standardised features (..., C)."""
        return nn.functional.normalize(self.linear(features), dim=-1)


def region_weights(regions: torch.Tensor, chosen: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Share of each patch (B, K, rows * columns) that each chosen region covers, summing to 1; 0 where none is chosen."""
    masks = ((regions[:, None] == chosen[:, :, None, None]) & (chosen >= 0)[:, :, None, None]).float()
    weights = nn.functional.adaptive_avg_pool2d(masks, (rows, columns)).flatten(2)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)


@torch.no_grad()
def region_features(
    teacher: Callable, images: torch.Tensor, regions: torch.Tensor, chosen: torch.Tensor, batch: int = 32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's features pooled over chosen regions (B, K, C) and over whole images (B, C), not standardised."""
    pooled, whole = [], []
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        maps = teacher(images[part]).float()
        weights = region_weights(regions[part], chosen[part], *maps.shape[-2:])
        pooled.append(weights @ maps.flatten(2).transpose(1, 2))
        whole.append(maps.mean((2, 3)))
    return torch.cat(pooled), torch.cat(whole)


@torch.no_grad()
def photo_features(teacher: Callable, sampler: ViewSampler) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the photos as they are: features of all regions, from the photo (R, C) and from a crop (R, C), and of photos (N, C)."""
    bank = sampler.bank
    pooled, crops, whole = [], [], []
    for place in range(len(bank.pixels)):
        of_photo = (bank.photos == place).nonzero().flatten()
        images, regions = sampler.whole_photos(torch.tensor([place], device=of_photo.device))
        of_regions, of_whole = region_features(teacher, images, regions, of_photo[None])
        pooled.append(of_regions[0])
        whole.append(of_whole)
    for part in torch.arange(len(bank.labels), device=bank.labels.device).split(32):
        images, _ = sampler.regions_in_context(part, 1.3)
        maps = teacher(nn.functional.interpolate(images, (224, 224), mode="area"), size=224)
        crops.append(maps.float().mean((2, 3)))
    none = torch.zeros(0, whole[0].shape[1], device=whole[0].device)
    return torch.cat(pooled), torch.cat(crops or [none]), torch.cat(whole)


def train_probe(
    teacher: Callable, sampler: ViewSampler, vectors: torch.Tensor, texts: list[str], options: ProbeOptions, seed: int
) -> TextProbe:
    """
    Trains the map from the teacher's features to texts, on regions of views, regions of photos, and captions.

    Without texts it stays a random projection, which keeps the angles between features.

    Args:
        teacher: Gives feature maps.
        sampler: Draws views of the photos.
        vectors: Unit vectors (T, D) of `texts`, those of regions first.
        texts: As in `vectors`.
        options: How.
        seed: Of the order and of dropout.
    """
    bank = sampler.bank
    device = vectors.device
    pooled, crops, whole = photo_features(teacher, sampler)
    features, labels = [pooled, crops], [bank.labels, bank.labels]
    for start in range(0, options.views, 32):
        views = sampler.draw(min(32, options.views - start))
        of_regions, _ = region_features(teacher, views.images, views.regions, views.chosen)
        features.append(of_regions[views.chosen >= 0])
        labels.append(bank.labels[views.chosen[views.chosen >= 0]] if len(bank.labels) else views.chosen[:0, 0])
    features, labels = torch.cat(features), torch.cat(labels)
    row = {text: place for place, text in enumerate(texts)}
    pairs = torch.tensor(
        [(place, row[caption]) for place, of_photo in enumerate(bank.captions) for caption in of_photo], device=device
    ).reshape(-1, 2)
    probe = TextProbe(features.shape[1], vectors.shape[1]).to(device)
    probe.mean.copy_(whole.mean(0))
    probe.std.copy_(whole.std(0) + 1e-3)
    features, whole = (features - probe.mean) / probe.std, (whole - probe.mean) / probe.std
    prompts = vectors[: len(bank.texts)]
    optimizer = torch.optim.AdamW(probe.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    generator = torch.Generator(device).manual_seed(seed)
    dropped = nn.functional.dropout
    for step in range(options.steps if len(texts) else 0):
        loss = 0 * probe.log_scale
        if len(features):
            rows = torch.randint(len(features), (256,), device=device, generator=generator)
            scores = probe.log_scale.exp() * probe(dropped(features[rows], options.dropout)) @ prompts.T
            loss = loss + nn.functional.cross_entropy(scores, labels[rows])
        if len(pairs) and options.caption_weight:
            rows = torch.randperm(len(pairs), device=device, generator=generator)[:128]
            photos, captions = pairs[rows].unbind(1)
            scores = probe.log_scale.exp() * probe(dropped(whole[photos], options.dropout)) @ vectors[captions].T
            targets = (photos[:, None] == photos[None]).float()
            targets = targets / targets.sum(1, keepdim=True)
            both = (targets * scores.log_softmax(1)).sum(1).mean() + (targets * scores.T.log_softmax(1)).sum(1).mean()
            loss = loss - options.caption_weight * both / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = options.learning_rate * (1 - step / options.steps)
    return probe.requires_grad_(False).eval()


def distillation_losses(
    tower: nn.Module,
    head: nn.Module,
    probe: TextProbe,
    batch: dict[str, torch.Tensor],
    vectors: torch.Tensor,
    labels: torch.Tensor,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """
    The losses of a batch of views, each a mean.

    Half of the views enter with the mask of a region of theirs, the others with a full one.

    Args:
        tower: `PixCLIPVisionModelWithProjection`.
        head: From the tower's map to the teacher's features.
        probe: From the teacher's features to text vectors, frozen.
        batch: `pixels` (B, 3, H, W), `features` (B, N, C) standardised, `regions` (B, H, W), `chosen` (B, K).
        vectors: Unit vectors (T, D) of texts.
        labels: Row of `vectors` of each region.
        generator: Of what is masked.

    Returns:
        `features`: 1 - cosine between the teacher's features and the head's, patch by patch; `dense`: the same after the
        map to texts; `pooled`: pooled over regions; `token`: of the class token; `texts`: cross-entropy of regions over
        the regions' texts; `ranking`: cross-entropy of the class token's and regions' similarities to all texts, the
        teacher's as targets.
    """
    config = tower.config
    features, regions, chosen = batch["features"], batch["regions"], batch["chosen"]
    count, device = len(features), features.device
    order = torch.rand(chosen.shape, device=device, generator=generator).masked_fill(chosen < 0, 2).argsort(1)
    # The view's own region stays first for half of them.
    keep = torch.rand(count, device=device, generator=generator) < 0.5
    chosen = torch.where(keep[:, None], chosen, chosen.gather(1, order))
    masked = (torch.rand(count, device=device, generator=generator) < 0.5) & (chosen[:, 0] >= 0)
    masks = torch.where(masked[:, None, None], (regions == chosen[:, :1, None]).float(), 1.0)[:, None]
    outputs = tower.vision_model(
        batch["pixels"], (masks.to(batch["pixels"].dtype) - config.mask_mean) / config.mask_std, return_dense=True
    )
    dense = outputs.dense_state
    weights = region_weights(regions, chosen, *config.grid_size).to(dense.dtype)
    valid = chosen >= 0
    with torch.no_grad():
        targets = probe(features)
        pooled_features = weights.to(features.dtype) @ features
        pooled_targets = probe(pooled_features)
        token_targets = torch.where(masked[:, None], pooled_targets[:, 0], probe(features.mean(1)))
    normalize = nn.functional.normalize
    embeds = normalize(tower.visual_projection(dense).float(), dim=-1)
    token = normalize(tower.visual_projection(outputs.pooler_output).float(), dim=-1)
    pooled = normalize(tower.visual_projection(weights @ dense).float(), dim=-1)[valid]
    pooled_targets, known = pooled_targets[valid], chosen[valid]
    losses = {
        "features": 1 - nn.functional.cosine_similarity(head(dense).float(), features.float(), dim=-1).mean(),
        "dense": 1 - (embeds * targets.float()).sum(-1).mean(),
        "token": 1 - (token * token_targets.float()).sum(-1).mean(),
    }
    scale = probe.log_scale.exp()
    zero = 0 * token.sum()
    losses |= {"pooled": zero, "texts": zero}
    seen, told = torch.cat([token, pooled]), torch.cat([token_targets, pooled_targets])
    if len(pooled):
        losses["pooled"] = 1 - (pooled * pooled_targets.float()).sum(-1).mean()
        prompts = vectors[: int(labels.max()) + 1]
        named = torch.cat([token[masked], pooled])
        truth = torch.cat([labels[chosen[masked, 0]], labels[known]])
        losses["texts"] = nn.functional.cross_entropy(scale * named @ prompts.T, truth)
    if not len(vectors):
        return losses | {"ranking": zero}
    soft = (scale * told.float() @ vectors.T).float().softmax(-1)
    losses["ranking"] = -(soft * (scale * seen @ vectors.T).float().log_softmax(-1)).sum(-1).mean()
    return losses


@torch.no_grad()
def measure_regions(training: Any, bank: PhotoBank, texts: list[str], vectors: torch.Tensor) -> dict[str, float]:
    """
    Top-1 accuracy of photos' regions over all texts of regions, the teacher's beside the tower's.

    Args:
        training: A `Training` of `distill_vision_tower.py`.
        bank: Photos that were not trained on.
        texts: Among them those of the photos' and of the training photos' regions.
        vectors: Unit vectors (T, D) of `texts`.
    """
    names = list(dict.fromkeys([*training.bank.texts, *bank.texts]))
    row = {text: place for place, text in enumerate(texts)}
    prompts = vectors[[row[name] for name in names]]
    truth = torch.tensor([names.index(bank.texts[label]) for label in bank.labels.tolist()], device=prompts.device)
    sampler = ViewSampler(bank, training.options.teacher_size, training.sampler.options, training.generator)
    tower = training.tower.eval()
    config, size = tower.config, tower_size(tower.config)
    pooled, crops, whole = photo_features(training.teacher, sampler)
    mean, std, probe = training.probe.mean, training.probe.std, training.probe
    found = {
        "teacher, photo": probe((whole[bank.photos] - mean) / std),
        "teacher, mask-pooled": probe((pooled - mean) / std),
        "teacher, box crop": probe((crops - mean) / std),
    }
    found["teacher, both"] = found["teacher, mask-pooled"] + found["teacher, box crop"]
    project = lambda states: nn.functional.normalize(tower.visual_projection(states), dim=-1)  # noqa: E731
    normalised = lambda masks: (masks - config.mask_mean) / config.mask_std  # noqa: E731
    rows: dict[str, list[torch.Tensor]] = {}
    for part in torch.arange(len(bank.labels), device=prompts.device).split(32):
        views = {"": sampler.whole_photos(bank.photos[part]), "crop, ": sampler.regions_in_context(part, 1.5)}
        for name, (images, regions) in views.items():
            regions = nn.functional.interpolate(regions[:, None].float(), size, mode="nearest")[:, 0].long()
            pixels, chosen = student_pixels(images, size), part[:, None]
            weights = region_weights(regions, chosen, *config.grid_size)
            masks = (regions == part[:, None, None]).float()[:, None]
            plain = tower.vision_model(pixels, normalised(torch.ones_like(masks)), return_dense=True)
            seen = tower.vision_model(pixels, normalised(masks), return_dense=True)
            entries = {
                "no mask": plain.pooler_output,
                "mask": seen.pooler_output,
                "mask-pooled": (weights @ plain.dense_state)[:, 0],
                "conditioned mask-pooled": (weights @ seen.dense_state)[:, 0],
            }
            for key, states in entries.items():
                rows.setdefault(name + key, []).append(project(states))
    found |= {name: torch.cat(parts) for name, parts in rows.items()}
    found["mask + mask-pooled"] = found["mask"] + found["mask-pooled"]
    found["mask + crop, mask"] = found["mask"] + found["crop, mask"]
    found["mask + mask-pooled + crop, mask + crop, mask-pooled"] = (
        found["mask"] + found["mask-pooled"] + found["crop, mask"] + found["crop, mask-pooled"]
    )
    return {
        name: round(((embeds @ prompts.T).argmax(1) == truth).float().mean().item(), 4)
        for name, embeds in found.items()
    }


__all__ = ["ProbeOptions", "TextProbe", "distillation_losses", "measure_regions", "train_probe"]
