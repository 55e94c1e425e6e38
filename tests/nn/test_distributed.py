"""Two gloo processes with batch b against one with batch 2b, in float64."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from two_ranks import one_and_both

import dafw.nn.distributed

Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results, Results]:
    """What one process, rank 0 and rank 1 found."""
    return one_and_both(Path(__file__).with_name("over_ranks.py"), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("group", ["losses", "others", "norm"])
def test_two_ranks_find_what_one_process_finds(
    results: tuple[Results, Results, Results], group: str, position: int
) -> None:
    one, two = results[0], results[1 + position]
    assert one.keys() == two.keys()
    compared = 0
    for name in (name for name in one if name.startswith(group)):
        assert one[name].keys() == two[name].keys()
        for key, expected in one[name].items():
            found = two[name][key]
            assert found.dtype == expected.dtype, (name, key)
            if key == "own_statistics":  # zero for any rank's own rows
                assert found < 1e-9, (name, key)
                continue
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=lambda m, k=(name, key): f"{k}: {m}")
            compared += 1
    assert compared


def test_no_gradient_is_trivially_zero(results: tuple[Results, Results, Results]) -> None:
    for name, found in results[0].items():
        for key, value in found.items():
            if key == "rows" or key.endswith("/rows"):
                assert value.abs().max() > 1e-6, (name, key)


def test_one_process_gathers_nothing() -> None:
    x = torch.randn(3, 2)
    assert dafw.nn.distributed.world_size() == 1
    assert dafw.nn.distributed.gather_rows(x) is x
    assert dafw.nn.distributed.sum_over_ranks(x) is x
    assert dafw.nn.distributed.from_first_rank(x) is x
