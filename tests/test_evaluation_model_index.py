# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Results in model cards: read back by huggingface_hub, and nothing lost of what a user wrote."""

import importlib.util
import os

import pytest
import yaml
from evaluation_for_tests import ROOT
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from modeling_pixclip import CardDetails, PixCLIPConfig, render_model_card, write_model_card
from processing_pixclip.evaluation.model_index import (
    COLUMNS,
    add_to_card,
    evaluation_entries,
    figure_rows,
    markdown_table,
    metric_type,
)
from processing_pixclip.evaluation.results import BenchmarkResult, Figure


def a_result(benchmark="coco-regions", preset="default", value=0.55, changed=None, data="0a", **figures):
    protocol = {"name": preset, "views": ["full+mask"], "seed": 0, "limit": None}
    found = {"top-1": Figure(value, 0.5, 0.6, 1125, 1 / 80), **figures}
    return BenchmarkResult(
        *(benchmark, "zero-shot-image-classification", "COCO val2017", "top-1", protocol, {}, found, {}, {}),
        changed=changed or {},
        data={"annotations/instances_val2017.json": {"sha256": data, "bytes": 7}},
    )


MINE = """---
# my own notes
license: "mit"   # quoted on purpose
tags: [a,
  b]

model-index:
- name: mine
  results:
  - task: {type: image-text-retrieval}
    dataset: {type: own, name: My own}
    metrics:
    - {type: accuracy, value: 0.25}

widget:
    - src: https://example.org/a.jpg
---

My own words.  \n\n---\nmodel-index: not this one\n"""


def test_entries_read_back_as_they_were():
    results = [
        a_result(**{"top-1, mean per class": Figure(1 / 3), "text to image median rank": Figure(12.5, 11, 14, 9)}),
        a_result("flickr30k"),
    ]
    entries = evaluation_entries(results)
    assert len(entries) == 4
    name, again = model_index_to_eval_results(eval_results_to_model_index("m", entries))
    assert name == "m" and again == entries
    assert [entry.metric_type for entry in entries] == ["accuracy", "top_1_mean_per_class", "median_rank", "accuracy"]
    assert entries[0].metric_args == {"count": 1125, "interval_95": [0.5, 0.6], "chance": 0.0125}
    assert entries[0].dataset_args["views"] == ["full+mask"] and entries[0].dataset_type == "coco-regions"
    assert entries[1].metric_value == 0.333333 and entries[1].metric_args == {"count": 0}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_all_but_the_index_stays_byte_by_byte(tmp_path, newline):
    before = MINE.replace("\n", newline).encode()
    (tmp_path / "README.md").write_bytes(before)
    add_to_card(tmp_path, [a_result()])
    after = (tmp_path / "README.md").read_bytes()
    begin, end = f"model-index:{newline}- name: mine".encode(), f"{newline}widget:".encode()
    assert after[: after.index(begin)] == before[: before.index(begin)]
    assert after[after.index(end) :].endswith(before[before.index(end) + len(newline) :])
    assert newline == "\n" or b"\n" not in after.replace(b"\r\n", b"")
    card = ModelCard.load(tmp_path / "README.md")
    assert [entry.metric_value for entry in card.data.eval_results] == [0.25, 0.55]
    assert card.data.eval_results[0].dataset_name == "My own" and card.data.model_name == "mine"
    assert card.data.license == "mit" and card.data.tags == ["a", "b"]
    card.data.to_yaml()


def test_a_benchmark_is_replaced_and_another_protocol_is_added(tmp_path):
    (tmp_path / "README.md").write_text(MINE)
    add_to_card(tmp_path, [a_result(value=0.1, **{"top-9": Figure(0.9)}), a_result("flickr30k")])
    add_to_card(tmp_path, [a_result(value=0.2), a_result(preset="official-pixclip", value=0.3)])
    once = (tmp_path / "README.md").read_bytes()
    add_to_card(tmp_path, [a_result(value=0.2), a_result(preset="official-pixclip", value=0.3)])
    assert (tmp_path / "README.md").read_bytes() == once
    found = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert sorted((entry.dataset_type, entry.metric_value) for entry in found) == [
        ("coco-regions", 0.2),
        ("coco-regions", 0.3),
        ("flickr30k", 0.55),
        ("own", 0.25),
    ]


