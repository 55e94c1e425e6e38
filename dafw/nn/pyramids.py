"""Feature pyramids of detectors by name: this project's, timm's, torchvision's, or a class of the user."""

import inspect
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from dafw.errors import UserError, choose, sentence
from dafw.nn.backbones import DETECTOR_BACKBONES, find_module
from dafw.nn.modes import evaluation_mode
from dafw.nn.segmentation_parts import IMAGENET, of_stages
from dafw.nn.torchvision_detectors import TORCHVISION, load_pyramid, make_model
from dafw.nn.weights import load_weights

#: Whether proposals have a stage of their own decides which stages a pyramid begins with, and what it ends with.
TWO_STAGE = "fasterrcnn"


class Pyramid(NamedTuple):
    """A feature pyramid as it was made.

    Attributes:
        module: normalised images (N, C, H, W) to maps (N, d, h_i, w_i) by name; its ``out_channels`` is d.
        names: of the maps.
        strides: of the maps, powers of 2, ascending.
        pooled: how many of the maps regions are pooled from, the finest first.
        multiple: images are padded to a multiple of it.
    """

    module: Any
    names: list[str]
    strides: list[int]
    pooled: int
    multiple: int


class TinyPyramid(nn.Module):
    """Four convolutions of stride 2 and a feature pyramid of the last two: (N, C, H, W) to two maps of d channels.

    Args:
        in_channels: C.
        out_channels: d.
    """

    strides = (8, 16)

    def __init__(self, in_channels: int, out_channels: int = 32) -> None:
        super().__init__()
        widths = [in_channels, 16, 24, 32, 48]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b in pairwise(widths)
        )
        self.pyramid = FeaturePyramidNetwork(widths[-2:], out_channels)
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps ``"0"`` and ``"1"`` of strides 8 and 16."""
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        levels: dict[str, Tensor] = self.pyramid({str(i): level for i, level in enumerate(maps[-2:])})
        return dict(levels)


class PyramidOn(nn.Module):
    """A backbone that gives several maps, and a feature pyramid on them: Lin et al., CVPR 2017.

    https://arxiv.org/abs/1612.03144.

    Args:
        body: normalised images to maps, the finest first, as a list or by name.
        channels: of the maps.
        out_channels: d.
        extra: maps behind the coarsest: torchvision's ``LastLevelMaxPool`` or ``LastLevelP6P7``.
        channels_first: whether the maps of the body are (N, C, h, w), and not (N, h, w, C).
    """

    def __init__(
        self, body: nn.Module, channels: list[int], out_channels: int, extra: Any, channels_first: bool = True
    ) -> None:
        super().__init__()
        self.body, self.out_channels, self.channels_first = body, out_channels, channels_first
        self.fpn = FeaturePyramidNetwork(channels, out_channels, extra)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps ``"0"``, ``"1"``, ..., and those behind the coarsest."""
        maps = as_list(self.body(x))
        if not self.channels_first:
            maps = [one.permute(0, 3, 1, 2) for one in maps]
        levels: dict[str, Tensor] = self.fpn({str(i): level for i, level in enumerate(maps)})
        return levels


def as_list(maps: Any) -> list[Tensor]:
    """Maps that a backbone returns by name, as a list, or as one."""
    if isinstance(maps, Mapping):
        return list(maps.values())
    return [maps] if isinstance(maps, Tensor) else list(maps)


def make_pyramid(
    name: str, arch: str, in_channels: int, width: int | None, weights: str | None, arguments: dict[str, Any]
) -> Pyramid:
    """The pyramid of that name, with its weights.

    Args:
        name: ``tiny``, a detector of torchvision, a timm model, or the path of a class.
        arch: of the detector.
        in_channels: channels of an image.
        width: d; the backbone's usual one if ``None``.
        weights: see :class:`~dafw.nn.detector.Detector`.
        arguments: of the constructor of a timm model or a class.

    Raises:
        UserError: unknown name, a backbone that gives no maps, arguments or weights that do not fit.
    """
    if name == "tiny" or name in TORCHVISION:
        if arguments:
            raise UserError(f"model.network.backbone_args are for timm's backbones and classes, and {name} is neither")
        if name in TORCHVISION:
            return _of_torchvision(name, arch, in_channels, width, weights)
        if weights is not None:
            raise UserError("the backbone tiny has no weights: leave out model.network.weights, or name another one")
        module = TinyPyramid(in_channels, width or 32)
        return Pyramid(module, ["0", "1"], list(module.strides), 2, max(module.strides))
    owner = find_module(name)
    if owner is not None:
        return _of_class(name, owner, arch, in_channels, width, weights, arguments)
    return _of_timm(name, arch, in_channels, width or 256, weights, arguments)


