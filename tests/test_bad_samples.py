# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Real bad data in the middle of a data set: skipped, replaced, counted, written down, and an error past the limit."""

import gc
import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate.state import GradientState
from region_shards_for_tests import (
    Probe,
    collate_ids,
    decompression_bomb,
    lines_of,
    make_jsonl,
    make_shards,
    photo,
    rewrite_tar,
)
from test_region_streams import StopAt, trainer_arguments
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from transformers import Trainer

from processing_pixclip import (
    BadSampleLog,
    BadSamplesCallback,
    CocoRegionDataset,
    RegionJsonlDataset,
    RegionStream,
    SetEpochCallback,
    SkipBadSamples,
    TooManyBadSamplesError,
)


@pytest.fixture(autouse=True)
def no_loader_of_another_test():
    GradientState._reset_state()


@pytest.fixture
def log_path(tmp_path):
    return tmp_path / "out" / "bad_samples.jsonl"


def ids_of(samples):
    return [int(sample["image_id"]) for sample in samples]


# The log


def test_a_bad_sample_is_counted_once_however_often_it_is_met(log_path):
    log = BadSampleLog(log_path, max_bad_fraction=0.5)
    for _ in range(3):
        log.add_bad("data, sample 1", ValueError("truncated"), "7")
        log.add_good(2)
    log.add_bad("data, sample 2", OSError("missing"))
    assert lines_of(log_path) == [
        {"where": "data, sample 1", "image_id": "7", "error": "ValueError", "reason": "truncated"},
        {"where": "data, sample 2", "image_id": None, "error": "OSError", "reason": "missing"},
    ]
    assert (log.num_good, log.num_bad) == (6, 2)
    # Once the data set has been read, further epochs do not dilute the share.
    log.add_source("data", 4)
    assert (log.num_good, log.num_bad) == (2, 2)
    log.add_good(1000)
    assert log_path.with_name("bad_samples.jsonl.seen").stat().st_size == 6


def test_a_log_is_continued_by_the_next_run(log_path):
    BadSampleLog(log_path).add_bad("data, sample 1", ValueError("truncated"))
    BadSampleLog(log_path).add_good(5)
    log = BadSampleLog(log_path)
    log.add_bad("data, sample 1", ValueError("truncated"))
    assert (log.num_good, log.num_bad, len(lines_of(log_path))) == (5, 1, 1)


def test_the_line_of_a_killed_process_is_left_out(log_path):
    log = BadSampleLog(log_path)
    log.add_bad("data, sample 1", ValueError("truncated"))
    with open(log_path, "a") as file:
        file.write('{"where": "data, sam')
    assert BadSampleLog(log_path).num_bad == 1
    log.add_bad("data, sample 2", ValueError("truncated"))
    assert log.num_bad == BadSampleLog(log_path).num_bad == 2


def test_the_share_is_judged_when_enough_samples_were_read(log_path):
    log = BadSampleLog(log_path, max_bad_fraction=0.1, min_samples=10)
    log.add_bad("data, sample 0", ValueError("truncated"))
    log.add_bad("data, sample 1", ValueError("no JSON"))
    log.add_good(7)
    with pytest.raises(TooManyBadSamplesError) as error:
        log.add_good()
    assert str(error.value) == (
        f"2 of the 10 samples read are bad (20.0%), more than max_bad_fraction=0.1. They are listed in {log_path}; "
        f"mend the data and remove that file, or raise max_bad_fraction. The last is data, sample 1: no JSON"
    )
    log.add_good(10)
    with pytest.raises(TooManyBadSamplesError, match="3 of the 21"):
        log.add_bad("data, sample 2", ValueError("no JSON"))


def test_a_share_at_the_limit_is_accepted(log_path):
    log = BadSampleLog(log_path, max_bad_fraction=0.1, min_samples=1)
    log.add_good(9)
    log.add_bad("data, sample 0", ValueError("truncated"))
    log.check()


