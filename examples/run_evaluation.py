# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Measures a model on the field's benchmarks: figures with intervals and chance, the protocol they hang on, and a report.

    python examples/run_evaluation.py --list
    python examples/run_evaluation.py --model runs/coco_regions --benchmark coco-regions --data_dir coco \\
        --output_dir runs/evaluation
    python examples/run_evaluation.py --model openai/clip-vit-base-patch16 --benchmark flickr30k,docci \\
        --data_dir flickr30k=data/flickr30k docci=data/docci --output_dir runs/evaluation
    python examples/run_evaluation.py --benchmark coco-regions --protocol
    python examples/run_evaluation.py --benchmark coco-regions --protocol official-fgclip
    python examples/run_evaluation.py ... --protocol official-fgclip --set bootstrap=0 coco-regions.views=roi,full
    accelerate launch examples/run_evaluation.py ...

A model is a folder or Hub id of this library's models, converted ones too, or of any CLIP-like model of Transformers.
The data of all benchmarks are checked before the model is loaded. `output_dir` gets results.json (the same for the same
model, data and protocol, with the same batch sizes, threads, device and packages), report.html, run_info.json, and a
folder for each benchmark with its items and plots; what an earlier run left of these files is removed first.
"""

import argparse
import json
import logging
import os
import sys

import torch
from accelerate import PartialState

from modeling_pixclip.card_text import command_line, told_command
from processing_pixclip.evaluation.benchmark import Benchmark, package_versions
from processing_pixclip.evaluation.encoders import Encoder
from processing_pixclip.evaluation.evaluation_run import (
    REPORT,
    check_folder,
    check_views,
    evaluate_benchmarks,
    load_benchmarks,
    make_benchmarks,
)
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.loading import open_encoder
from processing_pixclip.evaluation.model_index import COLUMNS, add_to_card, figure_rows, markdown_table
from processing_pixclip.evaluation.registry import (
    BENCHMARKS,
    describe_presets,
    describe_protocol,
    get_benchmark,
    list_benchmarks,
)
from processing_pixclip.evaluation.results import protocol_label
from processing_pixclip.evaluation.text_encoder import POOLINGS


# `--protocol` without a name.
PRINT_ONLY = ""


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse_arguments(arguments)
    if options.list:
        print(list_benchmarks())
        return 0
    state = PartialState(cpu=options.device == "cpu")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        # What takes no time is found out before what does.
        if options.device is not None and state.num_processes == 1:
            check_device(options.device)
        if not options.printed:
            for name in ("output_dir", "cache_dir"):
                if getattr(options, name) is not None:
                    check_folder(getattr(options, name), f"--{name}")
        benchmarks = options.benchmarks
        if options.data_dir is not None:
            load_benchmarks(benchmarks)
        encoder = None
        if options.model is not None:
            encoder = open_model(options, state)
            check_views(benchmarks, encoder)
        if state.is_main_process:
            print(told_protocols(benchmarks, encoder), flush=True)
        if options.printed:
            return 0
        if options.add_to_card is not None and state.is_main_process:
            tell_of_another_card(options)
        features = FeatureExtractor(
            encoder,
            cache_dir=options.cache_dir,
            batch_size=options.batch_size,
            batch_tokens=options.batch_tokens,
            accelerator=state,
        )
        command = told_command(command_line(["examples/run_evaluation.py", *arguments]))
        results = evaluate_benchmarks(benchmarks, features, options.output_dir, command)
        if state.is_main_process:
            print(markdown_table(COLUMNS, figure_rows(results)))
            print(os.path.join(options.output_dir, REPORT))
            if options.add_to_card is not None:
                print(add_to_card(options.add_to_card, results))
    except KeyboardInterrupt:
        cached = "" if options.cache_dir is None else f", and vectors stay in {options.cache_dir}"
        print(f"interrupted; what finished is in its folder{cached}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        place = f" in process {state.process_index}" if state.num_processes > 1 else ""
        print(f"error{place}: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--list", action="store_true", help="print all benchmarks: task, protocols, files, where to get them"
    )
    parser.add_argument("--benchmark", metavar="NAME[,NAME...]", help="see --list")
    parser.add_argument(
        "--data_dir", nargs="+", metavar="DIR or NAME=DIR", help="folder of the data, or one for each benchmark"
    )
    parser.add_argument("--model", help="folder or Hub id")
    parser.add_argument("--processor", help="folder or Hub id of the processor, if it is not beside the model")
    parser.add_argument(
        "--pooling", choices=POOLINGS, help="of a text encoder; by default as the files beside it say, else a guess"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the model on the Hub")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="by default that of the checkpoint"
    )
    parser.add_argument("--device", help="e.g. cuda or cpu; by default a GPU if there is one")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that lies beside the model")
    parser.add_argument("--output_dir", help="folder of results and report")
    parser.add_argument(
        "--protocol",
        nargs="?",
        const=PRINT_ONLY,
        metavar="PRESET",
        help="preset of all benchmarks, or NAME=PRESET[,NAME=PRESET...]; without a name, or with --benchmark and "
        "--set only: print all that affects a figure, and end",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        action="extend",
        metavar="[NAME.]KEY=VALUE",
        help="change a field of the protocols that have it, or of one benchmark's",
    )
    parser.add_argument("--limit", type=int, help="only so many images of each benchmark; the same as --set limit=...")
    parser.add_argument("--batch_size", type=int, default=16, help="images of a batch")
    parser.add_argument("--batch_tokens", type=int, default=8192, help="tokens of a batch of texts")
    parser.add_argument(
        "--cache_dir", help="folder that keeps vectors; another run of the same model takes them from there"
    )
    parser.add_argument(
        "--add_to_card", metavar="FOLDER", help="put the figures into the metadata of this folder's README.md"
    )
    options = parser.parse_args(arguments)
    if options.list:
        return options
    given = [name for name in ("data_dir", "model", "output_dir") if getattr(options, name) is not None]
    printed = options.printed = options.protocol == PRINT_ONLY or (options.protocol is not None and not given)
    needed = ["benchmark"] if printed else ["benchmark", "data_dir", "model", "output_dir"]
    lacking = [f"--{name}" for name in needed if getattr(options, name) is None]
    if lacking:
        parser.error(f"give {', '.join(lacking)}; --list shows the benchmarks, --protocol alone what they decide")
    for name in ("output_dir", "cache_dir"):
        if getattr(options, name) == "":
            parser.error(f"--{name} is empty; accepted is a folder")
    for name in ("batch_size", "batch_tokens", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"--{name} is {value}; accepted are 1 and more")
    if options.add_to_card is not None and not os.path.isdir(options.add_to_card):
        parser.error(f"--add_to_card {options.add_to_card} is not a folder; accepted is that of a saved model")
    if options.model is not None and looks_like_path(options.model) and not os.path.isdir(options.model):
        parser.error(f"--model {options.model} is not a folder; accepted are the folder of a model and a Hub id")
    if options.revision is not None and options.model is not None and os.path.isdir(options.model):
        parser.error(f"--revision is of a model on the Hub; --model {options.model} is a folder")
    options.benchmark = [name.strip() for name in options.benchmark.split(",") if name.strip()]
    try:
        for name in options.benchmark:
            get_benchmark(name)
        folders = data_folders(options)
        presets = presets_of(options)
        options.benchmarks = make_benchmarks(options.benchmark, folders, presets, settings_of(options))
    except ValueError as error:
        parser.error(str(error))
    return options


def looks_like_path(name: str) -> bool:
    """Whether a name can be no Hub id, which is `name` or `organisation/name`."""
    parts = name.replace(os.sep, "/").split("/")
    return len(parts) > 2 or "" in parts or parts[0].startswith((".", "~"))


def data_folders(options: argparse.Namespace) -> dict[str, str]:
    """Folder of each benchmark's data; none is read where `--protocol` prints without data."""
    if options.data_dir is None:
        return dict.fromkeys(options.benchmark, "")
    folders, other = {}, None
    for given in options.data_dir:
        name, equals, folder = given.partition("=")
        if equals and name in BENCHMARKS:
            folders[name] = folder
        elif other is not None:
            raise ValueError(f"--data_dir names {other} and {given} for all benchmarks; give one, or NAME=DIR.")
        elif equals and not os.path.isdir(given):
            get_benchmark(name)
        else:
            other = given
    unused = [name for name in folders if name not in options.benchmark]
    if unused:
        raise ValueError(f"--data_dir names {', '.join(unused)}, which --benchmark does not.")
    lacking = [name for name in options.benchmark if name not in folders]
    if lacking and other is None:
        raise ValueError(f"--data_dir names no folder for {', '.join(lacking)}.")
    return {name: folders.get(name, other) for name in options.benchmark}


