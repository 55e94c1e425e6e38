"""Metrics of several authors in one collection: each gets the arguments that its ``update`` names."""

from collections.abc import Iterable, Mapping
from inspect import Parameter
from typing import Any
from weakref import WeakKeyDictionary

from torchmetrics import Metric, MetricCollection

from dafw.errors import UserError

TORCHMETRICS = ("preds", "target")
"""The arguments that the metrics of torchmetrics take. A wrapper, which passes anything on, gets these."""
_of_collection: "WeakKeyDictionary[MetricCollection, frozenset[str]]" = WeakKeyDictionary()
"""The arguments that the metrics of a collection name."""


def update_metrics(metrics: MetricCollection, given: Mapping[str, Any]) -> None:
    """Updates each metric with the arguments that it names. It reads their signatures once for each collection.

    Args:
        metrics: what to update.
        given: the arguments by name.
    """
    named = _of_collection.get(metrics)
    if named is None:
        each = metrics.values(copy_state=False)
        named = _of_collection[metrics] = frozenset(name for one in each for name in (_named(one) or TORCHMETRICS))
    metrics.update(**{name: value for name, value in given.items() if name in named})


def check_arguments(metrics: MetricCollection, names: Iterable[str]) -> None:
    """Compares the arguments that metrics need with those that there are.

    Args:
        metrics: newly made.
        names: of the arguments that there are.

    Raises:
        UserError: if a metric needs another one.
    """
    known = list(names)
    for key, metric in metrics.items(copy_state=False):
        if other := [name for name in _named(metric, needed=True) if name not in known]:
            raise UserError(
                f"the metric {key} ({type(metric).__name__}) needs {', '.join(other)} in its update, which knows "
                f"{', '.join(known)}"
            )


def _named(metric: Metric, needed: bool = False) -> list[str]:
    """The arguments that ``update`` names, or those of them that have no default."""
    free = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    parameters = metric._update_signature.parameters.values()
    return [one.name for one in parameters if one.kind not in free and not (needed and one.default is not one.empty)]
