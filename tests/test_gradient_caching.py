# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Gradient caching against the big batch itself, in real Trainer runs."""

import os
import socket

import numpy as np
import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType, convert_to_fp32
from distributed_for_tests import leave_process_group
from PIL import Image
from tiny_models import assert_same_weights, backbone_config, pixclip_config, randomise
from tokenizers import Tokenizer, models, pre_tokenizers
from training_for_tests import FSDP2
from transformers import (
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from modeling_pixclip import (
    GradientCachingTrainer,
    LossTermsCallback,
    PixCLIPForPreTraining,
    PixCLIPModel,
    PretrainingEmbeddings,
    get_objective_preset,
)
from processing_pixclip import PixCLIPDataCollator, PixCLIPImageProcessor, PixCLIPProcessor


COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230), "white": (240, 240, 240)}
WORDS = ["[pad]", "[unk]", "a", "on", "the", "left", "right", "photo", "with", "and", "square", *COLOURS]
OPTIONS = {"text_intra_weight": 0.1, "ranking_margin_weight": 0.4, "loss_type": "sigmoid"}
OBJECTIVES = {
    "pixclip": get_objective_preset("pixclip"),
    "teacher-trains": {**get_objective_preset("pixclip"), "local_stop_gradient": False, "global_weight": 0.0},
    "fg-clip-stage2": get_objective_preset("fg-clip-stage2"),
    "pixclip+fg": get_objective_preset("pixclip+fg"),
    "all-terms-sigmoid": {**get_objective_preset("pixclip+fg"), **OPTIONS},
}


def tiny_model(objective="pixclip", dropout=0.0, **fields):
    text = {"backbone": backbone_config("llama", vocab_size=len(WORDS), attention_dropout=dropout)}
    vision = {"mask_patch_bias": True, "attention_dropout": dropout}
    model = PixCLIPForPreTraining(pixclip_config(text=text, vision=vision, **OBJECTIVES[objective], **fields))
    # The margin of the first step is 0; a larger one lets its term have a gradient.
    if hasattr(model, "ranking_margin"):
        model.ranking_margin.fill_(0.3)
    return randomise(model)


def make_processor():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    return PixCLIPProcessor(PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def toy_samples(count=16):
    """Two coloured squares an image, of which 0 to 2 are regions; texts repeat from image to image."""
    samples, names = [], list(COLOURS)
    for number in range(count):
        left, right = names[number % 4], names[number // 4 % 4]
        pixels = np.random.default_rng(number).integers(0, 60, (32, 48, 3), dtype=np.uint8)
        masks = np.zeros((2, 32, 48), dtype=bool)
        for mask, colour, start in zip(masks, (left, right), (4, 28)):
            mask[8:24, start : start + 16] = True
            pixels[mask] = COLOURS[colour]
        regions = (2, 0, 1)[number % 3]
        sample = {
            "masks": list(masks),
            "texts": [f"a {left} square on the left", f"a {right} square on the right"],
            "object_texts": [f"a {left} square", None],
            "categories": [None, None],
            "hard_negatives": [[f"a {names[(number + 1) % 4]} square", "a photo"], []],
        }
        samples.append(
            {
                **{name: values[:regions] for name, values in sample.items()},
                "image": Image.fromarray(pixels),
                "image_id": f"image {number}",
                "captions": [f"a photo with a {left} square"],
                "long_captions": [f"a photo with a {left} square on the left and a {right} square"] * (number % 2),
            }
        )
    return samples


class Recorder(TrainerCallback):
    """The gradients of each step, and the batches that the collator made."""

    def __init__(self, collator):
        self.collator, self.batches, self.gradients, self.seed = collator, [], [], None

    def __call__(self, samples):
        self.batches.append(self.collator(samples))
        return self.batches[-1]

    def on_step_begin(self, args, state, control, **kwargs):
        if self.seed is not None:
            torch.manual_seed(self.seed)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.gradients.append(gradients_of(model))


def gradients_of(model):
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    # Whole, where FSDP has shared them out.
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value.clone()
        for name, value in gradients.items()
    }


def make_trainer(model, folder, batch, chunk=None, samples=None, **arguments):
    """A plain Trainer, or with `chunk` one that caches gradients."""
    arguments = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "max_grad_norm": 0.0, **arguments}
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=(chunk or batch) // int(os.environ.get("WORLD_SIZE", 1)),
        remove_unused_columns=False,
        label_names=[],
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        learning_rate=1e-3,
        **arguments,
    )
    if args.fsdp:
        # As in training_for_tests: accelerate shards in processes with accelerators alone.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    collator = PixCLIPDataCollator(make_processor(), whole_image_share=0, **model.config.batch_parts)
    if not model.config.batch_parts["captions"]:
        # An image without regions would enter as a whole one.
        samples = [{**sample, "captions": []} for sample in samples or toy_samples()]
    recorder = Recorder(collator)
    trainer_class, fields = (GradientCachingTrainer, {"contrastive_batch_size": batch}) if chunk else (Trainer, {})
    trainer = trainer_class(
        model,
        args,
        data_collator=recorder,
        train_dataset=samples or toy_samples(),
        eval_dataset=toy_samples()[:9:3],
        callbacks=[recorder],
        **fields,
    )
    trainer.recorder = recorder
    LossTermsCallback().add_to(trainer)
    return trainer


