# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Model cards: what a run leaves in README.md, what of it is kept when it is written again, and what never gets into it."""

import csv
import json
import os
import re
import shutil
import sys

import huggingface_hub.repocard
import numpy as np
import pytest
import yaml
from card_for_tests import train_in_process, with_card
from distributed_for_tests import run_processes
from hub_for_tests import run_script, running_hub
from huggingface_hub import ModelCard
from PIL import Image
from tiny_pretraining import DATA, ROOT, losses, make_workspace
from training_for_tests import make_trainer, objective_model
from transformers import TrainerCallback

from modeling_pixclip import (
    CardDetails,
    CheckpointIntegrityCallback,
    FreezingSchedule,
    ModelCardCallback,
    PixCLIPConfig,
    PixCLIPForPreTraining,
    get_objective_preset,
    render_model_card,
    write_model_card,
)
from modeling_pixclip.card_sections import model_index_results, preset_of
from modeling_pixclip.model_card import BEGIN, END, TEMPLATE, hub_id


sys.path.insert(0, str(ROOT / "examples"))
from pretraining_arguments import parse_arguments
from run_pretraining import card_details, main


EXAMPLE = ROOT / "model_cards" / "coco_regions.md"
# A path from the root of a file system, which is what a URL, a fraction and a closing tag are not.
LOCAL_PATH = re.compile(r"(?<![\w.:/<])/(?:home|root|tmp|work|mnt|data|private|usr)\b|[A-Z]:\\")


def train(folder, *options):
    main([str(folder / "config.json"), "--output_dir", str(folder / "run"), *map(str, options)])
    return folder / "run"


def assert_blocks_are_apart(content):
    """Tables, headings and paragraphs run into each other without an empty line, and have one alone between them."""
    for block in re.sub(r"^(`{3,}).*?^\1$", "code", content, flags=re.DOTALL | re.MULTILINE).split("\n\n")[1:]:
        lines = block.splitlines()
        kinds = {"table" if line.startswith(("| ", "|-")) else line[:2] for line in lines}
        assert lines and lines[0] and ("table" not in kinds or kinds == {"table"})
        assert not {"##", "**"} & kinds or len(lines) == 1


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("card"))


def default_run(*options):
    """Arguments of the default run, and what the script tells its card."""
    arguments = [str(ROOT / "examples/configs/coco_regions.json"), *options]
    return card_details(arguments, *parse_arguments(arguments, ""), {"train": [], "held-out": []})


def test_what_the_default_run_tells_its_card():
    details = default_run("--hub_token", "hf_short", "--card", '{"data": {"train": {"name": "Photos"}}}')
    # Of the Hub: whose weights its text backbone has. No folder of this machine, and no secret.
    assert details.base_model == ["HuggingFaceTB/SmolLM2-135M-Instruct"] and details.license is None
    assert "--hub_token ***" in details.command and "hf_short" not in details.command
    heldout = {"name": "examples/data/coco_regions/heldout.jsonl"}
    assert details.data == {"train": {"name": "Photos"}, "held-out": heldout}
    other = default_run("--text_backbone", "org/llm")
    assert other.base_model == [] and not any("SmolLM2" in note for note in other.notes)
    details = default_run()
    assert details.language == "en" and len(details.notes) == 4 and "GGUF Q4_1" in details.notes[-1]
    with (DATA / "ATTRIBUTION.csv").open(encoding="utf-8", newline="") as file:
        photos = {row["source_url"].split("://")[1]: row["licence"] for row in csv.DictReader(file)}
    (example,) = details.widget
    assert photos[example["src"].split("://")[1]] == "No known copyright restrictions"


@pytest.fixture(scope="module")
def finished(workspace):
    folder = train(workspace, "--card", json.dumps({"license": "cc-by-4.0", "language": "en"}))
    return folder, (folder / "README.md").read_text(encoding="utf-8")


