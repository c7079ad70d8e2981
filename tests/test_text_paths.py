# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Long texts have positions and a projection of their own, short ones do not notice: FG-CLIP's two paths."""

from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from distributed_for_tests import leave_process_group, run_processes
from huggingface_hub.errors import StrictDataclassClassValidationError
from PIL import Image
from tiny_models import (
    backbone_config,
    clip_vision_config,
    pixclip_config,
    random_images,
    random_tokens,
    randomise,
    text_config,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModel, CLIPVisionModelWithProjection, PreTrainedTokenizerFast

from modeling_pixclip import (
    PixCLIPForPreTraining,
    PixCLIPModel,
    PixCLIPTextConfig,
    PixCLIPTextModel,
    TextFeatureStore,
    get_objective_preset,
)
from processing_pixclip import PixCLIPDataCollator, PixCLIPImageProcessor, PixCLIPProcessor


SHORT, LONG, KEEP = 24, 70, 10
EOS = 3
LENGTHS = [5, 61, 24, 70, 12, 3, 30]
LONG_TEXTS = [False, True, False, True, False, True, True]
# CLIP's text tower runs padded, BERT packed or padded.
KINDS = [("clip_text", False), ("bert", False), ("bert", True)]


def plain_tower(backbone="clip_text", padding_free=False, **fields):
    config = backbone_config(backbone, max_position_embeddings=SHORT, eos_token_id=EOS)
    return randomise(
        PixCLIPTextModel(
            text_config(config, pooling="eos", padding_free=padding_free, **{"backbone_training": "full", **fields})
        )
    )


def randomise_long_path(model):
    """As after training: otherwise the long path's projection and first positions are those of the short one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        rows = model.get_position_embeddings().weight[SHORT:]
        rows.copy_(torch.randn(rows.shape, generator=generator) * 0.3)
        for parameter in model.long_projection.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def two_path_tower(*args, **fields):
    model = plain_tower(*args, **fields)
    model.add_long_text_path(LONG, keep=KEEP)
    return randomise_long_path(model)


def batch(rows=range(len(LENGTHS)), width=None):
    """Texts of both paths, padded to the longest."""
    ids, mask = random_tokens(LENGTHS)
    ids = ids.where((ids != EOS) | (mask == 0), 5)
    ids[torch.arange(len(LENGTHS)), mask.sum(-1) - 1] = EOS
    rows = list(rows)
    width = width or int(mask[rows].sum(-1).max())
    return {
        "input_ids": ids[rows, :width],
        "attention_mask": mask[rows, :width],
        "long_text_mask": torch.tensor(LONG_TEXTS)[rows],
    }


def vectors(model, **inputs):
    with torch.no_grad():
        return model(**inputs).pooler_output


def one_table_towers(model):
    """Each path as a tower of its own, with one table and one projection."""
    table = model.get_position_embeddings().weight.detach()
    towers = []
    for rows, projection in ((table[:SHORT], model.projection), (table[SHORT:], model.long_projection)):
        tower = plain_tower(model.config.backbone_config.model_type.removesuffix("_model"))
        if len(rows) > SHORT:
            tower.resize_position_embeddings(LONG, keep=KEEP)
        state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("long_projection")}
        name = next(name for name in state if "position_embedding" in name)
        state |= {name: rows, "projection.weight": projection.weight, "projection.bias": projection.bias}
        tower.load_state_dict(state)
        towers.append(tower.eval())
    return towers


@pytest.mark.parametrize(("backbone", "padding_free"), KINDS)
def test_a_mixed_batch_is_what_two_towers_make_of_their_texts(backbone, padding_free):
    model = two_path_tower(backbone, padding_free)
    towers = one_table_towers(model)
    inputs = batch()
    found = model(**inputs)
    weights = torch.randn(found.pooler_output.shape, generator=torch.Generator().manual_seed(3))
    (found.pooler_output * weights).sum().backward()
    expected = torch.empty_like(weights)
    for long_text, tower in enumerate(towers):
        rows = inputs["long_text_mask"] == bool(long_text)
        width = int(inputs["attention_mask"][rows].sum(-1).max())
        own = tower(inputs["input_ids"][rows, :width], inputs["attention_mask"][rows, :width])
        (own.pooler_output * weights[rows]).sum().backward()
        expected[rows] = own.pooler_output.detach()
    torch.testing.assert_close(found.pooler_output, expected, atol=1e-5, rtol=0)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    short, long = ({name: p.grad for name, p in tower.named_parameters()} for tower in towers)
    for name, gradient in gradients.items():
        if name.startswith("long_projection"):
            wanted = long[name.removeprefix("long_")]
        elif name.startswith("projection"):
            wanted = short[name]
        elif "position_embedding" in name:
            wanted = torch.cat([short[name], long[name]])
        elif short[name] is None:
            assert gradient is None, name
            continue
        else:
            wanted = short[name] + long[name]
        torch.testing.assert_close(gradient, wanted, atol=2e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(("backbone", "padding_free"), KINDS)
def test_batches_of_one_path(backbone, padding_free):
    """Alone, without padding, with a wider padding, without a mask: a text has the same vector."""
    model = two_path_tower(backbone, padding_free)
    expected = vectors(model, **batch())
    for rows in ([0, 2, 4], [1, 3, 5, 6], [0], [3]):
        torch.testing.assert_close(vectors(model, **batch(rows)), expected[rows], atol=1e-5, rtol=0)
        torch.testing.assert_close(vectors(model, **batch(rows, width=LONG)), expected[rows], atol=1e-5, rtol=0)
    inputs = batch([0, 2, 4])
    del inputs["long_text_mask"]
    torch.testing.assert_close(vectors(model, **inputs), expected[[0, 2, 4]], atol=1e-5, rtol=0)


def test_a_new_long_path_starts_from_the_short_one():
    plain, model = plain_tower(), plain_tower()
    model.add_long_text_path(LONG, keep=KEEP)
    short = {name: value for name, value in batch([0, 2, 4]).items() if name != "long_text_mask"}
    torch.testing.assert_close(vectors(model, **short), vectors(plain, **short))
    # Within the first positions a text is the same on both paths, behind them it is not.
    as_long = vectors(model, **short, long_text_mask=torch.ones(3, dtype=torch.bool))
    same = (as_long - vectors(plain, **short)).abs().amax(-1) < 1e-6
    assert same.tolist() == [True, False, False]
    plain.resize_position_embeddings(LONG, keep=KEEP)
    torch.testing.assert_close(as_long, vectors(plain, **short))
    long = batch([1, 3, 5, 6])
    mask = long.pop("long_text_mask")
    torch.testing.assert_close(vectors(model, **long, long_text_mask=mask), vectors(plain, **long))


@pytest.mark.parametrize("long_text", [False, True])
@pytest.mark.parametrize(("backbone", "padding_free"), KINDS)
def test_only_the_used_path_has_a_gradient(backbone, padding_free, long_text):
    """The other one's is zero and not missing, which processes that train together need."""
    model = two_path_tower(backbone, padding_free)
    model(
        **batch([row for row, is_long in enumerate(LONG_TEXTS) if is_long == long_text])
    ).pooler_output.sum().backward()
    used, other = model.projection, model.long_projection
    table = model.get_position_embeddings().weight.grad
    rows, other_rows = table[:SHORT], table[SHORT:]
    if long_text:
        used, other, rows, other_rows = other, used, other_rows, rows
    assert all(bool(parameter.grad.any()) for parameter in used.parameters())
    assert not any(bool(parameter.grad.any()) for parameter in other.parameters())
    assert bool(rows.any()) and not bool(other_rows.any())


def test_a_projection_alone_for_backbones_without_a_table():
    torch.manual_seed(0)
    model = randomise(PixCLIPTextModel(text_config("llama")))
    ids, mask = random_tokens([9, 4])
    before = vectors(model, input_ids=ids, attention_mask=mask)
    model.add_long_text_path()
    with torch.no_grad():
        model.long_projection.weight.mul_(2)
        model.long_projection.bias.mul_(2)
    long = vectors(model, input_ids=ids, attention_mask=mask, long_text_mask=torch.tensor([False, True]))
    torch.testing.assert_close(long, before * torch.tensor([[1.0], [2.0]]))
    # Vectors of the backbone are the same on both paths, and choose the projection as tokens do.
    embeds = model(ids, mask).backbone_embeds
    chosen = vectors(model, backbone_embeds=embeds, long_text_mask=torch.tensor([False, True]))
    torch.testing.assert_close(chosen, long)


@pytest.mark.parametrize("backbone", ["clip_text", "bert"])
def test_states_asked_for_are_those_of_each_path(backbone):
    model = two_path_tower(backbone, "auto")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model(**batch(), output_hidden_states=True, output_attentions=True)
        for row in (0, 3):
            alone = model(**batch([row]), output_hidden_states=True, output_attentions=True)
            length = LENGTHS[row]
            for found, wanted in zip(outputs.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(found[row, :length], wanted[0], atol=1e-5, rtol=0)
            for found, wanted in zip(outputs.attentions, alone.attentions, strict=True):
                torch.testing.assert_close(found[row, :, :length, :length], wanted[0], atol=1e-5, rtol=0)
        some = model(**batch(), output_hidden_states=[0]).hidden_states
    assert some[1] is None and some[0].shape == outputs.hidden_states[0].shape


@pytest.mark.parametrize("backbone", ["clip_text", "bert"])
def test_a_saved_model_has_both_paths(backbone, tmp_path):
    model = PixCLIPModel(pixclip_config(text={"backbone": backbone_config(backbone), "pooling": "eos"})).eval()
    model.text_model = two_path_tower(backbone, backbone_training="frozen")
    model.config.text_config = model.text_model.config
    model.save_pretrained(tmp_path)
    text_config_of_file = PixCLIPTextConfig.from_pretrained(tmp_path)
    assert text_config_of_file.max_text_positions(long_text=False) == SHORT
    assert text_config_of_file.max_text_positions(long_text=True) == LONG
    for model_class in (PixCLIPModel, PixCLIPTextModel):
        loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        tower = getattr(loaded, "text_model", loaded)
        assert torch.equal(vectors(tower, **batch()), vectors(model.text_model, **batch()))


def parents(tmp_path, backbone="clip_text"):
    torch.manual_seed(0)
    CLIPVisionModelWithProjection(clip_vision_config()).save_pretrained(tmp_path / "vision")
    text = AutoModel.from_config(backbone_config(backbone, max_position_embeddings=SHORT, eos_token_id=EOS))
    text.save_pretrained(tmp_path / "text")
    return str(tmp_path / "vision"), str(tmp_path / "text")


def test_parents_get_a_long_path(tmp_path):
    fields = {"pooling": "eos", "long_text_projection": True, "long_text_positions": LONG}
    vision, text = parents(tmp_path)
    torch.manual_seed(1)
    model = PixCLIPModel.from_vision_text_pretrained(vision, text, text_kwargs=fields)
    tower = PixCLIPTextModel.from_backbone_pretrained(text, **fields)
    for made in (model.text_model, tower):
        assert made.config.max_text_positions(long_text=True) == LONG
        assert torch.equal(made.long_projection.weight, made.projection.weight)
        short = {name: value for name, value in batch([0, 2, 4]).items() if name != "long_text_mask"}
        states = AutoModel.from_pretrained(text)(**short).pooler_output
        torch.testing.assert_close(made(**short).backbone_embeds, states, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "saved")
    loaded = PixCLIPModel.from_pretrained(tmp_path / "saved")
    assert torch.equal(vectors(loaded.text_model, **batch()), vectors(model.text_model, **batch()))


def test_a_model_takes_the_mask(tmp_path):
    vision, text = parents(tmp_path)
    fields = {"pooling": "eos", "long_text_projection": True, "long_text_positions": LONG}
    model = PixCLIPForPreTraining.from_vision_text_pretrained(
        vision, text, text_kwargs=fields, **get_objective_preset("fg-clip-stage1")
    )
    randomise_long_path(model.text_model)
    inputs = batch()
    expected = torch.nn.functional.normalize(vectors(model.text_model, **inputs), dim=-1)
    pixels = random_images(len(LENGTHS))
    with torch.no_grad():
        found = PixCLIPModel.forward(model, **inputs, pixel_values=pixels).text_embeds
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        found = model(**inputs, pixel_values=pixels, return_loss=False).text_embeds
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        captions = torch.tensor([1, 3, 5, 6, -1, -1, -1])
        trained = model(**inputs, pixel_values=pixels, long_caption_index=captions, return_embeddings=True)
        torch.testing.assert_close(trained.text_embeds, expected, atol=1e-6, rtol=0)


def test_wrong_calls_are_named(tmp_path):
    model = two_path_tower()
    inputs = batch()
    long_text_mask = inputs.pop("long_text_mask")
    for mask in (long_text_mask[:3], long_text_mask.long(), long_text_mask[:, None]):
        with pytest.raises(ValueError, match="one bool for each of the 7 texts"):
            model(**inputs, long_text_mask=mask)
    with pytest.raises(ValueError, match=rf"at most {SHORT} on the short text path.*takes {LONG}"):
        model(**inputs, long_text_mask=torch.tensor([False] * 7))
    with pytest.raises(ValueError, match="on the short text path"):
        model(**inputs)
    with pytest.raises(ValueError, match=rf"at most {LONG} on the long text path"):
        model(torch.full((1, LONG + 1), EOS), long_text_mask=torch.tensor([True]))
    with pytest.raises(ValueError, match="has a long text path already"):
        model.add_long_text_path(LONG)
    with pytest.raises(ValueError, match="Resize it before add_long_text_path"):
        model.resize_position_embeddings(96)
    llama = PixCLIPTextModel(text_config("llama"))
    with pytest.raises(ValueError, match="'llama' has no learned table of positions"):
        llama.add_long_text_path(LONG)
    assert not llama.config.long_text_projection and not hasattr(llama, "long_projection")
    with pytest.raises(StrictDataclassClassValidationError, match="needs long_text_projection=True"):
        text_config("clip_text", long_text_positions=20)
    with pytest.raises(StrictDataclassClassValidationError, match="48 positions .* for both paths together"):
        text_config("clip_text", long_text_projection=True, long_text_positions=48)


WORDS = "[pad] [unk] [start] [end] a red blue kite car on the left right".split()


def make_processor(**options):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]", eos_token="[end]", bos_token="[start]"
    )
    return PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer, text_template="{text} [end]", **options)


