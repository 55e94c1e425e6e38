"""Images whose shapes are destroyed, against vectors of DeYO's authors, and what their random orders depend on."""

import numpy as np
import torch
from golden_vectors import golden
from numpy.testing import assert_allclose

from dafw.nn.shape_destroying import as_floats, occlude, random_orders, shuffle_patches, shuffle_pixels


def test_images_are_destroyed_as_the_authors_do() -> None:
    v = {name: torch.as_tensor(array) for name, array in golden("deyo/perturbations.npz").items()}
    grid = int(v["patch_len"])
    for form in ("patch_even", "patch_resized"):
        found = shuffle_patches(v[f"{form}_x"], v[f"{form}_perm"].long(), grid)
        assert_allclose(found, v[f"{form}_x_prime"], rtol=1e-7, atol=1e-9)
    assert torch.equal(shuffle_pixels(v["pixel_x"], v["pixel_perm"].long()), v["pixel_x_prime"])
    before, size = v["occlusion_x"].clone(), int(v["occlusion_size"])
    start = int(v["occlusion_row_start"]), int(v["occlusion_column_start"])
    assert_allclose(occlude(v["occlusion_x"], start, (size, size)), v["occlusion_x_prime"], rtol=1e-12)
    assert torch.equal(v["occlusion_x"], before)


def test_orders_are_a_function_of_seed_step_and_row() -> None:
    orders = random_orders(3, 5, 4, 9)
    assert orders.shape == (4, 9)
    assert all(sorted(row) == list(range(9)) for row in orders.tolist())
    assert torch.equal(orders, random_orders(3, 5, 4, 9))
    assert torch.equal(orders[:2], random_orders(3, 5, 2, 9))
    assert len({tuple(row) for row in orders.tolist()}) == 4
    for other in (random_orders(4, 5, 4, 9), random_orders(3, 6, 4, 9)):
        assert not torch.equal(orders, other)
    assert random_orders(3, 5, None, 9).shape == (1, 9)


def test_images_become_floats_in_the_unit_interval() -> None:
    images = torch.from_numpy(np.array([[[[0, 255]]]], dtype=np.uint8))
    assert as_floats(images, torch.float64).tolist() == [[[[0.0, 1.0]]]]
    assert as_floats(images.float(), torch.float32).tolist() == [[[[0.0, 255.0]]]]