def test_a_small_data_set_is_judged_as_a_whole(log_path):
    log = BadSampleLog(log_path, max_bad_fraction=0.1)
    log.add_source("data", 4)
    log.add_bad("data, sample 0", ValueError("truncated"))
    log.add_good(2)
    with pytest.raises(TooManyBadSamplesError, match="1 of the 4"):
        log.add_good()


@pytest.mark.parametrize("setting", [{"max_bad_fraction": 1.5}, {"max_bad_fraction": -0.1}, {"min_samples": 0}])
def test_limits_of_the_settings(log_path, setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is .*; accepted"):
        BadSampleLog(log_path, **setting)


def _fill(log, worker):
    for number in range(200):
        log.add_good()
        # Each is met by two processes.
        log.add_bad(f"data, sample {number + 100 * (worker // 2) * 2}", ValueError("x" * 300))


def test_processes_count_together_and_do_not_mix_their_lines(log_path):
    log = BadSampleLog(log_path, max_bad_fraction=1)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(log, worker)) for worker in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (log.num_good, log.num_bad) == (800, 400)
    lines = lines_of(log_path)
    assert {len(line["reason"]) for line in lines} == {300} and len(lines) == 400


def test_good_samples_are_written_in_blocks_and_none_is_lost(log_path):
    seen = log_path.with_name("bad_samples.jsonl.seen")
    log = BadSampleLog(log_path, max_bad_fraction=0.9)
    log.add_good(100_000)
    # Until the share is judged for the first time each is written at once.
    assert seen.stat().st_size == 100_000
    for _ in range(63):
        log.add_good()
    assert seen.stat().st_size == 100_000 and log.num_good == 100_063
    log.add_good()
    assert seen.stat().st_size == 100_064
    log.add_good(3)
    assert seen.stat().st_size == 100_064
    log.add_bad("data, sample 1", ValueError("truncated"))
    assert seen.stat().st_size == 100_067
    log.add_good(3)
    assert seen.stat().st_size == 100_067
    log.flush()
    assert seen.stat().st_size == 100_070
    log.add_good(5)
    # A copy counts for itself.
    other = pickle.loads(pickle.dumps(log))
    other.add_good(2)
    del other
    gc.collect()
    assert log.num_good == 100_077
    del log
    gc.collect()
    assert BadSampleLog(log_path).num_good == 100_077


def _count_good(log, count):
    for _ in range(count):
        log.add_good()


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_worker_writes_its_block_as_it_ends_and_not_that_of_its_parent(log_path, method):
    log = BadSampleLog(log_path)
    log.add_good(100_000)
    log.add_good(7)
    process = multiprocessing.get_context(method).Process(target=_count_good, args=(log, 10))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert log.num_good == 100_017
    assert log_path.with_name("bad_samples.jsonl.seen").stat().st_size == 100_010
    log.flush()
    assert log_path.with_name("bad_samples.jsonl.seen").stat().st_size == log.num_good == 100_017


def test_a_program_writes_its_block_as_it_ends(log_path):
    program = (
        "import sys; from processing_pixclip import BadSampleLog; log = BadSampleLog(sys.argv[1]); "
        "log.add_good(100_000); log.add_good(9)"
    )
    subprocess.run([sys.executable, "-c", program, log_path], check=True)
    assert BadSampleLog(log_path).num_good == 100_009


def test_reasons_are_cut(log_path, caplog):
    log = BadSampleLog(log_path, max_bad_fraction=0.5, min_samples=1)
    with pytest.raises(TooManyBadSamplesError) as error:
        log.add_bad("data, sample 1", ValueError("x" * 5_000_000), "y" * 5_000_000)
    (line,) = lines_of(log_path)
    assert line["reason"] == "x" * 1000 + " ... (5000000 characters)" and len(line["image_id"]) < 300
    assert len(str(error.value)) < 3000


# Map-style data sets


