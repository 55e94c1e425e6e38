"""Two gloo processes with batch b against one with batch 2b, in float64."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dafw.nn.distributed

SCRIPT = Path(__file__).with_name("two_ranks.py")
Results = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Results, Results]:
    """What one process, rank 0 and rank 1 found."""
    folder = tmp_path_factory.mktemp("ranks")
    root = Path(dafw.nn.distributed.__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(folder)]
    ranks = [
        subprocess.Popen([*command, str(rank), "2"], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=120)
            assert rank.returncode == 0, errors
    finally:
        for rank in ranks:
            rank.kill()
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.everything(0, 1), torch.load(folder / "rank0.pt"), torch.load(folder / "rank1.pt")


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
