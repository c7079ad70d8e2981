# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Tiny training runs: a ragged batch of every kind of input, and the plain Trainer around it."""

import os
import socket

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from distributed_for_tests import leave_process_group
from tiny_models import box_masks, normalised, pixclip_config, random_boxes, random_images, random_tokens, randomise
from transformers import Trainer, TrainingArguments

from modeling_pixclip import PixCLIPForPreTraining, get_objective_preset


def objective_model(preset="pixclip", vision=None, text=None, backbone_training="full", **fields):
    """A model whose every trainable parameter has a gradient in `ragged_batch`."""
    text = {"adapter_layers": 1, "long_text_projection": preset != "pixclip", **(text or {})}
    config = pixclip_config(vision=vision, text=text, **{**get_objective_preset(preset), **fields})
    model = randomise(PixCLIPForPreTraining(config))
    model.set_text_backbone_trainable(backbone_training)
    return model.train()


def ragged_batch(samples, regions=None):
    """Image i of `samples` has i % 3 regions, or `regions`, as many crops, two captions, and i % 2 negatives a region."""
    batch = {name: [] for name in ("region_image_index", "region_text_index", "object_text_index")}
    indices = ("long_caption_index", "short_caption_index", "hard_negative_text_index", "hard_negative_region_index")
    batch |= {name: [] for name in indices}
    images, boxes, crops, crop_boxes, texts = [], [], [], [], []

    def text(number, length):
        """Texts of one number are one text."""
        if (number, length) not in texts:
            texts.append((number, length))
        return texts.index((number, length))

    for place, sample in enumerate(samples):
        images.append(random_images(1, seed=sample))
        count = sample % 3 if regions is None else regions
        batch["long_caption_index"].append(text(1000 + sample, 9))
        batch["short_caption_index"].append(text(2000 + sample, 4))
        for region in range(count):
            number = 10 * sample + region
            batch["region_image_index"].append(place)
            batch["region_text_index"].append(text(3000 + number, 3 + region))
            batch["object_text_index"].append(text(4000 + sample % 2, 3))
            boxes.append(random_boxes(1, seed=number))
            crops.append(random_images(1, seed=5000 + number))
            crop_boxes.append(random_boxes(1, seed=6000 + number))
            for negative in range(sample % 2):
                batch["hard_negative_text_index"].append(text(7000 + number + negative, 5))
                batch["hard_negative_region_index"].append(len(batch["region_image_index"]) - 1)
    batch = {name: torch.tensor(rows, dtype=torch.int64) for name, rows in batch.items()}
    ids, mask = zip(*(random_tokens([length], seed=number) for number, length in texts))
    longest = max(length for _, length in texts)

    def stacked(rows):
        return torch.cat([torch.nn.functional.pad(row, (0, longest - row.shape[1])) for row in rows])

    boxes, crop_boxes = (torch.cat([torch.zeros(0, 4), *kind]) for kind in (boxes, crop_boxes))
    return {
        **batch,
        "pixel_values": torch.cat(images),
        "region_boxes": boxes,
        "mask_values": normalised(box_masks(boxes)),
        "crop_pixel_values": torch.cat([torch.zeros(0, 3, 32, 32), *crops]),
        "crop_mask_values": normalised(box_masks(crop_boxes)),
        "input_ids": stacked(ids),
        "attention_mask": stacked(mask),
        "long_text_mask": torch.tensor([number < 2000 for number, _ in texts]),
        "text_ids": torch.tensor([number for number, _ in texts]),
        "return_loss": True,
    }


def make_trainer(
    folder,
    model,
    *,
    batch_size=4,
    samples=24,
    callbacks=(),
    regions=None,
    optimizer=None,
    model_init=None,
    compute_metrics=None,
    **arguments,
):
    """A Trainer over the numbers 0 to `samples` - 1; `optimizer` makes `optimizer_cls_and_kwargs` from the arguments."""
    arguments = {
        "max_steps": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "seed": 1,
        **arguments,
    }
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        remove_unused_columns=False,
        label_names=[],
        disable_tqdm=True,
        use_cpu=True,
        **arguments,
    )
    if arguments.fsdp:
        # Accelerate shards in processes with accelerators alone; its code and that of PyTorch run on a CPU too.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return Trainer(
        model,
        arguments,
        data_collator=lambda numbers: ragged_batch(numbers, regions),
        train_dataset=list(range(samples)),
        eval_dataset=list(range(samples, samples + 8)),
        callbacks=list(callbacks),
        optimizer_cls_and_kwargs=optimizer(arguments) if optimizer else None,
        model_init=model_init,
        compute_metrics=compute_metrics,
    )


FSDP2 = {
    "fsdp": True,
    "fsdp_config": {
        "fsdp_version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": ["PixCLIPVisionEncoderLayer", "LlamaDecoderLayer"],
    },
}


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def _start(rank, processes, port, function, arguments):
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    torch.manual_seed(0)
    function(*arguments)
    if torch.distributed.is_initialized():
        leave_process_group()


def run_in_processes(processes, function, *arguments):
    """Calls a function of a module, as `torchrun` would, in new processes, and waits for them."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    torch.multiprocessing.start_processes(
        _start, (processes, port, function, arguments), nprocs=processes, start_method="spawn"
    )
