# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Readers of (image, masks, region texts): JSON lines of this project, and COCO's instances, panoptic and captions."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NotRequired, TypedDict

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .image_processing_pixclip import read_image
from .region_description import describe_regions
from .region_nouns import noun_of
from .regions import BOX_TOLERANCE, encloses_area, is_polygons, mask_runs, polygon_points, to_mask


class RegionSample(TypedDict):
    """One image with its regions, as every reader yields it and `PixCLIPDataCollator` takes it.

    Attributes:
        image: `PIL.Image.Image` of mode RGB.
        image_id: Identifier of the image within its data set.
        captions: Captions of the whole image, maybe none.
        masks: N region masks, in any form of `processing_pixclip.regions.to_mask`.
        texts: N long region texts.
        object_texts: N short texts that name the object only, `None` where there is none.
        categories: N category names, `None` where there is none.
        evaluation: `True` where the collator must take the sample as it is, see `EvaluationRegions`.
    """

    image: Image.Image
    image_id: str
    captions: list[str]
    masks: list[Any]
    texts: list[str]
    object_texts: list[str | None]
    categories: list[str | None]
    evaluation: NotRequired[bool]


class _RegionDataset(Dataset):
    # accelerate cuts predictions to this length modulo the batch; they have one row a region, not a sample, so that no
    # cut is right.
    total_dataset_length = 0


_RECORD_KEYS = {
    "image": (str, "a path below image_root, relative to it", True),
    "image_id": (str, "a string", True),
    "width": (int, "a positive integer, in pixels", True),
    "height": (int, "a positive integer, in pixels", True),
    "captions": (list, "a list of non-empty strings, maybe empty", False),
    "regions": (list, "a list of regions, maybe empty", True),
}
_REGION_KEYS = {
    "mask": ((dict, list), "COCO RLE {'size': [height, width], 'counts': ...} or polygons [[x1, y1, ...]]", True),
    "category": ((str, type(None)), "a string or null", False),
    "object_text": ((str, type(None)), "a non-empty string or null", False),
    "text": (str, "a non-empty string", True),
    "text_source": (str, "a string such as 'written' or 'composed'", False),
}


class RegionJsonlDataset(_RegionDataset):
    """Reads JSON lines of images with region masks and texts.

    One image a line, UTF-8, blank lines allowed:

        {"image": "images/1.jpg",            path below image_root, relative to it, "/" between folders
         "image_id": "1",
         "width": 448, "height": 336,        pixels of the image file
         "captions": ["Two dogs play."],     optional; captions of the whole image
         "regions": [
            {"mask": {"size": [336, 448], "counts": "..."},   COCO RLE at the image's size, or polygons in its pixels
             "category": "dog",              optional, may be null
             "object_text": "a brown dog",   optional, may be null; names the object only
             "text": "A brown dog ...",      the long region text
             "text_source": "written"}]}     optional; who wrote the text, for the record only

    Every record is checked when the data set is made, its masks too, except for the pixels of the images: these open
    when they are indexed, by the rules of `PixCLIPImageProcessor` but as stored, without regard to EXIF orientation.
    Other keys are an error, so that a misspelt one shows. Texts and captions lose the whitespace around them.

    Args:
        path (`str` or `os.PathLike`):
            The JSON lines file.
        image_root (`str` or `os.PathLike`, *optional*, defaults to the folder of `path`):
            Folder that the images' paths are relative to.

    Raises:
        ValueError: If a line is not such a record or its image file is missing, or, when indexed, the image cannot
            be read; names file, line, key and what is accepted.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (3, 2)).save(folder / "1.png")
        >>> region = {"mask": {"size": [2, 3], "counts": [2, 2, 2]}, "text": "The middle column of a black image."}
        >>> record = {"image": "1.png", "image_id": "1", "width": 3, "height": 2, "regions": [region]}
        >>> write_region_jsonl([record], folder / "data.jsonl")
        >>> RegionJsonlDataset(folder / "data.jsonl")[0]["texts"]
        ['The middle column of a black image.']
    """

    def __init__(self, path: str | os.PathLike, image_root: str | os.PathLike | None = None):
        self.path = Path(path)
        self.image_root = self.path.parent if image_root is None else Path(image_root)
        self.records: list[dict[str, Any]] = []
        self._line_numbers: list[int] = []
        with open(self.path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    self.records.append(self._read_line(line, f"{self.path}, line {number}"))
                    self._line_numbers.append(number)
        if not self.records:
            raise ValueError(f"{self.path} holds no record; a record is one JSON object a line.")

    def _read_line(self, line: str, where: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error}); a record is one JSON object a line.") from error
        _check_record(record, where)
        file = self.image_root / record["image"]
        if not file.is_file():
            raise ValueError(f"{where}: key 'image' names {file}, which is not a file; check image_root.")
        record["captions"] = [caption.strip() for caption in record.get("captions", [])]
        for region in record["regions"]:
            region.update({key: region[key].strip() for key in ("text", "object_text") if region.get(key)})
        return record

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> RegionSample:
        record = self.records[index]
        where = f"{self.path}, line {self._line_numbers[index]}"
        image = _open_image(self.image_root / record["image"], record["width"], record["height"], where)
        regions = record["regions"]
        return {
            "image": image,
            "image_id": record["image_id"],
            "captions": list(record["captions"]),
            "masks": [region["mask"] for region in regions],
            "texts": [region["text"] for region in regions],
            "object_texts": [region.get("object_text") for region in regions],
            "categories": [region.get("category") for region in regions],
        }


