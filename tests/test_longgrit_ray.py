# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""LongGRIT on a local Ray cluster writes what one machine writes, and goes on with what the other left."""

import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest
from faulty_openai_server import THIRTY_PERCENT, running_server
from longgrit_for_tests import (
    ScriptedEngine,
    assert_all_ended_once,
    assert_whole_files,
    make_photos,
    outcome_of,
    settings_for,
)
from test_longgrit_faults import QUICK, settings_at
from test_longgrit_runner import Told, unavailable_after

from processing_pixclip.longgrit.engines import EngineUnavailable
from processing_pixclip.longgrit.ray_runner import run_pipeline_on_ray
from processing_pixclip.longgrit.runner import run_pipeline


# One cluster for all of them.
pytestmark = pytest.mark.xdist_group("ray")
IMAGES, REGIONS = 12, 4


# Seconds after which a call on the cluster has failed; the longest takes a tenth of it.
PATIENCE = 300


def start_cluster():
    import ray

    # Neither telephones nor serves pages; workers find what this process imports.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=256 * 2**20)


def run_on_ray(settings, workers, environment):
    os.environ.update(environment)
    told = Told()
    return run_pipeline_on_ray(settings, workers=workers, progress=told), told


@pytest.fixture(scope="module")
def cluster():
    """Runs the pipeline on a cluster. It is driven by a process of its own: Ray ends its driver when the cluster is lost."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    driver = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), start_cluster)

    def run(settings, workers=1, **environment):
        return driver.submit(run_on_ray, settings, workers, environment).result(PATIENCE)

    yield run
    for process in list(driver._processes.values()):
        process.terminate()
    driver.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"), IMAGES, REGIONS)


def by_rules(path, output, **fields):
    return settings_for(path, output, engine="rules", servers={}, model=None, **fields)


def test_a_cluster_writes_what_one_machine_writes(cluster, photos, tmp_path):
    """By the rules, which look at the pixels, so images must arrive; two processes annotate."""
    one = run_pipeline(by_rules(photos, tmp_path / "one"))
    many, told = cluster(by_rules(photos, tmp_path / "many"), workers=2)
    ended = assert_all_ended_once(tmp_path / "many")
    assert ended == outcome_of(tmp_path / "one") and len(ended) == IMAGES * REGIONS
    assert_whole_files(tmp_path / "many")
    varying = ("seconds", "first_answer", "last_answer")
    assert {key: value for key, value in many.items() if key not in varying} == {
        key: value for key, value in one.items() if key not in varying
    }
    assert told.started == [(IMAGES * REGIONS, 0)]
    assert told.counts["accepted"] == many["accepted"] > 0
    assert told.counts["accepted"] + told.counts["rejected"] == IMAGES * REGIONS
    assert {path.name for path in (tmp_path / "many").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }


@pytest.mark.slow
def test_a_cluster_asks_a_server_with_faults_and_goes_on_with_what_one_machine_left(cluster, photos, tmp_path):
    with running_server(tmp_path / "server", **{**THIRTY_PERCENT, "transport": QUICK}) as server:
        run_pipeline(settings_at(server, photos, tmp_path / "one", PATIENCE))
        asked = server.finished()
        server.reset()
        settings = settings_at(server, photos, tmp_path / "many", PATIENCE)
        with pytest.raises(EngineUnavailable):
            run_pipeline(settings, engines={"openai": ScriptedEngine(unavailable_after(0))})
        run_pipeline(settings, limit=1)
        first = server.finished()
        cluster(settings)
        assert server.finished() == asked and set(first) < set(asked)
        assert assert_all_ended_once(settings.output_dir) == outcome_of(tmp_path / "one")
        # And nothing is left to do for either.
        cluster(settings)
        run_pipeline(settings)
        assert server.finished() == asked


@pytest.mark.slow
def test_servers_that_are_down_stop_a_cluster(cluster, photos, tmp_path):
    server = {"base_url": "http://127.0.0.1:1/v1", "outage_timeout": 0.2, "min_wait": 0.0, "max_wait": 0.05}
    settings = settings_for(photos, tmp_path / "out", servers={"down": server})
    with pytest.raises(EngineUnavailable, match="127.0.0.1:1"):
        cluster(settings)
    assert not list((tmp_path / "out" / "run" / "shards").iterdir())


@pytest.mark.slow
def test_a_key_that_workers_lack_is_told_as_such(cluster, photos, tmp_path):
    server = {"base_url": "http://127.0.0.1:1/v1", "api_key_env": "LATE_KEY"}
    settings = settings_for(photos, tmp_path / "out", servers={"here": server})
    with pytest.raises(RuntimeError, match="Ray worker on .* environment variable LATE_KEY, which is not set"):
        # Set after the cluster was started, so it is set in the driver alone.
        cluster(settings, LATE_KEY="sk-0123456789")


@pytest.mark.slow
def test_an_image_that_a_task_cannot_read_rejects_its_regions(cluster, tmp_path):
    path = make_photos(tmp_path / "photos", 3, 2)
    settings = by_rules(path, tmp_path / "out")
    run_pipeline(settings, limit=1)
    for state in (tmp_path / "out" / "run").rglob("0000*"):
        if "source" not in state.parts:
            state.unlink()
    (tmp_path / "photos" / "00001.jpg").unlink()
    cluster(settings)
    ended = assert_all_ended_once(settings.output_dir)
    assert {region for region, end in ended.items() if end[1:3] == ("source", "unreadable_image")} == {
        "00001#0",
        "00001#1",
    }
