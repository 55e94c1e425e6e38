"""UDIM: unknown domain inconsistency minimisation."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dafw.callbacks.restarting import RestartFromBest
from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.losses.inconsistency import last_layer_moments, mean_square, split_style, uphill_step, variance_mismatch
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.nn.distributed import mean_over_ranks, sum_over_ranks, world_size
from dafw.nn.network import Network
from dafw.optim.sharpness import SAM, Sharpness
from dafw.problems import Classification
from dafw.problems.model import NetworkBase
from dafw.ranges import NonNegativeFloat

#: The step of the authors' code: the length of a pixel's move over a batch's rows, or the rate of a style's ascent.
AUTHORS_STEP = 10.0


class _Climb(NamedTuple):
    """Results of the first pass.

    Attributes:
        supervised: CE of this rank's rows.
        objective: J of all rows, but with the CE of this rank; the mean over ranks is J.
        trained: the parameters that the loss depends on.
        gradient: gradient of the whole batch's CE, one for each of them; with a ``local`` rule that of this rank's
            rows.
        images: x, as floating point images.
        crafted: x~, as floating point images.
        slopes: gradient of J with respect to the normalised images, or to the means and deviations of their channels.
    """

    supervised: Tensor
    objective: Tensor
    trained: list[nn.Parameter]
    gradient: list[Tensor]
    images: Tensor
    crafted: Tensor
    slopes: tuple[Tensor, ...]


class UDIM(ManualOptimization, GeneralizationMethod):
    """Finds weights in a flat region of the sources with the same loss landscape over images and perturbed images.

    Loss: S + weight * I(x, x~). S is the cross-entropy as a sharpness rule descends it, at images x (n, C, H, W). The
    unknown domain is x~ = x + delta, uphill of J(x) = CE(x) + rho ||dCE/dtheta||. The gradient of J with respect to x
    takes a second derivative; no gradient flows through x~. I compares the gradients g_i of the rows' cross-entropies
    with respect to the last linear layer, (K, d) and (K,): I = mean_j (var g_j(x) - var g_j(x~))^2 / 4 + mean g(x~)^2
    of the weights + mean g(x~)^2 of the bias. Means and variances are over rows and entries j. I is summed over the
    sources or taken over all rows together. Both branches of I reach every weight of the network.

    Shin et al., Unknown Domain Inconsistency Minimization for Domain Generalization, ICLR 2024,
    https://arxiv.org/abs/2403.07329 and https://openreview.net/forum?id=eNoiRal5xi. The authors' code was read, the
    paper recalled: ``weight``, ``radius``, ``rho``, ``warmup`` and the form of I are the code's; the paper's radius is
    unsure. Also read there: Adam with rate 3e-5 and weight decay 1e-4, dropout 0.5, batches of 16 rows per source on
    PACS and 32 elsewhere, 5001 steps (DomainNet: 15001).

    ``mode: authors`` does what their code does where it departs:

    - delta is scaled for each pixel over the batch's rows, instead of for each image. Their step of 10 is the length of
      one pixel's delta over n rows. Its root mean square is 10 / sqrt(n), in both modes the default of ``radius``;
    - the variance over x~ is taken about the mean over x;
    - ``perturb: style`` moves means and deviations but does not rebuild the image, so that x~ = x up to rounding and
      the variances agree. Their script for single sources runs this. ``mode: paper`` rebuilds it.

    ``restart`` goes back to the best validation of the warm-up, as their code does: after the warm-up it loads the
    network and the optimiser's state with the best accuracy on the sources' validation splits. They validate every 100
    of 5001 steps and after the first and the last step of the warm-up; here a run validates after each epoch.

    Three parts of their code are left out in both modes. Their optimiser switches evaluation to the test batch's own
    statistics for good (see ``test_statistics``). They make one forward for each source in I; here one forward has all
    rows, so batch normalisation sees x and x~ of all sources together. A script for several sources asks for the
    single-source protocol.

    A rule of ``passes`` takes ``1 + passes`` backbone passes, three for SAM; the last is over x and x~ together. The
    warm-up takes ``passes``, and so does weight 0, which is ERM with the same rule. Running statistics follow the first
    pass only. Memory holds the graph of the first pass's gradient, and a few matrices (K, d + 1) for each group of rows
    in I, but no gradient of a single row. On several ranks J, x~ and I are those of one process, by sums over the ranks
    of the first gradient, of the squared slopes (``mode: authors``) and of those matrices.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K). Its label head must end in a linear layer;
            the gradients are those of that layer's effective weight. ``compile`` is refused, since compiled code has no
            second derivative.
        weight: weight of I (authors' code: 1).
        radius: root mean square of delta over the values of an image (C, H, W), or with ``mode: authors`` over those of
            a pixel in all rows, in units of the network's normalised images. null: 10 / sqrt(n) for the n rows of a
            batch on all ranks, as in the authors' code; that is 1.4 for 48 rows. The Euclidean length of an image's
            delta is radius * sqrt(C H W). x~ may leave the range of images. With ``perturb: style`` it is the rate of
            the ascent instead; null: 10, as in the authors' code.
        rho: weight of the gradient's norm in J; null: the rule's own ``rho``, as in the authors' code (0.05).
        perturb: what is moved: all ``pixels``, or each image's ``style``, the mean and deviation of its channels.
        mode: ``paper`` or ``authors``, see above.
        pooled: whether I is taken over all rows together instead of summed over the sources; null: only for one source.
        warmup: share of training with the sharpness rule alone (authors' code: 1/5).
        restart: whether training goes on from the warm-up's best validation (authors' code) or from its last step.
        sharpness: the rule; null: ``SAM(0.05)``. SAGM and GAM are the paper's other two.
        base: see :class:`~dafw.methods.generalization.base.GeneralizationMethod`.

    Raises:
        UserError: for a negative ``weight``, ``radius``, ``rho`` or ``warmup``, for a problem other than
            classification, or for a network that is compiled or does not end in a linear layer; at the start of
            training, for a ``restart`` without validations.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    only_images = "changes images by their gradient"
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 10.0), "radius": (0.03, 10.0), "lr": (1e-5, 1e-2)}
    backbone_passes: ClassVar[int] = 3
    takes_sharpness: ClassVar[bool] = True

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        weight: NonNegativeFloat = 1.0,
        radius: NonNegativeFloat | None = None,
        rho: NonNegativeFloat | None = None,
        perturb: Literal["pixels", "style"] = "pixels",
        mode: Literal["paper", "authors"] = "paper",
        pooled: bool | None = None,
        warmup: NonNegativeFloat = 0.2,
        restart: bool = False,
        sharpness: Sharpness | None = None,
        **base,
    ) -> None:
        rule = sharpness or SAM(0.05)
        super().__init__(network, sharpness=rule, **base)
        self.rule = rule
        self.rho = float(getattr(self.rule, "rho", 0.05)) if rho is None else rho
        self.weight, self.radius, self.pooled, self.warmup = weight, radius, pooled, warmup
        self.restart = restart and weight > 0
        self.perturb = choose("perturb", perturb, ("pixels", "style"))
        self.authors = choose("mode", mode, ("paper", "authors")) == "authors"
        if not isinstance(self.problem, Classification):
            raise UserError(f"UDIM compares gradients of classes, which {type(self.problem).__name__} has not")
        if network.backbone._compiled_call_impl is not None:
            raise UserError("UDIM differentiates the network twice: it needs network.compile: false")
        last_linear(network)

    def configure_callbacks(self) -> list[pl.Callback]:
        """With ``restart`` the callback that goes back, too."""
        present: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        needed = self.restart and not any(isinstance(callback, RestartFromBest) for callback in present)
        return [*super().configure_callbacks(), *([RestartFromBest(self.warmup)] if needed else [])]

    def setup(self, stage: str) -> None:
        """Refuses a ``restart`` from nothing.

        Raises:
            UserError: if the run makes no validations.
        """
        super().setup(stage)
        if stage == "fit" and self.restart and self.trainer.limit_val_batches == 0:
            raise UserError("model.restart needs the run's validations: trainer.limit_val_batches must not be 0")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The rule's passes. After the warm-up the first one also makes the unknown domain, and one more compares."""
        climb = self.climb(batch) if self.weight and self.progress >= self.warmup else None
        guarded = {} if climb is None else {"objective": climb.objective}
        if climb is None:
            images, supervised = batch.x, self.supervised(batch.x, batch)
            trained, gradient = self.reached(supervised)
            here = gradient if self.rule.local else mean_over_ranks(gradient)
        else:
            images, supervised, trained, here = climb.images, climb.supervised, climb.trained, climb.gradient
        passes = iter(range(1, self.rule.passes))

        def evaluate() -> list[Tensor]:
            with self.sharpness_pass(next(passes)):
                aside = self.supervised(images, batch)
                guarded["supervised_aside"] = aside
                return self.gradients(aside, trained)

        found = self.rule.gradient(trained, here, evaluate)
        terms = {"supervised": supervised}
        if climb is not None:
            terms["inconsistency"] = self.weight * self.inconsistency(images, climb.crafted, batch)
            found = list(torch._foreach_add(found, self.gradients(terms["inconsistency"], trained)))
        self.apply_gradients((trained, found))
        self.record_step(batch, terms, guarded)
        return supervised.detach()

    def losses(self, batch: Batch) -> Losses:
        """Both terms at the current weights."""
        climb = self.climb(batch)
        inconsistency = self.inconsistency(climb.images, climb.crafted, batch)
        return {"supervised": climb.supervised, "inconsistency": self.weight * inconsistency}

    def supervised(self, images: Tensor, batch: Batch) -> Tensor:
        """CE of one pass."""
        return self.problem.loss(self.forward_rows(images, batch.num_source), batch.y)

    def reached(self, loss: Tensor, *, again: bool = False) -> tuple[list[nn.Parameter], list[Tensor]]:
        """The parameters that ``loss`` depends on, and this rank's gradients, differentiable with ``again``."""
        parameters = trained_parameters(self.network)
        found = torch.autograd.grad(loss, parameters, create_graph=again, allow_unused=True)
        pairs = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
        return [p for p, _ in pairs], [g for _, g in pairs]

    # ---- the unknown domain

    def climb(self, batch: Batch) -> _Climb:
        """One pass at x: the rule's first gradient, and x~ by a second derivative.

        On R ranks each rank has J_r = CE_r + rho ||g|| with the same g of all rows. A rank's images get the
        gradient of sum_r J_r, which is R J. Divided by R it is the gradient of one process.
        """
        start = self.network.normalise(batch.x).detach()
        style = self.perturb == "style"
        if style and start.ndim != 4:
            raise UserError("model.perturb: style needs images (N, C, H, W)")
        mean, deviation, normed = split_style(start) if style else (start, start, start)
        moved = [part.detach().requires_grad_() for part in ((mean, deviation) if style else (start,))]

        def rebuilt(mean: Tensor, deviation: Tensor | None = None) -> Tensor:
            return self.images(mean if deviation is None else normed * deviation + mean)

        images = rebuilt(*moved)
        with sdpa_kernel(SDPBackend.MATH):  # attention's other kernels have no second derivative
            supervised = self.supervised(images, batch)
            trained, own = self.reached(supervised, again=True)
            flat = sum_over_ranks(torch.cat([gradient.flatten() for gradient in own])) / world_size()
            objective = supervised + self.rho * torch.linalg.vector_norm(flat)
            slopes = torch.autograd.grad(objective, moved)
        slopes = tuple(slope / world_size() for slope in slopes)
        radius = self.radius
        if radius is None:
            radius = AUTHORS_STEP if style else AUTHORS_STEP / math.sqrt(batch.num_source * world_size())
        with torch.no_grad():
            if not style:
                per: Literal["image", "pixel"] = "pixel" if self.authors else "image"
                crafted = rebuilt(start + uphill_step(slopes[0], radius, per))
            else:  # the authors move the style and leave the image
                radius = 0.0 if self.authors else radius
                crafted = rebuilt(*(part + radius * slope for part, slope in zip(moved, slopes, strict=True)))
        if not self.rule.local:
            parts = torch.split(flat.detach(), [gradient.numel() for gradient in own])
            own = [part.view_as(gradient) for part, gradient in zip(parts, own, strict=True)]
        gradient = [part.detach() for part in own]
        return _Climb(supervised.detach(), objective.detach(), trained, gradient, images.detach(), crafted, slopes)

    def images(self, normalised: Tensor) -> Tensor:
        """The images that the network normalises to ``normalised``, in [0, 1] unless they were moved out of it."""
        if normalised.ndim != 4:
            return normalised
        return (normalised - self.network.shift) / self.network.scale

    # ---- the inconsistency

    def inconsistency(self, images: Tensor, crafted: Tensor, batch: Batch) -> Tensor:
        """I of x and x~, from one pass; the same on every rank."""
        n, layer, domain = batch.num_source, last_linear(self.network), self.layout.domain
        both = None if domain is None else domain[:n].repeat(2)
        with inputs_of(layer) as seen, self.layout.untracked(), self.layout.temporarily(domain=both):
            logits = self.forward_rows(torch.cat([images, crafted]), 2 * n).logits
        count = self.num_domains(batch)
        pooled = count == 1 if self.pooled is None else self.pooled
        size, bias = n if pooled else n // count, layer.bias is not None
        smoothing = self.problem.label_smoothing  # type: ignore[attr-defined]
        centre: Literal["own", "clean"] = "clean" if self.authors else "own"
        parts = []
        for start in range(0, n, size):
            rows, moments = slice(start, start + size), []
            for at in (rows, slice(n + start, n + start + size)):
                one = last_layer_moments(seen[0][at], logits[at], batch.y[rows], bias=bias, label_smoothing=smoothing)
                moments.append(one)
            here, there = moments
            parts.append(variance_mismatch(here, there, centre) + mean_square(there, bias=bias))
        return torch.stack(parts).sum()


@contextmanager
def inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, the list collects the inputs of each call of ``layer``."""
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        handle.remove()


def last_linear(network: NetworkBase) -> nn.Linear:
    """The layer of the label head that returns the logits.

    Raises:
        UserError: if the head does not end in a linear layer.
    """
    assert network.head is not None
    last = list(network.head.modules())[-1]
    linear = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]
    if not linear or linear[-1].out_features != network.num_classes:
        raise UserError(f"UDIM needs a label head that ends in a linear layer, not in {type(last).__name__}")
    return linear[-1]
