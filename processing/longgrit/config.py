# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The settings of a LongGRIT run, as `examples/build_longgrit.py` reads them from YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pydantic
import yaml
from pydantic import Field


REGION_STAGES = ("object_caption", "verify", "context_caption", "fuse", "hard_negatives")
STAGES = ("image_caption", *REGION_STAGES)
EngineName = Literal["openai", "transformers", "rules"]


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class SourceSettings(_Settings):
    """Where images and regions come from.

    Attributes:
        format: `"grit"`, `"coco"`, `"folder"` or `"webdataset"`.
        path: The reader's files: a file, a folder or a pattern of parquet files or tar shards. Not for `"coco"`.
        image_root: Folder that paths of image files are relative to; by default that of the annotation file.
        instances: COCO's instances file.
        panoptic: COCO's panoptic file, its PNGs in the folder of the same name.
        captions: COCO's captions file.
        masks: What regions without a mask get: `"box"` (the box is the region) or `"sam2"`.
        sam2_model: Hub id or folder of the SAM 2 checkpoint.
        sam2_device: Device that it runs on.
        licence: Licence of all images where the source does not say; for the dataset card.
    """

    format: Literal["grit", "coco", "folder", "webdataset"]
    path: str | None = None
    image_root: str | None = None
    instances: str | None = None
    panoptic: str | None = None
    captions: str | None = None
    masks: Literal["box", "sam2"] = "box"
    sam2_model: str = "facebook/sam2.1-hiera-large"
    sam2_device: str = "cpu"
    licence: str | None = None


class FilterSettings(_Settings):
    """Which regions are annotated.

    Attributes:
        min_area: Least share of the image.
        max_area: Largest share of the image.
        max_aspect: Longest side of the box over the other.
        max_border: Largest share of the box's outline on the image's border.
        max_iou: Of two regions of an image whose masks have a larger IoU, the later one is a duplicate.
        hash_distance: A region whose crop has a perceptual hash (64 bits) at most this far from that of an earlier one, in
            whichever image, is a duplicate; `None` for no such check.
        min_score: Least confidence of the source, for regions that have one.
        max_regions: Most regions of an image, the largest ones; `None` for all.
    """

    min_area: float = Field(0.001, ge=0, lt=1)
    max_area: float = Field(1.0, gt=0, le=1)
    max_aspect: float = Field(20.0, ge=1)
    max_border: float = Field(1.0, ge=0, le=1)
    max_iou: float = Field(0.9, gt=0, le=1)
    hash_distance: int | None = Field(0, ge=0, le=16)
    min_score: float = Field(0.0, ge=0, le=1)
    max_regions: int | None = Field(None, ge=1)

    @pydantic.model_validator(mode="after")
    def _check_areas(self) -> FilterSettings:
        if self.min_area >= self.max_area:
            raise ValueError(
                f"min_area is {self.min_area} and max_area {self.max_area}; accepted is a smaller min_area"
            )
        return self


