# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Packed texts against the padded batch: same vectors, same gradients, no text sees another one."""

import copy
import gc
import inspect
import weakref
from datetime import timedelta

import pytest
import torch
import torch.multiprocessing as mp
from distributed_for_tests import leave_process_group, run_processes
from tiny_models import backbone_config, pixclip_config, random_tokens, randomise, text_config
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AutoModel,
    DistilBertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    ModernBertConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    SmolLM3Config,
)
from transformers.integrations import flash_attention

from modeling_pixclip import PixCLIPModel, PixCLIPTextModel, text_attention
from modeling_pixclip.text_attention import VARLEN_ATTENTION, PackedTexts, varlen_attention_forward


LENGTHS = [1, 512, 2, 3, 17, 130, 64, 255, 5, 1, 33, 400]
SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 600,
    "pad_token_id": 0,
    "eos_token_id": 2,
}
ENCODER = {name: value for name, value in SHAPE.items() if name not in ("num_key_value_heads", "eos_token_id")}
BACKBONES = {
    "llama": LlamaConfig(**SHAPE),
    "smollm3": SmolLM3Config(**SHAPE, no_rope_layers=[1, 0]),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "mistral": MistralConfig(**SHAPE, head_dim=8, sliding_window=None),
    "mistral with a window": MistralConfig(**SHAPE, head_dim=8, sliding_window=20),
    "gemma3 with a window": Gemma3TextConfig(
        **SHAPE, head_dim=8, sliding_window=20, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=600, bos_token_id=1, eos_token_id=2),
    "bert": backbone_config("bert", max_position_embeddings=600),
    "roberta": RobertaConfig(**{**ENCODER, "pad_token_id": 1, "max_position_embeddings": 602}),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=32, hidden_dim=48, n_layers=2, n_heads=4, max_position_embeddings=600
    ),
    "modernbert with a window": ModernBertConfig(
        **ENCODER,
        local_attention=40,
        global_attn_every_n_layers=2,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    ),
}


def tower(backbone, padding_free=True, **fields):
    """Random numbers, the same for the same backbone; it trains, in eval mode, as dropout would differ when packed."""
    config = text_config(BACKBONES[backbone], padding_free=padding_free, backbone_training="full", **fields)
    return randomise(PixCLIPTextModel(config))


def rows_of_the_backbone(model):
    """Grows by the number of rows at every run of the backbone: 1 where texts were packed."""
    rows = []
    model.backbone.register_forward_hook(lambda module, args, outputs: rows.append(len(outputs.last_hidden_state)))
    return rows


def vectors_and_gradients(model, ids, mask, pooling_mask=None):
    model.zero_grad()
    rows = rows_of_the_backbone(model)
    outputs = model(input_ids=ids, attention_mask=mask, pooling_mask=pooling_mask)
    assert rows[-1] == (1 if model.config.padding_free else len(ids))
    weights = torch.randn(outputs.pooler_output.shape, generator=torch.Generator().manual_seed(3))
    (outputs.pooler_output * weights).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return outputs, gradients


def assert_same_gradients(gradients, expected, bound=1e-5):
    assert gradients.keys() == expected.keys() and any(name.startswith("backbone.") for name in gradients)
    # A key's bias has no gradient but rounding: the softmax does not see it.
    rounding = 1e-7 * max(gradient.norm() for gradient in expected.values())
    for name, gradient in gradients.items():
        assert (gradient - expected[name]).norm() <= bound * expected[name].norm() + rounding, name


# Learned positions are counted from the left edge of a padded batch: padding there is no way to run those.
LEARNED_POSITIONS = ("bert", "roberta", "distilbert", "gpt2")


