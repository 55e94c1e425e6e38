"""One thread a process, caches inside the checkout, and what tests of several packages need."""

import os
from pathlib import Path

import pytest
from costs import pytest_runtest_makereport, pytest_runtest_protocol, pytest_terminal_summary  # noqa: F401

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DAFW_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "dafw"))
os.environ.setdefault("WANDB_SILENT", "true")


@pytest.fixture(scope="session")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of PACS, with few small images in each."""
    import numpy as np  # within: the variables above count only if they are set before it is imported
    from PIL import Image

    from datamodules.layouts import benchmarks

    root = tmp_path_factory.mktemp("pacs")
    facts = benchmarks()["PACS"]
    rng = np.random.default_rng(1)
    for domain in facts.domains:
        for name in facts.classes:
            (root / domain / name).mkdir(parents=True)
            for index in range(10):
                pixels = rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / domain / name / f"{index}.png")
    return root
