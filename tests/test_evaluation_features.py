# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Vectors are computed once: within a call, between calls, runs and processes; and in the order that was asked for."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed_for_tests import run_processes
from encoders_for_tests import family_pair, gradient_photo, pixclip_pair
from evaluation_for_tests import PHOTOS, RandomEncoder, heldout_records
from PIL import Image

from processing_pixclip.evaluation import feature_cache
from processing_pixclip.evaluation.clip_encoder import ClipEncoder
from processing_pixclip.evaluation.feature_cache import FeatureCache
from processing_pixclip.evaluation.features import FeatureExtractor
from processing_pixclip.evaluation.items import EvaluationImage, EvaluationRegion
from processing_pixclip.evaluation.pixclip_encoder import PixCLIPEncoder
from processing_pixclip.image_reading import read_image


TEXTS = ["a cat", "two people in the street .", "a cat", "a photo of the red dog on a table", "a dog", "a cup"]


class Counting(RandomEncoder):
    """Keeps what it was asked for."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.texts, self.pictures, self.regions, self.batches = [], [], [], []

    def encode_texts(self, texts, kind):
        self.texts += [(text, kind) for text in texts]
        self.batches.append(len(texts))
        return super().encode_texts(texts, kind)

    def encode_images(self, images):
        self.pictures += images
        self.batches.append(len(images))
        return super().encode_images(images)

    def encode_regions(self, images, regions, view):
        self.regions += [(region.key, view) for group in regions for region in group]
        self.batches.append((len(images), sum(map(len, regions))))
        return super().encode_regions(images, regions, view)


def real_regions(photos=None):
    """Regions of real photos, in an order in which those of one photo do not stand together."""
    regions = []
    for record in heldout_records(photos):
        image = EvaluationImage(record["image"], PHOTOS / record["image"])
        regions += [
            EvaluationRegion(f"{record['image']}#{number}", image, region["mask"])
            for number, region in enumerate(record["regions"])
        ]
    order = np.random.default_rng(0).permutation(len(regions))
    return [regions[place] for place in order]


def images_of(regions):
    return list({region.image.key: region.image for region in regions}.values())


def extractor(encoder, folder=None, **options):
    return FeatureExtractor(encoder, cache_dir=folder, progress=False, **options)


def test_equal_texts_are_computed_once_and_come_in_order():
    encoder = Counting()
    features = extractor(encoder)
    found = features.texts(TEXTS, "caption")
    np.testing.assert_array_equal(found, np.stack([encoder.text_vector(text, "caption") for text in TEXTS]))
    assert sorted(text for text, _ in encoder.texts) == sorted(set(TEXTS))
    np.testing.assert_array_equal(features.texts(TEXTS[::-1], "caption"), found[::-1])
    assert len(encoder.texts) == 5
    # Another kind may take another path.
    features.texts(TEXTS, "long")
    assert len(encoder.texts) == 10


def test_texts_go_in_batches_of_a_token_budget():
    encoder = Counting()
    texts = [" ".join(["word"] * count) + f" {number}" for number, count in enumerate([1, 30, 2, 3, 29, 4, 1, 2])]
    extractor(encoder, batch_tokens=66).texts(texts, "caption")
    # Lengths with two special tokens and the number: 33, 32 | 7, 6, 5, 5, 4, 4.
    assert encoder.batches == [2, 6]
    encoder.batches.clear()
    extractor(encoder, batch_tokens=21).texts(texts, "caption")
    assert encoder.batches == [1, 1, 3, 3] or encoder.batches[:2] == [1, 1]


def test_regions_of_one_photo_go_together_and_come_in_order():
    encoder, regions = Counting(), real_regions(6)
    found = extractor(encoder, batch_size=4, batch_regions=10).regions(regions, "full+mask")
    np.testing.assert_array_equal(found, np.stack([encoder.region_vector(item, "full+mask") for item in regions]))
    assert sorted(encoder.regions) == sorted((region.key, "full+mask") for region in regions)
    assert all(images <= 4 and count <= 10 for images, count in encoder.batches)
    # A photo with more regions than a batch has several, any other one is opened once.
    counts = {image.key: sum(region.image == image for region in regions) for image in images_of(regions)}
    assert sum(images for images, _ in encoder.batches) == sum(-(-count // 10) for count in counts.values())


def test_equal_regions_and_files_are_computed_once(tmp_path):
    regions = real_regions(2)
    copy = tmp_path / "another_name.jpg"
    shutil.copyfile(regions[0].image.path, copy)
    twin = EvaluationRegion("twin", EvaluationImage("copy", copy), regions[0].mask)
    boxed = EvaluationRegion("boxed", EvaluationImage("copy", copy), regions[0].mask, box=(0, 0, 50, 60))
    encoder = Counting()
    found = extractor(encoder).regions([*regions, twin, boxed], "roi")
    assert len(encoder.regions) == len(regions) + 1
    place = 0
    np.testing.assert_array_equal(found[-2], found[place])
    assert (found[-1] != found[place]).any()
    found = extractor(encoder).images([regions[0].image, EvaluationImage("copy", copy)])
    assert len(encoder.pictures) == 1
    np.testing.assert_array_equal(found[0], found[1])


def test_a_second_run_asks_the_encoder_nothing(tmp_path):
    regions, first, second = real_regions(4), Counting(), Counting()
    expected = ask(extractor(first, tmp_path), regions)
    again = extractor(second, tmp_path)
    for found, value in zip(ask(again, regions), expected, strict=True):
        np.testing.assert_array_equal(found, value)
    assert second.batches == []
    # Another model, in the same folder.
    other = Counting(seed=1)
    ask(extractor(other, tmp_path), regions)
    assert len(other.batches) == len(first.batches)


def ask(features, regions):
    return [
        features.texts(TEXTS, "region"),
        features.images(images_of(regions)),
        features.regions(regions, "full+mask"),
        features.regions(regions, "roi"),
    ]


def test_other_releases_do_not_read_the_vectors(tmp_path, monkeypatch):
    extractor(Counting(), tmp_path).texts(TEXTS, "region")
    monkeypatch.setattr(feature_cache.importlib.metadata, "version", lambda package: "99")
    encoder = Counting()
    extractor(encoder, tmp_path).texts(TEXTS, "region")
    assert len(encoder.texts) == 5


def test_changed_weights_ask_again(tmp_path):
    model, processor = pixclip_pair()
    extractor(PixCLIPEncoder(model, processor), tmp_path).texts(TEXTS, "region")
    with torch.no_grad():
        model.text_model.projection.weight.mul_(2)
    found = extractor(PixCLIPEncoder(model, processor), tmp_path).texts(TEXTS, "region")
    np.testing.assert_allclose(found, model.encode_text(TEXTS, processor, normalize=False), atol=1e-5)


def test_a_new_extractor_of_the_same_encoder_sees_changed_weights(tmp_path):
    model, processor = pixclip_pair()
    encoder = PixCLIPEncoder(model, processor)
    before = extractor(encoder, tmp_path).texts(TEXTS, "region")
    with torch.no_grad():
        model.text_model.projection.weight.mul_(2)
    found = extractor(encoder, tmp_path).texts(TEXTS, "region")
    assert not np.allclose(found, before, atol=1e-3)
    np.testing.assert_allclose(found, model.encode_text(TEXTS, processor, normalize=False), atol=1e-5)


def test_a_second_run_of_a_real_model_finds_the_texts_of_the_first(tmp_path):
    """Though its tokenizer has been at work in between."""
    encoder = ClipEncoder(*family_pair("clip"))
    extractor(encoder, tmp_path).texts(TEXTS, "region")
    asked = []
    encoder.encode_texts = lambda texts, kind: asked.append(texts)
    extractor(encoder, tmp_path).texts(TEXTS, "region")
    assert asked == []
    assert len(list(tmp_path.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("no folder")
    encoder = Counting()
    with pytest.raises(ValueError, match="cache_dir is '.*file', in which nothing can be written"):
        extractor(encoder, tmp_path / "file")
    assert encoder.batches == []


def test_changed_bytes_of_an_image_ask_again(tmp_path):
    file = tmp_path / "photo.png"
    gradient_photo(seed=1).save(file)
    encoder, image = Counting(), EvaluationImage("photo", file)
    region = EvaluationRegion("photo#1", image, box=(0, 0, 20, 20))
    features = extractor(encoder, tmp_path / "cache")
    first = features.images([image])
    features.regions([region], "full")
    gradient_photo(seed=2).save(file)
    os.utime(file, ns=(1, 1))
    for fresh in (features, extractor(encoder, tmp_path / "cache")):
        assert (fresh.images([image]) != first).any()
        fresh.regions([region], "full")
    assert len(encoder.pictures) == 2
    assert len(encoder.regions) == 2


def test_damaged_and_foreign_files_are_passed_over_and_computed_again(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(feature_cache.logger, "warning", lambda *args: told.append(args[0] % args[1:]))
    features = extractor(Counting(), tmp_path)
    expected = features.texts(TEXTS, "region")
    [block] = tmp_path.rglob("*.safetensors")
    whole = block.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    for content in (whole[: len(whole) // 2], b"", b"no block", bytes(changed)):
        block.write_bytes(content)
        encoder = Counting()
        found = extractor(encoder, tmp_path).texts(TEXTS, "region")
        np.testing.assert_array_equal(found, expected)
        assert len(encoder.texts) == 5
        [warning] = told
        assert warning.startswith(f"{block} is no whole block of features and is passed over: ")
        told.clear()
        # The same vectors, under the same name: whole again.
        encoder = Counting()
        extractor(encoder, tmp_path).texts(TEXTS, "region")
        assert encoder.texts == []
        assert list(tmp_path.rglob("*.safetensors")) == [block]
    # Of another space.
    (block.parents[1] / "text-long").mkdir()
    shutil.copyfile(block, block.parents[1] / "text-long" / block.name)
    encoder = Counting()
    extractor(encoder, tmp_path).texts(TEXTS, "long")
    assert len(encoder.texts) == 5


def test_blocks_are_written_as_time_goes_and_when_a_run_is_interrupted(tmp_path, monkeypatch):
    class Interrupted(Counting):
        def encode_images(self, images):
            if len(self.pictures) >= 4:
                raise KeyboardInterrupt
            return super().encode_images(images)

    images, first = images_of(real_regions(8)), Interrupted()
    with pytest.raises(KeyboardInterrupt):
        extractor(first, tmp_path, batch_size=2).images(images)
    second = Counting()
    second.fingerprint = first.fingerprint
    extractor(second, tmp_path, batch_size=2).images(images)
    assert len(second.pictures) == len(images) - 4
    # A block each time that the time is over.
    monkeypatch.setattr(feature_cache, "_SECONDS_OF_A_BLOCK", 0.0)
    extractor(Counting(seed=3), tmp_path / "parts", batch_size=2).images(images)
    assert len(list((tmp_path / "parts").rglob("*.safetensors"))) == -(-len(images) // 2)
    assert not list(tmp_path.rglob("*.tmp"))


KILLED = """
import sys, time
from processing_pixclip.evaluation import feature_cache
from processing_pixclip.evaluation.features import FeatureExtractor
from test_evaluation_features import Counting, images_of, real_regions

