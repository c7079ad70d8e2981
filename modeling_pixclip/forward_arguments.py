# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which further keywords the towers take: a misspelt one must not be swallowed without effect."""

from typing import Any

from transformers.utils import TransformersKwargs


ACCEPTED = frozenset(TransformersKwargs.__annotations__) | {
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "token_type_ids",
    "use_cache",
}


def check_forward_kwargs(kwargs: dict[str, Any]):
    """
    Refuses keywords that neither Transformers nor a backbone reads.

    Args:
        kwargs (`dict`): What a forward method got beyond its own arguments.

    Raises:
        TypeError: If there is an unknown one.

    Example:
        >>> from modeling_pixclip.forward_arguments import check_forward_kwargs
        >>> check_forward_kwargs({"output_hidden_states": True})
    """
    unknown = [name for name in kwargs if name not in ACCEPTED]
    if unknown:
        raise TypeError(
            f"unexpected arguments {unknown}. Inputs are named as the processor's output: pixel_values, mask_values, "
            f"region_image_index, input_ids, ...; accepted beside the documented ones: {sorted(ACCEPTED)}."
        )


__all__ = ["check_forward_kwargs"]
