# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The record of one image with its regions: its checks, and the sample that readers make of it."""

import os
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import PureWindowsPath
from typing import Any, NotRequired, TypedDict

import numpy as np
from PIL import Image

from .image_reading import MAX_IMAGE_PIXELS, read_image
from .regions import box_to_mask, check_box, is_polygons, mask_runs, runs_to_box


# Longer or higher ones are strips, not photos; resize_mode="shortest_edge" would blow them up without bound.
MAX_ASPECT_RATIO = 100
# What counts as a letter or symbol and shows nothing: fillers of Hangul, the Braille pattern without dots, and the sign of
# a character that was lost.
_BLANK_LETTERS = frozenset("\u115f\u1160\u2800\ufffd")


class RegionSample(TypedDict):
    """One image with its regions, as every reader yields it and `PixCLIPDataCollator` takes it.

    Attributes:
        image: `PIL.Image.Image` of mode RGB.
        image_id: Identifier of the image within its data set.
        captions: Captions of the whole image, maybe none; the short ones, where there are `long_captions`.
        masks: N region masks, in any form of `processing_pixclip.regions.to_mask`.
        texts: N long region texts.
        object_texts: N short texts that name the object only, `None` where there is none.
        categories: N category names, `None` where there is none.
        boxes: For each region that is given by its box, that box, xyxy in pixels, and `masks` holds its rectangle;
            `None` for each that is given by a mask.
        long_captions: Long captions of the whole image, maybe none.
        hard_negatives: N lists, maybe empty, of texts that nearly describe the region: its text with a detail changed.
        epoch: Epoch that the sample is drawn in, see `SetEpochCallback`; 0 where it is missing.
        evaluation: `True` where the collator must take the sample as it is, see `EvaluationRegions`.
    """

    image: Image.Image
    image_id: str
    captions: list[str]
    masks: list[Any]
    texts: list[str]
    object_texts: list[str | None]
    categories: list[str | None]
    boxes: NotRequired[list[list[float] | None]]
    long_captions: NotRequired[list[str]]
    hard_negatives: NotRequired[list[list[str]]]
    epoch: NotRequired[int]
    evaluation: NotRequired[bool]


RECORD_KEYS = {
    "image": (str, "a path below image_root, relative to it", True),
    "image_id": (str, "a string", True),
    "width": (int, "a positive integer, in pixels", True),
    "height": (int, "a positive integer, in pixels", True),
    "captions": (list, "a list of non-empty strings, maybe empty", False),
    "long_captions": (list, "a list of non-empty strings, maybe empty", False),
    "regions": (list, "a list of regions, maybe empty", True),
    "licence": ((str, type(None)), "a string or null", False),
    "provenance": (list, "a list of objects, one for each stage that made a text", False),
}
REGION_KEYS = {
    "region_id": (str, "a string", False),
    "mask": ((dict, list), "COCO RLE {'size': [height, width], 'counts': ...} or polygons [[x1, y1, ...]]", False),
    "box": (list, "[x1, y1, x2, y2] in pixels, in place of a mask, or that around it", False),
    "mask_source": (str, "a string such as 'annotation', 'sam2' or 'box'", False),
    "category": ((str, type(None)), "a string or null", False),
    "phrase": ((str, type(None)), "a string or null", False),
    "object_text": ((str, type(None)), "a non-empty string or null", False),
    "context_text": ((str, type(None)), "a string or null", False),
    "text": (str, "a non-empty string", True),
    "text_source": (str, "a string such as 'written' or 'composed'", False),
    "hard_negatives": (list, "a list of non-empty strings, maybe empty", False),
    "provenance": (list, "a list of objects, one for each stage that made a text", False),
}
_PROVENANCE_KEYS = {
    **dict.fromkeys(("stage", "model", "server", "prompt", "time"), (str, "a string", False)),
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "attempts"), (int, "an integer", False)),
}
# Pixels by which a region's box may differ from that around its mask; some tools count the last pixel out.
_BOX_ROUNDING = 1


def check_record(record: Any, where: str) -> None:
    """Checks a record of the form that `RegionJsonlDataset` describes, its masks and boxes too, but not its image.

    Args:
        record: What a line of JSON holds.
        where: How error messages call the record, for example `"data.jsonl, line 3"`.

    Raises:
        ValueError: If the record is not valid; names it, the key, what it holds and what is accepted.

    Example:
        >>> check_record({"image": "1.png", "image_id": "1", "width": 3, "height": 2}, "line 1")
        Traceback (most recent call last):
        ...
        ValueError: line 1: key 'regions' is missing; it is a list of regions, maybe empty.
    """
    _check_keys(record, RECORD_KEYS, where)
    for key in ("width", "height"):
        if record[key] < 1:
            raise ValueError(f"{where}: key {key!r} is {record[key]!r:.200}; accepted is {RECORD_KEYS[key][1]}.")
    check_image_size(record["width"], record["height"], where)
    check_relative_path(record["image"], f"{where}: key 'image'", "image_root")
    check_texts(record.get("captions", []), f"{where}: captions", "a caption")
    check_texts(record.get("long_captions", []), f"{where}: long_captions", "a caption")
    _check_provenance(record, where)
    for number, region in enumerate(record["regions"]):
        _check_region(region, record["height"], record["width"], f"{where}: regions[{number}]")


