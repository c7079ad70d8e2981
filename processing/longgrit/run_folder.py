# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The files of a LongGRIT run beside its dataset: lock, settings, answers, and which shards are done."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..atomic_files import open_atomic, remove_unfinished
from .config import STAGES, LongGritSettings
from .redaction import extra_bodies, redacted


logger = logging.getLogger(__name__)

# Raised when the same answers make other shards than before.
RESULTS_VERSION = 1


class RunFolder:
    """The folder `run` of an output folder.

    Args:
        output_dir: The output folder; made where it is missing.

    Example:
        >>> import tempfile
        >>> folder = RunFolder(tempfile.mkdtemp())
        >>> with folder.lock():
        ...     folder.write_state(0, {"fingerprint": "ab", "summary": {}})
        >>> folder.read_state(0)["fingerprint"], folder.answers(0).name
        ('ab', '00000.jsonl')
    """

    def __init__(self, output_dir: str | os.PathLike):
        self.output_dir = Path(output_dir)
        self.path = self.output_dir / "run"
        self._repeats = self.path / "repeats.json"
        for name in ("answers", "shards"):
            (self.path / name).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a run goes on; freed by the system if the process is killed.

        Raises:
            RuntimeError: If another process holds it; says which.
        """
        path = self.path / "lock"
        with open(path, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise RuntimeError(
                    f"{self.output_dir} is in use by {file.read().strip() or 'another process'}; wait for its end, or "
                    f"set another output_dir."
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            # What a killed process was writing.
            for folder in (self.output_dir, *self.output_dir.glob("*/"), *self.path.glob("*/")):
                remove_unfinished(folder)
            yield

    def answers(self, number: int) -> Path:
        """The journal of a shard."""
        return self.path / "answers" / f"{number:05d}.jsonl"

    def manifest(self, number: int) -> Path:
        """What the source stage wrote of a shard."""
        return self.path / "source" / f"{number:05d}.jsonl"

    def accepted_by_source(self, number: int) -> int:
        """Regions of a shard that are annotated, as the first line of its manifest says."""
        with open(self.manifest(number), encoding="utf-8") as file:
            return json.loads(next(file))["accepted"]

    def read_state(self, number: int) -> dict[str, Any] | None:
        """What `write_state` wrote, or `None` for a shard that is not done, or whose file is damaged; a warning names that."""
        path = self.path / "shards" / f"{number:05d}.json"
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError) as error:
            logger.warning("%s is damaged (%s); the shard is made anew.", path, error)
            return None
        if not isinstance(state, dict) or not isinstance(state.get("summary"), dict) or "fingerprint" not in state:
            logger.warning("%s holds no state of a shard; the shard is made anew.", path)
            return None
        return state

    def write_state(self, number: int, state: Mapping[str, Any]) -> None:
        """Marks a shard as done; the last thing that is written of it."""
        write_atomically(self.path / "shards" / f"{number:05d}.json", json.dumps(state))

    def remove_state(self, number: int) -> None:
        """Marks a shard as not done, before its files are written anew."""
        (self.path / "shards" / f"{number:05d}.json").unlink(missing_ok=True)

    def write_settings(self, settings: LongGritSettings) -> None:
        """Writes `run/settings.yaml`: the settings, without anything that is or looks like a secret."""
        secrets = {os.environ.get(server.api_key_env or "") for server in settings.servers.values()} - {None, ""}
        content = redacted(settings, secrets)
        write_atomically(self.path / "settings.yaml", yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def generations(self, repeat: Iterable[str]) -> dict[str, int]:
        """How often each stage was repeated on purpose, with those that are to be repeated now.

        The same call after a run that did not end goes on with that run's repeats.

        Args:
            repeat: Names of stages.

        Raises:
            ValueError: If a name is not that of a stage.
        """
        names = sorted(set(repeat))
        unknown = [name for name in names if name not in STAGES]
        if unknown:
            raise ValueError(f"stages to repeat are {unknown}; accepted are {list(STAGES)}.")
        repeats = {"generations": {}, "open": []}
        if self._repeats.exists():
            repeats = json.loads(self._repeats.read_text(encoding="utf-8"))
        generations = repeats["generations"]
        if names and names == repeats["open"]:
            logger.info("Going on with the unfinished repeat of %s.", ", ".join(names))
        elif names:
            generations |= {name: generations.get(name, 0) + 1 for name in names}
        return generations

    def begin_repeats(self, repeat: Iterable[str], generations: Mapping[str, int]) -> None:
        """Writes down what `generations` returned, before anything is asked."""
        names = sorted(set(repeat))
        if names:
            write_atomically(self._repeats, json.dumps({"generations": dict(generations), "open": names}))

    def end_repeats(self) -> None:
        """Marks the repeats as done: another call asks anew."""
        if self._repeats.exists():
            generations = json.loads(self._repeats.read_text(encoding="utf-8"))["generations"]
            write_atomically(self._repeats, json.dumps({"generations": generations, "open": []}))

    def fingerprint(
        self, number: int, settings: LongGritSettings, prompts: Mapping[str, str], generations: Mapping[str, int]
    ) -> str:
        """32 hex digits that stand for all that shapes a shard, except the answers.

        Args:
            number: The shard.
            settings: Of the run. What only decides who answers, and how fast, does not count; `extra_body` of the servers does,
                without secrets.
            prompts: Hash of the prompt of each enabled stage.
            generations: From `generations`.
        """
        stages = {}
        for name in settings.enabled_stages:
            stage = settings.stage(name).model_dump(mode="json", exclude={"enabled", "engine", "servers", "prompt"})
            model = [settings.engine_of(name), settings.model_of(name), prompts[name], generations.get(name, 0)]
            stages[name] = {**stage, "model": model, "extra_bodies": extra_bodies(settings, name)}
        shaping = [RESULTS_VERSION, stages, settings.texts.model_dump(mode="json"), settings.seed]
        output = settings.output.model_dump(mode="json", exclude={"dataset_name", "dataset_licence"})
        digest = hashlib.blake2b(
            json.dumps([*shaping, settings.source.licence, output], sort_keys=True).encode(), digest_size=16
        )
        digest.update(self.manifest(number).read_bytes())
        return digest.hexdigest()


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is there whole or not at all, also after a loss of power.

    Args:
        path: The file; its folder exists.
        content: What it holds.
    """
    with open_atomic(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
