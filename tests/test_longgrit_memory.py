# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Memory of a LongGRIT run with large photos: few are decoded at a time, however many are worked on."""

import asyncio
import gc
import io
import subprocess
import sys
import weakref

import numpy as np
import pytest
from longgrit_for_tests import ScriptedEngine, make_photos, settings_for
from PIL import Image

from processing_pixclip.longgrit import pipeline, region_views
from processing_pixclip.longgrit.pipeline import PictureBudget, annotate_image
from processing_pixclip.longgrit.records import Rejected, SourceImage, SourceRegion
from processing_pixclip.longgrit.region_views import VIEWS, render_view
from processing_pixclip.longgrit.runner import run_pipeline
from processing_pixclip.regions import encode_rle


def jpeg_of(width, height, seed=0):
    file = io.BytesIO()
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def image_of(name, width, height, regions):
    """An image whose regions are upright strips, each with its mask."""
    strips = []
    for number in range(regions):
        left, right = number * width // regions, (number + 1) * width // regions
        mask = np.zeros((height, width), dtype=bool)
        mask[:, left:right] = True
        strips.append(SourceRegion(f"{name}#{number}", (left, 0, right, height), encode_rle(mask)))
    return SourceImage(name, f"{name}.jpg", {}, width, height, tuple(strips))


class AllViews:
    """A stage that shows every view to a model, which takes its time."""

    name = "object_caption"

    def __init__(self, seconds=0.0):
        self.seconds, self.views = seconds, {}

    async def __call__(self, work):
        for view in VIEWS:
            self.views[work.item_id, view] = await asyncio.to_thread(render_view, work, view, 336)
            await asyncio.sleep(self.seconds)
        work.object_text = "A strip."


def annotate_all(images, stage, content):
    async def run():
        return await asyncio.gather(*(annotate_image(image, {stage.name: stage}, lambda: content) for image in images))

    return asyncio.run(run())


def test_pictures_are_dropped_by_a_budget_and_the_views_stay_the_same(monkeypatch):
    content, images = jpeg_of(200, 160), [image_of(str(n), 200, 160, 2) for n in range(12)]
    held, most = weakref.WeakSet(), []
    decode = pipeline.ImageWork.picture

    def picture(self):
        found = decode(self)
        held.add(self)
        most.append(sum(work._picture is not None for work in held))
        return found

    monkeypatch.setattr(pipeline.ImageWork, "picture", picture)
    views = {}
    for name, limit in (("all", 2**30), ("three", 3 * 4 * 200 * 160)):
        monkeypatch.setattr(pipeline, "_budget", PictureBudget(limit))
        held.clear(), most.clear()
        stage = AllViews(0.01)
        annotate_all(images, stage, content)
        views[name] = stage.views
        # Those that four threads are drawing right now come on top.
        assert (max(most) == 12) if name == "all" else (max(most) <= 3 + 4)
    assert views["all"] == views["three"] and len(views["all"]) == 12 * 2 * len(VIEWS)


@pytest.mark.parametrize("rejects", [False, True])
@pytest.mark.parametrize("stage", ["image_caption", "object_caption"])
def test_nothing_of_an_image_is_held_when_it_has_ended(stage, rejects):
    pictures = []

    class Ending(AllViews):
        name = stage

        async def __call__(self, work):
            pictures.append(weakref.ref(work.image.picture()))
            if rejects:
                raise Rejected(stage, "invalid", "no")

    image = image_of("1", 60, 40, 2)
    gc.collect()
    gc.disable()
    try:
        [result] = annotate_all([image], Ending(), jpeg_of(60, 40))
        # Without looking for garbage.
        assert [picture() for picture in pictures] == len(pictures) * [None]
    finally:
        gc.enable()
    assert [region.reason for region in result.regions] == 2 * ["invalid" if rejects else None]


def test_few_views_are_drawn_at_a_time(monkeypatch):
    drawing, most = [], []
    draw = region_views._draw

    def slowly(*arguments):
        drawing.append(1)
        most.append(len(drawing))
        try:
            return draw(*arguments)
        finally:
            drawing.pop()

    monkeypatch.setattr(region_views, "_draw", slowly)
    images = [image_of(str(n), 400, 300, 2) for n in range(8)]
    annotate_all(images, AllViews(), jpeg_of(400, 300))
    assert 1 <= max(most) <= 4


@pytest.mark.parametrize("engine, most", [("rules", 8), ("openai", 12)])
def test_the_built_in_annotator_works_on_few_images_at_a_time(tmp_path, engine, most):
    settings = settings_for(
        make_photos(tmp_path / "photos", 12, 1), tmp_path / "out", engine=engine, output={"images_per_shard": 12}
    )
    scripted = ScriptedEngine(delay=0.05)
    run_pipeline(settings, engines={engine: scripted})
    assert scripted.peak == most


LARGE = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from test_longgrit_memory import AllViews, annotate_all, image_of, jpeg_of
content, images = jpeg_of(4000, 3000), [image_of(str(n), 4000, 3000, 5) for n in range(int(sys.argv[2]))]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
annotate_all(images, AllViews(0.5), content)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)
"""


@pytest.mark.slow
def test_64_photos_of_12_megapixels_at_a_time_stay_in_their_memory():
    tests = __file__.rpartition("/")[0]
    done = subprocess.run([sys.executable, "-c", LARGE, tests, "64"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    # 64 decoded pictures take 3 GB, and the masks of their 320 regions 4 GB.
    assert float(done.stdout) < 1500
