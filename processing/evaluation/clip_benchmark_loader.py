# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The loader that CLIP_benchmark calls: a model of this library, or any CLIP-like one, as `(model, transform, tokenizer)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import snapshot_download
from PIL import Image
from torch import nn

from .encoders import TEXT_KINDS, Encoder
from .loading import open_encoder


def load_pixclip(
    model_name: str,
    pretrained: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    device: str | torch.device = "cpu",
) -> tuple[ClipBenchmarkModel, PixelTransform, TextPacker]:
    """Opens a model by the signature of CLIP_benchmark's loading functions.

    Args:
        model_name: Hub id or folder, see `open_encoder`.
        pretrained: Revision on the Hub: branch, tag or commit; `None` or "" for the main branch.
        cache_dir: Where files from the Hub are kept; default: the Hub's own cache.
        device: Where the model goes.

    Returns:
        The model, with `encode_image(images)` and `encode_text(tokens)`; a transform of one picture into the tensor that
        loaders stack; and a tokenizer of a list of texts into one tensor.

    Raises:
        ValueError: If the model has no images, or its processor gives pictures of different sizes different tensors
            (SigLIP 2 NaFlex); and what `open_encoder` raises.

    Example:
        >>> import inspect
        >>> list(inspect.signature(load_pixclip).parameters)
        ['model_name', 'pretrained', 'cache_dir', 'device']
        >>> import clip_benchmark.models  # doctest: +SKIP
        >>> clip_benchmark.models.TYPE2FUNC["pixclip"] = load_pixclip  # doctest: +SKIP
        >>> clip_benchmark.models.MODEL_TYPES.append("pixclip")  # doctest: +SKIP
        >>> from clip_benchmark.cli import main  # then: --model_type pixclip --model DIR_OR_ID --pretrained ""  # doctest: +SKIP
    """
    folder = model_name
    if cache_dir is not None and not os.path.isdir(model_name):
        folder = snapshot_download(model_name, revision=pretrained or None, cache_dir=cache_dir)
    encoder = open_encoder(folder, device=device, revision=pretrained or None)
    return ClipBenchmarkModel(encoder), PixelTransform(encoder.processor.image_processor), TextPacker()


class TextPacker:
    """Texts as one whole-number tensor, and back: what CLIP_benchmark calls a tokenizer.

    It moves one tensor to the device, while our text towers need several (ids, which of them are pooled) and lengths that
    hang on the model. So a row holds the text itself, its UTF-8 bytes plus one, and zeros after it; nothing is lost or cut.
    The model's own tokenizer runs in `ClipBenchmarkModel.encode_text`.

    Example:
        >>> packer = TextPacker()
        >>> packer(["cat", "a é"])
        tensor([[100,  98, 117,   0],
                [ 98,  33, 196, 170]], dtype=torch.int16)
        >>> packer.unpack(packer(["cat", "a é"]))
        ['cat', 'a é']
    """

    def __call__(self, texts: str | Sequence[str]) -> torch.Tensor:
        """Texts as (N, bytes of the longest), int16."""
        rows = [text.encode() for text in ([texts] if isinstance(texts, str) else texts)]
        packed = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int16)
        for row, text in zip(packed, rows, strict=True):
            row[: len(text)] = torch.tensor(list(text), dtype=torch.int16) + 1
        return packed

    def unpack(self, packed: torch.Tensor) -> list[str]:
        """The texts of such a tensor, on any device."""
        if packed.ndim != 2 or packed.dtype != torch.int16:
            raise ValueError(
                f"tokens are {packed.dtype} of shape {tuple(packed.shape)}; accepted is what TextPacker makes."
            )
        return [bytes(value - 1 for value in row if value).decode() for row in packed.tolist()]


class PixelTransform:
    """A picture as the pixel tensor of the model's image processor.

    Args:
        image_processor: Of the model; it must give pictures of all sizes tensors of one shape.

    Raises:
        ValueError: If it does not.

    Example:
        >>> from processing_pixclip import PixCLIPImageProcessor
        >>> transform = PixelTransform(PixCLIPImageProcessor(size=32))
        >>> transform(Image.new("RGB", (50, 40))).shape
        torch.Size([3, 32, 32])
    """

    def __init__(self, image_processor: Any):
        self.image_processor = image_processor
        shapes = {tuple(self(Image.new("RGB", size)).shape) for size in ((64, 48), (48, 64))}
        if len(shapes) > 1 or len(next(iter(shapes))) != 3:
            raise ValueError(
                f"{type(image_processor).__name__} makes tensors of shape {' and '.join(map(str, sorted(shapes)))} of pictures; "
                "CLIP_benchmark needs (3, height, width), the same for all. Take a model of one fixed size of image."
            )

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Pixels (3, height, width), float32."""
        return self.image_processor(images=[image.convert("RGB")], return_tensors="pt")["pixel_values"][0]


class ClipBenchmarkModel(nn.Module):
    """An encoder with the methods that CLIP_benchmark calls; vectors are float32 and not normalised, it does that.

    The model is evaluated in eval mode. Texts that are too long for it are cut, and a warning tells how many of a batch.

    Args:
        encoder: Of models with images and texts.
        text_kind: What texts are taken for, one of `TEXT_KINDS`.

    Raises:
        ValueError: If `text_kind` is unknown, or the encoder has no images.

    Example:
        >>> class Lengths:
        ...     views, model = ("full",), nn.Identity()
        ...     def text_lengths(self, texts, kind):
        ...         return [len(text) for text in texts]
        ...     def encode_texts(self, texts, kind):
        ...         return torch.tensor([[len(text), 1.0] for text in texts]).numpy()
        >>> ClipBenchmarkModel(Lengths()).encode_text(TextPacker()(["cat", "mouse"]))
        tensor([[3., 1.],
                [5., 1.]])
    """

    def __init__(self, encoder: Encoder, text_kind: str = "caption"):
        super().__init__()
        if text_kind not in TEXT_KINDS:
            raise ValueError(f"text_kind is {text_kind!r}; accepted is one of {', '.join(map(repr, TEXT_KINDS))}.")
        if not encoder.views:
            raise ValueError(f"{type(encoder).__name__} has texts alone; CLIP_benchmark needs images too.")
        self.encoder = encoder
        self.text_kind = text_kind
        self.model = encoder.model
        self.packer = TextPacker()

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """Vectors (B, D) of pixels (B, 3, height, width) as `PixelTransform` makes them."""
        from modeling_pixclip.encoding import evaluating

        tower = next(self.model.vision_model.parameters())
        with evaluating(self.model):
            outputs = self.model.get_image_features(pixel_values=images.to(tower.device, tower.dtype))
        # A tensor in some models and releases, an output with the projected vector as pooler_output in others.
        vectors = outputs if isinstance(outputs, torch.Tensor) else outputs.pooler_output
        # As those of texts: under autocast or in half precision CLIP_benchmark multiplies the two as they are.
        return vectors.float()

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Vectors (T, D) of texts as `TextPacker` packs them, on the device of the tensor."""
        texts = self.packer.unpack(tokens)
        # Tells which are cut.
        self.encoder.text_lengths(texts, self.text_kind)
        vectors = self.encoder.encode_texts(texts, self.text_kind)
        return torch.from_numpy(vectors).to(tokens.device)
