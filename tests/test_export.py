# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Exported programs give the model's embeddings, for any number of images, regions and texts and any image size."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import (
    EVA02,
    VOCABULARY,
    backbone_config,
    pixclip_config,
    random_images,
    random_masks,
    random_tokens,
    randomise,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_pixclip import (
    PixCLIPForPreTraining,
    PixCLIPImageProcessor,
    PixCLIPModel,
    PixCLIPProcessor,
    TextAdapterForExport,
    TextForExport,
    VisionForExport,
    export_model,
    export_pixclip,
    onnx_graphs,
)


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from export_model import main


onnx = pytest.importorskip("onnx", reason="pip install onnx onnxruntime onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnx onnxruntime onnxscript")
normalize = torch.nn.functional.normalize

# Least cosine between int8 and float32 on tiny random models, which quantise worse than wide ones.
INT8_COSINE = {"weight_only": 0.999, "dynamic": 0.995}
TOLERANCE = 1e-4


def tiny_model(vision=None, text=None):
    return randomise(PixCLIPModel(pixclip_config(vision=vision, text=text)))


def tiny_processor():
    words = {
        "[pad]": 0,
        "[unk]": 1,
        "[end]": 2,
        "says": 3,
        **{f"w{number}": number for number in range(4, VOCABULARY)},
    }
    backend = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    return PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer, text_template="says {text}", text_max_length=40)


class OnnxProgram:
    """Called as the module that was exported: tensors in, tensors out."""

    def __init__(self, path):
        onnx.checker.check_model(str(path), full_check=True)
        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.names = [value.name for value in self.session.get_inputs()]

    def __call__(self, *inputs):
        feed = {name: tensor.numpy() for name, tensor in zip(self.names, inputs, strict=True)}
        outputs = [torch.from_numpy(output) for output in self.session.run(None, feed)]
        return outputs[0] if len(outputs) == 1 else outputs


def load(folder, part):
    path = Path(folder) / f"{part}.onnx"
    return OnnxProgram(path) if path.exists() else torch.export.load(path.with_suffix(".pt2")).module()


def assert_near(found, expected, tolerance=TOLERANCE):
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


# Images, regions, height, width.
SIZES = [(1, 1, 32, 32), (1, 6, 32, 32), (4, 2, 32, 32), (3, 3, 32, 32), (2, 5, 48, 24)]
# Which ONNX takes, and torch.export refuses: a side of one patch, no regions.
EDGES = [(1, 2, 8, 8), (1, 2, 8, 32), (2, 3, 32, 8), (2, 0, 32, 32)]


def region_inputs(images, regions, height, width):
    index = torch.randint(images, (regions,))
    return random_images(images, height, width), random_masks(regions, height, width), index


@torch.no_grad()
def check_vision(model, folder, dense):
    regions, images = load(folder, "regions"), load(folder, "images")
    takes_edges = isinstance(regions, OnnxProgram)
    for size in [*SIZES, *EDGES] if takes_edges else SIZES:
        inputs = region_inputs(*size)
        expected = normalize(model.get_image_features(*inputs).pooler_output, dim=-1)
        found = regions(*inputs)
        if dense:
            found, pooled = found
            assert_near(pooled, normalize(model.get_region_features(*inputs).pooler_output, dim=-1))
        assert_near(found, expected)
        whole = normalize(model.get_image_features(inputs[0]).pooler_output, dim=-1)
        assert_near(images(inputs[0]), whole)
    for size in [] if takes_edges else EDGES:
        with pytest.raises((AssertionError, ZeroDivisionError)):
            regions(*region_inputs(*size))


@torch.no_grad()
def check_adapter(model, folder):
    adapter = load(folder, "text_adapter")
    for texts in (0, 1, 2, 7):
        vectors = torch.randn(texts, 32)
        long_texts = (torch.arange(texts) % 3 == 0,) if model.config.text_config.long_text_projection else ()
        expected = model.get_text_features(
            backbone_embeds=vectors, long_text_mask=long_texts[0] if long_texts else None
        ).pooler_output
        assert_near(adapter(vectors, *long_texts), normalize(expected, dim=-1))


