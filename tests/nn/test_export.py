"""``torch.export`` of the networks that methods change: another batch size gives what the network itself gives."""

from typing import Any

import pytest
import torch
from networks import images, network
from torch import Tensor, nn

import dafw.methods
from dafw.methods import Method
from dafw.nn.memory import SubPrototypeMemory
from dafw.nn.norm import convert_norm
from dafw.problems import Outputs
from dafw.testing.cases import case

CHANGED = ("DCAN", "GDCAN", "MemSPM", "MCD", "OSBP", "UniOT", "OVANet", "DANN", "AFN")


def exported(module: nn.Module, x: Tensor) -> nn.Module:
    """The module's program with a batch of any size."""
    batch = torch.export.Dim("batch", min=1, max=512)
    program = torch.export.export(module.eval(), (x,), dynamic_shapes={"x": {0: batch}})
    return program.module()


def same(one: Outputs, other: Outputs) -> None:
    assert type(one) is type(other) is Outputs
    torch.testing.assert_close(one.features, other.features)
    torch.testing.assert_close(one.logits, other.logits)


@pytest.mark.parametrize("name", CHANGED)
def test_a_methods_network_keeps_a_free_batch_size(name: str) -> None:
    owner: type[Method] = getattr(dafw.methods, name)
    method = case(owner).make()
    program = exported(method.network, images(4, 6))
    for count in (1, 4, 11):
        x = images(count, 6)
        with torch.no_grad():
            same(program(x), method.network(x))


@pytest.mark.parametrize("options", [{"bottleneck": 8, "dropout": 0.1}, {"head": "weight_norm"}, {"frozen": True}])
@pytest.mark.parametrize("mode", ["joint", "domain_specific"])
def test_a_bare_network_is_exported(options: dict[str, Any], mode: Any) -> None:
    net = network(5, backbone="small_bn_net", **options)
    convert_norm(net, mode)
    program = exported(net, images(2))
    with torch.no_grad():
        x = images(7)
        same(program(x), net(x))


@pytest.mark.parametrize("reading", ["per_item", "global"])
@pytest.mark.parametrize("top_k", [2, 6])
def test_a_memory_is_exported_in_all_its_forms(reading: Any, top_k: int) -> None:
    torch.manual_seed(0)
    sub_prototypes = 2 if reading == "per_item" else 1
    memory = SubPrototypeMemory(6, sub_prototypes, 5, top_k, reading=reading)
    batch = torch.export.Dim("batch", min=1, max=512)
    program = torch.export.export(memory.eval(), (torch.rand(3, 5),), dynamic_shapes={"z": {0: batch}}).module()
    z = torch.rand(9, 5)
    with torch.no_grad():
        torch.testing.assert_close(program(z), memory(z))
