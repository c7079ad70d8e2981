# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The engine that asks OpenAI-compatible servers, against a real one that injects faults."""

import asyncio
import io
import json
import logging
import random
import socket
import threading
import time
import traceback
from contextlib import contextmanager, suppress

import pytest
from faulty_openai_server import WRONG_FORMS, running_server
from PIL import Image

from processing_pixclip.longgrit.circuit_breaker import CircuitBreaker
from processing_pixclip.longgrit.config import LongGritSettings, ServerSettings
from processing_pixclip.longgrit.engines import EngineUnavailable, Message, Request, RequestFailed
from processing_pixclip.longgrit.openai_engine import (
    MAX_LINE,
    MAX_TEXT,
    OpenAIEngine,
    _BadBody,
    _EventStream,
    _JsonBody,
    _retry_after,
)
from processing_pixclip.longgrit.records import ImageWork, RegionWork, SourceImage, SourceRegion
from processing_pixclip.longgrit.server_pool import Server, ServerPool


KEY = "sk-very-secret-0123456789"
SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
QUICK = {"min_wait": 0.01, "max_wait": 0.05, "breaker_wait": 0.05}
# For faults that end with them; a busy machine needs longer for an answer now and then.
SHORT = {"request_timeout": 1.0, "total_timeout": 1.5}


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(shared_server):
    """A server without faults that knows of no request."""
    shared_server.defaults()
    shared_server.reset()
    return shared_server


def settings_for(*servers, model="tiny", stages=None, **options):
    servers = {f"s{i}": {"base_url": url, **QUICK, **options} for i, url in enumerate(servers)}
    source = {"format": "folder", "path": "regions.jsonl"}
    return LongGritSettings(output_dir="out", source=source, model=model, servers=servers, stages=stages or {})


def request_of(number, stage="object_caption", *, images=(), schema=SCHEMA, model="tiny", work=None):
    messages = (Message("system", "Describe."), Message("user", f"A kettle, number {number}.", images))
    return Request(f"i#{number}", stage, model, messages, "0" * 16, schema, {"temperature": 0.2}, 64, work=work)


def region_work():
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG")
    region = SourceRegion("i#0", (5.0, 5.0, 25.0, 25.0), mask_source="box")
    image = SourceImage("i", "i.png", {"path": "i.png"}, 40, 30, (region,))
    return RegionWork(ImageWork(image, file.getvalue), region)


