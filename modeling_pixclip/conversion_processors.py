# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The processors of a converted checkpoint: images as the source's project prepares them, texts with its tokenizer."""

import json
import os
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor, get_text_preset

from .checkpoint_files import CheckpointFile
from .configuration_pixclip import PixCLIPConfig
from .conversion_rules import ConversionError, SourceLayout


_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


def check_text_preset(text_preset: str | None, checkpoints: list[str | os.PathLike], tokenizer: Any):
    """Refuses a preset that is not known, or that there is no use for, before big files are read."""
    if text_preset is None:
        return
    try:
        get_text_preset(text_preset)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    if tokenizer is None and _folder_with_tokenizer(checkpoints) is None:
        raise ConversionError(
            f"--text_preset {text_preset!r} has no use without a tokenizer, and the source's files hold none. Give "
            "--tokenizer, or leave --text_preset out."
        )


def _folder_with_tokenizer(checkpoints: list[str | os.PathLike]) -> Path | None:
    folders = [Path(path) for path in checkpoints]
    return next((folder for folder in folders if any((folder / name).is_file() for name in _TOKENIZER_FILES)), None)


def make_processors(
    layout: SourceLayout,
    config: PixCLIPConfig,
    files: list[CheckpointFile],
    tokenizer: str | os.PathLike | None,
    text_preset: str | None,
) -> tuple[PixCLIPImageProcessor, PixCLIPProcessor | None, list[str]]:
    """Both processors, and notes for the report."""
    size = config.vision_config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    options = {
        "size": {"height": height, "width": width},
        "mask_mean": config.vision_config.mask_mean,
        "mask_std": config.vision_config.mask_std,
        **layout.image_processor,
    }
    folders = [file.path for file in files if file.path.is_dir()]
    notes = []
    for folder in folders:
        path = folder / "preprocessor_config.json"
        if path.is_file():
            given = json.loads(path.read_text(encoding="utf-8-sig"))
            read = {name: given[name] for name in ("image_mean", "image_std", "resample") if name in given}
            options.update(read)
            notes.append(f"{', '.join(read)} of images from the source's preprocessor_config.json")
            if given.get("do_center_crop") is False and options["resize_mode"] == "shortest_edge":
                notes.append(
                    "the source's preprocessor_config.json does not crop; resize_mode is 'shortest_edge' all the same, as in CLIP"
                )
    image_processor = PixCLIPImageProcessor(**options)
    if tokenizer is None:
        tokenizer = _folder_with_tokenizer([file.path for file in files])
    if tokenizer is None:
        notes.append(
            "no tokenizer: the source's files hold none and --tokenizer was not given; model and image processor alone were "
            "made"
        )
        return image_processor, None, notes
    loaded = AutoTokenizer.from_pretrained(tokenizer)
    _check_tokenizer(loaded, config, os.fspath(tokenizer))
    text_options = layout.text_options(config)
    if text_preset is not None:
        text_options = {**text_options, "text_preset": text_preset}
    if text_options.get("text_preset", "") is None:
        raise ConversionError(
            f"how texts are made for an LLM of type {config.text_config.backbone_config.model_type!r} is not known. Give "
            "--text_preset (see get_text_preset), or leave --tokenizer out."
        )
    return image_processor, PixCLIPProcessor(image_processor, loaded, **text_options), notes


def _check_tokenizer(tokenizer, config: PixCLIPConfig, name: str):
    vocabulary = config.text_config.backbone_text_config.vocab_size
    if len(tokenizer) > vocabulary:
        raise ConversionError(
            f"the tokenizer {name!r} has {len(tokenizer)} tokens, the checkpoint's token embedding {vocabulary} rows. Take "
            "the tokenizer that belongs to the checkpoint."
        )
    end = config.text_config.end_of_text_id
    if config.text_config.pooling == "eos" and tokenizer.eos_token_id != end:
        raise ConversionError(
            f"the tokenizer {name!r} ends texts with token {tokenizer.eos_token_id}, the checkpoint with {end}. Take the "
            "tokenizer that belongs to the checkpoint, or give 'eos_token_id' in --source_config."
        )


__all__ = ["check_text_preset", "make_processors"]
