# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Several processes, each with its own images, have the loss and the gradients of one process with all of them."""

import pytest
import torch
from distributed_for_tests import run_processes
from objective_batches import as_double, ragged_batch, take_images
from tiny_models import EVA02, pixclip_config, randomise
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from modeling_pixclip import PixCLIPForPreTraining, get_objective_preset
from modeling_pixclip.configuration_pixclip import OBJECTIVE_TERMS


NONE = {f"{term}_weight": 0.0 for term in OBJECTIVE_TERMS}
CASES = {term: {**NONE, f"{term}_weight": 1.0} for term in OBJECTIVE_TERMS}
# A term of texts alone; there is no objective without images.
CASES["text_intra"]["global_weight"] = 1.0
CASES["local-text"] = {**CASES["local"], "local_target": "text"}
CASES["plain"] = {**CASES["global"], "multi_positive": False}
CASES["everything"] = {**get_objective_preset("pixclip+fg"), "text_intra_weight": 0.1, "ranking_margin_weight": 0.4}
CASES["everything-ring"] = {**CASES["everything"], "gather": "ring"}
CASES["everything-sigmoid"] = {**CASES["everything"], "loss_type": "sigmoid", "logit_bias_init_value": -3.0}
CASES["everything-sigmoid-ring"] = {**CASES["everything-sigmoid"], "gather": "ring"}
# The last process of four has no region; the third has the image of three.
SHARES = {2: [[0, 1, 4], [2, 3, 5]], 4: [[0, 5], [1, 2], [4], [3]]}


def tiny_model(fields):
    # Double, so that what is left of a difference is an error and not rounding.
    return randomise(PixCLIPForPreTraining(pixclip_config(vision=EVA02, **fields))).double().train()


def wrap(model, how):
    if how == "ddp":
        # An objective of one term leaves the parameters of others alone.
        return DistributedDataParallel(model, find_unused_parameters=len(model.config.term_weights) == 1)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for layer in (*model.vision_model.encoder.layers, *model.text_model.backbone.layers):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def losses_and_gradients(cases, how=None, shares=None):
    """Loss, terms and gradients of two steps (the ranking margin is 0 in the first) for each case."""
    batch = as_double(ragged_batch())
    if shares is not None:
        batch = take_images(batch, shares[torch.distributed.get_rank()])
    results = {}
    for case in cases:
        model = tiny_model(CASES[case])
        wrapped = model if how is None else wrap(model, how)
        for _ in range(2):
            model.zero_grad()
            outputs = wrapped(**batch)
            outputs.loss.backward()
        gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        results[case] = {
            "loss": outputs.loss.detach(),
            "terms": outputs.loss_terms,
            # A parameter without a use has no gradient here and one of zeros there.
            "gradients": {name: value for name, value in gradients.items() if value.abs().max() > 0},
        }
    return results


def check(processes, how, cases):
    expected = losses_and_gradients(cases)
    for rank, results in enumerate(
        run_processes(losses_and_gradients, cases, how, SHARES[processes], processes=processes, timeout=300)
    ):
        for case in cases:
            found, right = results[case], expected[case]
            where = f"{case}, process {rank}"
            assert float(found["loss"]) == pytest.approx(float(right["loss"]), rel=1e-6), where
            # A process without regions logs the term as the others do.
            assert found["terms"].keys() == right["terms"].keys(), where
            for name, value in right["terms"].items():
                assert float(found["terms"][name]) == pytest.approx(float(value), rel=1e-6), (where, name)
            assert found["gradients"].keys() == right["gradients"].keys(), where
            for name, gradient in right["gradients"].items():
                error = (found["gradients"][name] - gradient).norm() / gradient.norm()
                assert error <= 1e-6, (where, name, float(error))


@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(how):
    check(2, how, ["everything", "everything-ring", "everything-sigmoid"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
@pytest.mark.parametrize("processes", [2, 4])
def test_every_term_in_several_processes_is_that_of_one(processes, how):
    check(processes, how, list(CASES))


def test_local_contrast_stays_in_the_process():
    """FG-CLIP's own form of the region term: negatives of the same process only."""
    shares = SHARES[2]
    fields = {**CASES["region"], "gather": "local"}
    results = run_processes(local_loss, fields, shares, processes=2)
    losses, counts = zip(*(local_loss(fields, None, images) for images in shares))
    expected = sum(loss * count for loss, count in zip(losses, counts)) / sum(counts)
    for loss, _ in results:
        assert loss == pytest.approx(expected, rel=1e-6)


def local_loss(fields, shares, images=None):
    images = shares[torch.distributed.get_rank()] if images is None else images
    batch = take_images(as_double(ragged_batch()), images)
    return float(tiny_model(fields)(**batch).loss.detach()), len(batch["region_image_index"])


def test_a_term_that_one_process_lacks_is_an_error_in_all():
    messages = run_processes(message_of_lacking_term, SHARES[2], processes=2, timeout=60)
    assert messages[0] == messages[1]
    assert "1 of 2 processes have the inputs of the term 'hard_negative' (hard_negative_text_index" in messages[0]


def message_of_lacking_term(shares):
    rank = torch.distributed.get_rank()
    batch = take_images(as_double(ragged_batch()), shares[rank])
    if rank == 1:
        del batch["hard_negative_text_index"]
    try:
        tiny_model(CASES["everything"])(**batch)
    except ValueError as error:
        return str(error)
