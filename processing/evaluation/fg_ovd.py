# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""FG-OVD: of a box's right description and up to ten that change an attribute of it, which one is nearest?"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..coco_annotations import CocoAnnotations
from ..region_records import check_relative_path
from .benchmark import Benchmark, SourceFile
from .classification_scores import target_ranks, tie_rule
from .features import FeatureExtractor
from .items import EvaluationImage, EvaluationRegion, box_corners, place
from .protocols import Protocol, bounded
from .region_classification import resolve_view, view_summaries
from .results import BenchmarkResult, Figure
from .scores import NOT_SHOWN, mean_figure, shown, unit


# Rows whose texts are gathered at one time.
_CHUNK = 512
_WHERE = "It is in the folder benchmarks of https://github.com/lorebianchi98/FG-OVD."
# By the name that the paper and FG-CLIP give them.
SPLIT_FILES = {
    "hard": "benchmarks/1_attributes.json",
    "medium": "benchmarks/2_attributes.json",
    "easy": "benchmarks/3_attributes.json",
    "trivial": "benchmarks/shuffle_negatives.json",
    "color": "benchmarks/color.json",
    "material": "benchmarks/material.json",
    "pattern": "benchmarks/pattern.json",
    "transparency": "benchmarks/transparency.json",
}
# FG-CLIP's copies, a line a row, by the same names.
FGCLIP_FILES = {
    "hard": "fgovd/h_attributes_llava.jsonl",
    "medium": "fgovd/m_attributes_llava.jsonl",
    "easy": "fgovd/e_attributes_llava.jsonl",
    "trivial": "fgovd/shuffle_negatives_llava.jsonl",
}
_BY_DIFFICULTY = ("hard", "medium", "easy", "trivial")
_WHAT = {
    "hard": "descriptions of which one attribute is changed",
    "medium": "descriptions of which two attributes are changed",
    "easy": "descriptions of which three attributes are changed",
    "trivial": "descriptions of other objects",
}


@dataclass(frozen=True)
class FgOvdProtocol(Protocol):
    """What decides a figure of FG-OVD besides the model.

    A row is a box with one positive and n negative texts; it counts as right if the positive has the greatest cosine to the
    box's vector. Rows with fewer negatives than `negatives` are kept, and counted. A row of whose region the model's frame
    shows nothing is wrong, whatever the tie rule, and counted.

    Attributes:
        splits: Which files. "hard", "medium" and "easy" change one, two and three attributes of the positive, "trivial"
            takes descriptions of other objects; "color", "material", "pattern" and "transparency" change that attribute.
        views: Ways of showing a region, names of `region_views.VIEWS`, each a figure of its own. "auto" is "full+mask" of
            a model that takes masks and "masked-crop" of any other. Views joined as in "full+mask + blur+mask" are one:
            their cosines are added.
        regions: The "masks" of the files, or the "boxes" alone. Views that pool by RoIAlign take the box either way. FG-CLIP's
            copies have boxes alone.
        negatives: At most so many of each row, the first ones in the order of the file.
        repeated: What becomes of a negative that equals the positive or an earlier negative of its row: "drop" it, counted,
            or "keep" it. Kept, a row whose positive is among its negatives is a tie, which the tie rule decides.
        full_stop: Add a full stop to texts that end without one, as FG-CLIP's copies of the files do.
        ties: "pessimistic": a negative with the same score as the positive counts as nearer; "optimistic": the positive
            does, so equality is right.

    Example:
        >>> FgOvd.presets["official-fgclip"].ties, FgOvdProtocol().changed({"splits": "hard, easy"}).splits
        ('optimistic', ('hard', 'easy'))
    """

    splits: tuple[
        Literal["hard", "medium", "easy", "trivial", "color", "material", "pattern", "transparency"], ...
    ] = _BY_DIFFICULTY
    views: tuple[str, ...] = ("auto",)
    regions: Literal["masks", "boxes"] = "masks"
    negatives: int = bounded(10, 1)
    repeated: Literal["drop", "keep"] = "drop"
    full_stop: bool = False
    ties: Literal["pessimistic", "optimistic"] = "pessimistic"

    def details(self) -> dict[str, Any]:
        return super().details() | {"view_summaries": view_summaries(self.views), "tie_rule": tie_rule(self.ties)}


@dataclass(frozen=True, slots=True)
class FgOvdRow:
    """A box with its texts.

    Attributes:
        key: Split and the annotation's id.
        region: The box.
        texts: The positive, then the negatives.
    """

    key: str
    region: EvaluationRegion
    texts: tuple[str, ...]


