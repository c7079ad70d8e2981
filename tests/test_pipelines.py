# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pipelines of regions: values of the model called by hand, batches, inputs, errors, saved folders, remote code."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_for_tests import ClientError, client_of, running_hub
from PIL import Image
from tiny_models import pixclip_config, randomise
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import normalize
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, LlamaModel, PreTrainedTokenizerFast, Trainer, TrainingArguments, pipeline

from modeling_pixclip import (
    PixCLIPDataCollator,
    PixCLIPForPreTraining,
    PixCLIPImageProcessor,
    PixCLIPModel,
    PixCLIPProcessor,
    RegionFeatureExtractionPipeline,
    RegionJsonlDataset,
    ZeroShotRegionClassificationPipeline,
    get_objective_preset,
)


CLASSIFY, EMBED = "zero-shot-region-classification", "region-feature-extraction"
WORDS = "[pad] [unk] [eos] user : end a the red blue cup dog photo of This is . left on table".split()
LABELS = ["red cup", "blue dog", "table"]
TEMPLATE = "user : {text} end"


def build_processor(template=TEMPLATE, eos=False, **options):
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = {"pad_token": "[pad]", "unk_token": "[unk]"} | ({"eos_token": "[eos]"} if eos else {})
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    return PixCLIPProcessor(
        PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer, text_template=template, **options
    )


def build_model(model_class=PixCLIPForPreTraining, **fields):
    return randomise(model_class(pixclip_config(**fields)))


