# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""A learned table of positions grows from 77 to 248, and short texts do not notice."""

import pytest
import torch
from tiny_models import (
    backbone_config,
    pixclip_config,
    random_tokens,
    randomise,
    text_config,
)
from transformers import AutoModel, CLIPTextConfig, CLIPTextModel, RobertaConfig

from modeling_pixclip import PixCLIPModel, PixCLIPTextModel, stretch_positions


CLIP_EOS = 59


def clip_text_model():
    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=CLIP_EOS,
        pad_token_id=CLIP_EOS,
        bos_token_id=58,
    )
    return randomise(PixCLIPTextModel(text_config(config, pooling="eos")))


def clip_tokens(lengths, width=None):
    """Ids as CLIP's tokenizer gives them: end of text, then padding of the same id."""
    ids, mask = random_tokens(lengths)
    ids = ids.clamp(max=57)
    width = width or max(lengths)
    padded = torch.full((len(lengths), width), CLIP_EOS)
    wide = torch.zeros_like(padded)
    for row, length in enumerate(lengths):
        padded[row, : length - 1] = ids[row, : length - 1]
        padded[row, 0] = 58
        wide[row, :length] = 1
    return {"input_ids": padded, "attention_mask": wide}


def vectors(model, batch):
    with torch.no_grad():
        return torch.nn.functional.normalize(model(**batch).pooler_output, dim=-1)


