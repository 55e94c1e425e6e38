"""What a result says of the code and the machine that made it."""

import dataclasses
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from dafw import __version__
from dafw.run.result import Result
from dafw.run.sources import PROJECT, Sources, find_source, is_installed
from dafw.samples import Samples


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
    """The revision of the repository that holds this package, with "-dirty" if files changed; empty without one.

    An installed package is in no repository, even if its environment lies in somebody's.
    """
    return "" if is_installed(Path(__file__)) else _revision(Path(__file__).parents[2])


def repositories(modules: Iterable[str]) -> dict[str, str]:
    """The revisions of the user's repositories that hold some of these modules, by the name of their folder.

    A revision ends in "-dirty" if a tracked file changed, or if one of the modules is not in the repository.
    """
    found: dict[Path, list[Path]] = {}
    tops: dict[Path, Path | None] = {}
    for path in filter(None, (find_source(name) for name in modules if name.partition(".")[0] not in PROJECT)):
        folder = path.resolve().parent
        if folder not in tops:
            said = _git(folder, "rev-parse", "--show-toplevel")
            tops[folder] = Path(said) if said else None
        if (top := tops[folder]) is not None:
            found.setdefault(top, []).append(path.resolve())
    revisions = {}
    for top, paths in found.items():
        revision = _revision(top)
        lacking = _git(top, "status", "--porcelain", "--ignored", "--", *map(str, paths))
        revisions[top.name] = f"{revision}-dirty" if lacking and not revision.endswith("-dirty") else revision
    return {name: revision for name, revision in revisions.items() if revision}


def with_origin(result: Result, sources: Sources, samples: Mapping[str, Samples]) -> Result:
    """Adds the code that made a result, the repositories of it, and the samples that were trained on."""
    return dataclasses.replace(result, sources=sources, repositories=repositories(sources), samples=samples)


def _revision(folder: Path) -> str:
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=12")


def _git(folder: Path, *arguments: str) -> str:
    """What git says of a repository; empty if it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
