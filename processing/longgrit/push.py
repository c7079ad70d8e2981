# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Puts a finished LongGRIT dataset onto the Hub: its card and shards, and nothing of the run that made them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from ..region_shards import SIZES_FILE
from .dataset_writer import CARD_FILE, SHARDS
from .run_report import REPORT_FILES


# What an earlier push may have left in the repository; files of other names in these folders are somebody's own.
_OURS = re.compile(
    r"data/(\d{5,}\.parquet|sizes\.json)|webdataset/(\d{5,}\.tar|sizes\.json)|rejected/\d{5,}\.jsonl|report\.(html|json)"
)


def files_to_push(output_dir: str | os.PathLike, report: bool = False, rejected: bool = False) -> list[str]:
    """The files of a dataset that are published, as paths relative to its folder: card and shards, with `sizes.json`.

    Args:
        output_dir: Output folder of a run that has ended.
        report: Whether `report.html` and `report.json` are published too. They show rejected texts.
        rejected: Whether the files in `rejected` are.

    Raises:
        ValueError: If the folder holds no finished dataset; says what is missing or too much.

    Example:
        >>> files_to_push("examples")
        Traceback (most recent call last):
        ...
        ValueError: examples is no finished dataset: it has no README.md. Accepted is the output folder of a run that has ended.
    """
    folder = Path(output_dir)
    files = [CARD_FILE, *(REPORT_FILES if report else ())]
    shards = 0
    for name, extension in (("parquet", ".parquet"), ("webdataset", ".tar")):
        listing = folder / SHARDS[name] / SIZES_FILE
        found = sorted(path.name for path in listing.parent.glob(f"*{extension}"))
        listed = sorted(json.loads(listing.read_text(encoding="utf-8"))) if listing.is_file() else []
        if listed != found:
            # Those of a run that goes on, or that was stopped while it made another one's shards anew.
            odd = sorted(set(listed) ^ set(found))
            raise ValueError(
                f"{listing.parent} holds {len(found)} shards and {SIZES_FILE} lists {len(listed)}; the first in one of them "
                f"only is {odd[0]}. The run has not ended: start it again, then push."
            )
        shards += len(found)
        files += [f"{SHARDS[name]}/{file}" for file in (*found, *([SIZES_FILE] if found else []))]
    missing = [file for file in files if not (folder / file).is_file()]
    if missing or not shards:
        raise ValueError(
            f"{folder} is no finished dataset: it has no {missing[0] if missing else 'shards'}. Accepted is the output folder "
            f"of a run that has ended."
        )
    if rejected:
        files += sorted(f"rejected/{path.name}" for path in folder.glob("rejected/*.jsonl"))
    return files


def push_dataset(
    output_dir: str | os.PathLike,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Upload a LongGRIT dataset",
    report: bool = False,
    rejected: bool = False,
    token: str | None = None,
) -> str:
    """Puts the dataset of a finished run onto the Hub, in one commit.

    Files of the folder `run` (settings, answers, the source's manifest) are never published. What the repository has of an
    earlier push and is not published now (shards, report, rejected regions, by their names) is deleted in the same commit;
    all other files of the repository stay.

    Args:
        output_dir: Output folder of the run.
        repo_id: `"user/name"`; made where it is missing.
        private: Whether a new repository is private; by default as the namespace has it.
        revision: Branch, made where it is missing; by default `main`.
        commit_message: Of the commit.
        report: Whether the report is published too. It shows rejected texts.
        rejected: Whether the rejected regions are published too.
        token: Of the Hub; by default the one that is logged in.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If the folder holds no finished dataset; nothing is sent then.
        huggingface_hub.errors.HfHubHTTPError: If the Hub refuses.

    Example:
        >>> push_dataset("runs/longgrit", "user/longgrit", private=True)  # doctest: +SKIP
        'https://huggingface.co/datasets/user/longgrit/commit/...'
        >>> push_dataset("examples", "user/longgrit")
        Traceback (most recent call last):
        ...
        ValueError: examples is no finished dataset: it has no README.md. Accepted is the output folder of a run that has ended.
    """
    folder = Path(output_dir)
    files = files_to_push(folder, report, rejected)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    there = api.list_repo_files(repo_id, repo_type="dataset", revision=revision)
    gone = sorted(file for file in there if _OURS.fullmatch(file) and file not in files)
    return api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(file, folder / file) for file in files),
            *(CommitOperationDelete(file, is_folder=False) for file in gone),
        ],
        repo_type="dataset",
        revision=revision,
        commit_message=commit_message,
    ).commit_url
