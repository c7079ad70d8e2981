# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every example in a docstring runs, and every public name has one."""

import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import tempfile
from typing import is_typeddict

import pytest
from transformers import PreTrainedConfig

import modeling_pixclip
import processing_pixclip
import processing_pixclip.evaluation
import processing_pixclip.longgrit


OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
PACKAGES = (modeling_pixclip, processing_pixclip)
MODULES = [
    info.name for package in PACKAGES for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]
PUBLIC = {
    name: getattr(package, name)
    for package in (*PACKAGES, processing_pixclip.evaluation, processing_pixclip.longgrit)
    for name in package.__all__
    # A table; what it holds is documented where it stands.
    if name != "BENCHMARKS"
}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    results = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert results.failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_a_docstring_and_an_example_that_runs(name):
    item = PUBLIC[name]
    # A class's own docstring; a dataclass without one would show its generated signature.
    text = item.__dict__.get("__doc__") if inspect.isclass(item) else item.__doc__
    assert text and not text.startswith(f"{name}(")
    fields_only = is_typeddict(item) or (dataclasses.is_dataclass(item) and not issubclass(item, PreTrainedConfig))
    if not fields_only:
        examples = doctest.DocTestParser().get_examples(text)
        assert any(not example.options.get(doctest.SKIP) for example in examples)


@pytest.mark.parametrize("name", MODULES)
def test_all_examples_are_in_the_form_that_runs(name):
    # doctest takes a closing fence for expected output, and does not see code without prompts.
    assert "```" not in inspect.getsource(importlib.import_module(name))
