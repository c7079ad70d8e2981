# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data folders of "fg-ovd" and "mask-sensitivity" over real photos, in the layouts that the benchmarks read."""

import json
import random
from pathlib import Path

import numpy as np
from evaluation_for_tests import PHOTOS, heldout_records
from PIL import Image

from processing_pixclip.coco_annotations import CocoAnnotations
from processing_pixclip.evaluation.fg_ovd import SPLIT_FILES
from processing_pixclip.region_colours import COLOUR_NAMES
from processing_pixclip.region_facts import measure_region
from processing_pixclip.region_nouns import noun_of
from processing_pixclip.regions import encode_rle, mask_to_box, to_mask


NEGATIVES = 10
# By what is measured: from which share of the photo on a region is called so, and how its box is called.
SIZES = {"tiny": 0.0, "small": 0.01, "medium-sized": 0.05, "large": 0.2}
SHAPES = {
    "tall": "much taller than wide",
    "high": "taller than wide",
    "square": "about as wide as tall",
    "wide": "wider than tall",
    "long": "much wider than tall",
}
_CHANGES = {"hard": 1, "medium": 2, "easy": 3}


def photos(shared=None, image_count=None):
    """Yields of each photo of COCO val2017: file, entry of an image, and regions as (mask (height, width), category)."""
    if shared is None:
        for record in heldout_records(image_count):
            size = record["height"], record["width"]
            regions = [(to_mask(region["mask"], *size), region["category"]) for region in record["regions"]]
            yield PHOTOS / record["image"], int(record["image_id"]), size, regions
        return
    coco = Path(shared) / "coco-mini"
    annotations = CocoAnnotations(coco / "annotations" / "instances_val2017.json", None)
    for photo in list(annotations.photos.values())[:image_count]:
        size = photo.height, photo.width
        regions = [
            (to_mask(region.mask, *size), region.category) for region in photo.regions if region.left_out is None
        ]
        yield coco / "images" / "val2017" / photo.file_name, int(photo.image_id), size, regions


def describe(measured):
    """Measured attributes of a region, or `None` where no colour stands out."""
    if not measured.main_colours:
        return None
    size = [name for name, share in SIZES.items() if measured.share >= share][-1]
    return {"size": size, "colour": measured.main_colours[0].name, "shape": measured.shape}


def description(noun, attributes):
    size, colour, shape = attributes["size"], attributes["colour"], SHAPES[attributes["shape"]]
    if noun.plural == "people":
        return f"A {size} {noun.singular} in {colour} tones, {shape}"
    phrase = noun.phrase(f"{size} {colour}")
    return f"{phrase[0].upper()}{phrase[1:]}, {shape}"


def changed(attributes, count, generator):
    """The attributes with `count` of them swapped for another value."""
    values = {"size": list(SIZES), "colour": list(COLOUR_NAMES), "shape": list(SHAPES)}
    names = generator.sample(sorted(values), count)
    return attributes | {
        name: generator.choice([value for value in values[name] if value != attributes[name]]) for name in names
    }


def write_fg_ovd(out, shared=None, image_count=None):
    """A small file in the layout of FG-OVD for each difficulty: attributes that were measured, swapped by rule.

    Size, colour and shape are measured; one, two or three of them are swapped, or the text is of another category's region.

    Args:
        out: Folder to write.
        shared: Folder with coco-mini; without it the photos of the repository.
        image_count: Only the first photos.
    """
    out = Path(out)
    (out / "benchmarks").mkdir(parents=True)
    generator = random.Random(0)
    images, found = [], []
    for file, image_id, (height, width), regions in photos(shared, image_count):
        (out / "val2017").mkdir(exist_ok=True)
        (out / "val2017" / file.name).symlink_to(file.resolve())
        images.append({"id": image_id, "file_name": f"val2017/{file.name}", "height": height, "width": width})
        pixels = np.asarray(Image.open(file).convert("RGB"))
        for mask, category in regions:
            noun = noun_of(category)
            attributes = describe(measure_region(pixels, mask, noun, "mask")) if mask.mean() >= 0.005 else None
            if attributes is not None:
                left, top, right, bottom = mask_to_box(mask).tolist()
                entry = {
                    "id": len(found),
                    "image_id": image_id,
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": encode_rle(mask >= 0.5),
                    "area": int(mask.sum()),
                }
                found.append((entry, noun, attributes))
    for split in ("hard", "medium", "easy", "trivial"):
        names, annotations = {}, []
        for entry, noun, attributes in found:
            positive = description(noun, attributes)
            if split == "trivial":
                others = [description(*other[1:]) for other in found if other[1] != noun]
                negatives = generator.sample(others, min(NEGATIVES, len(others)))
            else:
                made = [
                    description(noun, changed(attributes, _CHANGES[split], generator)) for _ in range(8 * NEGATIVES)
                ]
                negatives = list(dict.fromkeys(made))[:NEGATIVES]
            ids = [names.setdefault(text, len(names) + 1) for text in (positive, *negatives)]
            annotations.append({**entry, "category_id": ids[0], "neg_category_ids": ids[1:]})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in names.items()],
        }
        (out / SPLIT_FILES[split]).write_text(json.dumps(content), encoding="utf-8")


def write_mask_sensitivity(out, shared=None, image_count=None):
    """COCO's instances and, for the presets with texts of regions, `regions.jsonl`.

    Without `shared` both hold the photos of the repository; with it the instances of coco-mini, and the long texts of
    pixmini-region-captions (of val2017).

    Args:
        out: Folder to write.
        shared: Folder with coco-mini and pixmini-region-captions; without it the photos of the repository.
        image_count: Only the first photos.
    """
    out = Path(out)
    (out / "annotations").mkdir(parents=True)
    if shared is not None:
        coco = Path(shared).resolve() / "coco-mini"
        (out / "annotations" / "instances_val2017.json").symlink_to(coco / "annotations" / "instances_val2017.json")
        (out / "images").symlink_to(coco / "images")
        lines = (Path(shared) / "pixmini-region-captions" / "val2017.jsonl").read_text(encoding="utf-8").splitlines()
        records = {}
        for line in map(json.loads, lines[: None if image_count is None else 2 * image_count]):
            height, width = line["mask_rle"]["size"]
            empty = {"image": line["file_name"], "image_id": str(line["image_id"]), "width": width, "height": height}
            record = records.setdefault(line["file_name"], {**empty, "regions": []})
            record["regions"].append(
                {
                    "mask": line["mask_rle"],
                    "category": line["category"],
                    "text": line["caption"],
                    "text_source": "written",
                }
            )
        records = list(records.values())
    else:
        records = heldout_records(image_count)
        (out / "images").symlink_to(PHOTOS / "images")
        (out / "val2017").symlink_to(PHOTOS / "images")
        names = sorted({region["category"] for record in records for region in record["regions"]})
        images, annotations = [], []
        for record in records:
            image = {"id": int(record["image_id"]), "file_name": Path(record["image"]).name}
            images.append({**image, "width": record["width"], "height": record["height"]})
            for region in record["regions"]:
                number = {"id": len(annotations), "image_id": image["id"]}
                annotations.append(
                    {**number, "category_id": names.index(region["category"]), "segmentation": region["mask"]}
                )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        }
        (out / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")
    with open(out / "regions.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
