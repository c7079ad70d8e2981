# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Mask sensitivity: does a model look at the region that it is shown, and how exact must the mask be?"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..coco_annotations import CocoAnnotations
from ..region_records import check_record, check_relative_path, clean_record
from ..regions import encode_rle, encode_runs, mask_to_box, to_mask
from .benchmark import Benchmark, SourceFile
from .features import FeatureExtractor
from .items import EvaluationImage, EvaluationRegion
from .mask_jitter import dilate, erode_some, shift_by_share
from .protocols import Protocol
from .region_classification import resolve_view
from .results import BenchmarkResult, Figure
from .scores import mean_figure, unit


@dataclass(frozen=True)
class MaskSensitivityProtocol(Protocol):
    """What decides a figure of mask sensitivity besides the model.

    Attributes:
        source: "coco": instances of COCO, each described by its category; "regions": a file in the form of
            `RegionJsonlDataset`, one photo a line, each region described by a text of its own.
        split: Of COCO, the name of file and folder.
        texts: What describes a region: its "category" in the template, its "object_text" (short) or its "text" (long).
            Regions without it are left out, counted. COCO has categories alone.
        template: Of a category, "{}" stands for it.
        views: Ways of showing a region, names of `region_views.VIEWS`, each with figures of its own. "auto" is "full+mask" of
            a model that takes masks and "masked-crop" of any other. Views joined as in "full+mask + blur+mask" are one:
            their cosines are added.
        min_share: Leave out smaller regions, counted; a share of the photo's pixels.
        max_pairs: At most so many pairs of regions a photo, drawn by the seed, so that crowded photos do not decide.
        dilate: Masks made larger, by these shares of the region's size, which is the square root of its area.
        erode: Masks made smaller, likewise; by half as much, and so on, where nothing would be left.
        shift: Masks moved, by these shares of the box's side, left, right, up or down, drawn by the seed.
        same: Two vectors with a greater cosine count as the same.
        tie_margin: Cosines that differ by at most this are equal; rounding alone makes such differences.
        ties: What a decision between equals counts: "half", as guessing would; "pessimistic" 0, "optimistic" 1.

    Example:
        >>> MaskSensitivity.presets["long-texts"].changed({"shift": "0.1, 0.2, 0.5"}).shift
        (0.1, 0.2, 0.5)
    """

    source: Literal["coco", "regions"] = "coco"
    split: str = "val2017"
    texts: Literal["category", "object_text", "text"] = "category"
    template: str = "a photo of a {}"
    views: tuple[str, ...] = ("auto",)
    min_share: float = 0.002
    max_pairs: int = 4
    dilate: tuple[float, ...] = (0.1,)
    erode: tuple[float, ...] = (0.1,)
    shift: tuple[float, ...] = (0.1, 0.2)
    same: float = 0.97
    tie_margin: float = 1e-6
    ties: Literal["half", "pessimistic", "optimistic"] = "half"


@dataclass(frozen=True, slots=True)
class DescribedRegion:
    """A region that is shown.

    Attributes:
        region: Its image and mask.
        text: What describes it.
        size: Height and width of the image.
    """

    region: EvaluationRegion
    text: str
    size: tuple[int, int]

    def variant(self, name: str, mask: Any = None, box: tuple[float, ...] | None = None) -> EvaluationRegion:
        """The same region with another mask or box."""
        return EvaluationRegion(f"{self.region.key}|{name}", self.region.image, mask, box)

    def decoded(self) -> np.ndarray:
        return to_mask(self.region.mask, *self.size, f"mask of region {self.region.key!r}") >= 0.5


