# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The report of a LongGRIT run: what became of the regions, in one HTML file that needs no other, and as JSON."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from ..region_drawing import outline_region
from ..region_records import open_stored_image
from ..regions import box_to_mask, to_mask
from .config import LongGritSettings
from .dataset_card import RULES_NAME
from .dataset_writer import hide_folders
from .image_store import ImageStore
from .run_folder import write_atomically
from .run_summary import LENGTH_STEP


REPORT_FILES = ("report.html", "report.json")

# Longest side of a picture, in pixels.
_SIDE = 448
# Width and height of the histogram's bars, in pixels of its drawing.
_CHART = (640, 150)


def draw_region(content: bytes, sample: Mapping[str, Any]) -> bytes:
    """Draws a sample's region on its photo: its outline, and all else paler.

    Args:
        content: The image file.
        sample: One of the samples of `summarise_shard`.

    Returns:
        A JPEG file, its longer side at most 448 pixels.

    Raises:
        ValueError: If the image, the mask or the box cannot be read.

    Example:
        >>> from PIL import Image
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (64, 48), "green").save(file, "PNG")
        >>> sample = {"image_id": "1", "width": 64, "height": 48, "mask": None, "box": [8, 8, 40, 40]}
        >>> Image.open(io.BytesIO(draw_region(file.getvalue(), sample))).size
        (64, 48)
    """
    width, height = sample["width"], sample["height"]
    picture = open_stored_image(content, f"image {sample['image_id']!r}", (width, height))
    if sample["mask"] is not None:
        mask = to_mask(sample["mask"], height, width)
    else:
        mask = box_to_mask(sample["box"], height, width)
    picture = outline_region(picture, mask, _SIDE)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()


def _with_picture(sample: dict[str, Any], store: ImageStore) -> dict[str, Any]:
    try:
        content = draw_region(store.read(sample["location"]), sample)
    # A rejected region may have been rejected for just that.
    except (OSError, ValueError) as error:
        return {**sample, "picture": None, "problem": f"{type(error).__name__}: {error}"}
    return {**sample, "picture": f"data:image/jpeg;base64,{base64.b64encode(content).decode('ascii')}"}


def _length_bars(histogram: Mapping[str, int]) -> list[dict[str, Any]]:
    """Bars of the histogram of lengths, those without a text in between too; its ends are far ones at most once."""
    if not histogram:
        return []
    first, last = min(map(int, histogram)), max(map(int, histogram))
    # A text of a thousand words would leave all bars as thin as a hair.
    step = LENGTH_STEP * max(1, -(-(last - first) // (60 * LENGTH_STEP)))
    first = first // step * step
    counts = [0] * ((last - first) // step + 1)
    for words, count in histogram.items():
        counts[(int(words) - first) // step] += count
    width, height = _CHART
    slot, highest = min(60.0, width / len(counts)), max(counts)
    return [
        {
            "words": f"{first + place * step} to {first + (place + 1) * step - 1}",
            "label": str(first + place * step) if place % -(-len(counts) // 16) == 0 else "",
            "count": count,
            "x": round(place * slot, 2),
            "y": round(height - height * count / highest, 2),
            "width": round(slot * 0.88, 2),
            "height": round(height * count / highest, 2),
        }
        for place, count in enumerate(counts)
    ]


def _cost(summary: Mapping[str, Any], settings: LongGritSettings) -> float | None:
    prices = settings.price_per_million
    if not prices:
        return None
    counts = [counts for models in summary["models"].values() for counts in models.values()]
    tokens = {kind: sum(entry[f"{kind}_tokens"] for entry in counts) for kind in ("prompt", "completion")}
    return (tokens["prompt"] * prices.get("input", 0) + tokens["completion"] * prices.get("output", 0)) / 1e6


def render_report(summary: Mapping[str, Any], settings: LongGritSettings, store: ImageStore) -> str:
    """Makes the HTML of the report.

    Args:
        summary: Of the run, see `merge_summaries`.
        settings: Of the run.
        store: Reads the photos of the samples; one that cannot be read is told as such in its place.

    Returns:
        One HTML page with its styles and pictures in itself, and no script. All texts are escaped.

    Example:
        >>> from processing_pixclip.longgrit.run_summary import summarise_shard
        >>> settings = LongGritSettings(output_dir="out", source={"format": "folder", "path": "a.jsonl"}, engine="rules")
        >>> "<h1>" in render_report(summarise_shard([]), settings, ImageStore("."))
        True
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: f"{value:,}"
    environment.filters["share"] = lambda part, whole: f"{100 * part / whole:.1f} %" if whole else "-"
    template = Path(__file__).with_name("run_report.html.jinja").read_text(encoding="utf-8")
    summary = {
        **summary,
        "samples": [_with_picture(sample, store) for sample in summary["samples"]],
        "reject_samples": [
            {**_with_picture(sample, store), "stage": stage, "reason": reason}
            for stage, reasons in summary["reject_samples"].items()
            for reason, samples in reasons.items()
            for sample in samples
        ],
    }
    summary = hide_folders(summary, settings)
    counts = [entry for models in summary["models"].values() for entry in models.values()]
    reasons = [(stage, reason, n) for stage, found in summary["rejected"].items() for reason, n in found.items()]
    return environment.from_string(template).render(
        summary=summary,
        title=settings.output.dataset_name,
        tokens=sum(entry["prompt_tokens"] + entry["completion_tokens"] for entry in counts),
        answers=sum(entry["answers"] for entry in counts),
        cost=_cost(summary, settings),
        reasons=sorted(reasons, key=lambda entry: -entry[2]),
        mean_words=round(summary["words"]["total"] / summary["accepted"]) if summary["accepted"] else 0,
        bars=_length_bars(summary["words"]["histogram"]),
        chart=_CHART,
        rules_name=RULES_NAME,
    )


def write_report(
    output_dir: str | os.PathLike, summary: Mapping[str, Any], settings: LongGritSettings, store: ImageStore
) -> Path:
    """Writes `report.html`, see `render_report`, and `report.json`, which is the summary.

    Args:
        output_dir: Where to.
        summary: See `render_report`.
        settings: See `render_report`.
        store: See `render_report`.

    Returns:
        The HTML file.

    Example:
        >>> import tempfile
        >>> from processing_pixclip.longgrit.run_summary import summarise_shard
        >>> folder = tempfile.mkdtemp()
        >>> settings = LongGritSettings(output_dir=folder, source={"format": "folder", "path": "a.jsonl"}, engine="rules")
        >>> write_report(folder, summarise_shard([]), settings, ImageStore(folder)).name
        'report.html'
    """
    path, content = (Path(output_dir) / name for name in REPORT_FILES)
    # Escaped, because a rejected text may hold what has no UTF-8 form.
    write_atomically(path, render_report(summary, settings, store).encode("utf-8", "xmlcharrefreplace"))
    write_atomically(content, json.dumps(hide_folders(summary, settings), indent=1) + "\n")
    return path
