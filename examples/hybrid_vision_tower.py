# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Makes a PixCLIP model whose vision tower stands on a frozen EfficientNet-Lite0, to be trained by
`run_pretraining.py --initial_model`.

    python examples/hybrid_vision_tower.py examples/configs/coco_mini_hybrid.json --text_backbone FOLDER_OR_ID

A vision transformer learns little from few photos. In the hybrid of "An Image is Worth 16x16 Words" feature maps of a
convolutional network stand in place of pixels, and this is its start: a linear map from the network's features to the
vectors of a frozen text backbone is trained on the photos' regions and captions (`distillation_objective.py`) and becomes
the patch embedding; in the first block the class token looks at the patches under the mask; all other blocks add nothing.
So before any training of the whole, the dense map says what that linear map says, and the class token says it of what is
under the mask. It weighs patches by how much of them the mask covers, fully covered ones far above others; of a region that
covers no patch by about half, it hears the rest of the photo too.

The first argument may be a JSON file of defaults.
"""

import logging
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from distillation_objective import ProbeOptions, TextProbe, train_probe
from distillation_parts import build_model, build_processor, text_vectors
from distillation_views import ViewOptions, ViewSampler, read_photos
from efficientnet_lite0 import FEATURES, STRIDE, Teacher, lite0_config, lite0_state
from pretraining_arguments import take_json_defaults, take_json_objects
from transformers import HfArgumentParser, set_seed

from modeling_pixclip import PixCLIPVisionConfig, PixCLIPVisionModelWithProjection


# Heads are so wide, and a tower is a multiple of it: the content, four dimensions of marks, and what training may use.
HEAD, MARKS = 64, 4
# Size of a mark beside the length of a patch's content, which is the root of its dimensions. Where marks are
# larger, a LayerNorm hardly changes how long one patch is beside another, and the mean over patches is the linear map's.
MARK = 4.0
# Difference of two attention logits that decides between two patches, or between patches and the class token. More, 20 or 30,
# would keep small regions apart from the rest of the photo, and classified no more of them right.
DECIDED = 10.0


@dataclass
class HybridArguments:
    output_dir: str = field(metadata={"help": "Folder of the model and its processor."})
    photos: str = field(metadata={"help": "JSON lines (RegionJsonlDataset)."})
    text_backbone: str = field(metadata={"help": "Hub id or folder of a text backbone, mean-pooled."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths in the lines are below."})
    text_vectors: str | None = field(
        default=None, metadata={"help": "File of the texts' vectors: read if it is there, else written."}
    )
    photo_size: int = field(default=640, metadata={"help": "Most pixels of a photo's side in memory."})
    teacher_weights: str | None = field(default=None, metadata={"help": "State dict; by default the package's."})
    image_size: int = field(default=448, metadata={"help": "Side in pixels that the tower is made for."})
    crop_size: int | None = field(default=None, metadata={"help": "Side of context crops; by default image_size."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Blocks of the tower."})
    probe: dict | str | None = field(default=None, metadata={"help": "Fields of ProbeOptions (JSON)."})
    views: dict | str | None = field(default=None, metadata={"help": "Fields of ViewOptions (JSON)."})
    device: str | None = field(default=None, metadata={"help": "Default: a GPU where there is one."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})


def parse_arguments(arguments: list[str]) -> HybridArguments:
    parser = HfArgumentParser(HybridArguments, description=__doc__)
    needed = [action.dest for action in parser._actions if action.required]
    for action in parser._actions:
        action.required = False
    options = parser.parse_args(take_json_defaults(parser, arguments))
    missing = [name for name in needed if not getattr(options, name)]
    if missing:
        parser.error(f"{', '.join(missing)} left out; see examples/configs/coco_mini_hybrid.json.")
    options = HybridArguments(**vars(options))
    kinds = {"probe": ProbeOptions, "views": ViewOptions}
    take_json_objects(parser, options, {name: [entry.name for entry in fields(kind)] for name, kind in kinds.items()})
    sides = {"image_size": options.image_size, "crop_size": options.crop_size or options.image_size}
    for name, side in sides.items():
        if side < STRIDE or side % STRIDE:
            parser.error(f"--{name} is {side}; accepted are multiples of {STRIDE}.")
    for name in ("num_hidden_layers", "photo_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; accepted are 1 and more.")
    folder = Path(options.output_dir)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        parser.error(f"--output_dir {folder} is there already; accepted is a new or empty folder.")
    return options


def hybrid_config(options: HybridArguments, content: int) -> PixCLIPVisionConfig:
    """Of a tower on EfficientNet-Lite0 that says vectors `content` wide."""
    width = -(-(content + MARKS) // HEAD) * HEAD
    return PixCLIPVisionConfig(
        stem_config=lite0_config(),
        stem_stride=STRIDE,
        stem_channels=FEATURES,
        patch_size=STRIDE,
        image_size=options.image_size,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=width // HEAD,
        projection_dim=content,
        hidden_act="gelu",
        pre_layer_norm=False,
        patch_bias=True,
        dense_features="plain",
    )


@torch.no_grad()
def initialise(tower: PixCLIPVisionModelWithProjection, probe: TextProbe, length: float) -> None:
    """
    The start that the head of this file describes.

    Two pairs of spare dimensions hold marks, up in one and down in the other, so that their sum is 0 and a LayerNorm takes
    no other mean from the content for them: whether a token is the class token or a patch, and how much of a patch the mask covers.

    Args:
        tower: Of `hybrid_config`.
        probe: From the stem's features to text vectors.
        length: Mean length of the vectors that it gives patches, before they are normalised.
    """
    vision, config = tower.vision_model, tower.config
    content = config.projection_dim
    kind, covered = [content, content + 1], [content + 2, content + 3]
    signs = torch.tensor([1.0, -1.0])
    embeddings = vision.embeddings
    for parameter in embeddings.parameters():
        if parameter.requires_grad:
            parameter.zero_()
    own = content**0.5
    mark, covering = MARK * own, MARK * own / 4
    weight = probe.linear.weight / probe.std
    scale = own / length
    embeddings.patch_embedding.weight[:content] = weight[:, :, None, None] * scale
    embeddings.patch_embedding.bias[:content] = (probe.linear.bias - weight @ probe.mean) * scale
    embeddings.patch_embedding.bias[kind] = -mark * signs
    embeddings.class_embedding[kind] = mark * signs
    # A mask of ones is 1.9 after the processor: half as much as the other mark.
    embeddings.mask_patch_embedding.weight[covered] = (covering * signs / config.patch_size**2)[:, None, None, None]
    for layer in vision.encoder.layers:
        layer.mlp.fc2.weight.zero_()
        layer.self_attn.out_proj.weight.zero_()
    attention = vision.encoder.layers[0].self_attn
    # Of a product only one side is 0, or neither would ever train.
    attention.k_proj.weight.zero_()
    attention.v_proj.weight[:content].zero_()
    attention.q_proj.weight[torch.arange(config.hidden_size) % attention.head_dim < 2] = 0
    # What the first LayerNorm makes of a token with its marks: the root of the mean square becomes 1.
    ones, zeros = ((value - config.mask_mean) / config.mask_std * covering for value in (1.0, 0.0))
    patch = (config.hidden_size / (own**2 + 2 * mark**2 + 2 * ones**2)) ** 0.5
    apart = (2 * config.hidden_size) ** 0.5 + 2 * mark * patch
    by_kind = (DECIDED / attention.scaling / (2 * mark * patch * apart)) ** 0.5
    by_mask = (DECIDED / attention.scaling / (apart * 2 * (ones - zeros) * patch)) ** 0.5
    for head in range(0, config.hidden_size, attention.head_dim):
        # The class token looks at what the mask covers, patches at the class token, which is empty.
        attention.q_proj.weight[head, kind] = by_mask * signs
        attention.q_proj.bias[head] = by_mask * 2 * mark * patch
        attention.k_proj.weight[head, covered] = by_mask * signs
        attention.q_proj.weight[head + 1, kind] = -by_kind * signs
        attention.k_proj.weight[head + 1, kind] = by_kind * signs
    attention.v_proj.weight[:content, :content] = torch.eye(content)
    attention.out_proj.weight[:content, :content] = torch.eye(content) / patch
    tower.visual_projection.weight.zero_()
    tower.visual_projection.weight[:, :content] = torch.eye(content)


@torch.no_grad()
def content_length(teacher: Teacher, sampler: ViewSampler, probe: TextProbe) -> float:
    """Mean length of the vectors that a linear map gives patches of photos, before they are normalised."""
    lengths = []
    for places in torch.arange(min(64, len(sampler.bank.pixels)), device=sampler.device).split(16):
        images, _ = sampler.whole_photos(places)
        lengths.append(probe.linear(probe.standardise(teacher(images).float())).norm(dim=-1))
    return torch.cat(lengths).mean().item()


def main(arguments: list[str] | None = None) -> None:
    started = time.monotonic()
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    for name in ("distillation_views", "efficientnet_lite0"):
        logging.getLogger(name).setLevel(logging.INFO)
    set_seed(options.seed)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    bank = read_photos(options.photos, options.image_root, options.photo_size)
    texts = list(dict.fromkeys([*bank.texts, *(caption for of_photo in bank.captions for caption in of_photo)]))
    if len(bank.pixels) < 2 or not texts:
        raise ValueError(
            f"{options.photos} has {len(bank.pixels)} photos and {len(texts)} texts; accepted are 2 photos or more with "
            "captions or named regions, which the linear map is trained on."
        )
    vectors = text_vectors(options, texts).to(device)
    teacher = Teacher(options.teacher_weights, options.image_size, device)
    generator = torch.Generator(device).manual_seed(options.seed)
    sampler = ViewSampler(bank.to(device), options.image_size, ViewOptions(**options.views), generator)
    probe = train_probe(teacher, sampler, vectors, texts, ProbeOptions(**options.probe), options.seed)
    length = content_length(teacher, sampler, probe)
    tower = PixCLIPVisionModelWithProjection(hybrid_config(options, vectors.shape[1]))
    tower.vision_model.embeddings.stem.network.load_state_dict(lite0_state(options.teacher_weights))
    initialise(tower, probe.cpu(), length)
    folder = Path(options.output_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, as it writes where the text backbone is, relative to its own place.
    unfinished = folder.with_name(f".unfinished-{folder.name}")
    try:
        with tempfile.TemporaryDirectory() as plain:
            tower.save_pretrained(plain)
            build_model(plain, options.text_backbone).save_pretrained(unfinished)
        processor = build_processor(
            tower.config,
            options.text_backbone,
            image_mean=[127 / 255] * 3,
            image_std=[128 / 255] * 3,
            crop_size=options.crop_size or options.image_size,
        )
        processor.save_pretrained(unfinished)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{folder}: a hybrid tower after {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
