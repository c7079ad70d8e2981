# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Region classification on COCO's and LVIS's instances."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..coco_annotations import CocoAnnotations, CocoPhoto, CocoRegion
from ..region_records import check_relative_path
from ..regions import mask_runs
from .benchmark import SourceFile
from .items import EvaluationImage, EvaluationRegion, box_corners, place
from .region_classification import RegionClassification, RegionClassificationProtocol


@dataclass(frozen=True)
class CocoRegionsProtocol(RegionClassificationProtocol):
    """What decides a figure on COCO's or LVIS's instances besides the model.

    Attributes:
        regions: What a region is: "masks", the annotated mask, with the annotated box where a view needs one, and
            instances without a mask that can be used are left out; or "boxes", the annotated box alone, which views that
            take a mask get as a rectangle.
        crowd: Whether annotations of a whole group (`iscrowd`) count as regions: "exclude", counted, or "include".

    Example:
        >>> CocoRegions.presets["official-fgclip"].changed({"crowd": "exclude"}).regions
        'boxes'
    """

    regions: Literal["masks", "boxes"] = "masks"
    crowd: Literal["exclude", "include"] = "exclude"


_DEFAULT = CocoRegionsProtocol()
_FOUR_VIEWS = replace(_DEFAULT, name="four-views", views=("full+mask", "crop+mask", "roi", "mask-pooled"))
# FG-CLIP, section 4 of the paper and fgclip/eval of 360CVGroup/FG-CLIP: annotated boxes, crowds too, RoIAlign, 80 templates
# averaged, accuracy over all boxes.
_OFFICIAL_FGCLIP = replace(
    _DEFAULT, name="official-fgclip", views=("roi",), templates="imagenet-80", regions="boxes", crowd="include"
)
# PixCLIP, eval/COCO of StuHude/PixCLIP: every annotation, crowds too, its padded crop with the mask, one template, mean of
# classes. It does not normalise vectors of images, which changes no rank.
_OFFICIAL_PIXCLIP = replace(
    _DEFAULT, name="official-pixclip", views=("padded-crop+mask",), crowd="include", average="classes"
)


class CocoRegions(RegionClassification):
    """Classification of COCO's instances by the 80 names of the file.

    Source: PixCLIP (arXiv 2511.04601) and FG-CLIP (arXiv 2505.05071). `split` is the name that files and folder have,
    "val2017" or "train2017". Photos lie in `{split}/` below the data folder or, where that is not, in `images/{split}/`.

    Presets: "default" (masks, no crowds, view "auto", one template), "official-pixclip", "official-fgclip", and
    "four-views" ("full+mask", "crop+mask", "roi", "mask-pooled", each a figure of its own).

    Example:
        >>> benchmark = CocoRegions("coco", CocoRegions.presets["official-fgclip"])  # doctest: +SKIP
        >>> benchmark.evaluate(FeatureExtractor(encoder)).figures["top-1"].value  # doctest: +SKIP
        0.523
    """

    name = "coco-regions"
    summary = "class of a COCO region, mask or box, out of 80 names: top-1, top-5, over all and mean per class"
    dataset = "COCO"
    # All annotations; 446 of val2017 are crowds.
    published = {"COCO val2017": {"regions": 36_781}, "COCO train2017": {"regions": 860_001}}
    presets = {protocol.name: protocol for protocol in (_DEFAULT, _OFFICIAL_PIXCLIP, _OFFICIAL_FGCLIP, _FOUR_VIEWS)}
    layout = (
        SourceFile(
            "annotations/instances_{split}.json",
            "COCO's instances",
            "It is in annotations_trainval2017.zip of https://cocodataset.org/#download.",
        ),
        SourceFile(
            "{split}",
            "folder of the photos; images/{split} is accepted too",
            "They are in val2017.zip and train2017.zip of https://cocodataset.org/#download.",
        ),
    )

    def read(self, left_out: Counter[str]) -> tuple[list[str], list[tuple[EvaluationRegion, int]]]:
        annotations = CocoAnnotations(self.path(self.layout[0]), None)
        names = list(dict.fromkeys(annotations.categories.values()))
        targets = {name: place for place, name in enumerate(names)}
        found: list[tuple[EvaluationRegion, int]] = []
        folders: dict[str, Path] = {}
        images = 0
        if annotations.errors:
            left_out["entries left out, malformed"] = len(annotations.errors)
        for photo in annotations.photos.values():
            if images == self.protocol.limit:
                break
            if photo.error is not None:
                left_out["images left out, malformed"] += 1
                continue
            image = self._image(photo, folders)
            before = len(found)
            for number, region in enumerate(photo.regions):
                place = f"number {number}" if region.annotation_id is None else region.annotation_id
                made = self._region(photo, region, image, f"{image.key}#{place}", left_out)
                if made is not None:
                    found.append((made, targets[region.category]))
            images += len(found) > before
        return names, found

    def photo_path(self, photo: CocoPhoto) -> str:
        """Path of a photo in the layout."""
        return f"{self.protocol.split}/{photo.file_name}"

    def _image(self, photo: CocoPhoto, folders: dict[str, Path]) -> EvaluationImage:
        key = self.photo_path(photo)
        check_relative_path(key, f"{photo.where}: key 'file_name'", "the data folder")
        folder, _, name = key.rpartition("/")
        # Asked once a folder, not once a photo.
        if folder not in folders:
            folders[folder] = place(self.data_dir, folder, self.folders)
        return EvaluationImage(key, folders[folder] / name)

    def _region(
        self, photo: CocoPhoto, region: CocoRegion, image: EvaluationImage, key: str, left_out: Counter[str]
    ) -> EvaluationRegion | None:
        """The region that an annotation is by the protocol, or `None`, counted."""
        protocol = self.protocol
        box = box_corners(region.bbox, photo.width, photo.height)
        mask, reason = region.mask, region.left_out
        area: float = region.area
        if region.category is None:
            reason = "malformed"
        elif reason == "crowd" and protocol.crowd == "exclude":
            pass
        elif protocol.regions == "boxes":
            mask, reason = None, None if box is not None else "no box of any area"
            area = 0 if box is None else (box[2] - box[0]) * (box[3] - box[1])
        elif reason == "crowd":
            area, reason = _crowd_area(mask, photo)
        if reason is None and area < protocol.min_area:
            reason = "below min_area"
        if reason is not None:
            left_out[f"regions left out, {reason}"] += 1
            return None
        return EvaluationRegion(key, image, mask, box)


