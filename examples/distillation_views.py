# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Photos held in memory and random views of them, all made by tensor operations on whole batches: on a GPU at its speed.

A view is a window of a photo at any scale, turned, mirrored and recoloured; objects of other views are pasted into it by
their masks, rectangles of others too, and some are mixed. Teacher and student see the same view, so what the teacher
says of it stays right, however far from a photo it is.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from modeling_pixclip import PixCLIPVisionConfig
from processing_pixclip import PixCLIPImageProcessor, RegionJsonlDataset, to_mask
from processing_pixclip.image_reading import read_image


logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# A number in uint8 maps, of which 0 is no region.
MOST_REGIONS = 255


@dataclass
class PhotoBank:
    """
    N photos with R regions, as tensors on one device.

    Args:
        pixels: uint8 (N, 3, side, side); photos fill the upper left corner.
        sizes: float (N, 2), height and width of each photo in pixels.
        maps: uint8 (N, 1, side, side), the number of the region at each pixel, within its photo, from 1; smaller regions
            in front of larger ones.
        regions: int64 (N, 256), the region of all R of each number, -1 for none.
        boxes: float (R, 4), xyxy in pixels.
        photos: int64 (R,), photo of each region.
        labels: int64 (R,), row of its text in `texts`.
        texts: Texts of regions, each once.
        captions: Captions of each photo.
    """

    pixels: torch.Tensor
    sizes: torch.Tensor
    maps: torch.Tensor
    regions: torch.Tensor
    boxes: torch.Tensor
    photos: torch.Tensor
    labels: torch.Tensor
    texts: list[str]
    captions: list[list[str]]

    def to(self, device: torch.device | str) -> "PhotoBank":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return PhotoBank(**{**vars(self), **moved})


