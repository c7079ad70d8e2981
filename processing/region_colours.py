# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Named colours under a mask, measured in CIELAB."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


COLOUR_NAMES = (
    "black",
    "grey",
    "white",
    "red",
    "orange",
    "brown",
    "beige",
    "yellow",
    "green",
    "turquoise",
    "blue",
    "purple",
    "pink",
)

# Mean CIELAB lightness below which a colour is called dark and above which it is called light.
_DARK_LIGHT = {
    "grey": (40, 68),
    "red": (32, 101),
    "brown": (27, 52),
    "green": (34, 72),
    "turquoise": (38, 78),
    "blue": (28, 66),
    "purple": (27, 66),
    "yellow": (0, 93),
}

_MIN_INTERIOR_PIXELS = 64


@dataclass(frozen=True)
class ColourShare:
    """One named colour of a region.

    Attributes:
        name: One of `COLOUR_NAMES`.
        share: Part of the region's pixels that have it, 0..1.
        lightness: Mean CIELAB lightness of those pixels, 0..100.
    """

    name: str
    share: float
    lightness: float

    @property
    def shade(self) -> str:
        """The name with "dark" or "light" before it where the lightness says so."""
        dark, light = _DARK_LIGHT.get(self.name, (0, 101))
        prefix = "dark " if self.lightness < dark else "light " if self.lightness > light else ""
        return prefix + self.name


def srgb_to_lab(pixels: np.ndarray) -> np.ndarray:
    """Converts sRGB to CIELAB (D65 white, IEC 61966-2-1 and CIE 15).

    Args:
        pixels: Array of shape (..., 3), uint8.

    Returns:
        Array of shape (..., 3), float32: lightness 0..100, a, b.

    Example:
        >>> srgb_to_lab(np.array([[255, 255, 255]], dtype=np.uint8)).round().tolist()[0][0]
        100.0
    """
    levels = np.arange(256, dtype=np.float64) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)[pixels]
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = (linear @ to_xyz.T) / np.array([0.95047, 1.0, 1.08883])
    cube = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = cube[..., 0], cube[..., 1], cube[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1).astype(np.float32)


def name_pixels(lab: np.ndarray) -> np.ndarray:
    """Gives every CIELAB pixel a colour name, by its lightness, chroma and hue angle.

    The limits are ours, set so that the usual names of sRGB's basic colours come out and that pale and dark
    pixels of photos count as white, grey or black rather than as a faint hue.

    Args:
        lab: Array of shape (N, 3).

    Returns:
        Array of shape (N,), indices into `COLOUR_NAMES`.
    """
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    hue = np.degrees(np.arctan2(lab[:, 2], lab[:, 1])) % 360
    reddish = (hue < 41) | (hue >= 345)
    warm = (hue >= 41) & (hue < 80)
    yellowish = (hue >= 80) & (hue < 108)
    # Each rule takes the pixels that no rule before it has taken.
    rules = [
        ("black", (lightness < 18) & (chroma < 25)),
        ("black", (lightness < 26) & (chroma < 10)),
        ("white", (lightness > 84) & (chroma < 12)),
        ("beige", (lightness > 84) & (chroma < 20) & (hue < 112)),
        ("grey", chroma < 9),
        ("grey", (chroma < 14) & (hue >= 108) & (hue < 330)),
        ("pink", reddish & (lightness > 62)),
        ("pink", (hue >= 330) & (lightness > 50)),
        ("red", reddish & (chroma > 32)),
        ("beige", (reddish | warm | yellowish) & (lightness > 66) & (chroma < 34)),
        ("orange", warm & (lightness > 38) & (chroma > 52)),
        ("yellow", yellowish & (lightness > 56) & (chroma > 40)),
        ("brown", reddish | warm | (yellowish & (hue < 98))),
        ("green", yellowish & (lightness < 66)),
        ("beige", yellowish & (chroma < 40)),
        ("yellow", yellowish),
        ("green", (hue >= 108) & (hue < 172)),
        ("turquoise", (hue >= 172) & (hue < 218)),
        ("blue", (hue >= 218) & (hue < 307)),
        ("purple", (hue >= 307) & (hue < 345)),
    ]
    return np.select([test for _, test in rules], [COLOUR_NAMES.index(name) for name, _ in rules])


def measure_colours(image: np.ndarray, mask: np.ndarray) -> list[ColourShare]:
    """Measures the named colours under a mask.

    The outermost two pixels of the region, where its surroundings shine through, are left out if enough stay.

    Args:
        image: Array of shape (H, W, 3), uint8, sRGB.
        mask: Array of shape (H, W), bool, not empty.

    Returns:
        Every name that occurs, largest share first; the shares add up to 1.

    Example:
        >>> image = np.full((8, 8, 3), (200, 20, 20), dtype=np.uint8)
        >>> measure_colours(image, np.ones((8, 8), dtype=bool))[0].shade
        'red'
    """
    interior = mask
    for _ in range(2):
        interior = erode(interior)
    if interior.sum() < max(_MIN_INTERIOR_PIXELS, 0.4 * mask.sum()):
        interior = mask
    lab = srgb_to_lab(image[interior])
    names = name_pixels(lab)
    counts = np.bincount(names, minlength=len(COLOUR_NAMES))
    lightness = np.bincount(names, weights=lab[:, 0], minlength=len(COLOUR_NAMES))
    order = np.argsort(-counts, kind="stable")
    return [
        ColourShare(COLOUR_NAMES[index], float(counts[index] / len(lab)), float(lightness[index] / counts[index]))
        for index in order
        if counts[index]
    ]


def erode(mask: np.ndarray) -> np.ndarray:
    """Takes one pixel off the border of a bool mask; the image's own edge is not a border."""
    padded = np.pad(mask, 1, mode="edge")
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