def rows_of(text):
    """Rows of all tables, by their first column."""
    rows = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in text.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_example_script_leaves_a_card_with_its_figures(finished):
    folder, content = finished
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.license == "cc-by-4.0" and card.data.language == "en"
    assert card.data.pipeline_tag == "zero-shot-image-classification"
    assert card.data.tags == ["pixclip", "region-text", "generated_from_trainer"]
    # From scratch, and an LLM out of a folder: nothing on the Hub that it could be based on.
    assert card.data.base_model is None
    measured = json.loads((folder / "region_retrieval.json").read_text())
    expected = {
        (split, name): measured[split]["true mask"][key]
        for split in ("train", "held-out")
        for key, name in (("r1", "R@1"), ("r5", "R@5"), ("right_of_two", "right of two"))
    }
    found = {
        (result.dataset_split, result.metric_name.removesuffix(", true mask")): result.metric_value
        for result in card.data.eval_results
        if result.metric_name.endswith("true mask")
    }
    assert found == {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}
    state = json.loads((folder / "trainer_state.json").read_text())
    evaluation = [entry for entry in state["log_history"] if "eval_loss" in entry][-1]
    # Of the Trainer's evaluation all that is retrieval is in the results, of the same split; the loss is in the table.
    assert all(result.task_type == "image-text-retrieval" for result in card.data.eval_results)
    assert not any("step" in result.metric_name for result in card.data.eval_results)
    rows = rows_of(content)
    assert rows["loss"] == [f"{evaluation['eval_loss']:.3f}"]
    assert rows["Training data"] == ["train.jsonl, 6 images, 34 regions"] and rows["Steps"] == ["4 of 4, 2 epochs"]
    last = losses(folder)[4]
    assert rows["`local`"] == ["1", f"{last['loss_local']:.3f}"]
    assert rows["other region's mask"] == [
        f"{value:.3f}" for value in measured["held-out"]["other region's mask"].values()
    ]
    assert "Objective: pixclip;" in content and rows["Vision tower started from"] == ["random weights"]
    assert "python examples/run_pretraining.py config.json --output_dir run --card" in content
    assert_blocks_are_apart(content)
    assert not LOCAL_PATH.search(content) and str(folder.parent) not in content
    assert not list(folder.glob("_README*"))


def test_what_the_card_says_about_use_runs(finished, tmp_path, monkeypatch, capsys):
    folder, content = finished
    record = json.loads((DATA / "heldout.jsonl").open(encoding="utf-8").readline())
    Image.open(DATA / record["image"]).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", content, re.DOTALL)
    assert len(examples) == 3
    for example in examples:
        assert '"path/or/hub-id"' in example
        exec(example.replace("path/or/hub-id", str(folder)), {})
    assert capsys.readouterr().out.count("'label': 'a dog'") == 2


