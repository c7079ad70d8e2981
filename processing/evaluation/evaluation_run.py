# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""An evaluation run: checks the data of all benchmarks, measures a model on each, writes what was found."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..atomic_files import open_atomic
from .benchmark import Benchmark
from .encoders import Encoder
from .features import FeatureExtractor
from .plots import PLOTS, plot_result
from .region_classification import resolve_view
from .registry import BENCHMARKS, accepted, get_benchmark, get_protocol, protocol_fields
from .report import render_report
from .results import BenchmarkResult


logger = logging.getLogger(__name__)

RESULTS, ITEMS, REPORT, RUN_INFO = "results.json", "items.jsonl", "report.html", "run_info.json"


def make_benchmarks(
    names: Sequence[str],
    data_dir: str | os.PathLike | Mapping[str, str | os.PathLike],
    protocol: str | Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Benchmark]:
    """Makes benchmarks, each under its protocol; reads no file.

    Args:
        names: Of the benchmarks, keys of `BENCHMARKS`.
        data_dir: Folder that all of them read, or a folder for each by its name.
        protocol: Preset of all of them, or by name; "default" for those that it does not name.
        settings: Fields of the protocols by name, for each benchmark that has the field, or by "benchmark.field", which
            wins.

    Raises:
        ValueError: If a benchmark, preset or field is unknown, a value is not accepted, or a folder is not named.

    Example:
        >>> make_benchmarks(["coco-regions"], "coco", settings={"limit": 8})[0].protocol.limit
        8
    """
    classes = [get_benchmark(name) for name in dict.fromkeys(names)]
    if not classes:
        raise ValueError("there is no benchmark to run; name at least one.")
    settings = dict(settings or {})
    _check_settings(settings, {each.name: protocol_fields(each) for each in classes})
    benchmarks = []
    for each in classes:
        folder = data_dir.get(each.name) if isinstance(data_dir, Mapping) else data_dir
        if folder is None:
            raise ValueError(f"data_dir names no folder for {each.name}; it names {', '.join(data_dir) or 'none'}.")
        preset = protocol.get(each.name) if isinstance(protocol, Mapping) else protocol
        own = {name: value for name, value in settings.items() if name in protocol_fields(each)}
        own |= {
            name.partition(".")[2]: value for name, value in settings.items() if name.partition(".")[0] == each.name
        }
        made = get_protocol(each, preset, own)
        twice = [view for view, count in Counter(getattr(made, "views", ())).items() if count > 1]
        if twice:
            raise ValueError(
                f"{each.name}: views names {', '.join(twice)} more than once; accepted is each view once."
            )
        benchmarks.append(each(folder, made))
    return benchmarks


def load_benchmarks(benchmarks: Sequence[Benchmark]) -> None:
    """Checks the files of all benchmarks, then reads them, which needs no model.

    Args:
        benchmarks: See `make_benchmarks`.

    Raises:
        FileNotFoundError: Names every missing file of every benchmark, and where it is to be had.
        ValueError: If a file does not hold what it should.

    Example:
        >>> load_benchmarks(make_benchmarks(["coco-regions"], "/no/such/folder"))
        Traceback (most recent call last):
        ...
        FileNotFoundError: coco-regions reads ...
    """
    # All of the files first, so that one error names all that is missing.
    for step in (Benchmark.check_layout, lambda benchmark: benchmark.load()):
        missing = []
        for benchmark in benchmarks:
            try:
                step(benchmark)
            except FileNotFoundError as error:
                missing.append(str(error))
        if missing:
            raise FileNotFoundError("\n".join(missing))


