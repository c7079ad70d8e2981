# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Losses over several real processes equal those of one process on the joined batch, in value and gradient."""

import pytest
import torch
import torch.distributed as dist
from distributed_for_tests import mean_over_processes, run_processes
from test_tiled_contrastive_loss import LargestTensor
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from modeling_pixclip import (
    contrastive_loss,
    cosine_distance,
    hard_negative_loss,
    losses,
    ranking_margin_loss,
    text_intra_loss,
    tiled_contrastive_loss,
)
from modeling_pixclip.distributed_features import (
    gather_rows,
    global_count,
    global_mean,
    process_rank,
    row_counts,
    world_size,
)


WIDTH = 6
GATHERED = [
    (kind, gather, shared) for kind in losses.LOSS_TYPES for gather in losses.GATHERS for shared in (False, True)
]
TERMS = [*GATHERED, "cosine_distance", "hard_negative", "text_intra", "ranking_margin"]


class Towers(nn.Module):
    """The parameters that all processes have: what their gradients come to is compared."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.image, self.text = (
            nn.Parameter(torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator)) for _ in range(2)
        )
        self.log_scale = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor([-2.0], dtype=torch.float64))

    def forward(self, batch, term):
        images, texts, negatives = (
            F.normalize(features @ weight, dim=-1)
            for features, weight in (
                (batch["images"], self.image),
                (batch["texts"], self.text),
                (batch["negatives"], self.text),
            )
        )
        scale = self.log_scale.exp()
        if term == "cosine_distance":
            return cosine_distance(images, texts)
        if term == "hard_negative":
            return hard_negative_loss(images, texts, negatives, batch["owners"], scale)
        if term == "text_intra":
            return text_intra_loss(texts, batch["ids"], num_neighbours=3)
        if term == "ranking_margin":
            loss, margin = ranking_margin_loss(images, texts, negatives, batch["owners"], torch.tensor(0.3).double())
            return loss + margin
        loss_type, gather, shared = term
        ids = batch["ids"] if shared else None
        return contrastive_loss(images, texts, scale, ids, loss_type=loss_type, logit_bias=self.bias, gather=gather)


def joined_batch(rows):
    """Texts 0, 1, 2, 0, 1, 2, ... so that each occurs in several processes; 0, 1, 2, 3, 0, ... negatives a region."""
    generator = torch.Generator().manual_seed(rows)
    owners = torch.tensor([row for row in range(rows) for _ in range(row % 4)], dtype=torch.int64)
    ids = torch.arange(rows) % 3 - (1 << 61)
    distinct = torch.randn(3, WIDTH, dtype=torch.float64, generator=generator)
    return {
        "images": torch.randn(rows, WIDTH, dtype=torch.float64, generator=generator),
        "texts": distinct[torch.arange(rows) % 3],
        "ids": ids,
        "negatives": torch.randn(len(owners), WIDTH, dtype=torch.float64, generator=generator),
        "owners": owners,
    }


def part_of(batch, start, rows):
    here = (batch["owners"] >= start) & (batch["owners"] < start + rows)
    part = {name: batch[name][start : start + rows] for name in ("images", "texts", "ids")}
    return {**part, "negatives": batch["negatives"][here], "owners": batch["owners"][here] - start}


def value_and_gradients(batch, term):
    towers = Towers()
    loss = towers(batch, term)
    # The weight of a term, and what the Trainer divides by.
    (0.7 * loss).backward()
    return [loss.detach(), *(zeros_if_none(one) for one in towers.parameters())]


def zeros_if_none(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def in_this_process(splits, tile):
    tiled_contrastive_loss.CPU_TILE = tile
    # With "local" one process may hold its logits whole while another takes tiles.
    losses.PLAIN_ROWS = 3
    results = {}
    for split in splits:
        part = part_of(joined_batch(sum(split)), sum(split[: process_rank()]), split[process_rank()])
        for term in TERMS:
            results[split, term] = value_and_gradients(part, term)
    return results


def expected(split, term):
    if "local" not in term:
        return value_and_gradients(joined_batch(sum(split)), term)
    total = None
    for rank, rows in enumerate(split):
        part = value_and_gradients(part_of(joined_batch(sum(split)), sum(split[:rank]), rows), term)
        weighted = [one * rows / max(1, sum(split)) for one in part]
        total = weighted if total is None else [one + other for one, other in zip(total, weighted)]
    return total


def assert_as_one_process(results):
    for key in results[0]:
        # Each process has the value; gradients are averaged over them.
        for result in results:
            torch.testing.assert_close(result[key][0], results[0][key][0], rtol=0, atol=0)
        for one, other in zip(mean_over_processes([result[key] for result in results]), expected(*key), strict=True):
            assert torch.isfinite(one).all()
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=lambda text: f"{key}: {text}")


TWO = [(5, 4), (6, 0), (0, 2), (1, 1), (1, 0), (0, 0)]
FOUR = [(4, 0, 7, 2), (3, 3, 3, 3), (0, 0, 0, 5), (0, 1, 0, 0), (0, 0, 0, 0), (13, 1, 1, 6)]


def test_two_processes_are_as_one():
    results = run_processes(in_this_process, TWO, 3)
    assert_as_one_process(results)
    # The cases say something: losses and gradients of the first split are not 0.
    for term in TERMS:
        assert all(float(one.abs().max()) > 1e-3 for one in results[0][TWO[0], term][:1])


@pytest.mark.slow
@pytest.mark.parametrize("tile", [1, 4, 1024])
def test_four_processes_are_as_one(tile):
    assert_as_one_process(run_processes(in_this_process, FOUR, tile, processes=4, timeout=400))


def large_batch(rows):
    generator = torch.Generator().manual_seed(0)
    embeds = [F.normalize(torch.randn(rows, 64, generator=generator), dim=-1) for _ in range(2)]
    return *embeds, torch.randint(rows // 3, (rows,), generator=generator)


def float32_in_this_process(split):
    images, texts, ids = (one.split(split)[process_rank()] for one in large_batch(sum(split)))
    results = {}
    for gather in ("all_gather", "ring"):
        leaves = [one.clone().requires_grad_() for one in (images, texts, torch.tensor(14.3))]
        loss = contrastive_loss(*leaves, ids, gather=gather)
        loss.backward()
        results[gather] = [loss.detach(), *(one.grad for one in leaves)]
    return results


def test_float32_agrees_to_a_millionth():
    split = (150, 90)
    images, texts, ids = large_batch(sum(split))
    leaves = [one.clone().requires_grad_() for one in (images, texts, torch.tensor(14.3))]
    loss = contrastive_loss(*leaves, ids)
    loss.backward()
    results = run_processes(float32_in_this_process, split)
    for gather in ("all_gather", "ring"):
        values, image, text, scale = zip(*(result[gather] for result in results))
        # A row lies in one process only; DDP's mean over them divides its gradient by their number.
        found = [values[0], torch.cat(image) / 2, torch.cat(text) / 2, sum(scale) / 2]
        for one, other in zip(found, [loss.detach(), *(leaf.grad for leaf in leaves)], strict=True):
            assert float((one - other).norm()) <= 1e-6 * float(other.norm())


def largest_tensors(rows, width, tile):
    tiled_contrastive_loss.CPU_TILE = tile
    largest = {}
    for loss_type in losses.LOSS_TYPES:
        for gather in ("all_gather", "ring"):
            leaves = [F.normalize(torch.randn(rows, width), dim=-1).requires_grad_() for _ in range(2)]
            scales = [torch.tensor(value, requires_grad=True) for value in (10.0, -3.0)]
            ids = torch.arange(rows) + rows * process_rank()
            with LargestTensor() as mode:
                loss = contrastive_loss(
                    *leaves, scales[0], ids, loss_type=loss_type, logit_bias=scales[1], gather=gather
                )
                loss.backward()
            largest[loss_type, gather] = mode.elements
    return largest


def assert_a_ring_holds_little(processes):
    rows, width, tile = 128, 8, 16
    for result in run_processes(largest_tensors, rows, width, tile, processes=processes):
        for loss_type in losses.LOSS_TYPES:
            assert result[loss_type, "ring"] <= max(rows * width, 2 * tile * tile) < rows * rows / 8
            # The other way holds all texts, and neither the logits.
            assert result[loss_type, "all_gather"] == processes * rows * width


def test_a_ring_holds_no_more_than_its_own_rows_and_a_tile():
    assert_a_ring_holds_little(processes=2)


@pytest.mark.slow
def test_a_ring_of_four_holds_as_little():
    assert_a_ring_holds_little(processes=4)


def features_in_this_process():
    rank, size = process_rank(), world_size()
    values = torch.arange(3.0 * (1 - rank), requires_grad=True)
    joined = gather_rows(values, row_counts(len(values)))
    (joined.sum() * (rank + 1)).backward()
    mean = global_mean(values.detach().bfloat16())
    return rank, size, joined.detach(), values.grad, mean, global_count([rank + 1, 5]), row_counts(7 + rank)


def test_gathers_and_sums():
    for rank, result in enumerate(run_processes(features_in_this_process)):
        number, size, joined, gradient, mean, counts, rows = result
        assert (number, size) == (rank, 2)
        assert joined.tolist() == [0, 1, 2]
        # From both processes: 1 and 2.
        assert gradient.tolist() == [3.0] * 3 * (1 - rank)
        assert float(mean) == 1 and mean.dtype == torch.float32
        assert counts.tolist() == [3, 10]
        assert rows == [7, 8]


def under(wrapper, split):
    """The gradients that DDP or FSDP2 makes, whole, in each process."""
    part = part_of(joined_batch(sum(split)), sum(split[: process_rank()]), split[process_rank()])
    results = {}
    for term in TERMS:
        towers = Towers()
        if wrapper == "ddp":
            # Each term uses some of the parameters only.
            model = nn.parallel.DistributedDataParallel(towers, find_unused_parameters=True)
        else:
            model = fully_shard(towers, mesh=init_device_mesh("cpu", (world_size(),)))
        loss = model(part, term)
        (0.7 * loss).backward()
        gradients = (zeros_if_none(one) for one in towers.parameters())
        gradients = [one.full_tensor() if isinstance(one, DTensor) else one for one in gradients]
        results[split, term] = [loss.detach(), *gradients]
    return results


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
@pytest.mark.parametrize("split", [(5, 4), pytest.param((6, 0), marks=pytest.mark.slow)])
def test_data_parallel_training_is_as_one_process(wrapper, split):
    results = run_processes(under, wrapper, split)
    assert_as_one_process(results)
    for result in results:
        for key, values in result.items():
            for one, other in zip(values, results[0][key], strict=True):
                assert torch.equal(one, other), key


def scale_gradients(own):
    gradients = []
    for start in (1.0, 3.0):
        log_scale = torch.tensor([start], requires_grad=True)
        scale = losses.InverseTemperature.apply(log_scale, 2.0)
        (own[process_rank()] * scale).sum().backward()
        gradients.append(log_scale.grad / scale.detach())
    return gradients


def test_the_mean_gradient_decides_about_a_scale_above_its_bound():
    for own in ((3.0, -1.0), (-3.0, 1.0)):
        below, above = mean_over_processes(run_processes(scale_gradients, own))
        assert float(below) == pytest.approx(sum(own) / 2)
        assert float(above) == pytest.approx(max(0.0, sum(own) / 2))


def failing(kind):
    if kind == "raise" and process_rank() == 1:
        raise RuntimeError("process 1 does not like this")
    dist.barrier()


def test_a_failed_process_ends_all_and_is_named():
    # The other one fails in turn, for its peer has gone, and may be seen first.
    with pytest.raises(AssertionError, match="process [01] of 2 ended with exit code 1(.|\n)*does not like this"):
        run_processes(failing, "raise")
