# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How much of the text backbone trains: nothing, LoRA adapters (PEFT) on its linear layers, or all of it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

from .configuration_pixclip import LORA_DEFAULTS


ADAPTER = "default"


def require_peft() -> tuple[type, Any, type]:
    """PEFT's configuration of LoRA, its injection into a model, and its layer, or an `ImportError` with the remedy."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError as error:
        raise ImportError(
            'LoRA adapters on the text backbone need PEFT, which cannot be imported here: pip install "pixclip[peft]".'
        ) from error
    return LoraConfig, inject_adapter_in_model, LoraLayer


def linear_layers(backbone: PreTrainedModel) -> list[str]:
    """
    Names of the linear layers of attention and MLP: those in the repeated layers of the backbone's text part.

    Args:
        backbone ([`PreTrainedModel`]): A text backbone.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> from modeling_pixclip.text_backbone_training import linear_layers
        >>> shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
        >>> names = linear_layers(LlamaModel(LlamaConfig(vocab_size=99, num_hidden_layers=1, **shape)))
        >>> [name.rpartition(".")[2] for name in names]
        ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
    """
    text_part = backbone.get_decoder()
    own = {id(module) for module in text_part.modules()}
    return [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and id(module) in own and any(part.isdigit() for part in name.split("."))
    ]


def add_lora(backbone: PreTrainedModel, lora: dict[str, Any], dtype: torch.dtype):
    """
    Puts new adapters, which change no output yet, on linear layers of a backbone.

    Args:
        backbone ([`PreTrainedModel`]): A text backbone without adapters, changed in place.
        lora (`dict`): `rank`, `alpha`, `dropout`, `target_modules` as in [`PixCLIPTextConfig`].
        dtype (`torch.dtype`): Of the adapters. Beside a bfloat16 backbone they train in float32.

    Raises:
        ImportError: If PEFT is not installed.
        ValueError: If a name in `target_modules` is that of no linear layer.
    """
    lora_config, inject, _ = require_peft()
    targets = linear_layers(backbone)
    if lora["target_modules"] is not None:
        linears = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
        missing = [
            target
            for target in lora["target_modules"]
            if not any(f".{name}".endswith(f".{target}") for name in linears)
        ]
        if missing:
            accepted = sorted({name.rpartition(".")[2] for name in linears})
            raise ValueError(
                f"target_modules {missing} are no linear layers of the backbone; accepted are {accepted}."
            )
        targets = lora["target_modules"]
    inject(
        lora_config(
            r=lora["rank"], lora_alpha=lora["alpha"], lora_dropout=lora["dropout"], target_modules=list(targets)
        ),
        backbone,
        ADAPTER,
    )
    for name, parameter in backbone.named_parameters():
        if is_adapter(name):
            # PEFT makes them in the dtype of the layer.
            parameter.data = parameter.data.to(dtype)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in f".{name}"


def check_finite(backbone: PreTrainedModel):
    """Refuses adapters with a NaN or an infinity, which would spoil the weights that they are merged into."""
    broken = [
        name for name, parameter in backbone.named_parameters() if is_adapter(name) and not parameter.isfinite().all()
    ]
    if broken:
        raise ValueError(f"adapters {broken} are not finite. Load an earlier checkpoint; nothing was merged.")


def merge_lora(backbone: PreTrainedModel):
    """
    Adds the adapters to the weights they stand beside and leaves the plain backbone, in place.

    Args:
        backbone ([`PreTrainedModel`]): A backbone with adapters.

    Raises:
        ValueError: If an adapter holds a NaN or an infinity; nothing is merged then.
    """
    lora_layer = require_peft()[2]
    check_finite(backbone)
    for name, module in list(backbone.named_modules()):
        if isinstance(module, lora_layer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())
    del backbone.peft_config


def weight_sample(weight: torch.Tensor) -> torch.Tensor:
    """Some numbers of a weight, up to 127 from all over it, by which to tell whether two are the same."""
    flat = weight.detach().flatten()
    return flat[:: max(1, len(flat) // 64)]


def _weight_samples(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """First and some other numbers of each weight, beside which its size stands, by its name without adapters."""
    for name, parameter in weights:
        if not (is_adapter(name) or parameter.is_meta) and parameter.is_floating_point():
            sample = weight_sample(parameter)
            size = sample.new_full((1,), parameter.numel())
            # A copy: the sample would change with the weight.
            yield name.replace(".base_layer.", "."), torch.cat([sample.cpu(), size.cpu()])


class TextBackboneTraining:
    """
    Part of [`PixCLIPTextModel`] that says how its backbone trains.

    Example:
        >>> from modeling_pixclip import PixCLIPTextModel
        >>> from modeling_pixclip.text_backbone_training import TextBackboneTraining
        >>> issubclass(PixCLIPTextModel, TextBackboneTraining)
        True
    """

    def set_backbone_trainable(
        self,
        mode: Literal["frozen", "lora", "full"],
        *,
        rank: int | None = None,
        alpha: int | float | None = None,
        dropout: float | None = None,
        target_modules: list[str] | None = None,
    ):
        r"""
        Sets how the backbone trains; kept in `config.backbone_training`, and so in checkpoints.

        * `"frozen"`: not at all. It runs in eval mode and keeps nothing for gradients. Adapters, if there are any, stay
          in effect.
        * `"lora"`: adapters on its linear layers (PEFT; `pip install "pixclip[peft]"`), which are new and change no
          output, or those that are there already. The adapters are of the dtype of the tower's other weights, the
          backbone keeps its own.
        * `"full"`: all weights. Adapters are merged first, so that outputs stay. The backbone takes the dtype of the
          tower's other weights: steps of an optimiser are lost to rounding in bfloat16.

        Call it before an optimiser is made.

        Args:
            mode (`str`): One of the above.
            rank (`int`, *optional*, defaults to 16): Rank of new adapters.
            alpha (`float`, *optional*, defaults to 32): Scale of new adapters, which is alpha / rank.
            dropout (`float`, *optional*, defaults to 0.05): Dropout of the adapters' inputs.
            target_modules (`list[str]`, *optional*): Names, or their ends, of the linear layers that get adapters;
                defaults to all of attention and MLP.

        Raises:
            ImportError: If PEFT is needed and not installed.
            ValueError: If the mode is unknown, options are given that it does not take, a name in `target_modules` is
                that of no linear layer, the backbone has other adapters than the given ones, or there is no backbone.

        Example:
            >>> from transformers import LlamaConfig
            >>> from modeling_pixclip import PixCLIPTextConfig, PixCLIPTextModel
            >>> shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
            >>> backbone = LlamaConfig(vocab_size=99, **shape)
            >>> model = PixCLIPTextModel(PixCLIPTextConfig(backbone_config=backbone, projection_dim=16))
            >>> model.set_backbone_trainable("lora", rank=4)
            >>> sum(parameter.numel() for parameter in model.backbone.parameters() if parameter.requires_grad)
            4352
        """
        given = {"rank": rank, "alpha": alpha, "dropout": dropout, "target_modules": target_modules}
        given = {name: value for name, value in given.items() if value is not None}
        if mode in ("lora", "full"):
            self._check_backbone(f"mode {mode!r} trains one")
        if mode not in ("frozen", "lora", "full"):
            raise ValueError(f"mode {mode!r} is unknown; accepted are 'frozen', 'lora' and 'full'.")
        if given and mode != "lora":
            raise ValueError(f"{sorted(given)} are options of mode 'lora', got mode {mode!r}. Leave them out.")
        present = self.config.backbone_lora
        if mode == "lora" and present is None:
            lora = {**LORA_DEFAULTS, **given}
            self.config.check_lora(lora)
            add_lora(self.backbone, lora, self.dtype)
            self.config.backbone_lora = lora
        elif mode == "lora":
            other = {name: value for name, value in given.items() if value != present[name]}
            if other:
                raise ValueError(
                    f"the backbone has adapters with {present}; they cannot become {other}. Leave these options out to "
                    "train on, or call merge_backbone_lora() and add new ones."
                )
        elif mode == "full":
            check_finite(self.backbone)
            self.backbone.to(self.dtype)
            if present is not None:
                self.merge_backbone_lora()
            self._backbone_changed("all of it was made trainable")
        self.config.backbone_training = mode
        self.mark_trainable()
        self.train(self.training)

    def mark_trainable(self):
        """Sets `requires_grad` of the backbone's parameters by `config.backbone_training`; loading a checkpoint resets it."""
        if self.backbone is None:
            return
        training = self.config.backbone_training
        for name, parameter in self.backbone.named_parameters():
            # Nothing here reads a pooler (BERT). Without a gradient, it would stop DDP.
            whole = training == "full" and not name.startswith("pooler.")
            parameter.requires_grad_(whole or (training == "lora" and is_adapter(name)))

    def merge_backbone_lora(self):
        """
        Adds the adapters to the backbone's weights and removes them; the backbone is plain and frozen afterwards.

        Outputs stay, up to rounding in the backbone's dtype (1e-5 in float32).

        Raises:
            ValueError: If there are no adapters, or they are not finite.

        Example:
            >>> from transformers import LlamaConfig
            >>> from modeling_pixclip import PixCLIPTextConfig, PixCLIPTextModel
            >>> shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
            >>> backbone = LlamaConfig(vocab_size=99, **shape)
            >>> model = PixCLIPTextModel(PixCLIPTextConfig(backbone_config=backbone, projection_dim=16))
            >>> model.set_backbone_trainable("lora")
            >>> model.merge_backbone_lora()
            >>> model.config.backbone_training
            'frozen'
        """
        if self.config.backbone_lora is None:
            raise ValueError("the text backbone has no LoRA adapters to merge.")
        merge_lora(self.backbone)
        self._backbone_changed("LoRA adapters were merged into it")
        self.config.backbone_lora = None
        self.config.backbone_training = "frozen"
        self.mark_trainable()
        self.train(self.training)

    def remember_weights(self):
        """Keeps a few numbers of each weight, so that [`~PixCLIPTextModel.weights_changed`] notices other ones."""
        if self.backbone is not None:
            self._weight_samples = dict(_weight_samples(self.backbone.named_parameters()))

    def weights_changed(self, state_dict: Mapping[str, torch.Tensor] | None = None) -> bool:
        """
        Whether the backbone has other weights than the ones it was made or loaded with, adapters aside.

        Args:
            state_dict (`Mapping[str, torch.Tensor]`, *optional*): The weights, of this tower or of the model it is in.
                Defaults to the backbone's own, which are whole in no process if FSDP has shared them out.
        """
        if self.backbone is None:
            return False
        weights = self.backbone.named_parameters()
        if state_dict is not None:
            start = re.compile(r"^(?:text_model\.)?backbone\.")
            weights = ((start.sub("", name), weight) for name, weight in state_dict.items() if start.match(name))
        for name, now in _weight_samples(weights):
            before = self._weight_samples.get(name)
            if before is None:
                continue
            # Another dtype is no change, its rounding is.
            bound = 0 if now.dtype == before.dtype else max(torch.finfo(tensor.dtype).eps for tensor in (now, before))
            if now.shape != before.shape or not torch.allclose(
                now.double(), before.double(), rtol=bound, atol=bound / 1e3
            ):
                return True
        return False

    def _without_backbone(self, reason: str) -> str:
        return (
            f"this text tower has no backbone (it was made with backbone_embeds_only=True), and {reason}. Pass "
            f"backbone_embeds, vectors {self.config.hidden_size} wide, or load the checkpoint with text_backbone=: the "
            "folder or Hub id of the LLM, or the loaded model."
        )

    def _check_backbone(self, reason: str):
        if self.backbone is None:
            raise ValueError(self._without_backbone(reason))

    def _backbone_changed(self, reason: str):
        """Notes that checkpoints must hold the backbone's weights from now on."""
        self.config.backbone_in_checkpoint = True
        if self.config.backbone_source is not None and "changed" not in self.config.backbone_source:
            self.config.backbone_source = {"changed": reason, **self.config.backbone_source}

    def train(self, mode: bool = True):
        super().train(mode)
        if self.backbone is not None and self.config.backbone_training == "frozen":
            # Dropout would add noise to vectors that a store holds without it.
            self.backbone.eval()
        return self


__all__ = [
    "TextBackboneTraining",
    "add_lora",
    "check_finite",
    "is_adapter",
    "linear_layers",
    "merge_lora",
    "require_peft",
]
