# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Hard negatives: which rewrites are kept and why the others go back, and which noun a rewrite must keep."""

import asyncio
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine, asker_for, red_disk, settings_for

from processing_pixclip.longgrit.engines import RequestFailed
from processing_pixclip.longgrit.hard_negatives import HardNegatives, RewriteCheck
from processing_pixclip.longgrit.kept_nouns import find_kept_nouns, plain_words
from processing_pixclip.longgrit.records import Rejected


TEXT = "A small shaggy black dog with a white chest, standing in the corner to the left of a door. Its long fur falls over its eyes."


def check_of(text=TEXT, category="dog", object_text=None):
    image, works = red_disk()
    work = works[0]
    region = {name: getattr(work.region, name) for name in work.region.__dataclass_fields__}
    work.region = type(work.region)(**{**region, "category": category, "phrase": None})
    work.text, work.object_text = text, object_text
    return RewriteCheck(work)


GOOD = [
    TEXT.replace("black", "brown"),
    TEXT.replace("black", "black and tan"),
    TEXT.replace("standing", "lying"),
    TEXT.replace("left", "right"),
    TEXT.replace("small", "huge"),
    TEXT.replace("a white chest", "two white paws"),
    TEXT.replace("to the left of a door", "behind a tall wooden door"),
    TEXT.replace("A small shaggy black dog", "Two small shaggy black dogs"),
    TEXT.replace("long fur falls over", "short fur stands above"),
    TEXT.replace("black", "white").replace("a white", "a black"),
]
BAD = {
    "it says the same as the description itself": [
        TEXT,
        TEXT.lower().replace(",", "").replace(".", ""),
        TEXT.replace("small", "little"),
        f'"{TEXT}"',
        "A small shaggy black dog with a white chest standing\nin the corner, to the left of a door; its long fur falls over its eyes!",
    ],
    "only": [TEXT.replace("A small", "The small"), TEXT.replace("standing", "that is standing")],
    "noun 'dog' is gone": [TEXT.replace("dog", "cat"), TEXT.replace("dog", "animal"), TEXT.replace("dog", "hotdog")],
    "noun 'dog' is in another place": [
        "A door with a white chest, standing in the corner to the left of a small shaggy black dog. Its long fur falls over its eyes.",
    ],
    "words and the description": [
        "A small shaggy brown dog.",
        TEXT + " Beside it lies a yellow ball on a green blanket.",
    ],
    "words differ from the description": [
        "A large smooth red dog by the grey bench, jumping on the table to the right of a car. Its short tail points at its back.",
        "A eyes fur dog long Its chest, door in the corner to the left of a standing. white shaggy black falls over its a small with.",
    ],
    "it denies": [
        TEXT.replace("A small shaggy black dog", "A horse, not a black dog,"),
        TEXT.replace("standing", "not standing"),
        TEXT.replace("black", "not black"),
    ],
    "'instead of'": [TEXT.replace("black", "brown instead of black")],
    "The text holds": [TEXT.replace("black", "**brown**"), TEXT.replace("black", "<b>brown</b>")],
    "The text says": ["Rewrite: " + TEXT.replace("black", "brown")],
}


@pytest.mark.parametrize("rewrite", GOOD)
def test_one_changed_attribute_is_taken(rewrite):
    check = check_of()
    assert check.add(rewrite) is None and check.kept == [rewrite]


@pytest.mark.parametrize(("why", "rewrite"), [(why, rewrite) for why, rewrites in BAD.items() for rewrite in rewrites])
def test_a_bad_rewrite_is_refused_with_its_reason(why, rewrite):
    check = check_of()
    assert why in check.add(rewrite) and check.kept == []


COW = "A black and white cow grazes in a green field, next to a silver car that is parked at the kerb of a beach."


