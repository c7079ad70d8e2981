# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pooled vectors of a text backbone on disk, so that training and search do not run the LLM again."""

import hashlib
import json
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from .modeling_text_pixclip import PixCLIPTextModel
from .text_vector_files import TextVectorFiles, text_hash, write_description


# numpy has no bfloat16; its bits are stored.
_STORED = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}
_DESCRIPTION = "store.json"
_DESCRIBED = {"format", "backbone", "text_template", "text_pooling", "text_max_length", "width", "dtype"}
# Counted up whenever the same texts, model and processor come to other vectors or files.
_FORMAT = 1
_TEXTS_AT_ONCE = 4096
_HASHED_AT_ONCE = 64 << 20
# Fields of the tower's configuration that its pooled vectors do not depend on, or that the weights' hash tells; any
# other field is part of the key.
_BESIDE_THE_VECTORS = {
    "adapter_expansion",
    "adapter_layer_norm_eps",
    "adapter_layers",
    "backbone_dtype",
    "backbone_in_checkpoint",
    "backbone_source",
    "backbone_training",
    "initializer_factor",
    "normalize_pooled",
    "padding_free",
    "projection_bias",
    "projection_dim",
    "projection_type",
}
_BESIDE_ANY_MODEL = {"_name_or_path", "architectures", "dtype", "transformers_version"}
_weights_hashes: "weakref.WeakKeyDictionary[nn.Module, tuple[list | None, str]]" = weakref.WeakKeyDictionary()


