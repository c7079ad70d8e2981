# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""PixCLIP (arXiv 2511.04601): image and mask on one side, long text through an LLM on the other, one embedding space."""

import math
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_pixclip import PixCLIPConfig, PixCLIPTextConfig, PixCLIPVisionConfig
from .distributed_features import process_rank
from .encoding import EncodingMixin
from .losses import InverseTemperature, contrastive_loss, pair_index, similarity_logits
from .modeling_text_pixclip import PixCLIPTextModel, PixCLIPTextModelOutput
from .modeling_vision_pixclip import PixCLIPVisionModel, PixCLIPVisionModelOutput, initial_stds
from .outputs_pixclip import PixCLIPOutput
from .parent_checkpoints import check_fields, fill_vision_tower, load_backbone, load_vision_parent
from .pipeline_pixclip import CUSTOM_PIPELINES
from .pretraining_objective import PretrainingObjective
from .region_pooling import mask_pool, roi_align, soft_masks
from .saved_class import saved_class
from .text_backbone_reference import TextBackboneCheckpoints
from .text_paths import split_long_text_path


class PixCLIPPreTrainedModel(TextBackboneCheckpoints, PreTrainedModel):
    """
    Base of [`PixCLIPModel`] and [`PixCLIPForPreTraining`]: initial weights, and saving with the code beside the weights.

    Example:
        >>> from modeling_pixclip import PixCLIPForPreTraining, PixCLIPPreTrainedModel
        >>> issubclass(PixCLIPForPreTraining, PixCLIPPreTrainedModel)
        True
    """

    config: PixCLIPConfig
    base_model_prefix = "pixclip"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss is a mean over pairs of one batch; the Trainer must not rescale it by a token count.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, PixCLIPModel):
            init.constant_(module.logit_scale, module.config.logit_scale_init_value)
            if isinstance(module, PretrainingObjective):
                module.init_objective_parameters()
        elif hasattr(module, "init_std"):
            init.normal_(module.weight, std=module.init_std)

    def save_pretrained(self, save_directory, *args, **kwargs):
        own_pipelines = self.config.__dict__.get("custom_pipelines")
        if self.is_remote_code():
            # A class registers for one Auto class only; without these the others cannot load the folder remotely.
            self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **REMOTE_CODE_MODELS}
            self.config.custom_pipelines = {**(own_pipelines or {}), **deepcopy(CUSTOM_PIPELINES)}
        for tower_config in (self.config.vision_config, self.config.text_config):
            # Of a tower that was saved alone, or loaded from its own folder.
            tower_config.__dict__.pop("auto_map", None)
        try:
            with saved_class(self):
                super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            # Only the folder carries ours: see PixCLIPConfig.__post_init__.
            self.config.__dict__.pop("custom_pipelines", None)
            if own_pipelines is not None:
                self.config.custom_pipelines = own_pipelines


