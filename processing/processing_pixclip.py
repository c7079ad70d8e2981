# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Processor of PixCLIP: images with region masks or boxes, and long texts inside the text encoder's template."""

import warnings
from typing import Any, TypedDict

import numpy as np
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .image_processing_pixclip import PixCLIPImageProcessorKwargs


_PLACEHOLDER = "{text}"


class PixCLIPTextKwargs(TypedDict, total=False):
    """Text options of `PixCLIPProcessor` per call.

    Attributes:
        max_length (`int`, defaults to the processor's `text_max_length`):
            Longest tokenised text, template and special tokens included; a longer text is cut.
        padding (`bool` or `str`, defaults to `"longest"`):
            "longest" (or `True`) pads to the longest text of the call, "max_length" to `max_length`. Always on the
            right.
    """

    max_length: int | None
    padding: bool | str | None


class PixCLIPProcessorKwargs(ProcessingKwargs, total=False):
    """Options of `PixCLIPProcessor` per call, by side.

    Attributes:
        text_kwargs (`PixCLIPTextKwargs`): For the texts.
        images_kwargs (`PixCLIPImageProcessorKwargs`): For images and regions.
    """

    text_kwargs: PixCLIPTextKwargs
    images_kwargs: PixCLIPImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": "longest"}}