def test_entries_that_were_checked_are_not_yet_good_samples(tmp_path, log_path):
    path = make_jsonl(tmp_path, 2000)
    lines = path.read_bytes().splitlines(keepends=True)
    # 10 lines of 2000 are no JSON: half of what is allowed.
    path.write_bytes(b"".join([b"{\n"] * 10 + lines[10:]))
    log = BadSampleLog(log_path, max_bad_fraction=0.01, min_samples=100)
    reader = RegionJsonlDataset(path, bad_samples=log)
    assert (log.num_good, log.num_bad) == (0, 10)
    dataset = SkipBadSamples(reader, log)
    # Few of those read are bad; the lines that were left out are no part of these.
    for index in range(300):
        dataset[index]
    assert (log.num_good, log.num_bad) == (300, 10)
    # Every image from here on is truncated: noticed at once, not after a hundredth of the whole data set.
    for number in range(310, 2000):
        (tmp_path / "images" / f"{number:04d}.jpg").write_bytes(photo(number)[:-40])
    with pytest.raises(
        TooManyBadSamplesError, match="2 of the 302 samples read are bad beside the 10 of 2000"
    ) as error:
        dataset[300]
    assert "(1.2%)" in str(error.value)


def test_too_many_bad_entries_stop_at_once(tmp_path, log_path):
    path = spoiled_jsonl(tmp_path)
    with pytest.raises(
        TooManyBadSamplesError, match=r"4 of the 20 entries of .* are bad \(20.0%\), more than max_bad_fr"
    ):
        RegionJsonlDataset(path, bad_samples=BadSampleLog(log_path, max_bad_fraction=0.1))


def spoiled_jsonl(folder):
    """20 samples: line 3 is no JSON, 5 not UTF-8, 7 no record; image 9 is missing; 11, 13 and 15 cannot be read."""
    path = make_jsonl(folder, 20)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][: len(lines[3]) // 2] + b"\n"
    lines[5] = b'{"image": "\xff\xfe"}\n'
    lines[7] = b'{"image": "images/0007.jpg"}\n'
    path.write_bytes(b"".join(lines))
    images = folder / "images"
    (images / "0009.jpg").unlink()
    (images / "0011.jpg").write_bytes(photo(11)[:-40])
    (images / "0013.jpg").write_bytes(decompression_bomb())
    (images / "0015.jpg").write_bytes(b"")
    return path


def test_bad_json_lines_and_images_are_skipped_in_workers(tmp_path, log_path):
    path = spoiled_jsonl(tmp_path)
    log = BadSampleLog(log_path, max_bad_fraction=0.5)
    with pytest.raises(ValueError, match="line 4 is not JSON"):
        RegionJsonlDataset(path)
    reader = RegionJsonlDataset(path, bad_samples=log)
    assert len(reader) == 16
    # Missing only once training runs.
    (tmp_path / "images" / "0017.jpg").unlink()
    dataset = SkipBadSamples(reader, log)
    for _ in range(2):
        batches = list(DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=ids_of))
        # The next good one takes the place of a bad one.
        assert batches == [[0, 1, 2, 4], [6, 8, 10, 12], [12, 14, 14, 16], [16, 18, 18, 19]]
    lines = lines_of(log_path)
    assert [line["where"] for line in lines[:4]] == [f"{path}, line {number}" for number in (4, 6, 8, 10)]
    reasons = {line["image_id"]: line["reason"] for line in lines[4:]}
    assert set(reasons) == {"11", "13", "15", "17"} and len(lines) == 8
    assert "truncated" in reasons["11"].lower()
    assert "DecompressionBombError" in reasons["13"] or "max_image_pixels" in reasons["13"]
    assert "UnidentifiedImageError" in reasons["15"]
    assert "FileNotFoundError" in reasons["17"]


def test_only_bad_data_is_skipped(log_path):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            raise KeyError("a mistake in the program")

    with pytest.raises(KeyError):
        SkipBadSamples(Broken(), BadSampleLog(log_path))[0]
    assert not log_path.exists()


