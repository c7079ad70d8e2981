# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The image-text retrieval benchmarks: how each lays out its files, and the protocols of the papers.

The presets "official-pixclip" say all that a protocol decides; for the mask of PixCLIP's scripts see `ImageTextRetrieval`,
and they compute in half precision, which is the model's dtype here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..coco_annotations import CocoAnnotations
from ..region_records import check_relative_path
from .benchmark import SourceFile
from .image_text_retrieval import CaptionedImage, ImageTextRetrieval, RetrievalProtocol
from .retrieval_files import (
    read_first_records,
    read_flickr_tokens,
    read_json,
    read_json_lines,
    read_karpathy,
    read_text,
    texts_of,
    values_of,
)


_KARPATHY = "Karpathy and Fei-Fei's split: https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
_FLICKR = "By request: https://shannon.cs.illinois.edu/DenotationGraph/"
_COCO = "https://cocodataset.org/#download"
_DCI = "https://dl.fbaipublicfiles.com/densely_captioned_images/dci.tar.gz (https://github.com/facebookresearch/DCI)"


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files by name, without hidden ones: macOS adds a "._1.txt" to "1.txt"."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


class Flickr30k(ImageTextRetrieval):
    """Flickr30k: 1,000 photos with 5 captions each.

    Splits "test", "val" and "train" are Karpathy's (`dataset_flickr30k.json`). "pixclip-test" is `test_caption.json`, a
    list of `{"filename", "captions"}`, as PixCLIP's evaluation reads it; "all-token" is `results_20130124.token`, all
    31,783 photos, as Long-CLIP's evaluation reads it. Images lie in `flickr30k-images`.

    Presets: "default" is the whole test split both ways with all captions, as FG-CLIP's tables are said to be.
    "official-pixclip" takes the first 1,000 photos, the first caption of each, dot products of vectors that are not
    normalised, and R@1 alone (PixCLIP, eval/Flickr30k). "official-longclip" takes all photos (Long-CLIP,
    eval/retrieval/flickr30k.py).

    Example:
        >>> Flickr30k("data").protocol.split
        'test'
        >>> Flickr30k.presets["official-pixclip"].captions
        'first'
    """

    name: ClassVar[str] = "flickr30k"
    summary: ClassVar[str] = "captions and photos find each other, R@1/5/10 both ways"
    dataset: ClassVar[str] = "Flickr30k"
    published: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "Flickr30k, test": {"images": 1_000, "captions read": 5_000},
        "Flickr30k, val": {"images": 1_014, "captions read": 5_070},
        "Flickr30k, train": {"images": 29_000, "captions read": 145_000},
        "Flickr30k, all-token": {"images": 31_783, "captions read": 158_915},
    }
    splits: ClassVar[tuple[str, ...]] = ("test", "val", "train", "pixclip-test", "all-token")
    presets: ClassVar[Mapping[str, RetrievalProtocol]] = {
        "default": RetrievalProtocol(split="test"),
        "official-pixclip": RetrievalProtocol(
            name="official-pixclip",
            split="pixclip-test",
            limit=1000,
            captions="first",
            normalize=False,
            recall_at=(1,),
        ),
        "official-longclip": RetrievalProtocol(name="official-longclip", split="all-token"),
    }
    layout: ClassVar[tuple[SourceFile, ...]] = (
        SourceFile("dataset_flickr30k.json", "captions and splits", _KARPATHY),
        SourceFile("test_caption.json", "captions of split pixclip-test", "https://github.com/StuHude/PixCLIP"),
        SourceFile("results_20130124.token", "captions of split all-token", _FLICKR),
        SourceFile("flickr30k-images", "photos", _FLICKR),
    )

    def sources(self) -> tuple[SourceFile, ...]:
        captions = {"pixclip-test": 1, "all-token": 2}.get(self.protocol.split, 0)
        return self.layout[captions], self.layout[3]

    def read(self) -> list[CaptionedImage]:
        path, split = self.path(self.sources()[0]), self.protocol.split
        if split == "all-token":
            found = [(str(path), name, texts) for name, texts in read_flickr_tokens(path).items()]
        elif split == "pixclip-test":
            found = []
            for number, row in enumerate(read_json(path, list)):
                where = f"{path}: record {number}"
                name, texts = values_of(row, ("filename", "captions"), where)
                found.append((where, name, texts_of(texts, where)))
        else:
            found = read_karpathy(path, split)
        return [
            CaptionedImage(self.image(name, where, "flickr30k-images"), tuple(texts)) for where, name, texts in found
        ]


