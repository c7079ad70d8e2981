# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Referring expressions: which of a photo's objects a sentence means. RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..region_records import read_image_header
from ..regions import BOX_TOLERANCE
from .benchmark import Benchmark, SourceFile
from .boxes import box_iou
from .expression_parser import ReferringPhrase, parse_expression, spatial_probabilities
from .features import FeatureExtractor
from .items import EvaluationImage, EvaluationRegion
from .model_identity import public_name
from .referring_files import (
    PHOTO_FOLDERS,
    ReferringData,
    ReferringExpression,
    add_masks,
    photo_folder,
    read_detections,
    read_reclip,
    read_unc,
    referring_layout,
)
from .referring_protocols import (
    COSINE_TOLERANCE,
    RefCocoGProtocol,
    ReferringProtocol,
    referring_presets,
    resolve_views,
)
from .results import BenchmarkResult, Figure
from .sam_masks import with_sam_masks
from .scores import NOT_SHOWN, mean_figure, shown, unit


class ReferringExpressions(Benchmark):
    """Base of RefCOCO, RefCOCO+ and RefCOCOg: accuracy over sentences at an overlap above 0.5.

    Source: PixCLIP's evaluation (StuHude/PixCLIP, eval/rec_zs_test), after ReCLIP (Subramanian et al. 2022).

    Presets: "default" (ground-truth candidates with their masks, no parser), "detector-boxes" (detected boxes, shown
    as boxes, no parser), and "official-pixclip", the protocol of PixCLIP's evaluation, which is Alpha-CLIP's and, but
    for the views, ReCLIP's: its files, detected boxes, masks by SAM from the boxes, full and blurred view summed,
    spatial parse. In two things the last is not theirs: masks come from SAM 2.1 (Hiera large) where they take SAM
    ViT-H, and the parser is our own in place of spaCy's. Their run.sh scores the first eighth of a split; here it is
    all of it.

    Photos are looked for in the folders of `referring_files.PHOTO_FOLDERS`, the first that is there. COCO's train2017
    holds all photos of train2014, unchanged, under shorter names, so either is accepted.

    Figures are "accuracy" and, with `parser`, "accuracy without the parser" and "accuracy of the spatial words alone",
    which knows no model and where equal candidates share the point. With several views each figure is prefixed by its
    view. Chance is the mean of the share of candidates that would be right, and is not known with the parser. No model
    exceeds the share of "sentences with a right candidate", which is counted.

    A candidate of which the model's frame shows nothing, in any view of a sum, is never the answer; how many there are is
    counted. A sentence with no other candidates is wrong.

    Masks of SAM 2 are made once for all models that an instance evaluates, on the GPU where there is one; the result's
    protocol has the checkpoint's own name, without folders, and the SHA-256 of its weights.

    `items` of a result are the sentences under the first view: `box` that of the object, `predicted_box` and
    `predicted_mask` those of the answer, `score` the answer's probability.

    Attributes:
        expressions: The sentences, filled by `load`.
        images: The photos, by their id in COCO, filled by `load`.
        candidates: What each photo offers, by its id, filled by `load`.
        right: Which candidates of its photo are right for each sentence, (N,) bool each, filled by `load`.
        referred: Box of the object of each sentence, xyxy in pixels, filled by `load`.
    """

    task = "referring-expression-comprehension"
    main_figure = "accuracy"
    presets: ClassVar[Mapping[str, ReferringProtocol]]

    def __init__(self, data_dir: str | os.PathLike, protocol: ReferringProtocol | None = None):
        super().__init__(data_dir, protocol)
        self.dataset = f"{self.dataset} {self.protocol.split}"
        if "{}" not in self.protocol.prompt:
            raise ValueError(f"{self.name}: prompt is {self.protocol.prompt!r}; accepted is a text with {{}} in it.")
        if self.protocol.candidates == "detector" and self.protocol.masks == "annotation":
            raise ValueError(
                f"{self.name}: masks is 'annotation', which boxes of a detector do not have; accepted with "
                f"candidates=detector are 'box' and 'sam2'."
            )
        self.expressions: list[ReferringExpression] = []
        self.images: dict[int, EvaluationImage] = {}
        self.candidates: dict[int, list[EvaluationRegion]] = {}
        self._boxes: dict[int, np.ndarray] = {}
        self._sizes: dict[int, tuple[int, int]] = {}
        self.right: list[np.ndarray] = []
        self.referred: list[tuple[float, ...]] = []
        self._mask_weights: str | None = None

    def path(self, source: SourceFile) -> Path:
        if source.path in PHOTO_FOLDERS:
            return self.data_dir / photo_folder(self.data_dir)
        path = super().path(source)
        lower = path.with_name(path.name.lower())
        return lower if lower.exists() or not path.exists() else path

    def sources(self) -> tuple[SourceFile, ...]:
        refs, instances, lines, detections, photos = self.layout
        protocol = self.protocol
        return (
            *((refs,) if protocol.source == "unc" else (lines,)),
            *((instances,) if protocol.source == "unc" or protocol.masks == "annotation" else ()),
            *((detections,) if protocol.candidates == "detector" else ()),
            photos,
        )

    def changed_fields(self) -> dict[str, Any]:
        changed = super().changed_fields()
        return changed | {name: public_name(value) for name, value in changed.items() if name == "mask_model"}

    def load(self) -> None:
        if self.expressions:
            return
        self.check_layout()
        data = self._read()
        images = self._images(dict.fromkeys(expression.image_id for expression in data.expressions))
        missing = self.check_images(images.values())
        images = {image_id: image for image_id, image in images.items() if image.key not in missing}
        expressions = [expression for expression in data.expressions if expression.image_id in images]
        if not expressions:
            raise ValueError(f"{self.name}: no sentence is left; all {len(missing)} images are without a file.")
        left_out = Counter(data.left_out)
        offered = self._offered(data, images)
        for image_id, image in images.items():
            self._add_candidates(image_id, image, offered[image_id], left_out)
        if self.protocol.masks == "sam2":
            self._add_sam_masks(left_out)
        for expression in expressions:
            objects = {each.annotation_id: each.box for each in data.objects[expression.image_id]}
            referred = np.array([objects[each] for each in expression.referred])
            overlap = box_iou(self._boxes[expression.image_id], referred)
            self.right.append((overlap > self.protocol.iou).any(axis=1))
            self.referred.append(tuple(_inside(referred[0], *self._sizes[expression.image_id]).tolist()))
        self.counts |= {
            "images": len(images),
            "sentences": len(expressions),
            "candidates": sum(map(len, self.candidates.values())),
            "sentences with a right candidate": sum(bool(right.any()) for right in self.right),
            "sentences without a candidate": sum(len(right) == 0 for right in self.right),
            **dict(sorted(left_out.items())),
        }
        self.images, self.expressions = images, expressions

    def _read(self) -> ReferringData:
        refs, instances, lines, _, _ = map(self.path, self.layout)
        if self.protocol.source == "unc":
            return read_unc(refs, instances, self.protocol.split, self.protocol.expression)
        data = read_reclip(lines, self.protocol.expression)
        if self.protocol.masks == "annotation":
            add_masks(data, instances)
        return data

    def _images(self, image_ids: Any) -> dict[int, EvaluationImage]:
        folder = photo_folder(self.data_dir)
        names = {image_id: f"{folder}/{PHOTO_FOLDERS[folder].format(image_id)}" for image_id in image_ids}
        some = list(names.items())[: self.protocol.limit]
        return {image_id: EvaluationImage(name, self.data_dir / name) for image_id, name in some}

    def _offered(self, data: ReferringData, images: Any) -> dict[int, list[tuple[str, Sequence[float] | None, Any]]]:
        """Name, box and mask of each candidate of each photo; no box is the whole image."""
        if self.protocol.candidates == "ground-truth":
            return {
                image_id: [(str(each.annotation_id), each.box, each.mask) for each in data.objects[image_id]]
                for image_id in images
            }
        found = read_detections(self.path(self.layout[3]))
        whole = [("whole image", None, None)] if self.protocol.no_boxes == "whole image" else []
        return {
            image_id: [(f"detection {place}", box, None) for place, box in enumerate(found.get(image_id, ()))] or whole
            for image_id in images
        }

    def _add_candidates(
        self, image_id: int, image: EvaluationImage, offered: Sequence[tuple], left_out: Counter[str]
    ) -> None:
        (width, height), _ = read_image_header(image.path, str(image.path))
        regions, boxes = [], []
        for name, box, mask in offered:
            box = (0.0, 0.0, float(width), float(height)) if box is None else box
            inside = _inside(box, width, height)
            if (inside[2:] - inside[:2] < BOX_TOLERANCE).any():
                left_out["candidates left out, no area within the image"] += 1
                continue
            if self.protocol.masks != "annotation":
                mask = None
            elif mask is None:
                left_out["candidates shown as boxes, their annotation has no usable mask"] += 1
            regions.append(EvaluationRegion(f"{image.key}#{name}", image, mask, tuple(inside.tolist())))
            boxes.append(box)
        self.candidates[image_id] = regions
        self._boxes[image_id] = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        self._sizes[image_id] = (width, height)

    def _add_sam_masks(self, left_out: Counter[str]) -> None:
        masked, self._mask_weights = with_sam_masks(
            list(self.candidates.values()), self.protocol.mask_model, self.name
        )
        self.candidates = dict(zip(self.candidates, masked, strict=True))
        left_out["candidates shown as boxes, SAM 2 found nothing in them"] += sum(
            region.mask is None for regions in masked for region in regions
        )

    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        self.load()
        views = resolve_views(self.protocol.views, features.encoder)
        phrases = [parse_expression(each.text) if self.protocol.parser else None for each in self.expressions]
        texts = self._text_vectors(features, phrases)
        regions = [region for of_image in self.candidates.values() for region in of_image]
        starts = dict(zip(self.candidates, np.cumsum([0, *map(len, self.candidates.values())])[:-1], strict=True))
        scale = features.encoder.logit_scale
        figures: dict[str, Figure] = {}
        counts: dict[str, int] = {}
        items: list[dict[str, Any]] = []
        for view in views:
            vectors, seen = self._vectors(features, regions, view)
            plain, parsed = [], []
            for expression, phrase in zip(self.expressions, phrases, strict=True):
                start = starts[expression.image_id]
                own = slice(start, start + len(self.candidates[expression.image_id]))
                probability = partial(_probabilities, vectors[own], seen[own], texts, scale)
                probabilities = probability(expression.text.lower())
                plain.append(probabilities)
                if phrase is not None and phrase.is_spatial and probabilities.any():
                    product = probabilities * self._spatial(expression, phrase, probability)
                    probabilities = product / product.sum() if product.sum() > 0 else probabilities
                parsed.append(probabilities)
            prefix = f"{view}: " if len(views) > 1 else ""
            counts[prefix + NOT_SHOWN] = int((~seen).sum())
            # Softmax turns a difference of scores into a quotient.
            lowest = math.exp(-COSINE_TOLERANCE * scale * len(view.split(" + ")))
            correct, answers = self._answers(parsed, lowest)
            figures[f"{prefix}accuracy"] = self._figure(correct, None if self.protocol.parser else self._chance())
            if self.protocol.parser:
                correct_plain, _ = self._answers(plain, lowest)
                figures[f"{prefix}accuracy without the parser"] = self._figure(correct_plain, self._chance())
            items = items or self._items(parsed, correct, answers)
        if self.protocol.parser:
            counts["sentences with spatial words"] = sum(phrase.is_spatial for phrase in phrases)
            figures["accuracy of the spatial words alone"] = self._figure(self._spatial_alone(phrases), None)
        prefix = f"{views[0]}: " if len(views) > 1 else ""
        result = self.result(features, figures, items, self.images.values(), f"{prefix}accuracy", views)
        # Of this model, and none of the next one that the instance evaluates.
        result.counts |= counts
        result.protocol |= {
            "mask_model": public_name(self.protocol.mask_model),
            "mask_model_sha256": self._mask_weights,
        }
        return result

    def _vectors(
        self, features: FeatureExtractor, regions: Sequence[EvaluationRegion], view: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Vectors (R, D) whose products with those of texts are the cosines, summed over the parts of the view, and which
        candidates all parts show (R,)."""
        if not regions:
            return np.zeros((0, 1), dtype=np.float32), np.zeros(0, dtype=bool)
        parts = [unit(features.regions(regions, part)) for part in view.split(" + ")]
        return sum(parts), np.all([shown(part) for part in parts], axis=0)

    def _text_vectors(
        self, features: FeatureExtractor, phrases: Sequence[ReferringPhrase | None]
    ) -> dict[str, np.ndarray]:
        """Unit vectors of the sentences and of the things that they name, by the text without its prompt."""
        wanted = [expression.text.lower() for expression in self.expressions]
        wanted += [text for phrase in phrases if phrase is not None and phrase.is_spatial for text in phrase.texts()]
        wanted = list(dict.fromkeys(wanted))
        prompts = [self.protocol.prompt.replace("{}", text) for text in wanted]
        return dict(zip(wanted, unit(features.texts(prompts, "region")), strict=True))

    def _spatial(self, expression: ReferringExpression, phrase: ReferringPhrase, probability: Any) -> np.ndarray:
        return spatial_probabilities(
            phrase, self._boxes[expression.image_id], self._sizes[expression.image_id][0], probability
        )

    def _answers(self, probabilities: Sequence[np.ndarray], lowest: float) -> tuple[np.ndarray, list[int | None]]:
        """Whether each sentence is answered rightly, and by which candidate; as good as the best is `lowest` of it."""
        correct, answers = [], []
        for scores, right in zip(probabilities, self.right, strict=True):
            if not scores.any():
                correct.append(False)
                answers.append(None)
                continue
            best = scores >= scores.max() * lowest
            won = best & right if self.protocol.ties == "optimistic" else best & ~right
            answer = int(np.argmax(won if won.any() else best))
            correct.append(bool(right[answer]))
            answers.append(answer)
        return np.array(correct), answers

    def _chance(self) -> float:
        return float(np.mean([right.mean() if len(right) else 0.0 for right in self.right]))

    def _spatial_alone(self, phrases: Sequence[ReferringPhrase]) -> np.ndarray:
        shares = []
        for expression, phrase, right in zip(self.expressions, phrases, self.right, strict=True):
            if not len(right):
                shares.append(0.0)
                continue
            even = np.full(len(right), 1 / len(right))
            scores = self._spatial(expression, phrase, lambda text, even=even: even) if phrase.is_spatial else even
            shares.append(right[np.isclose(scores, scores.max(), rtol=1e-9)].mean())
        return np.array(shares)

    def _figure(self, values: np.ndarray, chance: float | None) -> Figure:
        photos = [expression.image_id for expression in self.expressions]
        return mean_figure(values, photos, self.protocol.bootstrap, self.protocol.seed, chance)

    def _items(
        self, probabilities: Sequence[np.ndarray], correct: np.ndarray, answers: Sequence[int | None]
    ) -> list[dict[str, Any]]:
        items = []
        for place, (expression, answer) in enumerate(zip(self.expressions, answers, strict=True)):
            of_image = self.candidates[expression.image_id]
            item = {
                "key": expression.key,
                "correct": bool(correct[place]),
                "score": 0.0 if answer is None else float(probabilities[place][answer]),
                "image": self.images[expression.image_id].key,
                "text": expression.text,
                "box": self.referred[place],
                "chance": float(self.right[place].mean()) if len(self.right[place]) else 0.0,
            }
            if answer is not None:
                item["predicted_box"] = of_image[answer].box
                if of_image[answer].mask is not None:
                    item["predicted_mask"] = of_image[answer].mask
            items.append(item)
        return items


def _probabilities(
    vectors: np.ndarray, seen: np.ndarray, texts: Mapping[str, np.ndarray], scale: float, text: str
) -> np.ndarray:
    """Softmax of the scores over the candidates that are seen, (N,), float64; 0 of the others, also where there are none."""
    if not seen.any():
        return np.zeros(len(seen))
    logits = np.where(seen, (vectors @ texts[text]).astype(np.float64) * scale, -np.inf)
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def _inside(box: Any, width: int, height: int) -> np.ndarray:
    return np.clip(np.asarray(box, dtype=np.float64), 0, [width, height, width, height])


class RefCoco(ReferringExpressions):
    """RefCOCO (Yu et al. 2016): short sentences that may name places, splits of UNC.

    Its testA shows persons, testB other objects. Presets: see `ReferringExpressions`.

    Example:
        >>> benchmark = RefCoco("data", RefCoco.presets["official-pixclip"])  # doctest: +SKIP
        >>> benchmark.evaluate(FeatureExtractor(encoder)).figures["accuracy"].value  # doctest: +SKIP
        0.557
    """

    name = "refcoco"
    summary = "which object of a photo a sentence means: accuracy at an overlap above 0.5"
    dataset = "RefCOCO"
    published = {
        f"RefCOCO {split}": {"sentences": count}
        for split, count in (("val", 10_834), ("testA", 5_657), ("testB", 5_095))
    }
    presets = referring_presets(ReferringProtocol())
    layout = referring_layout("refcoco", "unc")


class RefCocoPlus(ReferringExpressions):
    """RefCOCO+ (Yu et al. 2016): as RefCOCO, but those who wrote were not to name places; splits of UNC.

    Example:
        >>> RefCocoPlus.presets["default"].split
        'val'
    """

    name = "refcoco+"
    summary = "as refcoco, sentences without places: accuracy at an overlap above 0.5"
    dataset = "RefCOCO+"
    published = {
        f"RefCOCO+ {split}": {"sentences": count}
        for split, count in (("val", 10_758), ("testA", 5_726), ("testB", 4_889))
    }
    presets = referring_presets(ReferringProtocol())
    layout = referring_layout("refcoco+", "unc")


class RefCocoG(ReferringExpressions):
    """RefCOCOg (Mao et al. 2016): longer sentences, splits of UMD, in which no photo is in two.

    Example:
        >>> RefCocoG.presets["default"].changed({"split": "testA"})
        Traceback (most recent call last):
        ...
        ValueError: split is 'testA'; accepted is one of 'val', 'test'.
    """

    name = "refcocog"
    summary = "as refcoco, longer sentences: accuracy at an overlap above 0.5"
    dataset = "RefCOCOg"
    published = {f"RefCOCOg {split}": {"sentences": count} for split, count in (("val", 4_896), ("test", 9_602))}
    presets = referring_presets(RefCocoGProtocol())
    layout = referring_layout("refcocog", "umd")
