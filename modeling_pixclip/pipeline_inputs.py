# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Inputs of a pipeline on their way through worker processes, and its answers as they are read."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from transformers import Pipeline


class PreparedInputs(Dataset):
    """The inputs of one call, each through `preprocess` when it is asked for."""

    def __init__(self, pipe: Pipeline, inputs: Any, options: dict):
        self.pipe, self.inputs, self.options = pipe, inputs, options

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, place: int) -> "dict | RefusedInput":
        return _prepare(self.pipe, self.inputs[place], place, self.options)


class PreparedStream(IterableDataset):
    def __init__(self, pipe: Pipeline, inputs: Iterable, options: dict):
        self.pipe, self.inputs, self.options = pipe, inputs, options

    def __iter__(self) -> "Iterator[dict | RefusedInput]":
        for place, item in enumerate(self.inputs):
            yield _prepare(self.pipe, item, place, self.options)


class RefusedInput:
    """Why an input is refused, on the way from a worker process."""

    def __init__(self, error: ValueError | TypeError):
        self.kind, self.message = (ValueError if isinstance(error, ValueError) else TypeError), str(error)


def _prepare(pipe: Pipeline, item: Any, place: int, options: dict) -> dict | RefusedInput:
    try:
        return pipe.preprocess(item, place=place, **options)
    except (ValueError, TypeError) as error:
        # Raised in a worker, it would reach the caller as a traceback in text.
        if get_worker_info() is None:
            raise
        return RefusedInput(error)


class LazyResults:
    """Answers of a pipeline, made batch by batch as they are read."""

    def __init__(self, loader: DataLoader, count: int | None, answer: Any):
        self._count = count
        self._answers = (result for batch in loader for result in answer(batch))

    def __len__(self) -> int:
        if self._count is None:
            raise TypeError("the results of a stream have no length")
        return self._count

    def __iter__(self) -> "LazyResults":
        return self

    def __next__(self) -> Any:
        return next(self._answers)
