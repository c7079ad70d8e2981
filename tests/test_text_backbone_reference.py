# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Checkpoints that name their text backbone and leave out its weights."""

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_models import (
    assert_same_weights,
    backbone_config,
    box_masks,
    clip_vision_config,
    normalised,
    pixclip_config,
    random_boxes,
    random_images,
    random_tokens,
    randomise,
)
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    CLIPVisionModelWithProjection,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel, PixCLIPTextModel
from modeling_pixclip.text_backbone_reference import config_sha256


def save_backbone(folder, name="llama", seed=0, dtype=torch.float32, **fields):
    backbone = randomise(AutoModel.from_config(backbone_config(name, **fields)), seed).to(dtype)
    backbone.save_pretrained(folder)
    return backbone


def build(folder, model_class=PixCLIPModel, backbone=None, **options):
    """A model of a vision parent and a text backbone that is saved in `folder / "llm"` if none is named."""
    randomise(CLIPVisionModelWithProjection(clip_vision_config())).save_pretrained(folder / "clip")
    if backbone is None:
        save_backbone(folder / "llm")
    return model_class.from_vision_text_pretrained(str(folder / "clip"), str(backbone or folder / "llm"), **options)


def outputs(model):
    ids, mask = random_tokens([9, 5])
    with torch.no_grad():
        if isinstance(model, PixCLIPTextModel):
            return model(input_ids=ids, attention_mask=mask).pooler_output
        return model.get_text_features(ids, mask).pooler_output


