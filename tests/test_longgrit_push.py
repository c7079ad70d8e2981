# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A LongGRIT dataset on the Hub: what is sent, what is not, and that it is read from there."""

import shutil

import pytest
from hub_for_tests import READER, ClientError, client_of, running_hub
from longgrit_results import PhotoStore, results_of_photos, settings_for

from processing_pixclip.longgrit.dataset_card import write_card
from processing_pixclip.longgrit.dataset_writer import write_shard
from processing_pixclip.longgrit.push import files_to_push
from processing_pixclip.longgrit.run_report import write_report
from processing_pixclip.longgrit.run_summary import merge_summaries, summarise_shard


pytestmark = pytest.mark.xdist_group("longgrit_push")
NAME = "org/longgrit"
CARD_AND_SHARDS = {
    "README.md",
    *(f"data/{name}" for name in ("00000.parquet", "00001.parquet", "sizes.json")),
    *(f"webdataset/{name}" for name in ("00000.tar", "00001.tar", "sizes.json")),
}
# What somebody else put into the repository.
OWN = (
    "mine.txt",
    "data-notes/a.txt",
    "data/notes.md",
    "data/extra/00007.parquet",
    "webdataset/more.tar",
    "rejected/why.md",
)


def write(folder, photos=6):
    """Two shards, and what a run leaves beside them."""
    settings = settings_for(folder, formats=["parquet", "webdataset"], dataset_licence="CC-BY-4.0")
    results = results_of_photos(photos)
    summaries = []
    for number in range(2):
        write_shard(number, results[number::2], settings, PhotoStore())
        summaries.append(summarise_shard(results[number::2]))
    summary = merge_summaries(summaries)
    write_card(folder, summary, settings)
    write_report(folder, summary, settings, PhotoStore())
    for file in ("settings.yaml", "lock", "source/00000.jsonl", "answers/00000.jsonl", "shards/00000.json"):
        path = folder / "run" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not for others")
    # What a killed process leaves, and what somebody else put there.
    (folder / "data/.writing-00002.parquet-x").write_text("half")
    (folder / ".env").write_text("KEY=1")
    (folder / "data/notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return write(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with client_of(hub, tmp_path_factory.mktemp("client")) as client:
        yield client


def test_card_and_shards_are_sent_in_one_commit_and_read_from_there(hub, client, finished):
    url = client.call("push_longgrit", folder=str(finished), repository=NAME)
    assert url.startswith(f"{hub.url}/datasets/{NAME}/commit/")
    assert set(hub.files(NAME, kind="datasets")) == CARD_AND_SHARDS | {".gitattributes"}
    commits = hub.ask("GET", f"/api/datasets/{NAME}/commits/main").json()
    assert [commit["title"] for commit in commits] == ["Upload a LongGRIT dataset", "initial commit"]
    info = hub.ask("GET", f"/api/datasets/{NAME}").json()
    assert info["cardData"]["license"] == "cc-by-4.0" and info["cardData"]["configs"][0]["config_name"] == "default"
    local = client.call("read_stream", paths=str(finished / "data/*.parquet"))
    assert len(local) == 6
    assert client.call("read_dataset", dataset=NAME) == local
    # By the configuration that the card names.
    assert client.call("read_rows", repository=NAME) == local


def test_a_second_push_replaces_the_first(hub, client, folder):
    name = "org/replaced"
    client.call("push_longgrit", folder=str(folder), repository=name, report=True, rejected=True)
    asked_for = {"report.html", "report.json", "rejected/00000.jsonl", "rejected/00001.jsonl"}
    assert set(hub.files(name, kind="datasets")) == CARD_AND_SHARDS | asked_for | {".gitattributes"}
    client.call("commit", repository=name, files=dict.fromkeys(OWN, "stays"), repo_type="dataset")
    (folder / "data/00001.parquet").unlink()
    (folder / "webdataset/00001.tar").unlink()
    (folder / "data/sizes.json").write_text('{"00000.parquet": 3}')
    (folder / "webdataset/sizes.json").write_text('{"00000.tar": 3}')
    client.call("push_longgrit", folder=str(folder), repository=name)
    left = {file for file in CARD_AND_SHARDS if "00001" not in file}
    assert set(hub.files(name, kind="datasets")) == left | {".gitattributes", *OWN}


def test_a_branch_and_a_private_repository(hub, client, finished):
    name = "org/private"
    options = {"private": True, "revision": "try", "commit_message": "My words"}
    client.call("push_longgrit", folder=str(finished), repository=name, **options)
    assert set(hub.files(name, "try", kind="datasets")) >= CARD_AND_SHARDS
    assert set(hub.files(name, kind="datasets")) == {".gitattributes"}
    assert hub.ask("GET", f"/api/datasets/{name}", token="hf_stranger").status_code == 404


def test_who_may_not_write_is_told(client, finished):
    with pytest.raises(ClientError, match="403"):
        client.call("push_longgrit", folder=str(finished), repository="org/other", token=READER)


def test_nothing_of_an_unfinished_run_is_sent(folder):
    (folder / "data/00002.parquet").write_bytes((folder / "data/00001.parquet").read_bytes())
    with pytest.raises(ValueError, match="only is 00002.parquet. The run has not ended"):
        files_to_push(folder)
    (folder / "data/00002.parquet").unlink()
    (folder / "webdataset/00000.tar").unlink()
    with pytest.raises(ValueError, match="only is 00000.tar"):
        files_to_push(folder)


def test_what_is_no_dataset_is_refused(folder, tmp_path):
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match="it has no README.md"):
        files_to_push(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="is no finished dataset"):
        files_to_push(tmp_path / "empty")
