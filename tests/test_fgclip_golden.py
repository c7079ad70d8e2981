# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Our numbers are those of the official FG-CLIP code (github.com/360CVGroup/FG-CLIP, branch v1.0).

`fixtures/fgclip_tiny` holds a tiny checkpoint with random weights in the official layout, inputs, and what the official
forward made of them in float32 on a CPU (`expected.*`). To keep it small, of the 49,408 rows of the token embedding only
those of the 925 ids that occur in the inputs are kept, in ascending order, and an id is replaced by the place of its row;
`token_ids` has the original ids. No result depends on any other row, and the order of ids stays: end of text, 49407, is
924, the highest one still. Every other tensor is the original one, bit for bit.

Two things about the official losses. The region terms were computed in float32, where the official code casts the pooled
vectors to bfloat16. And its captions' loss is the sum of the long and the short ones', of which no single value is there.
"""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from modeling_pixclip import (
    PixCLIPForPreTraining,
    PixCLIPModel,
    convert_checkpoint,
    get_objective_preset,
    stretch_positions,
)


FOLDER = Path(__file__).parent / "fixtures" / "fgclip_tiny"
EOS = 924
SHORT, LONG = 77, 248
POSITIONS = "text_model.embeddings.position_embedding"


def converted_model():
    """What the converter makes of the official checkpoint; its heads are not 64 wide, as those of released sizes."""
    heads = {"vision_heads": 2, "text_heads": 2}
    return convert_checkpoint("fg-clip", [FOLDER / "checkpoint.safetensors"], heads).model


def official_model(model_class=PixCLIPModel, **fields):
    """
    A model with the weights of the official checkpoint, and what of that has no place in it.

    Args:
        model_class: `PixCLIPModel`, or with an objective among `fields` `PixCLIPForPreTraining`.
    """
    converted = converted_model()
    config = copy.deepcopy(converted.config)
    for name, value in fields.items():
        setattr(config, name, value)
    model = model_class(config).eval()
    missing, unexpected = model.load_state_dict(converted.state_dict(), strict=False)
    assert missing == []
    # FG-CLIP takes no masks; zeros change nothing.
    assert not model.vision_model.embeddings.mask_patch_embedding.weight.any()
    return model, unexpected


@pytest.fixture(scope="module")
def golden():
    return load_file(FOLDER / "expected.safetensors")


@pytest.fixture(scope="module")
def model():
    model, without_place = official_model()
    assert without_place == ["logit_scale_region", "logit_scale_hard_negative"]
    return model


def real_rows(golden, kind):
    """Rows of the zero-padded four an image that hold something, and the image of each."""
    nums = golden[f"input.{kind}_nums"].tolist()
    index = torch.tensor([image for image, num in enumerate(nums) for _ in range(num)])
    return torch.tensor([4 * image + row for image, num in enumerate(nums) for row in range(num)]), index


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_cut_kept_what_the_pooling_and_the_tables_look_at(golden):
    ids, official = golden["token_ids"], load_file(FOLDER / "checkpoint.safetensors")
    assert bool((ids.diff() > 0).all()) and ids[-2:].tolist() == [49406, 49407]
    assert len(ids) == EOS + 1 == len(official["text_model.embeddings.token_embedding.weight"])
    for name in ("text_short", "text_long", "box_texts", "hard_texts"):
        tokens = golden[f"input.{name}"]
        assert bool((tokens[:, 0] == EOS - 1).all()) and bool((tokens == EOS).any(-1).all())
    # Both official tables are random, so taking the wrong rows of one would show.
    ori, res = (official[f"{POSITIONS}_{kind}.weight"] for kind in ("ori", "res"))
    assert not torch.equal(ori, res) and not torch.equal(ori, stretch_positions(official[f"{POSITIONS}.weight"]))


def test_image_features(model, golden):
    with torch.no_grad():
        assert_close(model.get_image_features(golden["input.image"]).pooler_output, golden["expected.image_features"])


def test_dense_features(model, golden):
    with torch.no_grad():
        dense = model.get_dense_features(golden["input.image"]).last_hidden_state
    assert_close(dense, golden["expected.dense_features"])


def test_region_features(model, golden):
    rows, index = real_rows(golden, "box")
    with torch.no_grad():
        regions = model.get_region_features(
            golden["input.image"], region_boxes=golden["input.box_infos"][rows], region_image_index=index
        )
    assert len(index) == 6
    assert_close(regions.pooler_output, golden["expected.region_features"])


def test_short_texts(model, golden):
    with torch.no_grad():
        embeds = model.get_text_features(golden["input.text_short"]).pooler_output
    assert_close(embeds, golden["expected.text_features_short"])


def test_long_texts(model, golden):
    mask = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        embeds = model.get_text_features(golden["input.text_long"], long_text_mask=mask).pooler_output
    assert_close(embeds, golden["expected.text_features_long"])


def test_the_paths_differ(model, golden):
    """So that agreement of one with the golden says something about it."""
    mask = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        embeds = model.get_text_features(golden["input.text_short"], long_text_mask=mask).pooler_output
    assert float((embeds - golden["expected.text_features_short"]).abs().max()) > 0.1


def test_long_and_short_texts_in_one_batch_without_their_padding(model, golden):
    """As a collator makes it: padded to the longest text, with an attention mask, paths mixed."""
    texts = [*golden["input.text_short"], *golden["input.text_long"]]
    expected = torch.cat([golden["expected.text_features_short"], golden["expected.text_features_long"]])
    order = [3, 0, 4, 1, 2, 5]
    lengths = [int((text == EOS).int().argmax()) + 1 for text in texts]
    width = max(lengths)
    assert width > SHORT
    ids = torch.full((6, width), EOS)
    attended = torch.zeros(6, width, dtype=torch.long)
    for row, place in enumerate(order):
        ids[row, : lengths[place]] = texts[place][: lengths[place]]
        attended[row, : lengths[place]] = 1
    mask = torch.tensor([place >= 3 for place in order])
    with torch.no_grad():
        embeds = model.get_text_features(ids, attended, long_text_mask=mask).pooler_output
    assert_close(embeds, expected[order])


def test_a_saved_model_gives_the_same(model, golden, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, info = PixCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    mask = torch.ones(3, dtype=torch.bool)
    with torch.no_grad():
        long = loaded.get_text_features(golden["input.text_long"], long_text_mask=mask).pooler_output
        short = loaded.get_text_features(golden["input.text_short"]).pooler_output
        image = loaded.get_image_features(golden["input.image"]).pooler_output
    assert_close(long, golden["expected.text_features_long"])
    assert_close(short, golden["expected.text_features_short"])
    assert_close(image, golden["expected.image_features"])


def normalize(embeds):
    return torch.nn.functional.normalize(embeds, dim=-1)


def cross_entropies(image_embeds, text_embeds, scale):
    """Both directions of the contrast between rows that belong together."""
    logits = scale * normalize(image_embeds) @ normalize(text_embeds).T
    targets = torch.arange(len(logits))
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2


def plain_losses(model, golden):
    """The official objective term by term, from the features that the tests above compare."""
    scales = [
        getattr(model, name).exp() for name in ("logit_scale", "logit_scale_region", "logit_scale_hard_negative")
    ]
    rows, index = real_rows(golden, "box")
    hard_rows, hard_index = real_rows(golden, "hard")
    pixels = golden["input.image"]

    def regions(boxes, index):
        return model.get_region_features(pixels, region_boxes=boxes, region_image_index=index).pooler_output

    image_embeds = model.get_image_features(pixels).pooler_output
    long = model.get_text_features(golden["input.text_long"], long_text_mask=torch.ones(3, dtype=torch.bool))
    hard = normalize(model.get_text_features(golden["input.hard_texts"]).pooler_output).unflatten(0, (3, 11))
    hard_regions = normalize(regions(golden["input.hard_infos"][hard_rows], hard_index))
    choices = scales[2] * torch.einsum("rd,rkd->rk", hard_regions, hard)
    return {
        "caption_long": cross_entropies(image_embeds, long.pooler_output, scales[0]),
        "caption_short": cross_entropies(
            image_embeds, model.get_text_features(golden["input.text_short"]).pooler_output, scales[0]
        ),
        "region": cross_entropies(
            regions(golden["input.box_infos"][rows], index),
            model.get_text_features(golden["input.box_texts"][rows]).pooler_output,
            scales[1],
        ),
        "hard_negative": cross_entropy(choices, torch.zeros(3, dtype=torch.long)),
    }


def training_batch(golden):
    """The inputs as `PixCLIPDataCollator` makes them: no padded regions, texts in rows, padded to the longest."""
    rows, index = real_rows(golden, "box")
    hard_rows, _ = real_rows(golden, "hard")
    boxes = golden["input.box_infos"][rows]
    # The flagged regions are some of the regions.
    flagged = [int((rows == row).nonzero()) for row in hard_rows]
    assert torch.equal(golden["input.hard_infos"][hard_rows], boxes[flagged])
    texts = [*golden["input.text_short"], *golden["input.text_long"], *golden["input.box_texts"][rows]]
    regions, hard = torch.arange(6, 12), 12 + torch.arange(33).view(3, 11)
    texts += golden["input.hard_texts"]
    lengths = torch.tensor([int((text == EOS).int().argmax()) + 1 for text in texts])
    attended = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.full(attended.shape, EOS)
    for row, text in enumerate(texts):
        ids[row, : lengths[row]] = text[: lengths[row]]
    objects = regions.clone()
    objects[flagged] = hard[:, 0]
    return {
        "pixel_values": golden["input.image"],
        "region_boxes": boxes,
        "region_image_index": index,
        "input_ids": ids,
        "attention_mask": attended.long(),
        "text_ids": torch.arange(45),
        "long_text_mask": (torch.arange(45) >= 3) & (torch.arange(45) < 6),
        "short_caption_index": torch.arange(3),
        "long_caption_index": torch.arange(3, 6),
        "region_text_index": regions,
        "object_text_index": objects,
        "hard_negative_text_index": hard[:, 1:].flatten(),
        "hard_negative_region_index": torch.tensor(flagged).repeat_interleave(10),
    }


def training_model(**fields):
    if not fields:
        return converted_model()
    model, without_place = official_model(PixCLIPForPreTraining, **fields)
    assert without_place == []
    return model


@pytest.mark.parametrize(
    "fields", [{}, {"multi_positive": True}, {"gather": "local"}, {"gather": "ring"}], ids=lambda fields: str(fields)
)
def test_the_four_losses(golden, fields):
    with torch.no_grad():
        outputs = training_model(**fields)(**training_batch(golden))
    terms = outputs.loss_terms
    captions = terms["caption_long"] + terms["caption_short"]
    assert set(terms) == {"caption_long", "caption_short", "region", "hard_negative"}
    assert_close(captions, golden["expected.loss_global"])
    assert_close(captions + 0.1 * terms["region"], golden["expected.loss_global_region"])
    assert_close(captions + 0.5 * terms["hard_negative"], golden["expected.loss_global_hard"])
    assert_close(outputs.loss, golden["expected.loss_full"])
    assert not any(outputs.skipped.values())


def test_the_first_stage_has_the_captions_alone(golden):
    model, without_place = official_model(PixCLIPForPreTraining, **get_objective_preset("fg-clip-stage1"))
    assert without_place == ["logit_scale_region", "logit_scale_hard_negative"]
    with torch.no_grad():
        assert_close(model(**training_batch(golden)).loss, golden["expected.loss_global"])


def test_gradients_are_those_of_the_official_formulas(golden):
    """The official losses written down plainly, whose values are the golden's; its gradients are not there."""
    model = training_model()
    plain = plain_losses(model, golden)
    captions = plain["caption_long"] + plain["caption_short"]
    loss = captions + 0.1 * plain["region"] + 0.5 * plain["hard_negative"]
    assert_close(captions.detach(), golden["expected.loss_global"])
    assert_close(loss.detach(), golden["expected.loss_full"])
    names, parameters = zip(*model.named_parameters())
    expected = dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True)))
    outputs = model(**training_batch(golden))
    for name, term in outputs.loss_terms.items():
        assert_close(term, plain[name].detach())
    outputs.loss.backward()
    largest = max(float(gradient.norm()) for gradient in expected.values() if gradient is not None)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_patch_embedding.weight"):
            continue
        # Rounding: the softmax does not see the bias of a key.
        assert expected[name] is not None and parameter.grad is not None, name
        assert (
            float((parameter.grad - expected[name]).norm()) <= 1e-5 * float(expected[name].norm()) + 1e-6 * largest
        ), name
