# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
The way back: what came in goes out bit by bit, under names that the other project finds, and nothing that a saved folder
says of its source is trusted. And what is converted is used as any saved model: by remote code, by the Trainer.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conversion_references import clip_text_shapes, openai_vision_shapes, random_tensors
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_conversion import EOS, tokenizer
from test_conversion_clip import (
    ALPHA_FILES,
    FG,
    FG_CONFIG,
    HEADS,
    alpha_config,
    assert_close,
    assert_same_tensors,
    hub_model,
    lora_state,
    openai_state,
    tokens,
)
from tiny_models import random_images
from transformers import CLIPModel, Trainer, TrainingArguments

from modeling_pixclip import (
    ConversionError,
    PixCLIPForPreTraining,
    PixCLIPModel,
    convert_checkpoint,
    convert_to_folder,
    export_checkpoint,
    to_source,
)


RECORD = "conversion.safetensors"


def read(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def change_record(folder, change):
    """Writes the record of a converted folder anew; `change` may return other tensors for it."""
    with safe_open(folder / RECORD, "pt") as file:
        record = json.loads(file.metadata()["pixclip_conversion"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    changed = change(record)
    save_file(
        tensors if changed is None else changed, folder / RECORD, metadata={"pixclip_conversion": json.dumps(record)}
    )


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A converted state dict, its folder, and that of the source."""
    folder = tmp_path_factory.mktemp("converted")
    torch.save(openai_state(), folder / "clip.pt")
    convert_to_folder("openai-clip", [folder / "clip.pt"], folder / "ours", source_config=HEADS)
    return folder


@pytest.mark.parametrize("source", ["alpha-clip", "fg-clip"])
def test_the_goldens_come_back_bit_by_bit_from_a_saved_folder(source, tmp_path):
    checkpoints, config = {
        "alpha-clip": (ALPHA_FILES, alpha_config()),
        "fg-clip": ([FG / "checkpoint.safetensors"], FG_CONFIG),
    }[source]
    convert_to_folder(source, checkpoints, tmp_path / "ours", source_config=config)
    report = export_checkpoint(tmp_path / "ours", source, tmp_path / "back")
    assert report["from_record"]
    if source == "fg-clip":
        assert_same_tensors(read(tmp_path / "back" / "model.safetensors"), read(checkpoints[0]))
        renamed, missing = report["notes"]
        assert renamed.startswith("checkpoint.safetensors is written as model.safetensors")
        assert "modeling_fgclip.py" in missing and "preprocessor_config.json" in missing
        # Where it finds the weights.
        CLIPModel.from_pretrained(tmp_path / "back")
        # A source's own config.json is written as it was, and the code that it names is told.
        config = {**FG_CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling_fgclip.FGCLIPModel"}}
        change_record(tmp_path / "ours", _file(config=config))
        report = export_checkpoint(tmp_path / "ours", source, tmp_path / "with code")
        assert "modeling_fgclip.FGCLIPModel" in report["notes"][-1]
        assert json.loads((tmp_path / "with code" / "config.json").read_text()) == config
        return
    assert report["notes"] == []
    for path in checkpoints:
        assert_same_tensors(read(tmp_path / "back" / path.name), read(path))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_folder_of_torch_files_comes_back_as_one(sharded, tmp_path):
    parent = hub_model()
    parent.save_pretrained(tmp_path / "clip", max_shard_size="20KB" if sharded else "1GB")
    for path in list((tmp_path / "clip").glob("*.safetensors")):
        torch.save(load_file(path), path.with_name(path.name.replace("model", "pytorch_model", 1)).with_suffix(".bin"))
        path.unlink()
    if sharded:
        index = tmp_path / "clip" / "model.safetensors.index.json"
        text = index.read_text().replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (tmp_path / "clip" / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    convert_to_folder("openai-clip", [tmp_path / "clip"], tmp_path / "ours")
    report = export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "back")
    assert list(report["files"]) == ["pytorch_model.bin"]
    assert_same_tensors(CLIPModel.from_pretrained(tmp_path / "back").state_dict(), parent.state_dict())


def test_files_of_one_name_are_told_apart(tmp_path):
    for name, path in zip("xy", ALPHA_FILES, strict=True):
        (tmp_path / name).mkdir()
        torch.save({"state_dict": read(path), "epoch": len(name)}, tmp_path / name / "model.pth")
    files = [tmp_path / "y" / "model.pth", tmp_path / "x" / "model.pth"]
    report = convert_to_folder("alpha-clip", files, tmp_path / "ours", source_config=alpha_config())
    parts = ["OpenAI CLIP", "vision tower of Alpha-CLIP"]
    assert report["unwrapped"] == dict.fromkeys(parts, ["state_dict"])
    assert report["beside_the_weights"] == dict.fromkeys(parts, ["epoch"])
    report = export_checkpoint(tmp_path / "ours", "alpha-clip", tmp_path / "back")
    assert list(report["files"]) == ["model.pth", "model-2.pth"]
    assert "written as model-2.pth" in report["notes"][0]
    for name, path in zip(report["files"], ALPHA_FILES, strict=True):
        assert_same_tensors(read(tmp_path / "back" / name), read(path))


def test_a_narrower_dtype_is_told_both_ways(tmp_path):
    save_file(openai_state(), tmp_path / "clip.safetensors")
    report = convert_to_folder(
        "openai-clip",
        [tmp_path / "clip.safetensors"],
        tmp_path / "ours",
        source_config=HEADS,
        dtype=torch.bfloat16,
    )
    assert any("rounded to bfloat16" in note for note in report["notes"])
    [note] = export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "back")["notes"]
    assert note.startswith(f"{len(openai_state())} tensors were of a wider dtype in the source")
    assert read(tmp_path / "back" / "clip.safetensors")["visual.proj"].dtype == torch.float32
    # Halves in float32 are all there.
    halves = openai_state(dtype=torch.float16)
    torch.save(halves, tmp_path / "half.pt")
    report = convert_to_folder(
        "openai-clip", [tmp_path / "half.pt"], tmp_path / "wide", source_config=HEADS, dtype=torch.float32
    )
    assert not any("rounded" in note for note in report["notes"])
    assert export_checkpoint(tmp_path / "wide", "openai-clip", tmp_path / "halves")["notes"] == []
    assert_same_tensors(read(tmp_path / "halves" / "half.pt"), halves)


def test_weights_that_outgrew_their_dtype_are_one_note(tmp_path):
    torch.save(openai_state(dtype=torch.float16), tmp_path / "half.pt")
    conversion = convert_checkpoint("openai-clip", [tmp_path / "half.pt"], HEADS, dtype=torch.float32)
    with torch.no_grad():
        for parameter in conversion.model.vision_model.encoder.parameters():
            parameter.add_(1e-6)
    [file], _, [note] = to_source(conversion.model, "openai-clip", conversion.record, conversion.leftovers)
    assert "written in the model's dtype" in note and note.endswith(", ...")
    assert {tensor.dtype for tensor in file.tensors.values()} == {torch.float16, torch.float32}


def test_what_is_no_number_comes_back_bit_by_bit(tmp_path):
    state = openai_state()
    state["ln_final.weight"][:2] = torch.tensor([0x7FC00001, -4], dtype=torch.int32).view(torch.float32)
    state["visual.transformer.resblocks.0.attn.in_proj_weight"][0, 0] = -0.0
    torch.save(state, tmp_path / "clip.pt")
    convert_to_folder("openai-clip", [tmp_path / "clip.pt"], tmp_path / "ours", source_config=HEADS)
    export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "back")
    back = read(tmp_path / "back" / "clip.pt")
    assert state["ln_final.weight"].isnan().sum() == 2
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name].view(torch.int32), tensor.view(torch.int32)), name


def test_the_layout_can_be_chosen(tmp_path):
    parent = hub_model()
    parent.save_pretrained(tmp_path / "clip")
    convert_to_folder("openai-clip", [tmp_path / "clip"], tmp_path / "ours")
    # Trained and saved elsewhere, a model has no record.
    PixCLIPModel.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "trained")
    for folder in ("ours", "trained"):
        report = export_checkpoint(tmp_path / folder, "openai-clip", tmp_path / f"{folder} folder", layout="folder")
        assert report["from_record"] == (folder == "ours")
        back = CLIPModel.from_pretrained(tmp_path / f"{folder} folder")
        assert_same_tensors(back.state_dict(), parent.state_dict())
        report = export_checkpoint(tmp_path / folder, "openai-clip", tmp_path / f"{folder} pt", layout="state_dict")
        assert list(report["files"]) == ["openai_clip.pt"] and not report["from_record"]
        assert any("was not used" in note for note in report["notes"]) == (folder == "ours")
    assert_same_tensors(
        read(tmp_path / "ours pt" / "openai_clip.pt"), read(tmp_path / "trained pt" / "openai_clip.pt")
    )
    assert list(export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "as it was")["files"]) == [
        "model.safetensors"
    ]
    with pytest.raises(ConversionError, match="'long-clip' has no layout 'folder'; accepted are 'state_dict'"):
        export_checkpoint(tmp_path / "ours", "long-clip", tmp_path / "long", layout="folder")


@pytest.mark.parametrize(
    "name",
    ["{tmp}/evil.pt", "../evil.pt", "a/evil.pt", "..\\evil.pt", "C:evil.pt", "", ".", "..", ".evil", " evil.pt"]
    + ["config.json", "Config.JSON", "conversion_report.json", "source_config.json", "modeling.py", "e\0vil.pt"]
    + ["\ud800.pt", "e" * 300, 3, None, ["evil.pt"]],
)
def test_a_record_names_no_other_place(name, converted, tmp_path):
    shutil.copytree(converted / "ours", tmp_path / "in" / "ours")
    name = name.format(tmp=tmp_path) if isinstance(name, str) else name
    change_record(tmp_path / "in" / "ours", lambda record: record["files"][0].update(name=name))
    with pytest.raises(ConversionError, match=f"{RECORD}.*no plain name of a file of weights.*Delete the file"):
        export_checkpoint(tmp_path / "in" / "ours", "openai-clip", tmp_path / "out" / "back")
    assert not [path for path in tmp_path.rglob("*") if "vil" in path.name or path.parent.name == "out"]
    # As said:
    (tmp_path / "in" / "ours" / RECORD).unlink()
    report = export_checkpoint(tmp_path / "in" / "ours", "openai-clip", tmp_path / "out" / "back")
    assert list(report["files"]) == ["openai_clip.pt"]


def _file(**fields):
    return lambda record: record["files"][0].update(fields)


def _tensor(place, value):
    return lambda record: record["files"][0]["tensors"][0].__setitem__(place, value)


MALFORMED = {
    "source": lambda record: record.update(source="siglip"),
    "source of no name": lambda record: record.update(source=[]),
    "variant": lambda record: record.update(variant="other"),
    "nothing": lambda record: record.clear(),
    "no files": lambda record: record.update(files=[]),
    "files of no kind": lambda record: record.update(files=3),
    "a file too many": lambda record: record["files"].append(record["files"][0]),
    "part": _file(part="other"),
    "container": _file(container="pickle"),
    "container of another name": _file(name="clip.safetensors"),
    "container of no name": _file(container={}),
    "config": _file(config=[1]),
    "tensors": _file(tensors=[["a"]]),
    "tensors of no kind": _file(tensors=None),
    "no rule": _tensor(0, "other.weight"),
    "name": _tensor(0, 3),
    "dtype": _tensor(1, "load"),
    "dtype of no name": _tensor(1, ["float32"]),
    "shape": _tensor(2, ["1"]),
    "negative": _tensor(2, [-1, 2]),
    "leftover": lambda record: {"dropped:other": torch.ones(1)},
    "leftover of no kind": lambda record: {"other:logit_scale": torch.ones(())},
    "leftover of another shape": lambda record: {"dropped:logit_scale": torch.ones(3)},
    "rows": lambda record: {"rows:positional_embedding": torch.ones(3, 32)},
    "adapters": lambda record: {"original:logit_scale": torch.tensor(2.5)},
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_record_that_no_conversion_has_made_is_refused(kind, converted, tmp_path):
    shutil.copytree(converted / "ours", tmp_path / "ours")
    change_record(tmp_path / "ours", MALFORMED[kind])
    if kind == "rows":
        # That table has no rows that are not read.
        export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "back")
        assert_same_tensors(read(tmp_path / "back" / "clip.pt"), read(converted / "clip.pt"))
        return
    with pytest.raises(ConversionError, match=f"(?s){RECORD}.* cannot be used: .*Delete the file"):
        export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


def test_a_record_that_cannot_be_read_is_refused(converted, tmp_path):
    shutil.copytree(converted / "ours", tmp_path / "ours")
    record = tmp_path / "ours" / RECORD
    for damage in (
        lambda: save_file({"a": torch.ones(1)}, record),
        lambda: save_file({"a": torch.ones(1)}, record, metadata={"pixclip_conversion": "{"}),
        lambda: save_file({"a": torch.ones(1)}, record, metadata={"pixclip_conversion": "[" * 100000}),
        lambda: save_file({"a": torch.ones(1)}, record, metadata={"pixclip_conversion": "null"}),
        lambda: record.write_bytes(b"none"),
    ):
        damage()
        with pytest.raises(ConversionError, match=f"{RECORD}.* cannot be used: .*Delete the file"):
            export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "back")


def test_adapters_and_rows_of_a_record_are_checked(tmp_path):
    torch.save(lora_state()[0], tmp_path / "lora.pth")
    files = [ALPHA_FILES[0], tmp_path / "lora.pth"]
    convert_to_folder("alpha-clip", files, tmp_path / "alpha", source_config=alpha_config())
    convert_to_folder("fg-clip", [FG / "checkpoint.safetensors"], tmp_path / "fg", source_config=FG_CONFIG)
    for source, wanted, change in (
        ("alpha", "lora_A", lambda tensor: tensor[:, 0].contiguous()),
        ("fg", "rows:", lambda tensor: tensor[:3].contiguous()),
    ):
        folder = tmp_path / source
        kept = load_file(folder / RECORD)
        name = next(name for name in kept if wanted in name)
        kept[name] = change(kept[name])

        def damage(record, kept=kept, name=name):
            for file in record["files"]:
                for described in file["tensors"]:
                    if wanted == "lora_A" and name.endswith(described[0]):
                        described[2] = list(kept[name].shape)
            return kept

        change_record(folder, damage)
        with pytest.raises(ConversionError, match=f"{RECORD}.* cannot be used: .*Delete the file"):
            export_checkpoint(folder, f"{source}-clip", tmp_path / "back")


@pytest.mark.parametrize(
    "config", [{"model_type": "clip", "text_config": "none"}, {"vision_config": {"hidden_act": 3}}, {"model_type": []}]
)
def test_the_config_of_a_record_is_checked(config, tmp_path):
    hub_model().save_pretrained(tmp_path / "clip")
    convert_to_folder("openai-clip", [tmp_path / "clip"], tmp_path / "ours")
    change_record(tmp_path / "ours", _file(config=config))
    with pytest.raises(ConversionError):
        export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "back")
    assert not (tmp_path / "back").exists()


PEAK = """
import sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
from bench_conversion import status
from modeling_pixclip import export_checkpoint, PixCLIPImageProcessor
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
export_checkpoint({folder!r}, "openai-clip", {output!r})
print((status("VmHWM") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark of memory is Linux's")
def test_the_way_back_holds_no_second_copy(tmp_path):
    shapes = openai_vision_shapes(width=512, layers=4) | clip_text_shapes(prefix="", width=512, layers=4)
    save_file({**random_tensors(shapes), "logit_scale": torch.tensor(2.5)}, tmp_path / "clip.safetensors")
    convert_to_folder("openai-clip", [tmp_path / "clip.safetensors"], tmp_path / "ours")
    benchmarks = str(Path(__file__).parent / "benchmarks")
    code = PEAK.format(benchmarks=benchmarks, folder=str(tmp_path / "ours"), output=str(tmp_path / "back"))
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    size = (tmp_path / "clip.safetensors").stat().st_size
    assert size > 90e6 and int(process.stdout) < 1.8 * size, (int(process.stdout), size)


REMOTE = """
import sys
import torch
sys.path.insert(0, {tests!r})
# No package of ours can be imported from here on.
from load_by_remote_code import AutoModel, AutoProcessor, load
loaded = load({folder!r})
batch = dict(loaded[AutoProcessor](text=["w3 w4", "w5"]))
with torch.no_grad():
    texts = loaded[AutoModel].get_text_features(**batch).pooler_output
    images = loaded[AutoModel].get_image_features(torch.load({inputs!r})).pooler_output
torch.save((batch["input_ids"], texts, images), {outputs!r})
"""


def test_a_converted_folder_loads_by_remote_code_and_trains(tmp_path):
    parent = hub_model()
    parent.save_pretrained(tmp_path / "clip")
    tokenizer(tmp_path / "clip")
    convert_to_folder("openai-clip", [tmp_path / "clip"], tmp_path / "ours")

    pixels, ids = random_images(2), tokens([5, 9], 9)
    torch.save(pixels, tmp_path / "pixels.pt")
    script = tmp_path / "script.py"
    script.write_text(
        REMOTE.format(
            tests=str(Path(__file__).parent),
            folder=str(tmp_path / "ours"),
            inputs=str(tmp_path / "pixels.pt"),
            outputs=str(tmp_path / "features.pt"),
        )
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.run(
        [sys.executable, "-I", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    texts, remote_texts, remote_images = torch.load(tmp_path / "features.pt")
    assert texts.tolist() == [[EOS - 1, 3, 4, EOS], [EOS - 1, 5, EOS, EOS]]
    with torch.no_grad():
        assert_close(remote_texts, parent.get_text_features(texts).pooler_output)
        assert_close(remote_images, parent.get_image_features(pixels).pooler_output)

    model = PixCLIPForPreTraining.from_pretrained(tmp_path / "ours")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids[ids == 0] = EOS
    batch = {"pixel_values": pixels, "input_ids": ids, "short_caption_index": torch.arange(2)}
    arguments = TrainingArguments(tmp_path / "run", max_steps=1, report_to="none", use_cpu=True, learning_rate=1e-3)
    trainer = Trainer(model, arguments, train_dataset=[0, 1], data_collator=lambda rows: dict(batch))
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.text_model.projection.weight, before["text_model.projection.weight"])
    trainer.save_model(tmp_path / "trained")
    again = PixCLIPForPreTraining.from_pretrained(tmp_path / "trained")
    assert_same_tensors(again.state_dict(), model.state_dict())
    # And on to whoever wants a CLIP.
    export_checkpoint(tmp_path / "trained", "openai-clip", tmp_path / "back", layout="folder")
    back = CLIPModel.from_pretrained(tmp_path / "back")
    with torch.no_grad():
        found, expected = back.get_image_features(pixels), model.eval().get_image_features(pixels)
    assert_close(found.pooler_output, expected.pooler_output)
