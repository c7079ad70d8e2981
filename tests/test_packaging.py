# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an installation brings, and what it must not bring."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

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


@pytest.mark.parametrize("extra", ["evaluation", "examples", "export", "longgrit", "ray", "dev"])
def test_extras_do_not_bring_what_breaks_a_cpu_torch(extra):
    assert requirements(extra) and not requirements(extra) & {"torchvision", "timm", "open-clip-torch"}
    assert importlib.util.find_spec("torchvision") is None, "something installed torchvision; see constraints.txt"


def test_a_wheel_has_every_file_of_the_packages(tmp_path):
    """A template that `package_data` forgets is there in the checkout, where the other tests run, and in no installation."""
    pytest.importorskip("setuptools")
    root = Path(__file__).parents[1]
    sources = {"modeling_pixclip": "modeling_pixclip", "processing": "processing_pixclip"}
    # A copy: building leaves files beside the sources.
    copy = tmp_path / "copy"
    for folder in sources:
        shutil.copytree(root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for file in ("setup.py", "README.md", "LICENSE"):
        shutil.copy(root / file, copy / file)
    build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    # Away from `PYTHONPATH` and the like, and with the very setuptools that is here: nothing is downloaded.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [sys.executable, "-c", build, str(tmp_path)]
    built = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        brought = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(root / folder).as_posix()}"
        for folder, package in sources.items()
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert brought == expected
    assert "processing_pixclip/longgrit/prompts/fuse.jinja" in brought
