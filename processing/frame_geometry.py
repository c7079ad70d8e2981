# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Where a picture lands in the model's input frame: one geometry for the image, its masks and its boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image


RESIZE_MODES = ("squash", "shortest_edge", "letterbox")


def resize_by_pil(
    image: Image.Image, size: tuple[int, int], resample: int, box: tuple[int, int, int, int]
) -> np.ndarray:
    """Resamples the part `box`, xyxy, of an image to `size`, (height, width); the filter reads beyond the box."""
    return np.asarray(image.resize((size[1], size[0]), resample, box=box))


@dataclass(frozen=True)
class FrameGeometry:
    """A window of the source picture is resized to `resized` pixels and laid into the frame at `offset`.

    All sizes are (height, width) in pixels, all boxes xyxy in pixels. The window may reach outside the picture (the
    outside is filled), and the resized window may reach outside the frame (it is cut).

    Attributes:
        picture: Size of the source picture.
        window: Part of the source that is resized, at whole pixels.
        resized: Size the window is resized to.
        offset: Place (top, left) of the resized window in the frame; negative where it is cut.
        frame: Size of the result.

    Example:
        >>> geometry = FrameGeometry.of_picture((4, 8), (4, 4), "shortest_edge")
        >>> geometry.offset, geometry.map_box([2, 0, 5, 4])
        ((0, -2), array([0., 0., 3., 4.]))
    """

    picture: tuple[int, int]
    window: tuple[int, int, int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]
    frame: tuple[int, int]

    @classmethod
    def of_picture(cls, picture: tuple[int, int], frame: tuple[int, int], mode: str) -> FrameGeometry:
        """Places a whole picture.

        Args:
            picture: Size of the picture.
            frame: Size of the frame.
            mode: "squash" resizes to the frame whatever the aspect ratio; "shortest_edge" keeps the aspect ratio,
                covers the frame and cuts the rest off around the centre (for a square frame the sizes are those of
                `CLIPImageProcessor`); "letterbox" keeps the aspect ratio, fits into the frame and is centred.

        Returns:
            The geometry.

        Raises:
            ValueError: If the mode is unknown.
        """
        height, width = picture
        frame_height, frame_width = frame
        wide = width * frame_height >= height * frame_width
        if mode == "squash":
            resized = frame
        elif mode == "shortest_edge":
            if wide:
                resized = (frame_height, max(frame_width, int(frame_height * width / height)))
            else:
                resized = (max(frame_height, int(frame_width * height / width)), frame_width)
        elif mode == "letterbox":
            if wide:
                resized = (max(1, round(frame_width * height / width)), frame_width)
            else:
                resized = (frame_height, max(1, round(frame_height * width / height)))
        else:
            raise ValueError(f"resize_mode is {mode!r}; accepted are {', '.join(map(repr, RESIZE_MODES))}.")
        # The cut part rounds as CLIPImageProcessor's centre crop does: the extra pixel goes off at the end.
        offset = tuple(
            -((size - room) // 2) if size > room else (room - size) // 2
            for size, room in zip(resized, frame, strict=True)
        )
        return cls(picture, (0, 0, width, height), resized, offset, frame)

    @classmethod
    def of_context_crop(
        cls, picture: tuple[int, int], frame: tuple[int, int], box: np.ndarray, scale: float
    ) -> FrameGeometry:
        """Places the context crop of a region: a square around its box, resized to the frame.

        The side is `scale` times the longer side of the box, at most the longer side of the picture, centred on the
        box, at whole pixels (PixCLIP's region classification crops this way with scale 1.5, StuHude/PixCLIP,
        eval/COCO).

        Args:
            picture: Size of the picture.
            frame: Size of the frame.
            box: Tight box of the region, shape (4,), at whole pixels.
            scale: Side of the square in units of the longer side of the box, at least 1.

        Returns:
            The geometry.
        """
        left, top, right, bottom = (int(edge) for edge in box)
        side = min(math.ceil(scale * max(right - left, bottom - top)), max(picture))
        x, y = (left + right - side) // 2, (top + bottom - side) // 2
        return cls(picture, (x, y, x + side, y + side), frame, (0, 0), frame)

    def map_box(self, box: np.ndarray) -> np.ndarray:
        """Maps a box of the source, shape (4,), to the frame; it may reach outside the frame."""
        left, top, right, bottom = self.window
        box = np.asarray(box, dtype=np.float64)
        x = (box[[0, 2]] - left) * self.resized[1] / (right - left) + self.offset[1]
        y = (box[[1, 3]] - top) * self.resized[0] / (bottom - top) + self.offset[0]
        return np.array([x[0], y[0], x[1], y[1]])

    @property
    def covered(self) -> tuple[slice, slice]:
        """Rows and columns of the frame that show any of the picture; the rest is fill."""
        height, width = self.picture
        left, top, right, bottom = self.map_box([0, 0, width, height])
        return (
            slice(max(0, math.floor(top)), min(self.frame[0], math.ceil(bottom))),
            slice(max(0, math.floor(left)), min(self.frame[1], math.ceil(right))),
        )

    @property
    def visible(self) -> tuple[slice, slice]:
        """Rows and columns of the source picture of which any part shows in the frame."""
        left, top, right, bottom = self.window
        x_scale, y_scale = (right - left) / self.resized[1], (bottom - top) / self.resized[0]
        x = [left + (edge - self.offset[1]) * x_scale for edge in (0, self.frame[1])]
        y = [top + (edge - self.offset[0]) * y_scale for edge in (0, self.frame[0])]
        return (
            slice(max(0, top, math.floor(y[0])), min(self.picture[0], bottom, math.ceil(y[1]))),
            slice(max(0, left, math.floor(x[0])), min(self.picture[1], right, math.ceil(x[1]))),
        )

    def apply(
        self, source: Image.Image, resample: int, fill: tuple[int, ...] | int, resize: Callable = resize_by_pil
    ) -> np.ndarray:
        """Resamples a picture or mask into the frame.

        Args:
            source: Picture or mask of size `picture`, any PIL mode that resizes.
            resample: PIL resampling filter; PIL's filters are antialiased when they shrink.
            fill: Value of the canvas outside the picture, for the filter to read at the picture's edge.
            resize: What resamples, with the arguments of `resize_by_pil`.

        Returns:
            Array of shape (rows, columns) or (rows, columns, channels): the part of the frame that `covered` names.
        """
        left, top, right, bottom = self.window
        height, width = self.picture
        if left < 0 or top < 0 or right > width or bottom > height:
            canvas = Image.new(source.mode, (right - left, bottom - top), fill)
            canvas.paste(source, (-left, -top))
            pixels = resize(canvas, self.resized, resample, (0, 0, *canvas.size))
        else:
            pixels = resize(source, self.resized, resample, self.window)
        rows, columns = self.covered
        above, before = self.offset
        return pixels[rows.start - above : rows.stop - above, columns.start - before : columns.stop - before]