def texts():
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS[4:], size)) for size in (3, 9, 20, 40, 60, 90)]


@pytest.mark.parametrize("text_max_length", [512, 16])
@pytest.mark.parametrize(("backbone", "padding_free"), KINDS)
@pytest.mark.filterwarnings("ignore:.*were cut")
def test_encoded_texts_take_a_path_and_are_cut_at_its_length(backbone, padding_free, text_max_length):
    config = pixclip_config(text={"backbone": backbone_config(backbone), "pooling": "eos"})
    model = PixCLIPModel(config).eval()
    model.text_model = two_path_tower(backbone, padding_free)
    model.config.text_config = model.text_model.config
    processor = make_processor(text_max_length=text_max_length)
    for long_text, limit in ((False, min(SHORT, text_max_length)), (True, LONG)):
        rows = [processor(text=text, max_length=limit) for text in texts()]
        assert max(row["input_ids"].shape[1] for row in rows) == limit
        mask = torch.tensor([long_text])
        direct = [model.text_model(**row, long_text_mask=mask) for row in rows]
        found = model.encode_text(texts(), processor, long_text=long_text, normalize=False, output="tensor")
        wanted = torch.cat([row.pooler_output for row in direct])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        found = model.text_model.encode_backbone(texts(), processor, long_text=long_text, batch_tokens=100)
        wanted = torch.cat([row.backbone_embeds for row in direct])
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def make_sample():
    return {
        "image": Image.new("RGB", (40, 30)),
        "image_id": "0",
        "captions": [texts()[1]],
        "long_captions": [texts()[4]],
        "masks": [np.ones((30, 40), dtype=bool)],
        # A region's text may be an image's long caption too, and then has a vector on each path.
        "texts": [texts()[2]],
        "object_texts": [None],
        "categories": [None],
    }


