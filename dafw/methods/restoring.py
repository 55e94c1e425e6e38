"""The checkpoints of a method: what they hold beside the weights, and how they make the method again."""

from typing import TYPE_CHECKING, Any, Self, cast

from dafw.data.served import ServedDomains
from dafw.errors import UserError
from dafw.nn.teacher import Teacher
from dafw.nn.weights import without_weights
from dafw.recording import Recorded, build, describe

if TYPE_CHECKING:
    import pytorch_lightning as pl

    Base = pl.LightningModule
else:
    Base = object


class Restoring(Base):
    """The part of every method that goes into checkpoints."""

    steps_started: int
    history: list[dict[str, Any]]
    trained_on: tuple[str, ...]
    weight_average: Teacher | None

    if TYPE_CHECKING:

        @property
        def datamodule(self) -> ServedDomains | None: ...  # noqa: D102
        def record_state(self) -> dict[str, Any]: ...  # noqa: D102
        def load_record_state(self, state: Any) -> None: ...  # noqa: D102

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to make the method again and to go on: plain values only."""
        data = self.datamodule
        checkpoint["dafw"] = {
            "method": describe(cast(Recorded, self)),
            "steps": self.steps_started,
            "history": self.history,
            "record": self.record_state(),
            "labelled": sorted({*self.trained_on, *(() if data is None else data.labelled)}),
            "classes": [] if data is None else list(data.known_names),
            "eval_network": "network." if self.weight_average is None else "weight_average.module.",
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on where the checkpoint was written."""
        self.steps_started = checkpoint["dafw"]["steps"]
        self.history = list(checkpoint["dafw"]["history"])
        self.load_record_state(checkpoint["dafw"]["record"])

    @classmethod
    def load(cls, path: str, **changes: Any) -> Self:
        """The method that a checkpoint holds, made without its constructor call.

        Args:
            path: a checkpoint that this project wrote.
            changes: constructor arguments to replace.

        Raises:
            UserError: if the file is no such checkpoint, or holds another method than ``cls``.
        """
        from dafw.checkpoints import read_checkpoint

        checkpoint = read_checkpoint(path)
        description = checkpoint["dafw"]["method"]
        with without_weights():
            method = build({**description, "init_args": {**description["init_args"], **changes}})
        if not isinstance(method, cls):
            raise UserError(f"{path} holds a {type(method).__name__}, not a {cls.__name__}")
        method.load_state_dict(checkpoint["state_dict"])
        method.on_load_checkpoint(checkpoint)
        return method.eval()
