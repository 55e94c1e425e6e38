"""The small network of masks: shapes, padding, batch norm, and that it learns."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dafw.nn.norm import DomainBatchNorm, convert_norm
from dafw.nn.segmenter import TinySegmenter
from dafw.problems import MaskOutputs
from dafw.recording import build, describe


def segmenter(**options: Any) -> TinySegmenter:
    torch.manual_seed(0)
    network = TinySegmenter(**options)
    network.set_classes(3)
    return network


@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_score_for_each_pixel(auxiliary: bool) -> None:
    network = segmenter(auxiliary=auxiliary)
    outputs = network(torch.randint(0, 256, (2, 3, 9, 12), dtype=torch.uint8))
    assert isinstance(outputs, MaskOutputs)
    assert outputs.features.shape == (2, 16, 5, 6)
    assert outputs.logits.shape == (2, 3, 9, 12)
    assert (None if outputs.auxiliary is None else outputs.auxiliary.shape) == ((2, 3, 9, 12) if auxiliary else None)
    assert outputs.levels is not None
    assert [tuple(level.shape[1:]) for level in outputs.levels] == [(8, 9, 12), (16, 5, 6)]
    assert outputs.vectors().shape == (2, network.num_features)
    assert sum(parameter.numel() for parameter in network.parameters()) < 5000


def test_what_lies_in_the_padding_does_not_matter() -> None:
    network = segmenter().eval()
    batch, sizes = torch.rand(2, 3, 16, 16), torch.tensor([[10, 16], [16, 12]])
    other = batch.clone()
    other[0, :, 10:], other[1, :, :, 12:] = 1.0, 0.0
    one, two = network(batch, sizes), network(other, sizes)
    assert torch.equal(one.logits, two.logits)
    assert torch.equal(one.sizes, sizes)
    assert not torch.equal(network(batch).logits, network(other).logits)


def test_domain_batch_norm_and_a_new_object_from_a_checkpoint() -> None:
    network = segmenter(auxiliary=True, width=4, backbone_lr=0.1)
    convert_norm(network, "domain_specific").num_source = 1
    assert sum(isinstance(layer, DomainBatchNorm) for layer in network.modules()) == 3
    network(torch.rand(2, 3, 8, 8)).logits.sum().backward()
    plain = segmenter(auxiliary=True, width=4)
    again = build(describe(plain))
    again.set_classes(3)
    again.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(again.eval()(x).auxiliary, plain.eval()(x).auxiliary)


def test_it_learns_bright_squares() -> None:
    network = segmenter()
    torch.manual_seed(1)
    masks = torch.zeros(8, 12, 12, dtype=torch.int64)
    for row, mask in enumerate(masks):
        mask[row % 5 : row % 5 + 6, 2:8] = 1
    images = torch.rand(8, 3, 12, 12) * 0.3 + 0.6 * masks[:, None]
    optimizer = torch.optim.Adam(network.parameter_groups(0.02))
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(images).logits, masks).backward()
        optimizer.step()
    right = network.eval()(images).logits.argmax(1) == masks
    assert right.float().mean() > 0.9


def test_it_is_exported_with_a_free_batch() -> None:
    network = segmenter(auxiliary=True).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    shapes = {"x": {0: batch}, "sizes": {0: batch}}
    example = (torch.rand(3, 3, 8, 8), torch.tensor([[8, 8]] * 3))
    program = torch.export.export(network, example, dynamic_shapes=shapes).module()
    x, sizes = torch.rand(5, 3, 8, 8), torch.tensor([[8, 6]] * 5)
    with torch.no_grad():
        torch.testing.assert_close(program(x, sizes).logits, network(x, sizes).logits)