def test_bad_photos_of_coco_are_skipped(tmp_path, log_path):
    (tmp_path / "images").mkdir()
    entries, annotations = [], []
    for number in range(7):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(photo(number))
        entries.append({"id": number, "file_name": f"{number}.jpg", "width": 16, "height": 12})
        square = [[2, 2, 10, 2, 10, 10, 2, 10]]
        annotations.append({"image_id": number, "category_id": 18, "segmentation": square, "iscrowd": 0})
    content = {"images": entries, "annotations": annotations, "categories": [{"id": 18, "name": "dog"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    log = BadSampleLog(log_path, max_bad_fraction=0.6)
    (tmp_path / "images" / "2.jpg").unlink()
    with pytest.raises(ValueError, match=r"images\[2\]: key 'file_name' names .*2.jpg, which is not a file"):
        CocoRegionDataset(tmp_path / "images", tmp_path / "instances.json")
    reader = CocoRegionDataset(tmp_path / "images", tmp_path / "instances.json", bad_samples=log)
    dataset = SkipBadSamples(reader, log)
    (tmp_path / "images" / "1.jpg").write_bytes(photo(1)[:-40])
    (tmp_path / "images" / "3.jpg").unlink()
    (tmp_path / "images" / "4.jpg").write_bytes(decompression_bomb())
    batches = list(DataLoader(dataset, batch_size=3, num_workers=2, collate_fn=ids_of))
    assert batches == [[0, 5, 5], [5, 5, 6]]
    first, *others = [line["where"] for line in lines_of(log_path)]
    assert first == f"{tmp_path / 'instances.json'}: images[2]"
    # Of those that are left.
    assert sorted(others) == [f"{tmp_path / 'images'}, sample {number}" for number in (1, 2, 3)]


def test_a_data_set_without_a_good_sample_is_an_error(tmp_path, log_path):
    path = make_jsonl(tmp_path, 3)
    dataset = SkipBadSamples(RegionJsonlDataset(path), BadSampleLog(log_path, max_bad_fraction=1))
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="not one of the 3 samples"):
        dataset[0]
    with pytest.raises(IndexError):
        dataset[3]


def test_a_training_on_json_lines_goes_on(tmp_path, log_path):
    log = BadSampleLog(log_path, max_bad_fraction=0.5)
    dataset = SkipBadSamples(RegionJsonlDataset(spoiled_jsonl(tmp_path), bad_samples=log), log)
    model = Probe()
    arguments = trainer_arguments(tmp_path / "run", dataloader_num_workers=2)
    trainer = Trainer(
        model, arguments, train_dataset=dataset, data_collator=collate_ids, callbacks=[SetEpochCallback()]
    )
    trainer.train()
    assert [len(batch) for batch in model.seen] == [3, 3, 3, 3, 3, 1] * 2
    assert {line["image_id"] for line in lines_of(log_path)} == {None, "11", "13", "15"}
    assert log.num_bad == 7


# Streams


def spoiled_shards(folder, format):
    """Shards of 8, 12 and 10 samples, of which 3, 10, 12, 14, 16 and 22 cannot be read; returns paths and those ids."""
    if format == "webdataset":
        paths = make_shards(folder, format, [8, 12, 10])
        rewrite_tar(paths[0], {"00000003.json": b'{"image": "images/0003'})
        changes = {
            "00000002.jpg": photo(10)[:-40],
            "00000004.jpg": decompression_bomb(),
            "00000006.json": b"[]",
            "00000008.json": b'"\xff\xfe"',
        }
        rewrite_tar(paths[1], changes)
        without_image(paths[2], "00000002.jpg")
        return paths, {3, 10, 12, 14, 16, 22}
    import pyarrow
    import pyarrow.parquet

    paths = make_shards(folder, format, [8, 12, 10])
    for path, changes in zip(
        paths,
        (
            {3: {"regions": '[{"box": [1, 2'}},
            {
                2: {"image": {"bytes": photo(10)[:-40], "path": "0010.jpg"}},
                4: {"image": {"bytes": decompression_bomb(), "path": "0012.jpg"}},
                6: {"regions": None},
                8: {"image": {"bytes": None, "path": "missing.jpg"}},
            },
            {2: {"width": 17}},
        ),
        strict=True,
    ):
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
        for index, change in changes.items():
            rows[index].update(change)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), path, row_group_size=4)
    return paths, {3, 10, 12, 14, 16, 22}


