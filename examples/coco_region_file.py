# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Writes COCO photos with their instance masks and captions as JSON lines, for `run_pretraining.py` and the like.

    python examples/coco_region_file.py --images coco/images/train2017 \\
        --instances coco/annotations/instances_train2017.json --captions coco/annotations/captions_train2017.json \\
        --output runs/coco/train.jsonl

The folder of `--images` is the `--image_root` of what reads the lines. A region's object text is its class in a
template; its text is the same, or with `--describe` a sentence that `processing_pixclip.describe_regions` composes from
what is measured in the photo. `--held_out_share` keeps some of the photos apart, in `--held_out_output`, to choose
settings on.
"""

import argparse
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from processing_pixclip import CocoRegionDataset, to_mask, write_region_jsonl
from processing_pixclip.regions import encode_rle


def region_records(
    dataset: CocoRegionDataset, names: Mapping[str, str], template: str, describe: bool
) -> Iterator[dict]:
    """
    Records for `RegionJsonlDataset`, one a photo.

    Args:
        dataset: The photos; with composed texts if `describe`.
        names: File of each photo by its id, in the folder that is to be the reader's `image_root`.
        template: Around "{class}".
        describe: Whether the text of a region is the data set's, not the template's.
    """
    for sample in (dataset[index] for index in range(len(dataset))):
        name = names[sample["image_id"]]
        width, height = sample["image"].size
        regions = []
        for mask, text, category in zip(sample["masks"], sample["texts"], sample["categories"]):
            prompt = template.replace("{class}", category)
            mask = to_mask(mask, height, width, f"mask of {name}") >= 0.5
            regions.append(
                {
                    "mask": encode_rle(mask),
                    "category": category,
                    "object_text": prompt,
                    "text": text if describe else prompt,
                    "text_source": "composed" if describe else "template",
                }
            )
        yield {
            "image": name,
            "image_id": sample["image_id"],
            "width": width,
            "height": height,
            "captions": sample["captions"],
            "regions": regions,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=Path, help="folder of the photos")
    parser.add_argument("--instances", required=True, type=Path, help="instances_*.json")
    parser.add_argument("--captions", type=Path, help="captions_*.json")
    parser.add_argument("--output", required=True, type=Path, help="the JSON lines")
    parser.add_argument("--template", default="a photo of a {class}", help="text of a region")
    parser.add_argument("--describe", action="store_true", help="composed sentences as texts of regions")
    parser.add_argument(
        "--least_share", type=float, default=0.002, help="least share of its photo that a region covers"
    )
    parser.add_argument("--held_out_share", type=float, default=0.0, help="share of the photos to keep apart")
    parser.add_argument("--held_out_output", type=Path, help="JSON lines of those")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of held-out photos")
    options = parser.parse_args(arguments)
    if "{class}" not in options.template:
        parser.error(f"--template is {options.template!r}; accepted is a text with {{class}} in it.")
    if bool(options.held_out_share) != bool(options.held_out_output):
        parser.error("--held_out_share and --held_out_output go together.")
    if not 0 <= options.held_out_share < 1:
        parser.error(f"--held_out_share is {options.held_out_share}; accepted is a share from 0 to below 1.")

    content = json.loads(options.instances.read_text(encoding="utf-8"))
    listed = [image["id"] for image in content["images"]]
    names = {str(image["id"]): image["file_name"] for image in content["images"]}
    shuffled = listed.copy()
    random.Random(options.seed).shuffle(shuffled)
    held_out = set(shuffled[: round(len(listed) * options.held_out_share)])
    if options.held_out_share and not 0 < len(held_out) < len(listed):
        parser.error(
            f"--held_out_share {options.held_out_share} of {len(listed)} photos keeps {len(held_out)} apart; accepted is a "
            "share that leaves one and more on both sides."
        )
    splits = [(options.output, [image for image in listed if image not in held_out])]
    if held_out:
        splits.append((options.held_out_output, [image for image in listed if image in held_out]))
    for path, image_ids in splits:
        dataset = CocoRegionDataset(
            options.images,
            options.instances,
            captions_file=options.captions,
            min_area_fraction=options.least_share,
            compose_texts=options.describe,
            image_ids=image_ids,
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        records = list(region_records(dataset, names, options.template, options.describe))
        write_region_jsonl(records, path)
        regions = sum(len(record["regions"]) for record in records)
        print(f"{path}: {len(dataset)} photos, {regions} regions; left out: {dict(dataset.rejected)}")


if __name__ == "__main__":
    main()