def photo(seed=0, size=(40, 60)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def masks_of(size=(40, 60)):
    masks = np.zeros((3, *size), np.uint8)
    masks[0, 4:20, 8:30] = masks[1, 20:40, 30:50] = masks[2, :9, 40:] = 1
    return masks


BOXES = [[0, 0, 30, 20], [6, 5, 50, 40]]


def scores_of(answers):
    """(N, L) in the order of LABELS, of the answers for one image."""
    for row in answers:
        assert [entry["score"] for entry in row] == sorted((entry["score"] for entry in row), reverse=True)
    return torch.tensor([[{e["label"]: e["score"] for e in row}[label] for label in LABELS] for row in answers])


@pytest.fixture(scope="module")
def pixclip():
    return build_model(), build_processor()


@pytest.fixture(scope="module")
def pipes(pixclip):
    model, processor = pixclip
    return {task: pipeline(task, model=model, processor=processor, device="cpu") for task in (CLASSIFY, EMBED)}


def by_hand(model, processor, image, template="This is a photo of {}.", **regions):
    """Logits (N, L) of `forward` and normalised image embeddings."""
    batch = processor(images=image, text=[template.format(label) for label in LABELS], **regions)
    with torch.no_grad():
        outputs = PixCLIPModel.forward(model, **batch)
    return outputs.logits_per_image, outputs.image_embeds


@pytest.mark.parametrize("regions", [{"masks": masks_of()}, {"boxes": BOXES}, {}], ids=["masks", "boxes", "whole"])
def test_values_are_those_of_the_model_called_by_hand(pixclip, pipes, regions):
    logits, embeds = by_hand(*pixclip, photo(), **regions)
    answers = pipes[CLASSIFY](photo(), candidate_labels=LABELS, **regions)
    torch.testing.assert_close(scores_of(answers if regions else [answers]), logits.softmax(-1), atol=1e-6, rtol=1e-5)
    found = pipes[EMBED](photo(), return_tensors=True, **regions)
    torch.testing.assert_close(found, embeds, atol=1e-6, rtol=1e-5)
    assert pipes[EMBED](photo(), **regions) == found.tolist()
    plain = pipes[EMBED](photo(), normalize=False, return_tensors="pt", **regions)
    assert (plain.norm(dim=-1) - 1).abs().min() > 1e-3
    torch.testing.assert_close(normalize(plain, dim=-1), found)


def test_labels_go_into_both_templates_and_through_the_long_path_on_request(pixclip):
    model, processor = build_model(), pixclip[1]
    model.text_model.add_long_text_path()
    randomise(model)
    classify = pipeline(CLASSIFY, model=model, processor=processor, device="cpu", hypothesis_template="a {}")
    for template, options in (("a {}", {}), ("the {} .", {"hypothesis_template": "the {} ."})):
        logits, _ = by_hand(model, processor, photo(), template=template, boxes=BOXES)
        found = scores_of(classify(photo(), boxes=BOXES, candidate_labels=LABELS, **options))
        torch.testing.assert_close(found, logits.softmax(-1), atol=1e-6, rtol=1e-5)
    batch = processor(images=photo(), boxes=BOXES, text=[f"a {label}" for label in LABELS])
    with torch.no_grad():
        logits = PixCLIPModel.forward(model, **batch, long_text_mask=torch.ones(3, dtype=torch.bool)).logits_per_image
    found = scores_of(classify(photo(), boxes=BOXES, candidate_labels=LABELS, long_text=True))
    torch.testing.assert_close(found, logits.softmax(-1), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found, scores_of(classify(photo(), boxes=BOXES, candidate_labels=LABELS)), atol=1e-3)


def test_labels_are_encoded_once_a_call(pixclip, pipes):
    calls = []
    handle = pixclip[0].text_model.register_forward_hook(lambda *_: calls.append(1))
    pipes[CLASSIFY]([photo(seed) for seed in range(5)], candidate_labels=LABELS, batch_size=2)
    handle.remove()
    assert len(calls) == 1


def test_a_text_tower_of_clip_kind_is_pooled_at_its_end_token():
    backbone = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        eos_token_id=2,
        pad_token_id=0,
    )
    text = {"backbone": backbone, "pooling": "eos", "projection_type": "linear"}
    model, processor = (
        build_model(PixCLIPModel, text=text),
        build_processor("{text} [eos]", eos=True, text_max_length=16),
    )
    logits, _ = by_hand(model, processor, photo(), masks=masks_of())
    classify = pipeline(CLASSIFY, model=model, processor=processor, device="cpu")
    found = scores_of(classify(photo(), masks=masks_of(), candidate_labels=LABELS))
    torch.testing.assert_close(found, logits.softmax(-1), atol=1e-6, rtol=1e-5)
    # Nothing precedes the text and the end token is pooled: then the stock pipeline is exact as well.
    stock = pipeline(
        "zero-shot-image-classification",
        model=model,
        tokenizer=processor.tokenizer,
        image_processor=processor.image_processor,
        device="cpu",
    )
    answer = stock(photo(), candidate_labels=LABELS, hypothesis_template="a {} [eos]")
    own = classify(photo(), candidate_labels=LABELS, hypothesis_template="a {}")
    torch.testing.assert_close(scores_of([answer]), scores_of([own]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mask", "roi"])
@pytest.mark.parametrize("mask_input", [True, False])
def test_features_pooled_from_the_dense_map(pixclip, pipes, pooling, mask_input):
    model, processor = pixclip
    batch = processor(images=photo(), masks=masks_of())
    with torch.no_grad():
        wanted = model.get_region_features(**batch, pooling=pooling, mask_input=mask_input).pooler_output
    options = {"pooling": pooling, "mask_input": mask_input, "return_tensors": True, "normalize": False}
    for size in (1, 2, 64):
        found = pipes[EMBED](photo(), masks=masks_of(), region_batch_size=size, **options)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_a_model_trained_by_region_pooling_pools_with_its_own_temperature():
    fields = get_objective_preset("fg-clip-stage2")
    model, processor = build_model(**fields), build_processor()
    with torch.no_grad():
        model.logit_scale.fill_(1.0)
        model.logit_scale_region.fill_(3.0)
    batch = processor(images=photo(), boxes=BOXES, text=LABELS)
    with torch.no_grad():
        regions = model.get_region_features(
            batch["pixel_values"],
            batch["mask_values"],
            batch["region_image_index"],
            batch["region_boxes"],
            pooling="roi",
            mask_input=False,
        ).pooler_output
        texts = model.get_text_features(batch["input_ids"], batch["attention_mask"], batch["pooling_mask"])
        cosine = normalize(regions, dim=-1) @ normalize(texts.pooler_output, dim=-1).T
    classify = pipeline(CLASSIFY, model=model, processor=processor, device="cpu", hypothesis_template="{}")
    found = scores_of(classify(photo(), boxes=BOXES, candidate_labels=LABELS))
    torch.testing.assert_close(found, (np.e**3 * cosine).softmax(-1), atol=1e-6, rtol=1e-5)
    whole = by_hand(model, processor, photo(), template="{}")[0]
    found = scores_of([classify(photo(), candidate_labels=LABELS)])
    torch.testing.assert_close(found, whole.softmax(-1), atol=1e-6, rtol=1e-5)


def test_a_model_of_the_sigmoid_loss_gives_probabilities(tmp_path):
    model, processor = build_model(loss_type="sigmoid"), build_processor()
    with torch.no_grad():
        model.logit_bias.fill_(-0.7)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    logits, _ = by_hand(model, processor, photo(), masks=masks_of())
    classify = pipeline(CLASSIFY, model=str(tmp_path), device="cpu")
    found = scores_of(classify(photo(), masks=masks_of(), candidate_labels=LABELS))
    torch.testing.assert_close(found, (logits - 0.7).sigmoid(), atol=1e-6, rtol=1e-5)
    lacking = pipeline(CLASSIFY, model=PixCLIPModel.from_pretrained(tmp_path), processor=processor, device="cpu")
    with pytest.raises(ValueError, match="AutoModelForPreTraining"):
        lacking(photo(), candidate_labels=LABELS)


# Images of two sizes with and without regions, one with none of its own.
INPUTS = [
    {"image": photo(0), "masks": masks_of()},
    {"image": photo(1, (50, 30)), "boxes": [[2, 3, 20, 40]]},
    photo(2),
    {"image": photo(3), "masks": []},
    {"image": photo(4), "masks": list(masks_of()[:2]), "boxes": [None, [1, 2, 30, 40]]},
]


class Photos(Dataset):
    def __len__(self):
        return len(INPUTS)

    def __getitem__(self, place):
        return INPUTS[place]


def flat(answers):
    """Numbers and labels of nested answers, by label, so that equal scores in another order compare equal."""
    if isinstance(answers, dict):
        return [answers["score"]]
    if isinstance(answers, list) and answers and isinstance(answers[0], dict):
        return [entry["score"] for entry in sorted(answers, key=lambda entry: entry["label"])]
    return [number for answer in answers for number in flat(answer)] if isinstance(answers, list) else [answers]


@pytest.mark.parametrize("task", [CLASSIFY, EMBED])
def test_batches_and_streams_equal_single_images(pipes, task):
    pipe, options = pipes[task], {"candidate_labels": LABELS} if task == CLASSIFY else {}
    single = [pipe(item, **options) for item in INPUTS]
    assert [len(answer) for answer in single] == [3, 1, 3 if task == CLASSIFY else 1, 0, 2]
    results = {
        "list": pipe(INPUTS, **options),
        "batch": pipe(INPUTS, batch_size=3, **options),
        "small passes": pipe(INPUTS, batch_size=5, region_batch_size=2, **options),
        "generator": list(pipe((item for item in INPUTS), batch_size=2, **options)),
        "data set": list(pipe(Photos(), batch_size=2, **options)),
        "workers": list(pipe(Photos(), batch_size=2, num_workers=2, **options)),
        "tuple": pipe(tuple(INPUTS), **options),
    }
    for name, answers in results.items():
        assert [len(answer) for answer in answers] == [len(answer) for answer in single], name
        assert flat(answers) == pytest.approx(flat(single), abs=1e-6), name
    assert len(pipe(Photos(), **options)) == len(INPUTS)
    assert pipe([], **options) == []
    stream = pipe((item for item in INPUTS), **options)
    assert flat(next(stream)) == pytest.approx(flat(single[0]), abs=1e-6)


def test_images_of_several_sizes_without_resizing(pipes):
    options = {"images_kwargs": {"do_resize": False}, "return_tensors": True}
    inputs = [
        {"image": photo(seed, size), "boxes": [1, 2, 20, 30]} for seed, size in enumerate([(32, 32), (40, 48)] * 2)
    ]
    for item, embeds in zip(inputs, pipes[EMBED](inputs, batch_size=4, **options), strict=True):
        torch.testing.assert_close(embeds, pipes[EMBED](item, **options), atol=1e-6, rtol=1e-5)


def test_masks_and_boxes_beside_a_list_of_images(pixclip, pipes):
    images, masks = [photo(0), photo(1)], [list(masks_of()), []]
    separate = pipes[EMBED](images, masks=masks)
    assert [len(rows) for rows in separate] == [3, 0]
    assert separate == pipes[EMBED]([{"image": i, "masks": m} for i, m in zip(images, masks, strict=True)])
    array = np.stack([np.asarray(image) for image in images])
    assert pipes[EMBED](array, masks=masks) == separate


def test_every_form_of_image_and_mask(tmp_path, pipes):
    from processing_pixclip.regions import encode_rle

    photo().save(tmp_path / "photo.png")
    content = (tmp_path / "photo.png").read_bytes()
    encoded = base64.b64encode(content).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content if self.path == "/photo.png" else b"no photo")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        forms = [
            photo(),
            np.asarray(photo()),
            torch.from_numpy(np.array(photo())),
            str(tmp_path / "photo.png"),
            f"http://127.0.0.1:{server.server_port}/photo.png",
            f"data:image/png;base64,{encoded}",
            encoded,
        ]
        wanted = pipes[EMBED](photo(), boxes=BOXES)
        for form in forms:
            assert pipes[EMBED](form, boxes=BOXES, timeout=10) == wanted
        for form in (f"http://127.0.0.1:{server.server_port}/x.png", "data:image/png;base64,AAAA"):
            with pytest.raises(ValueError, match=r"images\[1\] cannot be loaded from '(http|data):"):
                pipes[EMBED]([photo(), form], timeout=10)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    rectangle = masks_of()[0]
    polygon = [[8, 4, 30, 4, 30, 20, 8, 20]]
    wanted = pipes[EMBED](photo(), masks=rectangle)
    for form in (encode_rle(rectangle), polygon, Image.fromarray(rectangle * 255), torch.from_numpy(rectangle)):
        assert pipes[EMBED](photo(), masks=[form]) == wanted


BAD = [
    ({"masks": masks_of()[:, :30]}, "masks[0] has shape"),
    ({"boxes": [[0, 0, 30, 20], [0, 0, np.nan, 9]]}, "boxes[1]"),
    ({"masks": {"size": [40, 60], "counts": [1, 2]}}, "malformed RLE"),
    ({"masks": masks_of(), "boxes": BOXES}, "one box per mask"),
    ({"boxes": "left"}, "boxes is a str"),
]


@pytest.mark.parametrize(("regions", "message"), BAD)
def test_errors_are_those_of_the_processor(pixclip, pipes, regions, message):
    _, processor = pixclip
    with pytest.raises(ValueError, match=re.escape(message)) as wanted:
        processor(photo(), **regions)
    with pytest.raises(ValueError) as found:
        pipes[EMBED](photo(), **regions)
    assert str(found.value) == str(wanted.value)
    # In a list errors name the place in the list of the call, whatever the batches.
    lists = {name: [[], [], values] for name, values in regions.items()}
    with pytest.raises(ValueError) as wanted:
        processor([photo()] * 3, **lists)
    for options in ({}, {"batch_size": 2}):
        with pytest.raises(ValueError) as found:
            pipes[EMBED]([photo()] * 3, **lists, **options)
        assert str(found.value) == str(wanted.value)


def test_errors_of_images_are_those_of_the_processor(pixclip, pipes, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    for image in (str(tmp_path / "broken.png"), str(tmp_path / "missing.png"), 7, Image.new("I;16", (4, 4))):
        with pytest.raises(ValueError) as wanted:
            pixclip[1]([photo(), image])
        with pytest.raises(ValueError) as found:
            pipes[EMBED]([photo(), image])
        assert str(found.value) == str(wanted.value)
    with pytest.raises(ValueError) as wanted:
        pixclip[1]([photo()] * 2, boxes=[[[0, 0, 9, 9]]])
    with pytest.raises(ValueError) as found:
        pipes[EMBED]([photo()] * 2, boxes=[[[0, 0, 9, 9]]])
    assert str(found.value) == str(wanted.value)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (photo(), {}, "candidate_labels is None"),
        (photo(), {"candidate_labels": "cup"}, "candidate_labels is 'cup'"),
        (photo(), {"candidate_labels": ["cup", " "]}, r"candidate_labels\[1\] is ' '"),
        (photo(), {"candidate_labels": ["cup"], "hypothesis_template": "a photo"}, "hypothesis_template is 'a photo'"),
        (photo(), {"candidate_labels": ["cup"], "pooling": "mean"}, "pooling is 'mean'"),
        (photo(), {"candidate_labels": ["cup"], "region_batch_size": 0}, "region_batch_size is 0"),
        (photo(), {"candidate_labels": ["cup"], "region_batch_size": True}, "region_batch_size is True"),
        (photo(), {"candidate_labels": ["cup"], "images_kwargs": {"crops": True}}, "images_kwargs is {'crops': True}"),
        (
            photo(),
            {"candidate_labels": ["cup"], "images_kwargs": {"return_tensors": "np"}},
            "accepted is a dict of .* size",
        ),
        (
            photo(),
            {"candidate_labels": ["cup", "dog", "cup"]},
            r"candidate_labels\[2\] is 'cup', as is candidate_labels\[0\]",
        ),
        (None, {"candidate_labels": ["cup"]}, "images is None; pass an image"),
        (photo(), {"candidate_labels": ["cup"], "pooling": "cls", "mask_input": False}, "mask_input=False"),
        (
            {"image": photo(), "mask": 1},
            {"candidate_labels": ["cup"]},
            r"the input is a dict with the keys \['image', 'mask'\]",
        ),
        ([photo(), {"masks": 1}], {"candidate_labels": ["cup"]}, r"input 1 is a dict with the keys \['masks'\]"),
        ({"image": photo()}, {"candidate_labels": ["cup"], "boxes": BOXES}, "boxes are given beside a dict"),
        ([{"image": photo()}], {"candidate_labels": ["cup"], "boxes": [BOXES]}, "input 0 is one"),
    ],
)
def test_bad_options_say_what_is_accepted(pipes, inputs, options, message):
    with pytest.raises(ValueError, match=message):
        pipes[CLASSIFY](inputs, **options)


