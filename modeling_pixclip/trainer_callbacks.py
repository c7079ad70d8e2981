# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Trainer callbacks that make the objective visible in the plain `transformers.Trainer`."""

from collections import Counter, defaultdict
from collections.abc import Mapping

import torch
from transformers import Trainer, TrainerCallback

from .distributed_features import world_size


class LossTermsCallback(TrainerCallback):
    """
    Adds what the objective did since the last log to what the Trainer logs.

    * `loss_<term>`: mean of each term, before its weight, over the batches that had pairs for it, also over those of
      gradient accumulation. In several processes the model's terms are those of all of them.
    * `skipped_<reason>`: how many regions were left out, the sum over all processes.
    * `learning_rate_<group>`: of the groups of [`get_parameter_groups`], if the optimiser has them; with layer decay
      that of the highest layer.

    It reads `loss_terms` and `skipped` of the model's outputs by a forward hook, in training alone. Reporters such as
    TensorBoard see the terms if the callback comes before them, for which [`~LossTermsCallback.add_to`] cares.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import Trainer, TrainingArguments
        >>> from modeling_pixclip import LossTermsCallback
        >>> trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(tempfile.mkdtemp(), report_to="none"))
        >>> LossTermsCallback().add_to(trainer)
    """

    def __init__(self):
        self._sums: dict[str, torch.Tensor] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self._skipped: Counter[str] = Counter()
        self._rates: dict[str, float] = {}
        self._hook = None

    def add_to(self, trainer: Trainer):
        """
        Puts the callback before the reporters; `Trainer(callbacks=[...])` would put it behind them.

        Args:
            trainer ([`Trainer`]): Not training yet.
        """
        trainer.callback_handler.callbacks.insert(0, self)

    def add(self, loss_terms: Mapping[str, torch.Tensor], skipped: Mapping[str, int] | None = None):
        """
        Counts the terms of one batch in; the forward hook does so. For training loops that call the objective apart.

        Args:
            loss_terms (`Mapping[str, torch.Tensor]`): Value of each term.
            skipped (`Mapping[str, int]`, *optional*): Regions left out in this process, by reason.
        """
        for name, value in loss_terms.items():
            self._sums[name] = self._sums[name] + value.detach()
            self._counts[name] += 1
        for reason, count in (skipped or {}).items():
            # Also 0: a curve without gaps.
            self._skipped[reason] += count

    @torch.compiler.disable
    def _collect(self, module, args, outputs):
        if module.training and getattr(outputs, "loss_terms", None) is not None:
            self.add(outputs.loss_terms, outputs.skipped)

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # A run that ended by an exception has left its own.
        self._remove_hook()
        self._clear()
        self._hook = model.register_forward_hook(self._collect)

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        # The rates of this step: when it is logged, the scheduler has set those of the next.
        self._rates = {}
        for group in optimizer.param_groups:
            if "group" in group:
                name = f"learning_rate_{group['group']}"
                self._rates[name] = max(float(group["lr"]), self._rates.get(name, 0.0))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        entries = {f"loss_{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
        entries |= {f"skipped_{reason}": count for reason, count in sorted(self._skipped_of_all().items())}
        entries |= self._rates
        logs.update(entries)
        state.log_history[-1].update(entries)
        self._clear()

    def on_train_end(self, args, state, control, **kwargs):
        self._remove_hook()

    def _skipped_of_all(self) -> dict[str, int]:
        parts = [dict(self._skipped)]
        if world_size() > 1:
            parts = [None] * world_size()
            torch.distributed.all_gather_object(parts, dict(self._skipped))
        total: Counter[str] = Counter()
        for part in parts:
            total.update(part)
        return dict(total)

    def _clear(self):
        self._sums.clear()
        self._counts.clear()
        self._skipped.clear()

    def _remove_hook(self):
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


__all__ = ["LossTermsCallback"]
