# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Mixed good and bad inputs: each gives a batch whose invariants hold, or a `ValueError` that names the item."""

import io
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor, box_to_mask, encode_rle


SIZE, CROP = 32, 24
WORDS = ["a", "red", "cup", "dog", "left", "of", "the", "table"]

IMAGE_FORMS = {
    "pil": Image.fromarray,
    "grey": lambda pixels: Image.fromarray(pixels).convert("L"),
    "rgba": lambda pixels: Image.fromarray(pixels).convert("RGBA"),
    "palette": lambda pixels: Image.fromarray(pixels).convert("P"),
    "hwc": lambda pixels: pixels,
    "chw": lambda pixels: np.moveaxis(pixels, -1, 0),
    "float": lambda pixels: pixels / 255,
    "tensor": lambda pixels: torch.from_numpy(pixels).permute(2, 0, 1),
}
MASK_FORMS = {
    "bool": lambda mask: mask,
    "uint8": lambda mask: mask.astype(np.uint8),
    "uint8 255": lambda mask: mask.astype(np.uint8) * 255,
    "soft": lambda mask: mask * np.float32(0.7),
    "tensor": torch.from_numpy,
    "float tensor": lambda mask: torch.from_numpy(mask).half(),
    "pil 1": Image.fromarray,
    "pil L": lambda mask: Image.fromarray(mask.astype(np.uint8) * 255),
    "rle": encode_rle,
    "polygon": lambda mask: [_outline(mask)],
}


def _outline(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x1, y1, x2, y2 = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return [int(value) for value in (x1, y1, x2, y1, x2, y2, x1, y2)]


def _full(shape, value, dtype):
    array = np.zeros(shape, dtype=dtype)
    array.flat[:3] = 1
    array.flat[-1] = value
    return array


def _damaged_file(size):
    file = io.BytesIO()
    Image.new("L", size, 255).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:45]))


def _closed(image):
    image.close()
    return image


# Each takes the (height, width) of the image.
BAD_MASKS = {
    "mask of other size": lambda h, w: np.ones((h + 1, w), bool),
    "mask transposed": lambda h, w: np.ones((w + h, h), bool),
    "empty mask": lambda h, w: np.zeros((h, w), bool),
    "empty soft mask": lambda h, w: np.zeros((h, w), np.float32),
    "NaN mask": lambda h, w: _full((h, w), np.nan, np.float32),
    "mask above 1": lambda h, w: _full((h, w), 1.01, np.float32),
    "mask below 0": lambda h, w: _full((h, w), -0.01, np.float64),
    "label map": lambda h, w: _full((h, w), 7, np.int64),
    "mask is text": lambda h, w: "mask",
    "mask is missing": lambda h, w: None,
    "mask as nested lists": lambda h, w: np.eye(h, w, dtype=int).tolist(),
    "mask in a damaged file": lambda h, w: _damaged_file((w, h)),
    "sparse mask": lambda h, w: torch.ones(h, w).to_sparse(),
    "mask is RGB": lambda h, w: Image.new("RGB", (w, h), 255),
    "RLE of other size": lambda h, w: encode_rle(np.ones((h, w + 1), bool)),
    "RLE too short": lambda h, w: {"size": [h, w], "counts": [1, h * w - 2]},
    "RLE too long": lambda h, w: {"size": [h, w], "counts": encode_rle(np.ones((h + 3, w), bool))["counts"]},
    "RLE cut off": lambda h, w: {"size": [h, w], "counts": encode_rle(np.eye(h, w, dtype=bool))["counts"][:-1]},
    "RLE without counts": lambda h, w: {"size": [h, w]},
    "polygon with an odd count": lambda h, w: [[1, 1, 5, 1, 5]],
    "polygon of two points": lambda h, w: [[1, 1, 5, 5]],
    "polygon outside": lambda h, w: [[1, 1, w + 2, 1, 5, 5]],
    "polygon with NaN": lambda h, w: [[1, 1, np.nan, 1, 5, 5]],
    "polygon on a line": lambda h, w: [[1, 1, 3, 3, 5, 5]],
}
BAD_BOXES = {
    "box outside": lambda h, w: [0, 0, w + 1, h],
    "box before the image": lambda h, w: [-2, 0, 4, 4],
    "box without area": lambda h, w: [3, 2, 3, 5],
    "box turned around": lambda h, w: [5, 5, 2, 2],
    "box with NaN": lambda h, w: [0, 0, np.nan, 4],
    "box of three numbers": lambda h, w: [0, 0, 4],
    "box is text": lambda h, w: ["a", "b", "c", "d"],
    "box of digits": lambda h, w: ["0", "0", "4", "4"],
    "box of complex numbers": lambda h, w: np.array([0, 0, 4 + 1j, 4]),
}
# Each takes a folder.
BAD_IMAGES = {
    "missing file": lambda folder: folder / "missing.png",
    "truncated file": lambda folder: folder / "truncated.png",
    "file of another kind": lambda folder: str(folder / "text.jpg"),
    "damaged file that is open": lambda folder: Image.open(folder / "truncated.png"),
    "closed image": lambda folder: _closed(Image.new("RGB", (20, 20))),
    "URL": lambda folder: "https://example.org/a.jpg",
    "8-bit values as floats": lambda folder: np.full((20, 20, 3), 200.0),
    "NaN image": lambda folder: np.full((20, 20, 3), np.nan),
    "integer image": lambda folder: np.ones((20, 20, 3), np.int64),
    "five channels": lambda folder: np.ones((20, 20, 5), np.uint8),
    "too many pixels": lambda folder: np.zeros((100, 100, 3), np.uint8),
    "no image": lambda folder: 3.5,
}
BAD_TEXTS = {
    "empty text": "",
    "blank text": " \n ",
    "text is a number": 3,
    "text is missing": None,
    "half a surrogate pair": "a cup \ud83d",
}
BAD_COUNTS = ("masks missing for an image", "boxes missing for an image", "a box too few")
BAD_KINDS = [*BAD_MASKS, *BAD_BOXES, *BAD_IMAGES, *BAD_TEXTS, *BAD_COUNTS]


