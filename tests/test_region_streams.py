# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Streams of shards: what they yield, how ranks and workers share them, and that a resumed run goes on exactly."""

import io
import json
import random
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.state import AcceleratorState, GradientState
from datasets import load_dataset
from region_shards_for_tests import (
    HEIGHT,
    WIDTH,
    WRITERS,
    Probe,
    collate_ids,
    lines_of,
    make_jsonl,
    make_shards,
    photo,
    record,
    rewrite_tar,
)
from tiny_models import assert_same_weights, pixclip_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments
from transformers.utils.logging import warning_once

from modeling_pixclip import PixCLIPForPreTraining
from processing_pixclip import (
    BadSampleLog,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    RegionJsonlDataset,
    RegionStream,
    StreamResumeCallback,
)
from processing_pixclip.region_shards import ParquetShard, StoredRecord, WebDatasetShard, _samples_of_tar


FORMATS = ["parquet", "webdataset"]
UNEVEN = [7, 1, 12, 3]


@pytest.fixture(autouse=True)
def nothing_of_another_test():
    GradientState._reset_state()
    # Told once a process.
    warning_once.cache_clear()


@pytest.fixture(scope="module", params=FORMATS)
def shards(request, tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp(request.param), request.param, UNEVEN)


def ids_of(samples):
    return [int(sample["image_id"]) for sample in samples]


@pytest.mark.parametrize("format", FORMATS)
def test_a_stream_yields_what_the_json_lines_hold(tmp_path, format):
    paths = make_shards(tmp_path, format, [3, 2])
    expected = RegionJsonlDataset(tmp_path / "files" / "data.jsonl")
    stream = RegionStream(paths, shuffle_buffer=0)
    assert len(stream) == 5
    for sample, other in zip(stream, expected, strict=True):
        assert np.array_equal(sample.pop("image"), other.pop("image"))
        for mask, other_mask in zip(sample.pop("masks"), other.pop("masks"), strict=True):
            assert np.array_equal(mask, other_mask)
        assert sample == other
        assert len(sample["long_captions"]) == 2 and sample["categories"] == [None, "square"]


def test_a_written_parquet_is_a_data_set_of_images_for_datasets(tmp_path):
    (path,) = make_shards(tmp_path, "parquet", [3])
    # The folder as a whole, sizes.json beside the shards.
    row = next(iter(load_dataset(str(path.parent), split="train", streaming=True)))
    assert row["image"].size == (16, 12)
    assert json.loads(row["regions"])[0]["text"] == "a box in photo 0"


def test_parquet_of_others_with_structs_and_paths_is_read(tmp_path):
    dataset = RegionJsonlDataset(make_jsonl(tmp_path, 2))
    rows = [record(number) for number in range(2)]
    for row in rows:
        # Arrow makes one type of all regions; what a region lacks is null then.
        row["regions"][1]["mask"] = json.dumps(row["regions"][1]["mask"])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    samples = list(RegionStream(tmp_path / "data.parquet", shuffle_buffer=0))
    assert [sample["texts"] for sample in samples] == [sample["texts"] for sample in dataset]
    assert samples[1]["boxes"] == [[1.0, 2.0, 9.0, 8.0], None]


def test_shards_are_found_by_pattern_and_by_address(shards):
    pattern = f"{shards[0].parent.parent}/part*/*{shards[0].suffix}"
    by_pattern = RegionStream(pattern, shuffle_buffer=0)
    by_address = RegionStream(f"file://{pattern}", shuffle_buffer=0)
    assert ids_of(by_pattern) == ids_of(by_address) == list(range(sum(UNEVEN)))


