# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The tables of a model card, from a configuration, the record of a training run and its measurements."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from transformers.configuration_utils import PreTrainedConfig

from .card_text import NOT_RECORDED, cell, code, count, duration, number, one_line, without_local_paths
from .objective_presets import OBJECTIVE_PRESETS, get_objective_preset


Rows = list[tuple[str, str]]

# Rows of a table of results that show what the others are to be compared with.
CONTROLS = ("other region's mask", "no mask", "chance")
_TIMES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
_NAMES = {"right_of_two": "right of two", "loss": "loss"}
_EXPLAINED = {
    "r1": "R@k: share whose own text is among the k nearest of all texts of the split.",
    "right_of_two": "Right of two: of two regions of one photo, the own text is nearer than the other's.",
}


def _place(value: Any) -> str:
    """A folder or file, of which no absolute path is told."""
    return cell(without_local_paths(value)) if value is not None else NOT_RECORDED


def _folder_or_id(value: str) -> str:
    return f"a folder named {cell(Path(value).resolve().name)}" if os.path.isdir(value) else _place(value)


def architecture_rows(config: PreTrainedConfig, processor: Any, vision_origin: str | None) -> Rows:
    """What the model is made of."""
    vision, text = config.vision_config, config.text_config
    backbone = text.backbone_text_config
    stem = vision.stem_config
    origins = {None: NOT_RECORDED, "scratch": "random weights" + ("" if stem is None else "; its stem not recorded")}
    size = vision.image_size if isinstance(vision.image_size, int) else " x ".join(map(str, vision.image_size))
    positions = "learned and 2-D rotary positions" if vision.use_rope else "learned positions"
    rows = [
        (
            "Vision tower",
            f"ViT: {vision.num_hidden_layers} blocks, {vision.hidden_size} wide, {vision.num_attention_heads} heads, "
            f"{vision.mlp_type} of {vision.intermediate_size} ({cell(vision.hidden_act)}), {positions}",
        ),
        ("Vision tower started from", origins.get(vision_origin) or _folder_or_id(vision_origin)),
        ("Image and patch", f"{size} pixels, patches of {vision.patch_size}"),
        (
            "Mask input",
            f"one channel, a patch convolution beside that of the image; normalised by mean {vision.mask_mean} and "
            f"standard deviation {vision.mask_std}; without a mask: "
            + ("a mask of ones" if vision.default_mask == "full" else "no mask"),
        ),
        (
            "Text backbone",
            f"{cell(backbone.model_type)}: {cell(getattr(backbone, 'num_hidden_layers', None))} layers, "
            f"{backbone.hidden_size} wide, {number(getattr(backbone, 'vocab_size', None))} tokens"
            + (", attends in both directions" if getattr(backbone, "is_causal", None) is False else ""),
        ),
        ("Text backbone from", _backbone_origin(text)),
        ("Text backbone in this repository", _where_backbone_is(text)),
        (
            "Text projection",
            f"adapter of {text.adapter_layers} blocks, then linear"
            if text.projection_type == "adapter"
            else "one linear layer",
        ),
        ("Pooling", cell(text.pooling)),
        ("Embedding", f"{config.projection_dim} wide"),
    ]
    if stem is not None:
        network = (
            f"{cell(stem.model_type)}, frozen: its last map, {vision.stem_channels} channels, a cell each {vision.stem_stride} "
            "pixels, is cut into patches in place of pixels"
        )
        rows.insert(1, ("Stem of the vision tower", network))
    if text.long_text_projection:
        rows.append(("Long captions", "a projection of their own"))
    template, longest = getattr(processor, "text_template", None), getattr(processor, "text_max_length", None)
    rows.append(
        ("Text template", NOT_RECORDED if template is None else code(json.dumps(template, ensure_ascii=False)))
    )
    rows.append(("Longest text", NOT_RECORDED if longest is None else f"{number(longest)} tokens, template included"))
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is not None:
        rows.append(("Images are brought to size by", cell(getattr(image_processor, "resize_mode", NOT_RECORDED))))
    return rows


def _backbone_origin(text: PreTrainedConfig) -> str:
    source = text.backbone_source
    if source is None:
        return NOT_RECORDED
    if "folder" in source:
        origin = f"a folder named {cell(os.path.basename(source['folder'].rstrip('/')))}, revision {NOT_RECORDED}"
    else:
        origin = f"{code(source['repo_id'])}, revision {code(source['revision'] or NOT_RECORDED)}"
    changed = f"; {cell(source['changed'])}" if "changed" in source else ""
    return f"{origin}, SHA-256 of its configuration {code(source['config_sha256'][:16])}{changed}"


def _where_backbone_is(text: PreTrainedConfig) -> str:
    if getattr(text, "backbone_embeds_only", False):
        return "no: the model takes the backbone's vectors"
    if not text.backbone_in_checkpoint:
        return "no: it is loaded from where it came from"
    dtype = f", weights in {cell(text.backbone_dtype)}" if text.backbone_dtype else ""
    return f"yes{dtype}"


