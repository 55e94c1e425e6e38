"""The closed form of mSDA, against many copies that really lost features."""

import numpy as np
import pytest
from scipy import sparse

from dafw.data.msda import denoising_weights, encode, stacked_msda


def rows_of(count: int = 30, width: int = 4) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.random((count, width)) < 0.6).astype(np.float32) * rng.integers(1, 4, (count, width)).astype(np.float32)


def test_it_is_what_least_squares_finds_on_many_corrupted_copies() -> None:
    rows, copies = rows_of(), 4000
    rng = np.random.default_rng(1)
    original = np.tile(rows, (copies, 1)).astype(np.float64)
    corrupted = original * (rng.random(original.shape) < 0.5)
    corrupted = np.column_stack([corrupted, np.ones(len(corrupted))])
    expected = np.linalg.lstsq(corrupted, original, rcond=None)[0].T
    np.testing.assert_allclose(denoising_weights(rows, 0.5, 1e-9), expected, atol=0.02)


def test_without_corruption_it_gives_the_rows_back() -> None:
    weights = denoising_weights(rows_of(), 0.0, 1e-9)
    np.testing.assert_allclose(weights, np.eye(4, 5), atol=1e-5)


def test_a_feature_that_no_row_has_is_rebuilt_as_0() -> None:
    rows = rows_of()
    rows[:, 2] = 0
    weights = denoising_weights(rows, 0.5, 1e-5)
    assert np.isfinite(weights).all()
    assert abs(weights[2]).max() < 1e-6


def test_layers_are_stacked_and_fitted_on_the_first_rows_alone() -> None:
    rows, other = rows_of(), rows_of(7)[:, ::-1].copy()
    found = list(
        stacked_msda(sparse.csr_matrix(rows), [sparse.csr_matrix(other)], layers=2, corruption=0.5, ridge=1e-5)
    )
    assert [len(outputs) for outputs in found] == [1, 1, 1]
    np.testing.assert_array_equal(found[0][0], other)
    first = denoising_weights(rows, 0.5, 1e-5)
    second = denoising_weights(encode(rows, first), 0.5, 1e-5)
    np.testing.assert_allclose(found[2][0], encode(encode(other, first), second), atol=1e-6)
    assert np.abs(found[2][0]).max() <= 1


def test_encoding_is_tanh_of_an_affine_map() -> None:
    weights = np.array([[2.0, 0, 0.5], [0, -1, 0]], np.float32)
    np.testing.assert_allclose(encode(np.array([[1, 3]], np.float32), weights), np.tanh([[2.5, -3]]), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 1500])
def test_any_number_of_rows(count: int) -> None:
    assert encode(rows_of(count), denoising_weights(rows_of(count), 0.5, 1e-5)).shape == (count, 4)
