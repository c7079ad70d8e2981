# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reading the files of retrieval benchmarks: JSON in its layouts, errors with the place in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_json(path: Path, kind: type[list] | type[dict]) -> Any:
    """What a file holds, which must be of the kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}; accepted is a {kind.__name__} at the top.")
    return content


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each line stands, and what it holds."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield f"{path}, line {number}", json.loads(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number} is not JSON ({error}).") from error


def read_json_array(path: Path, limit: int | None = None, piece: int = 1 << 20) -> Iterator[tuple[str, Any]]:
    """The first objects of a list, with where each stands; the file is read in pieces, and no further than that."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text = file.read(piece).lstrip()
        if not text.startswith("["):
            raise ValueError(f"{path} starts with {text[:20]!r}; accepted is a list of records.")
        place, number = 1, 0
        while number != limit:
            while place < len(text) and text[place] in ", \t\r\n":
                place += 1
            try:
                record, end = decoder.raw_decode(text, place)
            except ValueError as error:
                more = file.read(piece)
                if not more:
                    if text[place:].strip() == "]":
                        return
                    raise ValueError(f"{path}: record {number} is not JSON ({error}).") from error
                text, place = text[place:] + more, 0
                continue
            yield f"{path}: record {number}", record
            place, number = end, number + 1


def read_karpathy(path: Path, split: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Where each image of a split stands in a file of Karpathy's, its file's name and its captions."""
    images = read_json(path, dict).get("images")
    if not isinstance(images, list):
        raise ValueError(f"{path}: key 'images' is {images!r:.200}; accepted is a list of images.")
    for number, row in enumerate(images):
        where = f"{path}: images[{number}]"
        name, of_split, sentences = values_of(row, ("filename", "split", "sentences"), where)
        if of_split == split:
            if not isinstance(sentences, list):
                raise ValueError(f"{where}: sentences are {sentences!r:.200}; accepted is a list of them.")
            yield where, name, texts_of([values_of(sentence, ("raw",), where)[0] for sentence in sentences], where)


def read_flickr_tokens(path: Path) -> dict[str, list[str]]:
    """Captions by the name of their photo, from Flickr30k's own file."""
    captions: dict[str, list[str]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            place, tab, text = line.rstrip("\n").partition("\t")
            name, mark, _ = place.rpartition("#")
            if not tab or not mark:
                raise ValueError(
                    f"{path}, line {number} is {line!r:.200}; accepted is the file's name, #, a number, a tab, a caption."
                )
            captions.setdefault(name, []).append(text.strip())
    return captions


def values_of(row: Any, keys: Sequence[str], where: str) -> list[Any]:
    """The values of the keys, all of which a row must have."""
    if not isinstance(row, dict) or any(key not in row for key in keys):
        raise ValueError(f"{where} is {row!r:.200}; accepted is an object with the keys {', '.join(keys)}.")
    return [row[key] for key in keys]


def texts_of(texts: Any, where: str) -> tuple[str, ...]:
    """Captions, surrounding whitespace removed."""
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: the captions are {texts!r:.200}; accepted are texts.")
    return tuple(text.strip() for text in texts)
