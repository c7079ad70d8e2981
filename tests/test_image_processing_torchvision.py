# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The image processor's two backends: with torchvision, in processes of their own, and without, in this one.

torchvision lies in the folder .torchvision (`make .torchvision/.installed`) and in no environment: beside a CPU build
of torch, an installed one breaks every import of transformers. tests/torchvision_on_cpu makes it usable.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoImageProcessor, AutoProcessor, PreTrainedTokenizerFast

from modeling_pixclip import PixCLIPImageProcessor, PixCLIPImageProcessorPil, PixCLIPProcessor
from processing_pixclip import image_processing_pixclip


ROOT = Path(__file__).parents[1]
TORCHVISION = ROOT / ".torchvision"
SHIM = Path(__file__).with_name("torchvision_on_cpu")

needs_torchvision = pytest.mark.skipif(
    not (TORCHVISION / "torchvision").is_dir(),
    reason="there is no folder .torchvision; `make .torchvision/.installed` makes it",
)


def run(*arguments, torchvision, cwd=ROOT, **environment):
    """Runs Python in a process of its own, with or without torchvision, and returns what it printed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment = inherited | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    if torchvision:
        environment["PYTHONPATH"] = os.pathsep.join([str(SHIM), str(TORCHVISION)])
    process = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, f"{process.stdout[-8000:]}\n{process.stderr[-4000:]}"
    return process.stdout


@needs_torchvision
def test_both_backends_agree_where_torchvision_is_installed():
    answer = run("-m", "pytest", SHIM / "backend_checks.py", "-q", "-p", "no:cacheprovider", torchvision=True)
    assert " passed" in answer and "skipped" not in answer, answer


@needs_torchvision
def test_the_image_processors_own_tests_pass_with_torchvision():
    files = [ROOT / "tests" / name for name in ("test_image_processing.py", "test_processor.py")]
    # Without the one that compares with PIL itself.
    run("-m", "pytest", *files, "-q", "-x", "-p", "no:cacheprovider", "-k", "not bit_for_bit", torchvision=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a processor: as saved, and as they were before there were two backends."""
    root = tmp_path_factory.mktemp("folders")
    tokens = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1}, unk_token="[unk]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[pad]", unk_token="[unk]")
    processor = PixCLIPProcessor(PixCLIPImageProcessor(size=24), tokenizer, text_template="{text}")
    for name in ("today", "before"):
        processor.save_pretrained(root / name)
    file = root / "before" / "processor_config.json"
    config = json.loads(file.read_text())
    config["image_processor"]["auto_map"]["AutoImageProcessor"] = "image_processing_pixclip.PixCLIPImageProcessor"
    file.write_text(json.dumps(config))
    return root / "today", root / "before"


@pytest.mark.parametrize("torchvision", [pytest.param(True, marks=needs_torchvision), False])
def test_remote_code_takes_the_backend_there_is(folders, tmp_path, torchvision):
    answer = run(
        SHIM / "load_backends.py", *folders, torchvision=torchvision, cwd=tmp_path, HF_MODULES_CACHE=str(tmp_path)
    )
    found = json.loads(answer.splitlines()[-1])
    today, before = map(str, folders)
    assert len(found) == 2 * 2 * 3
    for key, loaded in found.items():
        folder, _, backend = key.split()
        # A folder from before names one class, which is torchvision's where there is one.
        wanted = "torchvision" if torchvision and (backend != "pil" or folder == before) else "pil"
        assert loaded["backend"] == wanted, key
        assert loaded["class"] == {"torchvision": "PixCLIPImageProcessor", "pil": "PixCLIPImageProcessorPil"}[wanted]
    assert len({loaded["masks"] for loaded in found.values()}) == 1
    pixels = [loaded["pixels"] for key, loaded in found.items() if key.startswith(today)]
    assert max(pixels) == pytest.approx(min(pixels), rel=1e-3)
    # No difference from what the installed package gives.
    photo = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)
    batch = AutoProcessor.from_pretrained(today).image_processor(photo, boxes=[4, 5, 30, 20], crops=True)
    assert float(batch["mask_values"].sum() + batch["crop_mask_values"].sum()) == loaded["masks"]


def test_without_torchvision_the_name_is_the_pil_class():
    assert PixCLIPImageProcessor is PixCLIPImageProcessorPil
    assert image_processing_pixclip.BACKENDS == {"pil": PixCLIPImageProcessorPil}
    assert PixCLIPImageProcessor().backend == "pil"


@pytest.mark.parametrize("kind", ["today", "before"])
def test_without_torchvision_every_folder_loads_in_pil(folders, kind):
    folder = folders[("today", "before").index(kind)]
    for backend in (None, "pil", "torchvision"):
        loaded = AutoImageProcessor.from_pretrained(folder, backend=backend)
        assert type(loaded) is PixCLIPImageProcessorPil and loaded.size["height"] == 24
        assert type(AutoProcessor.from_pretrained(folder, backend=backend).image_processor) is PixCLIPImageProcessorPil
    image = Image.new("RGB", (9, 9))
    np.testing.assert_array_equal(loaded(image)["pixel_values"], PixCLIPImageProcessor(size=24)(image)["pixel_values"])


def test_a_saved_folder_names_the_class_of_each_backend(folders, tmp_path):
    wanted = {
        "torchvision": "image_processing_pixclip.PixCLIPImageProcessor",
        "pil": "image_processing_pixclip.PixCLIPImageProcessorPil",
    }
    PixCLIPImageProcessor().save_pretrained(tmp_path)
    alone = json.loads((tmp_path / "preprocessor_config.json").read_text())
    together = json.loads((folders[0] / "processor_config.json").read_text())["image_processor"]
    for saved in (alone, together):
        assert saved["auto_map"]["AutoImageProcessor"] == wanted
        assert saved["image_processor_type"] == "PixCLIPImageProcessor"
    again = AutoImageProcessor.from_pretrained(folders[1])
    again.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["auto_map"]["AutoImageProcessor"] == wanted


def test_a_class_of_the_users_own_is_saved_as_it_is(tmp_path):
    processor = PixCLIPImageProcessor()
    processor.auto_map = {"AutoImageProcessor": "my_processing.MyImageProcessor"}
    assert processor.to_dict()["auto_map"] == {"AutoImageProcessor": "my_processing.MyImageProcessor"}
