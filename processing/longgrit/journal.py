# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The answers of a shard's finished requests, on disk the moment they come, so that none is asked for twice."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO

from .engines import Answer, Engine, Request


logger = logging.getLogger(__name__)

_FIELDS = attrgetter(*(field.name for field in fields(Answer)))


class AnswerJournal:
    """Answers of one shard; one line of JSON each, `[key of the request, fields of the answer]`.

    A line is written by one call, so a process that is killed leaves at most the last one torn: it is cut off when the
    journal is opened, and its request is asked again. A request whose engine raised `RequestFailed` has no line. The file is
    locked until the journal is closed, or its process ends.

    Args:
        path: The file; made where it is missing.
        on_answer: Called with each answer that an engine gave, not with those that were in the file.

    Raises:
        OSError: If the file cannot be read or mended.
        RuntimeError: If another writer holds it.

    Example:
        >>> import asyncio, tempfile
        >>> from processing_pixclip.longgrit.engines import Message
        >>> class Echo:
        ...     async def ask(self, request):
        ...         print("asked")
        ...         return Answer(request.messages[0].text, server="echo", time="2026-01-01T00:00:00+00:00")
        >>> request = Request("1#0", "fuse", "echo", (Message("user", "A red cup."),), prompt_hash="0" * 16)
        >>> path = Path(tempfile.mkdtemp()) / "00000.jsonl"
        >>> for _ in range(2):
        ...     journal = AnswerJournal(path)
        ...     print(asyncio.run(journal.ask(Echo(), request)).text)
        ...     journal.close()
        asked
        A red cup.
        A red cup.
    """

    def __init__(self, path: str | os.PathLike, on_answer: Callable[[Answer], None] | None = None):
        self.path = Path(path)
        self._on_answer = on_answer
        self._file: BinaryIO | None = None
        self._open()
        # Those of earlier runs alone: no request is asked twice in one.
        self._answers = _read(self._file, self.path)

    def __len__(self) -> int:
        return len(self._answers)

    async def ask(self, engine: Engine, request: Request) -> Answer:
        """The answer in the journal, or else the engine's, written down before it is returned.

        Args:
            engine: Who is asked.
            request: The question.

        Raises:
            RequestFailed: From the engine.
            EngineUnavailable: From the engine.
            OSError: If the answer cannot be written, as on a full disk.
            RuntimeError: If the journal was closed and another writer holds it.
        """
        answer = self._answers.get(request.key)
        if answer is None:
            answer = await engine.ask(request)
            self._append(request.key, answer)
            if self._on_answer is not None:
                self._on_answer(answer)
        return answer

    def close(self) -> None:
        """Makes what was written durable and closes the file; the journal can still be asked."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open(self.path, "a+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RuntimeError(
                f"{self.path} is being written by another run; wait for its end, or set another output_dir."
            ) from None
        self._file = file

    def _append(self, key: str, answer: Answer) -> None:
        if self._file is None:
            self._open()
        descriptor = self._file.fileno()
        line = json.dumps([key, *_FIELDS(answer)]).encode() + b"\n"
        written = os.write(descriptor, line)
        if written != len(line):
            # The next line would be lost together with half of this one.
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
            raise OSError(f"{self.path} took {written} of {len(line)} bytes of an answer; is the disk full?")


def _read(file: BinaryIO, path: Path) -> dict[str, Answer]:
    answers = {}
    end = 0
    # Unbuffered, it would be read byte by byte.
    with open(file.fileno(), "rb", closefd=False) as lines:
        lines.seek(0)
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                logger.warning("%s: line %d was torn when its writer was stopped; cut off.", path, number)
                file.truncate(end)
                break
            end += len(line)
            try:
                key, answer = _parsed(line)
            except (ValueError, TypeError, RecursionError) as error:
                # A machine that lost power may leave such lines; the request is asked again.
                logger.warning("%s: line %d is no answer (%s); left out.", path, number, error)
            else:
                answers[key] = answer
    return answers


def _parsed(line: bytes) -> tuple[str, Answer]:
    key, *values = json.loads(line)
    answer = Answer(*values)
    texts = (key, answer.text, answer.server, answer.time, answer.finish_reason or "")
    counts = (answer.prompt_tokens, answer.completion_tokens)
    # `type`, since a boolean is an integer too.
    if not all(type(text) is str for text in texts) or not all(type(count) is int for count in counts):
        raise TypeError("a field is of a wrong type")
    return key, answer
