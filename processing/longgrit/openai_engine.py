# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Asks OpenAI-compatible servers."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import openai
import tenacity

from .config import LongGritSettings, ServerSettings
from .engines import Answer, Message, Request, RequestFailed
from .region_views import data_url, render_view
from .server_pool import Server, ServerPool


logger = logging.getLogger(__name__)

# What is read of one answer: bytes of the body, of one line where it is streamed, and characters of the text.
MAX_BODY = 32 * 2**20
MAX_LINE = 4 * 2**20
MAX_TEXT = 200_000
MAX_ERROR = 64 * 2**10
# Read beyond MAX_TEXT of a streamed answer, so that the cut goes through no half of a key.
_MARGIN = 4096
# Shorter ones are words such as "EMPTY", no secrets.
_SHORTEST_KEY = 8
_SHOWN = 500
_MOST_TOKENS = 10**9
_WEAKER_MODE = {"schema": "object", "object": "off"}
_REMEDIES = {
    401: "put a valid key into the environment variable that `api_key_env` of server {name!r} names",
    402: "the account has no credit",
    403: "the key of server {name!r} may not use this model",
    404: "see that `base_url` of server {name!r} ends as the server's own (often in /v1) and that `model` is one it serves",
}


class _Unanswered(Exception):
    """One attempt that brought no answer, and may be made again."""

    def __init__(self, server: Server, what: str, *, retry_after: float | None = None, too_many: bool = False):
        super().__init__(f"{server.url}: {what}")
        self.server, self.retry_after, self.too_many = server, retry_after, too_many
        self.what, self.time = what, time.monotonic()

    @property
    def put_off(self) -> bool:
        """Whether the server only asks for patience, and says how much."""
        return self.too_many and self.retry_after is not None


class _Empty(_Unanswered):
    """An answer without a text: the server itself is well."""


class _BadBody(Exception):
    """A body that holds no answer."""


