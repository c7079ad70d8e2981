# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Mask sensitivity: does a model look at the region that it is shown, and how exact must the mask be?"""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..coco_annotations import CocoAnnotations
from ..region_records import check_record, check_relative_path, clean_record
from ..regions import encode_rle, encode_runs, mask_to_box, to_mask
from .benchmark import Benchmark, SourceFile
from .class_prompts import TEMPLATES
from .features import FeatureExtractor
from .items import EvaluationImage, EvaluationRegion, place
from .mask_jitter import dilate, erode_some, fit_mask, shift_by_share
from .protocols import Protocol, bounded
from .region_classification import resolve_view, view_summaries
from .results import BenchmarkResult, Figure
from .retrieval_ranks import retrieval_ranks
from .scores import NOT_SHOWN, mean_figure, shown, unit


# Figures of their own; other masks than these are inexact ones.
_CONTROLS = ("another photo's mask", "no mask", "all-ones mask")
# Cosines that differ by at most this are equal; rounding alone makes such differences.
_TIE = 1e-6


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

    Example:
        >>> MaskSensitivity.presets["long-texts"].changed({"shift": "0.1, 0.2, 0.5"}).shift
        (0.1, 0.2, 0.5)
    """

    source: Literal["coco", "regions"] = "coco"
    split: str = "val2017"
    texts: Literal["category", "object_text", "text"] = "category"
    template: str = TEMPLATES["single"][0]
    views: tuple[str, ...] = ("auto",)
    min_share: float = bounded(0.002, 0, 1)
    max_pairs: int = bounded(4, 1)
    dilate: tuple[float, ...] = (0.1,)
    erode: tuple[float, ...] = (0.1,)
    shift: tuple[float, ...] = (0.1, 0.2)

    def details(self) -> dict[str, Any]:
        return super().details() | {
            "view_summaries": view_summaries(self.views),
            "tie_rule": f"of two regions, cosines that differ by at most {_TIE:g} are equal, which counts one half; "
            "of all texts, equal cosines count as wrong",
        }


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
    """Does a model follow its mask: right region of two, wrong and missing masks, and masks that are not quite right.

    Made for this library, since reports of Alpha-CLIP's users show that a model can accept a mask and ignore it (issue 12 of
    SunzeY/AlphaCLIP: cosines above 0.97 between the vectors of any two masks) and still score well where a photo has one main
    object.

    Of each pair of regions of one photo whose texts differ (chance 0.5; equal cosines, which differ by at most 1e-6, count
    0.5):

    - "right region of two": a text is nearer to the vector of its own region than to that of the other; the mean of both texts.
      Only the mask tells the two apart: a model that ignores it has exactly 0.5.
    - "dilated 10 %", "eroded 10 %", "shifted 10 %", "shifted 20 %", "box for mask", each with ": right region of two": both
      regions have such a mask. How much a careless annotator or a detector's box costs.

    Of each region, its text among all distinct texts of the regions (chance 1 / their number; equal cosines count as wrong):

    - "right text": under its own mask.
    - "another region's mask: right text": the photo is shown with the mask of the other region of its pairs, and what counts
      is still the first region's text. Where the mask is followed, that is rare.
    - "another photo's mask: right text": with the mask of a region of another photo, drawn by the seed and resized to this
      photo; it may cover part of the region by accident.
    - "no mask: right text", "all-ones mask: right text": the whole photo.
    - "gain over another region's mask", "gain over another photo's mask", "gain over no mask", "gain over all-ones mask":
      "right text" less each of these, region by region, -1 to 1, chance 0. What the right mask is worth; 0 throughout tells that
      it is ignored, and a gain below 0 that the mask harms.

    Mean cosines, -1 to 1:

    - "two regions: cosine": of the vectors of the two regions of a pair. Near 1.0 the model ignores its mask.
    - "another photo's mask: cosine", "no mask: cosine", "all-ones mask: cosine", "dilated 10 %: cosine", ...: with the vector
      under the region's own mask. For the first three low means that the mask matters, for the others high means that its exact
      edge does not. Read them together: a model that ignores its mask has 1.0 in all.
    - "all-ones mask to no mask: cosine": how far "everything is the region" is from "there is no region"; low values tell
      that a model must not be given an all-ones mask in place of none.

    A region of which the model's frame shows nothing under a mask is wrong there, and in no cosine; `counts` tells how many.
    With regions of a single photo there is no mask of another, and no figure of it.

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
        "whether a region's mask decides: right region of two, gain over wrong and no mask, inexact masks, cosines"
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
        return place(self.data_dir, source.path.format(**self.protocol.to_dict()))

    def load(self) -> None:
        if self.regions:
            return
        self.check_layout()
        left_out: Counter[str] = Counter()
        read = self._read_coco if self.protocol.source == "coco" else self._read_records
        photos = []
        for number, described in enumerate(read(left_out)):
            if len(photos) == self.protocol.limit:
                break
            chosen = self._pairs(described, number)
            if not chosen:
                left_out["photos left out, no two regions of different texts"] += 1
                continue
            photos.append((described, chosen))
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
            "texts": len({region.text for region in regions}),
            **dict(sorted(left_out.items())),
        }
        self.pairs = np.array(pairs)
        self.regions = regions

    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        self.load()
        views = [resolve_view(view, features.encoder) for view in self.protocol.views]
        distinct = list(dict.fromkeys(region.text for region in self.regions))
        places = {text: number for number, text in enumerate(distinct)}
        targets = np.array([places[region.text] for region in self.regions])
        texts = unit(features.texts(distinct, "region"))
        masks = self._masks()
        figures: dict[str, Figure] = {}
        hidden: dict[str, int] = {}
        items: list[dict[str, Any]] = []
        for view in views:
            measured, unseen, margins = self._measure(features, view, texts, targets, masks)
            prefix = f"{view}: " if len(views) > 1 else ""
            figures |= {prefix + name: figure for name, figure in measured.items()}
            hidden |= {prefix + name: count for name, count in unseen.items()}
            items = items or self._items(margins)
        prefix = f"{views[0]}: " if len(views) > 1 else ""
        images = {region.region.image.key: region.region.image for region in self.regions}.values()
        result = self.result(features, figures, items, images, prefix + self.main_figure, views)
        result.counts |= hidden
        return result

    def _measure(
        self,
        features: FeatureExtractor,
        view: str,
        texts: np.ndarray,
        targets: np.ndarray,
        masks: dict[str, list[EvaluationRegion]],
    ) -> tuple[dict[str, Figure], dict[str, int], np.ndarray]:
        """Figures of a view, how many regions are not shown, and by how much each decision of a pair is right, (P, 2)."""
        protocol = self.protocol
        own = self._vectors(features, [described.region for described in self.regions], view)
        found = {name: self._vectors(features, regions, view) for name, regions in masks.items()}
        found["no mask"] = self._without_mask(features)
        hidden = {NOT_SHOWN: int((~shown(own)).sum())}
        of_masks = {f"{name}: {NOT_SHOWN}": int((~shown(vectors)).sum()) for name, vectors in found.items()}
        hidden |= {name: count for name, count in of_masks.items() if count}
        photos = np.array([described.region.image.key for described in self.regions])
        first, second = self.pairs.T
        figures: dict[str, Figure] = {}

        def add(name: str, values: np.ndarray, keys: np.ndarray, chance: float | None = None) -> None:
            figures[name] = mean_figure(values, keys.tolist(), protocol.bootstrap, protocol.seed, chance)

        def add_cosine(name: str, one: np.ndarray, other: np.ndarray, keys: np.ndarray) -> None:
            both = shown(one) & shown(other)
            if both.any():
                add(name, (unit(one) * unit(other)).sum(axis=1)[both], keys[both])

        def decide(vectors: np.ndarray) -> np.ndarray:
            """How sure the right region is chosen by each text of a pair, (P, 2): what is not shown is never chosen."""
            scores = np.einsum("pqd,pcd->pqc", texts[targets[self.pairs]], vectors[self.pairs])
            scores = np.where(shown(vectors)[self.pairs][:, None], scores, -np.inf)
            right, wrong = scores[:, [0, 1], [0, 1]], scores[:, [0, 1], [1, 0]]
            return np.where(np.isneginf(right), -np.inf, right - np.where(np.isneginf(right), 0, wrong))

        def right_text(vectors: np.ndarray, wanted: np.ndarray) -> np.ndarray:
            return (retrieval_ranks(vectors, texts, wanted) == 1) & shown(vectors)

        margins = decide(own)
        # A pair is an item: its two decisions hang together.
        add("right region of two", _decided(margins).mean(axis=1), photos[first], 0.5)
        right = right_text(own, targets)
        add("right text", right, photos, 1 / len(texts))
        # Each region under the masks of its pairs' other regions.
        shown_with, wanted = np.concatenate([second, first]), np.concatenate([first, second])
        of_pairs = np.bincount(wanted, right_text(own[shown_with], targets[wanted]))
        controls = {"another region's mask": of_pairs / np.bincount(wanted)}
        controls |= {name: right_text(found[name], targets) for name in _CONTROLS if name in found}
        for name, values in controls.items():
            add(f"{name}: right text", values, photos, 1 / len(texts))
        for name, values in controls.items():
            gains = right - values.astype(np.float64)
            add(f"gain over {name}", gains, photos, 0.0)
            gain = figures[f"gain over {name}"]
            if not gains.any() and gain.high is not None:
                # The interval is that of a share of which nothing but 0 was seen; a gain can be below 0 as well.
                figures[f"gain over {name}"] = replace(gain, low=-gain.high)
        add_cosine("two regions: cosine", own[first], own[second], photos[first])
        for name in [name for name in _CONTROLS if name in found]:
            add_cosine(f"{name}: cosine", found[name], own, photos)
        _, one_each = np.unique(photos, return_index=True)
        one_each.sort()
        add_cosine(
            "all-ones mask to no mask: cosine",
            found["all-ones mask"][one_each],
            found["no mask"][one_each],
            photos[one_each],
        )
        for name in [name for name in found if name not in _CONTROLS]:
            add(f"{name}: right region of two", _decided(decide(found[name])).mean(axis=1), photos[first], 0.5)
            add_cosine(f"{name}: cosine", found[name], own, photos)
        return figures, hidden, margins

    def _vectors(self, features: FeatureExtractor, regions: Sequence[EvaluationRegion], view: str) -> np.ndarray:
        return sum(unit(features.regions(regions, part)) for part in view.split(" + "))

    def _without_mask(self, features: FeatureExtractor) -> np.ndarray:
        if "full" not in features.encoder.views:
            return unit(features.images([described.region.image for described in self.regions]))
        wholes = [
            described.variant("no mask", box=(0.0, 0.0, *map(float, described.size[::-1])))
            for described in self.regions
        ]
        return self._vectors(features, wholes, "full")

    def _masks(self) -> dict[str, list[EvaluationRegion]]:
        """The regions under other masks than their own, by which: wrong, of everything, and inexact."""
        photos: dict[str, list[int]] = {}
        for number, described in enumerate(self.regions):
            photos.setdefault(described.region.image.key, []).append(number)
        strange = []
        for number, described in enumerate(self.regions):
            # Regions of one photo follow each other.
            of_photo = photos[described.region.image.key]
            others = len(self.regions) - len(of_photo)
            if not others:
                break
            drawn = int(np.random.default_rng([self.protocol.seed, number]).integers(others))
            other = self.regions[drawn if drawn < of_photo[0] else drawn + len(of_photo)]
            mask = fit_mask(other.decoded(), *described.size)
            strange.append(described.variant("another photo's mask", encode_rle(mask)))
        everything = [
            described.variant(
                "all-ones mask", encode_runs([0, described.size[0] * described.size[1]], *described.size)
            )
            for described in self.regions
        ]
        made = self._inexact() | {"all-ones mask": everything}
        return made | {"another photo's mask": strange} if strange else made

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
                right, wrong = self.regions[this], self.regions[other]
                correct = margin > _TIE
                items.append(
                    {
                        "key": f"{right.region.key} or {wrong.region.key}",
                        "correct": correct,
                        # Where a region is not shown, nothing was compared.
                        "score": abs(margin) if np.isfinite(margin) else 0.0,
                        "image": right.region.image.key,
                        "mask": right.region.mask,
                        "text": right.text,
                        "truth": right.text,
                        "predicted": right.text if correct else wrong.text,
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

    def _read_coco(self, left_out: Counter[str]) -> Iterator[list[DescribedRegion]]:
        annotations = CocoAnnotations(self.path(self.layout[0]), None)
        for photo in annotations.photos.values():
            if photo.error is not None:
                left_out["photos left out, malformed"] += 1
                continue
            key = f"{self.protocol.split}/{photo.file_name}"
            check_relative_path(key, f"{photo.where}: key 'file_name'", "the data folder")
            image = EvaluationImage(key, place(self.data_dir, key))
            size, described = (photo.height, photo.width), []
            for number, region in enumerate(photo.regions):
                if region.left_out is not None:
                    left_out[f"regions left out, {region.left_out}"] += 1
                elif region.area < self.protocol.min_share * photo.width * photo.height:
                    left_out["regions left out, smaller than min_share"] += 1
                else:
                    named = f"number {number}" if region.annotation_id is None else region.annotation_id
                    text = self.protocol.template.replace("{}", region.category)
                    described.append(
                        DescribedRegion(EvaluationRegion(f"{key}#{named}", image, region.mask), text, size)
                    )
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
                image = EvaluationImage(record["image"], place(self.data_dir, record["image"]))
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
                        text = (
                            self.protocol.template.replace("{}", text) if self.protocol.texts == "category" else text
                        )
                        key = f"{image.key}#line {line_number}, {number}"
                        described.append(DescribedRegion(EvaluationRegion(key, image, region["mask"]), text, size))
                yield described


def _decided(margins: np.ndarray) -> np.ndarray:
    """What each decision counts: 0, 1, or 0.5 between equals."""
    return np.where(np.abs(margins) <= _TIE, 0.5, margins > 0)
