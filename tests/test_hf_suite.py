# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The accounting of `make test-hf`, on a small folder of tests of its own and without the library's."""

import textwrap

import pytest
import run_hf_suite


MIXIN = """
    class Mixin:
        has_parts = True

        def test_common(self):
            pass

        def test_parts(self):
            if not self.has_parts:
                self.skipTest("it has no parts")

        def test_device(self):
            self.skipTest("test requires a CUDA accelerator")

        def test_classes(self):
            for name in "ab":
                with self.subTest(name):
                    self.skipTest("no classes")
"""
TESTER = """
    import unittest
    from mixin import Mixin

    class WidgetTest(Mixin, unittest.TestCase):
        has_parts = False
        reasons = {
            "has_parts=False": "made of one piece",
            "test_parts": "made of one piece",
            "test_cl*": "has none",
            "test_common": "ours is stricter",
        }

        def test_common(self):
            self.assertTrue(Mixin)
"""


def run(folder, tester=TESTER, options=()):
    """Problems and counts of a run of pytest on `tester`."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "mixin.py").write_text(textwrap.dedent(MIXIN))
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
    assert "test_common overridden (WidgetTest): ours is stricter" in reasons
    assert "has_parts=False set (WidgetTest): made of one piece" in reasons


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
