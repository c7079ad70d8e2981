# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Exponential moving averages of a model's weights under the plain `transformers.Trainer`."""

import ctypes
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from .disk_sync import sync_path
from .text_backbone_training import weight_sample


logger = logging.get_logger(__name__)

WEIGHT_AVERAGES = "weight_averages.safetensors"
AVERAGED_MODEL = "ema"


class WeightAveragingCallback(TrainerCallback):
    """
    Keeps an exponential moving average of the weights that train: `average = decay * average + (1 - decay) * weight`.

    The averages are float32 whatever the weights are. Every checkpoint holds them as `weight_averages.safetensors`, from
    which a resumed run goes on bit by bit as if it had not stopped. When training ends, the model with averaged weights
    is saved in `output_dir/ema`, for `from_pretrained`; the model in memory and the checkpoints' own weights stay as they
    were trained. In several processes (DDP) all average alike and the main one writes. Weights that FSDP or DeepSpeed
    have distributed are refused.

    It averages what has `requires_grad` when training begins; everything else in the averaged model is the model's own.
    With [`CheckpointIntegrityCallback`], put it before that one, whose manifest then covers the averages too.

    Args:
        decay (`float`, *optional*, defaults to 0.999): Share of the average that an update keeps, in [0, 1).
        start_step (`int`, *optional*, defaults to 0): The averages begin as the weights after so many steps.
        update_every (`int`, *optional*, defaults to 1): Steps from one update to the next.
        evaluate (`bool`, *optional*, defaults to `True`): Run every forward pass in eval mode, during training, with the
            averaged weights: what the Trainer evaluates, and picks the best checkpoint by, is then the average. Other
            evaluation than by the model's forward goes under [`~WeightAveragingCallback.applied`].
        resume_from (`str`, *optional*): The checkpoint that is resumed from, if that is not in the output folder.

    Raises:
        ValueError: If a setting is out of its range; when training begins, if weights are distributed, or the checkpoint
            that is resumed has no averages, or those of other weights.

    Example:
        >>> import tempfile
        >>> from transformers import Trainer, TrainingArguments
        >>> from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModel, WeightAveragingCallback
        >>> model = PixCLIPVisionModel(PixCLIPVisionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
        >>> args = TrainingArguments(tempfile.mkdtemp(), report_to="none")
        >>> trainer = Trainer(model, args, callbacks=[WeightAveragingCallback(decay=0.9998)])
    """

    def __init__(
        self,
        decay: float = 0.999,
        start_step: int = 0,
        update_every: int = 1,
        evaluate: bool = True,
        resume_from: str | None = None,
    ):
        if not 0 <= decay < 1 or start_step < 0 or update_every < 1:
            raise ValueError(
                f"decay is {decay}, start_step {start_step} and update_every {update_every}; accepted are a decay in "
                "[0, 1), start_step >= 0 and update_every >= 1."
            )
        self.decay = decay
        self.start_step = start_step
        self.update_every = update_every
        self.evaluate = evaluate
        self.resume_from = resume_from
        self.averages: dict[str, torch.Tensor] = {}
        self._weights: dict[str, nn.Parameter] = {}
        self._hooks: list = []
        self._own: dict[str, torch.Tensor] | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        for hook in self._hooks:
            hook.remove()
        self._hooks, self.averages = [], {}
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        distributed = [name for name, weight in self._weights.items() if hasattr(weight, "device_mesh")]
        if distributed or args.fsdp or args.deepspeed:
            raise ValueError(
                "WeightAveragingCallback needs whole weights in every process, but FSDP or DeepSpeed distribute them "
                f"({', '.join(distributed[:1]) or 'by the training arguments'}). Train with DDP, or leave the averages out."
            )
        if state.global_step > self.start_step:
            folder = Path(self.resume_from or Path(args.output_dir) / f"checkpoint-{state.global_step}")
            self.averages = self._read(folder)
        elif state.global_step == self.start_step:
            self._begin()
        if self.evaluate:
            self._hooks = [
                model.register_forward_pre_hook(self._before_forward),
                model.register_forward_hook(self._after_forward, always_call=True),
            ]

    def _begin(self):
        self.averages = {name: weight.detach().float().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs):
        since = state.global_step - self.start_step
        if since == 0:
            self._begin()
        elif since > 0 and since % self.update_every == 0:
            weights = [weight.detach().float() for weight in self._weights.values()]
            torch._foreach_lerp_(list(self.averages.values()), weights, 1 - self.decay)

    def on_save(self, args, state, control, **kwargs):
        if args.should_save and self.averages:
            self._write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args, state, control, model=None, processing_class=None, **kwargs):
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if not self.averages:
            logger.warning(
                f"there are no averaged weights: training ended at step {state.global_step}, start_step is "
                f"{self.start_step}."
            )
        elif args.should_save:
            folder = Path(args.output_dir) / AVERAGED_MODEL
            made = folder.with_name(f"{AVERAGED_MODEL}.tmp")
            shutil.rmtree(made, ignore_errors=True)
            with self.applied(model):
                if hasattr(model, "save_pretrained"):
                    model.save_pretrained(made)
                else:
                    made.mkdir(parents=True)
                    save_file(model.state_dict(), made / "model.safetensors", {"format": "pt"})
            if processing_class is not None:
                processing_class.save_pretrained(made)
            for file in made.rglob("*"):
                sync_path(file)
            _put_in_place(made, folder)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """
        The averaged weights in place of the model's own, for the time of a `with` block.

        Args:
            model (`nn.Module`): The model that the Trainer trains or has trained, not wrapped.

        Raises:
            ValueError: If there are no averages yet, or they are those of another model.
        """
        weights = dict(model.named_parameters())
        if not self.averages or not self.averages.keys() <= weights.keys():
            raise ValueError(
                "there are no averaged weights of this model. They are there from start_step on, for the model that the "
                "Trainer was made with."
            )
        own = _swap_in(weights, self.averages)
        try:
            yield
        finally:
            _swap_back(weights, own)

    @torch.compiler.disable
    def _before_forward(self, module, args):
        if not module.training and self.averages and self._own is None:
            self._own = _swap_in(self._weights, self.averages)

    @torch.compiler.disable
    def _after_forward(self, module, args, outputs):
        if self._own is not None:
            _swap_back(self._weights, self._own)
            self._own = None

    def _write(self, folder: Path):
        temporary = folder / f"{WEIGHT_AVERAGES}.tmp"
        metadata = {"format": "pt", "weights": _fingerprint(self._weights)}
        save_file({name: average.cpu() for name, average in self.averages.items()}, temporary, metadata)
        sync_path(temporary)
        temporary.replace(folder / WEIGHT_AVERAGES)
        sync_path(folder)

    def _read(self, folder: Path) -> dict[str, torch.Tensor]:
        averages, metadata = _read_averages(
            folder,
            "A run that was trained without them can begin to average where it is resumed, by start_step; a checkpoint in "
            "another folder than the output is given as resume_from",
        )
        if averages.keys() != self._weights.keys():
            differing = sorted(averages.keys() ^ self._weights.keys())
            raise ValueError(
                f"the averages in {folder} are not of the weights that train: only one of the two has {differing[:3]}."
            )
        if metadata.get("weights") != _fingerprint(self._weights):
            raise ValueError(
                f"the averages in {folder} are not those of the weights that are resumed. Give the checkpoint that is "
                "resumed from as resume_from."
            )
        return {name: averages[name].to(weight.device) for name, weight in self._weights.items()}


