# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Loads saved folders by remote code in a process of its own that cannot import PixCLIP; run by test_auto_classes.py."""

import argparse
import importlib
import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file


# pycocotools is optional, so a checkpoint has to load without it.
BLOCKED = ("modeling_pixclip", "processing_pixclip", "pycocotools")


class Blocker:
    """First of the import finders, so that neither an installed package nor its editable finder is asked."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)


sys.meta_path.insert(0, Blocker())
for _name in BLOCKED:
    try:
        importlib.import_module(_name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{_name} can be imported")

from transformers import (  # noqa: E402
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)


CLASSES = {
    AutoConfig: "PixCLIPConfig",
    AutoModel: "PixCLIPModel",
    AutoModelForPreTraining: "PixCLIPForPreTraining",
    AutoModelForZeroShotImageClassification: "PixCLIPModel",
    AutoProcessor: "PixCLIPProcessor",
    AutoImageProcessor: "PixCLIPImageProcessorPil",
}


def load(source, **options):
    """Loads one object by each Auto class and checks where its class comes from."""
    loaded = {auto: auto.from_pretrained(source, trust_remote_code=True, **options) for auto in CLASSES}
    for auto, item in loaded.items():
        assert type(item).__name__ == CLASSES[auto], (source, auto, type(item))
        assert type(item).__module__.startswith("transformers_modules."), (source, auto, type(item))
    loaded[AutoTokenizer] = AutoTokenizer.from_pretrained(source, trust_remote_code=True, **options)
    return loaded


def check(source, expected, weights, request, **options):
    loaded = load(source, **options)
    processor = loaded[AutoProcessor]
    images = [Image.open(path) for path in request["images"]]
    masks = [[expected[name].numpy() for name in names] for names in request["masks"]]
    batch = processor(images=images, masks=masks, text=request["texts"], return_tensors="pt")
    for name, value in batch.items():
        assert torch.equal(value, expected[name]), (source, name)
    pixels = loaded[AutoImageProcessor](images, masks=masks, return_tensors="pt")
    for name, value in pixels.items():
        assert torch.equal(value, expected[name]), (source, name)
    assert loaded[AutoTokenizer](request["texts"])["input_ids"] == processor.tokenizer(request["texts"])["input_ids"]
    for auto in (AutoModel, AutoModelForPreTraining, AutoModelForZeroShotImageClassification):
        state = loaded[auto].state_dict()
        assert state.keys() == weights.keys() and all(torch.equal(state[key], weights[key]) for key in weights)
        keywords = {"return_loss": False} if auto is AutoModelForPreTraining else {}
        with torch.no_grad():
            outputs = loaded[auto].eval()(**batch, region_text_index=expected["region_text_index"], **keywords)
        for name in ("image_embeds", "text_embeds", "logits_per_image"):
            wanted = expected[name]
            if auto is AutoModelForPreTraining and name != "image_embeds":
                # This class answers with the text of each region.
                wanted = wanted[expected["region_text_index"]] if name == "text_embeds" else None
            assert wanted is None or torch.equal(outputs[name], wanted), (source, auto, name)
    classify = pipeline("zero-shot-image-classification", model=source, trust_remote_code=True, **options)
    assert type(classify.model).__module__.startswith("transformers_modules.")
    assert classify(images[0], candidate_labels=request["labels"]) == request["scores"], source
    return loaded


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("request", type=Path)
    request = json.loads(parser.parse_args().request.read_text())
    expected = load_file(request["expected"])
    for source in request["sources"]:
        weights = load_file(request["weights"][source])
        loaded = check(source, expected, weights, request)
        saved = Path(request["saved"]) / source.replace("/", "_")
        for auto in (AutoModelForPreTraining, AutoProcessor):
            loaded[auto].save_pretrained(saved)
        check(str(saved), expected, weights, request)
    alone = AutoImageProcessor.from_pretrained(request["image_processor"], trust_remote_code=True)
    assert type(alone).__module__.startswith("transformers_modules."), type(alone)
    assert alone.size == {"height": 24, "width": 32} and alone.resize_mode == "letterbox"
    try:
        AutoModel.from_pretrained(request["sources"][0], trust_remote_code=False)
    except ValueError:
        pass
    else:
        raise AssertionError("loaded without trust_remote_code")
    # Nothing may have slipped past the blocker.
    assert not [name for name in sys.modules if name.partition(".")[0] in BLOCKED]
    print("checked", len(request["sources"]))


if __name__ == "__main__":
    main()
