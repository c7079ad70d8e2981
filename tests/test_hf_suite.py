# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The accounting of `make test-hf`, on a small folder of tests of its own and without the library's."""

import textwrap

import pytest
import run_hf_suite


MIXIN = """
    TABLE = {}

    class Helper:
        def check(self):
            pass

    class Mixin:
        has_parts = True
        tolerance = 0.1
        classes = ()

        @classmethod
        def setUpClass(cls):
            cls.ready = True

        def prepare(self):
            return True

        def test_common(self):
            pass

        def test_parts(self):
            if not self.has_parts:
                self.skipTest("it has no parts")

        def test_device(self):
            self.skipTest("Test requires a CUDA accelerator")

        def test_classes(self):
            for name in "ab":
                with self.subTest(name):
                    self.skipTest("no classes")
"""
TESTER = """
    import unittest
    from tests.mixin import TABLE, Helper, Mixin

    class WidgetTest(Mixin, unittest.TestCase):
        has_parts = False
        reasons = {
            "has_parts=False": "made of one piece",
            "test_parts": "made of one piece",
            "test_cl*": "has none",
            "test_common": "ours is stricter",
        }

        classes = (int,)

        def setUp(self):
            self.assertTrue(self.ready)

        def test_common(self):
            self.assertTrue(Mixin)
"""


def with_body(body):
    """The tester with more in its class."""
    return textwrap.dedent(TESTER) + textwrap.indent(textwrap.dedent(body), "    ")


def run(folder, tester=TESTER, options=()):
    """Problems and counts of a run of pytest on `tester`."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "tests").mkdir(exist_ok=True)
    (folder / "tests" / "__init__.py").touch()
    (folder / "tests" / "mixin.py").write_text(textwrap.dedent(MIXIN))
    path = folder / "tester_widget.py"
    path.write_text(textwrap.dedent(tester))
    status, recorded = run_hf_suite.run_testers([path], folder, list(options))
    counts, problems, reasons = run_hf_suite.explain(recorded["reports"], recorded["tables"])
    assert bool(problems) == bool(run_hf_suite.judge([status], recorded))
    return counts, problems, reasons


@pytest.mark.parametrize("options", [(), ("-n", "1")])
def test_what_is_explained_is_counted_and_no_problem(tmp_path, options):
    counts, problems, reasons = run(tmp_path, options=options)
    assert not problems
    assert counts["skipped: accelerator"] == 1 and counts["skipped: ours"] == 3 and "failed" not in counts
    assert "test_parts skipped (WidgetTest): made of one piece" in reasons
    assert "test_common replaced (WidgetTest): ours is stricter" in reasons
    assert "has_parts=False set (WidgetTest): made of one piece" in reasons
    assert "test_device skipped (WidgetTest): Test requires a CUDA accelerator" in reasons


@pytest.mark.parametrize(
    ("dropped", "problem"),
    [
        ('"test_parts": "made of one piece",', "skipped without a reason of ours"),
        ('"test_cl*": "has none",', "skipped without a reason of ours"),
        ('"test_common": "ours is stricter",', "override without a reason: WidgetTest.test_common"),
        ('"has_parts=False": "made of one piece",', "flag without a reason: WidgetTest.has_parts=False"),
    ],
)
def test_a_skip_an_override_and_a_flag_need_a_reason(tmp_path, dropped, problem):
    problems = run(tmp_path, TESTER.replace(dropped, ""))[1]
    assert problems and all(line.startswith(problem) for line in problems)


CHANGED = """
    import unittest
    from beside import OTHER
    from tests.mixin import TABLE, Helper, Mixin

    TABLE.update(widget=1)


    class Widgets(Helper):
        def check(self):
            return None


    class Easier:
        def prepare(self):
            return False


    class WidgetTest(Easier, Mixin, unittest.TestCase):
        has_parts = True
        tolerance = 9.0
        classes = (int,)
        reasons = {}

        @classmethod
        def setUpClass(cls):
            super().setUpClass()

        def setUp(self):
            self.assertTrue(self.ready)

        def _setup_widget(self):
            return 1

        test_classes = None
        test_parts = setUp
