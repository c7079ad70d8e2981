# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reader of COCO's instances, panoptic segments and captions."""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import numpy as np

from .bad_samples import BadSampleLog
from .coco_annotations import CocoAnnotations, CocoPhoto, read_panoptic_ids
from .region_description import describe_regions
from .region_nouns import noun_of
from .region_records import RegionSample, open_stored_image
from .regions import to_mask
from .training_epochs import EpochDataset


class CocoRegionDataset(EpochDataset):
    """Reads photos with COCO instances, panoptic segments, or both, and captions.

    Regions of a photo: its instances; and from the panoptic file its stuff segments or, where the instances file does
    not list the photo, all its segments. What is left out is counted by reason in `rejected`:

    * `"crowd"`: `iscrowd` is set;
    * `"empty"`: no pixel;
    * `"degenerate polygon"`: no part of the polygon encloses an area (fewer than 3 points, or all on one line);
    * `"outside the photo"`: a vertex more than a pixel outside;
    * `"too small"`: less than `min_area_fraction` of the photo (it still counts for the texts of others);
    * `"photo without region"`: a whole photo of which no region is left;
    * `"blank caption"`: a caption without a letter.

    Polygons that are changed, not left out, are counted in `repaired`:

    * `"degenerate part dropped"`: some of its parts enclose no area, the others are the region;
    * `"clipped to the photo"`: a vertex up to a pixel outside, by rounding of the annotation, is set onto the edge.

    Args:
        image_dir (`str` or `os.PathLike`):
            Folder with the image files that the annotation files name.
        instances_file (`str` or `os.PathLike`, *optional*):
            `instances_*.json`.
        panoptic_file (`str` or `os.PathLike`, *optional*):
            `panoptic_*.json`. One of the two files must be given.
        panoptic_dir (`str` or `os.PathLike`, *optional*, defaults to `panoptic_file` without ".json"):
            Folder with the panoptic PNGs.
        captions_file (`str` or `os.PathLike`, *optional*):
            `captions_*.json`.
        min_area_fraction (`float`, defaults to 0.001):
            Least share of the photo that a region must cover.
        compose_texts (`bool`, defaults to `True`):
            Whether `texts` are long texts by `describe_regions`; else both texts are the category with its article.
        image_ids (`Collection[int]`, *optional*):
            Read only these photos of the annotation files; all by default.
        bad_samples (`BadSampleLog`, *optional*):
            Where photos whose image file is missing are counted and written down; they are left out then. For images
            that cannot be read when they are indexed see `SkipBadSamples`.

    Attributes:
        rejected (`collections.Counter`): How many regions, photos and captions were left out, by reason.
        repaired (`collections.Counter`): How many polygons were changed, by repair.

    Raises:
        ValueError: If an annotation file lacks a key, an image, PNG or category is missing, or a segmentation is
            malformed, or, when indexed, an image cannot be read; names the file and item.
        TooManyBadSamplesError: See `BadSampleLog`.

    Example:
        >>> import json
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 30)).save(folder / "1.jpg")
        >>> square = {"image_id": 1, "category_id": 18, "segmentation": [[2, 2, 22, 2, 22, 22, 2, 22]], "iscrowd": 0}
        >>> speck = {"image_id": 1, "category_id": 18, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]], "iscrowd": 0}
        >>> instances = {
        ...     "images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}],
        ...     "annotations": [square, speck],
        ...     "categories": [{"id": 18, "name": "dog"}],
        ... }
        >>> _ = (folder / "instances.json").write_text(json.dumps(instances))
        >>> dataset = CocoRegionDataset(folder, folder / "instances.json", compose_texts=False)
        >>> dataset[0]["texts"], dataset.rejected
        (['a dog'], Counter({'too small': 1}))
    """

    def __init__(
        self,
        image_dir: str | os.PathLike,
        instances_file: str | os.PathLike | None = None,
        panoptic_file: str | os.PathLike | None = None,
        panoptic_dir: str | os.PathLike | None = None,
        captions_file: str | os.PathLike | None = None,
        min_area_fraction: float = 0.001,
        compose_texts: bool = True,
        image_ids: Collection[int] | None = None,
        bad_samples: BadSampleLog | None = None,
    ):
        if instances_file is None and panoptic_file is None:
            raise ValueError("neither instances_file nor panoptic_file is given; regions come from at least one.")
        if not 0 <= min_area_fraction < 1:
            raise ValueError(
                f"min_area_fraction is {min_area_fraction}; it is a share of the photo, from 0 to below 1."
            )
        super().__init__()
        self.image_dir = Path(image_dir)
        self.compose_texts = compose_texts
        self.rejected: Counter[str] = Counter()
        self.repaired: Counter[str] = Counter()
        annotations = CocoAnnotations(
            *(None if path is None else Path(path) for path in (instances_file, panoptic_file, panoptic_dir)),
            captions_file=None if captions_file is None else Path(captions_file),
            image_ids=image_ids,
        )
        if annotations.errors:
            raise annotations.errors[0]
        self.repaired += annotations.repaired
        if annotations.blank_captions:
            self.rejected["blank caption"] = annotations.blank_captions
        bad: list[tuple[str, Exception, str | None]] = []
        self._photos: list[CocoPhoto] = []
        for photo in annotations.photos.values():
            if photo.error is not None:
                raise photo.error
            self._leave_out(photo, min_area_fraction)
            file = self.image_dir / photo.file_name
            if not file.is_file():
                error = ValueError(
                    f"{photo.where}: key 'file_name' names {file}, which is not a file; check image_dir."
                )
                if bad_samples is None:
                    raise error
                bad.append((photo.where, error, photo.image_id))
            elif any(region.left_out is None for region in photo.regions):
                self._photos.append(photo)
            else:
                self.rejected["photo without region"] += 1
        if bad_samples is not None:
            bad_samples.add_checked(str(image_dir), len(annotations.photos), bad)

    def _leave_out(self, photo: CocoPhoto, min_area_fraction: float) -> None:
        """Counts what is no region; keeps those that are, and those that are too small, for the texts of others."""
        for region in photo.regions:
            if region.error is not None:
                raise region.error
            if region.left_out is None and region.area < min_area_fraction * photo.width * photo.height:
                region.left_out = "too small"
            if region.left_out is not None:
                self.rejected[region.left_out] += 1
        photo.regions = [region for region in photo.regions if region.left_out in (None, "too small")]

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> RegionSample:
        photo = self._photos[index]
        file = self.image_dir / photo.file_name
        image = open_stored_image(file, f"{photo.where}: {file}", (photo.width, photo.height))
        panoptic = None if photo.panoptic is None else read_panoptic_ids(photo)
        regions = [region for region in photo.regions if self.compose_texts or region.left_out is None]
        masks = [panoptic == region.mask if isinstance(region.mask, int) else region.mask for region in regions]
        for region, mask in zip(regions, masks):
            if isinstance(mask, np.ndarray) and not mask.any():
                raise ValueError(f"{photo.panoptic} holds no pixel of segment {region.mask}, which its JSON lists.")
        categories = [region.category for region in regions]
        if self.compose_texts:
            shape = (photo.height, photo.width)
            decoded = [to_mask(mask, *shape, f"mask of region {i} of {file}") >= 0.5 for i, mask in enumerate(masks)]
            descriptions = describe_regions(image, decoded, categories, photo.grouped)
            texts = [description.text for description in descriptions]
            object_texts = [description.object_text for description in descriptions]
        else:
            texts = object_texts = [noun_of(category).phrase() for category in categories]
        kept = [i for i, region in enumerate(regions) if region.left_out is None]
        return {
            "image": image,
            "image_id": photo.image_id,
            "captions": list(photo.captions),
            "masks": [masks[i] for i in kept],
            "texts": [texts[i] for i in kept],
            "object_texts": [object_texts[i] for i in kept],
            "categories": [categories[i] for i in kept],
            "epoch": self.epoch,
        }
