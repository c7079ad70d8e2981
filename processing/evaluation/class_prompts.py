# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Texts of class names, and one vector a class."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from .features import FeatureExtractor
from .scores import unit


def _read_templates(name: str) -> tuple[str, ...]:
    lines = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "single": ("a photo of a {}.",),
        "imagenet-80": _read_templates("imagenet_80.txt"),
        "plain": ("{}",),
    }
)
"""Sets of prompt templates by name: "single" (the one of PixCLIP's and Alpha-CLIP's evaluation), "imagenet-80" (CLIP's 80
for ImageNet, which FG-CLIP's evaluation averages), "plain" (the name alone)."""


def readable_name(name: str, words: str = "spaces") -> str:
    """A class name as the prompts have it.

    Args:
        name: As the file has it.
        words: What stands between words: "spaces", so LVIS's underscores become spaces and a remark in parentheses, which
            tells classes of one name apart, stays; or "underscores", so spaces become underscores.

    Example:
        >>> readable_name("bow_(decorative_ribbons)")
        'bow (decorative ribbons)'
    """
    old, new = ("_", " ") if words == "spaces" else (" ", "_")
    return name.replace(old, new).strip()


def template_texts(name: str) -> list[str] | str:
    """A set of templates as a result tells of it: its texts, or, of a long one, how many there are and their SHA-256.

    Args:
        name: In `TEMPLATES`.

    Example:
        >>> template_texts("single")
        ['a photo of a {}.']
        >>> template_texts("imagenet-80")[:12]
        '80 templates'
    """
    texts = TEMPLATES[name]
    if len(texts) <= 10:
        return list(texts)
    return f"{len(texts)} templates, SHA-256 of their lines {hashlib.sha256(chr(10).join(texts).encode()).hexdigest()}"


def class_texts(name: str, templates: Sequence[str]) -> list[str]:
    """The prompts of one class.

    Args:
        name: Of the class.
        templates: Each with one "{}". An "a" stays before a vowel, as in CLIP's and all papers' evaluations.

    Example:
        >>> class_texts("apple", ["a photo of a {}."])
        ['a photo of a apple.']
    """
    # Not str.format: a name may hold braces.
    return [template.replace("{}", name) for template in templates]


def class_embeddings(
    features: FeatureExtractor,
    names: Sequence[str],
    templates: str | Sequence[str] = "single",
    kind: str = "region",
) -> np.ndarray:
    """One vector a class: the normalised mean of the normalised vectors of its prompts, as CLIP does.

    Args:
        features: Asks the model.
        names: Of the C classes, as they stand in the prompts.
        templates: A name in `TEMPLATES`, or templates, each with one "{}".
        kind: Of the prompts, one of `encoders.TEXT_KINDS`.

    Returns:
        Array (C, D), float32, of length 1 each.

    Raises:
        ValueError: If `templates` is no name in `TEMPLATES`, is empty, or a template has not exactly one "{}"; or there is
            no class.

    Example:
        >>> class_embeddings(FeatureExtractor(encoder), ["cat", "dog"], "imagenet-80").shape  # doctest: +SKIP
        (2, 512)
    """
    if isinstance(templates, str):
        if templates not in TEMPLATES:
            raise ValueError(
                f"templates is {templates!r}; accepted are {', '.join(map(repr, TEMPLATES))}, or a list of templates."
            )
        templates = TEMPLATES[templates]
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(
            f"templates are {wrong or templates!r}; accepted is one or more, each with one '{{}}' for the name."
        )
    if not names:
        raise ValueError("names is empty; accepted is one class or more.")
    texts = [text for name in names for text in class_texts(name, templates)]
    vectors = unit(features.texts(texts, kind))
    return unit(vectors.reshape(len(names), len(templates), -1).mean(axis=1))
