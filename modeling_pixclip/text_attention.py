# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Padding-free attention: the texts of a batch stand end to end in one row, and no token of padding is computed.

Importing this module registers the attention implementation `pixclip_varlen` with Transformers. Given the packed call
of its flash implementations (`cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q`, `max_length_k`, `position_ids`), it runs
PyTorch's own `torch.nn.attention.varlen.varlen_attn` (flash attention, no extra package) on CUDA in half precision, and
scaled dot product attention text by text elsewhere. Without them it is Transformers' `sdpa`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .encoding import evaluating


try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:
    # Before torch 2.10.
    varlen_attn = None

logger = logging.get_logger(__name__)

VARLEN_ATTENTION = "pixclip_varlen"
_VARLEN_ARGUMENTS = inspect.signature(varlen_attn).parameters if varlen_attn is not None else {}


@dataclass(frozen=True)
class PackedTexts:
    """
    T texts with N tokens in all, end to end, and how to get back to the padded batch (T, L) that they came from.

    Args:
        input_ids (`torch.LongTensor` of shape `(1, N)`): Their tokens.
        position_ids (`torch.LongTensor` of shape `(1, N)`): Positions, counted anew in every text.
        text_index (`torch.LongTensor` of shape `(N,)`): The text of each token.
        flat_index (`torch.LongTensor` of shape `(N,)`): Place of each token in the flattened padded batch.
        cu_seq_lens (`torch.IntTensor` of shape `(T + 1,)`): Where each text starts, and N.
        max_length (`int`): Tokens of the longest text.
        padded_shape (`tuple[int, int]`): T and L.

    Example:
        >>> import torch
        >>> from modeling_pixclip.text_attention import PackedTexts
        >>> packed = PackedTexts.from_padded(torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]))
        >>> packed.input_ids, packed.position_ids, packed.cu_seq_lens
        (tensor([[5, 6, 7, 8]]), tensor([[0, 1, 2, 0]]), tensor([0, 3, 4], dtype=torch.int32))
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    text_index: torch.Tensor
    flat_index: torch.Tensor
    cu_seq_lens: torch.Tensor
    max_length: int
    padded_shape: tuple[int, int]

    @classmethod
    def from_padded(
        cls, input_ids: torch.Tensor, attention_mask: torch.Tensor, first_position: int = 0
    ) -> "PackedTexts":
        """
        Leaves the padding out.

        Args:
            input_ids (`torch.LongTensor` of shape `(T, L)`): Tokens, padded on either side.
            attention_mask (`torch.Tensor` of shape `(T, L)`): 1 for tokens, which stand together; each text has at least
                one.
            first_position (`int`, *optional*, defaults to 0): Position of the first token of a text.
        """
        mask = attention_mask.bool()
        lengths = mask.sum(-1)
        text_index, columns = mask.nonzero(as_tuple=True)
        flat_index = text_index * mask.shape[1] + columns
        first = mask.int().argmax(-1)
        return cls(
            input_ids=input_ids.flatten()[None, flat_index],
            position_ids=(columns - first[text_index] + first_position)[None],
            text_index=text_index,
            flat_index=flat_index,
            cu_seq_lens=nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32),
            max_length=int(lengths.max()),
            padded_shape=tuple(mask.shape),
        )

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """What a padded batch (T, L), or (1, L) for all texts, holds for each token, as (1, N)."""
        return values.expand(self.padded_shape).flatten()[None, self.flat_index]

    def unpack(self, states: torch.Tensor) -> torch.Tensor:
        """States (1, N, W) as those of a padded batch (T, L, W), zero at padding."""
        texts, length = self.padded_shape
        padded = states.new_zeros(texts * length, states.shape[-1])
        return padded.index_copy(0, self.flat_index, states[0]).view(texts, length, -1)

    def model_inputs(self, attn_implementation: str) -> dict:
        """Keywords of the packed call of a backbone with this attention implementation."""
        mask = None
        if attn_implementation == VARLEN_ATTENTION:
            # Ready-made masks of four dimensions are passed on as they are; without one, Transformers would make a
            # mask of N x N that nothing reads.
            mask = self.input_ids.new_ones(1, 1, 1, 1, dtype=torch.bool)
        return {
            "input_ids": self.input_ids,
            "attention_mask": mask,
            "position_ids": self.position_ids,
            "cu_seq_lens_q": self.cu_seq_lens,
            "cu_seq_lens_k": self.cu_seq_lens,
            "max_length_q": self.max_length,
            "max_length_k": self.max_length,
        }


def takes_packed_texts(attn_implementation: str) -> bool:
    """Whether an attention implementation keeps packed texts apart: ours, flash attention, kernels of the Hub."""
    return attn_implementation == VARLEN_ATTENTION or "flash" in attn_implementation or "/" in attn_implementation


def varlen_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    r"""
    The attention function of `pixclip_varlen`, called by a backbone's attention layers.

    Args:
        module (`nn.Module`): The attention layer.
        query (`torch.Tensor` of shape `(1, heads, N, head width)`): Queries; `(T, heads, L, head width)` if not packed.
        key (`torch.Tensor`), value (`torch.Tensor`): Likewise, with fewer heads where queries are grouped.
        attention_mask (`torch.Tensor`, *optional*): Used only if not packed.
        dropout (`float`, *optional*, defaults to 0.0): Dropout of the attention weights.
        scaling (`float`, *optional*): Factor of the scores; defaults to head width ** -0.5.
        is_causal (`bool`, *optional*): Whether tokens see earlier ones only; defaults to the layer's own.
        sliding_window (`int`, *optional*): Given, tokens see others up to `module.config.sliding_window` away.
        cu_seq_lens_q (`torch.IntTensor` of shape `(T + 1,)`, *optional*): Where each text starts, and N.
        max_length_q (`int`, *optional*): Tokens of the longest text.

    Returns:
        `tuple`: States `(1, N, heads, head width)`, and `None` for the weights.

    Raises:
        ValueError: If a packed call needs what this implementation lacks (soft caps, attention sinks, position biases).

    Example:
        >>> import torch
        >>> from modeling_pixclip.text_attention import varlen_attention_forward
        >>> states = torch.randn(1, 4, 5, 8)
        >>> starts = torch.tensor([0, 3, 5], dtype=torch.int32)
        >>> layer = torch.nn.Module()
        >>> out, _ = varlen_attention_forward(
        ...     layer, states, states, states, None, is_causal=False, cu_seq_lens_q=starts, max_length_q=3
        ... )
        >>> out.shape
        torch.Size([1, 5, 4, 8])
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout,
            scaling,
            is_causal,
            sliding_window=sliding_window,
            **kwargs,
        )
    lacking = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if lacking:
        raise ValueError(
            f"{type(module).__name__} asks for {lacking}, which {VARLEN_ATTENTION!r} has not got for packed texts. Set "
            "padding_free=False in the text config."
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    # What layers pass is off by one in some types; the configuration holds what masks are made with.
    window = None if sliding_window is None else module.config.sliding_window
    dtype = _flash_dtype(query)
    if dtype is not None and dropout:
        logger.warning_once(
            f"{VARLEN_ATTENTION}: flash attention has no dropout here, so attention runs text by text."
        )
    if dtype is None or dropout:
        states = _text_by_text(query, key, value, cu_seq_lens_q, dropout, scaling, causal, window)
    else:
        states = _flash(query, key, value, cu_seq_lens_q, max_length_q, scaling, causal, window, dtype)
    return states, None


def _flash_dtype(query: torch.Tensor) -> torch.dtype | None:
    """Half precision that the flash kernel runs in, or `None` where it cannot."""
    dtype = query.dtype
    if torch.is_autocast_enabled(query.device.type):
        # Norms and rotations leave float32 behind under autocast, which calls of custom operators are not part of.
        dtype = torch.get_autocast_dtype(query.device.type)
    if dtype not in (torch.float16, torch.bfloat16) or not query.is_cuda or "window_size" not in _VARLEN_ARGUMENTS:
        return None
    width = query.shape[-1]
    # The kernel's limits; Ampere is 8.0.
    fits = width % 8 == 0 and width <= 256 and torch.cuda.get_device_capability(query.device) >= (8, 0)
    return dtype if fits else None


def _flash(query, key, value, starts, longest, scaling, causal, window, dtype) -> torch.Tensor:
    left, right = (-1, 0 if causal else -1) if window is None else (window - causal, 0 if causal else window)
    options = {"scale": scaling, "window_size": (left, right)}
    query, key, value = (states[0].transpose(0, 1).to(dtype) for states in (query, key, value))
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in _VARLEN_ARGUMENTS:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    return varlen_attn(query, key, value, starts, starts, longest, longest, **options)[None]


@torch.compiler.disable
def _text_by_text(query, key, value, starts, dropout, scaling, causal, window) -> torch.Tensor:
    lengths = starts.diff().tolist()
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    outputs = []
    # One split, whose gradient is one concatenation; slices would each have a gradient of full length.
    for q, k, v in zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True):
        mask = None
        if window is not None and q.shape[2] > window:
            mask = _window_mask(q.shape[2], window, causal, q.device)
        output = scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal and mask is None, scale=scaling)
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _window_mask(length: int, window: int, causal: bool, device: torch.device) -> torch.Tensor:
    positions = torch.arange(length, device=device)
    distance = positions[:, None] - positions
    return (distance >= 0) & (distance < window) if causal else distance.abs() <= window


