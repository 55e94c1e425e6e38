"""Method: what every method shares. One forward of the joint batch, the step's record, evaluation, checkpoints."""

from functools import reduce
from operator import add
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from dafw.callbacks.step_logger import StepLogger
from dafw.data.batch import Batch
from dafw.errors import UserError, warn
from dafw.evaluation.evaluator import Evaluator
from dafw.evaluation.rejection import Rejection
from dafw.lightning_adapter import QuickHookNames
from dafw.methods.diagnostics import Diagnostics
from dafw.methods.optimisation import Optimisation
from dafw.methods.requests import Requests
from dafw.methods.restoring import Restoring
from dafw.methods.serving import Serving
from dafw.methods.starting import Starting
from dafw.methods.step_log import StepRecord
from dafw.methods.waiting import MayWait
from dafw.nn.norm import NormMode, convert_norm
from dafw.nn.statistics import never_estimated
from dafw.nn.teacher import Teacher
from dafw.nn.weights import loads_weights
from dafw.optim.parts import Parts
from dafw.optim.schedules import Schedule
from dafw.optim.sharpness import Sharpness
from dafw.problems import USUAL, Classification, Problem
from dafw.problems.model import NetworkBase, check_scale
from dafw.ranges import NonNegativeFloat, PositiveFloat, RightOpenUnitInterval

Losses = dict[str, Tensor]


