# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Everything that can be pushed, on a real Hub-compatible server, with the real clients in processes of their own."""

import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
from hub_for_tests import (
    HERE,
    OWNER,
    READER,
    STRANGER,
    ClientError,
    client_of,
    end,
    run_script,
    running_hub,
)
from test_auto_classes import LABELS, build_model, build_processor, write_expectations
from tiny_models import assert_same_weights
from transformers import pipeline

from modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel
from processing_pixclip import RegionJsonlDataset, write_region_parquet, write_region_webdataset


pytestmark = pytest.mark.xdist_group("hub")
PIPELINES = {
    "org/pipeline": "zero-shot-image-classification",
    "org/region-pipeline": "zero-shot-region-classification",
    "org/feature-pipeline": "region-feature-extraction",
}
RECORDS = HERE.parent / "examples" / "data" / "coco_regions" / "heldout.jsonl"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub") / "root") as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """A process with the package; its cache of the Hub is its own."""
    with client_of(hub, tmp_path_factory.mktemp("client")) as client:
        yield client


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two saved models that differ in their weights, with their processor."""
    folders = []
    for seed, model_class in ((0, PixCLIPForPreTraining), (1, PixCLIPModel)):
        torch.manual_seed(seed)
        folders.append(tmp_path_factory.mktemp(model_class.__name__))
        build_model(model_class).save_pretrained(folders[-1])
        build_processor().save_pretrained(folders[-1])
    return [str(folder) for folder in folders]


@pytest.fixture(scope="module")
def states(client, folders):
    """Fingerprint of the weights of either folder."""
    return [client.call("fingerprint_of_folder", folder=folder) for folder in folders]


def push(client, folder, repository, **options):
    """Pushes model and processor as a user does, in two commits."""
    client.call("push", auto="AutoModel", folder=folder, repository=repository, **options)
    return client.call("push", auto="AutoProcessor", folder=folder, repository=repository, **options)


@pytest.fixture(scope="module")
def pushed(client, folders):
    """The first model, public, private, in shards, and pushed by the script."""
    push(client, folders[0], "org/pixclip")
    client.call("hub", method="create_tag", repo_id="org/pixclip", tag="v1")
    push(client, folders[0], "org/private", private=True)
    push(client, folders[0], "org/sharded", max_shard_size="20KB")
    for repository, task in PIPELINES.items():
        client.call("push_pipeline", folder=folders[0], repository=repository, task=task)
    # What it checks before is tested in test_push_to_hub.py.
    arguments = ["--folder", folders[0], "--repo_id", "org/by-script", "--no_card", "--tag", "v1"]
    unchecked = ["check_loads_by_remote_code"]
    status, _, errors = client.call(
        "run_example", name="push_to_hub", arguments=arguments, token=OWNER, without=unchecked
    )
    assert status == 0, errors
    client.call("push", auto="AutoImageProcessor", folder=folders[0], repository="org/image-processor")
    return "org/pixclip"


def head_of(hub, repository):
    return hub.ask("GET", f"/api/models/{repository}").json()["sha"]


# Without the package