@pytest.mark.parametrize(
    "backbone, side",
    [(name, "right") for name in BACKBONES] + [(name, "left") for name in BACKBONES if name not in LEARNED_POSITIONS],
)
def test_packed_equals_padded_in_value_and_gradient(backbone, side):
    ids, mask = random_tokens(LENGTHS)
    pooling_mask = mask.clone()
    pooling_mask[:, :1] = pooling_mask.sum(-1, keepdim=True) == 1
    if side == "left":
        places = (torch.arange(512) - (512 - mask.sum(-1, keepdim=True))) % 512
        ids, mask, pooling_mask = (rows.gather(1, places) for rows in (ids, mask, pooling_mask))
    packed, gradients = vectors_and_gradients(tower(backbone), ids, mask, pooling_mask)
    padded, expected = vectors_and_gradients(tower(backbone, padding_free=False), ids, mask, pooling_mask)
    torch.testing.assert_close(packed.backbone_embeds, padded.backbone_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.pooler_output, padded.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.last_hidden_state, padded.last_hidden_state * mask[..., None], atol=1e-4, rtol=0)
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("pooling", ["mean", "last", "first", "eos"])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_every_pooling_and_direction(pooling, bidirectional):
    ids, mask = random_tokens(LENGTHS)
    ids[torch.arange(len(ids)), mask.sum(-1) - 1] = 2
    models = [tower("qwen2", packs, pooling=pooling, bidirectional=bidirectional) for packs in (True, False)]
    with torch.no_grad():
        packed, padded = (model(input_ids=ids, attention_mask=mask).backbone_embeds for model in models)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_text_depends_on_another(backbone):
    """Bit for bit, whatever stands in the other texts of the batch."""
    model = tower(backbone)
    ids, mask = random_tokens(LENGTHS)
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).pooler_output
        for row in (1, 4, 9):
            other = ids.clone()
            other[row] = (other[row] + 7) % 60
            after = model(input_ids=other, attention_mask=mask).pooler_output
            rest = [place for place in range(len(ids)) if place != row]
            assert torch.equal(before[rest], after[rest])
            assert not torch.equal(before[row], after[row])
        # Another number of tokens in all: other blocks in the products of matrices, hence other rounding.
        after = model(input_ids=ids[:7], attention_mask=mask[:7]).pooler_output
        torch.testing.assert_close(after, before[:7], atol=1e-6, rtol=0)


@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_padding_is_not_computed(backbone):
    model = tower(backbone)
    seen = []
    model.backbone.register_forward_hook(
        lambda module, args, kwargs, outputs: seen.append(outputs.last_hidden_state.shape[:2]), with_kwargs=True
    )
    ids, mask = random_tokens(LENGTHS)
    model(input_ids=ids, attention_mask=mask)
    assert seen[-1] == (1, sum(LENGTHS))
    ids, mask = random_tokens([9, 9])
    model(input_ids=ids, attention_mask=mask)
    assert seen[-1] == (2, 9)


