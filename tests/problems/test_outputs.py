"""Outputs of all kinds: rows, views, one vector an image, joined parts, and torch's view of them."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from dafw.problems import BoxOutputs, MaskOutputs, Outputs, RowOutputs, TensorRows
from dafw.problems.outputs import valid_positions
from dafw.problems.rows import ROW_LIST, SHARED


def classes(n: int = 6) -> Outputs:
    return Outputs(torch.rand(n, 3), torch.rand(n, 2))


def masks(n: int = 6, *, sizes: Tensor | None = None) -> MaskOutputs:
    levels = [torch.rand(n, 2, 8, 8), torch.rand(n, 5, 4, 4)]
    return MaskOutputs(torch.rand(n, 3, 4, 4), torch.rand(n, 2, 8, 8), levels=levels, sizes=sizes)


def boxes(n: int = 6) -> BoxOutputs:
    maps = {"objectness": [torch.rand(n, 2, 4, 4), torch.rand(n, 2, 2, 2)]}
    sizes = torch.tensor([[8, 6]] * n)
    levels = {"0": torch.rand(n, 3, 4, 4), "1": torch.rand(n, 3, 2, 2)}
    return BoxOutputs(levels, maps, [torch.rand(32, 4), torch.rand(8, 4)], (8, 8), sizes)


@dataclass(frozen=True)
class Named(TensorRows):
    """Rows with a list of names, and a word for all of them."""

    names: list[str] = field(metadata=ROW_LIST)
    word: str = field(metadata=SHARED)
    extra: tuple[Tensor, ...] | None = None


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in _pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("make", [classes, masks, boxes])
def test_rows_are_views_of_every_tensor(make: Any) -> None:
    outputs = make()
    assert isinstance(outputs, RowOutputs)
    part = outputs[2:5]
    assert type(part) is type(outputs)
    assert (len(outputs), len(part), len(outputs[:0])) == (6, 3, 0)
    rows = [(a, b) for a, b in zip(tensors(outputs), tensors(part), strict=True) if len(a) == 6]
    assert len(rows) == {classes: 2, masks: 4, boxes: 5}[make]
    for whole, view in rows:
        assert torch.equal(view, whole[2:5])
        assert view.data_ptr() == whole[2].data_ptr(), "nothing is copied"
    torch.testing.assert_close(part.vectors(), outputs.vectors()[2:5])


def test_what_all_rows_share_is_not_sliced() -> None:
    outputs = boxes()
    part = outputs[1:2]
    assert all(a is b for a, b in zip(part.anchors, outputs.anchors, strict=True))
    assert part.canvas == (8, 8)
    assert list(part.levels) == ["0", "1"]


def test_lists_of_rows_and_fields_that_are_none() -> None:
    named = Named(["a", "b", "c"], "w")
    assert len(named) == 3
    assert named[1:] == Named(["b", "c"], "w")
    assert Named.concatenate([named, named[:1]]) == Named(["a", "b", "c", "a"], "w")
    extra = Named([], "w", (torch.zeros(2),))
    assert Named.concatenate([extra, extra]).extra[0].shape == (4,)  # type: ignore[index]
    with pytest.raises(ValueError, match="differ in word: all rows must share it"):
        Named.concatenate([named, Named(["d"], "v")])
    with pytest.raises(ValueError, match="differ in extra: some parts have it and some do not"):
        Named.concatenate([named, extra])


@pytest.mark.parametrize("make", [classes, masks, boxes])
def test_parts_join_to_the_whole(make: Any) -> None:
    outputs = make()
    joined = type(outputs).concatenate([outputs[:1], outputs[1:4], outputs[4:]])
    assert len(joined) == 6
    for whole, again in zip(tensors(outputs), tensors(joined), strict=True):
        assert torch.equal(whole, again)


def test_parts_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="the parts of Outputs differ in logits"):
        Outputs.concatenate([classes(), Outputs(torch.rand(2, 3), torch.rand(2, 5))])
    with pytest.raises(ValueError, match="no part of Outputs"):
        Outputs.concatenate([])
    other = boxes()
    fewer = BoxOutputs(other.levels, {"objectness": other.maps["objectness"][:1]}, other.anchors, (8, 8), other.sizes)
    with pytest.raises(ValueError, match="differ in maps: their numbers of levels differ"):
        BoxOutputs.concatenate([other, fewer])


def test_vectors_of_classes_are_the_features_themselves() -> None:
    outputs = classes()
    assert outputs.vectors() is outputs.features


def test_vectors_leave_the_padding_out() -> None:
    """An image alone has the vector that it has among larger ones, whatever lies in the padding."""
    sizes = torch.tensor([[8, 8], [4, 6], [5, 1], [8, 3]])
    outputs = masks(4, sizes=sizes)
    expected = []
    for features, (height, width) in zip(outputs.features, [(4, 4), (2, 3), (3, 1), (4, 2)], strict=True):
        expected.append(features[:, :height, :width].mean((1, 2)))
        features[:, height:] = torch.nan
        features[:, :, width:] = torch.inf
    torch.testing.assert_close(outputs.vectors(), torch.stack(expected))
    valid = outputs.valid()
    assert valid is not None
    assert valid.sum((1, 2)).tolist() == [64, 24, 5, 24]
    assert masks().valid() is None
    whole = masks()
    torch.testing.assert_close(whole.vectors(), whole.features.mean((2, 3)))
    found = boxes(2)
    torch.testing.assert_close(found.vectors(), found.levels["1"].mean((2, 3)))  # 6 of 8 columns: ceil(1.5) of 2


def test_no_gradient_reaches_the_padding_and_sums_of_16_bits_do_not_overflow() -> None:
    features = torch.full((1, 1, 64, 64), 60.0, dtype=torch.float16, requires_grad=True)
    outputs = MaskOutputs(features, torch.zeros(1, 2, 64, 64), sizes=torch.tensor([[64, 63]]))
    vectors = outputs.vectors()
    assert vectors.dtype == torch.float16
    assert vectors.item() == 60
    vectors.sum().backward()
    assert features.grad is not None
    assert features.grad[..., 63].abs().sum() == 0
    assert (features.grad[..., :63] > 0).all()


def test_positions_are_rounded_up_without_floats() -> None:
    """A side of 2^24 + 1 pixels is no float32."""
    sizes = torch.tensor([[2**24 + 1, 1]])
    assert valid_positions(sizes, (2**25, 4), (2, 4)).sum((1, 2)).tolist() == [2]


@pytest.mark.parametrize("make", [classes, masks, boxes])
def test_torch_looks_inside(make: Any) -> None:
    outputs = make()
    doubled = _pytree.tree_map_only(Tensor, lambda tensor: tensor.double(), outputs)
    assert type(doubled) is type(outputs)
    assert {tensor.dtype for tensor in tensors(doubled)} == {torch.float64}
    leaves, spec = _pytree.tree_flatten(outputs)
    assert _pytree.treespec_loads(_pytree.treespec_dumps(spec)) == spec
    again = _pytree.tree_unflatten(leaves, spec)
    assert again.__dict__.keys() == outputs.__dict__.keys()
    assert all(a is b for a, b in zip(tensors(again), tensors(outputs), strict=True))


class Dense(nn.Module):
    def forward(self, x: Tensor) -> MaskOutputs:
        return MaskOutputs(x, x * 2, levels=[x + 1])


def test_a_module_that_returns_outputs_is_exported_and_saved(tmp_path: Any) -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(Dense(), (torch.rand(3, 2, 4, 4),), dynamic_shapes={"x": {0: batch}})
    torch.export.save(program, tmp_path / "dense.pt2")
    x = torch.rand(5, 2, 4, 4)
    found = torch.export.load(tmp_path / "dense.pt2").module()(x)
    assert isinstance(found, MaskOutputs)
    assert found.auxiliary is None
    assert found.levels is not None
    assert torch.equal(found.levels[0], x + 1)


def test_registering_loads_nothing_of_torch_that_is_not_loaded() -> None:
    code = (
        "import sys, torch, torchmetrics; before = set(sys.modules); import dafw.problems.outputs;"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('torch.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch.export" not in done.stdout
    assert "torch._dynamo" not in done.stdout
