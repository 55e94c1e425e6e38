"""Finds the GPUs, without torch."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Values for ``CUDA_VISIBLE_DEVICES``, one for each GPU, or for each MIG slice of a GPU.

    An existing ``CUDA_VISIBLE_DEVICES`` is obeyed. Otherwise ``nvidia-smi`` is asked. Without it there are none.
    """
    given = environment.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return []
    return parse_listing(listed.stdout) if listed.returncode == 0 else []


def parse_listing(text: str) -> list[str]:
    """Devices in the output of ``nvidia-smi -L``: a GPU by its number, or its MIG slices by their names."""
    devices: list[list[str]] = []
    for line in text.splitlines():
        if match := re.match(r"GPU (\d+):", line):
            devices.append([match[1]])
        elif devices and (match := re.search(r"\(UUID:\s*(MIG-[^)\s]+)\)", line)):
            devices[-1].append(match[1])
    return [name for gpu in devices for name in (gpu[1:] or gpu)]


def worker_environment(number: int, workers: int, gpus: list[str]) -> dict[str, str]:
    """Environment of worker ``number`` of ``workers``, set before it imports torch: its GPU and its number of threads.

    Without GPUs a worker has one thread, since runs side by side are quicker than threads inside a run.
    """
    if not gpus:
        return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    threads = str(max(1, (os.cpu_count() or 1) // max(1, workers)))
    return {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)], "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def default_workers(gpus: list[str]) -> int:
    """One worker for each GPU. Without a GPU one for each core that this process may use."""
    if gpus:
        return len(gpus)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
