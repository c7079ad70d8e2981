# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The state of `hub_server.py`: repositories with their commits, branches and tags, and the files of all of them."""

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml


ROOT = Path(os.environ["HUB_ROOT"])
KINDS = ("models", "datasets")


class HubError(Exception):
    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **headers, **({"X-Error-Code": code} if code else {})}


@dataclass
class Commit:
    files: dict[str, dict]
    title: str
    message: str = ""
    parent: str | None = None
    date: float = field(default_factory=time.time)

    @property
    def oid(self) -> str:
        return hashlib.sha1(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass
class Repository:
    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"

    @property
    def namespace(self) -> str:
        return self.name.partition("/")[0]

    def add(self, branch: str, commit: Commit) -> str:
        oid = commit.oid
        self.commits[oid] = commit
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str:
        """The commit that a branch, a tag or a commit names."""
        name = re.sub("^refs/(heads|tags)/", "", revision)
        found = self.branches.get(name) or self.tags.get(name) or (name if name in self.commits else None)
        if found is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def files(self, revision: str) -> dict[str, dict]:
        return self.commits[self.find(revision)].files

    def save(self):
        commits = {oid: asdict(commit) for oid, commit in self.commits.items()}
        replace_file(path_of(self.kind, self.name), json.dumps({**vars(self), "commits": commits}).encode())


def check_ref_name(name: str):
    """git-check-ref-format, by git itself."""
    if subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True).returncode:
        raise HubError(400, f"Invalid reference name: {name}")


def path_of(kind: str, name: str) -> Path:
    if kind not in KINDS or not all(re.fullmatch(r"\w[\w.-]*", part) for part in name.split("/")):
        raise HubError(404, "Not found")
    return ROOT / kind / f"{name}.json"


def replace_file(path: Path, content: bytes):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load(kind: str, name: str) -> Repository | None:
    path = path_of(kind, name)
    if not path.exists():
        return None
    repository = Repository(**json.loads(path.read_text()))
    repository.commits = {oid: Commit(**commit) for oid, commit in repository.commits.items()}
    return repository


def blob(sha256: str) -> Path:
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise HubError(400, f"Not a SHA-256: {sha256}")
    return ROOT / "blobs" / sha256


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def regular_file(content: bytes) -> dict:
    sha256 = hashlib.sha256(content).hexdigest()
    replace_file(blob(sha256), content)
    return {"oid": git_oid(content), "sha256": sha256, "size": len(content), "large": False}


def large_file(sha256: str, size: int | None) -> dict:
    path = blob(sha256)
    if not path.exists() or size not in (None, path.stat().st_size):
        raise HubError(400, f"LFS object {sha256} of {size} bytes was not uploaded")
    size = path.stat().st_size
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return {"oid": git_oid(pointer), "sha256": sha256, "size": size, "large": True}


def metadata_of(card: str) -> tuple[dict, list[str]]:
    """What the YAML head of a card holds, and what is wrong with it."""
    head = re.match(r"\A---\r?\n(.*?)\r?\n---(\r?\n|\Z)", card, re.DOTALL)
    if head is None:
        return {}, []
    try:
        metadata = yaml.safe_load(head[1]) or {}
    except yaml.YAMLError as error:
        return {}, [f"the YAML cannot be read: {error}"]
    if not isinstance(metadata, dict):
        return {}, ["the YAML must be a mapping"]
    strings = ("license", "pipeline_tag", "library_name")
    errors = [f'"{key}" must be a string' for key in strings if not isinstance(metadata.get(key, ""), str)]
    for key in ("tags", "datasets", "base_model", "language"):
        value = metadata.get(key, [])
        if not all(isinstance(item, str) for item in ([value] if isinstance(value, str) else value or [])):
            errors.append(f'"{key}" must be a string or an array of strings')
    if isinstance(metadata.get("tags"), str):
        errors.append('"tags" must be an array')
    try:
        for model in metadata.get("model-index", []):
            for result in model["results"]:
                _ = model["name"], result["task"]["type"], result["dataset"]["name"], result["dataset"]["type"]
                _ = [(metric["type"], metric["value"]) for metric in result["metrics"]]
    except (KeyError, TypeError) as error:
        errors.append(f'"model-index" is malformed: {error!r}')
    return metadata, errors
