# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Protocols: fields are read and checked, and every one of every benchmark can be set, is explained and is stored."""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Literal

import pytest

from processing_pixclip.evaluation.protocols import Protocol, bounded
from processing_pixclip.evaluation.region_classification import view_summaries
from processing_pixclip.evaluation.region_views import BLUR_RADIUS, BOX_MARGIN, PADDING
from processing_pixclip.evaluation.registry import (
    BENCHMARKS,
    describe_presets,
    describe_protocol,
    get_protocol,
    list_benchmarks,
    protocol_fields,
)


PRESETS = [(name, preset) for name, benchmark in BENCHMARKS.items() for preset in benchmark.presets]


@dataclass(frozen=True)
class EveryType(Protocol):
    """Fields of all types.

    Attributes:
        text: A text.
            Of two lines.
        share: A share.
        ranks: Whole numbers.
        names: Texts.
        rule: One of three.

    Example:
        >>> EveryType().text
        'a'
    """

    text: str = "a"
    share: float = 0.5
    ranks: tuple[int, ...] = (1, 5)
    names: tuple[str, ...] = ("x",)
    rule: Literal["one", "two", 3] = "one"
    overlap: float = bounded(0.5, 0, 1)
    places: tuple[int, ...] = bounded((1,), 1)
    most: float | None = None


@pytest.mark.parametrize(
    ("field", "value", "read"),
    [
        ("limit", "12", 12),
        ("limit", 3.0, 3),
        ("limit", "none", None),
        ("limit", None, None),
        ("skip_missing", "True", True),
        ("skip_missing", "false", False),
        ("skip_missing", True, True),
        ("text", "a, b = {}", "a, b = {}"),
        ("share", "1e-2", 0.01),
        ("share", 1, 1.0),
        ("ranks", "1, 10", (1, 10)),
        ("ranks", [7], (7,)),
        ("names", "a + b,c", ("a + b", "c")),
        ("rule", "3", 3),
        ("rule", "two", "two"),
        ("most", "0.25", 0.25),
    ],
)
def test_values_are_read_as_the_field_is(field, value, read):
    changed = EveryType().changed({field: value})
    assert getattr(changed, field) == read and type(getattr(changed, field)) is type(read)


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("limit", "many", "a whole number, or none"),
        ("limit", "2.5", "a whole number, or none"),
        ("limit", 2.5, "a whole number, or none"),
        ("limit", -1, "a number of 0 or more, or none"),
        ("limit", 0, "a number of 1 or more, or none"),
        ("overlap", 1.5, "a number from 0 to 1"),
        ("places", (3, 0), "a number of 1 or more"),
        ("bootstrap", True, "int"),
        ("skip_missing", "maybe", "true or false"),
        ("share", "nan", "a number of 0 or more"),
        ("share", "inf", "a number of 0 or more"),
        ("share", "x", "a number"),
        ("ranks", "1,x", "separated by commas, each a whole number"),
        ("ranks", "", "a list"),
        ("names", "a,,b", "a list"),
        ("names", 7, "a list"),
        ("text", 7, "str"),
        ("rule", "four", "one of 'one', 'two', 3"),
    ],
)
def test_what_a_field_does_not_accept_is_told(field, value, accepted):
    with pytest.raises(ValueError) as error:
        EveryType().changed({field: value})
    assert str(error.value).startswith(f"{field} is {value!r}; accepted is ") and accepted in str(error.value)


