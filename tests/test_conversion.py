# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""What files the converter reads and which it refuses, and that nothing of a checkpoint is lost or made up in silence."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from conversion_references import (
    clip_text,
    clip_text_shapes,
    openai_vision,
    openai_vision_shapes,
    quick_gelu,
    random_tensors,
)
from safetensors.torch import save_file
from tiny_models import random_images
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from modeling_pixclip import ConversionError, PixCLIPModel, convert_checkpoint, convert_to_folder, to_source
from modeling_pixclip.checkpoint_files import read_checkpoint
from modeling_pixclip.conversion import CHECKPOINT_SOURCES
from modeling_pixclip.conversion_rules import COPY, Rule, SourceFacts, compile_template


EOS = 59
HEADS = {"vision_heads": 4, "text_heads": 2}


def openai_state():
    state = random_tensors({**openai_vision_shapes(), **clip_text_shapes(prefix="")})
    return {**state, "logit_scale": torch.tensor(2.5)}


def save(state, path):
    torch.save(state, path)
    return path


def convert(path, config=HEADS, source="openai-clip", **options):
    return convert_checkpoint(source, [path], config, **options)


def refused(path, *words, config=HEADS, source="openai-clip", **options):
    """The message of the error, which has all the words in it."""
    with pytest.raises(ConversionError) as error:
        convert(path, config, source, **options)
    message = str(error.value)
    for word in words:
        assert word in message, message
    return message


@torch.no_grad()
def assert_computes(model, state):
    ids = torch.tensor([[3, 4, EOS, 0], [5, 6, 7, EOS]])
    for found, expected in (
        (model.get_image_features(random_images(2)), openai_vision(state, random_images(2), 4, quick_gelu)),
        (model.get_text_features(ids), clip_text(state, ids, 2, quick_gelu)),
    ):
        torch.testing.assert_close(found.pooler_output, expected, atol=1e-5, rtol=0)


def tokenizer(folder, end=EOS):
    words = {f"w{number}": number for number in range(EOS - 1)} | {"[bos]": EOS - 1, "[eos]": EOS}
    if end != EOS:
        words["w3"], words["[eos]"] = EOS, 3
    backend = Tokenizer(models.WordLevel(words, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[bos] $A [eos]", special_tokens=[("[bos]", words["[bos]"]), ("[eos]", words["[eos]"])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="[bos]", eos_token="[eos]", pad_token="[eos]", unk_token="w0"
    )
    fast.save_pretrained(folder)
    return folder


class Malicious:
    """What a pickle may run when it is read: here it would leave a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "torchscript", "bare pickle"])
def test_code_in_a_file_is_refused_and_does_not_run(kind, tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "weights.pth"
    content = {"state_dict": openai_state(), "args": Malicious(mark)}
    if kind == "torchscript":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights/constants.pkl", pickle.dumps(()))
            archive.writestr("weights/data.pkl", pickle.dumps({"args": Malicious(mark)}))
    elif kind == "bare pickle":
        path.write_bytes(pickle.dumps({"args": Malicious(mark)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    message = refused(path, "weights.pth", "never", "safetensors.torch.save_file")
    assert "mkdir" in message
    assert "weights_only=False" not in message
    assert not mark.exists()
    # That it would have run:
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.is_dir()


class _Tree(nn.Module):
    """Modules in modules by the dots of names."""

    def __init__(self, state):
        super().__init__()
        for name in sorted({name.split(".")[0] for name in state}):
            if name in state:
                self.register_parameter(name, nn.Parameter(state[name], requires_grad=False))
            else:
                inner = {key[len(name) + 1 :]: value for key, value in state.items() if key.startswith(f"{name}.")}
                self.add_module(name, _Tree(inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_a_torchscript_archive_is_read_without_running_it(tmp_path):
    state = openai_state()
    module = torch.jit.script(_Tree(state).eval())
    torch.jit.save(module, tmp_path / "ViT.pt")
    file = read_checkpoint(tmp_path / "ViT.pt")
    assert file.container == "torchscript"
    assert file.tensors.keys() == state.keys()
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in state.items())
    conversion = convert(tmp_path / "ViT.pt")
    assert_computes(conversion.model, state)
    [back], _, notes = to_source(conversion.model, "openai-clip", conversion.record, conversion.leftovers)
    assert back.container == "torch" and "TorchScript" in notes[0]
    # With another code in it, which would not compile, the tensors are the same.
    with zipfile.ZipFile(tmp_path / "ViT.pt") as archive, zipfile.ZipFile(tmp_path / "odd.pt", "w") as odd:
        for name in archive.namelist():
            odd.writestr(name, b"no code" if name.endswith(".py") else archive.read(name))
    assert_computes(convert(tmp_path / "odd.pt").model, state)


class _Block(nn.Module):
    """As OpenAI's, whose mask is an attribute and no buffer."""

    def __init__(self, width, heads, mask):
        super().__init__()
        self.attn, self.attn_mask = nn.MultiheadAttention(width, heads), mask
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, 4 * width), "gelu": nn.GELU(), "c_proj": nn.Linear(4 * width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x):
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=self.attn_mask)[0]
        return x + self.mlp(self.ln_2(x))


