# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Masks of regions that a benchmark has as boxes, by SAM 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..image_reading import read_image
from ..regions import encode_rle
from .items import EvaluationRegion
from .model_identity import weights_hash


# Photos that SAM 2 gets at a time.
_PHOTOS = 4


def with_sam_masks(
    groups: Sequence[Sequence[EvaluationRegion]], checkpoint: str, name: str
) -> tuple[list[list[EvaluationRegion]], str]:
    """Regions with the masks that SAM 2 makes of their boxes, on the GPU where there is one.

    Args:
        groups: Regions with boxes, photo by photo.
        checkpoint: Of SAM 2, a Hub id or a folder.
        name: Of the benchmark, for errors.

    Returns:
        The same regions with masks in RLE, without one where SAM 2 finds nothing in the box; and the SHA-256 of the
        model's weights.

    Raises:
        ImportError: If packages of the extra longgrit are missing.

    Example:
        >>> groups, weights = with_sam_masks([regions], "facebook/sam2.1-hiera-large", "refcoco")  # doctest: +SKIP
    """
    try:
        from ..longgrit.box_masks import BoxMasks
    except ImportError as error:
        raise ImportError(
            f"{name}: masks is 'sam2', which needs the extra longgrit: pip install \"pixclip[longgrit]\" ({error}). "
            f"Accepted without it are masks=box and, for ground-truth candidates, masks=annotation."
        ) from error
    import torch

    maker = BoxMasks(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    masked = [list(regions) for regions in groups]
    waiting = [place for place, regions in enumerate(groups) if regions]
    for start in range(0, len(waiting), _PHOTOS):
        some = waiting[start : start + _PHOTOS]
        # Boxes of data sets count in pixels as they are stored.
        pictures = [
            read_image(groups[place][0].image.path, groups[place][0].image.key, upright=False) for place in some
        ]
        found = maker.segment(pictures, [[region.box for region in groups[place]] for place in some])
        for place, masks in zip(some, found, strict=True):
            masked[place] = [
                replace(region, mask=encode_rle(mask)) if mask.any() else region
                for region, mask in zip(groups[place], masks, strict=True)
            ]
    return masked, weights_hash(maker.model)
