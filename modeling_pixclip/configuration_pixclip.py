# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Configurations of PixCLIP: vision tower, text tower, objective."""

import copy
import math
from typing import ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)


OBJECTIVE_TERMS = (
    "global",
    "crop",
    "local",
    "caption_long",
    "caption_short",
    "region",
    "hard_negative",
    "text_intra",
    "ranking_margin",
)
LORA_DEFAULTS = {"rank": 16, "alpha": 32, "dropout": 0.05, "target_modules": None}


def _is_decoder(model_type: str) -> bool:
    """Whether a text model of this type is a causal language model, alone or as a part (`qwen2_5_vl_text`)."""
    # CLIP's text tower and BERT's kin read `is_causal` in one of mask and attention only: there it breaks them.
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    part_of = model_type.removesuffix("_text")
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or part_of in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


@strict
class PixCLIPVisionConfig(PreTrainedConfig):
    r"""
    Configuration of [`PixCLIPVisionModel`], one pre-norm ViT that covers OpenAI CLIP and EVA02 and also takes a mask.

    The defaults are OpenAI CLIP ViT-B/16. An EVA02-CLIP-B/16 tower (the released PixCLIP) is
    `mlp_type="swiglu", intermediate_size=2048, hidden_act="silu", use_rope=True, sub_layer_norm=True,
    pre_layer_norm=False, key_bias=False, patch_bias=True, mask_patch_bias=True, projection_bias=True,
    layer_norm_eps=1e-6, projection_dim=1280`.

    Args:
        hidden_size (`int`, *optional*, defaults to 768): Width of the tower.
        intermediate_size (`int`, *optional*, defaults to 3072): Hidden width of the MLP.
        num_hidden_layers (`int`, *optional*, defaults to 12): Number of blocks.
        num_attention_heads (`int`, *optional*, defaults to 12): Attention heads of a block.
        num_channels (`int`, *optional*, defaults to 3): Image channels. The mask always has one.
        image_size (`int` or pair, *optional*, defaults to 224): Height and width, in pixels, that the position table
            was made for. Other sizes are interpolated at run time.
        patch_size (`int`, *optional*, defaults to 16): Side of a patch in pixels.
        projection_dim (`int`, *optional*, defaults to 512): Width of the shared embedding space.
        hidden_act (`str`, *optional*, defaults to `"quick_gelu"`): Activation of the MLP (of its gate for SwiGLU).
        mlp_type (`"mlp"` or `"swiglu"`, *optional*, defaults to `"mlp"`): CLIP's two-layer MLP or EVA02's gated one.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of every LayerNorm.
        attention_dropout (`float`, *optional*, defaults to 0.0): Dropout of the attention weights.
        pre_layer_norm (`bool`, *optional*, defaults to `True`): LayerNorm before the first block (CLIP).
        sub_layer_norm (`bool`, *optional*, defaults to `False`): LayerNorms before the attention output projection and
            before the last MLP projection (EVA02).
        key_bias (`bool`, *optional*, defaults to `True`): Bias of the key projection (EVA02 has none).
        patch_bias (`bool`, *optional*, defaults to `False`): Bias of the RGB patch convolution.
        mask_patch_bias (`bool`, *optional*, defaults to `False`): Bias of the mask patch convolution.
        projection_bias (`bool`, *optional*, defaults to `False`): Bias of the projection to the shared space.
        use_rope (`bool`, *optional*, defaults to `False`): 2-D rotary positions on the patch tokens (EVA02), beside the
            learned absolute ones.
        rope_theta (`float`, *optional*, defaults to 10000.0): Base of the rotary frequencies.
        rope_grid_size (`int`, *optional*, defaults to 16): Grid that rotary positions are scaled to, whatever the real
            grid is (EVA02's `pt_hw_seq_len`).
        default_mask (`"full"` or `"none"`, *optional*, defaults to `"full"`): What stands in when no mask is given: a
            mask of ones, or no mask tokens at all.
        mask_mean (`float`, *optional*, defaults to 0.5), mask_std (`float`, *optional*, defaults to 0.26): Normalisation
            of the masks that the tower receives, as in the processor (Alpha-CLIP, PixCLIP).
        dense_features (`"value"` or `"plain"`, *optional*, defaults to `"value"`): How the dense map is made: last block
            with attention replaced by its value path (CLIPSelf, FG-CLIP), or the ordinary final patch tokens.
        stem_config (`dict` or [`PreTrainedConfig`], *optional*): A convolutional network of Transformers (EfficientNet,
            ResNet, ...) whose last feature map is cut into patches in place of pixels: the hybrid of "An Image is Worth
            16x16 Words" (section 3.1). It does not train, and its batch norms keep their statistics, so a new tower needs
            weights in `embeddings.stem.network` (`load_state_dict`). Any type with pixels and a feature map will do: those
            that [`AutoBackbone`] knows leave EfficientNet out. Defaults to none.
        stem_stride (`int`, *optional*, defaults to 32): Pixels of a cell of that map; divides `patch_size`.
        stem_channels (`int`, *optional*, defaults to 1280): Channels of that map.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of embeddings at initialisation.
        initializer_factor (`float`, *optional*, defaults to 1.0): Scale of all initial weights.

    Example:
        >>> from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModel
        >>> config = PixCLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
        >>> model = PixCLIPVisionModel(config)
    """

    model_type = "pixclip_vision_model"
    base_config_key = "vision_config"
    # The code of a tower saved alone is named in its configuration.
    _auto_class = "AutoConfig"

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    projection_dim: int = 512
    hidden_act: str = "quick_gelu"
    mlp_type: Literal["mlp", "swiglu"] = "mlp"
    layer_norm_eps: float = 1e-5
    attention_dropout: int | float = 0.0
    pre_layer_norm: bool = True
    sub_layer_norm: bool = False
    key_bias: bool = True
    patch_bias: bool = False
    mask_patch_bias: bool = False
    projection_bias: bool = False
    use_rope: bool = False
    rope_theta: int | float = 10000.0
    rope_grid_size: int = 16
    default_mask: Literal["full", "none"] = "full"
    mask_mean: int | float = 0.5
    mask_std: int | float = 0.26
    dense_features: Literal["value", "plain"] = "value"
    stem_config: dict | PreTrainedConfig | None = None
    stem_stride: int = 32
    stem_channels: int = 1280
    initializer_range: float = 0.02
    initializer_factor: int | float = 1.0

    def __post_init__(self, **kwargs):
        if isinstance(self.stem_config, dict):
            model_type = self.stem_config.get("model_type")
            if model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"stem_config has model_type {model_type!r}; accepted is that of a convolutional network of Transformers: "
                    "'efficientnet', 'resnet', 'mobilenet_v2', 'convnext', ..."
                )
            self.stem_config = AutoConfig.for_model(**self.stem_config)
        if self.stem_config is not None:
            self.stem_config = copy.deepcopy(self.stem_config)
            # Where the network lay here is nothing to publish with the tower.
            self.stem_config._name_or_path = ""
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches at `image_size`."""
        height, width = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        return height // self.patch_size, width // self.patch_size

    def validate_architecture(self):
        """Part of `@strict`: checks that fields fit each other."""
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        if self.use_rope and (self.hidden_size // self.num_attention_heads) % 4:
            raise ValueError(
                f"use_rope=True needs heads of a width divisible by 4 (2 axes x rotated pairs), got hidden_size "
                f"({self.hidden_size}) / num_attention_heads ({self.num_attention_heads}) = "
                f"{self.hidden_size // self.num_attention_heads}."
            )
        sides = (self.image_size,) * 2 if isinstance(self.image_size, int) else self.image_size
        if len(sides) != 2 or any(side <= 0 or side % self.patch_size for side in sides):
            raise ValueError(
                f"image_size ({self.image_size}) must be one side or (height, width), each a positive multiple of "
                f"patch_size ({self.patch_size})."
            )
        if self.stem_config is not None and (self.stem_stride < 1 or self.patch_size % self.stem_stride):
            raise ValueError(
                f"patch_size ({self.patch_size}) must be a multiple of stem_stride ({self.stem_stride}), the pixels of a "
                "cell of the stem's feature map."
            )
        if self.stem_config is not None and self.stem_channels < 1:
            raise ValueError(f"stem_channels ({self.stem_channels}) must be at least 1.")
        channels = getattr(self.stem_config, "num_channels", self.num_channels)
        if channels != self.num_channels:
            raise ValueError(
                f"num_channels ({self.num_channels}) must equal that of stem_config ({channels}), which takes the pixels."
            )
        if self.mask_std <= 0:
            raise ValueError(f"mask_std must be positive, got {self.mask_std}.")


@strict
class PixCLIPTextConfig(PreTrainedConfig):
    r"""
    Configuration of [`PixCLIPTextModel`]: any Hugging Face text backbone, pooled and mapped to the shared space.

    Args:
        backbone_config (`dict` or [`PreTrainedConfig`], *optional*): Configuration of the backbone (Llama, Qwen, Gemma,
            Mistral, SmolLM, BERT-like, CLIP text), copied. Of a vision-language model the text part is used. Defaults
            to a Llama of SmolLM2-135M's shape.
        bidirectional (`bool`, *optional*, defaults to `True`): Let every token attend to every other one. It is written
            to `is_causal` of the backbone's text configuration, so a checkpoint describes itself. Only backbones that
            are causal language models are concerned: encoders already are bidirectional, CLIP's text tower stays
            causal. Not every type obeys; [`PixCLIPTextModel.check_bidirectional`] tells.
        pooling (`"mean"`, `"last"`, `"first"` or `"eos"`, *optional*, defaults to `"mean"`): Mean over `pooling_mask`,
            its last or first position, or its first end-of-text token.
        normalize_pooled (`bool`, *optional*, defaults to `True`): L2-normalise the pooled vector before the projection.
        projection_type (`"adapter"` or `"linear"`, *optional*, defaults to `"adapter"`): The paper's adapter (residual
            LayerNorm-Linear-GELU-Linear blocks, LayerNorm, Linear), or one linear layer.
        adapter_layers (`int`, *optional*, defaults to 4): Residual blocks of the adapter.
        adapter_expansion (`int`, *optional*, defaults to 2): Hidden width of an adapter block over its width.
        adapter_layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the adapter's LayerNorms.
        projection_bias (`bool`, *optional*, defaults to `True`): Bias of the last linear layer.
        projection_dim (`int`, *optional*, defaults to 512): Width of the shared embedding space.
        backbone_training (`"frozen"`, `"lora"` or `"full"`, *optional*, defaults to `"frozen"`): How the backbone trains,
            see [`PixCLIPTextModel.set_backbone_trainable`], which sets it.
        backbone_lora (`dict`, *optional*): Shape of the LoRA adapters that the backbone carries: `rank`, `alpha`,
            `dropout` and `target_modules` (`None`: all linear layers of attention and MLP). Those left out take the
            defaults of [`PixCLIPTextModel.set_backbone_trainable`]. Defaults to no adapters, or with
            `backbone_training="lora"` to all of its defaults.
        backbone_dtype (`str`, *optional*): Dtype of the backbone's weights, e.g. `"bfloat16"`, if it is not that of the
            others. Written by `save_pretrained`.
        backbone_source (`dict`, *optional*): Where the backbone was loaded from, by
            [`PixCLIPModel.from_vision_text_pretrained`]: `repo_id` and `revision`, or `folder` (in a checkpoint relative
            to it); `config_sha256`, the hash of its configuration; `changed`, what was done to its weights, if anything.
        backbone_in_checkpoint (`bool`, *optional*, defaults to `True`): Whether checkpoints hold the backbone's weights
            (`save_pretrained`, the Trainer's). `False` leaves them out, and `from_pretrained` takes them from
            `backbone_source`.
        backbone_embeds_only (`bool`, *optional*, defaults to `False`): Make no backbone: the tower takes pooled vectors
            (`backbone_embeds`) that an LLM made elsewhere, as the official PixCLIP and LLM2CLIP files do, which hold the
            adapter and not the LLM. `backbone_config` then tells the LLM's width. `from_pretrained` with `text_backbone`
            gives the tower a backbone.
        padding_free (`"auto"`, `True` or `False`, *optional*, defaults to `"auto"`): Run the texts of a padded batch end
            to end, without the padding. `"auto"` does so where the backbone and its attention can (PixCLIP's own
            `pixclip_varlen`, which takes the place of `sdpa`, and flash attention); `True` refuses others.
        long_text_projection (`bool`, *optional*, defaults to `False`): A second projection, after the same adapter, for
            the texts that `long_text_mask` marks (FG-CLIP). [`PixCLIPTextModel.add_long_text_path`] sets it.
        long_text_positions (`int`, *optional*): Rows of the backbone's learned table of positions, its last ones, that
            such texts count from. The first `max_position_embeddings - long_text_positions` rows are those of other
            texts: FG-CLIP has 248 of 77 + 248 = 325.
        initializer_factor (`float`, *optional*, defaults to 1.0): Scale of the projection's initial weights.

    Example:
        >>> from transformers import Qwen3Config
        >>> from modeling_pixclip import PixCLIPTextConfig
        >>> config = PixCLIPTextConfig(backbone_config=Qwen3Config(hidden_size=64, num_hidden_layers=2), projection_dim=32)
        >>> config.hidden_size, config.backbone_config.is_causal
        (64, False)
    """

    model_type = "pixclip_text_model"
    base_config_key = "text_config"
    # The code of a tower saved alone is named in its configuration.
    _auto_class = "AutoConfig"
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="llama",
            init_kwargs={
                "vocab_size": 49152,
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "max_position_embeddings": 8192,
            },
        )
    }

    backbone_config: dict | PreTrainedConfig | None = None
    bidirectional: bool = True
    pooling: Literal["mean", "last", "first", "eos"] = "mean"
    normalize_pooled: bool = True
    projection_type: Literal["adapter", "linear"] = "adapter"
    adapter_layers: int = 4
    adapter_expansion: int = 2
    adapter_layer_norm_eps: float = 1e-5
    projection_bias: bool = True
    projection_dim: int = 512
    backbone_training: Literal["frozen", "lora", "full"] = "frozen"
    backbone_lora: dict | None = None
    backbone_dtype: Literal["float32", "float16", "bfloat16"] | None = None
    backbone_source: dict | None = None
    backbone_in_checkpoint: bool = True
    backbone_embeds_only: bool = False
    padding_free: bool | Literal["auto"] = "auto"
    long_text_projection: bool = False
    long_text_positions: int | None = None
    initializer_factor: int | float = 1.0

    def __post_init__(self, **kwargs):
        if isinstance(self.backbone_config, PreTrainedConfig):
            self.backbone_config = copy.deepcopy(self.backbone_config)
        if self.backbone_lora is not None or self.backbone_training == "lora":
            self.backbone_lora = {**LORA_DEFAULTS, **(self.backbone_lora or {})}
        super().__post_init__(**kwargs)
        # An encoder-decoder has two text configurations; validation refuses it.
        if not self.backbone_config.is_encoder_decoder and _is_decoder(self.backbone_text_config.model_type):
            self.backbone_text_config.is_causal = not self.bidirectional

    @property
    def backbone_text_config(self) -> PreTrainedConfig:
        """The backbone's configuration, or its text part."""
        return self.backbone_config.get_text_config()

    @property
    def hidden_size(self) -> int:
        """Width of the backbone, of its pooled vectors and of the adapter."""
        return self.backbone_text_config.hidden_size

    @property
    def vocab_size(self) -> int:
        """Tokens of the backbone, where code for every text model looks for them."""
        return self.backbone_text_config.vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int):
        self.backbone_text_config.vocab_size = value

    def max_text_positions(self, long_text: bool) -> int | None:
        """Most tokens of a text on the long or the short path; `None` if the backbone names no limit."""
        rows = getattr(self.backbone_text_config, "max_position_embeddings", None)
        if self.long_text_positions is None:
            return rows
        return self.long_text_positions if long_text else rows - self.long_text_positions

    @staticmethod
    def check_lora(lora: dict):
        """Refuses adapters that cannot be made; `lora` as in `backbone_lora`, with all of its entries."""
        unknown = sorted(lora.keys() - LORA_DEFAULTS.keys())
        if unknown:
            raise ValueError(f"backbone_lora has unknown entries {unknown}; accepted are {list(LORA_DEFAULTS)}.")
        rank, alpha, dropout, target_modules = (lora[name] for name in LORA_DEFAULTS)
        if not isinstance(rank, int) or rank < 1 or not alpha > 0 or not 0 <= dropout < 1:
            raise ValueError(
                f"LoRA needs a whole rank >= 1, alpha > 0 and 0 <= dropout < 1, got rank {rank!r}, alpha {alpha!r}, "
                f"dropout {dropout!r}."
            )
        named = isinstance(target_modules, (list, tuple)) and all(isinstance(name, str) for name in target_modules)
        if target_modules is not None and not (named and target_modules):
            raise ValueError(
                f"target_modules must be a list of names of linear layers or None, got {target_modules!r}."
            )

    @property
    def end_of_text_id(self) -> int | list[int] | None:
        """The backbone's end-of-text token, or several."""
        own = getattr(self.backbone_config, "eos_token_id", None)
        return getattr(self.backbone_text_config, "eos_token_id", None) if own is None else own

    def validate_architecture(self):
        """Part of `@strict`: checks that fields fit each other."""
        model_type = self.backbone_config.model_type
        if self.backbone_config.is_encoder_decoder or (
            # With is_encoder_decoder=False such types build the same two stacks.
            model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
            and self.backbone_text_config is self.backbone_config
        ):
            raise ValueError(
                f"backbone_config of type {model_type!r} is an encoder-decoder. Accepted: a decoder (Llama, Qwen, Gemma, "
                "...) or an encoder (BERT, ModernBERT, CLIP text, ...)."
            )
        text_type = self.backbone_text_config.model_type
        if self.backbone_text_config is not self.backbone_config and not _is_decoder(text_type):
            raise ValueError(
                f"backbone_config of type {model_type!r} does not run on text alone. Pass its text part, of type "
                f"{text_type!r}, as backbone_config."
            )
        if self.backbone_lora is not None:
            self.check_lora(self.backbone_lora)
            if self.backbone_training == "full":
                raise ValueError(
                    "backbone_training='full' goes without backbone_lora: adapters are merged before all weights train. "
                    "Set backbone_lora=None, or backbone_training='lora'."
                )
        if self.backbone_embeds_only:
            needs_backbone = {
                "backbone_training": self.backbone_training != "frozen",
                "backbone_lora": self.backbone_lora is not None,
                "long_text_positions": self.long_text_positions is not None,
            }
            present = {name: getattr(self, name) for name, needed in needs_backbone.items() if needed}
            if present:
                raise ValueError(
                    f"backbone_embeds_only=True makes no backbone, which {present} are about. Leave these fields out, or set "
                    "backbone_embeds_only=False."
                )
        if self.pooling == "eos" and self.end_of_text_id is None:
            raise ValueError(
                f"pooling='eos' needs a backbone_config with an eos_token_id; that of type {model_type!r} has none. Set "
                "it, or choose another pooling."
            )
        if self.long_text_positions is not None:
            if not self.long_text_projection:
                raise ValueError(
                    f"long_text_positions ({self.long_text_positions}) are those of the long text path, which needs "
                    "long_text_projection=True."
                )
            rows = getattr(self.backbone_text_config, "max_position_embeddings", None) or 0
            if not 0 < self.long_text_positions < rows:
                raise ValueError(
                    f"long_text_positions is {self.long_text_positions}, but the backbone_config of type {model_type!r} has "
                    f"{rows} positions (max_position_embeddings) for both paths together. Set max_position_embeddings to "
                    "the sum of both, or leave long_text_positions out and call add_long_text_path(positions=...) on the "
                    "text model, which makes the table."
                )
        if self.projection_type == "adapter" and (self.adapter_layers < 0 or self.adapter_expansion < 1):
            raise ValueError(
                f"adapter_layers ({self.adapter_layers}) must be >= 0 and adapter_expansion ({self.adapter_expansion}) "
                ">= 1."
            )


