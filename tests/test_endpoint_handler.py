# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The handler of Inference Endpoints: the model's values, refusals of bad input, URLs, and any JSON at all."""

import base64
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_pipelines import BOXES, LABELS, build_model, build_processor, masks_of, photo
from transformers import CLIPTextConfig, pipeline

from processing_pixclip.regions import encode_rle


ENDPOINT = Path(__file__).parent.parent / "examples" / "endpoint"
PUBLIC = "93.184.215.14"
LIMITS = {
    "PIXCLIP_MAX_REQUEST_BYTES": "200000",
    "PIXCLIP_MAX_IMAGE_BYTES": "20000",
    "PIXCLIP_MAX_IMAGE_PIXELS": "10000",
    "PIXCLIP_MAX_IMAGE_SIDE": "150",
    "PIXCLIP_MAX_TOTAL_PIXELS": "40000",
    "PIXCLIP_MAX_IMAGES": "3",
    "PIXCLIP_MAX_REGIONS": "4",
    "PIXCLIP_MAX_RLE_COUNTS": "500",
    "PIXCLIP_MAX_TEXTS": "5",
    "PIXCLIP_MAX_TEXT_CHARS": "100",
    "PIXCLIP_URL_TIMEOUT": "1",
    "PIXCLIP_MAX_REDIRECTS": "2",
}


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


PHOTO = encoded(photo())
MASK = encoded(Image.fromarray(masks_of()[0] * 255))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    build_model().save_pretrained(folder)
    build_processor().save_pretrained(folder)
    for name in ("handler.py", "requirements.txt"):
        shutil.copy(ENDPOINT / name, folder)
    return folder


@pytest.fixture(scope="module")
def module(folder):
    """The module, loaded as the endpoint's toolkit does."""
    spec = importlib.util.spec_from_file_location("handler", str(folder / "handler.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["handler"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["handler"]


@contextmanager
def environment(**values):
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def endpoint(folder, module):
    with environment(**LIMITS):
        return module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def with_urls(folder, module):
    with environment(**LIMITS, PIXCLIP_ALLOW_URLS="1"):
        return module.EndpointHandler(str(folder))


@pytest.fixture(scope="module")
def pipes(folder):
    tasks = ("zero-shot-region-classification", "region-feature-extraction")
    return [pipeline(task, model=str(folder), device="cpu") for task in tasks]


def answer(endpoint, request):
    """The answer, after the way through JSON that it takes in the endpoint."""
    found = endpoint(json.loads(json.dumps(request)))
    return json.loads(json.dumps(found, allow_nan=False))


def refusal(endpoint, request, folder=None):
    found = answer(endpoint, request)
    assert set(found) == {"error"}, found
    assert set(found["error"]) == {"type", "field", "message"}, found
    assert "Traceback" not in found["error"]["message"]
    assert folder is None or str(folder) not in json.dumps(found)
    return found["error"]


def assert_close(found, wanted):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), atol=1e-6, rtol=1e-5)


# Answers.


@pytest.mark.parametrize(
    ("given", "regions"),
    [
        ({}, {}),
        ({"boxes": BOXES}, {"boxes": BOXES}),
        ({"masks": [encode_rle(mask) for mask in masks_of()]}, {"masks": masks_of()}),
        ({"masks": [MASK, f"data:image/png;base64,{MASK}"]}, {"masks": masks_of()[[0, 0]]}),
        ({"masks": [MASK], "boxes": [BOXES[0]]}, {"masks": masks_of()[:1], "boxes": BOXES[:1]}),
        ({"masks": []}, {"masks": []}),
    ],
    ids=["whole", "boxes", "RLE", "PNG", "masks and boxes", "no region"],
)
def test_answers_are_those_of_the_model(endpoint, pipes, given, regions):
    classify, embed = pipes
    found = answer(endpoint, {"inputs": {"image": PHOTO, "candidate_labels": LABELS, **given}})
    assert found == classify(photo(), candidate_labels=LABELS, **regions)
    embeds = embed(photo(), return_tensors=True, **regions)
    assert_close(answer(endpoint, {"inputs": {"image": PHOTO, **given}})["image_embeds"] or embeds, embeds)
    texts = endpoint.model.encode_text(LABELS, endpoint.processor, output="tensor")
    found = answer(endpoint, {"inputs": {"image": PHOTO, "texts": LABELS, **given}})
    assert_close(found["similarity"] or torch.empty(0, 3), embeds @ texts.T)


