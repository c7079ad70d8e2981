# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Compares objectives: the same model, data, seeds and budget, one preset each, and one table of what comes out.

    python examples/run_ablation.py examples/configs/ablation.json --data_dir COCO

COCO is a folder with `annotations/instances_{split}.json` and `images/{split}/`; without it the small sample of this
repository is used. Models train from scratch on scenes composed of cut-outs of the training split, and are tested on
scenes of cut-outs of the test split and on its photos. The first argument may be a JSON file of defaults, which the
command line overrides. The figures of each preset and seed are kept in `cells/` of the output folder and not computed
again, so that an interrupted comparison goes on where it was. It ends with `ablation.md`,
`ablation.json` and `ablation.png`.
"""

import functools
import json
import os
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from ablation_metrics import (
    batches_of,
    caption_recall,
    embed_regions,
    embed_texts,
    full_masks,
    photo_metrics,
    scene_chances,
    scene_metrics,
    texts_of,
)
from ablation_report import write_report
from composed_scenes import COCO_CLASSES, compose_scenes, load_scene_parts, read_photos
from pretraining_arguments import take_json_defaults
from run_pretraining import write_json
from scene_texts import vocabulary
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import HfArgumentParser, LlamaConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments, set_seed

from modeling_pixclip import (
    PixCLIPConfig,
    PixCLIPDataCollator,
    PixCLIPForPreTraining,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    get_objective_preset,
)


@dataclass(frozen=True)
class Preset:
    """
    One row of the table.

    Attributes:
        objective: Name of an objective preset.
        readout: How it embeds a region, see `ablation_metrics.embed_regions`.
        fields: Fields of `PixCLIPConfig` that differ from the preset's.
        masks: `False` replaces every mask by ones, in training and in testing.
    """

    objective: str
    readout: str = "mask"
    fields: dict = field(default_factory=dict)
    masks: bool = True


PRESETS = {
    "pixclip": Preset("pixclip"),
    "pixclip, no mask": Preset("pixclip", masks=False),
    "pixclip without crop": Preset("pixclip", fields={"crop_weight": 0.0}),
    "pixclip without local": Preset("pixclip", fields={"local_weight": 0.0}),
    "pixclip without global": Preset("pixclip", "dense", fields={"global_weight": 0.0}),
    "alpha-clip": Preset("alpha-clip"),
    "clip": Preset("clip", "box"),
    "fg-clip-stage1": Preset("fg-clip-stage1", "roi"),
    "fg-clip-stage2": Preset("fg-clip-stage2", "roi"),
    "fg-clip-stage2 without hard negatives": Preset("fg-clip-stage2", "roi", {"hard_negative_weight": 0.0}),
    "pixclip+fg": Preset("pixclip+fg"),
    "pixclip+fg without hard negatives": Preset("pixclip+fg", fields={"hard_negative_weight": 0.0}),
}

# Test scenes are the same for all seeds, and of no training seed.
TEST_SEED = 1_000_000
LEAST_PHOTO_SHARE = 0.01


@dataclass
class AblationArguments:
    data_dir: str = field(
        default=str(Path(__file__).parent / "data" / "coco_regions"),
        metadata={"help": "Folder in the layout of COCO, or with {split}.jsonl."},
    )
    train_split: str | None = field(
        default=None, metadata={"help": "Split whose objects are trained on: train2017, or train."}
    )
    test_split: str | None = field(
        default=None, metadata={"help": "Split whose objects and photos are tested on: val2017, or heldout."}
    )
    most_photos: int | None = field(default=None, metadata={"help": "Photos to read of a split; all by default."})
    output_dir: str = field(default="runs/ablation", metadata={"help": "Folder of cells and results."})
    presets: list[str] = field(
        default_factory=lambda: list(PRESETS), metadata={"help": f"Rows: {', '.join(map(repr, PRESETS))}."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of weights and scenes."})
    steps: int = field(default=300, metadata={"help": "Optimiser steps of each run."})
    train_scenes: int = field(default=2400, metadata={"help": "Scenes that a run sees, epoch by epoch."})
    scenes_per_step: int = field(default=32, metadata={"help": "Scenes of a batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak of a cosine schedule."})
    hard_negatives: int = field(default=4, metadata={"help": "Most hard negatives of a region in a batch."})
    image_size: int = field(default=96, metadata={"help": "Side of what the tower sees, in pixels."})
    crop_size: int = field(default=64, metadata={"help": "Side of the context crop, in pixels."})
    scene_size: int = field(default=128, metadata={"help": "Side of the composed scenes, in pixels."})
    vision_config: dict | str | None = field(default=None, metadata={"help": "Fields of PixCLIPVisionConfig (JSON)."})
    position_std: float = field(default=2.0, metadata={"help": "Spread of the image positions at the start."})
    text_width: int = field(default=128, metadata={"help": "Width of the text tower and of the shared space."})
    text_layers: int = field(default=2, metadata={"help": "Layers of the text tower."})
    test_scenes: int = field(default=400, metadata={"help": "Scenes to test on."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that compose scenes, of each run."})
    num_processes: int = field(default=2, metadata={"help": "Runs at a time, of one thread each."})
    worker: bool = field(
        default=False,
        metadata={"help": "Train and test in this process, on the first of `seeds`; what a comparison starts."},
    )

    # What does not change the figures of a cell.
    NOT_OF_A_CELL = ("output_dir", "presets", "seeds", "num_processes", "worker", "dataloader_num_workers")

    def of_a_cell(self) -> dict:
        return {name: value for name, value in asdict(self).items() if name not in self.NOT_OF_A_CELL}


def parse_arguments(arguments: list[str]) -> AblationArguments:
    parser = HfArgumentParser(AblationArguments, description=__doc__)
    (parsed,) = parser.parse_args_into_dataclasses(take_json_defaults(parser, arguments))
    if isinstance(parsed.vision_config, str):
        try:
            parsed.vision_config = json.loads(parsed.vision_config)
        except json.JSONDecodeError as error:
            parser.error(f"--vision_config is not JSON ({error}): {parsed.vision_config}.")
    unknown = [name for name in parsed.presets if name not in PRESETS]
    if unknown:
        parser.error(f"there is no preset {unknown[0]!r}; accepted are {', '.join(map(repr, PRESETS))}.")
    # As a whole path, so that a run goes on from any working directory.
    parsed.data_dir = str(Path(parsed.data_dir).resolve())
    in_coco_layout = Path(parsed.data_dir, "annotations").is_dir()
    parsed.train_split = parsed.train_split or ("train2017" if in_coco_layout else "train")
    parsed.test_split = parsed.test_split or ("val2017" if in_coco_layout else "heldout")
    return parsed


def build_processor(arguments: AblationArguments) -> PixCLIPProcessor:
    words = {word: number for number, word in enumerate(["[pad]", "[unk]", *vocabulary(COCO_CLASSES)])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\s,]+|,"), behavior="removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    image_processor = PixCLIPImageProcessor(size=arguments.image_size, crop_size=arguments.crop_size)
    return PixCLIPProcessor(image_processor, tokenizer, text_max_length=128)


def build_model(arguments: AblationArguments, preset: Preset, vocabulary_size: int) -> PixCLIPForPreTraining:
    """Both towers from scratch; the text tower is a small bidirectional Llama, all of it trained."""
    width = arguments.text_width
    backbone = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=arguments.text_layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
    )
    config = PixCLIPConfig(
        projection_dim=width,
        vision_config={"image_size": arguments.image_size, **(arguments.vision_config or {})},
        text_config={"backbone_config": backbone, "projection_type": "linear", "backbone_training": "full"},
        # The hard negatives are rewrites of the whole text, not of the object's name.
        **{**get_objective_preset(preset.objective), "hard_negative_text": "region", **preset.fields},
    )
    model = PixCLIPForPreTraining(config)
    # Louder than the patches: CLIP's positions start at a fiftieth, and take longer than this budget to be heard.
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=arguments.position_std)
    if config.caption_long_weight:
        model.text_model.add_long_text_path()
    return model


class MaskFreeCollator:
    """The batches of another collator with every mask replaced by ones."""

    def __init__(self, collator: PixCLIPDataCollator):
        self.collator = collator

    def __call__(self, samples):
        return full_masks(self.collator(samples))


def train(arguments: AblationArguments, preset: Preset, seed: int, scenes: list):
    set_seed(seed)
    processor = build_processor(arguments)
    model = build_model(arguments, preset, len(processor.tokenizer))
    collator = PixCLIPDataCollator(
        processor,
        whole_image_share=0.0,
        max_hard_negatives=arguments.hard_negatives,
        seed=seed,
        **model.config.batch_parts,
    )
    training = TrainingArguments(
        output_dir=Path(arguments.output_dir) / "trainer",
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.scenes_per_step,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, arguments.steps // 20),
        adam_beta2=0.98,
        weight_decay=0.0,
        save_strategy="no",
        logging_steps=max(1, arguments.steps // 10),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=arguments.dataloader_num_workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
    )
    trainer = Trainer(
        model=model,
        args=training,
        data_collator=collator if preset.masks else MaskFreeCollator(collator),
        train_dataset=scenes,
    )
    trainer.train()
    return model, processor


def evaluate(arguments: AblationArguments, preset: Preset, model, processor) -> dict:
    """Figures by readout: `{"scenes": {readout: {metric: value}}, "photos": ..., "captions": ..., "chance": ...}`."""
    source = (arguments.data_dir, arguments.test_split)
    scenes = scenes_of(*source, arguments.scene_size, arguments.most_photos, arguments.test_scenes, TEST_SEED)
    photos = [photo for photo in read_photos(*source, LEAST_PHOTO_SHARE, arguments.most_photos) if photo["masks"]]
    texts = embed_texts(model, processor, texts_of(scenes, COCO_CLASSES))
    embeds = embed_regions(model, batches_of(processor, scenes), not preset.masks)
    of_photos = embed_regions(model, batches_of(processor, photos), not preset.masks)
    return {
        "scenes": {name: scene_metrics(rows, texts, scenes, COCO_CLASSES) for name, rows in embeds.items()},
        "photos": {name: photo_metrics(rows, texts, photos, COCO_CLASSES) for name, rows in of_photos.items()},
        "captions": caption_recall(embeds["whole"], texts, scenes),
        "chance": scene_chances(scenes, COCO_CLASSES),
        "tested": {
            "scenes": len(scenes),
            "scene_regions": sum(len(scene["texts"]) for scene in scenes),
            "photos": len(photos),
            "photo_regions": sum(len(photo["categories"]) for photo in photos),
        },
    }


def cell_file(arguments: AblationArguments, name: str, seed: int) -> Path:
    return Path(arguments.output_dir) / "cells" / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"


@functools.lru_cache(maxsize=2)
def scenes_of(data_dir: str, split: str, side: int, most_photos: int | None, count: int, seed: int) -> list:
    """Scenes of a split; those to train on and those to test on stay in memory for the next preset."""
    return compose_scenes(load_scene_parts(data_dir, split, side, most_photos), count, seed)


def run_cell(arguments: AblationArguments, name: str, seed: int) -> None:
    preset = PRESETS[name]
    source = (arguments.data_dir, arguments.train_split, arguments.scene_size, arguments.most_photos)
    scenes = scenes_of(*source, arguments.train_scenes, seed)
    start, start_cpu = time.monotonic(), time.process_time()
    model, processor = train(arguments, preset, seed, scenes)
    seconds = {"training": time.monotonic() - start, "training_cpu": time.process_time() - start_cpu}
    figures = evaluate(arguments, preset, model, processor)
    cell = {"preset": name, "seed": seed, "settings": arguments.of_a_cell(), "seconds": seconds, **figures}
    write_json(cell_file(arguments, name, seed), cell)


def run_worker(arguments: AblationArguments) -> None:
    """Runs the presets one after another on the first seed; one that fails does not stop the others."""
    torch.set_num_threads(1)
    seed = arguments.seeds[0]
    for name in arguments.presets:
        start = time.monotonic()
        log = cell_file(arguments, name, seed).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", buffering=1, encoding="utf-8") as output, redirect_stdout(output), redirect_stderr(output):
            try:
                run_cell(arguments, name, seed)
                outcome = "done"
            except Exception as error:
                traceback.print_exc()
                outcome = f"failed ({type(error).__name__}: {error}), see {log}"
        print(f"{name}, seed {seed}: {outcome} in {time.monotonic() - start:.0f} s", flush=True)


def read_cell(arguments: AblationArguments, name: str, seed: int) -> dict | None:
    """
    A finished cell, or `None`.

    Raises:
        ValueError: If it was made with other settings.
    """
    file = cell_file(arguments, name, seed)
    if not file.is_file():
        return None
    cell = json.loads(file.read_text(encoding="utf-8"))
    settings = json.loads(json.dumps(arguments.of_a_cell()))
    changed = [
        f"{key} was {cell['settings'].get(key)!r} and is {settings.get(key)!r}"
        for key in sorted({*settings, *cell["settings"]})
        if cell["settings"].get(key) != settings.get(key)
    ]
    if changed:
        raise ValueError(f"{file} is of another ablation: {'; '.join(changed)}. Choose another output_dir.")
    return cell


def run_missing(arguments: AblationArguments, command: list[str]) -> None:
    """Runs the cells that are not there, in `num_processes` processes."""
    jobs = []
    # Seed by seed, so that a comparison that is cut short has whole columns.
    for seed in arguments.seeds:
        missing = [name for name in arguments.presets if read_cell(arguments, name, seed) is None]
        jobs += [(seed, missing[part :: arguments.num_processes]) for part in range(arguments.num_processes)]

    def run(job: tuple[int, list[str]]) -> None:
        seed, names = job
        subprocess.run(
            [*command, "--worker", "true", "--seeds", str(seed), "--presets", *names],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    with ThreadPoolExecutor(arguments.num_processes) as pool:
        list(pool.map(run, [job for job in jobs if job[1]]))


def main(arguments: list[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else arguments
    parsed = parse_arguments(given)
    if parsed.worker:
        run_worker(parsed)
        return
    run_missing(parsed, [sys.executable, __file__, *given])
    wanted = {(name, seed): read_cell(parsed, name, seed) for name in parsed.presets for seed in parsed.seeds}
    cells = [cell for cell in wanted.values() if cell is not None]
    write_report(cells, {name: PRESETS[name].readout for name in parsed.presets}, Path(parsed.output_dir))
    lacking = [f"{name!r} with seed {seed}" for (name, seed), cell in wanted.items() if cell is None]
    if lacking:
        sys.exit(f"{len(lacking)} runs are not in the table: {', '.join(lacking)}. Run again for them.")


if __name__ == "__main__":
    main()
