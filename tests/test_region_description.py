# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Composed region texts: every fact in them is checked against images that were drawn to have it."""

import re

import numpy as np
import pytest

from processing_pixclip.region_colours import (
    COLOUR_NAMES,
    measure_colours,
    name_pixels,
    srgb_to_lab,
)
from processing_pixclip.region_description import describe_region, describe_regions
from processing_pixclip.region_nouns import noun_of


HEIGHT, WIDTH = 120, 180
RED, BLUE, GREEN, WHITE = (200, 20, 20), (40, 70, 180), (40, 120, 40), (255, 255, 255)


def draw(*rectangles):
    """An image and one mask a rectangle (x1, y1, x2, y2, colour) on white."""
    image = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    masks = []
    for x1, y1, x2, y2, colour in rectangles:
        image[y1:y2, x1:x2] = colour
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[y1:y2, x1:x2] = True
        masks.append(mask)
    return image, masks


def text_of(rectangle, category="kite"):
    image, masks = draw(rectangle)
    return describe_region(image, masks, [category], 0).text


@pytest.mark.parametrize(
    "box, place",
    [
        ((10, 10, 40, 30), "in the top left"),
        ((75, 10, 105, 30), "at the top centre"),
        ((140, 10, 170, 30), "in the top right"),
        ((10, 50, 40, 70), "on the left of"),
        ((75, 50, 105, 70), "in the centre"),
        ((140, 50, 170, 70), "on the right of"),
        ((10, 90, 40, 110), "in the bottom left"),
        ((75, 90, 105, 110), "at the bottom centre"),
        ((140, 90, 170, 110), "in the bottom right"),
    ],
)
def test_place_is_that_of_the_mask(box, place):
    assert place in text_of((*box, RED))


@pytest.mark.parametrize(
    "box, edges",
    [
        ((0, 40, 40, 70), "the left edge"),
        ((150, 40, 180, 70), "the right edge"),
        ((60, 0, 90, 30), "the top edge"),
        ((60, 100, 90, 120), "the bottom edge"),
        ((0, 100, 40, 120), "the left and bottom edges"),
    ],
)
def test_touched_edges_are_named_and_no_others(box, edges):
    assert f"is cut off by {edges}." in text_of((*box, RED))


def test_a_region_inside_is_not_said_to_be_cut_off():
    text = text_of((50, 40, 90, 70, RED))
    assert "cut off" not in text
    assert "clear of all edges" in text or "wholly inside the" in text


def test_a_region_that_ends_just_short_of_an_edge_is_called_neither():
    text = text_of((3, 40, 40, 70, RED))
    assert not re.search(r"cut off|clear of|wholly inside", text)


def test_whole_photo():
    text = text_of((0, 0, WIDTH, HEIGHT, RED))
    assert "about 100 percent" in text
    assert "all of the width and all of the height" in text
    assert "all four edges" in text


@pytest.mark.parametrize(
    "box, shapes",
    [
        ((80, 10, 95, 110), ["much taller than wide", "a tall, narrow shape"]),
        ((80, 40, 100, 68), ["somewhat taller than wide", "higher than it is wide"]),
        ((80, 40, 110, 70), ["about as tall as it is wide", "roughly equal in width and height"]),
        ((80, 40, 120, 70), ["somewhat wider than tall", "broader than it is high"]),
        ((30, 50, 150, 70), ["much wider than tall", "a long, low shape"]),
    ],
)
def test_shape_uses_pixels_not_fractions_of_an_oblong_photo(box, shapes):
    assert any(shape in text_of((*box, RED)) for shape in shapes)


def test_a_large_region_is_only_mainly_at_its_place():
    assert "mainly in the centre of" in text_of((20, 50, 160, 70, RED))
    assert "mainly" not in text_of((75, 50, 105, 70, RED))


def test_size_and_extent():
    text = text_of((45, 30, 135, 90, RED))
    assert "about 25 percent" in text
    assert "about half of the width and about half of the height" in text


@pytest.mark.parametrize(
    "other, relation",
    [
        ((130, 45, 160, 75), "to the left of"),
        ((20, 45, 50, 75), "to the right of"),
        ((75, 90, 105, 118), "above"),
        ((75, 2, 105, 30), "below"),
        ((140, 90, 170, 118), "above and to the left of"),
        ((10, 2, 40, 30), "below and to the right of"),
    ],
)
def test_relation_holds_in_both_directions(other, relation):
    image, masks = draw((80, 50, 100, 70, RED), (*other, BLUE))
    kite, truck = describe_regions(image, masks, ["kite", "truck"])
    assert f" {relation} a blue truck" in kite.text
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    inverse = re.sub("left|right|above|below", lambda match: opposite[match[0]], relation)
    assert f" {inverse} a red kite" in truck.text


