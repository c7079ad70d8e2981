# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""
Request handler of Inference Endpoints for PixCLIP checkpoints. It lies in the model's repository, next to
`requirements.txt`, and needs no other file of the project.

A request is JSON, `{"inputs": ..., "parameters": {...}}`. `inputs` is an object or, for several images, a list of them:

    {"image": "...",                      base64, also as a data URL; an http(s) URL where PIXCLIP_ALLOW_URLS=1
     "masks": [{"size": [h, w], "counts": ...}, "..."],  optional; each a COCO RLE or a PNG in base64, of the image's size
     "boxes": [[x1, y1, x2, y2]],         optional; in pixels of the image
     "candidate_labels": ["...", ...],    optional; or "texts". Both may also be in "parameters", for a list they must
     "texts": ["...", ...]}

| given | answer, for each image |
|---|---|
| image and `candidate_labels` | a list of `{"score", "label"}`, the best first; with regions a list of such lists |
| image and `texts` | `{"similarity": N x T}`, cosines of regions (of the whole image, where there are none) and texts |
| image | `{"image_embeds": N x D}` |
| `texts` without an image | `{"text_embeds": T x D}` |

Further `parameters`: `hypothesis_template`, `long_text`, `pooling`, `mask_input`, as in the pipelines, and `normalize`. An
image is turned upright by its EXIF orientation; masks and boxes are those of the upright image. For a list of images the
answer is a list.

