"""Sharpness-aware minimisation and its relatives: rules that combine gradients at several points into one.

A rule is given to any method (``model.sharpness: SAM``). The method's optimiser is then wrapped in
:class:`SharpnessAware`. Its ``step`` takes a closure and calls it once for each pass of the rule.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dafw.errors import UserError
from dafw.optim.sam import ascent, perturbed
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat
from dafw.recording import Recorded

#: Computes the gradients at the current values of the parameters, one tensor for each parameter.
Evaluate = Callable[[], list[Tensor]]


class Sharpness(Recorded):
    """Base class of a rule. On several ranks it gets the gradients of the whole batch, so all ranks take the same step.

    Attributes:
        passes: number of forward and backward passes of the batch in one step.
        local: whether each rank computes its first gradient from its own rows only.
    """

    config_key: ClassVar[str] = "model.sharpness"
    passes: ClassVar[int] = 2
    local: bool = False

    def gradient(self, parameters: Sequence[Tensor], here: list[Tensor], evaluate: Evaluate) -> list[Tensor]:
        """The gradient to descend.

        Args:
            parameters: the trained parameters. They may be moved within; afterwards they hold their old values, to the
                last bit.
            here: gradients at the parameters, one for each.
            evaluate: computes the gradients at the current values of the parameters; to be called ``passes - 1`` times.

        Returns:
            One tensor for each parameter, of its shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must define gradient(parameters, here, evaluate)")


class SAM(Sharpness):
    """Takes the gradient a little uphill, at theta + rho g / ||g||, and applies it at theta.

    Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, ICLR 2021,
    https://arxiv.org/abs/2010.01412, equation 2 and algorithm 1.

    Args:
        rho: length of the step uphill; the norm is over all parameters (paper: 0.05).
        local: each rank steps uphill along the gradient of its own rows. This saves one reduction; the paper calls it
            m-sharpness. Two ranks then do not train the same as one.

    Raises:
        UserError: if ``rho`` is negative.
    """

    def __init__(self, rho: NonNegativeFloat = 0.05, local: bool = False) -> None:
        self.rho, self.local = rho, local

    def gradient(self, parameters: Sequence[Tensor], here: list[Tensor], evaluate: Evaluate) -> list[Tensor]:
        """See :class:`Sharpness`."""
        with perturbed(parameters, ascent(here, self.rho)):
            return evaluate()


class SAGM(Sharpness):
    """The mean of the gradient at theta and of the gradient at theta + (rho / ||g|| - alpha) g.

    It descends the loss, the loss uphill and the angle between the two gradients. Wang et al., Sharpness-Aware Gradient
    Matching for Domain Generalization, CVPR 2023, https://arxiv.org/abs/2303.10353. The step, the defaults and the
    factors 1/2 were read in the authors' code.

    Args:
        rho: length of the step uphill (authors' code: 0.05).
        alpha: factor of the gradient that is subtracted from the step (0.001; 0.0005 on Office-Home and DomainNet).

    Raises:
        UserError: if ``rho`` or ``alpha`` is negative.
    """

    def __init__(self, rho: NonNegativeFloat = 0.05, alpha: NonNegativeFloat = 0.001) -> None:
        self.rho, self.alpha = rho, alpha

    def gradient(self, parameters: Sequence[Tensor], here: list[Tensor], evaluate: Evaluate) -> list[Tensor]:
        """See :class:`Sharpness`."""
        steps = list(torch._foreach_sub(ascent(here, self.rho), here, alpha=self.alpha))
        with perturbed(parameters, steps):
            there = evaluate()
        return list(torch._foreach_mul(torch._foreach_add(here, there), 0.5))


class GAM(Sharpness):
    """The update that GAM's authors released, of gradients at four points.

    g0 is the gradient at theta, g1 that at theta + rho g0 / ||g0||. h = g1 - g0 points to larger norms of the gradient.
    g2 is the gradient at theta' = theta + rho_norm h / ||h||, g3 that at theta' + rho g2 / ||g2||. The rule descends
    d = alpha g1 + (1 - alpha) g3, minus gamma times the part of g0 + |1 - beta| g2 that is orthogonal to d.

    Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization, CVPR 2023,
    https://arxiv.org/abs/2303.03108. The update and the defaults, those for CIFAR-10 with a ResNet, were read in the
    authors' code (repository xxgege/GAM). It gives CIFAR-100 rho 0.02, alpha 0.6, beta 0.5 and gamma 0.03. UDIM's
    authors use rho and rho_norm 0.05 and a label smoothing of 0.1 on PACS. :class:`GAMObjective` descends the paper's
    objective.

    Args:
        rho: length of the two steps uphill.
        rho_norm: length of the step to larger norms of the gradient.
        alpha: share of g1 in d (``grad_beta_1`` in the authors' code).
        beta: one minus the weight of g2 (``grad_beta_0`` in the authors' code).
        gamma: weight of the orthogonal part that is subtracted.

    Raises:
        UserError: if one of them is negative, or ``alpha`` is above 1.
    """

    passes: ClassVar[int] = 4

    def __init__(
        self,
        rho: NonNegativeFloat = 0.03,
        rho_norm: NonNegativeFloat = 0.2,
        alpha: ClosedUnitInterval = 0.1,
        beta: NonNegativeFloat = 0.1,
        gamma: NonNegativeFloat = 0.05,
    ) -> None:
        self.rho, self.rho_norm = rho, rho_norm
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def gradient(self, parameters: Sequence[Tensor], here: list[Tensor], evaluate: Evaluate) -> list[Tensor]:
        """See :class:`Sharpness`."""
        with perturbed(parameters, ascent(here, self.rho)):
            uphill = evaluate()
        slope = list(torch._foreach_sub(uphill, here))
        with perturbed(parameters, ascent(slope, self.rho_norm)):
            aside = evaluate()
            with perturbed(parameters, ascent(aside, self.rho)):
                above = evaluate()
        mixed = torch._foreach_add(here, aside, alpha=abs(1 - self.beta))
        descended = list(torch._foreach_lerp(above, uphill, self.alpha))
        products = torch._foreach_mul(mixed, descended)
        along = torch.stack([product.sum() for product in products]).sum()
        norms = [torch.nn.utils.get_total_norm(part) for part in (descended, mixed)]
        cosine = along / (norms[0] * norms[1] + 1e-12)
        parallel = torch._foreach_mul(descended, cosine * norms[1] / (norms[0] + 1e-12))
        orthogonal = torch._foreach_sub(mixed, parallel)
        return list(torch._foreach_sub(descended, orthogonal, alpha=self.gamma))


