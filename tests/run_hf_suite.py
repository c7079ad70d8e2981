# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Runs Transformers' own tests on PixCLIP: `python tests/run_hf_suite.py [options of pytest]`.

The sdist of the installed release holds the test mixins that every model of the library must pass. They are fetched once
into `.cache/hf_suite/VERSION` and never committed; `tests/hf_suite/tester_*.py` apply them to our classes. This module
is also the plugin of those runs: every skipped test, every overridden one and every flag of a mixin that a tester
turns off needs an entry in the tester's `reasons`, and every entry needs something that it explains.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest


TESTS = Path(__file__).resolve().parent
CACHE = TESTS.parent / ".cache" / "hf_suite"
# PyPI's torchvision for tests on a CPU, where `make test` has fetched it.
TORCHVISION = TESTS.parent / ".torchvision"
RESULTS = "PIXCLIP_HF_SUITE_RESULTS"
PHOTO = TESTS.parent / "examples" / "data" / "coco_regions" / "images" / "000000000508.jpg"

# What the mixins import of the parts of Transformers' tests that no sdist holds.
STUBS = {
    "tests/__init__.py": "",
    "tests/exporters/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/generation/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/utils/__init__.py": "",
    "tests/utils/test_configuration_utils.py": (
        "config_common_kwargs = {'return_dict': False, 'output_hidden_states': True, 'dtype': 'float16',\n"
        "    'chunk_size_feed_forward': 5, 'architectures': ['Own'], 'name_or_path': 'own/model',\n"
        "    'id2label': {0: 'label'}, 'label2id': {'label': 0}, 'problem_type': 'regression'}\n"
    ),
    # In place of the photos that they fetch from the Hub.
    "utils/fetch_hub_objects_for_ci.py": f"def url_to_local_path(url, *args):\n    return {str(PHOTO)!r}\n",
    # Own, because the marks of the mixins are not those of this repository.
    "pytest.ini": "[pytest]\nfilterwarnings = ignore\n",
}

# Skips that say what this machine or run lacks, by what pytest reports of them.
ENVIRONMENT = {
    "accelerator": r"accelerator|CUDA|GPU|NVIDIA|XPU|TensorFloat32|\bMPS\b",
    "flash-attn": r"requires? .*[Ff]lash.?[Aa]tt",
    "deepspeed": r"requires? .*deepspeed",
    "kernels": r"requires? .*\bkernels\b",
    "bitsandbytes": r"requires? .*bitsandbytes",
    "video and audio packages": r"requires? .*([Tt]orchcodec|librosa)",
    "slow": r"^(test|unconditional skip: test) is slow",
}


def fetch_mixins(release: str, cache: Path = CACHE) -> Path:
    """The folder with the test modules of a Transformers release; downloaded where `cache` does not hold it."""
    folder = cache / release
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".part-") as part:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "transformers", "--dest", part, f"transformers=={release}"]
        download = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(part).glob("transformers-*.tar.gz"))
        if download.returncode or not archives:
            raise SystemExit(
                f"The sdist of transformers {release}, whose tests this runs, is not in {folder} and could not be "
                f"downloaded. Run it once with a network or a package mirror. pip said:\n{download.stderr.strip()}"
            )
        unpacked = Path(part) / "unpacked"
        unpacked.mkdir()
        with tarfile.open(archives[0]) as archive:
            for member in archive:
                if member.isfile() and re.fullmatch(r"transformers-[^/]+/tests/test_\w+\.py", member.name):
                    (unpacked / Path(member.name).name).write_bytes(archive.extractfile(member).read())
        if not (unpacked / "test_modeling_common.py").exists():
            raise SystemExit(f"The sdist of transformers {release} holds no tests/test_modeling_common.py.")
        try:
            unpacked.rename(folder)
        except OSError:
            # Another run was faster.
            if not folder.is_dir():
                raise
    return folder


def write_workspace(mixins: Path, workspace: Path):
    """Lays the mixins out as the package `tests` that they expect to be, with stubs beside them."""
    for name, text in STUBS.items():
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(text)
    for module in mixins.glob("*.py"):
        (workspace / "tests" / module.name).write_bytes(module.read_bytes())


