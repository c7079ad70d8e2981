# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What an engine is asked and what it answers, whichever engine it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from .records import RegionWork


@dataclass(frozen=True)
class Message:
    """One message of a request.

    Attributes:
        role: `"system"`, `"user"` or `"assistant"`.
        text: Its text.
        images: Names of the views that stand before the text, see `region_views`.
    """

    role: str
    text: str
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One question to a model. Equal requests have equal keys, in every process and on every machine.

    Attributes:
        item_id: Identifier of the region or image.
        stage: Name of the stage.
        model: Name of the model, as configured.
        messages: The conversation.
        prompt_hash: Hash of the prompt file, 16 hex digits.
        schema: JSON schema of the answer, or `None` for plain text.
        parameters: Sampling settings, such as `temperature` and `max_tokens`.
        image_side: Longest side in pixels of the pictures.
        generation: How often the stage was repeated on purpose; another number is another request.
        extra_bodies: What servers are sent beside the parameters, see `ServerSettings.extra_body`: each different one as JSON,
            without secrets; empty where there is none.
        work: The region with its image, from which an engine takes views, and the rule-based one its facts.
    """

    item_id: str
    stage: str
    model: str
    messages: tuple[Message, ...]
    prompt_hash: str
    schema: Mapping[str, Any] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    image_side: int = 768
    generation: int = 0
    extra_bodies: tuple[str, ...] = ()
    work: RegionWork | None = field(default=None, compare=False, repr=False)

    @cached_property
    def key(self) -> str:
        """32 hex digits that stand for all of the request but `work`."""
        messages = [[message.role, message.text, message.images] for message in self.messages]
        asked = [self.item_id, self.stage, self.model, messages, self.prompt_hash, self.schema]
        content = json.dumps(
            [*asked, self.parameters, self.image_side, self.generation, *self.extra_bodies],
            sort_keys=True,
            ensure_ascii=False,
        )
        # Texts of models and sources may hold halves of surrogate pairs.
        return hashlib.blake2b(content.encode(errors="surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        text: The text, as it came.
        server: Address of the server without credentials, or the name of a local engine.
        time: When it came, ISO 8601 in UTC.
        prompt_tokens: Tokens read, as the server counts; 0 where it does not.
        completion_tokens: Tokens written.
        finish_reason: Why it ends, such as `"stop"`, `"length"`, or `"content_filter"` for a refusal, where the server says.
    """

    text: str
    server: str
    time: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str | None = None


class RequestFailed(Exception):
    """Raised by an engine that got no answer to one request, whatever was tried; says what was tried.

    The region is then rejected with the reason `"request_failed"`.

    Example:
        >>> raise RequestFailed("6 attempts on http://localhost:8000/v1 ended in status 500.")
        Traceback (most recent call last):
        ...
        processing_pixclip.longgrit.engines.RequestFailed: 6 attempts on http://localhost:8000/v1 ended in status 500.
    """


class EngineUnavailable(Exception):
    """Raised by an engine when no request can be answered any more, as when all servers are down for too long.

    The run then stops, and goes on from there when it is started again.

    Example:
        >>> raise EngineUnavailable("http://localhost:8000/v1 answers nothing for 900 s.")
        Traceback (most recent call last):
        ...
        processing_pixclip.longgrit.engines.EngineUnavailable: http://localhost:8000/v1 answers nothing for 900 s.
    """


class Engine(Protocol):
    """Answers requests; many at a time, as far as its own limits allow. `run_pipeline(engines=...)` takes any.

    Example:
        >>> class Parrot:
        ...     async def ask(self, request):
        ...         return Answer(request.messages[-1].text, server="parrot", time="2026-01-01T00:00:00+00:00")
        ...
        ...     async def close(self):
        ...         pass
        >>> import asyncio
        >>> request = Request("1#0", "fuse", "parrot", (Message("user", "Hello."),), prompt_hash="0" * 16)
        >>> asyncio.run(Parrot().ask(request)).text
        'Hello.'
    """

    async def ask(self, request: Request) -> Answer:
        """Answers one request.

        Raises:
            RequestFailed: If there is no answer to this one.
            EngineUnavailable: If there will be none to any.
        """

    async def close(self) -> None:
        """Frees connections and threads."""
