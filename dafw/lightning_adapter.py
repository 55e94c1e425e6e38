"""Every place where dafw replaces a part of Lightning or leans on how Lightning works inside.

Each part has its reason in its docstring. Where a version of Lightning lacks what a part replaces, the part does
nothing and Lightning goes its own way. ``experiments/benchmarks/lightning_parts.py`` measures what each one saves.
"""

import copy
import inspect
import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import yaml
from pytorch_lightning.profilers import PassThroughProfiler
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dafw.errors import UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl

    Base = pl.LightningModule
else:
    Base = object


# ---- a cheaper training step


def make_lean(trainer: Any) -> None:
    """Puts the three parts of the training loop in place that make a step cheaper. Called when training starts."""
    keep_loss_as_it_is(trainer)
    read_signature_once(trainer)
    profile_nothing(trainer)


def keep_loss_as_it_is(trainer: Any) -> None:
    """Spares the division of the loss by 1, its copy and the backward pass of the division: three operations a step.

    Lightning divides for the accumulation of gradients, and copies since its own scaling may write into the loss.
    Nothing here writes into it. A loss that is accumulated over several batches is divided as Lightning does it.
    """
    automatic = _training_loop(trainer, "automatic_optimization")
    own = getattr(type(automatic), "output_result_cls", None)
    if isinstance(own, type) and hasattr(own, "from_training_step_output") and hasattr(own, "_clone_loss"):
        automatic.output_result_cls = _plain_result(own)


def _plain_result(own: Any) -> Any:
    class PlainResult(own):  # type: ignore[misc]
        """The loss of a step, neither divided by one nor copied."""

        def _clone_loss(self) -> None:
            self.loss = None if self.closure_loss is None else self.closure_loss.detach()

        @classmethod
        def from_training_step_output(cls, training_step_output: Any, normalize: int = 1) -> Any:
            """As Lightning's, with a shortcut where there is nothing to divide."""
            if normalize == 1 and isinstance(training_step_output, Tensor):
                return cls(training_step_output)
            return super().from_training_step_output(training_step_output, normalize)

    return PlainResult


def read_signature_once(trainer: Any) -> None:
    """Reads the signature of ``training_step`` once and not in every step.

    Lightning asks ``inspect`` before each step whether the method takes ``batch_idx``. The answer cannot change while
    a method trains.
    """
    loop = _training_loop(trainer)
    own = getattr(type(loop), "_build_kwargs", None)
    if own is None or list(inspect.signature(own).parameters) != ["self", "kwargs", "batch", "batch_idx"]:
        return
    names = list(own(loop, OrderedDict(), None, 0))
    loop._build_kwargs = lambda kwargs, batch, batch_idx: OrderedDict(zip(names, (batch, batch_idx), strict=False))


class NoProfiler(PassThroughProfiler):
    """Lightning's profiler that measures nothing, without a new context for each place that it does not measure."""

    nothing: AbstractContextManager[None] = nullcontext()

    def profile(self, action_name: str) -> Any:
        """Nothing to enter."""
        return self.nothing


def profile_nothing(trainer: Any) -> None:
    """Spares a generator around every hook, some thirty in a step. Leaves a profiler alone that measures something."""
    if type(getattr(trainer, "profiler", None)) is PassThroughProfiler:
        trainer.profiler = NoProfiler()


class QuickHookNames(Base):
    """Notes the running hook's name without the detour through ``torch.nn.Module``.

    Lightning sets ``_current_fx_name`` before and after every hook, some forty times in a step, and each time
    ``torch.nn.Module`` searches the module's parameters and buffers for that name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """As any module's, with a shortcut for that one name."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


# ---- several ranks


def leave_buffers_alone(trainer: Any) -> None:
    """Keeps ``DistributedDataParallel`` from sending rank 0's buffers to all ranks before each forward pass.

    The buffers agree already, since batch statistics are exact over all ranks. This spares one broadcast for each type
    of buffer in every step. Called when a fit starts, once the strategy has wrapped the method.
    """
    wrapped = getattr(trainer.strategy, "model", None)
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.broadcast_buffers = False