def _check_region(region: Any, height: int, width: int, where: str) -> None:
    _check_keys(region, REGION_KEYS, where)
    for key in ("text", "object_text"):
        if region.get(key) is not None and not is_text(region[key]):
            raise ValueError(
                f"{where}: key {key!r} is empty, or blank, or not Unicode ({region[key]!r:.200}); accepted is "
                f"{REGION_KEYS[key][1]}."
            )
    check_texts(region.get("hard_negatives", []), f"{where}: hard_negatives", "a hard negative")
    _check_provenance(region, where)
    if "mask" not in region and "box" not in region:
        raise ValueError(
            f"{where} has neither a 'mask' nor a 'box'; accepted is a mask, {REGION_KEYS['mask'][1]}, or a box, "
            f"[x1, y1, x2, y2] in pixels."
        )
    box = check_box(region["box"], height, width, f"{where}: key 'box'") if "box" in region else None
    if "mask" not in region:
        return
    mask, size = region["mask"], [height, width]
    if not (is_polygons(mask) or (isinstance(mask, dict) and {"size", "counts"} <= mask.keys())):
        raise ValueError(f"{where}: key 'mask' is not a mask; accepted is {REGION_KEYS['mask'][1]}.")
    if isinstance(mask, dict) and mask["size"] != size:
        raise ValueError(
            f"{where}: key 'mask' has size {mask['size']!r:.200}, but the image has [height, width] = {size}; a mask is "
            f"given at the size of its image."
        )
    runs = mask_runs(mask, *size, f"{where}: key 'mask'")
    if not runs[1::2].any():
        raise ValueError(f"{where}: key 'mask' is empty, not one pixel is set; remove the region.")
    if box is not None:
        around = runs_to_box(runs, height)
        if (np.abs(box - around) > _BOX_ROUNDING).any():
            raise ValueError(
                f"{where} has both a 'mask' and a 'box', but the box is {region['box']!r:.200} and that around the mask is "
                f"{around.tolist()}; leave one of them out."
            )


def _check_provenance(item: Mapping[str, Any], where: str) -> None:
    for number, entry in enumerate(item.get("provenance", [])):
        _check_keys(entry, _PROVENANCE_KEYS, f"{where}: provenance[{number}]")


