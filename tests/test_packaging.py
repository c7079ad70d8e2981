# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an installation brings, and what it must not bring."""

import importlib.metadata
import importlib.util
import re

import pytest


BASE = {
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "evaluate",
    "safetensors",
    "huggingface-hub",
    "sentencepiece",
    "pillow",
    "numpy",
    "pycocotools",
}


def requirements(extra):
    found = set()
    for line in importlib.metadata.requires("pixclip"):
        name, _, marker = line.partition(";")
        if (f'extra == "{extra}"' in marker) if extra else "extra" not in marker:
            found.add(re.match(r"[\w-]+", name).group().replace("_", "-").lower())
    return found


def test_base_requirements():
    assert requirements(None) == BASE
    transformers = next(line for line in importlib.metadata.requires("pixclip") if line.startswith("transformers"))
    assert set(transformers.removeprefix("transformers").split(",")) == {">=5.21", "<6"}


@pytest.mark.parametrize("extra", ["examples", "export", "longgrit", "ray", "dev"])
def test_extras_do_not_bring_what_breaks_a_cpu_torch(extra):
    assert requirements(extra) and not requirements(extra) & {"torchvision", "timm", "open-clip-torch"}
    assert importlib.util.find_spec("torchvision") is None, "something installed torchvision; see constraints.txt"