def test_wrong_settings_say_what_is_accepted(shards, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file matches"):
        RegionStream(tmp_path / "*.tar")
    with pytest.raises(ValueError, match="more than once"):
        RegionStream([shards[0], shards[0]])
    with pytest.raises(ValueError, match="shuffle_buffer is -1"):
        RegionStream(shards, shuffle_buffer=-1)
    with pytest.raises(ValueError, match="format is 'csv'; accepted"):
        RegionStream(shards, format="csv")
    (tmp_path / "data.bin").touch()
    with pytest.raises(ValueError, match="none of the extensions"):
        RegionStream(tmp_path / "data.bin")


def test_the_order_is_one_of_the_seed_and_the_epoch(shards):
    def order(seed, epoch, buffer=4):
        stream = RegionStream(shards, seed=seed, shuffle_buffer=buffer)
        stream.set_epoch(epoch)
        samples = list(stream)
        assert {sample["epoch"] for sample in samples} == {epoch}
        return ids_of(samples)

    everything = list(range(sum(UNEVEN)))
    orders = [order(0, 0), order(0, 1), order(1, 0)]
    assert all(sorted(one) == everything for one in orders)
    assert orders[0] == order(0, 0) and len({tuple(one) for one in orders}) == 3
    assert order(0, 1, buffer=0) == everything


def test_a_shuffle_buffer_holds_no_more_than_its_size(tmp_path, monkeypatch):
    paths = make_shards(tmp_path, "webdataset", [40])
    read = []
    original = WebDatasetShard._record_of
    monkeypatch.setattr(
        WebDatasetShard, "_record_of", lambda self, *args: read.append(args[1]) or original(self, *args)
    )
    for count, _ in enumerate(RegionStream(paths, shuffle_buffer=5), start=1):
        assert len(read) <= count + 5
    assert read == list(range(40))


# Sharing out over ranks and workers


def accelerate_loader(stream, rank, ranks, batch_size, workers):
    """What the Trainer makes of a stream in a process of that rank."""
    loader = DataLoader(stream, batch_size=batch_size, num_workers=workers, collate_fn=ids_of)
    return prepare_data_loader(
        loader, num_processes=ranks, process_index=rank, dispatch_batches=False, put_on_device=False
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("ranks", "workers", "batch_size"),
    [*((ranks, workers, 3) for ranks in (1, 2, 4) for workers in (0, 1, 2)), (1, 3, 4), (8, 0, 1), (5, 2, 8)],
)
def test_ranks_and_workers_share_the_data_set_disjoint_and_complete(shards, ranks, workers, batch_size):
    total = sum(UNEVEN)
    batches = [
        list(accelerate_loader(RegionStream(shards, seed=3, shuffle_buffer=4), rank, ranks, batch_size, workers))
        for rank in range(ranks)
    ]
    seen = Counter(number for of_rank in batches for batch in of_rank for number in batch)
    steps = -(-total // (ranks * batch_size))
    assert {len(of_rank) for of_rank in batches} == {steps}
    assert set(seen) == set(range(total))
    if ranks == 1:
        assert set(seen.values()) == {1}
    else:
        # The last step is filled up, by less than one global batch, from the beginning of the epoch.
        assert all(len(batch) == batch_size for of_rank in batches for batch in of_rank)
        assert sum(seen.values()) == steps * ranks * batch_size
        assert max(seen.values()) <= -(-steps * ranks * batch_size // total)


def test_samples_that_come_twice_are_told(shards, caplog):
    list(accelerate_loader(RegionStream(shards), 0, 2, 4, 0))
    list(accelerate_loader(RegionStream(shards), 1, 3, 5, 0))
    RegionStream(shards).split_by_node(0, 5)
    messages = [record.message for record in caplog.records]
    told = (
        "of the 23 samples come twice, or more often, in an epoch, so that all processes take the same number of them."
    )
    # Once, by the first rank.
    assert messages == [f"1 {told}", f"2 {told}"]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (2, 2)])
def test_a_last_step_that_is_dropped_leaves_ranks_even_and_repeats_nothing(shards, caplog, ranks, workers):
    loaders = []
    for rank in range(ranks):
        stream = RegionStream(shards, shuffle_buffer=4)
        loader = DataLoader(stream, batch_size=3, num_workers=workers, collate_fn=ids_of, drop_last=True)
        loaders.append(
            prepare_data_loader(
                loader, num_processes=ranks, process_index=rank, dispatch_batches=False, put_on_device=False
            )
        )
    batches = [list(loader) for loader in loaders]
    steps = 23 // (3 * ranks)
    assert [len(of_rank) for of_rank in batches] == [len(loader) for loader in loaders] == [steps] * ranks
    seen = Counter(number for of_rank in batches for batch in of_rank for number in batch)
    assert set(seen.values()) == {1} and seen.total() == steps * 3 * ranks
    assert ("5 of the 23 samples are left out of each epoch." in caplog.text) == (ranks > 1)
    if ranks > 1:
        with pytest.raises(
            ValueError, match="drop_last leaves nothing of 23 samples, which .* 2 processes with 12 each"
        ):
            loader = DataLoader(RegionStream(shards), batch_size=12, collate_fn=ids_of, drop_last=True)
            list(
                prepare_data_loader(
                    loader, num_processes=2, process_index=0, dispatch_batches=False, put_on_device=False
                )
            )


def test_batches_that_accelerate_would_split_are_refused(shards):
    loader = DataLoader(RegionStream(shards), batch_size=4, collate_fn=ids_of)
    prepared = prepare_data_loader(
        loader, num_processes=2, process_index=0, split_batches=True, dispatch_batches=False, put_on_device=False
    )
    with pytest.raises(ValueError, match="set split_batches=False, for the Trainer with"):
        list(prepared)


def test_no_sample_comes_twice_where_batches_fit(shards):
    # 23 samples and one more, in 2 ranks of 3 batches of 4.
    extra = make_shards(shards[0].parent / f"extra{len(list(shards[0].parent.iterdir()))}", _format(shards), [1])
    stream = RegionStream([*shards, *extra], shuffle_buffer=4)
    batches = [list(accelerate_loader(stream, rank, 2, 4, 2)) for rank in range(2)]
    assert [len(of_rank) for of_rank in batches] == [3, 3]
    counts = Counter(number for of_rank in batches for batch in of_rank for number in batch)
    assert counts == Counter([*range(23), 0])


def _format(shards):
    return "parquet" if shards[0].suffix == ".parquet" else "webdataset"


def test_a_rank_reads_and_decodes_its_own_part_only(tmp_path, monkeypatch):
    paths = make_shards(tmp_path, "webdataset", [24, 24])
    read, decoded = [], []
    record_of, sample = WebDatasetShard._record_of, StoredRecord.sample
    monkeypatch.setattr(
        WebDatasetShard, "_record_of", lambda self, *args: read.append(args[1]) or record_of(self, *args)
    )
    monkeypatch.setattr(StoredRecord, "sample", lambda self: decoded.append(self.where) or sample(self))
    list(accelerate_loader(RegionStream(paths), 1, 4, 3, 0))
    assert len(read) == len(decoded) == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_split_by_node_shares_out_without_accelerate(shards, workers):
    stream = RegionStream(shards, shuffle_buffer=4)
    parts = [stream.split_by_node(rank, 3) for rank in range(3)]
    seen = [
        [n for batch in DataLoader(part, batch_size=2, num_workers=workers, collate_fn=ids_of) for n in batch]
        for part in parts
    ]
    # 23 samples in 3 parts of 8: one comes twice.
    assert [len(part) for part in seen] == [8, 8, 8]
    assert set().union(*seen) == set(range(23))
    with pytest.raises(ValueError, match="rank is 3 of 3"):
        stream.split_by_node(3, 3)
    with pytest.raises(ValueError, match="split it again"):
        list(accelerate_loader(parts[0], 0, 2, 2, 0))


def trainer_arguments(folder, **settings):
    return TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 3,
            "num_train_epochs": 2,
            "learning_rate": 0.05,
            "report_to": "none",
            "remove_unused_columns": False,
            "use_cpu": True,
            "disable_tqdm": True,
            "logging_strategy": "no",
            "save_strategy": "no",
            "accelerator_config": {"dispatch_batches": False},
            **settings,
        },
    )


