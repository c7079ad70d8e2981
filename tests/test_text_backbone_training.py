# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""How the text backbone trains: frozen, by LoRA adapters, or in full; and its own dtype."""

import subprocess
import sys
import textwrap

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
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
    text_config,
)
from transformers import AutoModel, CLIPVisionModelWithProjection, Trainer, TrainingArguments

from modeling_pixclip import PixCLIPForPreTraining, PixCLIPModel, PixCLIPTextConfig, PixCLIPTextModel


BACKBONES = ["llama", "qwen3", "mistral", "bert", "clip_text"]
LINEARS = {
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen3": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "mistral": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "bert": {"query", "key", "value", "dense"},
    "clip_text": {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"},
}


def tower(backbone="llama", **fields):
    return randomise(PixCLIPTextModel(text_config(backbone, **fields)))


def with_adapters(backbone="llama", seed=3, **options):
    """A tower in LoRA mode whose adapters change its outputs."""
    model = tower(backbone)
    model.set_backbone_trainable("lora", rank=4, **options)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(std=0.02, generator=generator)
    return model


def vectors(model):
    ids, mask = random_tokens([9, 5, 7])
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).pooler_output


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model):
    """Names of parameters that a backward pass gives a gradient other than zero, and the gradients."""
    model.zero_grad()
    ids, mask = random_tokens([9, 5, 7])
    outputs = model.train()(input_ids=ids, attention_mask=mask)
    torch.manual_seed(1)
    (outputs.pooler_output * torch.randn_like(outputs.pooler_output)).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.eval()
    return {name: gradient.clone() for name, gradient in found.items() if bool(gradient.any())}


def adapters(model):
    return {name for name in model.state_dict() if ".lora_" in name}


def in_backbone(names):
    return {name for name in names if name.startswith("backbone.")}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_lora_trains_adapters_of_attention_and_mlp_alone(backbone):
    model = tower(backbone)
    before = vectors(model)
    model.set_backbone_trainable("lora")
    assert torch.equal(vectors(model), before)
    names = {name.split(".lora_")[0].rpartition(".")[2] for name in adapters(model)}
    assert names == LINEARS[backbone]
    # Every layer has them, and layers alone: BERT's pooler is no part of the output.
    assert {name.split(".lora_")[0].split("layer")[1].split(".")[1] for name in adapters(model)} == {"0", "1"}
    assert in_backbone(trainable(model)) == adapters(model)
    # Of a new adapter only B moves, as B is zero.
    assert in_backbone(gradients(model)) == {name for name in adapters(model) if ".lora_B." in name}


def test_gradients_reach_what_a_mode_trains():
    model = with_adapters()
    own = {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}
    assert set(gradients(model)) == own | adapters(model)
    model.set_backbone_trainable("frozen")
    assert set(gradients(model)) == own and trainable(model) == own
    model.set_backbone_trainable("full")
    assert not adapters(model)
    assert trainable(model) == {name for name, _ in model.named_parameters()} == set(gradients(model))


def test_a_frozen_backbone_keeps_no_graph():
    model = with_adapters(dropout=0.5)
    model.set_backbone_trainable("frozen")
    model.train()
    ids, mask = random_tokens([9, 5])
    outputs = model(input_ids=ids, attention_mask=mask)
    assert not outputs.backbone_embeds.requires_grad and not outputs.last_hidden_state.requires_grad
    assert not any(module.training for module in model.backbone.modules())
    assert outputs.pooler_output.requires_grad
    model.set_backbone_trainable("lora")
    assert model.backbone.training
    assert model(input_ids=ids, attention_mask=mask).backbone_embeds.requires_grad
    # The dropout of the adapters is on.
    states = [model(input_ids=ids, attention_mask=mask).backbone_embeds for _ in range(2)]
    assert not torch.equal(*states)


