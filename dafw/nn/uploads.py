"""What a device sends to a cloud: which rows of a stream are worth it, and the images that the cloud holds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafw.nn.buffers import VariableLengthBuffers
from dafw.nn.precision import full_precision


class UploadFilter(nn.Module):
    """Chooses rows that are neither too sure nor too unsure, and unlike the mean prediction of what was sent.

    A row passes if E_min <= H < E. H is its entropy. E is E_max until ``warm_up`` rows came, and then
    E_max ``scale`` m / m0: m is the mean entropy of all rows so far, those of the batch included, and m0 was m when the
    warm-up ended. Of the rows that pass, those of the first batch are all chosen. Later ones are chosen if
    |cos(p, q)| < ``redundancy``: q is the mean prediction of the chosen rows of the first batch, then 0.9 q + 0.1 of
    that of each later batch. CEMA, see :func:`~dafw.losses.distillation.selective_distillation`.

    Args:
        classes: K.
        least: E_min in nats.
        most: E_max in nats.
        redundancy: greatest cosine of a row that is chosen.
        warm_up: rows until E follows the entropies; ``None``: it never does.
        scale: see above.

    Attributes:
        mean_probability: q, (K,).
        begun: whether rows were chosen before.
        total: sum of the entropies of all rows, and their number, (2,).
        first_mean: m0; 0 before the warm-up ended.
    """

    mean_probability: Tensor
    begun: Tensor
    total: Tensor
    first_mean: Tensor

    def __init__(
        self, classes: int, *, least: float, most: float, redundancy: float, warm_up: int | None, scale: float
    ) -> None:
        super().__init__()
        self.least, self.most, self.redundancy = least, most, redundancy
        self.warm_up, self.scale = warm_up, scale
        self.register_buffer("mean_probability", torch.zeros(classes))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self.register_buffer("total", torch.zeros(2))
        self.register_buffer("first_mean", torch.zeros(()))

    @property
    def threshold(self) -> Tensor:
        """E in nats, a scalar."""
        most = self.total.new_tensor(self.most)
        if self.warm_up is None:
            return most
        mean = self.total[0] / self.total[1].clamp_min(1)
        tiny = torch.finfo(mean.dtype).tiny
        return torch.where(self.first_mean > 0, most * self.scale * mean / self.first_mean.clamp_min(tiny), most)

    @torch.no_grad()
    def forward(self, logits: Tensor, entropies: Tensor) -> Tensor:
        """Chooses rows of a batch, and takes the batch into what it knows.

        Args:
            logits: (n, K). Every rank must be given the rows of all ranks.
            entropies: (n,), of their predictions in nats.

        Returns:
            (n,) bool.
        """
        p = full_precision(logits).softmax(1)
        self.total = self.total + torch.stack([entropies.sum(), entropies.new_tensor(len(p))]).to(self.total)
        if self.warm_up is not None:
            ended = (self.first_mean == 0) & (self.total[1] >= self.warm_up)
            self.first_mean = torch.where(ended, self.total[0] / self.total[1], self.first_mean)
        passed = (entropies >= self.least) & (entropies < self.threshold.to(entropies))
        likeness = F.cosine_similarity(self.mean_probability[None].to(p), p).abs()
        chosen = passed & ((likeness < self.redundancy) | ~self.begun)
        mean = ((chosen[:, None] * p).sum(0) / chosen.sum().clamp_min(1)).to(self.mean_probability)
        following = torch.where(self.begun, torch.lerp(self.mean_probability, mean, 0.1), mean)
        self.mean_probability = torch.where(chosen.any(), following, self.mean_probability)
        self.begun = self.begun | chosen.any()
        return chosen


class Uploads(VariableLengthBuffers):
    """Images that came to a cloud: those that wait for their batch, and the latest ones of all.

    Args:
        batch: images of a batch of the cloud.
        capacity: of the latest ones; 0 keeps none.

    Attributes:
        waiting: (w, ...), fewer than a batch.
        kept: (m, ...), the latest ones.
    """

    variable_buffers = ("waiting", "kept")
    waiting: Tensor
    kept: Tensor

    def __init__(self, batch: int, capacity: int) -> None:
        super().__init__()
        self.batch, self.capacity = batch, capacity
        self.register_buffer("waiting", torch.empty(0))
        self.register_buffer("kept", torch.empty(0))

    @torch.no_grad()
    def add(self, images: Tensor) -> list[Tensor]:
        """Takes in images (n, ...), and gives the full batches that wait now, in the order of arrival."""
        if not len(images):
            return []
        waiting = torch.cat([self.waiting, images]) if len(self.waiting) else images
        full = len(waiting) // self.batch
        self.waiting = waiting[full * self.batch :].clone()
        if self.capacity:
            kept = torch.cat([self.kept, images]) if len(self.kept) else images
            self.kept = kept[-self.capacity :].clone()
        return list(torch.split(waiting[: full * self.batch], self.batch)) if full else []

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Different ones of those that are kept, at random, (count, ...); all if there are fewer.

        Args:
            count: of images.
            generator: of the device of the images.
        """
        order = torch.randperm(len(self.kept), generator=generator, device=self.kept.device)
        return self.kept[order[:count]]

    def _load_from_state_dict(self, state_dict: dict[str, object], prefix: str, *rest: object) -> None:
        for name in self.variable_buffers:
            held = state_dict.get(f"{prefix}{name}")
            if isinstance(held, Tensor):  # uint8 or floating point, as the batches are
                setattr(self, name, getattr(self, name).to(held.dtype))
        super()._load_from_state_dict(state_dict, prefix, *rest)
