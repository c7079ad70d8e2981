# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Encoders that know nothing, or the answers, and the real photos that benchmarks are tested on."""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image


ROOT = Path(__file__).parents[1]
# Real photos of COCO val2017 with masks and captions, in the repository.
PHOTOS = ROOT / "examples" / "data" / "coco_regions"
# More real data, beside the repository; tests of it skip where it is not.
SHARED = ROOT.parent / "shared" / "data"
WIDTH = 256


def heldout_records(count=None):
    """Records of held-out photos: image, width, height, captions, regions (mask, category, text, object_text)."""
    lines = (PHOTOS / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def pixels_key(image):
    """The same for a file and for the picture that was opened from it."""
    if not isinstance(image, Image.Image):
        image = Image.open(image).convert("RGB")
    return hashlib.sha256(image.tobytes() + repr(image.size).encode()).hexdigest()


class RandomEncoder:
    """Draws a vector for each text, image and region: the same for the same one, whatever the order of calls."""

    views = ("full+mask", "crop+mask", "padded-crop+mask", "blur+mask", "full", "box-crop", "mask-pooled", "roi")
    logit_scale = 100.0

    def __init__(self, seed=0):
        self.seed = seed

    def fingerprint(self):
        return f"{type(self).__name__}-{self.seed}"

    def describe(self):
        return {"name": type(self).__name__, "seed": self.seed}

    def draw(self, *key):
        digest = hashlib.sha256(repr((self.seed, *key)).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big")).standard_normal(WIDTH, dtype=np.float32)

    def text_vector(self, text, kind):
        return self.draw("text", text)

    def image_vector(self, image):
        return self.draw("image", pixels_key(image))

    def region_vector(self, region, view):
        return self.draw("region", region.key, view)

    def text_lengths(self, texts, kind):
        return [len(text.split()) + 2 for text in texts]

    def encode_texts(self, texts, kind):
        return np.stack([self.text_vector(text, kind) for text in texts])

    def encode_images(self, images):
        return np.stack([self.image_vector(image) for image in images])

    def encode_regions(self, images, regions, view):
        return np.stack([self.region_vector(region, view) for group in regions for region in group])


class ToldEncoder(RandomEncoder):
    """Knows what belongs together: what has one answer has one vector, the rest is drawn.

    Args:
        texts: The answer of each text, any hashable value.
        regions: The answer of each region, by its key.
        images: The answer of each image, by its `pixels_key`.
    """

    def __init__(self, texts=None, regions=None, images=None, seed=0):
        super().__init__(seed)
        self.answers = {"text": texts or {}, "region": regions or {}, "image": images or {}}

    def told(self, kind, key, drawn):
        return self.draw("answer", self.answers[kind][key]) if key in self.answers[kind] else drawn

    def text_vector(self, text, kind):
        return self.told("text", text, super().text_vector(text, kind))

    def image_vector(self, image):
        return self.told("image", pixels_key(image), super().image_vector(image))

    def region_vector(self, region, view):
        return self.told("region", region.key, super().region_vector(region, view))
