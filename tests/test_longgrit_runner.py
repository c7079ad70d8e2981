# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A LongGRIT run on one machine: every region ends once, and whatever stops it, the same call goes on from there."""

import asyncio
import json
import logging
import resource
import signal
from collections import Counter

import pytest
import yaml
from longgrit_for_tests import (
    ScriptedEngine,
    assert_all_ended_once,
    assert_whole_files,
    good_answer,
    make_photos,
    outcome_of,
    rejected_of,
    rows_of,
    settings_for,
)

from processing_pixclip.longgrit.config import REGION_STAGES
from processing_pixclip.longgrit.engines import Answer, EngineUnavailable, Message, Request, RequestFailed
from processing_pixclip.longgrit.journal import AnswerJournal
from processing_pixclip.longgrit.pipeline import ShardAnnotator
from processing_pixclip.longgrit.run_folder import RunFolder
from processing_pixclip.longgrit.runner import load_prompts, run_pipeline
from processing_pixclip.longgrit.source_stage import read_manifest_shard, run_source_stage
from processing_pixclip.longgrit.sources import open_image_store


IMAGES, REGIONS = 5, 3


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """Also where these tests run in the background of a shell, which then has its processes ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"), IMAGES, REGIONS)


@pytest.fixture
def settings(photos, tmp_path):
    return settings_for(photos, tmp_path / "out")


def run(settings, engine=None, **options):
    engine = ScriptedEngine() if engine is None else engine
    summary = run_pipeline(settings, engines={"openai": engine}, **options)
    return summary, engine


def test_every_region_ends_once_and_a_second_call_asks_nothing(settings):
    summary, engine = run(settings)
    ended = assert_all_ended_once(settings.output_dir)
    assert_whole_files(settings.output_dir)
    assert summary["accepted"] == len(ended) == IMAGES * REGIONS
    assert all(engine.stages[stage] == len(ended) for stage in REGION_STAGES) and engine.stages.total() == 5 * len(
        ended
    )
    assert set(engine.asked.values()) == {1}
    again, idle = run(settings)
    assert again == summary and not idle.asked
    assert outcome_of(settings.output_dir) == ended


def test_rejected_regions_keep_stage_reason_and_text(settings):
    """One region is malformed in each stage, another is refused by verify, and a failed request costs one region."""
    bad = {f"{i:05d}#0": stage for i, stage in enumerate(REGION_STAGES)}

    def script(request):
        if bad.get(request.item_id) == request.stage:
            return "I would rather not."
        if request.item_id == "00000#1" and request.stage == "verify":
            return json.dumps({"reason": "It is a hat.", "verdict": "inconsistent"})
        if request.item_id == "00001#1" and request.stage == "fuse":
            raise RequestFailed("6 attempts without an answer")

    summary, engine = run(settings, ScriptedEngine(script))
    ended = assert_all_ended_once(settings.output_dir)
    for region, stage in bad.items():
        assert ended[region][:3] == ("rejected", stage, "malformed_answer")
        assert "I would rather not." in ended[region][3]["detail"]
    assert ended["00000#1"][:3] == ("rejected", "verify", "inconsistent")
    assert ended["00001#1"][:3] == ("rejected", "fuse", "request_failed")
    assert summary["accepted"] == IMAGES * REGIONS - 7
    assert sum(sum(reasons.values()) for reasons in summary["rejected"].values()) == 7
    # What was rejected early is not asked about later.
    assert engine.stages["hard_negatives"] == summary["accepted"] + settings.stage("fuse").max_attempts


def unavailable_after(number):
    """A script for an engine that cannot be asked any more after so many answers."""
    count = iter(range(10**9))

    def script(request):
        if next(count) >= number:
            raise EngineUnavailable("all servers are down")

    return script


def sigint_after(number):
    """A script that sends SIGINT after so many answers, as Ctrl-C does."""
    count = iter(range(10**9))

    def script(request):
        if next(count) == number:
            signal.raise_signal(signal.SIGINT)

    return script


@pytest.mark.parametrize("number", [0, 7, 40])
@pytest.mark.parametrize("script, error", [(unavailable_after, EngineUnavailable), (sigint_after, KeyboardInterrupt)])
def test_a_run_that_stops_goes_on_without_asking_again(settings, photos, tmp_path, number, script, error):
    whole, reference = run(settings_for(photos, tmp_path / "whole"))
    interrupted = ScriptedEngine(script(number))
    with pytest.raises(error):
        run(settings, interrupted)
    summary, resumed = run(settings)
    assert assert_all_ended_once(settings.output_dir) == outcome_of(tmp_path / "whole")
    assert_whole_files(settings.output_dir)
    assert not set(interrupted.asked) & set(resumed.asked)
    assert set(interrupted.asked) | set(resumed.asked) == set(reference.asked)
    assert {**summary, "seconds": 0} == {**whole, "seconds": 0}


def test_an_error_of_ours_is_not_swallowed_and_names_the_image(settings):
    def script(request):
        if request.item_id == "00003#1":
            raise ZeroDivisionError("a mistake")

    with pytest.raises(ZeroDivisionError, match="a mistake") as caught:
        run(settings, ScriptedEngine(script))
    assert caught.value.__notes__ == ["This happened in the stage 'object_caption' with '00003#1'."]
    assert run(settings)[0]["accepted"] == IMAGES * REGIONS


def test_a_repeated_stage_is_asked_anew_with_what_hangs_on_it(settings):
    run(settings)
    before = rows_of(settings.output_dir)
    summary, engine = run(settings, repeat=["fuse"])
    # The long text is another, so its negatives are too.
    assert set(engine.stages) == {"fuse", "hard_negatives"}
    assert engine.stages["fuse"] == summary["accepted"] == IMAGES * REGIONS
    after = rows_of(settings.output_dir)
    for image in before:
        for old, new in zip(before[image]["regions"], after[image]["regions"]):
            assert old["object_text"] == new["object_text"] and old["text"] != new["text"]
    # Without `repeat` the last ones stay; with it they are asked once more.
    assert not run(settings)[1].asked
    assert run(settings, repeat=["fuse"])[1].stages["fuse"] == IMAGES * REGIONS


def test_a_repeat_that_was_stopped_goes_on(settings):
    run(settings)
    stopped = ScriptedEngine(unavailable_after(6))
    with pytest.raises(EngineUnavailable):
        run(settings, stopped, repeat=["fuse"])
    assert stopped.asked.total() == 6
    _, engine = run(settings, repeat=["fuse"])
    assert not set(engine.asked) & set(stopped.asked)
    assert engine.stages["fuse"] + stopped.stages["fuse"] == IMAGES * REGIONS


def test_an_unknown_stage_to_repeat_is_refused(settings):
    with pytest.raises(ValueError, match=r"\['fusion'\]; accepted are .*'fuse'"):
        run(settings, repeat=["fusion"])


def test_failed_requests_are_tried_again_on_request(settings):
    def script(request):
        if request.item_id == "00002#2" and request.stage == "verify":
            raise RequestFailed("no answer")

    assert run(settings, ScriptedEngine(script))[0]["accepted"] == IMAGES * REGIONS - 1
    assert not run(settings)[1].asked
    summary, engine = run(settings, retry_failed=True)
    assert summary["accepted"] == IMAGES * REGIONS and not rejected_of(settings.output_dir)
    assert engine.stages == Counter({stage: 1 for stage in REGION_STAGES if stage != "object_caption"})


def test_other_settings_make_shards_anew_from_the_same_answers(settings, photos, tmp_path):
    run(settings)
    changed = settings_for(photos, settings.output_dir, stages={"hard_negatives": {"model": "another"}})
    _, engine = run(changed)
    assert set(engine.stages) == {"hard_negatives"} and engine.stages.total() == IMAGES * REGIONS
    # Back again: all answers are there.
    _, engine = run(settings)
    assert not engine.asked
    _, engine = run(settings_for(photos, settings.output_dir, stages={"hard_negatives": {"enabled": False}}))
    assert not engine.asked
    assert all(
        not region["hard_negatives"] for row in rows_of(settings.output_dir).values() for region in row["regions"]
    )
    # Who answers, and how fast, shapes nothing.
    before = outcome_of(settings.output_dir)
    slow = settings_for(
        photos, settings.output_dir, stages={"hard_negatives": {"enabled": False}}, images_in_flight=1, open_shards=1
    )
    states = [path.stat().st_mtime_ns for path in sorted((settings.output_dir / "run" / "shards").iterdir())]
    run(slow)
    assert states == [path.stat().st_mtime_ns for path in sorted((settings.output_dir / "run" / "shards").iterdir())]
    assert outcome_of(settings.output_dir) == before


def test_a_limited_run_stops_at_a_shard_and_a_later_one_goes_on(settings, photos):
    summary, first = run(settings, limit=1)
    assert summary["accepted"] == 2 * REGIONS
    summary, second = run(settings)
    assert summary["accepted"] == IMAGES * REGIONS
    assert not set(first.asked) & set(second.asked)
    # Shards of two prompts in one dataset.
    changed = settings_for(photos, settings.output_dir, stages={"fuse": {"model": "another"}})
    with pytest.raises(ValueError, match="holds 2 shards beyond the limit of 1 regions"):
        run(changed, limit=1, repeat=["fuse"])
    # Nothing was begun.
    assert not run(settings)[1].asked


def test_two_runs_in_one_folder_are_refused(settings):
    with RunFolder(settings.output_dir).lock(), pytest.raises(RuntimeError, match=r"in use by process \d+ on "):
        run(settings)
    assert run(settings)[0]["accepted"] == IMAGES * REGIONS


@pytest.mark.parametrize("in_flight", [1, 3])
def test_images_in_flight_and_open_shards_are_bounded(photos, tmp_path, in_flight):
    begun, done, open_at_once = set(), tmp_path / "out" / "run" / "shards", []

    def script(request):
        begun.add(request.item_id.split("#")[0])
        open_at_once.append(len(begun) - len(list(done.iterdir())))

    settings = settings_for(
        photos, tmp_path / "out", images_in_flight=in_flight, open_shards=2, output={"images_per_shard": 1}
    )
    engine = ScriptedEngine(script, delay=0.001)
    run(settings, engine)
    assert engine.peak == min(in_flight, 2) * REGIONS
    assert max(open_at_once) <= 2 and len(begun) == IMAGES


def test_an_unreadable_image_rejects_its_regions(settings, photos, tmp_path):
    content = tmp_path / "photos"
    path = make_photos(content, 3, 2)
    settings = settings_for(path, tmp_path / "out")

    def script(request):
        request.work.image.picture()
        if not (content / "00001.jpg").read_bytes():
            return None
        (content / "00001.jpg").write_bytes(b"")

    # Emptied with the first request, before any other image is decoded.
    summary, _ = run(settings_for(path, tmp_path / "out", images_in_flight=1), ScriptedEngine(script))
    ended = assert_all_ended_once(settings.output_dir)
    assert {region: end[1:3] for region, end in ended.items() if end[0] == "rejected"} == {
        f"00001#{i}": ("source", "unreadable_image") for i in range(2)
    }
    assert summary["rejected"] == {"source": {"unreadable_image": 2}}
    # It is there again.
    make_photos(content, 3, 2)
    assert run(settings, retry_failed=True)[0]["accepted"] == 6


def test_an_image_whose_caption_is_rejected_ends_there(settings, photos):
    def script(request):
        if request.item_id == "00004" and request.stage == "image_caption":
            return "no"

    summary, engine = run(
        settings_for(photos, settings.output_dir, stages={"image_caption": {"enabled": True}}), ScriptedEngine(script)
    )
    ended = assert_all_ended_once(settings.output_dir)
    assert summary["rejected"] == {"image_caption": {"malformed_answer": REGIONS}}
    assert {region for region, end in ended.items() if end[0] == "rejected"} == {f"00004#{i}" for i in range(REGIONS)}
    assert engine.stages["image_caption"] == IMAGES - 1 + settings.stage("image_caption").max_attempts
    assert all(row["long_captions"] and row["captions"] for row in rows_of(settings.output_dir).values())


class Told:
    def __init__(self):
        self.counts, self.started, self.read = Counter(), [], []

    def start(self, total_regions, done=0):
        self.started.append((total_regions, done))

    def update(self, **counts):
        self.counts.update(counts)

    def source(self, images, total_images):
        self.read.append((images, total_images))


def test_progress_is_told_of_every_region_and_answer(settings):
    told = Told()
    with pytest.raises(EngineUnavailable):
        run(settings, ScriptedEngine(unavailable_after(45)), progress=told)
    assert told.counts["requests"] == 45 and told.counts["tokens"] == 45 * 30
    assert told.started == [(IMAGES * REGIONS, 0)] and told.read == [(2, IMAGES), (4, IMAGES), (5, IMAGES)]
    told = Told()
    run(settings, progress=told)
    (total, done), counts = told.started[0], told.counts
    assert total == IMAGES * REGIONS == done + counts["accepted"] + counts["rejected"]
    assert counts["requests"] == 5 * total - 45


def test_no_secret_is_written(photos, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEST_API_KEY", "sk-very-secret")
    server = {
        "base_url": "http://127.0.0.1:1/v1",
        "api_key_env": "TEST_API_KEY",
        "extra_body": {"auth_token": "hidden-token", "user": "key sk-very-secret", "top_k": 20},
    }
    settings = settings_for(photos, tmp_path / "out", servers={"here": server})
    run(settings)
    written = yaml.safe_load((tmp_path / "out" / "run" / "settings.yaml").read_text())
    assert written["servers"]["here"]["api_key_env"] == "TEST_API_KEY"
    assert written["servers"]["here"]["extra_body"] == {"auth_token": "***", "user": "***", "top_k": 20}
    assert written["stages"]["fuse"]["parameters"]["max_tokens"] == 4096
    files = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    for content in [*files, caplog.text.encode()]:
        assert b"sk-very-secret" not in content and b"hidden-token" not in content


def request_of(number):
    return Request(f"1#{number}", "fuse", "tiny", (Message("user", f"Text {number}"),), "0" * 16)


class Numbered:
    def __init__(self):
        self.asked = []

    async def ask(self, request):
        self.asked.append(request.item_id)
        return Answer(f"answer to {request.item_id} \ud800\n", "here", "now", 1, 2, "stop")


def ask_all(path, count):
    journal, engine = AnswerJournal(path), Numbered()

    async def ask():
        return [await journal.ask(engine, request_of(number)) for number in range(count)]

    try:
        return asyncio.run(ask()), engine.asked
    finally:
        journal.close()


def test_a_torn_line_of_the_journal_is_asked_again_wherever_it_is_torn(tmp_path, caplog):
    path = tmp_path / "00000.jsonl"
    answers, _ = ask_all(path, 3)
    whole = path.read_bytes()
    last = len(whole[:-1].rpartition(b"\n")[0]) + 1
    for end in range(last, len(whole)):
        caplog.clear()
        path.write_bytes(whole[:end])
        again, asked = ask_all(path, 3)
        assert again == answers and asked == ["1#2"] and path.read_bytes() == whole
        assert ("was torn" in caplog.text) == (end > last)
    # What a machine may leave that lost power.
    path.write_bytes(b"\0" * 40 + b"\n" + whole)
    assert ask_all(path, 3) == (answers, [])
    assert "line 1 is no answer" in caplog.text


def test_an_answer_that_a_full_disk_takes_in_part_is_no_torn_line(tmp_path):
    path = tmp_path / "00000.jsonl"
    ask_all(path, 1)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="is the disk full"):
            ask_all(path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size
    assert ask_all(path, 2)[1] == ["1#1"]


def test_the_scripted_answers_are_a_function_of_the_request():
    request = Request(
        "1#0", "fuse", "tiny", (Message("user", "A kettle"),), "0" * 16, {"type": "object", "properties": {}}
    )
    assert good_answer(request) == good_answer(request)


# What is damaged, replaced or in use


def test_a_damaged_state_of_a_shard_is_named_and_the_shard_made_anew(settings, caplog):
    run(settings)
    ended = outcome_of(settings.output_dir)
    states = settings.output_dir / "run" / "shards"
    for content in ("", '{"fingerprint": "ab', "[]", "{}", '{"fingerprint": "a", "summary": 3}', "[" * 100_000):
        caplog.clear()
        (states / "00001.json").write_text(content)
        assert not run(settings)[1].asked
        assert outcome_of(settings.output_dir) == ended and "00001.json" in caplog.text
        assert json.loads((states / "00001.json").read_text())["regions"] == 2 * REGIONS


@pytest.mark.parametrize(
    "line",
    [
        '["KEY", 5, "here", "now"]',
        '["KEY", "text", "here", null, 1, 2, "stop"]',
        '["KEY", "text", "here", "now", "1", 2, "stop"]',
        '["KEY", "text", "here", "now", true, 2, "stop"]',
        '["KEY", "text", "here", "now", 1, 2, {"a": 1}]',
        '["KEY", "text", "here"]',
        '["KEY", "text", "here", "now", 1, 2, "stop", 8]',
        '[["KEY"], "text", "here", "now", 1, 2, "stop"]',
        '{"KEY": 1}',
        "5",
        "[" * 100_000,
    ],
)
def test_a_line_of_the_journal_with_a_wrong_type_is_named_and_asked_again(tmp_path, caplog, line):
    path = tmp_path / "00000.jsonl"
    answers, _ = ask_all(path, 1)
    path.write_text(line.replace("KEY", request_of(0).key) + "\n")
    assert ask_all(path, 1) == (answers, ["1#0"])
    assert f"{path}: line 1 is no answer" in caplog.text
    assert ask_all(path, 1) == (answers, [])


def test_two_writers_of_a_journal_are_refused(tmp_path):
    path = tmp_path / "00000.jsonl"
    ask_all(path, 1)
    whole = path.read_bytes()
    first = AnswerJournal(path)
    # Half of a line, as if it were being written.
    with open(path, "ab") as file:
        file.write(b'["half')
    with pytest.raises(RuntimeError, match=r"00000\.jsonl is being written by another run"):
        AnswerJournal(path)
    assert path.read_bytes() == whole + b'["half'
    first.close()
    second = AnswerJournal(path)
    assert len(second) == 1 and path.read_bytes() == whole
    with pytest.raises(RuntimeError, match=r"00000\.jsonl is being written"):
        asyncio.run(first.ask(Numbered(), request_of(1)))
    second.close()


def test_other_extra_fields_of_a_server_make_shards_anew(photos, tmp_path):
    def with_body(body):
        server = {"base_url": "http://127.0.0.1:1/v1", "extra_body": body}
        return settings_for(photos, tmp_path / "out", servers={"here": server})

    total = run(with_body({}))[1].asked.total()
    assert run(with_body({"chat_template_kwargs": {"enable_thinking": False}}))[1].asked.total() == total
    assert not run(with_body({}))[1].asked
    assert not run(with_body({"api_key": "abc"}))[1].asked


def test_an_image_that_was_replaced_is_noticed(tmp_path, caplog):
    path = make_photos(tmp_path / "photos", 4, 2)
    settings = settings_for(path, tmp_path / "out")
    with pytest.raises(EngineUnavailable):
        run(settings, ScriptedEngine(unavailable_after(15)))
    image = tmp_path / "photos" / "00001.jpg"
    before = image.read_bytes()
    image.write_bytes((tmp_path / "photos" / "00002.jpg").read_bytes() + b"\0")
    summary, engine = run(settings)
    assert summary["rejected"] == {"source": {"changed_image": 2}} and "00001.jpg" in caplog.text
    ended = assert_all_ended_once(settings.output_dir)
    assert {region for region, end in ended.items() if end[0] == "rejected"} == {"00001#0", "00001#1"}
    # Put back, it is as if nothing had been.
    image.write_bytes(before)
    assert run(settings, retry_failed=True)[0]["accepted"] == 8


def test_secrets_are_taken_out_of_settings_and_nothing_else(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("SHORT", "tiny")
    monkeypatch.setenv("LONG", "sk-0123456789")
    body = {
        "auth": "hidden",
        "headers": {"X-Auth": "hidden", "plain": ["hidden", 3]},
        "api_key": {"value": 12345, "more": ["hidden"]},
        "chat_template_kwargs": {"enable_thinking": False},
        "stop_token_ids": [1, 2],
        "min_tokens": 5,
    }
    servers = {
        "short": {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "SHORT", "extra_body": body},
        "long": {"base_url": "http://127.0.0.1:1/sk-0123456789/v1", "api_key_env": "LONG"},
    }
    stages = {"fuse": {"parameters": {"user": "tiny", "max_tokens": 9, "password": {"a": "hidden"}}}}
    settings = settings_for(photos, tmp_path / "out", model="org/tiny-model", servers=servers, stages=stages)
    folder = RunFolder(settings.output_dir)
    folder.write_settings(settings)
    text = (folder.path / "settings.yaml").read_text()
    written = yaml.safe_load(text)
    assert "hidden" not in text and "12345" not in text and "sk-0123456789" not in text
    assert written["model"] == "org/tiny-model"
    assert written["servers"]["long"]["base_url"] == "http://127.0.0.1:1/***/v1"
    assert written["servers"]["short"]["extra_body"] == {
        "auth": "***",
        "headers": {"X-Auth": "***", "plain": ["***", 3]},
        "api_key": "***",
        "chat_template_kwargs": {"enable_thinking": False},
        "stop_token_ids": [1, 2],
        "min_tokens": 5,
    }
    assert written["stages"]["fuse"]["parameters"] == {"user": "***", "max_tokens": 9, "password": "***"}


@pytest.mark.parametrize("steps", range(6))
def test_a_shard_that_failed_leaves_all_places_to_the_next(tmp_path, steps):
    """Tasks that are cancelled before their first step among those of the failed one, for some number of steps."""
    settings = settings_for(make_photos(tmp_path / "photos", 8, 1), tmp_path / "out", images_in_flight=2)
    settings = settings.model_copy(update={"output": settings.output.model_copy(update={"images_per_shard": 8})})
    run_source_stage(settings)

    class Failing(ScriptedEngine):
        async def ask(self, request):
            if request.item_id == "00001#0":
                for _ in range(5 * len(REGION_STAGES) // 2 + steps):
                    await asyncio.sleep(0)
                raise EngineUnavailable("down")
            return await super().ask(request)

    async def annotate():
        engines = {"openai": Failing()}
        prompts = load_prompts(settings)
        annotator = ShardAnnotator(settings, RunFolder(settings.output_dir), engines, prompts, {})
        items, store = read_manifest_shard(settings.output_dir, 0), open_image_store(settings.source)
        for _ in range(3):
            with pytest.raises(ExceptionGroup):
                await annotator.annotate(0, items, store)
        engines["openai"] = ScriptedEngine()
        return await annotator.annotate(0, items, store)

    async def in_time():
        async with asyncio.timeout(60):
            return await annotate()

    assert asyncio.run(in_time())["accepted"] == 8


def test_of_equal_errors_the_first_is_told(settings, caplog):
    def script(request):
        if request.item_id.startswith("0000"):
            image = int(request.item_id.partition("#")[0])
            raise EngineUnavailable(f"no answer for {image} s") if image % 2 else OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full") as caught:
        run(settings, ScriptedEngine(script))
    assert caplog.text.count("The run also met") == 1 and "no answer for" in caplog.text
    # A traceback shows it alone, not in the group of all.
    assert caught.value.__cause__ is None and not isinstance(caught.value.__context__, ExceptionGroup)
