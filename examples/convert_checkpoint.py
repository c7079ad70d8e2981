# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Converts a checkpoint of another project into a folder that `from_pretrained` loads, and back.

    python examples/convert_checkpoint.py --source openai-clip --checkpoint ViT-B-16.pt --tokenizer openai/clip-vit-base-patch16 \\
        --output_dir clip-b16
    python examples/convert_checkpoint.py --source alpha-clip --checkpoint ViT-B-16.pt clip_b16_grit1m.pth --output_dir alpha-b16
    python examples/convert_checkpoint.py --to alpha-clip --checkpoint alpha-b16 --output_dir alpha-b16-official
    python examples/convert_checkpoint.py --to openai-clip --to_layout folder --checkpoint clip-b16 --output_dir clip-b16-hf

Every tensor of the source is taken or dropped by a named rule and every one of the model is filled, or nothing is written.
A .pth that needs unpickling is refused. The folder is loaded again and compared bit by bit before it gets its name.
`--source_config` tells what tensors cannot: the number of heads, the activation, epsilons, the RoPE grid; without it the
released sizes' are taken, and the report names them. The report goes to stdout and to the folder, its notes to stderr too.
Of a process that was killed, a hidden `.NAME.xxxxxxxx` stays beside the output folder; delete it.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from modeling_pixclip import ConversionError, convert_to_folder, export_checkpoint, list_checkpoint_sources


@dataclass
class ConversionArguments:
    checkpoint: list[str] = field(
        metadata={
            "help": "Files of the source, or folders of Transformers, in any order; with --to a saved PixCLIP folder."
        }
    )
    output_dir: str = field(metadata={"help": "New or empty folder."})
    source: str | None = field(
        default=None, metadata={"help": f"Whose checkpoint it is: {', '.join(list_checkpoint_sources())}."}
    )
    to: str | None = field(
        default=None, metadata={"help": "The way back: openai-clip, alpha-clip, fg-clip or long-clip."}
    )
    to_layout: Literal["state_dict", "folder"] | None = field(
        default=None,
        metadata={
            "help": "With --to: the project's state dict, or a folder of Transformers; what came in without, else the former."
        },
    )
    source_config: str | None = field(
        default=None, metadata={"help": "JSON, or a file of it: what the tensors cannot tell."}
    )
    text_backbone: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the LLM, for sources whose texts are vectors of one."}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "Hub id or folder of the tokenizer; that of the source's folder without."}
    )
    text_preset: str | None = field(
        default=None, metadata={"help": "What a known LLM takes: template, pooling, length; see get_text_preset."}
    )
    dtype: Literal["float32", "float16", "bfloat16"] | None = field(
        default=None, metadata={"help": "Of all weights; the widest in the source without, which changes no value."}
    )


def read_source_config(given: str | None) -> dict[str, Any] | None:
    if given is None:
        return None
    text = given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8-sig")
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ConversionError(f"--source_config is a {type(config).__name__}; accepted is a JSON object.")
    return config


def convert(options: ConversionArguments) -> dict[str, Any]:
    if (options.source is None) == (options.to is None):
        raise ConversionError("give either --source, to convert a checkpoint, or --to, to write one back.")
    if options.to is None:
        if options.to_layout is not None:
            raise ConversionError("--to_layout belongs to --to.")
        return convert_to_folder(
            options.source,
            options.checkpoint,
            options.output_dir,
            source_config=read_source_config(options.source_config),
            text_backbone=options.text_backbone,
            tokenizer=options.tokenizer,
            text_preset=options.text_preset,
            dtype=None if options.dtype is None else getattr(torch, options.dtype),
        )
    unused = [
        f"--{name}"
        for name in ("source_config", "text_backbone", "tokenizer", "text_preset", "dtype")
        if getattr(options, name) is not None
    ]
    if unused:
        raise ConversionError(
            f"{', '.join(unused)} belong to --source; --to takes all it needs from the saved folder."
        )
    if len(options.checkpoint) != 1:
        raise ConversionError(f"--to takes one saved folder, got {len(options.checkpoint)}: {options.checkpoint}.")
    return export_checkpoint(options.checkpoint[0], options.to, options.output_dir, options.to_layout)


def main(arguments: list[str] | None = None) -> int:
    (options,) = HfArgumentParser(ConversionArguments, description=__doc__).parse_args_into_dataclasses(
        sys.argv[1:] if arguments is None else arguments
    )
    try:
        report = convert(options)
    # Transformers tells what is wrong with a tokenizer, a preset or a configuration as a ValueError.
    except (OSError, StrictDataclassError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    for note in report["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"done: {options.output_dir}, loaded again and compared bit by bit.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
