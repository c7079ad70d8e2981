# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Processor of PixCLIP: images with region masks or boxes, and long texts inside the text encoder's template."""

import re
import warnings
from typing import Any, Literal, TypedDict

import numpy as np
from transformers.image_processing_utils import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .image_processing_base_pixclip import PixCLIPImageProcessorKwargs
from .text_presets import TextPreset, get_text_preset


_PLACEHOLDER = "{text}"
_POOLINGS = ("text", "all", "last")
_DEFAULTS = TextPreset(text_template=_PLACEHOLDER, text_pooling="text", text_max_length=512, text_config={})
_TEXT_OPTIONS = ("text_template", "text_pooling", "text_max_length")


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
    chat model, and tokenised as one string. `pooling_mask` says which of its tokens become the vector.

    Control tokens written in the template are control tokens; the same characters inside a text are plain text. A
    token that the tokenizer makes of the end of the header and the start of a text belongs to the text.

    Args:
        image_processor (`PixCLIPImageProcessor`): Processor of images and regions.
        tokenizer (`PreTrainedTokenizerFast`): Tokenizer of the text encoder; it must give offsets.
        text_template (`str`, defaults to that of `text_preset`, or `"{text}"`): Template with exactly one `{text}`.
            Special tokens that the tokenizer adds by itself do not belong into it.
        text_max_length (`int`, defaults to that of `text_preset`, or 512): Longest tokenised text, template included.
        text_pooling (`"text"`, `"all"` or `"last"`, defaults to that of `text_preset`, or `"text"`): Which tokens
            `pooling_mask` selects. `"text"` is LLM2Vec's rule: the text and what follows it (the rest of the template
            and the tokenizer's end token), not what precedes it; with nothing before the text in the template, all
            tokens, a BOS or CLS of the tokenizer included, so that pipelines that know only `attention_mask` get the
            same embedding. `"all"`: every token. `"last"`: the last one, which has to be an end token or another that
            follows the text.
        text_preset (`str`, *optional*): Name of what a known text encoder takes, see `get_text_preset`. Only what it
            stands for is kept and saved, so a saved processor never changes with a preset.

    Raises:
        ValueError: If the template has not exactly one `{text}` or needs control tokens that the tokenizer lacks, the
            length is not a positive int, the pooling or the preset is unknown, `"last"` finds no token after the text,
            or the tokenizer gives no offsets.

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

    valid_processor_kwargs = PixCLIPProcessorKwargs

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        text_template: str | None = None,
        text_max_length: int | None = None,
        text_pooling: Literal["text", "all", "last"] | None = None,
        text_preset: str | None = None,
        **kwargs,
    ):
        preset = _DEFAULTS if text_preset is None else get_text_preset(text_preset)
        template = preset.text_template if text_template is None else text_template
        if not isinstance(template, str) or template.count(_PLACEHOLDER) != 1:
            raise ValueError(
                f"text_template is {template!r}; it must be a string with exactly one '{_PLACEHOLDER}', for "
                f"example 'Describe: {_PLACEHOLDER}'."
            )
        max_length = preset.text_max_length if text_max_length is None else text_max_length
        _check_max_length(max_length, "text_max_length")
        pooling = preset.text_pooling if text_pooling is None else text_pooling
        if pooling not in _POOLINGS:
            raise ValueError(f"text_pooling is {pooling!r}; accepted are {', '.join(map(repr, _POOLINGS))}.")
        super().__init__(image_processor, tokenizer, **kwargs)
        if not tokenizer.is_fast:
            raise ValueError(
                f"tokenizer is a {type(tokenizer).__name__}, which gives no character offsets, and pooling_mask needs "
                f"them; load a fast tokenizer (one with a tokenizer.json)."
            )
        self.text_template = template
        self.text_max_length = max_length
        self.text_pooling = pooling
        self._warned_of_cut = False
        self._check_template()

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict[str, Any], **kwargs):
        if kwargs.get("text_preset") is not None:
            # Saved options would count as given by the caller and hide all of the preset.
            processor_dict = {name: value for name, value in processor_dict.items() if name not in _TEXT_OPTIONS}
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what every call with images and texts returns."""
        return [*self.image_processor.model_input_names, "input_ids", "attention_mask", "pooling_mask"]

    def _check_template(self) -> None:
        known = self.tokenizer.get_added_vocab()
        missing = [token for token in re.findall(r"<\|[^\s|<>]+\|>", self.text_template) if token not in known]
        if missing:
            raise ValueError(
                f"text_template {self.text_template!r} needs the control tokens {', '.join(map(repr, missing))}, which "
                f"{type(self.tokenizer).__name__} of {self.tokenizer.name_or_path!r} does not have: it would take them "
                f"for plain characters. Take the tokenizer that belongs to the template, or another template."
            )
        if self.text_pooling == "last" and not self._tokenize_in_template(["a"])[0][2]:
            raise ValueError(
                f"text_pooling='last' pools the token after the text, but neither text_template "
                f"{self.text_template!r} nor {type(self.tokenizer).__name__} of {self.tokenizer.name_or_path!r} puts "
                f"one there. Write the encoder's end token into the template, for example '{{text}}<|im_end|>'."
            )

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
            tokens = self.tokenize_text(text, options.get("max_length"))
            data.update(self.pad_tokens(tokens, self._padded_length(options)))
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
        skips_head = self.text_pooling == "text" and self.text_template.index(_PLACEHOLDER) > 0
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
            if self.text_pooling == "last":
                skipped = len(ids) - 1
            else:
                skipped = len(head) if skips_head else 0
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
        strings = [prefix + text + suffix for text in texts]
        encoded = self._encode(strings)
        tokens = self.tokenizer.added_tokens_decoder.items()
        unknown = self.tokenizer.unk_token_id
        control = {index for index, token in tokens if token.special} - {unknown}
        start = len(prefix)
        pieces = []
        for row, (text, ids, encoding) in enumerate(zip(texts, encoded["input_ids"], encoded.encodings, strict=True)):
            end = start + len(text)
            first = _token_at(encoding, start, end)
            if first is None:
                raise ValueError(f"text[{row}] ({text[:80]!r}) has no character that the tokenizer keeps; remove it.")
            # A token over the end of the text goes with the suffix, so that cutting the text keeps it whole.
            last = _token_at(encoding, end, end + len(suffix))
            if last is None:
                last = len(ids)
                while encoding.token_to_sequence(last - 1) is None:
                    last -= 1
            # A control token over the end of the text is the text's as well.
            over_end = encoding.char_to_token(end - 1) == last
            own = ids[first : last + over_end]
            spells_control = not control.isdisjoint(own)
            if unknown in own and not spells_control:
                # Where the unknown token is the end token (CLIP, SmolLM2), only its own name in a text is control.
                spans = (encoding.offsets[first + place] for place, index in enumerate(own) if index == unknown)
                spells_control = any(strings[row][slice(*span)] == self.tokenizer.unk_token for span in spans)
            if spells_control:
                pieces.append(self._tokenize_as_plain_text(row, text, prefix, suffix, control))
            else:
                pieces.append((ids[:first], ids[first:last], ids[last:]))
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
        return self.tokenizer(
            strings,
            padding=False,
            truncation=False,
            verbose=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            **kwargs,
        )

    def pad_tokens(self, tokens: dict[str, list[list[int]]], length: int | None = None) -> dict[str, np.ndarray]:
        """Pads what `tokenize_text` returns on the right.

        Args:
            tokens: T lists of ints by name.
            length: Length of the rows, defaults to that of the longest text.

        Returns:
            The same as int64 arrays (T, L).

        Raises:
            ValueError: If the tokenizer has no token to pad with.
        """
        if length is None:
            length = max(map(len, tokens["input_ids"]))
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        if pad_id is None:
            raise ValueError(
                "the tokenizer has neither a pad token nor an eos token to pad with; set `tokenizer.pad_token`."
            )
        padded = {}
        for name, rows in tokens.items():
            padded[name] = np.full((len(rows), length), pad_id if name == "input_ids" else 0, dtype=np.int64)
            for row, values in enumerate(rows):
                padded[name][row, : len(values)] = values
        return padded

    def _padded_length(self, options: dict) -> int | None:
        padding = options["padding"]
        if padding not in (True, "longest", "max_length"):
            raise ValueError(f"padding is {padding!r}; accepted are True, 'longest' and 'max_length'.")
        return (options.get("max_length") or self.text_max_length) if padding == "max_length" else None

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


def _token_at(encoding: Any, start: int, end: int) -> int | None:
    """Index of the first token of the characters from `start` to `end`, of which a tokenizer may drop some."""
    # Asked by character, because lists of all offsets cost more than tokenising.
    for position in range(start, end):
        token = encoding.char_to_token(position)
        if token is not None:
            return token
    return None


def _check_max_length(value: Any, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a positive int (a number of tokens).")
