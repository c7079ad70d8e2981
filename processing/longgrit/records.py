# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What flows through the LongGRIT pipeline: images with regions, the work on each, and how each region ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..region_records import open_stored_image
from ..regions import box_to_mask, mask_runs


MASK_SOURCES = ("annotation", "sam2", "box")


@dataclass(frozen=True, slots=True)
class SourceRegion:
    """One region of a source image.

    Attributes:
        region_id: Identifier, unique in the source: `"<image_id>#<number in the image>"`.
        box: xyxy in pixels; the bounding box of the mask where there is one.
        mask: COCO RLE at the size of the image, or `None` where the box itself is the region.
        mask_source: Where the mask is from, one of `MASK_SOURCES`; `"box"` where there is none.
        category: Category name, or `None`.
        phrase: What the source says of the region (GRIT's referring expression), or `None`.
        score: Confidence of the source, 0..1, or `None`.
        dropped: Why the source stage left it out, or `None`. Such a region is not annotated, but still counts as
            something that the image shows.
    """

    region_id: str
    box: tuple[float, float, float, float]
    mask: dict[str, Any] | None = None
    mask_source: str = "annotation"
    category: str | None = None
    phrase: str | None = None
    score: float | None = None
    dropped: str | None = None

    @property
    def placed(self) -> bool:
        """Whether it is known where the region is: it has a mask, or a box with an area. Only dropped ones may not be; those
        that a source could not make out have the box `(0, 0, 0, 0)`."""
        return self.mask is not None or (self.box[2] > self.box[0] and self.box[3] > self.box[1])


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source with all of its regions.

    Attributes:
        image_id: Identifier, unique in the source.
        file: File name of the image in what is written, a relative path with the extension of the image's format.
        location: Where its bytes are, see `ImageStore`.
        width: Width in pixels, as stored.
        height: Height in pixels, as stored.
        regions: All regions, those with `dropped` set too.
        captions: Short captions that the source has, maybe none.
        long_captions: Long captions that the source has, maybe none.
        grouped: Categories of which the image also shows a group that is no region (COCO's `iscrowd`).
        uncounted: Categories of which the image may show more than its regions (LVIS's `not_exhaustive_category_ids`).
        licence: Licence of the image, or `None` where the source does not say.
        file_size: Bytes of the image file when the source stage looked at it; `None` for one that is a part of a tar or parquet
            file, which the source's fingerprint stands for.
        problem: Why its regions were dropped as `"unreadable_image"`, in words, or `None`.
    """

    image_id: str
    file: str
    location: Mapping[str, Any]
    width: int
    height: int
    regions: tuple[SourceRegion, ...] = ()
    captions: tuple[str, ...] = ()
    long_captions: tuple[str, ...] = ()
    grouped: tuple[str, ...] = ()
    uncounted: tuple[str, ...] = ()
    licence: str | None = None
    file_size: int | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SourceImage:
        """The image that `to_json` was called on."""
        regions = tuple(SourceRegion(**{**region, "box": tuple(region["box"])}) for region in content["regions"])
        lists = {key: tuple(content[key]) for key in ("captions", "long_captions", "grouped", "uncounted")}
        return cls(**{**content, "regions": regions, **lists})


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one text comes from.

    Attributes:
        stage: The stage that asked for it.
        model: Name of the model, as configured; of a path its last part.
        server: Address of the server, scheme, host and port alone, or the name of a local engine.
        prompt: Hash of the prompt file, 16 hex digits.
        time: When the answer came, ISO 8601 in UTC.
        prompt_tokens: Tokens read over all attempts, as the server counts; 0 where it does not.
        completion_tokens: Tokens written over all attempts.
        attempts: Answers that were asked for; more than 1 where one was malformed.
    """

    stage: str
    model: str
    server: str
    prompt: str
    time: str
    prompt_tokens: int
    completion_tokens: int
    attempts: int


@dataclass(slots=True)
class RegionResult:
    """How a region ended: accepted with texts, or rejected with a reason.

    Attributes:
        region_id: The region.
        reason: `None` if it was accepted, else a short name such as `"malformed_answer"`.
        stage: Stage that rejected it.
        detail: What was wrong, in words, with the text that was rejected.
        object_text: Object-level caption.
        context_text: Context-level caption.
        text: The long description.
        hard_negatives: Rewrites of `text` with one attribute changed.
        provenance: One entry a stage that asked.
    """

    region_id: str
    reason: str | None = None
    stage: str | None = None
    detail: str | None = None
    object_text: str | None = None
    context_text: str | None = None
    text: str | None = None
    hard_negatives: list[str] = field(default_factory=list)
    provenance: list[Provenance] = field(default_factory=list)


@dataclass(slots=True)
class ImageResult:
    """How an image ended.

    Attributes:
        image: The image; its regions with `dropped` set count as rejected by the stage `"source"`.
        regions: One result for each other region, in their order.
        captions: Its short captions: those of the source, then those of the image stage.
        long_captions: Its long captions, likewise.
        provenance: Of the captions that were asked for.
    """

    image: SourceImage
    regions: list[RegionResult]
    captions: list[str] = field(default_factory=list)
    long_captions: list[str] = field(default_factory=list)
    provenance: list[Provenance] = field(default_factory=list)


class Rejected(Exception):
    """Raised by a stage: the region, or its image, ends here.

    Args:
        stage: Name of the stage.
        reason: Short name, counted in the report, such as `"inconsistent"`.
        detail: What was wrong, with the text that was rejected.

    Example:
        >>> Rejected("verify", "inconsistent", "The vase is blue, not red.").reason
        'inconsistent'
    """

    def __init__(self, stage: str, reason: str, detail: str):
        super().__init__(f"{stage}: {reason}: {detail}")
        self.stage, self.reason, self.detail = stage, reason, detail


class ImageWork:
    """An image while its regions are worked on; decoded when a stage first looks at it, by whichever thread.

    Of a large photo the picture takes 50 MB and a mask 12 MB, and many images are worked on at the same time. So masks are
    made anew for whoever asks, and a picture that was dropped is decoded again.

    Args:
        source: The image.
        read: Gives the bytes of its file.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (40, 30)).save(file, "PNG")
        >>> region = SourceRegion("1#0", (0.0, 0.0, 20.0, 10.0), mask_source="box")
        >>> work = ImageWork(SourceImage("1", "1.png", {"path": "1.png"}, 40, 30, (region,)), file.getvalue)
        >>> work.picture().size, int(work.mask(region).sum())
        ((40, 30), 200)
    """

    def __init__(self, source: SourceImage, read: Callable[[], bytes]):
        self.source = source
        self._read = read
        self._lock = threading.RLock()
        self._picture: Image.Image | None = None
        self.views: dict[Any, bytes] = {}

    def file_content(self) -> bytes:
        """Bytes of the image file."""
        return self._read()

    def picture(self) -> Image.Image:
        """The decoded image, RGB, as stored.

        Raises:
            ValueError: If it cannot be read or is not of the size that the source says.
        """
        with self._lock:
            picture = self._picture
            if picture is None:
                size = (self.source.width, self.source.height)
                picture = open_stored_image(self._read(), f"image {self.source.image_id!r}", size)
                self._picture = picture
            return picture

    def drop_picture(self) -> None:
        """Frees the decoded image; it is decoded again if somebody asks."""
        self._picture = None

    def mask(self, region: SourceRegion) -> np.ndarray:
        """The region's mask, bool of shape (height, width); its box where it has no mask.

        Raises:
            ValueError: If it is malformed, empty or not of the size of the image.
        """
        height, width = self.source.height, self.source.width
        if region.mask is None:
            return box_to_mask(region.box, height, width) >= 0.5
        name = f"mask of region {region.region_id!r}"
        runs = mask_runs(region.mask, height, width, name)
        if not runs[1::2].any():
            raise ValueError(f"{name} is empty: not one of its {height}x{width} pixels is set.")
        # Not by `to_mask`, which takes four bytes a pixel on the way.
        return np.ascontiguousarray(np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T)

    def forget(self, region: SourceRegion) -> None:
        """Frees the views of a region that has ended; they are drawn anew if somebody asks."""
        # A copy: other threads add views of other regions meanwhile.
        for key in tuple(self.views):
            if key[0] == region.region_id:
                self.views.pop(key, None)


@dataclass(slots=True)
class RegionWork:
    """A region while the stages work on it; each stage reads what earlier ones left here and adds its own.

    Attributes:
        image: Its image.
        region: The region; `None` for a stage on the whole image.
        object_text, context_text, text, hard_negatives: As in `RegionResult`.
        captions: Short captions of the image, for the image stage.
        long_captions: Long captions of the image, for the image stage.
        provenance: One entry a stage that asked so far.
    """

    image: ImageWork
    region: SourceRegion | None = None
    object_text: str | None = None
    context_text: str | None = None
    text: str | None = None
    hard_negatives: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    long_captions: list[str] = field(default_factory=list)
    provenance: list[Provenance] = field(default_factory=list)

    @property
    def item_id(self) -> str:
        """Identifier of the region, or of the image where there is none."""
        return self.image.source.image_id if self.region is None else self.region.region_id