def ask_all(settings, requests):
    """Answers or exceptions, in order, asked all at once."""

    async def run():
        engine = OpenAIEngine(settings)
        try:
            return await asyncio.gather(*map(engine.ask, requests), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_with_tokens_and_images(server, stream):
    work = region_work()
    [answer] = ask_all(settings_for(server.url, stream=stream), [request_of(1, images=("crop", "overlay"), work=work)])
    assert "kettle" in json.loads(answer.text)["text"] and answer.finish_reason == "stop"
    assert answer.server == server.url and answer.time.endswith("+00:00")
    assert answer.completion_tokens > 20 and answer.prompt_tokens > 0
    assert server.stats()["images"] == 2
    # The same without streaming and with: a function of what was asked.
    [other] = ask_all(
        settings_for(server.url, stream=not stream), [request_of(1, images=("crop", "overlay"), work=work)]
    )
    assert other.text == answer.text and list(server.finished().values()) == [2]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", "429 500 503 hang closed truncated not_json wrong_form empty endless huge".split())
def test_each_fault_is_tried_again(server, fault, stream):
    server.configure(transport={fault: 1.0}, max_transport_faults=1)
    timeouts = SHORT if fault in ("hang", "endless") else {}
    answers = ask_all(settings_for(server.url, stream=stream, **timeouts), [request_of(n) for n in range(3)])
    assert all("kettle" in answer.text for answer in answers), answers
    stats = server.stats()
    assert stats["faults"] == {fault: 3} and set(stats["finished"].values()) == {1} and len(stats["finished"]) == 3


@pytest.mark.parametrize(
    "fault, says",
    [
        ("429", "HTTP 429: Too many requests"),
        ("500", "HTTP 500: Internal Server Error"),
        ("empty", "an empty answer"),
        ("truncated", "cut off"),
        ("not_json", "no JSON"),
        ("endless", "within 1.5 s"),
        ("hang", "within 1.5 s"),
        ("huge", "more than"),
        ("closed", "Connection error"),
    ],
)
def test_a_request_that_always_fails(server, fault, says):
    server.configure(transport={fault: 1.0}, max_transport_faults=100, retry_after=None)
    timeouts = SHORT if fault in ("hang", "endless") else {}
    [error] = ask_all(settings_for(server.url, max_attempts=2, **timeouts), [request_of(1)])
    assert isinstance(error, RequestFailed) and says in str(error) and server.url in str(error)
    assert "2 attempts" in str(error) and server.stats()["requests"] == 2


@pytest.mark.parametrize("form", ["ms", "seconds", "date"])
def test_retry_after_is_honoured(server, form):
    # A date has whole seconds, so that 2 s are more than 1.
    amount = {"ms": 900, "seconds": 1, "date": 2}[form]
    server.configure(transport={"429": 1.0}, max_transport_faults=1, retry_after=[form, amount])
    begin = time.monotonic()
    [answer] = ask_all(settings_for(server.url, max_wait=30.0), [request_of(1)])
    assert "kettle" in answer.text and time.monotonic() - begin >= 0.89


def test_being_put_off_costs_no_attempt_and_the_server_is_left_alone(server):
    """Longer than `max_wait`, more often than `max_attempts`; a busy server is not asked by others meanwhile."""
    server.configure(transport={"429": 1.0}, max_transport_faults=3, retry_after=["ms", 200])
    begin = time.monotonic()
    answers = ask_all(settings_for(server.url, max_attempts=1, max_concurrency=1), [request_of(n) for n in range(2)])
    assert all("kettle" in answer.text for answer in answers), answers
    # Three times each, one after the other.
    assert time.monotonic() - begin >= 1.2 and server.stats()["requests"] == 8


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_puts_off_for_hours_stops_the_run(server, status):
    server.configure(status=status, retry_all=3600)
    settings = settings_for(server.url, outage_timeout=0.5, total_timeout=0.1, max_concurrency=2)
    errors = ask_all(settings, [request_of(n) for n in range(5)])
    assert all(isinstance(error, EngineUnavailable) and f"HTTP {status}" in str(error) for error in errors), errors
    # At first, and once the outage has lasted for so long.
    assert server.stats()["requests"] <= 4


def test_one_request_that_is_always_put_off_fails_alone(server):
    """The others are answered, so that it is no outage: it is too large for the server's limit, say."""
    server.configure(status_of={"number 7.": 429}, retry_all=0.02)
    settings = settings_for(server.url, outage_timeout=0.4, max_attempts=3, max_concurrency=1)

    async def run():
        engine = OpenAIEngine(settings)
        bad = asyncio.ensure_future(engine.ask(request_of(7)))
        for n in range(100, 1000):
            await engine.ask(request_of(n))
            if bad.done():
                break
        await engine.close()
        return bad.exception()

    error = asyncio.run(run())
    assert isinstance(error, RequestFailed) and "HTTP 429" in str(error)


@pytest.mark.parametrize(
    "value, seconds",
    [("nan", None), ("inf", None), ("1e400", None), ("-5", 0.0), ("3", 3.0), ("soon", None)]
    + [("Wed, 21 Oct 0001 07:28:00 GMT", 0.0), ("Wed, 99 Foo 2020 07:28:00 GMT", None)],
)
def test_odd_retry_after(value, seconds):
    assert _retry_after({"retry-after": value}) == seconds


def test_slow_models_are_waited_for(server):
    """With the defaults' proportions: an answer in one piece may take longer than `request_timeout`."""
    defaults = ServerSettings(base_url=server.url)
    scale = 0.3 / defaults.request_timeout
    server.configure(delay=0.6)
    settings = settings_for(server.url, request_timeout=0.3, total_timeout=defaults.total_timeout * scale)
    [answer] = ask_all(settings, [request_of(1)])
    assert "kettle" in answer.text and server.stats()["requests"] == 1 and not defaults.stream
    # A stream that does not begin is given up.
    [error] = ask_all(settings_for(server.url, request_timeout=0.3, stream=True, max_attempts=1), [request_of(1)])
    assert isinstance(error, RequestFailed) and "nothing came for 0.3 s" in str(error)


@pytest.mark.parametrize("stream", [False, True])
def test_all_wrong_forms_are_failed_attempts(server, stream):
    server.configure(transport={"wrong_form": 1.0}, max_transport_faults=1)
    answers = ask_all(
        settings_for(server.url, stream=stream, breaker_failures=100), [request_of(n) for n in range(60)]
    )
    assert all("kettle" in answer.text for answer in answers), answers
    assert server.stats()["faults"] == {"wrong_form": 60}


@pytest.mark.parametrize("form", WRONG_FORMS)
def test_wrong_forms(form):
    body = _JsonBody()
    body.feed(form.encode())
    with pytest.raises(_BadBody):
        body.result()
    stream = _EventStream()
    with pytest.raises(_BadBody):
        stream.feed(f"data: {form}\n\n".encode())
        stream.feed(b"data: [DONE\n\n")
        stream.result()


@pytest.mark.parametrize("stream", [False, True])
def test_odd_token_counts_count_nothing(server, stream):
    server.configure(content={"odd_usage": 1.0})
    answers = ask_all(settings_for(server.url, stream=stream), [request_of(n) for n in range(40)])
    assert all("kettle" in a.text and (a.prompt_tokens, a.completion_tokens) == (0, 0) for a in answers), answers
    assert server.stats()["requests"] == 40


def test_an_odd_finish_reason_is_none():
    body = _JsonBody()
    body.feed(b'{"choices": [{"message": {"content": [{"text": 5}, {"text": "A kettle."}]}, "finish_reason": {}}]}')
    assert body.result() == ("A kettle.", (0, 0), None)


@pytest.mark.parametrize("stream", [False, True])
def test_refusals_and_answers_cut_before_their_first_word(server, stream):
    server.configure(refusal="I cannot describe this picture.")
    [answer] = ask_all(settings_for(server.url, stream=stream), [request_of(1)])
    assert (answer.text, answer.finish_reason) == ("I cannot describe this picture.", "content_filter")
    server.configure(refusal=None, body='{"choices": [{"message": {"content": null}, "finish_reason": "length"}]}')
    [answer] = ask_all(settings_for(server.url), [request_of(1)])
    assert (answer.text, answer.finish_reason) == ("", "length")
    server.configure(body='{"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}')
    [answer] = ask_all(settings_for(server.url), [request_of(1)])
    assert (answer.text, answer.finish_reason) == ("", "content_filter")
    # As gateways with a filter before the model answer.
    server.configure(body=None, status=400, code="content_filter")
    [answer] = ask_all(settings_for(server.url), [request_of(1)])
    assert "answered by the test" in answer.text and answer.finish_reason == "content_filter"
    assert server.stats()["requests"] == 4


def test_a_server_that_refuses_is_asked_less(server):
    server.configure(transport={"429": 1.0}, max_transport_faults=1, retry_after=["ms", 400], delay=0.02)
    settings = settings_for(server.url, max_concurrency=2, max_wait=30.0)
    begin = time.monotonic()
    answers = ask_all(settings, [request_of(n) for n in range(4)])
    assert all("kettle" in answer.text for answer in answers)
    # Two of four are refused at first and hold their places, so that the other two come no sooner.
    assert server.stats()["peak"] <= 2 and time.monotonic() - begin >= 0.8


def test_limit_over_all_stages(server):
    server.configure(delay=0.03)
    requests = [request_of(n, stage) for n in range(10) for stage in ("object_caption", "verify", "fuse")]
    answers = ask_all(settings_for(server.url, max_concurrency=4), requests)
    assert all("kettle" in answer.text for answer in answers)
    assert server.stats()["peak"] == 4


def test_load_goes_to_the_servers_of_the_stage(server, tmp_path):
    with running_server(tmp_path, delay=0.02) as other:
        server.configure(delay=0.02)
        settings = settings_for(server.url, other.url, max_concurrency=3, stages={"fuse": {"servers": ["s1"]}})
        answers = ask_all(settings, [request_of(n) for n in range(20)])
        counts = [sum(answer.server == url for answer in answers) for url in (server.url, other.url)]
        assert min(counts) >= 5 and sum(counts) == 20
        assert {answer.server for answer in ask_all(settings, [request_of(n, "fuse") for n in range(20)])} == {
            other.url
        }


def test_a_dead_server_is_left_alone(server, caplog):
    settings = settings_for(
        "http://127.0.0.1:9/v1", server.url, breaker_failures=3, breaker_wait=60.0, max_concurrency=4
    )
    with caplog.at_level(logging.WARNING):
        answers = ask_all(settings, [request_of(n) for n in range(30)])
    assert {answer.server for answer in answers} == {server.url}
    assert len([record for record in caplog.records if "left alone" in record.getMessage()]) == 1


def test_an_outage_is_waited_for(server, caplog):
    """A server that is down for a while costs nothing but time."""
    server.configure(status=503)
    settings = settings_for(server.url, breaker_failures=2, max_attempts=6, max_concurrency=4)

    async def run():
        engine = OpenAIEngine(settings)
        asked = asyncio.gather(*(engine.ask(request_of(n)) for n in range(40)))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(server.configure, status=None)
        answers = await asked
        await engine.close()
        return answers

    with caplog.at_level(logging.WARNING):
        answers = asyncio.run(run())
    assert len(answers) == 40 and "answers again" in caplog.text
    # While it was down, it was asked a few times only.
    assert server.stats()["requests"] < 40 + 30


def test_a_long_outage_stops_the_run(server):
    server.configure(status=500)
    settings = settings_for(server.url, breaker_failures=2, max_attempts=1000, outage_timeout=0.3, max_concurrency=4)
    errors = ask_all(settings, [request_of(n) for n in range(20)])
    assert all(isinstance(error, EngineUnavailable) for error in errors)
    assert server.url in str(errors[0]) and "outage_timeout" in str(errors[0]) and "HTTP 500" in str(errors[0])


def test_one_broken_model_of_a_server_is_named(server):
    """Answers of another model of the server do not hide that."""
    server.configure(status_of={"broken": 500})
    settings = settings_for(server.url, breaker_failures=2, max_attempts=1000, outage_timeout=0.3, max_concurrency=2)

    async def run():
        engine = OpenAIEngine(settings)
        broken = [asyncio.ensure_future(engine.ask(request_of(f"{n} broken", "fuse", model="sick"))) for n in range(3)]
        healthy, number = [], 0
        while not all(task.done() for task in broken):
            healthy.append(await engine.ask(request_of(number)))
            number += 1
        await engine.close()
        return healthy, [task.exception() for task in broken]

    healthy, errors = asyncio.run(run())
    assert healthy and all(isinstance(error, EngineUnavailable) and "'sick'" in str(error) for error in errors)


@pytest.mark.parametrize("status, most", [(400, 21), (403, 21), (413, 21), (500, 65)])
def test_when_all_requests_fail_the_run_stops(server, status, most):
    """Not a dataset without regions: the first 20 fail, and all others wait for who mends it."""
    server.configure(status=status)
    options = {"json_mode": "off", "max_concurrency": 1, "max_attempts": 2, "breaker_failures": 1000}
    errors = ask_all(settings_for(server.url, **options), [request_of(n, "fuse") for n in range(40)])
    kinds = [type(error) for error in errors]
    assert kinds.count(RequestFailed) == 19 and kinds.count(EngineUnavailable) == 21
    [said] = {str(error) for error in errors if isinstance(error, EngineUnavailable)}
    assert "20 requests of the stage 'fuse'" in said and f"HTTP {status}" in said and "stages.fuse.parameters" in said
    assert server.stats()["requests"] <= most


def test_some_refused_requests_do_not_stop_the_run(server):
    server.configure(status_of={"number 1": 400, "number 2": 403})
    settings = settings_for(server.url, json_mode="off", max_concurrency=1)
    results = ask_all(settings, [request_of(n) for n in (0, *range(100, 199), 3, *range(200, 250))])
    kinds = [type(result) for result in results]
    assert kinds.count(RequestFailed) == 149 and "kettle" in results[0].text and "kettle" in results[100].text


@pytest.mark.parametrize("status", [401, 402, 404])
def test_a_refusal_after_answers_is_a_failed_attempt(server, status):
    """A gateway that is restarted and knows neither keys nor models for a moment."""

    async def run():
        engine = OpenAIEngine(settings_for(server.url, max_wait=0.2))
        await engine.ask(request_of(0))
        await asyncio.to_thread(server.configure, status=status)
        asked = asyncio.gather(*(engine.ask(request_of(n)) for n in range(1, 5)))
        while server.stats()["requests"] < 3:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.configure, status=None)
        answers = await asked
        await engine.close()
        return answers

    assert all("kettle" in answer.text for answer in asyncio.run(run()))