def test_hidden_states_come_back_as_a_padded_batch():
    ids, mask = random_tokens([3, 9])
    with torch.no_grad():
        packed, padded = (
            tower("llama", packs)(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
            for packs in (True, False)
        )
    assert len(packed) == len(padded) == 3
    for states, expected in zip(packed, padded):
        torch.testing.assert_close(states, expected * mask[..., None], atol=1e-5, rtol=0)


def test_positions_and_segments_of_a_call_are_packed_too():
    ids, mask = random_tokens([3, 9])
    segments = (torch.arange(9) > 1).long().expand(2, 9)
    positions = torch.arange(9)[None] + 5
    with torch.no_grad():
        packed, padded = (
            tower("bert", packs)(input_ids=ids, attention_mask=mask, token_type_ids=segments, position_ids=positions)
            for packs in (True, False)
        )
    torch.testing.assert_close(packed.pooler_output, padded.pooler_output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", ["llama", "qwen3", "bert"])
def test_gradient_checkpointing(backbone):
    ids, mask = random_tokens(LENGTHS)
    _, expected = vectors_and_gradients(tower(backbone, padding_free=False), ids, mask)
    model = tower(backbone)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Layers check point in training mode only; these configurations have dropout, which must not differ.
    model.backbone.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = 0.0
    _, gradients = vectors_and_gradients(model, ids, mask)
    assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("backbone", ["llama", "qwen3", "bert"])
def test_autocast(backbone):
    ids, mask = random_tokens(LENGTHS)
    outputs = []
    for packs in (True, False):
        model = tower(backbone, packs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            packed, gradients = vectors_and_gradients(model, ids, mask)
        outputs.append(packed.backbone_embeds)
        assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert torch.cosine_similarity(*outputs).min() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["llama", "bert"])
def test_compile(backbone):
    model = tower(backbone)
    rows = rows_of_the_backbone(model)
    compiled = torch.compile(model)
    for seed in range(3):
        ids, mask = random_tokens([length + seed for length in (4, 11, 7)], seed)
        _, expected = vectors_and_gradients(tower(backbone, padding_free=False), ids, mask)
        model.zero_grad()
        outputs = compiled(input_ids=ids, attention_mask=mask)
        assert rows[-1] == 1
        weights = torch.randn(outputs.pooler_output.shape, generator=torch.Generator().manual_seed(3))
        (outputs.pooler_output * weights).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        assert_same_gradients(gradients, expected)


def _train_one_step_on_a_rank(rank, folder):
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), rank=rank, world_size=2
    )
    model = torch.nn.parallel.DistributedDataParallel(tower("llama"))
    ids, mask = random_tokens(LENGTHS)
    rows = slice(0, 6) if rank == 0 else slice(6, 12)
    seen = rows_of_the_backbone(model.module)
    model(input_ids=ids[rows], attention_mask=mask[rows]).pooler_output.square().mean().backward()
    assert seen[-1] == 1
    if rank == 0:
        torch.save({name: p.grad for name, p in model.module.named_parameters()}, f"{folder}/gradients.pt")
    del model
    leave_process_group()


def test_distributed_data_parallel(tmp_path):
    mp.spawn(_train_one_step_on_a_rank, args=(str(tmp_path),), nprocs=2)
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    model = tower("llama", padding_free=False)
    ids, mask = random_tokens(LENGTHS)
    model(input_ids=ids, attention_mask=mask).pooler_output.square().mean().backward()
    assert_same_gradients(gradients, {name: p.grad for name, p in model.named_parameters()})


def test_plain_transformers_model_takes_the_backend():
    """`pixclip_varlen` on a model that is not ours, with padding and with Transformers' own packed call."""
    torch.manual_seed(0)
    config = copy.deepcopy(BACKBONES["qwen3"])
    config.is_causal = False
    reference = AutoModel.from_config(config, attn_implementation="sdpa").eval()
    model = AutoModel.from_config(config, attn_implementation=VARLEN_ATTENTION).eval()
    model.load_state_dict(reference.state_dict())
    ids, mask = random_tokens([4, 30, 9])
    with torch.no_grad():
        expected = reference(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
        padded = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
        assert torch.equal(padded, expected)
        packed = PackedTexts.from_padded(ids, mask)
        states = model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            cu_seq_lens_q=packed.cu_seq_lens,
            cu_seq_lens_k=packed.cu_seq_lens,
            max_length_q=packed.max_length,
            max_length_k=packed.max_length,
        ).last_hidden_state
    torch.testing.assert_close(packed.unpack(states), expected, atol=1e-5, rtol=0)


def test_clip_text_runs_padded(caplog):
    """Its tower refuses rows longer than its table of positions, which packed texts are."""
    ids, mask = random_tokens([4, 30, 9])
    auto = randomise(PixCLIPTextModel(text_config("clip_text")))
    plain = randomise(PixCLIPTextModel(text_config("clip_text", padding_free=False)))
    with torch.no_grad():
        outputs = [auto(input_ids=ids, attention_mask=mask) for _ in range(2)]
        expected = plain(input_ids=ids, attention_mask=mask)
    assert torch.equal(outputs[0].pooler_output, expected.pooler_output)
    assert len([record for record in caplog.records if "Texts run padded" in record.message]) == 1
    with pytest.raises(ValueError, match="cannot be packed for the backbone .clip_text_model.*Sequence length"):
        PixCLIPTextModel(text_config("clip_text", padding_free=True))(input_ids=ids, attention_mask=mask)


