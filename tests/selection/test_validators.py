from copy import deepcopy
from dataclasses import fields, replace
from inspect import signature
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dafw.selection import (
    VALIDATORS,
    AverageConfidence,
    DeepEmbeddedValidation,
    Entropy,
    Evidence,
    InformationMaximisation,
    PseudoBoxes,
    SoftNeighbourhoodDensity,
    ThresholdedConfidence,
)
from dafw.selection.dev import controlled_mean, density_ratios

CLASSES = 4
Array = NDArray[Any]


def evidence(train: int = 40, source: int = 30, target: int = 35, shift: float = 1.0) -> Evidence:
    generator = torch.Generator().manual_seed(5)

    def draw(rows: int, width: int) -> Tensor:
        return torch.randn(rows, width, generator=generator)

    return Evidence(
        source_train_features=draw(train, 6),
        source_features=draw(source, 6),
        source_logits=draw(source, CLASSES) * 2,
        source_labels=torch.randint(CLASSES, (source,), generator=generator),
        target_features=draw(target, 6) + shift,
        target_logits=draw(target, CLASSES) * 2,
        target_samples=target,
    )


def softmax(logits: Tensor) -> Array:
    p = np.exp(logits.double().numpy())
    return np.asarray(p / p.sum(1, keepdims=True))


def entropy(p: Array) -> Array:
    return np.asarray(-(p * np.log(p)).sum(-1))


def test_entropy_and_information_maximisation() -> None:
    seen = evidence()
    p = softmax(seen.target_logits)
    assert Entropy()(seen).item() == pytest.approx(entropy(p).mean(), rel=1e-12)
    expected = entropy(p.mean(0)) - entropy(p).mean()
    assert InformationMaximisation()(seen).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 8, 35, 1000])
def test_snd_row_by_row(chunk: int) -> None:
    seen = evidence()
    p = softmax(seen.target_logits)
    units = p / np.sqrt((p**2).sum(1, keepdims=True))
    densities = []
    for i, unit in enumerate(units):
        weights = np.exp(np.delete(units, i, axis=0) @ unit / 0.05)
        densities.append(entropy(weights / weights.sum()))
    assert SoftNeighbourhoodDensity(chunk=chunk)(seen).item() == pytest.approx(np.mean(densities), rel=1e-10)


def test_snd_prefers_dense_neighbourhoods_and_knows_its_bounds() -> None:
    seen = evidence(target=40)
    clusters = replace(seen, target_logits=torch.eye(CLASSES).repeat(10, 1) * 50)
    scattered = replace(seen, target_logits=torch.randn(40, CLASSES) * 2)
    assert SoftNeighbourhoodDensity()(clusters) > SoftNeighbourhoodDensity()(scattered)
    constant = replace(seen, target_logits=torch.zeros(40, CLASSES))
    assert SoftNeighbourhoodDensity()(constant).item() == pytest.approx(np.log(39))


def test_snd_of_ten_thousand() -> None:
    many = replace(evidence(), target_logits=torch.zeros(10_000, CLASSES))
    assert SoftNeighbourhoodDensity()(many).item() == pytest.approx(np.log(9_999))


def test_dev_against_numpy() -> None:
    seen = evidence()
    train, held_out, target = (
        x.double().numpy() for x in (seen.source_train_features, seen.source_features, seen.target_features)
    )
    both = np.concatenate([train, target])
    labels = np.array([0] * len(train) + [1] * len(target))
    critic = LogisticRegression(max_iter=1000).fit((both - both.mean(0)) / both.std(0), labels)
    p = critic.predict_proba((held_out - both.mean(0)) / both.std(0))
    weights = p[:, 1] / p[:, 0] * len(train) / len(target)
    rows = np.arange(len(held_out))
    losses = -np.log(softmax(seen.source_logits)[rows, seen.source_labels.numpy()])
    covariance = np.cov(weights * losses, weights)  # both with n - 1
    eta = -covariance[0, 1] / covariance[1, 1]
    expected = (weights * losses).mean() + eta * weights.mean() - eta
    assert DeepEmbeddedValidation()(seen).item() == pytest.approx(expected, rel=1e-9)


def test_density_ratios_of_two_gaussians() -> None:
    generator = np.random.default_rng(0)
    source, target = generator.normal(0, 1, (6000, 1)), generator.normal(1, 1, (3000, 1))
    at = np.linspace(-1, 2, 7)[:, None]
    exact = np.exp(at[:, 0] - 0.5)  # N(x; 1, 1) / N(x; 0, 1), whatever the sizes of the samples
    np.testing.assert_allclose(density_ratios(source, target, at), exact, rtol=0.15)


def test_control_variate_removes_what_the_weights_explain() -> None:
    weights = torch.rand(50, dtype=torch.float64) * 2
    assert controlled_mean(weights, torch.full_like(weights, 3.0)).item() == pytest.approx(3.0)
    losses = torch.rand(50, dtype=torch.float64)
    assert controlled_mean(torch.ones_like(losses), losses).item() == pytest.approx(losses.mean().item())


