"""Backbones by name: the papers' own, timm's, encoders of transformers, or a user's class."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor, nn

from dafw.data.hub import encoder_of
from dafw.errors import UserError, choose, nearest, sentence
from dafw.nn.digits import DIGIT_NETS
from dafw.nn.ibn import IBNForm, convert_ibn, split_state, start_norms
from dafw.nn.torchvision_detectors import TORCHVISION
from dafw.nn.weights import load_weights, loads_weights
from dafw.nn.whole_classifiers import last_layer, without_last_layer
from dafw.recording import may_name

#: Names of the pyramids that a detector of this project may have, beside those of timm.
DETECTOR_BACKBONES = ("tiny", *TORCHVISION)


class Backbone(NamedTuple):
    """A backbone as it was made.

    Attributes:
        module: images to features.
        width: d of the features (N, d).
        classifier: weights of the classifier that its weights came with, if it was asked for, see
            :func:`~dafw.nn.weights.load_weights`.
    """

    module: nn.Module
    width: int
    classifier: dict[str, Tensor]


def make_backbone(
    name: str,
    in_channels: int,
    input_size: int | None,
    arguments: dict[str, Any],
    weights: str | None = None,
    ibn: IBNForm | None = None,
    with_classifier: bool = False,
    keys: Mapping[str, str] | None = None,
) -> Backbone:
    """The module of that name, with its weights.

    Raises:
        UserError: unknown name, arguments it does not take, no place for ``ibn``, or weights that cannot be had.
    """
    timm_name, extra = None, arguments
    if (encoder := encoder_of(name)) is not None:
        return _make_encoder(name, encoder, arguments, weights is not None or with_classifier, ibn is not None)
    if name in DIGIT_NETS:
        given = {"in_channels": in_channels, "input_size": input_size, **arguments}
        module: nn.Module = _make(name, DIGIT_NETS[name], given)
    elif (user_class := find_module(name)) is not None:
        module = _make(name, user_class, arguments)
    else:
        timm_name = name
        module, extra = _make_timm(name, in_channels, input_size, arguments)
    options: dict[str, Any] = {"name": name, "arguments": extra, "with_classifier": with_classifier, "keys": keys}
    if ibn is not None:
        convert_ibn(module, ibn, name)
        if "zero_init_last" not in arguments:
            start_norms(module)
        options["adapt"] = partial(split_state, module)
    own_class = timm_name is None and name not in DIGIT_NETS
    whole = own_class and with_classifier and last_layer(module, partial(_passed, name, in_channels, input_size))
    if whole:
        load_weights(module, weights, **options | {"with_classifier": False})
        last = without_last_layer(module, whole)
        classifier = last if loads_weights() else {}
    else:
        classifier = load_weights(module, weights, timm_name, **options)
    width = getattr(module, "num_features", None)
    if timm_name is not None:  # layers behind the last stage, which some models have, may change the width
        width = getattr(module, "head_hidden_size", None) or width
    width = width if isinstance(width, int) else _measure(name, module, in_channels, input_size)
    return Backbone(module, width, classifier)


def _make_encoder(name: str, encoder: str, arguments: dict[str, Any], weighted: bool, ibn: bool) -> Backbone:
    """An encoder of transformers, which brings its weights."""
    from dafw.nn.text_encoder import TextEncoder

    if weighted or ibn:
        key, why = ("ibn", "is for images") if ibn else ("weights", "would replace those that it comes with")
        raise UserError(f"model.network.{key} {why}: leave it out with the backbone {name}")
    module = TextEncoder(encoder, **arguments)
    return Backbone(module, module.num_features, {})


def needs_size(name: str, arguments: Mapping[str, Any], size: int) -> bool:
    """Whether a backbone is built for images of one size, and has to be told this one.

    Args:
        name: of the backbone.
        arguments: of its constructor.
        size: side of the images in pixels.
    """
    if name in DIGIT_NETS:
        return "input_size" not in arguments and DIGIT_NETS[name].default_size != size
    if any(key.endswith("img_size") for key in arguments):
        return False
    import timm

    usual = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return usual is not None and usual.fixed_input_size and usual.input_size[-1] != size


def check_known(description: Mapping[str, Any], path: Path) -> None:
    """Checks that a network whose description came in a file can be made without code of anybody else's.

    Args:
        description: the class path and the arguments of a :class:`~dafw.nn.network.Network`, of a
            :class:`~dafw.nn.segmentation.SegmentationNetwork` or of a :class:`~dafw.nn.detector.Detector`.
        path: the file.

    Raises:
        UserError: if its backbone is neither of this project, of timm nor of transformers, its architecture is a class
            of somebody else's, or an argument is not made of numbers and words.
    """
    arguments = description["init_args"]
    arch = str(arguments.get("arch", ""))
    if "." in arch and arch.split(".")[0] != "dafw":
        raise UserError(
            f"the network of {path} (model.checkpoint) has the arch {arch}, which is not of dafw: give --model.network"
            f" SegmentationNetwork --model.network.arch {arch} if you trust it"
        )
    name = str(arguments.get("backbone", next(iter(DIGIT_NETS))))
    known = name in DIGIT_NETS or name in DETECTOR_BACKBONES or encoder_of(name) is not None
    if not known and name.split(".")[0] != "dafw":
        import timm

        if not timm.is_model(name):
            raise UserError(
                f"the network of {path} (model.checkpoint) has the backbone {name}, which is neither of dafw nor of "
                f"timm: give --model.network.backbone {name} if you trust it"
            )
    for key, value in arguments.items():
        if not _is_plain(value):
            raise UserError(
                f"the network of {path} (model.checkpoint) has an argument {key} that is not made of numbers and "
                "words: give --model.network"
            )


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return "class_path" not in value and all(isinstance(key, str) and _is_plain(value[key]) for key in value)
    return value is None or isinstance(value, bool | int | float | str)


def _make(name: str, owner: Callable[..., nn.Module], arguments: dict[str, Any]) -> nn.Module:
    try:
        inspect.signature(owner).bind(**arguments)
    except TypeError as error:
        raise UserError(f"the backbone {name} cannot be built: {error}; see backbone_args") from error
    return owner(**arguments)


def find_module(path: str, kind: str = "backbone") -> Callable[..., nn.Module] | None:
    """The user's class at ``package.module.Name``; None if there is no such package, as for timm's names with a dot.

    A backbone may be a function whose annotation says that it returns a module, as torchvision's are.

    Args:
        path: of the class.
        kind: what the configuration calls it.

    Raises:
        UserError: if the module cannot be imported, has no such class, or a checkpoint may not name it.
    """
    module_name, _, class_name = path.rpartition(".")
    package, *rest = path.split(".")
    if not rest or not all(part.isidentifier() for part in (package, *rest)):
        return None
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        return None
    if not loads_weights() and not may_name(module_name):  # a checkpoint names it
        raise UserError(f"the checkpoint names the {kind} {path}: import {module_name} first, if you trust it")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError as error:
        raise UserError(f"the {kind} {path} cannot be imported: {error}") from error
    made = get_type_hints(found).get("return") if kind == "backbone" and inspect.isfunction(found) else found
    if found is None or not (isinstance(made, type) and issubclass(made, nn.Module)):
        what = "has no class" if found is None else "has something other than an nn.Module as"
        raise UserError(f"the {kind} {path} cannot be used: {module_name} {what} {class_name}")
    maker: Callable[..., nn.Module] = found
    return maker


def _make_timm(
    name: str, in_channels: int, input_size: int | None, arguments: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """A timm model without its classifier, and the arguments it was made with."""
    for key in arguments:
        if key == "checkpoint_path" or key.startswith("pretrained"):
            raise UserError(f"backbone_args takes no {key}: give the weights as model.network.weights")
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # a torchvision built for another torch raises RuntimeError
        raise UserError(
            f"the backbone {name} needs timm, or is misspelt, and timm cannot be imported ({error}): install timm and"
            f" the torchvision of your torch, or choose one of {', '.join(DIGIT_NETS)}"
        ) from error
    if not timm.is_model(name):
        choose("backbone", name, [*DIGIT_NETS, *timm.list_models()])
    made_with = {"num_classes": 0, "in_chans": in_channels, **arguments}
    try:
        config = timm.get_pretrained_cfg(name)
        if input_size is not None and config is not None and config.fixed_input_size:
            made_with.setdefault("img_size", input_size)
        module = timm.create_model(name, pretrained=False, **made_with)
    except Exception as error:  # a model's own code fails in its own ways when an argument is not for it
        raise UserError(_timm_fault(name, made_with, error)) from error
    return module, made_with


def _timm_fault(name: str, arguments: dict[str, Any], error: Exception) -> str:
    """One sentence; where timm looked a name up and did not find it, it names the argument that gave the name."""
    if isinstance(error, KeyError) and error.args:
        for key, value in arguments.items():
            if isinstance(value, str) and error.args[0] in (value, value.lower(), value.replace("_", "").lower()):
                return f'timm knows no {key} "{value}" for the backbone {name}: {nearest(value, _layers(key))}'.rstrip(
                    ": "
                )
    kind = "" if isinstance(error, TypeError | RuntimeError | ValueError) else f"{type(error).__name__} "
    return f"timm cannot make the backbone {name} with {arguments}: {kind}{sentence(error)}"


def _layers(key: str) -> list[str]:
    """Names that timm has for a kind of layer, as far as this version of timm tells."""
    from timm.layers import create_norm, create_norm_act

    maps = (getattr(create_norm, "_NORM_MAP", {}), getattr(create_norm_act, "_NORM_ACT_MAP", {}))
    return [layer for known in maps for layer in known] if key == "norm_layer" else []


def _measure(name: str, module: nn.Module, in_channels: int, input_size: int | None) -> int:
    """Width of the features, from one pass over two black images."""
    features = _passed(name, in_channels, input_size, module)
    if not isinstance(features, Tensor) or features.ndim != 2:
        got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(f"the backbone {name} returns {got}, where features are (N, d)")
    return features.shape[1]


def _passed(name: str, in_channels: int, input_size: int | None, module: nn.Module) -> Any:
    """What a backbone makes of two black images. It changes neither the module nor the random state."""
    modes = {part: part.training for part in module.modules()}
    size = input_size or 224
    parameter = next(module.parameters(), torch.empty(0))
    image = torch.zeros(2, in_channels, size, size, dtype=parameter.dtype)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return module.eval()(image)
    except Exception as error:  # whatever a module does with an input that is not for it
        raise UserError(
            f"the backbone {name} has no attribute num_features, and does not take images {tuple(image.shape)} to"
            f" measure them: give it the attribute, or set input_size ({error})"
        ) from error
    finally:
        for part, mode in modes.items():
            part.training = mode
