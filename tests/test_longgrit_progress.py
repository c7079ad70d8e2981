# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What the progress bar of a LongGRIT run tells."""

import io
import re

from processing_pixclip.longgrit import RunProgress


def test_the_bar_tells_counts_rate_and_estimated_end():
    told = io.StringIO()
    progress = RunProgress(file=told, mininterval=0, ncols=200)
    progress.source(images=3, total_images=8)
    progress.start(total_regions=40, done=10)
    progress.update(requests=5, tokens=700)
    progress.update(accepted=4, rejected=1, requests=20, tokens=2300)
    progress.close()
    assert "3/8" in told.getvalue()
    last = told.getvalue().split("\r")[-1]
    for part in ("15/40", "accepted=4", "rejected=1", "requests=25", "tokens=3000"):
        assert part in last
    assert re.search(r"\[\d+:\d\d<\d+:\d\d, +[\d.]+\s?region/s", last)
