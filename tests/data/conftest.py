"""Image files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of random images, 30 x 40 pixels, of the names that the file of the test lists in ``NAMES``."""
    rng = np.random.default_rng(0)
    for name in request.module.NAMES:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"
