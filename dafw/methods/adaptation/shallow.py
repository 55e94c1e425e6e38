"""Shallow: a classifier on fixed features, with or without a closed-form alignment of the domains."""

from dataclasses import replace
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.domain import Domain
from dafw.errors import UserError, choose, sentence
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.modes import evaluation_mode
from dafw.nn.network import Network
from dafw.nn.shallow import Alignment, Classifier, ShallowClassifier
from dafw.problems import Outputs
from dafw.ranges import PositiveFloat, PositiveInt


class Shallow(AdaptationMethod):
    """Fits a classifier on the features of all training samples of the source, as the methods before deep ones did.

    Loss: none; no weight of the network changes. When training starts, every training sample of the source (n, d), and
    without labels of the target (m, d), passes the network once. A classifier of scikit-learn, or the nearest sample,
    then predicts by the features. ``alignment`` brings the features of the domains together before that: ``coral``
    (Sun et al., AAAI 2016, https://arxiv.org/abs/1511.05547) or ``subspace`` (Fernando et al., ICCV 2013,
    https://arxiv.org/abs/1409.5241); see :mod:`dafw.nn.shallow`. One step of training is enough.

    For features from files the backbone is ``identity``. With another one the rows are those of a classifier on top of
    a network as it is, such as a pretrained one.

    Args:
        network: samples to features (N, d). Its label head is not used.
        classifier: ``svm`` (linear), ``logistic`` or ``nearest``.
        alignment: ``none``, ``coral`` or ``subspace``.
        c: weight C of the loss of ``svm`` and ``logistic`` against the squared norm of their weights.
        dimensions: number of principal directions of ``subspace``.
        base: see :class:`~dafw.methods.base.Method`; what concerns the optimiser has no influence.

    Raises:
        UserError: when training starts, if the rows do not suffice for ``dimensions`` or are all of one class.
    """

    backbone_passes: ClassVar[int | None] = 0
    search_space: ClassVar[dict[str, Any]] = {"c": (1e-5, 1e2)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        classifier: Classifier = "svm",
        alignment: Alignment = "none",
        c: PositiveFloat = 1.0,
        dimensions: PositiveInt = 40,
        **base,
    ) -> None:
        super().__init__(network, **base)
        choose("classifier", classifier, get_args(Classifier))
        choose("alignment", alignment, get_args(Alignment))
        self.options: dict[str, Any] = {"classifier": classifier, "alignment": alignment}
        self.options |= {"c": c, "dimensions": dimensions}
        self.fitted = ShallowClassifier(self.num_classes)

    def on_train_start(self) -> None:
        """Fits the classifier, unless a checkpoint brought it. Each rank fits the same one on all samples."""
        super().on_train_start()
        if not self.fitted.is_fitted:
            self._fit()

    def _fit(self) -> None:
        domains, count = self.data.train_domains, len(self.data.labelled)
        source, labels = self._passed(domains[:count])
        target, _ = self._passed(domains[count:])
        try:
            self.fitted.fit(source, labels, target, **self.options, seed=self.data_seed)
        except ValueError as error:
            raise UserError(f"Shallow cannot be fitted ({self.options['alignment']}): {sentence(error)}") from error

    @torch.no_grad()
    def _passed(self, domains: list[Domain]) -> tuple[Tensor, Tensor]:
        """The features of all samples of some domains in evaluation mode, and the labels of those that have one."""
        data: Any = self.data
        features, labels = list[Tensor](), [torch.zeros(0, dtype=torch.int64)]
        with evaluation_mode(self.network), self.layout.temporarily(sync=False):
            for domain in domains:
                is_source = domain.labels is not None
                for given in data.evaluation_loader(domain, shard=False):
                    batch = given.to(self.device)
                    rows = self.forward_rows(batch.x, len(batch) if is_source else 0, self.eval_network, batch.sizes)
                    features.append(rows.features)
                    labels += [given.y] if is_source else []
        return torch.cat(features), torch.cat(labels)

    def losses(self, batch: Batch) -> Losses:
        """Nothing to learn."""
        return {"supervised": self.network.shift.new_zeros(())}

    def adapt(self, source: Any, target: Any, joint: Any) -> Losses:
        """No terms."""
        return {}

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """No gradient, so that the optimiser leaves all weights alone."""

    def prepare_evaluation(self, stage: str) -> None:
        """Refuses to predict before the classifier was fitted.

        Raises:
            UserError: saying so.
        """
        super().prepare_evaluation(stage)
        if not self.fitted.is_fitted:
            raise UserError("Shallow is fitted when its training starts: train one step at least")

    def evaluate(self, batch: Batch, source: bool) -> Outputs:
        """Features, and the scores of the fitted classifier."""
        return self._scored(super().evaluate(batch, source), source)

    def forward(self, x: Any) -> Outputs:
        """Samples of the target to features and scores."""
        return self._scored(super().forward(x), False)

    def _scored(self, outputs: Outputs, is_source: bool) -> Outputs:
        return replace(outputs, logits=self.fitted(outputs.features, is_source))