class OpenAIEngine:
    """Asks models behind OpenAI-compatible servers, by `/chat/completions`.

    A request goes to the server with the least load of those that its stage may use. Limits are those of the server, over
    all stages. What brings no answer is tried again, on another server where there is one: no connection, timeouts, 408,
    429, 5xx, cut bodies and ones that are no answer, empty answers. Waits grow from `min_wait` to `max_wait`. A server that
    answers 429 or 503 with Retry-After is left alone until then, and the attempt does not count. A model that fails
    `breaker_failures` times in a row at a server is left alone there for `breaker_wait` seconds. A server that refuses
    `response_format` (400) is asked with a weaker one from then on, which is logged.

    Servers at a loopback address are asked directly, whatever proxy the environment names. Headers that the environment
    names for `openai` (OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS) go to api.openai.com alone.

    Args:
        settings: The run. Keys are read from the environment variables that its servers name.

    Raises:
        ValueError: If such a variable is not set, or a `base_url` holds the key.

    Example:
        >>> settings = LongGritSettings(
        ...     output_dir="out",
        ...     source={"format": "folder", "path": "regions.jsonl"},
        ...     model="Qwen/Qwen2.5-VL-72B-Instruct",
        ...     servers={"vllm": {"base_url": "http://localhost:8000/v1", "max_concurrency": 64}},
        ... )
        >>> engine = OpenAIEngine(settings)
        >>> answer = await engine.ask(request)  # doctest: +SKIP
    """

    def __init__(self, settings: LongGritSettings):
        self._settings = settings
        names = dict.fromkeys(
            name
            for stage in settings.enabled_stages
            if settings.engine_of(stage) == "openai"
            for name in settings.servers_of(stage)
        )
        self._keys = {name: _key_of(name, settings.servers[name]) for name in names}
        self._servers = {name: Server(name, settings.servers[name]) for name in names}
        self._clients = {name: _client(settings.servers[name], key) for name, key in self._keys.items()}
        self._headers = {name: _headers(settings.servers[name], key) for name, key in self._keys.items()}
        self._json_modes = {name: settings.servers[name].json_mode for name in names}
        self._without_usage: set[str] = set()
        self._pool = ServerPool()

    async def ask(self, request: Request) -> Answer:
        """Answers one request.

        Args:
            request: The request; its pictures are drawn from `request.work`.

        Returns:
            The answer. One longer than 200,000 characters is cut, with the finish_reason `"length"`. Where the model, or a
            filter of its server, refuses to answer, the finish_reason is `"content_filter"`, and the text what it says instead.

        Raises:
            RequestFailed: If there was no answer in `max_attempts` attempts, or the request was refused as such (400, 403).
            EngineUnavailable: If all servers of the stage refuse the key or the model, if none has answered any request for
                `outage_timeout` seconds, or if 20 requests of a stage in a row failed and none was answered before (200
                once one was).
            ValueError: If the image cannot be read.
        """
        servers = [self._servers[name] for name in self._settings.servers_of(request.stage)]
        tried: list[_Unanswered] = []

        def stop(state: tenacity.RetryCallState) -> bool:
            failure = _failure(state)
            settings = failure.server.settings
            if failure.put_off:
                # Others are answered meanwhile, else the run would stop: it is this request that it has no room for.
                return len(tried) >= settings.max_attempts and failure.time - tried[0].time >= settings.outage_timeout
            return sum(not other.put_off for other in tried) >= settings.max_attempts

        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_Unanswered),
            stop=stop,
            wait=_wait,
            before_sleep=self._before_wait,
            reraise=True,
        )
        try:
            return await retrying(self._attempt, request, servers, tried)
        except _Unanswered:
            counts = Counter(map(str, tried))
            what = "; ".join(f"{text} ({count} times)" if count > 1 else text for text, count in counts.items())
        error = RequestFailed(f"no answer in {len(tried)} attempts: {what}")
        self._count_failed(tried[-1].server, servers, request, error)
        raise error

    async def close(self) -> None:
        """Closes all connections."""
        for client in self._clients.values():
            await client.close()

    async def _attempt(self, request: Request, servers: Sequence[Server], tried: list[_Unanswered]) -> Answer:
        """Asks one server once, and another one right away if it will never answer."""
        while True:
            server = await self._pool.acquire(servers, request.model, tried[-1].server if tried else None)
            known = server.model(request.model)
            noted = False
            try:
                result = await self._ask_server(server, request, servers)
                noted = True
                self._note(server, request, result)
            finally:
                if not noted:
                    known.breaker.abandoned()
                self._pool.release(server)
            if isinstance(result, Answer):
                return result
            if isinstance(result, _Unanswered):
                tried.append(result)
                self._pool.check(servers, request.model)
                raise result
            if isinstance(result, RequestFailed):
                self._count_failed(server, servers, request, result)
                raise result
            # The server refuses the model or the key.
            known.refusal = result
            logger.warning("%s is not asked for %r any more: %s", server.url, request.model, result)
            self._pool.hand_out()

    def _note(self, server: Server, request: Request, result: Answer | _Unanswered | RequestFailed | str) -> None:
        known = server.model(request.model)
        if isinstance(result, Answer):
            known.answered, known.refusal = True, None
            known.failed.answered(request.stage)
        if not isinstance(result, _Unanswered) or isinstance(result, _Empty):
            if known.breaker.answered():
                logger.warning("%s answers again for %r", server.url, request.model)
            return
        known.last_failure = result.what
        if result.put_off:
            # With jitter: other processes were told the same.
            jitter = random.uniform(0, server.settings.min_wait)
            seconds = min(result.retry_after, server.settings.outage_timeout) + jitter
            known.breaker.pause(seconds)
            self._pool.leave_alone(seconds)
        elif result.too_many:
            known.breaker.refused()
        elif known.breaker.failed():
            wait, failures = server.settings.breaker_wait, server.settings.breaker_failures
            logger.warning("%r is left alone for %g s after %d failures: %s", request.model, wait, failures, result)
            self._pool.leave_alone(wait)

    def _count_failed(self, server: Server, servers: Sequence[Server], request: Request, error: RequestFailed) -> None:
        """Raises `EngineUnavailable` if all requests of the stage fail, whatever they ask."""
        known = server.model(request.model)
        if known.failed.failed(request.stage) and known.refusal is None:
            known.refusal = (
                f"{known.failed.count(request.stage)} requests of the stage {request.stage!r} in a row got no answer from "
                f"{server.url}, the last: {error} (see that the model takes what the stage sends: pictures, "
                f"`stages.{request.stage}.parameters`, and `extra_body` of server {server.name!r}; that the key may use it; "
                f"and the server's log)"
            )
            logger.warning("%s is not asked for %r any more: %s", server.url, request.model, known.refusal)
            self._pool.hand_out()
        if known.refusal is not None:
            self._pool.check(servers, request.model)

    def _before_wait(self, state: tenacity.RetryCallState) -> None:
        failure = _failure(state)
        logger.info("again in %.1f s: %s", state.next_action.sleep, failure)
        if failure.too_many and not failure.put_off:
            self._pool.rest(failure.server, state.next_action.sleep)

    async def _ask_server(
        self, server: Server, request: Request, servers: Sequence[Server]
    ) -> Answer | _Unanswered | RequestFailed | str:
        """The answer, or what came in its place; a text if the server will never answer for this model."""
        messages = await _messages(request)
        mode, weaker = self._json_modes[server.name], False
        while True:
            usage = server.name not in self._without_usage
            try:
                async with asyncio.timeout(server.settings.total_timeout):
                    text, tokens, finish = await self._receive(server, request, messages, mode, usage)
            except TimeoutError:
                return _Unanswered(server, f"no whole answer within {server.settings.total_timeout:g} s")
            except openai.APIStatusError as error:
                status, says = error.status_code, self._without_key(server, _message_of(error))
                if status in (400, 422) and server.settings.stream and usage and "stream_options" in says:
                    self._without_usage.add(server.name)
                    logger.warning("%s counts no tokens of streamed answers: %s", server.url, says)
                    continue
                if status == 400 and error.code == "content_filter":
                    return self._answer(server, says, (0, 0), "content_filter")
                if status in (400, 422) and request.schema is not None and mode in _WEAKER_MODE:
                    mode, weaker, reason = _WEAKER_MODE[mode], True, says
                    continue
                return self._refusal(server, request, servers, error, says)
            except openai.APITimeoutError:
                return _Unanswered(server, f"nothing came for {server.settings.request_timeout:g} s")
            except (openai.APIError, _BadBody) as error:
                cause = f" ({type(error.__cause__).__name__}: {error.__cause__})" if error.__cause__ else ""
                return _Unanswered(server, self._without_key(server, f"{error}{cause}"))
            break
        if weaker and self._json_modes[server.name] != mode:
            # Only now is it known that it was the form that the server refused.
            self._json_modes[server.name] = mode
            logger.warning(
                "%s refuses json_mode %r, %r is used: %s", server.url, server.settings.json_mode, mode, reason
            )
        if not text.strip() and finish not in ("length", "content_filter"):
            return _Empty(server, f"an empty answer (finish_reason {finish!r})")
        return self._answer(server, text, tokens, finish)

    def _answer(self, server: Server, text: str, tokens: tuple[int, int], finish: str | None) -> Answer:
        text = self._without_key(server, text, shown=None)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return Answer(text[:MAX_TEXT], server.url, now, *tokens, "length" if len(text) > MAX_TEXT else finish)

    async def _receive(
        self, server: Server, request: Request, messages: list[dict[str, Any]], mode: str, usage: bool
    ) -> tuple[str, tuple[int, int], str | None]:
        body = {**request.parameters, **server.settings.extra_body}
        if request.schema is not None and mode != "off":
            body["response_format"] = _response_format(request, mode)
        if server.settings.stream:
            body |= {"stream": True, **({"stream_options": {"include_usage": True}} if usage else {})}
        asked = self._clients[server.name].chat.completions.with_streaming_response.create(
            model=request.model,
            messages=messages,
            extra_body=body,
            extra_headers=self._headers[server.name],
        )
        async with asked as response:
            streamed = response.headers.get("content-type", "").startswith("text/event-stream")
            answer = _EventStream() if streamed else _JsonBody()
            parts = response.iter_bytes()
            while not answer.ended:
                try:
                    part = await anext(parts, None)
                except Exception as error:
                    # Whatever the HTTP client below raises; which one that is changes with openai's version.
                    problem = f"the answer was cut off ({type(error).__name__}: {error})"
                else:
                    if part is None:
                        break
                    answer.feed(part)
                    continue
                raise _BadBody(problem)
        return answer.result()

    def _refusal(
        self, server: Server, request: Request, servers: Sequence[Server], error: openai.APIStatusError, says: str
    ) -> _Unanswered | RequestFailed | str:
        status = error.status_code
        what = f"HTTP {status}: {says}"
        known = server.model(request.model)
        others = [other for other in servers if other is not server and other.model(request.model).refusal is None]
        if status in _REMEDIES or error.code == "insufficient_quota":
            # Some gateways answer 403 to what is in one request, so it is held against the last server only if it does not end.
            if not known.answered and (status != 403 or others):
                remedy = _REMEDIES.get(status, _REMEDIES[402]).format(name=server.name)
                return f"{server.url} answered {what} ({remedy})"
            if status != 403:
                # It answered before: a gateway that is being restarted, or an account that ran dry.
                return _Unanswered(server, what)
        if status in (408, 409, 425, 429) or status >= 500:
            retry_after = _retry_after(error.response.headers)
            too_many = status == 429 or (status == 503 and retry_after is not None)
            return _Unanswered(server, what, retry_after=retry_after, too_many=too_many)
        return RequestFailed(f"{server.url} refused the request: {what}")

    def _without_key(self, server: Server, text: str, shown: int | None = _SHOWN) -> str:
        # Servers repeat what they were sent.
        key = self._keys[server.name]
        if key and len(key) >= _SHORTEST_KEY:
            text = text.replace(key, "***")
        return text[:shown]


