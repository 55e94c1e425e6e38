"""Group normalisation in the place of batch normalisation: no other image and no padding has a part in it."""

from typing import Any

import pytest
import torch
from torch import nn

from dafw.errors import UserError
from dafw.nn.detector import Detector
from dafw.nn.group_norm import GroupNorm
from dafw.nn.norm import DomainBatchNorm, convert_norm


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 40, 1),
                         nn.GroupNorm(5, 40), nn.Flatten(), nn.Linear(40 * 64, 6), nn.BatchNorm1d(6))  # fmt: skip


def test_it_takes_the_place_of_batch_norm_with_its_scale_and_shift() -> None:
    module = net()
    with torch.no_grad():
        module[1].weight.uniform_()
    scale, x = module[1].weight, torch.rand(4, 3, 8, 8)
    convert_norm(module, "group")
    assert [type(layer) for layer in (module[1], module[4], module[7])] == [GroupNorm] * 3
    assert [layer.num_groups for layer in (module[1], module[4], module[7])] == [16, 5, 1]
    assert module[1].weight is scale
    assert not [name for name, _ in module.named_buffers()], "no running statistics"
    inner = module[0](x)
    expected = nn.functional.group_norm(inner, 16, module[1].weight, module[1].bias, module[1].eps)
    assert torch.equal(module[1](inner), expected)
    torch.testing.assert_close(module(x)[1:2], module(x[1:2]))
    assert torch.equal(module.eval()(x), module.train()(x))
    module(x).square().sum().backward()
    assert [name for name, value in module.named_parameters() if value.grad is None] == []


def test_padding_has_no_part_in_it_in_any_mode() -> None:
    module = nn.Sequential(nn.GroupNorm(4, 8))
    layout = convert_norm(module, "joint")
    assert isinstance(module[0], GroupNorm)
    torch.manual_seed(0)
    x, sizes = torch.randn(2, 8, 6, 8, dtype=torch.float64), torch.tensor([[6, 8], [3, 4]])
    module.double()
    alone = module(x[1:2, :, :3, :4])
    layout.sizes, layout.canvas = sizes, (6, 8)
    together = module(x)
    torch.testing.assert_close(together[1:2, :, :3, :4], alone)
    x[1, :, 3:] = 100
    torch.testing.assert_close(module(x)[1:2, :, :3, :4], alone)
    bf16 = module.bfloat16()(x.bfloat16())
    assert bf16.dtype == torch.bfloat16
    torch.testing.assert_close(bf16[0].double(), together[0], rtol=0.05, atol=0.05)


def test_a_fused_activation_stays_and_what_cannot_be_replaced_is_refused() -> None:
    from timm.layers import BatchNormAct2d

    module = nn.Sequential(BatchNormAct2d(8))
    x = torch.randn(2, 8, 4, 4)
    convert_norm(module, "group")
    assert (module(x) >= 0).all()
    converted = nn.Sequential(nn.BatchNorm2d(8))
    convert_norm(converted, "joint")
    with pytest.raises(ValueError, match="were not converted before"):
        convert_norm(converted, "group")


def test_rows_that_are_regions_have_no_padding_and_no_domain() -> None:
    def with_regions() -> nn.Sequential:
        head: Any = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
        head.rows_are_regions = True
        return nn.Sequential(nn.BatchNorm2d(3), head)

    for mode in ("joint", "frozen", "group"):
        module = with_regions()
        layout = convert_norm(module, mode)  # type: ignore[arg-type]
        layout.sizes, layout.canvas, layout.num_source, layout.rows = torch.tensor([[4, 4], [2, 3]]), (4, 4), 1, 2
        assert module[1](torch.rand(5, 3, 7, 7)).shape == (5, 8, 7, 7)
    for mode in ("separate", "domain_specific"):
        with pytest.raises(UserError, match=rf"model\.norm is {mode}, but the rows of the batch norm 1\.1 are regions"):
            convert_norm(with_regions(), mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["fasterrcnn", "fcos", "retinanet"])
def test_a_detector_with_group_norm_sees_each_image_alone(arch: Any) -> None:
    torch.manual_seed(0)
    network = Detector(arch)
    network.set_classes(3)
    network.double()
    convert_norm(network, "group")
    assert not any(isinstance(layer, nn.BatchNorm2d | DomainBatchNorm) for layer in network.modules())
    x, sizes = torch.rand(3, 3, 64, 64, dtype=torch.float64), torch.tensor([[64, 64], [48, 32], [32, 64]])
    together, alone = network(x, sizes), network(x[1:2], sizes[1:2])
    for name, maps in together.maps.items():
        for one, other in zip(maps, alone.maps[name], strict=True):
            torch.testing.assert_close(one[1:2], other)
