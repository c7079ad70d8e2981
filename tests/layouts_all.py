# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The data folder of every benchmark, made of real photos."""

from layouts_classification import write_coco_regions, write_imagenet_s, write_lvis_regions
from layouts_fine_grained import write_fg_ovd, write_mask_sensitivity
from layouts_referring import write_refcoco, write_refcoco_plus, write_refcocog
from layouts_retrieval import (
    write_caption_pairs,
    write_coco_retrieval,
    write_dci,
    write_docci,
    write_flickr30k,
    write_sharegpt4v,
    write_urban1k,
)


LAYOUTS = {
    "coco-regions": write_coco_regions,
    "lvis-regions": write_lvis_regions,
    "imagenet-s": write_imagenet_s,
    "refcoco": write_refcoco,
    "refcoco+": write_refcoco_plus,
    "refcocog": write_refcocog,
    "fg-ovd": write_fg_ovd,
    "flickr30k": write_flickr30k,
    "coco-retrieval": write_coco_retrieval,
    "docci": write_docci,
    "dci": write_dci,
    "urban1k": write_urban1k,
    "sharegpt4v": write_sharegpt4v,
    "caption-pairs": write_caption_pairs,
    "mask-sensitivity": write_mask_sensitivity,
}


def write_layouts(out, names, shared=None):
    """A folder for each benchmark below `out`; gives the folders by name."""
    folders = {name: out / name for name in names}
    for name, folder in folders.items():
        # Some writers make the folder, some have it made.
        folder.mkdir(parents=True)
        LAYOUTS[name](folder, shared)
    return folders
