"""Small networks for digits and traffic signs, trained from scratch.

``mnist_net``, ``svhn_net`` and ``gtsrb_net`` are of Ganin et al., "Domain-Adversarial Training of Neural Networks",
JMLR 17 (2016), https://arxiv.org/abs/1505.07818. In that paper the label head and the critic both sit on the flattened
output of the last convolution. These outputs are the *features* here, and ``make_head`` is the paper's label head.
Every ReLU stands after the pooling of its stage: the two commute, and after pooling it has a quarter of the work.
``mnist_cnn`` is DomainBed's. The others are ours.
"""

from typing import ClassVar

from torch import Tensor, nn

from dafw.errors import UserError
from dafw.nn.attention import SqueezeExcite
from dafw.nn.mlp import mlp


def side_after(layers: nn.Sequential, side: int) -> int:
    """Height (= width) in pixels of the output of ``layers`` for a square image; 0 if the image is too small."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (
                value if isinstance(value, int) else int(value[0])
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            side = (side + 2 * padding - kernel) // stride + 1
            if side < 1:
                return 0
    return side


class DigitNet(nn.Module):
    """Convolutions for square images of one size: (N, C, S, S) -> (N, num_features).

    Args:
        in_channels: channels C of an image.
        input_size: side S of an image in pixels.
        dropout: share of the label head's hidden units dropped in training. The paper names dropout for its SVHN
            network but not its place. 0 leaves it out.

    Raises:
        UserError: if images of that size are too small for the network's convolutions.
    """

    name: ClassVar[str]
    hidden: ClassVar[tuple[int, ...]] = ()
    """Widths of the label head between features and classes."""
    default_size: ClassVar[int]

    def __init__(self, in_channels: int = 3, input_size: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.input_size = self.default_size if input_size is None else input_size
        self.dropout = dropout
        self.layers = self.make_layers(in_channels)
        side = side_after(self.layers, self.input_size)
        if side == 0:
            raise UserError(
                f"{self.name} cannot take images of {self.input_size}x{self.input_size}: they vanish in its"
                f" convolutions, which are made for {self.default_size}x{self.default_size}"
            )
        channels = [layer.out_channels for layer in self.layers if isinstance(layer, nn.Conv2d)][-1]
        self.num_features = channels * side * side

    def make_layers(self, in_channels: int) -> nn.Sequential:
        """The convolutional layers."""
        raise NotImplementedError

    def make_head(self, num_classes: int) -> nn.Module:
        """The label head: (N, num_features) -> (N, num_classes)."""
        return mlp(self.num_features, self.hidden, num_classes, dropout=self.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, num_features).

        Raises:
            UserError: for images of another size, naming both.
        """
        if x.shape[1:] != (self.in_channels, self.input_size, self.input_size):
            raise UserError(
                f"{self.name} is built for images of {self.in_channels}x{self.input_size}x{self.input_size} (channels x"
                f" height x width) and got {'x'.join(str(n) for n in x.shape[1:])}: resize them, or set in_channels and"
                " input_size"
            )
        features: Tensor = self.pool(self.layers(x))
        return features

    def pool(self, x: Tensor) -> Tensor:
        """Pools the last maps, (N, C, H, W) -> (N, num_features): flattens all values."""
        return x.flatten(1)


class MNISTNet(DigitNet):
    """The MNIST network: 28x28 images, 768 features, label head 100-100-K.

    Takes 16x16 and more; another size gives another number of features.
    """

    name = "mnist_net"
    hidden = (100, 100)
    default_size = 28

    def make_layers(self, in_channels: int) -> nn.Sequential:
        """The convolutional layers."""
        return nn.Sequential(
            nn.Conv2d(in_channels, 32, 5),
            nn.MaxPool2d(2, 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 48, 5),
            nn.MaxPool2d(2, 2),
            nn.ReLU(inplace=True),
        )


class SVHNNet(DigitNet):
    """The SVHN network: 32x32 images, 8192 features, label head 3072-2048-K.

    In the paper's drawing, without padding, the third convolution would apply a 5x5 kernel to a 4x4 image.
    Here convolutions keep the size (padding 2) and pooling halves it (padding 1), so 128 maps of 8x8 remain.
    Later papers do the same.
    """

    name = "svhn_net"
    hidden = (3072, 2048)
    default_size = 32

    def make_layers(self, in_channels: int) -> nn.Sequential:
        """The convolutional layers."""
        return nn.Sequential(
            nn.Conv2d(in_channels, 64, 5, padding=2),
            nn.MaxPool2d(3, 2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 64, 5, padding=2),
            nn.MaxPool2d(3, 2, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 128, 5, padding=2),
            nn.ReLU(inplace=True),
        )