def _check_settings(settings: Mapping[str, Any], fields: Mapping[str, Sequence[str]]) -> None:
    """Each setting is one of at least one benchmark."""
    for name in settings:
        benchmark, dot, field = name.partition(".")
        if not dot:
            known = list(dict.fromkeys(field for names in fields.values() for field in names))
            if name not in known:
                raise ValueError(
                    f"{name!r} is no field of the protocol of {' or '.join(fields)}; {accepted(name, known)}"
                )
        elif benchmark not in fields:
            raise ValueError(
                f"setting {name!r} names {benchmark!r}, which does not run; {accepted(benchmark, fields)}"
            )
        elif field not in fields[benchmark]:
            raise ValueError(
                f"{field!r} is no field of the protocol of {benchmark}; {accepted(field, fields[benchmark])}"
            )


def run_benchmarks(
    encoder: Encoder,
    names: Sequence[str],
    data_dir: str | os.PathLike | Mapping[str, str | os.PathLike],
    output_dir: str | os.PathLike,
    protocol: str | Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    features: FeatureExtractor | None = None,
) -> list[BenchmarkResult]:
    """Measures a model on benchmarks and writes figures, items, plots and a report.

    Args:
        encoder: The model, for example of `open_encoder`.
        names: See `make_benchmarks`.
        data_dir: See `make_benchmarks`.
        output_dir: See `evaluate_benchmarks` for what it will hold.
        protocol: See `make_benchmarks`.
        settings: See `make_benchmarks`.
        features: Asks the encoder; by default one with default batches and no cache.

    Raises:
        FileNotFoundError, ValueError: See `make_benchmarks` and `load_benchmarks`; before the model is asked for anything.

    Example:
        >>> run_benchmarks(encoder, ["coco-regions"], "coco", "out")[0].figures["top-1"].value  # doctest: +SKIP
        0.55
    """
    benchmarks = make_benchmarks(names, data_dir, protocol, settings)
    load_benchmarks(benchmarks)
    if features is None:
        features = FeatureExtractor(encoder, accelerator=PartialState())
    return evaluate_benchmarks(benchmarks, features, output_dir)


def evaluate_benchmarks(
    benchmarks: Sequence[Benchmark],
    features: FeatureExtractor,
    output_dir: str | os.PathLike,
    command: str | None = None,
) -> list[BenchmarkResult]:
    """Measures a model on benchmarks. Of several processes all take part and the main one writes.

    Each benchmark's files are written when it ends, so an interrupted run keeps what it finished. `output_dir` gets

    - results.json: all results by benchmark, numbers with six digits after the point; equal for equal data, protocol and
      model, byte by byte, with the same batch sizes, threads, device and packages (other ones change the last digits of
      vectors, and so may, rarely, a figure),
    - report.html: one page of figures, protocols, plots and examples, which needs no other file,
    - run_info.json: what differs between two such runs: times, device, processes, command,
    - a folder for each benchmark with results.json, items.jsonl (what became of each item) and plots.

    What an earlier run left of these files is removed first. Folders of benchmarks that do not run now stay, which a
    warning tells.

    Args:
        benchmarks: See `make_benchmarks`; those that are not loaded are.
        features: Asks the encoder.
        output_dir: Where to; made if it is not there.
        command: What started it, for run_info.json.

    Returns:
        One result a benchmark, in order.
    """
    state = PartialState()
    output_dir = Path(output_dir)
    check_views(benchmarks, features.encoder)
    if state.is_main_process:
        _clear(output_dir, [benchmark.name for benchmark in benchmarks])
    started, seconds = datetime.now(UTC), {}
    results, plots = [], {}
    for place, benchmark in enumerate(benchmarks, 1):
        if state.is_main_process:
            logger.info("%d of %d: %s", place, len(benchmarks), benchmark.name)
        begun = time.perf_counter()
        result = benchmark.evaluate(features)
        seconds[benchmark.name] = round(time.perf_counter() - begun, 3)
        results.append(result)
        if state.is_main_process:
            plots[benchmark.name] = plot_result(result)
            write_result(output_dir / benchmark.name, result, plots[benchmark.name])
    if state.is_main_process:
        write_results(output_dir / RESULTS, results)
        _write(output_dir / REPORT, render_report(results, plots))
        info = {
            "started": started.isoformat(timespec="seconds"),
            "command": command,
            "device": _device_name(state.device),
            "processes": state.num_processes,
            "seconds": seconds,
        }
        _write(output_dir / RUN_INFO, json.dumps(info, indent=2) + "\n")
    # So that the files are there when any of the processes goes on.
    state.wait_for_everyone()
    return results


