# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Trains a PixCLIP vision tower from scratch on few photos, by distilling the feature maps of a frozen teacher.

    python examples/distill_vision_tower.py examples/configs/coco_mini_distill.json --text_backbone FOLDER_OR_ID --minutes 60
    python examples/distill_vision_tower.py --photos a_folder --text_backbone sentence-transformers/all-MiniLM-L6-v2 \\
        --output_dir runs/distilled

The teacher (EfficientNet-Lite0, `efficientnet_lite0.py`) says what is at each place of an image. First a linear map from
its features to the vectors of a frozen text backbone is trained on the photos' regions and captions. Then the tower learns,
on random views of the photos (`distillation_views.py`), to say the same as the teacher, before and after that map: each
patch what is there, the class token what is under the mask, or in the whole image where the mask is full.

The first argument may be a JSON file of defaults. Training ends by the clock (`--minutes`) and goes on from the state in
the output folder where it was interrupted; what was trained since that state was saved is lost, and its time is not
counted. The folder then holds a model and a processor for `run_pretraining.py --initial_model`
(`examples/configs/coco_mini.json` has settings), or with `--text_backbone` left out the vision tower alone.
"""

import json
import logging
import math
import shutil
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from distillation_objective import ProbeOptions, TextProbe, distillation_losses, measure_regions, train_probe
from distillation_parts import build_model, build_processor, text_vectors
from distillation_views import PhotoBank, ViewOptions, ViewSampler, read_photos, student_pixels, tower_size
from efficientnet_lite0 import FEATURES, Teacher
from pretraining_arguments import take_json_defaults, take_json_objects
from torch import nn
from transformers import HfArgumentParser, set_seed

from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModelWithProjection


logger = logging.getLogger(__name__)

STATE, FIGURES, ARGUMENTS = "distillation_state.pt", "distillation.json", "distillation_arguments.json"
UNFINISHED, UNFINISHED_STATE = ".unfinished", "distillation_state.tmp"


@dataclass
class DistillationArguments:
    output_dir: str = field(metadata={"help": "Folder of the model and of the state of training."})
    photos: str = field(metadata={"help": "JSON lines (RegionJsonlDataset) or a folder of images."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths in the lines are below."})
    held_out: str | None = field(default=None, metadata={"help": "As photos: measured at the end, never trained on."})
    photo_size: int = field(default=640, metadata={"help": "Most pixels of a photo's side in memory."})
    teacher_weights: str | None = field(default=None, metadata={"help": "State dict; by default the package's."})
    teacher_size: int = field(default=448, metadata={"help": "Side in pixels of what the teacher sees."})
    text_backbone: str | None = field(
        default=None, metadata={"help": "Hub id or folder of a text backbone, mean-pooled; left out, --text_vectors."}
    )
    text_vectors: str | None = field(
        default=None,
        metadata={
            "help": "File of the texts' vectors: read if it is there, else written. Those of one backbone alone."
        },
    )
    vision_model: str | None = field(default=None, metadata={"help": "Folder of a tower to go on from."})
    vision_config: dict | str | None = field(
        default=None, metadata={"help": "Fields of PixCLIPVisionConfig (JSON) of a tower from scratch."}
    )
    local_attention: float = field(
        default=3.4,
        metadata={"help": "How much heads look at neighbouring patches at first; 0 for an ordinary initialisation."},
    )
    patch_components: bool = field(
        default=True,
        metadata={"help": "Start the patch embedding with the principal components of the photos' patches."},
    )
    probe: dict | str | None = field(default=None, metadata={"help": "Fields of ProbeOptions (JSON)."})
    views: dict | str | None = field(default=None, metadata={"help": "Fields of ViewOptions (JSON)."})
    weights: dict | str | None = field(default=None, metadata={"help": "Weights of the losses (JSON), see WEIGHTS."})
    minutes: float = field(
        default=60.0,
        metadata={
            "help": "Time for reading, the linear map and training, which takes what the others leave; each start after an "
            "interruption counts too. Measuring and saving at the end come on top."
        },
    )
    max_steps: int = field(default=10**9, metadata={"help": "Most steps, within that time."})
    batch_size: int = field(default=64, metadata={"help": "Views of a step."})
    reuse: int = field(default=2, metadata={"help": "Steps that each batch of the teacher's answers is used for."})
    held_batches: int = field(default=8, metadata={"help": "Batches held to draw the next step's from."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak of all parameters' rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of weights of two and more dimensions."})
    optimizer: str = field(
        default="muon", metadata={"help": "'muon' for the blocks' matrices (torch 2.9), or 'adamw'."}
    )
    warmup_share: float = field(default=0.05, metadata={"help": "Share of the time in which the rate rises."})
    save_minutes: float = field(default=10.0, metadata={"help": "Time between two saved states."})
    logging_steps: int = field(default=20, metadata={"help": "Steps between two lines of the log."})
    device: str | None = field(default=None, metadata={"help": "Default: a GPU where there is one."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})


# Of raw features and mapped ones at each patch; of regions pooled from the map and of the class token; of both against the
# regions' texts; of the class token's similarities to all texts.
WEIGHTS = {"features": 1.0, "dense": 1.0, "pooled": 1.0, "token": 1.0, "texts": 0.2, "ranking": 0.2}


def parse_arguments(arguments: list[str]) -> DistillationArguments:
    parser = HfArgumentParser(DistillationArguments, description=__doc__)
    for action in parser._actions:
        action.required = False
    options = parser.parse_args(take_json_defaults(parser, arguments))
    if not options.photos or not options.output_dir:
        parser.error("photos and output_dir are needed; see examples/configs/coco_mini_distill.json.")
    options = DistillationArguments(**vars(options))
    known = {
        "weights": WEIGHTS,
        "probe": [entry.name for entry in fields(ProbeOptions)],
        "views": [entry.name for entry in fields(ViewOptions)],
        "vision_config": list(PixCLIPVisionConfig().to_dict()),
    }
    take_json_objects(parser, options, known)
    options.weights = {**WEIGHTS, **options.weights}
    for name in ("photo_size", "teacher_size", "max_steps", "batch_size", "reuse", "held_batches", "logging_steps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; accepted are 1 and more.")
    for name in ("minutes", "learning_rate"):
        if not getattr(options, name) > 0:
            parser.error(f"--{name} is {getattr(options, name)}; accepted are numbers above 0.")
    if options.optimizer not in ("muon", "adamw"):
        parser.error(f"--optimizer is {options.optimizer!r}; accepted are 'muon' and 'adamw'.")
    if options.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        parser.error(f"--optimizer muon needs torch 2.9, this is {torch.__version__}; take 'adamw'.")
    if options.text_backbone is None and (options.text_vectors is None or not Path(options.text_vectors).is_file()):
        parser.error(
            "--text_backbone is left out, and --text_vectors names no file; one of them gives the texts' vectors."
        )
    folder = Path(options.output_dir)
    ours = any((folder / name).is_file() for name in (STATE, UNFINISHED_STATE, ARGUMENTS))
    if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(
            f"--output_dir {folder} holds other things than this script's; accepted are a new or empty folder, or one in "
            f"which it wrote {STATE} or {ARGUMENTS}."
        )
    return options


@torch.no_grad()
def initialise_locally(tower: PixCLIPVisionModelWithProjection, strength: float) -> None:
    """
    Makes attention look at neighbours, as a convolution does, before anything is learned.

    With rotary positions the product of two constant vectors depends on the offset of two patches alone. Biases of queries
    and keys are such vectors: turned against each other, they peak at an offset. In the lower blocks four of each five
    heads look one patch, higher up farther, up, down, left or right; the fifth is free. The upper three of eight blocks
    are left as they are, since there the class token, which has no place, is to look everywhere.

    Args:
        tower: With `use_rope`.
        strength: Length of each pair of the biases.
    """
    config = tower.config
    head_width = config.hidden_size // config.num_attention_heads
    axis_width = head_width // 2
    frequencies = config.rope_theta ** -(torch.arange(0, axis_width, 2) / axis_width)
    rows, columns = config.grid_size
    steps = config.rope_grid_size / rows, config.rope_grid_size / columns
    # Slow pairs hardly tell neighbours apart.
    used = (frequencies > 0.25).float() * strength
    directions = [(-1, 0), (1, 0), (0, -1), (0, 1), None]
    layers = tower.vision_model.encoder.layers
    for depth, layer in enumerate(layers[: math.ceil(len(layers) * 5 / 8)]):
        reach = 1 + depth // 3
        queries = torch.zeros(config.num_attention_heads, head_width)
        keys = torch.zeros(config.num_attention_heads, head_width)
        for head in range(config.num_attention_heads):
            direction = directions[head % len(directions)]
            if direction is None:
                continue
            for axis in (0, 1):
                angles = frequencies * direction[axis] * reach * steps[axis]
                half = slice(axis * axis_width, (axis + 1) * axis_width)
                keys[head, half] = torch.stack([used, torch.zeros_like(used)], dim=1).flatten()
                queries[head, half] = torch.stack([used * angles.cos(), used * angles.sin()], dim=1).flatten()
        layer.self_attn.q_proj.bias.copy_(queries.flatten())
        layer.self_attn.k_proj.bias.copy_(keys.flatten())


@torch.no_grad()
def initialise_patches(tower: PixCLIPVisionModelWithProjection, pixels: torch.Tensor) -> None:
    """The patch embedding's first filters: principal components of patches, weak ones strengthened."""
    embedding = tower.vision_model.embeddings.patch_embedding
    patch, width = tower.config.patch_size, tower.config.hidden_size
    patches = nn.functional.unfold(pixels.float(), patch, stride=patch).transpose(1, 2).flatten(0, 1)
    patches = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh((patches.T @ patches / len(patches)).double().cpu())
    count = min(width, len(values))
    values, vectors = values.flip(0)[:count].clamp(min=0), vectors.flip(1)[:, :count]
    filters = vectors / (values + 0.1 * values.mean()).sqrt()
    embedding.weight[:count] = filters.T.float().reshape(count, -1, patch, patch).to(embedding.weight)
    if count < width:
        embedding.weight[count:] = 0


