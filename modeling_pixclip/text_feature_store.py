# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pooled vectors of a text backbone on disk, so that training and search do not run the LLM again."""

import hashlib
import json
import os
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
from .text_backbone_reference import config_fields
from .text_backbone_training import is_adapter, require_peft
from .text_vector_files import TextVectorFiles, text_hash, write_description


# numpy has no bfloat16; its bits are stored.
_STORED = {"float16": "<f2", "bfloat16": "<u2", "float32": "<f4"}
_DESCRIPTION = "store.json"
_DESCRIBED = {"format", "backbone", "text_template", "text_pooling", "text_max_length", "width", "dtype"}
# Counted up whenever the same texts, model and processor come to other vectors or files.
_FORMAT = 1
_TEXTS_AT_ONCE = 4096
_HASHED_AT_ONCE = 64 << 20


class TextFeatureStore(Mapping[str, torch.Tensor]):
    """
    Pooled backbone vectors by text, computed once and kept on disk.

    The vectors are what [`PixCLIPTextModel`] takes as `backbone_embeds`; a collator takes the store as
    `text_embeddings`. They stay on the disk, as does the index of the texts, and are memory-mapped: a store of millions
    of texts takes next to no memory. Pickled, it is a path, so that workers of a data loader carry neither the vectors
    nor the LLM.

    `path` holds one folder for every combination of what the vectors depend on: the backbone's configuration and
    weights, bidirectional or not, the adapters in effect, the pooling, the template, the length limit, the tokenizer,
    and `dtype`. Another model, template or dtype has another folder. The backbone's name stands in its `store.json`, for
    people to read, but it is the hash of the weights that decides: the same LLM from another folder, or out of a trained
    PixCLIP checkpoint, finds its vectors. Whitespace around a text does not count, as in the processor.

    Making a store hashes all weights of the backbone, none left out, and so does every `embed`, as fused optimisers
    change weights and leave no trace of it. That takes about a second a GB and thread (16 GB: 4 s with four threads), and
    weights on a GPU are copied over for it: hand all texts to one `embed`. Reading hashes nothing, and a store goes on
    giving vectors of the weights it was made with, whatever becomes of the model; for a backbone that trains, make a new
    one. [`~TextFeatureStore.open`] needs no model.

    Several processes may embed into one folder at once, and what more than one of them computed counts once. They see
    what others have finished, not what others are at: give each its part of the texts, or they do the same work. Rows
    are added in files that appear when they are complete, so that a run that is killed loses only what was in work.
    Damaged rows are never returned: they are counted in `damaged`, warned about once, and count as missing, so that the
    next `embed` computes them again.

    Where a text tower has positions for long texts ([`PixCLIPTextModel.add_long_text_path`]), a text has two vectors,
    and a store holds those of one path; the other path has another folder. A collator takes both, as `text_embeddings`
    and `long_text_embeddings`.

    Args:
        path (`str` or `os.PathLike`): Folder of the stores, made when there is something to write.
        text_model ([`PixCLIPTextModel`]): Its backbone computes the vectors.
        processor ([`PixCLIPProcessor`]): Its template and tokenizer make the tokens.
        dtype (`"float16"`, `"bfloat16"` or `"float32"`, *optional*, defaults to `"float16"`): How numbers are stored:
            2, 2 or 4 bytes, with a relative rounding of 5e-4, 4e-3 or 0. Below 6e-5, float16 has a fixed step of 6e-8, so
            that numbers below 3e-8 become 0. They are read as float32.
        long_text (`bool`, *optional*, defaults to `False`): Take the positions of the long text path, and its length. A
            tower without such positions has one vector a text, and one store.

    Attributes:
        folder (`pathlib.Path`): Folder of the vectors, below `path`; absolute, so that a later change of the working
            directory does not matter.
        description (`dict`): What the vectors are of, as in `store.json`.
        damaged (`collections.Counter`): Damaged rows (`"vectors"`) and files (`"segments"`) that were met.
        text_path (`"short"`, `"long"` or `None`): Which path of the text tower the vectors are of; `None` if there is one
            vector a text.

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
        *,
        long_text: bool = False,
    ):
        if not isinstance(text_model, PixCLIPTextModel):
            raise TypeError(
                f"text_model is a {type(text_model).__name__}; accepted is a PixCLIPTextModel, for example "
                "`model.text_model` of a PixCLIPModel. To read a store without a model, use TextFeatureStore.open."
            )
        text_model._check_backbone(
            "a store holds vectors that one computed; TextFeatureStore.open reads what is there"
        )
        if dtype not in _STORED:
            raise ValueError(f"dtype is {dtype!r}; accepted are {', '.join(map(repr, _STORED))}.")
        self.text_model: PixCLIPTextModel | None = text_model
        self.processor = processor
        path_of_texts = None
        if text_model.config.long_text_positions is not None:
            path_of_texts = "long" if long_text else "short"
        description = _describe(text_model, processor, dtype, path_of_texts)
        kind = text_model.config.backbone_text_config.model_type
        self._open(Path(path) / f"{kind}-{dtype}-{_digest(description)}", description)

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
            ValueError: If there are several to choose from, or a `store.json` is damaged or not that of its folder, whose
                name ends in a hash of it.

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
        if len(files) > 1:
            descriptions = [_read_description(file) for file in files]
            choice = "; ".join(
                f"{file.parent.name!r} (backbone {found['backbone']!r}, template {found['text_template']!r}, pooling "
                f"{found['text_pooling']!r}, at most {found['text_max_length']} tokens, {found['dtype']}"
                f"{', path of ' + found['text_path'] + ' texts' if 'text_path' in found else ''})"
                for file, found in zip(files, descriptions)
            )
            raise ValueError(f"{folder} holds {len(files)} stores; choose one by its name: {choice}.")
        store = cls.__new__(cls)
        store.__setstate__({"folder": files[0].parent})
        return store

    def _open(self, folder: Path, description: dict[str, Any]) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.description = description
        self._stored = np.dtype(_STORED[description["dtype"]])
        self._files = TextVectorFiles(self.folder, description["width"] * self._stored.itemsize)
        self.damaged = self._files.damaged

    @property
    def text_path(self) -> str | None:
        return self.description.get("text_path")

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.text_model = self.processor = None
        self._open(state["folder"], _read_description(state["folder"] / _DESCRIPTION))

    # A mapping would compare all vectors, which are tensors and have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

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

        Hashes the weights first, see above. Where all vectors are there, nothing is written.

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
            ValueError: If the processor refuses a text, a vector is not finite or too large for `dtype`, the weights or
                another part of what the vectors depend on have changed since the store was made (also where no text
                lacks a vector), or the store was opened without a model. What was finished before stays.
            TypeError: If `texts` is one `str`, or one of them is none.

        Example:
            >>> store.embed(line for line in open("captions.txt", encoding="utf-8"))  # doctest: +SKIP
            118
        """
        self._check_can_embed(block_size)
        if not (self.folder / _DESCRIPTION).is_file():
            write_description(self.folder / _DESCRIPTION, self.description)
        self._files.refresh()
        total, computed = length_hint(texts) or None, 0
        with ExitStack() as stack:
            progress = None
            for block, total in self._blocks(texts, block_size, total):
                if progress is None:
                    # Not before there is work to do: the folder may be one to read from alone.
                    self._files.repair()
                    progress = stack.enter_context(
                        tqdm(desc="Text vectors", unit="text", total=total, disable=not show_progress_bar)
                    )
                computed += self._compute(block, batch_tokens)
                progress.total = total
                progress.update(len(block))
        if computed:
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
            vectors = self.text_model.encode_backbone(
                lacking, self.processor, batch_tokens=batch_tokens, long_text=self.text_path == "long"
            )
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
        description = _describe(self.text_model, self.processor, self.description["dtype"], self.text_path)
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


