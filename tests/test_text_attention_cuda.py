# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Packed texts through PyTorch's flash kernel, on a CUDA device."""

import pytest
import torch
from test_text_attention import BACKBONES, LENGTHS, random_tokens, tower

from modeling_pixclip import text_attention


pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="flash attention needs a CUDA device, there is none"),
]
HALF = [torch.bfloat16, torch.float16]


def vectors_and_gradients(model, dtype):
    ids, mask = (rows.cuda() for rows in random_tokens(LENGTHS))
    model = model.to("cuda", dtype)
    vectors = model(input_ids=ids, attention_mask=mask).backbone_embeds
    (vectors * torch.linspace(-1, 1, vectors.shape[-1], device="cuda")).sum().backward()
    return vectors, {name: p.grad.float() for name, p in model.backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_flash_equals_padded_sdpa(backbone, dtype, monkeypatch):
    calls = []
    kernel = text_attention.varlen_attn
    monkeypatch.setattr(
        text_attention, "varlen_attn", lambda *args, **kwargs: calls.append(1) or kernel(*args, **kwargs)
    )
    packed, gradients = vectors_and_gradients(tower(backbone), dtype)
    assert calls
    padded, expected = vectors_and_gradients(tower(backbone, padding_free=False), dtype)
    assert torch.cosine_similarity(packed, padded).min() >= 0.999
    total = torch.cat([gradient.flatten() for gradient in expected.values()])
    assert torch.cosine_similarity(torch.cat([g.flatten() for g in gradients.values()]), total, dim=0) >= 0.99


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_float32_runs_text_by_text(backbone):
    packed, gradients = vectors_and_gradients(tower(backbone), torch.float32)
    padded, expected = vectors_and_gradients(tower(backbone, padding_free=False), torch.float32)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4)


def test_no_text_depends_on_another():
    model = tower("llama").to("cuda", torch.bfloat16)
    ids, mask = (rows.cuda() for rows in random_tokens(LENGTHS))
    other = ids.clone()
    other[1] = (other[1] + 7) % 60
    with torch.no_grad():
        before, after = (model(input_ids=rows, attention_mask=mask).backbone_embeds for rows in (ids, other))
    rest = [row for row in range(len(LENGTHS)) if row != 1]
    assert torch.equal(before[rest], after[rest])


def test_autocast():
    model = tower("qwen3").cuda()
    ids, mask = (rows.cuda() for rows in random_tokens(LENGTHS))
    with torch.autocast("cuda", dtype=torch.bfloat16):
        packed = model(input_ids=ids, attention_mask=mask).backbone_embeds
        padded = tower("qwen3", padding_free=False).cuda()(input_ids=ids, attention_mask=mask).backbone_embeds
    assert torch.cosine_similarity(packed, padded).min() >= 0.999


def test_compile():
    model = tower("llama").to("cuda", torch.bfloat16)
    compiled = torch.compile(model)
    for seed in range(3):
        ids, mask = (rows.cuda() for rows in random_tokens([length + seed for length in (4, 110, 70)], seed))
        with torch.no_grad():
            expected = model(input_ids=ids, attention_mask=mask).backbone_embeds
            found = compiled(input_ids=ids, attention_mask=mask).backbone_embeds
        assert torch.cosine_similarity(expected, found).min() >= 0.999