def test_texts_without_an_image(endpoint):
    for normalize in (True, False):
        wanted = endpoint.model.encode_text(LABELS, endpoint.processor, normalize=normalize)
        found = answer(endpoint, {"inputs": {"texts": LABELS}, "parameters": {"normalize": normalize}})
        assert_close(found["text_embeds"], wanted)
    assert found == answer(endpoint, {"inputs": {}, "parameters": {"texts": LABELS, "normalize": False}})


def test_several_images(endpoint, pipes):
    other = photo(1, (50, 30))
    inputs = [{"image": PHOTO, "boxes": BOXES}, encoded(other)]
    found = answer(endpoint, {"inputs": inputs, "parameters": {"candidate_labels": LABELS}})
    assert found == pipes[0]([{"image": photo(), "boxes": BOXES}, other], candidate_labels=LABELS, batch_size=4)
    found = answer(endpoint, {"inputs": inputs})
    assert [len(entry["image_embeds"]) for entry in found] == [2, 1]


def test_the_form_of_a_client_of_zero_shot_image_classification(endpoint, pipes):
    parameters = {"candidate_labels": LABELS, "hypothesis_template": "a {}"}
    found = answer(endpoint, {"inputs": f"data:image/png;base64,{PHOTO}", "parameters": parameters})
    assert found == pipes[0](photo(), **parameters)


def test_parameters_reach_the_pipelines(endpoint, pipes):
    parameters = {"pooling": "roi", "mask_input": False, "normalize": False}
    found = answer(endpoint, {"inputs": {"image": PHOTO, "boxes": BOXES}, "parameters": parameters})
    assert_close(found["image_embeds"], pipes[1](photo(), boxes=BOXES, **parameters))


def test_an_image_is_turned_upright(endpoint, pipes):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(photo(), "PNG", exif=exif)
    upright = photo().transpose(Image.Transpose.ROTATE_270)
    boxes = [[0, 0, 40, 60]]
    found = answer(endpoint, {"inputs": {"image": turned, "boxes": boxes}})
    assert_close(found["image_embeds"], pipes[1](upright, boxes=boxes))


