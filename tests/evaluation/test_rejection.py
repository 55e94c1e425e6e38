"""Rejection: scores, thresholds given and fitted, and what a checkpoint holds of them."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from dafw.errors import UserError
from dafw.evaluation.rejection import Confidence, Entropy, Rejection
from dafw.recording import build, describe

BOTH = pytest.mark.parametrize("make", [Entropy, Confidence])


def logits(rows: int = 50, classes: int = 4, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


def test_scores_against_their_definitions() -> None:
    x = logits().double()
    torch.testing.assert_close(Entropy().score(x), Categorical(logits=x).entropy() / math.log(4))
    torch.testing.assert_close(Confidence().score(x), 1 - x.softmax(1).amax(1))


@BOTH
def test_scores_at_their_ends(make: type[Rejection]) -> None:
    sure, uniform = torch.tensor([[200.0, 0, 0]]), torch.zeros(1, 3)
    assert make().score(sure) == 0
    torch.testing.assert_close(make().score(uniform), torch.tensor([1.0 if make is Entropy else 2 / 3]))
    torch.testing.assert_close(make().score(torch.randn(5, 1)), torch.zeros(5))  # one class leaves nothing to doubt


def test_sure_samples_do_not_tie() -> None:
    x = torch.tensor([[40.0, 0.0], [41.0, 0.0], [42.0, 0.0]])
    assert (x.softmax(1).amax(1) == 1).all()
    assert (Confidence().score(x).diff() < 0).all()


@BOTH
@pytest.mark.parametrize(("dtype", "found"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_precision(make: type[Rejection], dtype: torch.dtype, found: torch.dtype) -> None:
    x = logits().to(dtype)
    rejection = make()
    rejection.fit(x)
    margins = rejection(x)
    assert margins.dtype == found
    assert (margins > 0).sum() <= 2
    torch.testing.assert_close(rejection.score(x), make().score(x.double()).to(found))


@BOTH
@pytest.mark.parametrize(
    ("keep", "rows", "kept"), [(0.95, 100, 95), (0.95, 50, 48), (0.07, 100, 7), (1, 30, 30), (0.001, 30, 1)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fitted_threshold_keeps_its_share(
    make: type[Rejection], keep: float, rows: int, kept: int, dtype: torch.dtype
) -> None:
    x = logits(rows, seed=rows).to(dtype)
    rejection = make(keep=keep)
    rejection.fit(x)
    assert int((rejection(x) <= 0).sum()) == kept


@BOTH
def test_half_precision_buffer_keeps_at_least_its_share(make: type[Rejection]) -> None:
    for seed in range(5):
        x = logits(40, seed=seed)
        rejection = make(keep=0.5).bfloat16()
        rejection.fit(x)
        assert int((rejection(x) <= 0).sum()) >= 20


@BOTH
def test_nothing_is_decided_before_fitting(make: type[Rejection]) -> None:
    rejection = make()
    assert rejection.needs_fit
    assert rejection(logits()).isnan().all()
    rejection.fit(logits())
    assert not rejection.needs_fit
    torch.testing.assert_close(rejection(logits()), rejection.score(logits()) - rejection.fitted)


@BOTH
def test_a_given_threshold_wins(make: type[Rejection]) -> None:
    rejection = make(threshold=0.25)
    assert not rejection.needs_fit
    rejection.fit(logits())
    assert not rejection.fitted.isnan()
    torch.testing.assert_close(rejection(logits()), rejection.score(logits()) - 0.25)
    assert make(threshold=0).needs_fit is False  # 0 is a threshold too


@BOTH
def test_round_trip(make: type[Rejection]) -> None:
    rejection = make(keep=0.8)
    rejection.fit(logits())
    again = build(describe(rejection))
    assert type(again) is make
    assert again.keep == 0.8
    assert again.needs_fit
    again.load_state_dict(rejection.state_dict())
    torch.testing.assert_close(again(logits(seed=1)), rejection(logits(seed=1)), rtol=0, atol=0)
    assert build(describe(make(0.4))).threshold == 0.4


@BOTH
def test_margins_are_those_of_each_row_and_have_gradients(make: type[Rejection]) -> None:
    x = logits().requires_grad_(True)
    rejection = make(threshold=0.1)
    margins = rejection(x)
    torch.testing.assert_close(torch.cat([rejection(row) for row in x.split(1)]), margins)
    margins.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"keep": 0.0}, r"model\.rejection\.keep is a share, more than 0 and at most 1, not 0\.0"),
        ({"keep": 1.5}, r"model\.rejection\.keep .* not 1\.5"),
        ({"keep": math.nan}, r"model\.rejection\.keep .* not nan"),
        ({"threshold": math.nan}, r"model\.rejection\.threshold must be a finite number or null, not nan"),
        ({"threshold": math.inf}, r"model\.rejection\.threshold must be a finite number or null, not inf"),
    ],
)
def test_wrong_arguments(arguments: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Entropy(**arguments)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(UserError, match=r"no source validation row to fit on: set model\.rejection\.threshold"):
        Entropy().fit(torch.empty(0, 3))
    with pytest.raises(UserError, match="outputs on the source are nan"):
        Confidence().fit(torch.full((4, 3), math.nan))


def test_a_rule_without_a_score() -> None:
    with pytest.raises(UserError, match=r"model\.rejection must be a class that scores samples: Entropy, Confidence"):
        Rejection(threshold=0.3)
