# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""COCO's instances, panoptic segments and captions as a source."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..coco_annotations import CocoAnnotations, CocoPhoto, CocoRegion, read_panoptic_ids
from .config import SourceSettings
from .file_source import FileSource
from .records import SourceImage, SourceRegion
from .source_regions import (
    BadImage,
    boxed_region,
    checked_path,
    checked_size,
    cleaned_text,
    cleaned_texts,
    file_below,
    is_finite,
    masked_region,
    unusable_region,
)
from .sources import SourceError


# Why a region of the annotation files is none, as the pipeline counts it.
_REASONS = {
    "empty": "empty_mask",
    "degenerate polygon": "degenerate_polygon",
    "outside the photo": "outside_image",
    "malformed": "malformed_region",
}


class CocoSource(FileSource):
    """Reads photos of COCO's annotation files, one a position, with what `CocoAnnotations` says of each.

    A crowd is a region that is dropped (`"crowd"`), and its category is in `grouped`. An instance without a `segmentation`
    (missing, null, `[]` or `[[]]`) is the region of its `bbox`, `[x, y, width, height]`, with the mask source `"box"`. LVIS's files
    are read too: an image without `file_name` is the last folder and the name in its `coco_url`, such as
    `train2017/000000000009.jpg` below `image_root`, and its `not_exhaustive_category_ids` are in `uncounted`.

    An image whose entry is wrong is an error at its position; entries of the annotation files that belong to no photo are
    errors at the last positions. The annotation files are held in memory; panoptic maps are read photo by photo.

    Args:
        settings (`SourceSettings`):
            `instances`, `panoptic`, `captions`, `image_root` and `licence` are read.

    Raises:
        FileNotFoundError: If a file or the folder of images is missing.
        ValueError: If a file is no COCO annotation file, or they list no image.

    Example:
        >>> import json, tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "1.jpg")
        >>> square = {"image_id": 1, "category_id": 18, "segmentation": [[2, 2, 22, 2, 22, 22, 2, 22]], "iscrowd": 0}
        >>> instances = {
        ...     "images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}],
        ...     "annotations": [square],
        ...     "categories": [{"id": 18, "name": "dog"}],
        ... }
        >>> _ = (folder / "instances.json").write_text(json.dumps(instances))
        >>> source = CocoSource(SourceSettings(format="coco", instances=str(folder / "instances.json")))
        >>> (image,) = source.read(0, len(source))
        >>> image.regions[0].category, image.regions[0].box
        ('dog', (2.0, 2.0, 22.0, 22.0))
    """

    def __init__(self, settings: SourceSettings):
        super().__init__(
            settings, [Path(path) for path in (settings.instances, settings.panoptic, settings.captions) if path]
        )
        paths = (settings.instances, settings.panoptic, None, settings.captions)
        annotations = CocoAnnotations(*(None if path is None else Path(path) for path in paths))
        self._photos = list(annotations.photos.values())
        self._errors = annotations.errors
        self._check_not_empty()

    def __len__(self) -> int:
        return len(self._photos) + len(self._errors)

    def _read(self, start: int, stop: int) -> Iterator[SourceImage | SourceError]:
        for photo in self._photos[start:stop]:
            try:
                yield self._image(photo)
            except BadImage as bad:
                yield bad.error(photo.where, photo.image_id)
        first = len(self._photos)
        for error in self._errors[max(start - first, 0) : max(stop - first, 0)]:
            # All begin with file and entry.
            where = re.match(r".*?: \w+\[\d+\]", str(error), re.DOTALL).group()
            yield SourceError(where, "malformed_annotation", str(error))

    def _image(self, photo: CocoPhoto) -> SourceImage:
        if photo.error is not None:
            raise BadImage("malformed_annotation", str(photo.error))
        if cleaned_text(photo.image_id) is None:
            raise BadImage("malformed_annotation", f"its id is {photo.image_id!r}; accepted is an integer.")
        path = checked_path(photo.file_name)
        width, height = checked_size(photo.width, photo.height)
        place = file_below(self._root, path)
        try:
            panoptic = None if photo.panoptic is None else read_panoptic_ids(photo)
        except (ValueError, OSError):
            panoptic = None
        regions = [
            self._region(f"{photo.image_id}#{number}", region, height, width, panoptic)
            for number, region in enumerate(photo.regions)
        ]
        return SourceImage(
            image_id=photo.image_id,
            file=place.file,
            location=place.location,
            width=width,
            height=height,
            regions=tuple(regions),
            captions=tuple(photo.captions),
            grouped=cleaned_texts(sorted(photo.grouped)),
            uncounted=cleaned_texts(photo.uncounted),
            licence=cleaned_text(photo.licence) or self._settings.licence,
        )

    def _region(
        self, region_id: str, region: CocoRegion, height: int, width: int, panoptic: np.ndarray | None
    ) -> SourceRegion:
        category = cleaned_text(region.category)
        facts = {"category": category, "dropped": "crowd" if region.left_out == "crowd" else None}
        if region.box is not None:
            return boxed_region(region_id, _corners(region.box), height, width, **facts)
        if region.left_out in _REASONS:
            return unusable_region(region_id, _REASONS[region.left_out], category=category)
        if not isinstance(region.mask, int):
            return masked_region(region_id, region.mask, height, width, **facts)
        if panoptic is None:
            return unusable_region(region_id, "unreadable_panoptic", category=category)
        return masked_region(region_id, panoptic == region.mask, height, width, **facts)


def _corners(box: Any) -> Any:
    """COCO's [x, y, width, height] as [x1, y1, x2, y2]; `None`, which is no box, of anything else."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_finite, box)):
        return None
    x, y, width, height = box
    return [x, y, x + width, y + height]
