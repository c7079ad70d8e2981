# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What a run has done, in numbers that add up over shards, with samples that do not hang on their order."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .config import STAGES
from .records import ImageResult, Provenance, RegionResult, SourceImage, SourceRegion


if TYPE_CHECKING:
    from .sources import SourceError


NUM_SAMPLES = 20
"""Accepted regions that a summary shows."""

NUM_REJECT_SAMPLES = 2
"""Rejected regions that it shows of each stage and reason."""

LENGTH_STEP = 10
"""Words of one bar of the histogram of lengths."""

# What the source stage and readers drop regions for; a source of the user's own may have other reasons.
_DROPPED = {
    "aspect": "The longest side of its box is too long for the other.",
    "blank_phrase": "Its phrase is empty or not a part of the caption.",
    "border": "Too much of the outline of its box lies on the image's border.",
    "crowd": "It is a group that the source outlines as one.",
    "duplicate_crop": "It looks like an earlier region, in this image or another.",
    "duplicate_mask": "It covers about the same pixels as an earlier region of the image.",
    "empty_box": "Its box has no area, or covers no pixel by half.",
    "empty_mask": "Its mask has no pixel, or none was found in its box.",
    "low_score": "The source is not sure enough of it.",
    "malformed_box": "Its box is not x1, y1, x2, y2 within the image.",
    "malformed_mask": "Its mask cannot be read, or is not of the size of the image.",
    "malformed_region": "What the source holds of it is not of the form that the reader takes.",
    "malformed_score": "Its score is not a number from 0 to 1.",
    "no_mask_or_box": "It has neither a mask nor a box.",
    "over_max_regions": "The image has enough regions that are larger.",
    "too_large": "It covers too much of the image.",
    "too_small": "It covers too little of the image.",
    "unreadable_image": "The image cannot be read.",
    "unreadable_panoptic": "The picture that holds its mask cannot be read.",
}

# Of one text in a summary; it is there to be looked at.
_MAX_SHOWN = 1000
_SHOWN_NEGATIVES = 3


def summarise_shard(
    results: Sequence[ImageResult], errors: Sequence[SourceError] = (), seed: int = 0, seconds: float = 0.0
) -> dict[str, Any]:
    """Counts what became of the images and regions of a shard.

    Args:
        results: The images of the shard.
        errors: Its positions in the source without an image.
        seed: Which regions are shown as samples: those whose hash with it is smallest, in whatever order they come.
        seconds: Time that was spent on it.

    Returns:
        What JSON can hold:
            * `images`: positions of the source; `images_written`: with an accepted region; `source_errors`: by reason;
            * `regions`, `accepted`, and `rejected` by stage and reason, which add up;
            * `stages`: by stage the regions that `entered` and `left` it;
            * `models`: by stage and model `answers`, `attempts`, `prompt_tokens`, `completion_tokens`;
            * `prompts`: by stage and prompt hash the answers;
            * `words`: `total`, `min`, `max` and `histogram` (by lower bound, steps of `LENGTH_STEP`) of long texts;
            * `hard_negatives`, `captions`, `long_captions`: numbers of texts that are written;
            * `mask_sources`: accepted regions by where their mask is from; `licences`: written images by licence, `""`
              where there is none;
            * `first_answer`, `last_answer`: times, or `None`; `seconds`;
            * `samples`: accepted regions, `NUM_SAMPLES` at most; `reject_samples`: by stage and reason.

    Example:
        >>> from processing_pixclip.longgrit.records import ImageResult, RegionResult, SourceImage, SourceRegion
        >>> region = SourceRegion("7#0", (0.0, 0.0, 4.0, 4.0), mask_source="box", category="dog")
        >>> image = SourceImage("7", "7.jpg", {"path": "7.jpg"}, 8, 8, (region,))
        >>> summary = summarise_shard([ImageResult(image, [RegionResult("7#0", text="A dog in a meadow.")])])
        >>> summary["accepted"], summary["words"]["histogram"], summary["samples"][0]["region_id"]
        (1, {'0': 1}, '7#0')
    """
    summary = _empty()
    summary["images"] = len(results) + len(errors)
    summary["source_errors"] = dict(Counter(error.reason for error in errors))
    summary["seconds"] = seconds
    for result in results:
        _add_image(summary, result, seed)
    summary["samples"] = _first(summary["samples"], NUM_SAMPLES)
    return _sorted(summary)


