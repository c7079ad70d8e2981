# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The pictures of a region that models are shown: crops, the region alone, its outline, its box in the whole image."""

from __future__ import annotations

import base64
import io
import os
import threading

import numpy as np
from PIL import Image, ImageDraw

from .records import RegionWork


VIEWS = ("crop", "masked_crop", "overlay", "image", "boxed_image")
"""Names of the views, see `render_view`."""

_MARGIN = 0.15
_CONTEXT = 0.5
_MIN_MARGIN = 8
# Models see little of a picture of a few patches, and nothing new in one that is enlarged further.
_SMALL_SIDE = 384
_MAX_ENLARGEMENT = 8.0
# Models refuse strips, or squeeze them into a square.
_MAX_ASPECT = 3.0
_MIN_SIDE = 28
_QUALITY = 90

# Drawing takes up to 150 MB with a large photo.
_drawing = threading.Semaphore(min(4, os.cpu_count() or 1))

_LINE = (255, 0, 0)
_HALO = (255, 255, 255)
_LIGHT, _DARK = (236, 236, 236), (48, 48, 48)


def render_view(work: RegionWork, name: str, side: int = 768) -> bytes:
    """Draws a picture of a region for a model to look at.

    All are in the colours and the orientation of the image as stored, which is the one that masks are drawn on. Small
    ones are enlarged to 384 pixels, at most eightfold. Drawn lines are red with a white rim, so that they stand
    out from any background, and lie outside of what they surround. At most four are drawn at the same time, in whichever
    threads.

    Args:
        work: The region. Views are kept in `work.image.views`, for as long as that image is worked on.
        name: One of
            * `"crop"`: the region and a margin of 15 % around its box;
            * `"masked_crop"`: the same frame, all but the region replaced by plain light grey, or dark grey where the
              region itself is light;
            * `"overlay"`: the region and a margin of half its size, its outline drawn;
            * `"image"`: the whole image, the only one without a region;
            * `"boxed_image"`: the whole image, the region's box drawn.
        side: Most pixels of the longer side.

    Returns:
        A JPEG file.

    Raises:
        ValueError: If the name is unknown, the work has no region, or the image or mask cannot be read.

    Example:
        >>> from .records import ImageWork, SourceImage, SourceRegion
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (64, 48), "green").save(file, "PNG")
        >>> region = SourceRegion("1#0", box=(10, 10, 30, 30), mask_source="box")
        >>> image = SourceImage("1", "1.png", {"path": "1.png"}, width=64, height=48, regions=(region,))
        >>> work = RegionWork(ImageWork(image, file.getvalue), region)
        >>> [Image.open(io.BytesIO(render_view(work, name))).size for name in ("crop", "overlay", "image")]
        [(288, 288), (320, 320), (384, 288)]
    """
    if name not in VIEWS:
        raise ValueError(f"view {name!r} is unknown; accepted are {', '.join(VIEWS)}.")
    if work.region is None and name != "image":
        raise ValueError(
            f"view {name!r} shows a region, but the work on {work.item_id!r} has none; accepted is 'image'."
        )
    key = (None if name == "image" else work.item_id, name, side)
    views = work.image.views
    content = views.get(key)
    if content is None:
        with _drawing:
            # Another region may have asked for the whole image meanwhile.
            content = views.get(key)
            if content is None:
                content = views[key] = _to_jpeg(_draw(work, name, side))
    return content


def data_url(content: bytes) -> str:
    """A JPEG file as the data URL that OpenAI-compatible servers take.

    Example:
        >>> data_url(b"abc")
        'data:image/jpeg;base64,YWJj'
    """
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"


def _draw(work: RegionWork, name: str, side: int) -> Image.Image:
    picture = work.image.picture()
    if name in ("image", "boxed_image"):
        shown = _resize(picture, size_of_view(picture.size, side))
        return shown if name == "image" else _draw_box(shown, work.region.box, picture.size)
    frame = _frame(work.region.box, picture.size, _CONTEXT if name == "overlay" else _MARGIN)
    left, top, right, bottom = frame
    size = size_of_view((right - left, bottom - top), side)
    crop = _resize(picture, size, frame)
    if name == "crop":
        return crop
    inside = work.image.mask(work.region)[top:bottom, left:right]
    mask = _resize(Image.fromarray(inside.view(np.uint8) * np.uint8(255)), size)
    return _isolate(crop, mask) if name == "masked_crop" else _draw_outline(crop, np.asarray(mask) >= 128)


