# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The epoch of a sample under the plain Trainer: what is drawn anew each epoch, a resumed training draws again."""

import copy
import pickle
import random

import numpy as np
import pytest
import torch
from tiny_models import assert_same_weights, pixclip_config, randomise
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import ConcatDataset, Subset
from training_for_tests import run_in_processes
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from modeling_pixclip import PixCLIPForPreTraining
from processing_pixclip import (
    BadSampleLog,
    PixCLIPDataCollator,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    RegionAugmentation,
    RegionJsonlDataset,
    SetEpochCallback,
    SkipBadSamples,
)


TRAINING_SET = "examples/data/coco_regions/train.jsonl"
IMAGES, BATCH = 6, 2
STEPS = IMAGES // BATCH


def make_processor():
    backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    return PixCLIPProcessor(PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer, text_max_length=16)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_trainer(processor, folder, workers=0, dataset=None, callbacks=(SetEpochCallback,), epochs=3, **arguments):
    """A Trainer of a tiny model, and the list that its batches go to."""
    set_seed(0)
    model = randomise(PixCLIPForPreTraining(pixclip_config(global_weight=1.0, crop_weight=0.0, local_weight=0.0)))
    collator = PixCLIPDataCollator(
        processor,
        **model.config.batch_parts,
        whole_image_share=0.2,
        max_regions_per_image=2,
        augmentation=RegionAugmentation(),
    )
    if dataset is None:
        dataset = Subset(RegionJsonlDataset(TRAINING_SET), range(IMAGES))
    trainer = Trainer(
        model,
        TrainingArguments(
            str(folder),
            num_train_epochs=epochs,
            learning_rate=1e-3,
            remove_unused_columns=False,
            label_names=[],
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_num_workers=workers,
            save_strategy="steps" if "save_steps" in arguments else "no",
            **{"per_device_train_batch_size": BATCH, **arguments},
        ),
        data_collator=collator,
        train_dataset=dataset,
        callbacks=[callback() for callback in callbacks],
    )
    batches = []
    names = ("pixel_values", "mask_values", "region_boxes", "region_text_index", "text_ids")

    def keep(module, arguments, batch):
        batches.append([batch[name].clone() for name in names])

    trainer.model.register_forward_pre_hook(keep, with_kwargs=True)
    return trainer, batches


def assert_same_batches(batches, expected):
    assert len(batches) == len(expected)
    for number, (one, two) in enumerate(zip(batches, expected)):
        assert all(torch.equal(a, b) for a, b in zip(one, two)), f"batch {number}"


@pytest.fixture(scope="module")
def uninterrupted(processor, tmp_path_factory):
    trainer, batches = make_trainer(processor, tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer.model, batches


def texts_of(batches):
    return sorted(number for batch in batches for number in batch[-1].tolist())


def test_every_epoch_draws_anew(uninterrupted):
    _, batches = uninterrupted
    assert len(batches) == 3 * STEPS
    epochs = [texts_of(batches[start : start + STEPS]) for start in range(0, len(batches), STEPS)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize("arguments", [{}, {"dataloader_persistent_workers": True}])
def test_workers_draw_what_one_process_does(processor, tmp_path, uninterrupted, arguments):
    trainer, batches = make_trainer(processor, tmp_path, workers=2, **arguments)
    trainer.train()
    assert_same_batches(batches, uninterrupted[1])
    assert_same_weights(trainer.model, uninterrupted[0])


@pytest.mark.parametrize("stop, workers", [(STEPS + 1, 0), (STEPS, 0), (2 * STEPS - 1, 2)])
def test_a_resumed_training_draws_what_the_uninterrupted_one_does(processor, tmp_path, uninterrupted, stop, workers):
    first, _ = make_trainer(processor, tmp_path, save_steps=stop)
    first.train()
    resumed, batches = make_trainer(processor, tmp_path, workers, save_steps=100)
    # As in another process: other global states, which nothing may hang on.
    torch.rand(7), np.random.random(7), random.random()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    model, expected = uninterrupted
    assert_same_batches(batches, expected[stop:])
    assert_same_weights(resumed.model, model)


def test_without_the_callback_a_resumed_epoch_would_differ(processor, tmp_path, uninterrupted):
    """What the callback is for; once this fails, accelerate tells the epoch in every case and it can go."""
    stop = STEPS + 1
    first, batches = make_trainer(processor, tmp_path, save_steps=stop, callbacks=())
    first.train()
    resumed, resumed_batches = make_trainer(processor, tmp_path, save_steps=100, callbacks=())
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    with pytest.raises(AssertionError, match="batch"):
        assert_same_batches(batches[:stop] + resumed_batches, uninterrupted[1])


class SeenSamples(RegionJsonlDataset):
    """Notes which image is read in which epoch."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        self.seen.append((sample["image_id"], sample["epoch"]))
        return sample


def train_and_resume(folder, stop):
    """Saves what one of several processes reads, and the batches, in its uninterrupted and its resumed training."""
    results = []
    for resume in (None, f"{folder}/checkpoint-{stop}"):
        dataset = SeenSamples(TRAINING_SET)
        dataset.seen = []
        options = {"dataset": Subset(dataset, range(IMAGES)), "save_steps": stop}
        trainer, batches = make_trainer(make_processor(), folder, per_device_train_batch_size=1, **options)
        trainer.train(resume_from_checkpoint=resume)
        results.append((dataset.seen, batches))
    torch.save(results, f"{folder}/{trainer.args.process_index}.pt")


@pytest.mark.slow
def test_every_process_knows_the_epoch(tmp_path):
    stop = STEPS + 1
    run_in_processes(2, train_and_resume, str(tmp_path), stop)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    seen = [sample for uninterrupted, _ in ranks for sample in uninterrupted[0]]
    images = {image for image, _ in seen}
    assert len(images) == IMAGES
    assert sorted(seen) == sorted((image, epoch) for image in images for epoch in range(3))
    for (all_seen, batches), (seen, resumed) in ranks:
        assert seen == all_seen[stop:]
        assert_same_batches(resumed, batches[stop:])


def test_the_callback_finds_readers_in_wrappers(processor, tmp_path):
    one, other = (RegionJsonlDataset(TRAINING_SET) for _ in range(2))
    log = BadSampleLog(tmp_path / "bad_samples.jsonl")
    dataset = Subset(ConcatDataset([SkipBadSamples(one, log), Subset(other, range(3))]), range(BATCH))
    trainer, _ = make_trainer(processor, tmp_path, dataset=dataset, epochs=2)
    trainer.train()
    assert one.epoch == other.epoch == 1 and dataset[0]["epoch"] == 1


def test_a_data_set_without_epoch_is_an_error(processor, tmp_path):
    samples = [RegionJsonlDataset(TRAINING_SET)[0]]
    trainer, _ = make_trainer(processor, tmp_path, dataset=samples)
    with pytest.raises(ValueError, match="no set_epoch in the training set, a list"):
        trainer.train()


def test_the_epoch_goes_along_with_a_copy():
    dataset = RegionJsonlDataset(TRAINING_SET)
    dataset.set_epoch(3)
    assert dataset[0]["epoch"] == copy.deepcopy(dataset)[0]["epoch"] == pickle.loads(pickle.dumps(dataset)).epoch == 3