def test_dev_without_shift_is_near_the_source_risk_and_weights_the_rows_like_the_target_with_one() -> None:
    seen = evidence(4000, 4000, 4000, shift=0.0)
    logits = torch.zeros(4000, 2)
    logits[:, 0] = seen.source_features[:, 0] * 3  # wrong, and the more so the further along the first axis
    seen = replace(seen, source_logits=logits, source_labels=torch.ones(4000, dtype=torch.long))
    risk = torch.nn.functional.cross_entropy(seen.source_logits, seen.source_labels).item()
    assert DeepEmbeddedValidation()(seen).item() == pytest.approx(risk, rel=0.05)
    shifted = replace(seen, target_features=seen.target_features + torch.eye(6)[0])
    truth = torch.nn.functional.softplus(shifted.target_features[:, 0] * 3).mean().item()
    assert DeepEmbeddedValidation()(shifted).item() == pytest.approx(truth, rel=0.15)


@pytest.mark.parametrize("name", VALIDATORS)
def test_every_validator(name: str) -> None:
    validator = VALIDATORS[name]
    assert validator.name == name
    assert isinstance(validator.higher_is_better, bool)
    assert ("http" in validator.reference) == (name != "pseudo_boxes")  # which no paper proposed
    assert list(signature(validator.__call__).parameters) == ["self", "evidence"]
    seen = evidence()
    value = validator()(seen)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert value.isfinite()


def test_no_target_label_can_reach_a_validator() -> None:
    assert not any("target" in field.name and "label" in field.name for field in fields(Evidence))
    assert sorted(VALIDATORS) == ["ac", "atc_ne", "dev", "entropy", "im", "pseudo_boxes", "snd"]


@pytest.mark.parametrize("name", VALIDATORS)
def test_order_of_samples_does_not_matter(name: str) -> None:
    seen = evidence()
    train, source, target = (torch.randperm(n) for n in (40, 30, 35))
    shuffled = Evidence(
        source_train_features=seen.source_train_features[train],
        source_features=seen.source_features[source],
        source_logits=seen.source_logits[source],
        source_labels=seen.source_labels[source],
        target_features=seen.target_features[target],
        target_logits=seen.target_logits[target],
        target_samples=seen.target_samples,
    )
    torch.testing.assert_close(VALIDATORS[name]()(shuffled), VALIDATORS[name]()(seen), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", VALIDATORS)
def test_it_neither_changes_nor_differentiates_the_evidence(name: str) -> None:
    seen = evidence()
    copies = deepcopy([torch.as_tensor(getattr(seen, field.name)) for field in fields(seen)])
    first = VALIDATORS[name]()(seen)
    assert torch.equal(VALIDATORS[name]()(seen), first)
    found = [torch.as_tensor(getattr(seen, field.name)) for field in fields(seen)]
    assert all(torch.equal(one, copy) for one, copy in zip(found, copies, strict=True))


def test_pseudo_boxes_are_rows_for_each_image() -> None:
    assert PseudoBoxes()(replace(evidence(target=35), target_samples=10)).item() == 3.5
    assert PseudoBoxes()(replace(evidence(target=0), target_samples=10)).item() == 0


@pytest.mark.parametrize(("name", "expected"), [("entropy", np.log(4)), ("im", 0.0), ("snd", np.log(34))])
def test_constant_predictions(name: str, expected: float) -> None:
    seen = replace(evidence(), source_logits=torch.zeros(30, CLASSES), target_logits=torch.zeros(35, CLASSES))
    assert VALIDATORS[name]()(seen).item() == pytest.approx(expected, abs=1e-12)


def test_constant_features_leave_dev_the_source_risk() -> None:
    ones = torch.ones(30, 6)
    seen = replace(evidence(), source_train_features=ones, source_features=ones, target_features=ones)
    risk = torch.nn.functional.cross_entropy(seen.source_logits, seen.source_labels).item()
    assert DeepEmbeddedValidation()(seen).item() == pytest.approx(risk, rel=1e-6)


def test_estimated_accuracies() -> None:
    seen = evidence()
    p, q = softmax(seen.source_logits), softmax(seen.target_logits)
    assert AverageConfidence()(seen).item() == pytest.approx(q.max(1).mean(), rel=1e-12)
    wrong = (p.argmax(1) != seen.source_labels.numpy()).sum()
    threshold = np.sort(-entropy(p))[wrong]
    assert ThresholdedConfidence()(seen).item() == pytest.approx((-entropy(q) >= threshold).mean(), rel=1e-12)


def test_one_sample() -> None:
    one = evidence(1, 1, 1)
    values = {name: validator()(one).item() for name, validator in VALIDATORS.items()}
    assert values["entropy"] == pytest.approx(entropy(softmax(one.target_logits)).item())
    assert values["im"] == pytest.approx(0, abs=1e-12)
    assert np.isnan(values["snd"])
    assert np.isnan(values["dev"])


@pytest.mark.parametrize("name", VALIDATORS)
def test_no_sample_is_nan(name: str) -> None:
    assert VALIDATORS[name]()(evidence(0, 0, 0)).isnan()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", VALIDATORS)
def test_non_finite_outputs_are_nan(name: str, bad: float) -> None:
    seen = evidence()
    for tensor in (seen.source_features, seen.source_logits, seen.target_features, seen.target_logits):
        tensor[3, 1] = bad
    assert VALIDATORS[name]()(seen).isnan()
