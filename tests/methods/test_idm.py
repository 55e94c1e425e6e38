"""IDM: one image of the target, uncertain source images in its style, patches of it, and prototypes."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dafw.data import Domain
from dafw.data.batch import Batch
from dafw.data.padding import IGNORE
from dafw.data.roles import Split
from dafw.errors import UserError
from dafw.losses.pixel_prototypes import moved_prototypes, prototype_information
from dafw.methods import IDM
from dafw.methods.segmentation.idm import balanced_mean
from dafw.nn.class_mix import grid_mask
from dafw.nn.styles import moments, stylise
from dafw.problems import MaskOutputs
from dafw.testing import case
from dafw.testing.cases import BATCH
from dafw.testing.toys import ToyData


def trained(folder: Path, sizes: bool = False, **arguments: Any) -> tuple[Any, Batch]:
    item = case(IDM, data_arguments={"sizes": sizes}, **arguments)
    data = item.make_data()
    model, _ = item.train(folder, data=data, epochs=1, limit_val_batches=0)
    model.train()
    return model, next(iter(data.train_dataloader()))


READ: set[int] = set()


class Noted(list[Tensor]):
    """Images that note which of them are read."""

    def __getitem__(self, index: Any) -> Any:
        READ.add(int(index))
        return super().__getitem__(index)


class NotedData(ToyData):
    """Toy data that notes which training images of b are read."""

    def load(self, name: str, split: Split) -> Domain:
        domain = super().load(name, split)
        noted = Noted(domain.inputs[index] for index in range(len(domain)))
        return replace(domain, inputs=noted) if (name, split) == ("b", "train") else domain


def test_training_reads_one_image_of_the_target(tmp_path: Path) -> None:
    item = case(IDM, data=NotedData, data_arguments={"source": "a", "target": "b", "kind": "segmentation"})
    data = item.make_data()
    READ.clear()
    item.train(tmp_path, method=item.make(image="b/5"), data=data, limit_val_batches=0)
    assert {5} == READ


def test_the_seed_draws_the_image_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    item, chosen = case(IDM), set()
    for seed in range(5):
        data = item.make_data(seed=seed)
        item.train(tmp_path, method=item.make(), data=data, epochs=1, limit_val_batches=0)
        target = data.train_domains[1]
        assert len({target.id(index) for index in range(len(target))}) == 1
        assert target.labels is None
        chosen.add(target.id(0))
    assert len(chosen) > 1
    with pytest.raises(UserError, match=r'unknown training image of b "b/77": did you mean "b/7"'):
        item.train(tmp_path, method=item.make(image="b/77"), data=item.make_data())
    with pytest.raises(UserError, match="one image of one target trains, and there are 2 targets"):
        item.train(tmp_path, method=item.make(), data=item.make_data(target=["b", "c"]))


@pytest.mark.parametrize("sizes", [False, True])
def test_source_images_get_the_style_and_patches_come_from_the_target(sizes: bool, tmp_path: Path) -> None:
    model, batch = trained(tmp_path, sizes)
    x, _, patched = model.rows(batch)
    again = model.rows(batch)
    assert torch.equal(x, again[0])
    assert torch.equal(patched, again[2])
    styled, mixed, target = x[:BATCH], x[BATCH:], batch.x[BATCH:]
    given = None if batch.sizes is None else batch.sizes
    mean, _ = moments(styled / 255, None if given is None else given[:BATCH])
    wanted, _ = moments(target / 255, None if given is None else given[BATCH:])
    assert (mean - wanted).abs().max() < 0.05  # what lies beyond 0 and 1 is cut off
    assert 0.2 < patched.float().mean() < 0.8
    for row in range(BATCH):
        height, width = (8, 8) if given is None else given[BATCH + row].tolist()
        inside = patched[row, :height, :width]
        assert torch.equal(mixed[row, :, :height, :width][:, inside], target[row, :, :height, :width][:, inside])
        assert torch.equal(mixed[row, :, :height, :width][:, ~inside], styled[row, :, :height, :width][:, ~inside])
        assert not patched[row, height:].any()
        assert not mixed[row, :, height:].any()


def test_labels_of_mixed_images_follow_the_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = trained(tmp_path)
    seen: list[Tensor] = []
    problem = model.problem
    whole = type(problem).weighted_loss
    monkeypatch.setattr(
        type(problem), "weighted_loss", lambda self, o, y, w: seen.append(y) or whole(self, o, y, w), raising=True
    )
    model.losses(batch)
    patched, taught = model.rows(batch)[2], model.teach(batch)
    assert torch.equal(seen[0][patched], taught[patched])
    assert torch.equal(seen[0][~patched], batch.y[~patched])


def outputs(shares: list[float]) -> MaskOutputs:
    """Images of two classes, each as sure as its share says."""
    logits = torch.zeros(len(shares), 2, 4, 4)
    logits[:, 0] = torch.tensor(shares).logit()[:, None, None]
    return MaskOutputs(torch.zeros(len(shares), 3, 4, 4), logits)


def test_the_most_uncertain_images_are_selected() -> None:
    model = case(IDM).make(select=0.5, random_share=0.0, num_classes=2)
    labels = torch.zeros(4, 4, 4, dtype=torch.uint8)
    assert model.selected(outputs([0.9, 0.6, 0.99, 0.7]), labels).tolist() == [False, True, False, True]
    model = case(IDM).make(select=0.0, random_share=1.0, num_classes=2)
    assert model.selected(outputs([0.9, 0.6]), labels[:2]).all()


def test_small_classes_count_as_much_as_large_ones() -> None:
    values, labels = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.uint8)
    labels[0, 0, 0], values[0, 0, 0] = 1, 1.0
    labels[0, 3, 3], values[0, 3, 3] = IGNORE, 9.0
    assert balanced_mean(values, labels, 3).tolist() == [0.5]
    assert balanced_mean(values, torch.full_like(labels, IGNORE), 3).tolist() == [0.0]


def test_prototypes_move_towards_the_means_and_information_is_highest_for_sure_and_even_places() -> None:
    features, labels = torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, 1, IGNORE]]])
    features[0, 0, 0], features[0, 1, 0] = torch.tensor([1.0, 3.0, 0.0, 9.0]), torch.tensor([0.0, 0.0, 1.0, 9.0])
    start = moved_prototypes(torch.zeros(3, 2), features, labels, 0.9)
    assert start.tolist() == [[2, 0], [0, 1], [0, 0]]
    moved = moved_prototypes(start, 2 * features, labels, 0.9)
    torch.testing.assert_close(moved, torch.tensor([[2.2, 0], [0, 1.1], [0, 0]]))
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    even = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    odd, unsure = torch.tensor([[[[1.0, 1.0]], [[0.0, 0.0]]]]), torch.ones(1, 2, 1, 2)
    best, lopsided, vague = (prototype_information(one, start, valid, 0.1).item() for one in (even, odd, unsure))
    assert math.isclose(best, math.log(2), abs_tol=1e-3)
    assert best > lopsided + 0.5
    assert best > vague + 0.5
    nothing = prototype_information(even.requires_grad_(), torch.zeros(3, 2), valid, 0.1)
    nothing.backward()
    assert nothing.isfinite()
    assert even.grad is not None
    assert even.grad.isfinite().all()


def test_styles_and_patches_by_hand() -> None:
    torch.manual_seed(0)
    x, style = 0.4 + 0.1 * torch.rand(2, 3, 5, 6), 0.5 + 0.05 * torch.rand(2, 3, 4, 4)
    for one, other in zip(moments(stylise(x, style), None), moments(style, None), strict=True):
        torch.testing.assert_close(one, other)
    numbers = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    mask = grid_mask(numbers, torch.tensor([[4, 2]]), (4, 4))
    assert mask[0, :, :2].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3]]
