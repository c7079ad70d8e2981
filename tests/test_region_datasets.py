# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Readers of region data: what they yield, what they count as left out, and what they refuse."""

import json
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from accelerate import Accelerator
from PIL import Image
from tokenizers import normalizers
from torch.utils.data import DataLoader

from processing_pixclip import (
    BadSampleLog,
    CocoRegionDataset,
    PixCLIPImageProcessor,
    RegionJsonlDataset,
    check_record,
    encode_rle,
    to_mask,
    write_region_jsonl,
)
from processing_pixclip.region_records import is_text, open_stored_image


WIDTH, HEIGHT = 60, 40


def rectangle(x1, y1, x2, y2):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y1:y2, x1:x2] = True
    return mask


def polygon(x1, y1, x2, y2):
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


@pytest.fixture
def record(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), (200, 20, 20)).save(tmp_path / "images" / "1.png")
    return {
        "image": "images/1.png",
        "image_id": "1",
        "width": WIDTH,
        "height": HEIGHT,
        "captions": ["A red wall in a café."],
        "regions": [
            {
                "mask": encode_rle(rectangle(5, 5, 20, 20)),
                "category": "kite",
                "object_text": "a red kite",
                "text": "A red kite on a red wall.",
                "text_source": "written",
            },
            {"mask": polygon(30, 10, 50, 30), "text": "Part of a red wall."},
        ],
    }


def write_lines(tmp_path, *records):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n", encoding="utf-8")
    return path


def test_jsonl_round_trip(tmp_path, record):
    write_region_jsonl([record], tmp_path / "data.jsonl")
    dataset = RegionJsonlDataset(tmp_path / "data.jsonl")
    assert len(dataset) == 1
    sample = dataset[0]
    assert sample["image"].mode == "RGB" and sample["image"].size == (WIDTH, HEIGHT)
    assert sample["image_id"] == "1" and sample["captions"] == ["A red wall in a café."]
    assert sample["texts"] == ["A red kite on a red wall.", "Part of a red wall."]
    assert sample["object_texts"] == ["a red kite", None] and sample["categories"] == ["kite", None]
    assert sample["masks"] == [region["mask"] for region in record["regions"]]
    np.testing.assert_array_equal(to_mask(sample["masks"][0], HEIGHT, WIDTH) > 0.5, rectangle(5, 5, 20, 20))


def test_jsonl_with_boxes_long_captions_and_hard_negatives(tmp_path, record):
    record["long_captions"] = [" A red wall in a café, with a kite on it. "]
    record["regions"][0]["hard_negatives"] = ["A blue kite on a red wall. ", "A red car on a red wall."]
    record["regions"].append({"box": [30, 10.5, 50, 30], "text": "The lower part of a wall."})
    dataset = RegionJsonlDataset(write_lines(tmp_path, record))
    sample = dataset[0]
    assert sample["long_captions"] == ["A red wall in a café, with a kite on it."]
    assert sample["boxes"] == [None, None, [30.0, 10.5, 50.0, 30.0]]
    expected = rectangle(30, 10, 50, 30).astype(np.float32)
    expected[10, 30:50] = 0.5
    np.testing.assert_array_equal(sample["masks"][2], expected)
    assert sample["hard_negatives"] == [["A blue kite on a red wall.", "A red car on a red wall."], [], []]
    assert sample["epoch"] == 0
    dataset.set_epoch(2)
    assert dataset[0]["epoch"] == 2


def test_jsonl_counts_bad_lines_and_goes_on(tmp_path, record):
    path = tmp_path / "data.jsonl"
    missing = {**record, "image": "images/2.png"}
    no_area = change(record, "regions", 1, value={"box": [5, 5, 5, 9], "text": "A line."})
    lines = [
        json.dumps(record),
        "{'image': 1}",
        json.dumps(missing),
        "\udcff",
        json.dumps(no_area),
        json.dumps(record),
    ]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    log = BadSampleLog(tmp_path / "bad_samples.jsonl", max_bad_fraction=0.7)
    dataset = RegionJsonlDataset(path, bad_samples=log)
    assert len(dataset) == 2 and (log.num_good, log.num_bad) == (0, 4)
    bad = [json.loads(line) for line in (tmp_path / "bad_samples.jsonl").read_text().splitlines()]
    assert [line["where"] for line in bad] == [f"{path}, line {number}" for number in (2, 3, 4, 5)]
    assert "2.png, which is not a file" in bad[1]["reason"] and "has no area" in bad[3]["reason"]
    Image.new("RGB", (1, 1)).save(tmp_path / "images" / "1.png")
    with pytest.raises(ValueError, match="line 6: images/1.png is 1 pixels wide"):
        dataset[1]


