# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""FG-OVD: which of one right and several wrong descriptions fits a box, on real photos."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from evaluation_for_tests import SHARED, RandomEncoder, ToldEncoder
from layouts_fine_grained import write_fg_ovd

from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.fg_ovd import FGCLIP_FILES, SPLIT_FILES, FgOvd
from processing_pixclip.evaluation.results import BenchmarkResult
from processing_pixclip.evaluation.scores import NOT_SHOWN


DEFAULT = FgOvd.presets["default"]
QUICK = replace(DEFAULT, bootstrap=0)
DIFFICULTIES = ["hard", "medium", "easy", "trivial"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fg-ovd") / "data"
    write_fg_ovd(path, image_count=24)
    return path


@pytest.fixture
def own(folder, tmp_path):
    """A data folder of which `change(split, content)` writes a changed file."""
    (tmp_path / "val2017").symlink_to(folder / "val2017")
    (tmp_path / "benchmarks").mkdir()

    def change(split, edit):
        content = json.loads((folder / SPLIT_FILES[split]).read_text())
        edit(content)
        (tmp_path / SPLIT_FILES[split]).write_text(json.dumps(content))
        return tmp_path

    return change


def features(encoder):
    return FeatureExtractor(encoder, progress=False)


def told(benchmark, **options):
    benchmark.load()
    rows = [row for part in benchmark.rows.values() for row in part]
    return ToldEncoder(
        texts={row.texts[0]: row.texts[0] for row in rows},
        regions={row.region.key: row.texts[0] for row in rows},
        **options,
    )


class CollapsedEncoder(RandomEncoder):
    """Finds all texts equal."""

    def text_vector(self, text, kind):
        return self.draw("text")


def naive_ranks(rows, encoder, view, negatives=10):
    ranks = []
    for row in rows:
        region = encoder.region_vector(row.region, view)
        scores = [
            float(np.dot(region, text) / np.linalg.norm(region) / np.linalg.norm(text))
            for text in (encoder.text_vector(text, "region") for text in row.texts[: negatives + 1])
        ]
        ranks.append(1 + sum(score >= scores[0] for score in scores[1:]))
    return ranks


def test_figures_are_those_of_a_plain_loop(folder):
    benchmark, encoder = FgOvd(folder, DEFAULT), RandomEncoder()
    result = benchmark.evaluate(features(encoder))
    assert list(benchmark.rows) == DIFFICULTIES
    for split, rows in benchmark.rows.items():
        ranks = naive_ranks(rows, encoder, "full+mask")
        figure = result.figures[split]
        assert figure.value == pytest.approx(np.mean([rank == 1 for rank in ranks]))
        assert figure.low <= figure.value <= figure.high
        assert figure.count == len(rows) == result.counts[f"{split}: rows"]
        assert figure.chance == pytest.approx(np.mean([1 / len(row.texts) for row in rows]))
        items = [item for item in result.items if item["direction"] == split]
        assert [item["rank"] for item in items] == ranks
        assert [item["correct"] for item in items] == [item["truth"] == item["predicted"] for item in items]
    assert result.main_figure == "hard"
    assert result.protocol["views"] == ["full+mask"]
    assert set(result.images) == {item["image"] for item in result.items}


def test_results_of_one_seed_are_equal_and_can_be_read(folder):
    results = [FgOvd(folder, DEFAULT).evaluate(features(RandomEncoder())) for _ in range(2)]
    assert results[0].to_json() == results[1].to_json()
    read = BenchmarkResult.from_dict(json.loads(results[0].to_json()))
    assert read.to_json() == results[0].to_json() and read.figures.keys() == results[0].figures.keys()


def test_a_model_that_knows_nothing_is_at_chance(folder):
    results = [FgOvd(folder, QUICK).evaluate(features(RandomEncoder(seed))) for seed in range(5)]
    for split in DIFFICULTIES:
        figure = results[0].figures[split]
        error = np.sqrt(figure.chance * (1 - figure.chance) / (figure.count * len(results)))
        assert abs(np.mean([result.figures[split].value for result in results]) - figure.chance) < 4 * error


@pytest.mark.parametrize("preset", FgOvd.presets)
def test_a_model_that_is_told_the_answers_has_all_right(folder, preset):
    benchmark = FgOvd(folder, FgOvd.presets[preset])
    result = benchmark.evaluate(features(told(benchmark)))
    assert {name: figure.value for name, figure in result.figures.items()} == dict.fromkeys(DIFFICULTIES, 1.0)
    assert result.counts[NOT_SHOWN] == 0


def test_official_preset_takes_boxes_by_roi_and_counts_equality_as_right(folder):
    official = FgOvd.presets["official-fgclip"]
    benchmark = FgOvd(folder, replace(official, bootstrap=0))
    result = benchmark.evaluate(features(CollapsedEncoder()))
    assert [result.figures[split].value for split in DIFFICULTIES] == [1.0] * 4
    assert (result.protocol["views"], result.protocol["negatives"]) == (["roi"], 10)
    assert all(row.region.mask is None for rows in benchmark.rows.values() for row in rows)
    assert all(text.endswith(".") for row in benchmark.rows["hard"] for text in row.texts)
    assert all("box" in item for item in result.items)


def test_ties_are_wrong_by_default(folder):
    result = FgOvd(folder, QUICK).evaluate(features(CollapsedEncoder()))
    assert [result.figures[split].value for split in DIFFICULTIES] == [0.0] * 4
    optimistic = FgOvd(folder, QUICK.changed({"ties": "optimistic"})).evaluate(features(CollapsedEncoder()))
    assert [optimistic.figures[split].value for split in DIFFICULTIES] == [1.0] * 4


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic"])
def test_a_region_of_which_the_frame_shows_nothing_is_wrong(folder, ties):
    class Cropping(RandomEncoder):
        """Its frame shows every third region not at all; the others look away from all texts."""

        def region_vector(self, region, view):
            hidden = sum(map(ord, region.key)) % 3 == 0
            return np.zeros(256, dtype=np.float32) if hidden else -self.draw("text", "all") - self.draw(region.key)

        def text_vector(self, text, kind):
            return 3 * self.draw("text", "all") + self.draw("text", text)

    benchmark = FgOvd(folder, QUICK.changed({"ties": ties}))
    result = benchmark.evaluate(features(Cropping()))
    hidden = {
        row.region.key
        for rows in benchmark.rows.values()
        for row in rows
        if not Cropping().region_vector(row.region, "full+mask").any()
    }
    regions = {row.region.key for rows in benchmark.rows.values() for row in rows}
    assert 10 < result.counts[NOT_SHOWN] == len(hidden) < len(regions) / 2
    for split, rows in benchmark.rows.items():
        items = [item for item in result.items if item["direction"] == split]
        seen = [item["correct"] for item, row in zip(items, rows, strict=True) if row.region.key not in hidden]
        assert result.figures[split].value == pytest.approx(sum(seen) / len(rows))
        assert 0 < sum(seen) < len(seen)
        assert {item["rank"] == len(row.texts) for item, row in zip(items, rows) if row.region.key in hidden} == {True}


def test_intervals_draw_photos(folder, own):
    def double(content):
        content["annotations"] += [{**one, "id": one["id"] + 10**6} for one in content["annotations"]]

    once = FgOvd(folder, replace(DEFAULT, splits=("medium",))).evaluate(features(RandomEncoder())).figures["medium"]
    data = own("medium", double)
    twice = FgOvd(data, replace(DEFAULT, splits=("medium",))).evaluate(features(RandomEncoder())).figures["medium"]
    assert twice.count == 2 * once.count
    # Each row again tells nothing new.
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))
    assert once.low < once.value < once.high


