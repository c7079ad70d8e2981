# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Image-text retrieval: its figures against plain loops, and the benchmarks on real photos in the official layouts."""

import json
import math
import statistics

import layouts_retrieval
import numpy as np
import pytest
import torch
from encoders_for_tests import pixclip_pair
from evaluation_for_tests import SHARED, RandomEncoder, ToldEncoder, pixels_key
from PIL import Image

from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.image_text_retrieval import (
    RankingProtocol,
    RetrievalProtocol,
    chance_of_recall,
    retrieval_figures,
)
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder
from processing_pixclip.evaluation.retrieval_benchmarks import (
    CocoRetrieval,
    Dci,
    DciProtocol,
    Docci,
    Flickr30k,
    ShareGpt4v,
    Urban1k,
)
from processing_pixclip.evaluation.retrieval_files import read_first_records


BENCHMARKS = {
    benchmark.name: (benchmark, getattr(layouts_retrieval, f"write_{name}"))
    for benchmark, name in (
        (Flickr30k, "flickr30k"),
        (CocoRetrieval, "coco_retrieval"),
        (Docci, "docci"),
        (Dci, "dci"),
        (Urban1k, "urban1k"),
        (ShareGpt4v, "sharegpt4v"),
    )
}
DIRECTIONS = ("image to text", "text to image")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The data folder of each benchmark, of the photos in the repository; tests that change one write their own."""
    folders = {name: tmp_path_factory.mktemp(name) for name in BENCHMARKS}
    for name, folder in folders.items():
        BENCHMARKS[name][1](folder)
    return folders


def measure(benchmark, encoder):
    return benchmark.evaluate(FeatureExtractor(encoder, progress=False))


def values(result):
    return {name: figure.value for name, figure in result.figures.items()}


def told(benchmark):
    """An encoder that knows which texts and photos belong together."""
    benchmark.load()
    texts = {text: item.image.key for item in benchmark.items for text in item.captions}
    return ToldEncoder(texts=texts, images={pixels_key(item.image.path): item.image.key for item in benchmark.items})


def check_chance(results, name):
    """The mean over random models is chance, within four standard deviations of independent queries."""
    chance = results[0].figures[name].chance
    count = sum(result.figures[name].count for result in results)
    mean = statistics.fmean(result.figures[name].value for result in results)
    assert 0 < chance < 1
    assert abs(mean - chance) < 4 * math.sqrt(chance * (1 - chance) / count)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_random_model_is_at_chance(folders, name):
    benchmark = BENCHMARKS[name][0](folders[name])
    results = [measure(benchmark, RandomEncoder(seed)) for seed in range(4)]
    for direction in DIRECTIONS:
        for k in (1, 5, 10):
            check_chance(results, f"{direction} R@{k}")
        name = f"{direction} median rank"
        middle = statistics.fmean(result.figures[name].value for result in results)
        assert 0.6 < middle / results[0].figures[name].chance < 1.4


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_model_that_knows_the_answers_is_always_right(folders, name):
    for preset, protocol in BENCHMARKS[name][0].presets.items():
        benchmark = BENCHMARKS[name][0](folders[name], protocol)
        result = measure(benchmark, told(benchmark))
        assert set(values(result).values()) == {1.0}
        for key, figure in result.figures.items():
            photos = len(benchmark.items)
            # Wilson's interval of as many photos, of which all were found.
            low = 1 if "median" in key else photos / (photos + 1.959964**2)
            assert (figure.low, figure.high) == (pytest.approx(low), 1.0)
        assert all(item["correct"] and item["rank"] == 1 for item in result.items)
        assert result.protocol["name"] == preset and result.main_figure == "text to image R@1"
        assert result.counts["texts that several images share"] == 0


@pytest.mark.parametrize("name", BENCHMARKS)
def test_what_is_missing_is_named_with_where_to_get_it(tmp_path, name):
    benchmark, write = BENCHMARKS[name]
    for protocol in benchmark.presets.values():
        with pytest.raises(FileNotFoundError, match="missing are") as caught:
            benchmark(tmp_path / "nothing", protocol).load()
        for source in benchmark("nothing", protocol).sources():
            assert str(tmp_path / "nothing" / source.path) in str(caught.value) and source.where in str(caught.value)
    write(tmp_path)
    complete = benchmark(tmp_path)
    complete.load()
    gone = complete.items[3].image
    gone.path.unlink()
    with pytest.raises(FileNotFoundError, match=f"1 image files are missing.*{gone.path.name}"):
        benchmark(tmp_path).load()
    rest = benchmark(tmp_path, complete.protocol.changed({"skip_missing": True}))
    rest.load()
    assert rest.items == [item for item in complete.items if item.image != gone]
    assert rest.counts["images left out, file missing"] == 1 and rest.counts["images"] == len(complete.items) - 1


class UnevenEncoder(RandomEncoder):
    """Vectors of very unequal lengths, and whole numbers of few values, so that many scores are equal."""

    def __init__(self, seed=0, whole=False):
        super().__init__(seed)
        self.whole = whole

    def draw(self, *key):
        vector = super().draw(*key)[:6]
        vector = np.round(vector) + 0.0 if self.whole else vector
        return vector if self.whole else vector * np.float32(1 + 5 * (len(repr(key)) % 3))


def recalls_by_loops(items, encoder, protocol):
    """R@k and median ranks by sorting, from the photos and texts one by one."""
    kept = {"all": None, "first": 1, "first-5": 5}[protocol.captions]
    texts = [(number, text) for number, item in enumerate(items) for text in item.captions[:kept]]
    sides = [
        [np.float64(encoder.image_vector(photo(item.image.path))) for item in items],
        [np.float64(encoder.text_vector(text, protocol.text_kind)) for _, text in texts],
    ]
    if protocol.normalize:
        sides = [[vector / max(np.linalg.norm(vector), 1e-12) for vector in side] for side in sides]
    owners = [list(range(len(items))), [owner for owner, _ in texts]]
    found = {}
    for direction, queries, gallery in (("image to text", 0, 1), ("text to image", 1, 0)):
        ranks = []
        for owner, vector in zip(owners[queries], sides[queries], strict=True):
            # Rounded, so that what is equal but for the last bits is equal.
            scored = [
                (-round(float(vector @ other), 9), (of == owner) == (protocol.ties == "pessimistic"), of == owner)
                for of, other in zip(owners[gallery], sides[gallery], strict=True)
            ]
            best = [right for _, _, right in sorted(scored)].index(True)
            ranks.append(best + 1)
        for k in protocol.recall_at:
            found[f"{direction} R@{k}"] = statistics.fmean(rank <= k for rank in ranks)
        found[f"{direction} median rank"] = statistics.median(ranks)
    return found


def photo(path):
    return Image.open(path).convert("RGB")


CHANGES = [
    {},
    {"captions": "first"},
    {"captions": "first-5"},
    {"normalize": False},
    {"recall_at": (2, 3)},
    {"text_kind": "long"},
    {"limit": 7},
]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """COCO's layout with one to seven captions a photo."""
    folder = tmp_path_factory.mktemp("uneven")
    layouts_retrieval.write_coco_retrieval(folder)
    path = folder / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    texts = [annotation["caption"] for annotation in content["annotations"]]
    content["annotations"] = [
        {"image_id": image["id"], "caption": f"{place} {text}"}
        for number, image in enumerate(content["images"])
        for place, text in enumerate(texts[: 1 + number % 7])
    ]
    path.write_text(json.dumps(content))
    return folder