NASTY = [10**30, 10**400, -1, 0, 1e308, float("nan"), float("inf"), "x" * 100_000, "\u200b", "\ud83d", "", True, None]
NASTY += [[], {}, [[]], [[10**30, 0, 5, 5, 0, 5]], [10**30] * 4, ["x" * 100_000], {"x" * 100_000: 1}, "../1.png"]
NASTY += [{"size": [10**30, 2], "counts": [1]}, {"size": "x" * 100_000, "counts": {}}, [[1e300, 0, 5, 5, 0, 5]]]


def places_of(item):
    """The path of every value in a record."""
    for key, value in item.items() if isinstance(item, dict) else enumerate(item):
        yield [key]
        if isinstance(value, (dict, list)):
            yield from ([key, *rest] for rest in places_of(value))


def test_whatever_a_record_holds_is_taken_or_a_short_value_error(record):
    box = {"box": [1, 2, 5, 6], "text": "A box.", "hard_negatives": ["A bag."]}
    record = {**record, "long_captions": ["Long."], "regions": [*record["regions"], box]}
    refused = 0
    for place in places_of(record):
        for value in NASTY:
            try:
                check_record(change(record, *place, value=value), "line 1")
            except ValueError as error:
                refused += 1
                assert str(error).startswith("line 1") and len(str(error)) < 2000
    assert refused > 300
    large = {**record, "width": 10**30, "height": 10**30, "regions": [{"mask": [[0, 0, 5, 0, 5, 5]], "text": "A."}]}
    with pytest.raises(
        ValueError, match="line 1: the image is 1000.* pixels wide and .* accepted are up to 178956970"
    ):
        check_record(large, "line 1")


def test_a_line_with_megabytes_in_a_key_is_a_short_line_of_the_log(tmp_path, record, caplog):
    path = write_lines(tmp_path, record, {**record, "width": "9" * 5_000_000}, {**record, "image": "x" * 5000})
    log = BadSampleLog(tmp_path / "out" / "bad_samples.jsonl", max_bad_fraction=0.9)
    assert len(RegionJsonlDataset(path, bad_samples=log)) == 1
    lines = log.path.read_text().splitlines()
    assert len(lines) == 2 and max(map(len, lines)) < 1500


def test_strips_are_refused_before_they_are_blown_up(tmp_path, record):
    Image.new("RGB", (1000, 9)).save(tmp_path / "images" / "strip.png")
    Image.new("RGB", (1000, 10)).save(tmp_path / "images" / "panorama.png")
    strip = {"image": "images/strip.png", "image_id": "strip", "width": 1000, "height": 9, "regions": []}
    with pytest.raises(
        ValueError, match="line 1: the image is 1000 pixels wide and 9 high; accepted is up to 100 times"
    ):
        RegionJsonlDataset(write_lines(tmp_path, strip))
    panorama = {**strip, "image": "images/panorama.png", "height": 10}
    sample = RegionJsonlDataset(write_lines(tmp_path, panorama))[0]
    processor = PixCLIPImageProcessor(size={"height": 448, "width": 448}, resize_mode="shortest_edge")
    assert processor([sample["image"]])["pixel_values"][0].shape == (3, 448, 448)
    with pytest.raises(ValueError, match="photo: the image is 9 pixels wide and 1000 high"):
        Image.new("RGB", (9, 1000)).save(tmp_path / "images" / "strip.png")
        open_stored_image(tmp_path / "images" / "strip.png", "photo")


def test_a_text_shows_something_to_every_normalizer():
    kept = [
        normalizers.BertNormalizer(),
        normalizers.NFKC(),
        normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()]),
    ]
    # Those that every version of Unicode knows; the tables of Python and of tokenizers differ on new ones.
    known = (c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.ucd_3_2_0.category(c) != "Cn")
    accepted = list(filter(is_text, known))
    assert len(accepted) > 90_000
    # Each alone, so that none hides behind another.
    for normalizer in kept:
        assert [text for text in accepted if not normalizer.normalize_str(text).strip()] == []
    for text in ("a", "7", "\u4e2d", "\U0001f600", "?", " \u200b.", "e\u0301"):
        assert is_text(text)
    for text in (
        "",
        " \n",
        "\u200b",
        "\ufeff",
        "\u00ad",
        "\u0301",
        "\ufe0f\u200d",
        "\ufffd",
        "\u3164",
        "\ue000",
        "a\ud83d",
    ):
        assert not is_text(text)


