"""Each sample comes with its reference, moved as it is; what is missing is named."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from dafw.data import Domain
from dafw.data.joint import JointDataset
from dafw.data.references import References, check_references
from dafw.data.sampler import Draw
from dafw.errors import UserError


def domain(index: list[int], height: int = 4) -> Domain:
    images = [torch.full((3, 4, 5), 10 * row, dtype=torch.uint8) for row in range(3)]
    for image in images:
        image[:, :, 0] += 1
    others = [image[:, :height] + 100 for image in images]
    return Domain("night", images, None, ["a.png", "b.png", "c.png"], references=References(others, np.array(index)))


def serve(samples: Domain, **options: Any) -> list[Any]:
    data = JointDataset([samples], references=True, **options)
    return [data[Draw(0, row, cycle)] for row in range(len(samples)) for cycle in range(4)]


def test_references_are_shared_chosen_and_moved_with_the_image() -> None:
    samples = serve(domain([2, 0, 0]).subset([0, 2]), augment=v2.RandomHorizontalFlip())
    flipped = {bool(sample.x[0, 0, 4] % 10) for sample in samples}
    assert flipped == {True, False}
    for sample in samples:
        offset = 20 if sample.index == 0 else -20
        assert torch.equal(sample.views["reference"].int(), sample.x.int() + 100 + offset)


def test_without_the_request_no_reference_is_read() -> None:
    assert JointDataset([domain([-1, -1, -1])])[Draw(0, 0, 0)].views == {}


def test_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"a.png is 4x5 and its reference 3x5: both must have one size"):
        serve(domain([0, 1, 2], height=3))


def test_missing_references_are_named() -> None:
    check_references(domain([0, 1, 1]), "CMA")
    needs = "CMA needs a reference of another condition for each image"
    with pytest.raises(UserError) as refused:
        check_references(domain([0, -1, -1]), "CMA")
    assert str(refused.value) == f"{needs}, and b.png of night has none (nor have 1 others)"
    with pytest.raises(UserError) as refused:
        check_references(replace(domain([0, 1, 2]), references=None), "CMA")
    assert str(refused.value) == f"{needs}, and the data has none for night"


def test_as_many_references_as_samples() -> None:
    with pytest.raises(ValueError, match="3 inputs but 2 references"):
        domain([0, 1])