def test_a_loader_that_would_cut_the_batches_is_refused(shards, tmp_path):
    trainer = Trainer(
        Probe(),
        trainer_arguments(tmp_path, accelerator_config=None),
        train_dataset=RegionStream(shards),
        data_collator=collate_ids,
    )
    with pytest.raises(ValueError, match="set dispatch_batches=False, for the Trainer with"):
        trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)


PROCESSES = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
from pathlib import Path
from region_shards_for_tests import Probe, collate_ids
from test_region_streams import StopAt, trainer_arguments
from transformers import Trainer
from processing_pixclip import RegionStream, StreamResumeCallback

folder = Path(sys.argv[1])

def train(name, workers, output, stop_at=None, resume=None):
    torch.manual_seed(0)
    model = Probe()
    arguments = trainer_arguments(
        folder / output, dataloader_num_workers=workers, ddp_backend="gloo", save_strategy="steps", save_steps=1
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=RegionStream(sys.argv[2:], shuffle_buffer=4),
        data_collator=collate_ids,
        callbacks=[StopAt(stop_at), StreamResumeCallback()],
    )
    trainer.train(resume_from_checkpoint=resume)
    result = {{"seen": model.seen, "steps": trainer.state.global_step, "weight": model.layer.weight.tolist()}}
    (folder / f"{{name}}-{{arguments.process_index}}.json").write_text(json.dumps(result))

