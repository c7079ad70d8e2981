# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The progress bar of a LongGRIT run."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm


class RunProgress:
    """A bar over regions: rate, accepted and rejected, requests, tokens, estimated end.

    Args:
        **options: Of `tqdm`, such as `file` and `disable`.

    Example:
        >>> progress = RunProgress(disable=True)
        >>> progress.start(total_regions=10, done=4)
        >>> progress.update(accepted=2, rejected=1, requests=15, tokens=900)
        >>> progress.accepted, progress.rejected
        (2, 1)
        >>> progress.close()
    """

    def __init__(self, **options: Any):
        self.accepted = self.rejected = self.requests = self.tokens = 0
        self._options = options
        self._bar: tqdm | None = None

    def source(self, images: int, total_images: int) -> None:
        """Shows in a bar of its own, before `start`, how many images the source stage has been through."""
        if self._bar is None:
            self._bar = tqdm(total=total_images, unit="image", desc="source", dynamic_ncols=True, **self._options)
        self._bar.update(images - self._bar.n)

    def start(self, total_regions: int, done: int = 0) -> None:
        """Begins the bar; `done` regions ended in an earlier run and do not count for the rate."""
        self.close()
        self._bar = tqdm(
            total=total_regions, initial=done, unit="region", desc="LongGRIT", dynamic_ncols=True, **self._options
        )

    def update(self, accepted: int = 0, rejected: int = 0, requests: int = 0, tokens: int = 0) -> None:
        """Adds to the counts; regions move the bar."""
        self.accepted += accepted
        self.rejected += rejected
        self.requests += requests
        self.tokens += tokens
        if self._bar is not None:
            self._bar.set_postfix(
                accepted=self.accepted,
                rejected=self.rejected,
                requests=self.requests,
                tokens=self.tokens,
                refresh=False,
            )
            self._bar.update(accepted + rejected)

    def close(self) -> None:
        """Ends the bar."""
        if self._bar is not None:
            self._bar.close()
