"""The optimiser of a method: parameter groups, schedules, rules of sharpness, teachers."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from dafw.errors import UserError
from dafw.nn.layout import BatchLayout
from dafw.nn.teacher import Teacher
from dafw.optim.fused import is_fused
from dafw.optim.optimizers import choose_optimizer, make_optimizer
from dafw.optim.parts import Parts, check_parts, split_groups
from dafw.optim.schedules import InverseDecay, Schedule
from dafw.optim.sharpness import Sharpness, SharpnessAware

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from dafw.problems.model import NetworkBase

    Base = pl.LightningModule
else:
    Base = object


class Optimisation(Base):
    """The part of every method that moves its weights."""

    #: Whether a method that makes its own updates follows a rule of sharpness in them.
    takes_sharpness: ClassVar[bool] = False
    network: "NetworkBase"
    layout: BatchLayout
    repeated_pass: bool
    #: Updates for each batch of a method that makes them itself; 0 if it does not say.
    updates_per_batch: int = 0

    if TYPE_CHECKING:

        def seed_step(self) -> None: ...  # noqa: D102

    def set_optimisation(
        self,
        optimizer: str,
        lr: float,
        momentum: float,
        weight_decay: float,
        schedule: Schedule | None,
        sharpness: Sharpness | None,
        parts: Parts | None,
        fused: bool | None,
    ) -> None:
        """Keeps the constructor's arguments of the same names.

        Raises:
            UserError: if the optimiser is unknown, or an option of ``parts`` is wrong.
        """
        self.optimizer = choose_optimizer(optimizer)
        self.part_options = parts or {}
        check_parts(self.part_options)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.schedule = schedule or InverseDecay()
        self.sharpness, self.fused = sharpness, fused
        self._in_fused_form = False

    @property
    def fast_forms(self) -> dict[str, bool]:
        """Whether the network is in channels-last memory, and whether the optimiser is fused, once there is one."""
        return {"channels_last": self.network.channels_last, "fused": self._in_fused_form}

    @property
    def teachers(self) -> list[Teacher]:
        """The method's teachers: each follows its student after every step of the optimiser."""
        return [module for module in self.children() if isinstance(module, Teacher)]

    def step_teachers(self) -> None:
        """Lets each teacher follow its student once."""
        for teacher in self.teachers:
            teacher.step()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Makes the optimiser's step, then lets the teachers follow."""
        super().optimizer_step(*args, **kwargs)
        self.step_teachers()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The network's groups at their rates, then, if there is any, every other module of the method at ``lr``."""
        network = {id(parameter) for parameter in self.network.parameters()}
        new = [p for p in self.parameters() if id(p) not in network and p.requires_grad]
        return [*self.network.parameter_groups(self.lr), *([{"params": new, "lr": self.lr}] if new else [])]

    def named_parts(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters of each module of the network and of each other module of the method, by its name."""
        found: dict[str, list[nn.Parameter]] = {}
        for name, module in (*self.network.named_children(), *self.named_children()):
            if module is not self.network and not isinstance(module, Teacher):
                found.setdefault(name, []).extend(trained_parameters(module))
        return {name: parameters for name, parameters in found.items() if parameters}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser over :meth:`parameter_groups`, divided by ``parts``; the last group's rate is logged.

        Raises:
            UserError: if the optimiser cannot be made, or ``parts`` does not fit it or the method.
        """
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, "momentum": self.momentum}
        if self.network.backbone_lr != 1 and "lr" in self.part_options.get("backbone", {}):
            raise UserError("model.parts.backbone.lr and model.network.backbone_lr are two rates of one part: give one")
        groups = split_groups(self.parameter_groups(), self.part_options, self.named_parts(), self.lr)
        try:
            optimizer = make_optimizer(self.optimizer, groups, fused=self.fused, **options)
        except (ValueError, AssertionError) as error:
            raise UserError(f"the optimizer {self.optimizer} cannot be made: {error}") from error
        for name, own in self.part_options.items():
            if "momentum" in own and "momentum" not in optimizer.defaults:
                raise UserError(f"model.parts.{name}.momentum does not apply to the optimizer {self.optimizer}")
        self._in_fused_form = is_fused(optimizer)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        if self.sharpness is not None and self.automatic_optimization:
            return SharpnessAware(optimizer, self.sharpness, self.sharpness_pass)
        return optimizer

    def set_rates(self, progress: float, step: int) -> None:
        """Sets each group's learning rate as a function of training's progress and step."""
        factor = self.schedule(progress, step)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    @contextmanager
    def sharpness_pass(self, number: int) -> Iterator[None]:
        """Within, one pass of a rule of sharpness: each computes the same loss with the same random numbers.

        Args:
            number: of the pass, from 0. Later passes change neither running statistics nor the record nor buffers.
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

    def check_optimisation(self) -> None:
        """Compares the optimiser with the trainer.

        Raises:
            UserError: if ``sharpness`` is given where it cannot be followed, if ``max_steps`` is given to a method
                with several updates a batch, all of which it would count, or if an average of weights would stand
                still in a low precision.
        """
        trainer, name = self.trainer, type(self).__name__
        if self.sharpness is not None:
            if not (self.automatic_optimization or self.takes_sharpness):
                raise UserError(f"{name} makes its own updates, which follow no model.sharpness")
            if trainer.precision == "16-mixed":
                raise UserError("model.sharpness needs unscaled gradients: use trainer.precision bf16-mixed or 32-true")
            if trainer.gradient_clip_val is not None:
                raise UserError("model.sharpness compares gradients of several passes: no trainer.gradient_clip_val")
            if trainer.accumulate_grad_batches > 1:
                raise UserError("model.sharpness looks at one batch several times: no trainer.accumulate_grad_batches")
        several = not self.automatic_optimization and self.updates_per_batch != 1
        if several and trainer.max_steps > 0:
            raise UserError("trainer.max_steps counts every update of a batch: give trainer.max_epochs instead")
        if trainer.precision in ("bf16-true", "16-true") and any(teacher.decay < 1 for teacher in self.teachers):
            raise UserError(
                f"an average of weights stands still in trainer.precision {trainer.precision}, which rounds its small "
                "steps away: use bf16-mixed or 32-true"
            )


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
