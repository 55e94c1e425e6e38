"""Digits on photographs, with boxes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafw.errors import UserError
from dafw.problems import Detection
from datamodules import DigitsInScene, digit_scenes
from datamodules.digit_scenes import DIGITS, draw_scene, pools

OPTIONS = {"seed": 0, "wanted": "014", "size": 64}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> "object":
    """A cache for these tests, so that what another version has drawn is not read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAFW_CACHE", str(tmp_path_factory.mktemp("cache")))
        digit_scenes.pools.cache_clear()
        yield


def test_a_scene_is_a_function_of_its_seed_its_domain_and_its_number() -> None:
    for name in ("mnist", "optdigits+geo+graded", "fonts+fog"):
        image, boxes = draw_scene(name, "train", 3, **OPTIONS)
        again, same = draw_scene(name, "train", 3, **OPTIONS)
        assert (image.shape, image.dtype) == ((64, 64, 3), np.uint8)
        assert np.array_equal(image, again)
        assert np.array_equal(boxes, same)
    assert np.array_equal(draw_scene("fog", "test", 1, **OPTIONS)[0], draw_scene("mnist+fog", "test", 1, **OPTIONS)[0])
    others = [("mnist", "train", 4, 0), ("mnist", "val", 3, 0), ("mnist", "train", 3, 1), ("mnist+geo", "train", 3, 0)]
    images = {draw_scene("mnist", "train", 3, **OPTIONS)[0].tobytes()}
    images |= {draw_scene(a, b, c, **(OPTIONS | {"seed": seed}))[0].tobytes() for a, b, c, seed in others}
    assert len(images) == 5


def test_no_digit_image_is_in_two_splits() -> None:
    for digits, least in (("mnist", 40), ("optdigits", 10), ("fonts", 25)):
        found = {split: {one.tobytes() for each in of for one in each} for split, of in pools(digits, "01234").items()}
        assert sum(map(len, found.values())) == len(set.union(*found.values()))
        assert all(len(each) >= least for of in pools(digits, "01234").values() for each in of)


def test_boxes_enclose_the_digits() -> None:
    """Within a box pixels differ from the photograph, and at each of its sides some do."""
    for index in range(20):
        image, found = draw_scene("mnist", "train", index, **OPTIONS)
        assert 1 <= len(found) <= 3
        for left, top, right, bottom, label in found.astype(int).tolist():
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            assert 0 <= label < 3
            assert 15 <= max(right - left, bottom - top) <= 26
            cut = image[top:bottom, left:right].astype(int)
            assert np.ptp(cut.mean(2)) > 60


def test_domains_are_sets_of_digits_with_degradations() -> None:
    degradations = ["", "+fog", "+graded", "+geo", "+geo+fog", "+geo+graded"]
    names = [digits + way for digits in DIGITS for way in degradations]
    assert DigitsInScene.domain_names == (*names, *(way[1:] for way in degradations if way))


@pytest.mark.parametrize("name", DigitsInScene.domain_names)
def test_every_domain_is_drawn(name: str) -> None:
    data = DigitsInScene("mnist" if name != "mnist" else "fonts", name, scenes=(3, 1, 2), size=48, num_classes=4)
    found = data.load(name, "train")
    assert [tuple(image.shape) for image in found.inputs] == [(3, 48, 48)] * 3
    assert Detection().wrong_samples(found, data.num_classes) == []
    assert found.id(2) == f"{name}/train/2"


def test_the_datamodule() -> None:
    data = DigitsInScene("mnist", "mnist+fog", scenes=(6, 2, 2), batch_size=4, steps_per_epoch=1, augment="strong")
    data.prepare_data()
    data.setup("fit")
    assert data.class_names == ("0", "1", "2", "3", "4")
    batch = next(iter(data.train_dataloader()))
    assert (batch.x.shape, batch.x.dtype, len(batch.y)) == ((8, 3, 64, 64), torch.uint8, 4)
    assert {name: value.dtype for name, value in batch.y[0].items()} == {"boxes": torch.float32, "labels": torch.int64}
    assert data.evaluation_transform()(Image.new("RGB", (80, 70))).shape == (3, 64, 64)
    assert DigitsInScene("mnist", "fog", num_classes=3).class_names == ("0", "1", "4")


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("mnist", "mnits"), {}, 'unknown domain "mnits": did you mean "mnist"?'),
        (("mnist+fog", "fog"), {}, '"mnist+fog" and "fog" are one domain: leave one out'),
        (("mnist", "fog"), {"num_classes": 6}, "data.num_classes must be 3, 4 or 5, not 6"),
        (("mnist", "fog"), {"size": 20}, "data.size must be at least 32 pixels, not 20"),
        (("mnist", "fog"), {"scenes": (5, 0, 1)}, "data.scenes must be three numbers from 1 on"),
        (("mnist", "fog"), {"scene_seed": -1}, "data.scene_seed must be at least 0, not -1"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, str], options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError) as caught:
        DigitsInScene(*arguments, **options)  # type: ignore[arg-type]
    assert said in str(caught.value)
    with pytest.raises(UserError, match=r'unknown data\.augment "crop"'):
        DigitsInScene("mnist", "fog", augment="crop").augmentation()


def test_the_path_of_a_cache(tmp_path: Path) -> None:
    """What was drawn is read again."""
    first = DigitsInScene("mnist", "fog", scenes=(2, 1, 1)).load("fog", "test")
    from datamodules import digits_in_scene

    digits_in_scene._domain.cache_clear()
    second = DigitsInScene("mnist", "fog", scenes=(2, 1, 1)).load("fog", "test")
    assert torch.equal(first.inputs[0], second.inputs[0])
    assert first.labels is not None
    assert second.labels is not None
    assert torch.equal(first.labels[0]["boxes"], second.labels[0]["boxes"])
