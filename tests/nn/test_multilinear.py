import torch
from torch import Tensor

from dafw.nn.multilinear import MultilinearMap


def inputs(rows: int = 5, d: int = 4, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, d, generator=generator)
    return features, torch.randn(rows, classes, generator=generator).softmax(1)


def test_outer_product_class_by_class() -> None:
    f, g = inputs()
    join = MultilinearMap(4, 3)
    joined = join(f, g)
    assert join.out_features == 12
    assert not join.state_dict()
    for c in range(3):
        for j in range(4):
            assert torch.equal(joined[:, c * 4 + j], g[:, c] * f[:, j])


def test_random_projection_keeps_inner_products_on_average() -> None:
    torch.manual_seed(0)
    f, g = inputs()
    join = MultilinearMap(4, 3, 200_000)
    whole, projected = MultilinearMap(4, 3)(f, g), join(f, g)
    assert projected.shape == (5, join.out_features)
    torch.testing.assert_close(projected @ projected.t(), whole @ whole.t(), rtol=0.05, atol=0.05)


def test_the_random_matrices_are_saved_and_not_trained() -> None:
    join = MultilinearMap(4, 3, 6)
    assert {name: tuple(value.shape) for name, value in join.state_dict().items()} == {"R_f": (4, 6), "R_g": (3, 6)}
    assert not list(join.parameters())
    again = MultilinearMap(4, 3, 6)
    assert not torch.equal(again(*inputs()), join(*inputs()))
    again.load_state_dict(join.state_dict())
    assert torch.equal(again(*inputs()), join(*inputs()))
