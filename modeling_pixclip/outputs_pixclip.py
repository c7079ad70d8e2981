# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the models return."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput


@dataclass
class PixCLIPOutput(ModelOutput):
    """
    Output of [`PixCLIPModel`] and [`PixCLIPForPreTraining`]. R image rows (regions, or whole images), T text rows.

    Args:
        loss (`torch.Tensor`, scalar, *optional*): The contrastive loss, or the sum of the objective's terms.
        logits_per_image (`torch.Tensor` of shape `(R, T)`, *optional*, absent beside the objective): Cosine similarities
            times the inverse temperature.
        logits_per_text (`torch.Tensor` of shape `(T, R)`, *optional*): Its transpose.
        text_embeds (`torch.Tensor` of shape `(T, projection_dim)`): L2-normalised text embeddings.
        image_embeds (`torch.Tensor` of shape `(R, projection_dim)`): L2-normalised image embeddings.
        text_model_output ([`PixCLIPTextModelOutput`]): Output of the text tower.
        vision_model_output ([`PixCLIPVisionModelOutput`]): Output of the vision tower; beside the objective that of its
            first pass, which holds the rows of several views.
        loss_terms (`dict[str, torch.Tensor]`, *optional*): Value of each term before its weight, detached.
        skipped (`dict[str, int]`, *optional*): What the objective left out of this batch, by reason.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    loss_terms: dict[str, torch.Tensor] | None = None
    skipped: dict[str, int] | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


# What an index counts rows of.
_INDEXED = {
    "region_rows": "num_regions",
    "pooled_rows": "num_regions",
    "hard_negative_region_index": "num_regions",
    "region_text_index": "num_texts",
    "object_text_index": "num_texts",
    "long_caption_index": "num_texts",
    "short_caption_index": "num_texts",
    "hard_negative_text_index": "num_texts",
}


@dataclass
class PretrainingEmbeddings(ModelOutput):
    """
    All that the objective of [`PixCLIPForPreTraining`] reads, of one batch or of several put together.

    B images with R regions and T texts; embeddings are L2-normalised. Regions that cannot serve a view (an empty mask, a
    box without area) have no row in it. Views that no term reads are absent.

    Args:
        text_embeds (`torch.Tensor` of shape `(T, projection_dim)`): Texts.
        text_ids (`torch.Tensor` of shape `(T,)`, int64, *optional*): Equal numbers mark equal texts.
        region_embeds (`torch.Tensor` of shape `(V, projection_dim)`, *optional*): E(image, mask).
        crop_embeds (`torch.Tensor` of shape `(V, projection_dim)`, *optional*): E(context crop, its mask).
        local_embeds (`torch.Tensor` of shape `(V, projection_dim)`, *optional*): D(image, mask), pooled over the region.
        region_rows (`torch.Tensor` of shape `(V,)`, *optional*): The region, 0..R-1, of each row of these three.
        pooled_embeds (`torch.Tensor` of shape `(P, projection_dim)`, *optional*): D(image), pooled over the region.
        pooled_rows (`torch.Tensor` of shape `(P,)`, *optional*): The region of each of its rows.
        whole_embeds (`torch.Tensor` of shape `(B, projection_dim)`, *optional*): E(image).
        region_text_index, object_text_index, long_caption_index, short_caption_index, hard_negative_text_index,
            hard_negative_region_index (`torch.Tensor`, *optional*): As in [`PixCLIPForPreTraining.forward`].
        scales (`dict[str, torch.Tensor]`): Inverse temperatures and bias.
        skipped (`dict[str, int]`): Regions left out, by reason.
        num_regions (`int`): R.
    """

    text_embeds: torch.Tensor | None = None
    text_ids: torch.Tensor | None = None
    region_embeds: torch.Tensor | None = None
    crop_embeds: torch.Tensor | None = None
    local_embeds: torch.Tensor | None = None
    region_rows: torch.Tensor | None = None
    pooled_embeds: torch.Tensor | None = None
    pooled_rows: torch.Tensor | None = None
    whole_embeds: torch.Tensor | None = None
    region_text_index: torch.Tensor | None = None
    object_text_index: torch.Tensor | None = None
    long_caption_index: torch.Tensor | None = None
    short_caption_index: torch.Tensor | None = None
    hard_negative_text_index: torch.Tensor | None = None
    hard_negative_region_index: torch.Tensor | None = None
    scales: dict[str, torch.Tensor] | None = None
    skipped: dict[str, int] | None = None
    num_regions: int | None = None

    @classmethod
    def join(cls, parts: "Sequence[PretrainingEmbeddings]") -> "PretrainingEmbeddings":
        """
        The embeddings of several batches as those of one.

        Args:
            parts (`Sequence[PretrainingEmbeddings]`): Of the same model and objective, at least one.

        Raises:
            ValueError: If a part has what another one lacks.

        Example:
            >>> import torch
            >>> from modeling_pixclip.outputs_pixclip import PretrainingEmbeddings
            >>> part = PretrainingEmbeddings(text_embeds=torch.eye(2), region_text_index=torch.tensor([1]), num_regions=1)
            >>> PretrainingEmbeddings.join([part, part]).region_text_index
            tensor([1, 3])
        """
        offsets = {"num_regions": 0, "num_texts": 0}
        joined: dict[str, list[torch.Tensor]] = {}
        skipped: dict[str, int] = {}
        for number, part in enumerate(parts):
            for field in fields(cls):
                value = getattr(part, field.name)
                if isinstance(value, torch.Tensor):
                    shift = offsets.get(_INDEXED.get(field.name), 0)
                    # -1 stands for none.
                    joined.setdefault(field.name, []).append(
                        torch.where(value < 0, value, value + shift) if shift else value
                    )
            for reason, count in (part.skipped or {}).items():
                skipped[reason] = skipped.get(reason, 0) + count
            offsets["num_regions"] += part.num_regions
            offsets["num_texts"] += len(part.text_embeds)
            uneven = sorted(name for name, values in joined.items() if len(values) != number + 1)
            if uneven:
                raise ValueError(
                    f"part {number} and those before it do not all have {uneven}; accepted: the same views."
                )
        return cls(
            **{name: torch.cat(values) for name, values in joined.items()},
            scales=parts[0].scales,
            skipped=skipped,
            num_regions=offsets["num_regions"],
        )


__all__ = ["PixCLIPOutput", "PretrainingEmbeddings"]
