# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What COCO's annotation files say of each photo: instances, panoptic segments and captions."""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from .region_records import check_relative_path, is_text, open_stored_image
from .regions import BOX_TOLERANCE, encloses_area, is_polygons, mask_runs, polygon_points


# What tools write of an instance that has no more than a box.
_NO_SEGMENTATION = (None, [], [[]])


@dataclass(slots=True)
class CocoRegion:
    """An instance, or a segment of a panoptic map.

    Attributes:
        category: Name of its category, `None` where that is what is wrong with it.
        mask: Polygons or RLE, the id of a panoptic segment, or `None` where there is none to use.
        area: Pixels of the mask; of a panoptic segment as its file says.
        left_out: Why it is no region: `"crowd"`, `"empty"`, `"degenerate polygon"`, `"outside the photo"` or `"malformed"`;
            `None` if it is one.
        error: What is malformed.
        box: The key "bbox" of an instance of which "segmentation" is missing, null, [] or [[]]; [x, y, width, height],
            if it is well formed.
        annotation_id: The key "id" of an instance, as its file has it.
        bbox: The key "bbox" of an instance, as its file has it: [x, y, width, height].
    """

    category: str | None
    mask: Any = None
    area: float = 0
    left_out: str | None = None
    error: ValueError | None = None
    box: Any = None
    annotation_id: Any = None
    bbox: Any = None


@dataclass(slots=True)
class CocoPhoto:
    """A photo of the annotation files.

    Attributes:
        where: File and entry that list it.
        image_id: Its identifier, as text.
        file_name: Name of its file; where its entry has none, as in LVIS, the last folder and the name in its `coco_url`.
        width, height: Pixels.
        licence: Name of its licence, or the address of that.
        captions: Its captions.
        regions: Its instances, then its segments, those that are left out too.
        grouped: Categories of its crowds.
        uncounted: Categories of which not every instance is annotated (LVIS's `not_exhaustive_category_ids`).
        panoptic: File of its panoptic map.
        error: What is malformed of its entry; nothing else is known of it then.
    """

    where: str
    image_id: str
    file_name: str = ""
    width: int = 0
    height: int = 0
    licence: str | None = None
    captions: list[str] = field(default_factory=list)
    regions: list[CocoRegion] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)
    uncounted: tuple[str, ...] = ()
    panoptic: Path | None = None
    error: ValueError | None = None