def write_copies(folder, out, splits=DIFFICULTIES):
    """FG-CLIP's copies of the files, with its full stops."""
    (out / "fgovd").mkdir()
    (out / "val2017").symlink_to(folder / "val2017")
    for split in splits:
        content = json.loads((folder / SPLIT_FILES[split]).read_text())
        names = {category["id"]: category["name"] + "." for category in content["categories"]}
        images = {image["id"]: image for image in content["images"]}
        lines = []
        for annotation in content["annotations"]:
            image = images[annotation["image_id"]]
            line = {
                "img_path": image["file_name"],
                "bbox": annotation["bbox"],
                "pos_expression": [names[annotation["category_id"]]],
                "neg_expression": [names[number] for number in annotation["neg_category_ids"]],
                "category_id": annotation["category_id"],
                "neg_category_ids": annotation["neg_category_ids"],
                "width": image["width"],
                "height": image["height"],
                "image_id": image["id"],
                "sent_id": annotation["id"],
                "test_type": Path(SPLIT_FILES[split]).stem,
            }
            lines.append(json.dumps(line) + "\n")
        (out / FGCLIP_FILES[split]).write_text("".join(lines))


def test_copies_of_fgclip_are_read_where_the_files_are_missing(folder, tmp_path):
    official = replace(FgOvd.presets["official-fgclip"], bootstrap=0)
    write_copies(folder, tmp_path)
    copies, files = FgOvd(tmp_path, official), FgOvd(folder, official)
    of_copies, of_files = (benchmark.evaluate(features(RandomEncoder())) for benchmark in (copies, files))
    assert of_copies.figures == of_files.figures
    for split in DIFFICULTIES:
        texts = [[(row.region.key, row.texts) for row in benchmark.rows[split]] for benchmark in (copies, files)]
        assert texts[0] == texts[1]
    assert list(of_copies.data) == list(FGCLIP_FILES.values())
    # They have no masks, which a protocol with masks tells.
    masks = FgOvd(tmp_path, replace(QUICK, splits=("hard",)))
    masks.load()
    count = masks.counts["hard: boxes in place of masks that are missing, malformed or of a crowd"]
    assert count == len(masks.rows["hard"]) == len(copies.rows["hard"])
    assert "hard: boxes in place of masks that are missing, malformed or of a crowd" not in copies.counts
    # The file is read where it is there too.
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / SPLIT_FILES["hard"]).symlink_to(folder / SPLIT_FILES["hard"])
    both = FgOvd(tmp_path, replace(QUICK, splits=("hard",)))
    both.load()
    assert all(row.region.mask for row in both.rows["hard"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pos_expression": ["one", "two"]}, "no list of one text"),
        ({"neg_expression": "a cat."}, "'neg_expression' no list"),
        ({"neg_expression": [3]}, "more than texts"),
        ({"width": "wide"}, "'width'"),
    ],
)
def test_malformed_lines_of_copies_are_named(folder, tmp_path, change, told):
    write_copies(folder, tmp_path, ["hard"])
    path = tmp_path / FGCLIP_FILES["hard"]
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | change)
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"h_attributes_llava\.jsonl, line 3 cannot be read .*{told}"):
        FgOvd(tmp_path, replace(QUICK, splits=("hard",))).load()


