"""Domain adaptation and generalisation on PyTorch Lightning. Each name is imported when it is first used."""

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dafw.api.making import make as make
    from dafw.api.runs import results as results
    from dafw.api.trained import Trained as Trained
    from dafw.api.trained import load as load
    from dafw.errors import UserError as UserError
    from dafw.export.predicting import Predictions as Predictions
    from dafw.export.pretrained import Pretrained as Pretrained
    from dafw.export.pretrained import from_pretrained as from_pretrained
    from dafw.methods import *  # noqa: F403
    from dafw.nn.network import Network as Network
    from dafw.nn.segmentation import SegmentationNetwork as SegmentationNetwork
    from dafw.run.result import Result as Result
    from datamodules import *  # noqa: F403

_HOMES = {
    "Network": "dafw.nn.network",
    "Predictions": "dafw.export.predicting",
    "Pretrained": "dafw.export.pretrained",
    "Result": "dafw.run.result",
    "SegmentationNetwork": "dafw.nn.segmentation",
    "Trained": "dafw.api.trained",
    "UserError": "dafw.errors",
    "from_pretrained": "dafw.export.pretrained",
    "load": "dafw.api.trained",
    "make": "dafw.api.making",
    "results": "dafw.api.runs",
}
"""Where the names are, besides those of the methods and of the datamodules."""


@cache
def _listed() -> dict[str, str]:
    """All names with their modules. It reads source files, and imports nothing that is heavy."""
    from pathlib import Path

    import datamodules
    from dafw.commands.listing import exported

    methods = exported(Path(__file__).parent / "methods" / "__init__.py")
    return {**dict.fromkeys(methods, "dafw.methods"), **dict.fromkeys(datamodules.__all__, "datamodules"), **_HOMES}


def __getattr__(name: str) -> Any:
    home = None if name.startswith("_") else _listed().get(name)
    if home is None:
        raise AttributeError(f"module 'dafw' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(home), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_listed()})
