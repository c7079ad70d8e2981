# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A LongGRIT run, killed by SIGKILL and started again by the same command, ends as one that was left alone."""

import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from faulty_openai_server import THIRTY_PERCENT, running_server
from longgrit_for_tests import assert_all_ended_once, assert_whole_files, make_photos, outcome_of, settings_for

from processing_pixclip.longgrit.runner import run_pipeline


SCRIPT = Path(__file__).parents[1] / "examples" / "build_longgrit.py"
CONCURRENCY = 8
SERVER = {
    "max_concurrency": CONCURRENCY,
    "request_timeout": 10.0,
    "total_timeout": 20.0,
    "max_attempts": 8,
    "min_wait": 0.01,
    "max_wait": 0.05,
    "breaker_failures": 1000,
}
# No answer is lost on the way by a fault that costs seconds, so that one asked twice was asked twice by us.
FAULTS = {**THIRTY_PERCENT, "transport": {**THIRTY_PERCENT["transport"], "hang": 0.0, "endless": 0.0, "429": 0.058}}


def settings_at(server, path, output, images_per_shard):
    servers = {"faulty": {"base_url": server.url, **SERVER}}
    return settings_for(path, output, servers=servers, output={"images_per_shard": images_per_shard})


def being_written(output):
    return {path.name for path in Path(output).rglob(".writing-*")}


def answered(server):
    """Answers that the server has written to their end."""
    return server.log.read_bytes().count(b"\n") if server.log.exists() else 0


def kill_when(is_time, start):
    """Starts a run and kills it when it is time; returns whether it was killed before its end."""
    process = start()
    while process.is_alive() and not is_time():
        time.sleep(0.001)
    killed = process.is_alive()
    process.kill()
    process.join()
    return killed


def after_answers(server, count, delay):
    """It is time some moments after so many more answers."""
    end, reached = answered(server) + count, []

    def is_time():
        if not reached and answered(server) >= end:
            reached.append(time.monotonic() + delay)
        return bool(reached) and time.monotonic() >= reached[0]

    return is_time


def while_a_file_is_written(output):
    """It is time as soon as a further file is begun, of a shard or beside one."""
    before = being_written(output)
    return lambda: bool(being_written(output) - before)


def asked_again(server):
    """Requests that the server answered to their end before and answered again."""
    return sum(count - 1 for count in server.finished().values())


def check_kills(server, path, folder, moments, images_per_shard, start):
    """Kills runs at the moments and lets the last one end; returns how often one was killed."""
    output = folder / "killed"
    settings = settings_at(server, path, output, images_per_shard)
    run_pipeline(settings_at(server, path, folder / "whole", images_per_shard))
    assert asked_again(server) == 0, "two requests of the run are the same; take other photos"
    answers = answered(server)
    server.reset()
    kills = 0
    for moment in moments(server, output, answers):
        before = asked_again(server)
        kills += kill_when(moment, lambda: start(settings))
        # Those in flight, whose answers nobody could write down, at most.
        time.sleep(0.05)
        assert asked_again(server) - before <= CONCURRENCY
    run_pipeline(settings)
    assert assert_all_ended_once(output) == outcome_of(folder / "whole")
    assert_whole_files(output)
    assert asked_again(server) <= kills * CONCURRENCY
    again = answered(server)
    run_pipeline(settings)
    assert answered(server) == again
    return kills


def run_and_leave(settings):
    os.setpgid(0, 0)
    run_pipeline(settings)
    os._exit(0)


def forked(settings):
    """A run in a process of its own that need not import everything first."""
    process = multiprocessing.get_context("fork").Process(target=run_and_leave, args=(settings,))
    process.start()
    return process


def test_a_killed_run_ends_as_one_that_was_left_alone(tmp_path):
    def moments(server, output, answers):
        yield after_answers(server, answers // 3, 0.0)
        yield while_a_file_is_written(output / "data")

    path = make_photos(tmp_path / "photos", 10, 6)
    with running_server(tmp_path / "server", **FAULTS) as server:
        assert check_kills(server, path, tmp_path, moments, 2, forked) == 2


class Command:
    """The command of a run, as a process of `multiprocessing`."""

    def __init__(self, settings):
        file = settings.output_dir.parent / "settings.yaml"
        file.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        with open(settings.output_dir.parent / "killed.log", "ab") as log:
            self._process = subprocess.Popen([sys.executable, SCRIPT, file], stdout=log, stderr=log)
        self.kill, self.join = self._process.kill, self._process.wait

    def is_alive(self):
        return self._process.poll() is None


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_moments_ends_as_one_that_was_left_alone(tmp_path):
    rng = random.Random(0)

    def moments(server, output, answers):
        for number in range(20):
            if number % 4 == 3:
                yield while_a_file_is_written(output)
            else:
                yield after_answers(server, rng.randrange(answers // 20), rng.random() / 10)

    path = make_photos(tmp_path / "photos", 125, 16)
    with running_server(tmp_path / "server", **FAULTS) as server:
        assert check_kills(server, path, tmp_path, moments, 4, Command) == 20
