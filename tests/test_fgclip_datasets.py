# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The reader of FG-CLIP's files: what it makes of an item, what it leaves out and counts, what it refuses."""

import json
import logging
import random
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from processing_pixclip import (
    BadSampleLog,
    FGCLIPDataset,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    RegionStream,
    SkipBadSamples,
    TooManyBadSamplesError,
    iter_fgclip_records,
    write_region_parquet,
    write_region_webdataset,
)


WIDTH, HEIGHT = 40, 20


def make_region(**fields):
    region = {
        "bbox": [0.1, 0.25, 0.5, 0.75, 0.93],
        "short_expr": "a dog",
        "long_expr": "a brown dog with a red collar",
        "flag_short_neg": 1,
        "short_expr_negs": {str(i): f"a dog of kind {i}" for i in range(10)},
    }
    return {**region, **fields}


def make_item(*regions, **fields):
    item = {
        "f_path": "grit-20m/data-12m/coyo_image_0/1.jpg",
        "caption": " A brown dog stands on a lawn and looks up at a kite. ",
        "short_caption": "a dog on a lawn",
        "bbox_info": list(regions),
        "key_of_theirs": 1,
    }
    return {**item, **fields}


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "images" / "coyo_image_0"
    folder.mkdir(parents=True)
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (WIDTH, HEIGHT), (200, 20, 20)).save(folder / name)
    return tmp_path


def read(root, *items, **options):
    path = root / "data.json"
    path.write_text(json.dumps(items))
    return FGCLIPDataset(path, root / "images", **options)


def test_an_item_of_stage_2(root):
    dataset = read(root, make_item(make_region(), make_region(bbox=[0, 0, 1, 1], flag_short_neg=0)))
    sample = dataset[0]
    assert sample["image"].size == (WIDTH, HEIGHT) and sample["image_id"] == "coyo_image_0/1.jpg"
    assert sample["captions"] == ["a photo of a dog on a lawn"]
    assert sample["long_captions"] == ["A brown dog stands on a lawn and looks up at a kite."]
    np.testing.assert_allclose(sample["boxes"], [[4, 5, 20, 15], [0, 0, 40, 20]])
    expected = np.zeros((HEIGHT, WIDTH), dtype=np.float32)
    expected[5:15, 4:20] = 1
    np.testing.assert_array_equal(sample["masks"][0], expected)
    assert sample["object_texts"] == ["a dog", "a dog"]
    assert sample["hard_negatives"] == [[f"a dog of kind {i}" for i in range(10)], []]
    assert not dataset.rejected and not +dataset.repaired


def test_an_item_of_stage_1(root):
    item = make_item()
    del item["bbox_info"]
    dataset = read(root, item, {"f_path": "coyo_image_0/2.jpg", "short_caption": None, "caption": "A lawn."})
    assert dataset[0]["masks"] == dataset[0]["texts"] == dataset[0]["hard_negatives"] == []
    assert dataset[1]["captions"] == [] and dataset[1]["long_captions"] == ["A lawn."]
    assert read(root, item, caption_prefix="")[0]["captions"] == ["a dog on a lawn"]


def test_expressions(root):
    items = [make_item(*[make_region()] * 6), make_item(make_region(short_expr=None, flag_short_neg=0))]
    short, long = "a dog", "a brown dog with a red collar"
    assert read(root, *items, expressions="short")[0]["texts"] == [short] * 6
    assert read(root, *items, expressions="short")[1]["texts"] == [long]
    assert read(root, *items, expressions="long")[0]["texts"] == [long] * 6
    dataset = read(root, *items)
    drawn = []
    for epoch in (0, 1, 2, 0):
        dataset.set_epoch(epoch)
        drawn.append(dataset[0]["texts"])
        assert dataset[0]["texts"] == drawn[-1] and dataset[0]["epoch"] == epoch
        assert dataset[1]["texts"] == [long] and dataset[1]["object_texts"] == [None]
    assert drawn[0] == drawn[3] and len(set(map(tuple, drawn))) > 1 and set(sum(drawn, [])) == {short, long}
    assert read(root, *items, seed=1)[0]["texts"] != drawn[0]
    with pytest.raises(ValueError, match="expressions is 'both'; accepted are 'random', 'long', 'short'"):
        read(root, *items, expressions="both")