def test_a_card_without_training_as_the_readme_has_it(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*", "README.md"))
    readme = (ROOT / "model_cards" / "README.md").read_text(encoding="utf-8")
    with_trainer, without = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    compile(with_trainer, "README.md", "exec")
    exec(without.replace("runs/coco_regions", str(tmp_path / "model")), {})
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "mit" and card.data.base_model == ["org/original"]
    rows = rows_of(card.text)
    assert rows["Longest text"] == ["512 tokens, template included"] and rows["Text template"] == ['`"{text}"`']
    assert "- Converted; outputs equal the original's." in card.text and not LOCAL_PATH.search(card.content)


def structure(text):
    """Headings, and the rows of the tables of architecture and training."""
    text = text[text.index(BEGIN) :]
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    tables = text[text.index("## Architecture") : text.index("Objective: ")]
    return headings, [line.split(" | ")[0] for line in tables.splitlines() if line.startswith("| ")]


def figures(text):
    """Rows of the tables of evaluation: {(split, row): figures}."""
    tables = re.findall(r"^\*\*(train|held-out)\*\* \(.*\n\n((?:\|.*\n)+)", text, re.MULTILINE)
    return {
        (split, row): values for split, table in tables for row, values in rows_of(table).items() if row != "shown"
    }


def test_the_example_in_the_folder_is_what_is_rendered(finished):
    example = EXAMPLE.read_text(encoding="utf-8")
    assert structure(example) == structure(finished[1])
    card = ModelCard.load(EXAMPLE)
    assert card.data.base_model == ["HuggingFaceTB/SmolLM2-135M-Instruct"] and card.data.language == "en"
    # What `make pretrain` runs, and what the README says that it shows.
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    folder = re.search(r"^RUN_DIR \?= (.*)$", makefile, re.MULTILINE).group(1)
    command = re.search(r"^\t\$\(VENV\)/bin/(python examples/run_pretraining.py .*)$", makefile, re.MULTILINE).group(1)
    assert f"```bash\n{command.replace('$(RUN_DIR)', folder)}\n```" in example
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = readme[readme.index("## What the default run shows") : readme.index("## Layout")]
    shown = {"the region's own": "true mask", "another region's": "other region's mask", "none": "no mask"}
    lines = [line[2:-2].split(" | ") for line in readme.splitlines() if line.startswith(("| train ", "| held-out "))]
    assert figures(example) == {(split, shown.get(row, row)): values for split, row, *values in lines}
    assert {result.dataset_split for result in card.data.eval_results} == {"train", "held-out"}
    assert not LOCAL_PATH.search(example)
    for block in ("bibtex", "python", "bash"):
        assert example.count(f"```{block}\n") == finished[1].count(f"```{block}\n")


def test_a_run_that_goes_on_keeps_what_was_written_by_hand(finished, workspace):
    folder, content = finished
    edited = content.replace("# run\n", "# A better name\n\nMy introduction.\n", 1)
    edited = edited.replace("license: cc-by-4.0", "license: mit\nthumbnail: https://example.org/a.png", 1)
    edited = edited.replace("pipeline_tag: zero-shot-image-classification\n", "", 1) + "\n## My appendix\n"
    edited = edited.replace("4 of 4, 2 epochs", "many")
    (folder / "README.md").write_text(edited, encoding="utf-8")
    train(workspace, "--num_train_epochs", "3", "--card", '{"license": "apache-2.0", "language": "en"}')
    card = ModelCard.load(folder / "README.md")
    assert "# A better name\n\nMy introduction.\n" in card.text and card.text.endswith("\n## My appendix\n")
    assert card.text.count(BEGIN) == card.text.count(END) == 1
    # Changed, added and deleted by hand; and what was not, as it now is.
    assert card.data.license == "mit" and card.data.thumbnail == "https://example.org/a.png"
    assert card.data.pipeline_tag is None and card.data.language == "en"
    assert {result.metric_name for result in card.data.eval_results} >= {"R@5, true mask", "R@1, true mask"}
    rows = rows_of(card.text)
    assert rows["Steps"] == ["6 of 6, 3 epochs"]
    assert "Time (part 1: steps 0 to 4)" in rows and "Time (part 2: steps 4 to 6)" in rows


def card_of(**details):
    return render_model_card(PixCLIPConfig(), details=CardDetails(**details))


def rewritten(folder, existing, card=None):
    (folder / "README.md").write_bytes(existing.encode())
    write_model_card(folder, card or card_of(license="apache-2.0", tags=["ours"]))
    return ModelCard.load(folder / "README.md")


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_card_of_others_is_kept_and_ours_follows(tmp_path, ends):
    text = "---\nlicense: mit\ntags: [theirs]\n---\n# Theirs\n\nwords\n"
    card = rewritten(tmp_path, text.replace("\n", ends))
    assert card.data.license == "mit" and card.data.tags == ["theirs"] and card.data.library_name == "transformers"
    assert card.text.startswith(f"# Theirs\n\nwords\n\n{BEGIN}\n") and card.text.endswith(f"{END}\n")
    again = rewritten(tmp_path, card.content)
    assert again.content == card.content


def test_lists_changed_by_hand_stay(tmp_path):
    first = rewritten(tmp_path, "")
    assert first.data.tags == ["pixclip", "region-text", "ours"]
    changed = first.content.replace("- ours\n", "- mine\n")
    assert rewritten(tmp_path, changed).data.tags == ["pixclip", "region-text", "mine"]
    # Not changed by hand: the new one's.
    assert rewritten(tmp_path, first.content, card_of(tags=["new"])).data.tags == ["pixclip", "region-text", "new"]
    assert rewritten(tmp_path, first.content, card_of()).data.license is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace(END, ""), "1 times '<!-- pixclip-card:begin -->' and 0 times"),
        (lambda text: text.replace(BEGIN, f"{BEGIN}\n{BEGIN}"), "2 times"),
        (lambda text: text.replace(BEGIN, "x").replace(END, BEGIN).replace("x\n", f"{END}\n"), "in this order"),
        (lambda text: text.replace("license: apache-2.0", "license: [", 1), "its metadata cannot be read"),
    ],
)
def test_a_damaged_card_is_left_alone(tmp_path, damage, message):
    damaged = damage(rewritten(tmp_path, "").content)
    with pytest.raises(ValueError, match=re.escape(message)):
        rewritten(tmp_path, damaged)
    assert (tmp_path / "README.md").read_text() == damaged and os.listdir(tmp_path) == ["README.md"]


