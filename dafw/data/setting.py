"""What a method may see, and what it asks of the data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from dafw.errors import UserError


@dataclass(frozen=True)
class Setting:
    """What a method may see of source and target. Each setting is one object; code asks it and never compares names.

    No setting sees a label of the target in training or selection.

    Args:
        name: what results and tables call it.
        sees_source: labelled source samples train the model, and the source's other splits are evaluated.
        sees_target: samples of the target enter training, without their labels.
        starts_from_model: the method starts from a trained model.
        streams_target: training passes once over the targets' test splits, as a stream without labels.

    Raises:
        ValueError: if the setting streams the target and sees the source too, or does not see the target.
    """

    name: str
    sees_source: bool = True
    sees_target: bool = True
    starts_from_model: bool = False
    streams_target: bool = False

    def __post_init__(self) -> None:
        if self.streams_target and (self.sees_source or not self.sees_target):
            raise ValueError("a setting that streams the target sees the target, and no source")


class Balanced(NamedTuple):
    """Extra rows of a batch, drawn class by class.

    Each batch holds ``classes * per_class`` rows of the source by label behind its random ones, and as many rows of the
    target by pseudo-label behind its random ones, over all ranks.

    Attributes:
        classes: number C of classes.
        per_class: number P of rows of each class.
        target_labels: returns, for each target, the pseudo-labels (n,) of its training samples on the host, -1 for
            none. All ranks call it each time that an epoch's batches start to be drawn. Its answer must be a function
            of the method's state.
    """

    classes: int
    per_class: int
    target_labels: Callable[[], list[Tensor]]


class RareClasses(NamedTuple):
    """Source images drawn by the classes of their pixels, rare ones more often.

    Attributes:
        temperature: T: a class is drawn with a probability proportional to exp((1 - f) / T), where f is its share of
            the source's labelled pixels.
        least_pixels: an image is drawn for a class if it has as many pixels of it; if none has, any pixel is enough.
    """

    temperature: float
    least_pixels: int


def _no_steps() -> int:
    return 0


@dataclass(frozen=True)
class DataRequest:
    """What a method asks of the data. A datamodule answers it.

    Args:
        setting: what the method may see.
        views: names of the extra augmented views of each input.
        references: each image of the targets comes with its reference, an image of the same place in another condition,
            as the view ``reference``.
        maps: views start from the augmented input and come with the affine map of what they moved.
        target_image: the id of the one sample of the target that training reads; empty: one that the seed draws;
            ``None``: training reads all of them.
        held_out: share of each target's training samples that forms a stream of its own.
        least_rows: samples of all sources together, and of all targets together, that a batch must hold, over all
            ranks.
        least_rows_of_domain: samples of each domain that a batch must hold, over all ranks.
        equal_rows: a batch must hold as many samples of the targets as of the sources.
        balanced: class-balanced rows that each batch holds beside the random ones.
        rare_classes: how source images are drawn by the classes of their pixels; ``None``: each as often as the others.
        mixed_evaluation: evaluation batches come in a random order, since a prediction depends on its batch.
        evidence: validations need features of source training samples, for validators that no label of the target
            decides.
        steps_done: returns the number of batches trained so far.
        asker: who asks, in words.
    """

    setting: Setting = Setting("adaptation")
    views: tuple[str, ...] = ()
    references: bool = False
    maps: bool = False
    target_image: str | None = None
    held_out: float = 0.0
    least_rows: int = 1
    least_rows_of_domain: int = 1
    equal_rows: bool = False
    balanced: Balanced | None = None
    rare_classes: RareClasses | None = None
    mixed_evaluation: bool = False
    evidence: bool = True
    steps_done: Callable[[], int] = _no_steps
    asker: str = "the method"

    @classmethod
    def of(cls, module: Any) -> "DataRequest":
        """The request of a module in training; the default one for a module that makes none."""
        return module.data_request if isinstance(module, AsksForData) else cls()

    def check_rows(self, sources: tuple[int, int], targets: tuple[int, int]) -> None:
        """Checks that a batch holds the samples that are asked for.

        Args:
            sources: samples of each labelled domain over all ranks (``data.batch_size``), and number of these domains.
            targets: the same of the unlabelled targets (``data.target_batch_size``).

        Raises:
            UserError: naming the argument of the datamodule, and what it must be.
        """
        for key, (count, domains) in (("batch_size", sources), ("target_batch_size", targets)):
            least = max(self.least_rows_of_domain, -(-self.least_rows // domains)) if domains else 0
            if count < least:
                raise UserError(
                    f"{self.asker} needs {least} samples of each domain in a batch: data.{key} must be at least "
                    f"{least}, not {count}"
                )
        ours, theirs = (count * domains for count, domains in (sources, targets))
        if self.equal_rows and ours != theirs:
            raise UserError(
                f"{self.asker}, as it is configured, needs as many target as source samples in a batch, not {theirs} "
                f"and {ours}: set data.target_batch_size"
            )


@runtime_checkable
class AsksForData(Protocol):
    """A module that says what it asks of the data."""

    @property
    def data_request(self) -> DataRequest:
        """What it asks."""
