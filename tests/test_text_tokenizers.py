# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Real tokenizers of other kinds, from processor to vector: a sentencepiece model, and CLIP's own vocabulary."""

import gzip
import json
import os
from pathlib import Path

import pytest
import sentencepiece
import torch
from tiny_models import randomise, text_config
from transformers import AutoProcessor, AutoTokenizer, CLIPTextConfig, CLIPTokenizer, LlamaConfig, LlamaTokenizer

from modeling_pixclip import PixCLIPTextModel
from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor


SAMPLE = Path(__file__).parents[1] / "examples" / "data" / "coco_regions"
CLIP_MERGES = Path(__file__).parent / "fixtures" / "bpe_simple_vocab_16e6.txt.gz"
SOT, EOT = 49406, 49407
TEMPLATE = "Describe this region: {text}</s>"
TEXTS = [
    "A red cup with a white handle stands on the wooden table.",
    "a dog",
    "two  spaces, naïve café, 東京 and 😀 in one text",
]
SPELLED = "</s> spelled out by a user"


def sample_captions():
    lines = (SAMPLE / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [caption for line in lines for caption in json.loads(line)["captions"]]


def make_processor(tokenizer, **options):
    return PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer, **options)


def vectors(model, batch):
    with torch.no_grad():
        return torch.nn.functional.normalize(model(**batch).pooler_output, dim=-1)


def tokens_of(processor, ids):
    return processor.tokenizer.convert_ids_to_tokens(list(ids))


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    """A folder as Llama 2 and Mistral ship it: `tokenizer.model` and nothing of the tokenizers library."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    # Llama's options: bytes for unknown characters, nothing normalised away.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sample_captions()),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    os.remove(folder / "tokenizer.vocab")
    return folder


@pytest.fixture(scope="module")
def sentencepiece_processor(sentencepiece_folder):
    tokenizer = LlamaTokenizer.from_pretrained(sentencepiece_folder, add_bos_token=True, pad_token="</s>")
    return make_processor(tokenizer, text_template=TEMPLATE)


@pytest.fixture(scope="module")
def llama(sentencepiece_processor):
    config = LlamaConfig(
        vocab_size=len(sentencepiece_processor.tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    return randomise(PixCLIPTextModel(text_config(config)))


def test_the_sentencepiece_model_itself_gives_the_same_ids(sentencepiece_folder, sentencepiece_processor):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    header = TEMPLATE.partition("{text}")[0]
    for text in [*sample_captions(), *TEXTS]:
        ids = sentencepiece_processor.tokenize_text(text)["input_ids"][0]
        assert ids == [reference.bos_id(), *reference.encode(header + text.strip()), reference.eos_id()]


def test_sentencepiece_texts_are_pooled_from_their_first_to_their_end_token(sentencepiece_processor):
    batch = sentencepiece_processor.tokenize_text(TEXTS)
    for text, ids, mask in zip(TEXTS, batch["input_ids"], batch["pooling_mask"], strict=True):
        decode = sentencepiece_processor.tokenizer.decode
        assert decode(ids) == "<s> " + TEMPLATE.replace("{text}", text)
        first = mask.index(1)
        assert mask == [0] * first + [1] * (len(ids) - first)
        # The space before a text is part of its first token.
        assert tokens_of(sentencepiece_processor, ids[:first])[0] == "<s>"
        assert decode(ids[1:first]) == "Describe this region:"
    assert tokens_of(sentencepiece_processor, batch["input_ids"][1])[batch["pooling_mask"][1].index(1)].startswith("▁")


def test_sentencepiece_control_tokens_in_a_text_are_plain_text(sentencepiece_processor):
    batch = sentencepiece_processor.tokenize_text(SPELLED)
    ids, mask = batch["input_ids"][0], batch["pooling_mask"][0]
    assert ids.count(2) == 1 and ids[-1] == 2
    assert sentencepiece_processor.tokenizer.decode(ids[mask.index(1) :]) == f" {SPELLED}</s>".lstrip()


@pytest.mark.filterwarnings("ignore:.*texts are longer than")
def test_a_long_sentencepiece_text_keeps_its_end(sentencepiece_processor):
    batch = sentencepiece_processor.tokenize_text([TEXTS[0] * 20], max_length=40)
    whole = sentencepiece_processor.tokenize_text([TEXTS[0] * 20])
    assert batch["input_ids"][0] == whole["input_ids"][0][:39] + [2]
    assert batch["pooling_mask"][0] == whole["pooling_mask"][0][:39] + [1]


def test_sentencepiece_vectors_are_the_mean_of_the_pooled_states(sentencepiece_processor, llama):
    together = sentencepiece_processor(text=TEXTS)
    with torch.no_grad():
        found = llama(**together).backbone_embeds
    for row, text in enumerate(TEXTS):
        batch = sentencepiece_processor(text=text)
        with torch.no_grad():
            states = llama.backbone(batch["input_ids"]).last_hidden_state[0]
        torch.testing.assert_close(found[row], states[batch["pooling_mask"][0].bool()].mean(0), rtol=0, atol=1e-5)


def test_a_sentencepiece_processor_and_its_model_survive_saving(tmp_path, sentencepiece_processor, llama):
    sentencepiece_processor.save_pretrained(tmp_path / "processor")
    llama.save_pretrained(tmp_path / "model")
    loaded = AutoProcessor.from_pretrained(tmp_path / "processor")
    batch, wanted = loaded(text=TEXTS), sentencepiece_processor(text=TEXTS)
    assert all(torch.equal(batch[name], wanted[name]) for name in wanted)
    model = PixCLIPTextModel.from_pretrained(tmp_path / "model")
    assert torch.equal(vectors(model, batch), vectors(llama, wanted))
    alone = AutoTokenizer.from_pretrained(tmp_path / "processor")
    assert alone(TEXTS)["input_ids"] == sentencepiece_processor.tokenizer(TEXTS)["input_ids"]


@pytest.fixture(scope="module")
def clip_tokenizer():
    """CLIP's own vocabulary: 256 bytes, the same at the end of a word, 48,894 merges, start and end of text."""
    with gzip.open(CLIP_MERGES, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    # Bytes in the order of the original: printable ones stand for themselves, the others for what comes after 255.
    alphabet = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(256 - len(printable))]
    tokens = [*alphabet, *(f"{character}</w>" for character in alphabet), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)