def test_backbone_that_mixes_packed_texts_is_not_packed(monkeypatch):
    """As in layers that do not hand `cu_seq_lens_q` on to their attention."""
    model = tower("llama")
    for layer in model.backbone.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != "cu_seq_lens_q"}),
            with_kwargs=True,
        )
    ids, mask = random_tokens([4, 30, 9])
    with pytest.raises(ValueError, match="a text has other states beside another text"):
        model(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("attention", ["eager", "flex_attention"])
def test_attention_that_cannot_pack(attention):
    ids, mask = random_tokens([4, 30, 9])
    config = text_config(BACKBONES["llama"], padding_free=True)
    model = randomise(PixCLIPTextModel._from_config(config, attn_implementation=attention))
    with pytest.raises(ValueError, match=f"cannot be packed.*'{attention}'.*padding_free='auto'"):
        model(input_ids=ids, attention_mask=mask)


def test_eager_attention_runs_padded_without_a_word(caplog):
    ids, mask = random_tokens([4, 30, 9])
    model = tower("llama", padding_free="auto")
    model.set_attn_implementation("eager")
    rows = rows_of_the_backbone(model)
    with torch.no_grad():
        outputs = model(input_ids=ids, attention_mask=mask, output_attentions=True)
        expected = tower("llama")(input_ids=ids, attention_mask=mask).pooler_output
    assert rows == [3] and len(outputs.attentions) == 2 and not caplog.records
    torch.testing.assert_close(outputs.pooler_output, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("whole", [True, False])
def test_sdpa_is_replaced_whenever_it_is_set(whole, tmp_path):
    ids, mask = random_tokens([4, 30, 9])
    model = randomise(PixCLIPModel(pixclip_config())) if whole else tower("llama")
    model.set_attn_implementation("eager")
    model.set_attn_implementation("sdpa")
    text_model = model.text_model if whole else model
    rows = rows_of_the_backbone(text_model)
    text_model(input_ids=ids, attention_mask=mask)
    assert rows[-1] == 1
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, attn_implementation="sdpa")
    text_model = loaded.text_model if whole else loaded
    rows = rows_of_the_backbone(text_model)
    text_model(input_ids=ids, attention_mask=mask)
    assert rows[-1] == 1


@pytest.mark.parametrize("padding_free", [True, False, "auto"])
def test_padding_free_is_saved(padding_free, tmp_path):
    tower("llama", padding_free).save_pretrained(tmp_path)
    assert PixCLIPTextModel.from_pretrained(tmp_path).config.padding_free == padding_free


def test_without_packing_the_tower_is_one_graph():
    model = tower("llama", padding_free=False)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    ids, mask = random_tokens([4, 30, 9])
    with torch.no_grad():
        found = compiled(input_ids=ids, attention_mask=mask).pooler_output
        torch.testing.assert_close(found, model(input_ids=ids, attention_mask=mask).pooler_output)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_padding_is_never_pooled(pooling):
    ids, mask = random_tokens([4, 30, 9])
    for padding_free in (True, False):
        model = tower("llama", padding_free, pooling=pooling)
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask, pooling_mask=torch.ones_like(mask)).backbone_embeds
            assert torch.equal(found, model(input_ids=ids, attention_mask=mask).backbone_embeds)


def test_holes_in_a_mask_run_padded():
    ids, mask = random_tokens([4, 30, 9])
    mask[1, 5:9] = 0
    with torch.no_grad():
        found, expected = (
            tower("mistral with a window", packs)(input_ids=ids, attention_mask=mask).pooler_output
            for packs in ("auto", False)
        )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="holes in its attention_mask"):
        tower("llama")(input_ids=ids, attention_mask=mask)


