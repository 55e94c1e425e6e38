"""What ``make test-minimal`` runs with the oldest supported versions: the contract of a few methods, and a run.

No test run without a file name finds this file, since with the newest versions ``tests/contract`` and ``tests/cli`` ask
the same of every method.
"""

import json
from pathlib import Path

import pytest
import torch
from commands import QUICK, call, one_run

from dafw.methods import DANN, ERM, MCD, SourceOnly
from dafw.nn.network import Network
from dafw.optim.sharpness import SAM
from dafw.testing import Case, case, contract

#: One that Lightning steps, one with a critic, one that makes its own updates, one that may not see the target.
CASES = [case(SourceOnly), case(DANN), case(MCD), case(ERM)]
each = pytest.mark.parametrize("item", CASES, ids=lambda item: item.name)
FIT = ("fit", "--model", "DANN", "--model.width", "8", "--model.ema_decay", "0.9", *QUICK)


@each
def test_contract(item: Case, tmp_path: Path) -> None:
    contract.check_label_blind(item, tmp_path)
    contract.check_no_stall(item, tmp_path)
    contract.check_batch_free_inference(item, tmp_path)
    contract.check_round_trip(item, tmp_path)
    contract.check_bf16(item, tmp_path)
    if item.owner.control:
        contract.check_control(item, tmp_path)


def test_resume_in_another_process(tmp_path: Path) -> None:
    assert contract.check_resume(CASES, tmp_path) == {item.name: {} for item in CASES}


def test_two_ranks(tmp_path: Path) -> None:
    found = contract.check_ranks(CASES, tmp_path)
    for item in CASES:
        assert (found[item.name] > 1e-9) == bool(item.owner.rank_difference_reason), (item.name, found)


def test_sharpness(tmp_path: Path) -> None:
    item = case(SourceOnly, sharpness=SAM(0.05))
    contract.check_label_blind(item, tmp_path)


@pytest.mark.parametrize("backbone", ["resnet18", "mnist_net"])
def test_backbones(backbone: str) -> None:
    network = Network(backbone, input_size=28 if backbone == "mnist_net" else None)
    network.set_classes(3)
    assert network.eval()(torch.zeros(2, 3, 28, 28)).logits.shape == (2, 3)


def test_fit_goes_on_tests_and_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert call(capsys, *FIT).code == 0
    folder = one_run(tmp_path / "runs")
    result = json.loads((folder / "result.json").read_text())
    first = [path.name for path in (folder / "checkpoints").iterdir()]
    assert first == ["step=2.ckpt"]
    (folder / "result.json").unlink()
    assert call(capsys, *FIT).code == 0  # goes on from the last step, and makes the result again
    assert json.loads((folder / "result.json").read_text())["test"] == result["test"]
    for command in ("test", "validate", "predict"):
        assert call(capsys, command, *FIT[1:]).code == 0


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (("methods",), ("datasets",), ("table", "list"), ("--version",)):
        done = call(capsys, *command)
        assert (done.code, done.err) == (0, "")
        assert done.out
    with pytest.raises(SystemExit) as ended:
        call(capsys, *FIT, "--print_config")
    assert ended.value.code == 0
    assert "class_path: dafw.nn.network.Network" in capsys.readouterr().out
