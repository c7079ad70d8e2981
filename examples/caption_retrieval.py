# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Captions of images as tensors, for training, and the figures of the benchmark `caption-pairs` of them."""

from dataclasses import dataclass

import torch

from processing_pixclip.evaluation import caption_pairs
from processing_pixclip.evaluation.retrieval_ranks import recall_at


@dataclass
class Captions:
    """
    Captions with the image that each describes.

    Attributes:
        texts: N captions, surrounding whitespace removed.
        image: (N,), the image of each, counted from 0.
        text: (N,), equal numbers mark equal texts; case, spacing and a full stop at the end make no difference.
    """

    texts: list[str]
    image: torch.Tensor
    text: torch.Tensor

    def by_image(self) -> list[list[int]]:
        """Positions of the captions of each image."""
        positions = [[] for _ in range(int(self.image.max()) + 1)]
        for position, image in enumerate(self.image.tolist()):
            positions[image].append(position)
        return positions


def read_captions(path: str) -> Captions:
    """
    The captions of a file as tensors; the file and the errors are those of
    `processing_pixclip.evaluation.caption_pairs.read_captions`.
    """
    captions = caption_pairs.read_captions(path)
    return Captions(captions.texts, torch.from_numpy(captions.image), torch.from_numpy(captions.text))


def caption_ranks(embeds: torch.Tensor, captions: Captions) -> torch.Tensor:
    """
    Rank, from 1, of the first caption of the same image, for every caption that has one: (Q,).

    By the rules of `processing_pixclip.evaluation.caption_pairs.caption_ranks`.

    Args:
        embeds: (N, D), L2-normalised.
        captions: The N captions.

    Raises:
        ValueError: If no image has two captions.
    """
    vectors = embeds.detach().cpu().numpy()
    return torch.from_numpy(caption_pairs.caption_ranks(vectors, captions.image.numpy(), captions.text.numpy()).ranks)


def caption_retrieval_metrics(embeds: torch.Tensor, captions: Captions) -> dict[str, float]:
    """
    Share of captions for which one of the k most similar other captions describes the same image.

    Args:
        embeds: (N, D), any norm.
        captions: The N captions.

    Returns:
        `{"r1": ..., "r5": ..., "r10": ...}`, by the rules of `caption_ranks`.
    """
    ranks = caption_ranks(torch.nn.functional.normalize(embeds.float(), dim=-1), captions).numpy()
    return {f"r{k}": recall_at(ranks, k) for k in (1, 5, 10)}