def test_a_mirrored_photo_swaps_left_and_right_only():
    image, masks = draw((20, 50, 40, 70, RED), (130, 40, 160, 80, BLUE))
    mirrored_masks = [mask[:, ::-1] for mask in masks]
    text = describe_region(image, masks, ["kite", "truck"], 0).text
    mirrored = describe_region(image[:, ::-1], mirrored_masks, ["kite", "truck"], 0).text
    assert "on the left of" in text and "to the left of a blue truck" in text and "right" not in text
    assert "on the right of" in mirrored and "to the right of a blue truck" in mirrored and "left" not in mirrored


def test_region_inside_another_is_surrounded():
    image, masks = draw((30, 20, 150, 100, GREEN), (80, 50, 100, 70, RED))
    masks[0] &= ~masks[1]
    grass, kite = describe_regions(image, masks, ["grass-merged", "kite"])
    assert "surrounded by green grass" in kite.text
    assert "surrounded by" not in grass.text


def test_region_between_another_and_the_photos_edges_is_not_surrounded():
    image, masks = draw((0, 0, WIDTH, 60, GREEN), (0, 60, WIDTH, HEIGHT, RED))
    assert "surrounded" not in describe_region(image, masks, ["grass-merged", "bear"], 0).text


def test_touching_neighbours_in_no_clear_direction():
    image, masks = draw((60, 40, 120, 80, GREEN), (65, 45, 118, 85, RED))
    masks[0] &= ~masks[1]
    assert "touching a red kite" in describe_region(image, masks, ["truck", "kite"], 0).text


def test_order_from_the_left_does_not_depend_on_the_order_of_the_masks():
    image, masks = draw((130, 50, 150, 90, RED), (20, 50, 40, 90, RED), (80, 50, 100, 90, RED))
    texts = [description.text for description in describe_regions(image, masks, ["person"] * 3)]
    for text, ordinal in zip(texts, ["third", "first", "second"]):
        assert f"the {ordinal} of three people from the left" in text


def test_order_from_the_top_where_regions_are_stacked():
    image, masks = draw((80, 10, 100, 30, RED), (81, 80, 101, 100, RED))
    first, second = describe_regions(image, masks, ["book", "book"])
    assert "the first of two books from the top" in first.text
    assert "the second of two books from the top" in second.text


def test_order_says_that_a_group_is_not_counted():
    image, masks = draw((20, 50, 40, 90, RED), (80, 50, 100, 90, RED))
    text = describe_region(image, masks, ["person", "person"], 0, grouped=["person"]).text
    assert "the first of two people from the left, not counting a larger group of people" in text


@pytest.mark.parametrize("count", [2, 15, 30])
def test_regions_that_differ_in_place_only_get_different_texts(count):
    rectangles = [(2 + 5 * i, 50, 5 + 5 * i, 60, RED) for i in range(count)]
    image, masks = draw(*rectangles)
    texts = [description.text for description in describe_regions(image, masks, ["bird"] * count)]
    assert len(set(texts)) == count


def test_regions_with_one_mask_get_different_texts():
    image, masks = draw((20, 50, 40, 90, RED))
    texts = [d.text for d in describe_regions(image, masks * 4, ["bird", "bird", "kite", None])]
    assert len(set(texts)) == 4


def test_same_input_same_text_and_wording_varies():
    image, masks = draw(*[(5 + 20 * i, 10 + 5 * i, 15 + 20 * i, 40 + 6 * i, RED) for i in range(8)])
    categories = ["kite", "truck", "dog", "cat", "bus", "cup", "bed", "vase"]
    first = describe_regions(image, masks, categories)
    assert first == describe_regions(image, masks, categories)
    assert len({re.search("takes up|covers|fills", d.text)[0] for d in first}) > 1
    assert len({re.search("photo|picture|image", d.text)[0] for d in first}) > 1


@pytest.mark.parametrize("seed", range(20))
def test_length_is_35_to_80_words(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(1, 12))
    names = ["person", "potted plant", "scissors", "wall-brick", "grass-merged", "traffic light", None]
    rectangles = []
    for _ in range(count):
        x, y = generator.integers(0, WIDTH - 5), generator.integers(0, HEIGHT - 5)
        width, height = generator.integers(2, 80, 2)
        rectangles.append((x, y, x + width, y + height, generator.integers(0, 256, 3)))
    image, masks = draw(*rectangles)
    noisy = np.clip(image + generator.integers(-40, 40, image.shape), 0, 255).astype(np.uint8)
    categories = [names[generator.integers(len(names))] for _ in range(count)]
    for description in describe_regions(noisy, masks, categories, grouped=["person"]):
        assert 35 <= len(description.text.split()) <= 80, description.text
        assert description.text.endswith(".") and description.text[0].isupper()


