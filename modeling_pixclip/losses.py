# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Contrastive and distillation losses between regions and texts."""

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from .distributed_features import global_mean, global_sum, process_rank, row_counts, world_size
from .tiled_contrastive_loss import tiled_contrastive_sum


LOSS_TYPES = ("infonce", "sigmoid")
GATHERS = ("all_gather", "ring", "local")

# Pairs up to which logits are held whole. Measured on a CPU at width 512: there whole logits are 1.2 times as fast as
# tiles, at twice as many pairs 0.9 times (tests/benchmarks/bench_contrastive_loss.py).
PLAIN_ROWS = 2048


def similarity_logits(rows: torch.Tensor, columns: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """
    Scaled products of two sets of embeddings, in float32 at least.

    Also under autocast: times a scale of 100, the rounding of bfloat16 exceeds the gaps between near negatives.

    Args:
        rows (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings.
        columns (`torch.Tensor` of shape `(T, D)`): L2-normalised embeddings.
        logit_scale (`torch.Tensor`, scalar): Inverse temperature.

    Returns:
        `torch.Tensor` of shape `(R, T)`.

    Example:
        >>> import torch
        >>> from modeling_pixclip.losses import similarity_logits
        >>> similarity_logits(torch.eye(2).bfloat16(), torch.eye(2).bfloat16(), torch.tensor(10.0))
        tensor([[10.,  0.],
                [ 0., 10.]])
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    with maybe_autocast(rows.device.type, enabled=False):
        return logit_scale.to(dtype) * rows.to(dtype) @ columns.to(dtype).T


class InverseTemperature(torch.autograd.Function):
    """
    `exp` of a learned logarithm, at most `exp(log_bound)`.

    A plain clamp has no gradient above the bound, so a parameter that stepped over it would stay there for ever. Here
    the gradient that lowers the parameter passes, the one that would raise it further does not. In several processes it
    is the mean of their gradients that decides.
    """

    @staticmethod
    def forward(ctx, log_scale: torch.Tensor, log_bound: float) -> torch.Tensor:
        scale = log_scale.float().clamp(max=log_bound).exp()
        ctx.save_for_backward(log_scale, scale)
        ctx.log_bound = log_bound
        # The parameter is the same in all processes, so all or none of them exchange gradients.
        ctx.exchanges = world_size() > 1 and bool((log_scale > log_bound).any())
        return scale

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        log_scale, scale = ctx.saved_tensors
        if ctx.exchanges:
            gradient = global_sum(gradient) / world_size()
        passes = (log_scale <= ctx.log_bound) | (gradient > 0)
        return (gradient * scale * passes).to(log_scale.dtype), None


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    text_index: torch.Tensor | None = None,
    *,
    loss_type: str = "infonce",
    logit_bias: torch.Tensor | None = None,
    gather: str = "all_gather",
) -> torch.Tensor:
    """
    Contrast of paired embeddings in both directions: InfoNCE (CLIP, Radford et al. 2021) or the pairwise sigmoid loss
    (SigLIP, Zhai et al. 2023).

    Pairs that share a text are positives of each other: with the same text twice, telling the two apart is impossible
    and calling one a negative is wrong. In InfoNCE the target of a row is spread evenly over its positives. Without such
    pairs, or without `text_index`, these are the papers' losses.

    In several processes it is the loss of the joined batch, the same value in each, and the mean of its gradients over
    processes is the gradient of the joined batch. Processes may have any number of pairs, also none; all must call it.
    Above 2,048 pairs, and in several processes, logits are made tile by tile and never held whole.

    Args:
        image_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of images or regions.
        text_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of their texts.
        logit_scale (`torch.Tensor`, scalar): Inverse temperature.
        text_index (`torch.Tensor` of shape `(R,)`, *optional*): Equal numbers mark equal texts, in all processes.
        loss_type (`str`, *optional*, defaults to `"infonce"`): Or `"sigmoid"`, the sum over all pairs of an image and a
            text, divided by the number of images.
        logit_bias (`torch.Tensor`, scalar, *optional*): Added to the logits of the sigmoid loss, which needs it. InfoNCE
            has no use for one and ignores it.
        gather (`str`, *optional*, defaults to `"all_gather"`): Which pairs of other processes are negatives, and how they
            come. `"all_gather"`: all, each process holds all texts. `"ring"`: all, texts go round, a process never holds
            more than two blocks of them. `"local"`: none.

    Returns:
        `torch.Tensor`: Scalar, mean over all rows and over both directions; 0 where there are none.

    Raises:
        ValueError: If the numbers of rows differ, an option is unknown, or the sigmoid loss has no bias.

    Example:
        >>> import torch
        >>> from modeling_pixclip import contrastive_loss
        >>> embeds = torch.eye(4)
        >>> float(contrastive_loss(embeds, embeds, torch.tensor(100.0)))
        0.0
        >>> bias = torch.tensor(-5.0)
        >>> round(float(contrastive_loss(embeds, embeds, torch.tensor(10.0), loss_type="sigmoid", logit_bias=bias)), 4)
        0.0269
    """
    rows = len(image_embeds)
    if len(text_embeds) != rows:
        raise ValueError(f"{len(text_embeds)} text_embeds for {rows} image_embeds; accepted: one a row, paired.")
    if text_index is not None and len(text_index) != rows:
        raise ValueError(f"text_index has {len(text_index)} entries for {rows} pairs; accepted: one a pair.")
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type is {loss_type!r}; accepted: {', '.join(map(repr, LOSS_TYPES))}.")
    if gather not in GATHERS:
        raise ValueError(f"gather is {gather!r}; accepted: {', '.join(map(repr, GATHERS))}.")
    if loss_type == "sigmoid" and logit_bias is None:
        raise ValueError("The sigmoid loss needs logit_bias; SigLIP starts with torch.tensor(-10.0).")
    counts = row_counts(rows, image_embeds.device)
    alone = gather == "local" or world_size() == 1
    if alone and rows <= PLAIN_ROWS:
        part = _plain_sum(image_embeds, text_embeds, logit_scale, text_index, loss_type, logit_bias)
    else:
        if text_index is None:
            start = sum(counts[: process_rank()])
            text_index = torch.arange(start, start + rows, device=image_embeds.device)
        part = tiled_contrastive_sum(
            image_embeds,
            text_embeds,
            logit_scale,
            text_index,
            [rows] if alone else counts,
            loss_type=loss_type,
            logit_bias=logit_bias,
            gather=gather,
        )
    return global_sum(part) / max(1, sum(counts))


def _plain_sum(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    text_index: torch.Tensor | None,
    loss_type: str,
    logit_bias: torch.Tensor | None,
) -> torch.Tensor:
    """Sum over rows of the loss of one process, with all logits at once."""
    logits = similarity_logits(image_embeds, text_embeds, logit_scale)
    if loss_type == "sigmoid":
        logits = logits + logit_bias.to(logits.dtype)
    if not len(logits):
        return logits.sum()
    if text_index is None:
        targets = torch.arange(len(logits), device=logits.device)
        same = torch.eye(len(logits), dtype=torch.bool, device=logits.device) if loss_type == "sigmoid" else None
    else:
        same = text_index[:, None] == text_index[None, :]
        targets = same.to(logits.dtype) / same.sum(-1, keepdim=True)
    if loss_type == "sigmoid":
        return -nn.functional.logsigmoid(torch.where(same, logits, -logits)).sum()
    directions = (nn.functional.cross_entropy(one, targets, reduction="sum") for one in (logits, logits.T))
    return sum(directions) / 2


def caption_contrastive_loss(
    embeds: torch.Tensor,
    image_index: torch.Tensor,
    logit_scale: torch.Tensor,
    text_index: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    InfoNCE among captions: other captions of the same image are positives (supervised SimCSE, Gao et al. 2021).

    Row i is a softmax over its positives and negatives; its loss is the mean of -log p over its positives. Neither
    positive nor negative are the caption itself, its duplicates, duplicates of its positives, and captions of an image
    that one of its duplicates belongs to: a caption is never pushed away from a text that stands for the same image.

    Args:
        embeds (`torch.Tensor` of shape `(T, D)`): L2-normalised embeddings of captions.
        image_index (`torch.Tensor` of shape `(T,)`): Equal numbers mark captions of one image.
        logit_scale (`torch.Tensor`, scalar): Inverse temperature.
        text_index (`torch.Tensor` of shape `(T,)`, *optional*): Equal numbers mark equal texts; all differ by default.

    Returns:
        `torch.Tensor`: Scalar, mean over captions.

    Raises:
        ValueError: If a caption has no positive.

    Example:
        >>> import torch
        >>> from modeling_pixclip import caption_contrastive_loss
        >>> embeds = torch.eye(2).repeat_interleave(2, dim=0)
        >>> round(float(caption_contrastive_loss(embeds, torch.tensor([0, 0, 1, 1]), torch.tensor(1.0))), 4)
        0.5514
    """
    text_index = torch.arange(len(embeds), device=embeds.device) if text_index is None else text_index
    same_image = image_index[:, None] == image_index[None, :]
    same_text = text_index[:, None] == text_index[None, :]
    positive = same_image & ~same_text
    counts = positive.sum(-1)
    if not bool((counts > 0).all()):
        raise ValueError(
            f"captions {(counts == 0).nonzero().flatten().tolist()} have no positive; each needs another caption of its "
            "image, with another text, in the batch."
        )
    related = same_text.float() @ same_image.float() @ same_text.float() > 0
    logits = similarity_logits(embeds, embeds, logit_scale).masked_fill(related & ~positive, -torch.inf)
    return -(logits.log_softmax(-1).masked_fill(~positive, 0).sum(-1) / counts).mean()


def cosine_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    Mean of 1 - cosine similarity between paired rows (CLIPSelf, Wu et al. 2024), over all processes.

    Args:
        student (`torch.Tensor` of shape `(R, D)`): Any norm.
        teacher (`torch.Tensor` of shape `(R, D)`): Any norm.

    Returns:
        `torch.Tensor`: Scalar in 0..2; 0 where there are no rows.

    Raises:
        ValueError: If the numbers of rows differ.

    Example:
        >>> import torch
        >>> from modeling_pixclip import cosine_distance
        >>> float(cosine_distance(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])))
        0.5
    """
    if len(student) != len(teacher):
        raise ValueError(f"{len(student)} student rows for {len(teacher)} teacher rows; accepted: one each.")
    dtype = torch.promote_types(student.dtype, torch.float32)
    # Close to 1, a cosine in bfloat16 says nothing about the distance.
    with maybe_autocast(student.device.type, enabled=False):
        return global_mean(1 - nn.functional.cosine_similarity(student.to(dtype), teacher.to(dtype), dim=-1))


def check_rows(values: torch.Tensor, name: str, rows: int):
    """Raises a `ValueError` unless there is one value an image row."""
    if len(values) != rows:
        raise ValueError(f"{len(values)} {name} for {rows} image rows; accepted: one a row.")


def pair_index(
    index: torch.Tensor | None, rows: int, texts: int, device: torch.device, name: str = "region_text_index"
) -> torch.Tensor:
    """Row of the text batch that belongs to each image row."""
    if not rows:
        raise ValueError("There are no image rows (regions) to compute a loss of; leave such a batch out of training.")
    if index is None:
        if rows != texts:
            raise ValueError(
                f"{rows} image rows and {texts} texts cannot be paired one to one; pass region_text_index (R,), the "
                "text of each row."
            )
        return torch.arange(rows, device=device)
    if len(index) != rows:
        raise ValueError(f"{name} has {len(index)} entries for {rows} image rows; accepted: one a row.")
    return index


__all__ = [
    "InverseTemperature",
    "caption_contrastive_loss",
    "check_rows",
    "contrastive_loss",
    "cosine_distance",
    "pair_index",
    "similarity_logits",
]
