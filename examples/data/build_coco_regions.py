# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Builds `coco_regions/`, the small real sample that this repository ships, from a larger folder of COCO photos.

The source folder holds
    coco-mini/images.csv                      one row a photo: split, file_name, image_licence, flickr_url, ...
    coco-mini/images/{split}/                 COCO 2017 photos
    coco-mini/annotations/                    instances_, panoptic_, captions_{split}.json and panoptic_{split}/
    pixmini-region-captions/{split}.jsonl     written long captions: file_name, category, caption, mask_rle

Only photos that may be changed and shared, also commercially, are taken. Run it as

    python examples/data/build_coco_regions.py --source DIR [--output DIR]

The same source gives the same bytes.
"""

import argparse
import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from processing_pixclip import CocoRegionDataset, write_region_jsonl
from processing_pixclip.regions import encode_rle, to_mask


LICENCES = {
    "Attribution License": ("CC BY 2.0", "https://creativecommons.org/licenses/by/2.0/"),
    "Attribution-ShareAlike License": ("CC BY-SA 2.0", "https://creativecommons.org/licenses/by-sa/2.0/"),
    "No known copyright restrictions": (
        "No known copyright restrictions",
        "https://www.flickr.com/commons/usage/",
    ),
}
SPLITS = {"train": "train2017", "heldout": "val2017"}
LONGEST_SIDE = 448
JPEG_QUALITY = 85
MIN_AREA = 0.0035
MIN_STUFF_AREA = 0.01
MAX_REGIONS = 10
MAX_STUFF = 5
SAME_REGION_IOU = 0.7
WRITTEN_MATCH_IOU = 0.9


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())


def read_written_captions(path: Path) -> dict[str, list[dict]]:
    captions: dict[str, list[dict]] = {}
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            captions.setdefault(str(record["image_id"]), []).append(record)
    return captions


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(resized) >= 0.5


def choose_regions(masks: list[np.ndarray], is_stuff: list[bool], written: dict[int, str]) -> list[int]:
    """Regions with a written caption, then the largest; few of stuff, and none that nearly repeats another."""
    order = sorted(range(len(masks)), key=lambda i: (i not in written, -masks[i].sum()))
    chosen: list[int] = []
    for i in order:
        least = MIN_STUFF_AREA if is_stuff[i] else MIN_AREA
        if len(chosen) == MAX_REGIONS or (i not in written and masks[i].mean() < least):
            continue
        if is_stuff[i] and sum(is_stuff[j] for j in chosen) == MAX_STUFF:
            continue
        if i in written or all(intersection_over_union(masks[i], masks[j]) < SAME_REGION_IOU for j in chosen):
            chosen.append(i)
    return sorted(chosen)


def build_record(sample: dict, captions: list[dict], stuff: set[str], file_name: str) -> tuple[dict, Image.Image]:
    image = sample["image"]
    masks = [to_mask(mask, image.height, image.width, f"masks[{i}]") >= 0.5 for i, mask in enumerate(sample["masks"])]
    written = {}
    for caption in captions:
        target = to_mask(caption["mask_rle"], image.height, image.width, file_name) >= 0.5
        overlaps = [intersection_over_union(target, mask) for mask in masks]
        best = int(np.argmax(overlaps))
        if overlaps[best] < WRITTEN_MATCH_IOU:
            raise ValueError(f"{file_name}: no region matches the written caption of {caption['category']!r}.")
        written[best] = caption["caption"]
    scale = LONGEST_SIDE / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    regions = [
        {
            "mask": encode_rle(resize_mask(masks[i], size)),
            "category": sample["categories"][i],
            "object_text": sample["object_texts"][i],
            "text": written.get(i, sample["texts"][i]),
            "text_source": "written" if i in written else "composed",
        }
        for i in choose_regions(masks, [category in stuff for category in sample["categories"]], written)
    ]
    record = {
        "image": f"images/{file_name}",
        "image_id": sample["image_id"],
        "width": size[0],
        "height": size[1],
        "captions": sample["captions"],
        "regions": regions,
    }
    return record, image.resize(size, Image.Resampling.LANCZOS)


def build_split(source: Path, output: Path, name: str, rows: dict[str, dict]) -> tuple[list[dict], Counter]:
    split = SPLITS[name]
    annotations = source / "coco-mini" / "annotations"
    with open(annotations / f"panoptic_{split}.json", encoding="utf-8") as file:
        stuff = {category["name"] for category in json.load(file)["categories"] if not category["isthing"]}
    dataset = CocoRegionDataset(
        source / "coco-mini" / "images" / split,
        instances_file=annotations / f"instances_{split}.json",
        panoptic_file=annotations / f"panoptic_{split}.json",
        captions_file=annotations / f"captions_{split}.json",
        min_area_fraction=0.0,
        image_ids={int(image_id) for image_id, row in rows.items() if row["split"] == split},
    )
    written = read_written_captions(source / "pixmini-region-captions" / f"{split}.jsonl")
    records, left_out = [], Counter(dataset.rejected)
    for index in range(len(dataset)):
        sample = dataset[index]
        row = rows[sample["image_id"]]
        record, image = build_record(sample, written.get(sample["image_id"], []), stuff, row["file_name"])
        if len(record["regions"]) < 2:
            left_out["photo with fewer than two regions"] += 1
            continue
        image.save(output / record["image"], quality=JPEG_QUALITY, optimize=True)
        records.append(record)
    write_region_jsonl(records, output / f"{name}.jsonl")
    return records, left_out


def attribution_row(record: dict, row: dict) -> dict[str, str]:
    photo_id = re.search(r"/(\d+)_[0-9a-z]+(?:_[a-z])?\.jpg$", row["flickr_url"]).group(1)
    licence, licence_url = LICENCES[row["image_licence"]]
    return {
        "file": record["image"],
        "photo": f"Flickr photo {photo_id} (COCO {row['split']} {row['file_name']})",
        "author_page": f"https://www.flickr.com/photo.gne?id={photo_id}",
        "source_url": row["flickr_url"],
        "licence": licence,
        "licence_url": licence_url,
        "changes": f"resized to {record['width']} x {record['height']} pixels, saved as JPEG again",
    }


def write_readme(output: Path, splits: dict[str, tuple[list[dict], Counter]], licences: Counter) -> None:
    lines = [
        "# coco_regions",
        "",
        (
            "Real photos with region masks, whole-photo captions and long region texts: the sample that the examples train "
            "and are checked on. Built by `examples/data/build_coco_regions.py`, which also wrote this page."
        ),
        "",
        "| | train | held out |",
        "| --- | --- | --- |",
    ]
    figures = [
        ("from COCO 2017", lambda name, records: SPLITS[name]),
        ("photos", lambda name, records: len(records)),
        ("photos with captions", lambda name, records: sum(bool(r["captions"]) for r in records)),
        ("regions", lambda name, records: sum(len(r["regions"]) for r in records)),
        (
            "of these with a written text",
            lambda name, records: sum(g["text_source"] == "written" for r in records for g in r["regions"]),
        ),
        ("categories", lambda name, records: len({g["category"] for r in records for g in r["regions"]})),
        (
            "words a text, mean",
            lambda name, records: f"{np.mean([len(g['text'].split()) for r in records for g in r['regions']]):.0f}",
        ),
    ]
    for label, figure in figures:
        cells = [str(figure(name, splits[name][0])) for name in SPLITS]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += [
        "",
        "No photo is in both. Left out: "
        + "; ".join(
            f"{name}: " + ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
            for name, (_, left_out) in splits.items()
        )
        + ".",
        "",
        "## Format",
        "",
        (
            "`train.jsonl` and `heldout.jsonl`, one photo a line, as `processing_pixclip.RegionJsonlDataset` reads it: "
            "image, image_id, width, height, captions, and regions with a mask (COCO compressed RLE at the size of the "
            "photo), category, object_text, text and text_source. Photos are at most "
            f"{LONGEST_SIDE} pixels wide and high. A photo has 2 to {MAX_REGIONS} regions: those with a written text, then "
            f"the largest, each at least {100 * MIN_AREA:g} % of the photo ({100 * MIN_STUFF_AREA:g} % and at most "
            f"{MAX_STUFF} for stuff such as grass or sky)."
        ),
        "",
        (
            '`text_source` is "written" for captions that an AI model wrote for this project while looking at the photo '
            'with the region outlined (not reviewed by a person), and "composed" for texts that '
            "`processing_pixclip.describe_region` put together from measured facts, without a language model: they are as "
            "true as the masks, and count only what is annotated. Every "
            "`object_text` is composed."
        ),
        "",
        "## Licence",
        "",
        "* Photos: each by its Flickr author under its own licence, named in `ATTRIBUTION.csv` with the photo's page "
        "(which names the author), the licence's address and the changes made. Photos by licence: "
        + ", ".join(f"{count} {licence}" for licence, count in sorted(licences.items()))
        + ". A changed photo under CC BY-SA stays under CC BY-SA.",
        (
            "* Masks, categories and captions: COCO Consortium (https://cocodataset.org), Creative Commons Attribution 4.0; "
            "masks are resized and selected."
        ),
        "* Written and composed region texts: part of this project, under its licence.",
        "",
    ]
    (output / "README.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with coco-mini/, pixmini-region-captions/")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "coco_regions")
    arguments = parser.parse_args()
    with open(arguments.source / "coco-mini" / "images.csv", encoding="utf-8", newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file) if row["image_licence"] in LICENCES}
    (arguments.output / "images").mkdir(parents=True, exist_ok=True)
    for outdated in (arguments.output / "images").glob("*.jpg"):
        outdated.unlink()
    splits = {name: build_split(arguments.source, arguments.output, name, rows) for name in SPLITS}
    attribution = [attribution_row(r, rows[r["image_id"]]) for name in SPLITS for r in splits[name][0]]
    with open(arguments.output / "ATTRIBUTION.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(attribution[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(attribution)
    write_readme(arguments.output, splits, Counter(row["licence"] for row in attribution))
    for name, (records, left_out) in splits.items():
        regions = sum(len(record["regions"]) for record in records)
        print(f"{name}: {len(records)} photos, {regions} regions; left out: {dict(left_out)}")


if __name__ == "__main__":
    main()
