# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Image-text retrieval both ways: protocol, figures and the base of its benchmarks."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from ..region_records import check_relative_path, is_text
from .benchmark import Benchmark
from .classification_scores import tie_rule
from .features import FeatureExtractor
from .items import EvaluationImage
from .protocols import Protocol
from .results import BenchmarkResult, Figure
from .retrieval_ranks import TIE_TOLERANCE, bidirectional_ranks
from .scores import constant_interval, unit


@dataclass(frozen=True)
class RankingProtocol(Protocol):
    """What decides a figure of any retrieval besides the model and the data.

    Attributes:
        normalize: Whether vectors get length 1, so that scores are cosines.
        text_kind: Whether texts go through the model's path of a "caption" or of a "long" text, where it has two.
        recall_at: The k of R@k.
        ties: "pessimistic": a wrong candidate that is as similar ranks before the right one; "optimistic": after it.

    Raises:
        ValueError: If `recall_at` has a 0.

    Example:
        >>> RankingProtocol().changed({"recall_at": "1,5"}).recall_at
        (1, 5)
    """

    normalize: bool = True
    text_kind: Literal["caption", "long"] = "caption"
    recall_at: tuple[int, ...] = (1, 5, 10)
    ties: Literal["pessimistic", "optimistic"] = "pessimistic"

    def details(self) -> dict[str, Any]:
        equal = f"products are equal that differ by at most {TIE_TOLERANCE:g} of the longest vectors' product"
        return super().details() | {"tie_rule": tie_rule(self.ties, equal)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.recall_at) < 1:
            raise ValueError(f"recall_at is {self.recall_at}; accepted are ranks of 1 and more.")


@dataclass(frozen=True)
class RetrievalProtocol(RankingProtocol):
    """What decides a figure of image-text retrieval besides the model.

    `limit` of the base takes the first images in the order of the file, which is what several papers do on purpose.

    Attributes:
        split: Which part of the data; each benchmark says what it has.
        captions: Of each image, "all" its captions, the "first", or the "first-5".

    Example:
        >>> RetrievalProtocol(split="test").changed({"captions": "first"}).captions
        'first'
    """

    split: str = "all"
    captions: Literal["all", "first", "first-5"] = "all"


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """An image and the captions that its file gives it, in their order."""

    image: EvaluationImage
    captions: tuple[str, ...]


def chance_of_recall(k: int, relevant: np.ndarray, gallery: np.ndarray | int) -> float:
    """R@k of a random order: the mean chance that one of a query's right candidates is among the first k.

    Args:
        k: How many candidates count.
        relevant: Right candidates of each query, (Q,).
        gallery: Candidates, of each query (Q,) or of all.

    Example:
        >>> chance_of_recall(1, np.array([5, 5]), 25)
        0.2
        >>> chance_of_recall(2, np.array([1]), 10)
        0.2
    """
    relevant = np.asarray(relevant)
    gallery = np.broadcast_to(gallery, relevant.shape).astype(np.float64)
    missed = np.ones(len(relevant))
    for drawn in range(int(relevant.max())):
        share = np.maximum(gallery - k - drawn, 0) / np.maximum(gallery - drawn, 1)
        missed *= np.where(drawn < relevant, share, 1.0)
    # The last digits are noise of the products.
    return round(float(1 - missed.mean()), 12)