def test_negatives_are_the_first_of_the_file(folder):
    benchmark, encoder = FgOvd(folder, QUICK.changed({"negatives": "3", "splits": "hard"})), RandomEncoder()
    result = benchmark.evaluate(features(encoder))
    full = FgOvd(folder, QUICK)
    full.load()
    assert [row.texts for row in benchmark.rows["hard"]] == [row.texts[:4] for row in full.rows["hard"]]
    ranks = naive_ranks(full.rows["hard"], encoder, "full+mask", negatives=3)
    assert result.figures["hard"].value == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert result.figures["hard"].chance == pytest.approx(0.25)


def test_rows_with_fewer_negatives_are_kept_and_counted(own):
    def edit(content):
        for number, annotation in enumerate(content["annotations"]):
            if number % 2:
                annotation["neg_category_ids"] = annotation["neg_category_ids"][:2]

    benchmark = FgOvd(own("hard", edit), QUICK.changed({"splits": ["hard"]}))
    encoder = RandomEncoder()
    result = benchmark.evaluate(features(encoder))
    rows = benchmark.rows["hard"]
    short = [row for row in rows if len(row.texts) == 3]
    assert result.counts["hard: rows with fewer than 10 negatives"] == len(short) == len(rows) // 2
    assert result.figures["hard"].count == len(rows)
    assert result.figures["hard"].chance == pytest.approx(np.mean([1 / 3 if row in short else 1 / 11 for row in rows]))
    assert result.figures["hard"].value == np.mean([rank == 1 for rank in naive_ranks(rows, encoder, "full+mask")])