class FgOvd(Benchmark):
    """Fine-grained accuracy on FG-OVD (Bianchi et al., CVPR 2024), all splits in one call.

    The protocol of FG-CLIP (arXiv 2505.05071, table 1): the vector of each box against its own texts, no detector. FG-OVD's
    own evaluation scores detections instead.

    Layout, as in the repository of FG-OVD: `benchmarks/*.json` in the layout of LVIS, where an annotation's `category_id` is
    its positive text and `neg_category_ids` its negatives, ids into `categories`; and below the data folder, or its folder
    `images/`, the photos that `images[].file_name` names, `val2017/...` and `train2017/...` of COCO 2017.

    Where a file of `benchmarks/` is missing, FG-CLIP's copy of it is read: `fgovd/h_attributes_llava.jsonl` (hard),
    `fgovd/m_attributes_llava.jsonl` (medium), `fgovd/e_attributes_llava.jsonl` (easy) or
    `fgovd/shuffle_negatives_llava.jsonl` (trivial), as in the folder `data` of its repository. A line is a row: `img_path`,
    `width`, `height`, `bbox` ([x, y, width, height] in pixels), `pos_expression` (a list of one) and `neg_expression`.

    Figures are named as the splits. Chance is the mean of 1 / (1 + n) over the rows, n being the number of distinct negatives.
    `items` are the rows under the first view.

    Attributes:
        rows: Of each split, filled by `load`.

    Example:
        >>> benchmark = FgOvd("data/fg-ovd", FgOvd.presets["official-fgclip"])
        >>> benchmark.evaluate(FeatureExtractor(encoder)).figures["hard"].value  # doctest: +SKIP
        0.461
    """

    name = "fg-ovd"
    summary = "which of 1 right and up to 10 wrong descriptions fits a box: accuracy on hard, medium, easy and trivial"
    task = "zero-shot-image-classification"
    dataset = "FG-OVD"
    # FG-CLIP's copy of this file has the same rows in the same order; of the others that was not checked.
    published: ClassVar[dict[str, dict[str, int]]] = {"FG-OVD": {"easy: rows": 1299}}
    main_figure = "hard"
    presets: ClassVar[dict[str, FgOvdProtocol]] = {
        "default": FgOvdProtocol(),
        "official-fgclip": FgOvdProtocol(
            name="official-fgclip",
            views=("roi",),
            regions="boxes",
            repeated="keep",
            full_stop=True,
            ties="optimistic",
        ),
    }
    layout = (
        *(
            SourceFile(
                path,
                f"boxes of the split {split!r}, {_WHAT.get(split, f'descriptions of which the {split} is changed')}"
                + (f"; or FG-CLIP's copy, {FGCLIP_FILES[split]}" if split in FGCLIP_FILES else ""),
                _WHERE,
                optional=split not in _BY_DIFFICULTY,
            )
            for split, path in SPLIT_FILES.items()
        ),
        # Which folders are needed depends on the photos that the files list.
        *(
            SourceFile(
                folder,
                f"folder of the photos; images/{folder} is accepted too",
                f"They are in {folder}.zip of https://cocodataset.org/#download.",
                optional=True,
            )
            for folder in ("val2017", "train2017")
        ),
    )

    def __init__(self, data_dir: str | os.PathLike, protocol: FgOvdProtocol | None = None):
        super().__init__(data_dir, protocol)
        self.rows: dict[str, list[FgOvdRow]] = {}

    def sources(self) -> tuple[SourceFile, ...]:
        """The files of the protocol's splits, and the photos."""
        wanted = {SPLIT_FILES[split] for split in self.protocol.splits}
        return tuple(
            replace(source, optional=False) if source.path in wanted else source
            for source in self.layout
            if source.path in wanted or source.path not in SPLIT_FILES.values()
        )

    def path(self, source: SourceFile) -> Path:
        """The file or, where it is missing, FG-CLIP's copy."""
        found = place(self.data_dir, source.path)
        copies = {SPLIT_FILES[split]: self.data_dir / file for split, file in FGCLIP_FILES.items()}
        copy = copies.get(source.path, found)
        return copy if copy.exists() and not found.exists() else found

    def load(self) -> None:
        if self.rows:
            return
        self.check_layout()
        counts: Counter[str] = Counter()
        rows = {split: list(self._read(split, counts)) for split in self.protocol.splits}
        images = {row.region.image.key: row.region.image for part in rows.values() for row in part}
        missing = self.check_images(images.values())
        for split, part in rows.items():
            rows[split] = [row for row in part if row.region.image.key not in missing]
            if not rows[split]:
                raise ValueError(
                    f"{self.name}: no row of the split {split!r} is left; left out were {dict(counts)} and {len(missing)} "
                    f"images without a file. Check {self._file(split)} and the protocol's limit."
                )
            self.counts[f"{split}: rows"] = len(rows[split])
            self.counts[f"{split}: rows with fewer than {self.protocol.negatives} negatives"] = sum(
                len(row.texts) <= self.protocol.negatives for row in rows[split]
            )
        self.counts["images"] = len(images) - len(missing)
        self.counts |= dict(sorted(counts.items()))
        self.rows = rows

    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        self.load()
        views = [resolve_view(view, features.encoder) for view in self.protocol.views]
        all_rows = [row for part in self.rows.values() for row in part]
        regions = list({row.region.key: row.region for row in all_rows}.values())
        places = {region.key: place for place, region in enumerate(regions)}
        texts = list(dict.fromkeys(text for row in all_rows for text in row.texts))
        text_places = {text: place for place, text in enumerate(texts)}
        text_vectors = unit(features.texts(texts, "region"))
        figures: dict[str, Figure] = {}
        hidden: dict[str, int] = {}
        items: list[dict[str, Any]] = []
        for view in views:
            vectors = sum(unit(features.regions(regions, part)) for part in view.split(" + "))
            prefix = f"{view}: " if len(views) > 1 else ""
            seen = shown(vectors)
            hidden[prefix + NOT_SHOWN] = int((~seen).sum())
            for split, rows in self.rows.items():
                region_places = np.array([places[row.region.key] for row in rows])
                scores = _row_scores(
                    vectors[region_places], text_vectors, [[text_places[t] for t in row.texts] for row in rows]
                )
                ranks = target_ranks(scores, np.zeros(len(rows), dtype=np.int64), self.protocol.ties)
                lengths = [len(row.texts) for row in rows]
                ranks = np.where(seen[region_places], ranks, lengths)
                figures[f"{prefix}{split}"] = mean_figure(
                    ranks == 1,
                    [row.region.image.key for row in rows],
                    self.protocol.bootstrap,
                    self.protocol.seed,
                    self._chance(rows),
                )
                if view == views[0]:
                    items += [_item(split, *row) for row in zip(rows, scores, ranks.tolist())]
        prefix = f"{views[0]}: " if len(views) > 1 else ""
        images = {row.region.image.key: row.region.image for row in all_rows}.values()
        result = self.result(features, figures, items, images, prefix + self.protocol.splits[0], views)
        result.counts |= hidden
        return result

    def _chance(self, rows: Sequence[FgOvdRow]) -> float:
        """Equal texts have equal vectors: the positive competes with each distinct negative once."""
        unanswerable = [self.protocol.ties == "pessimistic" and row.texts[0] in row.texts[1:] for row in rows]
        return float(np.mean([0 if lost else 1 / len({*row.texts}) for row, lost in zip(rows, unanswerable)]))

    def _file(self, split: str) -> Path:
        return self.path(next(source for source in self.layout if source.path == SPLIT_FILES[split]))

    def _read(self, split: str, counts: Counter[str]) -> Iterator[FgOvdRow]:
        path = self._file(split)
        photos: set[str] = set()
        for entry in (_read_copy if path.suffix == ".jsonl" else _read_official)(path):
            if entry.file_name not in photos and len(photos) == self.protocol.limit:
                continue
            photos.add(entry.file_name)
            box = box_corners(entry.bbox, entry.width, entry.height)
            if box is None:
                counts[f"{split}: rows left out, box malformed or outside the photo"] += 1
                continue
            left, top, width, height = map(float, entry.bbox)
            # Rounding is none.
            counts[f"{split}: boxes cut at the photo's edge"] += (
                max(box[0] - left, box[1] - top, left + width - box[2], top + height - box[3]) > 1
            )
            texts = self._texts(split, entry, counts)
            if len(texts) < 2:
                counts[f"{split}: rows left out, no negative"] += 1
                continue
            if self.protocol.regions == "masks":
                counts[f"{split}: boxes in place of masks that are missing, malformed or of a crowd"] += (
                    entry.mask is None
                )
            check_relative_path(entry.file_name, f"{entry.where}: the photo's file", "the data folder")
            image = EvaluationImage(entry.file_name, place(self.data_dir, entry.file_name))
            # The same box in two splits is one region.
            key = f"{image.key}#{','.join(f'{value:.2f}' for value in box)}"
            mask = entry.mask if self.protocol.regions == "masks" else None
            yield FgOvdRow(f"{split}#{entry.key}", EvaluationRegion(key, image, mask, box), texts)

    def _texts(self, split: str, entry: _Entry, counts: Counter[str]) -> tuple[str, ...]:
        texts = [text.strip() for text in entry.texts[: self.protocol.negatives + 1]]
        if self.protocol.full_stop:
            texts = [text if text.endswith(".") else f"{text}." for text in texts]
        if self.protocol.repeated == "drop":
            distinct = list(dict.fromkeys(texts))
            if texts[0] in texts[1:]:
                counts[f"{split}: rows whose positive was among the negatives, dropped there"] += 1
            counts[f"{split}: negatives dropped, repeated"] += len(texts) - len(distinct)
            return tuple(distinct)
        counts[f"{split}: rows whose positive is among the negatives"] += texts[0] in texts[1:]
        return tuple(texts)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row as a file has it.

    Attributes:
        where: File and place in it, for errors.
        key: Of the row within its file.
        file_name: Of the photo.
        width: Of the photo.
        height: Of the photo.
        bbox: [x, y, width, height], not yet checked.
        mask: RLE or polygons, or `None`.
        texts: The positive, then the negatives.
    """

    where: str
    key: Any
    file_name: str
    width: int
    height: int
    bbox: Any
    mask: Any
    texts: list[str]


def _read_official(path: Path) -> Iterator[_Entry]:
    coco = CocoAnnotations(path, None)
    with open(path, encoding="utf-8") as file:
        content = json.load(file)
    names = {category["id"]: category["name"] for category in content["categories"]}
    read: Counter[Any] = Counter()
    for number, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{number}]"
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        photo = coco.photos.get(image_id)
        if photo is None or photo.error is not None:
            raise ValueError(
                f"{where} belongs to no readable entry of 'images' (image_id {image_id!r}); accepted is the layout of "
                f"LVIS. {_WHERE}"
            )
        region = photo.regions[read[image_id]]
        read[image_id] += 1
        ids = [annotation.get("category_id"), *(annotation.get("neg_category_ids") or [])]
        unknown = [number for number in ids if number not in names]
        if unknown:
            raise ValueError(
                f"{where}: 'category_id' and 'neg_category_ids' name {unknown[:5]}, which 'categories' does not list. "
                f"{_WHERE}"
            )
        mask = region.mask if region.left_out is None else None
        key, texts = annotation.get("id", number), [names[number] for number in ids]
        yield _Entry(where, key, photo.file_name, photo.width, photo.height, region.bbox, mask, texts)


def _read_copy(path: Path) -> Iterator[_Entry]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
                positive, negatives = row["pos_expression"], row["neg_expression"]
                if not isinstance(positive, list) or not isinstance(negatives, list) or len(positive) != 1:
                    raise ValueError("'pos_expression' is no list of one text, or 'neg_expression' no list")
                texts = [*positive, *negatives]
                if not all(isinstance(text, str) for text in texts):
                    raise ValueError("'pos_expression' and 'neg_expression' hold more than texts")
                size = int(row["width"]), int(row["height"])
                yield _Entry(where, f"line {number}", row["img_path"], *size, row["bbox"], None, texts)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{where} cannot be read ({type(error).__name__}: {error}); accepted are lines of FG-CLIP's copies of "
                    f"FG-OVD, with 'img_path', 'width', 'height', 'bbox', 'pos_expression' and 'neg_expression'."
                ) from error


def _row_scores(vectors: np.ndarray, text_vectors: np.ndarray, places: list[list[int]]) -> np.ndarray:
    """Cosines of each region with its own texts, (R, 1 + n), the positive first; minus infinity where a row has fewer."""
    width = max(map(len, places))
    padded = np.array([[*row, *[row[0]] * (width - len(row))] for row in places])
    real = np.arange(width) < np.array([len(row) for row in places])[:, None]
    scores = np.empty(padded.shape, dtype=np.float32)
    for start in range(0, len(padded), _CHUNK):
        part = slice(start, start + _CHUNK)
        scores[part] = np.einsum("rcd,rd->rc", text_vectors[padded[part]], vectors[part])
    return np.where(real, scores, -np.inf)


def _item(split: str, row: FgOvdRow, scores: np.ndarray, rank: int) -> dict[str, Any]:
    hardest = 1 + int(np.argmax(scores[1:]))
    region = row.region
    return {
        "key": row.key,
        "correct": rank == 1,
        "score": abs(float(scores[0] - scores[hardest])),
        "image": region.image.key,
        **({"box": region.box} if region.mask is None else {"mask": region.mask}),
        "truth": row.texts[0],
        "predicted": row.texts[0 if rank == 1 else hardest],
        "rank": rank,
        # Names the curve of each split.
        "direction": split,
    }
