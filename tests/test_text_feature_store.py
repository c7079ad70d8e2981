# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The store of text vectors: those of the model, computed once, never those of another model, template or dtype."""

import copy
import dataclasses
import itertools
import json
import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import backbone_config, pixclip_config, randomise, text_config
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments

from modeling_pixclip import PixCLIPDataCollator, PixCLIPModel, PixCLIPTextConfig, PixCLIPTextModel, TextFeatureStore
from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor


WORDS = "[pad] [unk] [eos] a red blue kite car on the left right user".split()
TEXTS = ["a red kite", "a blue car on the left", "a car", "the blue kite on the right", "red"]


def make_processor(**options):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    return PixCLIPProcessor(PixCLIPImageProcessor(size=32), tokenizer, **options)


def make_model(seed=0, **fields):
    torch.manual_seed(seed)
    return randomise(PixCLIPTextModel(text_config(backbone_config("llama"), **fields))).eval()


def make_store(path, model=None, processor=None, **options):
    return TextFeatureStore(path, model or make_model(), processor or make_processor(), **options)


def embed(store, texts=TEXTS, **options):
    return store.embed(texts, show_progress_bar=False, **options)


class CountingModel:
    """Counts the texts that really go through a model."""

    def __init__(self, model, fail_at=None):
        self.texts, self.calls, self.fail_at = 0, 0, fail_at
        self.encode = model.encode_backbone
        model.encode_backbone = self

    def __call__(self, texts, processor, **options):
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        self.texts += len(texts)
        return self.encode(texts, processor, **options)


@pytest.mark.parametrize(("dtype", "rounding"), [("float16", 5e-4), ("bfloat16", 4e-3), ("float32", 1e-7)])
def test_vectors_are_those_of_the_model(tmp_path, dtype, rounding):
    model, processor = make_model(), make_processor()
    store = make_store(tmp_path, model, processor, dtype=dtype)
    assert embed(store, [*TEXTS, TEXTS[0]], batch_tokens=8) == len(TEXTS)
    assert sorted(store) == sorted(TEXTS) and len(store) == len(TEXTS)
    expected = model.encode_backbone(TEXTS, processor)
    for text, vector in zip(TEXTS, expected):
        assert store[text].dtype == torch.float32
        torch.testing.assert_close(store[text], vector, rtol=rounding, atol=2e-6)
        direct = model(**processor(text=text)).backbone_embeds[0]
        torch.testing.assert_close(store[text], direct, rtol=rounding, atol=1e-5)
    with pytest.raises(KeyError):
        store["a text that was never embedded"]
    assert "a text that was never embedded" not in store and 7 not in store
    rows = 0
    for segment in store.folder.glob("segment-*"):
        rows += (segment / "vectors").stat().st_size // (32 * {"float32": 4}.get(dtype, 2))
    assert rows == len(TEXTS)


def test_whitespace_around_a_text_does_not_count(tmp_path):
    model = make_model()
    store, counter = make_store(tmp_path, model), CountingModel(model)
    assert embed(store, [" a red kite", "a red kite\n", "a red kite"]) == 1 and counter.texts == 1
    assert torch.equal(store["\ta red kite "], store["a red kite"]) and list(store) == ["a red kite"]


def test_a_second_run_reads_and_adds_only_what_is_missing(tmp_path):
    model, processor = make_model(), make_processor()
    first = make_store(tmp_path, model, processor)
    embed(first, TEXTS[:3])
    counter = CountingModel(model)
    second = make_store(tmp_path, model, processor)
    assert list(second.missing(TEXTS)) == TEXTS[3:]
    assert embed(second) == 2 and embed(second) == 0
    assert counter.texts == 2
    assert all(torch.equal(second[text], first[text]) for text in TEXTS[:3])
    assert len(first) == 3
    first.refresh()
    assert len(first) == len(TEXTS) == len(make_store(tmp_path))


