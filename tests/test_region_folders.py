# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The reader of a folder of images, masks and a table: what it yields, and which row and file an error names."""

import csv
import json
import logging

import numpy as np
import pytest
from PIL import Image
from tiny_models import pixclip_config, randomise
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Subset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from modeling_pixclip import PixCLIPForPreTraining, get_objective_preset
from processing_pixclip import (
    BadSampleLog,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    RegionFolderDataset,
    RegionStream,
    SetEpochCallback,
    SkipBadSamples,
    TooManyBadSamplesError,
    iter_region_folder_records,
    to_mask,
    write_region_parquet,
    write_region_webdataset,
)


WIDTH, HEIGHT = 40, 30
HEAD = {
    "file_name": "images/dog.jpg",
    "mask_file_name": "masks/head.png",
    "text": " The head of a brown dog, its tongue out. ",
    "object_text": "a dog's head",
    "category": "dog",
    "caption": "A dog.",
    "long_caption": 'A brown dog, "Rex", looks up;\nits tail curls.',
    "hard_negatives": ["The head of a grey dog.", "The head of a brown cat."],
}
TAIL = {"file_name": "images/dog.jpg", "mask_file_name": "masks/tail.png", "text": "A tail.", "caption": "Rex."}
LAWN = {"file_name": "lawn.png", "caption": "A lawn."}


def rectangle(x1, y1, x2, y2, dtype=np.uint8, value=255):
    mask = np.zeros((HEIGHT, WIDTH), dtype=dtype)
    mask[y1:y2, x1:x2] = value
    return mask


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for name in ("images/dog.jpg", "lawn.png"):
        Image.new("RGB", (WIDTH, HEIGHT), (20, 200, 20)).save(tmp_path / name)
    Image.fromarray(rectangle(2, 3, 12, 13)).save(tmp_path / "masks" / "head.png")
    Image.fromarray(rectangle(20, 3, 30, 23)).save(tmp_path / "masks" / "tail.png")
    return tmp_path


