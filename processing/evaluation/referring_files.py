# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Files of RefCOCO, RefCOCO+ and RefCOCOg: as their authors give them out (UNC), and as ReCLIP does."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from ..coco_annotations import CocoAnnotations
from .benchmark import SourceFile
from .retrieval_files import read_lines, read_text


# Where the photos may lie below the data folder, the first that is there, and how they are called in it. COCO's 2017
# release holds all photos of train2014 in train2017, unchanged, under shorter names.
PHOTO_FOLDERS = {
    "train2014": "COCO_train2014_{:012d}.jpg",
    "images/train2014": "COCO_train2014_{:012d}.jpg",
    "images/mscoco/images/train2014": "COCO_train2014_{:012d}.jpg",
    "train2017": "{:012d}.jpg",
    "images/train2017": "{:012d}.jpg",
}


def referring_layout(folder: str, refs: str) -> tuple[SourceFile, ...]:
    """Layout of a data set: sentences and objects of UNC, sentences and detections of ReCLIP, and the photos.

    Args:
        folder: Its name in both, e.g. "refcoco+".
        refs: Who split it, "unc" or "umd".

    Example:
        >>> [source.path for source in referring_layout("refcocog", "umd")][:2]
        ['refcocog/refs(umd).p', 'refcocog/instances.json']
    """
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
            next(iter(PHOTO_FOLDERS)),
            f"folder of the photos COCO_train2014_*.jpg; accepted are {', '.join(PHOTO_FOLDERS)}, in train2017 under the names "
            f"of COCO 2017 (the same photos)",
            "They are in train2014.zip or train2017.zip of https://cocodataset.org/#download.",
        ),
    )


@dataclass(frozen=True, slots=True)
class ReferringObject:
    """An object that is annotated in a photo.

    Attributes:
        annotation_id: Its annotation's id in COCO.
        box: xyxy in pixels, as annotated.
        mask: Polygons or RLE, or `None` where none was read, or none that can be used.
    """

    annotation_id: Any
    box: tuple[float, float, float, float]
    mask: Any = None


@dataclass(frozen=True, slots=True)
class ReferringExpression:
    """A sentence and what it refers to.

    Attributes:
        key: Its name within the benchmark.
        image_id: Its photo's id in COCO.
        text: The sentence, as written.
        referred: Ids of the annotations that it means; one, but for a few of ReCLIP's files.
    """

    key: str
    image_id: int
    text: str
    referred: tuple[Any, ...]


