# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Classification of ImageNet-S's images by their foreground."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..region_records import open_stored_image, read_image_header
from ..regions import encode_rle
from .benchmark import SourceFile
from .items import EvaluationImage, EvaluationRegion
from .region_classification import RegionClassification, RegionClassificationProtocol


@dataclass(frozen=True)
class ImageNetSProtocol(RegionClassificationProtocol):
    """What decides a figure on ImageNet-S besides the model.

    Attributes:
        size: How many classes: 919, 300 or 50, three data sets of one layout.
        names: How a class is called: "wordnet", by the first of its names in `LOC_synset_mapping.txt`; or "file", as
            `ImageNetS_names.txt` says, for example by the names that CLIP's authors chose, which most published figures use.
        split: "validation", or the annotated part of the training images.
        average: Which mean stands for the benchmark, both are figures: over all "regions", one an image, or over "classes",
            the mean of the classes that occur, as Alpha-CLIP reports it.

    Example:
        >>> ImageNetS.presets["default"].changed({"size": "50"}).size
        50
    """

    size: Literal[919, 300, 50] = 919
    names: Literal["wordnet", "file"] = "wordnet"
    split: Literal["validation", "train-semi"] = "validation"
    average: Literal["regions", "classes"] = "classes"


_DEFAULT = ImageNetSProtocol()


