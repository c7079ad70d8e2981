# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Parts of a model that train only from, or only until, a step of the plain `transformers.Trainer`."""

from collections.abc import Mapping, Sequence

from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from .distributed_features import is_distributed
from .parameter_groups import find_group_parameters


logger = logging.get_logger(__name__)


class FreezingSchedule(TrainerCallback):
    """
    Keeps groups of parameters frozen for a range of steps.

    Frozen parameters get no gradient: neither momentum nor weight decay moves them, and the norm that gradients are
    clipped by does not count them. The optimiser holds them from the start, so they train on with their own state, or
    begin with a new one. The schedule depends on the step alone, and so resumes.

    On one process the backward pass of what is frozen is not computed. With `torch.distributed` it is, and its result
    thrown away: what DDP or FSDP reduces is settled when they wrap the model. What never trains should therefore not be
    scheduled but frozen before the Trainer is made, by `requires_grad_(False)`; the text backbone is so by default
    (`set_text_backbone_trainable`), then runs without gradients and in eval mode. A text backbone that is scheduled has to
    be `"lora"` or `"full"`, and while it is frozen runs in training mode, with its dropout.

    Args:
        frozen (`Mapping[str, Sequence[int | None]]`): By the name of a group or a part of one, as in
            [`find_group_parameters`], the first step that is frozen and the first one that is not any more, counted from
            0; `None` for a range without end. A parameter in several entries is frozen when one of them says so.

    Raises:
        ValueError: If a range is none; when training begins, if a group is unknown or none of it trains; at a step at
            which all of the model would be frozen.

    Example:
        >>> import tempfile
        >>> from transformers import Trainer, TrainingArguments
        >>> from modeling_pixclip import FreezingSchedule, PixCLIPVisionConfig, PixCLIPVisionModel
        >>> model = PixCLIPVisionModel(PixCLIPVisionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
        >>> args = TrainingArguments(tempfile.mkdtemp(), report_to="none")
        >>> # The mask convolution first, then the rest; the embeddings only up to step 5000.
        >>> schedule = FreezingSchedule({"vision": (0, 500), "vision.embeddings": (5000, None)})
        >>> trainer = Trainer(model, args, callbacks=[schedule])
    """

    def __init__(self, frozen: Mapping[str, Sequence[int | None]]):
        self.frozen: dict[str, tuple[int, int | None]] = {}
        for name, steps in frozen.items():
            steps = tuple(steps) if isinstance(steps, (list, tuple)) else ()
            whole = all(isinstance(step, int) and not isinstance(step, bool) for step in steps[:1])
            whole = whole and len(steps) == 2 and (steps[1] is None or isinstance(steps[1], int))
            if not whole or steps[0] < 0 or (steps[1] is not None and steps[1] <= steps[0]):
                raise ValueError(
                    f"{name!r} is frozen for {frozen[name]!r}; accepted are two steps, the first frozen one (>= 0) and the "
                    "first one after it that is not frozen any more (or None), e.g. (0, 500)."
                )
            self.frozen[name] = steps
        self._parts: dict[str, list[nn.Parameter]] = {}
        self._trained: dict[int, nn.Parameter] = {}
        self._now_frozen: set[int] | None = None
        self._hooks: list = []
        self._drops_gradients = False

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        # After a run that ended by an exception.
        self._release()
        self._trained = {id(parameter): parameter for parameter in model.parameters() if parameter.requires_grad}
        for name in self.frozen:
            parameters = [p for p in find_group_parameters(model, name).values() if id(p) in self._trained]
            if not parameters:
                raise ValueError(
                    f"{name!r} is scheduled, but none of its parameters trains. Leave it out of the schedule, or make it "
                    "trainable before the Trainer is made; a text backbone by set_text_backbone_trainable('full')."
                )
            self._parts[name] = parameters
        self._drops_gradients = is_distributed()
        if self._drops_gradients:
            scheduled = {id(parameter): parameter for parameters in self._parts.values() for parameter in parameters}
            # Before gradients are clipped, for which the Trainer has no event.
            self._hooks = [p.register_post_accumulate_grad_hook(self._drop_gradient) for p in scheduled.values()]

    def _drop_gradient(self, parameter: nn.Parameter):
        if self._now_frozen and id(parameter) in self._now_frozen:
            parameter.grad = None

    def on_step_begin(self, args, state, control, **kwargs):
        step = state.global_step
        names = [name for name, (first, end) in self.frozen.items() if first <= step and (end is None or step < end)]
        frozen = {id(parameter) for name in names for parameter in self._parts[name]}
        if frozen == self._now_frozen:
            return
        if len(frozen) == len(self._trained):
            raise ValueError(f"at step {step} all parameters that train would be frozen: {names}. Shorten a range.")
        logger.info(f"Step {step}: frozen are {', '.join(names) or 'no parameters of the schedule'}.")
        self._now_frozen = frozen
        if not self._drops_gradients:
            for key, parameter in self._trained.items():
                parameter.requires_grad_(key not in frozen)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        # DDP puts zeros where a gradient was dropped, with which momentum and weight decay would go on.
        for key in self._now_frozen or ():
            self._trained[key].grad = None

    def on_train_end(self, args, state, control, **kwargs):
        self._release()

    def _release(self):
        for hook in self._hooks:
            hook.remove()
        if self._now_frozen is not None and not self._drops_gradients:
            for parameter in self._trained.values():
                parameter.requires_grad_(True)
        self._hooks, self._parts, self._trained, self._now_frozen = [], {}, {}, None


__all__ = ["FreezingSchedule"]
