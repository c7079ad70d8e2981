# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Data folders of the region classification benchmarks, in their official layouts, made of real photos."""

import json
import shutil

import numpy as np
from evaluation_for_tests import PHOTOS, heldout_records
from PIL import Image

from processing_pixclip.regions import mask_to_box, to_mask


# As LVIS calls some of COCO's classes.
_LVIS_NAMES = {"orange": "orange_(fruit)", "mouse": "mouse_(computer_equipment)", "tv": "television_set"}
# Classes of which no region is shown, but which compete.
_LVIS_UNSEEN = ("bow_(weapon)", "bow_(decorative_ribbons)", "flip-flop_(sandal)")


def _repository_photos(count):
    """Held-out photos of the repository: file, width, height and instances (category, mask as RLE)."""
    for record in heldout_records(count):
        regions = [(region["category"], region["mask"]) for region in record["regions"]]
        yield PHOTOS / record["image"], record["width"], record["height"], regions


def _shared_photos(shared, split="val2017", count=None):
    """The same of COCO's photos beside the repository; without crowds."""
    content = json.loads((shared / "coco-mini" / "annotations" / f"instances_{split}.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    regions = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            regions[annotation["image_id"]].append((names[annotation["category_id"]], annotation["segmentation"]))
    for image in content["images"][:count]:
        file = shared / "coco-mini" / "images" / split / image["file_name"]
        yield file, image["width"], image["height"], regions[image["id"]]


def coco_box(mask, height, width):
    """x, y, width, height around a mask."""
    x1, y1, x2, y2 = mask_to_box(to_mask(mask, height, width)).tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def uncompressed(mask):
    """RLE with its counts as numbers, as COCO writes crowds."""
    pixels = np.concatenate([[0], mask.ravel(order="F"), [2]]).astype(int)
    edges = np.flatnonzero(np.diff(pixels))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], edges])).tolist()}


def write_coco_regions(out, shared=None, count=None):
    """COCO's instances of val2017.

    Of the repository's photos: masks as RLE, but the first region of each photo as the polygon of its box, and a crowd of
    two rectangles in each third photo.
    """
    if shared is not None:
        (out / "annotations").mkdir(parents=True)
        (out / "annotations" / "instances_val2017.json").symlink_to(
            shared / "coco-mini" / "annotations" / "instances_val2017.json"
        )
        (out / "val2017").symlink_to(shared / "coco-mini" / "images" / "val2017")
        return
    (out / "annotations").mkdir(parents=True)
    (out / "val2017").mkdir()
    images, annotations, categories = [], [], {}
    for number, (file, width, height, regions) in enumerate(_repository_photos(count)):
        shutil.copy(file, out / "val2017" / file.name)
        images.append({"id": int(file.stem), "file_name": file.name, "width": width, "height": height})

        def add(category, mask, box, crowd=0, image_id=int(file.stem)):
            # Ids with gaps, as COCO's are.
            category_id = categories.setdefault(category, 2 * len(categories) + 1)
            annotations.append(
                {
                    "id": 1000 + len(annotations),
                    "image_id": image_id,
                    "category_id": category_id,
                    "segmentation": mask,
                    "bbox": box,
                    "iscrowd": crowd,
                }
            )

        for place, (category, mask) in enumerate(regions):
            box = coco_box(mask, height, width)
            x, y, w, h = box
            add(category, mask if place else [[x, y, x + w, y, x + w, y + h, x, y + h]], box)
        if number % 3 == 0:
            crowd = np.zeros((height, width), dtype=bool)
            crowd[5:25, 10:40] = crowd[30:60, 50:90] = True
            add("person", uncompressed(crowd), [10, 5, 80, 55], crowd=1)
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
    (out / "annotations" / "instances_val2017.json").write_text(json.dumps(content))


def write_lvis_regions(out, shared=None, count=None):
    """LVIS's val: no file names but addresses, of photos of both folders of COCO."""
    if shared is None:
        groups = [("val2017", list(_repository_photos(count)))]
        groups = [("train2017", groups[0][1][::2]), ("val2017", groups[0][1][1::2])]
    else:
        groups = [("train2017", _shared_photos(shared, "train2017", 20)), ("val2017", _shared_photos(shared))]
    images, annotations, names = [], [], list(_LVIS_UNSEEN)
    for folder, photos in groups:
        (out / folder).mkdir(parents=True)
        for file, width, height, regions in photos:
            shutil.copy(file, out / folder / file.name)
            address = f"http://images.cocodataset.org/{folder}/{file.name}"
            images.append({"id": int(file.stem), "coco_url": address, "width": width, "height": height})
            images[-1]["not_exhaustive_category_ids"] = []
            for category, mask in regions:
                name = _LVIS_NAMES.get(category, category.replace(" ", "_"))
                if name not in names:
                    names.append(name)
                annotation = {"id": len(annotations) + 1, "image_id": int(file.stem), "segmentation": mask}
                annotation["category_id"] = names.index(name) + 1
                annotations.append({**annotation, "bbox": coco_box(mask, height, width)})
    categories = [
        {"id": number, "name": name, "synonyms": [name], "frequency": "c"} for number, name in enumerate(names, 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "lvis_v1_val.json").write_text(json.dumps(content))


def write_imagenet_s(out, shared=None, count=None, size=919, unseen=0):
    """ImageNet-S's validation images: the class of a photo is that of its largest region, other regions keep theirs.

    The rows just above a region are to be ignored (1000). Before the classes that are shown come `unseen` ones.
    """
    photos = list(_repository_photos(count) if shared is None else _shared_photos(shared, count=count))
    photos = [photo for photo in photos if photo[3]]
    names = [f"unseen thing {number}" for number in range(unseen)]
    names += sorted({category for *_, regions in photos for category, _ in regions})
    ids = {name: f"n{number:08d}" for number, name in enumerate(names, 1000)}
    root = out / f"ImageNetS{size}"
    for file, width, height, regions in photos:
        masks = [(category, to_mask(mask, height, width) > 0) for category, mask in regions]
        pixels = np.zeros((height, width), dtype=np.int64)
        for category, mask in sorted(masks, key=lambda pair: -pair[1].sum()):
            pixels[np.roll(mask, -1, axis=0) & ~mask] = 1000
            pixels[mask] = names.index(category) + 1
        # The largest is drawn last, so that its pixels are those of its mask.
        category, mask = max(masks, key=lambda pair: pair[1].sum())
        pixels[mask] = names.index(category) + 1
        for kind, ending in (("validation", ".JPEG"), ("validation-segmentation", ".png")):
            folder = root / kind / ids[category]
            folder.mkdir(parents=True, exist_ok=True)
            if ending == ".JPEG":
                shutil.copy(file, folder / f"{file.stem}{ending}")
            else:
                png = np.stack([pixels % 256, pixels // 256, np.zeros_like(pixels)], axis=-1).astype(np.uint8)
                Image.fromarray(png).save(folder / f"{file.stem}{ending}")
    # The official list is not sorted; numbers follow the sorted ids.
    listed = [ids[name] for name in names]
    (out / f"ImageNetS_categories_im{size}.txt").write_text("\n".join(listed[::-1]))
    lines = [f"{ids[name]} {name}, {name} of the second name" for name in names]
    (out / "LOC_synset_mapping.txt").write_text("\n".join(lines) + "\n")
