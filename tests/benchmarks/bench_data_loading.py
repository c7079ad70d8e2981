# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
What one core of a data loader yields: from image files to the batch of `PixCLIPDataCollator`, one image decoding each.

    python tests/benchmarks/bench_data_loading.py                   # CPU, about 2 minutes

Photos of examples/data/coco_regions, whose longer side is 448 pixels, are also enlarged to 640 pixels, COCO's size, and
1,280. Images come out at 224 pixels, crops too. One process, one thread; the median of the repeats in CPU time.
"""

import argparse
import io
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_pixclip import (
    PixCLIPConfig,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    RegionJsonlDataset,
    get_objective_preset,
)
from processing_pixclip import encode_rle, sample_of_record, to_mask


DATA = Path(__file__).parents[2] / "examples" / "data" / "coco_regions"


def enlarge(record: dict, side: int) -> tuple[dict, bytes]:
    """The record and the JPEG file of its image with the longer side so many pixels long."""
    image = Image.open(DATA / record["image"]).convert("RGB")
    scale = side / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    file = io.BytesIO()
    image.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    regions = []
    for region in record["regions"]:
        mask = Image.fromarray(to_mask(region["mask"], image.height, image.width).astype("uint8") * 255)
        mask = mask.resize(size, Image.Resampling.NEAREST)
        regions.append({**region, "mask": encode_rle(np.asarray(mask) > 0)})
    return {**record, "width": size[0], "height": size[1], "regions": regions}, file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tokens = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1}, unk_token="[unk]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[pad]", unk_token="[unk]")
    processor = PixCLIPProcessor(PixCLIPImageProcessor(), tokenizer)
    records = [r for r in RegionJsonlDataset(DATA / "train.jsonl").records if len(r["regions"]) >= 4]
    records = records[: arguments.images]
    print(f"{platform.machine()}, torch {torch.__version__}, {len(records)} images, one thread")
    print(f"{'side':>6}{'regions':>9}{'preset':>17}{'images/s':>10}{'regions/s':>11}")
    for side in (448, 640, 1280):
        stored = [enlarge(record, side) for record in records]
        for regions in (1, 4):
            for preset in ("pixclip", "fg-clip-stage2"):
                parts = PixCLIPConfig(**get_objective_preset(preset)).batch_parts
                collator = PixCLIPDataCollator(processor, whole_image_share=0, max_regions_per_image=regions, **parts)
                times = []
                for _ in range(arguments.repeats):
                    start = time.process_time()
                    collator(
                        [sample_of_record(record, "record", lambda _, file=file: file) for record, file in stored]
                    )
                    times.append(time.process_time() - start)
                rate = len(records) / statistics.median(times)
                print(f"{side:>6}{regions:>9}{preset:>17}{rate:>10.1f}{rate * regions:>11.1f}", flush=True)


if __name__ == "__main__":
    main()
