# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Disk cache of the pooled vectors of a frozen text backbone, for training without running the LLM at every step."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from .modeling_text_pixclip import PixCLIPTextModel


class TextEmbeddingCache(Mapping[str, torch.Tensor]):
    """
    Pooled backbone vectors by text, computed once and kept on disk.

    The vectors are what [`PixCLIPTextModel`] takes as `backbone_embeds`. They are filed below a key of everything that
    they depend on: the backbone's configuration and weights, the pooling, the tokenizer, the template and the length
    limit; another model or template never reads them. Files are added, never rewritten, and appear by rename, so that
    an interrupted run keeps what it computed and several processes may share a folder. Give `dict(cache)` to a collator
    whose workers are spawned: the cache itself holds the model.

    Args:
        cache_dir (`str` or `os.PathLike`): Folder of the cache, made where it is missing.
        text_model ([`PixCLIPTextModel`]): Its backbone computes the vectors.
        processor ([`PixCLIPProcessor`]): Its template and tokenizer make the tokens.

    Raises:
        ValueError: If a file of the cache is damaged.

    Example:
        >>> from modeling_pixclip import PixCLIPDataCollator, TextEmbeddingCache
        >>> cache = TextEmbeddingCache("text_vectors", model.text_model, processor)  # doctest: +SKIP
        >>> cache.embed(dataset_texts)  # doctest: +SKIP
        >>> collator = PixCLIPDataCollator(processor, text_embeddings=cache)  # doctest: +SKIP
    """

    def __init__(self, cache_dir: str | os.PathLike, text_model: PixCLIPTextModel, processor: Any):
        self.text_model = text_model
        self.processor = processor
        self.folder = Path(cache_dir) / _cache_key(text_model, processor)
        self._vectors: dict[str, torch.Tensor] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as shard:
                    texts = json.loads(shard.metadata()["texts"])
                    self._vectors.update(zip(texts, shard.get_tensor("vectors"), strict=True))
            except SafetensorError as error:
                raise ValueError(
                    f"{file} is damaged ({error}); delete it, and its texts are computed again."
                ) from error

    def __getitem__(self, text: str) -> torch.Tensor:
        return self._vectors[text]

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors)

    def __len__(self) -> int:
        return len(self._vectors)

    def embed(self, texts: Iterable[str], batch_size: int = 16, shard_size: int = 1024) -> None:
        """
        Computes and stores the vectors of those texts that the cache lacks.

        Args:
            texts (`Iterable[str]`): Any texts, repeated ones count once.
            batch_size (`int`, *optional*, defaults to 16): Texts of a forward pass; they are sorted by length.
            shard_size (`int`, *optional*, defaults to 1024): Texts of a file, and most that an interruption loses.
        """
        missing = sorted({text for text in texts if text not in self._vectors}, key=lambda text: (len(text), text))
        training = self.text_model.training
        self.text_model.eval()
        try:
            with tqdm(total=len(missing), desc="Text vectors", disable=not missing) as progress:
                for start in range(0, len(missing), shard_size):
                    shard = missing[start : start + shard_size]
                    vectors = []
                    for position in range(0, len(shard), batch_size):
                        vectors.append(self._compute(shard[position : position + batch_size]))
                        progress.update(len(vectors[-1]))
                    self._add(shard, torch.cat(vectors))
        finally:
            self.text_model.train(training)

    @torch.inference_mode()
    def _compute(self, texts: list[str]) -> torch.Tensor:
        batch = self.processor(text=texts).to(self.text_model.backbone.device)
        return self.text_model(**batch).backbone_embeds.float().cpu()

    def _add(self, texts: list[str], vectors: torch.Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        metadata = {"texts": json.dumps(texts)}
        name = hashlib.sha256(metadata["texts"].encode()).hexdigest()[:16]
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".writing-") as scratch:
            save_file({"vectors": vectors}, Path(scratch) / "shard", metadata)
            os.replace(Path(scratch) / "shard", self.folder / f"{name}.safetensors")
        self._vectors.update(zip(texts, vectors, strict=True))


def _cache_key(text_model: PixCLIPTextModel, processor: Any) -> str:
    config = text_model.config
    tokenizer = processor.tokenizer
    backbone_config = config.backbone_config.to_dict()
    for name in ("transformers_version", "dtype", "_name_or_path", "architectures"):
        backbone_config.pop(name, None)
    facts = {
        "backbone": backbone_config,
        "pooling": config.pooling,
        "template": processor.text_template,
        "max_length": processor.text_max_length,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    }
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16)
    for name, parameter in text_model.backbone.state_dict().items():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


__all__ = ["TextEmbeddingCache"]
