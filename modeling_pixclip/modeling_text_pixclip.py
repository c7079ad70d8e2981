# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Text tower of PixCLIP: any Hugging Face text backbone, made bidirectional, pooled and adapted to the shared space."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .configuration_pixclip import PixCLIPTextConfig
from .distributed_features import world_size
from .encoding import encode_texts, evaluating
from .forward_arguments import check_forward_kwargs
from .parent_checkpoints import check_fields, load_backbone
from .position_stretching import find_position_table, resize_position_table
from .saved_class import saved_class
from .text_attention import VARLEN_ATTENTION, NotPackableError, PackedTexts, find_first_position, takes_packed_texts
from .text_backbone_reference import TextBackboneCheckpoints
from .text_backbone_training import TextBackboneTraining, add_lora
from .text_paths import TextPaths, split_long_text_path


logger = logging.get_logger(__name__)


@dataclass
class PixCLIPTextModelOutput(BaseModelOutputWithPooling):
    """
    Output of [`PixCLIPTextModel`] for T texts.

    Args:
        last_hidden_state (`torch.Tensor` of shape `(T, L, backbone width)`, *optional*, absent when `backbone_embeds`
            were given, or texts of both paths for a padded backbone): Final states of the backbone; zero at padding
            where texts were packed.
        pooler_output (`torch.Tensor` of shape `(T, projection_dim)`): Projected embeddings, not normalised.
        backbone_embeds (`torch.Tensor` of shape `(T, backbone width)`, float32): Pooled states before normalisation and
            projection, what a cache of text vectors holds.
        hidden_states (`tuple`, *optional*), attentions (`tuple`, *optional*): As in every Transformers model.
    """

    backbone_embeds: torch.Tensor | None = None


class PixCLIPTextAdapterBlock(nn.Module):
    def __init__(self, config: PixCLIPTextConfig):
        super().__init__()
        self.config = config
        width, inner = config.hidden_size, config.hidden_size * config.adapter_expansion
        self.layer_norm = nn.LayerNorm(width, eps=config.adapter_layer_norm_eps)
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)
        self.fc1.init_std = width**-0.5 * config.initializer_factor
        self.fc2.init_std = (inner * 2 * config.adapter_layers) ** -0.5 * config.initializer_factor

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        return embeds + self.fc2(nn.functional.gelu(self.fc1(self.layer_norm(embeds))))


class PixCLIPTextAdapter(nn.Module):
    """Residual LayerNorm-Linear-GELU-Linear blocks on pooled vectors, then LayerNorm (LLM2CLIP, PixCLIP)."""

    def __init__(self, config: PixCLIPTextConfig):
        super().__init__()
        self.layers = nn.ModuleList([PixCLIPTextAdapterBlock(config) for _ in range(config.adapter_layers)])
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.adapter_layer_norm_eps)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            embeds = layer(embeds)
        return self.layer_norm(embeds)


