"""DRM: a head for each source and a shared one. A sample weighs the heads by entropies or by the nearest source."""

import math
from functools import reduce
from operator import add
from typing import Annotated, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.losses.entropy import entropy
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod, split_domains
from dafw.nn.distributed import mean_over_ranks
from dafw.nn.mlp import mlp
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.teacher import Teacher
from dafw.problems import Outputs
from dafw.ranges import PositiveFloat, PositiveInt, Range

#: The least entropy that counts, in nats. It keeps the weight of a head with an entropy of 0 finite.
LEAST = 1e-8

#: How much a sample's entropies, or its distances from the sources, decide. Infinity serves the first head alone.
Gamma = Annotated[float, Range("must be 0 or more, or .inf", 0, finite=False)]

#: What a test sample weighs the heads by, see :class:`DRM`.
Select = Literal["entropy", "cosine", "distance", "domain_classifier"]
SELECT: tuple[Select, ...] = get_args(Select)


class DRM(GeneralizationMethod):
    """A label head for each source and a shared one. A prediction mixes them by entropies or by the nearest source.

    Loss: (1 - weight) * CE(shared head, all rows) + weight * 1/S sum_d CE(head d, rows of source d), means over rows.
    Features are (n, d); each of the S + 1 heads has logits (n, K).

    The prediction is p = sum_h w_h softmax(logits of head h) with w_h = u_h^-gamma / sum_j u_j^-gamma. No other test
    sample matters. The logits are log p. ``select`` says which heads are mixed and what u_h is:

    - ``entropy``: all S + 1 heads; u_h is the entropy of head h's prediction for that sample.
    - ``distance``: the sources' own heads; u_d is the L_p distance of the sample's features from prototype d, the mean
      features of source d in the last ``memory`` training batches.
    - ``cosine``: the sources' own heads; 1 / u_d is the cosine of the features and prototype d, and at least 1e-8.
    - ``domain_classifier``: the sources' own heads; 1 / u_d is the probability of source d by a network of two hidden
      layers. It learns CE(source) from features, which get no gradient from it; this adds a third term to the loss.

    Prototypes and the domain classifier follow the network in training, also where its moving average is evaluated.
    On several ranks a prototype is the mean of all ranks' rows.

    Its retraining on the test stream is :class:`~dafw.methods.test_time.drm_retraining.DRMRetraining`.

    Zhang et al., Domain-Specific Risk Minimization for Domain Generalization, KDD 2023,
    https://arxiv.org/abs/2208.08661. The authors' program (repository yfzhang114/AdaNPC) searches gamma over 0, 0.5, 1,
    5 and the least entropy by the accuracy on the test domain, so there is no one default. ``mode: authors`` differs
    from the paper as their program does. Its validations evaluate the head with the least mean entropy over the batch.
    Its weights are normalised over S + 1 heads, but the sum leaves out the shared head unless gamma is infinite.

    Their program has the other choices too, but cannot run them as they are meant: ``cosine`` takes the least similar
    source, the choice by distance or domain classifier compares all samples of a batch at once, prototypes count zeros
    until the memory is full, and the domain classifier's hyper-parameters are missing. Here each has its meaning. The
    memory of 50 batches, the weights of cosines at gamma 1 and of probabilities at gamma 1 are theirs; the domain
    classifier's width is that of DomainBed's critics.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K); its head is the shared one.
        num_classes: classes to predict.
        num_sources: number S of sources (the command line fills it in from the datamodule).
        weight: share of the sources' own heads in the loss (paper: 1/2), below 1. With 0 the shared head alone is
            trained and evaluated, which is ERM.
        gamma: how much u_h decides. 0 gives equal weights, ``.inf`` takes the head of least u_h alone.
        mode: ``paper``, or ``authors`` for what their program does with entropies.
        select: what a sample weighs the heads by: ``entropy``, ``cosine``, ``distance`` or ``domain_classifier``.
        p: the p of ``distance``.
        memory: training batches whose mean features make a prototype.
        width: width of the domain classifier's hidden layers.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: for values out of range, or for ``mode: authors`` with another choice than ``entropy``.
    """

    recent: Tensor | None
    kept: Tensor | None

    control: ClassVar[dict[str, Any]] = {"weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {"gamma": [0.0, 0.5, 1.0, 5.0], "weight": (0.1, 0.9), "lr": (1e-5, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_classes: int,
        num_sources: int,
        weight: Annotated[float, Range("is a share, at least 0 and below 1", 0, 1, below=True)] = 0.5,
        gamma: Gamma = 1.0,
        mode: Literal["paper", "authors"] = "paper",
        select: Select = "entropy",
        p: PositiveFloat = 2.0,
        memory: PositiveInt = 50,
        width: PositiveInt = 256,
        **base,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **base)
        self.weight, self.gamma = weight, gamma
        self.mode = choose("mode", mode, ("paper", "authors"))
        self.heads = nn.ModuleList(network.make_head(num_classes) for _ in range(num_sources)).to(network.shift)
        self.select, self.p = choose("select", select, SELECT), p
        if self.mode == "authors" and select != "entropy":
            raise UserError(f"model.mode: authors is of select: entropy; leave it out with select: {select}")
        learns = bool(weight) and select == "domain_classifier"
        keeps = bool(weight) and select in ("cosine", "distance")
        critic = mlp(network.num_features, [width, width], num_sources).to(network.shift) if learns else None
        self.domain_classifier = critic
        shape = (num_sources, memory, network.num_features)
        #: Mean features of each source in the last batches, (S, memory, d), and the number of batches that count.
        self.register_buffer("recent", torch.zeros(shape).to(network.shift) if keeps else None)
        self.register_buffer("kept", torch.zeros((), dtype=torch.int64) if keeps else None)
        self.average_heads = None if self.weight_average is None else Teacher(self.heads, self.weight_average.decay)
        self.picks_one = self.mode == "authors"
        if self.picks_one:
            reasons = [self.transductive_reason] if self.transductive_reason else []
            self.transductive_reason = "; ".join([*reasons, "validations choose one head for all samples of a batch"])

    # ---- training

    def losses(self, batch: Batch) -> Losses:
        """The shared head's supervised loss of all rows, and each other head's loss of the rows of its source."""
        joint = self.forward_batch(batch)
        domains, labels = split_domains(joint, batch.y, self.num_domains(batch))
        own = [
            self.problem.loss(Outputs(rows.features, head(rows.features)), y)
            for head, rows, y in zip(self.heads, domains, labels, strict=True)
        ]
        shared = self.problem.loss(joint, batch.y)
        terms = {"supervised": (1 - self.weight) * shared, "own_heads": self.weight * reduce(add, own) / len(own)}
        if self.domain_classifier is not None:
            source = torch.arange(len(domains), device=batch.y.device).repeat_interleave(len(labels[0]))
            terms["domain"] = F.cross_entropy(self.domain_classifier(joint.features.detach()), source)
        if self.recent is not None:
            self.remember(torch.stack([full_precision(rows.features.detach()).mean(0) for rows in domains]))
        return terms

    def remember(self, means: Tensor) -> None:
        """Puts the mean features (S, d) of a batch in the place of the oldest ones, after the step."""
        assert self.recent is not None
        assert self.kept is not None
        count = self.recent.shape[1]
        recent = self.recent.clone()
        recent[:, self.step % count] = mean_over_ranks([means])[0].to(recent)
        self.propose(recent=recent, kept=(self.kept + 1).clamp_max(count))

    @property
    def prototypes(self) -> Tensor:
        """Mean features of each source in the last batches, (S, d); zeros before the first step."""
        assert self.recent is not None
        assert self.kept is not None
        return self.recent.sum(1) / self.kept.clamp_min(1)

    # ---- serving

    @property
    def eval_heads(self) -> list[nn.Module]:
        """The sources' own heads that are evaluated. There are none if they have no weight in training."""
        heads = self.heads if self.average_heads is None else self.average_heads.module
        assert isinstance(heads, nn.ModuleList)
        return list(heads) if self.weight else []

    def forward(self, x: Any) -> Outputs:
        """The outputs that are evaluated on the target, of images (N, C, H, W)."""
        return self.serve(super().forward(x))

    def prepare_evaluation(self, stage: str) -> None:
        """Notes whether a validation follows, for ``mode: authors``."""
        super().prepare_evaluation(stage)
        self.picks_one = self.mode == "authors" and stage == "validate"

    def evaluate(self, batch: Batch, source: bool) -> Outputs:
        """The outputs of the heads together, see :meth:`serve`."""
        return self.serve(super().evaluate(batch, source))

    def serve(self, outputs: Outputs) -> Outputs:
        """The outputs of the heads that ``select`` mixes.

        Args:
            outputs: of n rows, by the shared head.
        """
        heads = self.eval_heads
        if not heads:
            return outputs
        own = [head(outputs.features) for head in heads]
        if self.select != "entropy":
            log_weights = head_weights(self.unlikeness(outputs.features), self.gamma)
            return Outputs(outputs.features, mix(torch.stack(own), log_weights))
        logits = torch.stack([*own, outputs.logits])
        if self.picks_one:
            return Outputs(outputs.features, logits[entropy(logits).mean(1).argmin()])
        return Outputs(outputs.features, mixture(logits, self.gamma, self.mode))

    def unlikeness(self, features: Tensor) -> Tensor:
        """How little each sample is like each source, (S, n), by anything but entropies. The least is the nearest.

        Args:
            features: (n, d).
        """
        if self.domain_classifier is not None:
            return full_precision(self.domain_classifier(features)).softmax(1).T.clamp_min(LEAST).reciprocal()
        features, prototypes = full_precision(features), self.prototypes[:, None]
        if self.select == "distance":
            distances: Tensor = torch.linalg.vector_norm(features - prototypes, ord=self.p, dim=-1)
            return distances.clamp_min(LEAST)
        cosines = F.cosine_similarity(features[None], prototypes, dim=-1)
        return -cosines if math.isinf(self.gamma) else cosines.clamp_min(LEAST).reciprocal()


