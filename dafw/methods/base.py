"""Method: what every method shares. One forward of the joint batch, optimiser groups, schedules, guard, logging."""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import reduce
from operator import add
from typing import Any, ClassVar, Self

import pytorch_lightning as pl
import torch
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn

from dafw.callbacks.step_logger import StepLogger
from dafw.data.batch import Batch
from dafw.errors import UserError, choose
from dafw.evaluation.evaluator import EvaluationSteps, ExtraTestMetrics
from dafw.evaluation.rejection import Rejection
from dafw.lightning_adapter import QuickHookNames
from dafw.methods.step_log import StepRecord
from dafw.nn.distributed import sum_over_ranks
from dafw.nn.network import Network
from dafw.nn.norm import BatchLayout, NormMode, convert_norm
from dafw.nn.weights import without_weights
from dafw.optim.schedules import InverseDecay, Schedule
from dafw.optim.sharpness import Sharpness, SharpnessAware
from dafw.problems import Classification, Outputs, Problem
from dafw.recording import Recorded, build, describe

Losses = dict[str, Tensor]


class Method(Recorded, StepRecord, EvaluationSteps, QuickHookNames, pl.LightningModule):
    """Base of all methods.

    Args:
        network: images to features and class scores.
        num_classes: classes to predict (the command line fills it in from the datamodule).
        problem: what is predicted; classification if ``None``.
        norm: batch statistics over two domains: ``joint`` (one set), ``separate`` (one per domain, shared running
            statistics), ``domain_specific`` (own statistics and affine per domain), ``frozen``; the method's
            ``default_norm`` if ``None``.
        optimizer: any timm optimiser; ``momentum`` is SGD with momentum, ``sgd`` the same with Nesterov's.
        lr: learning rate of new layers; the backbone's is ``lr * network.backbone_lr``.
        momentum: momentum of SGD, or beta1 where the optimiser calls it so.
        weight_decay: weight decay of all parameters.
        schedule: factor of the learning rate over training; ``(1 + 10 p)^-0.75`` if ``None`` (Ganin et al. 2016).
        ema_decay: decay of an exponential moving average of the network (timm's), which is then what is evaluated.
        sharpness: rule of sharpness-aware minimisation for the optimiser, such as ``SAM``, which makes several passes a
            step, all with the same random numbers; see :mod:`dafw.optim.sharpness`. It moves all that is trained.
        rejection: which samples of a target are held to be of no known class, for a method that does not say so itself;
            see :mod:`dafw.evaluation.rejection`.
    """

    default_norm: ClassVar[NormMode] = "joint"
    #: Names of further augmented views of each input that a step needs.
    views: ClassVar[tuple[str, ...]] = ()
    #: Hyper-parameters worth searching: name -> (low, high) or list of choices.
    search_space: ClassVar[dict[str, Any]] = {}
    #: Arguments that switch the adaptation off and leave all else as it is; empty if there is nothing to switch off.
    control: ClassVar[dict[str, Any]] = {}
    #: Names of the terms that a critic lowers and the features raise.
    adversarial: ClassVar[tuple[str, ...]] = ()
    #: Why the control does not train bit for bit what source-only does that sees the target; empty if it does.
    control_difference_reason: ClassVar[str] = ""
    #: Share of each target's training samples that is kept apart and comes as the batch's last rows.
    held_out: ClassVar[float] = 0.0
    #: Passes through the backbone in a training step.
    backbone_passes: ClassVar[int] = 1
    #: Values that the host must read in a training step by the method's definition.
    host_reads: ClassVar[int] = 0
    #: Why several ranks do not train exactly what one trains; empty if they do.
    rank_difference_reason: ClassVar[str] = ""
    #: Whether a method that makes its own updates follows a rule of sharpness in them.
    takes_sharpness: ClassVar[bool] = False

    def __init__(
        self,
        network: Network,
        *,
        num_classes: int,
        problem: Problem | None = None,
        norm: NormMode | None = None,
        optimizer: str = "momentum",
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        schedule: Schedule | None = None,
        ema_decay: float | None = None,
        sharpness: Sharpness | None = None,
        rejection: Rejection | None = None,
    ) -> None:
        super().__init__()
        if not (math.isfinite(lr) and lr > 0):
            raise UserError(f"model.lr must be a positive number, not {lr}")
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise UserError(f"model.weight_decay must be 0 or more, not {weight_decay}")
        for name, share in (("momentum", momentum), ("ema_decay", 0.0 if ema_decay is None else ema_decay)):
            if not 0 <= share < 1:
                raise UserError(f"model.{name} must be at least 0 and below 1, not {share}")
        choose("optimizer", optimizer, map(str, list_optimizers()))
        self.problem = problem or Classification()
        self.num_classes = num_classes
        self.optimizer, self.lr, self.momentum, self.weight_decay = optimizer, lr, momentum, weight_decay
        self.schedule = schedule or InverseDecay()
        self.sharpness, self.rejection = sharpness, rejection
        if rejection is not None and self.rejects_itself:
            raise UserError(f"{type(self).__name__} itself says what is unknown, and takes no model.rejection")
        network.set_classes(num_classes)
        self.network = network
        self.norm: NormMode = norm or self.default_norm
        self.layout: BatchLayout = convert_norm(network, self.norm, network.backbone if network.frozen else None)
        self.ema = None if ema_decay is None else ModelEmaV3(network, decay=ema_decay).requires_grad_(False)
        #: Updates for each batch of a method that makes them itself; 0 if it does not say.
        self.updates_per_batch = 0
        #: Domains whose labels trained the weights that this method started from.
        self.trained_on: tuple[str, ...] = ()
        #: Why a prediction depends on the other samples of the test set; empty if it does not.
        self.transductive_reason = ""
        #: Whether tests and predictions take gradients, and so need a trainer with ``inference_mode=False``.
        self.adapts_in_test = False
        self.steps_started = 0
        self.history: list[dict[str, Any]] = []
        self.extra_metrics = ExtraTestMetrics({}, {})
        self.start_record()

    # ---- what a method writes

    def losses(self, batch: Batch) -> Losses:
        """The weighted terms of one step, by name; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} must define losses(batch)")

    # ---- forward

    def forward_rows(self, x: Any, num_source: int | None, network: nn.Module | None = None) -> Outputs:
        """One pass. The first ``num_source`` rows are source; ``None``: all rows are target."""
        layout, previous = self.layout, self.layout.num_source
        layout.num_source = num_source
        outputs: Outputs = (network or self.network)(x)
        layout.num_source = previous
        return outputs

    def statistics_pass(self, batch: Batch) -> None:
        """Runs what a training step passes through the network, for its batch statistics alone."""
        self.forward_rows(batch.x, batch.num_source)

    def forward(self, x: Any) -> Outputs:
        """What serves the target: images (N, C, H, W) -> outputs."""
        return self.forward_rows(x, None, self.eval_network)

    @property
    def eval_network(self) -> nn.Module:
        """The network that is evaluated: the moving average if there is one."""
        return self.network if self.ema is None else self.ema.module

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
        epochs = trainer.max_epochs or -1
        batches = int(trainer.num_training_batches) * (epochs if epochs > 0 else 10**9)
        if trainer.max_steps > 0:
            batches = min(batches, trainer.max_steps * trainer.accumulate_grad_batches)
        return batches

    @property
    def progress(self) -> float:
        """Share of training done before this batch, in [0, 1): the one clock of every schedule."""
        return self.step / self.steps_planned

    # ---- training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One joint step: sum of the method's terms."""
        terms = self.losses(batch)
        self.record_step(batch, terms)
        return reduce(add, terms.values())

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Counts the step; sets learning rates and the random state as functions of that count alone."""
        self.steps_started += 1
        self.layout.domain = batch.domain
        factor = self.schedule(self.progress, self.step)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        self.seed_step()

    def seed_step(self) -> None:
        """Sets the random state of this step on this rank."""
        seed = getattr(self._datamodule, "seed", 0)
        seed = (seed * 1_000_003 + self.step) * 4_099 + self.trainer.global_rank
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs half a millisecond where there is no GPU
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(seed)

    @contextmanager
    def sharpness_pass(self, number: int) -> Iterator[None]:
        """Within, one pass of a rule of sharpness: each is of the same loss, with the same random numbers.

        Args:
            number: of the pass, from 0; those after the first leave running statistics and the record alone.
        """
        with ExitStack() as stack:
            if number:
                self.seed_step()
                stack.enter_context(self.layout.untracked())
            elif self.sharpness is not None and self.sharpness.local and self.trainer.world_size > 1:
                stack.enter_context(self.trainer.strategy.block_backward_sync())  # type: ignore[attr-defined]
            self.repeated_pass = number > 0
            yield
            self.repeated_pass = False

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """The optimiser's step, and the moving average's after it."""
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update(self.network)

    def configure_callbacks(self) -> list[pl.Callback]:
        """The look at the terms comes with every method."""
        present: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        return [] if any(isinstance(callback, StepLogger) for callback in present) else [StepLogger()]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's groups at their rates, then, if there is any, every other module of the method at ``lr``."""
        network = {id(parameter) for parameter in self.network.parameters()}
        averaged = set() if self.ema is None else {id(parameter) for parameter in self.ema.parameters()}
        new = [p for p in self.parameters() if id(p) not in network | averaged and p.requires_grad]
        return [*self.network.parameter_groups(self.lr), *([{"params": new, "lr": self.lr}] if new else [])]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser over :meth:`parameter_groups`; the rate that is logged is that of the last group."""
        groups = self.parameter_groups()
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, "momentum": self.momentum}
        try:
            optimizer = create_optimizer_v2(groups, opt=self.optimizer, filter_bias_and_bn=False, **options)
        except (ValueError, AssertionError) as error:
            raise UserError(f"the optimizer {self.optimizer} cannot be made: {error}") from error
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        if self.sharpness is not None and self.automatic_optimization:
            return SharpnessAware(optimizer, self.sharpness, self.sharpness_pass)
        return optimizer

    def setup(self, stage: str) -> None:
        """Makes batch norms outside the network exact across ranks.

        Raises:
            UserError: if the target has classes of its own and nothing would be rejected;
                if ``max_steps`` is given to a method with several updates a batch, all of which it would count;
                if ``sharpness`` is given where it cannot be followed.
        """
        self.check_label_sets()
        if stage == "fit" and self.sharpness is not None:
            if not (self.automatic_optimization or self.takes_sharpness):
                raise UserError(f"{type(self).__name__} makes its own updates, which follow no model.sharpness")
            if self.trainer.precision == "16-mixed":
                raise UserError("model.sharpness needs unscaled gradients: use trainer.precision bf16-mixed or 32-true")
            if self.trainer.gradient_clip_val is not None:
                raise UserError("model.sharpness compares gradients of several passes: no trainer.gradient_clip_val")
            if self.trainer.accumulate_grad_batches > 1:
                raise UserError("model.sharpness looks at one batch several times: no trainer.accumulate_grad_batches")
        several = not self.automatic_optimization and self.updates_per_batch != 1
        if stage == "fit" and several and self.trainer.max_steps > 0:
            raise UserError("trainer.max_steps counts every update of a batch: give trainer.max_epochs instead")
        if self.trainer.world_size > 1:
            for name, module in self.named_children():
                if name not in ("network", "ema"):
                    convert_norm(module, "joint")

    @property
    def _datamodule(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to make the method again and to go on: plain values only."""
        checkpoint["dafw"] = {
            "method": describe(self),
            "steps": self.steps_started,
            "history": self.history,
            "record": self.record_state(),
            "labelled": sorted({*self.trained_on, *getattr(self._datamodule, "labelled", ())}),
            "classes": list(getattr(self._datamodule, "known_names", ())),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on where the checkpoint was written."""
        self.steps_started = checkpoint["dafw"]["steps"]
        self.history = list(checkpoint["dafw"]["history"])
        self.load_record_state(checkpoint["dafw"]["record"])

    @classmethod
    def load(cls, path: str, **changes: Any) -> Self:
        """The method that a checkpoint holds, made without its constructor call.

        Args:
            path: a checkpoint that this project wrote.
            changes: constructor arguments to replace.

        Raises:
            UserError: if the file is no such checkpoint, or holds another method than ``cls``.
        """
        from dafw.checkpoints import read_checkpoint

        checkpoint = read_checkpoint(path)
        description = checkpoint["dafw"]["method"]
        with without_weights():
            method = build({**description, "init_args": {**description["init_args"], **changes}})
        if not isinstance(method, cls):
            raise UserError(f"{path} holds a {type(method).__name__}, not a {cls.__name__}")
        method.load_state_dict(checkpoint["state_dict"])
        method.on_load_checkpoint(checkpoint)
        return method.eval()


class AdaptationMethod(Method):
    """Labelled source, unlabelled target: one forward of both, the supervised loss, and the method's own terms."""

    setting = "adaptation"
    #: Numbers C and P of classes a batch and rows of each, if it shall hold C * P rows of the source by label, behind
    #: its random ones, and C * P of the target by pseudo-label, behind its random ones; class by class, over all ranks.
    balanced: tuple[int, int] | None = None

    def target_labels(self) -> list[Tensor]:
        """Of each target, what the method takes for the classes of its training samples, -1 for none; on the host.

        Asked for, on all ranks alike, each time that batches of an epoch start to be drawn, which may be before the
        first epoch's hooks. All steps until the next time follow the answer: it must be a function of the method's
        state. While there are no classes the rows are any of either side's.
        """
        raise NotImplementedError(f"{type(self).__name__} must define target_labels() to have balanced rows")

    def adapt(self, source: Outputs, target: Outputs, joint: Outputs) -> Losses:
        """Already weighted terms to add to the supervised loss.

        Args:
            source: outputs of the ``n_s`` labelled rows, a view of ``joint``.
            target: outputs of the ``n_t`` unlabelled rows, a view of ``joint``.
            joint: all outputs; ``joint.features`` is (n_s + n_t, d).
        """
        raise NotImplementedError(f"{type(self).__name__} must define adapt(source, target, joint)")

    def losses(self, batch: Batch) -> Losses:
        """Supervised loss of the source rows and the terms of :meth:`adapt`."""
        joint = self.forward_rows(batch.x, batch.num_source)
        source, target = joint[: batch.num_source], joint[batch.num_source :]
        terms = {"supervised": self.problem.loss(source, batch.y), **self.adapt(source, target, joint)}
        if self.logs_this_step:
            self.compare_gradients(terms, joint.features)
        return terms

    def compare_gradients(self, terms: Losses, features: Tensor) -> None:
        """Diagnoses, for each term, its gradient's norm at the features over the supervised loss's."""
        if not features.requires_grad:  # a frozen backbone's own
            return
        squares = {}
        for name, term in terms.items():
            if term.requires_grad:
                (gradient,) = torch.autograd.grad(term, features, retain_graph=True, allow_unused=True)
                if gradient is not None:
                    squares[name] = sum_over_ranks(gradient.square().sum())
        reference = squares.pop("supervised", None)
        for name, square in squares.items():
            if reference is not None:
                self.diagnose(f"gradient_ratio_{name}", (square / reference.clamp_min(1e-24)).sqrt())
