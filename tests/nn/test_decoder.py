import pytest
import torch
from torch import nn

from dafw.errors import UserError
from dafw.nn.decoder import Decoder, UpsamplingBlock
from dafw.nn.norm import DomainBatchNorm


@pytest.mark.parametrize("size", [(6, 6), (28, 28), (32, 20), (3, 1), (65, 65)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size(size: tuple[int, int], channels: int) -> None:
    decoder = Decoder(5, channels, (8, 6, 4), start=4)
    images = decoder(torch.randn(3, 5), size)
    assert images.shape == (3, channels, *size)
    images.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in decoder.parameters())


def test_sizes_double() -> None:
    assert Decoder(5, 3, (4, 4, 4)).sizes(28, 28) == [(14, 14), (28, 28)]
    assert Decoder(5, 3, [4] * 6).sizes(224, 112)[::2] == [(14, 12), (56, 37), (224, 112)]
    assert [h for h, _ in Decoder(5, 3, [4] * 6).sizes(224, 224)] == [14, 28, 56, 112, 224]


def test_a_row_does_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    decoder, z = Decoder(5, 3).double(), torch.randn(4, 5, dtype=torch.float64)
    assert not any(
        isinstance(module, nn.modules.batchnorm._BatchNorm | DomainBatchNorm) for module in decoder.modules()
    )
    alone = torch.cat([decoder(row[None], (12, 12)) for row in z])
    torch.testing.assert_close(decoder(z, (12, 12)), alone, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("after", [6, 3])
def test_a_block_adds_to_the_enlarged_maps(after: int) -> None:
    torch.manual_seed(0)
    block, x = UpsamplingBlock(6, after), torch.randn(2, 6, 3, 3)
    nn.init.zeros_(block.conv2.weight)
    assert block.conv2.bias is not None
    nn.init.zeros_(block.conv2.bias)
    enlarged = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(block(x, (6, 6)), block.shortcut(enlarged))
    assert isinstance(block.shortcut, nn.Identity) == (after == 6)


def test_it_learns_images() -> None:
    torch.manual_seed(0)
    decoder, z, images = Decoder(4, 1, (16, 8), start=4), torch.randn(4, 4), torch.rand(4, 1, 10, 10)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    losses = []
    for _ in range(150):
        loss = (decoder(z, (10, 10)) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]
    assert losses[-1] < 0.03  # images of noise vary by 1/12


@pytest.mark.parametrize(("widths", "start"), [((4,), 7), ((4, 0), 7), ((4, 4), 0)])
def test_refusals(widths: tuple[int, ...], start: int) -> None:
    with pytest.raises(UserError, match="two widths or more"):
        Decoder(5, 3, widths, start=start)