def test_an_unknown_keyword_is_refused(pipes, pixclip):
    with pytest.raises(
        TypeError, match="unknown keyword candidate_label; accepted are masks, boxes, candidate_labels"
    ):
        pipes[CLASSIFY](photo(), candidate_label=LABELS)
    with pytest.raises(TypeError, match="unknown keyword hypothesis_template"):
        pipeline(EMBED, model=pixclip[0], processor=pixclip[1], device="cpu", hypothesis_template="{}")


def test_labels_are_the_second_argument_as_in_the_stock_pipeline(pipes):
    wanted = pipes[CLASSIFY](photo(), boxes=BOXES, candidate_labels=LABELS)
    assert pipes[CLASSIFY](photo(), LABELS, boxes=BOXES) == wanted
    for given in ((pipes[CLASSIFY], photo(), LABELS, masks_of()), (pipes[EMBED], photo(), masks_of())):
        with pytest.raises(TypeError, match="positional argument"):
            given[0](*given[1:])


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_in_a_worker_process_is_the_processors(pipes, stream):
    inputs = [photo(), {"image": photo(), "boxes": [[9, 9, 1, 1]]}]
    messages = []
    for workers in (0, 1):
        with pytest.raises(ValueError) as found:
            list(pipes[EMBED]((item for item in inputs) if stream else inputs, num_workers=workers))
        messages.append(str(found.value))
    assert messages[0] == messages[1] and messages[0].startswith("boxes[1][0]")