class PixCLIPTextModel(TextPaths, TextBackboneTraining, TextBackboneCheckpoints, PreTrainedModel):
    """
    PixCLIP's text tower. The backbone may be any decoder or encoder of Transformers.

    Args:
        config ([`PixCLIPTextConfig`]): Its configuration.
        backbone ([`PreTrainedModel`], *optional*): A loaded backbone with the configuration `config.backbone_config`,
            which its own then replaces; without it a new one is made, or none with `config.backbone_embeds_only`.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip import PixCLIPTextConfig, PixCLIPTextModel
        >>> backbone = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> model = PixCLIPTextModel(PixCLIPTextConfig(backbone_config=backbone, projection_dim=16))
        >>> model(input_ids=torch.tensor([[5, 6, 7]])).pooler_output.shape
        torch.Size([1, 16])
    """

    config: PixCLIPTextConfig
    base_model_prefix = "text_model"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A tower saved alone has its code beside it, as the whole model has.
    _auto_class = "AutoModel"
    _keys_to_ignore_on_load_unexpected = [
        r"^vision_model\.",
        r"^visual_projection\.",
        r"^logit_(scale|bias)",
        r"^ranking_margin$",
    ]

    def __init__(self, config: PixCLIPTextConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        if backbone is not None:
            config.backbone_embeds_only = False
        elif not config.backbone_embeds_only:
            dtype = (
                torch.get_default_dtype() if config.backbone_dtype is None else getattr(torch, config.backbone_dtype)
            )
            backbone = AutoModel.from_config(config.backbone_config, dtype=dtype)
            if backbone.device.type != "meta":
                # New weights, not those of a checkpoint that the configuration may be of.
                config.backbone_source, config.backbone_in_checkpoint = None, True
        self.backbone = backbone
        if backbone is not None:
            # Shared, so that later changes of the tower's configuration reach the backbone.
            config.backbone_config = backbone.config
        self._weight_samples: dict[str, torch.Tensor] = {}
        self._first_positions: dict[tuple, int | str] = {}
        self._prefer_varlen_attention()
        self.adapter = PixCLIPTextAdapter(config) if config.projection_type == "adapter" else nn.Identity()
        self.projection = nn.Linear(config.hidden_size, config.projection_dim, bias=config.projection_bias)
        self.projection.init_std = config.hidden_size**-0.5 * config.initializer_factor
        if config.long_text_projection:
            self.long_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=config.projection_bias)
            self.long_projection.init_std = self.projection.init_std
        self.post_init()
        # Last: new weights of a layer would take the place of an adapter's zeros.
        if config.backbone_lora is not None:
            add_lora(self.backbone, config.backbone_lora, self.dtype)
        self.set_backbone_trainable(config.backbone_training)
        self.remember_weights()

    @classmethod
    def from_backbone_pretrained(
        cls,
        text: str,
        *,
        dtype: torch.dtype | None = None,
        backbone_dtype: torch.dtype | str | None = None,
        **config_kwargs,
    ) -> "PixCLIPTextModel":
        """
        Builds a text tower, without a vision tower, on a text backbone. Adapter and projection are new.

        Args:
            text (`str`): Folder or Hub id of a text backbone.
            dtype (`torch.dtype`, *optional*), backbone_dtype (`torch.dtype` or `str`, *optional*): As in
                [`PixCLIPModel.from_vision_text_pretrained`].
            **config_kwargs: Fields of [`PixCLIPTextConfig`].

        Returns:
            [`PixCLIPTextModel`]: In eval mode.

        Raises:
            ValueError: If the backbone does not become bidirectional.
            TypeError: If a keyword is no field of the configuration.

        Example:
            >>> from modeling_pixclip import PixCLIPTextModel
            >>> model = PixCLIPTextModel.from_backbone_pretrained("HuggingFaceTB/SmolLM2-135M-Instruct")  # doctest: +SKIP
            >>> model.encode_backbone(captions, processor).shape  # doctest: +SKIP
            torch.Size([1000000, 576])
        """
        check_fields(
            config_kwargs,
            PixCLIPTextConfig,
            cls.__name__,
            own=("backbone_config", "backbone_dtype", "backbone_source", "backbone_embeds_only"),
        )
        config_kwargs, long_text_path = split_long_text_path(config_kwargs)
        config = PixCLIPTextConfig(backbone_config=AutoConfig.from_pretrained(text), **config_kwargs)
        backbone = load_backbone(text, config, dtype, backbone_dtype)
        model = cls._from_config(config, dtype=dtype or torch.float32, backbone=backbone).eval()
        model.check_bidirectional()
        if long_text_path:
            model.add_long_text_path(**long_text_path)
        return model

    def save_pretrained(self, *args, **kwargs):
        """As [`PixCLIPModel.save_pretrained`]; the code is saved too, so that `AutoModel` loads the folder remotely."""
        with saved_class(self):
            super().save_pretrained(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        """Of the tower's own weights; the backbone has one of its own."""
        return self.projection.weight.dtype

    def get_input_embeddings(self):
        if self.backbone is None:
            # What Transformers expects of a model without any.
            raise NotImplementedError(self._without_backbone("token embeddings are part of one"))
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value):
        self._check_backbone("token embeddings are part of one")
        self.backbone.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in every Transformers model; the backbone's configuration is the one that knows of it."""
        self._check_backbone("token embeddings are part of one")
        embeddings = self.backbone.resize_token_embeddings(*args, **kwargs)
        self.vocab_size = self.config.vocab_size
        self._backbone_changed("its token embeddings were resized")
        return embeddings

    def get_position_embeddings(self) -> nn.Embedding:
        self._check_backbone("a table of positions is part of one")
        parent, name = find_position_table(self.backbone)
        return getattr(parent, name)

    def resize_position_embeddings(self, new_num_position_embeddings: int, keep: int = 20):
        """
        Lets a backbone with a learned table of positions (CLIP text, BERT) take longer texts, see [`stretch_positions`].

        Texts within the first `keep` positions keep their vectors; longer ones need training. Kept in the config; raise
        the processor's `text_max_length` too.

        Args:
            new_num_position_embeddings (`int`): Positions afterwards, e.g. 248 for CLIP's 77.
            keep (`int`, *optional*, defaults to 20): First positions that stay as they are.

        Raises:
            ValueError: If the backbone has no such table (RoPE), it holds that of a long text path too, or a number does
                not fit it.

        Example:
            >>> from transformers import CLIPTextConfig
            >>> from modeling_pixclip import PixCLIPTextConfig, PixCLIPTextModel
            >>> backbone = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
            >>> model = PixCLIPTextModel(PixCLIPTextConfig(backbone_config=backbone, pooling="eos"))
            >>> model.resize_position_embeddings(248)
            >>> model.get_position_embeddings()
            Embedding(248, 32)
        """
        if self.config.long_text_positions is not None:
            raise ValueError(
                "the backbone's table holds the positions of the short and of the long text path. Resize it before "
                "add_long_text_path."
            )
        self._check_backbone("a table of positions is part of one")
        resize_position_table(self.backbone, new_num_position_embeddings, keep)
        self._backbone_changed("its table of positions was resized")
        self._first_positions.clear()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if hasattr(module, "init_std"):
            # Told by the layer and not set through its parent: parents without parameters of their own are skipped.
            init.normal_(module.weight, std=module.init_std)

    @torch.no_grad()
    def check_bidirectional(self):
        """
        Runs a few tokens and checks that a backbone told to be bidirectional is.

        Some types read `is_causal` nowhere, or only where a batch has padding. Backbones whose direction
        `config.bidirectional` does not set (encoders, CLIP's text tower) pass, and so does a tower without one.

        Raises:
            ValueError: If the first token does not see the last one, or padding changes the states.
        """
        text_config = self.config.backbone_text_config
        if self.backbone is None or getattr(text_config, "is_causal", None) is not False:
            return
        refusal = (
            f"a backbone of type {self.config.backbone_config.model_type!r} ({text_config._attn_implementation} "
            "attention) cannot be made bidirectional: {}. Set bidirectional=False in the text config, or take another "
            "backbone."
        )
        kinds = getattr(text_config, "layer_types", None) or getattr(text_config, "layers_block_type", None) or []
        recurrent = {kind for kind in kinds if kind.startswith("linear") or not kind.endswith("attention")}
        if recurrent:
            raise ValueError(refusal.format(f"its layers {sorted(recurrent)} are causal by construction"))
        # From the middle of the vocabulary: special tokens stand at its ends.
        tokens = (torch.arange(7, device=self.backbone.device) + text_config.vocab_size // 2) % text_config.vocab_size
        ids, other = tokens[None, :6], tokens[None, [0, 1, 2, 3, 4, 6]]
        mask = torch.ones_like(ids)
        pad = nn.functional.pad
        try:
            with evaluating(self):
                states, moved, padded = (
                    self._run_backbone(*inputs).last_hidden_state.float()
                    for inputs in ((ids, mask), (other, mask), (pad(ids, (0, 3)), pad(mask, (0, 3))))
                )
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(refusal.format(f"it fails with {type(error).__name__}: {error}")) from error
        if float((moved - states)[0, 0].norm() / states[0, 0].norm()) < 1e-5:
            raise ValueError(refusal.format("its first token does not see the last one"))
        # Padding moves a sound backbone by rounding alone, which adds up in a deep one: a bound of 0.3 in bfloat16.
        if float((padded[:, :6] - states).norm() / states.norm()) > torch.finfo(self.backbone.dtype).eps ** 0.25:
            raise ValueError(refusal.format("a text has other states alone than beside a longer one"))

    def _run_backbone(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **kwargs):
        for name in ("output_attentions", "output_hidden_states"):
            # Set in this tower's configuration, the backbone would not see it in its own.
            if getattr(self.config, name):
                kwargs.setdefault(name, True)
        if getattr(self.config.backbone_text_config, "use_cache", None):
            # Decoders would keep keys and values of every layer for a next token that never comes.
            kwargs.setdefault("use_cache", False)
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)

    def _run_without_texts(self, input_ids: torch.Tensor):
        """Backbones refuse to run on no text, but each process has to run them, and to use each weight (DDP, FSDP)."""
        token = input_ids.new_zeros(1, 1)
        outputs = self._run_backbone(input_ids=token, attention_mask=torch.ones_like(token))
        outputs.last_hidden_state = outputs.last_hidden_state[:0]
        return outputs

    def encode_backbone(
        self,
        texts: Iterable[str],
        processor: Any,
        *,
        batch_tokens: int = 8192,
        long_text: bool = False,
        show_progress_bar: bool = False,
    ) -> torch.Tensor:
        """
        Pooled vectors of the backbone, for many texts, in batches of like lengths.

        Args:
            texts (`Iterable[str]`): T texts.
            processor ([`PixCLIPProcessor`]): Its template and tokenizer make the tokens.
            batch_tokens (`int`, *optional*, defaults to 8192): Most tokens of a batch, padding included.
            long_text (`bool`, *optional*, defaults to `False`): Take the positions of the long text path, where it has
                its own. Texts are cut at the length of the path that they take.
            show_progress_bar (`bool`, *optional*, defaults to `False`): Show a progress bar.

        Returns:
            `torch.Tensor` of shape `(T, backbone width)`, float32, on the CPU, in the order of `texts`: what this model
            takes as `backbone_embeds`.

        Raises:
            ValueError: If a text is empty, `batch_tokens` is not positive, or the tower has no backbone.
        """
        self._check_backbone("texts go through one")

        def run(input_ids, attention_mask, pooling_mask):
            long_text_mask = torch.full_like(input_ids[:, 0], long_text, dtype=torch.bool)
            return self._backbone_embeds(input_ids, attention_mask, pooling_mask, long_text_mask)[0]

        with evaluating(self):
            return encode_texts(
                texts,
                processor,
                run,
                self.backbone.device,
                self.config.hidden_size,
                batch_tokens=batch_tokens,
                max_length=self.text_max_length(processor, long_text),
                show_progress_bar=show_progress_bar,
            )

    @torch.compiler.disable
    def _first_position(self) -> int | None:
        """
        First position of packed texts, or `None` for a backbone that does not take them.

        By configuration and trial alone, also for a batch without texts: how often the backbone runs depends on it, and
        processes that gather its weights for each run (FSDP) need the same number whatever their texts are.
        """
        self._prefer_varlen_attention()
        first_position = self._try_packing()
        if not isinstance(first_position, str):
            return first_position
        self._check_refusal(first_position)
        return None

    def _check_refusal(self, refusal: str):
        if self.config.padding_free is True:
            raise ValueError(
                f"padding_free=True, but texts cannot be packed for the backbone "
                f"({self.config.backbone_config.model_type}): {refusal}. padding_free='auto' in the text config packs "
                "texts where that can be done."
            )

    @torch.compiler.disable
    def _pack(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, first_position: int, full: bool
    ) -> PackedTexts | None:
        """The texts without padding, or `None` if they are to be run as they are."""
        mask = attention_mask.bool()
        if bool((mask[:, 1:] & ~mask[:, :-1]).sum(-1).add(mask[:, 0]).gt(1).any()):
            self._check_refusal("a text has holes in its attention_mask")
            return None
        if bool(mask.all()) and not full:
            return None
        return PackedTexts.from_padded(input_ids, attention_mask, first_position)

    def _prefer_varlen_attention(self):
        if (
            self.backbone is not None
            and self.config.padding_free
            and self.config.backbone_text_config._attn_implementation == "sdpa"
        ):
            # The same as sdpa for a padded batch, and takes packed ones.
            self.backbone.set_attn_implementation(VARLEN_ATTENTION)

    def _try_packing(self) -> int | str:
        """First position of packed texts, or why there are none, by trial once for each attention, device and dtype."""
        implementation = self.config.backbone_text_config._attn_implementation
        if not takes_packed_texts(implementation):
            return (
                f"{implementation!r} attention does not keep them apart; {VARLEN_ATTENTION!r} and flash attention do"
            )
        # Weights that are gathered for each run take all processes: what one of them found out alone before does not count.
        sharded = any(hasattr(parameter, "full_tensor") for parameter in self.backbone.parameters())
        key = (implementation, self.backbone.device.type, self.backbone.dtype, sharded)
        if key not in self._first_positions:
            try:
                self._first_positions[key] = find_first_position(
                    self.backbone, self.config.backbone_text_config, self._run_backbone
                )
            except NotPackableError as error:
                self._first_positions[key] = str(error)
                if self.config.padding_free == "auto":
                    logger.warning(
                        f"Texts run padded: the backbone ({self.config.backbone_config.model_type}, {implementation} "
                        f"attention) does not take packed ones, {error}. padding_free=False in the text config says so."
                    )
        return self._first_positions[key]

    def _backbone_embeds(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pooling_mask: torch.Tensor,
        long_text_mask: torch.Tensor | None,
        **kwargs,
    ):
        """
        Pooled vectors (T, W), the backbone's output, and how its texts are packed, if they are.

        A backbone that packs texts runs once, with holes in a mask and without texts too. One that does not runs once
        without positions for long texts, and with them, in several processes, once a path.
        """
        if self.config.long_text_positions is None:
            long_text_mask = None
        elif long_text_mask is None and world_size() > 1:
            # Another process may have long texts in its batch.
            long_text_mask = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        first_position = self._first_position() if self.config.padding_free else None
        if not len(input_ids) and (first_position is not None or long_text_mask is None):
            outputs = self._run_without_texts(input_ids)
            return outputs.last_hidden_state[:, 0].float(), outputs, None
        packed = None
        if first_position is not None:
            # With two paths also a batch without padding: packed they take one run, padded two.
            packed = self._pack(input_ids, attention_mask, first_position, full=long_text_mask is not None)
        if packed is None and long_text_mask is not None:
            once = first_position is not None
            return *self._run_paths(input_ids, attention_mask, pooling_mask, long_text_mask, once, **kwargs), None
        if long_text_mask is None:
            self._check_length(input_ids.shape[1])
        if packed is None:
            outputs = self._run_backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            return self._pool(outputs.last_hidden_state, input_ids, pooling_mask, None), outputs, None
        for name in ("position_ids", "token_type_ids"):
            if name in kwargs:
                kwargs[name] = packed.pack(kwargs[name])
        inputs = packed.model_inputs(self.config.backbone_text_config._attn_implementation)
        inputs.update(kwargs)
        if long_text_mask is not None:
            inputs["position_ids"] = self._path_positions(packed, inputs["position_ids"], long_text_mask)
        outputs = self._run_backbone(**inputs)
        return self._pool(outputs.last_hidden_state[0], input_ids, pooling_mask, packed), outputs, packed

    def _pool(
        self,
        states: torch.Tensor,
        input_ids: torch.Tensor,
        pooling_mask: torch.Tensor,
        packed: PackedTexts | None,
    ) -> torch.Tensor:
        """Pooled vectors (T, W) in float32 from states (T, L, W), or (N, W) of packed texts."""
        pooling = self.config.pooling
        if pooling == "mean":
            weights = pooling_mask.to(torch.float32)
            counts = weights.sum(1, keepdim=True)
            if packed is None:
                return (states.float() * weights[..., None]).sum(1) / counts
            weighted = states.float() * weights.flatten()[packed.flat_index, None]
            return weighted.new_zeros(len(counts), states.shape[-1]).index_add(0, packed.text_index, weighted) / counts
        positions = torch.arange(pooling_mask.shape[1], device=states.device)
        if pooling == "last":
            index = (positions * pooling_mask).argmax(-1)
        elif pooling == "first":
            index = pooling_mask.int().argmax(-1)
        else:
            index = self._eos_positions(input_ids, pooling_mask.bool())
        texts = torch.arange(index.shape[0], device=states.device)
        if packed is None:
            return states[texts, index].float()
        return states[torch.searchsorted(packed.flat_index, texts * pooling_mask.shape[1] + index)].float()

    def _eos_positions(self, input_ids: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        eos = self.config.end_of_text_id
        if eos == 2 and self.config.backbone_config.model_type == "clip_text_model":
            # OpenAI's CLIP configs carry a wrong id; there end of text is the highest one (transformers #24773).
            return input_ids.masked_fill(~pooled, -1).argmax(-1)
        # Among pooled tokens only: padding is often the same token, and a chat template ends its other turns with it.
        is_eos = (input_ids[..., None] == torch.tensor(eos, device=input_ids.device)).any(-1) & pooled
        if not torch.compiler.is_compiling() and not bool(is_eos.any(-1).all()):
            rows = (~is_eos.any(-1)).nonzero().flatten().tolist()
            raise ValueError(
                f"pooling='eos' found no end-of-text token (id {eos}) in rows {rows} of input_ids among the pooled "
                "tokens. Let the tokenizer add it, or choose another pooling."
            )
        return is_eos.int().argmax(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pooling_mask: torch.Tensor | None = None,
        backbone_embeds: torch.Tensor | None = None,
        long_text_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixCLIPTextModelOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(T, L)`, *optional*): Token ids.
            attention_mask (`torch.Tensor` of shape `(T, L)`, *optional*): 1 for tokens, 0 for padding on either side.
            pooling_mask (`torch.Tensor` of shape `(T, L)`, *optional*): 1 for the tokens to pool, of those of
                `attention_mask`; defaults to all of them.
            backbone_embeds (`torch.Tensor` of shape `(T, backbone width)`, *optional*): Pooled vectors of an earlier
                run, in place of the tokens.
            long_text_mask (`torch.BoolTensor` of shape `(T,)`, *optional*): Which texts take the long path, see
                [`PixCLIPTextModel.add_long_text_path`]; none by default. Of vectors it chooses the projection. A tower
                without a long path treats all texts alike.

        Raises:
            ValueError: If not exactly one of `input_ids` and `backbone_embeds` is given, there are `input_ids` and no
                backbone, a text is longer than the backbone or its path takes, a row pools nothing, vectors have another
                width than the backbone, or `long_text_mask` has another number of texts or is not boolean.
            TypeError: If there is an unknown keyword.
        """
        check_forward_kwargs(kwargs)
        if (input_ids is None) == (backbone_embeds is None):
            raise ValueError("Pass exactly one of input_ids and backbone_embeds.")
        self._check_long_text_mask(
            long_text_mask, (input_ids if backbone_embeds is None else backbone_embeds).shape[0]
        )
        outputs = None
        if backbone_embeds is None:
            self._check_backbone("input_ids go through one")
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            # Tokens of padding are never pooled.
            pooling_mask = attention_mask if pooling_mask is None else pooling_mask * attention_mask
            if not torch.compiler.is_compiling() and not bool((pooling_mask.sum(-1) > 0).all()):
                rows = (pooling_mask.sum(-1) <= 0).nonzero().flatten().tolist()
                raise ValueError(f"pooling_mask selects no token in rows {rows}; each text needs at least one.")
            trains = any(parameter.requires_grad for parameter in self.backbone.parameters())
            with nullcontext() if trains else torch.no_grad():
                backbone_embeds, outputs, packed = self._backbone_embeds(
                    input_ids, attention_mask, pooling_mask, long_text_mask, **kwargs
                )
                if packed is not None:
                    outputs.last_hidden_state = packed.unpack(outputs.last_hidden_state)
                    if getattr(outputs, "hidden_states", None) is not None:
                        # Those that were not asked for are None.
                        outputs.hidden_states = tuple(
                            None if states is None else packed.unpack(states) for states in outputs.hidden_states
                        )
        elif backbone_embeds.shape[-1] != self.config.hidden_size:
            raise ValueError(
                f"backbone_embeds are {backbone_embeds.shape[-1]} wide, the backbone of this model is "
                f"{self.config.hidden_size} wide. Recompute them with this model's backbone."
            )
        embeds = backbone_embeds.to(self.projection.weight.dtype)
        if self.config.normalize_pooled:
            embeds = nn.functional.normalize(embeds, dim=-1)
        return PixCLIPTextModelOutput(
            last_hidden_state=getattr(outputs, "last_hidden_state", None),
            pooler_output=self._project(embeds, long_text_mask),
            backbone_embeds=backbone_embeds,
            # Recurrent backbones have no attentions.
            hidden_states=getattr(outputs, "hidden_states", None),
            attentions=getattr(outputs, "attentions", None) or None,
        )


__all__ = ["PixCLIPTextModel", "PixCLIPTextModelOutput"]
