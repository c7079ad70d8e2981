# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reader of COCO's instances, panoptic segments and captions."""

import json
import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .bad_samples import BadSampleLog
from .region_description import describe_regions
from .region_nouns import noun_of
from .region_records import RegionSample, is_text, open_stored_image
from .regions import BOX_TOLERANCE, encloses_area, is_polygons, mask_runs, polygon_points, to_mask
from .training_epochs import EpochDataset


class CocoRegionDataset(EpochDataset):
    """Reads photos with COCO instances, panoptic segments, or both, and captions.

    Regions of a photo: its instances; and from the panoptic file its stuff segments or, where the instances file does
    not list the photo, all its segments. What is left out is counted by reason in `rejected`:

    * `"crowd"`: `iscrowd` is set;
    * `"empty"`: no pixel;
    * `"degenerate polygon"`: no part of the polygon encloses an area (fewer than 3 points, or all on one line);
    * `"outside the photo"`: a vertex more than a pixel outside;
    * `"too small"`: less than `min_area_fraction` of the photo (it still counts for the texts of others);
    * `"photo without region"`: a whole photo of which no region is left;
    * `"blank caption"`: a caption without a letter.

    Polygons that are changed, not left out, are counted in `repaired`:

    * `"degenerate part dropped"`: some of its parts enclose no area, the others are the region;
    * `"clipped to the photo"`: a vertex up to a pixel outside, by rounding of the annotation, is set onto the edge.

    Args:
        image_dir (`str` or `os.PathLike`):
            Folder with the image files that the annotation files name.
        instances_file (`str` or `os.PathLike`, *optional*):
            `instances_*.json`.
        panoptic_file (`str` or `os.PathLike`, *optional*):
            `panoptic_*.json`. One of the two files must be given.
        panoptic_dir (`str` or `os.PathLike`, *optional*, defaults to `panoptic_file` without ".json"):
            Folder with the panoptic PNGs.
        captions_file (`str` or `os.PathLike`, *optional*):
            `captions_*.json`.
        min_area_fraction (`float`, defaults to 0.001):
            Least share of the photo that a region must cover.
        compose_texts (`bool`, defaults to `True`):
            Whether `texts` are long texts by `describe_regions`; else both texts are the category with its article.
        image_ids (`Collection[int]`, *optional*):
            Read only these photos of the annotation files; all by default.
        bad_samples (`BadSampleLog`, *optional*):
            Where photos whose image file is missing are counted and written down; they are left out then. For images
            that cannot be read when they are indexed see `SkipBadSamples`.

    Attributes:
        rejected (`collections.Counter`): How many regions, photos and captions were left out, by reason.
        repaired (`collections.Counter`): How many polygons were changed, by repair.

    Raises:
        ValueError: If an annotation file lacks a key, an image, PNG or category is missing, or a segmentation is
            malformed, or, when indexed, an image cannot be read; names the file and item.
        TooManyBadSamplesError: See `BadSampleLog`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "1.jpg")
        >>> square = {"image_id": 1, "category_id": 18, "segmentation": [[2, 2, 22, 2, 22, 22, 2, 22]], "iscrowd": 0}
        >>> speck = {"image_id": 1, "category_id": 18, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]], "iscrowd": 0}
        >>> instances = {
        ...     "images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}],
        ...     "annotations": [square, speck],
        ...     "categories": [{"id": 18, "name": "dog"}],
        ... }
        >>> _ = (folder / "instances.json").write_text(json.dumps(instances))
        >>> dataset = CocoRegionDataset(folder, folder / "instances.json", compose_texts=False)
        >>> dataset[0]["texts"], dataset.rejected
        (['a dog'], Counter({'too small': 1}))
    """

    def __init__(
        self,
        image_dir: str | os.PathLike,
        instances_file: str | os.PathLike | None = None,
        panoptic_file: str | os.PathLike | None = None,
        panoptic_dir: str | os.PathLike | None = None,
        captions_file: str | os.PathLike | None = None,
        min_area_fraction: float = 0.001,
        compose_texts: bool = True,
        image_ids: Collection[int] | None = None,
        bad_samples: BadSampleLog | None = None,
    ):
        if instances_file is None and panoptic_file is None:
            raise ValueError("neither instances_file nor panoptic_file is given; regions come from at least one.")
        if not 0 <= min_area_fraction < 1:
            raise ValueError(
                f"min_area_fraction is {min_area_fraction}; it is a share of the photo, from 0 to below 1."
            )
        super().__init__()
        self.image_dir = Path(image_dir)
        self.compose_texts = compose_texts
        self.rejected: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self._min_area_fraction = min_area_fraction
        self._image_ids = None if image_ids is None else frozenset(image_ids)
        if panoptic_file is not None and panoptic_dir is None:
            panoptic_dir = Path(panoptic_file).with_suffix("")
        self._panoptic_dir = None if panoptic_dir is None else Path(panoptic_dir)

        self._missing: dict[int, ValueError] | None = None if bad_samples is None else {}

        photos: dict[int, dict[str, Any]] = {}
        if instances_file is not None:
            self._read_instances(Path(instances_file), photos)
        if panoptic_file is not None:
            self._read_panoptic(Path(panoptic_file), photos)
        if captions_file is not None:
            self._read_captions(Path(captions_file), photos)
        if bad_samples is not None:
            bad = [(photos[image_id]["where"], error, str(image_id)) for image_id, error in self._missing.items()]
            bad_samples.add_checked(str(image_dir), len(photos), bad)
            for image_id in self._missing:
                del photos[image_id]
        self._photos = []
        for photo in photos.values():
            if any(region["accepted"] for region in photo["regions"]):
                self._photos.append(photo)
            else:
                self.rejected["photo without region"] += 1

    def _read_instances(self, path: Path, photos: dict[int, dict[str, Any]]) -> None:
        content = _read_coco(path, ("images", "annotations", "categories"))
        names = _category_names(content, path)
        self._add_photos(content, path, photos)
        for number, annotation in enumerate(content["annotations"]):
            where = f"{path}: annotations[{number}]"
            image_id, category, mask = _require(annotation, ("image_id", "category_id", "segmentation"), where)
            if not self._wanted(image_id):
                continue
            photo = _listed(photos, image_id, where)
            name = _look_up(names, category, where)
            if annotation.get("iscrowd"):
                self.rejected["crowd"] += 1
                photo["grouped"].add(name)
                continue
            if isinstance(mask, list):
                mask = self._repair(mask, photo, f"{where}: segmentation")
            elif not isinstance(mask, dict):
                raise ValueError(
                    f"{where}: key 'segmentation' is a {type(mask).__name__}; accepted are polygons [[x1, y1, ...]] "
                    f"and RLE {{'size': [height, width], 'counts': ...}}."
                )
            if mask is not None:
                runs = mask_runs(mask, photo["height"], photo["width"], f"{where}: key 'segmentation'")
                self._add_region(photo, name, mask, runs[1::2].sum())

    def _repair(self, polygons: list[Any], photo: dict[str, Any], where: str) -> list[Any] | None:
        """Returns the polygons as a mask that every later step takes, or `None` where there is none; counts either."""
        if not polygons:
            self.rejected["empty"] += 1
            return None
        kept, clipped = [], False
        for number, polygon in enumerate(polygons):
            if polygon != [] and not is_polygons([polygon]):
                raise ValueError(f"{where}[{number}] is {polygon!r:.200}; accepted is [x1, y1, x2, y2, ...].")
            points = polygon_points(polygon, f"{where}[{number}]")
            inside = np.clip(points, 0, [photo["width"], photo["height"]])
            distance = np.abs(points - inside).max(initial=0)
            if distance > 1:
                self.rejected["outside the photo"] += 1
                return None
            rounding = distance <= BOX_TOLERANCE
            if encloses_area(points if rounding else inside):
                kept.append(polygon if rounding else inside.ravel().tolist())
                clipped = clipped or not rounding
        if not kept:
            self.rejected["degenerate polygon"] += 1
            return None
        if len(kept) < len(polygons):
            self.repaired["degenerate part dropped"] += 1
        if clipped:
            self.repaired["clipped to the photo"] += 1
        return kept

    def _read_panoptic(self, path: Path, photos: dict[int, dict[str, Any]]) -> None:
        content = _read_coco(path, ("images", "annotations", "categories"))
        names = _category_names(content, path)
        things = {category["id"] for category in content["categories"] if category.get("isthing", 1)}
        with_instances = set(photos)
        self._add_photos(content, path, photos)
        for number, annotation in enumerate(content["annotations"]):
            where = f"{path}: annotations[{number}]"
            image_id, file_name, segments = _require(annotation, ("image_id", "file_name", "segments_info"), where)
            if not self._wanted(image_id):
                continue
            photo = _listed(photos, image_id, where)
            file = self._panoptic_dir / file_name
            if not file.is_file():
                raise ValueError(f"{where}: key 'file_name' names {file}, which is not a file; check panoptic_dir.")
            photo["panoptic"] = file
            for segment_number, segment in enumerate(segments):
                segment_where = f"{where}: segments_info[{segment_number}]"
                segment_id, category, area = _require(segment, ("id", "category_id", "area"), segment_where)
                name = _look_up(names, category, segment_where)
                if category in things and image_id in with_instances:
                    continue
                if segment.get("iscrowd"):
                    self.rejected["crowd"] += 1
                    photo["grouped"].add(name)
                else:
                    self._add_region(photo, name, segment_id, area)

    def _wanted(self, image_id: int) -> bool:
        return self._image_ids is None or image_id in self._image_ids

    def _add_photos(self, content: dict[str, Any], path: Path, photos: dict[int, dict[str, Any]]) -> None:
        for number, entry in enumerate(content["images"]):
            where = f"{path}: images[{number}]"
            image_id, file_name, width, height = _require(entry, ("id", "file_name", "width", "height"), where)
            if image_id in photos or not self._wanted(image_id):
                continue
            if not (self.image_dir / file_name).is_file():
                error = ValueError(
                    f"{where}: key 'file_name' names {self.image_dir / file_name}, which is not a file; check image_dir."
                )
                if self._missing is None:
                    raise error
                self._missing[image_id] = error
            photos[image_id] = {
                "file": self.image_dir / file_name,
                "where": where,
                "image_id": str(image_id),
                "width": width,
                "height": height,
                "captions": [],
                "regions": [],
                "grouped": set(),
                "panoptic": None,
            }

    def _add_region(self, photo: dict[str, Any], category: str, mask: Any, area: float) -> None:
        if area == 0:
            self.rejected["empty"] += 1
            return
        accepted = area >= self._min_area_fraction * photo["width"] * photo["height"]
        if not accepted:
            self.rejected["too small"] += 1
        photo["regions"].append({"category": category, "mask": mask, "accepted": accepted})

    def _read_captions(self, path: Path, photos: dict[int, dict[str, Any]]) -> None:
        content = _read_coco(path, ("annotations",))
        for number, annotation in enumerate(content["annotations"]):
            image_id, caption = _require(annotation, ("image_id", "caption"), f"{path}: annotations[{number}]")
            if image_id in photos:
                if is_text(caption):
                    photos[image_id]["captions"].append(" ".join(caption.split()))
                else:
                    self.rejected["blank caption"] += 1

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> RegionSample:
        photo = self._photos[index]
        image = _open_image(photo, "file")
        panoptic = None if photo["panoptic"] is None else _open_panoptic(photo)
        regions = photo["regions"] if self.compose_texts else [r for r in photo["regions"] if r["accepted"]]
        masks = [
            panoptic == region["mask"] if isinstance(region["mask"], int) else region["mask"] for region in regions
        ]
        for region, mask in zip(regions, masks):
            if isinstance(mask, np.ndarray) and not mask.any():
                raise ValueError(
                    f"{photo['panoptic']} holds no pixel of segment {region['mask']}, which its JSON lists."
                )
        categories = [region["category"] for region in regions]
        if self.compose_texts:
            shape = (photo["height"], photo["width"])
            decoded = [
                to_mask(mask, *shape, f"mask of region {i} of {photo['file']}") >= 0.5 for i, mask in enumerate(masks)
            ]
            descriptions = describe_regions(image, decoded, categories, photo["grouped"])
            texts = [description.text for description in descriptions]
            object_texts = [description.object_text for description in descriptions]
        else:
            texts = object_texts = [noun_of(category).phrase() for category in categories]
        kept = [i for i, region in enumerate(regions) if region["accepted"]]
        return {
            "image": image,
            "image_id": photo["image_id"],
            "captions": list(photo["captions"]),
            "masks": [masks[i] for i in kept],
            "texts": [texts[i] for i in kept],
            "object_texts": [object_texts[i] for i in kept],
            "categories": [categories[i] for i in kept],
            "epoch": self.epoch,
        }