def load(model_class, folder, **options):
    """A loaded model, of which nothing was missing or left over."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model


def stored(folder):
    config = json.loads((folder / "config.json").read_text())
    return config.get("text_config", config), load_file(folder / "model.safetensors")


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix == ".safetensors")


def without_backbone(state):
    return {name: tensor for name, tensor in state.items() if "backbone." not in name or ".lora_" in name}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "bert", "clip_text"])
@pytest.mark.parametrize("model_class", [PixCLIPModel, PixCLIPForPreTraining, PixCLIPTextModel])
def test_a_checkpoint_without_the_llm_loads_as_it_was(kind, model_class, tmp_path, monkeypatch):
    save_backbone(tmp_path / "llm", kind)
    pooling = {"pooling": "last", "bidirectional": kind != "clip_text"}
    model = build(tmp_path, backbone=tmp_path / "llm", text_kwargs=pooling)
    if model_class is PixCLIPTextModel:
        model = model.text_model
    elif model_class is PixCLIPForPreTraining:
        model = build(tmp_path, model_class, backbone=tmp_path / "llm", text_kwargs=pooling)
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    config, tensors = stored(tmp_path / "saved")
    assert tensors.keys() == without_backbone(model.state_dict()).keys()
    assert config["backbone_source"]["folder"] == "../llm" and not config["backbone_in_checkpoint"]
    backbone_bytes = sum(
        tensor.nbytes
        for name, tensor in model.state_dict().items()
        if name not in without_backbone(model.state_dict())
    )
    model.save_pretrained(tmp_path / "whole")
    assert size(tmp_path / "whole") - size(tmp_path / "saved") > 0.95 * backbone_bytes > 0
    # The backbone is loaded, and no other one is made and filled first.
    monkeypatch.setattr(AutoModel, "from_config", lambda *_, **__: pytest.fail("a second backbone is made"))
    loaded = load(model_class, tmp_path / "saved")
    assert_same_weights(loaded, model)
    assert torch.equal(outputs(loaded), outputs(model))
    for name, buffer in model.named_buffers():
        assert torch.equal(loaded.get_buffer(name), buffer), name
    tower = getattr(loaded, "text_model", loaded)
    assert tower.backbone.config is tower.config.backbone_config
    assert not any(parameter.requires_grad for parameter in tower.backbone.parameters())


def test_a_text_tower_alone_is_built_on_a_backbone(tmp_path):
    save_backbone(tmp_path / "llm", dtype=torch.bfloat16)
    model = PixCLIPTextModel.from_backbone_pretrained(str(tmp_path / "llm"), projection_dim=8, pooling="last")
    assert (model.backbone.dtype, model.dtype, model.config.pooling) == (torch.bfloat16, torch.float32, "last")
    assert outputs(model).shape == (2, 8) and not model.training
    model.save_pretrained(tmp_path / "tower", include_text_backbone=False)
    assert torch.equal(outputs(load(PixCLIPTextModel, tmp_path / "tower")), outputs(model))
    whole = PixCLIPTextModel.from_backbone_pretrained(str(tmp_path / "llm"), backbone_training="full")
    assert whole.backbone.dtype == torch.float32
    with pytest.raises(TypeError, match=r"PixCLIPTextModel has unexpected names \['poling'\]"):
        PixCLIPTextModel.from_backbone_pretrained(str(tmp_path / "llm"), poling="last")


def test_a_cast_backbone_is_still_the_one_it_was_loaded_as(tmp_path):
    model = build(tmp_path)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "saved", include_text_backbone=False)
    assert load(PixCLIPModel, tmp_path / "saved").text_model.backbone.dtype == torch.bfloat16


def test_resized_token_embeddings_load(tmp_path):
    model = build(tmp_path)
    assert model.resize_token_embeddings(64).weight.shape == (64, 32)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(outputs(load(PixCLIPModel, tmp_path / "saved")), outputs(model))


def test_an_incomplete_or_damaged_backbone_is_refused(tmp_path):
    model = build(tmp_path)
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    file = tmp_path / "llm" / "model.safetensors"
    tensors, whole = load_file(file), file.read_bytes()
    save_file({k: v for k, v in tensors.items() if "layers.1.mlp" not in k}, file, {"format": "pt"})
    for load_it in (
        lambda: build(tmp_path, backbone=tmp_path / "llm"),
        lambda: load(PixCLIPModel, tmp_path / "saved"),
    ):
        with pytest.raises(ValueError, match="3 weights are missing.*layers.1.mlp"):
            load_it()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"refers to folder '.*llm'.*is damaged"):
        load(PixCLIPModel, tmp_path / "saved")
    with pytest.raises(TypeError, match="text_backbone is a int"):
        PixCLIPModel.from_pretrained(tmp_path / "saved", text_backbone=3)


def test_a_reference_holds_through_symbolic_links(tmp_path):
    model = build(tmp_path)
    (tmp_path / "scratch" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "scratch" / "deep")
    model.save_pretrained(tmp_path / "link" / "saved", include_text_backbone=False)
    for folder in (tmp_path / "link" / "saved", tmp_path / "scratch" / "deep" / "saved"):
        assert torch.equal(outputs(load(PixCLIPModel, folder)), outputs(model))


def test_a_stretched_backbone_is_not_left_out(tmp_path):
    """Its table of positions is no longer the one of the folder it came from."""
    save_backbone(tmp_path / "llm", "clip_text")
    model = PixCLIPTextModel.from_backbone_pretrained(str(tmp_path / "llm"), pooling="first")
    model.resize_position_embeddings(60)
    with pytest.raises(ValueError, match="cannot be left out: its table of positions was resized"):
        model.save_pretrained(tmp_path / "tower", include_text_backbone=False)
    model.save_pretrained(tmp_path / "tower")
    assert torch.equal(outputs(load(PixCLIPTextModel, tmp_path / "tower")), outputs(model))


def test_the_origin_survives_saving_and_loading(tmp_path):
    model = build(tmp_path)
    expected = outputs(model)
    origin = model.config.text_config.backbone_source
    assert origin["folder"] == str(tmp_path / "llm")
    for step, included in enumerate((False, True, True, False, False)):
        folder = tmp_path / "deeper" / str(step)
        model.save_pretrained(folder, include_text_backbone=included)
        # Saving changes nothing of the model.
        assert model.config.text_config.backbone_source == origin
        config, tensors = stored(folder)
        assert config["backbone_source"]["folder"] == "../../llm"
        assert any(".backbone." in name for name in tensors) == included
        model = load(PixCLIPModel, folder)
        assert model.config.text_config.backbone_source == origin
        assert model.config.text_config.backbone_in_checkpoint == included
        assert torch.equal(outputs(model), expected)
    # Loaded without, it is saved without.
    model.save_pretrained(tmp_path / "again")
    assert not any(".backbone." in name for name in stored(tmp_path / "again")[1])


def test_a_folder_can_move_with_its_backbone(tmp_path):
    (tmp_path / "here").mkdir()
    model = build(tmp_path / "here")
    model.save_pretrained(tmp_path / "here" / "saved", include_text_backbone=False)
    assert str(tmp_path) not in (tmp_path / "here" / "saved" / "config.json").read_text()
    (tmp_path / "here").rename(tmp_path / "there")
    assert torch.equal(outputs(load(PixCLIPModel, tmp_path / "there" / "saved")), outputs(model))
    relative = os.path.relpath(tmp_path / "there" / "saved")
    assert torch.equal(outputs(load(PixCLIPModel, relative)), outputs(model))


def test_adapters_are_saved_and_the_weights_beside_them_are_not(tmp_path):
    model = build(tmp_path)
    model.set_text_backbone_trainable("lora", rank=2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    tensors = stored(tmp_path / "saved")[1]
    assert tensors.keys() == without_backbone(model.state_dict()).keys()
    assert sum(".lora_" in name for name in tensors) == 2 * 2 * 7
    loaded = load(PixCLIPModel, tmp_path / "saved")
    assert_same_weights(loaded, model)
    assert torch.equal(outputs(loaded), outputs(model))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trainable
    loaded.save_pretrained(tmp_path / "again")
    assert_same_weights(load(PixCLIPModel, tmp_path / "again"), model)


def test_keys_that_are_truly_missing_are_reported(tmp_path):
    model = build(tmp_path)
    model.set_text_backbone_trainable("lora", rank=2)
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    tensors = stored(tmp_path / "saved")[1]
    lost = {"visual_projection.weight", next(name for name in tensors if ".lora_A." in name)}
    for name in lost:
        del tensors[name]
    tensors["text_model.adapter.surplus"] = torch.zeros(1)
    save_file(tensors, tmp_path / "saved" / "model.safetensors", {"format": "pt"})
    info = PixCLIPModel.from_pretrained(tmp_path / "saved", output_loading_info=True)[1]
    assert info["missing_keys"] == lost
    assert info["unexpected_keys"] == {"text_model.adapter.surplus"}


def test_the_user_can_give_the_backbone(tmp_path):
    model = build(tmp_path)
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    (tmp_path / "llm").rename(tmp_path / "elsewhere")
    loaded_backbone = AutoModel.from_pretrained(tmp_path / "elsewhere")
    language_model = LlamaForCausalLM(backbone_config("llama"))
    language_model.model.load_state_dict(loaded_backbone.state_dict())
    for given in (tmp_path / "elsewhere", str(tmp_path / "elsewhere"), loaded_backbone, language_model):
        loaded = load(PixCLIPModel, tmp_path / "saved", text_backbone=given)
        assert_same_weights(loaded, model)
        assert torch.equal(outputs(loaded), outputs(model))
    assert loaded.text_model.backbone is language_model.model
    assert torch.equal(
        outputs(AutoModel.from_pretrained(tmp_path / "saved", text_backbone=str(tmp_path / "elsewhere"))),
        outputs(model),
    )
    model.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="text_backbone was given, but .* holds the weights"):
        PixCLIPModel.from_pretrained(tmp_path / "whole", text_backbone=str(tmp_path / "elsewhere"))


def test_another_backbone_is_refused(tmp_path):
    model = build(tmp_path)
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    other = {"wide": {"hidden_size": 64, "head_dim": 16}, "deep": {"num_hidden_layers": 3}, "bert": {"name": "bert"}}
    for name, fields in other.items():
        save_backbone(tmp_path / name, **fields)
    for name, message in (
        ("wide", r"'.*wide' is 64 wide, this checkpoint was made with one 32 wide \(folder '.*llm'\)"),
        ("deep", r"another hash; different are \{'num_hidden_layers': '3 instead of 2'\}"),
        ("bert", r"another hash; different are .*'model_type': 'bert instead of llama'"),
    ):
        for given in (tmp_path / name, AutoModel.from_pretrained(tmp_path / name)):
            with pytest.raises(ValueError, match=message if given is tmp_path / name else message.split(" is ")[-1]):
                PixCLIPModel.from_pretrained(tmp_path / "saved", text_backbone=given)
        # Under the same name.
        shutil.rmtree(tmp_path / "llm")
        shutil.copytree(tmp_path / name, tmp_path / "llm")
        with pytest.raises(ValueError, match=message.replace("wide'", "llm'")):
            PixCLIPModel.from_pretrained(tmp_path / "saved")


# Of the configurations of tiny_models.py; another version of Transformers must not make others of them.
HASHES = {
    "llama": "1a524d6b7167fafba3141f545855ed9612b74e8c80dc67436426112be8cc196a",
    "qwen3": "41012583593473d547f2a68947fd2b15e4fbd1ee55b0468e5349ee6c1776fa02",
    "mistral": "d1438f48d5d25701542fe53d562a8e3221670a47d9090ae7a1f20897315bd620",
    "bert": "0775dd19ca7fe52fdb56900d7896f33c949f35929f8b819f09bbda91ebfe4474",
    "clip_text": "6f9d878afec625600def776198f0917bae495c7268fd620972a245c91d946422",
}


def test_the_hash_is_of_the_architecture_and_the_same_in_every_version(tmp_path):
    config = backbone_config("llama")
    expected = config_sha256(config)
    assert {name: config_sha256(backbone_config(name)) for name in HASHES} == HASHES
    AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    LlamaForCausalLM(config).save_pretrained(tmp_path / "head")
    config.is_causal = False
    config.use_cache = False
    for same in (config, *(AutoConfig.from_pretrained(tmp_path / name) for name in ("base", "head"))):
        assert config_sha256(same) == expected
    for name, value in {"vocab_size": 64, "num_hidden_layers": 3, "rope_theta": 5e5, "eos_token_id": 5}.items():
        assert config_sha256(backbone_config("llama", **{name: value})) != expected, name


def test_a_lacking_backbone_is_named(tmp_path):
    model = build(tmp_path)
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    shutil.rmtree(tmp_path / "llm")
    with pytest.raises(
        OSError, match=r"(?s)'.*saved' holds no text backbone; it refers to folder '.*llm'.*text_backbone="
    ):
        PixCLIPModel.from_pretrained(str(tmp_path / "saved"))
    path = tmp_path / "saved" / "config.json"
    config = json.loads(path.read_text())
    source = config["text_config"]["backbone_source"]
    commit = "0123456789abcdef0123456789abcdef01234567"
    config["text_config"]["backbone_source"] = {**source, "repo_id": "nobody/no-llm", "revision": commit}
    del config["text_config"]["backbone_source"]["folder"]
    path.write_text(json.dumps(config))
    with pytest.raises(OSError, match=rf"(?s)refers to 'nobody/no-llm' at revision '{commit}'.*pass text_backbone="):
        PixCLIPModel.from_pretrained(tmp_path / "saved", local_files_only=True)


def test_what_has_no_reference_is_refused(tmp_path):
    made = randomise(PixCLIPModel(pixclip_config()))
    with pytest.raises(ValueError, match="does not know where it comes from"):
        made.save_pretrained(tmp_path / "made", include_text_backbone=False)
    trained = build(tmp_path)
    trained.set_text_backbone_trainable("full")
    trained.set_text_backbone_trainable("frozen")
    merged = build(tmp_path)
    merged.set_text_backbone_trainable("lora")
    merged.merge_text_backbone_lora()
    resized = build(tmp_path)
    resized.text_model.backbone.resize_token_embeddings(64)
    altered = build(tmp_path)
    with torch.no_grad():
        altered.text_model.backbone.layers[1].mlp.up_proj.weight.add_(1e-3)
    stretched = build(tmp_path)
    stretched.resize_token_embeddings(64)
    for model, message in (
        (trained, "all of it was made trainable, so its weights are not those of folder '.*llm' any more"),
        (merged, "LoRA adapters were merged into it, so"),
        (resized, "its weights were changed, so its weights are not those of"),
        (altered, "its weights were changed, so"),
        (stretched, "its token embeddings were resized, so"),
    ):
        with pytest.raises(ValueError, match=f"cannot be left out: {message}.*include_text_backbone=True"):
            model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
        assert not (tmp_path / "saved").exists()
        assert model.config.text_config.backbone_in_checkpoint
    # It is remembered.
    merged.save_pretrained(tmp_path / "saved")
    loaded = load(PixCLIPModel, tmp_path / "saved")
    with pytest.raises(ValueError, match="LoRA adapters were merged into it"):
        loaded.save_pretrained(tmp_path / "again", include_text_backbone=False)
    with pytest.raises(ValueError, match="which others do not have"):
        build(tmp_path).save_pretrained(tmp_path / "again", include_text_backbone=False, push_to_hub=True)
    # New weights made by the configuration of a checkpoint are not what it refers to.
    build(tmp_path).save_pretrained(tmp_path / "again", include_text_backbone=False)
    new = PixCLIPModel(AutoConfig.from_pretrained(tmp_path / "again"))
    with pytest.raises(ValueError, match="does not know where it comes from"):
        new.save_pretrained(tmp_path / "new", include_text_backbone=False)


def test_the_hub_is_not_told_of_folders(tmp_path, monkeypatch):
    pushed = []

    def push_to_hub(self, repo_id):
        """What that of Transformers does before it uploads."""
        self.save_pretrained(tmp_path / "pushed")
        pushed.append((tmp_path / "pushed" / "config.json").read_text())

    monkeypatch.setattr(PreTrainedModel, "push_to_hub", push_to_hub)
    model = build(tmp_path)
    source = model.config.text_config.backbone_source
    model.push_to_hub("maker/model")
    assert json.loads(pushed[0])["text_config"]["backbone_source"] is None and str(tmp_path) not in pushed[0]
    assert model.config.text_config.backbone_source == source
    model.config.text_config.backbone_in_checkpoint = False
    with pytest.raises(ValueError, match="cannot be left out of a checkpoint on the Hub.*which others do not have"):
        model.push_to_hub("maker/model")
    assert len(pushed) == 1


def test_a_backbone_that_trains_is_saved_after_all(tmp_path):
    build(tmp_path).save_pretrained(tmp_path / "saved", include_text_backbone=False)
    for step in ("full", "merged"):
        model = load(PixCLIPModel, tmp_path / "saved")
        model.set_text_backbone_trainable("full" if step == "full" else "lora")
        if step == "merged":
            model.merge_text_backbone_lora()
        model.save_pretrained(tmp_path / step)
        assert_same_weights(load(PixCLIPModel, tmp_path / step), model)
        assert any(".backbone." in name for name in stored(tmp_path / step)[1])


def test_shards_hold_no_backbone(tmp_path):
    model = build(tmp_path)
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False, max_shard_size="20KB")
    names = {name for path in (tmp_path / "saved").glob("model-*.safetensors") for name in load_file(path)}
    assert len(list((tmp_path / "saved").glob("model-*.safetensors"))) > 2
    assert names == without_backbone(model.state_dict()).keys()
    assert_same_weights(load(PixCLIPModel, tmp_path / "saved"), model)


def test_dtype_device_and_attention_reach_the_backbone(tmp_path):
    save_backbone(tmp_path / "llm", dtype=torch.bfloat16)
    model = build(tmp_path, backbone=tmp_path / "llm")
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    assert stored(tmp_path / "saved")[0]["backbone_dtype"] == "bfloat16"
    assert_same_weights(load(PixCLIPModel, tmp_path / "saved"), model)
    for dtype in (torch.float32, torch.float16):
        loaded = load(PixCLIPModel, tmp_path / "saved", dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    for device_map in ("cpu", {"": "cpu"}, "auto"):
        assert_same_weights(load(PixCLIPModel, tmp_path / "saved", device_map=device_map), model)
    loaded = load(PixCLIPModel, tmp_path / "saved", attn_implementation="eager")
    assert loaded.text_model.backbone.config._attn_implementation == "eager"
    assert loaded.vision_model.config._attn_implementation == "eager"
    with torch.no_grad():
        found = loaded.get_text_features(*random_tokens([9, 5]), output_attentions=True)
    assert all(weights is not None for weights in found.attentions)
    with pytest.raises(ValueError, match="quantization_config does not reach a text backbone"):
        PixCLIPModel.from_pretrained(tmp_path / "saved", quantization_config={"quant_method": "bitsandbytes"})


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return index


def training_batch(_):
    ids, mask = random_tokens([9, 5, 7, 6])
    return {
        "pixel_values": random_images(4),
        "mask_values": normalised(box_masks(random_boxes(4))),
        "input_ids": ids,
        "attention_mask": mask,
    }


def trainer(model, folder):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        learning_rate=1e-2,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
    )
    return Trainer(model, arguments, train_dataset=Batches(), data_collator=training_batch)


@pytest.mark.parametrize("mode", ["frozen", "lora"])
def test_checkpoints_of_the_trainer_follow_the_config(mode, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    options = {"text_kwargs": {"backbone_in_checkpoint": False}, "local_weight": 0.0}
    model = build(tmp_path, PixCLIPForPreTraining, **options)
    model.set_text_backbone_trainable(mode)
    trainer(model, tmp_path / "run").train()
    checkpoint = tmp_path / "run" / "checkpoint-2"
    assert stored(checkpoint)[1].keys() == without_backbone(model.state_dict()).keys()
    fresh = build(tmp_path, PixCLIPForPreTraining, **options)
    fresh.set_text_backbone_trainable(mode)
    for again in (fresh, load(PixCLIPForPreTraining, checkpoint)):
        resumed = trainer(again, tmp_path / "run")
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert resumed.state.global_step == 4
        assert_same_weights(again, model)
    # The Trainer warns of what a checkpoint lacks; this is left out on purpose.
    assert "missing keys" not in caplog.text
    assert_same_weights(load(PixCLIPForPreTraining, tmp_path / "run" / "checkpoint-4"), model)


def test_auto_classes_and_remote_code_load_it(tmp_path):
    model = build(tmp_path)
    model.set_text_backbone_trainable("lora", rank=2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_()
    model.save_pretrained(tmp_path / "saved", include_text_backbone=False)
    for auto in (AutoModel, AutoModelForPreTraining):
        assert torch.equal(outputs(load(auto, tmp_path / "saved")), outputs(model))
    ids, mask = random_tokens([9, 5])
    save_file({"ids": ids, "mask": mask, "expected": outputs(model)}, tmp_path / "expected.safetensors")
    program = """
    import sys
    sys.modules["modeling_pixclip"] = sys.modules["processing_pixclip"] = None
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoModelForPreTraining
    given = load_file("expected.safetensors")
    for source in ("saved", "again"):
        for auto in (AutoModel, AutoModelForPreTraining):
            model, info = auto.from_pretrained(source, trust_remote_code=True, output_loading_info=True)
            assert type(model).__module__.startswith("transformers_modules."), type(model)
            assert not any(info.values()), info
            found = model.get_text_features(given["ids"], given["mask"]).pooler_output
            assert torch.equal(found, given["expected"])
        # As it was loaded: without the backbone.
        model.save_pretrained("again")
    assert not any(".backbone." in name and ".lora_" not in name for name in load_file("again/model.safetensors"))
    print("checked")
    """
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip() == "checked", done.stderr


def test_a_hub_backbone_is_taken_at_the_commit_it_was_loaded_at(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "hub" / "models--maker--llm"
    first, second = "a" * 40, "b" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(first)
    backbone = save_backbone(cache / "snapshots" / first, seed=1)
    save_backbone(cache / "snapshots" / second, seed=2)
    model = build(tmp_path, backbone="maker/llm")
    assert_same_weights(model.text_model.backbone, backbone)
    (cache / "refs" / "main").write_text(second)
    for name in ("saved", "again"):
        model.save_pretrained(tmp_path / name, include_text_backbone=False)
        source = stored(tmp_path / name)[0]["backbone_source"]
        assert (source["repo_id"], source["revision"]) == ("maker/llm", first)
        model = load(PixCLIPModel, tmp_path / name)
        assert_same_weights(model.text_model.backbone, backbone)
    # A revision of the checkpoint is not one of the backbone.
    load(PixCLIPModel, tmp_path / "saved", revision="main")
    shutil.rmtree(cache / "snapshots" / first)
    with pytest.raises(OSError, match=rf"(?s)refers to 'maker/llm' at revision '{first}'.*pass text_backbone="):
        PixCLIPModel.from_pretrained(tmp_path / "saved")
