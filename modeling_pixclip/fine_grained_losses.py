# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Losses of FG-CLIP and FG-CLIP 2 on near negatives: other wordings of a region's text, and texts close to each other.

In several processes each is that of the joined batch, see `distributed_features.py`.
"""

import torch
from transformers.utils.generic import maybe_autocast

from .distributed_features import gather_rows, global_count, global_sum, process_rank, row_counts


# Rows of texts that are compared with all others at a time.
_NEIGHBOUR_ROWS = 1024


def hard_negative_loss(
    region_embeds: torch.Tensor,
    positive_embeds: torch.Tensor,
    negative_embeds: torch.Tensor,
    negative_region_index: torch.Tensor,
    logit_scale: torch.Tensor,
) -> torch.Tensor:
    """
    Cross-entropy of a region over its text and its own hard negatives (FG-CLIP, Xie et al. 2025, hard fine-grained
    negative loss; there with ten negatives each).

    Args:
        region_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of regions.
        positive_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of their texts.
        negative_embeds (`torch.Tensor` of shape `(M, D)`): L2-normalised embeddings of negatives, any number a region.
        negative_region_index (`torch.Tensor` of shape `(M,)`): Row of the region that a negative belongs to.
        logit_scale (`torch.Tensor`, scalar): Inverse temperature.

    Returns:
        `torch.Tensor`: Scalar, mean over the regions that have a negative; 0 where none has.

    Raises:
        ValueError: If the numbers of rows do not agree, or the index names a row that is not there.

    Example:
        >>> import torch
        >>> from modeling_pixclip import hard_negative_loss
        >>> region, positive = torch.eye(2), torch.eye(2)
        >>> negatives = torch.tensor([[0.0, 1.0], [0.6, 0.8]])  # both of the first region
        >>> loss = hard_negative_loss(region, positive, negatives, torch.tensor([0, 0]), torch.tensor(10.0))
        >>> round(float(loss), 4)
        0.0182
    """
    positive, negative, owners = _similarities(region_embeds, positive_embeds, negative_embeds, negative_region_index)
    # Relative to the positive, which has 0: log(1 + sum of exp).
    gaps = logit_scale.to(positive.dtype) * (negative - positive[owners])
    highest = torch.zeros_like(positive).scatter_reduce(0, owners, gaps.detach(), "amax")
    others = torch.zeros_like(positive).index_add(0, owners, (gaps - highest[owners]).exp())
    losses = highest + ((-highest).exp() + others).log()
    count = global_count([len(owners.unique())], positive.device).clamp(min=1)
    return global_sum(losses.sum()) / count[0]


def ranking_margin_loss(
    region_embeds: torch.Tensor,
    positive_embeds: torch.Tensor,
    negative_embeds: torch.Tensor,
    negative_region_index: torch.Tensor,
    margin: torch.Tensor | float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Hinge between a region's text and its hard negatives, with a margin that grows with the model (FG-CLIP 2, Xie et al.
    2025, cross-modal rank loss).

    `max(0, S(region, negative) - S(region, text) + margin)`, where S is the cosine similarity and the margin is the mean
    of S(region, text) - S(region, negative) in the step before, over all processes. Texts already further ahead than
    that are left alone. As in the official code the margin is never negative: at the start, where negatives win, it
    would excuse them.

    Args:
        region_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of regions.
        positive_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of their texts.
        negative_embeds (`torch.Tensor` of shape `(M, D)`): L2-normalised embeddings of negatives, any number a region.
        negative_region_index (`torch.Tensor` of shape `(M,)`): Row of the region that a negative belongs to.
        margin (`torch.Tensor`, scalar, or `float`): Of the step before, in units of cosine similarity; 0 at the start.

    Returns:
        The loss, a scalar, mean over all negatives, and the margin for the next step, detached; where there is no
        negative in any process, 0 and the margin as it was.

    Raises:
        ValueError: If the numbers of rows do not agree, or the index names a row that is not there.

    Example:
        >>> import torch
        >>> from modeling_pixclip import ranking_margin_loss
        >>> negatives = torch.tensor([[0.0, 1.0], [0.6, 0.8]])
        >>> loss, margin = ranking_margin_loss(torch.eye(2), torch.eye(2), negatives, torch.tensor([0, 0]), 0.5)
        >>> round(float(loss), 4), round(float(margin), 4)
        (0.05, 0.7)
    """
    positive, negative, owners = _similarities(region_embeds, positive_embeds, negative_embeds, negative_region_index)
    gaps = positive[owners] - negative
    margin = torch.as_tensor(margin, dtype=gaps.dtype, device=gaps.device).detach()
    count = global_count([len(gaps)], gaps.device)[0]
    totals = global_sum(torch.stack([(margin - gaps).clamp(min=0).sum(), gaps.detach().sum()])) / count.clamp(min=1)
    mean_gap = totals[1].detach().clamp(min=0).view_as(margin)
    return totals[0], torch.where(count > 0, mean_gap, margin)