def presets_of(options: argparse.Namespace) -> dict[str, str]:
    """Preset of each benchmark for which one is named."""
    presets = {}
    for part in (options.protocol or "").split(",") if options.protocol else ():
        name, equals, preset = part.strip().partition("=")
        if equals and name not in options.benchmark:
            raise ValueError(
                f"--protocol names {name!r}, which --benchmark does not; it names {', '.join(options.benchmark)}."
            )
        for each in [name] if equals else options.benchmark:
            presets[each] = preset if equals else name
    return presets


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """Fields of the protocols that the options change."""
    settings = {}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r} is no KEY=VALUE, such as limit=100 or coco-regions.views=roi.")
        settings[name] = value
    if options.limit is not None:
        if "limit" in settings:
            raise ValueError(f"--limit {options.limit} and --set limit={settings['limit']} are both given; give one.")
        settings["limit"] = str(options.limit)
    return settings


def check_device(name: str) -> None:
    """Whether tensors can be made and read on a device."""
    try:
        torch.zeros(1, device=name).item()
    # Of a PyTorch without CUDA, an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ValueError(
            f"--device {name} cannot be used: {reason}. Accepted are cpu, and cuda where it is."
        ) from None


def tell_of_another_card(options: argparse.Namespace) -> None:
    """Figures of one model in the card of another mislead whoever reads it."""
    if os.path.realpath(options.add_to_card) != os.path.realpath(options.model):
        logging.warning(
            "--add_to_card %s is not the folder of --model %s: its card will tell the figures of that model.",
            *(options.add_to_card, options.model),
        )


