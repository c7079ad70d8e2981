# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Report and card of the LongGRIT pipeline: what they show, and that texts of data and models are only shown."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from huggingface_hub import DatasetCard
from longgrit_results import COCO_REGIONS, PhotoStore, provenance, results_of_photos, settings_for
from PIL import Image

from processing_pixclip import to_mask
from processing_pixclip.longgrit.config import LongGritSettings
from processing_pixclip.longgrit.dataset_card import markdown_text, render_card, write_card
from processing_pixclip.longgrit.dataset_writer import write_shard
from processing_pixclip.longgrit.run_report import draw_region, render_report, write_report
from processing_pixclip.longgrit.run_summary import NUM_SAMPLES, merge_summaries, summarise_shard
from processing_pixclip.longgrit.sources import SourceError


class Page(HTMLParser):
    """Elements and texts of a page, as a browser would find them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.styles = [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.lasttag != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def results():
    return results_of_photos(25)


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    summary = summarise_shard(results, [SourceError("a", "missing_image", "b")], seconds=10.0)
    path = write_report(folder, json.loads(json.dumps(summary)), settings_for(folder), PhotoStore())
    return summary, path.read_text(encoding="utf-8"), json.loads((folder / "report.json").read_text())


def test_the_report_shows_what_the_run_did(page):
    summary, html, content = page
    found = Page(html)
    assert content == summary
    for text in (
        f"{summary['accepted']} regions described",
        f"of {summary['regions']} regions",
        "verify inconsistent",
        "source too_small",
        "missing_image (1)",
        "vendor/model-7b",
        f"{summary['regions'] / 10:.1f} regions a second",
        f"{NUM_SAMPLES} described regions, at random",
    ):
        assert text in found.text, text
    for stage, counts in summary["stages"].items():
        row = f"{stage} {counts['entered']} {counts['left']} {100 * counts['left'] / counts['entered']:.1f} %"
        assert row in found.text
    for sample in summary["samples"]:
        assert sample["text"] in found.text and sample["region_id"] in found.text
    for samples in summary["reject_samples"]["verify"].values():
        assert all(sample["detail"] in found.text for sample in samples)


def test_the_histogram_has_a_bar_for_each_length(page):
    summary, html, _ = page
    found = Page(html)
    histogram = {int(words): count for words, count in summary["words"]["histogram"].items()}
    heights = [float(bar["height"]) for bar in found.named("rect")]
    counts = [histogram.get(words, 0) for words in range(min(histogram), max(histogram) + 1, 10)]
    assert len(heights) == len(counts)
    np.testing.assert_allclose(heights, 150 * np.array(counts) / max(counts), atol=0.01)


def test_lengths_far_apart_still_make_a_picture(results):
    summary = summarise_shard(results)
    summary["words"]["histogram"] |= {"0": 1, "100000": 2}
    html = render_report(summary, settings_for("out"), PhotoStore())
    assert 30 <= len(Page(html).named("rect")) <= 70


def test_the_page_needs_nothing_else(page):
    _, html, _ = page
    found = Page(html)
    assert not found.named("script") and not found.named("link")
    images = found.named("img")
    assert len(images) >= NUM_SAMPLES + 4
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in images)
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", html)
    (policy,) = [meta["content"] for meta in found.named("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'")
    first = Image.open(io.BytesIO(base64.b64decode(images[0]["src"].partition(",")[2])))
    assert max(first.size) <= 448


def test_a_region_is_outlined_and_the_rest_is_paler(results):
    sample = next(sample for sample in summarise_shard(results)["samples"] if sample["mask"])
    content = (COCO_REGIONS / sample["location"]["path"]).read_bytes()
    photo = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), float)
    drawn = np.asarray(Image.open(io.BytesIO(draw_region(content, sample))), float)
    # Photos of the sample are at most 448 pixels long, so that they keep their size.
    assert drawn.shape == photo.shape
    mask = to_mask(sample["mask"], *photo.shape[:2]) > 0
    change = np.abs(drawn - photo).mean(axis=2)
    assert change[mask].mean() < 8 < change[~mask].mean()
    pink = (np.abs(drawn - [255, 32, 110]) < 60).all(axis=2)
    assert pink[~mask].sum() > 50


def test_a_photo_that_cannot_be_read_is_told(results):
    class Broken(PhotoStore):
        def read(self, location):
            raise FileNotFoundError("there is no such <photo>")

    found = Page(render_report(summarise_shard(results), settings_for("out"), Broken()))
    assert not found.named("img") and "No picture: FileNotFoundError: there is no such <photo>" in found.text


def test_samples_do_not_hang_on_the_order_of_shards(results):
    parts = [summarise_shard(results[start : start + 5]) for start in range(0, 25, 5)]
    orders = [merge_summaries(parts), merge_summaries(parts[::-1])]
    first, second = (render_report(summary, settings_for("out"), PhotoStore()) for summary in orders)
    assert first == second


ATTACKS = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "{{ 7 * 191 }}{% raw %}",
    "</td></tr></table><h1>Owned</h1>",
    "a | b | c\n| --- |\n\n# Owned\n\n---\nlicense: mit\n---\n",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png) http://evil.example www.evil.example",
    "```\ncode\n```\n<!-- gone",
    "*bold* _it_ ~~no~~ `tick` $x$ \\",
    "\u202egnp.exe\u0000\u2028x",
)


def attacked(attack, number):
    """A photo's result, with the attack in every text that data or a model gives."""
    (result,) = results_of_photos(1, box_every=10**6, reject_every=3, drop_every=10**6)
    identifiers = {region.region_id: f"{attack}{number}#{place}" for place, region in enumerate(result.image.regions)}
    regions = [
        dataclasses.replace(region, region_id=identifiers[region.region_id], category=attack, phrase=attack)
        for region in result.image.regions
    ]
    regions[0] = dataclasses.replace(regions[0], dropped=f"dropped {attack}")
    result.image = dataclasses.replace(
        result.image, regions=tuple(regions), image_id=f"{attack}{number}", licence=f"licence {attack}"
    )
    result.regions = result.regions[1:]
    for region in result.regions:
        region.region_id = identifiers[region.region_id]
        region.object_text, region.context_text, region.text = attack, attack, f"text {attack}"
        region.hard_negatives = [f"negative {attack}"]
        region.provenance = [dataclasses.replace(provenance("verify", f"model {attack}"), prompt=attack)]
        if region.reason is not None:
            region.reason, region.detail = f"reason {attack}", f"detail {attack}"
    return result


