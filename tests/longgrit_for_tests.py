# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the tests of whole LongGRIT runs share: small photos with regions, an engine that answers at once, what came out."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet
from faulty_openai_server import DEFAULTS, NOUNS, Writer
from PIL import Image, ImageDraw

from processing_pixclip.longgrit.config import STAGES, LongGritSettings
from processing_pixclip.longgrit.engines import Answer
from processing_pixclip.longgrit.source_stage import manifest_shards, read_manifest_shard
from processing_pixclip.longgrit.sources import SourceError


TIME = "2026-01-01T00:00:00+00:00"


def make_photos(root, images, regions, side=64, seed=0):
    """Writes photos of coloured rectangles with a box each, in the folder format; returns the JSONL file."""
    rng = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(images):
        picture = Image.new("RGB", (side, side), tuple(rng.randrange(256) for _ in range(3)))
        draw = ImageDraw.Draw(picture)
        entries = []
        for _ in range(regions):
            x, y = (rng.randrange(side * 3 // 4) for _ in range(2))
            width, height = (rng.randrange(side // 8, side // 4) for _ in range(2))
            draw.rectangle((x, y, x + width, y + height), tuple(rng.randrange(256) for _ in range(3)))
            entries.append({"box": [x, y, x + width, y + height], "category": rng.choice(NOUNS)})
        picture.save(root / f"{i:05d}.jpg", quality=90)
        lines.append(
            {"image": f"{i:05d}.jpg", "image_id": f"{i:05d}", "width": side, "height": side, "regions": entries}
        )
    path = root / "regions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings_for(path, folder, **fields):
    """Settings of a run over `make_photos`, whose engine is called "openai" and takes no part of the texts for a fault."""
    defaults = {
        "output_dir": folder,
        "source": {"format": "folder", "path": str(path)},
        "filters": {"hash_distance": None, "max_iou": 1.0},
        "model": "tiny",
        "servers": {"here": {"base_url": "http://127.0.0.1:1/v1"}},
        "output": {"images_per_shard": 2},
    }
    for key in ("filters", "output"):
        defaults[key] |= fields.pop(key, {})
    return LongGritSettings(**{**defaults, **fields})


class ScriptedEngine:
    """Answers each stage well, as a function of the request alone, and at once.

    Args:
        script: Called with each request; returns the text of an answer, `None` for a good one, or raises.
        delay: Seconds that an answer takes.
    """

    def __init__(self, script=None, delay=0.0):
        self.script, self.delay = script, delay
        self.asked = Counter()
        self.stages = Counter()
        self.running = self.peak = 0
        self.closed = False

    async def ask(self, request):
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            await asyncio.sleep(self.delay)
            text = self.script(request) if self.script is not None else None
        finally:
            self.running -= 1
        self.asked[request.key] += 1
        self.stages[request.stage] += 1
        return Answer(good_answer(request) if text is None else text, "scripted", TIME, 10, 20, "stop")

    async def close(self):
        self.closed = True


def good_answer(request):
    """JSON in the schema of a request, a function of the request alone."""
    text = "\n".join(message.text for message in request.messages)
    writer = Writer(request.stage, request.key, text, {**DEFAULTS, "inconsistent": 0})
    return json.dumps(writer.write(request.schema))


def rows_of(output):
    """All rows of the dataset, by image."""
    rows = {}
    for path in sorted((Path(output) / "data").glob("*.parquet")):
        for row in pyarrow.parquet.read_table(path).to_pylist():
            assert row["image_id"] not in rows, f"{row['image_id']} is in two shards"
            rows[row["image_id"]] = row
    return rows


def rejected_of(output):
    """All lines of the reject files."""
    files = sorted((Path(output) / "rejected").glob("*.jsonl"))
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


def outcome_of(output):
    """How each region ended, by its identifier, without what hangs on time; that each ended once is checked."""
    ended = {}
    for image_id, row in rows_of(output).items():
        image = without_time({key: value for key, value in row.items() if key != "regions"})
        for region in row["regions"]:
            assert region["region_id"] not in ended
            ended[region["region_id"]] = ("accepted", image_id, without_time(region), image)
    for line in rejected_of(output):
        if line["region_id"] is not None:
            assert line["region_id"] not in ended
            ended[line["region_id"]] = ("rejected", line["stage"], line["reason"], without_time(line))
    return ended


def without_time(item):
    """Of a row: the same without times, addresses of servers, and file contents in full."""
    if isinstance(item, dict):
        return {key: without_time(value) for key, value in item.items() if key not in ("time", "server")}
    if isinstance(item, list):
        return [without_time(value) for value in item]
    return item


def source_regions(output):
    """Identifiers of all regions in the manifest."""
    items = [item for number in range(manifest_shards(output)) for item in read_manifest_shard(output, number)]
    return [region.region_id for item in items if not isinstance(item, SourceError) for region in item.regions]


def assert_all_ended_once(output):
    """Every region of the manifest is in the dataset or in the reject files, once; returns how they ended."""
    ended = outcome_of(output)
    regions = source_regions(output)
    assert sorted(ended) == sorted(regions)
    assert len(set(regions)) == len(regions)
    assert all(end[0] == "accepted" or (end[1] in (*STAGES, "source") and end[2]) for end in ended.values())
    return ended


def assert_whole_files(output):
    """No file is torn, and none of a write that was stopped is left."""
    output = Path(output)
    for path in output.rglob("*"):
        if path.is_file():
            assert not path.name.startswith("."), f"{path} was left behind"
    for number in range(manifest_shards(output)):
        state = json.loads((output / "run" / "shards" / f"{number:05d}.json").read_text())
        path = output / "data" / f"{number:05d}.parquet"
        rows = pyarrow.parquet.read_table(path).num_rows if path.exists() else 0
        assert rows == state["summary"]["images_written"]
