# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pooling of regions on a patch grid, in pure torch: RoIAlign and mask pooling."""

import torch
from torch import nn


def _axis_weights(start: torch.Tensor, end: torch.Tensor, bins: int, length: int, sampling_ratio: int) -> torch.Tensor:
    """Weights (R, bins, length) that average RoIAlign's bilinear samples along one axis."""
    bin_size = (end - start) / bins
    counts = torch.full_like(start, sampling_ratio) if sampling_ratio > 0 else bin_size.ceil().clamp(min=1)
    steps = torch.arange(int(counts.max()), device=start.device, dtype=start.dtype)
    bin_starts = start[:, None] + bin_size[:, None] * torch.arange(bins, device=start.device, dtype=start.dtype)
    offsets = (steps + 0.5) / counts[:, None] * bin_size[:, None]
    samples = bin_starts[:, :, None] + offsets[:, None, :]
    used = (steps < counts[:, None])[:, None, :] & (samples >= -1) & (samples <= length)
    # Clamped samples weigh |sample - cell| linearly on their two neighbours: bilinear interpolation, one axis of it.
    distance = (samples.clamp(0, length - 1)[..., None] - torch.arange(length, device=start.device)).abs()
    weights = (1 - distance).clamp(min=0) * used[..., None]
    return weights.sum(2) / counts[:, None, None]


def roi_align(
    features: torch.Tensor,
    boxes: torch.Tensor,
    box_image_index: torch.Tensor,
    output_size: int | tuple[int, int] = 1,
    sampling_ratio: int = -1,
    aligned: bool = True,
) -> torch.Tensor:
    """
    RoIAlign (He et al. 2017) without torchvision, differentiable in `features`.

    The average of bilinear samples on a regular grid is separable, so each box is two small weight matrices and the
    whole is two batched products. Equals `torchvision.ops.roi_align` with `spatial_scale=1`.

    Args:
        features (`torch.Tensor` of shape `(B, C, H, W)`): Feature maps.
        boxes (`torch.Tensor` of shape `(R, 4)`): xyxy in units of grid cells, not normalised.
        box_image_index (`torch.Tensor` of shape `(R,)`): The map of each box.
        output_size (`int` or pair, *optional*, defaults to 1): Bins (rows, columns) of a box.
        sampling_ratio (`int`, *optional*, defaults to -1): Samples of a bin along each axis; -1 for one a cell.
        aligned (`bool`, *optional*, defaults to `True`): Shift boxes by half a cell so that cell centres are at .5.

    Returns:
        `torch.Tensor` of shape `(R, C, rows, columns)`, in the dtype of `features`.

    Example:
        >>> import torch
        >>> from modeling_pixclip import roi_align
        >>> features = torch.rand(1, 8, 14, 14)
        >>> pooled = roi_align(features, torch.tensor([[0.0, 0.0, 14.0, 14.0]]), torch.tensor([0]))
        >>> torch.allclose(pooled[0, :, 0, 0], features[0].mean((1, 2)), atol=1e-6)
        True
    """
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    height, width = features.shape[-2:]
    x0, y0, x1, y1 = (boxes.float() - 0.5 * aligned).unbind(-1)
    if not aligned:
        x1, y1 = torch.maximum(x1, x0 + 1), torch.maximum(y1, y0 + 1)
    if not len(boxes):
        # With a graph: in several processes all take part in the backward pass, also one without boxes.
        return features[box_image_index].sum((2, 3))[:, :, None, None].expand(-1, -1, rows, columns)
    weights_y = _axis_weights(y0, y1, rows, height, sampling_ratio).to(features.dtype)
    weights_x = _axis_weights(x0, x1, columns, width, sampling_ratio).to(features.dtype)
    return torch.einsum("rph,rchw,rqw->rcpq", weights_y, features[box_image_index], weights_x)


def soft_masks(mask_values: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """
    Masks in 0..1 from normalised ones.

    Args:
        mask_values (`torch.Tensor`): Normalised masks of any shape.
        mean (`float`), std (`float`): Their normalisation.

    Returns:
        `torch.Tensor`: float32, of the same shape.

    Example:
        >>> import torch
        >>> from modeling_pixclip.region_pooling import soft_masks
        >>> soft_masks((torch.tensor([0.0, 1.0]) - 0.5) / 0.26, 0.5, 0.26)
        tensor([0., 1.])
    """
    masks = (mask_values.float() * std + mean).clamp(0, 1)
    # Less than half a step of an 8-bit mask is what half precision made of a 0.
    return masks.masked_fill(masks < 1 / 512, 0)


def mask_pool(features: torch.Tensor, masks: torch.Tensor, mask_image_index: torch.Tensor) -> torch.Tensor:
    """
    Mean of a feature map under soft masks of any resolution.

    A mask is first averaged over each patch, so the weight of a patch is the share of it that the region covers, and a
    region smaller than a patch still counts.

    Args:
        features (`torch.Tensor` of shape `(B, C, H, W)`): Feature maps.
        masks (`torch.Tensor` of shape `(R, 1, h, w)`): Values in 0..1, `h` and `w` multiples of `H` and `W`.
        mask_image_index (`torch.Tensor` of shape `(R,)`): The map of each mask.

    Returns:
        `torch.Tensor` of shape `(R, C)`, in the dtype of `features`.

    Raises:
        ValueError: If a mask covers nothing.

    Example:
        >>> import torch
        >>> from modeling_pixclip import mask_pool
        >>> features = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> mask = torch.zeros(1, 1, 8, 8)
        >>> mask[..., :4] = 1.0
        >>> mask_pool(features, mask, torch.tensor([0]))
        tensor([[1.]])
    """
    weights = nn.functional.adaptive_avg_pool2d(masks.float(), features.shape[-2:]).flatten(1)
    totals = weights.sum(-1, keepdim=True)
    if not torch.compiler.is_compiling() and not bool((totals > 0).all()):
        empty = (totals[:, 0] <= 0).nonzero().flatten().tolist()
        raise ValueError(f"masks {empty} cover nothing; accepted: masks with a value above 0 somewhere.")
    weights = (weights / totals).to(features.dtype)
    return torch.einsum("rn,rcn->rc", weights, features.flatten(2)[mask_image_index])


__all__ = ["mask_pool", "roi_align", "soft_masks"]
