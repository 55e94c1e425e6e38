"""AdaptSegNet: masks from which a critic cannot tell the domain."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.errors import UserError
from dafw.losses.maps import Gan, domain_loss, mean_over_places
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.methods.segmentation.levels import Levels, scores_of_levels
from dafw.nn.map_critic import MapCritic, scores_apart
from dafw.nn.norm import NormMode
from dafw.optim.optimizers import choose_optimizer, own_momentum
from dafw.problems import MaskOutputs, NetworkBase
from dafw.ranges import NonNegativeFloat, PositiveInt, RightOpenUnitInterval


class AdaptSegNet(AdaptationMethod):
    """Trains masks from which a critic cannot tell the domain.

    Loss: CE(source) + weight * BCE(D(P_t), 1) and, for the critic D alone, (BCE(D(P_s), 1) + BCE(D(P_t), 0)) / 2. P =
    softmax(logits), (n_s, K, H, W) of the source and (n_t, K, H, W) of the target, and D gives a score for each place
    of a coarse grid, high for the source. All means are over places. With two levels the scores of the network's
    auxiliary head have a critic and both losses of their own, the former times ``auxiliary_share``.

    Step: the authors freeze the critic, go back from the first line of losses, then detach the maps, go back from the
    critic's loss, and step two optimisers. Here one backward pass gives the same gradients: the term that misleads
    takes the critic's weights as constants, and the critic's own term the maps, both of one pass of the critic. The
    critic has an optimiser of its own, Adam with a rate and momenta of its own.

    Tsai et al., Learning to Adapt Structured Output Space for Semantic Segmentation, CVPR 2018,
    https://arxiv.org/abs/1802.10349, sections 4 and 5; the step was read in the authors' code. It passes source and
    target apart, hence ``norm: separate``. The weights of its batch norms are fixed.

    Args:
        network: images (N, 3, H, W) to outputs with logits (N, K, H, W).
        levels: 1, the main scores; 2, those of the auxiliary head too (paper: both; 2 is better). The auxiliary
            cross-entropy has the weight ``problem.auxiliary_weight`` either way (paper: 0.1).
        gan: ``vanilla``, binary cross-entropy; ``least_squares``, squared distances of the scores from 1 and 0
            (authors' code, with ``weight`` 0.01 and one level).
        critic_width: channels of the critic's first convolution (paper: 64).
        critic_layers: number of its convolutions, each of which halves the sides (paper: 5).
        critic_lr: learning rate of the critic, which follows ``schedule`` too (paper: 1e-4).
        critic_optimizer: any timm optimiser for the critic (paper: Adam).
        critic_momentum: its momentum or beta1 (paper: 0.9).
        critic_beta2: its beta2, if it has one (paper: 0.99). The critic has no weight decay but that of ``parts``.
        weight: weight of the term that misleads the critic (paper: 0.001).
        auxiliary_share: share of ``weight`` for the auxiliary head (paper: 0.2, a weight of 0.0002).
        base: see :class:`~dafw.methods.base.Method`. Paper: SGD with Nesterov's momentum 0.9, rate 2.5e-4 (1 -
            p)^0.9, ten times that for the heads, weight decay 5e-4, one image of each domain. Authors' code: momentum
            without Nesterov.
    """

    kinds: ClassVar[tuple[str, ...]] = ("segmentation",)
    default_norm: ClassVar[NormMode] = "separate"
    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"weight": (1e-4, 1e-1), "critic_lr": (1e-5, 1e-3), "lr": (1e-4, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: NetworkBase,
        *,
        levels: Levels = 1,
        gan: Gan = "vanilla",
        critic_width: PositiveInt = 64,
        critic_layers: PositiveInt = 5,
        critic_lr: NonNegativeFloat = 1e-4,
        critic_optimizer: str = "adam",
        critic_momentum: RightOpenUnitInterval = 0.9,
        critic_beta2: RightOpenUnitInterval = 0.99,
        weight: NonNegativeFloat = 1e-3,
        auxiliary_share: NonNegativeFloat = 0.2,
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.levels, self.gan, self.weight, self.auxiliary_share = levels, gan, weight, auxiliary_share
        self.critic_lr, self.critic_optimizer = critic_lr, choose_optimizer(critic_optimizer)
        self.critic_momenta = own_momentum(critic_optimizer, critic_momentum, critic_beta2)
        names = ("critic", "critic_auxiliary")[:levels]
        for name in names:
            critic = MapCritic(self.num_classes, critic_width, critic_layers)
            memory = torch.channels_last if network.channels_last else torch.contiguous_format
            setattr(self, name, critic.to(memory_format=memory))
            for option in {"lr", "momentum"} & set(self.part_options.get(name, {})):
                raise UserError(f"model.parts.{name}.{option} has a key of its own: give model.critic_{option}")

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The critics' group, for their optimiser, then the network's."""
        critics = [p for name, part in self.named_children() if name.startswith("critic") for p in part.parameters()]
        own = {"lr": self.critic_lr, "weight_decay": 0.0, "optimizer": self.critic_optimizer, **self.critic_momenta}
        return [{"params": critics, **own}, *self.network.parameter_groups(self.lr)]

    def maps(self, logits: Tensor) -> Tensor:
        """What a critic sees of class scores, (n, K, H, W) -> (n, K, H, W)."""
        return logits.softmax(1)

    def adapt(self, source: MaskOutputs, target: MaskOutputs, joint: MaskOutputs) -> Losses:
        """For each level the term that misleads its critic, and the critic's own."""
        losses: Losses = {}
        places = scores_of_levels(source, self.levels), scores_of_levels(target, self.levels)
        for suffix, weight in zip(places[0], (self.weight, self.weight * self.auxiliary_share), strict=False):
            mislead, teach = self.judge(f"critic{suffix}", places[0][suffix], places[1][suffix], source, target)
            losses |= {f"adversarial{suffix}": weight * mislead, f"critic{suffix}": teach}
        return losses

    def judge(
        self, name: str, source: Tensor, target: Tensor, source_of: MaskOutputs, target_of: MaskOutputs
    ) -> tuple[Tensor, Tensor]:
        """The two losses of one level.

        Args:
            name: of its critic.
            source: class scores (n_s, K, H, W).
            target: class scores (n_t, K, H, W).
            source_of: the outputs that they are of, which know the sizes of the images.
            target_of: likewise.

        Returns:
            The loss that misleads the critic, unweighted, whose gradient reaches the target's scores alone; and the
            critic's own, whose gradient reaches the critic alone.
        """
        critic: MapCritic = getattr(self, name)
        with torch.no_grad():
            seen = self.maps(source)
        own = critic(seen, source_of.sizes)
        teach, mislead = scores_apart(critic, self.maps(target), target_of.sizes)
        at_source, at_target = critic.places(own, source_of.sizes), critic.places(teach, target_of.sizes)
        learnt = domain_loss(own, True, at_source, self.gan) + domain_loss(teach, False, at_target, self.gan)
        if self.logs_this_step:
            boundary = 0.0 if self.gan == "vanilla" else 0.5
            for domain, right, places in (
                ("source", own.detach() > boundary, at_source),
                ("target", teach.detach() <= boundary, at_target),
            ):
                share = mean_over_places(right.to(own.dtype), places)
                self.diagnose(f"critic_accuracy_{domain}{name.removeprefix('critic')}", share)
        return domain_loss(mislead, True, at_target, self.gan), learnt / 2
