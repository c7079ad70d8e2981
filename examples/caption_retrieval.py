# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Captions of images: reading them, and retrieval of one caption of an image by another."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch


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
    Reads COCO's captions file (`.json`), or JSON lines with `captions` and `image_id` or `group` in every line.

    A text that one image has twice is taken once. Lines of the same image are taken together.

    Args:
        path: The file.

    Returns:
        The captions, in the order of the file.

    Raises:
        ValueError: If the file is no such file, or a caption is empty or no text; the message names the line or the
            annotation.
    """
    ids, numbers, seen = {}, {}, set()
    texts, images, text_numbers = [], [], []
    for where, image_id, caption in _captions_in(Path(path)):
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(f"{path}, {where}: the caption is {caption!r}; it must be a text. Remove or mend it.")
        if not isinstance(image_id, (str, int)):
            raise ValueError(f"{path}, {where}: the image is {image_id!r}; it must be a string or a whole number.")
        image = ids.setdefault(image_id, len(ids))
        text = numbers.setdefault(" ".join(caption.casefold().split()).rstrip(". "), len(numbers))
        if (image, text) not in seen:
            seen.add((image, text))
            texts.append(caption.strip())
            images.append(image)
            text_numbers.append(text)
    if not texts:
        raise ValueError(f"{path} has no captions.")
    return Captions(texts, torch.tensor(images), torch.tensor(text_numbers))


def _captions_in(path: Path):
    """Yields where a caption stands, its image and itself."""
    if path.suffix == ".json":
        try:
            annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
            rows = [(row["image_id"], row["caption"]) for row in annotations]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no captions file of COCO ({type(error).__name__}: {error}); accepted is a JSON object with "
                "'annotations', each with 'image_id' and 'caption', or JSON lines in a file named .jsonl."
            ) from error
        for position, (image_id, caption) in enumerate(rows):
            yield f"annotations[{position}]", image_id, caption
        return
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                image_id = record["image_id"] if "image_id" in record else record["group"]
                captions = record["captions"]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number}: {type(error).__name__}: {error}; accepted is a JSON object with 'captions', "
                    "a list of texts, and 'image_id' or 'group'."
                ) from error
            if not isinstance(captions, list):
                raise ValueError(f"{path}, line {number}: captions are {captions!r}; accepted is a list of texts.")
            for caption in captions:
                yield f"line {number}", image_id, caption


def caption_ranks(embeds: torch.Tensor, captions: Captions) -> torch.Tensor:
    """
    Rank, from 1, of the first caption of the same image, for every caption that has one: (Q,).

    Each caption in turn is the query, all others are the gallery, by cosine similarity. Ties count against the query: a
    caption of another image stands before the right ones that are as similar. Left out of the gallery, as neither right
    nor wrong, are texts equal to the query, to a caption of its image, or to a caption of an image that has the query's
    text as well: it would be a matter of chance which of two equal texts is found first.

    Args:
        embeds: (N, D), L2-normalised.
        captions: The N captions.

    Raises:
        ValueError: If no image has two captions.
    """
    rows_of_image, rows_of_text, images_of_text = captions.by_image(), defaultdict(list), defaultdict(set)
    image, text = captions.image.tolist(), captions.text.tolist()
    for row in range(len(text)):
        rows_of_text[text[row]].append(row)
        images_of_text[text[row]].add(image[row])
    queries = [row for row in range(len(text)) if len(rows_of_image[image[row]]) > 1]
    if not queries:
        raise ValueError("no image has two captions, so there is nothing to retrieve; give more captions an image.")
    ranks = []
    for chunk in torch.tensor(queries).split(1024):
        similarity = embeds[chunk] @ embeds.T
        for position, query in enumerate(chunk.tolist()):
            right = [row for row in rows_of_image[image[query]] if row != query]
            related = {text[row] for other in images_of_text[text[query]] for row in rows_of_image[other]}
            left_out = [row for number in related for row in rows_of_text[number]]
            best = similarity[position, right].max()
            similarity[position, left_out] = -torch.inf
            ranks.append(int((similarity[position] >= best).sum()) + 1)
    return torch.tensor(ranks)


def caption_retrieval_metrics(embeds: torch.Tensor, captions: Captions) -> dict[str, float]:
    """
    Share of captions for which one of the k most similar other captions describes the same image.

    Args:
        embeds: (N, D), any norm.
        captions: The N captions.

    Returns:
        `{"r1": ..., "r5": ..., "r10": ...}`, by the rules of `caption_ranks`.
    """
    ranks = caption_ranks(torch.nn.functional.normalize(embeds.float(), dim=-1), captions)
    return {f"r{k}": (ranks <= k).float().mean().item() for k in (1, 5, 10)}
