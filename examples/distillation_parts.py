# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What `distill_vision_tower.py` and `hybrid_vision_tower.py` share: vectors of texts, and the whole model."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from modeling_pixclip import (
    PixCLIPImageProcessor,
    PixCLIPModel,
    PixCLIPProcessor,
    PixCLIPTextModel,
    PixCLIPVisionConfig,
    PixCLIPVisionModelWithProjection,
)


LINEAR_TEXT = {"projection_type": "linear", "projection_bias": False}


def build_model(tower: PixCLIPVisionModelWithProjection | str | Path, text_backbone: str) -> PixCLIPModel:
    """A whole model around a tower: texts keep the backbone's own vectors, which the tower was trained for."""
    model = PixCLIPModel.from_vision_text_pretrained(str(tower), text_backbone, text_kwargs=LINEAR_TEXT)
    with torch.no_grad():
        nn.init.eye_(model.text_model.projection.weight)
    return model


def build_processor(config: PixCLIPVisionConfig, text_backbone: str, **fields) -> PixCLIPProcessor:
    image_processor = PixCLIPImageProcessor(
        size=config.image_size, resize_mode="squash", mask_mean=config.mask_mean, mask_std=config.mask_std, **fields
    )
    return PixCLIPProcessor(image_processor, AutoTokenizer.from_pretrained(text_backbone))


@torch.no_grad()
def backbone_vectors(text_backbone: str, texts: list[str]) -> dict[str, torch.Tensor]:
    """The unit vector (D,) that a text backbone gives each text, mean-pooled."""
    tower = PixCLIPTextModel.from_backbone_pretrained(text_backbone, **LINEAR_TEXT).eval()
    tokenizer = AutoTokenizer.from_pretrained(text_backbone)
    found = {}
    for start in range(0, len(texts), 64):
        part = texts[start : start + 64]
        batch = tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
        embeds = tower(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).backbone_embeds
        found |= dict(zip(part, nn.functional.normalize(embeds.float(), dim=-1)))
    return found


def text_vectors(options: Any, texts: list[str]) -> torch.Tensor:
    """
    Unit vectors (T, D) of texts, from the file of them as far as it has them; the file is completed.

    Args:
        options: With `text_vectors`, the file, and `text_backbone`, as in `DistillationArguments`.
        texts: In the order of the rows.

    Raises:
        ValueError: If the file lacks texts and there is no backbone, or if it holds vectors of another backbone.
    """
    file = Path(options.text_vectors) if options.text_vectors else None
    known = torch.load(file, weights_only=True) if file is not None and file.is_file() else {}
    missing = [text for text in texts if text not in known]
    if missing and options.text_backbone is None:
        raise ValueError(
            f"{file} lacks {len(missing)} of {len(texts)} texts, the first is {missing[0]!r}; name the --text_backbone."
        )
    # Some of what the file has is computed again: it may be another backbone's.
    again = list(known)[:8] if options.text_backbone is not None else []
    if missing or again:
        computed = backbone_vectors(options.text_backbone, [*again, *missing])
        for text in again:
            found, expected = known[text], computed[text]
            if found.shape != expected.shape or (found - expected).abs().max() > 1e-3:
                raise ValueError(
                    f"{file} holds another vector of {text!r} than --text_backbone {options.text_backbone} gives it: "
                    "name the backbone that the file is of, or another file."
                )
    if missing:
        known |= {text: computed[text] for text in missing}
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(known, file.with_suffix(".tmp"))
            file.with_suffix(".tmp").replace(file)
    if not texts:
        width = AutoConfig.from_pretrained(options.text_backbone).get_text_config().hidden_size
        return torch.zeros(0, width)
    return torch.stack([known[text] for text in texts])


__all__ = ["backbone_vectors", "build_model", "build_processor", "text_vectors"]