def retrieval_figures(
    direction: str,
    ranks: np.ndarray,
    images: np.ndarray,
    relevant: np.ndarray,
    gallery: np.ndarray | int,
    protocol: RankingProtocol,
) -> dict[str, Figure]:
    """R@k and the median rank of one direction, each with chance and a 95 % bootstrap interval.

    The bootstrap draws images, with all their queries: the captions of one image are hard or easy together, and taken as
    independent they would make the interval too narrow. R@k of 0 or 1 has the interval of `constant_interval`; of a single
    image there is none.

    Args:
        direction: Goes before the names, e.g. "text to image".
        ranks: Rank of the best right candidate of each query, (Q,), 1 for the top.
        images: Image that each query belongs to, (Q,), any whole numbers.
        relevant: Right candidates of each query, (Q,).
        gallery: Candidates, of each query (Q,) or of all.
        protocol: Gives `recall_at`, `bootstrap` and `seed`.

    Returns:
        `"{direction} R@{k}"` for each k, then `"{direction} median rank"`, which is in ranks.

    Example:
        >>> protocol = RankingProtocol(recall_at=(1,), bootstrap=0)
        >>> retrieval_figures("text to image", np.array([1, 3, 1]), np.arange(3), np.ones(3, int), 3, protocol)
        {'text to image R@1': Figure(value=0.6666666666666666, low=None, high=None, count=3, chance=0.333333333333),
        'text to image median rank': Figure(value=1.0, low=None, high=None, count=3, chance=2.0)}
    """
    ranks = np.asarray(ranks)
    order = np.argsort(ranks, kind="stable")
    ranks, place = ranks[order], np.unique(images, return_inverse=True)[1][order]
    names = [f"{direction} R@{k}" for k in protocol.recall_at] + [f"{direction} median rank"]
    chances = [chance_of_recall(k, relevant, gallery) for k in protocol.recall_at] + [
        _chance_median(relevant, gallery)
    ]
    values = _weighted(ranks, np.ones(len(ranks), dtype=np.int64), protocol.recall_at)
    count = int(place.max()) + 1
    if not protocol.bootstrap or count == 1:
        intervals = np.full((2, len(values)), None)
    else:
        generator = np.random.default_rng(protocol.seed)
        draws = (
            np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(protocol.bootstrap)
        )
        drawn = np.array([_weighted(ranks, times[place], protocol.recall_at) for times in draws])
        intervals = np.quantile(drawn, [0.025, 0.975], axis=0)
        shares = np.bincount(place) / len(ranks)
        for column in np.flatnonzero(np.isin(values[:-1], (0, 1))):
            intervals[:, column] = constant_interval(values[column], 1 / float((shares**2).sum()))
        intervals = intervals.tolist()
    return {
        name: Figure(value, low, high, len(ranks), chance)
        for name, value, low, high, chance in zip(names, values, *intervals, chances, strict=True)
    }