def test_what_is_left_out_is_counted(root):
    dataset = read(
        root,
        make_item(
            make_region(),
            make_region(bbox=[0.5, 0.2, 0.5, 0.9]),
            make_region(bbox=[0.5, 0.2, 0.4, 0.9]),
            make_region(bbox=[0, 0, 1.5, 0.9]),
            make_region(bbox=[4, 5, 20, 15]),
            make_region(bbox=[-0.01, 0.2, 1.01, 0.9]),
            make_region(short_expr=" ", long_expr=None),
            make_region(short_expr=None),
            make_region(short_expr_negs=["a cat", " ", "a horse", ""]),
        ),
    )
    assert dataset.rejected == {
        "box without area": 2,
        "box outside the image": 2,
        "region without text": 1,
        "hard negatives without short_expr": 1,
        "blank hard negative": 2,
    }
    assert dataset.repaired == {"clipped to the image": 1}
    sample = dataset[0]
    np.testing.assert_allclose(sample["boxes"][1], [0, 4, 40, 18])
    assert [len(negatives) for negatives in sample["hard_negatives"]] == [10, 10, 0, 2]


def test_forms_of_a_path(root):
    items = [make_item(make_region()), make_item(f_path="coyo_image_0/2.jpg")]
    lists, parts = root / "lists", root / "parts"
    lists.mkdir(), parts.mkdir()
    (parts / "b.json").write_text(json.dumps(items[1:]))
    (parts / "a.jsonl").write_text("\n".join(map(json.dumps, items[:1])) + "\n\n")
    # The authors name lists of items .jsonl as well.
    (parts / "c.jsonl").write_text("\n " + json.dumps(items))
    (parts / "notes.md").write_text("no data")
    (lists / "files.txt").write_text("../parts/b.json\n\n../parts/a.jsonl\n")
    images = root / "images"
    ids = ["coyo_image_0/1.jpg", "coyo_image_0/2.jpg"]
    assert [sample["image_id"] for sample in FGCLIPDataset(parts, images)] == ids + ids
    assert [sample["image_id"] for sample in FGCLIPDataset(lists / "files.txt", images)] == ids[::-1]
    assert len(FGCLIPDataset(parts / "a.jsonl", images)) == 1
    (lists / "files.txt").write_text("c.json")
    with pytest.raises(FileNotFoundError, match=r"c.json is not a file, but .*files.txt lists it"):
        FGCLIPDataset(lists / "files.txt")
    with pytest.raises(FileNotFoundError, match="d.json is not a file"):
        FGCLIPDataset(root / "d.json")
    with pytest.raises(FileNotFoundError, match="holds no .json or .jsonl file"):
        FGCLIPDataset(lists)
    (lists / "files.txt").write_text("\n")
    with pytest.raises(FileNotFoundError, match="lists no file"):
        FGCLIPDataset(lists / "files.txt")


