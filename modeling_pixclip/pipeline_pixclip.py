# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Pipelines over image regions: which label fits each region, and the embedding of each region."""

import os
import re
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Pipeline
from transformers.image_utils import load_image

from .pipeline_inputs import LazyResults, PreparedInputs, PreparedStream, RefusedInput


# What else the region readers of processing_pixclip put into a sample; no pipeline reads it.
_READER_KEYS = frozenset(
    [
        "image_id",
        "captions",
        "texts",
        "object_texts",
        "categories",
        "long_captions",
        "hard_negatives",
        "epoch",
        "evaluation",
    ]
)
_POOLINGS = ("cls", "mask", "roi")


class _RegionPipeline(Pipeline):
    """What both pipelines share: images with any number of regions, in batches, to one embedding a region."""

    # None: what a folder lacks is left out. One without a tokenizer has an image processor alone, which is enough to embed.
    _load_processor = None
    _load_image_processor = None
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model: Any, *args, processor: Any = None, image_processor: Any = None, **kwargs):
        if getattr(model.config, "model_type", None) != "pixclip":
            raise ValueError(
                f"the model is a {type(model).__name__}; {type(self).__name__} takes a whole PixCLIP model (PixCLIPModel, "
                "PixCLIPForPreTraining), as a tower alone does not map regions and texts to one space."
            )
        if processor is not None and not hasattr(processor, "tokenizer"):
            processor, image_processor = None, processor
        if processor is not None:
            image_processor = processor.image_processor
        name = model.name_or_path
        if image_processor is None:
            raise ValueError(
                f"there is no processor of images beside the model {name!r}; pass processor=, a PixCLIPProcessor, or "
                "image_processor=, a PixCLIPImageProcessor."
            )
        if processor is None and self._reads_texts:
            raise ValueError(
                f"there is no tokenizer beside the model {name!r}, or its processor cannot be loaded, and labels go "
                "through one. Pass processor=, a PixCLIPProcessor with the tokenizer of the model's text encoder; "
                "region-feature-extraction does without."
            )
        super().__init__(model, *args, processor=processor, image_processor=image_processor, **kwargs)

    def __call__(self, inputs: Any, masks: Any = None, boxes: Any = None, **kwargs) -> Any:
        if isinstance(inputs, tuple) or getattr(inputs, "ndim", 0) == 4:
            inputs = list(inputs)
        regions = {name: values for name, values in (("masks", masks), ("boxes", boxes)) if values is not None}
        if regions:
            inputs = _with_regions(inputs, regions)
        if isinstance(inputs, list) and not inputs:
            return []
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        timeout: float | None = None,
        images_kwargs: dict | None = None,
        pooling: str | None = None,
        mask_input: bool | None = None,
        region_batch_size: int | None = None,
        local_files_only: bool | None = None,
        **unknown,
    ) -> tuple[dict, dict, dict]:
        if unknown:
            raise TypeError(
                f"{type(self).__name__} received the unknown keyword {', '.join(sorted(unknown))}; accepted are masks, "
                f"boxes, {', '.join(self._keywords)}, batch_size and num_workers."
            )
        if pooling not in (None, *_POOLINGS):
            raise ValueError(f"pooling is {pooling!r}; accepted are {', '.join(map(repr, _POOLINGS))} and None.")
        if region_batch_size is not None and (type(region_batch_size) is not int or region_batch_size < 1):
            raise ValueError(f"region_batch_size is {region_batch_size!r}; accepted are 1 and more.")
        if images_kwargs is not None:
            accepted = self.image_processor.valid_kwargs.__annotations__
            if not isinstance(images_kwargs, dict) or not images_kwargs.keys() <= accepted.keys():
                raise ValueError(
                    f"images_kwargs is {images_kwargs!r}; accepted is a dict of options of the image processor: "
                    f"{', '.join(accepted)}."
                )
        prepare = {"timeout": timeout, "images_kwargs": images_kwargs}
        embed = {"pooling": pooling, "mask_input": mask_input, "region_batch_size": region_batch_size}
        return _given(prepare), _given(embed), {}

    def preprocess(
        self, item: Any, place: int | None = None, timeout: float | None = None, images_kwargs: dict | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Makes the tensors of one image and its regions.

        Args:
            item: An image, or a dict of `image` and maybe `masks` and `boxes`.
            place (`int`, *optional*): Its place in the list of inputs, which error messages name.
            timeout (`float`, *optional*): Seconds to wait for an image behind a URL.
            images_kwargs (`dict`, *optional*): Options of the image processor.

        Returns:
            `dict` of `torch.Tensor`: What the processor makes of it.
        """
        where = "the input" if place is None else f"input {place}"
        if isinstance(item, dict):
            unknown = item.keys() - {"image", "masks", "boxes"} - _READER_KEYS
            if unknown or "image" not in item:
                raise ValueError(
                    f"{where} is a dict with the keys {sorted(map(str, item))}; accepted are 'image', which it must "
                    "have, 'masks' and 'boxes'."
                )
            given = {name: item[name] for name in ("masks", "boxes") if item.get(name) is not None}
            image = item["image"]
        else:
            given, image = {}, item
        if image is None and place is None:
            raise ValueError("images is None; pass an image, a dict of 'image' and its regions, or a list of them.")
        image = _load_from_afar(image, f"images[{place or 0}]", timeout)
        process = self.image_processor if self.processor is None else self.processor
        if place is None:
            return dict(process(images=image, **given, return_tensors="pt", **(images_kwargs or {})))
        given = {name: [values] for name, values in given.items()}
        try:
            return dict(process(images=[image], **given, return_tensors="pt", **(images_kwargs or {})))
        except ValueError as error:
            # The processor saw a list of one.
            message = re.sub(r"\b(images|masks|boxes)\[0\]", lambda match: f"{match[1]}[{place}]", str(error))
            raise ValueError(message) from error

    def _forward(
        self,
        model_inputs: list[dict[str, torch.Tensor]],
        pooling: str | None = None,
        mask_input: bool | None = None,
        region_batch_size: int = 64,
        **kwargs,
    ) -> list[torch.Tensor]:
        """Embeddings of each input: (N, D), one row a region, or (1, D) without regions; float32, not normalised."""
        pooling, mask_input = self._region_features(pooling, mask_input)
        embeds = [torch.empty(0, self.model.config.projection_dim, device=self.device) for _ in model_inputs]
        groups = {}
        for place, tensors in enumerate(model_inputs):
            regions = tensors.get("mask_values")
            if regions is None or len(regions):
                groups.setdefault((regions is None, tensors["pixel_values"].shape[1:]), []).append(place)
        for (whole, _), places in groups.items():
            pixels = torch.cat([model_inputs[place]["pixel_values"] for place in places]).to(self._image_dtype)
            if whole:
                rows = self.model.get_image_features(pixels, return_dict=True).pooler_output
                counts = [1] * len(places)
            else:
                masks, boxes = (
                    torch.cat([model_inputs[place][name] for place in places])
                    for name in ("mask_values", "region_boxes")
                )
                counts = [len(model_inputs[place]["mask_values"]) for place in places]
                image = torch.repeat_interleave(
                    torch.arange(len(places), device=pixels.device), torch.tensor(counts, device=pixels.device)
                )
                rows = self._embed_regions(
                    pixels, masks.to(pixels.dtype), boxes, image, pooling, mask_input, region_batch_size
                )
            for place, part in zip(places, rows.float().split(counts), strict=True):
                embeds[place] = part
        return embeds

    @property
    def _image_dtype(self) -> torch.dtype:
        # The model's own dtype may be that of its text backbone.
        return self.model.visual_projection.weight.dtype

    def _region_features(self, pooling: str | None, mask_input: bool | None) -> tuple[str, bool]:
        """Pooling and mask_input with the defaults that the model's objective gives them."""
        config = self.model.config
        terms = config.term_weights
        hard = {"hard_negative", "ranking_margin"} & terms.keys() and config.hard_negative_features == "global"
        mask_enters = bool({"global", "crop", "local"} & terms.keys() or hard)
        pooling = pooling or ("cls" if mask_enters else config.region_pooling)
        if pooling == "cls":
            if mask_input is False:
                raise ValueError(
                    "mask_input=False leaves pooling='cls' nothing that tells one region from another; choose pooling="
                    "'mask' or 'roi'."
                )
            return pooling, True
        return pooling, mask_enters if mask_input is None else mask_input

    def _embed_regions(self, pixels, masks, boxes, image, pooling, mask_input, region_batch_size) -> torch.Tensor:
        # Without masks in the tower there is one pass an image, however many regions; with them one pass a region.
        size = region_batch_size if mask_input else len(masks)
        rows = []
        for part in torch.arange(len(masks), device=pixels.device).split(size):
            own, index = image[part].unique(return_inverse=True)
            if pooling == "cls":
                outputs = self.model.get_image_features(pixels[own], masks[part], index, return_dict=True)
            else:
                outputs = self.model.get_region_features(
                    pixels[own],
                    masks[part],
                    index,
                    boxes[part],
                    pooling=pooling,
                    mask_input=mask_input,
                    return_dict=True,
                )
            rows.append(outputs.pooler_output)
        return torch.cat(rows)

    def _for_one_call(self, forward_params: dict) -> dict:
        """What `_forward` takes in every batch of a call, made once."""
        return forward_params

    def _answer(self, batch: list[dict | RefusedInput], forward_params: dict, postprocess_params: dict) -> list:
        for item in batch:
            if isinstance(item, RefusedInput):
                raise item.kind(item.message)
        outputs = self.forward(batch, **forward_params)
        return [self.postprocess(output, **postprocess_params) for output in outputs]

    def run_single(self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> Any:
        forward_params = self._for_one_call(forward_params)
        return self._answer([self.preprocess(inputs, **preprocess_params)], forward_params, postprocess_params)[0]

    def get_iterator(
        self, inputs, num_workers: int, batch_size: int, preprocess_params, forward_params, postprocess_params
    ) -> LazyResults:
        # The base class pads what it batches; regions are not padded.
        forward_params = self._for_one_call(forward_params)
        if hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__"):
            prepared, count = PreparedInputs(self, inputs, preprocess_params), len(inputs)
        else:
            # Several workers would each read the whole stream.
            prepared, count = PreparedStream(self, inputs, preprocess_params), None
            num_workers = min(num_workers, 1)
        loader = DataLoader(prepared, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
        return LazyResults(loader, count, lambda batch: self._answer(batch, forward_params, postprocess_params))

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """
        Saves model, processor and code, so that the folder loads as this pipeline, also where the package is missing.

        Args:
            save_directory (`str` or `os.PathLike`): Folder, made if it does not exist.
            **kwargs: Those of [`~PreTrainedModel.save_pretrained`].
        """
        self.model.save_pretrained(save_directory, **kwargs)
        hub = ("push_to_hub", "repo_id", "commit_message", "private", "token", "revision", "create_pr")
        processor = self.image_processor if self.processor is None else self.processor
        processor.save_pretrained(save_directory, **{name: kwargs[name] for name in hub if name in kwargs})

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:
        """
        Pushes model and code, and then the processor, to the Hub.

        Args:
            repo_id (`str`): Name of the repository, made if it does not exist.
            **kwargs: Those of [`~PreTrainedModel.push_to_hub`].

        Returns:
            What the model's `push_to_hub` returns: its commit.

        Raises:
            ValueError: If the text backbone cannot be left out, see the model's `push_to_hub`.
        """
        commit = self.model.push_to_hub(repo_id, **kwargs)
        if getattr(commit, "pr_revision", None):
            kwargs |= {"create_pr": False, "revision": commit.pr_revision}
        (self.image_processor if self.processor is None else self.processor).push_to_hub(repo_id, **kwargs)
        return commit


class ZeroShotRegionClassificationPipeline(_RegionPipeline):
    """
    Zero-shot classification of image regions: which of the given labels fits each region best.

    Task `"zero-shot-region-classification"`. The labels are put into `hypothesis_template` and then, by the processor,
    into the text encoder's own template, and are encoded once a call. Without masks and boxes the whole image is
    classified.

    Example:
        >>> import numpy as np
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import LlamaConfig, PreTrainedTokenizerFast, pipeline
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPModel, PixCLIPImageProcessor, PixCLIPProcessor
        >>> words = {"[pad]": 0, "[unk]": 1, "a": 2, "cup": 3, "dog": 4}
        >>> backend = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
        >>> text = LlamaConfig(vocab_size=5, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPModel(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> processor = PixCLIPProcessor(PixCLIPImageProcessor(), tokenizer)
        >>> classify = pipeline("zero-shot-region-classification", model=model, processor=processor, device="cpu")
        >>> photo = np.zeros((40, 60, 3), dtype=np.uint8)
        >>> regions = classify(photo, boxes=[[0, 0, 30, 20], [6, 5, 60, 40]], candidate_labels=["a cup", "a dog"])
        >>> len(regions), sorted(entry["label"] for entry in regions[0])
        (2, ['a cup', 'a dog'])
    """

    _keywords = (
        "candidate_labels",
        "hypothesis_template",
        "long_text",
        "pooling",
        "mask_input",
        "region_batch_size",
        "timeout",
        "images_kwargs",
    )

    _reads_texts = True

    def __call__(
        self, inputs: Any, candidate_labels: list[str] | None = None, *, masks: Any = None, boxes: Any = None, **kwargs
    ) -> Any:
        """
        Scores each region of each image against the labels.

        Args:
            inputs: An image; a dict of `image` and maybe `masks` and `boxes`; or a list, generator or data set of
                either. An image is what the processor takes, a URL, or an image in base64. A sample of the package's
                region readers is such a dict.
            candidate_labels (`list[str]`): The labels, each once. Optional where the pipeline was made with them.
            masks (*optional*): Regions of the image as masks, in any form that the processor takes; with a list of
                images one entry an image.
            boxes (*optional*): Regions as boxes, xyxy in pixels, in the same way.
            hypothesis_template (`str`, *optional*, defaults to `"This is a photo of {}."`): `"{}"` stands for the label.
            long_text (`bool`, *optional*, defaults to `False`): Encode the labels on the text tower's long path, if it
                has one.
            pooling (`"cls"`, `"mask"` or `"roi"`, *optional*): The region's embedding: that of the masked image, or
                pooled from the dense map under the mask or by RoIAlign of the box. Defaults to how the model was trained:
                `"cls"` where an objective lets masks enter the tower, else the configuration's `region_pooling` (FG-CLIP).
            mask_input (`bool`, *optional*): With `"mask"` and `"roi"`, let the mask also enter the tower. Defaults to how
                the model was trained.
            region_batch_size (`int`, *optional*, defaults to 64): Regions of a forward pass, where masks enter the tower.
            timeout (`float`, *optional*): Seconds to wait for an image behind a URL; without it there is no limit.
            images_kwargs (`dict`, *optional*): Options of the image processor for this call.
            batch_size (`int`, *optional*, defaults to 1): Images of a forward pass.
            num_workers (`int`, *optional*, defaults to 0): Processes that prepare images.

        Returns:
            For each region a list of `{"score": float, "label": str}`, the best first. For one image a list of N such
            lists, for an image without masks and boxes one such list; for many images a list (for a generator or data
            set an iterator) of them. Scores are a softmax over the labels, or, of a model trained by the sigmoid loss, a
            probability for each label by itself.

        Raises:
            ValueError: If the processor refuses an image, a region or a label, with its message; if labels are missing or
                equal, or the template has no `{}`.
            TypeError: If a keyword is unknown.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        return super().__call__(inputs, masks, boxes, **kwargs)

    def _sanitize_parameters(
        self,
        candidate_labels: list[str] | None = None,
        hypothesis_template: str | None = None,
        long_text: bool | None = None,
        **kwargs,
    ) -> tuple[dict, dict, dict]:
        prepare, forward, finish = super()._sanitize_parameters(**kwargs)
        labels = {
            "candidate_labels": candidate_labels,
            "hypothesis_template": hypothesis_template,
            "long_text": long_text,
        }
        return prepare, {**forward, **_given(labels)}, finish

    def _for_one_call(self, forward_params: dict) -> dict:
        options = dict(forward_params)
        labels = _check_labels(options.pop("candidate_labels", None))
        template = options.pop("hypothesis_template", "This is a photo of {}.")
        if not isinstance(template, str) or "{}" not in template:
            raise ValueError(
                f"hypothesis_template is {template!r}; it must be a string with '{{}}' where the label goes."
            )
        if self.model.config.loss_type == "sigmoid" and not hasattr(self.model, "logit_bias"):
            raise ValueError(
                f"The model was trained by the sigmoid loss, and {type(self.model).__name__} does not hold its bias. Load "
                "it by AutoModelForPreTraining, as the pipeline does when it is given the folder."
            )
        text_embeds = self.model.encode_text(
            [template.replace("{}", label) for label in labels],
            self.processor,
            long_text=options.pop("long_text", False),
            output="tensor",
        )
        return {**options, "labels": labels, "text_embeds": text_embeds.to(self.device)}

    def _forward(self, model_inputs: list[dict], labels: list[str], text_embeds: torch.Tensor, **kwargs) -> list[dict]:
        model, config = self.model, self.model.config
        pooled = self._region_features(kwargs.get("pooling"), kwargs.get("mask_input"))[0] != "cls"
        outputs = []
        for tensors, embeds in zip(model_inputs, super()._forward(model_inputs, **kwargs), strict=True):
            whole = "mask_values" not in tensors
            # Features pooled from the dense map were trained with a temperature of their own (FG-CLIP).
            own = pooled and not whole and hasattr(model, "logit_scale_region")
            scale = (model.logit_scale_region if own else model.logit_scale).float().exp()
            logits = scale.clamp(max=config.logit_scale_max) * nn.functional.normalize(embeds, dim=-1) @ text_embeds.T
            if config.loss_type == "sigmoid":
                scores = (logits + model.logit_bias.float()).sigmoid()
            else:
                scores = logits.softmax(dim=-1)
            outputs.append({"scores": scores, "labels": labels, "whole": whole})
        return outputs

    def postprocess(self, model_outputs: dict[str, Any]) -> list:
        """Sorted scores of each region (N lists), or of the whole image (one list)."""
        answers = [
            sorted(
                ({"score": score, "label": label} for score, label in zip(row, model_outputs["labels"], strict=True)),
                key=lambda entry: -entry["score"],
            )
            for row in model_outputs["scores"].tolist()
        ]
        return answers[0] if model_outputs["whole"] else answers


class RegionFeatureExtractionPipeline(_RegionPipeline):
    """
    Embeddings of image regions, in the space that texts are compared in.

    Task `"region-feature-extraction"`. Without masks and boxes the whole image is embedded.

    Example:
        >>> import numpy as np
        >>> from tokenizers import Tokenizer, models
        >>> from transformers import LlamaConfig, PreTrainedTokenizerFast, pipeline
        >>> from modeling_pixclip import PixCLIPConfig, PixCLIPModel, PixCLIPImageProcessor, PixCLIPProcessor
        >>> backend = Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1}, unk_token="[unk]"))
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
        >>> text = LlamaConfig(vocab_size=5, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
        >>> model = PixCLIPModel(PixCLIPConfig(vision_config=vision, text_config={"backbone_config": text}))
        >>> processor = PixCLIPProcessor(PixCLIPImageProcessor(), tokenizer)
        >>> embed = pipeline("region-feature-extraction", model=model, processor=processor, device="cpu")
        >>> photo = np.zeros((40, 60, 3), dtype=np.uint8)
        >>> embed(photo, boxes=[[0, 0, 30, 20], [6, 5, 60, 40]], return_tensors=True).shape
        torch.Size([2, 512])
    """

    _keywords = (
        "normalize",
        "return_tensors",
        "pooling",
        "mask_input",
        "region_batch_size",
        "timeout",
        "images_kwargs",
    )

    _reads_texts = False

    def __call__(self, inputs: Any, *, masks: Any = None, boxes: Any = None, **kwargs) -> Any:
        """
        Embeds each region of each image.

        Args:
            inputs: As in [`ZeroShotRegionClassificationPipeline`], as are `masks`, `boxes`, `pooling`, `mask_input`,
                `region_batch_size`, `timeout`, `images_kwargs`, `batch_size` and `num_workers`.
            masks (*optional*): Regions as masks.
            boxes (*optional*): Regions as boxes, xyxy in pixels.
            normalize (`bool`, *optional*, defaults to `True`): Scale embeddings to length 1, so that a dot product is the
                cosine similarity.
            return_tensors (`bool`, *optional*, defaults to `False`): Return a `torch.Tensor` an image and not lists.

        Returns:
            For each image its N regions' embeddings (N, D), float32, N lists of D floats or a tensor on the CPU; (1, D)
            for an image without masks and boxes.

        Raises:
            ValueError: If the processor refuses an image or a region, with its message.
            TypeError: If a keyword is unknown.
        """
        return super().__call__(inputs, masks, boxes, **kwargs)

    def _sanitize_parameters(
        self, normalize: bool | None = None, return_tensors: bool | Literal["pt"] | None = None, **kwargs
    ) -> tuple[dict, dict, dict]:
        prepare, forward, finish = super()._sanitize_parameters(**kwargs)
        if return_tensors not in (None, False, True, "pt"):
            raise ValueError(f"return_tensors is {return_tensors!r}; accepted are True, False and 'pt'.")
        return prepare, forward, {**finish, **_given({"normalize": normalize, "return_tensors": return_tensors})}

    def postprocess(
        self, model_outputs: torch.Tensor, normalize: bool = True, return_tensors: bool | str = False
    ) -> torch.Tensor | list[list[float]]:
        """The embeddings of one image as the caller wants them."""
        embeds = nn.functional.normalize(model_outputs, dim=-1) if normalize else model_outputs
        return embeds if return_tensors else embeds.tolist()


def _given(options: dict) -> dict:
    return {name: value for name, value in options.items() if value is not None}


def _check_labels(labels: Any) -> list[str]:
    if not isinstance(labels, (list, tuple)) or not labels:
        raise ValueError(f"candidate_labels is {labels!r}; pass a list of at least one string.")
    for index, label in enumerate(labels):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"candidate_labels[{index}] is {label!r}; a label is a string that is not empty.")
        if label in labels[:index]:
            raise ValueError(
                f"candidate_labels[{index}] is {label!r}, as is candidate_labels[{labels.index(label)}]; equal labels "
                "would share one score. Pass each label once."
            )
    return list(labels)


def _with_regions(inputs: Any, regions: dict[str, Any]) -> Any:
    """Inputs as dicts that hold their regions."""
    if not isinstance(inputs, list):
        if isinstance(inputs, dict) or isinstance(inputs, Dataset) or hasattr(inputs, "__next__"):
            raise ValueError(
                f"{' and '.join(regions)} are given beside a {type(inputs).__name__}: put them into its dicts "
                "{'image': ..., 'masks': ..., 'boxes': ...}."
            )
        return {"image": inputs, **regions}
    for name, values in regions.items():
        if not hasattr(values, "__len__") or isinstance(values, dict) or not hasattr(values, "__getitem__"):
            raise ValueError(
                f"{name} is a {type(values).__name__}, but images is a list of {len(inputs)}: pass a list with one entry "
                "per image, [] where there is no region."
            )
        if len(values) != len(inputs):
            raise ValueError(
                f"{name} has {len(values)} entries, but images has {len(inputs)}: pass a list with one entry per image, [] "
                "where there is no region."
            )
    for index, item in enumerate(inputs):
        if isinstance(item, dict):
            raise ValueError(
                f"{' and '.join(regions)} are given beside dicts, of which input {index} is one: put them into the dicts."
            )
    return [{"image": image, **{name: regions[name][index] for name in regions}} for index, image in enumerate(inputs)]


def _load_from_afar(image: Any, name: str, timeout: float | None) -> Any:
    """Opens what the processor does not: a URL or an image in base64."""
    if not isinstance(image, str) or os.path.isfile(image):
        return image
    afar = image.startswith(("http://", "https://", "data:"))
    try:
        return load_image(image, timeout=timeout)
    # Networks and decoders raise errors of many kinds.
    except Exception as error:
        if not afar:
            # A path without a file: the processor says so.
            return image
        detail = "" if image in str(error) else f": {error}"
        raise ValueError(f"{name} cannot be loaded from {image[:80]!r}: {type(error).__name__}{detail}") from error


# Of the two model classes, the one that also holds a sigmoid loss's bias and the regions' own temperature.
CUSTOM_PIPELINES = {
    "zero-shot-region-classification": {
        "impl": "pipeline_pixclip.ZeroShotRegionClassificationPipeline",
        "pt": ["AutoModelForPreTraining"],
        "type": "multimodal",
    },
    "region-feature-extraction": {
        "impl": "pipeline_pixclip.RegionFeatureExtractionPipeline",
        "pt": ["AutoModelForPreTraining"],
        "type": "multimodal",
    },
}

__all__ = ["RegionFeatureExtractionPipeline", "ZeroShotRegionClassificationPipeline"]
