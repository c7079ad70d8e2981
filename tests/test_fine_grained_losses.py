# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses on near negatives against loops over regions and texts, in value and gradient."""

import pytest
import torch
from torch.nn import functional as F

from modeling_pixclip import fine_grained_losses, hard_negative_loss, ranking_margin_loss, text_intra_loss


def random_rows(*rows, width=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        F.normalize(torch.randn(number, width, dtype=torch.float64, generator=generator), dim=-1)
        .to(dtype)
        .requires_grad_()
        for number in rows
    ]


def assert_equal_with_gradients(loss, expected, inputs, **tolerance):
    torch.testing.assert_close(loss.detach(), expected.detach(), **tolerance)
    for one, other in zip(
        torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs, allow_unused=True), strict=True
    ):
        other = torch.zeros_like(one) if other is None else other
        torch.testing.assert_close(one, other, **tolerance)


def hard_negatives_by_loop(regions, positives, negatives, owners, scale):
    losses = []
    for row, region in enumerate(regions):
        own = [negative for negative, owner in zip(negatives, owners) if owner == row]
        if own:
            logits = scale * torch.stack([positives[row], *own]) @ region
            losses.append(-logits.log_softmax(0)[0])
    return sum(losses) / len(losses)


# Negatives of each region, in mixed order: none, one, many.
OWNERS = {
    "ragged": [3, 0, 3, 3, 5, 0, 3, 3, 3, 2],
    "ten each": [row for row in range(6) for _ in range(10)],
    "one of one": [4],
}


@pytest.mark.parametrize("owners", OWNERS.values(), ids=list(OWNERS))
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_hard_negatives(owners, scale):
    inputs = [*random_rows(6, 6, len(owners)), torch.tensor(scale, dtype=torch.float64, requires_grad=True)]
    owners = torch.tensor(owners)
    loss = hard_negative_loss(*inputs[:3], owners, inputs[3])
    assert_equal_with_gradients(loss, hard_negatives_by_loop(*inputs[:3], owners, inputs[3]), inputs)


def test_hard_negatives_do_not_overflow():
    region = torch.tensor([[1.0, 0.0]], requires_grad=True)
    for cosine in (1.0, -1.0):
        scale = torch.tensor(1000.0, requires_grad=True)
        positive, negative = torch.tensor([[-cosine, 0.0]]), torch.tensor([[cosine, 0.0]])
        loss = hard_negative_loss(region, positive, negative, torch.tensor([0]), scale)
        gradients = torch.autograd.grad(loss, (region, scale))
        assert float(loss.detach()) == (2000 if cosine > 0 else 0)
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def test_a_region_without_negatives_has_no_gradient():
    regions, positives, negatives = random_rows(3, 3, 2)
    loss = hard_negative_loss(regions, positives, negatives, torch.tensor([2, 2]), torch.tensor(10.0))
    gradient = torch.autograd.grad(loss, regions)[0]
    assert not gradient[:2].any() and gradient[2].any()


def ranking_by_loop(regions, positives, negatives, owners, margin):
    gaps = [regions[owner] @ (positives[owner] - negative) for negative, owner in zip(negatives, owners.tolist())]
    losses = [F.relu(margin - gap) for gap in gaps]
    return sum(losses) / len(losses), sum(float(gap.detach()) for gap in gaps) / len(gaps)


@pytest.mark.parametrize("owners", OWNERS.values(), ids=list(OWNERS))
@pytest.mark.parametrize("margin", [0.0, 0.4])
def test_ranking_margin(owners, margin):
    inputs = random_rows(6, 6, len(owners), seed=3)
    owners = torch.tensor(owners)
    expected, gap = ranking_by_loop(*inputs, owners, margin)
    for given in (margin, torch.tensor(margin), torch.tensor([margin], dtype=torch.float64)):
        loss, new = ranking_margin_loss(*inputs, owners, given)
        assert float(new) == pytest.approx(max(gap, 0), rel=1e-9)
        assert new.shape == torch.as_tensor(given).shape and not new.requires_grad
    loss, _ = ranking_margin_loss(*inputs, owners, margin)
    assert_equal_with_gradients(loss, expected, inputs)


def test_the_margin_follows_the_model_and_is_never_negative():
    regions, positives = torch.eye(2), torch.eye(2)
    near, far = torch.tensor([[0.8, 0.6]]), torch.tensor([[0.0, 1.0]])
    owner = torch.tensor([0])
    loss, margin = ranking_margin_loss(regions, positives, near, owner, 0.0)
    assert (float(loss), round(float(margin), 6)) == (0, 0.2)
    # As far ahead as before: enough. Farther: enough. Less far: a loss of what lacks.
    assert float(ranking_margin_loss(regions, positives, near, owner, margin)[0]) == pytest.approx(0, abs=1e-6)
    assert float(ranking_margin_loss(regions, positives, far, owner, margin)[0]) == 0
    assert float(ranking_margin_loss(regions, positives, near, owner, 0.5)[0]) == pytest.approx(0.3)
    # A negative that wins.
    loss, margin = ranking_margin_loss(regions[:1], far, near, owner, 0.0)
    assert float(loss) == pytest.approx(0.8) and float(margin) == 0


