# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Text backbones alone as encoders: for benchmarks that compare texts with texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging

from .encoders import TEXT_KINDS
from .model_identity import describe_model, model_fingerprint, weights_hash


logger = logging.get_logger(__name__)

# Where neither tokenizer nor model has a limit: the former then says 1e30, which it does not take itself.
_NO_LIMIT = 2**31 - 1
# Text towers of CLIP-like models with a vector of their own. Others pool a padding that they see, or outside the tower.
_TOWERS = ("pixclip_text_model", "clip_text_model", "metaclip_2_text_model")
POOLINGS = ("own", "cls", "mean", "last")


def token_limit(model: Any, tokenizer: Any) -> int:
    """Tokens at which a text is cut: what both tokenizer and table of positions take.

    Args:
        model: Of texts, or of images and texts.
        tokenizer: Of the model.

    Example:
        >>> from transformers import BertTokenizer, RobertaConfig, RobertaModel
        >>> model = RobertaModel(RobertaConfig(hidden_size=8, num_hidden_layers=0, num_attention_heads=1))
        >>> model.config.max_position_embeddings, token_limit(model, BertTokenizer(vocab={"[UNK]": 0}))
        (512, 510)
    """
    limits = [tokenizer.model_max_length, _NO_LIMIT]
    config = getattr(model.config, "text_config", None) or model.config
    positions = getattr(config, "max_position_embeddings", None) or 0
    if positions > 0:
        # Tables of RoBERTa's kin start behind the padding token.
        starts = [
            part.padding_idx + 1
            for name, part in model.named_modules()
            if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None
        ]
        limits.append(positions - max(starts, default=0))
    return int(min(limits))


def described_limit(limit: int) -> int | None:
    """A limit as descriptions tell it, `None` for none.

    Example:
        >>> described_limit(77)
        77
    """
    return None if limit == _NO_LIMIT else limit


