# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The training objective: terms of PixCLIP (arXiv 2511.04601), FG-CLIP (2505.05071) and FG-CLIP 2 (2510.10921)."""

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .distributed_features import global_count, process_rank, world_size
from .fine_grained_losses import hard_negative_loss, ranking_margin_loss, text_intra_loss
from .losses import InverseTemperature, check_rows, contrastive_loss, cosine_distance
from .outputs_pixclip import PixCLIPOutput, PretrainingEmbeddings


logger = logging.get_logger(__name__)

# Which embedding of PretrainingEmbeddings each term is about.
_CONTRASTED = {"global": "region_embeds", "crop": "crop_embeds", "region": "pooled_embeds"}
# What the objective leaves out, by the name that it is counted under.
_SKIPPED = {
    "empty_masks": "Regions without a pixel have no features and are left out of the loss; look for them in the data.",
    "empty_boxes": "Regions whose box has no area within the image are left out of the loss; look for them in the data.",
    "empty_batches": "A batch without pairs for any term of the objective, in all processes, has a loss of 0; filter "
    "images without regions and captions out of the data.",
}


@dataclass
class _View:
    """Rows of images for the vision tower: with masks or without, with the dense map or without."""

    pixel_values: torch.Tensor
    mask_values: torch.Tensor | None
    image_index: torch.Tensor
    dense: bool = False
    trains: bool = True