class ByKindEncoder(UnevenEncoder):
    """Another vector of a long text than of a caption."""

    def text_vector(self, text, kind):
        return self.draw("text", text, kind)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_figures_equal_plain_loops_and_each_field_tells(uneven, change):
    plain = CocoRetrieval.presets["default"].changed({"bootstrap": 0})
    protocol = plain.changed(change)
    benchmark = CocoRetrieval(uneven, protocol)
    encoder = ByKindEncoder(seed=3)
    result = measure(benchmark, encoder)
    everything = CocoRetrieval(uneven)
    everything.load()
    expected = recalls_by_loops(everything.items[: protocol.limit], encoder, protocol)
    assert values(result) == pytest.approx(expected, abs=1e-12)
    if change:
        assert values(result) != values(measure(CocoRetrieval(uneven, plain), encoder))


def test_ties_count_by_the_rule(uneven):
    found = {}
    for ties in ("pessimistic", "optimistic"):
        protocol = CocoRetrieval.presets["default"].changed({"normalize": False, "ties": ties, "bootstrap": 0})
        benchmark = CocoRetrieval(uneven, protocol)
        encoder = UnevenEncoder(seed=1, whole=True)
        found[ties] = values(measure(benchmark, encoder))
        assert found[ties] == pytest.approx(recalls_by_loops(benchmark.items, encoder, protocol), abs=1e-12)
    assert all(found["pessimistic"][f"{way} R@5"] < found["optimistic"][f"{way} R@5"] for way in DIRECTIONS)