def merge_summaries(summaries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Adds up summaries of shards; they may come one by one, and in any order.

    Args:
        summaries: What `summarise_shard` returned, or JSON made of it, all with the same seed.

    Returns:
        The summary of all of them.

    Example:
        >>> merge_summaries([summarise_shard([]), summarise_shard([])])["regions"]
        0
    """
    merged = _empty()
    for summary in summaries:
        _add(merged, summary)
        merged["samples"] = _first(merged["samples"], NUM_SAMPLES)
    return _sorted(merged)


def check_ended(result: ImageResult) -> dict[str, RegionResult]:
    """Results of an image's regions by their identifier.

    Raises:
        ValueError: If they are not one for each region that the source stage left in; names those that differ.

    Example:
        >>> check_ended(ImageResult(SourceImage("7", "7.jpg", {"path": "7.jpg"}, 8, 8), []))
        {}
    """
    awaited = sorted(region.region_id for region in result.image.regions if region.dropped is None)
    ended = sorted(end.region_id for end in result.regions)
    if awaited != ended:
        odd = sorted((Counter(awaited) - Counter(ended)) + (Counter(ended) - Counter(awaited)))
        raise ValueError(
            f"image {result.image.image_id!r} has {len(awaited)} regions to describe and {len(ended)} results; these have "
            f"none, or more than one, or are not its own: {odd[:10]}."
        )
    return {end.region_id: end for end in result.regions}


def dropped_region(region: SourceRegion, image: SourceImage) -> RegionResult:
    """How a region ended that the source stage dropped, with the reason in words.

    Example:
        >>> region = SourceRegion("7#0", (0.0, 0.0, 1.0, 1.0), mask_source="box", dropped="too_small")
        >>> dropped_region(region, SourceImage("7", "7.jpg", {"path": "7.jpg"}, 800, 800, (region,))).detail
        'It covers too little of the image.'
    """
    detail = _DROPPED.get(region.dropped, "The source left it out.")
    if region.dropped == "unreadable_image" and image.problem is not None:
        detail = image.problem
    return RegionResult(region.region_id, region.dropped, "source", detail)


def _empty() -> dict[str, Any]:
    numbers = ("images", "images_written", "regions", "accepted", "hard_negatives", "captions", "long_captions")
    mappings = ("source_errors", "rejected", "stages", "models", "prompts", "mask_sources", "licences")
    return {
        **dict.fromkeys(numbers, 0),
        **{key: {} for key in mappings},
        "words": {"total": 0, "min": None, "max": None, "histogram": {}},
        "seconds": 0.0,
        "first_answer": None,
        "last_answer": None,
        "samples": [],
        "reject_samples": {},
    }


def _add_image(summary: dict[str, Any], result: ImageResult, seed: int) -> None:
    image = result.image
    ended = check_ended(result)
    # The captions of an image are asked for once, for all of its regions.
    of_image = {entry.stage for entry in result.provenance}
    for entry in result.provenance:
        _add_answer(summary, entry)
    accepted = 0
    for region in image.regions:
        if region.dropped is not None:
            _add_region(summary, image, region, dropped_region(region, image), set(), seed)
        else:
            end = ended[region.region_id]
            accepted += end.reason is None
            _add_region(summary, image, region, end, of_image, seed)
    if accepted:
        summary["images_written"] += 1
        summary["captions"] += len(result.captions)
        summary["long_captions"] += len(result.long_captions)
        _count(summary["licences"], image.licence or "")


def _add_region(
    summary: dict[str, Any],
    image: SourceImage,
    region: SourceRegion,
    result: RegionResult,
    of_image: set[str],
    seed: int,
) -> None:
    summary["regions"] += 1
    entered = {"source", *of_image, *(entry.stage for entry in result.provenance)}
    if result.stage is not None:
        entered.add(result.stage)
    for stage in entered:
        counts = summary["stages"].setdefault(stage, {"entered": 0, "left": 0})
        counts["entered"] += 1
        counts["left"] += stage != result.stage
    for entry in result.provenance:
        _add_answer(summary, entry)
    sample = _sample(image, region, result, seed)
    if result.reason is not None:
        _count(summary["rejected"].setdefault(result.stage, {}), result.reason)
        samples = summary["reject_samples"].setdefault(result.stage, {})
        kept = [*samples.get(result.reason, []), sample]
        samples[result.reason] = _first(kept, NUM_REJECT_SAMPLES)
        return
    summary["accepted"] += 1
    summary["hard_negatives"] += len(result.hard_negatives)
    _count(summary["mask_sources"], region.mask_source)
    _add_length(summary["words"], len((result.text or "").split()))
    summary["samples"].append(sample)
    if len(summary["samples"]) >= 4 * NUM_SAMPLES:
        summary["samples"] = _first(summary["samples"], NUM_SAMPLES)


def _add_answer(summary: dict[str, Any], entry: Provenance) -> None:
    counts = summary["models"].setdefault(entry.stage, {}).setdefault(entry.model, {})
    _count(counts, "answers")
    for key in ("attempts", "prompt_tokens", "completion_tokens"):
        _count(counts, key, getattr(entry, key))
    _count(summary["prompts"].setdefault(entry.stage, {}), entry.prompt)
    _widen(summary, "first_answer", "last_answer", entry.time, entry.time)


def _add_length(words: dict[str, Any], length: int) -> None:
    words["total"] += length
    _widen(words, "min", "max", length, length)
    _count(words["histogram"], str(length // LENGTH_STEP * LENGTH_STEP))


def _widen(counts: dict[str, Any], low: str, high: str, least: Any, most: Any) -> None:
    counts[low] = min((value for value in (counts[low], least) if value is not None), default=None)
    counts[high] = max((value for value in (counts[high], most) if value is not None), default=None)


def _count(counts: dict[str, Any], key: str, number: float = 1) -> None:
    counts[key] = counts.get(key, 0) + number


def _sample(image: SourceImage, region: SourceRegion, result: RegionResult, seed: int) -> dict[str, Any]:
    identifier = f"{seed} {region.region_id}".encode("utf-8", "surrogatepass")
    sample = {
        "rank": hashlib.blake2b(identifier, digest_size=8).hexdigest(),
        "region_id": region.region_id,
        "image_id": image.image_id,
        "location": dict(image.location),
        "width": image.width,
        "height": image.height,
        "box": list(region.box),
        "mask": region.mask,
        "mask_source": region.mask_source,
        "category": region.category,
        "phrase": region.phrase,
        "object_text": _shown(result.object_text),
        "context_text": _shown(result.context_text),
        "text": _shown(result.text),
    }
    if result.reason is None:
        return {**sample, "hard_negatives": [_shown(text) for text in result.hard_negatives[:_SHOWN_NEGATIVES]]}
    return {**sample, "detail": _shown(result.detail)}


def _shown(text: str | None) -> str | None:
    return text if text is None or len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."


def _first(samples: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return heapq.nsmallest(number, samples, key=lambda sample: (sample["rank"], sample["region_id"]))


def _add(merged: dict[str, Any], summary: dict[str, Any]) -> None:
    for key, value in summary.items():
        if key == "reject_samples":
            for stage, by_reason in value.items():
                for reason, samples in by_reason.items():
                    of_stage = merged[key].setdefault(stage, {})
                    of_stage[reason] = _first([*of_stage.get(reason, []), *samples], NUM_REJECT_SAMPLES)
        elif key == "words":
            merged[key]["total"] += value["total"]
            _widen(merged[key], "min", "max", value["min"], value["max"])
            _add_counts(merged[key]["histogram"], value["histogram"])
        elif isinstance(value, list):
            merged[key] = [*merged[key], *value]
        elif isinstance(value, dict):
            _add_counts(merged[key], value)
        elif key not in ("first_answer", "last_answer"):
            merged[key] += value
    _widen(merged, "first_answer", "last_answer", summary["first_answer"], summary["last_answer"])


def _add_counts(merged: dict[str, Any], counts: dict[str, Any]) -> None:
    for key, value in counts.items():
        if isinstance(value, dict):
            _add_counts(merged.setdefault(key, {}), value)
        else:
            _count(merged, key, value)


def _sorted(summary: dict[str, Any]) -> dict[str, Any]:
    """The same with keys in an order that does not hang on that of the shards."""
    for key in ("rejected", "stages", "models", "prompts", "reject_samples"):
        summary[key] = {stage: summary[key][stage] for stage in _in_order(summary[key])}
    for key in ("rejected", "models", "prompts", "reject_samples"):
        summary[key] = {stage: dict(sorted(entries.items())) for stage, entries in summary[key].items()}
    for key in ("source_errors", "mask_sources", "licences"):
        summary[key] = dict(sorted(summary[key].items()))
    histogram = summary["words"]["histogram"]
    summary["words"]["histogram"] = {key: histogram[key] for key in sorted(histogram, key=int)}
    return summary


def _in_order(stages: Iterable[str]) -> Iterator[str]:
    order = ("source", *STAGES)
    yield from sorted(stages, key=lambda stage: (order.index(stage) if stage in order else len(order), stage))
