# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Vision tower of PixCLIP: a pre-norm ViT (OpenAI CLIP or EVA02 by config) that also takes a pixel mask."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_pixclip import PixCLIPVisionConfig
from .forward_arguments import check_forward_kwargs
from .saved_class import saved_class


@dataclass
class PixCLIPVisionModelOutput(BaseModelOutputWithPooling):
    """
    Output of [`PixCLIPVisionModel`]. R rows: one a region, or one an image where no regions are given.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(R, 1 + N, hidden_size)`): Output of the last block, CLS first.
        pooler_output (`torch.Tensor` of shape `(R, hidden_size)`): CLS after the final LayerNorm.
        dense_state (`torch.Tensor` of shape `(R, N, hidden_size)`, *optional*, with `return_dense=True`): Dense map
            after the final LayerNorm, patches row by row.
        hidden_states (`tuple`, *optional*), attentions (`tuple`, *optional*): As in every Transformers model.
    """

    dense_state: torch.Tensor | None = None


@dataclass
class PixCLIPVisionProjectionOutput(ModelOutput):
    """
    Output of [`PixCLIPVisionModelWithProjection`].

    Args:
        image_embeds (`torch.Tensor` of shape `(R, projection_dim)`): Projected embeddings, not normalised.
        last_hidden_state (`torch.Tensor` of shape `(R, 1 + N, hidden_size)`): Output of the last block, CLS first.
        hidden_states (`tuple`, *optional*), attentions (`tuple`, *optional*): As in every Transformers model.
    """

    image_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def initial_stds(config: PixCLIPVisionConfig) -> tuple[float, float]:
    """CLIP's standard deviations of initial weights: of a layer as wide as the tower, of one that many blocks add up."""
    width_std = config.hidden_size**-0.5 * config.initializer_factor
    return width_std, width_std * (2 * config.num_hidden_layers) ** -0.5


