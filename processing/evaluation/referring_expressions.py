# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Referring expressions: which of a photo's objects a sentence means. RefCOCO, RefCOCO+ and RefCOCOg."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ..image_reading import read_image
from ..region_records import read_image_header
from ..regions import BOX_TOLERANCE, encode_rle
from .benchmark import Benchmark, SourceFile
from .boxes import box_iou
from .encoders import Encoder
from .expression_parser import ReferringPhrase, parse_expression, spatial_probabilities
from .features import FeatureExtractor
from .items import EvaluationImage, EvaluationRegion
from .protocols import Protocol
from .referring_files import (
    PHOTO_FOLDERS,
    ReferringData,
    ReferringExpression,
    add_masks,
    photo_folder,
    read_detections,
    read_reclip,
    read_unc,
)
from .region_classification import resolve_view
from .results import BenchmarkResult, Figure
from .scores import mean_figure, unit


# What "auto" stands for: PixCLIP's pair of views, and ReCLIP's for models without a mask input.
_AUTO_VIEWS = ("full+mask + blur+mask", "box-crop + blur")
_FIRST_FOLDER = next(iter(PHOTO_FOLDERS))
# Photos that SAM 2 gets at a time.
_PHOTOS = 4


@dataclass(frozen=True)
class ReferringProtocol(Protocol):
    """What decides an accuracy on referring expressions besides the model.

    A candidate's score is the sum over the views of the cosine of its vector and the sentence's, times the model's
    logit scale; the candidate with the highest is the answer. The sentence is put into `prompt` in lower case.

    Attributes:
        split: "val", "testA" (persons) or "testB" (other objects).
        source: Which files are read: "unc", the authors' refs and instances, or "reclip", ReCLIP's JSON lines.
        candidates: "ground-truth": all objects that are annotated in the photo, of "unc" without groups (`iscrowd`);
            or "detector": the boxes of ReCLIP's file of detections.
        iou: The answer is right if its box overlaps that of the object by more than this, strictly.
        masks: What is shown of a candidate: its "annotation" (ground-truth candidates alone), its "box", or the mask
            that SAM 2 makes of the box ("sam2").
        mask_model: SAM 2 checkpoint of "sam2", a Hub id or a folder.
        views: Ways of showing a candidate, names of `region_views.VIEWS`, each a figure of its own; views joined as in
            "full+mask + blur+mask" are one, their cosines are added. "auto" is that pair of a model that takes masks,
            and "box-crop + blur" of any other; the result's protocol says which it was.
        prompt: What the sentence is put into, at "{}".
        expression: "raw", the sentence as it was typed, or "sent", as the authors cleaned it.
        parser: Whether spatial words ("left", "behind the bus") count: the softmax of the scores is multiplied by what
            `expression_parser` makes of them.
        no_boxes: A photo in which the detector found nothing: its sentences are "wrong", or the "whole image" is the
            only candidate. They are counted.
        ties: "pessimistic": a wrong candidate with the same score wins; "optimistic": a right one does.

    Example:
        >>> RefCoco.presets["official-pixclip"].changed({"split": "testA"}).candidates
        'detector'
    """

    split: Literal["val", "testA", "testB"] = "val"
    source: Literal["unc", "reclip"] = "unc"
    candidates: Literal["ground-truth", "detector"] = "ground-truth"
    iou: float = 0.5
    masks: Literal["annotation", "box", "sam2"] = "annotation"
    mask_model: str = "facebook/sam2.1-hiera-large"
    views: tuple[str, ...] = ("auto",)
    prompt: str = "a photo of {}"
    expression: Literal["raw", "sent"] = "raw"
    parser: bool = False
    no_boxes: Literal["wrong", "whole image"] = "wrong"
    ties: Literal["pessimistic", "optimistic"] = "pessimistic"


@dataclass(frozen=True)
class RefCocoGProtocol(ReferringProtocol):
    """`ReferringProtocol` for RefCOCOg.

    Attributes:
        split: "val" or "test", of UMD.

    Example:
        >>> RefCocoGProtocol().changed({"split": "test"}).split
        'test'
    """

    split: Literal["val", "test"] = "val"


def _presets(default: ReferringProtocol) -> dict[str, ReferringProtocol]:
    """The protocols of a benchmark by name; `ReferringExpressions` tells what they are."""
    official = replace(
        default,
        name="official-pixclip",
        source="reclip",
        candidates="detector",
        masks="sam2",
        views=(_AUTO_VIEWS[0],),
        parser=True,
        no_boxes="whole image",
    )
    boxes = replace(default, name="detector-boxes", candidates="detector", masks="box")
    return {protocol.name: protocol for protocol in (default, official, boxes)}