class NotPackableError(ValueError):
    """
    Says why a backbone does not take packed texts.

    Example:
        >>> from modeling_pixclip.text_attention import NotPackableError
        >>> str(NotPackableError("a text has other states beside another text"))
        'a text has other states beside another text'
    """


def find_first_position(backbone: PreTrainedModel, config: PreTrainedConfig, run: Callable) -> int:
    """
    Runs a few tokens packed and padded, and finds from which position on a backbone counts (RoBERTa's kin: not from 0).

    Args:
        backbone ([`PreTrainedModel`]): The text backbone.
        config ([`PreTrainedConfig`]): Its configuration, or the text part of it.
        run (`Callable`): Calls it with keywords.

    Returns:
        `int`: What [`PackedTexts.from_padded`] takes as `first_position`.

    Raises:
        NotPackableError: If the backbone fails, mixes the texts, or has other states than for a padded batch.
    """
    pairs = 1
    if any(isinstance(module, nn.Embedding) and "position" in name for name, module in backbone.named_modules()):
        # More tokens than its table of positions has rows, which some types take for a text that is too long.
        pairs = config.max_position_embeddings // 8 + 1
    # From the middle of the vocabulary: special tokens stand at its ends.
    tokens = (torch.arange(9, device=backbone.device) + config.vocab_size // 2) % config.vocab_size
    ids = torch.stack([tokens[:5], tokens[4:]]).repeat(pairs, 1)
    mask = torch.ones_like(ids)
    mask[1::2, 3:] = 0
    pad = getattr(config, "pad_token_id", None) or 0
    ids = ids.masked_fill(mask == 0, pad)
    other = ids.clone()
    other[1::2, :3] = tokens[:3]
    errors = {}
    try:
        with evaluating(backbone):
            expected = run(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask[..., None]
            for first in (0, pad + 1):
                states, moved = (
                    texts.unpack(run(**texts.model_inputs(config._attn_implementation)).last_hidden_state)
                    for texts in (PackedTexts.from_padded(rows, mask, first) for rows in (ids, other))
                )
                if not torch.equal(states[::2], moved[::2]):
                    raise NotPackableError("a text has other states beside another text")
                errors[first] = float((states.float() - expected).norm() / expected.norm())
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        own = isinstance(error, NotPackableError)
        raise NotPackableError(str(error) if own else f"it fails with {type(error).__name__}: {error}") from error
    first = min(errors, key=errors.get)
    # Kernels differ by rounding, which adds up in a deep backbone: bounds of 0.002 in float32, 0.14 in bfloat16.
    if errors[first] > torch.finfo(backbone.dtype).eps ** 0.4:
        raise NotPackableError("a text has other states than in a padded batch")
    return first


AttentionInterface.register(VARLEN_ATTENTION, varlen_attention_forward)
AttentionMaskInterface.register(VARLEN_ATTENTION, sdpa_mask)

__all__ = [
    "VARLEN_ATTENTION",
    "NotPackableError",
    "PackedTexts",
    "find_first_position",
    "takes_packed_texts",
    "varlen_attention_forward",
]
