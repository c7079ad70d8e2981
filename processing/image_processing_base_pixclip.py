# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the backends of the image processor share: all but the resampling of the image."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, SizeDict

from .frame_geometry import RESIZE_MODES, FrameGeometry, resize_by_pil
from .image_reading import MAX_IMAGE_PIXELS, load_image
from .regions import as_box_list, as_mask_list, box_to_mask, check_box, mask_to_box, to_mask


# Keys that the library writes into a saved configuration beside the options.
_SERVICE_KEYS = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map"}

# Where a saved folder's code has the class of each backend.
_SAVED_CODE = {
    "torchvision": "image_processing_pixclip.PixCLIPImageProcessor",
    "pil": "image_processing_pixclip.PixCLIPImageProcessorPil",
}


class _RegionNotVisible(ValueError):
    """A region of which the processed frame shows nothing."""


class PixCLIPImageProcessorKwargs(TypedDict, total=False):
    """Options of `PixCLIPImageProcessor`, at construction and per call.

    Attributes:
        do_resize (`bool`, defaults to `True`):
            Whether to bring images and masks to `size`. If not, all images of a call must have the same size.
        size (`dict`, defaults to `{"height": 224, "width": 224}`):
            Height and width of the processed frame, in pixels. An int means a square.
        resize_mode (`str`, defaults to `"squash"`):
            "squash" resizes to `size` whatever the aspect ratio (as PixCLIP's code does); "shortest_edge" keeps the
            aspect ratio, covers the frame and crops it around the centre (as CLIP does); "letterbox" keeps the aspect
            ratio, fits into the frame, centred, and pads with `image_mean` (0 once normalised) and mask 0.
        resample (`int` or `PIL.Image.Resampling`, defaults to `BICUBIC`):
            Filter for images. Masks are always resampled bilinearly as floats, antialiased.
        do_rescale (`bool`, defaults to `True`):
            Whether to multiply the 8-bit pixels by `rescale_factor`.
        rescale_factor (`float`, defaults to 1 / 255):
            See `do_rescale`.
        do_normalize (`bool`, defaults to `True`):
            Whether to normalise images by `image_mean`, `image_std` and masks by `mask_mean`, `mask_std`.
        image_mean, image_std (`float` or three floats, defaults to those of OpenAI CLIP):
            Per channel, in units of the rescaled image.
        mask_mean, mask_std (`float`, defaults to 0.5 and 0.26, Alpha-CLIP's and PixCLIP's):
            In units of the mask, 0..1. A region becomes +1.923, the rest -1.923.
        crop_scale (`float`, defaults to 1.5):
            Side of the context crop in units of the longer side of the region's box, at least 1.
        crop_size (`dict`, defaults to `size`):
            Height and width of the context crop, in pixels.
        do_convert_rgb (`bool`, defaults to `True`):
            Whether to convert grey, palette, CMYK and RGBA images to RGB. An alpha channel is dropped, not blended.
        max_image_pixels (`int`, defaults to 178,956,970, the limit of PIL):
            Larger images are an error.
        input_data_format (`str`, *optional*):
            "channels_first" or "channels_last", for arrays of which both the first and the last axis could be the
            channels.
    """

    do_resize: bool | None
    size: int | list[int] | tuple[int, ...] | dict[str, int] | SizeDict | None
    resize_mode: str | None
    resample: int | None
    do_rescale: bool | None
    rescale_factor: float | int | None
    do_normalize: bool | None
    image_mean: float | int | list[float] | tuple[float, ...] | None
    image_std: float | int | list[float] | tuple[float, ...] | None
    mask_mean: float | int | None
    mask_std: float | int | None
    crop_scale: float | int | None
    crop_size: int | list[int] | tuple[int, ...] | dict[str, int] | SizeDict | None
    do_convert_rgb: bool | None
    max_image_pixels: int | None
    input_data_format: str | None