class GTSRBNet(DigitNet):
    """The traffic sign network: 40x40 images, 1024 features, label head 512-K. Takes 32x32 and more."""

    name = "gtsrb_net"
    hidden = (512,)
    default_size = 40

    def make_layers(self, in_channels: int) -> nn.Sequential:
        """The convolutional layers."""
        return nn.Sequential(
            nn.Conv2d(in_channels, 96, 5),
            nn.MaxPool2d(2, 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(96, 144, 3),
            nn.MaxPool2d(2, 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(144, 256, 5),
            nn.MaxPool2d(2, 2),
            nn.ReLU(inplace=True),
        )


class SmallBNNet(DigitNet):
    """A compact network with batch normalisation, for methods that act on it: 28x28 or 32x32 images, 128 features.

    Ours, from no paper: three 3x3 convolutions and a linear layer, each with batch normalisation and ReLU; label head
    128-K. A 28x28 image takes 5.1 million multiplications, 1.3 times those of ``mnist_net``. Takes 8x8 and more.
    """

    name = "small_bn_net"
    default_size = 28

    def __init__(self, in_channels: int = 3, input_size: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(in_channels, input_size, dropout)
        flat, self.num_features = self.num_features, 128
        self.projection = nn.Sequential(nn.Linear(flat, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(inplace=True))

    def make_layers(self, in_channels: int) -> nn.Sequential:
        """The convolutional layers."""
        return nn.Sequential(*self.stage(in_channels, 24), *self.stage(24, 64), *self.stage(64, 64))

    def stage(self, before: int, after: int) -> list[nn.Module]:
        """The layers of one stage, which halves the size of the image."""
        norm = nn.BatchNorm2d(after)
        return [nn.Conv2d(before, after, 3, padding=1, bias=False), norm, nn.MaxPool2d(2, 2), nn.ReLU(inplace=True)]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, S, S) -> (N, 128)."""
        features: Tensor = self.projection(super().forward(x))
        return features


class SmallSENet(SmallBNNet):
    """``small_bn_net`` with squeeze-and-excitation after each convolution's normalisation, for methods that act on it.

    Ours, from no paper. As in SE-ResNet, the attention sees the normalised maps before the ReLU. It squeezes them to a
    quarter of their channels.
    """

    name = "small_se_net"

    def stage(self, before: int, after: int) -> list[nn.Module]:
        """The layers of one stage, which halves the size of the image."""
        convolution, norm, *rest = super().stage(before, after)
        return [convolution, norm, SqueezeExcite(after, reduction=4), *rest]


class MNISTCNN(DigitNet):
    """DomainBed's network for rotated and coloured MNIST: 28x28 images, 128 features, label head 128-K.

    It has four 3x3 convolutions of 64, 128, 128 and 128 channels, the second with stride 2. Each is followed by a ReLU
    and then by group normalisation of 8 groups. The features are the means of the last maps (Gulrajani and Lopez-Paz,
    ICLR 2021, https://arxiv.org/abs/2007.01434; order and paddings were read in the authors' code). DomainBed feeds it
    images in [0, 1] as they are. This needs ``mean: [0.0]``, ``std: [1.0]`` of :class:`~dafw.nn.network.Network`; its
    default is 0.5 for both. It takes images of any size.
    """

    name = "mnist_cnn"
    default_size = 28

    def __init__(self, in_channels: int = 3, input_size: int | None = None, dropout: float = 0.0) -> None:
        super().__init__(in_channels, input_size, dropout)
        self.num_features = 128

    def make_layers(self, in_channels: int) -> nn.Sequential:
        """The convolutional layers."""
        layers: list[nn.Module] = []
        for before, after, stride in ((in_channels, 64, 1), (64, 128, 2), (128, 128, 1), (128, 128, 1)):
            convolution = nn.Conv2d(before, after, 3, stride, padding=1)
            layers += [convolution, nn.ReLU(inplace=True), nn.GroupNorm(8, after)]
        return nn.Sequential(*layers)

    def pool(self, x: Tensor) -> Tensor:
        """(N, 128, H, W) -> (N, 128): means."""
        return x.mean((2, 3))


DIGIT_NETS: dict[str, type[DigitNet]] = {
    net.name: net for net in (MNISTNet, SVHNNet, GTSRBNet, SmallBNNet, SmallSENet, MNISTCNN)
}