@pytest.mark.filterwarnings("ignore:.*were cut")
def test_stores_keep_the_paths_apart(tmp_path):
    model, processor = two_path_tower(), make_processor(text_max_length=LONG)
    short = TextFeatureStore(tmp_path, model, processor, dtype="float32")
    long = TextFeatureStore(tmp_path, model, processor, dtype="float32", long_text=True)
    assert short.folder != long.folder
    assert (short.text_path, long.text_path) == ("short", "long")
    for store in (short, long):
        store.embed(texts(), show_progress_bar=False)
    again = [TextFeatureStore.open(store.folder) for store in (short, long)]
    assert [store.text_path for store in again] == ["short", "long"]
    for row, text in enumerate(texts()):
        for store, long_text in zip(again, (False, True)):
            wanted = model.encode_backbone([text], processor, long_text=long_text)[0]
            torch.testing.assert_close(store[text], wanted, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="path of short texts.*path of long texts|path of long texts.*path of short"):
        TextFeatureStore.open(tmp_path)

    sample = make_sample()
    options = {"captions": True, "crops": False, "whole_image_share": 0.0}
    tokens = PixCLIPDataCollator(processor, short_text_max_length=SHORT, **options)([sample])
    stored = PixCLIPDataCollator(processor, text_embeddings=short, long_text_embeddings=long, **options)([sample])
    assert tokens["long_text_mask"].tolist() == stored["long_text_mask"].tolist()
    names = ("input_ids", "attention_mask", "pooling_mask")
    expected = vectors(model, **{name: tokens[name] for name in names}, long_text_mask=tokens["long_text_mask"])
    found = vectors(model, backbone_embeds=stored["backbone_embeds"], long_text_mask=stored["long_text_mask"])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    with pytest.raises(ValueError, match="long_text_embeddings are vectors of the text tower's path for short texts"):
        PixCLIPDataCollator(processor, text_embeddings=short, **options)
    with pytest.raises(ValueError, match="text_embeddings are vectors of the text tower's path for long texts"):
        PixCLIPDataCollator(processor, text_embeddings=long, **options)
    with pytest.raises(ValueError, match="text_embeddings, which are missing"):
        PixCLIPDataCollator(processor, long_text_embeddings=long, **options)
    # Without captions there are no long texts.
    PixCLIPDataCollator(processor, text_embeddings=short)