def test_runs_that_differ_stay_beside_each_other_and_an_older_one_of_the_same_goes(tmp_path):
    runs = [
        {"value": 0.1},
        {"value": 0.2, "changed": {"limit": 100}},
        {"value": 0.3, "changed": {"limit": 200}},
        {"value": 0.4, "data": "0b"},
        {"value": 0.5, "preset": "official-fgclip", "changed": {"views": ["roi", "full"]}},
    ]
    for run in runs:
        add_to_card(tmp_path, [a_result(**run)])
    # Two of one measurement in one call: the later one.
    add_to_card(tmp_path, [a_result(value=0.6), a_result(value=0.7), a_result(value=0.8, changed={"limit": 200})])
    found = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [(entry.metric_value, entry.dataset_config, entry.dataset_args["data"]) for entry in found] == [
        (0.2, "coco-regions, protocol default, limit=100", {"annotations/instances_val2017.json": "0a"}),
        (0.4, "coco-regions, protocol default", {"annotations/instances_val2017.json": "0b"}),
        (0.5, "coco-regions, protocol official-fgclip, views=roi,full", {"annotations/instances_val2017.json": "0a"}),
        (0.7, "coco-regions, protocol default", {"annotations/instances_val2017.json": "0a"}),
        (0.8, "coco-regions, protocol default, limit=200", {"annotations/instances_val2017.json": "0a"}),
    ]
    assert len({entry.dataset_revision for entry in found}) == 2


@pytest.mark.parametrize("before", [None, "", "Only words.\n", "---\nlicense: mit\n---", "---\n---\nWords.\n"])
def test_metadata_are_made_where_there_are_none(tmp_path, before):
    folder = tmp_path / "my-model"
    folder.mkdir()
    if before is not None:
        (folder / "README.md").write_text(before)
    card = ModelCard.load(add_to_card(folder, [a_result()]))
    assert card.data.eval_results[0].metric_value == 0.55 and card.data.model_name == "my-model"
    assert card.text.strip() == {"Only words.\n": "Only words.", "---\n---\nWords.\n": "Words."}.get(before, "")
    assert card.data.license == ("mit" if before and "mit" in before else None)


@pytest.mark.parametrize(
    "block",
    [
        "license: [mit\n",
        "- a list\n",
        "model-index: none\n",
        "model-index:\n- name: x\n",
        '"model-index":\n- name: x\n  results: []\n',
    ],
)
def test_a_card_that_cannot_be_read_is_kept(tmp_path, block):
    content = f"---\n{block}---\nWords.\n"
    (tmp_path / "README.md").write_text(content)
    with pytest.raises(ValueError, match="README.md is kept as it is, without the results"):
        add_to_card(tmp_path, [a_result()])
    assert (tmp_path / "README.md").read_text() == content and os.listdir(tmp_path) == ["README.md"]


def test_a_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        add_to_card(tmp_path / "nowhere", [a_result()])


def test_a_card_of_this_library_keeps_the_results_when_it_is_written_again(tmp_path):
    details = CardDetails(license="apache-2.0", results={"heldout": {"mask": {"r1": 0.5}}})
    write_model_card(tmp_path, render_model_card(PixCLIPConfig(), details=details))
    before = ModelCard.load(tmp_path / "README.md")
    add_to_card(tmp_path, [a_result()])
    added = ModelCard.load(tmp_path / "README.md")
    assert added.text == before.text
    assert [entry.metric_value for entry in added.data.eval_results] == [0.5, 0.55]
    write_model_card(tmp_path, render_model_card(PixCLIPConfig(), details=details))
    assert ModelCard.load(tmp_path / "README.md").data.eval_results == added.data.eval_results


def test_kinds_of_figures():
    assert metric_type("roi: image to text R@10") == "recall_at_10"
    assert metric_type("text to image median rank") == "median_rank"
    assert metric_type("full+mask + blur+mask: accuracy") == "accuracy"
    assert metric_type("dilated 10 %: right region of two") == "right_region_of_two"