def _weighted(ranks: np.ndarray, times: np.ndarray, recall_at: tuple[int, ...]) -> list[float]:
    """R@k and the median of ascending ranks of which each is there so many times."""
    total = np.cumsum(times)
    recalls = []
    for k in recall_at:
        below = int(np.searchsorted(ranks, k, side="right"))
        recalls.append(float(total[below - 1] / total[-1]) if below else 0.0)
    middle = np.searchsorted(total, [(total[-1] - 1) // 2, total[-1] // 2], side="right")
    return [*recalls, float(ranks[middle].mean())]


def _chance_median(relevant: np.ndarray, gallery: np.ndarray | int) -> float:
    """The lowest rank by which a random order finds half of the queries."""
    low, high = 1, int(np.max(gallery))
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if chance_of_recall(middle, relevant, gallery) >= 0.5 else (middle + 1, high)
    return float(low)


class ImageTextRetrieval(Benchmark):
    """Base of the image-text retrieval benchmarks: R@k and median rank, image to text and text to image.

    Image to text: all captions of all images are ranked for each image, and the first of its own counts. Text to image:
    all images are ranked for each caption. A text that two images share is right for its own alone, as in all published
    protocols, and so is an image that the file lists more than once; `counts` says how many there are of both.

    Whole images are shown without a region, so a model that takes masks uses its `default_mask`: a mask of ones,
    normalised as in training, or none. PixCLIP's own retrieval scripts feed ones that are *not* normalised; a model
    loaded with `default_mask="full"`, `mask_mean=0` and `mask_std=1` in its vision configuration sees just that.

    A subclass gives `splits` and `read`.

    Args:
        data_dir: Folder with the files of `layout`.
        protocol: Default: that of the preset "default".

    Attributes:
        splits: Values that the protocol's `split` accepts.

    Raises:
        ValueError: If the protocol's split is none of them.
    """

    task: ClassVar[str] = "image-text-retrieval"
    main_figure: ClassVar[str] = "text to image R@1"
    splits: ClassVar[tuple[str, ...]]

    def __init__(self, data_dir: str | os.PathLike, protocol: RetrievalProtocol | None = None):
        super().__init__(data_dir, protocol)
        if self.protocol.split not in self.splits:
            raise ValueError(
                f"split of {self.name} is {self.protocol.split!r}; accepted is one of {', '.join(map(repr, self.splits))}."
            )
        self.dataset = self.dataset if self.protocol.split == "all" else f"{self.dataset}, {self.protocol.split}"
        self.items: list[CaptionedImage] | None = None

    @abstractmethod
    def read(self) -> list[CaptionedImage]:
        """The images of the protocol's split with all their captions, in the order of the file."""

    def image(self, name: Any, where: str, folder: str = "") -> EvaluationImage:
        """An image below the data folder, by the name that its file gives it at `where`."""
        if not isinstance(name, str):
            raise ValueError(f"{where}: the image is {name!r:.200}; accepted is the path of a file.")
        check_relative_path(name, f"{where}: the image", str(self.data_dir / folder))
        key = f"{folder}/{name}" if folder else name
        return EvaluationImage(key, self.data_dir / key)

    def load(self) -> None:
        if self.items is not None:
            return
        self.counts.clear()
        self.check_layout()
        items = self.read()
        if not items:
            raise ValueError(f"{self.name}: there are no images of split {self.protocol.split!r} in {self.data_dir}.")
        self.counts["images read"] = len(items)
        self.counts["captions read"] = sum(len(item.captions) for item in items)
        items = items[: self.protocol.limit]
        kept = {"all": None, "first": 1, "first-5": 5}[self.protocol.captions]
        missing = self.check_images([item.image for item in items])
        items = [item for item in items if item.image.key not in missing]
        blank = sum(not is_text(text) for item in items for text in item.captions)
        self.counts["captions left out, blank"] = self.counts.get("captions left out, blank", 0) + blank
        items = [
            CaptionedImage(item.image, tuple(text for text in item.captions if is_text(text))[:kept]) for item in items
        ]
        self.counts["images left out, no caption"] = sum(not item.captions for item in items)
        items = [item for item in items if item.captions]
        if not items:
            raise ValueError(
                f"{self.name}: no image of split {self.protocol.split!r} in {self.data_dir} is left to measure."
            )
        listed = Counter(item.image.key for item in items)
        images_of_text: dict[str, set[str]] = {}
        for item in items:
            for text in item.captions:
                images_of_text.setdefault(text, set()).add(item.image.key)
        self.counts["images"] = len(items)
        self.counts["images listed more than once"] = sum(times > 1 for times in listed.values())
        self.counts["captions"] = sum(len(item.captions) for item in items)
        self.counts["texts that several images share"] = sum(len(keys) > 1 for keys in images_of_text.values())
        self.items = items

    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        self.load()
        protocol = self.protocol
        images = [item.image for item in self.items]
        texts = [text for item in self.items for text in item.captions]
        captions = np.array([len(item.captions) for item in self.items])
        first = np.concatenate([[0], np.cumsum(captions)])
        owners = np.repeat(np.arange(len(images)), captions)
        image_vectors, text_vectors = features.images(images), features.texts(texts, protocol.text_kind)
        if protocol.normalize:
            image_vectors, text_vectors = unit(image_vectors), unit(text_vectors)

        image_ranks, text_ranks = bidirectional_ranks(
            image_vectors, text_vectors, (first, np.arange(len(texts))), protocol.ties
        )
        figures = {
            **retrieval_figures("image to text", image_ranks, np.arange(len(images)), captions, len(texts), protocol),
            **retrieval_figures(
                "text to image", text_ranks, owners, np.ones(len(texts), dtype=np.int64), len(images), protocol
            ),
        }
        found_texts, image_scores = _nearest(image_vectors, text_vectors)
        found_images, text_scores = _nearest(text_vectors, image_vectors)
        items = [
            {
                **_item("image to text", image.key, int(image_ranks[row]), float(image_scores[row])),
                "image": image.key,
                "truth": texts[first[row]],
                "predicted": texts[found_texts[row]],
            }
            for row, image in enumerate(images)
        ]
        for row, text in enumerate(texts):
            owner = images[owners[row]]
            key = f"{owner.key}#{row - first[owners[row]]}"
            items.append(
                {
                    **_item("text to image", key, int(text_ranks[row]), float(text_scores[row])),
                    "image": owner.key,
                    "text": text,
                    "truth": owner.key,
                    "predicted": images[found_images[row]].key,
                }
            )
        main_figure = self.main_figure if self.main_figure in figures else f"text to image R@{protocol.recall_at[0]}"
        return self.result(features, figures, items, images, main_figure)


def _item(direction: str, key: str, rank: int, score: float) -> dict[str, Any]:
    return {"key": key, "direction": direction, "rank": rank, "correct": rank == 1, "score": score}


def _nearest(queries: np.ndarray, gallery: np.ndarray, chunk: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """The most similar item of each query, and how similar it is."""
    places, scores = [], []
    for start in range(0, len(queries), chunk):
        similarity = queries[start : start + chunk] @ gallery.T
        places.append(similarity.argmax(axis=1))
        scores.append(similarity.max(axis=1))
    return np.concatenate(places), np.concatenate(scores)
