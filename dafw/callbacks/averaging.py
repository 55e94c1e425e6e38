"""Which callbacks leave a run with weights that none of its validations is of."""

from collections.abc import Iterable

from pytorch_lightning.callbacks import Callback, StochasticWeightAveraging


def averaging(callbacks: Iterable[Callback]) -> list[str]:
    """The names of those that put an average over training in the place of the weights after the last validation.

    These are what says so with ``averages_weights`` (:class:`~dafw.callbacks.swad.SWAD`) and Lightning's
    ``StochasticWeightAveraging``. Lightning's ``WeightAveraging`` and ``EMAWeightAveraging`` are not: they lend the
    average to every validation too.
    """
    return [
        type(callback).__name__
        for callback in callbacks
        if getattr(callback, "averages_weights", False) or isinstance(callback, StochasticWeightAveraging)
    ]