def test_modes_can_follow_each_other_in_any_order():
    model = with_adapters()
    expected = vectors(model)
    for mode in ("frozen", "lora", "frozen", "lora"):
        model.set_backbone_trainable(mode)
        assert model.config.backbone_training == mode
        assert torch.equal(vectors(model), expected), mode
    model.set_backbone_trainable("full")
    assert model.config.backbone_lora is None
    torch.testing.assert_close(vectors(model), expected, atol=1e-5, rtol=0)
    full = vectors(model)
    for mode in ("frozen", "full", "lora", "full", "frozen", "lora", "frozen"):
        model.set_backbone_trainable(mode)
        torch.testing.assert_close(vectors(model), full, atol=1e-5, rtol=0)
    assert adapters(model) and not in_backbone(trainable(model))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_merged_equals_unmerged(backbone):
    model = with_adapters(backbone)
    expected, plain = vectors(model), vectors(tower(backbone))
    assert (expected - plain).abs().max() > 1e-2
    model.merge_backbone_lora()
    torch.testing.assert_close(vectors(model), expected, atol=1e-5, rtol=0)
    assert model.state_dict().keys() == tower(backbone).state_dict().keys()
    assert model.config.backbone_training == "frozen" and model.config.backbone_lora is None
    assert not in_backbone(trainable(model))


@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_adapters_are_saved_and_loaded(mode, tmp_path):
    model = with_adapters(target_modules=["q_proj", "layers.1.mlp.up_proj"])
    model.set_backbone_trainable(mode)
    model.save_pretrained(tmp_path)
    written = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert written == {"config.json", "model.safetensors"}
    for loaded, info in (
        PixCLIPTextModel.from_pretrained(tmp_path, output_loading_info=True),
        AutoModel.from_pretrained(tmp_path, output_loading_info=True),
    ):
        assert not any(info.values()), info
        assert_same_weights(loaded, model)
        assert torch.equal(vectors(loaded), vectors(model))
        assert loaded.config.backbone_training == mode
        assert trainable(loaded) == trainable(model)
    names = {name.split(".lora_")[0] for name in adapters(loaded)}
    layers = "backbone.layers"
    assert names == {f"{layers}.0.self_attn.q_proj", f"{layers}.1.self_attn.q_proj", f"{layers}.1.mlp.up_proj"}
    model.merge_backbone_lora()
    model.save_pretrained(tmp_path / "merged")
    assert_same_weights(PixCLIPTextModel.from_pretrained(tmp_path / "merged"), model)


def test_a_missing_adapter_is_reported(tmp_path):
    with_adapters().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in tensors if ".lora_B." in name)
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    info = PixCLIPTextModel.from_pretrained(tmp_path, output_loading_info=True)[1]
    assert info["missing_keys"] == {lost}


def test_the_config_alone_makes_adapters():
    model = PixCLIPTextModel(text_config(backbone_training="lora", backbone_lora={"rank": 2}))
    assert model.config.backbone_lora == {"rank": 2, "alpha": 32, "dropout": 0.05, "target_modules": None}
    assert in_backbone(trainable(model)) == adapters(model) != set()
    assert all(not model.state_dict()[name].any() for name in adapters(model) if ".lora_B." in name)