def test_a_tower_alone_is_refused(pixclip):
    model, processor = pixclip
    for task in (CLASSIFY, EMBED):
        for tower in (model.vision_model, model.text_model):
            with pytest.raises(ValueError, match=f"the model is a {type(tower).__name__}; .* a whole PixCLIP model"):
                pipeline(task, model=tower, processor=processor, device="cpu")
        with pytest.raises(ValueError, match="pass processor=, a PixCLIPProcessor, or image_processor="):
            pipeline(task, model=model, device="cpu")


def test_a_half_precision_model_answers_in_float32(pixclip):
    model = build_model().to(torch.bfloat16)
    embed = pipeline(EMBED, model=model, processor=pixclip[1], device="cpu")
    wanted = pipeline(EMBED, model=build_model(), processor=pixclip[1], device="cpu")
    for pooling in ("cls", "mask", "roi"):
        found = embed(photo(), masks=masks_of(), return_tensors=True, pooling=pooling)
        assert found.dtype == torch.float32
        full = wanted(photo(), masks=masks_of(), return_tensors=True, pooling=pooling)
        assert (found * full).sum(-1).min() > 0.99


def test_samples_of_a_region_reader_are_inputs(pixclip, pipes):
    dataset = RegionJsonlDataset("examples/data/coco_regions/train.jsonl")
    sample = dataset[0]
    answers = pipes[CLASSIFY](sample, candidate_labels=LABELS)
    assert len(answers) == len(sample["masks"])
    assert answers == pipes[CLASSIFY](sample["image"], masks=sample["masks"], candidate_labels=LABELS)


