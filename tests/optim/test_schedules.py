import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from golden_vectors import golden
from jsonargparse import ArgumentParser

from dafw.optim.schedules import (
    Constant,
    Cosine,
    InverseDecay,
    Polynomial,
    Schedule,
    WarmUp,
    constant,
    cosine,
    dann_ramp,
    inverse_decay,
)

GRID = [i / 20 for i in range(21)]


def test_golden_paper() -> None:
    arrays = golden("dann/schedules.npz")
    progress = arrays["p"].tolist()
    np.testing.assert_allclose([dann_ramp(p) for p in progress], arrays["lambda_p"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose([0.01 * inverse_decay(p) for p in progress], arrays["mu_p"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose([0.01 * InverseDecay()(p, 7) for p in progress], arrays["mu_p"], rtol=1e-7, atol=1e-9)


def test_golden_tllib() -> None:
    arrays = golden("dann/schedules.npz")
    steps = arrays["tllib_iter"].tolist()
    rate = InverseDecay(alpha=0.001, per="step")
    np.testing.assert_allclose([0.01 * rate(0.5, i) for i in steps], arrays["tllib_lr"], rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose([dann_ramp(i / 1000, 1) for i in steps], arrays["tllib_grl_coeff"], rtol=1e-7, atol=1e-9)


def test_ramp_is_the_papers_formula_and_never_overflows() -> None:
    for p in GRID:
        assert dann_ramp(p, 3.0) == pytest.approx(2 / (1 + math.exp(-3.0 * p)) - 1, abs=1e-15)
    assert dann_ramp(0.0) == 0
    assert dann_ramp(1.0) == pytest.approx(math.tanh(5))
    assert dann_ramp(1.0, 1e6) == 1
    assert dann_ramp(1.0, -1e6) == -1
    assert sorted(map(dann_ramp, GRID)) == [dann_ramp(p) for p in GRID]


def test_inverse_decay() -> None:
    assert inverse_decay(0.0) == 1
    assert inverse_decay(1.0) == pytest.approx(11**-0.75)
    assert inverse_decay(0.5, alpha=2.0, power=1.0) == pytest.approx(0.5)


def test_constant() -> None:
    assert {constant(p) for p in GRID} == {1.0} == {Constant()(p, 3) for p in GRID}


def test_cosine() -> None:
    assert [cosine(p) for p in (0.0, 0.5, 1.0, 1.5)] == pytest.approx([1, 0.5, 0, 0], abs=1e-15)
    found = [cosine(p, warmup=0.2) for p in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert found == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-15)
    assert Cosine(0.2)(0.1, 99) == cosine(0.1, 0.2)


@pytest.mark.parametrize("warmup", [-0.1, 1.0, 2.0])
def test_cosine_warmup_is_a_share(warmup: float) -> None:
    with pytest.raises(ValueError, match="share of training"):
        cosine(0.5, warmup)
    with pytest.raises(ValueError, match="share of training"):
        Cosine(warmup)


def test_schedules_are_values() -> None:
    assert InverseDecay() == InverseDecay(10.0, 0.75, "progress")
    with pytest.raises(FrozenInstanceError):
        InverseDecay().alpha = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"class_path": "dafw.optim.schedules.Constant"}, Constant()),
        ({"class_path": "dafw.optim.schedules.Cosine", "init_args": {"warmup": 0.1}}, Cosine(0.1)),
        (
            {"class_path": "dafw.optim.schedules.InverseDecay", "init_args": {"alpha": 0.001, "per": "step"}},
            InverseDecay(alpha=0.001, per="step"),
        ),
        ({"class_path": "InverseDecay", "init_args": {"power": 1}}, InverseDecay(power=1.0)),
    ],
)
def test_from_configuration(given: dict[str, object], expected: Schedule) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--schedule", type=Schedule | None)
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the older of its two names
    config = parser.parse_object({"schedule": given})
    assert instantiate(config).schedule == expected
    assert instantiate(parser.parse_string(parser.dump(config))).schedule == expected


def test_a_warm_up_comes_before_any_schedule() -> None:
    """mmsegmentation multiplies the schedule's rate by 1 - (1 - step / steps) (1 - start) in the same way."""
    plain, warm = Polynomial(1.0), WarmUp(10, 0.2, Polynomial(1.0))
    for step in (0, 3, 9):
        assert warm(step / 40, step) == pytest.approx(plain(step / 40, step) * (1 - (1 - step / 10) * 0.8))
    assert warm(10 / 40, 10) == plain(10 / 40, 10)
    assert [WarmUp(2, 0.0)(0.0, step) for step in range(4)] == [0.0, 0.5, 1.0, 1.0]
