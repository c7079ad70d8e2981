# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Random crop and flip of an image together with its region masks and boxes."""

from __future__ import annotations

import math
import re

import numpy as np
import torch
from PIL import Image, ImageOps

from .region_records import RegionSample
from .regions import to_mask


_SIDE_WORDS = re.compile(r"\b(left|right|clockwise|anticlockwise|counterclockwise)", re.IGNORECASE)


class RegionAugmentation:
    """Crops and flips an image with its masks and boxes, so that each stays on its region.

    A crop that would hide more than 1 - `min_visible` of any region is drawn again, up to ten times; then the image
    stays uncropped. A sample with a text that tells left from right, a caption or a hard negative among them, is never
    flipped. A crop moves regions within the frame and changes their share of it, so texts that tell place or size,
    such as those of `describe_region`, are exact only without cropping, and so are captions that tell what is at the
    edge; the default crop keeps at least 60 % of the image for that reason.

    Args:
        crop_scale (`tuple[float, float]`, defaults to `(0.6, 1.0)`):
            Range of the crop's share of the image's area. `(1.0, 1.0)` with a ratio of `(1.0, 1.0)` does not crop.
        crop_ratio (`tuple[float, float]`, defaults to `(0.8, 1.25)`):
            Range of the crop's aspect ratio (width by height) relative to that of the image, drawn log-uniformly.
        horizontal_flip (`float`, defaults to 0.0):
            Probability of a flip.
        min_visible (`float`, defaults to 0.7):
            Least share of every region that a crop keeps, in (0, 1].

    Raises:
        ValueError: If a range or a probability is out of its limits.

    Example:
        >>> image = Image.new("RGB", (64, 48))
        >>> mask = np.zeros((48, 64), dtype=bool)
        >>> mask[20:30, 20:30] = True
        >>> sample = {"image": image, "image_id": "1", "captions": [], "masks": [mask], "texts": ["a cup"],
        ...           "object_texts": [None], "categories": [None]}
        >>> cropped = RegionAugmentation()(sample)
        >>> cropped["image"].size == cropped["masks"][0].shape[::-1]
        True
    """

    ATTEMPTS = 10

    def __init__(
        self,
        crop_scale: tuple[float, float] = (0.6, 1.0),
        crop_ratio: tuple[float, float] = (0.8, 1.25),
        horizontal_flip: float = 0.0,
        min_visible: float = 0.7,
    ):
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {crop_scale}; accepted are 0 < low <= high <= 1.")
        if not 0 < crop_ratio[0] <= crop_ratio[1]:
            raise ValueError(f"crop_ratio is {crop_ratio}; accepted are 0 < low <= high.")
        if not 0 <= horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is {horizontal_flip}; accepted is a probability, 0 to 1.")
        if not 0 < min_visible <= 1:
            raise ValueError(f"min_visible is {min_visible}; accepted is a share above 0, up to 1.")
        self.crop_scale = crop_scale
        self.crop_ratio = crop_ratio
        self.horizontal_flip = horizontal_flip
        self.min_visible = min_visible

    def __call__(self, sample: RegionSample, generator: torch.Generator | None = None) -> RegionSample:
        """Returns a copy of the sample with another image and with its masks as float32 arrays of that image's size.

        Args:
            sample: Sample of a region reader.
            generator: Where all randomness is from; `PixCLIPDataCollator` gives one that every resume repeats. By
                default torch's global one.

        Raises:
            ValueError: If a mask is malformed, named by its index and the image's id.
        """
        image = sample["image"]
        masks = [
            to_mask(mask, image.height, image.width, f"masks[{i}] of image {sample['image_id']!r}", allow_empty=True)
            for i, mask in enumerate(sample["masks"])
        ]
        boxes = sample.get("boxes", [None] * len(masks))
        x, y, width, height = self._draw_window(image, masks, generator)
        image = image.crop((x, y, x + width, y + height))
        masks = [mask[y : y + height, x : x + width] for mask in masks]
        limits = [width, height, width, height]
        boxes = [None if box is None else np.clip(np.subtract(box, [x, y, x, y]), 0, limits) for box in boxes]
        if not _tells_sides(sample) and _uniform(generator) < self.horizontal_flip:
            image = ImageOps.mirror(image)
            masks = [np.ascontiguousarray(mask[:, ::-1]) for mask in masks]
            boxes = [
                None if box is None else np.array([width, 0, width, 0]) + box[[2, 1, 0, 3]] * [-1, 1, -1, 1]
                for box in boxes
            ]
        augmented = {**sample, "image": image, "masks": masks}
        if "boxes" in sample:
            augmented["boxes"] = [None if box is None else box.tolist() for box in boxes]
        return augmented

    def _draw_window(
        self, image: Image.Image, masks: list[np.ndarray], generator: torch.Generator | None
    ) -> tuple[int, int, int, int]:
        """Draws the crop, as x, y, width and height in pixels."""
        low, high = (math.log(ratio) for ratio in self.crop_ratio)
        for _ in range(self.ATTEMPTS):
            scale = self.crop_scale[0] + _uniform(generator) * (self.crop_scale[1] - self.crop_scale[0])
            stretch = math.exp((low + _uniform(generator) * (high - low)) / 2)
            width = round(image.width * math.sqrt(scale) * stretch)
            height = round(image.height * math.sqrt(scale) / stretch)
            if not (0 < width <= image.width and 0 < height <= image.height):
                continue
            x = int(torch.randint(image.width - width + 1, (), generator=generator))
            y = int(torch.randint(image.height - height + 1, (), generator=generator))
            shown = (mask[y : y + height, x : x + width] for mask in masks)
            if all(part.sum() >= self.min_visible * mask.sum() for part, mask in zip(shown, masks)):
                return x, y, width, height
        return 0, 0, image.width, image.height


def _uniform(generator: torch.Generator | None) -> float:
    return torch.rand((), generator=generator).item()


def _tells_sides(sample: RegionSample) -> bool:
    texts = [*sample["texts"], *sample["object_texts"], *sample["captions"], *sample.get("long_captions", [])]
    for negatives in sample.get("hard_negatives", []):
        texts += negatives
    return any(text is not None and _SIDE_WORDS.search(text) for text in texts)
