# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from processing_pixclip import as_box_list, as_mask_list, box_to_mask, check_box, encode_rle, mask_to_box, regions


HEIGHT, WIDTH = 6, 9
SQUARE = np.zeros((HEIGHT, WIDTH), dtype=bool)
SQUARE[1:4, 2:7] = True


def to_mask(mask):
    return regions.to_mask(mask, HEIGHT, WIDTH, "masks[2][0]")


@pytest.mark.parametrize(
    "mask",
    [
        SQUARE,
        SQUARE.astype(np.uint8),
        SQUARE.astype(np.int64),
        SQUARE.astype(np.uint8) * 255,
        SQUARE.astype(np.float64),
        SQUARE.astype(np.float16),
        torch.from_numpy(SQUARE),
        torch.from_numpy(SQUARE).to(torch.bfloat16),
        torch.from_numpy(SQUARE).float().to(torch.float8_e4m3fn),
        torch.from_numpy(SQUARE).float().requires_grad_(),
        torch.from_numpy(SQUARE).to(torch.uint8) * 255,
        Image.fromarray(SQUARE),
        Image.fromarray(SQUARE.astype(np.uint8) * 255),
        encode_rle(SQUARE),
        coco_mask.encode(np.asfortranarray(SQUARE.astype(np.uint8))),
        {"size": [HEIGHT, WIDTH], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 14]},
        {"size": np.array([HEIGHT, WIDTH]), "counts": np.array([13, 3, 3, 3, 3, 3, 3, 3, 3, 3, 14])},
        [[2, 1, 7, 1, 7, 4, 2, 4]],
        [[2, 1, 4, 1, 4, 4, 2, 4], [4, 1, 7, 1, 7, 4, 4, 4]],
        [np.array([[2.0, 1.0], [7.0, 1.0], [7.0, 4.0], [2.0, 4.0]])],
    ],
)
def test_every_form_of_one_mask_gives_the_same_canonical_mask(mask):
    canonical = to_mask(mask)
    assert canonical.dtype == np.float32 and canonical.shape == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(canonical, SQUARE)


def test_soft_masks_keep_their_values():
    soft = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    np.testing.assert_allclose(to_mask(soft), soft, atol=1e-7)
    eight_bit = np.rint(soft * 255).astype(np.uint8)
    np.testing.assert_allclose(to_mask(eight_bit), eight_bit / 255, atol=1e-7)


def _closed(image):
    image.close()
    return image


def _damaged(size):
    file = io.BytesIO()
    Image.new("L", size, 255).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:45]))


def _labels(*ids):
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.int32)
    labels.flat[: len(ids)] = ids
    return labels


def _with(value):
    mask = SQUARE.astype(np.float32)
    mask[0, 0] = value
    return mask


