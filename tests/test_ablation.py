# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Composed scenes with their texts, the metrics on them, and the comparison of objectives as a user runs it."""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_models import randomise


ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data" / "coco_regions"
sys.path.insert(0, str(ROOT / "examples"))
import run_ablation  # noqa: E402
from ablation_metrics import (  # noqa: E402
    batches_of,
    caption_recall,
    class_text,
    embed_regions,
    embed_texts,
    photo_metrics,
    scene_chances,
    scene_metrics,
    texts_of,
)
from ablation_report import COLUMNS, write_report  # noqa: E402
from composed_scenes import (  # noqa: E402
    COCO_CLASSES,
    ComposedScenes,
    Cutout,
    SceneParts,
    compose_scenes,
    load_scene_parts,
    read_photos,
)
from scene_texts import ATTRIBUTES, PLACES, SIZES, vocabulary  # noqa: E402

from processing_pixclip import PixCLIPDataCollator  # noqa: E402
from processing_pixclip.region_colours import COLOUR_NAMES, measure_colours  # noqa: E402
from processing_pixclip.region_nouns import noun_of  # noqa: E402


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 16,
}
TINY = [
    *("--image_size", "48", "--crop_size", "32", "--scene_size", "64", "--text_width", "32", "--text_layers", "1"),
    *("--scenes_per_step", "4", "--train_scenes", "8", "--steps", "2", "--test_scenes", "8", "--most_photos", "12"),
    *("--vision_config", json.dumps(SMALL)),
]


@pytest.fixture(scope="module")
def parts():
    return load_scene_parts(DATA, "train", side=96)


@pytest.fixture(scope="module")
def scenes(parts):
    return compose_scenes(parts, 150, seed=5)


def words_of(text, category):
    """The parts of a region text: size, colour, place, relation and neighbour's noun, `None` where not told."""
    noun = noun_of(category)
    before = f"{noun.before_of} " if noun.before_of else ""
    head = noun.singular.removeprefix(noun.before_of).lstrip()
    sizes, colours, places = ("|".join(names) for names in (SIZES, COLOUR_NAMES, PLACES))
    match = re.fullmatch(
        rf"an? {before}(?:(?P<size>{sizes}) )?(?:(?P<colour>{colours}) )?{re.escape(head)}"
        rf"(?: dressed in (?P<dress>{colours}))?(?: (?P<place>{places}))?"
        r"(?:, (?P<relation>left of|right of|above|below) the (?P<neighbour>.+))?",
        text,
    )
    assert match, (text, category)
    told = match.groupdict()
    dress = told.pop("dress")
    assert not (told["colour"] and dress)
    assert (category == "person") or dress is None
    told["colour"] = told["colour"] or dress
    return told


def centre_of(mask):
    ys, xs = np.nonzero(mask)
    return (xs.mean() + 0.5) / mask.shape[1], (ys.mean() + 0.5) / mask.shape[0]


def is_true(kind, told, pixels, mask, neighbour_mask):
    """Whether a part of a text holds, measured anew from the scene's pixels; only just is not enough."""
    x, y = centre_of(mask)
    if kind == "colour":
        shares = {colour.name: colour.share for colour in measure_colours(pixels, mask)}
        return shares.get(told["colour"], 0) >= 0.38 and shares[told["colour"]] == max(shares.values())
    if kind == "size":
        small, medium, large = 0.034, (0.043, 0.083), 0.104
        share = mask.mean()
        return {"small": share < small, "medium-sized": medium[0] < share < medium[1], "large": share > large}[
            told["size"]
        ]
    if kind == "place":
        row, column = PLACES[told["place"]]
        return (int(y * 3), int(x * 3)) == (row, column)
    its_x, its_y = centre_of(neighbour_mask)
    right, down = x - its_x, y - its_y
    along = {"left of": -right, "right of": right, "above": -down, "below": down}[told["relation"]]
    return along > 0.1 and along >= min(abs(right), abs(down))


def regions_of(scenes):
    for scene in scenes:
        pixels = np.asarray(scene["image"])
        for region, (text, category) in enumerate(zip(scene["texts"], scene["categories"])):
            yield scene, pixels, region, text, category


