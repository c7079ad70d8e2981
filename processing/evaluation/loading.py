# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Opens a model, of this library or any CLIP-like one of Transformers, as an encoder of benchmarks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging

from .clip_encoder import ClipEncoder
from .encoders import Encoder
from .pixclip_encoder import PixCLIPEncoder
from .text_encoder import TextEncoder


logger = logging.get_logger(__name__)


def open_encoder(
    name_or_path: str | os.PathLike,
    processor: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Opens a model and its processor.

    Args:
        name_or_path: Hub id, or a folder: a trained model, a whole run of the Trainer (where the model was not saved at
            its end, its last checkpoint), a converted checkpoint, or any model of Transformers.
        processor: Processor, or the Hub id or folder of one; default: that beside the model. For a text model its
            tokenizer.
        device: Default: CUDA where there is one, else the CPU.
        dtype: Of all weights, e.g. "bfloat16"; default: that of the checkpoint.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run code that lies beside the model.

    Returns:
        `PixCLIPEncoder` for PixCLIP and FG-CLIP models, `ClipEncoder` for other models of images and texts,
        `TextEncoder` for text models.

    Raises:
        OSError: If there is no such model.
        ValueError: If weights are missing or left over, there is no processor, or the model maps images alone.

    Example:
        >>> encoder = open_encoder("runs/coco_regions")  # doctest: +SKIP
        >>> encoder = open_encoder("openai/clip-vit-base-patch16", dtype="bfloat16")  # doctest: +SKIP
    """
    # Registers the models of this library with the Auto classes.
    import modeling_pixclip  # noqa: F401

    folder = _model_folder(name_or_path)
    hub = {"revision": revision, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **hub)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model = _load_model(folder, config, dtype, hub).to(device).eval()
    reads_texts = hasattr(model, "get_text_features")
    if model.main_input_name == "pixel_values" and not reads_texts:
        raise ValueError(
            f"{os.fspath(name_or_path)!r} is a {type(model).__name__}, which reads images alone; benchmarks compare them "
            "with texts. Give the whole model (PixCLIPModel, CLIPModel, ...)."
        )
    reads_images = reads_texts and hasattr(model, "get_image_features")
    processor = _load_processor(processor, folder, hub, model, reads_images)
    if config.model_type == "pixclip":
        return PixCLIPEncoder(model, processor, folder)
    return (ClipEncoder if reads_images else TextEncoder)(model, processor, folder)


def _model_folder(name: str | os.PathLike) -> str:
    """A Hub id as it is; of a folder of a run without a model of its own the last checkpoint."""
    name = os.fspath(name)
    if not os.path.isdir(name) or (Path(name) / "config.json").is_file():
        return name
    checkpoint = get_last_checkpoint(name)
    if checkpoint is None:
        raise ValueError(
            f"the folder {name!r} holds neither config.json nor checkpoint-* folders; accepted is a folder that "
            "save_pretrained or the Trainer wrote, or a Hub id."
        )
    logger.warning("%s holds no model of its own; its last checkpoint %s is opened.", name, Path(checkpoint).name)
    return checkpoint


def _load_model(folder: str, config: Any, dtype: Any, hub: dict[str, Any]) -> Any:
    options = {} if dtype is None else {"dtype": dtype}
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True, **options, **hub)
    found = {
        kind: sorted(map(str, report.get(f"{kind}_keys") or ())) for kind in ("missing", "mismatched", "unexpected")
    }
    if not hasattr(model, "get_image_features") and config.model_type != "pixclip_text_model":
        # A pooler of BERT's kin is not used; checkpoints of language models have none.
        found["missing"] = [key for key in found["missing"] if not key.startswith("pooler.")]
    saved_as = (config.architectures or [None])[0]
    if found["unexpected"] and not config.model_type.startswith("pixclip") and saved_as != type(model).__name__:
        logger.warning(
            "%s was saved as %s; %d weights of its head, which make no features, are left out.",
            folder,
            saved_as,
            len(found.pop("unexpected")),
        )
    if any(found.values()):
        told = "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in found.items() if keys)
        raise ValueError(
            f"the weights of {folder!r} are not those of a {type(model).__name__} ({told}), and its figures would be "
            "those of another model. Give a complete checkpoint of this class, or convert it by "
            "examples/convert_checkpoint.py."
        )
    return model


def _load_processor(given: Any, folder: str, hub: dict[str, Any], model: Any, reads_images: bool) -> Any:
    if given is not None and not isinstance(given, (str, os.PathLike)):
        return given
    source = folder if given is None else os.fspath(given)
    options = hub if given is None else {"trust_remote_code": hub["trust_remote_code"]}
    whole = reads_images or model.config.model_type == "pixclip_text_model"
    what = "processor" if whole else "tokenizer"
    try:
        processor = (AutoProcessor if whole else AutoTokenizer).from_pretrained(source, **options)
        parts = ("image_processor", "tokenizer") if whole else ()
        absent = [part for part in parts if getattr(processor, part, None) is None]
        detail = f"what is there is a {type(processor).__name__} without {' and '.join(absent)}" if absent else ""
    # Files that are absent, damaged or of a class that is not known raise errors of many kinds.
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
    if detail:
        raise ValueError(
            f"no {what} can be loaded from {source!r} for the {type(model).__name__} ({detail}). Pass processor=, the "
            f"Hub id or folder of the {what} that it was trained with, or save that into the model's folder by "
            f"{what}.save_pretrained(folder)."
        )
    return processor


__all__ = ["open_encoder"]
