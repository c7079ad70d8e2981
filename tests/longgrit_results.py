# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Results of the LongGRIT pipeline, made by hand of the photos that come with the examples."""

import json
from pathlib import Path

import numpy as np

from processing_pixclip import to_mask
from processing_pixclip.longgrit.config import LongGritSettings
from processing_pixclip.longgrit.records import ImageResult, Provenance, RegionResult, SourceImage, SourceRegion
from processing_pixclip.regions import mask_to_box


COCO_REGIONS = Path(__file__).parents[1] / "examples" / "data" / "coco_regions"
MODEL = "vendor/model-7b"


class PhotoStore:
    """Reads the photos by their path below `COCO_REGIONS`; the only part of `ImageStore` that output needs."""

    def read(self, location):
        return (COCO_REGIONS / location["path"]).read_bytes()


def settings_for(output_dir, **output):
    return LongGritSettings(
        output_dir=output_dir,
        source={"format": "folder", "path": str(COCO_REGIONS / "train.jsonl")},
        engine="rules",
        output=output,
    )


def provenance(stage, model=MODEL):
    return Provenance(stage, model, "http://localhost:8000/v1", "0123456789abcdef", "2026-01-02T03:04:05Z", 700, 40, 1)


def results_of_photos(number, file="train.jsonl", box_every=4, reject_every=5, drop_every=7):
    """
    The first photos with their regions: some given by a box alone, some rejected, some left out by the source.

    Args:
        number: Of photos.
        file: Which of the two files they are from.
        box_every, reject_every, drop_every: Which regions, counted over all photos.
    """
    lines = (COCO_REGIONS / file).read_text().splitlines()[:number]
    return list(_results(map(json.loads, lines), box_every, reject_every, drop_every))


def _results(records, box_every, reject_every, drop_every):
    count = 0
    for record in records:
        height, width = record["height"], record["width"]
        regions, ends = [], []
        for position, region in enumerate(record["regions"]):
            count += 1
            identifier = f"{record['image_id']}#{position}"
            box = mask_to_box(to_mask(region["mask"], height, width)).tolist()
            as_box, dropped = count % box_every == 0, count % drop_every == 0
            regions.append(
                SourceRegion(
                    identifier,
                    tuple(np.array(box, float).tolist()),
                    None if as_box else region["mask"],
                    "box" if as_box else "annotation",
                    region["category"],
                    dropped="too_small" if dropped else None,
                )
            )
            if dropped:
                continue
            if count % reject_every == 0:
                end = RegionResult(identifier, "inconsistent", "verify", "The caption names another colour.")
                end.object_text = region["object_text"]
                end.provenance = [provenance("object_caption"), provenance("verify")]
            else:
                end = RegionResult(identifier, object_text=region["object_text"], text=region["text"])
                end.context_text = f"{region['object_text']} in its surroundings."
                end.hard_negatives = [f"{region['text']} It is number {other}." for other in (1, 2)]
                end.provenance = [provenance(stage) for stage in ("object_caption", "verify", "fuse")]
            ends.append(end)
        image = SourceImage(
            record["image_id"],
            record["image"],
            {"path": record["image"]},
            width,
            height,
            tuple(regions),
            tuple(record["captions"]),
            licence="CC BY 2.0",
        )
        captions = [*record["captions"], "A photo."]
        long_captions = ["A photo with several things in it, each of which is described on its own."]
        yield ImageResult(image, ends, captions, long_captions, [provenance("image_caption")])