@pytest.mark.parametrize(
    "item, message",
    [
        ("a dog", "item 1 is a str; accepted is an object"),
        ({}, "item 1: key 'f_path' is None; accepted is the path"),
        (make_item(f_path="../1.jpg"), r"item 1: key 'f_path' is '\.\./1.jpg'; accepted is a path below image_root"),
        (
            make_item(f_path="3.jpg"),
            r"item 1: key 'f_path' names .*3.jpg, which is not a file; check image_root and pa",
        ),
        (make_item(caption=7), "item 1: key 'caption' is 7; accepted is a string"),
        (make_item(bbox_info={}), "item 1: key 'bbox_info' is {}; accepted is a list"),
        (make_item([0, 0, 1, 1]), r"item 1: bbox_info\[0\] is a list; accepted is an object with the key 'bbox'"),
        (make_item(make_region(), {}), r"item 1: bbox_info\[1\]: key 'bbox' is None; accepted are \[x1, y1, x2, y2\]"),
        (make_item(make_region(bbox=[0, 0, 1])), r"item 1: bbox_info\[0\]: key 'bbox' is \[0, 0, 1\]"),
        (make_item(make_region(bbox=[0, 0, 1, "1"])), r"item 1: bbox_info\[0\]: key 'bbox'"),
        (make_item(make_region(bbox=[0, 0, 1, float("nan")])), r"item 1: bbox_info\[0\]: key 'bbox'"),
        (make_item(make_region(long_expr=["a dog"])), r"bbox_info\[0\]: key 'long_expr' is \['a dog'\]"),
        (make_item(make_region(short_expr_negs="a cat")), r"bbox_info\[0\]: key 'short_expr_negs' is 'a cat'"),
        (make_item(make_region(short_expr_negs={"0": 1})), r"bbox_info\[0\]: key 'short_expr_negs' holds 1"),
    ],
)
def test_errors_name_file_item_and_key(root, item, message):
    with pytest.raises(ValueError, match=message) as error:
        read(root, make_item(make_region()), item)
    assert str(root / "data.json") in str(error.value)


def test_files_that_are_not_json(root):
    path = root / "data.json"
    path.write_text('[{"f_path": ')
    with pytest.raises(ValueError, match="data.json, item 0 is not JSON"):
        FGCLIPDataset(path)
    path.write_text(json.dumps(make_item()) + "\n{")
    with pytest.raises(ValueError, match="data.json, line 2 is not JSON"):
        FGCLIPDataset(path, root / "images")
    for empty in ("", "[]"):
        path.write_text(empty)
        with pytest.raises(ValueError, match="holds no item"):
            FGCLIPDataset(path)


def test_bad_items_are_counted_and_left_out(root):
    path = root / "data.jsonl"
    lines = [json.dumps(make_item()), "{", json.dumps(make_item(f_path="3.jpg")), json.dumps(make_item())]
    path.write_text("\n".join(lines))
    log = BadSampleLog(root / "bad_samples.jsonl", max_bad_fraction=0.5)
    dataset = FGCLIPDataset(path, root / "images", bad_samples=log)
    assert len(dataset) == 2 and (log.num_good, log.num_bad) == (0, 2)
    reasons = [json.loads(line) for line in (root / "bad_samples.jsonl").read_text().splitlines()]
    assert [line["where"] for line in reasons] == [f"{path}, line 2", f"{path}, line 3"]
    with pytest.raises(TooManyBadSamplesError):
        FGCLIPDataset(path, root / "images", bad_samples=BadSampleLog(root / "other.jsonl", max_bad_fraction=0.4))


NASTY = [10**30, 10**400, -1, 1e308, float("nan"), float("inf"), "x" * 100_000, "\u200b", "\ud83d", "", True, None]
NASTY += [[], {}, [[]], [[0.1]] * 4, {"0": {"0": []}}, [10**30] * 4, ["x" * 100_000], {"x" * 100_000: 1}]


def places_of(item):
    """The path of every value in an item."""
    for key, value in item.items() if isinstance(item, dict) else enumerate(item):
        yield [key]
        if isinstance(value, (dict, list)):
            yield from ([key, *rest] for rest in places_of(value))


