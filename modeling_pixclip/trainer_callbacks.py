# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Trainer callbacks that make the objective visible in the plain `transformers.Trainer`."""

from collections import defaultdict

import torch
from transformers import TrainerCallback


class LossTermsCallback(TrainerCallback):
    """
    Adds the mean of every branch since the last log, as `loss_<branch>`, to what the Trainer logs.

    It reads `loss_terms` of the model's outputs by a forward hook. Put it first, so that reporters such as TensorBoard
    see the terms too.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import Trainer, TrainingArguments
        >>> from modeling_pixclip import LossTermsCallback
        >>> trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(tempfile.mkdtemp(), report_to="none"))
        >>> trainer.callback_handler.callbacks.insert(0, LossTermsCallback())
    """

    def __init__(self):
        self._sums: dict[str, torch.Tensor] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._hook = None

    def _collect(self, module, args, outputs):
        if not module.training or not outputs.loss_terms:
            return
        for name, value in outputs.loss_terms.items():
            self._sums[name] = self._sums[name] + value
            self._counts[name] += 1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._hook = model.register_forward_hook(self._collect)

    def on_train_end(self, args, state, control, **kwargs):
        self._hook.remove()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        terms = {f"loss_{name}": float(total) / self._counts[name] for name, total in self._sums.items()}
        logs.update(terms)
        state.log_history[-1].update(terms)
        self._sums.clear()
        self._counts.clear()


__all__ = ["LossTermsCallback"]