def test_float32_adapters_beside_a_bfloat16_backbone_train(tmp_path):
    model = tower()
    model.backbone.to(torch.bfloat16)
    model.set_backbone_trainable("lora", rank=4)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    for name, dtype in dtypes.items():
        frozen = name.startswith("backbone.") and ".lora_" not in name
        assert dtype == (torch.bfloat16 if frozen else torch.float32), name
    found = gradients(model)
    assert in_backbone(found) and all(gradient.dtype == torch.float32 for gradient in found.values())
    model.save_pretrained(tmp_path)
    assert_same_weights(PixCLIPTextModel.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model = with_adapters(dropout=0.0)
    plain = gradients(model)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    checkpointed = gradients(model)
    assert plain.keys() == checkpointed.keys() and in_backbone(plain)
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


def test_full_training_takes_the_dtype_of_the_tower():
    model = tower()
    model.backbone.to(torch.bfloat16)
    model.set_backbone_trainable("full")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_cannot_be_is_refused(tmp_path):
    model = tower()
    for options, message in (
        ({"mode": "adapters"}, r"mode 'adapters' is unknown; accepted are 'frozen', 'lora' and 'full'"),
        ({"mode": "full", "rank": 4}, r"\['rank'\] are options of mode 'lora', got mode 'full'"),
        ({"mode": "lora", "rank": 0}, r"rank >= 1.*got rank 0"),
        ({"mode": "lora", "dropout": 1.0}, r"dropout < 1, got .*dropout 1\.0"),
        ({"mode": "lora", "target_modules": "q_proj"}, r"must be a list of names .*'q_proj'"),
        ({"mode": "lora", "target_modules": ["q_proj", "w1"]}, r"\['w1'\] are no linear layers.*'up_proj'"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_backbone_trainable(**options)
        assert model.config.backbone_training == "frozen" and model.config.backbone_lora is None
        assert not adapters(model)
    with pytest.raises(ValueError, match="no LoRA adapters to merge"):
        model.merge_backbone_lora()
    model.set_backbone_trainable("lora", rank=4)
    model.set_backbone_trainable("lora", rank=4)
    with pytest.raises(ValueError, match=r"cannot become \{'rank': 8\}.*merge_backbone_lora"):
        model.set_backbone_trainable("lora", rank=8)
    broken = next(parameter for name, parameter in model.named_parameters() if ".lora_A." in name)
    broken.data[0, 0] = float("nan")
    before = model.state_dict().keys()
    with pytest.raises(ValueError, match="q_proj.lora_A.default.weight'] are not finite"):
        model.merge_backbone_lora()
    assert model.state_dict().keys() == before
    for fields, message in (
        ({"backbone_lora": {"r": 4}}, r"unknown entries \['r'\]; accepted are \['rank', 'alpha'"),
        ({"backbone_lora": {"rank": 4}, "backbone_training": "full"}, "goes without backbone_lora"),
    ):
        with pytest.raises(StrictDataclassError, match=message):
            PixCLIPTextConfig(backbone_config=backbone_config("llama"), **fields)


def test_without_peft_the_error_names_the_extra(tmp_path):
    program = """
    import sys
    sys.modules["peft"] = None  # What import does for a package that is not there.
    sys.path.insert(0, "tests")
    from tiny_models import text_config
    from modeling_pixclip import PixCLIPTextModel
    PixCLIPTextModel(text_config()).set_backbone_trainable("frozen")
    try:
        PixCLIPTextModel(text_config()).set_backbone_trainable("lora")
    except ImportError as error:
        print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert 'pip install "pixclip[peft]"' in done.stdout


def training_batch():
    ids, mask = random_tokens([9, 5, 7, 6])
    return {
        "pixel_values": random_images(4),
        "mask_values": normalised(box_masks(random_boxes(4))),
        "region_image_index": torch.arange(4),
        "input_ids": ids,
        "attention_mask": mask,
    }


class Batches(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        return index


def trainer(model, folder, steps, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=4,
        logging_steps=1,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
        **options,
    )
    return Trainer(model, arguments, train_dataset=Batches(), data_collator=lambda _: training_batch())


def pretraining_model():
    return randomise(PixCLIPForPreTraining(pixclip_config(local_weight=0.0, crop_weight=0.0)))


def test_the_trainer_trains_adapters_and_leaves_the_weights(tmp_path):
    model = pretraining_model()
    model.set_text_backbone_trainable("lora", rank=4, dropout=0.0)
    for name, parameter in model.named_parameters():
        # The adapters alone, so that it is they that lower the loss.
        parameter.requires_grad_(".lora_" in name)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    runs = trainer(model, tmp_path, 8)
    runs.train()
    losses = [entry["loss"] for entry in runs.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1, losses
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (".lora_" not in name), name


def test_the_trainer_resumes_with_adapters(tmp_path):
    model = pretraining_model()
    model.set_text_backbone_trainable("lora", rank=4, dropout=0.0)
    trainer(model, tmp_path, 8).train()
    again = PixCLIPForPreTraining.from_pretrained(tmp_path / "checkpoint-4")
    assert again.config.text_config.backbone_training == "lora"
    resumed = trainer(again, tmp_path, 8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert_same_weights(again, model)


@pytest.fixture
def parents(tmp_path):
    """Folders of a vision tower in float32 and a text backbone in bfloat16."""
    vision, text = tmp_path / "vision", tmp_path / "text"
    randomise(CLIPVisionModelWithProjection(clip_vision_config())).save_pretrained(vision)
    randomise(AutoModel.from_config(backbone_config("llama"))).to(torch.bfloat16).save_pretrained(text)
    return str(vision), str(text)


def dtypes(model):
    prefix = "text_model.backbone."
    parameters = dict(model.named_parameters())
    return (
        {parameter.dtype for name, parameter in parameters.items() if name.startswith(prefix)},
        {parameter.dtype for name, parameter in parameters.items() if not name.startswith(prefix)},
    )


def test_the_backbone_keeps_its_own_dtype(parents, tmp_path):
    model = PixCLIPModel.from_vision_text_pretrained(*parents)
    mixture = ({torch.bfloat16}, {torch.float32})
    assert dtypes(model) == mixture
    assert model.dtype == torch.float32 and model.text_model.dtype == torch.float32
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    for loaded in (
        PixCLIPModel.from_pretrained(tmp_path / "saved"),
        PixCLIPModel.from_pretrained(tmp_path / "saved", dtype="auto"),
        AutoModel.from_pretrained(tmp_path / "saved"),
    ):
        assert dtypes(loaded) == mixture
        assert_same_weights(loaded, model)
        assert {name: tensor.dtype for name, tensor in stored.items()} == {
            name: tensor.dtype for name, tensor in loaded.state_dict().items()
        }
        assert torch.equal(vectors(loaded.text_model), vectors(model.text_model))
    # The text tower alone, whose first parameter is the backbone's.
    model.text_model.save_pretrained(tmp_path / "text_tower")
    assert_same_weights(PixCLIPTextModel.from_pretrained(tmp_path / "text_tower"), model.text_model)
    # Asked for, one dtype is that of all.
    for dtype in (torch.float32, torch.bfloat16):
        assert dtypes(PixCLIPModel.from_pretrained(tmp_path / "saved", dtype=dtype)) == ({dtype}, {dtype})
        assert dtypes(PixCLIPModel.from_vision_text_pretrained(*parents, dtype=dtype)) == ({dtype}, {dtype})


def test_the_dtype_of_a_backbone_can_be_asked_for(parents):
    full = {"backbone_training": "full"}
    for options, expected in (
        ({"text_kwargs": full}, torch.float32),
        ({"text_kwargs": {"backbone_training": "lora"}, "backbone_dtype": torch.float16}, torch.float16),
        ({"dtype": torch.float32, "backbone_dtype": "auto"}, torch.bfloat16),
    ):
        model = PixCLIPModel.from_vision_text_pretrained(*parents, **options)
        assert model.text_model.backbone.dtype == expected and dtypes(model)[1] == {torch.float32}, options


def test_float32_adapters_are_saved_beside_a_bfloat16_backbone(parents, tmp_path):
    model = PixCLIPModel.from_vision_text_pretrained(*parents)
    model.set_text_backbone_trainable("lora", rank=2)
    model.save_pretrained(tmp_path / "saved")
    loaded = PixCLIPModel.from_pretrained(tmp_path / "saved")
    assert_same_weights(loaded, model)
    assert dtypes(loaded) == ({torch.bfloat16, torch.float32}, {torch.float32})
    loaded.merge_text_backbone_lora()
    assert dtypes(loaded) == ({torch.bfloat16}, {torch.float32})


def test_what_the_user_freezes_stays_frozen():
    model = tower()
    model.set_backbone_trainable("lora")
    frozen = [p for name, p in model.backbone.named_parameters() if "layers.0" in name and p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    model.train()
    assert frozen and not any(parameter.requires_grad for parameter in frozen)


def test_peft_around_the_whole_tower_trains():
    """Standard PEFT on a frozen backbone: its adapters get gradients, and no other weight of it does."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(tower(), LoraConfig(target_modules=["q_proj"], modules_to_save=["projection"])).train()
    ids, mask = random_tokens([9, 5])
    wrapped(input_ids=ids, attention_mask=mask).pooler_output.sum().backward()
    trained = {name for name, p in wrapped.named_parameters() if p.grad is not None}
    assert any("lora_B" in name for name in trained) and any("projection" in name for name in trained)
    assert all("lora_" in name or "projection" in name for name in trained)


def test_adapters_that_are_not_finite_leave_the_backbone_as_it_was():
    model = tower()
    model.backbone.to(torch.bfloat16)
    model.set_backbone_trainable("lora")
    with torch.no_grad():
        next(p for name, p in model.backbone.named_parameters() if "lora_B" in name).fill_(torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        model.set_backbone_trainable("full")
    assert model.backbone.embed_tokens.weight.dtype == torch.bfloat16