class _Blocks(nn.Module):
    def __init__(self, width, heads, mask=None):
        super().__init__()
        self.resblocks = nn.Sequential(*[_Block(width, heads, mask) for _ in range(2)])

    def forward(self, x):
        return self.resblocks(x.transpose(0, 1)).transpose(0, 1)


class _Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.proj = nn.Conv2d(3, 32, 8, 8, bias=False), nn.Parameter(torch.empty(32, 24))
        self.class_embedding = nn.Parameter(torch.empty(32))
        self.positional_embedding = nn.Parameter(torch.empty(17, 32))
        self.ln_pre, self.ln_post, self.transformer = nn.LayerNorm(32), nn.LayerNorm(32), _Blocks(32, 4)

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class _CLIP(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual = _Vision()
        self.transformer = _Blocks(32, 2, torch.full((20, 20), -torch.inf).triu(1))
        self.token_embedding, self.ln_final = nn.Embedding(60, 32), nn.LayerNorm(32)
        self.positional_embedding = nn.Parameter(torch.empty(20, 32))
        self.text_projection, self.logit_scale = nn.Parameter(torch.empty(32, 24)), nn.Parameter(torch.tensor(0.0))
        for name, size in (("input_resolution", 32), ("context_length", 20), ("vocab_size", 60)):
            self.register_buffer(name, torch.tensor(size))

    def forward(self, pixels, tokens):
        x = self.transformer(self.token_embedding(tokens) + self.positional_embedding)
        return self.visual(pixels), self.ln_final(x)[:, -1] @ self.text_projection


def test_a_traced_archive_as_openai_releases_them(tmp_path):
    """Weights in half precision but for norms and embeddings, and three sizes as tensors beside them."""
    module = _CLIP().eval()
    module.load_state_dict(openai_state(), strict=False)
    inputs = random_images(1), torch.zeros(1, 20, dtype=torch.long)
    with torch.no_grad():
        traced = torch.jit.trace(module, inputs, check_trace=False)
    for name, parameter in traced.named_parameters():
        if "ln_" not in name and "embedding" not in name and name != "logit_scale":
            parameter.data = parameter.data.half()
    torch.jit.save(traced, tmp_path / "ViT.pt")
    state = traced.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float16, torch.float32, torch.int64}
    file = read_checkpoint(tmp_path / "ViT.pt")
    assert file.container == "torchscript" and file.tensors.keys() == state.keys()
    assert all(torch.equal(file.tensors[name], tensor) for name, tensor in state.items())
    conversion = convert(tmp_path / "ViT.pt")
    assert_computes(conversion.model, {name: tensor.float() for name, tensor in state.items()})
    assert conversion.report["dropped"]["sizes stored as tensors"]["tensors"] == [
        "input_resolution",
        "context_length",
        "vocab_size",
    ]
    [back], _, _ = to_source(conversion.model, "openai-clip", conversion.record, conversion.leftovers)
    assert back.tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert back.tensors[name].dtype == tensor.dtype and torch.equal(back.tensors[name], tensor), name


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module"])
def test_wrappers_and_prefixes_come_off(wrapper, tmp_path):
    """And what lies beside the weights is named; plain values there are no reason to refuse a file."""
    state = openai_state()
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    path = save({wrapper: prefixed, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "clip.pt")
    conversion = convert(path)
    assert_computes(conversion.model, state)
    assert conversion.report["unwrapped"] == {"OpenAI CLIP": [wrapper, "module."]}
    assert conversion.report["beside_the_weights"] == {"OpenAI CLIP": ["epoch", "optimizer"]}


def test_names_of_a_compiled_model(tmp_path):
    state = openai_state()
    for prefixes in (["_orig_mod."], ["module.", "_orig_mod."]):
        named = {"".join(prefixes) + name: tensor for name, tensor in state.items()}
        conversion = convert(save(named, tmp_path / "clip.pt"))
        assert_computes(conversion.model, state)
        assert conversion.report["unwrapped"] == {"OpenAI CLIP": prefixes}


def test_tensors_in_the_same_memory_are_taken_apart(tmp_path):
    """Trained, they would move together; safetensors does not write them."""
    table, number = torch.randn(6, 4), torch.tensor(2.0)
    state = {"a": number, "b": number, "rows": table[2:5], "table": table, "next": table.T, "wide": number.expand(3)}
    tensors = read_checkpoint(save(state, tmp_path / "shared.pt")).tensors
    assert all(torch.equal(tensors[name], tensor) for name, tensor in state.items())
    tensors["a"].add_(1)
    tensors["rows"].zero_()
    tensors["wide"][0] = 5
    assert tensors["b"] == 2 and torch.equal(tensors["table"], table) and torch.equal(tensors["next"], table.T)
    assert tensors["wide"].tolist() == [5, 2, 2]


def test_safetensors_and_old_torch_files(tmp_path):
    state = openai_state()
    save_file(state, tmp_path / "clip.safetensors")
    assert_computes(convert(tmp_path / "clip.safetensors").model, state)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert_computes(convert(tmp_path / "old.pt").model, state)


def test_files_that_are_none(tmp_path):
    path = save(openai_state(), tmp_path / "clip.pt")
    refused(tmp_path / "absent.pt", "there is no checkpoint", "absent.pt")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(tmp_path / "pointer.pt", "pointer.pt is a Git LFS pointer", "git lfs pull")
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:-5000])
    refused(tmp_path / "cut.pt", "cut.pt is cut off or damaged")
    save_file(openai_state(), tmp_path / "clip.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "clip.safetensors").read_bytes()[:-500])
    refused(tmp_path / "cut.safetensors", "cut.safetensors is no complete safetensors file")
    refused(save([1, 2], tmp_path / "list.pt"), "holds a list and no named tensors")
    refused(save({**openai_state(), "lr": 0.1}, tmp_path / "mixed.pt"), "'lr' (float)")
    (tmp_path / "folder").mkdir()
    refused(tmp_path / "folder", "has no weights of Transformers", "model.safetensors.index.json")


def sharded_clip(folder):
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**shape, "vocab_size": EOS + 1, "eos_token_id": EOS, "bos_token_id": EOS - 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config={**shape, "image_size": 16, "patch_size": 8}))
    model.save_pretrained(folder, max_shard_size="40KB")
    return model


