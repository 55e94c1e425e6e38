"""DCC: domain consensus clustering."""

import logging
import time
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.setting import Balanced
from dafw.losses.class_discrepancy import contrastive_discrepancy
from dafw.losses.prototypes import move_prototypes, prototype_cross_entropy
from dafw.methods.adaptation.base import AdaptationMethod
from dafw.methods.base import Losses
from dafw.methods.targets import training_outputs
from dafw.nn.buffers import VariableLengthBuffers
from dafw.nn.consensus import Clusters, cluster, search
from dafw.nn.distributed import gather_rows, world_size
from dafw.nn.network import Network
from dafw.nn.norm import NormMode
from dafw.nn.precision import full_precision
from dafw.optim.schedules import exponential_ramp
from dafw.problems import Outputs
from dafw.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range

LOG = logging.getLogger(__name__)


class DCC(VariableLengthBuffers, AdaptationMethod):
    """Clusters the target, matches clusters with classes, and aligns matched pairs; the rest of the target is unknown.

    At the start of each epoch (the authors' 200 steps, ``data.steps_per_epoch``) the features of all training samples
    are computed in evaluation mode and normalised. k-means clusters the target's features. A cluster and a class match
    if their centres are each other's nearest. The chosen k is the one whose matched pairs agree best on their samples
    (:mod:`dafw.nn.consensus`). The first search for k starts at K, later ones at ``k_first``, in steps of ``k_step`` up
    to ``k_limit * K``. Once two searches find the same k it is fixed, and k-means starts from the prototypes. Samples
    of matched clusters with more than ``per_class`` samples get the class as a pseudo-label. Each step adds balanced
    rows to the random ones: ``per_class`` rows of each of ``classes`` matched classes, from both domains.

    Loss: CE(source) + balanced_weight * CE(balanced source) + cdd_weight * (intra - inter) + weight_t *
    CE(cos(f_t, prototypes) / temperature, cluster). Features (n, d), logits (n, K). intra and inter are class-wise MMDs
    of the balanced rows (:func:`~dafw.losses.class_discrepancy.contrastive_discrepancy`). f_t are the random target
    rows, of matched and unmatched clusters. Each prototype starts at its cluster's centre and moves with these rows.
    weight_t = prototype_weight * exp(-gamma (1 - t / ramp_steps)) at step t. Without a matched class the two terms of
    balanced rows are 0; those rows are then arbitrary, and count in batch statistics only.

    A sample is unknown if its nearest prototype belongs to an unmatched cluster. No sample is unknown if all clusters
    match.

    Li et al., Domain Consensus Clustering for Universal Domain Adaptation, CVPR 2021, pp. 9752-9761,
    https://openaccess.thecvf.com/CVPR2021. Numbers and details were read in the authors' code,
    https://github.com/Solacex/Domain-Consensus-Clustering. Their code differs in four ways. It passes each part of a
    batch separately, so batch statistics are of that part alone. It draws the prototypes' rows in equal numbers from
    clusters, not at random. A class may come twice in a batch, and is then compared with itself. After step 5000 the
    ramp goes on beyond 1. Their recipe: a network with ``bottleneck: 256``, ``bottleneck_relu: false``,
    ``norm_affine: fixed`` and ``backbone_lr: 0.1``, batches of 36, ``optimizer: sgd`` (Nesterov), ``weight_decay:
    5e-4``, ``lr`` 0.001 (Office-31) or 0.01 (Office-Home), times (1 + 10 t / 10000)^-0.75:
    :class:`~dafw.optim.schedules.InverseDecay` with ``alpha: 0.001`` ``per: step``.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K).
        balanced_weight: weight of the cross-entropy of the balanced source rows.
        cdd_weight: weight of the class-wise discrepancies.
        prototype_weight: weight of the prototypes' cross-entropy.
        classes: number of classes in the balanced rows of a step (Office-31: 10, Office-Home: 6).
        per_class: rows of each class, over all ranks (Office-31: 3, Office-Home: 6).
        temperature: temperature of the prototypes' cross-entropy.
        gamma: steepness of that term's ramp.
        ramp_steps: length of the ramp in steps (authors: 5000, though they train 3000); ``None``: the whole training.
        warmup_steps: steps on the random source rows alone before the first clustering (Office-31: 0, Office-Home:
            400).
        k_step: step of the search for k (Office-31: 2, Office-Home: 5).
        k_first: first k of all searches but the first one. ``None``: ``k_step``, as in the authors' code. With few
            classes that code ends at few clusters, all of them matched, so that nothing is rejected.
        k_limit: largest k as a multiple of K (Office-31: 3, Office-Home: 5).
        k_patience: a search ends after this many values of k that are no better than their predecessor.
        kmeans_trials: number of random starts of k-means (10 was scikit-learn's default then, recalled).
        cdd_normaliser: ``batch`` averages over the classes in the batch; ``matched`` divides by the number of matched
            classes, as the authors' code does.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: for an argument out of range.
    """

    default_norm: ClassVar[NormMode] = "separate"
    control: ClassVar[dict[str, Any]] = {"balanced_weight": 0.0, "cdd_weight": 0.0, "prototype_weight": 0.0}
    search_space: ClassVar[dict[str, Any]] = {
        "cdd_weight": (0.01, 1.0),
        "prototype_weight": (0.1, 3.0),
        "lr": (1e-4, 1e-1),
    }

    variable_buffers = ("codes", "prototypes", "matched", "found_k")
    codes: Tensor
    starts: Tensor
    prototypes: Tensor
    matched: Tensor
    found_k: Tensor
    clustered_at: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        balanced_weight: NonNegativeFloat = 1.0,
        cdd_weight: NonNegativeFloat = 0.1,
        prototype_weight: NonNegativeFloat = 1.0,
        classes: PositiveInt = 10,
        per_class: PositiveInt = 3,
        temperature: PositiveFloat = 0.1,
        gamma: NonNegativeFloat = 3.0,
        ramp_steps: PositiveInt | None = 5000,
        warmup_steps: NonNegativeInt = 0,
        k_step: PositiveInt = 2,
        k_first: PositiveInt | None = None,
        k_limit: Annotated[float, Range("must be at least 1", 1)] = 3.0,
        k_patience: PositiveInt = 3,
        kmeans_trials: PositiveInt = 10,
        cdd_normaliser: Literal["batch", "matched"] = "batch",
        **base,
    ) -> None:
        super().__init__(network, **base)
        self.k_first = k_step if k_first is None else k_first
        self.balanced_weight, self.cdd_weight, self.prototype_weight = balanced_weight, cdd_weight, prototype_weight
        self.classes, self.per_class, self.temperature = classes, per_class, temperature
        self.gamma, self.ramp_steps, self.warmup_steps = gamma, ramp_steps, warmup_steps
        self.k_step, self.k_limit, self.k_patience, self.kmeans_trials = k_step, k_limit, k_patience, kmeans_trials
        self.cdd_normaliser = cdd_normaliser
        self.has_balanced_rows = bool(balanced_weight or cdd_weight or prototype_weight)
        for name in ("codes", "starts", "matched", "found_k"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=name != "starts")
        self.register_buffer("prototypes", torch.empty(0, network.num_features))
        self.register_buffer("clustered_at", torch.tensor(-1))

    @property
    def balanced(self) -> Balanced | None:
        """Class-balanced rows, by the clusters that match a class; none without a term that learns from them."""
        return Balanced(self.classes, self.per_class, self.target_labels) if self.has_balanced_rows else None

    # ---- what a method on top of this one changes

    def extra_terms(self, batch: Batch, joint: Outputs) -> Losses:
        """Additional weighted terms of a step, for methods that extend this one.

        Args:
            batch: all rows of the step.
            joint: outputs of these rows, in the same order.
        """
        return {}

    # ---- training

    def losses(self, batch: Batch) -> Losses:
        """All terms, from one forward of the joint batch: random and balanced source rows, then such target rows."""
        joint = self.forward_batch(batch)
        source, target = joint[: batch.num_source], joint[batch.num_source :]
        extra = self.classes * self.per_class // world_size() if self.has_balanced_rows else 0
        random, n = batch.num_source - extra, len(target) - extra
        terms = {"supervised": self.problem.loss(source[:random], batch.y[:random])}
        if len(self.prototypes) and extra:
            terms |= self.align(source[random:], target[n:], batch.y[random:])
            terms["prototypes"] = self.regularise(target[:n], self.codes_of(batch)[:n])
        terms |= self.extra_terms(batch, joint)
        if self.logs_this_step:
            self.diagnose("clusters", float(len(self.prototypes)))
            self.diagnose("matched_clusters", (self.matched >= 0).sum())
        return terms

    def align(self, source: Outputs, target: Outputs, y: Tensor) -> Losses:
        """The terms of the balanced rows, which are grouped by class: source (n) with labels y (n,), target (n)."""
        matched = (self.matched >= 0).sum()
        present = (matched > 0).to(source.features.dtype)
        number = matched if self.cdd_normaliser == "matched" else None
        groups = gather_rows(y)[:: self.per_class]
        intra, inter = contrastive_discrepancy(source.features, target.features, groups, number)
        if self.logs_this_step:
            self.diagnose("intra_class_discrepancy", intra * present)
            self.diagnose("inter_class_discrepancy", inter * present)
        return {
            "balanced": self.balanced_weight * present * self.problem.loss(source, y),
            "class_discrepancy": self.cdd_weight * present * (intra - inter),
        }

    def regularise(self, target: Outputs, codes: Tensor) -> Tensor:
        """Moves the prototypes towards the random target rows (n) with clusters codes (n,), and returns their term."""
        prototypes = move_prototypes(self.prototypes, gather_rows(target.features), gather_rows(codes))
        self.propose(prototypes=prototypes)
        done = self.progress if self.ramp_steps is None else self.step / self.ramp_steps
        weight = self.prototype_weight * exponential_ramp(done, self.gamma)
        return weight * prototype_cross_entropy(prototypes, target.features, codes, self.temperature)

    def codes_of(self, batch: Batch) -> Tensor:
        """The cluster of each target row of the batch, (n_t,)."""
        n = batch.num_source
        return self.codes[self.starts[batch.domain[n:]] + batch.index[n:]]

    # ---- clustering

    def target_labels(self) -> list[Tensor]:
        """Pseudo-labels of each target, after a new clustering if an epoch starts and the warm-up is over."""
        data: Any = self.data
        first = len(data.labelled)
        sizes = [len(domain) for domain in data.train_domains]
        targets = sizes[first : first + len(data.training_targets)]
        places = torch.tensor([0] * first + targets).cumsum(0) - torch.tensor([0] * first + targets)
        self.starts = places.to(self.device)
        starts_epoch = self.steps_done % data.steps_per_epoch == 0 and self.steps_done != int(self.clustered_at)
        if starts_epoch and self.steps_done >= self.warmup_steps:
            self.recluster()
        if not len(self.prototypes):
            return [torch.full((size,), -1) for size in targets]
        return list(torch.split(self.matched[self.codes].cpu(), targets))

    @torch.no_grad()
    def recluster(self) -> None:
        """Clusters the targets' training samples anew. The ranks share the forward; the first rank does the rest."""
        data: Any = self.data
        began, first = time.monotonic(), len(data.labelled)
        source = training_outputs(self, 0, first).features
        target = training_outputs(self, first, first + len(data.training_targets)).features
        found: Clusters | None = None
        if self.trainer.is_global_zero:
            labels = torch.cat([torch.as_tensor(domain.labels) for domain in data.train_domains[:first]]).long()
            units = [F.normalize(full_precision(features), dim=1).cpu() for features in (target, source)]
            found = self.find(units[0], units[1], labels)
        codes, centres, pairs, score = self.trainer.strategy.broadcast(found)  # type: ignore[misc]
        large = torch.bincount(codes, minlength=len(centres))[pairs[:, 1]] > self.per_class
        matched = torch.full((len(centres),), -1)
        matched[pairs[large, 1]] = pairs[large, 0]
        self.codes, self.matched = codes.to(self.device), matched.to(self.device)
        self.prototypes = F.normalize(centres, dim=1).to(self.prototypes)
        self.found_k = torch.cat([self.found_k, self.found_k.new_tensor([len(centres)])])[-2:]
        self.clustered_at.fill_(self.steps_done)
        text = "step %d: %d target samples in %d clusters, %d of which match (score %.3f), in %.1f s"
        LOG.info(text, self.steps_done, len(codes), len(centres), int(large.sum()), score, time.monotonic() - began)

    def find(self, target: Tensor, source: Tensor, labels: Tensor) -> Clusters:
        """Clusters of target features (n_t, d), from source features (n_s, d) and labels (n_s,), all unit vectors."""
        seen = self.found_k.tolist()
        if len(seen) == 2 and seen[0] == seen[1]:
            return cluster(target, source, labels, seen[1], start=self.prototypes.cpu())

        def make(k: int) -> Clusters:
            return cluster(target, source, labels, k, trials=self.kmeans_trials)

        last = min(int(self.k_limit * self.num_classes), len(target))
        first = self.k_first if seen else self.num_classes
        return search(make, min(first, last), last, self.k_step, self.k_patience)

    # ---- serving

    def unknown_scores(self, outputs: Outputs) -> Tensor:
        """Largest cosine to an unmatched prototype minus that to a matched one: (N,), positive for unknown samples.

        If one side has no prototype, its cosine counts as -1, so nothing is unknown if all match. Before any clustering
        the score is -1.
        """
        features = full_precision(outputs.features)
        if not len(self.prototypes):
            return features.new_full(features.shape[:1], -1.0)
        with torch.autocast(features.device.type, enabled=False):
            cosines = F.normalize(features, dim=1) @ self.prototypes.to(features.dtype).T
        known = self.matched >= 0
        unmatched, matched = (cosines.masked_fill(hidden, -1.0).amax(1) for hidden in (known, ~known))
        return unmatched - matched
