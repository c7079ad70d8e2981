# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Checkpoints of the CLIP family give the same numbers here as with their own code, and go back as they came.

`fixtures/alphaclip_tiny` holds a tiny Alpha-CLIP checkpoint with random weights in the official layout (OpenAI's CLIP and a
vision-only file), inputs, and what the official forward (github.com/SunzeY/AlphaCLIP) made of them in float32 on a CPU.
FG-CLIP's numbers are in test_fgclip_golden.py, whose model comes from the converter.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from conversion_references import (
    clip_text,
    clip_text_shapes,
    long_clip_text,
    openai_vision,
    openai_vision_shapes,
    quick_gelu,
    random_tensors,
)
from safetensors.torch import load_file, save_file
from tiny_models import EVA02, pixclip_config, random_images, random_masks, randomise, vision_config
from transformers import CLIPConfig, CLIPModel

from modeling_pixclip import (
    ConversionError,
    PixCLIPForPreTraining,
    PixCLIPModel,
    convert_checkpoint,
    convert_to_folder,
    export_checkpoint,
    get_objective_preset,
    to_source,
)


FIXTURES = Path(__file__).parent / "fixtures"
ALPHA, FG = FIXTURES / "alphaclip_tiny", FIXTURES / "fgclip_tiny"
ALPHA_FILES = [ALPHA / "openai_clip.safetensors", ALPHA / "alpha_visual.pth"]
FG_CONFIG = {"vision_heads": 2, "text_heads": 2}
EOS = 59
HEADS = {"vision_heads": 4, "text_heads": 2}


def alpha_config():
    return json.loads((ALPHA / "config.json").read_text())


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert torch.equal(found[name], tensor), name


def tokens(lengths, width, seed=0):
    """Texts that end with the highest id and are padded with zeros, as OpenAI pads them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = torch.randint(1, EOS - 1, (length - 1,), generator=generator)
        ids[row, length - 1] = EOS
    return ids


def openai_state(positions=20, dtype=torch.float32):
    state = random_tensors({**openai_vision_shapes(), **clip_text_shapes(prefix="", positions=positions)})
    state["logit_scale"] = torch.tensor(2.5)
    return {name: tensor.to(dtype) for name, tensor in state.items()}


def hub_model(**text):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = CLIPConfig(
        projection_dim=24,
        text_config={
            **shape,
            "num_attention_heads": 4,
            "vocab_size": EOS + 1,
            "max_position_embeddings": 20,
            "eos_token_id": EOS,
            "bos_token_id": EOS - 1,
            **text,
        },
        vision_config={**shape, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
    )
    return randomise(CLIPModel(config))


def openai_state_of(model):
    """A `CLIPModel`'s weights under OpenAI's names."""
    theirs, state = model.state_dict(), {}
    for tower, prefix in (("vision_model", "visual."), ("text_model", "")):
        for number in range(2):
            ours = f"{tower}.encoder.layers.{number}"
            block = f"{prefix}transformer.resblocks.{number}"
            for kind in ("weight", "bias"):
                qkv = [theirs[f"{ours}.self_attn.{name}_proj.{kind}"] for name in ("q", "k", "v")]
                state[f"{block}.attn.in_proj_{kind}"] = torch.cat(qkv)
                for name, other in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    state[f"{block}.{name}.{kind}"] = theirs[f"{ours}.{other}.{kind}"]
    for kind in ("weight", "bias"):
        state[f"visual.ln_pre.{kind}"] = theirs[f"vision_model.pre_layrnorm.{kind}"]
        state[f"visual.ln_post.{kind}"] = theirs[f"vision_model.post_layernorm.{kind}"]
        state[f"ln_final.{kind}"] = theirs[f"text_model.final_layer_norm.{kind}"]
    state["visual.class_embedding"] = theirs["vision_model.embeddings.class_embedding"]
    state["visual.positional_embedding"] = theirs["vision_model.embeddings.position_embedding.weight"]
    state["visual.conv1.weight"] = theirs["vision_model.embeddings.patch_embedding.weight"]
    state["visual.proj"] = theirs["visual_projection.weight"].T.contiguous()
    state["positional_embedding"] = theirs["text_model.embeddings.position_embedding.weight"]
    state["token_embedding.weight"] = theirs["text_model.embeddings.token_embedding.weight"]
    state["text_projection"] = theirs["text_projection.weight"].T.contiguous()
    state["logit_scale"] = theirs["logit_scale"]
    return state


@torch.no_grad()
def assert_same_model(model, parent):
    """The towers, the dense path's inputs, and the logits."""
    pixels, ids = random_images(3), tokens([5, 20, 9], 20)
    ids[ids == 0] = EOS
    assert_close(model.get_image_features(pixels).pooler_output, parent.get_image_features(pixels).pooler_output)
    assert_close(model.get_text_features(ids).pooler_output, parent.get_text_features(ids).pooler_output)
    logits = parent(input_ids=ids, pixel_values=pixels).logits_per_image
    assert_close(model(input_ids=ids, pixel_values=pixels).logits_per_image, logits)