class TextFeatureStore(Mapping[str, torch.Tensor]):
    """
    Pooled backbone vectors by text, computed once and kept on disk.

    The vectors are what [`PixCLIPTextModel`] takes as `backbone_embeds`; a collator takes the store as
    `text_embeddings`. They stay on the disk, as does the index of the texts, and are memory-mapped: a store of millions
    of texts takes next to no memory. Pickled, it is a path, so that workers of a data loader carry neither the vectors
    nor the LLM.

    `path` holds one folder for every combination of what the vectors depend on: the backbone's configuration and
    weights, bidirectional or not, the pooling, the template, the length limit, the tokenizer, and `dtype`. Another
    model, template or dtype has another folder. The backbone's name stands in its `store.json`, for people to read,
    but it is the hash of the weights that decides: the same LLM from another folder, or out of a trained
    PixCLIP checkpoint, finds its vectors. Whitespace around a text does not count, as in the processor.

    Making a store hashes all weights of the backbone, none left out. That takes about a second a GB and thread (16 GB: 4
    s with four threads, in every new process), and weights on a GPU are copied over for it. The hash is kept with the
    model and used again by its other stores for as long as PyTorch counts no change to a weight; it does not count
    writes through `.data`. [`~TextFeatureStore.open`] needs no model and hashes nothing.

    Several processes may embed into one folder at once, and what more than one of them computed counts once. They see
    what others have finished, not what others are at: give each its part of the texts, or they do the same work. Rows
    are added in files that appear when they are complete, so that a run that is killed loses only what was in work.
    Damaged rows are never returned: they are counted in `damaged`, warned about once, and count as missing, so that the
    next `embed` computes them again.

    Args:
        path (`str` or `os.PathLike`): Folder of the stores, made when there is something to write.
        text_model ([`PixCLIPTextModel`]): Its backbone computes the vectors.
        processor ([`PixCLIPProcessor`]): Its template and tokenizer make the tokens.
        dtype (`"float16"`, `"bfloat16"` or `"float32"`, *optional*, defaults to `"float16"`): How numbers are stored:
            2, 2 or 4 bytes, with a relative rounding of 5e-4, 4e-3 or 6e-8. They are read as float32.

    Attributes:
        folder (`pathlib.Path`): Folder of the vectors, below `path`.
        description (`dict`): What the vectors are of, as in `store.json`.
        damaged (`collections.Counter`): Damaged rows (`"vectors"`) and files (`"segments"`) that were met.

    Raises:
        TypeError: If `text_model` is no `PixCLIPTextModel`.
        ValueError: If `dtype` is something else.

    Example:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, PreTrainedTokenizerFast
        >>> from modeling_pixclip import PixCLIPImageProcessor, PixCLIPProcessor, PixCLIPTextConfig, PixCLIPTextModel
        >>> from modeling_pixclip import TextFeatureStore
        >>> backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1, "a": 2, "kite": 3}, unk_token="[unk]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
        >>> processor = PixCLIPProcessor(PixCLIPImageProcessor(), tokenizer)
        >>> llm = LlamaConfig(vocab_size=4, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> model = PixCLIPTextModel(PixCLIPTextConfig(backbone_config=llm, projection_dim=16))
        >>> path = tempfile.mkdtemp()
        >>> store = TextFeatureStore(path, model, processor)
        >>> store.embed(["a kite", "a red kite"], show_progress_bar=False)
        2
        >>> TextFeatureStore.open(path)["a kite"].shape
        torch.Size([32])
    """

    def __init__(
        self,
        path: str | os.PathLike,
        text_model: PixCLIPTextModel,
        processor: Any,
        dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    ):
        if not isinstance(text_model, PixCLIPTextModel):
            raise TypeError(
                f"text_model is a {type(text_model).__name__}; accepted is a PixCLIPTextModel, for example "
                "`model.text_model` of a PixCLIPModel. To read a store without a model, use TextFeatureStore.open."
            )
        if dtype not in _STORED:
            raise ValueError(f"dtype is {dtype!r}; accepted are {', '.join(map(repr, _STORED))}.")
        self.text_model: PixCLIPTextModel | None = text_model
        self.processor = processor
        description = _describe(text_model, processor, dtype)
        digest = hashlib.sha256(
            json.dumps({**description, "backbone": None}, sort_keys=True, default=str).encode()
        ).hexdigest()[:32]
        kind = text_model.config.backbone_text_config.model_type
        self._open(Path(path) / f"{kind}-{dtype}-{digest}", description)

    @classmethod
    def open(cls, path: str | os.PathLike, name: str | None = None) -> "TextFeatureStore":
        """
        Opens a store to read it, without the model.

        Args:
            path (`str` or `os.PathLike`): The `path` that the store was made with, or the folder of the vectors itself.
            name (`str`, *optional*): Name of the folder below `path`; needed where there is more than one.

        Returns:
            [`TextFeatureStore`]: Without `embed`.

        Raises:
            FileNotFoundError: If there is no store.
            ValueError: If there are several to choose from, or a `store.json` is damaged.

        Example:
            >>> store = TextFeatureStore.open(".cache")  # doctest: +SKIP
            >>> store.description["text_template"]  # doctest: +SKIP
            '{text}'
        """
        folder = Path(path) if name is None else Path(path) / name
        files = [folder / _DESCRIPTION]
        if not files[0].is_file():
            files = sorted(folder.glob(f"*/{_DESCRIPTION}"))
        if not files:
            raise FileNotFoundError(
                f"there are no text vectors in {folder}: neither it nor a folder in it has a {_DESCRIPTION}. Compute them "
                "with `TextFeatureStore(path, text_model, processor).embed(texts)`."
            )
        descriptions = [_read_description(file) for file in files]
        if len(files) > 1:
            choice = "; ".join(
                f"{file.parent.name!r} (backbone {found['backbone']!r}, template {found['text_template']!r}, pooling "
                f"{found['text_pooling']!r}, at most {found['text_max_length']} tokens, {found['dtype']})"
                for file, found in zip(files, descriptions)
            )
            raise ValueError(f"{folder} holds {len(files)} stores; choose one by its name: {choice}.")
        store = cls.__new__(cls)
        store.__setstate__({"folder": files[0].parent, "description": descriptions[0]})
        return store

    def _open(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder = folder
        self.description = description
        self._stored = np.dtype(_STORED[description["dtype"]])
        self._files = TextVectorFiles(folder, description["width"] * self._stored.itemsize)
        self.damaged = self._files.damaged

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "description": self.description}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.text_model = self.processor = None
        self._open(**state)

    def __getitem__(self, text: str) -> torch.Tensor:
        raw = self._files.get(text)
        if raw is None:
            raise KeyError(text)
        vector = torch.from_numpy(raw.view(self._stored))
        return (vector.view(torch.bfloat16) if self.description["dtype"] == "bfloat16" else vector).float()

    def __contains__(self, text: object) -> bool:
        return isinstance(text, str) and bool(self._files.contains([text])[0])

    def __iter__(self) -> Iterator[str]:
        return self._files.texts()

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r}, {len(self)} texts)"

    def refresh(self) -> None:
        """Takes notice of what other processes have added; `embed` does so by itself."""
        self._files.refresh()

    def missing(self, texts: Iterable[str]) -> Iterator[str]:
        """
        Goes through texts and passes on those that have no vector yet.

        Vectors that are there are read and compared with their checksums.

        Args:
            texts (`Iterable[str]`): Any texts; a generator is read piece by piece.

        Yields:
            `str`: A text as it was given. One that is given again much later, and not embedded meanwhile, comes again.

        Raises:
            TypeError: If `texts` is one `str`, or one of them is none.

        Example:
            >>> len(list(store.missing(captions)))  # doctest: +SKIP
            12
        """
        for window in _windows(texts):
            yield from self._lacking(window)

    def _lacking(self, texts: list[str]) -> list[str]:
        distinct = list({text_hash(text): text for text in texts}.values())
        return [text for text, there in zip(distinct, self._files.contains(distinct)) if not there]

    def embed(
        self,
        texts: Iterable[str],
        *,
        batch_tokens: int = 8192,
        block_size: int = 1024,
        show_progress_bar: bool = True,
    ) -> int:
        """
        Computes and stores the vectors of those texts that have none.

        Args:
            texts (`Iterable[str]`): Any texts, repeated ones count once. A generator is read piece by piece, so that
                millions of texts need not be in memory.
            batch_tokens (`int`, *optional*, defaults to 8192): Most tokens of a forward pass.
            block_size (`int`, *optional*, defaults to 1024): Texts that are sorted by length, computed and then written
                together; the most that an interruption loses.
            show_progress_bar (`bool`, *optional*, defaults to `True`): Show a progress bar if there is work to do.

        Returns:
            `int`: How many texts were computed.

        Raises:
            ValueError: If the processor refuses a text, a vector is not finite or too large for `dtype`, the weights
                have changed since the store was made, or the store was opened without a model. What was finished
                before stays.
            TypeError: If `texts` is one `str`, or one of them is none.

        Example:
            >>> store.embed(line for line in open("captions.txt", encoding="utf-8"))  # doctest: +SKIP
            118
        """
        self._check_can_embed(block_size)
        if not (self.folder / _DESCRIPTION).is_file():
            write_description(self.folder / _DESCRIPTION, self.description)
        self._files.repair()
        total, computed = length_hint(texts) or None, 0
        with ExitStack() as stack:
            progress = None
            for block, total in self._blocks(texts, block_size, total):
                if progress is None:
                    # Not before there is work to do.
                    progress = stack.enter_context(
                        tqdm(desc="Text vectors", unit="text", total=total, disable=not show_progress_bar)
                    )
                computed += self._compute(block, batch_tokens)
                progress.total = total
                progress.update(len(block))
        # Rows that were found damaged on the way.
        self._files.repair()
        return computed

    def _blocks(
        self, texts: Iterable[str], block_size: int, total: int | None
    ) -> Iterator[tuple[list[str], int | None]]:
        """Blocks of texts without vectors, and how many such texts there are as far as can be told."""
        pending = []
        for window in _windows(texts):
            lacking = self._lacking(window)
            pending += lacking
            total = None if total is None else total - len(window) + len(lacking)
            while len(pending) >= block_size:
                yield pending[:block_size], total
                del pending[:block_size]
        if pending:
            yield pending, total

    def _compute(self, block: list[str], batch_tokens: int) -> int:
        # Another process, or the block before, may have computed some of them meanwhile.
        self._files.refresh()
        lacking = self._lacking(block)
        if lacking:
            vectors = self.text_model.encode_backbone(lacking, self.processor, batch_tokens=batch_tokens)
            self._files.add([text.strip() for text in lacking], self._to_stored(lacking, vectors))
        return len(lacking)

    def _check_can_embed(self, block_size: int) -> None:
        if self.text_model is None:
            raise ValueError(
                f"the store {self.folder} was opened without a model and only reads; use TextFeatureStore(path, "
                "text_model, processor) to compute vectors."
            )
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}; accepted are 1 and more.")
        description = _describe(self.text_model, self.processor, self.description["dtype"])
        changed = [name for name, value in description.items() if value != self.description[name]]
        if changed:
            raise ValueError(
                f"{', '.join(changed)} of the model or processor changed since this store was made, and vectors of the "
                "old and the new do not belong together. Make a new TextFeatureStore."
            )

    def _to_stored(self, texts: list[str], vectors: torch.Tensor) -> np.ndarray:
        stored = vectors.to(getattr(torch, self.description["dtype"]))
        unfit = (~stored.isfinite().all(-1)).nonzero().flatten().tolist()
        if unfit:
            largest = vectors[unfit[0]].abs().max().item()
            raise ValueError(
                f"the vector of the text {texts[unfit[0]]!r:.200} has a largest absolute value of {largest}, which "
                f"{self.description['dtype']} does not hold. Take dtype='float32' or 'bfloat16', or a backbone without "
                "NaN."
            )
        return (stored.view(torch.uint16) if stored.dtype == torch.bfloat16 else stored).numpy()


