# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The report of an evaluation: figures, protocols, plots and examples in one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image

from ..image_reading import read_image
from ..region_drawing import draw_outline, outline_region, shrink
from ..regions import box_to_mask, to_mask
from .plots import shown_items
from .results import BenchmarkResult, Figure


# Longest side of a picture, in pixels; best and as many worst examples of a benchmark.
_SIDE, _EXAMPLES = 320, 8
# The region that the model chose, where it is another one.
_CHOSEN = (36, 87, 166)


def render_report(results: Sequence[BenchmarkResult], plots: Mapping[str, Mapping[str, bytes]]) -> str:
    """Makes the HTML of the report.

    Args:
        results: Of one run, at least one, with their items and images.
        plots: PNG files by name, by benchmark; see `plot_result`.

    Returns:
        One HTML page with its styles and pictures in itself, and no script. All texts are escaped.

    Example:
        >>> figures = {"accuracy": Figure(0.5, 0.4, 0.6, count=100, chance=0.5)}
        >>> result = BenchmarkResult("pairs", "t", "<two>", "accuracy", {"name": "default"}, {"name": "m"}, figures, {}, {})
        >>> "&lt;two&gt;" in render_report([result], {})
        True
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": format_figure, "interval": format_interval, "value": _value, "words": _words}
    environment.tests["share"] = is_share
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    sections = []
    for result in results:
        best, worst = choose_examples(result)
        sections.append(
            {
                "result": result,
                "main": result.figures[result.main_figure],
                "plots": {
                    name: _data_url(content, "png") for name, content in plots.get(result.benchmark, {}).items()
                },
                "examples": [
                    ("Right and surest", [_example(item, result) for item in best]),
                    ("Wrong and surest", [_example(item, result) for item in worst]),
                ],
            }
        )
    # Of one run: the same in all results.
    return environment.from_string(template).render(
        sections=sections, model=results[0].model, versions=results[0].versions
    )


def format_figure(figure: Figure | float | None, name: str = "") -> str:
    """A share with three digits after the point, a rank as it is.

    Args:
        figure: Or one of its numbers.
        name: Of the figure.

    Example:
        >>> format_figure(Figure(0.5)), format_figure(12.0, "median rank"), format_figure(None)
        ('0.500', '12', '')
    """
    value = figure.value if isinstance(figure, Figure) else figure
    if value is None:
        return ""
    return f"{value:.3f}" if is_share(name) else f"{value:.4g}"


def format_interval(figure: Figure, name: str = "") -> str:
    """Its ends; see `format_figure`.

    Example:
        >>> format_interval(Figure(0.5, 0.4, 0.6))
        '0.400 to 0.600'
    """
    return "" if figure.low is None else f"{format_figure(figure.low, name)} to {format_figure(figure.high, name)}"


def is_share(name: str) -> bool:
    """Whether a figure of this name is a share, 0 to 1: all but ranks, and cosines and gains, which may be below 0, are.

    Example:
        >>> is_share("text to image R@1"), is_share("text to image median rank"), is_share("two regions: cosine")
        (True, False, False)
    """
    return not (name.endswith(("rank", "cosine")) or name.rpartition(": ")[2].startswith("gain over "))


def choose_examples(result: BenchmarkResult) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The surest right items and the surest wrong ones of those that the main figure counts.

    They are of different images and truths as far as there are, and no more than two of an image. Items that no answer would
    get wrong, `chance` of 1, are left out.

    Example:
        >>> items = [{"key": str(row), "correct": row > 1, "score": row / 4} for row in range(4)]
        >>> figures = {"accuracy": Figure(0.5)}
        >>> best, worst = choose_examples(BenchmarkResult("b", "t", "d", "accuracy", {}, {}, figures, {}, {}, items=items))
        >>> [item["key"] for item in best], [item["key"] for item in worst]
        (['3', '2'], ['1', '0'])
    """
    items = sorted(shown_items(result), key=lambda item: -float(item.get("score", 0)))
    items = [item for item in items if item.get("chance") != 1]
    return tuple(_varied([item for item in items if bool(item["correct"]) is right]) for right in (True, False))


def _varied(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first ones, without a second of an image or a truth unless there are too few, and never a third of an image."""
    chosen, later, seen = [], [], set()
    for item in items:
        marks = {("image", item.get("image")), ("truth", item.get("truth"))} - {("image", None), ("truth", None)}
        (later if marks & seen else chosen).append(item)
        if len(chosen) == _EXAMPLES:
            return chosen
        seen |= marks
    times = Counter(item.get("image") for item in chosen)
    for item in later:
        times[item.get("image")] += 1
        if item.get("image") is None or times[item["image"]] <= 2:
            chosen.append(item)
    return chosen[:_EXAMPLES]


def _example(item: dict[str, Any], result: BenchmarkResult) -> dict[str, Any]:
    found: dict[str, Any] = {"item": item, "picture": None, "found": None, "problem": None}
    # Text to image: what was found is a photo too.
    other = item.get("predicted") if isinstance(item.get("predicted"), str) else None
    try:
        if item.get("image") is not None:
            found["picture"] = _data_url(draw_item(item, result.images[item["image"]]), "jpeg")
        if other in result.images and not item["correct"]:
            found["found"] = _data_url(draw_item({}, result.images[other]), "jpeg")
    # A report of figures is worth having without one of its pictures.
    except (OSError, ValueError, KeyError) as error:
        found["problem"] = f"{type(error).__name__}: {_without_folders(str(error), result)}"
    return found


def _without_folders(text: str, result: BenchmarkResult) -> str:
    """An error's text that names photos by their keys, as the page may be shown to others."""
    for key, path in result.images.items():
        text = text.replace(path, key)
    return text


def draw_item(item: Mapping[str, Any], path: str) -> bytes:
    """An item's photo with its region, and in blue the region that was chosen in its place.

    Args:
        item: With `mask` or `box` (xyxy in pixels), both may be missing, and maybe `predicted_mask` or `predicted_box`.
        path: Of the photo.

    Returns:
        A JPEG file, its longer side at most 320 pixels.

    Raises:
        ValueError: If the photo, a mask or a box cannot be read.

    Example:
        >>> photo = "examples/data/coco_regions/images/000000000030.jpg"
        >>> Image.open(io.BytesIO(draw_item({"box": [20, 31, 340, 280]}, photo))).size
        (320, 214)
    """
    picture = read_image(path, "the photo")
    region, chosen = (_mask(item, picture, prefix) for prefix in ("", "predicted_"))
    drawn = shrink(picture, _SIDE) if region is None else outline_region(picture, region, _SIDE)
    if chosen is not None:
        outline = Image.fromarray((chosen * 255).astype(np.uint8)).resize(drawn.size, Image.Resampling.NEAREST)
        drawn = draw_outline(drawn, outline, _CHOSEN)
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=80)
    return file.getvalue()


def _mask(item: Mapping[str, Any], picture: Image.Image, prefix: str) -> np.ndarray | None:
    mask, box = item.get(f"{prefix}mask"), item.get(f"{prefix}box")
    if mask is not None:
        return to_mask(mask, picture.height, picture.width)
    return None if box is None else box_to_mask(box, picture.height, picture.width)


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _words(value: Any) -> str:
    """Names and texts of an item; several in one line."""
    return "; ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