def text_intra_loss(
    embeds: torch.Tensor,
    text_index: torch.Tensor,
    num_neighbours: int = 10,
    max_similarity: float = 0.95,
) -> torch.Tensor:
    """
    Pushes texts away from those nearest to them (FG-CLIP 2, Xie et al. 2025, textual intra-modal contrastive loss).

    For each text, texts more similar than `max_similarity` are taken for the same thing and left out; of the others the
    nearest count: `log(sum(exp(similarity)))`, without a temperature. The official code keeps what it leaves out as a
    similarity of 0; here it is gone, as the paper has it. Each distinct text counts once, however often it occurs and
    in whichever process.

    Args:
        embeds (`torch.Tensor` of shape `(T, D)`): L2-normalised embeddings of texts.
        text_index (`torch.Tensor` of shape `(T,)`): Equal numbers mark equal texts, in all processes.
        num_neighbours (`int`, *optional*, defaults to 10): Nearest texts that count, as in the paper; fewer where there
            are fewer.
        max_similarity (`float`, *optional*, defaults to 0.95): Cosine similarity above which a pair is left out, as in
            the paper.

    Returns:
        `torch.Tensor`: Scalar, mean over distinct texts that have a neighbour; 0 where none has.

    Raises:
        ValueError: If there is not one index a text, or `num_neighbours` is below 1.

    Example:
        >>> import torch
        >>> from modeling_pixclip import text_intra_loss
        >>> embeds = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
        >>> round(float(text_intra_loss(embeds, torch.tensor([5, 5, 6, 7]), num_neighbours=1)), 4)
        0.7333
    """
    if len(text_index) != len(embeds):
        raise ValueError(f"text_index has {len(text_index)} entries for {len(embeds)} texts; accepted: one a text.")
    if num_neighbours < 1:
        raise ValueError(f"num_neighbours is {num_neighbours}; accepted: 1 or more.")
    embeds = embeds.to(torch.promote_types(embeds.dtype, torch.float32))
    counts = row_counts(len(embeds), embeds.device)
    texts = gather_rows(embeds, counts)
    first = _first_of_each(gather_rows(text_index, counts))
    start = sum(counts[: process_rank()])
    own = first[(first >= start) & (first < start + len(embeds))] - start
    columns = texts[first]
    rows = embeds[own]
    # Also without any neighbour the sum has a graph: the gather's backward is a collective.
    total, num_rows = (rows.sum() + columns.sum()) * 0, 0
    for part, place in zip(rows.split(_NEIGHBOUR_ROWS), (own + start).split(_NEIGHBOUR_ROWS)):
        with torch.no_grad(), maybe_autocast(embeds.device.type, enabled=False):
            similarity = part @ columns.T
            similarity.masked_fill_(similarity > max_similarity, -torch.inf)
            similarity.masked_fill_(first == place[:, None], -torch.inf)
            highest, near = similarity.topk(min(num_neighbours, len(columns)))
            kept = highest > -torch.inf
            some = kept.any(-1).nonzero().flatten()
        # Only those of the nearest are kept for the backward pass.
        similarity = (part[some, None] * columns[near[some]]).sum(-1).masked_fill(~kept[some], -torch.inf)
        total, num_rows = total + similarity.logsumexp(-1).sum(), num_rows + len(some)
    count = global_count([num_rows], embeds.device).clamp(min=1)
    return global_sum(total) / count[0]


def _first_of_each(index: torch.Tensor) -> torch.Tensor:
    """Rows where a number occurs for the first time, ascending."""
    order = index.sort(stable=True)
    new = torch.ones_like(order.values, dtype=torch.bool)
    new[1:] = order.values[1:] != order.values[:-1]
    return order.indices[new].sort().values


def _similarities(
    region_embeds: torch.Tensor, positive_embeds: torch.Tensor, negative_embeds: torch.Tensor, owners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cosine similarities of regions with their texts `(R,)` and negatives `(M,)`, in float32 at least, and owners."""
    rows = len(region_embeds)
    if len(positive_embeds) != rows:
        raise ValueError(f"{len(positive_embeds)} positive_embeds for {rows} regions; accepted: one a region.")
    if len(owners) != len(negative_embeds):
        raise ValueError(
            f"negative_region_index has {len(owners)} entries for {len(negative_embeds)} negatives; accepted: one each."
        )
    if len(owners) and not 0 <= int(owners.min()) <= int(owners.max()) < rows:
        wrong = owners[(owners < 0) | (owners >= rows)].unique().tolist()
        raise ValueError(
            f"negative_region_index names rows {wrong}, and there are {rows} regions; accepted: 0..{rows - 1}. Leave out "
            "the negatives of regions that are left out."
        )
    dtype = torch.promote_types(region_embeds.dtype, torch.float32)
    regions, positives, negatives = (embeds.to(dtype) for embeds in (region_embeds, positive_embeds, negative_embeds))
    owners = owners.long()
    return (regions * positives).sum(-1), (regions[owners] * negatives).sum(-1), owners


__all__ = ["hard_negative_loss", "ranking_margin_loss", "text_intra_loss"]
