"""What every network shares, whatever it predicts: normalisation, a backbone, a head, parameter groups."""

import logging
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dafw.data.padding import valid_positions
from dafw.errors import UserError
from dafw.problems.outputs import RowOutputs
from dafw.ranges import NonNegativeFloat, PositiveInt
from dafw.recording import Recorded

log = logging.getLogger(__name__)
_ROUNDING = 1e-3
"""How far scaling may carry a value of an image out of [0, 1]."""
_MEASURED = ("dafw", "timm")
"""Packages whose convolutions were measured to be faster in channels-last memory."""
_NO_HEAD = "the network has no label head yet: call set_classes(num_classes) first"


class NetworkBase(Recorded, nn.Module):
    """Base of all networks: images in, outputs of one kind out. A subclass defines :meth:`make_head` and forward.

    A network never sees a label. It takes a batch of uint8 images, (N, C, H, W), or of floating point images in
    [0, 1], and normalises them per channel on their device, ``(x / 255 - mean) / std``, in the dtype of the parameters.
    An input that is not 4-D is passed on as it is, floating point and uint8 values in the parameters' dtype. A mapping
    of inputs is passed on as a mapping, each of its values treated so. A list of texts is passed on to a backbone that
    has a true attribute ``takes_texts``.

    A backbone that arrives in evaluation mode is put into training mode, with all its parts. If it arrives in training
    mode, parts of it that are in evaluation mode stay so, and the log says it.

    Args:
        backbone: makes features of normalised images.
        num_features: width d of the features.
        backbone_lr: learning rate of the backbone as a multiple of that of all other parts.
        in_channels: channels C of an image.
        mean: mean per channel of images in [0, 1], one value or C; a timm model's own or 0.5 if null.
        std: standard deviation, likewise.
        channels_last: keep images and convolutions in channels-last memory; see :func:`prefers_channels_last` if null.
        compile: compile the backbone with ``torch.compile``.
        frozen: keep the backbone's weights and running statistics as they are, in evaluation mode.

    Attributes:
        head: the label head, once :meth:`set_classes` was called.
        num_classes: the number of classes it predicts; ``None`` before.

    Raises:
        UserError: a value is out of range.
    """

    config_key: ClassVar[str] = "model.network"
    #: The kind of problem that the outputs are for, if they are for one alone.
    kind: ClassVar[str] = ""
    head: nn.Module | None
    num_classes: int | None
    shift: Tensor
    scale: Tensor
    scale_uint8: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        num_features: int,
        *,
        backbone_lr: NonNegativeFloat = 1.0,
        in_channels: PositiveInt = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        channels_last: bool | None = None,
        compile: bool = False,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.num_features, self.num_classes = num_features, None
        self.backbone_lr, self.frozen = backbone_lr, frozen
        self.channels_last = prefers_channels_last(self, backbone) if channels_last is None else channels_last
        self.backbone = backbone
        self.register_module("head", None)
        self._set_normalisation(mean, std, in_channels)
        if self.channels_last:
            backbone.to(memory_format=torch.channels_last)
        if compile:
            backbone.compile()
        if frozen:
            backbone.requires_grad_(False)
            backbone.eval()
        elif not backbone.training:
            backbone.train()
        elif asleep := [name for name, part in backbone.named_modules() if not part.training]:
            names = f"{', '.join(asleep[:3])}{', ...' if len(asleep) > 3 else ''}"
            log.warning("parts of the backbone arrived in evaluation mode and stay in it: %s", names)

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

    # ---- what a subclass defines

    def make_head(self, num_classes: int) -> nn.Module:
        """A new label head for that many classes; its input is what the subclass gives it in :meth:`forward`."""
        raise NotImplementedError(f"{type(self).__name__} must define make_head(num_classes)")

    def forward(self, x: Any, sizes: Tensor | None = None) -> RowOutputs:
        """Outputs of a batch.

        Args:
            x: images (N, C, H, W), or inputs of another form that the backbone takes.
            sizes: (N, 2) int64, height and width of each image without its padding; ``None``: every image fills ``x``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, sizes)")

    # ---- what a subclass uses

    def set_classes(self, num_classes: int) -> None:
        """Puts a new label head in place, on the network's device; leaves one of as many classes as it is."""
        if num_classes != self.num_classes:
            self.head = self.make_head(num_classes).to(device=self.shift.device, dtype=self.shift.dtype)
            self.num_classes = num_classes

    @property
    def starts_trained(self) -> bool:
        """Whether the label head comes trained; a source-free run can then start without a checkpoint."""
        return False

    @property
    def shared_stage(self) -> list[nn.Parameter]:
        """The parameters that learn of the last stage before the label head, in the order of the forward pass.

        It is the backbone. A network with a stage between backbone and label head names that one.
        """
        return [parameter for parameter in self.backbone.parameters() if parameter.requires_grad]

    def label_head(self) -> nn.Module:
        """The label head.

        Raises:
            RuntimeError: before :meth:`set_classes`.
        """
        if self.head is None:
            raise RuntimeError(_NO_HEAD)
        return self.head

    def encode(self, x: Any, sizes: Tensor | None = None) -> Any:
        """What the backbone makes of a batch, see :meth:`forward`."""
        return self.pass_backbone(self.normalise(x, sizes))

    def pass_backbone(self, x: Any) -> Any:
        """What the backbone makes of a normalised batch; a frozen backbone takes no gradient."""
        if not self.frozen:
            return self.backbone(x)
        with torch.no_grad():
            return self.backbone(x)

    def normalise(self, x: Any, sizes: Tensor | None = None) -> Any:
        """What the backbone sees of a batch, see :meth:`forward`; padding becomes 0, which is the mean colour.

        It takes one operation on an image, and one more if it changes the memory format.

        Raises:
            UserError: a list of images, another number of channels, integers that are not uint8.
        """
        if isinstance(x, Mapping):
            return {name: self.normalise(value) for name, value in x.items()}
        if isinstance(x, list) and x and isinstance(x[0], str):
            if not getattr(self.backbone, "takes_texts", False):
                raise UserError(
                    f"the backbone {getattr(self, 'backbone_name', type(self.backbone).__name__)} takes no texts: give "
                    "--model.network.backbone transformers: and the name or folder of an encoder"
                )
            return x
        if not isinstance(x, Tensor):
            raise UserError(
                f"a network takes a batch as one tensor (N, C, H, W) and got a {type(x).__name__}: torch.stack images"
                " of one size, or pad them to one size and pass their sizes"
            )
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
            x = torch.addcmul(self.shift, x, self.scale_uint8)
        elif not x.is_floating_point():
            raise UserError(f"images are uint8, or floating point in [0, 1], not {x.dtype}")
        else:
            x = torch.addcmul(self.shift, x.to(self.shift.dtype), self.scale)
        if sizes is None:
            return x
        canvas = (x.shape[2], x.shape[3])
        return x.masked_fill_(~valid_positions(sizes, canvas, canvas)[:, None], 0)  # keeps the memory format

    def train(self, mode: bool = True) -> Self:
        """As any module's, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def new_in_backbone(self) -> list[nn.Module]:
        """Modules that were put into the backbone untrained, so that they learn at the rate of new layers."""
        return []

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: the backbone at ``lr * backbone_lr``, all other parts at ``lr``.

        What is new in the backbone is among the other parts. Frozen parameters and empty groups are left out.

        Raises:
            RuntimeError: before :meth:`set_classes`, as the head would not be trained.
        """
        self.label_head()
        new = {id(parameter) for part in self.new_in_backbone() for parameter in part.parameters()}
        backbone = [parameter for parameter in self.backbone.parameters() if id(parameter) not in new]
        inside = {id(parameter) for parameter in backbone}
        others = [parameter for parameter in self.parameters() if id(parameter) not in inside]
        groups = [
            {"params": [parameter for parameter in part if parameter.requires_grad], "lr": part_lr}
            for part, part_lr in ((backbone, lr * self.backbone_lr), (others, lr))
        ]
        return [group for group in groups if group["params"]]


