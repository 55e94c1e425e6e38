"""RoTTA, against a trajectory of its authors' code and by its properties."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden_streams import GoldenNetwork, mirrored, norm_state, pass_stream
from golden_vectors import golden
from torch import nn

from dafw.errors import UserError
from dafw.methods import RoTTA
from dafw.nn.layout import StreamStatistics
from dafw.nn.norm import convert_norm
from dafw.testing import case
from dafw.testing.cases import differences

EXACT = {"rtol": 1e-7, "atol": 1e-9}


def test_a_trajectory_of_the_authors_code(tmp_path: Path) -> None:
    a = golden("rotta/trajectory.npz")
    method = RoTTA(
        GoldenNetwork(a),
        num_classes=len(a["init_fc_b"]),
        lr=float(a["lr"]),
        momentum=float(a["beta1"]),
        capacity=int(a["memory_size"]),
        update_every=int(a["update_frequency"]),
        decay=1 - float(a["nu"]),
        statistics_momentum=float(a["alpha"]),
        augment=mirrored,
    )

    def look(method: RoTTA, k: int) -> None:
        labels = method.memory.labels[method.memory.arrivals >= 0]
        np.testing.assert_array_equal(labels.bincount(minlength=method.num_classes), a[f"occupancy{k}"])
        for who, network in (("student", method.network), ("teacher", method.teacher.module)):
            for name, value in norm_state(network).items():
                expected = a[f"{who}{k}_{name}"]
                np.testing.assert_allclose(value, expected, **EXACT, err_msg=f"{who}'s {name} after {k}")

    for k, served in enumerate(pass_stream(method, a, tmp_path, look), 1):
        np.testing.assert_allclose(served, a[f"served{k}"], **EXACT)


@pytest.mark.parametrize("form", ["bn1", "bn2"])
def test_statistics_follow_as_in_the_authors_code(form: str) -> None:
    a = {name: torch.tensor(value) for name, value in golden("rotta/robust_bn.npz").items()}
    part = {name.removeprefix(f"{form}_"): value for name, value in a.items() if name.startswith(form)}
    plain = (nn.BatchNorm1d if form == "bn1" else nn.BatchNorm2d)(len(part["weight"])).double()
    plain.load_state_dict(
        {
            **plain.state_dict(),
            "weight": part["weight"],
            "bias": part["bias"],
            "running_mean": part["mean0"],
            "running_var": part["var0"],
        }
    )
    holder = nn.Sequential(plain)
    layout = convert_norm(holder, "joint")
    holder.eval()
    for k in (1, 2):
        x = part[f"x{k}"].requires_grad_()
        with layout.temporarily(stream=StreamStatistics("average", float(a["alpha"]), biased=True)):
            y = holder(x)
        np.testing.assert_allclose(y.detach(), part[f"y{k}"], **EXACT)
        gradient = torch.autograd.grad((y * part[f"cotangent{k}"]).sum(), x)[0]
        np.testing.assert_allclose(gradient, part[f"grad_x{k}"], **EXACT)
        np.testing.assert_allclose(holder[0].running_mean, part[f"mean{k}"], **EXACT)
        np.testing.assert_allclose(holder[0].running_var, part[f"var{k}"], **EXACT)
    np.testing.assert_allclose(holder(part["x_eval"]).detach(), part["y_eval"], **EXACT)


def test_rows_that_were_stored_count_as_used(tmp_path: Path) -> None:
    method, _ = case(RoTTA, capacity=6, time_weight=0.0).train(tmp_path)
    assert isinstance(method, RoTTA)
    assert 0 < int(method.served.used.sum()) < len(method.served.used)
    assert int(method.memory.arrived) == len(method.served.used)


def test_a_memory_of_one_class_still_teaches(tmp_path: Path) -> None:
    method, _ = case(RoTTA, capacity=3, update_every=2, lr=0.01).train(tmp_path)
    assert differences(method.network.state_dict(), method.start.module.state_dict())


def test_a_second_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="RoTTA has a teacher of its own"):
        case(RoTTA, ema_decay=0.9).make()
