# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Every term of every preset against plain loops, batches that lack something, and parts put together."""

import math

import pytest
import torch
from naive_losses import cosine, hard_negative, info_nce, sigmoid
from tiny_models import (
    EVA02,
    box_masks,
    normalised,
    pixclip_config,
    random_boxes,
    random_images,
    random_tokens,
    randomise,
)

from modeling_pixclip import PixCLIPForPreTraining, PretrainingEmbeddings, get_objective_preset


PRESETS = ["pixclip", "fg-clip-stage1", "fg-clip-stage2", "pixclip+fg", "alpha-clip", "clip"]
ALL_TERMS = {
    **get_objective_preset("pixclip+fg"),
    "hard_negative_features": "region",
    "text_intra_weight": 0.1,
    "ranking_margin_weight": 0.4,
}
OWNERS = [1, 0, 1, 2]
# Regions 0 and 3 share their text, regions 1 and 2 their object text.
REGION_TEXTS, OBJECT_TEXTS = [0, 2, 3, 0], [1, 4, 4, 0]
# Image 1 has no long caption; images 0 and 2 share the short one.
LONG, SHORT = [5, -1, 6], [7, 8, 7]
NEGATIVES = [[9, 10], [], [11], [10, 9, 11]]
PER_REGION = (
    "mask_values",
    "region_image_index",
    "region_boxes",
    "crop_pixel_values",
    "crop_mask_values",
    "region_text_index",
    "object_text_index",
)


def tiny_model(preset=None, vision=EVA02, **fields):
    fields = {**(get_objective_preset(preset) if preset else ALL_TERMS), **fields}
    return randomise(PixCLIPForPreTraining(pixclip_config(vision=vision, **fields)))


def full_batch():
    """3 images, 4 regions, 12 texts, 6 hard negatives."""
    boxes = random_boxes(4)
    ids, mask = random_tokens([8, 5, 6, 3, 7, 12, 10, 4, 6, 5, 3, 7])
    return {
        "pixel_values": random_images(3, 32, 48),
        "mask_values": normalised(box_masks(boxes, 32, 48)),
        "region_image_index": torch.tensor(OWNERS),
        "region_boxes": boxes,
        "crop_pixel_values": random_images(4, 24, 24, seed=1),
        "crop_mask_values": normalised(box_masks(random_boxes(4, seed=1), 24, 24)),
        "input_ids": ids,
        "attention_mask": mask,
        "region_text_index": torch.tensor(REGION_TEXTS),
        "object_text_index": torch.tensor(OBJECT_TEXTS),
        "long_caption_index": torch.tensor(LONG),
        "short_caption_index": torch.tensor(SHORT),
        "hard_negative_text_index": torch.tensor([row for rows in NEGATIVES for row in rows]),
        "hard_negative_region_index": torch.tensor([i for i, rows in enumerate(NEGATIVES) for _ in rows]),
    }


def without_regions(batch, keep=()):
    """The batch with only the regions `keep`, as a collator would have made it."""
    keep = torch.tensor(keep, dtype=torch.long)
    batch = {**batch, **{name: batch[name][keep] for name in PER_REGION}}
    owners = batch["hard_negative_region_index"]
    kept = torch.isin(owners, keep)
    batch["hard_negative_text_index"] = batch["hard_negative_text_index"][kept]
    batch["hard_negative_region_index"] = torch.searchsorted(keep, owners[kept])
    return batch


@torch.no_grad()
def naive_features(model, batch):
    """One pass each."""
    result = {"region": [], "crop": [], "local": [], "pooled": [], "whole": []}
    for row, owner in enumerate(batch["region_image_index"].tolist()):
        image, mask = batch["pixel_values"][owner : owner + 1], batch["mask_values"][row : row + 1]
        box = batch["region_boxes"][row : row + 1]
        crop = batch["crop_pixel_values"][row : row + 1], batch["crop_mask_values"][row : row + 1]
        result["region"].append(model.get_image_features(image, mask).pooler_output[0])
        result["crop"].append(model.get_image_features(*crop).pooler_output[0])
        result["local"].append(model.get_region_features(image, mask, pooling="mask").pooler_output[0])
        pooled = model.get_region_features(image, region_boxes=box, pooling="roi", mask_input=False)
        result["pooled"].append(pooled.pooler_output[0])
    result["whole"] = [model.get_image_features(image[None]).pooler_output[0] for image in batch["pixel_values"]]
    result["text"] = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    return result


