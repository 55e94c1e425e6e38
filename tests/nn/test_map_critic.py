"""The critic of maps: padding changes no score; one pass gives the gradients of two."""

import copy

import pytest
import torch
from torch import Tensor

from dafw.errors import UserError
from dafw.nn.map_critic import MapCritic, scores_apart


def make() -> MapCritic:
    torch.manual_seed(0)
    return MapCritic(3, 4, 3).double()


def maps(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64)


def test_its_layers() -> None:
    critic = MapCritic(19)
    shapes = [tuple(layer.weight.shape[:2]) for layer in critic.convolutions]  # type: ignore[union-attr]
    assert shapes == [(64, 19), (128, 64), (256, 128), (512, 256), (1, 512)]
    assert critic(torch.rand(2, 19, 64, 100)).shape == (2, 2, 3)


def test_scores_do_not_depend_on_padding() -> None:
    critic, sizes = make(), torch.tensor([[16, 19], [9, 24], [25, 31], [1, 7]])
    padded = maps(4, 3, 29, 40)  # the padding is not 0
    together = critic(padded, sizes)
    places = critic.places(together, sizes)
    assert places is not None
    assert places.sum((1, 2)).tolist() == [4, 3, 9, 0]
    for row, (height, width) in enumerate(sizes.tolist()[:3]):
        alone = critic(padded[row : row + 1, :, :height, :width])
        torch.testing.assert_close(together[row][places[row]], alone.flatten())
    assert critic.places(together, None) is None


def test_maps_that_are_too_small_are_refused() -> None:
    with pytest.raises(UserError, match=r"3 layers needs images of at least 8 x 8 .* 7 x 30: .* model.critic_layers"):
        make()(maps(1, 3, 7, 30))


@pytest.mark.parametrize("sizes", [None, torch.tensor([[16, 19], [17, 12]])])
def test_one_pass_gives_the_gradients_of_two(sizes: Tensor | None) -> None:
    """Bit for bit those of a pass of detached maps and of a pass of a frozen critic."""
    critic, x = make(), maps(2, 3, 17, 20).requires_grad_()
    teach, mislead = scores_apart(critic, x, sizes)
    (teach.sigmoid().sum() + 3 * mislead.square().sum()).backward()
    other, y = copy.deepcopy(critic), x.detach().clone().requires_grad_()
    other.zero_grad()
    learnt = other(y.detach(), sizes)
    learnt.sigmoid().sum().backward()
    other.requires_grad_(False)
    (3 * other(y, sizes).square().sum()).backward()
    assert torch.equal(teach, learnt)
    assert torch.equal(teach, mislead)
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)
    for one, two in zip(critic.parameters(), other.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.equal(one.grad, two.grad)


def test_each_score_reaches_one_side_alone() -> None:
    critic, x = make(), maps(1, 3, 16, 16).requires_grad_()
    teach, mislead = scores_apart(critic, x)
    everything = [x, *critic.parameters()]
    for score, reached in ((teach, [False] + [True] * 6), (mislead, [True] + [False] * 6)):
        for _ in range(2):  # the graph stays, as for diagnostics
            found = torch.autograd.grad(score.sum(), everything, retain_graph=True, allow_unused=True)
            assert [gradient is not None and bool(gradient.any()) for gradient in found] == reached


def test_a_frozen_critic_and_maps_without_a_graph() -> None:
    critic, x = make(), maps(1, 3, 16, 16)
    teach, _ = scores_apart(critic, x)
    teach.sum().backward()
    assert all(parameter.grad is not None for parameter in critic.parameters())
    critic.requires_grad_(False)
    _, mislead = scores_apart(critic, x.requires_grad_())
    mislead.sum().backward()
    assert x.grad is not None
