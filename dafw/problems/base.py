"""What every problem answers: how to learn from labels, how to measure, how to write a prediction down."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from dafw.data.domain import Domain
from dafw.data.numbers import Numbers
from dafw.errors import UserError
from dafw.files import check_writable
from dafw.recording import Recorded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A figure, or a function that draws one.
Picture: TypeAlias = "Figure | Callable[[], Figure]"
BY_CLASS = "_by_class"
"""How the name of a vector ends that has a mean of the same name beside it."""


@dataclass(frozen=True)
class Shown:
    """A batch of evaluated samples of one domain that pictures may show, on the CPU.

    Args:
        domain: the domain's name.
        is_target: whether it is a target.
        inputs: the n inputs, (n, ...) or a list.
        outputs: the network's outputs of them.
        labels: their labels; ``None`` if the domain has none.
        predictions: by name one value for each sample, see :meth:`Problem.predictions`.
        unknown: (n,) margins by which the method holds a sample to be of no known class; ``None`` if it rejects none.
        earlier: the predictions of an earlier model, by name as ``predictions``; ``None`` if there is none to show.
        earlier_name: what to call that model.
    """

    domain: str
    is_target: bool
    inputs: Any
    outputs: Any
    labels: Any
    predictions: Mapping[str, Any]
    unknown: Tensor | None = None
    earlier: Mapping[str, Any] | None = None
    earlier_name: str = ""


@dataclass(frozen=True)
class Predicted:
    """Predictions for one domain.

    Args:
        domain: the domain's name.
        ids: the stable names of its n samples.
        columns: by name one value for each sample, see :meth:`Problem.predictions`.
        sizes: height and width of the file that each sample was made of, to which a mask is scaled; ``None`` where a
            mask stays as it is.
        numbers: by which the domain's annotations call images and classes; ``None`` without such.
    """

    domain: str
    ids: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    sizes: Sequence[tuple[int, int] | None] | None = None
    numbers: Numbers | None = None


class Problem(Recorded):
    """The part of a method that depends on *what* is predicted: classes, masks, boxes, ...

    A method or a setting never looks inside ``outputs.logits`` or at labels; it asks its problem. Labels ``y`` are
    those of the first rows of a batch, see :class:`~dafw.data.batch.Batch`.
    """

    config_key: ClassVar[str] = "model.problem"
    #: The kind of prediction: classification, segmentation, detection, ...
    kind: ClassVar[str] = ""
    #: What a label is, in words.
    label_form: ClassVar[str] = ""
    #: The metric that tables print.
    primary: str = ""
    #: The metric that tables print where the target has classes of its own.
    open_primary: ClassVar[str] = ""
    #: Whether label-free validators apply: :meth:`evidence` gives feature vectors and class scores.
    supports_unsupervised_validators: bool = False
    #: Whether the accuracy can be estimated without labels: :meth:`evidence` gives one row of class scores a sample.
    estimates_accuracy: ClassVar[bool] = False
    #: The names of the label-free validators that make sense for it, see :data:`dafw.selection.VALIDATORS`.
    validators: ClassVar[tuple[str, ...]] = ("entropy", "im", "snd", "dev")
    #: Whether labels lie in the image's plane, so that views need the affine map of what they moved.
    is_spatial: ClassVar[bool] = False
    #: The value by which a metric says that it is undefined, besides nan.
    undefined: ClassVar[float | None] = None

    #: The label of a part of a sample that has none, such as a pixel between two classes; ``None`` if there is no such.
    ignore_index: ClassVar[int | None] = None
    #: How many samples of each domain :meth:`pictures` gets at most.
    most_shown: ClassVar[int] = 500
    #: Whether :meth:`pictures` shows the predictions of an earlier model beside the last ones.
    shows_earlier: ClassVar[bool] = False
    #: Where ``dafw predict`` writes unless it is told.
    predictions_name: ClassVar[str] = "predictions.csv"

    def bind(self, network: Any) -> Self:
        """The problem for outputs of one network.

        Losses and predictions of a detector need its modules as well as its outputs. The problem that a method holds is
        bound to the network in training. Outputs of another network, such as a teacher, need the problem that is bound
        to that one.

        Args:
            network: made the outputs that the other methods are given.
        """
        return self

    def takes(self, label: Any) -> bool:
        """Whether a sample's label has the form that this problem's labels have."""
        return True

    # ---- learning

    def terms(self, outputs: Any, y: Any) -> dict[str, Tensor]:
        """The terms of the supervised loss by name, scalars whose sum is minimised.

        Args:
            outputs: of n labelled rows.
            y: their labels.
        """
        raise NotImplementedError(f"{type(self).__name__} must define terms(outputs, y)")

    def loss(self, outputs: Any, y: Any) -> Tensor:
        """The supervised loss of n labelled rows, the sum of :meth:`terms` -> scalar."""
        return reduce(add, self.terms(outputs, y).values())

    def row_losses(self, outputs: Any, y: Any) -> Tensor:
        """The supervised loss of each of n labelled rows -> (n,)."""
        rows = [self.loss(outputs[row : row + 1], y[row : row + 1]) for row in range(len(outputs))]
        return torch.stack(rows)

    def part_losses(self, outputs: Any, y: Any, parts: int) -> tuple[Tensor, Tensor]:
        """The supervised loss of all rows, and that of each of some parts of as many rows -> a scalar and (parts,).

        Args:
            outputs: of n labelled rows, those of the first part, those of the second part, and so on.
            y: their labels.
            parts: a number that divides n.
        """
        size = len(y) // parts
        rows = [slice(start, start + size) for start in range(0, parts * size, size)]
        return self.loss(outputs, y), torch.stack([self.loss(outputs[part], y[part]) for part in rows])

    def summed_loss(self, outputs: Any, y: Any) -> tuple[Tensor, Tensor | int]:
        """The loss of n evaluated rows as a sum over parts, and the number of these parts.

        Sums and numbers of several batches and ranks add up to one mean. Unlike :meth:`terms` it must not wait for
        other ranks: these may have fewer batches.
        """
        return len(outputs) * self.loss(outputs, y), len(outputs)

    def pseudo_labels(self, outputs: Any, threshold: float = 0.0) -> tuple[Any, Tensor]:
        """What a model's outputs teach another one.

        Args:
            outputs: of n rows.
            threshold: least confidence of a prediction that counts.

        Returns:
            Labels of the n rows in the form of ``y``, and a weight (n, ...) of each: 1 if it counts, else 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pseudo_labels(outputs, threshold)")

    def carry(self, labels: Any, maps: Tensor, size: tuple[int, int], sizes: Tensor | None = None) -> Any:
        """Labels of n images after affine maps moved the images' pixels. Classes stay as they are.

        Args:
            labels: in the form of ``y``.
            maps: (n, 2, 3), see :class:`~dafw.data.batch.Batch`.
            size: height and width of the tensor of images that the maps lead to.
            sizes: (n, 2), height and width of each of these images within its padding; ``None`` without padding.
        """
        return labels

    # ---- measuring

    def metrics(
        self,
        num_classes: int,
        *,
        class_names: Sequence[str] = (),
        rejects: bool = False,
        has_unknown: bool = False,
    ) -> MetricCollection:
        """New metrics; one is named :attr:`primary`, or :attr:`open_primary` if ``has_unknown``.

        Args:
            num_classes: classes that the model predicts.
            class_names: their names.
            rejects: whether the method holds some samples to be of no known class.
            has_unknown: whether there may be such samples, labelled ``num_classes``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define metrics(num_classes, ...)")

    def check_metrics(self, metrics: MetricCollection, has_unknown: bool = False) -> None:
        """Refuses :meth:`metrics` that :meth:`score` could not update, before anything is trained.

        Args:
            metrics: newly made.
            has_unknown: as in :meth:`metrics`.
        """

    def score(self, metrics: MetricCollection, outputs: Any, y: Any, unknown: Tensor | None = None) -> None:
        """Updates :meth:`metrics`.

        Args:
            metrics: what to update.
            outputs: of n samples.
            y: their labels.
            unknown: (n,) margins by which the method holds them to be of no known class; ``None`` if it rejects none.
        """
        metrics.update(outputs.logits, y)

    def volume_metrics(self, num_classes: int, num_volumes: int) -> MetricCollection | None:
        """Further metrics of samples that are slices of volumes; ``None`` if this problem has none.

        Args:
            num_classes: classes that the model predicts.
            num_volumes: how many volumes the samples are of.
        """
        return None

    def score_volumes(self, metrics: MetricCollection, outputs: Any, y: Any, volume: Tensor) -> None:
        """Updates :meth:`volume_metrics`.

        Args:
            metrics: what to update.
            outputs: of n samples.
            y: their labels.
            volume: (n,) int64, the number of each sample's volume.
        """
        raise NotImplementedError(f"{type(self).__name__} must define score_volumes(metrics, outputs, y, volume)")

    def values(self, metrics: MetricCollection, class_names: Sequence[str] = ()) -> dict[str, float]:
        """The values of :meth:`metrics` by name. A vector is spread over the classes, as in ``iou/road``.

        A vector whose name ends with ``_by_class`` loses this ending: ``ap_by_class`` becomes ``ap/car``, beside a mean
        ``ap``. A value that equals :attr:`undefined` is nan.

        Raises:
            UserError: if a metric gives a matrix.
        """
        found: dict[str, float] = {}
        for name, value in metrics.compute().items():
            numbers = torch.as_tensor(value).detach().double().cpu()
            if self.undefined is not None:
                numbers = numbers.where(numbers != self.undefined, torch.nan)
            if numbers.ndim > 1 and numbers.numel() > 1:
                shape = " x ".join(map(str, numbers.shape))
                raise UserError(f"the metric {name} gives {shape} numbers: a metric gives one, or one for each class")
            if numbers.numel() == 1 and not name.endswith(BY_CLASS):
                found[name] = float(numbers)
            else:
                numbers = numbers.reshape(-1)
                names = class_names if len(class_names) == len(numbers) else [str(i) for i in range(len(numbers))]
                stem = name.removesuffix(BY_CLASS)
                found |= {f"{stem}/{each}": float(number) for each, number in zip(names, numbers, strict=True)}
        return found

    def evidence(self, outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What the label-free validators see of n samples, any number of rows for each.

        Returns:
            Features (m, d), logits (m, K), and the sample (m,) int64, from 0 to n - 1, that each row is of. The rows of
            a sample follow each other, and so do the samples.
        """
        raise NotImplementedError(f"{type(self).__name__} must define evidence(outputs)")

    def evidence_labels(self, outputs: Any, y: Any) -> Tensor:
        """The labels (m,) of the rows of :meth:`evidence`; validators that need the source ask for them."""
        raise NotImplementedError(f"{type(self).__name__} must define evidence_labels(outputs, y)")

    # ---- showing

    def predictions(self, outputs: Any, unknown: Tensor | None = None) -> dict[str, Any]:
        """The columns of a prediction file, each with one value (or one row) for each sample.

        Args:
            outputs: of n samples.
            unknown: as in :meth:`score`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define predictions(outputs)")

    def predictions_at(
        self, outputs: Any, sizes: Sequence[tuple[int, int] | None], unknown: Tensor | None = None
    ) -> dict[str, Any]:
        """As :meth:`predictions`, where the samples were scaled before they were predicted.

        Args:
            outputs: of n samples.
            sizes: height and width of the file that each was made of; ``None`` where it was not scaled.
            unknown: as in :meth:`score`.
        """
        return self.predictions(outputs) if unknown is None else self.predictions(outputs, unknown)

    def check_output(self, path: Path) -> None:
        """Says before any prediction that :meth:`write_predictions` could not write to this path.

        It asks for a file that may be written. A problem that writes a folder asks for something else.

        Raises:
            UserError: saying what is missing.
            OSError: naming the file or folder that cannot be written.
        """
        check_writable(path)

    def write_predictions(self, found: Sequence[Predicted], class_names: Sequence[str], path: Path) -> None:
        """Writes predictions to a file, or to a folder of files.

        Args:
            found: the predictions for each target.
            class_names: names of the classes that the model predicts.
            path: where to write.
        """
        raise NotImplementedError(f"{type(self).__name__} must define write_predictions(found, class_names, path)")

    def pictures(self, shown: Sequence[Shown], class_names: Sequence[str]) -> "Mapping[str, Picture]":
        """Figures of evaluated samples by name, or functions that draw them. A function that fails spoils no other one.

        Args:
            shown: batches of samples of each source and target.
            class_names: names of the classes, "unknown" behind them if there is such a class.
        """
        return {}

    def metric_pictures(self, test: Mapping[str, Mapping[str, float]]) -> "Mapping[str, Picture]":
        """Figures of the metrics of a test by name.

        Args:
            test: by domain, the values of :meth:`metrics` on its test split.
        """
        return {}

    def examples(self, shown: Sequence[Shown], class_names: Sequence[str]) -> dict[str, Any] | None:
        """Predictions as plain values, which a table draws beside those of other runs; ``None`` if it draws none.

        Args:
            shown: as in :meth:`pictures`.
            class_names: as in :meth:`pictures`.
        """
        return None

    def wrong_samples(self, domain: Domain, num_classes: int) -> list[str]:
        """Sentences that name the samples with a wrong label, such as a class that does not exist."""
        return []
