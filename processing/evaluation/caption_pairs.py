# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Caption-to-caption retrieval: a caption of an image finds another one of it, without images."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..region_records import check_relative_path
from .benchmark import Benchmark, SourceFile
from .features import FeatureExtractor
from .image_text_retrieval import RankingProtocol, retrieval_figures
from .results import BenchmarkResult
from .retrieval_files import read_lines, read_text
from .retrieval_ranks import TIE_TOLERANCE
from .scores import unit


@dataclass(slots=True)
class Captions:
    """Captions with the image that each describes.

    Attributes:
        texts: N captions, surrounding whitespace removed.
        image: (N,), the image of each, counted from 0.
        text: (N,), equal numbers mark equal texts; case, spacing and a full stop at the end make no difference.
        image_ids: The images' names in the file, as text.
        repeated: How many captions were left out because their image has the text already.
    """

    texts: list[str]
    image: np.ndarray
    text: np.ndarray
    image_ids: list[str]
    repeated: int


def read_captions(path: str | os.PathLike) -> Captions:
    """Reads COCO's captions file (`.json`), or JSON lines with `captions` and `image_id` or `group` in every line.

    A text that one image has twice is taken once. Lines of the same image are taken together.

    Args:
        path: The file.

    Returns:
        The captions, in the order of the file.

    Raises:
        ValueError: If the file is no such file, or a caption is empty or no text; the message names the line or the
            annotation.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "captions.jsonl"
        >>> _ = path.write_text('{"image_id": 7, "captions": ["A dog runs.", "a dog runs", "Brown dog"]}')
        >>> read_captions(path).texts
        ['A dog runs.', 'Brown dog']
    """
    ids: dict[Any, int] = {}
    numbers: dict[str, int] = {}
    seen: set[tuple[int, int]] = set()
    texts, images, text_numbers, repeated = [], [], [], 0
    for where, image_id, caption in _captions_in(Path(path)):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{path}, {where}: the caption is {caption!r}; it must be a text. Remove or mend it.")
        if not isinstance(image_id, (str, int)):
            raise ValueError(f"{path}, {where}: the image is {image_id!r}; it must be a string or a whole number.")
        image = ids.setdefault(image_id, len(ids))
        text = numbers.setdefault(" ".join(caption.casefold().split()).rstrip(". "), len(numbers))
        if (image, text) in seen:
            repeated += 1
            continue
        seen.add((image, text))
        texts.append(caption.strip())
        images.append(image)
        text_numbers.append(text)
    if not texts:
        raise ValueError(f"{path} has no captions.")
    return Captions(texts, np.array(images), np.array(text_numbers), [str(image_id) for image_id in ids], repeated)


def _captions_in(path: Path) -> Iterator[tuple[str, Any, Any]]:
    """Where a caption stands, its image and itself. Training files may list no images, so COCO's reader does not fit."""
    if path.suffix == ".json":
        try:
            annotations = json.loads(read_text(path))["annotations"]
            rows = [(row["image_id"], row["caption"]) for row in annotations]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no captions file of COCO ({type(error).__name__}: {error}); accepted is a JSON object with "
                "'annotations', each with 'image_id' and 'caption', or JSON lines in a file named .jsonl."
            ) from error
        for position, (image_id, caption) in enumerate(rows):
            yield f"annotations[{position}]", image_id, caption
        return
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
            image_id = record["image_id"] if "image_id" in record else record["group"]
            captions = record["captions"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: {type(error).__name__}: {error}; accepted is a JSON object with 'captions', "
                "a list of texts, and 'image_id' or 'group'."
            ) from error
        if not isinstance(captions, list):
            raise ValueError(f"{path}, line {number}: captions are {captions!r}; accepted is a list of texts.")
        for caption in captions:
            yield f"line {number}", image_id, caption


@dataclass(frozen=True, slots=True)
class CaptionRanks:
    """What became of each caption that has another one of its image, Q of them.

    Attributes:
        queries: Its row, (Q,).
        ranks: Rank of the first right caption, (Q,), 1 for the top.
        right: Right captions, (Q,).
        gallery: Captions that were ranked, (Q,).
        found: Row of the most similar one, (Q,).
        scores: How similar that is, (Q,).
    """

    queries: np.ndarray
    ranks: np.ndarray
    right: np.ndarray
    gallery: np.ndarray
    found: np.ndarray
    scores: np.ndarray