def _layout(folder: str, refs: str) -> tuple[SourceFile, ...]:
    archive = f"It is in {folder}.zip, linked at https://github.com/lichengunc/refer#download."
    reclip = "It is in reclip_data.tar.gz, see https://github.com/allenai/reclip#data-download."
    return (
        SourceFile(f"{folder}/refs({refs}).p", "sentences, of source=unc", archive),
        SourceFile(f"{folder}/instances.json", "objects, of source=unc and of masks=annotation", archive),
        SourceFile(
            f"reclip_data/{folder}_{{split}}.jsonl",
            "sentences and objects, of source=reclip; the split in lower case",
            reclip,
        ),
        SourceFile(f"reclip_data/{folder}_dets_dict.json", "a detector's boxes, of candidates=detector", reclip),
        SourceFile(
            _FIRST_FOLDER,
            f"folder of the photos COCO_train2014_*.jpg; accepted are {', '.join(PHOTO_FOLDERS)}, in train2017 under the names "
            f"of COCO 2017 (the same photos)",
            "They are in train2014.zip or train2017.zip of https://cocodataset.org/#download.",
        ),
    )


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

    Masks of SAM 2 are made once for all models that an instance evaluates, on the GPU where there is one.

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

    def path(self, source: SourceFile) -> Path:
        if source.path == _FIRST_FOLDER:
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
            shown = _inside(box, width, height)
            if (shown[2:] - shown[:2] < BOX_TOLERANCE).any():
                left_out["candidates left out, no area within the image"] += 1
                continue
            if self.protocol.masks != "annotation":
                mask = None
            elif mask is None:
                left_out["candidates shown as boxes, their annotation has no usable mask"] += 1
            regions.append(EvaluationRegion(f"{image.key}#{name}", image, mask, tuple(shown.tolist())))
            boxes.append(box)
        self.candidates[image_id] = regions
        self._boxes[image_id] = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        self._sizes[image_id] = (width, height)

    def _add_sam_masks(self, left_out: Counter[str]) -> None:
        try:
            from ..longgrit.box_masks import BoxMasks
        except ImportError as error:
            raise ImportError(
                f"{self.name}: masks is 'sam2', which needs the extra longgrit: pip install \"pixclip[longgrit]\" ({error}). "
                f"Accepted without it are masks=box and, for ground-truth candidates, masks=annotation."
            ) from error
        import torch

        maker = BoxMasks(self.protocol.mask_model, "cuda" if torch.cuda.is_available() else "cpu")
        waiting = [image_id for image_id, regions in self.candidates.items() if regions]
        for start in range(0, len(waiting), _PHOTOS):
            some = [self.candidates[image_id] for image_id in waiting[start : start + _PHOTOS]]
            # Annotations and detections count in pixels as they are stored.
            pictures = [read_image(regions[0].image.path, regions[0].image.key, upright=False) for regions in some]
            found = maker.segment(pictures, [[region.box for region in regions] for regions in some])
            for image_id, regions, masks in zip(waiting[start:], some, found, strict=False):
                left_out["candidates shown as boxes, SAM 2 found nothing in them"] += sum(
                    not mask.any() for mask in masks
                )
                self.candidates[image_id] = [
                    replace(region, mask=encode_rle(mask)) if mask.any() else region
                    for region, mask in zip(regions, masks, strict=True)
                ]

    def evaluate(self, features: FeatureExtractor) -> BenchmarkResult:
        self.load()
        views = _views(self.protocol.views, features.encoder)
        phrases = [parse_expression(each.text) if self.protocol.parser else None for each in self.expressions]
        texts = self._text_vectors(features, phrases)
        regions = [region for of_image in self.candidates.values() for region in of_image]
        starts = dict(zip(self.candidates, np.cumsum([0, *map(len, self.candidates.values())]).tolist(), strict=False))
        figures: dict[str, Figure] = {}
        items: list[dict[str, Any]] = []
        for view in views:
            vectors = self._vectors(features, regions, view)
            plain, parsed = [], []
            for expression, phrase in zip(self.expressions, phrases, strict=True):
                start = starts[expression.image_id]
                own = vectors[start : start + len(self.candidates[expression.image_id])]
                probabilities = self._probabilities(own, texts, expression.text, features.encoder.logit_scale)
                plain.append(probabilities)
                if phrase is not None and phrase.is_spatial and len(own):
                    factor = self._spatial(
                        expression,
                        phrase,
                        lambda text, own=own: self._probabilities(own, texts, text, features.encoder.logit_scale),
                    )
                    product = probabilities * factor
                    probabilities = product / product.sum() if product.sum() > 0 else probabilities
                parsed.append(probabilities)
            prefix = f"{view}: " if len(views) > 1 else ""
            correct, answers = self._answers(parsed)
            figures[f"{prefix}accuracy"] = self._figure(correct, None if self.protocol.parser else self._chance())
            if self.protocol.parser:
                figures[f"{prefix}accuracy without the parser"] = self._figure(self._answers(plain)[0], self._chance())
            items = items or self._items(parsed, correct, answers)
        if self.protocol.parser:
            self.counts["sentences with spatial words"] = sum(phrase.is_spatial for phrase in phrases)
            figures["accuracy of the spatial words alone"] = self._figure(self._spatial_alone(phrases), None)
        prefix = f"{views[0]}: " if len(views) > 1 else ""
        result = self.result(features, figures, items, self.images.values(), f"{prefix}accuracy")
        result.protocol["views"] = views
        return result

    def _vectors(self, features: FeatureExtractor, regions: Sequence[EvaluationRegion], view: str) -> np.ndarray:
        """Vectors (R, D) whose products with those of texts are the cosines, summed over the parts of the view."""
        if not regions:
            return np.zeros((0, 1), dtype=np.float32)
        vectors = sum(unit(features.regions(regions, part)) for part in view.split(" + "))
        broken = ~np.isfinite(vectors).all(axis=1)
        if broken.any():
            raise ValueError(
                f"{self.name}: {int(broken.sum())} of {len(vectors)} vectors of the view {view!r} hold NaN or infinity, the "
                f"first is that of {regions[int(np.argmax(broken))].key!r}; accepted are finite numbers."
            )
        return vectors

    def _text_vectors(
        self, features: FeatureExtractor, phrases: Sequence[ReferringPhrase | None]
    ) -> dict[str, np.ndarray]:
        """Unit vectors of the sentences and of the things that they name, by the text without its prompt."""
        wanted = [expression.text.lower() for expression in self.expressions]
        wanted += [text for phrase in phrases if phrase is not None and phrase.is_spatial for text in phrase.texts()]
        wanted = list(dict.fromkeys(wanted))
        prompts = [self.protocol.prompt.replace("{}", text) for text in wanted]
        return dict(zip(wanted, unit(features.texts(prompts, "region")), strict=True))

    def _probabilities(
        self, vectors: np.ndarray, texts: Mapping[str, np.ndarray], text: str, scale: float
    ) -> np.ndarray:
        """Softmax of the scores over the candidates, (N,), float64."""
        if not len(vectors):
            return np.zeros(0)
        logits = (vectors @ texts[text.lower()]).astype(np.float64) * scale
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()

    def _spatial(self, expression: ReferringExpression, phrase: ReferringPhrase, probability: Any) -> np.ndarray:
        return spatial_probabilities(
            phrase, self._boxes[expression.image_id], self._sizes[expression.image_id][0], probability
        )

    def _answers(self, probabilities: Sequence[np.ndarray]) -> tuple[np.ndarray, list[int | None]]:
        """Whether each sentence is answered rightly, and by which candidate."""
        correct, answers = [], []
        for scores, right in zip(probabilities, self.right, strict=True):
            if not len(scores):
                correct.append(False)
                answers.append(None)
                continue
            best = scores == scores.max()
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
        return mean_figure(values, self.protocol.bootstrap, self.protocol.seed, chance)

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
            }
            if answer is not None:
                item["predicted_box"] = of_image[answer].box
                if of_image[answer].mask is not None:
                    item["predicted_mask"] = of_image[answer].mask
            items.append(item)
        return items