def test_a_folder_with_a_missing_shard(tmp_path):
    sharded_clip(tmp_path)
    shard = sorted(tmp_path.glob("model-*.safetensors"))[0]
    kept = shard.read_bytes()
    shard.unlink()
    refused(tmp_path, shard.name, "Fetch the whole folder", config=None)
    shard.write_bytes(kept)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    index["weight_map"]["another"] = shard.name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(tmp_path, "only in the index ['another']", config=None)


def test_every_difference_is_listed_with_both_sides(tmp_path):
    state = openai_state()
    del state["visual.transformer.resblocks.1.mlp.c_fc.bias"]
    state["visual.transformer.resblocks.0.attn.rel_pos"] = torch.zeros(3, 2)
    refused(
        save(state, tmp_path / "one.pt"),
        "1 unexpected",
        "'visual.transformer.resblocks.0.attn.rel_pos' (3, 2)",
        "no rule",
    )
    del state["visual.transformer.resblocks.0.attn.rel_pos"]
    state["ln_final.weight"] = torch.zeros(33)
    refused(
        save(state, tmp_path / "two.pt"),
        "1 missing, 1 wrong shape",
        "missing: 'visual.transformer.resblocks.1.mlp.c_fc.bias', which makes 'vision_model.encoder.layers.1.mlp.fc1.bias'",
        "wrong shape: 'ln_final.weight' make 'text_model.backbone.final_layer_norm.weight' (33,); the model has (32,)",
    )
    state = openai_state()
    state["transformer.resblocks.0.attn.in_proj.bias"] = torch.zeros(96)
    refused(save(state, tmp_path / "three.pt"), "twice:", "in_proj_bias", "in_proj.bias")
    state = openai_state()
    state["transformer.resblocks.0.attn.in_proj_bias"] = torch.zeros(95)
    refused(save(state, tmp_path / "four.pt"), "(95,) does not split into query, key and value")
    state = openai_state()
    del state["visual.proj"]
    refused(save(state, tmp_path / "five.pt"), "it has no 'visual.proj', which makes 'visual_projection.weight'")


