# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Contrastive losses made in tiles equal those made of whole logits, in value, gradient and much less memory."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling_pixclip import contrastive_loss, losses
from modeling_pixclip.tiled_contrastive_loss import tiled_contrastive_sum


class LargestTensor(TorchDispatchMode):
    """Elements of the largest storage that an operation has made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return result


def random_pairs(rows, width=16, scale=10.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images, texts = (
        F.normalize(torch.randn(rows, width, dtype=torch.float64, generator=generator), dim=-1).to(dtype)
        for _ in range(2)
    )
    numbers = torch.tensor(scale), torch.tensor(-3.0)
    return [value.requires_grad_() for value in (images, texts, *(number.to(dtype) for number in numbers))]


def whole_loss(images, texts, scale, bias, index, loss_type):
    """Both losses by their definitions, on whole logits."""
    logits = scale * images @ texts.T
    same = index[:, None] == index[None, :]
    if loss_type == "sigmoid":
        logits = logits + bias
        return -(F.logsigmoid(logits)[same].sum() + F.logsigmoid(-logits)[~same].sum()) / len(logits)
    share = same.to(logits.dtype) / same.sum(-1, keepdim=True)
    return -((logits.log_softmax(1) * share).sum() + (logits.log_softmax(0) * share).sum()) / (2 * len(logits))


def tiled_loss(images, texts, scale, bias, index, loss_type, tile=7):
    total = tiled_contrastive_sum(
        images, texts, scale, index, [len(images)], loss_type=loss_type, logit_bias=bias, tile=tile
    )
    return total / max(1, len(images))


def values_and_gradients(loss, inputs, *args):
    value = loss(*inputs, *args)
    # A constant factor, as the weight of a term is one.
    gradients = torch.autograd.grad(3 * value, inputs, allow_unused=True)
    return value.detach(), *gradients


def assert_close(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        if other is None:
            assert one is None
        else:
            assert one.dtype == other.dtype
            assert float((one - other).norm()) <= tolerance * float(other.norm()), (one, other)


INDICES = {
    "all differ": lambda rows: torch.arange(rows).flip(0),
    "some equal": lambda rows: torch.arange(rows) % 5 * torch.arange(rows).remainder(3).clamp(max=1) - (1 << 62),
    "all equal": lambda rows: torch.full((rows,), -7),
}


@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid"])
@pytest.mark.parametrize("kind", INDICES)
@pytest.mark.parametrize("rows, tile", [(1, 7), (7, 7), (20, 7), (23, 5), (6, 1), (5, 64)])
def test_the_definition_in_value_and_gradient(rows, tile, kind, loss_type):
    inputs, index = random_pairs(rows), INDICES[kind](rows)
    found = values_and_gradients(tiled_loss, inputs, index, loss_type, tile)
    expected = values_and_gradients(whole_loss, inputs, index, loss_type)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize("kind", ["all differ", "some equal"])
@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid"])
def test_float32_is_as_the_plain_loss(loss_type, kind, scale):
    inputs, index = random_pairs(300, 128, scale, torch.float32), INDICES[kind](300)
    assert len(inputs[0]) <= losses.PLAIN_ROWS

    def plain(images, texts, scale, bias, index, loss_type):
        return contrastive_loss(images, texts, scale, index, loss_type=loss_type, logit_bias=bias)

    found = values_and_gradients(tiled_loss, inputs, index, loss_type, 128)
    assert_close(found, values_and_gradients(plain, inputs, index, loss_type), 1e-6)


@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid"])
def test_accumulates_in_float32_under_autocast(loss_type):
    """Embeddings that bfloat16 can hold, under autocast: the gradient is the one without it."""
    inputs, index = random_pairs(300, 128, 14.3, torch.bfloat16), INDICES["some equal"](300)
    inputs = [value.detach().float().requires_grad_() for value in inputs]
    expected = values_and_gradients(tiled_loss, inputs, index, loss_type, 128)
    with torch.autocast("cpu", torch.bfloat16):
        found = values_and_gradients(tiled_loss, inputs, index, loss_type, 128)
    assert_close(found, expected, 1e-7)
    assert_close(found, values_and_gradients(whole_loss, inputs, index, loss_type), 1e-6)


@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid"])
def test_bfloat16_costs_its_last_rounding_and_no_more(loss_type):
    inputs, index = random_pairs(300, 128, 14.3, torch.bfloat16), INDICES["some equal"](300)
    value, *gradients = values_and_gradients(tiled_loss, inputs, index, loss_type, 128)
    doubles = [one.detach().double().requires_grad_() for one in inputs]
    expected, *exact = values_and_gradients(whole_loss, doubles, index, loss_type)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    for one, other in zip(gradients, exact, strict=True):
        if other is None:
            continue
        assert one.dtype == torch.bfloat16
        # Half a unit of the last of 8 bits, and what float32 adds to that.
        atol = 1e-6 * float(other.abs().max())
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=atol)


def test_logits_far_apart_do_not_leave_the_range_of_float32():
    """Rows and columns whose every logit is hundreds below others' keep their gradient."""
    images, texts, _, bias = random_pairs(30, 8, dtype=torch.float32)
    images, texts = images.detach().clone(), texts.detach().clone()
    images[4], texts[9] = images[4] * 5, texts[9] * 6
    texts[12] = -images[:3].sum(0)
    inputs = [images.requires_grad_(), texts.requires_grad_(), torch.tensor(100.0, requires_grad=True), bias]
    index = torch.arange(30)
    assert float((inputs[2] * images @ texts.T).detach().abs().max()) > 300
    doubles = [one.detach().double().requires_grad_() for one in inputs]
    found = values_and_gradients(tiled_loss, inputs, index, "infonce", 8)
    expected = values_and_gradients(whole_loss, doubles, index, "infonce")
    for one, other in zip(found, expected, strict=True):
        if other is not None:
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid"])
def test_above_the_threshold_contrastive_loss_takes_tiles(loss_type, monkeypatch):
    inputs = random_pairs(40)
    options = {"loss_type": loss_type, "logit_bias": inputs[3]}

    def loss(images, texts, scale, bias, index=None):
        return contrastive_loss(images, texts, scale, index, **options)

    largest = {}
    for rows in (40, 39):
        monkeypatch.setattr(losses, "PLAIN_ROWS", rows)
        monkeypatch.setattr("modeling_pixclip.tiled_contrastive_loss.CPU_TILE", 8)
        with LargestTensor() as mode:
            values_and_gradients(loss, inputs)
        largest[rows] = mode.elements
        for index in (None, INDICES["some equal"](40)):
            found = values_and_gradients(loss, inputs, index)
            whole = torch.arange(40) if index is None else index
            assert_close(found, values_and_gradients(whole_loss, inputs, whole, loss_type), 1e-12)
    # Whole logits above, no more than the embeddings below.
    assert largest == {40: 1600, 39: 640}


