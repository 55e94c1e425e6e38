"""Every public test-time method keeps the contract of streams, whichever network and statistics it has."""

from pathlib import Path

import pytest

from dafw.methods import TestTimeMethod
from dafw.testing import Case, cases, contract

STREAMING = [item for item in cases() if issubclass(item.owner, TestTimeMethod)]
every_method = pytest.mark.parametrize("item", STREAMING, ids=lambda item: item.name)


@every_method
def test_first_served(item: Case, tmp_path: Path) -> None:
    contract.check_first_served(item, tmp_path)


@every_method
def test_served_before_step(item: Case, tmp_path: Path) -> None:
    contract.check_served_before_step(item, tmp_path)


@every_method
def test_no_row_counts(item: Case, tmp_path: Path) -> None:
    contract.check_no_row_counts(item, tmp_path)


@every_method
def test_restart(item: Case, tmp_path: Path) -> None:
    contract.check_restart(item, tmp_path)


@every_method
def test_batch_of_one(item: Case, tmp_path: Path) -> None:
    contract.check_batch_of_one(item, tmp_path)
