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

from ..coco_annotations import CocoAnnotations, CocoPhoto, CocoRegion
from ..region_records import check_relative_path
from ..regions import BOX_TOLERANCE
from .benchmark import Benchmark, SourceFile
from .classification_scores import target_ranks
from .features import FeatureExtractor
from .items import EvaluationImage, EvaluationRegion
from .protocols import Protocol
from .region_classification import resolve_view
from .results import BenchmarkResult, Figure
from .scores import mean_figure, unit


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
    box's vector. Rows with fewer negatives than `negatives` are kept, and counted.

    Attributes:
        splits: Which files. "hard", "medium" and "easy" change one, two and three attributes of the positive, "trivial"
            takes descriptions of other objects; "color", "material", "pattern" and "transparency" change that attribute.
        views: Ways of showing a region, names of `region_views.VIEWS`, each a figure of its own. "auto" is "full+mask" of
            a model that takes masks and "masked-crop" of any other. Views joined as in "full+mask + blur+mask" are one:
            their cosines are added.
        regions: The "masks" of the files, or the "boxes" alone. Views that pool by RoIAlign take the box either way.
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
    negatives: int = 10
    repeated: Literal["drop", "keep"] = "drop"
    full_stop: bool = False
    ties: Literal["pessimistic", "optimistic"] = "pessimistic"


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
    own evaluation scores detections instead; of it comes the median rank, which is a figure of each split here (1 is best).

    Layout, as in the repository of FG-OVD: `benchmarks/*.json` in the layout of LVIS, where an annotation's `category_id` is
    its positive text and `neg_category_ids` its negatives, ids into `categories`; and below the data folder, or its folder
    `images/`, the photos that `images[].file_name` names, `val2017/...` and `train2017/...` of COCO 2017.

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
                f"boxes of the split {split!r}, {_WHAT.get(split, f'descriptions of which the {split} is changed')}",
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
                    f"images without a file. Check {self.data_dir / SPLIT_FILES[split]} and the protocol's limit."
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
        items: list[dict[str, Any]] = []
        for view in views:
            vectors = sum(unit(features.regions(regions, part)) for part in view.split(" + "))
            prefix = f"{view}: " if len(views) > 1 else ""
            for split, rows in self.rows.items():
                region_places = np.array([places[row.region.key] for row in rows])
                scores = _row_scores(
                    vectors[region_places], text_vectors, [[text_places[t] for t in row.texts] for row in rows]
                )
                ranks = target_ranks(scores, np.zeros(len(rows), dtype=np.int64), self.protocol.ties)
                figures[f"{prefix}{split}"] = mean_figure(
                    ranks == 1, self.protocol.bootstrap, self.protocol.seed, self._chance(rows)
                )
                figures[f"{prefix}{split}, median rank"] = Figure(float(np.median(ranks)), count=len(rows))
                if view == views[0]:
                    items += [_item(split, *row) for row in zip(rows, scores, ranks.tolist())]
        prefix = f"{views[0]}: " if len(views) > 1 else ""
        images = {row.region.image.key: row.region.image for row in all_rows}.values()
        result = self.result(features, figures, items, images, prefix + self.protocol.splits[0])
        result.protocol["views"] = views
        return result

    def _chance(self, rows: Sequence[FgOvdRow]) -> float:
        """Equal texts have equal vectors: the positive competes with each distinct negative once."""
        unanswerable = [self.protocol.ties == "pessimistic" and row.texts[0] in row.texts[1:] for row in rows]
        return float(np.mean([0 if lost else 1 / len({*row.texts}) for row, lost in zip(rows, unanswerable)]))

    def _place(self, relative: str) -> Path:
        """File of a photo: there, or below `images/`."""
        there, below = self.data_dir / relative, self.data_dir / "images" / relative
        return below if below.exists() and not there.exists() else there

    def _read(self, split: str, counts: Counter[str]) -> Iterator[FgOvdRow]:
        path = self.data_dir / SPLIT_FILES[split]
        coco = CocoAnnotations(path, None)
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        names = {category["id"]: category["name"] for category in content["categories"]}
        read: Counter[Any] = Counter()
        photos: set[Any] = set()
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
            if image_id not in photos and len(photos) == self.protocol.limit:
                continue
            photos.add(image_id)
            box = _box(region.bbox, photo)
            if box is None:
                counts[f"{split}: rows left out, box malformed or outside the photo"] += 1
                continue
            left, top, width, height = map(float, region.bbox)
            # Rounding is none.
            counts[f"{split}: boxes cut at the photo's edge"] += (
                max(box[0] - left, box[1] - top, left + width - box[2], top + height - box[3]) > 1
            )
            texts = self._texts(split, annotation, names, where, counts)
            if len(texts) < 2:
                counts[f"{split}: rows left out, no negative"] += 1
                continue
            yield FgOvdRow(
                f"{split}#{annotation.get('id', number)}", self._region(split, photo, region, box, counts), texts
            )

    def _texts(
        self, split: str, annotation: dict[str, Any], names: dict[Any, str], where: str, counts: Counter[str]
    ) -> tuple[str, ...]:
        ids = [annotation.get("category_id"), *(annotation.get("neg_category_ids") or [])[: self.protocol.negatives]]
        unknown = [number for number in ids if number not in names]
        if unknown:
            raise ValueError(
                f"{where}: 'category_id' and 'neg_category_ids' name {unknown[:5]}, which 'categories' does not list. "
                f"{_WHERE}"
            )
        texts = [names[number].strip() for number in ids]
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

    def _region(
        self, split: str, photo: CocoPhoto, region: CocoRegion, box: tuple[float, ...], counts: Counter[str]
    ) -> EvaluationRegion:
        check_relative_path(photo.file_name, f"{photo.where}: key 'file_name'", "the data folder")
        image = EvaluationImage(photo.file_name, self._place(photo.file_name))
        mask = None
        if self.protocol.regions == "masks":
            mask = region.mask if region.left_out is None else None
            counts[f"{split}: boxes in place of masks that are missing, malformed or of a crowd"] += mask is None
        # The same box in two splits is one region.
        return EvaluationRegion(f"{image.key}#{','.join(f'{value:.2f}' for value in box)}", image, mask, box)


def _box(bbox: Any, photo: CocoPhoto) -> tuple[float, float, float, float] | None:
    """xyxy inside the photo of [x, y, width, height], or `None` where less than half of it lies there."""
    try:
        left, top, width, height = (float(value) for value in bbox)
    except (TypeError, ValueError):
        return None
    x = np.clip([left, left + width], 0, photo.width)
    y = np.clip([top, top + height], 0, photo.height)
    inside = (x[1] - x[0]) * (y[1] - y[0])
    if not min(x[1] - x[0], y[1] - y[0]) >= BOX_TOLERANCE or inside < width * height / 2:
        return None
    return float(x[0]), float(y[0]), float(x[1]), float(y[1])


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