@pytest.fixture(scope="module", params=range(len(ATTACKS)))
def attack(request):
    attack = ATTACKS[request.param]
    results = [attacked(attack, number) for number in range(2)]
    errors = [SourceError(attack, f"error {attack}", attack)]
    return attack, results, json.loads(json.dumps(summarise_shard(results, errors)))


def test_nothing_in_a_report_is_markup_of_others(attack, tmp_path):
    text, _, summary = attack
    settings = settings_for(tmp_path, dataset_name=f"name {text}")
    found = Page(render_report(summary, settings, PhotoStore()))
    known = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "p",
        "div",
        "b",
        "span",
        "table",
        "tr",
        "th",
    }
    known |= {"td", "svg", "g", "rect", "text", "line", "img", "details", "summary", "ul", "li"}
    assert {tag for tag, _ in found.elements} <= known
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert len(found.named("h1")) == 1
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in found.named("img"))
    # Shown as it is, wherever it stands.
    shown = " ".join(text.replace("\0", "\ufffd").split())
    for kind in ("name", "text", "negative", "model", "reason", "detail", "error"):
        assert f"{kind} {shown}" in found.text or "\0" in text, kind
    assert "1337" not in found.text


def test_nothing_in_a_card_is_markup_or_metadata_of_others(attack, tmp_path):
    text, results, summary = attack
    settings = settings_for(tmp_path, dataset_name=f"name {text}", dataset_licence=f"licence {text}")
    write_shard(0, results, settings, PhotoStore())
    path = write_card(tmp_path, summary, settings)
    content = path.read_text(encoding="utf-8")
    plain = settings_for(tmp_path, dataset_name="name", dataset_licence="mine")
    expected = render_card(summarise_shard(results_of_photos(1)), plain, {"parquet": {"00000.parquet": 2}})
    metadata = DatasetCard.load(path).data.to_dict()
    assert metadata.keys() == expected.data.to_dict().keys()
    assert metadata["license"] == "other" and re.fullmatch(r"[a-z0-9.-]+", metadata["license_name"])
    assert metadata["pretty_name"] == " ".join(re.sub("[<>]", " ", f"name {text}").split())
    (_, head, body) = content.split("---\n", 2)
    assert yaml.safe_load(head) == metadata
    lines = [line for line in body.splitlines() if line.strip()]
    headings = [line for line in lines if line.startswith("#")]
    assert len(headings) == 6 and not any("Owned" in line for line in headings[1:])
    # Code, tables and comments are those of the template: none is opened or closed by a text.
    assert sum(line.startswith("```") for line in lines) == 2
    assert not re.search(r"<(?!id )|javascript:[^a]|1337", body.replace("`<id or folder>`", ""))
    assert not re.search(r"\]\((?!https://arxiv\.org/)", re.sub(r"\\.", "", body))
    assert not re.search(r"(?<!\\)://(?!arxiv\.org/)", body) and "www.evil" not in body
    rows = [line for line in lines if line.startswith("|") and "model " in line and "verify" in line]
    assert rows and all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)


