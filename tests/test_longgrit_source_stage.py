# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""LongGRIT's source stage: manifest shards, going on after a stop, duplicates over the whole source, masks by SAM 2."""

import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sam2 import tiny_sam2

from processing_pixclip.longgrit import source_stage
from processing_pixclip.longgrit.box_masks import BoxMasks
from processing_pixclip.longgrit.config import LongGritSettings
from processing_pixclip.longgrit.crop_hashes import crop_hash
from processing_pixclip.longgrit.records import ImageWork, SourceImage, SourceRegion
from processing_pixclip.longgrit.source_stage import manifest_shards, read_manifest_shard, run_source_stage
from processing_pixclip.longgrit.sources import SourceError
from processing_pixclip.regions import encode_rle, mask_to_box, to_mask


SIZE = (96, 64)


class ListSource:
    """Items in memory, as any other reader gives them; waits before each where `wait` is set."""

    def __init__(self, items, wait=0.0):
        self.items, self.wait, self.reads = items, wait, []

    def __len__(self):
        return len(self.items)

    def fingerprint(self):
        return hashlib.sha256(repr(self.items).encode()).hexdigest()[:32]

    def read(self, start, stop):
        self.reads.append((start, stop))
        for item in self.items[start:stop]:
            time.sleep(self.wait)
            yield item


class Progress:
    def __init__(self):
        self.seen = []

    def source(self, images, total_images):
        self.seen.append((images, total_images))


def photo(seed):
    coarse = np.random.default_rng(seed).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)


def source_image(number, *regions):
    numbered = tuple(
        dataclasses.replace(region, region_id=f"{number}#{position}") for position, region in enumerate(regions)
    )
    name = f"{number}.jpg"
    return SourceImage(str(number), name, {"path": name}, *SIZE, numbered, captions=("a photo",))


def box(*sides, **fields):
    return SourceRegion("", sides, **{"mask_source": "box", **fields})


def settings_for(folder, out="out", shard=3, filters=None, **source):
    return LongGritSettings(
        output_dir=folder / out,
        source={"format": "folder", "path": str(folder / "regions.jsonl"), "image_root": str(folder), **source},
        filters={"hash_distance": None, **(filters or {})},
        engine="rules",
        output={"images_per_shard": shard},
    )


def photos_with_copies(folder, count=14):
    """Photos on disk, every third one a lossy copy of an earlier one, with three regions each."""
    for number in range(count):
        original = number - 4 if number % 3 == 2 and number > 4 else number
        photo(original).save(folder / f"{number}.jpg", quality=95 - 5 * (number % 3))
    ellipse = np.hypot((np.arange(96) - 60) / 30, (np.arange(64)[:, None] - 30) / 25) < 1
    mask = SourceRegion("", (0, 0, 1, 1), encode_rle(ellipse), category="blob")
    regions = (box(2, 3, 40, 50, phrase="left"), mask, box(1, 1, 2, 2), box(2, 3, 40, 51))
    items = [source_image(number, *regions) for number in range(count)]
    items[4] = SourceError("line 5", "missing_image", "no such file", "4")
    return ListSource(items)


def manifest(settings):
    return [
        item
        for n in range(manifest_shards(settings.output_dir))
        for item in read_manifest_shard(settings.output_dir, n)
    ]


def manifest_bytes(settings):
    return {path.name: path.read_bytes() for path in (settings.output_dir / "run" / "source").iterdir()}


# ------------------------------------------------------------------------------------------------ the manifest


def test_the_manifest_holds_every_position_and_every_region_once_and_the_summary_counts_them(tmp_path):
    source, progress = photos_with_copies(tmp_path), Progress()
    settings = settings_for(tmp_path, filters={"hash_distance": 4})
    summary = run_source_stage(settings, source=source, progress=progress)
    items = manifest(settings)
    assert [item.image_id for item in items] == [str(number) for number in range(14)]
    assert items[4] == source.items[4]
    images = [item for item in items if isinstance(item, SourceImage)]
    assert [region.region_id for image in images for region in image.regions] == [
        region.region_id for image in source.items if isinstance(image, SourceImage) for region in image.regions
    ]
    dropped = [region.dropped for image in images for region in image.regions]
    assert summary.accepted == dropped.count(None)
    assert summary.dropped == {name: dropped.count(name) for name in {*dropped} - {None}}
    assert summary.dropped.keys() == {"too_small", "duplicate_mask", "duplicate_crop"}
    assert (summary.images, summary.regions, summary.shards, summary.complete) == (13, 52, 5, True)
    assert summary.errors == {"missing_image": 1}
    assert sum(summary.mask_sources.values()) == summary.accepted and summary.mask_sources.keys() == {
        "box",
        "annotation",
    }
    assert progress.seen == [(3, 14), (6, 14), (9, 14), (12, 14), (14, 14)]
    # What is not changed by a filter comes back as it went in.
    size = (tmp_path / images[0].location["path"]).stat().st_size
    assert dataclasses.replace(images[0], regions=()) == dataclasses.replace(
        source.items[0], regions=(), file_size=size
    )
    assert images[0].regions[0] == source.items[0].regions[0]