def test_a_trial_that_runs_out_of_memory_says_so_and_is_made_again():
    model = tower("llama", padding_free="auto")
    rows = rows_of_the_backbone(model)

    def run_out(module, args, kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = model.backbone.register_forward_pre_hook(run_out, with_kwargs=True)
    ids, mask = random_tokens([4, 30, 9])
    with pytest.raises(torch.OutOfMemoryError):
        model(input_ids=ids, attention_mask=mask)
    hook.remove()
    model(input_ids=ids, attention_mask=mask)
    assert rows[-1] == 1


def test_refusals_keep_nothing_alive():
    """As an exception that is kept and raised again would, with the frames of every forward."""
    model = randomise(PixCLIPTextModel(text_config("clip_text", backbone_training="full")))
    ids, mask = random_tokens([4, 30, 9])
    outputs = [weakref.ref(model(input_ids=ids, attention_mask=mask).pooler_output) for _ in range(5)]
    gc.collect()
    assert not any(output() is not None for output in outputs)


def test_parts_keep_their_modes():
    model = tower("llama")
    model.train()
    model.backbone.layers[0].eval()
    ids, mask = random_tokens([4, 30, 9])
    model(input_ids=ids, attention_mask=mask)
    assert not model.backbone.layers[0].training and model.backbone.layers[1].training


def _forward_on_a_shard(rank, folder):
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=60), rank=rank, world_size=2
    )
    model = tower("llama", padding_free="auto")
    for layer in model.backbone.layers:
        fully_shard(layer)
    fully_shard(model)
    ids, mask = random_tokens([4, 9] if rank == 0 else [9, 9])
    model(input_ids=ids, attention_mask=mask).pooler_output.square().mean().backward()
    del model
    leave_process_group()


def test_sharded_ranks_with_and_without_padding_do_not_wait_for_each_other(tmp_path):
    mp.spawn(_forward_on_a_shard, args=(str(tmp_path),), nprocs=2)


# Texts of the second process; the first one has some at every step, and in "alone" has run before it was sharded.
ORDERS = {"first step": ([], [9, 4]), "second step": ([9, 4], [], [7, 7]), "alone": ([5, 3], [])}


def gradients_of_sharded_towers(backbone):
    """Gradients of each step, and how often the backbone ran in each."""
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    results = {}
    for order, steps in ORDERS.items():
        model = tower(backbone, padding_free="auto")
        runs = rows_of_the_backbone(model)
        if order == "alone" and rank == 0:
            model(*random_tokens([4, 9]))
        for layer in model.backbone.encoder.layer if backbone == "bert" else model.backbone.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        results[order] = []
        for lengths in steps:
            model.zero_grad()
            runs.clear()
            sum_of_squares(model, lengths if rank else [6, 2, 8]).backward()
            # Of sums, that of all processes is twice the mean that is made of them.
            gradients = {name: p.grad.full_tensor() * 2 for name, p in model.named_parameters() if p.grad is not None}
            results[order].append((gradients, len(runs)))
    return results


def sum_of_squares(model, lengths):
    ids, mask = random_tokens(lengths or [1])
    return model(input_ids=ids[: len(lengths)], attention_mask=mask[: len(lengths)]).pooler_output.square().sum()