def prefers_channels_last(network: nn.Module, backbone: nn.Module) -> bool:
    """Whether a network keeps its images in channels-last memory if its configuration says nothing.

    It does if the backbone has convolutions of images and no layer normalisation, and if both are classes of this
    project or of timm. Backbones with layer normalisation, such as transformers, gain nothing. Other classes may be
    written for the usual memory format alone. The answer is no on a machine with an Apple GPU, where this was not
    measured.

    Args:
        network: that has the backbone.
        backbone: makes features of images.
    """
    if any(type(part).__module__.partition(".")[0] not in _MEASURED for part in (network, backbone)):
        return False
    convolves = any(isinstance(part, nn.Conv2d) for part in backbone.modules())
    normalises = any(isinstance(part, nn.LayerNorm) for part in backbone.modules())
    return convolves and not normalises and not torch.backends.mps.is_available()


def check_scale(x: Any) -> None:
    """Checks that images in floating point are in [0, 1]. It waits for the device, so no training step calls it.

    It does nothing for other inputs, and while a program is traced.

    Args:
        x: images (N, C, H, W), or inputs of another form.

    Raises:
        UserError: saying which values there are.
    """
    images = isinstance(x, Tensor) and x.ndim == 4 and x.is_floating_point() and x.numel() > 0
    if not images or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return
    low, high = (float(value) for value in x.aminmax())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise UserError(
            f"images in floating point must be in [0, 1], and these are from {low:g} to {high:g}: give images of 0 to "
            "255 as uint8, and do not normalise them, since the network does it"
        )


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