class Slow(Counting):
    def fingerprint(self):
        return "slow"

    def encode_images(self, images):
        if len(self.pictures) >= 4:
            print("working", flush=True)
            time.sleep(60)
        return super().encode_images(images)

feature_cache._SECONDS_OF_A_BLOCK = 0.0
FeatureExtractor(Slow(), cache_dir=sys.argv[1], batch_size=2, progress=False).images(images_of(real_regions(8)))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_behind_its_last_block(tmp_path):
    tests = Path(__file__).parent
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tests)},
        text=True,
    )
    try:
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    images, encoder = images_of(real_regions(8)), Counting()
    encoder.fingerprint = lambda: "slow"
    found = extractor(encoder, tmp_path, batch_size=2).images(images)
    assert len(encoder.pictures) == len(images) - 4
    expected = [encoder.image_vector(read_image(image.path, image.key)) for image in images]
    np.testing.assert_array_equal(found, np.stack(expected))


def test_cache_of_many_writers(tmp_path):
    """Several runs at once, of parts that overlap, leave what all can read."""
    writers = [FeatureCache(tmp_path, "model") for _ in range(3)]
    for number, cache in enumerate(writers):
        keys = [bytes([number + offset]) * 32 for offset in range(2)]
        cache.add("image", keys, np.stack([np.full(4, key[0], np.float32) for key in keys]))
    for cache in writers:
        cache.flush()
    reader = FeatureCache(tmp_path, "model")
    keys = [bytes([number]) * 32 for number in range(4)]
    assert reader.missing("image", keys) == []
    np.testing.assert_array_equal(reader.vectors("image", keys)[:, 0], [0, 1, 2, 3])
    assert FeatureCache(tmp_path, "other").missing("image", keys) == [0, 1, 2, 3]


