# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The three-branch objective against plain loops, and under the plain Trainer."""

import numpy as np
import pytest
import torch
from naive_losses import cosine, info_nce
from PIL import Image
from tiny_models import (
    EVA02,
    assert_same_weights,
    backbone_config,
    box_masks,
    normalised,
    pixclip_config,
    random_boxes,
    random_images,
    random_tokens,
    randomise,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainerCallback, TrainingArguments, set_seed

from modeling_pixclip import LossTermsCallback, PixCLIPForPreTraining, PixCLIPModel, contrastive_loss
from processing_pixclip import EvaluationRegions, PixCLIPDataCollator, PixCLIPImageProcessor, PixCLIPProcessor


OWNERS = [1, 0, 1, 1]
# Regions 0 and 3 share their text, regions 1, 2 and 3 their object text.
REGION_TEXTS, OBJECT_TEXTS = [0, 2, 3, 0], [1, 4, 4, 4]


def tiny_model(vision=EVA02, text=None, **fields):
    return randomise(PixCLIPForPreTraining(pixclip_config(vision=vision, text=text, **fields)))


def region_batch(*left_out):
    """2 images of 32 x 48, 4 regions with crops of another size, 5 texts."""
    boxes = random_boxes(4)
    ids, mask = random_tokens([8, 5, 6, 3, 7])
    batch = {
        "pixel_values": random_images(2, 32, 48),
        "mask_values": normalised(box_masks(boxes, 32, 48)),
        "region_image_index": torch.tensor(OWNERS),
        "region_boxes": boxes,
        "crop_pixel_values": random_images(4, 24, 24, seed=1),
        "crop_mask_values": normalised(box_masks(random_boxes(4, seed=1), 24, 24)),
        "input_ids": ids,
        "attention_mask": mask,
        "region_text_index": torch.tensor(REGION_TEXTS),
        "object_text_index": torch.tensor(OBJECT_TEXTS),
    }
    return {name: value for name, value in batch.items() if name not in left_out}


@torch.no_grad()
def naive_features(model, batch):
    """Embeddings of regions, crops and texts, and pooled dense features, one pass each."""
    result = {"image": [], "crop": [], "mask": [], "roi": []}
    for row, owner in enumerate(OWNERS):
        image, mask = batch["pixel_values"][owner : owner + 1], batch["mask_values"][row : row + 1]
        result["image"].append(model.get_image_features(image, mask).pooler_output[0])
        crop = batch["crop_pixel_values"][row : row + 1], batch["crop_mask_values"][row : row + 1]
        result["crop"].append(model.get_image_features(*crop).pooler_output[0])
        for pooling in ("mask", "roi"):
            pooled = model.get_region_features(
                image, mask, region_boxes=batch["region_boxes"][row : row + 1], pooling=pooling
            )
            result[pooling].append(pooled.pooler_output[0])
    result["text"] = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    return result


def terms_of(model, batch):
    return {name: float(value) for name, value in model(**batch).loss_terms.items()}


@pytest.mark.parametrize("vision", [{}, EVA02], ids=["clip", "eva02"])
def test_branches_equal_their_definitions(vision):
    model, batch = tiny_model(vision), region_batch()
    features = naive_features(model, batch)
    expected = {
        "global": info_nce(features["image"], features["text"], REGION_TEXTS),
        "crop": info_nce(features["crop"], features["text"], OBJECT_TEXTS),
        "local": sum(1 - cosine(*pair) for pair in zip(features["mask"], features["crop"])) / 4,
    }
    outputs = model(**batch)
    assert {name: float(value) for name, value in outputs.loss_terms.items()} == pytest.approx(expected, abs=1e-4)
    assert float(outputs.loss.detach()) == pytest.approx(sum(expected.values()), abs=1e-4)
    assert not any(value.requires_grad for value in outputs.loss_terms.values())


@pytest.mark.parametrize("pooling", ["mask", "roi"])
@pytest.mark.parametrize("target", ["crop", "text"])
def test_variants_of_the_local_branch(pooling, target):
    model, batch = tiny_model(local_pooling=pooling, local_target=target), region_batch()
    features = naive_features(model, batch)
    if target == "crop":
        expected = sum(1 - cosine(*pair) for pair in zip(features[pooling], features["crop"])) / 4
    else:
        expected = info_nce(features[pooling], features["text"], REGION_TEXTS)
    assert terms_of(model, batch)["local"] == pytest.approx(expected, abs=1e-4)


def test_text_of_the_crop_branch():
    batch = region_batch()
    features = naive_features(tiny_model(), batch)
    of_region = info_nce(features["crop"], features["text"], REGION_TEXTS)
    of_object = info_nce(features["crop"], features["text"], OBJECT_TEXTS)
    assert abs(of_region - of_object) > 1e-2
    assert terms_of(tiny_model(crop_text="object"), batch)["crop"] == pytest.approx(of_object, abs=1e-4)
    assert terms_of(tiny_model(crop_text="region"), batch)["crop"] == pytest.approx(of_region, abs=1e-4)
    without = region_batch("object_text_index")
    assert terms_of(tiny_model(crop_text="object"), without)["crop"] == pytest.approx(of_region, abs=1e-4)


def test_weights_scale_their_branches():
    batch = region_batch()
    terms = terms_of(tiny_model(), batch)
    outputs = tiny_model(global_weight=0.5, crop_weight=2, local_weight=3.0)(**batch)
    expected = 0.5 * terms["global"] + 2 * terms["crop"] + 3 * terms["local"]
    assert float(outputs.loss.detach()) == pytest.approx(expected, rel=1e-5)
    # What is logged is the value before its weight.
    assert {name: float(value) for name, value in outputs.loss_terms.items()} == pytest.approx(terms, rel=1e-5)


PASSES = [
    # weights of global, crop, local; other fields; does the crop run, does it with gradients, is there a dense map
    ((1, 0, 0), {}, False, False, False),
    ((1, 1, 0), {}, True, True, False),
    ((0, 0, 1), {}, True, False, True),
    ((0, 0, 1), {"local_stop_gradient": False}, True, True, True),
    ((1, 0, 1), {"local_target": "text"}, False, False, True),
    ((1, 1, 1), {}, True, True, True),
]


@pytest.mark.parametrize("weights, fields, crop, crop_gradients, dense", PASSES)
def test_weight_of_zero_removes_a_branch_and_its_computation(weights, fields, crop, crop_gradients, dense):
    names = ("global", "crop", "local")
    model = tiny_model(**{f"{name}_weight": weight for name, weight in zip(names, weights)}, **fields)
    passes = []
    model.vision_model.register_forward_hook(
        lambda module, args, kwargs, outputs: passes.append((kwargs["pixel_values"].shape[-1], outputs)),
        with_kwargs=True,
    )
    outputs = model(**region_batch())
    assert outputs.loss_terms.keys() == {name for name, weight in zip(names, weights) if weight}
    assert [width for width, _ in passes] == [48] + [24] * crop
    assert (passes[0][1].dense_state is not None) == dense
    if crop:
        assert passes[1][1].dense_state is None
        assert passes[1][1].last_hidden_state.requires_grad == crop_gradients


def test_absent_inputs_skip_their_branches():
    model = tiny_model()
    full = terms_of(model, region_batch())
    for left_out, kept in (
        (["crop_pixel_values", "crop_mask_values"], ["global"]),
        (["object_text_index"], ["global", "crop", "local"]),
    ):
        terms = terms_of(model, region_batch(*left_out))
        assert sorted(terms) == sorted(kept)
        assert terms["global"] == pytest.approx(full["global"])
    # Without masks there is nothing to pool under; with boxes there is.
    assert sorted(terms_of(model, region_batch("mask_values"))) == ["crop", "global"]
    assert sorted(terms_of(tiny_model(local_pooling="roi"), region_batch("mask_values"))) == [
        "crop",
        "global",
        "local",
    ]
    assert sorted(terms_of(tiny_model(local_pooling="roi"), region_batch("region_boxes"))) == ["crop", "global"]
    with_text = tiny_model(local_target="text")
    assert sorted(terms_of(with_text, region_batch("crop_pixel_values"))) == ["global", "local"]
    crops_only = tiny_model(global_weight=0)
    with pytest.raises(ValueError, match="No term of the objective found its inputs.*batch_parts"):
        crops_only(**region_batch("crop_pixel_values", "crop_mask_values"))


def crop_gradient(model, batch):
    """Gradient of the loss by the crops' pixels, and by those of the images."""
    crops = batch["crop_pixel_values"].clone().requires_grad_()
    images = batch["pixel_values"].clone().requires_grad_()
    model(**{**batch, "crop_pixel_values": crops, "pixel_values": images}).loss.backward()
    return crops.grad, images.grad


def test_the_teacher_of_the_local_branch_gets_no_gradient():
    batch = region_batch()
    by_crops, by_images = crop_gradient(tiny_model(global_weight=0, crop_weight=0), batch)
    assert by_crops is None and by_images.abs().max() > 0
    # Beside the crop branch, all gradient of the crops is the crop branch's.
    both, _ = crop_gradient(tiny_model(global_weight=0), batch)
    alone, _ = crop_gradient(tiny_model(global_weight=0, local_weight=0), batch)
    torch.testing.assert_close(both, alone)


def test_the_teacher_of_the_local_branch_gets_gradient_on_request():
    batch = region_batch()
    fields = {"local_stop_gradient": False, "global_weight": 0}
    by_crops, by_images = crop_gradient(tiny_model(crop_weight=0, **fields), batch)
    assert by_crops.abs().max() > 0 and by_images.abs().max() > 0
    both, _ = crop_gradient(tiny_model(**fields), batch)
    alone, _ = crop_gradient(tiny_model(local_weight=0, **fields), batch)
    torch.testing.assert_close(both, alone + by_crops, atol=1e-6, rtol=1e-4)


def test_gradients_reach_every_trained_parameter():
    model = tiny_model()
    model(**region_batch()).loss.backward()
    for name, parameter in model.named_parameters():
        frozen = name.startswith("text_model.backbone.")
        assert (parameter.grad is None) if frozen else parameter.grad.abs().max() > 0, name


def test_rows_of_the_output_are_pairs():
    model, batch = tiny_model(), region_batch()
    with torch.no_grad():
        outputs = model(**batch)
        without_loss = model(**batch, return_loss=False)
    features = naive_features(model, batch)
    for row in range(4):
        image, text = features["image"][row], features["text"][REGION_TEXTS[row]]
        torch.testing.assert_close(outputs.image_embeds[row], image / image.norm(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(outputs.text_embeds[row], text / text.norm(), atol=1e-5, rtol=1e-4)
    # In a batch of many regions they would be the largest tensor, and nothing reads them beside the loss.
    assert outputs.logits_per_image is None and outputs.logits_per_text is None
    assert without_loss.logits_per_image.shape == (4, 5)
    assert without_loss.loss is None and without_loss.loss_terms is None
    torch.testing.assert_close(without_loss.image_embeds, outputs.image_embeds)


def test_without_loss_it_is_the_base_model():
    model = tiny_model()
    base = randomise(PixCLIPModel(model.config))
    one_image = {**region_batch("region_text_index"), "region_image_index": None, "mask_values": None}
    one_image["pixel_values"] = one_image["pixel_values"][:1]
    for batch, shape in ((region_batch(), (4, 5)), (region_batch("region_text_index"), (4, 5)), (one_image, (1, 5))):
        with torch.no_grad():
            outputs = model(**batch, return_loss=False)
            expected = base(**batch)
            as_tuple = model(**batch, return_loss=False, return_dict=False)
        assert outputs.loss is None and outputs.loss_terms is None and outputs.logits_per_image.shape == shape
        assert torch.equal(outputs.logits_per_image, expected.logits_per_image)
        assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], outputs.logits_per_image)


def test_objective_under_autocast_computes_its_logits_in_float32():
    model, batch = tiny_model(logit_scale_init_value=4.6), region_batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    pairs = outputs.image_embeds.float(), outputs.text_embeds.float()
    expected = contrastive_loss(*pairs, model.logit_scale.detach().exp(), batch["region_text_index"])
    assert float(outputs.loss_terms["global"]) == pytest.approx(float(expected), abs=1e-5)


def test_whole_images_pair_with_their_captions_one_to_one():
    model = tiny_model(crop_weight=0, local_weight=0)
    ids, mask = random_tokens([8, 5])
    batch = {"pixel_values": random_images(2), "input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        outputs = model(**batch)
        images = model.get_image_features(batch["pixel_values"]).pooler_output
        texts = model.get_text_features(ids, mask).pooler_output
    assert float(outputs.loss) == pytest.approx(info_nce(images, texts, [0, 1]), abs=1e-4)


def test_cached_text_vectors_give_the_same_loss():
    model, batch = tiny_model(), region_batch()
    with torch.no_grad():
        vectors = model.get_text_features(batch["input_ids"], batch["attention_mask"]).backbone_embeds
    cached = model(**region_batch("input_ids", "attention_mask"), backbone_embeds=vectors)
    torch.testing.assert_close(cached.loss, model(**batch).loss)


def test_wrong_batches_are_named():
    model, batch = tiny_model(), region_batch()
    with pytest.raises(ValueError, match="pixel_values are missing"):
        model(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="region_text_index has no entries for 4 regions and 5 texts"):
        model(**region_batch("region_text_index"))
    for other in (model, tiny_model(crop_weight=0)):
        one_crop = {name: batch[name][:1] for name in ("crop_pixel_values", "crop_mask_values")}
        with pytest.raises(ValueError, match="1 crops for 4 image rows"):
            other(**{**batch, **one_crop})
    with pytest.raises(ValueError, match="object_text_index has 3 entries for 4 regions"):
        model(**{**batch, "object_text_index": batch["object_text_index"][:3]})
    with pytest.raises(ValueError, match="3 region_boxes for 4 image rows"):
        tiny_model(local_pooling="roi")(**{**batch, "region_boxes": batch["region_boxes"][:3]})


COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230), "white": (240, 240, 240)}
WORDS = ["[pad]", "[unk]", "a", "on", "the", "left", "right", "photo", "with", "and", "square", *COLOURS]


