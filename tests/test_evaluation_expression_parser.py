# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
import json

import numpy as np
import pytest
from evaluation_for_tests import SHARED

from processing_pixclip.evaluation.expression_parser import (
    POSITIONS,
    RELATIONS,
    parse_expression,
    spatial_probabilities,
)


def shown(phrase):
    """(text, positions, relations), short to write."""
    return (phrase.text, *phrase.positions, *((name, shown(other)) for name, other in phrase.relations))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("left", ("", "left")),
        ("the leftmost one", ("", "left")),
        ("right guy", ("guy", "right")),
        ("GUY ON THE LEFT", ("guy", "left")),
        ("man on far left in red shirt", ("man in red shirt", "left")),
        ("black car on the right hand side", ("black car", "right")),
        ("bowl on the right side of the picture", ("bowl", "right")),
        ("top left pizza", ("pizza", "top", "left")),
        ("the bottom right corner", ("", "bottom", "right")),
        ("bowl bottom", ("bowl", "bottom")),
        ("top shelf", ("shelf", "top")),
        ("lower left corner of the image", ("", "bottom", "left")),
        ("middle zebra", ("zebra", "middle")),
        ("cat in the middle of the picture", ("cat", "middle")),
        ("the dog in the front", ("dog", "front")),
        ("person in the background", ("person", "back")),
        ("man in front of us", ("man", "front")),
        ("biggest elephant", ("elephant", "biggest")),
        ("largest of the two", ("", "biggest")),
        ("broccoli closest to the camera", ("broccoli", "biggest")),
        ("giraffe further away from camera", ("giraffe", "smallest")),
        ("on the left, a man", ("man", "left")),
        ("cup below", ("cup", "bottom")),
        ("left-hand man", ("man", "left")),
        ("right hand person", ("person", "right")),
        ("the lefthand guy", ("guy", "left")),
        ("bowl on the right-hand side", ("bowl", "right")),
        ("right hand side bowl", ("bowl", "right")),
        ("the left hand corner", ("", "left")),
        ("man on L side", ("man", "left")),
        ("R side", ("", "right")),
        ("the leftmost of the two men", ("men", "left")),
        ("topmost of the books", ("books", "top")),
    ],
)
def test_positions_leave_the_text_of_the_thing(text, expected):
    assert shown(parse_expression(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cup to the left of the plate", ("cup", ("left of", ("plate",)))),
        ("car on left side of the road", ("car", ("left of", ("road",)))),
        ("the grey suitcase behind a blue suitcase", ("grey suitcase", ("behind", ("blue suitcase",)))),
        ("the bus that is in front of the truck", ("bus", ("in front of", ("truck",)))),
        ("hat on top of the man's head", ("hat", ("above", ("man's head",)))),
        ("kid inside of the box", ("kid", ("inside", ("box",)))),
        ("laptop bigger than the phone", ("laptop", ("bigger than", ("phone",)))),
        ("to the right of the tv", ("", ("right of", ("tv",)))),
        ("the boy left of the girl right of the dog", ("boy", ("left of", ("girl", ("right of", ("dog",)))))),
        ("person standing behind the man on the left", ("person standing", ("behind", ("man", "left")))),
        ("the bus on the left behind the car", ("bus", "left", ("behind", ("car",)))),
        (
            "the plate above the fork and to the left of the biggest knife",
            ("plate", ("above", ("fork",)), ("left of", ("knife", "biggest"))),
        ),
        # What follows the clause is said of the first thing again.
        (
            "the person standing to the right of the boy is not wearing a hat",
            ("person standing is not wearing a hat", ("right of", ("boy",))),
        ),
    ],
)
def test_relations_have_a_thing_of_their_own(text, expected):
    assert shown(parse_expression(text)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "suitcase next to car wheel",
        "second guy from the right",
        "2nd row from top, third from left",
        "chair closest to the window",
        "person walking not beneath an umbrella",
        "chair not on the left",
        "knife that isn't on the left side",
        "person with left hand up",
        "left hand holding a cup",
        "right hand",
        "left handed batter",
        "right hand end of the bench",
        "lady on his right",
        "elephant facing left",
        "man sitting right next to the door",
        "person with sunglasses and a white top",
        "girl in tank top with hat",
        "zebra in the middle of the field",
        "left half of the sandwich",
        "top of the fridge",
        "person holding the bigger umbrella",
        "person outside the middle window",
        "laptop between two monitors",
        "food left over",
        "lady w back to us",
    ],
)
def test_what_is_no_place_of_the_thing_stays_text(text):
    phrase = parse_expression(f"a {text}")
    assert not phrase.is_spatial and phrase.text == text


def test_odd_text_is_read():
    assert shown(parse_expression("")) == ("",)
    assert shown(parse_expression("?!")) == ("",)
    assert shown(parse_expression("La tasse à café, “left”")) == ("la tasse à café", "left")
    assert parse_expression("Cup  to the\tLEFT of\nthe plate.").relations[0][0] == "left of"
    assert parse_expression("left of").positions == ("left",)


