"""The classifiers of 32-pixel images whose weights the benchmarks of CIFAR-10-C and CIFAR-100-C start from.

The names of their weights are those of the files that RobustBench offers (its code was read), so such a file is
``model.network.weights``, with ``model.network.head: pretrained``. The files themselves were not seen.
"""

from collections import OrderedDict

from torch import Tensor, nn


class _WideBlock(nn.Module):
    """Normalise, ReLU, convolution, twice; the first pair comes before the shortcut where the width changes."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(channels, out, 1, stride, bias=False) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.bn1(x).relu()
        y: Tensor = self.conv2(self.bn2(self.conv1(seen)).relu())
        return y + (x if self.convShortcut is None else self.convShortcut(seen))


class WideResNet(nn.Module):
    """A wide residual network: images (N, 3, 32, 32) to class scores (N, K).

    Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146. RobustBench's model
    ``Standard`` for CIFAR-10 is one of depth 28 and width 10, whose images are not normalised (mean 0, standard
    deviation 1; recalled).

    Args:
        depth: 6 n + 4 layers.
        width: factor of the channels.
        num_classes: K.
    """

    def __init__(self, depth: int = 28, width: int = 10, num_classes: int = 10) -> None:
        super().__init__()
        blocks, sizes = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        if depth != 6 * blocks + 4:
            raise ValueError(f"the depth of a wide residual network is 6 n + 4, not {depth}")
        self.conv1 = nn.Conv2d(3, sizes[0], 3, padding=1, bias=False)
        for stage in (1, 2, 3):
            ends = [(sizes[stage - 1], 1 if stage == 1 else 2), *[(sizes[stage], 1)] * (blocks - 1)]
            layers = [_WideBlock(channels, sizes[stage], stride) for channels, stride in ends]
            self.add_module(f"block{stage}", nn.Sequential(OrderedDict(layer=nn.Sequential(*layers))))
        self.bn1, self.fc = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images."""
        y: Tensor = self.conv1(x)
        for stage in (1, 2, 3):
            y = self.get_submodule(f"block{stage}")(y)
        scores: Tensor = self.fc(self.bn1(y).relu().mean((2, 3)))
        return scores


class _NextBlock(nn.Module):
    """Convolutions of one pixel, of groups, and of one pixel, beside a shortcut."""

    def __init__(self, channels: int, width: int, cardinality: int, base_width: int, stride: int) -> None:
        super().__init__()
        inner, out = width * base_width // 64 * cardinality, 4 * width
        self.conv_reduce, self.bn_reduce = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv_conv = nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality, bias=False)
        self.bn = nn.BatchNorm2d(inner)
        self.conv_expand, self.bn_expand = nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)
        shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.downsample = shortcut if channels != out or stride != 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn_reduce(self.conv_reduce(x)).relu()
        y = self.bn_expand(self.conv_expand(self.bn(self.conv_conv(y)).relu()))
        sums: Tensor = y + (x if self.downsample is None else self.downsample(x))
        return sums.relu()


class ResNeXt(nn.Module):
    """A ResNeXt for 32-pixel images: (N, 3, 32, 32) to class scores (N, K).

    Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017,
    https://arxiv.org/abs/1611.05431. RobustBench's model ``Hendrycks2020AugMix_ResNeXt`` for CIFAR-100 is one of depth
    29, cardinality 4 and base width 32, whose images are normalised by mean 0.5 and standard deviation 0.5 (recalled).

    Args:
        depth: 9 n + 2 layers.
        cardinality: groups of the middle convolution.
        base_width: channels of a group for 64 channels of the block.
        num_classes: K.
    """

    def __init__(self, depth: int = 29, cardinality: int = 4, base_width: int = 32, num_classes: int = 100) -> None:
        super().__init__()
        blocks, channels = (depth - 2) // 9, 64
        if depth != 9 * blocks + 2:
            raise ValueError(f"the depth of a ResNeXt is 9 n + 2, not {depth}")
        self.conv_1_3x3, self.bn_1 = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        for stage, width in enumerate((64, 128, 256), 1):
            layers = []
            for number in range(blocks):
                stride = 2 if stage > 1 and not number else 1
                layers.append(_NextBlock(channels, width, cardinality, base_width, stride))
                channels = 4 * width
            self.add_module(f"stage_{stage}", nn.Sequential(*layers))
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images."""
        y: Tensor = self.bn_1(self.conv_1_3x3(x)).relu()
        for stage in (1, 2, 3):
            y = self.get_submodule(f"stage_{stage}")(y)
        scores: Tensor = self.classifier(y.mean((2, 3)))
        return scores
