# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Builds a dataset of long region descriptions from images with regions, by models behind OpenAI-compatible servers, by
local models, or by rules.

    python examples/build_longgrit.py examples/configs/longgrit_vllm.yaml --dry_run 3
    python examples/build_longgrit.py examples/configs/longgrit_vllm.yaml
    python examples/build_longgrit.py examples/configs/longgrit_coco_regions.yaml --output_dir runs/longgrit
    python examples/build_longgrit.py --set source.format=folder source.path=regions.jsonl engine=rules --output_dir out

The same command goes on from where a run stopped, whatever stopped it. `output_dir` holds the dataset (README.md, data/,
webdataset/), what was rejected and why (rejected/), report.html, and the run's own files (run/).
"""

import argparse
import json
import logging
import os
import sys
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from processing_pixclip.longgrit import (
    EngineUnavailable,
    LongGritSettings,
    RunProgress,
    dry_run,
    push_dataset,
    read_settings,
    run_pipeline,
    run_pipeline_on_ray,
)
from processing_pixclip.longgrit.config import STAGES


logger = logging.getLogger("build_longgrit")


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # One line a request says nothing that the bar does not. Newer versions of openai bring their own httpx.
    for name in ("httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        settings = read_settings(options.config, changes_of(options))
        if options.dry_run is not None:
            print(dry_run(settings, options.dry_run, limit=options.limit).to_text())
            return 0
        check_repeats(settings, options.repeat)
        summary = build(settings, options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except EngineUnavailable as error:
        print(f"error: {error}\nWhat was answered is kept; the same command goes on from here.", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(outcome(settings, summary))
    if options.push_to_hub is not None:
        try:
            print(push_dataset(settings.output_dir, options.push_to_hub, private=options.private))
        except (ValueError, OSError) as error:
            print(f"error: {error}\nThe dataset is whole; the same command pushes it.", file=sys.stderr)
            return 1
    # Nobody should take an empty dataset for a result.
    return 0 if summary["accepted"] else 1


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="YAML file of settings, see LongGritSettings; --set alone works too")
    parser.add_argument(
        "--set", nargs="+", default=[], action="extend", metavar="NAME=VALUE", help="e.g. model=org/name"
    )
    parser.add_argument("--output_dir", help="folder of the dataset; the same as --set output_dir=...")
    parser.add_argument("--skip", nargs="+", default=[], choices=STAGES, help="stages that do not run")
    parser.add_argument("--repeat", nargs="+", default=[], choices=STAGES, help="stages whose models are asked again")
    parser.add_argument("--retry_failed", action="store_true", help="try again what got no answer from any server")
    parser.add_argument(
        "--limit", type=int, help="about how many regions, up to a whole shard more; the rest with another call"
    )
    parser.add_argument(
        "--dry_run", nargs="?", type=int, const=3, metavar="N", help="print the prompts of N regions and an estimate"
    )
    parser.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS", help="on a Ray cluster (`auto` or its address), or here"
    )
    parser.add_argument("--ray_workers", type=int, help="processes that annotate, with --ray; 2 by default")
    parser.add_argument("--ray_gpus", type=float, default=0, help="GPUs of each of them, for engine `transformers`")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="push the finished dataset")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    options = parser.parse_args(arguments)
    if options.config is None and not options.set:
        parser.error("give a file of settings, or --set")
    if options.dry_run is not None and (options.repeat or options.retry_failed or options.ray or options.push_to_hub):
        parser.error("--dry_run asks and writes nothing: leave out --repeat, --retry_failed, --ray and --push_to_hub")
    if options.limit is not None and options.limit < 1:
        parser.error(f"--limit is {options.limit}; accepted are 1 and more")
    if options.ray_workers is not None and (options.ray is None or options.ray_workers < 1):
        parser.error(f"--ray_workers is {options.ray_workers}; accepted are 1 and more, together with --ray")
    if options.ray is None and options.ray_gpus:
        parser.error(f"--ray_gpus is {options.ray_gpus:g}; it is of the processes that --ray starts")
    if options.push_to_hub is None and options.private:
        parser.error("--private is of the repository that --push_to_hub names")
    if options.push_to_hub is not None:
        try:
            validate_repo_id(options.push_to_hub)
        except HFValidationError as error:
            parser.error(f"--push_to_hub: {error}")
    return options


def check_repeats(settings: LongGritSettings, repeat: list[str]):
    off = sorted(set(repeat) - set(settings.enabled_stages))
    if off:
        raise ValueError(
            f"--repeat names {', '.join(off)}, which does not run; running are {list(settings.enabled_stages)}."
        )


def changes_of(options: argparse.Namespace) -> dict[str, Any]:
    """Settings by dotted name that the options change."""
    changes: dict[str, Any] = {}
    for item in options.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r} is no NAME=VALUE, such as stages.fuse.model=org/name.")
        changes[name] = yaml.safe_load(value)
    if options.output_dir is not None:
        changes["output_dir"] = options.output_dir
    changes.update({f"stages.{stage}.enabled": False for stage in options.skip})
    return changes


def build(settings: LongGritSettings, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the pipeline, here or on Ray."""
    progress = RunProgress()
    chosen = {"limit": options.limit, "repeat": options.repeat, "retry_failed": options.retry_failed}
    try:
        if options.ray is None:
            return run_pipeline(settings, progress=progress, **chosen)
        address = None if options.ray == "local" else options.ray
        return run_pipeline_on_ray(
            settings,
            address=address,
            workers=options.ray_workers or 2,
            num_gpus=options.ray_gpus,
            progress=progress,
            **chosen,
        )
    finally:
        progress.close()


def outcome(settings: LongGritSettings, summary: dict[str, Any]) -> str:
    rejected = {stage: reasons for stage, reasons in summary["rejected"].items() if reasons}
    return (
        f"{summary['accepted']} of {summary['regions']} regions accepted, in {summary['images']} images; rejected: "
        f"{json.dumps(rejected) if rejected else 'none'}\n{os.path.join(settings.output_dir, 'report.html')}"
    )


if __name__ == "__main__":
    sys.exit(main())
