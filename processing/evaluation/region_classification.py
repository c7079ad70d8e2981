# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Zero-shot classification of regions: protocol, figures and the base of its benchmarks."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from .benchmark import Benchmark, SourceFile
from .class_prompts import class_embeddings, readable_name, template_texts
from .classification_scores import target_ranks, tie_rule
from .encoders import Encoder
from .features import FeatureExtractor
from .items import EvaluationImage, EvaluationRegion, place
from .protocols import Protocol
from .region_views import VIEWS, check_view
from .results import BenchmarkResult, Figure
from .scores import NOT_SHOWN, mean_figure, shown, unit


# Regions whose scores are in memory at one time.
_CHUNK = 4096
_TOP = (1, 5)


@dataclass(frozen=True)
class RegionClassificationProtocol(Protocol):
    """What decides a figure of region classification besides the model.

    A region's score for a class is the cosine of their vectors; that of a class is the normalised mean over its prompts,
    see `class_prompts.class_embeddings`. All classes of the file compete, also those of which no region is shown.

    Attributes:
        split: Which part of the data; each benchmark says what it has.
        views: Ways of showing a region, names of `region_views.VIEWS`, each a figure of its own. "auto" is "full+mask" of
            a model that takes masks and "masked-crop" of any other; the result's protocol says which it was. Views joined
            as in "full+mask + blur+mask" are one: their cosines are added.
        templates: A name of `class_prompts.TEMPLATES`; the result's protocol has the texts.
        class_names: Words of a class name are parted by "spaces", so LVIS's `bow_(weapon)` is "bow (weapon)"; or by
            "underscores".
        min_area: Leave out smaller regions, counted; pixels of the mask, or of the box where regions are boxes.
        average: Which mean stands for the benchmark, both are figures: over all "regions", or over "classes", the mean of
            the classes that occur.
        ties: "pessimistic": a wrong class with the same score ranks before the right one; "optimistic": after it. Scores
            are the same up to rounding, see `classification_scores.target_ranks`. Classes of one name tie.

    Example:
        >>> protocol = RegionClassificationProtocol().changed({"views": "roi, mask-pooled", "templates": "imagenet-80"})
        >>> protocol.views
        ('roi', 'mask-pooled')
    """

    split: str = "val2017"
    views: tuple[str, ...] = ("auto",)
    templates: Literal["single", "imagenet-80", "plain"] = "single"
    class_names: Literal["spaces", "underscores"] = "spaces"
    min_area: float = 0.0
    average: Literal["regions", "classes"] = "regions"
    ties: Literal["pessimistic", "optimistic"] = "pessimistic"

    def details(self) -> dict[str, Any]:
        return super().details() | {
            "template_texts": template_texts(self.templates),
            "view_summaries": view_summaries(self.views),
            "tie_rule": tie_rule(self.ties),
        }


def classification_figures(
    ranks: np.ndarray,
    targets: np.ndarray,
    photos: Sequence[Hashable],
    classes: int,
    protocol: RegionClassificationProtocol,
) -> dict[str, Figure]:
    """Top-1 and top-5 accuracy, over all regions and as the mean of the classes that occur.

    Args:
        ranks: Rank of each region's right class, (R,), 1 for the top.
        targets: Index of the right class, (R,).
        photos: Key of the photo of each region, (R,); intervals draw photos, see `scores.mean_figure`.
        classes: How many compete.
        protocol: Gives `bootstrap` and `seed`.

    Returns:
        "top-1", "top-5", "top-1, mean per class" and "top-5, mean per class".

    Example:
        >>> protocol = RegionClassificationProtocol(bootstrap=0)
        >>> ranks, targets = np.array([1, 1, 2, 7]), np.array([0, 0, 0, 3])
        >>> figures = classification_figures(ranks, targets, ["a.jpg", "a.jpg", "b.jpg", "b.jpg"], 10, protocol)
        >>> {name: round(figure.value, 3) for name, figure in figures.items()}
        {'top-1': 0.5, 'top-5': 0.75, 'top-1, mean per class': 0.333, 'top-5, mean per class': 0.5}
    """
    figures = {}
    for suffix, groups in (("", None), (", mean per class", targets)):
        for top in _TOP:
            figures[f"top-{top}{suffix}"] = mean_figure(
                ranks <= top, photos, protocol.bootstrap, protocol.seed, min(top, classes) / classes, groups
            )
    return figures