def is_flag(name: str, value) -> bool:
    return isinstance(value, bool) and not name.startswith("__")


def table_of(tester: type) -> dict:
    """What a tester class says of itself: its reasons, its tests, and those and the flags that differ from the mixins'."""
    ours = [base for base in tester.__mro__ if "reasons" in vars(base) or base is tester]
    theirs = [base for base in tester.__mro__ if base not in ours]
    inherited = {name for base in theirs for name in vars(base)}
    overrides, flags = set(), {}
    for base in ours:
        for name, value in vars(base).items():
            # Testers of the library wrap every inherited test anew in each class.
            function = getattr(value, "__wrapped__", value)
            if name.startswith("test_") and callable(value) and name in inherited:
                if getattr(function, "__module__", None) == base.__module__:
                    overrides.add(name)
            elif is_flag(name, value) and name in inherited:
                theirs_value = next(vars(other)[name] for other in theirs if name in vars(other))
                if theirs_value != value:
                    flags[f"{name}={value}"] = True
    if (helper := getattr(tester, "config_tester_class", None)) is not None:
        overrides |= {name for name in vars(helper) if name in dir(helper.__base__) and not name.startswith("_")}
    return {
        "reasons": dict(getattr(tester, "reasons", {})),
        # Of the mixins; not each release has them all.
        "tests": sorted(name for name in inherited if name.startswith("test_")),
        "overrides": sorted(overrides),
        "flags": sorted(flags),
    }


class Recorder:
    """The plugin's part in the process that hears of all tests."""

    def __init__(self):
        self.reports, self.tables = [], {}

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        reason = ""
        if report.skipped:
            # (file, line, "Skipped: reason"), which xdist passes on as text.
            longrepr = report.longrepr
            longrepr = ast.literal_eval(longrepr) if isinstance(longrepr, str) else longrepr
            reason = longrepr[2].removeprefix("Skipped: ")
        self.reports.append(
            {
                "test": report.nodeid,
                "outcome": report.outcome,
                "reason": reason,
                "part": type(report).__name__ != "TestReport",
            }
        )
        self.tables.update(dict(report.user_properties).get("tables", {}))

    def pytest_sessionfinish(self, session):
        Path(os.environ[RESULTS]).write_text(json.dumps({"reports": self.reports, "tables": self.tables}))


def pytest_configure(config):
    if RESULTS in os.environ and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    # Travels with the test's reports, also from the processes of xdist.
    if item.cls is not None:
        item.user_properties.append(("tables", {item.cls.__name__: table_of(item.cls)}))


def explain(reports: list[dict], tables: dict, whole: bool = True) -> tuple[Counter, list[str], list[str]]:
    """
    Counts of outcomes, the problems, and a line for each reason that was used.

    A problem is a failure, a skip that neither the environment nor a reason explains, an override or a flag without a
    reason, and, of a `whole` run without other problems, a reason that explains nothing.
    """
    counts, problems, used = Counter(), [], Counter()
    for report in reports:
        tester, _, name = report["test"].rpartition("::")
        tester = tester.rpartition("::")[2]
        if report["outcome"] == "failed":
            counts["failed"] += 1
            problems.append(f"failed: {report['test']}")
        elif report["outcome"] == "passed":
            counts["passed (parts of tests)" if report["part"] else "passed"] += 1
        else:
            kind = next((kind for kind, text in ENVIRONMENT.items() if re.search(text, report["reason"])), None)
            if kind is not None:
                counts[f"skipped: {kind}"] += 1
                continue
            counts["skipped: ours"] += 1
            key = next((key for key in tables.get(tester, {}).get("reasons", {}) if fnmatchcase(name, key)), None)
            if key is None:
                problems.append(f"skipped without a reason of ours: {report['test']}: {report['reason']}")
            else:
                used[tester, key, "skipped"] += 1
    for tester, table in tables.items():
        for kind in ("overrides", "flags"):
            for name in table[kind]:
                key = next((key for key in table["reasons"] if fnmatchcase(name, key)), None)
                if key is None:
                    problems.append(f"{kind[:-1]} without a reason: {tester}.{name}")
                else:
                    used[tester, key, {"overrides": "overridden", "flags": "set"}[kind]] += 1
    if problems or not whole:
        return counts, problems, describe(used, tables)
    # Testers share reasons; one of them has to need it. A test that this release lacks needs none.
    known = {(key, tables[tester]["reasons"][key]) for tester, key, _ in used}
    for tester, table in tables.items():
        for key, reason in table["reasons"].items():
            exists = "=" in key or any(fnmatchcase(name, key) for name in table["tests"])
            if exists and (key, reason) not in known:
                problems.append(f"reason that explains nothing: {tester}: {key!r}")
    return counts, problems, describe(used, tables)