def test_no_image_is_decoded_where_no_crop_is_compared(tmp_path):
    # There are no image files at all.
    settings = settings_for(tmp_path)
    summary = run_source_stage(settings, source=ListSource([source_image(n, box(1, 1, 60, 60)) for n in range(7)]))
    assert (summary.accepted, summary.shards) == (7, 3)


def test_an_image_that_cannot_be_read_drops_its_regions_and_no_others(tmp_path, caplog):
    for number in range(4):
        photo(number).save(tmp_path / f"{number}.jpg")
    (tmp_path / "1.jpg").write_bytes(b"no image")
    Image.new("RGB", (10, 10)).save(tmp_path / "2.jpg")
    (tmp_path / "3.jpg").unlink()
    items = [source_image(n, box(1, 1, 60, 60), box(1, 1, 2, 2)) for n in range(4)]
    settings = settings_for(tmp_path, filters={"hash_distance": 0})
    run_source_stage(settings, source=ListSource(items))
    found = [[region.dropped for region in item.regions] for item in manifest(settings)]
    assert found == [[None, "too_small"]] + 3 * [["unreadable_image", "too_small"]]
    assert sorted(record.args[0] for record in caplog.records) == ["1", "2", "3"]
    assert "is 10 pixels wide and 10 high, but its entry says 96 and 64" in caplog.text


def test_a_source_that_gives_too_few_items_is_an_error_and_no_shard(tmp_path):
    class Short(ListSource):
        def read(self, start, stop):
            yield from self.items[start : stop - 1]

    settings = settings_for(tmp_path)
    with pytest.raises(ValueError, match="2 items for the positions 0 to 3"):
        run_source_stage(settings, source=Short([source_image(n) for n in range(5)]))
    assert manifest_shards(settings.output_dir) == 0
    with pytest.raises(FileNotFoundError, match="run the source stage first"):
        read_manifest_shard(settings.output_dir, 0)


def test_nothing_in_the_source_is_an_empty_manifest(tmp_path):
    summary = run_source_stage(settings_for(tmp_path), source=ListSource([]))
    assert (summary.shards, summary.complete) == (0, True)


# ------------------------------------------------------------------------------------------------ duplicates


def naive_near_duplicates(source, folder, distance):
    """For each region that the image's own filters leave: whether it is near an earlier one that stays."""
    kept, found = [], {}
    for item in source.items:
        if isinstance(item, SourceError):
            continue
        work = ImageWork(item, (folder / item.file).read_bytes)
        for region in item.regions[:2]:
            value = crop_hash(work.picture(), work.mask(region))
            found[region.region_id] = any((value ^ other).bit_count() <= distance for other in kept)
            if not found[region.region_id]:
                kept.append(value)
    return found


@pytest.mark.parametrize("distance", [0, 4, 12])
def test_duplicate_crops_are_those_of_comparing_each_with_each_however_often_it_was_stopped(tmp_path, distance):
    source = photos_with_copies(tmp_path, count=30)
    filters = {"hash_distance": distance}
    whole, parts = settings_for(tmp_path, "whole", filters=filters), settings_for(tmp_path, "parts", filters=filters)
    run_source_stage(whole, source=source)
    found = {
        region.region_id: region.dropped == "duplicate_crop"
        for item in manifest(whole)
        if isinstance(item, SourceImage)
        for region in item.regions[:2]
    }
    assert found == naive_near_duplicates(source, tmp_path, distance)
    if distance:
        assert 5 < sum(found.values()) < len(found)
    limit = 0
    while not run_source_stage(parts, limit=limit, source=source).complete:
        limit += 5
    assert manifest_bytes(parts) == manifest_bytes(whole)


