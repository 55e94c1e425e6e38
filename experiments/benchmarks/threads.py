"""Runs side by side, one on each core: with the threads of a table's workers, and with a thread for every core."""

import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from harness import Measure, interleave, timed
from torch.nn import functional as F

from dafw.nn.network import Network
from dafw.run.devices import worker_environment

LIMIT = 1.0
_network: Any = None


def prepare() -> None:
    """Makes the network of one process."""
    global _network
    _network = Network("mnist_net")
    _network.set_classes(10)


def train(threads: int, steps: int) -> None:
    """Steps of supervised training of 64 + 64 digits of 28 pixels with so many threads."""
    torch.set_num_threads(threads)
    x, y = torch.rand(128, 3, 28, 28), torch.zeros(128, dtype=torch.int64)
    for _ in range(steps):
        F.cross_entropy(_network(x).logits, y).backward()


def seconds(pool: ProcessPoolExecutor, workers: int, threads: int, steps: int) -> float:
    """How long all processes take for their steps, started together."""
    start = time.perf_counter()
    list(pool.map(train, [threads] * workers, [steps] * workers))
    return time.perf_counter() - start


def measure(quick: bool = False) -> list[Measure]:
    """The time of runs side by side, beside that of runs that each take a thread for every core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(2, cores)
    own = int(worker_environment(0, workers, [])["OMP_NUM_THREADS"])
    steps, rounds = (1, 1) if quick else (30, 5)
    with ProcessPoolExecutor(workers, get_context("spawn"), prepare) as pool:
        contenders = {"dafw": own, "all": workers}
        take = {name: partial(seconds, pool, workers, count, steps) for name, count in contenders.items()}
        found = interleave(take, rounds, "threads")
    name = f"{workers} runs side by side, {own} thread each, beside {workers} threads each"
    return [timed(name, "s", found["dafw"], found["all"], limit=LIMIT)]