COMPRESSED = encode_rle(SQUARE)["counts"]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (SQUARE.T, "has shape (9, 6), but its image is 6 pixels high and 9 wide"),
        (SQUARE[None], "has shape (1, 6, 9)"),
        (Image.new("L", (HEIGHT, WIDTH)), "has shape (9, 6)"),
        (_damaged((HEIGHT, WIDTH)), "has shape (9, 6)"),
        (_damaged((WIDTH, HEIGHT)), "cannot be read, its file is damaged or closed"),
        (_closed(Image.fromarray(SQUARE)), "cannot be read, its file is damaged or closed"),
        (torch.from_numpy(SQUARE).to_sparse(), "layout torch.sparse_coo"),
        (torch.empty(HEIGHT, WIDTH, device="meta"), "on meta, which numpy cannot read"),
        (_with(np.nextafter(np.float32(1), np.float32(2))), "values from 0.0 to 1.0000001"),
        (np.zeros((HEIGHT, WIDTH), dtype=bool), "is empty"),
        ({"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}, "is empty"),
        (_with(np.nan), "contains NaN"),
        (_with(1.5), "values from 0.0 to 1.5"),
        (_with(-0.1), "values from -0.1 to 1.0"),
        (_with(np.inf), "values from 0.0 to inf"),
        (_labels(1, 2, 3), "`map == id`"),
        (_labels(7), "`map == id`"),
        (_labels(-1, 1), "values from -1 to 1"),
        (_labels(300), "values from 0 to 300"),
        (Image.new("RGB", (WIDTH, HEIGHT)), "mode 'RGB'"),
        (Image.new("P", (WIDTH, HEIGHT)), "mode 'P'"),
        (SQUARE.astype(complex), "dtype complex128"),
        ("mask.png", "type str"),
        (None, "type NoneType"),
        ({"counts": COMPRESSED}, "['counts']"),
        ({"size": [WIDTH, HEIGHT], "counts": COMPRESSED}, "size [9, 6] (height, width)"),
        ({"size": [np.array([HEIGHT, WIDTH]), WIDTH], "counts": COMPRESSED}, "is an RLE of size"),
        ({"size": "69", "counts": COMPRESSED}, "is an RLE of size 69"),
        ({"size": [HEIGHT, WIDTH], "counts": [10, 10]}, "add up to 20"),
        ({"size": [HEIGHT, WIDTH], "counts": [60, -6]}, "malformed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": [1.0, 53.0]}, "neither a COCO string nor a list"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**30]}, "neither a COCO string nor a list"),
        ({"size": [HEIGHT, WIDTH], "counts": 54}, "neither a COCO string nor a list"),
        ({"size": [HEIGHT, WIDTH], "counts": COMPRESSED[:-1]}, "malformed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": COMPRESSED + "5"}, "malformed RLE"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "not a complete compressed COCO string"),
        ({"size": [HEIGHT, WIDTH], "counts": "\x7f"}, "not a complete compressed COCO string"),
        ({"size": [HEIGHT, WIDTH], "counts": "ü"}, "not ASCII"),
        ({"size": [HEIGHT, WIDTH], "counts": "P" * 20 + "0"}, "a run of 21 characters"),
        ([[1, 1, 4, 1, 4]], "polygon 0, has 5 coordinates"),
        ([[2, 1, 7, 1, 7, 4], [1, 1, 4, 1]], "polygon 1, has 2 points"),
        ([[1, 1, np.nan, 1, 4, 4]], "NaN or infinite"),
        ([[1, 1, 12, 1, 4, 4]], "outside its image of width 9 and height 6"),
        ([[1, -1, 4, 1, 4, 4]], "outside its image"),
        ([[1, 1, 3, 3, 5, 5]], "no area"),
        ([[2, 2, 2, 2, 2, 2]], "no area"),
        ([[1, 1, 4, 1, "x", 4]], "polygon 0, is not a list of numbers"),
        ([[1, 1, 4, 1, "4", 4]], "polygon 0, is not a list of numbers"),
        ([[1, 1, 4, 1, None, 4]], "polygon 0, is not a list of numbers"),
        ([[1, 1, 4, 1, 10**400, 4]], "polygon 0, is not a list of numbers"),
        ([(1, 1), (4, 1), (4, 4)], "polygon 0, has 1 points; a polygon is a flat list [x1, y1, x2, y2, ...]"),
        (SQUARE.tolist(), "has type list; a mask is a (height, width) array"),
    ],
)
def test_a_bad_mask_is_named_and_described(mask, message):
    with pytest.raises(ValueError, match=r"^masks\[2\]\[0\].*" + re.escape(message)):
        to_mask(mask)


def test_a_mask_as_nested_lists_is_told_from_polygons():
    # Every row of this mask is also a polygon with an area.
    mask = [[0, 0, 1, 0, 1, 1, 0, 1]] * 5
    with pytest.raises(ValueError, match=r"^mask is a list of 5 lists of 8 numbers.*`np.array\(mask\)`"):
        regions.to_mask(mask, 5, 8)
    assert regions.to_mask(np.array(mask), 5, 8).sum() == 20
    assert regions.to_mask(mask[:1], 5, 8).sum() == 1


