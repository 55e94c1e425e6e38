"""UAN: universal adaptation network."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.errors import UserError
from dafw.losses.adversarial import domain_bce
from dafw.losses.transferability import mean_one, transferability
from dafw.methods.adaptation.adversarial import AdversarialMethod
from dafw.methods.base import Losses
from dafw.nn.mlp import mlp
from dafw.nn.network import Network
from dafw.nn.norm import NormMode
from dafw.nn.reversal import reverse_gradient
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class UAN(AdversarialMethod):
    """A DANN that aligns only samples whose class both domains seem to have.

    Loss: CE(source) + weight * (mean_s w_i BCE(D(reverse(f_i)), 1) + mean_t w_i BCE(D(reverse(f_i)), 0)) + the same
    loss of a second critic D' without weights and without effect on the features; features f (n_s + n_t, d), critic
    scores (n_s + n_t, 1). With d' = sigmoid(D'(f)) and p = softmax(logits) (n_s + n_t, K), a source row has the weight
    w = H(p) / log K - d' and a target row w = d' - H(p) / log K. In each domain the weights are scaled to be 0 or more
    with a mean of 1 over the batch of all ranks. No gradient flows through a weight. A sample is unknown if its target
    weight, before scaling, is below ``threshold``.

    You et al., Universal Domain Adaptation, CVPR 2019,
    https://openaccess.thecvf.com/content_CVPR_2019/html/You_Universal_Domain_Adaptation_CVPR_2019_paper.html. Read in
    the authors' code: the sums of the two domains' means, the scaling of the weights (it divides equal values by 0;
    here they are 1), their temperatures, critics with two hidden layers of 1024 and dropout, a ramp over 10000 steps
    (``ramp_steps``; here over the training), SGD with Nesterov's momentum (timm's ``sgd``), a tenth of the learning
    rate for the backbone, features of a linear bottleneck of 256 units, and batches of the source balanced over classes
    (``data.source_sampling: class_balanced``). It gives the cross-entropy probabilities instead of logits; we do not
    follow that. Its threshold (-0.5 for Office-Home), rate 0.01, momentum 0.9 and weight decay 0.0005 were read in a
    copy of its configuration, not in its own.

    The logged accuracies of D are as DANN's. Those of D' are ``similarity_accuracy_source`` and ``_target``.
    ``transferability_source`` and ``_target`` are the means of d' - H(p) / log K. ``ema_decay`` averages the network
    alone; rejection uses the D' of the last step.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K), K at least 2.
        width: width of the hidden layers of both critics.
        depth: number of hidden layers of both critics.
        critic_norm: batch normalisation in both critics.
        dropout: share of their hidden units to drop; each rank of a distributed run draws its own mask.
        source_temperature: temperature of the logits in the source's weights.
        target_temperature: temperature of the logits in the target's weights, also in evaluation.
        threshold: a sample is unknown if its target weight is below this; w_0 in the paper.
        gamma: steepness of the reversal's ramp.
        ramp_steps: ramp over this many steps instead of over the training.
        weight: weight of the domain loss.
        base: see :class:`~dafw.methods.base.Method`. The authors' code passes the domains one after the other, hence
            ``norm: separate``.

    Raises:
        UserError: if there is only one class, since then no prediction is uncertain, or ``threshold`` is not finite.
    """

    default_norm: ClassVar[NormMode] = "separate"
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 2.0), "gamma": (1.0, 20.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        width: PositiveInt = 1024,
        depth: NonNegativeInt = 2,
        critic_norm: bool = False,
        dropout: ClosedUnitInterval = 0.5,
        source_temperature: PositiveFloat = 10.0,
        target_temperature: PositiveFloat = 1.0,
        threshold: float = -0.5,
        gamma: NonNegativeFloat = 10.0,
        ramp_steps: PositiveInt | None = None,
        weight: NonNegativeFloat = 1.0,
        **base,
    ) -> None:
        super().__init__(network, weight=weight, gamma=gamma, ramp_steps=ramp_steps, **base)
        if self.num_classes < 2:
            raise UserError("UAN measures how uncertain the class is, and the source has one alone (data.label_sets)")
        self.source_temperature, self.target_temperature = source_temperature, target_temperature
        self.threshold = threshold
        self.critic, self.similarity = (
            mlp(network.num_features, [width] * depth, 1, norm=critic_norm, dropout=dropout) for _ in range(2)
        )

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        """The weighted loss of the critic, and the loss of the second critic, which the features do not deceive."""
        similar = self.similarity(joint.features.detach()).squeeze(1)
        loss = self.domain_loss(joint, len(source), similar)
        return {"domain": self.weight * loss, "similarity": 2 * domain_bce(similar, len(source))}

    def domain_loss(self, outputs: Outputs, num_source: int, similar: Tensor | None = None) -> Tensor:
        """Weighted cross-entropy of the critic: features (N, d) and logits (N, K) of both domains -> scalar.

        Args:
            outputs: outputs of both domains, source rows first.
            num_source: number of source rows.
            similar: scores (N,) of D' if they are already computed.
        """
        if similar is None:
            similar = self.similarity(outputs.features.detach()).squeeze(1)
        n, temperatures = num_source, (self.source_temperature, self.target_temperature)
        source, target = (
            transferability(similar[rows], outputs.logits[rows], temperature=temperature).detach()
            for rows, temperature in zip((slice(n), slice(n, None)), temperatures, strict=True)
        )
        scores = self.critic(reverse_gradient(outputs.features, self.ramp)).squeeze(1)
        if self.logs_this_step:
            self.diagnose_critic(scores > 0, n)
            self.diagnose("similarity_accuracy_source", (similar[:n] > 0).float().mean())
            self.diagnose("similarity_accuracy_target", (similar[n:] <= 0).float().mean())
            self.diagnose("transferability_source", source.mean())
            self.diagnose("transferability_target", target.mean())
        return 2 * domain_bce(scores, n, torch.cat([mean_one(-source), mean_one(target)]))

    def unknown_scores(self, outputs: Outputs) -> Tensor:
        """The threshold minus the target weight, (N,)."""
        scores = self.similarity(outputs.features)
        return self.threshold - transferability(scores, outputs.logits, temperature=self.target_temperature)
