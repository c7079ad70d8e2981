# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Any encoder of these benchmarks as a model of MTEB and of MIEB, its image part."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch

from .encoders import TEXT_KINDS, Encoder
from .loading import open_encoder


class MtebEncoder:
    """A model for `mteb.evaluate`, by the signatures of mteb 2's `EncoderProtocol`.

    Texts and images of a batch are encoded as they come, without prompts: these models take none. Where a batch has both,
    its vectors are the sums of both, as in MIEB's own wrappers of CLIP models. Texts that are too long for the model are cut,
    and a warning tells how many of a batch. mteb itself is imported only for
    `mteb_model_meta`.

    Args:
        model_name: Hub id or folder, see `open_encoder`.
        revision: Branch, tag or commit on the Hub.
        device: See `open_encoder`.
        encoder: An open encoder, in place of opening `model_name`, which then is only its name.
        text_kind: What texts are taken for, one of `TEXT_KINDS`; "long" for documents.
        kwargs: More arguments of `open_encoder`, for example `dtype`.

    Raises:
        ValueError: If `text_kind` is unknown, or arguments of `open_encoder` stand beside an encoder.

    Example:
        >>> import mteb  # doctest: +SKIP
        >>> model = MtebEncoder("runs/coco_regions")  # doctest: +SKIP
        >>> mteb.evaluate(model, mteb.get_tasks(tasks=["Flickr30kI2TRetrieval"]))  # doctest: +SKIP
        >>> class Lengths:
        ...     def text_lengths(self, texts, kind):
        ...         return [len(text) for text in texts]
        ...     def encode_texts(self, texts, kind):
        ...         return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)
        >>> model = MtebEncoder("me/lengths", encoder=Lengths())
        >>> told = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
        >>> model.encode([{"text": ["cat", "mouse"]}, {"text": ["ox"]}], **told)
        array([[3., 1.],
               [5., 1.],
               [2., 1.]], dtype=float32)
    """

    def __init__(
        self,
        model_name: str,
        revision: str | None = None,
        *,
        device: str | None = None,
        encoder: Encoder | None = None,
        text_kind: str = "caption",
        **kwargs: Any,
    ):
        if text_kind not in TEXT_KINDS:
            raise ValueError(f"text_kind is {text_kind!r}; accepted is one of {', '.join(map(repr, TEXT_KINDS))}.")
        if encoder is None:
            encoder = open_encoder(model_name, device=device, revision=revision, **kwargs)
        elif device is not None or kwargs:
            unused = [*(["device"] if device is not None else []), *kwargs]
            raise ValueError(
                f"{', '.join(unused)} would open a model, but an encoder was passed that is open; pass one of them."
            )
        self.model_name = str(model_name)
        self.revision = revision
        self.encoder = encoder
        self.text_kind = text_kind

    @cached_property
    def mteb_model_meta(self) -> Any:
        """What mteb puts into its results, a `mteb.models.model_meta.ModelMeta`.

        mteb takes results up again that it has by name and revision. The name is made of `model_name`: mteb wants
        "organisation/model", so a folder becomes "local/" and its name. The revision is the one given, else the encoder's
        fingerprint, with the kind of text and the dtype behind it, as in "main-caption-bfloat16".
        Weights are hashed once, as mteb asks often: make a new `MtebEncoder` of a model that was trained on.
        """
        from mteb.models.model_meta import ModelMeta

        parts = [part for part in re.split(r"[/\\]", self.model_name) if part]
        is_folder = os.path.isdir(self.model_name) or "\\" in self.model_name
        is_hub_id = (
            self.model_name.count("/") == 1 and not is_folder and not self.model_name.startswith((".", "/", "~"))
        )
        dtype = self.encoder.describe().get("dtype")
        revision = [self.revision or self.encoder.fingerprint(), self.text_kind, dtype and dtype.replace(" ", "")]
        return ModelMeta.create_empty(
            overwrites={
                "name": self.model_name if is_hub_id else f"local/{parts[-1]}",
                "revision": "-".join(part for part in revision if part),
                "modalities": ["image", "text"] if self.encoder.views else ["text"],
                "framework": ["PyTorch", "Transformers"],
                "use_instructions": False,
            }
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Vectors of texts, of images, or sums of both, by what the batches hold.

        Args:
            inputs: A loader of batches: dicts with "text" (strings), "image" (pictures), or both; other keys are not read.
            task_metadata: Not read: there are no prompts.
            hf_split: Not read.
            hf_subset: Not read.
            prompt_type: Not read.
            kwargs: mteb's `EncodeKwargs`: `show_progress_bar`; `batch_size`, which is the loader's already; of
                `precision` only "float32".

        Returns:
            (N, D), float32, not normalised.

        Raises:
            ValueError: If a batch has neither text nor image, or what it has differs from the first batch; or if `precision`
                is another.
        """
        return self._encode(inputs, **kwargs)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines (N, M) of every vector with every other; a single vector (D,) counts as one row."""
        return _unit_rows(embeddings1) @ _unit_rows(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> torch.Tensor:
        """Cosines (N,) of each vector with the one at the same place."""
        return (_unit_rows(embeddings1) * _unit_rows(embeddings2)).sum(dim=1)

    def _encode(
        self,
        batches: Iterable[Mapping[str, Any]],
        show_progress_bar: bool = True,
        precision: str = "float32",
        **kwargs: Any,
    ) -> np.ndarray:
        if precision != "float32":
            raise ValueError(f"precision is {precision!r}; accepted is 'float32', quantise the vectors afterwards.")
        from tqdm.auto import tqdm

        rows, expected = [], ()
        for number, batch in enumerate(tqdm(batches, desc="batches", disable=not show_progress_bar)):
            found = tuple(column for column in ("text", "image") if column in batch)
            expected = expected or found
            if not found or expected != found:
                raise ValueError(
                    f"batch {number} has the columns {', '.join(map(str, batch)) or 'none'}; accepted are batches with "
                    f"{' and '.join(expected) or 'text, image or both'}, all alike."
                )
            parts = []
            if "text" in expected:
                texts = list(batch["text"])
                # Tells which are cut.
                self.encoder.text_lengths(texts, self.text_kind)
                parts.append(self.encoder.encode_texts(texts, self.text_kind))
            if "image" in expected:
                parts.append(self.encoder.encode_images([image.convert("RGB") for image in batch["image"]]))
            rows.append(sum(parts[1:], parts[0]))
        if not rows:
            raise ValueError("there are no batches to encode.")
        return np.concatenate(rows)


def _unit_rows(vectors: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.atleast_2d(torch.as_tensor(vectors).float()), dim=1)
