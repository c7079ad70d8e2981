# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The engine that runs models in this process, with tiny real ones; the vision-language one knows two answers by heart."""

import asyncio
import io
import json
import logging

import pytest
from PIL import Image
from tiny_vlm_for_tests import ENOUGH, make_tiny_llm, make_tiny_vlm

from processing_pixclip.longgrit.config import LongGritSettings
from processing_pixclip.longgrit.engines import EngineUnavailable, Message, Request, RequestFailed
from processing_pixclip.longgrit.records import ImageWork, RegionWork, SourceImage, SourceRegion
from processing_pixclip.longgrit.transformers_engine import TransformersEngine


SYSTEM, QUESTION = "You describe objects.", "Describe the kettle."
ANSWERS = {"red": '{"text": "A red kettle."}', "blue": '{"text": "A blue kettle on a small table."}'}
GREEDY = {"temperature": 0, "max_tokens": 40}


def lesson(color):
    parts = [{"type": "image", "image": Image.new("RGB", (40, 30), color)}, {"type": "text", "text": QUESTION}]
    system = {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    return [system, {"role": "user", "content": parts}], ANSWERS[color]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vlm")
    lessons = [lesson(color) for color in ANSWERS]
    assert make_tiny_vlm(folder, [SYSTEM, QUESTION, *ANSWERS.values()], lessons) < ENOUGH
    return str(folder)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    make_tiny_llm(folder)
    return str(folder)


def settings_for(model, **stages):
    parameters = {"temperature": 0, "max_tokens": 40}
    names = ("object_caption", "verify", "context_caption", "fuse", "hard_negatives")
    stages = {name: {"parameters": parameters, **stages.get(name, {})} for name in names}
    source = {"format": "folder", "path": "regions.jsonl"}
    return LongGritSettings(output_dir="out", source=source, engine="transformers", model=model, stages=stages)


def work_of(color):
    file = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(file, "PNG")
    image = SourceImage(color, "i.png", {"path": "i.png"}, 40, 30)
    return RegionWork(ImageWork(image, file.getvalue), SourceRegion(f"{color}#0", (0.0, 0.0, 40.0, 30.0)))


def request_of(model, color=None, question=QUESTION, parameters=GREEDY, stage="object_caption"):
    images = ("image",) if color else ()
    messages = (Message("system", SYSTEM), Message("user", question, images))
    work = work_of(color) if color else None
    return Request(f"{color}#0", stage, model, messages, "0" * 16, None, parameters, 64, work=work)


def ask_all(settings, requests):
    async def run():
        engine = TransformersEngine(settings)
        try:
            return await asyncio.gather(*map(engine.ask, requests), return_exceptions=True)
        finally:
            await engine.close()

    return asyncio.run(run())


def test_answers_are_of_the_picture(vlm):
    """Eleven at once, of unequal length, in batches: each gets the answer to its own picture."""
    colors = ["red", "blue", "red", "red", "blue", "blue", "red", "blue", "blue", "red", "red"]
    answers = ask_all(settings_for(vlm), [request_of(vlm, color) for color in colors])
    assert [answer.text for answer in answers] == [ANSWERS[color] for color in colors]
    first = answers[0]
    assert first.server == "transformers" and first.finish_reason == "stop" and first.time.endswith("+00:00")
    assert first.prompt_tokens > 10 and 3 < first.completion_tokens < answers[1].completion_tokens
    # Padding is no part of a prompt, and what a batch goes on to write is no part of a short answer.
    [alone] = ask_all(settings_for(vlm), [request_of(vlm, "red")])
    assert (alone.prompt_tokens, alone.completion_tokens) == (first.prompt_tokens, first.completion_tokens)


def test_a_batch_answers_as_each_alone(llm):
    questions = ["A", "What is this? " * 9, "Name the kettle.", "x" * 40]
    requests = [request_of(llm, None, question) for question in questions]
    together = ask_all(settings_for(llm), requests)
    alone = [ask_all(settings_for(llm), [request])[0] for request in requests]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.text for answer in together}) > 1
    assert [a.prompt_tokens for a in together] == [a.prompt_tokens for a in alone]