class MaskSensitivity(Benchmark):
    """Right region of two in the same photo, with controls and with masks that are not quite right.

    Made for this library, since reports of Alpha-CLIP's users show that a model can accept a mask and ignore it (issue 12 of
    SunzeY/AlphaCLIP: cosines above 0.97 between the vectors of any two masks) and still score well where a photo has one main
    object. Here each text has two candidates, the regions of one photo, which only the mask tells apart.

    Figures, of each pair of regions whose texts differ (chance 0.5):

    - "right region of two": a text is nearer to the vector of its own region than to that of the other; the mean of both texts.
      Whether the mask steers the vector to the right content. 0.5 means that it does not.
    - "right text of two": a vector is nearer to its own text than to the other.
    - "masks swapped: right region of two": each region is shown under the mask of the other. 1 - "right region of two", as the
      answer then follows the mask to the wrong region; near 0.5 it does not follow the mask.
    - "no mask: right region of two", "all-ones mask: right region of two": both candidates are the whole photo. 0.5 by the tie
      rule, whatever the model: what a photo without its mask is worth here.
    - "dilated 10 %", "eroded 10 %", "shifted 10 %", "shifted 20 %", "box for mask", each with ": right region of two": both
      regions have such a mask. How much a careless annotator or a detector's box costs.

    Figures that are mean cosines, -1 to 1:

    - "two regions: cosine": of the vectors of the two regions of a pair, and "two regions: same": the share of pairs above
      `same`. Near 1.0 the model ignores its mask: such a model has exactly 1.0 for both, and 0.5 above.
    - "no mask: cosine", "all-ones mask: cosine", "dilated 10 %: cosine", ...: with the vector under the true mask. For the
      first two low means that the mask matters, for the others high means that its exact edge does not. Read them together: a
      model that ignores its mask has 1.0 in all.
    - "all-ones mask to no mask: cosine": how far "everything is the region" is from "there is no region"; low values tell
      that a model must not be given an all-ones mask in place of none.

    "No mask" is the view "full" or, of a model without it, the vector of the whole image. Of a sum of views the vectors of
    length 1 are added before a cosine between regions is taken.

    Layout of the source "coco": as `CocoRegions`. Of "regions": `regions.jsonl`, and images at the paths that it names, below
    the data folder or its folder `images/`.

    Presets: "default" (COCO, categories), "object-texts" and "long-texts" (`regions.jsonl`).

    Attributes:
        regions: What is shown, filled by `load`.
        pairs: Indices of the two regions of each pair, filled by `load`.

    Example:
        >>> benchmark = MaskSensitivity("data/coco")
        >>> result = benchmark.evaluate(FeatureExtractor(encoder))  # doctest: +SKIP
        >>> result.figures["right region of two"].value, result.figures["two regions: cosine"].value  # doctest: +SKIP
        (0.81, 0.55)
    """

    name = "mask-sensitivity"
    summary = (
        "which of two regions of a photo a text describes, with controls, inexact masks and boxes: accuracy, cosines"
    )
    task = "zero-shot-image-classification"
    dataset = "Pairs of regions of one photo"
    main_figure = "right region of two"
    presets: ClassVar[dict[str, MaskSensitivityProtocol]] = {
        "default": MaskSensitivityProtocol(),
        "object-texts": MaskSensitivityProtocol("object-texts", source="regions", texts="object_text"),
        "long-texts": MaskSensitivityProtocol("long-texts", source="regions", texts="text"),
    }
    layout = (
        SourceFile(
            "annotations/instances_{split}.json",
            "COCO's instances, for source=coco",
            "It is in annotations_trainval2017.zip of https://cocodataset.org/#download.",
        ),
        SourceFile(
            "{split}",
            "folder of the photos, for source=coco; images/{split} is accepted too",
            "They are in {split}.zip of https://cocodataset.org/#download.",
        ),
        SourceFile(
            "regions.jsonl",
            "photos with two or more regions, for source=regions",
            "Any file in the form of RegionJsonlDataset will do, such as examples/data/coco_regions/heldout.jsonl.",
        ),
    )

    def __init__(self, data_dir: str | os.PathLike, protocol: MaskSensitivityProtocol | None = None):
        super().__init__(data_dir, protocol)
        if self.protocol.source == "coco" and self.protocol.texts != "category":
            raise ValueError(
                f"texts is {self.protocol.texts!r} with source 'coco', whose regions have no such text; accepted is 'category', "
                f"or source 'regions'."
            )
        if self.protocol.template.count("{}") != 1:
            raise ValueError(f"template is {self.protocol.template!r}; accepted is a text with one {{}}.")
        self.regions: list[DescribedRegion] = []
        self.pairs = np.zeros((0, 2), dtype=np.int64)

    def sources(self) -> tuple[SourceFile, ...]:
        """The files of the protocol's source."""
        return self.layout[:2] if self.protocol.source == "coco" else self.layout[2:]

    def path(self, source: SourceFile) -> Path:
        return self._place(source.path.format(**self.protocol.to_dict()))

    def load(self) -> None:
        if self.regions:
            return
        self.check_layout()
        left_out: Counter[str] = Counter()
        read = self._read_coco if self.protocol.source == "coco" else self._read_records
        photos = []
        for number, described in enumerate(read(left_out)):
            chosen = self._pairs(described, number)
            if not chosen:
                left_out["photos left out, no two regions of different texts"] += 1
                continue
            photos.append((described, chosen))
            if len(photos) == self.protocol.limit:
                break
        images = {part[0].region.image.key: part[0].region.image for part, _ in photos}
        missing = self.check_images(images.values())
        regions: list[DescribedRegion] = []
        pairs = []
        for described, chosen in photos:
            if described[0].region.image.key in missing:
                continue
            # Regions of no pair are not shown.
            places = {index: len(regions) + place for place, index in enumerate(sorted({*itertools.chain(*chosen)}))}
            regions += [described[index] for index in places]
            pairs += [(places[first], places[second]) for first, second in chosen]
        if not pairs:
            raise ValueError(
                f"{self.name}: no pair of regions is left; left out were {dict(left_out)} and {len(missing)} images without a "
                f"file. Check {self.path(self.sources()[0])}, and the protocol's texts, min_share, max_pairs and limit."
            )
        self.counts |= {
            "images": len({region.region.image.key for region in regions}),
            "regions": len(regions),
            "pairs": len(pairs),
            **dict(sorted(left_out.items())),
        }
        self.pairs = np.array(pairs)
        self.regions = regions

    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        self.load()
        views = [resolve_view(view, features.encoder) for view in self.protocol.views]
        texts = unit(features.texts([region.text for region in self.regions], "region"))
        inexact = self._inexact()
        figures: dict[str, Figure] = {}
        items: list[dict[str, Any]] = []
        for view in views:
            measured, margins = self._measure(features, view, texts, inexact)
            prefix = f"{view}: " if len(views) > 1 else ""
            figures |= {prefix + name: figure for name, figure in measured.items()}
            items = items or self._items(margins)
        prefix = f"{views[0]}: " if len(views) > 1 else ""
        images = {region.region.image.key: region.region.image for region in self.regions}.values()
        result = self.result(features, figures, items, images, prefix + self.main_figure)
        result.protocol["views"] = views
        return result

    def _measure(
        self, features: FeatureExtractor, view: str, texts: np.ndarray, inexact: dict[str, list[EvaluationRegion]]
    ) -> tuple[dict[str, Figure], np.ndarray]:
        """Figures of a view, and by how much each decision under the true mask is right, (P, 2)."""
        figures: dict[str, Figure] = {}

        def vectors(regions: Sequence[EvaluationRegion], of_view: str = view) -> np.ndarray:
            return sum(unit(features.regions(regions, part)) for part in of_view.split(" + "))

        def add(name: str, values: np.ndarray, chance: float | None = None) -> None:
            figures[name] = mean_figure(values, self.protocol.bootstrap, self.protocol.seed, chance)

        def add_decisions(name: str, margins: np.ndarray) -> None:
            # A pair is an item: its two decisions hang together.
            add(name, self._decided(margins).mean(axis=1), 0.5)

        first, second = self.pairs.T
        right_region = "right region of two"
        true = vectors([described.region for described in self.regions])
        margins = _region_margins(texts[self.pairs], true[self.pairs])
        add_decisions(right_region, margins)
        add_decisions("right text of two", _region_margins(true[self.pairs], texts[self.pairs]))
        add_decisions(f"masks swapped: {right_region}", _region_margins(texts[self.pairs], true[self.pairs[:, ::-1]]))
        cosines = _cosines(true[first], true[second])
        add("two regions: cosine", cosines)
        add("two regions: same", cosines > self.protocol.same)

        of_inexact = {name: vectors(regions) for name, regions in inexact.items()}
        photos = {described.region.image.key: described for described in self.regions}
        places = {key: place for place, key in enumerate(photos)}
        of_photo = np.array([places[described.region.image.key] for described in self.regions])
        wholes = [
            EvaluationRegion(f"{key}|no mask", photo.region.image, box=(0.0, 0.0, *map(float, photo.size[::-1])))
            for key, photo in photos.items()
        ]
        if "full" in features.encoder.views:
            whole = vectors(wholes, "full")
        else:
            whole = unit(features.images([photo.region.image for photo in photos.values()]))
        all_ones = vectors(
            [
                EvaluationRegion(
                    f"{key}|all-ones mask",
                    photo.region.image,
                    encode_runs([0, photo.size[0] * photo.size[1]], *photo.size),
                )
                for key, photo in photos.items()
            ]
        )
        variants = {"no mask": whole[of_photo], "all-ones mask": all_ones[of_photo]}
        for name, found in (variants | of_inexact).items():
            add_decisions(f"{name}: {right_region}", _region_margins(texts[self.pairs], found[self.pairs]))
            add(f"{name}: cosine", _cosines(found, true))
        add("all-ones mask to no mask: cosine", _cosines(all_ones, whole))
        return figures, margins

    def _decided(self, margins: np.ndarray) -> np.ndarray:
        """What each decision counts, (P, 2)."""
        tie = {"half": 0.5, "pessimistic": 0.0, "optimistic": 1.0}[self.protocol.ties]
        return np.where(np.abs(margins) <= self.protocol.tie_margin, tie, margins > 0)

    def _inexact(self) -> dict[str, list[EvaluationRegion]]:
        """The regions with inexact masks, by what was done to them."""
        changes = {"dilated": self.protocol.dilate, "eroded": self.protocol.erode, "shifted": self.protocol.shift}
        made: dict[str, list[EvaluationRegion]] = {
            f"{change} {100 * share:g} %": [] for change, shares in changes.items() for share in shares
        }
        made["box for mask"] = []
        smaller = 0
        for number, described in enumerate(self.regions):
            mask = described.decoded()
            direction = int(np.random.default_rng([self.protocol.seed, number]).integers(4))
            for change, shares in changes.items():
                for share in shares:
                    radius = max(1, round(share * float(np.sqrt(mask.sum()))))
                    if change == "dilated":
                        changed = dilate(mask, radius)
                    elif change == "eroded":
                        changed, taken = erode_some(mask, radius)
                        smaller += taken < radius
                    else:
                        changed = shift_by_share(mask, share, direction)
                    name = f"{change} {100 * share:g} %"
                    made[name].append(described.variant(name, encode_rle(changed)))
            made["box for mask"].append(described.variant("box for mask", box=tuple(mask_to_box(mask).tolist())))
        self.counts["erosions made smaller, nothing would have been left"] = smaller
        return made

    def _items(self, margins: np.ndarray) -> list[dict[str, Any]]:
        items = []
        for pair, of_pair in zip(self.pairs.tolist(), margins.tolist()):
            for this, other, margin in zip(pair, reversed(pair), of_pair):
                shown, wrong = self.regions[this], self.regions[other]
                correct = margin > self.protocol.tie_margin
                items.append(
                    {
                        "key": f"{shown.region.key} or {wrong.region.key}",
                        "correct": correct,
                        "score": abs(margin),
                        "image": shown.region.image.key,
                        "mask": shown.region.mask,
                        "text": shown.text,
                        "truth": shown.text,
                        "predicted": shown.text if correct else wrong.text,
                    }
                )
        return items

    def _pairs(self, described: list[DescribedRegion], number: int) -> list[tuple[int, int]]:
        pairs = [
            (first, second)
            for first, second in itertools.combinations(range(len(described)), 2)
            if described[first].text != described[second].text
        ]
        if len(pairs) <= self.protocol.max_pairs:
            return pairs
        drawn = np.random.default_rng([self.protocol.seed, number]).permutation(len(pairs))[: self.protocol.max_pairs]
        return [pairs[index] for index in sorted(drawn.tolist())]

    def _place(self, relative: str) -> Path:
        there, below = self.data_dir / relative, self.data_dir / "images" / relative
        return below if below.exists() and not there.exists() else there

    def _read_coco(self, left_out: Counter[str]) -> Iterator[list[DescribedRegion]]:
        annotations = CocoAnnotations(self.path(self.layout[0]), None)
        for photo in annotations.photos.values():
            if photo.error is not None:
                left_out["photos left out, malformed"] += 1
                continue
            key = f"{self.protocol.split}/{photo.file_name}"
            check_relative_path(key, f"{photo.where}: key 'file_name'", "the data folder")
            image = EvaluationImage(key, self._place(key))
            size, described = (photo.height, photo.width), []
            for number, region in enumerate(photo.regions):
                if region.left_out is not None:
                    left_out[f"regions left out, {region.left_out}"] += 1
                elif region.area < self.protocol.min_share * photo.width * photo.height:
                    left_out["regions left out, smaller than min_share"] += 1
                else:
                    place = f"number {number}" if region.annotation_id is None else region.annotation_id
                    shown = EvaluationRegion(f"{key}#{place}", image, region.mask)
                    described.append(DescribedRegion(shown, self.protocol.template.format(region.category), size))
            yield described

    def _read_records(self, left_out: Counter[str]) -> Iterator[list[DescribedRegion]]:
        path = self.path(self.layout[2])
        with open(path, encoding="utf-8") as file:
            for line_number, line in enumerate(file, start=1):
                where = f"{path}, line {line_number}"
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{where} is not JSON ({error}); accepted is one photo a line.") from error
                check_record(record, where)
                record = clean_record(record)
                image = EvaluationImage(record["image"], self._place(record["image"]))
                size, described = (record["height"], record["width"]), []
                for number, region in enumerate(record["regions"]):
                    text = region.get(self.protocol.texts)
                    if "mask" not in region:
                        left_out["regions left out, no mask"] += 1
                    elif text is None:
                        left_out[f"regions left out, no {self.protocol.texts}"] += 1
                    elif to_mask(region["mask"], *size).mean() < self.protocol.min_share:
                        left_out["regions left out, smaller than min_share"] += 1
                    else:
                        text = self.protocol.template.format(text) if self.protocol.texts == "category" else text
                        shown = EvaluationRegion(f"{image.key}#line {line_number}, {number}", image, region["mask"])
                        described.append(DescribedRegion(shown, text, size))
                yield described


def _region_margins(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """By how much each query of a pair is nearer to its own candidate: (P, 2, D) and (P, 2, D) give (P, 2)."""
    scores = np.einsum("pqd,pcd->pqc", queries, candidates)
    return np.stack([scores[:, 0, 0] - scores[:, 0, 1], scores[:, 1, 1] - scores[:, 1, 0]], axis=1)


def _cosines(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (unit(vectors) * unit(others)).sum(axis=1)