def test_jsonl_takes_another_image_root_and_blank_lines(tmp_path, record):
    (tmp_path / "texts").mkdir()
    path = tmp_path / "texts" / "data.jsonl"
    path.write_text("\n" + json.dumps(record) + "\n\n")
    assert RegionJsonlDataset(path, image_root=tmp_path)[0]["image_id"] == "1"
    with pytest.raises(ValueError, match=r"line 2: key 'image' names .*check image_root"):
        RegionJsonlDataset(path)


def change(record, *keys, value=None, delete=False):
    changed = json.loads(json.dumps(record))
    item = changed
    for key in keys[:-1]:
        item = item[key]
    if delete:
        del item[keys[-1]]
    else:
        item[keys[-1]] = value
    return changed


@pytest.mark.parametrize(
    "keys, options, message",
    [
        (("image",), {"delete": True}, "line 2: key 'image' is missing"),
        (("image",), {"value": "images/2.png"}, "line 2: key 'image' names .*2.png, which is not a file"),
        (("image_id",), {"value": 1}, "line 2: key 'image_id' is 1; accepted is a string"),
        (("width",), {"value": True}, "line 2: key 'width' is True"),
        (("height",), {"value": 0}, "line 2: key 'height' is 0"),
        (("captions",), {"value": "A wall."}, "line 2: key 'captions' is 'A wall.'"),
        (("captions",), {"value": ["A wall.", " "]}, r"line 2: captions\[1\]"),
        (("regions",), {"delete": True}, "line 2: key 'regions' is missing"),
        (("regions",), {"value": {}}, "line 2: key 'regions'"),
        (("long_captions",), {"value": [7]}, r"line 2: long_captions\[0\] is 7"),
        (("regions", 0, "hard_negatives"), {"value": "A car."}, r"regions\[0\]: key 'hard_negatives' is 'A car.'"),
        (("regions", 0, "hard_negatives"), {"value": [" "]}, r"line 2: regions\[0\]: hard_negatives\[0\]"),
        (("regions", 0, "box"), {"value": [0, 0, 9, 9]}, r"line 2: regions\[0\] has both a 'mask' and a 'box'"),
        (("regions", 0, "mask"), {"delete": True}, r"line 2: regions\[0\] has neither a 'mask' nor a 'box'"),
        (("regions", 1), {"value": {"box": [9, 9, 9, 20], "text": "A."}}, r"regions\[1\]: key 'box' is .*no area"),
        (("regions", 1), {"value": {"box": [0, 0, 99, 9], "text": "A."}}, r"regions\[1\]: key 'box' is .*outside its"),
        (("regions", 1, "text"), {"delete": True}, r"line 2: regions\[1\]: key 'text' is missing"),
        (("regions", 1, "text"), {"value": " "}, r"line 2: regions\[1\]: key 'text' is empty"),
        (("regions", 0, "object_text"), {"value": ""}, r"line 2: regions\[0\]: key 'object_text' is empty"),
        (("regions", 0, "mask"), {"value": "abc"}, r"line 2: regions\[0\]: key 'mask' is 'abc'"),
        (("regions", 0, "mask"), {"value": {"size": [1, 1]}}, r"line 2: regions\[0\]: key 'mask' is not a mask"),
        (("regions", 0, "mask", "size"), {"value": [WIDTH, HEIGHT]}, r"regions\[0\]: key 'mask' has size \[60, 40\]"),
        (("regions", 0, "txet"), {"value": "A kite."}, r"line 2: regions\[0\]: key 'txet' is unknown"),
        (("regions", 1, "text"), {"value": "half \ud83d"}, r"line 2: regions\[1\]: key 'text' is .*not Unicode"),
        (("image",), {"value": "/etc/hostname"}, "line 2: key 'image' is '/etc/hostname'; accepted is a path below"),
        (("image",), {"value": "images/../images/1.png"}, r"line 2: key 'image' is .*\.\."),
        (("image",), {"value": "..\\1.png"}, "line 2: key 'image' is"),
        (("image",), {"value": "C:1.png"}, "line 2: key 'image' is"),
        (("regions", 1, "mask"), {"value": []}, r"line 2: regions\[1\]: key 'mask' is not a mask"),
        (
            ("regions", 1, "mask"),
            {"value": [[1, 1, 9, 9]]},
            r"line 2: regions\[1\]: key 'mask', polygon 0, has 2 points",
        ),
        (
            ("regions", 1, "mask"),
            {"value": polygon(50, 5, 70, 9)},
            r"line 2: regions\[1\]: key 'mask'.* outside its im",
        ),
        (
            ("regions", 1, "mask"),
            {"value": polygon(5, 5, 9, 9) + ["x"]},
            r"line 2: regions\[1\]: key 'mask', polygon 1",
        ),
        (("regions", 0, "mask", "counts"), {"value": [10, 10]}, r"line 2: regions\[0\]: key 'mask' .*add up to 20"),
        (("regions", 0, "mask", "counts"), {"value": "zz"}, r"line 2: regions\[0\]: key 'mask' is a malformed RLE"),
        (("regions", 0, "mask", "counts"), {"value": 5}, r"line 2: regions\[0\]: key 'mask' is an RLE whose counts"),
        (("regions", 0, "mask", "counts"), {"value": [WIDTH * HEIGHT]}, r"line 2: regions\[0\]: key 'mask' is empty"),
    ],
)
def test_jsonl_names_line_and_key(tmp_path, record, keys, options, message):
    path = write_lines(tmp_path, record, change(record, *keys, **options))
    with pytest.raises(ValueError, match=message) as error:
        RegionJsonlDataset(path)
    assert str(path) in str(error.value)


