"""Rotated and coloured MNIST."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate as torchvision_rotate

from dafw.errors import UserError
from datamodules import digit_images
from datamodules.mnist_variants import ColoredMNIST, RotatedMNIST, deal, rotate

ANGLES = ["0", "15", "30", "45", "60", "75"]
COLOURS = ["+90%", "+80%", "-90%"]


def rotated(target: str = "0", **options) -> RotatedMNIST:
    return RotatedMNIST([name for name in ANGLES if name != target], target, **{"batch_size": 8, **options})


def coloured(target: str = "-90%", **options) -> ColoredMNIST:
    return ColoredMNIST([name for name in COLOURS if name != target], target, **{"batch_size": 8, **options})


def whole(data, name: str):
    """Images (n, 3, size, size), labels and ids of one domain, whatever the split."""
    parts = [data.load(name, split) for split in ("train", "val")]
    images = torch.stack([image for part in parts for image in part.inputs])
    return images, np.concatenate([part.labels for part in parts]), [i for part in parts for i in part.ids]


@pytest.mark.parametrize(("make", "names"), [(rotated, ANGLES), (coloured, COLOURS)])
def test_every_digit_is_in_one_domain(make, names: list[str]) -> None:
    data = make()
    assert data.domain_names == tuple(names)
    positions = {name: {int(i.split("/")[1]) for i in whole(data, name)[2]} for name in names}
    assert set().union(*positions.values()) == set(range(5000))
    assert sum(map(len, positions.values())) == 5000
    assert max(map(len, positions.values())) - min(map(len, positions.values())) <= 1


def test_dealing_depends_on_the_pixels_alone() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 28, 28), dtype=np.uint8)
    images[41] = images[3]
    order = rng.permutation(60)
    first = deal(images, np.arange(60), 3)
    second = deal(images[order], np.arange(60)[order], 3)
    assert [part.digits.tolist() for part in first] != [list(range(d, 60, 3)) for d in range(3)]
    for one, other in zip(first, second, strict=True):
        assert set(one.digits.tolist()) == set(other.digits.tolist())
        assert one.keys == other.keys
        assert (one.images == images[one.positions]).all()
    assert any({3, 41} <= set(part.positions) for part in first)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("angle", ["0", "15", "75"])
def test_a_rotated_digit_is_what_torchvision_makes(angle: str, interpolation: str) -> None:
    images, labels, ids = whole(rotated(interpolation=interpolation), angle)
    raw = digit_images.mnist()
    for index in (0, 7, len(ids) - 1):
        position = int(ids[index].split("/")[1])
        expected = torchvision_rotate(
            Image.fromarray(raw["images"][position]), float(angle), InterpolationMode(interpolation), fill=0
        )
        assert labels[index] == raw["labels"][position]
        assert all((channel.numpy() == np.asarray(expected)).all() for channel in images[index])


def test_the_direction_is_counter_clockwise() -> None:
    image = np.zeros((1, 29, 29), np.uint8)
    image[0, 14, 20:28] = 255  # a ray to the right
    turned = rotate(image, 90)[0]
    rows, columns = np.nonzero(turned)
    assert rows.max() < 10
    assert set(columns.tolist()) == {14}


def test_colours_and_label_noise() -> None:
    data, raw = coloured(), digit_images.mnist()
    for name, disagreement in (("+90%", 0.1), ("+80%", 0.2), ("-90%", 0.9)):
        images, labels, ids = whole(data, name)
        digits = raw["labels"][[int(i.split("/")[1]) for i in ids]]
        bright = images.flatten(2).any(-1)
        assert bright.sum(1).tolist() == [1] * len(ids)
        assert not bright[:, 2].any()
        colours = bright[:, 1].numpy().astype(int)
        assert (labels != (digits < 5)).mean() == pytest.approx(0.25, abs=0.04)
        assert (colours != labels).mean() == pytest.approx(disagreement, abs=0.03)
        for digit in range(10):
            assert 0.1 < (labels != (digits < 5))[digits == digit].mean() < 0.4
        wrong = labels != (digits < 5)
        assert abs(np.corrcoef(wrong, colours != labels)[0, 1]) < 0.1
        pixels = images[np.arange(len(ids)), colours].numpy()
        assert (pixels == raw["images"][[int(i.split("/")[1]) for i in ids]]).all()
    assert data.class_names == ("5-9", "0-4")


def test_the_noise_is_the_data_s_and_not_the_run_s() -> None:
    first, second = whole(coloured(seed=0), "+90%"), whole(coloured("+80%", seed=5, split_seed=3), "+90%")
    ones, others = (dict(zip(found[2], found[1].tolist(), strict=True)) for found in (first, second))
    assert ones == others
    assert first[2] != second[2], "the order of the splits differs, so that this says something"


@pytest.mark.parametrize(("make", "target", "source"), [(rotated, "0", "45"), (coloured, "-90%", "+80%")])
def test_domainbed_s_splits(make, target: str, source: str) -> None:
    data = make()

    def ids(name: str, split: str, of=data) -> set[str]:
        return set(of.load(name, split).ids)

    every = {name: ids(name, "train") | ids(name, "val") for name in (source, target)}
    for name in (source, target):
        assert not ids(name, "train") & ids(name, "val")
        assert len(ids(name, "train")) / len(every[name]) == pytest.approx(0.8, abs=0.04)
    assert ids(source, "test") == ids(source, "val")
    assert ids(target, "test") == ids(target, "train")
    assert ids(target, "val") == every[target] - ids(target, "test")
    assert ids(source, "train", make(seed=7)) == ids(source, "train")
    other = make(split_seed=1)
    assert 0.7 < len(ids(source, "train", other) & ids(source, "train")) / len(ids(source, "train")) < 0.9
    trained = make(oracle=True)
    assert ids(target, "train", trained) == ids(target, "train")
    assert ids(target, "test", trained) == ids(target, "val", trained) == ids(target, "val")


def test_the_other_protocol_has_three_splits() -> None:
    data = rotated(protocol="shares")
    parts = [set(data.load("0", split).ids) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(whole(rotated(), "0")[2])
    assert len(parts[0]) > 5 * len(parts[2])


def test_training_batches() -> None:
    data = coloured(size=32, steps_per_epoch=1)
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (24, 3, 32, 32)
    assert len(batch.y) == batch.num_source == 16
    assert data.task == "+90%,+80%->-90%"
    assert data.num_classes == 2


def test_angles_may_be_numbers() -> None:
    assert RotatedMNIST([15, 30], 0).task == "15,30->0"
    assert RotatedMNIST(15, [0]).task == "15->0"


def full(root: Path) -> None:
    """A folder with 90 "MNIST" digits."""
    rng = np.random.default_rng(3)
    images, labels = rng.integers(0, 256, (90, 28, 28), dtype=np.uint8), rng.integers(0, 10, 90)
    np.savez(root / "mnist.npz", x_train=images[:60], y_train=labels[:60], x_test=images[60:], y_test=labels[60:])


def test_full_scale_deals_training_and_test_set_together(tmp_path: Path) -> None:
    full(tmp_path)
    data = rotated(scale="full", root=str(tmp_path))
    ids = [i for name in ANGLES for i in whole(data, name)[2]]
    assert sorted(int(i.split("/")[1]) for i in ids) == list(range(90))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "large"}, 'unknown scale "large"'),
        ({"scale": "full"}, r"scale full needs --data\.root"),
        ({"size": 4}, r"data\.size must be at least 8 pixels, not 4"),
        ({"protocol": "domainbad"}, 'unknown protocol "domainbad": did you mean "domainbed"'),
        ({"split_seed": -1}, r"data\.split_seed must be at least 0, not -1"),
        ({"interpolation": "cubic"}, 'unknown interpolation "cubic": did you mean "bicubic"'),
        ({"source": [15, 20]}, 'unknown domain "20"'),
        ({"source": [0, 15]}, '"0" is both a source and a target'),
    ],
)
def test_wrong_input(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RotatedMNIST(**{"source": [15], "target": 0, **options}).load("0", "train")


def test_digits_in_colour_are_refused(tmp_path: Path) -> None:
    images, labels = np.zeros((20, 28, 28, 3), np.uint8), np.zeros(20, int)
    np.savez(tmp_path / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(UserError, match="must be 28 x 28 and grey, not 28 x 28 x 3"):
        coloured(scale="full", root=str(tmp_path)).load("+90%", "train")


def test_views_do_not_mirror() -> None:
    view = rotated().view("weak")
    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    image[:, :, :8] = 255
    assert all(view(image)[:, :, -1].max() == 0 for _ in range(8))
