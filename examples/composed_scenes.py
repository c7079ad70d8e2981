# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Scenes of several objects, composed on the fly: cut-outs of COCO objects on backgrounds of COCO photos.

The masks are exact, what stands in front is taken out of what stands behind, and every text is measured in the finished
scene, so that it is true and tells its object from the others of the scene.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from scene_texts import (
    ATTRIBUTES,
    SIZES,
    Claim,
    hard_negative_claims,
    measure_object,
    noun_phrase,
    region_text,
    swap_claim,
    tells_apart,
    true_claims,
)
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from processing_pixclip import CocoRegionDataset, RegionJsonlDataset, RegionSample, to_mask


# How often each attribute is told where it is clear.
TOLD = {"colour": 0.8, "size": 0.6, "place": 0.6, "relation": 0.5}
# Visible share of the scene that an object is scaled to, by size; within the limits of SIZES.
DRAWN_SHARES = {"small": (0.016, 0.03), "medium-sized": (0.048, 0.078), "large": (0.115, 0.2)}
LEAST_VISIBLE = 0.6
# Of the side of an object's box in its photo, in pixels, and of its share of the photo.
LEAST_SIDE, LEAST_SHARE = 24, 0.004


# What COCO annotates as instances. Its stuff, such as grass or sky, is no object to cut out.
COCO_CLASSES = tuple(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, "
    "parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, "
    "handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
    "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, "
    "broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, "
    "mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush".split(", ")
)


@dataclass(frozen=True)
class Cutout:
    """An object out of a photo: its category, its pixels (h, w, 3) and its soft mask (h, w), both uint8."""

    category: str
    pixels: np.ndarray
    alpha: np.ndarray


@dataclass(frozen=True)
class SceneParts:
    """Cut-outs and square backgrounds (side, side, 3), uint8, of one split; a scene has the side of its background."""

    cutouts: list[Cutout]
    backgrounds: list[np.ndarray]

    @property
    def side(self) -> int:
        return len(self.backgrounds[0])


def read_photos(
    data_dir: str | os.PathLike, split: str, least_share: float = LEAST_SHARE, most: int | None = None
) -> Iterator[RegionSample]:
    """
    Photos of a split with the masks of their objects, all of `COCO_CLASSES`.

    Args:
        data_dir: Folder in the layout of COCO, with `annotations/instances_{split}.json` and `images/{split}/`, or with
            `{split}.jsonl` as `RegionJsonlDataset` reads it.
        split: For example `"train2017"`, or `"train"`.
        least_share: Least share of its photo that an object covers.
        most: Number of photos to read, the first of the split; all by default.

    Raises:
        FileNotFoundError: If the folder has neither file.
    """
    instances, lines = Path(data_dir, "annotations", f"instances_{split}.json"), Path(data_dir, f"{split}.jsonl")
    if instances.is_file():
        photos = CocoRegionDataset(
            Path(data_dir, "images", split), instances, min_area_fraction=least_share, compose_texts=False
        )
    elif lines.is_file():
        photos = RegionJsonlDataset(lines)
    else:
        raise FileNotFoundError(
            f"there is neither {instances} nor {lines}; accepted is a folder in the layout of COCO, or one with JSON "
            "lines as processing_pixclip.RegionJsonlDataset reads them."
        )
    for number in range(len(photos) if most is None else min(most, len(photos))):
        photo = photos[number]
        height, width = photo["image"].height, photo["image"].width
        regions = []
        for region, (mask, category) in enumerate(zip(photo["masks"], photo["categories"])):
            if category in COCO_CLASSES:
                mask = to_mask(mask, height, width, f"mask {region} of photo {photo['image_id']}") >= 0.5
                if mask.mean() >= least_share:
                    regions.append((mask, category))
        texts = [noun_phrase(category) for _, category in regions]
        yield {
            "image": photo["image"],
            "image_id": photo["image_id"],
            "captions": [],
            "masks": [mask for mask, _ in regions],
            "texts": texts,
            "object_texts": texts,
            "categories": [category for _, category in regions],
        }


