# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The report and its plots: complete, escaped, in one file, the same for the same results."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluation_for_tests import PHOTOS, heldout_records
from PIL import Image

from processing_pixclip.evaluation.plots import confusion_table, plot_result, shown_classes
from processing_pixclip.evaluation.report import choose_examples, draw_item, render_report
from processing_pixclip.evaluation.results import BenchmarkResult, Figure
from processing_pixclip.regions import mask_to_box, to_mask


EVIL = "<script>alert('1')</script> & \"quoted\" {{ 7 * 7 }}"
RECORDS = heldout_records(6)


def photo_path(record):
    return str(PHOTOS / record["image"])


def classified(main_figure="top-1", **fields):
    """Regions of real photos; every third is taken for a person."""
    items, images = [], {}
    for record in RECORDS:
        images[record["image"]] = photo_path(record)
        for region in record["regions"]:
            wrong = len(items) % 3 == 0
            guess = "person" if wrong and region["category"] != "person" else region["category"]
            item = {"key": f"{record['image']}#{len(items)}", "score": len(items) / 100, "image": record["image"]}
            item |= {"correct": guess == region["category"], "mask": region["mask"], "truth": region["category"]}
            items.append({**item, "predicted": guess})
    share = float(np.mean([item["correct"] for item in items]))
    figures = {main_figure: Figure(share, share - 0.1, share + 0.1, len(items), 0.1), "top-5": Figure(1.0)}
    content = {
        "benchmark": "coco-regions",
        "task": "zero-shot-image-classification",
        "dataset": f"COCO {EVIL}",
        "main_figure": main_figure,
        "protocol": {"name": "default", "template": EVIL, "views": ["roi", "full"]},
        "model": {"name": f"model {EVIL}", "resolution": [32, 32]},
        "figures": figures,
        "counts": {"regions": len(items)},
        "versions": {"numpy": "2.0"},
        "items": items,
        "images": images,
        "changed": {"limit": 6},
        "data": {"annotations/instances.json": {"sha256": "0a1b", "bytes": 7}},
    }
    return BenchmarkResult(**{**content, **fields})


def retrieved():
    keys = [record["image"] for record in RECORDS]
    items = []
    for place, record in enumerate(RECORDS):
        # The last photos' captions find the first photo.
        rank = 1 if place < 3 else place
        shared = {"image": record["image"], "rank": rank, "correct": rank == 1, "score": 0.9 - place / 10}
        text = EVIL if place == 5 else record["captions"][0]
        found = keys[place] if rank == 1 else keys[0]
        items.append({"key": f"t{place}", "direction": "text to image", "text": text, "truth": keys[place], **shared})
        items[-1]["predicted"] = found
        items.append({"key": f"i{place}", "direction": "image to text", "truth": text, "predicted": text, **shared})
    figures = {f"text to image R@{k}": Figure(0.5, 0.2, 0.8, 6, k / 6) for k in (1, 5)}
    figures["text to image median rank"] = Figure(1.0, 1.0, 4.0, 6, 3.0)
    return BenchmarkResult(
        *("flickr30k", "image-text-retrieval", "Flickr30k", "text to image R@1"),
        *({"name": "default"}, {"name": "m"}, figures, {}, {"numpy": "2.0"}, items),
        {key: photo_path(record) for key, record in zip(keys, RECORDS, strict=True)},
    )


class Page(HTMLParser):
    """Tags, their attributes, and texts; fails on tags that do not close each other."""

    VOID = {"meta", "img", "br"}

    def __init__(self, content):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(content)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))


def page_of(*results):
    return render_report(results, {result.benchmark: plot_result(result) for result in results})


@pytest.fixture(scope="module")
def html():
    return page_of(classified(), retrieved())


def test_the_page_holds_all_figures_protocols_and_versions(html):
    page = Page(html)
    text = "\n".join(page.texts)
    result = classified()
    value = f"{result.figures['top-1'].value:.3f}"
    for told in (
        "coco-regions",
        "flickr30k",
        "top-5",
        "text to image R@5",
        value,
        "0.200 to 0.800",
        '["roi", "full"]',
        "default, limit=6",
        "annotations/instances.json",
        '"sha256": "0a1b"',
    ):
        assert told in text
    assert "32, 32" in text and "numpy" in text and str(len(result.items)) in text
    # A median rank is no share: it has no bar, and no digits after the point.
    row = html[html.index("<td>text to image median rank") :]
    row = row[: row.index("</tr>")]
    assert "track" not in row and re.findall(r">([\d. to]+)<", row) == ["1", "1 to 4", "3", "6"]
    assert "track" in html[html.index("<td>text to image R@5") :].split("</tr>")[0]


