# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Measures models on all benchmarks, on the photos of coco-mini laid out as each benchmark is.

    python tests/benchmarks/coco_mini_evaluation.py --shared ../shared/data --model runs/seed0 runs/seed1 runs/seed2 \\
        --output_dir runs/coco_mini_evaluation

It prints a table in Markdown: each figure with chance and, of several models, mean and range. These are no figures of the
benchmarks' own data: the photos, masks and captions are those of coco-mini, the negatives of `fg-ovd` are made by rules
from measured attributes. `--output_dir` gets, for each model, what examples/run_evaluation.py writes, and table.md.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np


ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "examples")]

from layouts_all import LAYOUTS, write_layouts  # noqa: E402
from run_evaluation import check_device, presets_of, settings_of  # noqa: E402

from processing_pixclip.evaluation.evaluation_run import check_folder, make_benchmarks, run_benchmarks  # noqa: E402
from processing_pixclip.evaluation.features import FeatureExtractor  # noqa: E402
from processing_pixclip.evaluation.loading import open_encoder  # noqa: E402
from processing_pixclip.evaluation.model_index import markdown_table  # noqa: E402
from processing_pixclip.evaluation.report import format_figure  # noqa: E402
from processing_pixclip.evaluation.results import BenchmarkResult  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if options.device is not None:
            check_device(options.device)
        check_folder(options.output_dir, "--output_dir")
        table = figures_table(measure_models(options), options.main)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    (Path(options.output_dir) / "table.md").write_text(f"{table}\n", encoding="utf-8")
    print(table)
    return 0


def measure_models(options: argparse.Namespace) -> list[list[BenchmarkResult]]:
    """Results of each model, one a benchmark."""
    runs = []
    with tempfile.TemporaryDirectory() as data:
        folders = write_layouts(Path(data), options.benchmark, Path(options.shared).resolve())
        for number, model in enumerate(options.model):
            encoder = open_encoder(model, device=options.device)
            features = FeatureExtractor(encoder, cache_dir=options.cache_dir)
            out = Path(options.output_dir) / f"{number}-{Path(model).name}"
            runs.append(
                run_benchmarks(
                    *(encoder, options.benchmark, folders, out, options.presets, settings_of(options), features)
                )
            )
    return runs


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", required=True, help="folder that holds coco-mini and the small text sets")
    parser.add_argument(
        "--model", nargs="+", required=True, help="folders or Hub ids, such as three seeds of one recipe"
    )
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--benchmark", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS), metavar="NAME")
    parser.add_argument("--protocol", metavar="NAME=PRESET[,NAME=PRESET...]", help="presets other than default")
    parser.add_argument("--set", nargs="+", default=[], metavar="[NAME.]KEY=VALUE", help="fields of the protocols")
    parser.add_argument("--limit", type=int, help="only so many images of each benchmark")
    parser.add_argument("--device", help="by default a GPU if there is one")
    parser.add_argument("--cache_dir", help="folder that keeps vectors")
    parser.add_argument("--main", action="store_true", help="only the main figure of each benchmark")
    options = parser.parse_args(arguments)
    if not os.path.isdir(os.path.join(options.shared, "coco-mini")):
        parser.error(f"--shared {options.shared} holds no folder coco-mini")
    try:
        options.presets = presets_of(options)
        make_benchmarks(options.benchmark, dict.fromkeys(options.benchmark, ""), options.presets, settings_of(options))
    except ValueError as error:
        parser.error(str(error))
    return options


def figures_table(runs: list[list[BenchmarkResult]], main_only: bool = False) -> str:
    """Rows of figures: chance, then the value, of several models the mean and from lowest to highest.

    A protocol other than the default one stands beside the benchmark.
    """
    several = len(runs) > 1
    rows = []
    for results in zip(*runs, strict=True):
        first = results[0]
        label = first.protocol_label
        benchmark = first.benchmark if label == "default" else f"{first.benchmark} ({label})"
        for name, figure in first.figures.items():
            if main_only and name != first.main_figure:
                continue
            values = [result.figures[name].value for result in results]
            told = format_figure(float(np.mean(values)), name)
            if several:
                told += f" ({format_figure(min(values), name)} to {format_figure(max(values), name)})"
            rows.append([benchmark, name, f"{figure.count:,}", format_figure(figure.chance, name), told])
    value = f"mean of {len(runs)} (range)" if several else "value"
    return markdown_table(("benchmark", "figure", "items", "chance", value), rows, left=2)


if __name__ == "__main__":
    sys.exit(main())