def _read_coco(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        raise ValueError(f"{path} is no COCO annotation file: it needs an object with the keys {list(keys)}.")
    return content


def _category_names(content: dict[str, Any], path: Path) -> dict[int, str]:
    pairs = [_require(c, ("id", "name"), f"{path}: categories[{i}]") for i, c in enumerate(content["categories"])]
    return dict(pairs)


def _listed(photos: dict[int, dict[str, Any]], image_id: int, where: str) -> dict[str, Any]:
    if image_id not in photos:
        raise ValueError(f"{where}: key 'image_id' is {image_id}, which 'images' does not list.")
    return photos[image_id]


def _look_up(names: dict[int, str], category: int, where: str) -> str:
    if category not in names:
        raise ValueError(f"{where}: key 'category_id' is {category}, which 'categories' does not list.")
    return names[category]


def _require(item: dict[str, Any], keys: tuple[str, ...], where: str) -> list[Any]:
    for key in keys:
        if key not in item:
            raise ValueError(f"{where}: key {key!r} is missing; it has {sorted(item)}.")
    return [item[key] for key in keys]


def _open_image(photo: dict[str, Any], key: str) -> Image.Image:
    return open_stored_image(photo[key], f"{photo['where']}: {photo[key]}", (photo["width"], photo["height"]))


def _open_panoptic(photo: dict[str, Any]) -> np.ndarray:
    image = _open_image(photo, "panoptic")
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.int64), -1, 0)
    return red + 256 * green + 65536 * blue
