"""DRM: a head for each source beside a shared one, of which every test sample takes the surest."""

import copy
import math
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, Literal

import torch
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.losses.entropy import entropy
from dafw.losses.pseudo_labels import confident_labels
from dafw.methods.base import Losses
from dafw.methods.generalization.base import GeneralizationMethod, split_domains
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.problems import Outputs

#: Entropies are counted as at least this many nats, so that a head that is sure beyond rounding has a finite weight.
LEAST = 1e-8


class DRM(GeneralizationMethod):
    """A label head for each source and a shared one; a sample is served by those whose prediction is surest.

    Loss: (1 - weight) * CE(shared head, all rows) + weight * 1/S sum_d CE(head d, rows of source d), means over rows;
    features (n, d), logits (n, K) of each of S + 1 heads.

    Served is p = sum_h w_h softmax(logits of head h) over all S + 1 heads, w_h = H_h^-gamma / sum_j H_j^-gamma, H the
    entropy of that head's prediction for that sample: no other sample has a part in it. The logits are log p.

    With ``retrain``, a test or a prediction makes ``retrain_steps`` steps of Adam after each batch, the prediction of
    which was taken before: the loss is the sum over the heads of CE(head, pseudo-label), the mean over the rows whose
    pseudo-label has a probability of at least ``retrain_confidence``; a head without such rows keeps still. What learns
    are copies, made anew, with the optimiser, at the first batch of each domain's test split: the trained weights are
    never touched. Normalisation is that of evaluation. The test metrics are then those with retraining,
    and as many named ``..._without_retraining`` say what the trained weights do without. Validations, hence every
    criterion of selection but ``last``, and pictures are without. A batch is ``data.eval_batch_size`` (authors: 32)
    samples in a fixed random order, and one process follows it: several ranks are refused.

    Zhang et al., Domain-Specific Risk Minimization for Domain Generalization, KDD 2023,
    https://arxiv.org/abs/2208.08661. The authors' program (repository yfzhang114/AdaNPC) searches gamma over 0, 0.5, 1,
    5 and the least entropy, the four kinds of pseudo-label, a confidence of 0.1, 0.25, 0.75 or no retraining, 1 or 3
    steps and rates of 0.1, 1 and 10 times the training's, by the accuracy on the test domain: there is no one default.
    It differs (``mode: authors``): validations serve the head of least mean entropy over the batch; the weights are
    normalised over S + 1 heads but the shared head is left out of the sum, unless gamma is infinite; for the
    pseudo-labels ``uniform`` and ``mixture`` a softmax is taken of probabilities, which are then so even that most
    confidences are never reached; of several retraining steps the prediction is taken before the last.

    Args:
        network: images (N, C, H, W) to features (N, d) and logits (N, K); its head is the shared one.
        num_classes: classes to predict.
        num_sources: number S of sources (the command line fills it in from the datamodule).
        weight: share of the sources' own heads in the loss (paper: 1/2), below 1; with 0 the shared head alone is
            trained and served: ERM.
        gamma: how much entropies decide: 0 for equal weights, ``.inf`` for the head of least entropy alone.
        mode: ``paper``, or ``authors`` for what their program does.
        retrain: what learns from the test stream: ``none``, the ``heads`` (DRM) or the whole ``network`` (DRMFull).
        retrain_labels: whose predictions are pseudo-labels: each head's ``own``, the ``shared`` head's, those of the
            ``uniform`` mean of all heads or of the served ``mixture``.
        retrain_confidence: least probability of a pseudo-label that counts; above 1 nothing does.
        retrain_steps: steps on each batch.
        retrain_lr: learning rate as a multiple of ``lr``, without its schedule.
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: for values out of range; when training or a test starts, for ``retrain`` on several ranks or in
            precision ``16-mixed``.
    """

    control: ClassVar[dict[str, Any]] = {"weight": 0.0, "retrain": "none"}
    search_space: ClassVar[dict[str, Any]] = {"gamma": [0.0, 0.5, 1.0, 5.0], "weight": (0.1, 0.9), "lr": (1e-5, 1e-1)}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        num_classes: int,
        num_sources: int,
        weight: float = 0.5,
        gamma: float = 1.0,
        mode: Literal["paper", "authors"] = "paper",
        retrain: Literal["none", "heads", "network"] = "none",
        retrain_labels: Literal["own", "shared", "uniform", "mixture"] = "mixture",
        retrain_confidence: float = 0.75,
        retrain_steps: int = 1,
        retrain_lr: float = 1.0,
        **base,
    ) -> None:
        super().__init__(network, num_classes=num_classes, **base)
        if not 0 <= weight < 1:
            raise UserError(f"model.weight is a share, at least 0 and below 1, not {weight}")
        if not gamma >= 0:
            raise UserError(f"model.gamma must be 0 or more, not {gamma}; .inf serves the head of least entropy")
        if retrain_steps < 1 or not retrain_lr > 0:
            raise UserError("model.retrain_steps must be at least 1 and model.retrain_lr positive")
        self.weight, self.gamma = weight, gamma
        self.mode = choose("mode", mode, ("paper", "authors"))
        self.retrain = choose("retrain", retrain, ("none", "heads", "network"))
        self.retrain_labels = choose("retrain_labels", retrain_labels, ("own", "shared", "uniform", "mixture"))
        self.retrain_confidence, self.retrain_steps, self.retrain_lr = retrain_confidence, retrain_steps, retrain_lr
        self.heads = nn.ModuleList(network.make_head(num_classes) for _ in range(num_sources)).to(network.shift)
        self.averaged = None
        if self.ema is not None:
            self.averaged = ModelEmaV3(self.heads, decay=self.ema.decay).requires_grad_(False)
        self.adapts_in_test = self.retrain != "none"
        reasons = [self.transductive_reason] if self.transductive_reason else []
        if self.mode == "authors":
            reasons.append("validations choose one head for all samples of a batch")
        if self.adapts_in_test:
            reasons.append("after each batch of the test split the model is retrained on it")
        self.transductive_reason = "; ".join(reasons)
        self.stream: _Stream | None = None
        self.metrics_without = nn.ModuleList()

    # ---- training

    def losses(self, batch: Batch) -> Losses:
        """The shared head's supervised loss of all rows, and of each other head that of its source's."""
        joint = self.forward_rows(batch.x, batch.num_source)
        domains, labels = split_domains(joint, batch.y, self.num_domains(batch))
        own = [
            self.problem.loss(Outputs(rows.features, head(rows.features)), y)
            for head, rows, y in zip(self.heads, domains, labels, strict=True)
        ]
        shared = self.problem.loss(joint, batch.y)
        return {"supervised": (1 - self.weight) * shared, "own_heads": self.weight * reduce(add, own) / len(own)}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser's step, and the moving averages' after it."""
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            self.averaged.update(self.heads)

    def setup(self, stage: str) -> None:
        """Refuses retraining where it would not be what one process does."""
        super().setup(stage)
        if self.adapts_in_test and stage != "validate":
            if self.trainer.world_size > 1:
                raise UserError(
                    "model.retrain follows the test stream in one process: train with model.retrain none, "
                    "then dafw test with it and trainer.devices 1"
                )
            if self.trainer.precision == "16-mixed":
                raise UserError("model.retrain needs unscaled gradients: use trainer.precision bf16-mixed or 32-true")

    # ---- serving

    @property
    def eval_heads(self) -> list[nn.Module]:
        """The sources' own heads that are served: none if they have no weight in training."""
        return list(self.heads if self.averaged is None else self.averaged.module) if self.weight else []

    def forward(self, x: Any) -> Outputs:
        """What serves the target: images (N, C, H, W) -> outputs."""
        return self.serve(super().forward(x))

    def evaluate(self, batch: Batch, source: bool) -> Outputs:
        """As it is served; within a test the batch is the next of its stream."""
        outputs = super().evaluate(batch, source)
        return self.serve(outputs) if self.stream is None else self.follow(self.stream, batch, outputs, source)

    def serve(self, outputs: Outputs) -> Outputs:
        """What the trained heads make of the served network's outputs."""
        heads = self.eval_heads
        if not heads:
            return outputs
        logits = torch.stack([*(head(outputs.features) for head in heads), outputs.logits])
        if self.mode == "authors" and self.stream is None:
            return Outputs(outputs.features, logits[entropy(logits).mean(1).argmin()])
        return Outputs(outputs.features, self.mix(logits))

    def mix(self, logits: Tensor) -> Tensor:
        """Logarithms of the mixture's probabilities: heads' logits (H, n, K), the shared head's last -> (n, K)."""
        log_weights, log_p = entropy_weights(logits, self.gamma), full_precision(logits).log_softmax(-1)
        if self.mode == "authors" and math.isfinite(self.gamma) and len(logits) > 1:
            log_weights, log_p = log_weights[:-1], log_p[:-1]
        return (log_weights[..., None] + log_p).logsumexp(0)

    # ---- the test stream

    def start_evaluation(self, stage: Any) -> None:
        """As the base; a test that retrains scores the predictions without as well."""
        super().start_evaluation(stage)
        self.stream = None
        scored = self.evaluations if stage == "test" and self.adapts_in_test else []
        self.metrics_without = nn.ModuleList(map(self.new_metrics, scored)).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Scores one batch, and learns from it if the model is retrained; the first batch of a split starts anew."""
        if batch_idx == 0:
            self.stream = self.start_stream()
        super().test_step(batch, batch_idx, dataloader_idx)
        role = self.evaluations[dataloader_idx].role
        if self.metrics_without and batch.num_source:
            assert self.stream is not None
            assert self.stream.without is not None
            self.score(self.metrics_without[dataloader_idx], role, self.stream.without, batch.y)  # type: ignore[arg-type]

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """As a test."""
        if batch_idx == 0:
            self.stream = self.start_stream()
        return super().predict_step(batch, batch_idx, dataloader_idx)

    def on_test_end(self) -> None:
        """Leaves the last stream."""
        self.stream = None

    def on_predict_end(self) -> None:
        """Leaves the last stream."""
        self.stream = None

    def metrics_of(self, position: int) -> dict[str, float]:
        """The metrics of one loader; in a test that retrains also those without."""
        found = super().metrics_of(position)
        if self.metrics_without:
            scores = self.metrics_without[position]
            assert isinstance(scores, MetricCollection)
            found |= {f"{name}_without_retraining": float(value) for name, value in scores.compute().items()}
        return found

    def start_stream(self) -> "_Stream":
        """What serves the next stream: copies of what it retrains, and their optimiser."""
        network, own = self.eval_network, self.eval_heads
        assert isinstance(network, Network)
        assert network.head is not None
        if not self.adapts_in_test:
            return _Stream(network, [*own, network.head])
        lr, own = self.lr * self.retrain_lr, copy.deepcopy(own)
        if self.retrain == "heads":
            heads = new = [*own, copy.deepcopy(network.head)]
            groups = []
        else:
            network, new = copy.deepcopy(network), own
            for parameter, trained in zip(network.parameters(), self.network.parameters(), strict=True):
                parameter.requires_grad_(trained.requires_grad)
            assert network.head is not None
            groups, heads = network.parameter_groups(lr), [*own, network.head]
        groups.append({"params": [parameter.requires_grad_() for head in new for parameter in head.parameters()]})
        return _Stream(network, heads, torch.optim.Adam(groups, lr, weight_decay=self.weight_decay))

    def follow(self, stream: "_Stream", batch: Batch, outputs: Outputs, source: bool) -> Outputs:
        """The prediction of a stream's next batch, from which the stream then learns.

        Args:
            stream: where the batch comes from.
            batch: its next batch.
            outputs: those of the trained network.
            source: whether the rows are a source's.
        """
        stream.without = self.serve(outputs)
        if stream.optimizer is None:
            return stream.without
        features, served = outputs.features, []
        for _ in range(self.retrain_steps):
            torch.clear_autocast_cache()  # of weights that have changed, or were cast where no gradient was asked for
            with torch.enable_grad():
                if self.retrain == "network":
                    features = self.forward_rows(batch.x, len(batch) if source else 0, stream.network).features
                logits = torch.stack([head(features) for head in stream.heads])
                served.append(Outputs(features.detach(), self.mix(logits.detach())))
                terms = self.pseudo_losses(logits, served[-1].logits)
                if terms:
                    stream.optimizer.zero_grad()
                    torch.autograd.backward(reduce(add, terms))
                    stream.optimizer.step()
        return served[-1 if self.mode == "authors" else 0]

    def pseudo_losses(self, logits: Tensor, mixed: Tensor) -> list[Tensor]:
        """The losses of those heads that have confident rows.

        Args:
            logits: (H, n, K) of the heads that learn, the shared one last.
            mixed: (n, K) logarithms of the served probabilities.
        """
        log_p = full_precision(logits.detach()).log_softmax(-1)
        if self.retrain_labels == "own":
            teachers = list(log_p)
        else:
            uniform = log_p.logsumexp(0) - math.log(len(log_p))
            teacher = {"shared": log_p[-1], "uniform": uniform, "mixture": mixed}[self.retrain_labels]
            if self.mode == "authors" and self.retrain_labels != "shared":
                teacher = teacher.exp()
            teachers = [teacher] * len(logits)
        terms = []
        for head, teacher in zip(logits, teachers, strict=True):
            classes, sure = confident_labels(teacher, self.retrain_confidence)
            if bool(sure.any()):
                terms.append(F.cross_entropy(full_precision(head)[sure], classes[sure]))
        return terms


@dataclass
class _Stream:
    """One domain's test split on its way through the model.

    Attributes:
        network: makes the features.
        heads: label heads, the shared one last.
        optimizer: trains what the stream retrains; ``None`` if that is nothing.
        without: what the trained model makes of the latest batch without retraining.
    """

    network: Network
    heads: list[nn.Module]
    optimizer: torch.optim.Adam | None = None
    without: Outputs | None = None


def entropy_weights(logits: Tensor, gamma: float) -> Tensor:
    """Logarithms of H_h^-gamma / sum_j H_j^-gamma, with H_h the entropy of head h's prediction, at least 1e-8 nats.

    Args:
        logits: (H, n, K).
        gamma: 0 for equal weights; infinite for the head of least entropy, the first of equals.

    Returns:
        (H, n): for each sample the logarithms of weights that sum to 1 over the heads.
    """
    uncertainty = entropy(logits).clamp_min(LEAST)
    if math.isinf(gamma):
        return F.one_hot(uncertainty.argmin(0), len(logits)).T.to(uncertainty.dtype).log()
    return (-gamma * uncertainty.log()).log_softmax(0)
