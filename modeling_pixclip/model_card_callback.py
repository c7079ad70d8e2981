# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The plain `transformers.Trainer` writes PixCLIP's model card in place of its own."""

import copy
import importlib.metadata
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.utils import logging

from .card_text import count
from .freezing_schedule import FreezingSchedule
from .gradient_caching import GradientCachingTrainer
from .model_card import CardDetails, hub_id, merge_model_cards, render_model_card, write_model_card


logger = logging.get_logger(__name__)

_PACKAGES = ("pixclip", "torch", "transformers", "accelerate", "datasets", "tokenizers")


class RunParts(TrainerCallback, ExportableState):
    """
    Time, processes, hardware and versions of a training run and, if it was resumed, of the parts before.

    It has the Trainer keep them in its checkpoints. What a run did after the checkpoint that the next one goes on from
    is not counted.

    Example:
        >>> from modeling_pixclip.model_card_callback import RunParts
        >>> RunParts().parts
        []
    """

    def __init__(self):
        self.parts: list[dict[str, Any]] = []
        self._started: float | None = None
        self._trainer_state: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        stored = state.stateful_callbacks.get(type(self).__name__) or {}
        self.parts = (
            [dict(part) for part in stored.get("attributes", {}).get("parts", [])] if state.global_step else []
        )
        self._started, self._trainer_state = time.monotonic(), state
        self.parts.append(
            {
                "from_step": state.global_step,
                "to_step": state.global_step,
                "seconds": 0.0,
                "processes": args.world_size,
                "hardware": hardware(args.device),
                "versions": versions(),
            }
        )
        # The Trainer only replaces what is there.
        state.stateful_callbacks[type(self).__name__] = self.state()

    def on_train_end(self, args, state, control, **kwargs):
        self.count()
        self._started = None

    def count(self):
        """Brings the part that is running up to now."""
        if self._started is not None:
            self.parts[-1]["seconds"] = time.monotonic() - self._started
            self.parts[-1]["to_step"] = self._trainer_state.global_step

    def state(self) -> dict[str, Any]:
        self.count()
        return {"args": {}, "attributes": {"parts": self.parts}}