class CocoAnnotations:
    """Reads COCO's annotation files, or LVIS's, but no image.

    Regions of a photo are its instances; and from the panoptic file its stuff segments or, where the instances file does
    not list the photo, all its segments.

    Args:
        instances_file: `instances_*.json`.
        panoptic_file: `panoptic_*.json`.
        panoptic_dir: Folder of the panoptic PNGs, by default `panoptic_file` without ".json".
        captions_file: `captions_*.json`; given alone, it lists the photos.
        image_ids: Read only these photos; all by default.

    Attributes:
        photos: The photos by their id, in the order of the files.
        categories: Names of the instances' categories by their id, in the order of the file.
        errors: What is wrong with entries that belong to no photo.
        repaired: How many polygons were changed, by repair.
        blank_captions: How many captions hold no letter.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is no such annotation file, or its list of categories is malformed.
    """

    def __init__(
        self,
        instances_file: Path | None,
        panoptic_file: Path | None,
        panoptic_dir: Path | None = None,
        captions_file: Path | None = None,
        image_ids: Collection[int] | None = None,
    ):
        self.photos: dict[int, CocoPhoto] = {}
        self.categories: dict[int, str] = {}
        self.errors: list[ValueError] = []
        self.repaired: Counter[str] = Counter()
        self.blank_captions = 0
        self._image_ids = None if image_ids is None else frozenset(image_ids)
        if instances_file is not None:
            self._read_instances(instances_file)
        if panoptic_file is not None:
            self._read_panoptic(panoptic_file, panoptic_file.with_suffix("") if panoptic_dir is None else panoptic_dir)
        if captions_file is not None:
            self._read_captions(captions_file, list_photos=instances_file is None and panoptic_file is None)

    def _read_instances(self, path: Path) -> None:
        content = _read_coco(path, ("images", "annotations", "categories"))
        names = self.categories = _category_names(content, path)
        self._add_photos(content, path, names)
        for where, photo, annotation in self._entries(content, path):
            category = None
            try:
                (category_id,) = _require(annotation, ("category_id",), where)
                category = _look_up(names, category_id, where)
                region = self._instance(photo, category, annotation, where)
            except ValueError as error:
                region = CocoRegion(category, left_out="malformed", error=error)
            if category is not None and annotation.get("segmentation") in _NO_SEGMENTATION:
                region.box = annotation.get("bbox")
            region.annotation_id, region.bbox = annotation.get("id"), annotation.get("bbox")
            photo.regions.append(region)

    def _instance(self, photo: CocoPhoto, category: str, annotation: Mapping[str, Any], where: str) -> CocoRegion:
        if annotation.get("iscrowd"):
            photo.grouped.add(category)
            return CocoRegion(category, annotation.get("segmentation"), left_out="crowd")
        (mask,) = _require(annotation, ("segmentation",), where)
        left_out = None
        if isinstance(mask, list):
            mask, left_out = self._repair(mask, photo, f"{where}: segmentation")
        elif not isinstance(mask, dict):
            raise ValueError(
                f"{where}: key 'segmentation' is a {type(mask).__name__}; accepted are polygons [[x1, y1, ...]] "
                f"and RLE {{'size': [height, width], 'counts': ...}}."
            )
        if left_out is not None:
            return CocoRegion(category, left_out=left_out)
        area = int(mask_runs(mask, photo.height, photo.width, f"{where}: key 'segmentation'")[1::2].sum())
        return CocoRegion(category, mask, area, None if area else "empty")

    def _repair(self, polygons: list[Any], photo: CocoPhoto, where: str) -> tuple[list[Any] | None, str | None]:
        """Returns the polygons as a mask that every later step takes, or why there is none; counts repairs."""
        if not polygons:
            return None, "empty"
        kept, clipped = [], False
        for number, polygon in enumerate(polygons):
            if polygon != [] and not is_polygons([polygon]):
                raise ValueError(f"{where}[{number}] is {polygon!r:.200}; accepted is [x1, y1, x2, y2, ...].")
            points = polygon_points(polygon, f"{where}[{number}]")
            inside = np.clip(points, 0, [photo.width, photo.height])
            distance = np.abs(points - inside).max(initial=0)
            if distance > 1:
                return None, "outside the photo"
            rounding = distance <= BOX_TOLERANCE
            if encloses_area(points if rounding else inside):
                kept.append(polygon if rounding else inside.ravel().tolist())
                clipped = clipped or not rounding
        if not kept:
            return None, "degenerate polygon"
        if len(kept) < len(polygons):
            self.repaired["degenerate part dropped"] += 1
        if clipped:
            self.repaired["clipped to the photo"] += 1
        return kept, None

    def _read_panoptic(self, path: Path, folder: Path) -> None:
        content = _read_coco(path, ("images", "annotations", "categories"))
        names = _category_names(content, path)
        things = {category["id"] for category in content["categories"] if category.get("isthing", 1)}
        with_instances = set(self.photos)
        self._add_photos(content, path, names)
        for where, photo, annotation in self._entries(content, path):
            try:
                file_name, segments = _require(annotation, ("file_name", "segments_info"), where)
                _check(segments, list, f"{where}: key 'segments_info'", "a list of segments")
            except ValueError as error:
                photo.regions.append(CocoRegion(None, left_out="malformed", error=error))
                continue
            try:
                photo.panoptic, missing = _panoptic_file(file_name, folder, where), None
            except ValueError as error:
                missing = error
            for number, segment in enumerate(segments):
                category = None
                try:
                    keys = ("id", "category_id", "area")
                    segment_id, category_id, area = _require(segment, keys, f"{where}: segments_info[{number}]")
                    category = _look_up(names, category_id, f"{where}: segments_info[{number}]")
                    if category_id in things and annotation["image_id"] in with_instances:
                        continue
                    _check(segment_id, int, f"{where}: segments_info[{number}]: key 'id'", "an integer")
                    _check(area, Real, f"{where}: segments_info[{number}]: key 'area'", "a number of pixels")
                    if missing is not None:
                        raise missing
                    left_out = "crowd" if segment.get("iscrowd") else None if area else "empty"
                    if left_out == "crowd":
                        photo.grouped.add(category)
                    photo.regions.append(CocoRegion(category, segment_id, area, left_out))
                except ValueError as error:
                    photo.regions.append(CocoRegion(category, left_out="malformed", error=error))

    def _read_captions(self, path: Path, list_photos: bool) -> None:
        content = _read_coco(path, ("images", "annotations") if list_photos else ("annotations",))
        if list_photos:
            self._add_photos(content, path, {})
        for number, annotation in enumerate(content["annotations"]):
            where = f"{path}: annotations[{number}]"
            try:
                image_id, caption = _require(annotation, ("image_id", "caption"), where)
                _check(caption, str, f"{where}: key 'caption'", "a string")
                photo = self.photos.get(_identifier(image_id, f"{where}: key 'image_id'"))
            except ValueError as error:
                self.errors.append(error)
                continue
            if photo is not None:
                if is_text(caption):
                    photo.captions.append(" ".join(caption.split()))
                else:
                    self.blank_captions += 1

    def _add_photos(self, content: dict[str, Any], path: Path, names: dict[int, str]) -> None:
        licences = {}
        for entry in content.get("licenses") or []:
            if isinstance(entry, Mapping) and isinstance(entry.get("id"), int):
                licences[entry["id"]] = entry.get("name") or entry.get("url")
        for number, entry in enumerate(content["images"]):
            where = f"{path}: images[{number}]"
            try:
                (image_id,) = _require(entry, ("id",), where)
                _identifier(image_id, f"{where}: key 'id'")
            except ValueError as error:
                self.errors.append(error)
                continue
            if image_id in self.photos or not self._wanted(image_id):
                continue
            licence = entry.get("license")
            licence = licences.get(licence) if isinstance(licence, int) else None
            photo = self.photos[image_id] = CocoPhoto(where, str(image_id), licence=licence)
            try:
                photo.file_name = _file_name(entry, where)
                photo.width, photo.height = _require(entry, ("width", "height"), where)
                for key in ("width", "height"):
                    _check(entry[key], int, f"{where}: key {key!r}", "a number of pixels")
                if (partly := entry.get("not_exhaustive_category_ids")) is not None:
                    _check(partly, list, f"{where}: key 'not_exhaustive_category_ids'", "a list of ids of categories")
                    known = {names[category] for category in partly if isinstance(category, int) and category in names}
                    photo.uncounted = tuple(sorted(known))
            except ValueError as error:
                photo.error = error

    def _entries(self, content: dict[str, Any], path: Path):
        """Yields the annotations of wanted photos with their place and photo; notes those of no photo.

        Those of a photo that is malformed say nothing more of it.
        """
        for number, annotation in enumerate(content["annotations"]):
            where = f"{path}: annotations[{number}]"
            try:
                (image_id,) = _require(annotation, ("image_id",), where)
                if not self._wanted(_identifier(image_id, f"{where}: key 'image_id'")):
                    continue
                if image_id not in self.photos:
                    raise ValueError(f"{where}: key 'image_id' is {image_id}, which 'images' does not list.")
            except ValueError as error:
                self.errors.append(error)
                continue
            if self.photos[image_id].error is None:
                yield where, self.photos[image_id], annotation

    def _wanted(self, image_id: int) -> bool:
        return self._image_ids is None or image_id in self._image_ids


