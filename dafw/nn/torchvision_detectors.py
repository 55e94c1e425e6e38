"""Torchvision's detectors by name, and their weights for COCO."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from dafw.errors import UserError, sentence
from dafw.files import user_path
from dafw.nn.weights import HOW_TO_GIVE_A_FILE, loads_weights, read_tensors

PATIENCE = 10.0
"""Seconds that a download of weights may wait for an answer."""


class Facts(NamedTuple):
    """What is known of a detector.

    Attributes:
        arch: fasterrcnn, fcos or retinanet.
        levels: names of its pyramid's maps.
        strides: of these.
        pooled: how many of them regions are pooled from.
        no_eps: whether the batch normalisations of its COCO weights add nothing to the variance.
    """

    arch: str
    levels: list[str]
    strides: list[int]
    pooled: int
    no_eps: bool = False


_FOUR = ["0", "1", "2", "3", "pool"], [4, 8, 16, 32, 64], 4
_FIVE = ["0", "1", "2", "p6", "p7"], [8, 16, 32, 64, 128], 5
_MOBILE = ["0", "1", "pool"], [32, 32, 64], 2
TORCHVISION = {
    "fasterrcnn_resnet50_fpn": Facts("fasterrcnn", *_FOUR, no_eps=True),
    "fasterrcnn_resnet50_fpn_v2": Facts("fasterrcnn", *_FOUR),
    "fasterrcnn_mobilenet_v3_large_fpn": Facts("fasterrcnn", *_MOBILE),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Facts("fasterrcnn", *_MOBILE),
    "fcos_resnet50_fpn": Facts("fcos", *_FIVE),
    "retinanet_resnet50_fpn": Facts("retinanet", *_FIVE, no_eps=True),
    "retinanet_resnet50_fpn_v2": Facts("retinanet", *_FIVE),
}


def make_model(name: str, num_classes: int) -> Any:
    """Torchvision's whole model, with random weights and plain batch normalisation.

    Args:
        name: one of :data:`TORCHVISION`.
        num_classes: the scores of a box, the background included if the detector has one.
    """
    from torchvision import models

    return models.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes)


def load_pyramid(pyramid: nn.Module, name: str, spec: str | None) -> None:
    """Fills the pyramid of a detector by its weights.

    Args:
        pyramid: changed in place.
        name: of the detector.
        spec: ``coco`` for torchvision's weights, a file with a state dict of such a detector, or ``None``.

    Raises:
        UserError: if the weights cannot be had or read, or do not fit.
    """
    if spec is None or not loads_weights():
        return
    state, source = read_detector(name, spec)
    given = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    own = pyramid.state_dict()
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    if wrong := [*missing, *(key for key in given if key not in own or given[key].shape != own[key].shape)]:
        raise UserError(
            f"{source} does not fit {name}: {len(wrong)} of the {len(own)} entries of its backbone are missing or of"
            f" another shape, first backbone.{wrong[0]}"
        )
    if TORCHVISION[name].no_eps:
        for key, layer in pyramid.named_modules():
            if isinstance(layer, nn.BatchNorm2d):  # which adds its eps again
                given[f"{key}.running_var"] = given[f"{key}.running_var"] - layer.eps
    pyramid.load_state_dict({**own, **given})


def load_head(head: nn.Module, name: str, spec: str | None, prefixes: dict[str, str]) -> list[str]:
    """Fills what follows the pyramid, but for the layers that are made for another number of classes.

    Args:
        head: changed in place.
        name: of the detector.
        spec: see :func:`load_pyramid`.
        prefixes: beginnings of names in torchvision's model, and in ``head``.

    Returns:
        The names of the tensors that keep their random start.
    """
    if spec is None or not loads_weights():
        return []
    state, _ = read_detector(name, spec)
    own = head.state_dict()
    given = {
        ours + key.removeprefix(theirs): value
        for key, value in state.items()
        for theirs, ours in prefixes.items()
        if key.startswith(theirs)
    }
    fitting = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    head.load_state_dict({**own, **fitting})
    return [key for key in own if key not in fitting]


def read_detector(name: str, spec: str) -> tuple[dict[str, Tensor], str]:
    """The state dict of a detector, and what to call it in messages.

    Raises:
        UserError: if it cannot be had or read.
    """
    if spec in ("timm", "pypi"):
        raise UserError(
            f'weights "{spec}" are for backbones of timm, and {name} is of torchvision: take coco or a file'
        )
    if spec != "coco":
        path = user_path(spec)
        return read_tensors(path), str(path)
    from torchvision import models

    try:
        with _patience():
            weights = models.get_model_weights(name).DEFAULT
            return weights.get_state_dict(progress=False, check_hash=True), f"torchvision's {name}"
    except Exception as error:  # of a network, a file system, or a damaged file
        raise UserError(
            f"torchvision's COCO weights of {name} could not be downloaded ({type(error).__name__}: {sentence(error)}):"
            f" give a local file instead, {HOW_TO_GIVE_A_FILE}"
        ) from error


@contextmanager
def _patience() -> Iterator[None]:
    """Within, a connection that gives no answer ends after :data:`PATIENCE`."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