def test_the_manifest_does_not_hang_on_which_thread_is_first(tmp_path, monkeypatch):
    source = photos_with_copies(tmp_path, count=20)
    filters = {"hash_distance": 6}
    one = settings_for(tmp_path, "one", shard=20, filters=filters)
    monkeypatch.setattr(source_stage, "_THREADS", 1)
    run_source_stage(one, source=source)

    def late(picture, mask):
        time.sleep(random.random() / 100)
        return crop_hash(picture, mask)

    random = np.random.default_rng(0)
    monkeypatch.setattr(source_stage, "_THREADS", 8)
    monkeypatch.setattr(source_stage, "crop_hash", late)
    many = settings_for(tmp_path, "many", shard=20, filters=filters)
    run_source_stage(many, source=source)
    assert manifest_bytes(many) == manifest_bytes(one)


# ------------------------------------------------------------------------------------------------ identifiers


@pytest.mark.parametrize("filters", [{"hash_distance": None}, {"hash_distance": 4}])
def test_an_image_id_that_comes_again_is_an_error_in_whichever_shard_and_after_a_stop(tmp_path, filters):
    source = photos_with_copies(tmp_path, count=14)
    source.items[5] = dataclasses.replace(source.items[3], file="again.jpg")
    source.items[13] = dataclasses.replace(source.items[1], location={"tar": "7.tar", "offset": 512, "size": 9})
    # The first with this identifier could not be used, so it is free.
    source.items[6] = source_image(4, box(1, 1, 60, 60))
    whole, parts = settings_for(tmp_path, "whole", filters=filters), settings_for(tmp_path, "parts", filters=filters)
    summary = run_source_stage(whole, source=source)
    assert summary.errors == {"missing_image": 1, "duplicate_image_id": 2} and summary.images == 11
    items = manifest(whole)
    found = {n: item for n, item in enumerate(items) if isinstance(item, SourceError)}
    assert found.keys() == {4, 5, 13}
    assert [found[n].where for n in (5, 13)] == [
        "position 5 of the source, again.jpg",
        "position 13 of the source, 1.jpg in 7.tar",
    ]
    assert (found[5].image_id, found[5].reason) == ("3", "duplicate_image_id") and "'3'" in found[5].detail
    limit = 0
    while not run_source_stage(parts, limit=limit, source=source).complete:
        limit += 2
    assert manifest_bytes(parts) == manifest_bytes(whole)


def test_lines_that_repeat_an_image_id_are_counted_and_every_region_id_is_there_once(tmp_path):
    photo(0).save(tmp_path / "a.jpg")
    lines = [{"image": "a.jpg", "image_id": n, "regions": [{"box": [1, 1, 60, 60]}]} for n in ("1", "2", "1", "2")]
    (tmp_path / "regions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = settings_for(tmp_path)
    assert run_source_stage(settings).errors == {"duplicate_image_id": 2}
    images = [item for item in manifest(settings) if isinstance(item, SourceImage)]
    assert [region.region_id for image in images for region in image.regions] == ["1#0", "2#0"]


def test_an_image_with_a_region_id_twice_is_an_error_and_leaves_its_own_id_free(tmp_path):
    twice = source_image(1, box(1, 1, 60, 60), box(30, 1, 90, 60))
    twice = dataclasses.replace(
        twice, regions=(twice.regions[0], dataclasses.replace(twice.regions[1], region_id="1#0"))
    )
    settings = settings_for(tmp_path)
    summary = run_source_stage(settings, source=ListSource([twice, source_image(1, box(1, 1, 60, 60))]))
    assert summary.errors == {"duplicate_region_id": 1} and summary.accepted == 1
    assert "2 regions have the region_id '1#0'" in manifest(settings)[0].detail


# ------------------------------------------------------------------------------------------------ stops


def test_a_limit_ends_behind_the_shard_that_reaches_it_and_a_later_call_goes_on(tmp_path):
    source = ListSource([source_image(n, box(1, 1, 60, 60), box(40, 1, 90, 60), box(1, 1, 2, 2)) for n in range(11)])
    settings = settings_for(tmp_path)
    first = run_source_stage(settings, limit=7, source=source)
    assert (first.shards, first.accepted, first.complete) == (2, 12, False)
    assert source.reads == [(0, 3), (3, 6)]
    again = run_source_stage(settings, limit=12, source=source)
    assert (again, source.reads) == (first, [(0, 3), (3, 6)])
    last = run_source_stage(settings, source=source)
    assert (last.shards, last.accepted, last.complete) == (4, 22, True)
    assert source.reads[2:] == [(6, 9), (9, 11)]


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"shard": 4}, "images_per_shard was 3 and is 4"),
        ({"filters": {"min_area": 0.01}}, "filters.min_area was 0.001 and is 0.01"),
        ({"filters": {"hash_distance": 2}}, "filters.hash_distance was None and is 2"),
        ({"masks": "sam2"}, "source.masks was 'box' and is 'sam2'"),
    ],
)
def test_a_folder_made_with_other_settings_is_refused_and_left_alone(tmp_path, changed, named):
    source = ListSource([source_image(n, box(1, 1, 60, 60)) for n in range(7)])
    settings = settings_for(tmp_path)
    run_source_stage(settings, limit=1, source=source)
    before = manifest_bytes(settings)
    with pytest.raises(ValueError, match=named):
        run_source_stage(settings_for(tmp_path, **changed), source=source)
    assert manifest_bytes(settings) == before
    # Where SAM 2 runs changes nothing.
    run_source_stage(settings_for(tmp_path, sam2_device="cuda"), source=source)


