# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
What the LongGRIT pipeline itself costs, beside the models: a synthetic source and a stub that answers all five stages at once.

    python tests/benchmarks/bench_longgrit.py                       # 100,000 regions, about 3 minutes
    python tests/benchmarks/bench_longgrit.py --regions 1000000     # half an hour; memory stays the same
    python tests/benchmarks/bench_longgrit.py --regions 20000 --profile

No image is read, so what is measured is ours alone: manifest, prompts, keys, journal, checks, shards, report. Peak memory is
that of the process, with all that is imported.
"""

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from processing_pixclip.longgrit.config import LongGritSettings
from processing_pixclip.longgrit.engines import Answer
from processing_pixclip.longgrit.records import SourceImage, SourceRegion
from processing_pixclip.longgrit.runner import run_pipeline
from processing_pixclip.longgrit.source_stage import run_source_stage


sys.path.insert(0, str(Path(__file__).parents[1]))

from faulty_openai_server import DEFAULTS, NOUNS, Writer


SIDE = 640


class SyntheticSource:
    """Images that are nowhere, each with boxes of a category, made of their position alone."""

    def __init__(self, regions, regions_per_image):
        self.images, self.regions_per_image = -(-regions // regions_per_image), regions_per_image

    def __len__(self):
        return self.images

    def fingerprint(self):
        return f"synthetic-{self.images}-{self.regions_per_image}"

    def read(self, start, stop):
        for position in range(start, stop):
            rng = random.Random(position)
            name = f"{position:09d}"
            regions = []
            for i in range(self.regions_per_image):
                left, top = (rng.randrange(SIDE - 200) for _ in range(2))
                box = (left, top, left + rng.randrange(60, 200), top + rng.randrange(60, 200))
                regions.append(SourceRegion(f"{name}#{i}", tuple(map(float, box)), None, "box", rng.choice(NOUNS)))
            location = {"path": f"{name}.jpg"}
            yield SourceImage(name, f"{name}.jpg", location, SIDE, SIDE, tuple(regions), ("A photo.",))


class Stub:
    """Answers every request at once, from answers that were written before, and knows what it took itself."""

    def __init__(self):
        self.answers = {}
        self.requests, self.seconds = 0, 0.0

    async def ask(self, request):
        start = time.perf_counter()
        noun = request.work.region.category
        key = request.stage, noun, request.work.region.region_id[-1]
        if key not in self.answers:
            # Of a stage and noun: the negatives must be of the text.
            content = f"{noun}{key[-1]}"
            text = request.work.text or noun
            writer = Writer(request.stage, content, text, {**DEFAULTS, "inconsistent": 0})
            self.answers[key] = json.dumps(writer.write(request.schema))
        self.requests += 1
        self.seconds += time.perf_counter() - start
        await asyncio.sleep(0)
        return Answer(self.answers[key], "stub", "2026-01-01T00:00:00+00:00", 700, 100, "stop")

    async def close(self):
        pass


class MemoryLog:
    """Prints time and memory now and then."""

    def __init__(self, step):
        self.step, self.next, self.regions, self.start_time = step, step, 0, time.monotonic()

    def start(self, total_regions, done=0):
        self.start_time = time.monotonic()

    def update(self, accepted=0, rejected=0, requests=0, tokens=0):
        self.regions += accepted + rejected
        if self.regions >= self.next:
            self.next += self.step
            seconds = time.monotonic() - self.start_time
            print(
                f"{self.regions:>10}{self.regions / seconds:>12.0f}{1000 * seconds / self.regions:>12.2f}"
                f"{memory_now():>12.0f}{memory_peak():>12.0f}",
                flush=True,
            )

    def source(self, images, total_images):
        pass


def memory_now():
    """Resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def memory_peak():
    """Its peak so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=100_000)
    parser.add_argument("--regions_per_image", type=int, default=6)
    parser.add_argument("--output_dir", type=Path, help="kept; by default a temporary folder")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    arguments = parser.parse_args()
    folder = arguments.output_dir or Path(tempfile.mkdtemp(prefix="bench_longgrit_"))
    settings = LongGritSettings(
        output_dir=folder,
        source={"format": "folder", "path": str(folder / "none.jsonl")},
        filters={"hash_distance": None, "max_iou": 1.0},
        model="stub",
        servers={"stub": {"base_url": "http://127.0.0.1:1/v1"}},
        output={"images": "path"},
    )
    source, stub = SyntheticSource(arguments.regions, arguments.regions_per_image), Stub()
    print(f"{len(source)} images of {arguments.regions_per_image} regions; imports alone take {memory_now():.0f} MB")
    start = time.monotonic()
    run_source_stage(settings, source=source)
    seconds = time.monotonic() - start
    print(f"source stage: {1000 * seconds / arguments.regions:.3f} ms a region, {memory_peak():.0f} MB")
    profile = cProfile.Profile()
    log = MemoryLog(max(1, arguments.regions // 20))
    print(f"{'regions':>10}{'regions/s':>12}{'ms/region':>12}{'MB now':>12}{'MB peak':>12}")
    wall, cpu = time.monotonic(), time.process_time()
    if arguments.profile:
        profile.enable()
    summary = run_pipeline(settings, source=source, engines={"openai": stub}, progress=log)
    profile.disable()
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    regions = summary["regions"]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(
        f"{regions} regions, {summary['accepted']} accepted, {stub.requests / regions:.2f} requests a region: "
        f"{1000 * wall / regions:.2f} ms a region ({1000 * cpu / regions:.2f} ms CPU, of which the stub "
        f"{1000 * stub.seconds / regions:.2f}), peak {memory_peak():.0f} MB, {size / regions / 1000:.1f} kB on disk a region"
    )
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)
    if arguments.output_dir is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
