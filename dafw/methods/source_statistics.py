"""Statistics of the source: what a method without a source computes once from its samples, in a file beside its run."""

import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.data.domain import Domain
from dafw.data.files import cache_dir, digest, making
from dafw.data.roles import Split
from dafw.data.samples import summarise
from dafw.data.served import ServedDomains
from dafw.errors import UserError, sentence
from dafw.files import replacing
from dafw.nn.layout import BatchLayout
from dafw.nn.modes import evaluation_mode
from dafw.problems import NetworkBase
from dafw.samples import Samples

if TYPE_CHECKING:
    import pytorch_lightning as pl

    Base = pl.LightningModule
else:
    Base = object

log = logging.getLogger(__name__)

Statistics = dict[str, Tensor]
FORM = 1
"""Part of the name of every file. Another number makes all of them anew."""


class UsesSource(Base):
    """The part of a method that starts from a model and needs statistics of the source that the model learned.

    Such statistics are named tensors, for example a Fisher information or the mean feature of each class. A method
    writes :meth:`take_from_source`, which fills its buffers from :meth:`source_statistics`. The class stands before the
    method's base: ``class EATA(UsesSource, TestTimeMethod)``.

    The tensors are computed once, from the start model and labelled samples of the source. They are kept in
    ``statistics/`` of the source model's run. The name of the file has a hash of the start model's weights, of the
    names, the order and the classes of the samples, of the settings and of the code of the function that computes them.
    If the file is there, the source is not needed.
    """

    network: NetworkBase
    layout: BatchLayout
    started_from: tuple[dict[str, Any], Path] | None
    #: The files that were read or written so far.
    statistics_files: Sequence[Path] = ()

    if TYPE_CHECKING:

        @property
        def data(self) -> ServedDomains: ...  # noqa: D102
        @property
        def steps_done(self) -> int: ...  # noqa: D102
        def check_start(self) -> None: ...  # noqa: D102

    @property
    def source_use(self) -> str:
        """What of the source the training uses; to be overridden where an argument decides."""
        return "statistics"

    def take_from_source(self) -> None:
        """Fills the method's buffers from the source. It is called once, before the first step of a training.

        A training that goes on has the buffers in its checkpoint.
        """
        raise NotImplementedError(f"{type(self).__name__} must define take_from_source()")

    def on_fit_start(self) -> None:
        """Takes what the method needs of the source; the base then sees the buffers as they are at the start.

        Raises:
            UserError: see :meth:`source_statistics`.
        """
        self.check_start()
        if not self.steps_done:
            self.take_from_source()
        super().on_fit_start()

    def source_statistics(
        self,
        kind: str,
        compute: Callable[[Iterable[Batch]], Statistics],
        *,
        split: Split = "train",
        count: int | None = None,
        batch_size: int = 64,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> Statistics:
        """Named tensors, read from their file, or computed from the source's samples and then written there.

        Args:
            kind: what they are, such as ``fisher``. It begins the file's name.
            compute: makes them of labelled batches on the method's device. The samples come without augmentation, in a
                random order that ``seed`` alone decides. Gradients are on. The method is in evaluation mode with the
                weights of the start model, which must stay as they are. Each process sees all samples, so nothing is
                gathered over ranks. torch's generator starts from ``seed``.
            split: which samples of the sources.
            count: use so many of them, or all if there are fewer; ``None`` for all.
            batch_size: samples a batch. The last batch may be smaller.
            seed: of the order of the samples and of torch's generator.
            settings: plain values that the tensors depend on besides, by name.

        Returns:
            The tensors on the method's device.

        Raises:
            UserError: if there is neither the file nor the source.
            ValueError: if ``compute`` changes the network.
        """
        weights = digest_of(self.network)
        known: dict[str, Any] = {"kind": kind, "split": split, "count": count, "batch_size": batch_size, "seed": seed}
        known |= {"settings": dict(settings or {}), "weights": weights, "code": _code(compute), "form": FORM}
        domains, lacking = self._source(split)
        samples = self._recorded(split) if domains is None else {one.name: _short(one, split) for one in domains}
        key = known | {"samples": samples}
        path = self.statistics_folder() / f"{kind}-{digest(key)[:16]}.safetensors"
        self.statistics_files = [*dict.fromkeys((*self.statistics_files, path))]
        found = _read(path)
        if found is None and domains is None:
            raise UserError(
                f"{type(self).__name__} needs statistics ({kind}) of the source that its start model learned, and there"
                f" is neither {path} nor the source ({lacking}): run dafw statistics on the source model's run, where"
                " its data is"
            )
        if found is None:
            assert domains is not None
            with _alone(path):
                found = _read(path)
                if found is None:
                    batches = self._batches(domains, count, batch_size, seed)
                    found = self._computed(compute, batches, seed)
                    if digest_of(self.network) != weights:
                        raise ValueError(f"the function that computes {kind} must leave the network as it is")
                    _write(path, found, key)
        return {name: tensor.to(self.device) for name, tensor in found.items()}

    def statistics_folder(self) -> Path:
        """The folder of the files: beside the checkpoint that the method starts from, or in the cache without one."""
        if self.started_from is None:
            return cache_dir() / "statistics"
        folder = self.started_from[1].parent
        return (folder.parent if folder.name == "checkpoints" else folder) / "statistics"

    def _source(self, split: Split) -> tuple[list[Domain] | None, str]:
        """The samples of the sources, or ``None`` and why they are not there."""
        try:
            return self.data.source_domains(split), ""
        except (UserError, OSError) as error:
            return None, sentence(error)

    def _recorded(self, split: Split) -> dict[str, Samples]:
        """By source its samples in short, as the start model's checkpoint recorded them."""
        held: dict[str, Any] = {} if self.started_from is None else self.started_from[0]
        part = "training" if split == "train" else split
        places = {name: f"{name}/{part}" for name in held.get("labelled", ())}
        return {name: held["samples"][place] for name, place in places.items() if place in held["samples"]}

    def _batches(self, domains: Sequence[Domain], count: int | None, batch_size: int, seed: int) -> Iterator[Batch]:
        for batch in self.data.shuffled_once(domains, count, batch_size, seed):
            yield batch.to(self.device)

    def _computed(
        self, compute: Callable[[Iterable[Batch]], Statistics], batches: Iterable[Batch], seed: int
    ) -> Statistics:
        with torch.random.fork_rng(), evaluation_mode(self), self.layout.temporarily(sync=False):
            torch.manual_seed(seed)
            found = compute(batches)
        self.zero_grad()
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}


