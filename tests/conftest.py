"""One thread a process, caches inside the checkout, and what tests of several packages need."""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DAFW_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "dafw"))
os.environ.setdefault("WANDB_SILENT", "true")


@cache
def readers_of(path: Path) -> set[str]:
    """The tests of a file that read vectors, by the name of their function."""
    import golden_vectors

    text = path.read_text(encoding="utf-8")
    return golden_vectors.readers(text) if "golden_vectors" in text else set()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Marks what reads vectors ``golden``."""
    if isinstance(item, pytest.Function) and item.originalname in readers_of(item.path):
        item.add_marker(pytest.mark.golden)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Spares ``make golden`` the import of files without vectors."""
    if config.option.markexpr == "golden" and collection_path.suffix == ".py":
        return "golden" not in collection_path.read_text(encoding="utf-8") or None
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Lets no test read vectors that ``make golden`` would leave out."""
    import golden_vectors

    golden_vectors.unmarked = "" if item.get_closest_marker("golden") else item.nodeid
    result = yield
    golden_vectors.unmarked = ""
    return result


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
