"""SDAT: smooth domain-adversarial training."""

from functools import reduce
from operator import add
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.losses.confusion import class_confusion
from dafw.methods.adaptation.cdan import CDAN
from dafw.methods.base import Losses
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.nn.network import Network
from dafw.optim.sam import ascent, perturbed
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveFloat


class SDAT(ManualOptimization, CDAN):
    """CDAN with sharpness-aware minimisation of its task loss, but not of its domain loss.

    Loss: T(theta + rho g / ||g||) + weight * D(theta), where T = CE(source) + confusion * (class confusion of the
    target's logits (n_t, K)), g = dT/dtheta over the network's weights, and D is the domain loss of CDAN, from features
    (n_s + n_t, d). The step uphill counts as a constant, and the gradient computed there is applied to theta.

    Rangwani et al., A Closer Look at Smoothness in Domain Adversarial Training, ICML 2022,
    https://arxiv.org/abs/2206.08213. D is at theta as in the paper's objective (recalled). The authors' code (read)
    takes D from the second pass, at the perturbed weights: ``domain_at: perturbed``. Also read there: CDAN without
    entropy weights, together with MCC (``confusion`` 1, temperature 2), which is part of T; a critic of 1024-1024 with
    batch normalisation, whose loss is a mean over all rows, hence the default ``weight`` 1 (CDAN's: 2); ViT-B/16 with
    rho 0.02 on Office-Home and on VisDA (0.005 there without MCC). Recalled: ResNet-50 on Office-Home takes 0.02 as
    well.

    There are two backbone passes, at theta and at the perturbed weights. The running statistics of batch normalisation
    follow the first pass only (authors' code: both). Gradients are averaged over the ranks in each pass, so every rank
    takes the same step uphill. The critic is not perturbed.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        rho: length of the step uphill.
        confusion: weight of the class confusion (0: CDAN with SDAT alone).
        temperature: divides the logits of the class confusion (authors' code: 2; MCC and tllib: 2.5).
        domain_at: point at which the domain loss is differentiated: ``weights`` (paper) or ``perturbed`` (authors'
            code).
        weight: weight of the domain loss.
        cdan: see :class:`~dafw.methods.adaptation.cdan.CDAN`. The authors' code trains with ``lr`` 0.01, 0.002 with
            MCC on ViT-B/16, times (1 + 0.001 i)^-0.75 at step i, Nesterov momentum 0.9, weight decay 0.001.

    Raises:
        UserError: if ``rho`` is negative.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "confusion": 0.0, "rho": 0.0}
    backbone_passes: ClassVar[int] = 2
    search_space: ClassVar[dict[str, Any]] = {"rho": (0.005, 0.1), "weight": (0.1, 2.0), "lr": (1e-3, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        rho: NonNegativeFloat = 0.02,
        confusion: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 2.0,
        domain_at: Literal["weights", "perturbed"] = "weights",
        weight: NonNegativeFloat = 1.0,
        **cdan,
    ) -> None:
        super().__init__(network, weight=weight, **cdan)
        self.rho, self.confusion, self.temperature, self.domain_at = rho, confusion, temperature, domain_at

    def task(self, joint: Outputs, batch: Batch) -> Losses:
        """The terms with sharpness-aware minimisation."""
        source, target = joint[: batch.num_source], joint[batch.num_source :]
        confusion = class_confusion(target.logits, temperature=self.temperature)
        return {"supervised": self.problem.loss(source, batch.y), "confusion": self.confusion * confusion}

    def losses(self, batch: Batch) -> Losses:
        """All terms at the current weights."""
        joint = self.forward_batch(batch)
        return {**self.task(joint, batch), **self.domain(joint, batch.num_source)}

    def domain(self, joint: Outputs, num_source: int) -> Losses:
        """The term without sharpness-aware minimisation."""
        return self.adapt(joint[:num_source], joint[num_source:], joint)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One pass at the weights, one uphill of them, and a step from the weights."""
        n, network = batch.num_source, trained_parameters(self.network)
        trained, plain = [*network, *self.critic.parameters()], self.domain_at == "weights"
        here = self.forward_rows(batch.x, n)
        terms = self.task(here, batch)
        if plain:
            terms |= self.domain(here, n)
        self.compare_gradients(terms)
        uphill = self.gradients(terms["supervised"] + terms["confusion"], network, retain_graph=plain)
        adversarial = self.gradients(terms["domain"], trained) if plain else []
        with perturbed(network, ascent(uphill, self.rho)), self.layout.untracked():
            there = self.forward_rows(batch.x, n)
            smooth = self.task(there, batch)
            if not plain:
                domain = self.domain(there, n)
                terms, smooth = {**terms, **domain}, {**smooth, **domain}
            gradients = self.gradients(reduce(add, smooth.values()), trained)
        if plain:
            gradients = list(torch._foreach_add(gradients, adversarial))
        self.apply_gradients((trained, gradients))
        self.record_step(batch, terms, {f"{name}_uphill": term for name, term in smooth.items()})
        return reduce(add, terms.values()).detach()