@dataclass(slots=True)
class ReferringData:
    """A split of a data set.

    Attributes:
        expressions: In the order of the file.
        objects: What is annotated in each photo, by its id; all objects of the photo, not only those that are referred
        to.
        left_out: What was left out and why.
    """

    expressions: list[ReferringExpression] = field(default_factory=list)
    objects: dict[int, list[ReferringObject]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, text, lists and dicts; any class or function, which could run code, is an error."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def load_plain_pickle(path: Path) -> Any:
    """Reads a pickle of plain values (numbers, text, lists, tuples, dicts), of Python 2 too; nothing in it can run.

    Args:
        path: The file.

    Raises:
        ValueError: If the file is no pickle, or holds anything else.

    Example:
        >>> load_plain_pickle(Path("refcoco/refs(unc).p"))[0]["split"]  # doctest: +SKIP
        'train'
    """
    with open(path, "rb") as file:
        try:
            return _PlainUnpickler(file, encoding="latin1").load()
        # A damaged file raises nearly anything.
        except Exception as error:
            raise ValueError(
                f"{path} cannot be read as a pickle of plain values: {error}. Accepted are lists, dicts, numbers and text "
                f"alone, as others can run code; get the original file."
            ) from error


def read_unc(refs: Path, instances: Path, split: str, words: str) -> ReferringData:
    """Reads the authors' layout: `refs(unc).p` (or `refs(umd).p`) and `instances.json`.

    Candidates are all objects that are annotated in the photo, without groups (`iscrowd`), which are counted, except
    where one is referred to.

    Args:
        refs: A pickle: a list of {"ref_id", "image_id", "ann_id", "split", "sentences": [{"sent_id", "raw", "sent"}]}.
        instances: COCO's instances of the photos.
        split: "val", "testA", "testB" or "test".
        words: "raw", the sentence as typed, or "sent", as cleaned by the authors.

    Raises:
        ValueError: If an entry is malformed, or no reference is of this split.
    """
    data, entries = ReferringData(), load_plain_pickle(refs)
    if not isinstance(entries, (list, tuple)):
        raise ValueError(f"{refs} holds a {type(entries).__name__}; accepted is a list of references.")
    splits = Counter()
    for number, entry in enumerate(entries):
        where = f"{refs}: reference {number}"
        ref_id, image_id, annotation_id, own, sentences = _require(
            entry, ("ref_id", "image_id", "ann_id", "split", "sentences"), where
        )
        splits[own] += 1
        if own == split:
            _add_sentences(data, str(ref_id), image_id, (annotation_id,), sentences, words, where)
    if not data.expressions:
        raise ValueError(f"{refs} has no reference of the split {split!r}; it has {dict(splits)}.")
    _read_objects(data, instances)
    return data


def read_reclip(lines: Path, words: str) -> ReferringData:
    """Reads ReCLIP's layout: one reference a line.

    Candidates are the line's `anns`, in any order; lines of one photo must have the same.

    Args:
        lines: JSON lines of {"image_id", "ann_id": id or list of ids, "anns": [{"id", "bbox": [x, y, width, height]}],
            "sentences": [{"raw"}]}.
        words: "raw" or "sent", see `read_unc`.

    Raises:
        ValueError: If a line is malformed.
    """
    data = ReferringData()
    for number, line in read_lines(lines):
        where = f"{lines}: line {number}"
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON ({error}).") from error
        image_id, referred, annotations, sentences = _require(
            entry, ("image_id", "ann_id", "anns", "sentences"), where
        )
        referred = tuple(referred) if isinstance(referred, list) else (referred,)
        before = len(data.expressions)
        _add_sentences(data, f"line {number}", image_id, referred, sentences, words, where)
        if len(data.expressions) == before:
            raise ValueError(f"{where}: key 'sentences' is empty; accepted is a list of sentences.")
        objects = {}
        for place, annotation in enumerate(_list(annotations, f"{where}: key 'anns'")):
            own_id, box = _require(annotation, ("id", "bbox"), f"{where}: anns[{place}]")
            objects[own_id] = ReferringObject(own_id, _corners(box, f"{where}: anns[{place}]: key 'bbox'"))
        missing = [each for each in referred if each not in objects]
        if missing or not referred:
            raise ValueError(
                f"{where}: key 'ann_id' is {list(referred)}; accepted are ids of its 'anns', {list(objects)}."
            )
        known = data.objects.setdefault(data.expressions[-1].image_id, list(objects.values()))
        if {each.annotation_id: each for each in known} != objects:
            raise ValueError(f"{where}: its 'anns' are others than those of an earlier line of image {image_id}.")
    if not data.expressions:
        raise ValueError(f"{lines} holds no sentence.")
    return data


def add_masks(data: ReferringData, instances: Path) -> None:
    """Gives the objects of ReCLIP's layout, which has boxes alone, the masks of COCO's instances, by annotation id."""
    masks = {
        region.annotation_id: region.mask
        for photo in _photos(instances, data.objects).values()
        for region in photo.regions
        if region.left_out is None
    }
    for image_id, objects in data.objects.items():
        data.objects[image_id] = [
            ReferringObject(each.annotation_id, each.box, masks.get(each.annotation_id)) for each in objects
        ]


def read_detections(path: Path) -> dict[int, list[tuple[float, float, float, float]]]:
    """Reads a detector's boxes in ReCLIP's format.

    Args:
        path: JSON: {image id: [[x, y, width, height], ...]}, or a list of {"image_id", "box": [x, y, width, height]}.

    Returns:
        Boxes of each image by its id, xyxy in pixels.

    Raises:
        ValueError: If the file is neither, or a box is malformed.

    Example:
        >>> len(read_detections(Path("reclip_data/refcoco_dets_dict.json"))[581857])  # doctest: +SKIP
        14
    """
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    found: dict[int, list[tuple[float, float, float, float]]] = {}
    if isinstance(content, Mapping):
        for image_id, boxes in content.items():
            where = f"{path}: key {image_id!r}"
            found[_number(image_id, where)] = [_corners(box, where) for box in _list(boxes, where)]
    else:
        for place, detection in enumerate(_list(content, str(path))):
            image_id, box = _require(detection, ("image_id", "box"), f"{path}: [{place}]")
            found.setdefault(_number(image_id, f"{path}: [{place}]"), []).append(_corners(box, f"{path}: [{place}]"))
    return found


def photo_folder(data_dir: Path) -> str:
    """Folder of the photos, the first of `PHOTO_FOLDERS` that is below the data folder; else the first of all."""
    return next((folder for folder in PHOTO_FOLDERS if (data_dir / folder).is_dir()), next(iter(PHOTO_FOLDERS)))


def _add_sentences(
    data: ReferringData,
    key: str,
    image_id: Any,
    referred: tuple[Any, ...],
    sentences: Any,
    words: str,
    where: str,
) -> None:
    image_id = _number(image_id, f"{where}: key 'image_id'")
    for place, sentence in enumerate(_list(sentences, f"{where}: key 'sentences'")):
        (text,) = _require(sentence, (words,), f"{where}: sentences[{place}]")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: sentences[{place}]: key {words!r} is {text!r}; accepted is a sentence.")
        own_id = sentence.get("sent_id", place)
        data.expressions.append(ReferringExpression(f"{key}#{own_id}", image_id, text.strip(), referred))


def _read_objects(data: ReferringData, instances: Path) -> None:
    referred = {each for expression in data.expressions for each in expression.referred}
    for image_id, photo in _photos(instances, {expression.image_id for expression in data.expressions}).items():
        objects = data.objects[image_id] = []
        for region in photo.regions:
            where = f"{instances}: annotation {region.annotation_id}"
            if region.left_out == "crowd" and region.annotation_id not in referred:
                data.left_out["objects left out, crowd"] += 1
                continue
            mask = region.mask if region.left_out in (None, "crowd") else None
            objects.append(ReferringObject(region.annotation_id, _corners(region.bbox, f"{where}: key 'bbox'"), mask))
    known = {each.annotation_id for objects in data.objects.values() for each in objects}
    for expression in data.expressions:
        if not known.issuperset(expression.referred):
            raise ValueError(
                f"{instances} lists no annotation {expression.referred[0]}, to which expression {expression.key} refers. "
                f"The two files have to come from one archive."
            )


def _photos(instances: Path, image_ids: Any) -> dict[int, Any]:
    annotations = CocoAnnotations(instances, None, image_ids=image_ids)
    for image_id in image_ids:
        photo = annotations.photos.get(image_id)
        if photo is None:
            raise ValueError(f"{instances} lists no image {image_id}, of which an expression speaks.")
        if photo.error is not None:
            raise photo.error
    return annotations.photos


def _corners(box: Any, where: str) -> tuple[float, float, float, float]:
    if not (
        isinstance(box, Sequence)
        and len(box) == 4
        and all(isinstance(side, Real) and abs(side) < float("inf") for side in box)
        and min(box[2:]) >= 0
    ):
        raise ValueError(f"{where} is {box!r:.200}; accepted is [x, y, width, height] in pixels.")
    x, y, width, height = map(float, box)
    return (x, y, x + width, y + height)


def _number(value: Any, where: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} is {value!r:.200}; accepted is the id of an image, a whole number.") from None


def _list(value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} is {value!r:.200}; accepted is a list.")
    return value


def _require(entry: Any, keys: Sequence[str], where: str) -> list[Any]:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} is {entry!r:.200}; accepted is an object with the keys {list(keys)}.")
    for key in keys:
        if key not in entry:
            raise ValueError(f"{where}: key {key!r} is missing; it has {sorted(map(str, entry))}.")
    return [entry[key] for key in keys]
