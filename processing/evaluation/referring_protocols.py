# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What decides an accuracy on referring expressions: protocols, and the published ones by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .classification_scores import tie_rule
from .encoders import Encoder
from .protocols import Protocol, bounded
from .region_classification import resolve_view, view_summaries


# What "auto" stands for: PixCLIP's pair of views, and ReCLIP's for models without a mask input.
AUTO_VIEWS = ("full+mask + blur+mask", "box-crop + blur")
# By how much two cosines of equal vectors may differ: units in the last place of float32, as in `target_ranks`.
COSINE_TOLERANCE = 16 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class ReferringProtocol(Protocol):
    """What decides an accuracy on referring expressions besides the model.

    A candidate's score is the sum over the views of the cosine of its vector and the sentence's, times the model's
    logit scale; the candidate with the highest is the answer. The sentence is put into `prompt` in lower case.

    Attributes:
        split: "val", "testA" (persons) or "testB" (other objects).
        source: Which files are read: "unc", the authors' refs and instances, or "reclip", ReCLIP's JSON lines.
        candidates: "ground-truth": all objects that are annotated in the photo, of "unc" without groups (`iscrowd`);
            or "detector": the boxes of ReCLIP's file of detections.
        iou: The answer is right if its box overlaps that of the object by more than this, strictly.
        masks: What is shown of a candidate: its "annotation" (ground-truth candidates alone), its "box", or the mask
            that SAM 2 makes of the box ("sam2").
        mask_model: SAM 2 checkpoint of "sam2", a Hub id or a folder.
        views: Ways of showing a candidate, names of `region_views.VIEWS`, each a figure of its own; views joined as in
            "full+mask + blur+mask" are one, their cosines are added. "auto" is that pair of a model that takes masks,
            and "box-crop + blur" of any other; the result's protocol says which it was.
        prompt: What the sentence is put into, at "{}".
        expression: "raw", the sentence as it was typed, or "sent", as the authors cleaned it.
        parser: Whether spatial words ("left", "behind the bus") count: the softmax of the scores is multiplied by what
            `expression_parser` makes of them.
        no_boxes: A photo in which the detector found nothing: its sentences are "wrong", or the "whole image" is the
            only candidate. They are counted.
        ties: "pessimistic": a wrong candidate with the same score wins; "optimistic": a right one does. Scores are the
            same that differ by no more than rounding can make of equal ones, 2e-6 for each view of a sum, in cosines.

    Example:
        >>> referring_presets(ReferringProtocol())["official-pixclip"].changed({"split": "testA"}).candidates
        'detector'
    """

    split: Literal["val", "testA", "testB"] = "val"
    source: Literal["unc", "reclip"] = "unc"
    candidates: Literal["ground-truth", "detector"] = "ground-truth"
    # At 1 nothing could exceed it.
    iou: float = bounded(0.5, 0, 0.99)
    masks: Literal["annotation", "box", "sam2"] = "annotation"
    mask_model: str = "facebook/sam2.1-hiera-large"
    views: tuple[str, ...] = ("auto",)
    prompt: str = "a photo of {}"
    expression: Literal["raw", "sent"] = "raw"
    parser: bool = False
    no_boxes: Literal["wrong", "whole image"] = "wrong"
    ties: Literal["pessimistic", "optimistic"] = "pessimistic"

    def details(self) -> dict[str, Any]:
        views = [part for view in self.views for part in (AUTO_VIEWS if view == "auto" else [view])]
        equal = f"cosines are equal that differ by at most {COSINE_TOLERANCE:.2g} for each view of a sum"
        return super().details() | {"view_summaries": view_summaries(views), "tie_rule": tie_rule(self.ties, equal)}


@dataclass(frozen=True)
class RefCocoGProtocol(ReferringProtocol):
    """`ReferringProtocol` for RefCOCOg.

    Attributes:
        split: "val" or "test", of UMD.

    Example:
        >>> RefCocoGProtocol().changed({"split": "test"}).split
        'test'
    """

    split: Literal["val", "test"] = "val"


def referring_presets(default: ReferringProtocol) -> dict[str, ReferringProtocol]:
    """The protocols of a benchmark by name; `ReferringExpressions` tells what they are.

    Args:
        default: That of the name "default".

    Example:
        >>> list(referring_presets(RefCocoGProtocol()))
        ['default', 'official-pixclip', 'detector-boxes']
    """
    official = replace(
        default,
        name="official-pixclip",
        source="reclip",
        candidates="detector",
        masks="sam2",
        views=(AUTO_VIEWS[0],),
        parser=True,
        no_boxes="whole image",
    )
    boxes = replace(default, name="detector-boxes", candidates="detector", masks="box")
    return {protocol.name: protocol for protocol in (default, official, boxes)}


def resolve_views(views: Sequence[str], encoder: Encoder) -> list[str]:
    """The views of a `ReferringProtocol`, "auto" replaced.

    Args:
        views: As of the protocol.
        encoder: The model.

    Raises:
        ValueError: If the model does not support one; names those that it does.

    Example:
        >>> resolve_views(["auto"], encoder)  # doctest: +SKIP
        ['full+mask + blur+mask']
    """
    masked, unmasked = AUTO_VIEWS
    automatic = masked if any(view.endswith("+mask") for view in encoder.views) else unmasked
    return [resolve_view(automatic if view == "auto" else view, encoder) for view in views]