def read_panoptic_ids(photo: CocoPhoto) -> np.ndarray:
    """Reads a photo's panoptic map: the id of the segment of each pixel, int64 of shape (height, width).

    Raises:
        ValueError: If the file cannot be read or has another size than the photo; names it.
    """
    image = open_stored_image(photo.panoptic, f"{photo.where}: {photo.panoptic}", (photo.width, photo.height))
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.int64), -1, 0)
    return red + 256 * green + 65536 * blue


def _read_coco(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        # Text that is no UTF-8 is a ValueError; brackets nested without end are not.
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise ValueError(
            f"{path} is no COCO annotation file: it needs an object with the keys {list(keys)}, all lists."
        )
    return content


def _category_names(content: dict[str, Any], path: Path) -> dict[int, str]:
    names = {}
    for number, category in enumerate(content["categories"]):
        where = f"{path}: categories[{number}]"
        category_id, name = _require(category, ("id", "name"), where)
        _check(name, str, f"{where}: key 'name'", "a string")
        names[_identifier(category_id, f"{where}: key 'id'")] = name
    return names


def _look_up(names: dict[int, str], category: Any, where: str) -> str:
    if _identifier(category, f"{where}: key 'category_id'") not in names:
        raise ValueError(f"{where}: key 'category_id' is {category}, which 'categories' does not list.")
    return names[category]


def _file_name(entry: Mapping[str, Any], where: str) -> str:
    if entry.get("file_name") is None and isinstance(entry.get("coco_url"), str):
        return "/".join(urlsplit(entry["coco_url"]).path.strip("/").split("/")[-2:])
    (name,) = _require(entry, ("file_name",), where)
    _check(name, str, f"{where}: key 'file_name'", "a string")
    return name


def _panoptic_file(name: Any, folder: Path, where: str) -> Path:
    _check(name, str, f"{where}: key 'file_name'", "a string")
    check_relative_path(name, f"{where}: key 'file_name'", "panoptic_dir")
    if not (folder / name).is_file():
        raise ValueError(f"{where}: key 'file_name' names {folder / name}, which is not a file; check panoptic_dir.")
    return folder / name


def _require(item: Any, keys: tuple[str, ...], where: str) -> list[Any]:
    if not isinstance(item, Mapping):
        raise ValueError(f"{where} is {item!r:.200}; accepted is an object with the keys {list(keys)}.")
    for key in keys:
        if key not in item:
            raise ValueError(f"{where}: key {key!r} is missing; it has {sorted(item)}.")
    return [item[key] for key in keys]


def _identifier(value: Any, name: str) -> Any:
    if not isinstance(value, (int, str)):
        raise ValueError(f"{name} is {value!r:.200}; accepted is an integer.")
    return value


def _check(value: Any, kind: type, name: str, accepted: str) -> None:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r:.200}; accepted is {accepted}.")
