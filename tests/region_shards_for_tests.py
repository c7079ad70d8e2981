# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Small real data sets in shards, and a model and a collator that make visible which samples a training sees."""

import io
import json
import struct
import tarfile
import zlib

import torch
from PIL import Image
from torch import nn

from processing_pixclip import RegionJsonlDataset, write_region_jsonl, write_region_parquet, write_region_webdataset


WRITERS = {"parquet": write_region_parquet, "webdataset": write_region_webdataset}
WIDTH, HEIGHT = 16, 12


def photo(number, format="JPEG"):
    file = io.BytesIO()
    Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB").point(lambda v: (v + 7 * number) % 256).save(
        file, format
    )
    return file.getvalue()


def decompression_bomb():
    """A PNG of some hundred bytes that claims 60000 x 60000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def record(number):
    return {
        "image": f"images/{number:04d}.jpg",
        "image_id": str(number),
        "width": WIDTH,
        "height": HEIGHT,
        "captions": [f"photo {number}"],
        "long_captions": [f"photo {number} of a ramp of greys", "a ramp"],
        "regions": [
            {"box": [1, 2, 9, 8], "text": f"a box in photo {number}", "hard_negatives": [f"a bag in photo {number}"]},
            {
                "mask": [[2, 2, 10, 2, 10, 10, 2, 10]],
                "text": f"a square in photo {number}",
                "object_text": "a square",
                "category": "square",
            },
        ],
    }


def make_jsonl(folder, count):
    """The data set as JSON lines with image files; returns its path."""
    (folder / "images").mkdir(parents=True)
    records = [record(number) for number in range(count)]
    for number, item in enumerate(records):
        (folder / item["image"]).write_bytes(photo(number))
    write_region_jsonl(records, folder / "data.jsonl")
    return folder / "data.jsonl"


def make_shards(folder, format, sizes):
    """The data set in shards of these sizes, by the writer for users; returns their paths."""
    dataset = RegionJsonlDataset(make_jsonl(folder / "files", sum(sizes)))
    paths, start = [], 0
    for number, size in enumerate(sizes):
        paths += WRITERS[format](dataset.records[start : start + size], folder / f"part{number}", dataset.image_root)
        start += size
    return paths


def rewrite_tar(path, changes):
    """Puts other bytes in place of members of a tar."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            content = changes.get(member.name, content)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def collate_ids(samples):
    """Ids, epochs and mean colours, for `Probe`."""
    import numpy as np

    return {
        "ids": torch.tensor([int(sample["image_id"]) for sample in samples]),
        "epochs": torch.tensor([sample["epoch"] for sample in samples]),
        "pixels": torch.stack(
            [torch.from_numpy(np.array(sample["image"])).float().mean((0, 1)) for sample in samples]
        ),
    }


class Probe(nn.Module):
    """Learns from what it is shown, with dropout, and keeps the ids."""

    def __init__(self, dropout=0.5):
        super().__init__()
        self.dropout = dropout
        self.layer = nn.Linear(3, 1)
        self.seen = []

    def forward(self, ids, epochs, pixels, return_loss=True):
        self.seen.append(ids.tolist())
        output = self.layer(nn.functional.dropout(pixels / 255, self.dropout, self.training))
        return {"loss": (output[:, 0] - ids / 10).square().mean()}


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
