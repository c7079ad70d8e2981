# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""PixCLIP and FG-CLIP models as an encoder of benchmarks."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from .encoders import TEXT_KINDS
from .items import EvaluationRegion
from .model_identity import describe_model, model_fingerprint, plain_number, weights_hash
from .region_views import VIEWS, RegionPictures, check_view, prepare_regions, view_rules


class PixCLIPEncoder:
    """Vectors of a `PixCLIPModel` or `PixCLIPForPreTraining`, under every view of `region_views.VIEWS`.

    Texts of the kind "long" take the long text path of a text tower that has one; "region" and "caption" take the other,
    as in training. Images are prepared by the processor. A region of which its frame shows nothing, because a centre crop
    (`resize_mode="shortest_edge"`) cuts it off, has a vector of zeros, which benchmarks count as wrong (`scores.shown`).

    Args:
        model: In any mode and on any device; it is evaluated in eval mode and left as it was.
        processor: A `PixCLIPProcessor`.
        name: Hub id or folder of the model, for `describe`; default: what the model says.
        region_batch_size: Most regions of a forward pass into which masks enter.

    Attributes:
        views: All of `VIEWS`.
        logit_scale: exp of the model's, at most its configuration's `logit_scale_max`.

    Example:
        >>> from processing_pixclip.evaluation.loading import open_encoder
        >>> encoder = open_encoder("runs/coco_regions")  # doctest: +SKIP
        >>> encoder.encode_texts(["a photo of a dog."], "region").shape  # doctest: +SKIP
        (1, 512)
    """

    views = tuple(VIEWS)

    def __init__(self, model: Any, processor: Any, name: str | os.PathLike | None = None, region_batch_size: int = 64):
        if getattr(model.config, "model_type", None) != "pixclip":
            raise ValueError(f"the model is a {type(model).__name__}; PixCLIPEncoder takes a whole PixCLIP model.")
        if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
            raise ValueError(
                f"processor is a {type(processor).__name__}; accepted is a PixCLIPProcessor, with the tokenizer of the "
                "model's text encoder."
            )
        if region_batch_size < 1:
            raise ValueError(f"region_batch_size is {region_batch_size}; accepted are 1 and more.")
        self.model = model
        self.processor = processor
        self.image_processor = processor.image_processor
        self.name = name
        self.region_batch_size = region_batch_size

    @property
    def logit_scale(self) -> float:
        scale = self.model.logit_scale.detach().float().item()
        return min(math.exp(scale), float(self.model.config.logit_scale_max))

    def fingerprint(self) -> str:
        """See `Encoder`. Weights are hashed each time, about a second a GB."""
        return model_fingerprint(self.model, self.processor, weights_hash(self.model), views=view_rules())

    def describe(self) -> dict[str, Any]:
        config, options, processor = self.model.config, self.image_processor, self.processor
        vision, text = config.vision_config, config.text_config
        size = options.size
        return {
            **describe_model(self.model, self.name, weights_hash(self.model)),
            "image_size": [size["height"], size["width"]],
            "patch_size": vision.patch_size,
            "resize_mode": options.resize_mode,
            "resample": int(options.resample),
            "image_mean": plain_number(options.image_mean),
            "image_std": plain_number(options.image_std),
            "mask_mean": plain_number(options.mask_mean),
            "mask_std": plain_number(options.mask_std),
            "default_mask": vision.default_mask,
            "crop_scale": options.crop_scale,
            "text_template": processor.text_template,
            "text_pooling": f"{text.pooling} of {processor.text_pooling}",
            "text_max_length": self._max_length("region"),
            "long_text_max_length": self._max_length("long"),
            "long_text_path": bool(text.long_text_projection),
            "text_backbone": text.backbone_config.model_type,
            "tokenizer": type(processor.tokenizer).__name__,
            "region_pooling": config.region_pooling,
            "logit_scale": self.logit_scale,
        }

    def text_lengths(self, texts: Sequence[str], kind: str) -> list[int]:
        return [len(ids) for ids in self._tokens(texts, kind)["input_ids"]]

    def encode_texts(self, texts: Sequence[str], kind: str) -> np.ndarray:
        self.model.text_model._check_backbone("texts go through one")
        batch = self.processor.pad_tokens(self._tokens(texts, kind))
        inputs = {name: torch.from_numpy(values).to(self.model.device) for name, values in batch.items()}
        inputs["long_text_mask"] = torch.full((len(texts),), kind == "long", device=self.model.device)
        return self._run(self.model.get_text_features, **inputs)

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        pixels = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return self._run(self.model.get_image_features, self._to_model(pixels))

    def encode_regions(
        self, images: Sequence[Image.Image], regions: Sequence[Sequence[EvaluationRegion]], view: str
    ) -> np.ndarray:
        """See `Encoder`. Each image is prepared once, and passes the tower once where no mask enters."""
        check_view(view, self.views, type(self.model).__name__)
        counts = [len(group) for group in regions]
        if not sum(counts):
            return np.empty((0, self.model.config.projection_dim), dtype=np.float32)
        if view == "full":
            return np.repeat(self.encode_images(images), counts, axis=0)
        if VIEWS[view].picture:
            return self._encode_pictures(images, regions, view)
        # A context crop does not hang on how the whole image is placed, and no centre crop must cut its region off.
        crops = {"crops": True, "resize_mode": "squash"} if view == "crop+mask" else {}
        tensors = prepare_regions(self.image_processor, images, regions, **crops)
        boxes, index = tensors["region_boxes"], tensors["region_image_index"]
        rows = (boxes[:, 2] > boxes[:, 0]).nonzero().flatten()
        vectors = np.zeros((len(boxes), self.model.config.projection_dim), dtype=np.float32)
        # Without masks in the tower there is one pass an image, however many regions.
        size = self.region_batch_size if VIEWS[view].mask else max(1, len(rows))
        pooling = VIEWS[view].pooling
        for part in rows.split(size):
            if not len(part):
                continue
            if view == "crop+mask":
                inputs = (tensors["crop_pixel_values"][part], tensors["crop_mask_values"][part])
                found = self._run(self.model.get_image_features, *map(self._to_model, inputs))
            else:
                own, image = index[part].unique(return_inverse=True)
                inputs = [tensors["pixel_values"][own], tensors["mask_values"][part]]
                inputs = [*map(self._to_model, inputs), image.to(self.model.device)]
                if pooling is None:
                    found = self._run(self.model.get_image_features, *inputs)
                else:
                    found = self._run(
                        self.model.get_region_features,
                        *inputs,
                        boxes[part].to(self.model.device),
                        pooling=pooling,
                        mask_input=VIEWS[view].mask,
                    )
            vectors[part.numpy()] = found
        return vectors

    def _encode_pictures(self, images: Sequence, regions: Sequence[Sequence[EvaluationRegion]], view: str):
        """Regions each of which is a picture of its own."""
        squash = {"resize_mode": "squash"} if view == "padded-crop+mask" else {}
        colour = np.broadcast_to(np.asarray(self.image_processor.image_mean) * 255, 3)
        prepared, vectors, width = [], [], self.model.config.projection_dim

        def flush():
            shown = [place for place, tensors in enumerate(prepared) if tensors is not None]
            rows = np.zeros((len(prepared), width), dtype=np.float32)
            if shown:
                inputs = [torch.cat([prepared[place][name] for place in shown]) for name in prepared[shown[0]]]
                rows[shown] = self._run(self.model.get_image_features, *map(self._to_model, inputs))
            vectors.append(rows)
            prepared.clear()

        for image, group in zip(images, regions, strict=True):
            pictures = RegionPictures(image, tuple(int(round(value)) for value in colour))
            for region in group:
                # One at a time: of large photos only the small tensors are kept.
                picture, mask = pictures.render(region, view)
                if mask is None:
                    tensors = self.image_processor(picture, return_tensors="pt", **squash)
                    prepared.append({"pixel_values": tensors["pixel_values"]})
                else:
                    tensors = self.image_processor(
                        picture, masks=mask, allow_empty=True, return_tensors="pt", **squash
                    )
                    hidden = not tensors["region_boxes"].any()
                    names = ("pixel_values", "mask_values")
                    prepared.append(None if hidden else {name: tensors[name] for name in names})
                if len(prepared) == self.region_batch_size:
                    flush()
        if prepared:
            flush()
        return np.concatenate(vectors)

    def _tokens(self, texts: Sequence[str], kind: str) -> dict[str, list[list[int]]]:
        return self.processor.tokenize_text(list(texts), self._max_length(kind))

    def _max_length(self, kind: str) -> int:
        if kind not in TEXT_KINDS:
            raise ValueError(f"kind of text is {kind!r}; accepted are {', '.join(map(repr, TEXT_KINDS))}.")
        return self.model.text_model.text_max_length(self.processor, long_text=kind == "long")

    def _to_model(self, values: torch.Tensor) -> torch.Tensor:
        # The model's own dtype may be that of its text backbone.
        return values.to(self.model.device, self.model.visual_projection.weight.dtype)

    def _run(self, features: Any, *inputs, **options) -> np.ndarray:
        from modeling_pixclip.encoding import evaluating

        with evaluating(self.model):
            outputs = features(*inputs, **options, return_dict=True)
        return outputs.pooler_output.float().cpu().numpy()


__all__ = ["PixCLIPEncoder"]