@pytest.mark.parametrize("backbone", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_sharded_towers_train_where_a_process_has_no_texts(backbone):
    results = run_processes(gradients_of_sharded_towers, backbone, timeout=60)
    for order, steps in ORDERS.items():
        for step, lengths in enumerate(steps):
            found, runs = zip(*(result[order][step] for result in results))
            # The first step makes the trial.
            assert runs[0] == runs[1] and (runs[0] == 1) == (step > 0), (order, step, runs)
            model = tower(backbone, padding_free=False)
            for texts in filter(None, (lengths, [6, 2, 8])):
                sum_of_squares(model, texts).backward()
            expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            for gradients in found:
                assert_same_gradients(gradients, expected)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
def test_missing_flash_package_is_the_librarys_own_error(attention):
    if torch.cuda.is_available():
        pytest.skip("may be installed here")
    with pytest.raises((ImportError, ValueError), match="(?i)flash"):
        PixCLIPTextModel._from_config(text_config(BACKBONES["llama"]), attn_implementation=attention)


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3"])
@pytest.mark.parametrize("backbone, bidirectional", [("llama", True), ("qwen3", False), ("bert", True)])
def test_flash_attention_of_transformers_gets_the_packed_call(monkeypatch, backbone, bidirectional, attention):
    """All of Transformers' way to the flash package, up to the package, in whose place a straight line stands."""

    def flash(query, key, value, mask, query_length, is_causal, *, softmax_scale, attn_implementation, **kwargs):
        assert attn_implementation == attention
        if mask is None:
            assert kwargs["cu_seq_lens_q"] is kwargs["cu_seq_lens_k"] and query.shape[0] == 1
            assert kwargs["max_length_q"] == kwargs["cu_seq_lens_q"].diff().max()
            starts = kwargs["cu_seq_lens_q"].tolist()
            texts = [(0, slice(start, end)) for start, end in zip(starts, starts[1:])]
            calls.append(query.shape[1])
        else:
            texts = [(row, slice(0, length)) for row, length in enumerate(mask.sum(-1).tolist())]
        outputs = torch.zeros_like(query)
        for row, tokens in texts:
            q, k, v = (states[row, tokens].transpose(0, 1)[None] for states in (query, key, value))
            rows = scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=softmax_scale, enable_gqa=True)
            outputs[row, tokens] = rows[0].transpose(0, 1)
        return outputs

    calls = []
    monkeypatch.setattr(flash_attention, "_flash_attention_forward", flash)
    ids, mask = random_tokens([4, 30, 9])
    model = tower(backbone, bidirectional=bidirectional)
    model.config.backbone_text_config._attn_implementation = attention
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask).backbone_embeds
        assert calls[-2:] == [43, 43]
        padded = tower(backbone, padding_free=False, bidirectional=bidirectional)
        expected = padded(input_ids=ids, attention_mask=mask).backbone_embeds
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_packed_call_refuses_what_it_has_not_got():
    states = torch.randn(1, 4, 5, 8)
    starts = torch.tensor([0, 3, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match="softcap"):
        varlen_attention_forward(
            torch.nn.Module(), states, states, states, None, cu_seq_lens_q=starts, max_length_q=3, softcap=30.0
        )


class _Layer(torch.nn.Module):
    def __init__(self, **config):
        super().__init__()
        self.config = type("Config", (), config)()


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("native_groups", [True, False])
def test_arguments_for_the_flash_kernel(monkeypatch, native_groups, causal, window):
    """What `varlen_attn` is called with, by a straight-line stand-in of its documented signature, on the CPU."""

    def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False):
        assert cu_seq_q is cu_seq_k and max_q == max_k == 9
        assert enable_gqa == native_groups and query.dtype == torch.bfloat16
        assert native_groups or key.shape[1] == query.shape[1]
        rows = []
        for start, end in zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:]):
            distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
            left, right = (limit if limit >= 0 else end for limit in window_size)
            q, k, v = (states[start:end].transpose(0, 1) for states in (query, key, value))
            mask = (distance <= left) & (-distance <= right)
            rows.append(scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True).transpose(0, 1))
        return torch.cat(rows)

    arguments = dict(inspect.signature(varlen_attn).parameters)
    if not native_groups:
        del arguments["enable_gqa"]
    monkeypatch.setattr(text_attention, "varlen_attn", varlen_attn)
    monkeypatch.setattr(text_attention, "_VARLEN_ARGUMENTS", arguments)
    torch.manual_seed(0)
    query = torch.randn(1, 4, 14, 8, dtype=torch.bfloat16)
    key, value = torch.randn(2, 1, 2, 14, 8, dtype=torch.bfloat16)
    starts = torch.tensor([0, 5, 14], dtype=torch.int32)
    flash = text_attention._flash(query, key, value, starts, 9, 0.3, causal, window, torch.bfloat16)
    loop = text_attention._text_by_text(query, key, value, starts, 0.0, 0.3, causal, window)
    torch.testing.assert_close(flash, loop, atol=0.03, rtol=0.03)
