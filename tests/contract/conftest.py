"""What is run once for all the cases of a file that are asked for: starting processes costs more than training."""

from pathlib import Path
from typing import Any

import pytest

from dafw.testing import Case, contract


@pytest.fixture(scope="module")
def resumed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For each case, what differs after it was stopped and went on in another process."""
    return contract.check_resume(cases_of(request, "test_resume"), tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def ranked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """For each case, how far two ranks and one are apart."""
    return contract.check_ranks(cases_of(request, "test_ranks"), tmp_path_factory.mktemp("ranks"))


def cases_of(request: pytest.FixtureRequest, test: str) -> list[Case]:
    """The cases with which the test is to run."""
    path = Path(request.path)
    found = [item for item in request.session.items if item.path == path and item.originalname == test]
    return [item.callspec.params["item"] for item in found]