@dataclass
class Case:
    kind: str
    named: str | None
    many: bool
    drawn: list
    arguments: dict


@st.composite
def cases(draw, folder, kind):
    """One call of the processor: a good one, spoilt in one place if the kind is a bad one."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    many = kind in BAD_COUNTS or draw(st.booleans())
    with_masks = kind in BAD_MASKS or kind in (BAD_COUNTS[0], BAD_COUNTS[2]) or draw(st.booleans())
    needs_boxes = kind in BAD_BOXES or kind in BAD_COUNTS[1:]
    with_boxes = needs_boxes or draw(st.sampled_from([True, False]) if with_masks else st.just(True))
    images, masks, boxes, drawn = [], [], [], []
    for _ in range(draw(st.integers(1, 3)) if many else 1):
        height, width = draw(st.integers(8, 48)), draw(st.integers(8, 48))
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        images.append(IMAGE_FORMS[draw(st.sampled_from(sorted(IMAGE_FORMS)))](pixels))
        image_masks, image_boxes = [], []
        for _ in range(draw(st.integers(0, 3))):
            mask = np.zeros((height, width), bool)
            x, y = rng.integers(width), rng.integers(height)
            mask[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)] = True
            form = draw(st.sampled_from(sorted(MASK_FORMS)))
            image_masks.append(MASK_FORMS[form](mask))
            left, top = rng.random(2) * [width - 0.1, height - 0.1]
            image_boxes.append(
                [left, top, left + (width - left) * rng.uniform(0.1, 1), rng.uniform(top + 0.05, height)]
            )
            region = mask * np.float32(0.7 if form == "soft" else 1)
            drawn.append(region if with_masks else box_to_mask(image_boxes[-1], height, width))
        masks.append(image_masks)
        boxes.append(image_boxes)
    text = [" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(draw(st.integers(1, 3)))]
    crops = draw(st.booleans())

    named = None
    i = draw(st.integers(0, len(images) - 1))
    size = np.asarray(images[i]).shape
    height, width = size[1:] if len(size) == 3 and size[0] == 3 else size[:2]
    if kind in BAD_MASKS or kind in BAD_BOXES or kind == BAD_COUNTS[2]:
        masks[i].append(np.ones((height, width), bool))
        boxes[i].append([0, 0, width, height])
        j = draw(st.integers(0, len(masks[i]) - 1))
        place = f"[{i}][{j}]" if many else f"[{j}]"
        if kind in BAD_MASKS:
            masks[i][j], named = BAD_MASKS[kind](height, width), f"masks{place}"
        elif kind in BAD_BOXES:
            boxes[i][j], named = BAD_BOXES[kind](height, width), f"boxes{place}"
        else:
            boxes[i].pop()
            named = f"masks[{i}] has {len(masks[i])} regions, but boxes[{i}] has {len(boxes[i])}"
    elif kind in BAD_IMAGES:
        images[i], named = BAD_IMAGES[kind](folder), f"images[{i}]"
    elif kind in BAD_TEXTS:
        t = draw(st.integers(0, len(text) - 1))
        text[t], named = BAD_TEXTS[kind], f"text[{t}]"
    elif kind in BAD_COUNTS:
        spoilt = masks if kind == BAD_COUNTS[0] else boxes
        spoilt.append([])
        named = f"{'masks' if spoilt is masks else 'boxes'} has {len(spoilt)} entries, but images has {len(images)}"

    arguments = {
        "images": images if many else images[0],
        "text": text if len(text) > 1 or kind in BAD_TEXTS else text[0],
        "masks": (masks if many else masks[0]) if with_masks else None,
        "boxes": (boxes if many else boxes[0]) if with_boxes else None,
        "crops": crops,
        "resize_mode": draw(st.sampled_from(["squash", "shortest_edge", "letterbox"])),
        "max_length": draw(st.sampled_from([8, 64])),
    }
    return Case(kind, named, many, drawn, arguments)


def check_geometry(case, batch, image_processor):
    """A mask lands where an image of the mask lands, in the frame and in the context crop, whatever form it came in."""
    crops, mode = case.arguments["crops"], case.arguments["resize_mode"]
    painted = image_processor(
        [Image.fromarray(np.rint(region * 255).astype(np.uint8)) for region in case.drawn],
        masks=case.drawn,
        crops=crops,
        resize_mode=mode,
        resample=Image.Resampling.BILINEAR,
        image_mean=0.0,
        do_normalize=False,
        return_tensors="pt",
    )
    for prefix in ("", "crop_") if crops else ("",):
        masks = painted[f"{prefix}mask_values"]
        assert (painted[f"{prefix}pixel_values"] - masks).abs().max() <= 2 / 255
        assert torch.allclose(batch[f"{prefix}mask_values"] * 0.26 + 0.5, masks, atol=1e-6)
    if case.arguments["boxes"] is None:
        for mask, (x1, y1, x2, y2) in zip(painted["mask_values"][:, 0], batch["region_boxes"] * SIZE, strict=True):
            rows, columns = (mask > mask.max() / 2).nonzero(as_tuple=True)
            assert x1 - 1 <= columns.min() and columns.max() <= x2 and y1 - 1 <= rows.min() and rows.max() <= y2


def check_batch(case, batch):
    arguments = case.arguments
    images = len(arguments["images"]) if case.many else 1
    texts = len(arguments["text"]) if isinstance(arguments["text"], list) else 1
    regions = len(case.drawn)
    shapes = {
        "pixel_values": (images, 3, SIZE, SIZE),
        "mask_values": (regions, 1, SIZE, SIZE),
        "region_image_index": (regions,),
        "region_boxes": (regions, 4),
    }
    if arguments["crops"]:
        shapes |= {"crop_pixel_values": (regions, 3, CROP, CROP), "crop_mask_values": (regions, 1, CROP, CROP)}
    length = batch["input_ids"].shape[1]
    shapes |= dict.fromkeys(("input_ids", "attention_mask", "pooling_mask"), (texts, length))
    assert {name: tuple(value.shape) for name, value in batch.items()} == shapes
    assert all(torch.isfinite(value).all() for value in batch.values())

    given = arguments["masks"] if arguments["masks"] is not None else arguments["boxes"]
    counts = [len(entry) for entry in (given if case.many else [given])]
    assert batch["region_image_index"].tolist() == [i for i, count in enumerate(counts) for _ in range(count)]
    for name in ("mask_values", "crop_mask_values"):
        if name in batch:
            values = batch[name] * 0.26 + 0.5
            assert (values > -1e-5).all() and (values < 1 + 1e-5).all()
            assert (batch[name].flatten(1).amax(dim=1) > (0 - 0.5) / 0.26).all()
    x1, y1, x2, y2 = batch["region_boxes"].unbind(dim=1)
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= 1).all() and (y2 <= 1).all()
    assert (x1 < x2).all() and (y1 < y2).all()

    assert length <= arguments["max_length"]
    assert (batch["pooling_mask"] <= batch["attention_mask"]).all() and (batch["pooling_mask"].sum(dim=1) > 0).all()
    assert (batch["attention_mask"].diff(dim=1) <= 0).all()


@pytest.mark.filterwarnings("ignore:.*texts are longer than")
def test_every_input_gives_a_right_batch_or_an_error_that_names_the_item(tmp_path):
    backend = Tokenizer(models.WordLevel(unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator([" ".join(WORDS) + " user : end"], trainers.WordLevelTrainer(special_tokens=["[unk]"]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[unk]", pad_token="[pad]")
    image_processor = PixCLIPImageProcessor(size=SIZE, crop_size=CROP, max_image_pixels=8000)
    processor = PixCLIPProcessor(image_processor, tokenizer, text_template="user: {text} end")
    Image.new("RGB", (40, 40)).save(tmp_path / "whole.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    outcomes = Counter()

    def check(case):
        try:
            batch = processor(**case.arguments)
        except ValueError as error:
            if case.kind == "good":
                # Only a centre crop can lose a good region.
                assert case.arguments["resize_mode"] == "shortest_edge", error
                assert re.match(r"(masks|boxes)(\[\d+\])+ has no visible part left", str(error)), error
                outcomes["good, cut off"] += 1
            else:
                cut_off = re.match(r"(masks|boxes)(\[\d+\])+ has no visible part left", str(error))
                assert str(error).startswith(case.named) or cut_off, error
                outcomes["bad, cut off" if cut_off else case.kind] += 1
        else:
            assert case.kind == "good", f"{case.kind} was accepted"
            check_batch(case, batch)
            if case.drawn:
                check_geometry(case, batch, image_processor)
            outcomes["good"] += 1

    for number, (kind, examples) in enumerate([("good", 1200), *((kind, 25) for kind in BAD_KINDS)]):
        options = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(number)(options(given(cases(tmp_path, kind))(check)))()
    assert sum(outcomes.values()) >= 2400, outcomes
    assert outcomes["good"] >= 1000, outcomes
    assert all(outcomes[kind] >= 15 for kind in BAD_KINDS), outcomes
