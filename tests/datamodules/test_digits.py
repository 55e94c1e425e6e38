"""The digit domains that need no files."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

import datamodules.digits as digits_module
from dafw.errors import UserError
from datamodules import digit_images
from datamodules.digits import Digits, stratified

SPLITS = ("train", "val", "test")
SIZES = {"mnist": 5000, "optdigits": 1797, "mnistm": 5000, "synthetic": 5000}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = os.environ.get("DAFW_CACHE")
    os.environ["DAFW_CACHE"] = str(tmp_path_factory.mktemp("kept"))
    digits_module._domains.cache_clear()
    yield Path(os.environ["DAFW_CACHE"])
    digits_module._domains.cache_clear()
    if before is None:
        del os.environ["DAFW_CACHE"]
    else:
        os.environ["DAFW_CACHE"] = before


def data(**options) -> Digits:
    return Digits("mnist", "mnistm", **options)


@pytest.mark.parametrize("name", SIZES)
def test_splits_of_a_domain(name: str) -> None:
    domains = {split: data().load(name, split) for split in SPLITS}
    assert sum(len(domain) for domain in domains.values()) == SIZES[name]
    for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2)):
        domain = domains[split]
        assert domain.name == name
        counts = np.bincount(domain.labels, minlength=10)
        assert np.abs(counts - share * SIZES[name] / 10).max() <= 8
        assert len(set(domain.labels[:60])) == 10, "classes come mixed"
        assert domain.inputs[0].shape == (3, 28, 28)
        assert domain.inputs[0].dtype == torch.uint8
    hashes = {split: {_hash(image) for image in domain.inputs} for split, domain in domains.items()}
    ids = {split: set(domain.ids) for split, domain in domains.items()}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not hashes[first] & hashes[second]
        assert not ids[first] & ids[second]


def _hash(image: torch.Tensor) -> bytes:
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest()


def test_a_test_digit_is_trained_on_in_neither_domain() -> None:
    for split in SPLITS:
        plain, blended = data().load("mnist", split), data().load("mnistm", split)
        assert [name.split("/")[1] for name in plain.ids] == [name.split("/")[1] for name in blended.ids]
        assert (plain.labels == blended.labels).all()


@pytest.mark.parametrize("name", SIZES)
def test_any_size(name: str) -> None:
    assert data(size=32).load(name, "val").inputs[0].shape == (3, 32, 32)


def test_grey_domains_have_three_equal_channels_and_look_like_mnist() -> None:
    for name in ("mnist", "optdigits"):
        images = torch.stack(list(data().load(name, "val").inputs))
        assert images[:, 0].equal(images[:, 1])
        assert images[:, 0].equal(images[:, 2])
        assert not images[..., :2, :2].any(), "black corners"
        assert images.amax(dim=(1, 2, 3)).min() > 180, "white strokes"
        assert 0.05 < (images > 127).float().mean() < 0.3


def test_loading_again_costs_nothing() -> None:
    assert data().load("mnist", "test") is data().load("mnist", "test")


def test_the_seed_of_a_run_changes_no_domain() -> None:
    assert data(seed=1).load("synthetic", "test").ids == data(seed=2).load("synthetic", "test").ids


CODE = """
import hashlib
import numpy as np
from datamodules import digit_images as images
from datamodules.digits import stratified
rendered = images.render(range(30))
mnist = images.mnist()
splits = stratified(mnist["images"], mnist["labels"], {"train": 0.7, "val": 0.1, "test": 0.2})
photograph = np.arange(60 * 90 * 3, dtype=np.int64).reshape(60, 90, 3).astype(np.uint8)
blended = images.blend(mnist["images"][:50], np.arange(50) % 3 > 0, [photograph], reduce=2, contrast=5)
parts = [rendered["images"], rendered["labels"], mnist["images"], blended, *splits.values()]
print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""


def test_another_process_makes_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(CODE, {})
    here = capsys.readouterr().out
    root = str(Path(digits_module.__file__).parents[1])
    environment = {**os.environ, "DAFW_CACHE": str(tmp_path), "PYTHONHASHSEED": "7", "PYTHONPATH": root}
    there = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout == here