class ServerSettings(_Settings):
    """One OpenAI-compatible server.

    Attributes:
        base_url: Its address, up to and with `/v1`; without user name, password and key.
        api_key_env: Name of the environment variable that holds the key; none is sent without it.
        max_concurrency: Requests at a time, of one process.
        json_mode: How it is told the form of answers: `"schema"` (`response_format` json_schema), `"object"` (json_object), or
            `"off"`: the prompt alone says it.
        stream: Whether answers are streamed, so that a server that hangs is found out after `request_timeout`.
        request_timeout: Seconds until there is a connection and, where answers are streamed, until the next byte. Without
            streaming the first byte comes with the whole answer, so that `total_timeout` alone counts.
        total_timeout: Seconds for one whole answer.
        max_attempts: Times that a request without an answer is sent, over all servers of its stage. Those that a server puts
            off by 429 or 503 with `Retry-After` do not count.
        min_wait: Seconds before the second attempt, about; each further wait is twice as long, with jitter.
        max_wait: Longest such wait. A server that asks for more by `Retry-After` is left alone until then.
        breaker_failures: Failures in a row after which the server is left alone.
        breaker_wait: Seconds for which it is.
        outage_timeout: Seconds without any answer for a model from any server of a stage, after which the run stops. Also
            the longest `Retry-After` that is waited for.
        extra_body: Further fields of each request's body. They shape answers: with other ones, but for those whose names are
            those of secrets, requests are asked anew.
    """

    base_url: str
    api_key_env: str | None = None
    max_concurrency: int = Field(16, ge=1)
    json_mode: Literal["schema", "object", "off"] = "schema"
    stream: bool = False
    request_timeout: float = Field(60.0, gt=0)
    total_timeout: float = Field(600.0, gt=0)
    max_attempts: int = Field(6, ge=1)
    min_wait: float = Field(1.0, ge=0)
    max_wait: float = Field(60.0, ge=0)
    breaker_failures: int = Field(10, ge=1)
    breaker_wait: float = Field(30.0, ge=0)
    outage_timeout: float = Field(900.0, gt=0)
    extra_body: dict[str, Any] = {}

    @pydantic.field_validator("base_url")
    @classmethod
    def _without_credentials(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("accepted is an address such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("it holds credentials or a query; put the key into an environment variable, api_key_env")
        return url.rstrip("/")


class StageSettings(_Settings):
    """How one stage runs.

    Attributes:
        enabled: Whether it runs.
        engine: Engine of this stage, if not that of the run.
        model: Model of this stage, if not that of the run.
        servers: Names of the servers that may answer, all by default.
        prompt: Path of a prompt file in place of the stage's own.
        max_attempts: Answers that are asked for before the last malformed one is rejected.
        parameters: Sampling settings in the body of requests; see `StagesSettings` for the defaults.
        image_side: Longest side in pixels of the pictures that are sent.
        count: Hard negatives asked for a region; read by that stage alone.
        min_count: Fewest hard negatives that a region must get, else it is rejected; read by that stage alone.
    """

    enabled: bool = True
    engine: EngineName | None = None
    model: str | None = None
    servers: tuple[str, ...] | None = None
    prompt: str | None = None
    max_attempts: int = Field(3, ge=1)
    parameters: dict[str, Any] = {"temperature": 0.2, "max_tokens": 1024}
    image_side: int = Field(768, ge=28)
    count: int = Field(10, ge=1)
    min_count: int = Field(0, ge=0)

    @pydantic.model_validator(mode="after")
    def _check_counts(self) -> StageSettings:
        if self.min_count > self.count:
            raise ValueError(
                f"min_count is {self.min_count} and count {self.count}; accepted is a min_count up to count"
            )
        return self


def _default_parameters(name: str, count: int) -> dict[str, Any]:
    if name == "hard_negatives":
        # A copy of the longest description takes about 450 tokens.
        return {"temperature": 0.8, "max_tokens": max(4096, 512 * count)}
    return {"temperature": 0.2, "max_tokens": 4096 if name == "fuse" else 1024}


class StagesSettings(_Settings):
    """The stages by name. `image_caption` (captions of whole images, as FG-CLIP's data have) is off by default.

    A stage whose `parameters` are not given has a temperature of 0.2 and `max_tokens` 1024; `fuse`, whose model may
    reason, 4096; `hard_negatives` a temperature of 0.8 and 512 tokens for each of its `count`, at least 4096.
    """

    image_caption: StageSettings = StageSettings(enabled=False)
    object_caption: StageSettings = StageSettings()
    verify: StageSettings = StageSettings()
    context_caption: StageSettings = StageSettings()
    fuse: StageSettings = StageSettings(parameters=_default_parameters("fuse", 0))
    hard_negatives: StageSettings = StageSettings(parameters=_default_parameters("hard_negatives", 10))

    @pydantic.field_validator("*")
    @classmethod
    def _with_own_defaults(cls, stage: StageSettings, info: pydantic.ValidationInfo) -> StageSettings:
        # Without this, a stage of which another field is given would have the parameters of any stage.
        if "parameters" in stage.model_fields_set:
            return stage
        return stage.model_copy(update={"parameters": _default_parameters(info.field_name, stage.count)})


class TextSettings(_Settings):
    """What a long description must be.

    Attributes:
        min_words: Fewest words.
        max_words: Most words.
        language: ISO 639-1 code of those that py3langid tells apart, that it must be in; `None` for no check.
        max_repetition: Largest share of 4-word sequences that came before in the text.
    """

    min_words: int = Field(12, ge=1)
    max_words: int = Field(300, ge=1)
    language: str | None = "en"
    max_repetition: float = Field(0.2, ge=0, le=1)

    @pydantic.field_validator("language")
    @classmethod
    def _check_language(cls, language: str | None) -> str | None:
        if language not in (None, "en"):
            # Not above: that module reads this one, and its model takes a moment to load.
            from .text_checks import languages

            if language not in languages():
                raise ValueError(f"it is {language!r}; accepted are null and {', '.join(sorted(languages()))}")
        return language

    @pydantic.model_validator(mode="after")
    def _check_lengths(self) -> TextSettings:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words is {self.min_words} and max_words {self.max_words}; accepted is a smaller min_words"
            )
        return self


class OutputSettings(_Settings):
    """What is written.

    Attributes:
        images_per_shard: Images of a shard, the unit that is committed.
        formats: `"parquet"`, `"webdataset"`, or both.
        images: `"bytes"`: shards hold the image files; `"path"`: parquet shards hold their paths below `image_root`.
        dataset_name: Title of the dataset card.
        dataset_licence: Licence of the texts, for the card.
    """

    images_per_shard: int = Field(200, ge=1)
    formats: tuple[Literal["parquet", "webdataset"], ...] = Field(("parquet",), min_length=1)
    images: Literal["bytes", "path"] = "bytes"
    dataset_name: str = "LongGRIT-style region descriptions"
    dataset_licence: str | None = None


class LongGritSettings(_Settings):
    """A whole run.

    Attributes:
        output_dir: Folder of the dataset and of the run's own files.
        source: Images and regions.
        filters: Which regions are annotated.
        engine: Engine of all stages that name no other.
        model: Model of all stages that name no other.
        servers: The servers by name.
        transformers_device: Device of local models.
        stages: The stages.
        texts: What a long description must be.
        output: What is written.
        images_in_flight: Images worked on at a time; at most 8 where only the built-in annotator is asked.
        open_shards: Shards begun and not yet committed.
        seed: Of the choice of regions that the report shows.
        price_per_million: US dollars for a million tokens, `{"input": 0.2, "output": 0.6}`, for the estimate of a dry run.

    Raises:
        pydantic.ValidationError: If a key is unknown or a value not accepted; names each.

    Example:
        >>> settings = LongGritSettings(
        ...     output_dir="out",
        ...     source={"format": "coco", "image_root": "images", "instances": "instances.json"},
        ...     engine="rules",
        ... )
        >>> settings.engine_of("verify"), settings.output.images_per_shard
        ('rules', 200)
    """

    output_dir: Path
    source: SourceSettings
    filters: FilterSettings = FilterSettings()
    engine: EngineName = "openai"
    model: str | None = None
    servers: dict[str, ServerSettings] = {}
    transformers_device: str = "cpu"
    stages: StagesSettings = StagesSettings()
    texts: TextSettings = TextSettings()
    output: OutputSettings = OutputSettings()
    images_in_flight: int = Field(64, ge=1)
    open_shards: int = Field(4, ge=1)
    seed: int = 0
    price_per_million: dict[Literal["input", "output"], float] = {}

    @pydantic.model_validator(mode="after")
    def _check_engines(self) -> LongGritSettings:
        for name in self.enabled_stages:
            stage = self.stage(name)
            engine = self.engine_of(name)
            if engine == "openai" and not self.servers:
                raise ValueError(
                    f"stage {name!r} asks an OpenAI-compatible server, but `servers` is empty; name one, "
                    f"{{vllm: {{base_url: 'http://localhost:8000/v1'}}}}, or set engine to 'transformers' or 'rules'"
                )
            unknown = sorted(set(stage.servers or ()) - set(self.servers))
            if unknown:
                raise ValueError(f"stage {name!r} names the servers {unknown}; known are {sorted(self.servers)}")
            if engine != "rules" and not (stage.model or self.model):
                raise ValueError(f"stage {name!r} has no model; set `model`, or `stages.{name}.model`")
        return self

    @property
    def enabled_stages(self) -> tuple[str, ...]:
        """Names of the stages that run, in their order."""
        return tuple(name for name in STAGES if self.stage(name).enabled)

    def stage(self, name: str) -> StageSettings:
        """Settings of a stage."""
        return getattr(self.stages, name)

    def engine_of(self, name: str) -> str:
        """Name of the engine of a stage."""
        return self.stage(name).engine or self.engine

    def model_of(self, name: str) -> str:
        """Name of the model of a stage; `"rules"` for the rule-based engine."""
        return "rules" if self.engine_of(name) == "rules" else self.stage(name).model or self.model

    def servers_of(self, name: str) -> dict[str, ServerSettings]:
        """Servers that may answer a stage, by name."""
        chosen = self.stage(name).servers
        return {key: server for key, server in self.servers.items() if chosen is None or key in chosen}


def read_settings(path: str | os.PathLike | None = None, changes: Mapping[str, Any] | None = None) -> LongGritSettings:
    """Reads settings from a YAML file.

    Args:
        path: The file; without one, `changes` are all. Paths in it are relative to the working directory, as those of
            the other examples.
        changes: Settings by dotted name that replace those of the file, such as `{"stages.fuse.model": "..."}`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or not settings; names each key that is wrong.

    Example:
        >>> source = {"source.format": "folder", "source.path": "regions.jsonl"}
        >>> settings = read_settings(changes={"output_dir": "out", "engine": "rules", **source})
        >>> settings.source.path
        'regions.jsonl'
    """
    content: Any = {}
    if path is not None:
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        # What the file holds may be a key, so that no message shows it, nor the error that this one comes from.
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            place = "" if mark is None else f": see line {mark.line + 1}, column {mark.column + 1}"
            raise ValueError(f"{path} is not YAML{place}.") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path} holds a {type(content).__name__}; accepted is a mapping of settings.")
    for name, value in (changes or {}).items():
        *parents, last = name.split(".")
        place = content
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ValueError(f"{name}: {parent!r} is a {type(place).__name__}, which holds no settings.")
        place[last] = value
    try:
        return LongGritSettings(**content)
    except (pydantic.ValidationError, TypeError) as error:
        where = "the settings" if path is None else path
        if isinstance(error, TypeError):
            raise ValueError(f"{where}: {error}") from None
        # Without the values: whoever put a key into the file finds it nowhere else.
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {_problem(e['type'], e['msg'])}" for e in error.errors()
        )
        raise ValueError(f"{where}: {problems}") from None


def _problem(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "there is no such setting; LongGritSettings lists all of them, see its docstring"
    return message
