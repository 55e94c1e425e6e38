"""RoTTA: lessons from a memory that is balanced over classes, a slow teacher, and statistics that follow slowly."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.errors import UserError
from dafw.losses.self_training import soft_cross_entropy, timeliness
from dafw.methods.manual import ManualOptimization
from dafw.methods.optimisation import trained_parameters
from dafw.methods.test_time.base import TestTimeMethod
from dafw.nn.balanced_memory import BalancedMemory, Lesson
from dafw.nn.distributed import gather_rows, own_rows
from dafw.nn.layout import StreamStatistics
from dafw.nn.network import Network
from dafw.nn.precision import full_precision
from dafw.nn.stream_views import TestTimeViews, unit_images
from dafw.nn.teacher import Teacher
from dafw.problems import Outputs
from dafw.ranges import ClosedUnitInterval, NonNegativeFloat, PositiveFloat, PositiveInt


class RoTTA(ManualOptimization, TestTimeMethod):
    """Learns a teacher's predictions of stored images that are recent, sure, and spread over the predicted classes.

    Loss: the mean over the m stored images of e^-a / (1 + e^-a) CE(teacher's probabilities, those of the student for a
    random view), where a is an image's age by the memory's capacity: logits (m, K). The teacher predicts each row of a
    batch (n, C, H, W), in evaluation mode; that is served. With its predicted class and entropy the row is offered to
    the memory, see :class:`~dafw.nn.balanced_memory.BalancedMemory`. After every ``update_every`` rows student and
    teacher pass the memory once, both normalise by statistics that follow what they see, the student makes a step, and
    the teacher's weights follow it.

    Yuan et al., Robust Test-Time Adaptation in Dynamic Scenarios, CVPR 2023, https://arxiv.org/abs/2303.13899. Adam
    with a rate of 1e-3 in batches of 64. It is made for streams that are correlated in time. An update may fall into a
    batch: the rows of that batch keep what the teacher predicted of them before it.

    Every rank passes the whole memory, which has the rows of all ranks. Each step reads on the host the predicted class
    and entropy of its rows. A step makes no pass that learns, or one, or more, as updates fall into it.

    Args:
        network: see the base.
        capacity: images that the memory holds (paper: 64).
        update_every: rows between two updates; ``capacity`` if ``None``, as in the paper.
        decay: share of itself that the teacher keeps at an update (paper: 0.999).
        time_weight: weight of a stored image's age when it is decided which one leaves (paper: 1).
        entropy_weight: weight of its entropy (paper: 1).
        augment: how a view differs from its image; ``None`` for the defaults of
            :class:`~dafw.nn.stream_views.TestTimeViews`.
        statistics_momentum: weight of a batch in the statistics (paper: 0.05).
        optimizer: see the base (paper: Adam).
        lr: see the base.
        base: see :class:`~dafw.methods.test_time.base.TestTimeMethod`. ``statistics`` is ``average``, with biased
            variances, and holds in updates alone.

    Raises:
        UserError: see the base; for ``ema_decay``, or fewer than two classes.
    """

    default_statistics = "average"
    default_learns = "norm"
    first_served_reason = "the teacher serves by running statistics; those of the stream hold in updates alone"
    #: An update is due after a number of rows, so a batch may have none, one, or more.
    backbone_passes: ClassVar[int | None] = None
    host_reads: ClassVar[int] = 1
    only_images = "keeps images and makes views of them"
    search_space: ClassVar[dict[str, Any]] = {"lr": (1e-5, 1e-2), "capacity": [16, 64, 256], "decay": [0.99, 0.999]}

    def __init__(  # type: ignore[no-untyped-def]
        self,
        network: Network,
        *,
        capacity: PositiveInt = 64,
        update_every: PositiveInt | None = None,
        decay: ClosedUnitInterval = 0.999,
        time_weight: NonNegativeFloat = 1.0,
        entropy_weight: NonNegativeFloat = 1.0,
        augment: TestTimeViews | None = None,
        statistics_momentum: ClosedUnitInterval = 0.05,
        optimizer: str = "adam",
        lr: PositiveFloat = 1e-3,
        **base,
    ) -> None:
        super().__init__(network, statistics_momentum=statistics_momentum, optimizer=optimizer, lr=lr, **base)
        if self.weight_average is not None:
            raise UserError("RoTTA has a teacher of its own: leave out model.ema_decay")
        if self.num_classes < 2:
            raise UserError("RoTTA balances classes and needs two of them: the data has one")
        self.updates_per_batch = 0
        self.update_every, self.augment = update_every or capacity, augment or TestTimeViews()
        self.teacher = Teacher(network, decay, buffers="own")
        weights = {"time_weight": time_weight, "entropy_weight": entropy_weight}
        self.memory = BalancedMemory(capacity, self.num_classes, **weights)

    @property
    def eval_network(self) -> Any:
        """The teacher."""
        return self.teacher.module

    @property
    def stream_statistics(self) -> StreamStatistics | None:
        """See the base; the variance of ``average`` is the biased one, as in the authors' code."""
        if self.statistics != "average":
            return super().stream_statistics
        return StreamStatistics("average", self.statistics_momentum, biased=True)

    def present_outputs(self, batch: Batch) -> Outputs:
        """See the base; the teacher, by the running statistics that it has now."""
        with self.layout.temporarily(stream=None):
            outputs: Outputs = super().present_outputs(batch)
        return outputs

    def training_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Serves the batch, offers its rows to the memory, and makes the updates that are due."""
        with torch.no_grad():
            outputs = self.present_outputs(batch)
        self.rows_used = torch.zeros_like(batch.index, dtype=torch.bool)
        lessons = [] if self.learns == "nothing" else self.remember(batch, outputs.logits)
        self.moves, losses = bool(lessons), [outputs.logits.new_zeros(())]
        self.keep(batch, outputs)
        losses = [self.learn(lesson, number) for number, lesson in enumerate(lessons)] or losses
        self.record_step(batch, {"consistency": torch.stack(losses).mean()})

    def remember(self, batch: Batch, logits: Tensor) -> list[Lesson]:
        """Offers the rows to the memory that it has not seen yet.

        Returns:
            What it holds at each update that is due.
        """
        new = slice(batch.num_again, None)
        p = gather_rows(full_precision(logits[new])).softmax(1)
        entropies = -(p * (p + 1e-6).log()).sum(1)
        lessons, stored = self.memory.add(gather_rows(batch.x[new]), p.argmax(1), entropies, self.update_every)
        self.rows_used[new] = own_rows(stored)
        return lessons

    def learn(self, lesson: Lesson, number: int) -> Tensor:
        """One step of the optimiser and of the teacher.

        Args:
            lesson: what the memory holds.
            number: of the update within this step.

        Returns:
            The loss, a scalar without a gradient.
        """
        torch.clear_autocast_cache()  # of weights that have changed, or were cast where no gradient was asked for
        with torch.no_grad():
            labels = self.forward_rows(lesson.images, 0, self.teacher.module).logits
        images, name = unit_images(lesson.images, self.network.shift), f"view {number}"
        outputs = self.forward_rows(self.augment(images, self.data_seed, self.step, name, sharded=False), 0)
        loss = (soft_cross_entropy(outputs.logits, labels) * timeliness(lesson.ages)).mean()
        parameters = trained_parameters(self.network)
        self.apply_gradients((parameters, self.gradients(loss, parameters)))
        return loss.detach()