def test_texts_of_others_do_nothing(html):
    page = Page(html)
    assert "script" not in page.tags and "{{ 7 * 7 }}" in html and "<script" not in html
    shown = [text for text in page.texts if EVIL in text]
    # Title, heading, data set, protocol, model, and the caption as text, truth and predicted.
    assert len(shown) >= 6
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_the_page_needs_nothing_else(html):
    page = Page(html)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:image/", "#")) for value in sources)
    assert "default-src 'none'" in html and not re.search(r"url\(|@import|https?://", html)
    pictures = [value.partition(",")[2] for value in sources if value.startswith("data:")]
    sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
    # Three plots; 16 examples of regions at most, 12 of retrieval, and 3 photos that were found.
    assert 20 < len(sizes) <= 3 + 16 + 12 + 3
    jpegs = [value for value in sources if value.startswith("data:image/jpeg")]
    assert all(len(value) < 120_000 for value in jpegs) and len(html) < 3_000_000


def test_equal_results_give_equal_pages(html):
    assert page_of(classified(), retrieved()) == html


def test_the_surest_are_chosen_and_of_different_photos_first():
    best, worst = choose_examples(classified())
    assert all(item["correct"] for item in best) and not any(item["correct"] for item in worst)
    right = [item for item in classified().items if item["correct"]]
    assert best[0] == max(right, key=lambda item: item["score"])
    assert len({item["image"] for item in best[:3]}) == 3
    assert len(best) == min(8, len(right)) and len({item["key"] for item in best}) == len(best)


def test_the_region_is_drawn_where_it_is():
    record = RECORDS[0]
    region = record["regions"][0]
    drawn = np.asarray(Image.open(io.BytesIO(draw_item({"mask": region["mask"]}, photo_path(record)))).convert("RGB"))
    plain = np.asarray(Image.open(io.BytesIO(draw_item({}, photo_path(record)))).convert("RGB"))
    mask = to_mask(region["mask"], record["height"], record["width"])
    small = Image.fromarray((mask * 255).astype(np.uint8)).resize(drawn.shape[1::-1])
    changed = np.abs(drawn.astype(int) - plain).sum(-1)
    inside, outside = np.asarray(small) > 250, np.asarray(small) < 5
    assert np.median(changed[inside]) < 20 < 40 < np.median(changed[outside])
    assert max(drawn.shape) == 320
    box = mask_to_box(mask).tolist()
    chosen = np.asarray(Image.open(io.BytesIO(draw_item({"predicted_box": box}, photo_path(record)))).convert("RGB"))
    blue = np.abs(chosen.astype(int) - (36, 87, 166)).sum(-1) < 60
    blue &= np.abs(chosen.astype(int) - plain).sum(-1) > 60
    rows, columns = np.nonzero(blue)
    scale = drawn.shape[1] / record["width"]
    assert abs(columns.min() - box[0] * scale) < 8 and abs(columns.max() - box[2] * scale) < 8
    assert abs(rows.min() - box[1] * scale) < 8 and abs(rows.max() - box[3] * scale) < 8


def test_a_photo_that_cannot_be_read_is_told_without_its_folder(tmp_path):
    result = classified()
    broken = tmp_path / "secret-folder" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"no image")
    result.images[RECORDS[0]["image"]] = str(broken)
    html = page_of(result)
    assert "No picture: ValueError" in html and "secret-folder" not in html


def test_plots_fit_the_items():
    plots = {**plot_result(classified()), **plot_result(retrieved())}
    assert list(plots) == ["per_class", "confusion", "retrieval"]
    # As many classes as items, or texts without classes: there is nothing to count.
    alone = classified(items=[{"key": str(n), "correct": True, "truth": str(n), "predicted": "1"} for n in range(4)])
    assert plot_result(alone) == {}
    for content in plots.values():
        image = Image.open(io.BytesIO(content))
        assert image.format == "PNG" and 400 < max(image.size) < 1400 and len(content) < 150_000