def test_a_tower_with_one_table_has_one_store(tmp_path):
    model, processor = plain_tower(), make_processor(text_max_length=SHORT)
    model.add_long_text_path()
    stores = [TextFeatureStore(tmp_path, model, processor, long_text=long_text) for long_text in (False, True)]
    assert stores[0].folder == stores[1].folder
    assert stores[0].text_path is None and "text_path" not in stores[0].description
    PixCLIPDataCollator(processor, text_embeddings=stores[0], captions=True)


# One process has long texts alone, the other short ones; then neither has long ones, nor a mask that says so.
SHARES = {"apart": ([0, 2, 4], [1, 3, 5, 6]), "none": ([0, 4], [2, 2]), "one": ([1, 0, 2], [4, 2])}


def _share(name, rank):
    inputs = batch(SHARES[name][rank])
    if not inputs["long_text_mask"].any():
        # What the collator does.
        del inputs["long_text_mask"]
    return inputs


def _loss(model, inputs, rows):
    return model(**inputs).pooler_output.square().sum() / rows


def _train_on_a_rank(rank, folder, replicated, sharded):
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=180), rank=rank, world_size=2
    )
    for name, shares in SHARES.items():
        model = torch.nn.parallel.DistributedDataParallel(two_path_tower(*replicated))
        # Twice: of a parameter without a gradient DDP complains at the next step.
        for _ in range(2):
            model.zero_grad()
            (_loss(model, _share(name, rank), sum(map(len, shares))) * 2).backward()
        if rank == 0:
            torch.save({key: p.grad for key, p in model.module.named_parameters()}, f"{folder}/{name}.pt")
    model = two_path_tower(*sharded)
    for layer in model.backbone.encoder.layer if sharded[0] == "bert" else model.backbone.encoder.layers:
        fully_shard(layer)
    fully_shard(model)
    for name, shares in SHARES.items():
        _loss(model, _share(name, rank), sum(map(len, shares))).backward()
        with torch.no_grad():
            model(**_share(name, rank))
    del model
    leave_process_group()