@pytest.fixture(scope="module")
def alpha():
    return convert_checkpoint("alpha-clip", ALPHA_FILES, alpha_config())


@pytest.fixture(scope="module")
def golden():
    return load_file(ALPHA / "expected.safetensors")


def test_alpha_clip_computes_what_the_official_code_does(alpha, golden):
    model, pixels = alpha.model, golden["pixel_values"]
    with torch.no_grad():
        masked = model.get_image_features(pixels, golden["mask_values"]).pooler_output
        full = model.get_image_features(pixels, torch.full_like(golden["mask_values"], 0.5 / 0.26)).pooler_output
        texts = model.get_text_features(golden["input_ids"]).pooler_output
        outputs = model(pixel_values=pixels, mask_values=golden["mask_values"], input_ids=golden["input_ids"])
        without = model.get_image_features(pixels).pooler_output
    assert_close(masked, golden["image_features"])
    assert_close(full, golden["image_features_full_mask"])
    assert_close(texts, golden["text_features"])
    assert_close(outputs.logits_per_image, golden["logits_per_image"])
    # Without a mask there is one of ones.
    assert_close(without, golden["image_features_full_mask"])
    assert float((masked - full).abs().max()) > 0.05


def test_alpha_clip_trains_on_as_alpha_clip(alpha):
    config = alpha.model.config
    assert config.term_weights == {"global": 1.0} and not config.multi_positive
    assert config.text_config.backbone_training == "frozen" and config.vision_config.default_mask == "full"
    assert not any(parameter.requires_grad for parameter in alpha.model.text_model.backbone.parameters())
    processor = alpha.image_processor
    assert (processor.mask_mean, processor.mask_std, processor.resize_mode) == (0.5, 0.26, "shortest_edge")


def test_the_report_accounts_for_every_tensor(alpha):
    report = alpha.report
    dropped = report["dropped"].pop("vision tower of the first file")
    assert report["dropped"] == {} and report["filled"] == {}
    given = sum(len(list(file)) for file in (load_file(ALPHA_FILES[0]), torch.load(ALPHA_FILES[1], weights_only=True)))
    assert sum(report["taken"].values()) + len(dropped["tensors"]) == given
    assert "takes its place" in dropped["reason"]
    assert {file["part"] for file in report["files"]} == {"OpenAI CLIP", "vision tower of Alpha-CLIP"}


@pytest.mark.parametrize("kind", ["state dict", "folder", "sharded", "bin"])
def test_openai_clip_is_clip(kind, tmp_path):
    parent = hub_model()
    path = tmp_path / "clip"
    if kind == "state dict":
        path = tmp_path / "clip.pt"
        sizes = {
            "input_resolution": torch.tensor(32),
            "context_length": torch.tensor(20),
            "vocab_size": torch.tensor(60),
        }
        torch.save({**openai_state_of(parent), **sizes}, path)
    elif kind == "bin":
        parent.save_pretrained(path)
        (path / "model.safetensors").unlink()
        torch.save(parent.state_dict(), path / "pytorch_model.bin")
    else:
        parent.save_pretrained(path, max_shard_size="20KB" if kind == "sharded" else "1GB")
        assert (path / "model.safetensors").exists() == (kind == "folder")
    heads = {"vision_heads": 2, "text_heads": 4} if kind == "state dict" else None
    conversion = convert_checkpoint("openai-clip", [path], heads)
    assert_same_model(conversion.model, parent)
    assert list(conversion.report["filled"]) == ["mask convolution: zeros"]
    model = conversion.model
    with torch.no_grad():
        # Its mask convolution is zero, so a mask changes nothing.
        masked = model.get_image_features(random_images(3), random_masks(3)).pooler_output
        assert_close(masked, parent.get_image_features(random_images(3)).pooler_output)
    assert model.config.vision_config.default_mask == "none"
    assert model.config.term_weights == {"caption_short": 1.0}
    assert set(conversion.report["dropped"]) == ({"sizes stored as tensors"} if kind == "state dict" else set())


