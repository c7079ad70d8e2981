# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Time and memory of a conversion at full size: random weights in official layouts.

    eva02-b16     EVA02-B/16 with mask convolution and the adaptor for vectors 4,096 wide (1.44 GB)
    openai-l14    OpenAI's ViT-L/14 with mask convolution and the same adaptor (2.31 GB)
    clip-b16      OpenAI's CLIP ViT-B/16, float16 and float32 as in its releases (0.35 GB), which becomes all float32

`examples/convert_checkpoint.py` runs in a process of its own: it reads the checkpoint, writes the folder, syncs it to disk,
loads it again and compares every weight. Time is that of the process as a multiple of what reading the file and writing
its tensors once (safetensors, synced) takes in a process of its own. Memory is how far the high-water mark of resident
memory (Linux: VmHWM, reset after the imports) rises above what the process had with all imports made, as a multiple of
the file; pages of the mapped file count.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_conversion.py
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch


SOURCES = {"eva02-b16": "pixclip", "openai-l14": "pixclip", "clip-b16": "openai-clip"}
TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent / "examples")]


def official_shapes(size):
    from conversion_references import (
        clip_text_shapes,
        eva02_shapes,
        openai_vision_shapes,
        text_adaptor_shapes,
        transformers_vision_shapes,
    )

    if size == "clip-b16":
        vision = openai_vision_shapes(768, 12, 16, 14, embed=512)
        return vision | clip_text_shapes(512, 12, 49408, 77, embed=512, prefix=""), set()
    if size == "eva02-b16":
        shapes = eva02_shapes(768, 12, 2048, 16, 14, embed=1280, mask=True) | text_adaptor_shapes(4096, embed=1280)
        places = ["visual.rope", *(f"visual.blocks.{number}.attn.rope" for number in range(12))]
        return shapes, {f"{place}.freqs_{part}" for place in places for part in ("cos", "sin")}
    shapes = transformers_vision_shapes(1024, 24, 14, 16, embed=1280, mask=True)
    return shapes | text_adaptor_shapes(4096, embed=1280, prefix="text_adapter.adaptor."), set()


def write_checkpoint(size, path):
    """A checkpoint of the official names and shapes, with its tables of rotary positions."""
    from conversion_references import eva02_rope_buffers

    shapes, tables = official_shapes(size)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) * 0.02 for name, shape in shapes.items()}
    if tables:
        state |= eva02_rope_buffers(14, 64, 12)
    if size == "clip-b16":
        state = {
            name: value if "ln_" in name or "embedding" in name else value.half() for name, value in state.items()
        }
    torch.save(state | {"logit_scale": torch.tensor(4.6)}, path)


def status(field):
    """Kilobytes, of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def run_here(task, source, path, output):
    """One of the two tasks, in this process; prints what it took."""
    import convert_checkpoint
    from safetensors.torch import save_file

    import modeling_pixclip

    assert modeling_pixclip.PixCLIPModel and modeling_pixclip.PixCLIPImageProcessor
    Path("/proc/self/clear_refs").write_text("5")
    before, start = status("VmRSS"), time.perf_counter()
    if task == "convert":
        command = ["--source", source, "--checkpoint", path, "--output_dir", output]
        sys.stdout = open(os.devnull, "w")
        code = convert_checkpoint.main(command)
        sys.stdout = sys.__stdout__
        assert code == 0
    else:
        save_file(torch.load(path, weights_only=True), output)
        with open(output, "rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "kilobytes": status("VmHWM") - before}))


def measure(task, size, path, output):
    command = [sys.executable, __file__, "--task", task, "--sizes", size, "--path", str(path), "--output", str(output)]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(finished.stdout.splitlines()[-1])


def bench(size, folder):
    """Writes the checkpoint and converts it to `folder / "converted"`; returns the figures."""
    path = folder / f"{size}.pth"
    write_checkpoint(size, path)
    plain = measure("copy", size, path, folder / "copy.safetensors")
    (folder / "copy.safetensors").unlink()
    converted = measure("convert", size, path, folder / "converted")
    bytes_in = path.stat().st_size
    return {
        "size": size,
        "gigabytes": bytes_in / 1e9,
        "output_over_file": sum(file.stat().st_size for file in (folder / "converted").glob("*.safetensors"))
        / bytes_in,
        "seconds": converted["seconds"],
        "time_over_copy": converted["seconds"] / plain["seconds"],
        "peak_over_file": converted["kilobytes"] * 1024 / bytes_in,
        "copy_peak_over_file": plain["kilobytes"] * 1024 / bytes_in,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    parser.add_argument("--folder", type=Path, help="New folder that keeps what is written.")
    parser.add_argument("--task", choices=["convert", "copy"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return run_here(options.task, SOURCES[options.sizes[0]], options.path, options.output)
    for size in options.sizes:
        if options.folder is not None:
            (options.folder / size).mkdir(parents=True)
            print(json.dumps(bench(size, options.folder / size)), flush=True)
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(bench(size, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