def test_whatever_an_item_holds_is_taken_or_counted(root):
    path = root / "data.jsonl"
    lines = [json.dumps(make_item(make_region()))] * 2
    for place in places_of(make_item(make_region())):
        for value in NASTY:
            item = make_item(make_region())
            parent = item
            for key in place[:-1]:
                parent = parent[key]
            parent[place[-1]] = value
            lines.append(json.dumps(item))
    lines += ["[" * 100_000, '{"f_path": ' * 100_000, "[]", "1", "null"]
    path.write_text("\n".join(lines) + "\n")
    log = BadSampleLog(root / "bad_samples.jsonl", max_bad_fraction=1.0)
    dataset = FGCLIPDataset(path, root / "images", bad_samples=log)
    assert len(dataset) + log.num_bad == len(lines) and len(dataset) > 50 and log.num_bad > 50
    assert max(map(len, (root / "bad_samples.jsonl").read_text().splitlines())) < 1500
    for sample in dataset:
        assert len(sample["texts"]) == len(sample["boxes"]) == len(sample["hard_negatives"])
    records = iter_fgclip_records(path, root / "images", bad_samples=BadSampleLog(root / "o.jsonl", 1.0))
    assert len(write_region_webdataset(records, root / "shards", root / "images", 10_000)) == 1