def neighbour_mask_of(scene, told):
    named = [i for i, category in enumerate(scene["categories"]) if noun_of(category).singular == told["neighbour"]]
    return scene["masks"][named[0]] if len(named) == 1 else None


def test_scenes_hang_on_seed_epoch_and_index_only(parts):
    one, other = ComposedScenes(parts, 8, seed=3), ComposedScenes(parts, 8, seed=3)
    _ = [one[index] for index in (5, 1)]
    torch.manual_seed(9)
    np.random.seed(9)
    for index in (1, 5):
        first, second = one[index], other[index]
        assert np.array_equal(first["image"], second["image"])
        assert all(np.array_equal(a, b) for a, b in zip(first["masks"], second["masks"], strict=True))
        for key in ("texts", "object_texts", "captions", "long_captions", "hard_negatives", "image_id"):
            assert first[key] == second[key], key
    other.set_epoch(1)
    assert not np.array_equal(one[1]["image"], other[1]["image"])
    assert not np.array_equal(one[1]["image"], one[2]["image"])
    assert not np.array_equal(one[1]["image"], ComposedScenes(parts, 8, seed=4)[1]["image"])
    with pytest.raises(IndexError, match="scene 8 of 8"):
        one[8]


def test_masks_are_the_pixels_painted():
    # Flat rectangles have no soft edge, so each of their pixels has the colour of the object that owns it.
    painted = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]
    classes = ("dog", "cat", "bus", "cup", "bed")
    cutouts = [
        Cutout(category, np.full((30, 44, 3), colour, np.uint8), np.full((30, 44), 255, np.uint8))
        for category, colour in zip(classes, painted)
    ]
    composed = ComposedScenes(SceneParts(cutouts, [np.zeros((96, 96, 3), np.uint8)]), 30, seed=0)
    overlaps = 0
    for index in range(30):
        pixels, masks, categories = composed._paint(np.random.default_rng(index))
        assert len(masks) == len(categories) > 1
        for category in set(categories):
            drawn = (pixels == painted[classes.index(category)]).all(-1)
            assert np.array_equal(drawn, np.any([m for m, name in zip(masks, categories) if name == category], axis=0))
        assert np.sum(masks, axis=0).max() == 1
        # A rectangle that is none any more was behind another.
        boxes = [np.argwhere(mask) for mask in masks]
        overlaps += sum(np.prod(np.ptp(box, axis=0) + 1) > len(box) for box in boxes)
    assert overlaps > 5


def test_mask_of_a_soft_edge_is_where_the_object_outweighs_the_background():
    disc = Image.new("L", (60, 60))
    ImageDraw.Draw(disc).ellipse((5, 5, 55, 50), fill=255)
    cutout = Cutout("dog", np.full((60, 60, 3), 255, np.uint8), np.asarray(disc.resize((41, 41), Image.BOX)))
    composed = ComposedScenes(SceneParts([cutout], [np.zeros((96, 96, 3), np.uint8)]), 1, seed=0, objects=(1, 1))
    for seed in range(10):
        pixels, (mask,), _ = composed._paint(np.random.default_rng(seed))
        assert np.array_equal(mask, pixels[..., 0] >= 128)
        assert ((pixels[..., 0] > 0) & (pixels[..., 0] < 255)).any()


def test_scenes_hold_several_objects_that_stay_visible(scenes):
    for scene in scenes:
        assert 2 <= len(scene["masks"]) <= 5
        assert np.sum(scene["masks"], axis=0).max() == 1
        assert min(mask.sum() for mask in scene["masks"]) > 0.005 * 96 * 96
        for key in ("texts", "object_texts", "categories", "hard_negatives", "hard_negative_attributes", "objects"):
            assert len(scene[key]) == len(scene["masks"]), key