# Saved folders.


def save_by_model(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_by_pipeline(model, processor, folder):
    pipeline(EMBED, model=model, processor=processor, device="cpu").save_pretrained(folder)


def save_by_trainer(model, processor, folder):
    collator = PixCLIPDataCollator(processor, max_regions_per_image=2)
    arguments = TrainingArguments(str(folder), report_to="none", use_cpu=True, remove_unused_columns=False)
    Trainer(model, arguments, data_collator=collator, processing_class=processor).save_model(str(folder))


@pytest.mark.parametrize("save", [save_by_model, save_by_pipeline, save_by_trainer])
@pytest.mark.parametrize("model_class", [PixCLIPModel, PixCLIPForPreTraining])
def test_every_saved_folder_carries_the_pipelines(tmp_path, pixclip, save, model_class):
    model, processor = build_model(model_class), pixclip[1]
    save(model, processor, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    classes = {
        CLASSIFY: "pipeline_pixclip.ZeroShotRegionClassificationPipeline",
        EMBED: "pipeline_pixclip.RegionFeatureExtractionPipeline",
    }
    assert {task: entry["impl"] for task, entry in config["custom_pipelines"].items()} == classes
    own = Path(sys.modules[ZeroShotRegionClassificationPipeline.__module__].__file__)
    assert (tmp_path / "pipeline_pixclip.py").read_text() == own.read_text()
    # The object in memory is as it was.
    assert not hasattr(model.config, "custom_pipelines")
    wanted = pipeline(EMBED, model=model, processor=processor, device="cpu")(photo(), boxes=BOXES)
    for trust in (False, True, None):
        pipe = pipeline(EMBED, model=str(tmp_path), trust_remote_code=trust, device="cpu")
        assert type(pipe) is RegionFeatureExtractionPipeline
        assert pipe.processor.text_template == TEMPLATE
        assert pipe(photo(), boxes=BOXES) == wanted
    assert type(pipeline(CLASSIFY, model=str(tmp_path))) is ZeroShotRegionClassificationPipeline


def save_without_tokenizer(model, processor, folder):
    pipeline(EMBED, model=model, image_processor=processor.image_processor, device="cpu").save_pretrained(folder)
    assert not list(folder.glob("*token*"))


def test_a_folder_without_a_tokenizer_embeds_and_does_not_classify(tmp_path, pixclip, pipes):
    model, processor = pixclip
    save_without_tokenizer(model, processor, tmp_path)
    wanted = pipes[EMBED](photo(), boxes=BOXES)
    alone = processor.image_processor
    for options in ({}, {"processor": alone}, {"image_processor": alone}, {"processor": processor}):
        embed = pipeline(EMBED, model=str(tmp_path), device="cpu", **options)
        assert embed(photo(), boxes=BOXES) == wanted
    with pytest.raises(
        ValueError, match="there is no tokenizer beside the model .*Pass processor=, a PixCLIPProcessor"
    ):
        pipeline(CLASSIFY, model=str(tmp_path), device="cpu")
    classify = pipeline(CLASSIFY, model=str(tmp_path), processor=processor, device="cpu")
    assert flat(classify(photo(), LABELS)) == pytest.approx(flat(pipes[CLASSIFY](photo(), LABELS)), abs=1e-6)


def test_pipelines_of_the_users_own_stay(tmp_path):
    own = {"my-task": {"impl": "my_pipeline.MyPipeline", "pt": ["AutoModel"]}}
    model = build_model(PixCLIPModel)
    model.config.custom_pipelines = own
    for folder in (tmp_path / "first", tmp_path / "second"):
        model.save_pretrained(folder)
        assert model.config.custom_pipelines == own
        saved = json.loads((folder / "config.json").read_text())["custom_pipelines"]
        assert saved.keys() == {CLASSIFY, EMBED, "my-task"} and saved["my-task"] == own["my-task"]
        model = PixCLIPModel.from_pretrained(folder)


def test_a_push_does_not_tell_the_folder_of_the_text_backbone(tmp_path, pixclip):
    backbone = tmp_path / "secret-folder" / "llm"
    LlamaModel(pixclip_config().text_config.backbone_config).save_pretrained(backbone)
    model = PixCLIPModel.from_vision_text_pretrained(pixclip_config().vision_config, str(backbone))
    save_by_model(model, pixclip[1], tmp_path / "whole")
    model.save_pretrained(tmp_path / "reference", include_text_backbone=False)
    pixclip[1].save_pretrained(tmp_path / "reference")
    with running_hub(tmp_path / "hub") as hub, client_of(hub, tmp_path / "client") as client:
        client.call("push_pipeline", folder=str(tmp_path / "whole"), repository="org/pushed", task=EMBED)
        assert {"model.safetensors", "tokenizer.json", "pipeline_pixclip.py"} <= set(hub.files("org/pushed"))
        for name in hub.files("org/pushed"):
            if name.endswith((".json", ".md")):
                assert "secret-folder" not in hub.ask("GET", f"/org/pushed/resolve/main/{name}").text, name
        with pytest.raises(ClientError, match="left out of a checkpoint on the Hub"):
            client.call("push_pipeline", folder=str(tmp_path / "reference"), repository="org/not", task=EMBED)


def test_the_stock_pipeline_batches_images(tmp_path, pixclip):
    save_by_pipeline(*pixclip, tmp_path)
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path), device="cpu")
    images = [photo(seed) for seed in range(3)]
    single = [classify(image, candidate_labels=LABELS) for image in images]
    assert flat(classify(images, candidate_labels=LABELS, batch_size=1)) == pytest.approx(flat(single), abs=1e-6)
    # Without a template in the processor, both pipelines say the same of a whole image.
    own = pipeline(CLASSIFY, model=pixclip[0], processor=build_processor("{text}"), device="cpu")
    assert flat(own(images, candidate_labels=LABELS)) == pytest.approx(flat(single), abs=1e-5)


