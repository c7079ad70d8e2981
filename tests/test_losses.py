# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses against their definitions, in value and gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from modeling_pixclip import contrastive_loss, cosine_distance
from modeling_pixclip.losses import InverseTemperature, similarity_logits


def random_pairs(rows=6, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(rows, width, dtype=torch.float64, generator=generator) for _ in range(2))
    return images.requires_grad_(), texts.requires_grad_(), torch.tensor(2.0, dtype=torch.float64, requires_grad=True)


def clip_loss(images, texts, scale):
    """As transformers' CLIP."""
    logits = images @ texts.T * scale
    rows = torch.arange(len(logits))
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2


def naive_loss(images, texts, scale, index):
    """-log p, averaged over the positives of a row, then over rows, then over both directions."""
    logits = images @ texts.T * scale
    total = 0.0
    for scores in (logits, logits.T):
        for i, row in enumerate(scores):
            positives = [j for j in range(len(row)) if index[j] == index[i]]
            total = total - sum((row[j] - row.exp().sum().log()) for j in positives) / len(positives)
    return total / (2 * len(logits))


def values_and_gradients(loss, *args):
    images, texts, log_scale = random_pairs()
    normal = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    value = loss(*normal, log_scale.exp(), *args)
    value.backward()
    return value.detach(), images.grad, texts.grad, log_scale.grad


def assert_equal(one, other):
    for value, expected in zip(one, other, strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("index", [None, torch.arange(6), torch.tensor([7, 3, 0, 2, 9, 4])])
def test_contrastive_loss_is_clips_where_texts_differ(index):
    assert_equal(values_and_gradients(contrastive_loss, index), values_and_gradients(clip_loss))


@pytest.mark.parametrize("index", [[0, 1, 1, 2, 3, 1], [4, 4, 2, 2, 0, 0], [5] * 6])
def test_pairs_that_share_a_text_are_positives_of_each_other(index):
    expected = values_and_gradients(naive_loss, index)
    assert_equal(values_and_gradients(contrastive_loss, torch.tensor(index)), expected)


def test_equal_texts_do_not_repel():
    """With one text for all, embeddings that agree are a minimum: nothing to learn."""
    embeds = F.normalize(torch.ones(4, 8), dim=-1).requires_grad_()
    contrastive_loss(embeds, embeds.detach(), torch.tensor(10.0), torch.zeros(4, dtype=torch.int64)).backward()
    torch.testing.assert_close(embeds.grad, torch.zeros(4, 8))
    embeds.grad = None
    contrastive_loss(embeds, F.normalize(torch.randn(4, 8), dim=-1), torch.tensor(10.0)).backward()
    assert embeds.grad.abs().max() > 1e-3


def test_cosine_distance_in_value_and_gradient():
    student, teacher, _ = random_pairs()
    value = cosine_distance(student, teacher)
    value.backward()
    expected = sum(1 - s @ t / (s.norm() * t.norm()) for s, t in zip(student, teacher)) / 6
    gradients = torch.autograd.grad(expected, (student, teacher))
    assert_equal((value, student.grad, teacher.grad), (expected, *gradients))


def test_cosine_distance_reads_directions_only():
    student = random_pairs()[0].detach()
    assert float(cosine_distance(student, 3 * student)) == pytest.approx(0, abs=1e-12)
    assert float(cosine_distance(student, -0.5 * student)) == pytest.approx(2)


def test_logits_are_float32_under_autocast():
    images, texts = (F.normalize(torch.randn(16, 8), dim=-1) for _ in range(2))
    scale = torch.tensor(100.0)
    expected = contrastive_loss(images, texts, scale)
    with torch.autocast("cpu", torch.bfloat16):
        loss = contrastive_loss(images, texts, scale)
        half = contrastive_loss(images.bfloat16(), texts.bfloat16(), scale)
        assert similarity_logits(images.bfloat16(), texts.bfloat16(), scale).dtype == torch.float32
    assert loss.dtype == half.dtype == torch.float32
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    # What rounding the embeddings costs, and nothing more.
    torch.testing.assert_close(half, contrastive_loss(images.bfloat16().float(), texts.bfloat16().float(), scale))


def test_inverse_temperature_is_bounded_and_comes_back():
    for start in (0.5, 2.0, 3.5):
        log_scale = torch.tensor(start, requires_grad=True)
        scale = InverseTemperature.apply(log_scale, 2.0)
        assert float(scale) == pytest.approx(math.exp(min(start, 2.0)))
        # A loss that falls with the temperature lowers the parameter everywhere.
        (down,) = torch.autograd.grad(3 * scale, log_scale, retain_graph=True)
        assert float(down) == pytest.approx(3 * math.exp(min(start, 2.0)))
        (up,) = torch.autograd.grad(-3 * scale, log_scale)
        assert float(up) == (0 if start > 2 else pytest.approx(-float(down)))
    optimiser = torch.optim.SGD([log_scale], lr=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        (InverseTemperature.apply(log_scale, 2.0) - 4).square().backward()
        optimiser.step()
    assert float(log_scale.detach().exp()) == pytest.approx(4, rel=1e-2)