def _key_of(name: str, settings: ServerSettings) -> str | None:
    variable = settings.api_key_env
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ValueError(
            f"api_key_env of server {name!r} names the environment variable {variable}, which is not set; set it, or "
            f"leave api_key_env out for a server without keys."
        )
    if len(key) >= _SHORTEST_KEY and key in unquote(urlsplit(settings.base_url).path):
        raise ValueError(
            f"base_url of server {name!r} holds the key of the environment variable {variable}, and would be written into "
            f"the dataset; leave the key out of it, it is sent in the Authorization header."
        )
    return key


def _client(settings: ServerSettings, key: str | None) -> openai.AsyncOpenAI:
    # Without streaming, the first byte comes with the whole answer, for which there is `total_timeout`.
    read = settings.request_timeout if settings.stream else None
    return openai.AsyncOpenAI(
        base_url=settings.base_url,
        api_key=key or "none",
        # Of ours: openai's retries know neither the other servers nor the breaker.
        max_retries=0,
        # `pool` is no wait for the server: limits are kept before a request is sent.
        timeout=openai.Timeout(settings.request_timeout, read=read, pool=settings.total_timeout),
        http_client=openai.DefaultAsyncHttpxClient(
            trust_env=not _is_loopback(urlsplit(settings.base_url).hostname),
            event_hooks={"response": [_read_error]},
        ),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _headers(settings: ServerSettings, key: str | None) -> dict[str, str | openai.Omit]:
    """Headers in place of those that openai takes from the environment, which are for its makers' server."""
    headers: dict[str, str | openai.Omit] = {}
    if urlsplit(settings.base_url).hostname != "api.openai.com":
        lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
        names = ["OpenAI-Organization", "OpenAI-Project", *(line.partition(":")[0].strip() for line in lines)]
        headers = {name: openai.Omit() for name in names if name and name.lower() != "authorization"}
        if key and any(line.partition(":")[0].strip().lower() == "authorization" for line in lines):
            headers["Authorization"] = f"Bearer {key}"
    if not key:
        headers["Authorization"] = openai.Omit()
    return headers


async def _read_error(response: Any) -> None:
    """Reads a bounded part of a body that holds no answer, before openai reads all of it."""
    if response.status_code < 300:
        return
    content = bytearray()
    try:
        async for part in response.aiter_bytes():
            content += part
            if len(content) > MAX_ERROR:
                break
    except Exception as error:
        # The status says enough.
        logger.debug("the body of an error was cut off: %r", error)
    await response.aclose()
    # What `read` would have set; the HTTP client has no public way to read a part.
    response._content = bytes(content[:MAX_ERROR])


async def _messages(request: Request) -> list[dict[str, Any]]:
    if any(message.images for message in request.messages):
        # Drawing and encoding pictures takes long.
        return await asyncio.to_thread(lambda: [_message(message, request) for message in request.messages])
    return [_message(message, request) for message in request.messages]


def _message(message: Message, request: Request) -> dict[str, Any]:
    if not message.images:
        return {"role": message.role, "content": message.text}
    pictures = [data_url(render_view(request.work, name, request.image_side)) for name in message.images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in pictures]
    return {"role": message.role, "content": [*parts, {"type": "text", "text": message.text}]}


def _response_format(request: Request, mode: str) -> dict[str, Any]:
    if mode == "object":
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {"name": request.stage, "schema": dict(request.schema), "strict": True},
    }


