# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Layouts of Alpha-CLIP: a CLIP checkpoint for the texts, and a vision-only file with a mask convolution; or both in one file.

The CLIP checkpoint has to be of the size of the vision-only file, by the shapes of its own vision tower.
"""

from dataclasses import replace

import torch

from .configuration_pixclip import PixCLIPConfig
from .conversion_clip import (
    CROP,
    HUB_TEXT,
    HUB_TEXT_POSITIONS,
    HUB_VISION,
    OPENAI_TEXT_POSITIONS,
    clip_config,
    hub_source_config,
    openai_source_config,
    openai_text,
    openai_vision,
    plain_text_options,
)
from .conversion_rules import COPY, ConversionError, Rule, Shapes, SourceFacts, SourceLayout, SourcePart


_ALPHA = "alpha_visual:"
# What `load` of alpha_clip does with a mask, whose image it crops; on square images they agree.
_ALPHA_CROP = (
    "images are resized and cropped around the centre, as alpha_clip.load does it, and masks with them; regions that the crop "
    "cuts off are an error. With resize_mode='letterbox' every region stays"
)


def merge_lora(tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """
    Adds adapters of loralib to their weights, as its layers do in eval mode.

    The rank is the width of `lora_B`, and the scale 1 / rank, as Alpha-CLIP leaves `lora_alpha` at 1. Of queries, keys and
    values the first and the last have adapters, one below the other. Sources: `LoRALayer`, `Linear` and `MergedLinear` of
    loralib 0.1.2 (loralib/layers.py), `Attention` and `CustomResidualAttentionBlock` of SunzeY/AlphaCLIP
    (alpha_clip/model.py).
    """
    merged, originals = dict(tensors), {}
    for name in tensors:
        if not name.endswith(".lora_A"):
            continue
        layer = name.removesuffix(".lora_A")
        names = {part: f"{layer}.{part}" for part in ("weight", "lora_A", "lora_B")}
        missing = [other for other in names.values() if other not in tensors]
        if missing:
            raise ConversionError(f"{name!r} is half of an adapter: {missing} are not there.")
        weight, down, up = (tensors[other] for other in names.values())
        rank = up.shape[1]
        # The outputs with an adapter; a merged layer of three has two.
        groups = {rank: (0,), 2 * rank: (0, 2)}.get(len(down))
        total = weight.shape[0]
        width = total // (3 if groups and len(groups) == 2 else 1)
        if groups is None or len(up) != width * len(groups) or down.shape[1] != weight.shape[1]:
            raise ConversionError(
                f"the adapter of {names['weight']!r} {tuple(weight.shape)} has shapes lora_A {tuple(down.shape)} and lora_B "
                f"{tuple(up.shape)}; accepted are (r, {weight.shape[1]}) with ({total}, r), or for queries and values "
                f"(2 r, {weight.shape[1]}) with ({2 * total // 3}, r)."
            )
        result = weight.float().clone()
        for place, part in enumerate(groups):
            delta = up[place * width : (place + 1) * width].float() @ down[place * rank : (place + 1) * rank].float()
            result[part * width : (part + 1) * width] += delta / rank
        merged[names["weight"]] = result
        for other in names.values():
            originals[other] = tensors[other]
        del merged[names["lora_A"]], merged[names["lora_B"]]
    return merged, originals


def _alpha_config(shapes: Shapes, facts: SourceFacts) -> PixCLIPConfig:
    facts.notes.append(_ALPHA_CROP)
    # Trained with whole images under a mask of ones, and with the text tower as it is.
    config = clip_config(
        shapes, facts, "alpha-clip", vision={"default_mask": "full"}, text={"backbone_training": "frozen"}
    )
    _check_replaced(shapes, facts)
    return config


def _check_replaced(shapes: Shapes, facts: SourceFacts):
    """Refuses a first file whose vision tower, which is not taken, has other shapes than the one that is."""

    def described(target: str) -> str:
        names = [name for name in shapes.layout.sources_of(target) if name in facts.source_shapes]
        return ", ".join(f"{name!r} {facts.source_shapes[name]}" for name in names) or "nothing like it"

    there: set[str] = set()
    differ = []
    for rule in shapes.layout.write_only:
        for name, shape in facts.source_shapes.items():
            match = rule.source_pattern.fullmatch(name)
            if match is None:
                continue
            targets = [template.format(**match.groupdict()) for template in rule.targets]
            there.update(targets)
            parts = rule.operation.read(torch.empty(shape, device="meta"))
            if [tuple(part.shape) for part in parts] != [shapes.get(target) for target in targets]:
                differ.append(f"{name!r} {shape} in the first, {described(targets[0])} in the second")
    differ += [
        f"nothing in the first, {described(name)} in the second"
        for name in shapes
        # A first file without a vision tower says nothing of sizes.
        if there and name.startswith(_TAKEN) and name not in there and name != _MASK_CONVOLUTION
    ]
    if differ:
        raise ConversionError(
            f"the vision towers of the two files are of different sizes, in {len(differ)} tensors: {'; '.join(differ[:4])}. "
            "Take the CLIP checkpoint that the vision file was trained from."
        )


def _dropped(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """What the rules name, dropped."""
    return tuple(
        replace(rule, name="vision tower of the first file", targets=(), operation=COPY, reason=_REPLACED, alias=False)
        for rule in rules
    )


_TAKEN = ("vision_model.", "visual_projection.")
_MASK_CONVOLUTION = "vision_model.embeddings.mask_patch_embedding.weight"
_ALPHA_VISION = (
    *openai_vision(_ALPHA, linear=True),
    Rule("mask convolution", f"{_ALPHA}conv1_alpha.weight", _MASK_CONVOLUTION),
)
_ALPHA_PART = SourcePart(
    "vision tower of Alpha-CLIP",
    ("class_embedding", "conv1.weight", "proj"),
    absent=("token_embedding.weight",),
    prefix=_ALPHA,
    file_name="alpha_visual.pth",
)
_REPLACED = "the vision tower of the second file takes its place"
_OPENAI_VISION = openai_vision("visual.")
_HUB_WEIGHTS = tuple(rule for rule in HUB_VISION if rule.targets)

ALPHA_CLIP = (
    SourceLayout(
        source="alpha-clip",
        variant="OpenAI CLIP and a vision tower",
        parts=(
            SourcePart(
                "OpenAI CLIP",
                ("token_embedding.weight", "text_projection"),
                absent=("visual.conv1_alpha.weight",),
                file_name="openai_clip.pt",
            ),
            _ALPHA_PART,
        ),
        rules=(
            *_ALPHA_VISION,
            *openai_text(),
            OPENAI_TEXT_POSITIONS,
            *_dropped(_OPENAI_VISION),
        ),
        # The official loader takes the sizes from it.
        write_only=_OPENAI_VISION,
        build_config=_alpha_config,
        objective="alpha-clip",
        image_processor=CROP,
        prepare=merge_lora,
        text_options=plain_text_options,
        source_config=openai_source_config,
    ),
    SourceLayout(
        source="alpha-clip",
        variant="CLIPModel of Transformers and a vision tower",
        parts=(
            SourcePart(
                "CLIPModel",
                ("text_model.embeddings.token_embedding.weight", "text_projection.weight"),
                file_name="model.safetensors",
            ),
            _ALPHA_PART,
        ),
        rules=(
            *_ALPHA_VISION,
            *HUB_TEXT,
            HUB_TEXT_POSITIONS,
            *_dropped(_HUB_WEIGHTS),
            *(rule for rule in HUB_VISION if not rule.targets),
        ),
        write_only=_HUB_WEIGHTS,
        build_config=_alpha_config,
        objective="alpha-clip",
        image_processor=CROP,
        prepare=merge_lora,
        text_options=plain_text_options,
        source_config=hub_source_config,
        hub_folder=True,
    ),
    SourceLayout(
        source="alpha-clip",
        variant="whole model in one file",
        parts=(
            SourcePart(
                "Alpha-CLIP",
                ("token_embedding.weight", "visual.conv1_alpha.weight"),
                file_name="alpha_clip.pt",
            ),
        ),
        rules=(
            *openai_vision("visual.", linear=True),
            Rule("mask convolution", "visual.conv1_alpha.weight", _MASK_CONVOLUTION),
            *openai_text(),
            OPENAI_TEXT_POSITIONS,
        ),
        build_config=_alpha_config,
        objective="alpha-clip",
        image_processor=CROP,
        prepare=merge_lora,
        text_options=plain_text_options,
        source_config=openai_source_config,
    ),
)


__all__ = ["ALPHA_CLIP", "merge_lora"]
