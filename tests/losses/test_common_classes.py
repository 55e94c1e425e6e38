"""What is common: a toy whose answer is known, the same steps with POT and sizes that vary, and the filling."""

import warnings
from typing import Any

import numpy as np
import ot
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.losses.common_classes import detect_common, fill_up, pick
from dafw.losses.transport import sinkhorn

CLASSES, COMMON, PRIVATE, WIDTH = 6, 4, 3, 16
SETTINGS: dict[str, Any] = {"epsilon": 0.01, "relaxation": 0.5, "iterations": 2000}


def universal(common: int, private: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features near the first four of six prototypes, then near three other directions; prototypes; labels."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64))[0]
    labels = torch.cat([torch.arange(common) % COMMON, CLASSES + torch.arange(private) % PRIVATE])
    noise = torch.randn(len(labels), WIDTH, generator=generator, dtype=torch.float64)
    return F.normalize(directions[labels] + 0.12 * noise, dim=1), directions[:CLASSES], labels


def draws_of(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


def uniform() -> Tensor:
    return torch.full((CLASSES,), 1 / CLASSES, dtype=torch.float64)


def ones(cosines: Tensor) -> Tensor:
    return torch.ones_like(cosines[:, 0])


@pytest.mark.parametrize(("common", "private"), [(60, 60), (40, 90), (90, 30)])
def test_private_classes_of_both_sides_are_found(common: int, private: int) -> None:
    rows, prototypes, labels = universal(common, private)
    cosines = rows @ prototypes.T
    first = detect_common(cosines, ones(cosines), uniform(), **SETTINGS)
    made_up, present = fill_up(rows, prototypes, first.selected, draws_of(len(rows)), 0.6)
    everything, present = torch.cat([made_up, cosines]), torch.cat([present.double(), ones(cosines)])
    found = detect_common(everything, present, uniform(), **SETTINGS)
    chosen, classes = found.selected[len(rows) :], found.labels[len(rows) :]
    assert not chosen[common:].any()
    assert chosen[:common].double().mean() > 0.5
    assert torch.equal(classes[:common], labels[:common])
    assert (found.received[:COMMON] >= 1 / CLASSES).all()
    assert (found.received[COMMON:] < 1 / CLASSES).all()
    torch.testing.assert_close(found.received.sum(), torch.tensor(1.0, dtype=torch.float64))


def test_the_entry_of_a_row_is_a_function_of_the_row() -> None:
    rows, prototypes, _ = universal(20, 20)
    cosines = rows @ prototypes.T
    found = detect_common(cosines, ones(cosines), uniform(), **SETTINGS)
    settings = {"epsilon": 0.01, "iterations": 2000, "relax_rows": 0.5, "relax_columns": 0.5}
    plan = sinkhorn(-cosines, None, uniform(), **settings).plan
    scores = cosines / 0.01 + found.potentials
    logarithms = found.offset + scores - 0.5 / 0.51 * scores.logsumexp(1, keepdim=True)
    torch.testing.assert_close(logarithms.exp(), len(rows) * plan / plan.sum(), rtol=1e-7, atol=1e-9)


def with_masks(
    rows: Tensor, prototypes: Tensor, beta: Tensor, draws: Tensor, gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's two transports with POT, boolean masks and as many made-up rows as are needed."""

    def transport(cosines: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mass = np.full(len(cosines), 1 / len(cosines))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the entropy's reference is 1
            plan = torch.from_numpy(
                ot.unbalanced.sinkhorn_knopp_unbalanced(
                    mass, beta.numpy(), -cosines.numpy(), 0.01, 0.5, reg_type="entropy", stopThr=1e-14, numItermax=10**5
                )
            )
        plan /= plan.sum()
        common = set(torch.nonzero(plan.sum(0) >= 1 / CLASSES).flatten().tolist())
        labels = plan.argmax(1)
        sure = [bool(row.max() > 1 / len(plan)) and int(row.argmax()) in common for row in plan]
        return labels, torch.tensor(sure), plan.sum(0)

    cosines = rows @ prototypes.T
    near = int((cosines.amax(1) > gamma).sum())
    far = len(rows) - near
    if near <= far:
        sure = torch.nonzero(transport(cosines)[1]).flatten()
        chosen = [sure[int(draw * len(sure))] for draw in draws[: far - near]] if len(sure) else []
        added = [cosines[i] for i in chosen]
    else:
        middle = [F.normalize((row + prototypes[(row @ prototypes.T).argmin()]) / 2, dim=0) for row in rows]
        added = [middle[int(draw * len(rows))] @ prototypes.T for draw in draws[: near - far]]
    labels, sure, received = transport(torch.stack([*added, *cosines]))
    return labels[len(added) :], sure[len(added) :], received


@pytest.mark.parametrize(("common", "private"), [(30, 30), (10, 35), (35, 10), (0, 20), (20, 0)])
@pytest.mark.parametrize("seed", [1, 2])
def test_against_masks_and_pot(common: int, private: int, seed: int) -> None:
    rows, prototypes, _ = universal(common, private, seed)
    draws = draws_of(len(rows), seed)
    beta = uniform() + torch.linspace(-0.05, 0.05, CLASSES, dtype=torch.float64)
    expected = with_masks(rows, prototypes, beta, draws, 0.8)
    cosines = rows @ prototypes.T
    first = detect_common(cosines, ones(cosines), beta, **SETTINGS)
    made_up, present = fill_up(rows, prototypes, first.selected, draws, 0.8)
    everything, present = torch.cat([made_up, cosines]), torch.cat([present.double(), ones(cosines)])
    found = detect_common(everything, present, beta, **SETTINGS)
    assert torch.equal(found.labels[len(rows) :], expected[0])
    assert torch.equal(found.selected[len(rows) :], expected[1])
    torch.testing.assert_close(found.received, expected[2], rtol=1e-6, atol=1e-8)


def test_nothing_sure_is_not_repeated() -> None:
    rows, prototypes, _ = universal(5, 15)
    nothing = torch.zeros(20, dtype=torch.bool)
    assert not fill_up(rows, prototypes, nothing, draws_of(20), 0.6)[1].any()
    one = nothing.index_fill(0, torch.tensor([3]), True)
    made_up, present = fill_up(rows, prototypes, one, draws_of(20), 0.6)
    assert present.sum() == 10
    torch.testing.assert_close(made_up, (rows[3] @ prototypes.T).expand(20, -1))


def test_made_up_private_rows_are_far_from_every_prototype() -> None:
    rows, prototypes, _ = universal(20, 4)
    made_up, present = fill_up(rows, prototypes, torch.ones(24, dtype=torch.bool), draws_of(24), 0.6)
    assert present.sum() == 16
    assert made_up[present].amax() < (rows[:20] @ prototypes.T).amax(1).mean() - 0.05


def test_picks() -> None:
    assert pick(torch.tensor([0.0, 0.49, 0.5, 0.99]), 2).tolist() == [0, 0, 1, 1]
    assert pick(torch.tensor([1.0]), torch.tensor(3)).tolist() == [2]  # as of a product that is rounded up
    assert pick(torch.tensor([0.0, 0.99]), torch.tensor(0)).tolist() == [0, 0]
