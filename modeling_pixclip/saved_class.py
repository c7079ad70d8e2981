# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The class that a model is saved as."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.modeling_utils import PreTrainedModel


@contextmanager
def saved_class(model: PreTrainedModel) -> Iterator[None]:
    """
    For the time of saving, a model sharded by FSDP2 is of the class that it was made of.

    FSDP2 puts a class of its own around that one, and its code would be saved in place of the model's.

    Args:
        model ([`PreTrainedModel`]): The model that is saved.

    Example:
        >>> import tempfile
        >>> from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModel
        >>> from modeling_pixclip.saved_class import saved_class
        >>> model = PixCLIPVisionModel(PixCLIPVisionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
        >>> with saved_class(model):
        ...     print(type(model).__name__)
        PixCLIPVisionModel
    """
    own_class = type(model)
    if own_class.__name__.startswith("FSDP"):
        model.__class__ = own_class.__bases__[-1]
    try:
        yield
    finally:
        model.__class__ = own_class


__all__ = ["saved_class"]
