"""The parts of a segmentation network by the name of its architecture: encoder, decoder, and what makes its heads."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafw.errors import UserError, choose, sentence
from dafw.nn.backbones import find_module
from dafw.nn.layout import BatchLayout
from dafw.nn.modes import evaluation_mode
from dafw.nn.tiny_unet import TinyUNetDecoder, TinyUNetEncoder
from dafw.nn.weights import HOW_TO_GIVE_A_FILE, load_weights
from dafw.problems.outputs import mean_over_image

#: Architectures of segmentation-models-pytorch: its class, and the encoder if none is named.
SMP = {
    "unet": ("Unet", "tf_efficientnet_lite0"),
    "fpn": ("FPN", "tf_efficientnet_lite0"),
    "deeplabv3plus": ("DeepLabV3Plus", "tf_efficientnet_lite0"),
    "segformer": ("Segformer", "mit_b0"),
}
#: Architectures of torchvision: their encoders, the usual one first.
TORCHVISION = {"deeplabv3": ("resnet50", "resnet101"), "lraspp": ("mobilenet_v3_large",)}
ARCHS = ("tiny_unet", *SMP, *TORCHVISION)
#: Encoders that segmentation-models-pytorch has and timm has not.
MIT = tuple(f"mit_b{size}" for size in range(6))
#: Mean and standard deviation of the images that encoders without an entry in timm were trained on (ImageNet).
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_TAKEN = ("encoder_name", "encoder_weights", "in_channels", "classes", "aux_params", "activation", "upsampling")


class Parts(NamedTuple):
    """What a segmentation network is made of.

    Attributes:
        encoder: images (N, C, H, W) to a list of maps.
        decoder: that list to one map.
        make_head: a number of classes to a layer that scores the classes on the decoder's map.
        channels: channels of each stage of the encoder, the finest first.
        stride: the sides of images must be multiples of it.
        levels: which maps of the encoder's list are its stages.
        auxiliary: which stage an auxiliary head takes.
        make_auxiliary: as ``make_head``, for that stage.
    """

    encoder: nn.Module
    decoder: nn.Module
    make_head: Callable[[int], nn.Module]
    channels: list[int]
    stride: int
    levels: list[int]
    auxiliary: int
    make_auxiliary: Callable[[int], nn.Module]


def default_encoder(arch: str) -> str | None:
    """The encoder that an architecture has if none is named; ``None`` if it names none."""
    return TORCHVISION[arch][0] if arch in TORCHVISION else SMP[arch][1] if arch in SMP else None


def make_parts(
    arch: str,
    encoder: str | None,
    in_channels: int,
    weights: str | None,
    encoder_args: dict[str, Any],
    arch_args: dict[str, Any],
) -> Parts:
    """The parts of an architecture of :data:`ARCHS`, see :class:`~dafw.nn.segmentation.SegmentationNetwork`.

    Raises:
        UserError: see there.
    """
    choose("arch", arch, ARCHS)
    if arch == "tiny_unet":
        if encoder is not None or weights is not None or encoder_args:
            raise UserError(
                "tiny_unet has an encoder of its own and no weights: leave out model.network.encoder, weights and "
                "encoder_args, or set model.network.arch unet"
            )
        return _tiny(in_channels, **_fitting(_tiny, arch, arch_args))
    if arch in TORCHVISION:
        if encoder_args or arch_args:
            raise UserError(f"{arch} takes neither model.network.encoder_args nor model.network.arch_args")
        encoder = encoder or TORCHVISION[arch][0]
        choose("encoder", encoder.partition(".")[0] if arch == "deeplabv3" else encoder, TORCHVISION[arch])
        if in_channels != 3:
            raise UserError(f"{arch} is for images of 3 channels, not {in_channels}: set model.network.arch unet")
        return _torchvision(arch, encoder, weights)
    return _smp(arch, encoder or SMP[arch][1], in_channels, weights, encoder_args, arch_args)


# ---- a small network of this project


def _tiny(in_channels: int, width: int = 8) -> Parts:
    encoder = TinyUNetEncoder(in_channels, width)
    channels = encoder.channels
    return Parts(
        encoder,
        TinyUNetDecoder(channels),
        lambda classes: nn.Conv2d(width, classes, 1),
        channels,
        8,
        [0, 1, 2, 3],
        -2,
        lambda classes: nn.Conv2d(channels[-2], classes, 1),
    )


# ---- segmentation-models-pytorch


def _smp(
    arch: str,
    encoder: str,
    in_channels: int,
    weights: str | None,
    encoder_args: dict[str, Any],
    arch_args: dict[str, Any],
) -> Parts:
    smp = _load_smp(arch)
    import timm

    if encoder not in MIT and not timm.is_model(encoder):
        choose("encoder", encoder, [*MIT, *timm.list_models()])
    if encoder in MIT and weights == "timm":
        raise UserError(f"timm has no {encoder}: give --model.network.weights smp, {HOW_TO_GIVE_A_FILE}, or null")
    if encoder in MIT and encoder_args:
        raise UserError(f"model.network.encoder_args are for encoders of timm, and {encoder} is none")
    known = None if encoder in MIT else timm.get_pretrained_cfg(encoder)
    if known is not None and known.fixed_input_size and not any(key.endswith("img_size") for key in encoder_args):
        encoder_args = {**encoder_args, "strict_img_size": False}  # which lets a transformer take any size
    owner: Callable[..., Any] = getattr(smp, SMP[arch][0])
    given = _fitting(owner, arch, arch_args, _TAKEN)
    name = encoder if encoder in MIT else f"tu-{encoder}"
    try:
        model = owner(name, encoder_weights=None, in_channels=in_channels, classes=1, **given, **encoder_args)
    except Exception as error:  # a model's own code fails in its own ways when an argument is not for it
        why = sentence(error) or "its stages cannot be dilated"
        if "strict_img_size" in why:
            why = "it is built for one size of images: set model.network.encoder_args.img_size"
        raise UserError(f"{arch} cannot be made with the encoder {encoder}: {why}") from error
    inner = model.encoder if encoder in MIT else model.encoder.model
    load_weights(
        inner,
        weights,
        None if encoder in MIT else encoder,
        name=encoder,
        arguments={"num_classes": 0, "in_chans": in_channels, **encoder_args},
        adapt=partial(of_stages, inner),
    )
    model.encoder.pretrained_cfg = IMAGENET if known is None else {"mean": known.mean, "std": known.std}
    widths = list(model.encoder.out_channels)
    image = not getattr(model.encoder, "_is_vgg_style", False)  # the first map of the list is then the image
    levels = [place for place, width in enumerate(widths) if width and not (image and place == 0)]
    conv, upsampling = model.segmentation_head[0], getattr(model.segmentation_head[1], "scale_factor", 1)

    def make_head(classes: int) -> nn.Module:
        head = smp.base.SegmentationHead(conv.in_channels, classes, conv.kernel_size[0], upsampling=upsampling)
        if arch != "deeplabv3plus":  # which the library starts as torch does
            smp.base.initialization.initialize_head(head)
        return head  # type: ignore[no-any-return]

    channels = [widths[place] for place in levels]
    decoder = _without_padding(model.decoder)
    auxiliary = partial(_fcn_head, channels[-2])
    return Parts(model.encoder, decoder, make_head, channels, model.encoder.output_stride, levels, -2, auxiliary)


def _load_smp(arch: str) -> Any:
    try:
        return importlib.import_module("segmentation_models_pytorch")
    except ImportError as error:
        raise UserError(
            f"model.network.arch {arch} needs segmentation-models-pytorch, which cannot be imported ({error}): "
            'pip install "dafw[segmentation]", or take tiny_unet, deeplabv3 or lraspp'
        ) from error


def of_stages(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a whole model under the names that they have in its stages alone.

    timm writes ``stages_0.blocks`` for ``stages.0.blocks`` in a model that gives feature maps. What lies behind the
    stages, as a last norm and the classifier, is left out.

    Args:
        module: the stages.
        state: weights of the whole model by name.
    """
    own = module.state_dict()
    first = {key.split(".")[0] for key in own}
    found = {}
    for key, value in state.items():
        flat = key.replace(".", "_", 1)
        names = (key, flat, f"model.{key}", key.removeprefix("features."))
        name = next((one for one in names if one in own), None) or next(
            (one for one in names[:2] if one.split(".")[0] in first), None
        )
        if name is not None:
            found[name] = value
    return found