@pytest.mark.parametrize(
    "change",
    [
        ("black and white", "white and black"),
        ("black and white", "black-and-white"),
        ("grazes", "is grazing"),
        ("green field", "emerald meadow"),
        ("next to", "beside"),
        ("silver", "grey"),
        ("parked", "stopped"),
        ("kerb", "curb"),
        ("beach", "sand"),
    ],
)
def test_a_rewrite_that_is_still_true_is_refused(change):
    check = check_of(COW, "cow")
    assert COW.replace(*change) != COW
    assert re.search("says the same|changes no attribute", check.add(COW.replace(*change)))
    assert check.add(COW.replace("black and white", "brown and white")) is None


def test_rewrites_that_differ_only_in_form_are_taken_once():
    check = check_of()
    assert check.add(TEXT.replace("black", "brown")) is None
    assert check.add(TEXT.replace("black", "Brown").replace(",", "")) == "it says the same as copy 1 of the good ones"
    assert check.add(TEXT.replace("black", "grey")) is None
    assert check.add(TEXT.replace("black", "gray")) == "it says the same as copy 2 of the good ones"


def test_a_negative_cannot_be_told_by_its_first_letter_or_end_mark():
    check = check_of()
    assert check.add(TEXT.replace("black", "brown").lower().rstrip(".")) is None
    assert check.kept[0].startswith("A small") and check.kept[0].endswith("eyes.")
    check = check_of("a black dog by a red car and a tall white fence in the sun")
    assert check.add("A brown dog by a red car and a tall white fence in the sun.") is None
    assert check.kept == ["a brown dog by a red car and a tall white fence in the sun"]


@pytest.mark.parametrize(
    ("text", "category", "good", "bad"),
    [
        ("A pair of scissors with red handles on a table.", "scissors", ("red", "blue"), ("scissors", "pliers")),
        ("A man in a red shirt next to a woman.", "person", ("next to", "behind"), ("A man", "A woman")),
        ("A man in a red shirt next to a woman.", "person", ("a woman", "a child"), ("A man", "A boy")),
        (
            "A person in a red shirt next to a door.",
            "person",
            ("person in a red", "person in a blue"),
            ("person", "man"),
        ),
        ("This is a round white plate with a slice of pizza.", "pizza", ("round", "square"), ("plate", "bowl")),
        (
            "A child's bright red tricycle lies overturned by the road.",
            "bicycle",
            ("lies overturned", "stands upright"),
            ("tricycle", "scooter"),
        ),
        (
            "An elderly man, bald and with round glasses. He is the second person from the left.",
            "person",
            ("bald", "grey-haired"),
            ("man", "woman"),
        ),
        ("Two women in red coats at a bus stop.", "person", ("Two", "Three"), ("women", "men")),
        (
            "A long dining table with a white cloth.",
            "dining table",
            ("white", "red"),
            ("dining table", "coffee table"),
        ),
        ("A brown teddy bear on a white pillow.", "teddy bear", ("brown", "pink"), ("teddy bear", "polar bear")),
        ("A rough red brick wall behind a parked car.", "wall-brick", ("red", "white"), ("wall", "fence")),
        ("Three sharp knives lie beside a blue plate.", "knife", ("Three", "Two"), ("knives", "forks")),
        ("A shiny yellow hamburger with green lettuce.", "sandwich", ("green", "red"), ("hamburger", "salad")),
        (
            "A tall white building facade in the evening sun.",
            "building-other-merged",
            ("white", "brown"),
            ("building", "tree"),
        ),
        ("The dog's head is black and white, its nose wet.", "dog", ("black", "brown"), ("dog's", "cat's")),
    ],
)
def test_what_the_object_is_stays(text, category, good, bad):
    check = check_of(text, category)
    assert check.add(text.replace(*good)) is None
    assert "the object's noun" in check.add(text.replace(*bad))