def test_markdown_text():
    cases = {
        "- a": "\\- a",
        "1. a": "1\\. a",
        "12) a": "12\\) a",
        "# a #": "\\# a #",
        "> a": "&gt; a",
        "a\n\n***\nb": "a \\*\\*\\* b",
        "&lt;": "&amp;lt;",
        "cc-by-4.0 vendor/model-7b": "cc-by-4.0 vendor/model-7b",
    }
    for text, expected in cases.items():
        assert str(markdown_text(text)) == expected


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        (None, (None, None)),
        ("CC-BY-4.0", ("cc-by-4.0", None)),
        ("My own terms, v2", ("other", "my-own-terms-v2")),
        ("\u00a9", ("other", "other")),
    ],
)
def test_a_licence_is_one_that_the_hub_knows_or_another(licence, expected):
    data = render_card(summarise_shard([]), settings_for("out", dataset_licence=licence)).data.to_dict()
    assert (data.get("license"), data.get("license_name")) == expected


def test_the_card_tells_who_wrote_the_texts():
    results = results_of_photos(2)
    written = str(render_card(summarise_shard(results), settings_for("out")))
    assert "written by models" in written and "vendor/model-7b" in written
    for result in results:
        result.provenance = []
        for region in result.regions:
            region.provenance = [provenance("fuse", "rules")]
    ruled = str(render_card(summarise_shard(results), settings_for("out")))
    assert "put together by rules" in ruled and "built-in rules" in ruled and "written by models" not in ruled
    results[0].regions[0].provenance.append(provenance("verify"))
    both = str(render_card(summarise_shard(results), settings_for("out")))
    assert "written by models and, in part, put together by rules" in both and "checked by models" in both
    for result in results:
        for region in result.regions:
            region.provenance = [provenance("fuse")]
    assert "no model has checked them" in str(render_card(summarise_shard(results), settings_for("out")))
    nobody = str(render_card(summarise_shard([]), settings_for("out")))
    assert "No model was asked" in nobody and "rules from" not in nobody and "Models describe" not in nobody


def test_the_card_promises_no_text_of_a_stage_that_was_skipped(results):
    skipped = {name: {"enabled": False} for name in ("object_caption", "context_caption", "fuse", "hard_negatives")}
    content = {**settings_for("out", images="path", formats=["webdataset"]).model_dump(), "stages": skipped}
    summary = summarise_shard(results)
    card = str(render_card(summary, LongGritSettings(**content), {"webdataset": {"00000.tar": 1}}))
    told = card.split("| column |")[0].split("# LongGRIT")[1].split("| images |")[0]
    assert "what is known of it, one after the other" in told
    assert not re.search("caption of the object|surroundings|made of|hard negatives", told)
    assert "Hard negatives are meant" not in card and "empty: none were asked for" in card
    # Tars hold the files.
    assert "| `image` | the image file" in card
    whole = str(render_card(summary, settings_for("out", images="path"), {}))
    assert "one long description made of both" in whole and "(hard negatives)" in whole


def test_costs_are_those_of_the_tokens(results):
    settings = settings_for("out").model_copy(update={"price_per_million": {"input": 10.0, "output": 100.0}})
    summary = summarise_shard(results)
    answers = sum(counts["answers"] for models in summary["models"].values() for counts in models.values())
    html = render_report(summary, settings, PhotoStore())
    assert f"{answers * (700 * 10 + 40 * 100) / 1e6:.2f} US dollars" in html
