# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Runs the pipelines of saved folders in a process that cannot import PixCLIP; run by test_pipelines.py."""

import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent))
# Blocks the packages as it is imported.
from load_by_remote_code import BLOCKED
from transformers import AutoModel, pipeline


def main():
    request = json.loads(Path(sys.argv[1]).read_text())
    for source in request["sources"]:
        check(source, request)
        for task in request["answers"]:
            if task != "zero-shot-image-classification":
                saved = str(Path(request["saved"]) / task / source.replace("/", "_"))
                pipeline(task, model=source, trust_remote_code=True, device="cpu").save_pretrained(saved)
                check(saved, request)
    try:
        pipeline(model=request["sources"][0], trust_remote_code=True)
    except RuntimeError as error:
        assert all(task in str(error) for task in ("zero-shot-region-classification", "region-feature-extraction")), (
            error
        )
    else:
        raise AssertionError("a task was guessed")
    embed = "region-feature-extraction"
    inputs, options, wanted = request["answers"][embed]
    pipe = pipeline(embed, model=request["without_tokenizer"], trust_remote_code=True, device="cpu")
    assert pipe.processor is None and pipe(inputs, **options) == wanted
    for folder, name in request["towers"].items():
        tower = AutoModel.from_pretrained(folder, trust_remote_code=True)
        assert type(tower).__name__ == name and type(tower).__module__.startswith("transformers_modules.")
    assert not [name for name in sys.modules if name.partition(".")[0] in BLOCKED]
    print("checked", len(request["sources"]))


def check(source, request):
    for task, (inputs, options, wanted) in request["answers"].items():
        pipe = pipeline(task, model=source, trust_remote_code=True, device="cpu")
        if task != "zero-shot-image-classification":
            assert type(pipe).__module__.startswith("transformers_modules."), (source, task)
        assert type(pipe.model).__module__.startswith("transformers_modules."), (source, task)
        assert pipe(inputs, **options) == wanted, (source, task)


if __name__ == "__main__":
    main()