def test_a_model_that_sees_no_difference_earns_nothing(folders):
    class Constant(RandomEncoder):
        def draw(self, *key):
            return np.ones(8, dtype=np.float32)

    result = measure(Flickr30k(folders["flickr30k"]), Constant())
    assert [value for name, value in values(result).items() if "R@" in name] == [0.0] * 6


def test_intervals_come_from_images_not_from_captions():
    """Five captions that are found or lost together tell no more than one: the interval is that of one caption."""
    ranks = np.random.default_rng(0).integers(1, 30, size=40)
    protocol = RankingProtocol(bootstrap=300, seed=5)
    ones, images = np.ones(40, dtype=int), np.arange(40)
    single = retrieval_figures("way", ranks, images, ones, 40, protocol)
    repeated = retrieval_figures("way", np.repeat(ranks, 5), np.repeat(images, 5), np.repeat(ones, 5), 40, protocol)
    for name, figure in single.items():
        assert (figure.value, figure.low, figure.high) == (
            repeated[name].value,
            repeated[name].low,
            repeated[name].high,
        )
        assert figure.low < figure.value < figure.high
        assert repeated[name].count == 5 * figure.count == 200
    # By hand: the same draws, each resample's figures from the ranks written out.
    generator = np.random.default_rng(5)
    drawn = [ranks[generator.integers(40, size=40)] for _ in range(300)]
    by_hand = {
        "way R@5": [(ranks <= 5).mean() for ranks in drawn],
        "way median rank": [np.median(ranks) for ranks in drawn],
    }
    for name, numbers in by_hand.items():
        assert [single[name].low, single[name].high] == pytest.approx(np.quantile(numbers, [0.025, 0.975]).tolist())


def test_chance_is_that_of_drawing_without_putting_back():
    for relevant, gallery, k in ((1, 10, 3), (2, 5, 2), (5, 25, 10), (3, 4, 2), (4, 4, 1), (2, 5, 9)):
        lost = math.comb(gallery - relevant, k) / math.comb(gallery, k) if k <= gallery else 0
        assert chance_of_recall(k, np.array([relevant]), gallery) == pytest.approx(1 - lost)
    assert chance_of_recall(1, np.array([1, 3]), np.array([2, 4])) == pytest.approx((1 / 2 + 3 / 4) / 2)


def test_two_runs_write_the_same_bytes_and_the_seed_moves_intervals_alone(folders):
    protocol = Flickr30k.presets["default"]
    first, again = (measure(Flickr30k(folders["flickr30k"]), RandomEncoder()) for _ in range(2))
    assert first.to_json() == again.to_json() and str(folders["flickr30k"]) not in first.to_json()
    other = measure(Flickr30k(folders["flickr30k"], protocol.changed({"seed": 1})), RandomEncoder())
    assert values(other) == values(first) and other.figures != first.figures
    none = measure(Flickr30k(folders["flickr30k"], protocol.changed({"bootstrap": 0})), RandomEncoder())
    assert values(none) == values(first) and {figure.low for figure in none.figures.values()} == {None}


def test_items_tell_what_was_found(folders):
    benchmark = Flickr30k(folders["flickr30k"])
    encoder = RandomEncoder()
    items = measure(benchmark, encoder).items
    assert [item["direction"] for item in items] == ["image to text"] * 20 + ["text to image"] * 100
    texts = {text: item.image.key for item in benchmark.items for text in item.captions}
    for item in items:
        owner = texts[item["predicted"]] if item["direction"] == "image to text" else item["predicted"]
        assert item["correct"] == (owner == item["image"]) == (item["rank"] == 1)
    text = next(item for item in items if item["direction"] == "text to image")
    vectors = encoder.encode_texts([text["text"]], "caption")[0]
    scores = {item.image.key: encoder.image_vector(photo(item.image.path)) for item in benchmark.items}
    cosines = {
        key: float(vector @ vectors / np.linalg.norm(vector) / np.linalg.norm(vectors))
        for key, vector in scores.items()
    }
    assert text["predicted"] == max(cosines, key=cosines.get)
    assert text["score"] == pytest.approx(max(cosines.values()), abs=1e-5)
    assert len({item["key"] for item in items}) == len(items)


