# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Contrastive losses whose logits are never held whole, in one process or over many.

A tile of logits is made, read, and overwritten by the next. One product a tile serves both directions: its rows go into
the log-sum-exp of images, its columns into that of texts; the backward pass makes the tile again. Positives never enter a
tile: both losses are linear in the logits of positives, so these come from the mean (InfoNCE) or the sum (sigmoid) of the
embeddings that share a text, in time linear in the number of rows.

Over processes images stay where they are and texts come to them: all of them at once (`"all_gather"`), or block by block
round a ring (`"ring"`), each with its running log-sum-exp, and in the backward pass with its gradient. In a ring a process
holds its own rows, the block it works on, the one that comes, and one tile.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable
from transformers.utils.generic import maybe_autocast

from .distributed_features import join_rows, process_rank, sum_own_rows, world_size


# Rows and columns of a tile. On a CPU 4 MB of float32, which its cache holds. A GPU wants fewer and larger kernels; its
# size was not measured.
CPU_TILE, GPU_TILE = 1024, 4096


def _tiles(rows: torch.Tensor, columns: torch.Tensor, buffers: torch.Tensor, size: int) -> Iterator[tuple]:
    """Slices of both, their logits, and memory of the same shape, tile by tile in the same two buffers."""
    for top in range(0, len(rows), size):
        for left in range(0, len(columns), size):
            one, other = slice(top, min(top + size, len(rows))), slice(left, min(left + size, len(columns)))
            shape = one.stop - top, other.stop - left
            logits, spare = (buffer[: shape[0] * shape[1]].view(shape) for buffer in buffers)
            torch.mm(rows[one], columns[other].T, out=logits)
            yield one, other, logits, spare


def _new_log_sums(rows: int, like: torch.Tensor) -> list[torch.Tensor]:
    """Of each row the highest logit so far, and the sum of exponentials relative to it."""
    return [like.new_full((rows,), -torch.inf), like.new_zeros(rows)]


def _add_exponentials(sums: list[torch.Tensor], part: slice, logits: torch.Tensor, spare: torch.Tensor, dim: int):
    highest, total = (values[part] for values in sums)
    new = torch.maximum(highest, logits.amax(dim))
    torch.sub(logits, new.unsqueeze(dim), out=spare).exp_()
    total.mul_(highest.sub_(new).exp_()).add_(spare.sum(dim))
    highest.copy_(new)


def _join_log_sums(sums: list[torch.Tensor]):
    """Those of all processes, in place."""
    highest = sums[0].clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    sums[1].mul_((sums[0] - highest).exp_())
    dist.all_reduce(sums[1])
    sums[0].copy_(highest)