"""
BESIDE = "from tests.mixin import TABLE as OTHER\n\nOTHER['widget'] = 2\n"
CHANGES = {
    "_setup_widget": "override",
    "prepare": "override",
    "setUpClass": "override",
    "test_classes": "override",
    "test_parts": "override",
    "Widgets.check": "override",
    "tolerance=9.0": "flag",
    "OTHER": "edit",
    "TABLE": "edit",
}


def test_each_change_of_the_judge_needs_a_reason(tmp_path):
    (tmp_path / "beside.py").write_text(BESIDE)
    expected = [f"{kind} without a reason: WidgetTest.{name}" for name, kind in CHANGES.items()]
    assert sorted(run(tmp_path, CHANGED)[1]) == sorted(expected)
    explained = CHANGED.replace("reasons = {}", f"reasons = {dict.fromkeys(CHANGES, 'so it is')}")
    _, problems, reasons = run(tmp_path, explained)
    assert not problems
    done = {"override": "replaced", "flag": "set", "edit": "edited"}
    for name, kind in CHANGES.items():
        assert f"{name} {done[kind]} (WidgetTest): so it is" in reasons


def test_only_what_the_library_says_is_the_environment(tmp_path):
    said = [
        "our model has no GPU kernel and gives wrong results",
        "it fails; test requires an accelerator",
        "requires flash attention",
        "test is slow",
    ]
    tests = [f"def test_{number}(self):\n    self.skipTest({words!r})\n" for number, words in enumerate(said)]
    problems = run(tmp_path, with_body("\n".join(["", *tests])))[1]
    named = "skipped without a reason of ours: tester_widget.py::WidgetTest::test_"
    assert sorted(problems) == [f"{named}{number}: {words}" for number, words in enumerate(said)]


def test_slow_tests_run_and_skip_for_what_they_need(tmp_path):
    slow = """
        @slow
        def test_slow(self):
            self.skipTest("test requires accelerator")
    """
    tester = "from transformers.testing_utils import slow\n" + with_body(slow)
    _, problems, reasons = run(tmp_path, tester)
    assert not problems
    assert "test_slow skipped (WidgetTest): test requires accelerator" in reasons


def test_a_mixin_that_is_not_run_needs_a_reason(tmp_path, capsys, monkeypatch):
    (tmp_path / "test_other.py").write_text("class OtherTesterMixin:\n    pass\n")
    mixins = run_hf_suite.mixins_of(tmp_path)
    assert mixins == {"ExportTesterMixin", "GenerationTesterMixin", "OtherTesterMixin"}
    report = {"test": "a.py::T::test_a", "outcome": "passed", "reason": "", "part": False}
    table = {"reasons": {}, "names": [], "mixins": ["ExportTesterMixin"], "overrides": [], "flags": [], "edits": []}
    recorded = {"reports": [report], "tables": {"T": table}}
    assert run_hf_suite.judge([0], recorded, mixins=mixins)
    printed = capsys.readouterr().out
    assert "mixin neither run nor in NOT_RUN: OtherTesterMixin" in printed
    # Derived from, but of a stub.
    assert "ExportTesterMixin: a base of ModelTesterMixin, but" in printed
    monkeypatch.setitem(run_hf_suite.NOT_RUN, "OtherTesterMixin", "of another kind")
    assert not run_hf_suite.judge([0], recorded, mixins=mixins)
    table["mixins"].append("OtherTesterMixin")
    monkeypatch.delitem(run_hf_suite.NOT_RUN, "OtherTesterMixin")
    assert not run_hf_suite.judge([0], recorded, mixins=mixins)


def test_failures_errors_and_superfluous_reasons_are_problems(tmp_path):
    failing = TESTER.replace("self.assertTrue(Mixin)", "self.fail()")
    assert run(tmp_path, failing)[1] == ["failed: tester_widget.py::WidgetTest::test_common"]
    in_part = TESTER.replace(
        "self.assertTrue(Mixin)", "\n            with self.subTest('a'):\n                self.fail()"
    )
    problems = run(tmp_path, in_part)[1]
    assert problems and set(problems) == {"failed: tester_widget.py::WidgetTest::test_common"}
    superfluous = TESTER.replace('"test_parts"', '"test_device": "none",\n            "test_parts"')
    assert run(tmp_path, superfluous)[1] == ["reason that explains nothing: WidgetTest: 'test_device'"]


def test_a_run_without_tests_is_a_problem(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tester_widget.py").write_text("import no_such_module\n")
    status, recorded = run_hf_suite.run_testers([tmp_path / "tester_widget.py"], tmp_path, [])
    assert run_hf_suite.judge([status], recorded)


def test_without_a_network_and_a_cache_it_stops_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(SystemExit, match="sdist of transformers 0.0.1.*could not be downloaded"):
        run_hf_suite.fetch_mixins("0.0.1", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    cached = tmp_path / "cache" / "0.0.1"
    cached.mkdir()
    assert run_hf_suite.fetch_mixins("0.0.1", tmp_path / "cache") == cached