def _inside(box: Any, width: int, height: int) -> np.ndarray:
    return np.clip(np.asarray(box, dtype=np.float64), 0, [width, height, width, height])


def _views(views: Sequence[str], encoder: Encoder) -> list[str]:
    """The protocol's views, "auto" replaced, checked against the model."""
    masked, unmasked = _AUTO_VIEWS
    automatic = masked if any(view.endswith("+mask") for view in encoder.views) else unmasked
    return [resolve_view(automatic if view == "auto" else view, encoder) for view in views]


class RefCoco(ReferringExpressions):
    """RefCOCO (Yu et al. 2016): short sentences that may name places, splits of UNC.

    Sentences of the published splits: val 10,834, testA 5,657 (persons), testB 5,095. Presets: see
    `ReferringExpressions`.

    Example:
        >>> benchmark = RefCoco("data", RefCoco.presets["official-pixclip"])  # doctest: +SKIP
        >>> benchmark.evaluate(FeatureExtractor(encoder)).figures["accuracy"].value  # doctest: +SKIP
        0.557
    """

    name = "refcoco"
    summary = "which object of a photo a sentence means: accuracy at an overlap above 0.5"
    dataset = "RefCOCO"
    presets = _presets(ReferringProtocol())
    layout = _layout("refcoco", "unc")


class RefCocoPlus(ReferringExpressions):
    """RefCOCO+ (Yu et al. 2016): as RefCOCO, but those who wrote were not to name places; splits of UNC.

    Sentences of the published splits: val 10,758, testA 5,726 (persons), testB 4,889.

    Example:
        >>> RefCocoPlus.presets["default"].split
        'val'
    """

    name = "refcoco+"
    summary = "as refcoco, sentences without places: accuracy at an overlap above 0.5"
    dataset = "RefCOCO+"
    presets = _presets(ReferringProtocol())
    layout = _layout("refcoco+", "unc")


class RefCocoG(ReferringExpressions):
    """RefCOCOg (Mao et al. 2016): longer sentences, splits of UMD, in which no photo is in two.

    Sentences of the published splits: val 4,896, test 9,602.

    Example:
        >>> RefCocoG.presets["default"].changed({"split": "testA"})
        Traceback (most recent call last):
        ...
        ValueError: split is 'testA'; accepted is one of 'val', 'test'.
    """

    name = "refcocog"
    summary = "as refcoco, longer sentences: accuracy at an overlap above 0.5"
    dataset = "RefCOCOg"
    presets = _presets(RefCocoGProtocol())
    layout = _layout("refcocog", "umd")
