# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data folders in the layouts of RefCOCO, RefCOCO+ and RefCOCOg, of real photos: UNC's files, ReCLIP's, and the photos."""

import json
import pickle
import shutil

import numpy as np
from evaluation_for_tests import PHOTOS, heldout_records

from processing_pixclip.coco_annotations import CocoAnnotations, read_panoptic_ids
from processing_pixclip.regions import encode_rle, mask_runs, mask_to_box, runs_to_box


def write_refcoco(out, shared=None):
    _write(out, "refcoco", "unc", ("val", "testA", "testB"), shared)


def write_refcoco_plus(out, shared=None):
    _write(out, "refcoco+", "unc", ("val", "testA", "testB"), shared)


def write_refcocog(out, shared=None):
    _write(out, "refcocog", "umd", ("val", "test"), shared)


def _write(out, folder, refs_of, splits, shared):
    photos, annotations, sentences = _repository(splits) if shared is None else _mini(shared)
    (out / "train2014").mkdir(parents=True, exist_ok=True)
    for photo in photos:
        shutil.copy(photo.pop("path"), out / "train2014" / f"COCO_train2014_{photo['id']:012d}.jpg")
    refs = []
    for ref_id, (annotation, split, texts) in enumerate(sentences):
        entries = [
            # As typed, and as cleaned by the authors.
            {"sent_id": 100 * ref_id + place, "raw": text.capitalize(), "sent": text.lower(), "tokens": text.split()}
            for place, text in enumerate(texts)
        ]
        refs.append(
            {
                "ref_id": ref_id,
                "ann_id": annotation["id"],
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "split": split,
                # Their file names end in the annotation's number, and are none of COCO's.
                "file_name": f"COCO_train2014_{annotation['image_id']:012d}_{ref_id}.jpg",
                "sentences": entries,
                "sent_ids": [entry["sent_id"] for entry in entries],
            }
        )
    (out / folder).mkdir(exist_ok=True)
    # Protocol 2 is the newest of Python 2.
    (out / folder / f"refs({refs_of}).p").write_bytes(pickle.dumps(refs, protocol=2))
    categories = [{"id": number, "name": name} for name, number in _CATEGORIES.items()]
    instances = {"images": photos, "annotations": annotations, "categories": categories}
    (out / folder / "instances.json").write_text(json.dumps(instances))
    _write_reclip(out / "reclip_data", folder, refs, annotations)


def _write_reclip(out, folder, refs, annotations):
    out.mkdir(exist_ok=True)
    of_image = {}
    for annotation in annotations:
        of_image.setdefault(annotation["image_id"], []).append({key: annotation[key] for key in ("id", "bbox")})
    for split in sorted({ref["split"] for ref in refs}):
        lines = [
            json.dumps({**{key: ref[key] for key in _LINE}, "anns": of_image[ref["image_id"]]})
            for ref in refs
            if ref["split"] == split
        ]
        (out / f"{folder}_{split.lower()}.jsonl").write_text("\n".join(lines) + "\n")
    generator = np.random.default_rng(0)
    detections = {}
    for place, (image_id, objects) in enumerate(of_image.items()):
        boxes = detections[str(image_id)] = []
        for entry in objects if place != 3 else []:
            x, y, width, height = entry["bbox"]
            # Some are missed, the others are found not quite where they are.
            if generator.random() < 0.8:
                right, down = generator.uniform(-0.1, 0.1, 2)
                boxes.append([max(x + right * width, 0), max(y + down * height, 0), width, height])
        if place != 3:
            boxes.append([0, 0, 30, 30])
    (out / f"{folder}_dets_dict.json").write_text(json.dumps(detections))


_LINE = ("image_id", "file_name", "ann_id", "sentences", "split")
_CATEGORIES = {}


def _category(name):
    return _CATEGORIES.setdefault(name, len(_CATEGORIES) + 1)


def _repository(splits):
    """Photos in the repository; sentences are the short texts of objects that no other object shares."""
    photos, annotations, sentences, seen = [], [], [], {}
    records = heldout_records()
    for record in records:
        for region in record["regions"]:
            seen[region["object_text"]] = seen.get(region["object_text"], 0) + 1
    for place, record in enumerate(records):
        image_id = int(record["image_id"])
        width, height = record["width"], record["height"]
        photos.append(
            {"id": image_id, "width": width, "height": height, "file_name": "", "path": PHOTOS / record["image"]}
        )
        for number, region in enumerate(record["regions"]):
            left, top, right, bottom = runs_to_box(mask_runs(region["mask"], height, width), height).tolist()
            annotation = {
                "id": 100 * image_id + number,
                "image_id": image_id,
                "category_id": _category(region["category"]),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": region["mask"],
                "iscrowd": 0,
            }
            annotations.append(annotation)
            if seen[region["object_text"]] == 1:
                split = splits[place % 5] if 0 < place % 5 < len(splits) else splits[0]
                sentences.append((annotation, split, [region["object_text"]]))
    return photos, annotations, sentences


def _mini(shared):
    """Photos and objects of coco-mini with the sentences of refcocos-mini about them that have a box."""
    folder = shared / "coco-mini"
    annotations_folder = folder / "annotations"
    instances = CocoAnnotations(annotations_folder / "instances_val2017.json", None).photos
    panoptic = CocoAnnotations(None, annotations_folder / "panoptic_val2017.json").photos
    photos, annotations, references, objects = [], [], {}, {}
    for entry in json.loads((shared / "refcocos-mini" / "refcocos_val2017_subset.json").read_text()):
        image_id = entry["image_id"]
        # Without a box there is no answer, without annotations no other candidate.
        if entry["bbox_xyxy"] is None or image_id not in instances.keys() | panoptic.keys():
            continue
        if image_id not in objects:
            photo = instances.get(image_id) or panoptic[image_id]
            path = folder / "images" / entry["file_name"]
            size = {"width": photo.width, "height": photo.height}
            photos.append({"id": image_id, **size, "file_name": "", "path": path})
            objects[image_id] = _objects(image_id, photo, image_id in instances)
            annotations += objects[image_id].values()
        match = entry["match"]
        if match is not None and match["iou"] > 0.7:
            annotation = objects[image_id][match["id"]]
        else:
            left, top, right, bottom = entry["bbox_xyxy"]
            annotation = {
                "id": 900_000_000 + len(annotations),
                "image_id": image_id,
                "category_id": _category("object"),
                "bbox": [left, top, right - left, bottom - top],
                "segmentation": [],
                "iscrowd": 0,
            }
            annotations.append(annotation)
        references.setdefault(annotation["id"], (annotation, "val", []))[2].append(entry["expression"])
    return photos, annotations, list(references.values())


def _objects(image_id, photo, are_instances):
    found = {}
    ids = None if are_instances else read_panoptic_ids(photo)
    for region in photo.regions:
        if region.left_out is not None:
            continue
        if are_instances:
            own_id, mask, box = region.annotation_id, region.mask, region.bbox
        else:
            pixels = ids == region.mask
            left, top, right, bottom = mask_to_box(pixels).tolist()
            own_id, mask, box = region.mask, encode_rle(pixels), [left, top, right - left, bottom - top]
        found[own_id] = {
            "id": own_id,
            "image_id": image_id,
            "category_id": _category(region.category),
            "bbox": box,
            "segmentation": mask,
            "iscrowd": 0,
        }
    return found
