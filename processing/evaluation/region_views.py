# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Ways of showing a region to a model, and the pictures that they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageFilter

from ..regions import box_to_mask, check_box, mask_to_box, to_mask
from .items import EvaluationRegion


# Of PixCLIP's official evaluation (StuHude/PixCLIP, eval/COCO): white border of the picture, side of the window.
PADDING = 600
PADDED_CROP_SCALE = 1.5
# Of ReCLIP and of PixCLIP's evaluation on RefCOCO (StuHude/PixCLIP, eval/rec_zs_test).
BLUR_RADIUS = 100
# Of a box crop, on each side, in units of the box.
BOX_MARGIN = 0.15

# Raised when a picture comes out otherwise by code alone.
_VIEWS_VERSION = 1


def view_rules() -> list[float]:
    """What the pictures hang on, for fingerprints.

    Example:
        >>> view_rules()
        [1, 600, 1.5, 100, 0.15]
    """
    return [_VIEWS_VERSION, PADDING, PADDED_CROP_SCALE, BLUR_RADIUS, BOX_MARGIN]


@dataclass(frozen=True, slots=True)
class View:
    """One way of showing a region.

    Attributes:
        summary: What the model gets, in one line.
        picture: Whether the model gets a picture that is made for the region by `RegionPictures.render`. Otherwise it
            gets the whole image, or, of a processor that makes one, the context crop.
        mask: Whether the mask enters the tower.
        pooling: How the region's vector is made from the dense map; `None` for the image's vector.
    """

    summary: str
    picture: bool = False
    mask: bool = False
    pooling: Literal["mask", "roi"] | None = None


VIEWS: dict[str, View] = {
    "full+mask": View("whole image, the mask enters the tower", mask=True),
    "crop+mask": View("context crop of the processor, the mask enters the tower", mask=True),
    "padded-crop+mask": View(
        f"window of {PADDED_CROP_SCALE:g} times the longer side of the box, out of the image with a white border of "
        f"{PADDING} pixels, the mask enters the tower (PixCLIP's evaluation)",
        picture=True,
        mask=True,
    ),
    "blur+mask": View(
        f"whole image, blurred by a Gaussian of radius {BLUR_RADIUS} outside the mask, the mask enters the tower",
        picture=True,
        mask=True,
    ),
    "full": View("whole image without the mask: the control that knows nothing of the region"),
    "blur": View(f"whole image, blurred by a Gaussian of radius {BLUR_RADIUS} outside the mask", picture=True),
    "box-crop": View(f"box with a margin of {100 * BOX_MARGIN:g} % on each side", picture=True),
    "masked-crop": View(
        f"box with a margin of {100 * BOX_MARGIN:g} % on each side, all outside the mask in the processor's mean colour",
        picture=True,
    ),
    "mask-pooled": View("dense map of the whole image, mean under the mask", pooling="mask"),
    "conditioned-mask-pooled": View(
        "dense map of the whole image into which the mask enters, mean under the mask", mask=True, pooling="mask"
    ),
    "roi": View("dense map of the whole image, RoIAlign of the box", pooling="roi"),
}


def check_view(view: str, views: tuple[str, ...], model: str) -> None:
    """Raises a `ValueError` if a view is none of those that a model supports.

    Example:
        >>> check_view("full", ("full", "box-crop"), "CLIPModel")
    """
    if view not in VIEWS:
        raise ValueError(f"view is {view!r}, which there is not; {model} supports {', '.join(map(repr, views))}.")
    if view not in views:
        raise ValueError(
            f"{model} does not support the view {view!r} ({VIEWS[view].summary}); it supports "
            f"{', '.join(map(repr, views)) or 'none, as it reads texts alone'}. Name those in the protocol's field views."
        )


def region_mask(region: EvaluationRegion, height: int, width: int) -> np.ndarray:
    """Mask of a region, that of its box where it has none.

    Returns:
        Array of shape (height, width), float32, values in 0..1.

    Raises:
        ValueError: If the region does not fit the image; names the region.

    Example:
        >>> from pathlib import Path
        >>> from processing_pixclip.evaluation.items import EvaluationImage
        >>> region = EvaluationRegion("1.jpg#7", EvaluationImage("1.jpg", Path("1.jpg")), box=(0, 0, 1, 2))
        >>> region_mask(region, height=2, width=3)
        array([[1., 0., 0.],
               [1., 0., 0.]], dtype=float32)
    """
    if region.mask is None:
        return box_to_mask(region.box, height, width, f"box of region {region.key!r}")
    return to_mask(region.mask, height, width, f"mask of region {region.key!r}")