def test_foreign_text_stays_text(tmp_path):
    """What labels, paths and names hold is shown, and does nothing."""
    evil = f"a\n---\nlicense: evil\n---\n<script>alert(1)</script> {{{{ 1237 + 1241 }}}} {{% raw %}} | [x](javascript:1) `{END}"
    home = "/home/me/secret/"
    processor = type("Processor", (), {"text_template": f"{{text}}{evil}```", "text_max_length": 7})()
    details = CardDetails(
        license="other",
        license_name=evil,
        tags=[evil],
        model_name=evil,
        vision_origin=f"{home}clip",
        preset=evil,
        data={"train": {"name": f"{home}train.jsonl"}, evil: {"name": evil, "images": 3, "regions": 4}},
        results={evil: {evil: {evil: 0.5, "r1": float("nan")}}},
        widget=[
            {"src": "https://example.org/a.jpg", "candidate_labels": [evil.replace(",", "")], "example_title": evil}
        ],
        command=f'python {home}train.py --file={home}x.json --json \'{{"a": "{home}y"}}\' ``` {evil}',
        notes=[evil],
    )
    config = PixCLIPConfig()
    config.text_config.backbone_source = {"folder": f"{home}llm", "config_sha256": "0" * 64, "changed": evil}
    for _ in range(2):
        write_model_card(tmp_path, render_model_card(config, processor, details))
        content = (tmp_path / "README.md").read_text(encoding="utf-8")
        metadata = yaml.safe_load(content.split("\n---\n")[0].removeprefix("---\n"))
        assert metadata["license"] == "other" and metadata["tags"][-1].startswith("a --- license: evil")
        assert metadata["model-index"][0]["results"][0]["metrics"] == [
            {"type": metadata["tags"][-1], "value": 0.5, "name": f"{metadata['tags'][-1]}, {metadata['tags'][-1]}"}
        ]
        text = ModelCard(content).text
        assert "{{ 1237 + 1241 }}" in text and "2478" not in text
        assert text.count(f"{BEGIN}\n") == 1 and text.count(END) == 1
        in_code = re.compile(r"^(`{3,})\w*\n.*?\n\1$|(?<!`)(`+)(?!`).*?(?<!`)\2(?!`)", re.DOTALL | re.MULTILINE)
        prose = in_code.sub("", text)
        assert "<script" not in prose and "[x]" not in prose.replace("\\[x\\]", "")
        assert "/home" not in content and "secret" not in content
        assert "a folder named llm" in text and "python train.py --file=x.json" in text
        # A table keeps its columns.
        for line in text.splitlines():
            if line.startswith(("| Vision tower started", "| Text template", "| Pooling")):
                assert len(re.findall(r"(?<!\\)\|", line)) == 3