def test_a_folder_of_old_transformers_has_positions_and_pools_at_the_highest_id(tmp_path):
    parent = hub_model(eos_token_id=2)
    parent.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for tower, count in (("text", 20), ("vision", 17)):
        state[f"{tower}_model.embeddings.position_ids"] = torch.arange(count)[None]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    conversion = convert_checkpoint("openai-clip", [tmp_path])
    assert_same_model(conversion.model, parent)
    assert len(conversion.report["dropped"]["positions counted"]["tensors"]) == 2
    files, _, _ = to_source(conversion.model, "openai-clip", conversion.record, conversion.leftovers)
    assert_same_tensors(files[0].tensors, state)


def test_other_activations_are_told(tmp_path):
    parent = hub_model(hidden_act="gelu")
    parent.config.vision_config.hidden_act = "gelu"
    parent = CLIPModel(parent.config).eval()
    torch.save(openai_state_of(parent), tmp_path / "clip.pt")
    config = {"vision_heads": 2, "text_heads": 4}
    assert_same_model(
        convert_checkpoint("openai-clip", [tmp_path / "clip.pt"], {**config, "hidden_act": "gelu"}).model, parent
    )
    with pytest.raises(AssertionError):
        assert_same_model(convert_checkpoint("openai-clip", [tmp_path / "clip.pt"], config).model, parent)


def test_half_precision_keeps_its_values(tmp_path):
    halves = openai_state(dtype=torch.float16)
    torch.save(halves, tmp_path / "half.pt")
    model = convert_checkpoint("openai-clip", [tmp_path / "half.pt"], HEADS).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    # OpenAI's releases: halves, but for norms, embeddings and the temperature.
    mixed = {
        name: tensor.float() if "ln_" in name or "embedding" in name or name == "logit_scale" else tensor
        for name, tensor in halves.items()
    }
    torch.save(mixed, tmp_path / "mixed.pt")
    conversion = convert_checkpoint("openai-clip", [tmp_path / "mixed.pt"], HEADS)
    assert conversion.report["dtype"] == "float32"
    state = {name: tensor.float() for name, tensor in mixed.items()}
    with torch.no_grad():
        features = conversion.model.get_image_features(random_images(2)).pooler_output
    assert_close(features, openai_vision(state, random_images(2), 4, quick_gelu))
    files, _, notes = to_source(conversion.model, "openai-clip", conversion.record, conversion.leftovers)
    assert_same_tensors(files[0].tensors, mixed)
    assert notes == []
    narrow = convert_checkpoint("openai-clip", [tmp_path / "mixed.pt"], HEADS, dtype=torch.bfloat16).model
    assert {parameter.dtype for parameter in narrow.parameters()} == {torch.bfloat16}


def test_long_clip(tmp_path):
    state = openai_state(positions=248)
    state["positional_embedding_res"] = torch.randn(248, 32) * 0.3
    torch.save(state, tmp_path / "longclip.pt")
    conversion = convert_checkpoint("long-clip", [tmp_path / "longclip.pt"], HEADS)
    ids = tokens([248, 7, 21, 90], 248)
    with torch.no_grad():
        texts = conversion.model.get_text_features(ids).pooler_output
        images = conversion.model.get_image_features(random_images(2)).pooler_output
    assert_close(texts, long_clip_text(state, ids, 2))
    assert_close(images, openai_vision(state, random_images(2), 4, quick_gelu))
    # So that the rows taken of each table show.
    assert float((texts - clip_text(state, ids, 2, quick_gelu)).abs().max()) > 0.05
    assert conversion.model.config.text_config.max_text_positions(long_text=False) == 248
    assert conversion.model.config.term_weights == {"caption_long": 1.0, "caption_short": 1.0}
    files, _, _ = to_source(conversion.model, "long-clip", conversion.record, conversion.leftovers)
    assert_same_tensors(files[0].tensors, state)