def without_image(path, name):
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar if member.name != name]
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_bad_samples_in_the_middle_of_shards_are_replaced(tmp_path, log_path, format):
    paths, bad = spoiled_shards(tmp_path, format)
    log = BadSampleLog(log_path, max_bad_fraction=0.5)
    stream = RegionStream(paths, shuffle_buffer=4, bad_samples=log)
    for epoch in range(2):
        stream.set_epoch(epoch)
        loader = DataLoader(stream, batch_size=5, num_workers=2, collate_fn=ids_of)
        batches = list(loader)
        assert [len(batch) for batch in batches] == [5] * 6
        seen = Counter(number for batch in batches for number in batch)
        assert set(seen) == set(range(30)) - bad and sum(seen.values()) == 30
        assert batches == list(loader)
    lines = lines_of(log_path)
    assert log.num_bad == len(lines) == len(bad)
    assert {line["where"].split(", ")[0] for line in lines} == {str(path) for path in paths}
    text = " ".join(line["reason"] for line in lines)
    for reason in ("is not JSON", "truncated", "pixels"):
        assert reason in text
    parts = (
        ["has the members ['json']", "is a list; accepted is an object"]
        if format == "webdataset"
        else ["missing.jpg", "'regions' is missing", "its entry says 17"]
    )
    assert all(part in text for part in parts)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_on_spoiled_shards_goes_on_and_resumes_exactly(tmp_path, log_path, workers):
    paths, bad = spoiled_shards(tmp_path / "data", "webdataset")

    def train(folder, stop_at=None, resume=None):
        torch.manual_seed(0)
        model = Probe()
        log = BadSampleLog(log_path, max_bad_fraction=0.3)
        trainer = Trainer(
            model,
            trainer_arguments(folder, save_strategy="steps", save_steps=1, dataloader_num_workers=workers),
            train_dataset=RegionStream(paths, shuffle_buffer=4, bad_samples=log),
            data_collator=collate_ids,
            callbacks=[] if stop_at is None else [StopAt(stop_at)],
        )
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = train(tmp_path / "whole")
    assert [len(batch) for batch in whole.seen] == [3] * 20
    assert {number for batch in whole.seen for number in batch} == set(range(30)) - bad
    for stop_at in (4, 13):
        folder = tmp_path / str(stop_at)
        first = train(folder, stop_at)
        second = train(folder, None, str(folder / f"checkpoint-{stop_at}"))
        assert first.seen + second.seen == whole.seen
        assert torch.equal(second.layer.weight, whole.layer.weight)
    assert BadSampleLog(log_path).num_bad == len(bad)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_fails_when_too_many_samples_are_bad(tmp_path, log_path, workers):
    paths, bad = spoiled_shards(tmp_path / "data", "webdataset")
    trainer = Trainer(
        Probe(),
        trainer_arguments(tmp_path, dataloader_num_workers=workers),
        train_dataset=RegionStream(paths, bad_samples=BadSampleLog(log_path, max_bad_fraction=0.1)),
        data_collator=collate_ids,
    )
    message = r"samples read are bad \(\d\d.\d%\), more than max_bad_fraction=0.1. They are listed in .*; mend .* The last is .*: "
    with pytest.raises(TooManyBadSamplesError, match=message):
        trainer.train()
    # Collected as garbage, it would wait for its workers until they time out.
    for loader in [item for item in gc.get_objects() if type(item) is _MultiProcessingDataLoaderIter]:
        loader._shutdown_workers()
    assert len(lines_of(log_path)) >= 3


