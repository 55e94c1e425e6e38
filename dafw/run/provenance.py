"""What a result says of the code and the machine that made it."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

from dafw import __version__


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the packages that compute, by name."""
    import pytorch_lightning
    import torch
    import torchvision

    packages = {"torch": torch, "torchvision": torchvision, "pytorch_lightning": pytorch_lightning}
    own = {"dafw": __version__, "python": platform.python_version()}
    timm = version("timm")  # its import would take a second
    return own | {name: str(package.__version__) for name, package in packages.items()} | {"timm": timm}


def machine() -> str:
    """Operating system, processor, number of cores, and the GPU's name or "cpu"."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{platform.system().lower()} {platform.machine()}, {os.cpu_count()} cores, {device}"


def git_revision() -> str:
    """The revision of the repository that holds this package, with "-dirty" if files changed; empty without one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parents[2]), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
