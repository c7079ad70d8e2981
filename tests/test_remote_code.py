# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The code beside saved weights is complete, no more than that, and keeps to the rules by which Transformers loads it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from remote_code_rules import clashes, needed_files, references, violations
from safetensors.torch import load_file
from test_auto_classes import build_model, build_processor
from transformers import Trainer, TrainingArguments
from transformers.dynamic_module_utils import check_imports, get_relative_import_files

from modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel, PixCLIPVisionModelWithProjection


ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT / "modeling_pixclip", ROOT / "processing")
MODEL = {
    "AutoConfig": {"configuration_pixclip.PixCLIPConfig"},
    "AutoModel": {"modeling_pixclip.PixCLIPModel"},
    "AutoModelForPreTraining": {"modeling_pixclip.PixCLIPForPreTraining"},
    "AutoModelForZeroShotImageClassification": {"modeling_pixclip.PixCLIPModel"},
    "zero-shot-region-classification": {"pipeline_pixclip.ZeroShotRegionClassificationPipeline"},
    "region-feature-extraction": {"pipeline_pixclip.RegionFeatureExtractionPipeline"},
}
IMAGE_PROCESSOR = {
    "AutoImageProcessor": {
        "image_processing_pixclip.PixCLIPImageProcessor",
        "image_processing_pixclip.PixCLIPImageProcessorPil",
    }
}
PROCESSOR = {"AutoProcessor": {"processing_pixclip.PixCLIPProcessor"}, **IMAGE_PROCESSOR}


def save_by_trainer(folder):
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True)
    Trainer(build_model(PixCLIPForPreTraining), arguments, processing_class=build_processor()).save_model()


def save_after_towers(folder):
    model = build_model(PixCLIPModel)
    for tower in (model.vision_model, model.text_model):
        tower.save_pretrained(folder / "tower")
    model.save_pretrained(folder)


def save_again(folder):
    build_model(PixCLIPForPreTraining).save_pretrained(folder / "first")
    PixCLIPModel.from_pretrained(folder / "first").save_pretrained(folder)


def projected_tower():
    return PixCLIPVisionModelWithProjection(build_model(PixCLIPModel).config.vision_config)


VISION_CONFIG = {"AutoConfig": {"configuration_pixclip.PixCLIPVisionConfig"}}
SAVED = {
    "vision tower": (
        lambda folder: build_model(PixCLIPModel).vision_model.save_pretrained(folder),
        {**VISION_CONFIG, "AutoModel": {"modeling_vision_pixclip.PixCLIPVisionModel"}},
    ),
    "vision tower with projection": (
        lambda folder: projected_tower().save_pretrained(folder),
        {**VISION_CONFIG, "AutoModel": {"modeling_vision_pixclip.PixCLIPVisionModelWithProjection"}},
    ),
    "text tower": (
        lambda folder: build_model(PixCLIPModel).text_model.save_pretrained(folder),
        {
            "AutoConfig": {"configuration_pixclip.PixCLIPTextConfig"},
            "AutoModel": {"modeling_text_pixclip.PixCLIPTextModel"},
        },
    ),
    "model, after its towers": (save_after_towers, MODEL),
    "model": (lambda folder: build_model(PixCLIPModel).save_pretrained(folder), MODEL),
    "model with objective": (lambda folder: build_model(PixCLIPForPreTraining).save_pretrained(folder), MODEL),
    "model, saved again": (save_again, MODEL),
    "processor": (lambda folder: build_processor().save_pretrained(folder), PROCESSOR),
    "image processor": (lambda folder: build_processor().image_processor.save_pretrained(folder), IMAGE_PROCESSOR),
    "trainer": (save_by_trainer, {**MODEL, **PROCESSOR}),
}


def source_of(name):
    """The file of this name in the packages."""
    (path,) = [folder / name for folder in FOLDERS if (folder / name).exists()]
    return path


def needed_for(references):
    """Independently of Transformers: what the modules of these references import, from the packages' own files."""
    modules = {reference.partition(".")[0] for group in references.values() for reference in group}
    by_folder = [(folder, {name for name in modules if (folder / f"{name}.py").exists()}) for folder in FOLDERS]
    assert modules == by_folder[0][1] | by_folder[1][1]
    return set().union(*(needed_files(names, folder) for folder, names in by_folder))


@pytest.mark.parametrize("what", SAVED)
def test_a_saved_folder_has_every_auto_class_and_exactly_the_files_they_need(tmp_path, what):
    save, expected = SAVED[what]
    save(tmp_path)
    found = references(tmp_path)
    assert found == expected
    assert {path.name for path in tmp_path.glob("*.py")} == needed_for(expected)
    for path in tmp_path.glob("*.py"):
        assert path.read_bytes() == source_of(path.name).read_bytes()
    for reference in set().union(*found.values()):
        module, _, name = reference.partition(".")
        tree = ast.parse((tmp_path / f"{module}.py").read_text())
        # A class may depend on what is installed.
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


@pytest.mark.parametrize("name", sorted(needed_for({**MODEL, **PROCESSOR})))
def test_a_copied_file_keeps_to_the_rules(name):
    path = source_of(name)
    siblings = {other.stem for other in path.parent.glob("*.py")} - {"__init__"}
    assert violations(path.read_text(encoding="utf-8"), siblings) == []
    # What Transformers itself says of it: it would install what is missing, and copy these files.
    assert set(check_imports(path)) <= siblings
    assert {Path(file).name for file in get_relative_import_files(path)} <= needed_for({**MODEL, **PROCESSOR})