def caption_ranks(
    vectors: np.ndarray,
    image: np.ndarray,
    text: np.ndarray,
    ties: Literal["pessimistic", "optimistic"] = "pessimistic",
    chunk: int = 256,
) -> CaptionRanks:
    """Ranks the captions for each that has another one of its image, by dot products in float64.

    Each caption in turn is the query, all others are the gallery. Left out of the gallery, as neither right nor wrong, are
    texts equal to the query, to a caption of its image, or to a caption of an image that has the query's text as well: it
    would be a matter of chance which of two equal texts is found first.

    Args:
        vectors: (N, D), of length 1 for cosines.
        image: Image of each caption, (N,).
        text: Equal numbers mark equal texts, (N,).
        ties: Whether a wrong caption that is as similar as the best right one, within the tolerance of `retrieval_ranks`,
            stands before it ("pessimistic") or after it.
        chunk: Queries at a time; memory is `8 * chunk * N` bytes beyond the arguments.

    Raises:
        ValueError: If no image has two captions, or a vector is not finite.

    Example:
        >>> vectors = np.array([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
        >>> caption_ranks(vectors, image=np.array([0, 0, 1, 1]), text=np.arange(4)).ranks
        array([2, 3, 3, 2])
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise ValueError(f"vector {row} is not finite; accepted are vectors without NaN and infinity.")
    image, text = np.asarray(image).tolist(), np.asarray(text).tolist()
    rows_of_image, rows_of_text, images_of_text = defaultdict(list), defaultdict(list), defaultdict(set)
    for row, (of, number) in enumerate(zip(image, text, strict=True)):
        rows_of_image[of].append(row)
        rows_of_text[number].append(row)
        images_of_text[number].add(of)
    queries = [row for row in range(len(text)) if len(rows_of_image[image[row]]) > 1]
    if not queries:
        raise ValueError("no image has two captions, so there is nothing to retrieve; give more captions an image.")
    lengths = np.linalg.norm(vectors, axis=1)
    tolerance = TIE_TOLERANCE * lengths.max() * lengths
    found = []
    for start in range(0, len(queries), chunk):
        rows = queries[start : start + chunk]
        for query, similarity in zip(rows, vectors[rows] @ vectors.T, strict=True):
            right = [row for row in rows_of_image[image[query]] if row != query]
            related = {text[row] for other in images_of_text[text[query]] for row in rows_of_image[other]}
            left_out = [row for number in related for row in rows_of_text[number]]
            of_right = similarity[right]
            similarity[left_out] = -np.inf
            if ties == "pessimistic":
                before = int((similarity >= of_right.max() - tolerance[query]).sum())
            else:
                before = int((similarity > of_right.max() + tolerance[query]).sum())
            similarity[right] = of_right
            nearest = int(similarity.argmax())
            gallery = len(text) - len(left_out) + len(right)
            found.append((query, before + 1, len(right), gallery, nearest, similarity[nearest]))
    *whole, scores = map(np.array, zip(*found, strict=True))
    return CaptionRanks(*whole, scores)


@dataclass(frozen=True)
class CaptionPairsProtocol(RankingProtocol):
    """`RankingProtocol` and the file of the captions; `limit` of the base takes the first images of it.

    Attributes:
        captions_file: Below the data folder: COCO's layout (`.json`), or JSON lines of `{"image_id", "captions"}`.

    Example:
        >>> CaptionPairsProtocol().captions_file
        'annotations/captions_val2017.json'
    """

    captions_file: str = "annotations/captions_val2017.json"


class CaptionPairs(Benchmark):
    """Captions that find another caption of their image among all others: for text encoders, no image is read.

    By the rules of `caption_ranks`; the same figures as `examples/run_text_contrastive.py` prints. It tells how well a text
    tower keeps what captions of one picture have in common, which raw language models do badly (LLM2CLIP).

    Example:
        >>> CaptionPairs("coco").protocol.captions_file
        'annotations/captions_val2017.json'
    """

    name: ClassVar[str] = "caption-pairs"
    summary: ClassVar[str] = "a caption finds another one of its photo, R@1/5/10; texts only"
    task: ClassVar[str] = "text-retrieval"
    dataset: ClassVar[str] = "COCO captions"
    main_figure: ClassVar[str] = "caption to caption R@1"
    published: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "annotations/captions_val2017.json": {"images": 5_000, "captions": 25_014}
    }
    presets: ClassVar[Mapping[str, CaptionPairsProtocol]] = {"default": CaptionPairsProtocol()}
    layout: ClassVar[tuple[SourceFile, ...]] = (
        SourceFile(
            "{captions_file}",
            "captions, in COCO's layout or as JSON lines of image_id and captions",
            "https://cocodataset.org/#download, or your own, by captions_file=PATH",
        ),
    )

    def __init__(self, data_dir: str | os.PathLike, protocol: CaptionPairsProtocol | None = None):
        super().__init__(data_dir, protocol)
        check_relative_path(self.protocol.captions_file, "captions_file", str(self.data_dir))
        self.dataset = self.protocol.captions_file
        self.captions: Captions | None = None

    def load(self) -> None:
        if self.captions is not None:
            return
        self.counts.clear()
        self.check_layout()
        captions = read_captions(self.path(self.layout[0]))
        self.counts["images read"] = len(captions.image_ids)
        self.counts["captions left out, twice under one image"] = captions.repeated
        if self.protocol.limit is not None:
            kept = np.flatnonzero(captions.image < self.protocol.limit)
            captions.texts = [captions.texts[row] for row in kept]
            captions.image, captions.text = captions.image[kept], captions.text[kept]
        captions_of_image = np.bincount(captions.image)
        self.counts["images"] = len(captions_of_image)
        self.counts["captions"] = len(captions.texts)
        self.counts["captions that are no query, alone with their image"] = int((captions_of_image == 1).sum())
        self.captions = captions

    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        self.load()
        captions, protocol = self.captions, self.protocol
        vectors = features.texts(captions.texts, protocol.text_kind)
        found = caption_ranks(
            unit(vectors) if protocol.normalize else vectors, captions.image, captions.text, protocol.ties
        )
        images = captions.image[found.queries]
        figures = retrieval_figures("caption to caption", found.ranks, images, found.right, found.gallery, protocol)
        of_image: dict[int, list[int]] = {}
        for row, image in enumerate(captions.image.tolist()):
            of_image.setdefault(image, []).append(row)
        items = [
            {
                "key": f"{captions.image_ids[image]}#{query}",
                "direction": "caption to caption",
                "rank": int(rank),
                "correct": bool(rank == 1),
                "score": float(score),
                "text": captions.texts[query],
                "truth": "; ".join(captions.texts[row] for row in of_image[int(image)] if row != query),
                "predicted": captions.texts[nearest],
            }
            for query, rank, image, nearest, score in zip(
                found.queries, found.ranks, images, found.found, found.scores, strict=True
            )
        ]
        main_figure = (
            self.main_figure if self.main_figure in figures else f"caption to caption R@{protocol.recall_at[0]}"
        )
        return self.result(features, figures, items, [], main_figure)
