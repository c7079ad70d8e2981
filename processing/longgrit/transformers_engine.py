# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Asks models that run in this process, loaded by `transformers.pipeline`."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from PIL import Image

from .circuit_breaker import FailedInARow
from .config import LongGritSettings
from .engines import Answer, EngineUnavailable, Request, RequestFailed
from .region_views import render_view


logger = logging.getLogger(__name__)

# Requests that are answered together, if as many wait.
BATCH_SIZE = 8
_SAMPLING = ("top_p", "top_k", "min_p", "repetition_penalty")
_ACCEPTED = ("max_tokens", "temperature", *_SAMPLING)


class TransformersEngine:
    """Asks local models: vision-language ones, or language models for stages without pictures.

    Each model is loaded when it is first asked. One thread runs them, and answers up to eight requests of one model with the
    same sampling settings at a time, those that wait when it gets to them. There is no JSON mode: the prompt alone
    says what an answer must be.

    Args:
        settings: The run. Models are ids on the Hub or folders; they run on `transformers_device`.

    Raises:
        ValueError: If a stage has a sampling setting other than max_tokens, temperature, top_p, top_k, min_p and
            repetition_penalty.

    Example:
        >>> settings = LongGritSettings(
        ...     output_dir="out",
        ...     source={"format": "folder", "path": "regions.jsonl"},
        ...     engine="transformers",
        ...     model="HuggingFaceTB/SmolVLM-256M-Instruct",
        ... )
        >>> engine = TransformersEngine(settings)
        >>> answer = await engine.ask(request)  # doctest: +SKIP
    """

    def __init__(self, settings: LongGritSettings):
        for stage in settings.enabled_stages:
            unknown = sorted(set(settings.stage(stage).parameters) - set(_ACCEPTED))
            if unknown and settings.engine_of(stage) == "transformers":
                raise ValueError(
                    f"stages.{stage}.parameters has {', '.join(unknown)}; the engine 'transformers' accepts "
                    f"{', '.join(_ACCEPTED)}."
                )
        self._device = settings.transformers_device
        self._pipelines: dict[str, Any] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="longgrit-transformers")
        self._waiting: list[tuple[Request, asyncio.Future[Answer]]] = []
        self._worker: asyncio.Task | None = None
        self._closed = threading.Event()
        self._failed = FailedInARow()

    async def ask(self, request: Request) -> Answer:
        """Answers one request.

        Args:
            request: The request; its pictures are drawn from `request.work`.

        Returns:
            The answer; the finish_reason is `"length"` if `max_tokens` cut it off, else `"stop"`.

        Raises:
            RequestFailed: If the model fails with this request.
            EngineUnavailable: If the model cannot be loaded, has no chat template, or takes no pictures and the stage
                sends some; or if 20 requests of a stage in a row failed and none was answered before (200 once one was).
            ValueError: If the image cannot be read.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.ensure_future(self._work())
        kind = request.stage, request.model
        try:
            answer = await future
        except RequestFailed as error:
            if not self._failed.failed(kind):
                raise
            raise EngineUnavailable(
                f"{self._failed.count(kind)} requests of the stage {request.stage!r} in a row failed, the last: {error}. Set "
                f"`stages.{request.stage}.model` to a model that takes them, or make them smaller: `image_side`, "
                f"`parameters.max_tokens`."
            ) from error
        self._failed.answered(kind)
        return answer

    async def close(self) -> None:
        """Ends the thread, and frees the models. An answer that is being written ends there."""
        self._closed.set()
        for _, future in self._waiting:
            future.cancel()
        if self._worker is not None:
            await asyncio.wait([self._worker])
        self._thread.shutdown()
        self._pipelines.clear()

    async def _work(self) -> None:
        while batch := self._next_batch():
            requests = [request for request, _ in batch]
            try:
                results = await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, requests)
            except Exception as error:
                results = [error] * len(batch)
            for (_, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)

    def _next_batch(self) -> list[tuple[Request, asyncio.Future[Answer]]]:
        """The request that waits longest, and others that can be answered with it."""
        self._waiting = [entry for entry in self._waiting if not entry[1].done()]
        kinds = [_kind(request) for request, _ in self._waiting]
        chosen = [i for i, kind in enumerate(kinds) if kind == kinds[0]][:BATCH_SIZE]
        batch = [self._waiting[i] for i in chosen]
        self._waiting = [entry for i, entry in enumerate(self._waiting) if i not in chosen]
        return batch

    def _answer(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        pipe = self._pipeline(requests[0].model)
        results: list[Any] = [None] * len(requests)
        chats = {}
        for i, request in enumerate(requests):
            try:
                chats[i] = _chat(request, with_parts=pipe.task == "image-text-to-text")
            except Exception as error:
                results[i] = error
        try:
            answers = self._generate(pipe, list(chats.values()), requests[0]) if chats else []
        except Exception as error:
            # Too much for the memory, or one bad request among good ones.
            if len(chats) > 1:
                logger.warning("%s failed with %d requests, each is asked alone: %s", pipe.task, len(chats), error)
            answers = [self._answer_alone(pipe, chat, requests[i]) for i, chat in chats.items()]
        for i, answer in zip(chats, answers, strict=True):
            results[i] = answer
        return results

    def _answer_alone(self, pipe: Any, chat: list[dict[str, Any]], request: Request) -> Answer | RequestFailed:
        try:
            return self._generate(pipe, [chat], request)[0]
        except Exception as error:
            return RequestFailed(f"{request.model} failed: {type(error).__name__}: {error}")

    def _pipeline(self, model: str) -> Any:
        if model not in self._pipelines:
            from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig, pipeline

            try:
                with_pictures = type(AutoConfig.from_pretrained(model)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
                task = "image-text-to-text" if with_pictures else "text-generation"
                pipe = pipeline(task, model=model, device=self._device, dtype="auto")
            except Exception as error:
                raise EngineUnavailable(
                    f"The model {model!r} cannot be loaded on {self._device!r}: {type(error).__name__}: {error}"
                ) from error
            processor, tokenizer = _processor_and_tokenizer(pipe)
            if not processor.chat_template:
                raise EngineUnavailable(
                    f"The model {model!r} has no chat template; take one that follows instructions."
                )
            # Answers are written at the right end.
            tokenizer.padding_side = "left"
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            self._pipelines[model] = pipe
        return self._pipelines[model]

    def _generate(self, pipe: Any, chats: list[list[dict[str, Any]]], request: Request) -> list[Answer]:
        """Answers of one call of the model.

        Not by the pipeline's own call: that pads pictures of unequal sizes as if they were texts, and finds the answer by
        comparing strings.
        """
        import torch

        processor, tokenizer = _processor_and_tokenizer(pipe)
        inputs = processor.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", padding=True
        ).to(pipe.device)
        for name, value in inputs.items():
            if torch.is_floating_point(value):
                inputs[name] = value.to(pipe.model.dtype)
        options = _generation_options(request)
        with torch.inference_mode():
            sequences = pipe.model.generate(
                **inputs,
                **options,
                pad_token_id=tokenizer.pad_token_id,
                stopping_criteria=[
                    lambda ids, scores, **_: torch.full(ids.shape[:1], self._closed.is_set(), device=ids.device)
                ],
            )
        ends = pipe.model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        answers = []
        for row, mask in zip(
            sequences[:, inputs["input_ids"].shape[1] :].tolist(), inputs["attention_mask"], strict=True
        ):
            length = next((i + 1 for i, token in enumerate(row) if token in ends), None)
            text = tokenizer.decode(row[:length], skip_special_tokens=True)
            finish = "length" if length is None else "stop"
            answers.append(Answer(text, "transformers", now, int(mask.sum()), length or len(row), finish))
        return answers


def _kind(request: Request) -> tuple[str, int, str]:
    """What requests share that are answered together; not all processors take chats with and without pictures at once."""
    pictures = sum(len(message.images) for message in request.messages)
    return request.model, pictures, json.dumps(request.parameters, sort_keys=True)


def _processor_and_tokenizer(pipe: Any) -> tuple[Any, Any]:
    if pipe.task == "image-text-to-text":
        return pipe.processor, pipe.processor.tokenizer
    return pipe.tokenizer, pipe.tokenizer


def _chat(request: Request, with_parts: bool) -> list[dict[str, Any]]:
    chat = []
    for message in request.messages:
        content: Any = message.text
        if with_parts:
            views = [render_view(request.work, name, request.image_side) for name in message.images]
            pictures = [{"type": "image", "image": Image.open(io.BytesIO(view)).convert("RGB")} for view in views]
            content = [*pictures, {"type": "text", "text": message.text}]
        elif message.images:
            raise EngineUnavailable(
                f"The model {request.model!r} takes no pictures, and stage {request.stage!r} sends some; set "
                f"`stages.{request.stage}.model` to a vision-language model."
            )
        chat.append({"role": message.role, "content": content})
    return chat


def _generation_options(request: Request) -> dict[str, Any]:
    parameters = request.parameters
    temperature = float(parameters.get("temperature", 1.0))
    options: dict[str, Any] = {"max_new_tokens": parameters.get("max_tokens", 1024), "do_sample": temperature > 0}
    if temperature > 0:
        options["temperature"] = temperature
        options |= {name: parameters[name] for name in ("top_p", "top_k", "min_p") if name in parameters}
    if "repetition_penalty" in parameters:
        options["repetition_penalty"] = parameters["repetition_penalty"]
    return options
