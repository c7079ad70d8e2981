# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""`examples/push_to_hub.py`: what it refuses, what it sends, and that others can load it."""

import base64
import io
import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from hub_for_tests import HERE, OWNER, READER, client_of, running_hub
from test_auto_classes import LABELS, build_images, build_model, build_processor
from tiny_models import backbone_config, vision_config
from transformers import LlamaModel

from modeling_pixclip import PixCLIPModel


sys.path.insert(0, str(HERE.parent / "examples"))
import push_to_hub


pytestmark = pytest.mark.xdist_group("push_to_hub")
ENDPOINT = HERE.parent / "examples" / "endpoint"
CARD = (
    "---\nlicense: apache-2.0\npipeline_tag: zero-shot-image-classification\nlibrary_name: transformers\n---\n# Mine\n"
)
# What a training leaves in its folder, and nobody else needs.
LEFT_BY_TRAINING = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "training_args.bin",
    "run_arguments.json",
    "bad_samples.jsonl",
    "runs/events.out.tfevents",
    "checkpoint-5/model.safetensors",
    "checkpoint-5/optimizer.pt",
)
# What looks like something to upload, and is not: in folders, or left by another save.
NOT_OURS = (
    "LICENSES/secret.key",
    "LICENSE.token",
    ".env",
    "model-x/a-of-b.safetensors",
    "model-00001-of-00002.safetensors",
    "pytorch_model.bin",
    "sub/config.json",
    "tokenization_of_another.py",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    build_model(PixCLIPModel).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "mine")


@pytest.fixture
def without_remote_code(monkeypatch):
    """Leaves out the check that takes a process of its own, which other tests have."""
    monkeypatch.setattr(push_to_hub, "check_loads_by_remote_code", lambda *arguments: None)


def run(capsys, folder, *options, name="me/pixclip"):
    """Without a Hub; the offline mode of the tests would refuse one."""
    status = push_to_hub.main(["--folder", str(folder), "--repo_id", name, *options])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def sent(printed):
    """Names of the files that it said it would upload."""
    table = printed.split(":\n", 1)[1].split(" bytes in ")[0]
    return {line.split()[1] for line in table.splitlines()[:-1]}


