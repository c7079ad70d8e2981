# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Which server a request goes to, and when: limits, load, broken servers, and those that refuse a model."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from .circuit_breaker import CircuitBreaker, FailedInARow
from .config import ServerSettings
from .engines import EngineUnavailable


class ModelAtServer:
    """What is known of one model at one server.

    Args:
        settings: Settings of the server.

    Attributes:
        breaker: Whether it may be asked now.
        refusal: Why it will not be asked any more, if so.
        answered: Whether it ever answered.
        failed: Requests without an answer, by stage.
        last_failure: What came in place of the last answer.
    """

    def __init__(self, settings: ServerSettings):
        # While a server is out, something fails at least this often.
        forget = settings.breaker_wait + settings.total_timeout + settings.max_wait
        self.breaker = CircuitBreaker(settings.breaker_failures, settings.breaker_wait, forget)
        self.refusal: str | None = None
        self.answered = False
        self.failed = FailedInARow()
        self.last_failure = ""


class Server:
    """One server, as requests of all stages share it.

    Args:
        name: Its name in the settings.
        settings: Its settings.

    Attributes:
        active: Requests that are with it now.
        resting: Places that stay empty for a while, since it answered a request with 429.
    """

    def __init__(self, name: str, settings: ServerSettings):
        self.name = name
        self.settings = settings
        self.active = 0
        self.resting = 0
        self._models: dict[str, ModelAtServer] = {}

    @property
    def url(self) -> str:
        """Its address."""
        return self.settings.base_url

    @property
    def load(self) -> float:
        """Share of its places that are taken."""
        return (self.active + self.resting) / self.settings.max_concurrency

    def model(self, name: str) -> ModelAtServer:
        """What is known of one of its models: one may be broken where the others are well."""
        if name not in self._models:
            self._models[name] = ModelAtServer(self.settings)
        return self._models[name]

    def has_place(self, model: str) -> bool:
        """Whether a request for a model may be sent to it now."""
        known = self.model(model)
        return self.load < 1 and known.refusal is None and known.breaker.allows()


class ServerPool:
    """Gives each request a place at a server; those without one wait in the order in which they came.

    Example:
        >>> async def two_at_once():
        ...     server = Server("a", ServerSettings(base_url="http://localhost:8000/v1", max_concurrency=1))
        ...     pool, times = ServerPool(), []
        ...
        ...     async def request(name):
        ...         place = await pool.acquire((server,), "model")
        ...         times.append(f"{name} begins")
        ...         await asyncio.sleep(0)
        ...         times.append(f"{name} ends")
        ...         pool.release(place)
        ...
        ...     await asyncio.gather(request("first"), request("second"))
        ...     return times
        >>> asyncio.run(two_at_once())
        ['first begins', 'first ends', 'second begins', 'second ends']
    """

    def __init__(self):
        # Requests that may go to the same servers wait in one line, so that only the heads of lines are looked at.
        self._lines: dict[tuple[tuple[Server, ...], str], deque[tuple[int, asyncio.Future[Server]]]] = {}
        self._tickets = 0

    async def acquire(self, servers: Sequence[Server], model: str, avoid: Server | None = None) -> Server:
        """Waits for a place.

        Args:
            servers: Those that may answer.
            model: The model that is asked.
            avoid: One to be taken only if no other has a place now.

        Returns:
            The one with the least load; `release` gives the place back.

        Raises:
            EngineUnavailable: If all refuse the model, or none has answered for too long.
        """
        self.check(servers, model)
        key = (tuple(servers), model)
        server = self._free_one(key, avoid)
        if server is not None:
            self._take(server, key[1])
            return server
        future: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        self._tickets += 1
        self._lines.setdefault(key, deque()).append((self._tickets, future))
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().model(model).breaker.abandoned()
                self.release(future.result())
            raise

    def release(self, server: Server) -> None:
        """Gives a place back, to the request that waits longest for it."""
        server.active -= 1
        self.hand_out()

    def rest(self, server: Server, seconds: float) -> None:
        """Leaves one place of a server empty for a while, so that it is asked less."""
        server.resting += 1
        asyncio.get_running_loop().call_later(seconds, self._end_rest, server)

    def leave_alone(self, seconds: float) -> None:
        """Has those that wait look for another server now, and again when one that is left alone may be asked."""
        # A little later than that, as timers may come early by their resolution.
        asyncio.get_running_loop().call_later(seconds + 0.01, self.hand_out)
        self.hand_out()

    def check(self, servers: Sequence[Server], model: str) -> None:
        """Raises `EngineUnavailable` if there will be no answer, with what can be done about it."""
        known = {server: server.model(model) for server in servers}
        if all(at.refusal is not None for at in known.values()):
            reasons = "; ".join(at.refusal for at in known.values())
            raise EngineUnavailable(f"No server answers for model {model!r}: {reasons}.")
        left = {server: at for server, at in known.items() if at.refusal is None}
        if all(at.breaker.silent_for() >= server.settings.outage_timeout for server, at in left.items()):
            names = ", ".join(
                f"{server.url} for {at.breaker.silent_for():.0f} s, the last: {at.last_failure}"
                for server, at in left.items()
            )
            raise EngineUnavailable(
                f"No answer for model {model!r} from {names}. See the server's log; run the same command again when it is "
                f"up, to go on from here; `outage_timeout` is how long a run waits."
            )

    def hand_out(self) -> None:
        """Gives free places to those that wait, and ends the wait of those that wait in vain."""
        while self._hand_out_one():
            pass

    def _hand_out_one(self) -> bool:
        for key, line in list(self._lines.items()):
            while line and line[0][1].done():
                line.popleft()
            if not line:
                del self._lines[key]
                continue
            try:
                self.check(*key)
            except EngineUnavailable as error:
                for _, future in self._lines.pop(key):
                    if not future.done():
                        future.set_exception(EngineUnavailable(str(error)))
        heads = sorted((line[0][0], key) for key, line in self._lines.items()) if len(self._lines) > 1 else None
        for key in self._lines if heads is None else [key for _, key in heads]:
            server = self._free_one(key)
            if server is not None:
                self._take(server, key[1])
                self._lines[key].popleft()[1].set_result(server)
                return True
        return False

    def _free_one(self, key: tuple[tuple[Server, ...], str], avoid: Server | None = None) -> Server | None:
        servers, model = key
        free = [server for server in servers if server.has_place(model)]
        return min(free, key=lambda server: (server is avoid, server.load), default=None)

    def _take(self, server: Server, model: str) -> None:
        server.active += 1
        server.model(model).breaker.begin()

    def _end_rest(self, server: Server) -> None:
        server.resting -= 1
        self.hand_out()
