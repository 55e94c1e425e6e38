"""Class-wise discrepancy and prototypes: what must hold of any features."""

import pytest
import torch
import torch.nn.functional as F

from dafw.losses.class_discrepancy import class_discrepancies, contrastive_discrepancy
from dafw.losses.prototypes import move_prototypes, prototype_cross_entropy


def rows(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_nothing_within_a_class_of_equal_domains() -> None:
    x = rows(12)
    found = class_discrepancies(x, x, 4)
    torch.testing.assert_close(found.diagonal(), torch.zeros(4, dtype=torch.float64), atol=2e-4, rtol=0)
    assert (found + torch.eye(4) > 0.01).all()
    torch.testing.assert_close(found, found.T)
    intra, inter = contrastive_discrepancy(x, x, torch.arange(4))
    assert abs(intra.item()) < 2e-4 < inter.item()


def test_the_order_inside_a_class_does_not_matter() -> None:
    source, target = rows(12), rows(12, 1)
    shuffled = source.view(4, 3, 5)[:, torch.tensor([2, 0, 1])].reshape(12, 5)
    torch.testing.assert_close(class_discrepancies(source, target, 4), class_discrepancies(shuffled, target, 4))


def test_a_single_class_is_set_against_nothing() -> None:
    source, target = rows(6), rows(6, 1)
    intra, inter = contrastive_discrepancy(source, target, torch.tensor([1]))
    assert intra.item() == class_discrepancies(source, target, 1).item()
    assert inter.item() == 0


def test_a_class_that_comes_twice_is_not_set_against_itself() -> None:
    source, target = rows(9), rows(9, 1)
    found = class_discrepancies(source, target, 3)
    intra, inter = contrastive_discrepancy(source, target, torch.tensor([4, 2, 4]))
    torch.testing.assert_close(intra, found.diagonal().mean())
    torch.testing.assert_close(inter, (found[0, 1] + found[1, 0] + found[1, 2] + found[2, 1]) / 4)
    assert contrastive_discrepancy(source, target, torch.tensor([4, 4, 4]))[1].item() == 0
    _, of_authors = contrastive_discrepancy(source, target, torch.tensor([4, 2, 4]), 3)
    torch.testing.assert_close(of_authors, (found.sum() - found.trace()) / 6)


def test_groups_of_unequal_size() -> None:
    with pytest.raises(ValueError, match="4 classes of equal size cannot be in 10 source and 10 target rows"):
        class_discrepancies(rows(10), rows(10), 4)
    with pytest.raises(ValueError, match="cannot be in 12 source and 8 target rows"):
        class_discrepancies(rows(12), rows(8), 4)


def test_gradients_are_finite_where_rows_coincide() -> None:
    x = rows(6).float()[[0, 0, 0, 1, 1, 1]].requires_grad_()
    intra, inter = contrastive_discrepancy(x, x.detach(), torch.arange(2))
    (intra - inter).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_prototypes_move_to_what_disagrees_with_them() -> None:
    prototypes = F.normalize(rows(3), dim=1)
    same = move_prototypes(prototypes, 4.0 * prototypes[[0, 0, 1]], torch.tensor([0, 0, 1]))
    torch.testing.assert_close(same, prototypes)
    codes = torch.tensor([2, 0, 2])
    moved = move_prototypes(prototypes, rows(3, 1), codes)
    torch.testing.assert_close(moved.norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(moved[1], prototypes[1])
    direction = F.normalize(F.normalize(rows(3, 1), dim=1)[[0, 2]].sum(0), dim=0)
    assert (moved[2] @ direction) > (prototypes[2] @ direction)


def test_prototype_cross_entropy_is_low_at_its_own_prototype() -> None:
    prototypes = F.normalize(rows(3), dim=1)
    codes = torch.arange(3)
    own = prototype_cross_entropy(prototypes, 2.5 * prototypes, codes)
    assert own < prototype_cross_entropy(prototypes, prototypes, codes.roll(1))
    torch.testing.assert_close(own, F.cross_entropy(prototypes @ prototypes.T / 0.1, codes))