def test_texts_are_true(scenes):
    told_of = dict.fromkeys(ATTRIBUTES, 0)
    for scene, pixels, region, text, category in regions_of(scenes):
        told = words_of(text, category)
        mask = scene["masks"][region]
        for kind in ATTRIBUTES:
            if told[kind] is None:
                continue
            neighbour = neighbour_mask_of(scene, told) if kind == "relation" else None
            # The neighbour itself may be one that no text tells from the others.
            if kind != "relation" or neighbour is not None:
                told_of[kind] += 1
                assert is_true(kind, told, pixels, mask, neighbour), (scene["image_id"], text, kind)
        bare = words_of(scene["object_texts"][region], category)
        assert bare == {"size": None, "place": None, "relation": None, "neighbour": None, "colour": bare["colour"]}
        assert bare["colour"] == told["colour"]
    assert min(told_of.values()) > 60, told_of


def test_each_text_tells_its_region_from_the_others(scenes):
    for scene in scenes:
        assert len(set(scene["texts"])) == len(scene["texts"])
        pixels = np.asarray(scene["image"])
        for i, text in enumerate(scene["texts"]):
            told = words_of(text, scene["categories"][i])
            neighbour = neighbour_mask_of(scene, told) if told["relation"] else None
            for j, mask in enumerate(scene["masks"]):
                if (
                    j == i
                    or scene["categories"][j] != scene["categories"][i]
                    or (told["relation"] and neighbour is None)
                ):
                    continue
                kinds = [kind for kind in ATTRIBUTES if told[kind] and not (kind == "relation" and neighbour is mask)]
                assert not all(is_true(kind, told, pixels, mask, neighbour) for kind in kinds), (text, j)


def test_captions_name_every_object(scenes):
    for scene in scenes:
        (caption,), (long_caption,) = scene["captions"], scene["long_captions"]
        for text, category in zip(scene["texts"], scene["categories"]):
            assert class_text(category) in caption
            assert text in long_caption


def test_hard_negatives_have_one_attribute_swapped_and_are_false(scenes):
    swapped = dict.fromkeys(ATTRIBUTES, 0)
    for scene, pixels, region, text, category in regions_of(scenes):
        told = words_of(text, category)
        negatives = scene["hard_negatives"][region]
        assert len(negatives) == len(set(negatives)) <= 10
        for negative, attribute in zip(negatives, scene["hard_negative_attributes"][region], strict=True):
            wrong = words_of(negative, category)
            assert [key for key in told if told[key] != wrong[key]] == [attribute], (text, negative)
            assert wrong[attribute] is not None
            neighbour = neighbour_mask_of(scene, wrong) if attribute == "relation" else None
            if attribute != "relation" or neighbour is not None:
                swapped[attribute] += 1
                assert not is_true(attribute, wrong, pixels, scene["masks"][region], neighbour), (text, negative)
    assert min(swapped.values()) > 60, swapped


def test_every_word_has_a_token(scenes):
    words = set(vocabulary(COCO_CLASSES))
    for text in texts_of(scenes, COCO_CLASSES):
        assert set(re.findall(r"[^\s,]+|,", text)) <= words, text


def test_train_and_test_objects_are_disjoint(parts):
    held_out = load_scene_parts(DATA, "heldout", side=96)
    assert len(parts.cutouts) > 150 and len(held_out.cutouts) > 150
    of_photos = [{photo["image_id"] for photo in read_photos(DATA, split)} for split in ("train", "heldout")]
    assert not of_photos[0] & of_photos[1]
    shown = [
        {hashlib.sha256(array.tobytes()).digest() for array in arrays}
        for arrays in (
            [cutout.pixels for cutout in parts.cutouts] + parts.backgrounds,
            [cutout.pixels for cutout in held_out.cutouts] + held_out.backgrounds,
        )
    ]
    assert not shown[0] & shown[1]
    assert {cutout.category for cutout in parts.cutouts} <= set(COCO_CLASSES) and len(set(COCO_CLASSES)) == 80