Bad input answers `{"error": {"type", "field", "message"}}`, never a traceback. Limits are environment variables, see
`LIMITS`.
"""

import base64
import binascii
import http.client
import io
import ipaddress
import logging
import math
import os
import queue
import re
import socket
import ssl
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import torch
from PIL import Image, ImageOps
from transformers import pipeline


logger = logging.getLogger(__name__)

# Environment variable: (default, what it bounds).
LIMITS = {
    "PIXCLIP_MAX_REQUEST_BYTES": (64 * 2**20, "about the size of a request"),
    "PIXCLIP_MAX_IMAGE_BYTES": (20 * 2**20, "an image or mask file"),
    "PIXCLIP_MAX_IMAGE_PIXELS": (25_000_000, "pixels of an image"),
    "PIXCLIP_MAX_IMAGE_SIDE": (20_000, "pixels of an image's longer side"),
    "PIXCLIP_MAX_TOTAL_PIXELS": (
        500_000_000,
        "pixels of all images of a request, each counted again for every region",
    ),
    "PIXCLIP_MAX_IMAGES": (16, "images of a request"),
    "PIXCLIP_MAX_REGIONS": (64, "regions of an image"),
    "PIXCLIP_MAX_RLE_COUNTS": (1_000_000, "characters or numbers of the counts of an RLE"),
    "PIXCLIP_MAX_TEXTS": (256, "labels or texts of a request"),
    "PIXCLIP_MAX_TEXT_CHARS": (8_000, "characters of a label, text or template"),
    "PIXCLIP_URL_TIMEOUT": (10, "seconds for all URLs of a request together"),
    "PIXCLIP_MAX_REDIRECTS": (3, "redirects of a URL"),
}
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
ITEM_KEYS = ("image", "masks", "boxes", "candidate_labels", "texts")
PARAMETERS = {
    "candidate_labels": list,
    "texts": list,
    "hypothesis_template": str,
    "long_text": bool,
    "pooling": str,
    "mask_input": bool,
    "normalize": bool,
}
# How the messages of the processor and the pipelines about an input begin; any other message may be about this server.
INPUT_MESSAGES = re.compile(
    r"(images|masks|boxes|text|candidate_labels|hypothesis_template|pooling|mask_input)\b(?:\[(\d+)\])?(?:\[(\d+)\])?"
)
# Of the text tower, whose backbone may have fewer positions than the processor fills.
TOO_MANY_TOKENS = re.compile(r"texts are (\d+) tokens long, the backbone \(.*?\) takes at most (\d+)")
# Beside what ipaddress knows as not global in all Python versions: shared, benchmark, documentation and relay networks, and
# the host service of a large cloud, which has a public address.
REFUSED_NETWORKS = [
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "100.64.0.0/10",
        "192.0.0.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "240.0.0.0/4",
        "168.63.129.16/32",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
    )
]
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
NAT64, SIX_TO_FOUR = ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("2002::/16")


class BadInput(Exception):
    """What a request is refused for."""

    def __init__(self, field: str, message: str, kind: str = "invalid_input"):
        super().__init__(message)
        self.answer = {"error": {"type": kind, "field": field, "message": message}}


class EndpointHandler:
    """
    Loads the checkpoint of a folder and answers requests.

    Args:
        path: Folder of the checkpoint; by default that of this file.

    Raises:
        ValueError: If an environment variable is no positive number.
    """

    def __init__(self, path: str = ""):
        self.limits = {name: _limit(name, default) for name, (default, _) in LIMITS.items()}
        self.allow_urls = os.environ.get("PIXCLIP_ALLOW_URLS", "0") == "1"
        folder = path or str(Path(__file__).parent)
        # The code of the repository that this file is part of.
        self.embed = pipeline("region-feature-extraction", model=folder, trust_remote_code=True)
        self.model, self.processor, self.classify = self.embed.model, self.embed.processor, None
        if self.processor is None:
            logger.warning("the checkpoint has no tokenizer: only embeddings of images are answered")
        else:
            classes = sys.modules[type(self.embed).__module__]
            self.classify = classes.ZeroShotRegionClassificationPipeline(
                model=self.model, processor=self.processor, device=self.embed.device
            )

    def __call__(self, data: Any) -> list | dict:
        """
        Answers one request.

        Args:
            data: The parsed JSON of the request.

        Returns:
            What `json.dumps(..., allow_nan=False)` takes: the answer, or `{"error": ...}`.
        """
        try:
            return self._answer(data)
        except BadInput as refused:
            return refused.answer
        except Exception:
            identifier = uuid.uuid4().hex
            logger.exception("request %s failed", identifier)
            return _internal_error(identifier)

    def _answer(self, data: Any) -> list | dict:
        self._check_size(data)
        request = _object(data, "request", ("inputs", "parameters", "options"))
        parameters = self._parameters(request.get("parameters"))
        fields = {name: f"parameters.{name}" for name in PARAMETERS}
        if "inputs" not in request:
            raise BadInput("inputs", "inputs is missing: pass an object, or a list of objects with an image each.")
        items, many = self._items(request["inputs"], parameters, fields)
        labels, texts = parameters.pop("candidate_labels", None), parameters.pop("texts", None)
        if labels is not None and texts is not None:
            raise BadInput(fields["texts"], "candidate_labels and texts are both given; pass one of them.")
        _check_read(parameters, bool(items), labels is not None, texts is not None)
        if labels is not None or texts is not None:
            self._check_text_encoder()
        if not items:
            if texts is None:
                raise BadInput("inputs.image", "the image is missing; only texts go without one.")
            embeds = self._text_embeds(texts, parameters, parameters.get("normalize", True), fields)
            return {"text_embeds": embeds.tolist()}
        inputs = self._load(items)
        options = {name: parameters[name] for name in ("pooling", "mask_input") if name in parameters}
        if labels is not None:
            options |= {name: parameters[name] for name in ("hypothesis_template", "long_text") if name in parameters}
            fields["text"] = fields["candidate_labels"]
            answers = self._run(items, self.classify, inputs, fields, candidate_labels=labels, **options)
            _check_finite(torch.tensor([entry["score"] for entry in _entries(answers)]))
            return answers if many else answers[0]
        normalize = parameters.get("normalize", True)
        embeds = self._run(items, self.embed, inputs, fields, normalize=normalize, return_tensors=True, **options)
        _check_finite(torch.cat(embeds))
        if texts is None:
            answers = [{"image_embeds": rows.tolist()} for rows in embeds]
        else:
            text_embeds = self._text_embeds(texts, parameters, True, fields)
            answers = [{"similarity": (rows @ text_embeds.T).tolist()} for rows in embeds]
        return answers if many else answers[0]

    def _check_size(self, data: Any) -> None:
        """Refuses what is too large or no JSON, without recursion."""
        limit, size, left = self.limits["PIXCLIP_MAX_REQUEST_BYTES"], 0, [data]
        while left:
            value = left.pop()
            if isinstance(value, dict):
                left.extend((*value.keys(), *value.values()))
            elif isinstance(value, list):
                left.extend(value)
            elif isinstance(value, str):
                size += len(value)
            elif not (value is None or isinstance(value, (bool, int, float))):
                raise BadInput("request", f"the request holds a value of type {type(value).__name__}; send JSON.")
            size += 2
            if size > limit:
                raise BadInput("request", f"the request is larger than {limit} bytes.", "too_large")

    def _parameters(self, given: Any) -> dict:
        parameters = _object({} if given is None else given, "parameters", PARAMETERS)
        parameters = {name: value for name, value in parameters.items() if value is not None}
        for name, value in parameters.items():
            if not isinstance(value, PARAMETERS[name]):
                raise BadInput(f"parameters.{name}", f"it is {_kind(value)}; accepted is {_NAMES[PARAMETERS[name]]}.")
        for name in ("candidate_labels", "texts"):
            if name in parameters:
                self._check_texts(parameters[name], f"parameters.{name}")
        template = parameters.get("hypothesis_template", "{}")
        # Two places for a long label would multiply it.
        if template.count("{}") != 1:
            raise BadInput("parameters.hypothesis_template", "it must hold '{}', where the label goes, exactly once.")
        self._check_texts([template], "parameters.hypothesis_template", "")
        if parameters.get("pooling", "cls") not in ("cls", "mask", "roi"):
            raise BadInput("parameters.pooling", "accepted are 'cls', 'mask' and 'roi'.")
        return parameters

    def _items(self, inputs: Any, parameters: dict, fields: dict) -> tuple[list[tuple[str, dict]], bool]:
        """The images of a request, each with the name of its place; labels and texts go into `parameters`."""
        many = isinstance(inputs, list)
        limit = self.limits["PIXCLIP_MAX_IMAGES"]
        if many and not 1 <= len(inputs) <= limit:
            raise BadInput(
                "inputs", f"it is a list of {len(inputs)}; accepted are 1 to {limit} images.", _size_kind(inputs)
            )
        items = []
        for index, item in enumerate(inputs if many else [inputs]):
            name = f"inputs[{index}]" if many else "inputs"
            # The form that clients of zero-shot image classification send.
            item = {"image": item} if isinstance(item, str) else _object(item, name, ITEM_KEYS)
            item = {key: value for key, value in item.items() if value is not None}
            for key in ("candidate_labels", "texts"):
                if key not in item:
                    continue
                if many or key in parameters:
                    raise BadInput(f"{name}.{key}", f"give {key} once; for a list of images, in parameters.")
                self._check_texts(item[key], f"{name}.{key}")
                parameters[key], fields[key] = item.pop(key), f"{name}.{key}"
            if "image" in item:
                items.append((name, item))
            elif many or item:
                raise BadInput(f"{name}.image", "the image is missing.")
        return items, many

    def _check_texts(self, texts: Any, field: str, place: str = "[{}]") -> None:
        count, length = self.limits["PIXCLIP_MAX_TEXTS"], self.limits["PIXCLIP_MAX_TEXT_CHARS"]
        if not isinstance(texts, list) or not 1 <= len(texts) <= count:
            kind = f"a list of {len(texts)}" if isinstance(texts, list) else _kind(texts)
            raise BadInput(field, f"it is {kind}; accepted is a list of 1 to {count} strings.", _size_kind(texts))
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise BadInput(field + place.format(index), "it must be a string that is not empty.")
            if len(text) > length:
                raise BadInput(
                    field + place.format(index), f"it has {len(text)} characters; accepted are {length}.", "too_large"
                )

    def _check_text_encoder(self) -> None:
        lacks_encoder = getattr(self.model.config.text_config, "backbone_embeds_only", False)
        if lacks_encoder or self.processor is None:
            lacking = "text encoder" if lacks_encoder else "tokenizer"
            raise BadInput("inputs", f"this checkpoint has no {lacking}; ask for embeddings of images.", "unsupported")

    def _text_embeds(self, texts: list[str], parameters: dict, normalize: bool, fields: dict) -> torch.Tensor:
        options = {"long_text": parameters.get("long_text", False), "normalize": normalize, "output": "tensor"}
        try:
            embeds = self.model.encode_text(texts, self.processor, **options)
        except ValueError as error:
            raise _refusal(error, [], {"text": fields["texts"]}) from error
        _check_finite(embeds)
        return embeds

    def _run(self, items: list[tuple[str, dict]], pipe: Any, inputs: list[dict], fields: dict, **options) -> list:
        # Also of what a thin image is enlarged to where its shorter side fills the frame.
        pixels = max(self.limits["PIXCLIP_MAX_IMAGE_PIXELS"], LIMITS["PIXCLIP_MAX_IMAGE_PIXELS"][0])
        pixels = min(pixels, self.embed.image_processor.max_image_pixels)
        try:
            return pipe(inputs, batch_size=4, images_kwargs={"max_image_pixels": pixels}, **options)
        except ValueError as error:
            raise _refusal(error, [name for name, _ in items], fields) from error

    def _load(self, items: list[tuple[str, dict]]) -> list[dict]:
        """Images, masks and boxes of the items as the pipelines take them."""
        total, deadline = 0, time.monotonic() + self.limits["PIXCLIP_URL_TIMEOUT"]
        inputs = []
        for name, item in items:
            masks, boxes = (self._regions(item, key, name) for key in ("masks", "boxes"))
            content = self._content(item["image"], f"{name}.image", deadline)
            image = self._open(content, f"{name}.image", IMAGE_FORMATS)
            total += image.width * image.height * (1 + max(len(masks or ()), len(boxes or ())))
            limit = self.limits["PIXCLIP_MAX_TOTAL_PIXELS"]
            if total > limit:
                raise BadInput(
                    name, f"images and regions up to this one take {total} pixels; accepted are {limit}.", "too_large"
                )
            entry = {"image": _decoded(image, f"{name}.image", upright=True)}
            if masks is not None:
                size = entry["image"].size
                entry["masks"] = [self._mask(mask, size, f"{name}.masks[{index}]") for index, mask in enumerate(masks)]
            if boxes is not None:
                entry["boxes"] = [_box(box, f"{name}.boxes[{index}]") for index, box in enumerate(boxes)]
            inputs.append(entry)
        return inputs

    def _regions(self, item: dict, key: str, name: str) -> list | None:
        regions, limit = item.get(key), self.limits["PIXCLIP_MAX_REGIONS"]
        if regions is not None and not isinstance(regions, list):
            raise BadInput(f"{name}.{key}", f"it is {_kind(regions)}; accepted is a list with one entry a region.")
        if regions is not None and len(regions) > limit:
            raise BadInput(f"{name}.{key}", f"there are {len(regions)} regions; accepted are {limit}.", "too_large")
        return regions

    def _content(self, value: Any, field: str, deadline: float) -> bytes:
        if isinstance(value, str) and re.match(r"https?:", value, re.IGNORECASE):
            if not self.allow_urls:
                raise BadInput(field, "URLs are not allowed here; send the image itself in base64.", "url_refused")
            return fetch(
                value,
                field,
                deadline,
                self.limits["PIXCLIP_MAX_IMAGE_BYTES"],
                self.limits["PIXCLIP_MAX_REDIRECTS"],
            )
        return self._from_base64(value, field)

    def _from_base64(self, value: Any, field: str) -> bytes:
        if not isinstance(value, str):
            raise BadInput(field, f"it is {_kind(value)}; accepted is a file in base64.")
        limit = self.limits["PIXCLIP_MAX_IMAGE_BYTES"]
        if value.startswith("data:"):
            head, comma, value = value.partition(",")
            if not comma or not head.endswith(";base64"):
                raise BadInput(field, "it is a data URL that is not in base64.")
        if len(value) > limit * 4 // 3 + limit // 32 + 4:
            raise BadInput(field, f"the file is larger than {limit} bytes.", "too_large")
        try:
            content = base64.b64decode(re.sub(r"[ \t\r\n]", "", value), validate=True)
        except (binascii.Error, ValueError):
            raise BadInput(field, "it is no base64; accepted is a file in base64, also as a data URL.") from None
        if len(content) > limit:
            raise BadInput(field, f"the file is larger than {limit} bytes.", "too_large")
        return content

    def _open(self, content: bytes, field: str, formats: tuple[str, ...]) -> Image.Image:
        """An image whose pixels are not decoded yet, of an accepted number."""
        limit, side = self.limits["PIXCLIP_MAX_IMAGE_PIXELS"], self.limits["PIXCLIP_MAX_IMAGE_SIDE"]
        try:
            image = Image.open(io.BytesIO(content), formats=formats)
        except Image.DecompressionBombError:
            raise BadInput(field, f"it has more than {limit} pixels.", "too_large") from None
        # Decoders of damaged files raise errors of any class.
        except Exception:
            raise BadInput(field, f"it is no readable {', '.join(formats)} file.") from None
        if image.width * image.height > limit:
            raise BadInput(field, f"it is {image.width}x{image.height}; accepted are {limit} pixels.", "too_large")
        # To bring a thin one to size takes far more memory than it has pixels.
        if max(image.size) > side:
            raise BadInput(
                field,
                f"it is {image.width}x{image.height}; accepted are {side} pixels of the longer side.",
                "too_large",
            )
        return image

    def _mask(self, mask: Any, size: tuple[int, int], field: str) -> Any:
        width, height = size
        if isinstance(mask, str):
            image = self._open(self._from_base64(mask, field), field, ("PNG",))
            if image.size != size:
                raise BadInput(
                    field, f"it is {image.width}x{image.height}, but its image {width}x{height} (width x height)."
                )
            if image.mode not in ("1", "L"):
                raise BadInput(field, "it is no PNG of one channel of 1 or 8 bits.")
            return _decoded(image, field)
        rle = _object(mask, field, ("size", "counts"))
        sides = rle.get("size")
        if not isinstance(sides, list) or sides != [height, width] or any(type(side) is not int for side in sides):
            raise BadInput(f"{field}.size", f"it must be [height, width] of the image, [{height}, {width}].")
        counts, pixels, limit = rle.get("counts"), height * width, self.limits["PIXCLIP_MAX_RLE_COUNTS"]
        runs = isinstance(counts, list) and all(
            isinstance(run, int) and not isinstance(run, bool) and 0 <= run <= pixels for run in counts
        )
        if not runs and not isinstance(counts, str):
            raise BadInput(
                f"{field}.counts", f"it must be a COCO string or the lengths of the runs of {pixels} pixels."
            )
        # Checked before it is decoded, which takes many times its memory.
        if len(counts) > limit:
            raise BadInput(f"{field}.counts", f"its length is {len(counts)}; accepted are {limit}.", "too_large")
        return rle


def _refusal(error: ValueError, names: list[str], fields: dict[str, str]) -> Exception:
    """What processor or pipeline say about an input, under the request's name for it; else the error itself."""
    long = TOO_MANY_TOKENS.match(str(error))
    if long:
        message = f"a text of it takes {long[1]} tokens; this checkpoint takes {long[2]}. Shorten the texts."
        return BadInput(fields["text"], message, "too_large")
    found = INPUT_MESSAGES.match(str(error))
    if not found:
        return error
    kind, first, second = found.groups()
    if kind in ("images", "masks", "boxes"):
        field = f"{names[int(first or 0)]}.{'image' if kind == 'images' else kind}" + (f"[{second}]" if second else "")
    else:
        field = fields[kind] + (f"[{first}]" if first else "")
    return BadInput(field, field + str(error)[found.end() :])


