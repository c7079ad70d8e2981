# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Results in model cards: entries of the metadata's `model-index`, and tables."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..atomic_files import open_atomic
from .report import format_figure, format_interval
from .results import BenchmarkResult, Figure


_TASK_NAMES = {
    "image-text-retrieval": "Image-text retrieval",
    "zero-shot-image-classification": "Zero-shot region classification",
}
# Metadata of a README.md: between two lines of three dashes, at its beginning; as on the Hub, blanks may stand before.
_METADATA = re.compile(r"\A(\ufeff?\s*---[ \t]*\r?\n)(.*?)(^---[ \t]*\r?(?:\n|\Z))", re.MULTILINE | re.DOTALL)
# The key with its value: to the next line that is neither empty nor indented, nor of a list.
_ENTRY = re.compile(r"^model-index[ \t]*:.*\n?(?:(?:[ \t]*\r?\n)*(?:[ \t]+\S|-(?!--)).*\n?)*", re.MULTILINE)


def evaluation_entries(results: Sequence[BenchmarkResult]) -> list[EvalResult]:
    """Entries for a model card's metadata, one a figure.

    Args:
        results: Of one model.

    Returns:
        For each figure: `dataset_type` the benchmark, `dataset_config` benchmark and preset with what was changed of it,
        `dataset_revision` a hash of the files of annotations, `dataset_args` the fields of the protocol and, as `data`, the
        SHA-256 of each file, `metric_args` interval, count, chance and the SHA-256 of the model's weights.

    Example:
        >>> figures = {"text to image R@1": Figure(0.25, count=4, chance=0.05)}
        >>> result = BenchmarkResult("flickr30k", "image-text-retrieval", "Flickr30k test", "text to image R@1",
        ...     {"name": "default"}, {}, figures, {}, {})
        >>> entry = evaluation_entries([result])[0]
        >>> entry.metric_type, entry.metric_value, entry.dataset_config
        ('recall_at_1', 0.25, 'flickr30k, protocol default')
    """
    # Of two results of the same measurement the later one: the Hub's index has one entry for both.
    results = {_measurement(result): result for result in results}.values()
    return [
        EvalResult(
            task_type=result.task,
            task_name=_TASK_NAMES.get(result.task, result.task.replace("-", " ").capitalize()),
            dataset_type=result.benchmark,
            dataset_name=result.dataset,
            dataset_config=_config(result),
            dataset_revision=_revision(result),
            # A model index has no null.
            dataset_args={field: value for field, value in result.protocol.items() if value is not None}
            | {"data": {path: facts["sha256"] for path, facts in result.data.items()}},
            metric_type=metric_type(name),
            metric_name=name,
            metric_value=round(figure.value, 6),
            metric_args=_details(figure, result.model.get("weights_sha256")),
        )
        for result in results
        for name, figure in result.figures.items()
    ]


def _config(result: BenchmarkResult) -> str:
    return f"{result.benchmark}, protocol {result.protocol_label}"


def _revision(result: BenchmarkResult) -> str | None:
    """A hash of the data that were measured, whatever the dataset's name; `None` where no file is known."""
    if not result.data:
        return None
    lines = "".join(f"{facts['sha256']}  {path}\n" for path, facts in sorted(result.data.items()))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _measurement(result: BenchmarkResult) -> tuple[Any, ...]:
    """The same for a measurement and its repetition: that of `_identity` of its entry."""
    return (result.task, result.benchmark, _config(result), _revision(result))


def metric_type(name: str) -> str:
    """The kind of a figure, as model indexes name it.

    Example:
        >>> [metric_type(name) for name in ("image to text R@5", "full+mask: top-1", "top-5, mean per class", "median rank")]
        ['recall_at_5', 'accuracy', 'top_5_mean_per_class', 'median_rank']
    """
    name = name.rpartition(": ")[2]
    recall = re.search(r"R@(\d+)$", name)
    if recall:
        return f"recall_at_{recall.group(1)}"
    if name in ("top-1", "accuracy") or name.endswith(" accuracy"):
        return "accuracy"
    return re.sub(r"[^a-z0-9]+", "_", name.lower().replace("image to text ", "").replace("text to image ", "")).strip(
        "_"
    )


def _details(figure: Figure, weights: str | None) -> dict[str, Any]:
    details: dict[str, Any] = {"count": figure.count}
    if figure.low is not None:
        details["interval_95"] = [round(figure.low, 6), round(figure.high, 6)]
    if figure.chance is not None:
        details["chance"] = round(figure.chance, 6)
    if weights is not None:
        details["weights_sha256"] = weights
    return details


