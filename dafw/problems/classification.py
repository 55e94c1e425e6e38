"""Single-label classification."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection

from dafw import escape
from dafw.data.domain import Domain
from dafw.errors import UserError
from dafw.files import check_writable, write_atomically
from dafw.metrics import CommonAccuracy, check_arguments, open_set_metrics, update_metrics
from dafw.problems.base import Picture, Predicted, Problem, Shown
from dafw.problems.outputs import Outputs
from dafw.problems.parquet import require_parquet, write_parquet
from dafw.ranges import ClosedUnitInterval

#: The arguments among which the metrics of classes choose, see :meth:`Classification.score`.
SCORED = ("preds", "prediction", "unknown", "target")


class Classification(Problem):
    """One class a sample: cross-entropy, accuracy over samples, and accuracy averaged over classes.

    Args:
        label_smoothing: share of the label's mass spread over all classes.
    """

    kind: ClassVar[str] = "classification"
    label_form: ClassVar[str] = "one class a sample"
    primary: str = "accuracy"
    open_primary: ClassVar[str] = "h_score"
    supports_unsupervised_validators: bool = True
    estimates_accuracy: ClassVar[bool] = True
    validators: ClassVar[tuple[str, ...]] = (*Problem.validators, "ac", "atc_ne")

    def __init__(self, label_smoothing: ClosedUnitInterval = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def takes(self, label: Any) -> bool:
        """See :meth:`~dafw.problems.base.Problem.takes`."""
        return not isinstance(label, Mapping) and getattr(label, "ndim", 0) < 2

    # ---- learning

    def terms(self, outputs: Outputs, y: Tensor) -> dict[str, Tensor]:
        """Cross-entropy: logits (n, K), y (n,) int64 -> a scalar named ``supervised``."""
        return {"supervised": F.cross_entropy(outputs.logits, y, label_smoothing=self.label_smoothing)}

    def row_losses(self, outputs: Outputs, y: Tensor) -> Tensor:
        """Cross-entropy of each row; their mean is the loss: logits (n, K), y (n,) int64 -> (n,)."""
        return F.cross_entropy(outputs.logits, y, label_smoothing=self.label_smoothing, reduction="none")

    def pseudo_labels(self, outputs: Outputs, threshold: float = 0.0) -> tuple[Tensor, Tensor]:
        """The most probable class of each row (n,), and whether its probability reaches the threshold (n,)."""
        share, label = outputs.logits.detach().float().softmax(1).max(1)
        return label, (share >= threshold).float()

    # ---- measuring

    def metrics(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] = (),
        rejects: bool = False,
        has_unknown: bool = False,
    ) -> MetricCollection:
        """``accuracy`` (over samples) and ``mean_class_accuracy`` (classes without a sample left out).

        Where the target has classes of its own, :func:`dafw.metrics.open_set_metrics` instead. Where it has none, a
        sample that is rejected counts as a mistake.
        """
        if has_unknown:
            return open_set_metrics(num_classes)
        kinds: dict[str, Literal["sample", "class"]] = {"accuracy": "sample", "mean_class_accuracy": "class"}
        return MetricCollection({name: CommonAccuracy(num_classes, average=kind) for name, kind in kinds.items()})

    def check_metrics(self, metrics: MetricCollection, has_unknown: bool = False) -> None:
        """Compares the names of the metrics and those of their arguments with what :meth:`score` gives.

        Raises:
            UserError: if none is called as tables ask, or if one needs another argument.
        """
        check_arguments(metrics, SCORED)
        wanted = self.open_primary if has_unknown else self.primary
        if wanted not in metrics and type(self).values is Problem.values:
            raise UserError(
                f'{type(self).__name__}.metrics gives {", ".join(map(str, metrics))}, and none is called "{wanted}", '
                "which tables print: give one this name, or set primary to the name of another"
            )

    def score(self, metrics: MetricCollection, outputs: Outputs, y: Tensor, unknown: Tensor | None = None) -> None:
        """Updates :meth:`metrics`: logits (n, K), y (n,); rows with a positive ``unknown`` (n,) are rejected.

        Each metric gets those of four arguments that its ``update`` names. ``target`` is ``y``. ``prediction`` (n,) is
        the class of each row, K if it is rejected. ``unknown`` is what was given. ``preds``, which the metrics of
        torchmetrics take, is the logits; it is ``prediction`` if there is ``unknown``, so a rejected row is a mistake
        there too. A metric of torchmetrics then needs one class more.
        """
        prediction = outputs.logits.argmax(1) if unknown is None else _rejecting(outputs.logits, unknown)
        preds = outputs.logits if unknown is None else prediction
        update_metrics(metrics, {"preds": preds, "prediction": prediction, "unknown": unknown, "target": y})

    def evidence(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """The features (n, d) and logits (n, K) themselves, one row for each sample."""
        return outputs.features, outputs.logits, torch.arange(len(outputs), device=outputs.logits.device)

    def evidence_labels(self, outputs: Outputs, y: Tensor) -> Tensor:
        """The labels (n,) themselves."""
        return y

    # ---- showing

    def predictions(self, outputs: Outputs, unknown: Tensor | None = None) -> dict[str, Any]:
        """``prediction`` (n,) positions, K for unknown, and ``probabilities`` (n, K); ``unknown`` (n,) if given."""
        probabilities = outputs.logits.float().softmax(1)
        if unknown is None:
            return {"prediction": probabilities.argmax(1), "probabilities": probabilities}
        prediction = _rejecting(outputs.logits, unknown)
        return {"prediction": prediction, "probabilities": probabilities, "unknown": unknown.float()}

    def check_output(self, path: Path) -> None:
        """Asks for a file that may be written, and for pyarrow if it ends in ``.parquet``."""
        check_writable(path)
        if path.suffix.lower() == ".parquet":
            require_parquet(path)

    def write_predictions(self, found: Sequence[Predicted], class_names: Sequence[str], path: Path) -> None:
        """Writes a table with one row for each sample: domain, sample, prediction, one probability for each class.

        For a method that rejects samples ``unknown`` is the margin of the rejection, and a possible prediction.

        A path that ends in ``.parquet`` gets a Parquet file, any other a CSV file. In a CSV file, names that a
        spreadsheet would take for formulas are marked, see :func:`dafw.escape.csv_field`.

        Raises:
            UserError: for a Parquet file without pyarrow.
        """
        names = (*class_names, "unknown")
        margins = ["unknown"] if any("unknown" in one.columns for one in found) else []
        table: dict[str, list[Any]] = {
            "domain": [one.domain for one in found for _ in one.ids],
            "sample": [sample for one in found for sample in one.ids],
            "prediction": [names[position] for one in found for position in one.columns["prediction"]],
            **{key: [float(margin) for one in found for margin in one.columns[key]] for key in margins},
        }
        shares = [row for one in found for row in one.columns["probabilities"]]
        table |= {f"p_{name}": [float(row[code]) for row in shares] for code, name in enumerate(class_names)}
        if path.suffix.lower() == ".parquet":
            write_parquet(table, path)
            return
        rows = zip(*table.values(), strict=True)
        lines = [[f"{one:.6f}" if isinstance(one, float) else one for one in row] for row in rows]
        write_atomically(path, escape.csv([[*table], *lines]))

    def pictures(self, shown: Sequence[Shown], class_names: Sequence[str]) -> Mapping[str, Picture]:
        """``embedding`` of the features of all domains, and ``confusion`` of the targets' labels and predictions.

        There is no confusion matrix of so many classes that its picture could not be read.
        """
        from dafw import plots
        from dafw.plots.confusion_matrix import MOST_CLASSES

        legible = len(class_names) <= MOST_CLASSES
        matrix = np.zeros((len(class_names), len(class_names)) if legible else (0, 0), np.int64)
        features, domains, classes = [], [], []
        for one in shown:
            features.append(one.outputs.features.float())
            domains += [one.domain] * len(one.outputs)
            labels = one.labels if one.labels is not None else [len(class_names)] * len(one.outputs)
            classes += [int(label) for label in labels]
            if legible and one.is_target and one.labels is not None:
                found = self.predictions(one.outputs, one.unknown)["prediction"]
                np.add.at(matrix, (np.asarray(one.labels), found.numpy()), 1)
        named = [*class_names, "no label"]
        points = torch.cat(features).numpy()
        drawn: dict[str, Picture] = {
            "embedding": lambda: plots.embedding(points, domains, classes, class_names=named, by="true class")
        }
        if matrix.any():
            drawn["confusion"] = lambda: plots.confusion(
                matrix, list(class_names), title=f"target test samples, n = {matrix.sum():,}"
            )
        return drawn

    def wrong_samples(self, domain: Domain, num_classes: int) -> list[str]:
        """The samples with a class below 0 or not below ``num_classes``."""
        classes = domain.classes
        if classes is None:
            return [] if domain.labels is None else [f"{domain.name} has labels that are not one class a sample"]
        wrong = np.flatnonzero((classes < 0) | (classes >= num_classes))
        return [f"{domain.id(int(i))} has class {classes[i]}, but there are {num_classes} classes" for i in wrong]


def _rejecting(logits: Tensor, unknown: Tensor) -> Tensor:
    return logits.argmax(1).masked_fill(unknown > 0, logits.shape[1])