def test_what_is_not_known_is_said(tmp_path):
    write_model_card(tmp_path, render_model_card(PixCLIPConfig()))
    card = ModelCard.load(tmp_path / "README.md")
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag", "tags"}
    rows = rows_of(card.text)
    for name in ("Vision tower started from", "Text backbone from", "Text template", "Longest text"):
        assert rows[name] == ["not recorded"]
    for sentence in ("Training was not recorded.", "Nothing was measured.", "No licence of the weights was given"):
        assert sentence in card.text


@pytest.mark.parametrize(
    ("details", "message"),
    [
        ({"license": "Apache 2"}, "license is 'Apache 2'; accepted are the Hub's names"),
        ({"license": "other"}, "name it: license_name"),
        ({"datasets": ["/data/mine"]}, "datasets has '/data/mine'; accepted are ids on the Hub"),
        ({"base_model": "./clip"}, "base_model has './clip'"),
        ({"widget": [{"src": "photo.jpg"}]}, "widget 0 has src 'photo.jpg'; accepted is the public http(s) URL"),
        ({"widget": [{"src": "http://localhost/a.jpg"}]}, "accepted is the public http(s) URL"),
        ({"widget": [{"url": "https://a.org/b"}]}, "accepted are src, which it needs"),
        ({"widget": [{"src": "https://a.org/b", "candidate_labels": ["a, b"]}]}, "separates labels by commas"),
        ({"widget": "photo.jpg"}, "widget is 'photo.jpg'; accepted is a list of objects"),
        ({"results": {"train": {"true mask": 0.5}}}, "is 0.5; accepted is {split: {row: {metric: value}}}"),
        ({"results": {"train": {"true mask": {"r1": "0.5"}}}}, "has '0.5' as 'r1'; accepted is a number"),
        ({"data": {"train": "coco"}}, "data of 'train' is 'coco'; accepted is an object of name, images and regions"),
        ({"data": {"train": {"photos": 3}}}, "data of 'train' has photos; accepted are name, images and regions"),
        ({"data": {"train": {"images": "3"}}}, "images in data of 'train' is '3'; accepted are whole numbers"),
        ({"pipeline_tag": "zs"}, "pipeline_tag is 'zs'; accepted are 'zero-shot-image-classification', "),
        ({"base_model_relation": "child"}, "base_model_relation is 'child'; accepted are 'finetune', "),
        ({"language": "English (US)"}, "language has 'English (US)'; accepted are ISO 639 codes"),
        ({"tags": [1]}, "tags is [1]; accepted is a list of texts"),
        ({"model_name": 3}, "model_name is 3; accepted is a text"),
        ({"repo_id": "a/b/c"}, "repo_id is 'a/b/c'; accepted is an id on the Hub"),
    ],
)
def test_wrong_details_say_what_is_wrong(details, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        card_of(**details)
    ((name, value),) = details.items()
    if details != {"license": "other"}:
        later = CardDetails()
        with pytest.raises((ValueError, TypeError), match=re.escape(message)):
            setattr(later, name, value)


def test_details_in_other_forms_mean_the_same():
    details = CardDetails(
        language=("en", "de"),
        notes="Not for medicine.",
        widget={"src": "https://example.org/a.jpg", "candidate_labels": ("a", "b")},
        data={"val": {"images": np.int64(3)}},
        results={"val": {"true mask": {"r1": np.float32(0.5)}, "nothing": {}}, "empty": {}},
        command=["python", "train.py", "--data", "/home/me/my docs/a.jsonl"],
    )
    card = render_model_card(PixCLIPConfig(), details=details)
    assert card.data.language == ["en", "de"] and card.data.widget[0]["candidate_labels"] == "a, b"
    assert "- Not for medicine.\n" in card.text and "**val** (3 images)" in card.text
    assert (
        card.data.eval_results[0].metric_value == 0.5 and "```bash\npython train.py --data a.jsonl\n```" in card.text
    )
    # Tables that would have a header alone.
    assert "| nothing |" not in card.text and "**empty**" not in card.text


def test_results_come_from_a_file_too(tmp_path):
    (tmp_path / "results.json").write_text('{"val": {"true mask": {"r10": 0.25, "right_of_two": null}}}')
    card = card_of(results=tmp_path / "results.json", datasets=["org/regions"], data={"val": {"name": "Regions"}})
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_type) == ("recall_at_10", 0.25, "org/regions")
    assert rows_of(card.text)["true mask"] == ["0.250", "-"]


