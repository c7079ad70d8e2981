# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Masks of regions that a source gives as boxes, by SAM 2."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..regions import encode_rle
from .records import ImageWork, SourceRegion


# Images that the encoder sees at a time, and boxes of one image that the decoder does.
_IMAGES, _BOXES = 4, 64


class BoxMasks:
    """SAM 2 with boxes as prompts: one mask a box, cut off at the box.

    The model is `Sam2Model`; pictures are prepared as `Sam2Processor` does (squeezed to the model's square, ImageNet
    mean and deviation), which itself needs torchvision. The encoder sees each image once, whatever number of boxes it has.

    Args:
        model: Hub id or folder of a SAM 2 checkpoint in the format of transformers, or a `Sam2Model`.
        device: Device to run on.

    Raises:
        OSError: If the checkpoint is not there.

    Example:
        >>> masks = BoxMasks("facebook/sam2.1-hiera-large", "cuda")  # doctest: +SKIP
        >>> masks.segment([photo], [[(10, 20, 200, 180)]])[0][0].shape == (photo.height, photo.width)  # doctest: +SKIP
        True
    """

    def __init__(self, model: str | os.PathLike | Any, device: str = "cpu"):
        if isinstance(model, (str, os.PathLike)):
            from transformers import Sam2Model

            model = Sam2Model.from_pretrained(model, dtype=torch.float32)
        self.model = model.to(device).eval()
        self.device = torch.device(device)

    def __call__(self, works: Iterable[ImageWork | Any]) -> Iterator[ImageWork | Any]:
        """Gives masks to the regions that have none and are not dropped, and `mask_source` `"sam2"`.

        A region in whose box SAM 2 finds nothing is dropped as `"empty_mask"` and stays a box.

        Args:
            works: Images; anything else is passed on.

        Yields:
            The same, in their order.
        """
        for some in _groups(works, _IMAGES):
            waiting = [
                work for work in some if isinstance(work, ImageWork) and any(map(_needs_mask, work.source.regions))
            ]
            boxes = [[region.box for region in work.source.regions if _needs_mask(region)] for work in waiting]
            found = self.segment([work.picture() for work in waiting], boxes) if waiting else []
            for work, masks in zip(waiting, found, strict=True):
                left = iter(masks)
                regions = [
                    _with_mask(region, next(left)) if _needs_mask(region) else region for region in work.source.regions
                ]
                work.source = dataclasses.replace(work.source, regions=tuple(regions))
            yield from some

    @torch.inference_mode()
    def segment(
        self, pictures: Sequence[Image.Image], boxes: Sequence[Sequence[Sequence[float]]]
    ) -> list[list[np.ndarray]]:
        """Masks of boxes.

        Args:
            pictures: Images, of mode RGB.
            boxes: For each, its boxes, xyxy in pixels; at least one.

        Returns:
            For each image and box an array of shape (height, width), bool; all `False` where nothing was found.
        """
        embeddings = self.model.get_image_embeddings(self._pixel_values(pictures))
        side = self._side()
        found = []
        for number, (picture, of_image) in enumerate(zip(pictures, boxes, strict=True)):
            own = [embedding[number : number + 1] for embedding in embeddings]
            scale = torch.tensor([side / picture.width, side / picture.height] * 2, dtype=torch.float32)
            masks = []
            for some in _groups(of_image, _BOXES):
                prompts = torch.tensor(some, dtype=torch.float32) * scale
                output = self.model(
                    image_embeddings=own, input_boxes=prompts[None].to(self.device), multimask_output=False
                )
                logits = output.pred_masks[0].float()
                for box, logit in zip(some, logits, strict=True):
                    full = torch.nn.functional.interpolate(
                        logit[None], size=(picture.height, picture.width), mode="bilinear", align_corners=False
                    )
                    masks.append(_cut((full[0, 0] > 0).cpu().numpy(), box))
            found.append(masks)
        return found

    def _side(self) -> int:
        size = self.model.config.prompt_encoder_config.image_size
        return size if isinstance(size, int) else size[0]

    def _pixel_values(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        side = self._side()
        squeezed = [np.asarray(picture.resize((side, side), Image.Resampling.BILINEAR)) for picture in pictures]
        values = torch.from_numpy(np.stack(squeezed)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (
            torch.tensor(numbers, device=self.device)[:, None, None]
            for numbers in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        return ((values - mean) / std).to(self.model.dtype)


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    left = iter(items)
    while group := list(islice(left, size)):
        yield group


def _needs_mask(region: SourceRegion) -> bool:
    return region.mask is None and region.dropped is None


def _cut(mask: np.ndarray, box: Sequence[float]) -> np.ndarray:
    left, top, right, bottom = (round(side) for side in box)
    inside = np.zeros_like(mask)
    inside[top:bottom, left:right] = mask[top:bottom, left:right]
    return inside


def _with_mask(region: SourceRegion, mask: np.ndarray) -> SourceRegion:
    if not mask.any():
        return dataclasses.replace(region, dropped="empty_mask")
    return dataclasses.replace(region, mask=encode_rle(mask), mask_source="sam2")
