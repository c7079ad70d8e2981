# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What can be measured of the objects of a composed scene, told in words: true texts and hard negatives."""

import functools
from dataclasses import dataclass, replace

import numpy as np

from processing_pixclip.region_colours import COLOUR_NAMES, measure_colours
from processing_pixclip.region_nouns import indefinite_article, noun_of


# Visible share of the scene. Between two sizes lies a gap in which an object has neither.
SIZES = {"small": (0.0, 0.033), "medium-sized": (0.044, 0.082), "large": (0.105, 1.0)}
PLACES = {
    "in the top left": (0, 0),
    "at the top": (0, 1),
    "in the top right": (0, 2),
    "on the left": (1, 0),
    "in the centre": (1, 1),
    "on the right": (1, 2),
    "in the bottom left": (2, 0),
    "at the bottom": (2, 1),
    "in the bottom right": (2, 2),
}
# Axis (0 is x, 1 is y) and side of the object as seen from its neighbour.
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
ATTRIBUTES = ("colour", "size", "place", "relation")
# Of a person the clothes have a colour; these are as well those of skin and hair.
SKIN_COLOURS = ("brown", "beige", "pink", "orange")

# Share of the visible pixels: what has at least the first is called by that colour, what has less than the second is not.
CLEAR_COLOUR, NO_COLOUR = 0.4, 0.06
# Shares of the scene's side.
PLACE_MARGIN, RELATION_GAP = 0.02, 0.12


@dataclass(frozen=True)
class SceneObject:
    """
    What is measured of one object, over its visible pixels.

    Attributes:
        category: Its COCO category.
        colours: Share of each colour name.
        share: Its share of the scene.
        centre: Mean x and y of its pixels, 0 to 1.
    """

    category: str
    colours: dict[str, float]
    share: float
    centre: tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """
    One statement about an object: `kind` is one of `ATTRIBUTES` or "category", `value` one of its words, and
    `neighbour` the index of the object that a relation is to.
    """

    kind: str
    value: str
    neighbour: int | None = None