@pytest.mark.parametrize(
    ("replicated", "sharded"),
    [
        (KINDS[0], KINDS[2]),
        pytest.param(KINDS[1], KINDS[0], marks=pytest.mark.slow),
        pytest.param(KINDS[2], KINDS[1], marks=pytest.mark.slow),
    ],
)
def test_processes_with_texts_of_one_path_train_together(replicated, sharded, tmp_path):
    """Without `find_unused_parameters`, to the gradient of one process on all texts; no shard waits for another."""
    mp.spawn(_train_on_a_rank, args=(str(tmp_path), replicated, sharded), nprocs=2)
    for name, shares in SHARES.items():
        gradients = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        model = two_path_tower(*replicated)
        rows = [*shares[0], *shares[1]]
        _loss(model, batch(rows), len(rows)).backward()
        expected = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
        # A key's bias has no gradient but rounding.
        rounding = 1e-7 * max(float(gradient.norm()) for gradient in expected.values())
        for key, gradient in expected.items():
            error = float((gradients[key] - gradient).norm())
            assert error <= 1e-5 * float(gradient.norm()) + rounding, (name, key, error)


def with_holes(inputs):
    """Third and fifth token of each text that has six are not attended to."""
    mask = inputs["attention_mask"].clone()
    mask[:, [2, 4]] *= (mask.sum(-1, keepdim=True) < 6).long()
    return {**inputs, "attention_mask": mask}


