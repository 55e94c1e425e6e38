"""Fixtures: image folders."""

from pathlib import Path

import numpy as np
import pytest
from folders import COUNTS
from PIL import Image


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("benchmark")
    rng = np.random.default_rng(0)
    for domain, classes in COUNTS.items():
        for name, count in classes.items():
            (root / domain / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (20 + index % 5, 24, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{index:03}.png")
    return root


@pytest.fixture
def root(shared_root: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    for path in shared_root.rglob("*.png"):
        copy = tmp_path / "benchmark" / path.relative_to(shared_root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "benchmark"
