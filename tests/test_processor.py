# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
import re
import warnings

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor, encode_rle


SENTENCES = [
    "A red cup with a white handle stands on the wooden table.",
    "user: describe the region. The man in the blue coat holds a brown dog.",
]
CHAT = "<|start|>user\n{text}<|end|>\n"


def byte_level_tokenizer(**kwargs):
    """Byte-level BPE with chat control tokens and no tokens of its own around a text, as SmolLM or Qwen."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|start|>", "<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"pad_token": "<|pad|>", "eos_token": "<|end|>", **kwargs}
    )


def bos_eos_tokenizer(pre_tokenizer=None):
    """Word-level tokenizer that puts <s> and </s> around every text."""
    backend = Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizer or pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<s>", "</s>", "<pad>"])
    backend.train_from_iterator(SENTENCES, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_processor(tokenizer=None, **kwargs):
    return PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer or byte_level_tokenizer(), **kwargs)


def pooled(processor, text, **kwargs):
    """Tokens that are pooled and tokens that are not, of one text."""
    batch = processor(text=text, **kwargs)
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
    mask = batch["pooling_mask"][0].tolist()
    return [t for t, m in zip(tokens, mask, strict=True) if m], [t for t, m in zip(tokens, mask, strict=True) if not m]


def test_the_text_and_what_follows_it_are_pooled():
    processor = make_processor(text_template=CHAT)
    text = "A red cup."
    ids = processor(text=text)["input_ids"][0].tolist()
    assert ids == processor.tokenizer("<|start|>user\nA red cup.<|end|>\n")["input_ids"]
    inside, outside = pooled(processor, text)
    assert processor.tokenizer.convert_tokens_to_string(outside) == "<|start|>user\n"
    assert processor.tokenizer.convert_tokens_to_string(inside) == "A red cup.<|end|>\n"


def test_bos_is_pooled_only_when_nothing_else_precedes_the_text():
    with_prefix = make_processor(bos_eos_tokenizer(), text_template="user: {text}")
    assert pooled(with_prefix, "red cup") == (["red", "cup", "</s>"], ["<s>", "user", ":"])
    plain = make_processor(bos_eos_tokenizer())
    assert pooled(plain, "red cup") == (["<s>", "red", "cup", "</s>"], [])
    suffix_only = make_processor(bos_eos_tokenizer(), text_template="{text} table")
    assert pooled(suffix_only, "red cup") == (["<s>", "red", "cup", "table", "</s>"], [])


def test_the_plain_template_is_what_a_pipeline_tokenises():
    tokenizer = bos_eos_tokenizer()
    texts = ["red cup", "the man in the blue coat"]
    batch = make_processor(tokenizer)(text=texts)
    expected = tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["pooling_mask"], expected["attention_mask"])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_always_on_the_right(side):
    processor = make_processor(byte_level_tokenizer(padding_side=side), text_template=CHAT)
    batch = processor(text=["A red cup with a white handle.", "A dog."])
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths[1] < lengths[0] == batch["input_ids"].shape[1]
    for row, length in enumerate(lengths):
        assert batch["attention_mask"][row, :length].all() and not batch["attention_mask"][row, length:].any()
        assert not batch["pooling_mask"][row, length:].any()
    assert (batch["input_ids"][1, lengths[1] :] == processor.tokenizer.pad_token_id).all()
    assert {batch[key].dtype for key in ("input_ids", "attention_mask", "pooling_mask")} == {torch.int64}


def test_padding_to_max_length_and_padding_tokens():
    batch = make_processor()(text="A dog.", padding="max_length", max_length=20)
    assert batch["input_ids"].shape == (1, 20)
    no_pad = byte_level_tokenizer(pad_token=None)
    batch = make_processor(no_pad)(text=["A red cup.", "A"])
    assert batch["input_ids"][1, -1] == no_pad.eos_token_id
    with pytest.raises(ValueError, match="neither a pad token nor an eos token"):
        make_processor(byte_level_tokenizer(pad_token=None, eos_token=None))(text="A dog.")
    with pytest.raises(ValueError, match="padding is False"):
        make_processor()(text="A dog.", padding=False)


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), bos_eos_tokenizer()])
def test_a_long_text_loses_its_end_and_keeps_the_template(tokenizer):
    template = CHAT if tokenizer.bos_token is None else "user: {text} table"
    processor = make_processor(tokenizer, text_template=template, text_max_length=12)
    short = processor.tokenize_text("A red cup")
    with pytest.warns(UserWarning, match=r"1 of 2 texts are longer than 12 tokens .*text\[1\] with \d+ tokens"):
        batch = processor.tokenize_text(["A red cup", "A red cup " * 30])
    assert batch["input_ids"][0] == short["input_ids"][0]
    cut = batch["input_ids"][1]
    assert len(cut) == 12
    text_length = len(tokenizer("A red cup", add_special_tokens=False)["input_ids"])
    ending = len(short["input_ids"][0]) - short["pooling_mask"][0].index(1) - text_length
    assert ending >= 2 and cut[-ending:] == short["input_ids"][0][-ending:]
    assert batch["pooling_mask"][1] == [0] * short["pooling_mask"][0].index(1) + [1] * (
        12 - short["pooling_mask"][0].index(1)
    )


@pytest.mark.filterwarnings("ignore:.*texts are longer than")
def test_a_token_shared_by_text_and_template_is_never_cut():
    processor = make_processor(bos_eos_tokenizer(), text_template="{text}le stands")
    ids = processor.tokenize_text("red cup red cup tab", max_length=5)["input_ids"][0]
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["<s>", "red", "table", "stands", "</s>"]


def test_a_processor_warns_of_cutting_once():
    processor = make_processor()
    with pytest.warns(UserWarning, match="This processor warns once"):
        processor(text="A red cup", max_length=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert processor(text="A red cup", max_length=2)["input_ids"].shape == (1, 2)
        make_processor()(text="A red cup", max_length=100)


def test_max_length_must_leave_room_for_text():
    with pytest.raises(ValueError, match=r"max_length=4 leaves no room for text\[0\].*alone take \d+ tokens"):
        make_processor(text_template=CHAT)(text="A red cup", max_length=4)


def test_control_tokens_in_a_text_are_plain_text():
    processor = make_processor(text_template=CHAT)
    control = {processor.tokenizer.convert_tokens_to_ids(token) for token in ("<|start|>", "<|end|>")}
    texts = ["a cup<|end|>\n<|start|>user\nthe dog", "a cup", "<|end|>", "ends with <|en"]
    batch = processor.tokenize_text(texts)
    for text, ids in zip(texts, batch["input_ids"], strict=True):
        assert [index for index in ids if index in control] == [0, 1]
        assert processor.tokenizer.decode(ids) == CHAT.replace("{text}", text)
    assert batch["input_ids"][1] == processor.tokenize_text("a cup")["input_ids"][0]


def test_a_text_that_joins_with_the_template_to_a_control_token_stays_text():
    processor = make_processor(text_template="A dog {text}end|> stands")
    ids = processor.tokenize_text("holds <|")["input_ids"][0]
    assert processor.tokenizer.convert_tokens_to_ids("<|end|>") not in ids
    assert processor.tokenizer.decode(ids) == "A dog holds <|end|> stands"


def test_an_unknown_token_that_is_also_the_end_token_is_control_only_where_it_is_spelled():
    tokenizer = byte_level_tokenizer(unk_token="<|end|>")
    processor = make_processor(tokenizer, text_template=CHAT)
    text = "a cup <|end|> the dog"
    ids = processor.tokenize_text(text)["input_ids"][0]
    assert ids.count(tokenizer.eos_token_id) == 1 and tokenizer.decode(ids) == CHAT.replace("{text}", text)
    words = make_processor(bos_eos_tokenizer())
    assert pooled(words, "red zebra cup") == (["<s>", "red", "<unk>", "cup", "</s>"], [])
    assert pooled(words, "red <unk> cup")[0].count("<unk>") >= 1


def test_control_tokens_that_cannot_be_spelled_out_are_refused():
    processor = make_processor(bos_eos_tokenizer(pre_tokenizers.WhitespaceSplit()))
    with pytest.raises(ValueError, match=r"text\[1\] contains '</s>'.*remove it"):
        processor(text=["red cup", "red </s> cup"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (["a cup", ""], "text[1] is empty"),
        (" \n\t", "text[0] is empty"),
        (["a cup", None], "text[1] is a NoneType"),
        ([["a cup"]], "text[0] is a list"),
        (["a cup", "cut \ud83d"], "text[1] is not Unicode text"),
        ([], "text is []"),
        (7, "text is 7"),
    ],
)
def test_a_bad_text_is_named(text, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        make_processor()(text=text)


@pytest.mark.parametrize("template", ["", "no place", "{text} and {text}", 7, "{}"])
def test_the_template_has_exactly_one_place_for_the_text(template):
    with pytest.raises(ValueError, match=f"text_template is {re.escape(repr(template))}"):
        make_processor(text_template=template)


@pytest.mark.parametrize("length", [0, -1, 12.0, True, "12"])
def test_text_max_length_is_a_positive_int(length):
    with pytest.raises(ValueError, match="text_max_length is"):
        make_processor(text_max_length=length)


def test_a_tokenizer_without_offsets_is_refused():
    class SlowTokenizer(PreTrainedTokenizerFast):
        is_fast = False

    with pytest.raises(ValueError, match="SlowTokenizer, which gives no character offsets"):
        make_processor(SlowTokenizer(tokenizer_object=byte_level_tokenizer().backend_tokenizer))


def test_images_regions_and_texts_make_one_batch():
    images = [np.zeros((20, 30, 3), np.uint8), np.zeros((40, 30, 3), np.uint8)]
    masks = [[np.ones((20, 30), bool)], [encode_rle(np.eye(40, 30, dtype=bool)), [[0, 0, 9, 0, 9, 9, 0, 9]]]]
    processor = make_processor(text_template=CHAT)
    batch = processor(images, ["a cup", "a red dog"], masks=masks, crops=True, crop_size=16)
    shapes = {name: tuple(value.shape) for name, value in batch.items()}
    length = shapes["input_ids"][1]
    assert shapes == {
        "pixel_values": (2, 3, 32, 32),
        "mask_values": (3, 1, 32, 32),
        "region_image_index": (3,),
        "region_boxes": (3, 4),
        "crop_pixel_values": (3, 3, 16, 16),
        "crop_mask_values": (3, 1, 16, 16),
        "input_ids": (2, length),
        "attention_mask": (2, length),
        "pooling_mask": (2, length),
    }
    direct = processor.image_processor(images, masks=masks, crops=True, crop_size=16, return_tensors="pt")
    assert all(torch.equal(batch[name], value) for name, value in direct.items())
    assert set(processor(text="a cup")) == {"input_ids", "attention_mask", "pooling_mask"}
    assert isinstance(processor(images, return_tensors="np")["pixel_values"], np.ndarray)


def test_options_reach_their_side_flat_and_grouped():
    processor, image = make_processor(), np.zeros((20, 30, 3), np.uint8)
    flat = processor(image, "a cup", resize_mode="letterbox", size=16, max_length=9, padding="max_length")
    grouped = processor(
        image,
        "a cup",
        images_kwargs={"resize_mode": "letterbox", "size": 16},
        text_kwargs={"max_length": 9, "padding": "max_length"},
    )
    assert flat["pixel_values"].shape == (1, 3, 16, 16) and flat["input_ids"].shape == (1, 9)
    assert all(torch.equal(flat[name], grouped[name]) for name in flat)


@pytest.mark.parametrize(
    "keywords",
    [{"mask": 1}, {"truncation": True}, {"images_kwargs": {"sise": 3}}, {"audio": None}, {"videos_kwargs": {}}],
)
def test_an_unknown_keyword_is_refused(keywords):
    with pytest.raises(TypeError, match=r"unknown keyword .*resize_mode.*max_length"):
        make_processor()(np.zeros((20, 30, 3), np.uint8), **keywords)


@pytest.mark.parametrize("group", ["images_kwargs", "text_kwargs"])
def test_grouped_keywords_are_a_dict(group):
    with pytest.raises(TypeError, match=f"{group} is a list; pass a dict"):
        make_processor()(np.zeros((20, 30, 3), np.uint8), **{group: ["size"]})


def test_inputs_that_make_no_sense_together_are_refused():
    with pytest.raises(ValueError, match="both None"):
        make_processor()()
    with pytest.raises(ValueError, match="need images"):
        make_processor()(text="a cup", boxes=[0, 0, 4, 4])


@pytest.mark.parametrize(
    ("tokenizer", "template"), [(byte_level_tokenizer(), CHAT), (bos_eos_tokenizer(), "user: {text} table")]
)
@pytest.mark.parametrize("pooling", ["text", "all", "last"])
def test_saving_keeps_everything(tmp_path, tokenizer, template, pooling):
    processor = PixCLIPProcessor(
        PixCLIPImageProcessor(size=24, resize_mode="letterbox", crop_scale=2.0, crop_size={"height": 16, "width": 20}),
        tokenizer,
        text_template=template,
        text_max_length=77,
        text_pooling=pooling,
    )
    processor.save_pretrained(tmp_path)
    loaded = PixCLIPProcessor.from_pretrained(tmp_path)
    saved, options = loaded.image_processor.to_dict(), processor.image_processor.to_dict()
    assert {name: saved[name] for name in options} == options
    assert (loaded.text_template, loaded.text_max_length, loaded.text_pooling) == (template, 77, pooling)
    inputs = {
        "images": np.eye(30, 40)[..., None],
        "masks": np.eye(30, 40),
        "crops": True,
        "text": ["a cup", "dogs 😀"],
    }
    batch = processor(**inputs)
    for name, value in loaded(**inputs).items():
        assert torch.equal(value, batch[name]), name
    assert PixCLIPProcessor.from_pretrained(tmp_path, text_max_length=9).text_max_length == 9
