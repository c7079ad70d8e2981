# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""Runs a function in several real processes that are joined by gloo, and returns what each returned."""

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist


# A server that has imported what all need, and forks off a fresh process in an instant.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["modeling_pixclip", "pytest"])


def run_processes(
    function: Callable, *args: Any, processes: int = 2, timeout: float = 120, **kwargs: Any
) -> list[Any]:
    """
    What `function(*args, **kwargs)` returned in each of several processes, in the order of their ranks.

    The function must be at the top level of a test module; it finds `torch.distributed` initialised, `RANK` and
    `WORLD_SIZE` in the environment, a seed that is equal in all processes, and one thread. What it returns goes through
    `torch.save`. If one process fails or is killed, all are ended and an `AssertionError` says which, and shows what each
    of them printed; likewise when `timeout` seconds are over. What they print is else not shown.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        workers = [
            PROCESSES.Process(
                target=_run, args=(folder, rank, processes, timeout, dict(os.environ), function, args, kwargs)
            )
            for rank in range(processes)
        ]
        try:
            for worker in workers:
                worker.start()
            failure = _wait(workers, timeout)
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
                worker.join()
        if failure:
            logs = [folder / f"{rank}.log" for rank in range(processes)]
            texts = (log.read_text(errors="replace")[-4000:] if log.exists() else "did not start" for log in logs)
            raise AssertionError(
                "\n".join([failure, *(f"--- process {rank}\n{text}" for rank, text in enumerate(texts))])
            )
        return [torch.load(folder / f"{rank}.result", weights_only=False) for rank in range(processes)]


def _wait(workers: list[BaseProcess], timeout: float) -> str | None:
    """Until all have ended well, or one has not."""
    end = time.monotonic() + timeout
    while True:
        codes = [worker.exitcode for worker in workers]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            # The others fail soon too, and say where they waited for it.
            time.sleep(1)
            return f"process {failed[0]} of {len(workers)} ended with exit code {codes[failed[0]]}"
        if None not in codes:
            return None
        if time.monotonic() > end:
            waiting = [rank for rank, code in enumerate(codes) if code is None]
            return f"processes {waiting} of {len(workers)} had not ended after {timeout} s"
        time.sleep(0.02)


def mean_over_processes(results: list[Any]) -> Any:
    """The mean of tensors, or of lists, tuples or dicts of them, over processes: what DDP makes of gradients."""
    first = results[0]
    if isinstance(first, dict):
        return {name: mean_over_processes([result[name] for result in results]) for name in first}
    if isinstance(first, list | tuple):
        return [mean_over_processes(list(parts)) for parts in zip(*results, strict=True)]
    return torch.stack(results).mean(0)


def _run(
    folder: Path,
    rank: int,
    size: int,
    timeout: float,
    environment: dict,
    function: Callable,
    args: tuple,
    kwargs: dict,
):
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # A store in a file needs no port that something else could take.
    store = dist.FileStore(str(folder / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    result = function(*args, **kwargs)
    torch.save(result, folder / f"{rank}.result")
    leave_process_group()


def leave_process_group():
    """
    Ends the group of this process when all are done. Nothing may hold a DDP model any more.

    With torch 2.13 a process whose DDP model outlives the group may hang as it ends.
    """
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


__all__ = ["leave_process_group", "mean_over_processes", "run_processes"]