def _of_timm(
    name: str, arch: str, in_channels: int, width: int, weights: str | None, arguments: dict[str, Any]
) -> Pyramid:
    import timm

    if not timm.is_model(name):
        choose("backbone", name, [*DETECTOR_BACKBONES, *timm.list_models()])
    made_with = {"in_chans": in_channels, **arguments}
    try:
        body: Any = timm.create_model(name, pretrained=False, features_only=True, **made_with)
        strides = body.feature_info.reduction()
        if len(set(strides)) == len(strides):  # those that a pyramid begins with
            least = 4 if arch == TWO_STAGE else 8
            chosen = [place for place, stride in enumerate(strides) if stride >= least]
            body = timm.create_model(name, pretrained=False, features_only=True, out_indices=chosen, **made_with)
    except Exception as error:  # a model's own code fails in its own ways
        raise UserError(f"timm cannot make feature maps with {name}: {sentence(error)}") from error
    strides, channels = body.feature_info.reduction(), body.feature_info.channels()
    if len(set(strides)) < len(strides):
        listed = ", ".join(map(str, strides))
        raise UserError(f"the backbone {name} gives maps of strides {listed}, and a pyramid needs one of each stride")
    load_weights(
        body, weights, name, arguments={"num_classes": 0, "in_chans": in_channels, **arguments},
        adapt=partial(of_stages, body),
    )  # fmt: skip
    channels_first = "NHWC" not in str(getattr(body, "output_fmt", ""))
    found = _with_levels(body, channels, strides, width, arch, channels_first)
    known = timm.get_pretrained_cfg(name)
    found.module.pretrained_cfg = IMAGENET if known is None else {"mean": known.mean, "std": known.std}
    return found


def _with_levels(
    body: nn.Module, channels: list[int], strides: list[int], width: int, arch: str, channels_first: bool = True
) -> Pyramid:
    """A pyramid on maps, with the further levels of the detector's paper."""
    two_stage = arch == TWO_STAGE
    extra = LastLevelMaxPool() if two_stage else LastLevelP6P7(width, width)
    names = [*map(str, range(len(strides))), *(["pool"] if two_stage else ["p6", "p7"])]
    further = [2 * strides[-1]] if two_stage else [2 * strides[-1], 4 * strides[-1]]
    module = PyramidOn(body, channels, width, extra, channels_first)
    pooled = len(strides) if two_stage else len(names)
    return Pyramid(module, names, [*strides, *further], pooled, strides[-1])


def _of_torchvision(name: str, arch: str, in_channels: int, width: int | None, weights: str | None) -> Pyramid:
    facts = TORCHVISION[name]
    if facts.arch != arch:
        raise UserError(f"the backbone {name} is of torchvision's {facts.arch}: set model.network.arch {facts.arch}")
    if in_channels != 3 or width is not None:
        raise UserError(f"the backbone {name} is for images of 3 channels and has a width: leave out both")
    module = make_model(name, 2).backbone
    load_pyramid(module, name, weights)
    module.pretrained_cfg = IMAGENET
    return Pyramid(module, facts.levels, facts.strides, facts.pooled, 32)


def _of_class(
    name: str,
    owner: Any,
    arch: str,
    in_channels: int,
    width: int | None,
    weights: str | None,
    arguments: dict[str, Any],
) -> Pyramid:
    try:
        inspect.signature(owner).bind(**arguments)
    except TypeError as error:
        raise UserError(f"the backbone {name} cannot be built: {error}; see model.network.backbone_args") from error
    module = owner(**arguments)
    side = 256
    parameter = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, in_channels, side, side, dtype=parameter.dtype)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluation_mode(module):
            found = module(image)
            maps = as_list(found)
            shapes = [tuple(one.shape) for one in maps]
    except Exception as error:  # whatever a module does with an input that is not for it
        raise UserError(
            f"the backbone {name} must turn images {tuple(image.shape)} into maps (N, c, h, w), and does not:"
            f" {sentence(error)}"
        ) from error
    strides = [side // shape[-1] for shape in shapes if len(shape) == 4]
    ascending = all(a < b for a, b in pairwise(strides)) and all(stride & (stride - 1) == 0 for stride in strides)
    if len(strides) < len(shapes) or not strides or not ascending:
        raise UserError(
            f"the backbone {name} must return maps (N, c, h, w), the finest first, whose strides are powers of 2, and"
            f" returned {', '.join(map(str, shapes))} for images {tuple(image.shape)}"
        )
    load_weights(module, weights, name=name)
    channels = [shape[1] for shape in shapes]
    if not isinstance(found, Mapping) or len(set(channels)) > 1 or width not in (None, channels[0]):
        return _with_levels(module, channels, strides, width or 256, arch)
    module.out_channels = channels[0]
    return Pyramid(module, list(found), strides, len(strides), strides[-1])
