"""``dafw data labels``: reads every label that a configuration trains or tests on, and names the wrong ones."""

from collections.abc import Iterator, Sequence

from dafw.data.manifest import SPLITS
from dafw.escape import terminal

MOST = 20
"""Sentences that are printed for one split of one domain."""


def main(arguments: Sequence[str]) -> int:
    """Carries out ``dafw data labels``.

    Args:
        arguments: those of ``dafw fit``.

    Returns:
        0; 1 if a label is wrong.

    Raises:
        UserError: for a mistake in the arguments.
    """
    from dafw.run.config import parse

    cli = parse(list(arguments))
    problem, data = cli.model.problem, cli.datamodule
    data.prepare_data()
    wrong = 0
    for name in dict.fromkeys((*data.source, *data.target)):
        for split in SPLITS:
            domain = data.domain(name, split)
            found = problem.wrong_samples(domain, data.num_classes + data.has_unknown)
            wrong += len(found)
            state = "no labels" if domain.labels is None else f"{len(found)} wrong" if found else "right"
            print(terminal(f"{name}, {split}: {len(domain)} samples, {state}"))
            for sentence in shown(found):
                print(terminal(f"  {sentence}"))
    print(f"{wrong} wrong labels" if wrong else "no label is wrong")
    return 1 if wrong else 0


def shown(found: Sequence[str]) -> Iterator[str]:
    """The sentences that are printed: at most :data:`MOST`, then how many there are beside them."""
    yield from found[:MOST]
    if len(found) > MOST:
        yield f"and {len(found) - MOST} more"
