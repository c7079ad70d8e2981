# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Retrieval ranks in tiles against the usual ways: same vectors, one thread, ways take turns.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_metrics.py            # about 4 minutes and 2 GB of memory
    python tests/benchmarks/bench_metrics.py --images 500 --repeats 1     # a quick look

What is scored: R@1, R@5 and R@10, both ways, of 5,000 images with 5 captions each (COCO's test split of Karpathy), unit
vectors of 512 dimensions: noise, with a share of the image in each of its captions so that recalls lie between 0 and 1.

* one-hot: the whole matrix of scores, a boolean matrix of right pairs; for each k and way, in batches of 64 rows, `topk`,
  `one_hot` of the places, times the right pairs, summed. This is how CLIP_benchmark's zeroshot_retrieval computes recall
  (rewritten here; batches as it makes them by default). Gives recalls, no ranks.
* argsort: the whole matrix, each row sorted, the first place of a right item looked up. Gives all ranks.
* topk, gathered: the whole matrix, one `topk` of 10 a way, places compared by number. What one-hot could be without its one_hot.
* ours: `bidirectional_ranks`. Gives all ranks, with a rule for ties.

All ways must agree on all recalls, or the script fails. Seconds are CPU time of the process, products included; each way is
run `--repeats` times, in turns, and the least counts. Peak memory is that of a process of its own that runs only this way,
above what it held with the vectors ready.
"""

import argparse
import ctypes
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from processing_pixclip.evaluation.retrieval_ranks import bidirectional_ranks, recall_at


KS = (1, 5, 10)
CAPTIONS = 5
BATCH = 64


def vectors(images, width, seed=0):
    """Unit vectors of images (B, D) and captions (5 * B, D); captions 5 i to 5 i + 4 are those of image i."""
    generator = np.random.default_rng(seed)
    image = generator.standard_normal((images, width), dtype=np.float32)
    text = generator.standard_normal((images * CAPTIONS, width), dtype=np.float32)
    text += 0.15 * image.repeat(CAPTIONS, axis=0)
    return tuple(rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text))


def by_one_hot(image, text):
    scores = torch.from_numpy(text) @ torch.from_numpy(image).T
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[torch.arange(len(text)), torch.arange(len(text)) // CAPTIONS] = True
    recalls = {}
    for direction, matrix, pairs in (("image to text", scores.T, right.T), ("text to image", scores, right)):
        for k in KS:
            hits = []
            for start in range(0, len(matrix), BATCH):
                part, part_pairs = matrix[start : start + BATCH], pairs[start : start + BATCH]
                places = part.topk(k, dim=1).indices
                found = torch.nn.functional.one_hot(places, num_classes=part.shape[1]) * part_pairs.unsqueeze(1)
                hits.append(found.sum(dim=(1, 2)) / part_pairs.sum(dim=1) > 0)
            recalls[f"{direction} R@{k}"] = torch.cat(hits).float().mean().item()
    return recalls


def by_topk(image, text):
    scores = torch.from_numpy(text) @ torch.from_numpy(image).T
    recalls = {}
    for direction, matrix in (("image to text", scores.T), ("text to image", scores)):
        places = matrix.topk(max(KS), dim=1).indices
        if direction == "image to text":
            right = places // CAPTIONS == torch.arange(len(image))[:, None]
        else:
            right = places == torch.arange(len(text))[:, None] // CAPTIONS
        for k in KS:
            recalls[f"{direction} R@{k}"] = right[:, :k].any(dim=1).float().mean().item()
    return recalls


def by_argsort(image, text):
    scores = text @ image.T
    recalls = {}
    for direction, matrix in (("image to text", scores.T), ("text to image", scores)):
        ranks = np.empty(len(matrix), dtype=np.int64)
        for row, values in enumerate(matrix):
            order = np.argsort(-values)
            right = order // CAPTIONS == row if direction == "image to text" else order == row // CAPTIONS
            ranks[row] = 1 + np.argmax(right)
        for k in KS:
            recalls[f"{direction} R@{k}"] = float((ranks <= k).mean())
    return recalls


def by_tiles(image, text):
    relevant = np.arange(0, len(text) + 1, CAPTIONS), np.arange(len(text))
    both = bidirectional_ranks(image, text, relevant)
    return {
        f"{direction} R@{k}": recall_at(ranks, k)
        for direction, ranks in zip(("image to text", "text to image"), both, strict=True)
        for k in KS
    }


WAYS = {"one-hot": by_one_hot, "argsort": by_argsort, "topk, gathered": by_topk, "ours": by_tiles}


def peak_memory(way, images, width):
    """Megabytes of the resident set above what was held before; of a process that does nothing else, on Linux."""
    image, text = vectors(images, width)
    WAYS[way](image[:16], text[: 16 * CAPTIONS])
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    # Resets the kernel's high-water mark of this process.
    Path("/proc/self/clear_refs").write_text("5")
    WAYS[way](image, text)
    return (resident("VmHWM") - before) / 1000


def resident(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1.024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument(
        "--peak", choices=WAYS, help="only print the peak memory of this way (used by the script itself)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        print(peak_memory(arguments.peak, arguments.images, arguments.width))
        return

    image, text = vectors(arguments.images, arguments.width)
    seconds, recalls = {}, {}
    for _ in range(arguments.repeats):
        for way in arguments.ways:
            start = time.process_time()
            recalls[way] = WAYS[way](image, text)
            seconds[way] = min(seconds.get(way, np.inf), time.process_time() - start)
    reference = recalls[arguments.ways[0]]
    for way, found in recalls.items():
        for name, value in found.items():
            if abs(value - reference[name]) > 1e-6:
                raise SystemExit(f"{name} is {value} by {way}, {reference[name]} by {arguments.ways[0]}")

    peaks = {}
    for way in arguments.ways:
        command = [
            sys.executable,
            __file__,
            "--peak",
            way,
            "--images",
            str(arguments.images),
            "--width",
            str(arguments.width),
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[way] = float(found.stdout)

    print(f"{len(image):,} images, {len(text):,} captions, {arguments.width} dimensions, one thread;", end=" ")
    print(f"torch {torch.__version__}, numpy {np.__version__}, {platform.machine()}")
    print(json.dumps({name: round(value, 4) for name, value in reference.items()}))
    print("\n| way | CPU seconds | ours is faster by | peak memory, MB |\n|---|---|---|---|")
    for way in arguments.ways:
        ratio = seconds[way] / seconds["ours"] if "ours" in seconds else float("nan")
        print(f"| {way} | {seconds[way]:.2f} | {ratio:.1f} x | {peaks[way]:,.0f} |")


if __name__ == "__main__":
    main()
