# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a model is: a fingerprint of all that its vectors hang on, and its description in a result."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel


# Of configurations: where they came from, which changes no vector.
_ORIGIN = frozenset(
    "_name_or_path name_or_path _commit_hash transformers_version auto_map custom_pipelines architectures "
    "backbone_source processor_class image_processor_type feature_extractor_type tokenizer_file vocab_file merges_file".split()
)
_THREADS = 4


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all weights and buffers of a model, by name: 64 hex digits; about a second a GB.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> weights_hash(model) == weights_hash(model)
        True
    """
    state = model.state_dict()
    names = sorted(state)
    # One tensor at a time in each thread: of a model on an accelerator no copy is made as a whole.
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = list(threads.map(lambda name: _tensor_digest(state[name]), names))
    return _digest(dict(zip(names, digests, strict=True)))


def _tensor_digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    if tensor.numel():
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(memoryview(content.numpy()))
    return digest.hexdigest()


def model_fingerprint(model: nn.Module, processor: Any, weights: str, **more: Any) -> str:
    """Hash of what vectors hang on: weights, configuration, preprocessing, dtype, attention, kind of device.

    Args:
        model: A Transformers model.
        processor: Its processor, image processor or tokenizer.
        weights: That of `weights_hash`.
        **more: Choices of the encoder, plain values.

    Returns:
        64 hex digits, the same wherever the model's folder lies.

    Example:
        >>> from transformers import CLIPTextConfig, CLIPTextModel
        >>> model = CLIPTextModel(CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
        >>> len(model_fingerprint(model, None, weights_hash(model)))
        64
    """
    parts = {
        "class": type(model).__name__,
        "config": _without_origin(model.config.to_dict()),
        "weights": weights,
        "processor": _processor_facts(processor),
        "attention": _attentions(model),
        "device": next(model.parameters()).device.type,
        **more,
    }
    return _digest(parts)


def describe_model(model: nn.Module, name: str | os.PathLike | None, weights: str) -> dict[str, Any]:
    """What every encoder tells of its model; no path of the machine.

    Args:
        model: A Transformers model.
        name: Hub id or folder that it was opened from; `None` for what the model says.
        weights: That of `weights_hash`.

    Returns:
        Plain values.

    Example:
        >>> from transformers import CLIPTextConfig, CLIPTextModel
        >>> model = CLIPTextModel(CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1))
        >>> describe_model(model, "runs/clip", weights_hash(model))["class"]
        'CLIPTextModel'
    """
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    return {
        "name": public_name(name or model.name_or_path) or type(model).__name__,
        "commit": getattr(model.config, "_commit_hash", None),
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_sha256": weights,
        "dtype": " + ".join(dtypes),
        "attention": model.config._attn_implementation,
    }


def _attentions(model: nn.Module) -> list[tuple[str, str]]:
    """Implementation of each part's attention: towers may differ."""
    configs = [part.config for part in model.modules() if isinstance(part, PreTrainedModel)]
    return sorted({(type(config).__name__, str(config._attn_implementation)) for config in configs})


def public_name(name: str | os.PathLike) -> str:
    """A Hub id as it is, of a folder its own name alone (of a checkpoint of a run, with that of the run).

    Example:
        >>> public_name("/home/me/runs/coco_regions/checkpoint-500"), public_name("openai/clip-vit-base-patch16")
        ('coco_regions/checkpoint-500', 'openai/clip-vit-base-patch16')
    """
    name = os.fspath(name)
    path = Path(name)
    if not path.is_dir() and not path.is_absolute() and not name.startswith(".") and name.count("/") <= 1:
        return name
    path = path.absolute() if path.is_absolute() else Path(os.path.abspath(name))
    return "/".join(path.parts[-2:]) if re.fullmatch(r"checkpoint-\d+", path.name) else path.name


def _processor_facts(processor: Any) -> Any:
    """Options of a processor and of its parts; of a tokenizer all that makes tokens."""
    if processor is None:
        return None
    facts: dict[str, Any] = {"class": type(processor).__name__}
    parts = {name: getattr(processor, name, None) for name in ("image_processor", "tokenizer")}
    facts |= {name: _processor_facts(part) for name, part in parts.items() if part is not None}
    if hasattr(processor, "get_vocab"):
        backend = getattr(processor, "backend_tokenizer", None)
        if backend is None:
            options = _without_origin(getattr(processor, "init_kwargs", {}))
            facts["tokens"] = _digest([dict(processor.get_vocab()), options])
        else:
            # What the last call asked for stands in it too.
            state = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
            facts["tokens"] = _digest(state)
        names = ("model_max_length", "padding_side", "truncation_side", "pad_token", "eos_token", "bos_token")
        facts |= {name: str(getattr(processor, name, None)) for name in names}
    elif hasattr(processor, "to_dict"):
        options = _without_origin(processor.to_dict())
        facts["options"] = {name: value for name, value in options.items() if name not in parts}
    return facts


def _without_origin(values: Any) -> Any:
    if isinstance(values, Mapping):
        return {str(name): _without_origin(value) for name, value in values.items() if name not in _ORIGIN}
    if isinstance(values, (list, tuple)):
        return [_without_origin(value) for value in values]
    return values


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def plain_number(value: Any) -> Any:
    """Numbers and lists of numbers as JSON has them, of numpy and torch too.

    Example:
        >>> plain_number(np.float32(0.5)), plain_number((1, 2))
        (0.5, [1, 2])
    """
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain_number(part) for part in value]
    return value.item() if isinstance(value, (np.generic, torch.Tensor)) else value


__all__ = ["describe_model", "model_fingerprint", "plain_number", "public_name", "weights_hash"]
