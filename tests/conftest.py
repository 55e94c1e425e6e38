"""One thread a process, caches inside the checkout, and what tests of several packages need."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from costs import pytest_runtest_makereport, pytest_runtest_protocol, pytest_terminal_summary  # noqa: F401

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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lets no test read vectors that ``make golden`` would leave out."""
    import golden_vectors

    golden_vectors.unmarked = "" if item.get_closest_marker("golden") else item.nodeid


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Ends what :func:`pytest_runtest_setup` began."""
    import golden_vectors

    golden_vectors.unmarked = ""


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


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every domain of digits has a few hundred samples at most, for tests of everything but the numbers."""
    from datamodules.digits import Digits
    from datamodules.mnist_variants import ColoredMNIST, RotatedMNIST

    for owner in (Digits, ColoredMNIST, RotatedMNIST):
        monkeypatch.setattr(owner, "load", _thinned(owner.load))


def _thinned(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_few(self: Any, name: str, split: str) -> Any:
        domain = load(self, name, split)
        kept = 400 if split == "train" else 60
        return domain.subset(range(0, len(domain), max(1, len(domain) // kept)))

    return load_few


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, or one worker would end with such a file while the others have nothing left."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