def assert_same_gradients(ours, theirs, tolerance=1e-5):
    """By the norm of each parameter's gradient, beside which nothing is compared where all but rounding cancels."""
    assert ours.keys() == theirs.keys()
    total = sum(value.norm() ** 2 for value in theirs.values()) ** 0.5
    for name, value in theirs.items():
        allowed = tolerance * max(float(value.norm()), 1e-3 * float(total))
        assert float((ours[name] - value).norm()) <= allowed, name


# The collator makes no batch of an image alone that has neither regions nor captions.
@pytest.mark.parametrize(
    "objective, chunk", [*((name, 4) for name in OBJECTIVES), ("fg-clip-stage2", 1), ("all-terms-sigmoid", 1)]
)
def test_gradients_are_those_of_the_big_batch(objective, chunk, tmp_path):
    trainers = [make_trainer(tiny_model(objective), tmp_path, 12, size) for size in (None, chunk)]
    for trainer in trainers:
        trainer.train()
    big, cached = trainers
    assert len(cached.recorder.batches) >= 12 // chunk
    regions = [len(batch["mask_values"]) for batch in cached.recorder.batches]
    assert len(set(regions)) > 1 and (chunk > 1 or 0 in regions)
    assert_same_gradients(cached.recorder.gradients[0], big.recorder.gradients[0])
    logs = [trainer.state.log_history[0] for trainer in trainers]
    terms = {name for name in logs[1] if name.startswith("loss")}
    assert terms == {"loss", *(f"loss_{name}" for name in big.model.config.term_weights)}
    assert {name: logs[1][name] for name in terms} == pytest.approx({name: logs[0][name] for name in terms}, abs=2e-5)
    if "ranking_margin" in big.model.config.term_weights:
        assert float(cached.model.ranking_margin) == pytest.approx(float(big.model.ranking_margin), abs=1e-6)
        assert float(cached.model.ranking_margin) != 0.3


def test_plain_accumulation_would_not_do(tmp_path):
    """What the other tests compare is no equality that holds anyway."""
    big = make_trainer(tiny_model(), tmp_path, 12)
    accumulated = make_trainer(tiny_model(), tmp_path, 4, gradient_accumulation_steps=3)
    for trainer in (big, accumulated):
        trainer.train()
    with pytest.raises(AssertionError):
        assert_same_gradients(accumulated.recorder.gradients[0], big.recorder.gradients[0], tolerance=1e-2)


def joined_gradients(model, batches, autocast=False):
    """The same chunks with the graphs of all of them held at once."""
    model.train()
    model.zero_grad()
    parts = []
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            # As the Trainer has it: what autocast made of the outputs becomes float32.
            parts.append(convert_to_fp32(model(**batch, return_embeddings=True)))
    model.objective(PretrainingEmbeddings.join(parts))[0].backward()
    return gradients_of(model)