def agree_on_signals_ourselves(trainer: Any) -> None:
    """Keeps Lightning's ranks from asking each other before each batch whether rank 0 got a SIGTERM.

    Lightning's question is a broadcast and a read of the device at every batch, and ends the run without a checkpoint.
    :class:`dafw.callbacks.Stopping` asks every few steps, for a signal on any rank, and saves.
    """
    loop = _training_loop(trainer)
    if hasattr(type(loop), "_broadcast_sigterm_tensor"):
        loop._broadcast_sigterm_tensor = lambda: None


# ---- going on from a checkpoint


@contextmanager
def restoring(path: Any) -> Iterator[None]:
    """Says in one sentence that Lightning could not restore what a checkpoint holds.

    Lightning restores weights, loops, optimisers and callbacks in one private part, and what does not fit ends there in
    many kinds of errors. An error from elsewhere stays as it is.

    Args:
        path: the checkpoint; ``None`` if there is none.

    Raises:
        UserError: naming the checkpoint.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        frames = traceback.walk_tb(error.__traceback__)
        if path is None or all("checkpoint_connector" not in frame.f_code.co_filename for frame, _ in frames):
            raise
        said = (str(error).splitlines() or [""])[:2][-1].strip()
        raise UserError(f"{path} does not fit this configuration ({type(error).__name__}: {said})") from error


# ---- outside the loops


def batch_on_device(trainer: Any, method: Any, batch: Any) -> Any:
    """A batch of the training loader as a training step gets it: converted, and moved to the trainer's device.

    For a pass over training batches that is no training step. Lightning has no public function for it. These are the
    public hooks that its training loop calls, in the same order.
    """
    batch = trainer.precision_plugin.convert_input(batch)
    data = trainer.datamodule
    owner = data if data is not None and is_overridden("on_before_batch_transfer", data) else method
    batch = owner.on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def log_and_return(method: Any, values: Mapping[str, float], step: int) -> None:
    """Logs the values of an evaluation so that ``Trainer.test`` and ``Trainer.validate`` return them.

    Lightning returns what it sends to its loggers. It would send it at its own count of steps, and warns of each value
    if there is no logger. Doubles keep every digit.

    Args:
        method: in an evaluation that is no part of a fit.
        values: by name, the same on all ranks.
        step: the step at which the loggers note them.
    """
    connector: Any = getattr(method.trainer, "_logger_connector", None)
    if hasattr(connector, "log_eval_end_metrics") and hasattr(connector, "log_metrics"):

        def log_at_step(metrics: Any) -> None:
            del connector.log_eval_end_metrics
            connector.log_metrics(metrics, step=step)

        connector.log_eval_end_metrics = log_at_step
    doubles = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*no logger configured.*")
        method.log_dict(doubles, sync_dist=False, rank_zero_only=False, logger=True)


def connect(trainer: Any, method: Any, datamodule: Any) -> bool:
    """Makes the three know each other as in a fit, without one: the method decides which data the datamodule loads.

    Returns:
        Whether that worked. If not, only a fit can tell whether the data can be loaded.
    """
    connect_strategy = getattr(trainer.strategy, "connect", None)
    if connect_strategy is None:
        return False
    connect_strategy(method)
    datamodule.trainer = trainer
    return trainer.lightning_module is method


def has_trainer(method: Any) -> bool:
    """Whether a trainer holds the method. Its attribute ``trainer`` raises where there is none."""
    try:
        return method.trainer is not None
    except RuntimeError:
        return False


def trains_in_a_copy(trainer: Any) -> bool:
    """Whether the trainer starts the training in copies of this process, which send back nothing but weights."""
    return getattr(trainer.strategy, "_start_method", "popen") != "popen"


def _training_loop(trainer: Any, *path: str) -> Any:
    """The loop over the batches of an epoch, or one of its parts; ``None`` where a version of Lightning lacks it."""
    found: Any = trainer
    for name in ("fit_loop", "epoch_loop", *path):
        found = getattr(found, name, None)
    return found


# ---- the configuration of a command


def plain_config(cli: Any) -> dict[str, Any]:
    """The whole configuration of a command as plain values, which the caller may change.

    Lightning keeps it in ``config_dump`` for the classes that it makes. To compute it takes a sixth of the time of a
    short command, so it is computed once.
    """
    if vars(cli).get("config_dump") is None:
        cli.config_dump = yaml.safe_load(cli.parser.dump(cli.config, skip_none=False, skip_link_targets=False))
    found: dict[str, Any] = copy.deepcopy(cli.config_dump)
    return found
