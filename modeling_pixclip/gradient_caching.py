# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Contrastive batches larger than memory: gradient caching (GradCache, Gao et al. 2021, arXiv 2101.06983)."""

import copy
import dataclasses
import inspect
from collections import deque
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from .distributed_features import world_size
from .outputs_pixclip import PretrainingEmbeddings
from .trainer_callbacks import LossTermsCallback


class GradientCachingTrainer(Trainer):
    """
    [`Trainer`] whose contrastive batch is larger than what fits: the gradient of the big batch, the memory of a small one.

    The loss of a contrastive batch is no sum over its parts, so gradient accumulation alone changes it: each part would
    only see its own negatives. Here each part (chunk) of `per_device_train_batch_size` samples goes through the model
    twice. First without gradients, for the embeddings; the objective of all embeddings together gives the loss and the
    gradient of each embedding. Then again, with the same random numbers, and backward from those gradients. Memory
    holds the activations of one chunk and the embeddings of all; the price is one more forward pass.

    To the Trainer the chunks of a batch are its accumulation steps, so data loading, logs, schedules, checkpoints and
    resuming are its own. The reported loss and the terms of [`LossTermsCallback`] are those of the whole batch. The last
    batch of an epoch may be smaller. A batch of one chunk trains as in the plain Trainer.

    In several processes the objective spans all of them. Chunks that wait are kept in the memory of the host.

    Args:
        model ([`PixCLIPForPreTraining`], *optional*): The model, or any whose `forward` takes `return_embeddings` and
            that has `objective`; `None` with `model_init`.
        args ([`TrainingArguments`]): A copy is used whose `gradient_accumulation_steps` is the number of chunks.
        *others: Those of [`Trainer`], as is `**kwargs`.
        contrastive_batch_size (`int`): Samples of one optimiser step over all processes; a multiple of
            `per_device_train_batch_size` times their number.

    Raises:
        ValueError: If `contrastive_batch_size` is no such multiple, or an argument does not go with gradient caching:
            another `gradient_accumulation_steps`, `auto_find_batch_size`, `compute_loss_func`, DeepSpeed, several GPUs
            in one process.
        TypeError: If the model does not give its embeddings.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig, TrainingArguments
        >>> from modeling_pixclip import GradientCachingTrainer, PixCLIPConfig, PixCLIPForPreTraining
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPForPreTraining(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> args = TrainingArguments(tempfile.mkdtemp(), per_device_train_batch_size=8, use_cpu=True, report_to="none")
        >>> trainer = GradientCachingTrainer(model, args, contrastive_batch_size=64)
        >>> trainer.args.gradient_accumulation_steps
        8
    """

    # The gradients of a chunk are its part of the whole batch's: the Trainer must not divide them by the chunks.
    loss_is_scaled_for_ga = True

    def __init__(
        self, model=None, args: TrainingArguments | None = None, *others, contrastive_batch_size: int, **kwargs
    ):
        args = TrainingArguments("tmp_trainer") if args is None else copy.copy(args)
        smallest = args.train_batch_size * args.world_size
        if contrastive_batch_size < 1 or contrastive_batch_size % smallest:
            raise ValueError(
                f"contrastive_batch_size is {contrastive_batch_size}; accepted are multiples of {smallest}, which is "
                f"per_device_train_batch_size ({args.per_device_train_batch_size}) times {args.world_size} processes."
            )
        chunks = contrastive_batch_size // smallest
        if args.gradient_accumulation_steps not in (1, chunks):
            raise ValueError(
                f"gradient_accumulation_steps is {args.gradient_accumulation_steps}; contrastive_batch_size "
                f"{contrastive_batch_size} makes it {chunks}. Leave it out: one optimiser step is one contrastive batch."
            )
        args.gradient_accumulation_steps = chunks
        super().__init__(model, args, *others, **kwargs)
        refused = {
            "auto_find_batch_size": args.auto_find_batch_size,
            "compute_loss_func": self.compute_loss_func is not None,
            "DeepSpeed": self.is_deepspeed_enabled,
            "several GPUs in one process (start one process a GPU with torchrun)": args.n_gpu > 1,
        }
        if any(refused.values()):
            raise ValueError(
                f"gradient caching does not go with {', '.join(name for name, given in refused.items() if given)}; leave "
                "it out, or use the plain Trainer."
            )
        model = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if not hasattr(model, "objective") or "return_embeddings" not in inspect.signature(model.forward).parameters:
            raise TypeError(
                f"gradient caching needs a model that gives its embeddings, by forward(return_embeddings=True) and "
                f"objective(embeddings); got {type(model).__name__}, accepted is PixCLIPForPreTraining."
            )
        self._batches: list[Any] = []
        # Of each chunk to come: random numbers at its start, and the gradients of its embeddings.
        self._chunks: deque[tuple[list[torch.Tensor], dict[str, torch.Tensor]]] = deque()
        self._repeats: tuple[list[torch.Tensor], dict[str, torch.Tensor]] | None = None
        self._batch_loss: torch.Tensor | None = None

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        from accelerate.utils import send_to_device

        # The loader puts batches on the device; only the one at work is to be there.
        on_host = (send_to_device(batch, "cpu") for batch in epoch_iterator)
        self._batches, num_items_in_batch = super().get_batch_samples(on_host, num_batches, device)
        self._chunks.clear()
        return self._batches, num_items_in_batch

    def training_step(self, model, inputs, num_items_in_batch=None):
        if len(self._batches) == 1:
            return super().training_step(model, inputs, num_items_in_batch)
        if not self._chunks:
            # Not where the batches are read: a resumed run gets its random numbers back between the two.
            self._cache_gradients(model)
        self._repeats = self._chunks.popleft()
        try:
            super().training_step(model, inputs, num_items_in_batch)
        finally:
            self._repeats = None
        # The Trainer adds up what the chunks of a batch return.
        return self._batch_loss / len(self._batches)

    def compute_loss(self, model, inputs, *args, **kwargs):
        if self._repeats is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        random_state, gradients = self._repeats
        _set_random_state(random_state, self.args.device)
        embeddings = model(**inputs, return_embeddings=True)
        outputs = _differentiable(embeddings)
        # A number whose gradient by each embedding is the cached one.
        return sum((outputs[name].float() * gradient.float()).sum() for name, gradient in gradients.items())

    def _cache_gradients(self, model):
        model.train()
        if hasattr(self.optimizer, "train") and callable(self.optimizer.train):
            self.optimizer.train()
        random_states, parts = [], []
        with torch.no_grad(), self.compute_loss_context_manager():
            for inputs in self._batches:
                random_states.append(_random_state(self.args.device))
                parts.append(model(**self._prepare_inputs(inputs), return_embeddings=True))
        embeddings = PretrainingEmbeddings.join(parts)
        leaves = {name: value.detach().requires_grad_() for name, value in _differentiable(embeddings).items()}
        scales = {name: leaves[name] for name in embeddings.scales}
        views = {name: leaf for name, leaf in leaves.items() if name not in scales}
        embeddings = dataclasses.replace(embeddings, **views, scales=scales)
        with self.accelerator.autocast():
            loss, terms = self.accelerator.unwrap_model(model).objective(embeddings)
        # DDP waits for a gradient of all that the outputs hang on, also of what no term reads.
        gradients = torch.autograd.grad(loss, leaves.values(), allow_unused=True, materialize_grads=world_size() > 1)
        of_parts: list[dict[str, torch.Tensor]] = [{} for _ in parts]
        for name, gradient in zip(leaves, gradients):
            if gradient is None:
                continue
            shares = [gradient / len(parts)] * len(parts)
            if name in views:
                shares = gradient.split([len(part[name]) for part in parts])
            for of_part, share in zip(of_parts, shares):
                of_part[name] = share
        self._chunks.extend(zip(random_states, of_parts))
        self._batch_loss = loss.detach()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, LossTermsCallback):
                callback.add(terms, embeddings.skipped)


def _differentiable(embeddings: PretrainingEmbeddings) -> dict[str, torch.Tensor]:
    """The views and the scales."""
    views = {name: value for name, value in embeddings.items() if name.endswith("_embeds")}
    return views | embeddings.scales


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device).get_rng_state())
    return states


def _set_random_state(states: list[torch.Tensor], device: torch.device):
    torch.set_rng_state(states[0])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[1])


__all__ = ["GradientCachingTrainer"]
