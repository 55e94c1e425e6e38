"""What each rank finds of the metrics."""

import torch
from torch import Tensor

from dafw.metrics import open_set_metrics

CLASSES = 3


def batches() -> list[dict[str, Tensor]]:
    """All samples, in batches of several sizes, with ties among the scores."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows in (5, 1, 8, 3, 7):
        prediction = torch.randint(CLASSES + 1, (rows,), generator=generator)
        target = torch.randint(CLASSES + 1, (rows,), generator=generator)
        noise = torch.randint(5, (rows,), generator=generator) + 1e-9 * torch.randint(2, (rows,), generator=generator)
        unknown = noise.double() + 2 * (target == CLASSES)
        found.append({"prediction": prediction, "target": target, "unknown": unknown})
    return found


def everything(rank: int, world: int) -> dict[str, dict[str, Tensor]]:
    """The metrics of all batches; they should not depend on ``world``, nor on which rank has which batch."""
    shares = {
        "in turn": batches()[rank::world],
        "one rank has all": batches() if rank == 0 else [],
        "nobody has any": [],
    }
    found = {}
    for name, mine in shares.items():
        metrics = open_set_metrics(CLASSES)
        for batch in mine:
            metrics.update(**batch)
        found[name] = metrics.compute()
    return found