def contents(benchmark):
    benchmark.load()
    return [(pixels_key(item.image.path), item.captions) for item in benchmark.items]


def test_flickr30k_reads_its_three_files_alike(folders):
    def read(split):
        return contents(Flickr30k(folders["flickr30k"], RetrievalProtocol(split=split)))

    test = read("test")
    assert len(test) == 20 and {len(captions) for _, captions in test} == {5}
    assert read("pixclip-test") == test and read("all-token") == test + read("train")
    assert len(read("train")) == 4
    with pytest.raises(ValueError, match="there are no images of split 'val'"):
        read("val")


def test_coco_splits_read_the_same_photos_from_two_files(folders):
    folder = folders["coco-retrieval"]
    found = {
        split: dict(contents(CocoRetrieval(folder, RetrievalProtocol(split=split)))) for split in CocoRetrieval.splits
    }
    # The captions file has the captions of a photo in another order.
    assert {key: sorted(texts) for key, texts in found["val2017"].items()} == {
        key: sorted(texts) for key, texts in found["karpathy-test"].items()
    }
    assert len(found["val2017"]) == 20 and len(found["karpathy-val"]) == 2
    benchmark = CocoRetrieval(folder, RetrievalProtocol(split="karpathy-test"))
    benchmark.load()
    assert benchmark.items[0].image.key.startswith("val2014/COCO_val2014_")


def test_docci_takes_the_split_that_the_official_script_of_pixclip_ignores(folders):
    default, official = (contents(Docci(folders["docci"], protocol)) for protocol in Docci.presets.values())
    assert len(default) == 20 and len(official) == 24 and official[4:] == default


def test_dci_splits_and_texts(folders):
    def read(**changes):
        return contents(Dci(folders["dci"], DciProtocol(**changes)))

    assert sorted(read(split="train") + read(split="test")) == sorted(read())
    assert len(read(split="train")) == 4
    for row in zip(
        *(read(caption_field=field) for field in ("short_caption", "extra_caption", "extended")), strict=True
    ):
        (short,), (extra,), (extended,) = (captions for _, captions in row)
        assert extended == f"{short}\n{extra}" and short in extra
    names = [item.image.key for item in loaded(Dci(folders["dci"])).items]
    assert names == sorted(names, key=lambda name: f"sa_{int(name[7:-4])}.json") and len(names) == 24


def loaded(benchmark):
    benchmark.load()
    return benchmark


def test_urban1k_reads_all_lines_or_the_first(tmp_path):
    layouts_retrieval.write_urban1k(tmp_path)
    path = sorted((tmp_path / "caption").iterdir())[0]
    path.write_text("A street.\nA red car on it.\n")
    protocols = Urban1k.presets
    read = {name: loaded(Urban1k(tmp_path, protocol)).items[0].captions for name, protocol in protocols.items()}
    assert read["default"] == read["official-pixclip"] == ("A street.\nA red car on it.",)
    assert read["official-longclip"] == ("A street.",)


def test_sharegpt4v_reads_no_further_than_it_must(tmp_path):
    layouts_retrieval.write_sharegpt4v(tmp_path)
    path = tmp_path / ShareGpt4v.layout[0].path
    every = contents(ShareGpt4v(tmp_path))
    path.write_text(path.read_text().rstrip()[:-1] + ", {broken")
    some = ShareGpt4v(tmp_path, ShareGpt4v.presets["default"].changed({"limit": 20}))
    assert contents(some) == every and len(every) == 20
    with pytest.raises(ValueError, match=f"{path.name} is not JSON"):
        loaded(ShareGpt4v(tmp_path))


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_the_first_records_are_read_from_text_that_grows(tmp_path, piece):
    records = [{"image": f"{number}.jpg", "text": 'ä, ]}[ \\" ' * number} for number in range(9)]
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(json.dumps(records, indent=indent, ensure_ascii=False), encoding="utf-8-sig")
        for limit in (1, 4, 9, 12, None):
            assert read_first_records(path, limit, piece) == records[:limit]
    path.write_text("[]")
    assert read_first_records(path, 3, piece) == []
    for text in ("{}", '{"a": [{"b": 1}]}', "", '[{"a": 1}', '[{"a": 1}] x', '[{"a": 1} {"b": 1}]'):
        path.write_text(text)
        with pytest.raises(ValueError, match="a.json"):
            read_first_records(path, 2, piece)
    path.write_bytes(b'[{"a": "\xe9"}]')
    with pytest.raises(ValueError, match=r"a.json is not UTF-8 .*Convert it"):
        read_first_records(path, 1, piece)


