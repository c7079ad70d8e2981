# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""WebDataset tar shards as a source."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from ..region_shards import StoredRecord
from .config import SourceSettings
from .file_source import ShardSource
from .folder_source import item_of_record
from .grit_source import grit_identifier, image_of_grit, parsed_record
from .records import SourceImage
from .source_regions import BadImage, ImagePlace, checked_path
from .sources import SourceError, matching_files


class WebDatasetSource(ShardSource):
    """Reads tar shards in the WebDataset layout, one image a sample: `<key>.jpg` (or .png, ...) and `<key>.json`.

    The JSON is a record of `FolderSource`, its `image` optional, or, where it has `ref_exps`, what img2dataset writes of GRIT, or
    Alpha-CLIP's with `seudo_masks` (see `GritSource`). The headers of all tars are read when the source is opened, but for those
    that a `sizes.json` in their folder counts. What is lost where a tar is cut is an error at one position.

    Args:
        settings (`SourceSettings`):
            `path` (a tar file, a folder of them, or a pattern) and `licence` are read.

    Raises:
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from processing_pixclip import RegionJsonlDataset, write_region_webdataset
        >>> dataset = RegionJsonlDataset("examples/data/coco_regions/heldout.jsonl")
        >>> folder = Path(tempfile.mkdtemp()) / "shards"
        >>> _ = write_region_webdataset(dataset.records[:5], folder, dataset.image_root, samples_per_shard=3)
        >>> source = WebDatasetSource(SourceSettings(format="webdataset", path=str(folder / "*.tar")))
        >>> len(source), next(source.read(4, 5)).location["tar"]
        (5, '00001.tar')
    """

    def __init__(self, settings: SourceSettings):
        super().__init__(settings, matching_files(settings, (".tar",)), "webdataset")

    def _item(self, shard: str, index: int, stored: StoredRecord) -> SourceImage | SourceError:
        key = None
        try:
            record = parsed_record(stored)
            name, offset, size = stored.member
            place = ImagePlace(
                checked_path(name, "the tar"), {"tar": shard, "offset": offset, "size": size}, stored.image
            )
            path = PurePosixPath(place.file)
            # Up to the first dot of the name: folders may have dots too.
            key = str(path.with_name(path.name.partition(".")[0]))
            if "ref_exps" in record:
                key = grit_identifier(record) or key
                return image_of_grit(record, key, place, self._settings.licence)
        except BadImage as bad:
            return bad.error(stored.where, key)

        def named(name: Any) -> ImagePlace:
            return place if name is None else replace(place, file=checked_path(name))

        return item_of_record(record, stored.where, self._settings.licence, named, key)
