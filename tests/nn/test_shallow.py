"""Alignments and classifiers of fixed features, against what defines them."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from dafw.nn.shallow import NEVER, ShallowClassifier, coral_maps, linear_classifier, subspace_maps

RNG = np.random.default_rng(0)
SOURCE = RNG.normal(size=(60, 4)) @ RNG.normal(size=(4, 4))
TARGET = 3 * RNG.normal(size=(50, 4)) + 1
LABELS = np.arange(60) % 3
SOURCE[:, :3] += 2 * np.eye(3)[LABELS]


def fitted(classifier: str, alignment: str = "none", labels: Any = LABELS, **options: Any) -> ShallowClassifier:
    made = ShallowClassifier(3).double()
    given: dict[str, Any] = {"c": 0.7, "dimensions": 2, "seed": 0, **options}
    parts = (torch.from_numpy(one) for one in (SOURCE, labels, TARGET))
    made.fit(*parts, classifier=classifier, alignment=alignment, **given)  # type: ignore[arg-type]
    return made


def test_coral_gives_the_source_the_covariance_of_the_target() -> None:
    """Where the identity that it adds is small beside the covariances."""
    source, target = 1000 * SOURCE, 1000 * TARGET
    moved = source @ coral_maps(source, target).source
    np.testing.assert_allclose(np.cov(moved, rowvar=False), np.cov(target, rowvar=False), rtol=1e-3, atol=100)


def test_coral_by_its_definition() -> None:
    added = [np.cov(one, rowvar=False) + np.eye(4) for one in (SOURCE, TARGET)]
    matrix = coral_maps(SOURCE, TARGET).source
    assert matrix is not None
    np.testing.assert_allclose(matrix.T @ added[0] @ matrix, added[1], atol=1e-9)


def test_subspace_alignment_by_its_definition() -> None:
    maps = subspace_maps(SOURCE, TARGET, 2)
    assert maps.source is not None
    assert maps.target is not None
    bases = []
    for one in (SOURCE, TARGET):
        values, vectors = np.linalg.eigh(np.cov(one, rowvar=False))
        bases.append(vectors[:, np.argsort(-values)[:2]])
    np.testing.assert_allclose(abs(maps.target), abs(bases[1]), atol=1e-9)
    expected = bases[0] @ bases[0].T @ bases[1]
    np.testing.assert_allclose(abs(maps.source), abs(expected), atol=1e-9)
    with pytest.raises(ValueError, match="5 principal directions of 60 and 50 rows of 4"):
        subspace_maps(SOURCE, TARGET, 5)


def test_a_domain_is_aligned_with_itself_by_a_turn_alone() -> None:
    maps = subspace_maps(SOURCE, SOURCE, 2)
    np.testing.assert_allclose(maps.source, maps.target, atol=1e-9)


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_linear_classifiers_are_those_of_scikit_learn(kind: str) -> None:
    reference: Any = LinearSVC(C=0.7, max_iter=20_000, random_state=0)
    reference = LogisticRegression(C=0.7, max_iter=5000) if kind == "logistic" else reference
    for labels in (LABELS, LABELS % 2):
        found = fitted(kind, labels=labels)(torch.from_numpy(TARGET), False).argmax(1)
        assert found.tolist() == reference.fit(SOURCE, labels).predict(TARGET).tolist()


def test_scores_of_two_classes_give_the_probabilities_of_scikit_learn() -> None:
    scores = fitted("logistic", labels=LABELS % 2)(torch.from_numpy(TARGET), False)[:, :2]
    reference = LogisticRegression(C=0.7, max_iter=5000).fit(SOURCE, LABELS % 2)
    np.testing.assert_allclose(scores.softmax(1), reference.predict_proba(TARGET), atol=1e-9)


def test_a_class_without_samples_is_never_predicted() -> None:
    for kind in ("logistic", "nearest"):
        scores = fitted(kind, labels=2 * (LABELS % 2))(torch.from_numpy(TARGET), False)
        assert (scores[:, 1] == NEVER).all()
        assert set(scores.argmax(1).tolist()) <= {0, 2}
    with pytest.raises(ValueError, match="class"):
        linear_classifier("svm", SOURCE, np.zeros(60, np.int64), 2, 1.0, 0)


@pytest.mark.parametrize("alignment", ["none", "coral", "subspace"])
def test_nearest_is_the_nearest_neighbour_of_scikit_learn(alignment: str) -> None:
    made = fitted("nearest", alignment)
    rows, others = (made.mapped(torch.from_numpy(one), own).numpy() for one, own in ((SOURCE, True), (TARGET, False)))
    reference = KNeighborsClassifier(1).fit(rows, LABELS)
    assert made(torch.from_numpy(TARGET), False).argmax(1).tolist() == reference.predict(others).tolist()
    assert made(torch.from_numpy(SOURCE), True).argmax(1).tolist() == LABELS.tolist()


def test_what_was_fitted_is_in_the_state() -> None:
    for kind in ("nearest", "svm"):
        made, other = fitted(kind, "coral"), ShallowClassifier(3).double()
        assert not other.is_fitted
        other.load_state_dict(made.state_dict())
        rows = torch.from_numpy(TARGET)
        assert torch.equal(made(rows, False), other(rows, False))