def test_403_for_one_request_fails_alone_also_at_first(server):
    """As of a filter for what is in it: if it stopped the run, a run that goes on would end there again and again."""
    server.configure(status_of={"number 7.": 403})
    settings = settings_for(server.url, max_concurrency=1)
    error, answer = ask_all(settings, [request_of(7), request_of(8)])
    assert isinstance(error, RequestFailed) and "HTTP 403" in str(error) and "kettle" in answer.text


def test_refused_key_and_unknown_model_stop_the_run(server, monkeypatch):
    monkeypatch.setenv("LONGGRIT_TEST_KEY", KEY)
    server.configure(api_key="another")
    errors = ask_all(settings_for(server.url, api_key_env="LONGGRIT_TEST_KEY"), [request_of(n) for n in range(5)])
    assert all(isinstance(error, EngineUnavailable) for error in errors)
    assert "401" in str(errors[0]) and "api_key_env" in str(errors[0]) and KEY not in str(errors)
    assert server.stats()["requests"] <= 5
    server.configure(api_key=None, models=["other"])
    [error] = ask_all(settings_for(server.url), [request_of(1)])
    assert isinstance(error, EngineUnavailable) and "404" in str(error) and "'tiny'" in str(error)


def test_a_server_without_the_model_leaves_it_to_the_others(server, tmp_path):
    with running_server(tmp_path, models=["other"]) as other:
        answers = ask_all(settings_for(other.url, server.url), [request_of(n) for n in range(20)])
        assert {answer.server for answer in answers} == {server.url}
        assert other.stats()["requests"] <= 16


