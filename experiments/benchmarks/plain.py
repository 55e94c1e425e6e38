"""DANN as one would write it by hand: the network, a critic, SGD and a loop. No Lightning, nothing from our methods.

What it shares with dafw is what must be equal for a comparison of speed: the network's class, the critic's layers,
and the batches. Reversal, losses, schedules and logging are its own.
"""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Reverse(torch.autograd.Function):
    """The config_hash, whose gradient is multiplied by ``-scale``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        """Keeps ``scale``."""
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Turns the gradient round."""
        return gradient * -ctx.scale, None


class PlainDANN:
    """The loop.

    Args:
        network: images to an object with ``features`` and ``logits``.
        critic: features to one score, positive for source.
        loader: joint batches, source rows first.
        steps: planned steps, over which the learning rate falls and the reversal rises.
        folder: where ``metrics.csv`` and ``last.pt`` go.
        log_every: steps between two rows of the log.
        save_every: steps between two checkpoints.
        device: where to train.
    """

    def __init__(
        self,
        network: nn.Module,
        critic: nn.Module,
        loader: Any,
        *,
        steps: int,
        folder: Path,
        log_every: int = 50,
        save_every: int = 500,
        device: str = "cpu",
    ) -> None:
        self.network, self.critic = network.to(device).train(), critic.to(device).train()
        self.parameters = [*network.parameters(), *critic.parameters()]
        self.optimizer = torch.optim.SGD(self.parameters, lr=0.01, momentum=0.9)
        self.batches: Iterator[Any] = iter(loader)
        self.steps, self.done, self.device = steps, 0, device
        self.folder, self.log_every, self.save_every = folder, log_every, save_every
        self.folder.mkdir(parents=True, exist_ok=True)
        self.losses: list[Tensor] = []
        self.is_source: Tensor | None = None

    def train(self, steps: int) -> None:
        """Makes some steps."""
        for _ in range(steps):
            self.step(next(self.batches).to(self.device, non_blocking=True))

    def step(self, batch: Any) -> None:
        """One step: labels of the first half, both halves for the critic."""
        progress = self.done / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 * (1 + 10 * progress) ** -0.75
        ramp = 2 / (1 + math.exp(-10 * progress)) - 1
        outputs = self.network(batch.x)
        if self.is_source is None:
            self.is_source = torch.zeros_like(outputs.features[:, 0])
            self.is_source[: batch.num_source] = 1
        scores = self.critic(Reverse.apply(outputs.features, ramp)).squeeze(1)
        supervised = F.cross_entropy(outputs.logits[: batch.num_source], batch.y)
        domain = 2 * F.binary_cross_entropy_with_logits(scores, self.is_source)  # the sum of two means
        self.optimizer.zero_grad()
        (supervised + domain).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.done += 1
        self.losses += [supervised.detach(), domain.detach()]
        if self.done % self.log_every == 0:
            self.log()
        if self.done % self.save_every == 0:
            self.save()

    def log(self) -> None:
        """Writes the means of the two losses since the last time."""
        means = torch.stack(self.losses).view(-1, 2).mean(0).tolist()
        self.losses = []
        with (self.folder / "metrics.csv").open("a", newline="") as file:
            csv.writer(file).writerow([self.done, *means])

    def save(self) -> None:
        """Writes what is needed to go on."""
        parts: dict[str, Any] = {"network": self.network, "critic": self.critic, "optimizer": self.optimizer}
        torch.save({name: part.state_dict() for name, part in parts.items()}, self.folder / "last.pt")
