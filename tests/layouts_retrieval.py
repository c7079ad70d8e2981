# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Real photos and captions laid out as the retrieval benchmarks have them: from the repository, or from `shared`."""

import json
from dataclasses import dataclass
from pathlib import Path

from evaluation_for_tests import PHOTOS, heldout_records


COUNT = 20
OTHER_SPLIT = 4


@dataclass(frozen=True)
class Photo:
    """A photo, its captions and the long texts about it, by who wrote them."""

    path: Path
    image_id: int
    captions: list[str]
    long: dict[str, str]
    split: str = "test"


def photos_of(shared, with_long=False):
    """20 photos of the test split and 4 of another; of `shared` all that have captions, or a long text."""
    if shared is None:
        test = heldout_records(COUNT)
        lines = (PHOTOS / "train.jsonl").read_text(encoding="utf-8").splitlines()
        others = [record for record in map(json.loads, lines) if record["captions"]]
        records = test + others[:OTHER_SPLIT]
        return [
            Photo(
                PHOTOS / record["image"],
                int(record["image_id"]),
                record["captions"],
                {"joined": " ".join(record["captions"])},
                "test" if record in test else "train",
            )
            for record in records
        ]
    coco = json.loads((shared / "coco-mini" / "annotations" / "captions_val2017.json").read_text(encoding="utf-8"))
    written = shared / "comprecap-longcaptions-mini" / "long_captions_val2017_subset.json"
    long = {row["image_id"]: row["captions"] for row in json.loads(written.read_text(encoding="utf-8"))}
    captions = {}
    for annotation in coco["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
    folder = shared / "coco-mini" / "images" / "val2017"
    return [
        Photo(folder / image["file_name"], image["id"], captions[image["id"]], long.get(image["id"], {}))
        for image in coco["images"]
        if image["id"] in long or not with_long
    ]


def link(path, folder, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / (name or path.name)).symlink_to(path.resolve())


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def long_text(photo):
    """One of the long texts: GPT-4o's where there is one."""
    return photo.long[min(photo.long)]


def write_flickr30k(out, shared=None):
    photos = photos_of(shared)
    for photo in photos:
        link(photo.path, out / "flickr30k-images")
    images = [
        {
            "sentids": [5 * number + place for place in range(len(photo.captions))],
            "imgid": number,
            "sentences": [
                {"tokens": text.lower().split(), "raw": text, "imgid": number, "sentid": 5 * number + place}
                for place, text in enumerate(photo.captions)
            ],
            "split": photo.split,
            "filename": photo.path.name,
        }
        for number, photo in enumerate(photos)
    ]
    write(out / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    test = [{"filename": photo.path.name, "captions": photo.captions} for photo in photos if photo.split == "test"]
    write(out / "test_caption.json", test)
    lines = [f"{photo.path.name}#{place}\t{text}\n" for photo in photos for place, text in enumerate(photo.captions)]
    (out / "results_20130124.token").write_text("".join(lines), encoding="utf-8")


def coco_captions(photos):
    annotations = [(photo.image_id, text) for photo in photos for text in photo.captions]
    return {
        "images": [
            {"id": photo.image_id, "file_name": photo.path.name, "width": 640, "height": 480} for photo in photos
        ],
        # COCO's file has the captions of a photo apart from each other.
        "annotations": [
            {"id": number, "image_id": image_id, "caption": text}
            for number, (image_id, text) in enumerate(annotations[::2] + annotations[1::2])
        ],
    }


def write_coco_retrieval(out, shared=None):
    photos = photos_of(shared)
    test = [photo for photo in photos if photo.split == "test"]
    write(out / "annotations" / "captions_val2017.json", coco_captions(test))
    for photo in test:
        link(photo.path, out / "val2017")
    images = []
    for number, photo in enumerate(photos):
        name = f"COCO_val2014_{photo.path.name}"
        link(photo.path, out / "val2014", name)
        images.append(
            {
                "filepath": "val2014",
                "filename": name,
                "cocoid": photo.image_id,
                "imgid": number,
                "split": "test" if photo.split == "test" else "restval" if number % 2 else "val",
                "sentences": [{"raw": text, "imgid": number} for text in photo.captions],
            }
        )
    write(out / "dataset_coco.json", {"images": images, "dataset": "coco"})


def write_docci(out, shared=None):
    """Photos of another split first. Of `shared`, LLaVA's texts are the test split, GPT-4o's the split qual_dev."""
    rows = []
    photos = photos_of(shared, with_long=True)
    for photo in sorted(photos, key=lambda photo: photo.split == "test"):
        link(photo.path, out / "images")
        for writer, text in sorted(photo.long.items()):
            rows.append(
                {
                    "example_id": photo.path.stem,
                    "split": "qual_dev" if writer == "gpt-4o" else photo.split,
                    "image_file": photo.path.name,
                    "description": text,
                }
            )
    (out / "docci_descriptions.jsonlines").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )


def write_dci(out, shared=None):
    splits = {"train": [], "valid": [], "test": []}
    for photo in photos_of(shared, with_long=True):
        name = f"sa_{photo.image_id}.json"
        link(photo.path, out / "photos")
        row = {
            "image": photo.path.name,
            "short_caption": photo.captions[0],
            "extra_caption": long_text(photo),
            "mask_data": {},
            "mask_keys": [],
        }
        splits[photo.split].append(name)
        write(out / "annotations" / name, row)
        write(out / "complete" / name, {**row, "summaries": {"base": photo.captions}, "negatives": {}})
    write(out / "splits.json", splits)


def write_urban1k(out, shared=None):
    for photo in photos_of(shared, with_long=True):
        if photo.split == "test":
            link(photo.path, out / "image")
            (out / "caption").mkdir(exist_ok=True)
            (out / "caption" / f"{photo.path.stem}.txt").write_text(long_text(photo) + "\n", encoding="utf-8")


def write_sharegpt4v(out, shared=None):
    records = []
    for photo in photos_of(shared, with_long=True):
        if photo.split == "test":
            link(photo.path, out / "coco" / "train2017")
            turns = [
                {"from": "human", "value": "<image>\nDescribe the picture."},
                {"from": "gpt", "value": long_text(photo)},
            ]
            name = f"coco/train2017/{photo.path.name}"
            records.append({"id": photo.path.stem, "image": name, "conversations": turns})
    write(out / "share-captioner_coco_lcs_sam_1246k_1107.json", records)


def write_caption_pairs(out, shared=None):
    test = [photo for photo in photos_of(shared) if photo.split == "test"]
    write(out / "annotations" / "captions_val2017.json", coco_captions(test))
    lines = [json.dumps({"image_id": photo.image_id, "captions": photo.captions}) + "\n" for photo in test]
    (out / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
