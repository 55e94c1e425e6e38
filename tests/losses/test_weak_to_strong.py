"""The contrast of strong with weak regions, and the prototypes that label them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.losses.weak_to_strong import RegionLabels, label_regions, update_prototypes, weak_to_strong_contrast


def units(rows: int, width: int = 4, seed: int = 0) -> Tensor:
    return F.normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def found(labels: list[int], accepted: Tensor | None = None, weights: Tensor | None = None) -> RegionLabels:
    rows = len(labels)
    ones = torch.ones(rows, dtype=torch.bool)
    return RegionLabels(
        torch.tensor(labels),
        ones if accepted is None else accepted,
        torch.ones(rows, dtype=torch.float64) if weights is None else weights,
    )


def test_prototypes_start_as_weighted_means_and_then_follow_sure_regions() -> None:
    features, likely = units(6), torch.rand(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    likely = likely / likely.sum(1, keepdim=True)
    counts = torch.tensor([True] * 5 + [False])
    first = update_prototypes(torch.zeros(3, 4, dtype=torch.float64), features, likely, counts)
    torch.testing.assert_close(first, F.normalize(likely[:5].T @ features[:5], dim=1))
    sure = torch.tensor([[0.05, 0.9, 0.05]] * 2 + [[0.85, 0.1, 0.05]] * 3 + [[0.0, 0.0, 1.0]], dtype=torch.float64)
    second = update_prototypes(first, features, sure, counts, decay=0.8)
    moved = F.normalize(0.8 * first[1] + 0.2 * F.normalize(features[:2].sum(0), dim=0), dim=0)
    torch.testing.assert_close(second, torch.stack([first[0], moved, first[2]]))


def test_a_label_counts_if_the_teacher_agrees_or_the_prototype_is_clearly_nearer() -> None:
    prototypes = torch.eye(3)
    features = F.normalize(torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.95], [0.0, 0.95, 1.0], [1.0, 0.0, 0.0]]), dim=1)
    likely = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.7, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    labels = label_regions(prototypes, features, likely, torch.ones(4, dtype=torch.bool))
    assert labels.labels.tolist() == [1, 1, 2, 0]
    assert labels.accepted.tolist() == [True, True, False, True]
    assert labels.weights[:3].tolist() == [1, 1, 1]
    torch.testing.assert_close(labels.weights[3], torch.tensor(0.0), atol=1e-6, rtol=0)
    certain = label_regions(prototypes, features, torch.eye(3)[[0, 0, 0, 0]], torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(certain.weights, torch.ones(4))


def test_the_contrast_is_the_mean_over_objects_and_over_their_class() -> None:
    strong, weak, labels = units(4), units(4, seed=1), [1, 1, 2, 0]
    weights = torch.tensor([1.0, 1.0, 1.0, 0.25], dtype=torch.float64)
    shares = (strong @ weak.T / 0.5).exp() * weights
    parts = [
        -sum(math.log((strong[i] @ weak[p] / 0.5).exp() / shares[i].sum()) for p in positives) / len(positives)
        for i, positives in ((0, [0, 1]), (1, [0, 1]), (2, [2]))
    ]
    loss = weak_to_strong_contrast(strong, weak, found(labels, weights=weights), 0.5)
    torch.testing.assert_close(loss, torch.tensor(sum(parts) / 3, dtype=torch.float64))


def test_the_order_of_regions_does_not_matter_and_uncertain_background_does_not_count() -> None:
    strong, weak, labels = units(5), units(5, seed=1), [1, 2, 1, 0, 0]
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5], dtype=torch.float64)
    loss = weak_to_strong_contrast(strong, weak, found(labels, weights=weights))
    order = torch.tensor([3, 1, 4, 0, 2])
    mixed = found([labels[i] for i in order], weights=weights[order])
    torch.testing.assert_close(weak_to_strong_contrast(strong[order], weak[order], mixed), loss)
    weak[3] = -weak[3]
    torch.testing.assert_close(weak_to_strong_contrast(strong, weak, found(labels, weights=weights)), loss)


def test_it_falls_towards_the_own_class_and_moves_the_student_alone() -> None:
    weak, labels = units(4, seed=1), found([1, 1, 2, 0])
    strong = units(4).requires_grad_()
    teacher = weak.clone().requires_grad_()
    loss = weak_to_strong_contrast(strong, teacher, labels)
    loss.backward()  # type: ignore[no-untyped-call]
    assert teacher.grad is None
    assert strong.grad is not None
    assert strong.grad[:3].abs().sum() > 0
    assert not strong.grad[3].any()
    nearer = F.normalize(strong.detach() - 0.1 * strong.grad, dim=1)
    assert weak_to_strong_contrast(nearer, weak, labels) < loss


def test_nothing_to_contrast_is_zero_and_one_class_is_finite() -> None:
    weak = units(3, seed=1)
    for labels in (found([0, 0, 0]), found([1, 1, 2], accepted=torch.zeros(3, dtype=torch.bool)), found([1, 1, 1])):
        strong = units(3).requires_grad_()
        loss = weak_to_strong_contrast(strong, weak, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        assert loss.isfinite()
        assert strong.grad is not None
        assert strong.grad.isfinite().all()
    assert weak_to_strong_contrast(units(3), weak, found([0, 0, 0])) == 0
