# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Groups of a model's parameters, with learning rates of their own, for the plain `transformers.Trainer`."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import logging


logger = logging.get_logger(__name__)

PARAMETER_GROUPS = ("adapter", "mask_embedding", "vision", "text_backbone", "scales")
# The first that fits; a text backbone may have an adapter or an encoder of its own. What fits none is new: adapter.
_PATTERNS = {
    "mask_embedding": r"(?:^|\.)mask_patch_embedding\.",
    "text_backbone": r"(?:^|\.)backbone\.",
    "scales": r"(?:^|\.)logit_(?:scale|bias)",
    "vision": r"(?:^|\.)vision_model\.|^(?:embeddings|encoder|pre_layrnorm|post_layernorm)\.",
}
_LAYERED = ("vision", "text_backbone")
_PART = re.compile(r"embeddings|layers\.(\d+)(?:-(\d+))?")
_TABLE = re.compile(r"(?:position|class|token)_embedding")
# Wrappers put their names between: DDP, torch.compile, activation checkpointing.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


class _Place(NamedTuple):
    group: str
    # 0: embeddings, 1 to N: blocks, N + 1: what is after them.
    layer: int
    decays: bool
    parameter: nn.Parameter


def _places(model: nn.Module) -> dict[str, _Place]:
    """Where each parameter, trainable or not, belongs."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    places = {}
    for wrapped_name, parameter in model.named_parameters():
        name = _WRAPPERS.sub("", wrapped_name)
        group = next((group for group, pattern in _PATTERNS.items() if re.search(pattern, name)), "adapter")
        table = id(parameter) in embeddings or bool(_TABLE.search(name))
        # The stem has numbers of its own.
        number = None if "embeddings.stem." in name else re.search(r"\.(\d+)\.", name)
        if number:
            layer = int(number[1]) + 1
        else:
            layer = 0 if table or "embed" in name or "pre_layrnorm" in name else -1
        decays = parameter.ndim > 1 and not table and group != "scales"
        places[name] = _Place(group, layer, decays, parameter)
    for group in _LAYERED:
        top = 1 + max((place.layer for place in places.values() if place.group == group), default=0)
        for name, place in places.items():
            if place.group == group and place.layer < 0:
                places[name] = place._replace(layer=top)
    return places


def find_group_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """
    Parameters of a group, or of a part of it, whether or not they train.

    Args:
        model (`nn.Module`): A PixCLIP model, or one of its towers.
        name (`str`): A group: `"adapter"` (text adapter and projections of both towers), `"mask_embedding"` (patch
            convolution of the mask), `"vision"` (the rest of the vision tower), `"text_backbone"`, `"scales"`
            (temperatures and bias). Of `vision` and `text_backbone` also a part: `"vision.embeddings"`,
            `"vision.layers.3"` or `"vision.layers.0-8"`, first and last block included.

    Returns:
        `dict[str, nn.Parameter]`: By the name in the model.

    Raises:
        ValueError: If there is no such group or part, or the model has no parameters in it.

    Example:
        >>> from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModel, find_group_parameters
        >>> config = PixCLIPVisionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
        >>> sorted(find_group_parameters(PixCLIPVisionModel(config), "mask_embedding"))
        ['embeddings.mask_patch_embedding.weight']
    """
    group, _, part = name.partition(".")
    found = _PART.fullmatch(part)
    if group not in PARAMETER_GROUPS or (part and not (found and group in _LAYERED)):
        raise ValueError(
            f"there is no group of parameters {name!r}; accepted are {', '.join(map(repr, PARAMETER_GROUPS))}, and parts "
            "of 'vision' and 'text_backbone' such as 'vision.embeddings', 'vision.layers.3' and 'vision.layers.0-8'."
        )
    places = {key: place for key, place in _places(model).items() if place.group == group}
    if part == "embeddings":
        places = {key: place for key, place in places.items() if place.layer == 0}
    elif part:
        first, last = int(found[1]), int(found[2] or found[1])
        blocks = max((place.layer for place in places.values()), default=0) - 1
        if not first <= last < blocks:
            raise ValueError(
                f"{name!r} asks for blocks {first} to {last}, {group} has {blocks}; accepted are numbers from 0 to "
                f"{blocks - 1}, the lower one first."
            )
        places = {key: place for key, place in places.items() if first < place.layer <= last + 1}
    if not places:
        raise ValueError(f"the model has no parameters in {name!r}. Leave it out.")
    return {key: place.parameter for key, place in places.items()}


def get_parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    *,
    group_learning_rates: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """
    Groups for an optimiser that hold every trainable parameter once.

    No weight decay goes to temperatures and biases, to norms, and to tables of positions, classes and tokens. With
    `layer_decay` the learning rate of the block i of N is multiplied by `layer_decay ** (N - i)`, that of the embeddings
    below them by `layer_decay ** (N + 1)` (BEiT, EVA-CLIP), in the vision tower and in the text backbone; the patch
    convolution of the mask is new, and is not slowed down.

    Args:
        model (`nn.Module`): A PixCLIP model, or one of its towers.
        learning_rate (`float`): Of groups that have none of their own.
        weight_decay (`float`, *optional*, defaults to 0.0): Of the parameters that decay.
        group_learning_rates (`Mapping[str, float]`, *optional*): Own learning rates by the names of groups:
            `"adapter"`, `"mask_embedding"`, `"vision"`, `"text_backbone"`, `"scales"`, as in
            [`find_group_parameters`].
        layer_decay (`float`, *optional*): In (0, 1].

    Returns:
        `list[dict]`: Each with `params`, `lr`, `weight_decay` and `group`, its name. The first ones are those of
        `adapter`, whose rate is therefore the `learning_rate` that the Trainer logs.

    Raises:
        ValueError: If a group is unknown, a number is out of its range, or no parameter trains.

    Example:
        >>> from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModel, get_parameter_groups
        >>> config = PixCLIPVisionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2)
        >>> groups = get_parameter_groups(
        ...     PixCLIPVisionModel(config), 1e-4, 0.05, group_learning_rates={"vision": 1e-5}, layer_decay=0.5
        ... )
        >>> [(group["group"], group["lr"], group["weight_decay"]) for group in groups[:3]]
        [('mask_embedding', 0.0001, 0.05), ('vision', 1e-05, 0.0), ('vision', 5e-06, 0.05)]
    """
    rates = dict(group_learning_rates or {})
    unknown = sorted(rates.keys() - set(PARAMETER_GROUPS))
    if unknown:
        raise ValueError(
            f"group_learning_rates has unknown groups {unknown}; accepted are {', '.join(map(repr, PARAMETER_GROUPS))}."
        )
    for name, rate in {"learning_rate": learning_rate, **rates}.items():
        if not rate > 0:
            raise ValueError(
                f"the learning rate of {name!r} is {rate}; accepted are numbers above 0. For parameters that do not "
                "train call requires_grad_(False) before the Trainer is made, or use FreezingSchedule."
            )
    if weight_decay < 0 or not 0 < (1.0 if layer_decay is None else layer_decay) <= 1:
        raise ValueError(
            f"weight_decay is {weight_decay} and layer_decay {layer_decay}; accepted are weight_decay >= 0 and a "
            "layer_decay above 0 and up to 1."
        )
    places = _places(model)
    tops = {name: max((p.layer for p in places.values() if p.group == name), default=0) for name in _LAYERED}
    groups: dict[tuple, dict[str, Any]] = {}
    for place in places.values():
        if not place.parameter.requires_grad:
            continue
        height = tops[place.group] - place.layer if layer_decay is not None and place.group in _LAYERED else 0
        key = (PARAMETER_GROUPS.index(place.group), height, not place.decays)
        group = groups.setdefault(
            key,
            {
                "params": [],
                "lr": rates.get(place.group, learning_rate) * (1.0 if layer_decay is None else layer_decay) ** height,
                "weight_decay": weight_decay if place.decays else 0.0,
                "group": place.group,
            },
        )
        group["params"].append(place.parameter)
    if not groups:
        raise ValueError("no parameter of the model trains: requires_grad is False for all of them.")
    without = sorted(rates.keys() - {group["group"] for group in groups.values()})
    if without:
        logger.warning(
            f"group_learning_rates names {without}, of which no parameter trains. A text backbone trains after "
            "set_text_backbone_trainable('lora') or ('full')."
        )
    return [groups[key] for key in sorted(groups)]


def describe_parameter_groups(groups: list[dict[str, Any]]) -> str:
    """
    A table of parameter groups: name, learning rate, weight decay, numbers of tensors and of values.

    Args:
        groups (`list[dict]`): As [`get_parameter_groups`] makes them, or `optimizer.param_groups`.

    Example:
        >>> import torch
        >>> from modeling_pixclip import describe_parameter_groups
        >>> weight = torch.nn.Parameter(torch.ones(2, 3))
        >>> print(describe_parameter_groups([{"params": [weight], "lr": 1e-3, "weight_decay": 0.1, "group": "adapter"}]))
        group                   lr  weight_decay  tensors       values
        adapter              0.001           0.1        1            6
    """
    lines = [f"{'group':14} {'lr':>11} {'weight_decay':>13} {'tensors':>8} {'values':>12}"]
    for group in groups:
        values = sum(parameter.numel() for parameter in group["params"])
        lines.append(
            f"{group.get('group', '-'):14} {group['lr']:11.4g} {group['weight_decay']:13.4g} {len(group['params']):8d} "
            f"{values:12d}"
        )
    return "\n".join(lines)


class _OptimizerFactory:
    """What the Trainer calls with its model when it makes the optimiser."""

    def __call__(self, model: nn.Module, *, args: TrainingArguments, **options) -> torch.optim.Optimizer:
        if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
            raise ValueError(
                "FSDP version 1 joins parameters of several groups into one. Use version 2: "
                "fsdp_config={'fsdp_version': 2, ...}."
            )
        groups = get_parameter_groups(model, args.learning_rate, args.weight_decay, **options)
        optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        takes_groups = isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)
        if not takes_groups or {"params", "model", "optimizer_dict"} & kwargs.keys():
            raise ValueError(
                f"optim={str(args.optim)!r} makes groups of its own; accepted are optimisers that take any, such as "
                "'adamw_torch', 'adamw_torch_fused', 'adafactor' and 'sgd'."
            )
        logger.info(f"Parameter groups:\n{describe_parameter_groups(groups)}")
        return optimizer_class(groups, **kwargs)


def optimizer_for_trainer(
    args: TrainingArguments,
    *,
    group_learning_rates: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
) -> tuple[type, dict[str, Any]]:
    """
    The plain `Trainer`'s own optimiser over the groups of [`get_parameter_groups`].

    It is made when the Trainer makes it, from the model as it is then: on one process, under DDP and under FSDP2, and
    for models of `model_init`. Optimiser, learning rate, weight decay and scheduler are those of `args`; the scheduler
    multiplies the rate of every group. A group without a rate of its own has `args.learning_rate`.

    Args:
        args ([`TrainingArguments`]): Those of the Trainer.
        group_learning_rates (`Mapping[str, float]`, *optional*), layer_decay (`float`, *optional*): As in
            [`get_parameter_groups`].

    Returns:
        `tuple`: What the Trainer takes as `optimizer_cls_and_kwargs`.

    Raises:
        ValueError: When the Trainer makes the optimiser: as [`get_parameter_groups`], and if `args.optim` makes groups
            of its own, or FSDP is of version 1.

    Example:
        >>> import tempfile
        >>> from transformers import Trainer, TrainingArguments
        >>> from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModel, optimizer_for_trainer
        >>> model = PixCLIPVisionModel(PixCLIPVisionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
        >>> args = TrainingArguments(tempfile.mkdtemp(), learning_rate=1e-4, weight_decay=0.05, report_to="none")
        >>> optimizer = optimizer_for_trainer(args, group_learning_rates={"mask_embedding": 1e-3}, layer_decay=0.75)
        >>> trainer = Trainer(model, args, optimizer_cls_and_kwargs=optimizer)
        >>> trainer.create_optimizer().param_groups[0]["group"]
        'mask_embedding'
    """
    return _OptimizerFactory, {
        "args": args,
        "group_learning_rates": group_learning_rates,
        "layer_decay": layer_decay,
    }


__all__ = [
    "PARAMETER_GROUPS",
    "describe_parameter_groups",
    "find_group_parameters",
    "get_parameter_groups",
    "optimizer_for_trainer",
]
