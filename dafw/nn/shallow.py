"""Classifiers and alignments of fixed features, in closed form or by scikit-learn, without pickled objects."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dafw.nn.buffers import VariableLengthBuffers

Classifier = Literal["svm", "logistic", "nearest"]
Alignment = Literal["none", "coral", "subspace"]
Array = NDArray[np.float64]
NEVER = -1e4
"""Score of a class that no training sample has."""


class Maps(NamedTuple):
    """Affine maps (x - shift) @ matrix of the two domains into one space; ``None`` for what changes nothing.

    Attributes:
        source: (d, k).
        target: (d, k).
        source_shift: (d,).
        target_shift: (d,).
    """

    source: Array | None = None
    target: Array | None = None
    source_shift: Array | None = None
    target_shift: Array | None = None


def coral_maps(source: Array, target: Array) -> Maps:
    """Whitens source features and colours them anew by the target's covariance: A = C_s^(-1/2) C_t^(1/2).

    C is the covariance plus the identity. Sun, Feng and Saenko, Return of Frustratingly Easy Domain Adaptation,
    AAAI 2016, https://arxiv.org/abs/1511.05547, algorithm 1.

    Args:
        source: (n, d).
        target: (m, d).
    """
    whiten, colour = (
        _power(np.cov(one, rowvar=False).reshape(one.shape[1], -1) + np.eye(one.shape[1]), exponent)
        for one, exponent in ((source, -0.5), (target, 0.5))
    )
    return Maps(source=whiten @ colour)


def _power(matrix: Array, exponent: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    found: Array = (vectors * values**exponent) @ vectors.T
    return found


def subspace_maps(source: Array, target: Array, dimensions: int) -> Maps:
    """Projects each domain on its own principal directions, and turns the source's onto the target's: P_s P_s' P_t.

    Fernando, Habrard, Sebban and Tuytelaars, Unsupervised Visual Domain Adaptation Using Subspace Alignment, ICCV 2013,
    https://arxiv.org/abs/1409.5241. The features of each domain are centred by its own mean.

    Args:
        source: (n, d).
        target: (m, d).
        dimensions: number k of principal directions.

    Raises:
        ValueError: if a domain has fewer rows or features.
    """
    if dimensions > min(*source.shape, *target.shape):
        raise ValueError(
            f"{dimensions} principal directions of {len(source)} and {len(target)} rows of {source.shape[1]}"
        )
    means = [one.mean(0) for one in (source, target)]
    bases = [
        np.linalg.svd(one - mean, full_matrices=False)[2][:dimensions].T
        for one, mean in zip((source, target), means, strict=True)
    ]
    return Maps(bases[0] @ (bases[0].T @ bases[1]), bases[1], *means)


def linear_classifier(
    kind: Classifier, rows: Array, labels: NDArray[np.int64], num_classes: int, c: float, seed: int
) -> tuple[Array, Array]:
    """A linear classifier of scikit-learn: weights (K, d) and biases (K,).

    Args:
        kind: ``svm`` (one class against the rest, squared hinge loss) or ``logistic``.
        rows: (n, d).
        labels: (n,), from 0 on.
        num_classes: K. A class without rows gets the score :data:`NEVER`.
        c: weight C of the loss against that of the squared norm.
        seed: of the order in which the SVM looks at the rows.

    Raises:
        ValueError: if all rows are of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    made = LogisticRegression(C=c, max_iter=5000)
    if kind == "svm":
        made = LinearSVC(C=c, max_iter=20_000, random_state=seed)
    made.fit(rows, labels)
    weight, bias = np.zeros((num_classes, rows.shape[1])), np.full(num_classes, NEVER)
    found, shift = made.coef_, made.intercept_
    if len(made.classes_) == 2:  # one score, high for the second class
        found, shift = np.concatenate([-found, found]) / 2, np.concatenate([-shift, shift]) / 2
    weight[made.classes_], bias[made.classes_] = found, shift
    return weight, bias


class ShallowClassifier(VariableLengthBuffers):
    """Scores of features, from what :meth:`fit` found. It learns nothing else.

    Args:
        num_classes: K.
    """

    variable_buffers = (
        *("source", "target", "source_shift", "target_shift"),
        *("weight", "bias", "memory", "labels"),
    )

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in self.variable_buffers:
            kind = torch.int64 if name == "labels" else torch.float32
            self.register_buffer(name, torch.zeros(0, dtype=kind))

    source: Tensor
    target: Tensor
    source_shift: Tensor
    target_shift: Tensor
    weight: Tensor
    bias: Tensor
    memory: Tensor
    labels: Tensor

    @property
    def is_fitted(self) -> bool:
        """Whether there is something to score by."""
        return len(self.weight) > 0 or len(self.memory) > 0

    def fit(
        self,
        source: Tensor,
        labels: Tensor,
        target: Tensor,
        *,
        classifier: Classifier,
        alignment: Alignment,
        c: float,
        dimensions: int,
        seed: int,
    ) -> None:
        """Finds the maps and the classifier.

        Args:
            source: features (n, d).
            labels: of the source, (n,).
            target: features (m, d).
            classifier: which one; ``nearest`` keeps all rows of the source.
            alignment: how the features of the two domains are brought together.
            c: see :func:`linear_classifier`.
            dimensions: see :func:`subspace_maps`.
            seed: see :func:`linear_classifier`.

        Raises:
            ValueError: see :func:`subspace_maps` and :func:`linear_classifier`.
        """
        ours, theirs = (one.double().cpu().numpy() for one in (source, target))
        maps = Maps()
        if alignment == "coral":
            maps = coral_maps(ours, theirs)
        elif alignment == "subspace":
            maps = subspace_maps(ours, theirs, dimensions)
        for name, value in maps._asdict().items():
            self._keep(name, np.zeros(0) if value is None else value)
        rows = self.mapped(source.to(self.weight), True)
        if classifier == "nearest":
            self._keep("memory", rows)
            self._keep("labels", labels)
            return
        found = linear_classifier(
            classifier, rows.double().cpu().numpy(), labels.cpu().numpy(), self.num_classes, c, seed
        )
        for name, values in zip(("weight", "bias"), found, strict=True):
            self._keep(name, values)

    def _keep(self, name: str, value: Array | Tensor) -> None:
        setattr(self, name, torch.as_tensor(value).detach().to(getattr(self, name)).contiguous())

    def mapped(self, features: Tensor, is_source: bool) -> Tensor:
        """Features (n, d) in the space where the classifier is: (n, k)."""
        side = "source" if is_source else "target"
        matrix, shift = getattr(self, side), getattr(self, f"{side}_shift")
        moved = features - shift if len(shift) else features
        return moved @ matrix if len(matrix) else moved

    def forward(self, features: Tensor, is_source: bool) -> Tensor:
        """Scores (n, K) of features (n, d): those of the linear classifier, or minus the squared distance to the
        nearest kept row of each class.
        """
        with torch.autocast(features.device.type, enabled=False):
            rows = self.mapped(features.to(self.weight), is_source)
            if len(self.weight):
                return rows @ self.weight.T + self.bias
            squares = torch.cdist(rows, self.memory, compute_mode="donot_use_mm_for_euclid_dist").square()
            scores = squares.new_full((len(rows), self.num_classes), NEVER)
            best = -squares
            of_class = self.labels.expand(len(rows), -1)
            return scores.scatter_reduce(1, of_class, best, "amax", include_self=False)