def add_to_card(folder: str | os.PathLike, results: Sequence[BenchmarkResult]) -> Path:
    """Puts results into the metadata of a model folder's README.md, key `model-index`.

    All other lines stay as they are, byte by byte. Entries of the index stay, but for those of the same benchmark,
    protocol (preset and what was changed of it) and data (hashes of the files), which are replaced. Without a README.md,
    or without metadata in it, they are made. Of an index of several models, that of the folder's name gets them.

    Args:
        folder: Of the model.
        results: Of this model.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the metadata cannot be read, `model-index` is no model index, or tells several models of other names; the
            file stays as it is.

    Example:
        >>> import tempfile
        >>> from huggingface_hub import ModelCard
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "README.md").write_text("---\\nlicense: mit  # mine\\n---\\nMy own words.\\n")
        >>> result = BenchmarkResult("b", "t", "d", "accuracy", {"name": "default"}, {}, {"accuracy": Figure(0.5)}, {}, {})
        >>> card = ModelCard.load(add_to_card(folder, [result]))
        >>> card.data.eval_results[0].metric_value, card.data.license, card.text.strip()
        (0.5, 'mit', 'My own words.')
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; accepted is that of a saved model.")
    # Where it is a link, what it leads to is written.
    path = Path(os.path.realpath(folder / "README.md"))
    try:
        text = path.read_bytes().decode("utf-8") if path.exists() else ""
        content = _with_results(text, results, folder.resolve().name)
        _check_readable(content)
    except (ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is kept as it is, without the results: {error}") from error
    with open_atomic(path) as file:
        file.write(content.encode())
    return folder / "README.md"


def _with_results(text: str, results: Sequence[BenchmarkResult], name: str) -> str:
    found = _METADATA.match(text)
    begin, block, end = found.groups() if found else ("---\n", "", "---\n")
    rest = text[found.end() :] if found else f"\n{text}" if text else ""
    metadata = yaml.safe_load(block) or {}
    if not isinstance(metadata, dict):
        raise ValueError("its metadata is no mapping.")
    (ours,) = eval_results_to_model_index(name, evaluation_entries(results))
    index = metadata.get("model-index") or [{"name": name, "results": []}]
    if not isinstance(index, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("results"), list) and entry.get("name") for entry in index
    ):
        raise ValueError("its model-index is no list of models, each with `name` and `results`.")
    place = _place(name, [entry["name"] for entry in index])
    replaced = [_identity(entry) for entry in ours["results"]]
    kept = [entry for entry in index[place]["results"] if _identity(entry) not in replaced]
    index[place] = {**index[place], "results": kept + ours["results"]}
    new = yaml.safe_dump({"model-index": index}, sort_keys=False, allow_unicode=True, width=120)
    if "\r\n" in begin:
        new = new.replace("\n", "\r\n")
    unlike = "model-index" in metadata and not _ENTRY.search(block)
    if _ENTRY.search(block):
        block = _ENTRY.sub(lambda _: new, block, count=1)
    else:
        block = block + ("" if not block or block.endswith("\n") else "\n") + new
    try:
        unlike = unlike or yaml.safe_load(block) != {**metadata, "model-index": index}
    except yaml.YAMLError:
        unlike = True
    if unlike:
        raise ValueError(
            "model-index stands in its metadata in a form that cannot be replaced; write it as a line `model-index:` and, "
            "below it, lines that are indented or begin with `- `, no comment at the beginning of a line among them."
        )
    return begin + block + end + rest


def _check_readable(content: str) -> None:
    """What the Hub's client cannot read, the Hub does not show."""
    try:
        ModelCard(content)
    except ValueError as error:
        # The rest of its message is of how to load a card.
        raise ValueError(str(error).partition(" Pass `")[0]) from None


def _place(name: str, names: Sequence[str]) -> int:
    """Which model of an index is meant: the only one, or that of the folder's name."""
    if len(names) > 1 and names.count(name) != 1:
        raise ValueError(
            f"its model-index tells several models, {', '.join(map(str, names))}; the folder's name, {name}, must be that of "
            "one of them."
        )
    return names.index(name) if len(names) > 1 else 0


def _identity(entry: dict[str, Any]) -> tuple[Any, ...]:
    if not all(isinstance(entry.get(key), dict) and entry[key].get("type") for key in ("task", "dataset")):
        raise ValueError(f"its model-index has a result without `task` or `dataset`, each with a `type`: {entry}.")
    dataset = entry["dataset"]
    return (entry["task"]["type"], dataset["type"], dataset.get("config"), dataset.get("revision"))


def figure_rows(results: Sequence[BenchmarkResult]) -> list[list[str]]:
    """Rows of a table of all figures: benchmark, protocol, figure, value, 95 % interval, chance, items.

    Example:
        >>> result = BenchmarkResult("b", "t", "d", "accuracy", {"name": "default"}, {}, {"accuracy": Figure(0.5)}, {}, {})
        >>> figure_rows([result])
        [['b', 'default', 'accuracy', '0.500', '', '', '0']]
    """
    return [
        [
            result.benchmark,
            result.protocol_label,
            name,
            format_figure(figure, name),
            format_interval(figure, name),
            format_figure(figure.chance, name),
            f"{figure.count:,}",
        ]
        for result in results
        for name, figure in result.figures.items()
    ]


COLUMNS = ("benchmark", "protocol", "figure", "value", "95 % interval", "chance", "items")


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 3) -> str:
    """A table in Markdown, its columns aligned; the first `left` ones to the left, the others to the right.

    Example:
        >>> print(markdown_table(("figure", "value"), [("top-1", "0.5")], left=1))
        | figure | value |
        | ------ | ----: |
        | top-1  |   0.5 |
    """
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in [columns, *rows]) for place in range(len(columns))]
    lines = [
        [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths))
        ]
        for row in [columns, *rows]
    ]
    rule = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