@pytest.mark.parametrize(
    "arguments", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=["float32", "checkpointing", "bf16"]
)
def test_both_passes_drop_the_same(arguments, tmp_path):
    model = tiny_model("pixclip+fg", dropout=0.3)
    model.set_text_backbone_trainable("lora", rank=2, dropout=0.3)
    randomise(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(model, tmp_path, 12, 3, **arguments)
    trainer.recorder.seed = 5
    trainer.train()
    after = torch.get_rng_state()
    fresh = tiny_model("pixclip+fg", dropout=0.3)
    fresh.set_text_backbone_trainable("lora", rank=2, dropout=0.3)
    fresh.load_state_dict(before)
    torch.manual_seed(5)
    bf16 = "bf16" in arguments
    expected = joined_gradients(fresh, trainer.recorder.batches[:4], bf16)
    assert any("lora" in name for name in expected)
    assert_same_gradients(trainer.recorder.gradients[0], expected, tolerance=1e-3 if bf16 else 1e-5)
    # As after a plain step.
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("chunk", [2, 3, 6])
def test_a_run_equals_one_with_the_big_batch(chunk, tmp_path):
    """Three epochs of 6, 6 and 4 samples: chunks of the last are 2 + 2, 3 + 1, and one alone."""
    arguments = {"max_steps": -1, "num_train_epochs": 3, "optim": "sgd", "weight_decay": 0.1, "max_grad_norm": 1.0}
    trainers = [make_trainer(tiny_model("pixclip+fg"), tmp_path, 6, size, **arguments) for size in (None, chunk)]
    for trainer in trainers:
        trainer.train()
    big, cached = trainers
    assert cached.state.global_step == big.state.global_step == 9
    for logs, expected in zip(cached.state.log_history[:9], big.state.log_history[:9]):
        for name in ("learning_rate", "loss", "grad_norm", "loss_global", "loss_caption_short"):
            assert logs[name] == pytest.approx(expected[name], rel=1e-4), name
    start = tiny_model("pixclip+fg").state_dict()
    for name, value in big.model.state_dict().items():
        moved = (value - start[name]).norm()
        assert (cached.model.state_dict()[name] - value).norm() <= 1e-3 * moved + 1e-6, name


def test_resumed_run_ends_with_the_same_weights(tmp_path):
    def trainer(folder):
        arguments = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
        return make_trainer(tiny_model("pixclip+fg", dropout=0.3), tmp_path / folder, 6, 2, **arguments)

    whole, resumed = trainer("whole"), trainer("resumed")
    whole.train()
    # Amid the first epoch, and at the start of the second step of the next.
    for checkpoint in (2, 4):
        resumed = trainer("resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{checkpoint}"))
        assert resumed.state.global_step == 5
        assert_same_weights(resumed.model, whole.model)


