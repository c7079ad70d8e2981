# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses against their definitions, in value and gradient."""

import math

import pytest
import torch
from torch.nn import functional as F

from modeling_pixclip import contrastive_loss, cosine_distance, losses
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


def siglip_loss(images, texts, scale, bias, index):
    """-log sigmoid of each of all pairs, over the number of images."""
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            logit = scale * image @ text + bias
            total = total - F.logsigmoid(logit if index[i] == index[j] else -logit)
    return total / len(images)


@pytest.mark.parametrize("index", [None, [0, 1, 2, 3, 4, 5], [0, 1, 1, 2, 3, 1], [5] * 6])
@pytest.mark.parametrize("bias", [-10.0, 2.5])
def test_sigmoid_loss_is_siglips_over_all_pairs(index, bias):
    bias = torch.tensor([bias], dtype=torch.float64, requires_grad=True)

    def ours(images, texts, scale):
        text_index = None if index is None else torch.tensor(index)
        return contrastive_loss(images, texts, scale, text_index, loss_type="sigmoid", logit_bias=bias)

    def theirs(images, texts, scale):
        return siglip_loss(images, texts, scale, bias, range(6) if index is None else index).squeeze()

    found = [*values_and_gradients(ours), bias.grad]
    bias.grad = None
    assert_equal(found, [*values_and_gradients(theirs), bias.grad])


@pytest.mark.parametrize("gather", ["all_gather", "ring", "local"])
@pytest.mark.parametrize("plain_rows", [0, 2048])
def test_in_one_process_all_gathers_are_the_same(gather, plain_rows, monkeypatch):
    monkeypatch.setattr(losses, "PLAIN_ROWS", plain_rows)
    index = torch.tensor([0, 1, 1, 2, 3, 1])

    def loss(*args):
        return contrastive_loss(*args, gather=gather)

    assert_equal(values_and_gradients(loss, index), values_and_gradients(naive_loss, index))
    assert_equal(values_and_gradients(loss), values_and_gradients(clip_loss))


@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid"])
@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("index", [False, True])
def test_no_pair_and_one_pair_have_a_finite_loss_and_gradient(loss_type, rows, index):
    inputs = [one[:rows].detach().requires_grad_() for one in random_pairs()[:2]]
    inputs += [torch.tensor(value, requires_grad=True) for value in (100.0, -10.0)]
    text_index = torch.arange(rows) if index else None
    loss = contrastive_loss(*inputs[:3], text_index, loss_type=loss_type, logit_bias=inputs[3])
    used = inputs if loss_type == "sigmoid" else inputs[:3]
    gradients = torch.autograd.grad(loss, used)
    assert bool(torch.isfinite(loss)) and all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    if not rows or loss_type == "infonce":
        # There is nothing to tell a single pair from.
        assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
        assert all(not gradient.any() for gradient in gradients)


def test_options_that_are_unknown_or_missing_are_named():
    images, texts, scale = (one.detach() for one in random_pairs())
    with pytest.raises(ValueError, match="loss_type is 'softmax'; accepted: 'infonce', 'sigmoid'"):
        contrastive_loss(images, texts, scale, loss_type="softmax")
    with pytest.raises(ValueError, match="gather is 'none'; accepted: 'all_gather', 'ring', 'local'"):
        contrastive_loss(images, texts, scale, gather="none")
    with pytest.raises(ValueError, match="needs logit_bias"):
        contrastive_loss(images, texts, scale, loss_type="sigmoid")
    with pytest.raises(ValueError, match="5 text_embeds for 6 image_embeds"):
        contrastive_loss(images, texts[:5], scale)
    with pytest.raises(ValueError, match="text_index has 7 entries for 6 pairs"):
        contrastive_loss(images, texts, scale, torch.arange(7))
    with pytest.raises(ValueError, match="6 student rows for 5 teacher rows"):
        cosine_distance(images, texts[:5])


def test_cosine_distance_of_no_rows_is_0_with_a_graph():
    student = torch.zeros(0, 8, requires_grad=True)
    loss = cosine_distance(student, torch.zeros(0, 8))
    loss.backward()
    assert float(loss.detach()) == 0 and student.grad.shape == (0, 8)


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


@pytest.mark.parametrize("autocast", [False, True])
def test_cosine_distance_of_near_rows_is_exact_in_bfloat16(autocast):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(64, 32, generator=generator).bfloat16()
    student = (teacher.float() + 0.03 * torch.randn(64, 32, generator=generator)).bfloat16()
    expected = 1 - torch.nn.functional.cosine_similarity(student.double(), teacher.double(), dim=-1).mean()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = cosine_distance(student, teacher)
    assert found.dtype == torch.float32 and float(found) == pytest.approx(float(expected), rel=1e-4)
