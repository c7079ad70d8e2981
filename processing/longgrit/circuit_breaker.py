# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Leaves a server alone for a while that fails again and again, and tells when requests are refused in vain."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable


# Requests of a kind that fail in a row before it is given up: where none was answered yet, and later.
MOST_FAILED = 20
MOST_FAILED_LATER = 200


class FailedInARow:
    """Counts requests in a row that ended without an answer, by kind, so that a run whose every request fails is not taken for
    one with many bad regions.

    Example:
        >>> failed = FailedInARow()
        >>> [failed.failed("fuse") for _ in range(20)].index(True)
        19
        >>> failed.answered("fuse")
        >>> [failed.failed("fuse") for _ in range(200)].index(True)
        199
    """

    def __init__(self):
        self._counts: dict[Hashable, int] = {}
        self._answered: set[Hashable] = set()

    def answered(self, kind: Hashable) -> None:
        """Notes an answer."""
        self._answered.add(kind)
        self._counts.pop(kind, None)

    def failed(self, kind: Hashable) -> bool:
        """Notes a request that failed. Returns whether so many did that there is no hope for more."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        # One image with many regions may be refused at once for what it shows.
        return self._counts[kind] >= (MOST_FAILED_LATER if kind in self._answered else MOST_FAILED)

    def count(self, kind: Hashable) -> int:
        """How many failed since the last answer."""
        return self._counts.get(kind, 0)


class CircuitBreaker:
    """Counts failures in a row of one model at one server, and tells whether it may be asked.

    Closed at first. After `failures` failures in a row it is open: the server is not asked for `wait` seconds. Then one
    request may try; an answer closes the breaker, a failure opens it for as long again.

    Args:
        failures: Failures in a row that open it.
        wait: Seconds that it stays open.
        forget: Seconds without any failure after which `silent_for` begins anew, since nothing was asked meanwhile.
        clock: Gives the time in seconds.

    Example:
        >>> now = 0.0
        >>> breaker = CircuitBreaker(failures=2, wait=30.0, clock=lambda: now)
        >>> breaker.failed(), breaker.failed(), breaker.allows()
        (False, True, False)
        >>> now = 30.0
        >>> breaker.allows(), breaker.begin(), breaker.allows()  # one request tries
        (True, None, False)
        >>> breaker.answered(), breaker.allows()
        (True, True)
    """

    def __init__(self, failures: int, wait: float, forget: float = 600.0, clock: Callable[[], float] = time.monotonic):
        self.failures = failures
        self.wait = wait
        self.forget = forget
        self._clock = clock
        self._in_a_row = 0
        self._open_until: float | None = None
        self._trying = False
        self._paused_until = float("-inf")
        # First and last request without an answer since the last one with.
        self._silent: tuple[float, float] | None = None

    def allows(self) -> bool:
        """Whether a request may be sent now."""
        now = self._clock()
        if now < self._paused_until:
            return False
        return self._open_until is None or (now >= self._open_until and not self._trying)

    def begin(self) -> None:
        """Notes that a request is sent, which `allows` was asked about."""
        self._trying = self._open_until is not None

    def answered(self) -> bool:
        """Notes an answer. Returns whether that closed the breaker."""
        closed = self._open_until is not None
        self._in_a_row, self._open_until, self._trying, self._silent = 0, None, False, None
        return closed

    def failed(self) -> bool:
        """Notes a failure. Returns whether that opened the breaker, for the first time or anew."""
        self.refused()
        self._in_a_row += 1
        now = self._clock()
        # One that was sent before the breaker opened and fails later says nothing new.
        if self._in_a_row < self.failures or (self._open_until is not None and now < self._open_until):
            return False
        self._open_until, self._trying = now + self.wait, False
        return True

    def refused(self) -> None:
        """Notes that the server asks to be left alone (429): no failure, but no answer either."""
        self._trying = False
        now = self._clock()
        first, last = self._silent or (now, now)
        self._silent = (first if now - max(last, self._paused_until) <= self.forget else now, now)

    def pause(self, seconds: float) -> None:
        """Notes that the server asks to be left alone for so long."""
        self.refused()
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def abandoned(self) -> None:
        """Notes that a request ended without saying anything of the server, as when it is cancelled."""
        self._trying = False

    def silent_for(self) -> float:
        """Seconds from the first to the last request without an answer, since the last one with; 0 where there is none."""
        return 0.0 if self._silent is None else self._silent[1] - self._silent[0]