def read_photos(source: str | Path, image_root: str | Path | None = None, side: int = 640) -> PhotoBank:
    """
    Reads photos into memory, the longer side scaled down to `side` at most.

    Args:
        source: JSON lines as `RegionJsonlDataset` reads them, whose `object_text` (or `text`) names a region; or a folder
            of images, which have no regions then.
        image_root: Folder that paths of images in the lines are relative to.
        side: Most pixels of a side.

    Raises:
        FileNotFoundError: If there is no image.
        MemoryError: If the photos need more than this machine has.
    """
    samples: Sequence[Any]
    if Path(source).is_dir():
        files = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise FileNotFoundError(
                f"{source} holds no image; accepted are files ending in {', '.join(IMAGE_SUFFIXES)}."
            )
        samples = [{"file": file, "masks": [], "texts": [], "object_texts": [], "captions": []} for file in files]
    else:
        samples = RegionJsonlDataset(source, image_root)
    count = len(samples)
    _check_memory(count, side)
    pixels = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    maps = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    numbers = torch.full((count, MOST_REGIONS + 1), -1)
    sizes, boxes, photos, labels, captions = torch.zeros(count, 2), [], [], [], []
    texts: dict[str, int] = {}
    for place in range(count):
        sample = samples[place]
        image = sample["image"] if "image" in sample else read_image(sample["file"], str(sample["file"]))
        image = image.convert("RGB")
        scale = min(1.0, side / max(image.size))
        width, height = (max(1, round(length * scale)) for length in image.size)
        resized = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
        pixels[place, :, :height, :width] = torch.from_numpy(resized).permute(2, 0, 1)
        # To the edge and beyond, so that samples at the edge do not mix with black.
        pixels[place, :, :height, width:] = pixels[place, :, :height, width - 1 : width]
        pixels[place, :, height:] = pixels[place, :, height - 1 : height]
        sizes[place] = torch.tensor([height, width])
        captions.append(sample["captions"])
        masks = []
        for mask, text, object_text in zip(sample["masks"], sample["texts"], sample["object_texts"]):
            mask = to_mask(mask, image.height, image.width, f"a mask of photo {place}")
            small = Image.fromarray((mask * 255).astype(np.uint8)).resize((width, height), Image.Resampling.BOX)
            mask = np.asarray(small) >= 128
            if mask.any():
                masks.append((mask, object_text or text))
        masks = sorted(masks, key=lambda entry: -entry[0].sum())[:MOST_REGIONS]
        for number, (mask, text) in enumerate(masks, 1):
            maps[place, 0, :height, :width][torch.from_numpy(mask)] = number
            numbers[place, number] = len(boxes)
            rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
            boxes.append([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            photos.append(place)
            labels.append(texts.setdefault(text, len(texts)))
    return PhotoBank(
        pixels,
        sizes,
        maps,
        numbers,
        torch.tensor(np.array(boxes, dtype=np.float32).reshape(-1, 4)),
        torch.tensor(photos, dtype=torch.long),
        torch.tensor(labels, dtype=torch.long),
        list(texts),
        captions,
    )


def _check_memory(count: int, side: int) -> None:
    needed = count * 4 * side**2
    logger.info("%d photos of %d x %d pixels take %.1f GB of memory", count, side, side, needed / 1e9)
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise MemoryError(
            f"{count} photos of {side} x {side} pixels take {needed / 1e9:.1f} GB, and this machine has "
            f"{memory / 1e9:.1f} GB; take fewer photos or a smaller side (--photo_size)."
        )


def tower_size(config: PixCLIPVisionConfig) -> tuple[int, int]:
    """Height and width in pixels of the images that a tower takes."""
    return tuple(side * config.patch_size for side in config.grid_size)


def student_pixels(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Views (B, 3, h, w) in 0..1 at the tower's size, normalised as by the processor."""
    mean, std = (
        torch.tensor(getattr(PixCLIPImageProcessor, name), device=images.device)[:, None, None]
        for name in ("image_mean", "image_std")
    )
    return (nn.functional.interpolate(images.float(), size, mode="area") - mean) / std


@dataclass(frozen=True)
class ViewOptions:
    """
    Shares of the batch, and ranges.

    Args:
        focus: Windows around a region, from tight to wide; the others are windows of any scale.
        paste: An object of another view is pasted in.
        cut: A rectangle of another view is.
        mix: Mixed with another view; has no regions then.
        least_share: Least share of the photo that a window covers.
        least_region: Least share of the view that a region covers, to count as one.
    """

    focus: float = 0.5
    paste: float = 0.5
    cut: float = 0.2
    mix: float = 0.1
    least_share: float = 0.06
    least_region: float = 0.004


@dataclass
class Views:
    """
    B views.

    Args:
        images: (B, 3, side, side) in 0..1.
        regions: int64 (B, side, side), the region at each pixel, -1 for none.
        chosen: int64 (B, K), regions of each view, the first one the view's own; -1 where there are fewer.
        photos: int64 (B,), the photo that a view is of.
    """

    images: torch.Tensor
    regions: torch.Tensor
    chosen: torch.Tensor
    photos: torch.Tensor


class ViewSampler:
    """
    Draws views.

    Args:
        bank: Photos.
        side: Side of the views in pixels.
        options: What they are like.
        generator: Of all draws, on the bank's device.
    """

    def __init__(self, bank: PhotoBank, side: int, options: ViewOptions, generator: torch.Generator):
        self.bank, self.side, self.options, self.generator = bank, side, options, generator
        self.device = bank.pixels.device
        # Between the texts' own frequencies and equal ones.
        counts = bank.labels.bincount(minlength=1).float()
        self.weights = counts[bank.labels] ** -0.25 if len(bank.labels) else None

    def _uniform(self, count: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.rand(count, device=self.device, generator=self.generator) * (high - low) + low

    def _integers(self, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, device=self.device, generator=self.generator)

    @torch.no_grad()
    def draw(self, count: int, regions: int = 4) -> Views:
        """`count` views with up to `regions` chosen regions each."""
        images, labels, own, photos = self._windows(count)
        images = self._recolour(images)
        images, labels, own = self._combine(images, labels, own)
        images = self._soften(images).clamp(0, 1)
        return Views(images, labels, self._choose(labels, own, regions), photos)

    def whole_photos(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Photos as they are, squashed to the views' side: images, and regions as in `Views`."""
        heights, widths = self.bank.sizes[places].unbind(1)
        centres = torch.stack([widths, heights], 1) / 2
        zeros = torch.zeros_like(widths)
        return self._sample(places, centres, widths, heights, zeros, zeros + 1)

    def regions_in_context(self, regions: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Square windows around regions, `scale` times the longer side of their boxes, and the regions in them."""
        boxes, places = self.bank.boxes[regions], self.bank.photos[regions]
        sides = (boxes[:, 2:] - boxes[:, :2]).amax(1) * scale
        zeros = torch.zeros_like(sides)
        return self._sample(places, (boxes[:, :2] + boxes[:, 2:]) / 2, sides, sides, zeros, zeros + 1)

    def _windows(self, count: int):
        bank, options = self.bank, self.options
        places = self._integers(len(bank.pixels), count)
        heights, widths = bank.sizes[places].unbind(1)
        shares = torch.exp(self._uniform(count, math.log(options.least_share), 0.0))
        whole = self._uniform(count) < 0.25
        shares = torch.where(whole, self._uniform(count, 0.7, 1.0), shares)
        aspects = torch.exp(self._uniform(count, -0.35, 0.35))
        window_widths = (widths * (shares * aspects).sqrt()).minimum(widths)
        window_heights = (heights * (shares / aspects).sqrt()).minimum(heights)
        centres = torch.stack(
            [
                window_widths / 2 + self._uniform(count) * (widths - window_widths),
                window_heights / 2 + self._uniform(count) * (heights - window_heights),
            ],
            dim=1,
        )
        own = torch.full((count,), -1, device=self.device)
        if self.weights is not None:
            focused = self._uniform(count) < options.focus
            regions = torch.multinomial(self.weights, count, replacement=True, generator=self.generator)
            boxes = bank.boxes[regions]
            places = torch.where(focused, bank.photos[regions], places)
            heights, widths = bank.sizes[places].unbind(1)
            sides = (boxes[:, 2:] - boxes[:, :2]).amax(1) * torch.exp(self._uniform(count, 0.05, 1.4))
            sides = sides.clamp(min=48).minimum(torch.maximum(heights, widths))
            offsets = torch.stack([self._uniform(count, -0.25, 0.25), self._uniform(count, -0.25, 0.25)], dim=1)
            around = (boxes[:, :2] + boxes[:, 2:]) / 2 + offsets * sides[:, None]
            centres = torch.where(focused[:, None], around, centres)
            window_widths = torch.where(focused, sides * aspects.sqrt(), window_widths)
            window_heights = torch.where(focused, sides / aspects.sqrt(), window_heights)
            own = torch.where(focused, regions, own)
        # Within the photo where they fit.
        halves = torch.stack([window_widths.minimum(widths), window_heights.minimum(heights)], dim=1) / 2
        centres = centres.clamp(halves, torch.stack([widths, heights], dim=1) - halves)
        angles = torch.where(self._uniform(count) < 0.3, self._uniform(count, -0.3, 0.3), torch.zeros_like(shares))
        mirrored = torch.where(self._uniform(count) < 0.5, -1.0, 1.0)
        images, labels = self._sample(places, centres, window_widths, window_heights, angles, mirrored)
        return images, labels, own, places

    def _sample(self, places, centres, widths, heights, angles, mirrored):
        """Windows by their centre (x, y), width and height in pixels of the photo, angle and mirroring."""
        bank, side = self.bank, self.side
        steps = (torch.arange(side, device=self.device) + 0.5) / side - 0.5
        across = steps[None, None, :] * (widths * mirrored)[:, None, None]
        down = steps[None, :, None] * heights[:, None, None]
        cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
        x = centres[:, 0, None, None] + across * cos - down * sin
        y = centres[:, 1, None, None] + across * sin + down * cos
        # Beyond the photo it goes on as its own mirror image.
        limits = bank.sizes[places][:, :, None, None]
        x, y = (self._reflect(place, limit) for place, limit in ((x, limits[:, 1]), (y, limits[:, 0])))
        grid = torch.stack([x, y], dim=-1) / bank.pixels.shape[-1] * 2 - 1
        images = nn.functional.grid_sample(
            bank.pixels[places].float() / 255, grid, padding_mode="border", align_corners=False
        )
        numbers = nn.functional.grid_sample(
            bank.maps[places].float(), grid, mode="nearest", padding_mode="border", align_corners=False
        )[:, 0]
        rows = torch.arange(len(places), device=self.device)[:, None, None]
        return images, bank.regions[places][rows, numbers.round().long()]

    @staticmethod
    def _reflect(place: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        place = place.remainder(2 * limit)
        return torch.where(place > limit, 2 * limit - place, place)

    def _recolour(self, images: torch.Tensor) -> torch.Tensor:
        count = len(images)
        strength = self._uniform(count)[:, None, None] * 0.25
        noise = torch.randn(count, 3, 3, device=self.device, generator=self.generator)
        matrices = torch.eye(3, device=self.device) + strength * noise
        grey = torch.full((3, 3), 1 / 3, device=self.device)
        matrices = torch.where((self._uniform(count) < 0.1)[:, None, None], grey, matrices)
        means = images.mean((2, 3), keepdim=True)
        contrast = torch.exp(self._uniform(count, -0.4, 0.4))[:, None, None, None]
        brightness = self._uniform(count, -0.15, 0.15)[:, None, None, None]
        images = torch.einsum("bij,bjhw->bihw", matrices, images - means) * contrast + means + brightness
        gamma = torch.exp(self._uniform(count, -0.4, 0.4))[:, None, None, None]
        return images.clamp(1e-4, 1) ** gamma

    def _combine(self, images: torch.Tensor, labels: torch.Tensor, own: torch.Tensor):
        count, options = len(images), self.options
        order = torch.randperm(count, device=self.device, generator=self.generator)
        others, other_labels, other_own = images[order], labels[order], own[order]
        # An object of the other view, as large as it is there.
        pasted = (other_labels == other_own[:, None, None]) & (other_own >= 0)[:, None, None]
        shares = pasted.float().mean((1, 2))
        use = (self._uniform(count) < options.paste) & (shares > options.least_region) & (shares < 0.6)
        pasted &= use[:, None, None]
        alpha = nn.functional.avg_pool2d(pasted[:, None].float(), 3, 1, 1)
        images = torch.lerp(images, others, alpha)
        labels = torch.where(pasted, other_labels, labels)
        own = torch.where(use & (self._uniform(count) < 0.7), other_own, own)
        # A rectangle of a third view.
        others, other_labels = images.roll(1, 0), labels.roll(1, 0)
        steps = (torch.arange(self.side, device=self.device) + 0.5) / self.side
        use = self._uniform(count) < options.cut
        inside = use[:, None, None]
        for axis in (0, 1):
            length = self._uniform(count, 0.25, 0.7)
            start = self._uniform(count) * (1 - length)
            within = (steps[None] >= start[:, None]) & (steps[None] < (start + length)[:, None])
            inside = inside & (within[:, :, None] if axis == 0 else within[:, None, :])
        images = torch.where(inside[:, None], others, images)
        labels = torch.where(inside, other_labels, labels)
        # Two views at once.
        use = self._uniform(count) < options.mix
        weight = torch.where(use, self._uniform(count, 0.2, 0.5), torch.zeros(count, device=self.device))
        images = torch.lerp(images, images.roll(2, 0), weight[:, None, None, None])
        labels = labels.masked_fill(use[:, None, None], -1)
        return images, labels, own

    def _soften(self, images: torch.Tensor) -> torch.Tensor:
        count = len(images)
        blurred = nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
        weight = torch.where(self._uniform(count) < 0.2, self._uniform(count), torch.zeros(count, device=self.device))
        return torch.lerp(images, blurred, weight[:, None, None, None])

    def _choose(self, labels: torch.Tensor, own: torch.Tensor, regions: int) -> torch.Tensor:
        """Regions that cover enough, found at random pixels, so that larger ones are likelier; the view's own is first."""
        count = len(labels)
        found = labels.flatten(1).gather(1, self._integers(self.side**2, count, 4 * regions))
        candidates = torch.cat([own[:, None], found], dim=1)
        # Each once: later repetitions are dropped.
        repeated = (candidates[:, :, None] == candidates[:, None, :]).tril(-1).any(2)
        candidates = candidates.masked_fill(repeated, -1)
        place = (candidates < 0).int().argsort(dim=1, stable=True)
        chosen = candidates.gather(1, place)[:, :regions]
        shares = torch.stack(
            [(labels == chosen[:, k, None, None]).float().mean((1, 2)) for k in range(chosen.shape[1])], dim=1
        )
        chosen = chosen.masked_fill(shares < self.options.least_region, -1)
        return chosen.gather(1, (chosen < 0).int().argsort(dim=1, stable=True))


__all__ = ["PhotoBank", "ViewOptions", "ViewSampler", "Views", "read_photos", "student_pixels", "tower_size"]
