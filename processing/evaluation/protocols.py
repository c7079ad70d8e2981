# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Protocols: every choice that affects a number, as fields of a dataclass."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def bounded(default: Any, least: float, most: float = math.inf) -> Any:
    """A field of a protocol whose numbers have a range, both ends accepted; `None` is outside of it and accepted too.

    Args:
        default: Of the field: a number, a tuple of numbers, or `None`.
        least: The lowest number.
        most: The highest.

    Example:
        >>> @dataclass(frozen=True)
        ... class Overlap(Protocol):
        ...     iou: float = bounded(0.5, 0, 1)
        >>> Overlap(iou=1.5)
        Traceback (most recent call last):
        ...
        ValueError: iou is 1.5; accepted is a number from 0 to 1.
    """
    return dataclasses.field(default=default, metadata={"range": (least, most)})


@dataclass(frozen=True)
class Protocol:
    """What all benchmarks decide. A benchmark's own protocol adds fields.

    Attributes:
        name: Of the preset, "default" or for example "official-pixclip". It stays when fields are changed; a result lists
            those that were.
        limit: Only so many items (images, in the order of the files), to try things; `None` for all.
        skip_missing: Leave out items whose image file is missing, counted, in place of the error.
        bootstrap: Resamples for the 95 % intervals; 0 for none.
        seed: Of the resamples and of everything else that is drawn.

    Raises:
        ValueError: If a number is outside of the range of its field, see `bounded`.
    """

    name: str = "default"
    limit: int | None = bounded(None, 1)
    skip_missing: bool = False
    bootstrap: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if "range" not in field.metadata or value is None:
                continue
            least, most = field.metadata["range"]
            if not all(least <= number <= most for number in (value if isinstance(value, tuple) else (value,))):
                accepted = f"a number of {least} or more" if most == math.inf else f"a number from {least} to {most}"
                or_none = ", or none" if field.default is None else ""
                raise ValueError(f"{field.name} is {value!r}; accepted is {accepted}{or_none}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, tuples as lists."""
        plain = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}

    def details(self) -> dict[str, Any]:
        """What values of fields that are names stand for, plain values; goes into the result beside the fields."""
        return {}

    def changed(self, values: Mapping[str, Any]) -> Protocol:
        """A copy with fields changed, each checked; strings are read as the field's type.

        Raises:
            ValueError: If a name is no field, or a value is none of those that the field accepts.

        Example:
            >>> Protocol().changed({"limit": "100", "skip_missing": "true"})
            Protocol(name='default', limit=100, skip_missing=True, bootstrap=1000, seed=0)
        """
        hints = get_type_hints(type(self))
        fields = [name for name in hints if name != "name"]
        new = {}
        for name, value in values.items():
            if name not in fields:
                raise ValueError(f"{name!r} is no field of {type(self).__name__}; accepted are {', '.join(fields)}.")
            try:
                new[name] = _read(value, hints[name])
            except ValueError as error:
                raise ValueError(f"{name} is {value!r}; accepted is {error}.") from None
        changed = dataclasses.replace(self, **new)
        return changed if changed != self else self


def _read(value: Any, hint: Any) -> Any:
    """A value of the type; raises with what is accepted."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None or value in ("none", "None", "null"):
            return None
        (inner,) = [kind for kind in arguments if kind is not type(None)]
        try:
            return _read(value, inner)
        except ValueError as error:
            raise ValueError(f"{error}, or none") from None
    if origin is Literal:
        for accepted in arguments:
            if value == accepted or value == str(accepted):
                return accepted
        raise ValueError(f"one of {', '.join(map(repr, arguments))}")
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or not parts or "" in [str(part).strip() for part in parts]:
            raise ValueError("a list, in text separated by commas")
        try:
            return tuple(_read(part.strip() if isinstance(part, str) else part, arguments[0]) for part in parts)
        except ValueError as error:
            raise ValueError(f"a list, in text separated by commas, each {error}") from None
    if hint is bool:
        for accepted in (True, False):
            if value is accepted or str(value).lower() == str(accepted).lower():
                return accepted
        raise ValueError("true or false")
    if hint is str and isinstance(value, str):
        return value
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = hint(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError({int: "a whole number", float: "a number"}[hint]) from None
        if hint is int and number != float(value):
            raise ValueError("a whole number")
        if not 0 <= number < math.inf:
            raise ValueError("a number of 0 or more")
        return number
    raise ValueError(f"{getattr(hint, '__name__', hint)}")