def build_tower(options: DistillationArguments, bank: PhotoBank, width: int) -> PixCLIPVisionModelWithProjection:
    if options.vision_model:
        tower = PixCLIPVisionModelWithProjection.from_pretrained(options.vision_model)
        if tower.config.projection_dim != width:
            raise ValueError(
                f"{options.vision_model} projects to {tower.config.projection_dim} dimensions, and texts have {width}; "
                "accepted are towers that project to the text backbone's width."
            )
        return tower
    fields = {
        "projection_dim": width,
        "projection_bias": True,
        "dense_features": "plain",
        "use_rope": True,
    }
    config = PixCLIPVisionConfig(**{**fields, **options.vision_config})
    tower = PixCLIPVisionModelWithProjection(config)
    if options.local_attention and config.use_rope:
        initialise_locally(tower, options.local_attention)
    if options.patch_components:
        generator = torch.Generator(bank.pixels.device).manual_seed(options.seed)
        plain = ViewSampler(bank, max(config.image_size, 224), ViewOptions(paste=0, cut=0, mix=0), generator)
        initialise_patches(tower, student_pixels(plain.draw(64).images, tower_size(config)))
    return tower


def optimizers_of(module: nn.Module, options: DistillationArguments) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of blocks, if asked for, and AdamW for the rest."""
    matrices, others, plain = [], [], []
    for name, parameter in module.named_parameters():
        if options.optimizer == "muon" and parameter.ndim == 2 and ".layers." in name:
            matrices.append(parameter)
        else:
            (others if parameter.ndim >= 2 else plain).append(parameter)
    rate, decay = options.learning_rate, options.weight_decay
    fused = parameter.device.type == "cuda"
    groups = [{"params": others, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=fused)]
    if matrices:
        found.append(
            torch.optim.Muon(matrices, lr=rate, momentum=0.95, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
        )
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found


def rate_factor(progress: float, warmup: float) -> float:
    return min(progress / warmup if warmup else 1.0, 0.5 + 0.5 * math.cos(math.pi * min(progress, 1.0)))


class Training:
    """The tower, what it is trained by, and where it stands."""

    def __init__(self, options: DistillationArguments, bank: PhotoBank, vectors: torch.Tensor, device: torch.device):
        self.options, self.bank, self.device = options, bank, device
        self.teacher = Teacher(options.teacher_weights, options.teacher_size, device, options.batch_size)
        self.generator = torch.Generator(device).manual_seed(options.seed)
        # Of which held batch is next; on the CPU, so that no step waits for a GPU to tell it.
        self.order = torch.Generator().manual_seed(options.seed)
        self.held: list[dict] = []
        self.sampler = ViewSampler(bank, options.teacher_size, ViewOptions(**options.views), self.generator)
        self.vectors = vectors.to(device)
        self.tower = build_tower(options, bank, vectors.shape[1]).to(device).train()
        # Reads the teacher's own features off the map; left behind at the end.
        self.head = nn.Linear(self.tower.config.hidden_size, FEATURES).to(device)
        self.probe: TextProbe | None = None
        self.optimizers = optimizers_of(nn.ModuleDict({"tower": self.tower, "head": self.head}), options)
        # Seconds of all starts together, and those of them in which nothing was trained.
        self.step, self.elapsed, self.before, self.log = 0, 0.0, 0.0, []

    def state(self) -> dict:
        return {
            "tower": self.tower.state_dict(),
            "head": self.head.state_dict(),
            "probe": self.probe.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generator": self.generator.get_state(),
            "order": self.order.get_state(),
            # What they were drawn with stands for the batches: those of a large tower are gigabytes.
            "held": [{"drawn": batch["drawn"], "left": batch["left"]} for batch in self.held],
            "step": self.step,
            "elapsed": self.elapsed,
            "before": self.before,
            "log": self.log,
        }

    def save_state(self) -> None:
        path, unfinished = (Path(self.options.output_dir, name) for name in (STATE, UNFINISHED_STATE))
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.state(), unfinished)
        unfinished.replace(path)

    def load_state(self) -> bool:
        """Whether there was a state to go on from."""
        path = Path(self.options.output_dir, STATE)
        if not path.is_file():
            return False
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.tower.load_state_dict(state["tower"])
        self.head.load_state_dict(state["head"])
        self.probe = TextProbe(FEATURES, self.vectors.shape[1]).to(self.device)
        self.probe.load_state_dict(state["probe"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        for batch in state["held"]:
            self.generator.set_state(batch["drawn"].cpu())
            self.held.append(self.new_batch() | {"left": batch["left"]})
        self.generator.set_state(state["generator"].cpu())
        self.order.set_state(state["order"].cpu())
        self.step, self.elapsed, self.before, self.log = (state[name] for name in ("step", "elapsed", "before", "log"))
        logger.info("going on from step %d, after %.1f minutes", self.step, self.elapsed / 60)
        return True

    def new_batch(self) -> dict[str, torch.Tensor]:
        drawn = self.generator.get_state()
        views = self.sampler.draw(self.options.batch_size)
        size = tower_size(self.tower.config)
        maps = self.teacher(views.images).float()
        if maps.shape[-2:] != self.tower.config.grid_size:
            maps = nn.functional.interpolate(maps, self.tower.config.grid_size, mode="bilinear")
        labels = nn.functional.interpolate(views.regions[:, None].float(), size, mode="nearest")[:, 0]
        half = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return {
            "pixels": student_pixels(views.images, size).to(half),
            "features": self.probe.standardise(maps).to(half),
            "regions": labels.int(),
            "chosen": views.chosen,
            "drawn": drawn,
        }

    def train(self, started: float) -> None:
        """Trains until the time is over; `started` is when the program did, by `time.monotonic()`."""
        options, saved = self.options, time.monotonic()
        start_up = time.monotonic() - started
        self.elapsed, self.before = self.elapsed + start_up, self.before + start_up
        start, seconds = time.monotonic() - self.elapsed, options.minutes * 60 - self.before
        held = self.held
        sums: dict[str, torch.Tensor] = {}
        logged = (self.step, self.elapsed)
        mixed = torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda")
        while True:
            self.elapsed = time.monotonic() - start
            progress = max(
                (self.elapsed - self.before) / seconds if seconds > 0 else 1.0, self.step / options.max_steps
            )
            if progress >= 1:
                break
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * rate_factor(progress, options.warmup_share)
            while len(held) < options.held_batches:
                held.append(self.new_batch() | {"left": options.reuse})
            place = int(torch.randint(len(held), (1,), generator=self.order))
            batch = held[place]
            with mixed:
                losses = distillation_losses(
                    self.tower, self.head, self.probe, batch, self.vectors, self.bank.labels, self.generator
                )
                loss = sum(options.weights[name] * value for name, value in losses.items())
            loss.backward()
            nn.utils.clip_grad_norm_([*self.tower.parameters(), *self.head.parameters()], 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad()
            batch["left"] -= 1
            if not batch["left"]:
                held.pop(place)
            self.step += 1
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
            if self.step % options.logging_steps == 0:
                self.elapsed = time.monotonic() - start
                count = self.step - logged[0]
                line = {name: round(float(value) / count, 4) for name, value in sums.items()}
                rate = count * options.batch_size / max(self.elapsed - logged[1], 1e-9)
                line |= {"step": self.step, "minutes": round(self.elapsed / 60, 2), "views_per_second": round(rate, 1)}
                self.log.append(line)
                logger.info("%s", line)
                sums, logged = {}, (self.step, self.elapsed)
                if not math.isfinite(sum(line.values())):
                    raise FloatingPointError(f"a loss is not finite at step {self.step}: {line}.")
            if time.monotonic() - saved > options.save_minutes * 60:
                self.save_state()
                saved = time.monotonic()


def save_model(training: Training, figures: dict) -> None:
    """
    The model and its processor, or the tower alone, in the output folder, where nothing else is touched.

    All is written beside before any file is replaced. The state of training is there meanwhile and goes last, so that a
    save that was interrupted is made again by the next start.
    """
    training.save_state()
    options, folder = training.options, Path(training.options.output_dir)
    tower = training.tower.eval().cpu().float()
    # Beside the folder, as it writes where the text backbone is, relative to its own place.
    new, plain = folder.with_name(f"{folder.name}{UNFINISHED}"), folder / UNFINISHED
    for scratch in (new, plain):
        shutil.rmtree(scratch, ignore_errors=True)
    tower.save_pretrained(plain)
    if options.text_backbone is None:
        plain.rename(new)
    else:
        build_model(plain, options.text_backbone).save_pretrained(new)
        build_processor(tower.config, options.text_backbone).save_pretrained(new)
    for name, content in ((FIGURES, figures), (ARGUMENTS, without_folders(options))):
        (new / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for file in sorted(path for path in new.rglob("*") if path.is_file()):
        place = folder / file.relative_to(new)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
    for scratch in (new, plain):
        shutil.rmtree(scratch, ignore_errors=True)
    (folder / STATE).unlink()


def without_folders(options: DistillationArguments) -> dict:
    """The options as told with the model: of absolute paths only the name, since the folder goes to others."""
    return {
        name: Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
        for name, value in asdict(options).items()
    }


def main(arguments: list[str] | None = None) -> dict:
    started = time.monotonic()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    for name in (__name__, "distillation_views", "efficientnet_lite0"):
        logging.getLogger(name).setLevel(logging.INFO)
    set_seed(options.seed)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bank = read_photos(options.photos, options.image_root, options.photo_size)
    captions = [caption for of_photo in bank.captions for caption in of_photo]
    held_out = None
    if options.held_out:
        held_out = read_photos(options.held_out, options.image_root, options.photo_size)
    texts = list(dict.fromkeys([*bank.texts, *captions]))
    # Texts of held-out photos come last, and training does not see them.
    all_texts = list(dict.fromkeys([*texts, *(held_out.texts if held_out else [])]))
    vectors = text_vectors(options, all_texts)
    logger.info(
        "%d photos, %d regions of %d texts, %d captions",
        len(bank.pixels),
        len(bank.labels),
        len(bank.texts),
        len(captions),
    )
    training = Training(options, bank.to(device), vectors[: len(texts)], device)
    if not training.load_state():
        training.probe = train_probe(
            training.teacher, training.sampler, training.vectors, texts, ProbeOptions(**options.probe), options.seed
        )
    training.train(started)
    if not training.step:
        raise RuntimeError(
            f"reading and the linear map took {training.before / 60:.2f} of --minutes {options.minutes}, and no step was "
            "trained: give it more. Nothing is saved."
        )
    figures = {"steps": training.step, "minutes": round(training.elapsed / 60, 2), "log": training.log}
    if held_out is not None:
        figures["held_out"] = measure_regions(training, held_out.to(device), all_texts, vectors.to(device))
        print(json.dumps(figures["held_out"], indent=2))
    save_model(training, figures)
    print(
        f"{options.output_dir}: {training.step} steps of {options.batch_size} views in {training.elapsed / 60:.1f} minutes"
    )
    return figures


if __name__ == "__main__":
    main()
