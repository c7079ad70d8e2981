# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Hard negatives of the built-in annotator: a text with one attribute exchanged for what is false of the region."""

from __future__ import annotations

import re

from ..region_colours import COLOUR_NAMES
from .rule_texts import Composition, Part, RegionTexts, Slot, absent_colours


_CORNER = re.compile(
    r"\b(?P<down>top|upper|bottom|lower)(?P<joint>[ -])(?P<across>left|right)"
    r"(?P<rest>(?: (?:corner|part|area))? of the (?:photo|picture|image))\b",
    re.IGNORECASE,
)


def false_rewrites(texts: RegionTexts, text: str, count: int) -> list[tuple[str, str]]:
    """Rewrites a text so that one attribute is wrong.

    Args:
        texts: The texts about the region.
        text: The text; one that the region's own texts do not make is searched for colours before its noun and corners of the photo,
            where these are true.
        count: Most rewrites.

    Returns:
        Pairs of what was changed and the text, all different. Attributes take turns.
    """
    composition = _composition_of(texts, text)
    slots = composition.slots()
    groups = list(slots)
    start = texts.wording.choose("negatives", range(len(groups))) if groups else 0
    groups = groups[start:] + groups[:start]
    found: dict[str, tuple[str, str]] = {text.casefold(): ("", "")}
    for number in range(max((len(slot.options) for slot in slots.values()), default=0)):
        for group in groups:
            slot = slots[group]
            if number < len(slot.options) and len(found) <= count:
                changed = f"{group.split(':')[0]}: {slot.text} to {slot.options[number]}"
                rewrite = composition.text({group: number})
                found.setdefault(rewrite.casefold(), (changed, rewrite))
    return list(found.values())[1:]


def _composition_of(texts: RegionTexts, text: str) -> Composition:
    place = texts.context_caption
    for own in (texts.description, texts.object_caption + place, texts.object_caption):
        if own.text() == text:
            return own
    # What a model said of its look may stand before.
    before = text.removesuffix(place.text())
    if before == text:
        return read_composition(texts, text)
    return read_composition(texts, before.rstrip()) + place if before else place


def read_composition(texts: RegionTexts, text: str) -> Composition:
    """Finds the attributes of a text from elsewhere that can be checked.

    Args:
        texts: The texts about the region.
        text: The text.

    Returns:
        A composition with the same text.
    """
    facts = texts.facts
    head = re.escape(texts.noun.singular.split()[-1])
    shares = {colour.name: colour.share for colour in facts.region.colours}
    found: list[tuple[int, int, Slot]] = []
    names = "|".join(name for name in COLOUR_NAMES if shares.get(name, 0.0) >= 0.15)
    if names and not facts.is_box:
        for match in re.finditer(rf"\b({names})(?=(?:[ ,-]+\w+){{0,3}}?[ -]{head}\b)", text, re.IGNORECASE):
            name = match[0].lower()
            slot = Slot(match[0], f"colour:{name}", absent_colours(facts, texts.wording, name))
            found.append((match.start(), match.end(), slot))
    for match in _CORNER.finditer(text):
        slot = _corner(texts, match)
        if slot is not None:
            found.append((match.start(), match.end(), slot))
    parts: list[Part] = []
    end = 0
    for start, stop, slot in sorted(found, key=lambda item: item[0]):
        parts += [text[end:start], slot]
        end = stop
    return Composition([[*parts, text[end:]]], verbatim=True)


def _corner(texts: RegionTexts, match: re.Match[str]) -> Slot | None:
    downs = ("upper", "lower") if match["down"].lower() in ("upper", "lower") else ("top", "bottom")
    place = ("top" if match["down"].lower() in ("top", "upper") else "bottom", match["across"].lower())
    if texts.region.thirds != place:
        return None
    corners = [other for other in texts.false_places if "middle" not in other and "centre" not in other]
    words = [f"{downs[down == 'bottom']}{match['joint']}{across}{match['rest']}" for down, across in corners]
    return Slot(match[0], "place", tuple(words))
