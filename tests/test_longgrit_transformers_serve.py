# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Against `transformers serve`, a real server, with a tiny vision-language model that knows a few answers by heart."""

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest
from longgrit_for_tests import outcome_of, rows_of
from PIL import Image
from tiny_vlm_for_tests import ENOUGH, make_tiny_vlm

from processing_pixclip.longgrit.config import LongGritSettings
from processing_pixclip.longgrit.engines import Answer, EngineUnavailable, Message, Request, RequestFailed
from processing_pixclip.longgrit.openai_engine import OpenAIEngine
from processing_pixclip.longgrit.prompts import load_prompt
from processing_pixclip.longgrit.records import ImageWork, RegionWork, SourceImage
from processing_pixclip.longgrit.region_views import render_view
from processing_pixclip.longgrit.runner import run_pipeline


TIME = "2026-01-01T00:00:00+00:00"
GREEDY = {"temperature": 0, "max_tokens": 300}
COLORS = {"red": "yellow", "blue": "green"}
# In place of the prompts' own words, which are many to learn by heart.
QUESTIONS = {
    "object_caption": "Describe the {{ name }}.",
    "verify": "Is it so? {{ object_text }}",
    "context_caption": "Where is the {{ name }}?",
    "fuse": "Merge: {{ object_text }} {{ context_text }}",
    "hard_negatives": "Change this: {{ text }}",
}