@pytest.mark.parametrize("max_steps", [-1, 2])
def test_an_epoch_with_few_samples_is_judged_at_its_end(tmp_path, log_path, caplog, max_steps):
    paths, bad = spoiled_shards(tmp_path / "data", "webdataset")
    log = BadSampleLog(log_path, max_bad_fraction=0.1)
    stream = RegionStream(paths, shuffle_buffer=0, bad_samples=log)
    # The readers wait for as many.
    log.add_source("another data set", 1000)
    trainer = Trainer(
        Probe(),
        trainer_arguments(tmp_path, max_steps=max_steps),
        train_dataset=stream,
        data_collator=collate_ids,
        callbacks=[BadSamplesCallback(log)],
    )
    if max_steps == 2:
        # Cut short in the middle.
        trainer.train()
        assert "1 of the " in caplog.text and "samples read so far are bad and were skipped" in caplog.text
        return
    with pytest.raises(TooManyBadSamplesError, match="6 of the 30 samples read are bad"):
        trainer.train()
    assert trainer.state.global_step == 10
    assert "6 of the 30 samples read so far are bad and were skipped" in caplog.text


PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from region_shards_for_tests import Probe, collate_ids
from test_region_streams import trainer_arguments
from transformers import Trainer
from processing_pixclip import BadSampleLog, BadSamplesCallback, RegionStream

folder = Path(sys.argv[1])

def train(name, max_bad_fraction):
    log = BadSampleLog(folder / f"{{name}}.jsonl", max_bad_fraction)
    trainer = Trainer(
        Probe(),
        trainer_arguments(folder / name, dataloader_num_workers=2, ddp_backend="gloo"),
        train_dataset=RegionStream(sys.argv[2:], shuffle_buffer=4, bad_samples=log),
        data_collator=collate_ids,
        callbacks=[BadSamplesCallback(log)],
    )
    trainer.train()
    return trainer.args.process_index, [number for batch in trainer.model.seen for number in batch]

rank, seen = train("accepted", 0.5)
(folder / f"seen-{{rank}}").write_text(" ".join(map(str, seen)))
train("refused", 0.1)
(folder / "finished").touch()
"""


def test_processes_write_one_log_and_fail_together(tmp_path):
    paths, bad = spoiled_shards(tmp_path / "data", "webdataset")
    script = tmp_path / "train.py"
    script.write_text(PROCESSES.format(tests=str(Path(__file__).parent)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [str(part) for part in [*launch, script, tmp_path, *paths]]
    done = subprocess.run(command, timeout=300, capture_output=True, text=True)
    assert done.returncode != 0 and "TooManyBadSamplesError" in done.stderr
    assert not (tmp_path / "finished").exists()
    seen = [list(map(int, (tmp_path / f"seen-{rank}").read_text().split())) for rank in range(2)]
    # 2 epochs of 30 samples.
    assert [len(of_rank) for of_rank in seen] == [30, 30]
    assert set(seen[0]) | set(seen[1]) == set(range(30)) - bad
    lines = lines_of(tmp_path / "accepted.jsonl")
    assert len(lines) == len({line["where"] for line in lines}) == len(bad)
    refused = lines_of(tmp_path / "refused.jsonl")
    assert 3 < len(refused) <= len(bad)


KILLED = """
import json, os, sys, time
sys.path.insert(0, {tests!r})
import torch
from pathlib import Path
from region_shards_for_tests import Probe, collate_ids
from test_region_streams import trainer_arguments
from transformers import Trainer
from modeling_pixclip import CheckpointIntegrityCallback, last_complete_checkpoint
from processing_pixclip import BadSampleLog, BadSamplesCallback, RegionStream, StreamResumeCallback

folder = Path(sys.argv[1])

