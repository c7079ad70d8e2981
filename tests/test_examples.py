# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The main job as a user runs it, and the retrieval figures that it prints."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import backbone_config, clip_vision_config
from tiny_pretraining import DATA, ROOT, losses, make_workspace, pretrain
from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, CLIPConfig, CLIPModel

from modeling_pixclip import (
    RegionStream,
    get_objective_preset,
    write_region_parquet,
    write_region_webdataset,
)


sys.path.insert(0, str(ROOT / "examples"))
from pretraining_data import bad_sample_log_path, evaluation_sample
from region_retrieval import RegionEmbeddings, region_retrieval_metrics, text_rank
from run_pretraining import main


TERMS = {"loss", "loss_global", "loss_crop", "loss_local"}


def naive_metrics(shown, wrong, texts, photo):
    """By plain loops: R@1, R@5 and right-of-two where region i is shown as `shown(i)`, or `wrong(i, rival)`."""
    hits = {1: [], 5: []}
    right = []
    regions = range(len(texts))
    for i in regions:
        rivals = [j for j in regions if j != i and photo[j] == photo[i]]
        for rival in [None] if wrong is None else rivals:
            embed = shown(i) if wrong is None else wrong(i, rival)
            better = sum(float(embed @ texts[j]) > float(embed @ texts[i]) for j in regions if j != i)
            for k, list_ in hits.items():
                list_.append(better < k)
        for rival in rivals:
            embed = shown(i) if wrong is None else wrong(i, rival)
            right.append(float(embed @ texts[i]) > float(embed @ texts[rival]))
    return {
        "r1": sum(hits[1]) / len(hits[1]),
        "r5": sum(hits[5]) / len(hits[5]),
        "right_of_two": sum(right) / len(right),
    }


def test_retrieval_metrics_equal_plain_loops():
    torch.manual_seed(0)
    photo = torch.tensor([0, 0, 1, 1, 1, 2, 3, 3, 3, 3])
    normal = torch.nn.functional.normalize
    texts = normal(torch.randn(10, 6), dim=-1)
    masked, unmasked = (normal(texts + torch.randn(10, 6), dim=-1) for _ in range(2))
    metrics = region_retrieval_metrics(RegionEmbeddings(masked, unmasked, texts, photo))
    expected = {
        "true mask": naive_metrics(lambda i: masked[i], None, texts, photo),
        "other region's mask": naive_metrics(None, lambda i, rival: masked[rival], texts, photo),
        "no mask": naive_metrics(lambda i: unmasked[i], None, texts, photo),
        "chance": {"r1": 0.1, "r5": 0.5, "right_of_two": 0.5},
    }
    for row, values in expected.items():
        assert metrics[row] == pytest.approx(values), row