def test_a_bad_request_fails_alone(server):
    server.configure(refuse=["temperature"])
    [error] = ask_all(settings_for(server.url, json_mode="off"), [request_of(1)])
    assert isinstance(error, RequestFailed) and "temperature is not supported" in str(error)
    assert server.stats()["requests"] == 1


@pytest.mark.parametrize("refused, used", [(["json_schema"], "object"), (["response_format"], "off")])
def test_a_server_without_json_mode(server, caplog, refused, used):
    server.configure(refuse=refused)
    settings = settings_for(server.url, max_concurrency=1)
    with caplog.at_level(logging.WARNING):
        answers = ask_all(settings, [request_of(n) for n in range(5)])
    assert all("kettle" in answer.text for answer in answers)
    # Found out once, then known.
    assert server.stats()["requests"] == 5 + (1 if used == "object" else 2)
    assert [r.getMessage() for r in caplog.records if "json_mode" in r.getMessage()] == [
        f"{server.url} refuses json_mode 'schema', {used!r} is used: {refused[0]} is not supported by this server"
    ]


def test_what_is_sent(server):
    def sent(**options):
        ask_all(settings_for(server.url, **options), [request_of(1)])
        return server.stats()["last"]

    body = sent(extra_body={"top_k": 5})["body"]
    assert body["model"] == "tiny" and body["temperature"] == 0.2 and body["top_k"] == 5 and "stream" not in body
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert sent(json_mode="object")["body"]["response_format"] == {"type": "json_object"}
    assert "response_format" not in sent(json_mode="off")["body"]
    body = sent(stream=True)["body"]
    assert body["stream"] is True and body["stream_options"] == {"include_usage": True}