def load_weight_averages(model: nn.Module, checkpoint: str | os.PathLike) -> None:
    """
    Puts the averaged weights of a checkpoint into a model.

    Args:
        model (`nn.Module`): The model of that checkpoint, e.g. as `from_pretrained` loads it.
        checkpoint (`str` or `os.PathLike`): A checkpoint of a Trainer with [`WeightAveragingCallback`].

    Raises:
        ValueError: If it has no averages, or they are of other parameters than the model has.

    Example:
        >>> from modeling_pixclip import PixCLIPForPreTraining, load_weight_averages
        >>> model = PixCLIPForPreTraining.from_pretrained("run/checkpoint-500")  # doctest: +SKIP
        >>> load_weight_averages(model, "run/checkpoint-500")  # doctest: +SKIP
        >>> import torch
        >>> load_weight_averages(torch.nn.Linear(1, 1), "run/checkpoint-500")
        Traceback (most recent call last):
        ValueError: ... has no weight_averages.safetensors. ...
    """
    averages, _ = _read_averages(Path(checkpoint), "Train with WeightAveragingCallback")
    weights = dict(model.named_parameters())
    wrong = [name for name, average in averages.items() if name not in weights or weights[name].shape != average.shape]
    if wrong:
        raise ValueError(
            f"the averages in {checkpoint} do not fit the model: {wrong[:3]} are missing or of other shape."
        )
    with torch.no_grad():
        for name, average in averages.items():
            weights[name].copy_(average)


def _read_averages(folder: Path, remedy: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    file = folder / WEIGHT_AVERAGES
    if not file.is_file():
        raise ValueError(f"{folder} has no {WEIGHT_AVERAGES}. {remedy}.")
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}


def _swap_in(weights: Mapping[str, nn.Parameter], averages: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Points weights at the averages, in their dtype, and returns what they pointed at."""
    own = {name: weights[name].data for name in averages}
    for name, average in averages.items():
        weights[name].data = average.to(own[name].dtype)
    return own


def _swap_back(weights: Mapping[str, nn.Parameter], own: Mapping[str, torch.Tensor]) -> None:
    for name, data in own.items():
        weights[name].data = data


def _put_in_place(made: Path, folder: Path) -> None:
    """Puts a folder in the place of another one, which is whole at each moment, the old or the new."""
    if not folder.exists():
        made.replace(folder)
    elif _exchange(made, folder):
        shutil.rmtree(made)
    else:
        # Between the two steps the old one has another name.
        old = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        folder.replace(old)
        made.replace(folder)
        shutil.rmtree(old)
    sync_path(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two folders in one step, where the system (Linux) and the file system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    # From the current folder (AT_FDCWD), by RENAME_EXCHANGE.
    return rename is not None and rename(-100, os.fsencode(one), -100, os.fsencode(other), 2) == 0


def _fingerprint(weights: Mapping[str, nn.Parameter]) -> str:
    """Of some numbers of each weight: which checkpoint averages belong to."""
    checksum = 0
    for name, weight in weights.items():
        sample = weight_sample(weight).float().cpu()
        checksum = zlib.crc32(sample.numpy().tobytes(), zlib.crc32(name.encode(), checksum))
    return f"{checksum:08x}"


__all__ = ["WeightAveragingCallback", "load_weight_averages"]
