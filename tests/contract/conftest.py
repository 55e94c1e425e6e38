"""What is run once for all the cases of a file, which names them ``CASES``."""

from typing import Any

import pytest

from dafw.testing import contract


@pytest.fixture(scope="module")
def resumed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each case, what differs after it was stopped and went on in another process."""
    return contract.check_resume(request.module.CASES, tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def ranked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Of each case, how far two ranks and one are apart."""
    return contract.check_ranks(request.module.CASES, tmp_path_factory.mktemp("ranks"))