def test_polygons_without_pycocotools_name_the_remedy(monkeypatch):
    monkeypatch.setattr(regions, "coco_mask", None)
    with pytest.raises(ImportError, match="pip install pycocotools"):
        to_mask([[2, 1, 7, 1, 7, 4]])


def test_rle_agrees_with_pycocotools_on_random_masks():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(1, 50, size=2)
        mask = rng.random((height, width)) < rng.random()
        mask[rng.integers(height), rng.integers(width)] = True
        reference = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert encode_rle(mask) == {"size": [height, width], "counts": reference["counts"].decode()}
        np.testing.assert_array_equal(regions.to_mask(reference, height, width), coco_mask.decode(reference))


def test_rle_of_a_large_mask_survives_runs_of_several_characters():
    mask = np.zeros((1500, 2000), dtype=bool)
    mask[700:1499, 5:1990] = True
    np.testing.assert_array_equal(regions.to_mask(encode_rle(mask), 1500, 2000), mask)


@pytest.mark.parametrize(
    "mask",
    [
        encode_rle(SQUARE),
        {"size": [HEIGHT, WIDTH], "counts": [0, 5, 9, 0, 3, 37]},
        [[2, 1, 7, 1, 7, 4], [0, 0, 2, 0, 2, 2]],
    ],
)
def test_runs_are_those_of_the_mask(mask):
    runs = regions.mask_runs(mask, HEIGHT, WIDTH)
    assert runs.sum() == HEIGHT * WIDTH and runs[1::2].sum() == regions.to_mask(mask, HEIGHT, WIDTH).sum()


@pytest.mark.parametrize("mask", [SQUARE * 0.5, SQUARE.astype(np.uint8) * 255, SQUARE[0], SQUARE.tolist()])
def test_encode_rle_refuses_what_is_not_binary(mask):
    with pytest.raises(ValueError, match="encode_rle takes"):
        encode_rle(mask)


def test_polygons_agree_with_pycocotools():
    rng = np.random.default_rng(1)
    for _ in range(100):
        height, width = rng.integers(8, 50, size=2)
        polygons = [
            (rng.random((rng.integers(3, 9), 2)) * [width, height]).ravel().tolist() for _ in range(rng.integers(1, 4))
        ]
        reference = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        if reference.any():
            np.testing.assert_array_equal(regions.to_mask(polygons, height, width), reference)


def test_box_to_mask_is_exact_at_pixel_edges_and_partial_inside_pixels():
    np.testing.assert_array_equal(box_to_mask([2, 1, 7, 4], HEIGHT, WIDTH), SQUARE)
    fractional = box_to_mask([2.25, 1.5, 7, 4], HEIGHT, WIDTH)
    assert fractional[1, 2] == 0.75 * 0.5 and fractional[2, 2] == 0.75 and fractional[2, 3] == 1
    assert fractional.sum() == pytest.approx(4.75 * 2.5)
    tiny = box_to_mask([3.4, 2.4, 3.5, 2.5], HEIGHT, WIDTH)
    assert np.count_nonzero(tiny) == 1 and tiny[2, 3] == pytest.approx(0.01)


def test_regions_without_a_pixel_are_accepted_on_demand():
    empty = np.zeros((4, 6), dtype=bool)
    assert not regions.to_mask(empty, 4, 6, allow_empty=True).any()
    for box in ([2, 1, 2, 3], [4, 1, 2, 3], [2, 1, 2.0005, 3]):
        with pytest.raises(ValueError, match="has no area"):
            box_to_mask(box, 4, 6)
        mask = box_to_mask(box, 4, 6, allow_empty=True)
        assert mask.shape == (4, 6) and mask.dtype == np.float32 and not mask.any()
        np.testing.assert_array_equal(check_box(box, 4, 6, allow_empty=True), box)
    with pytest.raises(ValueError, match="outside its image"):
        check_box([2, 1, 2, 9], 4, 6, allow_empty=True)