def test_file_names_are_unique_over_both_packages():
    assert clashes(FOLDERS) == []


def test_a_copied_file_is_no_package_of_its_own():
    # Both would be found under one name in the folder of a checkpoint.
    assert not {path.stem for folder in FOLDERS for path in folder.glob("*.py")} & {"torch", "numpy", "transformers"}


# Checkpoints are exchanged between versions of Transformers

HERE = Path(__file__).parent
SAVE = """
import json, sys
from pathlib import Path
from test_auto_classes import build_model, build_processor, write_expectations
from modeling_pixclip import PixCLIPForPreTraining

folder, into = map(Path, sys.argv[1:])
build_model(PixCLIPForPreTraining).save_pretrained(folder)
build_processor().save_pretrained(folder)
build_processor().image_processor.save_pretrained(folder / "image_processor")
(into / "request.json").write_text(json.dumps(write_expectations(folder, into)))
"""
LOAD_WITH_PACKAGE = """
import json, sys
from pathlib import Path
from test_auto_classes import write_expectations

folder, into = map(Path, sys.argv[1:])
(into / "request.json").write_text(json.dumps(write_expectations(folder, into)))
"""


def run_python(python, *arguments, home):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "PYTHONPATH": str(HERE)}
    command = [str(python), *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("back", [False, True], ids=["saved here", "loaded here"])
def test_what_one_supported_version_saves_the_other_loads(tmp_path, back):
    """By the code in the folder and with the package, to the bit."""
    environments = [ROOT / name for name in (".venv", ".venv-oldest")]
    others = [path / "bin" / "python" for path in environments if path.resolve() != Path(sys.prefix).resolve()]
    if len(others) != 1 or not others[0].exists():
        pytest.skip("needs .venv and .venv-oldest (make test-oldest), the tests run in one of them")
    saver, loader = [others[0], sys.executable] if back else [sys.executable, others[0]]
    version = "import transformers; print(transformers.__version__)"
    assert run_python(saver, "-c", version, home=tmp_path) != run_python(loader, "-c", version, home=tmp_path)
    folder, expected, found = (tmp_path / name for name in ("model", "expected", "found"))
    for path in (folder, expected, found):
        path.mkdir()
    run_python(saver, "-c", SAVE, folder, expected, home=tmp_path)
    request = json.loads((expected / "request.json").read_text())
    run_python(loader, "-c", LOAD_WITH_PACKAGE, folder, found, home=tmp_path)
    assert json.loads((found / "request.json").read_text())["scores"] == request["scores"]
    wanted, tensors = (load_file(path / "expected.safetensors") for path in (expected, found))
    assert wanted.keys() == tensors.keys() and all(torch.equal(wanted[name], tensors[name]) for name in wanted)
    request |= {
        "sources": [str(folder)],
        "weights": {str(folder): str(folder / "model.safetensors")},
        "image_processor": str(folder / "image_processor"),
        "saved": str(tmp_path / "saved again"),
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    script = HERE / "load_by_remote_code.py"
    assert run_python(loader, script, tmp_path / "request.json", home=tmp_path).strip() == "checked 1"


# The lint finds what it is there for

VIOLATIONS = {
    "import modeling_pixclip": "absolute import of modeling_pixclip",
    "from processing_pixclip.regions import to_mask": "absolute import of processing_pixclip.regions",
    "def f():\n    from modeling_pixclip.losses import x": "absolute import of modeling_pixclip.losses",
    "try:\n    import processing\nexcept ImportError:\n    pass": "absolute import of processing",
    "from . import helper": "of which no file is copied",
    "from .sub.helper import x": "import from another folder: .sub.helper",
    "from ..helper import x": "import from another folder: ..helper",
    "from .missing import x": "there is no missing.py",
    "import pandas": "pandas is required",
    "def f():\n    import timm": "timm is required",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from peft import PeftModel": "peft is required",
    '"""\nfrom .helper import x\n"""': "a line of text looks like an import of .helper",
    'text = """\n  from .gone import x\n"""': "a line of text looks like an import of .gone",
    "x = 1; from .helper import x": "written so that its file is not copied",
    "try: from .helper import x\nexcept ImportError: pass": "written so that its file is not copied",
    "open(__file__)": "no other than Python files are copied",
}


@pytest.mark.parametrize("source", VIOLATIONS)
def test_the_lint_finds(source):
    found = violations(source, {"helper"})
    assert len(found) == 1 and VIOLATIONS[source] in found[0], found


@pytest.mark.parametrize(
    "source",
    [
        "import os.path\nimport torch.nn as nn\nfrom PIL import Image\nfrom transformers import AutoModel",
        "from .helper import (\n    x,\n)\n\n\ndef f():\n    from .helper import y",
        "try:\n    import peft\nexcept ImportError:\n    peft = None",
        "from transformers.utils import is_torchvision_available\nif is_torchvision_available():\n    import torchvision",
        '"""Like `from .gone import x`, in the middle of a line."""',
        "# from .helper import x",
    ],
)
def test_the_lint_passes(source):
    assert violations(source, {"helper"}) == []


def test_the_lint_finds_names_that_clash(tmp_path):
    for folder, name in (("a", "utils.py"), ("b", "utils.py"), ("a", "__init__.py"), ("b", "__init__.py")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text("")
    assert clashes([tmp_path / "a", tmp_path / "b"]) == ["utils.py"]