def preset_of(config: PreTrainedConfig) -> str | None:
    """Name of the objective, if it is one of the papers'."""
    for name in OBJECTIVE_PRESETS:
        fields = get_objective_preset(name)
        if all(getattr(config, key) == value for key, value in fields.items()):
            return name
    return None


def objective_rows(config: PreTrainedConfig, training: dict[str, Any], preset: str | None) -> dict[str, Any]:
    """Name, options and terms with weight and loss at the end."""
    found = preset_of(config)
    if preset is not None and preset != found:
        name = f"{cell(preset)}, changed"
    else:
        name = cell(found) if found else "no preset"
    last = training.get("loss") or {}
    terms = [
        (code(term), f"{weight:g}", number(last.get(f"loss_{term}"))) for term, weight in config.term_weights.items()
    ]
    defaults = type(config)()
    shown = ("loss_type", "multi_positive", "gather", "crop_text", "local_pooling", "local_target", "region_pooling")
    shown += ("hard_negative_features", "hard_negative_text", "local_stop_gradient")
    options = [
        f"{code(key)} {code(getattr(config, key))}" for key in shown if getattr(config, key) != getattr(defaults, key)
    ]
    return {
        "name": name,
        "options": ", ".join(options) or "none",
        "terms": terms,
        "total": number(last["loss"]) if "loss" in last else NOT_RECORDED,
        "step": number(last["step"]) if "step" in last else None,
    }


def _sizes(entry: dict[str, Any]) -> str:
    counted = [count(entry[f"{thing}s"], thing) for thing in ("image", "region") if entry.get(f"{thing}s") is not None]
    return ", ".join(counted)


def _split_named(name: str, data: dict[str, dict[str, Any]]) -> str:
    entry = data.get(name, {})
    parts = [_place(entry["name"])] if entry.get("name") else []
    return ", ".join(parts + [_sizes(entry)] * bool(_sizes(entry))) or NOT_RECORDED


def run_rows(training: dict[str, Any], data: dict[str, dict[str, Any]]) -> Rows:
    """How it was trained."""
    train = {"images": training.get("images"), **data.get("train", {})}
    rates = training.get("group_learning_rates") or {}
    rows = [
        ("Training data", _split_named("train", {"train": train})),
        (
            "Steps",
            f"{number(training['steps'])} of {number(training['max_steps'])}, {training['epochs'] or 0:g} epochs",
        ),
        ("Batch", training["batch"]),
        ("Optimiser", cell(training["optimizer"])),
        ("Learning rate", f"{training['learning_rate']:g} at its highest, {cell(training['schedule'])}"),
    ]
    if rates:
        rows.append(("Learning rate by group", ", ".join(f"{code(name)} {rate:g}" for name, rate in rates.items())))
    rows += [
        ("Parameters", cell(training["parameters"])),
        ("Frozen", cell(training["frozen"])),
        ("Precision", cell(training["precision"])),
        ("Seed", cell(training["seed"])),
        ("Left out", cell(training["skipped"])),
    ]
    parts = training.get("parts") or []
    for place, part in enumerate(parts):
        which = f" (part {place + 1}: steps {part['from_step']} to {part['to_step']})" if len(parts) > 1 else ""
        rows += [
            (
                f"Time{which}",
                f"{duration(part['seconds'])}, for the training loop with its evaluations and checkpoints",
            ),
            (f"Processes{which}", number(part["processes"])),
            (f"Hardware of a process{which}", cell(part["hardware"])),
            (f"Versions{which}", cell(part["versions"])),
        ]
    return rows


def _recall(key: str) -> re.Match | None:
    return re.fullmatch(r"(?:(.*)_)?r(\d+)", key)


def _metric_name(key: str) -> str:
    recall = _recall(key)
    if recall:
        before = (recall.group(1) or "").replace("_", " ")
        return f"{before} R@{recall.group(2)}".strip()
    return _NAMES.get(key, key.replace("_", " "))


def _metric_type(key: str) -> str:
    recall = _recall(key)
    return f"recall_at_{recall.group(2)}" if recall else {"right_of_two": "accuracy"}.get(key, one_line(key))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def last_evaluation(training: dict[str, Any] | None) -> dict[str, float]:
    """Metrics of the Trainer's last evaluation."""
    entry = (training or {}).get("evaluation") or {}
    names = {key: key.removeprefix("eval_") for key in entry if key.startswith("eval_")}
    return {name: entry[key] for key, name in names.items() if not name.endswith(_TIMES) and _is_number(entry[key])}


def _evaluated_split(data: dict[str, dict[str, Any]]) -> str:
    others = [name for name in data if name != "train"]
    return others[0] if len(others) == 1 else "evaluation"