def test_a_folder_without_the_package_answers_alike(folder, endpoint, tmp_path):
    requests = [
        {"inputs": {"image": PHOTO, "boxes": BOXES, "candidate_labels": LABELS}},
        {"inputs": {"image": PHOTO, "masks": [MASK], "texts": LABELS}},
        {"inputs": {"image": PHOTO, "masks": [7]}},
    ]
    (tmp_path / "requests.json").write_text(json.dumps(requests))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHON"))}
    process = subprocess.run(
        [
            sys.executable,
            "-I",
            str(Path(__file__).with_name("run_endpoint_by_remote_code.py")),
            str(folder),
            str(tmp_path / "requests.json"),
            str(tmp_path / "answers.json"),
        ],
        env=kept
        | {
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        },
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    found = json.loads((tmp_path / "answers.json").read_text())
    assert found == [answer(endpoint, request) for request in requests]


# Refusals.


def png_header(width, height):
    """A PNG that claims a size and is tiny."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    content = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(content).decode()


RLE = encode_rle(masks_of()[0])
DOT = encoded(Image.new("RGB", (1, 1)))
REFUSED = [
    (7, "request", "invalid_input"),
    ({"input": 1}, "request", "invalid_input"),
    ({"parameters": {}}, "inputs", "invalid_input"),
    ({"inputs": None}, "inputs", "invalid_input"),
    ({"inputs": {}}, "inputs.image", "invalid_input"),
    ({"inputs": {"masks": [MASK], "texts": LABELS}}, "inputs.image", "invalid_input"),
    ({"inputs": {"image": 7}}, "inputs.image", "invalid_input"),
    ({"inputs": {"image": "/etc/passwd"}}, "inputs.image", "invalid_input"),
    ({"inputs": {"image": "file:///etc/passwd"}}, "inputs.image", "invalid_input"),
    ({"inputs": {"image": "data:image/png,abc"}}, "inputs.image", "invalid_input"),
    ({"inputs": {"image": base64.b64encode(b"not an image").decode()}}, "inputs.image", "invalid_input"),
    ({"inputs": {"image": PHOTO[: len(PHOTO) // 2 // 4 * 4]}}, "inputs.image", "invalid_input"),
    ({"inputs": {"image": encoded(photo(), "TIFF")}}, "inputs.image", "invalid_input"),
    ({"inputs": {"image": png_header(60000, 60000)}}, "inputs.image", "too_large"),
    ({"inputs": {"image": png_header(101, 100)}}, "inputs.image", "too_large"),
    ({"inputs": {"image": png_header(1, 151)}}, "inputs.image", "too_large"),
    ({"inputs": {"image": "A" * 60000}}, "inputs.image", "too_large"),
    ({"inputs": {"image": "A" * 300000}}, "request", "too_large"),
    ({"inputs": {"image": "https://example.org/a.png"}}, "inputs.image", "url_refused"),
    ({"inputs": [PHOTO] * 4}, "inputs", "too_large"),
    ({"inputs": []}, "inputs", "invalid_input"),
    ({"inputs": [PHOTO, {"boxes": BOXES}]}, "inputs[1].image", "invalid_input"),
    ({"inputs": [{"image": PHOTO, "texts": LABELS}]}, "inputs[0].texts", "invalid_input"),
    ({"inputs": [PHOTO, {"image": PHOTO, "masks": [MASK, 1]}]}, "inputs[1].masks[1]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": MASK}}, "inputs.masks", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [RLE] * 5}}, "inputs.masks", "too_large"),
    ({"inputs": {"image": PHOTO, "masks": ["x.png"]}}, "inputs.masks[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [PHOTO]}}, "inputs.masks[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [png_header(60, 41)]}}, "inputs.masks[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [png_header(60, 40)]}}, "inputs.masks[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [{"size": [40, 60]}]}}, "inputs.masks[0].counts", "invalid_input"),
    (
        {"inputs": {"image": PHOTO, "masks": [{**RLE, "size": [10**9, 10**9]}]}},
        "inputs.masks[0].size",
        "invalid_input",
    ),
    ({"inputs": {"image": PHOTO, "masks": [{**RLE, "size": [True, 60]}]}}, "inputs.masks[0].size", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [{**RLE, "size": [40.0, 60.0]}]}}, "inputs.masks[0].size", "invalid_input"),
    (
        {"inputs": {"image": DOT, "masks": [{"size": [True, True], "counts": [0, 1]}]}},
        "inputs.masks[0].size",
        "invalid_input",
    ),
    ({"inputs": {"image": PHOTO, "masks": [{**RLE, "counts": [2**70]}]}}, "inputs.masks[0].counts", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [RLE, {**RLE, "counts": [1, 2]}]}}, "inputs.masks[1]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [{**RLE, "counts": "1" * 501}]}}, "inputs.masks[0].counts", "too_large"),
    ({"inputs": {"image": PHOTO, "masks": [{**RLE, "counts": [1] * 501}]}}, "inputs.masks[0].counts", "too_large"),
    ({"inputs": {"image": PHOTO, "masks": [{**RLE, "more": 1}]}}, "inputs.masks[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "boxes": [0, 0, 9, 9]}}, "inputs.boxes[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "boxes": [BOXES[0], [0, 0, float("nan"), 9]]}}, "inputs.boxes[1]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "boxes": [[0, 0, float("inf"), 9]]}}, "inputs.boxes[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "boxes": [[0, 0, 10**400, 9]]}}, "inputs.boxes[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "boxes": [[0, 0, "9", 9]]}}, "inputs.boxes[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "boxes": [[0, 0, 99, 9]]}}, "inputs.boxes[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "masks": [MASK], "boxes": BOXES}}, "inputs.masks", "invalid_input"),
    ({"inputs": {"image": PHOTO, "candidate_labels": "cup"}}, "inputs.candidate_labels", "invalid_input"),
    ({"inputs": {"image": PHOTO, "candidate_labels": []}}, "inputs.candidate_labels", "invalid_input"),
    ({"inputs": {"image": PHOTO, "candidate_labels": ["cup", 1]}}, "inputs.candidate_labels[1]", "invalid_input"),
    (
        {"inputs": {"image": PHOTO, "candidate_labels": ["cup", "\ud83d"]}},
        "inputs.candidate_labels[1]",
        "invalid_input",
    ),
    ({"inputs": {"image": PHOTO, "candidate_labels": ["a"] * 6}}, "inputs.candidate_labels", "too_large"),
    ({"inputs": {"image": PHOTO, "candidate_labels": ["a", "b", "a"]}}, "inputs.candidate_labels[2]", "invalid_input"),
    ({"inputs": {"texts": ["a" * 101]}}, "inputs.texts[0]", "too_large"),
    ({"inputs": {"texts": ["a", "\ud83d"]}}, "inputs.texts[1]", "invalid_input"),
    ({"inputs": PHOTO, "parameters": {"texts": ["\ud83d"]}}, "parameters.texts[0]", "invalid_input"),
    ({"inputs": {"image": PHOTO, "texts": ["a"], "candidate_labels": ["a"]}}, "inputs.texts", "invalid_input"),
    ({"inputs": {"candidate_labels": ["a"]}}, "inputs.image", "invalid_input"),
    ({"inputs": {"texts": ["a"]}, "parameters": {"texts": ["a"]}}, "inputs.texts", "invalid_input"),
    ({"inputs": PHOTO, "parameters": []}, "parameters", "invalid_input"),
    ({"inputs": PHOTO, "parameters": {"top_k": 1}}, "parameters", "invalid_input"),
    ({"inputs": PHOTO, "parameters": {"normalize": 1}}, "parameters.normalize", "invalid_input"),
    ({"inputs": PHOTO, "parameters": {"pooling": "mean"}}, "parameters.pooling", "invalid_input"),
    (
        {"inputs": PHOTO, "parameters": {"pooling": "cls", "mask_input": False}},
        "parameters.mask_input",
        "invalid_input",
    ),
    ({"inputs": PHOTO, "parameters": {"long_text": True}}, "parameters.long_text", "invalid_input"),
    (
        {"inputs": PHOTO, "parameters": {"candidate_labels": ["a"], "hypothesis_template": "{} {}"}},
        "parameters.hypothesis_template",
        "invalid_input",
    ),
]


@pytest.mark.parametrize(("request_", "field", "kind"), REFUSED)
def test_bad_input_is_answered_with_its_field(endpoint, folder, request_, field, kind):
    found = refusal(endpoint, request_, folder)
    assert (found["field"], found["type"]) == (field, kind), found


def test_messages_are_grammatical(endpoint):
    assert refusal(endpoint, {"inputs": {"image": {}}})["message"] == "it is an object; accepted is a file in base64."
    found = refusal(endpoint, {"inputs": PHOTO, "parameters": {"normalize": None, "texts": {}}})
    assert found["message"] == "it is an object; accepted is a list."
    found = refusal(endpoint, {"inputs": PHOTO, "parameters": {"candidate_labels": []}})
    assert found["message"].startswith("it is a list of 0; accepted is a list of 1 to")


def test_a_thin_image_is_not_enlarged_beyond_the_pixels(tmp_path, module):
    build_model().save_pretrained(tmp_path)
    processor = build_processor()
    processor.image_processor.resize_mode = "shortest_edge"
    processor.save_pretrained(tmp_path)
    thin = encoded(Image.new("RGB", (1, 19_000)))
    # 32 x 608,000 fits, 32 x 32 * 25,000 does not.
    with environment(PIXCLIP_MAX_IMAGE_SIDE="30000"):
        handler = module.EndpointHandler(str(tmp_path))
    assert "image_embeds" in answer(handler, {"inputs": thin})
    found = refusal(handler, {"inputs": encoded(Image.new("RGB", (1, 25_000)))})
    assert found["field"] == "inputs.image" and "over max_image_pixels=25000000" in found["message"]


def test_a_checkpoint_without_a_tokenizer_embeds_images(folder, endpoint, module, tmp_path, caplog):
    build_model().save_pretrained(tmp_path)
    build_processor().image_processor.save_pretrained(tmp_path)
    handler = module.EndpointHandler(str(tmp_path))
    assert "has no tokenizer" in caplog.text
    request = {"inputs": {"image": PHOTO, "boxes": BOXES}}
    assert answer(handler, request) == answer(endpoint, request)
    for texts in ({"texts": LABELS}, {"image": PHOTO, "texts": LABELS}, {"image": PHOTO, "candidate_labels": LABELS}):
        found = refusal(handler, {"inputs": texts})
        assert found["type"] == "unsupported" and "this checkpoint has no tokenizer" in found["message"]


def test_a_text_longer_than_the_backbones_positions_is_told(module, tmp_path):
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    backbone = CLIPTextConfig(vocab_size=30, max_position_embeddings=16, eos_token_id=2, pad_token_id=0, **shape)
    build_model(text={"backbone": backbone, "pooling": "eos", "projection_type": "linear"}).save_pretrained(tmp_path)
    build_processor("{text} [eos]", eos=True).save_pretrained(tmp_path)
    handler = module.EndpointHandler(str(tmp_path))
    long = "a " * 20
    for request, field in (
        ({"texts": ["a", long]}, "inputs.texts"),
        ({"image": PHOTO, "texts": [long]}, "inputs.texts"),
        ({"image": PHOTO, "candidate_labels": ["a", long]}, "inputs.candidate_labels"),
    ):
        found = refusal(handler, {"inputs": request})
        assert (found["field"], found["type"]) == (field, "too_large")
        assert re.search("takes 2[0-9] tokens; this checkpoint takes 16", found["message"])


def test_regions_count_towards_the_pixels(endpoint):
    image = encoded(Image.new("RGB", (100, 100)))
    found = refusal(endpoint, {"inputs": {"image": image, "boxes": [[0, 0, 9, 9]] * 4}})
    assert (found["field"], found["type"]) == ("inputs", "too_large")
    assert "image_embeds" in answer(endpoint, {"inputs": {"image": image, "boxes": [[0, 0, 9, 9]] * 3}})


def test_a_path_is_never_opened(endpoint, folder, monkeypatch):
    photo().save(folder / "abcd.png")
    opened = []
    monkeypatch.setattr("builtins.open", lambda file, *_, **__: opened.append(file))
    for path in (str(folder / "abcd.png"), "abcd", f"file://{folder}/abcd.png"):
        refusal(endpoint, {"inputs": {"image": path, "masks": [path]}}, folder)
    assert opened == []


def test_nesting_without_end_is_no_crash(endpoint):
    deep = []
    for _ in range(50000):
        deep = [deep]
    for request in (deep, {"inputs": deep}, {"inputs": {"image": PHOTO, "boxes": deep}}):
        assert endpoint(request)["error"]["type"] == "invalid_input"
    assert endpoint({"inputs": photo()})["error"]["field"] == "request"


def test_the_unexpected_is_logged_and_answered_without_details(endpoint, folder, caplog, monkeypatch):
    def fails(*_, **__):
        raise ValueError(f"{folder}/model.safetensors is broken")

    monkeypatch.setattr(endpoint.model, "get_image_features", fails)
    found = answer(endpoint, {"inputs": PHOTO})["error"]
    assert found["type"] == "internal_error" and str(folder) not in found["message"]
    assert found["id"] in caplog.text and "is broken" in caplog.text


def test_answers_that_are_no_numbers_are_errors(endpoint):
    weight = endpoint.model.visual_projection.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        for labels in ({}, {"candidate_labels": LABELS}, {"texts": LABELS}):
            assert answer(endpoint, {"inputs": {"image": PHOTO, **labels}})["error"]["type"] == "internal_error"
    finally:
        with torch.no_grad():
            weight.copy_(before)


@pytest.mark.parametrize("value", ["-1", "0", "many", "1.5", ""])
def test_a_limit_that_is_no_number_stops_the_start(module, folder, value):
    with environment(PIXCLIP_MAX_IMAGES=value), pytest.raises(ValueError, match="PIXCLIP_MAX_IMAGES"):
        module.EndpointHandler(str(folder))


# URLs.


class Site(BaseHTTPRequestHandler):
    content = base64.b64decode(PHOTO)

    def do_GET(self):
        self.server.seen.append((self.headers["Host"], self.path))
        kind, _, rest = self.path.partition("?")[0].strip("/").partition("/")
        if kind == "redirect":
            self.send_response(302)
            self.send_header("Location", base64.urlsafe_b64decode(rest).decode())
            self.end_headers()
        elif kind == "loop":
            self.send_response(301)
            self.send_header("Location", self.path)
            self.end_headers()
        elif kind == "photo":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content)
        elif kind == "short":
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content[:100])
        elif kind == "claims":
            self.send_response(200)
            self.send_header("Content-Length", str(10**9))
            self.end_headers()
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(bytes(1000))
        elif kind == "zipped":
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(zlib.compress(bytes(10**6)))
        elif kind == "drip":
            self.send_response(200)
            self.end_headers()
            try:
                while not self.server.closing.wait(0.1):
                    self.wfile.write(b"x")
                    self.wfile.flush()
            except OSError:
                pass
        else:
            self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(module, monkeypatch):
    """A web server on this machine that stands at the public address; the network itself is what is replaced."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.seen, server.closing, server.connections, server.lookups = [], threading.Event(), [], []
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    server.names = {"photos.example": [[PUBLIC]]}
    real_resolve, real_connect = module.resolve, module.connect

    def resolve(host, port):
        server.lookups.append(host)
        answers = server.names.get(host)
        return real_resolve(host, port) if answers is None else answers.pop(0) if len(answers) > 1 else answers[0]

    def connect(address, port, timeout):
        server.connections.append((address, port))
        if address == "2606:4700::1111":
            raise OSError("no route")
        assert address == PUBLIC, "a connection to another address than the checked one"
        return real_connect("127.0.0.1", server.server_port, timeout)

    monkeypatch.setattr(module, "resolve", resolve)
    monkeypatch.setattr(module, "connect", connect)
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def redirect(target):
    return f"http://photos.example/redirect/{base64.urlsafe_b64encode(target.encode()).decode()}"


def test_a_url_is_fetched_where_it_is_allowed(with_urls, site, pipes):
    wanted = answer(with_urls, {"inputs": PHOTO})
    for url in (
        "http://photos.example/photo",
        "HTTP://PHOTOS.example.:80/photo?a=b%20c#fragment",
        redirect("/photo"),
        redirect("http://photos.example:443/photo"),
    ):
        assert answer(with_urls, {"inputs": url}) == wanted, url
    assert ("photos.example", "/photo?a=b%20c") in site.seen
    assert site.connections[-1] == (PUBLIC, 443)


def test_a_host_of_two_addresses_of_which_one_cannot_be_reached(with_urls, site):
    site.names["photos.example"] = [["2606:4700::1111", PUBLIC]]
    assert "image_embeds" in answer(with_urls, {"inputs": "http://photos.example/photo"})
    assert site.connections == [("2606:4700::1111", 80), (PUBLIC, 80)]


def test_no_url_is_fetched_by_default(endpoint, site):
    assert refusal(endpoint, {"inputs": "http://photos.example/photo"})["type"] == "url_refused"
    assert not site.lookups


PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "10.0.0.1",
    "172.16.3.4",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "198.18.0.1",
    "0.0.0.0",
    "0.1.2.3",
    "224.0.0.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "::1",
    "::",
    "::127.0.0.1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd00:ec2::254",
    "fec0::1",
    "ff02::1",
    "2001:db8::1",
    "2001::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:a9fe:a9fe",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::808:808",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "100::1",
    "5f00::1",
    "no address",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(module, with_urls, site, address):
    assert not module.is_public(address)
    # Also where it is only one of several.
    site.names["photos.example"] = [[PUBLIC, address]]
    assert refusal(with_urls, {"inputs": "http://photos.example/photo"})["type"] == "url_refused"
    assert not site.connections


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_a_public_address_is_accepted(module, address):
    assert module.is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://134744072/",
        "http://010.8.8.8/",
        "http://user:secret@photos.example/photo",
        "http://photos.example@127.0.0.1/photo",
        "http://photos.example:8080/photo",
        "http://photos.example:0/photo",
        "http://photos.example:99999/photo",
        "http://photos.example\\@127.0.0.1/",
        "http://photos.example/a b",
        "http://photos.example/\ud83d",
        "http://photos.example/?\ud83d",
        "http://photos.example/\r\nHost: x",
        "http:///photo",
        "http://[::1/",
        "http://.example/",
        "http://photos..example/",
        f"http://photos.example/{'a' * 2048}",
        "https:photos.example/photo",
    ],
)
def test_a_url_that_is_not_plain_and_public_is_refused(with_urls, site, url):
    assert refusal(with_urls, {"inputs": url})["type"] == "url_refused"
    assert not site.connections
    # And as the target of a redirect.
    if url.isprintable() and len(url) < 2000 and not url.startswith(("https:photos", "http:///")):
        assert refusal(with_urls, {"inputs": redirect(url)})["type"] in ("url_refused", "url_failed")
        assert site.connections == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "url", ["ftp://photos.example/photo", "file:///etc/passwd", "gopher://photos.example/", "//photos.example"]
)
def test_other_schemes_are_refused(with_urls, site, url):
    refusal(with_urls, {"inputs": url})
    assert not site.lookups
    if url != "//photos.example":
        assert refusal(with_urls, {"inputs": redirect(url)})["type"] == "url_refused"


