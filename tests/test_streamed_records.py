# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Streamed data sets of `datasets` as region samples: epochs, bad samples, processes, and the plain Trainer."""

from collections import Counter

import numpy as np
import pyarrow.parquet
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.state import AcceleratorState, GradientState
from datasets import Dataset, IterableDataset, load_dataset
from region_shards_for_tests import Probe, collate_ids, lines_of, make_shards, photo
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from processing_pixclip import BadSampleLog, RegionJsonlDataset, RegionStream, SetEpochCallback, StreamedRecords


@pytest.fixture(autouse=True)
def nothing_of_another_test():
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def shards(tmp_path):
    return make_shards(tmp_path / "data", "parquet", [5, 5, 4])


def rows_of(paths):
    return load_dataset("parquet", data_files=[str(path) for path in paths], split="train", streaming=True)


def generate(shards):
    for rows in shards:
        yield from rows


def rows_for_workers(paths):
    """The same without Arrow, which does not survive that the workers are forked where other tests have read with it."""
    shards = [pyarrow.parquet.read_table(path).to_pylist() for path in paths]
    return IterableDataset.from_generator(generate, gen_kwargs={"shards": shards})


def ids_of(samples):
    return [int(sample["image_id"]) for sample in samples]


def test_the_samples_are_those_of_the_json_lines(shards, tmp_path):
    expected = RegionJsonlDataset(tmp_path / "data" / "files" / "data.jsonl")
    for sample, other in zip(StreamedRecords(rows_of(shards)), expected, strict=True):
        assert np.array_equal(sample.pop("image"), other.pop("image"))
        for mask, other_mask in zip(sample.pop("masks"), other.pop("masks"), strict=True):
            assert np.array_equal(mask, other_mask)
        assert sample == other
    with pytest.raises(TypeError, match="dataset is a Dataset; accepted is a datasets.IterableDataset"):
        StreamedRecords(Dataset.from_dict({"image_id": ["0"]}))


def test_rows_that_map_makes_are_taken(shards):
    def change(row):
        return {"captions": [f"mapped {row['image_id']}"]}

    samples = list(StreamedRecords(rows_of(shards).decode(False).map(change)))
    assert len(samples) == 14 and samples[3]["captions"] == ["mapped 3"]
    with pytest.raises(
        TypeError, match=r"decoded images, a JpegImageFile, .* call decode\(False\) on the data set before"
    ):
        list(StreamedRecords(rows_of(shards).map(change)))


def test_a_worker_tells_that_its_parent_has_read(shards, caplog):
    samples = StreamedRecords(rows_for_workers(shards))
    list(samples)
    assert not caplog.messages
    # What the worker has logged comes back in place of its batch.
    messages = next(iter(DataLoader(samples, num_workers=1, collate_fn=lambda batch: list(caplog.messages))))
    assert len(messages) == 1 and "has read a streamed data set before" in messages[0]


def test_every_epoch_has_an_order_of_its_own_and_tells_its_number(shards):
    samples = StreamedRecords(rows_of(shards).shuffle(seed=0, buffer_size=5))
    orders = []
    for epoch in (0, 1, 0):
        samples.set_epoch(epoch)
        taken = list(samples)
        assert {sample["epoch"] for sample in taken} == {epoch}
        orders.append(ids_of(taken))
    assert orders[0] == orders[2] != orders[1] and sorted(orders[0]) == sorted(orders[1]) == list(range(14))


def break_images(path, numbers):
    rows = pyarrow.parquet.read_table(path).to_pylist()
    for row in rows:
        if int(row["image_id"]) in numbers:
            row["image"]["bytes"] = photo(0)[:200]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_bad_samples_are_left_out_and_written_down_once(shards, tmp_path):
    break_images(shards[1], {6, 8})
    with pytest.raises(ValueError, match="image_id '6'"):
        list(StreamedRecords(rows_of(shards)))
    log = BadSampleLog(tmp_path / "bad.jsonl", max_bad_fraction=0.5)
    samples = StreamedRecords(rows_of(shards), log)
    for epoch in range(2):
        samples.set_epoch(epoch)
        assert ids_of(samples) == [0, 1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 13]
    assert [line["image_id"] for line in lines_of(log.path)] == ["6", "8"]