def region_box(region: EvaluationRegion, height: int, width: int) -> np.ndarray:
    """Box of a region, that of its mask where it has none: shape (4,), float64, xyxy in pixels; errors as `region_mask`.

    Example:
        >>> from pathlib import Path
        >>> from processing_pixclip.evaluation.items import EvaluationImage
        >>> mask = {"size": [2, 3], "counts": [2, 2, 2]}
        >>> region_box(EvaluationRegion("1.jpg#7", EvaluationImage("1.jpg", Path("1.jpg")), mask), height=2, width=3)
        array([1., 0., 2., 2.])
    """
    if region.box is None:
        return mask_to_box(region_mask(region, height, width))
    return check_box(region.box, height, width, f"box of region {region.key!r}")


def prepare_regions(
    image_processor: Any, images: Sequence[Image.Image], regions: Sequence[Sequence[EvaluationRegion]], **options: Any
) -> dict[str, torch.Tensor]:
    """What PixCLIP's image processor makes of images and their regions; masks are decoded one at a time.

    Args:
        image_processor: A `PixCLIPImageProcessor`.
        images: B images, mode RGB.
        regions: Those of each image.
        options: More of the processor's options, for example `crops`.

    Returns:
        Its tensors. A region of which the frame shows nothing has zeros in `region_boxes`.

    Raises:
        ValueError: If a region does not fit its image or is empty; names the region.

    Example:
        >>> from pathlib import Path
        >>> from processing_pixclip import PixCLIPImageProcessor
        >>> from processing_pixclip.evaluation.items import EvaluationImage
        >>> region = EvaluationRegion("1.jpg#7", EvaluationImage("1.jpg", Path("1.jpg")), box=(0, 0, 50, 20))
        >>> prepare_regions(PixCLIPImageProcessor(size=32), [Image.new("RGB", (100, 80))], [[region]])["region_boxes"]
        tensor([[0.0000, 0.0000, 0.5000, 0.2500]])
    """
    flat = [(region, image) for image, group in zip(images, regions, strict=True) for region in group]
    given: dict[str, Any] = {}
    if any(region.mask is not None for region, _ in flat):
        given["masks"] = [
            [
                region_mask(region, image.height, image.width) if region.mask is None else region.mask
                for region in group
            ]
            for image, group in zip(images, regions, strict=True)
        ]
    if any(region.box is not None for region, _ in flat):
        given["boxes"] = [[region.box for region in group] for group in regions]
    try:
        tensors = image_processor(list(images), **given, allow_empty=True, return_tensors="pt", **options)
    except ValueError as error:
        found = re.search(r"\b(?:masks|boxes)\[(\d+)\]\[(\d+)\]", str(error))
        if found is None:
            raise
        region = regions[int(found[1])][int(found[2])]
        raise ValueError(f"{error} It is region {region.key!r} of {region.image.path}.") from error
    for row in (tensors["region_boxes"][:, 2] <= tensors["region_boxes"][:, 0]).nonzero().flatten().tolist():
        # The frame may cut a region off; one that is empty to begin with is an error.
        region, image = flat[row]
        region_mask(region, image.height, image.width)
        region_box(region, image.height, image.width)
    return tensors


