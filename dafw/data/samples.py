"""The samples of a domain in short, so that a run notices when its data changed."""

import hashlib

from dafw.data.domain import Domain
from dafw.samples import Samples


def summarise(domain: Domain) -> Samples:
    """The number of samples, and a digest (32 hexadecimal digits) of their names, their order and their classes.

    The content of a sample is not read. A sample without a name of its own is its position. A domain of 600,000 samples
    takes a fraction of a second.
    """
    found = hashlib.blake2b(digest_size=16)
    if domain.ids is not None:
        found.update("\0".join(map(str, domain.ids)).encode("utf-8", "surrogateescape"))
    classes = domain.classes
    if classes is not None:
        found.update(classes.astype("<i8").tobytes())
    return [len(domain), found.hexdigest()]
