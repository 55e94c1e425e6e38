"""Starting from a trained model: the part of every method that takes its weights from a checkpoint."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from dafw.checkpoints import check_classes, check_method, newest_checkpoint, read_checkpoint
from dafw.data.served import ServedDomains
from dafw.data.setting import Setting
from dafw.errors import UserError
from dafw.files import user_path
from dafw.nn.norm import NormMode, convert_norm
from dafw.nn.weights import loads_weights
from dafw.problems import NetworkBase
from dafw.recording import describe

if TYPE_CHECKING:
    import pytorch_lightning as pl

    Base = pl.LightningModule
else:
    Base = object


class Starting(Base):
    """The part of every method that may start from a trained model.

    The network gets the weights that the checkpoint's method is evaluated with: its moving average, if it has one. They
    are then part of this method's own checkpoints, so going on or loading it needs the file no more.
    """

    #: The method whose checkpoints this one starts from; ``None`` for any.
    starts_with: ClassVar[type[Any] | None] = None
    setting: ClassVar[Setting]
    network: NetworkBase
    num_classes: int
    accept_changed_data: bool
    #: Domains whose labels trained the weights that this method started from.
    trained_on: tuple[str, ...] = ()
    #: Why there are no weights to start from; no obstacle to going on from a checkpoint of this method.
    lacking: UserError | None = None
    #: What the checkpoint says beside its weights, and its path, until weights come from elsewhere.
    started_from: tuple[dict[str, Any], Path] | None = None

    if TYPE_CHECKING:

        @property
        def datamodule(self) -> ServedDomains | None: ...  # noqa: D102

    def start_from(self, checkpoint: str | None, norm: NormMode) -> None:
        """Fills the network, before its batch norms are told of two domains.

        Args:
            checkpoint: a checkpoint, or the directory of a run, whose newest one is taken; ``None``: the network keeps
                its own weights.
            norm: of this method.

        Raises:
            UserError: if the setting starts from a model and none is given, or ``norm`` needs two domains there; if the
                checkpoint's method, network or number of classes is another.
        """
        if self.setting.starts_from_model:
            if checkpoint is None and (self.starts_with is not None or not self.network.starts_trained):
                raise UserError("model.checkpoint must be given")
            if norm == "domain_specific":
                name = self.setting.name
                raise UserError(f"model.norm is domain_specific, but {name} training sees one domain: take joint")
        if checkpoint is None or not loads_weights():
            return
        try:
            path = find_checkpoint(checkpoint)
        except UserError as error:
            self.lacking = error
            return
        if self.starts_with is not None:
            check_method(path, self.starts_with)
        if norm == "group":  # its layers have other weights than batch normalisation
            convert_norm(self.network, norm, self.network.backbone if self.network.frozen else None)
        content = fill(self.network, path, self.num_classes)
        self.trained_on = tuple(content["labelled"])
        self.started_from = content, path

    def on_fit_start(self) -> None:
        """Refuses weights that nothing filled, or of other classes; a checkpoint to go on from has been read by now."""
        self.check_start()

    def check_start(self) -> None:
        """Checks that the method has weights, for the classes of the data.

        Raises:
            UserError: if there was no checkpoint to start from, or if its classes are others.
        """
        if self.lacking is not None:
            raise self.lacking
        if self.started_from is not None:
            names = () if self.datamodule is None else self.datamodule.known_names
            if names:
                check_classes(*self.started_from, names, self.accept_changed_data)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights from a checkpoint of this method; those that it started from are not needed then."""
        self.lacking = self.started_from = None
        return super().load_state_dict(*args, **kwargs)


#: Arguments of a network that change neither its function nor the names of its weights.
SAME_FUNCTION = {
    *("weights", "backbone_lr", "channels_last", "compile", "bottleneck_init", "head_init"),
    *("anchors_per_image", "regions_per_image", "proposals_in_training"),
}
#: Buffers of batch normalisation, which group normalisation lacks.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def find_checkpoint(path: str, key: str = "model.checkpoint") -> Path:
    """The checkpoint that ``path`` means: a file, or the newest of a run directory.

    Args:
        path: what was given.
        key: where it was given.

    Raises:
        UserError: if there is none.
    """
    place = user_path(path)
    if not place.is_dir():
        if not place.is_file():
            raise UserError(f"there is no checkpoint {path} ({key}): train the source model first")
        return place
    newest = newest_checkpoint(place)
    if newest is None:
        raise UserError(f"there is no checkpoint in {path} ({key}): train the source model first")
    return newest


def fill(
    network: NetworkBase, path: Path, num_classes: int, key: str = "model.checkpoint", place: str = "model.network"
) -> dict[str, Any]:
    """Puts the weights of a checkpoint's served network into ``network``.

    Args:
        network: with a label head.
        path: of the checkpoint.
        num_classes: that the data has.
        key: where the checkpoint was given.
        place: where the network was given.

    Returns:
        What the checkpoint says beside its weights, such as the domains whose labels trained them.

    Raises:
        UserError: if the file is none of ours, or of another number of classes or another network.
    """
    content = read_checkpoint(path)
    given_to = content["dafw"]["method"]["init_args"]
    held, theirs = given_to.get("num_classes", num_classes), given_to.get("network")
    if held != num_classes:
        raise UserError(f"{path} ({key}) predicts {held} classes, but the data has {num_classes}")
    if not (isinstance(theirs, dict) and isinstance(theirs.get("init_args"), dict) and "class_path" in theirs):
        raise UserError(f"{path} ({key}) does not say which network its weights are of")
    owners = [vars(owner).get("__init__") for owner in reversed(type(network).__mro__)]
    parameters = [one for init in owners if init is not None for one in inspect.signature(init).parameters.values()]
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    compare(describe(network), theirs, defaults, f"{path} ({key})", place)
    state: dict[str, Tensor] = content["state_dict"]
    prefix = content["dafw"]["eval_network"]
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    own = network.state_dict()
    wrong = sorted(own.keys() ^ given.keys()) or [key for key in own if given[key].shape != own[key].shape]
    if wrong and all(key.rpartition(".")[2] in STATISTICS for key in own.keys() ^ given.keys()):
        raise UserError(f"{path} ({key}) does not fit model.norm: give group to both models, or to neither")
    if wrong:
        raise UserError(f"{path} ({key}) does not fit {place}: {len(wrong)} weights, as {wrong[0]}")
    network.load_state_dict(given)
    said: dict[str, Any] = content["dafw"]
    return said


def compare(ours: dict[str, Any], theirs: dict[str, Any], defaults: dict[str, Any], where: str, place: str) -> None:
    """Compares two descriptions of networks.

    Args:
        ours: of the network that is to be filled.
        theirs: of the checkpoint's.
        defaults: of the arguments that are not in a description.
        where: the checkpoint, and the key that names it.
        place: where our network was given.

    Raises:
        UserError: naming the first argument in which they differ.
    """
    settings = [defaults | {"class_path": one["class_path"]} | one["init_args"] for one in (ours, theirs)]
    for one in settings:
        if one.get("head") == "pretrained":  # the form of the default head; it only starts with other weights
            one["head"] = "default"
    for key in ("class_path", *sorted(settings[0].keys() | settings[1].keys())):
        own, held = (one.get(key) for one in settings)
        if own != held and key not in SAME_FUNCTION:
            raise UserError(f"{place}.{key} is {own}, but {held} in the model of {where}")