def test_a_dry_run_tells_what_would_be_sent_and_leaves_the_rest(capsys, folder, monkeypatch):
    left = (*LEFT_BY_TRAINING, *NOT_OURS)
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    status, printed, _ = run(capsys, folder, "--dry_run")
    assert status == 0
    names = sent(printed)
    expected = {path.name for path in folder.iterdir() if path.is_file()} - {*left}
    assert names == expected and "modeling_pixclip.py" in names and "pipeline_pixclip.py" in names
    told = printed.split("stay here: ")[1].split("\n")[0]
    assert {*told.split(", ")} == {*left}
    # The check that others can load it is done.
    monkeypatch.setattr(push_to_hub, "check_loads_by_remote_code", lambda *arguments: None)
    status, printed, _ = run(capsys, folder, "--dry_run", "--include", "run_arguments.json", "runs/*")
    assert sent(printed) == expected | {"run_arguments.json", "runs/events.out.tfevents"}
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def without_weight(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["logit_scale"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def of_another_type(folder):
    shutil.rmtree(folder)
    LlamaModel(backbone_config("llama")).save_pretrained(folder)


def set_fields(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def with_shards(folder):
    PixCLIPModel.from_pretrained(folder).save_pretrained(folder, max_shard_size="20KB")


def with_missing_shard(folder):
    with_shards(folder)
    (folder / "model.safetensors").unlink()
    min(folder.glob("model-*.safetensors")).unlink()


OTHER_CODE = {"AutoModel": "other/repo--modeling_pixclip.PixCLIPModel"}
REFUSED = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "broken config": (write("config.json", '{"model_type": "pixclip"'), "config.json is no JSON"),
    "a config that is none": (write("config.json", "[]"), "config.json holds a list"),
    "a field of another type": (set_fields(projection_dim="x"), "config.json cannot be used.*projection_dim"),
    "an unknown type with code": (set_fields(model_type="nosuch"), "type 'nosuch'; accepted is 'pixclip'"),
    "code of another repository": (set_fields(auto_map=OTHER_CODE, custom_pipelines={}), "names no code beside it"),
    "broken processor": (write("processor_config.json", "{"), "processor_config.json is no JSON"),
    "broken tokenizer": (write("tokenizer.json", "{"), "its processor cannot be loaded"),
    "broken index": (
        lambda folder: (folder / "model.safetensors").rename(folder / "model.safetensors.index.json"),
        "model.safetensors.index.json is no JSON",
    ),
    "weights twice": (with_shards, "weights twice, in model.safetensors and in the files that"),
    "a shard is missing": (with_missing_shard, "model-00001-of-.* is missing, which its"),
    "code that is none": (
        write("modeling_pixclip.py", "syntax error ("),
        "others cannot load it with trust_remote_code=True: SyntaxError",
    ),
    "another type": (of_another_type, "type 'llama'; accepted is 'pixclip'"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "the model cannot be loaded"),
    "cut weights": (cut, "the model cannot be loaded"),
    "a weight is missing": (without_weight, "1 missing keys, such as logit_scale"),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), r"processor.save_pretrained\("),
    "no code": (lambda folder: (folder / "losses.py").unlink(), "losses.py is missing"),
    "no card": (lambda folder: (folder / "README.md").unlink(), "has no card.*--write_card.*--no_card"),
    "broken card": (
        lambda folder: (folder / "README.md").write_text("---\na: b: c\n---\n"),
        "README.md cannot be read",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_others_could_not_use_is_refused(capsys, folder, what, monkeypatch):
    def ask(*arguments):
        raise AssertionError("it asks the user")

    monkeypatch.setattr("builtins.input", ask)
    damage, message = REFUSED[what]
    damage(folder)
    status, printed, errors = run(capsys, folder, "--dry_run")
    assert status == 1 and not printed
    assert str(folder) in errors
    with pytest.raises(AssertionError, match=f"(?s){message}"):
        raise AssertionError(errors)


TOKENIZER = """
from transformers import PreTrainedTokenizerFast
from .words_of_mine import WORDS


class TokenizerOfMine(PreTrainedTokenizerFast):
    words = WORDS
"""


def test_a_tokenizer_with_code_of_its_own_takes_it_along(capsys, folder):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {
        "tokenizer_class": "TokenizerOfMine",
        "auto_map": {"AutoTokenizer": [None, "tokens_of_mine.TokenizerOfMine"]},
    }
    path.write_text(json.dumps(config))
    (folder / "words_of_mine.py").write_text("WORDS = ()\n")
    (folder / "tokens_of_mine.py").write_text(TOKENIZER)
    further = {"spiece.model", "sentencepiece.bpe.model", "tekken.json", "additional_chat_templates/a.jinja"}
    (folder / "additional_chat_templates").mkdir()
    for name in further:
        (folder / name).write_text("{}")
    status, printed, errors = run(capsys, folder, "--dry_run")
    assert status == 0, errors
    assert further | {"tokens_of_mine.py", "words_of_mine.py"} <= sent(printed)
    (folder / "words_of_mine.py").unlink()
    assert "words_of_mine.py is missing" in run(capsys, folder, "--dry_run")[2]


def test_what_a_backbone_was_loaded_by_is_not_needed(capsys, folder, without_remote_code):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["backbone_config"]["auto_map"] = {
        "AutoModel": "other/repo--modeling_x.X",
        "AutoConfig": "y.Y",
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert run(capsys, folder, "--dry_run")[0] == 0


@pytest.fixture
def with_local_backbone(tmp_path):
    """A model whose text backbone came from a folder, and a way to save it."""
    LlamaModel(backbone_config("llama", vocab_size=19)).save_pretrained(tmp_path / "secret" / "llm")
    torch.manual_seed(0)
    model = PixCLIPModel.from_vision_text_pretrained(vision_config(), str(tmp_path / "secret" / "llm"))

    def save(**options):
        model.save_pretrained(tmp_path / "model", **options)
        build_processor().save_pretrained(tmp_path / "model")
        (tmp_path / "model" / "README.md").write_text(CARD)
        return tmp_path / "model"

    return save


def test_a_backbone_that_only_this_machine_has_is_refused(capsys, with_local_backbone):
    folder = with_local_backbone(include_text_backbone=False)
    status, _, errors = run(capsys, folder, "--dry_run")
    assert status == 1 and "secret" in errors and "include_text_backbone=True" in errors


def test_a_backbone_that_others_get_from_the_hub_is_not_loaded(capsys, with_local_backbone):
    folder = with_local_backbone(include_text_backbone=False)
    config = json.loads((folder / "config.json").read_text())
    source = config["text_config"]["backbone_source"]
    config["text_config"]["backbone_source"] = {
        "repo_id": "org/llm",
        "revision": None,
        "config_sha256": source["config_sha256"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    status, printed, errors = run(capsys, folder, "--dry_run")
    assert status == 0 and "model.safetensors" in sent(printed), errors
    without_weight(folder)
    assert "1 missing keys, such as logit_scale" in run(capsys, folder, "--dry_run")[2]


def test_the_folder_of_a_backbone_that_is_in_the_checkpoint_is_not_told(with_local_backbone, without_remote_code):
    folder = with_local_backbone()
    assert "secret" in (folder / "config.json").read_text()
    options = push_to_hub.parse_arguments(["--folder", str(folder), "--repo_id", "me/x"])
    content = push_to_hub.prepare(options).files["config.json"]
    assert b"secret" not in content
    (folder / "config.json").write_bytes(content)
    assert PixCLIPModel.from_pretrained(folder).config.text_config.backbone_source is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--card_details", '{"licence": "mit"}'], "licence"),
        (["--card_details", "{"], "--card_details cannot be used"),
        (["--no_card", "--write_card"], "exclude each other"),
        (["--tag", "a tag"], "--tag 'a tag' is no name that git accepts"),
        (["--tag", "main"], "is the name of the branch"),
        (["--revision", "dev", "--tag", "dev"], "is the name of the branch"),
        (["--revision", "a..b"], "--revision 'a..b' is no name"),
    ],
)
def test_options_that_cannot_be_used(capsys, folder, options, message):
    with pytest.raises(SystemExit):
        run(capsys, folder, "--dry_run", *options)
    assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(capsys, folder, "--dry_run", name="me/a name")
    assert "is no name of a repository" in capsys.readouterr().err


# By `git check-ref-format --branch`.
ACCEPTED = ["v1", "v1.0-rc.1", "a/b", "é", "a@b", "x#1", "a.lock.b"]
NOT_ACCEPTED = [
    "a b",
    "..",
    "a..b",
    "x.lock",
    "x.lock/a",
    "-a",
    "a/",
    "/a",
    "a//b",
    ".a",
    "a/.b",
    "a.",
    "a@{b",
    "HEAD",
]
NOT_ACCEPTED += ["a~", "a^", "a:b", "a?", "a*", "a[", "a\\b", "a\n", ""]


@pytest.mark.parametrize("name", ACCEPTED + NOT_ACCEPTED)
def test_names_of_branches_are_those_of_git(name):
    git = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True).returncode == 0
    assert push_to_hub.is_ref_name(name) == git == (name in ACCEPTED)


def test_a_pattern_without_files_and_a_missing_handler_are_named(capsys, folder, monkeypatch, tmp_path):
    assert "--include nothing.*" in run(capsys, folder, "--dry_run", "--include", "nothing.*")[2]
    monkeypatch.setattr(push_to_hub, "ENDPOINT", tmp_path)
    assert str(tmp_path / "handler.py") in run(capsys, folder, "--dry_run", "--endpoint_handler")[2]


def test_without_the_hub_nothing_is_pushed(capsys, folder):
    assert "HF_HUB_OFFLINE" in run(capsys, folder)[2]


# With a Hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with running_hub(tmp_path_factory.mktemp("hub") / "root") as hub:
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with client_of(hub, tmp_path_factory.mktemp("client")) as client:
        yield client


def arguments_of(folder, repository, *options, token=OWNER, checked=False):
    return {
        "name": "push_to_hub",
        "arguments": ["--folder", str(folder), "--repo_id", repository, *options],
        "token": token,
        "without": [] if checked else ["check_loads_by_remote_code"],
    }


def run_client(client, *arguments, **options):
    return client.call("run_example", **arguments_of(*arguments, **options))


def commits_of(hub, repository):
    return [commit["title"] for commit in hub.ask("GET", f"/api/models/{repository}/commits/main").json()]


def test_it_pushes_all_in_one_commit(hub, client, folder):
    state = client.call("fingerprint_of_folder", folder=str(folder))
    options = ["--private", "--tag", "v1", "--commit_message", "First", "--endpoint_handler"]
    status, printed, errors = run_client(client, folder, "org/mine", *options, checked=True)
    assert (status, errors) == (0, "")
    assert commits_of(hub, "org/mine") == ["First", "initial commit"]
    files = hub.files("org/mine")
    assert {*files} == sent(printed) | {".gitattributes"} and {"handler.py", "requirements.txt"} <= {*files}
    for name in ("handler.py", "requirements.txt"):
        served = hub.ask("GET", f"/org/mine/resolve/v1/{name}").content
        assert served == (ENDPOINT / name).read_bytes()
    assert hub.ask("GET", "/api/models/org/mine", token=None).status_code == 401
    info = hub.ask("GET", "/api/models/org/mine").json()
    assert (info["private"], info["pipeline_tag"]) == (True, "zero-shot-image-classification")
    for revision in ("v1", "main"):
        found = client.call("load", auto="AutoModel", repository="org/mine", revision=revision)
        assert found["state"] == state
    assert client.call("load", auto="AutoProcessor", repository="org/mine")["class"] == "PixCLIPProcessor"
    image = io.BytesIO()
    build_images()[0].save(image, "PNG")
    inputs = {"image": base64.b64encode(image.getvalue()).decode(), "candidate_labels": LABELS}
    request = {"inputs": inputs}
    answer = client.call("answer_of_endpoint", repository="org/mine", revision="v1", request=request)
    assert {entry["label"] for entry in answer} == {*LABELS}
    # Again: nothing changed, no commit; the tag is taken.
    assert run_client(client, folder, "org/mine", "--endpoint_handler")[0] == 0
    assert len(commits_of(hub, "org/mine")) == 2
    assert "has a tag 'v1' already" in run_client(client, folder, "org/mine", "--tag", "v1")[2]


def test_a_branch_is_made_and_main_stays(hub, client, folder):
    client.call("hub", method="create_repo", repo_id="org/branches")
    status, _, errors = run_client(client, folder, "org/branches", "--revision", "experiment")
    assert (status, errors) == (0, "")
    assert {*hub.files("org/branches")} == {".gitattributes"}
    assert "model.safetensors" in hub.files("org/branches", "experiment")
    # Branches and tags are told apart before anything is sent.
    client.call("hub", method="create_tag", repo_id="org/branches", tag="v1")
    assert (
        "is not a branch of org/branches, but a tag"
        in run_client(client, folder, "org/branches", "--revision", "v1")[2]
    )
    assert "has a branch 'experiment'" in run_client(client, folder, "org/branches", "--tag", "experiment")[2]
    refs = hub.ask("GET", "/api/models/org/branches/refs").json()
    assert [ref["name"] for ref in refs["branches"]] == ["main", "experiment"]
    assert {*hub.files("org/branches")} == {".gitattributes"}


def test_a_name_without_an_owner_is_the_users_own(hub, client, folder):
    status, printed, errors = run_client(client, folder, "nameless", "--write_card")
    assert (status, errors) == (0, "") and '"owner/nameless"' in printed
    assert "model.safetensors" in hub.files("owner/nameless")
    assert '"owner/nameless"' in hub.ask("GET", "/owner/nameless/resolve/main/README.md").text


def test_a_tag_that_somebody_else_made_meanwhile_does_not_undo_the_push(hub, client, folder):
    assert run_client(client, folder, "org/tagged")[0] == 0
    (folder / "README.md").write_text(CARD + "More.\n")
    # Repository, card, upload modes, commit, and then the tag.
    hub.arm(request=5, when="before")
    client.send("run_example", **arguments_of(folder, "org/tagged", "--tag", "v1"))
    assert hub.wait_until_held(client.process)
    hub.ask("POST", "/api/models/org/tagged/tag/main", json={"tag": "v1"}).raise_for_status()
    hub.release()
    status, printed, errors = client.answer()
    assert status == 1 and "Pushed: http" in printed and "was not pushed" not in errors
    assert "It was pushed, but its tag 'v1' was not set: the Hub answered 409" in errors
    assert "More." in hub.ask("GET", "/org/tagged/resolve/main/README.md").text


def test_a_hub_that_does_not_answer_is_named(capsys, folder, monkeypatch, without_remote_code):
    monkeypatch.setattr(push_to_hub.constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr(push_to_hub.constants, "ENDPOINT", url)
        for name in ("me/pixclip", "pixclip"):
            status, _, errors = run(capsys, folder, name=name)
            assert status == 1 and f"{url} cannot be reached" in errors and "Traceback" not in errors


def test_weights_in_other_files_do_not_outlive_a_push(hub, client, folder, tmp_path):
    """Transformers takes model.safetensors before shards, whichever was pushed last."""
    assert run_client(client, folder, "org/shards")[0] == 0
    model = PixCLIPModel.from_pretrained(folder)
    model.logit_scale.data += 1
    sharded = shutil.copytree(folder, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="20KB")
    state = client.call("fingerprint_of_folder", folder=str(sharded))
    status, printed, errors = run_client(client, sharded, "org/shards")
    assert (status, errors) == (0, "") and "deleted there" in printed
    assert "model.safetensors" not in hub.files("org/shards")
    assert len(commits_of(hub, "org/shards")) == 3
    assert client.call("load", auto="AutoModel", repository="org/shards")["state"] == state
    # And back to one file; Transformers leaves the index there.
    shutil.copy(sharded / "model.safetensors.index.json", folder)
    assert run_client(client, folder, "org/shards")[0] == 0
    assert not [name for name in hub.files("org/shards") if "-of-" in name or name.endswith(".index.json")]


def test_a_card_is_written_for_a_folder_without_one(hub, client, folder):
    (folder / "README.md").unlink()
    details = json.dumps({"license": "cc-by-4.0", "datasets": ["org/regions"]})
    status, _, errors = run_client(client, folder, "org/carded", "--card_details", details)
    assert (status, errors) == (0, "") and not (folder / "README.md").exists()
    card = client.call("card", repository="org/carded")
    assert (card["license"], card["datasets"]) == ("cc-by-4.0", ["org/regions"])
    assert card["pipeline_tag"] == "zero-shot-image-classification"
    assert run_client(client, folder, "org/bare", "--no_card")[0] == 0
    assert "README.md" not in hub.files("org/bare")


def test_a_public_repository_does_not_become_private_unnoticed(hub, client, folder):
    client.call("hub", method="create_repo", repo_id="org/public")
    status, _, errors = run_client(client, folder, "org/public", "--private")
    assert status == 1 and "exists and is public" in errors
    assert {*hub.files("org/public")} == {".gitattributes"}


def test_what_somebody_pushes_meanwhile_is_not_covered(hub, client, folder):
    assert run_client(client, folder, "org/busy")[0] == 0
    (folder / "README.md").write_text(CARD + "More.\n")
    # Repository, card, upload modes, and then the commit.
    hub.arm(request=4, when="before")
    client.send("run_example", **arguments_of(folder, "org/busy"))
    assert hub.wait_until_held(client.process)
    content = base64.b64encode(b"theirs").decode()
    file = {"key": "file", "value": {"path": "theirs.txt", "content": content, "encoding": "base64"}}
    lines = [{"key": "header", "value": {"summary": "Theirs"}}, file]
    hub.ask("POST", "/api/models/org/busy/commit/main", content="\n".join(map(json.dumps, lines))).raise_for_status()
    hub.release()
    status, _, errors = client.answer()
    assert status == 1 and "Somebody pushed at the same time" in errors
    assert commits_of(hub, "org/busy")[0] == "Theirs"
    assert run_client(client, folder, "org/busy")[0] == 0
    assert {"theirs.txt", "README.md"} <= {*hub.files("org/busy")} and len(commits_of(hub, "org/busy")) == 4


@pytest.mark.parametrize(("token", "status"), [(READER, 403), ("hf_wrong", 401), ("", 401)])
def test_who_may_not_write_is_told_so(hub, client, folder, token, status):
    code, _, errors = run_client(client, folder, "org/forbidden", token=token)
    assert code == 1 and f"answered {status}" in errors and "a token that may write" in errors
    assert hub.ask("GET", "/api/models/org/forbidden").status_code == 404
