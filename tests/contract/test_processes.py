"""The other processes of the checks are like this one."""

from collections.abc import Iterator

import pytest
import torch

from dafw.testing.server import run_fresh


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2])
def test_they_have_as_many_threads(number: int) -> None:
    torch.set_num_threads(number)
    (own, told) = run_fresh("torch:get_num_threads", variables=[{}, {"OMP_NUM_THREADS": "3"}])
    assert (own.code, told.code) == (number, 3), (own.err, told.err)