def test_a_block_that_is_missing_whole(tmp_path):
    state = {name: tensor for name, tensor in openai_state().items() if "visual.transformer.resblocks.0." not in name}
    refused(save(state, tmp_path / "clip.pt"), "visual.transformer.resblocks.0.mlp.c_fc.weight")


def test_files_of_another_source(tmp_path):
    path = save(openai_state(), tmp_path / "clip.pt")
    refused(path, "there is no checkpoint source 'clip'; accepted are 'alpha-clip'", source="clip")
    refused(path, "not what 'fg-clip' takes", "position_embedding_ori.weight", source="fg-clip")
    refused(path, "not what 'long-clip' takes", "positional_embedding_res", source="long-clip")
    message = refused(
        path, "found clip.pt as 'OpenAI CLIP'", "'vision tower of Alpha-CLIP' is missing", source="alpha-clip"
    )
    assert "conv1.weight" in message
    vision = {
        name.removeprefix("visual."): value for name, value in openai_state().items() if name.startswith("visual.")
    }
    other = save(vision, tmp_path / "vision.pth")
    refused(other, "found vision.pth as 'vision tower of Alpha-CLIP'", "'OpenAI CLIP' is missing", source="alpha-clip")
    with pytest.raises(
        ConversionError, match=r"'alpha_visual:conv1_alpha.weight', which makes 'vision_model.*mask_patch"
    ):
        convert_checkpoint("alpha-clip", [path, other], HEADS)
    with pytest.raises(ConversionError, match=r"\['clip.pt', 'again.pt'\] are all 'OpenAI CLIP'; give one"):
        convert_checkpoint("openai-clip", [path, save(openai_state(), tmp_path / "again.pt")], HEADS)


def test_what_shapes_cannot_tell(tmp_path):
    path = save(openai_state(), tmp_path / "clip.pt")
    refused(path, "the vision tower is 32 wide, no multiple of 64", "'vision_heads' in --source_config", config=None)
    refused(
        path, "3 attention heads for the vision tower, which is 32 wide", config={"vision_heads": 3, "text_heads": 2}
    )
    refused(path, "vision_width = 64", "32", config={**HEADS, "vision_width": 64})
    refused(
        path,
        "contradicts itself",
        "vision_config.num_attention_heads",
        config={**HEADS, "vision_config": {"num_attention_heads": 2}},
    )
    refused(path, "image_size = 64, 64 patches of 8 pixels", "has 16", config={**HEADS, "image_size": 64})
    report = convert(path, {**HEADS, "layer_norm_eps": 1e-6, "note": "ours"}).report["source_config"]
    assert report["read"] == {**HEADS, "layer_norm_eps": 1e-6}
    assert set(report["assumed"]) == {"image_size", "hidden_act", "eos_token_id"}
    assert report["not_read"] == ["note"]