def _check_read(parameters: dict, image: bool, labels: bool, texts: bool) -> None:
    read = {
        "pooling": image,
        "mask_input": image,
        "long_text": labels or texts,
        "hypothesis_template": labels,
        "normalize": image != texts and not labels,
    }
    for name in parameters:
        if not read[name]:
            raise BadInput(f"parameters.{name}", "nothing reads it in a request with these inputs; leave it out.")


def _limit(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal() or (int(value) == 0 and name != "PIXCLIP_MAX_REDIRECTS"):
        raise ValueError(f"{name} is {value!r}; it must be a whole number above 0.")
    return int(value)


_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _kind(value: Any) -> str:
    return _NAMES.get(type(value), "a value")


def _size_kind(value: Any) -> str:
    return "too_large" if isinstance(value, list) and value else "invalid_input"


def _internal_error(identifier: str) -> dict:
    message = f"the request failed; the server's log has the reason under {identifier}."
    return {"error": {"type": "internal_error", "field": None, "message": message, "id": identifier}}


def _object(value: Any, field: str, accepted: Any) -> dict:
    if not isinstance(value, dict):
        raise BadInput(field, f"it is {_kind(value)}; accepted is an object with {', '.join(accepted)}.")
    if not value.keys() <= set(accepted):
        raise BadInput(field, f"it has keys that are not known; accepted are {', '.join(accepted)}.")
    return value


def _box(box: Any, field: str) -> list | None:
    numbers = isinstance(box, list) and all(
        isinstance(side, (int, float)) and not isinstance(side, bool) and abs(side) < 1e9 and math.isfinite(side)
        for side in box
    )
    if box is not None and not (numbers and len(box) == 4):
        raise BadInput(field, "it must be four finite numbers x1, y1, x2, y2 in pixels.")
    return box


def _decoded(image: Image.Image, field: str, upright: bool = False) -> Image.Image:
    try:
        image.load()
        return ImageOps.exif_transpose(image) if upright else image
    # Decoders of damaged files raise errors of any class.
    except Exception:
        raise BadInput(field, "its file is damaged or cut off.") from None


def _entries(answers: Any) -> list[dict]:
    return [answers] if isinstance(answers, dict) else [entry for answer in answers for entry in _entries(answer)]


def _check_finite(values: torch.Tensor) -> None:
    if not values.isfinite().all():
        raise ArithmeticError("the model answered with values that are not finite")


# Images behind URLs.


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a host."""
    return [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def connect(address: str, port: int, timeout: float) -> socket.socket:
    """Connection to an address, never to a name."""
    return socket.create_connection((address, port), timeout)


def is_public(address: str) -> bool:
    """Whether an address is one of the public internet, and no address within it leads elsewhere."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if ip.version == 6:
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip in SIX_TO_FOUR:
            return is_public(str(ipaddress.IPv4Address((int(ip) >> 80) & 0xFFFFFFFF)))
        if ip not in GLOBAL_UNICAST:
            return False
    refused = ip.is_multicast or ip.is_reserved or ip.is_loopback or ip.is_link_local or ip.is_unspecified
    return (
        ip.is_global and not refused and not any(ip.version == net.version and ip in net for net in REFUSED_NETWORKS)
    )


def check_url(url: str, field: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and request target of a URL that may be fetched."""
    refusal = BadInput(
        field,
        "the URL is refused; accepted are http and https URLs of at most 2048 characters with a host name or plain "
        "address, without user and password, on port 80 or 443.",
        "url_refused",
    )
    if len(url) > 2048 or re.search(r"[\x00-\x20\x7f\\\ud800-\udfff]", url):
        raise refusal
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").rstrip(".")
        if ":" not in host:
            host = host.encode("idna").decode("ascii")
    except ValueError:
        raise refusal from None
    if parts.scheme not in ("http", "https") or "@" in parts.netloc:
        raise refusal
    port = {"http": 80, "https": 443}[parts.scheme] if port is None else port
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Names end in a letter's label; 2130706433, 0177.0.0.1 and 0x7f.1 are other spellings of an address.
        if (
            not re.fullmatch(r"(?:[a-z0-9_-]{1,63}\.)*(?!0x[0-9a-f]*$)[a-z0-9-]*[a-z][a-z0-9-]*", host)
            or len(host) > 253
        ):
            raise refusal from None
    if port not in (80, 443):
        raise refusal
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
    return parts.scheme, host, port, target


def fetch(url: str, field: str, deadline: float, limit: int, redirects: int) -> bytes:
    """
    Downloads a file from a public address.

    The host is resolved once, every address of it must be public, and the connection goes to the address that was
    checked. Each redirect is checked in the same way. Proxies of the environment are not used.

    Args:
        url: Where it is.
        field: What error messages call it.
        deadline: When to give up, by `time.monotonic`.
        limit: Most bytes.
        redirects: Most redirects.

    Returns:
        The content.

    Raises:
        BadInput: If the URL is refused, or the download fails.
    """
    failed = BadInput(field, "the image could not be downloaded from the URL.", "url_failed")
    for _ in range(redirects + 1):
        scheme, host, port, target = check_url(url, field)
        try:
            addresses = _resolve_until(host, port, deadline)
        except (OSError, UnicodeError):
            raise failed from None
        if not addresses or not all(is_public(address) for address in addresses):
            raise BadInput(field, "the host of the URL is not at a public address.", "url_refused")
        try:
            status, headers, content = _get(scheme, host, addresses, port, target, deadline, limit)
        except _TooLarge:
            raise BadInput(field, f"the file is larger than {limit} bytes.", "too_large") from None
        except (OSError, http.client.HTTPException, ValueError):
            raise failed from None
        if status == 200 and headers.get("Content-Encoding", "identity").lower() == "identity":
            return content
        if status not in (301, 302, 303, 307, 308) or not headers.get("Location"):
            raise failed
        try:
            url = urljoin(url, headers["Location"])
        except ValueError:
            raise failed from None
    raise BadInput(field, f"the URL redirects more than {redirects} times.", "url_failed")


class _TooLarge(Exception):
    pass


def _resolve_until(host: str, port: int, deadline: float) -> list[str]:
    """Addresses of a host; the system's resolver has no timeout, and so is left behind when time is up."""
    answers: queue.SimpleQueue = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(resolve(host, port))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        found = answers.get(timeout=max(deadline - time.monotonic(), 0))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise found
    return found


def _get(
    scheme: str, host: str, addresses: list[str], port: int, target: str, deadline: float, limit: int
) -> tuple[int, Any, bytes]:
    """Status, headers and, of status 200, content."""
    plain = _connect_to_one(addresses, port, deadline)
    # A timeout of the socket starts anew with each byte; this ends a server that sends one now and then.
    watchdog = threading.Timer(max(deadline - time.monotonic(), 0), _hang_up, [plain])
    watchdog.daemon = True
    watchdog.start()
    connection = http.client.HTTPConnection(f"[{host}]" if ":" in host else host, port)
    connection.default_port = {"http": 80, "https": 443}[scheme]
    connection.sock = plain
    # By itself it would connect anew, and to the name.
    connection.auto_open = 0
    try:
        if scheme == "https":
            connection.sock = ssl.create_default_context().wrap_socket(
                plain, server_hostname=host, do_handshake_on_connect=False
            )
            watchdog.args[0] = connection.sock
            connection.sock.do_handshake()
        connection.request("GET", target, headers={"Accept": "image/*", "User-Agent": "pixclip-endpoint"})
        response = connection.getresponse()
        if response.status != 200:
            return response.status, response.headers, b""
        if (response.length or 0) > limit:
            raise _TooLarge
        content = response.read(limit + 1)
        if len(content) > limit:
            raise _TooLarge
        if response.length:
            raise http.client.IncompleteRead(content)
        if time.monotonic() > deadline:
            raise TimeoutError
        return response.status, response.headers, content
    finally:
        watchdog.cancel()
        plain.close()
        connection.close()


def _connect_to_one(addresses: list[str], port: int, deadline: float) -> socket.socket:
    failure: OSError = TimeoutError()
    for address in dict.fromkeys(addresses):
        left = deadline - time.monotonic()
        if left <= 0:
            break
        try:
            return connect(address, port, left)
        except OSError as error:
            failure = error
    raise failure


def _hang_up(connection: socket.socket) -> None:
    try:
        # Not the method of an encrypted socket, which is not for two threads.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
    except OSError:
        pass