class RegionPictures:
    """Pictures of the regions of one image. What they share is made once.

    Args:
        image: The image, mode RGB.
        mean_colour: For "masked-crop", 0..255 a channel: what becomes 0 once the processor has normalised it.

    Example:
        >>> from pathlib import Path
        >>> from processing_pixclip.evaluation.items import EvaluationImage
        >>> region = EvaluationRegion("1.jpg#7", EvaluationImage("1.jpg", Path("1.jpg")), box=(40, 20, 60, 40))
        >>> picture, mask = RegionPictures(Image.new("RGB", (100, 80))).render(region, "box-crop")
        >>> picture.size, mask
        ((26, 26), None)
    """

    def __init__(self, image: Image.Image, mean_colour: tuple[int, int, int] = (123, 117, 104)):
        self.image = image
        self.mean_colour = mean_colour
        self._blurred: Image.Image | None = None

    def render(self, region: EvaluationRegion, view: str) -> tuple[Image.Image, np.ndarray | None]:
        """Picture of a region under a view.

        Args:
            region: The region.
            view: One of `VIEWS` with `picture`, or one that shows the whole image.

        Returns:
            The picture, mode RGB, and the mask that enters the tower with it, (height, width) of the picture, float32 in
            0..1, or `None` where none enters.

        Raises:
            ValueError: If the view is of another kind, or the region does not fit the image.
        """
        height, width = self.image.height, self.image.width
        if view == "full":
            return self.image, None
        if view == "full+mask":
            return self.image, region_mask(region, height, width)
        if view in ("blur", "blur+mask"):
            mask = region_mask(region, height, width)
            return self._blur_outside(mask), mask if view == "blur+mask" else None
        if view == "padded-crop+mask":
            return self._padded_crop(region_mask(region, height, width), region_box(region, height, width))
        if view in ("box-crop", "masked-crop"):
            window = _margin_box(region_box(region, height, width), height, width)
            crop = self.image.crop(window)
            if view == "masked-crop":
                inside = Image.fromarray(_alpha(region_mask(region, height, width))).crop(window)
                crop = Image.composite(crop, Image.new("RGB", crop.size, self.mean_colour), inside)
            return crop, None
        raise ValueError(f"the view {view!r} is no picture that is made of an image and a region.")

    def _blur_outside(self, mask: np.ndarray) -> Image.Image:
        if self._blurred is None:
            # PIL's filter is a few box filters: its cost does not grow with the radius.
            self._blurred = self.image.filter(ImageFilter.GaussianBlur(BLUR_RADIUS))
        return Image.composite(self.image, self._blurred, Image.fromarray(_alpha(mask)))

    def _padded_crop(self, mask: np.ndarray, box: np.ndarray) -> tuple[Image.Image, np.ndarray]:
        left, top, right, bottom = window = padded_crop_window(box, *mask.shape)
        # The border is only made where the window reaches into it.
        picture = Image.new("RGB", (right - left, bottom - top), (255, 255, 255))
        height, width = mask.shape
        inner = (max(0, left), max(0, top), min(width, right), min(height, bottom))
        picture.paste(self.image.crop(inner), (inner[0] - left, inner[1] - top))
        cut = np.zeros((window[3] - window[1], window[2] - window[0]), dtype=np.float32)
        cut[inner[1] - top : inner[3] - top, inner[0] - left : inner[2] - left] = mask[
            inner[1] : inner[3], inner[0] : inner[2]
        ]
        return picture, cut


def padded_crop_window(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """Window of PixCLIP's evaluation: a square around the box, clipped at the border of 600 pixels around the image.

    Its side is 1.5 times the longer side of the box; edges are rounded to whole pixels.

    Args:
        box: xyxy in pixels, shape (4,).
        height: Height of the image.
        width: Width of the image.

    Returns:
        xyxy in pixels of the image, so that a window that reaches into the border has negative edges, or such beyond its
        width and height.

    Example:
        >>> padded_crop_window(np.array([0, 0, 20, 10]), height=100, width=100)
        (-5, -10, 25, 20)
    """
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = PADDED_CROP_SCALE * max(box[2] - box[0], box[3] - box[1]) / 2
    left, top = (max(-PADDING, round(centre - half)) for centre in (x, y))
    right = max(left + 1, min(width + PADDING, round(x + half)))
    bottom = max(top + 1, min(height + PADDING, round(y + half)))
    return left, top, right, bottom


def _margin_box(box: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    margin_x, margin_y = BOX_MARGIN * (box[2] - box[0]), BOX_MARGIN * (box[3] - box[1])
    left, top = max(0, round(box[0] - margin_x)), max(0, round(box[1] - margin_y))
    right, bottom = min(width, round(box[2] + margin_x)), min(height, round(box[3] + margin_y))
    # A box narrower than a pixel still shows one.
    left, top = min(left, width - 1), min(top, height - 1)
    return left, top, max(left + 1, right), max(top + 1, bottom)


def _alpha(mask: np.ndarray) -> np.ndarray:
    return np.rint(mask * 255).astype(np.uint8)


__all__ = [
    "VIEWS",
    "RegionPictures",
    "View",
    "check_view",
    "padded_crop_window",
    "prepare_regions",
    "region_box",
    "region_mask",
    "view_rules",
]
