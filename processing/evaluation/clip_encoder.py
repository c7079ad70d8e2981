# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""CLIP-like models of Transformers (CLIP, SigLIP, MetaCLIP 2, ALIGN, Chinese-CLIP, AltCLIP, ...) as encoders."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..image_processing_pixclip import PixCLIPImageProcessor
from .encoders import TEXT_KINDS
from .items import EvaluationRegion
from .model_identity import describe_model, model_fingerprint, plain_number, weights_hash
from .region_views import VIEWS, RegionPictures, check_view, prepare_regions, view_rules
from .text_encoder import described_limit, lengths_when_cut, token_limit


# Tokens that texts were padded to in training, by model type. SigLIP sees its padding, without an attention mask, and
# pools the last place (google-research/big_vision); ALIGN's processor pads so.
_PADDED_TO = {"siglip": 64, "siglip2": 64, "align": 64}
_SEES_PADDING = ("siglip", "siglip2")


class ClipEncoder:
    """Vectors of a Transformers model whose `get_image_features` and `get_text_features` give one vector an input.

    Models that give one for each patch or token there (FLAVA) are refused.

    A region is a picture that is made for it (`RegionPictures`), which the model's own processor prepares. Models of
    CLIP's layout (a ViT with `post_layernorm`, and a linear `visual_projection`) also have the views "mask-pooled" and
    "roi": the last layer's patch tokens through both, over the whole image squashed to the model's size, so that no
    centre crop cuts a region off.

    Args:
        model: In any mode and on any device; it is evaluated in eval mode and left as it was.
        processor: Its processor, with `image_processor` and `tokenizer`.
        name: Hub id or folder of the model, for `describe`; default: what the model says.
        region_batch_size: Most pictures of a forward pass.

    Attributes:
        views: "full", "blur", "box-crop", "masked-crop", and for CLIP's layout "mask-pooled" and "roi".

    Example:
        >>> from processing_pixclip.evaluation.loading import open_encoder
        >>> encoder = open_encoder("openai/clip-vit-base-patch16")  # doctest: +SKIP
        >>> encoder.views  # doctest: +SKIP
        ('full', 'blur', 'box-crop', 'masked-crop', 'mask-pooled', 'roi')
    """

    def __init__(self, model: Any, processor: Any, name: str | os.PathLike | None = None, region_batch_size: int = 64):
        for method in ("get_image_features", "get_text_features"):
            if not hasattr(model, method):
                raise ValueError(
                    f"{type(model).__name__} has no {method}; ClipEncoder takes models of images and texts."
                )
        for part in ("image_processor", "tokenizer"):
            if getattr(processor, part, None) is None:
                raise ValueError(
                    f"processor is a {type(processor).__name__} without {part}; pass the processor of the whole model."
                )
        if region_batch_size < 1:
            raise ValueError(f"region_batch_size is {region_batch_size}; accepted are 1 and more.")
        self.model = model
        self.processor = processor
        self.name = name
        self.region_batch_size = region_batch_size
        self.views = ("full", "blur", "box-crop", "masked-crop") + (("mask-pooled", "roi") if self._is_clip() else ())

    def _is_clip(self) -> bool:
        vision = getattr(self.model, "vision_model", None)
        embeddings = getattr(vision, "embeddings", None)
        return (
            isinstance(getattr(self.model, "visual_projection", None), nn.Linear)
            and isinstance(getattr(vision, "post_layernorm", None), nn.LayerNorm)
            and hasattr(embeddings, "class_embedding")
            and isinstance(getattr(self.model.config.vision_config, "image_size", None), int)
        )

    @property
    def logit_scale(self) -> float:
        """exp of the model's `logit_scale`, or 1 / `temperature` (ALIGN).

        Raises:
            ValueError: If the model has neither.
        """
        if hasattr(self.model, "logit_scale"):
            return self.model.logit_scale.detach().float().exp().item()
        if hasattr(self.model, "temperature"):
            return 1 / self.model.temperature.detach().float().item()
        raise ValueError(
            f"{type(self.model).__name__} has neither logit_scale nor temperature, which this protocol needs for "
            "probabilities; take a protocol that compares cosines."
        )

    def fingerprint(self) -> str:
        """See `Encoder`. Weights are hashed each time, about a second a GB."""
        more = {"padded_to": self._padded_to, "views": view_rules()}
        return model_fingerprint(self.model, self.processor, weights_hash(self.model), **more)

    def describe(self) -> dict[str, Any]:
        options, vision = self.processor.image_processor, getattr(self.model.config, "vision_config", None)
        wanted = ("size", "crop_size", "do_center_crop", "resample", "image_mean", "image_std")
        image = {name: getattr(options, name, None) for name in wanted}
        pooled = {"pooled_views": f"whole image squashed to {self._image_size} pixels"} if self._is_clip() else {}
        return {
            **describe_model(self.model, self.name, weights_hash(self.model)),
            "image_size": _plain_size(image["crop_size"] if image["do_center_crop"] else image["size"]),
            "patch_size": plain_number(getattr(vision, "patch_size", None)),
            "resize_mode": _resize_mode(options),
            "resample": None if image["resample"] is None else int(image["resample"]),
            "image_mean": plain_number(image["image_mean"]),
            "image_std": plain_number(image["image_std"]),
            "text_template": "{text}",
            "text_max_length": described_limit(self._max_length),
            "text_padding": "longest" if self._padded_to is None else f"to {self._padded_to}",
            "tokenizer": type(self.processor.tokenizer).__name__,
            "pooling": "the model's own",
            **pooled,
        }

    @property
    def _image_size(self) -> int:
        return self.model.config.vision_config.image_size

    @property
    def _padded_to(self) -> int | None:
        length = _PADDED_TO.get(self.model.config.model_type)
        return None if length is None else min(length, self._max_length)

    @property
    def _max_length(self) -> int:
        """Tokens at which a text is cut: what both tokenizer and table of positions take."""
        limit = token_limit(self.model, self.processor.tokenizer)
        return min(limit, _PADDED_TO.get(self.model.config.model_type, limit))

    def text_lengths(self, texts: Sequence[str], kind: str) -> list[int]:
        lengths = lengths_when_cut(self.processor.tokenizer, texts, self._max_length)
        return lengths if self._padded_to is None else [self._padded_to] * len(texts)

    def encode_texts(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """See `Encoder`. Texts of all kinds go one way, in batches padded as the model was trained."""
        if kind not in TEXT_KINDS:
            raise ValueError(f"kind of text is {kind!r}; accepted are {', '.join(map(repr, TEXT_KINDS))}.")
        padded = {"padding": "longest" if self._padded_to is None else "max_length"}
        tokens = self.processor.tokenizer(
            list(texts), truncation=True, max_length=self._max_length, return_tensors="pt", **padded
        )
        if self.model.config.model_type in _SEES_PADDING:
            tokens.pop("attention_mask", None)
        return self._run(self.model.get_text_features, tokens)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        inputs = self.processor.image_processor(images=list(images), return_tensors="pt")
        return self._run(self.model.get_image_features, inputs)

    def encode_regions(
        self, images: Sequence[Image.Image], regions: Sequence[Sequence[EvaluationRegion]], view: str
    ) -> np.ndarray:
        """See `Encoder`."""
        check_view(view, self.views, type(self.model).__name__)
        counts = [len(group) for group in regions]
        if view == "full" or not sum(counts):
            return np.repeat(self.encode_images(images), counts, axis=0)
        if VIEWS[view].pooling is not None:
            return self._encode_pooled(images, regions, VIEWS[view].pooling)
        mean = getattr(self.processor.image_processor, "image_mean", None) or 0.5
        colour = tuple(int(round(value)) for value in np.broadcast_to(np.asarray(mean) * 255, 3))
        prepared: list[dict[str, torch.Tensor]] = []
        vectors: list[np.ndarray] = []

        def flush() -> None:
            inputs = {name: torch.cat([tensors[name] for tensors in prepared]) for name in prepared[0]}
            vectors.append(self._run(self.model.get_image_features, inputs))
            prepared.clear()

        for image, group in zip(images, regions, strict=True):
            maker = RegionPictures(image, colour)
            for region in group:
                # One at a time: of large photos only the small tensors are kept.
                picture = maker.render(region, view)[0]
                inputs = self.processor.image_processor(images=[picture], return_tensors="pt")
                prepared.append({name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)})
                if len(prepared) == self.region_batch_size:
                    flush()
        if prepared:
            flush()
        return np.concatenate(vectors)

    def _encode_pooled(self, images: Sequence, regions: Sequence[Sequence[EvaluationRegion]], pooling: str):
        from modeling_pixclip.region_pooling import mask_pool, roi_align, soft_masks

        options = self.processor.image_processor
        normalised = getattr(options, "do_normalize", True)
        squash = PixCLIPImageProcessor(
            size=self._image_size,
            resize_mode="squash",
            do_rescale=getattr(options, "do_rescale", True),
            rescale_factor=getattr(options, "rescale_factor", 1 / 255),
            # Without them nothing is normalised but the masks.
            image_mean=plain_number(options.image_mean) if normalised else [0.0] * 3,
            image_std=plain_number(options.image_std) if normalised else [1.0] * 3,
            resample=options.resample,
        )
        inputs = prepare_regions(squash, images, regions)
        device, index = self.model.device, inputs["region_image_index"]

        def pooled(pixel_values: torch.Tensor) -> torch.Tensor:
            states = self.model.vision_model(pixel_values=pixel_values).last_hidden_state[:, 1:]
            states = self.model.vision_model.post_layernorm(states)
            side = self._image_size // self.model.config.vision_config.patch_size
            grid = states.transpose(1, 2).unflatten(2, (side, side))
            if pooling == "mask":
                soft = soft_masks(inputs["mask_values"].to(device), squash.mask_mean, squash.mask_std)
                vectors = mask_pool(grid, soft, index.to(device))
            else:
                vectors = roi_align(grid, inputs["region_boxes"].to(device) * side, index.to(device)).flatten(1)
            return self.model.visual_projection(vectors)

        return self._run(pooled, {"pixel_values": inputs["pixel_values"]})

    def _run(self, features: Any, inputs: Any) -> np.ndarray:
        """Vectors of what a processor made; of that only what the method takes."""
        from modeling_pixclip.encoding import evaluating

        accepted = inspect.signature(features).parameters
        inputs = {name: values.to(self.model.device) for name, values in inputs.items() if name in accepted}
        inputs = {
            name: values.to(self.model.dtype) if values.is_floating_point() else values
            for name, values in inputs.items()
        }
        with evaluating(self.model):
            outputs = features(**inputs)
        # A tensor in some models and releases, an output with the projected vector as pooler_output in others.
        vectors = outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output
        if vectors.ndim != 2:
            raise ValueError(
                f"{type(self.model).__name__} gives features of shape {tuple(vectors.shape)}; accepted is one vector an "
                "input, (N, D)."
            )
        return vectors.float().cpu().numpy()


def _resize_mode(options: Any) -> str:
    """How an image processor brings an image to size, in words."""
    if not getattr(options, "do_resize", True):
        return "none"
    if getattr(options, "max_num_patches", None) is not None:
        return f"aspect ratio kept, at most {options.max_num_patches} patches"
    edge = "shortest_edge" in (_plain_size(getattr(options, "size", None)) or {})
    return ("shortest_edge" if edge else "squash") + (
        " and centre crop" if getattr(options, "do_center_crop", False) else ""
    )


def _plain_size(size: Any) -> Any:
    if size is None:
        return None
    return {name: plain_number(value) for name, value in dict(size).items() if value is not None}


__all__ = ["ClipEncoder"]
