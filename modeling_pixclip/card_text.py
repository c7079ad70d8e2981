# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Foreign text in a model card: as Markdown that shows it and does nothing else."""

import html
import re
import unicodedata
from typing import Any


_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_URL = re.compile(r"(\b(?!file:)[a-z][a-z0-9+.]+://\S+)")
# An absolute path, of POSIX or Windows, its last part apart; other slashes are those of relative paths.
_ABSOLUTE = re.compile(r"(?<![\w./~<-])(?:~?/|[A-Za-z]:[\\/]|\\\\)(?:[^\s\"'=,;:/\\]+[/\\]+)*([^\s\"'=,;:/\\]*)")
NOT_RECORDED = "not recorded"


def one_line(value: Any) -> str:
    """
    A value as a text of one line, without control characters.

    Example:
        >>> from modeling_pixclip.card_text import one_line
        >>> one_line("a\\n---\\nb")
        'a --- b'
    """
    text = "".join(
        " " if unicodedata.category(mark) in ("Cc", "Cf", "Cs", "Zl", "Zp") else mark for mark in str(value)
    )
    return " ".join(text.split())


def without_local_paths(value: Any) -> str:
    """
    A text in which of every absolute path only the last part is left.

    Example:
        >>> from modeling_pixclip.card_text import without_local_paths
        >>> without_local_paths("train --data /home/me/coco/train.jsonl --map key:/home/b --url https://host/a/b")
        'train --data train.jsonl --map key:b --url https://host/a/b'
    """
    parts = _URL.split(re.sub(r"file:/+", "/", one_line(value)))
    # Every second part is a URL.
    return "".join(part if place % 2 else _ABSOLUTE.sub(r"\1", part) for place, part in enumerate(parts))


def cell(value: Any) -> str:
    """
    A value as Markdown text, fit for a table: nothing in it is markup.

    Example:
        >>> from modeling_pixclip.card_text import cell
        >>> cell("<b>a|b</b> *c*")
        '&lt;b&gt;a\\\\|b&lt;/b&gt; \\\\*c\\\\*'
    """
    if value is None:
        return NOT_RECORDED
    return _SPECIAL.sub(r"\\\1", html.escape(one_line(value), quote=False))


def code(value: Any) -> str:
    """
    A value as code in a table.

    Example:
        >>> from modeling_pixclip.card_text import code
        >>> code("a`b|c")
        '``a`b\\\\|c``'
    """
    text = one_line(value).replace("<!--", "<! --").replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}"


def fenced(value: Any, language: str) -> str:
    """
    A value as a block of code of one line.

    Example:
        >>> from modeling_pixclip.card_text import fenced
        >>> fenced("ls", "bash").splitlines()[1]
        'ls'
    """
    text = one_line(value).replace("<!--", "<! --")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def number(value: Any) -> str:
    """
    A count or a measured value as tables show it.

    Example:
        >>> from modeling_pixclip.card_text import number
        >>> number(12345), number(0.9418283), number(0.0027), number(None)
        ('12,345', '0.942', '0.003', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return cell(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 1e4 or value == 0 else f"{value:.4g}"


def count(value: int, thing: str, things: str | None = None) -> str:
    """
    A number of things.

    Example:
        >>> from modeling_pixclip.card_text import count
        >>> count(1, "process", "processes"), count(2000, "step")
        ('1 process', '2,000 steps')
    """
    return f"{value:,} {thing if value == 1 else things or f'{thing}s'}"


def duration(seconds: float) -> str:
    """
    A time in words.

    Example:
        >>> from modeling_pixclip.card_text import duration
        >>> duration(4000), duration(75), duration(2.5)
        ('1 h 6 min', '1 min 15 s', '2.5 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


__all__ = ["NOT_RECORDED", "cell", "code", "count", "duration", "fenced", "number", "one_line", "without_local_paths"]