def test_a_positive_among_its_negatives_is_dropped_there_or_kept_by_the_official_rule(own):
    def edit(content):
        first = content["annotations"][0]
        first["neg_category_ids"] = [first["category_id"], *first["neg_category_ids"][:9]]
        second = content["annotations"][1]
        second["neg_category_ids"] = second["neg_category_ids"][:1] * 10

    data = own("hard", edit)
    dropped = FgOvd(data, QUICK.changed({"splits": "hard"}))
    result = dropped.evaluate(features(told(dropped)))
    assert [len(row.texts) for row in dropped.rows["hard"][:3]] == [10, 2, 11]
    assert result.counts["hard: rows whose positive was among the negatives, dropped there"] == 1
    assert result.counts["hard: negatives dropped, repeated"] == 10
    assert result.figures["hard"].value == 1.0
    kept = FgOvd(data, QUICK.changed({"splits": "hard", "repeated": "keep"}))
    result = kept.evaluate(features(told(kept)))
    count = len(kept.rows["hard"])
    assert [len(row.texts) for row in kept.rows["hard"][:3]] == [11] * 3
    assert result.counts["hard: rows whose positive is among the negatives"] == 1
    # Pessimistic ties can not be won, and guessing wins none of them.
    assert result.figures["hard"].value == pytest.approx((count - 1) / count)
    assert result.figures["hard"].chance == pytest.approx((0 + 1 / 2 + (count - 2) / 11) / count)
    official = FgOvd(data, replace(FgOvd.presets["official-fgclip"], splits=("hard",), bootstrap=0))
    assert official.evaluate(features(told(official))).figures["hard"].value == 1.0


def test_full_stops_are_added_where_the_protocol_says_so(own):
    def edit(content):
        for number, category in enumerate(content["categories"]):
            category["name"] += "." * (number % 2)

    data = own("hard", edit)
    ends = {}
    for full_stop in (False, True):
        benchmark = FgOvd(data, replace(QUICK, splits=("hard",), full_stop=full_stop))
        benchmark.load()
        ends[full_stop] = {text.count(".") for row in benchmark.rows["hard"] for text in row.texts}
    assert ends == {False: {0, 1}, True: {1}}


def test_views_are_figures_of_their_own_and_sums_add_cosines(folder):
    benchmark, encoder = (
        FgOvd(folder, replace(QUICK, splits=("easy",), views=("roi", "roi + full+mask"))),
        RandomEncoder(),
    )
    result = benchmark.evaluate(features(encoder))
    assert list(result.figures) == ["roi: easy", "roi + full+mask: easy"]
    assert list(result.protocol["view_summaries"]) == ["roi", "full+mask"]
    assert result.main_figure == "roi: easy"
    right = []
    for row in benchmark.rows["easy"]:
        units = [encoder.region_vector(row.region, view) for view in ("roi", "full+mask")]
        vector = sum(part / np.linalg.norm(part) for part in units)
        texts = [encoder.text_vector(text, "region") for text in row.texts]
        right.append(np.argmax([np.dot(vector, text) / np.linalg.norm(text) for text in texts]) == 0)
    assert result.figures["roi + full+mask: easy"].value == pytest.approx(np.mean(right))
    with pytest.raises(ValueError, match="does not support the view 'blur'"):
        FgOvd(folder, replace(QUICK, views=("blur",))).evaluate(features(encoder))


