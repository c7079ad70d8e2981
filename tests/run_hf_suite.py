# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Runs Transformers' own tests on PixCLIP: `python tests/run_hf_suite.py [options of pytest]`.

The sdist of the installed release holds the test mixins that every model of the library must pass. They are fetched once
into `.cache/hf_suite/VERSION` and never committed; `tests/hf_suite/tester_*.py` apply them to our classes. This module
is also the plugin of those runs. A tester's `reasons` must say why for: every skipped test, every test and helper of a
mixin that it replaces, every setting of a mixin that it changes, and every table of the library that its module edits.
Every entry needs something that it explains. All of them are printed, also the skips that this machine explains, and the
mixins that are not run at all.
"""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from unittest import TestCase

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

# Skips that say what this machine lacks: the words of the library's `require_*` decorators, and of nothing else.
REQUIRES = r"^test requires .*"
ENVIRONMENT = {
    "accelerator": REQUIRES + r"(accelerator|CUDA|GPU|XPU|\bMPS\b)",
    "flash-attn": REQUIRES + r"flash.?att",
    "deepspeed": REQUIRES + r"deepspeed",
    "kernels": REQUIRES + r"\bkernels\b",
    "bitsandbytes": REQUIRES + r"bitsandbytes",
    "video and audio packages": REQUIRES + r"(torchcodec|librosa)",
}

# Mixins of the library that no tester derives from.
NOT_RUN = {
    "ExportTesterMixin": (
        "a base of ModelTesterMixin, but its module is not in the sdist and an empty class stands in for it; "
        "tests/test_export.py tests export"
    ),
    "GenerationTesterMixin": "not in the sdist either, and no model of ours generates text",
    "PipelineTesterMixin": (
        "it runs test classes of tests/pipelines, which are not in the sdist, on tiny models of the Hub that its list "
        "names, none of them ours; tests/test_pipelines.py tests our pipelines and the stock one"
    ),
    "AnnotationFormatTestMixin": "no annotations of object detection",
    "BackboneTesterMixin": "no model of ours is a backbone of detectors",
    "DecisionHeadTesterMixin": "no decision head",
    "ExpertParallelTesterMixin": "no experts",
    "FSDPTesterMixin": "of models with an FSDP plan of the library's list; tests/test_distributed_*.py run ours in processes",
    "FeatureExtractionSavingTestMixin": "no audio",
    "MemoryCleanupMixin": "no tests: it frees memory between tests on accelerators",
    "PostProcessSemanticSegmentationTestMixin": "no segmentation",
    "SentencePieceBackendTesterMixin": "tokenizers are the backbones'",
    "SequenceFeatureExtractionTestMixin": "no audio",
    "TensorParallelTesterMixin": "no tensor parallel plan",
    "TokenizerTesterMixin": "tokenizers are the backbones'",
    "TokenizersBackendTesterMixin": "tokenizers are the backbones'",
    "TrainingTesterMixin": "it trains language models; tests/test_training_*.py train ours",
    "VideoProcessingTestMixin": "no videos",
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


def is_theirs(base: type) -> bool:
    """Whether a class is the library's or Python's, and not one of a tester's module."""
    return base.__module__.partition(".")[0] in ("tests", "transformers", "unittest", "builtins", "abc", "typing")


def is_mixin(base: type) -> bool:
    return base.__module__.startswith("tests.")


def is_method(value) -> bool:
    return callable(value) or isinstance(value, (classmethod, staticmethod, property))


def changes_of(cls: type) -> tuple[set[str], set[str]]:
    """
    What a class of ours changes of the library's classes it derives from: names of replaced tests and methods, and
    `name=value` of other attributes that have a value there, which a tester is not asked to fill in.
    """
    replaced, settings = set(), set()
    theirs = [base for base in cls.__mro__ if is_theirs(base) and base is not object]
    for base in cls.__mro__:
        for name, value in {} if is_theirs(base) else vars(base).items():
            other = next((vars(other)[name] for other in theirs if name in vars(other)), None)
            defined = [other.__module__ for other in theirs if name in vars(other)]
            # ProcessorTesterMixin looks for such methods, and has none itself.
            if name.startswith("_setup_") and is_method(value):
                replaced.add(name)
            # unittest's own setUp and the like are there to be written.
            if not defined or (name.startswith("__") and not is_method(other)):
                continue
            if not any(module.startswith("tests.") for module in defined) and name.startswith(("setUp", "tearDown")):
                continue
            # ModelTesterMixin wraps every inherited test anew in each class.
            if value is other or inspect.unwrap(value) is inspect.unwrap(other):
                continue
            if is_method(other) or (name.startswith("test_") and not isinstance(value, bool)):
                replaced.add(name)
            elif other not in (None, (), []) and value != other:
                settings.add(f"{name}={value}")
    return replaced, settings


def edited_names(path: Path) -> set[str]:
    """Imported names whose objects a tester's module, or one beside it that it imports from, changes as it is loaded."""
    edited = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = []
        if isinstance(node, ast.ImportFrom) and (beside := path.parent / f"{node.module}.py").is_file():
            edited |= edited_names(beside) if not node.level else set()
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            targets = [node.value.func]
        elif isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete)):
            targets = node.targets if hasattr(node, "targets") else [node.target]
        for target in targets:
            depth = 0
            while isinstance(target, (ast.Attribute, ast.Subscript, ast.Call)):
                target, depth = target.func if isinstance(target, ast.Call) else target.value, depth + 1
            if depth and isinstance(target, ast.Name):
                edited.add(target.id)
    return edited


