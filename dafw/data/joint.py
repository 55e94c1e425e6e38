"""The dataset behind a joint batch: several domains, addressed by draws of the sampler."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import Dataset

from dafw.data.batch import Sample
from dafw.data.domain import Domain
from dafw.data.sampler import Draw

Augmentation = Callable[[Any], Any]


class JointDataset(Dataset[Sample]):
    """Domains side by side. A domain without labels yields samples without labels: there is nothing to leak.

    Random augmentation is seeded from (seed, domain, index, pass, view): it depends neither on the number of
    workers nor on what was loaded before.

    Args:
        domains: source domains, then target domains, then what is held out of these.
        augment: random transform of one input, or ``None``.
        views: further transforms by name; each yields one more view of every input.
        seed: seed of the augmentation.
        num_held_out: how many of the domains, the last ones, are held out.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        augment: Augmentation | None = None,
        views: Mapping[str, Augmentation] | None = None,
        seed: int = 0,
        num_held_out: int = 0,
    ) -> None:
        self.domains = list(domains)
        self.num_held_out = num_held_out
        self.augment, self.views, self.seed = augment, dict(views or {}), seed

    def __len__(self) -> int:
        return sum(len(domain) for domain in self.domains)

    def __getitems__(self, draws: Sequence[Draw]) -> Sequence[Sample]:
        """The samples of a batch; each is loaded when it is asked for."""
        return _Samples(self, draws)

    def __getitem__(self, draw: Draw) -> Sample:
        domain = self.domains[draw.domain]
        raw = domain.inputs[draw.index]
        return Sample(
            x=raw if self.augment is None else self._random(self.augment, raw, draw, ""),
            y=None if domain.labels is None else domain.labels[draw.index],
            domain=draw.domain,
            index=draw.index,
            views={name: self._random(view, raw, draw, name) for name, view in self.views.items()},
            held_out=draw.domain >= len(self.domains) - self.num_held_out,
        )

    def _random(self, transform: Augmentation, raw: Any, draw: Draw, view: str) -> Any:
        key = f"{self.seed} {draw.index} {draw.cycle} {self.domains[draw.domain].name!r} {view!r}"
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little"))
        try:
            return transform(raw)
        finally:
            generator.set_state(state)


class _Samples(Sequence[Sample]):
    def __init__(self, data: JointDataset, draws: Sequence[Draw]) -> None:
        self.data, self.draws = data, draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: Any) -> Any:
        return self.data[self.draws[index]]
