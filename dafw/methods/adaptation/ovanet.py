"""OVANet: one-vs-all network."""

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.losses.entropy import mean_entropy
from dafw.losses.one_vs_all import another_class, one_vs_all
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.network import Network
from dafw.nn.norm import NormMode
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, Range


class OVANet(AdaptationMethod):
    """A binary classifier for each class learns on the source how close to the class a sample must be.

    Loss: CE(source) + open_weight * mean_s (-log p_i[y_i] + max_{k != y_i} -log(1 - p_i[k])) + weight * mean_t mean_k
    H(p_i[k]). p_i[k] is the probability of "class k" against "another class" by the k-th open classifier, which gives
    two linear scores of the features (n_s + n_t, d) without bias. H is the entropy of that pair of probabilities. A
    sample is unknown if the open classifier of the class that the label head predicts says "another class" with a
    probability above ``threshold``.

    Saito and Saenko, OVANet: One-vs-All Network for Universal Domain Adaptation, ICCV 2021,
    https://arxiv.org/abs/2104.03344. Read in the authors' code: the factor 1/2; the mean over the classes; rows of the
    open classifiers are set to length 1 before each step (not after the last); a weight of 0.1 and a threshold of
    1/2; SGD with Nesterov's momentum 0.9 (timm's ``sgd``), weight decay 0.0005, learning rate 0.01 (1 + 10 p)^-0.75, a
    tenth of it for the backbone, batches of 36, those of the source balanced over classes (``data.source_sampling:
    class_balanced``), and a label head without bias. The paper's equations, as recalled, have
    neither the factor nor the mean: ``open_weight`` 1 and ``weight`` 0.1 K.

    The control keeps the open classifiers and rejects with them too. ``ema_decay`` averages the network alone;
    rejection uses the open classifiers of the last step.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        weight: weight of the entropy on the target.
        open_weight: weight of the open classifiers' loss on the source.
        normalise_open: set the rows of the open classifiers to length 1 before each step.
        threshold: probability of another class above which a sample is unknown.
        base: see :class:`~dafw.methods.base.Method`. The authors' code passes the domains one after the other, hence
            ``norm: separate``.

    Raises:
        UserError: if ``threshold`` is not in [0, 1].
    """

    default_norm: ClassVar[NormMode] = "separate"
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    control_difference_reason: ClassVar[str] = "its open classifiers train the features on the source too"
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.01, 1.0), "open_weight": (0.1, 2.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        weight: NonNegativeFloat = 0.1,
        open_weight: NonNegativeFloat = 0.5,
        normalise_open: bool = True,
        threshold: Annotated[float, Range("is a probability between 0 and 1", 0, 1)] = 0.5,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.weight, self.open_weight = weight, open_weight
        self.normalise_open, self.threshold = normalise_open, threshold
        self.open = nn.Linear(network.num_features, 2 * self.num_classes, bias=False)

    def open_logits(self, features: Tensor) -> Tensor:
        """Scores of the open classifiers, features (N, d) -> (N, K, 2): "another class", "this class"."""
        scores: Tensor = self.open(features)
        return scores.view(-1, self.num_classes, 2)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets the rows of the open classifiers to length 1."""
        super().on_train_batch_start(batch, batch_idx)
        if self.normalise_open:
            with torch.no_grad():
                self.open.weight.copy_(F.normalize(self.open.weight, dim=1))

    def losses(self, batch: Batch) -> Losses:
        """All terms, from one forward of the joint batch."""
        joint = self.forward_batch(batch)
        opened, n = self.open_logits(joint.features), batch.num_source
        terms = {
            "supervised": self.problem.loss(joint[:n], batch.y),
            "one_vs_all": self.open_weight * one_vs_all(opened[:n], batch.y),
            "open_entropy": self.weight * mean_entropy(opened[n:]),
        }
        if self.logs_this_step:
            for domain, rows in (("source", joint[:n]), ("target", joint[n:])):
                self.diagnose(f"unknown_{domain}", (self.unknown_scores(rows) > 0).float().mean())
        return terms

    def unknown_scores(self, outputs: Outputs) -> Tensor:
        """Probability of "another class" by the predicted class's open classifier, minus the threshold: (N,)."""
        return another_class(self.open_logits(outputs.features), outputs.logits.argmax(1)) - self.threshold
