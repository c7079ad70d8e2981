# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""RoIAlign and mask pooling against loops over samples and pixels."""

import math

import pytest
import torch

from modeling_pixclip import mask_pool, roi_align


MAPS = torch.tensor([1, 0, 1, 1, 0, 1])
# Inside, of whole cells, smaller than a cell, over the edge, outside, of no size.
BOXES = torch.tensor(
    [
        [1.3, 0.6, 4.9, 4.2],
        [1.0, 2.0, 3.0, 4.0],
        [2.2, 2.3, 2.5, 2.9],
        [-2.0, -1.5, 3.0, 8.0],
        [9.0, 9.0, 12.0, 11.0],
        [2.5, 1.5, 2.5, 1.5],
    ]
)


def random_maps(seed=0):
    return torch.randn(2, 3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def bilinear(plane, y, x):
    """Value of one channel at a point, cell centres at whole numbers; zero more than a cell outside."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return plane.new_zeros(())
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    upper = plane[top, left] * (1 - across) + plane[top, right] * across
    lower = plane[bottom, left] * (1 - across) + plane[bottom, right] * across
    return upper * (1 - down) + lower * down


def naive_roi_align(features, boxes, index, size, sampling_ratio, aligned):
    rows, columns = size
    pooled = []
    for box, owner in zip(boxes.tolist(), index.tolist()):
        x0, y0, x1, y1 = (value - 0.5 * aligned for value in box)
        width, height = x1 - x0, y1 - y0
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_height, bin_width = height / rows, width / columns
        count_y = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_height), 1)
        count_x = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_width), 1)
        for plane in features[owner]:
            for row in range(rows):
                for column in range(columns):
                    samples = [
                        bilinear(
                            plane,
                            y0 + row * bin_height + (i + 0.5) * bin_height / count_y,
                            x0 + column * bin_width + (j + 0.5) * bin_width / count_x,
                        )
                        for i in range(count_y)
                        for j in range(count_x)
                    ]
                    pooled.append(sum(samples) / len(samples))
    return torch.stack(pooled).reshape(len(boxes), features.shape[1], rows, columns)


@pytest.mark.parametrize("size", [1, 2, (3, 2)])
@pytest.mark.parametrize("sampling_ratio", [-1, 1, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_equals_the_loops_in_value_and_gradient(aligned, sampling_ratio, size):
    weights = torch.randn(6, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for pool in (roi_align, naive_roi_align):
        features = random_maps().requires_grad_()
        pair = (size, size) if isinstance(size, int) else size
        pooled = pool(features, BOXES, MAPS, size if pool is roi_align else pair, sampling_ratio, aligned)
        (pooled * weights[:, :, : pair[0], : pair[1]]).sum().backward()
        results.append((pooled.detach(), features.grad))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_a_box_of_whole_cells_is_their_mean():
    features = random_maps()
    pooled = roi_align(features, torch.tensor([[1.0, 2.0, 6.0, 5.0], [0.0, 0.0, 7.0, 5.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(pooled[0, :, 0, 0], features[0, :, 2:5, 1:6].mean((1, 2)))
    torch.testing.assert_close(pooled[1, :, 0, 0], features[1].mean((1, 2)))


def test_a_box_far_outside_is_zero():
    pooled = roi_align(random_maps(), torch.tensor([[20.0, 20.0, 30.0, 30.0]]), torch.tensor([0]))
    assert not pooled.any()


def test_boxes_do_not_disturb_each_other():
    """The number of samples of a box does not depend on the largest box of the batch."""
    features = random_maps()
    together = roi_align(features, BOXES, MAPS, 2)
    for row in range(len(BOXES)):
        torch.testing.assert_close(
            together[row : row + 1], roi_align(features, BOXES[row : row + 1], MAPS[row : row + 1], 2)
        )


def naive_mask_pool(features, masks, index):
    """Every pixel of the mask takes the vector of the cell that it lies in."""
    height, width = features.shape[-2:]
    pooled = []
    for mask, owner in zip(masks[:, 0], index.tolist()):
        tall, wide = mask.shape[0] // height, mask.shape[1] // width
        total = sum(
            mask[y, x] * features[owner, :, y // tall, x // wide]
            for y in range(mask.shape[0])
            for x in range(mask.shape[1])
        )
        pooled.append(total / mask.sum())
    return torch.stack(pooled)


@pytest.mark.parametrize("patch", [1, 4])
def test_mask_pool_equals_the_loops_in_value_and_gradient(patch):
    generator = torch.Generator().manual_seed(2)
    soft = torch.rand(3, 1, 5 * patch, 7 * patch, generator=generator)
    masks = torch.cat([soft, (soft > 0.7).float()])
    weights = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    results = []
    for pool in (mask_pool, naive_mask_pool):
        features = random_maps().requires_grad_()
        pooled = pool(features, masks, MAPS)
        (pooled * weights).sum().backward()
        results.append((pooled.detach(), features.grad))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_a_mask_of_one_pixel_picks_its_cell():
    mask = torch.zeros(1, 1, 20, 28)
    mask[0, 0, 9, 27] = 1
    features = random_maps()
    torch.testing.assert_close(mask_pool(features, mask, torch.tensor([1]))[0], features[1, :, 2, 6])


def test_masks_that_cover_nothing_are_named():
    masks = torch.ones(4, 1, 5, 7)
    masks[[1, 3]] = 0
    with pytest.raises(ValueError, match=r"masks \[1, 3\] cover nothing"):
        mask_pool(random_maps(), masks, torch.tensor([0, 0, 1, 1]))


def test_no_regions_give_no_rows():
    nothing = torch.zeros(0, dtype=torch.int64)
    features = random_maps()
    assert roi_align(features, torch.zeros(0, 4), nothing, (2, 3)).shape == (0, 3, 2, 3)
    assert mask_pool(features, torch.zeros(0, 1, 5, 7), nothing).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_keep_the_dtype_of_the_map(dtype):
    features = random_maps().to(dtype)
    exact = features.double()
    masks = torch.ones(6, 1, 5, 7)
    for pooled, expected in (
        (roi_align(features, BOXES, MAPS), roi_align(exact, BOXES, MAPS)),
        (mask_pool(features, masks, MAPS), mask_pool(exact, masks, MAPS)),
    ):
        assert pooled.dtype == dtype
        torch.testing.assert_close(pooled.double(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("pool", [roi_align, mask_pool])
def test_nothing_to_pool_has_a_graph(pool):
    """FSDP waits for the backward pass of every process, also of one whose images have no regions."""
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    regions = torch.zeros(0, 4) if pool is roi_align else torch.zeros(0, 1, 8, 8)
    pooled = pool(features, regions, torch.zeros(0, dtype=torch.long))
    assert pooled.shape[:2] == (0, 3)
    pooled.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))
