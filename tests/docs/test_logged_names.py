"""Every name that a method logs is explained in the table of docs/logged-names.md."""

import re
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning.loggers.logger import DummyLogger

from dafw.testing.cases import Case, cases

PAGE = Path(__file__).parents[2] / "docs" / "logged-names.md"


#: Rows for methods and validators of other packages. They must not stand for a name of this one.
OF_OTHERS = {"train/<term>", "val/<validator>"}


class Names(DummyLogger):
    """Keeps the names that are logged."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def log_metrics(self, metrics: dict[str, Any], *_: Any, **__: Any) -> None:
        self.names |= set(metrics)


def explained() -> list[re.Pattern[str]]:
    """The names in the first column of the page's tables; what stands in angle brackets may be anything."""
    rows = re.findall(r"^\| (`.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([^`]+)`", row)} - OF_OTHERS
    return [re.compile("[^/]+".join(map(re.escape, re.split(r"<\w+>", name)))) for name in names]


@pytest.mark.parametrize("item", cases(), ids=lambda item: item.name)
def test_every_logged_name_is_explained(item: Case, tmp_path: Path) -> None:
    logger = Names()
    _, trainer = item.train(tmp_path, logger=logger, log_every_n_steps=2)
    trainer.test(datamodule=item.make_data(), model=trainer.lightning_module, verbose=False)
    assert logger.names
    patterns = explained()
    assert [name for name in sorted(logger.names) if not any(one.fullmatch(name) for one in patterns)] == []
