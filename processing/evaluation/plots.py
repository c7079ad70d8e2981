# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Plots of a result: accuracy by class, confusion, retrieval curves. The same result gives the same bytes."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .results import BenchmarkResult


# Names of all plots.
PLOTS = ("per_class", "confusion", "retrieval")
# Classes of a plot: more could not be read.
_WORST, _BEST, _CONFUSED, _PREDICTED = 15, 15, 20, 5
# Ranks of a retrieval curve.
_RANKS = 100
_GOOD, _BAD, _SOFT = "#12806a", "#c2410c", "#5b6676"
_LINES = ("#12806a", "#2457a6", "#c2410c", "#7c3aed", "#5b6676")
_ON_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.edgecolor": "#9aa5b4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": "#1c2430",
    "axes.labelcolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": "#1c2430",
}


def plot_result(result: BenchmarkResult) -> dict[str, bytes]:
    """Draws what the items of a result allow.

    Args:
        result: With its items. Those with `truth` and `predicted` give "per_class" and "confusion", where there is more than
            one class and classes repeat; those with `rank` give "retrieval".

    Returns:
        PNG files by name.

    Example:
        >>> from .results import Figure as Value
        >>> items = [{"key": str(row), "correct": True, "rank": row + 1, "direction": "text to image"} for row in range(4)]
        >>> figures = {"text to image R@1": Value(0.25, count=4, chance=0.25)}
        >>> result = BenchmarkResult("b", "t", "d", "text to image R@1", {}, {}, figures, {}, {}, items=items)
        >>> list(plot_result(result))
        ['retrieval']
    """
    items = result.items
    plots = {}
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        classified = [item for item in items if "rank" not in item and item.get("truth") and item.get("predicted")]
        classified = _without_template(classified, result.protocol.get("template", ""))
        totals = Counter(item["truth"] for item in classified)
        if 1 < len(totals) < len(classified):
            plots["per_class"] = _per_class(classified, totals)
            plots["confusion"] = _confusion(classified, totals)
        ranked = [item for item in items if "rank" in item]
        if ranked:
            plots["retrieval"] = _retrieval(ranked, result)
    return plots


def shown_items(result: BenchmarkResult) -> list[dict[str, Any]]:
    """Items that the main figure counts: of several directions or splits, its own."""
    items = result.items
    directions = {item["direction"] for item in items if "direction" in item}
    name = result.main_figure.rpartition(": ")[2]
    own = [each for each in directions if name == each or name.startswith(f"{each} ")]
    return [item for item in items if item["direction"] in own] if own else items