def _describe(text_model: PixCLIPTextModel, processor: Any, dtype: str, text_path: str | None) -> dict[str, Any]:
    config = text_model.config
    source = config.backbone_source or {}
    fields = {
        "pooling": config.pooling,
        # What `bidirectional` comes to: it has no effect on encoders. `config_fields` leaves it out.
        "is_causal": getattr(config.backbone_text_config, "is_causal", None),
        "backbone": config_fields(config.backbone_config),
        "adapters": _adapters_in_effect(text_model.backbone),
    }
    tokenizer = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    # Left over from the last call of the tokenizer; the processor does neither.
    for name in ("padding", "truncation"):
        tokenizer.pop(name, None)
    description = {
        "format": _FORMAT,
        "backbone": source.get("repo_id") or source.get("folder") or config.backbone_config._name_or_path,
        "text_config": _sha256(fields),
        "weights": weights_hash(text_model.backbone),
        "text_template": processor.text_template,
        "text_pooling": processor.text_pooling,
        "text_max_length": text_model.text_max_length(processor, text_path == "long"),
        "tokenizer": _sha256(tokenizer),
        "width": config.hidden_size,
        "dtype": dtype,
    }
    # Only where there are two, so that stores of other towers keep their folder.
    return description if text_path is None else {**description, "text_path": text_path}


