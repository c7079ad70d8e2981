# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Peak memory of a training step with gradient caching against the big batch at once and a small one alone.

    python tests/benchmarks/bench_gradient_caching.py                 # CPU, about 2 minutes
    python tests/benchmarks/bench_gradient_caching.py --device cuda --width 768 --layers 12 --batch 512 --chunk 64

Four ways to train on images with 2 regions each, their crops and their texts, under the objective `pixclip`, with all
weights trained: the plain Trainer with a batch of `--chunk`; the plain Trainer with `--batch`; `GradientCachingTrainer`
with a contrastive batch of `--batch` in chunks of `--chunk`; and plain gradient accumulation over as many, whose loss is
another one. Each runs two steps in a process of its own. Memory is the peak above what the process had when the model
stood (resident set on Linux, allocator on CUDA): weights' gradients and the optimiser's state are in it, and are equal
for all. So are the inputs of all chunks, which the Trainer reads before a step; on CUDA gradient caching keeps those on
the host. Gradients are compared with those of the big batch at once, over all weights, in the first step. Time is that of
the second step, in CPU time of the process on a CPU.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, Trainer, TrainerCallback, TrainingArguments

from modeling_pixclip import GradientCachingTrainer, PixCLIPConfig, PixCLIPForPreTraining


IMAGE, REGIONS, TOKENS, VOCABULARY = 112, 2, 48, 1000


class Samples(torch.utils.data.Dataset):
    """Numbers in place of photos: what is measured does not hang on them."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        masks = torch.full((REGIONS, 1, IMAGE, IMAGE), -1.9)
        masks[0, :, : IMAGE // 2], masks[1, :, :, IMAGE // 2 :] = 1.9, 1.9
        return {
            "pixel_values": torch.randn(1, 3, IMAGE, IMAGE, generator=generator),
            "mask_values": masks,
            "crop_pixel_values": torch.randn(REGIONS, 3, IMAGE, IMAGE, generator=generator),
            "crop_mask_values": masks,
            "input_ids": torch.randint(4, VOCABULARY, (REGIONS, TOKENS), generator=generator),
            "text_ids": number * REGIONS + torch.arange(REGIONS),
        }


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    batch = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
    rows = torch.arange(len(samples) * REGIONS)
    return {**batch, "region_image_index": rows // REGIONS, "region_text_index": rows}


class Measure(TrainerCallback):
    def __init__(self, gradients: Path):
        self.gradients, self.times = gradients, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = clock(args.device)

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.times.append(clock(args.device) - self.begun)
        if state.global_step == 0:
            found = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
            torch.save({name: value.cpu() for name, value in found.items()}, self.gradients)


def clock(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def train(way: str, options: argparse.Namespace, gradients: Path) -> dict[str, float]:
    torch.manual_seed(0)
    size = {"hidden_size": options.width, "intermediate_size": 4 * options.width, "num_hidden_layers": options.layers}
    heads = {"num_attention_heads": options.width // 64}
    text = LlamaConfig(vocab_size=VOCABULARY, **size, **heads)
    config = PixCLIPConfig(
        vision_config={**size, **heads, "image_size": IMAGE, "patch_size": 16},
        text_config={"backbone_config": text},
    )
    model = PixCLIPForPreTraining(config)
    model.set_text_backbone_trainable("full")
    fields = {"contrastive_batch_size": options.batch} if way == "gradient caching" else {}
    arguments = TrainingArguments(
        tempfile.mkdtemp(),
        max_steps=2,
        per_device_train_batch_size=options.batch if way == "big batch" else options.chunk,
        gradient_accumulation_steps=options.batch // options.chunk if way == "accumulation" else 1,
        use_cpu=options.device == "cpu",
        bf16=options.device == "cuda",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    measure = Measure(gradients)
    trainer_class = GradientCachingTrainer if fields else Trainer
    trainer = trainer_class(
        model,
        arguments,
        data_collator=collate,
        train_dataset=Samples(2 * options.batch),
        callbacks=[measure],
        **fields,
    )
    if options.device == "cuda":
        before, peak = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
        torch.cuda.reset_peak_memory_stats()
    else:
        resident = int(Path("/proc/self/statm").read_text().split()[1])
        before = resident * resource.getpagesize()

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    trainer.train()
    return {"megabytes": (peak() - before) / 2**20, "seconds": measure.times[-1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=128, help="samples of the big batch")
    parser.add_argument("--chunk", type=int, default=8, help="samples of the small batch")
    parser.add_argument("--width", type=int, default=128, help="of both towers")
    parser.add_argument("--layers", type=int, default=6, help="of both towers")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--gradients", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(train(options.way, options, options.gradients)))
        return
    results, gradients = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("small batch", "big batch", "gradient caching", "accumulation"):
            path = Path(folder) / f"{way}.pt"
            command = [sys.executable, *sys.argv, "--way", way, "--gradients", str(path)]
            finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            results[way] = json.loads(finished.stdout.splitlines()[-1])
            gradients[way] = torch.cat([value.flatten().double() for value in torch.load(path).values()])
    big = gradients["big batch"]
    print(f"torch {torch.__version__}, {options.device}; width {options.width}, {options.layers} layers")
    print("| way | samples in the loss | peak MB | inputs in it | rest / small batch's | gradient error | s a step |")
    print("|---|---|---|---|---|---|---|")
    a_sample = sum(values.nbytes for values in Samples(1)[0].values()) / 2**20
    rest = {}
    for way, result in results.items():
        samples = {"small batch": options.chunk, "accumulation": options.chunk}.get(way, options.batch)
        waiting = way != "small batch" and (way, options.device) != ("gradient caching", "cuda")
        inputs = a_sample * (options.batch if waiting else options.chunk)
        rest[way] = result["megabytes"] - inputs
        error = "" if way == "small batch" else f"{float((gradients[way] - big).norm() / big.norm()):.1e}"
        numbers = f"{result['megabytes']:.0f} | {inputs:.0f} | {rest[way] / rest['small batch']:.2f}"
        print(f"| {way} | {samples} | {numbers} | {error} | {result['seconds']:.1f} |")


if __name__ == "__main__":
    main()
