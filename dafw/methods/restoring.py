"""The checkpoints of a method: what they hold beside the weights, and how they make the method again."""

import os
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from pytorch_lightning.utilities.parsing import AttributeDict

from dafw.checkpoints import check_classes, check_samples, first_fault, read_checkpoint
from dafw.data.served import ServedDomains
from dafw.errors import UserError
from dafw.lightning_adapter import has_trainer
from dafw.nn.teacher import Teacher
from dafw.nn.weights import without_weights
from dafw.recording import Recorded, build, describable, describe

if TYPE_CHECKING:
    import pytorch_lightning as pl

    Base = pl.LightningModule
else:
    Base = object


class Restoring(Base):
    """The part of every method that goes into checkpoints."""

    steps_started: int
    fast_forms: dict[str, bool]
    history: list[dict[str, Any]]
    trained_on: tuple[str, ...]
    weight_average: Teacher | None
    #: Whether the data may be another than that which a checkpoint was trained on; their number of classes may not.
    accept_changed_data: bool = False
    _from_checkpoint: tuple[dict[str, Any], str] | None = None

    if TYPE_CHECKING:

        @property
        def datamodule(self) -> ServedDomains | None: ...  # noqa: D102
        @property
        def eval_network(self) -> Any: ...  # noqa: D102
        def record_state(self) -> dict[str, Any]: ...  # noqa: D102
        def load_record_state(self, state: Any) -> None: ...  # noqa: D102

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what is needed to make the method again and to go on: plain values only."""
        data = self.datamodule
        checkpoint["dafw"] = {
            "method": describe(cast(Recorded, self)),
            "steps": self.steps_started,
            "fast_forms": self.fast_forms,
            "history": self.history,
            "record": self.record_state(),
            "labelled": sorted({*self.trained_on, *(() if data is None else data.labelled)}),
            "classes": [] if data is None else list(data.known_names),
            "samples": {} if data is None else data.samples("fit"),
            "eval_network": self._served_prefix(),
        }

    def _served_prefix(self) -> str:
        """How the names of the weights of the network that is evaluated begin."""
        served = self.eval_network
        return next((f"{name}." for name, module in self.named_modules() if module is served), "network.")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on where the checkpoint was written.

        Raises:
            UserError: see :meth:`compare_data`.
        """
        if has_trainer(self):
            self.comes_from(checkpoint["dafw"], str(self.trainer.ckpt_path))
            self.compare_data(str(getattr(self.trainer.state.fn, "value", "fit")))
        self.steps_started = checkpoint["dafw"]["steps"]
        self.history = list(checkpoint["dafw"]["history"])
        self.trained_on = tuple(checkpoint["dafw"]["labelled"])
        self.load_record_state(checkpoint["dafw"]["record"])

    def comes_from(self, held: dict[str, Any], path: str) -> None:
        """Notes whose weights these are, until :meth:`compare_data` has compared the data.

        Args:
            held: what the checkpoint says beside its weights.
            path: its file.
        """
        self._from_checkpoint = held, path

    def compare_data(self, stage: str) -> None:
        """Compares the data at work with the data that the weights come from, once after they came.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``: the parts of the data that it serves are compared.

        Raises:
            UserError: saying what changed, unless :attr:`accept_changed_data` is true.
        """
        data = self.datamodule
        if self._from_checkpoint is not None and data is not None:
            (held, path), self._from_checkpoint = self._from_checkpoint, None
            check_classes(held, path, data.known_names, self.accept_changed_data)
            if not self.accept_changed_data:
                check_samples(held, path, data.samples(stage))

    @property
    def hparams(self) -> AttributeDict:
        """What the constructor was given, by name, as plain values. An object is its class path and its arguments."""
        return AttributeDict(describable(cast(Recorded, self)))

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, hparams_file: Any = None, *_: Any, **changes: Any
    ) -> Self:
        """As :meth:`load`, under the name that Lightning has for it.

        Args:
            checkpoint_path: the file.
            map_location: the device to move the method to; the CPU if ``None``.
            hparams_file: must be ``None``, since the checkpoint holds the arguments.
            changes: constructor arguments to replace.

        Raises:
            UserError: see :meth:`load`; for an open file, or a ``map_location`` that is no device.
        """
        for name in ("strict", "weights_only"):
            if changes.pop(name, True) is False:
                raise UserError(f"{name}=False is not taken: a checkpoint holds all weights of its method and no code")
        if hparams_file is not None:
            raise UserError("leave out hparams_file: the checkpoint holds the arguments of its method")
        if not isinstance(checkpoint_path, str | os.PathLike):
            raise UserError(f"checkpoint_path must be the path of a checkpoint, not a {type(checkpoint_path).__name__}")
        if not isinstance(map_location, str | torch.device | None):
            raise UserError(f'map_location must be a device, such as "cuda:0", not a {type(map_location).__name__}')
        method = cls.load(os.fspath(checkpoint_path), **changes)
        return method if map_location is None else method.to(map_location)

    @classmethod
    def load(cls, path: str, **changes: Any) -> Self:
        """The method that a checkpoint holds, made without its constructor call.

        The first evaluation compares its data with that which the method was trained on, see :meth:`compare_data`.

        Args:
            path: a checkpoint that this project wrote.
            changes: constructor arguments to replace.

        Raises:
            UserError: if the file is no such checkpoint, holds another method than ``cls``, names a class whose module
                the program has not imported, or holds other weights than its method has.
        """
        checkpoint = read_checkpoint(path)
        description = checkpoint["dafw"]["method"]
        with without_weights():
            method = build({**description, "init_args": {**description["init_args"], **changes}})
        if not isinstance(method, cls):
            raise UserError(f"{path} holds a {type(method).__name__}, not a {cls.__name__}")
        try:
            method.load_state_dict(checkpoint["state_dict"])
        except RuntimeError as error:
            raise UserError(f"{path} does not fit the method that it names: {first_fault(error)}") from error
        method.on_load_checkpoint(checkpoint)
        method.comes_from(checkpoint["dafw"], path)
        return method.eval()