@pytest.mark.parametrize(
    ("name", "file", "code"),
    [
        ("urban1k", "caption", "latin-1"),
        ("flickr30k", "dataset_flickr30k.json", "latin-1"),
        ("docci", "docci_descriptions.jsonlines", "latin-1"),
        ("sharegpt4v", ShareGpt4v.layout[0].path, "latin-1"),
        ("urban1k", "caption", "utf-8-sig"),
        ("flickr30k", "dataset_flickr30k.json", "utf-8-sig"),
        ("docci", "docci_descriptions.jsonlines", "utf-8-sig"),
        ("sharegpt4v", ShareGpt4v.layout[0].path, "utf-8-sig"),
    ],
)
def test_text_is_utf_8_with_or_without_a_byte_order_mark(tmp_path, name, file, code):
    benchmark, write = BENCHMARKS[name]
    write(tmp_path)
    expected = contents(benchmark(tmp_path))
    path = tmp_path / file
    path = sorted(path.iterdir())[0] if path.is_dir() else path
    text = path.read_text(encoding="utf-8")
    path.write_text(text if code == "utf-8-sig" else text.replace("a", "é", 1), encoding=code)
    if code == "utf-8-sig":
        assert contents(benchmark(tmp_path)) == expected
    else:
        with pytest.raises(ValueError, match=f"{path.name} is not UTF-8"):
            loaded(benchmark(tmp_path))


def test_hidden_files_are_no_captions(tmp_path):
    layouts_retrieval.write_urban1k(tmp_path)
    layouts_retrieval.write_dci(tmp_path)
    expected = [contents(benchmark(tmp_path)) for benchmark in (Urban1k, Dci)]
    for hidden in (tmp_path / "caption" / "._1.txt", tmp_path / "annotations" / "._sa_1.json"):
        hidden.write_bytes(b"\x00\x05\x16\x07\xff")
    assert [contents(benchmark(tmp_path)) for benchmark in (Urban1k, Dci)] == expected


def test_dci_beside_coco_is_told_to_have_a_folder_of_its_own(tmp_path):
    layouts_retrieval.write_dci(tmp_path)
    layouts_retrieval.write_coco_retrieval(tmp_path)
    with pytest.raises(ValueError, match="captions_val2017.json is .*give DCI a data folder of its own"):
        loaded(Dci(tmp_path))


def test_photos_that_are_listed_twice_are_counted(tmp_path):
    layouts_retrieval.write_flickr30k(tmp_path)
    layouts_retrieval.write_sharegpt4v(tmp_path)
    path = tmp_path / "dataset_flickr30k.json"
    content = json.loads(path.read_text())
    content["images"].append(content["images"][0])
    path.write_text(json.dumps(content))
    path = tmp_path / ShareGpt4v.layout[0].path
    records = json.loads(path.read_text())
    path.write_text(json.dumps([*records, {**records[0], "conversations": records[1]["conversations"]}]))
    for benchmark in (Flickr30k, ShareGpt4v):
        counts = loaded(benchmark(tmp_path)).counts
        assert counts["images"] == 21 and counts["images listed more than once"] == 1


def test_blank_captions_and_photos_without_captions_are_counted(tmp_path):
    layouts_retrieval.write_flickr30k(tmp_path)
    path = tmp_path / "dataset_flickr30k.json"
    content = json.loads(path.read_text())
    content["images"][0]["sentences"][0]["raw"] = "  "
    content["images"][1]["sentences"] = []
    content["images"][2]["sentences"][0]["raw"] = content["images"][3]["sentences"][0]["raw"]
    path.write_text(json.dumps(content))
    benchmark = loaded(Flickr30k(tmp_path))
    assert benchmark.counts == {
        "images read": 20,
        "captions read": 95,
        "images left out, file missing": 0,
        "captions left out, blank": 1,
        "images left out, no caption": 1,
        "images": 19,
        "images listed more than once": 0,
        "captions": 94,
        "texts that several images share": 1,
    }
    assert len(benchmark.items[0].captions) == 4
    first = loaded(Flickr30k(tmp_path, benchmark.protocol.changed({"captions": "first"})))
    assert first.items[0].captions == benchmark.items[0].captions[:1]


