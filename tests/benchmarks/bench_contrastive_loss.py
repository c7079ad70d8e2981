# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Time and memory of one contrastive loss, forward and backward, in ways that take turns in one process.

    usual           two products, image by text and text by image, and a cross-entropy of each (open_clip, CLIP)
    one product     one product and a cross-entropy over its rows and one over its columns: ours up to 2,048 pairs
    tiled           ours above 2,048 pairs
    usual sigmoid   one product and a log-sigmoid of all of it (SigLIP)
    tiled sigmoid   ours above 2,048 pairs

Time is the CPU time of the process, the median over repeats; with one thread (the default) other work on the machine
disturbs it little. A speed-up is the median over repeats of the ratio within a repeat. Memory is taken in a process of
its own for each way, forked before anything else has run: how far the high-water mark of its resident memory (Linux:
VmHWM, reset before) rises above what it had with the embeddings made and a small loss run; the gradients are part of it.
With `--device cuda` time is wall clock between synchronisations, and memory that of PyTorch's allocator.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_contrastive_loss.py --repeats 3
    python tests/benchmarks/bench_contrastive_loss.py --device cuda --width 768 --pairs 1024 4096 16384 32768
"""

import argparse
import multiprocessing
import re
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from modeling_pixclip import losses


def usual(images, texts, scale, bias):
    targets = torch.arange(len(images), device=images.device)
    logits_per_image = scale * images @ texts.T
    logits_per_text = scale * texts @ images.T
    return (F.cross_entropy(logits_per_image, targets) + F.cross_entropy(logits_per_text, targets)) / 2


def usual_sigmoid(images, texts, scale, bias):
    logits = scale * images @ texts.T + bias
    return -F.logsigmoid(logits * (2 * torch.eye(len(images), device=images.device) - 1)).sum() / len(images)


def ours(plain_rows, **options):
    def loss(images, texts, scale, bias):
        losses.PLAIN_ROWS = plain_rows
        return losses.contrastive_loss(images, texts, scale, logit_bias=bias, **options)

    return loss


WAYS = {
    "usual": usual,
    "one product": ours(1 << 40),
    "tiled": ours(0),
    "usual sigmoid": usual_sigmoid,
    "tiled sigmoid": ours(0, loss_type="sigmoid"),
}


def random_pairs(pairs, width, device="cpu"):
    torch.manual_seed(0)
    embeds = (F.normalize(torch.randn(pairs, width), dim=-1) for _ in range(2))
    values = (*embeds, torch.tensor(1 / 0.07), torch.tensor(-10.0))
    return [value.to(device).requires_grad_() for value in values]


def clock(device):
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def seconds(way, inputs):
    device = inputs[0].device
    start = clock(device)
    torch.autograd.grad(WAYS[way](*inputs), inputs, allow_unused=True)
    return clock(device) - start


def resident(name):
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measure_peak(way, pairs, width, result):
    inputs = random_pairs(pairs, width)
    seconds(way, random_pairs(64, width))
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds(way, inputs)
    result.value = resident("VmHWM") - before


def allocated_peak(way, pairs, width, device):
    inputs = random_pairs(pairs, width, device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    seconds(way, inputs)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak(way, pairs, width, device):
    if device == "cuda":
        return allocated_peak(way, pairs, width, device)
    processes = multiprocessing.get_context("fork")
    result = processes.Value("d")
    process = processes.Process(target=measure_peak, args=(way, pairs, width, result))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{way}, {pairs} pairs, ended with exit code {process.exitcode}; was there memory for it?")
    return result.value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    peaks = {pairs: {way: peak(way, pairs, args.width, args.device) for way in args.ways} for pairs in args.pairs}
    where = f"{torch.get_num_threads()} threads" if args.device == "cpu" else torch.cuda.get_device_name()
    print(f"torch {torch.__version__}, {where}, width {args.width}, float32")
    print("| pairs | way | speed-up over usual | least-most | seconds | peak MB | peak of usual over it |")
    print("|---|---|---|---|---|---|---|")
    for pairs in args.pairs:
        inputs = random_pairs(pairs, args.width, args.device)
        times = {way: [] for way in args.ways}
        for _ in range(args.repeats + 1):
            for way in args.ways:
                times[way].append(seconds(way, inputs))
        for way in args.ways:
            base = "usual sigmoid" if "sigmoid" in way else "usual"
            # The first turn of each warms up.
            ratios = [one / other for one, other in zip(times[base][1:], times[way][1:], strict=True)]
            print(
                f"| {pairs:,} | {way} | {statistics.median(ratios):.2f} | {min(ratios):.2f}-{max(ratios):.2f} | "
                f"{statistics.median(times[way][1:]):.4f} | {peaks[pairs][way]:.0f} | {peaks[pairs][base] / peaks[pairs][way]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