def clip_text_model():
    config = CLIPTextConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    return randomise(PixCLIPTextModel(text_config(config, pooling="eos")))


def test_clip_ids_are_those_of_clip(clip_tokenizer):
    assert len(clip_tokenizer) == 49408
    processor = make_processor(clip_tokenizer, text_preset="plain", text_max_length=77)
    batch = processor.tokenize_text(["a photo of a cat", "  A PHOTO\nof   a cat "])
    assert batch["input_ids"] == [[SOT, 320, 1125, 539, 320, 2368, EOT]] * 2
    assert batch["pooling_mask"] == [[1] * 7] * 2


@pytest.mark.filterwarnings("ignore:.*texts are longer than")
def test_a_long_clip_text_keeps_its_end(clip_tokenizer):
    processor = make_processor(clip_tokenizer, text_preset="plain", text_max_length=77)
    ids = processor.tokenize_text("a photo of a cat " * 40)["input_ids"][0]
    assert len(ids) == 77 and ids[0] == SOT and ids[-1] == EOT and ids[1:76] == ([320, 1125, 539, 320, 2368] * 40)[:75]


def test_clip_control_tokens_in_a_text_are_plain_text(clip_tokenizer):
    processor = make_processor(clip_tokenizer, text_preset="plain", text_max_length=77)
    ids = processor.tokenize_text("a photo of <|endoftext|> a cat")["input_ids"][0]
    assert ids.count(EOT) == 1 and ids[-1] == EOT and ids.count(SOT) == 1
    assert ids[:4] == [SOT, 320, 1125, 539] and ids[-3:-1] == [320, 2368]


def test_clip_vectors_are_the_state_of_the_end_token(clip_tokenizer, tmp_path):
    processor = make_processor(clip_tokenizer, text_preset="plain", text_max_length=77)
    model = clip_text_model()
    texts = [*sample_captions()[:12], "a photo of a cat", "naïve 東京 😀"]
    batch = processor(text=texts)
    with torch.no_grad():
        found = model(**batch).backbone_embeds
        for row, text in enumerate(texts):
            ids = torch.tensor(clip_tokenizer(text)["input_ids"])[None]
            expected = model.backbone(ids).pooler_output[0]
            torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert all(torch.equal(value, batch[name]) for name, value in loaded(text=texts).items())


def test_long_captions_run_through_a_stretched_clip_text_tower(clip_tokenizer):
    model = clip_text_model()
    short, long = "a red cup on the table", " ".join(sample_captions()[:14])
    processor = make_processor(clip_tokenizer, text_preset="plain", text_max_length=248)
    before = vectors(model, processor(text=short))
    model.resize_position_embeddings(248)
    batch = processor(text=[short, long])
    assert 150 < batch["input_ids"].shape[1] <= 248
    after = vectors(model, batch)
    torch.testing.assert_close(after[:1], before, rtol=0, atol=1e-6)
    # What stands after 77 tokens counts.
    other = vectors(model, processor(text=[short, long.removesuffix(long[-30:]) + "something else"]))
    assert (other[1] - after[1]).norm() > 1e-3
