"""Metrics for targets that contain samples of unknown classes, which the source lacks.

Labels and predictions are 0 to K - 1 for the K known classes and K for unknown. A metric without samples is nan, not 0
or 1. All are exact on several ranks, and an update never waits for the device.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.data import dim_zero_cat

from dafw.errors import UserError, choose

Average = Literal["sample", "class"]


class OpenSetMetric(Metric):
    """Base of the metrics that follow from how many samples of each class are predicted as that class.

    Args:
        num_classes: number K of known classes.
        options: passed to :class:`torchmetrics.Metric`.

    Attributes:
        samples: (K + 1,) int64, the number of samples of each class; the last is unknown.
        hits: (K + 1,) int64, the number of those that were predicted as their class.

    Raises:
        UserError: if there is no known class.
    """

    is_differentiable: bool = False
    higher_is_better: bool = True
    full_state_update: bool = False
    samples: Tensor
    hits: Tensor

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = _known(num_classes)
        for name in ("samples", "hits"):
            self.add_state(name, torch.zeros(num_classes + 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Counts a batch.

        Args:
            prediction: (N,) integers from 0 to K.
            target: (N,) integers from 0 to K.

        Raises:
            RuntimeError: if one is outside this range; on an accelerator the device reports it later.
        """
        classes = self.num_classes + 1
        outside = (torch.minimum(target, prediction) < 0) | (torch.maximum(target, prediction) >= classes)
        place = torch.where(outside, classes, target.long())  # no class has this place: scatter_add raises
        self.samples = self.samples.scatter_add(0, place, torch.ones_like(place))
        self.hits = self.hits.scatter_add(0, place, (prediction == target).long())

    def recalls(self) -> Tensor:
        """(K + 1,) share of each class's samples that were predicted as that class; nan for a class without samples."""
        return _share(self.hits, self.samples)

    def common_accuracy(self, average: Average) -> Tensor:
        """See :class:`CommonAccuracy`."""
        if average == "class":
            return self.recalls()[:-1].nanmean()
        return _share(self.hits[:-1].sum(), self.samples[:-1].sum())


class CommonAccuracy(OpenSetMetric):
    """Accuracy on samples of known classes; such a sample is wrong if it is predicted unknown.

    Args:
        num_classes: number K of known classes.
        average: ``sample``: over samples; ``class``: over each class first, then over the known classes with samples.
        options: passed to :class:`torchmetrics.Metric`.
    """

    def __init__(self, num_classes: int, average: Average = "sample", **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.average: Average = average
        choose("average", average, ("sample", "class"))

    def compute(self) -> Tensor:
        """A scalar; nan without a sample of a known class."""
        return self.common_accuracy(self.average)


class UnknownAccuracy(OpenSetMetric):
    """Share of the samples of unknown classes that are predicted unknown, often called UNK."""

    def compute(self) -> Tensor:
        """A scalar; nan without an unknown sample."""
        return self.recalls()[-1]


class HScore(OpenSetMetric):
    """Harmonic mean 2 a u / (a + u) of the accuracy a on known classes and the accuracy u on unknown samples.

    Fu et al., Learning to Detect Open Classes for Universal Domain Adaptation, ECCV 2020, introduced it:
    https://www.ecva.net/papers/eccv_2020/papers_ECCV/html/2396_ECCV_2020_paper.php.
    Papers differ in a. The code of DCC averages over samples. The code of ROS and that of the Transfer-Learning-Library
    (which calls it HOS) average over classes. The two are not comparable if classes differ in size.

    Args:
        num_classes: number K of known classes.
        average: how a is averaged, see :class:`CommonAccuracy`.
        options: passed to :class:`torchmetrics.Metric`.
    """

    def __init__(self, num_classes: int, average: Average = "sample", **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.average: Average = average
        choose("average", average, ("sample", "class"))

    def compute(self) -> Tensor:
        """A scalar, 0 if either accuracy is 0; nan if there is no known or no unknown sample."""
        common, unknown = self.common_accuracy(self.average), self.recalls()[-1]
        total = common + unknown
        return torch.where(total == 0, total, 2 * common * unknown / total)


class OS(OpenSetMetric):
    """Mean of the accuracies of the known classes and of unknown as one more class, over those that have samples.

    Unknown weighs one in K + 1, so a model that rejects nothing can score high; see :class:`HScore`.
    """

    def compute(self) -> Tensor:
        """A scalar; nan without a sample."""
        return self.recalls().nanmean()


class OSStar(OpenSetMetric):
    """OS*: mean of the accuracies of the known classes that have samples; unknown is left out."""

    def compute(self) -> Tensor:
        """A scalar; nan without a sample of a known class."""
        return self.common_accuracy("class")


class _Detection(Metric):
    """Base of the metrics that need the scores of all samples; it stores them.

    Args:
        num_classes: number K of known classes; the label K is unknown.
        options: passed to :class:`torchmetrics.Metric`.
    """

    is_differentiable: bool = False
    full_state_update: bool = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, num_classes: int, **options: Any) -> None:
        super().__init__(**options)
        self.num_classes = _known(num_classes)
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)  # a rank without samples sends this dtype: it must be that of the others

    def update(self, unknown: Tensor, target: Tensor) -> None:
        """Stores a batch.

        Args:
            unknown: (N,) floating point scores, higher for samples that are more likely unknown.
            target: (N,) integers from 0 to K.
        """
        dtype = _real(unknown)
        self.scores.append(unknown.detach().to(dtype))
        self.labels.append((target == self.num_classes).to(dtype))

    def compute(self) -> Tensor:
        """A scalar; nan if there is no known or no unknown sample, or if a score is nan."""
        if not len(self.scores):
            return torch.tensor(torch.nan, device=self.device)
        scores, unknown = dim_zero_cat(self.scores), dim_zero_cat(self.labels) > 0
        inside, outside = scores[~unknown].sort().values, scores[unknown].sort().values
        if not len(inside) or not len(outside) or scores.isnan().any():
            return scores.new_tensor(torch.nan)
        return self.compare(inside, outside)

    def compare(self, inside: Tensor, outside: Tensor) -> Tensor:
        """The metric.

        Args:
            inside: (n,) scores of the known samples, in ascending order.
            outside: (m,) scores of the unknown samples, in ascending order.
        """
        raise NotImplementedError


