# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Opens a model, of this library or any CLIP-like one of Transformers, as an encoder of benchmarks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import cached_file, logging

from .clip_encoder import ClipEncoder
from .encoders import Encoder
from .pixclip_encoder import PixCLIPEncoder
from .text_encoder import TextEncoder


logger = logging.get_logger(__name__)

# Of sentence-transformers: its names for the poolings that we have, and its modules that leave a cosine as it is.
_POOLINGS = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
_PLAIN_MODULES = {"Transformer", "Pooling", "Normalize"}


def open_encoder(
    name_or_path: str | os.PathLike,
    processor: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    pooling: str | None = None,
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
        pooling: Of a text model, see `TextEncoder`; default: as the files of sentence-transformers beside it say
            (`modules.json`, `1_Pooling/config.json`), which also say at how many tokens a text is cut.

    Returns:
        `PixCLIPEncoder` for PixCLIP and FG-CLIP models, `ClipEncoder` for other models of images and texts,
        `TextEncoder` for text models.

    Raises:
        OSError: If there is no such model.
        ValueError: If weights are missing or left over, there is no processor, the model maps images alone, `pooling` is
            given for a model of images, or sentence-transformers makes its vectors in a way that there is not here.

    Example:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
        >>> folder = tempfile.mkdtemp()
        >>> config = BertConfig(
        ...     vocab_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ... )
        >>> BertModel(config).save_pretrained(folder)
        >>> words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "dog": 3}, unk_token="[UNK]"))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
        >>> _ = tokenizer.save_pretrained(folder)
        >>> open_encoder(folder).encode_texts(["a dog", "a"], "caption").shape
        (2, 8)
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
    if reads_images and pooling is not None:
        raise ValueError(f"pooling is {pooling!r}, but a {type(model).__name__} has vectors of its own; leave it out.")
    processor = _load_processor(processor, folder, hub, model, reads_images)
    if config.model_type == "pixclip":
        return PixCLIPEncoder(model, processor, folder)
    if reads_images:
        return ClipEncoder(model, processor, folder)
    told_pooling, max_length = _sentence_settings(folder, revision, pooling)
    return TextEncoder(model, processor, folder, told_pooling, max_length)


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
    saved_as = (config.architectures or [None])[0]
    # The Auto class leaves the projection of a tower out, without which its vectors are others.
    projected = saved_as is not None and saved_as.endswith("ModelWithProjection")
    kind = getattr(transformers, saved_as, AutoModel) if projected else AutoModel
    model, report = kind.from_pretrained(folder, output_loading_info=True, **options, **hub)
    found = {
        kind: sorted(map(str, report.get(f"{kind}_keys") or ())) for kind in ("missing", "mismatched", "unexpected")
    }
    if not hasattr(model, "get_image_features") and config.model_type != "pixclip_text_model":
        # A pooler of BERT's kin is not used; checkpoints of language models have none.
        found["missing"] = [key for key in found["missing"] if not key.startswith("pooler.")]
    foreign = not config.model_type.startswith("pixclip") and saved_as != type(model).__name__
    # A projection is no head: it makes the vectors.
    if found["unexpected"] and foreign and not any("projection" in key for key in found["unexpected"]):
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


def _sentence_settings(folder: str, revision: str | None, pooling: str | None) -> tuple[str | None, int | None]:
    """Pooling (that given, where one is) and most tokens of a text, by files that sentence-transformers wrote."""

    def read(name: str) -> Any:
        quiet = ("missing_entries", "connection_errors", "gated_repo")
        options = {f"_raise_exceptions_for_{what}": False for what in quiet}
        file = cached_file(folder, name, revision=revision, **options)
        return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))

    max_length = (read("sentence_bert_config.json") or {}).get("max_seq_length")
    modules = {module["type"].rsplit(".", 1)[-1]: module["path"] for module in read("modules.json") or ()}
    if pooling is not None or not modules:
        return pooling, max_length
    foreign = sorted(set(modules) - _PLAIN_MODULES)
    if foreign:
        raise ValueError(
            f"sentence-transformers sends the vectors of {folder!r} through {', '.join(foreign)} too, which there is not here. "
            "Pass pooling= for the vectors of the model without it, which are others than it was trained for."
        )
    told = (read(f"{modules['Pooling']}/config.json") if "Pooling" in modules else None) or {}
    if "pooling_mode" in told:
        modes = [told["pooling_mode"]] if isinstance(told["pooling_mode"], str) else list(told["pooling_mode"])
    else:
        # As written before its release 5.
        modes = [name.removeprefix("pooling_mode_") for name, on in told.items() if on and name.startswith("pooling_")]
        modes = [mode.removesuffix("_tokens").removesuffix("_token") for mode in modes]
    if not modes:
        return None, max_length
    if len(modes) > 1 or modes[0] not in _POOLINGS:
        raise ValueError(
            f"the pooling of {folder!r} is {' + '.join(modes)}; accepted are {', '.join(_POOLINGS)}. Pass pooling= to take "
            "another one, which is not what it was trained for."
        )
    return _POOLINGS[modes[0]], max_length


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