train("whole", {workers}, "whole")
train("first", {workers}, "parts", stop_at=3)
train("second", {workers}, "parts", resume=str(folder / "parts" / "checkpoint-3"))
# Every process reads everything, if it is not told its part.
print("read", sum(1 for _ in RegionStream(sys.argv[2:])), flush=True)
"""


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [
        (2, 2),
        *(pytest.param(ranks, workers, marks=pytest.mark.slow) for ranks, workers in ((1, 1), (2, 0), (4, 1), (4, 2))),
    ],
)
def test_a_trainer_in_processes_sees_everything_once_an_epoch_and_resumes(tmp_path, ranks, workers):
    paths = make_shards(tmp_path / "data", "webdataset", UNEVEN)
    script = tmp_path / "train.py"
    script.write_text(PROCESSES.format(tests=str(Path(__file__).parent), workers=workers))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    command = [str(part) for part in [*launch, script, tmp_path, *paths]]
    done = subprocess.run(command, check=True, timeout=600, capture_output=True, text=True)
    assert done.stdout.count("read 23") == ranks
    told = f"{ranks} processes run, and each reads the whole stream"
    assert done.stderr.count(told) == (ranks if ranks > 1 else 0)

    def results_of(name):
        return [json.loads((tmp_path / f"{name}-{rank}.json").read_text()) for rank in range(ranks)]

    results = results_of("whole")
    # 23 samples in batches of 3: 8 steps an epoch of one process, 4 and 24 samples of two, 2 and 24 samples of four.
    steps = -(-23 // (3 * ranks))
    assert [result["steps"] for result in results] == [2 * steps] * ranks
    assert all(result["weight"] == results[0]["weight"] for result in results)
    epochs = []
    for epoch in range(2):
        batches = [batch for result in results for batch in result["seen"][steps * epoch : steps * (epoch + 1)]]
        seen = Counter(number for batch in batches for number in batch)
        assert set(seen) == set(range(23)) and seen.total() == (23 if ranks == 1 else 24)
        epochs.append(batches)
    assert epochs[0] != epochs[1]
    for whole, first, second in zip(results, results_of("first"), results_of("second"), strict=True):
        assert len(first["seen"]) == 3 and first["seen"] + second["seen"] == whole["seen"]
        assert second["weight"] == whole["weight"]


# Resuming


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def train(folder, paths, stop_at=None, resume=None, **settings):
    torch.manual_seed(0)
    # With persistent workers PyTorch draws one seed less from the global generator in an uninterrupted second epoch.
    model = Probe(dropout=0.0 if settings.get("dataloader_persistent_workers") else 0.5)
    trainer = Trainer(
        model,
        trainer_arguments(folder, save_strategy="steps", save_steps=1, **settings),
        train_dataset=RegionStream(paths, shuffle_buffer=4, seed=5),
        data_collator=collate_ids,
        callbacks=[] if stop_at is None else [StopAt(stop_at)],
    )
    trainer.train(resume_from_checkpoint=resume)
    return model


@pytest.mark.parametrize(
    ("format", "settings", "stops"),
    [
        ("webdataset", {}, (3, 8, 14)),
        ("parquet", {"dataloader_num_workers": 2}, (3, 13)),
        pytest.param(
            "webdataset",
            {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 1},
            (3, 13),
            marks=pytest.mark.slow,
        ),
        # 8 batches an epoch are 3 steps, of which the last is short.
        ("webdataset", {"gradient_accumulation_steps": 3, "dataloader_num_workers": 2}, (1, 3)),
    ],
    ids=["no workers", "workers", "persistent workers", "accumulation"],
)
def test_a_resumed_training_sees_what_the_uninterrupted_one_does(tmp_path, format, settings, stops):
    shards = make_shards(tmp_path / "data", format, UNEVEN)
    whole = train(tmp_path / "whole", shards, **settings)
    assert len(whole.seen) == 16
    for stop_at in stops:
        folder = tmp_path / str(stop_at)
        first = train(folder, shards, stop_at, **settings)
        second = train(folder, shards, None, str(folder / f"checkpoint-{stop_at}"), **settings)
        assert first.seen + second.seen == whole.seen
        assert torch.equal(second.layer.weight, whole.layer.weight)
        assert torch.equal(second.layer.bias, whole.layer.bias)


def test_a_pixclip_training_resumes_from_a_stream(tmp_path):
    backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1, "photo": 4, "square": 5}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    processor = PixCLIPProcessor(PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    paths = make_shards(tmp_path / "data", "webdataset", [5, 4])

    def run(folder, stop_at=None, resume=None):
        torch.manual_seed(0)
        model = PixCLIPForPreTraining(pixclip_config())
        trainer = Trainer(
            model,
            trainer_arguments(tmp_path / folder, save_strategy="steps", save_steps=1, dataloader_num_workers=2),
            train_dataset=RegionStream(paths, shuffle_buffer=3),
            data_collator=PixCLIPDataCollator(processor, whole_image_share=0.3, max_regions_per_image=1),
            callbacks=[StopAt(stop_at), StreamResumeCallback()],
        )
        result = trainer.train(resume_from_checkpoint=resume and str(tmp_path / folder / f"checkpoint-{resume}"))
        assert result.training_loss > 0
        return model

    whole = run("whole")
    run("parts", stop_at=4)
    assert_same_weights(run("parts", resume=4), whole)


def test_a_training_is_not_resumed_in_another_order(tmp_path, caplog):
    paths = make_shards(tmp_path / "data", "webdataset", UNEVEN)

    def run(folder="run", stop_at=None, resume=None, paths=paths, callback=True, seed=5, **settings):
        model = Probe()
        trainer = Trainer(
            model,
            trainer_arguments(tmp_path / folder, save_strategy="steps", save_steps=1, **settings),
            train_dataset=RegionStream(paths, shuffle_buffer=4, seed=seed),
            data_collator=collate_ids,
            callbacks=[StopAt(stop_at), *([StreamResumeCallback()] if callback else [])],
        )
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / folder / f"checkpoint-{resume}"))
        return model.seen

    whole = run("whole")
    first = run(stop_at=3)
    moved = tmp_path / "moved"
    (tmp_path / "data").rename(moved)
    paths = [moved / path.relative_to(tmp_path / "data") for path in paths]
    # The workers 0 and 1 are one lane; the folder does not matter; a resumed run keeps the note.
    second = run(stop_at=5, resume=3, paths=paths, dataloader_num_workers=1)
    assert first + second + run(resume=5, paths=paths) == whole
    assert "cannot be checked" not in caplog.text
    for other, told in (
        ({"dataloader_num_workers": 2}, "workers 1, now 2"),
        ({"per_device_train_batch_size": 2}, "batch_size 3, now 2"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps 1, now 2"),
        ({"dataloader_drop_last": True}, "drop_last False, now True"),
        ({"seed": 6}, "seed 5, now 6"),
        ({"paths": paths[:3]}, "samples 23, now 20; shards '"),
    ):
        with pytest.raises(ValueError, match=f"checkpoint of step 3 was written with {told}"):
            run(resume=3, **{"paths": paths, **other})
    # An epoch anew.
    assert len(run(resume=3, paths=paths, seed=6, ignore_data_skip=True)) == 16
    run("without", stop_at=2, paths=paths, callback=False)
    run("without", stop_at=3, resume=2, paths=paths)
    assert "checkpoint of step 2 was written without StreamResumeCallback" in caplog.text
    run("without", stop_at=4, resume=3, paths=paths)
    assert "checkpoint of step 3 was written without" not in caplog.text


def test_the_check_of_the_order_is_for_streams(tmp_path):
    dataset = RegionJsonlDataset(make_jsonl(tmp_path, 3))
    trainer = Trainer(
        Probe(),
        trainer_arguments(tmp_path / "run"),
        train_dataset=dataset,
        data_collator=collate_ids,
        callbacks=[StreamResumeCallback()],
    )
    with pytest.raises(ValueError, match="is for a RegionStream, but the training set is a RegionJsonlDataset"):
        trainer.train()


def test_what_a_resumed_training_skips_is_not_read(tmp_path, monkeypatch):
    paths = make_shards(tmp_path / "data", "webdataset", [60])
    train(tmp_path / "run", paths, 15, num_train_epochs=1)
    decoded, read = [], []
    record_of, sample = WebDatasetShard._record_of, StoredRecord.sample
    monkeypatch.setattr(
        WebDatasetShard, "_record_of", lambda self, *args: read.append(args[1]) or record_of(self, *args)
    )
    monkeypatch.setattr(StoredRecord, "sample", lambda self: decoded.append(self.where) or sample(self))
    model = train(tmp_path / "run", paths, None, str(tmp_path / "run" / "checkpoint-15"), num_train_epochs=1)
    assert len(model.seen) == 5
    assert len(decoded) == len(read) == 15


@pytest.mark.parametrize("position", [0, 1, 9, 22, 23])
def test_a_loop_of_ones_own_resumes_by_state_dict(shards, position):
    stream = RegionStream(shards, shuffle_buffer=4)
    stream.set_epoch(2)
    expected = ids_of(stream)
    iterator = iter(stream)
    taken = ids_of(next(iterator) for _ in range(position))
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = RegionStream(shards, shuffle_buffer=4)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(2)
    assert taken + ids_of(resumed) == expected
    # At the end of an epoch nothing is left of it, also in the next run.
    finished = RegionStream(shards, shuffle_buffer=4)
    finished.load_state_dict(resumed.state_dict())
    assert ids_of(finished) == []
    # The state is for one epoch only.
    for stream in (resumed, finished):
        stream.set_epoch(3)
        assert stream.state_dict()["position"] == 0 and len(ids_of(stream)) == 23
    with pytest.raises(ValueError, match="the state has seed=0, but this stream has 1"):
        RegionStream(shards, shuffle_buffer=4, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="the state has num_samples=23, but this stream has 20"):
        RegionStream(shards[:3], shuffle_buffer=4).load_state_dict(state)


# Writers and the files


@pytest.mark.parametrize("format", FORMATS)
def test_writers_leave_everything_or_nothing(tmp_path, format):
    dataset = RegionJsonlDataset(make_jsonl(tmp_path / "files", 4))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"records\[3\].*'regions' is missing"):
        wrong = {key: value for key, value in dataset.records[3].items() if key != "regions"}
        WRITERS[format]([*dataset.records[:3], wrong], tmp_path / "shards", dataset.image_root, 2)
    (dataset.image_root / dataset.records[1]["image"]).unlink()
    with pytest.raises(FileNotFoundError):
        WRITERS[format](dataset.records, tmp_path / "shards", dataset.image_root, 1)
    with pytest.raises(ValueError, match="no records"):
        WRITERS[format]([], tmp_path / "shards")
    with pytest.raises(ValueError, match="samples_per_shard is 0"):
        WRITERS[format](dataset.records, tmp_path / "shards", dataset.image_root, 0)
    with pytest.raises(FileExistsError, match="not empty"):
        WRITERS[format](dataset.records, tmp_path / "files", dataset.image_root)
    assert sorted(tmp_path.iterdir()) == before


def test_a_tar_without_sizes_is_counted(tmp_path):
    (path,) = make_shards(tmp_path, "webdataset", [5])
    (path.parent / "sizes.json").unlink()
    assert len(RegionStream(path)) == 5


@pytest.mark.parametrize("format", FORMATS)
def test_sizes_that_no_longer_fit_are_an_error_or_a_bad_sample(tmp_path, format):
    (path,) = make_shards(tmp_path, format, [5])
    sizes = path.parent / "sizes.json"
    for size, good, message in (
        (4, [0, 1, 2], "more samples than the 4 that sizes.json"),
        (6, [0, 1, 2, 3, 4], "no such sample, though sizes.json beside it counts 6"),
    ):
        sizes.write_text(json.dumps({path.name: size}))
        with pytest.raises(ValueError, match=message):
            list(RegionStream(path))
        log = BadSampleLog(tmp_path / f"{size}.jsonl", max_bad_fraction=0.5)
        ids = ids_of(RegionStream(path, shuffle_buffer=0, bad_samples=log))
        # Another one takes the place of the one that cannot be read.
        assert len(ids) == size and set(ids) == set(good)
        (line,) = lines_of(log.path)
        assert message in line["reason"] and f" {size - 1}" in line["where"]
    sizes.write_text('["00000.tar"]')
    with pytest.raises(ValueError, match="accepted is an object of the number of samples by file name"):
        RegionStream(path)


def test_row_groups_of_others_are_not_read(tmp_path, monkeypatch):
    (path,) = make_shards(tmp_path, "parquet", [250])
    shard = ParquetShard(str(path))
    groups = []
    original = pyarrow.parquet.ParquetFile.iter_batches

    def iter_batches(self, *args, row_groups, **kwargs):
        groups.extend(row_groups)
        return original(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", iter_batches)
    indices = [index for index, _ in shard.read(120, 210, lambda index: index % 2 == 0)]
    assert indices == list(range(120, 210, 2)) and groups == [1, 2]


def test_a_row_group_that_fills_the_memory_is_told_once(tmp_path, monkeypatch, caplog):
    (path,) = make_shards(tmp_path, "parquet", [250])
    list(RegionStream(path))
    assert not caplog.records
    monkeypatch.setattr("processing_pixclip.region_shards.LARGE_ROW_GROUP_BYTES", 1000)
    list(RegionStream(path))
    (told,) = caplog.messages
    assert str(path.parent) in told and "write them in row groups of 100 images" in told


def test_columns_of_the_wrong_kind_are_bad_samples(tmp_path):
    """Each row is whole parquet, but not the record of an image."""
    fields = {"image_id": "a", "width": WIDTH, "height": HEIGHT, "regions": "[]"}
    wrong = {
        "no bytes": ({"image": {"path": None, "size": 3}}, "column 'image' holds .* neither bytes nor a path"),
        "text for bytes": ({"image": {"bytes": "x", "path": "x"}}, "neither bytes nor a path"),
        "number": (
            {"image": {"bytes": photo(0), "path": "0.jpg"}, "regions": 3},
            "'regions' is 3; accepted is a list",
        ),
        "numbers": ({"image": {"bytes": photo(0), "path": "0.jpg"}, "regions": [3]}, r"regions\[0\] is a int"),
    }
    for name, (row, message) in wrong.items():
        path = tmp_path / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{**fields, **row}]), path)
        with pytest.raises(ValueError, match=message):
            list(RegionStream(path))
        (good,) = make_shards(tmp_path / name, "parquet", [4])
        log = BadSampleLog(tmp_path / f"{name}.jsonl", max_bad_fraction=0.5)
        assert len(list(RegionStream([path, good], bad_samples=log))) == 5
        assert log.num_bad == 1


def test_one_unreadable_text_in_parquet_is_one_bad_sample(tmp_path):
    (good,) = make_shards(tmp_path, "parquet", [6])
    table = pyarrow.parquet.read_table(good)
    texts = table["image_id"].cast(pyarrow.binary()).to_pylist()
    texts[2] = b"\xff"
    column = pyarrow.array(texts, pyarrow.binary()).view(pyarrow.string())
    broken = table.set_column(table.schema.get_field_index("image_id"), "image_id", column)
    pyarrow.parquet.write_table(broken, tmp_path / "broken.parquet")
    log = BadSampleLog(tmp_path / "bad.jsonl", max_bad_fraction=0.5)
    assert ids_of(RegionStream(tmp_path / "broken.parquet", shuffle_buffer=0, bad_samples=log)) == [0, 1, 5, 3, 4, 5]
    assert [line["where"].rpartition(", ")[2] for line in lines_of(log.path)] == ["row 2"]


# Damaged tar files


class FewReads(io.BytesIO):
    """Fails where a damaged header would be read over and over."""

    reads = 0

    def read(self, *args):
        self.reads += 1
        assert self.reads < 3000
        return super().read(*args)


def damaged_tar(header, format=tarfile.GNU_FORMAT, pax_headers=None):
    """A tar of three samples, in which `header` changes the header of the third one's image."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as tar:
        for number in range(3):
            for suffix, content in (("jpg", photo(number)), ("json", json.dumps(record(number)).encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                if number == 2 and suffix == "jpg":
                    start = file.tell()
                    member.pax_headers = pax_headers or {}
                tar.addfile(member, io.BytesIO(content))
    content = bytearray(file.getvalue())
    with_checksum(content, start, header)
    return bytes(content)


def with_checksum(content, start, changes):
    for place, value in changes.items():
        content[start + place : start + place + len(value)] = value
    content[start + 148 : start + 156] = b" " * 8
    content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])