class CocoRetrieval(ImageTextRetrieval):
    """COCO captions: 5,000 photos with 5 or more captions each.

    Split "val2017" is `annotations/captions_val2017.json` over `val2017`, "karpathy-test" and "karpathy-val" are the
    5,000 of Karpathy's `dataset_coco.json` over `val2014`. They are different photos: say which, next to a number.

    Presets: "default" takes all captions of val2017 (25,014). "official-fgclip" takes the first 5 of each photo (25,000),
    and so does "official-longclip" (FG-CLIP's evaluation; Long-CLIP, eval/retrieval/coco.py). PixCLIP has no script for
    COCO retrieval.

    Example:
        >>> CocoRetrieval.presets["official-fgclip"].captions
        'first-5'
    """

    name: ClassVar[str] = "coco-retrieval"
    summary: ClassVar[str] = "captions and photos find each other, R@1/5/10 both ways"
    dataset: ClassVar[str] = "COCO captions"
    published: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "COCO captions, val2017": {"images": 5_000, "captions read": 25_014},
        "COCO captions, karpathy-test": {"images": 5_000, "captions read": 25_010},
        "COCO captions, karpathy-val": {"images": 5_000},
    }
    splits: ClassVar[tuple[str, ...]] = ("val2017", "karpathy-test", "karpathy-val")
    presets: ClassVar[Mapping[str, RetrievalProtocol]] = {
        "default": RetrievalProtocol(split="val2017"),
        "official-fgclip": RetrievalProtocol(name="official-fgclip", split="val2017", captions="first-5"),
        "official-longclip": RetrievalProtocol(name="official-longclip", split="val2017", captions="first-5"),
    }
    layout: ClassVar[tuple[SourceFile, ...]] = (
        SourceFile("annotations/captions_val2017.json", "captions of split val2017", _COCO),
        SourceFile("val2017", "photos of split val2017", _COCO),
        SourceFile("dataset_coco.json", "captions of Karpathy's splits", _KARPATHY),
        SourceFile("val2014", "photos of Karpathy's splits", _COCO),
    )

    def sources(self) -> tuple[SourceFile, ...]:
        return self.layout[:2] if self.protocol.split == "val2017" else self.layout[2:]

    def read(self) -> list[CaptionedImage]:
        path = self.path(self.sources()[0])
        if self.protocol.split != "val2017":
            return [
                CaptionedImage(self.image(name, where, "val2014"), texts)
                for where, name, texts in read_karpathy(path, self.protocol.split.removeprefix("karpathy-"))
            ]
        coco = CocoAnnotations(None, None, captions_file=path)
        for error in [*coco.errors, *(photo.error for photo in coco.photos.values() if photo.error is not None)]:
            raise error
        self.counts["captions left out, blank"] = coco.blank_captions
        return [
            CaptionedImage(self.image(photo.file_name, photo.where, "val2017"), tuple(photo.captions))
            for photo in coco.photos.values()
        ]


class Docci(ImageTextRetrieval):
    """DOCCI: photos with one long human description each, 136 words on average; 5,000 of them are the test split.

    `docci_descriptions.jsonlines` has `example_id`, `split`, `image_file` and `description` in each line; images lie in
    `images` (Onoe et al. 2024, https://google.github.io/docci).

    Presets: "default" is the whole test split. "official-pixclip" takes the first 1,000 lines of the file whatever their
    split, which are not the test split, dot products of vectors that are not normalised, and R@1 alone (PixCLIP,
    eval/docci).

    Example:
        >>> Docci.presets["official-pixclip"].split
        'all'
    """

    name: ClassVar[str] = "docci"
    summary: ClassVar[str] = "long descriptions and photos find each other, R@1/5/10 both ways"
    dataset: ClassVar[str] = "DOCCI"
    published: ClassVar[Mapping[str, Mapping[str, int]]] = {
        "DOCCI": {"images": 14_847},
        "DOCCI, train": {"images": 9_647},
        "DOCCI, test": {"images": 5_000},
        "DOCCI, qual_dev": {"images": 100},
        "DOCCI, qual_test": {"images": 100},
    }
    splits: ClassVar[tuple[str, ...]] = ("test", "train", "qual_dev", "qual_test", "all")
    presets: ClassVar[Mapping[str, RetrievalProtocol]] = {
        "default": RetrievalProtocol(split="test", text_kind="long"),
        "official-pixclip": RetrievalProtocol(
            name="official-pixclip", split="all", limit=1000, normalize=False, text_kind="long", recall_at=(1,)
        ),
    }
    layout: ClassVar[tuple[SourceFile, ...]] = (
        SourceFile(
            "docci_descriptions.jsonlines",
            "descriptions",
            "https://storage.googleapis.com/docci/data/docci_descriptions.jsonlines",
        ),
        SourceFile("images", "photos", "https://storage.googleapis.com/docci/data/docci_images.tar.gz"),
    )

    def read(self) -> list[CaptionedImage]:
        items = []
        for where, row in read_json_lines(self.path(self.layout[0])):
            split, name, text = values_of(row, ("split", "image_file", "description"), where)
            if self.protocol.split in ("all", split):
                items.append(CaptionedImage(self.image(name, where, "images"), texts_of([text], where)))
        return items


