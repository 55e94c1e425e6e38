"""MixStyle: training images exchange part of their style in early feature maps of the network.

Zhou et al., "Domain Generalization with MixStyle", ICLR 2021, https://arxiv.org/abs/2104.02008.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from dafw.errors import UserError, choose
from dafw.nn.digits import DigitNet
from dafw.nn.layout import BatchLayout
from dafw.nn.precision import full_precision

Pairs = Literal["random", "cross_domain"]


class MixStyle(nn.Module):
    """Mixes the mean and the deviation of each channel of an image with those of another image; in training only.

    y = s' (x - m) / s + m' with s' = l s + (1 - l) s_j, m' = l m + (1 - l) m_j: m and s of the row's H * W values, j
    the row's partner, l ~ Beta(alpha, alpha) for each row. No gradient flows through the statistics. With probability
    1 - p a batch passes unchanged. So in the authors' code, read in their README (as is the unbiased variance and its
    eps of 1e-6); defaults are theirs. The ranks of a distributed run draw their own numbers and pair their own rows.

    ``random`` pairs by a permutation of the batch. ``cross_domain`` draws each row's partner from the rows of other
    domains, with replacement; a row of the only domain in the batch has itself. (The authors' form swaps the halves of
    a batch of two domains.) The rows' domains come from :class:`~dafw.nn.layout.BatchLayout`, which a method
    fills at each step.

    Args:
        alpha: of the Beta distribution; small values leave l near 0 or 1.
        p: probability that a batch is mixed.
        pairs: random or cross_domain.
        eps: added to the variance.

    Raises:
        UserError: an alpha not above 0, a p outside [0, 1], or unknown pairs.
    """

    def __init__(self, alpha: float = 0.1, p: float = 0.5, pairs: Pairs = "random", eps: float = 1e-6) -> None:
        super().__init__()
        if not alpha > 0:
            raise UserError(f"mixstyle_alpha must be positive, not {alpha}")
        if not 0 <= p <= 1:
            raise UserError(f"mixstyle_p is a probability, from 0 to 1, not {p}")
        self.alpha, self.p, self.eps = alpha, p, eps
        self.pairs = choose("mixstyle_pairs", pairs, ("random", "cross_domain"))
        self.layout = BatchLayout()

    def forward(self, x: Tensor) -> Tensor:
        """Takes and returns maps (N, C, H, W).

        Raises:
            UserError: with ``cross_domain``, if the domains of these rows are not known.
        """
        if not self.training or self.p == 0:
            return x
        wide = full_precision(x)
        with torch.no_grad():
            scale, shift = self.change(wide)
        return torch.addcmul(shift, wide, scale).to(x.dtype)

    def change(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and shift, each (N, C, 1, 1), that give ``x`` its mixed style; 1 and 0 if the batch is not mixed."""
        count, device = len(x), x.device
        var, mean = torch.var_mean(x, (2, 3), keepdim=True)
        std = (var + self.eps).sqrt()
        other = self.partners(count, device)
        concentration = x.new_full((count, 1, 1, 1), self.alpha, dtype=torch.float32)
        own = Beta(concentration, concentration, validate_args=False).sample().to(x.dtype)  # a check would read it
        scale = torch.lerp(std[other], std, own) / std
        shift = torch.lerp(mean[other], mean, own) - mean * scale
        mixed = torch.rand((), device=device) < self.p
        return torch.where(mixed, scale, 1.0), torch.where(mixed, shift, 0.0)

    def partners(self, count: int, device: torch.device) -> Tensor:
        """The partner of each row: (N,) int64."""
        if self.pairs == "random":
            return torch.randperm(count, device=device)
        domain = self.layout.domain_of(count)
        if domain is None:
            raise UserError(
                f"mixstyle_pairs: cross_domain needs the domain of each of the {count} rows of a pass, which are not a"
                " training batch or its source rows: use random pairs with this method"
            )
        scores = torch.rand(count, count, device=device)
        scores = scores.where(domain[:, None] != domain, -1.0)
        scores.fill_diagonal_(-0.5)  # less than any row of another domain, more than one of the same
        return scores.argmax(1)

    def extra_repr(self) -> str:
        """The text that ``print`` shows between the parentheses."""
        return f"alpha={self.alpha}, p={self.p}, pairs={self.pairs}"


def insert_mixstyle(
    module: nn.Module, stages: Sequence[int], *, alpha: float = 0.1, p: float = 0.5, pairs: Pairs = "random"
) -> None:
    """Inserts a :class:`MixStyle` after each of these stages of ``module``, in place; names in its state do not change.

    In a ResNet, timm's or one of the same form, a stage is ``layer1``, ``layer2``, ... In the digit networks a stage is
    a convolution with all layers up to the next one.

    Args:
        module: the backbone.
        stages: numbers of stages, from 1.
        alpha: see :class:`MixStyle`.
        p: see :class:`MixStyle`.
        pairs: see :class:`MixStyle`.

    Raises:
        UserError: a network without such stages or with fewer of them; a stage given twice; see :class:`MixStyle`.
    """
    name = getattr(module, "name", type(module).__name__)
    count = _count_stages(module)
    if not count:
        raise UserError(
            f"mixstyle follows the stages of a ResNet (layer1, layer2, ...) or of a digit network, not {name}'s"
        )
    if len(set(stages)) < len(stages) or not all(1 <= stage <= count for stage in stages):
        raise UserError(f"mixstyle names different stages from 1 to {count} of {name}, not {list(stages)}")
    for stage in sorted(stages):
        layer = MixStyle(alpha, p, pairs)
        if _is_resnet(module):
            getattr(module, f"layer{stage}").add_module("mixstyle", layer)
        else:
            module.layers = _insert(module.layers, stage, layer)  # type: ignore[arg-type]


def _is_resnet(module: nn.Module) -> bool:
    return isinstance(getattr(module, "layer1", None), nn.Sequential)


def _count_stages(module: nn.Module) -> int:
    if _is_resnet(module):
        return len([i for i in range(1, 9) if isinstance(getattr(module, f"layer{i}", None), nn.Sequential)])
    return sum(isinstance(layer, nn.Conv2d) for layer in module.layers) if isinstance(module, DigitNet) else 0


def _insert(layers: nn.Sequential, stage: int, new: nn.Module) -> nn.Sequential:
    """Inserts ``new`` before convolution number ``stage`` + 1, or at the end; the other layers keep their names."""
    named, convolutions = OrderedDict[str, nn.Module](), 0
    for key, layer in layers.named_children():
        convolutions += isinstance(layer, nn.Conv2d)
        if convolutions == stage + 1 and isinstance(layer, nn.Conv2d):
            named[f"mixstyle{stage}"] = new
        named[key] = layer
    named.setdefault(f"mixstyle{stage}", new)
    return nn.Sequential(named)