def test_ranges_hold_for_protocols_that_are_made_by_hand():
    assert EveryType(limit=1, overlap=0, places=(2, 1)).limit == 1
    for fields, message in (
        ({"limit": 0}, "limit is 0; accepted is a number of 1 or more, or none"),
        ({"overlap": -0.1}, "overlap is -0.1; accepted is a number from 0 to 1"),
        ({"overlap": float("nan")}, "overlap is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            EveryType(**fields)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_benchmark_takes_a_limit_of_nothing(name):
    with pytest.raises(ValueError, match="limit is 0; accepted is a number of 1 or more, or none"):
        get_protocol(BENCHMARKS[name], None, {"limit": "0"})


def test_unknown_fields_are_refused_and_the_name_is_no_field():
    for name in ("view", "name"):
        with pytest.raises(ValueError, match=f"'{name}' is no field of EveryType; accepted are limit, .*most"):
            EveryType().changed({name: "x"})


def test_a_changed_protocol_keeps_its_name_and_an_equal_one_is_the_same():
    protocol = EveryType(name="official")
    assert protocol.changed({}) is protocol
    assert protocol.changed({"share": "0.5", "ranks": "1,5"}).name == "official"
    assert protocol.changed({"share": "0.4"}).name == "official"
    assert protocol.share == 0.5


def test_the_plain_form_is_json_and_reads_back():
    protocol = EveryType(ranks=(2,), most=None)
    plain = json.loads(json.dumps(protocol.to_dict(), allow_nan=False))
    assert plain["ranks"] == [2] and plain["most"] is None
    name = plain.pop("name")
    assert dataclasses.replace(EveryType().changed(plain), name=name) == protocol


def test_a_protocol_is_described_by_its_docstring():
    lines = describe_protocol(EveryType(ranks=(3,))).splitlines()
    assert lines[lines.index("ranks = [3]") + 1] == "    Whole numbers."
    assert lines[lines.index('text = "a"') + 1] == "    A text. Of two lines."
    assert lines[lines.index('rule = "one"') + 1] == "    One of three. Accepted: one, two, 3."
    assert lines[lines.index("limit = null") + 1].startswith("    Only so many items")
    assert lines[-1] == "most = null"


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_field_of_every_preset_can_be_set_is_explained_and_stored(name, preset):
    benchmark = BENCHMARKS[name]
    protocol = benchmark.presets[preset]
    assert protocol.name == preset and next(iter(benchmark.presets)) == "default"
    assert type(protocol) is type(benchmark.presets["default"])
    plain = json.loads(json.dumps(protocol.to_dict(), allow_nan=False))
    assert list(plain) == ["name", *protocol_fields(benchmark)]
    lines = describe_protocol(protocol).splitlines()
    for field in protocol_fields(benchmark):
        value = plain[field]
        written = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        assert get_protocol(benchmark, preset, {field: written}) == protocol
        place = lines.index(f"{field} = {json.dumps(value, ensure_ascii=False)}")
        assert lines[place + 1].startswith("    ") and len(lines[place + 1]) > 15, f"{field} is not explained"


def test_presets_are_described_by_what_they_change():
    told = describe_presets(BENCHMARKS["coco-regions"]).splitlines()
    assert told[0] == "preset default"
    assert 'preset official-fgclip: views = ["roi"], templates = "imagenet-80", ' in "\n".join(told)


def test_unknown_benchmarks_and_presets_name_the_nearest():
    with pytest.raises(ValueError, match="no preset 'oficial-pixclip'; did you mean official-pixclip"):
        get_protocol(BENCHMARKS["coco-regions"], "oficial-pixclip", {})
    with pytest.raises(ValueError, match="^coco-regions: ties is 'x'; accepted is one of 'pessimistic', 'optimistic'"):
        get_protocol(BENCHMARKS["coco-regions"], None, {"ties": "x"})


def test_the_list_tells_all_that_each_benchmark_is_and_reads():
    listed = {part.split(":")[0]: part for part in list_benchmarks().split("\n\n")}
    assert list(listed) == list(BENCHMARKS)
    for name, benchmark in BENCHMARKS.items():
        words = " ".join(listed[name].split())
        for text in (benchmark.summary, benchmark.main_figure, *benchmark.presets):
            assert " ".join(text.split()) in words
        for source in benchmark.layout:
            assert f"{source.path}{' (optional)' * source.optional}: " in words
            assert " ".join(source.where.split()) in words


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_names_of_a_protocol_are_told_in_words_and_numbers(name, preset):
    protocol = BENCHMARKS[name].presets[preset]
    told = protocol.details()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    printed = describe_protocol(protocol)
    assert all(f"{key}: {json.dumps(value, ensure_ascii=False)}" in printed for key, value in told.items())
    assert "equal" in told["tie_rule"] and re.search(r"\d", told["tie_rule"])
    words = {"pessimistic": "ranks before it", "optimistic": "ranks after it"}
    assert words.get(getattr(protocol, "ties", ""), "one half") in told["tie_rule"]
    views = [part for view in getattr(protocol, "views", ()) if view != "auto" for part in view.split(" + ")]
    assert set(views) <= told.get("view_summaries", {}).keys()
    assert ("view_summaries" in told) == hasattr(protocol, "views")
    assert ("template_texts" in told) == hasattr(protocol, "templates")


def test_views_are_told_with_their_constants():
    told = view_summaries(["padded-crop+mask", "blur", "box-crop"])
    assert "1.5 times" in told["padded-crop+mask"] and f" {PADDING} pixels" in told["padded-crop+mask"]
    assert f"radius {BLUR_RADIUS} " in told["blur"] and f"{100 * BOX_MARGIN:g} %" in told["box-crop"]