def test_jsonl_that_is_not_json_or_empty(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("{'image': 1}\n")
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        RegionJsonlDataset(path)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1 is a list"):
        RegionJsonlDataset(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no record"):
        RegionJsonlDataset(path)


def test_image_file_of_another_size_is_an_error(tmp_path, record):
    dataset = RegionJsonlDataset(write_lines(tmp_path, record))
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tmp_path / "images" / "1.png")
    with pytest.raises(ValueError, match="1.png is 60 pixels wide and 41 high"):
        dataset[0]


def deep_png(path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 30000, dtype=np.uint16)).save(path)


def truncated_png(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    "write, message", [(deep_png, "1.png has PIL mode 'I;16'"), (truncated_png, "1.png cannot be read .*OSError")]
)
def test_jsonl_reads_images_by_the_rules_of_the_processor(tmp_path, record, write, message):
    write(tmp_path / "images" / "1.png")
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + json.dumps(record))
    dataset = RegionJsonlDataset(path)
    with pytest.raises(ValueError, match=f"data.jsonl, line 2: .*{message}"):
        dataset[0]


def test_images_stay_as_stored(tmp_path, record):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / "1.png", exif=exif)
    assert RegionJsonlDataset(write_lines(tmp_path, record))[0]["image"].size == (WIDTH, HEIGHT)


def test_texts_lose_the_whitespace_around_them(tmp_path, record):
    record["captions"] = [" A red wall.\n"]
    record["regions"][0].update(text="\tA red kite on a wall. ", object_text=" a red kite")
    dataset = RegionJsonlDataset(write_lines(tmp_path, record))
    sample = dataset[0]
    assert sample["captions"] == ["A red wall."] and sample["texts"][0] == "A red kite on a wall."
    assert sample["object_texts"] == ["a red kite", None]
    assert dataset.records[0]["regions"][0]["text"] == sample["texts"][0]


def test_an_evaluation_of_a_plain_reader_keeps_every_row(tmp_path, record):
    dataset = RegionJsonlDataset(write_lines(tmp_path, *[change(record, "image_id", value=str(i)) for i in range(3)]))
    loader = DataLoader(dataset, batch_size=2, collate_fn=lambda samples: sum((s["texts"] for s in samples), []))
    accelerator = Accelerator(cpu=True)
    rows = [
        row
        for texts in accelerator.prepare(loader)
        for row in accelerator.gather_for_metrics(texts, use_gather_object=True)
    ]
    assert len(rows) == 6


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, record):
    path = tmp_path / "data.jsonl"
    write_region_jsonl([record], path)
    before = path.read_bytes()
    files = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"records\[1\]: key 'width' is missing"):
        write_region_jsonl([change(record, "image_id", value="2"), change(record, "width", delete=True)], path)
    assert path.read_bytes() == before and sorted(tmp_path.iterdir()) == files


CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1},
    {"id": 2, "name": "kite", "isthing": 1},
    {"id": 3, "name": "grass-merged", "isthing": 0},
]


