"""The samples of domains in short, as runs keep them, and what changed since. It needs no torch."""

from collections.abc import Mapping, Sequence

Samples = list[int | str]
"""The number of samples of a domain, and a digest of them."""


def changed_parts(held: Mapping[str, Sequence[int | str]], now: Mapping[str, Sequence[int | str]]) -> dict[str, str]:
    """By what changed, as in ``the test samples of b``, how it did.

    Args:
        held: by ``<domain>/<part>``, the samples that a run was made from.
        now: those that the data has. A part that only one side knows is not compared.
    """
    found = {}
    for name, samples in now.items():
        then = held.get(name, samples)
        if list(then) != list(samples):
            domain, _, part = name.rpartition("/")
            how = "with other names or classes, or in another order"
            how = f"still {samples[0]}, {how}" if then[0] == samples[0] else f"{then[0]} then, {samples[0]} now"
            found[f"the {part} samples of {domain}"] = how
    return found


def changed_samples(
    held: Mapping[str, Sequence[int | str]], path: object, now: Mapping[str, Sequence[int | str]]
) -> str:
    """How the first domain whose samples changed did so, with the file that says ``held``; empty if none did."""
    for what, how in changed_parts(held, now).items():
        return f"{what} changed since {path}: {how}"
    return ""
