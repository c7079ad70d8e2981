# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reading the files of retrieval benchmarks: JSON in its layouts, errors with the place in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


_OPENING, _COMMA = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")


def read_text(path: Path) -> str:
    """A file's text, with or without a byte order mark; an error names the file."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}); accepted is UTF-8. Convert it.") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1; no other separators, which JSON may have in texts."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line


def read_json(path: Path, kind: type[list] | type[dict]) -> Any:
    """What a file holds, which must be of the kind."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}; accepted is a {kind.__name__} at the top.")
    return content


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Where each line stands, and what it holds."""
    for number, line in read_lines(path):
        try:
            yield f"{path}, line {number}", json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}).") from error


def read_first_records(path: Path, limit: int | None, piece: int = 1 << 24) -> list[Any]:
    """The first records of a list in JSON, for files too large to be read as a whole: no further than it must.

    Each try takes twice as much text as the one before. A file that has fewer records, or is malformed up to there, is read
    as a whole, as is any file without a limit.
    """
    decoder, text = json.JSONDecoder(), ""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while limit is not None and (more := file.read(max(len(text), piece))):
                text += more
                records, place, before = [], 0, _OPENING
                while len(records) < limit and (gap := before.match(text, place)):
                    try:
                        record, place = decoder.raw_decode(text, gap.end())
                    except json.JSONDecodeError:
                        break
                    records.append(record)
                    before = _COMMA
                if len(records) == limit:
                    return records
    except UnicodeDecodeError:
        pass  # Told by read_json.
    return read_json(path, list)[:limit]


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
    for number, line in read_lines(path):
        place, tab, text = line.partition("\t")
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