def test_max_tokens_is_kept(vlm):
    [answer] = ask_all(settings_for(vlm), [request_of(vlm, "blue", parameters={"temperature": 0, "max_tokens": 3})])
    assert answer.completion_tokens == 3 and answer.finish_reason == "length"
    assert ANSWERS["blue"].startswith(answer.text)


def test_two_models_and_sampling(vlm, llm):
    sampled = {
        "temperature": 0.01,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
        "max_tokens": 40,
    }
    settings = settings_for(vlm, fuse={"model": llm}, object_caption={"parameters": sampled})
    asked = [request_of(vlm, "red", parameters=sampled), request_of(llm, stage="fuse"), request_of(vlm, "blue")]
    red, text, blue = ask_all(settings, asked)
    assert red.text == ANSWERS["red"] and blue.text == ANSWERS["blue"] and text.completion_tokens > 0


def test_what_one_request_breaks_is_its_own(vlm, caplog):
    broken = request_of(vlm, "red")
    broken.work.image._read = lambda: b"no image"
    # The token of pictures in a text: there are fewer pictures than the model looks for.
    confusing = request_of(vlm, "red", "Describe <image> the kettle.")
    with caplog.at_level(logging.WARNING):
        results = ask_all(settings_for(vlm), [request_of(vlm, "red"), broken, confusing, request_of(vlm, "blue")])
    assert results[0].text == ANSWERS["red"] and results[3].text == ANSWERS["blue"]
    assert isinstance(results[1], ValueError) and "'red'" in str(results[1])
    assert isinstance(results[2], RequestFailed) and vlm in str(results[2])
    assert "each is asked alone" in caplog.text


def test_a_model_that_always_fails_stops_the_run(llm):
    requests = [request_of(llm, parameters={"temperature": 0, "max_tokens": -1}) for _ in range(25)]
    errors = ask_all(settings_for(llm), requests)
    kinds = [type(error) for error in errors]
    assert kinds[:19] == [RequestFailed] * 19 and set(kinds[19:]) == {EngineUnavailable}
    assert "20 requests of the stage 'object_caption'" in str(errors[19]) and llm in str(errors[19])


def test_models_that_will_not_do(vlm, llm, tmp_path):
    nowhere = str(tmp_path / "nowhere")
    [error] = ask_all(settings_for(nowhere), [request_of(nowhere)])
    assert isinstance(error, EngineUnavailable) and nowhere in str(error)
    [error] = ask_all(settings_for(llm), [request_of(llm, "red")])
    assert isinstance(error, EngineUnavailable) and "stages.object_caption.model" in str(error)
    make_tiny_llm(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    [error] = ask_all(settings_for(str(tmp_path)), [request_of(str(tmp_path))])
    assert isinstance(error, EngineUnavailable) and "chat template" in str(error)


def test_settings_that_it_does_not_know():
    with pytest.raises(ValueError, match=r"stages.verify.parameters has logit_bias; .*max_tokens"):
        TransformersEngine(settings_for("m", verify={"parameters": {"logit_bias": {}}}))
    # Of another engine, all are fine.
    TransformersEngine(settings_for("m", verify={"parameters": {"logit_bias": {}}, "engine": "rules"}))


def test_the_event_loop_is_free_and_closing_does_not_wait_for_long_answers(llm):
    parameters = {"temperature": 0, "max_tokens": 100_000}

    async def run():
        engine = TransformersEngine(settings_for(llm, object_caption={"parameters": parameters}))
        await engine.ask(request_of(llm))
        asked = asyncio.ensure_future(engine.ask(request_of(llm, parameters=parameters)))
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert not asked.done(), "the loop had to wait for the answer"
        asked.cancel()
        await engine.close()

    asyncio.run(asyncio.wait_for(run(), 120))


def test_json_answers_are_parsed(vlm):
    [answer] = ask_all(settings_for(vlm), [request_of(vlm, "red")])
    assert json.loads(answer.text) == {"text": "A red kettle."}