VARIANTS = {
    "clip": ({}, {}, False),
    "eva02": ({**EVA02, "default_mask": "none"}, {"projection_type": "linear", "long_text_projection": True}, True),
}
SWEEP = {
    "clip, no default mask, dense": ({"default_mask": "none"}, {"normalize_pooled": False}, True),
    "clip, plain dense": ({"dense_features": "plain", "patch_bias": True, "mask_patch_bias": True}, {}, True),
    "eva02, full mask": ({**EVA02, "image_size": [32, 48]}, {"adapter_layers": 0}, False),
    "eva02, plain dense": (
        {**EVA02, "dense_features": "plain", "rope_grid_size": 7},
        {"projection_bias": False},
        True,
    ),
}


def check_variant(variant, folder, format):
    vision, text, dense = variant
    model = tiny_model(vision, text)
    description = export_model(model, folder, format=format, dense=dense)
    check_vision(model, folder, dense)
    check_adapter(model, folder)
    assert all(program["largest_difference"] <= TOLERANCE for program in description["programs"].values())
    assert json.loads((folder / "export.json").read_text()) == description
    assert bool(description["refused"]) == (format == "torch_export")
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_onnx_equals_the_model(name, tmp_path):
    check_variant(VARIANTS[name], tmp_path, "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEP)
def test_onnx_of_other_variants_equals_the_model(name, tmp_path):
    check_variant(SWEEP[name], tmp_path, "onnx")


@pytest.mark.parametrize("name", ["clip", pytest.param("eva02", marks=pytest.mark.slow)])
def test_torch_export_equals_the_model(name, tmp_path):
    check_variant(VARIANTS[name], tmp_path, "torch_export")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its processor, and the folder that the command line made of them."""
    folder = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    model, processor = tiny_model(), tiny_processor()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    main(
        ["--model", str(folder / "model"), "--output_dir", str(folder / "onnx"), "--dense"]
        + ["--parts", "regions", "texts"]
    )
    return model, processor, folder / "onnx"


def test_numpy_and_onnxruntime_alone_give_the_scores(exported):
    model, _, folder = exported
    processor = PixCLIPProcessor.from_pretrained(folder)
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(2)]
    boxes = [[[0, 0, 30, 20], [5, 5, 49, 39]], [[10, 0, 20, 40]]]
    texts = ["w5 w6 w7", "w8"]
    inputs = processor(images=photos, boxes=boxes, text=texts, return_tensors="np")
    description = json.loads((folder / "export.json").read_text())

    def embed(part):
        program = description["programs"][part]
        session = onnxruntime.InferenceSession(folder / program["file"], providers=["CPUExecutionProvider"])
        feed = {name: inputs[name].astype(given["dtype"]) for name, given in program["inputs"].items()}
        return session.run(None, feed)[0]

    scores = description["logit_scale"] * embed("regions") @ embed("texts").T
    with torch.no_grad():
        expected = model(**processor(images=photos, boxes=boxes, text=texts)).logits_per_image
    assert scores.shape == (3, 2)
    np.testing.assert_allclose(scores, expected, atol=1e-3)


def test_preprocessing_by_hand_from_the_description(exported):
    _, processor, folder = exported
    preprocessing = json.loads((folder / "export.json").read_text())["preprocessing"]
    image, mask = preprocessing["image"], preprocessing["mask"]
    assert image["size"] == {"height": 32, "width": 32}
    photo = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    region = np.zeros((32, 32), bool)
    region[4:20, 8:30] = True
    inputs = processor(images=[Image.fromarray(photo)], masks=[[region]], return_tensors="np")
    pixels = (photo * image["rescale_factor"] - image["image_mean"]) / image["image_std"]
    np.testing.assert_allclose(inputs["pixel_values"][0], pixels.transpose(2, 0, 1), atol=1e-5)
    values = (np.where(region, mask["inside"], mask["outside"]) - mask["mean"]) / mask["std"]
    np.testing.assert_allclose(inputs["mask_values"][0, 0], values, atol=1e-5)
    assert preprocessing["text"] == {"template": "says {text}", "max_length": 40, "pooling_mask": "text"}


def test_onnx_file_describes_itself(exported):
    model, _, folder = exported
    session = onnxruntime.InferenceSession(folder / "regions.onnx", providers=["CPUExecutionProvider"])
    shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    assert shapes == {
        "pixel_values": ["images", 3, "height", "width"],
        "mask_values": ["regions", 1, "height", "width"],
        "region_image_index": ["regions"],
        "image_embeds": ["regions", 16],
        "dense_embeds": ["regions", 16],
    }
    assert str(Path(__file__).parents[1]).encode() not in (folder / "regions.onnx").read_bytes()
    found = session.get_modelmeta().custom_metadata_map
    assert float(found["logit_scale"]) == pytest.approx(model.logit_scale.exp().item())
    assert found["format"] == "onnx" and json.loads(found["patch_size"]) == 8
    assert json.loads(found["preprocessing"])["mask"]["mean"] == 0.5
    assert json.loads(found["programs"])["regions"]["inputs"]["mask_values"]["shape"] == shapes["mask_values"]
    assert not [path for path in folder.iterdir() if path.is_dir()]


def test_what_a_program_cannot_do_is_not_silent(exported):
    _, _, folder = exported
    regions = load(folder, "regions")
    images, masks, _ = region_inputs(2, 1, 32, 32)
    with pytest.raises(Exception, match="(?i)out of (data )?bounds|invalid"):
        regions(images, masks, torch.tensor([2]))
    with pytest.raises(Exception, match="(?i)dimension|shape"):
        regions(images, masks[..., :24], torch.tensor([0]))
    _, pooled = regions(images, torch.full_like(masks, -0.5 / 0.26), torch.tensor([0]))
    assert pooled.isnan().all()


@torch.no_grad()
def check_texts(model, folder, **options):
    export_model(model, folder, parts=["texts"], **options)
    program = load(folder, "texts")
    has_paths = model.config.text_config.long_text_projection
    for lengths in ([7, 3, 5], [4], [9, 12]):
        ids, mask = random_tokens(lengths)
        if model.config.text_config.pooling == "eos":
            ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = model.config.text_config.end_of_text_id
        pooled = mask.clone()
        pooled[:, 0] = 0
        paths = torch.arange(len(lengths)) % 2 == 0 if has_paths else None
        expected = normalize(model.get_text_features(ids, mask, pooled, long_text_mask=paths).pooler_output, dim=-1)
        assert_near(program(ids, mask, pooled, *([paths] if has_paths else [])), expected)


@pytest.mark.parametrize("format", ["onnx", "torch_export"])
def test_whole_text_tower(format, tmp_path):
    check_texts(tiny_model(text={"long_text_projection": True}), tmp_path, format=format)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [("qwen3", "last"), ("mistral", "first"), ("llama", "eos"), ("clip_text", "eos"), ("bert", "mean")],
)
def test_text_towers_of_other_kinds(backbone, pooling, tmp_path):
    check_texts(tiny_model(text={"backbone": backbone, "pooling": pooling}), tmp_path)


def float_matrices(path):
    """Matrices of float32 that a graph multiplies by, and how many there are in int8."""
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer}
    products = [node.input[1] for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    kinds = [tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2]
    return [name for name in products if name in weights], kinds.count(onnx.TensorProto.INT8)


@pytest.mark.parametrize(
    ("int8", "name"),
    [("weight_only", "eva02"), ("dynamic", "clip")],
)
@torch.no_grad()
def test_int8_costs_little(int8, name, tmp_path):
    vision, text, _ = VARIANTS[name]
    model = tiny_model(vision, text)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    description = export_model(model, tmp_path, int8=int8, parts=["regions", "text_adapter"])
    inputs = region_inputs(2, 40, 32, 32)
    expected = model.get_image_features(*inputs).pooler_output
    found = load(tmp_path, "regions")(*inputs)
    cosine = torch.nn.functional.cosine_similarity(found, expected)
    assert INT8_COSINE[int8] <= cosine.min() and not torch.equal(found, normalize(expected, dim=-1))
    assert all(INT8_COSINE[int8] <= program["least_cosine"] <= 1.0001 for program in description["programs"].values())
    # 2 blocks of 7 (EVA02) or 6 (CLIP) linear layers, and the projection.
    assert float_matrices(tmp_path / "regions.onnx") == ([], {"eva02": 15, "clip": 13}[name])
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_int8_of_a_channel_of_zeros(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.text_model.projection.weight[3] = 0
        model.text_model.projection.bias[3] = 0
    export_model(model, tmp_path, parts=["text_adapter"], int8="weight_only")
    assert load(tmp_path, "text_adapter")(torch.randn(2, 32))[:, 3].tolist() == [0, 0]


def test_weights_in_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "ONE_FILE_BYTES", 0)
    model = tiny_model()
    export_model(model, tmp_path, parts=["text_adapter"])
    weights = sum(parameter.numel() * 4 for parameter in model.text_model.adapter.parameters() if parameter.ndim > 1)
    assert (
        (tmp_path / "text_adapter.onnx.data").stat().st_size
        > weights
        > (tmp_path / "text_adapter.onnx").stat().st_size
    )
    check_adapter(model, tmp_path)


def test_half_precision_model_is_exported_in_float32(tmp_path):
    model = tiny_model().to(torch.bfloat16)
    export_model(model, tmp_path, parts=["images", "text_adapter"], format="torch_export")
    assert model.dtype == torch.bfloat16 and model.text_model.backbone is not None
    images = random_images(2)
    with torch.no_grad():
        expected = normalize(model.float().get_image_features(images).pooler_output, dim=-1)
        assert_near(load(tmp_path, "images")(images), expected, 1e-6)


READER = """
import sys, torch
sys.modules["modeling_pixclip"] = None
program = torch.export.load(sys.argv[1]).module()
images, masks, index, expected = torch.load(sys.argv[2])
assert (program(images, masks, index) - expected).abs().max() <= 1e-4
"""


def test_program_runs_in_a_process_without_this_library(tmp_path):
    model = tiny_model(EVA02)
    export_model(model, tmp_path / "out", parts=["regions"], format="torch_export")
    inputs = region_inputs(2, 3, 32, 32)
    with torch.no_grad():
        expected = normalize(model.get_image_features(*inputs).pooler_output, dim=-1)
    torch.save([*inputs, expected], tmp_path / "inputs.pt")
    command = [sys.executable, "-c", READER, str(tmp_path / "out" / "regions.pt2"), str(tmp_path / "inputs.pt")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    extra = {"metadata.json": ""}
    torch.export.load(tmp_path / "out" / "regions.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"])["programs"]["regions"]["outputs"]["image_embeds"]["shape"] == [
        "regions",
        16,
    ]


@pytest.mark.parametrize("vision", [{}, EVA02], ids=["clip", "eva02"])
def test_vision_tower_compiles_as_one_graph(vision):
    model = tiny_model(vision)
    compiled = torch.compile(model.vision_model, fullgraph=True, backend="eager")
    for size in SIZES[:3]:
        inputs = region_inputs(*size)
        with torch.no_grad():
            assert_near(compiled(*inputs).pooler_output, model.vision_model(*inputs).pooler_output, 1e-5)
    torch.compiler.reset()


def test_the_same_each_time_and_no_draws_of_the_caller(tmp_path):
    model = tiny_model()
    state = torch.random.get_rng_state()
    one = export_model(model, tmp_path / "one", parts=["text_adapter"])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one == export_model(model, tmp_path / "two", parts=["text_adapter"])


def test_wrong_program_is_refused():
    model = tiny_model()
    module = VisionForExport(model)
    with pytest.raises(ValueError, match="'regions' differs from the model by"):
        export_pixclip._measure("regions", module, model, lambda inputs: [module(*inputs) + 1e-3], None)
    with pytest.raises(ValueError, match="'regions' differs from the model by nan"):
        export_pixclip._measure("regions", module, model, lambda inputs: [module(*inputs) * float("nan")], None)


def without_weights(masks, *ranges):
    return torch.ones_like(masks)


@pytest.mark.parametrize("part", ["regions", "images", "text_adapter", "texts"])
def test_module_that_is_not_the_model_is_refused(part, tmp_path, monkeypatch):
    """Each export module is broken where it does something that the model does elsewhere."""
    model = tiny_model()
    if part == "regions":
        monkeypatch.setattr(export_pixclip, "soft_masks", without_weights)
    elif part == "images":
        monkeypatch.setattr(VisionForExport, "embed", lambda self, vectors: normalize(vectors[:, :16], dim=-1))
    elif part == "text_adapter":
        monkeypatch.setattr(TextAdapterForExport, "forward", lambda self, backbone_embeds: backbone_embeds[:, :16])
    else:
        unmasked = TextForExport.forward
        monkeypatch.setattr(TextForExport, "forward", lambda self, ids, mask, pooled: unmasked(self, ids, mask, mask))
        model = tiny_model(text={"pooling": "mean"})
    with pytest.raises(ValueError, match=f"program '{part}' differs from the model by"):
        export_model(model, tmp_path, parts=[part], format="torch_export", dense=part == "regions")
    assert not list(tmp_path.iterdir())


def test_model_with_objective_is_compared_by_its_features(tmp_path):
    model = randomise(PixCLIPForPreTraining(pixclip_config())).train()
    export_model(model, tmp_path, parts=["regions", "text_adapter"], format="torch_export", dense=True)
    assert model.training
    check_adapter(model.eval(), tmp_path)


def test_refusals(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"parts are \['pictures'\]; accepted are"):
        export_model(model, tmp_path, parts=["pictures"])
    with pytest.raises(ValueError, match="one or several"):
        export_model(model, tmp_path, parts=[])
    with pytest.raises(ValueError, match="format is 'tflite'"):
        export_model(model, tmp_path, format="tflite")
    with pytest.raises(ValueError, match="int8 is 'weight_only'; accepted with format='torch_export'"):
        export_model(model, tmp_path, format="torch_export", int8="weight_only")
    with pytest.raises(ValueError, match="dense=True is a second output of the part 'regions'"):
        export_model(model, tmp_path, parts=["images"], dense=True)
    assert not list(tmp_path.iterdir())
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(ValueError, match="holds an export already"):
        export_model(model, tmp_path)


def test_failed_export_leaves_nothing(tmp_path):
    text = {"backbone": backbone_config("clip_text"), "long_text_projection": True, "long_text_positions": 20}
    model = tiny_model(text=text)
    with pytest.raises(ValueError, match="positions of its own"):
        export_model(model, tmp_path, parts=["text_adapter", "texts"], format="torch_export")
    assert not list(tmp_path.iterdir())


def test_tower_without_a_backbone(tmp_path):
    model = tiny_model(text={"backbone_embeds_only": True})
    export_model(model, tmp_path, parts=["text_adapter"], format="torch_export")
    check_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="no backbone"):
        TextForExport(model)


def test_missing_package_is_named_with_the_remedy(tmp_path, monkeypatch):
    find_spec = export_pixclip.importlib.util.find_spec
    monkeypatch.setattr(
        export_pixclip.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name)
    )
    with pytest.raises(ImportError, match="needs onnxruntime: pip install onnx onnxscript onnxruntime"):
        export_model(tiny_model(), tmp_path)


def test_command_line_takes_a_model_without_a_tokenizer_and_says_so(tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--format", "torch_export", "--parts", "text_adapter"]
    main([*arguments, "--output_dir", str(tmp_path / "bare")])
    said = capsys.readouterr().out
    assert "No processor could be loaded" in said and "No image processor could be loaded either" in said
    described = json.loads((tmp_path / "bare" / "export.json").read_text())["preprocessing"]
    assert described["image"] is None and described["text"] is None
    PixCLIPImageProcessor(size=32).save_pretrained(tmp_path / "model")
    main([*arguments, "--output_dir", str(tmp_path / "images")])
    said = capsys.readouterr().out
    assert "No processor could be loaded" in said and "image processor alone is exported" in said
    described = json.loads((tmp_path / "images" / "export.json").read_text())["preprocessing"]
    assert described["image"]["size"] == {"height": 32, "width": 32} and described["text"] is None
    assert PixCLIPImageProcessor.from_pretrained(tmp_path / "images").size == {"height": 32, "width": 32}
    tiny_processor().save_pretrained(tmp_path / "model")
    main([*arguments, "--output_dir", str(tmp_path / "whole")])
    assert "could be loaded" not in capsys.readouterr().out
