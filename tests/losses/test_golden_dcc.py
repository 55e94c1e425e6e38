"""Values of the published code of DCC, see tests/golden/memspm/README.md."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor

from dafw.losses.class_discrepancy import contrastive_discrepancy
from dafw.losses.prototypes import move_prototypes, prototype_cross_entropy
from dafw.nn.consensus import consensus_scores, match
from dafw.optim.schedules import InverseDecay, exponential_ramp

CLOSE: dict[str, float] = {"rtol": 1e-7, "atol": 1e-9}


@pytest.fixture(scope="module")
def cdd() -> dict[str, NDArray[Any]]:
    return golden("memspm/cdd.npz")


def features(arrays: dict[str, NDArray[Any]], rows: int | None = None) -> list[Tensor]:
    return [torch.tensor(arrays[side][:rows], requires_grad=True) for side in ("source", "target")]


def test_class_discrepancy(cdd: dict[str, NDArray[Any]]) -> None:
    source, target = features(cdd)
    classes = torch.arange(int(cdd["n_classes_in_batch"]))
    intra, inter = contrastive_discrepancy(source, target, classes)
    np.testing.assert_allclose([intra.item(), inter.item()], [cdd["intra"], cdd["inter"]], **CLOSE)
    np.testing.assert_allclose((intra - inter).item(), cdd["cdd"], **CLOSE)
    (intra - inter).backward()  # type: ignore[no-untyped-call]
    for one, side in ((source, "source"), (target, "target")):
        assert one.grad is not None
        np.testing.assert_allclose(one.grad, cdd[f"grad_{side}"], **CLOSE)


@pytest.mark.parametrize("kind", [int, torch.tensor])
def test_class_discrepancy_over_another_number_of_classes(cdd: dict[str, NDArray[Any]], kind: Any) -> None:
    classes = torch.arange(int(cdd["n_classes_in_batch"]))
    intra, inter = contrastive_discrepancy(*features(cdd), classes, kind(7))
    found = [intra.item(), inter.item(), (intra - inter).item()]
    np.testing.assert_allclose(found, [cdd[f"{name}_num_classes7"] for name in ("intra", "inter", "cdd")], **CLOSE)


def test_class_discrepancy_of_a_single_class(cdd: dict[str, NDArray[Any]]) -> None:
    for number in (None, 1):
        intra, inter = contrastive_discrepancy(*features(cdd, int(cdd["per_class"])), torch.tensor([2]), number)
        np.testing.assert_allclose(intra.item(), cdd["intra_single_class"], **CLOSE)
        assert inter.item() == 0


def test_prototypes() -> None:
    arrays = golden("memspm/prototype_regulariser.npz")
    prototypes = F.normalize(torch.tensor(arrays["centers"]), dim=1)
    np.testing.assert_allclose(prototypes, arrays["memory_before"], **CLOSE)
    rows, codes = torch.tensor(arrays["features"], requires_grad=True), torch.tensor(arrays["labels"])
    moved = move_prototypes(prototypes, rows, codes)
    np.testing.assert_allclose(moved, arrays["memory_after"], **CLOSE)
    loss = prototype_cross_entropy(moved, rows, codes, float(arrays["temperature"]))
    np.testing.assert_allclose(loss.item(), arrays["loss"], **CLOSE)
    loss.backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    np.testing.assert_allclose(rows.grad, arrays["grad_features"], **CLOSE)


def test_consensus() -> None:
    arrays = {name: torch.tensor(value) for name, value in golden("memspm/consensus.npz").items()}
    pairs = match(arrays["s_centers"], arrays["t_centers"])
    assert pairs.tolist() == arrays["matched_pairs"].tolist()
    source, target = ([arrays[f"{side}_{n}"] for n in names] for side, names in SIDES.items())
    scores = consensus_scores(pairs, tuple(source), tuple(target))  # type: ignore[arg-type]
    np.testing.assert_allclose(scores, arrays["pair_scores"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(scores.mean(), arrays["mean_score"], rtol=1e-4, atol=1e-6)


SIDES = {"s": ("feats", "labels", "centers"), "t": ("feats", "codes", "centers")}


def test_ramp_and_learning_rates() -> None:
    arrays = golden("memspm/consensus.npz")
    schedule = InverseDecay(alpha=1e-3, per="step")
    for step, weight, rates in zip(arrays["exp_weight_iter"], arrays["exp_weight"], arrays["lr"], strict=True):
        np.testing.assert_allclose(exponential_ramp(step / 5000), weight, rtol=1e-7)
        np.testing.assert_allclose([schedule(0.0, step) * lr for lr in (1e-4, 1e-3)], rates, rtol=1e-7)