class UnknownAUROC(_Detection):
    """Probability that an unknown sample has a higher score than a known one; a tie counts one half.

    This is the area under the ROC curve of unknown against known, Hendrycks and Gimpel, ICLR 2017,
    https://arxiv.org/abs/1610.02136. It does not depend on which of the two is called positive. Pairs are counted in
    integers, so scores may have any range.

    Args:
        num_classes: number K of known classes; the label K is unknown.
        options: passed to :class:`torchmetrics.Metric`.
    """

    higher_is_better: bool = True

    def compare(self, inside: Tensor, outside: Tensor) -> Tensor:
        """See :class:`_Detection`."""
        wins = sum(torch.searchsorted(inside, outside, right=right).sum() for right in (False, True))
        return _share(torch.as_tensor(wins), inside.new_tensor(2 * len(inside) * len(outside)))


class UnknownFPR95(_Detection):
    """Share of the known samples that are flagged as unknown at the threshold that flags 95 % of the unknown ones.

    Unknown is the positive class, as in the code of Outlier Exposure, Hendrycks et al., ICLR 2019,
    https://arxiv.org/abs/1812.04606. Other code, such as that of energy-based detection (Liu et al., NeurIPS 2020) by
    default, calls the known class positive. It then reports the share of unknown samples that pass where 95 % of the
    known ones pass: another number under the same name. A sample is flagged if its score is at least the threshold. The
    threshold is the highest that flags 95 % or more. Outlier Exposure's code takes the threshold with the share nearest
    to 95 %; the two differ if there are few unknown samples or ties.

    Args:
        num_classes: number K of known classes; the label K is unknown.
        options: passed to :class:`torchmetrics.Metric`.
    """

    higher_is_better: bool = False

    def compare(self, inside: Tensor, outside: Tensor) -> Tensor:
        """See :class:`_Detection`."""
        flagged = (95 * len(outside) + 99) // 100  # the smallest number that is 95 % or more
        below = torch.searchsorted(inside, outside[len(outside) - flagged])
        return _share(len(inside) - below, torch.full_like(below, len(inside)))


def open_set_metrics(num_classes: int) -> MetricCollection:
    """All open-set metrics in one collection; update it with ``update(prediction=..., unknown=..., target=...)``.

    Args:
        num_classes: number K of known classes.

    Returns:
        ``h_score`` (with the accuracy over samples), ``h_score_class_mean``, ``common_accuracy`` (over samples),
        ``mean_class_accuracy`` (over the known classes), ``os``, ``os_star`` (the same number as
        ``mean_class_accuracy``, under the name that open-set papers give it), ``unknown_accuracy``, ``auroc`` and
        ``fpr95``.
    """
    return MetricCollection(
        {
            "h_score": HScore(num_classes),
            "h_score_class_mean": HScore(num_classes, average="class"),
            "common_accuracy": CommonAccuracy(num_classes),
            "mean_class_accuracy": CommonAccuracy(num_classes, average="class"),
            "os": OS(num_classes),
            "os_star": OSStar(num_classes),
            "unknown_accuracy": UnknownAccuracy(num_classes),
            "auroc": UnknownAUROC(num_classes),
            "fpr95": UnknownFPR95(num_classes),
        }
    )


def _known(num_classes: int) -> int:
    if num_classes < 1:
        raise UserError(f"open-set metrics need one known class or more, not {num_classes}")
    return num_classes


def _real(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def _share(count: Tensor, of: Tensor) -> Tensor:
    return count.to(_real(count)) / of.to(_real(of))