def _frame(box: tuple[float, ...], size: tuple[int, int], margin: float) -> tuple[int, int, int, int]:
    """Whole pixels around a box with its margin, inside the image, no strip where the image has room."""
    sides = [box[2] - box[0], box[3] - box[1]]
    pad = max(_MIN_MARGIN, margin * max(sides))
    wanted = [side + 2 * pad for side in sides]
    wanted = [max(side, max(wanted) / _MAX_ASPECT) for side in wanted]
    lows, highs = [], []
    for axis in (0, 1):
        centre = (box[axis] + box[axis + 2]) / 2
        lows.append(max(0, int(np.floor(centre - wanted[axis] / 2))))
        highs.append(min(size[axis], int(np.ceil(centre + wanted[axis] / 2))))
    return lows[0], lows[1], highs[0], highs[1]


def size_of_view(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Width and height of the picture that is shown of a part of an image.

    Args:
        size: Width and height of the part.
        side: Most pixels of the longer side of the picture.

    Example:
        >>> size_of_view((4000, 3000), 768), size_of_view((200, 100), 768)
        ((768, 576), (384, 192))
    """
    longest = max(size)
    least = min(_SMALL_SIDE, side)
    scale = min(_MAX_ENLARGEMENT, least / longest) if longest < least else min(1.0, side / longest)
    return max(_MIN_SIDE, round(size[0] * scale)), max(_MIN_SIDE, round(size[1] * scale))


def _resize(
    picture: Image.Image, size: tuple[int, int], frame: tuple[int, int, int, int] | None = None
) -> Image.Image:
    left, top, right, bottom = frame or (0, 0, *picture.size)
    if (right - left, bottom - top) == size:
        return picture if frame is None else picture.crop(frame)
    filter = Image.Resampling.BICUBIC if picture.mode == "RGB" else Image.Resampling.BILINEAR
    return picture.resize(size, filter, box=(left, top, right, bottom), reducing_gap=2.0)


def _isolate(crop: Image.Image, mask: Image.Image) -> Image.Image:
    levels = np.array(crop.convert("L").histogram(mask))
    lightness = (levels * np.arange(256)).sum() / max(1, levels.sum())
    return Image.composite(crop, Image.new("RGB", crop.size, _DARK if lightness > 140 else _LIGHT), mask)


def _line_width(size: tuple[int, int]) -> int:
    return max(3, round(max(size) / 200))


def _draw_outline(crop: Image.Image, mask: np.ndarray) -> Image.Image:
    """Draws the line around the mask, and along the frame where the region goes on beyond it."""
    line = _line_width(crop.size)
    rim = line // 2
    # Gaps narrower than the line are closed, not painted over.
    region = ~_dilate(~_dilate(mask, line), line) | mask
    inside = _dilate(region, rim)
    lined = _dilate(inside, line)
    at_frame, at_edge = np.ones((2, *mask.shape), dtype=bool)
    at_frame[line + rim : -line - rim, line + rim : -line - rim] = False
    at_edge[line:-line, line:-line] = False
    pixels = np.array(crop)
    pixels[(_dilate(lined, rim) & ~region) | (at_frame & region)] = _HALO
    pixels[(lined & ~inside) | (at_edge & region)] = _LINE
    return Image.fromarray(pixels)


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Grows a bool mask by a square of 2 * radius + 1 pixels; the image's own edge is not a border."""
    reached = 0
    while reached < radius:
        step = min(2 * reached + 1, radius - reached)
        for axis in (0, 1):
            grown = mask.copy()
            target, source = (grown, mask) if axis == 0 else (grown.T, mask.T)
            target[step:] |= source[:-step]
            target[:-step] |= source[step:]
            mask = grown
        reached += step
    return mask


def _draw_box(shown: Image.Image, box: tuple[float, ...], size: tuple[int, int]) -> Image.Image:
    """Draws a box around the given one, pushed inwards where the image ends."""
    line = _line_width(shown.size)
    rim = line // 2
    scale = (shown.width / size[0], shown.height / size[1])
    low = [int(np.floor(box[axis] * scale[axis])) - 1 for axis in (0, 1)]
    high = [int(np.ceil(box[axis + 2] * scale[axis])) for axis in (0, 1)]
    drawn = shown.copy()
    draw = ImageDraw.Draw(drawn)
    whole = line + 2 * rim
    for colour, gap, width in ((_HALO, 0, whole), (_LINE, rim, line)):
        reach = gap + width - 1
        first = [max(gap if low[axis] - whole < 0 else 0, low[axis] - reach) for axis in (0, 1)]
        last = [
            min(shown.size[axis] - 1 - (gap if high[axis] + whole >= shown.size[axis] else 0), high[axis] + reach)
            for axis in (0, 1)
        ]
        draw.rectangle([*first, *last], outline=colour, width=width)
    return drawn


def _to_jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()