@pytest.fixture
def coco(tmp_path):
    """Photo 1 with instances and panoptic, photo 2 with panoptic only, photo 3 with a crowd only."""
    images = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)]
    for entry, colour in zip(images, [(200, 20, 20), (20, 20, 200), (0, 0, 0)]):
        Image.new("RGB", (WIDTH, HEIGHT), colour).save(tmp_path / entry["file_name"])
    crowd = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * 10, HEIGHT * (WIDTH - 10)]}
    annotations = [
        {"image_id": 1, "category_id": 1, "segmentation": polygon(5, 5, 20, 30)},
        {"image_id": 1, "category_id": 1, "segmentation": encode_rle(rectangle(30, 5, 45, 30))},
        {"image_id": 1, "category_id": 2, "segmentation": polygon(50, 5, 52, 6)},
        {"image_id": 1, "category_id": 2, "segmentation": [[1, 2, 3, 4]]},
        {"image_id": 1, "category_id": 2, "segmentation": []},
        {"image_id": 1, "category_id": 1, "segmentation": crowd, "iscrowd": 1},
        {"image_id": 3, "category_id": 1, "segmentation": crowd, "iscrowd": 1},
    ]
    instances = {"images": [images[0], images[2]], "annotations": annotations, "categories": CATEGORIES[:2]}
    (tmp_path / "instances.json").write_text(json.dumps(instances))

    (tmp_path / "panoptic").mkdir()
    segments = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
    segments[20:] = (44, 1, 0)
    segments[:10, :20] = (7, 0, 2)
    for i in (1, 2):
        Image.fromarray(segments).save(tmp_path / "panoptic" / f"{i}.png")
    segments_info = [
        {"id": 44 + 256, "category_id": 3, "area": 1200, "iscrowd": 0},
        {"id": 7 + 2 * 65536, "category_id": 2, "area": 200, "iscrowd": 0},
    ]
    panoptic = {
        "images": images[:2],
        "annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": segments_info} for i in (1, 2)],
        "categories": CATEGORIES,
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    captions = {"annotations": [{"image_id": 1, "caption": "Two people.\n"}, {"image_id": 9, "caption": "Else."}]}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    return tmp_path


def read_coco(folder, **options):
    options = {"instances_file": folder / "instances.json", "panoptic_file": folder / "panoptic.json", **options}
    return CocoRegionDataset(folder, **options)


def test_coco_things_from_instances_stuff_from_panoptic(coco):
    dataset = read_coco(coco, captions_file=coco / "captions.json", min_area_fraction=0.01)
    first, second = dataset[0], dataset[1]
    assert len(dataset) == 2
    assert first["categories"] == ["person", "person", "grass-merged"] and first["captions"] == ["Two people."]
    assert second["categories"] == ["grass-merged", "kite"] and second["captions"] == []
    np.testing.assert_array_equal(second["masks"][0], rectangle(0, 20, WIDTH, HEIGHT))
    np.testing.assert_array_equal(second["masks"][1], rectangle(0, 0, 20, 10))
    assert first["masks"][0] == polygon(5, 5, 20, 30)


def test_coco_counts_what_it_leaves_out(coco):
    expected = {"crowd": 2, "too small": 1, "degenerate polygon": 1, "empty": 1, "photo without region": 1}
    assert read_coco(coco, min_area_fraction=0.01).rejected == Counter(expected)


def test_coco_texts_are_composed_with_regard_to_crowds_and_small_regions(coco):
    sample = read_coco(coco, min_area_fraction=0.01)[0]
    assert "first of two people from the left, not counting a larger group of people" in sample["texts"][0]
    assert sample["object_texts"][2] == "red grass"
    assert len(sample["texts"]) == len(sample["masks"]) == 3


def test_coco_without_composed_texts(coco):
    sample = read_coco(coco, compose_texts=False, min_area_fraction=0.01)[0]
    assert sample["texts"] == sample["object_texts"] == ["a person", "a person", "grass"]
    assert len(sample["masks"]) == 3


def test_coco_instances_only_and_chosen_photos(coco):
    assert len(read_coco(coco, panoptic_file=None)) == 1
    dataset = read_coco(coco, image_ids=[2])
    assert [dataset[i]["image_id"] for i in range(len(dataset))] == ["2"] and not dataset.rejected


def read_polygons(folder, *segmentations, **options):
    annotations = [{"image_id": 1, "category_id": 2, "segmentation": mask} for mask in segmentations]
    edit(folder / "instances.json", lambda content: content.update(annotations=annotations))
    return read_coco(folder, panoptic_file=None, **options)