def test_results_that_are_not_there_yet_come_when_they_are(tmp_path, caplog):
    details = CardDetails(results=tmp_path / "region_retrieval.json")
    trainer, card = with_card(tmp_path / "run", details)
    trainer.train()
    assert "Nothing was measured." in (tmp_path / "run" / "README.md").read_text()
    (tmp_path / "region_retrieval.json").write_text('{"val": {"true mask": {"r1": 0.25}}}')
    card.write()
    assert rows_of((tmp_path / "run" / "README.md").read_text())["true mask"] == ["0.250"]
    (tmp_path / "region_retrieval.json").write_text("{broken")
    with pytest.raises(ValueError, match="region_retrieval.json cannot be read as JSON"):
        card.write()
    with pytest.raises(ValueError, match="region_retrieval.json cannot be read as JSON"):
        with_card(tmp_path / "other", details)
    # The model is saved all the same.
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").exists() and not (tmp_path / "saved" / "README.md").exists()


def test_the_trainers_retrieval_is_in_the_metadata_unless_the_results_have_it():
    training = {
        "evaluation": {"eval_loss": 3.0, "eval_region_to_text_r1": 0.25, "eval_region_to_text_r5": 0.5, "step": 2}
    }
    results = {"val": {"true mask": {"r1": 0.75}}}
    found = model_index_results(results, {"train": {}, "val": {}}, [], training)
    assert [(result.metric_type, result.metric_value) for result in found] == [
        ("recall_at_1", 0.75),
        ("recall_at_5", 0.5),
    ]
    assert {result.task_type for result in found} == {"image-text-retrieval"}


def test_a_folder_that_is_named_like_a_repository_is_no_base_model(tmp_path, monkeypatch):
    objective_model().save_pretrained(tmp_path / "stage1")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    config = PixCLIPForPreTraining.from_pretrained("stage1").config
    assert config.name_or_path == "stage1"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert render_model_card(config).data.base_model is None
    config._commit_hash = 40 * "0"
    assert render_model_card(config).data.base_model == ["stage1"]


def test_an_objective_is_recognised_as_a_preset():
    for name in ("pixclip", "fg-clip-stage2", "pixclip+fg", "clip"):
        assert preset_of(PixCLIPConfig(**get_objective_preset(name))) == name
    assert preset_of(PixCLIPConfig(local_weight=0.3)) is None


def test_without_jinja_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(huggingface_hub.repocard, "is_jinja_available", lambda: False)
    with pytest.raises(ImportError, match="pip install jinja2"):
        card_of()


def test_the_template_lies_in_the_package():
    assert TEMPLATE.parent.name == "modeling_pixclip" and TEMPLATE.is_file()