def clean_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a record that passed `check_record`, its texts without the whitespace around them.

    Example:
        >>> region = {"mask": {"size": [2, 3], "counts": [2, 2, 2]}, "text": " The middle column. "}
        >>> record = {"image": "1.png", "image_id": "1", "width": 3, "height": 2, "regions": [region]}
        >>> clean_record(record)["regions"][0]["text"]
        'The middle column.'
    """
    cleaned = dict(record)
    for key in ("captions", "long_captions"):
        cleaned[key] = [caption.strip() for caption in record.get(key, [])]
    cleaned["regions"] = []
    for region in record["regions"]:
        region = dict(region)
        region.update({key: region[key].strip() for key in ("text", "object_text") if region.get(key)})
        region["hard_negatives"] = [text.strip() for text in region.get("hard_negatives", [])]
        cleaned["regions"].append(region)
    return cleaned


def sample_of_record(record: Any, where: str, open_image: Callable[[str], str | os.PathLike | bytes]) -> RegionSample:
    """Checks a record of the form that `RegionJsonlDataset` describes and makes a sample of it.

    Args:
        record: What a line of JSON, or another container of records, holds.
        where: How error messages call the record, for example `"shard-0001.tar, sample 17"`.
        open_image: Gives for the record's key "image" the path of the image file, or the bytes of that file.

    Returns:
        The sample, with all keys of `RegionSample` but `epoch` and `evaluation`. The image is as stored, without
        regard to EXIF orientation, because masks are drawn on the pixels as stored.

    Raises:
        ValueError: If the record is not valid, or the image cannot be read, is too large or has another size than
            the record says; names the record.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (3, 2)).save(file, "PNG")
        >>> region = {"box": [1, 0, 2, 2], "text": "The middle column of a black image."}
        >>> record = {"image": "1.png", "image_id": "1", "width": 3, "height": 2, "regions": [region]}
        >>> sample_of_record(record, "record 1", lambda name: file.getvalue())["boxes"]
        [[1.0, 0.0, 2.0, 2.0]]
    """
    check_record(record, where)
    return sample_of_clean_record(clean_record(record), where, open_image)


def sample_of_clean_record(
    record: Mapping[str, Any], where: str, open_image: Callable[[str], str | os.PathLike | bytes]
) -> RegionSample:
    """Does what `sample_of_record` does, for a record of `clean_record`, which is not checked again."""
    width, height, regions = record["width"], record["height"], record["regions"]
    image = open_stored_image(open_image(record["image"]), f"{where}: {record['image']}", (width, height))
    boxes = [
        None if "mask" in region else check_box(region["box"], height, width, where).tolist() for region in regions
    ]
    return {
        "image": image,
        "image_id": record["image_id"],
        "captions": list(record["captions"]),
        "long_captions": list(record["long_captions"]),
        "masks": [
            region["mask"] if box is None else box_to_mask(box, height, width) for region, box in zip(regions, boxes)
        ],
        "boxes": boxes,
        "texts": [region["text"] for region in regions],
        "object_texts": [region.get("object_text") for region in regions],
        "categories": [region.get("category") for region in regions],
        "hard_negatives": [list(region["hard_negatives"]) for region in regions],
    }


def open_stored_image(file: str | os.PathLike | bytes, name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """Reads an image by the rules of `PixCLIPImageProcessor`, but as stored: masks are drawn on those pixels.

    Args:
        file: Path of the file, or its bytes.
        name: How error messages call this image.
        size: Width and height that its entry says.

    Returns:
        `PIL.Image.Image` of mode RGB.

    Raises:
        ValueError: If the image cannot be read, is too large, is a strip (`MAX_ASPECT_RATIO`) or is not of that size.
    """
    image = read_image(file, name, upright=False)
    check_image_size(*image.size, name)
    if size is not None and image.size != size:
        raise ValueError(
            f"{name} is {image.width} pixels wide and {image.height} high, but its entry says {size[0]} and {size[1]}."
        )
    return image


def read_image_header(file: str | os.PathLike, name: str) -> tuple[tuple[int, int], str]:
    """Returns width and height, and the PIL mode, of an image file that error messages call `name`."""
    try:
        with Image.open(file) as image:
            return image.size, image.mode
    # Decoders of damaged files raise OSError, SyntaxError, ValueError and others.
    except Exception as error:
        raise ValueError(f"{name} cannot be read as an image: {type(error).__name__}: {error}") from error


def check_image_size(width: int, height: int, where: str) -> None:
    """Raises a `ValueError` if an image has more pixels than readers open, or is a strip (`MAX_ASPECT_RATIO`)."""
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{where}: the image is {width!r:.20} pixels wide and {height!r:.20} high; accepted are up to "
            f"{MAX_IMAGE_PIXELS} pixels in all."
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"{where}: the image is {width} pixels wide and {height} high; accepted is up to {MAX_ASPECT_RATIO} times as "
            f"long as it is narrow. Crop it."
        )


def check_relative_path(path: str, name: str, root: str) -> None:
    """Raises a `ValueError` that calls the path `name` if it is not one below the folder `root`."""
    # Both separators and drive letters, so that a file means the same on every system.
    parts = PureWindowsPath(path)
    if parts.anchor or ".." in parts.parts or not parts.parts:
        raise ValueError(f"{name} is {path!r:.200}; accepted is a path below {root}, relative to it.")


def check_texts(texts: list[Any], name: str, kind: str) -> None:
    """Raises a `ValueError` that names the first of the texts that is not a non-empty string."""
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not is_text(text):
            raise ValueError(f"{name}[{number}] is {text!r:.200}; {kind} is a non-empty string.")


def is_text(text: str) -> bool:
    """Whether a string shows something and has a UTF-8 form.

    JSON can hold half a surrogate pair, which has no such form. Texts of the web can hold nothing but marks that show
    nothing, such as a zero-width space; tokenizers drop these, and nothing would be left to encode.
    """
    return any(map(_is_visible, text)) and text.encode("utf-8", "ignore").decode("utf-8") == text


def _is_visible(character: str) -> bool:
    # Neither a control, format, private or unassigned character, nor whitespace, nor a mark on a missing letter, nor a
    # blank letter; in the parts that some tokenizers break it into, such as a space and an accent.
    return any(
        unicodedata.category(part)[0] not in "CZM" and part not in _BLANK_LETTERS
        for part in unicodedata.normalize("NFKD", character)
    )


def _check_keys(item: Any, keys: dict[str, tuple[Any, str, bool]], where: str) -> None:
    if not isinstance(item, Mapping):
        raise ValueError(f"{where} is a {type(item).__name__}; accepted is an object with the keys {sorted(keys)}.")
    for key in item:
        if key not in keys:
            raise ValueError(f"{where}: key {key!r:.200} is unknown; accepted are {sorted(keys)}.")
    for key, (kind, accepted, required) in keys.items():
        if key not in item:
            if required:
                raise ValueError(f"{where}: key {key!r} is missing; it is {accepted}.")
        elif not isinstance(item[key], kind) or isinstance(item[key], bool):
            raise ValueError(f"{where}: key {key!r} is {item[key]!r:.200}; accepted is {accepted}.")
