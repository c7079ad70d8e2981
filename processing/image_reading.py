# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reads the images that come in: files, PIL images, arrays and tensors become 8-bit RGB images, or errors."""

import io
import os
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .regions import to_numpy


# The limit of PIL, beyond which it takes a file for an attack.
MAX_IMAGE_PIXELS = 178_956_970

_IMAGE_FORMS = (
    "a PIL image, a path to a local file, or an array or tensor of shape (H, W, C), (C, H, W) or (H, W) with 1, 3 or "
    "4 channels, uint8 in 0..255 or float in 0..1"
)


class _ImageRefused(ValueError):
    """An image that reads well but is not accepted."""


def load_image(image: Any, name: str, options: dict) -> Image.Image:
    """Reads one input image as a PIL image of mode RGB."""
    if isinstance(image, str) and ("://" in image or image.startswith("data:")):
        raise ValueError(
            f"{name} is a URL ({image[:80]!r}); nothing is downloaded here. Load it first, for example with "
            f"`transformers.image_utils.load_image(url)`, and pass the image."
        )
    if isinstance(image, (str, os.PathLike)):
        return read_image(image, name, options)
    if isinstance(image, (np.ndarray, torch.Tensor)):
        image = _array_to_image(to_numpy(image, name), name, options["input_data_format"])
    if not isinstance(image, Image.Image):
        raise ValueError(f"{name} is a {type(image).__name__}; an image is {_IMAGE_FORMS}.")
    _check_pixels(image, name, options)
    try:
        return _to_rgb(image, name, options)
    except _ImageRefused:
        raise
    # Decoders of damaged files raise OSError, SyntaxError, ValueError and others.
    except Exception as error:
        raise ValueError(f"{name} cannot be read, its file is damaged or closed: {error}.") from error


def read_image(
    file: str | os.PathLike | bytes, name: str, options: dict | None = None, upright: bool = True
) -> Image.Image:
    """Reads a local file as an 8-bit RGB image.

    Args:
        file: Path of the file, or its bytes.
        name: How error messages call this image.
        options: Holds `do_convert_rgb` and `max_image_pixels`, defaults to those of `PixCLIPImageProcessor`.
        upright: Whether to turn the image upright by its EXIF orientation.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        ValueError: If the file cannot be read, is too large, or has no conversion to 8 bits that fits every case.

    Example:
        >>> read_image("examples/data/coco_regions/images/000000000030.jpg", "photo").mode
        'RGB'
    """
    if options is None:
        options = {"do_convert_rgb": True, "max_image_pixels": MAX_IMAGE_PIXELS}
    try:
        with Image.open(_FileContent(file) if isinstance(file, bytes) else file) as image:
            _check_pixels(image, name, options)
            image.load()
            if upright:
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image, name, options)
    except _ImageRefused:
        raise
    except Exception as error:
        source = f"its {len(file)} bytes" if isinstance(file, bytes) else repr(os.fspath(file))
        raise ValueError(
            f"{name} cannot be read as an image from {source}: {type(error).__name__}: {error}"
        ) from error


class _FileContent(io.BytesIO):
    """Bytes of a file, which PIL's messages do not call by their place in memory."""

    def __repr__(self) -> str:
        return "in these bytes"


def _check_pixels(image: Image.Image, name: str, options: dict) -> None:
    pixels, limit = image.width * image.height, options["max_image_pixels"]
    if pixels == 0 or pixels > limit:
        raise _ImageRefused(
            f"{name} is {image.height}x{image.width} (height x width), {pixels} pixels; accepted are 1 to {limit} "
            f"pixels (option max_image_pixels)."
        )


def _to_rgb(image: Image.Image, name: str, options: dict) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if not options["do_convert_rgb"]:
        raise _ImageRefused(f"{name} has PIL mode {image.mode!r}; with do_convert_rgb=False it must be 'RGB'.")
    if image.mode not in ("1", "L", "P", "LA", "PA", "La", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"):
        # PIL would clip 16- and 32-bit values to 255 without a word.
        raise _ImageRefused(
            f"{name} has PIL mode {image.mode!r}, which has no conversion to 8-bit RGB that fits every case. Convert "
            f"it first; an image is {_IMAGE_FORMS}."
        )
    return image.convert("RGB")


def _array_to_image(pixels: np.ndarray, name: str, input_data_format: str | None) -> Image.Image:
    shape = pixels.shape
    if pixels.ndim == 3:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        if first and last and input_data_format is None:
            raise _ImageRefused(
                f"{name} has shape {shape}, of which both the first and the last axis could be the channels; pass "
                f"input_data_format='channels_first' or 'channels_last'."
            )
        if input_data_format == "channels_first" or (input_data_format is None and first):
            pixels = np.moveaxis(pixels, 0, -1)
        if pixels.shape[2] == 1:
            pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or pixels.size == 0:
        raise _ImageRefused(f"{name} has shape {shape}; an image is {_IMAGE_FORMS}.")
    if pixels.dtype.kind == "f":
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):
            raise _ImageRefused(
                f"{name} is a float array with values from {low!s} to {high!s}; float images must be in 0..1 without "
                f"NaN. Divide 8-bit values by 255 or convert them to uint8."
            )
        pixels = np.rint(pixels.astype(np.float32) * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise _ImageRefused(f"{name} has dtype {pixels.dtype}; an image is {_IMAGE_FORMS}.")
    return Image.fromarray(np.ascontiguousarray(pixels))