@pytest.mark.parametrize("backbone", ["bert", "clip_text"])
def test_holes_in_a_mask_of_both_paths(backbone):
    """A backbone that packs other texts runs as often for these: once."""
    model = two_path_tower(backbone, "auto")
    expected = two_path_tower(backbone, False)
    model(**batch())
    for rows, width in ((range(7), None), ([0, 2], 90), ([1, 3], 90)):
        inputs = with_holes(batch(rows))
        if width:
            # Padding on both sides, in all wider than the table of positions.
            inputs |= {
                name: torch.nn.functional.pad(inputs[name], (5, width)) for name in ("input_ids", "attention_mask")
            }
        wanted = expected(**inputs, output_hidden_states=True)
        runs = count_runs(model)
        found = model(**inputs, output_hidden_states=True)
        assert len(runs) == (2 if backbone == "clip_text" and width is None else 1)
        torch.testing.assert_close(found.pooler_output, wanted.pooler_output, atol=1e-5, rtol=0)
        attended = inputs["attention_mask"][..., None]
        for states, right in zip(found.hidden_states, wanted.hidden_states, strict=True):
            torch.testing.assert_close(states * attended, right * attended, atol=1e-4, rtol=0)


def count_runs(model):
    """Grows by one at every run of the backbone."""
    runs = []
    model.backbone.register_forward_pre_hook(lambda module, args: runs.append(1))
    return runs


# Of the second process; the first one has texts of both paths at every step.
STEPS = {"some": [1, 3, 4], "none": [], "short": [0, 2], "holes": [1, 6]}
ORDERS = {
    "at the first step": ("none", "some", "none"),
    "at the second step": ("some", "none", "short"),
    "holes": ("holes", "none", "some"),
}


def _step(name, rank):
    rows = STEPS[name] if rank else [0, 1, 5]
    inputs = batch(rows, width=None if rows else 1)
    if name == "holes" and rank:
        inputs = with_holes(inputs)
    if not inputs["long_text_mask"].any():
        del inputs["long_text_mask"]
    return inputs


def _sum_of_squares(model, inputs):
    return model(**inputs).pooler_output.square().sum()


def gradients_of_sharded_towers(backbone, padding_free, orders):
    """Gradients of each step, and how often the backbone ran in each."""
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    results = {}
    for order in orders:
        model = two_path_tower(backbone, padding_free)
        layers = model.backbone.encoder
        for layer in layers.layer if backbone == "bert" else layers.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        runs = count_runs(model)
        results[order] = []
        for name in ORDERS[order]:
            model.zero_grad()
            runs.clear()
            _sum_of_squares(model, _step(name, rank)).backward()
            # Of sums, that of all processes is twice the mean that is made of them.
            gradients = {key: p.grad.full_tensor() * 2 for key, p in model.named_parameters() if p.grad is not None}
            results[order].append((gradients, len(runs)))
    return results


@pytest.mark.parametrize(
    ("backbone", "padding_free", "orders"),
    [
        ("bert", "auto", tuple(ORDERS)),
        pytest.param("bert", False, tuple(ORDERS), marks=pytest.mark.slow),
        pytest.param("clip_text", "auto", tuple(ORDERS), marks=pytest.mark.slow),
    ],
)
def test_sharded_towers_train_where_a_process_has_no_texts(backbone, padding_free, orders):
    results = run_processes(gradients_of_sharded_towers, backbone, padding_free, orders, timeout=90)
    for order in orders:
        for step, name in enumerate(ORDERS[order]):
            found, runs = zip(*(result[order][step] for result in results))
            assert runs[0] == runs[1] > 0, (order, step, runs)
            if step:
                # The trial is over.
                assert runs[0] == (1 if (backbone, padding_free) == ("bert", "auto") else 2), (order, step, runs)
            model = two_path_tower(backbone, False)
            for rank in range(2):
                inputs = _step(name, rank)
                if len(inputs["input_ids"]):
                    _sum_of_squares(model, inputs).backward()
            expected = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
            rounding = 1e-6 * max(float(gradient.norm()) for gradient in expected.values())
            for gradients in found:
                assert gradients.keys() == expected.keys()
                for key, gradient in expected.items():
                    error = float((gradients[key] - gradient).norm())
                    assert error <= 1e-5 * float(gradient.norm()) + rounding, (order, step, key, error)


def runs_for_short_texts():
    model = two_path_tower("clip_text")
    runs = count_runs(model)
    model(**batch([0, 2]))
    return len(runs)


def test_one_process_of_torchrun_runs_no_path_without_texts():
    assert run_processes(runs_for_short_texts, processes=1) == [1]