def test_a_process_without_the_package_loads_it_all_by_remote_code(hub, client, folders, pushed, tmp_path):
    assert len([path for path in hub.files("org/sharded") if path.endswith(".safetensors")]) > 2
    request = write_expectations(folders[0], tmp_path)
    boxes = [[3, 4, 30, 20], [10, 2, 50, 38]]
    inputs = {
        "zero-shot-image-classification": {"candidate_labels": LABELS},
        "zero-shot-region-classification": {"candidate_labels": LABELS, "boxes": boxes},
        "region-feature-extraction": {"boxes": boxes},
    }
    calls = []
    for task, arguments in inputs.items():
        answer = pipeline(task, model=folders[0], device="cpu")(request["images"][0], **arguments)
        repositories = [pushed, *(name for name, own in PIPELINES.items() if own == task)]
        calls += [{"repository": name, "task": task, "inputs": arguments, "answer": answer} for name in repositories]
    request |= {
        "weights": f"{folders[0]}/model.safetensors",
        "sources": [
            [pushed, {}],
            [pushed, {"revision": "v1"}],
            ["org/private", {"token": OWNER}],
            ["org/by-script", {"revision": "v1"}],
        ],
        "sharded": "org/sharded",
        "refused": [["org/private", {"token": token}] for token in (False, "hf_wrong", STRANGER)],
        "pipelines": calls,
        "image_processors": ["org/image-processor"],
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    script = HERE / "load_from_hub.py"
    done = run_script(hub, script, tmp_path / "request.json", home=tmp_path, token=None, isolated=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "checked 4 refused 3"


# With the package


def test_a_process_with_the_package_loads_it_without_remote_code(hub, client, folders, states, pushed, tmp_path):
    request = write_expectations(folders[0], tmp_path)
    with client_of(hub, tmp_path / "home", token=None) as other:
        for auto, name in (
            ("AutoModel", "PixCLIPModel"),
            ("AutoModelForPreTraining", "PixCLIPForPreTraining"),
            ("AutoModelForZeroShotImageClassification", "PixCLIPModel"),
        ):
            found = other.call("load", auto=auto, repository=pushed)
            assert (found["class"], found["module"]) == (name, "modeling_pixclip.modeling_pixclip")
            if name == "PixCLIPModel":
                assert found["state"] == states[0]
        assert other.call("load", auto="AutoProcessor", repository=pushed)["module"].startswith("processing_pixclip.")
        found = other.call("load", auto="AutoImageProcessor", repository="org/image-processor")
        assert found["module"].startswith("processing_pixclip.")
        for repository in (pushed, "org/pipeline"):
            found = other.call("classify", repository=repository, image=request["images"][0], labels=LABELS)
            assert found["module"] == "modeling_pixclip.modeling_pixclip"
            for entry, wanted in zip(found["scores"], request["scores"], strict=True):
                assert entry == {"label": wanted["label"], "score": pytest.approx(wanted["score"], rel=1e-5)}
    assert not list((tmp_path / "home" / "modules").rglob("*pixclip*"))


@pytest.mark.parametrize(
    ("token", "reading", "writing"),
    [(None, 401, 401), ("hf_wrong", 401, 401), (STRANGER, 404, 404), (READER, 200, 403), (OWNER, 200, 200)],
)
def test_a_private_repository_is_there_for_its_members_only(hub, pushed, token, reading, writing):
    for path in ("/api/models/org/private", "/org/private/resolve/main/config.json"):
        assert hub.ask("GET", path, token=token).status_code == reading
    answer = hub.ask("POST", "/api/models/org/private/preupload/main", token=token, json={"files": []})
    assert answer.status_code == writing


@pytest.mark.parametrize("token", [False, "hf_wrong", STRANGER])
def test_the_model_of_a_private_repository_needs_the_token(client, states, pushed, token, tmp_path):
    # A cache of its own, as what was once downloaded is taken from there.
    options = {"auto": "AutoModel", "repository": "org/private", "cache_dir": str(tmp_path)}
    with pytest.raises(ClientError, match="org/private") as error:
        client.call("load", token=token, **options)
    assert error.value.kind == "OSError"
    assert client.call("load", token=OWNER, **options)["state"] == states[0]


def test_nobody_pushes_without_the_right_to(client, folders, pushed, hub):
    before = hub.files(pushed)
    for token, status in ((False, "401"), ("hf_wrong", "401"), (STRANGER, "403"), (READER, "403")):
        with pytest.raises(ClientError, match=status):
            client.call("push", auto="AutoModel", folder=folders[1], repository=pushed, token=token)
    assert hub.files(pushed) == before


# Revisions


def test_branches_and_tags_keep_their_weights(client, folders, states):
    repository = "org/revisions"
    first = push(client, folders[0], repository)
    client.call("hub", method="create_tag", repo_id=repository, tag="v1")
    push(client, folders[1], repository, revision="other")
    for revision, state in ((None, 0), ("v1", 0), (first, 0), ("other", 1)):
        found = client.call("load", auto="AutoModel", repository=repository, revision=revision)
        assert found["state"] == states[state], revision
    push(client, folders[1], repository)
    for revision, state in ((None, 1), ("main", 1), ("v1", 0), (first, 0)):
        found = client.call("load", auto="AutoModel", repository=repository, revision=revision)
        assert found["state"] == states[state], revision
    with pytest.raises(ClientError, match="v2"):
        client.call("load", auto="AutoModel", repository=repository, revision="v2")


def test_pushing_again_uploads_no_large_file_twice(hub, client, folders):
    repository = "org/again"
    push(client, folders[0], repository)
    before, files, commit = len(hub.requests()), hub.files(repository), head_of(hub, repository)
    push(client, folders[0], repository)
    assert (hub.files(repository), head_of(hub, repository)) == (files, commit)
    # Weights that are in another repository are not sent either.
    push(client, folders[0], "org/again-elsewhere")
    assert not [line for line in hub.requests()[before:] if line.startswith("PUT")]


def test_weights_in_other_files_do_not_outlive_a_push(hub, client, folders, states):
    """Transformers takes model.safetensors before shards, whichever was pushed last."""
    repository = "org/resharded"
    client.call("hub", method="create_repo", repo_id=repository)
    client.call("commit", repository=repository, files={"sub/model.safetensors": "x"})
    for folder, size in ((0, "50GB"), (1, "20KB"), (0, "50GB")):
        commit = client.call(
            "push", auto="AutoModel", folder=folders[folder], repository=repository, max_shard_size=size
        )
        weights = [path for path in hub.files(repository) if path.endswith(".safetensors")]
        assert ("model.safetensors" in weights) == (size == "50GB")
        assert ("model.safetensors.index.json" in hub.files(repository)) == (size == "20KB")
        assert "sub/model.safetensors" in weights
        for revision in (None, commit):
            found = client.call("load", auto="AutoModel", repository=repository, revision=revision)
            assert found["state"] == states[folder]


# Cards and data sets

CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\ntags: [region]\n---\n# A model\n"


def test_the_card_is_validated_and_kept(hub, client, folders, pushed):
    repository = "org/card"
    push(client, folders[0], repository)
    assert client.call("card", repository=repository)["library_name"] == "transformers"
    client.call("card", repository=repository, text=CARD)
    push(client, folders[1], repository, tags=["pixclip"])
    found = client.call("card", repository=repository)
    assert (found["license"], found["tags"]) == ("apache-2.0", ["region", "pixclip"])
    before = hub.files(repository)
    for wrong in ("license: [1]", "model-index: [{name: x}]", "tags: yes: no", "- a\n- b"):
        with pytest.raises(ClientError, match="Invalid metadata in README.md"):
            client.call("commit", repository=repository, files={"README.md": f"---\n{wrong}\n---\n", "new.txt": "x"})
    assert hub.files(repository) == before


@pytest.mark.parametrize("format", ["parquet", "tar"])
def test_a_folder_of_region_shards_is_a_dataset_on_the_hub(client, tmp_path, format):
    dataset = RegionJsonlDataset(RECORDS)
    write = {"parquet": write_region_parquet, "tar": write_region_webdataset}[format]
    write(dataset.records, tmp_path / "shards", dataset.image_root, samples_per_shard=25)
    expected = client.call("read_jsonl", path=str(RECORDS))
    repository = f"org/regions-{format}"
    client.call("hub", method="create_repo", repo_id=repository, repo_type="dataset", private=True)
    upload = {"repo_id": repository, "repo_type": "dataset", "folder_path": str(tmp_path / "shards")}
    client.call("hub", method="upload_folder", **upload)
    assert client.call("read_stream", paths=f"hf://datasets/{repository}/*.{format}") == expected
    if format == "parquet":
        assert client.call("read_rows", repository=repository) == expected
        with pytest.raises(ClientError):
            client.call("read_rows", repository=repository, token=False)


def test_a_dataset_pushed_by_datasets_is_read_by_our_readers(client, tmp_path):
    dataset = RegionJsonlDataset(RECORDS)
    files = write_region_parquet(dataset.records, tmp_path / "shards", dataset.image_root, samples_per_shard=25)
    client.call("push_rows", files=[str(file) for file in files], repository="org/rows")
    expected = client.call("read_jsonl", path=str(RECORDS))
    assert client.call("read_rows", repository="org/rows") == expected
    assert client.call("read_stream", paths="hf://datasets/org/rows/data/*.parquet") == expected


# A push that is killed


def killed_push(hub, folder, repository, tmp_path, fault):
    """Starts a push of the model, kills the process where the fault holds it; `False` if it came to its end before."""
    hub.arm(**fault)
    program = "import hub_client, sys; hub_client.push('AutoModel', *sys.argv[1:])"
    with open(tmp_path / "killed.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, folder, repository],
            env={**hub.environment(tmp_path), "PYTHONPATH": str(HERE)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        return hub.wait_until_held(process)
    finally:
        end(process)
        hub.release()
        hub.arm()


def check_killed_push(hub, client, folders, states, tmp_path, repository, fault, again):
    """Whether the fault was reached; a push before it is there as it was, or its whole successor; a retry succeeds."""
    if again:
        push(client, folders[0], repository)
        before = hub.files(repository)
    held = killed_push(hub, folders[1], repository, tmp_path, fault)
    if again:
        found = client.call("load", auto="AutoModel", repository=repository)["state"]
        assert found == states[0] if hub.files(repository) == before else found == states[1]
    elif hub.ask("GET", f"/api/models/{repository}").status_code == 200 and "config.json" in hub.files(repository):
        assert client.call("load", auto="AutoModel", repository=repository)["state"] == states[1]
    push(client, folders[1], repository)
    found = client.call("load", auto="AutoModel", repository=repository, force_download=True)
    assert found["state"] == states[1]
    assert not list(hub.root.glob("blobs/*.partial"))
    return held


@pytest.mark.parametrize("again", [False, True], ids=["first push", "push again"])
def test_a_push_killed_in_the_middle_of_an_upload_is_repeated(hub, client, folders, states, tmp_path, again):
    # Weights that no other test uploads, or there would be nothing to upload.
    folder = tmp_path / "model"
    model = PixCLIPModel.from_pretrained(folders[1])
    model.logit_scale.data += 1 + again
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    changed = [folders[0], str(folder)]
    fingerprints = [states[0], client.call("fingerprint_of_folder", folder=str(folder))]
    size = (folder / "model.safetensors").stat().st_size
    fault = {"upload": 1, "after_bytes": size // 2}
    repository = f"org/killed-{again}"
    assert check_killed_push(hub, client, changed, fingerprints, tmp_path, repository, fault, again)
    assert_same_weights(PixCLIPModel.from_pretrained(folder), model)


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["first push", "push again"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_push_killed_at_any_request_is_repeated(folders, states, tmp_path, when, again):
    # A server of its own, where each time nothing was uploaded before.
    with running_hub(tmp_path / "root") as hub, client_of(hub, tmp_path / "home") as client:
        for number in range(1, 50):
            for kind in ("models", "blobs"):
                shutil.rmtree(hub.root / kind, ignore_errors=True)
            shutil.rmtree(tmp_path / "home" / "hub", ignore_errors=True)
            fault = {"request": number, "when": when}
            if not check_killed_push(hub, client, folders, states, tmp_path, "org/killed", fault, again):
                break
    # Create, card, upload modes, offer, upload, verify, commit.
    assert number == 8


# The server keeps the promises that the tests above rely on


def test_a_commit_on_a_parent_that_is_not_the_last_is_refused(hub, client):
    client.call("hub", method="create_repo", repo_id="org/moved")
    first = client.call("commit", repository="org/moved", files={"a.txt": "1"})
    client.call("commit", repository="org/moved", files={"a.txt": "2"}, parent_commit=first)
    with pytest.raises(ClientError, match="412|A commit has happened since"):
        client.call("commit", repository="org/moved", files={"a.txt": "3"}, parent_commit=first)
    assert hub.ask("GET", "/org/moved/resolve/main/a.txt").text == "2"


def test_a_file_is_served_in_parts(hub, pushed, folders):
    content = open(f"{folders[0]}/model.safetensors", "rb").read()
    path = f"/{pushed}/resolve/v1/model.safetensors"
    answer = hub.ask("GET", path, headers={"Range": "bytes=100-299"})
    assert (answer.status_code, answer.content) == (206, content[100:300])
    assert answer.headers["Content-Range"] == f"bytes 100-299/{len(content)}"
    head = hub.ask("HEAD", path).headers
    assert head["X-Linked-Size"] == head["Content-Length"] == str(len(content))
    assert head["X-Linked-ETag"] == f'"{hashlib.sha256(content).hexdigest()}"'
    assert hub.ask("GET", path, headers={"Range": f"bytes={len(content) + 1}-"}).status_code == 416


def test_an_upload_is_verified(hub, pushed):
    content = b"weights" * 100
    sha256 = hashlib.sha256(content).hexdigest()
    assert hub.ask("PUT", f"/lfs/upload/{sha256}", content=content[:-1]).status_code == 400
    verify = {"oid": sha256, "size": len(content)}
    assert hub.ask("POST", f"/lfs/verify/{sha256}", json=verify).status_code == 404
    value = {"path": "x.safetensors", "algo": "sha256", **verify}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": value}]
    body = "\n".join(map(json.dumps, lines))
    assert hub.ask("POST", f"/api/models/{pushed}/commit/main", content=body).status_code == 400
    assert hub.ask("PUT", f"/lfs/upload/{sha256}", content=content).status_code == 200
    assert hub.ask("POST", f"/lfs/verify/{sha256}", json={**verify, "size": 3}).status_code == 404
    assert hub.ask("POST", f"/lfs/verify/{sha256}", json=verify).status_code == 200


def test_what_is_not_there_is_named(hub, pushed):
    for path, code in (
        ("/api/models/org/nothing", "RepoNotFound"),
        (f"/{pushed}/resolve/main/nothing.json", "EntryNotFound"),
        (f"/{pushed}/resolve/nothing/config.json", "RevisionNotFound"),
        (f"/api/models/{pushed}/tree/main/nothing", "EntryNotFound"),
    ):
        answer = hub.ask("GET", path)
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (404, code)
    assert hub.ask("GET", "/api/models/org/nothing", token=None).status_code == 401


def test_a_name_that_git_refuses_is_no_branch_or_tag(hub, client):
    client.call("hub", method="create_repo", repo_id="org/named")
    client.call("hub", method="create_tag", repo_id="org/named", tag="v1")
    for method, name, message in (
        ("create_tag", "a tag", "Invalid reference name"),
        ("create_branch", "a..b", "Invalid reference name"),
        ("create_branch", "v1", "already exists"),
        ("create_tag", "main", "already exists"),
    ):
        with pytest.raises(ClientError, match=message):
            client.call("hub", method=method, repo_id="org/named", **{method.removeprefix("create_"): name})
    refs = hub.ask("GET", "/api/models/org/named/refs").json()
    assert [ref["name"] for ref in (*refs["branches"], *refs["tags"])] == ["main", "v1"]


def test_the_state_outlives_the_server(tmp_path, folders):
    with running_hub(tmp_path / "root") as hub:
        assert hub.ask("POST", "/api/repos/create", json={"name": "x", "organization": "org"}).status_code == 200
        before = hub.files("org/x")
    with running_hub(tmp_path / "root") as hub:
        assert hub.files("org/x") == before
        assert hub.ask("POST", "/api/repos/create", json={"name": "x", "organization": "org"}).status_code == 409