def test_without_the_package_a_fresh_process_gives_the_same_answers(tmp_path, pixclip):
    model, processor = pixclip
    save_by_model(model, processor, tmp_path / "model")
    save_by_pipeline(model, processor, tmp_path / "pipeline")
    home = tmp_path / "home"
    save_without_tokenizer(model, processor, tmp_path / "no tokenizer")
    model.vision_model.save_pretrained(tmp_path / "vision")
    model.text_model.save_pretrained(tmp_path / "text")
    repository = home / "hub" / "models--somebody--pixclip-tiny"
    shutil.copytree(tmp_path / "model", repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    photo().save(tmp_path / "photo.png")
    inputs = [{"image": str(tmp_path / "photo.png"), "boxes": BOXES}, str(tmp_path / "photo.png")]
    stock = "zero-shot-image-classification"
    cases = {
        CLASSIFY: (inputs, {"candidate_labels": LABELS, "batch_size": 2}),
        EMBED: (inputs, {"batch_size": 2, "pooling": "roi"}),
        stock: ([inputs[1]] * 2, {"candidate_labels": LABELS}),
    }
    answers = {}
    for task, (given, options) in cases.items():
        answers[task] = given, options, pipeline(task, model=str(tmp_path / "model"), device="cpu")(given, **options)
    request = {
        "sources": [str(tmp_path / "model"), str(tmp_path / "pipeline"), "somebody/pixclip-tiny"],
        "answers": answers,
        "saved": str(tmp_path / "saved again"),
        "without_tokenizer": str(tmp_path / "no tokenizer"),
        "towers": {
            str(tmp_path / "vision"): "PixCLIPVisionModel",
            str(tmp_path / "text"): "PixCLIPTextModel",
        },
    }
    (tmp_path / "request.json").write_text(json.dumps(request))
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    environment |= {
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    process = subprocess.run(
        [
            sys.executable,
            "-I",
            str(Path(__file__).with_name("run_pipelines_by_remote_code.py")),
            str(tmp_path / "request.json"),
        ],
        env=environment,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "checked 3"
    saved = tmp_path / "saved again" / EMBED / "somebody_pixclip-tiny"
    assert "--" not in (saved / "config.json").read_text()
    assert pipeline(EMBED, model=str(saved), device="cpu")(inputs, pooling="roi", batch_size=2) == answers[EMBED][2]
