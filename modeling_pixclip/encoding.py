# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Embedding any number of texts, images and regions in one call, in batches that waste no computation."""

import re
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from transformers.utils import logging


# Texts that are tokenised and sorted together: memory does not grow with the number of texts.
WINDOW = 16384


class EncodingMixin:
    """
    `encode_text` and `encode_image` of [`PixCLIPModel`].

    Example:
        >>> from modeling_pixclip import PixCLIPModel
        >>> model = PixCLIPModel.from_pretrained("runs/coco_regions")  # doctest: +SKIP
        >>> text_embeds = model.encode_text(captions, processor)  # doctest: +SKIP
        >>> region_embeds = model.encode_image(photos, processor, masks=masks)  # doctest: +SKIP
        >>> scores = region_embeds @ text_embeds.T  # doctest: +SKIP
    """

    def encode_text(
        self,
        texts: str | Iterable[str],
        processor: Any,
        *,
        batch_tokens: int = 8192,
        long_text: bool = False,
        normalize: bool = True,
        output: Literal["numpy", "tensor"] = "numpy",
        show_progress_bar: bool = False,
    ) -> np.ndarray | torch.Tensor:
        """
        Embeds texts, however many and however long.

        Each text is tokenised once. Texts are sorted by their number of tokens and go through the text tower in batches
        of about `batch_tokens` tokens; a vector does not depend on what else is in its batch, beyond rounding (backbones
        whose rotary positions change with the longest text, as Phi-3's, excepted).

        Args:
            texts (`str` or `Iterable[str]`): One text, or T texts; a generator is read piece by piece.
            processor ([`PixCLIPProcessor`]): Its template and tokenizer make the tokens.
            batch_tokens (`int`, *optional*, defaults to 8192): Most tokens of a batch, padding included; a longer text
                goes alone. Memory grows with it.
            long_text (`bool`, *optional*, defaults to `False`): Take the text tower's path for long texts (FG-CLIP: long
                captions of whole images, up to 248 tokens, whatever the processor's `text_max_length`). Texts are cut at
                the length of the path that they take. A tower without such a path treats all texts alike.
            normalize (`bool`, *optional*, defaults to `True`): Scale vectors to length 1, so that a dot product is the
                cosine similarity.
            output (`"numpy"` or `"tensor"`, *optional*, defaults to `"numpy"`): Array, or tensor on the CPU.
            show_progress_bar (`bool`, *optional*, defaults to `False`): Show a progress bar.

        Returns:
            float32 of shape `(T, projection_dim)` in the order of `texts`, or `(projection_dim,)` for one `str`.

        Raises:
            ValueError: If a text is empty, `batch_tokens` is not positive, `output` is something else, or the text tower
                has no backbone.

        Example:
            >>> model.encode_text(["a red kite", "a dog"], processor).shape  # doctest: +SKIP
            (2, 512)
        """
        _check_output(output)
        self.text_model._check_backbone("texts go through one")

        def run(**inputs):
            inputs["long_text_mask"] = torch.full_like(inputs["input_ids"][:, 0], long_text, dtype=torch.bool)
            embeds = self.get_text_features(**inputs, return_dict=True).pooler_output.float()
            return nn.functional.normalize(embeds, dim=-1) if normalize else embeds

        with evaluating(self):
            embeds = encode_texts(
                [texts] if isinstance(texts, str) else texts,
                processor,
                run,
                self.device,
                self.config.projection_dim,
                batch_tokens=batch_tokens,
                max_length=self.text_model.text_max_length(processor, long_text),
                show_progress_bar=show_progress_bar,
            )
        embeds = embeds[0] if isinstance(texts, str) else embeds
        return embeds.numpy() if output == "numpy" else embeds

    def encode_image(
        self,
        images: Any,
        processor: Any,
        *,
        masks: Iterable | None = None,
        boxes: Iterable | None = None,
        batch_size: int = 16,
        normalize: bool = True,
        output: Literal["numpy", "tensor"] = "numpy",
        show_progress_bar: bool = False,
    ) -> np.ndarray | torch.Tensor:
        """
        Embeds images, or regions of them.

        Args:
            images: One image, or an iterable of B images, of any kind that [`PixCLIPProcessor`] takes; a generator is
                read batch by batch.
            processor ([`PixCLIPProcessor`]): Makes tensors of images and regions.
            masks (`Iterable`, *optional*): The regions of each image as masks, one list an image (for one image: its
                list).
            boxes (`Iterable`, *optional*): The same as boxes, xyxy in pixels.
            batch_size (`int`, *optional*, defaults to 16): Images of a batch.
            normalize (`bool`, *optional*, defaults to `True`): Scale vectors to length 1.
            output (`"numpy"` or `"tensor"`, *optional*, defaults to `"numpy"`): Array, or tensor on the CPU.
            show_progress_bar (`bool`, *optional*, defaults to `False`): Show a progress bar.

        Returns:
            float32 of shape `(R, projection_dim)`: one row a region, image by image; without regions one row an image,
            or `(projection_dim,)` for one image that was not in a list.

        Raises:
            ValueError: If the processor refuses an input, there are fewer or more lists of regions than images,
                `batch_size` is not positive, or `output` is something else.

        Example:
            >>> model.encode_image([photo], processor, boxes=[[[10, 20, 110, 220], [0, 0, 50, 50]]]).shape  # doctest: +SKIP
            (2, 512)
        """
        _check_output(output)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; accepted are 1 and more.")
        alone = isinstance(images, (str, bytes)) or not isinstance(images, Iterable) or getattr(images, "ndim", 4) < 4
        regions = {
            name: iter([given] if alone else given)
            for name, given in (("masks", masks), ("boxes", boxes))
            if given is not None
        }
        images = [images] if alone else images
        total = len(images) if isinstance(images, Sized) else None
        images, embeds, done = iter(images), [], 0
        with evaluating(self), logging.tqdm(total=total, disable=not show_progress_bar, desc="Images") as progress:
            while batch := list(islice(images, batch_size)):
                given = {name: list(islice(values, len(batch))) for name, values in regions.items()}
                for name, values in given.items():
                    if len(values) != len(batch):
                        raise ValueError(
                            f"{name} are given for {done + len(values)} images, but there are more images. Pass one list "
                            "an image, an empty one for an image without regions."
                        )
                try:
                    inputs = processor(images=batch, **given, return_tensors="pt").to(self.device)
                except ValueError as error:
                    raise ValueError(_shift_places(str(error), ("images", "masks", "boxes"), done)) from error
                inputs.pop("region_boxes", None)
                rows = self.get_image_features(**inputs, return_dict=True).pooler_output.float()
                embeds.append((nn.functional.normalize(rows, dim=-1) if normalize else rows).cpu())
                done += len(batch)
                progress.update(len(batch))
        for name, values in regions.items():
            if next(values, None) is not None:
                raise ValueError(f"{name} are given for more than the {done} images.")
        rows = torch.cat(embeds) if embeds else torch.empty(0, self.config.projection_dim)
        rows = rows[0] if alone and not regions else rows
        return rows.numpy() if output == "numpy" else rows