# What hands found in the expressions of refcocos-mini, of which the rest has no spatial word that the parser reads.
SPATIAL = {
    "the bottle with light orange liquor inside on the right hand side of a green bottle": (
        "bottle with light orange liquor inside",
        ("right of", ("green bottle",)),
    ),
    "the person wearing white walking in front of a car": ("person wearing white walking", ("in front of", ("car",))),
    "the person behind the lady in orange": ("person", ("behind", ("lady in orange",))),
    "the person standing to the right of the boy is not wearing a hat or holding a trophy": (
        "person standing is not wearing a hat or holding a trophy",
        ("right of", ("boy",)),
    ),
    "the bird in front of a bear and not next to a tree": ("bird and not next to a tree", ("in front of", ("bear",))),
    "the grey suitcase behind a blue suitcase": ("grey suitcase", ("behind", ("blue suitcase",))),
}


@pytest.mark.slow
def test_real_expressions_are_read_as_a_person_reads_them():
    path = SHARED / "refcocos-mini" / "refcocos_val2017_subset.json"
    if not path.is_file():
        pytest.skip(f"needs {path.name} in the shared data")
    texts = [entry["expression"] for entry in json.loads(path.read_text())]
    assert len(texts) == 35
    found = {text: shown(parse_expression(text)) for text in texts if parse_expression(text).is_spatial}
    assert found == SPATIAL


# A row of three equal boxes, a big one below, and a small one inside the first.
BOXES = np.array([[0, 0, 20, 20], [40, 0, 60, 20], [80, 0, 100, 20], [30, 50, 90, 100], [5, 5, 10, 10]])
WIDTH = 100


def even(text):
    return np.full(len(BOXES), 1 / len(BOXES))


def naive(name, one, other):
    centre, other_centre = (one[:2] + one[2:]) / 2, (other[:2] + other[2:]) / 2
    area, other_area = np.prod(one[2:] - one[:2]), np.prod(other[2:] - other[:2])
    if name == "inside":
        shared = 1
        for axis in (0, 1):
            shared *= max(min(one[axis + 2], other[axis + 2]) - max(one[axis], other[axis]), 0)
        return shared / area
    return {
        "left": centre[0] < other_centre[0],
        "right": centre[0] > other_centre[0],
        "above": centre[1] < other_centre[1],
        "below": centre[1] > other_centre[1],
        "bigger": area > other_area,
        "smaller": area < other_area,
        "middle": abs(centre[0] - WIDTH / 2) < abs(other_centre[0] - WIDTH / 2),
    }[name]


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("left of", "left"),
        ("right of", "right"),
        ("above", "above"),
        ("behind", "above"),
        ("below", "below"),
        ("in front of", "below"),
        ("bigger than", "bigger"),
        ("smaller than", "smaller"),
        ("inside", "inside"),
    ],
)
def test_relations_of_boxes_are_those_of_a_loop(name, meaning):
    expected = [[float(naive(meaning, one, other)) for other in BOXES] for one in BOXES]
    assert np.allclose(RELATIONS[name](BOXES.astype(float), WIDTH), expected)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("left", "left"),
        ("right", "right"),
        ("top", "above"),
        ("back", "above"),
        ("bottom", "below"),
        ("front", "below"),
        ("middle", "middle"),
        ("biggest", "bigger"),
        ("smallest", "smaller"),
    ],
)
def test_positions_of_boxes_are_those_of_a_loop(name, meaning):
    expected = [[float(naive(meaning, one, other)) for other in BOXES] for one in BOXES]
    assert np.allclose(POSITIONS[name](BOXES.astype(float), WIDTH), expected)


def test_probabilities_follow_the_stated_rule():
    chances = {
        "cup": np.array([0.4, 0.3, 0.2, 0.05, 0.05]),
        "plate": np.array([0.1, 0.1, 0.1, 0.6, 0.1]),
    }
    phrase = parse_expression("top cup left of the biggest plate")
    assert shown(phrase) == ("cup", "top", ("left of", ("plate", "biggest")))
    found = spatial_probabilities(phrase, BOXES, WIDTH, chances.__getitem__)
    plate = np.array(
        [
            chances["plate"][i] * sum(chances["plate"][j] * naive("bigger", BOXES[i], BOXES[j]) for j in range(5))
            for i in range(5)
        ]
    )
    plate /= plate.sum()
    cup = np.array(
        [chances["cup"][i] * sum(plate[j] * naive("left", BOXES[i], BOXES[j]) for j in range(5)) for i in range(5)]
    )
    cup /= cup.sum()
    cup = np.array([cup[i] * sum(cup[j] * naive("above", BOXES[i], BOXES[j]) for j in range(5)) for i in range(5)])
    assert np.allclose(found, cup / cup.sum())


@pytest.mark.parametrize(
    ("text", "best"),
    [
        ("leftmost box", 4),
        ("box on the right", 2),
        ("the middle one", 1),
        ("biggest thing", 3),
        ("smallest", 4),
        ("the one at the bottom", 3),
    ],
)
def test_of_equally_probable_boxes_the_place_decides(text, best):
    assert np.argmax(spatial_probabilities(parse_expression(text), BOXES, WIDTH, even)) == best


def test_a_factor_that_leaves_nothing_is_left_out():
    alone = np.array([[0, 0, 10, 10]])
    found = spatial_probabilities(parse_expression("left cup above the plate"), alone, 20, lambda text: np.ones(1))
    assert found.tolist() == [1.0]
    # All mass is on the rightmost box, of which none is to the right.
    certain = np.array([0.0, 0, 1, 0, 0])
    found = spatial_probabilities(parse_expression("left cup"), BOXES[:3], WIDTH, lambda text: certain[:3])
    assert found.tolist() == [0, 0, 1]
