# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Text encoding without padding against the usual ways: same weights, same texts, one process.

    python tests/benchmarks/bench_text_encoding.py                      # CPU, about 20 minutes
    python tests/benchmarks/bench_text_encoding.py --shape smollm2 --seeds 1
    python tests/benchmarks/bench_text_encoding.py --device cuda --dtype bfloat16 --shape llama-3.2-1b

Two situations, each on texts whose lengths follow a log-normal law, clamped to 8..512 tokens:

* one training batch of 32 texts: the padded batch (SDPA); the same batch sorted by length into 4 padded batches of 8;
  ours (`PixCLIPTextModel`, which packs it); forward, and forward + backward through all weights;
* a set of 256 texts, as strings: padded batches of 32 in the given order; LLM2Vec's way (sorted by characters, batches of
  32, left padding, one tokeniser call a text to find its span, pooling in a loop; rewritten from its description);
  batches of 32 sorted by tokens; ours (`encode_backbone`); forward. One set, whatever the number of seeds.

Each way is first checked against the padded batch (vectors within 1e-5 in float32). Time is the least of the repeats, in
CPU time of the process on a CPU, where ways take turns, and wall clock between synchronisations on CUDA. Memory is the
peak of the process above what it was before the way ran (resident set on Linux, allocator on CUDA). The share of the
ceiling is what the linear layers need for the real tokens (2 operations a weight and token, thrice that with backward),
over what a plain product of large square matrices reaches on the same device in the same dtype.
"""

import argparse
import ctypes
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from modeling_pixclip import PixCLIPTextConfig, PixCLIPTextModel
from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor


LAWS = {"A": (60, 0.9), "B": (148, 0.6)}
VOCABULARY = 1000
SHAPES = {
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


@dataclass
class Bench:
    model: PixCLIPTextModel
    processor: PixCLIPProcessor
    device: torch.device
    repeats: int

    def synchronise(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def clock(self) -> float:
        self.synchronise()
        return time.perf_counter() if self.device.type == "cuda" else time.process_time()

    def seconds(self, ways: dict) -> dict[str, float]:
        """Least time of each way; they take turns, so that a slow minute of the machine hits all of them."""
        least = dict.fromkeys(ways, float("inf"))
        for _ in range(self.repeats):
            for name, way in ways.items():
                start = self.clock()
                way()
                least[name] = min(least[name], self.clock() - start)
        return least

    def ceiling(self) -> float:
        """Operations a second of a plain matrix product."""
        side = 8192 if self.device.type == "cuda" else 1024
        matrix = torch.randn(side, side, device=self.device).to(self.model.dtype)
        ways = {"product": lambda: matrix @ matrix}
        self.seconds(ways)
        return 2 * side**3 / self.seconds(ways)["product"]

    def peak_megabytes(self, way) -> float:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            way()
            return (torch.cuda.max_memory_allocated() - before) / 2**20
        # What earlier ways freed must not be had for nothing.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = _status("VmRSS")
        # Resets the kernel's high-water mark of this process.
        Path("/proc/self/clear_refs").write_text("5")
        way()
        return max(_status("VmHWM") - before, 0) / 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}.")


def draw_lengths(law: str, count: int, seed: int) -> list[int]:
    median, sigma = LAWS[law]
    drawn = np.random.default_rng(seed).lognormal(np.log(median), sigma, count)
    return np.clip(drawn.round(), 8, 512).astype(int).tolist()


def make_texts(lengths: list[int], seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in random.integers(2, VOCABULARY, length)) for length in lengths]


def make_bench(shape: str, dtype: torch.dtype, device: str, attention: str | None, repeats: int) -> Bench:
    words = {"[pad]": 0, "[unk]": 1, **{f"w{index}": index for index in range(2, VOCABULARY)}}
    backend = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    torch.manual_seed(0)
    backbone = LlamaConfig(
        vocab_size=VOCABULARY, max_position_embeddings=512, bos_token_id=None, eos_token_id=None, **SHAPES[shape]
    )
    config = PixCLIPTextConfig(backbone_config=backbone, projection_type="linear", backbone_training="full")
    with torch.device(device):
        model = PixCLIPTextModel._from_config(
            config, dtype=dtype, **({"attn_implementation": attention} if attention else {})
        )
    return Bench(model.eval(), PixCLIPProcessor(PixCLIPImageProcessor(), tokenizer), torch.device(device), repeats)


def padded_vectors(bench: Bench, texts: list[str], side: str = "right") -> torch.Tensor:
    """Pooled vectors of one padded batch, as every library makes them."""
    batch = bench.processor.pad_tokens(bench.processor.tokenize_text(texts))
    ids, mask, pooling_mask = (torch.from_numpy(rows).to(bench.device) for rows in batch.values())
    if side == "left":
        places = (torch.arange(ids.shape[1], device=ids.device) + mask.sum(-1, keepdim=True)) % ids.shape[1]
        ids, mask, pooling_mask = (rows.gather(1, places) for rows in (ids, mask, pooling_mask))
    return run_padded(bench, ids, mask, pooling_mask)


def run_padded(bench: Bench, ids, mask, pooling_mask) -> torch.Tensor:
    padding_free, bench.model.config.padding_free = bench.model.config.padding_free, False
    try:
        return bench.model(input_ids=ids, attention_mask=mask, pooling_mask=pooling_mask).backbone_embeds
    finally:
        bench.model.config.padding_free = padding_free


@torch.no_grad()
def padded_set(bench: Bench, texts: list[str], order=None) -> torch.Tensor:
    order = range(len(texts)) if order is None else order
    rows = [padded_vectors(bench, [texts[i] for i in order[at : at + 32]]) for at in range(0, len(texts), 32)]
    return torch.cat(rows)[torch.tensor(order).argsort()].cpu()


def sorted_set(bench: Bench, texts: list[str]) -> torch.Tensor:
    lengths = [len(ids) for ids in bench.processor.tokenize_text(texts)["input_ids"]]
    return padded_set(bench, texts, sorted(range(len(texts)), key=lambda i: -lengths[i]))


@torch.no_grad()
def llm2vec_set(bench: Bench, texts: list[str]) -> torch.Tensor:
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    tokenizer, rows = bench.processor.tokenizer, []
    for at in range(0, len(texts), 32):
        batch = [texts[i] for i in order[at : at + 32]]
        spans = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in batch]
        encoded = tokenizer(batch, padding=True, padding_side="left", return_tensors="pt").to(bench.device)
        padding_free, bench.model.config.padding_free = bench.model.config.padding_free, False
        states = bench.model(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]
        ).last_hidden_state
        bench.model.config.padding_free = padding_free
        rows.append(torch.stack([states[row, -span:].mean(0) for row, span in enumerate(spans)]).float().cpu())
    return torch.cat(rows)[torch.tensor(order).argsort()]


def batch_ways(bench: Bench, texts: list[str], backward: bool) -> dict:
    batch = bench.processor.pad_tokens(bench.processor.tokenize_text(texts))
    ids, mask, pooling_mask = (torch.from_numpy(rows).to(bench.device) for rows in batch.values())
    longest_first = mask.sum(-1).argsort(descending=True)

    def buckets():
        rows = []
        for bucket in longest_first.chunk(4):
            length = int(mask[bucket].sum(-1).max())
            rows.append(run_padded(bench, *(values[bucket, :length] for values in (ids, mask, pooling_mask))))
        return torch.cat(rows)[longest_first.argsort()]

    def ours():
        return bench.model(input_ids=ids, attention_mask=mask, pooling_mask=pooling_mask).backbone_embeds

    forwards = {"padded": lambda: run_padded(bench, ids, mask, pooling_mask), "sorted, 4 of 8": buckets, "ours": ours}

    def with_backward(forward):
        def run():
            bench.model.zero_grad()
            vectors = forward()
            (vectors * torch.linspace(-1, 1, vectors.shape[-1], device=vectors.device)).sum().backward()
            return vectors.detach()

        return run

    if backward:
        return {name: with_backward(forward) for name, forward in forwards.items()}
    return {name: torch.no_grad()(forward) for name, forward in forwards.items()}


def set_ways(bench: Bench, texts: list[str]) -> dict:
    return {
        "padded, 32": lambda: padded_set(bench, texts),
        "LLM2Vec's way": lambda: llm2vec_set(bench, texts),
        "sorted, 32": lambda: sorted_set(bench, texts),
        "ours": lambda: bench.model.encode_backbone(texts, bench.processor),
    }


def check(ways: dict, dtype: torch.dtype):
    """Vectors first: a fast wrong answer is not measured."""
    expected, *others = [(name, way()) for name, way in ways.items()]
    for name, vectors in others:
        if dtype == torch.float32:
            torch.testing.assert_close(vectors, expected[1], atol=1e-5, rtol=1e-5, msg=f"{name}: other vectors")
        else:
            cosine = torch.cosine_similarity(vectors.float(), expected[1].float()).min().item()
            if cosine < 0.999:
                raise AssertionError(f"{name}: cosine {cosine:.5f} with the padded batch")


def measure(bench: Bench, law: str, seeds: int, dtype: torch.dtype, skip: list[str]) -> list[dict]:
    results = []
    weights = sum(
        module.weight.numel() for module in bench.model.backbone.modules() if isinstance(module, torch.nn.Linear)
    )
    ceiling = bench.ceiling()
    for situation in ("batch, forward", "batch, forward + backward", "set, forward"):
        if situation in skip:
            continue
        times, memory, tokens = {}, {}, 0
        count, draws = (256, 1) if situation.startswith("set") else (32, seeds)
        for seed in range(draws):
            lengths = draw_lengths(law, count, seed)
            tokens += sum(lengths)
            texts = make_texts(lengths, seed)
            ways = set_ways(bench, texts) if count == 256 else batch_ways(bench, texts, "backward" in situation)
            check(ways, dtype)
            for name, seconds in bench.seconds(ways).items():
                times.setdefault(name, []).append(seconds)
            for name, way in ways.items():
                memory.setdefault(name, []).append(bench.peak_megabytes(way))
        operations = 2 * weights * (3 if "backward" in situation else 1)
        reference = next(iter(times))
        for name, seconds in times.items():
            ratios = [base / own for base, own in zip(times[reference], seconds)]
            results.append(
                {
                    "law": law,
                    "situation": situation,
                    "way": name,
                    "speed_up": sum(ratios) / len(ratios),
                    "least": min(ratios),
                    "most": max(ratios),
                    "seconds": sum(seconds) / len(seconds),
                    "tokens_per_second": tokens / sum(seconds),
                    "share_of_ceiling": operations * tokens / sum(seconds) / ceiling,
                    "peak_megabytes": max(memory[name]),
                }
            )
            row = results[-1]
            print(
                f"{law}  {situation:<27}{name:<16}{row['speed_up']:>6.2f}x ({row['least']:.2f}-{row['most']:.2f})"
                f"{row['seconds']:>9.3f} s{row['tokens_per_second']:>10,.0f} tokens/s"
                f"{row['share_of_ceiling']:>6.0%} of ceiling{row['peak_megabytes']:>8.0f} MB",
                flush=True,
            )
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--attention", help="attention of the packed call, e.g. flash_attention_2; ours by default")
    parser.add_argument(
        "--skip", nargs="*", default=[], help="situations to leave out, e.g. 'batch, forward + backward'"
    )
    parser.add_argument("--json", help="file for the results")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    bench = make_bench(arguments.shape, dtype, arguments.device, arguments.attention, arguments.repeats)
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"{platform.machine()} CPU"
    print(
        f"{arguments.shape}, {arguments.dtype}, {device}, {arguments.threads} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {arguments.seeds} seeds, least of {arguments.repeats}"
    )
    results = [row for law in arguments.laws for row in measure(bench, law, arguments.seeds, dtype, arguments.skip)]
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
