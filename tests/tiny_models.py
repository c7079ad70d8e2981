# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Builders of the tiny real models and inputs that the tests of the model side share."""

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, CLIPTextConfig, CLIPVisionConfig, LlamaConfig, MistralConfig, Qwen3Config

from modeling_pixclip import PixCLIPConfig, PixCLIPTextConfig, PixCLIPVisionConfig


VOCABULARY, EOS, PAD = 60, 2, 0
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}
EVA02 = {
    "mlp_type": "swiglu",
    "hidden_act": "silu",
    "use_rope": True,
    "sub_layer_norm": True,
    "pre_layer_norm": False,
    "key_bias": False,
    "patch_bias": True,
    "mask_patch_bias": True,
    "projection_bias": True,
    "layer_norm_eps": 1e-6,
}


def backbone_config(name, **fields):
    shared = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 48,
        "bos_token_id": 1,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    }
    grouped = {"num_key_value_heads": 2, "head_dim": 8}
    config_class, own = {
        "llama": (LlamaConfig, grouped),
        "qwen3": (Qwen3Config, grouped),
        "mistral": (MistralConfig, {**grouped, "sliding_window": None}),
        "bert": (BertConfig, {}),
        "clip_text": (CLIPTextConfig, {"eos_token_id": 3}),
    }[name]
    return config_class(**{**shared, **own, **fields})


def vision_config(**fields):
    return PixCLIPVisionConfig(**{**VISION, **fields})


def clip_vision_config(**fields):
    """The CLIP parent of `vision_config()`."""
    return CLIPVisionConfig(**{**VISION, "hidden_act": "quick_gelu", **fields})


def text_config(backbone="llama", **fields):
    config = backbone if not isinstance(backbone, str) else backbone_config(backbone)
    return PixCLIPTextConfig(backbone_config=config, **{"projection_dim": 16, **fields})


def pixclip_config(vision=None, text=None, **fields):
    return PixCLIPConfig(
        vision_config=vision_config(**(vision or {})),
        text_config=text_config(**(text or {})),
        **{"projection_dim": 16, **fields},
    )


def randomise(model, seed=0):
    """Random numbers in every parameter, also those that start at zero or one, so that each of them matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("logit_"):
                continue
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 and "embedding" not in name else 0.3
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def random_images(count, height=32, width=32, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def random_boxes(count, seed=0):
    """xyxy in 0..1, each at least a fifth of the frame wide and high."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(count, 2, generator=generator) * 0.6
    return torch.cat([start, start + 0.2 + torch.rand(count, 2, generator=generator) * 0.2], dim=-1)


def box_masks(boxes, height=32, width=32):
    """Masks (R, 1, H, W) of 0 and 1."""
    ys = (torch.arange(height) + 0.5) / height
    xs = (torch.arange(width) + 0.5) / width
    x0, y0, x1, y1 = boxes[:, :, None].unbind(1)
    rows, columns = (ys >= y0) & (ys < y1), (xs >= x0) & (xs < x1)
    return (rows[:, :, None] & columns[:, None, :])[:, None].float()


def normalised(masks):
    return (masks - 0.5) / 0.26


def random_masks(count, height=32, width=32, seed=0):
    """Normalised masks, as the towers receive them."""
    return normalised(box_masks(random_boxes(count, seed), height, width))


def random_tokens(lengths, seed=0):
    """Right-padded ids and their mask; no id of a real token is a special one."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(4, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = 1
    return ids, mask


def assert_same_weights(one, other):
    ones, others = one.state_dict(), other.state_dict()
    assert ones.keys() == others.keys()
    for name, tensor in ones.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name


def assert_same_statistics(name, tensor, expected):
    """Equal where `expected` is constant, else of about the same spread."""
    tensor, expected = tensor.detach(), expected.detach()
    assert tensor.isfinite().all(), name
    if expected.numel() == 1 or expected.std() == 0:
        torch.testing.assert_close(tensor, expected, msg=name)
    else:
        assert 0.6 < float(tensor.std() / expected.std()) < 1.6, name


def check_initialisation_of_missing_weights(model_class, config, folder, frozen=()):
    """Loads checkpoints that lack each tensor in turn, then nearly all; what is missing must be as in a fresh model."""
    fresh = model_class(config)
    fresh.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    names = [name for name in tensors if not name.startswith(tuple(frozen))]
    for lacking in [{name} for name in names] + [set(names[1:])]:
        marked = {name: torch.full_like(tensor, 3.0) for name, tensor in tensors.items() if name not in lacking}
        save_file(marked, folder / "model.safetensors", {"format": "pt"})
        loaded = []
        for _ in range(2 if len(lacking) > 1 else 1):
            torch.manual_seed(1)
            loaded.append(model_class.from_pretrained(folder))
        for name, tensor in loaded[0].state_dict().items():
            assert_same_statistics(name, tensor, marked.get(name, fresh.state_dict()[name]))
        for name, buffer in loaded[0].named_buffers():
            torch.testing.assert_close(buffer, fresh.get_buffer(name), msg=name)
    # The last checkpoint, loaded twice: left-over memory would differ, or ignore the seed.
    assert_same_weights(*loaded)