def test_masks_that_cannot_be_used_become_boxes_and_wrong_boxes_are_counted(own):
    def edit(content):
        content["annotations"][0]["segmentation"] = [[1, 1, 2, 2]]
        del content["annotations"][1]["segmentation"]
        content["annotations"][2]["bbox"] = [5000, 10, 20, 20]
        content["annotations"][3]["bbox"] = None
        content["annotations"][4]["neg_category_ids"] = []
        content["annotations"][6]["iscrowd"] = 1
        content["annotations"][7]["bbox"] = [-3, 1, 200, 200]

    data = own("hard", edit)
    before = FgOvd(data, replace(QUICK, splits=("hard",)))
    before.load()
    assert [row.region.mask is None for row in before.rows["hard"]][:4] == [True, True, False, True]
    assert before.counts["hard: boxes in place of masks that are missing, malformed or of a crowd"] == 3
    assert before.counts["hard: rows left out, box malformed or outside the photo"] == 2
    assert before.counts["hard: rows left out, no negative"] == 1
    assert before.rows["hard"][2].key == "hard#5"
    assert before.rows["hard"][4].region.box[0] == 0
    assert before.counts["hard: boxes cut at the photo's edge"] == 1
    boxes = FgOvd(data, replace(QUICK, splits=("hard",), regions="boxes"))
    boxes.load()
    assert all(row.region.mask is None and row.region.box for row in boxes.rows["hard"])


def test_limit_takes_the_first_photos_of_each_file(folder):
    benchmark = FgOvd(folder, replace(QUICK, limit=3))
    benchmark.load()
    full = FgOvd(folder, QUICK)
    full.load()
    for split in DIFFICULTIES:
        keys = list(dict.fromkeys(row.region.image.key for row in full.rows[split]))[:3]
        assert [row.key for row in benchmark.rows[split]] == [
            row.key for row in full.rows[split] if row.region.image.key in keys
        ]


def test_missing_files_are_named_with_their_source(folder, own, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)1_attributes\.json.*github\.com/lorebianchi98/FG-OVD.*shuffle"):
        FgOvd(tmp_path / "nothing").load()
    # Of the splits that the protocol does not ask for nothing is missed.
    assert own("hard", lambda content: None) == tmp_path
    FgOvd(tmp_path, replace(QUICK, splits=("hard",))).load()
    with pytest.raises(FileNotFoundError, match=r"color\.json"):
        FgOvd(tmp_path, replace(QUICK, splits=("hard", "color"))).load()

    def edit(content):
        content["images"][0]["file_name"] = "train2017/1.jpg"

    data = own("hard", edit)
    with pytest.raises(FileNotFoundError, match=r"train2017/1\.jpg"):
        FgOvd(data, replace(QUICK, splits=("hard",))).load()
    rest = FgOvd(data, replace(QUICK, splits=("hard",), skip_missing=True))
    rest.load()
    assert rest.counts["images left out, file missing"] == 1
    assert rest.counts["images"] == len({row.region.image.key for row in rest.rows["hard"]})


def test_files_of_another_layout_are_refused(own):
    def unknown(content):
        content["annotations"][7]["neg_category_ids"] = [10**6]

    with pytest.raises(ValueError, match=r"annotations\[7\].*\[1000000\].*'categories'"):
        FgOvd(own("hard", unknown), replace(QUICK, splits=("hard",))).load()

    def stray(content):
        content["annotations"][7]["image_id"] = 10**9

    with pytest.raises(ValueError, match=r"annotations\[7\].*image_id 1000000000"):
        FgOvd(own("hard", stray), replace(QUICK, splits=("hard",))).load()


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs coco-mini, beside the repository")
def test_all_photos_of_coco_mini(tmp_path):
    write_fg_ovd(tmp_path / "data", SHARED)
    benchmark = FgOvd(tmp_path / "data", QUICK)
    result = benchmark.evaluate(features(told(benchmark)))
    assert {figure.value for figure in result.figures.values()} == {1.0}
    assert result.counts["images"] == 121
    assert result.counts["hard: rows"] == result.counts["trivial: rows"] == 459
    random = [FgOvd(tmp_path / "data", QUICK).evaluate(features(RandomEncoder(seed))) for seed in range(2)]
    for split in DIFFICULTIES:
        value = np.mean([one.figures[split].value for one in random])
        assert abs(value - random[0].figures[split].chance) < 4 * np.sqrt(0.09 * 0.91 / (2 * 459))
