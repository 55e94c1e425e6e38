"""Shift scores of target samples beside what held-out source samples give."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dafw.errors import UserError
from dafw.estimation import SourceEvidence, shift_scores, warning

K = 4


def rows(n: int, seed: int, *, moved: float = 0.0, scale: float = 3.0, only: int | None = None) -> Any:
    """Features (n, 6) and logits (n, K), which read the features."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 6)).astype(np.float32)
    logits = scale * features[:, :K]
    if only is not None:
        logits[:, only] += 20
    return features + np.float32(moved), logits


def evidence(m: int = 600) -> SourceEvidence:
    features, logits = rows(m, 0)
    return SourceEvidence(logits, logits.argmax(1), np.arange(m), features)


def test_more_of_the_source_stays_within_the_limits() -> None:
    exceeding = 0
    for seed in range(1, 7):
        features, logits = rows(300, seed)
        found = shift_scores(evidence(), logits, features)
        assert set(found) == {"proxy_a_distance", "below_floor", "class_drift"}
        exceeding += sum(one.exceeds for one in found.values())
        assert found["below_floor"].held_out == pytest.approx(0.05, abs=0.01)
    assert exceeding <= 1


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"moved": 3.0}, "proxy_a_distance", "their features (proxy A-distance 2.00, source"),
        ({"scale": 0.3}, "below_floor", "the confidence of the predictions ("),
        ({"only": 2}, "class_drift", "the predicted classes (drift 0.7"),
    ],
)
def test_each_score_sees_its_shift_and_the_warning_names_it(change: dict[str, Any], name: str, said: str) -> None:
    features, logits = rows(300, 1, **change)
    found = shift_scores(evidence(), logits, features)
    assert [other for other, one in found.items() if one.exceeds] == [name]
    sentence = warning(found)
    assert sentence is not None
    assert said in sentence
    assert "label about 100 of them" in sentence
    assert warning({other: one for other, one in found.items() if other != name}) is None


def test_scores_by_hand() -> None:
    kept = evidence()
    features, logits = rows(50, 3)
    found = shift_scores(kept, logits)
    assert set(found) == {"below_floor", "class_drift"}
    p: list[NDArray[Any]] = [np.exp(x.astype(np.float64)) for x in (kept.logits, logits)]
    source, target = (np.sort((one / one.sum(1, keepdims=True)).max(1)) for one in p)
    assert found["below_floor"].value == (target < source[int(0.05 * (len(source) - 1))]).mean()
    shares = [np.bincount(x.argmax(1), minlength=K) / len(x) for x in (kept.logits, logits)]
    assert found["class_drift"].value == pytest.approx(np.abs(shares[0] - shares[1]).sum() / 2)
    assert shift_scores(kept, logits, features, seed=3) == shift_scores(kept, logits, features, seed=3)


def test_what_cannot_be_compared_is_left_out() -> None:
    kept = evidence()
    features, logits = rows(300, 1)
    few_features, few_logits = rows(5, 1)
    assert set(shift_scores(kept, few_logits, few_features)) == {"below_floor", "class_drift"}
    assert set(shift_scores(kept, logits, features[:, :3])) == {"below_floor", "class_drift"}
    assert set(shift_scores(replace(kept, features=kept.features[:0]), logits, features)) == {
        "below_floor",
        "class_drift",
    }
    features[0, 0] = np.inf
    assert set(shift_scores(kept, logits, features)) == {"below_floor", "class_drift"}
    logits[0, 0] = np.nan
    assert shift_scores(kept, logits, features) == {}
    with pytest.raises(UserError, match="there is none"):
        shift_scores(kept, logits[:0])