def test_a_folder_made_of_another_source_is_refused(tmp_path):
    settings = settings_for(tmp_path)
    run_source_stage(settings, source=ListSource([source_image(n) for n in range(7)]))
    with pytest.raises(ValueError, match="fingerprint was .* and is .*; images was 7 and is 8"):
        run_source_stage(settings, source=ListSource([source_image(n) for n in range(8)]))


def killed_run(settings, source, after):
    """Runs the stage in a process of its own, killed after so many seconds or by what `after` patches into it."""

    def run():
        if callable(after):
            after()
        run_source_stage(settings, source=source)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    if not callable(after):
        process.join(after)
        process.kill()
    process.join()
    return process.exitcode


def test_after_kills_at_random_moments_the_manifest_is_that_of_an_uninterrupted_run(tmp_path):
    source = photos_with_copies(tmp_path, count=30)
    source.wait = 0.01
    filters = {"hash_distance": 4}
    whole, killed = settings_for(tmp_path, "whole", 2, filters), settings_for(tmp_path, "killed", 2, filters)
    run_source_stage(whole, source=source)
    random, kills = np.random.default_rng(0), 0
    for _ in range(12):
        kills += killed_run(killed, source, after=random.uniform(0.01, 0.12)) == -signal.SIGKILL
        # Whatever has its name is whole.
        assert len(manifest(killed)) == 2 * manifest_shards(killed.output_dir)
    # The source alone takes longer than the first two are given.
    assert kills >= 2
    run_source_stage(killed, source=source)
    assert manifest_bytes(killed) == manifest_bytes(whole)


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_while_a_file_is_written_leaves_no_torn_one(tmp_path, moment):
    source = ListSource([source_image(n, box(1, 1, 60, 60)) for n in range(7)])
    whole, killed = settings_for(tmp_path, "whole"), settings_for(tmp_path, "killed")
    run_source_stage(whole, source=source)

    def die_at_sync():
        # Each file is synchronised once with all of its content but not yet its name, and once with its name.
        left, sync = [moment], os.fsync

        def fsync(descriptor):
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            sync(descriptor)

        os.fsync = fsync

    assert killed_run(killed, source, die_at_sync) == -signal.SIGKILL
    shards = manifest_shards(killed.output_dir)
    assert shards == (0, 0, 0, 1, 1, 2)[moment] and len(manifest(killed)) == 3 * shards
    run_source_stage(killed, source=source)
    assert manifest_bytes(killed) == manifest_bytes(whole)


# ------------------------------------------------------------------------------------------------ SAM 2