class PixCLIPVisionStem(nn.Module):
    """A convolutional network that does not train, up to its last feature map."""

    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__()
        self.stride, self.channels = config.stem_stride, config.stem_channels
        # In the tower's dtype, whatever the network's checkpoint had.
        self.network = AutoModel.from_config(
            config.stem_config, dtype=torch.get_default_dtype(), attn_implementation="eager"
        )
        if self.network.main_input_name != "pixel_values":
            raise ValueError(
                f"stem_config is of model type {config.stem_config.model_type!r}, whose input is "
                f"{self.network.main_input_name}; accepted are convolutional networks, which take pixel_values."
            )
        # Whatever attention the blocks are set to: a convolutional network has none, and the few hybrids stay eager.
        self.network._supports_sdpa = self.network._supports_flash_attn = self.network._supports_flex_attn = True
        self.train()

    def train(self, mode: bool = True):
        # Eval mode keeps the statistics of batch norms. Loading makes parameters anew, which would train, and ends here.
        self.network.requires_grad_(False)
        return super().train(False)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        maps = self.network(pixel_values, return_dict=True).last_hidden_state
        expected = (self.channels, *(side // self.stride for side in pixel_values.shape[-2:]))
        if maps.shape[1:] != expected:
            raise ValueError(
                f"the stem's map has shape {tuple(maps.shape[1:])} (channels, rows, columns), and stem_channels "
                f"({self.channels}) and stem_stride ({self.stride}) make it {expected}. Set them to what the network of "
                f"stem_config ({self.network.config.model_type!r}) gives."
            )
        return maps


class PixCLIPVisionEmbeddings(nn.Module):
    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__()
        self.config = config
        patch, width = config.patch_size, config.hidden_size
        self.class_embedding = nn.Parameter(torch.randn(width))
        channels, cells = config.num_channels, patch
        self.stem = None
        if config.stem_config is not None:
            self.stem = PixCLIPVisionStem(config)
            channels, cells = config.stem_channels, patch // config.stem_stride
        self.patch_embedding = nn.Conv2d(channels, width, cells, stride=cells, bias=config.patch_bias)
        self.mask_patch_embedding = nn.Conv2d(1, width, patch, stride=patch, bias=config.mask_patch_bias)
        rows, columns = config.grid_size
        self.position_embedding = nn.Embedding(1 + rows * columns, width)
        self.patch_embedding.init_std = config.initializer_range * config.initializer_factor
        self.position_embedding.init_std = self.patch_embedding.init_std
        # Zero, so that a fresh model equals its CLIP parent whatever the mask (Alpha-CLIP).
        self.mask_patch_embedding.init_std = 0.0

    def interpolated_positions(self, rows: int, columns: int) -> torch.Tensor:
        """Position table (1 + rows * columns, hidden_size), bicubic where the grid is not the configured one."""
        table = self.position_embedding.weight
        # A program exported for any size must not take the shortcut of the size that it was exported with.
        any_size = torch.compiler.is_exporting() and any(isinstance(side, torch.SymInt) for side in (rows, columns))
        if not any_size and (rows, columns) == self.config.grid_size:
            return table
        grid = table[1:].T.reshape(1, -1, *self.config.grid_size)
        grid = nn.functional.interpolate(grid.float(), (rows, columns), mode="bicubic", align_corners=False)
        return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])

    def mask_tokens(self, mask_values: torch.Tensor | None) -> torch.Tensor | None:
        if mask_values is not None:
            return self.mask_patch_embedding(mask_values).flatten(2).transpose(1, 2)
        if self.config.default_mask == "none":
            return None
        # Every patch of a mask of ones is the same patch.
        patch = self.config.patch_size
        ones = self.mask_patch_embedding.weight.new_full(
            (1, 1, patch, patch), (1 - self.config.mask_mean) / self.config.mask_std
        )
        return self.mask_patch_embedding(ones).flatten(2).transpose(1, 2)

    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_values: torch.Tensor | None = None,
        region_image_index: torch.Tensor | None = None,
    ) -> torch.Tensor:
        height, width = pixel_values.shape[-2:]
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"pixel_values are {height} x {width} pixels; height and width must be multiples of the patch size "
                f"{patch}. Set the processor's `size` to such a multiple."
            )
        if mask_values is not None and mask_values.shape[1:] != (1, height, width):
            raise ValueError(
                f"mask_values have shape {tuple(mask_values.shape)}; accepted is (R, 1, {height}, {width}), the size of "
                "pixel_values. Pass images and masks to the processor together."
            )
        dtype = self.patch_embedding.weight.dtype
        pixel_values = pixel_values.to(dtype)
        tokens = self.patch_embedding(pixel_values if self.stem is None else self.stem(pixel_values))
        tokens = tokens.flatten(2).transpose(1, 2)
        if region_image_index is not None:
            tokens = tokens[region_image_index]
        # Rows are counted by shape: len() would fix their number in an exported program.
        if mask_values is not None and mask_values.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"{len(mask_values)} masks for {len(tokens)} "
                + ("entries of region_image_index." if region_image_index is not None else "images.")
                + " Pass region_image_index (R,), the image of each mask."
            )
        mask_tokens = self.mask_tokens(None if mask_values is None else mask_values.to(dtype))
        if mask_tokens is not None:
            tokens = tokens + mask_tokens
        class_token = self.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        return torch.cat([class_token, tokens], dim=1) + self.interpolated_positions(height // patch, width // patch)


def rotary_tables(config: PixCLIPVisionConfig, rows: int, columns: int, like: torch.Tensor):
    """
    Cosine and sine tables (rows * columns, head_dim) of EVA02's 2-D RoPE.

    The first half of a head rotates with the row, the second with the column; positions are scaled to
    `rope_grid_size`, which interpolates them to any grid.
    """
    axis_dim = config.hidden_size // config.num_attention_heads // 2
    exponents = torch.arange(0, axis_dim, 2, device=like.device, dtype=torch.float32) / axis_dim
    frequencies = config.rope_theta**-exponents

    def axis(length: int) -> torch.Tensor:
        positions = torch.arange(length, device=like.device, dtype=torch.float32) / length * config.rope_grid_size
        return (positions[:, None] * frequencies).repeat_interleave(2, dim=-1)

    by_row, by_column = axis(rows), axis(columns)
    angles = torch.cat(
        [by_row[:, None].expand(-1, columns, -1), by_column[None].expand(rows, -1, -1)], dim=-1
    ).flatten(0, 1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def apply_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates interleaved pairs of the patch tokens of (R, heads, 1 + N, head_dim); CLS stays as it is."""
    patches = states[:, :, 1:]
    rotated = torch.stack([-patches[..., 1::2], patches[..., ::2]], dim=-1).flatten(-2)
    return torch.cat([states[:, :, :1], patches * cos + rotated * sin], dim=2)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
):
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class PixCLIPVisionAttention(nn.Module):
    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=config.key_bias)
        self.v_proj = nn.Linear(width, width)
        self.inner_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.sub_layer_norm else None
        self.out_proj = nn.Linear(width, width)
        self.out_proj.init_std, residual_std = initial_stds(config)
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            projection.init_std = residual_std

    def output(self, states: torch.Tensor) -> torch.Tensor:
        return self.out_proj(states if self.inner_layer_norm is None else self.inner_layer_norm(states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # All sides written out: without regions there are no elements to infer one from.
        shape = (*hidden_states.shape[:-1], self.config.num_attention_heads, self.head_dim)
        query = self.q_proj(hidden_states).view(shape).transpose(1, 2)
        key = self.k_proj(hidden_states).view(shape).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if rotary is not None:
            query, key = apply_rotary(query, *rotary), apply_rotary(key, *rotary)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if not torch.compiler.is_exporting() and not hidden_states.shape[0]:
            # Kernels are not made for a batch without rows.
            attention_interface = eager_attention_forward
        states, weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return self.output(states.reshape(hidden_states.shape).contiguous()), weights


class PixCLIPVisionMLP(nn.Module):
    """CLIP's fc1-act-fc2."""

    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        width_std, self.fc2.init_std = initial_stds(config)
        self.fc1.init_std = width_std * 0.5**0.5

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class PixCLIPVisionSwiGLU(nn.Module):
    """EVA02's gated MLP, with a LayerNorm before the last projection when `sub_layer_norm`."""

    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.activation_fn = ACT2FN[config.hidden_act]
        width, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(width, inner)
        self.up_proj = nn.Linear(width, inner)
        self.inner_layer_norm = nn.LayerNorm(inner, eps=config.layer_norm_eps) if config.sub_layer_norm else None
        self.down_proj = nn.Linear(inner, width)
        self.gate_proj.init_std, self.down_proj.init_std = initial_stds(config)
        self.up_proj.init_std = self.gate_proj.init_std

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        states = self.activation_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states)
        return self.down_proj(states if self.inner_layer_norm is None else self.inner_layer_norm(states))


class PixCLIPVisionEncoderLayer(GradientCheckpointingLayer):
    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__()
        self.self_attn = PixCLIPVisionAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = PixCLIPVisionSwiGLU(config) if config.mlp_type == "swiglu" else PixCLIPVisionMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, rotary=None, value_path_rows: int | None = None, **kwargs
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        attended, _ = self.self_attn(self.layer_norm1(hidden_states), rotary=rotary, **kwargs)
        states = hidden_states + attended
        states = states + self.mlp(self.layer_norm2(states))
        # In here, because sharded parameters are whole, and gradients checkpointed, only inside a layer's forward.
        return states if value_path_rows is None else (states, self._value_path(hidden_states[:value_path_rows]))

    def _value_path(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The block with attention replaced by its value and output projections (CLIPSelf, FG-CLIP)."""
        attention = self.self_attn
        hidden_states = hidden_states + attention.output(attention.v_proj(self.layer_norm1(hidden_states)))
        return hidden_states + self.mlp(self.layer_norm2(hidden_states))


class PixCLIPVisionEncoder(nn.Module):
    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([PixCLIPVisionEncoderLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False

    def forward(
        self, hidden_states: torch.Tensor, rotary=None, dense_rows: int | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, rotary=rotary, **kwargs)
        if dense_rows is not None and self.config.dense_features == "value":
            states, dense_state = self.layers[-1](hidden_states, rotary=rotary, value_path_rows=dense_rows, **kwargs)
            return states, dense_state[:, 1:]
        states = self.layers[-1](hidden_states, rotary=rotary, **kwargs)
        return states, None if dense_rows is None else states[:dense_rows, 1:]


class PixCLIPVisionPreTrainedModel(PreTrainedModel):
    config: PixCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PixCLIPVisionEmbeddings", "PixCLIPVisionEncoderLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": PixCLIPVisionEncoderLayer, "attentions": PixCLIPVisionAttention}
    _input_embed_layer = "patch_embedding"
    # A tower saved alone has its code beside it, as the whole model has.
    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected = [
        r"^text_model\.",
        r"^logit_(scale|bias)",
        r"^ranking_margin$",
        r"^visual_projection\.",
    ]

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PixCLIPVisionEmbeddings):
            init.normal_(module.class_embedding, std=initial_stds(self.config)[0])
        elif hasattr(module, "init_std"):
            # Told by the layer and not set through its parent: parents without parameters of their own are skipped.
            init.normal_(module.weight, std=module.init_std)

    def save_pretrained(self, *args, **kwargs):
        """As in every Transformers model; the code is saved too, so that `AutoModel` loads the folder remotely."""
        with saved_class(self):
            super().save_pretrained(*args, **kwargs)


class PixCLIPVisionModel(PixCLIPVisionPreTrainedModel):
    """
    PixCLIP's vision tower without projection. Parameter names are those of [`CLIPVisionModel`], plus the mask's.

    Example:
        >>> import torch
        >>> from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModel
        >>> model = PixCLIPVisionModel(PixCLIPVisionConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
        >>> outputs = model(
        ...     torch.randn(1, 3, 224, 224), mask_values=torch.ones(2, 1, 224, 224), region_image_index=torch.tensor([0, 0])
        ... )
        >>> outputs.pooler_output.shape
        torch.Size([2, 64])
    """

    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__(config)
        self.embeddings = PixCLIPVisionEmbeddings(config)
        if config.pre_layer_norm:
            self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder = PixCLIPVisionEncoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_values: torch.Tensor | None = None,
        region_image_index: torch.Tensor | None = None,
        return_dense: bool = False,
        num_dense_rows: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixCLIPVisionModelOutput:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalised images, any size divisible by the patch.
            mask_values (`torch.Tensor` of shape `(R, 1, H, W)`, *optional*): Normalised masks, 1 inside the region
                before normalisation. Without them `config.default_mask` stands in.
            region_image_index (`torch.Tensor` of shape `(R,)`, *optional*): The image of each mask; without it there is
                one mask an image.
            return_dense (`bool`, *optional*, defaults to `False`): Also return the dense map.
            num_dense_rows (`int`, *optional*): With `return_dense`, the dense maps of the first so many rows only.

        Raises:
            ValueError: If sizes are not multiples of the patch, or masks, images and index do not fit.
            TypeError: If there is an unknown keyword.
        """
        check_forward_kwargs(kwargs)
        rows, columns = (side // self.config.patch_size for side in pixel_values.shape[-2:])
        hidden_states = self.embeddings(pixel_values, mask_values, region_image_index)
        if self.config.pre_layer_norm:
            hidden_states = self.pre_layrnorm(hidden_states)
        rotary = rotary_tables(self.config, rows, columns, hidden_states) if self.config.use_rope else None
        dense_rows = (hidden_states.shape[0] if num_dense_rows is None else num_dense_rows) if return_dense else None
        last_hidden_state, dense_state = self.encoder(hidden_states, rotary=rotary, dense_rows=dense_rows, **kwargs)
        return PixCLIPVisionModelOutput(
            last_hidden_state=last_hidden_state,
            pooler_output=self.post_layernorm(last_hidden_state[:, 0]),
            dense_state=None if dense_state is None else self.post_layernorm(dense_state),
        )


class PixCLIPVisionModelWithProjection(PixCLIPVisionPreTrainedModel):
    """
    PixCLIP's vision tower with its projection to the shared space, as [`CLIPVisionModelWithProjection`].

    Loads from a whole PixCLIP checkpoint as well as from its own.

    Example:
        >>> import torch
        >>> from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModelWithProjection
        >>> config = PixCLIPVisionConfig(
        ...     hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, projection_dim=16
        ... )
        >>> model = PixCLIPVisionModelWithProjection(config)
        >>> model(torch.randn(1, 3, 224, 224), torch.ones(1, 1, 224, 224)).image_embeds.shape
        torch.Size([1, 16])
    """

    _keys_to_ignore_on_load_unexpected = [r"^text_model\.", r"^logit_(scale|bias)", r"^ranking_margin$"]

    def __init__(self, config: PixCLIPVisionConfig):
        super().__init__(config)
        self.vision_model = PixCLIPVisionModel._from_config(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=config.projection_bias)
        self.visual_projection.init_std = initial_stds(config)[0]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_values: torch.Tensor | None = None,
        region_image_index: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixCLIPVisionProjectionOutput:
        """Arguments as in [`PixCLIPVisionModel.forward`]."""
        outputs = self.vision_model(
            pixel_values=pixel_values,
            mask_values=mask_values,
            region_image_index=region_image_index,
            return_dict=True,
            **kwargs,
        )
        return PixCLIPVisionProjectionOutput(
            image_embeds=self.visual_projection(outputs.pooler_output),
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["PixCLIPVisionModel", "PixCLIPVisionModelOutput", "PixCLIPVisionModelWithProjection"]