def load_scene_parts(
    data_dir: str | os.PathLike, split: str, side: int = 128, most_photos: int | None = None
) -> SceneParts:
    """
    Reads the photos of a split and cuts their objects out.

    A background is the largest square window of a photo that shows next to nothing of its annotated objects, or the whole
    photo blurred beyond recognition where there is no such window.

    Args:
        data_dir, split: As in `read_photos`.
        side: Side of the scenes in pixels.
        most_photos: Number of photos to read; all by default.
    """
    cutouts, backgrounds = [], []
    photos = read_photos(data_dir, split, most=most_photos)
    for photo in tqdm(photos, desc=f"cutting out the objects of {split}", leave=False, disable=None):
        image = photo["image"]
        covered = np.zeros((image.height, image.width), dtype=bool)
        for mask, category in zip(photo["masks"], photo["categories"]):
            covered |= mask
            cutout = cut_out(image, mask, category, side)
            if cutout is not None:
                cutouts.append(cutout)
        backgrounds.append(background_of(image, covered, side))
    return SceneParts(cutouts, backgrounds)


def cut_out(image: Image.Image, mask: np.ndarray, category: str, side: int) -> Cutout | None:
    """The object at no more than three quarters of `side` pixels, or `None` where it is too small to be told."""
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    width, height = box[2] - box[0], box[3] - box[1]
    if min(width, height) < LEAST_SIDE:
        return None
    scale = min(1.0, 0.75 * side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = image.crop(box).resize(size, Image.Resampling.BOX)
    alpha = Image.fromarray(mask).convert("L").crop(box).resize(size, Image.Resampling.BOX)
    return Cutout(category, np.asarray(pixels), np.asarray(alpha))


def background_of(image: Image.Image, covered: np.ndarray, side: int) -> np.ndarray:
    """The largest square window with less than 1 % of `covered`, of a third of the shorter side or more; else a blur."""
    height, width = covered.shape
    total = np.pad(covered.astype(np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    for window in np.linspace(min(height, width), min(height, width) / 3, 8).astype(int):
        # Every eighth of the window is fine enough.
        ys, xs = (range(0, length - window + 1, max(1, window // 8)) for length in (height, width))
        shares = {
            (x, y): total[y + window, x + window] - total[y, x + window] - total[y + window, x] + total[y, x]
            for y in ys
            for x in xs
        }
        x, y = min(shares, key=shares.get)
        if shares[x, y] < 0.01 * window**2:
            return np.asarray(image.crop((x, y, x + window, y + window)).resize((side, side), Image.Resampling.BOX))
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.filter(ImageFilter.GaussianBlur(side / 8)))


class ComposedScenes(Dataset):
    """
    Data set of composed scenes, for `PixCLIPDataCollator`.

    Scene `index` of an epoch depends on `seed`, the epoch and `index` only. Beside the keys of `RegionSample`, a sample
    has `hard_negative_attributes`, which attribute each hard negative has swapped, and `objects`, what was measured.

    Args:
        parts: Cut-outs and backgrounds.
        length: Scenes an epoch.
        seed: Of all draws.
        objects: Least and most objects a scene.
        hard_negatives: Most hard negatives a region.
        told: Probability that a clear attribute is told, by attribute; `TOLD` by default.
    """

    def __init__(
        self,
        parts: SceneParts,
        length: int,
        seed: int,
        objects: tuple[int, int] = (3, 5),
        hard_negatives: int = 10,
        told: dict[str, float] | None = None,
    ):
        self.parts = parts
        self.length = length
        self.seed = seed
        self.objects = objects
        self.hard_negatives = hard_negatives
        self.told = TOLD if told is None else told
        self.epoch = 0
        categories = [cutout.category for cutout in parts.cutouts]
        # Between the categories' own frequencies and equal ones: half of COCO's objects are persons.
        weights = np.array([categories.count(category) ** -0.5 for category in categories])
        self._weights = weights / weights.sum()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> RegionSample:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        rng = np.random.default_rng([self.seed, self.epoch, index])
        while True:
            sample = self._compose(rng)
            # One in thousands has fewer than two objects that can be told apart.
            if len(sample["masks"]) > 1:
                break
        return {**sample, "image_id": f"{self.seed}-{self.epoch}-{index}", "epoch": self.epoch}

    def _compose(self, rng: np.random.Generator) -> RegionSample:
        pixels, visible, categories = self._paint(rng)
        objects = [measure_object(pixels, mask, category) for mask, category in zip(visible, categories)]
        told = {i: self._choose_claims(i, objects, rng) for i in range(len(objects))}
        regions = [i for i, claims in told.items() if claims is not None]
        texts = [region_text(told[i], i, objects) for i in regions]
        wrong = {i: hard_negative_claims(told[i], i, objects, self.hard_negatives, rng) for i in regions}
        return {
            "image": Image.fromarray(pixels),
            "masks": [visible[i] for i in regions],
            "texts": texts,
            "object_texts": [
                region_text([claim for claim in told[i] if claim.kind == "colour"], i, objects) for i in regions
            ],
            "categories": [categories[i] for i in regions],
            "captions": [_enumerate([noun_phrase(category) for category in categories])],
            "long_captions": [" . ".join(texts) + " ."],
            "hard_negatives": [
                [region_text(swap_claim(told[i], claim), i, objects) for claim in wrong[i]] for i in regions
            ],
            "hard_negative_attributes": [[claim.kind for claim in wrong[i]] for i in regions],
            "objects": [objects[i] for i in regions],
        }

    def _paint(self, rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray], list[str]]:
        """The scene (side, side, 3), the visible pixels of each object and its category; back to front."""
        side = self.parts.side
        pixels = self.parts.backgrounds[rng.integers(len(self.parts.backgrounds))].copy()
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1].copy()
        wanted = rng.integers(self.objects[0], self.objects[1] + 1)
        sizes = sorted(rng.choice(list(SIZES), size=wanted), key=list(SIZES).index, reverse=True)
        cells = rng.permutation(9)[:wanted]
        visible: list[np.ndarray] = []
        full: list[int] = []
        categories: list[str] = []
        for size, cell in zip(sizes, cells):
            cutout = self.parts.cutouts[rng.choice(len(self.parts.cutouts), p=self._weights)]
            share = rng.uniform(*DRAWN_SHARES[size])
            scale = min(
                (share * side**2 / max((cutout.alpha >= 128).sum(), 1)) ** 0.5, 0.9 * side / max(cutout.alpha.shape)
            )
            height, width = (max(3, round(length * scale)) for length in cutout.alpha.shape)
            colour, alpha = (
                np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))
                for array in (cutout.pixels, cutout.alpha)
            )
            if rng.random() < 0.5:
                colour, alpha = colour[:, ::-1], alpha[:, ::-1]
            centre = ((cell % 3 + rng.uniform(0.2, 0.8)) / 3 * side, (cell // 3 + rng.uniform(0.2, 0.8)) / 3 * side)
            x, y = (
                int(np.clip(round(middle - length / 2), 0, side - length))
                for middle, length in zip(centre, (width, height))
            )
            window = (slice(y, y + height), slice(x, x + width))
            mask = np.zeros((side, side), dtype=bool)
            mask[window] = alpha >= 128
            left = [behind & ~mask for behind in visible]
            if not mask.any() or any(part.sum() < LEAST_VISIBLE * area for part, area in zip(left, full)):
                continue
            blend = alpha[..., None].astype(np.float32) / 255
            pixels[window] = np.rint(blend * colour + (1 - blend) * pixels[window]).astype(np.uint8)
            visible = [*left, mask]
            full.append(int(mask.sum()))
            categories.append(cutout.category)
        return pixels, visible, categories

    def _choose_claims(self, index, objects, rng: np.random.Generator) -> list[Claim] | None:
        """Some of the true claims, more where they are needed to tell the object from the others; `None` if none do."""
        clear = true_claims(index, objects)
        chances = {kind: rng.random() for kind in ATTRIBUTES}
        # Told first are those that are furthest below their probability.
        order = sorted(clear, key=lambda kind: chances[kind] - self.told[kind])
        told = [kind for kind in order if chances[kind] < self.told[kind]]
        while not tells_apart([clear[kind] for kind in told], index, objects):
            if len(told) == len(order):
                return None
            told.append(order[len(told)])
        return [clear[kind] for kind in ATTRIBUTES if kind in told]


def compose_scenes(parts: SceneParts, count: int, seed: int) -> list[RegionSample]:
    """The first scenes of `ComposedScenes(parts, count, seed)`, held in memory."""
    composed = ComposedScenes(parts, count, seed)
    return [composed[index] for index in range(count)]


def _enumerate(phrases: list[str]) -> str:
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
