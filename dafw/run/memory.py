"""The most memory that a run took."""

from contextlib import suppress
from pathlib import Path

PROCESS = Path("/proc/self")
"""What Linux says of this process. Other systems have no such folder."""


def restart_peaks() -> None:
    """Forgets the peaks of what this process did before. A worker makes one run after the other."""
    import torch

    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5", encoding="ascii")
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()


def peaks() -> dict[str, int]:
    """Bytes at the peak since :func:`restart_peaks`.

    Returns:
        ``peak_resident``, this process's memory in the machine, where Linux says it; and ``peak_device``, what torch
        had allocated on the current CUDA device, if it used one.
    """
    import torch

    found = {}
    with suppress(OSError, ValueError, StopIteration):
        lines = (PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        found["peak_resident"] = 1024 * int(peak.split()[1])
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["peak_device"] = int(torch.cuda.max_memory_allocated())
    return found