class HeldBytes:
    """Counts the bytes that autograd holds for backward passes."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, tensor):
        return _Held(self, tensor)

    def of(self, trainer):
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda held: held.tensor):
            trainer.train()
        return self.peak


class _Held:
    def __init__(self, counter, tensor):
        self.counter, self.tensor = counter, tensor
        counter.now += tensor.nbytes
        counter.peak = max(counter.peak, counter.now)

    def __del__(self):
        self.counter.now -= self.tensor.nbytes


def test_memory_is_that_of_a_chunk(tmp_path):
    samples = [sample for sample in toy_samples(48) if len(sample["masks"]) == 2]
    big, small, cached = (
        HeldBytes().of(make_trainer(tiny_model(), tmp_path, batch, chunk, samples=samples))
        for batch, chunk in ((16, None), (2, None), (16, 2))
    )
    assert big > 6 * small
    assert cached < 1.1 * small


def test_regions_left_out_are_counted_once(tmp_path, caplog):
    trainers = [
        make_trainer(tiny_model("fg-clip-stage2", region_pooling="mask"), tmp_path, 12, size) for size in (None, 4)
    ]
    for trainer in trainers:
        collator = trainer.recorder.collator

        def spoilt(samples, collator=collator):
            batch = collator(samples)
            batch["mask_values"][:1] = -0.5 / 0.26
            return batch

        trainer.recorder.collator = spoilt
        trainer.train()
    big, cached = (trainer.state.log_history[0]["skipped_empty_masks"] for trainer in trainers)
    chunks = sum(len(batch["mask_values"]) > 0 for batch in trainers[1].recorder.batches[:3])
    assert (big, cached) == (1, chunks)


def test_evaluation_amid_training_is_the_plain_trainers(tmp_path):
    arguments = {"max_steps": 2, "optim": "sgd", "eval_strategy": "steps", "eval_steps": 1}
    trainers = [make_trainer(tiny_model(), tmp_path, 12, size, **arguments) for size in (None, 4)]
    for trainer in trainers:
        trainer.train()
    losses = [
        [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry] for trainer in trainers
    ]
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-4)


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


TOGETHER = ("pixclip+fg", "teacher-trains")


def train_in_process(rank, world, port, folder, options):
    torch.set_num_threads(1)
    os.environ |= {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "WORLD_SIZE": f"{world}"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": f"{port}"}
    for objective in TOGETHER:
        trainer = make_trainer(
            tiny_model(objective), folder, 8, 4, ddp_backend="gloo", max_steps=2, optim="sgd", **options
        )
        assert trainer.args.world_size == world and trainer.args.gradient_accumulation_steps == 2
        trainer.train()
        assert any(hasattr(weight, "full_tensor") for weight in trainer.model.parameters()) == bool(options)
        steps = trainer.recorder.gradients
        steps = [{name.removeprefix("module."): value for name, value in step.items()} for step in steps]
        torch.save((steps, trainer.state.log_history[:2]), f"{folder}/{objective}-{rank}.pt")
    del trainer
    leave_process_group()


@pytest.mark.parametrize("options", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one(options, tmp_path):
    torch.multiprocessing.spawn(train_in_process, (2, free_port(), str(tmp_path), options), nprocs=2)
    for objective in TOGETHER:
        big = make_trainer(tiny_model(objective), tmp_path, 8, max_steps=2, optim="sgd")
        big.train()
        first, second = (torch.load(tmp_path / f"{objective}-{rank}.pt") for rank in range(2))
        for step in range(2):
            # The second step also carries the rounding of the first.
            assert_same_gradients(first[0][step], big.recorder.gradients[step], tolerance=1e-5 if not step else 1e-4)
            assert_same_gradients(second[0][step], first[0][step], tolerance=0)
            assert first[1][step]["loss"] == pytest.approx(big.state.log_history[step]["loss"], rel=1e-4)


def test_what_does_not_fit_is_named(tmp_path):
    model = tiny_model()
    with pytest.raises(
        ValueError, match="contrastive_batch_size is 10; accepted are multiples of 4, which is per_device"
    ):
        make_trainer(model, tmp_path, 10, 4)
    with pytest.raises(ValueError, match="contrastive_batch_size is 0"):
        make_trainer(model, tmp_path, 0, 4)
    with pytest.raises(ValueError, match="gradient_accumulation_steps is 2; contrastive_batch_size 12 makes it 3"):
        make_trainer(model, tmp_path, 12, 4, gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="does not go with auto_find_batch_size"):
        make_trainer(model, tmp_path, 12, 4, auto_find_batch_size=True)
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="does not go with compute_loss_func"):
        GradientCachingTrainer(model, args, contrastive_batch_size=8, compute_loss_func=lambda *_, **__: None)
    others = BertForSequenceClassification(backbone_config("bert")), PixCLIPModel(model.config)
    for other in others:
        with pytest.raises(TypeError, match=f"got {type(other).__name__}, accepted is PixCLIPForPreTraining"):
            GradientCachingTrainer(other, args, contrastive_batch_size=8)
    # The arguments of the caller stay as they are.
    assert args.gradient_accumulation_steps == 1