def test_the_splits_depend_on_the_images_alone() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 9, (200, 3, 3), dtype=np.uint8), np.arange(200) % 4
    order = rng.permutation(200)
    shares = {"train": 0.5, "val": 0.2, "test": 0.3}
    plain, shuffled = stratified(images, labels, shares), stratified(images[order], labels[order], shares)
    for split, count in (("train", 100), ("val", 40), ("test", 60)):
        assert len(plain[split]) == count
        assert (images[plain[split]] == images[order][shuffled[split]]).all()
        assert set(np.bincount(labels[plain[split]])) == {count // 4}


def test_equal_images_stay_in_one_split() -> None:
    distinct = np.random.default_rng(0).integers(0, 255, (7, 2, 2), dtype=np.uint8)
    images = np.repeat(distinct, 6, axis=0)
    splits = stratified(images, np.zeros(42, np.int64), {"train": 0.5, "val": 0.2, "test": 0.3})
    kinds = [{images[position].tobytes() for position in positions} for positions in splits.values()]
    assert sum(map(len, kinds)) == 7
    assert sorted(np.concatenate(list(splits.values()))) == list(range(42))


def test_blending_is_the_difference_of_photograph_and_digit() -> None:
    digit = np.zeros((1, 4, 4), np.uint8)
    digit[0, 0, 0], digit[0, 1, 1] = 255, 100
    photograph = np.tile(np.array([10, 120, 250], np.uint8), (9, 9, 1))
    (blended,) = digit_images.blend(digit, np.array([True]), [photograph])
    assert blended[2, 2].tolist() == [10, 120, 250]
    assert blended[0, 0].tolist() == [245, 135, 5]
    assert blended[1, 1].tolist() == [90, 20, 150]


def test_training_digits_lie_on_other_parts_of_the_photographs() -> None:
    train = np.arange(60) % 2 == 0
    digits = np.zeros((60, 4, 4), np.uint8)
    halved = np.zeros((20, 40, 3), np.uint8)
    halved[:, 20:] = 200
    blended = digit_images.blend(digits, train, [halved, halved])
    assert not blended[train].any()
    assert (blended[~train] == 200).all()
    many = [np.full((20, 20, 3), 50 * (i % 2), np.uint8) for i in range(6)]
    blended = digit_images.blend(digits, train, many)
    assert not blended[train].any()
    assert (blended[~train] == 50).all()


def test_flat_crops_are_passed_over_where_others_exist() -> None:
    photograph = np.zeros((40, 200, 3), np.uint8)
    photograph[:, 80:90] = photograph[:, 180:190] = 255
    digits = np.zeros((30, 8, 8), np.uint8)
    blended = digit_images.blend(digits, np.arange(30) < 15, [photograph], reduce=2, contrast=40)
    assert blended.std(axis=(1, 2, 3)).min() >= 40
    flat = digit_images.blend(digits, np.arange(30) < 15, [np.zeros((20, 40, 3), np.uint8)], contrast=40)
    assert not flat.any()


def test_photographs_smaller_than_a_digit_are_refused() -> None:
    with pytest.raises(ValueError, match="28 pixels each way, not 20"):
        digit_images.blend(np.zeros((1, 28, 28), np.uint8), np.array([True]), [np.zeros((50, 40, 3), np.uint8)])


def test_every_font_draws_ten_different_digits() -> None:
    fonts = digit_images._font_files()
    assert len(fonts) > 15
    for file in fonts:
        masks = [bytes(ImageFont.truetype(str(file), 30).getmask(str(digit))) for digit in range(10)]
        assert len(set(masks)) == 10, file.name
        assert all(masks), file.name


def test_a_rendered_digit_depends_on_its_number_alone() -> None:
    alone, among = digit_images.render([17]), digit_images.render(range(10, 20))
    assert (alone["images"][0] == among["images"][7]).all()
    assert alone["labels"].tolist() == [7]


def test_resizing_keeps_grey_and_colour() -> None:
    grey = np.full((2, 8, 8), 7, np.uint8)
    assert (digit_images.resize(grey, 12) == 7).all()
    assert digit_images.resize(np.repeat(grey[..., None], 3, -1), 12).shape == (2, 12, 12, 3)
    assert digit_images.resize(grey, 8) is grey


@pytest.mark.parametrize("name", ["weak", "strong", "flip_crop"])
def test_views_do_not_mirror_digits(name: str) -> None:
    half = torch.zeros(3, 28, 28, dtype=torch.uint8)
    half[:, :, :14] = 255
    view = data().view(name)
    torch.manual_seed(0)
    assert view(half).shape == (3, 28, 28)
    if name != "strong":
        assert all(x[..., :14].sum() >= x[..., 14:].sum() for x in (view(half) for _ in range(20)))


def test_training_batches_have_no_target_labels() -> None:
    module = Digits("optdigits", "mnist", batch_size=6, target_batch_size=4, steps_per_epoch=2)
    module.prepare_data()
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch.x.shape == (10, 3, 28, 28)
    assert batch.num_source == len(batch.y) == 6
    assert Image.fromarray(batch.x[0].permute(1, 2, 0).numpy()).getbbox() is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "mnsitm"}, 'unknown domain "mnsitm": did you mean "mnistm"'),
        ({"target": "usps"}, 'unknown domain "usps"'),
        ({"scale": "smal"}, 'unknown scale "smal": did you mean "small"'),
        ({"size": 4}, "data.size must be at least 8 pixels, not 4"),
    ],
)
def test_wrong_arguments(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Digits(**{"source": "mnist", "target": "mnistm", **options})


def test_wrong_requests() -> None:
    with pytest.raises(UserError, match='unknown domain "svhn"'):
        data().load("svhn", "train")
    with pytest.raises(UserError, match='unknown split "tset": did you mean "test"'):
        data().load("mnist", "tset")  # type: ignore[arg-type]
    with pytest.raises(UserError, match='unknown augmentation "week": did you mean "weak"'):
        data().view("week")