class PixCLIPModel(EncodingMixin, PixCLIPPreTrainedModel):
    """
    PixCLIP: embeds image regions, given as masks, and long texts into one space.

    Args:
        config ([`PixCLIPConfig`]): Its configuration.
        backbone ([`PreTrainedModel`], *optional*): A loaded text backbone, as in [`PixCLIPTextModel`].

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPModel
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPModel(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> outputs = model(
        ...     pixel_values=torch.randn(1, 3, 224, 224),
        ...     mask_values=torch.randn(2, 1, 224, 224),
        ...     region_image_index=torch.tensor([0, 0]),
        ...     input_ids=torch.tensor([[5, 6, 7]]),
        ... )
        >>> outputs.logits_per_image.shape
        torch.Size([2, 1])
    """

    def __init__(self, config: PixCLIPConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        vision_config = config.vision_config
        self.vision_model = PixCLIPVisionModel._from_config(vision_config)
        self.text_model = PixCLIPTextModel._from_config(config.text_config, backbone=backbone)
        self.visual_projection = nn.Linear(
            vision_config.hidden_size, config.projection_dim, bias=vision_config.projection_bias
        )
        self.visual_projection.init_std = initial_stds(vision_config)[0]
        # One entry and not a scalar, which FSDP2 does not shard.
        self.logit_scale = nn.Parameter(torch.full((1,), float(config.logit_scale_init_value)))
        self.post_init()
        # What a tower alone passes over is this model's, and has to be reported.
        self._keys_to_ignore_on_load_unexpected -= {
            *PixCLIPVisionModel._keys_to_ignore_on_load_unexpected,
            *PixCLIPTextModel._keys_to_ignore_on_load_unexpected,
        }
        self._keys_to_ignore_on_load_unexpected |= {*OBJECTIVE_PARAMETERS}

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision: "str | PixCLIPVisionConfig",
        text: str,
        *,
        text_kwargs: dict[str, Any] | None = None,
        vision_kwargs: dict[str, Any] | None = None,
        dtype: torch.dtype | None = None,
        backbone_dtype: torch.dtype | str | None = None,
        **config_kwargs,
    ) -> "PixCLIPModel":
        """
        Builds a model from the vision tower of a CLIP checkpoint and a text backbone.

        The vision tower and its projection are taken over, the mask convolution starts at zero, so image features equal
        those of the parent until training changes them. The text adapter is new.

        Args:
            vision (`str` or [`PixCLIPVisionConfig`]): Folder or Hub id of a CLIP model, its vision tower with
                projection, or a PixCLIP model; or the configuration of a vision tower that starts from scratch.
            text (`str`): Folder or Hub id of a text backbone.
            text_kwargs (`dict`, *optional*): Fields of [`PixCLIPTextConfig`], e.g. `{"pooling": "last"}`.
            vision_kwargs (`dict`, *optional*): Fields of [`PixCLIPVisionConfig`] that leave the parent's weights valid,
                e.g. `{"mask_patch_bias": True}`.
            dtype (`torch.dtype`, *optional*): Of all weights. Defaults to `torch.float32`, beside which the text backbone
                keeps the dtype of its checkpoint, unless all of it trains.
            backbone_dtype (`torch.dtype` or `str`, *optional*): Of the text backbone's weights, if not `dtype`;
                `"auto"` is that of its checkpoint. Saved and loaded models keep the mixture.
            **config_kwargs: Fields of [`PixCLIPConfig`]; `projection_dim` is that of the vision tower.

        Returns:
            [`PixCLIPModel`]: In eval mode.

        Raises:
            ValueError: If `vision` is of another type, its tensors do not fill the tower, or the text backbone does not
                become bidirectional.
            TypeError: If a keyword is no field of its configuration.

        Example:
            >>> from modeling_pixclip import PixCLIPModel
            >>> model = PixCLIPModel.from_vision_text_pretrained(
            ...     "openai/clip-vit-base-patch16", "HuggingFaceTB/SmolLM2-135M-Instruct"
            ... )  # doctest: +SKIP
        """
        if "projection_dim" in config_kwargs:
            raise ValueError(
                f"projection_dim ({config_kwargs['projection_dim']}) follows from the vision tower; leave it out."
            )
        check_fields(
            config_kwargs, PixCLIPConfig, cls.__name__, own=("vision_config", "text_config", "projection_dim")
        )
        check_fields(
            text_kwargs or {},
            PixCLIPTextConfig,
            "text_kwargs",
            own=("backbone_config", "backbone_dtype", "backbone_source", "backbone_embeds_only"),
        )
        check_fields(vision_kwargs or {}, PixCLIPVisionConfig, "vision_kwargs")
        if isinstance(vision, PixCLIPVisionConfig):
            vision_config, vision_state = PixCLIPVisionConfig(**{**vision.to_dict(), **(vision_kwargs or {})}), None
        else:
            vision_config, vision_state = load_vision_parent(vision, vision_kwargs or {})
        projection_dim = vision_config.projection_dim
        text_fields, long_text_path = split_long_text_path(text_kwargs or {})
        text_config = PixCLIPTextConfig(
            backbone_config=AutoConfig.from_pretrained(text),
            **{"projection_dim": projection_dim, **text_fields},
        )
        config = PixCLIPConfig(
            vision_config=vision_config, text_config=text_config, projection_dim=projection_dim, **config_kwargs
        )
        # After all configurations: what they refuse need not be loaded, and making one resets the attention of its parts.
        backbone = load_backbone(text, text_config, dtype, backbone_dtype)
        model = cls._from_config(config, dtype=dtype or torch.float32, backbone=backbone).eval()
        model.text_model.check_bidirectional()
        if long_text_path:
            model.text_model.add_long_text_path(**long_text_path)
        if vision_state is not None:
            fill_vision_tower(model, vision_state, vision)
        return model

    def set_text_backbone_trainable(self, mode: Literal["frozen", "lora", "full"], **lora):
        """
        Sets how the text backbone trains; arguments and errors as in [`PixCLIPTextModel.set_backbone_trainable`].

        Example:
            >>> from modeling_pixclip import PixCLIPModel
            >>> model = PixCLIPModel.from_vision_text_pretrained(
            ...     "openai/clip-vit-base-patch16", "HuggingFaceTB/SmolLM2-135M-Instruct"
            ... )  # doctest: +SKIP
            >>> model.set_text_backbone_trainable("lora", rank=16, alpha=32)  # doctest: +SKIP
        """
        self.text_model.set_backbone_trainable(mode, **lora)

    def merge_text_backbone_lora(self):
        """Merges the text backbone's adapters, as [`PixCLIPTextModel.merge_backbone_lora`] does."""
        self.text_model.merge_backbone_lora()

    def get_input_embeddings(self):
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.text_model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """As in every Transformers model; see [`PixCLIPTextModel.resize_token_embeddings`]."""
        embeddings = self.text_model.resize_token_embeddings(*args, **kwargs)
        self.vocab_size = self.text_model.vocab_size
        return embeddings

    def _inverse_temperature(self) -> torch.Tensor:
        return InverseTemperature.apply(self.logit_scale, math.log(self.config.logit_scale_max)).squeeze()

    def _soft_masks(self, mask_values: torch.Tensor) -> torch.Tensor:
        """Masks in 0..1 from normalised ones."""
        return soft_masks(mask_values, self.config.vision_config.mask_mean, self.config.vision_config.mask_std)

    def _pool_dense(
        self,
        dense_state: torch.Tensor,
        image_size: tuple[int, int],
        pooling: str,
        mask_values: torch.Tensor | None,
        region_boxes: torch.Tensor | None,
        index: torch.Tensor,
    ) -> torch.Tensor:
        """Projected region vectors (R, projection_dim) from a dense map (B or R, N, hidden_size)."""
        rows, columns = (side // self.config.vision_config.patch_size for side in image_size)
        grid = dense_state.transpose(1, 2).unflatten(2, (rows, columns))
        if pooling == "mask":
            return self.visual_projection(mask_pool(grid, self._soft_masks(mask_values), index))
        cells = region_boxes.new_tensor([columns, rows, columns, rows])
        return self.visual_projection(roi_align(grid, region_boxes * cells, index).flatten(1))

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pooling_mask: torch.Tensor | None = None,
        backbone_embeds: torch.Tensor | None = None,
        long_text_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixCLIPTextModelOutput:
        """
        Text embeddings; arguments and errors as in [`PixCLIPTextModel.forward`].

        Returns:
            [`PixCLIPTextModelOutput`]: `pooler_output` of shape `(T, projection_dim)`, not normalised.
        """
        return self.text_model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pooling_mask=pooling_mask,
            backbone_embeds=backbone_embeds,
            long_text_mask=long_text_mask,
            return_dict=True,
            **kwargs,
        )

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        mask_values: torch.Tensor | None = None,
        region_image_index: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixCLIPVisionModelOutput:
        """
        Embeddings of regions (with masks) or whole images (without); arguments as in [`PixCLIPVisionModel.forward`].

        Returns:
            [`PixCLIPVisionModelOutput`]: `pooler_output` of shape `(R, projection_dim)`, not normalised.
        """
        outputs = self.vision_model(
            pixel_values=pixel_values,
            mask_values=mask_values,
            region_image_index=region_image_index,
            return_dict=True,
            **kwargs,
        )
        outputs.pooler_output = self.visual_projection(outputs.pooler_output)
        return outputs

    @can_return_tuple
    def get_dense_features(
        self,
        pixel_values: torch.Tensor,
        mask_values: torch.Tensor | None = None,
        region_image_index: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        One embedding a patch, in the shared space; arguments as in [`PixCLIPVisionModel.forward`].

        Returns:
            [`BaseModelOutputWithPooling`]: `last_hidden_state` of shape `(R, N, projection_dim)`, patches row by row,
            and `pooler_output` of shape `(R, projection_dim)`; neither is normalised.
        """
        outputs = self.get_image_features(
            pixel_values, mask_values, region_image_index, return_dense=True, return_dict=True, **kwargs
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=self.visual_projection(outputs.dense_state), pooler_output=outputs.pooler_output
        )

    @can_return_tuple
    def get_region_features(
        self,
        pixel_values: torch.Tensor,
        mask_values: torch.Tensor | None = None,
        region_image_index: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        pooling: Literal["mask", "roi"] | None = None,
        mask_input: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        Embeddings of regions pooled from the dense map.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalised images.
            mask_values (`torch.Tensor` of shape `(R, 1, H, W)`, *optional*): Normalised masks.
            region_image_index (`torch.Tensor` of shape `(R,)`, *optional*): The image of each region; without it there
                is one region an image.
            region_boxes (`torch.Tensor` of shape `(R, 4)`, *optional*): xyxy in 0..1 of the frame of `pixel_values`.
            pooling (`"mask"` or `"roi"`, *optional*): Mask pooling or RoIAlign. Defaults to `"mask"` where masks are
                given, else to `"roi"`.
            mask_input (`bool`, *optional*, defaults to `True`): Let the mask also enter the tower, as the `local` branch
                is trained: one pass a region. `False` makes one unconditioned map an image (FG-CLIP).

        Returns:
            [`BaseModelOutputWithPooling`]: `pooler_output` of shape `(R, projection_dim)`, not normalised, and
            `last_hidden_state`, the dense map before projection.

        Raises:
            ValueError: If what `pooling` needs is missing, or the numbers of regions and images do not fit.
        """
        pooling = pooling or ("roi" if mask_values is None else "mask")
        regions = {"mask": mask_values, "roi": region_boxes}[pooling]
        if regions is None:
            raise ValueError(
                f"pooling={pooling!r} needs {'mask_values' if pooling == 'mask' else 'region_boxes'}, got None. Pass "
                "masks or boxes to the processor together with the images."
            )
        if region_image_index is None:
            if len(regions) != len(pixel_values):
                raise ValueError(
                    f"{len(regions)} regions for {len(pixel_values)} images: pass region_image_index (R,), the image "
                    "of each region."
                )
            region_image_index = torch.arange(len(regions), device=pixel_values.device)
        conditioned = mask_input and mask_values is not None
        outputs = self.vision_model(
            pixel_values=pixel_values,
            mask_values=mask_values if conditioned else None,
            region_image_index=region_image_index if conditioned else None,
            return_dense=True,
            return_dict=True,
            **kwargs,
        )
        index = torch.arange(len(regions), device=pixel_values.device) if conditioned else region_image_index
        pooled = self._pool_dense(
            outputs.dense_state, pixel_values.shape[-2:], pooling, mask_values, region_boxes, index
        )
        return BaseModelOutputWithPooling(last_hidden_state=outputs.dense_state, pooler_output=pooled)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pooling_mask: torch.Tensor | None = None,
        mask_values: torch.Tensor | None = None,
        region_image_index: torch.Tensor | None = None,
        region_boxes: torch.Tensor | None = None,
        region_text_index: torch.Tensor | None = None,
        long_text_mask: torch.Tensor | None = None,
        backbone_embeds: torch.Tensor | None = None,
        return_loss: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PixCLIPOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(T, L)`, *optional*): Token ids.
            pixel_values (`torch.Tensor` of shape `(B, 3, H, W)`): Normalised images.
            attention_mask (`torch.Tensor` of shape `(T, L)`, *optional*): 1 for tokens, 0 for padding.
            pooling_mask (`torch.Tensor` of shape `(T, L)`, *optional*): 1 for the tokens to pool.
            mask_values (`torch.Tensor` of shape `(R, 1, H, W)`, *optional*): Normalised masks.
            region_image_index (`torch.Tensor` of shape `(R,)`, *optional*): The image of each mask.
            region_boxes (`torch.Tensor` of shape `(R, 4)`, *optional*): Taken so that the processor's output can be
                passed whole; used by [`~PixCLIPModel.get_region_features`].
            region_text_index (`torch.Tensor` of shape `(R,)`, *optional*): With `return_loss`, the text of each image
                row; without it row i belongs to text i.
            long_text_mask (`torch.BoolTensor` of shape `(T,)`, *optional*): Which texts take the long path of a text
                tower that has one, see [`PixCLIPTextModel.add_long_text_path`].
            backbone_embeds (`torch.Tensor` of shape `(T, backbone width)`, *optional*): In place of `input_ids`.
            return_loss (`bool`, *optional*): Return the symmetric InfoNCE, whatever the objective is, with the
                configuration's `multi_positive` and `gather`.
            **kwargs: Those of every Transformers model, such as `output_hidden_states`. Further inputs of
                [`PixCLIPForPreTraining`] may be among them and are not used.

        Returns:
            [`PixCLIPOutput`]

        Raises:
            ValueError: If images or texts are missing, or cannot be paired for the loss.
            TypeError: If there is an unknown keyword.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in PRETRAINING_INPUTS}
        if pixel_values is None:
            raise ValueError("pixel_values are missing; for texts alone call get_text_features.")
        vision_outputs = self.get_image_features(
            pixel_values, mask_values, region_image_index, return_dict=True, **kwargs
        )
        text_outputs = self.get_text_features(
            input_ids, attention_mask, pooling_mask, backbone_embeds, long_text_mask, return_dict=True, **kwargs
        )
        image_embeds = nn.functional.normalize(vision_outputs.pooler_output, dim=-1)
        text_embeds = nn.functional.normalize(text_outputs.pooler_output, dim=-1)
        scale = self._inverse_temperature()
        logits_per_text = similarity_logits(text_embeds, image_embeds, scale)
        loss = None
        if return_loss:
            text_index = pair_index(region_text_index, len(image_embeds), len(text_embeds), image_embeds.device)
            # Other processes number their texts from 0 too.
            text_ids = text_index + (process_rank() << 32) if self.config.multi_positive else None
            loss = contrastive_loss(image_embeds, text_embeds[text_index], scale, text_ids, gather=self.config.gather)
        return PixCLIPOutput(
            loss=loss,
            logits_per_image=logits_per_text.T,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )


class PixCLIPForPreTraining(PretrainingObjective, PixCLIPModel):
    """
    PixCLIP with its training objective: a weighted sum of terms, of PixCLIP (arXiv 2511.04601, section 3), FG-CLIP
    (arXiv 2505.05071, section 3) and FG-CLIP 2 (arXiv 2510.10921). E is an image's embedding, D its dense map.

    | term | aligns |
    |---|---|
    | `global` | E(image, mask) and the region's text; a whole image is a mask of ones with its caption |
    | `crop` | E(context crop, its mask) and the object-level text |
    | `local` | D(image, mask) pooled over the region and E(crop), by 1 - cosine, or the region's text |
    | `caption_long`, `caption_short` | E(image) and the image's long or short caption |
    | `region` | D(image) pooled over the region and the region's text |
    | `hard_negative` | the region and its text rather than its hard negatives |
    | `ranking_margin` | the same as a hinge, with the mean gap of the batch before as margin |
    | `text_intra` | no two: it pushes region texts that are near each other apart |

    A term of weight 0 is removed, one whose inputs are absent from a batch is skipped; the weights and all that the
    papers leave open are fields of [`PixCLIPConfig`], and [`get_objective_preset`] sets them as a paper does. `region`
    and `hard_negative` have temperatures of their own, and the sigmoid loss a bias, which are in the checkpoint beside
    the weights of [`PixCLIPModel`]; either class loads the other's. Trains with the plain [`Trainer`] and
    `PixCLIPDataCollator`, on one process or many.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPForPreTraining
        >>> text = LlamaConfig(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPForPreTraining(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> pixels, masks = torch.randn(2, 3, 224, 224), torch.ones(2, 1, 224, 224)
        >>> outputs = model(
        ...     pixel_values=pixels,
        ...     mask_values=masks,
        ...     crop_pixel_values=pixels,
        ...     crop_mask_values=masks,
        ...     input_ids=torch.tensor([[5, 6], [7, 8]]),
        ... )
        >>> sorted(outputs.loss_terms)
        ['crop', 'global', 'local']
    """

    def __init__(self, config: PixCLIPConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config, backbone)
        self.add_objective_parameters()


PRETRAINING_INPUTS = (
    "object_text_index",
    "crop_pixel_values",
    "crop_mask_values",
    "long_caption_index",
    "short_caption_index",
    "hard_negative_text_index",
    "hard_negative_region_index",
    "text_ids",
)
# What the objective has of its own; a model without it passes it over.
OBJECTIVE_PARAMETERS = [r"^logit_scale_(region|hard_negative)$", r"^logit_bias$", r"^ranking_margin$"]

REMOTE_CODE_MODELS = {
    "AutoModel": "modeling_pixclip.PixCLIPModel",
    "AutoModelForPreTraining": "modeling_pixclip.PixCLIPForPreTraining",
    "AutoModelForZeroShotImageClassification": "modeling_pixclip.PixCLIPModel",
}

__all__ = ["PixCLIPForPreTraining", "PixCLIPModel", "PixCLIPPreTrainedModel"]