class GAMObjective(Sharpness):
    """The gradient of L + weight * rho_norm * ||dL/dtheta'||, where theta' is the nearby point with the largest norm.

    This is the objective of GAM's paper, without the mixtures of its authors' code, which is :class:`GAM`. The
    gradient of the norm, h = H g / ||g||, is a difference of two gradients, (g(theta + rho g / ||g||) - g(theta)) /
    rho. h at theta gives theta' = theta + rho_norm h / ||h||. h at theta' is added to the gradient of the loss.

    Zhang et al., Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization, CVPR 2023,
    https://arxiv.org/abs/2303.03108. The objective and the defaults are recalled, not read. That the norm's gradient
    may be such a difference was read in the authors' repository.

    Args:
        rho: distance over which the gradient of the norm is measured (recalled: 0.05).
        rho_norm: radius within which the largest norm is searched (recalled: 0.1).
        weight: weight of the flatness term (unsure: 1).

    Raises:
        UserError: if one of them is negative, or ``rho`` is 0.
    """

    passes: ClassVar[int] = 4

    def __init__(
        self, rho: NonNegativeFloat = 0.05, rho_norm: NonNegativeFloat = 0.1, weight: NonNegativeFloat = 1.0
    ) -> None:
        self.rho, self.rho_norm, self.weight = rho, rho_norm, weight
        if rho == 0:
            raise UserError("rho of GAMObjective is a distance to measure over: more than 0")

    def gradient(self, parameters: Sequence[Tensor], here: list[Tensor], evaluate: Evaluate) -> list[Tensor]:
        """See :class:`Sharpness`."""
        slope = self.slope(parameters, here, evaluate)
        with perturbed(parameters, ascent(slope, self.rho_norm)):
            there = self.slope(parameters, evaluate(), evaluate)
        return list(torch._foreach_add(here, there, alpha=self.weight * self.rho_norm))

    def slope(self, parameters: Sequence[Tensor], here: list[Tensor], evaluate: Evaluate) -> list[Tensor]:
        """Gradient of the gradient's norm at the current values of the parameters."""
        with perturbed(parameters, ascent(here, self.rho)):
            there = evaluate()
        return list(torch._foreach_div(torch._foreach_sub(there, here), self.rho))


class SharpnessAware(Optimizer):
    """Wraps another optimiser: its ``step`` descends the gradient of a rule.

    Parameter groups, state and checkpoints are those of the wrapped optimiser. Parameters without a gradient in the
    first pass are left out of all passes. If none has one, there is no step.

    Args:
        base: the wrapped optimiser.
        rule: computes the gradient that ``base`` descends.
        around: called with the number of each pass, from 0; returns the context manager in which the pass runs.
    """

    def __init__(self, base: Optimizer, rule: Sharpness, around: Callable[[int], AbstractContextManager[Any]]) -> None:
        self.base, self.rule, self.around = base, rule, around

    def __getattr__(self, name: str) -> Any:
        """Looks up all other attributes on the wrapped optimiser."""
        if name == "base":
            raise AttributeError(name)
        return getattr(self.base, name)

    # Lightning looks for these in the class from Python 3.12 on, where __getattr__ is not asked.
    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Those of the wrapped optimiser."""
        return self.base.param_groups

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of the wrapped optimiser."""
        return self.base.defaults

    @property
    def state(self) -> Any:  # type: ignore[override]
        """That of the wrapped optimiser."""
        return self.base.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: clears the gradients, computes the loss and its gradients, and returns the loss; called
                ``rule.passes`` times.

        Returns:
            The loss of the first pass.

        Raises:
            RuntimeError: if there is no closure.
        """
        if closure is None:
            raise RuntimeError("a sharpness-aware step needs a closure that computes the gradients")
        numbers = iter(range(self.rule.passes))
        with self.around(next(numbers)), torch.enable_grad():
            loss = closure()
        moved = [parameter for parameter in self.parameters() if parameter.grad is not None]
        if not moved:
            return loss

        def evaluate() -> list[Tensor]:
            with self.around(next(numbers)), torch.enable_grad():
                closure()
            return _gradients(moved)

        found = self.rule.gradient(moved, _gradients(moved), evaluate)
        for parameter, gradient in zip(moved, found, strict=True):
            parameter.grad = gradient
        self.base.step()
        return loss

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of all groups."""
        for group in self.param_groups:
            yield from group["params"]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Calls the wrapped optimiser's ``zero_grad``."""
        self.base.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimiser; a rule has no state."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state into the wrapped optimiser."""
        self.base.load_state_dict(state_dict)

    def __repr__(self) -> str:
        return f"{type(self.rule).__name__} on {self.base!r}"


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Copies of the gradients, since the next pass may reuse the tensors that hold them."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