def test_both_layouts_give_the_same_objects(tmp_path):
    """COCO's own layout, made of two photos of the sample."""
    photos = [photo for photo in read_photos(DATA, "train", most=4) if photo["masks"]][:2]
    (tmp_path / "images" / "some").mkdir(parents=True)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(COCO_CLASSES)],
    }
    for number, photo in enumerate(photos):
        photo["image"].save(tmp_path / "images" / "some" / f"{number}.png")
        width, height = photo["image"].size
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        for mask, category in zip(photo["masks"], photo["categories"]):
            runs = np.diff(np.flatnonzero(np.diff(np.r_[-1, mask.T.ravel(), -1])), prepend=0).tolist()
            counts = runs[1:] if not mask.T.ravel()[0] else [0, *runs[1:]]
            content["annotations"].append(
                {
                    "image_id": number,
                    "category_id": COCO_CLASSES.index(category),
                    "segmentation": {"size": [height, width], "counts": counts},
                    "iscrowd": 0,
                }
            )
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_some.json").write_text(json.dumps(content))
    read = list(read_photos(tmp_path, "some"))
    assert [photo["categories"] for photo in read] == [photo["categories"] for photo in photos]
    for one, other in zip(read, photos, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one["masks"], other["masks"], strict=True))
    with pytest.raises(FileNotFoundError, match="neither .*instances_other.json nor .*other.jsonl"):
        list(read_photos(tmp_path, "other"))


def codes_of(texts, width=2048):
    """One random unit vector a text, nearly orthogonal to all others."""
    rows = torch.nn.functional.normalize(torch.randn(len(texts), width), dim=-1)
    return dict(zip(texts, rows))


def test_metrics_of_one_who_knows_are_1(scenes):
    codes = codes_of(sorted(set(texts_of(scenes, COCO_CLASSES))))
    told = torch.stack([codes[text] for scene in scenes for text in scene["texts"]])
    named = torch.stack([codes[class_text(category)] for scene in scenes for category in scene["categories"]])
    of_texts = scene_metrics(told, codes, scenes, COCO_CLASSES)
    keys = ("scene_r1", "r1_of_500", "right_of_two", "hard_negative", "hard_negative_pair")
    assert {key: of_texts[key] for key in keys} == dict.fromkeys(keys, 1.0)
    assert all(of_texts[f"hard_negative_pair_{attribute}"] == 1 for attribute in ATTRIBUTES)
    of_names = scene_metrics(named, codes, scenes, COCO_CLASSES)
    assert of_names["class_accuracy"] == of_names["class_accuracy_all"] == 1
    objects = torch.stack([codes[text] for scene in scenes for text in scene["object_texts"]])
    assert scene_metrics(objects, codes, scenes, COCO_CLASSES)["scene_object_r1"] == 1
    whole = torch.stack([codes[scene["long_captions"][0]] for scene in scenes for _ in scene["texts"]])
    assert caption_recall(whole, codes, scenes)["long_captions_r1"] == 1
    photos = [photo for photo in read_photos(DATA, "heldout", most=10) if photo["masks"]]
    named = torch.stack([codes[class_text(category)] for photo in photos for category in photo["categories"]])
    figures = photo_metrics(named, codes, photos, COCO_CLASSES)
    assert set(figures.values()) == {1.0}


def test_metrics_of_one_who_is_wrong_are_0(scenes):
    codes = codes_of(sorted(set(texts_of(scenes, COCO_CLASSES))))
    # The first hard negative in place of the own text, the other way round for who has none.
    wrong = torch.stack(
        [
            codes[negatives[0]] if negatives else -codes[text]
            for scene in scenes
            for text, negatives in zip(scene["texts"], scene["hard_negatives"])
        ]
    )
    assert scene_metrics(wrong, codes, scenes, COCO_CLASSES)["hard_negative"] == 0
    shifted = torch.stack([codes[text] for scene in scenes for text in scene["texts"][1:] + scene["texts"][:1]])
    figures = scene_metrics(shifted, codes, scenes, COCO_CLASSES)
    assert figures["scene_r1"] == figures["r1_of_500"] == 0
    # It prefers one of the others to its own, and has no opinion of the rest.
    assert figures["right_of_two"] < 0.5