def _crowd_area(mask: Any, photo: CocoPhoto) -> tuple[int, str | None]:
    """Pixels of a crowd's mask, which the reader did not check, and what is wrong with it."""
    try:
        area = int(mask_runs(mask, photo.height, photo.width)[1::2].sum())
    except (ValueError, TypeError):
        return 0, "malformed"
    return area, None if area else "empty"


class LvisRegions(CocoRegions):
    """Classification of LVIS v1's instances by its 1,203 names.

    Names are those of the file's key "name", with spaces for underscores (protocol field `class_names`). Source: FG-CLIP,
    which gives top-1 over all boxes. PixCLIP has no runner for LVIS, hence no such preset. `split` is "val" or "train". The
    photos of LVIS's val come from COCO's train2017 and val2017; the folder of each is in its `coco_url`. Folders lie below
    the data folder, its `images/`, its `coco/` or `coco/images/`; the file may also lie in `annotations/`, `lvis/` or
    `lvis/annotations/`.

    Example:
        >>> LvisRegions.presets["official-fgclip"].split
        'val'
    """

    name = "lvis-regions"
    summary = "class of an LVIS region, mask or box, out of 1,203 names: top-1, top-5, over all and mean per class"
    dataset = "LVIS v1"
    published = {"LVIS v1 val": {"regions": 244_707}, "LVIS v1 train": {"regions": 1_270_141}}
    folders = ("", "images", "annotations", "lvis", "lvis/annotations", "coco", "coco/images")
    presets = {protocol.name: replace(protocol, split="val") for protocol in (_DEFAULT, _OFFICIAL_FGCLIP, _FOUR_VIEWS)}
    layout = (
        SourceFile(
            "lvis_v1_{split}.json",
            "LVIS's instances; annotations/, lvis/ and lvis/annotations/ are accepted too",
            "It is in lvis_v1_val.json.zip and lvis_v1_train.json.zip of https://www.lvisdataset.org/dataset.",
        ),
        # Which folders are needed depends on the photos that the file lists.
        *(
            SourceFile(
                folder,
                f"folder of the photos; images/{folder}, coco/{folder} and coco/images/{folder} are accepted too",
                f"They are in {folder}.zip of https://cocodataset.org/#download.",
                optional=True,
            )
            for folder in ("train2017", "val2017")
        ),
    )

    def photo_path(self, photo: CocoPhoto) -> str:
        return photo.file_name
