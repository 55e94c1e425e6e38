"""OSBP: open set domain adaptation by backpropagation."""

from typing import Annotated, Any, ClassVar

from torch import Tensor

from dafw.data.batch import Batch
from dafw.losses.unknown import unknown_bce
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.network import Network
from dafw.nn.norm import NormMode
from dafw.nn.open_head import OpenHead
from dafw.nn.precision import full_precision
from dafw.nn.reversal import reverse_gradient
from dafw.optim.schedules import dann_ramp
from dafw.problems import Outputs
from dafw.problems.model import NetworkBase
from dafw.ranges import NonNegativeFloat, Range


class OSBP(AdaptationMethod):
    """The head gives every target row probability one half for unknown; the features move each row to one side of that.

    Loss: CE(source) + weight * -mean_t [t log u_i + (1 - t) log(1 - u_i)], t = ``boundary``. The head has K + 1 outputs
    on features (n_s + n_t, d), and CE is over all of them. u_i is the target row's probability of the last output,
    "unknown", computed after a gradient reversal at the features. The head lowers both terms. The features raise the
    second; its gradient is scaled by ``gamma``'s ramp if there is one. Evaluation returns the K known logits, and a row
    is rejected if the last logit exceeds them all.

    Saito et al., Open Set Domain Adaptation by Backpropagation, ECCV 2018, https://arxiv.org/abs/1804.10427. Read in
    the authors' code for VisDA and in the Transfer-Learning-Library: the reversal's scale is 1 from the start, t is
    0.5, and each domain passes through the network separately, so batch normalisation uses each domain's own
    statistics (``norm`` ``separate`` here). Both put two layers of Linear-BatchNorm-ReLU-Dropout before the head. The
    authors train these layers, and the backbone only on demand, with Nesterov momentum 0.9 and weight decay 0.0005 at a
    constant rate of 0.001. tllib trains all layers, with the rate times (1 + 0.0003 i)^-0.75 in step i.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits; a head with K + 1 outputs replaces its head.
        num_classes: number K of known classes.
        boundary: t, the probability of "unknown" that the head aims at for target rows.
        gamma: steepness of the reversal's ramp 2 / (1 + exp(-gamma p)) - 1, where p is the share of training done;
            null: the scale is always 1.
        weight: weight of the second term.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if ``boundary`` is not between 0 and 1.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    control_difference_reason: ClassVar[str] = "its softmax is over one class more"
    default_norm: ClassVar[NormMode] = "separate"
    search_space: ClassVar[dict[str, Any]] = {"weight": (0.1, 2.0), "boundary": (0.3, 0.7), "lr": (1e-4, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_classes: int,
        boundary: Annotated[float, Range("is a probability between 0 and 1", 0, 1, above=True, below=True)] = 0.5,
        gamma: NonNegativeFloat | None = None,
        weight: NonNegativeFloat = 1.0,
        **base,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **base)
        self.boundary, self.gamma, self.weight = boundary, gamma, weight

    def build_network(self, network: NetworkBase, num_classes: int) -> None:
        """Gives the label head one output more."""
        network.head, network.num_classes = OpenHead(network.make_head(num_classes + 1)).to(network.shift), num_classes

    @property
    def ramp(self) -> float:
        """Scale of the reversed gradient at this step."""
        return 1.0 if self.gamma is None else dann_ramp(self.progress, self.gamma)

    def losses(self, batch: Batch) -> Losses:
        """Both terms, from one forward of the joint batch."""
        joint = self.forward_batch(batch)
        return self.head_losses(joint.features, batch.y, batch.num_source)

    def head_losses(self, features: Tensor, labels: Tensor, num_source: int) -> Losses:
        """Both terms, from features (n_s + n_t, d) and the source's labels (n_s,)."""
        head = self.network.head
        assert isinstance(head, OpenHead)
        known = features[:num_source]
        target = head.open(reverse_gradient(features[num_source:], self.ramp))
        if self.logs_this_step:
            self.diagnose("ramp", self.ramp)
            self.diagnose("target_unknown", full_precision(target.detach()).softmax(1)[:, -1].mean())
        return {
            "supervised": self.problem.loss(Outputs(known, head.open(known)), labels),
            "unknown": self.weight * unknown_bce(target, self.boundary),
        }

    def unknown_scores(self, outputs: Outputs) -> Tensor:
        """The logit of "unknown" minus the largest of the K others, features (N, d) -> (N,): positive is rejected."""
        head = self.eval_network.head
        assert isinstance(head, OpenHead)
        return head.margin(outputs.features)
