# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Mixed precision of a sharded model: autocast, as in one process and under DDP, in place of FSDP2's own casts."""

from types import MethodType

from transformers import Trainer


def autocast_under_fsdp(trainer: Trainer):
    """
    Makes FSDP2 with bf16 or fp16 compute what one process and DDP compute: parameters, inputs and the loss stay float32,
    and autocast picks the dtype of each operation.

    accelerate has FSDP2 cast all inputs, parameters and outputs. In bfloat16 a box as narrow as 1/300 of the image has
    no area, an inverse temperature of 98.5 becomes 98.9, and the loss and the sums of gradients have three digits. It
    can be told so for all parts of a model alike only, so blocks keep float32 parameters too. The price against its own
    casts: twice the bytes between processes for trained weights and their gradients (frozen weights keep their dtype),
    one block at a time in float32, and, without gradient checkpointing, a half precision copy of the trained weights on
    each device from the forward to the backward pass.

    Does nothing without FSDP or without mixed precision, so every script may call it.

    Args:
        trainer ([`Trainer`]): Not training yet.

    Raises:
        ValueError: If FSDP is version 1, or the model is sharded already.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import Trainer, TrainingArguments
        >>> from modeling_pixclip import autocast_under_fsdp
        >>> trainer = Trainer(torch.nn.Linear(1, 1), TrainingArguments(tempfile.mkdtemp(), report_to="none"))
        >>> autocast_under_fsdp(trainer)
    """
    from accelerate.utils import AutocastKwargs, convert_outputs_to_fp32
    from accelerate.utils.modeling import get_mixed_precision_context_manager
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

    accelerator, model = trainer.accelerator, trainer.model
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None or accelerator.mixed_precision == "no":
        return
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp_version is {plugin.fsdp_version} with mixed precision {accelerator.mixed_precision!r}; accepted is 2. "
            "Set fsdp_version: 2 in the configuration of accelerate, or train without mixed precision."
        )
    # A second call finds it done.
    done = hasattr(model, "_original_forward")
    if isinstance(model, FSDPModule) and not done:
        raise ValueError(
            "The model is sharded already, with the casts of accelerate. Call this before trainer.train()."
        )
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    if not done:
        # As accelerate does it for other kinds of training. A cache would keep a copy of each weight that FSDP has let go.
        model._original_forward = model.forward
        autocast = get_mixed_precision_context_manager(accelerator.native_amp, AutocastKwargs(cache_enabled=False))
        model.forward = MethodType(convert_outputs_to_fp32(autocast(model.forward.__func__)), model)


__all__ = ["autocast_under_fsdp"]