class CocoRegionDataset(_RegionDataset):
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

    Attributes:
        rejected (`collections.Counter`): How many regions, photos and captions were left out, by reason.
        repaired (`collections.Counter`): How many polygons were changed, by repair.

    Raises:
        ValueError: If an annotation file lacks a key, an image, PNG or category is missing, or a segmentation is
            malformed, or, when indexed, an image cannot be read; names the file and item.

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
    ):
        if instances_file is None and panoptic_file is None:
            raise ValueError("neither instances_file nor panoptic_file is given; regions come from at least one.")
        if not 0 <= min_area_fraction < 1:
            raise ValueError(
                f"min_area_fraction is {min_area_fraction}; it is a share of the photo, from 0 to below 1."
            )
        self.image_dir = Path(image_dir)
        self.compose_texts = compose_texts
        self.rejected: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        self._min_area_fraction = min_area_fraction
        self._image_ids = None if image_ids is None else frozenset(image_ids)
        if panoptic_file is not None and panoptic_dir is None:
            panoptic_dir = Path(panoptic_file).with_suffix("")
        self._panoptic_dir = None if panoptic_dir is None else Path(panoptic_dir)

        photos: dict[int, dict[str, Any]] = {}
        if instances_file is not None:
            self._read_instances(Path(instances_file), photos)
        if panoptic_file is not None:
            self._read_panoptic(Path(panoptic_file), photos)
        if captions_file is not None:
            self._read_captions(Path(captions_file), photos)
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
                raise ValueError(
                    f"{where}: key 'file_name' names {self.image_dir / file_name}, which is not a file; check image_dir."
                )
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
                if caption.strip():
                    photos[image_id]["captions"].append(" ".join(caption.split()))
                else:
                    self.rejected["blank caption"] += 1

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> RegionSample:
        photo = self._photos[index]
        image = _open_image(photo["file"], photo["width"], photo["height"], photo["where"])
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
        }