def lengths_when_cut(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[int]:
    """Tokens of each text as a model gets it; a warning tells how many texts are cut.

    Args:
        tokenizer: Of the model.
        texts: T texts.
        max_length: Most tokens of a text, special ones included.

    Example:
        >>> from transformers import BertTokenizer
        >>> words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]
        >>> tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
        >>> lengths_when_cut(tokenizer, ["a dog", "a"], max_length=8)
        [4, 3]
    """
    tokens = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    cut = [len(ids) for ids in tokens if len(ids) > max_length]
    if cut:
        logger.warning(
            "%d of %d texts are longer than the %d tokens that the model takes, the longest has %d: they are cut.",
            len(cut),
            len(tokens),
            max_length,
            max(cut),
        )
    return [min(len(ids), max_length) for ids in tokens]


class TextEncoder:
    """Vectors of texts by a model that reads texts alone; it has no views and no vectors of images.

    How a text becomes one vector: a `PixCLIPTextModel` and the text towers of CLIP and MetaCLIP 2 have a vector of their
    own. Of other models `pooling` says it; where nothing does, a language model (Llama, Qwen, ...) gives the last token's
    state, an encoder (BERT and its kin) the mean of all tokens' states, and a warning tells that this is a guess.
    `open_encoder` reads the pooling of models that sentence-transformers saved.

    Args:
        model: In any mode and on any device; it is evaluated in eval mode and left as it was.
        processor: Its tokenizer; for a `PixCLIPTextModel` a `PixCLIPProcessor`, which holds the template.
        name: Hub id or folder of the model, for `describe`; default: what the model says.
        pooling: "own", "cls" (the first token's state), "mean" or "last"; default: by the kind of model, see above.
        max_length: Most tokens of a text; default: what tokenizer and table of positions take.

    Raises:
        ValueError: If the model is an encoder-decoder or the text tower of another CLIP-like model (SigLIP, ALIGN, ...),
            or the processor is of the wrong kind.

    Example:
        >>> from processing_pixclip.evaluation.loading import open_encoder
        >>> encoder = open_encoder("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
        >>> encoder.describe()["pooling"]  # doctest: +SKIP
        'mean'
    """

    views = ()
    logit_scale = 1.0

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str | os.PathLike | None = None,
        pooling: Literal["own", "cls", "mean", "last"] | None = None,
        max_length: int | None = None,
    ):
        self._is_pixclip = model.config.model_type == "pixclip_text_model"
        if self._is_pixclip and not hasattr(processor, "tokenize_text"):
            raise ValueError(
                f"processor is a {type(processor).__name__}; {type(model).__name__} needs the PixCLIPProcessor of its "
                "model, which holds the template around a text. Pass processor=, for example the folder of that model."
            )
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(
                f"{type(model).__name__} is an encoder-decoder, which gives no vector of a text; take an encoder (BERT, "
                "...), a language model (Llama, ...) or a PixCLIPTextModel."
            )
        model_type = model.config.model_type
        if model_type.endswith("_text_model") and model_type not in _TOWERS:
            raise ValueError(
                f"{type(model).__name__} is the text tower of a model of images and texts, which pads and pools it in a "
                "way of its own; take the whole model. Text towers that are accepted alone are those of PixCLIP, CLIP and "
                "MetaCLIP 2."
            )
        if pooling is not None and pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; accepted are {', '.join(map(repr, POOLINGS))} and None.")
        if pooling == "own" and model_type not in _TOWERS:
            raise ValueError(
                f"{type(model).__name__} has no vector of a text of its own; accepted as pooling are 'cls', 'mean', 'last' "
                "and None."
            )
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}; accepted are 1 and more, and None.")
        if not self._is_pixclip and not hasattr(processor, "tokenizer") and not hasattr(processor, "get_vocab"):
            raise ValueError(f"processor is a {type(processor).__name__}; accepted is the tokenizer of the model.")
        self.model = model
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.name = name
        self.max_length = max_length
        self.pooling = pooling or self._default_pooling()

    def _default_pooling(self) -> str:
        model_type = self.model.config.model_type
        if model_type in _TOWERS:
            return "own"
        causal = model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        pooling = "last" if causal and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "mean"
        logger.warning(
            "Nothing says how %s makes one vector of a text; pooling %r is taken, by its kind. If it was trained with "
            "another one, pass pooling=, one of 'cls', 'mean' and 'last'.",
            type(self.model).__name__,
            pooling,
        )
        return pooling

    def fingerprint(self) -> str:
        """See `Encoder`. Weights are hashed each time, about a second a GB."""
        return model_fingerprint(
            self.model, self.processor, weights_hash(self.model), pooling=self.pooling, max_length=self.max_length
        )

    def describe(self) -> dict[str, Any]:
        config, processor = self.model.config, self.processor
        long = {"long_text_max_length": self._max_length("long")} if self._is_pixclip else {}
        own = config.pooling if self._is_pixclip else "the model's own"
        return {
            **describe_model(self.model, self.name, weights_hash(self.model)),
            "text_template": processor.text_template if self._is_pixclip else "{text}",
            "text_max_length": described_limit(self._max_length("region")),
            **long,
            "tokenizer": type(self.tokenizer).__name__,
            "pooling": own if self.pooling == "own" else self.pooling,
        }

    def text_lengths(self, texts: Sequence[str], kind: str) -> list[int]:
        if not self._is_pixclip:
            return lengths_when_cut(self.tokenizer, texts, self._max_length(kind))
        return [len(ids) for ids in self._tokens(texts, kind)["input_ids"]]

    def encode_texts(self, texts: Sequence[str], kind: str) -> np.ndarray:
        from modeling_pixclip.encoding import evaluating

        batch = self._padded(self._tokens(texts, kind))
        inputs = {name: torch.from_numpy(values).to(self.model.device) for name, values in batch.items()}
        if self._is_pixclip:
            inputs["long_text_mask"] = torch.full((len(texts),), kind == "long", device=self.model.device)
        with evaluating(self.model):
            outputs = self.model(**inputs, return_dict=True)
        return self._pool(outputs, inputs["attention_mask"]).float().cpu().numpy()

    def encode_images(self, images: Sequence) -> np.ndarray:
        """Refused: raises a `ValueError`."""
        raise ValueError(self._refusal())

    def encode_regions(self, images: Sequence, regions: Sequence, view: str) -> np.ndarray:
        """Refused: raises a `ValueError`."""
        raise ValueError(self._refusal())

    def _refusal(self) -> str:
        return (
            f"{type(self.model).__name__} reads texts alone; benchmarks of images and regions need a model of both. For "
            "this one there is the benchmark caption-pairs."
        )

    def _max_length(self, kind: str) -> int:
        if kind not in TEXT_KINDS:
            raise ValueError(f"kind of text is {kind!r}; accepted are {', '.join(map(repr, TEXT_KINDS))}.")
        if self._is_pixclip:
            limit = self.model.text_max_length(self.processor, long_text=kind == "long")
        else:
            limit = token_limit(self.model, self.tokenizer)
        return limit if self.max_length is None else min(limit, self.max_length)

    def _tokens(self, texts: Sequence[str], kind: str) -> dict[str, list[list[int]]]:
        max_length = self._max_length(kind)
        if self._is_pixclip:
            return self.processor.tokenize_text(list(texts), max_length)
        tokens = self.tokenizer(list(texts), truncation=True, max_length=max_length)
        for text, ids in zip(texts, tokens["input_ids"], strict=True):
            if not ids:
                raise ValueError(f"the text {text!r} has no tokens, and so no vector; leave it out.")
        return {"input_ids": tokens["input_ids"], "attention_mask": [[1] * len(ids) for ids in tokens["input_ids"]]}

    def _padded(self, tokens: dict[str, list[list[int]]]) -> dict[str, np.ndarray]:
        if self._is_pixclip:
            return self.processor.pad_tokens(tokens)
        # Language models often have no padding token; what stands there is masked.
        pad = self.tokenizer.pad_token_id
        shape = (len(tokens["input_ids"]), max(map(len, tokens["input_ids"])))
        padded = {
            "input_ids": np.full(shape, 0 if pad is None else pad, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
        }
        for name, rows in tokens.items():
            for row, values in enumerate(rows):
                padded[name][row, : len(values)] = values
        return padded

    def _pool(self, outputs: Any, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "own":
            vectors = getattr(outputs, "text_embeds", None)
            return outputs.pooler_output if vectors is None else vectors
        states = outputs.last_hidden_state
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":
            last = attention_mask.sum(1) - 1
            return states[torch.arange(len(states), device=states.device), last]
        weights = attention_mask[..., None].to(torch.float32)
        return (states.float() * weights).sum(1) / weights.sum(1)


__all__ = ["POOLINGS", "TextEncoder", "described_limit", "lengths_when_cut", "token_limit"]
