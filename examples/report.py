# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The HTML report of a pretraining run: losses, retrieval table, regions with the texts that they find."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageFilter
from region_retrieval import RegionEmbeddings, format_metric, text_rank

from processing_pixclip import to_mask


PHOTOS = 12
REGIONS_PER_PHOTO = 2
TEXTS_PER_REGION = 3


def write_report(
    path: str | os.PathLike,
    log_history: list[dict[str, Any]],
    metrics: dict[str, dict[str, dict[str, float]]],
    dataset: Any,
    embeddings: RegionEmbeddings,
) -> None:
    """
    Writes a self-contained HTML page.

    Args:
        path: The file.
        log_history: The Trainer's.
        metrics: Retrieval metrics by split, see `region_retrieval_metrics`.
        dataset: Region reader whose photos are shown.
        embeddings: Embeddings of all its regions.
    """
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        metrics=metrics,
        curves=_curves(log_history),
        regions=_retrieved(dataset, embeddings),
        texts=len(embeddings.texts),
        format_metric=format_metric,
    )
    temporary = Path(path).with_suffix(".tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def _curves(log_history: list[dict[str, Any]]) -> str:
    """Loss curves as an SVG element."""
    terms = list(dict.fromkeys(key for entry in log_history for key in entry if key.startswith("loss_")))
    colours = [
        f"tab:{name}" for name in ("blue", "orange", "green", "purple", "brown", "pink", "olive", "cyan", "gray")
    ]
    series = [("total", "loss", "black"), ("held-out total", "eval_loss", "tab:red")]
    series += [(term.removeprefix("loss_"), term, colour) for term, colour in zip(terms, colours)]
    recalls = list(
        dict.fromkeys(
            key for entry in log_history for key in entry if key.startswith("eval_") and key.endswith(("_r1", "_r5"))
        )
    )
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure = Figure(figsize=(11, 3.6), layout="constrained")
        losses, recall = figure.subplots(1, 2)
        for name, key, colour in series:
            points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
            if points:
                losses.plot(*zip(*points, strict=True), label=name, color=colour, linewidth=1.5)
        losses.set(xlabel="step", ylabel="loss", title="Losses")
        losses.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        for key in recalls:
            points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
            label = f"{key[5:-3].replace('_', ' ')}, R@{key[-1]}"
            recall.plot(*zip(*points, strict=True), label=label, linewidth=1.5)
            recall.legend(frameon=False)
        recall.set(xlabel="step", ylabel="share", title="Held-out retrieval", ylim=(0, None))
        for axes in (losses, recall):
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def _retrieved(dataset: Any, embeddings: RegionEmbeddings) -> list[dict[str, Any]]:
    """Evenly chosen photos, two regions of each, with the texts nearest to each region."""
    ranks = text_rank(embeddings.masked, embeddings.texts, torch.arange(len(embeddings.texts)))
    texts = [text for index in range(len(dataset)) for text in dataset[index]["texts"]]
    shown = []
    for index in np.unique(np.linspace(0, len(dataset) - 1, PHOTOS).astype(int)):
        sample = dataset[int(index)]
        rows = (embeddings.photo == int(index)).nonzero().flatten().tolist()[:REGIONS_PER_PHOTO]
        for number, row in enumerate(rows):
            nearest = (embeddings.texts @ embeddings.masked[row]).topk(min(TEXTS_PER_REGION, len(texts)))
            shown.append(
                {
                    "picture": _outlined(sample["image"], sample["masks"][number]),
                    "category": sample["categories"][number] or "region",
                    "rank": int(ranks[row]),
                    "own": texts[row],
                    "found": [
                        {"text": texts[text], "score": score, "own": text == row, "same_photo": text in rows}
                        for score, text in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)
                    ],
                }
            )
    return shown


def _outlined(image: Image.Image, mask: Any, longest_side: int = 300) -> str:
    """The picture with the region outlined and the rest dimmed, as a data URL."""
    region = Image.fromarray(np.uint8(to_mask(mask, image.height, image.width) >= 0.5) * 255)
    scale = longest_side / max(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    image, region = image.resize(size, Image.Resampling.LANCZOS), region.resize(size, Image.Resampling.NEAREST)
    dimmed = Image.blend(image, Image.new("RGB", size, "white"), 0.45)
    picture = Image.composite(image, dimmed, region)
    edge = np.asarray(region.filter(ImageFilter.MaxFilter(5))) > np.asarray(region)
    pixels = np.array(picture)
    pixels[edge] = (230, 0, 90)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