@pytest.mark.parametrize("part", [[1, 2, 3, 4], [], [1, 1, 3, 3, 5, 5], [-0.9, 1, 0, 9, -0.5, 5]])
def test_coco_drops_degenerate_parts_and_keeps_the_region(coco, part):
    dataset = read_polygons(coco, [*polygon(5, 5, 20, 20), part], [part])
    assert dataset[0]["masks"] == [polygon(5, 5, 20, 20)]
    assert dataset.repaired == Counter({"degenerate part dropped": 1})
    assert dataset.rejected == Counter({"degenerate polygon": 1, "photo without region": 1})


def test_coco_clips_vertices_by_up_to_a_pixel_and_rejects_what_lies_further_outside(coco):
    dataset = read_polygons(
        coco, polygon(-0.4, 5, 20, HEIGHT + 1), polygon(5, 5, 20, HEIGHT + 1.1), polygon(5, 5, WIDTH + 0.0005, 20)
    )
    clipped, rounded = dataset[0]["masks"]
    assert clipped == polygon(0, 5, 20, HEIGHT) and rounded == polygon(5, 5, WIDTH + 0.0005, 20)
    assert all(to_mask(mask, HEIGHT, WIDTH).any() for mask in (clipped, rounded))
    assert dataset.repaired == Counter({"clipped to the photo": 1})
    assert dataset.rejected == Counter({"outside the photo": 1, "photo without region": 1})


def test_coco_images_are_read_by_the_rules_of_the_processor(coco):
    dataset = read_coco(coco)
    deep_png(coco / "1.png")
    with pytest.raises(ValueError, match=r"instances.json: images\[0\]: .*1.png has PIL mode 'I;16'"):
        dataset[0]


def test_coco_counts_blank_captions(coco):
    edit(coco / "captions.json", lambda content: content["annotations"].append({"image_id": 1, "caption": "\n"}))
    dataset = read_coco(coco, captions_file=coco / "captions.json")
    assert dataset[0]["captions"] == ["Two people."] and dataset.rejected["blank caption"] == 1


def edit(path, change_content):
    content = json.loads(path.read_text())
    change_content(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "file, change_content, message",
    [
        ("instances", lambda c: c.pop("images"), "no COCO annotation file"),
        (
            "instances",
            lambda c: c["annotations"][1].pop("segmentation"),
            r"annotations\[1\]: key 'segmentation' is mis",
        ),
        (
            "instances",
            lambda c: c["annotations"][1].update(category_id=8),
            r"annotations\[1\]: key 'category_id' is 8",
        ),
        ("instances", lambda c: c["annotations"][1].update(image_id=8), r"annotations\[1\]: key 'image_id' is 8"),
        ("instances", lambda c: c["annotations"][1].update(segmentation=3), r"annotations\[1\]: key 'segmentation'"),
        (
            "instances",
            lambda c: c["annotations"][1]["segmentation"].update(counts=[10, 10]),
            r"annotations\[1\]: key 'segmentation' is a malformed RLE",
        ),
        (
            "instances",
            lambda c: c["annotations"][0]["segmentation"].append("x"),
            r"annotations\[0\]: segmentation\[1\] is 'x'",
        ),
        (
            "instances",
            lambda c: c["annotations"][0]["segmentation"].append([1, 2, 3]),
            r"annotations\[0\]: segmentation\[1\] has 3 coordinates",
        ),
        (
            "instances",
            lambda c: c["images"][0].update(file_name="x.png"),
            r"images\[0\]: key 'file_name' names .*x.png",
        ),
        ("panoptic", lambda c: c["annotations"][1].update(file_name="x.png"), r"annotations\[1\].*check panoptic_dir"),
        ("panoptic", lambda c: c["annotations"][0]["segments_info"][1].pop("id"), r"segments_info\[1\]: key 'id'"),
    ],
)
def test_coco_names_file_and_item(coco, file, change_content, message):
    path = coco / f"{file}.json"
    edit(path, change_content)
    with pytest.raises(ValueError, match=message) as error:
        read_coco(coco)
    assert str(path) in str(error.value)


def test_coco_segment_that_its_png_does_not_hold(coco):
    edit(coco / "panoptic.json", lambda c: c["annotations"][0]["segments_info"][0].update(id=5))
    with pytest.raises(ValueError, match="no pixel of segment 5"):
        read_coco(coco)[0]


def test_coco_needs_regions_and_a_share(coco):
    with pytest.raises(ValueError, match="neither instances_file nor panoptic_file"):
        CocoRegionDataset(coco)
    with pytest.raises(ValueError, match="min_area_fraction is 1"):
        read_coco(coco, min_area_fraction=1)