def text_intra_by_loop(embeds, index, num_neighbours, max_similarity):
    first = [row for row in range(len(index)) if index[row] not in index[:row]]
    losses = []
    for row in first:
        similarities = [embeds[row] @ embeds[other] for other in first if other != row]
        similarities = [one for one in similarities if float(one.detach()) <= max_similarity]
        nearest = sorted(similarities, key=lambda one: -float(one.detach()))[:num_neighbours]
        if nearest:
            losses.append(torch.stack(nearest).exp().sum().log())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("num_neighbours", [1, 3, 10, 100])
@pytest.mark.parametrize("max_similarity", [0.95, 0.2, -0.3])
@pytest.mark.parametrize("distinct", [30, 12])
def test_text_intra(num_neighbours, max_similarity, distinct, monkeypatch):
    # Several blocks of rows.
    monkeypatch.setattr(fine_grained_losses, "_NEIGHBOUR_ROWS", 7)
    (embeds,) = random_rows(30)
    index = (torch.arange(30) * 7 % distinct - (1 << 62)).tolist()
    loss = text_intra_loss(embeds, torch.tensor(index), num_neighbours, max_similarity)
    assert_equal_with_gradients(loss, text_intra_by_loop(embeds, index, num_neighbours, max_similarity), [embeds])


def test_texts_that_say_the_same_do_not_repel():
    """Near copies under other numbers, and copies under the same one."""
    embeds = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.0, 1.0]]), dim=-1).requires_grad_()
    loss = text_intra_loss(embeds[:2], torch.tensor([0, 1]))
    assert float(loss.detach()) == 0 and not torch.autograd.grad(loss, embeds)[0].any()
    loss = text_intra_loss(embeds[2:], torch.tensor([4, 4]), max_similarity=2.0)
    assert float(loss.detach()) == 0 and not torch.autograd.grad(loss, embeds)[0].any()
    loss = text_intra_loss(embeds, torch.tensor([0, 1, 4, 4]))
    assert torch.autograd.grad(loss, embeds)[0][:3].abs().amax(-1).amin() > 0


@pytest.mark.parametrize("regions", [0, 1, 3])
def test_without_negatives_the_loss_is_0_with_a_graph(regions):
    inputs = [*random_rows(regions, regions, 0), torch.tensor(10.0, requires_grad=True)]
    owners = torch.zeros(0, dtype=torch.int64)
    margin = torch.tensor(0.25)
    ranking, new = ranking_margin_loss(*inputs[:3], owners, margin)
    hard = hard_negative_loss(*inputs[:3], owners, inputs[3])
    intra = text_intra_loss(inputs[0][:1], torch.arange(len(inputs[0][:1])))
    for loss, leaves in ((ranking, inputs[:3]), (hard, inputs), (intra, inputs[:1])):
        assert float(loss.detach()) == 0
        for leaf, gradient in zip(leaves, torch.autograd.grad(loss, leaves, retain_graph=True), strict=True):
            torch.testing.assert_close(gradient, torch.zeros_like(leaf))
    assert float(new) == 0.25


def test_bfloat16_is_computed_in_float32():
    regions, positives, negatives = random_rows(6, 6, 10, dtype=torch.bfloat16)
    owners = torch.tensor(OWNERS["ragged"])
    floats = [one.detach().float() for one in (regions, positives, negatives)]
    index = torch.arange(6)
    with torch.autocast("cpu", torch.bfloat16):
        found = [
            hard_negative_loss(regions, positives, negatives, owners, torch.tensor(50.0)),
            ranking_margin_loss(regions, positives, negatives, owners, 0.3)[0],
            text_intra_loss(positives, index),
        ]
    expected = [
        hard_negative_loss(*floats, owners, torch.tensor(50.0)),
        ranking_margin_loss(*floats, owners, 0.3)[0],
        text_intra_loss(floats[1], index),
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_rows_that_do_not_fit_are_named():
    regions, positives, negatives = random_rows(2, 2, 3)
    for loss in (hard_negative_loss, ranking_margin_loss):
        with pytest.raises(ValueError, match=r"names rows \[-1, 2\], and there are 2 regions; accepted: 0..1"):
            loss(regions, positives, negatives, torch.tensor([-1, 0, 2]), torch.tensor(1.0))
        with pytest.raises(ValueError, match="has 2 entries for 3 negatives"):
            loss(regions, positives, negatives, torch.tensor([0, 1]), torch.tensor(1.0))
        with pytest.raises(ValueError, match="1 positive_embeds for 2 regions"):
            loss(regions, positives[:1], negatives, torch.tensor([0, 1, 1]), torch.tensor(1.0))
    with pytest.raises(ValueError, match="has 3 entries for 2 texts"):
        text_intra_loss(regions, torch.arange(3))
    with pytest.raises(ValueError, match="num_neighbours is 0"):
        text_intra_loss(regions, torch.arange(2), num_neighbours=0)