def open_model(options: argparse.Namespace, state: PartialState) -> Encoder:
    try:
        return open_encoder(
            options.model,
            processor=options.processor,
            device=options.device if state.num_processes == 1 else state.device,
            dtype=options.dtype,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
            pooling=options.pooling,
        )
    except (ValueError, OSError) as error:
        # Messages of the Hub's client do not all name it.
        raise ValueError(f"--model {options.model} cannot be opened: {error}") from error


def told_protocols(benchmarks: list[Benchmark], encoder: Encoder | None) -> str:
    """All that affects a figure: with the data also how many there are, with the model also what is the model's."""
    parts = []
    for benchmark in benchmarks:
        counts = [f"{name}: {count}" for name, count in benchmark.counts.items()]
        # Without data there are neither counts nor files.
        files = (
            [f"file {path}: {json.dumps(facts)}" for path, facts in benchmark.data_files().items()] if counts else []
        )
        parts.append(
            "\n".join(
                [
                    f"== {benchmark.name}: {benchmark.measured_dataset() if counts else benchmark.dataset}",
                    f"protocol {protocol_label(benchmark.protocol.name, benchmark.changed_fields())}",
                    describe_protocol(benchmark.protocol),
                    describe_presets(type(benchmark)),
                    *counts,
                    *files,
                ]
            )
        )
    if encoder is not None:
        described = [f"{name}: {value}" for name, value in encoder.describe().items()]
        parts.append("\n".join(["== model", *described]))
    parts.append("\n".join(["== versions", *(f"{name}: {value}" for name, value in package_versions().items())]))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
