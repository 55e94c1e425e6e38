"""Assigns samples to splits: a function of a sample's name and of ``split_seed`` alone.

Neither the run's seed nor the other samples have an influence.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dafw.data.domain import Domain
from dafw.data.roles import Split
from dafw.errors import UserError, choose

Protocol = Literal["shares", "domainbed", "office"]
PROTOCOLS: tuple[Protocol, ...] = ("shares", "domainbed", "office")
SHARES = (0.8, 0.1, 0.1)
#: Share of a domain in DomainBed's "in" split; the rest is its "out" split.
INSIDE = 0.8
_SPLITS: tuple[Split, ...] = ("train", "val", "test")


def place(name: str, seed: int = 0) -> float:
    """A sample's place in [0, 1): uniformly distributed, and another one for each seed."""
    text = unicodedata.normalize("NFC", name if seed == 0 else f"{seed}\0{name}")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def places(names: Iterable[str], seed: int = 0) -> NDArray[np.float64]:
    """The place of each sample, (n,)."""
    return np.fromiter((place(name, seed) for name in names), np.float64)


def hashed_split(path: str, shares: Sequence[float], seed: int = 0) -> Split:
    """The split of one sample, decided by its name alone.

    >>> hashed_split("amazon/mug/frame_0001.jpg", (0.8, 0.1, 0.1))
    'train'
    """
    return _SPLITS[int(_by_shares(place(path, seed), shares))]


def in_shares(where: NDArray[np.float64], split: Split, shares: Sequence[float]) -> NDArray[np.bool_]:
    """Which samples are in a split, by their places: (n,) -> (n,)."""
    found: NDArray[np.bool_] = _by_shares(where, shares) == _SPLITS.index(split)
    return found


def _by_shares(where: Any, shares: Sequence[float]) -> Any:
    """The number of the split at each place."""
    return np.searchsorted([shares[0], shares[0] + shares[1]], where, side="right")


def in_domainbed_split(name: str, split: Split, *, reported: bool, seed: int = 0) -> bool:
    """Whether a sample is in a split by DomainBed's protocol, decided by its name alone; see :func:`in_domainbed`.

    Args:
        name: the sample's stable name.
        split: the split asked for.
        reported: whether the sample's domain is a target and its labels train nothing.
        seed: each seed gives another division. DomainBed draws one for each of its three trials.
    """
    return bool(in_domainbed(np.float64(place(name, seed)), split, reported=reported))


def in_domainbed(where: Any, split: Split, *, reported: bool) -> Any:
    """Which samples are in a split by DomainBed's protocol (Gulrajani & Lopez-Paz, https://arxiv.org/abs/2007.01434).

    80 % of every domain are "in" and 20 % are "out". A source trains on its "in" part. Its "out" part is its validation
    split and, since there is no third part, its test split too. A target is reported on its "in" part, on which an
    adaptation method may train without labels. An oracle selects on its "out" part.

    Args:
        where: the samples' places: one, or (n,).
        split: the split asked for.
        reported: whether the samples' domain is a target and its labels train nothing.

    Returns:
        Whether each is in the split, in the shape of ``where``.
    """
    inside = where < INSIDE
    return inside if split == "train" or (reported and split == "test") else ~inside


def in_office(where: NDArray[np.float64], split: Split, shares: Sequence[float], *, target: bool) -> NDArray[np.bool_]:
    """Which samples are in a split by the protocol of the Office papers, in which everything trains: (n,) -> (n,).

    A source's validation and test splits are shares of what it trains on. A target is tested on all of its samples, and
    its validation split is a share of them.

    Args:
        where: the samples' places, (n,).
        split: the split asked for.
        shares: of training, validation and test; that of training has no influence.
        target: whether the samples' domain is a target.
    """
    everything = split == "train" or (target and split == "test")
    return np.ones(len(where), np.bool_) if everything else in_shares(where, split, shares)


def in_protocol(
    protocol: Protocol,
    where: NDArray[np.float64],
    split: Split,
    shares: Sequence[float],
    *,
    target: bool,
    reported: bool,
) -> NDArray[np.bool_]:
    """Which samples of a domain are in a split by a protocol: (n,) -> (n,).

    Args:
        protocol: its name.
        where: the samples' places.
        split: the split asked for.
        shares: of training, validation and test.
        target: whether the samples' domain is a target.
        reported: whether, besides, its labels train nothing.
    """
    if protocol == "office":
        return in_office(where, split, shares, target=target)
    if protocol == "domainbed":
        return in_domainbed(where, split, reported=reported)  # type: ignore[no-any-return]
    return in_shares(where, split, shares)


def check_shares(shares: Sequence[float]) -> tuple[float, float, float]:
    """The shares of training, validation and test.

    Raises:
        UserError: if they are not three, or do not sum to 1.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"data.split must be three shares that sum to 1, not {list(shares)}")
    return shares[0], shares[1], shares[2]


def check_protocol(protocol: str, seed: int, known: tuple[Protocol, ...] = PROTOCOLS) -> Protocol:
    """Returns the protocol if it is valid.

    Args:
        protocol: its name.
        seed: number of the division.
        known: the protocols that the data has.

    Raises:
        UserError: if it is unknown, or the seed is negative.
    """
    choose("protocol", protocol, known)
    if seed < 0:
        raise UserError(f"data.split_seed must be at least 0, not {seed}")
    return next(one for one in known if one == protocol)


def hold_out(domain: Domain, share: float) -> tuple[Domain, Domain]:
    """A domain in two that share no sample: the rest, and ``share`` of it, chosen by a hash of the samples' names.

    Their order, which may be that of the classes, has no part in it.
    """
    marks = [blake2b(domain.id(index).encode(), digest_size=8).digest() for index in range(len(domain))]
    order = sorted(range(len(domain)), key=marks.__getitem__)
    count = int(len(domain) * share)
    rest, held = (domain.subset(sorted(part)) for part in (order[count:], order[:count]))
    return rest, replace(held, name=f"{domain.name}/held-out")


def only_one(targets: Sequence[Domain], name: str, seed: int, count: int) -> Domain:
    """One sample of a target, as often as a batch needs it.

    Args:
        targets: the targets' training samples.
        name: the sample's; empty: one that the seed draws.
        seed: of the run.
        count: number of rows.

    Raises:
        UserError: for several targets, or if there is no such sample.
    """
    if len(targets) != 1:
        raise UserError(f"one image of one target trains, and there are {len(targets)} targets: give one data.target")
    (domain,) = targets
    ids = [domain.id(index) for index in range(len(domain))]
    if name:
        index = ids.index(choose(f"training image of {domain.name}", name, ids))
    else:
        index = int(np.random.default_rng([seed, len(ids)]).integers(len(ids)))
    return domain.subset([index] * count)
