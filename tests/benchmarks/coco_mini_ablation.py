# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
What each part of the hybrid recipe gives, on photos that are kept apart from the training photos of coco-mini.

    python tests/benchmarks/coco_mini_ablation.py --coco ../shared/data/coco-mini --text_backbone MINILM_FOLDER \\
        --output_dir runs/coco_mini_ablation --split 0 1

A variant is the recipe (`examples/configs/coco_mini_hybrid.json`, and where it trains on `coco_mini.json`) with one change.
Of each split 40 % of the training photos are kept apart and measured; nothing of val2017 is read. What is there already in the
output folder is not computed again, so that several processes can share the work. The table has means over splits.
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
RECIPE = "recipe"
# Of contrastive training: less than the settings say.
STEPS = 40
# Options of hybrid_vision_tower.py. "train" has those of run_pretraining.py, which goes on from the model; "described"
# composes the regions' texts for it.
VARIANTS = {
    RECIPE: {},
    "dropout 0.3 in the linear map": {"probe": {"dropout": 0.3}},
    "no random views": {"probe": {"views": 0}},
    "views without composition of cut-outs": {"views": {"paste": 0.0, "cut": 0.0, "mix": 0.0}},
    "no captions": {"probe": {"caption_weight": 0.0}},
    "crops of 448 pixels": {"crop_size": 448},
    "recipe, then contrastive training": {"train": {}},
    "recipe, then contrastive training on composed sentences": {"train": {}, "described": True},
    "no linear map, contrastive training": {"probe": {"steps": 0}, "train": {"learning_rate": 0.0003}},
    "images of 640 pixels": {"image_size": 640},
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


def measure(options: argparse.Namespace, name: str, split: int) -> dict[str, float]:
    """Top-1 of each view."""
    variant = VARIANTS[name]
    folder = options.output_dir.resolve() / f"split{split}" / name.replace(" ", "_").replace(",", "")
    done = folder / "figures.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    start = time.monotonic()
    coco, data = options.coco.resolve(), folder.parent / "photos"
    files = {described: data / f"train{'_described' * described}.jsonl" for described in (False, True)}
    if not (data / "layout").is_dir():
        for described, file in files.items():
            run(
                *("examples/coco_region_file.py", "--images", coco / "images" / "train2017"),
                *("--instances", coco / "annotations" / "instances_train2017.json"),
                *("--captions", coco / "annotations" / "captions_train2017.json"),
                *("--output", file, "--held_out_share", 0.4, "--held_out_output", data / "held_out.jsonl"),
                *("--seed", split, *["--describe"] * described),
            )
        write_layout(data / "held_out.jsonl", coco, data / "layout")
    fields = {key: value for key, value in variant.items() if key not in ("train", "described")}
    recipe = json.loads((CONFIGS / "coco_mini_hybrid.json").read_text(encoding="utf-8"))
    fields["probe"] = {**recipe["probe"], **variant.get("probe", {})}
    fields["photos"] = str(files[False])
    fields |= {"text_vectors": str(data / "text_vectors.pt"), "image_root": str(coco / "images" / "train2017")}
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "settings.json"
    model = (folder if set(variant) - {"train", "described"} else folder.parent / RECIPE) / "model"
    if not model.is_dir():
        settings.write_text(json.dumps({**recipe, **fields, "output_dir": str(model)}), encoding="utf-8")
        run("examples/hybrid_vision_tower.py", settings, "--text_backbone", options.text_backbone)
    if "train" in variant:
        recipe = json.loads((CONFIGS / "coco_mini.json").read_text(encoding="utf-8"))
        trained = folder / "trained"
        own = {"train_file": str(files[bool(variant.get("described"))]), "image_root": fields["image_root"]}
        own |= {"initial_model": str(model), "output_dir": str(trained), "save_strategy": "no", "max_steps": STEPS}
        settings.write_text(json.dumps({**recipe, **own, **variant["train"]}), encoding="utf-8")
        run("examples/run_pretraining.py", settings, "--cache_dir", data / "cache", "--report_to", "none")
        model = trained
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
        *(
            "--output_dir",
            folder / "evaluation",
            "--set",
            "bootstrap=20",
            "templates=plain",
            f"views={','.join(VIEWS)}",
        ),
    )
    found = json.loads((folder / "evaluation" / "coco-regions" / "results.json").read_text(encoding="utf-8"))
    figures = {view: found["figures"][f"{view}: top-1"]["value"] for view in VIEWS}
    figures["minutes"] = round((time.monotonic() - start) / 60, 1)
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
    (out / "images").mkdir(parents=True)
    (out / "annotations").mkdir()
    (out / "images" / "val2017").symlink_to(coco / "images" / "train2017")
    (out / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
