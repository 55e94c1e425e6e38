"""LAME, T3A and AdaNPC on streams: what they serve is what their authors' code does, and no weight moves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from golden_streams import GoldenHead, pass_stream
from golden_vectors import golden
from torch import Tensor

from dafw.data.target_stream import TargetStream
from dafw.errors import UserError
from dafw.methods import LAME, T3A, AdaNPC, TestTimeMethod
from dafw.nn.network import Network
from dafw.testing import case
from dafw.testing.cases import differences
from dafw.testing.toys import ToyData, toy_network

EXACT = {"rtol": 1e-7, "atol": 1e-9}


def nothing(*_: Any) -> None:
    """Looks at nothing."""


@pytest.mark.parametrize("name", ["rbf", "knn", "linear_sym"])
def test_lame_serves_what_its_authors_do(name: str, tmp_path: Path) -> None:
    a = golden("lame/affinities.npz")
    kind, _, symmetric = name.partition("_")
    method = LAME(
        GoldenHead(a["fc_w"], a["fc_b"]),
        num_classes=len(a["fc_b"]),
        affinity=kind,  # type: ignore[arg-type]
        neighbours=int(a["knn"]),
        symmetric=bool(symmetric),
    )
    (served,) = pass_stream(method, {"x1": a["features"]}, tmp_path, nothing)
    np.testing.assert_allclose(served.exp(), a[f"q_{name}"], rtol=1e-6)


@pytest.mark.parametrize("kind", ["filter", "all_code", "all_fixed"])
def test_t3a_serves_what_its_authors_do(kind: str, tmp_path: Path) -> None:
    name, _, form = kind.partition("_")
    a = golden(f"t3a/{name}.npz")
    method = T3A(
        GoldenHead(a["fc_w"], a["fc_b"]),
        num_classes=len(a["fc_b"]),
        per_class=None if a["filter_K"] < 0 else int(a["filter_K"]),
        drop_worst=form == "code",
    )
    for k, served in enumerate(pass_stream(method, a, tmp_path, nothing), 1):
        np.testing.assert_allclose(served, a[f"served{k}{'_' if form else ''}{form}"], **EXACT)


def test_adanpc_serves_what_its_authors_do(tmp_path: Path) -> None:
    a = golden("adanpc/stream.npz")

    class Given(AdaNPC):
        """Its memory is that of the vectors, whose first row is not of length 1."""

        def take_from_source(self) -> None:
            self.memory.features, self.memory.labels = (torch.tensor(a[f"{name}_init"]) for name in ("mem", "lab"))
            self.memory.features = self.memory.features.double()
            self.memory.present = torch.ones_like(self.memory.labels, dtype=torch.bool)

    classes, width = int(a["C"]), a["x1"].shape[1]
    method = Given(
        GoldenHead(np.zeros((classes, width)), np.zeros(classes)),
        num_classes=classes,
        neighbours=int(a["K"]),
        temperature=float(a["T"]),
        confidence="softmax_of_votes",
        threshold=float(a["beta"]),
    )
    held = []
    arrays = {name: a[name].astype(np.float64) for name in ("x1", "x2")}
    served = pass_stream(method, arrays, tmp_path, lambda method, _: held.append(int(method.memory.present.sum())))
    for k in (1, 2):
        np.testing.assert_allclose(served[k - 1].exp(), a[f"p{k}"], rtol=1e-4, atol=1e-6)
    assert held == [int(a["n1"]), int(a["n2"])]


# ---- on the toys


@pytest.mark.parametrize("owner", [LAME, T3A, AdaNPC])
def test_no_weight_moves(owner: type[TestTimeMethod], tmp_path: Path) -> None:
    method, _ = case(owner).train(tmp_path)
    assert not differences(method.network.state_dict(), method.start.module.state_dict())


def served(owner: type[TestTimeMethod], folder: Path, data: ToyData, **arguments: Any) -> tuple[Tensor, TestTimeMethod]:
    method, _ = case(owner).train(folder, method=case(owner).make(**arguments), data=data)
    assert isinstance(method, TestTimeMethod)
    return method.served.logits, method


@pytest.mark.parametrize("owner", [T3A, AdaNPC])
def test_a_memory_makes_later_batches_depend_on_earlier_ones(owner: type[TestTimeMethod], tmp_path: Path) -> None:
    first, _ = served(owner, tmp_path, ToyData("a", "b", batch_size=8, seed=3))
    again, _ = served(owner, tmp_path, ToyData("a", ["c", "b"], batch_size=8, seed=3))
    assert not torch.allclose(first, again[-len(first) :])


def test_a_window_joins_a_memory_once(tmp_path: Path) -> None:
    count = 8
    data = ToyData("a", "b", target_batch_size=1, count=2 * (count - 1), stream=TargetStream(window=3))
    _, method = served(T3A, tmp_path, data, per_class=None)
    assert int((method.supports.labels < 3).sum()) == 3 + count
    data = ToyData("a", "b", target_batch_size=1, count=2 * (count - 1), stream=TargetStream(window=3))
    _, method = served(AdaNPC, tmp_path, data, threshold=0.0, source_samples=10)
    assert int(method.memory.present.sum()) == 10 + count
    assert bool(method.served.used.all())


def test_adanpc_keeps_what_is_sure(tmp_path: Path) -> None:
    data = [ToyData("a", "b", batch_size=8, seed=3) for _ in range(3)]
    counts = []
    for threshold, part in zip((0.0, 0.9, 1.1), data, strict=True):
        _, method = served(AdaNPC, tmp_path, part, threshold=threshold, neighbours=5)
        held = int(method.memory.present.sum())
        counts.append(held - int(method.beginning.get_buffer("memory/present").sum()))
        assert counts[-1] == int(method.served.used.sum())
    assert counts[0] == 21 > counts[1] > counts[2] == 0


def test_t3a_needs_a_linear_head() -> None:
    item = case(T3A)
    checkpoint = item.with_source().arguments["checkpoint"]
    with pytest.raises(UserError, match="head"):
        T3A(toy_network(head_width=4), num_classes=3, checkpoint=checkpoint)


def test_lame_gives_a_row_the_class_of_its_neighbours(tmp_path: Path) -> None:
    features = torch.tensor([[0.97, 1.0], *[[1.0, 0.6]] * 5, *[[0.0, 1.0]] * 6], dtype=torch.float64)
    method = LAME(GoldenHead(torch.eye(2), torch.zeros(2)), num_classes=2, affinity="knn")
    (found,) = pass_stream(method, {"x1": features.numpy()}, tmp_path, nothing)
    assert features.argmax(1).tolist() == [1] + [0] * 5 + [1] * 6
    assert found.argmax(1).tolist() == [0] * 6 + [1] * 6


def test_a_label_head_of_two_layers_is_refused_by_t3a() -> None:
    with pytest.raises(UserError, match=r"leave out model\.network\.head_width, or train with model\.network\.bottlen"):
        T3A(Network("small_bn_net", input_size=20), num_classes=3, checkpoint="run")
