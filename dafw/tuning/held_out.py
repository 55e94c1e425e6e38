"""The objective of a search for test-time methods: what they serve on labelled domains that are no targets."""

from collections.abc import Sequence
from typing import Any

from dafw.errors import UserError, choose

OBJECTIVE = "held_out"
"""Name of the objective: the metric of what was served, the mean over the held-out domains."""


def held_out_domains(data: Any, given: Sequence[str]) -> list[str]:
    """The domains by whose labels the settings of a test-time method are chosen.

    Args:
        data: the datamodule of the run whose settings are searched, with its targets.
        given: their names; without any, the corruptions that no benchmark scores
            (:data:`~dafw.data.corruptions.HELD_OUT`), at the severities of the targets.

    Raises:
        UserError: for an unknown domain, for one that is a target, or if there are none.
    """
    from dafw.data.corruptions import HELD_OUT  # imports torch

    severities = sorted({name.rpartition("_")[2] for name in data.target})
    usual = [f"{kind}_{severity}" for severity in severities for kind in HELD_OUT]
    names = list(given) or [name for name in usual if name in data.domain_names]
    if not names:
        raise UserError(
            "--objective held_out needs labelled domains that are no targets, and this data has no held-out "
            "corruptions: name some with --held-out"
        )
    for name in names:
        choose("domain of --held-out", name, data.domain_names)
        if name in data.target:
            raise UserError(
                f"{name} is a target, and to choose settings by its labels is a leak: give other domains to --held-out"
            )
    return names
