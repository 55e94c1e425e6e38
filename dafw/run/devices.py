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


def worker_environment(number: int, workers: int, gpus: list[str], devices: int = 1) -> dict[str, str]:
    """Environment of worker ``number`` of ``workers``, set before it imports torch: its GPUs and its number of threads.

    Without GPUs a process has one thread, since runs side by side are quicker than threads inside a run.

    Args:
        number: of the worker, from 0.
        workers: how many there are.
        gpus: those of the machine.
        devices: how many of them a run takes.
    """
    if not gpus:
        return {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    threads = str(max(1, (os.cpu_count() or 1) // max(1, workers * devices)))
    own = [gpus[(number * devices + place) % len(gpus)] for place in range(min(devices, len(gpus)))]
    return {"CUDA_VISIBLE_DEVICES": ",".join(own), "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def default_workers(gpus: list[str], devices: int = 1) -> int:
    """One worker for as many GPUs as a run takes. Without a GPU one for as many cores that this process may use."""
    if gpus:
        return max(1, len(gpus) // devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // devices)
