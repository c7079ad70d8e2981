# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Contrastive and distillation losses between regions and texts."""

import torch
from torch import nn


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    text_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Symmetric InfoNCE between paired embeddings (CLIP, Radford et al. 2021).

    Pairs that share a text are positives of each other: with the same text twice, telling the two apart is impossible
    and calling one a negative is wrong. Without such pairs this is CLIP's loss.

    Args:
        image_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of images or regions.
        text_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of their texts.
        logit_scale (`torch.Tensor`, scalar): Inverse temperature.
        text_index (`torch.Tensor` of shape `(R,)`, *optional*): Equal numbers mark equal texts.

    Returns:
        `torch.Tensor`: Scalar, mean over both directions.

    Example:
        >>> import torch
        >>> from modeling_pixclip import contrastive_loss
        >>> embeds = torch.eye(4)
        >>> float(contrastive_loss(embeds, embeds, torch.tensor(100.0)))
        0.0
    """
    logits = logit_scale * image_embeds @ text_embeds.T
    if text_index is None:
        targets = torch.arange(len(logits), device=logits.device)
    else:
        same = (text_index[:, None] == text_index[None, :]).to(logits.dtype)
        targets = same / same.sum(-1, keepdim=True)
    return (nn.functional.cross_entropy(logits, targets) + nn.functional.cross_entropy(logits.T, targets)) / 2


def cosine_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    Mean of 1 - cosine similarity between paired rows (CLIPSelf, Wu et al. 2024).

    Args:
        student (`torch.Tensor` of shape `(R, D)`): Any norm.
        teacher (`torch.Tensor` of shape `(R, D)`): Any norm.

    Returns:
        `torch.Tensor`: Scalar in 0..2.

    Example:
        >>> import torch
        >>> from modeling_pixclip import cosine_distance
        >>> float(cosine_distance(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])))
        0.5
    """
    return 1 - nn.functional.cosine_similarity(student, teacher, dim=-1).mean()


__all__ = ["contrastive_loss", "cosine_distance"]