class ImageNetS(RegionClassification):
    """Classification of an image by its foreground: the pixels of its class.

    Source: ImageNet-S (arXiv 2106.03149, LUSSeg/ImageNet-S), used for classification by Alpha-CLIP (arXiv 2312.03818).
    The PNG of an image holds a class a pixel, R + 256 G: 0 is any other class, 1000 is ignored, and number n is the n-th of
    the sorted WordNet ids. One region an image: the pixels of the class in whose folder it lies; without such a pixel, it
    is left out, counted.

    WordNet's first names are not all distinct: of the 919, two classes are "crane", and "Cardigan" and "cardigan" are one to
    tokenizers that are blind to case. Such classes tie, so under the default tie rule none of them is ever right at top-1;
    `counts` tells how many share their name. The protocol's `names="file"` gives them names of their own.

    Presets: "default" (one template), "imagenet-80" (CLIP's 80 templates; CLIP pairs them with names of its own, here they
    are WordNet's unless `names` is "file"), and "near-alphaclip": Alpha-CLIP's names, with underscores between words. Its
    figures are near, not equal: Alpha-CLIP also cuts the central square out of image and mask, which no view does, and
    takes some one of tied classes, where this counts a tie as wrong.

    Example:
        >>> benchmark = ImageNetS("imagenet-s", ImageNetS.presets["imagenet-80"])  # doctest: +SKIP
    """

    name = "imagenet-s"
    summary = "class of an image by its foreground mask, out of 919 (300, 50) names: top-1, top-5, mean per class"
    main_figure = "top-1, mean per class"
    dataset = "ImageNet-S"
    published = {
        "ImageNet-S-919 validation": {"images": 12_419},
        "ImageNet-S-300 validation": {"images": 4_097},
        "ImageNet-S-50 validation": {"images": 752},
    }
    presets = {
        protocol.name: protocol
        for protocol in (
            _DEFAULT,
            replace(_DEFAULT, name="imagenet-80", templates="imagenet-80"),
            replace(_DEFAULT, name="near-alphaclip", views=("full+mask",), class_names="underscores"),
        )
    }
    layout = (
        SourceFile(
            "ImageNetS{size}/{split}",
            "folder of the images, {split}/n01440764/*.JPEG",
            "data_preparation.sh of https://github.com/LUSSeg/ImageNet-S makes it of ImageNet-1k.",
        ),
        SourceFile(
            "ImageNetS{size}/{split}-segmentation",
            "folder of the masks, {split}-segmentation/n01440764/*.png",
            "datapreparation_anno.sh of https://github.com/LUSSeg/ImageNet-S gets it.",
            annotations=True,
        ),
        SourceFile(
            "ImageNetS_categories_im{size}.txt",
            "WordNet ids of the classes, one a line",
            "It is in data/categories of https://github.com/LUSSeg/ImageNet-S.",
        ),
        SourceFile(
            "LOC_synset_mapping.txt",
            "names of ImageNet's classes, lines as `n01440764 tench, Tinca tinca`",
            "It comes with ImageNet-1k, https://www.kaggle.com/c/imagenet-object-localization-challenge/data.",
        ),
        SourceFile(
            "ImageNetS_names.txt",
            "names of classes, lines of a WordNet id, a tab and a name; read where the protocol's names is 'file'",
            "It is yours to write. CLIP's names, in the order of the sorted ids of all 1,000 classes, are in "
            "notebooks/Prompt_Engineering_for_ImageNet.ipynb of https://github.com/openai/CLIP.",
            optional=True,
        ),
    )

    def __init__(self, data_dir: str | os.PathLike, protocol: ImageNetSProtocol | None = None):
        super().__init__(data_dir, protocol)
        self.dataset = f"ImageNet-S-{self.protocol.size} {self.protocol.split}"

    def sources(self) -> tuple[SourceFile, ...]:
        """The files of the layout, of those with names the one that the protocol reads."""
        *always, wordnet, own = self.layout
        return (*always, wordnet if self.protocol.names == "wordnet" else replace(own, optional=False))

    def read(self, left_out: Counter[str]) -> tuple[list[str], list[tuple[EvaluationRegion, int]]]:
        photos, masks, categories, mapping = (self.path(source) for source in self.sources())
        classes = sorted(categories.read_text(encoding="utf-8").split())
        named = {}
        for line in mapping.read_text(encoding="utf-8-sig").splitlines():
            if self.protocol.names == "wordnet":
                wordnet_id, _, names = line.partition(" ")
                named[wordnet_id] = names.split(",")[0].strip()
            else:
                wordnet_id, _, name = line.partition("\t")
                named[wordnet_id] = name.strip()
        unnamed = [wordnet_id for wordnet_id in classes if not named.get(wordnet_id)]
        if unnamed:
            raise ValueError(
                f"{mapping} names none of {len(unnamed)} classes of {categories}, the first is {unnamed[0]!r}; accepted are "
                f"lines of a WordNet id, a {'space and names' if self.protocol.names == 'wordnet' else 'tab and a name'}. "
                f"{self.sources()[-1].where}"
            )
        numbers = {wordnet_id: place for place, wordnet_id in enumerate(classes)}
        files = sorted(masks.glob("*/*.png"), key=lambda file: (file.parent.name, file.name))[: self.protocol.limit]
        found = []
        for file in files:
            folder = file.parent.name
            if folder not in numbers:
                raise ValueError(
                    f"{file.parent} is no class of {categories}, which lists {len(classes)}; remove the folder, or check the "
                    f"protocol's size, which is {self.protocol.size}."
                )
            key = f"{photos.name}/{folder}/{file.stem}.JPEG"
            mask = _class_of_pixels(file) == numbers[folder] + 1
            area = int(mask.sum())
            if not area:
                left_out["images left out, no pixel of their class"] += 1
            elif area < self.protocol.min_area:
                left_out["images left out, below min_area"] += 1
            else:
                image = EvaluationImage(key, photos / folder / f"{file.stem}.JPEG")
                found.append((EvaluationRegion(key, image, encode_rle(mask)), numbers[folder]))
        return [named[wordnet_id] for wordnet_id in classes], found


def _class_of_pixels(file: Path) -> np.ndarray:
    """Number of the class of each pixel, (height, width), int64."""
    mode = read_image_header(file, str(file))[1]
    if mode != "RGB":
        raise ValueError(f"{file} has PIL mode {mode!r}; accepted is 'RGB', a class is R + 256 G.")
    red, green, _ = np.moveaxis(np.asarray(open_stored_image(file, str(file))).astype(np.int64), -1, 0)
    return red + 256 * green