def describe(used: Counter, tables: dict) -> list[str]:
    testers = defaultdict(list)
    for tester, key, what in sorted(used):
        testers[key, what, tables[tester]["reasons"][key]].append(tester)
    return [f"{key} {what} ({', '.join(names)}): {reason}" for (key, what, reason), names in sorted(testers.items())]


def run_testers(
    testers: list[Path], workspace: Path, options: list[str], paths: tuple[Path, ...] = ()
) -> tuple[int, dict]:
    """Runs pytest on tester files inside `workspace`, importing also from `paths`; its exit status and its reports."""
    results = workspace / "results.json"
    results.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, [workspace, TESTS, *paths, os.environ.get("PYTHONPATH", "")])),
        RESULTS: str(results),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-c", str(workspace / "pytest.ini")]
    command += [
        "--rootdir",
        str(testers[0].parent),
        "-p",
        Path(__file__).stem,
        "-p",
        "no:cacheprovider",
        "--tb=short",
        "-q",
        "-r",
        "fE",
    ]
    status = subprocess.run([*command, *options, *map(str, testers)], env=environment, cwd=workspace).returncode
    recorded = json.loads(results.read_text()) if results.exists() else {"reports": [], "tables": {}}
    return status, recorded


def judge(statuses: list[int], recorded: dict, whole: bool = True) -> int:
    """Prints the outcome; 0 if every test passed or is explained."""
    counts, problems, reasons = explain(recorded["reports"], recorded["tables"], whole)
    print("\n== every skip, override and flag of ours, with its reason")
    print("\n".join(reasons))
    print("\n== counts")
    for name, count in sorted({"passed": 0, "failed": 0, **counts}.items()):
        print(f"{name}: {count}")
    if not set(statuses) <= {0, 1} or not recorded["reports"]:
        problems.append(f"pytest ended with status {statuses} and {len(recorded['reports'])} reports")
    if problems:
        print("\n== problems\n" + "\n".join(problems))
    return bool(problems)


def main(options: list[str]) -> int:
    release, whole = version("transformers"), not options
    print(f"== the tests of transformers {release} on PixCLIP", flush=True)
    mixins = fetch_mixins(release)
    testers = [Path(option).resolve() for option in options if option.endswith(".py")]
    testers = testers or sorted((TESTS / "hf_suite").glob("tester_*.py"))
    options = [option for option in options if not option.endswith(".py")]
    if not any(option.startswith("-n") for option in options):
        options = ["-n", str(os.cpu_count()), *options]
    of_images = [tester for tester in testers if tester.name == "tester_image_processor.py"]
    others = [tester for tester in testers if tester not in of_images]
    with_torchvision = (TESTS / "torchvision_on_cpu", TORCHVISION) if TORCHVISION.is_dir() else ()
    if of_images and not with_torchvision and find_spec("torchvision") is None:
        raise SystemExit(f"One of the image processor's backends needs {TORCHVISION}, which `make test-hf` fetches.")
    statuses, recorded = [], {"reports": [], "tables": {}}
    with tempfile.TemporaryDirectory(prefix="pixclip_hf_suite_") as workspace:
        write_workspace(mixins, Path(workspace))
        for files, paths in ((others, ()), (of_images, with_torchvision)):
            if files:
                status, more = run_testers(files, Path(workspace), options, paths)
                statuses.append(status)
                recorded["reports"] += more["reports"]
                recorded["tables"].update(more["tables"])
    return judge(statuses, recorded, whole)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
