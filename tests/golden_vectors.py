"""Reference vectors: arrays computed by running other implementations."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def golden(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of one file, for instance ``dann/schedules.npz``.

    Args:
        path: relative to the folder in the environment variable ``DAFW_GOLDEN``, or to ``tests/golden``. Other files
            of the same form may take the place of ours, so nothing in a test may depend on particular numbers.
    """
    folder = Path(os.environ.get("DAFW_GOLDEN") or Path(__file__).parent / "golden")
    with np.load(folder / path) as arrays:
        return {name: arrays[name] for name in arrays.files}
