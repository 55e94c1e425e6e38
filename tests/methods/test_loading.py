"""``Method.load``: it runs nobody's code, and looks at the data that it is given."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dafw.errors import UserError
from dafw.methods import DANN, Method
from dafw.testing.toys import ToyData, toy_network, toy_trainer

TASK: dict[str, Any] = {"batch_size": 8, "steps_per_epoch": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    trainer = toy_trainer(folder, epochs=1)
    trainer.fit(DANN(toy_network(), num_classes=3, width=8), datamodule=ToyData("a", "b", **TASK))
    trainer.save_checkpoint(folder / "step=2.ckpt")
    return folder / "step=2.ckpt"


def changed(trained: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    content = torch.load(trained, weights_only=True)
    change(content)
    torch.save(content, folder / "changed.ckpt")
    return str(folder / "changed.ckpt")


def network(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["dafw"]["method"]["init_args"]["network"]["init_args"]
    return found


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"backbone": "evil_module.Net"}, "names the backbone evil_module.Net: import evil_module first"),
        ({"backbone": "os.system"}, "has something other than an nn.Module as system"),
        ({"bottleneck": 10**9}, r"its network\.bottleneck is 1000000000, and it holds \d+ weights in all"),
        ({"backbone_args": {"x": [1, 10**9]}}, r"its network\.backbone_args\.x\.1 is 1000000000"),
        ({"backbone": "resnet18", "backbone_args": {"checkpoint_path": "x.pth"}}, "takes no checkpoint_path"),
        ({"backbone_args": {"x": {"class_path": "subprocess.Popen", "init_args": {}}}}, "names subprocess.Popen"),
        ({"unheard": 1}, "gives dafw.nn.network.Network arguments that it does not take"),
        ({"bottleneck": 4}, "does not fit the method that it names: Missing key"),
    ],
)
def test_what_a_file_may_not_ask_for(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], said: str
) -> None:
    (tmp_path / "evil_module.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=said):
        Method.load(changed(trained, tmp_path, lambda content: network(content).update(arguments)))
    assert not (tmp_path / "ran").exists()
    assert "evil_module" not in sys.modules


def test_the_first_evaluation_looks_at_the_data(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later one is of whatever data it is given."""
    method = Method.load(str(trained))
    toy_trainer(tmp_path).test(method, datamodule=ToyData("a", "b", **TASK), verbose=False)
    toy_trainer(tmp_path).test(method, datamodule=ToyData("a", "b", count=60, **TASK), verbose=False)
    method = Method.load(str(trained))
    with pytest.raises(UserError, match=r"the test samples of a changed since .*step=2\.ckpt: 21 then, 31 now"):
        toy_trainer(tmp_path).test(method, datamodule=ToyData("a", "b", count=60, **TASK), verbose=False)
    method = Method.load(str(trained))
    method.accept_changed_data = True
    toy_trainer(tmp_path).test(method, datamodule=ToyData("a", "b", count=60, **TASK), verbose=False)
    monkeypatch.setattr(ToyData, "class_names", ("zero", "two", "one"))
    with pytest.raises(UserError, match=r'output 1 of .* is class "one", but "two" in the data'):
        toy_trainer(tmp_path).test(Method.load(str(trained)), datamodule=ToyData("a", "b", **TASK), verbose=False)


def test_a_fit_that_goes_on_looks_at_the_data(trained: Path, tmp_path: Path) -> None:
    method = DANN(toy_network(), num_classes=3, width=8)
    with pytest.raises(UserError, match=r"the training samples of a changed since .*: 40 then, 60 now"):
        toy_trainer(tmp_path).fit(
            method, datamodule=ToyData("a", "b", count=60, **TASK), ckpt_path=trained, weights_only=True
        )