def digest_of(module: nn.Module) -> str:
    """A hash of a module's weights and buffers with their names (32 hexadecimal digits)."""
    found = blake2b(digest_size=16)
    for name, tensor in module.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _short(domain: Domain, split: Split) -> Samples:
    """A domain in short, as a checkpoint records it: with its classes if it trains, and without them otherwise."""
    return summarise(domain if split == "train" else domain.unlabelled())


def _code(function: Any) -> str:
    """The source of a function, so that another function makes another file; empty if it cannot be read."""
    try:
        return inspect.getsource(getattr(function, "func", function))
    except (OSError, TypeError):
        return ""


def _read(path: Path) -> Statistics | None:
    """The tensors of a file; ``None`` if it is not there or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        log.warning("%s is damaged (%s) and will be made anew", path, sentence(error))
        return None


def _write(path: Path, tensors: Statistics, key: Mapping[str, Any]) -> None:
    from safetensors.torch import save

    said = {name: value for name, value in key.items() if name != "code"}
    try:
        with replacing(path) as file:
            file.write(save(tensors, {"made_from": json.dumps(said)}))
    except OSError as error:
        log.warning("cannot write %s (%s): the next run computes it anew", path, error)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Lets one process at a time make a file, where a lock can be written."""
    with ExitStack() as stack:
        try:
            stack.enter_context(making(path))
        except OSError as error:
            log.warning("cannot lock %s (%s)", path, error)
        yield