def test_metrics_of_one_who_guesses_are_at_chance(scenes):
    chances = scene_chances(scenes, COCO_CLASSES)
    assert chances["scene_r1"] == pytest.approx(
        sum(len(scene["texts"]) for scene in scenes) ** -1 * len(scenes), rel=1e-6
    )
    assert chances["hard_negative"] == pytest.approx(1 / 11) and chances["class_accuracy"] == 1 / 80
    rounds = []
    for seed in range(8):
        torch.manual_seed(seed)
        codes = codes_of(sorted(set(texts_of(scenes, COCO_CLASSES))), width=64)
        guesses = torch.nn.functional.normalize(torch.randn(sum(len(s["texts"]) for s in scenes), 64), dim=-1)
        rounds.append(scene_metrics(guesses, codes, scenes, COCO_CLASSES))
    for key, chance in chances.items():
        guessed = sum(figures[key] for figures in rounds) / len(rounds)
        assert guessed == pytest.approx(chance, abs=max(0.03, 0.1 * chance)), key


@pytest.fixture(scope="module")
def arguments():
    return run_ablation.parse_arguments(TINY)


def model_of(arguments, name):
    processor = run_ablation.build_processor(arguments)
    torch.manual_seed(0)
    return run_ablation.build_model(arguments, run_ablation.PRESETS[name], len(processor.tokenizer)), processor


@pytest.mark.parametrize("name", run_ablation.PRESETS)
def test_every_preset_trains_its_terms(name, arguments, scenes):
    preset = run_ablation.PRESETS[name]
    model, processor = model_of(arguments, name)
    collator = PixCLIPDataCollator(processor, whole_image_share=0.0, max_hard_negatives=2, **model.config.batch_parts)
    collator = collator if preset.masks else run_ablation.MaskFreeCollator(collator)
    batch = collator(scenes[:4])
    output = model(**batch)
    output.loss.backward()
    assert set(output.loss_terms) == set(model.config.term_weights)
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    weights = model.config.term_weights
    assert ("hard_negative" in weights) == (name in ("fg-clip-stage2", "pixclip+fg"))
    assert ("global" in weights) == (not name.startswith(("clip", "fg-clip")) and name != "pixclip without global")
    assert (batch["mask_values"].unique().numel() > 1) == preset.masks


def test_readouts_see_what_they_say(arguments, scenes):
    model, processor = model_of(arguments, "pixclip")
    randomise(model)
    scenes = scenes[:3]
    rows = [len(scene["texts"]) for scene in scenes]
    batches = batches_of(processor, scenes, size=2)
    embeds = embed_regions(model, batches)
    blind = embed_regions(model, batches, without_masks=True)
    for name in embeds:
        assert embeds[name].shape == (sum(rows), 32)
        torch.testing.assert_close(embeds[name].norm(dim=-1), torch.ones(sum(rows)))
        of_scene = embeds[name].split(rows)
        distance = max(float((group - group[0]).abs().max()) for group in of_scene)
        assert (distance < 1e-5) == (name == "whole"), name
    for name in ("mask", "dense"):
        assert all((group - group[0]).abs().max() < 1e-5 for group in blind[name].split(rows)), name
    for name in ("roi", "box", "whole"):
        torch.testing.assert_close(blind[name], embeds[name])
    assert not torch.allclose(blind["crop"], embeds["crop"], atol=1e-3)


def test_texts_are_embedded_by_the_model(arguments):
    model, processor = model_of(arguments, "alpha-clip")
    embeds = embed_texts(model, processor, ["a red bus", "a bus", "a red bus"], size=1)
    assert list(embeds) == ["a bus", "a red bus"]
    model.eval()
    with torch.no_grad():
        expected = model.get_text_features(**processor(text=["a red bus"], return_tensors="pt")).pooler_output[0]
    torch.testing.assert_close(embeds["a red bus"], expected / expected.norm())