@dataclass(frozen=True)
class DciProtocol(RetrievalProtocol):
    """`RetrievalProtocol` and what of DCI's texts is the caption.

    Attributes:
        caption_field: "extra_caption", the long description of the whole photo; "short_caption", one sentence; or
            "extended", the two on two lines, what DCI's own code calls the extended caption.

    Example:
        >>> DciProtocol().caption_field
        'extra_caption'
    """

    caption_field: Literal["extra_caption", "short_caption", "extended"] = "extra_caption"


class Dci(ImageTextRetrieval):
    """Densely Captioned Images: SA-1B photos with one long human description each.

    The data folder is the archive's `densely_captioned_images`: `annotations` with one JSON file a photo (`image`,
    `short_caption`, `extra_caption`, ...), `photos` with the photos of SA-1B's `sa_000138.tar`, and, for the splits,
    `splits.json`, which names files of `complete`. This is the layout of DCI's own loader
    (facebookresearch/DCI, dataset/config.py). Photos come in the order of the files' names.

    Presets: "default" and "official-fgclip" take all photos, as FG-CLIP's tables do (7,805 pairs, by a secondary source),
    because the test split has 112 only. FG-CLIP's script for DCI is not public; that it reads `extra_caption` of the files
    in `annotations` by the long path is reported. Some photos have an empty `extra_caption` (about 200, by other readers of
    the data): here they are left out and counted; whether FG-CLIP keeps them is not known.

    Example:
        >>> Dci("data").protocol.text_kind
        'long'
    """

    name: ClassVar[str] = "dci"
    summary: ClassVar[str] = "long descriptions and photos find each other, R@1/5/10 both ways"
    dataset: ClassVar[str] = "Densely Captioned Images"
    splits: ClassVar[tuple[str, ...]] = ("all", "train", "valid", "test")
    presets: ClassVar[Mapping[str, DciProtocol]] = {
        "default": DciProtocol(text_kind="long"),
        "official-fgclip": DciProtocol(name="official-fgclip", text_kind="long"),
    }
    layout: ClassVar[tuple[SourceFile, ...]] = (
        SourceFile("annotations", "descriptions, one JSON file a photo", _DCI, annotations=True),
        SourceFile("splits.json", "which file of complete belongs to which split", _DCI),
        SourceFile("complete", "descriptions of the photos that have a split", _DCI, annotations=True),
        SourceFile("photos", "photos", "sa_000138.tar of https://ai.meta.com/datasets/segment-anything-downloads"),
    )

    def sources(self) -> tuple[SourceFile, ...]:
        return (self.layout[0], self.layout[3]) if self.protocol.split == "all" else self.layout[1:]

    def read(self) -> list[CaptionedImage]:
        if self.protocol.split == "all":
            files = _files(self.data_dir / "annotations", "*.json")
        else:
            path = self.data_dir / "splits.json"
            names = read_json(path, dict).get(self.protocol.split)
            if not isinstance(names, list):
                raise ValueError(
                    f"{path}: key {self.protocol.split!r} is {names!r:.200}; accepted is a list of file names."
                )
            for name in names:
                check_relative_path(str(name), f"{path}: a name of {self.protocol.split!r}", "complete")
            files = sorted(self.data_dir / "complete" / str(name) for name in names)
        items = []
        for path in files:
            keys = ("image", "short_caption", "extra_caption")
            try:
                name, short, extra = values_of(read_json(path, dict), keys, str(path))
            except ValueError as error:
                raise ValueError(
                    f"{error} If the file is another data set's, such as COCO's: give DCI a data folder of its own."
                ) from None
            texts = {"short_caption": short, "extra_caption": extra, "extended": f"{short}\n{extra}"}
            text = texts[self.protocol.caption_field]
            items.append(CaptionedImage(self.image(name, str(path), "photos"), texts_of([text], str(path))))
        return items


@dataclass(frozen=True)
class Urban1kProtocol(RetrievalProtocol):
    """`RetrievalProtocol` and how much of a caption file counts.

    Attributes:
        caption_lines: "all" the lines of a caption's file, or the "first" alone.

    Example:
        >>> Urban1kProtocol().caption_lines
        'all'
    """

    caption_lines: Literal["all", "first"] = "all"


