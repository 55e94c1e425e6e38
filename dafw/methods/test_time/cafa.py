"""CAFA: features come closer to the source's Gaussian of their predicted class than to those of the others."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.gaussians import class_alignment, mahalanobis, whitening
from dafw.methods.base import Losses
from dafw.methods.optimisation import trained_parameters
from dafw.methods.source_statistics import UsesSource
from dafw.methods.test_time.base import Learns, StatisticsRule, TestTimeMethod
from dafw.nn.network import Network
from dafw.problems import Outputs
from dafw.ranges import PositiveInt, Range


class CAFA(UsesSource, TestTimeMethod):
    """Scale and shift of all normalisations learn to bring features close to the source's statistics of their class.

    Loss: mean_i [log(D_iy + e) - log(sum_(c != y) D_ic + e)], where y is the predicted class of row i without gradient,
    e = 1e-6, and D_ic = (f_i - mu_c)^T S^-1 (f_i - mu_c) is the squared Mahalanobis distance of its features f_i (d,)
    from class c; features (n, d), logits (n, K), D (n, K). mu_c (d,) is the mean of the features of the source's
    training samples of class c, under the start model with its running statistics. S (d, d) is their covariance within
    the classes, one for all classes, shrunk: (1 - s) Sigma + s v I with s = ``shrinkage`` and the mean variance v. The
    mean is over the rows of all ranks. Served are the logits before the step. The label head gets no
    gradient and never learns. A class without a source sample has no part: no row counts as predicted so.

    Jung et al., CAFA: Class-Aware Feature Alignment for Test-Time Adaptation, ICCV 2023,
    https://arxiv.org/abs/2206.00205. The paper has Gaussians of the classes, a Mahalanobis distance from the predicted
    class that falls, distances from the others that rise, and normalisations that learn. How the distances make up the
    loss is our reading, from memory; there is no code of the authors. The one covariance, the shrinkage, the optimiser,
    its rate and the statistics of the batch are ours too. A summary of the paper by others writes a covariance for each
    class, which is ``per_class_covariance``. The paper's loss has no hyper-parameters. No number here reproduces one of
    the paper.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        per_class_covariance: whether each class has a covariance of its own, K d^2 numbers in all (ours: no). v is then
            the mean over the classes.
        shrinkage: s, above 0 and at most 1 (ours: 0.01).
        source_samples: number of training samples of the source for mu and Sigma; all if ``None`` (paper: a small
            subset, of a size that we do not know).
        optimizer: see :class:`~dafw.methods.base.Method` (ours: Tent's Adam).
        lr: learning rate (ours: Tent's 0.001).
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`.

    Attributes:
        means: mu, (K, d); zeros for a class without a sample.
        whiten: (1 or K, d, d), see :func:`~dafw.losses.gaussians.whitening`.
        present: (K,) bool, which classes had a source sample.

    Raises:
        UserError: if no parameter before the label head learns. When training starts, see
            :meth:`~dafw.methods.source_statistics.UsesSource.source_statistics`.
    """

    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "shrinkage": [0.001, 0.01, 0.1]}
    default_statistics: ClassVar[StatisticsRule] = "batch"
    default_learns: ClassVar[Learns] = "norm"
    means: Tensor
    whiten: Tensor
    present: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        per_class_covariance: bool = False,
        shrinkage: Annotated[float, Range("must be above 0 and at most 1", 0, 1, above=True)] = 0.01,
        source_samples: PositiveInt | None = None,
        optimizer: str = "adam",
        lr: float = 1e-3,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        self.per_class_covariance, self.shrinkage = per_class_covariance, shrinkage
        self.source_samples = source_samples
        classes, width = self.num_classes, network.num_features
        self.register_buffer("means", torch.zeros(classes, width))
        self.register_buffer("whiten", torch.zeros(classes if per_class_covariance else 1, width, width))
        self.register_buffer("present", torch.zeros(classes, dtype=torch.bool))

    def choose_parameters(self) -> None:
        """As the base, without the label head, which gets no gradient."""
        super().choose_parameters()
        if self.learns == "nothing":
            return
        self.network.label_head().requires_grad_(False)
        if not trained_parameters(self.network):
            raise UserError(
                f"CAFA learns from features, and nothing before the label head learns (model.learns {self.learns}): "
                "give model.learns norm or network"
            )

    @property
    def source_use(self) -> str:
        """See the base; nothing if nothing learns."""
        return "nothing" if self.learns == "nothing" else super().source_use

    def take_from_source(self) -> None:
        """Fills the classes' means and what whitens their features."""
        if self.source_use == "nothing":
            return
        found = self.source_statistics(
            "gaussians",
            self.class_gaussians,
            count=self.source_samples,
            settings={"per_class_covariance": self.per_class_covariance},
        )
        self.means.copy_(found["means"])
        self.present.copy_(found["counts"] > 0)
        self.whiten.copy_(whitening(found["covariances"], self.shrinkage))

    @torch.no_grad()
    def class_gaussians(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Samples of each class (K,), their means (K, d), and covariances (1 or K, d, d) around the own class's mean.

        The sums are in 64 bits. A sum of squares over the samples of a covariance is divided by their number.
        """
        groups, (classes, width) = len(self.whiten), self.means.shape
        counts = self.means.new_zeros(classes, dtype=torch.float64)
        sums, squares = counts.new_zeros(classes, width), counts.new_zeros(groups, width, width)
        for batch in batches:
            features = self.forward_rows(batch.x, 0, self.network, batch.sizes).features.double()
            members = F.one_hot(batch.y, classes).double()
            counts += members.sum(0)
            sums += members.T @ features
            for group in range(groups):
                rows = features * members[:, group, None] if groups > 1 else features
                squares[group] += rows.T @ features
        means = sums / counts.clamp_min(1)[:, None]
        between = counts[:, None, None] * means[:, :, None] * means[:, None] if groups > 1 else means.T @ sums
        sizes = counts if groups > 1 else counts.sum()[None]
        covariances = (squares - between) / sizes.clamp_min(1)[:, None, None]
        return {"counts": counts, "means": means, "covariances": covariances}

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The loss of the features (n, d) with the classes that the logits (n, K) predict: a scalar."""
        predicted = outputs.logits.detach().masked_fill(~self.present, -torch.inf).argmax(1)
        distances = mahalanobis(outputs.features, self.means, self.whiten)
        return {"alignment": class_alignment(distances, predicted, self.present)}
