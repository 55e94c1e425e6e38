"""Shapes on photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dafw.data.setting import DataRequest, Setting
from dafw.errors import UserError
from datamodules import ShapesOnPhotos, shape_images, shapes
from datamodules.shape_images import render, scene


@pytest.fixture(autouse=True)
def few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few scenes of each split, in a cache of this test."""
    monkeypatch.setenv("DAFW_CACHE", str(tmp_path))
    monkeypatch.setattr(shapes, "COUNTS", {"train": 12, "val": 5, "test": 6})
    shapes._domain.cache_clear()


def test_a_scene_is_a_function_of_its_numbers() -> None:
    for style in shape_images.STYLES:
        image, mask = render(style, 0, 7, left=True)
        again, _ = render(style, 0, 7, left=True)
        assert (image.shape, mask.shape, image.dtype, mask.dtype) == ((64, 64, 3), (64, 64), np.uint8, np.uint8)
        assert np.array_equal(image, again)
        assert np.array_equal(mask, scene(0, 7, left=True).mask)
    assert not np.array_equal(render("day", 0, 7, left=True)[0], render("day", 0, 8, left=True)[0])
    assert not np.array_equal(render("day", 0, 7, left=True)[0], render("day", 1, 7, left=True)[0])


def test_the_styles_are_what_they_say() -> None:
    pairs = [(scene(0, index, left=True), index) for index in range(20)]
    counts = np.bincount(np.concatenate([one.mask.ravel() for one, _ in pairs]), minlength=4)
    assert (counts > 0).all()
    assert counts[0] > counts[1:].sum()
    channel = {1: 0, 2: 1, 3: 2}
    for shown, index in pairs:
        night, haze = (render(style, 0, index, left=True)[0] / 255.0 for style in ("night", "haze"))
        assert night.mean() < 0.6 * shown.pixels.mean()
        assert haze.min() > 0.2
        for label, brightest in channel.items():
            inside = shown.mask == label
            if inside.any():
                assert shown.pixels[inside].mean(0).argmax() == brightest
                assert haze[inside].mean(0).argmax() == (brightest + 1) % 3


def test_the_datamodule(tmp_path: Path) -> None:
    data = ShapesOnPhotos("day", "night", batch_size=4, augment="crop")
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert (batch.x.shape, batch.y.shape, batch.y.dtype) == ((8, 3, 64, 64), (4, 64, 64), torch.uint8)
    assert data.class_names == ("background", "disk", "square", "triangle")
    assert [len(data.load("night", split)) for split in ("train", "val", "test")] == [12, 5, 6]
    seen = {image.numpy().tobytes() for name in ("day", "night") for image in data.load(name, "train").inputs}
    assert len(seen) == 24
    assert data.evaluation_transform()(Image.new("RGB", (80, 70))).shape == (3, 64, 64)
    Image.new("RGB", (80, 70)).save(tmp_path / "photo.png")
    assert data.original_size(str(tmp_path / "photo.png")) == (70, 80)
    assert data.original_size("night/test/0") is None
    found = data.references("night", "test")
    images, index = found.images, found.index
    labels = data.load("night", "test").labels
    assert labels is not None
    assert index.tolist() == list(range(6))
    for position, mask in zip(index.tolist(), labels, strict=True):
        disk = mask == 1
        if disk.any():  # by day disks are red
            assert images[position][:, disk].float().mean(1).argmax() == 0
    with pytest.raises(UserError, match='unknown domain with references "day"'):
        data.references("day", "test")
    with pytest.raises(UserError, match='unknown domain "dusk"'):
        ShapesOnPhotos("day", "dusk")


def test_shifted_masks_are_those_of_other_scenes_moved_by_three_to_five_pixels() -> None:
    data = ShapesOnPhotos(["day_shifted", "day"], "night", batch_size=4)
    labels = data.load("day_shifted", "train").labels
    assert labels is not None
    for index, moved in enumerate(labels):
        true = scene(9, index, left=True).mask
        assert not np.array_equal(moved, true)
        near = range(-5, 6)
        padded = np.pad(moved, 5)
        found = [
            (down, across)
            for down in near
            for across in near
            if np.array_equal(padded[5 + down : 69 + down, 5 + across : 69 + across][6:-6, 6:-6], true[6:-6, 6:-6])
        ]
        assert any(2.2 < np.hypot(*one) < 5.8 for one in found)


def test_a_method_that_asks_for_references_gets_the_same_scenes_by_day() -> None:
    """The target has no labels beside them."""
    data = ShapesOnPhotos("day", "night", batch_size=4, steps_per_epoch=1)
    data.default_request = DataRequest(Setting("source-free", sees_source=False), references=True)
    data.setup("fit")
    (night,) = data.train_domains
    assert night.labels is None
    assert night.references is not None
    day = data.load("day", "train").inputs
    assert night.references.of(3).shape == day[3].shape
    assert not night.references.of(3).equal(night.inputs[3])