def encode_texts(
    texts: Iterable[str],
    processor: Any,
    run: Callable[..., torch.Tensor],
    device: torch.device,
    width: int,
    *,
    batch_tokens: int,
    max_length: int,
    show_progress_bar: bool,
) -> torch.Tensor:
    """
    Runs texts in batches of like lengths and puts the vectors back into order.

    Args:
        texts (`Iterable[str]`): T texts.
        processor ([`PixCLIPProcessor`]): Makes the tokens.
        run (`Callable`): Makes vectors (n, width) of `input_ids`, `attention_mask` and `pooling_mask`, each (n, L).
        device (`torch.device`): Where `run` wants them.
        width (`int`): Width of a vector.
        batch_tokens (`int`): Most tokens of a batch, padding included.
        max_length (`int`): Most tokens of a text, template included.
        show_progress_bar (`bool`): Show a progress bar.

    Returns:
        `torch.Tensor` of shape `(T, width)`, float32, on the CPU.
    """
    if not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens!r}; accepted are 1 and more.")
    total = len(texts) if isinstance(texts, Sized) else None
    # Of known size it is made at once: pieces and their whole would take twice the memory.
    embeds = torch.empty(total or 0, width)
    texts, windows, done = iter(texts), [], 0
    with logging.tqdm(total=total, disable=not show_progress_bar, desc="Texts") as progress:
        while window := list(islice(texts, WINDOW)):
            try:
                tokens = processor.tokenize_text(window, max_length)
            except ValueError as error:
                raise ValueError(_shift_places(str(error), ("text",), done)) from error
            vectors, order = [], []
            for rows in token_batches([len(ids) for ids in tokens["input_ids"]], batch_tokens):
                batch = processor.pad_tokens({name: [values[row] for row in rows] for name, values in tokens.items()})
                vectors.append(run(**{name: torch.from_numpy(values).to(device) for name, values in batch.items()}))
                order += rows
                progress.update(len(rows))
            if total is None:
                windows.append(torch.empty(len(window), width))
                windows[-1][order] = torch.cat(vectors).float().cpu()
            else:
                embeds[torch.tensor(order) + done] = torch.cat(vectors).float().cpu()
            done += len(window)
    return torch.cat(windows) if windows else embeds


def token_batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """
    Groups texts of like lengths, the longest first, so that too large a budget fails at once.

    Args:
        lengths (`list[int]`): Tokens of each text.
        batch_tokens (`int`): Most tokens of a group, padded to its longest text; a longer text goes alone.

    Yields:
        `list[int]`: Places of the texts of a group.

    Example:
        >>> from modeling_pixclip.encoding import token_batches
        >>> list(token_batches([3, 9, 4, 4], batch_tokens=8))
        [[1], [2, 3], [0]]
    """
    group: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if group and (len(group) + 1) * lengths[group[0]] > batch_tokens:
            yield group
            group = []
        group.append(place)
    if group:
        yield group


@contextmanager
def evaluating(model: nn.Module):
    """Eval mode and no gradients for the time; then each part is in the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _check_output(output: str):
    if output not in ("numpy", "tensor"):
        raise ValueError(f"output is {output!r}; accepted are 'numpy' and 'tensor'.")


def _shift_places(message: str, names: tuple[str, ...], offset: int) -> str:
    """Counts `text[3]` of a message from the first text of the call, not of its batch."""
    pattern = rf"\b({'|'.join(names)})\[(\d+)\]"
    return re.sub(pattern, lambda match: f"{match[1]}[{int(match[2]) + offset}]", message)


__all__ = ["EncodingMixin", "encode_texts", "evaluating", "token_batches"]
