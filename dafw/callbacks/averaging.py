"""Names the callbacks that replace the final weights by an average that no validation has seen."""

from collections.abc import Iterable

from pytorch_lightning.callbacks import Callback, StochasticWeightAveraging


def averaging(callbacks: Iterable[Callback]) -> list[str]:
    """The class names of the callbacks that replace the weights by an average over training after the last validation.

    These are callbacks with the attribute ``averages_weights`` (:class:`~dafw.callbacks.swad.SWAD`) and Lightning's
    ``StochasticWeightAveraging``. Lightning's ``WeightAveraging`` and ``EMAWeightAveraging`` are not among them: they
    validate the average too.
    """
    return [
        type(callback).__name__
        for callback in callbacks
        if getattr(callback, "averages_weights", False) or isinstance(callback, StochasticWeightAveraging)
    ]