class ModelCardCallback(TrainerCallback):
    """
    Writes the model card whenever the plain [`Trainer`] saves or pushes: README.md in the folder of the model.

    It takes the place of the card that `Trainer.push_to_hub` writes, also of those pushed during training
    (`hub_strategy`). README.md is written with each checkpoint, at the end of training, by `trainer.save_model` and by
    `trainer.create_model_card`, on the main process alone, and keeps what was written by hand (see [`write_model_card`]).
    What it records of the run goes on with a checkpoint that is resumed.

    Args:
        details ([`CardDetails`], *optional*): What the Trainer does not know: licence, data, results. They may be
            changed at any time, e.g. when the model has been measured: `callback.details.results = {...}`, then
            `callback.write()`. `results` may be a file that is not there yet.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from transformers import LlamaConfig, Trainer, TrainingArguments
        >>> from modeling_pixclip import CardDetails, ModelCardCallback, PixCLIPConfig, PixCLIPForPreTraining
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPForPreTraining(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> folder = tempfile.mkdtemp()
        >>> trainer = Trainer(model, TrainingArguments(folder, use_cpu=True, report_to="none"))
        >>> ModelCardCallback(CardDetails(license="apache-2.0", vision_origin="scratch")).add_to(trainer)
        >>> trainer.create_model_card()
        >>> "license: apache-2.0" in Path(folder, "README.md").read_text()
        True
    """

    def __init__(self, details: CardDetails | None = None):
        self.details = details or CardDetails()
        self._trainer: Trainer | None = None
        self._training = False
        self._setup: dict[str, Any] = {}

    def add_to(self, trainer: Trainer):
        """
        Lets the Trainer write this card; `Trainer(callbacks=[...])` alone would leave it its own.

        Args:
            trainer ([`Trainer`]): Not training yet. Add a [`CheckpointIntegrityCallback`] after this.

        Raises:
            ValueError: If the output folder has a README.md whose metadata or marks are damaged, or the file of the results
                cannot be read as that.
        """
        self._trainer = trainer
        readme = Path(trainer.args.output_dir) / "README.md"
        if trainer.is_world_process_zero():
            card = self._render()
            if readme.exists():
                # Before the hours of training, not after them.
                try:
                    merge_model_cards(readme.read_text(encoding="utf-8-sig"), card)
                except ValueError as error:
                    raise ValueError(f"{readme} cannot take the model card: {error}") from error
        trainer.add_callback(RunParts())
        trainer.add_callback(self)
        save_model = trainer.save_model

        def save_model_and_card(output_dir: str | None = None, _internal_call: bool = False):
            save_model(output_dir, _internal_call)
            # The model is saved, so that what comes after it goes on.
            self._write(output_dir, warn=True)

        trainer.save_model = save_model_and_card
        trainer.create_model_card = self._create_model_card

    def write(self, folder: str | None = None):
        """
        Writes the card now; nothing on other processes than the main one.

        Args:
            folder (`str`, *optional*): Defaults to the Trainer's output folder.

        Raises:
            ValueError: If there is a README.md whose metadata or marks are damaged, or the file of the results is; as all
                other errors, a warning in training. A file of results that is not there is a warning too.
            OSError: If README.md cannot be written.
        """
        self._write(folder, warn=self._training)

    def _write(self, folder: str | None, warn: bool):
        if not self._trainer.is_world_process_zero():
            return
        if not self._training and self._results_to_come():
            logger.warning("The model card has no results: there is no file %s.", self.details.results)
        try:
            write_model_card(folder or self._trainer.args.output_dir, self._render())
        except Exception as error:
            if not warn:
                raise
            logger.warning("The model card was not written: %s: %s", type(error).__name__, error)

    def _results_to_come(self) -> bool:
        return isinstance(self.details.results, str) and not Path(self.details.results).exists()

    def _create_model_card(
        self,
        language: str | list[str] | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ):
        """Takes the place of [`Trainer.create_model_card`], whose arguments add to the details."""

        def listed(value: str | list[str] | None) -> list[str]:
            return [value] if isinstance(value, str) else list(value or ())

        details = self.details
        changes: dict[str, Any] = {
            "tags": list(dict.fromkeys([*details.tags, *listed(tags)])),
            "datasets": list(dict.fromkeys([*details.datasets, *listed(dataset_tags)])),
        }
        if hub_id(finetuned_from) is not None and finetuned_from not in details.base_model:
            changes["base_model"] = [*details.base_model, finetuned_from]
        if dataset:
            names = ", ".join([*listed(dataset), *listed(dataset_args)])
            changes["data"] = {**details.data, "train": {**details.data.get("train", {}), "name": names}}
        if tasks:
            changes["pipeline_tag"] = listed(tasks)[0]
        given = {"language": language, "license": license}
        # Trainer.push_to_hub names the model after its repository, which is what the details' own name is to replace.
        given["model_name"] = details.model_name or model_name
        changes |= {name: value for name, value in given.items() if value is not None}
        self.details = replace(details, **changes)
        self.write()

    def _render(self):
        trainer = self._trainer
        # Not replace(): the details were checked when they were given.
        details = copy.copy(self.details)
        repo_id = details.repo_id or trainer.hub_model_id or trainer.args.hub_model_id
        name = details.model_name or (repo_id or Path(trainer.args.output_dir).resolve().name).split("/")[-1]
        details.repo_id, details.model_name = repo_id, name
        if self._results_to_come():
            details.results = None
        model = trainer.model
        tags = [tag for tag in getattr(model, "model_tags", None) or () if tag not in details.tags]
        training = self._record() if self._setup or trainer.state.global_step else None
        details.tags = [*details.tags, *tags] + ["generated_from_trainer"] * (training is not None)
        return render_model_card(model.config, trainer.processing_class, details, training)

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if self._trainer is None:
            raise ValueError(
                "ModelCardCallback was given to Trainer(callbacks=[...]), which would write its own card when it pushes. "
                "Leave it out there, and call ModelCardCallback(...).add_to(trainer)."
            )
        self._training = True
        # Before a FreezingSchedule takes a part out.
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        rates: dict[str, float] = {}
        for group in getattr(optimizer, "param_groups", None) or ():
            if "group" in group:
                rate = float(group.get("initial_lr", group["lr"]))
                rates[group["group"]] = max(rate, rates.get(group["group"], 0.0))
        self._setup = {
            "all": sum(count for count, _ in counts),
            "trained": sum(count for count, trains in counts if trains),
            "group_learning_rates": rates,
            "optimizer": _described(optimizer),
            "dtypes": sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}),
        }

    def on_push_begin(self, args, state, control, **kwargs):
        self.write()

    def on_train_end(self, args, state, control, **kwargs):
        self.write()
        self._training = False

    def _record(self) -> dict[str, Any]:
        """What the card says of the run, up to now."""
        trainer, setup = self._trainer, self._setup
        args, state = trainer.args, trainer.state
        history = state.log_history
        losses = [entry for entry in history if "loss" in entry]
        evaluations = [entry for entry in history if any(key.startswith("eval_") for key in entry)]
        skipped: dict[str, int] = {}
        for entry in losses:
            for key, value in entry.items():
                if key.startswith("skipped_"):
                    skipped[key.removeprefix("skipped_")] = skipped.get(key.removeprefix("skipped_"), 0) + int(value)
        frozen = []
        if setup:
            frozen.append(f"{setup['all'] - setup['trained']:,} parameters")
        frozen += [
            f"{name} in steps {first} to {end if end is not None else 'the end'}"
            for callback in trainer.callback_handler.callbacks
            if isinstance(callback, FreezingSchedule)
            for name, (first, end) in callback.frozen.items()
        ]
        frozen.append(f"text backbone: {trainer.model.config.text_config.backbone_training}")
        autocast = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
        return {
            "images": _length(trainer.train_dataset),
            "steps": state.global_step,
            "max_steps": max(state.max_steps, state.global_step),
            "epochs": state.epoch,
            "batch": self._batch(),
            "optimizer": f"{setup.get('optimizer', 'not recorded')}, weight decay {args.weight_decay}, "
            f"gradients clipped at {args.max_grad_norm}",
            "learning_rate": args.learning_rate,
            "schedule": f"{getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)} schedule, "
            f"{args.get_warmup_steps(state.max_steps)} warm-up steps",
            "group_learning_rates": setup.get("group_learning_rates"),
            "parameters": f"{setup['all']:,}, of which {setup['trained']:,} train" if setup else None,
            "frozen": "; ".join(frozen) or None,
            "precision": f"weights in {' and '.join(setup.get('dtypes', ['not recorded']))}, "
            + (f"computed in {autocast} (autocast)" if autocast else "no autocast"),
            "seed": args.seed if args.data_seed is None else f"{args.seed}, of the data {args.data_seed}",
            "skipped": ", ".join(
                f"{number:,} {reason.replace('_', ' ')}" for reason, number in sorted(skipped.items())
            )
            or None,
            "loss": losses[-1] if losses else None,
            "evaluation": evaluations[-1] if evaluations else None,
            "parts": self._parts(),
        }

    def _parts(self) -> list[dict[str, Any]]:
        """Those in which a step was made; looked up, as the Trainer may have restored another object."""
        parts = next(
            callback for callback in self._trainer.callback_handler.callbacks if isinstance(callback, RunParts)
        )
        parts.count()
        return [part for part in parts.parts if part["to_step"] > part["from_step"]]

    def _batch(self) -> str:
        args = self._trainer.args
        images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        cached = isinstance(self._trainer, GradientCachingTrainer)
        processes = 1 if self._trainer.model.config.gather == "local" else args.world_size
        contrastive = images if cached else args.train_batch_size * processes
        negatives = f"; {contrastive} images in a contrastive batch{' (gradient caching)' if cached else ''}"
        return (
            f"{count(images, 'image')} a step: {args.train_batch_size} a process and pass, "
            f"{count(args.gradient_accumulation_steps, 'pass', 'passes')}, "
            f"{count(args.world_size, 'process', 'processes')}{negatives}"
        )