# The noun where it is certain, else none; but never an adverb, number or verb.
PLAIN_SENTENCES = {
    "A kite soars high above the beach.": "kite",
    "A cat sleeps curled up on a rug.": "cat",
    "A woman smiles broadly at the camera.": "woman",
    "The tower rises slender and white from the square.": "tower",
    "A boy kicks a ball.": "boy",
    "A bride and groom dance under lights.": None,
    "The runner wears number 7.": "runner",
    "A chef stirs soup.": None,
    "A Thai airways airplane at the terminal.": None,
    "A group of people wait to cross.": None,
    "A wet road busy with traffic.": None,
    "A young woman smiling brightly holds flowers.": None,
    "Several tourists photograph the church.": "tourists",
    "An old woman knits.": "woman",
    "A small glass jar contains honey.": "jar",
    "A plate piled high with pancakes sits on a counter.": None,
    "A sign reading STOP stands at the corner.": None,
    "A pair of worn leather boots stands on the mat.": "boots",
    "A black bird, wings spread wide, glides over water.": "bird",
    "A couple kiss under an umbrella.": "couple",
    "This small, weathered, two-storey house has a tin roof.": "house",
    "A neatly folded towel hangs over the rail.": "towel",
    "Two dogs sit by the door.": "dogs",
    "The dog barks at a car.": None,
    "The red boats on the shore.": "boats",
}


@pytest.mark.parametrize(
    ("text", "category", "object_text", "nouns"),
    [
        ("A brown and white dog lying on the grass.", None, None, ["dog"]),
        ("A baseball pitcher in a white uniform, watched by a man.", "person", None, ["pitcher"]),
        ("The back of a bus that waits at a red light.", "bus", None, ["bus", "back"]),
        ("The image shows a small bird on a branch.", "bird", None, ["bird"]),
        ("In front of a house stands a red car.", "car", None, ["car"]),
        ("In front of a house stands a red thing.", None, "a red tractor", []),
        ("In front of a house stands a red tractor.", None, "a red tractor", ["tractor"]),
        ("In front of a house stands a red tractor.", None, "Mainly in the middle is a tractor.", []),
        ("A bunch of ripe yellow bananas in a bowl.", "banana", None, ["bananas"]),
        ("A close-up of a grey cat with green eyes.", None, None, ["cat"]),
        ("A double bed with a low frame.", "bed", None, ["bed"]),
        ("A tall building with a flat roof.", None, None, ["building"]),
        ("A skateboarder rides along a wall.", "person", None, ["skateboarder"]),
        ("A knife and fork on a napkin.", "fork", None, ["fork"]),
        ("Grass, short and green, in front of a fence.", "grass-merged", None, ["grass"]),
        ("一只黑色的小狗站在门边。", "dog", None, []),
        ("A close-up of a golden retriever's face, tongue out.", "dog", None, []),
        *[(text, None, None, [noun] if noun else []) for text, noun in PLAIN_SENTENCES.items()],
        ("A dog.", "???", None, ["dog"]),
    ],
)
def test_the_noun_of_a_text_is_found(text, category, object_text, nouns):
    assert [noun.word for noun in find_kept_nouns(text, category, None, object_text)] == nouns


def test_a_phrase_of_the_source_names_the_object_too():
    [noun] = find_kept_nouns("In front of it are two brown ponies.", None, "brown pony on the left")
    assert noun.word == "ponies" and len(noun.find(plain_words("A pony and the pony's friend, both Ponies."))) == 3


def test_rules_of_english_stay_away_from_other_languages():
    text = "A destra di una porta bianca un cane nero."
    assert [noun.word for noun in find_kept_nouns(text, "cane", english=False)] == ["cane"]
    assert find_kept_nouns(text, english=False) == []


@settings(max_examples=200, deadline=None)
@example("", "\r-0").via("a part without a word")
@example("", "_")
@given(st.text(st.sampled_from("ab .,Adog\n*'’-"), max_size=60), st.text(max_size=20))
def test_whatever_is_kept_is_another_text_about_the_same_object(rewrite, category):
    check = check_of("A dog and a bad god, a good bag, a dab.", category)
    for text in (rewrite, rewrite + " dog", f"A {rewrite} dog and a bad god, a good bag, a dab."):
        check.add(text)
    assert len({" ".join(plain_words(text)) for text in [check.text, *check.kept]}) == 1 + len(check.kept)
    assert all("dog" in text.casefold() and "\n" not in text and text.endswith(".") for text in check.kept)