def size_field(size):
    """A size in base 256, which may be negative or too large for any file."""
    return (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)


SIZE, TYPE = 124, 156
DAMAGED = {
    "negative": {"header": {SIZE: size_field(-512)}},
    "very negative": {"header": {SIZE: size_field(-(2**40))}},
    "negative by a pax record": {"header": {}, "format": tarfile.PAX_FORMAT, "pax_headers": {"size": "-2048"}},
    **{
        f"{kind} of 2^{bits}": {"header": {SIZE: size_field(2**bits), TYPE: letter}}
        for kind, letter in (("long name", b"L"), ("pax", b"x"), ("global pax", b"g"))
        for bits in (30, 40, 70)
    },
    "negative long name": {"header": {SIZE: size_field(-512), TYPE: b"L"}},
    "too large to seek": {"header": {SIZE: size_field(2**70)}},
    "sparse map": {"header": {}, "format": tarfile.PAX_FORMAT, "pax_headers": {"GNU.sparse.map": "no, numbers"}},
    "sparse file": {
        "header": {},
        "format": tarfile.PAX_FORMAT,
        "pax_headers": {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
    },
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_of_a_tar_is_a_bad_sample(tmp_path, name):
    content = damaged_tar(**DAMAGED[name])
    found = list(_samples_of_tar(FewReads(content)))
    assert found[0][0] == "0" and isinstance(found[-1], ValueError)
    (tmp_path / "0.tar").write_bytes(content)
    log = BadSampleLog(tmp_path / "bad.jsonl", max_bad_fraction=0.7)
    ids = ids_of(RegionStream(tmp_path / "0.tar", bad_samples=log))
    assert len(ids) == len(found) and {0} <= set(ids) <= {0, 1}
    assert "damaged" in lines_of(log.path)[-1]["reason"]
    with pytest.raises(ValueError, match="damaged"):
        RegionStream(tmp_path / "0.tar")


def test_a_pax_record_of_any_length_is_a_bad_sample():
    content = bytearray(damaged_tar({}, tarfile.PAX_FORMAT, {"comment": "x" * 40}))
    place = content.index(b" comment=") - 2
    content[place : place + 30] = b"99999999999999999999 comment=x"
    assert isinstance(list(_samples_of_tar(FewReads(content)))[-1], ValueError)


def test_no_damage_of_tar_headers_escapes_or_hangs():
    generator = random.Random(0)
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    wholes = [
        damaged_tar({}),
        damaged_tar({}, tarfile.PAX_FORMAT, {"size": "7"}),
        damaged_tar({}, tarfile.PAX_FORMAT, sparse),
    ]
    outcomes = Counter()
    for _ in range(3000):
        content = bytearray(generator.choice(wholes))
        # Mostly where tarfile decides something, and with a checksum that is right.
        places = [
            generator.choice([generator.randrange(512), TYPE, SIZE, *range(SIZE, SIZE + 12), 482, 504])
            for _ in range(4)
        ]
        changes = {
            place: bytes([generator.choice([generator.randrange(256), *b"\x80\xffLxgSK1"])]) for place in places
        }
        with_checksum(content, 512 * generator.randrange(len(content) // 512), changes)
        try:
            outcomes[type(list(_samples_of_tar(FewReads(content)))[-1])] += 1
        except OSError:
            # The readers take it for a file that cannot be read.
            outcomes[OSError] += 1
    assert outcomes[ValueError] > 1000 and outcomes[tuple] > 300


def test_a_key_that_comes_twice_side_by_side_is_a_bad_sample(tmp_path):
    (path,) = make_shards(tmp_path, "webdataset", [4])
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w") as tar:
        for member, content in members:
            member.name = member.name.replace("00000001.", "00000000.")
            tar.addfile(member, io.BytesIO(content))
    (path.parent / "sizes.json").unlink()
    log = BadSampleLog(tmp_path / "bad.jsonl", max_bad_fraction=0.5)
    assert sorted(ids_of(RegionStream(path, bad_samples=log))) == [2, 2, 3]
    (line,) = lines_of(log.path)
    assert "sample 0 ('00000000'): 2 members .jpg stand next to each other under this key" in line["reason"]


def test_samples_in_place_of_bad_ones_do_not_cost_a_tar_each(tmp_path, monkeypatch):
    first, second = make_shards(tmp_path, "webdataset", [20, 20])
    rewrite_tar(first, {f"{number:08d}.json": b"{" for number in range(10)})
    stream = RegionStream([first, second], shuffle_buffer=0, bad_samples=BadSampleLog(tmp_path / "bad.jsonl", 0.5))
    passes = []
    monkeypatch.setattr(
        "processing_pixclip.region_shards._samples_of_tar", lambda file: passes.append(1) or _samples_of_tar(file)
    )
    ids = ids_of(stream)
    assert ids[:10] == list(range(20, 30)) and ids[10:] == list(range(10, 40))
    # Both shards once, and the second once more for all ten.
    assert len(passes) == 3


def test_without_a_log_a_bad_sample_is_an_error(tmp_path):
    (path,) = make_shards(tmp_path, "webdataset", [5])
    rewrite_tar(path, {"00000002.json": b"{"})
    with pytest.raises(ValueError, match=r"00000.tar, sample 2 \('00000002'\) is not JSON"):
        list(RegionStream(path))
