# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What README.md promises of a folder of images, masks and texts, run as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import VOCABULARY, backbone_config, clip_vision_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, AutoProcessor, CLIPVisionModelWithProjection, LlamaModel, PreTrainedTokenizerFast


README = Path(__file__).parents[1] / "README.md"


def blocks(section):
    text = README.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def parents(tmp_path):
    """Tiny models in place of those that the Hub has."""
    CLIPVisionModelWithProjection(clip_vision_config()).save_pretrained(tmp_path / "clip")
    LlamaModel(backbone_config("llama")).save_pretrained(tmp_path / "llm")
    words = ["[pad]", "[unk]", *(f"word{i}" for i in range(VOCABULARY - 4)), "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"additional_special_tokens": words[-2:]}
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]", **special).save_pretrained(
        tmp_path / "llm"
    )
    return {
        "openai/clip-vit-base-patch16": str(tmp_path / "clip"),
        "HuggingFaceTB/SmolLM2-135M-Instruct": str(tmp_path / "llm"),
    }


def test_ten_lines_train_a_model_on_a_folder(parents, tmp_path, monkeypatch):
    (_, table), (language, code) = blocks("Train on your own data")[:2]
    assert language == "python" and len([line for line in code.splitlines() if line and "import" not in line]) == 10
    data = tmp_path / "my_data"
    for folder in ("images", "masks"):
        (data / folder).mkdir(parents=True)
    (data / "metadata.csv").write_text(table, encoding="utf-8")
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(data / "images" / "dog.jpg")
    for name, columns in (("dog_head", slice(5, 25)), ("dog_tail", slice(30, 50))):
        mask = np.zeros((40, 60), dtype=np.uint8)
        mask[10:30, columns] = 255
        Image.fromarray(mask).save(data / "masks" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name, folder in parents.items():
        assert name in code
        code = code.replace(name, folder)
    # The real parents see 224 pixels, as the processor does unless told otherwise.
    variables = {}
    exec(code.replace("PixCLIPImageProcessor()", "PixCLIPImageProcessor(size=32)"), variables)
    logs = variables["trainer"].state.log_history
    assert variables["trainer"].state.global_step == 3 and logs[-1]["train_loss"] > 0
    model, processor = AutoModel.from_pretrained("my_model"), AutoProcessor.from_pretrained("my_model")
    sample = variables["data"][0]
    outputs = model(**processor(images=sample["image"], masks=sample["masks"], text=sample["texts"]))
    assert outputs.logits_per_image.shape == (2, 2)


def test_local_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert len(local) >= 5 and not [link for link in local if not (README.parent / link).exists()]
