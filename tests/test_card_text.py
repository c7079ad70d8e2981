# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Text in model cards: no paths of this machine, and no secrets."""

import shlex

import pytest

from modeling_pixclip import CardDetails, PixCLIPConfig, render_model_card
from modeling_pixclip.card_text import command_line, told_command, without_local_paths


RESULTS = {"val": {"true mask": {"r1": 0.5}}}


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("/home/me/my docs/secret dir/run", "run"),
        ("/home/me/a, b/c", "c"),
        ("--f=/home/me/a b/c", "--f=c"),
        ("--f=/home/me/x,/home/you/y", "--f=x,y"),
        ("key:/home/me/x", "key:x"),
        ("//server/share/secret/x", "x"),
        (r"\\server\share\secret\x", "x"),
        (r"C:\Users\Me And\x y\run", "run"),
        ("~/secret/x", "x"),
        ("~me/secret/x", "x"),
        ("$HOME/secret/x", "x"),
        ("${HOME}/secret/x", "x"),
        ("../../home/me/secret/x", "x"),
        ("runs/../../home/me/x", "x"),
        ("</home/me/x>", "<x>"),
        ("file:///home/me/x", "x"),
        ('{"a": "/home/me/my docs/x", "b": "c/d"}', '{"a": "x", "b": "c/d"}'),
        ("/home/me/x and https://host/a/b", "x and https://host/a/b"),
        ("https://host/a,/home/me/x", "https://host/a,x"),
        ("runs/coco_regions", "runs/coco_regions"),
        ("<b>a</b> and/or 1/2", "<b>a</b> and/or 1/2"),
        # Secrets.
        ("https://me:word@host/a.tar?signature=b#c", "https://host/a.tar?***"),
        ("s3://bucket/x?AWS=KEY", "s3://bucket/x?***"),
        ("hf_" + 17 * "aB", "***"),
        ("pipe:curl -H hf_" + 17 * "aB", "pipe:curl -H ***"),
        ("HF_TOKEN=abc", "HF_TOKEN=***"),
        ('{"hub_token": "abc", "n": 1}', '{"hub_token": "***", "n": 1}'),
        ("--tokenizer=a", "--tokenizer=a"),
        ("--max_tokens=5", "--max_tokens=5"),
    ],
)
def test_paths_and_secrets_stay_here(word, told):
    assert without_local_paths(word) == told
    # As a word of a command: told apart by the shell's quotes.
    assert shlex.split(told_command(shlex.quote(word))) == [told] or "\\" in word
    assert shlex.split(command_line([word, "b"])) == [told, "b"]


def test_values_of_secret_options_are_masked():
    words = [
        "run",
        "--hub_token",
        "confidential",
        "--apiKey=a b",
        "--my-password",
        "x y",
        "z",
        "--push_to_hub",
        "--accessKeyId",
        "q",
    ]
    told = "run --hub_token *** --apiKey=*** --my-password *** {}--push_to_hub --accessKeyId ***"
    assert command_line(words) == told.format("*** ")
    assert told_command(shlex.join(words)) == told.format("*** ")
    details = CardDetails(command=shlex.join(words), data={"val": {"name": "s3://me:word@host/x"}}, results=RESULTS)
    content = render_model_card(PixCLIPConfig(), details=details).content
    assert (
        told.format("*** ") in content
        and "confidential" not in content
        and "word@" not in content
        and "s3://host/x" in content
    )
