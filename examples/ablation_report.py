# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Table and plot of an ablation: means and standard deviations over the seeds."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib


matplotlib.use("Agg")
import matplotlib.pyplot as plt
from run_pretraining import write_json


# Heading, test set, metric, and whether chance is stated for it.
COLUMNS = (
    ("scene R@1", "scenes", "scene_r1"),
    ("scene R@1, object text", "scenes", "scene_object_r1"),
    ("R@1 of 500", "scenes", "r1_of_500"),
    ("right of two", "scenes", "right_of_two"),
    ("class", "scenes", "class_accuracy"),
    ("1 of 11 hard", "scenes", "hard_negative"),
    ("hard pair", "scenes", "hard_negative_pair"),
    ("photo class", "photos", "class_accuracy"),
    ("photo right of two", "photos", "right_of_two"),
)
# Mean and deviation; `None` where the test set holds no case of a metric.
Figure = tuple[float, float | None] | None
PLOTTED = ("scene R@1", "scene R@1, object text", "R@1 of 500", "class", "1 of 11 hard", "photo right of two")


def summarise(cells: Sequence[dict], readouts: dict[str, str]) -> dict[str, dict[str, Figure]]:
    """Mean and standard deviation of every column, by preset, with chance as a row of its own."""
    rows = {}
    for preset, readout in readouts.items():
        own = [cell for cell in cells if cell["preset"] == preset]
        if own:
            rows[preset] = {
                heading: mean_and_deviation([cell[test][readout][metric] for cell in own])
                for heading, test, metric in COLUMNS
            }
    if cells:
        chance = cells[0]["chance"]
        # Photos have their own pairs and the same classes.
        rows["chance"] = {
            heading: None if chance.get(metric) is None else (chance[metric], None) for heading, _, metric in COLUMNS
        }
    return rows


def mean_and_deviation(values: Sequence[float | None]) -> Figure:
    """Over the seeds; the deviation is that of a sample, `None` for one seed."""
    if None in values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def format_figure(figure: Figure) -> str:
    if figure is None:
        return "-"
    mean, deviation = figure
    return f"{100 * mean:.1f}" if deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f}"


def markdown_table(first: str, headings: Sequence[str], rows: dict[str, Sequence[str]]) -> str:
    lines = [f"| {first} | {' | '.join(headings)} |", f"| --- |{' --- |' * len(headings)}"]
    lines += [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]
    return "\n".join(lines) + "\n"


def readout_table(cells: Sequence[dict], readouts: dict[str, str], test: str, metric: str) -> str:
    """One metric of every preset by every readout; the preset's own is bold."""
    names = list(cells[0][test])
    rows = {}
    for preset, own in readouts.items():
        mine = [cell for cell in cells if cell["preset"] == preset]
        if mine:
            figures = [
                format_figure(mean_and_deviation([cell[test][name][metric] for cell in mine])) for name in names
            ]
            rows[preset] = [f"**{figure}**" if name == own else figure for name, figure in zip(names, figures)]
    return markdown_table("preset", names, rows)


def plot(rows: dict[str, dict], path: Path) -> None:
    """One panel a metric, one bar a preset, a line for chance."""
    presets = [name for name in rows if name != "chance"]
    figure, panels = plt.subplots(2, 3, figsize=(13, 1.6 + 0.5 * len(presets)), sharey=True, layout="constrained")
    for panel, heading in zip(panels.flat, PLOTTED):
        figures = [rows[name][heading] or (0.0, None) for name in presets]
        means, deviations = [100 * mean for mean, _ in figures], [100 * (spread or 0.0) for _, spread in figures]
        panel.barh(presets, means, xerr=deviations, capsize=2)
        chance = rows["chance"][heading]
        if chance is not None:
            panel.axvline(100 * chance[0], color="black", linestyle="--", linewidth=1, label="chance")
        panel.set_title(f"{heading}, %", fontsize=10)
        panel.grid(axis="x", alpha=0.3)
    panels[0, 0].invert_yaxis()
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_report(cells: Sequence[dict], readouts: dict[str, str], folder: Path) -> None:
    """
    Prints the main table and writes `ablation.md`, `ablation.json` and `ablation.png` into the folder.

    Args:
        cells: Finished cells, as `run_ablation.py` files them.
        readouts: The readout that each preset trains, in the order of the rows.
    """
    if not cells:
        return
    rows = summarise(cells, readouts)
    headings = [heading for heading, _, _ in COLUMNS]
    table = markdown_table(
        "preset (its readout)",
        ["runs", *headings],
        {
            f"{name} ({readouts[name]})" if name in readouts else name: [
                str(sum(cell["preset"] == name for cell in cells)) if name in readouts else "-",
                *(format_figure(figures[heading]) for heading in headings),
            ]
            for name, figures in rows.items()
        },
    )
    seeds, tested = sorted({cell["seed"] for cell in cells}), cells[0]["tested"]
    parts = [
        f"Per cent, mean ± standard deviation over seeds {', '.join(map(str, seeds))}. Test: {tested['scene_regions']} "
        f"regions of {tested['scenes']} scenes, {tested['photo_regions']} of {tested['photos']} photos.\n",
        table,
    ]
    for title, test, metric in (
        ("R@1 within the scene, by readout", "scenes", "scene_r1"),
        ("The same with object texts", "scenes", "scene_object_r1"),
        ("Class accuracy on scenes, by readout", "scenes", "class_accuracy"),
        ("One of 11 hard negatives, by readout", "scenes", "hard_negative"),
        ("Photos: right of two, by readout", "photos", "right_of_two"),
    ):
        parts += [f"{title}:\n", readout_table(cells, readouts, test, metric)]
    kinds = [key for key in next(iter(cells[0]["scenes"].values())) if key.startswith("hard_negative_pair_")]
    by_preset = {name: [cell for cell in cells if cell["preset"] == name] for name in readouts}
    by_preset = {name: own for name, own in by_preset.items() if own}
    parts += [
        "Hard negative pairs by the attribute swapped, own readout (chance 50):\n",
        markdown_table(
            "preset",
            [key.rsplit("_", 1)[-1] for key in kinds],
            {
                name: [
                    format_figure(mean_and_deviation([cell["scenes"][readouts[name]][key] for cell in own]))
                    for key in kinds
                ]
                for name, own in by_preset.items()
            },
        ),
        "Whole scene to its caption, R@1 among all scenes, and time of a run:\n",
        markdown_table(
            "preset",
            ["short captions", "long captions", "CPU seconds of training"],
            {
                name: [
                    *(
                        format_figure(mean_and_deviation([cell["captions"][key] for cell in own]))
                        for key in ("captions_r1", "long_captions_r1")
                    ),
                    f"{statistics.fmean(cell['seconds']['training_cpu'] for cell in own):.0f}",
                ]
                for name, own in by_preset.items()
            },
        ),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "ablation.json", {"rows": rows, "cells": list(cells)})
    for name, write in (
        ("ablation.md", lambda path: path.write_text("\n".join(parts), encoding="utf-8")),
        ("ablation.png", lambda path: plot(rows, path)),
    ):
        # The suffix tells matplotlib the format.
        unfinished = folder / f".{name}"
        write(unfinished)
        unfinished.replace(folder / name)
    print("\n".join(parts[:2]))