def test_a_misspelt_field_is_an_error(tmp_path):
    shapes = {**openai_vision_shapes(width=64), **clip_text_shapes(prefix="", width=64)}
    path = save({**random_tensors(shapes), "logit_scale": torch.tensor(2.5)}, tmp_path / "clip.pt")
    for name, meant in {
        "vision_head": "vision_heads",
        "hidden_acts": "hidden_act",
        "eos_token": "eos_token_id",
    }.items():
        refused(path, f"nothing reads the field {name!r}", f"did you mean {meant!r}?", config={name: 4})
    refused(path, "did you mean 'vision_config'?", config={"vision_configs": {"num_attention_heads": 4}})
    # Whole configurations of projects have more fields than are read.
    whole = sharded_clip(tmp_path / "folder").config.to_dict()
    whole |= {
        "text_config_dict": whole["text_config"],
        "bos_token_id": 1,
        "torch_dtype": "float32",
        "sep_token_id": None,
    }
    conversion = convert(tmp_path / "folder", whole)
    [note] = [note for note in conversion.report["notes"] if "nothing reads" in note]
    assert "text_config_dict" in note and "bos_token_id" in note and "sep_token_id" not in note


def test_the_given_configuration_holds_over_that_of_the_folder(tmp_path):
    sharded_clip(tmp_path)
    conversion = convert(tmp_path, {"hidden_act": "gelu"})
    config = conversion.model.config
    assert config.vision_config.hidden_act == config.text_config.backbone_config.hidden_act == "gelu"
    assert conversion.report["notes"][:2] == [
        f"hidden_act = 'gelu' of --source_config holds over {tower}_config.hidden_act = 'quick_gelu' of the folder's "
        "config.json"
        for tower in ("vision", "text")
    ]
    config = convert(tmp_path, {"text_config": {"hidden_act": "gelu"}}).model.config
    assert config.vision_config.hidden_act == "quick_gelu"
    assert config.text_config.backbone_config.hidden_act == "gelu"
    refused(tmp_path, "vision_width = 32, but the tensors have 64", config={"vision_width": 32})