@pytest.fixture(scope="module")
def processor():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[unk]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
    return PixCLIPProcessor(PixCLIPImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def toy_samples():
    """Two coloured squares an image."""
    samples = []
    for left in COLOURS:
        for right in COLOURS:
            pixels = np.zeros((32, 48, 3), dtype=np.uint8)
            masks = np.zeros((2, 32, 48), dtype=bool)
            for mask, colour, start in zip(masks, (left, right), (4, 28)):
                mask[8:24, start : start + 16] = True
                pixels[mask] = COLOURS[colour]
            samples.append(
                {
                    "image": Image.fromarray(pixels),
                    "image_id": f"{left}-{right}",
                    "captions": [f"a photo with a {left} square and a {right} square"],
                    "masks": list(masks),
                    "texts": [f"a {left} square on the left", f"a {right} square on the right"],
                    "object_texts": [f"a {left} square", None],
                    "categories": [None, None],
                }
            )
    return samples


class SeenLogs(TrainerCallback):
    """What a reporter such as TensorBoard would get."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


def toy_model():
    set_seed(3)
    text = {"backbone": backbone_config("llama", vocab_size=len(WORDS))}
    return PixCLIPForPreTraining(pixclip_config(text=text, vision={"mask_patch_bias": True}, local_weight=0.5))


def make_trainer(processor, folder, model=None, share=0.0, compute_metrics=None, reporter=None, **arguments):
    arguments = {
        "max_steps": 4,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 1,
        **arguments,
    }
    trainer = Trainer(
        model or toy_model(),
        TrainingArguments(
            str(folder),
            remove_unused_columns=False,
            label_names=[],
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **arguments,
        ),
        data_collator=PixCLIPDataCollator(processor, whole_image_share=share),
        train_dataset=toy_samples(),
        eval_dataset=toy_samples()[:8],
        compute_metrics=compute_metrics,
        callbacks=[reporter] if reporter else None,
    )
    trainer.callback_handler.callbacks.insert(0, LossTermsCallback())
    return trainer


def test_trainer_lowers_the_loss_and_logs_every_branch(processor, tmp_path):
    reporter = SeenLogs()
    trainer = make_trainer(processor, tmp_path, reporter=reporter, max_steps=24, logging_steps=3)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    for logs in (trainer.state.log_history, reporter.logs):
        logs = [entry for entry in logs if "loss" in entry]
        assert len(logs) == 8
        for entry in logs:
            expected = entry["loss_global"] + entry["loss_crop"] + 0.5 * entry["loss_local"]
            assert entry["loss"] == pytest.approx(expected, abs=2e-3)
        for name in ("loss", "loss_global", "loss_crop", "loss_local"):
            assert logs[-1][name] < 0.8 * logs[0][name], name
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("text_model.backbone."), name


def test_terms_are_those_of_training_since_the_last_log(processor, tmp_path):
    """Neither evaluation nor an earlier call of train() counts."""
    trainer = make_trainer(processor, tmp_path, eval_strategy="steps", eval_steps=1, max_steps=3)
    seen = []
    trainer.model.register_forward_hook(
        lambda module, args, outputs: seen.append(outputs.loss_terms) if module.training else None
    )
    trainer.train()
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss_global" in entry]
    # The state starts anew with the second call.
    assert len(seen) == 6 and len(entries) == 3
    for terms, entry in zip(seen[3:], entries):
        assert {name: entry[f"loss_{name}"] for name in terms} == pytest.approx(
            {name: float(value) for name, value in terms.items()}, rel=1e-5
        )


def test_gradient_accumulation_means_the_mean(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path, max_steps=2, gradient_accumulation_steps=2)
    trainer.train()
    for entry in trainer.state.log_history[:2]:
        expected = entry["loss_global"] + entry["loss_crop"] + 0.5 * entry["loss_local"]
        assert entry["loss"] == pytest.approx(expected, abs=2e-3)


def test_evaluation_gives_pairs_of_embeddings(processor, tmp_path):
    received = []

    def compute_metrics(prediction):
        received.append(prediction.predictions)
        texts, images = prediction.predictions
        return {"cosine": float((texts * images).sum(-1).mean())}

    trainer = make_trainer(processor, tmp_path, share=1.0, compute_metrics=compute_metrics)
    # The last batch is not full: every region of it counts all the same, and none enters as a whole image.
    metrics = trainer.evaluate(EvaluationRegions(toy_samples()[:7]))
    texts, images = received[0]
    assert texts.shape == images.shape == (14, 16)
    cosines = []
    for samples in (toy_samples()[:4], toy_samples()[4:7]):
        with torch.no_grad():
            outputs = trainer.model(**PixCLIPDataCollator(processor, whole_image_share=0.0)(samples))
        cosines.append((outputs.text_embeds * outputs.image_embeds).sum(-1))
    assert metrics["eval_cosine"] == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-4)


def test_evaluation_loss_is_the_mean_over_batches(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path)
    losses = []
    for samples in (toy_samples()[:4], toy_samples()[4:8]):
        with torch.no_grad():
            losses.append(float(trainer.model(**PixCLIPDataCollator(processor, whole_image_share=0.0)(samples)).loss))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(sum(losses) / 2, abs=1e-4)


def test_resumed_run_ends_bit_identical(processor, tmp_path):
    whole = make_trainer(processor, tmp_path / "whole", max_steps=6)
    whole.train()
    # Three of the four steps of an epoch.
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    make_trainer(processor, tmp_path / "halves", **settings).train()
    set_seed(99)
    resumed = make_trainer(processor, tmp_path / "halves", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "halves" / "checkpoint-3"))
    assert_same_weights(resumed.model, whole.model)
    assert not any(parameter.requires_grad for parameter in resumed.model.text_model.backbone.parameters())
    last, expected = (
        [entry for entry in trainer.state.log_history if "loss" in entry][-1] for trainer in (resumed, whole)
    )
    assert last["loss"] == expected["loss"] and last["loss_local"] == expected["loss_local"]


def test_gradient_checkpointing_changes_nothing(processor, tmp_path):
    plain = make_trainer(processor, tmp_path / "plain", max_steps=2)
    saving = make_trainer(processor, tmp_path / "saving", max_steps=2, gradient_checkpointing=True)
    passes = {}
    for trainer in (plain, saving):
        calls = passes[trainer] = []
        layer = trainer.model.vision_model.encoder.layers[0]
        layer.layer_norm1.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        trainer.train()
    # One pass of images and crops a step, again in the backward pass.
    assert len(passes[plain]) == 2 and len(passes[saving]) == 4
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(saving.model.state_dict()[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_trained_checkpoint_of_the_trainer_loads(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path, max_steps=1, save_strategy="steps", save_steps=1)
    trainer.train()
    loaded = PixCLIPForPreTraining.from_pretrained(tmp_path / "checkpoint-1")
    assert_same_weights(loaded, trainer.model)
