"""CoTTA: a slow teacher, whose predictions of many views are averaged, and weights that return to the start."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.self_training import soft_cross_entropy, symmetric_cross_entropy
from dafw.methods.base import Losses
from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.distributed import gather_rows
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.stochastic_restore import restore_at_random
from dafw.nn.stream_views import TestTimeViews, unit_images
from dafw.nn.teacher import Teacher
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, PositiveFloat, PositiveInt


class CoTTA(TestTimeMethod):
    """Learns the predictions of a moving average of itself, which is served; a random part of its weights goes back.

    Loss: mean_i CE(teacher's probabilities, student's), or the mean of it and the swapped one (``symmetric``): logits
    (n, K). If the start model's mean confidence in a batch is below ``threshold``, the teacher's logits are the mean of
    those of ``views`` random views of the batch. After each step each weight of the student is set to that of the start
    model with probability ``restore``. Served are the teacher's logits, before the step.

    Wang et al., Continual Test-Time Domain Adaptation, CVPR 2022, https://arxiv.org/abs/2203.13591. Adam with a rate of
    1e-3 in batches of 200 for CIFAR; SGD with 0.01 in batches of 64 for ImageNet. The authors' code restores parameters
    called weight or bias alone, and draws a view once for the batch, see
    :class:`~dafw.nn.stream_views.TestTimeViews`. The mean confidence is that of the rows of all ranks. The host
    reads it in each step, since the views cost many passes.

    Args:
        network: see the base.
        threshold: least mean confidence of the start model for which no views are made (the authors' code: 0.92 for
            CIFAR-10, 0.72 for CIFAR-100, 0.1 for ImageNet).
        views: number of views (paper: 32).
        augment: how views differ from their images; ``None`` for the defaults of
            :class:`~dafw.nn.stream_views.TestTimeViews`.
        decay: share of itself that the teacher keeps in a step (paper: 0.999). Its buffers stay.
        restore: probability that a weight is restored (paper: 0.01; the authors' code: 0.001 for ImageNet).
        symmetric: see the loss (the benchmark of Döbler et al. does so for ImageNet).
        optimizer: see the base (the authors' code: Adam).
        lr: see the base.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`. ``statistics`` is ``batch``, in the teacher too.

    Raises:
        UserError: see the base; for ``ema_decay``.
    """

    default_statistics = "batch"
    host_reads: ClassVar[int] = 1
    only_images = "makes views of images"
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "restore": [0.0, 0.001, 0.01], "decay": [0.99, 0.999]}
    first_served_reason = "the first batch is served the mean of its views if the start model is unsure of it"

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        threshold: ClosedUnitInterval = 0.92,
        views: PositiveInt = 32,
        augment: TestTimeViews | None = None,
        decay: ClosedUnitInterval = 0.999,
        restore: ClosedUnitInterval = 0.01,
        symmetric: bool = False,
        optimizer: str = "adam",
        lr: PositiveFloat = 1e-3,
        **base,
    ) -> None:
        super().__init__(network, optimizer=optimizer, lr=lr, **base)
        if self.weight_average is not None:
            raise UserError("CoTTA has a teacher of its own: leave out model.ema_decay")
        self.threshold, self.num_views, self.augment = threshold, views, augment or TestTimeViews()
        self.restore_rate, self.symmetric = restore, symmetric
        self.teacher = Teacher(network, decay, buffers="own")

    @property
    def eval_network(self) -> Any:
        """The teacher."""
        return self.teacher.module

    def serve(self, outputs: Outputs, batch: Batch) -> Tensor:
        """See the base; the teacher's logits, or the mean of those of the views."""
        self._labels = outputs.logits
        if self.learns != "nothing":
            confidence = full_precision(self.start_outputs(batch).logits).softmax(1).amax(1)
            if float(gather_rows(confidence).mean()) < self.threshold:
                images = unit_images(batch.x, self.network.shift)
                total = torch.zeros_like(full_precision(outputs.logits))
                for number in range(self.num_views):
                    view = self.augment(images, self.data_seed, self.step, f"view {number}")
                    total += self.forward_rows(view, 0, self.teacher.module).logits
                self._labels = total / self.num_views
        return self._labels

    def adapt(self, outputs: Outputs, batch: Batch) -> Losses:
        """The cross-entropy with what was served."""
        entropy = symmetric_cross_entropy if self.symmetric else soft_cross_entropy
        return {"consistency": entropy(outputs.logits, self._labels).mean()}

    def step_teachers(self) -> None:
        """The teacher follows, then weights of the student are restored."""
        super().step_teachers()
        if self.restore_rate and self.moves:
            pairs = zip(self.network.parameters(), self.start.module.parameters(), strict=True)
            moved = [(own.data, start) for own, start in pairs if own.requires_grad]
            restore_at_random(moved, self.restore_rate, self.data_seed, self.step)