def naive_terms(features, multi_positive=True):
    texts = features["text"]
    nce = {"multi_positive": multi_positive}
    long = [row for row in LONG if row >= 0]
    with_long = [image for image, row in zip(features["whole"], LONG) if row >= 0]
    gaps = [
        cosine(features["pooled"][i], texts[OBJECT_TEXTS[i]]) - cosine(features["pooled"][i], texts[row])
        for i, rows in enumerate(NEGATIVES)
        for row in rows
    ]
    return {
        "global": info_nce(features["region"], texts, REGION_TEXTS, **nce),
        "crop": info_nce(features["crop"], texts, OBJECT_TEXTS, **nce),
        "local": sum(1 - cosine(*pair) for pair in zip(features["local"], features["crop"])) / 4,
        "caption_long": info_nce(with_long, texts, long, **nce),
        "caption_short": info_nce(features["whole"], texts, SHORT, **nce),
        "region": info_nce(features["pooled"], texts, REGION_TEXTS, **nce),
        "hard_negative": hard_negative(features["pooled"], texts, OBJECT_TEXTS, NEGATIVES),
        # The margin is 0 in the first step.
        "ranking_margin": sum(max(0.0, -gap) for gap in gaps) / len(gaps),
    }


def values(terms):
    return {name: float(value) for name, value in terms.items()}


@pytest.mark.parametrize("multi_positive", [True, False])
@pytest.mark.parametrize("vision", [{}, EVA02], ids=["clip", "eva02"])
def test_every_term_equals_its_definition(vision, multi_positive):
    model, batch = tiny_model(vision=vision, multi_positive=multi_positive), full_batch()
    expected = naive_terms(naive_features(model, batch), multi_positive)
    outputs = model(**batch)
    found = values(outputs.loss_terms)
    assert found.pop("text_intra") > 0
    assert found == pytest.approx(expected, abs=2e-4)
    weights = model.config.term_weights
    total = sum(weights[name] * float(value) for name, value in outputs.loss_terms.items())
    assert float(outputs.loss.detach()) == pytest.approx(total, rel=1e-5)


def test_sigmoid_takes_the_place_of_infonce():
    model, batch = tiny_model(loss_type="sigmoid", logit_bias_init_value=-3.0), full_batch()
    features = naive_features(model, batch)
    found = values(model(**batch).loss_terms)
    for name, images, index in (
        ("global", features["region"], REGION_TEXTS),
        ("caption_short", features["whole"], SHORT),
        ("region", features["pooled"], REGION_TEXTS),
    ):
        assert found[name] == pytest.approx(sigmoid(images, features["text"], index, bias=-3.0), rel=1e-4), name
    model(**batch).loss.backward()
    assert model.logit_bias.grad.abs() > 0


def test_variants_of_the_fine_grained_terms():
    batch = full_batch()
    features = naive_features(tiny_model(), batch)
    found = values(tiny_model(hard_negative_features="global", hard_negative_text="region")(**batch).loss_terms)
    expected = hard_negative(features["region"], features["text"], REGION_TEXTS, NEGATIVES)
    assert found["hard_negative"] == pytest.approx(expected, abs=1e-4)
    pooled = [
        tiny_model().get_region_features(
            batch["pixel_values"][[owner]], batch["mask_values"][[row]], pooling="mask", mask_input=False
        )
        for row, owner in enumerate(OWNERS)
    ]
    pooled = [outputs.pooler_output[0].detach() for outputs in pooled]
    found = values(tiny_model(region_pooling="mask")(**batch).loss_terms)
    assert found["region"] == pytest.approx(info_nce(pooled, features["text"], REGION_TEXTS), abs=1e-4)


def test_the_margin_is_the_gap_of_the_step_before():
    model, batch = tiny_model(), full_batch()
    features = naive_features(model, batch)
    gaps = [
        cosine(features["pooled"][i], features["text"][OBJECT_TEXTS[i]])
        - cosine(features["pooled"][i], features["text"][row])
        for i, rows in enumerate(NEGATIVES)
        for row in rows
    ]
    with torch.no_grad():
        model(**batch)
    # Evaluation leaves no trace in training.
    assert float(model.ranking_margin) == 0
    model.train()(**batch)
    assert float(model.ranking_margin) == pytest.approx(sum(gaps) / len(gaps), abs=1e-4)
    second = values(model(**batch).loss_terms)["ranking_margin"]
    margin = sum(gaps) / len(gaps)
    assert second == pytest.approx(sum(max(0.0, margin - gap) for gap in gaps) / len(gaps), abs=1e-4)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_train_what_they_are_made_of(preset):
    model, batch = tiny_model(preset), full_batch()
    outputs = model(**batch)
    assert outputs.loss_terms.keys() == model.config.term_weights.keys()
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert name.startswith("text_model.backbone.") or parameter.grad.abs().max() > 0, name


