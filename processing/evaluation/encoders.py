# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a benchmark asks of a model: vectors of texts, images and regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from .items import EvaluationRegion


# What a text is, which decides the path it takes in models with several: a class name in a template or a text of a region;
# a sentence about a whole image; a paragraph about one.
TEXT_KINDS = ("region", "caption", "long")


class Encoder(Protocol):
    """A model that a benchmark measures. Vectors are float32 and *not* normalised: a protocol says whether they are.

    Attributes:
        views: Ways of showing a region that the model supports, names of `region_views.VIEWS`.
        logit_scale: Factor of cosines in the model's own logits, where a protocol needs probabilities.

    Example:
        What a benchmark of images needs of a model of your own; the other methods may raise.

        >>> from processing_pixclip.evaluation import FeatureExtractor
        >>> class Lengths:
        ...     views, logit_scale = (), 1.0
        ...
        ...     def fingerprint(self):
        ...         return "lengths-1"
        ...
        ...     def describe(self):
        ...         return {"name": "lengths"}
        ...
        ...     def text_lengths(self, texts, kind):
        ...         return [len(text) for text in texts]
        ...
        ...     def encode_texts(self, texts, kind):
        ...         return np.array([[len(text), 1] for text in texts], dtype=np.float32)
        ...
        ...     def encode_images(self, images):
        ...         return np.array([image.size for image in images], dtype=np.float32)
        >>> FeatureExtractor(Lengths(), progress=False).texts(["a dog", "a"], kind="caption")
        array([[5., 1.],
               [1., 1.]], dtype=float32)
    """

    views: tuple[str, ...]
    logit_scale: float

    def fingerprint(self) -> str:
        """Equal fingerprints mean equal vectors: of weights, configuration, preprocessing and dtype."""

    def describe(self) -> dict[str, Any]:
        """What affects a number and is the model's: name, class, resolution, template, lengths, dtype; no path of the machine."""

    def text_lengths(self, texts: Sequence[str], kind: str) -> list[int]:
        """Tokens of each text, as they are fed: what batches are made by."""

    def encode_texts(self, texts: Sequence[str], kind: str) -> np.ndarray:
        """Vectors (T, D) of one batch of texts; `kind` is one of `TEXT_KINDS`."""

    def encode_images(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Vectors (B, D) of one batch of whole images."""

    def encode_regions(
        self, images: Sequence[Image.Image], regions: Sequence[Sequence[EvaluationRegion]], view: str
    ) -> np.ndarray:
        """Vectors (R, D) of the regions of one batch of images, image by image; `view` is one of `views`."""