def test_a_resolver_that_changes_its_mind_is_asked_once(with_urls, site):
    site.names["photos.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert "image_embeds" in answer(with_urls, {"inputs": "http://photos.example/photo"})
    assert site.lookups == ["photos.example"] and site.connections == [(PUBLIC, 80)]
    # A redirect to the same name is looked up, and checked, anew.
    site.names["photos.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert refusal(with_urls, {"inputs": redirect("http://photos.example/photo")})["type"] == "url_refused"
    assert site.connections == [(PUBLIC, 80)] * 2


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("loop", "url_failed"),
        ("missing", "url_failed"),
        ("short", "url_failed"),
        ("zipped", "url_failed"),
        ("claims", "too_large"),
        ("endless", "too_large"),
        ("drip", "url_failed"),
    ],
)
def test_downloads_that_fail(with_urls, site, path, kind):
    begin = time.monotonic()
    found = refusal(with_urls, {"inputs": [f"http://photos.example/{path}"]})
    assert (found["field"], found["type"]) == ("inputs[0].image", kind)
    assert time.monotonic() - begin < 30
    assert len(site.connections) == (3 if path == "loop" else 1)


@pytest.fixture
def certificate(tmp_path):
    """A certificate of photos.example that nobody signed, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("makes a certificate with openssl, which is not installed")
    name = ["-subj", "/CN=photos.example", "-addext", "subjectAltName=DNS:photos.example", "-days", "2"]
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "certificate.pem")]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", *kind, *name, *files], check=True, capture_output=True)
    return tmp_path / "certificate.pem", tmp_path / "key.pem"


def test_https_goes_to_the_checked_address_and_checks_the_name(with_urls, site, certificate, module, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    site.socket = context.wrap_socket(site.socket, server_side=True)
    site.names["other.example"] = [[PUBLIC]]
    assert refusal(with_urls, {"inputs": "https://photos.example/photo"})["type"] == "url_failed"
    trusting = ssl.create_default_context(cafile=certificate[0])
    monkeypatch.setattr(module.ssl, "create_default_context", lambda: trusting)
    found = answer(with_urls, {"inputs": "https://photos.example/photo"})
    assert found == answer(with_urls, {"inputs": PHOTO})
    assert site.connections == [(PUBLIC, 443)] * 2 and site.seen == [("photos.example", "/photo")]
    assert refusal(with_urls, {"inputs": "https://other.example/photo"})["type"] == "url_failed"


def test_a_server_that_says_nothing(with_urls, site, module, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setattr(module, "connect", lambda *_: socket.create_connection(("127.0.0.1", port)))
        for scheme in ("http", "https"):
            assert refusal(with_urls, {"inputs": f"{scheme}://photos.example/photo"})["type"] == "url_failed"


def test_a_resolver_that_says_nothing(with_urls, site, module, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(module, "resolve", lambda *_: ended.wait(60))
    found = refusal(with_urls, {"inputs": ["http://slow.example/"] * 3})
    assert not ended.is_set() and (found["field"], found["type"]) == ("inputs[0].image", "url_failed")
    assert any(thread.daemon for thread in threading.enumerate() if thread.name.endswith("(look_up)"))
    ended.set()


def test_a_name_without_an_address(with_urls, site, module, monkeypatch):
    def fails(*_):
        raise socket.gaierror("unknown")

    monkeypatch.setattr(module, "resolve", fails)
    assert refusal(with_urls, {"inputs": "http://nowhere.example/"})["type"] == "url_failed"


# Any JSON.

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        [PHOTO, MASK, "roi", "mask", "{}", "a {}", RLE["counts"], "http://127.0.0.1/", "/etc/passwd", 40, 60]
    )
)
KEYS = st.sampled_from(
    "inputs parameters image masks boxes candidate_labels texts size counts pooling mask_input normalize long_text "
    "hypothesis_template".split()
)
ANY = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=25,
)
GOOD = [
    {
        "inputs": {
            "image": PHOTO,
            "masks": [MASK, RLE],
            "boxes": [[0, 0, 9, 9], None],
            "candidate_labels": ["red cup", "a"],
        }
    },
    {"inputs": {"image": PHOTO, "masks": [{"size": [40, 60], "counts": [100, 200, 2100]}], "texts": ["red cup"]}},
    {
        "inputs": {"image": PHOTO, "boxes": BOXES},
        "parameters": {"pooling": "roi", "mask_input": True, "normalize": False},
    },
    {"inputs": [PHOTO, {"image": PHOTO, "boxes": BOXES}], "parameters": {"texts": ["a", "b"], "long_text": False}},
    {"inputs": PHOTO, "parameters": {"candidate_labels": ["red"], "hypothesis_template": "a {}"}},
    {"inputs": {"texts": ["red cup", "blue"]}, "parameters": {"normalize": True}},
]


def places(value):
    """Every container and key of a request."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


@st.composite
def damaged(draw):
    """A good request of which up to three values are others."""
    request = json.loads(json.dumps(draw(st.sampled_from(GOOD))))
    for _ in range(draw(st.integers(0, 3))):
        container, key = draw(st.sampled_from(list(places(request))))
        container[key] = draw(SCALARS | st.floats(0, 60) | ANY)
    return request


@pytest.mark.parametrize("examples", [150, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_json_is_answered(endpoint, with_urls, folder, examples):
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(request=damaged() | ANY)
    def check(request):
        check_any_json(endpoint, folder, request)
        check_any_json(with_urls, folder, request)

    check()


def check_any_json(handler, folder, request):
    found = handler(request)
    assert str(folder) not in json.dumps(found, allow_nan=False)
    if isinstance(found, dict) and "error" in found:
        assert found["error"]["type"] in ("invalid_input", "too_large", "url_refused", "url_failed"), found
        assert found["error"]["message"]