def load_coco_mini():
    path = ROOT / "tests" / "benchmarks" / "coco_mini_evaluation.py"
    spec = importlib.util.spec_from_file_location("coco_mini_evaluation", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_wrong_for_coco_mini_is_told(tmp_path, capsys):
    (tmp_path / "coco-mini").mkdir()
    module = load_coco_mini()
    given = ["--shared", str(tmp_path), "--model", "x", "--output_dir", str(tmp_path / "out")]
    given += ["--benchmark", "coco-regions", "flickr30k"]
    for change, message in (
        (["--protocol", "official-fgclip"], "flickr30k has no preset 'official-fgclip'"),
        (["--protocol", "docci=default"], "--protocol names 'docci', which --benchmark does not"),
        (["--set", "views"], "--set 'views' is no KEY=VALUE"),
    ):
        with pytest.raises(SystemExit):
            module.main([*given, *change])
        assert message in capsys.readouterr().err
    options = module.parse_arguments([*given, "--protocol", "coco-regions=official-pixclip"])
    assert options.presets == {"coco-regions": "official-pixclip"}
    assert module.main([*given, "--device", "nonsense"]) == 1
    assert "error: --device nonsense cannot be used" in capsys.readouterr().err


def test_the_table_of_coco_mini_tells_another_protocol_than_the_default():
    module = load_coco_mini()
    runs = [[a_result(value=value), a_result("flickr30k", changed={"limit": 4})] for value in (0.5, 0.6)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in module.figures_table(runs).splitlines()[2:]]
    assert rows[0] == ["coco-regions", "top-1", "1,125", "0.013", "0.550 (0.500 to 0.600)"]
    assert rows[1][0] == "flickr30k (default, limit=4)"


def test_tables_are_markdown():
    lines = markdown_table(COLUMNS, figure_rows([a_result(**{"a|b median rank": Figure(12.0, count=3)})])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        *("coco-regions", "default", "top-1", "0.550", "0.500 to 0.600", "0.013", "1,125")
    ]
    assert figure_rows([a_result(changed={"limit": 100})])[0][1] == "default, limit=100"
    assert r"a\|b median rank" in lines[3] and " 12 " in lines[3]


@pytest.mark.parametrize("before", ["\n", "  \n\n", " ", "\r\n"])
def test_metadata_after_blanks_are_kept(tmp_path, before):
    (tmp_path / "README.md").write_bytes(f"{before}---\nlicense: mit\n---\nWords.\n".encode())
    card = ModelCard.load(add_to_card(tmp_path, [a_result()]))
    assert card.data.license == "mit" and card.data.eval_results[0].metric_value == 0.55
    content = (tmp_path / "README.md").read_bytes().decode()
    assert content.startswith(f"{before}---\nlicense: mit\n") and content.count("---\n") == 2


RESULT = "  - task: {type: t}\n    dataset: {type: d, name: D}\n    metrics:\n    - {type: accuracy, value: 1}\n"


def test_of_several_models_that_of_the_folders_name_gets_the_results(tmp_path):
    folder = tmp_path / "second"
    folder.mkdir()
    content = f"---\nmodel-index:\n- name: first\n  results:\n{RESULT}- name: second\n  results:\n{RESULT}---\n"
    (folder / "README.md").write_text(content)
    add_to_card(folder, [a_result()])
    index = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["model-index"]
    assert [(model["name"], len(model["results"])) for model in index] == [("first", 1), ("second", 2)]
    folder.rename(tmp_path / "third")
    with pytest.raises(ValueError, match="several models, first, second; the folder's name, third, must be"):
        add_to_card(tmp_path / "third", [a_result()])


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("model-index:\n- results: []\n", "no list of models, each with `name` and `results`"),
        ("model-index:\n- text\n", "no list of models, each with `name` and `results`"),
        ("model-index:\n- name: a\n  results:\n  - task: {type: t}\n    metrics: []\n", "without `task` or `dataset`"),
        ("model-index: [\n{name: a,\nresults: []}]\nlicense: mit\n", "in a form that cannot be replaced"),
        ("model-index:\n- name: a\n# mine\n  results: []\n", "no comment at the beginning of a line"),
        # The Hub's client asks for the name of a dataset.
        (f"model-index:\n- name: a\n  results:\n{RESULT.replace(', name: D', '')}", "cannot be parsed: .*'name'\\.$"),
    ],
)
def test_why_a_card_is_kept_is_told(tmp_path, block, message):
    (tmp_path / "README.md").write_text(f"---\n{block}---\n")
    with pytest.raises(ValueError, match=message):
        add_to_card(tmp_path, [a_result()])
    assert (tmp_path / "README.md").read_text() == f"---\n{block}---\n"


def test_entries_tell_whose_they_are():
    result = a_result()
    result.model = {"name": "m", "weights_sha256": "0c"}
    assert evaluation_entries([result])[0].metric_args["weights_sha256"] == "0c"
