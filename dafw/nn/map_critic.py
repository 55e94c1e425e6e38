"""A fully convolutional critic of maps, and scores of a critic that teach it and mislead it in one pass."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from dafw.data.padding import valid_positions
from dafw.errors import UserError


class MapCritic(nn.Module):
    """Maps (N, C, H, W) to a score for each place, (N, h, w): 4x4 convolutions of stride 2, LeakyReLU 0.2 in between.

    The critic of AdaptSegNet and ADVENT (``FCDiscriminator`` in their code): Tsai et al., CVPR 2018,
    https://arxiv.org/abs/1802.10349, section 5. Each convolution halves the sides, rounded down.

    Args:
        in_channels: channels C of a map.
        width: channels of the first convolution; each following one has twice as many, the last one 1.
        layers: number of convolutions.
    """

    def __init__(self, in_channels: int, width: int = 64, layers: int = 5) -> None:
        super().__init__()
        widths = [in_channels, *(width * 2**number for number in range(layers - 1)), 1]
        self.convolutions = nn.ModuleList(nn.Conv2d(*pair, 4, stride=2, padding=1) for pair in pairwise(widths))
        self.activation = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Scores of maps.

        Args:
            x: (N, C, H, W).
            sizes: (N, 2) int64, height and width of each map within its padding. Padding is set to 0 before each
                convolution, so that the scores of a map's own places do not depend on it.

        Returns:
            (N, H // 2^layers, W // 2^layers); :meth:`places` says which of them are a map's own.

        Raises:
            UserError: if the maps are too small for so many convolutions.
        """
        least = 2 ** len(self.convolutions)
        if min(x.shape[2:]) < least:
            raise UserError(
                f"a critic of {len(self.convolutions)} layers needs images of at least {least} x {least} pixels, and "
                f"these have {x.shape[2]} x {x.shape[3]}: give a smaller model.critic_layers"
            )
        for number, convolution in enumerate(self.convolutions):
            x = convolution(_without_padding(x, sizes, number))
            if number < len(self.convolutions) - 1:
                x = self.activation(x)
        return x.squeeze(1)

    def places(self, scores: Tensor, sizes: Tensor | None) -> Tensor | None:
        """Which scores (N, h, w) are those of the maps' own places, (N, h, w) bool; ``None`` if all are."""
        return None if sizes is None else _inside(scores, sizes, len(self.convolutions))


def _inside(x: Tensor, sizes: Tensor, halvings: int) -> Tensor:
    """The places of maps (..., h, w) whose sides were halved so many times that are not padding, (N, h, w)."""
    grid = (x.shape[-2], x.shape[-1])
    return valid_positions(sizes >> halvings, grid, grid)


def _without_padding(x: Tensor, sizes: Tensor | None, halvings: int) -> Tensor:
    return x if sizes is None else x.masked_fill(~_inside(x, sizes, halvings)[:, None], 0)


def scores_apart(critic: nn.Module, x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    """The scores of a critic twice, of one pass: the first to teach the critic, the second to mislead it.

    A gradient at the first reaches the critic's parameters and not ``x``. A gradient at the second reaches ``x`` and
    not the parameters. So one backward pass gives the gradients of two steps, of which one freezes the critic and the
    other detaches ``x``. Each of the two goes back through the critic on its own. They are differentiable once.

    Args:
        critic: without random numbers; called as ``critic(x, *others)``.
        x: its input, with or without a graph.
        others: further arguments, which take no gradient.

    Returns:
        Two tensors of the same values, which share their memory: do not change them in place.
    """
    parameters = [parameter for parameter in critic.parameters() if parameter.requires_grad]
    teach, mislead = _ScoresApart.apply(critic, others, x, *parameters)
    return teach, mislead


class _ScoresApart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, critic: nn.Module, others: tuple[Any, ...], x: Tensor, *parameters: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_(x.requires_grad)
            ctx.scores, ctx.parameters = critic(ctx.x, *others), parameters
        return ctx.scores.detach(), ctx.scores.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        teach, mislead = grads
        found: tuple[Tensor | None, ...] = (None,) * len(ctx.parameters)
        if teach is not None and ctx.parameters:
            found = torch.autograd.grad(ctx.scores, ctx.parameters, teach, retain_graph=True)
        at_x = None
        if mislead is not None and ctx.x.requires_grad:
            (at_x,) = torch.autograd.grad(ctx.scores, ctx.x, mislead, retain_graph=True)
        return None, None, at_x, *found
