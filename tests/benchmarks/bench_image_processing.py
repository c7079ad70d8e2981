# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
What the image processor's torchvision backend takes of the time that PIL's takes, in one process with one thread.

    python tests/benchmarks/bench_image_processing.py               # CPU, about 1 minute; needs a torchvision

Beside a CPU build of torch, with the folder that `make .torchvision/.installed` makes, behind
`PYTHONPATH=tests/torchvision_on_cpu:.torchvision`.

Photos of examples/data/coco_regions, decoded before, enlarged to the size named; regions are rectangles in the middle.
The two backends take turns; CPU time, median of the repeats. Also printed is how the pixels differ.
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_pixclip import PixCLIPImageProcessor, PixCLIPImageProcessorPil


PHOTOS = Path(__file__).parents[2] / "examples" / "data" / "coco_regions" / "images"


def measure(images: list, arguments: dict, options: dict, repeats: int) -> dict[str, float]:
    """Median milliseconds of CPU time an image, by backend."""
    processors = [cls(**options) for cls in (PixCLIPImageProcessor, PixCLIPImageProcessorPil)]
    times = {processor.backend: [] for processor in processors}
    for repeat in range(repeats + 1):
        for processor in processors:
            start = time.process_time()
            processor(images, **arguments)
            # The first round is to warm up.
            if repeat:
                times[processor.backend].append((time.process_time() - start) / len(images) * 1000)
    return {backend: statistics.median(values) for backend, values in times.items()}


def differences(images: list, options: dict) -> tuple[float, float]:
    """Mean and largest difference of the two backends' pixels, in levels of 0..255."""
    options = {**options, "do_rescale": False, "do_normalize": False}
    pixels, wanted = (
        cls(**options)(images)["pixel_values"] for cls in (PixCLIPImageProcessor, PixCLIPImageProcessorPil)
    )
    difference = np.abs(pixels - wanted)
    return float(difference.mean()), float(difference.max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if PixCLIPImageProcessor is PixCLIPImageProcessorPil:
        parser.error("torchvision cannot be imported; see the head of this file.")
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, {arguments.images} images a call")
    print("| picture | to | resize_mode | with | PIL, ms | torchvision, ms | ratio | mean / largest difference |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    files = sorted(PHOTOS.iterdir())[: arguments.images]
    for height, width in ((480, 640), (960, 1280)):
        images = [Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BICUBIC) for file in files]
        box = [width // 3, height // 3, width // 2, height // 2]
        contents = {
            "images": {},
            "2 masks": {"boxes": [[box, box]] * len(images)},
            "2 masks, 2 crops": {"boxes": [[box, box]] * len(images), "crops": True},
        }
        for size, mode in ((224, "squash"), (336, "squash"), (336, "shortest_edge"), (336, "letterbox")):
            options = {"size": size, "resize_mode": mode}
            mean, largest = differences(images, options)
            for content, regions in contents.items() if mode == "squash" else [("images", {})]:
                times = measure(images, regions, options, arguments.repeats)
                print(
                    f"| {height} x {width} | {size} | {mode} | {content} | {times['pil']:.2f} | "
                    f"{times['torchvision']:.2f} | {times['torchvision'] / times['pil']:.2f} | "
                    f"{mean:.4f} / {largest:.0f} |"
                )


if __name__ == "__main__":
    main()