def _matches(own: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of `ids` that occur in `own`, which is sorted, and where."""
    if not len(own):
        return own, own
    place = torch.searchsorted(own, ids).clamp_(max=len(own) - 1)
    rows = (own[place] == ids).nonzero().flatten()
    return rows, place[rows]


def _pass_on(blocks: list[torch.Tensor], counts: list[int], owner: int, tag: int) -> Callable[[], list[torch.Tensor]]:
    """
    Starts to send blocks to the next process and to receive those of the one before; the result waits for them.

    `owner` is the process whose rows are sent; all processes call this at the same time with the same kinds of blocks.
    """
    size, rank = world_size(), process_rank()
    received = [block.new_empty(counts[owner - 1], *block.shape[1:]) for block in blocks]
    steps = []
    for number, (block, place) in enumerate(zip(blocks, received), tag):
        # Both sides know how many rows there are; nothing is sent of none.
        if len(block):
            steps.append(dist.P2POp(dist.isend, block.contiguous(), (rank + 1) % size, tag=number))
        if len(place):
            steps.append(dist.P2POp(dist.irecv, place, (rank - 1) % size, tag=number))
    works = dist.batch_isend_irecv(steps) if steps else []

    def finish() -> list[torch.Tensor]:
        for work in works:
            work.wait()
        # Until here what is sent stays alive.
        steps.clear()
        return received

    return finish


class _TiledContrast(torch.autograd.Function):
    """The part of this process in the sum over rows, and the gradient of the sum over all processes."""

    @staticmethod
    def forward(ctx, images, texts, scale, bias, ids, loss_type, gather, counts, size):
        infonce = loss_type == "infonce"
        ring = gather == "ring" and len(counts) > 1
        joined = gather == "all_gather" and len(counts) > 1
        rows = images * scale
        block, block_ids = (join_rows(texts, counts), join_rows(ids, counts)) if joined else (texts, ids)
        own, text_of = ids.unique(return_inverse=True)
        # Of each text of this process, the embeddings of all rows with it.
        positives = rows.new_zeros(len(own), rows.shape[1])
        numbers = rows.new_zeros(len(own))
        buffers = rows.new_empty(2, min(size, len(rows)) * min(size, max(counts) if ring else len(block)))
        row_sums, column_sums = _new_log_sums(len(rows), rows), _new_log_sums(len(block), rows)
        zero, total = rows.new_zeros(()), rows.new_zeros(())
        owner = process_rank()
        for hop in range(len(counts) if ring else 1):
            last = hop == len(counts) - 1
            coming = _pass_on([block, block_ids], counts, owner, tag=0) if ring and not last else None
            for one, other, logits, spare in _tiles(rows, block, buffers, size):
                if infonce:
                    _add_exponentials(row_sums, one, logits, spare, dim=1)
                    _add_exponentials(column_sums, other, logits, spare, dim=0)
                else:
                    total += torch.logaddexp(logits.add_(bias), zero, out=spare).sum()
            found, place = _matches(own, block_ids)
            positives.index_add_(0, place, block[found])
            numbers.index_add_(0, place, torch.ones_like(place, dtype=numbers.dtype))
            if ring and infonce:
                column_sums = _pass_on(column_sums, counts, owner, tag=2)()
            if coming:
                block, block_ids = coming()
            owner = (owner - 1) % len(counts)
        if infonce:
            if joined:
                _join_log_sums(column_sums)
            positives /= numbers[:, None]
            row_lse, column_lse = (highest + exponentials.log() for highest, exponentials in (row_sums, column_sums))
            start = sum(counts[: process_rank()]) if joined else 0
            of_rows = (row_lse + column_lse[start : start + len(rows)]) / 2
        else:
            row_lse = column_lse = None
            of_rows = -bias * numbers[text_of]
        total += (of_rows - (rows * positives[text_of]).sum(-1)).sum()
        ctx.save_for_backward(
            images, block if joined else texts, scale, bias, ids, own, text_of, positives, numbers, row_lse, column_lse
        )
        ctx.options = infonce, ring, joined, counts, size
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        images, block, scale, bias, ids, own, text_of, positives, numbers, row_lse, column_lse = ctx.saved_tensors
        infonce, ring, joined, counts, size = ctx.options
        with maybe_autocast(images.device.type, enabled=False):
            rows = images * scale
            # Twice the loss has the probabilities of both directions as its gradient.
            directions = 2 if infonce else 1
            block_ids = join_rows(ids, counts) if joined else ids
            of_images = positives[text_of].mul_(-directions)
            of_texts = torch.zeros_like(block)
            of_bias = -numbers[text_of].sum()
            weights = torch.zeros_like(positives).index_add_(0, text_of, rows).mul_(directions)
            if infonce:
                weights /= numbers[:, None]
            buffers = rows.new_empty(2, min(size, len(rows)) * min(size, max(counts) if ring else len(block)))
            owner = process_rank()
            for hop in range(len(counts) if ring else 1):
                coming = None
                if ring and hop < len(counts) - 1:
                    blocks = [block, block_ids, column_lse] if infonce else [block, block_ids]
                    coming = _pass_on(blocks, counts, owner, tag=0)
                for one, other, logits, spare in _tiles(rows, block, buffers, size):
                    if infonce:
                        torch.sub(logits, row_lse[one, None], out=spare).exp_()
                        logits.sub_(column_lse[other]).exp_().add_(spare)
                    else:
                        of_bias += logits.add_(bias).sigmoid_().sum()
                    of_images[one].addmm_(logits, block[other])
                    of_texts[other].addmm_(logits.T, rows[one])
                found, place = _matches(own, block_ids)
                of_texts.index_add_(0, found, weights[place], alpha=-1)
                if ring:
                    (of_texts,) = _pass_on([of_texts], counts, owner, tag=3)()
                if coming:
                    block, block_ids, *rest = coming()
                    column_lse = rest[0] if infonce else None
                owner = (owner - 1) % len(counts)
            if joined:
                of_texts = sum_own_rows(of_texts, counts)
            of_scale = (images * of_images).sum()
            gradient = gradient / directions
            return (
                of_images.mul_(scale * gradient),
                of_texts.mul_(gradient),
                of_scale * gradient,
                None if bias is None else of_bias * gradient,
                *[None] * 5,
            )


@torch.compiler.disable
def tiled_contrastive_sum(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    text_index: torch.Tensor,
    counts: list[int],
    *,
    loss_type: str = "infonce",
    logit_bias: torch.Tensor | None = None,
    gather: str = "all_gather",
    tile: int | None = None,
) -> torch.Tensor:
    """
    Sum over rows of a contrastive loss in tiles; see [`contrastive_loss`] for what is computed.

    All processes call it. Each gets its own part of the sum, but the gradient of the sum over all of them: add the parts
    up with [`global_sum`].

    Args:
        image_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of images or regions.
        text_embeds (`torch.Tensor` of shape `(R, D)`): L2-normalised embeddings of their texts.
        logit_scale (`torch.Tensor`, scalar): Inverse temperature.
        text_index (`torch.Tensor` of shape `(R,)`, int64): Equal numbers mark equal texts, in all processes.
        counts (`list[int]`): Rows of each process, from [`row_counts`]; `[R]` to stay within this one.
        loss_type (`str`, *optional*, defaults to `"infonce"`): Or `"sigmoid"`.
        logit_bias (`torch.Tensor`, scalar, *optional*): Of the sigmoid loss.
        gather (`str`, *optional*, defaults to `"all_gather"`): Or `"ring"`.
        tile (`int`, *optional*): Rows and columns of a tile; 1,024 on a CPU, 4,096 on other devices.

    Returns:
        `torch.Tensor`: Scalar, in float32 at least.

    Example:
        >>> import torch
        >>> from modeling_pixclip.tiled_contrastive_loss import tiled_contrastive_sum
        >>> embeds = torch.eye(4)
        >>> loss = tiled_contrastive_sum(embeds, embeds, torch.tensor(1.0), torch.arange(4), [4], tile=2) / 4
        >>> round(float(loss), 4)
        0.7437
    """
    dtype = torch.promote_types(image_embeds.dtype, torch.float32)
    tile = tile or (CPU_TILE if image_embeds.device.type == "cpu" else GPU_TILE)
    with maybe_autocast(image_embeds.device.type, enabled=False):
        return _TiledContrast.apply(
            image_embeds.to(dtype),
            text_embeds.to(dtype),
            logit_scale.to(dtype).reshape(()),
            logit_bias.to(dtype).reshape(()) if loss_type == "sigmoid" else None,
            text_index,
            loss_type,
            gather,
            counts,
            tile,
        )


__all__ = ["tiled_contrastive_sum"]