def test_a_cut_list_in_a_folder_of_lists_is_lost_alone(root):
    parts, images = root / "parts", root / "images"
    parts.mkdir()
    whole = json.dumps([make_item(make_region(), caption=str(number)) for number in range(4)])
    (parts / "a.json").write_text(whole[: len(whole) * 3 // 8])
    (parts / "b.json").write_text(whole)
    (parts / "c.json").write_text("[" * 100_000)
    (parts / "d.json").write_text(json.dumps(make_item(caption="x" * 500)))
    (parts / "e.json").write_bytes(whole.replace('"caption": "2"', '"caption": "caf\xe9"').encode("latin-1"))
    (parts / "f.json").write_text(whole + "]")
    log = BadSampleLog(root / "bad_samples.jsonl", max_bad_fraction=0.5)
    dataset = FGCLIPDataset(parts, images, bad_samples=log)
    found = [(record["where"].split("/")[-1], record["long_captions"][0]) for record in dataset.records]
    assert found == [
        *[("a.json, item 0", "0")],
        *[(f"b.json, item {number}", str(number)) for number in range(4)],
        ("d.json, line 1", "x" * 500),
        *[(f"e.json, item {number}", str(number)) for number in (0, 1, 3)],
        *[(f"f.json, item {number}", str(number)) for number in range(4)],
    ]
    lines = [json.loads(line) for line in (root / "bad_samples.jsonl").read_text().splitlines()]
    places = ["a.json, item 1", "c.json, item 0", "e.json, item 2", "f.json, item 4"]
    assert [line["where"].split("/")[-1] for line in lines] == places
    assert "what follows in the file cannot be read" in lines[0]["reason"] and "is not UTF-8" in lines[2]["reason"]
    (parts / "g.json").mkdir()
    with pytest.raises(FileNotFoundError, match="g.json is not a file"):
        FGCLIPDataset(parts, images, bad_samples=log)


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_is_read_as_json_reads_it(root, indent):
    # Longer than several pieces of the file, with characters of up to four bytes and brackets in the texts.
    draw = random.Random(0)
    alphabet = 'ab]}[{,"\\ \n\u00e9\u4e2d\U0001f600'
    items = [
        make_item(make_region(), caption=f"{number} " + "".join(draw.choices(alphabet, k=draw.randrange(30_000))))
        for number in range(60)
    ]
    path = root / "data.json"
    path.write_text(json.dumps(items, ensure_ascii=False, indent=indent), encoding="utf-8-sig")
    dataset = FGCLIPDataset(path, root / "images")
    assert [record["long_captions"] for record in dataset.records] == [[item["caption"].strip()] for item in items]


@pytest.mark.parametrize("write", [write_region_webdataset, write_region_parquet])
@pytest.mark.parametrize("expressions", ["random", "long", "short"])
def test_files_become_shards(root, write, expressions, monkeypatch, caplog):
    Image.new("RGB", (3, 2)).save(root / "images" / "tiny.png")
    regions = [make_region(bbox=[0.1, 0.1, 0.9, 0.1 + 0.1 * (n + 1)], long_expr=f"dog {n}") for n in range(8)]
    items = [
        make_item(*regions, make_region(bbox=[2, 2, 3, 3]), make_region(short_expr=None)),
        make_item(f_path="coyo_image_0/2.jpg", short_caption=None),
        make_item(f_path="coyo_image_0/missing.jpg"),
        make_item(make_region(bbox=[0, 0, 2e-4, 1]), make_region(), f_path="tiny.png"),
    ]
    path, images = root / "data.json", root / "images"
    path.write_text(json.dumps(items))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    settings = {"expressions": expressions, "seed": 3}
    with pytest.raises(ValueError, match="item 2: key 'f_path' names .*missing.jpg, which is not a file"):
        write(iter_fgclip_records(path, images, **settings), root / "none", images)
    log = BadSampleLog(root / "bad_samples.jsonl", max_bad_fraction=0.5)
    paths = write(iter_fgclip_records(path, images, **settings, bad_samples=log), root / "shards", images)
    assert "'box outside the image': 1" in caplog.text and "'box without area': 1" in caplog.text
    assert (log.num_good, log.num_bad) == (3, 1)
    direct = FGCLIPDataset(path, images, **settings, bad_samples=BadSampleLog(root / "other.jsonl", 0.5))
    stream = list(RegionStream(list(map(str, paths)), shuffle_buffer=0))
    assert len(stream) == len(direct) == 3
    for sample, expected in zip(stream, direct, strict=True):
        kept = range(len(expected["texts"]))
        if expected["image_id"] == "tiny.png":
            # Less than a thousandth of a pixel, which a record does not hold.
            kept = [1]
        assert sample.keys() == expected.keys()
        assert sample["image"].tobytes() == expected["image"].tobytes()
        np.testing.assert_array_equal(sample["masks"], [expected["masks"][number] for number in kept])
        for key in ("texts", "object_texts", "boxes", "categories", "hard_negatives"):
            assert sample[key] == [expected[key][number] for number in kept]
        for key in ("image_id", "captions", "long_captions", "epoch"):
            assert sample[key] == expected[key]


def test_records_are_made_one_by_one(root):
    path = root / "data.json"
    text = json.dumps(make_item(make_region(), caption="x" * 5000))
    with open(path, "w") as file:
        file.write("[" + ",\n".join([text] * 1200) + "]")
    assert path.stat().st_size > 6_000_000
    tracemalloc.start()
    records = iter_fgclip_records(path, root / "images")
    assert sum(1 for _ in islice(records, 1200)) == 1200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_a_damaged_image_is_named_or_skipped(root):
    dataset = read(root, make_item(), make_item(f_path="coyo_image_0/2.jpg"))
    (root / "images" / "coyo_image_0" / "2.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"data.json, item 1: coyo_image_0/2.jpg cannot be read"):
        dataset[1]
    log = BadSampleLog(root / "bad_samples.jsonl", max_bad_fraction=1.0)
    assert SkipBadSamples(dataset, log)[1]["image_id"] == "coyo_image_0/1.jpg"
    assert json.loads((root / "bad_samples.jsonl").read_text())["image_id"] == "coyo_image_0/2.jpg"


def test_a_batch_of_stage_2(root):
    backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    processor = PixCLIPProcessor(PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    dataset = read(
        root, make_item(make_region(), make_region(bbox=[0, 0, 1, 1])), make_item(f_path="coyo_image_0/2.jpg")
    )
    collator = PixCLIPDataCollator(processor, crops=False, captions=True, hard_negatives=True, max_hard_negatives=3)
    batch = collator([dataset[0], dataset[1]])
    np.testing.assert_allclose(batch["region_boxes"], [[0.1, 0.25, 0.5, 0.75], [0, 0, 1, 1]], rtol=1e-6)
    assert batch["region_image_index"].tolist() == [0, 0]
    assert batch["hard_negative_region_index"].tolist() == [0] * 3 + [1] * 3
    assert (batch["short_caption_index"] >= 0).all() and (batch["long_caption_index"] >= 0).all()
    assert batch["object_text_index"][0] == batch["object_text_index"][1]