CHANGES = {
    "weights": lambda: (make_model(seed=1), make_processor()),
    "pooling": lambda: (make_model(pooling="last"), make_processor()),
    "direction": lambda: (make_model(bidirectional=False), make_processor()),
    "template": lambda: (make_model(), make_processor(text_template="user {text}")),
    "pooled span": lambda: (make_model(), make_processor(text_pooling="all")),
    "length": lambda: (make_model(), make_processor(text_max_length=3)),
    "tokenizer": lambda: (make_model(), make_processor()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_or_template_reads_nothing(tmp_path, change):
    embed(make_store(tmp_path))
    model, processor = CHANGES[change]()
    if change == "weights":
        model = make_model()
        with torch.no_grad():
            model.backbone.embed_tokens.weight[5, 3] += 1e-3
    elif change == "tokenizer":
        processor.tokenizer.add_tokens(["kite on"])
    assert len(make_store(tmp_path, model, processor)) == 0


def test_every_field_of_the_configuration_is_in_the_key_or_does_not_matter():
    """A new field of the configuration has to be thought about here, and in the store's key."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(PixCLIPTextConfig)} - inherited
    in_the_key = {"backbone_config", "bidirectional", "long_text_positions", "pooling"}
    # Of the adapters, their weights and the layers that carry them are in the key.
    told_by_weights = {"backbone_dtype", "backbone_lora", "backbone_training"}
    # A tower without a backbone makes no store.
    where_from = {"backbone_in_checkpoint", "backbone_source", "backbone_embeds_only"}
    after_the_vectors = {name for name in own if name.startswith(("adapter_", "projection_", "long_text_projection"))}
    assert own - in_the_key - told_by_weights - where_from - after_the_vectors == {
        "initializer_factor",
        "normalize_pooled",
        "padding_free",
    }


def test_another_dtype_reads_nothing(tmp_path):
    embed(make_store(tmp_path))
    assert len(make_store(tmp_path, dtype="bfloat16")) == 0


def test_scale_of_adapters_is_part_of_the_key(tmp_path):
    pytest.importorskip("peft")
    model = make_model()
    for alpha in (8, 16):
        torch.manual_seed(0)
        tuned = make_model()
        tuned.set_backbone_trainable("lora", rank=2, alpha=alpha)
        model_store = make_store(tmp_path, tuned)
        assert len(model_store) == 0
        embed(model_store)
    assert len(make_store(tmp_path, model)) == 0


def lora_folder(path, off=False, **options):
    model = make_model()
    torch.manual_seed(0)
    model.set_backbone_trainable("lora", **options)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    for layer in model.backbone.modules():
        if off and hasattr(layer, "lora_A"):
            layer.enable_adapters(False)
    store = make_store(path, model)
    if not store.folder.is_dir():
        embed(store)
    return store.folder, store["a red kite"]


def test_adapters_that_are_off_have_other_vectors(tmp_path):
    pytest.importorskip("peft")
    on, off = lora_folder(tmp_path), lora_folder(tmp_path, off=True)
    assert on[0] != off[0] and not torch.allclose(on[1], off[1], atol=1e-2)
    plain = make_store(tmp_path)
    embed(plain)
    assert torch.equal(plain["a red kite"], off[1])


def test_options_of_adapters_that_change_no_vector_do_not_matter(tmp_path):
    pytest.importorskip("peft")
    folder, _ = lora_folder(tmp_path)
    layers = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
    for options in ({"dropout": 0.3}, {"target_modules": layers}, {"alpha": 32.0}):
        assert lora_folder(tmp_path, **options)[0] == folder
    assert lora_folder(tmp_path, target_modules=layers[:2])[0] != folder


def test_fields_of_the_backbone_that_change_no_vector_do_not_matter(tmp_path, monkeypatch):
    model = make_model()
    folder = make_store(tmp_path, model).folder
    model.backbone.config.use_cache = False
    model.backbone.config.auto_map = {"AutoModel": "modeling_x.XModel"}
    model.backbone.config.architectures = ["XModel"]
    assert make_store(tmp_path, model).folder == folder
    model.backbone.config.rms_norm_eps = 0.5
    assert make_store(tmp_path, model).folder != folder
    model = make_model()
    # As a later version of Transformers may have it.
    plain = LlamaConfig.to_dict
    monkeypatch.setattr(LlamaConfig, "to_dict", lambda self: {**plain(self), "a_new_field": None})
    assert make_store(tmp_path, model).folder == folder


def test_direction_does_not_matter_to_an_encoder(tmp_path):
    folders = set()
    for bidirectional in (True, False):
        model = PixCLIPTextModel(text_config(backbone_config("bert"), bidirectional=bidirectional))
        folders.add(make_store(tmp_path, randomise(model)).folder)
    assert len(folders) == 1


class Objective(torch.nn.Module):
    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, **batch):
        return {"loss": self.tower(**batch).pooler_output.square().mean()}


def train_with_fused_adamw(model, batch, path):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05, fused=True)
    for _ in range(2):
        Objective(model)(**batch)["loss"].backward()
        optimizer.step()


def train_with_trainer(model, batch, path):
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(len(TEXTS))]
    arguments = TrainingArguments(
        path,
        max_steps=2,
        learning_rate=0.05,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    assert arguments.optim == "adamw_torch_fused"
    Trainer(Objective(model), arguments, train_dataset=rows).train()


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("train", [train_with_fused_adamw, train_with_trainer])
def test_vectors_of_the_weights_before_training_are_not_taken(tmp_path, train, mode):
    """A fused optimiser changes weights without PyTorch counting it."""
    if mode == "lora":
        pytest.importorskip("peft")
    model, processor = make_model(), make_processor()
    model.set_backbone_trainable(mode)
    before = make_store(tmp_path, model, processor)
    embed(before, TEXTS[:3])
    old = before["a red kite"]
    train(model.train(), processor(text=TEXTS), str(tmp_path / "run"))
    model.eval()
    # Also where nothing is to be computed.
    for texts in (TEXTS, TEXTS[:3]):
        with pytest.raises(ValueError, match="weights of the model or processor changed since this store was made"):
            embed(before, texts)
    after = make_store(tmp_path, model, processor)
    assert after.folder != before.folder and len(after) == 0
    assert embed(after) == len(TEXTS)
    torch.testing.assert_close(
        after["a red kite"], model.encode_backbone(TEXTS[:1], processor)[0], rtol=1e-3, atol=1e-5
    )
    assert not torch.allclose(after["a red kite"], old, atol=1e-3) and torch.equal(before["a red kite"], old)


def test_what_vectors_do_not_depend_on_does_not_matter(tmp_path):
    """The adapter, padding left over in the tokenizer, and where the same weights come from."""
    model, processor = make_model(), make_processor()
    embed(make_store(tmp_path, model, processor))
    processor.tokenizer(["a", "a car"], padding=True, truncation=True, max_length=2)
    torch.nn.init.normal_(model.projection.weight)
    assert len(make_store(tmp_path, model, processor)) == len(TEXTS)
    assert len(make_store(tmp_path, make_model(projection_type="linear", padding_free=False))) == len(TEXTS)

    whole = randomise(PixCLIPModel(pixclip_config()))
    whole.text_model.backbone.load_state_dict(model.backbone.state_dict())
    assert len(make_store(tmp_path, whole.text_model)) == len(TEXTS)
    whole.save_pretrained(tmp_path / "checkpoint")
    loaded = PixCLIPModel.from_pretrained(tmp_path / "checkpoint")
    assert len(make_store(tmp_path, loaded.text_model)) == len(TEXTS)


def test_layout_of_the_tokenizers_json_does_not_matter(tmp_path, monkeypatch):
    """A version of tokenizers may leave out what is not set."""
    model, processor = make_model(), make_processor()
    folder = make_store(tmp_path, model, processor).folder
    written = json.loads(processor.tokenizer.backend_tokenizer.to_str())
    assert written.pop("padding") is None and written.pop("truncation") is None
    shorter = SimpleNamespace(to_str=lambda: json.dumps(written))
    monkeypatch.setattr(PreTrainedTokenizerFast, "backend_tokenizer", property(lambda tokenizer: shorter))
    assert make_store(tmp_path, model, processor).folder == folder


def test_each_number_of_each_weight_is_in_the_key(tmp_path):
    model = make_model()
    folder = make_store(tmp_path, model).folder
    # Moved, but the same.
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert make_store(tmp_path, model).folder == folder
    for parameter in model.backbone.parameters():
        number = parameter.data.view(-1)[-1]
        before = number.clone()
        # Through .data, which PyTorch does not count.
        number.add_(1e-3)
        assert make_store(tmp_path, model).folder != folder
        number.copy_(before)
    assert make_store(tmp_path, model).folder == folder


def test_where_nothing_is_missing_nothing_is_written(tmp_path):
    """So that a finished store can lie on a file system that is only read."""
    model = make_model()
    store = make_store(tmp_path, model)
    embed(store)
    leftover = store.folder / ".removed-left-by-a-killed-process"
    leftover.mkdir()
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
    assert embed(make_store(tmp_path, model)) == 0
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before
    assert embed(store, ["the car"]) == 1 and not leftover.exists()


def test_embed_sees_what_other_stores_added(tmp_path):
    model = make_model()
    first, second = make_store(tmp_path, model), make_store(tmp_path, model)
    embed(first)
    counter = CountingModel(model)
    assert embed(second) == 0 == counter.texts and len(second) == len(TEXTS)


def test_a_relative_path_stays_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = make_store("cache")
    embed(made)
    opened, folder = TextFeatureStore.open("cache"), tmp_path / "cache" / made.folder.name
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    for store in (made, opened, pickle.loads(pickle.dumps(opened))):
        assert store.folder == folder and len(store) == len(TEXTS)
        store.refresh()
        assert len(store) == len(TEXTS)
    os.chdir(folder)
    assert len(TextFeatureStore.open(".")) == len(TEXTS)


def test_a_pickled_store_without_a_folder_is_refused(tmp_path):
    store = make_store(tmp_path)
    content = pickle.dumps(store)
    with pytest.raises(FileNotFoundError, match=r"store\.json is not there: the store was pickled before"):
        pickle.loads(content)
    embed(store)
    assert len(pickle.loads(content)) == len(TEXTS)


def test_stores_are_equal_by_identity(tmp_path):
    store = make_store(tmp_path)
    embed(store)
    assert store == store and store != make_store(tmp_path) and store != dict(store)
    assert {store: 1}[store] == 1


def test_tiny_numbers_are_rounded_as_documented(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.backbone.norm.weight.fill_(1e-6)
    store = make_store(tmp_path, model)
    embed(store)
    vectors, exact = torch.stack([store[text] for text in TEXTS]), model.encode_backbone(TEXTS, make_processor())
    torch.testing.assert_close(vectors, exact, rtol=0, atol=3e-8)
    assert (vectors[exact.abs() < 2.9e-8] == 0).all() and (exact.abs() < 2.9e-8).any()


def test_template_that_changes_under_a_store_is_refused(tmp_path):
    processor = make_processor()
    store = make_store(tmp_path, None, processor)
    processor.text_template = "user {text}"
    with pytest.raises(ValueError, match="text_template of the model or processor changed"):
        embed(store)


def test_an_interrupted_run_keeps_its_finished_blocks(tmp_path):
    model, processor = make_model(), make_processor()
    CountingModel(model, fail_at=3)
    with pytest.raises(KeyboardInterrupt):
        embed(make_store(tmp_path, model, processor), block_size=2)
    model = make_model()
    counter, store = CountingModel(model), make_store(tmp_path, model, processor)
    assert len(store) == 4
    assert embed(store) == counter.texts == 1
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_a_generator_is_read_piece_by_piece(tmp_path):
    model = make_model()
    taken, ahead = itertools.count(), []
    counter = CountingModel(model)
    encode = counter.encode
    counter.encode = lambda texts, *args, **options: ahead.append(next(taken)) or encode(texts, *args, **options)
    texts = (f"a car {next(taken)}" for _ in range(9000))
    assert embed(make_store(tmp_path, model), texts, block_size=512) == 9000
    # The first blocks are computed before the generator is at its end.
    assert ahead[0] <= 4096 and ahead[8] <= 8200 and len(ahead) == 18
    assert counter.texts == 9000


def test_damage_is_found_counted_and_computed_again(tmp_path):
    model = make_model()
    store = make_store(tmp_path, model)
    embed(store)
    right = {text: store[text] for text in store}
    [segment] = store.folder.glob("segment-*")
    content = bytearray((segment / "vectors").read_bytes())
    content[70] ^= 1
    (segment / "vectors").write_bytes(content)
    counter, store = CountingModel(model), make_store(tmp_path, model)
    with pytest.warns(UserWarning, match="are damaged") as caught:
        assert len(list(store.missing(TEXTS))) == 1
        assert embed(store) == 1
    assert len(caught) == 1 and store.damaged == {"vectors": 1} and counter.texts == 1
    mended = make_store(tmp_path, model)
    assert len(mended) == len(store) == len(TEXTS) and not mended.damaged
    for text, vector in right.items():
        torch.testing.assert_close(mended[text], vector, rtol=1e-3, atol=1e-5)


def test_opens_without_the_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no text vectors in"):
        TextFeatureStore.open(tmp_path)
    store = make_store(tmp_path)
    embed(store)
    for opened in (TextFeatureStore.open(tmp_path), TextFeatureStore.open(store.folder)):
        assert opened.folder == store.folder and all(torch.equal(opened[text], store[text]) for text in TEXTS)
        assert opened.description["text_template"] == "{text}" and opened.text_model is None
    with pytest.raises(ValueError, match="opened without a model and only reads"):
        opened.embed(["a car"])
    embed(make_store(tmp_path, dtype="bfloat16"))
    with pytest.raises(ValueError, match="holds 2 stores; choose one by its name") as error:
        TextFeatureStore.open(tmp_path)
    assert store.folder.name in str(error.value)
    assert TextFeatureStore.open(tmp_path, store.folder.name).folder == store.folder


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"width": 16}, {"text_template": "user {text}"}])
def test_description_that_is_not_that_of_its_folder_is_refused(tmp_path, change):
    """Read as another dtype, the bytes would be other numbers."""
    store = make_store(tmp_path)
    embed(store)
    file = store.folder / "store.json"
    content = pickle.dumps(store)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    for read in (lambda: TextFeatureStore.open(tmp_path), lambda: pickle.loads(content)):
        with pytest.raises(ValueError, match=r"store\.json cannot be read: its hash .* is not the one"):
            read()


def test_a_folder_may_be_linked_under_another_name_but_not_renamed(tmp_path):
    store = make_store(tmp_path / "cache")
    embed(store)
    (tmp_path / "link").symlink_to(store.folder)
    assert len(TextFeatureStore.open(tmp_path / "link")) == len(TEXTS)
    store.folder.rename(tmp_path / "renamed")
    with pytest.raises(ValueError, match="give it its name back"):
        TextFeatureStore.open(tmp_path / "renamed")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"dtype": "float16"}'])
def test_damaged_description_is_named(tmp_path, content):
    store = make_store(tmp_path)
    embed(store)
    before = json.loads((store.folder / "store.json").read_text())
    (store.folder / "store.json").write_text(content)
    with pytest.raises(ValueError, match=r"store\.json cannot be read"):
        TextFeatureStore.open(tmp_path)
    # The remedy that the message names.
    (store.folder / "store.json").unlink()
    assert embed(make_store(tmp_path)) == 0
    assert json.loads((store.folder / "store.json").read_text()) == before
    assert len(TextFeatureStore.open(tmp_path)) == len(TEXTS)


def test_pickles_as_a_path(tmp_path):
    store = make_store(tmp_path)
    embed(store)
    content = pickle.dumps(store)
    assert len(content) < 2000
    copy = pickle.loads(content)
    assert copy.text_model is None and all(torch.equal(copy[text], store[text]) for text in TEXTS)


def make_sample(number):
    masks = [np.ones((32, 32), dtype=bool)] * 2
    texts = [TEXTS[number % 5], TEXTS[(number + 1) % 5]]
    lists = {"masks": masks, "texts": texts, "object_texts": [None, None], "categories": [None, None]}
    return {"image": Image.new("RGB", (32, 32)), "image_id": str(number), "captions": [], **lists}


def test_collator_in_spawned_workers_reads_it(tmp_path):
    model, processor = make_model(), make_processor()
    store = make_store(tmp_path, model, processor)
    embed(store)
    collator = PixCLIPDataCollator(processor, crops=False, text_embeddings=store)
    samples = [make_sample(number) for number in range(4)]
    loader = DataLoader(samples, batch_size=2, collate_fn=collator, num_workers=1, multiprocessing_context="spawn")
    for batch, start in zip(loader, (0, 2)):
        texts = [text for sample in samples[start : start + 2] for text in sample["texts"]]
        expected = torch.stack([store[text] for text in texts])
        assert torch.equal(batch["backbone_embeds"][batch["region_text_index"]], expected)
        assert "input_ids" not in batch
        assert model(backbone_embeds=batch["backbone_embeds"]).pooler_output.shape[1] == 16
    lacking = PixCLIPDataCollator(processor, crops=False, text_embeddings=make_store(tmp_path / "other", model))
    with pytest.raises(ValueError, match="has no vector for the text 'a red kite'"):
        lacking(samples[:1])


def test_training_mode_is_restored(tmp_path):
    model = make_model().train()
    embed(make_store(tmp_path, model))
    assert model.training and not model.backbone.training


def test_values_that_the_dtype_does_not_hold_are_refused(tmp_path):
    model = make_model()
    with torch.no_grad():
        model.backbone.norm.weight.fill_(1e6)
    with pytest.raises(ValueError, match="'a red kite' has a largest absolute value of .* float16 does not hold"):
        embed(make_store(tmp_path, model), ["a red kite"])
    store = make_store(tmp_path, model, dtype="bfloat16")
    assert embed(store, ["a red kite"]) == 1 and store["a red kite"].abs().max() > 70000


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("a red kite", TypeError, "texts is the str 'a red kite'"),
        (["a red kite", None], TypeError, r"texts\[1\] is a NoneType"),
        (["a red kite", " "], ValueError, r"text\[1\] is empty"),
        (["half \ud83d"], ValueError, "not Unicode"),
    ],
)
def test_wrong_texts_are_refused(tmp_path, texts, error, message):
    store = make_store(tmp_path)
    with pytest.raises(error, match=message):
        embed(store, texts)
    assert len(store) == 0


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"text_model is a PixCLIPModel; .*model\.text_model"):
        make_store(tmp_path, PixCLIPModel(pixclip_config()))
    with pytest.raises(ValueError, match="dtype is 'int8'; accepted are 'float16', 'bfloat16', 'float32'"):
        make_store(tmp_path, dtype="int8")
    with pytest.raises(ValueError, match="block_size is 0"):
        embed(make_store(tmp_path), block_size=0)
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        embed(make_store(tmp_path), batch_tokens=0)
    assert not list(tmp_path.glob("*/segment-*"))