class PretrainingObjective:
    """
    Mixin of [`PixCLIPForPreTraining`]: one batch, every view of it in as few passes as shapes allow, and the terms.

    Example:
        >>> from modeling_pixclip import PixCLIPForPreTraining
        >>> from modeling_pixclip.pretraining_objective import PretrainingObjective
        >>> issubclass(PixCLIPForPreTraining, PretrainingObjective)
        True
    """

    def add_objective_parameters(self):
        """Makes the temperatures and the bias that the terms with a weight have of their own."""
        terms = self.config.term_weights
        if "region" in terms:
            self.logit_scale_region = nn.Parameter(torch.empty(1))
        if "hard_negative" in terms:
            self.logit_scale_hard_negative = nn.Parameter(torch.empty(1))
        if self.config.loss_type == "sigmoid":
            self.logit_bias = nn.Parameter(torch.empty(1))
        if "ranking_margin" in terms:
            # The gap between a positive and its negatives, of the step before (FG-CLIP 2).
            self.register_buffer("ranking_margin", torch.empty(()))
        self.init_objective_parameters()
        self._skipped_in_all: Counter[str] = Counter()

    def init_objective_parameters(self):
        values = {
            "logit_scale_region": self.config.logit_scale_init_value,
            "logit_scale_hard_negative": self.config.logit_scale_init_value,
            "logit_bias": self.config.logit_bias_init_value,
            "ranking_margin": 0.0,
        }
        for name, value in values.items():
            if hasattr(self, name):
                init.constant_(getattr(self, name), value)

    @can_return_tuple
    # Of a batch only the towers are worth compiling; all around them depends on its numbers of regions and texts.
    @torch.compiler.disable(recursive=False)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pooling_mask: torch.Tensor | None = None,
        mask_values: torch.Tensor | None = None,
        region_image_index: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_text_index: torch.Tensor | None = None,
        object_text_index: torch.Tensor | None = None,
        crop_pixel_values: torch.Tensor | None = None,
        crop_mask_values: torch.Tensor | None = None,
        long_caption_index: torch.Tensor | None = None,
        short_caption_index: torch.Tensor | None = None,
        hard_negative_text_index: torch.Tensor | None = None,
        hard_negative_region_index: torch.Tensor | None = None,
        long_text_mask: torch.Tensor | None = None,
        text_ids: torch.Tensor | None = None,
        backbone_embeds: torch.Tensor | None = None,
        return_loss: bool = True,
        return_embeddings: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixCLIPOutput | PretrainingEmbeddings:
        r"""
        B images, R regions, T texts. A term whose inputs a batch lacks is left out of the loss.

        In several processes every one has to call it, evaluation included, because the losses are of all their pairs;
        `return_loss=False` or `return_embeddings=True` do not wait for others. For the Trainer's evaluation set
        `prediction_loss_only=True` there: it cannot gather embeddings of different numbers of regions.

        Args:
            input_ids, pixel_values, attention_mask, pooling_mask, long_text_mask, mask_values, region_image_index,
                region_text_index, backbone_embeds: As in [`PixCLIPModel.forward`].
            region_boxes (`torch.Tensor` of shape `(R, 4)`, *optional*): xyxy in 0..1, for pooling by RoIAlign.
            object_text_index (`torch.Tensor` of shape `(R,)`, *optional*): Row of each region's object-level text;
                defaults to `region_text_index`.
            crop_pixel_values (`torch.Tensor` of shape `(R, 3, h, w)`, *optional*): Context crop of each region.
            crop_mask_values (`torch.Tensor` of shape `(R, 1, h, w)`, *optional*): The region's mask in its crop.
            long_caption_index (`torch.Tensor` of shape `(B,)`, *optional*), short_caption_index (`torch.Tensor` of shape
                `(B,)`, *optional*): Text row of each image's long and short caption, -1 where it has none.
            hard_negative_text_index (`torch.Tensor` of shape `(M,)`, *optional*), hard_negative_region_index
                (`torch.Tensor` of shape `(M,)`, *optional*): Text row of each hard negative, and the region it belongs to.
            text_ids (`torch.Tensor` of shape `(T,)`, int64, *optional*): Equal numbers mark equal texts, in every
                process; by default only rows of the same number in one process are the same text.
            return_loss (`bool`, *optional*, defaults to `True`): Compute the objective; `False` does what
                [`PixCLIPModel.forward`] does.
            return_embeddings (`bool`, *optional*, defaults to `False`): Return the [`PretrainingEmbeddings`], which
                [`~PixCLIPForPreTraining.objective`] takes, for gradient caching.

        Returns:
            [`PixCLIPOutput`]: Rows of `image_embeds` and `text_embeds`, both `(R, projection_dim)`, are pairs: regions,
            seen as the first term of the objective that is about regions sees them, and their texts; without such a
            term images and their captions. In several processes the loss is that of all of them.

        Raises:
            ValueError: If no term of the objective finds its inputs, or regions and texts cannot be paired.
        """
        if pixel_values is None:
            raise ValueError("pixel_values are missing; PixCLIPForPreTraining takes the batch of PixCLIPDataCollator.")
        if not return_loss:
            return super().forward(
                input_ids=input_ids,
                pixel_values=pixel_values,
                attention_mask=attention_mask,
                pooling_mask=pooling_mask,
                mask_values=mask_values,
                region_image_index=region_image_index,
                long_text_mask=long_text_mask,
                backbone_embeds=backbone_embeds,
                return_dict=True,
                **kwargs,
            )
        seen, vision_outputs = self._embed_images(
            pixel_values,
            mask_values,
            region_image_index,
            region_boxes,
            crop_pixel_values,
            crop_mask_values,
            **kwargs,
        )
        text_outputs = self.get_text_features(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pooling_mask=pooling_mask,
            long_text_mask=long_text_mask,
            backbone_embeds=backbone_embeds,
            return_dict=True,
            **kwargs,
        )
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)
        if region_text_index is None and seen["num_regions"] == len(text_embeds):
            region_text_index = torch.arange(len(text_embeds), device=text_embeds.device)
        embeddings = PretrainingEmbeddings(
            text_embeds=text_embeds,
            text_ids=text_ids,
            region_text_index=region_text_index,
            object_text_index=object_text_index,
            long_caption_index=long_caption_index,
            short_caption_index=short_caption_index,
            hard_negative_text_index=hard_negative_text_index,
            hard_negative_region_index=hard_negative_region_index,
            scales=self._scales(),
            **seen,
        )
        if return_embeddings:
            return embeddings
        loss, terms = self.objective(embeddings)
        image_embeds, text_embeds = self._pairs(embeddings)
        return PixCLIPOutput(
            loss=loss,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
            loss_terms=terms,
            skipped=embeddings.skipped,
        )

    def _scales(self) -> dict[str, torch.Tensor]:
        self._check_parameters()
        if self.training and self.logit_scale.dtype in (torch.bfloat16, torch.float16):
            logger.warning_once(
                f"training with a logit_scale in {self.logit_scale.dtype}, which near its bound has steps of 3 %. Load the "
                "model in float32 and train with bf16=True; under FSDP2 call autocast_under_fsdp(trainer) first."
            )
        bound = math.log(self.config.logit_scale_max)
        names = ("logit_scale", "logit_scale_region", "logit_scale_hard_negative")
        scales = {
            name: InverseTemperature.apply(getattr(self, name), bound).squeeze()
            for name in names
            if hasattr(self, name)
        }
        if self.config.loss_type == "sigmoid":
            scales["logit_bias"] = self.logit_bias.squeeze()
        return scales

    def _check_parameters(self):
        terms = self.config.term_weights
        for name, field in (
            ("logit_scale_region", "region_weight" if "region" in terms else None),
            ("logit_scale_hard_negative", "hard_negative_weight" if "hard_negative" in terms else None),
            ("ranking_margin", "ranking_margin_weight" if "ranking_margin" in terms else None),
            ("logit_bias", "loss_type" if self.config.loss_type == "sigmoid" else None),
        ):
            if field is not None and not hasattr(self, name):
                value = getattr(self.config, field)
                raise ValueError(
                    f"{field} was set to {value!r} after the model was made, which has no {name} for it. Make it with the "
                    f"field: PixCLIPForPreTraining.from_pretrained(folder, {field}={value!r})."
                )

    def _embed_images(
        self,
        pixel_values: torch.Tensor,
        mask_values: torch.Tensor | None,
        region_image_index: torch.Tensor | None,
        region_boxes: torch.Tensor | None,
        crop_pixel_values: torch.Tensor | None,
        crop_mask_values: torch.Tensor | None,
        **kwargs,
    ) -> tuple[dict[str, Any], Any]:
        """Fields of the image side of [`PretrainingEmbeddings`], and the output of the tower's first pass."""
        config, terms = self.config, self.config.term_weights
        hard = {"hard_negative", "ranking_margin"} & terms.keys()
        if region_image_index is None:
            regions = len(pixel_values) if mask_values is None else len(mask_values)
            region_image_index = torch.arange(regions, device=pixel_values.device)
        regions = {"mask": mask_values, "roi": region_boxes}
        for name, values in (("mask_values", mask_values), ("region_boxes", region_boxes)):
            if values is not None:
                check_rows(values, name, len(region_image_index))
        local = "local" in terms and regions[config.local_pooling] is not None
        pooled = "region" in terms or (hard and config.hard_negative_features == "region")
        pooled = bool(pooled) and regions[config.region_pooling] is not None
        masked = bool({"global", "local"} & terms.keys()) or bool(hard and config.hard_negative_features == "global")
        whole = bool({"caption_long", "caption_short"} & terms.keys())
        teacher = local and config.local_target == "crop"
        crop = crop_pixel_values is not None and ("crop" in terms or teacher)

        seen: dict[str, Any] = {"num_regions": len(region_image_index), "skipped": {}}
        views: dict[str, _View] = {}
        if masked or crop:
            needs = {"mask"} if mask_values is not None else set()
            needs |= {config.local_pooling} if local else set()
            rows = seen["region_rows"] = self._usable_regions(needs, regions, seen)
        if masked:
            masks = None if mask_values is None else mask_values[rows]
            views["region"] = _View(pixel_values, masks, region_image_index[rows], dense=local)
        if whole or pooled:
            index = torch.arange(len(pixel_values), device=pixel_values.device)
            views["whole"] = _View(pixel_values, None, index, dense=pooled)
        if crop:
            check_rows(crop_pixel_values, "crops", len(region_image_index))
            masks = None if crop_mask_values is None else crop_mask_values[rows]
            crops = crop_pixel_values[rows]
            index = torch.arange(len(crops), device=crops.device)
            trains = "crop" in terms or not config.local_stop_gradient
            views["crop"] = _View(crops, masks, index, trains=trains)
        if not views:
            raise ValueError(self._nothing_to_do())
        embeds, dense, first_pass = self._run_views(views, **kwargs)

        seen.update({f"{name}_embeds": values for name, values in embeds.items()})
        size = pixel_values.shape[-2:]
        if local:
            index = torch.arange(len(rows), device=rows.device)
            boxes = None if region_boxes is None else region_boxes[rows]
            masks = None if mask_values is None else mask_values[rows]
            local_embeds = self._pool_dense(dense["region"], size, config.local_pooling, masks, boxes, index)
            seen["local_embeds"] = nn.functional.normalize(local_embeds, dim=-1)
        if pooled:
            rows = seen["pooled_rows"] = self._usable_regions({config.region_pooling}, regions, seen)
            boxes = None if region_boxes is None else region_boxes[rows]
            masks = None if mask_values is None else mask_values[rows]
            pooled_embeds = self._pool_dense(
                dense["whole"], size, config.region_pooling, masks, boxes, region_image_index[rows]
            )
            seen["pooled_embeds"] = nn.functional.normalize(pooled_embeds, dim=-1)
        return seen, first_pass

    @torch.compiler.disable
    def _usable_regions(
        self, needs: set[str], regions: dict[str, torch.Tensor | None], seen: dict[str, Any]
    ) -> torch.Tensor:
        """Numbers of the regions that have what is needed of a mask and a box; others are counted in `seen`."""
        usable = torch.ones(seen["num_regions"], dtype=torch.bool, device=self.device)
        found = {}
        if "mask" in needs and len(usable):
            found["empty_masks"] = self._soft_masks(regions["mask"]).flatten(1).amax(1) > 0
        if "roi" in needs:
            # A box beside the image pools nothing, as one without area does.
            x0, y0, x1, y1 = regions["roi"].float().clamp(0, 1).unbind(-1)
            found["empty_boxes"] = (x1 > x0) & (y1 > y0)
        for reason, whole in found.items():
            # Two views of one batch may miss the same regions.
            missed = len(whole) - int(whole.sum())
            seen["skipped"][reason] = max(missed, seen["skipped"].get(reason, 0))
            usable = usable & whole
        return usable.nonzero().flatten()

    def _warn_of_skipped(self, skipped: dict[str, int]):
        for reason, count in skipped.items():
            before = self._skipped_in_all[reason]
            self._skipped_in_all[reason] += count
            # At 1, 10, 100, ...: a share of bad data shows, and does not fill the log.
            if len(str(before)) < len(str(before + count)) or (count and not before):
                logger.warning(f"{reason}: {before + count} so far. {_SKIPPED[reason]}")

    def _run_views(
        self, views: dict[str, _View], **kwargs
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], Any]:
        """Normalised embeddings and dense maps of each view; those of one image size go through the tower together."""
        passes: dict[tuple, list[str]] = {}
        for name, view in views.items():
            # Without a mask a tower may add no mask tokens, which a mask of zeros cannot say if it has a bias.
            bare = view.mask_values is None and self._stand_in_mask() is None
            passes.setdefault((view.pixel_values.shape[-2:], view.trains, bare), []).append(name)
        embeds, dense, outputs = {}, {}, None
        for (size, trains, bare), names in passes.items():
            names.sort(key=lambda name: not views[name].dense)
            images: list[torch.Tensor] = []
            starts, index = {}, []
            for name in names:
                view = views[name]
                if id(view.pixel_values) not in starts:
                    starts[id(view.pixel_values)] = sum(map(len, images))
                    images.append(view.pixel_values)
                index.append(view.image_index + starts[id(view.pixel_values)])
            masks = None
            if not bare and any(views[name].mask_values is not None for name in names):
                masks = torch.cat([self._masks_of(views[name], size) for name in names])
            rows = {name: len(views[name].image_index) for name in names}
            dense_rows = sum(rows[name] for name in names if views[name].dense)
            with torch.set_grad_enabled(trains and torch.is_grad_enabled()):
                passed = self.get_image_features(
                    torch.cat(images) if len(images) > 1 else images[0],
                    masks,
                    torch.cat(index),
                    return_dense=dense_rows > 0 or any(views[name].dense for name in names),
                    num_dense_rows=dense_rows,
                    return_dict=True,
                    **kwargs,
                )
            outputs = outputs or passed
            parts = nn.functional.normalize(passed.pooler_output, dim=-1).split(list(rows.values()))
            embeds.update(zip(names, parts))
            wanted = [name for name in names if views[name].dense]
            if wanted:
                dense.update(zip(wanted, passed.dense_state.split([rows[name] for name in wanted])))
        return embeds, dense, outputs

    def _stand_in_mask(self) -> float | None:
        """Mask value that has the effect of no mask, if there is one."""
        vision_config = self.config.vision_config
        if vision_config.default_mask == "full":
            return (1 - vision_config.mask_mean) / vision_config.mask_std
        return None if vision_config.mask_patch_bias else 0.0

    def _masks_of(self, view: _View, size: tuple[int, int]) -> torch.Tensor:
        if view.mask_values is not None:
            return view.mask_values
        return view.pixel_values.new_full((len(view.image_index), 1, *size), self._stand_in_mask())

    @torch.compiler.disable
    def objective(self, embeddings: PretrainingEmbeddings) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """
        The loss of embeddings, in several processes that of all of them.

        Args:
            embeddings ([`PretrainingEmbeddings`]): Of one batch, or of several joined.

        Returns:
            The loss, a scalar, and the value of each term before its weight, detached. A term without pairs is in the
            loss as 0, and not in the values.

        Raises:
            ValueError: If no term finds its inputs, or regions and texts cannot be paired.

        Example:
            >>> from modeling_pixclip import PixCLIPForPreTraining
            >>> embeddings = model(**batch, return_embeddings=True)  # doctest: +SKIP
            >>> loss, terms = model.objective(embeddings)  # doctest: +SKIP
        """
        if embeddings.text_ids is None:
            embeddings = replace(embeddings, text_ids=self._row_numbers(embeddings))
        losses: dict[str, torch.Tensor] = {}
        rows: dict[str, int] = {}
        for name in self._terms_with_inputs(embeddings):
            losses[name], rows[name] = self._term_pairs(name, embeddings)
        counts = rows
        if world_size() > 1:
            counts = dict(zip(rows, global_count([*rows.values()], device=embeddings.text_embeds.device).tolist()))
        # Of all processes together, so that one of them counts it.
        embeddings.skipped["empty_batches"] = int(not any(counts.values()) and process_rank() == 0)
        self._warn_of_skipped(embeddings.skipped)
        weights = self.config.term_weights
        loss = sum(weights[name] * value for name, value in losses.items())
        return loss, {name: value.detach() for name, value in losses.items() if counts[name]}

    def _row_numbers(self, embeddings: PretrainingEmbeddings) -> torch.Tensor:
        numbers = torch.arange(len(embeddings.text_embeds), device=embeddings.text_embeds.device)
        if world_size() > 1:
            logger.warning_once(
                "text_ids are missing: in several processes equal texts of different ones count as different, and so as "
                "negatives of each other. PixCLIPDataCollator makes text_ids."
            )
        return numbers + (process_rank() << 32)

    def _terms_with_inputs(self, embeddings: PretrainingEmbeddings) -> list[str]:
        """Terms of the objective whose inputs the batch has, even if there are no rows in them."""
        region = "pooled_embeds" if self.config.hard_negative_features == "region" else "region_embeds"
        hard_negatives = ("hard_negative_text_index", "hard_negative_region_index", region)
        needs = {
            "global": ("region_embeds",),
            "crop": ("crop_embeds",),
            "local": ("local_embeds", "crop_embeds") if self.config.local_target == "crop" else ("local_embeds",),
            "caption_long": ("long_caption_index",),
            "caption_short": ("short_caption_index",),
            "region": ("pooled_embeds",),
            "hard_negative": hard_negatives,
            "text_intra": (),
            "ranking_margin": hard_negatives,
        }
        terms = self.config.term_weights
        found = {name: all(getattr(embeddings, field) is not None for field in needs[name]) for name in terms}
        if world_size() > 1:
            # A process that leaves a term out would leave the others waiting in it.
            processes = global_count([*found.values()], device=embeddings.text_embeds.device).tolist()
            for name, count in zip(found, processes):
                if 0 < count < world_size():
                    raise ValueError(
                        f"{count} of {world_size()} processes have the inputs of the term {name!r} "
                        f"({', '.join(needs[name])}); all have to, if only without rows. PixCLIPDataCollator(processor, "
                        "**model.config.batch_parts) makes all that the objective reads."
                    )
        if not any(found.values()):
            raise ValueError(self._nothing_to_do())
        return [name for name, has in found.items() if has]

    def _term_pairs(self, name: str, embeddings: PretrainingEmbeddings) -> tuple[torch.Tensor, int]:
        """Loss of a term and its number of rows in this process."""
        if name == "text_intra":
            return self._text_intra(embeddings)
        if name in ("hard_negative", "ranking_margin"):
            return self._hard_negatives(name, embeddings)
        if name in ("caption_long", "caption_short"):
            index = embeddings.long_caption_index if name == "caption_long" else embeddings.short_caption_index
            rows = (index >= 0).nonzero().flatten()
            return self._contrast(embeddings, embeddings.whole_embeds[rows], index[rows]), len(rows)
        if name == "local" and self.config.local_target == "crop":
            teacher = embeddings.crop_embeds
            teacher = teacher.detach() if self.config.local_stop_gradient else teacher
            return cosine_distance(embeddings.local_embeds, teacher), len(teacher)
        embeds = getattr(embeddings, _CONTRASTED.get(name, "local_embeds"))
        rows = embeddings.pooled_rows if name == "region" else embeddings.region_rows
        index = self._texts_of_regions(embeddings, "object" if name == "crop" else "region")[rows]
        scale = "logit_scale_region" if name == "region" else "logit_scale"
        return self._contrast(embeddings, embeds, index, scale), len(rows)

    def _texts_of_regions(self, embeddings: PretrainingEmbeddings, kind: str) -> torch.Tensor:
        index, name = embeddings.region_text_index, "region_text_index"
        if kind == "object" and self.config.crop_text == "object" and embeddings.object_text_index is not None:
            index, name = embeddings.object_text_index, "object_text_index"
        if index is None or len(index) != embeddings.num_regions:
            raise ValueError(
                f"{name} has {'no' if index is None else len(index)} entries for {embeddings.num_regions} regions and "
                f"{len(embeddings.text_embeds)} texts; accepted: the text row of each region."
            )
        return index

    def _contrast(
        self,
        embeddings: PretrainingEmbeddings,
        image_embeds: torch.Tensor,
        index: torch.Tensor,
        scale: str = "logit_scale",
    ) -> torch.Tensor:
        return contrastive_loss(
            image_embeds,
            embeddings.text_embeds[index],
            embeddings.scales[scale],
            embeddings.text_ids[index] if self.config.multi_positive else None,
            loss_type=self.config.loss_type,
            logit_bias=embeddings.scales.get("logit_bias"),
            gather=self.config.gather,
        )

    def _text_intra(self, embeddings: PretrainingEmbeddings) -> tuple[torch.Tensor, int]:
        index = self._texts_of_regions(embeddings, "region").unique()
        return text_intra_loss(embeddings.text_embeds[index], embeddings.text_ids[index]), len(index)

    def _hard_negatives(self, name: str, embeddings: PretrainingEmbeddings) -> tuple[torch.Tensor, int]:
        texts, owners = embeddings.hard_negative_text_index, embeddings.hard_negative_region_index
        if self.config.hard_negative_features == "region":
            region_embeds, rows = embeddings.pooled_embeds, embeddings.pooled_rows
        else:
            region_embeds, rows = embeddings.region_embeds, embeddings.region_rows
        positives = self._texts_of_regions(embeddings, self.config.hard_negative_text)[rows]
        # Negatives of regions that were left out go with them.
        row_of = rows.new_full((embeddings.num_regions,), -1)
        row_of[rows] = torch.arange(len(rows), device=rows.device)
        owners = row_of[owners]
        texts, owners = texts[owners >= 0], owners[owners >= 0]
        inputs = (region_embeds, embeddings.text_embeds[positives], embeddings.text_embeds[texts], owners)
        if name == "hard_negative":
            return hard_negative_loss(*inputs, embeddings.scales["logit_scale_hard_negative"]), len(owners)
        loss, margin = ranking_margin_loss(*inputs, self.ranking_margin.clone())
        if self.training:
            self.ranking_margin.copy_(margin.detach())
        return loss, len(owners)

    @torch.compiler.disable
    @torch.no_grad()
    def _pairs(self, embeddings: PretrainingEmbeddings) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of images and texts that belong together, row by row, for evaluation."""
        for image_embeds, rows, kind in (
            (embeddings.region_embeds, embeddings.region_rows, "region"),
            (embeddings.pooled_embeds, embeddings.pooled_rows, "region"),
            (embeddings.crop_embeds, embeddings.region_rows, "object"),
        ):
            if image_embeds is not None:
                return image_embeds, embeddings.text_embeds[self._texts_of_regions(embeddings, kind)[rows]]
        index = embeddings.short_caption_index
        index = embeddings.long_caption_index if index is None else index
        rows = (index >= 0).nonzero().flatten()
        return embeddings.whole_embeds[rows], embeddings.text_embeds[index[rows]]

    def _nothing_to_do(self) -> str:
        return (
            f"No term of the objective found its inputs: weights are {self.config.term_weights}. Make the collator with "
            "what the objective reads, PixCLIPDataCollator(processor, **model.config.batch_parts), or set the weights "
            "of other terms."
        )


__all__ = ["PretrainingObjective"]
