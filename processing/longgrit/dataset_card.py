# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The page of a LongGRIT dataset: metadata that the Hub and `datasets` read, statistics, how it was made, licences."""

from __future__ import annotations

import html
import os
import re
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCard, DatasetCardData
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .config import LongGritSettings
from .dataset_writer import CARD_FILE, SHARDS, dataset_features, finish_dataset, hide_folders
from .run_folder import write_atomically


RULES_NAME = "rules"
"""Model name of the built-in annotator, see `LongGritSettings.model_of`."""

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_AT_START = re.compile(r"^([-+=#:]|\d+(?=[.)]))")
# What renderers make a link of without being asked.
_LINK = re.compile(r"(:(?=//)|(?<=www)\.)", re.IGNORECASE)
# Those that the Hub knows by these names, as far as they are common for data.
_HUB_LICENCES = frozenset(
    "apache-2.0 mit cc0-1.0 cc-by-2.0 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nd-4.0 cc-by-nc-nd-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 "
    "odc-by odbl pddl openrail unknown other".split()
)
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def markdown_text(value: Any) -> Markup:
    """A value as Markdown that shows it and does nothing else, on one line, fit for a table.

    Example:
        >>> print(markdown_text("<b>a|b</b>\\n---\\n*c* www.d.e"))
        &lt;b&gt;a\\|b&lt;/b&gt; --- \\*c\\* www\\.d.e
    """
    if isinstance(value, Markup):
        return value
    marks = (" " if unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Zl", "Zp") else mark for mark in str(value))
    text = _SPECIAL.sub(r"\\\1", html.escape(" ".join("".join(marks).split()), quote=False))
    text = _LINK.sub(r"\\\1", text)
    return Markup(_AT_START.sub(lambda found: f"{found[1]}\\" if found[1].isdigit() else f"\\{found[1]}", text))


def render_card(
    summary: dict[str, Any], settings: LongGritSettings, sizes: dict[str, dict[str, int]] | None = None
) -> DatasetCard:
    """Makes the card of a dataset.

    Args:
        summary: Of the run, see `merge_summaries`.
        settings: Of the run; its parquet shards are looked at for `dataset_info`.
        sizes: What `finish_dataset` returned.

    Returns:
        The card. Texts, names and reasons in it come from data and models, and are shown as they are: none of them can
        add markup or metadata.

    Example:
        >>> from processing_pixclip.longgrit.config import LongGritSettings
        >>> from processing_pixclip.longgrit.run_summary import summarise_shard
        >>> settings = LongGritSettings(output_dir="out", source={"format": "folder", "path": "a.jsonl"}, engine="rules")
        >>> render_card(summarise_shard([]), settings).data.language
        ['en']
    """
    sizes = sizes or {}
    environment = Environment(undefined=StrictUndefined, finalize=markdown_text, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value: f"{value:,}"
    template = Path(__file__).with_name("dataset_card.md.jinja").read_text(encoding="utf-8")
    words = summary["words"]
    models = {model for models in summary["models"].values() for model in models}
    body = environment.from_string(template).render(
        summary=summary,
        settings=settings,
        formats=sorted(sizes),
        shard_of_paths=settings.output.images == "path" and "parquet" in sizes,
        enabled=settings.enabled_stages,
        mean_words=round(words["total"] / summary["accepted"]) if summary["accepted"] else 0,
        rejected=sum(sum(reasons.values()) for reasons in summary["rejected"].values()),
        by_rules=RULES_NAME in models,
        by_models=bool(models - {RULES_NAME}),
        checked=bool(summary["models"].get("verify", {}).keys() - {RULES_NAME}),
        rules_name=RULES_NAME,
        sample=summary["samples"][0] if summary["samples"] else None,
    )
    data = _card_data(summary, settings, sizes)
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{body}")


def _card_data(
    summary: dict[str, Any], settings: LongGritSettings, sizes: dict[str, dict[str, int]]
) -> DatasetCardData:
    images = summary["images_written"]
    name = settings.output.dataset_name
    data = DatasetCardData(
        # Shown by pages that may not escape it.
        pretty_name=" ".join(re.sub(r"[<>]", " ", name).split()),
        language=[settings.texts.language] if settings.texts.language else None,
        annotations_creators=["machine-generated"],
        task_categories=["image-to-text", "image-feature-extraction"],
        size_categories=[next((size for limit, size in _SIZES if images < limit), "n>10M")],
        tags=[
            *("longgrit", "pixclip", "region-captions", "segmentation-masks"),
            *(["hard-negatives"] if summary["hard_negatives"] else []),
            "synthetic",
        ],
        **_licence(settings.output.dataset_licence),
    )
    if "parquet" in sizes:
        info = _dataset_info(settings.output_dir / SHARDS["parquet"], sizes["parquet"], settings.output.images)
        DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    if sizes:
        # Of tars beside the parquet files no second configuration: it would hold the same.
        path = "data/*.parquet" if "parquet" in sizes else "webdataset/*.tar"
        files = [{"split": "train", "path": path}]
        data["configs"] = [{"config_name": "default", "data_files": files}]
    return data


def _dataset_info(folder: Path, sizes: dict[str, int], images: str) -> DatasetInfo:
    num_bytes = 0
    for name in sizes:
        metadata = pyarrow.parquet.read_metadata(folder / name)
        num_bytes += sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return DatasetInfo(
        features=dataset_features(images),
        splits={"train": {"name": "train", "num_bytes": num_bytes, "num_examples": sum(sizes.values())}},
        download_size=sum((folder / name).stat().st_size for name in sizes),
        dataset_size=num_bytes,
    )


def _licence(licence: str | None) -> dict[str, str]:
    """What the Hub is told: it refuses names that it does not know."""
    if licence is None:
        return {}
    if licence.lower() in _HUB_LICENCES:
        return {"license": licence.lower()}
    return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", licence.lower()).strip("-") or "other"}


def write_card(output_dir: str | os.PathLike, summary: dict[str, Any], settings: LongGritSettings) -> Path:
    """Ends the data of a run: writes `sizes.json` beside the shards and the card, `README.md`.

    Args:
        output_dir: Output folder of a run whose shards are all written.
        summary: See `render_card`.
        settings: See `render_card`.

    Returns:
        The card's file.

    Example:
        >>> import tempfile
        >>> from processing_pixclip.longgrit.config import LongGritSettings
        >>> from processing_pixclip.longgrit.run_summary import summarise_shard
        >>> folder = tempfile.mkdtemp()
        >>> settings = LongGritSettings(output_dir=folder, source={"format": "folder", "path": "a.jsonl"}, engine="rules")
        >>> write_card(folder, summarise_shard([]), settings).name
        'README.md'
    """
    path = Path(output_dir) / CARD_FILE
    summary = hide_folders(summary, settings)
    write_atomically(path, str(render_card(summary, settings, finish_dataset(output_dir))))
    return path
