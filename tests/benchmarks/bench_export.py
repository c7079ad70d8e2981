# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Exported programs against the model: what int8 costs in cosine, file sizes, latency.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_export.py --model runs/coco_regions
    OMP_NUM_THREADS=1 python tests/benchmarks/bench_export.py --random eva02-b16 --photos 8

`--model` is a trained checkpoint with its processor, on the regions of `--data` (default: the held-out photos of
examples/data/coco_regions): real photos, real masks. `--random` is a model of that shape with random weights, on the same
photos: its sizes and times are meaningful, its cosines are those of random weights.

Cosine: of each region's embedding to the model's in float32 (PyTorch), mean and least over all regions. Size: bytes of the
region program over those of the float32 ONNX file. Latency: one batch of `--batch` photos with all of their regions,
`--threads` threads, least of `--repeats` calls; ways take turns, so that other work on the machine meets all of them. The
speed-up is over the model in PyTorch (eager, SDPA).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from transformers import LlamaConfig

from modeling_pixclip import (
    PixCLIPConfig,
    PixCLIPImageProcessor,
    PixCLIPModel,
    PixCLIPProcessor,
    RegionJsonlDataset,
    export_model,
)


DATA = Path(__file__).parents[2] / "examples" / "data" / "coco_regions" / "heldout.jsonl"
RANDOM = {
    "clip-b16": {},
    "eva02-b16": {
        "mlp_type": "swiglu",
        "intermediate_size": 2048,
        "hidden_act": "silu",
        "use_rope": True,
        "sub_layer_norm": True,
        "pre_layer_norm": False,
        "key_bias": False,
        "patch_bias": True,
        "mask_patch_bias": True,
        "projection_bias": True,
        "layer_norm_eps": 1e-6,
    },
}
# Format and kind of int8.
WAYS = {
    "onnxruntime, float32": ("onnx", None),
    "onnxruntime, int8 weights": ("onnx", "weight_only"),
    "onnxruntime, int8 weights, unpacked on load": ("onnx", "weight_only"),
    "onnxruntime, int8 dynamic": ("onnx", "dynamic"),
    "torch.export, float32": ("torch_export", None),
}


def load_model(options: argparse.Namespace) -> tuple[PixCLIPModel, PixCLIPImageProcessor]:
    if options.model is not None:
        model = PixCLIPModel.from_pretrained(options.model, dtype=torch.float32)
        return model.eval(), PixCLIPProcessor.from_pretrained(options.model).image_processor
    torch.manual_seed(0)
    text = LlamaConfig(vocab_size=99, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    config = PixCLIPConfig(vision_config=RANDOM[options.random], text_config={"backbone_config": text})
    model = PixCLIPModel(config).eval()
    # A new model does not look at the mask.
    torch.nn.init.normal_(model.vision_model.embeddings.mask_patch_embedding.weight, std=0.02)
    return model, PixCLIPImageProcessor()


def load_batches(options: argparse.Namespace, processor: PixCLIPImageProcessor) -> list[dict[str, torch.Tensor]]:
    dataset = RegionJsonlDataset(options.data)
    batches = []
    for start in range(0, min(options.photos, len(dataset)), options.batch):
        records = [dataset[i] for i in range(start, min(start + options.batch, options.photos, len(dataset)))]
        masks = [record["masks"] for record in records]
        inputs = processor([record["image"] for record in records], masks=masks, return_tensors="pt")
        batches.append({name: inputs[name] for name in ("pixel_values", "mask_values", "region_image_index")})
    return batches


def load_program(name: str, path: Path, threads: int) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda batch: program(*batch.values())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if name.endswith("on load"):
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(
        session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})[0]
    )


def latencies(ways: dict[str, Callable], batch: dict[str, torch.Tensor], repeats: int) -> dict[str, float]:
    seconds = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run(batch)
            seconds[name].append(time.perf_counter() - start)
    # The first call of each makes its memory.
    return {name: min(values[1:]) for name, values in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="Folder of a trained checkpoint with its processor.")
    source.add_argument("--random", choices=RANDOM, help="A model of this shape with random weights.")
    parser.add_argument("--data", default=DATA, type=Path, help="JSON lines of RegionJsonlDataset.")
    parser.add_argument("--photos", type=int, default=1000, help="At most so many photos.")
    parser.add_argument("--batch", type=int, default=8, help="Photos of a batch.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="Also write the figures to this file.")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model, processor = load_model(options)
    batches = load_batches(options, processor)
    regions = sum(len(batch["mask_values"]) for batch in batches)

    @torch.no_grad()
    def eager(batch):
        return torch.nn.functional.normalize(model.get_image_features(**batch).pooler_output, dim=-1)

    expected = torch.cat([eager(batch) for batch in batches])
    ways, sizes = {"PyTorch, float32": eager}, {}
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        for number, (name, (format, int8)) in enumerate(WAYS.items()):
            folder = Path(temporary) / str(number)
            file = export_model(model, folder, parts=["regions"], format=format, int8=int8)["programs"]["regions"][
                "file"
            ]
            sizes[name] = (folder / file).stat().st_size
            ways[name] = load_program(name, folder / file, options.threads)
        seconds = latencies(ways, batches[0], options.repeats)
        rows = {}
        for name, run in ways.items():
            cosine = torch.nn.functional.cosine_similarity(torch.cat([run(batch) for batch in batches]), expected)
            rows[name] = {
                "mean_cosine": float(cosine.double().mean()),
                "least_cosine": float(cosine.min()),
                "bytes": sizes.get(name),
                "size": sizes[name] / sizes["onnxruntime, float32"] if name in sizes else None,
                "seconds": seconds[name],
                "speed_up": seconds["PyTorch, float32"] / seconds[name],
            }
    first = len(batches[0]["mask_values"])
    print(
        f"{regions} regions of {sum(len(batch['pixel_values']) for batch in batches)} photos; a batch of {first} regions"
    )
    # How near regions are to each other tells what a cosine of 0.999 means.
    others = (expected @ expected.T)[~np.eye(len(expected), dtype=bool)]
    print(f"cosine between different regions: mean {others.mean():.3f}, 99th percentile {others.quantile(0.99):.3f}")
    print(
        "| way | mean cosine | least cosine | file MB | size | ms a batch | speed-up |\n|---|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        size = ("", "") if row["bytes"] is None else (f"{row['bytes'] / 1e6:.1f}", f"{row['size']:.2f}")
        cosines = f"{row['mean_cosine']:.5f} | {row['least_cosine']:.5f}"
        print(f"| {name} | {cosines} | {size[0]} | {size[1]} | {row['seconds'] * 1e3:.0f} | {row['speed_up']:.2f} |")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
