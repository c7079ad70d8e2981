# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Longer texts for encoders with a learned table of positions: Long-CLIP's and FG-CLIP's stretch, 77 to 248."""

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel


def stretch_positions(table: torch.Tensor, length: int = 248, keep: int = 20) -> torch.Tensor:
    """
    Stretches a table of positions: the first rows stay, the others are spread over what is left of the length.

    Short texts use the first rows most, so these are the best trained (Long-CLIP, arXiv 2403.15378). Between two old rows
    the new ones lie on a line, after the last one they go on along the last two. With the defaults and CLIP's 77 rows
    this is Long-CLIP's and FG-CLIP's table: 20 rows, then four for each of the other 57.

    Args:
        table (`torch.Tensor` of shape `(n, W)`): Position vectors, floating point.
        length (`int`, *optional*, defaults to 248): Rows of the result, at least n.
        keep (`int`, *optional*, defaults to 20): Rows kept as they are, 0 to n - 2.

    Returns:
        `torch.Tensor`: `(length, W)`, computed in float32 or finer, of the dtype of `table`.

    Raises:
        ValueError: If `table` is no such table, or `length` or `keep` does not fit it.

    Example:
        >>> import torch
        >>> from modeling_pixclip import stretch_positions
        >>> stretch_positions(torch.tensor([[0.0], [1.0], [2.0], [4.0]]), length=8, keep=2).T
        tensor([[0.0000, 1.0000, 2.0000, 2.6667, 3.3333, 4.0000, 4.6667, 5.3333]])
    """
    if table.ndim != 2 or not table.is_floating_point():
        raise ValueError(
            f"table has shape {tuple(table.shape)} and dtype {table.dtype}; accepted is (positions, width) in floating "
            "point."
        )
    rows = table.shape[0]
    if not 0 <= keep <= rows - 2:
        raise ValueError(f"keep is {keep}; a table of {rows} positions accepts 0 to {rows - 2}.")
    if length < rows:
        raise ValueError(
            f"length is {length}, less than the {rows} positions there are; accepted are {rows} and more."
        )
    # Whole numbers as far as they go, so that a new row that falls on an old one is that row exactly.
    steps = torch.arange(length - keep, device=table.device) * (rows - keep)
    before = (steps // (length - keep) + keep).clamp(max=rows - 2)
    exact = table.to(torch.promote_types(table.dtype, torch.float32))
    weights = (steps - (before - keep) * (length - keep)).to(exact.dtype) / (length - keep)
    stretched = torch.lerp(exact[before], exact[before + 1], weights[:, None])
    return torch.cat([exact[:keep], stretched]).to(table.dtype)


def find_position_table(backbone: PreTrainedModel) -> tuple[nn.Module, str]:
    """
    The module that holds the learned table of positions, row i of which is position i, and the table's name in it.

    Raises:
        ValueError: If the backbone has none.
    """
    config = backbone.config.get_text_config()
    rows = getattr(config, "max_position_embeddings", None)
    for parent in backbone.modules():
        for name, child in parent.named_children():
            # Types with an offset (RoBERTa, OPT) have a padding index, or a class of their own.
            is_table = type(child) is nn.Embedding and child.padding_idx is None and child.num_embeddings == rows
            if is_table and "position" in name:
                return parent, name
    raise ValueError(
        f"a backbone of type {config.model_type!r} has no learned table of positions that could be resized: its "
        "positions are rotary, relative or offset. With rotary ones set max_position_embeddings and rope_parameters of "
        "its configuration before loading; texts up to the length it was trained for need no change."
    )


@torch.no_grad()
def resize_position_table(backbone: PreTrainedModel, length: int, keep: int):
    """Replaces the table of a backbone by a longer one, with all that depends on its length."""
    parent, name = find_position_table(backbone)
    _replace_position_table(backbone, stretch_positions(getattr(parent, name).weight, length, keep))


@torch.no_grad()
def append_position_table(backbone: PreTrainedModel, length: int, keep: int):
    """Puts a longer table of `length` rows behind that of a backbone, which keeps its own rows before it."""
    parent, name = find_position_table(backbone)
    table = getattr(parent, name).weight
    _replace_position_table(backbone, torch.cat([table, stretch_positions(table, length, keep)]))


def _replace_position_table(backbone: PreTrainedModel, rows: torch.Tensor):
    parent, name = find_position_table(backbone)
    old = getattr(parent, name)
    table = nn.Embedding(*rows.shape, device=rows.device, dtype=rows.dtype)
    table.weight.copy_(rows)
    table.weight.requires_grad_(old.weight.requires_grad)
    setattr(parent, name, table.train(old.training))
    for buffer_name, buffer in list(parent.named_buffers(recurse=False)):
        if buffer.shape == (1, old.num_embeddings):
            # Positions count on; token types of BERT's kin are all zero.
            longer = torch.arange(len(rows)) if buffer_name == "position_ids" else torch.zeros(len(rows))
            setattr(parent, buffer_name, longer.to(buffer)[None])
    backbone.config.get_text_config().max_position_embeddings = len(rows)


__all__ = ["append_position_table", "find_position_table", "resize_position_table", "stretch_positions"]
