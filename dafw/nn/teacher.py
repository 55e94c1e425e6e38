"""A teacher: a copy of a network that follows it slowly, or only when told to."""

import copy
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """An exponential moving average of a network: teacher <- decay * teacher + (1 - decay) * student.

    The copy gets no gradient and is always in evaluation mode. Its weights are in the state dict, and so is its count
    of steps where it matters. Integer buffers are copied. The student is no sub-module: its owner holds it already.

    Polyak and Juditsky, SIAM J. Control Optim. 30 (1992); Tarvainen and Valpola, Mean teachers, NeurIPS 2017,
    https://arxiv.org/abs/1703.01780, section 2, whose warm-up is ``min(decay, 1 - 1 / (step + 1))``.

    Args:
        student: the network to follow.
        decay: share of itself that the teacher keeps in a step, in [0, 1]; with 1 it changes only by :meth:`copy_from`.
        warmup: start with a small decay, ``min(decay, 1 - 1 / (step + 1))``, so that the teacher leaves its initial
            weights quickly.
        interval: steps of the student between two steps of the teacher.
        buffers: ``average`` averages the buffers (running statistics) like the weights, ``copy`` takes the student's,
            ``own`` leaves the teacher's as they are.
    """

    steps: Tensor | None

    def __init__(
        self,
        student: nn.Module,
        decay: float,
        *,
        warmup: bool = False,
        interval: int = 1,
        buffers: str = "average",
    ) -> None:
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be in [0, 1], not {decay}")
        if interval < 1:
            raise ValueError(f"interval must be at least 1, not {interval}")
        if buffers not in ("average", "copy", "own"):
            raise ValueError(f"buffers must be average, copy or own, not {buffers}")
        self.module = copy.deepcopy(student).requires_grad_(False)
        self.decay, self.warmup, self.interval, self.buffer_rule = decay, warmup, interval, buffers
        self._student = (student,)  # a tuple hides it from the registry of sub-modules
        counted = warmup or interval > 1
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64) if counted else None)
        self._done = 0
        self.eval()

    @property
    def student(self) -> nn.Module:
        """The network that the teacher follows."""
        return self._student[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The copy's outputs."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """The teacher remains in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def step(self) -> None:
        """Follows the student. Its owner calls it once after each step of the optimiser."""
        self._done += 1
        if self.steps is not None:
            self.steps.add_(1)
        if self.decay == 1 or self._done % self.interval:
            return
        decay = min(self.decay, 1 - 1 / (self._done // self.interval + 1)) if self.warmup else self.decay
        averaged: list[Tensor] = []
        following: list[Tensor] = []
        buffers = {name for name, _ in self.module.named_buffers()}
        for name, (own, theirs) in zip(self.module.state_dict(), self._pairs(), strict=True):
            if self.buffer_rule == "own" and name in buffers:
                continue
            if not own.is_floating_point() or (self.buffer_rule == "copy" and name in buffers):
                own.copy_(theirs)
            else:
                averaged.append(own)
                following.append(theirs.to(own))
        torch._foreach_lerp_(averaged, following, weight=1.0 - decay)

    @torch.no_grad()
    def copy_from(self, network: nn.Module | None = None) -> None:
        """Takes over the weights and buffers of the student, or of another network of the same form."""
        for own, theirs in self._pairs(network):
            own.copy_(theirs)

    @torch.no_grad()
    def restore(self) -> None:
        """Gives the student the teacher's weights and buffers."""
        for own, theirs in self._pairs():
            theirs.copy_(own)

    def _pairs(self, network: nn.Module | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        source = self.student if network is None else network
        return zip(self.module.state_dict().values(), source.state_dict().values(), strict=True)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.steps is not None:
            self._done = int(self.steps)