def test_fg_clip_trains_on_as_fg_clip():
    conversion = convert_checkpoint("fg-clip", [FG / "checkpoint.safetensors"], FG_CONFIG)
    model, config = conversion.model, conversion.model.config
    assert isinstance(model, PixCLIPForPreTraining)
    preset = get_objective_preset("fg-clip-stage2")
    assert {name: getattr(config, name) for name in preset} == preset
    state = load_file(FG / "checkpoint.safetensors")
    assert model.logit_scale_region.item() == float(state["logit_scale_finegraind"])
    assert model.logit_scale_hard_negative.item() == float(state["logit_scale_hardneg"])
    assert all(parameter.requires_grad for parameter in model.text_model.backbone.parameters())
    assert conversion.image_processor.resize_mode == "squash"
    assert (config.text_config.max_text_positions(False), config.text_config.max_text_positions(True)) == (77, 248)


FG_STATE = FG / "checkpoint.safetensors"


def fg_folder(folder, **text):
    """As on the Hub: bfloat16, counted positions, code of its own, which is not to run."""
    state = {name: tensor.bfloat16() for name, tensor in load_file(FG_STATE).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    towers = {}
    for tower in ("text", "vision"):
        inner, width = shapes[f"{tower}_model.encoder.layers.0.mlp.fc1.weight"]
        count = len({name.split(".")[3] for name in shapes if name.startswith(f"{tower}_model.encoder.")})
        towers[tower] = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": count}
        towers[tower] |= {"num_attention_heads": 2, "model_type": f"clip_{tower}_model"}
    vocabulary = shapes["text_model.embeddings.token_embedding.weight"][0]
    towers["text"] |= {
        "vocab_size": vocabulary,
        "eos_token_id": vocabulary - 1,
        "bos_token_id": vocabulary - 2,
        **text,
    }
    towers["vision"] |= {"image_size": 64, "patch_size": 16}
    config = {
        "architectures": ["FGCLIPModel"],
        "auto_map": {
            "AutoConfig": "modeling_fgclip.FGCLIPConfig",
            "AutoModelForCausalLM": "modeling_fgclip.FGCLIPModel",
        },
        "model_type": "clip",
        "projection_dim": shapes["text_projection.weight"][0],
        "text_config": towers["text"],
        "vision_config": towers["vision"],
        "torch_dtype": "bfloat16",
        "use_sim": True,
    }
    pixels = {"crop_size": 64, "do_center_crop": True, "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26] * 3}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps({**pixels, "resample": 3}))
    (folder / "modeling_fgclip.py").write_text("raise SystemExit('ran')")
    return state


def test_a_folder_of_fg_clip(tmp_path):
    state = fg_folder(tmp_path / "fg")
    report = convert_to_folder("fg-clip", [tmp_path / "fg"], tmp_path / "ours")
    assert report["dtype"] == "bfloat16" and list(report["dropped"]) == ["positions counted"]
    assert list(report["source_config"]["assumed"]) == []
    model, info = PixCLIPForPreTraining.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()) and model.dtype == torch.bfloat16
    assert list(convert_checkpoint("fg-clip", [tmp_path / "fg"]).image_processor.image_mean) == [0.48, 0.45, 0.4]
    bits = convert_checkpoint("fg-clip", [FG_STATE], FG_CONFIG, dtype=torch.bfloat16).model.state_dict()
    assert_same_tensors(model.state_dict(), bits)
    export_checkpoint(tmp_path / "ours", "fg-clip", tmp_path / "back")
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), state)
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (tmp_path / "fg" / "config.json").read_text()
    )