@pytest.mark.parametrize("loss_type", ["infonce", "sigmoid"])
@pytest.mark.parametrize("tiled", [False, True])
def test_no_pairs_are_a_loss_of_0_with_a_graph(loss_type, tiled, monkeypatch):
    if tiled:
        monkeypatch.setattr(losses, "PLAIN_ROWS", -1)
    inputs = random_pairs(0)
    loss = contrastive_loss(*inputs[:3], torch.zeros(0, dtype=torch.int64), loss_type=loss_type, logit_bias=inputs[3])
    loss.backward()
    assert float(loss.detach()) == 0
    assert float(inputs[2].grad) == 0
    assert inputs[0].grad.shape == inputs[1].grad.shape == (0, 16)


def test_a_gradient_of_one_side_only():
    images, texts, scale, _ = random_pairs(20)
    expected = torch.autograd.grad(tiled_loss(images, texts, scale, None, torch.arange(20), "infonce"), images)[0]
    loss = tiled_loss(images, texts.detach(), scale.detach(), None, torch.arange(20), "infonce")
    torch.testing.assert_close(torch.autograd.grad(loss, images)[0], expected)


@pytest.mark.slow
def test_16384_pairs_of_512_are_as_the_usual_loss():
    """The size of the claim; the memory and time of it are measured by benchmarks/bench_contrastive_loss.py."""
    inputs = random_pairs(16384, 512, 14.3, torch.float32)
    with LargestTensor() as mode:
        found = values_and_gradients(lambda *args: contrastive_loss(*args[:3]), inputs)
    assert mode.elements <= 16384 * 512

    def usual(images, texts, scale, bias):
        targets = torch.arange(len(images))
        logits = scale * images @ texts.T, scale * texts @ images.T
        return sum(F.cross_entropy(one, targets) for one in logits) / 2

    assert_close(found, values_and_gradients(usual, inputs), 1e-6)