def test_json_with_a_byte_order_mark(tmp_path):
    sharded_clip(tmp_path)
    for name, content in {
        "config.json": (tmp_path / "config.json").read_text(),
        "preprocessor_config.json": json.dumps({"image_mean": [0.5] * 3}),
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
    assert list(convert(tmp_path, None).image_processor.image_mean) == [0.5] * 3


def test_a_single_number_does_not_make_all_weights_float64(tmp_path):
    halves = {name: tensor.half() for name, tensor in openai_state().items()}
    halves["logit_scale"] = torch.tensor(2.659260036932778, dtype=torch.float64)
    conversion = convert(save(halves, tmp_path / "clip.pt"))
    assert {parameter.dtype for parameter in conversion.model.parameters()} == {torch.float32}
    assert conversion.report["notes"][0] == (
        "logit_scale is 2.65926004 of torch.float64, which does not widen the model; it becomes 2.65926003 of "
        "torch.float32 unless --dtype says otherwise"
    )
    # With the dtype given there is nothing to tell.
    told = convert(tmp_path / "clip.pt", dtype=torch.float64)
    assert told.model.logit_scale.item() == float(halves["logit_scale"])
    assert not any("does not widen" in note for note in told.report["notes"])


def test_a_temperature_of_float32_is_kept_beside_half_precision(tmp_path):
    halves = {name: tensor.half() for name, tensor in openai_state().items()}
    halves["logit_scale"] = torch.tensor(2.6592600, dtype=torch.float32)
    model = convert(save(halves, tmp_path / "clip.pt")).model
    assert model.logit_scale.dtype == torch.float32 and model.logit_scale.item() == halves["logit_scale"].item()


def test_numbers_that_are_none(tmp_path):
    state = openai_state()
    state["ln_final.weight"][3] = torch.nan
    state["visual.conv1.weight"][0, 0, 0, 0] = -torch.inf
    conversion = convert(save(state, tmp_path / "clip.pt"))
    assert "2 tensors hold NaN or infinite numbers: visual.conv1.weight, ln_final.weight" in conversion.report["notes"]
    # Also where a dtype that was asked for has no such number.
    state = openai_state()
    state["ln_final.weight"][3] = 1e6
    narrow = convert(save(state, tmp_path / "clip.pt"), dtype=torch.float16)
    assert "1 tensors hold NaN or infinite numbers: ln_final.weight" in narrow.report["notes"]


def test_weights_and_sizes_of_the_wrong_kind(tmp_path):
    state = {**openai_state(), "ln_final.weight": torch.ones(32, dtype=torch.int64)}
    refused(save(state, tmp_path / "clip.pt"), "1 wrong dtype", "'ln_final.weight' make", "torch.int64")
    path = save(openai_state(), tmp_path / "clip.pt")
    for size in ([32], "32", [32, "32"], 0, True):
        refused(path, f"image_size = {size!r}", "or [height, width]", config={**HEADS, "image_size": size})


def test_released_sizes_need_no_configuration(tmp_path):
    shapes = {**openai_vision_shapes(width=128, layers=1), **clip_text_shapes(prefix="", width=64, layers=1)}
    state = {**random_tensors(shapes), "logit_scale": torch.tensor(2.5)}
    config = convert(save(state, tmp_path / "clip.pt"), None).model.config
    assert config.vision_config.num_attention_heads == 2
    assert config.text_config.backbone_config.num_attention_heads == 1


def test_a_grid_that_is_no_square(tmp_path):
    state = openai_state()
    state["visual.positional_embedding"] = torch.randn(1 + 12, 32)
    path = save(state, tmp_path / "clip.pt")
    refused(path, "12 patches, which are no square", "'image_size'")
    model = convert(path, {**HEADS, "image_size": [24, 32]}).model
    assert model.config.vision_config.grid_size == (3, 4)


def test_a_converted_folder_loads_with_auto_classes_and_gives_a_processor(tmp_path):
    state, path = openai_state(), save(openai_state(), tmp_path / "clip.pt")
    report = convert_to_folder(
        "openai-clip", [path], tmp_path / "out", source_config=HEADS, tokenizer=tokenizer(tmp_path / "words")
    )
    assert json.loads((tmp_path / "out" / "conversion_report.json").read_text()) == report
    assert [file["name"] for file in report["files"]] == ["clip.pt"] and len(report["files"][0]["sha256"]) == 64
    model, processor = AutoModel.from_pretrained(tmp_path / "out"), AutoProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(model, PixCLIPModel)
    assert_computes(model, state)
    assert processor.text_max_length == 20 and processor.image_processor.resize_mode == "shortest_edge"
    assert dict(processor.image_processor.size) == {"height": 32, "width": 32}
    batch = processor(text=["w3 w4", "w5"])
    with torch.no_grad():
        found = model.get_text_features(**batch).pooler_output
    expected = clip_text(state, torch.tensor([[EOS - 1, 3, 4, EOS], [EOS - 1, 5, EOS, EOS]]), 2, quick_gelu)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    # What a user trains on is the model alone, without what is kept for the way back.
    model.save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "conversion.safetensors").exists()