def test_comparison_runs_and_resumes(tmp_path, capfd):
    names = ["alpha-clip", "pixclip, no mask"]
    command = [*TINY, "--output_dir", str(tmp_path), "--presets", *names, "--seeds", "3"]
    run_ablation.main(command)
    shown = capfd.readouterr().out
    cells = {path.name: path for path in (tmp_path / "cells").glob("*.json")}
    assert set(cells) == {"alpha-clip-3.json", "pixclip-no-mask-3.json"}
    cell = json.loads(cells["alpha-clip-3.json"].read_text())
    assert cell["tested"]["scenes"] == 8 and cell["settings"]["steps"] == 2
    table = (tmp_path / "ablation.md").read_text()
    for row in ("| alpha-clip (mask) |", "| pixclip, no mask (mask) |", "| chance |"):
        assert row in table and row in shown
    figures = table.split("| alpha-clip (mask) |")[1].split("\n")[0].split("|")
    assert figures[:2] == [" 1 ", f" {100 * cell['scenes']['mask']['scene_r1']:.1f} "]
    assert Image.open(tmp_path / "ablation.png").width > 500
    assert len(json.loads((tmp_path / "ablation.json").read_text())["cells"]) == 2

    # Only what is missing is computed again, and comes out the same.
    cells["alpha-clip-3.json"].unlink()
    before = cells["pixclip-no-mask-3.json"].stat().st_mtime_ns
    run_ablation.main(command)
    shown = capfd.readouterr().out
    assert "alpha-clip, seed 3: done" in shown and "no mask, seed" not in shown
    assert cells["pixclip-no-mask-3.json"].stat().st_mtime_ns == before
    again = json.loads(cells["alpha-clip-3.json"].read_text())
    assert {**again, "seconds": None} == {**cell, "seconds": None}

    with pytest.raises(ValueError, match="steps was 2 and is 3.*Choose another output_dir"):
        run_ablation.main([*command, "--steps", "3"])


def test_a_run_that_fails_is_named_and_stops_no_other(tmp_path, capfd):
    # Where the first run wants to write stands a folder.
    (tmp_path / "cells" / "clip-0.tmp").mkdir(parents=True)
    command = [*TINY, "--output_dir", str(tmp_path), "--seeds", "0", "--num_processes", "1"]
    with pytest.raises(SystemExit, match="1 runs are not in the table: 'clip' with seed 0. Run again"):
        run_ablation.main([*command, "--presets", "clip", "alpha-clip"])
    shown = capfd.readouterr().out
    assert "clip, seed 0: failed (IsADirectoryError" in shown and "alpha-clip, seed 0: done" in shown
    assert "Traceback" in (tmp_path / "cells" / "clip-0.log").read_text()
    table = (tmp_path / "ablation.md").read_text()
    assert "| alpha-clip (mask) |" in table and "| clip (box) |" not in table


def test_table_holds_means_and_deviations_of_the_seeds(tmp_path, capsys):
    readout = dict.fromkeys(
        [metric for _, test, metric in COLUMNS if test == "scenes"]
        + [f"hard_negative_pair_{attribute}" for attribute in ATTRIBUTES],
        0.5,
    )
    shared = {
        "preset": "clip",
        "photos": {"box": dict.fromkeys(("class_accuracy", "right_of_two"), None)},
        "captions": {"captions_r1": 0.0, "long_captions_r1": 0.0},
        "chance": {"scene_r1": 0.26},
        "tested": dict.fromkeys(("scenes", "scene_regions", "photos", "photo_regions"), 1),
        "seconds": {"training_cpu": 1},
    }
    cells = [
        {**shared, "seed": seed, "scenes": {"box": {**readout, "scene_r1": value}}}
        for seed, value in enumerate((0.2, 0.3, 0.7))
    ]
    write_report(cells, {"clip": "box", "pixclip": "mask"}, tmp_path)
    table = (tmp_path / "ablation.md").read_text()
    # No photo has two objects of different classes here, and no run of the second preset is there.
    assert "| clip (box) | 3 | 40.0 ± 26.5 | 50.0 ± 0.0 |" in table and "| - | - |\n" in table
    assert "| chance | - | 26.0 | - |" in table and "pixclip" not in table
    assert Image.open(tmp_path / "ablation.png").width > 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ablation.json", "ablation.md", "ablation.png"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        (["--presets", "pixclp"], "no preset 'pixclp'"),
        (["--vision_config", "{"], "vision_config is not JSON"),
    ],
)
def test_wrong_arguments_are_named(wrong, message, capsys):
    with pytest.raises(SystemExit):
        run_ablation.parse_arguments(wrong)
    assert message in capsys.readouterr().err