def test_unreadable_images_name_the_file(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    for threads in (0, 2):
        features = extractor(Counting(), num_workers=threads)
        with pytest.raises(ValueError, match="image 'b' cannot be read as an image from .*broken.jpg"):
            features.images([EvaluationImage("b", broken)])
        with pytest.raises(ValueError, match="image 'm' cannot be read from .*absent.jpg"):
            features.images([EvaluationImage("m", tmp_path / "absent.jpg")])
        region = EvaluationRegion("b#1", EvaluationImage("b", broken), box=(0, 0, 1, 1))
        with pytest.raises(ValueError, match=r"broken\.jpg"):
            features.regions([region], "full+mask")


def test_images_are_upright_and_regions_as_stored(tmp_path):
    file = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    gradient_photo(60, 40).save(file, exif=exif)

    class Sizes(Counting):
        sizes = []

        def encode_images(self, images):
            self.sizes += [image.size for image in images]
            return super().encode_images(images)

        def encode_regions(self, images, regions, view):
            self.sizes += [image.size for image in images]
            return super().encode_regions(images, regions, view)

    features, image = extractor(Sizes()), EvaluationImage("turned", file)
    features.images([image])
    features.regions([EvaluationRegion("turned#1", image, box=(0, 0, 60, 40))], "full+mask")
    assert Sizes.sizes == [(40, 60), (60, 40)]


def test_only_a_few_batches_of_pictures_are_open():
    opened, most = [], 0

    class Watching(Counting):
        def encode_images(self, images):
            nonlocal most
            time.sleep(0.02)
            most = max(most, len(opened) - len(self.pictures))
            return super().encode_images(images)

    import processing_pixclip.evaluation.features as module

    read = module.read_image

    def counted(*args, **kwargs):
        opened.append(args[0])
        return read(*args, **kwargs)

    images = images_of(real_regions())
    assert len(images) > 12
    module.read_image = counted
    try:
        extractor(Watching(), batch_size=2, num_workers=4).images(images)
    finally:
        module.read_image = read
    assert len(opened) == len(images)
    assert most <= 6


def test_vectors_that_are_not_numbers_or_of_the_wrong_count_are_refused(tmp_path):
    class Broken(Counting):
        def text_vector(self, text, kind):
            return super().text_vector(text, kind) * (np.nan if text == "a cup" else 1)

        def encode_images(self, images):
            return super().encode_images(images)[:1]

    with pytest.raises(
        ValueError, match="1 of 5 items of a batch are not finite, the first is that of the text 'a cup'"
    ):
        extractor(Broken(), tmp_path).texts(TEXTS, "region")
    assert not list(tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match=r"vectors of shape \(1, 256\) for 3 items"):
        extractor(Broken()).images(images_of(real_regions(3)))
    with pytest.raises(ValueError, match="there is nothing to compute vectors of"):
        extractor(Broken()).texts([], "region")
    with pytest.raises(ValueError, match="does not support the view 'blur'"):
        extractor(Broken()).regions(real_regions(1), "blur")
    with pytest.raises(ValueError, match="batch_size is 0; accepted are whole numbers from 1"):
        extractor(Broken(), batch_size=0)


def test_progress_is_told_batch_by_batch():
    seen = []
    features = FeatureExtractor(Counting(), batch_size=2, progress=lambda *args: seen.append(args))
    features.images(images_of(real_regions(5)))
    count = len(images_of(real_regions(5)))
    assert seen == [("image", min(done, count), count) for done in range(2, count + 2, 2)]
    features.images(images_of(real_regions(5)))
    assert len(seen) == -(-count // 2)


def test_regions_that_no_frame_shows_are_warned_of(tmp_path, monkeypatch):
    file = tmp_path / "wide.png"
    gradient_photo(200, 40).save(file)
    image = EvaluationImage("wide", file)
    regions = [EvaluationRegion(f"wide#{x}", image, box=(x, 4, x + 20, 30)) for x in (0, 95)]
    features = extractor(PixCLIPEncoder(*pixclip_pair(resize_mode="shortest_edge")))
    told = []
    monkeypatch.setattr("processing_pixclip.evaluation.features.logger.warning", lambda *args: told.append(args))
    found = features.regions(regions, "full+mask")
    assert (found == 0).all(1).tolist() == [True, False]
    assert [args[1:] for args in told] == [(1, 2, "full+mask")]


def test_a_real_model_through_the_extractor_equals_the_model():
    model, processor = pixclip_pair()
    encoder, regions = PixCLIPEncoder(model, processor), real_regions(3)
    features = extractor(encoder, batch_size=2, batch_regions=5)
    expected = model.encode_image(
        [region.image.path for region in regions],
        processor,
        masks=[[region.mask] for region in regions],
        normalize=False,
    )
    np.testing.assert_allclose(features.regions(regions, "full+mask"), expected, atol=2e-6)
    expected = model.encode_text(TEXTS, processor, normalize=False)
    np.testing.assert_allclose(features.texts(TEXTS, "caption"), expected, atol=2e-6)


def compute_in_a_process(folder, photos):
    """What one of several processes gets, and what it computed."""
    from accelerate import Accelerator

    # Asked for, though the processes are joined already.
    os.environ.update(MASTER_ADDR="localhost", MASTER_PORT="0")
    accelerator = Accelerator(cpu=True)
    model, processor = pixclip_pair()
    computed = []
    encoder = PixCLIPEncoder(model, processor)
    encode = encoder.encode_regions
    encoder.encode_regions = lambda images, regions, view: (
        computed.append(sum(map(len, regions))) or encode(images, regions, view)
    )
    cache = None if folder is None else Path(folder) / "own" / str(accelerator.process_index)
    features = extractor(encoder, cache, batch_size=2, batch_regions=8, batch_tokens=24, accelerator=accelerator)
    regions = real_regions(photos)
    found = [
        features.texts(TEXTS, "region"),
        features.texts(TEXTS[:1], "caption"),
        features.images(images_of(regions)),
        features.regions(regions, "full+mask"),
        features.regions(regions[:1], "roi"),
    ]
    # All is known now, in both.
    features.regions(regions, "full+mask")
    message = None
    try:
        features.images([EvaluationImage("bad", Path(__file__))])
    except (ValueError, RuntimeError) as error:
        message = f"{type(error).__name__}: {error}"
    return found, computed, message


@pytest.mark.slow
def test_two_processes_equal_one_bit_for_bit():
    results = run_processes(compute_in_a_process, None, 5)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model, processor = pixclip_pair()
        regions = real_regions(5)
        features = extractor(PixCLIPEncoder(model, processor), batch_size=2, batch_regions=8, batch_tokens=24)
        expected = [
            features.texts(TEXTS, "region"),
            features.texts(TEXTS[:1], "caption"),
            features.images(images_of(regions)),
            features.regions(regions, "full+mask"),
            features.regions(regions[:1], "roi"),
        ]
    finally:
        torch.set_num_threads(threads)
    for found, _, _ in results:
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)
    # Each region once, in one of them; one process has none of the single batches.
    counts = [sum(computed) for _, computed, _ in results]
    assert sum(counts) == len(regions) + 1
    assert min(counts) > 0
    # The error of one process ends the other one too.
    messages = sorted(message for _, _, message in results)
    assert messages[0].startswith("RuntimeError: process 0 failed, and its share of image is missing: ValueError")
    assert messages[1].startswith("ValueError: image 'bad' cannot be read")