def test_the_plain_trainer_writes_the_card_at_each_save(tmp_path):
    model = objective_model()
    model.config.text_config.backbone_source = {"repo_id": "org/llm", "revision": "abc", "config_sha256": "0" * 64}
    details = CardDetails(vision_origin="org/clip-vit")
    schedule = FreezingSchedule({"vision": (0, 1)})
    arguments = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    trainer, _ = with_card(tmp_path / "run", details, model, [schedule], **arguments)
    trainer.add_callback(CheckpointIntegrityCallback())
    trainer.train()
    first = (tmp_path / "run" / "checkpoint-1" / "README.md").read_text()
    assert "Training has not ended: step 1 of 2." in first and "checkpoint-1" not in first
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.base_model == ["org/clip-vit", "org/llm"] and card.data["base_model_relation"] == "finetune"
    rows = rows_of(card.text)
    assert rows["Text backbone from"] == [
        "`org/llm`, revision `abc`, SHA-256 of its configuration `0000000000000000`; its weights were changed"
    ]
    assert rows["Frozen"] == ["0 parameters; vision in steps 0 to 1; text backbone: full"]
    assert rows["loss"] == [f"{trainer.state.log_history[-2]['eval_loss']:.3f}"]
    trainer.save_model(str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "README.md").read_text() == (tmp_path / "run" / "README.md").read_text()


def test_create_model_card_takes_what_the_trainers_own_takes(tmp_path):
    trainer, _ = with_card(tmp_path)
    options = {"language": "de", "license": "mit", "tags": "mine", "dataset_tags": "org/data", "dataset": "Data"}
    trainer.create_model_card(finetuned_from="org/base", tasks="image-feature-extraction", model_name="m", **options)
    card = ModelCard.load(tmp_path / "README.md")
    expected = {"language": "de", "license": "mit", "datasets": ["org/data"], "base_model": ["org/base"]}
    assert expected.items() <= card.data.to_dict().items() and card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.tags == ["pixclip", "region-text", "mine"] and card.text.startswith("\n# m\n")


def test_without_the_callback_the_trainers_card_stays_and_with_it_it_goes(tmp_path):
    make_trainer(tmp_path, objective_model()).create_model_card(license="mit")
    stock = (tmp_path / "README.md").read_text()
    assert "generated automatically" in stock and BEGIN not in stock
    trainer, _ = with_card(tmp_path)
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert "generated automatically" not in card.text and BEGIN in card.text and card.data.license == "mit"
    assert card.data.tags == ["pixclip", "region-text"]


def test_a_callback_that_could_not_push_its_card_is_refused(tmp_path):
    trainer = make_trainer(tmp_path, objective_model(), callbacks=[ModelCardCallback()])
    with pytest.raises(ValueError, match=re.escape("call ModelCardCallback(...).add_to(trainer)")):
        trainer.train()


def test_the_trainers_card_that_was_edited_stays(tmp_path):
    trainer = make_trainer(tmp_path, objective_model(), max_steps=2, eval_strategy="steps", eval_steps=1)
    trainer.train()
    trainer.create_model_card(license="mit")
    stock = (tmp_path / "README.md").read_text()
    assert "- Loss: " in stock and "| Training Loss |" in stock
    assert "generated automatically" not in rewritten(tmp_path, stock).text
    card = rewritten(tmp_path, stock.replace("## Model description\n\nMore information needed", "It sees dogs.", 1))
    assert "It sees dogs." in card.text and card.text.count(BEGIN) == 1 and card.data.license == "mit"


def test_a_card_that_is_a_link_stays_one(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "card.md").write_text("# Mine\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").symlink_to(tmp_path / "docs" / "card.md")
    assert write_model_card(tmp_path / "run", card_of()) == tmp_path / "run" / "README.md"
    assert (tmp_path / "run" / "README.md").is_symlink()
    assert (tmp_path / "docs" / "card.md").read_text().count(BEGIN) == 1
    assert os.listdir(tmp_path / "docs") == ["card.md"] and os.listdir(tmp_path / "run") == ["README.md"]


class Spoil(TrainerCallback):
    """Puts into the details what no check sees."""

    def __init__(self, details):
        self.details = details

    def on_step_end(self, args, state, control, **kwargs):
        self.details.data["train"] = "coco"