def test_an_identifier_is_not_needed_to_be_written_down_once(tmp_path, shards):
    log = BadSampleLog(tmp_path / "bad.jsonl", max_bad_fraction=1)
    samples = StreamedRecords(rows_of(shards).remove_columns("image_id"), log)
    assert list(samples) == list(samples) == []
    assert log.num_bad == 14


def loader_of_rank(samples, rank, ranks, workers):
    loader = DataLoader(samples, batch_size=2, num_workers=workers, collate_fn=ids_of)
    return prepare_data_loader(
        loader, num_processes=ranks, process_index=rank, dispatch_batches=False, put_on_device=False
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_the_stream_and_count_it_once(shards, tmp_path, workers):
    break_images(shards[1], {6})
    batches = []
    for rank in range(2):
        log = BadSampleLog(tmp_path / "bad.jsonl", max_bad_fraction=0.5)
        samples = StreamedRecords(rows_for_workers(shards).shuffle(seed=0, buffer_size=3), log)
        batches.append(list(loader_of_rank(samples, rank, 2, workers)))
        log.flush()
    assert len(batches[0]) == len(batches[1])
    seen = Counter(number for of_rank in batches for batch in of_rank for number in batch)
    assert set(seen) == set(range(14)) - {6}
    # What fills the last batches comes twice.
    assert seen.total() - 13 == {0: 3, 2: 3}[workers]
    assert log.num_bad == 1 and (tmp_path / "bad.jsonl.seen").stat().st_size == 13


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            control.should_training_stop = True


def train(folder, dataset, stop_at=None, resume=None, callbacks=(), **settings):
    torch.manual_seed(0)
    model = Probe()
    arguments = TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 3,
            "max_steps": 12,
            "report_to": "none",
            "remove_unused_columns": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
            "save_strategy": "steps",
            "save_steps": 1,
            "accelerator_config": {"dispatch_batches": False},
            **settings,
        },
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=dataset,
        data_collator=collate_ids,
        callbacks=[StopAt(stop_at), SetEpochCallback(), *callbacks],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


@pytest.mark.parametrize("workers", [0, 2])
def test_a_trainer_resumes_the_first_epoch_by_reading_again(shards, tmp_path, workers):
    def run(folder, **options):
        dataset = StreamedRecords(rows_for_workers(shards).shuffle(seed=0, buffer_size=5))
        return train(tmp_path / folder, dataset, dataloader_num_workers=workers, **options)

    whole = run("whole")
    first = run("parts", stop_at=3)
    second = run("parts", resume=str(tmp_path / "parts" / "checkpoint-3"))
    assert first.seen + second.seen == whole.seen and len(whole.seen) == 12
    assert torch.equal(second.layer.weight, whole.layer.weight)


def test_a_loader_that_would_cut_the_batches_is_refused(shards, tmp_path):
    with pytest.raises(ValueError, match="set dispatch_batches=False, for the Trainer with"):
        train(tmp_path / "run", StreamedRecords(rows_of(shards)), accelerator_config=None)


class WithoutEpoch(TorchIterableDataset):
    def __iter__(self):
        yield from ()


def test_streams_without_the_epoch_are_an_error(shards, tmp_path):
    with pytest.raises(ValueError, match=r"whose samples do not hold the epoch.* give StreamedRecords\(dataset\)"):
        train(tmp_path / "run", rows_of(shards))
    with pytest.raises(ValueError, match="no set_epoch in the training set, a WithoutEpoch"):
        train(tmp_path / "run", WithoutEpoch())
    assert len(train(tmp_path / "run", RegionStream(shards), max_steps=2).seen) == 2
