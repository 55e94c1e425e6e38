"""The dataset behind a joint batch: several domains, addressed by draws of the sampler."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

import torch
from torch.utils.data import Dataset

from dafw.data.batch import Sample
from dafw.data.domain import Domain
from dafw.data.sampler import Draw
from dafw.data.whole_samples import Augmentation, transform_sample, transform_view
from dafw.errors import UserError


class JointDataset(Dataset[Sample]):
    """Domains side by side. A domain without labels yields samples without labels: there is nothing to leak.

    Random augmentation is seeded from (seed, domain, index, pass, view): it depends neither on the number of
    workers nor on what was loaded before.

    Args:
        domains: source domains, then target domains, then what is held out of these.
        augment: random transform of one sample, or ``None``; see :func:`~dafw.data.whole_samples.transform_sample`.
        views: further transforms by name; each yields one more view of every input.
        maps: whether a view starts from the augmented input and comes with the affine map of what it moved. Otherwise a
            view starts from the input as it is stored.
        references: whether the samples of domains with references come with them, as the view ``reference``; the same
            draw of ``augment`` moves both.
        seed: seed of the augmentation.
        num_held_out: how many of the domains, the last ones, are held out.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        *,
        augment: Augmentation | None = None,
        views: Mapping[str, Augmentation] | None = None,
        maps: bool = False,
        references: bool = False,
        seed: int = 0,
        num_held_out: int = 0,
    ) -> None:
        self.domains = list(domains)
        self.num_held_out = num_held_out
        self.augment, self.views, self.maps, self.seed = augment, dict(views or {}), maps, seed
        self.references = references

    def __len__(self) -> int:
        return sum(len(domain) for domain in self.domains)

    def __getitems__(self, draws: Sequence[Draw]) -> Sequence[Sample]:
        """The samples of a batch; each is loaded when it is asked for."""
        return _Samples(self, draws)

    def __getitem__(self, draw: Draw) -> Sample:
        domain = self.domains[draw.domain]
        raw = domain.inputs[draw.index]
        x, y = raw, None if domain.labels is None else domain.labels[draw.index]
        if self.augment is not None:
            with self._random(draw, ""):
                x, y = transform_sample(self.augment, raw, y)
        views, maps = {}, {}
        for name, view in self.views.items():
            with self._random(draw, name):
                if self.maps:
                    views[name], maps[name] = transform_view(view, x, f'the view "{name}"')
                else:
                    views[name] = view(raw)
        if self.references and domain.references is not None:
            views["reference"] = self._reference(domain, draw, raw)
        held_out = draw.domain >= len(self.domains) - self.num_held_out
        return Sample(x, y, draw.domain, draw.index, views, maps, held_out, draw.place, draw.again)

    def _reference(self, domain: Domain, draw: Draw, raw: Any) -> Any:
        """The reference of a sample, moved as the sample itself is."""
        assert domain.references is not None
        found = domain.references.of(draw.index)
        if found.shape != raw.shape:
            own, other = ("x".join(map(str, image.shape[-2:])) for image in (raw, found))
            raise UserError(f"{domain.id(draw.index)} is {own} and its reference {other}: both must have one size")
        if self.augment is None:
            return found
        with self._random(draw, ""):
            return transform_sample(self.augment, found, None)[0]

    @contextmanager
    def _random(self, draw: Draw, view: str) -> Iterator[None]:
        """Within, torch's generator is a function of the sample, its pass and the view; after it, as it was."""
        key = f"{self.seed} {draw.index} {draw.cycle} {self.domains[draw.domain].name!r} {view!r}"
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little"))
        try:
            yield
        finally:
            generator.set_state(state)


class _Samples(Sequence[Sample]):
    def __init__(self, data: JointDataset, draws: Sequence[Draw]) -> None:
        self.data, self.draws = data, draws

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: Any) -> Any:
        return self.data[self.draws[index]]
