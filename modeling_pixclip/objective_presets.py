# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The objectives of the papers, as fields of `PixCLIPConfig`."""

from typing import Any

from .configuration_pixclip import OBJECTIVE_TERMS


_PIXCLIP = {"global": 1.0, "crop": 1.0, "local": 1.0}
_FG_CLIP_STAGE_1 = {"caption_long": 1.0, "caption_short": 1.0}
_FG_CLIP_STAGE_2 = {**_FG_CLIP_STAGE_1, "region": 0.1, "hard_negative": 0.5}

OBJECTIVE_PRESETS: dict[str, tuple[dict[str, float], dict[str, Any]]] = {
    "pixclip": (_PIXCLIP, {}),
    "fg-clip-stage1": (_FG_CLIP_STAGE_1, {}),
    "fg-clip-stage2": (_FG_CLIP_STAGE_2, {}),
    "pixclip+fg": ({**_PIXCLIP, **_FG_CLIP_STAGE_2}, {"hard_negative_features": "global"}),
    "alpha-clip": ({"global": 1.0}, {}),
    "clip": ({"caption_short": 1.0}, {}),
}


def get_objective_preset(name: str) -> dict[str, Any]:
    """
    Fields of [`PixCLIPConfig`] that set the objective of a paper. Weights of all other terms are 0.

    | name | terms (weight) | from |
    |---|---|---|
    | `pixclip` | `global` (1), `crop` (1), `local` (1) | PixCLIP, arXiv 2511.04601; weights are ours |
    | `fg-clip-stage1` | `caption_long` (1), `caption_short` (1) | FG-CLIP, arXiv 2505.05071, first stage |
    | `fg-clip-stage2` | those, `region` (0.1), `hard_negative` (0.5) | FG-CLIP, second stage |
    | `pixclip+fg` | all of these; hard negatives against the masked image's embedding | both; the mixture is ours |
    | `alpha-clip` | `global` (1): mask contrast alone | Alpha-CLIP, arXiv 2312.03818 |
    | `clip` | `caption_short` (1): whole images and captions | CLIP, arXiv 2103.00020 |

    Args:
        name (`str`): One of the above.

    Returns:
        `dict`: Fields; further ones may be added or replaced.

    Raises:
        ValueError: If there is no such preset.

    Example:
        >>> from modeling_pixclip import PixCLIPConfig, get_objective_preset
        >>> config = PixCLIPConfig(**get_objective_preset("fg-clip-stage2"))
        >>> config.term_weights
        {'caption_long': 1.0, 'caption_short': 1.0, 'region': 0.1, 'hard_negative': 0.5}
    """
    if name not in OBJECTIVE_PRESETS:
        raise ValueError(
            f"there is no objective preset {name!r}; accepted are {', '.join(map(repr, OBJECTIVE_PRESETS))}."
        )
    weights, fields = OBJECTIVE_PRESETS[name]
    return {f"{term}_weight": weights.get(term, 0.0) for term in OBJECTIVE_TERMS} | fields


__all__ = ["get_objective_preset"]