class PixCLIPImageProcessorBase:
    """Processor of images and regions, over a backend class of the library."""

    valid_kwargs = PixCLIPImageProcessorKwargs
    model_input_names = ["pixel_values"]

    do_resize = True
    size = {"height": 224, "width": 224}
    resize_mode = "squash"
    resample = Image.Resampling.BICUBIC
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    mask_mean = 0.5
    mask_std = 0.26
    crop_scale = 1.5
    crop_size = None
    do_convert_rgb = True
    max_image_pixels = MAX_IMAGE_PIXELS
    input_data_format = None

    # How images are resampled, which is all that the backends differ in; masks always by PIL.
    _resize_image = staticmethod(resize_by_pil)

    def __init__(self, **kwargs):
        options = {key for key in kwargs if not key.startswith("_")} - _SERVICE_KEYS
        self._check_option_names(options)
        super().__init__(**kwargs)

    def preprocess(
        self,
        images: Any,
        masks: Any = None,
        boxes: Any = None,
        crops: bool = False,
        allow_empty: bool = False,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchFeature:
        """Processes images with their regions.

        Args:
            images: One image or a list of B images (a 4-D array is such a list). An image is a PIL image, an array or
                tensor of shape (H, W, C), (C, H, W) or (H, W), uint8 or float in 0..1 (floats are rounded to 8 bits),
                or a path to a local file (turned upright by its EXIF orientation; a PIL image is taken as it is).
            masks: Regions of the images, in any form of `regions.to_mask`, each of the size of its image. For one
                image: a mask, a list of masks, or an (N, H, W) array. For a list of images: a list with one such
                entry per image, `[]` where there is no region.
            boxes: Regions as boxes, xyxy in pixels. For one image `[x1, y1, x2, y2]` or (N, 4); for a list of images a
                list with one such entry per image. Without `masks` a box is its region's mask. With `masks`, there
                must be one box per mask, or `None` for the mask's tight box, and the boxes are only reported in
                `region_boxes`.
            crops: Whether to add each region's context crop: a square around the mask, `crop_scale` times its longer
                side (at most the image's longer side), resized to `crop_size`.
            allow_empty: Whether a region that shows nothing (an empty mask, a box without area, a region that the
                centre crop cuts off) is accepted, with a mask of 0, a box of zeros and an empty crop. For training, in
                which the model leaves such regions out and counts them.
            return_tensors: "pt" for `torch.Tensor`, "np" or `None` for arrays.
            **kwargs: Options of `PixCLIPImageProcessorKwargs`, for this call.

        Returns:
            `BatchFeature` with `pixel_values` (B, 3, H, W), float32, and, if masks or boxes are given,
            `mask_values` (R, 1, H, W), float32, normalised; `region_image_index` (R,), int64, ascending;
            `region_boxes` (R, 4), float32, xyxy in 0..1 of the processed frame: the given boxes, else the tight boxes
            of the visible part of the masks; and with `crops`, `crop_pixel_values` (R, 3, h, w) and
            `crop_mask_values` (R, 1, h, w).

        Raises:
            ValueError: If an image cannot be read or is too large, masks or boxes do not fit the images in count or
                size, a region is malformed or, without `allow_empty`, not visible in the processed frame. The message
                names the item, for example `masks[2][0]`.
            TypeError: If an option is unknown.
        """
        self._check_option_names(kwargs)
        options = {name: getattr(self, name) for name in self.valid_kwargs.__annotations__}
        options.update({name: value for name, value in kwargs.items() if value is not None})
        options = self._standardize_kwargs(**options)
        size, crop_size = options["size"], options["crop_size"] or options["size"]
        options["size"], options["crop_size"] = (size.height, size.width), (crop_size.height, crop_size.width)
        if crops and masks is None and boxes is None:
            raise ValueError("crops=True needs masks or boxes: a context crop is the crop around a region.")

        many = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
        images = list(images) if many else [images]
        if not images:
            raise ValueError("images is an empty list; pass at least one image.")
        masks = _per_image(masks, "masks", as_mask_list, many, len(images))
        boxes = _per_image(boxes, "boxes", as_box_list, many, len(images))
        _check_same_count(masks, boxes, many)

        normalise = _Normaliser(options, self._resize_image)
        pixel_values, regions = None, None
        row = 0
        for index, image in enumerate(images):
            image = load_image(image, f"images[{index}]", options)
            picture = (image.height, image.width)
            geometry = _place(picture, f"images[{index}]", options)
            if pixel_values is None:
                pixel_values = np.empty((len(images), 3, *geometry.frame), dtype=np.float32)
                if masks is not None or boxes is not None:
                    count = sum(map(len, masks if masks is not None else boxes))
                    regions = _empty_regions(count, geometry.frame, options["crop_size"], crops)
            elif geometry.frame != pixel_values.shape[2:]:
                raise ValueError(
                    f"images[{index}] is {picture[0]}x{picture[1]} (height x width) but images[0] is "
                    f"{pixel_values.shape[2]}x{pixel_values.shape[3]}; with do_resize=False all images of a call must "
                    f"have the same size. Resize them, or leave do_resize on."
                )
            normalise.image(image, geometry, pixel_values[index])

            image_masks = masks[index] if masks is not None else None
            image_boxes = boxes[index] if boxes is not None else None
            for region in range(len(image_masks or image_boxes or ())):
                place = f"[{index}][{region}]" if many else f"[{region}]"
                box = None if boxes is None else image_boxes[region]
                if masks is None or box is not None:
                    box = check_box(box, *picture, f"boxes{place}", allow_empty)
                if masks is None:
                    name, mask = f"boxes{place}", box_to_mask(box, *picture, allow_empty=allow_empty)
                else:
                    name, mask = f"masks{place}", to_mask(image_masks[region], *picture, f"masks{place}", allow_empty)
                box_name = name if box is None else f"boxes{place}"
                mask_image = Image.fromarray(mask)
                regions["region_image_index"][row] = index
                try:
                    normalise.mask(mask_image, geometry, regions["mask_values"][row, 0], name)
                    regions["region_boxes"][row] = _frame_box(mask, box, geometry, name, box_name)
                    if crops:
                        crop = FrameGeometry.of_context_crop(
                            picture, options["crop_size"], mask_to_box(mask), options["crop_scale"]
                        )
                        normalise.image(image, crop, regions["crop_pixel_values"][row])
                        normalise.mask(mask_image, crop, regions["crop_mask_values"][row, 0], name)
                except _RegionNotVisible:
                    if not allow_empty:
                        raise
                    normalise.empty_region(regions, row)
                row += 1

        return BatchFeature(data={"pixel_values": pixel_values, **(regions or {})}, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """Returns the options, and how to load them, as they are saved: the same whichever backend saves them."""
        saved = super().to_dict()
        code = saved.get("auto_map", {})
        if code.get("AutoImageProcessor") in _SAVED_CODE.values():
            # The library writes the class that saves alone, and the folder would then load in no other backend.
            code["AutoImageProcessor"] = dict(_SAVED_CODE)
        return saved

    def _check_option_names(self, names) -> None:
        accepted = self.valid_kwargs.__annotations__
        unknown = sorted(set(names) - set(accepted))
        if unknown:
            raise TypeError(
                f"{type(self).__name__} received the unknown option {', '.join(unknown)}; "
                f"accepted are {', '.join(accepted)}."
            )

    def _standardize_kwargs(self, **kwargs) -> dict:
        for name in ("size", "crop_size"):
            if isinstance(kwargs.get(name), (list, tuple)) and len(kwargs[name]) != 2:
                raise ValueError(f"{name} is {kwargs[name]!r}; a list is [height, width] in pixels.")
        options = super()._standardize_kwargs(default_to_square=True, **kwargs)
        _check_options(options)
        return options


class _Normaliser:
    """Resamples into the frame and normalises, in one pass over the 8-bit pixels, for the options of one call."""

    def __init__(self, options: dict, resize: Callable):
        self.resize, self.resample = resize, options["resample"]
        mean, std = (np.broadcast_to(options[name], 3) for name in ("image_mean", "image_std"))
        factor = options["rescale_factor"] if options["do_rescale"] else None
        self.table = _pixel_table(factor, tuple(mean), tuple(std) if options["do_normalize"] else None)
        unit = 1 / options["rescale_factor"] if factor is None else 1
        self.padding = np.zeros(3) if options["do_normalize"] else mean * unit
        self.canvas = tuple(int(value) for value in np.clip(np.rint(mean * 255), 0, 255))
        self.mask_scale = (options["mask_mean"], options["mask_std"]) if options["do_normalize"] else None

    def image(self, image: Image.Image, geometry: FrameGeometry, out: np.ndarray) -> None:
        """Writes an image into `out`, (3, H, W)."""
        rows, columns = geometry.covered
        pixels = geometry.apply(image, self.resample, self.canvas, self.resize)
        for channel in range(3):
            if pixels.shape[:2] != geometry.frame:
                out[channel] = self.padding[channel]
            out[channel, rows, columns] = self.table[channel][pixels[..., channel]]

    def mask(self, mask: Image.Image, geometry: FrameGeometry, out: np.ndarray, name: str) -> None:
        """Writes a mask into `out`, (H, W)."""
        values = np.clip(geometry.apply(mask, Image.Resampling.BILINEAR, 0), 0, 1)
        if not values.any():
            raise _RegionNotVisible(_not_visible(name, geometry))
        out[:] = 0
        out[geometry.covered] = values
        self._scale_mask(out)

    def empty_region(self, regions: dict[str, np.ndarray], row: int) -> None:
        """Writes a region that shows nothing."""
        for name, values in regions.items():
            if name != "region_image_index":
                values[row] = 0
            if "mask" in name:
                self._scale_mask(values[row])

    def _scale_mask(self, out: np.ndarray) -> None:
        if self.mask_scale is not None:
            out -= self.mask_scale[0]
            out /= self.mask_scale[1]


@lru_cache(maxsize=16)
def _pixel_table(factor: float | None, mean: tuple, std: tuple | None) -> np.ndarray:
    # Same roundings, in the same order, as rescale and normalize of transformers: results are equal bit for bit.
    levels = np.arange(256, dtype=np.float64) if factor is None else np.arange(256, dtype=np.float64) * factor
    table = np.tile(levels.astype(np.float32), (3, 1))
    if std is not None:
        table = (table - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    return table


def _empty_regions(count: int, frame: tuple[int, int], crop_size: tuple[int, int], crops: bool) -> dict:
    regions = {
        "mask_values": np.empty((count, 1, *frame), dtype=np.float32),
        "region_image_index": np.empty(count, dtype=np.int64),
        "region_boxes": np.empty((count, 4), dtype=np.float32),
    }
    if crops:
        regions["crop_pixel_values"] = np.empty((count, 3, *crop_size), dtype=np.float32)
        regions["crop_mask_values"] = np.empty((count, 1, *crop_size), dtype=np.float32)
    return regions


def _frame_box(
    mask: np.ndarray, box: np.ndarray | None, geometry: FrameGeometry, name: str, box_name: str
) -> np.ndarray:
    """Box in 0..1 of the frame: the given one, else the tight box of what the frame shows of the mask."""
    rows, columns = geometry.visible
    visible = mask[rows, columns]
    # The filter spreads a mask a little, so a mask just outside the frame is not all 0 in it.
    if not visible.any():
        raise _RegionNotVisible(_not_visible(name, geometry))
    if box is None:
        box = mask_to_box(visible) + [columns.start, rows.start, columns.start, rows.start]
    height, width = geometry.frame
    frame_box = np.clip(geometry.map_box(box) / [width, height, width, height], 0, 1).astype(np.float32)
    if frame_box[0] >= frame_box[2] or frame_box[1] >= frame_box[3]:
        raise _RegionNotVisible(_not_visible(box_name, geometry))
    return frame_box


def _not_visible(name: str, geometry: FrameGeometry) -> str:
    return (
        f"{name} has no visible part left in the processed {geometry.frame[0]}x{geometry.frame[1]} frame of its "
        f"{geometry.picture[0]}x{geometry.picture[1]} image: the centre crop of resize_mode='shortest_edge' cuts it "
        f"off. Use resize_mode='squash' or 'letterbox', which keep the whole image, or remove the region."
    )


def _place(picture: tuple[int, int], name: str, options: dict) -> FrameGeometry:
    if not options["do_resize"]:
        return FrameGeometry.of_picture(picture, picture, "squash")
    geometry = FrameGeometry.of_picture(picture, options["size"], options["resize_mode"])
    pixels = geometry.resized[0] * geometry.resized[1]
    # The frame itself is the user's choice; what reaches over it is the picture's doing.
    if pixels > max(options["max_image_pixels"], geometry.frame[0] * geometry.frame[1]):
        raise ValueError(
            f"{name} is {picture[0]}x{picture[1]} (height x width); resize_mode='shortest_edge' would blow it up to "
            f"{geometry.resized[0]}x{geometry.resized[1]}, over max_image_pixels={options['max_image_pixels']}. Crop "
            f"it first, or use 'squash' or 'letterbox'."
        )
    return geometry


def _per_image(values: Any, name: str, split: Any, many: bool, count: int) -> list[list] | None:
    """Splits masks or boxes into one list per image."""
    if values is None:
        return None
    if not many:
        return [split(values, name)]
    if isinstance(values, (np.ndarray, torch.Tensor)) and values.ndim > 0:
        values = list(values)
    if not isinstance(values, (list, tuple)):
        raise ValueError(
            f"{name} is a {type(values).__name__}, but images is a list of {count}: pass a list with one entry per "
            f"image, [] where there is no region."
        )
    if len(values) != count:
        raise ValueError(
            f"{name} has {len(values)} entries, but images has {count}: pass a list with one entry per image, [] "
            f"where there is no region."
        )
    return [split(value, f"{name}[{index}]") for index, value in enumerate(values)]


def _check_same_count(masks: list[list] | None, boxes: list[list] | None, many: bool) -> None:
    if masks is None or boxes is None:
        return
    for index, (image_masks, image_boxes) in enumerate(zip(masks, boxes, strict=True)):
        if len(image_masks) != len(image_boxes):
            place = f"[{index}]" if many else ""
            raise ValueError(
                f"masks{place} has {len(image_masks)} regions, but boxes{place} has {len(image_boxes)}: where both "
                f"are given, there must be one box per mask."
            )


def _check_options(options: dict) -> None:
    """Raises `ValueError` for an option that is out of its range."""

    def number(value: Any) -> bool:
        return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and bool(np.isfinite(value))

    def colour(value: Any) -> bool:
        return number(value) or (isinstance(value, (tuple, list)) and len(value) == 3 and all(map(number, value)))

    def pixels(value: Any) -> bool:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value > 0

    def frame(value: Any) -> bool:
        return set(dict(value)) == {"height", "width"} and all(pixels(side) for _, side in value)

    flags = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
    rules = [(name, lambda value: isinstance(value, bool), "True or False") for name in flags] + [
        ("size", frame, "{'height': int, 'width': int} in pixels, or an int for a square"),
        ("crop_size", lambda value: value is None or frame(value), "{'height': int, 'width': int}, an int, or None"),
        ("resize_mode", lambda value: value in RESIZE_MODES, ", ".join(map(repr, RESIZE_MODES))),
        ("resample", lambda value: value in list(Image.Resampling), "a PIL.Image.Resampling filter or its number"),
        ("rescale_factor", lambda value: number(value) and value > 0, "a number above 0"),
        ("image_mean", colour, "a number or three numbers"),
        ("image_std", lambda value: colour(value) and np.all(np.asarray(value) > 0), "one or three numbers above 0"),
        ("mask_mean", number, "a number"),
        ("mask_std", lambda value: number(value) and value > 0, "a number above 0"),
        ("crop_scale", lambda value: number(value) and value >= 1, "a number of at least 1"),
        ("max_image_pixels", pixels, "a positive int"),
        (
            "input_data_format",
            lambda value: value in (None, "channels_first", "channels_last"),
            "'channels_first', 'channels_last' or None",
        ),
    ]
    for name, accepts, accepted in rules:
        if not accepts(options[name]):
            raise ValueError(f"{name} is {options[name]!r}; accepted is {accepted}.")
