"""MDD: margin disparity discrepancy."""

from typing import Any, ClassVar

from torch import Tensor

from dafw.losses.adversarial import margin_disparity
from dafw.methods.adaptation.adversarial import AdversarialMethod
from dafw.nn.network import Network
from dafw.nn.reversal import reverse_gradient
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, PositiveFloat, PositiveInt


class MDD(AdversarialMethod):
    """Trains features on which no second label head can agree with the first on the source and disagree on the target.

    Loss: CE(source) + weight * (margin * mean_s -log q_i[y_i] + mean_t -log(1 - q_i[y_i])). q is the softmax of the
    second head's logits (n_s + n_t, K), from features (n_s + n_t, d), and y_i is the class that the label head
    predicts. The second head lowers the bracket. The features raise it by a reversed gradient with a scale that ramps
    up from 0 to ``ramp_height``. The label head gets no gradient from it.

    Zhang et al., Bridging Theory and Algorithm for Domain Adaptation, ICML 2019, https://arxiv.org/abs/1904.05801.
    Read in the authors' code and in the Transfer-Learning-Library: learning rate 0.004, margin 4 (the authors' 2 on
    Office-Home), and a ramp to 0.1 that comes near its height within a few thousand steps, whatever the length of
    training. There both heads have a hidden layer, and bottleneck and heads have initial weights of their own. For that
    set the network's ``head_width``, ``dropout``, ``bottleneck_init`` and ``head_init``; the second head follows them.

    The logged critic accuracies say how often the second head agrees on source rows and disagrees on target rows.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K); its ``make_head`` makes the second head too.
        margin: weight of the source rows, gamma in the paper (authors' code: 4 on Office-31, 2 on Office-Home).
        gamma: steepness of the reversal's ramp.
        ramp_steps: steps to ramp over (tllib: 1000); null: over the training.
        ramp_height: final value of the reversal's ramp.
        weight: weight of the discrepancy.
        base: see :class:`~dafw.methods.base.Method`.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"margin": (1.0, 8.0), "ramp_height": (0.03, 0.3), "lr": (1e-3, 3e-2)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        margin: PositiveFloat = 4.0,
        gamma: NonNegativeFloat = 1.0,
        ramp_steps: PositiveInt | None = 1000,
        ramp_height: NonNegativeFloat = 0.1,
        weight: NonNegativeFloat = 1.0,
        **base,
    ) -> None:
        super().__init__(network, weight=weight, gamma=gamma, ramp_steps=ramp_steps, ramp_height=ramp_height, **base)
        self.margin = margin
        self.critic = network.make_head(self.num_classes)

    def domain_loss(self, outputs: Outputs, num_source: int) -> Tensor:
        """Disagreement of the two heads: features (N, d) and logits (N, K) of both domains -> scalar."""
        scores = self.critic(reverse_gradient(outputs.features, self.ramp))
        if self.logs_this_step:
            self.diagnose_critic(scores.argmax(1) == outputs.logits.argmax(1), num_source)
        return margin_disparity(outputs.logits, scores, num_source, margin=self.margin)