class Told(Probe):
    def forward(self, ids, **inputs):
        with open(folder / "seen.jsonl", "a") as file:
            file.write(json.dumps([trainer.state.global_step, ids.tolist()]) + "\\n")
        time.sleep(0.02)
        return super().forward(ids, **inputs)

torch.manual_seed(0)
log = BadSampleLog(folder / "bad_samples.jsonl", 0.5)
trainer = Trainer(
    Told(),
    trainer_arguments(
        folder, dataloader_num_workers=2, num_train_epochs=6, save_strategy="steps", save_steps=2, save_total_limit=2
    ),
    train_dataset=RegionStream(sys.argv[2:], shuffle_buffer=4, bad_samples=log),
    data_collator=collate_ids,
    callbacks=[BadSamplesCallback(log), StreamResumeCallback(), CheckpointIntegrityCallback()],
)
trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
torch.save(trainer.model.state_dict(), folder / "weights.pt")
"""


@pytest.mark.slow
def test_a_stream_with_bad_samples_goes_on_exactly_after_kills(tmp_path):
    paths, bad = spoiled_shards(tmp_path / "data", "webdataset")
    script = tmp_path / "train.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent)))

    def start(name):
        (tmp_path / name).mkdir(exist_ok=True)
        command = [sys.executable, script, tmp_path / name, *paths]
        return subprocess.Popen([str(part) for part in command], start_new_session=True)

    def steps_of(name):
        file = tmp_path / name / "seen.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    assert start("whole").wait(300) == 0
    whole = dict(steps_of("whole"))
    assert len(whole) == 60
    generator = random.Random(0)
    kills = 0
    while True:
        process, before = start("killed"), len(steps_of("killed"))
        until = before + generator.randint(8, 20)
        while process.poll() is None and len(steps_of("killed")) < until:
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 3
    killed = steps_of("killed")
    # Steps after the last checkpoint come again, with the samples that they had.
    assert len(killed) > 60 and all(whole[step] == ids for step, ids in killed) and set(dict(killed)) == set(whole)
    weights = [torch.load(tmp_path / name / "weights.pt") for name in ("whole", "killed")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    lines = lines_of(tmp_path / "killed" / "bad_samples.jsonl")
    assert len(lines) == len({line["where"] for line in lines}) == len(bad)


@pytest.mark.parametrize("where", ["in an image", "in a header", "after a sample", "in the first header"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_tar_that_is_cut_loses_what_is_behind_the_cut_only(tmp_path, log_path, where, listed):
    paths = make_shards(tmp_path, "webdataset", [6, 4])
    with tarfile.open(paths[0]) as tar:
        members = {member.name: member for member in tar}
    fourth = members["00000003.jpg"]
    place = {
        "in an image": fourth.offset_data + 10,
        "in a header": fourth.offset + 100,
        "after a sample": fourth.offset,
        "in the first header": 100,
    }[where]
    os.truncate(paths[0], place)
    if not listed:
        (paths[0].parent / "sizes.json").unlink()
    log = BadSampleLog(log_path, max_bad_fraction=0.9)
    stream = RegionStream(paths, shuffle_buffer=0, bad_samples=log)
    good = 0 if where == "in the first header" else 3
    assert len(stream) == (10 if listed else good + 1 + 4)
    ids = ids_of(stream)
    assert ids[:good] == list(range(good)) and ids[-4:] == [6, 7, 8, 9]
    assert set(ids) == {*range(good), 6, 7, 8, 9}
    lines = lines_of(log_path)
    assert len(lines) == (6 - good if listed else 1)
    assert all("tar file is cut" in line["reason"] or "no tar file" in line["reason"] for line in lines)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("content", [b"\xff", b"\0"])
def test_a_damaged_header_in_a_tar_is_not_taken_for_its_end(tmp_path, log_path, content, listed):
    (path,) = make_shards(tmp_path, "webdataset", [6])
    with tarfile.open(path) as tar:
        place = next(member.offset for member in tar if member.name == "00000003.jpg")
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(content * 512)
    if not listed:
        (path.parent / "sizes.json").unlink()
        with pytest.raises(
            ValueError, match=f"00000.tar: the tar file is damaged after sample '00000002', at byte {place}"
        ):
            RegionStream(path)
    log = BadSampleLog(log_path, max_bad_fraction=0.9)
    assert set(ids_of(RegionStream(path, bad_samples=log))) == {0, 1, 2}
    assert log.num_bad == (3 if listed else 1)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("damage", ["cut", "empty", "footer"])
def test_a_parquet_that_cannot_be_opened_is_counted(tmp_path, log_path, damage, listed):
    paths = make_shards(tmp_path, "parquet", [6, 4])
    content = paths[0].read_bytes()
    paths[0].write_bytes(
        {"cut": content[:-300], "empty": b"", "footer": content[:-200] + b"\xff" * 192 + content[-8:]}[damage]
    )
    if not listed:
        (paths[0].parent / "sizes.json").unlink()
        with pytest.raises((ValueError, OSError), match=f"{paths[0]} cannot be read"):
            RegionStream(paths)
    log = BadSampleLog(log_path, max_bad_fraction=0.9)
    stream = RegionStream(paths, bad_samples=log)
    assert len(stream) == (10 if listed else 5)
    assert set(ids_of(stream)) == {6, 7, 8, 9}
    lines = lines_of(log_path)
    assert len(lines) == (6 if listed else 1)
    assert all(f"{paths[0]} cannot be read" in line["reason"] for line in lines)


def test_json_that_is_nested_without_end_is_bad(tmp_path, log_path):
    (path,) = make_shards(tmp_path, "webdataset", [3])
    rewrite_tar(path, {"00000001.json": b"[" * 100_000})
    log = BadSampleLog(log_path, max_bad_fraction=0.9)
    assert set(ids_of(RegionStream(path, bad_samples=log))) == {0, 2}
    assert "is not JSON" in lines_of(log_path)[0]["reason"]


def test_a_damaged_row_group_is_lost_alone(tmp_path, log_path):
    import pyarrow.parquet

    (path,) = make_shards(tmp_path, "parquet", [250])
    column = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    with open(path, "r+b") as file:
        file.seek(column.dictionary_page_offset or column.data_page_offset)
        file.write(b"\xff" * 200)
    log = BadSampleLog(log_path, max_bad_fraction=0.9)
    ids = ids_of(RegionStream(path, bad_samples=log))
    assert set(ids) == {*range(100), *range(200, 250)} and len(ids) == 250
    assert log.num_bad == 100
    assert {line["where"] for line in lines_of(log_path)} == {f"{path}, row {row}" for row in range(100, 200)}


def test_a_shard_that_disappears_is_counted(tmp_path, log_path):
    paths = make_shards(tmp_path, "webdataset", [3, 4])
    log = BadSampleLog(log_path, max_bad_fraction=0.9)
    stream = RegionStream(paths, bad_samples=log)
    paths[0].unlink()
    assert set(ids_of(stream)) == {3, 4, 5, 6}
    assert {line["error"] for line in lines_of(log_path)} == {"FileNotFoundError"} and log.num_bad == 3


def test_a_sparse_member_of_a_terabyte_is_not_unpacked(tmp_path, log_path):
    (path,) = make_shards(tmp_path, "webdataset", [3])
    sparse = tarfile.TarInfo("00000003.jpg")
    sparse.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(1 << 40, 12, tarfile.GNU_FORMAT)
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("00000003.json"))
        tar.fileobj.write(header)
        tar.offset += len(header)
    (path.parent / "sizes.json").unlink()
    log = BadSampleLog(log_path, max_bad_fraction=0.9)
    assert set(ids_of(RegionStream(path, bad_samples=log))) == {0, 1, 2}
    (line,) = lines_of(log_path)
    assert "'00000003.jpg' is sparse or has more than" in line["reason"]