class Urban1k(ImageTextRetrieval):
    """Urban1k: 1,000 city photos with one long caption each (Long-CLIP).

    `image/{name}.jpg` and `caption/{name}.txt`, in the order of the captions' names.

    Presets: "default" is all of it. "official-pixclip" takes dot products of vectors that are not normalised, and R@1 alone
    (PixCLIP, eval/Urban1k). "official-longclip" reads the first line of each caption and tells R@1 alone (Long-CLIP,
    eval/retrieval/Urban1k.py). FG-CLIP does not evaluate on it.

    Example:
        >>> Urban1k.presets["official-longclip"].caption_lines
        'first'
    """

    name: ClassVar[str] = "urban1k"
    summary: ClassVar[str] = "long captions and photos find each other, R@1/5/10 both ways"
    dataset: ClassVar[str] = "Urban1k"
    published: ClassVar[Mapping[str, Mapping[str, int]]] = {"Urban1k": {"images": 1_000}}
    splits: ClassVar[tuple[str, ...]] = ("all",)
    presets: ClassVar[Mapping[str, Urban1kProtocol]] = {
        "default": Urban1kProtocol(text_kind="long"),
        "official-pixclip": Urban1kProtocol(
            name="official-pixclip", limit=1000, normalize=False, text_kind="long", recall_at=(1,)
        ),
        "official-longclip": Urban1kProtocol(
            name="official-longclip", text_kind="long", recall_at=(1,), caption_lines="first"
        ),
    }
    layout: ClassVar[tuple[SourceFile, ...]] = (
        SourceFile(
            "caption",
            "captions, one text file a photo",
            "https://huggingface.co/datasets/BeichenZhang/Urban1k",
            annotations=True,
        ),
        SourceFile("image", "photos", "https://huggingface.co/datasets/BeichenZhang/Urban1k"),
    )

    def read(self) -> list[CaptionedImage]:
        items = []
        for path in _files(self.data_dir / "caption", "*.txt"):
            text = read_text(path).strip()
            if self.protocol.caption_lines == "first":
                text = text.partition("\n")[0].strip()
            items.append(CaptionedImage(self.image(f"{path.stem}.jpg", str(path), "image"), (text,)))
        return items


class ShareGpt4v(ImageTextRetrieval):
    """ShareGPT4V: the first 1,000 records of its captioned photos, one long machine caption each.

    `share-captioner_coco_lcs_sam_1246k_1107.json` is a list of `{"image", "conversations"}`, the caption being the value of
    the second turn; `image` is a path below the data folder. Long-CLIP holds out the first 1,000 records and trains on the
    rest, and the field measures on them. The file has 1.5 GB: with a `limit` no more of it is read than it takes.

    Presets: "default" is those 1,000 records. "official-fgclip" and "official-longclip" tell R@1 alone (FG-CLIP,
    eval/shareg4v_retrieval.py; Long-CLIP, train/sharegpt4v.py). Long-CLIP writes spaces for line breaks, which its
    tokenizer takes for the same.

    Example:
        >>> ShareGpt4v("data").protocol.limit
        1000
    """

    name: ClassVar[str] = "sharegpt4v"
    summary: ClassVar[str] = "long machine captions and photos find each other, R@1/5/10 both ways"
    dataset: ClassVar[str] = "ShareGPT4V, held-out records"
    published: ClassVar[Mapping[str, Mapping[str, int]]] = {"ShareGPT4V, held-out records": {"images": 1_000}}
    splits: ClassVar[tuple[str, ...]] = ("all",)
    presets: ClassVar[Mapping[str, RetrievalProtocol]] = {
        "default": RetrievalProtocol(limit=1000, text_kind="long"),
        "official-fgclip": RetrievalProtocol(name="official-fgclip", limit=1000, text_kind="long", recall_at=(1,)),
        "official-longclip": RetrievalProtocol(name="official-longclip", limit=1000, text_kind="long", recall_at=(1,)),
    }
    layout: ClassVar[tuple[SourceFile, ...]] = (
        SourceFile(
            "share-captioner_coco_lcs_sam_1246k_1107.json",
            "captions",
            "https://huggingface.co/datasets/Lin-Chen/ShareGPT4V; its data page tells where the photos (COCO, LLaVA's "
            "LAION-CC-SBU subset, SA-1B) are",
        ),
    )

    def read(self) -> list[CaptionedImage]:
        items = []
        path = self.path(self.layout[0])
        for number, row in enumerate(read_first_records(path, self.protocol.limit)):
            where = f"{path}: record {number}"
            name, turns = values_of(row, ("image", "conversations"), where)
            if not isinstance(turns, list) or len(turns) < 2:
                raise ValueError(
                    f"{where}: conversations are {turns!r:.200}; accepted are two turns, the caption the second."
                )
            items.append(
                CaptionedImage(self.image(name, where), texts_of(values_of(turns[1], ("value",), where), where))
            )
        return items