class EvaluationRegions(_RegionDataset):
    """Marks the samples of a reader as held out: `PixCLIPDataCollator` then takes every region, unchanged.

    The Trainer has one collator for training and evaluation; what that draws at random (whole images, a subset of the
    regions, augmentation) would make an evaluation noisy. Around a wrapper of a reader, such as torch's `Subset`, it
    also keeps accelerate from cutting the last batch's rows to the number of its samples.

    Args:
        samples (`Sequence[RegionSample]`):
            A region reader, or a list of its samples.

    Example:
        >>> dataset = RegionJsonlDataset("examples/data/coco_regions/heldout.jsonl")
        >>> EvaluationRegions(dataset)[0]["evaluation"]
        True
    """

    def __init__(self, samples: Sequence[RegionSample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> RegionSample:
        return {**self.samples[index], "evaluation": True}


def write_region_jsonl(records: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes records for `RegionJsonlDataset`: all of them, or, if one is wrong or writing fails, none.

    An existing file is replaced only once the new one is complete.

    Args:
        records: Records as in the docstring of `RegionJsonlDataset`.
        path: File to write. Its folder must exist.

    Raises:
        ValueError: If a record is not valid; names its position, the key and what is accepted. Image files are not
            looked for.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "data.jsonl"
        >>> write_region_jsonl([{"image": "1.png", "image_id": "1", "width": 3, "height": 2, "regions": []}], path)
        >>> path.read_text()
        '{"image": "1.png", "image_id": "1", "width": 3, "height": 2, "regions": []}\\n'
    """
    path = Path(path)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        temporary = Path(file.name)
        try:
            for number, record in enumerate(records):
                _check_record(record, f"records[{number}]")
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            temporary.unlink()
            raise
    # A temporary file is private to its owner; the data set is meant to be read like any other file.
    temporary.chmod(0o644)
    temporary.replace(path)


def _check_record(record: Any, where: str) -> None:
    _check_keys(record, _RECORD_KEYS, where)
    for key in ("width", "height"):
        if record[key] < 1:
            raise ValueError(f"{where}: key {key!r} is {record[key]}; accepted is {_RECORD_KEYS[key][1]}.")
    # Both separators and drive letters, so that a file means the same on every system.
    image = PureWindowsPath(record["image"])
    if image.anchor or ".." in image.parts:
        raise ValueError(f"{where}: key 'image' is {record['image']!r}; accepted is {_RECORD_KEYS['image'][1]}.")
    for number, caption in enumerate(record.get("captions", [])):
        if not isinstance(caption, str) or not _is_text(caption):
            raise ValueError(f"{where}: captions[{number}] is {caption!r}; a caption is a non-empty string.")
    for number, region in enumerate(record["regions"]):
        region_where = f"{where}: regions[{number}]"
        _check_keys(region, _REGION_KEYS, region_where)
        for key in ("text", "object_text"):
            if region.get(key) is not None and not _is_text(region[key]):
                raise ValueError(
                    f"{region_where}: key {key!r} is empty or not Unicode ({region[key]!r}); accepted is "
                    f"{_REGION_KEYS[key][1]}."
                )
        mask, size = region["mask"], [record["height"], record["width"]]
        if not (is_polygons(mask) or (isinstance(mask, dict) and {"size", "counts"} <= mask.keys())):
            raise ValueError(f"{region_where}: key 'mask' is not a mask; accepted is {_REGION_KEYS['mask'][1]}.")
        if isinstance(mask, dict) and mask["size"] != size:
            raise ValueError(
                f"{region_where}: key 'mask' has size {mask['size']}, but the image has [height, width] = {size}; "
                f"a mask is given at the size of its image."
            )
        if not mask_runs(mask, *size, f"{region_where}: key 'mask'")[1::2].any():
            raise ValueError(f"{region_where}: key 'mask' is empty, not one pixel is set; remove the region.")


def _is_text(text: str) -> bool:
    # JSON can hold half a surrogate pair, which no tokenizer takes.
    return bool(text.strip()) and text.encode("utf-8", "ignore").decode("utf-8") == text


def _check_keys(item: Any, keys: dict[str, tuple[Any, str, bool]], where: str) -> None:
    if not isinstance(item, Mapping):
        raise ValueError(f"{where} is a {type(item).__name__}; accepted is an object with the keys {sorted(keys)}.")
    for key in item:
        if key not in keys:
            raise ValueError(f"{where}: key {key!r} is unknown; accepted are {sorted(keys)}.")
    for key, (kind, accepted, required) in keys.items():
        if key not in item:
            if required:
                raise ValueError(f"{where}: key {key!r} is missing; it is {accepted}.")
        elif not isinstance(item[key], kind) or isinstance(item[key], bool):
            raise ValueError(f"{where}: key {key!r} is {item[key]!r}; accepted is {accepted}.")


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


def _open_image(file: Path, width: int, height: int, where: str) -> Image.Image:
    # The image's own orientation tag is not applied: masks are drawn on the pixels as stored, as COCO's are.
    image = read_image(file, f"{where}: {file}", upright=False)
    if image.size != (width, height):
        raise ValueError(
            f"{where}: {file} is {image.width} pixels wide and {image.height} high, but its entry says {width} and "
            f"{height}."
        )
    return image


def _open_panoptic(photo: dict[str, Any]) -> np.ndarray:
    image = _open_image(photo["panoptic"], photo["width"], photo["height"], photo["where"])
    red, green, blue = np.moveaxis(np.asarray(image).astype(np.int64), -1, 0)
    return red + 256 * green + 65536 * blue
