# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The sample that ships with the repository: it loads, may be shared, is small, and suits its purpose."""

import csv
from pathlib import Path

import pytest

from processing_pixclip import RegionJsonlDataset, to_mask


FOLDER = Path(__file__).parents[1] / "examples" / "data" / "coco_regions"
PERMITTED = {
    "CC BY 2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC BY-SA 2.0": "https://creativecommons.org/licenses/by-sa/2.0/",
    "No known copyright restrictions": "https://www.flickr.com/commons/usage/",
}


@pytest.fixture(scope="module")
def splits():
    return {name: RegionJsonlDataset(FOLDER / f"{name}.jsonl") for name in ("train", "heldout")}


def attribution():
    with open(FOLDER / "ATTRIBUTION.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_every_record_loads(splits, name):
    for index in range(len(splits[name])):
        sample = splits[name][index]
        width, height = sample["image"].size
        assert max(width, height) == 448
        assert len(sample["masks"]) >= 2
        for number, mask in enumerate(sample["masks"]):
            to_mask(mask, height, width, f"{name}: image {sample['image_id']} masks[{number}]")
        assert all(sample["object_texts"]) and all(sample["categories"])


def test_enough_regions_to_train_on(splits):
    assert sum(len(record["regions"]) for record in splits["train"].records) >= 350
    assert sum(len(record["regions"]) for record in splits["heldout"].records) >= 200
    sources = [region["text_source"] for record in splits["train"].records for region in record["regions"]]
    assert sources.count("written") == 48 and set(sources) == {"written", "composed"}


@pytest.mark.parametrize("name", ["train", "heldout"])
def test_texts_are_long_and_unique(splits, name):
    texts = [region["text"] for record in splits[name].records for region in record["regions"]]
    assert len(set(texts)) == len(texts)
    assert min(len(text.split()) for text in texts) >= 35 and max(len(text.split()) for text in texts) <= 80


def test_splits_share_no_photo(splits):
    ids = [{record["image_id"] for record in dataset.records} for dataset in splits.values()]
    assert not ids[0] & ids[1]


def test_every_image_is_attributed_under_a_permitted_licence(splits):
    rows = attribution()
    used = sorted(record["image"] for dataset in splits.values() for record in dataset.records)
    assert sorted(row["file"] for row in rows) == used
    assert sorted(f"images/{path.name}" for path in (FOLDER / "images").iterdir()) == used
    for row in rows:
        assert PERMITTED[row["licence"]] == row["licence_url"]
        assert (
            row["photo"] and row["author_page"].startswith("https://www.flickr.com/") and "resized" in row["changes"]
        )


def test_folder_is_at_most_12_megabytes():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 12_000_000