@pytest.mark.parametrize(
    "rgb, name",
    [
        ((10, 10, 10), "black"),
        ((70, 70, 70), "dark grey"),
        ((128, 128, 128), "grey"),
        ((190, 190, 190), "light grey"),
        ((250, 250, 250), "white"),
        ((220, 20, 20), "red"),
        ((110, 10, 10), "dark red"),
        ((255, 150, 0), "orange"),
        ((177, 70, 22), "orange"),
        ((140, 90, 50), "brown"),
        ((139, 69, 19), "brown"),
        ((215, 195, 160), "beige"),
        ((240, 220, 40), "yellow"),
        ((40, 140, 40), "green"),
        ((20, 70, 20), "dark green"),
        ((0, 140, 140), "turquoise"),
        ((30, 60, 180), "blue"),
        ((140, 190, 235), "light blue"),
        ((10, 15, 80), "dark blue"),
        ((140, 40, 160), "purple"),
        ((255, 180, 200), "pink"),
    ],
)
def test_named_colours(rgb, name):
    image = np.full((12, 12, 3), rgb, dtype=np.uint8)
    [colour] = measure_colours(image, np.ones((12, 12), dtype=bool))
    assert colour.shade == name and colour.share == 1.0


def test_every_colour_gets_a_name():
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    lab = srgb_to_lab(cube)
    names = name_pixels(lab)
    assert set(names) == set(range(len(COLOUR_NAMES)))
    # `np.select` would call a pixel that no rule takes black.
    assert lab[names == COLOUR_NAMES.index("black"), 0].max() < 26


def test_lab_reference_values():
    lab = srgb_to_lab(np.array([[255, 0, 0], [0, 0, 255], [119, 119, 119]], dtype=np.uint8))
    expected = [[53.24, 80.09, 67.20], [32.30, 79.19, -107.86], [50.03, 0.0, 0.0]]
    np.testing.assert_allclose(lab, expected, atol=0.02)


def test_two_main_colours_and_a_speck():
    image, masks = draw((40, 40, 100, 100, (120, 70, 30)))
    image[40:60, 40:100] = WHITE
    image[60:63, 40:60] = BLUE
    text = describe_region(image, masks, ["dog"], 0)
    assert text.object_text == "a brown and white dog"
    assert "blue" not in text.text


def test_colour_is_that_of_the_region_not_of_its_surroundings():
    image, masks = draw((20, 20, 80, 80, RED))
    image[~masks[0]] = BLUE
    assert describe_region(image, masks, ["kite"], 0).object_text == "a red kite"


def test_skin_is_no_colour_of_a_person():
    image, masks = draw((40, 20, 100, 100, (200, 150, 120)))
    assert describe_region(image, masks, ["person"], 0).object_text == "a person"
    image[60:100, 40:100] = BLUE
    assert describe_region(image, masks, ["person"], 0).object_text == "a person in blue tones"


@pytest.mark.parametrize(
    "category, phrase, plural",
    [
        ("scissors", "a pair of red scissors", "pairs of scissors"),
        ("wall-brick", "a red brick wall", "brick walls"),
        ("grass-merged", "red grass", "areas of grass"),
        ("sky-other-merged", "red sky", "areas of sky"),
        ("stairs", "a flight of red stairs", "flights of stairs"),
        ("person", "a red person", "people"),
        ("bus", "a red bus", "buses"),
        ("door-stuff", "a red door", "doors"),
        ("tv", "a red TV", "TVs"),
        ("traffic_light", "a red traffic light", "traffic lights"),
        (None, "a red object", "objects"),
    ],
)
def test_nouns(category, phrase, plural):
    noun = noun_of(category)
    assert noun.phrase("red") == phrase and noun.plural == plural


@pytest.mark.parametrize(
    "category, phrase",
    [("umbrella", "an umbrella"), ("unicorn", "a unicorn"), ("oven", "an oven"), ("orange", "an orange fruit")],
)
def test_articles(category, phrase):
    assert noun_of(category).phrase() == phrase


def test_bad_input_names_the_item():
    image, masks = draw((20, 20, 80, 80, RED))
    with pytest.raises(ValueError, match="2 masks but 1 categories"):
        describe_regions(image, masks * 2, ["kite"])
    with pytest.raises(ValueError, match=r"masks\[1\] is empty"):
        describe_regions(image, [masks[0], np.zeros_like(masks[0])], ["kite", "kite"])
    with pytest.raises(ValueError, match=r"masks\[0\] has no pixel of 0.5"):
        describe_regions(image, [masks[0] * np.float32(0.3)], ["kite"])
    with pytest.raises(ValueError, match="uint8"):
        describe_regions(image / 255.0, masks, ["kite"])
    with pytest.raises(ValueError, match="index -1"):
        describe_region(image, masks, ["kite"], -1)
    with pytest.raises(ValueError, match="letter or digit"):
        describe_regions(image, masks, ["--"])
