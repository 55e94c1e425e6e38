"""Every public method for classes and for masks is exported, with a free number of images and what it serves."""

from pathlib import Path

import pytest
import torch

from dafw.api.exporting import TEST_TIME_NOTE, about
from dafw.api.trained import Trained
from dafw.errors import UserError
from dafw.export.folder import Form
from dafw.export.forms import trace
from dafw.export.graph import Program, encode
from dafw.export.making import Wanted, export
from dafw.export.served import Served, served
from dafw.methods import Shallow
from dafw.testing.cases import Case, case, cases

CASES = {one.class_path.rpartition(".")[2]: one for one in cases()}
#: Methods with a rule of their own of what is served, and one that has none.
OWN = ("SourceOnly", "AdaBN", "DCAN", "DRM", "KNN", "MCD", "MemSPM", "OSBP", "OVANet", "RMT", "UAN", "UniOT")
OWN_MASKS = ("Dacs", "IDM", "OSUDA")


def module_of(one: Case) -> Served:
    method = one.make().eval()
    if isinstance(method, Shallow):  # it is fitted when its training starts
        features = method.network(torch.rand(12, 3, 6, 6)).features.detach()
        method.fitted.fit(features, torch.arange(12) % 3, features, **method.options, seed=0)
    method.start_evaluation("predict")
    return served(method)


def some(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8)


@pytest.mark.parametrize("name", CASES)
def test_every_method_is_exported(name: str) -> None:
    method = CASES[name].make()
    if method.problem.kind == "detection":
        with pytest.raises(UserError, match=r"this run is for detection, and only .* non-maximum suppression"):
            export(method, ("a",), None, [some(1)[0]], Path("nowhere"), Wanted())
        return
    module = module_of(CASES[name])
    program = trace(module, some(3), "fixed")
    runs = [program.module()]
    if name in OWN + OWN_MASKS:
        graph, tensors = encode(program)
        runs.append(Program(graph, tensors))
    for count in (1, 7):
        x = some(count)
        with torch.no_grad():
            expected = module(x)
            for run in runs:
                found = run(x)
                assert list(found) == list(expected)
                for key, value in expected.items():
                    torch.testing.assert_close(found[key], value)
    if module.kind == "segmentation":
        assert expected["probabilities"].shape == (7, 3, 6, 6)
    assert ("known" in expected) == (module.method.unknown_scores is not None and module.method.rejects_itself)


@pytest.mark.parametrize("name", ["DRM", "UAN"])
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_other_forms(name: str, form: Form, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    method = module_of(CASES[name]).method
    config = export(method, ("a", "b", "c"), None, list(some(4)), tmp_path / "m", Wanted(form))
    assert config.difference <= 1e-5
    assert config.shape == (3, 6, 6)
    assert ("known" in config.outputs) == (name == "UAN")


def test_an_average_of_the_weights_is_what_travels(tmp_path: Path) -> None:
    """The moving average is served, and it alone is in the file."""
    method = case(CASES_OWNER, ema_decay=0.5).make().eval()
    with torch.no_grad():
        for one in method.network.parameters():
            one.add_(1.0)
    config = export(method, ("a", "b", "c"), None, list(some(2)), tmp_path / "m", Wanted())
    assert config.network_prefix == "method.weight_average.module."
    assert config.difference <= 1e-5


CASES_OWNER = type(CASES["SourceOnly"].make())


def test_a_rejection_is_an_output(tmp_path: Path) -> None:
    rule = {"class_path": "dafw.evaluation.rejection.Entropy", "init_args": {"threshold": 0.5}}
    method = case(CASES_OWNER, rejection=rule).make().eval()
    config = export(method, ("a", "b", "c"), None, list(some(2)), tmp_path / "m", Wanted())
    assert config.outputs == ("probabilities", "unknown", "known")
    assert "`known`" in (tmp_path / "m" / "README.md").read_text()


def test_the_card_of_a_test_time_method_says_what_does_not_travel() -> None:
    method = CASES["Tent"].make()
    trained = Trained(method, ("a", "b", "c"), Path("tent.ckpt"), None, CASES["Tent"].make_data())
    assert about(trained, None, "")["limits"][0] == TEST_TIME_NOTE