@cache
def table_of(tester: type) -> dict:
    """What a tester class says of itself: its reasons, and what it and its module change of the library's tests."""
    module = sys.modules[tester.__module__]
    overrides, settings = changes_of(tester)
    names = {name for base in tester.__mro__ if is_theirs(base) for name in vars(base)}
    # Classes beside the testers that adapt the library's helpers, such as ConfigTester.
    for helper in vars(module).values():
        if not isinstance(helper, type) or helper.__module__ != module.__name__ or issubclass(helper, TestCase):
            continue
        if any(is_mixin(base) for base in helper.__mro__):
            replaced, changed = changes_of(helper)
            overrides |= {f"{helper.__name__}.{name}" for name in replaced}
            settings |= {f"{helper.__name__}.{name}" for name in changed}
            names |= {f"{helper.__name__}.{name}" for base in helper.__mro__ if is_theirs(base) for name in vars(base)}
    return {
        "reasons": dict(getattr(tester, "reasons", {})),
        # Not each release has them all.
        "names": sorted(names),
        "mixins": [base.__name__ for base in tester.__mro__ if is_mixin(base)],
        "overrides": sorted(overrides),
        "flags": sorted(settings),
        "edits": sorted(edited_names(Path(module.__file__))),
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

    A problem is a failure, a skip that neither the environment nor a reason explains, an override, a flag or an edit
    without a reason, and, of a `whole` run without other problems, a reason that explains nothing.
    """
    counts, problems, used, lacking = Counter(), [], Counter(), defaultdict(set)
    for report in reports:
        tester, _, name = report["test"].rpartition("::")
        tester = tester.rpartition("::")[2]
        if report["outcome"] == "failed":
            counts["failed"] += 1
            problems.append(f"failed: {report['test']}")
        elif report["outcome"] == "passed":
            counts["passed (parts of tests)" if report["part"] else "passed"] += 1
        else:
            told = report["reason"].removeprefix("unconditional skip: ")
            kind = next((kind for kind, text in ENVIRONMENT.items() if re.search(text, told, re.IGNORECASE)), None)
            if kind is not None:
                counts[f"skipped: {kind}"] += 1
                lacking[name, told].add(tester)
                continue
            counts["skipped: ours"] += 1
            key = next((key for key in tables.get(tester, {}).get("reasons", {}) if fnmatchcase(name, key)), None)
            if key is None:
                problems.append(f"skipped without a reason of ours: {report['test']}: {report['reason']}")
            else:
                used[tester, key, "skipped"] += 1
    for tester, table in tables.items():
        for kind, what in (("overrides", "replaced"), ("flags", "set"), ("edits", "edited")):
            for name in table[kind]:
                key = next((key for key in table["reasons"] if fnmatchcase(name, key)), None)
                if key is None:
                    problems.append(f"{kind[:-1]} without a reason: {tester}.{name}")
                else:
                    used[tester, key, what] += 1
    if problems or not whole:
        return counts, problems, describe(used, tables, lacking)
    # Testers share reasons; one of them has to need it. A test that this release lacks needs none.
    known = {(key, tables[tester]["reasons"][key]) for tester, key, _ in used}
    for tester, table in tables.items():
        for key, reason in table["reasons"].items():
            exists = "=" in key or any(fnmatchcase(name, key) for name in table["names"])
            if exists and (key, reason) not in known:
                problems.append(f"reason that explains nothing: {tester}: {key!r}")
    return counts, problems, describe(used, tables, lacking)


def describe(used: Counter, tables: dict, lacking: dict) -> list[str]:
    testers = defaultdict(list)
    for tester, key, what in sorted(used):
        testers[key, what, tables[tester]["reasons"][key]].append(tester)
    for (name, told), names in lacking.items():
        testers[name, "skipped", told] = sorted(names)
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
        # So that a skip says what a slow test needs; the few slow ones all need an accelerator.
        "RUN_SLOW": "1",
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


def mixins_of(folder: Path) -> set[str]:
    """Names of the mixin classes in the library's test modules, and of those that only have a stub."""
    texts = [*STUBS.values(), *(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))]
    return {name for text in texts for name in re.findall(r"^class (\w+Mixin)\b", text, re.MULTILINE)}


def judge(statuses: list[int], recorded: dict, whole: bool = True, mixins: frozenset | set = frozenset()) -> int:
    """Prints the outcome; 0 if every test passed or is explained, and each of `mixins` is run or in `NOT_RUN`."""
    counts, problems, reasons = explain(recorded["reports"], recorded["tables"], whole)
    print("\n== everything that is skipped, replaced, set or edited, with its reason")
    print("\n".join(reasons))
    stubs = {name for name in NOT_RUN if any(f"class {name}:" in text for text in STUBS.values())}
    run = {name for table in recorded["tables"].values() for name in table["mixins"]} - stubs
    if mixins:
        print("\n== mixins that are not run, with the reason")
        print("\n".join(f"{name}: {NOT_RUN[name]}" for name in sorted((mixins - run) & NOT_RUN.keys())))
        problems += [f"mixin neither run nor in NOT_RUN: {name}" for name in sorted(mixins - run - NOT_RUN.keys())]
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
    return judge(statuses, recorded, whole, mixins_of(mixins) if whole else frozenset())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
