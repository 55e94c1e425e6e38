"""The record of training steps: terms stay on the device until a flush reads them all at once."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dafw.data.batch import Batch
from dafw.data.served import ServedDomains
from dafw.errors import NonFiniteLoss

if TYPE_CHECKING:
    import pytorch_lightning as pl

    Base = pl.LightningModule
else:
    Base = object


class TrainedStep(NamedTuple):
    """One training step; tensors are on the device.

    Attributes:
        step: its number, from 0.
        domain: (N,) int64, the domain of each row.
        index: (N,) int64, the position of each row in its domain.
        terms: the terms of its loss.
        guarded: further values that must be finite.
        diagnostics: further values to log.
    """

    step: int
    domain: Tensor
    index: Tensor  # type: ignore[assignment]
    terms: Mapping[str, Tensor]
    guarded: Mapping[str, Tensor]
    diagnostics: Mapping[str, Tensor]


class StepRecord(Base):
    """Guard and log of the training steps, without a host read in the step.

    Steps wait in ``window``. :meth:`flush` moves them to the host in one transfer and checks them. It happens every
    ``log_every_n_steps`` steps and before every checkpoint, so that no checkpoint holds what followed a NaN.
    """

    steps_started: int
    window: list[TrainedStep]
    unlogged: list[dict[str, float]]
    last_terms: dict[str, float]
    _diagnostics: dict[str, Tensor]
    #: Whether this pass computes the step's loss once more at other weights. It is no step of its own, but its terms
    #: must be finite.
    repeated_pass: bool = False

    def start_record(self) -> None:
        """Called by the constructor."""
        self.window, self.unlogged, self.last_terms, self._diagnostics = [], [], {}, {}

    if TYPE_CHECKING:

        @property
        def datamodule(self) -> ServedDomains | None: ...  # noqa: D102

    @property
    def logs_this_step(self) -> bool:
        """Whether this step's values are logged: the place for diagnostics that cost something."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return self.steps_started % every == 0

    def diagnose(self, name: str, value: Tensor | float) -> None:
        """Adds a diagnostic to this step's record. Ask :attr:`logs_this_step` first: other steps need none."""
        self._diagnostics[name] = torch.as_tensor(value, device=self.device).detach()

    def record_step(
        self, batch: Batch, terms: Mapping[str, Tensor], guarded: Mapping[str, Tensor] | None = None
    ) -> None:
        """Adds this step to the record.

        Args:
            batch: its batch.
            terms: the terms of its loss.
            guarded: further values that must be finite, and are not part of the loss.
        """
        kept, also = ({n: t.detach() for n, t in values.items()} for values in (terms, guarded or {}))
        if self.repeated_pass:
            last = self.window[-1]
            self.window[-1] = last._replace(guarded={**last.guarded, **{f"{n}_aside": t for n, t in kept.items()}})
            self._diagnostics = {}
            return
        rows = batch.domain, batch.index
        self.window.append(TrainedStep(self.steps_started - 1, *rows, kept, also, self._diagnostics))
        self._diagnostics = {}

    def flush(self) -> None:
        """Reads the steps since the last flush.

        Raises:
            NonFiniteLoss: naming the first term that was not finite, its step and its samples.
        """
        records, self.window = self.window, []
        if not records:
            return
        values = self._read([{**record.terms, **record.guarded} for record in records])
        self._read_diagnostics(records)
        for record, row in zip(records, values, strict=True):
            for name, value in row.items():
                if not math.isfinite(value):
                    raise NonFiniteLoss(self._failure(record, name, value))
        self.unlogged += [{n: row[n] for n in record.terms} for record, row in zip(records, values, strict=True)]

    def log_window(self) -> None:
        """Flushes, and logs the means of the terms since the last time and the latest diagnostics."""
        self.flush()
        self.last_terms = self._means()
        self.unlogged = []
        rates = {"rate/lr": self.trainer.optimizers[0].param_groups[-1]["lr"]}
        self.write({f"train/{name}": value for name, value in self.last_terms.items()} | rates | self._latest)
        self._latest = {}

    def recent_terms(self) -> dict[str, float]:
        """The means of the terms that were read since the last time they were logged, or else those logged last.

        Their sum is ``loss``. Empty before the first step was read.
        """
        return self._means() if self.unlogged else self.last_terms

    def _means(self) -> dict[str, float]:
        names = sorted({name for row in self.unlogged for name in row})
        means = {n: sum(row.get(n, 0.0) for row in self.unlogged) / len(self.unlogged) for n in names}
        return {**means, "loss": sum(means.values())}

    _latest: dict[str, float] = {}

    def _read(self, rows: list[Mapping[str, Tensor]]) -> list[dict[str, float]]:
        """Scalars on the device, rows of them, to the host in one transfer; averaged over the ranks."""
        scalars = [value for row in rows for value in row.values()]
        if not scalars:
            return [{} for _ in rows]
        if len({value.dtype for value in scalars}) > 1:
            scalars = [value.double() for value in scalars]
        values = torch.stack(scalars).double()
        if self.trainer.world_size > 1:
            values = self.all_gather(values).mean(0)  # type: ignore[union-attr]
        numbers = iter(values.tolist())
        return [{name: next(numbers) for name in row} for row in rows]

    def _read_diagnostics(self, records: list[TrainedStep]) -> None:
        latest: dict[str, Tensor] = {}
        for record in records:
            latest |= record.diagnostics
        if latest:
            self._latest = {f"diagnostics/{name}": value for name, value in self._read([latest])[0].items()}

    def _failure(self, record: TrainedStep, term: str, value: float) -> str:
        keys = torch.stack([record.domain, record.index])
        if self.trainer.world_size > 1:
            keys = self.all_gather(keys).movedim(0, -1).flatten(1)  # type: ignore[union-attr]
        data = self.datamodule
        names = [f"{d}/{i}" if data is None else data.train_domains[d].id(i) for d, i in keys.T.tolist()]
        return f'the loss term "{term}" became {value} at step {record.step}; its batch held {", ".join(names)}'

    def write(self, values: Mapping[str, float]) -> None:
        """Sends values to every logger, at our own count of steps."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(values), step=self.steps_started)

    def record_state(self) -> dict[str, Any]:
        """The values that a checkpoint must hold for the log to go on as if nothing had happened."""
        return {"unlogged": self.unlogged, "latest": self._latest}

    def load_record_state(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`record_state`."""
        self.unlogged, self._latest = list(state["unlogged"]), dict(state["latest"])
