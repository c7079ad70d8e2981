# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Hard negatives of which the model's answer was cut off: what is whole is kept, and fewer are asked for."""

import json

from scripted_engine import settings_for
from test_longgrit_hard_negatives import GOOD, TEXT, negatives, run

from processing_pixclip.longgrit.answers import whole_items
from processing_pixclip.longgrit.prompts import load_prompt


def cut(*texts):
    """An answer that was cut off within the copy after these."""
    return json.dumps(negatives(*texts, TEXT))[:-30], "length"


def test_what_is_whole_in_an_answer_that_was_cut_off_is_kept_and_fewer_are_asked_for():
    work, requests, error = run(cut(*GOOD[:2]), negatives(*GOOD[2:4]), negatives(GOOD[4]), count=5)
    assert error is None and work.hard_negatives == GOOD[:5]
    told = [request.messages[-1].text for request in requests[1:]]
    assert "cut off before its end; write no more than 2 at a time. 2 more copies are needed" in told[0]
    assert "1 more copy is needed" in told[1]
    # Enough of them is enough.
    work, requests, error = run(cut(*GOOD[:3]), count=3)
    assert error is None and work.hard_negatives == GOOD[:3] and len(requests) == 1
    assert work.provenance[0].attempts == 1


def test_an_answer_that_is_cut_off_before_the_first_copy_halves_their_number():
    reasoning = ("<think>" + json.dumps(negatives(*GOOD[:3])), "length")
    work, requests, error = run(reasoning, ("", "length"), cut(GOOD[0]), count=8)
    assert error is None and work.hard_negatives == GOOD[:1]
    assert ["4 at a time" in requests[1].messages[-1].text, "2 at a time" in requests[2].messages[-1].text] == [
        True
    ] * 2


def test_answers_that_are_cut_off_reject_a_region_only_below_the_fewest():
    script = [cut(), ("", "length"), ("[", "length")]
    work, _, error = run(*script)
    assert error is None and work.hard_negatives == [] and work.provenance[0].attempts == 3
    work, _, error = run(*script, min_count=1)
    assert error.reason == "too_few_negatives" and "cut off" in error.detail


def test_broken_answers_of_megabytes_are_searched_for_whole_copies():
    prompt = load_prompt("hard_negatives")
    for text in ('{"' * 10**6, '{"a":' * 10**6, '{"negatives": [' + '{"text": "x' * 10**6, "{}" * 10**6):
        assert whole_items(text, prompt, "negatives") == []


def test_more_copies_may_take_more_tokens_and_other_fields_of_a_stage_leave_its_parameters_alone():
    def parameters(name, **stage):
        return settings_for(stages={name: stage}).stage(name).parameters

    assert parameters("hard_negatives") == parameters("hard_negatives", min_count=1)
    assert parameters("hard_negatives", count=30)["max_tokens"] > 2 * parameters("hard_negatives")["max_tokens"]
    assert parameters("hard_negatives", count=2)["temperature"] == 0.8
    assert parameters("fuse", model="m") == parameters("fuse") == {"temperature": 0.2, "max_tokens": 4096}
    assert parameters("fuse", parameters={"top_p": 0.5}) == {"top_p": 0.5}
    chosen = settings_for(stages={"hard_negatives": {"count": 30}})
    assert type(chosen)(**chosen.model_dump()) == chosen
