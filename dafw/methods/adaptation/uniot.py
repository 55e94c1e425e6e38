"""UniOT: unified optimal transport."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.common_classes import Detection, detect_common, fill_up, pick
from dafw.losses.transport import sinkhorn
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.nn.distributed import from_first_rank, gather_rows
from dafw.nn.mlp import mlp
from dafw.nn.network import Network
from dafw.nn.norm import NormMode
from dafw.nn.precision import full_precision
from dafw.nn.prototypes import PrototypeHead
from dafw.problems import Outputs
from dafw.problems.model import NetworkBase
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class UniOT(AdaptationMethod):
    """Transport of target features to source classes finds common samples, transport to clusters groups private ones.

    Loss: CE(source) + common_weight * CE of selected target rows with their transported class + private_weight *
    (L_global + L_local) / 2. Features (n_t, d) of the target have length 1 here. Source classes and clusters are unit
    vectors, with logits cosine / temperature, (n_t, K) and (n_t, C).

    *Common classes.* Unbalanced transport moves the batch, and features drawn from a queue of past ones, to the source
    classes. A row is selected if its largest entry exceeds a row's mean mass and that class receives at least a class's
    mean mass. So no confidence threshold is set. Since the mean depends on the share of common samples, made-up rows
    first fill up the smaller group. The classes' masses follow the mass that they receive, as a moving average. See
    :mod:`dafw.losses.common_classes`.

    *Private classes.* q_i is the balanced transport of row i to the clusters. It is computed over the batch, each row's
    nearest neighbour (in the queue or in the batch) and C drawn features. L_global = mean_i CE(q_i, p_i). L_local
    is the mean of CE(q_neighbour, p_i) and CE(q_i, p_neighbour).

    Chang et al., Unified Optimal Transport Framework for Universal Domain Adaptation, NeurIPS 2022,
    https://arxiv.org/abs/2210.17067. All of this was read in the authors' code, and the defaults are theirs for
    Office-31: batches of 36, ``lr`` 0.01 with the backbone at a tenth, Nesterov's momentum (``optimizer: sgd``), weight
    decay 0.0005, and ``data.source_sampling: class_balanced``. These points differ here:

    - The authors classify and reject by one transport of the whole test set. Here a prediction depends on its sample
      alone. :meth:`unknown_scores` computes the entry that the plan of the last training step would give that sample as
      one more row; the plan's column potentials and masses are buffers. On digits (MNIST to Optdigits, 4 common and 3
      private classes each, four settings) both rules decided 85 to 98 of 100 alike, with 98 at these defaults'
      ``inertia`` and weights. The logits, not the plan, give the class.
    - The queue starts empty, not with features of the untrained network. Until it is full, fewer features are drawn.
    - A row's own past features are not its neighbours. In the authors' code no features of the batch's samples are.
    - The number of Sinkhorn iterations is fixed, since nothing is read from the device. Theirs, POT's, stop at a
      relative change below 1e-4. After 200 iterations the entries' errors are of that order; with 50 one row in a
      hundred is decided otherwise.

    On several ranks everything is computed from the rows of all ranks. Each step computes two transports of twice the
    queue's size to K classes.

    Args:
        network: images (N, C, H, W) to features (N, d); a projection replaces the end of its bottleneck, and
            prototypes replace its label head.
        num_classes: number K of source classes.
        common_weight: weight of the common classes' loss (authors: 0.1 for both losses).
        private_weight: weight of the private classes' loss.
        hidden: width of the projection's hidden layer; ``None``: no projection.
        width: number d of features after the projection.
        clusters: number C of prototypes of the target (authors: 50 on Office-31, 150 on Office-Home, 500 on VisDA, 1000
            on DomainNet).
        temperature: temperature of all logits (authors: 0.1).
        gamma: when rows are filled up, a row counts as common if the cosine to its nearest source class is above this
            (authors: 0.7).
        queue_size: number of past features in the queue (authors: 2000 on Office-31, 4000 on Office-Home, 5000 on
            others).
        inertia: weight of the past in the moving average of the masses (authors: 0.7; on Office-Home and DomainNet 1,
            hence uniform masses).
        warmup_steps: the common classes' loss starts after this many steps and one more (authors: 100).
        epsilon: weight of the entropy in the transport to the source classes (authors: 0.01).
        relaxation: weight of the divergences of both marginals in that transport (authors: 0.5).
        iterations: number of Sinkhorn iterations of that transport.
        cluster_epsilon: weight of the entropy in the transport to the clusters (authors: 0.05).
        cluster_iterations: number of Sinkhorn iterations of that transport (authors: 3).
        base: see :class:`~dafw.methods.base.Method`. The authors' code passes the domains one after the other, hence
            ``norm: separate``.

    Raises:
        UserError: if the network's configuration asks for a label head; in training, if a batch exceeds ``queue_size``.
    """

    default_norm: ClassVar[NormMode] = "separate"
    control: ClassVar[dict[str, Any]] = {"common_weight": 0.0, "private_weight": 0.0}
    control_difference_reason: ClassVar[str] = "its label head is a projection and prototypes of length 1"
    search_space: ClassVar[dict[str, Any]] = {
        "common_weight": (0.01, 1.0),
        "private_weight": (0.01, 1.0),
        "gamma": (0.5, 0.9),
        "lr": (1e-3, 1e-1),
    }

    marginal: Tensor
    potentials: Tensor
    offset: Tensor
    queue: Tensor
    queue_samples: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_classes: int,
        common_weight: NonNegativeFloat = 0.1,
        private_weight: NonNegativeFloat = 0.1,
        hidden: PositiveInt | None = 2048,
        width: PositiveInt = 256,
        clusters: PositiveInt = 50,
        temperature: PositiveFloat = 0.1,
        gamma: float = 0.7,
        queue_size: PositiveInt = 2000,
        inertia: ClosedUnitInterval = 0.7,
        warmup_steps: NonNegativeInt = 100,
        epsilon: PositiveFloat = 0.01,
        relaxation: PositiveFloat = 0.5,
        iterations: PositiveInt = 200,
        cluster_epsilon: PositiveFloat = 0.05,
        cluster_iterations: PositiveInt = 3,
        **base,
    ) -> None:
        self.hidden, self.width, self.temperature = hidden, width, temperature
        super().__init__(network, num_classes=num_classes, **base)
        self.common_weight, self.private_weight = common_weight, private_weight
        self.gamma, self.inertia, self.warmup_steps = gamma, inertia, warmup_steps
        self.epsilon, self.relaxation, self.iterations = epsilon, relaxation, iterations
        self.cluster_epsilon, self.cluster_iterations = cluster_epsilon, cluster_iterations
        self.clusters = PrototypeHead(network.num_features, clusters, temperature)
        self.register_buffer("marginal", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("potentials", torch.zeros(num_classes))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("queue", torch.zeros(queue_size, network.num_features))
        self.register_buffer("queue_samples", torch.full((queue_size, 2), -1))  # domain, index

    def build_network(self, network: NetworkBase, num_classes: int) -> None:
        """Puts a projection behind the bottleneck, and prototypes in the place of the label head."""
        assert isinstance(network, Network)
        if network.head_width is not None or network.head_kind != "default":
            raise UserError("UniOT's label head are prototypes: leave out network.head and network.head_width")
        if self.hidden is not None:
            before = [network.feature_dropout] if network.bottleneck is None else list(network.bottleneck.children())
            projection = mlp(network.num_features, [self.hidden], self.width).to(network.shift)
            network.bottleneck = nn.Sequential(*(layer for layer in before if layer is not None), projection)
            network.num_features = self.width
        network.head = PrototypeHead(network.num_features, num_classes, self.temperature).to(network.shift)
        network.num_classes = num_classes

    # ---- training

    def losses(self, batch: Batch) -> Losses:
        """The supervised loss, and the losses of common and private classes over the target rows of all ranks."""
        joint = self.forward_batch(batch)
        source, target = joint[: batch.num_source], joint[batch.num_source :]
        samples = gather_rows(torch.stack([batch.domain, batch.index], 1)[batch.num_source :])
        logits = full_precision(gather_rows(target.logits))
        features = F.normalize(full_precision(gather_rows(target.features)), dim=1)
        if len(features) > len(self.queue):
            raise UserError(f"model.queue_size must be at least a batch, {len(features)}, not {len(self.queue)}")
        written = min(self.step * len(features), len(self.queue))
        places = (self.step * len(features) + torch.arange(len(features), device=self.device)) % len(self.queue)
        self.propose(
            queue=self.queue.index_copy(0, places, features.detach().to(self.queue.dtype)),
            queue_samples=self.queue_samples.index_copy(0, places, samples),
        )
        with torch.autocast(self.device.type, enabled=False):
            private = self.private_loss(features, samples, written)
            common = logits.new_zeros(())
            if self.step > self.warmup_steps and written:
                found = self.detect(features.detach(), written)
                each = F.cross_entropy(logits, found.labels, reduction="none")
                common = torch.where(found.selected, each, 0.0).sum() / found.selected.sum().clamp_min(1)
                marginal = self.marginal.lerp(found.received.to(self.marginal.dtype), 1 - self.inertia)
                self.propose(marginal=marginal, potentials=found.potentials, offset=found.offset)
                if self.logs_this_step:
                    self.diagnose("selected_share", found.selected.float().mean())
                    self.diagnose("common_classes", (found.received * self.num_classes >= 1).sum())
        return {
            "supervised": self.problem.loss(source, batch.y),
            "common": self.common_weight * common,
            "private": self.private_weight * private,
        }

    def commit(self, batch: Batch) -> None:
        """Writes what the batch's first pass found; brings prototypes back to length 1."""
        super().commit(batch)
        assert isinstance(self.network.head, PrototypeHead)
        self.network.head.normalise()
        self.clusters.normalise()

    def draw(self, size: int) -> Tensor:
        """(size,) numbers in [0, 1), the same on every rank."""
        return from_first_rank(torch.rand(size, dtype=torch.float32, device=self.device))

    def private_loss(self, features: Tensor, samples: Tensor, written: int) -> Tensor:
        """Trains rows and their neighbours to share clusters: unit features (n_t, d), samples (n_t, 2) -> scalar.

        Args:
            features: target features of all ranks.
            samples: domains and positions of these rows.
            written: number of rows of the queue that hold features.
        """
        n, queue = len(features), self.queue[:written].to(features.dtype)
        candidates = torch.cat([features, queue])
        others = torch.cat([samples, self.queue_samples[:written]])
        same = (samples[:, None] == others).all(-1)
        nearest = (features.detach() @ candidates.detach().T).masked_fill(same, -2.0).argmax(1)
        logits = self.clusters(torch.cat([features, candidates[nearest]]))
        scores = logits.detach()
        if written:
            drawn = queue[pick(self.draw(len(self.clusters.weight)), written)]
            scores = torch.cat([scores, self.clusters(drawn).detach()])
        found = sinkhorn(-self.temperature * scores.T, epsilon=self.cluster_epsilon, iterations=self.cluster_iterations)
        own, neighbours = (found.plan.T[: 2 * n] * len(scores)).chunk(2)
        log_own, log_neighbours = logits.log_softmax(1).chunk(2)
        whole = -(own * log_own).sum(1).mean()
        local = -(neighbours * log_own + own * log_neighbours).sum(1).mean() / 2
        loss: Tensor = (whole + local) / 2
        return loss

    @torch.no_grad()
    def detect(self, features: Tensor, written: int) -> Detection:
        """Finds rows of common classes, from unit features (n_t, d) of the batch and the queue's ``written`` rows."""
        head = self.network.head
        assert isinstance(head, PrototypeHead)
        drawn = self.queue[pick(self.draw(written), written)].to(features.dtype)
        rows = torch.cat([drawn, features])
        prototypes, marginal = F.normalize(full_precision(head.weight), dim=1), self.marginal.to(features.dtype)
        settings: dict[str, Any] = {
            "epsilon": self.epsilon,
            "relaxation": self.relaxation,
            "iterations": self.iterations,
        }
        cosines = rows @ prototypes.T
        first = detect_common(cosines, torch.ones_like(cosines[:, 0]), marginal, **settings)
        made_up, present = fill_up(rows, prototypes, first.selected, self.draw(len(rows)), self.gamma)
        present = torch.cat([present.to(cosines.dtype), torch.ones_like(cosines[:, 0])])
        found = detect_common(torch.cat([made_up, cosines]), present, marginal, **settings)
        mine = slice(-len(features), None)
        return found._replace(labels=found.labels[mine], selected=found.selected[mine])

    # ---- what serves

    def unknown_scores(self, outputs: Outputs) -> Tensor:
        """Minus the logarithm of a row's largest entry in the plan, relative to a row's mean mass: (N,).

        It is positive if :class:`UniOT` rejects the row. It depends on the row and on the last training step's
        transport. Before the first transport the classes have no potentials, and the mean mass counts as 1.
        """
        head = self.eval_network.head
        assert isinstance(head, PrototypeHead)
        scores = head.cosines(outputs.features) / self.epsilon + self.potentials
        power = self.relaxation / (self.relaxation + self.epsilon)
        return power * scores.logsumexp(1) - scores.amax(1) - self.offset