def stretched_row_by_row(table):
    """Long-CLIP's and FG-CLIP's table of 248 rows from one of 77, one row after the other."""
    rows = [table[i] for i in range(20)]
    for j in range(56):
        rows += [((4 - r) * table[20 + j] + r * table[21 + j]) / 4 for r in range(4)]
    rows += [table[76] + r * (table[76] - table[75]) / 4 for r in range(4)]
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_official_table_of_248_positions(dtype):
    table = torch.randn(77, 24, dtype=dtype)
    expected = stretched_row_by_row(table)
    assert expected.shape == (248, 24)
    stretched = stretch_positions(table)
    torch.testing.assert_close(stretched, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
    assert torch.equal(stretched[:20], table[:20]) and torch.equal(stretched[20::4], table[20:])


@pytest.mark.parametrize(("rows", "length", "keep"), [(77, 200, 20), (9, 31, 0), (5, 64, 3), (12, 13, 4)])
def test_any_length_lies_on_straight_lines_between_old_rows(rows, length, keep):
    # A table that is a line itself stays one, also beyond its end.
    start, step = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    table = start + torch.arange(rows)[:, None] * step
    positions = [float(i) for i in range(keep)]
    positions += [keep + i * (rows - keep) / (length - keep) for i in range(length - keep)]
    expected = start + torch.tensor(positions, dtype=torch.float64)[:, None] * step
    torch.testing.assert_close(stretch_positions(table, length, keep), expected)


def test_the_same_length_changes_nothing_and_half_precision_is_rounded_once():
    table = torch.randn(77, 24)
    assert torch.equal(stretch_positions(table, length=77), table)
    half = table.to(torch.bfloat16)
    assert torch.equal(stretch_positions(half), stretch_positions(half.float()).to(torch.bfloat16))


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (torch.zeros(77, 8), {"length": 76}, "length is 76, less than the 77 positions"),
        (torch.zeros(77, 8), {"keep": 76}, "keep is 76; a table of 77 positions accepts 0 to 75"),
        (torch.zeros(77, 8), {"keep": -1}, "keep is -1"),
        (torch.zeros(20, 8), {}, "keep is 20; a table of 20 positions accepts 0 to 18"),
        (torch.zeros(1, 77, 8), {}, r"table has shape \(1, 77, 8\)"),
        (torch.zeros(77, 8, dtype=torch.long), {}, "dtype torch.int64"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(table, options, message):
    with pytest.raises(ValueError, match=message):
        stretch_positions(table, **options)


def test_short_texts_keep_their_vectors_and_long_ones_run():
    model = clip_text_model()
    short, long = clip_tokens([20, 3, 11]), clip_tokens([200, 77, 248])
    before = vectors(model, short)
    with pytest.raises(ValueError, match="texts are 248 tokens long.*at most 77"):
        model(**long)
    table = model.get_position_embeddings().weight.clone()
    model.resize_position_embeddings(248)
    torch.testing.assert_close(model.get_position_embeddings().weight, stretched_row_by_row(table), rtol=0, atol=1e-6)
    assert torch.equal(vectors(model, short), before)
    embeds = vectors(model, long)
    assert embeds.isfinite().all()
    changed = {**long, "input_ids": long["input_ids"].clone()}
    changed["input_ids"][0, 190] = (changed["input_ids"][0, 190] + 1) % 50
    moved = vectors(model, changed)
    assert not torch.allclose(moved[0], embeds[0], atol=1e-4) and torch.equal(moved[1], embeds[1])
    with pytest.raises(ValueError, match="texts are 249 tokens long.*at most 248"):
        model(**clip_tokens([249]))


def test_padding_up_to_248_changes_nothing():
    model = clip_text_model()
    model.resize_position_embeddings(248)
    lengths = [5, 33, 120]
    trimmed = vectors(model, clip_tokens(lengths))
    torch.testing.assert_close(vectors(model, clip_tokens(lengths, width=248)), trimmed, rtol=0, atol=1e-6)
    alone = torch.cat(
        [vectors(model, {k: v[i : i + 1, :n] for k, v in clip_tokens(lengths).items()}) for i, n in enumerate(lengths)]
    )
    torch.testing.assert_close(alone, trimmed, rtol=0, atol=1e-6)


def test_a_saved_model_keeps_its_length(tmp_path):
    model = clip_text_model()
    model.resize_position_embeddings(248)
    assert model.config.backbone_config.max_position_embeddings == 248
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is PixCLIPTextModel and loaded.config.backbone_config.max_position_embeddings == 248
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    batch = clip_tokens([200, 12])
    assert torch.equal(vectors(loaded, batch), vectors(model, batch))


def test_inside_a_pixclip_model(tmp_path):
    model = PixCLIPModel(pixclip_config(text={"backbone": backbone_config("clip_text"), "pooling": "eos"})).eval()
    model.text_model.resize_position_embeddings(96, keep=10)
    model.save_pretrained(tmp_path)
    loaded = PixCLIPModel.from_pretrained(tmp_path)
    assert loaded.config.text_config.backbone_config.max_position_embeddings == 96
    ids, mask = random_tokens([90, 7])
    ids[0, 89] = ids[1, 6] = 3
    with torch.no_grad():
        found, wanted = (
            m.get_text_features(input_ids=ids, attention_mask=mask).pooler_output for m in (loaded, model)
        )
    assert torch.equal(found, wanted)


def test_a_bert_backbone_is_stretched_with_its_token_types():
    model = randomise(PixCLIPTextModel(text_config("bert")))
    ids, mask = random_tokens([20, 9])
    before = vectors(model, {"input_ids": ids, "attention_mask": mask})
    model.resize_position_embeddings(100)
    after = vectors(model, {"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    ids, mask = random_tokens([100, 60])
    long = {"input_ids": ids, "attention_mask": mask}
    explicit = {**long, "token_type_ids": torch.zeros_like(ids), "position_ids": torch.arange(100)[None].expand(2, -1)}
    torch.testing.assert_close(vectors(model, long), vectors(model, explicit), rtol=0, atol=1e-6)


def test_a_backbone_that_was_passed_grows_twice():
    backbone = CLIPTextModel(clip_text_model().config.backbone_config)
    model = PixCLIPTextModel(text_config(backbone.config, pooling="eos"), backbone=backbone)
    for length in (150, 248):
        model.resize_position_embeddings(length)
        assert model.config.backbone_config.max_position_embeddings == length
        assert model.get_position_embeddings().num_embeddings == length
        assert vectors(model, clip_tokens([length])).isfinite().all()


@pytest.mark.parametrize("trainable", [False, True])
def test_the_new_table_trains_as_the_old_one_did_and_keeps_its_dtype(trainable):
    model = clip_text_model()
    model.backbone.to(torch.bfloat16).requires_grad_(trainable)
    model.resize_position_embeddings(248)
    weight = model.get_position_embeddings().weight
    assert weight.dtype == torch.bfloat16 and weight.requires_grad == trainable
    assert weight is dict(model.named_parameters())["backbone.embeddings.position_embedding.weight"]


@pytest.mark.parametrize(
    "config",
    [
        backbone_config("llama"),
        backbone_config("qwen3"),
        RobertaConfig(vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4),
    ],
    ids=["llama", "qwen3", "roberta"],
)
def test_a_backbone_without_such_a_table_is_refused(config):
    model = PixCLIPTextModel(text_config(config))
    before = config.max_position_embeddings
    with pytest.raises(ValueError, match=f"type '{config.model_type}' has no learned table of positions"):
        model.resize_position_embeddings(4096)
    assert model.config.backbone_config.max_position_embeddings == before
    with pytest.raises(ValueError, match="no learned table"):
        model.get_position_embeddings()


def test_a_length_that_does_not_fit_leaves_the_model_as_it_was():
    model = clip_text_model()
    with pytest.raises(ValueError, match="length is 64, less than the 77"):
        model.resize_position_embeddings(64)
    assert model.config.backbone_config.max_position_embeddings == 77
    assert vectors(model, clip_tokens([77])).isfinite().all()