def negatives(*texts):
    return {"negatives": [{"changed": "something", "text": text} for text in texts]}


def run(*script, engine_name="openai", count=3, min_count=0):
    """The stage on a work whose description is `TEXT`, with a scripted engine."""
    work = red_disk()[1][0]
    work.text, work.object_text = TEXT, "a shaggy dog"
    engine = ScriptedEngine(hard_negatives=script)
    stages = {"hard_negatives": {"count": count, "min_count": min_count}}
    chosen = settings_for(
        stages=stages, engine=engine_name, model="tiny", servers={"here": {"base_url": "http://127.0.0.1:1/v1"}}
    )
    asker = asker_for(chosen, engine)
    asker.engines = {engine_name: engine}
    try:
        asyncio.run(HardNegatives(asker, chosen)(work))
        error = None
    except Rejected as rejected:
        error = rejected
    return work, engine.requests["hard_negatives"], error


def test_good_rewrites_are_kept_in_their_order_and_no_more_than_asked_for():
    work, [request], error = run(negatives(*GOOD[:5]))
    assert error is None and work.hard_negatives == GOOD[:3]
    read = request.messages[-1].text
    assert TEXT in read and "Write 3 copies" in read and "<label>dog</label>" in read
    assert not any(message.images for message in request.messages)


def test_the_missing_ones_are_asked_for_with_what_was_wrong():
    bad = TEXT.replace("dog", "cat")
    work, requests, error = run(negatives(GOOD[0], bad, TEXT), negatives(GOOD[0], GOOD[2]), negatives(GOOD[3]))
    assert error is None and work.hard_negatives == [GOOD[0], GOOD[2], GOOD[3]]
    told = [request.messages[-1].text for request in requests[1:]]
    assert "Copy 2 is not good: the object's noun 'dog' is gone" in told[0]
    assert (
        "Copy 3 is not good: it says the same as the description itself" in told[0]
        and "2 more copies are needed" in told[0]
    )
    assert (
        "Copy 1 is not good: it says the same as copy 1 of the good ones" in told[1]
        and "1 more copy is needed" in told[1]
    )
    assert work.provenance[0].attempts == 3


def test_too_few_are_kept_unless_too_few_for_the_user():
    script = [negatives(GOOD[0])] * 3
    work, requests, error = run(*script)
    # The second answer brought nothing new, a third would not either.
    assert error is None and work.hard_negatives == GOOD[:1] and len(requests) == 2
    work, _, error = run(*script, min_count=1)
    assert error is None and work.hard_negatives == GOOD[:1]
    work, _, error = run(*script, min_count=2)
    assert (error.stage, error.reason, work.hard_negatives) == ("hard_negatives", "too_few_negatives", [])
    assert "1 rewrites are good, at least 2 are wanted" in error.detail and "says the same as copy 1" in error.detail
    work, requests, error = run(negatives(GOOD[0]), negatives(GOOD[2]), negatives(), count=9)
    assert error is None and work.hard_negatives == [GOOD[0], GOOD[2]] and len(requests) == 3


def test_the_built_in_annotator_is_not_asked_twice():
    work, requests, error = run(negatives(GOOD[0]), engine_name="rules")
    assert error is None and work.hard_negatives == GOOD[:1] and len(requests) == 1


def test_what_was_good_outlives_a_malformed_answer_but_not_a_failed_request():
    work, _, error = run(negatives(GOOD[0]), "no JSON", "no JSON")
    assert error is None and work.hard_negatives == GOOD[:1]
    work, _, error = run(negatives(GOOD[0]), RequestFailed("all servers are down"))
    assert error.reason == "request_failed" and work.hard_negatives == []


def test_answers_without_any_rewrite_are_malformed():
    work, _, error = run("no JSON", {"negatives": "none"}, {"negatives": [TEXT]})
    assert error.reason == "malformed_answer" and work.hard_negatives == []