def write_csv(folder, *rows, name="metadata.csv", encoding="utf-8"):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(folder / name, "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for row in rows:
            joined = {"hard_negatives": " | ".join(row["hard_negatives"])} if "hard_negatives" in row else {}
            writer.writerow({**row, **joined})


def write_jsonl(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_rows_become_samples(folder, write):
    write(folder, HEAD, LAWN, TAIL)
    dataset = RegionFolderDataset(folder)
    assert len(dataset) == 2
    dog, lawn = dataset[0], dataset[1]
    assert dog["image"].mode == "RGB" and dog["image"].size == (WIDTH, HEIGHT) and dog["image_id"] == "images/dog.jpg"
    assert dog["texts"] == ["The head of a brown dog, its tongue out.", "A tail."]
    assert dog["object_texts"] == ["a dog's head", None] and dog["categories"] == ["dog", None]
    assert dog["captions"] == ["A dog.", "Rex."] and dog["long_captions"] == [HEAD["long_caption"]]
    assert dog["hard_negatives"] == [HEAD["hard_negatives"], []]
    np.testing.assert_array_equal(dog["masks"][0], rectangle(2, 3, 12, 13) > 0)
    np.testing.assert_array_equal(dog["masks"][1], rectangle(20, 3, 30, 23) > 0)
    assert lawn["captions"] == ["A lawn."] and lawn["masks"] == lawn["texts"] == lawn["hard_negatives"] == []
    dataset.set_epoch(4)
    assert Subset(dataset, [1])[0]["epoch"] == 4


def test_captions_that_repeat_count_once(folder):
    write_csv(folder, {**HEAD, "caption": "A dog."}, {**TAIL, "caption": "A dog."})
    assert RegionFolderDataset(folder)[0]["captions"] == ["A dog."]


def test_another_table_and_the_mark_of_spreadsheets(folder):
    write_csv(folder, TAIL)
    write_csv(folder, HEAD, name="heldout.csv", encoding="utf-8-sig")
    assert RegionFolderDataset(folder)[0]["texts"] == ["A tail."]
    assert RegionFolderDataset(folder, folder / "heldout.csv")[0]["categories"] == ["dog"]
    write_jsonl(folder, TAIL)
    with pytest.raises(ValueError, match="both metadata.csv and metadata.jsonl; remove one, or say which by table"):
        RegionFolderDataset(folder)


def test_tables_that_are_missing_or_empty(folder):
    with pytest.raises(FileNotFoundError, match="has neither metadata.csv nor metadata.jsonl"):
        RegionFolderDataset(folder)
    with pytest.raises(FileNotFoundError, match="no_folder is not a folder"):
        RegionFolderDataset(folder / "no_folder")
    with pytest.raises(ValueError, match="ends in '.txt'"):
        RegionFolderDataset(folder, folder / "table.txt")
    (folder / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(ValueError, match="metadata.csv has no row"):
        RegionFolderDataset(folder)
    (folder / "metadata.csv").write_text("")
    with pytest.raises(ValueError, match="line 1: column 'file_name' is missing"):
        RegionFolderDataset(folder)


def without(row, *columns):
    return {column: value for column, value in row.items() if column not in columns}


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
@pytest.mark.parametrize(
    "row, message",
    [
        ({**TAIL, "file_name": ""}, "column 'file_name' is empty"),
        ({**TAIL, "file_name": "cat.jpg"}, "column 'file_name' names .*cat.jpg, which is not a file"),
        (
            {**TAIL, "file_name": "../dog.jpg"},
            "column 'file_name' is '../dog.jpg'; accepted is a path below the folder",
        ),
        ({**TAIL, "mask_file_name": "masks/cat.png"}, "column 'mask_file_name' names .*masks.cat.png, which is not"),
        ({**TAIL, "mask_file_name": "/etc/passwd"}, "column 'mask_file_name' is '/etc/passwd'"),
        ({**TAIL, "text": " "}, "column 'text' is empty; a region with a mask has a text"),
        (without(TAIL, "mask_file_name"), "column 'mask_file_name' is empty, but 'text' is not"),
        ({**LAWN, "hard_negatives": ["A meadow."]}, "column 'mask_file_name' is empty, but 'hard_negatives' is not"),
        ({**TAIL, "mask_file_name": "small.png"}, "mask .*small.png is 4 pixels wide and 5 high, but its image .* 40"),
        ({**TAIL, "mask_file_name": "broken.png"}, "broken.png cannot be read as an image"),
        ({**TAIL, "file_name": "broken.png"}, "broken.png cannot be read as an image"),
        ({**TAIL, "mask_file_name": "cmyk.tif"}, "mask .*cmyk.tif has PIL mode 'CMYK'; accepted are 1, L, P"),
    ],
)
def test_errors_name_table_line_and_column(folder, write, row, message):
    Image.new("L", (4, 5)).save(folder / "small.png")
    Image.new("CMYK", (WIDTH, HEIGHT)).save(folder / "cmyk.tif")
    (folder / "broken.png").write_bytes(b"no image")
    write(folder, without(TAIL, "long_caption"), row)
    # In these JSON lines every other line is blank.
    table, line = ("metadata.csv", 3) if write is write_csv else ("metadata.jsonl", 3)
    with pytest.raises(ValueError, match=message) as error:
        RegionFolderDataset(folder)
    assert f"{folder / table}, line {line}: " in str(error.value)


@pytest.mark.parametrize(
    "table, message",
    [
        (
            "file_name,txet\nlawn.png,A lawn.\n",
            "metadata.csv, line 1: column 'txet' is unknown; accepted are file_name",
        ),
        ("file_name,text,text\n", "metadata.csv, line 1: column 'text' is there twice"),
        ("mask_file_name,text\n", "metadata.csv, line 1: column 'file_name' is missing"),
        (
            "file_name,caption\nlawn.png,A lawn, green.\n",
            "metadata.csv, line 2 has more cells than the 2 columns; .*quot",
        ),
        ("file_name,caption\nlawn.png\n", "metadata.csv, line 2 has fewer cells than the 2 columns"),
        ('file_name,caption\nlawn.png,"A lawn\n', "metadata.csv is not CSV after line 1"),
        ("file_name,caption\nlawn.png,caf\xe9\n", "metadata.csv, line 2 is not UTF-8"),
    ],
)
def test_broken_csv(folder, table, message):
    (folder / "metadata.csv").write_bytes(table.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        RegionFolderDataset(folder)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is a list; a row is one JSON object"),
        ('{"file_name": "lawn.png", "txet": "A lawn."}', "line 1: column 'txet' is unknown"),
        ('{"file_name": 7}', "line 1: column 'file_name' is 7; it is a string"),
        (json.dumps({**TAIL, "text": ["A tail."]}), r"line 1: column 'text' is \['A tail.'\]; it is a string"),
        (
            json.dumps({**TAIL, "hard_negatives": "A leg."}),
            "line 1: column 'hard_negatives' is 'A leg.'; it is a list of",
        ),
        (json.dumps({**TAIL, "hard_negatives": ["A leg.", " "]}), "line 1: column 'hard_negatives'"),
        (json.dumps({**TAIL, "text": "half \ud83d"}), "line 1: column 'text' .*Unicode"),
    ],
)
def test_broken_json_lines(folder, line, message):
    (folder / "metadata.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=f"metadata.jsonl, {message}"):
        RegionFolderDataset(folder)
    (folder / "metadata.jsonl").write_text(json.dumps({**LAWN, "text": None, "hard_negatives": None}))
    assert len(RegionFolderDataset(folder)) == 1


def spoiled_folder(folder, write):
    """A table of seven bad rows among four good ones, of two images; returns the lines of the bad ones."""
    (folder / "masks" / "cut.png").write_bytes((folder / "masks" / "tail.png").read_bytes()[:20])
    (folder / "images" / "cut.jpg").write_bytes((folder / "images" / "dog.jpg").read_bytes()[:15])
    Image.new("RGB", (1000, 3)).save(folder / "images" / "strip.png")
    Image.new("L", (1000, 3), 255).save(folder / "masks" / "strip.png")
    rows = [
        HEAD,
        {**TAIL, "mask_file_name": "masks/missing.png", "caption": "Not to be seen."},
        {**TAIL, "mask_file_name": "masks/cut.png"},
        {**TAIL, "file_name": "images/missing.jpg"},
        {**TAIL, "file_name": "images/cut.jpg"},
        {**TAIL, "file_name": "images/strip.png", "mask_file_name": "masks/strip.png"},
        {**TAIL, "text": "\u200b"},
        {**TAIL, "mask_file_name": "x" * 5000},
        LAWN,
        TAIL,
        {**TAIL, "text": "Another tail."},
    ]
    write(folder, *rows)
    if write is write_jsonl:
        return [2 * number + 1 for number in range(1, 8)]
    # A text with a line break is two lines of CSV.
    return [number + 3 for number in range(1, 8)]


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
def test_bad_rows_are_counted_and_left_out(folder, tmp_path_factory, write):
    bad = spoiled_folder(folder, write)
    log_path = tmp_path_factory.mktemp("out") / "bad_samples.jsonl"
    log = BadSampleLog(log_path, max_bad_fraction=0.7)
    dataset = SkipBadSamples(RegionFolderDataset(folder, bad_samples=log), log)
    dog, lawn = dataset[0], dataset[1]
    assert len(dataset) == 2 and dog["texts"][1:] == ["A tail.", "Another tail."] and lawn["captions"] == ["A lawn."]
    assert "Not to be seen." not in dog["captions"]
    table = folder / ("metadata.csv" if write is write_csv else "metadata.jsonl")
    lines = [json.loads(line) for line in log_path.read_text().splitlines()]
    assert [line["where"] for line in lines] == [f"{table}, line {number}" for number in bad]
    for line, reason in zip(
        lines, ("missing.png", "cut.png", "missing.jpg", "cut.jpg", "100 times", "'text'", "too long"), strict=True
    ):
        assert reason in line["reason"] and len(line["reason"]) < 1100
    # An image that breaks later, and all masks of one that do.
    (folder / "images" / "dog.jpg").write_bytes(b"")
    assert dataset[0]["image_id"] == "lawn.png"
    assert json.loads(log_path.read_text().splitlines()[-1])["image_id"] == "images/dog.jpg"
    with pytest.raises(TooManyBadSamplesError, match=r"of the 11 rows of .* are bad"):
        RegionFolderDataset(folder, bad_samples=BadSampleLog(log_path.with_name("other.jsonl")))


@pytest.mark.parametrize(
    "name, content, bad",
    [
        ("metadata.jsonl", '{"file_name": "lawn.png"}\n{\n[1]\n' + "[" * 100_000 + '\n{"txet": ""}\n', [2, 3, 4, 5]),
        ("metadata.jsonl", '{"file_name": "lawn.png"}\n{"file_name": "caf\xe9.png"}\n', [2]),
        ("metadata.csv", "file_name,caption\nlawn.png,A, B\nlawn.png\nlawn.png,caf\xe9\nlawn.png,C\n", [2, 3, 4]),
        ("metadata.csv", 'file_name,caption\nlawn.png,"A"B\nlawn.png,C\n', [2]),
        ("metadata.csv", 'file_name,caption\nlawn.png,A\nlawn.png,"C\nlawn.png,D\n', [3]),
    ],
)
def test_broken_lines_are_counted_and_left_out(folder, name, content, bad):
    (folder / name).write_bytes(content.encode("latin-1"))
    log = BadSampleLog(folder / "out" / "bad_samples.jsonl", max_bad_fraction=0.9)
    (record,) = RegionFolderDataset(folder, bad_samples=log).records
    assert record["image_id"] == "lawn.png"
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["where"] for line in lines] == [f"{folder / name}, line {number}" for number in bad]
    with pytest.raises(ValueError, match=f"{name}.* line {bad[0]}|{name} is not CSV after line {bad[0] - 1}"):
        RegionFolderDataset(folder)


def assert_equal_samples(sample, expected):
    assert sample.keys() - {"boxes"} == expected.keys()
    assert sample["image"].tobytes() == expected["image"].tobytes()
    for mask, other in zip(sample["masks"], expected["masks"], strict=True):
        np.testing.assert_array_equal(to_mask(mask, HEIGHT, WIDTH), other)
    assert {key: sample[key] for key in expected if key not in ("image", "masks")} == {
        key: expected[key] for key in expected if key not in ("image", "masks")
    }


@pytest.mark.parametrize("write", [write_region_webdataset, write_region_parquet])
def test_a_folder_becomes_shards(folder, tmp_path_factory, write, monkeypatch, caplog):
    Image.fromarray(rectangle(0, 0, 0, 0)).save(folder / "masks" / "empty.png")
    write_csv(folder, HEAD, LAWN, TAIL, {**TAIL, "mask_file_name": "masks/missing.png"})
    shards = tmp_path_factory.mktemp("shards")
    with pytest.raises(ValueError, match="missing.png, which is not a file"):
        write(iter_region_folder_records(folder), shards / "none", folder)
    log = BadSampleLog(shards / "bad_samples.jsonl", max_bad_fraction=0.5)
    paths = write(iter_region_folder_records(folder, bad_samples=log), shards / "all", folder)
    direct = RegionFolderDataset(folder, bad_samples=log)
    stream = list(RegionStream(list(map(str, paths)), shuffle_buffer=0))
    assert len(stream) == len(direct) == 2 and log.num_bad == 1
    for sample, expected in zip(stream, direct, strict=True):
        assert_equal_samples(sample, expected)
    write_csv(folder, HEAD, {**TAIL, "mask_file_name": "masks/empty.png"})
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    (record,) = iter_region_folder_records(folder)
    assert len(record["regions"]) == 1 and "'empty mask': 1" in caplog.text


def palette(mask):
    image = Image.fromarray(mask)
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


MASKS = {
    "bits": Image.fromarray(rectangle(2, 3, 12, 13, bool, True)),
    "zeros and ones": Image.fromarray(rectangle(2, 3, 12, 13, value=1)),
    "colour channels": Image.fromarray(rectangle(2, 3, 12, 13)).convert("RGB"),
    "opaque": Image.fromarray(rectangle(2, 3, 12, 13)).convert("RGBA"),
    "grey and opaque": Image.fromarray(rectangle(2, 3, 12, 13)).convert("LA"),
    "palette": palette(rectangle(2, 3, 12, 13, value=1)),
    "16 bits": Image.fromarray(rectangle(2, 3, 12, 13, np.uint16, 255)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_forms_of_a_mask_file(folder, kind):
    MASKS[kind].save(folder / "masks" / "head.png")
    write_csv(folder, without(HEAD, "long_caption"))
    np.testing.assert_array_equal(RegionFolderDataset(folder)[0]["masks"][0], rectangle(2, 3, 12, 13) > 0)


def test_masks_that_are_none_are_named(folder):
    write_csv(folder, without(HEAD, "long_caption"))
    dataset = RegionFolderDataset(folder)
    file = folder / "masks" / "head.png"
    where = "metadata.csv, line 2: mask .*head.png"
    colours = np.stack([rectangle(2, 3, 12, 13), rectangle(0, 0, 0, 0), rectangle(0, 0, 0, 0)], axis=-1)
    Image.fromarray(colours).save(file)
    with pytest.raises(ValueError, match=f"{where} has colours; a mask is an image of one channel"):
        dataset[0]
    cut_out = np.dstack([np.full((HEIGHT, WIDTH, 3), 255, np.uint8), rectangle(2, 3, 12, 13)])
    Image.fromarray(cut_out).save(file)
    with pytest.raises(ValueError, match=f"{where} has transparent pixels"):
        dataset[0]
    Image.fromarray(rectangle(2, 3, 12, 13, value=7)).save(file)
    with pytest.raises(ValueError, match=f"{where} has integer values from 0 to 7"):
        dataset[0]
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=f"{where} cannot be read as an image"):
        dataset[0]
    # An empty one is left to the model, which leaves the region out and counts it.
    Image.fromarray(rectangle(0, 0, 0, 0)).save(file)
    assert not dataset[0]["masks"][0].any()
    (folder / "images" / "dog.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"metadata.csv, line 2: images/dog.jpg cannot be read"):
        dataset[0]


def test_a_folder_trains_a_model(folder):
    write_csv(folder, HEAD, TAIL, LAWN)
    backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    processor = PixCLIPProcessor(
        PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer, text_max_length=16
    )
    model = randomise(PixCLIPForPreTraining(pixclip_config(**get_objective_preset("pixclip+fg"))))
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder / "run"),
            num_train_epochs=2,
            learning_rate=1e-3,
            logging_steps=1,
            remove_unused_columns=False,
            report_to="none",
            use_cpu=True,
        ),
        data_collator=PixCLIPDataCollator(processor, **model.config.batch_parts),
        train_dataset=RegionFolderDataset(folder),
        callbacks=[SetEpochCallback()],
    )
    trainer.train()
    assert all(
        np.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in trainer.state.log_history if "loss" in entry
    )
    changed = {name for name, weight in model.named_parameters() if not weight.equal(before[name])}
    assert any(name.startswith("vision_model") for name in changed) and "logit_scale_hard_negative" in changed