def _windows(texts: Iterable[str]) -> Iterator[list[str]]:
    if isinstance(texts, str):
        raise TypeError(f"texts is the str {texts!r:.200}; accepted is an iterable of texts, such as a list.")
    texts, done = iter(texts), 0
    while window := list(islice(texts, _TEXTS_AT_ONCE)):
        for place, text in enumerate(window):
            if not isinstance(text, str):
                raise TypeError(f"texts[{done + place}] is a {type(text).__name__}; accepted is a str.")
        done += len(window)
        yield window


def _describe(text_model: PixCLIPTextModel, processor: Any, dtype: str) -> dict[str, Any]:
    config = text_model.config
    source = config.backbone_source or {}
    fields = {name: value for name, value in config.to_dict().items() if name not in _BESIDE_THE_VECTORS}
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    # Left over from the last call of the tokenizer; the processor does neither.
    del tokenizer["padding"], tokenizer["truncation"]
    return {
        "format": _FORMAT,
        "backbone": source.get("repo_id") or source.get("folder") or config.backbone_config._name_or_path,
        "text_config": _sha256(_without(fields, _BESIDE_ANY_MODEL)),
        "weights": weights_hash(text_model.backbone),
        "text_template": processor.text_template,
        "text_pooling": processor.text_pooling,
        "text_max_length": processor.text_max_length,
        "tokenizer": _sha256(tokenizer),
        "width": config.hidden_size,
        "dtype": dtype,
    }


