"""What each rank finds of the metrics."""

import torch
from torch import Tensor

from dafw.metrics import open_set_metrics
from dafw.metrics.boxes import box_metrics

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


def images() -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Detections and labels of all images, with ties among the scores; one image without any box, one with a crowd."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for boxes in (3, 1, 0, 4, 2, 3, 5):
        corner = 40 * torch.rand(boxes, 2, generator=generator)
        side = 5 + 150 * torch.rand(boxes, 2, generator=generator)
        truth = torch.cat([corner, corner + side], 1)
        labels = torch.randint(CLASSES, (boxes,), generator=generator)
        moved = truth + 0.2 * side.repeat(1, 2) * torch.rand(boxes, 4, generator=generator)
        scores = 0.4 + 0.2 * torch.randint(3, (boxes,), generator=generator)
        other = torch.where(torch.rand(boxes, generator=generator) < 0.2, (labels + 1) % CLASSES, labels)
        label = {"boxes": truth, "labels": labels, "crowd": torch.arange(boxes) == 4}
        found.append(({"boxes": moved, "scores": scores, "labels": other}, label))
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
    all_images = images() if world == 1 else images()[::-1]  # the order of the images is no matter
    boxes = {
        "in turn": all_images[rank::world],
        "one rank has all": all_images if rank == 0 else [],
        "nobody has any": [],
    }
    for name, share in boxes.items():
        metrics = box_metrics(CLASSES, "voc07")
        if share:
            metrics.update([one for one, _ in share], [one for _, one in share])
        found[f"boxes, {name}"] = metrics.compute()
    return found