def test_no_card_ends_a_run(tmp_path):
    details = CardDetails()
    trainer, card = with_card(tmp_path, details, callbacks=[Spoil(details)], save_strategy="steps", save_steps=1)
    trainer.train()
    assert trainer.state.global_step == 2 and (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    with pytest.raises(TypeError, match="is not a mapping"):
        card.write()


class Damage(TrainerCallback):
    """Writes a README.md with one mark while the run is on."""

    def on_step_end(self, args, state, control, **kwargs):
        with open(f"{args.output_dir}/README.md", "w") as file:
            file.write(BEGIN)


def test_a_damaged_card_stops_a_run_before_it_begins_and_not_at_its_end(tmp_path, caplog):
    trainer, card = with_card(tmp_path, callbacks=[Damage()])
    trainer.train()
    assert (tmp_path / "README.md").read_text() == BEGIN
    with pytest.raises(ValueError, match="is kept as it is"):
        card.write()
    with pytest.raises(ValueError, match="cannot take the model card"):
        with_card(tmp_path)


def test_time_goes_on_with_a_checkpoint(tmp_path):
    arguments = {"save_strategy": "steps", "save_steps": 1, "restore_callback_states_from_checkpoint": True}
    trainer, _ = with_card(tmp_path, **arguments)
    trainer.train()
    trainer, _ = with_card(tmp_path, max_steps=3, **arguments)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    rows = rows_of((tmp_path / "README.md").read_text())
    # Step 2 of the first run is not in the second one.
    assert {"Time (part 1: steps 0 to 1)", "Time (part 2: steps 1 to 3)"} <= rows.keys()


def test_two_processes_write_one_card(tmp_path):
    run_processes(train_in_process, tmp_path, processes=2)
    rows = rows_of((tmp_path / "run" / "README.md").read_text())
    assert rows["Processes"] == ["2"] and "4 images in a contrastive batch" in rows["Batch"][0]
    assert (tmp_path / "of_0" / "README.md").exists() and not (tmp_path / "of_1").exists()


PUSH = """
import sys
sys.path[:0] = [{tests!r}]
from card_for_tests import with_card
from modeling_pixclip import CardDetails

arguments = dict(push_to_hub=True, hub_model_id="owner/pushed", hub_strategy="every_save", hub_always_push=True)
trainer, card = with_card({folder!r}, CardDetails(license="mit"), save_strategy="steps", save_steps=1, **arguments)
trainer.train()
trainer._finish_current_push()
card.details.results = {{"val": {{"true mask": {{"r1": 0.75}}}}}}
trainer.push_to_hub(tags="late")
"""


@pytest.mark.slow
def test_the_trainer_pushes_this_card(tmp_path):
    (tmp_path / "push.py").write_text(PUSH.format(tests=str(ROOT / "tests"), folder=str(tmp_path / "run")))
    with running_hub(tmp_path / "hub") as hub:
        run = run_script(hub, tmp_path / "push.py", home=tmp_path)
        assert run.returncode == 0, run.stderr[-3000:]
        commits = hub.ask("GET", "/api/models/owner/pushed/commits/main").json()
        urls = [f"/owner/pushed/resolve/{commit['id']}/README.md" for commit in commits]
        answers = [hub.ask("GET", url, follow_redirects=True) for url in urls]
    # While it trained, too; an upload reads the files late, so that it may hold the next step's, whose own then is empty.
    assert any(commit["title"].startswith("Training in progress") for commit in commits)
    cards = [ModelCard(answer.text) for answer in answers if answer.status_code == 200]
    assert len(cards) >= 2 and all(BEGIN in card.text and card.data.license == "mit" for card in cards)
    newest = cards[0]
    assert newest.data.eval_results[0].metric_value == 0.75 and "late" in newest.data.tags
    assert 'repository = "owner/pushed"' in newest.text and rows_of(newest.text)["Steps"][0].startswith("2 of 2")


def test_ids_on_the_hub_are_told_from_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    names = ["org/model", "gpt2", "org/here", str(tmp_path), "./model", "a/b/c", "", None, "~/model"]
    assert [hub_id(name) for name in names] == ["org/model", "gpt2", *[None] * 7]