def _adapters_in_effect(backbone: nn.Module) -> dict[str, dict[str, Any]]:
    """What no weight tells of the adapters, by the name of their layer."""
    if not any(is_adapter(name) for name, _ in backbone.named_parameters()):
        return {}
    lora_layer = require_peft()[2]
    return {
        name: {
            "disabled": module.disable_adapters,
            "merged": module.merged_adapters,
            "scales": {key: float(module.scaling[key]) for key in module.active_adapters if key in module.scaling},
        }
        for name, module in backbone.named_modules()
        if isinstance(module, lora_layer)
    }


def weights_hash(module: nn.Module) -> str:
    """
    SHA-256 over the names, shapes, dtypes and bytes of all weights of a module.

    Args:
        module (`nn.Module`): Its state dict is hashed, in as many threads as PyTorch computes with.

    Returns:
        `str`: 64 hexadecimal digits.
    """
    # Read anew each time: `_version` of a tensor counts no step of a fused optimiser.
    state = module.state_dict()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        digests = list(threads.map(_tensor_hash, state.values()))
    return _sha256([[name, digest] for name, digest in zip(state, digests)])


def _tensor_hash(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
    for piece in tensor.detach().contiguous().flatten().view(torch.uint8).split(_HASHED_AT_ONCE):
        digest.update(piece.cpu().numpy())
    return digest.hexdigest()


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _digest(description: dict[str, Any]) -> str:
    # The backbone's name is for people alone.
    return _sha256({**description, "backbone": None})[:32]


def _read_description(file: Path) -> dict[str, Any]:
    try:
        description = json.loads(file.read_bytes())
        lacking = sorted(_DESCRIBED - set(description))
        if lacking or description["dtype"] not in _STORED or description["format"] != _FORMAT:
            raise ValueError(f"it lacks {lacking}" if lacking else "this version does not know its dtype or format")
        folder = file.parent.resolve().name
        if not folder.endswith(f"-{_digest(description)}"):
            raise ValueError(
                f"its hash {_digest(description)} is not the one that the name of its folder {folder!r} ends in"
            )
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{file} is not there: the store was pickled before its first `embed`, which writes the file, or it has been "
            "moved or deleted, or is out of this machine's reach."
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file} cannot be read: {error}. If the folder was renamed, give it its name back. If the file is damaged, "
            "delete it and call `embed` with the model that made the store: it is written again, and the vectors are kept."
        ) from error
    return description


__all__ = ["TextFeatureStore", "weights_hash"]
