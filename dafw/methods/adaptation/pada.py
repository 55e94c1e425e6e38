"""PADA: partial adversarial domain adaptation."""

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.losses.adversarial import domain_bce
from dafw.methods.adaptation.dann import DANN
from dafw.methods.base import Losses
from dafw.methods.targets import target_outputs
from dafw.nn.distributed import gather_rows
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Classification
from dafw.ranges import Range


class PADA(DANN):
    """A DANN for targets that lack some of the source's classes; source rows of these classes get little weight.

    Loss: mean_s g[y_i] CE_i + weight * (mean_s g[y_i] BCE(D(f_i), 1) + mean_t BCE(D(f_i), 0)) / 2. D is the critic on
    features (n_s + n_t, d); its reversed gradient is scaled as DANN's. The weight of class k is g_k = m_k / max_j m_j,
    with m = mean softmax(logits / temperature), (K,), over all training samples of the targets. The network computes
    them in evaluation mode, without labels or augmentation. All g_k are 1 until ``refresh_every`` steps are done, and
    are computed anew after each further ``refresh_every`` steps. They are a buffer, and no gradient flows through them.

    Cao et al., Partial Adversarial Domain Adaptation, ECCV 2018, https://arxiv.org/abs/1808.04205; its objective is
    recalled. It adds the critic's two means, hence the default ``weight`` 2. The authors' code and the
    Transfer-Learning-Library were read. Both take the mean over all rows, ``weight`` 1. They weigh a batch differently
    (``mode``): both divide the cross-entropy by the batch's sum of g[y_i] instead of its number of rows. For the critic
    the authors divide g[y_i] by its maximum in the batch; tllib gives each target row the mean of the batch's g[y_i].
    The authors' predictions average ten crops, their ramp is over 10,000 steps, and the critics of both libraries drop
    half of their hidden units (``critic_dropout``).

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        refresh_every: steps between two computations of the class weights (authors' code and tllib: 500). With null
            they stay 1, which is DANN.
        temperature: divides the logits from which the class weights are computed (tllib: 0.1).
        mode: how the rows of a batch are weighed: ``paper``, ``authors`` or ``tllib``.
        dann: see :class:`~dafw.methods.adaptation.dann.DANN`. The authors' code trains with Nesterov momentum 0.9 and
            weight decay 0.0005 at 0.001 (1 + 0.001 i)^-0.75 in step i, new layers at ten times that.

    Raises:
        UserError: if ``refresh_every`` or ``temperature`` is not positive, or ``problem`` is not a classification.
    """

    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "refresh_every": None}
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.2, 4.0), "temperature": (0.1, 1.0), "lr": (1e-3, 1e-1)}

    class_weights: Tensor
    problem: Classification

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        refresh_every: Annotated[int, Range("must be at least 1, or null", 1)] | None = 500,
        temperature: Annotated[float, Range("must be positive", 0, above=True)] = 1.0,
        mode: Literal["paper", "authors", "tllib"] = "paper",
        **dann,
    ) -> None:
        super().__init__(network, **dann)
        self.refresh_every, self.temperature, self.mode = refresh_every, temperature, mode
        self.register_buffer("class_weights", torch.ones(self.num_classes))

    def losses(self, batch: Batch) -> Losses:
        """The supervised and the domain loss, both weighted by the classes of the rows."""
        joint, n = self.forward_batch(batch), batch.num_source
        scores = self.judge(joint, n)
        if self.refresh_every is None:
            terms = {"supervised": self.problem.loss(joint[:n], batch.y), "domain": domain_bce(scores, n)}
        else:
            divisor, for_critic = self.row_weights(weights := self.class_weights[batch.y], len(joint) - n)
            supervised = (weights * self.problem.row_losses(joint[:n], batch.y)).mean() / divisor
            terms = {"supervised": supervised, "domain": domain_bce(scores, n, for_critic)}
        if self.weight != 1:
            terms["domain"] = self.weight * terms["domain"]
        if self.logs_this_step:
            self.diagnose("smallest_class_weight", self.class_weights.min())
        return terms

    def row_weights(self, weights: Tensor, num_target: int) -> tuple[float | Tensor, Tensor]:
        """The weights of a batch according to ``mode``; the rows of all ranks count.

        Args:
            weights: (n_s,) class weights of the source rows.
            num_target: number n_t of target rows.

        Returns:
            The divisor of the weighted mean of the supervised loss, and the critic's weights, (n_s + n_t,).
        """
        if self.mode == "paper":
            return 1.0, torch.cat([weights, weights.new_ones(num_target)])
        everyone = gather_rows(weights).clamp_min(torch.finfo(weights.dtype).tiny)
        mean = everyone.mean()
        if self.mode == "authors":
            return mean, torch.cat([weights / everyone.max(), weights.new_ones(num_target)])
        return mean, torch.cat([weights, mean.expand(num_target)])

    # ---- class weights

    def on_train_start(self) -> None:
        """Computes the class weights if training resumes at a step after which they are due."""
        self.refresh()

    def commit(self, batch: Batch) -> None:
        """Computes the class weights if it is time, and a step follows."""
        super().commit(batch)
        if self.steps_done < self.steps_planned:
            self.refresh()

    def refresh(self) -> None:
        """Computes new class weights after every ``refresh_every`` steps, the same on every rank."""
        if self.refresh_every is not None and self.steps_done and self.steps_done % self.refresh_every == 0:
            self.class_weights.copy_(class_weights(target_outputs(self).logits, self.temperature))


def class_weights(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The mean of softmax(logits / temperature) over rows, divided by its largest entry: (n, K) -> (K,)."""
    shares = (full_precision(logits) / temperature).softmax(1).mean(0)
    return shares / shares.max()