def _described(optimizer: Any) -> str:
    # Accelerate's wrapper holds it.
    optimizer = getattr(optimizer, "optimizer", optimizer)
    betas = getattr(optimizer, "defaults", {}).get("betas")
    return type(optimizer).__name__ + (f", betas {' and '.join(map(str, betas))}" if betas else "")


def _length(dataset: Any) -> int | None:
    try:
        return len(dataset)
    except TypeError:
        return None


def hardware(device: torch.device) -> str:
    """
    A device as torch reports it.

    Example:
        >>> import torch
        >>> from modeling_pixclip.model_card_callback import hardware
        >>> hardware(torch.device("cpu")).startswith("CPU")
        True
    """
    if device.type == "cpu":
        return f"CPU ({torch.backends.cpu.get_cpu_capability()}), {count(torch.get_num_threads(), 'thread')}"
    properties = torch.get_device_module(device).get_device_properties(device)
    memory = getattr(properties, "total_memory", None)
    return f"{properties.name}" + (f", {memory / 2**30:.0f} GiB" if memory else "")


def versions() -> str:
    """
    Versions of Python and of the packages that train.

    Example:
        >>> from modeling_pixclip.model_card_callback import versions
        >>> "torch" in versions()
        True
    """
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} (not installed)")
    return ", ".join(found)


__all__ = ["ModelCardCallback", "hardware", "versions"]
