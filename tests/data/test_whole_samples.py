"""A transform moves an image together with its mask or its boxes, and views of one input share a frame."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from dafw.data import Domain, Draw, JointDataset, collate
from dafw.data.padding import IGNORE, join_padded
from dafw.data.whole_samples import transform_sample
from dafw.errors import UserError
from dafw.problems import Classification, Detection, Segmentation
from dafw.testing.dense_toys import toy_boxes, toy_masks
from dafw.testing.toys import ToyData, jitter, toy_domain


def smooth_masks(count: int = 4, side: int = 64) -> Domain:
    """Images that are their masks: the pixels say the class, 100 for 1 and 200 for 2."""
    masks = []
    for index in range(count):
        mask = torch.zeros(side, side, dtype=torch.uint8)
        mask[10 + index : 40, 20 : 50 - index] = 1
        mask[30:60, 5 : 25 + index] = 2
        masks.append(mask)
    return Domain("a", [(100 * mask).expand(3, -1, -1).clone() for mask in masks], masks)


def flipped_batch(domain: Domain, probability: float = 1.0) -> Any:
    data = JointDataset([domain], augment=v2.RandomHorizontalFlip(probability))
    return collate([data[Draw(0, index, 0)] for index in range(len(domain))])


def test_a_flip_moves_image_and_mask() -> None:
    domain = toy_masks("a", 4)
    batch = flipped_batch(domain)
    for x, y, index in zip(batch.x, batch.y, range(4), strict=True):
        assert torch.equal(x, domain.inputs[index].flip(-1))
        assert torch.equal(y, domain.labels[index].flip(-1))  # type: ignore[index]
    assert type(batch.x) is type(batch.y) is Tensor


def test_one_draw_moves_image_and_mask() -> None:
    """Half of the samples are flipped, and of each image and mask both or none."""
    domain = smooth_masks(4)
    many = Domain("a", [*domain.inputs] * 8, [*domain.labels] * 8)  # type: ignore[misc]
    batch = flipped_batch(many, 0.5)
    assert torch.equal(batch.x[:, 0], 100 * batch.y)
    flips = sum(not torch.equal(y, many.labels[i]) for i, y in enumerate(batch.y))  # type: ignore[index]
    assert 4 < flips < 28


def test_a_flip_moves_image_and_boxes() -> None:
    domain = toy_boxes("a", 4)
    batch = flipped_batch(domain)
    for x, y, index in zip(batch.x, batch.y, range(4), strict=True):
        label: Any = domain.labels[index]  # type: ignore[index]
        assert torch.equal(x, domain.inputs[index].flip(-1))
        assert torch.equal(
            y["boxes"], label["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([32, 0, 32, 0])
        )
        assert torch.equal(y["labels"], label["labels"])
        assert type(y["boxes"]) is Tensor


def test_a_box_that_leaves_the_image_takes_its_class_with_it() -> None:
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    label = {"boxes": torch.tensor([[0.0, 0, 4, 4], [12, 12, 18, 20]]), "labels": torch.tensor([1, 2]), "name": "x"}
    x, y = transform_sample(v2.CenterCrop(10), image, label)
    assert x.shape == (3, 10, 10)
    assert y["boxes"].tolist() == [[7, 7, 10, 10]]
    assert (y["labels"].tolist(), y["name"]) == ([2], "x")


@pytest.mark.parametrize("domain", [toy_masks("a", 2), toy_boxes("a", 2)], ids=["masks", "boxes"])
@pytest.mark.parametrize(
    "transform", [jitter, v2.Compose([v2.RandomHorizontalFlip(), jitter]), nn.Sequential(nn.Identity())]
)
def test_a_plain_function_is_refused_by_name(domain: Domain, transform: Any) -> None:
    name = "Identity" if isinstance(transform, nn.Sequential) else "jitter"
    said = (
        rf"data\.augment: {name} moves an image without its mask or boxes: use transforms of torchvision\.transforms\."
    )
    with pytest.raises(UserError, match=said):
        _ = JointDataset([domain], augment=transform)[Draw(0, 0, 0)]


def test_a_plain_function_is_no_view_of_a_mask() -> None:
    data = JointDataset([toy_masks("a", 2)], views={"strong": jitter}, maps=True)
    with pytest.raises(UserError, match='the view "strong": jitter moves an image without'):
        _ = data[Draw(0, 0, 0)]


def test_a_class_stays_and_a_plain_function_may_change_its_image() -> None:
    sample = JointDataset([toy_domain("a", 2)], augment=jitter)[Draw(0, 1, 0)]
    assert sample.y == 1


STRONG = {
    "flip": v2.RandomHorizontalFlip(1.0),
    "affine": v2.RandomAffine(20, (0.1, 0.1), (0.8, 1.2), 5),
    "crop": v2.RandomResizedCrop((48, 40), (0.5, 0.9), antialias=False, interpolation=v2.InterpolationMode.NEAREST),
}


@pytest.mark.parametrize("name", STRONG)
def test_weak_and_strong_views_share_a_frame(name: str) -> None:
    """What is predicted on the weak view lies on the strong view where the same pixels went, within one pixel."""
    domain = smooth_masks()
    augment = v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomAffine(10)])
    data = JointDataset([domain], augment=augment, views={"strong": STRONG[name]}, maps=True)
    for cycle in range(5):
        batch = collate([data[Draw(0, index, cycle)] for index in range(4)])
        weak = (batch.x[:, 0] / 100).round().to(torch.uint8)
        strong = (batch.views["strong"][:, 0] / 100).round().to(torch.uint8)
        carried = Segmentation().carry(weak, batch.maps["strong"], tuple(strong.shape[1:]))
        seen = carried != IGNORE
        assert seen.float().mean() > 0.5
        near = torch.stack([strong.roll((i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)])
        wrong = seen & ~(near == carried).any(0)
        assert wrong[:, 1:-1, 1:-1].sum() == 0
        assert (strong[seen] == carried[seen]).float().mean() > 0.93


def test_boxes_are_carried_where_their_pixels_went() -> None:
    """The box around what is bright on the view and the carried box agree within one pixel."""
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, 24:40, 20:44] = 255
    label = {"boxes": torch.tensor([[20.0, 24, 44, 40]]), "labels": torch.tensor([1])}
    for transform in (v2.RandomHorizontalFlip(1.0), v2.RandomAffine(0, (0.1, 0.1), (0.8, 1.2))):
        data = JointDataset([Domain("a", [image], [label])], views={"strong": transform}, maps=True)
        for cycle in range(5):
            batch = collate([data[Draw(0, 0, cycle)]])
            (carried,) = Detection().carry([label], batch.maps["strong"], (64, 64))
            rows, columns = (batch.views["strong"][0, 0] > 0).nonzero().unbind(1)
            found = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (carried["boxes"][0] - found).abs().max() <= 1
            assert carried["labels"].tolist() == [1]


def test_classes_need_no_map() -> None:
    y = torch.tensor([2, 0])
    assert Classification().carry(y, torch.zeros(2, 2, 3), (4, 4)) is y


def test_training_flips_both_through_the_datamodule() -> None:
    data = ToyData("a", "b", kind="segmentation", batch_size=8, augment=v2.RandomHorizontalFlip(1.0))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    domain: Any = data.load("a", "train")
    for x, y, index in zip(batch.x[:8], batch.y, batch.index[:8], strict=True):
        assert torch.equal(x, domain.inputs[index].flip(-1))
        assert torch.equal(y, domain.labels[index].flip(-1))


def test_batches_of_other_sizes_become_one() -> None:
    small, large = torch.ones(2, 3, 4, 5), torch.ones(1, 3, 6, 4)
    x, sizes = join_padded([(small, torch.tensor([[4, 5], [3, 2]])), (large, None)])
    assert sizes is not None
    assert (tuple(x.shape), sizes.tolist()) == ((3, 3, 6, 5), [[4, 5], [3, 2], [6, 4]])
    assert x[0].sum() == 60
    x, sizes = join_padded([(small, None), (small, None)])
    assert (tuple(x.shape), sizes) == ((4, 3, 4, 5), None)