def test_streaming_without_token_counts(server):
    server.configure(refuse=["stream_options"])
    [answer] = ask_all(settings_for(server.url, stream=True), [request_of(1)])
    assert "kettle" in answer.text and answer.completion_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_long_answer_is_cut(server, stream):
    server.configure(length=MAX_TEXT * 2)
    [answer] = ask_all(settings_for(server.url, stream=stream), [request_of(1)])
    assert len(answer.text) == MAX_TEXT and answer.finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_keys_stay_secret(server, monkeypatch, caplog, stream):
    monkeypatch.setenv("LONGGRIT_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    settings = settings_for(server.url, api_key_env="LONGGRIT_TEST_KEY", max_attempts=2, stream=stream)
    server.configure(api_key=KEY)
    [answer] = ask_all(settings, [request_of(1)])
    assert server.stats()["last"]["authorization"] == f"Bearer {KEY}"
    # Servers that say what they were sent.
    server.configure(status=500)
    [failed] = ask_all(settings, [request_of(2)])
    server.configure(status=400)
    [refused] = ask_all(settings, [request_of(3)])
    server.configure(status=None, api_key="another")
    [unavailable] = ask_all(settings, [request_of(4)])
    server.configure(api_key=None, echo=True)
    [echoed] = ask_all(settings, [request_of(5)])
    texts = ["".join(traceback.format_exception(error)) for error in (failed, refused, unavailable)]
    for error in (failed, refused, unavailable):
        assert "***" in str(error)
        while error is not None:
            texts.append(repr(error))
            error = error.__context__
    engine = OpenAIEngine(settings)
    texts += [repr(settings), settings.model_dump_json(), repr(vars(engine).get("_servers")), repr(engine)]
    assert "***" in echoed.text
    texts += [repr(answer), repr(echoed), caplog.text]
    assert len(caplog.records) > 20 and KEY not in "\n".join(texts)


@pytest.mark.parametrize("before", [0, 80, 170, 190, 450, 480, 495])
def test_keys_are_taken_out_before_texts_are_cut(server, monkeypatch, before):
    monkeypatch.setenv("LONGGRIT_TEST_KEY", KEY)
    for body in ("y" * before + KEY, json.dumps({"error": "y" * before + KEY}), json.dumps({"x": "y" * before + KEY})):
        server.configure(body=body)
        [error] = ask_all(settings_for(server.url, api_key_env="LONGGRIT_TEST_KEY", max_attempts=1), [request_of(1)])
        assert isinstance(error, RequestFailed) and KEY[:8] not in str(error), error


@pytest.mark.parametrize("stream", [False, True])
def test_a_key_at_the_cut_of_a_long_answer(monkeypatch, server, stream):
    monkeypatch.setenv("LONGGRIT_TEST_KEY", KEY)
    settings = settings_for(server.url, api_key_env="LONGGRIT_TEST_KEY", stream=stream)
    # The echo, which holds the key, goes beyond the longest text until the key is out of it.
    server.configure(length=MAX_TEXT - 36, echo=True)
    [answer] = ask_all(settings, [request_of(1)])
    assert answer.text.endswith("Bearer ***.")


def test_a_base_url_that_holds_the_key(monkeypatch):
    monkeypatch.setenv("LONGGRIT_TEST_KEY", KEY + "+=")
    for path in (KEY + "+=", KEY + "%2B%3D"):
        with pytest.raises(ValueError, match="'s0' holds the key.*LONGGRIT_TEST_KEY") as error:
            OpenAIEngine(settings_for(f"http://localhost:9/{path}/v1", api_key_env="LONGGRIT_TEST_KEY"))
        assert KEY not in str(error.value)


@contextmanager
def raw_server(reply):
    """A server that sends what `reply` writes to the socket; yields its address and the heads of what it was sent."""
    heads = []

    def serve():
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                received = b""
                while b"\r\n\r\n" not in received:
                    received += connection.recv(65536)
                heads.append(received.split(b"\r\n\r\n")[0].decode())
                with suppress(OSError):
                    reply(connection)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", heads
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(30)


@pytest.mark.parametrize("status", ["500 Error", "302 Found\r\nLocation: /elsewhere", "429 Later"])
def test_little_is_read_of_an_error(status):
    sent = []

    def endless(connection):
        connection.sendall(f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\n\r\n".encode())
        for _ in range(512):
            connection.sendall(b"x" * 2**20)
            sent.append(2**20)

    with raw_server(endless) as (url, _):
        [error] = ask_all(settings_for(f"{url}/v1", max_attempts=1), [request_of(1)])
    assert isinstance(error, RequestFailed) and len(str(error)) < 2000
    # What was on its way in buffers is lost, for each of up to 21 redirects.
    assert sum(sent) < 400 * 2**20


def test_no_proxy_for_loopback(server, monkeypatch):
    """A proxy of the environment can reach no server of this machine, and must not see what it is sent."""
    with raw_server(lambda connection: connection.sendall(b"HTTP/1.1 500 Error\r\n\r\n")) as (proxy, heads):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        urls = [server.url, server.url.replace("127.0.0.1", "localhost")]
        answers = [ask_all(settings_for(url, max_attempts=1), [request_of(1)])[0] for url in urls]
        assert all("kettle" in answer.text for answer in answers), answers
        assert not heads
        # Others go through it.
        [error] = ask_all(settings_for("http://vllm.example/v1", max_attempts=1), [request_of(1)])
        assert isinstance(error, RequestFailed) and "http://vllm.example/v1/chat/completions" in heads[0]


@pytest.mark.parametrize("with_key", [False, True])
def test_headers_of_the_environment_are_for_openai_alone(server, monkeypatch, with_key):
    monkeypatch.setenv("LONGGRIT_TEST_KEY", KEY)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "not-for-you")
    custom = "X-Mine: not-for-you\nauthorization: Bearer not-for-you\nOpenAI-Organization: not-for-you"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", custom)
    key = {"api_key_env": "LONGGRIT_TEST_KEY"} if with_key else {}
    [answer] = ask_all(settings_for(server.url, **key), [request_of(1)])
    last = server.stats()["last"]
    assert "kettle" in answer.text and "not-for-you" not in json.dumps(last)
    assert last["authorization"] == (f"Bearer {KEY}" if with_key else None)


def test_a_line_without_end_is_given_up():
    stream = _EventStream()
    with pytest.raises(_BadBody, match="line of more than"):
        for _ in range(MAX_LINE // 2**16 + 1):
            stream.feed(b"x" * 2**16)


def test_without_a_key_none_is_sent(server, monkeypatch):
    """The key of OPENAI_API_KEY is not for whichever server."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    [answer] = ask_all(settings_for(server.url), [request_of(1)])
    last = server.stats()["last"]
    assert "kettle" in answer.text and last["authorization"] is None and KEY not in json.dumps(last)


def test_a_key_that_is_not_set(server, monkeypatch):
    monkeypatch.delenv("LONGGRIT_TEST_KEY", raising=False)
    with pytest.raises(ValueError, match="'s0'.*LONGGRIT_TEST_KEY"):
        OpenAIEngine(settings_for(server.url, api_key_env="LONGGRIT_TEST_KEY"))


def test_pictures_are_not_drawn_on_the_event_loop(server):
    """While a slow disk is read for one request, the loop does other things."""
    work = region_work()
    read = work.image._read
    reading, go_on, went_on = threading.Event(), threading.Event(), []

    def slowly():
        reading.set()
        went_on.append(go_on.wait(30))
        return read()

    work.image._read = slowly

    async def run():
        engine = OpenAIEngine(settings_for(server.url))
        asked = asyncio.ensure_future(engine.ask(request_of(1, images=("image",), work=work)))
        while not reading.is_set():
            await asyncio.sleep(0.005)
        go_on.set()
        answer = await asked
        await engine.close()
        return answer

    assert "kettle" in asyncio.run(run()).text and went_on == [True]


def test_an_unreadable_image_is_no_failure_of_the_server(server):
    work = region_work()
    work.image._read = lambda: b"no image"
    settings = settings_for(server.url, max_concurrency=1)
    requests = [request_of(1, images=("image",), work=work), request_of(2)]
    error, answer = ask_all(settings, requests)
    assert isinstance(error, ValueError) and "'i'" in str(error) and "kettle" in answer.text


def test_cancelled_requests_give_their_places_back(server):
    async def run():
        engine = OpenAIEngine(settings_for(server.url, max_concurrency=2))
        server.configure(delay=0.3)
        asked = [asyncio.ensure_future(engine.ask(request_of(n))) for n in range(6)]
        await asyncio.sleep(0.1)
        for task in asked[:5]:
            task.cancel()
        results = await asyncio.gather(*asked, return_exceptions=True)
        answer = await engine.ask(request_of(9))
        await engine.close()
        return results, answer

    results, answer = asyncio.run(run())
    assert [isinstance(r, asyncio.CancelledError) for r in results] == [True] * 5 + [False] and "kettle" in answer.text


def test_faults_of_all_kinds_at_once(server):
    faults = dict.fromkeys("429 500 503 closed truncated not_json wrong_form empty".split(), 0.04)
    server.configure(transport={**faults, "hang": 0.01, "endless": 0.01})
    timeouts = {"request_timeout": 2.0, "total_timeout": 3.0}
    settings = settings_for(server.url, max_concurrency=32, breaker_failures=20, **timeouts)
    answers = ask_all(settings, [request_of(n) for n in range(300)])
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    stats = server.stats()
    assert len(stats["finished"]) == 300 and sum(stats["faults"].values()) > 60
    # Nothing that came through was asked again.
    assert set(stats["finished"].values()) == {1}


def test_the_breaker():
    now = 0.0
    breaker = CircuitBreaker(3, 10.0, forget=50.0, clock=lambda: now)
    assert [breaker.failed(), breaker.failed(), breaker.allows()] == [False, False, True]
    breaker.answered()
    assert [breaker.failed(), breaker.failed(), breaker.failed()] == [False, False, True] and not breaker.allows()
    now = 9.0
    # One that was on its way says nothing new.
    assert not breaker.failed() and not breaker.allows()
    now = 10.0
    assert breaker.allows()
    breaker.begin()
    assert not breaker.allows()
    assert breaker.failed() and not breaker.allows()
    now = 20.0
    assert breaker.allows() and breaker.silent_for() == 10.0
    breaker.begin()
    breaker.abandoned()
    assert breaker.allows(), "another one may try"
    # Long after, with nothing asked in between, the time without answers begins anew.
    now = 100.0
    breaker.failed()
    assert breaker.silent_for() == 0.0
    assert breaker.answered() and breaker.allows() and not breaker.answered()
    # Being put off for longer than that is no time in which nothing was asked.
    breaker.pause(70.0)
    assert not breaker.allows() and not breaker.answered() and not breaker.allows()
    breaker.pause(60.0)
    now = 170.0
    assert breaker.allows()
    breaker.pause(70.0)
    assert breaker.silent_for() == 70.0


def test_places_go_out_in_order_and_to_those_who_may_use_them():
    async def run():
        one, two = (Server(name, ServerSettings(base_url="http://x/v1", max_concurrency=1)) for name in "ab")
        pool, order = ServerPool(), []

        async def wait(name, servers):
            server = await pool.acquire(servers, "m")
            order.append((name, server.name))
            return server

        first = [await pool.acquire((one, two), "m"), await pool.acquire((one, two), "m")]
        assert {server.name for server in first} == {"a", "b"}
        lines = {"w": (one,), "x": (two,), "y": (one, two), "z": (two,)}
        tasks = [asyncio.ensure_future(wait(name, servers)) for name, servers in lines.items()]
        await asyncio.sleep(0)
        for server in (two, two, two, one):
            pool.release(server)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(run()) == [("x", "b"), ("y", "b"), ("z", "b"), ("w", "a")]


@pytest.mark.parametrize("seed", range(3))
def test_no_place_is_lost_and_no_limit_broken(seed):
    """Requests that end in all ways, also cancelled while they wait, leave nothing behind, and all get a place."""
    rng = random.Random(seed)

    async def request(pool, servers, peaks):
        allowed = tuple(server for server in servers if rng.random() < 0.6) or servers
        ends = ""
        while ends != "answered":
            server = await pool.acquire(allowed, "m")
            peaks[server.name] = max(peaks[server.name], server.active)
            try:
                await asyncio.sleep(rng.random() * 0.002)
                ends = rng.choice(["answered", "answered", "failed", "refused", "abandoned"])
                if getattr(server.model("m").breaker, ends)() and ends == "failed":
                    pool.leave_alone(0.005)
                if ends == "refused":
                    pool.rest(server, 0.002)
            except asyncio.CancelledError:
                server.model("m").breaker.abandoned()
                raise
            finally:
                pool.release(server)

    async def run():
        common = {"base_url": "http://x/v1", "breaker_failures": 2, "breaker_wait": 0.005}
        limits = {"a": 1, "b": 2, "c": 3}
        servers = [Server(n, ServerSettings(max_concurrency=limit, **common)) for n, limit in limits.items()]
        pool, peaks = ServerPool(), dict.fromkeys(limits, 0)
        tasks = [asyncio.ensure_future(request(pool, tuple(servers), peaks)) for _ in range(100)]
        for _ in range(10):
            await asyncio.sleep(0.002)
            rng.choice(tasks).cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}
        assert peaks == limits and not any(server.active for server in servers)

    asyncio.run(run())