def test_a_folder_brings_its_tokenizer_and_its_pixels(tmp_path):
    sharded_clip(tmp_path)
    tokenizer(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    conversion = convert(tmp_path, None)
    assert conversion.processor.tokenizer.eos_token_id == EOS
    assert list(conversion.processor.image_processor.image_mean) == [0.5] * 3
    assert not any("no tokenizer" in note for note in conversion.report["notes"])


def test_tokenizers_that_do_not_belong_to_the_checkpoint(tmp_path):
    path = save(openai_state(), tmp_path / "clip.pt")
    refused(path, "ends texts with token 3, the checkpoint with 59", tokenizer=tokenizer(tmp_path / "other", end=3))
    folder = tokenizer(tmp_path / "longer")
    longer = PreTrainedTokenizerFast.from_pretrained(folder)
    longer.add_tokens(["more"])
    longer.save_pretrained(folder)
    refused(path, "has 61 tokens, the checkpoint's token embedding 60 rows", tokenizer=folder)


def test_a_text_preset_that_is_not_known_or_of_no_use(tmp_path):
    # Before the checkpoint is read, which here there is not.
    refused(tmp_path / "clip.pt", "text_preset is 'plane'; accepted are", text_preset="plane")
    refused(tmp_path / "clip.pt", "'plain' has no use without a tokenizer", "--tokenizer", text_preset="plain")
    sharded_clip(tmp_path / "folder")
    folder = tokenizer(tmp_path / "folder")
    assert convert(folder, None, text_preset="plain").processor.text_template == "{text}"


def test_without_a_tokenizer_it_is_said(tmp_path):
    conversion = convert(save(openai_state(), tmp_path / "clip.pt"))
    assert conversion.processor is None
    assert any("no tokenizer" in note for note in conversion.report["notes"])


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = save(openai_state(), tmp_path / "clip.pt")
    here = sorted(tmp_path.iterdir())
    with pytest.raises(ConversionError):
        convert_to_folder("openai-clip", [path], tmp_path / "out")
    with pytest.raises(OSError):
        convert_to_folder("openai-clip", [path], tmp_path / "out", source_config=HEADS, tokenizer=tmp_path / "absent")
    assert sorted(tmp_path.iterdir()) == here
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("kept")
    with pytest.raises(ConversionError, match="exists and is not empty"):
        convert_to_folder("openai-clip", [path], tmp_path / "taken", source_config=HEADS)
    assert [file.name for file in (tmp_path / "taken").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    convert_to_folder("openai-clip", [path], tmp_path / "empty", source_config=HEADS)
    assert (tmp_path / "empty" / "model.safetensors").is_file()


@pytest.mark.parametrize("container", ["torch", "safetensors", "torchscript"])
def test_big_tensors_are_not_copied_and_the_file_stays_as_it_is(container, tmp_path):
    """The weights of the model are the memory of the file, where nothing has to be changed; training does not write it."""
    path = tmp_path / "clip"
    if container == "torch":
        torch.save(openai_state(), path)
    elif container == "safetensors":
        save_file(openai_state(), path)
    else:
        torch.jit.save(torch.jit.script(_Tree(openai_state()).eval()), path)
    content = path.read_bytes()
    file, model = read_checkpoint(path), convert(path).model
    state = model.state_dict()
    q, k = (state[f"vision_model.encoder.layers.0.self_attn.{name}_proj.weight"] for name in "qk")
    # Thirds of one table, which is as it was in the file.
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()
    assert torch.equal(torch.cat([q, k]), file.tensors["visual.transformer.resblocks.0.attn.in_proj_weight"][:64])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert path.read_bytes() == content


@pytest.mark.parametrize("source", CHECKPOINT_SOURCES)
def test_a_name_has_one_rule(source):
    """Whatever `{rest}` may stand for, no rule takes what another has."""
    for layout in CHECKPOINT_SOURCES[source]:
        for rule in layout.rules:
            for rest in ("0.weight", "layers.1.self_attn.q_proj.bias"):
                name = rule.source.format(block=1, kind="weight", rest=rest)
                assert layout.find_rule(name)[0] is rule


def test_the_vocabulary_of_tables():
    assert compile_template("a.{block}.b.{kind}").fullmatch("a.12.b.bias").groupdict() == {
        "block": "12",
        "kind": "bias",
    }
    assert not compile_template("a.{block}.b").fullmatch("a.x.b")
    assert not compile_template("a.{block}.{block}").fullmatch("a.1.2")
    with pytest.raises(ValueError, match="drops tensors without a reason"):
        Rule("nothing", "a", operation=COPY)
    facts = SourceFacts.from_dict({"vision": {"heads": 3}, "none": None})
    assert facts.take("heads", "vision.heads") == 3
    with pytest.raises(ConversionError, match="'none' in --source_config"):
        facts.take("none", why="it has none")