def test_mask_to_box_inverts_box_to_mask():
    np.testing.assert_array_equal(mask_to_box(box_to_mask([2, 1, 7, 4], HEIGHT, WIDTH)), [2, 1, 7, 4])
    np.testing.assert_array_equal(mask_to_box(box_to_mask([2.5, 1.5, 6.1, 3.2], HEIGHT, WIDTH)), [2, 1, 7, 4])
    with pytest.raises(ValueError, match="empty"):
        mask_to_box(np.zeros((HEIGHT, WIDTH)))


def test_check_box_takes_rounding_but_nothing_more():
    np.testing.assert_array_equal(
        check_box([-0.0009, 0, WIDTH + 0.0009, HEIGHT], HEIGHT, WIDTH), [0, 0, WIDTH, HEIGHT]
    )
    np.testing.assert_array_equal(check_box(torch.tensor([1, 2, 3, 4]), HEIGHT, WIDTH), [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, 0, WIDTH + 0.01, HEIGHT], "outside its image of width 9 and height 6"),
        ([-1, 0, 3, 3], "outside its image"),
        ([3, 1, 3, 4], "no area"),
        ([5, 1, 3, 4], "no area"),
        ([0, 0, np.nan, 4], "must be finite"),
        ([0, 0, 4], "shape (3,)"),
        ([[0, 0, 4, 4]], "shape (1, 4)"),
        (["a", 0, 4, 4], "not four numbers"),
        (["0", "0", "4", "4"], "not four numbers x1, y1, x2, y2, received ['0', '0', '4', '4']"),
        ([False, False, True, True], "not four numbers"),
        (np.array([0, 0, 4 + 1j, 4]), "not four numbers"),
        ([0, 0, 10**400, 4], "not four numbers"),
        (torch.tensor([0, 0, WIDTH, HEIGHT]).to_sparse(), "layout torch.sparse_coo"),
        ([0, 0, WIDTH + 0.002, HEIGHT], "is [0, 0, 9.002, 6], outside"),
        (None, "boxes[0]"),
    ],
)
def test_a_bad_box_is_named_and_described(box, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        check_box(box, HEIGHT, WIDTH, "boxes[0]")
    assert str(error.value).startswith("boxes[0]")


@pytest.mark.parametrize(
    ("masks", "count"),
    [
        (SQUARE, 1),
        (encode_rle(SQUARE), 1),
        ([[2, 1, 7, 1, 7, 4], [0, 0, 2, 0, 2, 2]], 1),
        ([[[2, 1, 7, 1, 7, 4]], [[0, 0, 2, 0, 2, 2]]], 2),
        ([SQUARE, encode_rle(SQUARE), [[2, 1, 7, 1, 7, 4]]], 3),
        (np.stack([SQUARE, SQUARE]), 2),
        (torch.zeros(0, HEIGHT, WIDTH), 0),
        ([], 0),
    ],
)
def test_masks_of_one_image_are_told_from_one_mask(masks, count):
    assert len(as_mask_list(masks)) == count


@pytest.mark.parametrize(
    ("boxes", "count"),
    [
        ([0, 0, 4, 4], 1),
        ([[0, 0, 4, 4]] * 2, 2),
        (np.zeros((3, 4)), 3),
        (torch.zeros(4), 1),
        ([], 0),
        (np.zeros(0), 0),
    ],
)
def test_boxes_of_one_image_are_told_from_one_box(boxes, count):
    assert len(as_box_list(boxes)) == count


@pytest.mark.parametrize("value", [None, "x", 3, np.zeros((1, 1, 1, 1))])
def test_what_is_neither_mask_nor_box_is_refused(value):
    with pytest.raises(ValueError, match=r"^masks\[1\] is"):
        as_mask_list(value, "masks[1]")
    with pytest.raises(ValueError, match=r"^boxes\[1\] is"):
        as_box_list(value, "boxes[1]")
