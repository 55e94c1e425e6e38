"""Where alignments take the features of a reference, and how sure they are."""

import pytest
import torch

from dafw.errors import UserError
from dafw.nn.alignment import Homography, Identity

UNIT = [1.0, 0, 0, 0, 1, 0, 0, 0, 1]


def features(height: int = 4, width: int = 6) -> torch.Tensor:
    return torch.arange(float(height * width)).view(1, 1, height, width)


def images(height: int = 8, width: int = 12) -> torch.Tensor:
    return torch.zeros(1, 3, height, width, dtype=torch.uint8)


def test_the_identity_is_sure_where_there_is_an_image() -> None:
    found, sure = Identity()(features(), images(), images(), torch.tensor([[8, 6]]))
    assert torch.equal(found, features())
    assert sure[0, 0].tolist() == [[1, 1, 1, 0, 0, 0]] * 4


def test_the_unit_matrix_is_the_identity() -> None:
    found, sure = Homography(UNIT)(features(), images(), images(), None)
    torch.testing.assert_close(found, features())
    assert bool(sure.all())


def test_a_shift_by_two_columns() -> None:
    shift = [1, 0, 2 / 6, 0, 1, 0, 0, 0, 1]
    found, sure = Homography([float(one) for one in shift])(features(), images(), images(), None)
    torch.testing.assert_close(found[..., :4], features()[..., 2:])
    assert sure[0, 0].tolist() == [[1, 1, 1, 1, 0, 0]] * 4


def test_shares_are_those_of_the_image_within_its_padding() -> None:
    flip = [-1.0, 0, 1, 0, 1, 0, 0, 0, 1]
    found, sure = Homography(flip)(features(), images(), images(), torch.tensor([[8, 8]]))
    torch.testing.assert_close(found[..., :4], features()[..., :4].flip(3))
    assert sure[0, 0].tolist() == [[1, 1, 1, 1, 0, 0]] * 4


@pytest.mark.parametrize(("matrix", "said"), [(UNIT[:8], "9 numbers, row by row, not 8"), ([0.0] * 9, "inverted")])
def test_a_wrong_matrix_is_refused(matrix: list[float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Homography(matrix)