def check_folder(path: str | os.PathLike, option: str) -> None:
    """Makes a folder and finds out whether files can be written into it, before anything else is done.

    Args:
        path: Of the folder.
        option: What named it, for the error.

    Raises:
        ValueError: If it cannot be made, or nothing can be written into it.

    Example:
        >>> check_folder("README.md", "--output_dir")
        Traceback (most recent call last):
        ...
        ValueError: --output_dir README.md cannot be written into: ...
    """
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(
            f"{option} {path} cannot be written into: {error.strerror}. Accepted is a folder, made if it is not there."
        ) from error


def _clear(output_dir: Path, names: Sequence[str]) -> None:
    """Removes the files of an earlier run, so that none is taken for one of this run, also if this one is cut off."""
    for name in (RESULTS, REPORT, RUN_INFO):
        (output_dir / name).unlink(missing_ok=True)
    for name in names:
        (output_dir / name).mkdir(parents=True, exist_ok=True)
        for file in (RESULTS, ITEMS, *(f"{plot}.png" for plot in PLOTS)):
            (output_dir / name / file).unlink(missing_ok=True)
    others = [name for name in BENCHMARKS if name not in names and (output_dir / name / RESULTS).exists()]
    if others:
        logger.warning(
            "%s holds %s of an earlier run, maybe of another model; they stay, and are not in this run's %s and %s.",
            *(output_dir, ", ".join(others), RESULTS, REPORT),
        )


def check_views(benchmarks: Sequence[Benchmark], encoder: Encoder) -> None:
    """Finds out what a model cannot show, before it has worked for hours on what it can.

    Raises:
        ValueError: If the protocol of a benchmark has a view that the model does not support; names those that it does.
    """
    for benchmark in benchmarks:
        try:
            for view in getattr(benchmark.protocol, "views", ()):
                resolve_view(view, encoder)
        except ValueError as error:
            raise ValueError(f"{benchmark.name}: {error}") from None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def write_result(folder: Path, result: BenchmarkResult, plots: Mapping[str, bytes]) -> None:
    """Writes one benchmark's figures, items and plots into its folder."""
    with open_atomic(folder / ITEMS) as file:
        for item in result.items:
            file.write((json.dumps(item, ensure_ascii=False, default=_plain) + "\n").encode("utf-8", "replace"))
    for name, content in plots.items():
        _write(folder / f"{name}.png", content)
    _write(folder / RESULTS, result.to_json())


def write_results(path: str | os.PathLike, results: Sequence[BenchmarkResult]) -> None:
    """Writes the results of several benchmarks as one JSON file, by benchmark.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "results.json")
        >>> write_results(path, [])
        >>> read_results(path)
        []
    """
    content = {result.benchmark: result.to_dict() for result in results}
    _write(Path(path), json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(path: str | os.PathLike) -> list[BenchmarkResult]:
    """Reads a results.json, of a run or of one benchmark. The results come without items.

    Raises:
        ValueError: If the file is no results file.

    Example:
        >>> read_results("README.md")
        Traceback (most recent call last):
        ...
        ValueError: README.md is no results file of run_evaluation.py: ...
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        parts = [content] if "benchmark" in content else list(content.values())
        return [BenchmarkResult.from_dict(part) for part in parts]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no results file of run_evaluation.py: {error}") from error


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as plain ones."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"items hold {type(value).__name__}; accepted are plain values.")


def _write(path: Path, content: str | bytes) -> None:
    with open_atomic(path) as file:
        # Replaced, because a text of a data set may hold what has no UTF-8 form.
        file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)