def weights_hash(module: nn.Module) -> str:
    """
    SHA-256 over the names, shapes, dtypes and bytes of all weights of a module.

    Args:
        module (`nn.Module`): Its state dict is hashed, in threads; the hash is used again until PyTorch counts a change.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    state = module.state_dict(keep_vars=True)
    versions = None
    # Changes to tensors that were made in inference mode are not counted.
    if not any(tensor.is_inference() for tensor in state.values()):
        versions = [(name, tensor.data_ptr(), tensor._version) for name, tensor in state.items()]
    known, known_hash = _weights_hashes.get(module, (None, ""))
    if versions is None or versions != known:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            digests = list(threads.map(_tensor_hash, state.values()))
        known_hash = _sha256([[name, digest] for name, digest in zip(state, digests)])
        _weights_hashes[module] = (versions, known_hash)
    return known_hash


def _tensor_hash(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    for piece in tensor.detach().contiguous().flatten().view(torch.uint8).split(_HASHED_AT_ONCE):
        digest.update(piece.cpu().numpy())
    return digest.hexdigest()


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _without(content: Any, names: set[str]) -> Any:
    if isinstance(content, dict):
        return {str(key): _without(value, names) for key, value in content.items() if key not in names}
    return content


def _read_description(file: Path) -> dict[str, Any]:
    try:
        description = json.loads(file.read_bytes())
        lacking = sorted(_DESCRIBED - set(description))
        if lacking or description["dtype"] not in _STORED or description["format"] != _FORMAT:
            raise ValueError(f"it lacks {lacking}" if lacking else "this version does not know its dtype or format")
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read: {error}. If it is damaged, delete it and call `embed` with the model that made the "
            "store: it is written again, and the vectors are kept."
        ) from error
    return description


__all__ = ["TextFeatureStore", "weights_hash"]
