"""The common corruptions: functions of their arguments alone, harder with the severity, as the authors have them."""

from typing import Any

import numpy as np
import pytest
from golden_vectors import golden
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from dafw.data.corruptions import COMMON, HELD_OUT, KINDS, SEVERITIES, Scale, corrupted, parse_domain, usual_scale
from dafw.data.corruptions.blur import disk, glass_blur
from dafw.data.corruptions.edges import edges, equalised
from dafw.data.corruptions.parts import clouds, enlarged, moved, smooth
from dafw.errors import UserError

SCALES: tuple[Scale, ...] = ("cifar", "imagenet")
#: Corruptions without a random number.
FIXED = {"gaussian_blur", "defocus_blur", "zoom_blur", "contrast", "brightness", "saturate", "pixelate"}
FIXED |= {"jpeg_compression"}


@pytest.fixture(scope="module")
def image() -> NDArray[np.uint8]:
    """A smooth random image with some contrast, 32 pixels high and 40 wide."""
    values = gaussian_filter(np.random.default_rng(0).random((32, 40, 3)), (2, 2, 0))
    found: NDArray[np.uint8] = (255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)
    return found


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_depends_on_its_arguments_alone(image: NDArray[np.uint8], kind: str, scale: Scale) -> None:
    options: Any = {"scale": scale, "seed": 3, "name": "a"}
    before, rng = image.copy(), np.random.default_rng(1)
    distances = []
    for severity in SEVERITIES:
        found = corrupted(image, kind, severity, **options)
        assert (found.dtype, found.shape) == (np.uint8, image.shape)
        rng.random(5)
        np.random.seed(severity)
        np.testing.assert_array_equal(corrupted(image, kind, severity, **options), found)
        other = [corrupted(image, kind, severity, **{**options, **change}) for change in ({"seed": 4}, {"name": "b"})]
        assert [not np.array_equal(one, found) for one in other] == [kind not in FIXED] * 2
        distances.append(np.abs(found.astype(float) - image).mean())
    np.testing.assert_array_equal(image, before)
    if kind in (FIXED | {"gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"}) - {"saturate"}:
        assert distances == sorted(distances)
    assert max(distances) > 1


def test_grey_black_and_white_images_stay_finite() -> None:
    for value in (0, 128, 255):
        flat = np.full((32, 32, 3), value, np.uint8)
        for kind in KINDS:
            with np.errstate(all="raise", under="ignore"):
                found = corrupted(flat, kind, 5, scale="cifar", seed=0, name="")
            if kind in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "pixelate"):
                assert np.abs(found.astype(int) - value).max() <= 1, kind


@pytest.fixture(scope="module")
def arrays() -> dict[str, NDArray[Any]]:
    return golden("corruptions/imagecorruptions_imaug.npz")


@pytest.mark.parametrize("kind", sorted(FIXED))
def test_they_are_those_of_another_program(arrays: dict[str, NDArray[Any]], kind: str) -> None:
    for severity, expected in zip(SEVERITIES, arrays[kind], strict=True):
        found = corrupted(arrays["image"], kind, severity, scale="imagenet", seed=0, name="")
        apart = np.abs(found.astype(int) - expected)
        assert (apart.max(), apart.mean() < 0.05) <= (1, True), severity


def test_their_parts_are_those_of_another_program(arrays: dict[str, NDArray[Any]]) -> None:
    for angle, expected in zip(arrays["angles"], arrays["moved"], strict=True):
        np.testing.assert_allclose(moved(arrays["image"] / 255, 6, 2, angle), expected, atol=1e-6)
    np.testing.assert_allclose(disk(3, 0.1), arrays["disk_3"], atol=1e-6)
    np.testing.assert_allclose(disk(10, 0.5), arrays["disk_10"], atol=1e-6)
    np.testing.assert_array_equal(edges(arrays["grey"].astype(float), 50, 150), arrays["edges"])
    np.testing.assert_array_equal(equalised(arrays["grey"].astype(float)), arrays["equalised"])


def test_an_enlarged_image_is_scipys(image: NDArray[np.uint8]) -> None:
    square = image[:, :32] / 255
    for factor in (1.0, 1.05, 1.3, 2.5):
        inner = int(np.ceil(32 / factor))
        start = (32 - inner) // 2
        whole = zoom(square[start : start + inner, start : start + inner], (factor, factor, 1), order=1)
        trim = (len(whole) - 32) // 2
        np.testing.assert_allclose(enlarged(square, factor), whole[trim : trim + 32, trim : trim + 32], atol=1e-12)


def test_glass_copies_one_pixel_after_the_other(image: NDArray[np.uint8]) -> None:
    """As the authors' loop does with NumPy's views, where the second half of the swap has no effect."""
    x = np.floor(smooth(image / 255, 0.4) * 255) / 255
    draws = iter(np.random.default_rng(2).integers(-2, 2, (32 - 4, 40 - 4, 2)).reshape(-1, 2))
    for row in range(32 - 2, 2, -1):
        for column in range(40 - 2, 2, -1):
            right, down = next(draws)
            near = row + down, column + right
            x[row, column], x[near] = x[near], x[row, column]
    found = glass_blur(image / 255, (0.4, 2, 1), np.random.default_rng(2))
    np.testing.assert_allclose(found, smooth(x, 0.4), atol=1e-12)


def test_clouds_fill_their_square() -> None:
    for side, expected in ((28, 32), (32, 32), (33, 64), (224, 256)):
        heights = clouds(side, 2, np.random.default_rng(side))
        assert heights.shape == (expected, expected)
        assert (heights.min(), heights.max()) == (0, 1)
        assert len(np.unique(heights)) > expected**2 / 2


def test_names_of_domains() -> None:
    assert (len(COMMON), len(HELD_OUT), len(set(KINDS))) == (15, 4, 19)
    assert parse_domain("gaussian_noise_5") == ("gaussian_noise", 5)
    assert [usual_scale(size) for size in (28, 32, 64, 65, 224)] == ["cifar"] * 3 + ["imagenet"] * 2
    for name, said in (
        ("gausian_noise_5", 'unknown corruption "gausian_noise": did you mean "gaussian_noise"'),
        ("fog_6", "fog has the severities 1 to 5, and fog_6"),
        ("fog", "fog .* lacks a severity"),
        ("fog_", "fog has the severities"),
        ("rain_2", 'unknown corruption "rain"'),
    ):
        with pytest.raises(UserError, match=said):
            parse_domain(name)
