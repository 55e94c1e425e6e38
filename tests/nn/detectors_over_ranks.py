"""Losses and gradients of detectors on images of which rank 1 gets those without a box."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dafw.nn.detector import Detector
from dafw.testing.cases import DETECTORS


def everything(rank: int, world: int) -> dict[str, Tensor]:
    """Losses of each image, and the gradients that all ranks have together."""
    found = {}
    for arch, options in DETECTORS.items():
        torch.manual_seed(0)
        network = Detector(**{**options, "proposals_in_training": 100, "regions_per_image": 80})
        network.set_classes(3)
        network.double().eval()
        images = torch.rand(4, 3, 48, 48, dtype=torch.float64)
        boxes = [torch.tensor([[5.0, 5, 25, 30], [20, 18, 40, 44]]), torch.zeros(0, 4)] * 2
        y: list[Any] = [{"boxes": one, "labels": torch.arange(len(one))} for one in boxes]
        mine = slice(rank, None, world)
        network.layout.clock, network.layout.num_source = (5, 2), 4 // world
        outputs = network(images[mine])
        losses = network.losses(outputs, y[mine])
        total: Any = sum(losses.values())
        total.backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, f"{name} has no gradient on rank {rank}"
            if world > 1:
                dist.all_reduce(parameter.grad)
            found[f"{arch}/{name}"] = parameter.grad / world
        for name, rows in network.row_losses(outputs, y[mine]).items():
            both = [torch.zeros_like(rows) for _ in range(world)]
            if world > 1:
                dist.all_gather(both, rows.detach())
            found[f"{arch}/{name}"] = torch.stack(both, 1).flatten() if world > 1 else rows.detach()
        for kind, terms in zip(("whole", "part"), network.part_losses(outputs, y[mine], 2), strict=True):
            for name, value in terms.items():
                mean = value.detach() / world
                if world > 1:
                    dist.all_reduce(mean)
                found[f"{arch}/{kind} {name}"] = mean
        alone = network.losses(outputs, y[mine], over_ranks=False)
        assert all(torch.isfinite(value) for value in alone.values())
    return found
