# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Whole LongGRIT runs against a server that fails 30 % of the requests: nothing is lost, nothing comes twice."""

from collections import Counter

import pytest
from faulty_openai_server import INJECTION, THIRTY_PERCENT, running_server
from longgrit_for_tests import assert_all_ended_once, assert_whole_files, make_photos, outcome_of, settings_for

from processing_pixclip.longgrit.runner import run_pipeline


# Waits are short.
SERVER = {
    "max_concurrency": 16,
    "max_attempts": 8,
    "min_wait": 0.01,
    "max_wait": 0.1,
    "breaker_failures": 40,
    "breaker_wait": 0.2,
}
# Without those that cost seconds each.
QUICK = {**THIRTY_PERCENT["transport"], "hang": 0.0, "endless": 0.0, "429": 0.058}


def settings_at(server, path, output, patience=3.0, **fields):
    """An answer that takes longer than `patience` seconds is asked for again: short only where some never come."""
    timeouts = {"request_timeout": patience, "total_timeout": 2 * patience}
    servers = {"faulty": {"base_url": server.url, **SERVER, **timeouts}}
    return settings_for(path, output, servers=servers, output={"images_per_shard": 4}, **fields)


def check_run(server, settings, regions):
    summary = run_pipeline(settings)
    ended = assert_all_ended_once(settings.output_dir)
    assert_whole_files(settings.output_dir)
    assert (
        len(ended)
        == regions
        == summary["accepted"] + sum(map(sum, (r.values() for r in summary["rejected"].values())))
    )
    reasons = Counter(end[1:3] for end in ended.values() if end[0] == "rejected")
    told = {(stage, reason): n for stage, counts in summary["rejected"].items() for reason, n in counts.items()}
    assert reasons == told
    # Some are refused by the verifier, most are accepted, and a fault in transport costs none.
    assert reasons["verify", "inconsistent"] > 0 and summary["accepted"] > regions / 2
    assert not any(reason == "request_failed" for _, reason in reasons)
    stats = server.stats()
    # Injected, of all: each kind that the server was told to inject.
    wanted = {name for kind in ("transport", "content") for name, share in server.config[kind].items() if share}
    share = sum(stats["faults"].values()) / sum(stats["seen"].values())
    return summary, ended, stats, wanted, share


@pytest.fixture
def quick_server(tmp_path):
    config = {**THIRTY_PERCENT, "transport": QUICK}
    with running_server(tmp_path / "server", **config) as server:
        server.config = config
        yield server


def test_every_region_ends_once_in_a_run_with_faults(quick_server, tmp_path):
    path = make_photos(tmp_path / "photos", 10, 6)
    settings = settings_at(quick_server, path, tmp_path / "out")
    _, ended, stats, _, share = check_run(quick_server, settings, 60)
    assert 0.15 < share < 0.45 and len(stats["faults"]) > 6
    # All answers are in the journal: made anew from it, without the server, the dataset is the same.
    quick_server.stop()
    for state in (settings.output_dir / "run" / "shards").iterdir():
        state.unlink()
    run_pipeline(settings)
    assert outcome_of(settings.output_dir) == ended


@pytest.mark.slow
def test_every_region_of_two_thousand_ends_once_with_thirty_percent_faults(tmp_path):
    path = make_photos(tmp_path / "photos", 125, 16)
    with running_server(tmp_path / "server", **THIRTY_PERCENT) as server:
        server.config = THIRTY_PERCENT
        settings = settings_at(server, path, tmp_path / "out", images_in_flight=16)
        summary, ended, stats, wanted, share = check_run(server, settings, 2000)
    assert 0.25 < share < 0.35 and set(stats["faults"]) == wanted
    # What a model was tricked into writing is data: it is kept or rejected as any other text.
    texts = repr(list(ended.values()))
    assert INJECTION.split("{{")[0].strip() in texts
