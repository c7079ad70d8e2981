# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Keeps secrets out of what is written: settings, and what stands for them in fingerprints and keys."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from .config import LongGritSettings


_SECRET = re.compile(r"key|token|secret|passw|pwd|auth|credential|jwt|bearer|cookie", re.IGNORECASE)
# Shorter ones, such as "vllm", are parts of words that are no secrets.
_LEAST_SECRET = 8
_HIDDEN = "***"
# A name such as "org/model" is none.
_IS_PATH = re.compile(r"[\\/~]|\.{1,2}[\\/]|[A-Za-z]:[\\/]")


def redacted(settings: LongGritSettings, secrets: Collection[str]) -> dict[str, Any]:
    """The settings as they may be written to a file.

    Of `extra_body` only the names, numbers and booleans are left. Elsewhere, everything under a name that is that of a
    secret is hidden, but for numbers (`max_tokens`), and so is each secret: of fewer than 8 characters only where it is
    a whole value.

    Args:
        settings: The settings.
        secrets: The values of the environment variables that hold keys.

    Example:
        >>> server = {"base_url": "http://localhost:8000/v1", "extra_body": {"top_k": 20, "jwt": {"value": "abc"}}}
        >>> source = {"format": "folder", "path": "regions"}
        >>> settings = LongGritSettings(output_dir="out", source=source, model="m", servers={"a": server})
        >>> redacted(settings, ())["servers"]["a"]["extra_body"]
        {'top_k': 20, 'jwt': '***'}
    """
    content = _redacted(settings.model_dump(mode="json"), sorted(secrets, key=len, reverse=True))
    for name, server in settings.servers.items():
        content["servers"][name]["extra_body"] = _names_only(server.extra_body)
    return content


def extra_bodies(settings: LongGritSettings, stage: str) -> tuple[str, ...]:
    """What the servers of a stage are sent beside its parameters, as JSON, without what is secret by its name.

    Each different `extra_body` is there once, so that another server with the same one changes nothing; none, where all
    are empty.

    Args:
        settings: The run.
        stage: Name of the stage.
    """
    if settings.engine_of(stage) != "openai":
        return ()
    bodies = [_without_secrets(server.extra_body) for server in settings.servers_of(stage).values()]
    return tuple(sorted({json.dumps(body, sort_keys=True, default=str) for body in bodies})) if any(bodies) else ()


def published_model(name: str) -> str:
    """The name of a model without the folder of one that is given by its path.

    Example:
        >>> published_model("/data/ours/vlm-7b/"), published_model("org/vlm-7b")
        ('vlm-7b', 'org/vlm-7b')
    """
    if _IS_PATH.match(name):
        return re.split(r"[\\/]", name.rstrip("\\/"))[-1] or name
    return name


def published_server(address: str) -> str:
    """The address of a server without its path, where some expect a key; the name of a local engine as it is.

    Example:
        >>> published_server("https://gateway:8443/k-123/v1"), published_server("rules")
        ('https://gateway:8443', 'rules')
    """
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else address


def _is_secret(name: Any, value: Any) -> bool:
    return _SECRET.search(str(name)) is not None and not _is_plain(value)


def _is_plain(value: Any) -> bool:
    """Whether it holds numbers and booleans alone, as `stop_token_ids` does."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, int | float)


def _redacted(content: Any, secrets: list[str], name: str = "") -> Any:
    # `api_key_env` names a variable.
    if name != "api_key_env" and _is_secret(name, content):
        return _HIDDEN
    if isinstance(content, dict):
        return {key: _redacted(value, secrets, key) for key, value in content.items()}
    if isinstance(content, list):
        return [_redacted(value, secrets) for value in content]
    if isinstance(content, str):
        for secret in secrets:
            if content == secret:
                return _HIDDEN
            if len(secret) >= _LEAST_SECRET:
                content = content.replace(secret, _HIDDEN)
    return content


def _names_only(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _HIDDEN if _is_secret(key, value) else _names_only(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_names_only(value) for value in content]
    return content if _is_plain(content) else _HIDDEN


def _without_secrets(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_secrets(value) for key, value in content.items() if not _is_secret(key, value)}
    if isinstance(content, list | tuple):
        return [_without_secrets(value) for value in content]
    return content
