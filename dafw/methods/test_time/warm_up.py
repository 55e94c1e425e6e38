"""A student and its teacher that learn from one another on the source's samples before a stream begins."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dafw.data.batch import Batch
from dafw.losses.self_training import symmetric_cross_entropy
from dafw.nn.teacher import Teacher


def warm_up(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    steps: int,
    decay: float,
    optimizer_of: Callable[[Any], torch.optim.Optimizer],
    logits_of: Callable[[Batch, nn.Module], Tensor],
) -> dict[str, Tensor]:
    """Minimises the mean symmetric cross-entropy of student and teacher, while the rate rises linearly from 0.

    The teacher follows after each step. Both begin as the network, which stays as it is. Döbler et al., RMT, CVPR 2023,
    https://arxiv.org/abs/2211.13081.

    Args:
        network: where both start.
        batches: of the source; their labels are not used.
        steps: number of batches, after which the rate is the whole one.
        decay: share of itself that the teacher keeps in a step. Its buffers stay.
        optimizer_of: makes the optimiser of the student, at the whole rate.
        logits_of: the scores (n, K) that a network gives for a batch.

    Returns:
        The parameters of the student and of the teacher, by ``student.`` and ``teacher.`` and their names.
    """
    student = copy.deepcopy(network)
    teacher, optimizer = Teacher(student, decay, buffers="own"), optimizer_of(student)
    rates = [group["lr"] for group in optimizer.param_groups]
    for number, batch in enumerate(batches, 1):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * number / steps
        with torch.no_grad():
            labels = logits_of(batch, teacher.module)
        loss = symmetric_cross_entropy(logits_of(batch, student), labels).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        teacher.step()
    pairs = (("student", student), ("teacher", teacher.module))
    return {f"{whose}.{name}": one.detach() for whose, model in pairs for name, one in model.named_parameters()}
