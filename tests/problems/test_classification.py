"""Classification: what its metrics count."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dafw.plots.confusion_matrix import MOST_CLASSES
from dafw.problems import Classification, Outputs, Shown


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


@pytest.mark.parametrize(("classes", "drawn"), [(MOST_CLASSES, True), (100_000, False)])
def test_a_confusion_matrix_is_drawn_where_it_can_be_read(classes: int, drawn: bool) -> None:
    found = Outputs(torch.zeros(4, 2), torch.eye(4))
    shown = [Shown("b", True, None, found, np.array([0, 1, 2, 2]), {})]
    assert ("confusion" in Classification().pictures(shown, [f"c{i}" for i in range(classes)])) == drawn
