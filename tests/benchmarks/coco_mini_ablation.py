# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
What each part of the hybrid recipe gives, on photos that are kept apart from the training photos of coco-mini.

    python tests/benchmarks/coco_mini_ablation.py --coco ../shared/data/coco-mini --text_backbone MINILM_FOLDER \\
        --output_dir runs/coco_mini_ablation --split 0 1

A variant is the recipe (`examples/configs/coco_mini_hybrid.json`), and where it trains on `coco_mini.json`, with what VARIANTS says.
Of each split 40 % of the training photos are kept apart and measured; nothing of val2017 is read. What the output folder
holds already is not computed again; one process a split may write there. The table has means over splits.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path


ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "configs"
VIEWS = ("full+mask", "mask-pooled", "crop+mask", "mask-pooled + crop+mask")
# Fields of hybrid_vision_tower.py. "train" has those of run_pretraining.py, which goes on from the model; "described"
# composes the regions' texts for it.
VARIANTS = {
    "recipe": {},
    "dropout 0.3 in the linear map": {"probe": {"dropout": 0.3}},
    "no random views": {"probe": {"views": 0}},
    "views without composition of cut-outs": {"views": {"paste": 0.0, "cut": 0.0, "mix": 0.0}},
    "no captions": {"probe": {"caption_weight": 0.0}},
    "measured with crops of 448 pixels": {"crop_size": 448},
    "recipe, then 40 contrastive steps": {"train": {"max_steps": 40}},
    "recipe, then 40 contrastive steps on composed sentences": {"train": {"max_steps": 40}, "described": True},
    "no linear map, 40 contrastive steps at rate 3e-4": {
        "probe": {"steps": 0},
        "train": {"max_steps": 40, "learning_rate": 0.0003},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", required=True, type=Path, help="folder coco-mini")
    parser.add_argument("--text_backbone", required=True)
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--split", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--variant", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    options = parser.parse_args()
    figures = {name: [measure(options, name, split) for split in options.split] for name in options.variant}
    print("| variant | " + " | ".join(VIEWS) + " |\n|---|" + "---|" * len(VIEWS))
    for name, of_splits in figures.items():
        means = [sum(found[view] for found in of_splits) / len(of_splits) for view in VIEWS]
        print(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")


def run(*command: object) -> None:
    subprocess.run([sys.executable, *map(str, command)], check=True, cwd=ROOT)


def settings_of(name: str, data: Path, images: Path, folder: Path) -> tuple[dict, dict | None]:
    """
    Settings of `hybrid_vision_tower.py` and, if the variant trains on, of `run_pretraining.py`.

    Args:
        name: Of the variant.
        data: Folder of the split's photos.
        images: Folder that their paths are below.
        folder: What is made goes there.
    """
    variant = VARIANTS[name]
    shared = {"image_root": str(images)}
    made = json.loads((CONFIGS / "coco_mini_hybrid.json").read_text(encoding="utf-8"))
    made |= {key: value for key, value in variant.items() if key not in ("probe", "train", "described")}
    made |= {"probe": {**made["probe"], **variant.get("probe", {})}, "photos": str(data / "train.jsonl"), **shared}
    made |= {"text_vectors": str(data / "text_vectors.pt"), "output_dir": str(folder / "model")}
    if "train" not in variant:
        return made, None
    trained = json.loads((CONFIGS / "coco_mini.json").read_text(encoding="utf-8"))
    file = data / ("train_described.jsonl" if variant.get("described") else "train.jsonl")
    trained |= {"train_file": str(file), "initial_model": made["output_dir"], "save_strategy": "no", **shared}
    trained |= {"output_dir": str(folder / "trained"), "cache_dir": str(data / "cache"), "report_to": "none"}
    return made, {**trained, **variant["train"]}


def measure(options: argparse.Namespace, name: str, split: int) -> dict[str, float]:
    """Top-1 of each view."""
    coco, of_split = options.coco.resolve(), options.output_dir.resolve() / f"split{split}"
    data, folder = of_split / "photos", of_split / name.replace(" ", "_").replace(",", "")
    stages = settings_of(name, data, coco / "images" / "train2017", folder)
    done = folder / "figures.json"
    if done.is_file():
        found = json.loads(done.read_text(encoding="utf-8"))
        if found["settings"] != list(stages):
            raise ValueError(
                f"{done} is of other settings than today's; delete {folder}, or take another --output_dir."
            )
        return found
    start = time.monotonic()
    if not (data / "layout" / "annotations" / "instances_val2017.json").is_file():
        for described in (False, True):
            run(
                *("examples/coco_region_file.py", "--images", coco / "images" / "train2017"),
                *("--instances", coco / "annotations" / "instances_train2017.json"),
                *("--captions", coco / "annotations" / "captions_train2017.json"),
                *("--output", data / f"train{'_described' * described}.jsonl", *["--describe"] * described),
                *("--held_out_share", 0.4, "--held_out_output", data / "held_out.jsonl", "--seed", split),
            )
        write_layout(data / "held_out.jsonl", coco, data / "layout")
    folder.mkdir(parents=True, exist_ok=True)
    for script, settings in zip(("hybrid_vision_tower.py", "run_pretraining.py"), stages):
        if settings is None:
            continue
        model = Path(settings["output_dir"])
        if not (model / "config.json").is_file():
            file = folder / Path(script).with_suffix(".json")
            file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
            backbone = ("--text_backbone", options.text_backbone) if "photos" in settings else ()
            run(f"examples/{script}", file, *backbone)
    measured = folder / "evaluation"
    run(
        *(
            "examples/run_evaluation.py",
            "--model",
            model,
            "--benchmark",
            "coco-regions",
            "--data_dir",
            data / "layout",
        ),
        *("--output_dir", measured, "--set", "bootstrap=20", "templates=plain", f"views={','.join(VIEWS)}"),
    )
    found = json.loads((measured / "coco-regions" / "results.json").read_text(encoding="utf-8"))
    figures = {view: found["figures"][f"{view}: top-1"]["value"] for view in VIEWS}
    figures |= {"minutes": round((time.monotonic() - start) / 60, 1), "settings": stages}
    done.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return figures


def write_layout(records: Path, coco: Path, out: Path) -> None:
    """Regions of JSON lines in COCO's layout, under names as they are trained with."""
    categories = json.loads((coco / "annotations" / "instances_train2017.json").read_text(encoding="utf-8"))[
        "categories"
    ]
    numbers = {category["name"]: category["id"] for category in categories}
    images, annotations = [], []
    for record in map(json.loads, records.open(encoding="utf-8")):
        shape = {"file_name": record["image"], "width": record["width"], "height": record["height"]}
        images.append({"id": int(record["image_id"]), **shape})
        annotations += [
            {
                "image_id": int(record["image_id"]),
                "category_id": numbers[region["category"]],
                "segmentation": region["mask"],
            }
            for region in record["regions"]
        ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": number, "name": f"a photo of a {name}"} for name, number in numbers.items()]
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    photos = out / "images" / "val2017"
    photos.unlink(missing_ok=True)
    photos.symlink_to(coco / "images" / "train2017")
    (out / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