def _without_template(items: Sequence[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """Items whose classes are prompts, by the names in them."""
    begin, _, end = template.partition("{}")
    pairs = [[item["truth"], item["predicted"]] for item in items]
    if not (begin or end) or not all(name.startswith(begin) and name.endswith(end) for pair in pairs for name in pair):
        return list(items)
    names = [[name[len(begin) : len(name) - len(end)] for name in pair] for pair in pairs]
    return [{**item, "truth": truth, "predicted": found} for item, (truth, found) in zip(items, names, strict=True)]


def _per_class(items: Sequence[dict[str, Any]], totals: Counter) -> bytes:
    """Bars of the worst and the best classes."""
    right = Counter(item["truth"] for item in items if item["correct"])
    shares = [(right[name] / total, total, name) for name, total in totals.items()]
    shown = shown_classes(shares)
    figure = Figure(figsize=(6.2, 0.7 + 0.19 * len(shown)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shown))
    mean = sum(share for share, _, _ in shares) / len(shares)
    for place, entry in zip(places, shown, strict=True):
        if entry is None:
            axes.text(0, place, f"  {len(shares) - _WORST - _BEST} classes between", va="center", color=_SOFT)
        else:
            share, count, name = entry
            axes.barh(place, share, height=0.72, color=_GOOD if share >= mean else _BAD, alpha=0.85)
            axes.text(
                share + 0.01, place, f"{share:.2f}  of {count}", va="center", fontsize=7, color=_SOFT, bbox=_ON_WHITE
            )
    # Below the numbers.
    axes.axvline(mean, color=_SOFT, linewidth=0.8, linestyle=":")
    labels = ["" if entry is None else _short(entry[2]) for entry in shown]
    axes.set(yticks=places, yticklabels=labels, ylim=(len(shown) - 0.4, -0.6), xlim=(0, 1.16), xlabel="accuracy")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.tick_params(axis="y", length=0)
    never = sum(share == 0 for share, _, _ in shares)
    zeros = f", {never} of them at 0" if never else ""
    axes.set_title(f"Accuracy by class; dotted: mean of the {len(shares)} classes{zeros}", loc="left", fontsize=9)
    return _png(figure)


def shown_classes(shares: Sequence[tuple[float, int, str]]) -> list[tuple[float, int, str] | None]:
    """The best and the worst classes, from the best down, and where some are left out between, `None`.

    Args:
        shares: Share, items and name of each class. At both ends, among equals, those of most items come first.
    """
    best = sorted(shares, key=lambda entry: (-entry[0], -entry[1], entry[2]))
    if len(best) <= _WORST + _BEST:
        return best
    worst = sorted(best[_BEST:], key=lambda entry: (entry[0], -entry[1], entry[2]))[:_WORST]
    return [*best[:_BEST], None, *reversed(worst)]


def _confusion(items: Sequence[dict[str, Any]], totals: Counter) -> bytes:
    """Draws `confusion_table`."""
    names, columns, table = confusion_table(items, totals)
    side = 1.6 + 0.27 * len(names)
    figure = Figure(figsize=(side + 0.33 + 0.27 * (len(columns) - len(names)), side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table, cmap="Greens", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(table):
        if share >= 0.005:
            colour = "white" if share > 0.6 else "#1c2430"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    if len(columns) > len(names):
        axes.axvline(len(names) - 0.5, color=_SOFT, linewidth=0.8)
    axes.set_xticks(range(len(columns)), map(_short, columns), rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{_short(name)} ({totals[name]})" for name in names])
    axes.set(xlabel="predicted", ylabel="truth (items)")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    frequent = f"{len(names)} most frequent classes" if len(totals) > len(names) else "classes"
    axes.set_title(f"Confusion of the {frequent}, % of the truth", loc="left", fontsize=9)
    return _png(figure)


def confusion_table(items: Sequence[dict[str, Any]], totals: Counter) -> tuple[list[str], list[str], np.ndarray]:
    """What the most frequent classes are taken for: for these, for what else is predicted most, or for another.

    Returns:
        Names of the rows, names of the columns, and shares of each row, (rows, columns).
    """
    names = [name for name, _ in sorted(totals.items(), key=lambda entry: (-entry[1], entry[0]))[:_CONFUSED]]
    of_names = [item for item in items if item["truth"] in set(names)]
    others = Counter(item["predicted"] for item in of_names if item["predicted"] not in set(names))
    most = [name for name, _ in sorted(others.items(), key=lambda entry: (-entry[1], entry[0]))[:_PREDICTED]]
    place = {name: column for column, name in enumerate([*names, *most])}
    table = np.zeros((len(names), len(place) + 1))
    for item in of_names:
        table[place[item["truth"]], place.get(item["predicted"], len(place))] += 1
    table /= table.sum(axis=1, keepdims=True)
    if not table[:, -1].any():
        table = table[:, :-1]
    return names, [*place, "another"][: table.shape[1]], table


def _retrieval(items: Sequence[dict[str, Any]], result: BenchmarkResult) -> bytes:
    """R@k over k of each direction, and chance where figures tell it."""
    figure = Figure(figsize=(6.2, 3.2), layout="constrained")
    axes = figure.subplots()
    ranks_of: dict[str, list[int]] = {}
    for item in items:
        ranks_of.setdefault(item.get("direction") or item.get("split") or "", []).append(item["rank"])
    highest = min(_RANKS, max(max(item["rank"] for item in items), 10))
    for (direction, ranks), colour in zip(ranks_of.items(), _LINES * len(ranks_of)):
        ks = np.arange(1, highest + 1)
        shares = np.searchsorted(np.sort(ranks), ks, side="right") / len(ranks)
        axes.plot(ks, shares, color=colour, linewidth=1.6, label=direction or "R@k")
        chance = {}
        for name, value in result.figures.items():
            found = re.fullmatch(r"(?:.*: )?(?:(.*) )?R@(\d+)", name)
            if found and (found.group(1) or "") == direction and value.chance is not None:
                chance[int(found.group(2))] = value.chance
            # A figure that is called like its split counts what is found first.
            elif name.rpartition(": ")[2] == direction and value.chance is not None:
                chance[1] = value.chance
        if chance:
            style = {"linewidth": 1, "linestyle": ":", "marker": ".", "clip_on": False}
            axes.plot(*zip(*sorted(chance.items())), color=colour, label="chance", **style)
    axes.set(xscale="log", xlim=(1, highest), ylim=(0, 1.02), xlabel="k", ylabel="share of queries, R@k")
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= highest]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()
    axes.grid(axis="y", color="#e3e7ed", linewidth=0.7)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title("Found among the first k", loc="left", fontsize=9)
    return _png(figure)


def _short(name: Any) -> str:
    # A dollar sign would begin a formula.
    text = str(name).replace("$", r"\$")
    return text if len(text) <= 28 else f"{text[:27]}…"


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib: of it, the bytes need not tell.
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