class _JsonBody:
    """Collects an answer in one piece."""

    ended = False

    def __init__(self):
        self._content = bytearray()

    def feed(self, part: bytes) -> None:
        self._content += part
        if len(self._content) > MAX_BODY:
            raise _BadBody(f"an answer of more than {MAX_BODY} bytes")

    def result(self) -> tuple[str, tuple[int, int], str | None]:
        content = _parsed(self._content)
        choices = _choices_of(content, self._content)
        message = choices[0].get("message") if choices else None
        if not isinstance(message, dict):
            raise _BadBody(f"JSON that is no chat completion: {_shown(self._content)}")
        text, finish = _text_of(message.get("content")), _finish_of(choices[0])
        refusal = _text_of(message.get("refusal"))
        if refusal and not text.strip():
            text, finish = refusal, "content_filter"
        return text, _tokens_of(content), finish


class _EventStream:
    """Collects an answer that comes as server-sent events; `ended` when no more of it is wanted."""

    def __init__(self):
        self.ended = False
        self._rest = b""
        self._size = 0
        self._texts: list[str] = []
        self._refusals: list[str] = []
        self._length = 0
        self._tokens = (0, 0)
        self._finish: str | None = None
        self._complete = False

    def feed(self, part: bytes) -> None:
        self._size += len(part)
        if self._size > MAX_BODY:
            raise _BadBody(f"a streamed answer of more than {MAX_BODY} bytes")
        *lines, self._rest = (self._rest + part).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise _BadBody(f"a streamed answer with a line of more than {MAX_LINE} bytes")
        for line in lines:
            if line.startswith(b"data:") and not self.ended:
                self._take(line[5:].strip())

    def _take(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._complete = self.ended = True
            return
        content = _parsed(data)
        self._tokens = _tokens_of(content) if content.get("usage") else self._tokens
        for choice in _choices_of(content, data):
            delta = choice.get("delta") or {}
            if not isinstance(delta, dict):
                raise _BadBody(f"an event that is no part of a chat completion: {_shown(data)}")
            for texts, key in ((self._texts, "content"), (self._refusals, "refusal")):
                texts.append(_text_of(delta.get(key)))
                self._length += len(texts[-1])
            self._finish = _finish_of(choice) or self._finish
        if self._length > MAX_TEXT + _MARGIN:
            self._finish, self.ended = "length", True

    def result(self) -> tuple[str, tuple[int, int], str | None]:
        if not self._complete and self._finish is None:
            raise _BadBody("the streamed answer was cut off")
        text, refusal = "".join(self._texts), "".join(self._refusals)
        if refusal and not text.strip():
            return refusal, self._tokens, "content_filter"
        return text, self._tokens, self._finish


def _shown(content: bytes | bytearray) -> str:
    """A body for messages. They are cut later, when keys are out of them."""
    return bytes(content[:MAX_ERROR]).decode(errors="replace")


def _parsed(content: bytes | bytearray) -> dict[str, Any]:
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        problem = f"an answer that is no JSON: {_shown(content)}"
    else:
        if isinstance(parsed, dict) and not parsed.get("error"):
            return parsed
        problem = f"an error: {_shown(content)}"
    raise _BadBody(problem)


def _choices_of(content: Mapping[str, Any], body: bytes | bytearray) -> list[dict[str, Any]]:
    choices = content.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise _BadBody(f"JSON that is no chat completion: {_shown(body)}")
    return choices


def _text_of(content: Any) -> str:
    parts = (
        [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else [content]
    )
    return "".join(part for part in parts if isinstance(part, str))


def _finish_of(choice: Mapping[str, Any]) -> str | None:
    finish = choice.get("finish_reason")
    return finish if isinstance(finish, str) else None


def _tokens_of(content: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens read and written; 0 for what is no such number, since an answer is worth more than its price."""
    usage = content.get("usage")
    counts = [usage.get(key) if isinstance(usage, dict) else 0 for key in ("prompt_tokens", "completion_tokens")]
    return tuple(int(count) if type(count) in (int, float) and 0 <= count < _MOST_TOKENS else 0 for count in counts)


def _message_of(error: openai.APIStatusError) -> str:
    if isinstance(error.body, dict) and isinstance(error.body.get("message"), str):
        return error.body["message"]
    return error.response.text.strip() or error.response.reason_phrase


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, or `None`."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * scale
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        return max(parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time(), 0.0)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _failure(state: tenacity.RetryCallState) -> _Unanswered:
    return state.outcome.exception()


def _wait(state: tenacity.RetryCallState) -> float:
    failure = _failure(state)
    settings = failure.server.settings
    jitter = random.uniform(0, settings.min_wait)
    wait = min(tenacity.wait_exponential(settings.min_wait, settings.max_wait)(state) + jitter, settings.max_wait)
    if failure.retry_after is not None and not failure.put_off:
        return max(wait, min(failure.retry_after, settings.max_wait))
    return wait
