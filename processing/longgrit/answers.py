# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Reads what models answer: reasoning and decoration off, the JSON object out, validated."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, get_args

import pydantic

from .prompts import Prompt


_REASONING = re.compile(r"<(/?)(?:think|thinking|thought|reasoning|reflection)>|\u25c1(/?)think\u25b7", re.IGNORECASE)
_BEGIN = re.compile(r"\{\s*[\"}]")
# A broken object costs a look at all of the text before it, to name its line.
_MOST_BROKEN = 1000
# Each costs a look at the rest of the text.
_MOST_CUT = 20
# `strict=False`: line breaks inside strings are a common slip and lose nothing.
_DECODER = json.JSONDecoder(strict=False)


class MalformedAnswer(ValueError):
    """Raised for an answer that is not of the form its prompt asks for; says what is wrong, for the model to read.

    Example:
        >>> MalformedAnswer("There is no JSON object in the answer.")
        MalformedAnswer('There is no JSON object in the answer.')
    """


def parse_answer(text: str, prompt: Prompt) -> pydantic.BaseModel:
    """Reads an answer, in time that grows with its length and no faster.

    Blocks of reasoning (`<think>`, `<reasoning>`) are left out, also where their end is missing, which leaves nothing, or their
    beginning, as some servers return them. Of several JSON objects the last that is valid counts: drafts come before answers.
    What stands around it, such as code fences, and fields that the prompt does not ask for are ignored.

    Args:
        text: The answer.
        prompt: The prompt that was asked.

    Returns:
        An instance of `prompt.output`.

    Raises:
        MalformedAnswer: If there is no valid one; says what is wrong.

    Example:
        >>> from processing_pixclip.longgrit.prompts import load_prompt
        >>> answer = '<think>{"text": "no"}</think> Sure:\\n{"text": "A red mug."}'
        >>> parse_answer(answer, load_prompt("object_caption")).text
        'A red mug.'
    """
    text = without_reasoning(text).strip()
    if not text:
        raise MalformedAnswer("The answer is empty, or all of it is reasoning.")
    if prompt.schema is None:
        return _validated({"text": _bare(text)}, prompt)
    found, problem = _objects(text)
    if not found:
        raise MalformedAnswer(problem)
    wanted = prompt.output.model_fields.keys()
    complete = [content for content in found if wanted <= content.keys()]
    malformed = None
    for content in reversed(complete or found[-1:]):
        try:
            return _validated(content, prompt)
        except MalformedAnswer as error:
            malformed = malformed or error
    raise malformed


def whole_items(text: str, prompt: Prompt, name: str) -> list[Any]:
    """The items of a list that are whole in an answer that was cut off before its end.

    Args:
        text: The answer.
        prompt: The prompt that was asked.
        name: The field of the answer that holds the list.

    Example:
        >>> from processing_pixclip.longgrit.prompts import load_prompt
        >>> cut = '{"negatives": [{"changed": "red to blue", "text": "A blue mug."}, {"changed": "mug'
        >>> [item.text for item in whole_items(cut, load_prompt("hard_negatives"), "negatives")]
        ['A blue mug.']
    """
    text = without_reasoning(text)
    (kind,) = get_args(prompt.output.model_fields[name].annotation)
    items, broken, begin = [], 0, _BEGIN.search(text)
    while begin and broken < _MOST_CUT:
        end = begin.end() - 1
        try:
            content, end = _DECODER.raw_decode(text, begin.start())
        except (ValueError, RecursionError):
            # What is cut off is not whole, but what is inside of it may be.
            broken += 1
        else:
            found = content[name] if isinstance(content.get(name), list) else [content]
            for item in found:
                with contextlib.suppress(pydantic.ValidationError):
                    items.append(kind.model_validate(item))
        begin = _BEGIN.search(text, end)
    return items


def without_reasoning(text: str) -> str:
    """The text without blocks of reasoning.

    Args:
        text: An answer.

    Example:
        >>> without_reasoning("so it is red</think>A red mug. <think>Is it")
        'A red mug. '
    """
    kept: list[str] = []
    position, inside = 0, False
    for tag in _REASONING.finditer(text):
        closes = bool(tag[1] or tag[2])
        if closes and not inside:
            # It began before the answer did: the chat template of some models opens the block.
            kept.clear()
        elif not closes and not inside:
            kept.append(text[position : tag.start()])
        inside, position = not closes, tag.end()
    return "".join(kept) if inside else "".join([*kept, text[position:]])


def _objects(text: str) -> tuple[list[dict[str, Any]], str]:
    """The complete JSON objects in a text, outermost ones, and what is wrong with the last that is broken."""
    found, problem = [], "There is no JSON object in the answer."
    begin, broken = _BEGIN.search(text), 0
    while begin and broken < _MOST_BROKEN:
        try:
            content, end = _DECODER.raw_decode(text, begin.start())
            found.append(content)
        except json.JSONDecodeError as error:
            broken += 1
            near = text[max(begin.start(), error.pos - 30) : error.pos + 30]
            problem = f"The JSON object is not valid: {error.msg}, near {near!r}."
            # What was read up to here is no answer's beginning. Going on behind it keeps the time linear.
            end = max(error.pos, begin.end() - 1)
        except (RecursionError, ValueError):
            return (
                found,
                "The JSON object is not valid: it is nested too deeply, or holds a number of thousands of digits.",
            )
        begin = _BEGIN.search(text, end)
    return found, problem


def _validated(content: dict[str, Any], prompt: Prompt) -> pydantic.BaseModel:
    try:
        return prompt.output.model_validate(content)
    except pydantic.ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc'])) or 'answer'}: {e['msg']}" for e in error.errors(include_url=False)]
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise MalformedAnswer("The JSON object is not what was asked for: " + "; ".join(problems[:8]) + more) from None


def _bare(text: str) -> str:
    """A plain answer without the fence or the quotation marks around the whole of it."""
    if text.startswith("`" * 3) and text.endswith("`" * 3) and "\n" in text:
        text = text[text.index("\n") : -3].strip()
    if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]:
        text = text[1:-1]
    return text
