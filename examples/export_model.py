# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Exports a saved model to programs that run without this library: ONNX (onnxruntime) or `torch.export` (PyTorch).

    python examples/export_model.py --model runs/coco_regions --output_dir exported
    python examples/export_model.py --model runs/coco_regions --output_dir exported-int8 --int8
    python examples/export_model.py --model runs/coco_regions --output_dir exported-pt2 --format torch_export

`export.json` in the folder says what each program takes and gives, how images, masks and texts become its inputs, and how
scores are made of embeddings; an ONNX file holds the same in its metadata. ONNX needs `pip install onnx onnxruntime
onnxscript`.
"""

import argparse
import sys

import torch

from modeling_pixclip import PixCLIPImageProcessor, PixCLIPModel, PixCLIPProcessor, export_model


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", required=True, help="Folder or Hub id of a saved PixCLIP model, best with its processor."
    )
    parser.add_argument("--output_dir", required=True, help="Folder to write to; it must not hold an export.")
    parser.add_argument("--format", choices=["onnx", "torch_export"], default="onnx")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=["regions", "images", "text_adapter", "texts"],
        default=["regions", "images", "text_adapter"],
        help="regions: images with masks. images: whole images. text_adapter: pooled vectors of the LLM to embeddings. "
        "texts: the whole text tower, LLM included. Default: all but texts.",
    )
    parser.add_argument(
        "--int8",
        nargs="?",
        const="weight_only",
        choices=["weight_only", "dynamic"],
        help="ONNX: weights of linear layers in int8. 'dynamic' also computes with int8 activations.",
    )
    parser.add_argument("--dense", action="store_true", help="Also the dense features pooled under each mask.")
    return parser.parse_args(arguments)


def load_processor(model: str) -> PixCLIPProcessor | PixCLIPImageProcessor | None:
    """The processor saved beside a model, or what there is of it; prints what is missing."""
    try:
        return PixCLIPProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        print(f"No processor could be loaded from {model} ({first_line(error)})")
    try:
        processor = PixCLIPImageProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        print(
            f"No image processor could be loaded either ({first_line(error)}). export.json describes the preprocessing of "
            "masks only."
        )
        return None
    print("The image processor alone is exported: export.json does not describe how texts become inputs.")
    return processor


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def main(arguments: list[str] | None = None):
    options = parse(arguments)
    model = PixCLIPModel.from_pretrained(options.model, dtype=torch.float32).eval()
    processor = load_processor(options.model)
    description = export_model(
        model, options.output_dir, processor, options.parts, options.format, options.int8, options.dense
    )
    for program in description["programs"].values():
        found = {name: value for name, value in program.items() if name in ("largest_difference", "least_cosine")}
        print(program["file"], *(f"{name.replace('_', ' ')} {value:.6g}" for name, value in found.items()))
    print(f"Described in {options.output_dir}/export.json")


if __name__ == "__main__":
    sys.exit(main())