def test_coco_counts_blank_captions_and_refuses_malformed_ones(tmp_path):
    layouts_retrieval.write_coco_retrieval(tmp_path)
    path = tmp_path / "annotations" / "captions_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["caption"] = ""
    path.write_text(json.dumps(content))
    assert loaded(CocoRetrieval(tmp_path)).counts["captions left out, blank"] == 1
    content["annotations"][1]["caption"] = 7
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotations\[1\].*'caption' is 7"):
        loaded(CocoRetrieval(tmp_path))


BROKEN = {
    "flickr30k": [
        ("dataset_flickr30k.json", "[]", "holds a list; accepted is a dict"),
        ("dataset_flickr30k.json", '{"images": 3}', "key 'images' is 3"),
        (
            "dataset_flickr30k.json",
            '{"images": [{"filename": "a.jpg"}]}',
            r"images\[0\].*keys filename, split, sentences",
        ),
        (
            "dataset_flickr30k.json",
            '{"images": [{"filename": "../a.jpg", "split": "test", "sentences": [{"raw": "a dog"}]}]}',
            r"images\[0\]: the image is '../a.jpg'; accepted is a path below",
        ),
        (
            "dataset_flickr30k.json",
            '{"images": [{"filename": "a.jpg", "split": "test", "sentences": ["a dog"]}]}',
            "object with the keys raw",
        ),
    ],
    "coco-retrieval": [("annotations/captions_val2017.json", '{"annotations": []}', "no COCO annotation file")],
    "docci": [
        ("docci_descriptions.jsonlines", '{"split": "test"', "line 1 is not JSON"),
        ("docci_descriptions.jsonlines", '{"split": "test"}', "line 1.*keys split, image_file, description"),
    ],
    "dci": [("annotations/sa_1.json", '{"image": "a.jpg"}', "sa_1.json.*keys image, short_caption, extra_caption")],
    "sharegpt4v": [
        (
            "share-captioner_coco_lcs_sam_1246k_1107.json",
            '[{"image": "a.jpg", "conversations": []}]',
            r"record 0: conversations are \[\]",
        ),
        (
            "share-captioner_coco_lcs_sam_1246k_1107.json",
            '[{"image": 5, "conversations": [{}, {"value": "a dog"}]}]',
            "record 0: the image is 5",
        ),
    ],
}