def mixture(logits: Tensor, gamma: float, mode: str) -> Tensor:
    """Logarithms of the mixture's probabilities, see :class:`DRM`.

    Args:
        logits: (H, n, K) of the heads, the shared one last.
        gamma: see :class:`DRM`.
        mode: ``paper`` or ``authors``.

    Returns:
        (n, K).
    """
    log_weights = entropy_weights(logits, gamma)
    if mode == "authors" and math.isfinite(gamma) and len(logits) > 1:
        logits, log_weights = logits[:-1], log_weights[:-1]
    return mix(logits, log_weights)


def mix(logits: Tensor, log_weights: Tensor) -> Tensor:
    """Logarithms of the weighted sum of probabilities, (n, K).

    Args:
        logits: (H, n, K).
        log_weights: (H, n), logarithms of the weights.
    """
    return (log_weights[..., None] + full_precision(logits).log_softmax(-1)).logsumexp(0)


def entropy_weights(logits: Tensor, gamma: float) -> Tensor:
    """Logarithms of H_h^-gamma / sum_j H_j^-gamma, with H_h the entropy of head h's prediction, at least 1e-8 nats.

    Args:
        logits: (H, n, K).
        gamma: 0 for equal weights; infinite for the head of least entropy, the first of equals.

    Returns:
        (H, n): for each sample the logarithms of weights that sum to 1 over the heads.
    """
    return head_weights(entropy(logits).clamp_min(LEAST), gamma)


def head_weights(unlikeness: Tensor, gamma: float) -> Tensor:
    """Logarithms of u_h^-gamma / sum_j u_j^-gamma.

    Args:
        unlikeness: (H, n), u_h for each sample, above 0 unless gamma is infinite.
        gamma: 0 for equal weights; infinite for the head of the least u_h, the first of equals.

    Returns:
        (H, n): for each sample the logarithms of weights that sum to 1 over the heads.
    """
    if math.isinf(gamma):
        return F.one_hot(unlikeness.argmin(0), len(unlikeness)).T.to(unlikeness.dtype).log()
    return (-gamma * unlikeness.log()).log_softmax(0)