@contextmanager
def serving(folder, home):
    """`transformers serve` with a model; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu"]
    home.mkdir()
    with open(home / "serve.log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        for _ in range(1200):
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=60, trust_env=False).raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None, (home / "serve.log").read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def short_prompts(folder):
    """Prompt files that ask for the same form of answers about the same pictures, in few words."""
    folder.mkdir()
    for stage, question in QUESTIONS.items():
        front, _, _ = load_prompt(stage).path.read_text().partition("--- system ---")
        (folder / f"{stage}.jinja").write_text(f"{front}--- user ---\n{question}\n")
    return {stage: {"prompt": str(folder / f"{stage}.jinja")} for stage in QUESTIONS}


def settings_for(output, source, model, url, stream=False, prompts=None):
    # The first answer waits for the model to be loaded.
    server = {"base_url": url, "stream": stream, "max_concurrency": 2, "request_timeout": 240.0, "max_attempts": 2}
    prompts = prompts or {}
    stages = {name: {"parameters": GREEDY, "image_side": 64, **prompts.get(name, {})} for name in QUESTIONS}
    stages["hard_negatives"] |= {"count": 2}
    return LongGritSettings(
        output_dir=output,
        source={"format": "folder", "path": str(source)},
        filters={"hash_distance": None},
        model=str(model),
        servers={"serve": server},
        stages=stages,
    )


def photo(color):
    file = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(file, "JPEG")
    return file.getvalue()


def work_of(color):
    image = SourceImage(color, "i.jpg", {"path": "i.jpg"}, 64, 48)
    return RegionWork(ImageWork(image, lambda: photo(color)))


def as_chat(request):
    """A request as the messages that processors take."""
    chat = []
    for message in request.messages:
        views = [render_view(request.work, name, request.image_side) for name in message.images]
        parts = [{"type": "image", "image": Image.open(io.BytesIO(view)).convert("RGB")} for view in views]
        chat.append({"role": message.role, "content": [*parts, {"type": "text", "text": message.text}]})
    return chat


def test_answers_are_of_the_picture_streamed_or_not(tmp_path):
    def request_of(color, model):
        messages = (Message("system", "You describe."), Message("user", "What is it?", ("image",)))
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        return Request(color, "object_caption", model, messages, "0" * 16, schema, GREEDY, 64, work=work_of(color))

    model = str(tmp_path / "model")
    answers = {"red": '{"text": "A red kettle."}', "blue": '```json\n{"text": "A wide blue kettle."}\n```'}
    lessons = [(as_chat(request_of(color, model)), answer) for color, answer in answers.items()]
    assert make_tiny_vlm(model, ["You describe.", "What is it?", *answers.values()], lessons) < ENOUGH

    async def ask(settings, requests):
        engine = OpenAIEngine(settings)
        try:
            return await asyncio.gather(*map(engine.ask, requests), return_exceptions=True)
        finally:
            await engine.close()

    with serving(model, tmp_path / "home") as url:
        for stream in (False, True):
            settings = settings_for(tmp_path, "regions.jsonl", model, url, stream)
            asked = [request_of(color, model) for color in ("red", "blue", "blue", "red")]
            got = asyncio.run(ask(settings, asked))
            assert [answer.text for answer in got] == [answers[c] for c in ("red", "blue", "blue", "red")], got
            assert got[0].finish_reason == "stop" and got[0].server == url
            assert got[0].prompt_tokens > 8 and 3 < got[0].completion_tokens < got[1].completion_tokens
        [error] = asyncio.run(ask(settings, [request_of("red", str(tmp_path / "another"))]))
        assert isinstance(error, (RequestFailed, EngineUnavailable)) and "another" in str(error)
        # It has no JSON mode, and says so in its log alone.
        assert "response_format" in (tmp_path / "home" / "serve.log").read_text()


class Teacher:
    """Answers what the model is to learn by heart, and remembers it.

    As a model without JSON mode does, its first object captions are prose, and its verdicts stand in a fence.
    """

    def __init__(self):
        self.lessons = []

    async def ask(self, request):
        text = json.dumps(self.answer(request))
        if request.stage == "verify":
            text = f"```json\n{text}\n```"
        if request.stage == "object_caption" and len(request.messages) == 1:
            text = f"It is a {self.color_of(request)} kettle."
        self.lessons.append((as_chat(request), text))
        return Answer(text, "teacher", TIME, 0, 0, "stop")

    async def close(self):
        pass

    def color_of(self, request):
        return next(color for color in COLORS if request.item_id.startswith(color))

    def answer(self, request):
        color = self.color_of(request)
        text = f"A plain {color} kettle with one handle fills the middle of the photo, and nothing else is near it."
        return {
            "object_caption": {"text": f"A plain {color} kettle with one handle."},
            "verify": {"reason": f"The picture shows a {color} kettle.", "verdict": "consistent"},
            "context_caption": {"text": f"The {color} kettle fills the middle of the photo, and nothing is near it."},
            "fuse": {"text": text},
            "hard_negatives": {
                "negatives": [
                    {"changed": "color", "text": text.replace(color, COLORS[color])},
                    {"changed": "count", "text": text.replace("one handle", "two handles")},
                ]
            },
        }[request.stage]


def texts_of(output):
    """All that models wrote, by region."""
    keys = ("object_text", "context_text", "text", "hard_negatives")
    regions = [region for row in rows_of(output).values() for region in row["regions"]]
    return {region["region_id"]: {key: region[key] for key in keys} for region in regions}


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    """All stages: a model that was taught by a run with a teacher makes the same dataset from behind the server."""
    photos = tmp_path / "photos"
    photos.mkdir()
    region = {"box": [8, 8, 56, 40], "category": "kettle"}
    with open(photos / "regions.jsonl", "w") as lines:
        for color in COLORS:
            (photos / f"{color}.jpg").write_bytes(photo(color))
            record = {"image": f"{color}.jpg", "image_id": color, "width": 64, "height": 48, "regions": [region]}
            lines.write(json.dumps(record) + "\n")
    model, teacher, prompts = tmp_path / "model", Teacher(), short_prompts(tmp_path / "prompts")
    path = photos / "regions.jsonl"
    taught = settings_for(tmp_path / "taught", path, model, "http://127.0.0.1:9/v1", prompts=prompts)
    run_pipeline(taught, engines={"openai": teacher})
    wanted = texts_of(taught.output_dir)
    # Six requests each: five stages, one of them twice.
    assert len(wanted) == 2 and len(teacher.lessons) == 12, outcome_of(taught.output_dir)
    # The photos differ in colour alone, so those that look at them must be told apart by it.
    texts = [part["text"] for chat, _ in teacher.lessons for message in chat for part in message["content"][-1:]]
    texts += [answer for _, answer in teacher.lessons]
    assert make_tiny_vlm(model, texts, teacher.lessons, steps=1000, size=1000) < ENOUGH
    with serving(model, tmp_path / "home") as url:
        for stream in (False, True):
            settings = settings_for(tmp_path / f"out{stream}", path, model, url, stream, prompts)
            summary = run_pipeline(settings)
            assert texts_of(settings.output_dir) == wanted, outcome_of(settings.output_dir)
            assert summary["accepted"] == 2
            provenance = [p for row in rows_of(settings.output_dir).values() for p in row["regions"][0]["provenance"]]
            assert {p["server"] for p in provenance} == {url.removesuffix("/v1")} and all(
                p["completion_tokens"] > 5 for p in provenance
            )
            assert {p["attempts"] for p in provenance if p["stage"] == "object_caption"} == {2}
