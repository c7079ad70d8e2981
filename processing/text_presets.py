# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What well-known text encoders expect around a text, and which of its tokens they pool."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextPreset:
    """How one family of text encoders is fed and pooled; `get_text_preset` gives the known ones.

    Attributes:
        text_template (`str`): Template with exactly one `{text}`.
        text_pooling (`str`): Which tokens `pooling_mask` selects, see `PixCLIPProcessor`.
        text_max_length (`int`): Longest tokenised text, template included.
        text_config (`dict`): Fields of the model's text configuration that belong to it, for `text_kwargs` of
            `PixCLIPModel.from_vision_text_pretrained`.
    """

    text_template: str
    text_pooling: str
    text_max_length: int
    text_config: dict[str, Any]


TEXT_PRESETS = {
    "llm2vec-llama3": TextPreset(
        text_template="<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
        text_pooling="text",
        text_max_length=512,
        text_config={"pooling": "mean", "bidirectional": True},
    ),
    "qwen3-embedding": TextPreset(
        text_template="{text}",
        text_pooling="last",
        text_max_length=8192,
        text_config={"pooling": "last", "bidirectional": False},
    ),
    "plain": TextPreset(text_template="{text}", text_pooling="all", text_max_length=512, text_config={}),
    "smollm2-chat": TextPreset(
        text_template="<|im_start|>user\n{text}<|im_end|>\n",
        text_pooling="text",
        text_max_length=512,
        text_config={"pooling": "mean", "bidirectional": True},
    ),
}


def get_text_preset(name: str) -> TextPreset:
    """Template, pooling span, length and model options of a family of text encoders.

    * `"llm2vec-llama3"`: the Llama-3-Instruct encoders of LLM2Vec and LLM2CLIP. A user turn; the mean over the text and
      its `<|eot_id|>`, without BOS and header; 512 tokens; bidirectional. Source: llm2vec 0.2.3 (McGill-NLP/llm2vec).
    * `"qwen3-embedding"`: Qwen3-Embedding 0.6B, 4B and 8B. A document stands alone, without an instruction; the
      tokenizer adds the end token, whose state is the vector; 8,192 tokens; causal. Source: model cards of
      Qwen/Qwen3-Embedding-0.6B, -4B and -8B.
    * `"plain"`: encoders that know no template, such as BERT and CLIP. All tokens, at most 512 (CLIP takes 77). How
      they are pooled differs from one to the next, so it sets nothing in the model.
    * `"smollm2-chat"`: SmolLM2-Instruct. The user turn alone, without the system turn that a conversation starts with;
      pooled like `"llm2vec-llama3"`. Source: chat template of HuggingFaceTB/SmolLM2-135M-Instruct.

    Args:
        name: Name of the preset.

    Returns:
        The preset.

    Raises:
        ValueError: If there is no preset of that name.

    Example:
        >>> from processing_pixclip import get_text_preset
        >>> preset = get_text_preset("qwen3-embedding")
        >>> preset.text_pooling, preset.text_config
        ('last', {'pooling': 'last', 'bidirectional': False})
    """
    if not isinstance(name, str) or name not in TEXT_PRESETS:
        raise ValueError(
            f"text_preset is {name!r}; accepted are {', '.join(map(repr, sorted(TEXT_PRESETS)))}. For another text encoder pass "
            f"text_template, text_pooling and text_max_length."
        )
    return TEXT_PRESETS[name]


__all__ = ["TEXT_PRESETS", "TextPreset", "get_text_preset"]
