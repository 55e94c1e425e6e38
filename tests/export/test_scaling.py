"""A program scales and cuts images of any size as evaluation does."""

import json

import pytest
import torch
from torch import Tensor, nn

from dafw.data.preparing import Fitted, Preparation, Squashed, Whole, preparation
from dafw.data.scaling import rounded, scaled_size
from dafw.errors import UserError
from dafw.export.forms import quietly, trace
from dafw.export.graph import Program, encode

SHAPES = ((1, 3, 24, 24), (3, 3, 100, 31), (2, 3, 5, 7), (1, 3, 1, 300), (1, 3, 400, 1), (2, 3, 32, 32))
WAYS = (Fitted(24, 32), Fitted(32, 32), Fitted(24, 24, "squash"), Fitted(24, 32, "crop", True), Whole((24, 40)))


class Scales(nn.Module):
    def __init__(self, how: Preparation) -> None:
        super().__init__()
        self.how = how

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"images": self.how.fit(images)}


def example() -> Tensor:
    return torch.randint(0, 256, (2, 3, 61, 101), dtype=torch.uint8)


@pytest.mark.parametrize("how", WAYS, ids=str)
def test_a_program_scales_to_the_bit(how: Preparation) -> None:
    program = trace(Scales(how), example(), "scaled")
    runs = [program.module(), Program(*encode(program))]
    for shape in SHAPES:
        x = torch.randint(0, 256, shape, dtype=torch.uint8)
        for run in runs:
            assert torch.equal(run(x)["images"], how.fit(x)), shape


def test_onnx_differs_by_one_level() -> None:
    runtime = pytest.importorskip("onnxruntime")
    how = WAYS[0]
    with quietly():
        made = torch.onnx.export(trace(Scales(how), example(), "scaled"), dynamo=True)
    assert made is not None
    session = runtime.InferenceSession(made.model_proto.SerializeToString())
    for shape in SHAPES:
        x = torch.randint(0, 256, shape, dtype=torch.uint8)
        found = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        levels = (found.int() - how.fit(x).int()).abs()
        assert levels.max() <= 1
        assert (levels > 0).float().mean() < 0.02


def test_a_half_goes_to_the_even_number() -> None:
    assert [rounded(margin, 2) for margin in range(-9, 40)] == [round(margin / 2) for margin in range(-9, 40)]


def test_a_short_side_scales_to_the_bit() -> None:
    """The other side is rounded as in evaluation."""
    how = Whole(24)
    program = trace(Scales(how), example(), "scaled").module()
    for shape in SHAPES:
        x = torch.randint(0, 256, shape, dtype=torch.uint8)
        height, width = (round(side * 24 / min(shape[2:])) for side in shape[2:])
        assert scaled_size(shape[2:], 24) == (height, width)
        assert torch.equal(program(x)["images"], how.fit(x)), shape
    for short in (3, 7, 48, 50):
        assert [rounded(side * 24, short) for side in range(400)] == [round(side * 24 / short) for side in range(400)]


@pytest.mark.parametrize("how", [*WAYS, Squashed(28), Whole(28), Whole(None)], ids=str)
def test_a_preparation_is_plain_values(how: Preparation) -> None:
    assert preparation(json.loads(json.dumps(how.described()))) == how
    assert how.in_words
    with pytest.raises(UserError, match="other arguments"):
        preparation(how.described() | {"more": 1})