class Method(
    MayWait,
    Starting,
    Restoring,
    Requests,
    Serving,
    Diagnostics,
    StepRecord,
    Optimisation,
    QuickHookNames,
    pl.LightningModule,
):
    """Base of all methods. A direct subclass is the base of a setting, and says so with ``abstract=True``.

    Args:
        network: inputs to outputs, see :class:`~dafw.problems.model.NetworkBase`. If it arrives in evaluation mode, it
            is put into training mode; ``norm`` and ``network.frozen`` say what stays as it is.
        num_classes: classes to predict. The command line takes it from the datamodule. A method that is made without
            it takes it from the datamodule of its trainer, see :class:`~dafw.methods.waiting.Waiting`.
        checkpoint: where the network's weights come from: a checkpoint of a method that leaves the network's layers as
            they are, or the directory of a run, whose newest checkpoint is taken. ``None``: the network starts as it
            is given. The command line takes the network of the checkpoint if none is given.
        problem: what is predicted; if ``None`` what the network is for, or else classification, or else the first kind
            that the method is for.
        norm: batch statistics over two domains: ``joint`` (one set), ``separate`` (one per domain, shared running
            statistics), ``domain_specific`` (own statistics and affine per domain), ``frozen``, ``group`` (group
            normalisation, which has no statistics of other images, in place of batch normalisation); the method's
            ``default_norm`` if ``None``.
        optimizer: any timm optimiser; ``momentum`` is SGD with momentum, ``sgd`` the same with Nesterov's.
        lr: learning rate of new layers; the backbone's is ``lr * network.backbone_lr``.
        momentum: momentum of SGD, or beta1 where the optimiser calls it so.
        weight_decay: weight decay of all parameters.
        schedule: factor of the learning rate over training; ``(1 + 10 p)^-0.75`` if ``None`` (Ganin et al. 2016).
        ema_decay: decay of an exponential moving average of the network, which is then evaluated.
        sharpness: rule of sharpness-aware minimisation for the optimiser, such as ``SAM``, which makes several passes a
            step, all with the same random numbers; see :mod:`dafw.optim.sharpness`. It moves all that is trained.
        target_statistics: in tests, score the targets a second time, with batch statistics that are estimated on their
            training images, as AdaBN does. The names of these metrics end in ``_target_statistics``.
        rejection: rule that holds samples of a target to be of no known class, for a method without a rule of its own;
            see :mod:`dafw.evaluation.rejection`.
        parts: what differs for a part of the model, by the part's name: ``lr`` (a multiple of ``lr``), ``momentum``,
            ``weight_decay``. A part is a module of the network (``backbone``, ``bottleneck``, ``head``) or another
            module of the method (``critic``). All else is as the arguments above say.
        fused: take the fused form of the optimiser, one operation for all parameters. If ``None``: yes for
            ``momentum``, ``sgd``, ``adam`` and ``adamw`` on a CPU or a CUDA device. The two forms round
            differently.
    """

    config_key: ClassVar[str] = "model"
    #: Whether the class is a base of methods and no method itself.
    is_abstract: ClassVar[bool] = True
    default_norm: ClassVar[NormMode] = "joint"
    #: The kinds of problem that the method's terms make sense for; empty for all kinds.
    kinds: ClassVar[tuple[str, ...]] = ("classification",)
    #: Hyper-parameters worth searching: name -> (low, high) or list of choices.
    search_space: ClassVar[dict[str, Any]] = {}
    #: Arguments that switch the adaptation off and leave all else as it is; empty if there is nothing to switch off.
    control: ClassVar[dict[str, Any]] = {}
    #: Names of the terms that a critic lowers and the features raise.
    adversarial: ClassVar[tuple[str, ...]] = ()
    #: Why the control does not train bit for bit what source-only does that sees the target; empty if it does.
    control_difference_reason: ClassVar[str] = ""
    #: Whether the control learns from the targets too, without their labels, as from pseudo-labels alone.
    control_learns_target: ClassVar[bool] = False
    #: Passes through the backbone in a training step; ``None`` if they are not as many in each.
    backbone_passes: ClassVar[int | None] = 1
    #: Values that the host must read in a training step by the method's definition.
    host_reads: ClassVar[int] = 0
    #: Why several ranks do not train exactly what one trains; empty if they do.
    rank_difference_reason: ClassVar[str] = ""

    def __init_subclass__(cls, *, abstract: bool = False, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.is_abstract = abstract

    def __init__(
        self,
        network: NetworkBase,
        *,
        num_classes: int,
        checkpoint: str | None = None,
        problem: Problem | None = None,
        norm: NormMode | None = None,
        optimizer: str = "momentum",
        lr: PositiveFloat = 0.01,
        momentum: RightOpenUnitInterval = 0.9,
        weight_decay: NonNegativeFloat = 0.0,
        schedule: Schedule | None = None,
        ema_decay: RightOpenUnitInterval | None = None,
        sharpness: Sharpness | None = None,
        target_statistics: bool = False,
        rejection: Rejection | None = None,
        parts: Parts | None = None,
        fused: bool | None = None,
    ) -> None:
        super().__init__()
        if not hasattr(type(self), "setting"):
            raise NotImplementedError(f"{type(self).__name__} must define setting")
        self.set_optimisation(optimizer, lr, momentum, weight_decay, schedule, sharpness, parts, fused)
        kind = self.kinds[0] if self.kinds and "classification" not in self.kinds else "classification"
        self.problem = problem or USUAL.get(network.kind or kind, Classification)()
        if self.kinds and self.problem.kind not in self.kinds:
            raise UserError(
                f"{type(self).__name__} is a method for {' and '.join(self.kinds)}, and model.problem is "
                f"{type(self.problem).__name__} ({self.problem.kind or 'of no kind'})"
            )
        if network.kind and self.problem.kind and self.problem.kind != network.kind:
            raise UserError(
                f"model.problem is {type(self.problem).__name__}, and model.network {type(network).__name__} is for "
                f"{network.kind}: leave out model.problem, or set model.network to a network for {self.problem.kind}"
            )
        self.num_classes, self.rejection = num_classes, rejection
        if rejection is not None and self.rejects_itself:
            raise UserError(f"{type(self).__name__} itself says what is unknown, and takes no model.rejection")
        if rejection is not None and not self.problem.open_primary:
            raise UserError(f"{type(self.problem).__name__} knows no unknown classes: leave out model.rejection")
        self.build_network(network, num_classes)
        network.set_classes(num_classes)
        self.network = network if network.training else network.train()  # one that has been evaluated learns as others
        self.problem = self.problem.bind(network)
        self.norm: NormMode = norm or self.default_norm
        self.start_from(checkpoint, self.norm)
        self.layout = convert_norm(network, self.norm, network.backbone if network.frozen else None)
        if self.norm == "frozen" and loads_weights() and never_estimated(network):
            warn(
                "model.norm frozen keeps the running statistics of batch normalisation, which are still mean 0 and "
                "variance 1 in this network: give it pretrained weights, or set model.norm to joint or domain_specific"
            )
        self.weight_average = None if ema_decay is None else Teacher(network, ema_decay)
        if target_statistics:
            self.serve_target_statistics()
        #: Why a prediction depends on the other samples of the test set; empty if it does not.
        self.transductive_reason = ""
        self.steps_started = 0
        self.history: list[dict[str, Any]] = []
        self.evaluator = Evaluator(self)
        self._proposed: list[tuple[str, Tensor]] = []
        self.start_record()

    # ---- what a method writes

    def losses(self, batch: Batch) -> Losses:
        """The weighted terms of one step, by name; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} must define losses(batch)")

    def build_network(self, network: NetworkBase, num_classes: int) -> None:
        """Replaces parts of the network, in place, before anything else is made of it.

        Args:
            network: as it was given; it has no label head yet unless it had one.
            num_classes: classes to predict. A method that puts a head in place sets ``network.num_classes`` too.
        """

    def commit(self, batch: Batch) -> None:
        """Writes the proposed buffers, once a step, when its updates are done. An override calls ``super().commit``.

        Args:
            batch: the step's batch.
        """
        for name, value in self._proposed:
            buffer = getattr(self, name)
            if buffer.shape == value.shape:
                buffer.copy_(value)
            else:
                setattr(self, name, value.to(buffer))
        self._proposed = []

    def propose(self, **buffers: Tensor) -> None:
        """Gives buffers new values, which :meth:`commit` writes after the step. All passes of a step see the old ones.

        A repeated pass of a rule of sharpness proposes nothing: the values of the step's first pass count.
        """
        if not self.repeated_pass:
            self._proposed = [(name, value.detach()) for name, value in buffers.items()] + [
                (name, value) for name, value in self._proposed if name not in buffers
            ]

    # ---- forward

    def forward_rows(
        self, x: Any, num_source: int | None, network: nn.Module | None = None, sizes: Tensor | None = None
    ) -> Any:
        """One pass of some rows.

        Args:
            x: the rows' inputs.
            num_source: the number of leading rows that are source; ``None``: all rows are target.
            network: the network to pass; the one in training if ``None``.
            sizes: (N, 2), height and width of padded images within their padding.

        Returns:
            The outputs of the N rows.
        """
        canvas = (0, 0) if sizes is None else (int(x.shape[-2]), int(x.shape[-1]))
        chosen = self.network if network is None else network
        rows = x.shape[0] if isinstance(x, Tensor) else None
        with self.layout.temporarily(num_source=num_source, sizes=sizes, canvas=canvas, rows=rows):
            outputs = chosen(x) if sizes is None else chosen(x, sizes)
        if network is None:
            self.note_features(outputs)
        return outputs

    def forward_batch(self, batch: Batch, network: nn.Module | None = None) -> Any:
        """One pass of all rows of a batch; source rows are the first ``batch.num_source``."""
        return self.forward_rows(batch.x, batch.num_source, network, batch.sizes)

    def statistics_pass(self, batch: Batch) -> None:
        """Passes the rows of a training step through the network, for its batch statistics alone."""
        self.forward_batch(batch)

    def forward(self, x: Any) -> Any:
        """What is evaluated on the target: inputs (N, ...) -> outputs of N rows. None of them is padded.

        Raises:
            UserError: for images in floating point outside of [0, 1].
        """
        check_scale(x)
        return self.forward_rows(x, None, self.eval_network)

    @property
    def eval_network(self) -> Any:
        """The network that is evaluated: the student, or its moving average if there is one."""
        return self.network if self.weight_average is None else self.weight_average.module

    # ---- progress

    @property
    def steps_done(self) -> int:
        """Batches trained so far (asked between two batches)."""
        return self.steps_started

    @property
    def step(self) -> int:
        """Number of the batch in training, from 0."""
        return max(self.steps_started - 1, 0)

    @property
    def steps_planned(self) -> int:
        """Batches that the whole training has."""
        trainer = self.trainer
        epochs = 10**9 if trainer.max_epochs in (None, -1) else int(trainer.max_epochs or 0)
        batches = int(trainer.num_training_batches) * epochs
        if trainer.max_steps > 0:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        return batches

    @property
    def progress(self) -> float:
        """Share of training done before this batch, in [0, 1): the one clock of every schedule."""
        return self.step / max(self.steps_planned, 1)

    # ---- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One joint step: the sum of the method's terms."""
        terms = self.losses(batch)
        self.compare_gradients(terms)
        self.record_step(batch, terms)
        return reduce(add, terms.values())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Counts the step; sets learning rates and the random state as functions of that count alone."""
        self.steps_started += 1
        self.layout.domain, self._features = batch.domain, None
        self.layout.clock = (self.data_seed, self.step)
        self.set_rates(self.progress, self.step)
        self.seed_step()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """See :meth:`commit`."""
        self.layout.clock = None
        with torch.no_grad():
            self.commit(batch)

    def seed_step(self) -> None:
        """Sets the random state of this step on this rank."""
        seed = (self.data_seed * 1_000_003 + self.step) * 4_099 + self.trainer.global_rank
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs half a millisecond where there is no GPU
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The logger of steps comes with every method."""
        present: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if any(isinstance(callback, StepLogger) for callback in present) else [StepLogger()]

    def setup(self, stage: str) -> None:
        """Makes batch norms outside the network exact across ranks.

        Raises:
            UserError: for label sets that the method cannot handle, another number of classes than the data has, an
                optimiser that the trainer cannot follow, or an evaluation on other data than the weights come from.
        """
        self.evaluator.check(stage)
        if stage == "fit":
            self.check_optimisation()
            self.check_inputs()
            self.check_labels()
            if not self.training:  # as a method that was loaded from a checkpoint
                self.train()
        else:
            self.compare_data(stage)
        names = () if self.datamodule is None else self.datamodule.known_names
        if names and len(names) != self.num_classes:
            own = f"{type(self).__name__} is for {self.num_classes} classes (num_classes)"
            raise UserError(f"{own}, but the data has {len(names)}")
        if self.trainer.world_size > 1:
            for name, module in self.named_children():
                if name != "network" and not isinstance(module, Teacher):
                    convert_norm(module, "joint")