def test_a_folder_of_fg_clip_that_names_its_long_texts(tmp_path):
    fg_folder(tmp_path / "fg", max_position_embeddings=248)
    conversion = convert_checkpoint("fg-clip", [tmp_path / "fg"])
    text = conversion.model.config.text_config
    assert (text.max_text_positions(False), text.max_text_positions(True)) == (77, 248)
    assert any("max_position_embeddings = 248; the tensors have 77" in note for note in conversion.report["notes"])
    fg_folder(tmp_path / "other", max_position_embeddings=100)
    with pytest.raises(ConversionError, match="max_position_embeddings = 100, but the tensors have 77"):
        convert_checkpoint("fg-clip", [tmp_path / "other"])


def test_temperatures_in_the_same_memory(tmp_path):
    """As a training that sets each to the first leaves them."""
    state = load_file(FG_STATE)
    state["logit_scale_finegraind"] = state["logit_scale_hardneg"] = state["logit_scale"]
    torch.save(state, tmp_path / "fg.pth")
    convert_to_folder("fg-clip", [tmp_path / "fg.pth"], tmp_path / "ours", source_config=FG_CONFIG)
    model = PixCLIPForPreTraining.from_pretrained(tmp_path / "ours")
    assert model.logit_scale.item() == model.logit_scale_region.item() == float(state["logit_scale"])
    model = convert_checkpoint("fg-clip", [tmp_path / "fg.pth"], FG_CONFIG).model
    with torch.no_grad():
        model.logit_scale.add_(1)
    assert model.logit_scale_region.item() == model.logit_scale_hard_negative.item() == float(state["logit_scale"])


def test_the_class_to_train_fg_clip_on_with_is_named():
    notes = convert_checkpoint("fg-clip", [FG_STATE], FG_CONFIG).report["notes"]
    assert any("train on with PixCLIPForPreTraining" in note for note in notes)