def test_masks_of_boxes_are_those_of_the_model_asked_for_one_box_of_one_image_at_a_time():
    model = tiny_sam2()
    pictures = [photo(0), photo(1).resize((50, 120)), photo(2)]
    boxes = [[(10, 10, 60, 50), (0, 0, 96, 64), (3.4, 4, 9, 60.5)], [(5, 5, 45, 100)], [(50, 0, 96, 30)] * 2]
    found = BoxMasks(model).segment(pictures, boxes)
    assert [len(masks) for masks in found] == [3, 1, 2]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for picture, of_image, masks in zip(pictures, boxes, found):
        values = (np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR)) / 255 - mean) / std
        values = torch.from_numpy(values).permute(2, 0, 1)[None].float()
        for sides, mask in zip(of_image, masks):
            scaled = np.array(sides) * (64 / np.array([*picture.size] * 2))
            prompt = torch.tensor(scaled, dtype=torch.float32)[None, None]
            with torch.no_grad():
                logits = model(pixel_values=values, input_boxes=prompt, multimask_output=False).pred_masks[0]
            logits = torch.nn.functional.interpolate(logits, picture.size[::-1], mode="bilinear")[0, 0].numpy()
            inside = np.zeros(mask.shape, dtype=bool)
            left, top, right, bottom = np.rint(sides).astype(int)
            inside[top:bottom, left:right] = True
            # Values next to the threshold may fall on either side, by the order of sums.
            clear = np.abs(logits) > 1e-4
            assert clear.mean() > 0.95
            assert mask.dtype == bool and np.array_equal(mask[clear], ((logits > 0) & inside)[clear])
            assert mask.any() and not mask[~inside].any()


def test_the_source_stage_gives_boxes_their_masks_and_says_so(tmp_path):
    tiny_sam2().save_pretrained(tmp_path / "sam2")
    for number in range(7):
        photo(number).save(tmp_path / f"{number}.jpg")
    ellipse = np.hypot((np.arange(96) - 60) / 30, (np.arange(64)[:, None] - 30) / 25) < 1
    masked = SourceRegion("", (0, 0, 1, 1), encode_rle(ellipse))
    several = (
        box(2, 3, 40, 50, score=0.5),
        masked,
        box(50, 5, 90, 60),
        box(9, 9, 3, 3),
        box(5, 5, 9, 9, dropped="crowd"),
    )
    items = [source_image(n, *several[: 1 + n % 5]) for n in range(7)]
    # Its only region has a mask, so nobody misses the file.
    items[5] = source_image(5, masked)
    (tmp_path / "5.jpg").unlink()
    # This one is missed.
    (tmp_path / "6.jpg").write_bytes(b"no image")
    items.append(SourceError("line 8", "missing_image", "no such file"))
    settings = settings_for(tmp_path, shard=8, masks="sam2", sam2_model=str(tmp_path / "sam2"))
    settings = settings.model_copy(
        update={"filters": settings.filters.model_copy(update={"max_iou": 1.0, "min_area": 0.0})}
    )
    summary = run_source_stage(settings, source=ListSource(items))
    *images, error = manifest(settings)
    assert error == items[-1]
    for image, given in zip(images, items):
        for region, before in zip(image.regions, given.regions, strict=True):
            if image.image_id == "6" and before.mask is None:
                assert (region.dropped, region.mask_source) == ("unreadable_image", "box")
            elif before.mask is not None:
                assert (region.mask, region.mask_source) == (before.mask, "annotation")
            elif before.dropped or before.box == (9, 9, 3, 3):
                assert region.mask is None and region.dropped in ("crowd", "malformed_box")
            else:
                mask = to_mask(region.mask, 64, 96) > 0
                assert region.mask_source == "sam2" and region.box == tuple(mask_to_box(mask))
                assert mask[before.box[1] : before.box[3], before.box[0] : before.box[2]].sum() == mask.sum()
    assert summary.mask_sources["sam2"] == 8 and summary.mask_sources["annotation"] == 5
    run_source_stage(again := settings.model_copy(update={"output_dir": tmp_path / "again"}), source=ListSource(items))
    assert manifest_bytes(again) == manifest_bytes(settings)


def test_a_box_in_which_sam2_finds_nothing_is_dropped():
    model = tiny_sam2()
    # The mask is a product with what this layer puts out; with it at zero no pixel is above the threshold.
    for hypernetwork in model.mask_decoder.output_hypernetworks_mlps:
        torch.nn.init.zeros_(hypernetwork.proj_out.weight)
        torch.nn.init.zeros_(hypernetwork.proj_out.bias)
    file = io.BytesIO()
    photo(0).save(file, "PNG")
    work = ImageWork(source_image(0, box(2, 3, 40, 50)), file.getvalue)
    (found,) = BoxMasks(model)([work])
    region = found.source.regions[0]
    assert (region.dropped, region.mask, region.mask_source, region.placed) == ("empty_mask", None, "box", True)
