# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Loads repositories of a Hub by remote code in a process of its own that cannot import PixCLIP; run by test_hub.py."""

import argparse
import json
import math
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))
from load_by_remote_code import BLOCKED, CLASSES, check  # isort: skip  # it blocks the package, for what follows

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel, pipeline


def assert_close(found, wanted):
    if isinstance(wanted, float):
        assert math.isclose(found, wanted, rel_tol=1e-5, abs_tol=1e-7), (found, wanted)
    elif isinstance(wanted, (dict, list)):
        assert len(found) == len(wanted), (found, wanted)
        for key in wanted if isinstance(wanted, dict) else range(len(wanted)):
            assert_close(found[key], wanted[key])
    else:
        assert found == wanted


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("request", type=Path)
    request = json.loads(parser.parse_args().request.read_text())
    expected, weights = load_file(request["expected"]), load_file(request["weights"])
    # First, as what was once downloaded is taken from the cache.
    for repository, options in request["refused"]:
        for auto in CLASSES:
            try:
                auto.from_pretrained(repository, trust_remote_code=True, **options)
            except OSError:
                continue
            raise AssertionError(f"{repository} was loaded by {auto.__name__} with {options}")
    for repository, options in request["sources"]:
        check(repository, expected, weights, request, **options)
    # In other places of memory a product may round otherwise: only the weights are compared.
    sharded = AutoModel.from_pretrained(request["sharded"], trust_remote_code=True).state_dict()
    assert sharded.keys() == weights.keys() and all(torch.equal(sharded[key], weights[key]) for key in weights)
    image = Image.open(request["images"][0])
    for call in request["pipelines"]:
        classify = pipeline(call["task"], model=call["repository"], trust_remote_code=True)
        assert type(classify.model).__module__.startswith("transformers_modules.")
        own = "region" in call["task"]
        assert type(classify).__module__.startswith("transformers_modules." if own else "transformers.pipelines.")
        assert_close(classify(image, **call["inputs"]), call["answer"])
    for repository in request["image_processors"]:
        image_processor = AutoImageProcessor.from_pretrained(repository, trust_remote_code=True)
        assert type(image_processor).__module__.startswith("transformers_modules.")
        assert image_processor.size == {"height": 24, "width": 32}
    assert not [name for name in sys.modules if name.partition(".")[0] in BLOCKED]
    print("checked", len(request["sources"]), "refused", len(request["refused"]))


if __name__ == "__main__":
    main()