def evaluation_tables(
    results: dict[str, Any], data: dict[str, dict[str, Any]], training: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """A table of each split, and one of the Trainer's last evaluation."""
    tables = []
    for split, rows in results.items():
        columns = list(dict.fromkeys(key for metrics in rows.values() for key in metrics))
        tables.append(
            {
                "title": cell(split),
                "about": _split_named(split, data),
                "columns": ["shown", *map(cell, map(_metric_name, columns))],
                "rows": [[cell(row), *(number(metrics.get(key)) for key in columns)] for row, metrics in rows.items()],
            }
        )
    evaluation = last_evaluation(training)
    if evaluation:
        split = _evaluated_split(data)
        step = training["evaluation"].get("step")
        tables.append(
            {
                "title": f"The Trainer's last evaluation, at step {number(step)} of {number(training['steps'])}",
                "about": f"{cell(split)}: {_split_named(split, data)}",
                "columns": ["metric", "value"],
                "rows": [[cell(_metric_name(key)), number(value)] for key, value in evaluation.items()],
            }
        )
    return tables


def explained(results: dict[str, Any]) -> list[str]:
    """What the columns of the tables mean."""
    columns = {key for rows in results.values() for metrics in rows.values() for key in metrics}
    return [note for key, note in _EXPLAINED.items() if key in columns]


def model_index_results(
    results: dict[str, Any], data: dict[str, dict[str, Any]], datasets: list[str], training: dict[str, Any] | None
) -> list[EvalResult]:
    """The same for the metadata, without rows that are there for comparison and of the Trainer's last evaluation R@k alone."""

    def dataset_of(split: str) -> dict[str, str]:
        name = one_line(without_local_paths(data.get(split, {}).get("name") or NOT_RECORDED))
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
        return {
            "dataset_type": datasets[0] if len(datasets) == 1 else slug,
            "dataset_name": name,
            "dataset_split": one_line(split),
        }

    found = []
    for split, rows in results.items():
        for row, metrics in rows.items():
            for key, value in metrics.items() if row not in CONTROLS else ():
                if _is_number(value):
                    captions = row.endswith("caption")
                    found.append(
                        EvalResult(
                            task_type="image-text-retrieval",
                            task_name="Image-to-text retrieval" if captions else "Region-to-text retrieval",
                            metric_type=_metric_type(key),
                            metric_name=one_line(f"{_metric_name(key)}, {row}"),
                            metric_value=float(f"{value:.6g}"),
                            **dataset_of(split),
                        )
                    )
    # What the results hold of the same split is of the finished model.
    split = _evaluated_split(data)
    known = {result.metric_type for result in found if result.dataset_split == one_line(split)}
    for key, value in last_evaluation(training).items():
        if _recall(key) and _metric_type(key) not in known:
            found.append(
                EvalResult(
                    task_type="image-text-retrieval",
                    task_name="Region-to-text retrieval",
                    metric_type=_metric_type(key),
                    metric_name=f"{one_line(_metric_name(key))}, step {training['evaluation'].get('step')}",
                    metric_value=float(f"{value:.6g}"),
                    **dataset_of(split),
                )
            )
    return found


def limits(
    config: PreTrainedConfig, details: Any, results: dict[str, Any], training: dict[str, Any] | None
) -> list[str]:
    """What a reader must not take the model for, one sentence each."""
    found = []
    if config.vision_config.stem_config is not None:
        found.append("What the stem of the vision tower was trained on was not recorded.")
    elif details.vision_origin == "scratch":
        found.append("The vision tower started from random weights: all it has seen are the training data above.")
    if details.vision_origin is None:
        found.append("What the vision tower started from was not recorded.")
    if training is None:
        found.append("Training was not recorded in this card: the weights may be converted from another project's.")
    if getattr(config.text_config, "backbone_source", None) is None:
        found.append("Where the text backbone comes from was not recorded.")
    if results or last_evaluation(training):
        found.append(
            "Nothing was measured but what the tables above show: other tasks, languages and kinds of images are unknown."
        )
    else:
        found.append("Nothing was measured.")
    if "train" in results:
        found.append(
            "Figures of the split `train` are of data that it was trained on: they show what it has memorised."
        )
    small = [
        f"{cell(split)} ({number(details.data[split]['regions'])} regions)"
        for split in results
        if split != "train" and (details.data.get(split, {}).get("regions") or 1000) < 1000
    ]
    if small:
        found.append(f"Few regions were measured, so the figures are uncertain: {', '.join(small)}.")
    if training is not None and training["steps"] < training["max_steps"]:
        found.append(f"Training has not ended: step {training['steps']} of {training['max_steps']}.")
    if details.language is None:
        found.append("Which languages its texts are in was not recorded.")
    return found + [cell(note) for note in details.notes]


__all__ = [
    "CONTROLS",
    "architecture_rows",
    "evaluation_tables",
    "explained",
    "last_evaluation",
    "limits",
    "model_index_results",
    "objective_rows",
    "preset_of",
    "run_rows",
]