class PixCLIPProcessor(ProcessorMixin):
    """Joins a `PixCLIPImageProcessor` and a tokenizer into one processor.

    A text is put into `text_template`, which is what the text encoder was tuned with, for example the user turn of a
    chat model, and tokenised as one string. `pooling_mask` says which tokens the model averages, by LLM2Vec's rule:
    the text and what follows it (the rest of the template and the tokenizer's end token), not what precedes it. With
    nothing before the text in the template, all tokens count, a BOS or CLS of the tokenizer included, so that
    pipelines that know only `attention_mask` get the same embedding.

    Control tokens written in the template are control tokens; the same characters inside a text are plain text.

    Args:
        image_processor (`PixCLIPImageProcessor`): Processor of images and regions.
        tokenizer (`PreTrainedTokenizerFast`): Tokenizer of the text encoder; it must give offsets.
        text_template (`str`, defaults to `"{text}"`): Template with exactly one `{text}`. Special tokens that the
            tokenizer adds by itself do not belong into it.
        text_max_length (`int`, defaults to 512): Longest tokenised text, template included.

    Raises:
        ValueError: If the template has not exactly one `{text}`, the length is not a positive int, or the tokenizer
            gives no offsets.

    Example:
        >>> import numpy as np
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> from processing_pixclip import PixCLIPImageProcessor, PixCLIPProcessor
        >>> words = {"[pad]": 0, "[unk]": 1, "user": 2, ":": 3, "a": 4, "red": 5, "cup": 6, "end": 7}
        >>> backend = Tokenizer(models.WordLevel(words, unk_token="[unk]"))
        >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[pad]", unk_token="[unk]")
        >>> processor = PixCLIPProcessor(PixCLIPImageProcessor(), tokenizer, text_template="user: {text} end")
        >>> image = np.zeros((64, 64, 3), dtype=np.uint8)
        >>> batch = processor(image, ["a red cup", "a cup"], boxes=[[0, 0, 32, 32], [8, 8, 64, 64]])
        >>> batch["pooling_mask"]
        tensor([[0, 0, 1, 1, 1, 1],
                [0, 0, 1, 1, 1, 0]])
        >>> batch["mask_values"].shape
        torch.Size([2, 1, 224, 224])
    """

    def __init__(self, image_processor=None, tokenizer=None, text_template="{text}", text_max_length=512, **kwargs):
        if not isinstance(text_template, str) or text_template.count(_PLACEHOLDER) != 1:
            raise ValueError(
                f"text_template is {text_template!r}; it must be a string with exactly one '{_PLACEHOLDER}', for "
                f"example 'Describe: {_PLACEHOLDER}'."
            )
        _check_max_length(text_max_length, "text_max_length")
        super().__init__(image_processor, tokenizer, **kwargs)
        if not tokenizer.is_fast:
            raise ValueError(
                f"tokenizer is a {type(tokenizer).__name__}, which gives no character offsets, and pooling_mask needs "
                f"them; load a fast tokenizer (one with a tokenizer.json)."
            )
        self.text_template = text_template
        self.text_max_length = text_max_length
        self._warned_of_cut = False

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        masks: Any = None,
        boxes: Any = None,
        crops: bool = False,
        return_tensors: str | None = "pt",
        **kwargs,
    ) -> BatchFeature:
        """Processes images with their regions, texts, or both.

        Args:
            images: One image or a list of B images, see `PixCLIPImageProcessor.preprocess`.
            text: One text or a list of T texts. They need not pair with images or regions.
            masks: Regions of the images as masks, see `PixCLIPImageProcessor.preprocess`.
            boxes: Regions of the images as boxes, xyxy in pixels, see `PixCLIPImageProcessor.preprocess`.
            crops: Whether to add the context crop of each region.
            return_tensors: "pt" for `torch.Tensor`, "np" or `None` for arrays.
            **kwargs: Options of `PixCLIPImageProcessorKwargs` and `PixCLIPTextKwargs` for this call, flat or in dicts
                `images_kwargs` and `text_kwargs`.

        Returns:
            `BatchFeature` with the image processor's outputs, if images are given, and with `input_ids`,
            `attention_mask` and `pooling_mask`, each (T, L), int64, right-padded, if text is given.

        Raises:
            ValueError: If an input is malformed; the message names the item, for example `masks[2][0]` or `text[3]`.
            TypeError: If a keyword is unknown.
        """
        self._check_keywords(kwargs)
        if images is None and text is None:
            raise ValueError("images and text are both None; pass at least one of them.")
        if images is None and (masks is not None or boxes is not None or crops):
            raise ValueError("masks, boxes and crops need images.")
        # The tokenizer's own init arguments are left out: its max_length must not override text_max_length.
        merged = self._merge_kwargs(PixCLIPProcessorKwargs, **kwargs)
        data = {}
        if images is not None:
            data.update(self.image_processor(images, masks=masks, boxes=boxes, crops=crops, **merged["images_kwargs"]))
        if text is not None:
            options = merged["text_kwargs"]
            data.update(self._pad(self.tokenize_text(text, options.get("max_length")), options))
        return BatchFeature(data=data, tensor_type=return_tensors)

    def tokenize_text(self, text: str | list[str], max_length: int | None = None) -> dict[str, list[list[int]]]:
        """Puts texts into the template and tokenises them, without padding.

        A text that is too long loses tokens at its own end; the template and the special tokens stay. The first time
        this happens the processor warns.

        Args:
            text: One text or a list of T texts, surrounding whitespace is ignored.
            max_length: Longest result in tokens, defaults to `text_max_length`.

        Returns:
            `input_ids`, `attention_mask` and `pooling_mask`: T lists of ints each, of different lengths.

        Raises:
            ValueError: If a text is no string or empty, or `max_length` leaves no room for a text in the template.
        """
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, (list, tuple)) or len(texts) == 0:
            raise ValueError(f"text is {texts!r}; pass a string or a list of at least one string.")
        for index, item in enumerate(texts):
            if not isinstance(item, str):
                raise ValueError(f"text[{index}] is a {type(item).__name__}, not a string.")
            if not item.strip():
                raise ValueError(f"text[{index}] is empty ({item!r}); remove it together with its region.")
            try:
                item.encode("utf-8")
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"text[{index}] is not Unicode text: {error}. Half a surrogate pair, such as '\\ud83d', comes from "
                    f"cutting or decoding a text wrongly."
                ) from error
        max_length = self.text_max_length if max_length is None else max_length
        _check_max_length(max_length, "max_length")

        stripped = [item.strip() for item in texts]
        pieces = self._tokenize_in_template(stripped)
        batch = {"input_ids": [], "attention_mask": [], "pooling_mask": []}
        cut = []
        for index, (head, body, tail) in enumerate(pieces):
            room = max_length - len(head) - len(tail)
            if room < 1:
                raise ValueError(
                    f"max_length={max_length} leaves no room for text[{index}]: the template and special tokens alone "
                    f"take {len(head) + len(tail)} tokens. Raise max_length or text_max_length."
                )
            if len(body) > room:
                cut.append((index, len(head) + len(body) + len(tail)))
            ids = head + body[:room] + tail
            skipped = len(head) if self.text_template.index(_PLACEHOLDER) > 0 else 0
            batch["input_ids"].append(ids)
            batch["attention_mask"].append([1] * len(ids))
            batch["pooling_mask"].append([0] * skipped + [1] * (len(ids) - skipped))
        if cut and not self._warned_of_cut:
            self._warned_of_cut = True
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts are longer than {max_length} tokens and were cut, the first is "
                f"text[{cut[0][0]}] with {cut[0][1]} tokens. Raise text_max_length if the text encoder takes more. "
                f"This processor warns once.",
                stacklevel=2,
            )
        return batch

    def _tokenize_in_template(self, texts: list[str]) -> list[tuple[list[int], list[int], list[int]]]:
        """Token ids of each text, split in those before it (with BOS), its own, and those after it (with EOS)."""
        prefix, _, suffix = self.text_template.partition(_PLACEHOLDER)
        encoded = self._encode([prefix + text + suffix for text in texts], return_offsets_mapping=True)
        tokens = self.tokenizer.added_tokens_decoder.items()
        control = {index for index, token in tokens if token.special} - {self.tokenizer.unk_token_id}
        pieces = []
        for row, text in enumerate(texts):
            ids, offsets = encoded["input_ids"][row], encoded["offset_mapping"][row]
            in_string = [index for index, sequence in enumerate(encoded.sequence_ids(row)) if sequence is not None]
            start, end = len(prefix), len(prefix) + len(text)
            own = [index for index in in_string if offsets[index][0] < end and offsets[index][1] > start]
            if not own:
                raise ValueError(f"text[{row}] ({text[:80]!r}) has no character that the tokenizer keeps; remove it.")
            first, last = own[0], own[-1] + 1
            if offsets[own[-1]][1] > end:
                # A token over the end of the text goes with the suffix, so that cutting the text keeps it whole.
                last -= 1
            if control.isdisjoint(ids) or control.isdisjoint(ids[index] for index in own):
                pieces.append((ids[:first], ids[first:last], ids[last:]))
            else:
                pieces.append(self._tokenize_as_plain_text(row, text, prefix, suffix, control))
        return pieces

    def _tokenize_as_plain_text(self, row: int, text: str, prefix: str, suffix: str, control: set[int]) -> tuple:
        # One call tokenises a whole string one way, so a text that spells a control token is tokenised by itself.
        body = self._encode([text], add_special_tokens=False, split_special_tokens=True)["input_ids"][0]
        if not control.isdisjoint(body):
            spelled = self.tokenizer.convert_ids_to_tokens(sorted(control.intersection(body)))
            raise ValueError(
                f"text[{row}] contains {', '.join(map(repr, spelled))}, which this tokenizer has only as control "
                f"tokens; remove it from the text."
            )
        head = self._encode([prefix], add_special_tokens=False)["input_ids"][0] if prefix else []
        tail = self._encode([suffix], add_special_tokens=False)["input_ids"][0] if suffix else []
        around = self._encode(["a"])
        sequence = around.sequence_ids(0)
        inner = [index for index, value in enumerate(sequence) if value is not None]
        ids = around["input_ids"][0]
        return ids[: inner[0]] + head, body, tail + ids[inner[-1] + 1 :]

    def _encode(self, strings: list[str], **kwargs):
        return self.tokenizer(strings, padding=False, truncation=False, verbose=False, **kwargs)

    def _pad(self, batch: dict[str, list[list[int]]], options: dict) -> dict[str, np.ndarray]:
        padding = options["padding"]
        if padding not in (True, "longest", "max_length"):
            raise ValueError(f"padding is {padding!r}; accepted are True, 'longest' and 'max_length'.")
        if padding == "max_length":
            length = options.get("max_length") or self.text_max_length
        else:
            length = max(map(len, batch["input_ids"]))
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        if pad_id is None:
            raise ValueError(
                "the tokenizer has neither a pad token nor an eos token to pad with; set `tokenizer.pad_token`."
            )
        padded = {}
        for name, rows in batch.items():
            padded[name] = np.full((len(rows), length), pad_id if name == "input_ids" else 0, dtype=np.int64)
            for row, values in enumerate(rows):
                padded[name][row, : len(values)] = values
        return padded

    def _check_keywords(self, kwargs: dict) -> None:
        image_names = set(PixCLIPImageProcessorKwargs.__annotations__)
        text_names = set(PixCLIPTextKwargs.__annotations__)
        groups = {"images_kwargs": image_names, "text_kwargs": text_names}
        unknown = set(kwargs) - image_names - text_names - set(groups)
        for group, accepted in groups.items():
            if not isinstance(kwargs.get(group) or {}, dict):
                raise TypeError(f"{group} is a {type(kwargs[group]).__name__}; pass a dict of options.")
            unknown |= {f"{group}[{name!r}]" for name in set(kwargs.get(group) or {}) - accepted}
        if unknown:
            raise TypeError(
                f"{type(self).__name__} received the unknown keyword {', '.join(sorted(unknown))}; accepted are "
                f"for images {', '.join(sorted(image_names))}, for text {', '.join(sorted(text_names))}."
            )


def _check_max_length(value: Any, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive int (a number of tokens).")