@pytest.mark.parametrize(
    ("name", "file", "content", "message"), [(name, *case) for name, cases in BROKEN.items() for case in cases]
)
def test_a_broken_file_is_named_with_the_place(tmp_path, name, file, content, message):
    benchmark, write = BENCHMARKS[name]
    write(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        benchmark(tmp_path).load()


def test_a_line_that_is_no_caption_of_flickr30k_is_named(tmp_path):
    layouts_retrieval.write_flickr30k(tmp_path)
    (tmp_path / "results_20130124.token").write_text("1.jpg#0\tA dog.\n2.jpg A cat.\n")
    with pytest.raises(ValueError, match="line 2 is '2.jpg A cat"):
        loaded(Flickr30k(tmp_path, RetrievalProtocol(split="all-token")))


def test_wrong_settings_say_what_is_accepted():
    with pytest.raises(ValueError, match="split of docci is 'tset'; accepted is one of 'test', 'train'"):
        Docci("data", RetrievalProtocol(split="tset"))
    with pytest.raises(ValueError, match="captions is 'two'; accepted is one of 'all', 'first', 'first-5'"):
        RetrievalProtocol().changed({"captions": "two"})
    with pytest.raises(ValueError, match="accepted are ranks of 1 and more"):
        RetrievalProtocol().changed({"recall_at": "0,1"})


def test_presets_are_those_of_the_papers():
    for benchmark, _ in BENCHMARKS.values():
        default = benchmark.presets["default"]
        assert default.normalize and default.captions == "all" and default.recall_at == (1, 5, 10)
        assert default.limit == (1000 if benchmark is ShareGpt4v else None) and default.ties == "pessimistic"
        assert default.text_kind == ("caption" if benchmark in (Flickr30k, CocoRetrieval) else "long")
        assert {preset.name for preset in benchmark.presets.values()} == set(benchmark.presets)
    for benchmark, split, captions in (
        (Flickr30k, "pixclip-test", "first"),
        (Docci, "all", "all"),
        (Urban1k, "all", "all"),
    ):
        official = benchmark.presets["official-pixclip"]
        assert (official.split, official.captions, official.limit) == (split, captions, 1000)
        assert not official.normalize and official.recall_at == (1,)
    fgclip = {benchmark.name: benchmark.presets.get("official-fgclip") for benchmark, _ in BENCHMARKS.values()}
    assert fgclip["coco-retrieval"].captions == "first-5" and fgclip["coco-retrieval"].text_kind == "caption"
    assert fgclip["sharegpt4v"].limit == 1000 and fgclip["sharegpt4v"].text_kind == "long"
    assert fgclip["dci"].caption_field == "extra_caption" and fgclip["dci"].text_kind == "long"
    assert fgclip["urban1k"] is None


class ByHand:
    """The model itself: one photo, one text at a time."""

    def __init__(self, model, processor):
        self.model, self.processor = model, processor

    def image_vector(self, image, mask=None):
        pixels = self.processor(images=image)["pixel_values"]
        with torch.no_grad():
            return self.model.get_image_features(pixels, mask).pooler_output[0].numpy()

    def text_vector(self, text, kind):
        with torch.no_grad():
            return self.model.get_text_features(**self.processor(text=[text])).pooler_output[0].numpy()


def test_a_real_model_gets_the_figures_of_its_own_vectors(folders):
    model, processor = pixclip_pair()
    protocol = Flickr30k.presets["default"].changed({"bootstrap": 0, "limit": 8})
    benchmark = Flickr30k(folders["flickr30k"], protocol)
    result = measure(benchmark, PixCLIPEncoder(model, processor))
    expected = recalls_by_loops(benchmark.items, ByHand(model, processor), protocol)
    assert values(result) == pytest.approx(expected, abs=1e-12)
    assert len({item["score"] for item in result.items}) > 10


def test_the_mask_of_the_official_scripts_of_pixclip_is_three_settings_away(folders):
    model, processor = pixclip_pair()
    image = photo(loaded(Flickr30k(folders["flickr30k"])).items[0].image.path)
    by_hand = ByHand(model, processor)
    normalised = PixCLIPEncoder(model, processor).encode_images([image])[0]
    for name, value in (("default_mask", "full"), ("mask_mean", 0.0), ("mask_std", 1.0)):
        setattr(model.config.vision_config, name, value)
    found = PixCLIPEncoder(model, processor).encode_images([image])[0]
    size = model.config.vision_config.image_size
    mask = torch.ones(1, 1, size, size)
    np.testing.assert_allclose(found, by_hand.image_vector(image, mask), rtol=1e-4, atol=1e-5)
    assert not np.allclose(found, normalised, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the photos in {SHARED}")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_larger_set_of_real_photos(tmp_path, name):
    benchmark, write = BENCHMARKS[name]
    write(tmp_path, SHARED)
    instance = loaded(benchmark(tmp_path))
    short = name in ("flickr30k", "coco-retrieval")
    assert instance.counts["images"] == (331 if short else 28)
    assert instance.counts["captions"] == (1656 if short else 28)
    if not short:
        assert min(len(text.split()) for item in instance.items for text in item.captions) > 50
    results = [measure(instance, RandomEncoder(seed)) for seed in range(1 if short else 4)]
    for direction in DIRECTIONS:
        check_chance(results, f"{direction} R@5")
    # One text stands under two photos, so that a model that knows the answers is wrong with one photo's text.
    shared = instance.counts["texts that several images share"]
    assert shared == (1 if short else 0)
    right = values(measure(instance, told(instance)))
    assert right["image to text R@1"] >= 1 - shared / 331 and right["text to image R@1"] >= 1 - 2 * shared / 1656
    if name == "docci":
        by_gpt = loaded(Docci(tmp_path, Docci.presets["default"].changed({"split": "qual_dev"})))
        assert by_gpt.counts["images"] == 26