def test_equal_embeddings_earn_nothing():
    same = torch.ones(8, 1)
    metrics = region_retrieval_metrics(RegionEmbeddings(same, same, same, torch.arange(8) // 2))
    assert metrics["true mask"] == {"r1": 0.0, "r5": 0.0, "right_of_two": 0.5}
    assert text_rank(same, same, torch.arange(8)).tolist() == [8] * 8


def test_metrics_without_two_regions_of_a_photo():
    torch.manual_seed(0)
    embeds = torch.nn.functional.normalize(torch.randn(2000, 4), dim=-1)
    metrics = region_retrieval_metrics(RegionEmbeddings(embeds, embeds, embeds, torch.arange(2000)))
    assert set(metrics) == {"true mask", "no mask", "chance"}
    assert metrics["true mask"] == {"r1": 1.0, "r5": 1.0, "right_of_two": None}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A workspace whose data have captions, long captions and hard negatives."""
    options = {"per_device_train_batch_size": 2, "num_train_epochs": 1, "save_strategy": "no", "warmup_steps": 0}
    return make_workspace(tmp_path_factory.mktemp("rich"), photos=(("train", 4), ("heldout", 3)), rich=True, **options)


def train(folder, name, *options):
    """Trains in this process, which spares the imports; returns the output folder."""
    main([str(folder / "config.json"), "--output_dir", str(folder / name), *map(str, options)])
    return folder / name


@pytest.fixture(scope="module")
def finished(workspace):
    run = pretrain(workspace / "config.json", "--output_dir", workspace / "run", "--whole_image_share", "0.5")
    assert run.returncode == 0, run.stderr
    return workspace / "run", run.stdout


def test_run_leaves_everything_that_it_promises(finished):
    folder, printed = finished
    metrics = json.loads((folder / "region_retrieval.json").read_text())
    assert set(metrics) == {"train", "held-out"}
    for split, rows in metrics.items():
        assert set(rows) == {"true mask", "other region's mask", "no mask", "chance"}
        for row, values in rows.items():
            line = next(line for line in printed.splitlines() if line.startswith(f"{split:<11}{row:<22}"))
            assert line.split()[-3:] == [f"{values[key]:.3f}" for key in ("r1", "r5", "right_of_two")]
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if entry.keys() >= TERMS]) == 4
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert len(evaluations) == 2 and "eval_region_to_text_r1" in evaluations[0]
    # The Trainer's evaluation and the final one agree on the 22 held-out regions, but for a tie broken by rounding.
    assert evaluations[-1]["eval_region_to_text_r5"] == pytest.approx(
        metrics["held-out"]["true mask"]["r5"], abs=1.01 / 22
    )
    assert evaluations[-1]["eval_region_to_text_r5"] * 22 == pytest.approx(
        round(evaluations[-1]["eval_region_to_text_r5"] * 22)
    )
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/jpeg;base64,") == 10 and "<svg" in report and "held-out" in report
    assert not list(folder.glob("*.tmp"))


def test_trained_folder_loads_through_the_auto_classes(finished):
    folder, _ = finished
    model = AutoModel.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == "PixCLIPModel"
    assert type(AutoModelForPreTraining.from_pretrained(folder)).__name__ == "PixCLIPForPreTraining"
    record = json.loads((DATA / "heldout.jsonl").open(encoding="utf-8").readline())
    masks = [region["mask"] for region in record["regions"]]
    batch = processor(images=DATA / record["image"], masks=masks, text=["a dog", "a red kite"])
    assert model(**batch).logits_per_image.shape == (len(masks), 2)


def test_readme_example_runs(finished):
    folder, _ = finished
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line]) <= 15 and "runs/coco_regions" in example
    run = subprocess.run(
        [sys.executable, "-c", example.replace("runs/coco_regions", str(folder))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    record = json.loads((DATA / "train.jsonl").open(encoding="utf-8").readline())
    assert [line.split("  ")[0].strip() for line in run.stdout.splitlines()] == [
        region["category"] for region in record["regions"]
    ]


def test_a_second_run_goes_on_where_the_first_ended(finished, workspace):
    folder, _ = finished
    run = pretrain(
        workspace / "config.json", "--output_dir", folder, "--whole_image_share", "0.5", "--num_train_epochs", "3"
    )
    assert run.returncode == 0, run.stderr
    assert "Going on from" in run.stderr and "Text vectors" not in run.stderr
    state = json.loads((folder / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text_template", "about: {text}"], "text_template was '{text}' and is 'about: {text}'"),
        (["--objective", '{"local_weight": 0.0}'], "objective.local_weight was 1.0 and is 0.0"),
    ],
)
def test_a_run_does_not_go_on_as_another_one(finished, workspace, arguments, message):
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    run = pretrain(
        workspace / "config.json",
        "--output_dir",
        folder,
        "--whole_image_share",
        "0.5",
        "--num_train_epochs",
        "9",
        *arguments,
    )
    assert run.returncode != 0 and message in run.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_starts_from_a_clip_checkpoint(workspace):
    """The README's command for own data, with folders in place of Hub ids."""
    clip = CLIPModel(
        CLIPConfig(vision_config=clip_vision_config(), text_config=backbone_config("clip_text"), projection_dim=16)
    )
    clip.save_pretrained(workspace / "clip")
    run = pretrain(
        ROOT / "examples/configs/from_clip.json",
        *("--train_file", workspace / "train.jsonl", "--eval_file", workspace / "heldout.jsonl"),
        *("--output_dir", workspace / "from_clip", "--cache_dir", workspace / "cache", "--num_train_epochs", "1"),
        *("--vision_model", workspace / "clip", "--text_backbone", workspace / "llm", "--learning_rate", "1e-12"),
    )
    assert run.returncode == 0, run.stderr
    model = AutoModel.from_pretrained(workspace / "from_clip")
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = clip.eval().get_image_features(pixels).pooler_output
        torch.testing.assert_close(model.get_image_features(pixels).pooler_output, expected, atol=1e-5, rtol=0)


def test_trainable_backbone_reads_tokens(workspace):
    run = pretrain(
        workspace / "config.json",
        *("--output_dir", workspace / "full", "--text_config", '{"backbone_training": "full"}'),
        *("--num_train_epochs", "1", "--save_strategy", "no", "--augment_crop_scale", "0.7"),
    )
    assert run.returncode == 0, run.stderr
    trained = AutoModel.from_pretrained(workspace / "full").text_model.backbone.state_dict()
    before = AutoModel.from_pretrained(workspace / "llm").state_dict()
    assert not torch.equal(trained["layers.0.mlp.up_proj.weight"], before["layers.0.mlp.up_proj.weight"])


@pytest.mark.parametrize("preset", ["pixclip", "fg-clip-stage1", "fg-clip-stage2", "pixclip+fg", "alpha-clip", "clip"])
def test_presets_train_their_terms(rich, preset):
    folder = train(rich, preset, "--preset", preset)
    weights = {name.removesuffix("_weight"): value for name, value in get_objective_preset(preset).items()}
    terms = {
        name for name, weight in weights.items() if name in weights and name != "hard_negative_features" and weight
    }
    logged = losses(folder)
    assert len(logged) == 2
    for entry in logged.values():
        assert {key.removeprefix("loss_") for key in entry if key.startswith("loss_")} == terms
        expected = sum(weights[term] * entry[f"loss_{term}"] for term in terms)
        assert entry["loss"] == pytest.approx(expected, rel=1e-5)
    metrics = json.loads((folder / "region_retrieval.json").read_text())["held-out"]
    assert ({"short caption", "long caption"} <= metrics.keys()) == bool({"caption_short", "caption_long"} & terms)
    assert metrics["no mask"]["right_of_two"] == 0.5 and metrics["true mask"]["right_of_two"] != 0.5
    model = AutoModelForPreTraining.from_pretrained(folder)
    assert set(model.config.term_weights) == terms
    assert model.config.text_config.long_text_projection == ("caption_long" in terms)


def test_options_of_the_objective_go_on_top_of_the_preset(rich):
    objective = {"loss_type": "sigmoid", "text_intra_weight": 0.2, "ranking_margin_weight": 0.3, "region_weight": 0}
    folder = train(rich, "sigmoid", "--preset", "fg-clip-stage2", "--objective", json.dumps(objective))
    entry = losses(folder)[2]
    terms = {"caption_long", "caption_short", "hard_negative", "text_intra", "ranking_margin"}
    assert {key.removeprefix("loss_") for key in entry if key.startswith("loss_")} == terms


def as_webdataset(records, folder):
    write_region_webdataset(records, folder / "tar", folder, samples_per_shard=2)
    return folder / "tar" / "*.tar"


def as_parquet(records, folder):
    write_region_parquet(records, folder / "parquet", folder, samples_per_shard=2)
    return folder / "parquet" / "*.parquet"


def as_fgclip(records, folder):
    items = []
    for record in records:
        regions = [
            {
                "bbox": [0.1, 0.2, 0.6, 0.9],
                "short_expr": region["object_text"] or region["category"],
                "long_expr": region["text"],
                "flag_short_neg": 1,
                "short_expr_negs": dict(enumerate(region["hard_negatives"])),
            }
            for region in record["regions"]
        ]
        captions = {"short_caption": record["captions"][0], "caption": record["long_captions"][0]}
        items.append({"f_path": record["image"], **captions, "bbox_info": regions})
    (folder / "fgclip.json").write_text(json.dumps(items))
    return folder / "fgclip.json"


def as_folder(records, folder):
    from PIL import Image

    from processing_pixclip import to_mask

    rows = []
    for number, record in enumerate(records):
        for place, region in enumerate(record["regions"]):
            name = f"mask_{number}_{place}.png"
            mask = to_mask(region["mask"], record["height"], record["width"])
            Image.fromarray((mask * 255).astype("uint8")).save(folder / name)
            rows.append({"file_name": record["image"], "mask_file_name": name, "text": region["text"]})
            rows[-1] |= {"caption": record["captions"][0], "long_caption": record["long_captions"][0]}
            rows[-1] |= {"hard_negatives": region["hard_negatives"]}
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.mark.parametrize("write", [as_webdataset, as_parquet, as_fgclip, as_folder])
def test_every_format_of_data_trains(rich, write):
    records = [json.loads(line) for line in (rich / "train.jsonl").open(encoding="utf-8")]
    path = write(records, rich)
    folder = train(rich, write.__name__, "--preset", "fg-clip-stage2", "--train_file", path, "--eval_file", path)
    entries = losses(folder)
    assert len(entries) == 2 and all("loss_hard_negative" in entry for entry in entries.values())
    metrics = json.loads((folder / "region_retrieval.json").read_text())
    assert metrics["train"] == metrics["held-out"]
    regions = sum(len(record["regions"]) for record in records)
    assert metrics["train"]["chance"]["r1"] == pytest.approx(1 / regions)


def test_a_folder_is_recognised_and_a_table_of_it(rich):
    records = [json.loads(line) for line in (rich / "train.jsonl").open(encoding="utf-8")][:2]
    as_folder(records, rich)
    (rich / "metadata.jsonl").rename(rich / "two.jsonl")
    files = ("--train_file", rich / "two.jsonl", "--eval_file", rich / "two.jsonl")
    folder = train(rich, "table", *files, "--data_format", "folder")
    assert len(losses(folder)) == 1


def test_stored_text_vectors_are_those_that_are_computed(rich):
    """Of captions and hard negatives too; of shards they are computed in any case."""
    options = ("--preset", "pixclip+fg", "--text_vector_dtype", "float32", "--seed", 7)
    stored = losses(train(rich, "stored", *options, "--text_vectors", "stored"))
    computed = losses(train(rich, "computed", *options, "--text_vectors", "computed"))
    for step, entry in stored.items():
        assert computed[step]["loss"] == pytest.approx(entry["loss"], abs=2e-5)


def test_optimisation_options_take_effect(rich):
    folder = train(
        rich,
        "optimised",
        *("--group_learning_rates", '{"mask_embedding": 0.01}', "--layer_decay", 0.5, "--ema_decay", 0.5),
        *("--frozen", '{"vision": [0, 1]}', "--num_train_epochs", 2, "--lr_scheduler_type", "constant"),
    )
    entry = losses(folder)[1]
    assert entry["learning_rate_mask_embedding"] == 0.01 and entry["learning_rate_adapter"] == 0.0005
    own, averages = (load_file(path / "model.safetensors") for path in (folder, folder / "ema"))
    assert not torch.equal(own["visual_projection.weight"], averages["visual_projection.weight"])
    cached = train(rich, "cached", "--per_device_train_batch_size", 1, "--contrastive_batch_size", 2)
    plain = train(rich, "plain")
    for step, entry in losses(plain).items():
        assert losses(cached)[step]["loss"] == pytest.approx(entry["loss"], abs=2e-5)


def test_retrieval_is_measured_on_a_bounded_sample_that_is_always_the_same(rich):
    metrics = [
        json.loads((train(rich, name, "--max_eval_regions", 7) / "region_retrieval.json").read_text())
        for name in ("bounded", "again")
    ]
    assert metrics[0] == metrics[1]
    for rows in metrics[0].values():
        assert 1 <= round(1 / rows["chance"]["r1"]) <= 7


def test_bad_samples_are_skipped_and_written_down_until_they_are_too_many(rich, tmp_path):
    lines = (rich / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "images").mkdir()
    for line in lines:
        image = json.loads(line)["image"]
        (tmp_path / image).write_bytes((rich / image).read_bytes())
    truncated = json.loads(lines[1])["image"]
    (tmp_path / truncated).write_bytes((rich / truncated).read_bytes()[:2000])
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    options = ("--train_file", tmp_path / "train.jsonl")
    folder = train(rich, "bad", *options, "--max_bad_fraction", 0.5)
    bad = [json.loads(line) for line in (folder / "bad_samples.jsonl").open()]
    assert [entry["image_id"] for entry in bad] == [None, json.loads(lines[1])["image_id"]]
    assert "is not JSON" in bad[0]["reason"] and len(losses(folder)) == 2
    with pytest.raises(RuntimeError, match=r"more than max_bad_fraction=0.3. They are listed in .*bad_samples.jsonl"):
        train(rich, "too_bad", *options, "--max_bad_fraction", 0.3)


def truncate_first(records, folder, name):
    """The records in a folder of their own, with the first image cut off; returns the path of the JSON lines."""
    folder.mkdir()
    for number, record in enumerate(records):
        content = (DATA / record["image"]).read_bytes()
        (folder / record["image"]).parent.mkdir(exist_ok=True)
        (folder / record["image"]).write_bytes(content[:2000] if number == 0 else content)
    (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    return folder / f"{name}.jsonl"


def records_of(folder, name="train"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").open(encoding="utf-8")]


def test_good_held_out_samples_do_not_hide_bad_training_samples(rich, tmp_path):
    train_file = truncate_first(records_of(rich), tmp_path / "data", "train")
    # 1 of 4, and 1 of 7 with the held-out ones.
    with pytest.raises(RuntimeError, match="1 of the 4 samples read are bad"):
        train(rich, "hidden", "--train_file", train_file, "--max_bad_fraction", 0.2)
    assert len(records_of(rich / "hidden", "bad_samples")) == 1
    assert not (rich / "hidden" / "bad_samples_held_out.jsonl").exists()


def test_bad_held_out_samples_have_a_log_of_their_own(rich, tmp_path):
    eval_file = truncate_first(records_of(rich, "heldout"), tmp_path / "data", "heldout")
    folder = train(rich, "held_out", "--eval_file", eval_file, "--max_bad_fraction", 0.5)
    (line,) = records_of(folder, "bad_samples_held_out")
    assert line["image_id"] == records_of(rich, "heldout")[0]["image_id"]
    assert not (folder / "bad_samples.jsonl").exists()
    regions = sum(len(record["regions"]) for record in records_of(rich, "heldout")[1:])
    metrics = json.loads((folder / "region_retrieval.json").read_text())
    assert metrics["held-out"]["chance"]["r1"] == pytest.approx(1 / regions)
    with pytest.raises(RuntimeError, match="1 of the 3 samples read are bad"):
        train(rich, "held_out_bad", "--eval_file", eval_file, "--max_bad_fraction", 0.3)


@pytest.mark.parametrize("shards", [False, True])
def test_what_is_read_before_the_training_counts_for_no_share(rich, tmp_path, shards):
    path = rich / "train.jsonl"
    if shards:
        write_region_webdataset(records_of(rich), tmp_path / "tar", rich)
        path = tmp_path / "tar" / "*.tar"
    options = ("--max_steps", 1, "--per_device_train_batch_size", 1, "--train_file", path)
    folder = train(rich, f"one_step_{shards}", *options)
    # One sample for the step, and one that the loader reads ahead.
    assert (folder / "bad_samples.jsonl.seen").stat().st_size == 2
    assert (folder / "bad_samples_held_out.jsonl.seen").stat().st_size == 3


def test_bad_samples_are_judged_at_the_end_of_an_epoch(rich, tmp_path):
    """Of 4 samples 3 are read, which is less than all; only the callback judges that."""
    dataset = truncate_first(records_of(rich), tmp_path / "data", "train")
    options = ("--train_file", dataset, "--train_sampling_strategy", "sequential", "--dataloader_drop_last", True)
    with pytest.raises(RuntimeError, match="1 of the 3 samples read are bad"):
        train(rich, "epoch_end", *options, "--per_device_train_batch_size", 3, "--max_bad_fraction", 0.3)


def test_shards_are_sampled_as_they_are_stored(rich, tmp_path):
    write_region_webdataset(records_of(rich), tmp_path / "tar", rich)
    stream = RegionStream(f"{tmp_path}/tar/*.tar", shuffle_buffer=0)
    sample = evaluation_sample(stream, max_regions=1000, captions=False)
    assert len(sample) == 4
    for found, expected, record in zip(sample, stream, sample.stored, strict=True):
        assert list(found["image"].tobytes()) == list(expected["image"].tobytes())
        assert found["texts"] == expected["texts"] and found.keys() == expected.keys()
        assert isinstance(record.image, bytes) and len(record.image) < len(found["image"].tobytes()) / 2
        assert not [value for value in vars(record).values() if hasattr(value, "tobytes")]


def log_paths_of_a_machine(rank, folder):
    torch.set_num_threads(1)
    # Two processes a machine.
    os.environ["GROUP_RANK"] = str(rank // 2)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    paths = [bad_sample_log_path(folder, split).name for split in ("train", "held-out")]
    (folder / str(rank)).write_text(" ".join(paths))
    torch.distributed.destroy_process_group()


def test_each_machine_has_a_log_of_its_own(tmp_path):
    assert bad_sample_log_path(tmp_path, "train") == tmp_path / "bad_samples.jsonl"
    torch.multiprocessing.start_processes(log_paths_of_a_machine, (tmp_path,), nprocs=4, start_method="fork")
    first = "bad_samples.jsonl bad_samples_held_out.jsonl"
    second = "bad_samples_machine1.jsonl bad_samples_held_out_machine1.jsonl"
    assert [(tmp_path / str(rank)).read_text() for rank in range(4)] == [first, first, second, second]


def test_a_stream_goes_on_only_where_it_stopped(rich, tmp_path):
    write_region_webdataset(records_of(rich), tmp_path / "tar", rich, samples_per_shard=2)
    options = ("--train_file", tmp_path / "tar" / "*.tar", "--save_strategy", "steps", "--save_steps", 1)
    train(rich, "stream", *options, "--max_steps", 1)
    refused = {
        "batch_size 2, now 1": ("--per_device_train_batch_size", 1),
        "seed 42, now 7": ("--data_seed", 7),
        "workers 1, now 2": ("--dataloader_num_workers", 2),
        "gradient_accumulation_steps 1, now 2": ("--gradient_accumulation_steps", 2),
    }
    for message, other in refused.items():
        with pytest.raises(ValueError, match=message):
            train(rich, "stream", *options, "--max_steps", 2, *other)
    assert list(losses(train(rich, "stream", *options, "--max_steps", 2))) == [1, 2]
    shard = sorted((tmp_path / "tar").glob("*.tar"))[0]
    shard.with_name("region-9.tar").write_bytes(shard.read_bytes())
    with pytest.raises(ValueError, match="samples 4, now 6; shards"):
        train(rich, "stream", *options, "--max_steps", 3)


@pytest.fixture(scope="module")
def stopped(rich):
    """A run with the checkpoints 1 and 2."""
    return train(rich, "stopped", *STEPS)


@pytest.fixture
def copied(stopped, rich, request):
    folder = rich / re.sub(r"\W", "_", request.node.name)
    shutil.copytree(stopped, folder)
    return folder


STEPS = ("--save_strategy", "steps", "--save_steps", 1, "--save_total_limit", 5)


def test_a_torn_checkpoint_is_not_resumed_from_either_if_it_is_asked_for(rich, copied):
    (copied / "checkpoint-2" / "model.safetensors").write_bytes(b"torn")
    before = (copied / "run_arguments.json").read_bytes()
    with pytest.raises(ValueError, match="checkpoint-2, which is incomplete: model.safetensors has 4 bytes"):
        train(rich, copied.name, *STEPS, "--resume_from_checkpoint", copied / "checkpoint-2")
    assert (copied / "run_arguments.json").read_bytes() == before


@pytest.mark.parametrize("output", ["same", "other"])
def test_a_checkpoint_of_another_run_is_refused_if_it_is_asked_for(rich, copied, output):
    folder = copied.name if output == "same" else f"{copied.name}_other"
    options = ("--resume_from_checkpoint", copied / "checkpoint-1", "--preset", "alpha-clip")
    with pytest.raises(ValueError, match="preset was 'pixclip' and is 'alpha-clip'"):
        train(rich, folder, *STEPS, *options)


def test_a_checkpoint_that_is_asked_for_is_taken(rich, copied, caplog):
    expected = losses(copied)
    folder = train(rich, copied.name, *STEPS, "--resume_from_checkpoint", copied / "checkpoint-1")
    assert f"Going on from {copied / 'checkpoint-1'}" in caplog.text
    assert losses(folder)[2]["loss"] == expected[2]["loss"]
    caplog.clear()
    train(rich, copied.name, *STEPS, "--num_train_epochs", 2, "--resume_from_checkpoint", True)
    assert f"Going on from {copied / 'checkpoint-2'}" in caplog.text
    with pytest.raises(ValueError, match="there is no complete checkpoint in .*, and resume_from_checkpoint is True"):
        train(rich, "nothing", *STEPS, "--resume_from_checkpoint", True)


def test_a_run_whose_record_is_lost_does_not_begin_anew(rich, copied, caplog):
    (copied / "run_arguments.json").unlink()
    with pytest.raises(ValueError, match="run_arguments.json, which tells of what run they are, cannot be read"):
        train(rich, copied.name, *STEPS)
    assert not (copied / "run_arguments.json").exists() and len(list(copied.glob("checkpoint-*"))) == 2
    options = ("--num_train_epochs", 2, "--resume_from_checkpoint", copied / "checkpoint-2")
    assert list(losses(train(rich, copied.name, *STEPS, *options))) == [1, 2, 3, 4]
    assert "is of this model and these data is not checked" in caplog.text
    assert (copied / "run_arguments.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["config.json", "--resume_from_checkpoint", "absent"], "is 'absent', and there is no such folder"),
        (["config.json", "--resume_from_checkpoint", "False"], "accepted are a checkpoint's folder, and True"),
        (["--output_dir", "run"], "train_file and output_dir are needed"),
        (["config.json", "--no_such_option", "1"], "no_such_option"),
        (["wrong.json"], "unknown options colour"),
        (["absent.json"], "absent.json cannot be read as JSON"),
        (["config.json", "--vision_config", "{wrong"], "--vision_config is not JSON"),
        (["config.json", "--vision_config", '{"hiden_size": 64}'], "hiden_size"),
        (["config.json", "--objective", '{"local_wieght": 0}'], "local_wieght"),
        (["config.json", "--train_file", "absent.jsonl"], "there is no 'absent.jsonl'"),
        (["config.json", "--train_file", "absent/*.tar"], "no file matches 'absent/*.tar'"),
        (["config.json", "--train_file", "data.xml"], "cannot be told by its extension '.xml'; accepted are .jsonl"),
        (["config.json", "--text_template", "no slot"], "text_template is 'no slot'"),
        (
            ["config.json", "--preset", "fg-clip"],
            "there is no objective preset 'fg-clip'; accepted are 'pixclip', 'fg",
        ),
        (["config.json", "--data_format", "tar"], "--data_format is 'tar'; accepted are 'auto', 'jsonl'"),
        (["config.json", "--max_eval_regions", "0"], "--max_eval_regions is 0"),
        (["config.json", "--frozen", '{"visoin": [0, 5]}'], "there is no group of parameters 'visoin'"),
        (["config.json", "--contrastive_batch_size", "4"], "accepted are multiples of 3"),
        (
            ["config.json", "--text_vectors", "stored", "--text_config", '{"backbone_training": "full"}'],
            "text backbone",
        ),
        # What an objective reads and the data do not have.
        (
            ["config.json", "--preset", "fg-clip-stage2"],
            "has captions (for caption_short), long_captions (for caption_long), hard_negatives (for hard_negative). Add",
        ),
        (
            ["config.json", "--preset", "clip"],
            "choose another preset, or leave the terms out: --objective '{\"caption_",
        ),
        (["config.json", "--train_file", "no_regions.jsonl"], "has regions (for global, crop, local)"),
    ],
)
def test_wrong_input_says_what_is_wrong(workspace, arguments, message, capsys):
    (workspace / "wrong.json").write_text('{"colour": "red"}')
    records = [json.loads(line) for line in (workspace / "train.jsonl").open(encoding="utf-8")]
    lines = [json.dumps({**record, "captions": [], "regions": []}) for record in records]
    (workspace / "no_regions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    ours = ("config.json", "wrong.json", "absent.json", "no_regions.jsonl")
    arguments = [str(workspace / argument) if argument in ours else argument for argument in arguments]
    if arguments[0].endswith("config.json"):
        arguments += ["--output_dir", str(workspace / "wrong")]
    with pytest.raises((SystemExit, ValueError, TypeError, OSError)) as raised:
        main(arguments)
    assert message in str(raised.value) + capsys.readouterr().err


@pytest.mark.slow
def test_default_run_learns_that_the_mask_decides(tmp_path):
    """The figures of the README: on the training photos the mask decides which text a region finds."""
    run = pretrain(
        ROOT / "examples/configs/coco_regions.json",
        *("--output_dir", tmp_path / "run", "--cache_dir", tmp_path / "cache"),
        timeout=3000,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    metrics = json.loads((tmp_path / "run" / "region_retrieval.json").read_text())
    train = metrics["train"]
    assert train["true mask"]["r1"] >= 0.8 and train["true mask"]["right_of_two"] >= 0.95
    assert train["other region's mask"]["right_of_two"] <= 0.2
    # Without its mask a region does not find its text.
    assert train["no mask"]["r1"] <= 0.1 and train["other region's mask"]["r1"] <= 0.1
    # Above chance on photos never seen.
    assert metrics["held-out"]["true mask"]["right_of_two"] >= 0.6
    assert metrics["held-out"]["true mask"]["r5"] >= 3 * metrics["held-out"]["chance"]["r5"]
