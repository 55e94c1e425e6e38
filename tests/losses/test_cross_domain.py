"""The contrast of cells and its queue, against vectors of the authors' code."""

import pytest
import torch
from golden_vectors import golden

from dafw.losses.cross_domain import cell_contrast, enqueue, pool


def vectors() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in golden("cma/cdc_loss.npz").items()}


def test_the_contrast_is_the_authors() -> None:
    given = vectors()
    anchors = given["emb_anc"].requires_grad_()
    found = cell_contrast(
        anchors,
        given["emb_pos"],
        given["confidence"],
        given["queue0"],
        cells=int(given["num_grid"]),
        temperature=float(given["temperature"]),
        least_confidence=float(given["conf_thr"]),
    )
    torch.testing.assert_close(found, given["loss"])
    (gradient,) = torch.autograd.grad(found, anchors)
    torch.testing.assert_close(gradient, given["grad_anc"])


def test_the_queue_is_the_authors_and_wraps() -> None:
    given = vectors()
    queue, pointer = given["queue0"], torch.zeros((), dtype=torch.int64)
    for step in ("1", "2"):
        rows = torch.nn.functional.normalize(pool(given[f"neg{step}"], int(given["num_grid"])), dim=1)
        queue, pointer = enqueue(queue, pointer, rows)
        torch.testing.assert_close(queue, given[f"queue{step}"])
        assert int(pointer) == int(given[f"ptr{step}"])


def test_without_a_cell_the_contrast_is_zero_and_has_a_gradient() -> None:
    """The authors' code gives NaN."""
    assert bool(torch.from_numpy(golden("cma/cdc_empty_is_nan.npz")["loss_when_no_cell_passes"]).isnan())
    anchors = torch.randn(1, 4, 6, 6, requires_grad=True)
    found = cell_contrast(anchors, torch.randn(1, 4, 6, 6), torch.zeros(1, 1, 6, 6), torch.eye(4))
    (gradient,) = torch.autograd.grad(found, anchors)
    assert float(found) == 0
    assert not gradient.any()


def test_a_zero_cell_gives_no_nan() -> None:
    anchors = torch.zeros(1, 4, 6, 6, requires_grad=True)
    found = cell_contrast(anchors, torch.randn(1, 4, 6, 6), torch.ones(1, 1, 6, 6), torch.eye(4), cells=2)
    (gradient,) = torch.autograd.grad(found, anchors)
    assert float(found) == 0
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("number", [3, 7])
def test_the_last_rows_stay_in_the_queue(number: int) -> None:
    rows = torch.arange(1.0, number + 1)[:, None].expand(number, 2)
    queue, pointer = enqueue(torch.zeros(2, 4), torch.tensor(3), rows)
    expected = [0.0] * 4
    for place in range(number):
        expected[(3 + place) % 4] = place + 1.0
    assert queue[0].tolist() == expected
    assert int(pointer) == (3 + number) % 4


def test_the_grid_lies_over_each_image_and_not_its_padding() -> None:
    values = torch.randn(3, 4, 7, 9)
    extents = torch.tensor([[7, 9], [5, 4], [2, 1]])
    found = pool(values, 3, extents).view(3, 9, 4)
    for row, (height, width) in enumerate(extents.tolist()):
        torch.testing.assert_close(found[row], pool(values[row : row + 1, :, :height, :width], 3))