# ---- torchvision


class Stages(nn.Module):
    """Some layers of a model of torchvision one after the other; their names in its weights stay as they are.

    Args:
        layers: all layers up to the last stage, by name.
        stages: names of the layers that end a stage.
    """

    def __init__(self, layers: Mapping[str, nn.Module], stages: list[str]) -> None:
        super().__init__()
        self.stages = stages
        self.order = list(layers)[: list(layers).index(stages[-1]) + 1]
        for name in self.order:
            self.add_module(name, layers[name])
        self.pretrained_cfg = IMAGENET

    def forward(self, x: Tensor) -> list[Tensor]:
        """The maps behind the stages, the finest first."""
        levels = []
        for name in self.order:
            x = self.get_submodule(name)(x)
            if name in self.stages:
                levels.append(x)
        return levels


class OnLast(nn.Sequential):
    """Layers that take the last of several maps."""

    def forward(self, levels: list[Tensor]) -> Tensor:
        """What the layers make of it."""
        x = levels[-1]
        for layer in self:
            x = layer(x)
        return x


class LiteDecoder(nn.Module):
    """The part of torchvision's LR-ASPP before its classifiers: a list of maps to one map of stride 8.

    Torchvision adds the scores of two 1x1 convolutions, one on the fine map and one on the weighted coarse map. Here
    one convolution takes both maps side by side, which gives the same functions.

    Args:
        head: torchvision's ``LRASPPHead``.
        fine: which map of the list is the fine one.
    """

    def __init__(self, head: Any, fine: int) -> None:
        super().__init__()
        self.cbr, self.scale, self.fine = head.cbr, head.scale, fine

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Channels of the fine map, then those of the coarse one."""
        fine, coarse = levels[self.fine], levels[-1]
        weighted = self.cbr(coarse) * self.scale(coarse)
        weighted = F.interpolate(weighted, size=fine.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([fine, weighted], 1)


def _torchvision(arch: str, encoder: str, weights: str | None) -> Parts:
    from torchvision import models
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead
    from torchvision.models.segmentation.lraspp import LRASPPHead

    if arch == "deeplabv3":
        stem, _, tag = encoder.partition(".")
        if tag:
            import timm

            choose("encoder", encoder, timm.list_pretrained(f"{stem}.*"))
        resnet = models.get_model(stem, weights=None, replace_stride_with_dilation=[False, True, True])
        stages = Stages(dict(resnet.named_children()), [f"layer{i}" for i in range(1, 5)])
        channels = [256, 512, 1024, 2048]
        decoder: nn.Module = OnLast(*list(DeepLabHead(channels[-1], 1))[:-1])
        width, auxiliary, timm_name = 256, -2, encoder
    else:
        layers = models.get_model(encoder, weights=None, dilated=True).features
        ends = [0, *(i for i, layer in enumerate(layers) if getattr(layer, "_is_cn", False)), len(layers) - 1]
        stages = Stages(dict(layers.named_children()), [str(end) for end in ends])
        channels = [int(layers[end].out_channels) for end in ends]
        auxiliary, timm_name = -4, None  # as torchvision's deeplabv3_mobilenet_v3_large
        head = LRASPPHead(channels[auxiliary], channels[-1], 1, 128)
        decoder, width = LiteDecoder(head, auxiliary), channels[auxiliary] + 128
    load_weights(
        stages, weights, timm_name, name=encoder, arguments={"num_classes": 0}, adapt=partial(of_stages, stages)
    )
    return Parts(
        stages,
        _without_padding(decoder),
        lambda classes: nn.Conv2d(width, classes, 1),
        channels,
        1,
        list(range(len(channels))),
        auxiliary,
        partial(_fcn_head, channels[auxiliary]),
    )


def _fcn_head(channels: int, classes: int) -> nn.Module:
    from torchvision.models.segmentation.fcn import FCNHead

    head: nn.Module = FCNHead(channels, classes)
    return head


# ---- a class of the user


def make_own(path: str, num_classes: int, in_channels: int, arguments: dict[str, Any]) -> tuple[nn.Module, int, int]:
    """A module of the user, the channels of its features, and the stride that its attribute ``stride`` names (1).

    Raises:
        UserError: if there is no such class, it takes other arguments, or does not return scores of the classes.
    """
    owner = find_module(path, "arch")
    if owner is None:
        choose("arch", path, ARCHS)
        raise AssertionError
    names = inspect.signature(owner).parameters
    key = next((name for name in ("num_classes", "classes") if name in names), None)
    if key is None:
        raise UserError(
            f"model.network.arch {path} takes neither num_classes nor classes: give its __init__ one of them"
        )
    given = {key: num_classes, **_fitting(owner, path, arguments, (key,))}
    try:
        module = owner(**given)
        parameter = next(module.parameters(), torch.empty(0))
        with torch.no_grad(), torch.random.fork_rng(devices=[]), evaluation_mode(module):
            found = module(torch.zeros(2, in_channels, 64, 64, dtype=parameter.dtype))
    except Exception as error:  # whatever a module does with an input that is not for it
        raise UserError(
            f"model.network.arch {path} cannot be made, or takes no images (2, {in_channels}, 64, 64):"
            f" {sentence(error)}"
        ) from error
    maps: Mapping[str, Any] = found if isinstance(found, Mapping) else {"out": found}
    out = maps.get("out")
    if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[:2] != (2, num_classes):
        got = tuple(out.shape) if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise UserError(
            f"model.network.arch {path} must return scores (N, {num_classes}, h, w), or a mapping with them as out, and"
            f" returned {got} for 2 images"
        )
    stride = getattr(module, "stride", 1)
    return module, int(maps.get("features", out).shape[1]), stride if isinstance(stride, int) else 1


# ---- for all


class MeanOverImage(nn.Module):
    """The mean of each channel over an image, (N, C, h, w) -> (N, C, 1, 1), without the image's padding."""

    def __init__(self) -> None:
        super().__init__()
        self.layout = BatchLayout()

    def forward(self, x: Tensor) -> Tensor:
        """The means."""
        if self.layout.sizes is None:
            return F.adaptive_avg_pool2d(x, 1)
        return mean_over_image(x, self.layout.sizes, self.layout.canvas)[:, :, None, None]


def _without_padding(module: nn.Module) -> nn.Module:
    """Puts :class:`MeanOverImage` in the place of each global mean."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(parent, name, MeanOverImage())
    return module


def _fitting(
    owner: Callable[..., Any], name: str, arguments: dict[str, Any], taken: tuple[str, ...] = ("in_channels",)
) -> dict[str, Any]:
    """Arguments that the constructor takes and that are not given to it otherwise."""
    parameters = inspect.signature(owner).parameters
    open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values()) and name not in SMP
    known = [key for key, one in parameters.items() if key not in taken and one.kind is not one.VAR_KEYWORD]
    for key in arguments:
        if key in taken or not open_ended:
            choose(f"argument of {name} (model.network.arch_args)", key, known)
    return arguments
