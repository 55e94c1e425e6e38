"""Which samples are in which split: a function of a sample's name and of ``split_seed`` alone.

Neither the run's seed nor which other samples there are has a part in it.
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Literal

from dafw.data.roles import Split
from dafw.errors import UserError, choose

Protocol = Literal["shares", "domainbed"]
PROTOCOLS = ("shares", "domainbed")
SHARES = (0.8, 0.1, 0.1)
#: What DomainBed calls the "in" split of a domain; the rest is its "out" split.
INSIDE = 0.8


def place(name: str, seed: int = 0) -> float:
    """Where a sample stands among all, in [0, 1): equally likely anywhere, and elsewhere for each seed."""
    text = unicodedata.normalize("NFC", name if seed == 0 else f"{seed}\0{name}")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def hashed_split(path: str, shares: Sequence[float], seed: int = 0) -> Split:
    """The split of one sample, from its name alone.

    >>> hashed_split("amazon/mug/frame_0001.jpg", (0.8, 0.1, 0.1))
    'train'
    """
    where = place(path, seed)
    if where < shares[0]:
        return "train"
    return "val" if where < shares[0] + shares[1] else "test"


def in_domainbed_split(name: str, split: Split, *, reported: bool, seed: int = 0) -> bool:
    """Whether DomainBed's protocol has a sample in a split (Gulrajani & Lopez-Paz, https://arxiv.org/abs/2007.01434).

    Of every domain 80 % are "in" and 20 % "out". A source trains on the former; the latter are its validation and, for
    want of more, its test split. A target is reported on what is "in" there, which an adaptation method may train on
    without labels, and an oracle selects on what is "out".

    Args:
        name: the sample's stable name.
        split: the split asked for.
        reported: whether the sample's domain is a target whose labels train nothing.
        seed: another seed is another division. DomainBed draws one for each of its three trials.
    """
    inside = place(name, seed) < INSIDE
    return inside if split == "train" or (reported and split == "test") else not inside


def check_protocol(protocol: str, seed: int) -> Protocol:
    """The protocol, if it is one.

    Raises:
        UserError: if it is none, or the seed is negative.
    """
    choose("protocol", protocol, PROTOCOLS)
    if seed < 0:
        raise UserError(f"data.split_seed must be at least 0, not {seed}")
    return "domainbed" if protocol == "domainbed" else "shares"