@strict
class PixCLIPConfig(PreTrainedConfig):
    r"""
    Configuration of [`PixCLIPModel`] and [`PixCLIPForPreTraining`]: two towers and the objective.

    The objective is a weighted sum of terms: PixCLIP's three branches (arXiv 2511.04601), which the defaults are, and
    those of FG-CLIP (arXiv 2505.05071) and FG-CLIP 2 (arXiv 2510.10921). [`get_objective_preset`] has the papers'
    settings. What PixCLIP's paper does not state publicly (pooling, teacher, stop-gradient, weights) is a field here,
    and its default is ours.

    Args:
        vision_config (`dict` or [`PixCLIPVisionConfig`], *optional*): The vision tower.
        text_config (`dict` or [`PixCLIPTextConfig`], *optional*): The text tower.
        projection_dim (`int`, *optional*, defaults to 512): Width of the shared space. Must equal that of both towers;
            a tower given as a `dict` without it takes this one.
        logit_scale_init_value (`float`, *optional*, defaults to 2.6592): Initial log of the inverse temperature.
        logit_scale_max (`float`, *optional*, defaults to 100.0): Upper bound of the inverse temperature.
        logit_bias_init_value (`float`, *optional*, defaults to -10.0): Initial bias of the sigmoid loss (SigLIP).
        loss_type (`"infonce"` or `"sigmoid"`, *optional*, defaults to `"infonce"`): Contrastive loss of the terms
            `global`, `crop`, `local` against texts, `caption_long`, `caption_short` and `region`; SigLIP's sigmoid loss
            is FG-CLIP 2's.
        multi_positive (`bool`, *optional*, defaults to `True`): Count pairs with equal texts as positives of each other.
            `False` is the papers' plain form, where the same text twice is a negative of itself.
        gather (`"all_gather"`, `"ring"` or `"local"`, *optional*, defaults to `"all_gather"`): How contrastive losses
            see the pairs of all processes: gathered, passed round in a ring (less memory), or not at all (FG-CLIP's
            region terms).
        global_weight (`float`, *optional*, defaults to 1.0): Weight of `global`, InfoNCE between the masked image's
            embedding and the region's text.
        crop_weight (`float`, *optional*, defaults to 1.0): Weight of `crop`, InfoNCE between the embedding of the
            region's context crop and the object-level text.
        local_weight (`float`, *optional*, defaults to 1.0): Weight of `local`, which aligns the dense features pooled
            over the region with `local_target`.
        crop_text (`"object"` or `"region"`, *optional*, defaults to `"object"`): Text of the `crop` branch; a region
            without an object-level text uses its region text.
        local_pooling (`"mask"` or `"roi"`, *optional*, defaults to `"mask"`): Pool under the mask or by RoIAlign of its
            box.
        local_target (`"crop"` or `"text"`, *optional*, defaults to `"crop"`): Teacher of `local`: the crop's embedding
            by 1 - cosine (CLIPSelf), or the region's text by InfoNCE.
        local_stop_gradient (`bool`, *optional*, defaults to `True`): Keep `local` from training the crop's embedding.
        caption_long_weight (`float`, *optional*, defaults to 0.0), caption_short_weight (`float`, *optional*, defaults
            to 0.0): Weights of `caption_long` and `caption_short`, the contrast between whole images and their long and
            short captions (FG-CLIP).
        region_weight (`float`, *optional*, defaults to 0.0): Weight of `region`, the contrast between features pooled
            from the whole image's dense map and the region's text (FG-CLIP).
        region_pooling (`"roi"` or `"mask"`, *optional*, defaults to `"roi"`): Pool `region` by RoIAlign of the box
            (FG-CLIP) or under the mask.
        hard_negative_weight (`float`, *optional*, defaults to 0.0): Weight of `hard_negative`, cross-entropy of a region
            over its text and its hard negatives (FG-CLIP).
        hard_negative_features (`"region"` or `"global"`, *optional*, defaults to `"region"`): The region's embedding in
            `hard_negative` and `ranking_margin`: that of `region` (FG-CLIP), or that of `global`.
        hard_negative_text (`"object"` or `"region"`, *optional*, defaults to `"object"`): The text that the hard
            negatives are rewrites of; a region without an object-level text uses its region text.
        text_intra_weight (`float`, *optional*, defaults to 0.0): Weight of `text_intra`, which pushes near region texts
            apart (FG-CLIP 2's TIC, there 0.1).
        ranking_margin_weight (`float`, *optional*, defaults to 0.0): Weight of `ranking_margin`, a hinge between a
            region's text and its hard negatives with a margin that follows training (FG-CLIP 2's CMR, there 0.4).

    Example:
        >>> from modeling_pixclip import PixCLIPConfig
        >>> config = PixCLIPConfig(projection_dim=256, vision_config={"patch_size": 32}, local_weight=0.5)
        >>> config.vision_config.projection_dim, config.text_config.projection_dim
        (256, 256)
    """

    model_type = "pixclip"
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "logits_per_image",
        "logits_per_text",
        "loss_terms",
        "skipped",
        "text_model_output",
        "vision_model_output",
    ]
    sub_configs_defaults = {"vision_config": PixCLIPVisionConfig, "text_config": PixCLIPTextConfig}

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 512
    logit_scale_init_value: int | float = 2.6592
    logit_scale_max: int | float = 100.0
    logit_bias_init_value: int | float = -10.0
    loss_type: Literal["infonce", "sigmoid"] = "infonce"
    multi_positive: bool = True
    gather: Literal["all_gather", "ring", "local"] = "all_gather"
    global_weight: int | float = 1.0
    crop_weight: int | float = 1.0
    local_weight: int | float = 1.0
    crop_text: Literal["object", "region"] = "object"
    local_pooling: Literal["mask", "roi"] = "mask"
    local_target: Literal["crop", "text"] = "crop"
    local_stop_gradient: bool = True
    caption_long_weight: int | float = 0.0
    caption_short_weight: int | float = 0.0
    region_weight: int | float = 0.0
    region_pooling: Literal["roi", "mask"] = "roi"
    hard_negative_weight: int | float = 0.0
    hard_negative_features: Literal["region", "global"] = "region"
    hard_negative_text: Literal["object", "region"] = "object"
    text_intra_weight: int | float = 0.0
    ranking_margin_weight: int | float = 0.0

    def __post_init__(self, **kwargs):
        if not type(self).__module__.startswith("transformers_modules."):
            # Where the package is installed its pipelines are registered, and win over the code in the folder.
            given = (kwargs.pop("custom_pipelines", None) or {}).items()
            if own := {task: entry for task, entry in given if "pipeline_pixclip." not in str(entry.get("impl"))}:
                kwargs["custom_pipelines"] = own
        for name, own_class in self.sub_configs_defaults.items():
            sub_config = getattr(self, name)
            given = getattr(sub_config, "model_type", None)
            if isinstance(sub_config, dict):
                given = sub_config.get("model_type")
            if given not in (None, own_class.model_type):
                raise ValueError(
                    f"{name} is of model type {given!r}; accepted is {own_class.model_type!r}. A text backbone goes one "
                    "level deeper: text_config={'backbone_config': ...}."
                )
            if sub_config is None or isinstance(sub_config, dict):
                setattr(self, name, {"projection_dim": self.projection_dim, **(sub_config or {})})
        super().__post_init__(**kwargs)

    @property
    def term_weights(self) -> dict[str, float]:
        """Weight of each term of the objective, those of weight 0 left out."""
        weights = {name: getattr(self, f"{name}_weight") for name in OBJECTIVE_TERMS}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def batch_parts(self) -> dict[str, bool]:
        """What the objective reads of a batch beside images, masks and region texts: options of `PixCLIPDataCollator`."""
        terms = self.term_weights
        return {
            "crops": "crop" in terms or ("local" in terms and self.local_target == "crop"),
            "captions": "caption_long" in terms or "caption_short" in terms,
            "hard_negatives": "hard_negative" in terms or "ranking_margin" in terms,
        }

    def validate_architecture(self):
        """Part of `@strict`: checks that fields fit each other."""
        for name in self.sub_configs_defaults:
            if getattr(self, name).projection_dim != self.projection_dim:
                raise ValueError(
                    f"{name}.projection_dim ({getattr(self, name).projection_dim}) must equal projection_dim "
                    f"({self.projection_dim}): both towers map to one space. Set one of them to the other's value."
                )
        if self.logit_scale_max <= 0 or self.logit_scale_init_value > math.log(self.logit_scale_max):
            raise ValueError(
                f"logit_scale_init_value ({self.logit_scale_init_value}) must not exceed the logarithm of "
                f"logit_scale_max ({self.logit_scale_max}), which must be positive."
            )
        for name in OBJECTIVE_TERMS:
            weight = getattr(self, f"{name}_weight")
            if not math.isfinite(weight) or weight < 0:
                raise ValueError(f"{name}_weight must be finite and >= 0, got {weight}.")


__all__ = ["PixCLIPConfig", "PixCLIPTextConfig", "PixCLIPVisionConfig"]
