"""RMT: a robust mean teacher, whose student keeps near the source's prototypes."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.self_training import contrast_of_views, symmetric_cross_entropy
from dafw.methods.base import Losses
from dafw.methods.source_statistics import UsesSource
from dafw.methods.test_time.base import TestTimeMethod
from dafw.methods.test_time.replay import SourceReplay
from dafw.nn.mlp import mlp
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.stream_views import TestTimeViews, unit_images
from dafw.nn.teacher import Teacher
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


class RMT(UsesSource, TestTimeMethod):
    """A mean teacher with a symmetric cross-entropy, and a contrast that holds features near the source's prototypes.

    Loss: weight mean_i (SCE(z_i, t_i) + SCE(z'_i, t_i)) / 2 + contrast_weight L + source_weight CE(source). z and z'
    are the student's logits (n, K) of the batch and of a random view of it, t the teacher's of the batch; SCE is
    :func:`~dafw.losses.self_training.symmetric_cross_entropy`. L is
    :func:`~dafw.losses.self_training.contrast_of_views` of three: a row's features (n, d), those of its view, and the
    source prototype with the largest cosine to the row's, each through a projector. Served is the mean of the student's
    and the teacher's logits, before the step. The authors' code serves their sum, which predicts the same classes.

    Döbler et al., Robust Mean Teacher for Continual and Gradual Test-Time Adaptation, CVPR 2023,
    https://arxiv.org/abs/2211.13081. Adam with a rate of 1e-3 in batches of 200 for CIFAR; SGD with Nesterov's momentum
    and 0.01 in batches of 64 for ImageNet. The paper replays the source (``source_weight: 1``) and warms student and
    teacher up on it before the stream. Here a run is source-free by default, and there is no warm-up.

    A prototype is the mean of the start model's features of a class of the source, in evaluation mode. It is a
    statistic of the source, see :class:`~dafw.methods.source_statistics.UsesSource`. The contrast has the rows of all
    ranks.

    Args:
        network: see the base.
        weight: see the loss (paper: 1).
        contrast_weight: see the loss (paper: 1).
        source_weight: see the loss (paper: 1). Above 0 each step replays as many labelled samples of the source as a
            batch of the stream has.
        temperature: of the contrast (paper: 0.1).
        projection: width of the projector's two layers (paper: 128); 0 for none (the authors' code for DomainNet-126).
        decay: share of itself that the teacher keeps in a step (paper: 0.999). Its buffers stay.
        prototype_samples: use so many samples of the source for the prototypes; ``None`` for all (the authors' code:
            the first 100,000).
        augment: how a view differs from its image; ``None`` for the defaults of
            :class:`~dafw.nn.stream_views.TestTimeViews`.
        optimizer: see the base (the authors' code: Adam).
        lr: see the base.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`. ``statistics`` is ``batch``.

    Attributes:
        prototypes: (K, d).
        known: (K,) bool, the classes that have one.

    Raises:
        UserError: see the base; for ``ema_decay``; when training starts, if the source is needed and not there.
    """

    default_statistics = "batch"
    backbone_passes: ClassVar[int] = 2
    only_images = "makes views of images"
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "contrast_weight": [0.0, 0.5, 1.0]}
    prototypes: Tensor
    known: Tensor

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        weight: NonNegativeFloat = 1.0,
        contrast_weight: NonNegativeFloat = 1.0,
        source_weight: NonNegativeFloat = 0.0,
        temperature: PositiveFloat = 0.1,
        projection: NonNegativeInt = 128,
        decay: ClosedUnitInterval = 0.999,
        prototype_samples: PositiveInt | None = None,
        augment: TestTimeViews | None = None,
        optimizer: str = "adam",
        lr: PositiveFloat = 1e-3,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        if self.weight_average is not None:
            raise UserError("RMT has a teacher of its own: leave out model.ema_decay")
        self.weight, self.contrast_weight, self.source_weight = weight, contrast_weight, source_weight
        self.temperature, self.prototype_samples = temperature, prototype_samples
        self.augment = augment or TestTimeViews()
        width = network.num_features
        self.projector = mlp(width, [projection], projection) if projection else torch.nn.Identity()
        self.teacher = Teacher(network, decay, buffers="own")
        self.register_buffer("prototypes", torch.zeros(self.num_classes, width))
        self.register_buffer("known", torch.zeros(self.num_classes, dtype=torch.bool))
        self._replay: SourceReplay | None = None

    # ---- the source

    @property
    def source_use(self) -> str:
        """See the base."""
        return "samples" if self.source_weight and self.learns != "nothing" else "statistics"

    def take_from_source(self) -> None:
        """Fills the prototypes."""
        if self.contrast_weight and self.learns != "nothing":
            classes = {"classes": self.num_classes}
            found = self.source_statistics(
                "prototypes", self.class_means, count=self.prototype_samples, settings=classes
            )
            self.prototypes.copy_(found["means"])
            self.known.copy_(found["counts"] > 0)

    def class_means(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """The mean feature of each class of the source under the start model, (K, d), and the number of samples."""
        sums, counts = (
            torch.zeros_like(full_precision(self.prototypes)),
            torch.zeros_like(self.known, dtype=torch.int64),
        )
        with torch.no_grad():
            for batch in batches:
                features = self.forward_rows(batch.x, 0, self.network, batch.sizes).features
                sums.index_add_(0, batch.y, features.to(sums))
                counts.index_add_(0, batch.y, torch.ones_like(batch.y))
        return {"means": sums / counts.clamp_min(1)[:, None], "counts": counts}

    def on_fit_start(self) -> None:
        """As the bases; finds the samples that are replayed."""
        super().on_fit_start()
        self._replay = SourceReplay.of(self, "source_weight") if self.source_use == "samples" else None

    # ---- the stream

    def serve(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See the base; the mean of student and teacher."""
        self._labels = self.forward_rows(batch.x, 0, self.teacher.module, batch.sizes).logits
        served: Tensor = (outputs.logits + self._labels) / 2
        return served

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """Self-training, the contrast, and the loss of replayed samples."""
        view = self.augment(unit_images(batch.x, self.network.shift), self.data_seed, self.step, "view")
        with self.layout.untracked():
            seen = self.forward_rows(view, 0)
        each = [symmetric_cross_entropy(logits, self._labels) for logits in (outputs.logits, seen.logits)]
        terms = {"self_training": self.weight * ((each[0] + each[1]) / 2).mean()}
        if self.contrast_weight:
            views = torch.stack([self.nearest(outputs.features), outputs.features, seen.features], 1)
            terms["contrast"] = self.contrast_weight * contrast_of_views(self.projector(views), self.temperature)
        if self._replay is not None:
            source = self._replay.batch(self.step).to(self.device)
            with self.layout.untracked():
                scores = self.forward_rows(source.x, 0).logits
            terms["source"] = self.source_weight * F.cross_entropy(full_precision(scores), source.y)
        return terms

    @torch.no_grad()
    def nearest(self, features: Tensor) -> Tensor:
        """The prototype with the largest cosine to each row's features, (n, d)."""
        cosines = F.normalize(full_precision(features), dim=1) @ F.normalize(self.prototypes, dim=1).T.to(features)
        return self.prototypes[cosines.masked_fill(~self.known, -torch.inf).argmax(1)].to(features)

    # ---- after the stream

    def forward(self, x: Any) -> Outputs:
        """What the method gives now: images (N, C, H, W) -> outputs, their logits the mean of student and teacher."""
        outputs: Outputs = super().forward(x)
        other = self.forward_rows(x, None, self.teacher.module)
        return replace(outputs, logits=(outputs.logits + other.logits) / 2)

    def present_outputs(self, batch: Batch) -> Outputs:
        """See the base; with the mean of student and teacher."""
        outputs: Outputs = super().present_outputs(batch)
        other = self.forward_rows(batch.x, 0, self.teacher.module, batch.sizes)
        return replace(outputs, logits=(outputs.logits + other.logits) / 2)
