"""Classification: what its metrics count."""

import pytest
import torch
from torch import Tensor

from dafw.problems import Classification, Outputs


def outputs(*classes: int, of: int = 3) -> Outputs:
    return Outputs(torch.zeros(len(classes), 1), torch.eye(of)[list(classes)])


@pytest.mark.parametrize("margins", [None, [-1.0, -1.0, -1.0, -1.0], [-1.0, -1.0, -1.0, 1.0]])
def test_a_class_that_the_target_lacks_has_no_accuracy_though_it_is_predicted(margins: list[float] | None) -> None:
    """Of a partial task: class 2 is the source's alone, and one sample is taken for it."""
    problem, unknown = Classification(), None if margins is None else torch.tensor(margins)
    metrics = problem.metrics(3, rejects=unknown is not None)
    labels: Tensor = torch.tensor([0, 1, 0, 0])
    problem.score(metrics, outputs(0, 1, 2, 0), labels, unknown)
    kept = 2 if margins is None or margins[-1] < 0 else 1
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == pytest.approx({"accuracy": (1 + kept) / 4, "mean_class_accuracy": (kept / 3 + 1) / 2})


def test_one_class() -> None:
    problem = Classification()
    metrics = problem.metrics(1)
    problem.score(metrics, outputs(0, 0, of=1), torch.tensor([0, 0]))
    assert float(metrics.compute()["accuracy"]) == 1
