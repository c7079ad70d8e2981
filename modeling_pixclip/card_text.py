# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Foreign text in a model card: as Markdown that shows it and does nothing else."""

import html
import re
import shlex
import unicodedata
from typing import Any


_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_URL = re.compile(r"\b(?!file:)([a-z][a-z0-9+.-]*://)((?:(?![,;][/~])[^\s\"'<>])+)", re.IGNORECASE)
# Where a path that tells of this machine begins: /a, //server, ~, ~me/, $HOME/, %HOME%\, ../, a/../, C:\ and \\server. Other
# slashes are those of relative paths and of closing tags.
_PATH_START = re.compile(
    r"(?<![\w./~\\-])(?!(?<=<)/\w+\s*>)(?:"
    r"~[\w.-]*[/\\]|\$\{?\w+\}?[/\\]|%\w+%[/\\]|(?:[\w.-]+[/\\])*\.\.[/\\]|/+(?=[^\s/])|[A-Za-z]:[\\/]|\\\\)"
)
# A quoted text within another one: the quotes stand where words begin and end.
_QUOTED = re.compile(r"""(?<![^\s=:,;(\[{])(["'])(.*?)\1(?![^\s,:;)\]}])""")
# Words of a shell, with the quotes that they are written with.
_WORD = re.compile(r"""(?:\\.|"[^"]*"|'[^']*'|[^\s"'\\]|["'\\])+""")
_SECRET_WORDS = ("token", "key", "secret", "password", "passwd", "passphrase", "credential", "secrets", "passwords")
_SECRET_WORDS += ("credentials",)
_HUB_TOKEN = re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}")
_ASSIGNED = re.compile(r"(?<![\w.-])(-*[A-Za-z_][\w.-]*)=(\"[^\"]*\"|'[^']*'|[^\s,;&]*)")
_ASSIGNED_IN_JSON = re.compile(r"""(["'])([\w.-]+)\1(\s*:\s*)(?:"[^"]*"|'[^']*'|[^\s,}\]]+)""")
MASKED = "***"
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


def _is_secret(name: str) -> bool:
    """Whether the value of an option or a variable of this name is nobody's business."""
    words = re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())
    return any(word.endswith(_SECRET_WORDS) for word in words)


def without_secrets(value: Any) -> str:
    """
    A text without tokens of the Hub, without values given to names that hold token, key, secret or password, and without
    what stands in a URL before its host or after its path.

    Example:
        >>> from modeling_pixclip.card_text import without_secrets
        >>> without_secrets("HF_TOKEN=abc https://me:word@host/a.tar?signature=b")
        'HF_TOKEN=*** https://host/a.tar?***'
    """

    def url(found: re.Match) -> str:
        address = re.sub(r"^[^/?#]*@", "", found.group(2))
        bare = re.split(r"[?#]", address, maxsplit=1)[0]
        return found.group(1) + bare + (f"?{MASKED}" if bare != address else "")

    def assigned(found: re.Match) -> str:
        return f"{found.group(1)}={MASKED}" if _is_secret(found.group(1)) else found.group()

    def in_json(found: re.Match) -> str:
        quote, name, colon = found.groups()
        return f'{quote}{name}{quote}{colon}"{MASKED}"' if _is_secret(name) else found.group()

    text = _ASSIGNED_IN_JSON.sub(in_json, _ASSIGNED.sub(assigned, _URL.sub(url, one_line(value))))
    return _HUB_TOKEN.sub(MASKED, text)


def without_local_paths(value: Any) -> str:
    """
    A text in which of every path of this machine only the last part is left, and no secret is.

    Such paths are absolute, or begin with `~`, a variable or `..`. As folders may have spaces in their names, a path goes
    on to the end of the text, of the quotes that it stands in, or to where the next path begins.

    Example:
        >>> from modeling_pixclip.card_text import without_local_paths
        >>> without_local_paths("/home/me/my docs/train.jsonl"), without_local_paths("regions/train.jsonl")
        ('train.jsonl', 'regions/train.jsonl')
        >>> without_local_paths('{"a": "/home/me/b", "c": "https://host/d/e"}')
        '{"a": "b", "c": "https://host/d/e"}'
    """
    return _without_paths(re.sub(r"\bfile:/+", "/", without_secrets(value), flags=re.IGNORECASE))


def _without_paths(text: str) -> str:
    told, end = [], 0
    for found in _QUOTED.finditer(text):
        told += [_last_parts(text[end : found.start()]), f"{found[1]}{_without_paths(found[2])}{found[1]}"]
        end = found.end()
    return "".join([*told, _last_parts(text[end:])])


def _last_parts(text: str) -> str:
    """Of a text without quoted ones."""
    told, end = [], 0
    for found in _URL.finditer(text):
        told += [_last_parts_between_urls(text[end : found.start()]), found.group()]
        end = found.end()
    return "".join([*told, _last_parts_between_urls(text[end:])])


def _last_parts_between_urls(text: str) -> str:
    starts = [found.start() for found in _PATH_START.finditer(text)]
    paths = [text[start:end] for start, end in zip(starts, [*starts[1:], None])]
    told = [re.sub(r"^~[\w.-]*", "~", re.sub(r"^.*[/\\](?=[^/\\]*\w)", "", path)) for path in paths]
    return text[: starts[0] if starts else None] + "".join(told)


def command_line(words: list[str]) -> str:
    """
    Words of a command as a line of a shell, without secrets and without paths of this machine.

    Args:
        words (`list[str]`): As `sys.argv` has them, which tells where a path with spaces ends.

    Example:
        >>> from modeling_pixclip.card_text import command_line
        >>> command_line(["python", "train.py", "--data", "/home/me/my docs/a.jsonl", "--hub_token", "abc"])
        'python train.py --data a.jsonl --hub_token ***'
    """
    # Asterisks would be quoted.
    mark = "PIXCLIP_MASKED"
    told = [without_local_paths(word).replace(MASKED, mark) for word in _values_masked(words)]
    return shlex.join(told).replace(mark, MASKED)


def _values_masked(words: list[str]) -> list[str]:
    """Words of a command, with or without the quotes of a shell, without the values of options that hold secrets."""
    masked, secret = [], False
    for word in words:
        assigned = re.match(r"[\"']?(-*[A-Za-z_][\w.-]*)=", word)
        is_option = word.lstrip("\"'").startswith("-")
        if assigned and _is_secret(assigned.group(1)):
            masked.append(f"{assigned.group(1)}={MASKED}")
        else:
            masked.append(MASKED if secret and not is_option else word)
        secret = (is_option and not assigned and _is_secret(word)) or (secret and not is_option)
    return masked


def told_command(value: Any) -> str:
    """
    A line of a shell, without secrets and without paths of this machine; a path with spaces must be quoted in it.

    Example:
        >>> from modeling_pixclip.card_text import told_command
        >>> told_command("cd /home/me/a && train --data '/home/me/my docs/a.jsonl' --map key:/home/b --api_key=abc")
        "cd a && train --data 'a.jsonl' --map key:b --api_key=***"
    """
    return " ".join(without_local_paths(word) for word in _values_masked(_WORD.findall(without_secrets(value))))


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


__all__ = [
    "NOT_RECORDED",
    "cell",
    "code",
    "command_line",
    "count",
    "duration",
    "fenced",
    "number",
    "one_line",
    "told_command",
    "without_local_paths",
    "without_secrets",
]
