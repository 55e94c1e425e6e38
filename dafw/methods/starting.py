"""What all methods share that start from a trained model: its weights come from a checkpoint."""

import inspect
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from dafw.checkpoints import check_classes, check_method, newest_checkpoint, read_checkpoint
from dafw.errors import UserError
from dafw.files import user_path
from dafw.methods.base import Method
from dafw.nn.weights import loads_weights
from dafw.problems import NetworkBase
from dafw.recording import describe


class StartingMethod(Method, abstract=True):
    """Adapts a trained network to unlabelled targets. The datamodule serves the targets alone; no source is loaded.

    The network starts with the weights that the checkpoint's method is evaluated with (its moving average, if it has
    one). They are then part of this method's own checkpoints, so going on or loading it needs the file no more.

    Args:
        network: as the checkpoint's (the command line takes that one if none is given).
        checkpoint: a checkpoint of a method that leaves the network's layers as they are, under a norm other than
            ``domain_specific``; or the directory of a run, whose newest checkpoint is taken. ``None`` starts from the
            network's own weights, which needs a pretrained head (``head: pretrained``).
        base: see :class:`~dafw.methods.base.Method`.

    Raises:
        UserError: if no checkpoint is given and the network's head is not pretrained; if the checkpoint's method,
            network or number of classes is another, or ``norm`` needs two domains; when training or evaluation starts,
            if there is no such checkpoint, or if it predicts other classes than the data's.
    """

    #: The method whose checkpoints this one starts from; ``None`` for any.
    starts_with: ClassVar[type[Method] | None] = None

    def __init__(self, network: NetworkBase, *, checkpoint: str | None = None, **base) -> None:  # type: ignore[no-untyped-def]
        if checkpoint is None and (self.starts_with is not None or not network.starts_trained):
            raise UserError("model.checkpoint must be given")
        super().__init__(network, **base)
        if self.norm == "domain_specific":
            name = self.setting.name
            raise UserError(f"model.norm is domain_specific, but {name} training sees one domain: take joint")
        self.lacking: UserError | None = None
        self.started_from: tuple[dict[str, Any], Path] | None = None
        if checkpoint is not None and loads_weights():
            try:
                path = find_checkpoint(checkpoint)
            except UserError as error:  # no obstacle to going on from a checkpoint of this method
                self.lacking = error
            else:
                if self.starts_with is not None:
                    check_method(path, self.starts_with)
                content = fill(network, path, self.num_classes)
                self.trained_on = tuple(content["labelled"])
                self.started_from = content, path
                if self.weight_average is not None:
                    self.weight_average.copy_from()

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

    def prepare_evaluation(self, stage: str) -> None:
        """See :meth:`check_start`."""
        super().prepare_evaluation(stage)
        self.check_start()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As the base; whose labels trained the start is remembered."""
        super().on_load_checkpoint(checkpoint)
        self.trained_on = tuple(checkpoint["dafw"]["labelled"])

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights from a checkpoint of this method; those that it started from are not needed then."""
        self.lacking = self.started_from = None
        return super().load_state_dict(*args, **kwargs)


#: Arguments of a network that change neither its function nor the names of its weights.
SAME_FUNCTION = {
    *("weights", "backbone_lr", "channels_last", "compile", "bottleneck_init", "head_init"),
    *("anchors_per_image", "regions_per_image", "proposals_in_training"),
}


def find_checkpoint(path: str) -> Path:
    """The checkpoint that ``path`` means: a file, or the newest of a run directory.

    Raises:
        UserError: if there is none.
    """
    place = user_path(path)
    if not place.is_dir():
        if not place.is_file():
            raise UserError(f"there is no checkpoint {path} (model.checkpoint): train the source model first")
        return place
    newest = newest_checkpoint(place)
    if newest is None:
        raise UserError(f"there is no checkpoint in {path} (model.checkpoint): train the source model first")
    return newest


def fill(network: NetworkBase, path: Path, num_classes: int) -> dict[str, Any]:
    """Puts the weights of a checkpoint's served network into ``network``.

    Returns:
        What the checkpoint says beside its weights, such as the domains whose labels trained them.

    Raises:
        UserError: if the file is none of ours, or of another number of classes or another network.
    """
    content = read_checkpoint(path)
    given_to = content["dafw"]["method"]["init_args"]
    held, theirs = given_to.get("num_classes", num_classes), given_to.get("network")
    if held != num_classes:
        raise UserError(f"{path} (model.checkpoint) predicts {held} classes, but the data has {num_classes}")
    if not (isinstance(theirs, dict) and isinstance(theirs.get("init_args"), dict) and "class_path" in theirs):
        raise UserError(f"{path} (model.checkpoint) does not say which network its weights are of")
    owners = [vars(owner).get("__init__") for owner in reversed(type(network).__mro__)]
    parameters = [one for init in owners if init is not None for one in inspect.signature(init).parameters.values()]
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    compare(describe(network), theirs, defaults, path)
    state: dict[str, Tensor] = content["state_dict"]
    prefix = content["dafw"]["eval_network"]
    given = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    own = network.state_dict()
    wrong = sorted(own.keys() ^ given.keys()) or [key for key in own if given[key].shape != own[key].shape]
    if wrong:
        raise UserError(f"{path} (model.checkpoint) does not fit model.network: {len(wrong)} weights, as {wrong[0]}")
    network.load_state_dict(given)
    said: dict[str, Any] = content["dafw"]
    return said


def compare(ours: dict[str, Any], theirs: dict[str, Any], defaults: dict[str, Any], path: Path) -> None:
    """Compares two descriptions of networks.

    Args:
        ours: of the network that is to be filled.
        theirs: of the checkpoint's.
        defaults: of the arguments that are not in a description.
        path: the checkpoint.

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
            raise UserError(f"model.network.{key} is {own}, but {held} in the model of {path} (model.checkpoint)")