def test_regions_terms_have_their_own_temperatures():
    model, batch = tiny_model("fg-clip-stage2"), full_batch()
    before = values(model(**batch).loss_terms)
    for parameter, changed in (
        ("logit_scale", {"caption_long", "caption_short"}),
        ("logit_scale_region", {"region"}),
        ("logit_scale_hard_negative", {"hard_negative"}),
    ):
        with torch.no_grad():
            model.get_parameter(parameter).add_(0.5)
        after = values(model(**batch).loss_terms)
        assert {name for name in after if after[name] != pytest.approx(before[name], abs=1e-6)} == changed
        before = after
    with torch.no_grad():
        model.logit_scale_region.fill_(20.0)
    at_the_bound = values(model(**batch).loss_terms)["region"]
    features = naive_features(model, batch)
    expected = info_nce(features["pooled"], features["text"], REGION_TEXTS, scale=100.0)
    assert at_the_bound == pytest.approx(expected, rel=1e-3)


def check_finite(model, batch):
    outputs = model(**batch)
    assert outputs.loss.isfinite() and all(value.isfinite() for value in outputs.loss_terms.values())
    model.zero_grad()
    outputs.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    return outputs


@pytest.mark.parametrize("fields", [{}, {"loss_type": "sigmoid"}, {"local_target": "text"}], ids=str)
@pytest.mark.parametrize("keep", [(), (1,), (0, 3)], ids=["none", "one", "two"])
def test_few_regions_give_a_finite_loss(keep, fields):
    model = tiny_model(**fields)
    outputs = check_finite(model, without_regions(full_batch(), keep))
    terms = {"caption_long", "caption_short"}
    if keep:
        terms |= {"global", "crop", "local", "region", "text_intra"}
    if 0 in keep:
        terms |= {"hard_negative", "ranking_margin"}
    assert outputs.loss_terms.keys() == terms
    assert outputs.image_embeds.shape == outputs.text_embeds.shape == (len(keep), 16)


def test_nothing_at_all_is_a_loss_of_zero_with_a_warning(caplog):
    model = tiny_model("pixclip")
    outputs = check_finite(model, without_regions(full_batch()))
    assert float(outputs.loss.detach()) == 0 and not outputs.loss_terms
    assert outputs.skipped["empty_batches"] == 1
    assert "empty_batches: 1 so far. A batch without pairs for any term" in caplog.text
    captionless = {**full_batch(), "short_caption_index": torch.full((3,), -1)}
    assert float(check_finite(tiny_model("clip"), captionless).loss.detach()) == 0


def spoil(batch, row, box=None, mask=None):
    batch = {**batch, "region_boxes": batch["region_boxes"].clone(), "mask_values": batch["mask_values"].clone()}
    if box is not None:
        batch["region_boxes"][row] = torch.tensor(box)
    if mask is not None:
        batch["mask_values"][row] = (mask - 0.5) / 0.26
    return batch


@pytest.mark.parametrize(
    "damage, reason, kept",
    [
        ({"box": [0.4, 0.2, 0.4, 0.8]}, "empty_boxes", {"region": False, "global": True}),
        ({"box": [0.5, 0.5, 0.5, 0.5]}, "empty_boxes", {"region": False, "global": True}),
        ({"box": [1.2, 0.1, 1.4, 0.3]}, "empty_boxes", {"region": False, "global": True}),
        ({"box": [0.8, 0.2, 0.3, 0.6]}, "empty_boxes", {"region": False, "global": True}),
        ({"mask": 0.0}, "empty_masks", {"region": True, "global": False}),
    ],
    ids=["no-width", "point", "outside", "reversed", "empty-mask"],
)
def test_spoilt_regions_are_left_out_counted_and_named(damage, reason, kept, caplog):
    model, batch = tiny_model(), full_batch()
    outputs = check_finite(model, spoil(batch, 2, **damage))
    assert outputs.skipped == {"empty_masks": 0, "empty_boxes": 0, "empty_batches": 0} | {reason: 1}
    assert f"{reason}: 1 so far. Regions" in caplog.text
    whole, less = values(model(**batch).loss_terms), values(model(**without_regions(batch, (0, 1, 3))).loss_terms)
    found = values(outputs.loss_terms)
    for name, stays in kept.items():
        assert found[name] == pytest.approx(whole[name] if stays else less[name], abs=1e-5), name
    # Its negatives went with it, where the region they belong to did.
    if not kept["region"]:
        assert found["hard_negative"] == pytest.approx(less["hard_negative"], abs=1e-5)


def test_a_mask_smaller_than_a_patch_counts():
    batch = full_batch()
    batch["mask_values"][1] = -0.5 / 0.26
    batch["mask_values"][1, 0, 13, 21] = 0.5 / 0.26
    outputs = check_finite(tiny_model(), batch)
    assert outputs.skipped["empty_masks"] == 0 and outputs.image_embeds.shape == (4, 16)


