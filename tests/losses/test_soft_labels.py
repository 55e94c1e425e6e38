"""Soft labels: what they are for equal scores, and that likely objects weigh as much as the rest."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dafw.losses.soft_labels import soft_class_loss, soft_move_loss, soft_score_loss


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_classes_are_compared_by_the_cross_entropy_of_the_rows_that_count() -> None:
    student, teacher = numbers(5, 3), numbers(5, 3, seed=1)
    counts = torch.tensor([True, False, True, True, False])
    expected = F.cross_entropy(student[counts], teacher[counts].softmax(1))
    torch.testing.assert_close(soft_class_loss(student, teacher, counts), expected)
    assert soft_class_loss(student, teacher, counts & False) == 0


def test_equal_scores_leave_no_gradient() -> None:
    teacher, counts = numbers(5, 3), torch.ones(5, dtype=torch.bool)
    student = teacher.clone().requires_grad_()
    soft_class_loss(student, teacher, counts).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(student.grad, torch.zeros(5, 3, dtype=torch.float64))
    scores = teacher[:, 0].clone().requires_grad_()
    soft_score_loss(scores, teacher[:, 0], counts).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(scores.grad, torch.zeros(5, dtype=torch.float64))


def test_a_few_objects_weigh_as_much_as_many_empty_positions() -> None:
    """With certain labels it is half the mean over the objects and half that over the rest."""
    teacher = torch.full((100,), -40.0, dtype=torch.float64)
    teacher[:3] = 40
    student, counts = numbers(100), torch.ones(100, dtype=torch.bool)
    counts[50:] = False
    each = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    torch.testing.assert_close(soft_score_loss(student, teacher, counts), (each[:3].mean() + each[3:50].mean()) / 2)
    assert soft_score_loss(student, teacher, counts & False) == 0


def test_moves_are_compared_where_the_teacher_sees_an_object_and_turn_with_a_mirrored_view() -> None:
    student, teacher, scores = numbers(3, 8), numbers(3, 8, seed=1), torch.tensor([[0.0, 1], [1, 0], [0, 1]])
    counts, signs = torch.tensor([True, True, True]), torch.tensor([[-1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    turned = teacher[0, 4:] * torch.tensor([-1.0, 1.0, 1.0, 1.0])
    distance = (student[0, 4:] - turned).abs().sum() + (student[2, 4:] - teacher[2, 4:]).abs().sum()
    torch.testing.assert_close(soft_move_loss(student, teacher, scores, counts, signs), distance / 3)
