# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A ragged batch that every term of the objective finds pairs in, and its parts as other processes would have them."""

import torch
from tiny_models import box_masks, normalised, random_boxes, random_images, random_tokens


# Regions of 6 images: image 3 has none, image 4 has three.
OWNERS = [0, 0, 1, 2, 4, 4, 4, 5]
REGION_TEXTS = [0, 1, 2, 0, 3, 4, 5, 6]
OBJECT_TEXTS = [7, 8, 8, 7, 9, 4, 7, 10]
LONG = [11, -1, 12, 13, 14, 11]
SHORT = [15, 16, 15, 17, 18, -1]
NEGATIVES = [[19, 20], [21], [], [19], [22, 20, 23], [], [24], [21, 24]]
LENGTHS = [8, 5, 6, 3, 7, 9, 4, 4, 5, 3, 6, 12, 14, 11, 10, 5, 6, 7, 4, 5, 6, 3, 8, 7, 4]
PER_IMAGE = ("pixel_values", "long_caption_index", "short_caption_index")
PER_REGION = (
    "mask_values",
    "region_image_index",
    "region_boxes",
    "crop_pixel_values",
    "crop_mask_values",
    "region_text_index",
    "object_text_index",
)
PER_TEXT = ("input_ids", "attention_mask", "text_ids")
TEXT_INDICES = (
    "region_text_index",
    "object_text_index",
    "long_caption_index",
    "short_caption_index",
    "hard_negative_text_index",
)


def ragged_batch():
    """6 images, 8 regions, 25 texts, 10 hard negatives; texts recur within images and across them."""
    boxes = random_boxes(len(OWNERS))
    ids, mask = random_tokens(LENGTHS)
    return {
        "pixel_values": random_images(6),
        "mask_values": normalised(box_masks(boxes)),
        "region_image_index": torch.tensor(OWNERS),
        "region_boxes": boxes,
        "crop_pixel_values": random_images(len(OWNERS), 24, 24, seed=1),
        "crop_mask_values": normalised(box_masks(random_boxes(len(OWNERS), seed=1), 24, 24)),
        "input_ids": ids,
        "attention_mask": mask,
        # Any numbers: in a real batch they are hashes.
        "text_ids": torch.arange(len(LENGTHS)) * 7919 - 50000,
        "region_text_index": torch.tensor(REGION_TEXTS),
        "object_text_index": torch.tensor(OBJECT_TEXTS),
        "long_caption_index": torch.tensor(LONG),
        "short_caption_index": torch.tensor(SHORT),
        "hard_negative_text_index": torch.tensor([row for rows in NEGATIVES for row in rows]),
        "hard_negative_region_index": torch.tensor([i for i, rows in enumerate(NEGATIVES) for _ in rows]),
    }


def take_images(batch, images):
    """The batch that a collator makes of some of its images alone: with their regions and their texts only."""
    images = torch.tensor(images)
    regions = torch.isin(batch["region_image_index"], images).nonzero().flatten()
    negatives = torch.isin(batch["hard_negative_region_index"], regions)
    part = {name: batch[name][images] for name in PER_IMAGE}
    part |= {name: batch[name][regions] for name in PER_REGION}
    part["region_image_index"] = torch.searchsorted(images, part["region_image_index"])
    part["hard_negative_text_index"] = batch["hard_negative_text_index"][negatives]
    part["hard_negative_region_index"] = torch.searchsorted(regions, batch["hard_negative_region_index"][negatives])
    used = torch.cat([part[name] for name in TEXT_INDICES]).unique()
    used = used[used >= 0]
    for name in TEXT_INDICES:
        part[name] = torch.where(part[name] < 0, -1, torch.searchsorted(used, part[name]))
    return part | {name: batch[name][used] for name in PER_TEXT}


def as_double(batch):
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
