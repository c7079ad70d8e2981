# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The built-in annotator: each statement of its texts is read back and checked against pixels and masks by code of the test."""

import asyncio
import gc
import io
import json
import re
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from region_statements import COLOURS, MAYBE, Checker

from processing_pixclip import encode_rle
from processing_pixclip.longgrit.asking import Asker
from processing_pixclip.longgrit.config import LongGritSettings, read_settings
from processing_pixclip.longgrit.engines import Request
from processing_pixclip.longgrit.prompts import load_prompt
from processing_pixclip.longgrit.records import ImageWork, RegionWork, Rejected, SourceImage, SourceRegion
from processing_pixclip.longgrit.rule_engine import RuleEngine
from processing_pixclip.longgrit.rule_facts import noun_of_category, noun_of_region
from processing_pixclip.longgrit.stages import build_stages
from processing_pixclip.region_nouns import noun_of


ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "examples/data/coco_regions"
HEIGHT, WIDTH = 120, 180
RED, BLUE, GREEN, YELLOW, GREY = (200, 20, 20), (40, 70, 180), (40, 140, 40), (240, 220, 40), (128, 128, 128)


def photo_of(pixels, regions, grouped=(), image_id="1"):
    """An image of an array, with regions as (mask, category)."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    records = []
    for number, (mask, category) in enumerate(regions):
        rle = mask if isinstance(mask, dict) else encode_rle(mask)
        records.append(SourceRegion(f"{image_id}#{number}", (0, 0, 1, 1), mask=rle, category=category))
    height, width = pixels.shape[:2]
    source = SourceImage(image_id, f"{image_id}.png", {}, width, height, tuple(records), grouped=tuple(grouped))
    return ImageWork(source, file.getvalue)


def draw(*rectangles, ground=(235, 235, 235)):
    """Pixels and one mask a rectangle (x1, y1, x2, y2, colour)."""
    pixels = np.full((HEIGHT, WIDTH, 3), ground, dtype=np.uint8)
    masks = []
    for x1, y1, x2, y2, colour in rectangles:
        pixels[y1:y2, x1:x2] = colour
        masks.append(np.zeros((HEIGHT, WIDTH), dtype=bool))
        masks[-1][y1:y2, x1:x2] = True
    return pixels, masks


def drawn(categories, *rectangles, **options):
    """An image of rectangles."""
    pixels, masks = draw(*rectangles)
    return photo_of(pixels, list(zip(masks, categories)), **options)


def real_photos(count):
    """Photos of the bundled sample with all of their regions."""
    lines = (SAMPLE / "heldout.jsonl").read_text().splitlines()[:count]
    for record in map(json.loads, lines):
        pixels = np.asarray(Image.open(SAMPLE / record["image"]).convert("RGB"))
        yield photo_of(
            pixels, [(region["mask"], region["category"]) for region in record["regions"]], image_id=record["image_id"]
        )


def settings_of(format="coco", **fields):
    return LongGritSettings(output_dir="out", source={"format": format}, engine="rules", **fields)


def annotate(image, settings=None, engine=None):
    """Runs all stages on each region that is not dropped, as the pipeline does."""
    settings = settings_of() if settings is None else settings
    engine = RuleEngine(settings) if engine is None else engine
    prompts = {stage: load_prompt(stage) for stage in settings.enabled_stages}
    stages = build_stages(settings, Asker(settings, {"rules": engine}, prompts))
    works = [RegionWork(image, region) for region in image.source.regions if region.dropped is None]

    async def run(work):
        for stage in stages.values():
            await stage(work)

    async def run_all():
        await asyncio.gather(*map(run, works))

    asyncio.run(run_all())
    return works


def answer(engine, stage, work, schema=True):
    request = Request(work.item_id, stage, "rules", (), "0" * 16, schema={} if schema else None, work=work)
    text = asyncio.run(engine.ask(request)).text
    return json.loads(text) if schema else text


def verdict(image, caption, number=0):
    work = RegionWork(image, image.source.regions[number], object_text=caption)
    return answer(RuleEngine(settings_of()), "verify", work)


def check_texts(work):
    """Every statement of the three texts is true; returns how many of each kind there are."""
    checker = Checker(work)
    kinds = Counter()
    for text in (work.object_text, work.context_text, work.text):
        for kind, value in checker.statements(text):
            assert checker.holds(kind, value), f"{work.item_id}: {kind} {value} is false: {text}"
            kinds[kind] += 1
    return kinds


def check_negatives(work):
    """Each negative states exactly one attribute otherwise, and falsely."""
    checker = Checker(work)
    before = checker.statements(work.text)
    kinds = Counter()
    for negative in work.hard_negatives:
        after = checker.statements(negative)
        new, gone = after - before, before - after
        # Colours of halves and of the whole are one attribute; so are the rank, number and side of an order.
        changed = {"colour" if kind == "half" else kind for kind, _ in new} or {
            "colour" if kind == "half" else kind for kind, _ in gone
        }
        if {kind for kind, _ in new} == {"half"} and {v[1] for _, v in new} == {v[1] for _, v in gone}:
            changed = {"half"}
        assert len(changed) == 1, f"{work.item_id}: {new} {gone}: {negative}"
        [kind] = changed
        if kind == "colour":
            said = [{v if k == "colour" else v[1] for k, v in of if k in ("colour", "half")} for of in (after, before)]
            names = said[0] - said[1]
            assert len(names) == 1 and all(map(checker.lacks, names)), f"{work.item_id}: {names}: {negative}"
        else:
            assert any(map(checker.is_false, *zip(*new))), f"{work.item_id}: {new}: {negative}"
        kinds[kind] += 1
    return kinds


def test_all_that_is_said_of_real_photos_is_true():
    said, changed, lengths = Counter(), Counter(), []
    for image in real_photos(11):
        for work in annotate(image):
            said += check_texts(work)
            changed += check_negatives(work)
            lengths.append(len(work.text.split()))
            assert len(set(map(str.casefold, [work.text, *work.hard_negatives]))) == 11
            noun = noun_of(work.region.category)
            head = noun.singular.removeprefix(noun.before_of).strip().lower()
            counts = [text.lower().count(head) for text in (work.text, *work.hard_negatives)]
            assert len(set(counts)) == 1 and counts[0] > 0
    assert 25 <= min(lengths) and max(lengths) <= 90 and max(lengths) - min(lengths) > 20
    # The test reads what is written: no kind of statement passes by it.
    kinds = {
        "place",
        "colour",
        "size",
        "shape",
        "width",
        "height",
        "edge",
        "order",
        "contrast",
        "relation",
        "half",
        "slant",
    }
    assert kinds <= set(said), kinds - set(said)
    assert {"place", "colour", "size", "shape", "edge", "order", "contrast", "relation"} <= set(changed)


@pytest.mark.parametrize("seed", range(12))
def test_all_that_is_said_of_drawn_scenes_is_true(seed):
    generator = np.random.default_rng(seed)
    names = ["kite", "truck", "dog", "person", "bench", "scissors"]
    colours = [RED, BLUE, GREEN, YELLOW, GREY, (20, 20, 20), (250, 250, 250)]
    rectangles, categories = [], []
    for _ in range(int(generator.integers(2, 8))):
        x, y = int(generator.integers(0, WIDTH - 12)), int(generator.integers(0, HEIGHT - 12))
        w, h = (int(v) for v in generator.integers(10, 90, 2))
        rectangles.append((x, y, min(x + w, WIDTH), min(y + h, HEIGHT), colours[generator.integers(len(colours))]))
        categories.append(names[generator.integers(len(names))])
    pixels, masks = draw(*rectangles)
    # What lies on top hides the rest.
    for i in range(len(masks)):
        for later in masks[i + 1 :]:
            masks[i] &= ~later
    seen = [(mask, category) for mask, category in zip(masks, categories) if mask.sum() >= 100]
    for work in annotate(photo_of(pixels, seen)):
        check_texts(work)
        check_negatives(work)


def test_what_a_known_scene_is_said_to_show():
    image = drawn(
        ["kite", "kite", "truck"], (10, 10, 40, 30, RED), (130, 10, 160, 30, BLUE), (60, 80, 120, 110, GREEN)
    )
    first, second, truck = annotate(image)
    assert "red kite" in first.object_text and "blue kite" in second.object_text
    assert "in the top left of" in first.text and "the first of two kites from the left" in first.context_text
    assert "the second of two kites from the left" in second.context_text
    assert "one of the kites" in truck.context_text.lower() and "green truck" in truck.text


def test_things_are_counted_only_where_the_source_names_them_all():
    image = drawn(["kite", "kite", "kite"], *[(10 + 60 * i, 50, 30 + 60 * i, 90, RED) for i in range(3)])
    counted = annotate(image, settings_of("coco"))
    uncounted = annotate(image, settings_of("folder", stages={"object_caption": {}}))
    assert all("of three kites" in work.context_text for work in counted)
    assert not any("of three" in work.context_text for work in uncounted)
    assert "There is another kite to its left and another kite to its right" in uncounted[1].context_text


def test_regions_that_were_dropped_still_count_but_for_those_that_are_no_thing():
    pixels, masks = draw(*[(10 + 40 * i, 50, 30 + 40 * i, 90, RED) for i in range(4)])
    image = photo_of(pixels, list(zip(masks, ["kite"] * 4)), grouped=["kite"])
    reasons = [None, "too_small", "duplicate_mask", "crowd"]
    regions = tuple(
        SourceRegion(r.region_id, r.box, mask=r.mask, category=r.category, dropped=reason)
        for r, reason in zip(image.source.regions, reasons)
    )
    source = SourceImage("1", "1.png", {}, WIDTH, HEIGHT, regions, grouped=("kite",))
    [work] = annotate(ImageWork(source, image.file_content))
    assert "the first of two kites from the left, not counting a larger group of kites" in work.context_text


def test_a_region_whose_mask_cannot_be_read_ends_alone_and_nothing_of_its_noun_is_counted():
    image = drawn(["kite"] * 3, *[(10 + 60 * i, 50, 30 + 60 * i, 90, RED) for i in range(3)])
    good, other, bad = image.source.regions
    broken = SourceRegion(bad.region_id, bad.box, mask={"size": [HEIGHT, WIDTH], "counts": "x"}, category="kite")
    source = SourceImage("1", "1.png", {}, WIDTH, HEIGHT, (good, other, broken))
    image, engine = ImageWork(source, image.file_content), RuleEngine(settings_of())
    assert "from the" not in answer(engine, "context_caption", RegionWork(image, good))["text"]
    for _ in range(2):
        with pytest.raises(Rejected, match="unreadable_mask"):
            answer(engine, "context_caption", RegionWork(image, broken))


def test_of_a_box_no_colour_outline_or_contact_is_claimed():
    pixels, masks = draw((20, 20, 80, 80, RED), (70, 30, 150, 90, BLUE))
    regions = tuple(
        SourceRegion(f"1#{i}", box, mask_source="box", phrase=phrase)
        for i, (box, phrase) in enumerate(
            [((20, 20, 80, 80), "a kite on a string"), ((70, 30, 150, 90), "two old trucks parked on a street")]
        )
    )
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    image = ImageWork(SourceImage("1", "1.png", {}, WIDTH, HEIGHT, regions), file.getvalue)
    kite, trucks = annotate(image, settings_of("grit"))
    for work in (kite, trucks):
        texts = " ".join([work.object_text, work.context_text, work.text])
        assert not re.search("red|blue|touching|lighter|darker|outline", texts), texts
    assert kite.object_text.startswith("A kite is found within a rectangle that is about as tall as it is wide") or (
        kite.object_text.startswith("A kite is found within a rectangle that is roughly equal in width and height")
    )
    assert trucks.object_text.startswith("A group of trucks is found")


@pytest.mark.parametrize(
    "phrase, singular",
    [
        ("a brown dog sitting on a bench", "dog"),
        ("The woman in a red dress", "woman"),
        ("several people", "group of people"),
        ("blue jeans", "pair of jeans"),
        ("her long blonde hair", "hair"),
        ("a glass of wine", "glass"),
        ("three sofas", "group of sofas"),
        ("!!!", "object"),
        ("a small wooden house", "house"),
        ("a cute little mouse", "mouse"),
        ("couple kissing", "couple"),
        ("a man and a woman", "group of people"),
        ("mother and child", "group of people"),
        ("the red and white sign on the left", "sign"),
        ("<|im_start|>system", "system"),
    ],
)
def test_the_noun_of_a_referring_expression(phrase, singular):
    assert noun_of_region(SourceRegion("1#0", (0, 0, 9, 9), phrase=phrase)).singular == singular


@pytest.mark.parametrize(
    "category, phrase",
    [
        ("_", "an object"),
        ("🐶", "an object"),
        ("{x}", "an object"),
        ("<b>dog</b>", "an object"),
        ("red", "an object"),
        ("t-shirt", "a t-shirt"),
        ("x-ray", "an x-ray"),
        ("men", "a group of men"),
        ("french_fries", "a group of french fries"),
        ("trousers", "a pair of trousers"),
        ("a dog", "a dog"),
        ("person, woman", "a person"),
        ("traffic\nlight", "a traffic light"),
        ("bow_(decorative_ribbons)", "a bow"),
        ("wine bottle (open)", "a wine bottle"),
        ("dog.", "a dog"),
        ("house", "a house"),
        ("tree-merged", "tree cover"),
    ],
)
def test_a_category_of_any_source_becomes_english_and_its_own_caption_passes(category, phrase):
    image = drawn([category, "kite"], (30, 40, 70, 80, RED), (100, 20, 160, 60, BLUE), grouped=["_", "🐶", category])
    settings = settings_of("folder")
    [work, _] = annotate(image, settings)
    red = (
        phrase if phrase == "a person" else re.sub("^(an? group of|an? pair of|an?|)( ?)", r"\1 red ", phrase).strip()
    )
    red = red.replace("an red", "a red")
    for text in (work.object_text, work.text):
        assert red in text.lower(), text
    whole = answer(RuleEngine(settings), "image_caption", RegionWork(image))["short_caption"]
    assert "object" not in whole and "kite" in whole
    assert noun_of_category(category).phrase() == phrase


def test_coco_names_mean_what_they_mean_in_coco_only_there():
    image = drawn(["mouse", "grass-merged"], (30, 40, 70, 80, RED), (0, 80, WIDTH, HEIGHT, GREEN))
    [mouse, _] = annotate(image, settings_of("coco"))
    assert "computer mouse" in mouse.object_text
    [mouse, _] = annotate(image, settings_of("folder"))
    assert "computer" not in mouse.object_text


def test_things_and_groups_without_a_name_are_not_counted():
    image = drawn(["_", "🐶"], (30, 40, 70, 80, RED), (100, 20, 160, 60, BLUE), grouped=["_", "--"])
    texts = " ".join(work.text for work in annotate(image))
    assert "object" in texts and not re.search("first|second|group", texts), texts


def test_nothing_is_said_to_touch_stuff():
    image = drawn(["dog", "grass-merged"], (30, 40, 70, 80, RED), (30, 50, 70, 80, GREEN))
    texts = " ".join(work.text for work in annotate(image))
    assert not re.search("touching (?!an edge)", texts) and re.search("next to|surrounded|around", texts)


@pytest.mark.parametrize(
    "caption, expected, why",
    [
        ("A red dog with two ears.", "consistent", None),
        ("A puppy, crimson all over.", "consistent", None),
        ("A red dog on green grass.", "consistent", None),
        ("A red animal.", "consistent", None),
        ("A red Labrador with a leather collar lies on the grass.", "consistent", None),
        ("Beside a truck, a red dog rests.", "consistent", None),
        ("The truck-loving red dog rests.", "consistent", None),
        ("A red dog wearing a blue collar sits next to a truck.", "consistent", None),
        ("A dog, blue all over.", "inconsistent", "'blue'"),
        ("A hot dog.", "inconsistent", "'hot dog'"),
        ("Two zebras.", "inconsistent", "'zebras'"),
        ("A red cat.", "inconsistent", "dog"),
        ("A red truck behind a dog.", "inconsistent", "dog"),
        ("A green dog.", "inconsistent", "'green'"),
        ("A red dog with blue ears.", "consistent", None),
        ("A red dog, much taller than wide.", "inconsistent", "much taller"),
        ("A red dog that covers about 60 percent of the photo.", "inconsistent", "60 percent"),
        ("", "invalid", "no word"),
        ("?!", "invalid", "no word"),
        ("I'm sorry, I cannot see a dog.", "invalid", "task"),
        ("# Dog\n- red", "invalid", "heading"),
    ],
)
def test_a_caption_is_checked_against_pixels_and_noun(caption, expected, why):
    image = drawn(
        ["dog", "grass-merged", "truck"],
        (30, 40, 70, 80, RED),
        (0, 95, WIDTH, HEIGHT, GREEN),
        (100, 20, 160, 60, BLUE),
    )
    result = verdict(image, caption)
    assert result["verdict"] == expected, result
    assert why is None or why in result["reason"]


def test_on_real_photos_wrong_colours_and_nouns_are_caught_and_own_captions_pass():
    missed, tried = [], Counter()
    for image in real_photos(6):
        engine = RuleEngine(settings_of())
        works = annotate(image, engine=engine)
        for work in works:
            assert answer(engine, "verify", work)["verdict"] == "consistent"
            checker = Checker(work)
            absent = [name for name in COLOURS if MAYBE[name](*checker.hsv).mean() < 0.02]
            noun = noun_of(work.region.category)
            wrong = {"noun": f"A zebra. {'It is here.'}"}
            if absent:
                wrong["colour"] = noun.phrase(absent[0])
            for kind, caption in wrong.items():
                result = answer(engine, "verify", RegionWork(image, work.region, object_text=caption))
                tried[kind] += 1
                if result["verdict"] != "inconsistent":
                    missed.append((caption, work.object_text))
    assert not missed and tried["colour"] > 20


def test_a_wrong_caption_of_another_engine_is_rejected_by_the_stage():
    image = drawn(["dog"], (30, 40, 70, 80, RED))
    settings = settings_of()
    stages = build_stages(
        settings, Asker(settings, {"rules": RuleEngine(settings)}, {"verify": load_prompt("verify")})
    )
    work = RegionWork(image, image.source.regions[0], object_text="A blue dog.")
    with pytest.raises(Rejected, match="inconsistent"):
        asyncio.run(stages["verify"](work))


def test_texts_of_models_are_merged_and_rewritten_where_they_can_be_checked():
    image = drawn(["dog"], (10, 10, 40, 40, RED))
    engine = RuleEngine(settings_of())
    work = RegionWork(image, image.source.regions[0])
    work.object_text = "A shiny red dog with a collar. It looks to the left."
    work.context_text = "It looks to the left. The red dog sits in the upper left corner of the photo."
    work.text = answer(engine, "fuse", work)["text"]
    assert work.text == (
        "A shiny red dog with a collar. It looks to the left. The red dog sits in the upper left corner of the photo."
    )
    negatives = answer(engine, "hard_negatives", work)["negatives"]
    assert len(negatives) == 10
    for negative in negatives:
        text = negative["text"]
        assert text.count("dog") == 2 and text != work.text
        if negative["changed"].startswith("colour"):
            # Said twice, changed twice.
            assert "red" not in text and "upper left corner" in text
        else:
            assert text.count("red dog") == 2 and "upper left" not in text
    assert any(negative["changed"].startswith("place") for negative in negatives)


def test_a_models_look_before_the_own_place_keeps_all_attributes_of_the_place():
    image = drawn(["dog", "truck"], (10, 10, 40, 40, RED), (100, 70, 150, 100, BLUE))
    settings = settings_of(stages={"fuse": {"enabled": False}, "object_caption": {"enabled": False}})
    work = annotate(image, settings)[0]
    assert work.text == f"Dog. {work.context_text}"
    assert len(work.hard_negatives) == 10
    kinds = check_negatives(work)
    assert {"place", "relation", "width", "height"} <= set(kinds)


def test_a_changed_relation_is_true_of_no_other_region_of_that_noun():
    # A truck on either side: that the dog is left of one of them, or right of one, is true both ways.
    image = drawn(["dog", "truck", "truck"], (80, 50, 100, 70, RED), (10, 50, 40, 70, BLUE), (140, 50, 170, 70, BLUE))
    dog = annotate(image, settings_of(stages={"hard_negatives": {"count": 40}}))[0]
    relations = [
        [statement for statement in Checker(dog).statements(text) if statement[0] == "relation"]
        for text in (dog.text, *dog.hard_negatives)
    ]
    assert relations[0] and all(other == relations[0] for other in relations)
    # With one truck, it is changed.
    dog = annotate(drawn(["dog", "truck"], (80, 50, 100, 70, RED), (10, 50, 40, 70, BLUE)))[0]
    assert check_negatives(dog)["relation"] >= 1


def test_the_whole_image_is_captioned_by_what_it_shows():
    image = drawn(
        ["kite", "kite", "truck", "sheep"],
        (10, 10, 40, 30, RED),
        (130, 10, 160, 30, BLUE),
        (60, 80, 120, 110, GREEN),
        (5, 60, 15, 70, GREY),
    )
    work = RegionWork(image)
    known = answer(RuleEngine(settings_of("coco")), "image_caption", work)
    assert known["short_caption"] == "A photo of a truck, two kites and a sheep."
    assert known["long_caption"].startswith(known["short_caption"])
    assert "green truck, about 8 percent of the photo, is at the bottom centre of the photo." in known["long_caption"]
    unknown = answer(RuleEngine(settings_of("folder")), "image_caption", work)
    assert unknown["short_caption"] == "A photo of a truck, kites and a sheep."


def test_a_prompt_for_plain_text_gets_plain_text():
    image = drawn(["dog"], (30, 40, 70, 80, RED))
    engine, work = RuleEngine(settings_of()), RegionWork(image, image.source.regions[0])
    bare = answer(engine, "object_caption", work, schema=False)
    assert bare == answer(engine, "object_caption", work)["text"]


def test_equal_requests_get_equal_answers_and_wording_varies():
    rectangles = [(5 + 20 * i, 10 + 5 * i, 15 + 20 * i, 40 + 6 * i, RED) for i in range(8)]
    categories = ["kite", "truck", "dog", "cat", "bus", "cup", "bed", "vase"]
    once, again = (annotate(drawn(categories, *rectangles)) for _ in range(2))
    for first, second in zip(once, again):
        assert (first.text, first.hard_negatives) == (second.text, second.hard_negatives)
    openings = {re.sub(r"kite|truck|dog|cat|bus|cup|bed|vase", "X", work.text)[:14] for work in once}
    assert len(openings) >= 3


def test_texts_stay_within_what_the_settings_say():
    image = drawn(["kite", "truck", "dog"], (10, 10, 40, 30, RED), (130, 10, 160, 30, BLUE), (60, 80, 120, 110, GREEN))
    for work in annotate(image, settings_of(texts={"max_words": 55})):
        assert len(work.text.split()) <= 55
    settings = settings_of(stages={"hard_negatives": {"count": 3}})
    assert {len(work.hard_negatives) for work in annotate(image, settings)} == {3}
    with pytest.raises(ValueError, match="writes English"):
        RuleEngine(settings_of(texts={"language": "de"}))


def test_an_image_is_measured_once_and_forgotten_with_its_work(monkeypatch):
    reads = []
    image = drawn(["kite", "truck"], (10, 10, 40, 30, RED), (60, 80, 120, 110, GREEN))
    content = image.file_content()

    def read():
        reads.append(1)
        return content

    image = ImageWork(image.source, read)
    engine = RuleEngine(settings_of())
    annotate(image, engine=engine)
    measured = weakref.ref(engine._facts(image))
    assert measured() is engine._facts(image) and len(reads) == 1
    del image
    gc.collect()
    assert measured() is None
    with pytest.raises(ValueError, match="has no work"):
        asyncio.run(engine.ask(Request("1#0", "fuse", "rules", (), "0" * 16)))


def test_the_config_of_the_sample_is_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = read_settings("examples/configs/longgrit_coco_regions.yaml")
    assert {settings.engine_of(stage) for stage in settings.enabled_stages} == {"rules"}
    assert Path(settings.source.path).is_file() and "image_caption" in settings.enabled_stages
