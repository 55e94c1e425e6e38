"""Values of the published code of SHOT, see tests/golden/shot/README.md."""

from typing import Any

import numpy as np
import pytest
import torch
from golden_vectors import golden
from numpy.typing import NDArray
from torch import Tensor

from dafw.losses.entropy import information_maximisation, mean_entropy
from dafw.methods.source_free.shot import pseudo_labels
from dafw.problems import Classification, Outputs

RTOL, ATOL = 1e-4, 1e-6


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    return golden("shot/shot.npz")


@pytest.fixture(scope="module")
def outputs(arrays: dict[str, NDArray[Any]]) -> Outputs:
    return Outputs(torch.tensor(arrays["features"]), torch.tensor(arrays["logits"]))


@pytest.mark.parametrize("threshold", [0, 8])
def test_pseudo_labels(arrays: dict[str, NDArray[Any]], outputs: Outputs, threshold: int) -> None:
    found = pseudo_labels(outputs.features, outputs.logits, threshold)
    np.testing.assert_array_equal(found, arrays[f"pseudo_labels_thr{threshold}"])


def test_information_maximisation(arrays: dict[str, NDArray[Any]], outputs: Outputs) -> None:
    parts: dict[str, Tensor] = {
        "entropy": mean_entropy(outputs.logits, epsilon=1e-5),
        "im_loss": information_maximisation(outputs.logits, epsilon=1e-5),
    }
    parts["diversity"] = parts["entropy"] - parts["im_loss"]
    for name, value in parts.items():
        np.testing.assert_allclose(value, arrays[name], rtol=RTOL, atol=ATOL)


def test_smoothed_labels(arrays: dict[str, NDArray[Any]], outputs: Outputs) -> None:
    loss = Classification(label_smoothing=0.1).loss(outputs, torch.tensor(arrays["labels"]))
    np.testing.assert_allclose(loss, arrays["label_smooth_ce"], rtol=RTOL, atol=ATOL)
