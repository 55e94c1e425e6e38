"""ParetoDA: an adversarial method that combines its objectives by a preference among their gradients."""

from typing import Any, ClassVar

from dafw.methods.adaptation.cdan import CDAN
from dafw.methods.adaptation.dann import DANN
from dafw.methods.adaptation.mdd import MDD
from dafw.methods.adaptation.pareto_steps import ParetoSteps


class ParetoDA(ParetoSteps, DANN):
    """Shared layers descend three objectives at once, in the direction that held-out target rows prefer.

    Loss: three objectives. L_S = CE(source). L_D is the domain loss of :class:`DANN` on features (n_s + n_t, d), with a
    reversed gradient at the features; its default ``weight`` is 1, half of DANN's, since the authors build on the
    Transfer-Learning-Library's loss. L_T = sum_k m_k log m_k - mean_t sum_k rho_k log rho_k mimics target
    classification: it is minus the mutual information of refined predictions rho (n_t, K) with mean m. rho_k is
    proportional to p(target | x, v_k) p_k, p = softmax(logits). The binary critic v_k of class k gets features without
    passing a gradient into them, and minimises mean_s -log p(source | x, v_y) + mean_t sum_k -rho_k log p(target | x,
    v_k).

    Step: backbone and bottleneck descend sum_j w_j grad L_j, the label head L_S, the critic L_D, and the class-wise
    critics their loss. A linear programme (:mod:`dafw.optim.pareto`) chooses w >= 0 with sum 3 from the inner products
    of the gradients at backbone and bottleneck. One of these is the gradient of L_T on held-out rows: a tenth of the
    target's training samples, which enter no objective, only batch statistics. The programme is solved on the device;
    the host reads nothing. On several ranks the gradients are averaged over the ranks before it, so all ranks take one
    direction.

    Cost: three forward and five backward passes of n images, where DANN has one each of 2 n: 2.2 to 2.4 times as much.
    With ``weigh_by="last"`` the inner products are those of the gradients at the last weight matrix of backbone and
    bottleneck, as in GradNorm (Chen et al. 2018, https://arxiv.org/abs/1711.02257), and one backward pass of 2 n images
    descends the weighted sum. This is another approximation of the preference, no longer the paper's, for large
    networks. With fixed weights no inner products are computed, and only that one backward pass is made.

    Batch norms: source, target and held-out rows make one pass each, normalised by their own statistics (``separate``).
    The shared running statistics move once per pass, with held-out rows last. ``domain_specific`` keeps the source's
    separate. With ``joint``, as in the authors' program, source and target make one pass, and each objective goes back
    through all of it, which is slower. The class-wise critics normalise all three together.

    Lv et al., Pareto Domain Adaptation, NeurIPS 2021, https://arxiv.org/abs/2112.04137. A summary of the paper and the
    authors' program were read. Both have two programmes and use the guided one while the held-out loss is positive
    (authors: above 0.001). That loss is minus a mutual information, so it never is positive. So theirs is always the
    descent programme, in which the held-out loss is only a bound. Ours is the same. ``guided_above`` switches to the
    guided programme. It agrees most with L_T and leaves out the labels as long as there are no good predictions to
    mimic. ``mode="authors"`` is their program: backbone and bottleneck descend L_S + L_D once more in addition; rho
    comes from logits times p(target | x, v_k); the class-wise critics' loss is halved, divided by K and learns one
    source class per batch (see :mod:`dafw.losses.mimicking`), and these critics normalise each domain separately; equal
    weights sum to 9 if the programme has no solution. Their program also passes source and target twice, so running
    statistics move once more.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        mode: ``paper``, or ``authors``, see above.
        combination: the objective of backbone and bottleneck: ``pareto``; ``uniform``, the plain sum of the objectives;
            ``source``, L_S alone, which is the control.
        weigh_by: the parameters of the inner products: ``shared``, all of backbone and bottleneck (paper),
            or ``last``, the last weight matrix among them, see above.
        class_width: width h of the class-wise critics' hidden layers, K h (d + h) weights in all (authors: 1024).
        guided_above: the guided programme runs while the held-out loss is more than this above -log K, its lowest
            value; ``null``: never (paper and authors, see above). The authors' 0.001 means always, since only sure
            predictions of equally many rows of each class come that near. A share of log K has both phases: with log K
            / 2, guided until the mutual information of the held-out predictions is half of its highest value.
        weight: weight of the domain loss in L_D (authors: 1).
        base: arguments of :class:`DANN`, and of :class:`~dafw.methods.base.Method`. Authors: ``critic_norm``, ``gamma``
            1, ``ramp_steps`` 500 (their ramp of 1000 counts twice a step), lr 0.001 (1 + 0.001 step)^-0.75, Nesterov
            momentum 0.9, weight decay 0.001, batches of 32.
    """

    search_space: ClassVar[dict[str, Any]] = {"gamma": (1.0, 20.0), "lr": (1e-3, 1e-1)}


class ParetoCDAN(ParetoSteps, CDAN):
    """ParetoDA on CDAN: like :class:`ParetoDA`, but with the domain loss of :class:`CDAN`.

    Loss: CE(source), CDAN's domain loss on features (n_s + n_t, d) and predictions (n_s + n_t, K), and the mimicking
    loss on refined target predictions (n_t, K). The default ``weight`` of the domain loss is 1, half of CDAN's, as in
    the Transfer-Learning-Library.

    Lv et al., Pareto Domain Adaptation, NeurIPS 2021, https://arxiv.org/abs/2112.04137.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        mode: ``paper`` or ``authors``.
        combination: ``pareto``, ``uniform`` or ``source``.
        weigh_by: ``shared`` or ``last``.
        class_width: width of the class-wise critics' hidden layers.
        guided_above: how far above its lowest value the held-out loss guides; ``null``: never.
        weight: weight of the domain loss.
        base: arguments of :class:`CDAN`, and of :class:`~dafw.methods.base.Method`.
    """

    search_space: ClassVar[dict[str, Any]] = {"entropy": [False, True], "lr": (1e-3, 1e-1)}


class ParetoMDD(ParetoSteps, MDD):
    """ParetoDA on MDD: like :class:`ParetoDA`, but with the domain loss of :class:`MDD`.

    Loss: CE(source), MDD's disagreement of two heads on features (n_s + n_t, d), and the mimicking loss on refined
    target predictions (n_t, K).

    Lv et al., Pareto Domain Adaptation, NeurIPS 2021, https://arxiv.org/abs/2112.04137.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        mode: ``paper`` or ``authors``.
        combination: ``pareto``, ``uniform`` or ``source``.
        weigh_by: ``shared`` or ``last``.
        class_width: width of the class-wise critics' hidden layers.
        guided_above: how far above its lowest value the held-out loss guides; ``null``: never.
        weight: weight of MDD's disagreement.
        base: arguments of :class:`MDD`, and of :class:`~dafw.methods.base.Method`.
    """

    search_space: ClassVar[dict[str, Any]] = {"margin": (1.0, 8.0), "lr": (1e-3, 3e-2)}