def measure_object(pixels: np.ndarray, visible: np.ndarray, category: str) -> SceneObject:
    """
    Measures an object in the finished scene.

    Args:
        pixels: The scene, (H, W, 3), uint8.
        visible: The object's visible pixels, (H, W), bool, not empty.
        category: Its category.
    """
    rows, columns = np.nonzero(visible)
    height, width = visible.shape
    # With a margin, because the edge of what is measured does not count as a border of the object.
    window = tuple(slice(max(places.min() - 2, 0), places.max() + 3) for places in (rows, columns))
    colours = measure_colours(pixels[window], visible[window])
    return SceneObject(
        category=category,
        colours={colour.name: colour.share for colour in colours},
        share=len(rows) / visible.size,
        centre=((columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height),
    )


def judge(claim: Claim, index: int, objects: list[SceneObject]) -> bool | None:
    """Whether a claim about object `index` is true, false, or neither clearly (`None`)."""
    thing = objects[index]
    if claim.kind == "category":
        return claim.value == thing.category
    if claim.kind == "colour":
        share = thing.colours.get(claim.value, 0.0)
        second = max([other for name, other in thing.colours.items() if name != claim.value], default=0.0)
        clear = share >= CLEAR_COLOUR and share >= 1.5 * second
        return True if clear else False if share < NO_COLOUR else None
    if claim.kind == "size":
        sizes = [name for name, (low, high) in SIZES.items() if low <= thing.share <= high]
        return claim.value == sizes[0] if sizes else None
    if claim.kind == "place":
        # How far the centre lies inside the cell along each axis, negative outside of it.
        row, column = PLACES[claim.value]
        inside = min(
            min(position - third / 3, (third + 1) / 3 - position)
            for position, third in zip(thing.centre, (column, row))
        )
        return True if inside >= PLACE_MARGIN else False if inside <= -PLACE_MARGIN else None
    if claim.neighbour == index:
        return None
    axis, side = RELATIONS[claim.value]
    apart = [mine - its for mine, its in zip(thing.centre, objects[claim.neighbour].centre)]
    along = side * apart[axis]
    if along >= RELATION_GAP and along >= 1.2 * abs(apart[1 - axis]):
        return True
    return False if along <= -PLACE_MARGIN else None


def colours_of(category: str) -> tuple[str, ...]:
    """The colours that an object of this category can be called by."""
    return tuple(name for name in COLOUR_NAMES if category != "person" or name not in SKIN_COLOURS)


def true_claims(index: int, objects: list[SceneObject]) -> dict[str, Claim]:
    """The clearly true claims about object `index`, at most one of a kind; the relation is to the nearest neighbour."""
    candidates = [Claim("colour", name) for name in colours_of(objects[index].category)]
    candidates += [Claim("size", name) for name in SIZES]
    candidates += [Claim("place", name) for name in PLACES]
    categories = [thing.category for thing in objects]
    # "the dog" has to be one of a kind.
    neighbours = [i for i, category in enumerate(categories) if i != index and categories.count(category) == 1]
    here = np.array(objects[index].centre)
    neighbours.sort(key=lambda i: float(np.abs(here - objects[i].centre).sum()))
    candidates += [Claim("relation", name, neighbour) for neighbour in neighbours for name in RELATIONS]
    claims: dict[str, Claim] = {}
    for claim in candidates:
        if claim.kind not in claims and judge(claim, index, objects):
            claims[claim.kind] = claim
    return claims


def false_claims(claim: Claim, index: int, objects: list[SceneObject]) -> list[Claim]:
    """The same claim with each other value that is clearly false of object `index`."""
    colours = colours_of(objects[index].category)
    values = {"colour": colours, "size": SIZES, "place": PLACES, "relation": RELATIONS}[claim.kind]
    others = [replace(claim, value=value) for value in values if value != claim.value]
    return [other for other in others if judge(other, index, objects) is False]


def tells_apart(claims: list[Claim], index: int, objects: list[SceneObject]) -> bool:
    """Whether each other object of the scene has another category or makes one of the claims clearly false."""
    claims = [Claim("category", objects[index].category), *claims]
    return all(
        any(judge(claim, other, objects) is False for claim in claims)
        for other in range(len(objects))
        if other != index
    )


@functools.cache
def noun_phrase(category: str, adjectives: str = "", article: str | None = None) -> str:
    """`"a small red bus"`, or with `article="the"` `"the small red bus"`."""
    noun = noun_of(category)
    phrase = noun.phrase(adjectives)
    if article is None:
        return phrase
    bare = phrase.removeprefix(indefinite_article(phrase.split(" ", 1)[1]) + " ") if noun.countable else phrase
    return f"{article} {bare}"


def region_text(claims: list[Claim], index: int, objects: list[SceneObject]) -> str:
    """
    The claims about object `index` as one text: "a small red bus at the top, left of the dog".

    Example:
        >>> bus = SceneObject("bus", {"red": 1.0}, 0.02, (0.5, 0.1))
        >>> region_text([Claim("colour", "red"), Claim("place", "at the top")], 0, [bus])
        'a red bus at the top'
    """
    told = {claim.kind: claim for claim in claims}
    category = objects[index].category
    adjectives = ("size",) if category == "person" else ("size", "colour")
    text = noun_phrase(category, " ".join(told[kind].value for kind in adjectives if kind in told))
    if category == "person" and "colour" in told:
        text += f" dressed in {told['colour'].value}"
    if "place" in told:
        text += f" {told['place'].value}"
    if "relation" in told:
        relation = told["relation"]
        text += f", {relation.value} {noun_phrase(objects[relation.neighbour].category, article='the')}"
    return text


def swap_claim(claims: list[Claim], wrong: Claim) -> list[Claim]:
    """The claims with the one of the kind of `wrong` replaced by it."""
    return [wrong if claim.kind == wrong.kind else claim for claim in claims]


def hard_negative_claims(
    claims: list[Claim], index: int, objects: list[SceneObject], most: int, rng: np.random.Generator
) -> list[Claim]:
    """At most `most` clearly false claims, each in place of one of `claims`; the attributes take turns."""
    choices = []
    for place in rng.permutation(len(claims)):
        false = false_claims(claims[place], index, objects)
        choices.append([false[i] for i in rng.permutation(len(false))])
    turns = max(map(len, choices), default=0)
    return [false[turn] for turn in range(turns) for false in choices if turn < len(false)][:most]


def vocabulary(categories: list[str]) -> list[str]:
    """Every word and mark that texts about these categories can hold, sorted."""
    texts = [*COLOUR_NAMES, *SIZES, *PLACES, *RELATIONS, "a an the and dressed in", ", ."]
    texts += [noun_of(category).singular for category in categories]
    return sorted({word for text in texts for word in text.split()})