def test_every_region_spoilt(caplog):
    batch = full_batch()
    for row in range(4):
        batch = spoil(batch, row, box=[0.4, 0.2, 0.4, 0.8], mask=0.0)
    outputs = check_finite(tiny_model(), batch)
    assert outputs.loss_terms.keys() == {"caption_long", "caption_short", "text_intra"}
    assert outputs.skipped == {"empty_masks": 4, "empty_boxes": 4, "empty_batches": 0}


def test_warnings_of_spoilt_regions_do_not_fill_the_log(caplog):
    model, batch = tiny_model(), spoil(full_batch(), 2, mask=0.0)
    with torch.no_grad():
        for _ in range(25):
            model(**batch)
    counts = [int(line.split()[1]) for line in caplog.messages if "left out of the loss" in line]
    assert counts == [1, 10]


def test_all_views_of_one_size_are_one_pass():
    model, batch = tiny_model(), full_batch()
    batch["crop_pixel_values"] = random_images(4, 32, 48, seed=1)
    batch["crop_mask_values"] = normalised(box_masks(random_boxes(4, seed=1), 32, 48))
    rows, texts = [], []
    model.vision_model.register_forward_hook(lambda module, args, outputs: rows.append(len(outputs.pooler_output)))
    model.text_model.register_forward_hook(lambda module, args, outputs: texts.append(len(outputs.pooler_output)))
    model(**batch)
    # 4 regions, 3 whole images, 4 crops; 12 texts, whatever the number of regions and terms that they belong to.
    assert rows == [11] and texts == [12]
    rows.clear()
    model(**full_batch())
    assert rows == [7, 4]


def split_batch():
    """The full batch as two: images 0 and 1 with regions 0, 1, 2, and image 2 with region 3."""
    batch = full_batch()
    first, second = without_regions(batch, (0, 1, 2)), without_regions(batch, (3,))
    second["region_image_index"] = second["region_image_index"] - 2
    for part, images in ((first, slice(0, 2)), (second, slice(2, 3))):
        for name in ("pixel_values", "long_caption_index", "short_caption_index"):
            part[name] = part[name][images]
        part["text_ids"] = torch.arange(12)
    return first, second, batch


@pytest.mark.parametrize("fields", [{}, {"loss_type": "sigmoid"}], ids=["infonce", "sigmoid"])
def test_joined_parts_have_the_loss_of_the_whole(fields):
    model = tiny_model(**fields)
    first, second, batch = split_batch()
    loss, terms = model.objective(model(**batch, return_embeddings=True))
    parts = [model(**part, return_embeddings=True) for part in (first, second)]
    joined, joined_terms = model.objective(PretrainingEmbeddings.join(parts))
    # Texts stand in both parts: equal ids make them one.
    assert values(joined_terms) == pytest.approx(values(terms), abs=1e-5)
    ours, theirs = (torch.autograd.grad(value, list(model.visual_projection.parameters())) for value in (joined, loss))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_parts_of_other_views_do_not_join():
    model = tiny_model()
    first, second, _ = split_batch()
    del second["long_caption_index"]
    parts = [model(**part, return_embeddings=True) for part in (first, second)]
    with pytest.raises(ValueError, match="long_caption_index"):
        PretrainingEmbeddings.join(parts)


def test_loss_is_bounded_by_chance_at_first():
    """Embeddings that know nothing: InfoNCE is the logarithm of the number of pairs."""
    model, batch = tiny_model(logit_scale_init_value=-12.0), full_batch()
    terms = values(model(**batch).loss_terms)
    assert terms["caption_short"] == pytest.approx(math.log(3), abs=1e-3)
    assert terms["global"] == pytest.approx(math.log(4), abs=1e-3)


def test_the_objective_leaves_its_argument_as_it_is():
    """Without ids rows are told apart by their number, which is another one in a joined batch."""
    model = tiny_model()
    parts = [{**part, "text_ids": None} for part in split_batch()[:2]]
    embeddings = [model(**part, return_embeddings=True) for part in parts]
    fresh = PretrainingEmbeddings.join(embeddings)
    expected = float(model.objective(fresh)[0].detach())
    for part in embeddings:
        model.objective(part)
    assert float(model.objective(PretrainingEmbeddings.join(embeddings))[0].detach()) == pytest.approx(expected)


@pytest.mark.parametrize(
    "field, value, lacking",
    [
        ("region_weight", 0.1, "logit_scale_region"),
        ("hard_negative_weight", 0.5, "logit_scale_hard_negative"),
        ("ranking_margin_weight", 0.4, "ranking_margin"),
        ("loss_type", "sigmoid", "logit_bias"),
    ],
)
def test_terms_that_a_model_was_not_made_for_are_named(field, value, lacking):
    model = tiny_model("pixclip")
    setattr(model.config, field, value)
    with pytest.raises(ValueError, match=f"{field} was set to {value!r} after the model was made.*no {lacking}"):
        model(**full_batch())
