# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Two paths through one text tower (FG-CLIP): long texts have a table of positions and a projection of their own."""

import copy
from typing import Any

import torch
from torch import nn
from transformers.utils import ModelOutput

from .distributed_features import world_size
from .position_stretching import append_position_table
from .text_attention import PackedTexts


def split_long_text_path(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Takes the long text path out of fields of a text configuration: a backbone that is loaded does not have it yet.

    Args:
        fields (`dict`): Fields of [`PixCLIPTextConfig`].

    Returns:
        `tuple[dict, dict]`: The other fields, and arguments of [`PixCLIPTextModel.add_long_text_path`], none if there
        is to be no such path.

    Example:
        >>> from modeling_pixclip.text_paths import split_long_text_path
        >>> split_long_text_path({"pooling": "eos", "long_text_projection": True, "long_text_positions": 248})
        ({'pooling': 'eos'}, {'positions': 248})
    """
    if not fields.get("long_text_projection"):
        return fields, {}
    others = {name: value for name, value in fields.items() if not name.startswith("long_text_")}
    return others, {"positions": fields.get("long_text_positions")}


class TextPaths:
    """
    Part of [`PixCLIPTextModel`] that gives long captions a path of their own beside short captions and region texts.

    Example:
        >>> from modeling_pixclip import PixCLIPTextModel
        >>> from modeling_pixclip.text_paths import TextPaths
        >>> issubclass(PixCLIPTextModel, TextPaths)
        True
    """

    def add_long_text_path(self, positions: int | None = None, keep: int = 20):
        r"""
        Adds a path for long texts, which `long_text_mask` of [`PixCLIPTextModel.forward`] chooses (FG-CLIP).

        Its projection starts as a copy of the other one and its positions as the stretched table of the backbone, see
        [`stretch_positions`]; a text within the first `keep` positions has the same vector on either path until
        training changes them. An adapter is shared. Short texts keep their vectors.

        The backbone's table then holds the rows of the short path and, behind them, those of the long one, so that the
        backbone saves, loads and trains as any other; `config.max_text_positions` tells how many tokens a path takes.
        The table trains with the backbone (`set_backbone_trainable("full")`), the projections always do. Call it before
        an optimiser is made.

        Args:
            positions (`int`, *optional*): Rows of the long path's table for a backbone with a learned table of positions
                (CLIP text, BERT), e.g. 248 for CLIP's 77. Without it the long path has the positions of the short one,
                which is all there is for rotary positions (LLMs).
            keep (`int`, *optional*, defaults to 20): First positions that stay as they are.

        Raises:
            ValueError: If there is a long path, the backbone has no table for `positions`, or a number does not fit it.

        Example:
            >>> from transformers import CLIPTextConfig
            >>> from modeling_pixclip import PixCLIPTextConfig, PixCLIPTextModel
            >>> backbone = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
            >>> model = PixCLIPTextModel(PixCLIPTextConfig(backbone_config=backbone, pooling="eos"))
            >>> model.add_long_text_path(positions=248)
            >>> model.config.max_text_positions(long_text=False), model.config.max_text_positions(long_text=True)
            (77, 248)
        """
        if self.config.long_text_projection:
            raise ValueError(
                "the text tower has a long text path already, with "
                f"long_text_positions={self.config.long_text_positions}; there can be one."
            )
        if positions is not None:
            self._check_backbone("a table of positions is part of one")
            append_position_table(self.backbone, positions, keep)
            self._backbone_changed("a table of positions for long texts was added")
            self._first_positions.clear()
        self.config.long_text_positions = positions
        self.config.long_text_projection = True
        self.long_projection = copy.deepcopy(self.projection)

    def text_max_length(self, processor: Any, long_text: bool = False) -> int:
        """
        Tokens at which texts are cut that the encoding methods and [`TextFeatureStore`] take.

        Args:
            processor ([`PixCLIPProcessor`]): Its `text_max_length` holds for a tower with one table of positions.
            long_text (`bool`, *optional*, defaults to `False`): For the long text path, where it has positions of its own:
                all of them. Short texts may be shorter by the processor.

        Example:
            >>> model.text_max_length(processor, long_text=True)  # doctest: +SKIP
            248
        """
        if self.config.long_text_positions is None:
            return processor.text_max_length
        if long_text:
            return self.config.long_text_positions
        return min(processor.text_max_length, self.config.max_text_positions(long_text=False))

    def _check_length(self, length: int, long_text: bool = False):
        limit = self.config.max_text_positions(long_text)
        if limit is None or length <= limit:
            return
        message = (
            f"texts are {length} tokens long, the backbone ({self.config.backbone_config.model_type}) takes at most "
        )
        if self.config.long_text_positions is None:
            raise ValueError(f"{message}{limit}. Lower the processor's text_max_length.")
        if long_text:
            raise ValueError(f"{message}{limit} on the long text path. Cut long texts at {limit} tokens.")
        raise ValueError(
            f"{message}{limit} on the short text path. Cut short texts at {limit} tokens, or mark longer ones in "
            f"long_text_mask (long_text=True): the long path takes {self.config.long_text_positions}."
        )

    def _check_long_text_mask(self, long_text_mask: torch.Tensor | None, texts: int):
        if long_text_mask is None:
            return
        if long_text_mask.dtype != torch.bool or long_text_mask.shape != (texts,):
            raise ValueError(
                f"long_text_mask has shape {tuple(long_text_mask.shape)} and dtype {long_text_mask.dtype}; accepted is one "
                f"bool for each of the {texts} texts."
            )

    def _project(self, embeds: torch.Tensor, long_text_mask: torch.Tensor | None) -> torch.Tensor:
        embeds = self.adapter(embeds)
        projected = self.projection(embeds)
        if not self.config.long_text_projection:
            return projected
        if long_text_mask is None:
            long_text_mask = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
        # Both for every row: in a batch of one kind the other projection has a gradient too, of zeros, as DDP expects.
        return torch.where(long_text_mask[:, None], self.long_projection(embeds), projected)

    def _start(self, long_text: bool) -> int:
        """Row of the backbone's table at which a path starts."""
        return self.config.max_text_positions(long_text=False) if long_text else 0

    def _run_paths(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pooling_mask: torch.Tensor,
        long_text_mask: torch.Tensor,
        once: bool,
        **kwargs,
    ):
        """
        Pooled vectors (T, W) and the output of a padded backbone.

        It runs once a path, no longer than the path needs, or `once` for both, as it does where it packs texts.
        """
        kwargs["position_ids"] = self._padded_positions(attention_mask, long_text_mask, kwargs.get("position_ids"))
        order, pooled, runs = [], [], []
        for texts in [torch.ones_like(long_text_mask)] if once else [~long_text_mask, long_text_mask]:
            rows = texts.nonzero().flatten()
            if len(rows):
                vectors, run = self._run_rows(rows, input_ids, attention_mask, pooling_mask, **kwargs)
                runs.append(run)
            elif world_size() > 1 or not len(input_ids):
                # Sharded weights are gathered at each run (FSDP), and of those each process needs the same number.
                vectors = self._run_without_texts(input_ids).last_hidden_state[:, 0].float()
            else:
                continue
            order.append(rows)
            pooled.append(vectors)
        order = torch.cat(order).argsort()
        return torch.cat(pooled)[order], join_outputs(runs, order, input_ids.shape[1])

    def _padded_positions(
        self, attention_mask: torch.Tensor, long_text_mask: torch.Tensor, position_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Positions (T, L) of padded texts, counted from the first column of their path, as rows of the table."""
        columns = torch.arange(attention_mask.shape[1], device=attention_mask.device)
        positions = torch.zeros_like(attention_mask, dtype=torch.long)
        for long_text in (False, True):
            rows = long_text_mask == long_text
            seen = attention_mask[rows].any(0).nonzero().flatten()
            if not len(seen):
                continue
            length = int(seen[-1] - seen[0]) + 1
            self._check_length(length, long_text)
            # Those of padding beside the path's texts are any that there are.
            own = (columns - seen[0]).clamp(0, length - 1)
            if position_ids is not None:
                own = position_ids.expand(attention_mask.shape)[rows]
            positions[rows] = own + self._start(long_text)
        return positions

    def _path_positions(
        self, packed: PackedTexts, position_ids: torch.Tensor, long_text_mask: torch.Tensor
    ) -> torch.Tensor:
        """Positions of packed texts, of which long ones count on from the start of their path."""
        lengths = packed.cu_seq_lens.diff()
        for long_text in (False, True):
            self._check_length(max(lengths[long_text_mask == long_text].tolist(), default=0), long_text)
        return position_ids + long_text_mask[packed.text_index] * self._start(long_text=True)

    def _run_rows(self, rows, input_ids, attention_mask, pooling_mask, **kwargs):
        """Pooled vectors of some rows, the backbone's output for them, and the columns that it stands in."""
        seen = attention_mask[rows].any(0).nonzero().flatten()
        columns = slice(int(seen[0]), int(seen[-1]) + 1)
        for name in ("position_ids", "token_type_ids"):
            if name in kwargs:
                kwargs[name] = kwargs[name].expand(input_ids.shape)[rows, columns]
        ids, attended, selected = (values[rows, columns] for values in (input_ids, attention_mask, pooling_mask))
        outputs = self._run_backbone(ids, attended, **kwargs)
        return self._pool(outputs.last_hidden_state, ids, selected, None), (outputs, columns)


def join_outputs(runs: list[tuple[ModelOutput, slice]], order: torch.Tensor, length: int) -> ModelOutput | None:
    """
    Outputs of a backbone for parts of a batch as one, zero where a part has no columns.

    Args:
        runs (`list[tuple[ModelOutput, slice]]`): Output of each part, for n of the T texts, and the columns of the batch
            that it is for.
        order (`torch.LongTensor` of shape `(T,)`): Place of each text in the parts, joined.
        length (`int`): Columns of the batch.

    Returns:
        [`ModelOutput`], *optional*: Without `last_hidden_state` where there are several parts: as long as the longest
        text, for every text, it would be the largest tensor of a step.
    """

    def spread(states: torch.Tensor | None, columns: slice) -> torch.Tensor | None:
        """(n, L, W), or weights of attention (n, heads, L, L), to the length of the batch; None where not asked for."""
        if states is None:
            return None
        sides = (columns.start, length - columns.stop)
        return nn.functional.pad(states, (0, 0, *sides) if states.ndim == 3 else (*sides, *sides))

    if not runs:
        return None
    joined = runs[0][0]
    for name in ("hidden_states", "attentions"):
        if getattr(joined, name, None) is not None:
            layers = zip(*([spread(layer, columns) for layer in run[name]] for run, columns in runs), strict=True)
            joined[name] = tuple(None if layer[0] is None else torch.cat(layer)[order] for layer in layers)
    if len(runs) > 1:
        joined.last_hidden_state = None
    else:
        joined.last_hidden_state = spread(joined.last_hidden_state, runs[0][1])
    return joined


__all__ = ["TextPaths", "join_outputs", "split_long_text_path"]