def test_many_classes_with_odd_names_fit_a_plot():
    generator = np.random.default_rng(0)
    names = [f"class ${number}$ with a long name_{number}^{{x}}" for number in range(1203)]
    items = []
    for number in range(4000):
        truth, guess = names[int(1203 * generator.random() ** 3)], names[int(1203 * generator.random() ** 2)]
        items.append({"key": str(number), "correct": truth == guess, "truth": truth, "predicted": guess})
    plots = plot_result(classified(items=items))
    for content in plots.values():
        assert max(Image.open(io.BytesIO(content)).size) < 1400


def test_examples_are_those_of_the_main_figure():
    items = [
        {"key": f"{split}{number}", "direction": split, "correct": True, "score": number, "image": f"{number}.jpg"}
        for split in ("trivial", "hard")
        for number in range(3)
    ]
    figures = {name: Figure(1.0, chance=0.1) for name in ("trivial", "hard", "roi: hard")}
    for main in ("hard", "roi: hard"):
        best, _ = choose_examples(classified(main, items=items, figures=figures))
        assert [item["key"] for item in best] == ["hard2", "hard1", "hard0"]
    best, worst = choose_examples(retrieved())
    assert {item["direction"] for item in best + worst} == {"text to image"}


def test_examples_show_a_photo_twice_at_most_and_none_that_is_always_right():
    items = [{"key": str(n), "correct": True, "score": n, "image": "a.jpg" if n else "b.jpg"} for n in range(9)]
    items += [{"key": "alone", "correct": True, "score": 99, "image": "c.jpg", "chance": 1.0}]
    best, _ = choose_examples(classified(items=items))
    assert [item["key"] for item in best] == ["8", "0", "7"]


def test_the_confusion_shows_what_a_collapsed_model_predicts():
    items = [{"truth": f"class {n % 40:02}", "predicted": "toaster"} for n in range(200)]
    rows, columns, table = confusion_table(items, Counter(item["truth"] for item in items))
    assert len(rows) == 20 and columns == [*rows, "toaster"]
    assert (table[:, -1] == 1).all() and table[:, :-1].sum() == 0
    items += [{"truth": "class 00", "predicted": f"odd {n}"} for n in range(6)]
    _, columns, table = confusion_table(items, Counter(item["truth"] for item in items))
    assert columns[20:] == ["toaster", "odd 0", "odd 1", "odd 2", "odd 3", "another"]
    np.testing.assert_allclose(table.sum(axis=1), 1)


def test_among_classes_of_equal_accuracy_those_of_most_items_are_shown():
    classes = shown_classes([(0.0, count, f"class {count}") for count in range(1, 101)])
    assert [entry and entry[1] for entry in classes] == [*range(100, 85, -1), None, *range(71, 86)]
    few = [(0.5, 1, "b"), (1.0, 1, "c"), (0.5, 2, "a")]
    assert [entry[2] for entry in shown_classes(few)] == ["c", "a", "b"]


def test_chance_is_drawn_for_a_figure_that_is_called_like_its_split():
    items = [{"key": str(n), "direction": "hard", "rank": n + 1, "correct": n == 0, "score": 1.0} for n in range(4)]
    figures = {"hard": Figure(0.25, chance=0.1)}
    with_chance = plot_result(classified("hard", items=items, figures=figures))
    without = plot_result(classified("hard", items=items, figures={"hard": Figure(0.25)}))
    assert with_chance["retrieval"] != without["retrieval"]


def test_prompts_are_shown_as_class_names():
    items = [
        {"key": str(n), "correct": n < 3, "truth": f"a {'cat' if n < 3 else 'dog'}.", "predicted": "a cat."}
        for n in range(5)
    ]
    bare = [{**item, "truth": item["truth"][2:-1], "predicted": "cat"} for item in items]
    prompts = classified(items=items, protocol={"name": "default", "template": "a {}."})
    assert plot_result(prompts) == plot_result(classified(items=bare, protocol={"name": "default"}))
    assert plot_result(prompts) != plot_result(classified(items=items, protocol={"name": "default"}))