def lora_state(rank=3):
    """Alpha-CLIP's vision tower with adapters in every linear layer, and the same with them merged."""
    state = torch.load(ALPHA_FILES[1], weights_only=True)
    merged = dict(state)
    for name, weight in list(state.items()):
        layer = name.removesuffix(".weight")
        if not name.endswith(".weight") or weight.ndim != 2:
            continue
        outputs, inputs = weight.shape
        if layer.endswith("in_proj"):
            down, up = torch.randn(2 * rank, inputs) * 0.1, torch.randn(2 * outputs // 3, rank) * 0.1
            third = outputs // 3
            delta = torch.cat([up[:third] @ down[:rank], torch.zeros(third, inputs), up[third:] @ down[rank:]])
        else:
            down, up = torch.randn(rank, inputs) * 0.1, torch.randn(outputs, rank) * 0.1
            delta = up @ down
        state[f"{layer}.lora_A"], state[f"{layer}.lora_B"] = down, up
        merged[name] = weight + delta / rank
    return state, merged


def test_adapters_of_alpha_clip_are_merged_and_come_back(tmp_path):
    state, merged = lora_state()
    for name, content in (("lora.pth", state), ("merged.pth", merged)):
        torch.save(content, tmp_path / name)
    conversion = convert_checkpoint("alpha-clip", [ALPHA_FILES[0], tmp_path / "lora.pth"], alpha_config())
    plain = convert_checkpoint("alpha-clip", [ALPHA_FILES[0], tmp_path / "merged.pth"], alpha_config()).model
    pixels, masks = random_images(2), random_masks(2)
    with torch.no_grad():
        found = conversion.model.get_image_features(pixels, masks).pooler_output
        assert_close(found, plain.get_image_features(pixels, masks).pooler_output)
    assert len(conversion.report["merged"]) == 3 * 8
    files, _, notes = to_source(conversion.model, "alpha-clip", conversion.record, conversion.leftovers)
    assert_same_tensors(files[1].tensors, state)
    assert notes == []
    # Trained on, the adapters no longer are what the weights were made from.
    with torch.no_grad():
        conversion.model.vision_model.encoder.layers[0].mlp.fc1.weight.add_(0.1)
    files, _, notes = to_source(conversion.model, "alpha-clip", conversion.record, conversion.leftovers)
    assert files[1].tensors.keys() == merged.keys()
    assert any("adapters merged" in note for note in notes)
    torch.testing.assert_close(
        files[1].tensors["transformer.resblocks.0.mlp.c_fc.weight"],
        merged["transformer.resblocks.0.mlp.c_fc.weight"] + 0.1,
    )


def test_adapters_that_are_not_loralibs_are_refused(tmp_path):
    state, _ = lora_state()
    name = "transformer.resblocks.0.mlp.c_fc"
    torch.save({key: value for key, value in state.items() if key != f"{name}.lora_B"}, tmp_path / "half.pth")
    with pytest.raises(ConversionError, match="half of an adapter.*lora_B"):
        convert_checkpoint("alpha-clip", [ALPHA_FILES[0], tmp_path / "half.pth"], alpha_config())
    state[f"{name}.lora_A"] = torch.randn(9, 64)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(ConversionError, match=r"lora_A \(9, 64\) and lora_B \(256, 3\)"):
        convert_checkpoint("alpha-clip", [ALPHA_FILES[0], tmp_path / "wrong.pth"], alpha_config())


def other_base(**changed):
    return {**load_file(ALPHA_FILES[0]), **changed}


@pytest.mark.parametrize("size", ["patch", "grid", "block more", "block less", "unknown"])
def test_the_clip_file_of_another_size_is_refused(size, tmp_path):
    state = other_base()
    message = r"different sizes, in {} tensors: .*'{}' \({}\) in the first, .*{} in the second"
    if size == "patch":
        # B/32 under a tower of B/16.
        state |= {
            "visual.conv1.weight": torch.randn(64, 3, 16, 16),
            "visual.positional_embedding": torch.randn(5, 64),
        }
        message = message.format(
            2, "visual.conv1.weight", "64, 3, 16, 16", r"'alpha_visual:conv1.weight': \(64, 3, 8, 8\)"
        )
        message = message.replace("': ", "' ")
    elif size == "grid":
        # L/14 at 336 pixels under a tower of 224.
        state["visual.positional_embedding"] = torch.randn(26, 64)
        message = message.format(1, "visual.positional_embedding", "26, 64", r"positional_embedding' \(17, 64\)")
    elif size == "block more":
        state["visual.transformer.resblocks.2.ln_1.weight"] = torch.randn(64)
        message = message.format(1, "visual.transformer.resblocks.2.ln_1.weight", "64,", "nothing like it")
    elif size == "block less":
        state = {name: tensor for name, tensor in state.items() if "visual.transformer.resblocks.1." not in name}
        message = "nothing in the first, 'alpha_visual:transformer.resblocks.1.* in the second"
    else:
        state["visual.nonsense"] = torch.randn(2)
        message = r"unexpected: 'visual.nonsense' \(2,\)"
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint("alpha-clip", [tmp_path / "clip.safetensors", ALPHA_FILES[1]], alpha_config())


def test_alpha_clip_whole_in_one_file(tmp_path, golden):
    """Its vision tower in place of CLIP's, with adapters or without; and back as it was."""
    texts = {name: tensor for name, tensor in other_base().items() if not name.startswith("visual.")}
    for vision in (torch.load(ALPHA_FILES[1], weights_only=True), lora_state()[0]):
        state = {**texts, **{f"visual.{name}": tensor for name, tensor in vision.items()}}
        torch.save(vision, tmp_path / "vision.pth")
        torch.save(state, tmp_path / "whole.pth")
        conversion = convert_checkpoint("alpha-clip", [tmp_path / "whole.pth"], alpha_config())
        apart = convert_checkpoint("alpha-clip", [ALPHA_FILES[0], tmp_path / "vision.pth"], alpha_config())
        assert_same_tensors(conversion.model.state_dict(), apart.model.state_dict())
        [file], _, notes = to_source(conversion.model, "alpha-clip", conversion.record, conversion.leftovers)
        assert_same_tensors(file.tensors, state)
        assert notes == []
    with pytest.raises(ConversionError, match=r"whole.pth has \['visual.conv1_alpha.weight'\]"):
        convert_checkpoint("alpha-clip", [tmp_path / "whole.pth", ALPHA_FILES[1]], alpha_config())


def test_a_clip_folder_of_another_size_is_refused(tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = {**shape, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
    vision = {**shape, "hidden_size": 64, "intermediate_size": 256, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(tmp_path)
    config = {"vision_config": {"image_size": 32, "patch_size": 8}}
    with pytest.raises(
        ConversionError, match=r"patch_embedding.weight' \(64, 3, 16, 16\) in the first, 'alpha_visual:conv1"
    ):
        convert_checkpoint("alpha-clip", [tmp_path, ALPHA_FILES[1]], config)


def test_alpha_clip_on_a_folder_of_transformers(tmp_path, golden):
    """Whose vision tower is not read, so that the official vision file on it is the same."""
    official = load_file(ALPHA_FILES[0])
    parent = convert_checkpoint("alpha-clip", ALPHA_FILES, alpha_config())
    shape = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1}
    text = {**shape, "vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97}
    vision = {**shape, "hidden_size": 64, "intermediate_size": 256, "image_size": 32, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))
    own = parent.model.state_dict()
    state = clip.state_dict()
    for name in state:
        ours = name.replace("text_model.", "text_model.backbone.", 1).replace(
            "text_projection", "text_model.projection"
        )
        if name.startswith(("text_", "logit_scale")):
            state[name] = own[ours].reshape(state[name].shape)
    clip.load_state_dict(state)
    clip.save_pretrained(tmp_path)
    conversion = convert_checkpoint("alpha-clip", [ALPHA_FILES[1], tmp_path])
    with torch.no_grad():
        outputs = conversion.model(
            pixel_values=golden["pixel_values"], mask_values=golden["mask_values"], input_ids=golden["input_ids"]
        )
    assert_close(outputs.logits_per_image, golden["logits_per_image"])
    assert official["logit_scale"] == conversion.model.logit_scale[0]
    files, _, _ = to_source(conversion.model, "alpha-clip", conversion.record, conversion.leftovers)
    assert_same_tensors(files[0].tensors, load_file(tmp_path / "model.safetensors"))


def test_without_a_record_what_the_model_lacks_is_filled_and_told(tmp_path):
    """A model that was trained and saved elsewhere: the official code reads no row and no tensor that is not the model's."""
    model = convert_checkpoint("fg-clip", [FG / "checkpoint.safetensors"], FG_CONFIG).model
    [file], config, notes = to_source(model, "fg-clip")
    official = load_file(FG / "checkpoint.safetensors")
    assert file.tensors.keys() == official.keys()
    table = "text_model.embeddings.position_embedding_{}.weight"
    for name, tensor in official.items():
        rows = {table.format("ori"): slice(20), table.format("res"): slice(20, None)}.get(name, ...)
        assert torch.equal(file.tensors[name][rows], tensor[rows]), name
    assert len(notes) == 2 and all("never read" in note for note in notes)
    assert config["text_config"]["max_position_embeddings"] == 77
    # Of a model without the objective's temperatures, those of FG-CLIP start at the temperature.
    model.save_pretrained(tmp_path / "whole")
    PixCLIPModel.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "plain")
    report = export_checkpoint(tmp_path / "plain", "fg-clip", tmp_path / "back")
    assert "logit_scale_finegraind is written from logit_scale" in report["notes"]
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back["logit_scale_hardneg"] == back["logit_scale_finegraind"] == official["logit_scale"]

    alpha = convert_checkpoint("alpha-clip", ALPHA_FILES, alpha_config()).model
    first, second = to_source(alpha, "alpha-clip")[0]
    assert_same_tensors(second.tensors, torch.load(ALPHA_FILES[1], weights_only=True))
    # The official loader takes sizes from the first file's vision tower, and then weights from the second.
    assert torch.equal(first.tensors["visual.conv1.weight"], second.tensors["conv1.weight"])
    assert "visual.conv1_alpha.weight" not in first.tensors


def test_clip_of_transformers_reads_what_is_written(tmp_path):
    parent = hub_model()
    parent.save_pretrained(tmp_path / "clip")
    convert_to_folder("openai-clip", [tmp_path / "clip"], tmp_path / "ours")
    export_checkpoint(tmp_path / "ours", "openai-clip", tmp_path / "back")
    back, info = CLIPModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_tensors(back.state_dict(), parent.state_dict())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (tmp_path / "clip" / "config.json").read_text()
    )


def test_what_a_layout_has_no_place_for_is_refused(tmp_path):
    parent = hub_model()
    parent.save_pretrained(tmp_path)
    model = convert_checkpoint("openai-clip", [tmp_path]).model
    with pytest.raises(ConversionError, match="'text_filip_projection.weight' needs"):
        to_source(model, "fg-clip")
    with torch.no_grad():
        model.vision_model.embeddings.mask_patch_embedding.weight.add_(1)
    with pytest.raises(ConversionError, match="mask_patch_embedding.weight' has no place in this layout"):
        to_source(model, "openai-clip")
    # As Alpha-CLIP it can be written.
    files, _, _ = to_source(model, "alpha-clip")
    assert float(files[1].tensors["conv1_alpha.weight"].min()) == 1
    model.config.text_config.normalize_pooled = True
    with pytest.raises(ConversionError, match="text_config.normalize_pooled is True, there False"):
        to_source(model, "alpha-clip")
    fg = convert_checkpoint("fg-clip", [FG / "checkpoint.safetensors"], FG_CONFIG).model
    with pytest.raises(ConversionError, match="long_projection"):
        to_source(fg, "openai-clip")
    with pytest.raises(ConversionError, match="there is no checkpoint source 'siglip'"):
        to_source(fg, "siglip")
    with pytest.raises(ConversionError, match="no way back to 'pixclip'; accepted are 'alpha-clip', 'fg-clip'"):
        to_source(fg, "pixclip")


def test_a_model_of_other_towers_is_refused():
    with pytest.raises(ConversionError, match=r"(?s)'token_embedding.weight' needs .*layers.0.mlp.*\(29 more\)"):
        to_source(PixCLIPModel(pixclip_config()), "openai-clip")
    model = convert_checkpoint("fg-clip", [FG / "checkpoint.safetensors"], FG_CONFIG).model
    config = copy.deepcopy(model.config)
    config.vision_config = vision_config(**{**config.vision_config.to_dict(), **EVA02})
    with pytest.raises(ConversionError, match="has no place in this layout"):
        to_source(PixCLIPForPreTraining(config), "fg-clip")


def test_a_temperature_of_one_entry_goes_back_as_one(tmp_path):
    state = {**openai_state(), "logit_scale": torch.tensor([2.5])}
    torch.save(state, tmp_path / "clip.pt")
    conversion = convert_checkpoint("openai-clip", [tmp_path / "clip.pt"], HEADS)
    assert conversion.model.logit_scale.shape == (1,)
    assert_same_tensors(
        to_source(conversion.model, "openai-clip", conversion.record, conversion.leftovers)[0][0].tensors, state
    )
    # OpenAI's has none.
    assert to_source(conversion.model, "openai-clip")[0][0].tensors["logit_scale"].shape == ()


def test_temperatures_above_the_bound_stay(tmp_path):
    state = openai_state()
    state["logit_scale"] = torch.tensor(5.5)
    torch.save(state, tmp_path / "clip.pt")
    conversion = convert_checkpoint("openai-clip", [tmp_path / "clip.pt"], HEADS)
    ids, pixels = tokens([4, 9], 20), random_images(2)
    with torch.no_grad():
        logits = conversion.model(input_ids=ids, pixel_values=pixels).logits_per_image
    images, texts = openai_vision(state, pixels, 4, quick_gelu), clip_text(state, ids, 2, quick_gelu)
    cosines = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
    torch.testing.assert_close(logits, cosines * state["logit_scale"].exp(), atol=1e-3, rtol=0)
    assert any("logit_scale_max is raised" in note for note in conversion.report["notes"])


@pytest.mark.parametrize("source", ["alpha-clip", "long-clip"])
def test_tables_and_files_that_do_not_belong_together(source, tmp_path):
    if source == "alpha-clip":
        state = openai_state()
        torch.save(state, tmp_path / "other.pt")
        with pytest.raises(
            ConversionError, match=r"different widths: .*alpha_visual:proj.: 32, .text_projection.: 24"
        ):
            convert_checkpoint(source, [tmp_path / "other.pt", ALPHA_FILES[1]], {"text_heads": 2, "eos_token_id": 59})
        return
    state = openai_state(positions=248)
    state["positional_embedding_res"] = torch.randn(200, 32)
    torch.save(state, tmp_path / "long.pt")
    with pytest.raises(ConversionError, match="different lengths.*248.*200"):
        convert_checkpoint(source, [tmp_path / "long.pt"], HEADS)