class RegionClassification(Benchmark):
    """Base of the benchmarks that name the class of a region. A subclass reads its files in `read`.

    A folder of the layout may also lie below `images/`: `val2017/` is looked for first, then `images/val2017/`.

    A region of which the model's frame shows nothing is classified wrongly, at every k, whatever the tie rule, and
    `counts` of the result tells how many there are.

    `items` of a result are the regions under the first view, with `truth` and `predicted` (names of classes); their
    `score` is by how much the cosine of the predicted class exceeds that of the next one.

    Attributes:
        folders: Where below the data folder what the layout names is looked for.
        classes: Names as they stand in the prompts, filled by `load`.
        regions: What is shown, filled by `load`.
        targets: Index of the class of each region, filled by `load`.
    """

    task = "zero-shot-image-classification"
    main_figure = "top-1"
    folders: ClassVar[tuple[str, ...]] = ("", "images")
    presets: ClassVar[dict[str, RegionClassificationProtocol]]

    def __init__(self, data_dir: str | os.PathLike, protocol: RegionClassificationProtocol | None = None):
        super().__init__(data_dir, protocol)
        self.dataset = f"{self.dataset} {self.protocol.split}"
        self.classes: list[str] = []
        self.regions: list[EvaluationRegion] = []
        self.targets = np.zeros(0, dtype=np.int64)
        self.images: list[EvaluationImage] = []

    @abstractmethod
    def read(self, left_out: Counter[str]) -> tuple[list[str], list[tuple[EvaluationRegion, int]]]:
        """Reads the files: names of all classes, and regions, of at most `limit` images, with the index of their class.

        Args:
            left_out: To be filled with what is left out, by what it is and why.
        """

    def load(self) -> None:
        if self.classes:
            return
        self.check_layout()
        left_out: Counter[str] = Counter()
        names, found = self.read(left_out)
        if len(names) < 2:
            raise ValueError(f"{self.name}: the files list {len(names)} classes; classification needs two or more.")
        images = {region.image.key: region.image for region, _ in found}
        missing = self.check_images(images.values())
        found = [(region, target) for region, target in found if region.image.key not in missing]
        if not found:
            raise ValueError(
                f"{self.name}: no region is left; left out were {dict(left_out)} and {len(missing)} images without a file. "
                f"Check the files below {self.data_dir}, and the protocol's split, min_area and limit."
            )
        keys = Counter(region.key for region, _ in found)
        if len(keys) < len(found):
            raise ValueError(
                f"{self.name}: {max(keys, key=keys.get)} is listed more than once; a region's id must be its own."
            )
        self.images = [image for key, image in images.items() if key not in missing]
        self.regions = [region for region, _ in found]
        self.targets = np.array([target for _, target in found])
        classes = [readable_name(name, self.protocol.class_names) for name in names]
        # Most tokenizers are blind to case.
        times = Counter(name.casefold() for name in classes)
        self.counts |= {
            "images": len(self.images),
            "regions": len(self.regions),
            "classes": len(classes),
            "classes that occur": len(np.unique(self.targets)),
            "classes that share their name": sum(count for count in times.values() if count > 1),
            **dict(sorted(left_out.items())),
        }
        self.classes = classes

    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        self.load()
        views = [resolve_view(view, features.encoder) for view in self.protocol.views]
        classes = class_embeddings(features, self.classes, self.protocol.templates, "region")
        photos = [region.image.key for region in self.regions]
        not_shown: dict[str, int] = {}
        figures: dict[str, Figure] = {}
        items: list[dict[str, Any]] = []
        for view in views:
            vectors = sum(unit(features.regions(self.regions, part)) for part in view.split(" + "))
            ranks, predicted, margins = self._classify(vectors, classes)
            prefix = f"{view}: " if len(views) > 1 else ""
            not_shown[prefix + NOT_SHOWN] = int((~shown(vectors)).sum())
            of_view = classification_figures(ranks, self.targets, photos, len(classes), self.protocol)
            figures |= {prefix + name: figure for name, figure in of_view.items()}
            items = items or self._items(ranks, predicted, margins)
        prefix = f"{views[0]}: " if len(views) > 1 else ""
        suffix = ", mean per class" if self.protocol.average == "classes" else ""
        result = self.result(features, figures, items, self.images, f"{prefix}top-1{suffix}", views)
        result.counts |= not_shown
        return result

    def path(self, source: SourceFile) -> Path:
        return place(self.data_dir, source.path.format(**self.protocol.to_dict()), self.folders)

    def _classify(self, vectors: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rank of the right class, index of the predicted one, and its lead over the next, each (R,).

        A region that is not shown has a rank that is right at no k, and -1 as prediction.
        """
        ranks, predicted, margins = [], [], []
        for start in range(0, len(vectors), _CHUNK):
            targets = self.targets[start : start + _CHUNK]
            scores = vectors[start : start + _CHUNK] @ classes.T
            ranks.append(target_ranks(scores, targets, self.protocol.ties))
            second, first = np.partition(scores, -2, axis=1)[:, -2:].T
            margins.append(first - second)
            # Among equals the tie rule decides, so that an item is right where its rank says so.
            np.put_along_axis(scores, targets[:, None], -np.inf, axis=1)
            predicted.append(np.where(ranks[-1] == 1, targets, scores.argmax(axis=1)))
        seen = shown(vectors)
        return (
            np.where(seen, np.concatenate(ranks), len(classes) + max(_TOP)),
            np.where(seen, np.concatenate(predicted), -1),
            np.concatenate(margins),
        )

    def _items(self, ranks: np.ndarray, predicted: np.ndarray, margins: np.ndarray) -> list[dict[str, Any]]:
        rows = zip(
            self.regions, self.targets.tolist(), ranks.tolist(), predicted.tolist(), margins.tolist(), strict=True
        )
        return [
            {
                "key": region.key,
                "correct": rank == 1,
                "score": margin,
                "image": region.image.key,
                **({"box": region.box} if region.mask is None else {"mask": region.mask}),
                "truth": self.classes[target],
                "predicted": self.classes[guess] if guess >= 0 else "(nothing shown)",
            }
            for region, target, rank, guess, margin in rows
        ]


# What "auto" stands for: the first that the model supports.
_AUTO_VIEWS = ("full+mask", "masked-crop")


def view_summaries(views: Sequence[str]) -> dict[str, str]:
    """What the model gets under views, with margins, radii and other numbers, by the view; under "auto", both.

    Args:
        views: As of `RegionClassificationProtocol.views`.

    Raises:
        ValueError: If there is no such view.

    Example:
        >>> view_summaries(["box-crop"])
        {'box-crop': 'box with a margin of 15 % on each side'}
    """
    parts = [part for view in views for part in (_AUTO_VIEWS if view == "auto" else view.split(" + "))]
    for part in parts:
        check_view(part, tuple(VIEWS), "this library")
    return {part: VIEWS[part].summary for part in parts}


def resolve_view(view: str, encoder: Encoder) -> str:
    """The view that an entry of `RegionClassificationProtocol.views` means for a model.

    Args:
        view: A view, views joined by " + ", or "auto".
        encoder: The model.

    Raises:
        ValueError: If the model does not support it; names those that it does.

    Example:
        >>> resolve_view("auto", encoder)  # doctest: +SKIP
        'full+mask'
    """
    if view == "auto":
        view = next((choice for choice in _AUTO_VIEWS if choice in encoder.views), _AUTO_VIEWS[0])
    model = str(encoder.describe().get("name", type(encoder).__name__))
    for part in view.split(" + "):
        check_view(part, encoder.views, model)
    return view
